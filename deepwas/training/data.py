"""One trait's whitened LD blocks, and packing them into few array shapes.

Blocks differ in size, and each new shape costs a compilation, so blocks are padded into a handful of shapes. Padding
adds exactly nothing to the likelihood (see `deepwas.likelihood`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.tally import Tally

if TYPE_CHECKING:
    import polars as pl

    from deepwas.ld import LDBlock, LDStore

__all__ = ["Bucket", "TraitBlock", "pack_blocks", "pack_features", "plan_shapes", "whiten_trait"]


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


class Bucket(NamedTuple):
    """Blocks padded to one shape, stacked. B blocks of k eigen-directions and m variants.

    member: (B,) int, indices into the list of blocks.  factor: (B, k, m).  whitened: (B, k).  real: (B, k), 1 or 0 for
    padding.  z: (B, m).  observed, present: (B, m), 1 or 0.  sample_size: (B,).
    """

    member: Any
    factor: Any
    whitened: Any
    real: Any
    z: Any
    observed: Any
    present: Any
    sample_size: Any

    @property
    def shape(self) -> tuple[int, int]:
        """(k, m) of every block."""
        return self.factor.shape[1:]


def plan_shapes(sizes: Sequence[tuple[int, int]], *, max_shapes: int = 4, slack: float = 1.15) -> list[list[int]]:
    """Group blocks of (k, m) into at most max_shapes padded shapes: lists of block indices, smallest shape first.

    Optimal over groups that are contiguous in m, by dynamic programming; of those, the fewest shapes whose padded
    volume is within `slack` of the best, since each shape costs a compilation.
    """
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i][1], sizes[i][0]))
    edges = np.unique(np.linspace(0, len(order), min(len(order), 128) + 1).astype(int))
    count = len(edges) - 1
    volume = np.full((count, count + 1), np.inf)
    for a in range(count):
        k = m = 0
        for b in range(a + 1, count + 1):
            for i in order[edges[b - 1] : edges[b]]:
                k, m = max(k, sizes[i][0]), max(m, sizes[i][1])
            volume[a, b] = (edges[b] - edges[a]) * k * m
    best = np.full((max_shapes + 1, count + 1), np.inf)
    best[0, 0] = 0
    cut = np.zeros((max_shapes + 1, count + 1), dtype=int)
    for shapes in range(1, max_shapes + 1):
        for b in range(1, count + 1):
            options = best[shapes - 1, :b] + volume[:b, b]
            cut[shapes, b] = int(options.argmin())
            best[shapes, b] = options[cut[shapes, b]]
    totals = best[1:, count]
    shapes = int(np.flatnonzero(totals <= slack * totals.min())[0]) + 1
    groups: list[list[int]] = []
    b = count
    while shapes:
        a = cut[shapes, b]
        groups.append(order[edges[a] : edges[b]])
        b, shapes = a, shapes - 1
    return groups[::-1]


def pack_blocks(blocks: Sequence[TraitBlock], *, max_shapes: int = 4) -> list[Bucket]:
    """Pad and stack blocks into at most max_shapes buckets of NumPy arrays, k and m rounded up to multiples of 8."""
    buckets = []
    for group in plan_shapes([b.factor.shape for b in blocks], max_shapes=max_shapes):
        k = -(-max(blocks[i].factor.shape[0] for i in group) // 8) * 8
        m = -(-max(blocks[i].factor.shape[1] for i in group) // 8) * 8
        B = len(group)
        bucket = Bucket(
            member=np.array(group),
            factor=np.zeros((B, k, m), np.float32),
            whitened=np.zeros((B, k), np.float32),
            real=np.zeros((B, k), np.float32),
            z=np.zeros((B, m), np.float32),
            observed=np.zeros((B, m), np.float32),
            present=np.zeros((B, m), np.float32),
            sample_size=np.array([blocks[i].sample_size for i in group], np.float32),
        )
        for row, i in enumerate(group):
            block = blocks[i]
            kb, mb = block.factor.shape
            bucket.factor[row, :kb, :mb] = block.factor
            bucket.whitened[row, :kb] = block.whitened
            bucket.real[row, :kb] = 1
            bucket.z[row, :mb] = block.z
            bucket.observed[row, :mb] = block.observed
            bucket.present[row, :mb] = 1
        buckets.append(bucket)
    return buckets


def pack_features(
    blocks: Sequence[TraitBlock], buckets: Sequence[Bucket], features: NDArray[np.float32]
) -> list[NDArray[np.float32]]:
    """The (M, p) features of the store's variants as (B, m, p) per bucket, 0 in the padding."""
    out = []
    for bucket in buckets:
        packed = np.zeros((len(bucket.member), bucket.shape[1], features.shape[1]), np.float32)
        for row, i in enumerate(bucket.member):
            rows = blocks[i].rows
            packed[row, : rows.stop - rows.start] = features[rows]
        out.append(packed)
    return out
