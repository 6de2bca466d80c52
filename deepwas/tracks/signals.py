"""Signals along chromosomes, from bigWig and BED files: sums over bins, and how many bases have a value."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from deepwas.annotations.intervals import merge_intervals, require_coverage
from deepwas.errors import DeepwasError, InputError
from deepwas.files import kind_of, require_file
from deepwas.genome import CHROMOSOME_LENGTHS, chromosome_names, chromosome_rank, read_intervals, require_build
from deepwas.tally import Tally
from deepwas.tracks.bins import Stretch, bin_edges, bin_sums
from deepwas.tracks.options import Uncovered

__all__ = ["BedSignal", "BigWigSignal", "Reader", "Signal", "open_signals"]

Sums = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]


class Reader(Protocol):
    """Reads an open file."""

    def sums(self, stretch: Stretch, starts: npt.NDArray[np.int64], bins: int, resolution: int) -> Sums | None:
        """Of n windows, in float32 (n, bins): the sum of the signal in each bin, and the bases there that have a value.

        starts: (n,), first bases of the windows, from 0; beyond the ends of the chromosome nothing is summed.
        None in place of the bases: all that exist.  None altogether: the file says nothing about the chromosome.
        """


class Signal(Protocol):
    """A track: a file that has been checked, to be opened piece by piece so that no more files are open than read."""

    path: Path
    is_fraction: bool

    def length(self, chromosome: str) -> int | None:
        """Bases of a chromosome, where the file tells."""

    def open(self) -> Any:
        """A context manager that gives a `Reader`."""


class BigWigSignal:
    """A signal in a bigWig file, by pyBigWig. A base without a value counts 0 in the sums."""

    is_fraction = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = require_file(path, "a bigWig file")
        with open(self.path, "rb") as handle:
            kind = kind_of(handle.read(4096))
        if kind not in ("a bigWig file", "a bigBed file"):  # pyBigWig writes to standard error itself
            remedy = "Give a bigWig" + (
                ", or intervals as BED with --bed." if "text" in kind or "gzip" in kind else "."
            )
            raise InputError(f"{self.path}: not a bigWig file, but {kind}. {remedy}")
        with self._file() as handle:
            sizes: dict[str, int] = handle.chroms()
            self.names = chromosome_names(self.path, sizes)
            self.lengths = {plain: int(sizes[name]) for plain, name in self.names.items()}
            # A chromosome may be named in the header and have no value; the zoomed summary tells at once.
            covered = {c: handle.stats(n, 0, self.lengths[c], type="coverage")[0] for c, n in self.names.items()}
        self.chromosomes = {chromosome for chromosome, share in covered.items() if share}

    def length(self, chromosome: str) -> int | None:
        """Bases of a chromosome."""
        return self.lengths.get(chromosome)

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """The file, to read from."""
        with self._file() as handle:
            yield _BigWigReader(self, handle)

    @contextmanager
    def _file(self) -> Iterator[Any]:
        import pyBigWig

        if not pyBigWig.numpy:
            raise DeepwasError("pyBigWig was built without NumPy: reinstall it, pip install --force-reinstall pyBigWig")
        try:
            handle = pyBigWig.open(str(self.path))
        except RuntimeError as error:
            raise InputError(f"{self.path}: not a bigWig file, or a damaged one ({error}).") from error
        try:
            if not handle.isBigWig():
                raise InputError(f"{self.path}: this is a bigBed file. Give a bigWig, or its intervals as BED (--bed).")
            yield handle
        finally:
            handle.close()


class _BigWigReader:
    def __init__(self, signal: BigWigSignal, handle: Any) -> None:
        self._signal, self._handle = signal, handle

    def sums(self, stretch: Stretch, starts: npt.NDArray[np.int64], bins: int, resolution: int) -> Sums | None:
        signal = self._signal
        if stretch.chromosome not in signal.chromosomes:
            return None
        values = self._values(stretch)
        starts = starts - stretch.low
        gone = np.isnan(values)
        present = None
        if gone.any():
            np.copyto(values, 0, where=gone)
            present = bin_sums((~gone).astype(np.float32), starts, bins, resolution)
        sums = bin_sums(values, starts, bins, resolution)
        if not np.isfinite(sums).all():
            infinite = np.flatnonzero(~np.isfinite(values))
            at = f", base {stretch.low + int(infinite[0]) + 1:,}" if infinite.size else ""
            raise InputError(f"{signal.path}: chromosome {stretch.chromosome}{at}: a value is infinite or too large.")
        return sums, present

    def _values(self, stretch: Stretch) -> npt.NDArray[np.float32]:
        """Values of the bases [low, high), NaN where there is none."""
        signal = self._signal
        low, high = max(stretch.low, 0), min(stretch.high, signal.lengths[stretch.chromosome])
        if low >= high:
            return np.full(stretch.high - stretch.low, np.nan, np.float32)
        try:
            values = self._handle.values(signal.names[stretch.chromosome], low, high, numpy=True)
        except RuntimeError as error:
            raise InputError(
                f"{signal.path}: chromosome {stretch.chromosome}, bases {low + 1:,} to {high:,} cannot be read "
                f"({error}). The file may be damaged: copy or download it again."
            ) from error
        if high - low == stretch.high - stretch.low:
            return values
        return np.pad(values, (low - stretch.low, stretch.high - high), constant_values=np.nan)


class BedSignal:
    """The intervals of a BED file as a signal that is 1 in an interval and 0 elsewhere; every base has a value."""

    is_fraction = True

    def __init__(
        self, path: str | os.PathLike[str], variants: pl.DataFrame, uncovered: Uncovered, tally: Tally
    ) -> None:
        self.path = require_file(path, "a BED file of intervals")
        intervals = require_coverage(variants, read_intervals(path), path, "an interval", uncovered, tally)
        wanted = variants["CHR"].unique()
        self._merged: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for key, piece in intervals.partition_by("CHR", as_dict=True).items():
            if str(key[0]) in wanted:
                self._merged[str(key[0])] = merge_intervals(piece["START"].to_numpy(), piece["END"].to_numpy())

    def length(self, chromosome: str) -> int | None:
        """Not told by a BED file."""
        return None

    def last(self) -> Mapping[str, int]:
        """One past the last base that is in an interval, by chromosome."""
        return {chromosome: int(ends[-1]) for chromosome, (_, ends) in self._merged.items()}

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """The intervals, which are in memory."""
        yield self

    def sums(self, stretch: Stretch, starts: npt.NDArray[np.int64], bins: int, resolution: int) -> Sums | None:
        """See `Reader`."""
        if stretch.chromosome not in self._merged:
            return None
        begins, ends = self._merged[stretch.chromosome]
        first = int(np.searchsorted(ends, stretch.low, side="right"))
        last = int(np.searchsorted(begins, stretch.high, side="left"))
        if first >= last:
            return np.zeros((len(starts), bins), np.float32), None
        begins, ends = begins[first:last], ends[first:last]
        # Bases covered before a base: 0 up to the first interval, then rising by 1 a base within intervals.
        knots = np.stack([begins, ends], axis=1).ravel().astype(np.float64)
        covered = np.repeat(np.cumsum(ends - begins), 2).astype(np.float64)
        covered[::2] -= ends - begins
        before = np.interp(bin_edges(starts, bins, resolution), knots, covered)
        return np.diff(before, axis=1).astype(np.float32), None


def open_signals(
    bigwigs: Mapping[str, str | os.PathLike[str]],
    beds: Mapping[str, str | os.PathLike[str]],
    variants: pl.DataFrame,
    build: str,
    *,
    uncovered: Uncovered,
    check_build: bool,
    tally: Tally,
) -> dict[str, Signal]:
    """The tracks by name, bigWig files first, each checked against the variants and the genome build.

    Raises InputError for a file of another build, or that says nothing about a chromosome of the variants (counted in
    the tally instead with uncovered='missing').
    """
    signals: dict[str, Signal] = {}
    for name, path in bigwigs.items():
        signal = BigWigSignal(path)
        if not signal.lengths:
            raise InputError(f"{path}: no human chromosome is named in this bigWig file.")
        if check_build:
            require_build(path, signal.lengths, build)
        _require_chromosomes(signal, variants, uncovered, tally)
        signals[name] = signal
    for name, path in beds.items():
        if name in signals:
            raise InputError(f"two tracks are called {name}. Choose another name for {path}.")
        bed = BedSignal(path, variants, uncovered, tally)
        for chromosome, last in bed.last().items():
            length = CHROMOSOME_LENGTHS[build].get(chromosome)
            if check_build and length is not None and last > length:
                raise InputError(
                    f"{path}: an interval ends at {last:,} on chromosome {chromosome}, which has {length:,} bases on "
                    f"{build}, the build of the LD store. Give this file on {build}."
                )
        signals[name] = bed
    return signals


def _require_chromosomes(signal: BigWigSignal, variants: pl.DataFrame, uncovered: Uncovered, tally: Tally) -> None:
    counts = dict(variants["CHR"].value_counts().iter_rows())
    bare = sorted(set(counts) - signal.chromosomes, key=chromosome_rank)
    if not bare:
        return
    if uncovered == "error" or len(bare) == len(counts):
        there = sorted(signal.chromosomes, key=chromosome_rank)
        remedy = " To go on with missing values there, give --uncovered missing." if len(bare) < len(counts) else ""
        raise InputError(
            f"{signal.path}: no value on chromosome {', '.join(bare)}, where the LD store has {counts[bare[0]]:,} "
            f"variants; there are values on {', '.join(there) or 'none'}.{remedy}"
        )
    for chromosome in bare:
        reason = f"missing: chromosome {chromosome} is not covered by the file"
        tally.add(signal.path.name, "noted", reason, counts[chromosome])
