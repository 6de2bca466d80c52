"""Cutting a chromosome into LD blocks where the least LD is lost, or at boundaries the user brings.

The optimal cut minimises the sum of r2 over pairs of variants that fall into different blocks, subject to
the sizes allowed. That is the same as maximising the sum within blocks, which adds up over blocks and yields
to dynamic programming, exactly: no pair is counted twice, however many cuts it spans.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from deepwas.errors import InputError
from deepwas.genome import chromosome_rank, read_intervals
from deepwas.tally import Tally

Reader = Callable[[int, int], npt.NDArray[np.floating]]


@dataclass(frozen=True)
class Partition:
    """A partition of m variants in order: block b holds the variants boundaries[b] to boundaries[b + 1] - 1.

    r2_total: noise-adjusted r2 summed over pairs fewer than max_size variants apart.
    r2_cut: the part of it between variants of different blocks, which block-diagonal LD sets to zero.
    """

    boundaries: npt.NDArray[np.int64]
    r2_total: float
    r2_cut: float

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Variants per block."""
        return np.diff(self.boundaries)


def adjusted_r2(r: npt.NDArray[np.floating], n_samples: int) -> npt.NDArray[np.floating]:
    """Squared correlation corrected for sampling: r2 - (1 - r2) / (n - 2), elementwise.

    About unbiased for the squared correlation in the population, so it may be negative. It is not clipped at
    0: clipping would add about 0.5 / n for every unlinked pair, and a cut parts very many of those.
    Source: Bulik-Sullivan et al. 2015.
    """
    squared = r * r
    return squared - (1 - squared) / (n_samples - 2)


def partition_by_ld(
    read: Reader,
    n_variants: int,
    n_samples: int,
    *,
    min_size: int,
    max_size: int,
    advance: Callable[[int, int], None] | None = None,
) -> Partition:
    """Cut variants 0..m-1 of one chromosome into contiguous blocks with the least r2 between blocks.

    Minimises  sum over i < j in different blocks of adjusted_r2(r_ij)  over all partitions with every block
    size in [min_size, max_size]; exactly, as pairs max_size or more apart are parted by every one of them.
    Among equal partitions the more even (least sum of squared sizes) is taken.

    read(start, stop): standardised genotypes (n, stop - start) of the variants start..stop-1, asked for in
    order.
    n_samples: the number of people n behind them.  advance(done, total): progress in variants.

    Cost 2 n m (max_size + min_size) operations; memory n (max_size + min_size) numbers, whatever m. A
    chromosome with fewer than min_size variants is one block. InputError if no partition has the sizes asked
    for, which cannot happen when 2 min_size <= max_size + 1.
    """
    if not 1 <= min_size <= max_size:
        raise InputError(f"block sizes must satisfy 1 <= min_block <= max_block; found {min_size} and {max_size}.")
    if n_variants < 1:
        raise InputError("there is no variant to cut into blocks.")
    m = n_variants
    if m >= min_size and -(-m // max_size) * min_size > m:
        raise InputError(
            f"{m:,} variants cannot be cut into blocks of {min_size:,} to {max_size:,}. "
            f"Give a --min-block of at most {(max_size + 1) // 2:,}."
        )
    # best[b]: the largest r2 sum within blocks over partitions of 0..b-1; squares[b]: their sum of squared
    # sizes.
    best = np.full(m + 1, -np.inf)
    squares = np.full(m + 1, np.inf)
    previous = np.zeros(m + 1, dtype=np.int64)
    best[0] = squares[0] = 0.0
    total = 0.0
    low, window = 0, read(0, 0)  # standardised genotypes of the variants low..start-1
    within = np.zeros(0)  # within[a - low]: r2 sum over pairs inside a..start-1
    # A step of at most min_size, so that every predecessor of the ends start+1..stop is settled
    # before the step.
    step = min(min_size, 512)
    for start in range(0, m, step):
        stop = min(start + step, m)
        keep = max(0, start + 1 - max_size) - low
        low, within = low + keep, within[keep:]
        fresh = read(start, stop)
        window = np.concatenate([window[:, keep:], fresh], axis=1)
        pairs = adjusted_r2(window.T @ fresh / n_samples, n_samples).astype(np.float64)
        i, j = np.arange(low, stop)[:, None], np.arange(start, stop)[None, :]
        pairs[(i >= j) | (j - i >= max_size)] = 0.0
        total += float(pairs.sum())
        # sums[a - low, b - start - 1]: r2 sum over pairs inside a..b-1, by suffix sums over i and prefix
        # sums over j.
        sums = np.cumsum(np.cumsum(pairs[::-1], axis=0)[::-1], axis=1)
        sums[: len(within)] += within[:, None]
        within = sums[:, -1].copy()

        first = np.arange(low, start + 1)[:, None]
        ends = np.arange(start + 1, stop + 1)[None, :]
        allowed = (ends - first >= min_size) & (ends - first <= max_size)
        gain = np.where(allowed, best[low : start + 1, None] + sums[: start + 1 - low], -np.inf)
        top = gain.max(axis=0)
        feasible = np.isfinite(top)
        tied = (gain >= top - 1e-9 * np.maximum(1.0, np.abs(top))) & np.isfinite(gain)
        evenness = np.where(tied, squares[low : start + 1, None] + (ends - first) ** 2, np.inf)
        choice = evenness.argmin(axis=0)
        columns = np.arange(stop - start)
        best[start + 1 : stop + 1] = np.where(feasible, gain[choice, columns], -np.inf)
        squares[start + 1 : stop + 1] = evenness[choice, columns]
        previous[start + 1 : stop + 1] = low + choice
        if advance is not None:
            advance(stop, m)
    if m < min_size:
        return Partition(np.array([0, m], dtype=np.int64), total, 0.0)
    cuts = [m]
    while cuts[-1] > 0:
        cuts.append(int(previous[cuts[-1]]))
    return Partition(np.array(cuts[::-1], dtype=np.int64), total, total - float(best[m]))


def partition_by_intervals(
    variants: pl.DataFrame, path: str | os.PathLike[str], tally: Tally
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Assign variants to the intervals of a BED file, each interval that holds any becoming one block.

    variants: CHR, SNP and BP in genome order.  Returns the mask of the variants inside an interval, and
    the block boundaries among those: block b holds the boundaries[b]-th to (boundaries[b + 1] - 1)-th of
    them. Variants outside all intervals, and intervals without variants, are counted in `tally`. InputError
    if intervals overlap, or none holds a variant.
    """
    intervals = read_intervals(path)
    intervals = intervals.with_columns(rank=pl.col("CHR").map_elements(chromosome_rank, return_dtype=pl.Int64)).sort(
        "rank", "CHR", "START"
    )
    follows = intervals.with_columns(pl.col("END").shift(1).over("CHR").alias("before"))
    overlap = follows.filter(pl.col("START") < pl.col("before"))
    if overlap.height:
        row = overlap.row(0, named=True)
        raise InputError(
            f"{path}: the interval {row['CHR']}:{row['START']}-{row['END']} starts before the previous one "
            f"ends at {row['before']} ({overlap.height:,} such). Blocks must not overlap."
        )
    block = np.full(variants.height, -1, dtype=np.int64)
    chromosomes, positions = variants["CHR"].to_numpy(), variants["BP"].to_numpy()
    numbered = intervals.with_row_index("number")
    for (chromosome,), part in numbered.group_by("CHR", maintain_order=True):
        here = np.flatnonzero(chromosomes == chromosome)
        # BED is 0-based and half-open: position p lies inside when START < p <= END.
        place = np.searchsorted(part["START"].to_numpy(), positions[here], side="left") - 1
        inside = (place >= 0) & (positions[here] <= part["END"].to_numpy()[np.maximum(place, 0)])
        block[here[inside]] = part["number"].to_numpy()[place[inside]]
    mask = block >= 0
    if not mask.any():
        raise InputError(
            f"{path}: none of the {variants.height:,} variants lies in any of the {intervals.height:,} "
            "intervals. Check that both are on the same genome build."
        )
    outside = variants.filter(pl.Series(~mask))
    if outside.height:
        tally.add("cut into blocks", "dropped", "outside all intervals given", outside.height, outside["SNP"][0])
    used, boundaries = np.unique(block[mask], return_index=True)
    empty = np.setdiff1d(np.arange(intervals.height), used)
    if empty.size:
        row = intervals.row(int(empty[0]), named=True)
        where = f"{row['CHR']}:{row['START']}-{row['END']}"
        tally.add("cut into blocks", "noted", "intervals without a variant", int(empty.size), where)
    return mask, np.append(boundaries, int(mask.sum())).astype(np.int64)
