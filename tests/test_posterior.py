"""Posterior effects of one block against dense algebra, in both solvers and both precisions."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy.stats import binom

from deepwas.errors import ConvergenceWarning, InputError
from deepwas.ld import LDBlock
from deepwas.posterior import effects, posterior_effects
from deepwas.posterior.effects import Way, posterior_of_factor
from tests.dense import Trait, covariance, ld_matrix, simulated_trait, third

KINDS = ("ar1", "panel", "duplicates")


def conditional(W: np.ndarray, trait: Trait) -> tuple[np.ndarray, np.ndarray]:
    """Mean (m,) and covariance (m, m) of beta given W z, from their joint normal density."""
    to_all = W @ trait.R[trait.scored]
    V = W @ covariance(trait) @ W.T
    F = np.diag(trait.f)
    between = np.sqrt(trait.sample_size) * F @ to_all.T
    inverse = np.linalg.inv(V)
    return between @ inverse @ (W @ trait.z), F - between @ inverse @ between.T


def problem(kind: str, flanks: bool = False, sample_size: float = 1e4, noise: float = 1.2, seed: int = 0):
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    m = 60
    R = ld_matrix(kind, m, rng)
    scored = third(m, rng) if flanks else None
    trait = simulated_trait(R, rng, scored=scored, sample_size=sample_size, noise=noise)
    return LDBlock.from_correlation(R, scored), trait


@pytest.mark.parametrize("sample_size", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flanks", [False, True])
def test_cholesky_is_the_joint_normal_conditional(kind, flanks, sample_size):
    block, trait = problem(kind, flanks, sample_size)
    found = posterior_effects(
        block, trait.z, trait.f, sample_size=trait.sample_size, noise=trait.noise, solver="cholesky"
    )
    mean, V = conditional(block.whitener, trait)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6, atol=1e-9 * np.abs(mean).max())
    np.testing.assert_allclose(found.variance, np.diag(V), rtol=1e-6)
    assert (found.standard_error == 0).all()
    assert found.info.solver == "cholesky"
    assert found.info.converged


def test_regular_ld_needs_no_whitening():
    """z itself, N R F R + noise R, inverted in full."""
    _, trait = problem("ar1")
    block = LDBlock.from_correlation(trait.R, eigenvalue_floor=0)
    assert block.k == block.m
    found = posterior_effects(block, trait.z, trait.f, sample_size=trait.sample_size, noise=trait.noise)
    inverse = np.linalg.inv(covariance(trait))
    between = np.sqrt(trait.sample_size) * np.diag(trait.f) @ trait.R
    np.testing.assert_allclose(found.mean, between @ inverse @ trait.z, rtol=1e-5)
    expected = trait.f - np.einsum("ij,jk,ik->i", between, inverse, between)
    np.testing.assert_allclose(found.variance, expected, rtol=1e-5)
    np.testing.assert_allclose(found.sd**2, found.variance)


@pytest.mark.parametrize(("kind", "flanks"), [("ar1", False), ("panel", False), ("panel", True)])
def test_cg_means_are_exact_and_all_else_within_standard_errors(kind, flanks):
    block, trait = problem(kind, flanks, sample_size=1e3)
    mean, V = conditional(block.whitener, trait)
    chosen = {"sample_size": 1e3, "noise": trait.noise, "genetic_variance": True}
    exact = posterior_effects(block, trait.z, trait.f, solver="cholesky", **chosen).genetic_variance
    errors, offs = [], []
    for key in range(8):
        given = jax.random.key(key) if key % 2 else key
        found = posterior_effects(block, trait.z, trait.f, key=given, solver="cg", **chosen)
        np.testing.assert_allclose(found.mean, mean, rtol=1e-5, atol=1e-6 * np.abs(mean).max())
        errors.append(found.standard_error)
        offs.append(found.variance - np.diag(V))
        assert found.info.solver == "cg"
        assert found.info.converged
        assert 0 < found.info.steps < 40
        g = found.genetic_variance
        assert 0 < g.standard_error < 0.1 * g.mean
        assert abs(g.mean - exact.mean) < 4 * g.standard_error
        assert abs(g.expected_score - exact.expected_score) < 4 * g.standard_error
        assert g.score == pytest.approx(exact.score, rel=1e-5)
        assert np.isnan(g.sd)
    assert (np.abs(offs) <= 4 * np.array(errors) + 1e-12 * trait.f).mean() > 0.99
    # The errors stated are those seen: their mean squares agree.
    ratio = np.mean(np.square(offs)) / np.mean(np.square(errors))
    assert 0.5 < ratio < 2
    # And the control variate leaves little of them.
    assert np.median(np.divide(errors, trait.f)) < 0.05


def test_low_rank_preconditioner_serves_concentrated_variance():
    block, trait = problem("ar1")
    f = trait.f.copy()
    f[[7, 30]] *= 3000
    mean, V = conditional(block.whitener, trait._replace(f=f))
    found = posterior_effects(block, trait.z, f, sample_size=trait.sample_size, noise=trait.noise, solver="cg", rank=2)
    assert found.info.rank == 2
    np.testing.assert_allclose(found.mean, mean, rtol=1e-4, atol=1e-6 * np.abs(mean).max())
    assert (np.abs(found.variance - np.diag(V)) <= 4 * found.standard_error + 1e-12 * f).mean() > 0.99


def test_float32_is_float64_to_its_precision(float32):
    block, trait = problem("ar1", sample_size=1e3)
    assert block.factor.dtype == np.float32
    mean, V = conditional(block.whitener, trait)
    for solver, within in (("cholesky", 1e-5), ("cg", 1e-3)):
        found = posterior_effects(block, trait.z, trait.f, sample_size=1e3, noise=trait.noise, solver=solver)
        assert np.abs(found.mean - mean).max() < within * np.abs(mean).max()
        off = np.abs(found.variance - np.diag(V))
        assert (off <= 4 * found.standard_error + within * trait.f).mean() > 0.99


def test_sample_sizes_of_their_own_and_missing_variants():
    """z = diag(sqrt N) R beta + e on the observed variants, against the dense conditional."""
    rng = np.random.default_rng(3)
    block, trait = problem("ar1", noise=1.0)
    n = rng.uniform(5e3, 2e4, 60)
    R, f = trait.R, trait.f
    for observed in (np.ones(60, bool), rng.random(60) < 0.7):
        to_all = np.sqrt(n[observed])[:, None] * R[observed]
        V = to_all @ np.diag(f) @ to_all.T + R[np.ix_(observed, observed)]
        z = to_all @ (np.sqrt(f) * rng.standard_normal(60)) + np.linalg.cholesky(
            R[np.ix_(observed, observed)]
        ) @ rng.standard_normal(observed.sum())
        between = np.diag(f) @ to_all.T
        mean = between @ np.linalg.solve(V, z)
        variance = f - np.einsum("ij,ji->i", between, np.linalg.solve(V, between.T))
        if observed.all():
            found = posterior_effects(block, z, f, sample_size=n)
        else:
            own = block.restrict(observed, n / n[observed].mean())
            found = posterior_effects(own, z, f, sample_size=n[observed].mean())
        np.testing.assert_allclose(found.mean, mean, rtol=1e-5, atol=1e-7 * np.abs(mean).max())
        np.testing.assert_allclose(found.variance, variance, rtol=1e-5)


@pytest.mark.parametrize(("kind", "flanks"), [("ar1", False), ("panel", True)])
def test_genetic_variance_is_that_of_the_dense_posterior(kind, flanks):
    block, trait = problem(kind, flanks)
    S = trait.scored
    mean, V = conditional(block.whitener, trait)
    m, V = mean[S], V[np.ix_(S, S)]
    H = np.linalg.pinv(block.whitener).T
    R = H.T @ H
    found = posterior_effects(
        block, trait.z, trait.f, sample_size=trait.sample_size, noise=trait.noise, genetic_variance=True
    )
    g = found.genetic_variance
    assert g.mean == pytest.approx(m @ R @ m + np.trace(R @ V))
    assert g.sd**2 == pytest.approx(2 * np.trace(R @ V @ R @ V) + 4 * m @ R @ V @ R @ m)
    assert g.score == pytest.approx(m @ R @ m)
    assert g.prior == pytest.approx(np.trace(R @ np.diag(trait.f[S])))
    # Total variance: what the score explains and what stays unknown, before z is seen.
    assert g.expected_score + np.trace(R @ V) == pytest.approx(g.prior)
    assert g.standard_error == 0


def test_score_and_genetic_variance_are_calibrated_on_average():
    """E |H m|^2 and E beta' R beta over draws from the model; the former is also the covariance with the trait."""
    block, trait = problem("ar1")
    rng = np.random.default_rng(5)
    root = np.linalg.cholesky(trait.R)
    seen = []
    for _ in range(300):
        beta = np.sqrt(trait.f) * rng.standard_normal(60)
        z = 100 * trait.R @ beta + np.sqrt(trait.noise) * root @ rng.standard_normal(60)
        found = posterior_effects(block, z, trait.f, sample_size=1e4, noise=trait.noise, genetic_variance=True)
        g = found.genetic_variance
        truth = beta @ trait.R @ beta
        seen.append((g.score, found.mean @ trait.R @ beta, g.mean, truth, (truth - g.mean) / g.sd))
    score, together, mean, truth, standard = np.transpose(seen)

    def same(a, b):
        off = np.mean(a - b)
        return abs(off) < 4 * np.std(a - b) / np.sqrt(len(a))

    assert same(score, np.full(300, g.expected_score))
    assert same(score, together)
    assert same(mean, truth)
    assert 0.85 < standard.std() < 1.15


def test_intervals_of_95_percent_cover_94_to_96_percent():
    """4,000 data sets of 50 variants: the exact binomial interval of single variants' coverage is narrower than 1%."""
    rng = np.random.default_rng(11)
    R = ld_matrix("duplicates", 50, rng)
    block = LDBlock.from_correlation(R)
    f = rng.exponential(size=50) * 2e-4
    draws, N = 4000, 1e4
    root = np.linalg.eigh(R)
    half = root[1] * np.sqrt(np.maximum(root[0], 0))
    beta = np.sqrt(f)[:, None] * rng.standard_normal((50, draws))
    z = np.sqrt(N) * R @ beta + half @ rng.standard_normal((50, draws))
    one = posterior_effects(block, z[:, 0], f, sample_size=N)
    # The mean is linear in z, and the variance does not hang on it: the operator from 50 unit z-scores.
    unit = np.stack([posterior_effects(block, e, f, sample_size=N).mean for e in np.eye(50)], axis=1)
    mean = unit @ z
    np.testing.assert_allclose(mean[:, 0], one.mean, atol=1e-12)
    covered = np.abs(beta - mean) <= 1.959964 * one.sd[:, None]
    low, high = binom.interval(0.9999, draws, 0.95)
    assert low / draws > 0.935
    assert high / draws < 0.965
    counts = covered.sum(axis=1)
    assert ((counts >= low) & (counts <= high)).all()
    assert 0.94 < covered.mean() < 0.96


def changed(monkeypatch, change):
    """Pass what CG finds through `change`."""
    real = effects.solve_cg
    monkeypatch.setattr(effects, "solve_cg", lambda *given, **how: change(real(*given, **how)))


@pytest.mark.parametrize("factor", [0.0, 3.0])
def test_estimates_of_the_variance_are_held_to_its_bounds(monkeypatch, factor):
    block, trait = problem("ar1", sample_size=1e3)
    changed(monkeypatch, lambda solved: solved._replace(energy=factor * solved.energy))
    found = posterior_effects(block, trait.z, trait.f, sample_size=1e3, solver="cg", genetic_variance=True)
    alone = trait.f / (1 + 1e3 * trait.f * (block.factor**2).sum(axis=0))
    exact = posterior_effects(block, trait.z, trait.f, sample_size=1e3).variance
    assert ((alone < exact) & (exact < trait.f)).all()
    expected = trait.f if factor == 0 else np.maximum(alone, trait.f - factor * (trait.f - exact))
    assert (np.abs(found.variance - expected) <= factor * 5 * found.standard_error + 1e-12).mean() > 0.98
    assert (found.variance >= alone * (1 - 1e-12)).all()
    assert (found.variance <= trait.f).all()


def test_no_variance_means_no_effect():
    block, trait = problem("ar1")
    f = trait.f.copy()
    f[:5] = 0
    found = posterior_effects(block, trait.z, f, sample_size=1e4)
    assert (found.mean[:5] == 0).all()
    assert (found.variance[:5] == 0).all()


def test_a_solve_that_does_not_converge_falls_back_or_says_so(monkeypatch):
    block, trait = problem("ar1", sample_size=1e3)
    chosen = {"sample_size": 1e3, "genetic_variance": True}
    exact = posterior_effects(block, trait.z, trait.f, **chosen)
    assert exact.info.solver == "cholesky"
    monkeypatch.setattr(effects, "EXACT_UP_TO", 0)
    assert posterior_effects(block, trait.z, trait.f, **chosen).info.solver == "cg"
    changed(monkeypatch, lambda solved: solved._replace(info=solved.info._replace(converged=False)))
    fallen = posterior_effects(block, trait.z, trait.f, rank=0, **chosen)
    assert fallen.info.solver == "cholesky"
    np.testing.assert_array_equal(fallen.variance, exact.variance)
    assert fallen.genetic_variance == exact.genetic_variance
    with pytest.warns(ConvergenceWarning, match="the posterior is not reliable"):
        posterior_effects(block, trait.z, trait.f, solver="cg", rank=0, **chosen)


def test_bad_arguments_are_refused():
    block, trait = problem("ar1")
    z, f = trait.z, trait.f
    bad = [
        ({"z": z[1:]}, r"z has shape \(59,\)"),
        (
            {"f": np.where(np.arange(60) == 3, np.nan, f)},
            "effect_variance must be finite and >= 0; found nan at index 3",
        ),
        ({"f": -f}, "effect_variance must be finite and >= 0"),
        ({"sample_size": 0}, "sample_size must be finite and > 0"),
        ({"noise": np.nan}, "noise must be finite"),
        ({"solver": "lu"}, "solver is 'lu'"),
        ({"probes": 1}, "at least 2"),
    ]
    for change, text in bad:
        given = {"z": z, "f": f, "sample_size": 1e4, "solver": "cg"} | change
        with pytest.raises(InputError, match=text):
            posterior_effects(block, given.pop("z"), given.pop("f"), **given)
    with pytest.raises(InputError, match="give an LDBlock"):
        posterior_effects(trait.R, z, f, sample_size=1e4)
    G, y = block.factor.astype(np.float16), block.whiten(z)
    with pytest.raises(InputError, match="decode it"):
        posterior_of_factor(G, y, f, sample_size=1e4, noise=1.0, way=Way("cg"))
