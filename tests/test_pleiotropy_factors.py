"""Heritable factors behind several traits: found where there are some, and what learned pairs of traits cost them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.factors import HeritableFactor, find_factors
from deepwas.pleiotropy.model_of import BlocksToLocate, _with_factors
from deepwas.pleiotropy.sharing import price_of_pairs

N, SLAB = 1e5, 9e-4
CN = np.array([[1.0, 0.3, 0.0], [0.3, 1.0, 0.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("confounded", [0, 12, 25])
def test_a_heritable_factor_is_found_where_there_is_one(confounded):
    rng = np.random.default_rng(1)
    masks, error = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]]), CN / N
    covariances = 4e-4 * np.stack([np.diag(mask) for mask in masks])
    loadings = np.array([0.02, -0.015, 0.0])
    own = rng.normal(size=(30, 3)) * 0.02 * masks[rng.integers(4, size=30)]
    through = rng.normal(size=(confounded, 1)) * loadings[None, :]
    effects = np.concatenate([own, through]) + rng.multivariate_normal(np.zeros(3), error, 30 + confounded)
    every = np.ones(len(effects))
    found = find_factors(effects, every, covariances, np.full(3, 4e-4), error)
    likely = [one for one in found if one.probability > 0.5]
    if not confounded:
        assert likely == []
        return
    (one,) = likely
    assert one is found[0]
    assert one.loadings[2] == 0
    assert one.loadings[1] / one.loadings[0] == pytest.approx(-0.75, abs=0.1)
    assert 0.6 * confounded - 1 < one.members < 1.4 * confounded + 2
    assert find_factors(effects[:, :2], every, covariances[:, :2, :2], np.full(2, 4e-4), error[:2, :2]) == []


def test_several_heritable_factors_are_told_apart():
    rng = np.random.default_rng(3)
    sets = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 1]])
    covariances = 4e-4 * np.stack([np.diag(mask) for mask in sets])
    a, b = np.array([0.02, -0.015, 0.0, 0.01]), np.array([0.0, 0.015, 0.02, 0.0])
    own = rng.normal(size=(20, 4)) * 0.02 * sets[rng.integers(4, size=20)]
    effects = np.concatenate([own, rng.normal(size=(12, 1)) * a, rng.normal(size=(8, 1)) * b])
    effects += 1e-3 * rng.normal(size=effects.shape)
    found = find_factors(effects, np.ones(40), covariances, np.full(4, 4e-4), 1e-6 * np.eye(4))
    assert [one.probability > 0.5 for one in found[:3]] == [True, True, False][: len(found)]
    assert len(found) >= 2
    for one, true in zip(found[:2], (a, b), strict=True):
        assert abs(one.loadings @ true) > 0.99 * np.linalg.norm(one.loadings) * np.linalg.norm(true)
        assert one.evidence > 0


def test_a_factor_of_weak_effects_is_found_among_many_strong_ones():
    rng = np.random.default_rng(4)
    K, own, through = 6, 90, 20
    sets = np.array([[c >> k & 1 for k in range(K)] for c in range(1, 2**K) if bin(c).count("1") >= 2], float)
    acts = sets[rng.integers(len(sets), size=own)]
    loading = np.array([0.9, 0.7, 0.6, 0, 0, 0])
    line = rng.choice([-1, 1], size=through) * rng.uniform(0.6, 1.2, size=through)
    effects = np.concatenate([acts * rng.normal(0, 0.02, size=acts.shape), 0.02 * np.outer(line, loading)])
    effects += rng.normal(0, 1e-3, size=effects.shape)
    covariances = 4e-4 * sets[:, :, None] * np.eye(K)
    found = find_factors(effects, np.ones(own + through), covariances, np.full(K, 4e-4), 1e-6 * np.eye(K))
    assert len(found) == 1
    assert found[0].members == pytest.approx(through, abs=3)
    assert found[0].probability > 0.99
    a = np.abs(found[0].loadings)
    np.testing.assert_allclose(a / a.max(), loading / 0.9, atol=0.05)
    # The strongest are others.
    assert np.sort(np.square(effects[:own]).sum(axis=1))[-30] > np.square(effects[own:]).sum(axis=1).max()


def test_two_traits_that_alone_share_variants_are_no_factor():
    """Own effects of two traits of six: were all pairs as likely to share, lines among them would look like factors."""
    rng = np.random.default_rng(2)
    K, n = 6, 90
    sets = np.array([[c >> k & 1 for k in range(K)] for c in range(1, 2**K) if bin(c).count("1") >= 2], float)
    share = np.where((sets.sum(axis=1) == 2) & (sets[:, 0] * sets[:, 1] == 1), 0.0, -6.0)
    covariances = 4e-4 * sets[:, :, None] * np.eye(K)
    blind = known = paid = 0
    for _ in range(5):
        effects = rng.normal(0, 0.02, size=(n, K)) * (np.arange(K) < 2) + rng.normal(0, 2e-3, size=(n, K))
        given = effects, np.ones(n), covariances, np.full(K, 4e-4), 4e-6 * np.eye(K)
        blind += sum(one.probability > 0.5 for one in find_factors(*given))
        known += sum(one.probability > 0.5 for one in find_factors(*given, share))
        paid += sum(one.probability > 0.5 for one in find_factors(*given, share, 30.0))
    assert blind > 5
    assert known <= 1
    assert paid == known


def test_sets_learned_from_variants_of_a_factor_do_not_explain_it_away():
    """Learned sets have the factor's own often: taken as known they hide it, paid for they do not, nor do they bring
    factors back where two traits alone share."""
    rng = np.random.default_rng(7)
    K, own, through = 6, 24, 6
    sets = np.array([[c >> k & 1 for k in range(K)] for c in range(1, 2**K) if bin(c).count("1") >= 2], float)
    acts = sets[rng.integers(len(sets), size=own)]
    loading = np.array([0.0, -0.01, 0.01, 0.008, 0.0, 0.0])
    effects = np.concatenate([acts * rng.normal(0, 0.01, (own, K)), rng.normal(size=(through, 1)) * loading])
    effects += rng.normal(0, 2e-3, size=effects.shape)
    pairs = np.zeros((K, K))
    for one, other in ((1, 2), (1, 3), (2, 3)):
        pairs[one, other] = pairs[other, one] = 1.5
    learned = np.einsum("ck,kl,cl->c", sets, pairs, sets) / 2
    price = price_of_pairs(pairs, learned, sets > 0, own + through)
    given = effects, np.ones(own + through), 1e-4 * sets[:, :, None] * np.eye(K), np.full(K, 1e-4), 4e-6 * np.eye(K)
    evidence = [find_factors(*given, *how)[0].evidence for how in ((), (learned, 0.0), (learned, price))]
    assert evidence[1] < evidence[0] - 2
    assert evidence[2] == pytest.approx(evidence[0], abs=0.5)
    assert find_factors(*given, learned, 1e3)[0].evidence == pytest.approx(evidence[0], abs=1e-9)


def test_a_factor_that_no_variant_can_act_through_is_left_out():
    """Priors of a and b are 0 where that of c is not."""
    direct = np.full((20, 3), 1e-5)
    direct[:10, 2] = direct[10:, :2] = 0.0
    model = TraitModel(np.full(3, N), np.eye(3), np.full(3, SLAB), np.zeros((3, 3)), mean_direct=direct.mean(axis=0))
    joint = SimpleNamespace(scored_rows=lambda i: slice(10 * i, 10 * i + 10))
    blocks = BlocksToLocate(joint, direct, [0, 1], [(10, 10)] * 2)
    able = HeritableFactor(np.array([0.02, -0.02, 0.0]), 3.0, 9.0, 0.9)
    unable = HeritableFactor(np.array([0.02, 0.02, 0.01]), 4.0, 9.0, 0.8)
    found = _with_factors(model, [unable, able], blocks)
    np.testing.assert_allclose(found.loadings, able.loadings[None])
    assert found.factor_probability == 0.9
    members = np.exp(found.odds_of_factors(direct)).sum()
    assert members == pytest.approx(3.0)
    assert _with_factors(model, [unable], blocks).factors == 0
    assert _with_factors(model, [], blocks) is model


@pytest.mark.parametrize("counts", [(30, 2, 3, 5), (10, 10, 10, 3), (60, 1, 1, 1)])
def test_price_of_pairs_is_what_integration_gives(counts):
    masks = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]], bool)
    grid, variance = np.linspace(-6, 6, 61), 1.5**2
    b = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), axis=-1).reshape(-1, 3)
    share = b - np.logaddexp.reduce(b, axis=1)[:, None]  # of sets of two traits
    log_likelihood = share @ counts[:3]
    log_joint = log_likelihood - (b**2).sum(axis=1) / (2 * variance) - 1.5 * np.log(2 * np.pi * variance)
    integral = np.logaddexp.reduce(log_joint) + 3 * np.log(grid[1] - grid[0])
    best = int(log_joint.argmax())
    pairs = np.zeros((3, 3))
    pairs[np.triu_indices(3, 1)] = b[best]
    two = np.exp(share[best]) * sum(counts[:3])
    found = price_of_pairs(pairs + pairs.T, np.log(np.append(two, counts[3])), masks, float(sum(counts)))
    assert found == pytest.approx(log_likelihood[best] - integral, abs=0.15)
