"""A trait's whitened blocks: what they hold, where their factors come from, and the cache beside a run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest

from deepwas import InputError, LDBlock
from deepwas.errors import DataWarning, DeepwasError
from deepwas.ld import write_ld
from deepwas.likelihood.factor import Factor, encode_factor
from deepwas.training import trait as module
from deepwas.training.baseline import spectrum
from deepwas.training.heritability import constant_spectra, heritability, truncation_sensitivity
from deepwas.training.trait import TraitBlock, blocks_with_scores, open_trait
from deepwas.training.whitened import scratch_folder
from tests import dense

M = 120
WINDOWS = [(0, slice(0, 30)), (10, slice(20, 50)), (40, slice(20, 40)), (60, slice(20, 50))]


@pytest.fixture(scope="module")
def R() -> np.ndarray:
    return dense.ld_matrix("ar1", M, np.random.default_rng(0))


@pytest.fixture(params=["flanks", "plain"])
def store(request, tmp_path: Path, R: np.ndarray):
    """Windows that score the variants 0 to 109, or six blocks of 20, on two chromosomes' names."""
    table = pl.DataFrame(
        {
            "CHR": ["1"] * M,
            "SNP": [f"rs{i}" for i in range(M)],
            "BP": np.arange(1, M + 1),
            "A1": ["A"] * M,
            "A2": ["C"] * M,
            "FREQ": np.full(M, 0.3),
        }
    )

    def blocks():
        if request.param == "plain":
            for start in range(0, M, 20):
                yield start, LDBlock.from_correlation(R[start : start + 20, start : start + 20])
        else:
            for start, inside in WINDOWS:
                here = slice(start, min(start + 60, M))
                scored = np.zeros(here.stop - here.start, dtype=bool)
                scored[inside] = True
                yield start, LDBlock.from_correlation(R[here, here], scored)

    with write_ld(tmp_path / "ld.h5", table, blocks(), build="hg19", n_samples=5000, dtype="float32") as made:
        yield made


def scores(present: np.ndarray, *, unequal: bool = False, seed: int = 0) -> pl.DataFrame:
    """z-scores of the variants that are present."""
    rng = np.random.default_rng(seed)
    n = rng.uniform(8e3, 1e4, M) if unequal else np.full(M, 1e4)
    where = np.flatnonzero(present)
    return pl.DataFrame({"VARIANT": where, "Z": 2 * rng.normal(size=M)[where], "N": n[where]})


def whiten_trait(store, frame, **options):
    """Every block with its factor in memory, and the count of variants that no block models or scores."""
    blocks = open_trait(store, frame, **options)
    return [blocks.load(i) for i in range(len(blocks))], blocks.dropped


def some(seed: int = 1) -> np.ndarray:
    """Most variants; all of 0 to 49, so that some blocks are as the store holds them; none of 90 to 109."""
    present = np.random.default_rng(seed).random(M) < 0.8
    present[:50] = True
    present[90:110] = False
    return present


@pytest.mark.parametrize("unequal", [False, True])
def test_blocks_are_the_restricted_ld_and_its_whitened_scores(store, R, unequal):
    frame = scores(some(), unequal=unequal)
    z, n = np.zeros(M), np.zeros(M)
    z[frame["VARIANT"]], n[frame["VARIANT"]] = frame["Z"], frame["N"]
    blocks = open_trait(store, frame)
    assert len(blocks) == len(list(blocks)) == len(blocks[:])
    seen = np.zeros(M, dtype=int)
    for i, block in enumerate(blocks):
        rows, centre = store.block_slice(block.number), store.scored_slice(block.number)
        assert (block.rows, block.scored_rows) == (rows, centre)
        seen[centre] += 1
        inside = np.zeros(rows.stop - rows.start, dtype=bool)
        inside[block.scored] = True
        observed = inside & (n[rows] > 0)
        np.testing.assert_array_equal(block.observed, observed)
        np.testing.assert_array_equal(block.z, np.where(observed, z[rows], 0))
        assert block.sample_size == pytest.approx(n[rows][observed].mean())
        assert block.shape == blocks.sizes[i] == block.factor.shape
        assert block.factor.dtype == block.whitened.dtype == np.float32

        here = np.arange(rows.start, rows.stop)
        W = blocks.ld_block(i).whitener
        ratio = np.sqrt(n[rows][observed] / block.sample_size)[:, None]
        np.testing.assert_allclose(W @ (ratio * R[np.ix_(here[observed], here)]), block.factor, atol=2e-4)
        np.testing.assert_allclose(W @ z[rows][observed], block.whitened, atol=2e-4)
        np.testing.assert_allclose(block.row_squares, (block.factor.astype(float) ** 2).sum(axis=1), rtol=1e-6)
        G, L = blocks.ld_parts(i)
        np.testing.assert_allclose(G, block.factor, atol=1e-6)
        np.testing.assert_allclose(L @ L.T, R[np.ix_(here[observed], here[observed])], atol=1e-4)
        np.testing.assert_allclose(W @ L, np.eye(len(W)), atol=1e-3)
    assert seen.max() == 1
    assert (seen[n > 0] == 1).all() or store.flanked
    with pytest.raises(IndexError):
        blocks[len(blocks)]
    assert blocks[-1].number == blocks[len(blocks) - 1].number


def test_variants_that_are_in_no_fitted_block_are_counted(store):
    blocks, tally = whiten_trait(store, scores(some()))
    counts = {row.reason: (row.count, row.first) for row in tally.rows}
    modelled = sum(b.scored_rows.stop - b.scored_rows.start for b in blocks)
    if store.flanked:  # rows 80 to 109 are one block, of which 80 to 89 have z-scores; 110 on are in no block
        assert counts == {"variants that no LD block scores": (10, "rs110")}
        assert modelled == 110
    else:
        assert counts == {}
        assert modelled == M
    gone = scores(some() & ~((np.arange(M) >= 80) & (np.arange(M) < 110)))
    _, tally = whiten_trait(store, gone)
    text = "variants of LD blocks without any z-score"
    assert {row.reason: (row.count, row.first) for row in tally.rows}[text] == ((30 if store.flanked else 20), "rs80")
    with pytest.raises(InputError, match="no LD block holds a variant with a z-score"):
        whiten_trait(store, gone.head(0))


def test_blocks_with_scores_are_those_that_will_be_whitened(store):
    frame = scores(some() & ~((np.arange(M) >= 80) & (np.arange(M) < 110)))
    numbers, unequal = blocks_with_scores(store, frame)
    blocks, _ = whiten_trait(store, frame)
    assert (numbers, unequal) == ([b.number for b in blocks], [])
    one = store.scored_slice(numbers[1]).start
    assert one in frame["VARIANT"]
    more = frame.with_columns(N=pl.when(pl.col("VARIANT") == one).then(9e3).otherwise(pl.col("N")))
    assert blocks_with_scores(store, more) == (numbers, [numbers[1]])


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda x: x.reverse(), "not in the order of the LD store: VARIANT is 119 in row 0"),
        (lambda x: pl.concat([x.head(3), x.tail(-2)]), "VARIANT is 2 in row 2, and 2 in the next. Sort them"),
        (lambda x: x.with_columns(pl.col("VARIANT") - 1), "rows -1 to 118 of the LD store"),
        (lambda x: x.with_columns(pl.col("VARIANT") + 1), "rows 1 to 120 of the LD store .* rows 0 to 119"),
    ],
)
def test_z_scores_out_of_order_are_refused(store, wrong, match):
    frame = wrong(scores(np.ones(M, dtype=bool)))
    for use in (open_trait, whiten_trait, blocks_with_scores):
        with pytest.raises(InputError, match=match):
            use(store, frame)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "float64"])
def test_factors_are_the_same_from_memory_cache_and_store(store, tmp_path, dtype):
    frame = scores(some())
    lists, _ = whiten_trait(store, frame)
    in_memory = open_trait(store, frame, factor_dtype=dtype)
    again = open_trait(store, frame, factor_dtype=dtype, keep_factors=False)
    with open_trait(store, frame, factor_dtype=dtype, cache=tmp_path / "w.h5") as cached:
        for i, plain in enumerate(lists):
            expected = encode_factor(plain.factor, dtype)
            for blocks in (in_memory, cached, again):
                assert blocks[i].encoded.values.dtype == dtype
                for found in (blocks[i].encoded, blocks.load(i).encoded):
                    np.testing.assert_allclose(found.decoded(), expected.decoded(), atol=1e-6)
                np.testing.assert_array_equal(blocks[i].whitened, plain.whitened)
                np.testing.assert_allclose(blocks[i].row_squares, plain.row_squares, rtol=0.02)
    # Only what the trait needs for itself is in the cache.
    with h5py.File(tmp_path / "w.h5") as handle:
        made = {int(name) for name in handle["factors"]}
    assert made == {b.number for b in lists if b.observed.sum() < b.scored.stop - b.scored.start}
    assert 0 < len(made) < len(lists)


def count_restrictions(monkeypatch) -> list[int]:
    done = []
    restrict = LDBlock.restrict

    def counted(self, *arguments):
        done.append(1)
        return restrict(self, *arguments)

    monkeypatch.setattr(LDBlock, "restrict", counted)
    return done


def test_a_cache_of_the_same_inputs_is_used_and_any_other_made_again(store, tmp_path, monkeypatch):
    path = tmp_path / "w.h5"
    frame = scores(some())
    first = open_trait(store, frame, cache=path)
    expected = [first.load(i).factor for i in range(len(first))]
    first.close()
    done = count_restrictions(monkeypatch)
    second = open_trait(store, frame, cache=path)
    assert second.notes == []
    for i, factor in enumerate(expected):
        np.testing.assert_array_equal(second[i].factor, factor)
        np.testing.assert_array_equal(second[i].whitened, first[i].whitened)
        assert second[i].sample_size == first[i].sample_size
    assert second.sizes == first.sizes
    assert second.dropped == first.dropped
    assert done == []
    second.close()
    others = [
        (frame.with_columns(pl.col("Z") + 1), {}),
        (frame.with_columns(pl.col("N") + 1), {}),
        (frame.tail(-1), {}),
        (frame, {"factor_dtype": "float16"}),
        (frame, {"variance_share": 0.9}),
        (frame, {"keep_factors": False}),
        (frame, {}),
    ]
    for other, options in others:
        with open_trait(store, other, cache=path, **options) as third:
            assert third.notes == [
                f"{path}: the cache of whitened LD belongs to other inputs or options; it was made again."
            ]
            fresh = open_trait(store, other, **options)
            for a, b in zip(third, fresh, strict=True):
                np.testing.assert_array_equal(a.factor, b.factor)
                np.testing.assert_array_equal(a.whitened, b.whitened)
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def not_hdf5(path: Path) -> None:
    path.write_text("text")


def other_kind(path: Path) -> None:
    with h5py.File(path, "w") as handle:
        handle["x"] = 1


def spoil_summary(path: Path) -> None:
    with h5py.File(path, "r+") as handle:
        handle["summary/whitened"][0] += 1


def no_summary(path: Path) -> None:
    with h5py.File(path, "r+") as handle:
        del handle["summary"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncate, "is damaged"),
        (not_hdf5, "is damaged"),
        (other_kind, "is of another kind or version"),
        (spoil_summary, "is damaged"),
        (no_summary, "is damaged"),
    ],
)
def test_a_damaged_cache_is_made_again_with_a_note(store, tmp_path, spoil, reason):
    path, frame = tmp_path / "w.h5", scores(some())
    open_trait(store, frame, cache=path).close()
    spoil(path)
    expected, _ = whiten_trait(store, frame)
    with open_trait(store, frame, cache=path) as blocks:
        assert blocks.notes == [f"{path}: the cache of whitened LD {reason}; it was made again."]
        for a, b in zip(blocks, expected, strict=True):
            np.testing.assert_array_equal(a.factor, b.factor)
    with open_trait(store, frame, cache=path) as blocks:
        assert blocks.notes == []


@pytest.mark.parametrize("missing", [False, True])
def test_a_damaged_factor_is_found_when_it_is_loaded(store, tmp_path, missing):
    path, frame = tmp_path / "w.h5", scores(some())
    expected, _ = whiten_trait(store, frame)
    open_trait(store, frame, cache=path).close()
    with h5py.File(path, "r+") as handle:
        number = int(max(handle["factors"]))
        if missing:
            del handle[f"factors/{number:05d}/values"]
        else:
            handle[f"factors/{number:05d}/values"][0, 0] += 1e-3
    with open_trait(store, frame, cache=path) as blocks:
        (which,) = (i for i, b in enumerate(blocks) if b.number == number)
        with pytest.warns(DataWarning, match=f"the factor of block {number} .* computed again, and the file removed"):
            found = blocks.load(which)
        np.testing.assert_array_equal(found.factor, expected[which].factor)
        np.testing.assert_array_equal(blocks[which].factor, expected[which].factor)  # and no second warning
        assert len(blocks.notes) == 1
        for a, b in zip(blocks, expected, strict=True):  # the others go on from the open file
            np.testing.assert_array_equal(a.factor, b.factor)
        assert not path.exists()
    with open_trait(store, frame, cache=path) as blocks:
        assert blocks.notes == []


def test_an_interrupted_whitening_leaves_no_cache(store, tmp_path):
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_trait(store, scores(some()), cache=tmp_path / "w.h5", progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["ld.h5"]


def test_what_a_kill_left_of_a_cache_goes_when_it_is_opened(store, tmp_path):
    unfinished, other = tmp_path / ".0a1b2c3d.partial.w.h5", tmp_path / ".0a1b2c3d.partial.w_0.9.h5"
    for _ in range(2):  # no cache yet, and one that is complete
        unfinished.write_bytes(b"x")
        other.write_bytes(b"x")
        open_trait(store, scores(some()), cache=tmp_path / "w.h5").close()
        assert sorted(p.name for p in tmp_path.iterdir()) == [other.name, "ld.h5", "w.h5"]


def test_a_closed_cache_says_so(store, tmp_path):
    blocks = open_trait(store, scores(some()), cache=tmp_path / "w.h5")
    blocks.close()
    made = next(b for b in blocks if b.observed.sum() < b.scored.stop - b.scored.start)
    with pytest.raises(DeepwasError, match="this cache has been closed"):
        _ = made.factor


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_parts_for_a_test_of_the_ld_are_read_from_the_cache(store, tmp_path, monkeypatch, unequal, dtype):
    frame = scores(some(), unequal=unequal)
    fresh = open_trait(store, frame, keep_factors=False)
    expected = [fresh.ld_parts(i) for i in range(len(fresh))]
    with open_trait(store, frame, factor_dtype=dtype, cache=tmp_path / "w.h5") as blocks:
        done = count_restrictions(monkeypatch)
        for i, (G, L) in enumerate(expected):
            for found, wanted in zip(blocks.ld_parts(i), (G, L), strict=True):
                np.testing.assert_allclose(found, wanted, atol=1e-5)
        made = len(h5py_names(tmp_path / "w.h5"))
        # 8 bits would look like a mismatch: those are made again.
        assert len(done) == (0 if dtype == "float32" else made)
        assert made > 0
    if dtype == "float32" and unequal:
        with h5py.File(tmp_path / "w.h5", "r+") as handle:
            handle[f"factors/{max(handle['factors'])}/loadings"][0, 0] += 1
        with open_trait(store, frame, cache=tmp_path / "w.h5") as blocks:
            for i, (_, L) in enumerate(expected):
                np.testing.assert_allclose(blocks.ld_parts(i)[1], L, atol=1e-5)


def h5py_names(path: Path) -> list[str]:
    with h5py.File(path) as handle:
        return list(handle["factors"])


def test_scratch_folders_of_killed_processes_go_and_those_in_use_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    foreign = tmp_path / "deepwas-whitened-of-another-make"
    foreign.mkdir()
    code = """
import time
from deepwas.training.whitened import scratch_folder
with scratch_folder() as folder:
    print(folder, flush=True)
    time.sleep(60)
"""
    with (
        subprocess.Popen(
            [sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True
        ) as killed,
        scratch_folder() as one,
    ):
        assert killed.stdout is not None
        left = Path(killed.stdout.readline().strip())
        (left / "whitened.h5").write_bytes(b"x")
        with scratch_folder() as two:
            assert {p.name for p in tmp_path.iterdir()} == {foreign.name, left.name, one.name, two.name}
        killed.kill()
        killed.wait()
        with scratch_folder() as other:
            assert {p.name for p in tmp_path.iterdir()} == {foreign.name, one.name, other.name}
    assert [p.name for p in tmp_path.iterdir()] == [foreign.name]


def test_blocks_can_be_loaded_from_several_threads(store, tmp_path):
    frame = scores(some())
    expected = [b.factor.sum() for b in whiten_trait(store, frame)[0]]
    found: list[list[float]] = [[], [], []]
    with open_trait(store, frame, cache=tmp_path / "w.h5") as blocks:

        def read(which: int) -> None:
            for _ in range(5):
                found[which] = [blocks.load(i).factor.sum() for i in range(len(blocks))]

        threads = [threading.Thread(target=read, args=(w,)) for w in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [expected] * 3


def test_a_block_by_hand_needs_what_a_lazy_factor_does_not_say():
    G = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    y, z, observed = np.ones(3, np.float32), np.zeros(5), np.ones(5, bool)
    block = TraitBlock(0, slice(10, 15), G, y, z, observed, 1e4)
    assert block.factor is G
    assert (block.shape, block.scored_rows) == ((3, 5), slice(10, 15))
    np.testing.assert_allclose(block.row_squares, (G.astype(float) ** 2).sum(axis=1), rtol=1e-6)
    loaded = []

    def load() -> Factor:
        loaded.append(1)
        return encode_factor(G, "int8")

    with pytest.raises(TypeError, match="needs shape and row_squares"):
        TraitBlock(0, slice(10, 15), load, y, z, observed, 1e4)
    lazy = TraitBlock(0, slice(10, 15), load, y, z, observed, 1e4, shape=(3, 5), row_squares=block.row_squares)
    assert loaded == []
    np.testing.assert_allclose(lazy.factor, G, atol=np.abs(G).max() / 250)
    _ = lazy.encoded
    assert len(loaded) == 2


def test_heritability_needs_no_factor_for_the_constant_prior_and_counts_each_variant_once(store, tmp_path, monkeypatch):
    frame = scores(some())
    blocks, _ = whiten_trait(store, frame)
    for fast, b in zip(constant_spectra(blocks), blocks, strict=True):
        slow = spectrum(b.factor, b.whitened, b.sample_size)
        np.testing.assert_allclose(fast.signal, slow.signal, rtol=1e-6)
        np.testing.assert_allclose(fast.squares, slow.squares, rtol=1e-12)
    f = np.random.default_rng(3).exponential(size=M) * 1e-5
    modelled = np.concatenate([np.arange(M)[b.scored_rows] for b in blocks])
    given = heritability(blocks, [f[b.rows] for b in blocks], 1.0, True)
    assert given["h2"] == pytest.approx(f[modelled].sum(), rel=1e-12)

    cache = tmp_path / "w.h5"
    with open_trait(store, frame, cache=cache) as lazy, monkeypatch.context() as patch:
        patch.setattr(module.TraitBlocks, "_load", None)  # no factor is loaded
        rows = truncation_sensitivity(store, frame, start=1e-5, whitened=lazy, cache=cache)
        done = count_restrictions(patch)
        assert truncation_sensitivity(store, frame, start=1e-5, whitened=lazy, cache=cache) == rows
        assert done == []
    assert sorted(p.name for p in tmp_path.glob("w*")) == ["w.h5", "w_0.75.h5", "w_0.9.h5"]
    for row in rows:
        part, _ = whiten_trait(store, frame, variance_share=row["share"])
        assert row["eigenvalues"] == sum(b.shape[0] for b in part)
    without = truncation_sensitivity(store, frame, start=1e-5)
    assert [r["h2_noise_1"] for r in without] == pytest.approx([r["h2_noise_1"] for r in rows])
