"""PLINK 1 genotype panels: checking, reading, standardising.

A panel is three files: `.bed` (two bits per genotype), `.bim` (variants) and `.fam` (people). Everything
that can be wrong with them is found when the panel is opened, before any genotype is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from deepwas.errors import InputError
from deepwas.files import require_file
from deepwas.genome import CHROMOSOMES, normalise_chromosome
from deepwas.tables import numeric_column, read_delimited
from deepwas.tally import Tally

MIN_SAMPLES = 50
_MAGIC = b"\x6c\x1b"
_BIM = ("CHR", "SNP", "CM", "BP", "A1", "A2")


class Standardised(NamedTuple):
    """What `standardise` returns; m is the number of variants.

    genotypes: (n, m), mean 0 and variance 1 (a monomorphic variant: 0).
    frequency: (m,) of A1, NaN if all is missing.
    missing: (m,) share of people without a genotype.  monomorphic: (m,) bool, also true if all is missing.
    """

    genotypes: npt.NDArray[np.floating]
    frequency: npt.NDArray[np.float64]
    missing: npt.NDArray[np.float64]
    monomorphic: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PlinkPanel:
    """An opened PLINK 1 panel, made by `open_plink`.

    variants: CHR SNP CM BP A1 A2, in genome order; CM is null where the file gives no genetic map.
    tally: what was dropped or renamed when the panel was opened.
    """

    prefix: str
    n_samples: int
    variants: pl.DataFrame
    tally: Tally
    _file_rows: npt.NDArray[np.int64] = field(repr=False)
    _n_in_file: int = field(repr=False)

    @property
    def n_variants(self) -> int:
        """Number of variants kept."""
        return self.variants.height

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """The .bed, .bim and .fam files."""
        bed, bim, fam = (Path(self.prefix + suffix) for suffix in (".bed", ".bim", ".fam"))
        return bed, bim, fam

    def read(
        self, indices: npt.ArrayLike | slice, *, samples: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Counts of A1, NaN where missing: (people, variants) float32, variants contiguous in memory.

        indices: rows of `variants` (numbers or a slice).  samples: rows of the .fam file; None is everyone.
        """
        from bed_reader import open_bed

        rows = self._file_rows[indices if isinstance(indices, slice) else np.asarray(indices, dtype=np.int64)]
        if rows.size == 0:
            count = self.n_samples if samples is None else len(samples)
            return np.empty((count, 0), dtype=np.float32, order="F")
        index = rows if samples is None else (samples, rows)
        # Given both counts, bed-reader does not parse the .bim and .fam files again at every call.
        with open_bed(self.paths[0], iid_count=self.n_samples, sid_count=self._n_in_file) as bed:
            return bed.read(index=index, dtype="float32", order="F")

    def count_genotypes(self, advance: Callable[[int, int], None] | None = None) -> npt.NDArray[np.int64]:
        """How many people carry 0, 1 and 2 copies of A1, and how many have no genotype: (n_variants, 4).

        Reads the panel once, in pieces of about 64 MB.  advance(done, total): progress in variants.
        """
        from bed_reader import open_bed

        counts = np.empty((self.n_variants, 4), dtype=np.int64)
        piece = max(1, (64 << 20) // self.n_samples)
        with open_bed(self.paths[0], iid_count=self.n_samples, sid_count=self._n_in_file) as bed:
            for start in range(0, self.n_variants, piece):
                here = slice(start, min(start + piece, self.n_variants))
                codes = bed.read(index=self._file_rows[here], dtype="int8", order="F")
                for copies in range(3):
                    counts[here, copies] = np.count_nonzero(codes == copies, axis=0)
                if advance is not None:
                    advance(here.stop, self.n_variants)
        counts[:, 3] = self.n_samples - counts[:, :3].sum(axis=1)
        return counts


def open_plink(path: str | os.PathLike[str]) -> PlinkPanel:
    """Open and check a PLINK 1 panel.

    path: the common prefix of the three files, or any of them.

    InputError if a file is missing or malformed, the .bed file is not variant-major PLINK 1, its size does
    not fit the other two files, or there are fewer than 50 people (the sampling error of every r, about
    1/sqrt(n), would exceed 0.14).
    Dropped and counted: variants without alleles or position, and those that repeat an earlier one (the same
    position and pair of alleles, in either order). An unsorted panel is presented in genome order, and that
    is noted.
    """
    prefix = _prefix(path)
    bed = Path(prefix + ".bed")
    if not bed.exists() and Path(prefix + ".pgen").exists():
        raise InputError(
            f"{prefix}.pgen: PLINK 2 genotypes are not read directly. "
            f"Convert them: plink2 --pfile {prefix} --make-bed --out {prefix}"
        )
    require_file(bed, "the genotypes of a PLINK 1 panel, PREFIX.bed,")
    bim = require_file(prefix + ".bim", "the variant table of a PLINK 1 panel, PREFIX.bim,")
    fam = require_file(prefix + ".fam", "the sample table of a PLINK 1 panel, PREFIX.fam,")
    _check_magic(bed, prefix)
    n_samples = _count_samples(fam)
    raw = _read_bim(bim)
    _check_size(bed, n_samples, raw.height)
    if n_samples < MIN_SAMPLES:
        raise InputError(
            f"{fam}: {n_samples} people; LD from fewer than {MIN_SAMPLES} is mostly sampling noise. "
            "Give a larger panel of the same ancestry as the GWAS."
        )
    tally = Tally()
    variants = _clean(raw, tally, bim)
    return PlinkPanel(
        prefix=prefix,
        n_samples=n_samples,
        variants=variants.drop("row"),
        tally=tally,
        _file_rows=variants["row"].to_numpy().astype(np.int64),
        _n_in_file=raw.height,
    )


def standardise(dosages: npt.NDArray[np.floating]) -> Standardised:
    """Scale every variant to mean 0 and variance 1; a missing genotype becomes the mean, 0.

    dosages: (n, m) counts of A1, NaN where missing. The variance is 1 after the missing genotypes are
    filled, so X'X / n is a correlation matrix: unit diagonal, and positive semi-definite whatever is missing.
    """
    # Work on (m, n): panels arrive with the people of one variant contiguous in memory.
    filled = np.array(dosages.T, order="C")
    kind, n = filled.dtype.type, filled.shape[1]
    absent = np.isnan(filled)
    n_absent = absent.sum(axis=1)
    some_absent = bool(n_absent.any())
    if some_absent:
        np.copyto(filled, kind(0), where=absent)
    called = n - n_absent
    mean = filled.sum(axis=1, dtype=np.float64) / np.maximum(called, 1)
    filled -= mean.astype(kind)[:, None]
    if some_absent:
        np.copyto(filled, kind(0), where=absent)
    variance = np.einsum("ij,ij->i", filled, filled).astype(np.float64) / n
    monomorphic = variance < 1e-10
    scale = np.where(monomorphic, 0.0, 1.0 / np.sqrt(np.where(monomorphic, 1.0, variance)))
    filled *= scale.astype(kind)[:, None]
    frequency = np.where(called > 0, mean / 2, np.nan)
    return Standardised(filled.T, frequency, n_absent / n, monomorphic)


def _prefix(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    stem, suffix = os.path.splitext(text)
    if suffix in (".bed", ".bim", ".fam"):
        return stem
    if text.endswith((".vcf", ".vcf.gz", ".bcf", ".bgen")):
        raise InputError(
            f"{text}: a PLINK 1 panel (bed, bim, fam) is needed. Convert it with plink2, for a VCF: "
            "plink2 --vcf FILE --max-alleles 2 --make-bed --out PREFIX"
        )
    return text


def _check_magic(bed: Path, prefix: str) -> None:
    with open(bed, "rb") as handle:
        head = handle.read(3)
    if len(head) < 3 or head[:2] != _MAGIC:
        raise InputError(
            f"{bed}: not a PLINK 1 genotype file: it starts with {head[:2].hex(' ') or 'nothing'}, not "
            "6c 1b. A BED file of intervals bears the same suffix; give the genotype panel's prefix."
        )
    if head[2] != 1:
        how = "stored sample by sample" if head[2] == 0 else f"of unknown layout {head[2]:#04x}"
        raise InputError(
            f"{bed}: the genotypes are {how}; variant by variant is needed. "
            f"Convert: plink2 --bfile {prefix} --make-bed --out {prefix}.by_variant"
        )


def _check_size(bed: Path, n_samples: int, n_variants: int) -> None:
    expected = 3 + (n_samples + 3) // 4 * n_variants
    found = bed.stat().st_size
    if found != expected:
        fate = "truncated" if found < expected else "too long"
        raise InputError(
            f"{bed}: {fate}: {found:,} bytes, but {n_variants:,} variants of {n_samples:,} people take "
            f"{expected:,}. Copy the three files again, and check that they belong together."
        )


def _count_samples(fam: Path) -> int:
    frame = read_delimited(fam, what="a PLINK .fam table", header=False)
    if frame.width != 6:
        raise InputError(
            f"{fam}: {frame.width} columns found, a .fam table has 6: FID IID father mother sex phenotype."
        )
    return frame.height


def _read_bim(bim: Path) -> pl.DataFrame:
    frame = read_delimited(bim, what="a PLINK .bim table", header=False)
    if frame.width != 6:
        raise InputError(f"{bim}: {frame.width} columns found, a .bim table has 6: {' '.join(_BIM)}.")
    frame.columns = list(_BIM)
    return frame.with_columns(
        normalise_chromosome("CHR"),
        numeric_column(frame, "CM", bim, header=False),
        numeric_column(frame, "BP", bim, integer=True, header=False),
        pl.col("A1", "A2").str.to_uppercase(),
    ).with_row_index("row")


def _clean(raw: pl.DataFrame, tally: Tally, bim: Path) -> pl.DataFrame:
    step = "open panel"
    label = pl.coalesce("SNP", pl.format("line {} of the .bim file", pl.col("row") + 1))

    def drop(frame: pl.DataFrame, condition: pl.Expr, reason: str) -> pl.DataFrame:
        bad = frame.filter(condition)
        if bad.height:
            tally.add(step, "dropped", reason, bad.height, str(bad.select(label).item(0, 0)))
        return frame.filter(~condition)

    frame = drop(raw, pl.col("CHR").is_null(), "no chromosome")
    frame = drop(frame, pl.col("BP").is_null() | (pl.col("BP").fill_null(0) < 1), "no position, or one below 1")
    unknown = pl.any_horizontal(
        pl.col("A1", "A2").is_null() | pl.col("A1", "A2").is_in(["0", "N", "-"]).fill_null(True)
    )
    frame = drop(frame, unknown, "an allele is missing (0 or . in the .bim file)")
    frame = drop(frame, pl.col("A1") == pl.col("A2"), "both alleles are the same")
    low, high = pl.min_horizontal("A1", "A2"), pl.max_horizontal("A1", "A2")
    repeated = ~pl.struct("CHR", "BP", low.alias("low"), high.alias("high")).is_first_distinct()
    frame = drop(frame, repeated, "repeats an earlier variant: same position and alleles")
    if frame.is_empty():
        raise InputError(f"{bim}: none of the {raw.height:,} variants is usable: {'; '.join(tally.lines())}.")

    unnamed = frame.filter(pl.col("SNP").is_null())
    if unnamed.height:
        tally.add(
            step,
            "changed",
            "no identifier: named CHR:BP:A2:A1",
            unnamed.height,
            str(unnamed.select(label).item(0, 0)),
        )
        name = pl.format("{}:{}:{}:{}", "CHR", "BP", "A2", "A1")
        frame = frame.with_columns(pl.coalesce("SNP", name))
    shared = frame.filter(~pl.col("SNP").is_first_distinct())
    if shared.height:
        tally.add(step, "noted", "bears the identifier of an earlier variant", shared.height, shared["SNP"][0])

    contigs = [c for c in frame["CHR"].unique(maintain_order=True).to_list() if c not in CHROMOSOMES]
    order = {name: i for i, name in enumerate((*CHROMOSOMES, *sorted(contigs)))}
    rank = pl.col("CHR").replace_strict(order, return_dtype=pl.Int32)
    ordered = frame.sort(rank, "BP", "row")
    moved = ordered.filter(ordered["row"] != frame["row"])
    if moved.height:
        tally.add(step, "noted", "not in genome order in the .bim file: sorted", moved.height, moved["SNP"][0])
    if not ordered["CM"].fill_null(0.0).cast(pl.Boolean).any():
        ordered = ordered.with_columns(CM=pl.lit(None, dtype=pl.Float64))
    tally.add(step, "kept", "usable", ordered.height)
    return ordered.select("row", *_BIM)
