"""A fit where z-scores do not fit their LD."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import deepwas
from deepwas import InputError
from deepwas.specs import load_spec, validate_json, validate_table
from tests.fit_problem import QUICK, quick_fit, small_problem


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return small_problem(tmp_path_factory)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return quick_fit(tmp_path_factory)


def test_every_block_is_tested_against_its_ld(inputs, fitted):
    folder, store, *_ = inputs
    types = {"integer": pl.Int64, "number": pl.Float64, "string": pl.String}
    schema = {field["name"]: types[field["type"]] for field in load_spec("mismatch")["fields"]}
    table = pl.read_csv(folder / "run" / "mismatch.tsv", separator="\t", null_values="NA", schema=schema)
    validate_table(table, "mismatch", "mismatch.tsv")
    found = fitted.record["mismatch"]
    assert table.height == found["blocks"] == store.n_blocks
    assert (found["action"], found["threshold"]) == ("report", 1.5)
    assert found["noise"] == fitted.record["heritability"]["constant"]["noise"]
    assert table["SCORED"].sum() == fitted.record["size"]["variants_scored"]
    assert found["flagged"] == len(found["flagged_blocks"]) <= 1  # the model holds, but for LD across block boundaries
    assert 0.8 < found["median_small_ratio"] < 1.2
    assert found["median_dropped_ratio"] is None  # the store keeps all but rounding of this panel's spectrum
    assert (folder / "run" / "mismatch_variants.tsv").is_file()


@pytest.fixture(scope="module")
def swapped(inputs, fitted):
    """z-scores with every third sign of one training block wrong, that block, and its rows."""
    _, store, z, *_ = inputs
    section = fitted.variants.group_by("BLOCK", maintain_order=True).agg(pl.col("SECTION").first())
    number = int(section.filter(pl.col("SECTION") == 2)["BLOCK"][1])
    rows = store.block_slice(number)
    sign = pl.when(pl.col("VARIANT").is_between(rows.start, rows.stop - 1) & (pl.col("VARIANT") % 3 == 0)).then(-1)
    return replace(z, frame=z.frame.with_columns(Z=pl.col("Z") * sign.otherwise(1))), number, rows


def test_blocks_at_odds_with_their_ld_are_flagged_and_excluded(inputs, swapped, tmp_path):
    _, store, _, annotations, _ = inputs
    wrong, number, rows = swapped
    options = replace(QUICK, steps=15, cross_fit=False)
    fits = {
        action: deepwas.fit(store, wrong, annotations, options=replace(options, mismatch=action), out=tmp_path / action)
        for action in ("report", "down-weight", "exclude")
    }
    for action, fit in fits.items():
        validate_json(fit.record, "run", action)
        (flagged,) = [b for b in fit.record["mismatch"]["flagged_blocks"] if b["block"] == number]
        assert "small" in flagged["flag"]
        assert flagged["small_ratio"] > 1.5
        assert {"report": 1, "exclude": 0}.get(action, flagged["weight"]) == flagged["weight"]
        (rotation,) = fit.record["rotations"]
        assert (number in rotation["train_blocks"]) == (action != "exclude")
        assert fit.variants.filter(pl.col("BLOCK") == number)["SNPVAR_PLAIN"].null_count() == 0
        assert fit.variants.filter(pl.col("BLOCK") == number).height == rows.stop - rows.start
        counted = [c for c in fit.record["counts"] if "flagged for mismatch" in c["reason"]]
        assert sum(c["count"] for c in counted) >= rows.stop - rows.start
        assert all(("left out of training" in c["reason"]) == (action == "exclude") for c in counted)
    weight = [b["weight"] for b in fits["down-weight"].record["mismatch"]["flagged_blocks"] if b["block"] == number]
    assert 0 < weight[0] < 1 / 1.5
    predicted = [fit.variants["SNPVAR_PLAIN"].to_numpy() for fit in fits.values()]
    assert not np.allclose(predicted[0], predicted[1], rtol=1e-4)
    # The wrong signs add noise to what the constant prior is fitted on, and nothing else does.
    noise = {action: fit.record["rotations"][0]["constant"]["noise"] for action, fit in fits.items()}
    assert noise["exclude"] < noise["report"]


def test_flags_everywhere_leave_nothing_to_train_on(inputs, tmp_path, monkeypatch):
    _, store, z, annotations, _ = inputs
    from deepwas.training.mismatch import Mismatch

    monkeypatch.setattr(Mismatch, "flagged", property(lambda self: np.ones(self.table.height, dtype=bool)))
    with pytest.raises(InputError, match=r"LD blocks are flagged.*--mismatch-threshold"):
        deepwas.fit(store, z, annotations, options=replace(QUICK, mismatch="exclude"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
