"""How far effects follow each trait's prior: exponents, their score, and what is learned of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from deepwas.pleiotropy import model_of
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.joint import Traits
from deepwas.pleiotropy.learning import Counts, exponent_score, learn, locate
from deepwas.pleiotropy.model_of import BlocksToLocate, TraitPriors, learn_model, prior_direct
from deepwas.pleiotropy.options import PleiotropyOptions
from deepwas.pleiotropy.run import _of_priors
from deepwas.tally import Tally

N, SLAB, SIZE, BLOCKS, K = 1e5, 6e-4, 50, 40, 3
M = SIZE * BLOCKS
MEAN = 0.02 * SLAB


def priors(rng, spread=1.0):
    d = np.exp(spread * rng.normal(size=(M, K)))
    return MEAN * d / d.mean(axis=0)


def known(f, T=None, inside=None):
    return TraitPriors(f, np.zeros((K, K)) if T is None else T, np.ones(len(f), bool) if inside is None else inside)


def blocks_of(whitened, priors, exponents=None, learn=True, size=SIZE):
    """Of independent variants, of which all but two on either side are scored."""
    direct = priors.direct(np.ones(K) if exponents is None else exponents)
    number = len(direct) // size
    log_prior = priors.log_prior(direct) if learn else None
    joint = Independent(whitened, size)
    return BlocksToLocate(joint, direct, range(number), [(size, size)] * number, log_prior=log_prior)


class Independent:
    """What is asked of `JointBlocks`, of independent variants."""

    def __init__(self, whitened, size=SIZE):
        self.size = size
        self.whitened = whitened.reshape(-1, size, whitened.shape[1])

    def __len__(self):
        return len(self.whitened)

    def rows(self, i):
        return slice(self.size * i, self.size * (i + 1))

    def factor(self, i):
        return np.eye(self.size)

    def scored(self, i):
        return slice(2, self.size - 2)


def test_priors_are_raised_about_their_mean_and_what_is_0_stays_0():
    rng = np.random.default_rng(0)
    f = priors(rng)
    f[:50, 0] = 0.0
    f[50, 1] = 1e-12 * MEAN
    f[:, 2] = MEAN
    inside = np.arange(M) >= 20
    own = known(f, inside=inside)
    np.testing.assert_array_equal(own.direct(np.ones(K)), prior_direct(f, own.T))
    t = np.array([0.5, 2.0, 0.3])
    raised = own.direct(t)
    assert not raised[:50, 0].any()
    np.testing.assert_allclose(raised[inside].mean(axis=0), f[inside].mean(axis=0), rtol=0.02)
    ratio = np.log(raised[60] / raised[61])[:2] / np.log(f[60] / f[61])[:2]
    np.testing.assert_allclose(ratio, t[:2], rtol=1e-9)
    np.testing.assert_allclose(raised[:, 2], MEAN, rtol=1e-12)
    some = f > 0
    least = np.exp(-7) * np.where(some, raised, 0).sum(axis=0) / some.sum(axis=0)
    assert (np.where(some, raised, np.inf) > 0.98 * least).all()  # rules nothing out, however steep
    np.testing.assert_allclose(np.ptp(own.direct(np.zeros(K))[50:], axis=0), 0.0, atol=1e-18)
    # What blocks are told is how the log of these moves with t.
    log_prior = own.log_prior(raised)(slice(60, 100))
    up, down = (own.direct(t + h)[60:100] for h in (1e-5, -1e-5))
    free = raised[60:100] > 1.01 * least
    np.testing.assert_allclose(log_prior[free], ((np.log(up) - np.log(down)) / 2e-5)[free], atol=0.02)
    assert free.mean() > 0.9
    assert not log_prior[:, 2].any()
    assert not own.log_prior(raised)(slice(50, 51))[0, 1].any()
    assert blocks_of(np.zeros((M, K)), own, learn=False)[3].log_prior is None


def test_a_prior_that_does_not_vary_is_held_though_direct_variances_do():
    """Of a trait that another one acts on, what is left for its own effects varies with the other's."""
    rng = np.random.default_rng(4)
    f = priors(rng)
    f[:, 1] = MEAN
    T = np.zeros((K, K))
    T[0, 1] = 0.4
    own = known(f, T)
    direct = own.direct(np.ones(K))
    assert np.ptp(np.log(direct[:, 1])) > 1
    log_prior = own.log_prior(direct)(slice(0, M))
    assert not log_prior[:, 1].any()
    assert log_prior[:, [0, 2]].all()


@pytest.mark.parametrize("follows", [0.0, 1.0])
def test_the_score_is_the_derivative_of_the_likelihood(follows):
    """Of independent variants, whose likelihood is sum log (1 + sum odds BF) - log (1 + sum odds)."""
    rng = np.random.default_rng(1)
    own = known(priors(rng) / 20)
    model = TraitModel(
        np.full(K, N),
        np.eye(K),
        np.full(K, SLAB),
        np.zeros((K, K)),
        excess=np.array([0, 0, 4.0, 8.0]),
        mean_direct=own.direct(np.ones(K)).mean(axis=0),
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
        return blocks_of(np.tile(y, (BLOCKS, 1)), own, t)[5]

    def likelihood(t):
        odds = model.log_odds(block_at(t).direct)
        both = [np.logaddexp(0, np.logaddexp.reduce(x, axis=1)) for x in (odds + bayes, odds)]
        return (both[0] - both[1])[2:-2].sum()

    block = block_at(t)
    odds = model.log_odds(block.direct)
    posterior = odds + bayes
    posterior = np.exp(posterior - np.logaddexp(0, np.logaddexp.reduce(posterior, axis=1))[:, None])
    score, information = exponent_score(block.log_prior[2:-2], odds[2:-2], posterior[2:-2], model)
    h = 1e-4 * np.eye(K)
    slope = np.array([(likelihood(t + x) - likelihood(t - x)) / 2e-4 for x in h])
    np.testing.assert_allclose(score, slope, rtol=0.02, atol=0.02)
    assert np.abs(slope).max() > 0.5
    prior = np.exp(odds - np.logaddexp(0, np.logaddexp.reduce(odds, axis=1))[:, None])[2:-2]
    by_class = model.follow()[None] * block.log_prior[2:-2, None]
    np.testing.assert_allclose(information, (prior[:, :, None] * by_class**2).sum(axis=(0, 1)), rtol=1e-9)


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
    own = known(MEAN * d / d.mean(axis=0))

    def by_exponents(t):
        return blocks_of(z, own, t)

    start = TraitModel(np.full(K, N), np.eye(K), np.full(K, SLAB), np.zeros((K, K)), mean_direct=np.full(K, MEAN))
    start = replace(start, follows=0.0)
    how = {"slots": 3, "candidates": 24}
    found, _ = learn(blocks_of(z, own), start, rounds=6, by_exponents=by_exponents, **how)
    if given == "flat":
        np.testing.assert_array_equal(found.exponents, 1.0)
    else:
        low, high = {"true": (0.7, 1.3), "shrunken": (1.25, 2.0), "misleading": (0.0, 0.45)}[given]
        assert low <= found.exponents.min()
        assert found.exponents.max() <= high
    # Without the blocks by exponent they are held.
    held, _ = learn(blocks_of(z, own, learn=False), start, rounds=1, **how)
    np.testing.assert_array_equal(held.exponents, 1.0)


@pytest.mark.parametrize("enumerated", [True, False])
def test_a_prior_that_misleads_leaves_no_trace_in_what_is_shared(enumerated, monkeypatch):
    """The model is that of flat priors: what was learned beside the misleading ones is learned anew.

    enumerated: all sets of traits, or those that are found, as of many traits.
    """
    if not enumerated:
        monkeypatch.setattr(model_of, "MOST_TRAITS", 2)
    rng = np.random.default_rng(6)
    acts = rng.random((M, K)) < MEAN / SLAB
    acts[acts[:, 0], 1] |= rng.random(acts[:, 0].sum()) < 0.5
    z = np.sqrt(N * SLAB) * rng.normal(size=(M, K)) * acts + rng.normal(size=(M, K))
    # Variants that act get low priors, and together, so that those of high priors would not seem to share.
    against = np.exp(rng.normal(size=(M, 1)) - 2 * acts)
    found = {}
    for name, f in (("flat", np.full((M, K), MEAN)), ("misleading", MEAN * against / against.mean(axis=0))):
        traits = Traits(("a", "b", "c"), z, f, np.full(K, N), np.ones(M, bool), [{}] * K, Tally())
        joint = Independent(z)
        effects = SimpleNamespace(T=np.zeros((K, K)))
        structure = SimpleNamespace(matrix=np.eye(K), effects=effects, draws=np.zeros((0, K, K)))
        options = PleiotropyOptions(learn_blocks=BLOCKS, rounds=4, confounders=False, max_effects=3, candidates=24)
        found[name] = learn_model(traits, joint, structure, [(SIZE, SIZE)] * BLOCKS, options, None)
    flat, misleading = found["flat"].model, found["misleading"].model
    np.testing.assert_array_equal(flat.exponents, 1.0)
    np.testing.assert_array_equal(misleading.exponents, 0.0)
    assert flat.pairs[0, 1] > 0.3  # there is something to learn
    np.testing.assert_array_equal(misleading.sets, flat.sets)
    for name in ("slab", "excess", "pairs", "offsets", "background"):
        np.testing.assert_allclose(getattr(misleading, name), getattr(flat, name), rtol=1e-4, atol=1e-6)
    assert found["misleading"].rounds > found["flat"].rounds


@pytest.mark.parametrize(("number", "effects"), [(40, 10), (200, 30), (1, 400), (3, 100)])
def test_steps_are_as_long_with_many_effects_and_few_blocks(number, effects):
    """All effects are known, and do not follow the prior, or follow it as it says."""
    rng = np.random.default_rng(5)
    size = 40 * effects
    f = np.exp(1.5 * rng.normal(size=(number * size, K)))
    f *= SLAB * effects / size / f.mean(axis=0)
    own = known(f)
    model = TraitModel(np.full(K, N), np.eye(K), np.full(K, SLAB), np.zeros((K, K)), mean_direct=f.mean(axis=0))
    for follow, target in ((False, 0.0), (True, 1.0)):
        acts = rng.random(f.shape) < (f if follow else f.mean(axis=0)) / SLAB
        posterior = np.concatenate([acts, np.zeros((len(f), len(model.masks) - K))], axis=1).astype(float)
        now = replace(model, exponents=np.full(K, 1.0))
        for _ in range(5):
            direct = own.direct(now.exponents)
            counts = Counts.zero(now)
            odds = now.log_odds(direct)
            log_prior = own.log_prior(direct)(slice(0, len(f)))
            counts.score, counts.information = exponent_score(log_prior, odds, posterior, now)
            now = replace(now, exponents=counts.exponents(now))
        assert np.abs(now.exponents - target).max() < 0.2


def test_variants_of_flanks_do_not_count():
    rng = np.random.default_rng(3)
    own = known(priors(rng))
    start = TraitModel(np.full(K, N), np.eye(K), np.full(K, SLAB), np.zeros((K, K)))
    block = blocks_of(rng.normal(size=(M, K)), own)[0]
    strong = np.array(block.whitened)
    strong[0] = 12.0
    scores = []
    for y in (block.whitened, strong):
        ((one, odds, found),) = locate([replace(block, whitened=y)], start, slots=3, candidates=24)
        counts = Counts.zero(start)
        counts.add(one, found, start, odds=odds)
        scores.append(counts.score)
        assert (counts.information > 0).all()
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)


def test_a_prior_that_is_flattened_is_said():
    traits = SimpleNamespace(names=("a", "b"), records=[{"prior": {"held_out_gain": 3.0}}, {"prior": {}}])
    assert _of_priors(traits, np.array([0.5, 1.7])) == []
    (said,) = _of_priors(traits, np.array([0.9, 0.12]))
    assert said.startswith("b: effects hardly follow its prior, which was flattened: raised to 0.12")
