"""Packing LD blocks into few array shapes.

Blocks differ in size, and each new shape costs a compilation, so blocks are padded into a handful of shapes. Padding
adds exactly nothing to the likelihood (see `deepwas.likelihood`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepwas.training.trait import TraitBlock

__all__ = ["Bucket", "pack_blocks", "pack_features", "plan_shapes"]


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
