"""The benchmark of the direction test, small: it runs, says its figures, and finds what it plants."""

from __future__ import annotations

import dataclasses

import numpy as np
from rich.console import Console

from benchmarks import direction
from benchmarks.simulate import Region


def test_a_small_problem_from_end_to_end(tmp_path, monkeypatch):
    R = 0.8 ** np.abs(np.subtract.outer(np.arange(40), np.arange(40)))
    regions = [Region(np.linspace(0, 1e6, 40), np.full(40, 0.2), R)] * 16
    monkeypatch.setattr(direction, "simulate_regions", lambda *_, **__: regions)
    small = dataclasses.replace(direction.QUICK, runs=60, power_runs=10, shares=(0.5,), mean_c=1.0)
    monkeypatch.setattr(direction, "QUICK", small)
    found = direction.measure(True, lambda *_: None)
    assert set(found["null"]) == set(direction.SETTINGS)
    for rows in found["null"].values():
        for row in rows.values():
            # 60 data sets at 5%: 13 or more with probability below 1e-5.
            assert row["together"]["hits"] < 13
            assert row["together"]["low"] <= row["together"]["share"] <= row["together"]["high"]
    (power,) = found["power"]
    assert power["tests"]["1"]["together"]["hits"] == 10
    assert abs(power["estimates"]["1"]["mean"] - 0.5) < 4 * power["estimates"]["1"]["standard_error"]
    console = Console(record=True, width=160)
    for table in direction.tables(found):
        console.print(table)
    assert direction.SETTINGS["sparse"] in console.export_text()
    direction.draw(found, tmp_path / "direction.png")
    assert (tmp_path / "direction.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_z_scores_have_the_variance_of_the_model():
    """Whitened z-scores of many data sets against B, and the likelihoods of `_Solved` against the dense density."""
    from scipy.stats import multivariate_normal

    R = 0.8 ** np.abs(np.subtract.outer(np.arange(20), np.arange(20)))
    problem = dataclasses.replace(direction.QUICK, columns=(1, 2), seed=1, mean_c=0.5)
    truth = direction._truth(problem, [Region(np.linspace(0, 1e6, 20), np.full(20, 0.2), R)])
    (y,) = direction._draw_y(problem, truth, np.random.default_rng(0), 40_000)
    (block,) = truth.blocks
    B = np.eye(20) + (block.factor * problem.sample_size * truth.f) @ block.factor.T
    error = np.sqrt((np.outer(np.diag(B), np.diag(B)) + B**2) / 40_000)
    assert (np.abs(y @ y.T / 40_000 - B) < 5 * error).all()
    solved = direction._solve(problem, truth, truth.f)
    expected = multivariate_normal(None, B).logpdf(y[:, :3].T) + 10 * np.log(2 * np.pi)
    np.testing.assert_allclose(solved.log_likelihood([y[:, :3]]), expected)
    X = np.sqrt(problem.sample_size) * block.factor @ truth.scores
    np.testing.assert_allclose(solved.A, X.T @ np.linalg.solve(B, X))
    np.testing.assert_allclose(solved.u([y[:, :3]])[:, 0], (X.T @ np.linalg.solve(B, y[:, :3])).T)
