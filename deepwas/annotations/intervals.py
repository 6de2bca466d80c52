"""Annotations from the intervals of a BED file: inside, fraction covered, count, distance to the nearest.

Positions are 1-based; an interval [START, END) is 0-based and half-open, so it holds position p when START < p <= END.
Everything is vectorised by binary search, chromosome by chromosome: O((variants + intervals) log intervals).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from deepwas.errors import InputError
from deepwas.genome import chromosome_rank, read_intervals
from deepwas.tally import Tally

Feature = Literal["inside", "fraction", "count", "distance"]
FEATURES: tuple[Feature, ...] = ("inside", "fraction", "count", "distance")
COVERAGE_REACH = 1_000_000  # bases; a file with no interval this near any variant of a chromosome does not cover it


def merge_intervals(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Union of half-open intervals of one chromosome, as sorted, disjoint, non-touching starts and ends.

    starts, ends: (n,) integers, starts < ends. Returns two arrays of one length, n or less.
    """
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(ends[order])
    if starts.size == 0:
        return starts, reach
    first = np.concatenate([[True], starts[1:] > reach[:-1]])
    last = np.concatenate([first[1:], [True]])
    return starts[first], reach[last]


def inside(positions: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Whether each 1-based position (M,) lies in one of the merged intervals; bool (M,)."""
    return distance(positions, starts, ends) == 0


def distance(positions: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Bases from each 1-based position (M,) to the nearest base of the merged intervals, 0 inside; int64 (M,).

    There must be at least one interval.
    """
    following = np.searchsorted(starts, positions, side="left")
    before, after = np.maximum(following - 1, 0), np.minimum(following, starts.size - 1)
    far = np.iinfo(np.int64).max
    left = np.where(following > 0, np.maximum(positions - ends[before], 0), far)
    right = np.where(following < starts.size, starts[after] + 1 - positions, far)
    return np.minimum(left, right)


def fraction_covered(positions: np.ndarray, starts: np.ndarray, ends: np.ndarray, window: int) -> np.ndarray:
    """Share of the bases p - window to p + window that the merged intervals cover; float64 (M,) in [0, 1].

    Bases before the first base of the chromosome do not count; its length is not known, so its end is not
    cut.
    """
    low, high = _window(positions, window)
    cumulative = np.concatenate([[0], np.cumsum(ends - starts)])

    def covered_up_to(base: np.ndarray) -> np.ndarray:
        begun = np.searchsorted(starts, base, side="left")
        last = np.maximum(begun - 1, 0)
        partial = np.minimum(base, ends[last]) - starts[last]
        return np.where(begun > 0, cumulative[last] + partial, 0)

    return (covered_up_to(high) - covered_up_to(low)) / (high - low)


def count_overlapping(positions: np.ndarray, starts: np.ndarray, ends: np.ndarray, window: int) -> np.ndarray:
    """How many intervals (not merged) share a base with p - window to p + window; int64 (M,)."""
    low, high = _window(positions, window)
    begun = np.searchsorted(np.sort(starts), high, side="left")
    ended = np.searchsorted(np.sort(ends), low, side="right")
    return begun - ended


def _window(positions: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The window p - window to p + window, both ends counted, as a 0-based half-open interval."""
    return np.maximum(positions - window - 1, 0), positions + window


def log_distance(bases: np.ndarray) -> np.ndarray:
    """log(1 + d / 1000), d in bases: near zero within a few hundred bases, then growing with the
    magnitude.
    """
    return np.log1p(bases / 1000.0)


def per_chromosome(
    variants: pl.DataFrame,
    intervals: pl.DataFrame,
    compute: Callable[[np.ndarray, pl.DataFrame], np.ndarray],
) -> np.ndarray:
    """Apply `compute(positions, intervals of the chromosome)` to each chromosome; float32 (M,) in row order.

    Variants of a chromosome without any interval get NaN: the file says nothing about them.
    """
    values = np.full(variants.height, np.nan, dtype=np.float32)
    positions = variants["BP"].to_numpy()
    pieces = {str(key[0]): piece for key, piece in intervals.partition_by("CHR", as_dict=True).items()}
    for chromosome in variants["CHR"].unique(maintain_order=True):
        if chromosome in pieces:
            rows = (variants["CHR"] == chromosome).to_numpy()
            values[rows] = compute(positions[rows], pieces[chromosome])
    return values


def require_coverage(
    variants: pl.DataFrame,
    intervals: pl.DataFrame,
    path: str | os.PathLike[str],
    what: str,
    uncovered: Literal["error", "missing"],
    tally: Tally,
    reach: int = COVERAGE_REACH,
) -> pl.DataFrame:
    """Return the intervals of the chromosomes that the file covers; one that it does not cover is an error.

    A chromosome is covered when at least one of its variants lies within `reach` bases of an interval. With
    `uncovered="missing"` the variants of a chromosome that is not covered will be missing, and are counted
    here; a file that covers no chromosome at all is an error in either case.
    """

    def near(positions: np.ndarray, piece: pl.DataFrame) -> np.ndarray:
        return distance(positions, *_merged(piece)) <= reach

    close = pl.Series(np.nan_to_num(per_chromosome(variants, intervals, near)) > 0)
    by_chromosome = variants.select("CHR", close=close).group_by("CHR").agg(pl.len(), pl.col("close").any())
    bare = sorted(by_chromosome.filter(~pl.col("close")).rows(), key=lambda row: chromosome_rank(row[0]))
    if bare and (uncovered == "error" or len(bare) == by_chromosome.height):
        chromosome, count, _ = bare[0]
        named = sorted(intervals["CHR"].drop_nulls().unique(), key=lambda name: (chromosome_rank(name), name))
        more = f" (and likewise {len(bare) - 1} more chromosomes)" if len(bare) > 1 else ""
        if uncovered == "error" and len(bare) < by_chromosome.height:
            remedy = " To go on with missing values on such chromosomes, give --uncovered missing."
        else:
            remedy = ""
        raise InputError(
            f"{path}: none of {count:,} variants of chromosome {chromosome}{more} lies "
            f"{f'within {reach // 1000:,} kb of' if reach else 'inside'} {what}; chromosomes in the file: "
            f"{', '.join(named[:30])}{' ...' if len(named) > 30 else ''}. "
            f"Give a file of the same genome build as the LD reference that covers this chromosome.{remedy}"
        )
    for chromosome, count, _ in bare:
        tally.add(Path(path).name, "noted", f"missing: chromosome {chromosome} is not covered by the file", count)
    return intervals.filter(~pl.col("CHR").is_in([row[0] for row in bare]))


def interval_annotations(
    variants: pl.DataFrame,
    name: str,
    path: str | os.PathLike[str],
    features: tuple[Feature, ...],
    window: int,
    uncovered: Literal["error", "missing"],
    tally: Tally,
) -> dict[str, tuple[np.ndarray, str]]:
    """Annotations of any BED file: for each name its values, float32 (M,), and a line saying what they are.

    inside: `name`, 1 in an interval, else 0.  fraction: `name_fraction`, share of the bases within `window`
    covered.
    count: `name_count`, log(1 + intervals that overlap the window).  distance: `name_log_distance`, log(1 + d
    / 1000).
    """
    file = Path(path).name
    intervals = require_coverage(variants, read_intervals(path), path, "an interval", uncovered, tally)
    tally.add(file, "noted", "intervals used", intervals.height)
    made: dict[str, tuple[np.ndarray, str]] = {}
    if "inside" in features:
        values = per_chromosome(variants, intervals, lambda p, piece: inside(p, *_merged(piece)))
        made[name] = (values, f"1 inside an interval of {file}")
    if "fraction" in features:
        values = per_chromosome(variants, intervals, lambda p, piece: fraction_covered(p, *_merged(piece), window))
        made[f"{name}_fraction"] = (values, f"share of the bases within {window:,} covered by {file}")
    if "count" in features:
        values = per_chromosome(
            variants, intervals, lambda p, piece: np.log1p(count_overlapping(p, *_bounds(piece), window))
        )
        made[f"{name}_count"] = (values, f"log(1 + intervals of {file} within {window:,} bases)")
    if "distance" in features:
        values = per_chromosome(variants, intervals, lambda p, piece: log_distance(distance(p, *_merged(piece))))
        made[f"{name}_log_distance"] = (values, f"log(1 + kb to the nearest interval of {file})")
    return made


def _bounds(piece: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return piece["START"].to_numpy(), piece["END"].to_numpy()


def _merged(piece: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return merge_intervals(*_bounds(piece))
