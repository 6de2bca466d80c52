"""Directed effects of trait on trait: gradient, calibration, directions, chains, pleiotropy, confounding, bad input."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, multivariate_normal, norm

from deepwas.errors import DeepwasError, InputError
from deepwas.pleiotropy.structure import TraitEffects, select_instruments, trait_effects
from deepwas.pleiotropy.structure.effects import _off
from deepwas.pleiotropy.structure.likelihood import InstrumentLikelihood

OVERLAP = 0.3
N = 2e5


def noise_of(K):
    return np.full((K, K), OVERLAP) + (1 - OVERLAP) * np.eye(K)


def simulate(seed, T, *, blocks=400, m=10, n=N, h2=0.15, causal=0.08, pleiotropic=0.0, latent=None, overlap=True):
    """z of AR(0.8) blocks of m variants; a share has direct effects on one trait, and another on two at random.

    latent: effects of a heritable factor on the traits, which has as many variants of its own as a trait has.
    """
    rng = np.random.default_rng(seed)
    K, M = len(T), blocks * m
    D = (rng.random((M, K)) < causal) * rng.normal(size=(M, K))
    for i in np.flatnonzero(rng.random(M) < pleiotropic):
        D[i, rng.choice(K, 2, replace=False)] = rng.normal(size=2)
    D *= np.sqrt(h2 / (D**2).sum(axis=0))
    if latent is not None:
        factor = (rng.random(M) < causal) * rng.normal(size=M)
        D = D + (factor * np.sqrt(h2 / (factor**2).sum()))[:, None] * np.asarray(latent)
    B = (D @ np.linalg.inv(np.eye(K) - T)).reshape(blocks, m, K)
    R = 0.8 ** np.abs(np.subtract.outer(np.arange(m), np.arange(m)))
    C = noise_of(K) if overlap else np.eye(K)
    E = np.linalg.cholesky(R) @ rng.normal(size=(blocks, m, K)) @ np.linalg.cholesky(C).T
    return (np.sqrt(n) * R @ B + E).reshape(M, K), np.repeat(np.arange(blocks), m), C


def edges(K, **effects):
    T = np.zeros((K, K))
    for name, value in effects.items():
        T[int(name[1]), int(name[2])] = value
    return T


def random_model(K=3, n=60, seed=0):
    rng = np.random.default_rng(seed)
    noise = noise_of(K) / 1e4
    model = InstrumentLikelihood(0.03 * rng.normal(size=(n, K)), rng.integers(0, K, n), noise, np.arange(n) // 6)
    theta = model.start()
    return model, theta + 0.2 * rng.normal(size=len(theta))


def test_the_likelihood_is_that_of_the_mixture_given_the_causes_effect():
    model, theta = random_model()
    T, log_slab, background, logits = model.unpack(theta)
    A = np.linalg.inv(np.eye(3) - T)
    L = np.sqrt(np.diag(model.noise))[:, None] * background
    pi = np.exp(logits) / np.exp(logits).sum()
    expected = 0.0
    for b, cause in zip(model.b, model.trait, strict=True):
        top = bottom = 0.0
        for share, delta in zip(pi, model.delta, strict=True):
            V = A.T @ np.diag(delta * np.exp(log_slab)) @ A + L @ L.T + model.noise
            top += share * multivariate_normal(np.zeros(3), V).pdf(b)
            bottom += share * norm.pdf(b[cause], scale=np.sqrt(V[cause, cause]))
        expected += np.log(top / bottom)
    assert model.value_and_gradient(theta, prior=False)[0] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("wider", [False, True])
def test_the_gradient_is_the_slope_of_the_likelihood(wider):
    model, theta = random_model()
    if wider:
        model, theta = model.with_edge_off(0, 1), np.append(theta, -0.5)
    _, gradient = model.value_and_gradient(theta)
    slopes = np.empty_like(theta)
    for i in range(len(theta)):
        step = np.zeros_like(theta)
        step[i] = 1e-5
        slopes[i] = (model.value_and_gradient(theta + step)[0] - model.value_and_gradient(theta - step)[0]) / 2e-5
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-5 * np.abs(slopes).max())
    prior = gradient - model.value_and_gradient(theta, prior=False)[1]
    np.testing.assert_allclose(model.scores(theta).sum(axis=0), gradient - prior, rtol=1e-9, atol=1e-9)


def test_one_step_without_a_group_is_near_the_maximum_without_it():
    z, blocks, C = simulate(3, edges(2, e01=0.3))
    chosen = select_instruments(z, blocks)
    group = chosen.block * 10 // (chosen.block.max() + 1)
    model = InstrumentLikelihood(z[chosen.rows] / np.sqrt(N), chosen.trait, C / N, group)
    free = np.ones(model.ends[-1], bool)
    theta, _ = model.maximise(model.start(), free)
    steps = model.left_out(theta, free)[:, :2] - theta[:2]
    exact = np.empty_like(steps)
    for g in range(10):
        keep = group != g
        numbers = np.unique(group[keep], return_inverse=True)[1]
        less = InstrumentLikelihood(model.b[keep], model.trait[keep], model.noise, numbers)
        exact[g] = less.maximise(theta, free)[0][:2] - theta[:2]
    assert np.abs(steps - exact).max() < 0.25 * np.abs(exact).max()
    np.testing.assert_allclose(steps.std(axis=0), exact.std(axis=0), rtol=0.1)


def test_directions_chains_and_feedback_free_edges_are_found():
    truth = edges(4, e01=0.3, e12=0.4, e30=-0.25)
    z, blocks, C = simulate(1, truth, pleiotropic=0.02)
    found = trait_effects(z, np.full(4, N), C, blocks, names=("a", "b", "c", "d"))
    assert (found.selected == (truth != 0)).all(), found.notes
    at = truth != 0
    assert (np.abs(found.T - truth)[at] < 4 * found.standard_error[at]).all()
    assert (found.standard_error[at] < 0.05).all()
    assert (found.T[~at] == 0).all()
    np.testing.assert_allclose(found.total[3, 2], found.T[3, 0] * found.T[0, 1] * found.T[1, 2], rtol=1e-10)
    draws = found.draws(400, seed=1)
    np.testing.assert_allclose(draws[:, at].std(axis=0), found.standard_error[at], rtol=0.2)
    assert (draws[:, ~at] == 0).all()


def test_nothing_is_found_where_there_is_only_direct_pleiotropy_and_errors_are_calibrated():
    """Null pairs are rejected at the nominal rate, and intervals of a true effect cover it, over independent data."""
    scores, covered, selected = [], [], []
    truth = edges(3, e01=0.2)
    for seed in range(10):
        z, blocks, C = simulate(100 + seed, truth, blocks=300, pleiotropic=0.04)
        found = trait_effects(z, np.full(3, N), C, blocks)
        null = (truth == 0) & ~np.eye(3, dtype=bool)
        scores.append((found.estimate / found.estimate_error)[null])
        covered.append(abs(found.estimate[0, 1] - 0.2) < 1.96 * found.estimate_error[0, 1])
        selected.append(found.selected)
    assert np.sum(selected, axis=0)[0, 1] >= 7
    assert np.sum(selected) - np.sum(selected, axis=0)[0, 1] <= 3
    rejected = (np.abs(np.concatenate(scores)) > 1.96).sum()
    assert rejected <= binom.isf(0.005, 10 * 5, 0.05)
    assert 0.75 < np.concatenate(scores).std() < 1.25
    assert sum(covered) >= binom.isf(0.995, 10, 0.95)


def test_a_confounder_is_no_edge():
    for seed, latent in ((1, (0.9, 0.9)), (2, (1.2, 0.8))):
        z, blocks, C = simulate(seed, edges(2), latent=latent)
        found = trait_effects(z, np.full(2, N), C, blocks, names=("a", "b"))
        assert not found.selected.any()
        assert (found.T == 0).all()
        assert found.unresolved.any() == any("unresolved" in note for note in found.notes)


def test_instruments_without_the_edge_are_counted():
    """Six in ten of trait 0's instruments act on trait 1, as through a confounder; then all of them."""
    rng = np.random.default_rng(5)
    shares = {}
    for acting in (0.6, 1.0):
        b0 = rng.normal(size=300) * 0.03
        b1 = np.where(rng.random(300) < acting, 0.8 * b0, 0)
        own = rng.normal(size=300) * 0.03
        b = np.vstack([np.column_stack([b0, b1]), np.column_stack([np.zeros(300), own])])
        b += rng.normal(size=b.shape) / np.sqrt(N)
        trait = np.repeat([0, 1], 300)
        keep = np.abs(b[np.arange(600), trait]) * np.sqrt(N) > 5.45
        model = InstrumentLikelihood(b[keep], trait[keep], np.eye(2) / N, np.arange(keep.sum()) // 20)
        support = np.array([[False, True], [False, False]])
        shares[acting] = _off(model, model.search(support), support, 0, 1)
    assert shares[0.6][0] == pytest.approx(0.4, abs=0.12)
    assert shares[0.6][1] > 50
    assert shares[1.0][0] < 0.1


def test_instruments_are_leads_of_blocks_or_of_clumps():
    z = np.zeros((6, 2))
    z[[0, 1, 2], 0] = 7, 9, -8
    z[4, 1] = -6
    z[5] = 20, np.nan
    blocks = np.array([3, 3, 3, 8, 8, 8])
    R = {3: np.eye(3), 8: np.eye(3)}
    R[3][0, 1] = R[3][1, 0] = 0.5
    plain = select_instruments(z, blocks)
    assert (plain.rows.tolist(), plain.trait.tolist(), plain.block.tolist()) == ([1, 4], [0, 1], [0, 1])
    clumped = select_instruments(z, blocks, correlation=R.__getitem__)
    assert clumped.rows.tolist() == [1, 2, 4]
    with pytest.raises(InputError, match="follow one another"):
        select_instruments(z, blocks[[0, 3, 1, 4, 2, 5]])


def test_without_instruments_nothing_is_estimated_and_it_is_said():
    rng = np.random.default_rng(0)
    z, blocks = rng.normal(size=(300, 2)), np.repeat(np.arange(30), 10)
    found = trait_effects(z, [1e5, 1e5], np.eye(2), blocks)
    assert (found.T == 0).all()
    assert np.isnan(found.estimate).all()
    assert "too few LD blocks" in found.notes[-1]
    assert not found.draws(3).any()


def test_bad_input_is_refused():
    z, blocks, C = simulate(0, edges(2), blocks=20)
    for change, message in (
        ({"z": z[:, :1], "noise": C[:1, :1]}, "two traits or more"),
        ({"noise": np.array([[1, 2], [2, 1.0]])}, "positive definite"),
        ({"noise": np.array([[1, 0.99], [0.99, 1]])}, "trait1 and trait2 is the same"),
        ({"z": z * [1, 0]}, "trait2: all z-scores"),
        ({"sample_size": [N, 0]}, "trait2: N is 0"),
        ({"names": ("a", "a")}, "different names"),
        ({"fdr": 1.0}, "fdr is 1.0"),
        ({"z": np.ones((200, 21)), "noise": np.eye(21)}, "at most 20 traits"),
    ):
        given = {"z": z, "sample_size": [N, N], "noise": C, "blocks": blocks} | change
        with pytest.raises(InputError, match=message):
            trait_effects(**given)


def test_given_effects_need_errors_and_an_end_to_every_loop():
    T = edges(3, e01=0.5, e12=0.4)
    errors = np.where(T != 0, 0.1, np.nan)
    found = TraitEffects.given(T, errors, names=("a", "b", "c"))
    assert found.total[0, 2] == pytest.approx(0.2)
    assert found.draws(2000)[:, 0, 1].std() == pytest.approx(0.1, rel=0.1)
    with pytest.raises(InputError, match="without standard errors"):
        TraitEffects.given(T, None)
    errors[1, 2] = np.nan
    with pytest.raises(InputError, match="b -> c"):
        TraitEffects.given(T, errors, names=("a", "b", "c"))
    with pytest.raises(InputError, match="diagonal"):
        TraitEffects.given(np.eye(2), np.zeros((2, 2)))
    with pytest.raises(DeepwasError, match="spectral radius"):
        TraitEffects.given(edges(2, e01=1.2, e10=1.2), np.full((2, 2), 0.1))
