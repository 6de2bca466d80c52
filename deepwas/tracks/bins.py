"""The geometry of windows, and sums of a signal over their bins.

A window of W bases around the variant at base x, counted from 0 here, is [x - W // 2, x - W // 2 + W). Windows of
neighbours overlap, so a stretch of the genome is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

GAP = 16_384  # bases between windows that are read rather than skipped: what one more call into a bigWig costs
LONGEST = 1 << 18  # bases read at once, so that they stay in the caches; one window may be longer
_CUMULATIVE_COST = 12  # of a base in a cumulative sum, in units of a base in a window that is summed by itself


class Stretch(NamedTuple):
    """Neighbouring variants whose windows are read together: rows of the store, and the bases [low, high)."""

    chromosome: str
    rows: slice
    low: int
    high: int


def window_starts(positions: npt.ArrayLike, width: int) -> npt.NDArray[np.int64]:
    """First base, from 0, of the window around each 1-based position; below 0 where it reaches over the end."""
    return np.asarray(positions, dtype=np.int64) - 1 - width // 2


def chromosome_runs(variants: pl.DataFrame) -> list[tuple[str, slice]]:
    """Chromosomes in the order of the rows, and the rows of each run of one chromosome."""
    runs = variants["CHR"].rle().struct.unnest()
    stops = np.cumsum(runs["len"].to_numpy().astype(np.int64))
    return [
        (name, slice(int(stop - length), int(stop)))
        for name, length, stop in zip(runs["value"], runs["len"], stops, strict=True)
    ]


def stretches(
    runs: list[tuple[str, slice]], starts: npt.NDArray[np.int64], width: int, rows: slice
) -> Iterator[Stretch]:
    """The stretches to read for the windows of the rows, in order. starts: (M,), ascending within a run."""
    for chromosome, run in runs:
        first, last = max(run.start, rows.start), min(run.stop, rows.stop)
        if first >= last:
            continue
        own = starts[first:last]
        breaks = [0, *(np.flatnonzero(np.diff(own) > width + GAP) + 1).tolist(), len(own)]
        for begin, end in pairwise(breaks):
            while begin < end:
                reach = int(own[begin]) + max(LONGEST - width, 0)
                stop = begin + int(np.searchsorted(own[begin:end], reach, side="right"))
                yield Stretch(
                    chromosome, slice(first + begin, first + stop), int(own[begin]), int(own[stop - 1]) + width
                )
                begin = stop


def bin_edges(starts: npt.NDArray[np.int64], bins: int, resolution: int) -> npt.NDArray[np.int64]:
    """First base of each bin of n windows and one past the last, (n, bins + 1)."""
    return starts[:, None] + np.arange(bins + 1, dtype=np.int64)[None, :] * resolution


def bin_sums(
    values: npt.NDArray[np.float32], starts: npt.NDArray[np.int64], bins: int, resolution: int
) -> npt.NDArray[np.float32]:
    """Sums of the values in the bins of n windows, (n, bins).

    values: (length,).  starts: (n,), of the windows in `values`, which hold them whole.
    The windows are laid side by side and their bins summed by BLAS; or, where they overlap so much that this costs
    more, bins are differences of a cumulative sum in float64.
    """
    width = bins * resolution
    if starts.size * width <= _CUMULATIVE_COST * values.size:
        windows = np.lib.stride_tricks.sliding_window_view(values, width)[starts]
        return (windows.reshape(-1, resolution) @ np.ones(resolution, np.float32)).reshape(-1, bins)
    cumulative = np.zeros(values.size + 1)
    np.cumsum(values, dtype=np.float64, out=cumulative[1:])
    return np.diff(cumulative[bin_edges(starts, bins, resolution)], axis=1).astype(np.float32)
