"""How far effects follow each trait's prior: exponents, their score, and what is learned of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.learning import JointBlock, learn, locate, score_of_exponents
from deepwas.pleiotropy.model_of import BlocksToLocate, DirectPriors
from deepwas.pleiotropy.run import _of_priors

N, SLAB, SIZE, BLOCKS, K = 1e5, 6e-4, 50, 40, 3
M = SIZE * BLOCKS
MEAN = 0.02 * SLAB


def priors(rng, spread=1.0):
    d = np.exp(spread * rng.normal(size=(M, K)))
    return MEAN * d / d.mean(axis=0)


def blocks_of(whitened, direct, known):
    """Of independent variants."""
    rows = [slice(SIZE * i, SIZE * i + SIZE) for i in range(BLOCKS)]
    joint = SimpleNamespace(
        rows=lambda i: rows[i],
        factor=lambda i: np.eye(SIZE),
        whitened=[whitened[x] for x in rows],
        scored=lambda i: slice(2, SIZE - 2),
    )
    return BlocksToLocate(joint, direct, range(BLOCKS), [(SIZE, SIZE)] * BLOCKS, priors=known)


def test_priors_are_raised_about_their_mean_and_what_is_0_stays_0():
    rng = np.random.default_rng(0)
    d = priors(rng)
    d[:50, 0] = 0.0
    d[:, 2] = MEAN
    inside = np.arange(M) >= 20
    known = DirectPriors(d, inside)
    np.testing.assert_array_equal(known.raised(np.ones(K)), d)
    t = np.array([0.5, 2.0, 0.3])
    raised = known.raised(t)
    assert not raised[:50, 0].any()
    np.testing.assert_allclose(raised[inside].mean(axis=0), d[inside].mean(axis=0), rtol=1e-12)
    ratio = np.log(raised[60] / raised[61])[:2] / np.log(d[60] / d[61])[:2]
    np.testing.assert_allclose(ratio, t[:2], rtol=1e-9)
    np.testing.assert_allclose(raised[:, 2], MEAN, rtol=1e-12)
    flat = known.raised(np.zeros(K))
    np.testing.assert_allclose(np.ptp(flat[50:], axis=0), 0.0, atol=1e-18)
    # What blocks are told is how the log of these moves with t.
    block = blocks_of(np.zeros((M, K)), raised, known)[3]
    up, down = (known.raised(t + h)[block.rows] for h in (1e-5, -1e-5))
    np.testing.assert_allclose(block.log_prior, (np.log(up) - np.log(down)) / 2e-5, atol=1e-6)
    assert not block.log_prior[:, 2].any()
    assert blocks_of(np.zeros((M, K)), raised, None)[3].log_prior is None


@pytest.mark.parametrize("follows", [0.0, 1.0])
def test_the_score_is_the_derivative_of_the_likelihood(follows):
    """Of independent variants, whose likelihood is sum log (1 + sum odds BF) - log (1 + sum odds)."""
    rng = np.random.default_rng(1)
    known = DirectPriors(priors(rng) / 20, np.ones(M, bool))
    model = TraitModel(
        np.full(K, N),
        np.eye(K),
        np.full(K, SLAB),
        np.zeros((K, K)),
        excess=np.array([0, 0, 4.0, 8.0]),
        mean_direct=known.direct.mean(axis=0),
        follows=follows,
        loadings=np.array([[0.02, -0.02, 0.0]]),
        factor_odds=np.array([-6.0]),
    )
    y = rng.normal(size=(SIZE, K)) + np.where(rng.random((SIZE, K)) < 0.1, 4.0, 0.0)
    covariances = np.einsum("ck,kl->ckl", model.sets.astype(float), np.eye(K)) * N * SLAB
    covariances = np.concatenate([covariances, N * np.einsum("fk,fl->fkl", model.loadings, model.loadings)])
    spread = np.eye(K) + covariances
    inverse = np.eye(K) - np.linalg.inv(spread)
    bayes = 0.5 * (np.einsum("mk,ckl,ml->mc", y, inverse, y) - np.linalg.slogdet(spread)[1])
    t = np.array([0.7, 1.0, 1.3])

    def block_at(t):
        return blocks_of(np.tile(y, (BLOCKS, 1)), known.raised(t), known)[5]

    def likelihood(t):
        odds = model.log_odds(block_at(t).direct)
        both = [np.logaddexp(0, np.logaddexp.reduce(x, axis=1)) for x in (odds + bayes, odds)]
        return (both[0] - both[1])[2:-2].sum()

    block = block_at(t)
    odds = model.log_odds(block.direct) + bayes
    posterior = np.exp(odds - np.logaddexp(0, np.logaddexp.reduce(odds, axis=1))[:, None])
    score = score_of_exponents(block, block.log_prior, posterior, model)
    h = 1e-4 * np.eye(K)
    slope = np.array([(likelihood(t + x) - likelihood(t - x)) / 2e-4 for x in h])
    np.testing.assert_allclose(score, slope, rtol=0.02, atol=0.02)
    assert np.abs(slope).max() > 0.5


@pytest.mark.parametrize("given", ["true", "shrunken", "misleading", "flat"])
def test_what_is_learned_of_priors(given):
    rng = np.random.default_rng(2)
    true = priors(rng, 1.2)
    acts = rng.random((M, K)) < true / SLAB
    u = np.sqrt(N * SLAB) * rng.normal(size=(M, K)) * acts
    z = u + rng.normal(size=(M, K))
    d = {
        "true": true,
        "shrunken": np.sqrt(true),
        "misleading": true[rng.permutation(M)],
        "flat": np.full((M, K), MEAN),
    }[given]
    known = DirectPriors(MEAN * d / d.mean(axis=0), np.ones(M, bool))
    start = TraitModel(np.full(K, N), np.eye(K), np.full(K, SLAB), np.zeros((K, K)), mean_direct=np.full(K, MEAN))
    start = replace(start, follows=0.0)
    found, _ = learn(
        blocks_of(z, known.direct, known),
        start,
        rounds=6,
        slots=3,
        candidates=24,
        by_exponents=lambda t: blocks_of(z, known.raised(t), known),
    )
    if given == "flat":
        np.testing.assert_array_equal(found.exponents, 1.0)
    else:
        low, high = {"true": (0.7, 1.3), "shrunken": (1.25, 2.0), "misleading": (0.0, 0.45)}[given]
        assert low <= found.exponents.min()
        assert found.exponents.max() <= high
    # Without the blocks by exponent they are held.
    held, _ = learn(blocks_of(z, known.direct, None), start, rounds=1, slots=3, candidates=24)
    np.testing.assert_array_equal(held.exponents, 1.0)


def test_variants_of_flanks_do_not_count():
    rng = np.random.default_rng(3)
    known = DirectPriors(priors(rng), np.ones(M, bool))
    start = TraitModel(np.full(K, N), np.eye(K), np.full(K, SLAB), np.zeros((K, K)))
    block = blocks_of(rng.normal(size=(M, K)), known.direct, known)[0]
    strong = np.array(block.whitened)
    strong[0] = 12.0
    scores = []
    for y in (block.whitened, strong):
        one = JointBlock(block.factor, y, block.direct, block.rows, block.shape, None, block.scored, block.log_prior)
        ((_, _, found),) = locate([one], start, slots=3, candidates=24)
        scores.append(score_of_exponents(one, one.log_prior, found.probability, start))
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)


def test_a_prior_that_is_flattened_is_said():
    traits = SimpleNamespace(names=("a", "b"), records=[{"prior": {"held_out_gain": 3.0}}, {"prior": {}}])
    assert _of_priors(traits, np.array([0.5, 1.7])) == []
    (said,) = _of_priors(traits, np.array([0.9, 0.12]))
    assert said.startswith("b: effects hardly follow its prior, which was flattened: raised to 0.12")
