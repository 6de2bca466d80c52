"""Fits that read tracks, sequence and allele frequencies, with annotations or without; chromosomes held out by name."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import deepwas
from deepwas import FitOptions, InputError
from deepwas.inputs import InputSizes
from deepwas.specs import validate_json
from tests.fit_problem import QUICK, tiny_problem, whitening_is_a_mistake

CNN = FitOptions(
    network="cnn",
    hidden=(),
    width=4,
    depth=1,
    kernel=3,
    maf_alpha="learned",
    test_chromosomes=("chr4",),
    validation_chromosomes=("3",),
    steps=6,
    evaluate_every=3,
    batch_blocks=2,
    solver="cholesky",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_problem(tmp_path_factory)


@pytest.fixture(scope="module")
def windows(tiny):
    """Tracks and sequence around each variant; the first track's middle bin is what matters."""
    *_, annotations, _ = tiny
    rng = np.random.default_rng(0)
    active = annotations.values[:, annotations.names.index("active")]
    tracks = rng.normal(size=(len(active), 5, 2)).astype(np.float16)
    tracks[:, 2, 0] = active
    return tracks, rng.integers(0, 5, size=(len(active), 2, 8)).astype(np.uint8)


class File:
    """Windows in a file, as `deepwas.tracks.WindowFile` is: rows are read by slices."""

    def __init__(self, values):
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.names, self.checksum, self.path, self.reads = ("a", "b"), "0" * 64, "tracks.h5", 0

    def __getitem__(self, rows):
        self.reads += 1
        return self.values[rows]


@pytest.fixture(scope="module")
def fitted(tiny, windows):
    folder, store, z, annotations, _ = tiny
    tracks, sequence = windows
    out = folder / "cnn"
    fit = deepwas.fit(store, z, annotations, tracks=tracks, sequence=sequence, options=CNN, out=out, resume=True)
    return fit, out


def test_chromosomes_held_out_by_name_are_tested_by_one_network(tiny, fitted):
    _, store, *_ = tiny
    fit, _ = fitted
    (rotation,) = fit.record["rotations"]
    chromosome = store.variants["CHR"].to_list()
    parts = {
        name: {chromosome[store.scored_slice(b).start] for b in rotation[f"{name}_blocks"]}
        for name in ("train", "validation", "test")
    }
    assert parts == {"train": {"1", "2"}, "validation": {"3"}, "test": {"4"}}
    assert fit.record["held_out"]["cross_fitted"] is None
    assert not fit.cross_fitted
    assert fit.block_table()["CHR"].unique().to_list() == ["4"]
    section = fit.variants.group_by("CHR").agg(pl.col("SECTION").unique().first()).sort("CHR")
    assert section["SECTION"].to_list() == [2, 2, 1, 0]


def test_a_fit_of_windows_is_saved_and_predicts(tiny, windows, fitted):
    _, store, _, annotations, _ = tiny
    tracks, sequence = windows
    fit, out = fitted
    validate_json(fit.record, "run", "run.json")
    content = fit.record["rotations"][0]["network"]
    assert content["sizes"] == {"annotations": 2, "log_heterozygosity": True, "tracks": [5, 2], "sequence": 8}
    assert fit.record["inputs"]["tracks"]["shape"] == list(tracks.shape)
    q = store.variants["FREQ"].to_numpy()
    given = {"tracks": tracks, "sequence": sequence, "frequencies": q}
    found = fit.predict(annotations, **given)
    modelled = fit.variants["SNPVAR_PLAIN"].to_numpy()
    np.testing.assert_allclose(found, modelled, rtol=1e-5)
    again = deepwas.load_fit(out)
    np.testing.assert_array_equal(again.predict(annotations, **given), found)
    assert again.inputs(annotations, **given).sizes == InputSizes(2, True, (5, 2), 8)
    # The centre of the frequency term is over training variants, and is kept with the network.
    term = again.networks[0].frequency
    centre = np.log(2 * q * (1 - q))[store.variants["CHR"].is_in(["1", "2"]).to_numpy()].mean()
    assert float(term.centre[...][0]) == pytest.approx(centre, abs=1e-5)
    with pytest.raises(InputError, match=r"fitted to InputSizes\(annotations=2.*frequencies= with maf_alpha"):
        again.predict(annotations, tracks=tracks, sequence=sequence)
    with pytest.raises(InputError, match="of the same variants; numbers of variants: annotations 320, tracks 3"):
        again.predict(annotations, tracks=tracks[:3])
    with pytest.raises(InputError, match="frequencies must be between 0 and 1"):
        again.predict(annotations, tracks=tracks, sequence=sequence, frequencies=q - q)


def test_without_annotations_windows_are_read_ahead_and_only_where_needed(tiny, windows, tmp_path):
    _, store, z, *_ = tiny
    file = File(windows[0])
    options = replace(CNN, maf_alpha=None, steps=3, test_chromosomes=(), validation_chromosomes=(), cross_fit=False)
    fit = deepwas.fit(store, z, tracks=file, options=replace(options, folds=4), out=tmp_path / "run")
    assert file.reads > 0
    assert fit.record["inputs"]["tracks"] == {
        "file": "tracks.h5",
        "names": ["a", "b"],
        "shape": [320, 5, 2],
        "content": "0" * 64,
    }
    assert fit.record["inputs"]["annotations"] is None
    again = deepwas.load_fit(tmp_path / "run")
    assert again.standardisers == [None]
    np.testing.assert_allclose(again.predict(tracks=file), fit.variants["SNPVAR_PLAIN"], rtol=1e-5)
    in_memory = deepwas.fit(store, z, tracks=windows[0], options=replace(options, folds=4))
    np.testing.assert_array_equal(in_memory.variants["SNPVAR_PLAIN"], fit.variants["SNPVAR_PLAIN"])


def test_files_of_tracks_are_opened_and_belong_to_the_store(tiny, windows, tmp_path, monkeypatch):
    pytest.importorskip("deepwas.tracks")
    folder, store, z, *_ = tiny
    shutil.copy(folder / "ld.h5", tmp_path / "not_tracks.h5")
    with pytest.raises(InputError, match="no file of windows"):
        deepwas.fit(store, z, tracks=tmp_path / "not_tracks.h5", options=CNN)


def test_inputs_that_the_network_does_not_read_or_lacks_are_refused_first(tiny, windows, monkeypatch):
    _, store, z, annotations, _ = tiny
    tracks, _ = windows
    whitening_is_a_mistake(monkeypatch)
    for given, options, match in (
        ({}, QUICK, "needs annotations, tracks or sequence"),
        (
            {"annotations": annotations},
            replace(QUICK, monotone=("no:+",)),
            "monotone names 'no', which is no annotation",
        ),
        ({"annotations": annotations}, CNN, "cnn network reads tracks or sequence"),
        ({"annotations": annotations, "tracks": tracks}, QUICK, "linear network does not read tracks"),
        ({"tracks": tracks[:5]}, CNN, r"tracks is of shape \(5, 5, 2\).*320 variants"),
        ({"tracks": [1]}, CNN, "tracks is a list"),
        ({"tracks": tracks}, replace(CNN, test_chromosomes=("9",)), "test_chromosomes has '9'.*There are 1, 2, 3, 4"),
        (
            {"tracks": tracks},
            replace(CNN, test_chromosomes=("1", "2"), validation_chromosomes=("3", "4")),
            "no chromosome to train on",
        ),
    ):
        with pytest.raises(InputError, match=match):
            deepwas.fit(store, z, options=options, **given)
    with pytest.raises(InputError, match=r"TensorBoard metrics go into the run folder"):
        deepwas.fit(store, z, annotations, options=QUICK, tensorboard=True)
    from deepwas import fitting

    monkeypatch.setattr(fitting, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install tensorboardX"):
        deepwas.fit(store, z, annotations, options=QUICK, tensorboard=True)


def test_a_frequency_that_is_none_is_named(tiny):
    from types import SimpleNamespace

    from deepwas.training.plan import log_heterozygosity

    table = pl.DataFrame({"SNP": ["rs1", "rs2", "rs3"], "FREQ": [0.2, 1.0, None]})
    with pytest.raises(InputError, match=r"FREQ is 1 for 2 of 3 variants \(first: rs2, row 1\)"):
        log_heterozygosity(SimpleNamespace(variants=table, path="ld.h5"))
