"""Packing LD blocks into few array shapes.

Blocks differ in size, and each new shape costs a compilation, so blocks are padded into a handful of shapes. Padding
adds exactly nothing to the likelihood (see `deepwas.likelihood`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepwas.likelihood.factor import Factor, FactorDtype, encode_factor
from deepwas.training.trait import TraitBlock

__all__ = [
    "Bucket",
    "encode_block",
    "pack",
    "pack_blocks",
    "padded_shape",
    "plan_shapes",
    "shape_of_each",
]


class Bucket(NamedTuple):
    """Blocks padded to one shape, stacked. B blocks of k eigen-directions and m variants.

    member: (B,) int, indices into the list of blocks.  factor: `Factor`, values (B, k, m) and scale (B, k).
    whitened: (B, k).  real: (B, k), 1 or 0 for padding.  z: (B, m).  observed, present: (B, m), 1 or 0.
    sample_size: (B,).
    """

    member: Any
    factor: Factor
    whitened: Any
    real: Any
    z: Any
    observed: Any
    present: Any
    sample_size: Any

    @property
    def shape(self) -> tuple[int, int]:
        """(k, m) of every block."""
        return self.factor.values.shape[-2:]


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


def padded_shape(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The smallest (k, m) that holds blocks of these sizes, both rounded up to multiples of 8."""
    k, m = np.max(np.asarray(sizes), axis=0)
    return int(-(-k // 8) * 8), int(-(-m // 8) * 8)


def shape_of_each(sizes: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], list[int]]:
    """The shape that `plan_shapes` has for each block, and the blocks' order by shape."""
    shapes: list[tuple[int, int]] = [(0, 0)] * len(sizes)
    groups = plan_shapes(sizes)
    for group in groups:
        shape = padded_shape([sizes[i] for i in group])
        for i in group:
            shapes[i] = shape
    return shapes, [i for group in groups for i in group]


def encode_block(block: TraitBlock, dtype: FactorDtype) -> Factor:
    """The block's factor in the dtype asked for; no copy where it has that already."""
    factor = block.encoded
    return factor if factor.values.dtype == dtype else encode_factor(factor.decoded(), dtype)


def pack(members: Sequence[int], blocks: Sequence[tuple[TraitBlock, Factor]], shape: tuple[int, int]) -> Bucket:
    """Pad and stack blocks, as NumPy arrays.

    members: their indices in the list of all blocks.  blocks: each with its factor encoded, all in one dtype.
    shape: (k, m) to pad to.
    """
    B, (k, m) = len(members), shape
    encoded = blocks[0][1]
    bucket = Bucket(
        member=np.array(members, np.int32),
        factor=Factor(_aligned_zeros((B, k, m), encoded.values.dtype), np.ones((B, k), encoded.scale.dtype)),
        whitened=np.zeros((B, k), np.float32),
        real=np.zeros((B, k), np.float32),
        z=np.zeros((B, m), np.float32),
        observed=np.zeros((B, m), np.float32),
        present=np.zeros((B, m), np.float32),
        sample_size=np.array([block.sample_size for block, _ in blocks], np.float32),
    )
    for row, (block, factor) in enumerate(blocks):
        kb, mb = factor.values.shape
        bucket.factor.values[row, :kb, :mb] = factor.values
        bucket.factor.scale[row, :kb] = factor.scale
        bucket.whitened[row, :kb] = block.whitened
        bucket.real[row, :kb] = 1
        bucket.z[row, :mb] = block.z
        bucket.observed[row, :mb] = block.observed
        bucket.present[row, :mb] = 1
    return bucket


def pack_blocks(
    blocks: Sequence[TraitBlock], *, max_shapes: int = 4, factor_dtype: FactorDtype = "float32"
) -> list[Bucket]:
    """All blocks, padded and stacked into at most max_shapes buckets of NumPy arrays."""
    sizes = [b.shape for b in blocks]
    return [
        pack(g, [(blocks[i], encode_block(blocks[i], factor_dtype)) for i in g], padded_shape([sizes[i] for i in g]))
        for g in plan_shapes(sizes, max_shapes=max_shapes)
    ]


def _aligned_zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros that begin at a multiple of 64 bytes: such an array goes to XLA on a CPU without being copied."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
