"""Interpretation of a finished run: importance, responses, attributions, and what goes beside them."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

import deepwas
from deepwas.cli import main
from deepwas.cli.interpret import _say_found
from deepwas.errors import DataWarning, InputError
from deepwas.fit_inputs import describe_windows
from deepwas.inputs import VariantInputs
from deepwas.interpretation import InterpretOptions, interpret
from deepwas.interpretation.held_out import open_held_out
from deepwas.interpretation.importance import Feature, _permuted, _Shifted, _spans
from deepwas.specs import validate_table
from tests.synthetic import write_problem

QUICK = deepwas.FitOptions(network="linear", folds=3, steps=20, evaluate_every=5, batch_blocks=4, learning_rate=0.1)
ROTATIONS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A fit of a small problem in which `active` matters and `idle` does not: folder, store, annotations, fit."""
    folder = tmp_path_factory.mktemp("problem")
    problem = write_problem(folder, chromosomes=3, variants=300)
    options = deepwas.LDOptions(build="GRCh37", min_block=20, max_block=60, eigenvalue_floor=0.05)
    store = deepwas.build_ld(problem.genotypes, folder / "ld.h5", options)
    annotations = deepwas.read_annotations(problem.annotations, store.variants)
    values = annotations.values.copy()
    values[::40, 1] = np.nan
    annotations = replace(annotations, values=values)
    annotations.write_parquet(folder / "annotations.parquet")
    annotations = deepwas.read_annotations(folder / "annotations.parquet", store.variants)
    gwas = deepwas.read_sumstats(problem.sumstats)
    z = deepwas.harmonise(
        gwas,
        store.variants,
        n_panel=store.n_samples,
        genome_build=store.genome_build,
        options=deepwas.QCOptions(exclude="none"),
        store_checksum=store.checksum,
    )
    fit = deepwas.fit(store, z, annotations, options=QUICK, out=folder / "run")
    return folder, store, annotations, fit


@pytest.fixture(scope="module")
def found(run):
    folder, store, annotations, fit = run
    options = InterpretOptions(repeats=2, groups={"both": ["active", "idle"]})
    return interpret(fit, store, annotations, options=options, out=folder / "learned")


def test_what_matters_is_important_and_the_rest_is_not(run, found):
    *_, fit = run
    rows = {row["FEATURE"]: row for row in found.importance.iter_rows(named=True)}
    assert set(rows) == {"active", "idle", "both"}
    assert rows["active"]["IMPORTANCE"] > 10
    assert abs(rows["idle"]["IMPORTANCE"]) < 0.2 * rows["active"]["IMPORTANCE"]
    assert rows["both"]["KIND"] == "group"
    assert rows["both"]["IMPORTANCE"] == pytest.approx(rows["active"]["IMPORTANCE"], rel=0.3)
    gain = fit.record["held_out"]["cross_fitted"]["gain"]
    assert rows["active"]["SHARE"] == pytest.approx(rows["active"]["IMPORTANCE"] / gain)
    assert found.importance["IMPORTANCE"].is_sorted(descending=True)


def test_importance_is_a_sum_over_held_out_blocks_by_the_networks_that_held_them_out(run, found):
    """One feature and repeat by hand: the permuted annotation in the run's own network, scored by the dense density."""
    _, store, annotations, fit = run
    rows = found.importance.filter(pl.col("FEATURE") == "active").row(0, named=True)
    own = found.drops.filter(pl.col("FEATURE") == "active")
    assert sorted(own["BLOCK"]) == list(range(store.n_blocks))
    drops = own["DROP"].to_numpy()
    assert rows["IMPORTANCE"] == pytest.approx(drops.sum())
    assert rows["STANDARD_ERROR"] == pytest.approx(np.sqrt(len(drops)) * drops.std(ddof=1))

    from scipy.stats import multivariate_normal

    from deepwas.networks import predict_log_variance
    from deepwas.training.trait import open_trait

    record = fit.record["rotations"][1]
    z = fit.variants.with_row_index("VARIANT").filter(pl.col("Z").is_not_null()).select("VARIANT", "Z", "N")
    blocks = {b.number: b for b in open_trait(store, z)}
    standardised = fit.standardisers[1].transform(annotations)
    span = np.unique(np.concatenate([np.r_[blocks[n].rows] for n in record["test_blocks"]]))
    expected = np.zeros(len(record["test_blocks"]))
    for repeat in range(2):
        other = np.random.default_rng([0, 1, repeat]).permutation(span)
        moved = standardised.copy()
        moved[span, 0] = standardised[other, 0]
        for sign, x in ((1, standardised), (-1, moved)):
            f = np.exp(predict_log_variance(fit.networks[1], VariantInputs(x))[:, 0])
            for i, n in enumerate(record["test_blocks"]):
                G = blocks[n].factor.astype(float)
                B = record["noise"] * np.eye(len(G)) + (G * (blocks[n].sample_size * f[blocks[n].rows])) @ G.T
                expected[i] += sign * multivariate_normal(np.zeros(len(G)), B).logpdf(blocks[n].whitened) / 2
    mine = own.filter(pl.col("ROTATION") == 1)
    assert mine["BLOCK"].to_list() == record["test_blocks"]
    np.testing.assert_allclose(mine["DROP"], expected, atol=2e-3)


def test_indicators_of_missing_values_move_with_their_annotation(run):
    _, _, annotations, fit = run
    standardiser = fit.standardisers[0]
    assert standardiser.output_names == ("active", "idle", "idle:missing")
    inputs = VariantInputs(standardiser.transform(annotations))

    class Section:
        pass

    section = Section()
    section.inputs, section.standardiser = inputs, standardiser
    span = np.arange(100, 300)
    moved = _permuted(section, Feature("idle", "annotation", ("idle",)), [span], np.random.default_rng(0)).annotations
    before = inputs.annotations
    np.testing.assert_array_equal(moved[:, 0], before[:, 0])
    outside = np.setdiff1d(np.arange(len(before)), span)
    np.testing.assert_array_equal(moved[outside], before[outside])
    assert (moved[span, 1] != before[span, 1]).mean() > 0.9
    pairs = [sorted(map(tuple, x[span, 1:].tolist())) for x in (moved, before)]
    assert pairs[0] == pairs[1]


def test_permutation_inside_blocks_keeps_values_in_their_block(run):
    _, store, annotations, fit = run
    with open_held_out(fit, store, annotations) as held:
        for section in held.sections():
            for within, count in (("block", len(section.blocks)), ("section", 1)):
                spans = _spans(held, section, within)
                assert len(spans) == count
                inside = np.concatenate([np.r_[held.blocks[int(i)].rows] for i in section.blocks])
                np.testing.assert_array_equal(np.sort(np.concatenate(spans)), np.sort(inside))
            for i, span in zip(section.blocks, _spans(held, section, "block"), strict=True):
                np.testing.assert_array_equal(span, np.r_[held.blocks[int(i)].rows])


@pytest.mark.parametrize("shift", [0, 3, 9])
def test_shifted_windows_are_those_of_other_rows(shift):
    whole = np.arange(20 * 2 * 3).reshape(20, 2, 3)
    for own in (np.arange(5, 15), np.r_[0:4, 9:12, 17:20]):
        moved = _Shifted(whole, own, shift)
        expected = whole.copy()
        expected[own] = np.roll(whole[own], -shift, axis=0)
        for rows in (slice(0, 20), slice(4, 9), slice(12, 18), slice(0, 3), slice(5, 5), slice(18, None)):
            np.testing.assert_array_equal(moved[rows], expected[rows])


@pytest.mark.parametrize("within", ["section", "block"])
def test_windows_of_a_section_in_two_parts_stay_in_it(run, within):
    """Of the first and the last chromosome, as `--test-chromosomes 1,3` makes it; the one between is not touched."""
    _, store, annotations, fit = run
    chromosome = store.variants["CHR"].to_numpy()
    tracks = np.arange(3 * store.n_variants, dtype=np.float32).reshape(-1, 3, 1)
    with open_held_out(fit, store, annotations) as held:
        own = [i for i, block in enumerate(held.blocks) if chromosome[block.rows.start] != "2"]
        section = SimpleNamespace(blocks=np.array(own), inputs=VariantInputs(annotations.values, tracks=tracks))
        spans = _spans(held, section, within)
    inside = np.sort(np.concatenate(spans))
    assert set(chromosome[inside]) == {"1", "3"}
    moved = _permuted(section, Feature("tracks", "window"), spans, np.random.default_rng(0)).tracks[0 : len(tracks)]
    outside = np.setdiff1d(np.arange(len(tracks)), inside)
    assert len(outside) > 100
    np.testing.assert_array_equal(moved[outside], tracks[outside])
    np.testing.assert_array_equal(np.sort(moved[inside], axis=0), tracks[inside])
    assert (moved[inside] != tracks[inside]).all()


def test_tables_and_pictures_are_as_specified(run, found):
    folder, _, annotations, fit = run
    out = folder / "learned"
    for name, spec in (("importance", "importance"), ("responses", "responses"), ("enrichment", "enrichment")):
        empty = dict.fromkeys(
            ("Coefficient", "Coefficient_std_error", "Coefficient_z-score", "Enrichment_p"), pl.Float64
        )
        empty |= {f"Coefficient_std{end}": pl.Float64 for end in ("", "_std_error")}
        frame = pl.read_csv(out / f"{name}.tsv", separator="\t", null_values="NA", schema_overrides=empty)
        validate_table(frame, spec, name)
    for name in ("importance", "responses", "enrichment"):
        assert (out / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    record = json.loads((out / "interpretation.json").read_text())
    assert record["status"] == "complete"
    f, x = fit.variants["SNPVAR_CROSS"].to_numpy(), annotations.values[:, 0].astype(float)
    assert found.enrichment.share.value[0] == pytest.approx(x @ f / f.sum(), rel=1e-5)
    curve = found.responses.filter(pl.col("ANNOTATION") == "active").sort("ROTATION", "VALUE")
    assert curve["ROTATION"].n_unique() == ROTATIONS
    weight = [float(network.output.kernel[0, 0]) for network in fit.networks]
    for r, own in curve.group_by("ROTATION", maintain_order=True):
        steps = np.diff(np.log(own["FOLD_CHANGE"])) / np.diff(own["VALUE"])
        np.testing.assert_allclose(steps, weight[r[0]] / fit.standardisers[r[0]].scales[0], rtol=1e-3)


def test_an_interrupted_interpretation_goes_on_to_the_same(run, found, monkeypatch):
    folder, store, annotations, fit = run
    out, options = folder / "again", InterpretOptions(repeats=2, groups={"both": ["active", "idle"]})
    calls = []

    def stop(what, done, total):
        calls.append(what)
        if what == "permuting" and calls.count(what) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interpret(fit, store, annotations, options=options, out=out, progress=stop)
    half = pl.read_parquet(out / "importance_blocks.parquet")
    assert half.select("ROTATION", "FEATURE").unique().height == 4
    with pytest.raises(InputError, match="--resume"):
        interpret(fit, store, annotations, options=options, out=out)
    with pytest.raises(InputError, match="other options"):
        interpret(fit, store, annotations, options=replace(options, seed=1), out=out, resume=True)
    calls.clear()
    done = interpret(
        fit, store, annotations, options=options, out=out, resume=True, progress=lambda what, *_: calls.append(what)
    )
    assert calls.count("permuting") == 3 * ROTATIONS - 4
    assert done.importance.equals(found.importance)
    assert (out / "importance.tsv").read_bytes() == (folder / "learned" / "importance.tsv").read_bytes()


def test_what_is_not_the_runs_own_is_refused(run, monkeypatch):
    _, store, annotations, fit = run
    with pytest.raises(InputError, match="not what the run was made with"):
        interpret(fit, store, replace(annotations, values=annotations.values * np.float32(2)))
    with pytest.raises(InputError, match="give just these"):
        interpret(fit, store)
    from deepwas.interpretation import held_out

    monkeypatch.setattr(held_out, "_check", lambda *_: pytest.fail("said only after work has begun"))
    with pytest.raises(InputError, match="no annotation promoter"):
        interpret(fit, store, annotations, options=InterpretOptions(groups={"genes": ["promoter"]}))
    monkeypatch.setattr("deepwas.interpretation.attributions.require_shap", lambda: None)
    sizes = {"annotations": 2, "log_heterozygosity": True, "tracks": None, "sequence": None}
    rotations = [x | {"network": x["network"] | {"sizes": sizes}} for x in fit.record["rotations"]]
    with_frequency = replace(fit, record=fit.record | {"rotations": rotations})
    with pytest.raises(InputError, match="Leave --shap out"):
        interpret(with_frequency, store, annotations, options=InterpretOptions(attributions=3))
    monkeypatch.undo()
    other = replace(fit, record=fit.record | {"inputs": fit.record["inputs"] | {"ld": {"checksum": "x", "file": "l"}}})
    with pytest.raises(InputError, match="another LD store"):
        interpret(other, store, annotations)
    rotations = [
        r | {"test_log_likelihood": [x + 1 for x in r["test_log_likelihood"]]} for r in fit.record["rotations"]
    ]
    with pytest.warns(DataWarning, match="nats from the one the run recorded"):
        interpret(
            replace(fit, record=fit.record | {"rotations": rotations}),
            store,
            annotations,
            options=InterpretOptions(repeats=1),
        )
    with pytest.raises(InputError, match="within"):
        InterpretOptions(within="genome")
    with pytest.raises(InputError, match="group"):
        InterpretOptions(groups={"a": []})


@pytest.mark.parametrize("name", ["tracks", "sequence"])
def test_windows_that_are_not_the_runs_own_are_refused(run, name):
    """As many and as large, but of another content."""
    _, store, annotations, fit = run
    own = np.random.default_rng(0).integers(0, 4, (store.n_variants, 2, 5)).astype(np.uint8)
    record = fit.record | {"inputs": fit.record["inputs"] | {name: describe_windows(own)}}
    fit, other = replace(fit, record=record), own.copy()
    other[17, 1, 3] += 1
    with open_held_out(fit, store, annotations, **{name: own}) as held:
        assert getattr(held, name) is own
    with pytest.raises(InputError, match=f"{name}, .*not what the run was made with.* content differs"):
        interpret(fit, store, annotations, **{name: other})
    with pytest.raises(InputError, match=f"made with {name}"):
        interpret(fit, store, annotations)


def test_the_command_says_what_it_found(run, capsys):
    folder, *_ = run
    given = ["interpret", folder / "run", "--ld", folder / "ld.h5", "--annotations", folder / "annotations.parquet"]
    with pytest.raises(SystemExit) as end:
        main([str(x) for x in (*given, "--out", folder / "said", "--repeats", "1", "--group", "both=active,idle")])
    assert not end.value.code
    assert "active" in capsys.readouterr().out
    assert (folder / "said" / "importance.tsv").is_file()
    for wrong in (["--group", "both"], ["--within", "genome"], ["--repeats", "0"]):
        with pytest.raises(SystemExit) as end:
            main([str(x) for x in (*given, "--out", folder / "none", *wrong)])
        assert end.value.code == 2
    assert not (folder / "none").exists()


def test_the_command_says_what_is_not_written_and_what_is_noise(found, capsys, tmp_path):
    for gain, error, says in ((5.0, 1.0, False), (1.0, 3.0, True), (-4.0, 1.0, True), (5.0, None, True)):
        held = {"gain": gain, "standard_error": error}
        _say_found(replace(found, record=found.record | {"held_out": held}), tmp_path)
        said = capsys.readouterr()
        assert ("not significantly above 0" in said.err) == says
        assert ("share of" in said.out) != says
        assert "none" not in said.err
    _say_found(replace(found, responses=None, enrichment=None), tmp_path)
    said = capsys.readouterr().err
    assert "responses are made for networks that read annotations alone" in said
    assert "enrichment needs annotations" in said


@pytest.mark.slow
def test_attributions_of_a_log_linear_prior_are_its_terms(run, tmp_path, monkeypatch):
    """Shapley values of a sum are its terms, less their means over the background."""
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling takes longer than all of this
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("shap")
    _, store, annotations, fit = run
    options = InterpretOptions(repeats=1, attributions=12, background=20)
    found = interpret(fit, store, annotations, options=options, out=tmp_path / "out")
    table, variants = found.attributions
    validate_table(pl.read_csv(tmp_path / "out" / "attributions.tsv", separator="\t"), "attributions", "table")
    frame = pl.read_csv(
        tmp_path / "out" / "attributions_variants.tsv.gz", separator="\t", schema_overrides={"CHR": pl.String}
    )
    validate_table(frame, "attributions_variants", "table")
    np.testing.assert_allclose(variants["BASE"] + variants["active"] + variants["idle"], variants["LOG_F"], atol=1e-4)
    assert table["ANNOTATION"][0] == "active"
    assert table["DIRECTION"][0] > 0.9
    rows = variants.join(fit.variants.with_row_index("ROW").select("SNP", "ROW"), on="SNP", maintain_order="left")[
        "ROW"
    ]
    raw, values = annotations.values[rows.to_numpy(), 0], variants["active"].to_numpy()
    for section in range(ROTATIONS):
        own = (variants["SECTION"] == section).to_numpy()
        assert own.sum() > 1
        slope = float(fit.networks[section].output.kernel[0, 0]) / fit.standardisers[section].scales[0]
        np.testing.assert_allclose(np.diff(values[own]), slope * np.diff(raw[own]), rtol=1e-3, atol=1e-4)
