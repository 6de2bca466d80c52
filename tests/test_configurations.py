"""Configurations of effects over traits: priors, classes, and what learning makes of simulated traits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import nnls
from scipy.special import logit

from deepwas.errors import InputError
from deepwas.ld import LDBlock
from deepwas.pleiotropy.configurations import TraitModel, configurations, direct_variances
from deepwas.pleiotropy.drawing import draw_block
from deepwas.pleiotropy.learning import Counts, JointBlock, _sharpened, learn, locate
from deepwas.pleiotropy.sharing import Sample, Shares
from tests.dense import correlation, genotypes

T = np.array([[0.0, 0.4, 0.0], [0.0, 0.0, -0.3], [0.0, 0.0, 0.0]])
N = np.array([1e5, 2e5, 5e4])
NOISE = np.array([[1.0, 0.2, 0.0], [0.2, 1.1, 0.1], [0.0, 0.1, 1.0]])


def test_configurations_are_every_set_once_small_ones_first():
    masks = configurations(4)
    assert masks.shape == (15, 4)
    assert len({tuple(x) for x in masks.tolist()}) == 15
    assert masks.any(axis=1).all()
    assert (np.diff(masks.sum(axis=1)) >= 0).all()
    assert configurations(12, most=2).shape == (12 + 66, 12)
    with pytest.raises(InputError, match="all sets of 9 traits are too many"):
        configurations(9)


def test_direct_variances_are_non_negative_least_squares():
    rng = np.random.default_rng(0)
    spread = np.linalg.inv(np.eye(3) - T) ** 2
    d = rng.gamma(1.0, 1e-6, (50, 3))
    np.testing.assert_allclose(direct_variances(d @ spread, T), d, rtol=1e-9)
    total = rng.gamma(0.3, 1e-6, (50, 3))
    found = direct_variances(total, T)
    expected = np.array([nnls(spread.T, f)[0] for f in total])
    assert (found == 0).any()
    np.testing.assert_allclose(found, expected, atol=1e-5 * total.max())


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (np.eye(2) * 0.1, "zeros on its diagonal"),
        (np.array([[0.0, 1.0], [1.0, 0.0]]), "spectral radius of T is 1.00"),
        (np.array([[0.0, np.nan], [0.0, 0.0]]), "must be a finite"),
    ],
)
def test_paths_that_make_no_sense_are_refused(paths, message):
    with pytest.raises(InputError, match=message):
        direct_variances(np.ones((1, 2)), paths)


def test_classes_are_total_effects_of_direct_ones():
    slab = np.array([1e-4, 3e-4, 2e-4])
    model = TraitModel(N, NOISE, slab, T)
    forward = np.linalg.inv(np.eye(3) - T) * np.sqrt(N)[None, :]
    for c, mask in enumerate(model.masks):
        expected = forward.T @ np.diag(slab * mask) @ forward
        root = model.classes.root[c]
        np.testing.assert_allclose(root @ root.T, expected, atol=1e-9 * expected.max())
        own = model.classes.own[c]
        np.testing.assert_allclose(own @ own.T, np.diag(slab * mask), atol=1e-9 * slab.max())
        assert model.classes.traits[c].astype(bool).tolist() == mask.tolist()


def test_log_odds_are_those_of_independent_traits_and_their_excess():
    slab = np.array([1e-4, 1e-4, 1e-4])
    direct = np.array([[1e-6, 2e-6, 0.0], [9e-5, 1e-6, 1e-6]])
    excess, offsets = np.array([0.0, 0.0, 2.0, 3.0]), np.array([-0.1, 0.2, 0.0])
    found = TraitModel(N, NOISE, slab, np.zeros((3, 3)), excess, offsets).log_odds(direct)
    pi = np.minimum(direct / slab, 0.5)
    for j in range(2):
        for c, mask in enumerate(configurations(3)):
            if (pi[j, mask] == 0).any():
                assert found[j, c] == -np.inf
            else:
                each = np.log(pi[j, mask] / (1 - pi[j, mask])) + offsets[mask]
                assert found[j, c] == pytest.approx(each.sum() + excess[mask.sum()])


def test_sets_follow_priors_as_much_as_rho_says():
    rng = np.random.default_rng(4)
    slab = np.array([1e-4, 2e-4, 3e-4])
    direct = slab * 2e-2 * np.exp(2 * rng.normal(size=(50, 3)))  # some above half the slab
    mean = direct.mean(axis=0)
    how = {"excess": np.array([0, 0, 1.0, 2.0]), "mean_direct": mean}
    pi = np.minimum(direct / slab, 0.5)
    assert (pi == 0.5).any()
    product = TraitModel(np.full(3, 1e5), np.eye(3), slab, np.zeros((3, 3)), **how).log_odds(direct)
    model = TraitModel(np.full(3, 1e5), np.eye(3), slab, np.zeros((3, 3)), follows=0.25, **how)
    for c, mask in enumerate(model.masks):
        n = mask.sum()
        h = 0.75 * (1 - 1 / n) * (logit(pi) - logit(mean / slab))[:, mask].sum(axis=1) if n > 1 else 0.0
        np.testing.assert_allclose(model.log_odds(direct)[:, c], product[:, c] - h)
    geometric = TraitModel(np.full(3, 1e5), np.eye(3), slab, np.zeros((3, 3)), follows=0.0, **how).log_odds(direct)
    rise = logit(pi).mean(axis=1)
    np.testing.assert_allclose(geometric[:, -1] - geometric[0, -1], rise - rise[0])


def test_effects_through_factors_follow_the_priors_of_the_traits_that_they_move():
    rng = np.random.default_rng(8)
    slab = np.array([1e-4, 2e-4, 3e-4])
    direct = slab * 1e-2 * np.exp(rng.normal(size=(50, 3)))
    through = {"loadings": np.array([[0.02, 0.0, -0.02]]), "factor_odds": np.array([-5.0])}
    model = TraitModel(np.full(3, 1e5), np.eye(3), slab, np.zeros((3, 3)), mean_direct=direct.mean(axis=0), **through)
    beside = logit(direct / slab) - logit(direct.mean(axis=0) / slab)
    np.testing.assert_allclose(model.odds_of_factors(direct)[:, 0], -5.0 + (beside[:, 0] + beside[:, 2]) / 2)
    np.testing.assert_array_equal(model.log_odds(direct)[:, -1], model.odds_of_factors(direct)[:, 0])
    direct[3, 0], direct[4, 1] = 0.0, 0.0  # on a trait that the factor moves, and on one that it does not
    assert model.odds_of_factors(direct)[3, 0] == -np.inf
    assert model.odds_of_factors(direct)[4, 0] == pytest.approx(-5.0 + (beside[4, 0] + beside[4, 2]) / 2)


def test_sharing_is_solved_for_with_the_marginals_held():
    rng = np.random.default_rng(5)
    slab = np.array([1e-4, 2e-4, 3e-4])
    direct = slab * 2e-3 * np.exp(rng.normal(size=(5000, 1)) + 0.3 * rng.normal(size=(5000, 3)))
    mean = direct.mean(axis=0)
    start = TraitModel(np.full(3, 1e5), np.eye(3), slab, np.zeros((3, 3)), mean_direct=mean, follows=0.0)
    sample = Sample(direct, np.ones(5000))
    pi = (direct / slab).sum(axis=0)
    shares = np.array([0, 0, 0.1, 0.05])
    _, expected = sample.solve(start, Shares(shares))
    np.testing.assert_allclose(expected.sizes[2:], shares[2:] * pi.sum(), rtol=0.05)
    np.testing.assert_allclose(expected.present, pi, rtol=0.05)


def simulated(shared, seed, slab=4e-4, blocks=64, m=30):
    """Blocks of two traits; `shared`: whether the variants that act on one act on both. Returns them and who acts."""
    rng = np.random.default_rng(seed)
    size, noise = np.array([1e5, 1e5]), np.array([[1.0, 0.3], [0.3, 1.0]])
    Rs = [correlation(genotypes(m, 400, rng, 0.9)) for _ in range(4)]
    pi, out, acts = 0.02, [], []
    for number in range(blocks):
        R = Rs[number % 4]
        block = LDBlock.from_correlation(R, eigenvalue_floor=1e-3, dtype=np.float64)
        has = np.repeat(rng.random((m, 1)) < pi, 2, axis=1) if shared else rng.random((m, 2)) < pi
        B = has * rng.normal(size=(m, 2)) * np.sqrt(slab)
        values, vectors = np.linalg.eigh(R)
        root = vectors * np.sqrt(np.maximum(values, 0))
        z = R @ B * np.sqrt(size) + root @ rng.normal(size=(m, 2)) @ np.linalg.cholesky(noise).T
        direct = np.full((m, 2), pi * slab)
        out.append(JointBlock(np.asarray(block.factor), block.whiten(z), direct, slice(number * m, number * m + m)))
        acts.append(has)
    return out, np.concatenate(acts), TraitModel(size, noise, np.full(2, 2 * slab), np.zeros((2, 2)))


def test_sharing_and_slabs_are_learned_and_calls_are_right():
    blocks, acts, start = simulated(True, 1)
    model, rounds = learn(blocks, start, rounds=6)
    assert 1 <= rounds <= 6
    assert model.excess[2] > 2
    np.testing.assert_allclose(model.slab, 4e-4, rtol=0.5)
    both = np.concatenate([found.probability[:, 2] for _, _, found in locate(blocks, model)])
    called = both > 0.9
    assert called.sum() > 8
    assert acts[called].all(axis=1).mean() > 0.85
    one = np.concatenate([found.probability[:, :2].sum(axis=1) for _, _, found in locate(blocks, model)])
    assert one.sum() < both.sum()


def test_independent_traits_are_not_called_shared():
    blocks, acts, start = simulated(False, 2)
    model, _ = learn(blocks, start, rounds=6)
    both = np.concatenate([found.probability[:, 2] for _, _, found in locate(blocks, model)])
    assert both.sum() < 0.15 * acts.any(axis=1).sum()
    expected = sum((block.direct / model.slab[None, :]).sum(axis=0) for block in blocks)
    prior = np.zeros(2)
    for block in blocks:
        odds = np.exp(model.log_odds(block.direct))
        prior += (odds / (1 + odds.sum(axis=1, keepdims=True)) @ model.masks).sum(axis=0)
    np.testing.assert_allclose(prior, expected, rtol=0.1)


def test_a_trait_without_effects_keeps_its_slab_in_range():
    blocks, _, start = simulated(True, 3, blocks=12)
    rng = np.random.default_rng(4)
    silent = [
        JointBlock(b.factor, np.column_stack([b.whitened[:, 0], rng.normal(size=len(b.whitened))]), b.direct, b.rows)
        for b in blocks
    ]
    model, _ = learn(silent, start, rounds=4)
    assert model.slab[1] < 100 * start.slab[1]
    assert np.isfinite(model.excess).all()


def test_effects_through_a_factor_in_doubt_are_own_ones_in_part():
    blocks, _, start = simulated(True, 5, blocks=6)
    through = {"loadings": np.array([[0.02, 0.02]]), "factor_odds": np.array([-4.0])}
    sure = replace(start, **through)
    doubted = replace(sure, factor_probability=np.array([0.3]))
    np.testing.assert_array_equal(sure.factor_probability, [1.0])
    assert sure.believed().factors == 1
    assert doubted.believed().factors == 0
    np.testing.assert_array_equal(doubted.moved_by_factors, [2])
    moved = 0.0
    for (_, _, a), (_, _, b) in zip(locate(blocks, sure), locate(blocks, doubted), strict=True):
        np.testing.assert_allclose(b.probability[:, 3], 0.3 * a.probability[:, 3])
        np.testing.assert_allclose(b.probability[:, 2], a.probability[:, 2] + 0.7 * a.probability[:, 3])
        np.testing.assert_allclose(b.of_sets.sum(axis=1), a.of_sets.sum(axis=1))
        own = 0.7 * a.probability[:, 3] * start.slab[0]
        np.testing.assert_allclose(b.square, a.square + own[:, None])
        moved += a.probability[:, 3].sum()
    assert moved > 0.1
    # Of three traits, one moved through another and little by itself: the two that it moves most.
    T = np.zeros((3, 3))
    T[0, 2] = 0.5
    three = TraitModel(np.full(3, 1e5), np.eye(3), np.full(3, 4e-4), T)
    for own, traits in (([0.02, 0.01, 0.0], [0, 1]), ([0.02, 0.001, 0.0], [0, 1]), ([0.02, -0.01, 0.02], [0, 1, 2])):
        model = replace(three, loadings=(np.array(own) @ np.linalg.inv(np.eye(3) - T))[None], factor_odds=np.zeros(1))
        assert np.flatnonzero(model.sets[model.moved_by_factors[0]]).tolist() == traits


def test_dense_weak_effects_are_background_and_raise_the_noise():
    rng = np.random.default_rng(6)
    blocks, _, start = simulated(True, 6, blocks=24)
    dense = []
    for block in blocks:
        weak = rng.normal(size=block.direct.shape) * np.sqrt(block.direct * 1e5)
        y = block.factor @ weak + rng.multivariate_normal(np.zeros(2), start.noise, size=len(block.factor))
        dense.append(replace(block, whitened=y))
    model, _ = learn(dense, start, rounds=4, share=False)
    assert (model.background > 0.5).all()
    quiet = [replace(b, whitened=rng.multivariate_normal(np.zeros(2), start.noise, size=len(b.factor))) for b in blocks]
    none, _ = learn(quiet, start, rounds=4, share=False)
    assert (none.background < 0.2).all()
    inside = sum(found.expected for _, _, found in locate(dense, model))
    assert inside < 0.5 * sum(found.expected for _, _, found in locate(dense, replace(model, background=np.zeros(2))))
    # The noise of a direction is raised by what all effects together add to it.
    block, only = dense[0], replace(model, background=np.array([0.0, 0.5]))
    added = np.square(block.factor) @ block.direct[:, 1] * 1e5
    wanted = np.sqrt(1 + 0.5 * added / model.noise[1, 1])
    np.testing.assert_allclose(only.spread_of_background(only.signal(block.factor, block.direct)), wanted)
    drawn = np.stack([only.draw_background(block.factor, block.direct, rng) for _ in range(4000)])
    np.testing.assert_allclose(drawn.var(axis=0), np.column_stack([0 * added, 0.5 * added]), rtol=0.15)


def test_more_pairs_are_weighed_where_one_shared_effect_stands_against_two():
    blocks, _, start = simulated(True, 9, blocks=16)
    model = replace(start, excess=np.array([0.0, 0.0, 3.0]), together=(3.0, 3.0))
    few, some, every = (
        [found.probability for _, _, found in locate(blocks, model, **how)]
        for how in ({"candidates": 4}, {"candidates": 4, "more": 90}, {"candidates": 90})
    )
    changed = [i for i, (a, b) in enumerate(zip(few, some, strict=True)) if np.abs(a - b).max() > 1e-9]
    assert 2 <= len(changed) <= 8
    for i in changed:
        assert few[i][:, 2].sum() > 0.3
        assert some[i][:, 2].sum() == pytest.approx(every[i][:, 2].sum(), abs=0.02)
    assert min(some[i][:, 2].sum() - few[i][:, 2].sum() for i in changed) < -0.1


def test_the_panels_error_is_not_taken_for_background():
    """Strong effects and the noise that LD of 200 people adds to them."""
    rng = np.random.default_rng(7)
    blocks, _, start = simulated(True, 7, slab=2e-3, blocks=24)
    people = 200.0
    drawn = [draw_block(b, start.log_odds(b.direct), start, rng, panel=people)[0] for b in blocks]
    known, unknown = Counts.zero(start), Counts.zero(start)
    for block, _, found in locate(drawn, start, panel=people):
        known.add(block, found, start, people)
        unknown.add(block, found, start)
    assert (known.update(start, start.slab, None)[0].background < 0.02).all()
    assert (unknown.update(start, start.slab, None)[0].background > 0.05).any()


def test_distinct_effects_in_ld_are_likelier_where_there_are_many():
    rng = np.random.default_rng(8)
    blocks, _, start = simulated(False, 8, blocks=48)
    planted = []
    for number, block in enumerate(blocks):
        B = np.zeros((30, 2))
        if number % 2 == 0:
            r2 = np.square(block.factor.T @ block.factor)
            first, second = rng.permutation(np.argwhere((r2 > 0.3) & (r2 < 0.6)))[0]
            B[first, 0], B[second, 1] = 0.05 * rng.choice([-1, 1], size=2)
        y = block.factor @ B * np.sqrt(1e5) + rng.multivariate_normal(np.zeros(2), start.noise, size=len(block.factor))
        planted.append(replace(block, whitened=y))
    model, _ = learn(planted, start, rounds=6)
    assert model.together[1] > 1.5
    assert model.together[1] > model.together[0] + 0.5
    assert sum(found.probability[:, 2].sum() for _, _, found in locate(planted, model)) < 3


def test_close_pairs_by_chance_are_those_of_effects_anywhere():
    model = simulated(False, 9, blocks=1)[2]
    counts = Counts.zero(model)
    counts.located, counts.around, counts.variants = np.array([3.0, 2.0, 1.0]), np.array([12.0, 6.0, 5.0]), 300
    # Of sets {0}, {1} and {0, 1} only {0} and {1} have no trait in common.
    chance = counts.close_by_chance(model)
    assert chance[1] == pytest.approx((12 * 2 + 6 * 3) / 300 / 2)
    assert chance.sum() == pytest.approx(23 * 6 / 300 / 2)


def test_what_may_be_shared_is_counted_as_decided_in_part():
    several = np.array([False, False, True])
    p = np.array([[0.5, 0.2, 0.3], [0.0, 0.01, 0.99], [0.08, 0.0, 0.02], [0.0, 0.0, 0.0], [0.25, 0.25, 0.5]])
    found = _sharpened(p, several)
    np.testing.assert_array_equal(found[:, :2], p[:, :2])
    q, total = np.array([0.3, 0.99, 0.2, 0.5]), np.array([1.0, 1.0, 0.1, 1.0])
    np.testing.assert_allclose(found[[0, 1, 2, 4], 2], total * q**1.5 / (q**1.5 + (1 - q) ** 1.5))
    assert found[3, 2] == 0.0
    over = _sharpened(np.array([[-1e-9, 0.0, 0.9]]), several)  # rounding
    assert over[0, 2] == pytest.approx(0.9, abs=1e-6)
