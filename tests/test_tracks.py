"""Signals around variants: real bigWig and BED files against loops that look at every base, and what is refused."""

from __future__ import annotations

import fcntl
import json
import threading
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pyBigWig
import pytest

from benchmarks import tracks as benchmark
from deepwas.errors import InputError
from deepwas.genome import CHROMOSOME_LENGTHS, require_build
from deepwas.inputs import VariantInputs
from deepwas.ld import LDStore
from deepwas.specs import load_spec
from deepwas.tracks import TrackOptions, WindowFile, bins, extract, extract_tracks, open_windows, write
from deepwas.tracks import store as layout
from deepwas.tracks.bins import bin_sums, chromosome_runs, stretches, window_starts
from tests.windows import small_store

LENGTHS = CHROMOSOME_LENGTHS["GRCh37"]
END = LENGTHS["22"]
NAN = float("nan")

# Values by base of the two chromosomes, where there are any; None elsewhere.
Signal = dict[str, dict[int, float]]


def write_bigwig(
    path: Path, runs: dict[str, list[tuple[int, int, float]]], lengths: dict[str, int] | None = None
) -> Path:
    """A bigWig of runs (start, end, value), 0-based and half-open."""
    sizes = lengths or {"chr21": LENGTHS["21"], "chr22": END}
    handle = pyBigWig.open(str(path), "w")
    handle.addHeader(list(sizes.items()))
    for name in sizes:
        if runs.get(name):
            starts, ends, values = (list(x) for x in zip(*runs[name], strict=True))
            handle.addEntries([name] * len(starts), starts, ends=ends, values=[float(x) for x in values])
    handle.close()
    return path


def random_runs(rng: np.random.Generator, low: int, high: int, mean: int = 9, hole: float = 0.3) -> list[tuple]:
    """Runs of random lengths and values, some left out."""
    edges = np.unique(np.concatenate([[low, high], rng.integers(low, high, (high - low) // mean)]))
    values = rng.gamma(0.7, 2.0, len(edges)).astype(np.float32)
    return [
        (int(a), int(b), float(v))
        for a, b, v in zip(edges[:-1], edges[1:], values[1:], strict=True)
        if rng.random() > hole
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tracks")


POSITIONS = {
    "21": [1, 2, 40, 41, 900, 901, 40_000, 60_000, LENGTHS["21"] - 3, LENGTHS["21"]],
    "22": [17, 300, 301, 302, 303, 350, 800, 5_000, END - 70, END],
}


@pytest.fixture(scope="module")
def store(folder) -> LDStore:
    names = [c for c, own in POSITIONS.items() for _ in own]
    return small_store(folder / "ld.h5", names, [p for own in POSITIONS.values() for p in own])


@pytest.fixture(scope="module")
def runs() -> dict[str, list[tuple[int, int, float]]]:
    rng = np.random.default_rng(0)
    found = {}
    for name, length in (("chr21", LENGTHS["21"]), ("chr22", END)):
        found[name] = (
            random_runs(rng, 0, 1300) + random_runs(rng, 39_900, 40_100) + random_runs(rng, length - 400, length)
        )
    return found


@pytest.fixture(scope="module")
def bigwig(folder, runs) -> Path:
    return write_bigwig(folder / "signal.bw", runs)


INTERVALS = {
    "chr21": [(0, 30), (25, 60), (60, 70), (890, 905), (39_990, 40_005), (40_000, 40_001), (48_129_880, 48_129_895)],
    "chr22": [(280, 310), (799, 800), (5_200, 5_300), (51_304_500, 51_304_566)],
}


@pytest.fixture(scope="module")
def bed(folder) -> Path:
    path = folder / "peaks.bed"
    rows = [f"{name}\t{a}\t{b}\n" for name, own in INTERVALS.items() for a, b in reversed(own)]
    path.write_text("".join(rows))
    return path


def by_base(runs: dict[str, list[tuple]]) -> Signal:
    return {
        name.removeprefix("chr"): {
            base: run[2] if len(run) > 2 else 1.0 for run in own for base in range(run[0], run[1])
        }
        for name, own in runs.items()
    }


def slow_bins(signal: Signal, options: TrackOptions, *, missing: str) -> np.ndarray:
    """Every bin of every variant, base by base; NaN without a value."""
    out = []
    for chromosome, positions in POSITIONS.items():
        for p in positions:
            start = (p - 1) - (options.bins * options.resolution) // 2
            row = []
            for b in range(options.bins):
                bases = range(start + b * options.resolution, start + (b + 1) * options.resolution)
                bases = [base for base in bases if 0 <= base < LENGTHS[chromosome]]
                found = [signal[chromosome][base] for base in bases if base in signal[chromosome]]
                over = len(bases) if missing == "zero" else len(found)
                row.append(sum(found) / over if over else NAN)
            out.append(row)
    return np.array(out)


def slow_windows(signal: Signal, options: TrackOptions, *, missing: str, transform=lambda x: x) -> tuple:
    """Standardised bins, their mean and standard deviation."""
    values = transform(slow_bins(signal, options, missing=missing))
    mean, sd = np.nanmean(values), np.nanstd(values)
    z = (values - mean) / sd
    if options.clip is not None:
        z = np.clip(z, -options.clip, options.clip)
    return np.nan_to_num(z), mean, sd


def counted(windows: WindowFile) -> dict[tuple[str, str], int]:
    return {(row["step"], row["reason"]): row["count"] for row in windows.provenance["tally"]}


CASES = [
    TrackOptions(bins=8, resolution=4),
    TrackOptions(bins=7, resolution=5, missing="mean", transform="log1p"),
    TrackOptions(bins=1, resolution=1, missing="mean", clip=None),
    TrackOptions(bins=9, resolution=64, transform="arcsinh", clip=1.0),
]


@pytest.mark.parametrize("options", CASES, ids=lambda o: f"{o.bins}x{o.resolution}")
def test_windows_are_the_bases_one_by_one(store, bigwig, bed, runs, options, tmp_path):
    with extract_tracks(
        store, tmp_path / "t.h5", bigwigs={"dnase": bigwig}, beds={"peaks": bed}, options=options
    ) as windows:
        assert windows.names == ("dnase", "peaks")
        assert windows.shape == (20, options.bins, 2)
        found = windows[:].astype(float)
        function = {"none": lambda x: x, "log1p": np.log1p, "arcsinh": np.arcsinh}[options.transform]
        dnase, mean, sd = slow_windows(by_base(runs), options, missing=options.missing, transform=function)
        np.testing.assert_allclose((windows.mean[0], windows.sd[0]), (mean, sd), rtol=1e-5)
        np.testing.assert_allclose(found[:, :, 0], dnase, rtol=1e-3, atol=1e-3)
        peaks, mean, sd = slow_windows(by_base(INTERVALS), options, missing="zero")
        np.testing.assert_allclose((windows.mean[1], windows.sd[1]), (mean, sd), rtol=1e-6)
        np.testing.assert_allclose(found[:, :, 1], peaks, rtol=1e-3, atol=1e-3)
        windows.verify()


def test_the_middle_bin_holds_the_variant(folder):
    for count, resolution in ((8, 4), (7, 4), (7, 5), (1, 1), (64, 32), (65, 31), (2, 3)):
        (start,) = window_starts([1001], count * resolution)
        offset = 1000 - start - (count // 2) * resolution
        assert offset == (0 if count % 2 == 0 else resolution // 2)


def test_what_is_missing_beyond_the_end_or_clipped_is_counted(store, bigwig, bed, runs, tmp_path):
    options = TrackOptions(bins=7, resolution=5, missing="mean", clip=1.5)
    with extract_tracks(store, tmp_path / "t.h5", bigwigs={"dnase": bigwig}, beds={"peaks": bed}, options=options) as t:
        counts = counted(t)
    raw = slow_bins(by_base(runs), options, missing="mean")
    exist = ~np.isnan(slow_bins(by_base(runs), options, missing="zero"))
    empty, beyond = int((np.isnan(raw) & exist).sum()), int((~exist).sum())
    assert empty > 10
    assert beyond > 10
    z = (raw - np.nanmean(raw)) / np.nanstd(raw)
    assert counts["dnase", "bins without any value, set to the mean"] == empty
    for name in ("dnase", "peaks"):
        assert counts[name, "bins beyond the end of the chromosome, set to the track's mean"] == beyond
    assert counts["dnase", "bins cut to +-1.5 standard deviations"] == int((np.abs(z) > 1.5).sum())
    starts = window_starts([p for own in POSITIONS.values() for p in own], 35)
    ends = np.array([LENGTHS[c] for c, own in POSITIONS.items() for _ in own])
    over = int(((starts < 0) | (starts + 35 > ends)).sum())
    assert counts["windows", "window reaches over the end of the chromosome"] == over


@pytest.mark.parametrize(("gap", "longest"), [(0, 1), (50, 300), (16_384, 1 << 18)])
def test_stretches_hold_each_row_once_in_order_with_its_window(store, gap, longest, monkeypatch):
    monkeypatch.setattr(bins, "GAP", gap)
    monkeypatch.setattr(bins, "LONGEST", longest)
    runs_ = chromosome_runs(store.variants)
    assert [(name, rows.start, rows.stop) for name, rows in runs_] == [("21", 0, 10), ("22", 10, 20)]
    starts = window_starts(store.variants["BP"].to_numpy(), 40)
    for rows in (slice(0, 20), slice(3, 17), slice(7, 8)):
        seen = []
        for stretch in stretches(runs_, starts, 40, rows):
            own = starts[stretch.rows]
            seen += range(stretch.rows.start, stretch.rows.stop)
            assert set(store.variants["CHR"][stretch.rows]) == {stretch.chromosome}
            assert (stretch.low, stretch.high) == (own.min(), own.max() + 40)
            assert len(own) == 1 or stretch.high - stretch.low <= max(longest, 40)
        assert seen == list(range(rows.start, rows.stop))


@pytest.mark.parametrize("share", [0, 10**9])
def test_both_ways_to_sum_bins_are_the_plain_sum(share, monkeypatch):
    monkeypatch.setattr(bins, "_CUMULATIVE_COST", share)
    rng = np.random.default_rng(2)
    values = rng.gamma(1.0, 1.0, 200).astype(np.float32)
    for starts in (np.array([0, 3, 3, 150]), np.array([158]), np.arange(159)):
        edges = bins.bin_edges(starts, 6, 7)
        expected = [[values[a:b].sum() for a, b in pairwise(row)] for row in edges]
        np.testing.assert_allclose(bin_sums(values, starts, 6, 7), expected, rtol=2e-6)


def test_statistics_come_from_stretches_spread_over_the_rows(store, bigwig, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "STRETCH_ROWS", 2)
    options = TrackOptions(bins=8, resolution=4, statistics_variants=10)
    with extract_tracks(store, tmp_path / "t.h5", bigwigs={"dnase": bigwig}, options=options) as windows:
        rows = [j for j in range(20) if j % 4 < 2]
        raw = slow_bins(by_base(runs), options, missing="zero")[rows]
        np.testing.assert_allclose(windows.mean, np.nanmean(raw), rtol=1e-5)
        np.testing.assert_allclose(windows.sd, np.nanstd(raw), rtol=1e-5)
        assert windows.provenance["statistics_variants"] == 10


def test_compression_changes_the_file_and_nothing_in_it(store, bigwig, bed, tmp_path):
    made = []
    for compression in ("none", "lzf"):
        options = TrackOptions(bins=256, resolution=8, compression=compression)
        with extract_tracks(store, tmp_path / f"{compression}.h5", beds={"p": bed}, options=options) as windows:
            made.append((windows[:], windows.checksum))
    assert np.array_equal(made[0][0], made[1][0])
    assert made[0][1] == made[1][1]
    assert (tmp_path / "lzf.h5").stat().st_size < (tmp_path / "none.h5").stat().st_size


class _StopError(RuntimeError):
    """What a test interrupts with."""


def test_an_interrupted_extraction_goes_on_to_the_same_file(store, bigwig, bed, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "PIECE_BYTES", 5 * 8 * 2 * 2)
    monkeypatch.setattr(write, "CHUNK_BYTES", 8 * 2 * 2)
    options = TrackOptions(bins=8, resolution=4)
    files = {"bigwigs": {"dnase": bigwig}, "beds": {"peaks": bed}, "options": options}
    whole = extract_tracks(store, tmp_path / "whole.h5", **files)
    out, partial = tmp_path / "t.h5", tmp_path / ".t.h5.partial"
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        assert total == 40
        seen.append(done)
        if done == 20 + 10:
            raise _StopError

    with pytest.raises(_StopError):
        extract_tracks(store, out, **files, progress=stop)
    assert seen == [20, 25, 30]
    assert not out.exists()
    assert partial.exists()

    with h5py.File(partial, "r+") as handle:  # a piece whose write was cut off
        handle["windows"][7, 3, 0] += 1
    made: list[slice] = []
    plain = extract._Maker.standardised

    def watched(self, rows, mean, sd):
        made.append(rows)
        return plain(self, rows, mean, sd)

    monkeypatch.setattr(extract._Maker, "standardised", watched)
    monkeypatch.setattr(extract._Maker, "statistics", None)  # known from the first run
    resumed = extract_tracks(store, out, **files)
    assert [rows.start for rows in made] == [5, 10, 15]
    assert not partial.exists()
    with whole, resumed:
        assert resumed.checksum == whole.checksum
        assert resumed.provenance == whole.provenance
        for name in ("windows", "mean", "sd", "digests", "counts"):
            assert np.array_equal(resumed._handle[name][:], whole._handle[name][:]), name
    monkeypatch.undo()


@pytest.mark.parametrize("change", ["options", "inputs"])
def test_other_options_or_inputs_start_afresh(store, bigwig, runs, change, tmp_path):
    def stop(done: int, total: int) -> None:
        if done > 20:
            raise _StopError

    out = tmp_path / "t.h5"
    with pytest.raises(_StopError):
        extract_tracks(store, out, bigwigs={"s": bigwig}, options=TrackOptions(bins=4), progress=stop)
    if change == "options":
        file, options = bigwig, TrackOptions(bins=4, transform="log1p")
    else:
        other = {name: [(a, b, v + 1) for a, b, v in own] for name, own in runs.items()}
        file, options = write_bigwig(tmp_path / "signal.bw", other), TrackOptions(bins=4)
    with (
        extract_tracks(store, out, bigwigs={"s": file}, options=options) as found,
        extract_tracks(store, tmp_path / "u.h5", bigwigs={"s": file}, options=options) as fresh,
    ):
        assert found.checksum == fresh.checksum


def test_a_partial_file_that_is_damaged_is_replaced(store, bed, tmp_path):
    (tmp_path / ".t.h5.partial").write_bytes(b"not HDF5")
    with extract_tracks(store, tmp_path / "t.h5", beds={"p": bed}, options=TrackOptions(bins=2)) as windows:
        windows.verify()


def test_a_file_that_another_process_writes_is_left_alone(store, bed, tmp_path):
    partial = tmp_path / ".t.h5.partial"
    with h5py.File(partial, "w") as handle:
        handle.attrs["identity"] = "theirs"
    with open(partial, "r+b") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing this file"):
            extract_tracks(store, tmp_path / "t.h5", beds={"p": bed})
    assert partial.exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(store, bed, tmp_path):
    with (
        pytest.raises(InputError, match=r"the windows take 671,088\.6 GB"),
        write.partial_file(tmp_path / "t.h5", {}, 671_088_640_000_000),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def made(folder, store, bigwig, bed) -> Path:
    options = TrackOptions(bins=8, resolution=4)
    extract_tracks(store, folder / "t.h5", bigwigs={"s": bigwig}, beds={"p": bed}, options=options).close()
    return folder / "t.h5"


def test_rows_are_read_as_from_an_array_and_serve_as_inputs(made, store):
    with open_windows(made, store, kind="tracks") as windows:
        everything = windows[:]
        assert (len(windows), windows.shape, windows.dtype) == (20, (20, 8, 2), np.float16)
        assert np.array_equal(windows[3:9], everything[3:9])
        assert np.array_equal(windows[-4:], everything[-4:])
        assert windows[9:3].shape == (0, 8, 2)
        inputs = VariantInputs(np.zeros((20, 0), np.float32), tracks=windows)
        assert inputs.in_file
        assert inputs.sizes.tracks == (8, 2)
        gathered = inputs.gather([slice(0, 10), slice(15, 20)], 10).tracks
        assert gathered.dtype == np.float16
        assert np.array_equal(gathered[0], everything[:10])
        assert np.array_equal(gathered[1, :5], everything[15:])
        assert not gathered[1, 5:].any()
        with pytest.raises(TypeError, match="read by slices"):
            windows[3]
        with pytest.raises(ValueError, match="with a step of 1"):
            windows[::2]
        with pytest.raises(InputError, match="orientation belongs to files of sequence"):
            _ = windows.orientation
    with pytest.raises(InputError, match="has been closed"):
        windows[:2]


def test_rows_can_be_read_from_several_threads(made):
    with open_windows(made) as windows:
        everything = windows[:]
        wrong: list[int] = []

        def read() -> None:
            wrong.extend(
                j for _ in range(20) for j in range(18) if not np.array_equal(windows[j : j + 2], everything[j : j + 2])
            )

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_the_specification_names_what_is_written(made):
    spec = load_spec("windows")["properties"]
    assert spec["attributes"]["required"] == list(layout.ATTRIBUTES)
    with h5py.File(made) as handle:
        assert set(handle.attrs) == set(layout.ATTRIBUTES)
        assert set(handle) == {"windows", "mean", "sd", "digests", "counts"}
        assert json.loads(handle.attrs["options"])["bins"] == 8
    assert set(spec["datasets"]["properties"]) == {"windows", "mean", "sd", "digests", "counts", "orientation"}


def test_a_file_for_another_store_says_what_to_type(made, folder, tmp_path):
    match = r"another LD store .* deepwas tracks --ld .*other\.h5 --out .*t\.h5"
    with small_store(tmp_path / "other.h5", ["21"] * 20, range(1, 21)) as other, pytest.raises(InputError, match=match):
        open_windows(made, other)


def _alter(path: Path, change) -> None:
    with h5py.File(path, "r+") as handle:
        change(handle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.attrs.__setitem__("format", "deepwas-ld"), "no file of windows"),
        (lambda h: h.attrs.__setitem__("format_version", 9), "Update deepwas"),
        (lambda h: h.attrs.__setitem__("kind", "pictures"), "pictures"),
        (lambda h: h.attrs.__delitem__("checksum"), "'checksum' is a required property"),
        (lambda h: h.__delitem__("sd"), "'sd' is a required property"),
        (lambda h: h["sd"].__setitem__(0, 0.0), "standard deviation not positive"),
        (lambda h: h.attrs.__setitem__("names", '["s"]'), "1 tracks are named"),
        (lambda h: h.attrs.__setitem__("n_variants", 21), "21 variants are announced"),
    ],
)
def test_a_file_that_does_not_fit_the_specification_is_refused(made, change, message, tmp_path):
    path = tmp_path / "t.h5"
    path.write_bytes(made.read_bytes())
    _alter(path, change)
    with pytest.raises(InputError, match=message):
        open_windows(path)


def test_other_files_and_other_kinds_are_refused(made, bed, tmp_path):
    with pytest.raises(InputError, match="not an HDF5 file, but a"):
        open_windows(bed)
    with pytest.raises(InputError, match="no such file"):
        open_windows(tmp_path / "gone.h5")
    with pytest.raises(InputError, match=r"holds tracks, sequence expected\. Give a file made by `deepwas sequence`"):
        open_windows(made, kind="sequence")


def test_verify_finds_a_changed_value(made, tmp_path):
    path = tmp_path / "t.h5"
    path.write_bytes(made.read_bytes())
    _alter(path, lambda h: h["windows"].__setitem__((4, 2, 1), 3.0))
    with open_windows(path) as windows, pytest.raises(InputError, match="rows 1 to 20 have changed"):
        windows.verify()
    path.write_bytes(made.read_bytes())
    _alter(path, lambda h: h["mean"].__setitem__(1, 3.0))
    with open_windows(path) as windows, pytest.raises(InputError, match="checksum does not fit"):
        windows.verify()


@pytest.fixture
def refused(store, tmp_path):
    def check(match: str, **files) -> None:
        before = sorted(tmp_path.iterdir())
        with pytest.raises(InputError, match=match):
            extract_tracks(store, tmp_path / "t.h5", **files)
        assert sorted(tmp_path.iterdir()) == before

    return check


def test_tracks_of_another_build_are_refused(refused, tmp_path):
    lengths = CHROMOSOME_LENGTHS["GRCh38"]
    sizes = {f"chr{name}": lengths[name] for name in ("21", "22")}
    runs = {name: [(0, 10, 1.0)] for name in sizes}
    refused(
        "lengths of GRCh38, the LD store is on GRCh37", bigwigs={"s": write_bigwig(tmp_path / "38.bw", runs, sizes)}
    )
    sizes = {"21": 10_000, "22": END}
    refused(
        "chromosome 21 has 10,000 bases, not 48,129,895 as on GRCh37",
        bigwigs={"s": write_bigwig(tmp_path / "own.bw", {"21": [(0, 10, 1.0)], "22": [(0, 10, 1.0)]}, sizes)},
    )
    late = tmp_path / "late.bed"
    late.write_text("21\t10\t20\n22\t51304500\t51304600\n22\t10\t20\n")
    refused("an interval ends at 51,304,600 on chromosome 22, which has 51,304,566", beds={"p": late})


def test_a_genome_of_ones_own_is_taken_without_the_check(tmp_path):
    bigwig = write_bigwig(tmp_path / "own.bw", {"1": [(0, 50, 1.0), (50, 100, 3.0)]}, {"1": 100})
    options = TrackOptions(bins=4, resolution=25, check_build=False)
    with (
        small_store(tmp_path / "ld.h5", ["1"] * 2, [51, 100]) as store,
        extract_tracks(store, tmp_path / "t.h5", bigwigs={"s": bigwig}, options=options) as windows,
    ):
        # The second window holds the bases 49 to 148, of which 49 has the value 1 and those from 100 on do not exist.
        raw = np.array([[1, 1, 3, 3], [73 / 25, 3, 3, np.nan]])
        expected = np.nan_to_num((raw - np.nanmean(raw)) / np.nanstd(raw))
        np.testing.assert_allclose(windows[:][:, :, 0], expected, atol=2e-3)
    with (
        small_store(tmp_path / "far.h5", ["1"] * 2, [51, 101]) as store,
        pytest.raises(InputError, match="variant v1 is at 101 on chromosome 1, which has 100 bases"),
    ):
        extract_tracks(store, tmp_path / "t2.h5", bigwigs={"s": bigwig}, options=options)


def test_a_chromosome_that_a_file_lacks_is_an_error_or_counted(refused, store, tmp_path):
    named = write_bigwig(tmp_path / "one.bw", {"chr22": [(0, 320, 2.0), (320, 9000, 4.0)]})
    unnamed = write_bigwig(tmp_path / "two.bw", {"22": [(0, 400, 2.0), (400, 800, 4.0)]}, {"22": END})
    for file in (named, unnamed):
        refused(r"no value on chromosome 21, .* there are values on 22.* --uncovered missing", bigwigs={"s": file})
    neither = write_bigwig(tmp_path / "three.bw", {"chr1": [(0, 10, 1.0)]}, {"chr1": LENGTHS["1"]})
    refused("no value on chromosome 21, 22", bigwigs={"s": neither})
    options = TrackOptions(bins=4, resolution=4, uncovered="missing", missing="mean")
    with extract_tracks(store, tmp_path / "t.h5", bigwigs={"s": named}, options=options) as windows:
        assert not windows[:10].any()
        assert windows[10:].any()
        assert counted(windows)["one.bw", "missing: chromosome 21 is not covered by the file"] == 10
    near = tmp_path / "near.bed"
    near.write_text("chr22\t0\t1000\n")
    refused("none of 10 variants of chromosome 21", beds={"p": near})


def test_unusable_files_are_refused(refused, bed, bigwig, tmp_path, capfd):
    refused("no track is given")
    refused("no such file .a bigWig file for s expected", bigwigs={"s": tmp_path / "gone.bw"})
    refused(
        "not a bigWig file, but a (text|gzip) file. Give a bigWig, or intervals as BED with --bed", bigwigs={"s": bed}
    )
    assert capfd.readouterr() == ("", "")  # nor does a library say its own
    refused("two tracks are called s", bigwigs={"s": bigwig}, beds={"s": bed})
    negative = write_bigwig(tmp_path / "n.bw", {name: [(0, 9000, -2.0)] for name in ("chr21", "chr22")})
    refused("s: a bin has the mean -2.* arcsinh", bigwigs={"s": negative}, options=TrackOptions(transform="log1p"))
    infinite = {name: [(0, 35, 1.0), (35, 36, float("inf"))] for name in ("chr21", "chr22")}
    refused("chromosome 21, base 36: a value is infinite", bigwigs={"s": write_bigwig(tmp_path / "i.bw", infinite)})
    twice = {"chr21": LENGTHS["21"], "21": LENGTHS["21"], "chr22": END}
    file = write_bigwig(tmp_path / "t.bw", {name: [(0, 9, 1.0)] for name in twice}, twice)
    refused("chromosome 21 is there twice, as .*21 and .*21", bigwigs={"s": file})


def test_the_output_is_not_an_input(store, bigwig, tmp_path):
    copy = tmp_path / "copy.bw"
    copy.write_bytes(bigwig.read_bytes())
    with pytest.raises(InputError, match="would overwrite it"):
        extract_tracks(store, copy, bigwigs={"s": copy})
    assert copy.read_bytes() == bigwig.read_bytes()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bins": 0}, "bins=0"),
        ({"resolution": 2.5}, "resolution=2.5"),
        ({"bins": 5000, "resolution": 1000}, "a window of 5,000,000 bases"),
        ({"missing": "nan"}, "give one of zero, mean"),
        ({"transform": "log"}, "give one of none, log1p, arcsinh"),
        ({"uncovered": "zero"}, "give one of error, missing"),
        ({"compression": "gzip"}, "give one of none, lzf"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"statistics_variants": 0}, "statistics_variants=0"),
    ],
)
def test_options_check_themselves(fields, message):
    with pytest.raises(InputError, match=message):
        TrackOptions(**fields)


def test_lengths_tell_the_builds_apart():
    for build, lengths in CHROMOSOME_LENGTHS.items():
        assert list(lengths) == [*map(str, range(1, 23)), "X", "Y"]
        require_build("file", lengths, build)
        require_build("file", {"MT": 16_571, "22": lengths["22"]}, build)
    one, two = CHROMOSOME_LENGTHS.values()
    assert all(one[name] != two[name] for name in one)
    assert [sum(x.values()) for x in (one, two)] == [3_095_677_412, 3_088_269_832]


def test_the_benchmark_measures_says_and_draws(tmp_path):
    tasks = benchmark.Tasks(bases=30_000, spacings=(300,), runs=(20,), tracks=2, bins=4)
    for write_file in benchmark._files(tasks, tmp_path)[:2]:
        write_file()
    task = {"kind": "tracks", "runs": 20, "spacing": 300}
    found = benchmark.run(tmp_path, asdict(tasks) | task)
    assert found["variants"] == 100
    assert found["windows_mb"] == pytest.approx(100 * 4 * 2 * 2e-6)
    assert found["variants_s"] > 0
    assert found["peak_rss_gb"] >= found["rss_gb_before"] > 0.01
    assert not (tmp_path / "out.h5").exists()
    figures = {"tasks": asdict(tasks), "extractions": [task | found]}
    assert [t.row_count for t in benchmark.tables(figures)] == [1]
    benchmark.draw(figures, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
