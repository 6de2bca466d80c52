"""The benchmarks on real data, small: height on a part of the example, expression of genes on a made-up folder."""

from __future__ import annotations

import dataclasses
import gzip

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from benchmarks import geuvadis, geuvadis_data, geuvadis_priors, geuvadis_replication, height
from benchmarks.geuvadis_data import Half

PEOPLE, VARIANTS, GENES = 200, 160, 7
SHARED = 44  # acts on the second and third gene


def said(tables):
    console = Console(record=True, width=250)
    for table in tables:
        console.print(table)
    return console.export_text()


def test_height_on_a_part_of_the_chromosome(monkeypatch, tmp_path):
    few = tuple((start, start + 250_000) for start, _ in height.QUICK.intervals)
    small = dataclasses.replace(height.QUICK, intervals=few, steps=2)
    monkeypatch.setattr(height, "QUICK", small)
    found = height.measure(True, lambda *_: None)
    own = found["cuts"]["default"]
    assert set(own["priors"]) == {"constant", "linear"}
    flat = own["priors"]["constant"]
    assert flat["heaviest_tenth"] == pytest.approx(0.1, abs=0.01)
    assert flat["sets"] == len(flat["sizes"]) > 0
    assert flat["variants"]["0.1"] >= flat["variants"]["0.5"] >= flat["variants"]["0.95"]
    assert (
        0 <= own["leads"]["linear"]["same_lead"] <= own["leads"]["linear"]["in_both"] <= own["leads"]["linear"]["sets"]
    )
    assert len(own["pip"]["constant"]) == len(own["pip"]["linear"])
    assert "learned, linear" in said(height.tables(found))
    height.draw(found, tmp_path / "height.png")
    assert (tmp_path / "height.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files as GEUVADIS has them: seven genes, one variant that acts on two of them, one that acts on another."""
    from bed_reader import to_bed

    target = tmp_path_factory.mktemp("geuvadis")
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(2 * PEOPLE, VARIANTS))
    for j in range(1, VARIANTS):
        latent[:, j] = 0.8 * latent[:, j - 1] + 0.6 * latent[:, j]
    dosage = (latent > 0).reshape(PEOPLE, 2, VARIANTS).sum(axis=1).astype(np.float32)
    names = [f"P{i}" for i in range(PEOPLE)]
    place = 20_000_000 + 1000 * np.arange(VARIANTS)
    properties = {
        "fid": names,
        "iid": names,
        "sid": [f"v{j}" for j in range(VARIANTS)],
        "chromosome": ["22"] * VARIANTS,
        "bp_position": place,
        "allele_1": ["A"] * VARIANTS,
        "allele_2": ["C"] * VARIANTS,
    }
    to_bed(target / geuvadis_data.FILES["genotypes"], dosage, properties=properties, count_A1=True)
    covariates = rng.normal(size=(5, PEOPLE))
    Y = rng.normal(size=(GENES, PEOPLE)) + 0.5 * covariates[:1]
    Y[[1, 2]] += 1.2 * dosage[:, SHARED][None, :] * np.array([[1.0], [-1.0]])
    Y[5] += 1.2 * dosage[:, 120]
    start = place[[20, 40, 50, 70, 90, 115, 130]]
    table = pl.DataFrame(
        {"#chr": ["chr22"] * GENES, "start": start - 1, "end": start, "gene": [f"G{g}" for g in range(GENES)]}
    ).with_columns(pl.lit(1).alias("length"), pl.lit("+").alias("strand"))
    table = table.hstack(pl.DataFrame(Y.T.T, schema=names, orient="row"))
    expression = target / geuvadis_data.FILES["expression"]
    expression.write_bytes(gzip.compress(table.write_csv(separator="\t").encode()))
    lines = pl.DataFrame({"SampleID": [f"PC{j}" for j in range(5)]}).hstack(
        pl.DataFrame(covariates, schema=names, orient="row")
    )
    path = target / geuvadis_data.FILES["covariates"]
    path.write_bytes(gzip.compress(lines.write_csv(separator=" ").encode()))
    return target


SMALL = dataclasses.replace(
    geuvadis.QUICK, window=30_000, covariates=4, sets=0, pad=64, learn=3, rounds=2, slots=3, candidates=16, halves=2
)


def test_a_planted_shared_variant_is_called_and_holds(folder, monkeypatch, tmp_path):
    """Priors aside: they have a test of their own."""
    monkeypatch.setenv(geuvadis_data.VARIABLE, str(folder))
    monkeypatch.setattr(geuvadis, "QUICK", SMALL)

    def flat(problem, data, half, say):
        near = np.abs(data.variants["BP"].to_numpy()[None, :] - data.genes["TSS"].to_numpy()[:, None])
        windows = {gene: np.flatnonzero(x <= problem.window) for gene, x in enumerate(near)}
        f = {gene: (x, np.full(len(x), 2e-3)) for gene, x in windows.items()}
        return geuvadis_priors.Priors(f, f, {"gain": 0.0, "standard_error": 0.0}, 0.1)

    monkeypatch.setattr(geuvadis, "learn_priors", flat)
    found = geuvadis.measure(True, lambda *_: None)
    assert found["size"]["directions"] == [95, 95]
    assert [half["sets"] for half in found["halves"]] == [3, 3]
    # The same priors under both names: the same calls.
    assert found["calls"]["learned"] == found["calls"]["flat"]
    best = max(found["calls"]["learned"], key=lambda x: x["score"])
    assert best["score"] > 0.9
    assert best["place"] == 0
    assert best["replicated"]
    assert not best["refuted"]
    top = max(found["calls"]["intersection"], key=lambda x: x["score"])
    assert top["model"] > 0.9
    for level in found["equal"]:
        assert all(row["calls"] <= level["calls"] for row in level["methods"].values())
    assert "HOPS Pm" in said(geuvadis.tables(found))
    geuvadis.draw(found, tmp_path / "geuvadis.png")
    assert (tmp_path / "geuvadis.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_priors_are_of_each_gene_and_its_window(folder):
    data = geuvadis_data.read(folder)
    half = geuvadis_data.half_of(data, np.arange(0, PEOPLE, 2), 4)
    found = geuvadis_priors.learn_priors(SMALL, data, half, lambda *_: None)
    place, start = data.variants["BP"].to_numpy(), data.genes["TSS"].to_numpy()
    for gene, (variants, f) in found.learned.items():
        np.testing.assert_array_equal(variants, np.flatnonzero(np.abs(place - start[gene]) <= SMALL.window))
        assert f.shape == variants.shape
        assert (f > 0).all()
        assert np.ptp(found.flat[gene][1]) == 0
    assert len(found.learned) == GENES


def test_residuals_and_ld_scores_are_what_is_said(folder):
    data = geuvadis_data.read(folder)
    people = np.arange(0, PEOPLE, 2)
    half = geuvadis_data.half_of(data, people, 3)
    assert half.directions == len(people) - 4
    C = np.column_stack([np.ones(len(people)), data.covariates[people, :3]])
    np.testing.assert_allclose(C.T @ half.X, 0, atol=1e-3)
    np.testing.assert_allclose(C.T @ half.Y, 0, atol=1e-8)
    np.testing.assert_allclose(np.mean(half.X**2, axis=0), 1, rtol=1e-4)
    r2 = half.ld(slice(None), slice(None)) ** 2
    expected = (r2 - (1 - r2) / (half.directions - 2)).sum(axis=1)
    np.testing.assert_allclose(geuvadis_data.ld_scores(half, piece=50), expected, rtol=1e-6)


def test_a_call_of_two_variants_in_ld_is_refuted():
    """Two genes, two causes in LD: the variant between them replicates for both, and is refuted."""
    rng = np.random.default_rng(1)

    def half(shared):
        x = rng.normal(size=(4000, 3))
        x[:, 1] = 0.6 * x[:, 0] + 0.6 * x[:, 2] + 0.5 * x[:, 1]
        x = (x - x.mean(axis=0)) / x.std(axis=0)
        cause = x[:, [1, 1]] if shared else x[:, [0, 2]]
        y = cause + rng.normal(size=(4000, 2))
        y = (y - y.mean(axis=0)) / y.std(axis=0)
        return Half(x.astype(np.float32), y, 3999)

    call = geuvadis_replication.Call(0, 1, (0, 1), 1.0, 1.0)
    apart = geuvadis_replication.tested(call, half(False), half(False))
    assert apart["replicated"]
    assert apart["refuted"]
    shared = geuvadis_replication.tested(call, half(True), half(True))
    assert shared["replicated"]
    assert not shared["refuted"]
    noise = Half(np.float32(rng.normal(size=(100, 3))), rng.normal(size=(100, 2)), 99)
    assert not geuvadis_replication.tested(call, half(True), noise)["replicated"]
    rate = geuvadis_replication.rates([apart, shared])
    assert rate["replicated"]["rate"] == 1
    assert rate["held"]["count"] == 1
    assert rate["refuted"]["low"] < 0.5 < rate["refuted"]["high"]
    assert geuvadis_replication.rates([])["held"]["rate"] is None


def test_without_the_data_it_is_said_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv(geuvadis_data.VARIABLE, str(tmp_path))
    found = geuvadis.measure(False, lambda *_: None)
    assert geuvadis_data.FILES["expression"] in said(geuvadis.tables(found))
    geuvadis.draw(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()
