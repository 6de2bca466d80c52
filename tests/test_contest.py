"""The contest of priors: splits, scores, tracks and planted motifs are what they are said to be."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import contest, motif
from benchmarks.contest import Splits, Truth, make_blocks, polygenic_r2, score, summary, whiten_regions
from benchmarks.objectives import QUICK, Problem
from benchmarks.simulate import Region, simulate_annotations, simulate_effects_and_trait, simulate_tracks
from deepwas.errors import InputError
from tests.test_benchmarks import run, toy_regions

N = 1e4


@pytest.fixture(scope="module")
def people():
    """Standardised genotypes of 300 people in three regions of 25 variants, and the regions."""
    rng = np.random.default_rng(0)
    genotypes = []
    for _ in range(3):
        x = np.cumsum(rng.normal(size=(25, 300)), axis=0) + rng.normal(size=(25, 300))
        x -= x.mean(axis=1, keepdims=True)
        genotypes.append(x / np.sqrt(np.mean(x**2, axis=1, keepdims=True)))
    regions = [Region(np.arange(25) * 1e4, np.full(25, 0.2), x @ x.T / 300) for x in genotypes]
    return genotypes, regions


@pytest.fixture(scope="module")
def truth(people):
    _, regions = people
    f = np.random.default_rng(1).exponential(size=75) * 2e-4
    effects, z = simulate_effects_and_trait(regions, f, sample_size=N, seed=3)
    return Truth(3, make_blocks(whiten_regions(regions, 1e-6), z, N), f, effects, {})


def test_splits_keep_the_test_blocks_when_training_grows():
    small, large = Splits.of(10, 4, 3), Splits.of(20, 4, 3)
    np.testing.assert_array_equal(small.test, [0, 1, 2])
    np.testing.assert_array_equal(small.validation, large.validation)
    assert len(large.train) == 20
    assert sorted(np.concatenate(large)) == list(range(27))
    problem = replace(Problem(), copies=4)
    assert len(problem.splits.train) == 4 * problem.train


def test_polygenic_r2_is_the_squared_correlation_in_the_people(people, truth):
    genotypes, regions = people
    f, noise, which = truth.f * 3, 1.3, [2]
    predicted, genetic = np.zeros(300), np.zeros(300)
    for i in which:
        rows, X, R = slice(25 * i, 25 * i + 25), genotypes[i], regions[i].correlation
        F = np.diag(f[rows])
        covariance = N * R @ F @ R + noise * R
        weights = np.sqrt(N) * F @ R @ np.linalg.solve(covariance, truth.blocks[i].z)
        predicted += X.T @ weights
        genetic += X.T @ truth.effects[i]
    expected = np.corrcoef(predicted, genetic)[0, 1] ** 2
    assert polygenic_r2(truth, f, noise, regions, which) == pytest.approx(expected, rel=1e-3)


def test_scores_are_densities_of_the_test_blocks_over_the_constant_priors(truth, people):
    _, regions = people
    splits = Splits(np.array([2]), np.array([1]), np.array([0]))
    runs = [
        {
            "contender": "a",
            "seed": 3,
            "validation_gain": gain,
            "best_step": 5,
            "learning_rate": gain,
            "noise": 1.1,
            "f": f,
        }
        for gain, f in ((1.0, truth.f[::-1]), (2.0, 2 * truth.f), (0.0, truth.f))
    ]
    found = score(truth, runs, splits, regions)
    log_f, noise = truth.constant(splits.train)
    G, y = np.asarray(truth.blocks[0].factor, np.float64), truth.blocks[0].whitened

    def density(f, noise):
        B = noise * np.eye(len(y)) + N * (G * f) @ G.T
        return -0.5 * (y @ np.linalg.solve(B, y) + np.linalg.slogdet(2 * np.pi * B)[1])

    null, own = density(np.exp(log_f), noise), truth.f[:25]
    assert found["contenders"]["a"]["learning_rate"] == 2.0
    assert found["contenders"]["a"]["gain_by_block"] == pytest.approx([density(2 * own, 1.1) - null], abs=1e-3)
    assert found["oracle_gain_by_block"] == pytest.approx([density(own, 1.0) - null], abs=1e-3)
    assert found["contenders"]["a"]["calibration"] == pytest.approx([0.5] * 10)
    assert found["contenders"]["a"]["correlation_with_truth"] == pytest.approx(1)
    assert summary("a", [found, found])["gain"]["share_of_oracle"]["standard_error"] == 0


def test_tracks_are_the_smooth_annotations_with_errors():
    regions = toy_regions(4, m=200)
    annotations = simulate_annotations(regions, smooth=3, seed=5)[:, :3]
    exact = simulate_tracks(regions, smooth=3, seed=5, bins=5, resolution=500.0, noise=0.0).astype(float)
    assert exact.shape == (800, 5, 3)
    assert np.abs(exact[:, 2] - annotations).max() < 0.1
    np.testing.assert_allclose(exact[:, 1], exact[:, 2], atol=0.2)
    noisy = simulate_tracks(regions, smooth=3, seed=5, bins=5, resolution=2e4, noise=1.0).astype(float)
    clean = simulate_tracks(regions, smooth=3, seed=5, bins=5, resolution=2e4, noise=0.0).astype(float)
    assert np.std(noisy - clean) == pytest.approx(1, abs=0.1)
    same = np.flatnonzero(regions[0].position // 2e4 == 3)
    assert len(same) > 1
    np.testing.assert_array_equal(noisy[same[0]], noisy[same[-1]])
    with pytest.raises(InputError, match="odd number"):
        simulate_tracks(regions, bins=4)


def test_shapes_are_planted_in_their_place_and_decoys_elsewhere():
    problem = motif.Problem(bases=96, distance=30, height=20.0)
    told = np.arange(2000) % 10 == 0
    signal = motif.plant_shape(problem, told, np.random.default_rng(0))
    assert signal.shape == (2000, 48, 4)
    high = (np.abs(signal) > 10).all(axis=2)
    place = (48 + 30) // 2 - problem.shape // 2
    assert high[told].sum(axis=0).nonzero()[0].tolist() == list(range(place, place + problem.shape))
    runs = high[~told]
    assert runs.any(axis=1).sum() == told.sum()
    assert not runs[:, place - 1 : place + problem.shape + 1].all(axis=1).any()


def test_motifs_are_planted_in_their_place_and_decoys_elsewhere():
    problem = motif.Problem(bases=96, distance=30)
    both, told = motif.plant(problem, 4000, np.random.default_rng(0))
    place = 48 + 30 - problem.motif // 2
    words = np.lib.stride_tricks.sliding_window_view(both[:, 0], problem.motif, axis=1)
    planted = words[np.flatnonzero(told)[0], place]
    here = (words == planted).all(axis=2)
    assert here[told, place].all()
    assert not here[~told, place].any()
    assert told.mean() == pytest.approx(problem.planted, abs=0.02)
    assert here[~told].any(axis=1).mean() == pytest.approx(problem.planted / (1 - problem.planted), abs=0.03)
    differ = both[:, 0] != both[:, 1]
    assert differ[:, 48].all()
    assert differ.sum() == 4000


@pytest.mark.slow
def test_quick_objectives_writes_its_figures_and_picture(tmp_path):
    pytest.importorskip("msprime")
    done = run("objectives", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "objectives-quick.json").read_text())
    assert (tmp_path / "objectives-quick.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(found["contenders"]) == 10
    assert len(found["runs"]) == 10 * len(QUICK.learning_rates) * len(QUICK.seeds)
    assert set(found["polygenic_r2"]) == {*found["contenders"], "oracle", "constant"}
    assert all(len(x["gain_by_block"]) == 25 for x in found["example"].values())
    assert contest.mean_and_error([1.0, 3.0]) == {"mean": 2.0, "standard_error": 1.0}
