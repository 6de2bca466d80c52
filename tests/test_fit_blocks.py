"""Fits of windows with flanks, of blocks without z-scores, and the files of whitened LD beside them."""

from __future__ import annotations

import tempfile
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import deepwas
from deepwas import FitOptions, InputError
from tests.fit_problem import QUICK, prepared, small_problem, whitening_is_a_mistake, with_gaps


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return small_problem(tmp_path_factory)


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
            deepwas.fit(store, with_gaps(z), annotations, options=options, progress=watch)
    else:
        deepwas.fit(store, with_gaps(z), annotations, options=options, progress=watch)
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
    deepwas.fit(store, with_gaps(z), annotations, options=options, out=run, progress=watch)
    assert seen == ["whitened.h5", "whitened_0.75.h5", "whitened_0.9.h5"]
    assert [path.name for path in run.iterdir() if "whitened" in path.name] == []


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """Windows of up to 60 candidates, 20 of them scored; one window, between sections 0 and 1, has no z-score."""
    options = deepwas.LDOptions(build="GRCh37", window=60_000, step=20_000, eigenvalue_floor=0.05)
    folder = tmp_path_factory.mktemp("windows")
    _, store, z, annotations, _ = prepared(folder, options, chromosomes=1, variants=960, strength=2.5)
    rows = store.scored_slice(13)
    z = replace(z, frame=z.frame.filter(~pl.col("VARIANT").is_between(rows.start, rows.stop - 1)))
    return store, z, annotations


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
    whitening_is_a_mistake(monkeypatch)
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
    rows = store.block_slice(3)
    some = replace(z, frame=z.frame.filter(~pl.col("VARIANT").is_between(rows.start, rows.stop - 1)))
    fit = deepwas.fit(store, some, annotations, options=replace(QUICK, steps=15))
    assert fit.record["size"]["blocks"] == store.n_blocks - 1
    assert sorted(fit.record["held_out"]["cross_fitted"]["blocks"]) == [b for b in range(store.n_blocks) if b != 3]
    assert fit.block_table()["BLOCK"].to_list() == fit.variants["BLOCK"].unique(maintain_order=True).to_list()
    (gone,) = [c for c in fit.record["counts"] if "without any z-score" in c["reason"]]
    assert gone["count"] == rows.stop - rows.start
    assert fit.priors(which="all").height == store.n_variants - gone["count"]
