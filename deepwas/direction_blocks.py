"""What a mean head needs of each LD block, given a run's prior.

Block b: y ~ N(sqrt(N) G mu, B), B = noise I + N G diag(f) G', mu = S w, S (m, p) the signed scores of its candidates
per standardised genotype. With X = sqrt(N) G S, a block gives X'B^-1 X and X'B^-1 y. Where sample sizes differ within a
block, G carries sqrt(N_j / N) and N is their mean (see `LDBlock.restrict`), so that the same formulas hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.tally import Tally

if TYPE_CHECKING:
    from deepwas.ld import LDStore
    from deepwas.runs import Fit
    from deepwas.training.trait import TraitBlock

__all__ = ["BlockSums", "Prior", "block_terms", "prior_of", "sum_blocks"]

_CELL_NUMBERS = 125_000_000  # float64 of all cells' matrices: 1 GB

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prior:
    """A run's variance prior on the rows of its LD store.

    frame: the z-scores, VARIANT Z N.  f: (M,) effect variance of every variant of the store.
    scored: (M,) bool, the variants that the run models, over which heritability is summed.
    section: of each block number.  noise: sigma2 of each block number.  tally: what had to be filled in.
    """

    frame: pl.DataFrame
    f: Array
    scored: NDArray[np.bool_]
    section: dict[int, int]
    noise: dict[int, float]
    tally: Tally


def prior_of(fit: Fit, store: LDStore, cross_fitted: bool) -> Prior:
    """The prior of a run, for the LD store it was made with; InputError for another store."""
    made_with = fit.record["inputs"]["ld"]["checksum"]
    if made_with != store.checksum:
        raise InputError(
            f"{store.path}: not the LD store of the run ({store.checksum[:12]}, the run's is {made_with[:12]}, "
            f"{fit.record['inputs']['ld']['file']}). Give the one it was fitted with."
        )
    variants = fit.variants
    blocks = variants["BLOCK"].unique(maintain_order=True).to_list()
    rows = np.concatenate([np.arange(s.start, s.stop) for s in (store.scored_slice(b) for b in blocks)])
    if len(rows) != variants.height or not store.variants["SNP"][rows].equals(variants["SNP"]):
        raise InputError("the run's variants are not those of the LD store's blocks. Was its table changed?")
    section = dict(zip(blocks, variants.group_by("BLOCK", maintain_order=True).first()["SECTION"], strict=True))
    rotations = fit.record["rotations"]
    by_section = dict.fromkeys(set(section.values()), rotations[0])
    if cross_fitted:
        by_section = {section[r["test_blocks"][0]]: r for r in rotations}
    noise = {b: float(by_section[section[b]]["noise"]) for b in blocks}
    scored = np.zeros(store.n_variants, dtype=bool)
    scored[rows] = True
    f = np.full(store.n_variants, np.nan)
    f[rows] = variants["SNPVAR_CROSS" if cross_fitted else "SNPVAR_PLAIN"].to_numpy()
    tally = Tally()
    filled = np.zeros(store.n_variants, dtype=bool)
    for b in blocks:
        # A candidate that no block scores has no prior in the run's table.
        here = store.block_slice(b)
        gone = np.isnan(f[here])
        f[here][gone] = np.exp(by_section[section[b]]["constant"]["log_effect_variance"])
        filled[here] |= gone
    if filled.any():
        text = "candidates without z-scores in their block: no prior in the run, the constant one is taken"
        tally.add("direction", "noted", text, int(filled.sum()), str(store.variants["SNP"][int(filled.argmax())]))
    f[np.isnan(f)] = 0.0  # in no block used
    numbered = variants.select("Z", "N").with_columns(pl.Series("VARIANT", rows))
    frame = numbered.filter(pl.col("Z").is_not_null()).sort("VARIANT").select("VARIANT", "Z", "N")
    return Prior(frame, f, scored, section, noise, tally)


@dataclass(frozen=True)
class BlockSums:
    """Sums over blocks, in float64.

    number: (blocks,) of each block in the store.  u: (blocks, p), X'B^-1 y.
    cell: (blocks,) which cell it falls in, runs of blocks of one section.  A: (cells, p, p), X'B^-1 X of each cell.
    cell_section: (cells,).
    """

    number: NDArray[np.int64]
    u: Array
    cell: NDArray[np.int64]
    A: Array
    cell_section: NDArray[np.int64]

    def by_cell(self) -> Array:
        """u of each cell, (cells, p)."""
        out = np.zeros((len(self.A), self.u.shape[1]))
        np.add.at(out, self.cell, self.u)
        return out


def block_terms(block: TraitBlock, S: NDArray[Any], f: Array, noise: float) -> tuple[Array, Array]:
    """X'B^-1 X (p, p) and X'B^-1 y (p,) of one block, by Cholesky factorisation in float64.

    S: (m, p).  f: (m,).  Cost k^2 m + k^3 / 3 + k m p + k^2 p + k p^2, memory of G, B and X.
    """
    from scipy.linalg import LinAlgError, cholesky, solve_triangular

    G = np.asarray(block.factor, dtype=np.float64)
    B = (G * (block.sample_size * f)[None, :]) @ G.T
    B[np.diag_indices_from(B)] += noise
    X = np.sqrt(block.sample_size) * (G @ np.asarray(S, dtype=np.float64))
    right = np.concatenate([X, np.asarray(block.whitened, dtype=np.float64)[:, None]], axis=1)
    try:
        half = solve_triangular(cholesky(B, lower=True, overwrite_a=True), right, lower=True, overwrite_b=True)
    except LinAlgError as error:
        raise InputError(
            f"LD block {block.number}: its covariance under the run's prior is not positive definite ({error}). "
            "Is the prior finite?"
        ) from error
    return half[:, :-1].T @ half[:, :-1], half[:, :-1].T @ half[:, -1]


def sum_blocks(
    blocks: Sequence[TraitBlock],
    scores: Callable[[slice], NDArray[Any]],
    prior: Prior,
    columns: int,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> BlockSums:
    """Go once through the blocks, each loaded when its turn comes.

    scores: rows of the store -> S (m, p), per standardised genotype.  columns: p.
    Memory: p^2 for each cell, as many cells as blocks, or as fit in 1 GB (but one a section).
    """
    numbers = np.array([blocks[i].number for i in range(len(blocks))])
    section = np.array([prior.section[int(n)] for n in numbers])
    cell = _cells(section, max(1, _CELL_NUMBERS // max(1, columns**2)))
    count = int(cell[-1]) + 1
    A, u = np.zeros((count, columns, columns)), np.zeros((len(blocks), columns))
    for i in range(len(blocks)):
        block = blocks[i]
        information, u[i] = block_terms(block, scores(block.rows), prior.f[block.rows], prior.noise[int(numbers[i])])
        A[cell[i]] += information
        if progress is not None:
            progress(i + 1, len(blocks))
    first = np.searchsorted(cell, np.arange(count))
    return BlockSums(numbers, u, cell, A, section[first])


def _cells(section: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Numbers of runs of blocks, within a section each, about `most` in all if there are more blocks."""
    if len(section) <= most:
        return np.arange(len(section))
    length = -(-len(section) // most)
    starts = np.flatnonzero(np.diff(section, prepend=section[0] - 1))
    within = np.arange(len(section)) - np.repeat(starts, np.diff(np.append(starts, len(section))))
    new = within % length == 0
    return np.cumsum(new) - 1
