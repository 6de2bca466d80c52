"""Instruments of each trait: the variants that lead its genome-wide significant signals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepwas.errors import InputError

__all__ = ["Instruments", "select_instruments"]

MOST_R2 = 0.01
_SAME_LOCUS = 0.1  # r^2 between leads of one locus
_LEAST_VARIANCE = 0.1  # of a lead given others, from which it has r^2 < 0.01


@dataclass(frozen=True, eq=False)
class Instruments:
    """n instruments in genome order; a variant that leads two traits is there twice.

    rows: (n,) variants.  trait: (n,) the trait each was chosen for.  block: (n,) its LD block, numbered from 0.
    locus: (n,) numbered from 0: instruments that are one variant, or in LD of r^2 > 0.1.
    """

    rows: NDArray[np.int64]
    trait: NDArray[np.int64]
    block: NDArray[np.int64]
    locus: NDArray[np.int64]


def select_instruments(
    z: ArrayLike,
    blocks: ArrayLike,
    *,
    threshold: float = 5e-8,
    correlation: Callable[[int], ArrayLike] | None = None,
) -> Instruments:
    """Lead variants of each trait with a two-sided p-value below `threshold`.

    z: (M, K); a variant with a missing value (NaN) leads nothing.  blocks: (M,) int, each block in one run.
    correlation: LD of a block, by its number in `blocks`, (m, m) in the order of z: the leads of a trait then are all
    that clumping at r^2 = 0.01 leaves and whose p-values given the leads before them are below `threshold`, too: what a
    strong lead does in LD of r^2 < 0.01 is no instrument. Without it, one a block and trait: the variant with the
    largest |z|.
    """
    from scipy.sparse.csgraph import connected_components
    from scipy.stats import norm

    values, labels = np.asarray(z, np.float64), np.asarray(blocks)
    if values.ndim != 2 or labels.shape != values.shape[:1]:
        raise InputError(f"z {values.shape} and blocks {labels.shape} must be (M, K) and (M,).")
    if not 0 < threshold < 1:
        raise InputError(f"threshold is {threshold}; it is a p-value between 0 and 1.")
    least = norm.isf(threshold / 2)
    size = np.where(np.isfinite(values).all(axis=1, keepdims=True), np.abs(values), 0)
    if not len(labels):
        raise InputError("there are no variants.")
    starts = np.flatnonzero(np.append([True], labels[1:] != labels[:-1]))
    if len(np.unique(labels[starts])) != len(starts):
        raise InputError("blocks: the variants of an LD block must follow one another.")
    rows: list[int] = []
    trait: list[int] = []
    block: list[int] = []
    locus: list[int] = []
    loci = 0
    for b, (first, last) in enumerate(zip(starts, np.append(starts[1:], len(labels)), strict=True)):
        here = size[first:last]
        hits = np.flatnonzero(here.max(axis=0) > least)
        if not len(hits):
            continue
        R = None if correlation is None else np.asarray(correlation(int(labels[first])), np.float64)
        if R is not None and R.shape != (last - first, last - first):
            raise InputError(f"block {labels[first]}: its LD has shape {R.shape}; it has {last - first} variants.")
        begin = len(rows)
        for k in hits:
            left = here[:, k].copy()
            before: list[int] = []
            while left.max() > least:
                lead = int(left.argmax())
                if R is not None and before and _given(values[first:last, k], R, lead, before) <= least:
                    left[lead] = 0
                    continue
                before.append(lead)
                rows.append(int(first) + lead)
                trait.append(int(k))
                block.append(b)
                if R is None:
                    break
                left[R[lead] ** 2 > MOST_R2] = 0
                left[lead] = 0
        leads = np.array(rows[begin:]) - first
        near = leads[:, None] == leads[None, :] if R is None else R[np.ix_(leads, leads)] ** 2 > _SAME_LOCUS
        count, number = connected_components(near | np.eye(len(leads), dtype=bool), directed=False)
        locus.extend(loci + number)
        loci += count
    return Instruments(*(np.array(x, np.int64) for x in (rows, trait, block, locus)))


def _given(z: NDArray[np.float64], R: NDArray[np.float64], lead: int, before: list[int]) -> float:
    """|z| of a variant given the z-scores of others.  R: (m, m), LD."""
    weights = np.linalg.solve(R[np.ix_(before, before)], R[before, lead])
    variance = R[lead, lead] - weights @ R[before, lead]
    return float(np.abs(z[lead] - weights @ z[before]) / np.sqrt(max(variance, _LEAST_VARIANCE)))
