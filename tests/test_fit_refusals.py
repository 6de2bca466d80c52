"""What `fit` refuses, and that it leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import deepwas
from deepwas import FitOptions, InputError
from tests.fit_problem import QUICK, quick_fit, small_problem, whitening_is_a_mistake


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return small_problem(tmp_path_factory)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return quick_fit(tmp_path_factory)


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


def test_what_cannot_be_fitted_is_refused_before_whitening(inputs, tmp_path, monkeypatch):
    _, store, z, annotations, _ = inputs
    whitening_is_a_mistake(monkeypatch)
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


def test_a_damaged_store_is_refused_and_leaves_nothing(inputs, tmp_path):
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


def test_broken_run_folders_are_refused(inputs, fitted, tmp_path):
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
