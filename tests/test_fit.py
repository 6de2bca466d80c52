"""`fit` from real files to priors: what it records, that it learns, that it repeats itself, and that it resumes."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import deepwas
from deepwas import FitOptions, InputError
from deepwas.specs import load_spec, validate_json, validate_table
from tests.synthetic import write_problem

QUICK = FitOptions(network="linear", folds=4, steps=90, evaluate_every=15, batch_blocks=4, learning_rate=0.05)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Store, harmonised z-scores, annotations and truth of a small problem, as files."""
    folder = tmp_path_factory.mktemp("problem")
    problem = write_problem(folder)
    options = deepwas.LDOptions(build="GRCh37", min_block=20, max_block=80, eigenvalue_floor=0.05)
    store = deepwas.build_ld(problem.genotypes, folder / "ld.h5", options)
    z = deepwas.harmonise(
        deepwas.read_sumstats(problem.sumstats),
        store.variants,
        n_panel=store.n_samples,
        genome_build=store.genome_build,
        options=deepwas.QCOptions(exclude="none"),
        store_checksum=store.checksum,
    )
    z.write_parquet(folder / "z.parquet")
    annotations = deepwas.read_annotations(problem.annotations, store.variants)
    return folder, store, z, annotations, problem


@pytest.fixture(scope="module")
def fitted(inputs):
    folder, store, z, annotations, _ = inputs
    return deepwas.fit(store, z, annotations, options=QUICK, out=folder / "run")


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
    options = replace(QUICK, solver="cg", rtol=1e-4, cross_fit=False)
    from deepwas.training import objective

    monkeypatch.setattr(objective.Solve, "__init__", _short_solve(objective.Solve.__init__))
    events = deepwas.fit(store, z, annotations, options=options).record["rotations"][0]["network"]["events"]
    assert any("CG steps raised from 2 to 4" in event for event in events)


def _short_solve(original):
    def patched(self, solver, probes=16, rtol=1e-2, max_steps=2, **rest):
        original(self, solver, probes, rtol, max_steps, **rest)

    return patched


# --- LD mismatch ---


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


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"mismatch": "ignore"}, "report, down-weight, exclude"),
        ({"mismatch_threshold": 0.5}, "a ratio, 1 or more"),
        ({"factor_dtype": "bfloat16"}, "float32, float16, int8"),
        ({"memory": -1.0}, "memory is -1"),
    ],
)
def test_wrong_options_are_refused(wrong, match):
    with pytest.raises(InputError, match=match):
        FitOptions(**wrong)


# --- interruption ---

_SCRIPT = """
import sys
import deepwas
folder, resume = sys.argv[1], sys.argv[2] == "resume"
store = deepwas.open_ld(folder + "/ld.h5")
options = deepwas.FitOptions(
    network="mlp", hidden=(8,), folds=4, steps=120, evaluate_every=10, batch_blocks=4, patience=20, solver=sys.argv[4]
)
deepwas.fit(store, folder + "/z.parquet", folder + "/annotations.tsv", options=options, out=sys.argv[3], resume=resume)
"""


def _metrics(run):
    """Every figure of a run that does not depend on the clock."""
    record = json.loads((run / "run.json").read_text())
    tables = {path.parent.name: pl.read_csv(path) for path in sorted(run.glob("rotation_*/metrics.csv"))}
    return record, tables


def _evaluations(run):
    """How many evaluations a run has recorded so far, over its rotations."""
    return sum(max(len(path.read_text().splitlines()) - 1, 0) for path in run.glob("rotation_*/metrics.csv"))


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "evaluations"), [("cholesky", 1), ("cg", 9), ("cholesky", 20)])
def test_a_killed_run_resumes_to_the_same_figures(inputs, tmp_path, solver, evaluations):
    folder, *_ = inputs
    reference = folder / f"uninterrupted_{solver}"
    if not reference.exists():
        subprocess.run([sys.executable, "-c", _SCRIPT, folder, "new", reference, solver], check=True)
    run = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", _SCRIPT, folder, "new", run, solver], stderr=subprocess.DEVNULL)
    # At a random moment after so many evaluations: in training, in an evaluation, or in writing a checkpoint.
    deadline = time.monotonic() + 120
    while _evaluations(run) < evaluations:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.1))
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert json.loads((run / "run.json").read_text())["status"] == "running"
    with pytest.raises(InputError, match="not finished"):
        deepwas.load_fit(run)
    subprocess.run([sys.executable, "-c", _SCRIPT, folder, "resume", run, solver], check=True)
    (expected, tables), (found, resumed) = _metrics(reference), _metrics(run)
    for kind in ("plain", "cross_fitted"):
        assert found["held_out"][kind]["gain"] == pytest.approx(expected["held_out"][kind]["gain"], rel=1e-6)
        assert found["heritability"][kind]["h2"] == pytest.approx(expected["heritability"][kind]["h2"], rel=1e-6)
    assert sorted(resumed) == sorted(tables)
    for name, table in tables.items():
        assert resumed[name]["step"].to_list() == table["step"].to_list()
        for column in ("train_loss", "validation_gain", "noise"):
            np.testing.assert_allclose(resumed[name][column], table[column], rtol=1e-6, atol=1e-6)


def test_a_run_resumes_only_with_what_it_was_started_with(inputs, fitted):
    folder, store, z, annotations, _ = inputs
    done = deepwas.fit(store, z, annotations, options=QUICK, out=folder / "run", resume=True)
    assert done.record["created"] == fitted.record["created"]
    with pytest.raises(InputError, match=r"options: steps differs: the run has 90, now 70"):
        deepwas.fit(store, z, annotations, options=replace(QUICK, steps=70), out=folder / "run", resume=True)
    fewer = annotations.select(["active"])
    with pytest.raises(InputError, match="inputs: annotations differs"):
        deepwas.fit(store, z, fewer, options=QUICK, out=folder / "run", resume=True)
    with pytest.raises(InputError, match=r"not empty.*--resume"):
        deepwas.fit(store, z, annotations, options=QUICK, out=folder / "run")


# --- wrong input ---


def test_inputs_that_do_not_fit_together_are_refused(inputs, tmp_path):
    folder, store, z, annotations, problem = inputs
    with pytest.raises(InputError, match="needs annotations"):
        deepwas.fit(store, z, options=QUICK)
    with pytest.raises(InputError, match="does not exist"):
        deepwas.fit(store, z, annotations, options=QUICK, out=tmp_path / "no" / "run")
    other = deepwas.build_ld(
        problem.genotypes, tmp_path / "other.h5", deepwas.LDOptions(build="GRCh37", min_block=30, max_block=90)
    )
    with pytest.raises(InputError, match="another LD store"):
        deepwas.fit(other, z, annotations, options=QUICK)
    with pytest.raises(InputError, match="made for the LD store"):
        deepwas.fit(other, folder / "z.parquet", annotations, options=QUICK)
    with pytest.raises(InputError, match="already harmonised"):
        deepwas.fit(store, z, annotations, options=QUICK, qc=deepwas.QCOptions())
    with pytest.raises(InputError, match="sumstats is a int"):
        deepwas.fit(store, 3, annotations, options=QUICK)


def _whitening_is_a_mistake(monkeypatch):
    from deepwas.training import job

    def whiten(*_, **__):
        raise AssertionError("whitening has begun")

    monkeypatch.setattr(job, "open_trait", whiten)


def test_what_cannot_be_fitted_is_refused_before_whitening(inputs, tmp_path, monkeypatch):
    _, store, z, annotations, _ = inputs
    _whitening_is_a_mistake(monkeypatch)
    with pytest.raises(InputError, match=r"cannot make 90 sections"):
        deepwas.fit(store, z, annotations, options=replace(QUICK, folds=90), out=tmp_path / "run")
    with pytest.raises(InputError, match=r"not in the order of the LD store.*Sort them by VARIANT"):
        deepwas.fit(store, replace(z, frame=z.frame.reverse()), annotations, options=QUICK)
    # One N in each block is enough for LD scores, whatever it is.
    steps = replace(z, frame=z.frame.with_columns(N=1e4 + pl.col("CHR").cast(pl.Float64)))
    with pytest.raises(AssertionError, match="whitening has begun"):
        deepwas.fit(store, steps, annotations, options=replace(QUICK, objective="ld-score"))
    rows = store.block_slice(3)
    here = (pl.col("VARIANT") >= rows.start) & (pl.col("VARIANT") < rows.stop - 1)
    unequal = replace(z, frame=z.frame.with_columns(N=pl.when(here).then(1.5e4).otherwise("N")))
    text = rf"N differs between variants in 1 of {store.n_blocks} LD blocks \(first: block 3\).*--objective likelihood"
    with pytest.raises(InputError, match=text):
        deepwas.fit(store, unequal, annotations, options=replace(QUICK, objective="ld-score"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for options in (QUICK, replace(QUICK, objective="ld-score", network="constant")):  # the constant prior uses neither
        with pytest.raises(AssertionError, match="whitening has begun"):
            deepwas.fit(store, unequal, annotations, options=options)


# --- files of whitened LD ---


def _with_gaps(z):
    """z-scores of most variants, so that the trait has factors of its own."""
    return replace(z, frame=z.frame.filter(pl.col("VARIANT") % 7 != 3))


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_fit_without_a_folder_keeps_its_factors_in_a_temporary_file(inputs, tmp_path, monkeypatch, interrupted):
    import h5py

    _, store, z, annotations, _ = inputs
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen = {}

    def watch(what, done, total):
        if what == "training" and not seen:
            for path in tmp_path.glob("*/whitened*.h5"):
                with h5py.File(path) as handle:
                    seen[path.name] = len(handle.get("factors", ()))
            if interrupted:
                raise KeyboardInterrupt

    options = replace(QUICK, steps=15, cross_fit=False, memory=0.0)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            deepwas.fit(store, _with_gaps(z), annotations, options=options, progress=watch)
    else:
        deepwas.fit(store, _with_gaps(z), annotations, options=options, progress=watch)
    assert seen == {"whitened.h5": store.n_blocks, "whitened_0.9.h5": 0, "whitened_0.75.h5": 0}
    assert list(tmp_path.iterdir()) == []


def test_no_cache_of_whitened_ld_whole_or_unfinished_outlives_a_fit(inputs, tmp_path):
    _, store, z, annotations, _ = inputs
    run, seen = tmp_path / "run", []

    def watch(what, done, total):
        if what == "training" and not seen:
            seen.extend(sorted(path.name for path in run.glob("whitened*")))
            (run / ".0a1b2c3d.partial.whitened.h5").write_bytes(b"x")
            (run / ".0a1b2c3d.partial.whitened_0.9.h5").write_bytes(b"x")

    options = replace(QUICK, steps=15, cross_fit=False)
    deepwas.fit(store, _with_gaps(z), annotations, options=options, out=run, progress=watch)
    assert seen == ["whitened.h5", "whitened_0.75.h5", "whitened_0.9.h5"]
    assert [path.name for path in run.iterdir() if "whitened" in path.name] == []


# --- windows with flanks ---


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """Windows of up to 60 candidates, 20 of them scored; one window, between sections 0 and 1, has no z-score."""
    folder = tmp_path_factory.mktemp("windows")
    problem = write_problem(folder, chromosomes=1, variants=960, strength=2.5)
    options = deepwas.LDOptions(build="GRCh37", window=60_000, step=20_000, eigenvalue_floor=0.05)
    store = deepwas.build_ld(problem.genotypes, folder / "ld.h5", options)
    z = deepwas.harmonise(
        deepwas.read_sumstats(problem.sumstats),
        store.variants,
        n_panel=store.n_samples,
        genome_build=store.genome_build,
        options=deepwas.QCOptions(exclude="none"),
        store_checksum=store.checksum,
    )
    rows = store.scored_slice(13)
    z = replace(z, frame=z.frame.filter(~pl.col("VARIANT").is_between(rows.start, rows.stop - 1)))
    return store, z, deepwas.read_annotations(problem.annotations, store.variants)


def _predictions(fit, annotations):
    """f of every variant of the store by each rotation's network, (rotations, M)."""
    from deepwas.inputs import VariantInputs
    from deepwas.networks import predict_log_variance

    pairs = zip(fit.networks, fit.standardisers, strict=True)
    return np.exp(
        np.stack([predict_log_variance(network, VariantInputs(s.transform(annotations)))[:, 0] for network, s in pairs])
    )


def test_with_flanks_no_network_sees_annotations_it_is_tested_on(windows, monkeypatch):
    from deepwas.training import job

    store, z, annotations = windows
    assert store.flanked
    priors = []

    def watched(blocks, f, *rest):
        priors.append([(b.number, b.rows, own) for b, own in zip(blocks, f, strict=True)])
        return heritability(blocks, f, *rest)

    heritability = job.heritability
    monkeypatch.setattr(job, "heritability", watched)
    options = replace(QUICK, steps=45)
    first = deepwas.fit(store, z, annotations, options=options)

    section = first.variants.select("SNP", "SECTION")
    section = store.variants.select("SNP").join(section, on="SNP", how="left", maintain_order="left")["SECTION"]
    section = section.fill_null(-1).to_numpy()
    assert (section < 0).sum() == 20
    assert {section[store.scored_slice(number).start] for number in (12, 14)} == {0, 1}
    changed = annotations.values.copy()
    changed[section == 1] = np.random.default_rng(0).permutation(changed[section == 1]) + 1
    second = deepwas.fit(store, z, replace(annotations, values=changed), options=options)
    before, after = (_predictions(fit, annotations) for fit in (first, second))
    assert first.record["rotations"][1]["network"]["best_step"] > 0
    np.testing.assert_array_equal(before[1], after[1])
    for r in (0, 2, 3):
        assert np.abs(np.log(before[r] / after[r])).max() > 1e-3

    # What was left out is counted, once, and tested all the same.
    used = [set(r["train_blocks"] + r["validation_blocks"] + r["test_blocks"]) for r in first.record["rotations"]]
    everything = set(range(store.n_blocks)) - {13}
    left = set.union(*(everything - x for x in used))
    (counted,) = [c for c in first.record["counts"] if "reach into a test section" in c["reason"]]
    sizes = [store.scored_slice(number).stop - store.scored_slice(number).start for number in left]
    assert counted["count"] == sum(sizes) > 0
    assert sorted(first.record["held_out"]["cross_fitted"]["blocks"]) == sorted(everything)

    # A variant has the prior of the section that scores it in every flank; one that none scores, of the block's own.
    plain, cross = priors[:2]
    others = 0
    for number, rows, f in cross:
        own = section[store.scored_slice(number).start]
        here = np.arange(rows.start, rows.stop)
        by = np.where(section[here] < 0, own, section[here])
        others += int((by != own).sum())
        np.testing.assert_allclose(f, before[by, here], rtol=1e-5)
    assert others > 0
    for _, rows, f in plain:
        np.testing.assert_allclose(f, before[0, rows], rtol=1e-5)


def test_windows_that_all_reach_the_test_section_are_refused(windows, monkeypatch):
    store, z, annotations = windows
    _whitening_is_a_mistake(monkeypatch)
    with pytest.raises(InputError, match="fewer folds, shorter windows"):
        deepwas.fit(store, z, annotations, options=replace(QUICK, folds=40))


def test_variants_that_no_block_scores_enter_no_figure(tmp_path):
    M, rng = 220, np.random.default_rng(0)
    R = 0.6 ** np.abs(np.subtract.outer(np.arange(M), np.arange(M)))
    names = [f"rs{i}" for i in range(M)]
    table = pl.DataFrame({"CHR": "1", "SNP": names, "BP": np.arange(1, M + 1), "A1": "A", "A2": "C", "FREQ": 0.3})
    blocks = [(s, deepwas.LDBlock.from_correlation(R[s : s + 20, s : s + 20])) for s in range(0, 200, 20)]
    Z = np.append(1.3 * rng.normal(size=200), np.full(20, 50.0))
    N = np.append(np.full(200, 1e4), np.full(20, 1e6))
    frame = table.select("CHR", "SNP", "BP", "A1", "A2", FRQ="FREQ").with_row_index("VARIANT")
    frame = frame.with_columns(Z=pl.Series(Z), N=pl.Series(N))
    z = deepwas.HarmonisedSumstats(frame, M, "by hand", "0" * 64, "fastGWA", "position")
    options = FitOptions(network="constant", folds=4)
    found = {}
    with deepwas.write_ld(tmp_path / "ld.h5", table, blocks, build="hg19", n_samples=5000) as store:
        for name, some in (("all", z), ("scored", replace(z, frame=frame.head(200)))):
            found[name] = deepwas.fit(store, some, options=options).record
    size = found["all"]["size"]
    assert (size["variants_scored"], size["mean_sample_size"]) == (200, 1e4)
    assert size["mean_chi2"] == pytest.approx(np.mean(Z[:200] ** 2))
    assert size == found["scored"]["size"]
    assert found["all"]["heritability"] == found["scored"]["heritability"]


@pytest.mark.parametrize("given", [("--min-block", "200"), ("--max-block", "800"), ("--blocks", "blocks.bed")])
def test_windows_are_not_cut_by_size(inputs, tmp_path, given):
    from typer.testing import CliRunner

    from deepwas.cli.ld import app

    *_, problem = inputs
    command = ["build", "--genotypes", str(problem.genotypes.with_suffix("")), "--out", str(tmp_path / "ld.h5")]
    command += ["--build", "GRCh37", "--window", "6e4", "--step", "2e4", *given]
    told = CliRunner().invoke(app, command)
    assert isinstance(told.exception, InputError)
    assert given[0].strip("-").replace("-", "_") in str(told.exception).replace("-", "_")
    assert list(tmp_path.iterdir()) == []


def test_blocks_without_a_z_score_are_left_out_and_counted(inputs):
    _, store, z, annotations, _ = inputs
    from dataclasses import replace as with_

    rows = store.block_slice(3)
    some = with_(z, frame=z.frame.filter(~pl.col("VARIANT").is_between(rows.start, rows.stop - 1)))
    fit = deepwas.fit(store, some, annotations, options=replace(QUICK, steps=15))
    assert fit.record["size"]["blocks"] == store.n_blocks - 1
    assert sorted(fit.record["held_out"]["cross_fitted"]["blocks"]) == [b for b in range(store.n_blocks) if b != 3]
    assert fit.block_table()["BLOCK"].to_list() == fit.variants["BLOCK"].unique(maintain_order=True).to_list()
    (gone,) = [c for c in fit.record["counts"] if "without any z-score" in c["reason"]]
    assert gone["count"] == rows.stop - rows.start
    assert fit.priors(which="all").height == store.n_variants - gone["count"]


def test_a_damaged_store_is_refused_and_leaves_nothing(inputs, tmp_path):
    import shutil

    import h5py

    folder, _, z, annotations, _ = inputs
    shutil.copy(folder / "ld.h5", tmp_path / "ld.h5")
    with h5py.File(tmp_path / "ld.h5", "r+") as handle:
        handle["blocks/00002/factor"][0, 0] = np.nan
    with deepwas.open_ld(tmp_path / "ld.h5") as store, pytest.raises(InputError, match="block 2: it holds NaN"):
        deepwas.fit(store, z, annotations, options=QUICK, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_outcomes_are_refused_as_annotations(inputs, fitted):
    folder, store, *_, problem = inputs
    fitted.write_priors(folder / "taken.tsv")
    for path, column in ((problem.sumstats, "N, BETA, SE, P"), (folder / "taken.tsv", "SNPVAR, Z, N")):
        with pytest.raises(InputError, match=rf"column {column}.*outcome of a GWAS"):
            deepwas.read_annotations(path, store.variants)
    with pytest.raises(InputError, match="outcome of a GWAS"):
        deepwas.read_annotations(folder / "z.parquet", store.variants)
    with pytest.raises(InputError, match=r"give deepwas\.read_annotations"):
        fitted.predict("annotations.tsv")


@pytest.mark.slow
def test_an_interrupt_ends_with_130_and_the_run_resumes(inputs, tmp_path):
    folder, *_ = inputs
    command = [sys.executable, "-c", "import sys; from deepwas.cli import main; main()", "fit"]
    command += ["--ld", folder / "ld.h5", "--sumstats", folder / "z.parquet", "--out", tmp_path / "run"]
    command += ["--annotations", folder / "annotations.tsv", "--network", "mlp", "--folds", "4", "--patience", "50"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while _evaluations(tmp_path / "run") < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in said.splitlines()[-1]
    assert "--resume" in said.splitlines()[-1]
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert deepwas.load_fit(tmp_path / "run").record["status"] == "complete"


def test_broken_run_folders_are_refused(inputs, fitted, tmp_path):
    import shutil

    with pytest.raises(InputError, match="not a run folder"):
        deepwas.load_fit(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(inputs[0] / "run", run)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"format_version": 99}))
    with pytest.raises(InputError, match="newer deepwas"):
        deepwas.load_fit(run)
    (run / "run.json").write_text(json.dumps(record | {"options": record["options"] | {"folds": 1}}))
    with pytest.raises(InputError, match=r"at options/folds: 1 is less than the minimum of 3"):
        deepwas.load_fit(run)
    (run / "run.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        deepwas.load_fit(run)
    (run / "run.json").write_text(json.dumps(record))
    shutil.rmtree(run / "rotation_1" / "network")
    with pytest.raises(InputError, match="incomplete"):
        deepwas.load_fit(run)
    (run / "variants.parquet").write_bytes(b"x")
    with pytest.raises(InputError, match="missing or damaged"):
        deepwas.load_fit(run)
