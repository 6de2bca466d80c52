"""`fit` from real files to priors: what it records, that it learns, that it repeats itself."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import deepwas
from deepwas import FitOptions
from deepwas.specs import load_spec, validate_json
from tests.fit_problem import QUICK, quick_fit, small_problem


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return small_problem(tmp_path_factory)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return quick_fit(tmp_path_factory)


def test_the_prior_learns_what_matters(inputs, fitted):
    *_, problem = inputs
    held = fitted.record["held_out"]["cross_fitted"]
    assert held["gain"] > 2 * held["standard_error"] > 0
    found = np.log(fitted.variants["SNPVAR_CROSS"].to_numpy())
    assert np.corrcoef(found, np.log(problem.f))[0, 1] > 0.8
    h2 = fitted.record["heritability"]["cross_fitted"]
    assert abs(h2["h2"] - np.sum(problem.beta**2)) < 4 * h2["standard_error"]
    assert h2["scale"] == pytest.approx(1, abs=0.5)


def test_the_record_meets_its_specification_and_adds_up(inputs, fitted):
    folder, store, z, *_ = inputs
    record = json.loads((folder / "run" / "run.json").read_text())
    validate_json(record, "run", "run.json")
    assert record["status"] == "complete"
    size = record["size"]
    assert (size["variants_scored"], size["variants_modelled"]) == (z.n_matched, store.n_variants)
    held = record["held_out"]["cross_fitted"]
    assert sorted(held["blocks"]) == list(range(size["blocks"]))
    assert held["gain"] == pytest.approx(held["log_likelihood"] - held["log_likelihood_constant"], abs=1e-6)
    assert held["gain"] == pytest.approx(sum(held["gain_by_block"]))
    assert held["standard_error"] == pytest.approx(np.sqrt(size["blocks"]) * np.std(held["gain_by_block"], ddof=1))
    for rotation in record["rotations"]:
        parts = [rotation[f"{name}_blocks"] for name in ("train", "validation", "test")]
        assert sorted(itertools.chain(*parts)) == list(range(size["blocks"]))
    chromosome = fitted.variants.group_by("SECTION").agg(pl.col("CHR").n_unique())
    assert chromosome["CHR"].to_list() == [1] * 4
    for kind, column in (("plain", "SNPVAR_PLAIN"), ("cross_fitted", "SNPVAR_CROSS")):
        assert record["heritability"][kind]["h2"] == pytest.approx(fitted.variants[column].sum(), rel=1e-9)
    shares = [row["share"] for row in record["sensitivity"]]
    assert shares == [1.0, 0.9, 0.75]
    first = record["sensitivity"][0]
    constant = record["heritability"]["constant"]
    assert first["h2_noise_learned"] == pytest.approx(constant["h2"], rel=1e-6)
    blocks = pl.read_csv(folder / "run" / "blocks.csv")
    assert blocks["GAIN"].sum() == pytest.approx(held["gain"])


def test_cross_fitted_priors_come_from_the_network_that_did_not_see_them(inputs, fitted):
    _, _, _, annotations, _ = inputs
    from deepwas.inputs import VariantInputs
    from deepwas.networks import predict_log_variance

    for r, (network, standardiser) in enumerate(zip(fitted.networks, fitted.standardisers, strict=True)):
        rows = (fitted.variants["SECTION"] == r).to_numpy()
        expected = np.exp(predict_log_variance(network, VariantInputs(standardiser.transform(annotations))))[rows, 0]
        np.testing.assert_allclose(fitted.variants["SNPVAR_CROSS"].to_numpy()[rows], expected, rtol=1e-5)
    np.testing.assert_allclose(fitted.variants["SNPVAR_PLAIN"], fitted.predict(annotations), rtol=1e-5)


@pytest.mark.parametrize(("cross", "which"), [(None, "scored"), (False, "all"), (True, "all")])
def test_priors_file_is_what_was_recorded(inputs, fitted, cross, which):
    folder, *_ = inputs
    path = folder / f"priors_{cross}_{which}.tsv.gz"
    note = fitted.write_priors(path, cross_fitted=cross, which=which)
    with gzip.open(path, "rt") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert list(rows[0])[:8] == ["CHR", "SNP", "BP", "A1", "A2", "SNPVAR", "Z", "N"]
    total = sum(float(row["SNPVAR"]) for row in rows)
    record = json.loads((folder / "run" / "run.json").read_text())
    (found,) = [x for x in record["priors"] if x["file"] == path.name]
    assert found == note
    assert found["h2"] == pytest.approx(total, rel=1e-9)
    assert found["rows"] == len(rows)
    if which == "all":
        kind = "plain" if cross is False else "cross_fitted"
        assert total == pytest.approx(record["heritability"][kind]["h2"], rel=1e-6)
    z = fitted.variants.filter(pl.col("Z").is_not_null())
    assert [float(r["Z"]) for r in rows if r["Z"] != "NA"] == z["Z"].to_list()


def test_priors_file_passes_the_reference_validator(inputs, fitted):
    folder, *_ = inputs
    import warnings

    fitted.write_priors(folder / "priors.tsv")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # frictionless' own dependencies warn on import
        from frictionless import Dialect, Resource, Schema, formats, system

        with system.use_context(trusted=True):
            resource = Resource(
                path=str(folder / "priors.tsv"),
                schema=Schema.from_descriptor(load_spec("priors")),
                dialect=Dialect(controls=[formats.CsvControl(delimiter="\t")]),
            )
            report = resource.validate()
    assert report.valid, report.flatten(["rowNumber", "fieldName", "message"])[:3]


def test_a_saved_fit_is_read_back_whole(inputs, fitted):
    folder, _, _, annotations, _ = inputs
    again = deepwas.load_fit(folder / "run")
    assert again.variants.equals(fitted.variants)
    assert again.options == QUICK
    np.testing.assert_allclose(again.predict(annotations), fitted.predict(annotations), rtol=1e-6)


def test_same_seed_same_figures_other_seed_other_figures(inputs, fitted):
    _, store, z, annotations, _ = inputs
    options = replace(QUICK, network="mlp", hidden=(8,), cross_fit=False)
    first, second, third = (
        deepwas.fit(store, z, annotations, options=replace(options, seed=seed)).record for seed in (3, 3, 4)
    )
    assert first["held_out"] == second["held_out"]
    assert first["heritability"] == second["heritability"]
    assert first["held_out"]["plain"]["gain"] != third["held_out"]["plain"]["gain"]


@pytest.mark.parametrize("noise", [None, 1.0])
def test_the_constant_prior_needs_no_annotations_and_has_no_gain(inputs, noise):
    _, store, z, _, problem = inputs
    fit = deepwas.fit(store, z, options=FitOptions(network="constant", folds=4, noise=noise))
    assert fit.record["held_out"]["cross_fitted"]["gain"] == 0
    h2 = fit.record["heritability"]["constant"]
    if noise is None:  # held at 1, it leaves the LD that the block boundaries cut to the heritability
        assert abs(h2["h2"] - np.sum(problem.beta**2)) < 4 * h2["standard_error"]
    assert h2["noise_learned"] == (noise is None)
    assert f"constant prior over {store.n_blocks} LD blocks" in h2["standard_error_of"]
    assert fit.priors()["SNPVAR"].n_unique() == 4


def test_cg_and_cholesky_train_to_the_same_prior(inputs):
    _, store, z, annotations, _ = inputs
    found = {}
    for solver in ("cg", "cholesky"):
        options = replace(QUICK, solver=solver, cross_fit=False)
        found[solver] = deepwas.fit(store, z, annotations, options=options).record["held_out"]["plain"]
    gap = abs(found["cg"]["gain"] - found["cholesky"]["gain"])
    assert gap < 0.25 * found["cholesky"]["standard_error"]


def test_too_few_cg_steps_are_raised_and_said(inputs, monkeypatch):
    _, store, z, annotations, _ = inputs
    options = replace(QUICK, solver="cg", rtol=1e-4, cross_fit=False, steps=15)
    from deepwas.training import objective

    monkeypatch.setattr(objective.Solve, "__init__", _short_solve(objective.Solve.__init__))
    events = deepwas.fit(store, z, annotations, options=options).record["rotations"][0]["network"]["events"]
    assert any("CG steps raised from 2 to 4" in event for event in events)


def _short_solve(original):
    def patched(self, solver, probes=16, rtol=1e-2, max_steps=2, **rest):
        original(self, solver, probes, rtol, max_steps, **rest)

    return patched
