"""Networks, the test of sharing and calibration as parts of a classification."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from deepwas.errors import InputError
from deepwas.ld import LDBlock
from deepwas.ld.write import write_ld
from deepwas.pleiotropy import PleiotropyOptions, TraitEffects, classify
from deepwas.pleiotropy import beside as beside_module
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.learning import JointBlock
from deepwas.pleiotropy.network import CalibrationReport, NetworkOptions, NetworkResult
from deepwas.pleiotropy.network.stage import first_pass
from deepwas.posterior.progress import Computed
from deepwas.specs import validate_json
from deepwas.sumstats import HarmonisedSumstats
from tests.dense import ld_matrix

SIZE, BLOCKS, N = 24, 12, 1e5
NAMES = ("a", "b")
HOW = {"rounds": 2, "max_effects": 3, "candidates": 16, "calibration_blocks": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Store, and priors and z-scores of two traits that share every other effect."""
    folder = tmp_path_factory.mktemp("stage")
    rng = np.random.default_rng(0)
    R = ld_matrix("ar1", SIZE, rng)
    M = SIZE * BLOCKS
    variants = pl.DataFrame(
        {
            "CHR": ["1"] * (M // 2) + ["2"] * (M - M // 2),
            "SNP": [f"rs{j}" for j in range(M)],
            "BP": [1000 * (j + 1) for j in range(M)],
            "A1": ["A"] * M,
            "A2": ["G"] * M,
            "FREQ": [0.3] * M,
        }
    )
    blocks = ((SIZE * i, LDBlock.from_correlation(R, dtype=np.float64)) for i in range(BLOCKS))
    store = write_ld(folder / "ld.h5", variants, blocks, build="GRCh37", n_samples=100_000, dtype="float64")
    effects = np.zeros((M, 2))
    shared = []
    for i in range(BLOCKS):
        j = SIZE * i + int(rng.integers(4, SIZE - 4))
        effects[j] = 0.04 * rng.choice([-1.0, 1.0], size=2)
        if i % 2:
            effects[j, i % 4 // 2] = 0
        else:
            shared.append(j)
    root = np.linalg.cholesky(R)
    priors, z = {}, {}
    for k, name in enumerate(NAMES):
        values = np.concatenate(
            [
                np.sqrt(N) * R @ effects[SIZE * i : SIZE * (i + 1), k] + root @ rng.normal(size=SIZE)
                for i in range(BLOCKS)
            ]
        )
        frame = variants.with_row_index("VARIANT").drop("FREQ")
        frame = frame.with_columns(pl.Series("Z", values), pl.lit(N).alias("N"), pl.lit(0.3).alias("FRQ"))
        HarmonisedSumstats(
            frame, M, f"{name}.tsv", "0" * 64, "LDSC", "position", genome_build="GRCh37", store_checksum=store.checksum
        ).write_parquet(folder / f"{name}.parquet")
        table = variants.select("CHR", "SNP", "BP", "A1", "A2").with_columns(SNPVAR=pl.lit(0.03 * 16e-4))
        table.write_csv(folder / f"{name}.priors.tsv", separator="\t")
        priors[name], z[name] = folder / f"{name}.priors.tsv", folder / f"{name}.parquet"
    zero = np.zeros((2, 2))
    given = {"noise_correlation": np.eye(2), "trait_effects": TraitEffects.given(zero, zero, names=NAMES)}
    return SimpleNamespace(folder=folder, store=store, priors=priors, z=z, given=given, shared=shared)


@pytest.fixture(scope="module")
def labelled(world):
    """A classification with networks, the test of sharing and labels, into a folder."""
    rows = [f"rs{j}" for j in world.shared[:4]] + [f"rs{SIZE * i}" for i in range(BLOCKS)]
    known = ["pleiotropic"] * 4 + ["none"] * BLOCKS
    path = world.folder / "labels.tsv"
    pl.DataFrame({"SNP": [*rows, "rs-elsewhere"], "CLASS": [*known, "single"]}).write_csv(path, separator="\t")
    known = np.isin(np.arange(SIZE * BLOCKS), world.shared).astype(float)
    table = world.store.variants.select("SNP", "CHR", "BP", "A1", "A2").with_columns(enhancer=known, other=known[::-1])
    table.with_columns(pl.col("other").replace(1.0, None)).write_csv(world.folder / "annotations.tsv", separator="\t")
    small = NetworkOptions(folds=2, epochs=2, depth=1, width=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deepwas.pleiotropy.network.NetworkOptions", lambda **given: replace(small, **given))
        return classify(
            world.priors,
            world.store,
            sumstats=world.z,
            labels=path,
            annotations=world.folder / "annotations.tsv",
            options=PleiotropyOptions(network=True, bootstrap=4, **HOW),
            out=world.folder / "out",
            **world.given,
        )


def test_a_classification_with_networks_says_what_they_did(world, labelled):
    record = json.loads((world.folder / "out" / "pleiotropy.json").read_text())
    assert record == labelled.record
    validate_json(record, "pleiotropy_run", "pleiotropy.json")
    network = record["network"]
    assert network["labels"]["positive"] >= 4
    assert set(network["ablations"]["prior"]) == {"none", "supervised", "generative", "both"}
    assert record["labels"] == {"source": "labels.tsv", "positive": 4, "negative": BLOCKS}
    assert record["annotations"]["names"] == ["enhancer"]  # the other one does not vary where it is known
    assert [x["name"] for x in record["annotations"]["files"]] == ["annotations.tsv"]
    assert any(row["first"] == f"line {BLOCKS + 6}" and row["count"] == 1 for row in record["counts"])
    score = labelled.variants["P_NETWORK"]
    assert score.null_count() == 0
    assert score.is_between(0, 1).all()
    alike = (score - labelled.variants["P_PLEIOTROPY"]).abs().max() < 1e-3
    if not network["accepted"]:  # else the posterior has moved from where the score starts
        assert alike == any("P_NETWORK is P_PLEIOTROPY" in note for note in record["notes"])
    both = labelled.variants[world.shared]["P_PLEIOTROPY"]
    assert both.mean() > 0.8


def test_sharing_is_tested_and_probabilities_are_calibrated(world, labelled):
    record = labelled.record
    assert record["sharing_test"]["p"] == 0.2  # the least that four draws allow
    assert record["sharing_test"]["expected"] > record["sharing_test"]["chance"]
    assert 0 <= record["sharing_test"]["null_median"] < record["sharing_test"]["expected"]
    pairs = labelled.pairs.filter(pl.col("TRAIT_1") != pl.col("TRAIT_2"))
    assert pairs["SHARING_P"].to_list() == [0.2]
    curve = record["calibration"]
    assert curve["blocks"] == 3
    assert curve["variants"] == 3 * SIZE
    assert 0 <= curve["P_PLEIOTROPY"]["calibration_error_above"] < 0.5
    assert record["network"]["calibration"]["positive"] == curve["true"] >= 1
    assert record["network"]["labels"]["counts"][0]["step"] == "labels"
    assert (world.folder / "out" / "reliability.png").stat().st_size > 10_000


def test_corrections_that_are_accepted_move_the_posterior(world, monkeypatch):
    """With all of the prior against sharing, no variant is called shared."""
    real = beside_module.beside_of

    def against(*arguments, **how):
        found, _ = real(*arguments, **how)
        blocks = arguments[3]
        return found, [np.full(len(block.direct), -500.0, np.float32) for block in blocks]

    monkeypatch.setattr("deepwas.pleiotropy.run.beside_of", against)
    found = classify(
        world.priors, world.store, sumstats=world.z, options=PleiotropyOptions(**HOW), **world.given
    )  # fmt: skip
    assert found.variants["P_PLEIOTROPY"].sum() < 0.01
    assert found.record["network"] is None
    assert found.variants["P_NETWORK"].null_count() == found.variants.height


def test_a_network_that_is_accepted_moves_the_posterior_and_labels_may_stand_alone(world, monkeypatch):
    """Given: networks as they were asked for, whose corrections are against all sharing; no mixture can be fitted."""
    asked = {}

    def fit(features, labels, options, *, simulated, progress):
        asked.update(labels=labels, options=options)
        return NetworkResult(
            correction=[np.full(b.m, -500.0, np.float32) for b in features],
            probability=[b.posterior for b in features],
            simulated=[b.posterior for b in simulated],
            corrections={},
            probabilities={},
            accepted=True,
            ablations={},
            history={},
            options=options,
        )

    def refuse(*arguments, **how):
        raise InputError("3 variants are too few.")

    monkeypatch.setattr("deepwas.pleiotropy.network.stage.fit_network", fit)
    monkeypatch.setattr("deepwas.pleiotropy.network.stage.mixture_labels", refuse)
    path = world.folder / "own.tsv"
    known = {"SNP": [f"rs{world.shared[0]}", "rs0"], "CLASS": ["pleiotropic", "none"]}
    pl.DataFrame(known).write_csv(path, separator="\t")
    found = classify(
        world.priors,
        world.store,
        sumstats=world.z,
        labels=path,
        options=PleiotropyOptions(network=True, network_objective="generative", **HOW),
        **world.given,
    )
    assert asked["options"].objective == found.record["options"]["network_objective"] == "generative"
    assert (asked["labels"].positive, asked["labels"].negative) == (1, 1)
    assert "no mixture labels variants, own.tsv alone does: 3 variants are too few." in found.record["notes"]
    assert found.variants["P_PLEIOTROPY"].sum() < 0.01
    assert found.variants["P_NETWORK"][world.shared].mean() > 0.8
    # Simulated again with the corrections, no variant is shared; P_NETWORK's figures are of before.
    assert found.record["calibration"]["true"] == 0
    assert "P_NETWORK" not in found.record["calibration"]
    assert found.record["network"]["calibration"]["positive"] >= 1


def test_a_classification_stands_without_networks_that_cannot_be_trained_and_without_hops(world, monkeypatch):
    def refuse(*arguments, **how):
        raise InputError("labels are of one kind alone.")

    monkeypatch.setattr("deepwas.pleiotropy.hops.HIGHEST_CORRELATION", 0.05)

    monkeypatch.setattr("deepwas.pleiotropy.network.stage.fit_network", refuse)
    found = classify(
        world.priors, world.store, sumstats=world.z, options=PleiotropyOptions(network=True, **HOW), **world.given
    )
    assert "the networks were not trained: labels are of one kind alone." in found.record["notes"]
    assert found.record["network"] is None
    assert found.variants["P_PLEIOTROPY"][world.shared].mean() > 0.8
    note = next(note for note in found.record["notes"] if note.startswith("HOPS: columns NA."))
    assert "a and b" in note
    assert found.variants["HOPS_PM"].null_count() == found.variants.height


@pytest.mark.parametrize("what", ["labels", "annotations"])
def test_what_networks_alone_read_is_refused_without_them(world, what):
    with pytest.raises(InputError, match=f"{what} are given and network is False"):
        classify(world.priors, world.store, sumstats=world.z, **{what: world.folder / "x.tsv"})


def test_the_prior_network_reads_annotations():
    rng = np.random.default_rng(0)
    G = np.linalg.cholesky(ld_matrix("ar1", SIZE, rng)).T
    model = TraitModel(np.full(2, N), np.eye(2), np.full(2, 16e-4), np.zeros((2, 2)))
    direct = np.full((SIZE, 2), 0.03 * 16e-4)
    blocks = [JointBlock(G, rng.normal(size=(SIZE, 2)), direct, slice(SIZE * i, SIZE * (i + 1))) for i in range(2)]
    columns = rng.normal(size=(2 * SIZE, 3)).astype(np.float32)
    how = {"scored": [slice(0, SIZE)] * 2, "chromosomes": ["1", "1"], "candidates": 16}
    plain = first_pass(blocks, model, **how)
    found = first_pass(blocks, model, annotations=columns.__getitem__, **how)
    for block, before, after in zip(blocks, plain, found, strict=True):
        n = before.free.shared.shape[1]
        np.testing.assert_array_equal(after.free.shared[:, :n], before.free.shared)
        np.testing.assert_array_equal(after.free.shared[:, n:], columns[block.rows])


def test_what_stands_beside_is_read_back_as_it_was(tmp_path):
    report = CalibrationReport({"P_PLEIOTROPY": np.array([0.2, 0.9]), "P_NETWORK": np.array([0.1, 0.8])},
                               np.array([False, True]), 3, [])  # fmt: skip
    record = {"sharing_test": {"p": 0.25}, "network": None, "calibration": report.as_dict()}
    found = beside_module.Beside(report, np.array([0.5, np.nan]), record, ["a note"])
    shared = [np.array([0.1, 0.2], np.float32), np.array([0.3], np.float32)]
    with closing(Computed(2, 2, tmp_path / "c.h5", "x")) as computed:
        assert computed.kept("beside") is None
        computed.keep("beside", *beside_module._written(found, shared))
        computed.keep("beside", *beside_module._written(found, shared))
    with closing(Computed(2, 2, tmp_path / "c.h5", "x")) as computed:
        again, corrections = beside_module._read(*computed.kept("beside"))
    assert (again.record, again.notes, again.calibration.as_dict()) == (record, ["a note"], report.as_dict())
    assert list(again.calibration.probability) == ["P_PLEIOTROPY", "P_NETWORK"]
    np.testing.assert_array_equal(again.score, found.score)
    for a, b in zip(corrections, shared, strict=True):
        np.testing.assert_array_equal(a, b)
    with closing(Computed(2, 2, tmp_path / "c.h5", "other")) as computed:
        assert computed.kept("beside") is None
    alone = beside_module.Beside(None, found.score, record, [])
    assert beside_module._read(*beside_module._written(alone, None))[1] is None
