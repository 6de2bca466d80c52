"""The command on finished runs of three traits: their cross-fitted priors and tests of LD; notes; what cannot go on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import deepwas
from deepwas import FitOptions
from deepwas.cli import main
from deepwas.errors import InputError
from deepwas.pleiotropy import classify
from deepwas.pleiotropy.joint import read_traits
from tests.fit_problem import tiny_problem

NAMES = ("a", "b", "c")
# By LD block, the effects of its best-kept variant on a and b, in units of z: on no line, some in every rotation.
ACTING = {
    0: (14.0, -8.0),
    1: (9.0, 13.0),
    2: (-7.0, -15.0),
    4: (8.0, -11.0),
    5: (-15.0, 9.0),
    6: (12.0, 12.0),
    8: (-10.0, 16.0),
}
SHORT = ("--rounds", "2", "--max-effects", "3", "--candidates", "24", "--calibration-blocks", "2", "--draws", "4")


def call(*arguments) -> int:
    try:
        main([str(x) for x in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder with the runs a and b, on which seven variants act, and c, on which nothing does; and their store."""
    problem, store, z, annotations, _ = tiny_problem(tmp_path_factory)
    folder = tmp_path_factory.mktemp("fitted")
    rng = np.random.default_rng(0)
    values = []
    for number in range(store.n_blocks):
        G = np.asarray(store.block(number).factor, np.float64)
        effects = np.zeros((G.shape[1], 3))
        if number in ACTING:
            effects[np.argmax((G**2).sum(axis=0))] = [*ACTING[number], 0.0]
        values.append(G.T @ (G @ effects + rng.normal(size=(len(G), 3))))
    score = np.concatenate(values)[z.frame["VARIANT"].to_numpy()]
    values = dict(zip(NAMES, score.T, strict=True))
    for name, own in values.items():
        trait = replace(z, frame=z.frame.with_columns(pl.Series("Z", own)))
        # Of nine blocks and seven effects a network learns noise; that of c is looked at for its prior alone.
        network = "linear" if name == "c" else "constant"
        options = FitOptions(network=network, folds=3, steps=20, evaluate_every=10)
        deepwas.fit(store, trait, annotations if name == "c" else None, options=options, out=folder / name)
    return folder, problem / "ld.h5"


@pytest.fixture(scope="module")
def made(runs):
    folder, ld = runs
    assert call("pleiotropy", *(folder / name for name in NAMES), "--ld", ld, "--out", folder / "out", *SHORT) == 0
    return folder / "out"


def test_priors_and_mismatch_are_those_of_the_runs(runs, made):
    folder, _ = runs
    record = json.loads((made / "pleiotropy.json").read_text())
    assert [x["name"] for x in record["traits"]] == list(NAMES)
    table = pl.read_csv(
        made / "pleiotropy.tsv.gz", separator="\t", null_values="NA", schema_overrides={"CHR": pl.String}
    )
    flags = dict(table.select("BLOCK", "FLAG").unique().iter_rows())
    for trait in record["traits"]:
        name, prior = trait["name"], trait["prior"]
        assert prior["kind"] == "run"
        assert prior["cross_fitted"]
        own = deepwas.load_fit(folder / name)
        known = own.variants.select("SNP", pl.col("SNPVAR_CROSS").cast(pl.Float64).alias("F"))
        joined = table.join(known, on="SNP", how="inner")
        assert joined.height == table.height > 200
        np.testing.assert_allclose(joined[f"SNPVAR_{name}"], joined["F"], rtol=1e-5)
        assert record["mismatch"][name]["tested"]
        mismatch = pl.read_csv(folder / name / "mismatch.tsv", separator="\t", null_values="NA")
        for block, flag in mismatch.select("BLOCK", "FLAG").iter_rows():
            if flag is not None:
                assert f"{name}={flag}" in flags[block]
        gain = prior["held_out_gain"]
        said = any(note.startswith(f"{name}: on held-out blocks its prior loses") for note in record["notes"])
        assert said == (gain is not None and gain < 0)
    assert not any("no run says" in note for note in record["notes"])
    kept = table["LD_KEPT"].to_numpy()
    assert 0 < kept.min() < kept.max() <= 1


def test_shared_effects_are_found_and_a_silent_trait_is_left_out(made):
    table = pl.read_csv(made / "pleiotropy.tsv.gz", separator="\t", null_values="NA")
    both, third = (table.select(pl.col(x).sum()).item() for x in ("P_PLEIOTROPY", "PIP_c"))
    assert 5 < both < 9
    assert third < 0.2 * both
    loci = pl.read_csv(made / "loci.tsv", separator="\t", null_values="NA").filter(pl.col("P_SHARED") > 0.5)
    assert set(loci["BLOCK"]) == set(ACTING)
    assert set(loci["TRAITS"]) == {"a,b"}


def test_what_differs_is_said_where_a_classification_cannot_go_on(runs, made, capsys):
    folder, ld = runs
    copy = folder / "begun"
    shutil.copytree(made, copy)
    record = json.loads((copy / "pleiotropy.json").read_text())
    (copy / "pleiotropy.json").write_text(json.dumps(record | {"status": "running"}))
    command = ("pleiotropy", *(folder / name for name in NAMES), "--ld", ld, "--out", copy, *SHORT, "--resume")
    capsys.readouterr()
    assert call(*command, "--seed", "3") == 2
    assert "cannot resume" in (said := " ".join(capsys.readouterr().err.split()))
    assert "(seed was 0, is 3)" in said
    assert call(*command, "--no-vertical") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "vertical was True, is False" in said
    assert "trait_effects" in said
    fewer = ("pleiotropy", folder / "a", folder / "b", *command[4:])
    assert call(*fewer) == 2
    assert "traits" in capsys.readouterr().err


def test_without_vertical_nothing_is_said_of_effects_that_were_given(runs):
    folder, ld = runs
    options = deepwas.pleiotropy.PleiotropyOptions(
        rounds=1, max_effects=2, candidates=16, vertical=False, calibration_blocks=0
    )
    found = classify({name: folder / name for name in "ab"}, ld, options=options)
    assert not any("T was given" in note for note in found.record["notes"])
    assert set(found.pairs["PAIR_LOG_ODDS"].drop_nulls()) == {0.0}


def test_runs_on_one_store_whose_gwas_are_of_two_builds_go_together(runs):
    """A GWAS of another build can be matched to the store by identifiers; its positions do not matter then."""
    folder, ld = runs
    fits = {name: deepwas.load_fit(folder / name) for name in NAMES[:2]}
    inputs = fits["b"].record["inputs"]
    fits["b"].record["inputs"] = inputs | {"sumstats": inputs["sumstats"] | {"build": "GRCh38", "match": "rsid"}}
    with deepwas.open_ld(ld) as store:
        traits = read_traits(fits, store)
    assert traits.names == ("a", "b")
    assert traits.observed.sum() > 200
    fits["b"].record["inputs"] = inputs | {"ld": inputs["ld"] | {"genome_build": "GRCh38"}}
    with deepwas.open_ld(ld) as store, pytest.raises(InputError, match="of different genome builds: GRCh37 and GRCh38"):
        read_traits(fits, store)
