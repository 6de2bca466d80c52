"""P(split): whether one shared variant could be two close ones, against dense algebra and on planted effects."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import jax
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.learning import JointBlock, locate
from deepwas.pleiotropy.splitting import split_probabilities

M, N = 16, 1e5
SIGNAL = 60.0
LEAD, NEAR = 6, 8
HOW = {"slots": 3, "candidates": 48}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def ld(r):
    """Of neighbours; the first three variants of one half and the others are hardly in LD."""
    place = np.arange(M)
    R = r ** np.abs(place[:, None] - place[None, :])
    far = np.where(place < 3, 0, 1)
    return R * np.where(far[:, None] == far[None, :], 1.0, 0.1)


def model(**changes):
    noise = np.array([[1.0, 0.2, 0.0], [0.2, 1.0, 0.1], [0.0, 0.1, 1.0]])
    T = np.zeros((3, 3))
    T[0, 2] = 0.2
    excess = np.array([0.0, 0.0, 6.0, 6.0])
    return TraitModel(np.full(3, N), noise, np.full(3, SIGNAL / N), T, excess, **changes)


def block(R, effects, *, noise=0.0, seed=0, people=None):
    """effects: {variant: (K,) z-scores at it}; E is left out by default, so that what is seen is what is expected."""
    values, vectors = np.linalg.eigh(R)
    root = np.sqrt(values)[:, None] * vectors.T  # G, G'G = R
    u = np.zeros((M, 3))
    for j, z in effects.items():
        u[j] = z
    E = noise * np.random.default_rng(seed).normal(size=(M, 3)) @ np.linalg.cholesky(model().noise).T
    return JointBlock(root, root @ u + E, np.full((M, 3), 1e-3 * SIGNAL / N), slice(0, M))


def found(one, model, **how):
    ((_, _, effects),) = locate([one], model, **HOW, **how)
    return effects


def dense(one, model, lead, best, noise):
    """P(split) from densities of all whitened z-scores; no other effect in the block."""
    G, y = one.factor, one.whitened
    corr = G.T @ G
    near = np.flatnonzero(corr[lead] ** 2 > 0.8)
    root = np.asarray(model.classes.root)
    V = root @ np.swapaxes(root, 1, 2)

    def density(*effects):
        S = np.kron(np.eye(len(y)), noise)
        for j, covariance in effects:
            S += np.kron(np.outer(G[:, j], G[:, j]), covariance)
        return multivariate_normal(np.zeros(len(S)), S).logpdf(y.ravel())

    one_effect = [density((j, V[best])) for j in near]
    two = [
        density((a, V[k]), (b, V[best] - V[k]))
        for a, b in permutations(near.tolist(), 2)
        for k in np.flatnonzero(model.masks[best])
    ]
    top = max(one_effect)
    odds = np.exp(np.array(two) - top).mean() / np.exp(np.array(one_effect) - top).mean()
    return odds / (1 + odds)


@pytest.mark.parametrize("traits", [(0, 1), (0, 1, 2)])
def test_is_what_dense_algebra_gives(traits):
    u = np.where(np.isin(np.arange(3), traits), [9.0, -8.0, 7.0], 0.0)
    one = block(ld(0.97), {LEAD: u}, noise=1.0, seed=3)
    used = model()
    effects = found(one, used)
    assert len(effects.sets) == 1
    (got,) = split_probabilities(one, effects, used)
    best = int(np.argmax(np.where(used.masks.sum(axis=1) >= 2, effects.of_sets[0], 0.0)))
    assert got == pytest.approx(dense(one, used, effects.sets[0].lead, best, used.noise), rel=1e-6)
    assert 0 < got < 1


def test_error_of_a_panel_makes_it_less_certain():
    one = block(ld(0.96), {LEAD: np.array([16.0, 15.0, 0.0])})
    used = model()
    exact, careful = found(one, used), found(one, used, panel=300)
    (sure,), (doubted,) = split_probabilities(one, exact, used), split_probabilities(one, careful, used, panel=300)
    assert sure < doubted < 0.5


def test_one_strong_variant_is_no_pair_and_a_pair_is_not_one_variant():
    R = ld(0.96)  # r2 of neighbours 0.92, of those two apart 0.85
    used = model()
    together = block(R, {LEAD: np.array([20.0, 20.0, 0.0])})
    apart = block(R, {LEAD: np.array([20.0, 0.0, 0.0]), NEAR: np.array([0.0, 20.0, 0.0])})
    (one,) = split_probabilities(together, found(together, used), used)
    assert one < 0.05
    # What is called shared there, if nothing else were thought possible:
    effects = found(together, used)
    (two,) = split_probabilities(apart, effects, used)
    assert two > 0.95


def test_perfect_proxies_tell_nothing():
    R = ld(0.85)
    R[LEAD + 1] = R[LEAD]
    R[:, LEAD + 1] = R[:, LEAD]
    R[LEAD + 1, LEAD + 1] = R[LEAD, LEAD + 1] = R[LEAD + 1, LEAD] = 1.0
    R = 0.9999 * R + 0.0001 * np.eye(M)
    one = block(R, {LEAD: np.array([12.0, 12.0, 0.0])})
    used = model()
    (got,) = split_probabilities(one, found(one, used), used)
    assert got == pytest.approx(0.5, abs=0.01)


def test_what_is_alone_is_no_pair_and_what_is_not_shared_is_not_weighed():
    used = model()
    lonely = block(ld(0.8), {LEAD: np.array([12.0, 12.0, 0.0])})
    single = block(ld(0.97), {LEAD: np.array([0.0, 12.0, 0.0])})
    assert split_probabilities(lonely, found(lonely, used), used).tolist() == [0.0]
    assert np.isnan(split_probabilities(single, found(single, used), used)).all()
    nothing = block(ld(0.8), {})
    assert len(split_probabilities(nothing, found(nothing, used), used)) == 0


def test_another_effect_in_ld_is_taken_off():
    R = ld(0.9)
    R[0], R[:, 0] = 0.5 * R[LEAD], 0.5 * R[LEAD]
    R[0, 0] = 1.0
    R[3:, 3:] = ld(0.96)[3:, 3:]
    R = 0.98 * R + 0.02 * np.eye(M)
    assert np.linalg.eigvalsh(R).min() > 0
    used = model()
    shared = {LEAD: np.array([10.0, 10.0, 0.0])}
    alone, beside = block(R, shared), block(R, shared | {0: np.array([0.0, 0.0, 25.0])})
    effects = found(beside, used)
    assert sorted(one.lead for one in effects.sets) == [0, LEAD]
    got = split_probabilities(beside, effects, used)
    where = [one.lead for one in effects.sets].index(LEAD)
    (expected,) = split_probabilities(alone, found(alone, used), used)
    assert got[where] == pytest.approx(expected, rel=0.2)
    assert np.isnan(got[1 - where])


def test_background_counts_as_noise():
    one = block(ld(0.96), {LEAD: np.array([16.0, 15.0, 0.0])})
    used = model()
    behind = replace(used, background=np.full(3, 2.0))
    (sure,) = split_probabilities(one, found(one, used), used)
    (doubted,) = split_probabilities(one, found(one, behind), behind)
    assert sure < doubted < 0.5
