"""GEUVADIS: expression of the genes of chromosome 22 in 358 Europeans with genotypes, cut in halves of the people.

In each half, expression is ranked to a normal distribution, and expression and genotypes are residualised on the first
covariates; R is the LD of the residualised genotypes. With n people and c covariates (a constant among them), d = n - c
and correlations r within the half, z = sqrt(d) r ~ N(sqrt(d) R beta, noise R) as everywhere in deepwas.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError

if TYPE_CHECKING:
    import polars as pl

__all__ = ["FILES", "Data", "Half", "find_folder", "half_of", "ld_scores", "read"]

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]

VARIABLE = "DEEPWAS_GEUVADIS"
FILES = {
    "genotypes": "geuvadis_eur358_chr22.bed",
    "expression": "genes.50percent.chr22.bed.gz",
    "covariates": "genes.covariates.pc50.txt.gz",
}
OPEN_CHROMATIN = "heme_atac_union_500bp.chr22.hg19.bed"
_LEAST = 0.05  # of a standardised genotype's variance that covariates must leave
_SIDE = 400  # variants either side that an LD score sums over


@dataclass(frozen=True, eq=False)
class Data:
    """All people.

    variants: CHR SNP BP A1 A2, M rows.  genotypes: (people, M) float32, standardised.  genes: NAME TSS STRAND, by TSS.
    expression: (people, genes).  covariates: (people, C).  open_chromatin: BED file, or None.
    """

    variants: pl.DataFrame
    genotypes: NDArray[np.float32]
    genes: pl.DataFrame
    expression: Array
    covariates: Array
    open_chromatin: Path | None


@dataclass(frozen=True, eq=False)
class Half:
    """Some of the people.

    X: (n, M) float32, residualised genotypes, each of mean square 1, or 0 where the covariates leave nothing.
    Y: (n, genes), expression likewise.  directions: d, what is left of n by the covariates.
    """

    X: NDArray[np.float32]
    Y: Array
    directions: int

    @property
    def people(self) -> int:
        """n."""
        return len(self.X)

    def correlation(self, variants: Any, genes: Any) -> Array:
        """(variants, genes) r."""
        return np.asarray(self.X[:, variants].T.astype(np.float64) @ self.Y[:, genes] / self.people)

    def ld(self, one: Any, other: Any) -> Array:
        """(one, other) R."""
        return np.asarray(self.X[:, one].T.astype(np.float64) @ self.X[:, other] / self.people)


def find_folder() -> Path | None:
    """The folder of the data, if they are there: named by DEEPWAS_GEUVADIS, or beside the checkout."""
    given = os.environ.get(VARIABLE)
    folder = Path(given) if given else Path(__file__).parents[2] / "shared/data/benchmark/geuvadis"
    return folder if all((folder / name).is_file() for name in FILES.values()) else None


def read(folder: Path) -> Data:
    """All of it, in memory (some 150 MB)."""
    import polars as pl

    from deepwas.genotypes import open_plink, standardise

    panel = open_plink(folder / FILES["genotypes"])
    with open(panel.paths[2], encoding="utf-8") as handle:
        people = [line.split()[1] for line in handle]
    bed = pl.read_csv(folder / FILES["expression"], separator="\t")
    table = pl.read_csv(folder / FILES["covariates"], separator=" ")
    for name, own in (("expression", bed.columns), ("covariates", table.columns)):
        lacking = [x for x in people if x not in own]
        if lacking:
            raise InputError(f"{folder / FILES[name]}: {lacking[0]} of the genotypes is missing ({len(lacking)} such).")
    # An expression table in QTLtools' form has the transcription start as its interval.
    bed = bed.sort("end", "gene").filter(pl.concat_list(people).list.n_unique() > len(people) // 2)
    chromatin = folder.parent / "annotations" / OPEN_CHROMATIN
    return Data(
        panel.variants.select("CHR", "SNP", "BP", "A1", "A2"),
        np.ascontiguousarray(standardise(panel.read(slice(None))).genotypes.astype(np.float32)),
        bed.select(NAME="gene", TSS="end", STRAND="strand"),
        bed.select(people).to_numpy().T.astype(np.float64),
        table.select(people).to_numpy().T.astype(np.float64),
        chromatin if chromatin.is_file() else None,
    )


def half_of(data: Data, people: Numbers, covariates: int) -> Half:
    """The half of these people (rows), residualised on a constant and the first covariates."""
    from scipy.stats import norm, rankdata

    n = len(people)
    C = data.covariates[people, :covariates]
    Q, _ = np.linalg.qr(np.column_stack([np.ones(n), (C - C.mean(axis=0)) / C.std(axis=0)]))
    X = data.genotypes[people]
    X = X - Q.astype(np.float32) @ (Q.T.astype(np.float32) @ X)
    Y = norm.ppf((rankdata(data.expression[people], axis=0) - 0.5) / n)
    Y = Y - Q @ (Q.T @ Y)
    spread = np.sqrt(np.einsum("ij,ij->j", X, X, dtype=np.float64) / n)
    usable = spread**2 > _LEAST
    X = X * np.where(usable, 1 / np.where(usable, spread, 1.0), 0.0).astype(np.float32)[None, :]
    return Half(X, Y / Y.std(axis=0), n - Q.shape[1])


def ld_scores(half: Half, piece: int = 1000) -> Array:
    """(M,), sum of r^2 - (1 - r^2) / (d - 2) over the variants within 400 places on either side, its own included."""
    M = half.X.shape[1]
    out = np.empty(M)
    for start in range(0, M, piece):
        stop = min(start + piece, M)
        low, high = max(0, start - _SIDE), min(M, stop + _SIDE)
        r2 = half.ld(slice(start, stop), slice(low, high)) ** 2
        apart = np.abs(np.arange(start, stop)[:, None] - np.arange(low, high)[None, :])
        out[start:stop] = np.where(apart <= _SIDE, r2 - (1 - r2) / (half.directions - 2), 0.0).sum(axis=1)
    return out
