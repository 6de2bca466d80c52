"""Signals of bigWig and BED files around every variant of an LD store, in bins, standardised, in one file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from deepwas.errors import InputError
from deepwas.files import refuse_overwrite, require_file, require_parent
from deepwas.genome import CHROMOSOME_LENGTHS
from deepwas.ld.store import LDStore
from deepwas.tally import Tally
from deepwas.tracks.bins import Stretch, bin_edges, chromosome_runs, stretches, window_starts
from deepwas.tracks.options import TrackOptions
from deepwas.tracks.signals import Reader, Signal, open_signals
from deepwas.tracks.store import COUNTS, WindowFile, open_windows
from deepwas.tracks.write import Advance, describe_inputs, fill, partial_file, piece_rows, write_end

__all__ = ["extract_tracks"]

FLOAT16_LIMIT = 60_000.0  # what a stored value is cut to where no clip is asked for
STRETCH_ROWS = 1000  # neighbouring variants that the statistics take together: their windows overlap


def extract_tracks(
    store: LDStore,
    out: str | os.PathLike[str],
    *,
    bigwigs: Mapping[str, str | os.PathLike[str]] | None = None,
    beds: Mapping[str, str | os.PathLike[str]] | None = None,
    options: TrackOptions | None = None,
    progress: Advance | None = None,
) -> WindowFile:
    """Write the signals around the variants of an LD store, (M, bins, tracks) float16; returns the file, opened.

    bigwigs, beds: name of a track -> its file, of the store's genome build; the tracks are in this order, bigWig files
        first. Chromosomes may be called 1 or chr1.  progress(done, total): in variants.

    Value of a bin, for bases b of the bin that exist:
        bigWig  mean of the signal, bases without a value as 0 or left out (`options.missing`), then transformed
        BED     share of the bases that lie in an interval
    A stored value is (x - mean) / sd, clipped, with the track's mean and standard deviation over all bins of
    `options.statistics_variants` variants, those of held-out chromosomes too: no trait enters. Bins beyond the end
    of the chromosome, or without any value when these are left out, are 0, the mean.

    Cost: every base between the first and the last variant of a group of neighbours is read once for each track.
    Memory: one piece of windows (64 MB), a stretch of one file, and the intervals of the BED files.

    The file is written as `.NAME.partial` beside `out` and renamed at the end. After an interruption the same call
    takes up what is finished, if inputs and options are the same. What was counted is in `provenance["tally"]`.
    Raises InputError for unusable input; nothing is left behind then.
    """
    options = options or TrackOptions()
    bigwigs, beds = dict(bigwigs or {}), dict(beds or {})
    if not bigwigs and not beds:
        raise InputError("no track is given: give bigWig files (--bigwig NAME=FILE) or BED files (--bed NAME=FILE).")
    target = require_parent(out)
    paths = [
        *(require_file(path, f"a bigWig file for {name}") for name, path in bigwigs.items()),
        *(require_file(path, f"a BED file for {name}") for name, path in beds.items()),
    ]
    refuse_overwrite(target, [store.path, *paths])
    variants, tally = store.variants, Tally()
    signals = open_signals(
        bigwigs,
        beds,
        variants,
        store.genome_build,
        uncovered=options.uncovered,
        check_build=options.check_build,
        tally=tally,
    )
    maker = _Maker(store, signals, options, tally)
    shape = (store.n_variants, options.bins, len(signals))
    row_bytes = 2 * options.bins * len(signals)
    inputs = describe_inputs(paths)
    identity = {
        "kind": "tracks",
        "ld_checksum": store.checksum,
        "names": list(signals),
        "inputs": inputs,
        "options": options.as_dict(),
        "piece_rows": piece_rows(row_bytes),
    }
    with threadpool_limits(1), partial_file(target, identity, row_bytes * store.n_variants) as handle:
        sampled = _sampled_rows(store.n_variants, options.statistics_variants)
        first = sum(rows.stop - rows.start for rows in sampled)
        if "sd" not in handle:
            mean, sd = maker.statistics(sampled, _stage(progress, 0, store.n_variants + first))
            for name, data in (("mean", mean), ("sd", sd)):
                if name in handle:
                    del handle[name]
                handle[name] = data
            handle.flush()
        mean, sd = handle["mean"][:], handle["sd"][:]
        counts = fill(
            handle,
            shape,
            np.float16,
            (len(signals), len(COUNTS)),
            options.compression,
            lambda rows: maker.standardised(rows, mean, sd),
            _stage(progress, first, store.n_variants + first),
        )
        for name, row in zip(signals, counts.tolist(), strict=True):
            for what, count in zip(COUNTS, row, strict=True):
                tally.add(
                    name, "changed" if what == "clipped" else "noted", _reason(what, signals[name], options), count
                )
        write_end(
            handle,
            {
                "kind": "tracks",
                "genome_build": store.genome_build,
                "ld_checksum": store.checksum,
                "names": list(signals),
                "options": options.as_dict(),
                "provenance": {
                    "command": "extract_tracks",
                    "inputs": inputs,
                    "statistics_variants": first,
                    "tally": tally.as_list(),
                },
            },
        )
    return open_windows(target, store, kind="tracks")


def _reason(what: str, signal: Signal, options: TrackOptions) -> str:
    if what == "clipped":
        return f"bins cut to +-{options.clip or FLOAT16_LIMIT} standard deviations"
    if what == "beyond the chromosome":
        return "bins beyond the end of the chromosome, set to the track's mean"
    zero = options.missing == "zero" and not signal.is_fraction
    return (
        f"bins without any value, {'taken as 0, or the mean on uncovered chromosomes' if zero else 'set to the mean'}"
    )


class _Maker:
    """Makes windows of the tracks for rows of the store."""

    def __init__(self, store: LDStore, signals: Mapping[str, Signal], options: TrackOptions, tally: Tally) -> None:
        self._signals, self._options = signals, options
        variants = store.variants
        self._runs = chromosome_runs(variants)
        self._starts = window_starts(variants["BP"].to_numpy(), options.width)
        self._lengths: dict[str, int | None] = {}
        known = CHROMOSOME_LENGTHS[store.genome_build] if options.check_build else {}
        for chromosome, rows in self._runs:
            told = (signal.length(chromosome) for signal in signals.values())
            length = known.get(chromosome) or next((x for x in told if x is not None), None)
            self._lengths[chromosome] = length
            if length is None:
                continue
            last = rows.stop - 1
            if variants["BP"][last] > length:
                raise InputError(
                    f"{store.path}: variant {variants['SNP'][last]} is at {variants['BP'][last]:,} on chromosome "
                    f"{chromosome}, which has {length:,} bases. Give tracks of the LD store's genome build."
                )
            starts = self._starts[rows]
            over = (starts < 0) | (starts + options.width > length)
            if over.any():
                name = str(variants["SNP"][rows.start + int(over.argmax())])
                reason = "window reaches over the end of the chromosome"
                tally.add("windows", "noted", reason, int(over.sum()), name)

    def statistics(
        self, sampled: list[slice], progress: Advance
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and standard deviation, (tracks,), over the bins of these rows with a value; sd 1 if none varies."""
        count, mean, square = np.zeros((3, len(self._signals)))
        done, total = 0, sum(rows.stop - rows.start for rows in sampled)
        for rows in sampled:
            for _, index, values, _, _ in self._raw(rows):
                found = values[~np.isnan(values)].astype(np.float64)
                if not found.size:
                    continue
                # Chan, Golub & LeVeque 1983: moments of two samples together.
                both, shift = count[index] + found.size, found.mean() - mean[index]
                square[index] += ((found - found.mean()) ** 2).sum() + shift**2 * count[index] * found.size / both
                mean[index] += shift * found.size / both
                count[index] = both
            done += rows.stop - rows.start
            progress(done, total)
        sd = np.sqrt(square / np.maximum(count, 1))
        return mean, np.where(sd > 0, sd, 1.0)

    def standardised(
        self, rows: slice, mean: npt.NDArray[np.float64], sd: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int64]]:
        """Windows (n, bins, tracks) of the rows, and the counts of COUNTS for each track."""
        clip = self._options.clip or FLOAT16_LIMIT
        out = np.zeros((rows.stop - rows.start, self._options.bins, len(self._signals)), np.float16)
        counts = np.zeros((len(self._signals), len(COUNTS)), np.int64)
        for stretch, index, values, empty, beyond in self._raw(rows):
            values -= np.float32(mean[index])
            values *= np.float32(1 / sd[index])
            counts[index] += empty, beyond, int((np.abs(values) > clip).sum())
            np.clip(values, -clip, clip, out=values)
            np.copyto(values, 0, where=np.isnan(values))
            out[stretch.rows.start - rows.start : stretch.rows.stop - rows.start, :, index] = values
        return out, counts

    def _raw(self, rows: slice) -> Iterator[tuple[Stretch, int, npt.NDArray[np.float32], int, int]]:
        """Track by track and stretch by stretch: values (n, bins), NaN without one, and the first two of COUNTS."""
        plan = list(stretches(self._runs, self._starts, self._options.width, rows))
        for index, (name, signal) in enumerate(self._signals.items()):
            with signal.open() as reader:
                for stretch in plan:
                    yield stretch, index, *self._values(name, signal, reader, stretch)

    def _values(
        self, name: str, signal: Signal, reader: Reader, stretch: Stretch
    ) -> tuple[npt.NDArray[np.float32], int, int]:
        options = self._options
        starts = self._starts[stretch.rows]
        inside = self._existing(stretch, starts)
        beyond = inside.size - int(np.count_nonzero(inside))
        found = reader.sums(stretch, starts, options.bins, options.resolution)
        if found is None:
            return np.full(inside.shape, np.nan, np.float32), inside.size - beyond, beyond
        sums, present = found
        empty = 0 if present is None else inside.size - beyond - int(np.count_nonzero(present))
        bases = inside if options.missing == "zero" or present is None else present
        values = np.full(inside.shape, np.nan, np.float32)
        np.divide(sums, bases, out=values, where=bases > 0)
        if not signal.is_fraction:
            values = self._transformed(name, stretch, values)
        return values, empty, beyond

    def _existing(self, stretch: Stretch, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Bases of each bin that are within the chromosome, (n, bins)."""
        bins, resolution = self._options.bins, self._options.resolution
        length = self._lengths[stretch.chromosome]
        if stretch.low >= 0 and (length is None or stretch.high <= length):
            return np.broadcast_to(np.float32(resolution), (len(starts), bins))
        edges = np.clip(bin_edges(starts, bins, resolution), 0, length)
        return np.diff(edges, axis=1).astype(np.float32)

    def _transformed(self, name: str, stretch: Stretch, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        match self._options.transform:
            case "log1p":
                if (values < 0).any():
                    row = stretch.rows.start + int((values < 0).any(axis=1).argmax())
                    raise InputError(
                        f"{name}: a bin has the mean {np.nanmin(values):.4g}, near base {self._starts[row]:,} "
                        f"of chromosome {stretch.chromosome}; log1p is for values of 0 or more. "
                        "Give --transform arcsinh or none."
                    )
                return np.log1p(values, out=values)
            case "arcsinh":
                return np.arcsinh(values, out=values)
            case _:
                return values


def _sampled_rows(M: int, wanted: int) -> list[slice]:
    """All rows where there are no more than wanted, else every so many stretches of STRETCH_ROWS."""
    every = -(-M // wanted)
    return [slice(start, min(start + STRETCH_ROWS, M)) for start in range(0, M, STRETCH_ROWS * every)]


def _stage(progress: Advance | None, before: int, total: int) -> Advance:
    """Progress of one of two stages within the whole."""
    return lambda done, _: progress(before + done, total) if progress is not None else None
