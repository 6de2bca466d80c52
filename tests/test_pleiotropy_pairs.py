"""Which traits share variants, not only how many: the prior of pairs, solved for and learned; the smallest slab."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from deepwas.ld import LDBlock
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.growing import _grow
from deepwas.pleiotropy.learning import TOGETHER, Counts, JointBlock, all_direct, learn, least_slab, locate, panel_error
from deepwas.pleiotropy.model_of import prior_direct
from deepwas.pleiotropy.sharing import Sample, Shares, smoothed
from tests.dense import ld_matrix

N, SLAB = 1e5, 6e-4


def model_of(K, **how):
    return TraitModel(np.full(K, N), np.eye(K), np.full(K, SLAB), np.zeros((K, K)), **how)


def test_log_odds_hold_every_pair_of_a_set():
    rng = np.random.default_rng(0)
    b = rng.normal(size=(4, 4))
    b = b + b.T
    np.fill_diagonal(b, 0)
    excess = np.array([0, 0, 1.0, 2.0, 3.0])
    direct = SLAB * 0.01 * rng.random((5, 4))
    plain, paired = (model_of(4, excess=excess, **x) for x in ({}, {"pairs": b}))
    more = paired.log_odds(direct) - plain.log_odds(direct)
    for c, mask in enumerate(plain.sets):
        expected = sum(b[j, k] for j, k in combinations(np.flatnonzero(mask), 2))
        np.testing.assert_allclose(more[:, c], expected, atol=1e-12)
    # A set that grows is weighed as it is in the model: what cancels is the likelihood.
    x = rng.normal(size=4)
    grown = [_grow(m, direct[0], x, 1.0) for m in (plain, paired)]
    shared = {s for s in grown[0] if s in grown[1] and len(s) == 2}
    for one, other in combinations(shared, 2):
        apart = [np.log(g[one] / g[other]) for g in grown]
        expected = b[tuple(sorted(one))] - b[tuple(sorted(other))]
        assert apart[1] - apart[0] == pytest.approx(expected, abs=1e-6)


def test_pairs_are_solved_for_with_sizes_and_marginals_held():
    """The share of each pair is what is wanted, but for its prior, of a standard deviation of 1.5."""
    rng = np.random.default_rng(1)
    direct = SLAB * 2e-3 * np.exp(0.5 * rng.normal(size=(20_000, 3)))
    sample = Sample(direct, np.ones(len(direct)))
    pi = (direct / SLAB).sum()
    counts = np.zeros((3, 3))
    counts[0, 1] = counts[1, 0] = 30.0
    counts[0, 2] = counts[2, 0] = 3.0
    sizes = np.array([0, 0, 33.0, 0.05])
    shares = Shares(sizes / pi, counts / pi, effects=pi)
    found, expected = sample.solve(model_of(3), shares)
    np.testing.assert_allclose(expected.sizes[2:], sizes[2:], rtol=0.05)
    np.testing.assert_allclose(expected.present, (direct / SLAB).sum(axis=0), rtol=0.02)
    off = counts - expected.pairs - found.pairs / 1.5**2
    assert np.abs(off).max() < 0.5
    np.testing.assert_array_equal(found.pairs, found.pairs.T)
    np.testing.assert_array_equal(np.diag(found.pairs), 0)
    assert found.pairs[0, 1] > 1 > 0 > found.pairs[1, 2]
    # Without counts of pairs, and of two traits, there is none.
    assert not sample.solve(model_of(3), Shares(sizes / pi))[0].pairs.any()
    two = Sample(direct[:, :2], np.ones(len(direct)))
    assert not two.solve(model_of(2), Shares(np.array([0, 0, 0.1]), np.full((2, 2), 0.1), effects=50.0))[0].pairs.any()


def test_numbers_of_traits_are_smoothed_by_as_many_variants_as_are_said():
    """Half as counted, half by the smoothest shares of the same mean: uniform ones for a mean in the middle."""
    n = np.arange(7)
    counted, possible = np.array([0, 0, 0.0, 6.0, 0.0, 2.0, 2.0]), n >= 1  # mean 4 of 2 to 6
    pairs = np.full((6, 6), 1.0) - np.eye(6)
    sizes, scaled = smoothed(counted, pairs, possible, 10.0)
    np.testing.assert_allclose(sizes, (counted + np.array([0, 0, 2.0, 2.0, 2.0, 2.0, 2.0])) / 2, atol=1e-6)
    assert sizes.sum() == pytest.approx(10)
    assert n @ sizes == pytest.approx(n @ counted)
    np.testing.assert_allclose(scaled, pairs * ((n * (n - 1)) @ sizes) / ((n * (n - 1)) @ counted))
    # Where all are of two traits, or of all traits, they stay so; of two traits there is one number.
    for only in (2, 6):
        one = np.where(n == only, 3.0, 0.0)
        np.testing.assert_allclose(smoothed(one, pairs, possible, 10.0)[0], one, atol=1e-4)
    two, few = np.array([0, 0, 0.1]), np.array([False, True, True])
    assert smoothed(two, np.ones((2, 2)), few, 5.0)[0] is two
    # Shares that fall by one factor are as smooth as can be.
    falling = np.array([0, 0, 4.0, 2.0, 1.0, 0.5, 0.25])
    np.testing.assert_allclose(smoothed(falling, pairs, possible, 30.0)[0], falling, atol=1e-6)
    # Numbers of traits without a set have none.
    holed = smoothed(np.array([0, 0, 4.0, 0, 0, 0, 4.0]), pairs, np.isin(n, [1, 2, 4, 6]), 8.0)[0]
    np.testing.assert_allclose(holed, [0, 0, 4 / 2 + 4 / 3, 0, 4 / 3, 0, 4 / 2 + 4 / 3], atol=1e-6)


@pytest.mark.parametrize(("K", "variants"), [(8, 2.0), (20, 10.0)])
def test_few_shared_variants_of_many_traits_keep_their_number_of_traits(K, variants):
    """What is added so that nothing is impossible is not taken for counted."""
    model = model_of(K)
    counts = Counts.zero(model)
    counts.sizes[1], counts.sizes[2] = 40.0, variants
    counts.present[:] = (40.0 + 2 * variants) / K
    counts.pairs[0, 1] = counts.pairs[1, 0] = variants
    shares = counts.shares(model)
    assert shares.effects * shares.sizes[2] == pytest.approx(variants + 0.05, abs=1e-3)
    assert shares.effects * shares.pairs[0, 1] == pytest.approx(variants, abs=1e-3)
    possible = np.isin(np.arange(3, K + 1), model.sets.sum(axis=1))
    np.testing.assert_allclose(shares.effects * shares.sizes[3:], 0.05 * possible, atol=1e-3)


def test_nothing_is_counted_of_numbers_of_traits_without_a_set():
    sets = np.concatenate([np.eye(20, dtype=bool), np.eye(20, k=1, dtype=bool)[:19] | np.eye(20, dtype=bool)[:19]])
    model = replace(model_of(20), sets=sets)
    counts = Counts.zero(model)
    counts.sizes[1], counts.sizes[2] = 40.0, 5.0
    counts.present[:] = 50.0 / 20
    counts.pairs[0, 1] = counts.pairs[1, 0] = 5.0
    shares = counts.shares(model)
    assert not shares.sizes[3:].any()
    assert shares.effects == pytest.approx(50 + 0.05 * 2 + 0.5 * 20)
    assert shares.effects * shares.sizes[2] == pytest.approx(5.05)


def test_weak_z_scores_put_no_second_effect_beside_every_first():
    """Single effects, far apart and no stronger than can be seen: what may be beside them is no pair in LD."""
    m, place, K, rng = 40, np.arange(40), 3, np.random.default_rng(5)
    R = 0.9 ** np.abs(place[:, None] - place[None, :])
    values, vectors = np.linalg.eigh(R)
    G = np.sqrt(values)[:, None] * vectors.T
    signal = 25.0
    slab, together = np.full(K, signal / N), (TOGETHER, TOGETHER)
    start = TraitModel(np.full(K, N), np.eye(K), slab, np.zeros((K, K)), together=together)
    blocks = []
    for number in range(40):
        u = np.zeros((m, K))
        u[rng.integers(m), rng.integers(K)] = rng.normal() * np.sqrt(signal)
        y = G @ u + rng.normal(size=(m, K))
        blocks.append(JointBlock(G, y, np.full((m, K), signal / N / m / K), slice(m * number, m * number + m)))
    found, _ = learn(blocks, start, rounds=5, slots=3, candidates=48)
    assert max(found.together) < 1.6


@pytest.fixture(scope="module")
def problem():
    """Blocks of three traits: half of the variants that act do so on the first and the second, the others on one trait,
    the third among them; and the same with a third trait of noise alone."""
    rng = np.random.default_rng(7)
    m, blocks = 30, 48
    R = ld_matrix("ar1", m, rng)
    block, root = LDBlock.from_correlation(R, dtype=np.float64), np.linalg.cholesky(R)
    acts = np.zeros((blocks, m, 3), bool)
    for i in range(blocks):
        first, second = rng.choice(m, size=2, replace=False)
        acts[i, first, :2] = True
        acts[i, second, rng.integers(3)] = True
    effect = acts * rng.normal(size=acts.shape) * np.sqrt(20 * SLAB)
    noise = rng.normal(size=acts.shape)
    prior = np.full((m, 3), acts.mean() * 20 * SLAB)
    out = {}
    for name in ("own", "silent"):
        own = effect.copy()
        own[:, :, 2] *= name == "own"
        z = np.sqrt(N) * R @ own + root @ noise
        out[name] = [
            JointBlock(np.asarray(block.factor), block.whiten(x), prior, slice(m * i, m * i + m), (m, m))
            for i, x in enumerate(z)
        ]
    return out, acts


@pytest.mark.parametrize("third", ["own", "silent"])
def test_a_trait_that_shares_nothing_is_not_drawn_in(problem, third):
    blocks, acts = problem[0][third], problem[1]
    start = replace(model_of(3), slab=np.full(3, 20 * SLAB))
    how = {"slots": 3, "candidates": 24}
    model, _ = learn(blocks, start, rounds=6, **how)
    both = acts[:, :, :2].all(axis=2).sum()
    assert both == len(blocks)
    of = np.zeros(len(model.masks))
    for _, _, found in locate(blocks, model, **how):
        of += found.probability.sum(axis=0)
    named = {tuple(np.flatnonzero(x)): p for x, p in zip(model.masks, of, strict=True)}
    assert named[0, 1] > 0.6 * both
    assert named[0, 1, 2] < 0.06 * both
    assert named[0, 2] + named[1, 2] < 0.1 * both
    assert model.pairs[0, 1] > max(model.pairs[0, 2], model.pairs[1, 2])
    # With the number of traits alone the third is drawn into more of them.
    blind = replace(model, pairs=np.zeros((3, 3)))
    wanted = Shares(np.array([0, 0, named[0, 1], named[0, 1, 2]]) / of.sum())
    blind = Sample.of(all_direct(blocks), blind).solve(blind, wanted)[0]
    drawn = sum(
        found.probability[:, blind.masks[:, 2] & (blind.masks.sum(axis=1) > 1)].sum()
        for _, _, found in locate(blocks, blind, **how)
    )
    assert drawn > named[0, 1, 2] + named[0, 2] + named[1, 2]


def test_slabs_stay_at_what_can_be_seen(problem):
    """A trait of noise whose prior has next to nothing: an effect is 10 times the noise all the same."""
    blocks = [replace(b, direct=b.direct * np.array([1, 1, 1e-4])) for b in problem[0]["silent"]]
    start = replace(model_of(3), slab=np.array([20 * SLAB, 20 * SLAB, 1e-9]))
    np.testing.assert_allclose(least_slab(start), 10 / N)
    model, _ = learn(blocks, start, rounds=3, slots=3, candidates=24)
    assert model.slab[2] == pytest.approx(1e-9 * np.exp(4.5), rel=1e-6)  # up by e^1.5 a round at most
    model, _ = learn(
        blocks, replace(start, slab=np.maximum(start.slab, least_slab(start))), rounds=3, slots=3, candidates=24
    )
    assert 0.999 * 10 / N <= model.slab[2] < 20 / N
    assert np.isfinite(model.excess).all()
    assert np.abs(model.offsets).max() <= 8


def test_effects_through_a_factor_count_in_the_panels_error(problem):
    blocks = problem[0]["own"][:4]
    loadings = np.array([[0.05, -0.03, 0.0]])
    model = model_of(3, loadings=loadings, factor_odds=np.array([-3.0]))
    for _, _, found in locate(blocks, model, slots=3, candidates=24):
        through = found.probability[:, 7].sum()
        direct = np.diag((found.square - found.mean**2).sum(axis=0)) + found.mean.T @ found.mean
        expected = N * (direct + through * np.outer(loadings[0], loadings[0])) / 300
        np.testing.assert_allclose(panel_error(model, found, 300), expected, rtol=1e-6, atol=1e-9)
    assert through > 0


def test_no_prior_is_so_small_that_it_rules_an_effect_out():
    f = np.array([[1e-5, 2e-5], [1e-13, 2e-5], [0.0, 0.0], [3e-5, 2e-5]])
    d = prior_direct(f, np.zeros((2, 2)))
    mean = f[:, 0].sum() / 3
    np.testing.assert_allclose(d[:, 0], [1e-5, np.exp(-7) * mean, 0, 3e-5])
    np.testing.assert_allclose(d[:, 1], f[:, 1])
