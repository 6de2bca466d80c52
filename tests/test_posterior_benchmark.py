"""The benchmark of posteriors, small: it runs, says its figures, and its baseline is what it is said to be."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from rich.console import Console

from benchmarks import posterior
from benchmarks.simulate import Panel
from tests.dense import genotypes


def toy_panel(m, *, people, seed):
    X = genotypes(m, people, np.random.default_rng(seed)).T
    frequency = X.mean(axis=1) / 2
    X = (X - X.mean(axis=1, keepdims=True)) / X.std(axis=1, keepdims=True)
    return Panel(np.linspace(0, 1e5, m), np.minimum(frequency, 1 - frequency), X)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(posterior, "simulate_panel", toy_panel)
    quick = dataclasses.replace(posterior.QUICK, regions=6, m=40, traits=1, network="constant")
    monkeypatch.setattr(posterior, "QUICK", quick)
    return quick


def test_a_small_problem_from_end_to_end(small, tmp_path):
    found = posterior.measure(True, lambda *_: None)
    for own in found["scenarios"].values():
        share = {name: x["mean"] for name, x in own["share"].items()}
        # The learned prior is constant as well, but fitted to the training blocks alone.
        assert share["learned"] == pytest.approx(share["constant"], abs=0.05)
        assert share["marginal"] < share["shrunk"] < 1
        assert share["true"] > 0.5
        assert own["posterior"]["true"]["coverage"]["mean"] > 0.85
    flat = found["scenarios"]["uninformative"]["posterior"]["true"]
    assert flat["expected_r2"]["mean"] == pytest.approx(flat["realised_r2"]["mean"], rel=0.3)
    console = Console(record=True, width=200)
    for table in posterior.tables(found):
        console.print(table)
    assert posterior.SCENARIOS["uninformative"] in console.export_text()
    posterior.draw(found, tmp_path / "posterior.png")
    assert (tmp_path / "posterior.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_shrunk_score_is_the_posterior_mean_under_a_constant_prior(small, tmp_path):
    from deepwas.ld import LDBlock
    from deepwas.posterior import posterior_effects

    world = posterior._world(small, tmp_path, lambda *_: None)
    rng = np.random.default_rng(0)
    z = 3 * rng.standard_normal(sum(r.m for r in world.regions))
    score = np.concatenate([(r.correlation**2).sum(axis=1) for r in world.regions]).mean()
    f = (np.mean(z**2) - 1) / score / 1e4
    found = world.cut(posterior._shrunk(world, z, 1e4))
    for region, own, expected in zip(world.regions, world.cut(z), found, strict=True):
        block = LDBlock.from_correlation(region.correlation, eigenvalue_floor=0)
        mean = posterior_effects(block, own, np.full(region.m, f), sample_size=1e4).mean
        np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=1e-9)
