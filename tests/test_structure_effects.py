"""Directed effects of trait on trait: gradient, calibration, directions, chains, pleiotropy, confounding, bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, multivariate_normal, norm

from deepwas.errors import DeepwasError, InputError
from deepwas.pleiotropy.structure import TraitEffects, search, select_instruments, trait_effects
from deepwas.pleiotropy.structure.likelihood import InstrumentLikelihood, configurations
from deepwas.pleiotropy.structure.search import Fitted, fit, off_share, with_errors

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


def random_model(K=3, n=40, seed=0, factors=1):
    """40 variants, 60 instruments: some variants lead two traits, and count half for each."""
    rng = np.random.default_rng(seed)
    variant = np.concatenate([np.arange(n), np.arange(20)])
    trait = np.concatenate([np.zeros(n, int), np.ones(20, int)])
    trait[20:n] = rng.integers(0, K, n - 20)
    weight = 1 / np.bincount(variant)[variant]
    model = InstrumentLikelihood(
        0.03 * rng.normal(size=(n, K)), variant, trait, weight, noise_of(K) / 1e4, factors=factors
    )
    theta = model.start() + 0.2 * rng.normal(size=model.P)
    model.narrow(theta, 0.0)
    return model, theta


@pytest.mark.parametrize("factors", [0, 1])
def test_the_likelihood_is_that_of_the_mixture_given_the_causes_effect(factors):
    model, theta = random_model(factors=factors)
    part = model.unpack(theta)
    A = np.linalg.inv(np.eye(3) - part.T)
    background = A.T @ np.diag(part.background) @ A + model.noise
    background += sum(h * np.outer(w, w) for h, w in zip(part.haze, part.loadings, strict=True))
    pi, covariances = np.exp(model.log_shares(theta)), []
    for delta in model.delta:
        covariances.append(A.T @ np.diag(delta * part.slab) @ A + background)
    for w in part.loadings:
        for delta in np.vstack([np.zeros(3), np.eye(3)]):
            covariances.append(A.T @ np.diag(delta * part.slab) @ A + np.outer(w, w) + background)
    assert pi.sum() == pytest.approx(1)
    expected = 0.0
    for variant, cause, weight in zip(model.variant, model.trait, model.weight, strict=True):
        b = model.b[variant]
        top = sum(share * multivariate_normal(np.zeros(3), V).pdf(b) for share, V in zip(pi, covariances, strict=True))
        own = sum(
            share * norm.pdf(b[cause], scale=np.sqrt(V[cause, cause])) for share, V in zip(pi, covariances, strict=True)
        )
        expected += weight * np.log(top / own)
    constant = 0.5 * np.log(2 * np.pi) * (model.K - 1) * model.weight.sum()
    assert model.value(theta, prior=False) - constant == pytest.approx(expected, rel=1e-10)


def test_shares_by_number_of_traits_are_those_of_the_parameters():
    model, theta = random_model()
    part, pi = model.unpack(theta), np.exp(model.log_shares(theta))
    share = np.exp(part.logits) / np.exp(part.logits).sum()
    size = model.delta.sum(axis=1)
    np.testing.assert_allclose([*(pi[:8][size == n].sum() for n in range(4)), pi[8:].sum()], share, rtol=1e-12)
    pairs = {tuple(np.flatnonzero(c)): x for c, x in zip(model.delta, pi, strict=False) if c.sum() == 2}
    assert pairs[0, 1] / pairs[0, 2] == pytest.approx(np.exp(part.tilt[1] - part.tilt[2]))


@pytest.mark.parametrize("factors", [0, 1, 2])
def test_the_gradient_is_the_slope_of_the_likelihood(factors):
    model, theta = random_model(factors=factors)
    _, gradient = model.value_and_gradient(theta)
    slopes = np.empty_like(theta)
    for i in range(len(theta)):
        step = np.zeros_like(theta)
        step[i] = 1e-5
        slopes[i] = (model.value(theta + step) - model.value(theta - step)) / 2e-5
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-6 * np.abs(slopes).max())
    prior = np.zeros_like(theta)
    model._add_prior(theta, prior)
    scores = model.scores(theta, np.arange(model.n) // 6)
    np.testing.assert_allclose(scores.sum(axis=0), gradient - prior, rtol=1e-9, atol=1e-9)


def test_sets_of_many_traits_are_those_that_variants_suggest():
    assert len(configurations(6)) == 64
    z = np.zeros((2, 12))
    z[0, [1, 4, 7]], z[1, [0, 2, 3, 5, 8, 9]] = 6, -4
    found = {tuple(np.flatnonzero(c)) for c in configurations(12, z)}
    assert {(), (5,), (3, 11), (1, 4, 7), (0, 2, 3, 5, 8, 9), (2, 3, 5, 8, 9), tuple(range(12))} <= found
    assert len(found) == 1 + 12 + 66 + 1 + 1 + 7


def instruments_model(z, blocks, C, **rest):
    chosen = select_instruments(z, blocks)
    rows, first, variant = np.unique(chosen.rows, return_index=True, return_inverse=True)
    weight = 1 / np.bincount(chosen.locus)[chosen.locus]
    model = InstrumentLikelihood(z[rows] / np.sqrt(N), variant, chosen.trait, weight, C / N, **rest)
    return model, chosen.block[first]


def test_errors_are_those_of_refits_without_each_group():
    z, blocks, C = simulate(3, edges(2, e01=0.3))
    model, block = instruments_model(z, blocks, C)
    group = block * 10 // (block.max() + 1)
    found = fit(model, edges(2, e01=1) > 0)
    errors, left_out = with_errors(found, group)
    exact = np.empty(10)
    for g in range(10):
        keep = group != g
        some = keep[model.variant]
        less = InstrumentLikelihood(
            model.b[keep],
            (np.cumsum(keep) - 1)[model.variant[some]],
            model.trait[some],
            model.weight[some],
            model.noise,
        )
        exact[g] = less.unpack(less.maximise(found.theta, found.free)[0]).T[0, 1]
    scale = errors[0, 1] / np.sqrt(0.9 * ((left_out[:, 0, 1] - left_out[:, 0, 1].mean()) ** 2).sum())
    assert scale == pytest.approx(1)
    assert np.corrcoef(exact, left_out[:, 0, 1])[0, 1] > 0.95
    assert 0.6 < errors[0, 1] / np.sqrt(0.9 * ((exact - exact.mean()) ** 2).sum()) < 1.6
    assert np.isnan(errors[1, 0])


def test_ten_instruments_of_a_trait_tell_an_effect_from_a_factor():
    """Four traits, ten own variants each; then a factor on three of them instead of the effects."""
    truth = edges(4, e01=0.3, e12=-0.3)
    for latent in (False, True):
        rng = np.random.default_rng(3)
        direct = np.kron(np.eye(4), np.ones((10, 1))) * rng.normal(size=(40, 1)) * 0.03
        b = direct @ np.linalg.inv(np.eye(4) - truth * (not latent))
        if latent:
            b = np.vstack([b, rng.normal(size=(12, 1)) * 0.03 * np.array([[1.0, 0.8, -0.6, 0]])])
        z = b * np.sqrt(N) + rng.normal(size=b.shape) @ np.linalg.cholesky(noise_of(4)).T
        found = trait_effects(z, np.full(4, N), noise_of(4), np.arange(len(z)))
        at = truth != 0
        if latent:
            assert not found.selected.any(), found.notes
            assert any(
                "a heritable factor stands behind instruments of trait1, trait2, trait3:" in x for x in found.notes
            )
            assert (found.probability < 0.5).all()
        else:
            assert (found.selected == at).all(), found.notes
            assert (np.abs(found.T - truth)[at] < 3 * found.standard_error[at]).all()
            assert (found.standard_error[at] < 0.1).all()


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
    np.testing.assert_allclose((draws != 0).mean(axis=0), found.probability, atol=0.1)
    assert found.probability[~at].max() < 0.3


def test_nothing_is_found_where_there_is_only_direct_pleiotropy_and_errors_are_calibrated():
    """Null pairs are rejected at the nominal rate, and intervals of a true effect cover it, over independent data."""
    scores, covered, selected = [], [], []
    truth = edges(3, e01=0.2)
    for seed in range(6):
        z, blocks, C = simulate(100 + seed, truth, blocks=200, pleiotropic=0.04)
        found = trait_effects(z, np.full(3, N), C, blocks)
        null = (truth == 0) & ~np.eye(3, dtype=bool)
        scores.append((found.estimate / found.estimate_error)[null])
        covered.append(abs(found.estimate[0, 1] - 0.2) < 1.96 * found.estimate_error[0, 1])
        selected.append(found.selected)
    assert np.sum(selected, axis=0)[0, 1] >= 4
    assert np.sum(selected) - np.sum(selected, axis=0)[0, 1] <= 2
    rejected = (np.abs(np.concatenate(scores)) > 1.96).sum()
    assert rejected <= binom.isf(0.005, 6 * 5, 0.05)
    assert 0.7 < np.concatenate(scores).std() < 1.3
    assert sum(covered) >= binom.isf(0.995, 6, 0.95)


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
        n = int(keep.sum())
        model = InstrumentLikelihood(b[keep], np.arange(n), trait[keep], np.ones(n), np.eye(2) / N)
        support = np.array([[False, True], [False, False]])
        theta, value = model.maximise(model.start(), np.ones(model.P, bool) & (np.arange(model.P) != 1))
        shares[acting] = off_share(Fitted(model, theta, support, value), 0, 1)
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
    assert plain.locus.tolist() == [0, 1]
    clumped = select_instruments(z, blocks, correlation=R.__getitem__)
    assert clumped.rows.tolist() == [1, 2, 4]
    # What a strong lead does in weak LD is no lead; what stands out beside it is one.
    weak = {3: np.eye(3), 8: np.eye(3)}
    weak[3][1, 0] = weak[3][0, 1] = weak[3][1, 2] = weak[3][2, 1] = 0.09
    strong = np.array([[6.0, 0], [80, 0], [-8, 0], [0, 0], [0, -6], [0, 0]])
    given = select_instruments(strong, blocks, correlation=weak.__getitem__)
    assert given.rows.tolist() == [1, 2, 4]
    strong[2, 0] = 12
    given = select_instruments(strong, blocks, correlation=weak.__getitem__)
    assert given.rows.tolist() == [1, 4]
    z[0, 1] = 30
    shared = select_instruments(z, blocks, correlation=R.__getitem__)
    assert (shared.rows.tolist(), shared.trait.tolist()) == ([1, 2, 0, 4], [0, 0, 1, 1])
    assert shared.locus.tolist() == [0, 1, 0, 2]
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


def test_draws_hold_each_edge_as_often_as_it_is_likely():
    T, errors = edges(3, e01=0.5), np.full((3, 3), 0.01)
    estimate = edges(3, e01=0.5, e10=0.4, e12=0.2)
    chance = edges(3, e01=0.7, e10=0.2, e12=0.25)
    found = replace(TraitEffects.given(T, errors), estimate=estimate, estimate_error=errors, probability=chance).draws(
        4000
    )
    there = found != 0
    np.testing.assert_allclose(there.mean(axis=0), chance, atol=4 * np.sqrt(0.25 / 4000))
    assert not (there & np.swapaxes(there, 1, 2)).any()
    np.testing.assert_allclose(found[there[:, 1, 0], 1, 0].mean(), 0.4, atol=0.005)
    np.testing.assert_allclose(found[there[:, 0, 1], 0, 1].std(), 0.01, rtol=0.1)


def test_given_effects_need_errors_and_an_end_to_every_loop():
    T = edges(3, e01=0.5, e12=0.4)
    errors = np.where(T != 0, 0.1, np.nan)
    found = TraitEffects.given(T, errors, names=("a", "b", "c"))
    assert found.total[0, 2] == pytest.approx(0.2)
    np.testing.assert_array_equal(found.probability, T != 0)
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


def test_a_factor_starts_from_the_same_variants_however_many_are_tried_at_once(monkeypatch):
    model, theta = random_model(factors=0)
    fitted = Fitted(model, theta, np.zeros((model.K, model.K), bool), 0.0)
    begun: list[list[float]] = []
    monkeypatch.setattr(
        InstrumentLikelihood, "maximise", lambda self, theta, free: (begun[-1].append(theta.sum()), 0.0)
    )
    for chunk in (512, 7):
        monkeypatch.setattr(search, "_CHUNK", chunk)
        begun.append([])
        search._with_factor(fitted)
    assert len(begun[0]) == 3
    np.testing.assert_allclose(begun[1], begun[0])
