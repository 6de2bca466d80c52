"""Fine-mapping against sums over all states, written out; its calibration; its inputs."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binomtest, multivariate_normal

from deepwas.errors import InputError
from deepwas.finemapping import FineMapOptions, finemap, finemap_blocks
from deepwas.finemapping.background import background
from deepwas.finemapping.block import Task, _apart_from_others, locate_effects
from deepwas.finemapping.effects import as_arrays, effect_classes, normal_slab, single_effect
from deepwas.finemapping.groups import LINKED, cut
from deepwas.finemapping.pairs import at_most_two
from deepwas.finemapping.sets import credible_set
from deepwas.finemapping.trait import learn_slab
from deepwas.finemapping.weak import weak_effects
from deepwas.ld import LDBlock
from deepwas.training.trait import TraitBlock
from tests.dense import correlation, genotypes

NOISE = np.array([[1.0, 0.3], [0.3, 1.2]])
COVARIANCES = np.stack([np.diag([20.0, 0.0]), np.diag([0.0, 30.0]), np.array([[20.0, 5.0], [5.0, 30.0]])])
N = 1e5


def ld(m, r=0.6):
    return r ** np.abs(np.subtract.outer(np.arange(m), np.arange(m)))


def factor(R):
    values, vectors = np.linalg.eigh(R)
    return (vectors * np.sqrt(np.maximum(values, 0))).T


def two_traits(m, seed, effects):
    """G (m, m), y (m, 2) and log odds (m, 3)."""
    rng = np.random.default_rng(seed)
    G = factor(ld(m))
    y = G @ effects + rng.multivariate_normal(np.zeros(2), NOISE, size=m)
    return G, y, np.log(rng.uniform(0.01, 0.1, (m, len(COVARIANCES))))


def every_state(G, y, odds, most):
    """Log weights of all states of at most `most` effects at distinct variants: {((j, c), ...): weight}."""
    m = G.shape[1]
    items = list(itertools.product(range(m), range(odds.shape[1])))
    out = {}
    for number in range(most + 1):
        for state in itertools.combinations(items, number):
            if len({j for j, _ in state}) < number:
                continue
            covariance = np.kron(NOISE, np.eye(len(G)))
            for j, c in state:
                covariance = covariance + np.kron(COVARIANCES[c], np.outer(G[:, j], G[:, j]))
            density = multivariate_normal(np.zeros(len(covariance)), covariance).logpdf(y.T.ravel())
            out[state] = density + sum(odds[j, c] for j, c in state)
    return out


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("where", [(2, 4), (3, 3)])
def test_at_most_two_effects_are_weighed_as_all_states_written_out(seed, where):
    effects = np.zeros((6, 2))
    effects[where[0]] += [4, 0]
    effects[where[1]] += [2, -4]
    G, y, odds = two_traits(6, seed, effects)
    states = every_state(G, y, odds, 2)
    null = states[()]
    weight = {state: np.exp(x - null) for state, x in states.items()}
    total = sum(weight.values())
    probability, numbers = np.zeros_like(odds), np.zeros(3)
    for state, w in weight.items():
        numbers[len(state)] += w / total
        for j, c in state:
            probability[j, c] += w / total
    start = jnp.zeros((6, 2))
    found = at_most_two(G, y, as_arrays(effect_classes(COVARIANCES, NOISE), float), odds, start, start, candidates=18)
    without_density = multivariate_normal(np.zeros(12), np.kron(NOISE, np.eye(6))).logpdf(y.T.ravel())
    assert null == pytest.approx(without_density)
    np.testing.assert_allclose(found.probability, probability, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(found.numbers, numbers, rtol=1e-9, atol=1e-13)
    assert float(found.log_evidence) == pytest.approx(np.log(total), rel=1e-10)
    assert float(found.first.sum()) == pytest.approx(numbers[1] + numbers[2])
    assert float(found.second.sum()) == pytest.approx(numbers[2])
    np.testing.assert_allclose(found.first + found.second, probability, rtol=1e-9, atol=1e-13)


def test_the_effects_of_a_pair_are_those_of_the_joint_normal():
    """With only one pair possible, E[u] and E[u^2] are conditional moments of a normal distribution."""
    effects = np.zeros((6, 2))
    effects[:2] = [[6.0, 1.0], [-3.0, 5.0]]
    G, y, _ = two_traits(6, 3, effects)
    odds = np.full((6, 3), -np.inf)
    odds[0, 0], odds[1, 2] = 40.0, 40.0
    start = jnp.zeros((6, 2))
    found = at_most_two(G, y, as_arrays(effect_classes(COVARIANCES, NOISE), float), odds, start, start, candidates=18)
    assert float(found.numbers[2]) == pytest.approx(1.0)
    prior = np.zeros((4, 4))  # u as (variant, trait), variant slowest
    prior[:2, :2], prior[2:, 2:] = COVARIANCES[0], COVARIANCES[2]
    design = np.hstack([np.kron(G[:, [j]], np.eye(2)) for j in range(2)])  # rows: (direction, trait)
    covariance = design @ prior @ design.T + np.kron(np.eye(6), NOISE)
    gain = prior @ design.T @ np.linalg.inv(covariance)
    mean, spread = gain @ y.ravel(), prior - gain @ design @ prior
    np.testing.assert_allclose(np.asarray(found.mean)[:2].ravel(), mean, rtol=1e-8)
    np.testing.assert_allclose(np.asarray(found.square)[:2].ravel(), mean**2 + np.diag(spread), rtol=1e-8)


def test_one_effect_is_the_sum_over_variants_and_classes():
    G, y, odds = two_traits(6, 2, np.array([[0, 0], [3, 0], [0, 0], [0, 0], [0, 0], [0, 0.0]]))
    states = every_state(G, y, odds, 1)
    weight = np.exp(np.array(list(states.values())) - states[()])
    expected = np.zeros_like(odds)
    for state, w in zip(states, weight, strict=True):
        for j, c in state:
            expected[j, c] = w / weight.sum()
    classes = as_arrays(effect_classes(COVARIANCES, NOISE), float)
    found = single_effect(classes, jnp.asarray(odds), jnp.asarray(G.T @ y), jnp.sum(jnp.asarray(G) ** 2, axis=0))
    np.testing.assert_allclose(found.probability, expected, rtol=1e-9)
    assert float(found.log_evidence) == pytest.approx(np.log(weight.sum()))


def test_weak_effects_are_exact_without_ld_and_for_copies():
    rng = np.random.default_rng(4)
    classes = as_arrays(normal_slab(9.0, 1.0), float)
    odds = np.full((6, 1), -3.0)
    alone = np.exp(-3.0) * 10**-0.5 * np.exp(0.5 * 0.9 * rng.normal(size=6) ** 2)
    y = np.random.default_rng(4).normal(size=(6, 1))
    found = weak_effects(jnp.eye(6), jnp.asarray(y), classes, jnp.asarray(odds))
    np.testing.assert_allclose(found.probability[:, 0], alone / (1 + alone), rtol=1e-9)
    copies = weak_effects(jnp.ones((1, 6)), jnp.asarray(y[:1]), classes, jnp.asarray(odds))
    np.testing.assert_allclose(copies.probability[:, 0], np.full(6, alone[0] / (1 + 6 * alone[0])), rtol=1e-9)


@pytest.fixture(scope="module")
def simulated():
    """Blocks of coalescent-like LD, their causal variants, and prior variances: sparse, uneven over variants."""
    rng = np.random.default_rng(7)
    slab, blocks, causal, f = 6e-4, [], [], []
    Rs = [correlation(genotypes(40, 400, rng, 0.9)) for _ in range(6)]
    for number in range(240):
        R = Rs[number % len(Rs)]
        block = LDBlock.from_correlation(R, eigenvalue_floor=1e-6, dtype=np.float64)
        pi = 0.03 * np.exp(rng.normal(scale=0.8, size=40) - 0.32)
        has = rng.random(40) < pi
        beta = np.where(has, rng.normal(size=40) * np.sqrt(slab), 0.0)
        z = np.sqrt(N) * R @ beta + factor(R).T @ rng.normal(size=40)
        rows = slice(40 * number, 40 * number + 40)
        y = block.whiten(z).astype(np.float32)
        blocks.append(TraitBlock(number, rows, np.asarray(block.factor), y, z, np.ones(40, bool), N))
        causal.append(has)
        f.append(pi * slab)
    return blocks, np.concatenate(f), np.concatenate(causal), slab


@pytest.fixture(scope="module")
def mapped(simulated):
    blocks, f, _, slab = simulated
    return finemap_blocks(blocks, f, options=FineMapOptions(slab=slab), batch=16)


def test_inclusion_probabilities_and_credible_sets_are_calibrated(simulated, mapped):
    _, _, causal, _ = simulated
    for low, high in ((0.0, 0.05), (0.05, 0.3), (0.3, 0.9), (0.9, 1.01)):
        inside = (mapped.inclusion >= low) & (mapped.inclusion < high)
        p = mapped.inclusion[inside]
        assert inside.sum() > 30, (low, high)
        error = np.sqrt(np.sum(p * (1 - p))) + 1e-9
        assert abs(causal[inside].sum() - p.sum()) < 4 * error + 0.02 * p.sum(), (low, high)
    covered = [bool(causal[s.variants].any()) for _, s in mapped.sets]
    assert len(covered) > 60
    assert binomtest(sum(covered), len(covered), 0.95, alternative="less").pvalue > 0.01
    assert mapped.converged.mean() > 0.95
    within = np.sqrt(np.sum(mapped.effects_sd**2))
    assert abs(mapped.effects.sum() - causal.sum()) < 4 * within


def test_blocks_together_are_the_blocks_alone(simulated, mapped):
    blocks, f, _, slab = simulated
    for block in blocks[:3]:
        alone = finemap_blocks([block], f, options=FineMapOptions(slab=slab))
        np.testing.assert_allclose(alone.inclusion[block.rows], mapped.inclusion[block.rows], atol=2e-4)
        np.testing.assert_allclose(alone.mean[block.rows], mapped.mean[block.rows], atol=2e-4 * np.sqrt(slab))


def test_the_slab_is_learned(simulated):
    blocks, f, _, slab = simulated
    found, rounds = learn_slab(blocks[:120], f, batch=16)
    assert 0.6 * slab < found < 1.6 * slab
    assert 1 <= rounds <= 8


def test_other_sample_sizes_are_other_scales_only():
    """N enters through sqrt(N) beta: a quarter of N with effects of twice the size is the same problem."""
    rng = np.random.default_rng(5)
    R = correlation(genotypes(20, 300, rng, 0.9))
    block = LDBlock.from_correlation(R, dtype=np.float64)
    z = factor(R).T @ rng.normal(size=20) + 8 * R[:, 4]
    first = finemap(block, z, np.full(20, 1e-6), sample_size=N, slab=1e-4)
    second = finemap(block, z, np.full(20, 4e-6), sample_size=N / 4, slab=4e-4)
    np.testing.assert_allclose(first.inclusion, second.inclusion, rtol=1e-10)
    np.testing.assert_allclose(2 * first.mean, second.mean, rtol=1e-10)
    np.testing.assert_allclose(4 * first.variance, second.variance, rtol=1e-8)
    assert 4 in first.sets[0].variants


def test_one_variant_is_the_textbook_formula():
    block = LDBlock.from_correlation(np.eye(1), dtype=np.float64)
    z, slab, pi = 3.0, 2e-4, 0.1
    alone = FineMapOptions(background=False)
    found = finemap(block, [z], [pi * slab], sample_size=N, slab=slab, noise=1.3, options=alone)
    v = N * slab
    bayes = np.sqrt(1.3 / (1.3 + v)) * np.exp(0.5 * z**2 * (1 / 1.3 - 1 / (1.3 + v)))
    p = pi * bayes / (1 - pi + pi * bayes)
    slope = v / (1.3 + v) * z / np.sqrt(N)
    assert found.inclusion[0] == pytest.approx(p)
    assert found.mean[0] == pytest.approx(p * slope)
    assert found.variance[0] == pytest.approx(p * (slope**2 + slab * 1.3 / (1.3 + v)) - (p * slope) ** 2)


def test_the_error_of_a_small_panel_raises_the_noise():
    """With R^ from n people, the error that an effect adds to whitened z-scores has variance N beta^2 / n_R."""
    rng = np.random.default_rng(3)
    m, people, u = 20, 300, 12.0
    X = genotypes(m, 4000, rng, 0.9)
    R = correlation(X)
    error = []
    for _ in range(200):
        block = LDBlock.from_correlation(correlation(X[rng.choice(4000, people)]), dtype=np.float64)
        error.append(np.mean((block.whiten(u * R[:, 4]) - u * np.asarray(block.factor)[:, 4]) ** 2))
    assert np.mean(error) == pytest.approx(u**2 / people, rel=0.15)
    exact = LDBlock.from_correlation(R, dtype=np.float64)
    z = u * R[:, 4] + factor(R).T @ rng.normal(size=m)
    given = {"sample_size": N, "slab": 1e-3, "options": FineMapOptions(background=False)}
    found = finemap(exact, z, np.full(m, 1e-5), panel=people, **given)
    effects = N * np.sum(found.variance + found.mean**2)
    assert found.panel_error == pytest.approx(effects / people, rel=0.02)
    assert found.noise == pytest.approx(1 + found.panel_error, rel=0.02)
    again = finemap(exact, z, np.full(m, 1e-5), noise=found.noise, **given)
    np.testing.assert_allclose(found.inclusion, again.inclusion, atol=1e-3)
    many = finemap(exact, z, np.full(m, 1e-5), panel=1e9, **given)
    assert many.noise == pytest.approx(1, abs=1e-5)
    with pytest.raises(InputError, match="panel is -5"):
        finemap(exact, z, np.full(m, 1e-5), panel=-5, **given)


def test_effects_that_cannot_be_located_are_found_as_background():
    """Whitened z-scores with effects everywhere, of t times the prior's variance, and without."""
    rng = np.random.default_rng(8)
    m, t = 40, 1.0
    R = correlation(genotypes(m, 400, rng, 0.9))
    block = LDBlock.from_correlation(R, eigenvalue_floor=1e-3, dtype=np.float64)
    f = np.full(m, 1e-4)
    signal = N * np.asarray(block.factor) ** 2 @ f
    shares = []
    for _ in range(60):
        rest = rng.normal(size=block.k) * np.sqrt(1.2 + t * signal)
        shares.append(background(rest**2, 1.2, signal))
    assert np.mean(shares) == pytest.approx(t, rel=0.2)
    none = [background(rng.normal(size=block.k) ** 2, 1.0, signal) for _ in range(60)]
    assert np.mean(np.equal(none, 0)) > 0.7
    assert np.mean(none) < 0.1
    beta = rng.normal(size=m) * np.sqrt(f)
    beta[4] = 0.1
    z = np.sqrt(N) * R @ beta + factor(R).T @ rng.normal(size=m)
    given = {"sample_size": N, "slab": 1e-2}
    found = finemap(block, z, f, **given)
    without = finemap(block, z, f, options=FineMapOptions(background=False), **given)
    assert found.background > 0.3
    assert without.background == 0
    assert found.inclusion[4] > 0.9
    assert found.effects < without.effects


def test_a_prior_of_zero_excludes_a_variant():
    rng = np.random.default_rng(6)
    R = ld(20, 0.95)
    block = LDBlock.from_correlation(R, dtype=np.float64)
    f = np.full(20, 1e-6)
    f[3] = 0.0
    found = finemap(block, 9 * R[:, 3] + factor(R).T @ rng.normal(size=20), f, sample_size=N, slab=1e-4)
    assert found.inclusion[3] == 0
    assert found.inclusion.sum() > 0.99


def test_single_precision_gives_the_same(simulated, mapped, float32):
    blocks, f, _, slab = simulated
    found = finemap_blocks(blocks[:16], f, options=FineMapOptions(slab=slab))
    rows = slice(0, 640)
    np.testing.assert_allclose(found.inclusion[rows], mapped.inclusion[rows], atol=5e-3)
    assert jnp.result_type(float) == jnp.float32


def test_slots_in_ld_are_weighed_together():
    G = factor(ld(30, 0.8))
    found = cut(G, np.array([2, 20, 4, 0]), np.array([True, True, True, False]))
    assert sorted(map(tuple, found.slots.tolist())) == [(-1, -1), (0, 2), (1, -1)]
    together = found.group[2]
    assert found.group[4] == together != found.group[20]
    r2 = ld(30, 0.8)[[2, 4, 20]] ** 2
    assert (found.group[(r2 <= LINKED).all(axis=0)] == 2).all()
    assert (cut(G, np.array([2]), np.array([False])).group == 0).all()


def test_a_credible_set_is_the_smallest_that_covers():
    G = factor(ld(4, 0.5))
    found = credible_set(G, np.array([0.1, 0.5, 0.3, 0.06]), 0.9)
    assert found is not None
    assert found.variants.tolist() == [1, 2, 0]
    assert found.coverage == pytest.approx(0.9)
    assert found.effect == pytest.approx(0.96)
    assert found.purity == pytest.approx(0.25)
    assert credible_set(G, np.array([0.1, 0.5, 0.3, 0.0]), 0.95) is None


def test_effects_of_a_block_batch_need_no_signal():
    task = Task(np.eye(20), np.zeros((20, 1)), np.full((20, 1), -7.0))
    (found,) = locate_effects([task], normal_slab(50.0, 1.0))
    assert not found.sets
    assert found.expected < 0.01
    assert found.converged


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"effect_variance": [1e-6, -1e-6]}, "effect_variance must hold 2 finite numbers >= 0"),
        ({"effect_variance": [1e-6]}, "its shape is \\(1,\\)"),
        ({"z": [1.0, np.nan]}, "z must hold 2 finite numbers"),
        ({"slab": 0.0}, "slab is 0.0; it must be positive"),
        ({"noise": np.inf}, "noise is inf"),
        ({"sample_size": -1.0}, "sample_size is -1.0"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    given = {"z": [1.0, 2.0], "effect_variance": [1e-6, 1e-6], "sample_size": N, "slab": 1e-4} | change
    z, f = given.pop("z"), given.pop("effect_variance")
    with pytest.raises(InputError, match=message):
        finemap(LDBlock.from_correlation(np.eye(2)), z, f, **given)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"slab": -1.0}, "slab is -1.0"),
        ({"max_effects": 0}, "max_effects is 0"),
        ({"candidates": 1}, "candidates is 1"),
        ({"coverage": 1.0}, "coverage is 1.0"),
        ({"purity": 1.5}, "purity is 1.5"),
    ],
)
def test_options_check_themselves(option, message):
    with pytest.raises(InputError, match=message):
        FineMapOptions(**option)


def test_classes_must_be_covariances():
    with pytest.raises(InputError, match="noise must be positive definite"):
        effect_classes(COVARIANCES, np.ones((2, 2)))
    with pytest.raises(InputError, match="covariances must be positive semi-definite"):
        effect_classes(-COVARIANCES, NOISE)
    with pytest.raises(InputError, match="symmetric"):
        effect_classes(np.array([[[1.0, 0.5], [0.0, 1.0]]]), NOISE)
    with pytest.raises(InputError, match="needed; got"):
        effect_classes(COVARIANCES[0], NOISE)
    root, gain, project, own, traits = effect_classes(COVARIANCES, NOISE)
    np.testing.assert_allclose(root @ np.swapaxes(root, 1, 2), COVARIANCES, atol=1e-12)
    np.testing.assert_allclose(np.einsum("cij,cjk->cik", project, root), [np.diag(g) for g in gain], atol=1e-10)
    np.testing.assert_array_equal(own, root)
    assert traits.tolist() == [[1, 0], [0, 1], [1, 1]]


@pytest.mark.parametrize(("r", "first", "second", "seed"), [(0.97, 9, 7, 1), (0.985, 12, 6, 1), (0.985, 15, 7, 0)])
def test_two_effects_are_seen_behind_one_on_both_traits(r, first, second, seed):
    """One variant for both traits is a likely first guess, as sets of traits are many; few candidates hold the pair."""
    K, m, rng = 5, 20, np.random.default_rng(seed)
    sets = np.array([[c >> k & 1 for k in range(K)] for c in range(1, 2**K)])
    shared = sets.sum(axis=1) >= 2
    classes = effect_classes(60.0 * sets[:, :, None] * np.eye(K), np.eye(K))
    odds = np.broadcast_to(np.where(shared, -11.0, -7.5), (m, len(sets)))
    G = factor(ld(m, r))
    y = rng.normal(size=(m, K))
    y[:, 0] += first * G[:, 6]
    y[:, 1] -= second * G[:, 13]
    few, most = (locate_effects([Task(G, y, odds)], classes, candidates=n, slots=1)[0] for n in (48, 256))
    assert most.probability[:, shared].sum() < 0.5
    assert few.probability[:, shared].sum() == pytest.approx(most.probability[:, shared].sum(), abs=0.1)
    assert few.expected == pytest.approx(most.expected, abs=0.05)
    np.testing.assert_allclose(few.fitted, G @ few.mean, atol=1e-6)


@pytest.mark.parametrize(("at", "other"), [(2, 5), (5, 2)])
def test_the_first_of_two_effects_is_the_one_that_would_be_there_alone(at, other):
    """Two traits have an effect at one variant, a third at another in strong LD with it, or all three at the latter."""
    m, r, sets = 8, 0.97, np.array([[c >> k & 1 for k in range(3)] for c in range(1, 8)])
    classes = as_arrays(effect_classes(60.0 * sets[:, :, None] * np.eye(3), np.eye(3)), np.float64)
    odds = np.broadcast_to(np.where(sets.sum(axis=1) >= 2, -7.0, -5.0), (m, 7))
    R = np.eye(m)
    R[at, other] = R[other, at] = r
    G = np.linalg.cholesky(R).T
    y = G[:, [at, at, other]] * [9.0, -9.0, 14.0]
    start = np.zeros((m, 3))
    found = at_most_two(G, y, classes, odds, start, start, candidates=m * 7)
    assert 0.4 < found.numbers[1] < 0.6
    assert found.first[other].sum() > 0.85
    assert found.second[at].sum() > 0.95 * found.numbers[2]


def test_an_effect_is_apart_from_those_of_other_groups_too():
    """Three variants in LD, one trait each: groups hold two, and the third has its partner in another."""
    m, r, sets = 9, 0.7, np.array([[c >> k & 1 for k in range(3)] for c in range(1, 8)])
    classes = effect_classes(60.0 * sets[:, :, None] * np.eye(3), np.eye(3))
    odds = np.broadcast_to(np.where(sets.sum(axis=1) >= 2, -9.0, -5.0), (m, 7))
    R = np.eye(m)
    for i, j in itertools.combinations((1, 4, 7), 2):
        R[i, j] = R[j, i] = r
    G = np.linalg.cholesky(R).T
    y = 20.0 * G[:, [1, 4, 7]]
    (found,) = locate_effects([Task(G, y, odds)], classes, slots=5)
    np.testing.assert_allclose(found.inclusion[[1, 4, 7]], 1.0, atol=0.02)
    np.testing.assert_allclose(found.apart[[1, 4, 7]], 1.0, atol=0.02)
    assert found.apart[[0, 2, 3, 5, 6, 8]].max() < 0.02
    # A partner need not be so likely that it has a credible set.
    (without,) = locate_effects([Task(G, y, odds)], classes, slots=5, coverage=1.1)  # none can have one
    assert without.sets == []
    np.testing.assert_allclose(without.apart, found.apart, atol=1e-6)
    # Effects on one trait are not apart, however many groups there are.
    same = locate_effects([Task(G, np.column_stack([y.sum(axis=1), 0 * y[:, :2]]), odds)], classes, slots=5)[0]
    np.testing.assert_allclose(same.inclusion[[1, 4, 7]], 1.0, atol=0.02)
    assert same.apart.max() < 0.05


def test_what_is_apart_is_a_probability_to_the_last_bit():
    rng = np.random.default_rng(0)
    acts = np.array([[True, False], [False, True], [True, True]])
    p = np.zeros((2000, 3))
    p[:, 0] = 10 ** rng.uniform(-16, -11, 2000)
    p[:, 2] = rng.uniform(0.9, 1.0, 2000)
    p = p.astype(np.float32).astype(np.float64)
    near, partner = np.ones((1, 2000), bool), np.array([[0.0, 1e-12, 1.0]])
    apart = _apart_from_others(p, np.zeros(2000), near, partner, acts)
    assert (apart >= 0).all()
    np.testing.assert_allclose(apart, 1e-12 * p[:, 0], rtol=1e-3)
    # Two partners, each apart by itself, are independent.
    p, partner = np.array([[0.4, 0.2, 0.3]]), np.array([[0.5, 0.1, 0.4]])
    by_others = 0.4 * 0.1 + 0.2 * 0.5
    both = _apart_from_others(p, np.array([0.3]), near[:, :1], partner, acts)
    assert both == pytest.approx(0.9 - (0.9 - 0.3) * (0.9 - by_others) / 0.9)


def test_effects_keep_their_probability_however_alike_variants_are():
    """Copies of a variant, to rounding: one effect on both traits or one on each, at two of them; pairs count once."""
    rng = np.random.default_rng(3)
    k, m = 30, 40
    base = rng.normal(size=(k, 1)) / np.sqrt(k)
    G = (base + 3e-4 * rng.normal(size=(k, m)) / np.sqrt(k)).astype(np.float32)
    y = (12.0 * base * np.array([[1.0, -0.8]]) + rng.normal(size=(k, 2))).astype(np.float32)
    odds = np.full((m, 3), -4.0, np.float32)
    start = np.zeros((m, 2), np.float32)
    classes = as_arrays(effect_classes(COVARIANCES, NOISE), np.float32)
    found = at_most_two(G, y, classes, odds, start, start, candidates=m * 3)
    assert found.numbers[2] > 0.02
    assert found.first.sum() == pytest.approx(found.numbers[1] + found.numbers[2], abs=1e-3)
    assert found.second.sum() == pytest.approx(found.numbers[2], abs=1e-3)
    np.testing.assert_allclose(found.first + found.second, found.probability, atol=1e-4)
