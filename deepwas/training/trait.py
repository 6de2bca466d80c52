"""One trait's z-scores in its LD blocks, whitened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.tally import Tally

if TYPE_CHECKING:
    import polars as pl

    from deepwas.ld import LDBlock, LDStore

__all__ = ["TraitBlock", "whiten_trait"]


@dataclass(frozen=True)
class TraitBlock:
    """One LD block with one trait's z-scores.

    number: of the block in the store.  rows: its variants in the store.  factor: (k, m), G.  whitened: (k,), y.
    z: (m,), 0 where there is none.  observed: (m,) bool, variants with a z-score.  sample_size: mean N of those.
    """

    number: int
    rows: slice
    factor: NDArray[np.float32]
    whitened: NDArray[np.float32]
    z: NDArray[np.float64]
    observed: NDArray[np.bool_]
    sample_size: float


def whiten_trait(
    store: LDStore,
    frame: pl.DataFrame,
    *,
    variance_share: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[TraitBlock], Tally]:
    """Whiten one trait's z-scores block by block.

    frame: harmonised z-scores, columns VARIANT (row of the store), Z, N.  Variants of a block without a z-score stay
    candidate causal variants. Where N differs between variants of a block, z = diag(sqrt N) R beta + e with
    e ~ N(0, noise R), which assumes that the smaller samples are part of the larger ones.

    variance_share: use only the leading eigenvalues that hold this share of the variance the store keeps.

    Returns the blocks that have any z-score, and the count of variants in those that have none.
    """
    tally = Tally()
    blocks = []
    variant = frame["VARIANT"].to_numpy()
    z_all, n_all = frame["Z"].to_numpy(), frame["N"].to_numpy()
    total = store.n_blocks
    for number in range(total):
        rows = store.block_slice(number)
        low, high = np.searchsorted(variant, [rows.start, rows.stop])
        m = rows.stop - rows.start
        if low == high:
            first = store.variants["SNP"][rows.start]
            tally.add("fit", "dropped", "variants of LD blocks without any z-score", m, str(first))
            continue
        local = variant[low:high] - rows.start
        observed = np.zeros(m, dtype=bool)
        observed[local] = True
        z = np.zeros(m)
        z[local] = z_all[low:high]
        n = np.zeros(m)
        n[local] = n_all[low:high]
        mean_n = float(n[observed].mean())
        unequal = n[observed].max() > n[observed].min()
        block = _leading(store.block(number), variance_share)
        block = block.restrict(observed, n / mean_n if unequal else None)
        whitened = np.asarray(block.whiten(z[observed]), dtype=np.float32)
        factor = np.asarray(block.factor, dtype=np.float32)
        blocks.append(TraitBlock(number, rows, factor, whitened, z, observed, mean_n))
        if progress is not None:
            progress(number + 1, total)
    if not blocks:
        raise InputError("no LD block holds a variant with a z-score: nothing can be fitted.")
    return blocks, tally


def _leading(block: LDBlock, share: float) -> LDBlock:
    if share >= 1:
        return block
    cumulated = np.cumsum(block.eigenvalues) / block.eigenvalues.sum()
    count = int(np.searchsorted(cumulated, share)) + 1
    return type(block).from_factor(block.factor[:count], block.eigenvalues[:count])
