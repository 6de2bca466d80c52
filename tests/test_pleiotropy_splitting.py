"""P(split): whether one shared variant could be two close ones, against dense algebra and on planted effects."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import jax
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from deepwas.pleiotropy.calls import loci_of, read_loci
from deepwas.pleiotropy.configurations import TraitModel, first_sets
from deepwas.pleiotropy.learning import JointBlock, locate, raised
from deepwas.pleiotropy.splitting import Split, splits

M, N = 32, 1e5
SIGNAL = 60.0
LEAD, NEAR = 12, 14
HOW = {"slots": 3, "candidates": 48}
EVERY = slice(0, M)
NOISE = np.array([[1.0, 0.2, 0.0], [0.2, 1.0, 0.1], [0.0, 0.1, 1.0]])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def ld(r):
    """Of neighbours; the first three variants are hardly in LD with the others."""
    place = np.arange(M)
    R = r ** np.abs(place[:, None] - place[None, :])
    far = np.where(place < 3, 0, 1)
    return R * np.where(far[:, None] == far[None, :], 1.0, 0.1)


def with_proxy(R, of=LEAD, at=0):
    """The same with a copy of one variant, but for rounding, in the place of another."""
    R = R.copy()
    R[at], R[:, at] = R[of], R[:, of]
    R[at, at] = R[at, of] = R[of, at] = 1.0
    return 0.9999 * R + 0.0001 * np.eye(M)


def model(**changes):
    T = np.zeros((3, 3))
    T[0, 2] = 0.2
    excess = np.array([0.0, 0.0, 6.0, 6.0])
    return TraitModel(np.full(3, N), NOISE, np.full(3, SIGNAL / N), T, excess, **changes)


def block(R, effects, *, noise=0.0, seed=0, prior=1e-3):
    """effects: {variant: (K,) z-scores at it}; E is left out by default, so that what is seen is what is expected."""
    values, vectors = np.linalg.eigh(R)
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T  # G, G'G = R
    u = np.zeros((M, 3))
    for j, z in effects.items():
        u[j] = z
    E = noise * np.random.default_rng(seed).normal(size=(M, 3)) @ np.linalg.cholesky(NOISE).T
    return JointBlock(root, root @ u + E, np.full((M, 3), prior * SIGNAL / N), EVERY)


def found(one, model, **how):
    ((_, _, effects),) = locate([one], model, **HOW, **how)
    return effects


def split(one, effects, model, panel=None):
    """(sets,), P(split); nan where there is none."""
    each = splits(one, effects, model, EVERY, panel)
    return np.array([np.nan if x is None else x.probability for x in each])


def likeliest(effects, model, s=0):
    return int(np.argmax(np.where(model.masks.sum(axis=1) >= 2, effects.of_sets[s], 0.0)))


def dense(one, model, lead, best, noise):
    """P(split) from densities of all whitened z-scores, over all pairs; no other effect in the block."""
    G, y = one.factor, one.whitened
    length = np.sqrt((G**2).sum(axis=0))
    near = np.flatnonzero((G.T @ G[:, lead] / length / length[lead]) ** 2 > 0.8)
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
    return 1 / (1 + np.exp(max(one_effect) - max(two)))


@pytest.mark.parametrize("traits", [(0, 1), (0, 1, 2)])
@pytest.mark.parametrize("panel", [None, 400])
def test_is_what_dense_algebra_gives(traits, panel):
    u = np.where(np.isin(np.arange(3), traits), [9.0, -8.0, 7.0], 0.0)
    one = block(ld(0.97), {LEAD: u}, noise=1.0, seed=3)
    rng = np.random.default_rng(0)
    T = np.where(model().T != 0, model().T + 0.05 * rng.normal(size=(6, 3, 3)), 0.0)
    used = model(draws=T)
    effects = found(one, used, panel=panel)
    assert len(effects.sets) == 1
    (got,) = split(one, effects, used, panel)
    noise = NOISE if panel is None else raised(used, effects, panel)
    assert got == pytest.approx(dense(one, used, effects.sets[0].lead, likeliest(effects, used), noise), rel=1e-6)
    assert 0 < got < 1


def test_error_of_a_panel_makes_it_less_certain():
    one = block(ld(0.96), {LEAD: np.array([16.0, 15.0, 0.0])})
    used = model()
    exact, careful = found(one, used), found(one, used, panel=300)
    (sure,), (doubted,) = split(one, exact, used), split(one, careful, used, 300)
    assert sure < doubted < 0.5


def test_one_strong_variant_is_no_pair_and_a_pair_is_not_one_variant():
    R = ld(0.96)  # r2 of neighbours 0.92, of those two apart 0.85
    used = model()
    together = block(R, {LEAD: np.array([20.0, 20.0, 0.0])})
    apart = block(R, {LEAD: np.array([20.0, 0.0, 0.0]), NEAR: np.array([0.0, 20.0, 0.0])})
    effects = found(together, used)
    (one,) = split(together, effects, used)
    assert one < 0.05
    # What is called shared there, if nothing else were thought possible:
    (two,) = split(apart, effects, used)
    assert two > 0.95
    (pair,) = splits(apart, effects, used, EVERY)
    places = dict(zip((0, 1) if pair.trait == 0 else (1, 0), pair.variants, strict=True))
    assert places == {0: LEAD, 1: NEAR}
    (strong,) = split(block(R, {LEAD: np.array([150.0, 150.0, 0.0])}), effects, used)
    assert strong < 1e-9  # and no overflow


def test_a_perfect_proxy_is_as_good_whatever_else_is_near():
    """Of two copies one effect can be on each; so it is among many others in weaker LD with them."""
    used, u = model(), {LEAD: np.array([20.0, 20.0, 0.0])}
    for r in (0.8, 0.96, 0.99):  # none, four and about twenty others above r2 of 0.8
        one = block(with_proxy(ld(r)), u)
        effects = found(one, used)
        assert effects.sets[0].lead in (0, LEAD)
        (got,) = split(one, effects, used)
        assert got == pytest.approx(0.5, abs=0.01)


def test_two_effects_are_seen_across_many_variants_between_them():
    R = ld(0.9955)  # 25 variants are in LD r2 > 0.8 with the lead
    first, second = 3, 27
    used = model()
    apart = block(R, {first: np.array([30.0, 0.0, 0.0]), second: np.array([0.0, 30.0, 0.0])})
    effects = found(block(R, {first: np.array([30.0, 30.0, 0.0])}), used)
    assert effects.sets[0].lead == first
    assert (R[first] ** 2 > 0.8).sum() == 25
    (got,) = split(apart, effects, used)
    assert got > 0.95


def test_what_is_alone_is_no_pair_and_what_is_not_shared_is_not_weighed():
    used = model()
    lonely = block(ld(0.8), {LEAD: np.array([12.0, 12.0, 0.0])})
    single = block(ld(0.97), {LEAD: np.array([0.0, 12.0, 0.0])})
    assert split(lonely, found(lonely, used), used).tolist() == [0.0]
    assert np.isnan(split(single, found(single, used), used)).all()
    nothing = block(ld(0.8), {})
    assert len(split(nothing, found(nothing, used), used)) == 0
    # A lead that another block scores is left to that one.
    assert splits(lonely, found(lonely, used), used, slice(LEAD + 1, M)) == [None]
    assert splits(lonely, found(lonely, used), used, EVERY) == [Split(0.0)]


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
    got = split(beside, effects, used)
    where = [one.lead for one in effects.sets].index(LEAD)
    (expected,) = split(alone, found(alone, used), used)
    assert got[where] == pytest.approx(expected, rel=0.2)
    assert np.isnan(got[1 - where])


@pytest.mark.parametrize("background", [0.1, 0.5, 2.0])
def test_background_makes_it_less_certain_and_takes_no_variant_away(background):
    one = block(ld(0.96), {LEAD: np.array([16.0, 15.0, 0.0])}, prior=0.02)
    used = model()
    behind = replace(used, background=np.full(3, background))
    (sure,) = split(one, found(one, used), used)
    (doubted,) = split(one, found(one, behind), behind)
    assert 0 < sure < doubted < 0.5


def test_of_many_traits_sets_without_a_class_of_their_rest_are_split_too():
    K = 10
    sets = np.concatenate([first_sets(K), np.isin(np.arange(K), [1, 4, 7, 9])[None]])
    noise = np.eye(K)
    used = TraitModel(np.full(K, N), noise, np.full(K, SIGNAL / N), np.zeros((K, K)), np.full(K + 1, 6.0), sets=sets)
    one = block(ld(0.96), {})
    u = np.zeros((M, K))
    u[LEAD] = 15.0 * sets[-1]
    whole = JointBlock(one.factor, one.factor @ u, np.full((M, K), 1e-3 * SIGNAL / N), EVERY)
    u[LEAD, 4], u[NEAR, 4] = 0.0, 15.0
    two = JointBlock(one.factor, one.factor @ u, whole.direct, EVERY)
    effects = found(whole, used)
    assert likeliest(effects, used) == len(sets) - 1
    assert split(whole, effects, used)[0] < 0.1
    (pair,) = splits(two, effects, used, EVERY)
    assert pair.probability > 0.9
    assert (pair.trait, pair.variants) == (4, (NEAR, LEAD))


def test_what_goes_through_a_factor_is_not_weighed():
    used = model(loadings=np.array([[0.05, 0.04, 0.0]]), factor_odds=np.array([8.0]))
    one = block(ld(0.97), {LEAD: np.array([0.05, 0.04, 0.0]) * np.sqrt(N)})
    effects = found(one, used)
    assert effects.of_sets[0].argmax() == len(used.sets)
    assert np.isnan(split(one, effects, used)).all()


@pytest.mark.parametrize(("shared", "weighed"), [(0.3, True), (0.1, False)])
def test_all_is_weighed_that_can_be_called_shared(shared, weighed):
    """Among many sure loci one is called at a mean local false discovery rate of 5% that is likelier not shared."""
    used = model()
    one = block(with_proxy(ld(0.8)), {LEAD: np.array([20.0, 20.0, 0.0])})
    effects = found(one, used)
    several = used.masks.sum(axis=1) >= 2
    of_set = np.where(several, effects.of_sets[0] * shared / effects.of_sets[0][several].sum(), 0.0)
    of_set[0] = (1 - shared) * effects.sets[0].effect
    of_set[several] *= effects.sets[0].effect
    effects = replace(effects, of_sets=of_set[None, :])
    assert not several[0]
    (got,) = split(one, effects, used)
    assert got == pytest.approx(0.5, abs=0.01) if weighed else np.isnan(got)


def test_a_locus_keeps_it_and_says_that_it_is_unresolvable():
    used = model()
    one = block(with_proxy(ld(0.8)), {LEAD: np.array([20.0, 20.0, 0.0]), 25: np.array([0.0, 0.0, 15.0])})
    effects = found(one, used)
    text = loci_of(effects, one.factor, 100, EVERY, splits(one, effects, used, EVERY))
    pair, single = sorted(read_loci(7, text), key=lambda x: -x.shared(used))
    assert int(pair.variants[0]) in (100, 100 + LEAD)
    assert pair.split.probability == pytest.approx(0.5, abs=0.01)
    assert sorted(pair.split.variants) == [100, 100 + LEAD]
    assert pair.split.trait in (0, 1)
    assert single.split is None
    assert max(pair.nearest, single.nearest) < 0.8
    assert (pair.unresolvable, single.unresolvable) == (True, False)
    assert replace(pair, split=Split(0.2, 0, (100, 101))).unresolvable
    assert not replace(pair, split=Split(0.05, 0, (100, 101))).unresolvable
    assert replace(single, nearest=0.9).unresolvable
