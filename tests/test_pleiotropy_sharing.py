"""The test of psi = 0: its statistics written out, its level and its power."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deepwas.errors import InputError
from deepwas.pleiotropy.configurations import TraitModel, configurations
from deepwas.pleiotropy.drawing import draw_partners, draw_without_sharing
from deepwas.pleiotropy.learning import JointBlock, locate
from deepwas.pleiotropy.sharing_test import _chance, _Drawn, _found, sharing_test
from tests.dense import ld_matrix

K, SIZE = 2, 24
N = np.full(K, 1e5)
NOISE = np.array([[1.0, 0.3], [0.3, 1.0]])
MODEL = TraitModel(N, NOISE, np.full(K, 5e-4), np.zeros((K, K)))


def factor():
    values, vectors = np.linalg.eigh(ld_matrix("ar1", SIZE, np.random.default_rng(0)))
    return (vectors * np.sqrt(np.maximum(values, 0.0))).T


def world(shared, seed, blocks=10, model=MODEL, pi=0.02):
    """Blocks of two traits; shared: traits act on the same variants."""
    rng, G, out = np.random.default_rng(seed), factor(), []
    for i in range(blocks):
        direct = np.full((SIZE, model.traits), pi) * model.slab
        empty = JointBlock(G, np.zeros((len(G), model.traits)), direct, slice(i * SIZE, (i + 1) * SIZE))
        if shared:
            acts = np.repeat(rng.random((SIZE, 1)) < pi, model.traits, axis=1)
            u = acts * rng.normal(size=acts.shape) * np.sqrt(model.slab * model.sample_size)
            y = G @ u + rng.normal(size=(len(G), model.traits)) @ np.linalg.cholesky(model.noise).T
        else:
            y = draw_without_sharing(empty, model, rng)
        out.append(replace(empty, whitened=y))
    return out


def test_data_without_sharing_have_the_models_moments():
    T = np.array([[0.0, 0.5], [0.0, 0.0]])
    model = replace(MODEL, T=T, loadings=np.array([[0.03, -0.02]]), factor_odds=np.array([-2.0]))
    (block,) = world(False, 0, blocks=1, model=model, pi=0.3)
    rng = np.random.default_rng(1)
    drawn = np.stack([draw_without_sharing(block, model, rng) for _ in range(4000)])
    found = np.einsum("nik,nil->ikl", drawn, drawn) / len(drawn)
    forward = np.linalg.inv(np.eye(K) - T) * np.sqrt(N)[None, :]
    own = forward.T @ np.diag(0.3 * model.slab) @ forward
    through = np.outer(model.loadings[0], model.loadings[0]) * np.sqrt(np.outer(N, N)) / (1 + np.exp(2.0))
    squares = np.sum(block.factor**2, axis=1)
    expected = NOISE[None] + squares[:, None, None] * (own + through)[None]
    scale = np.sqrt(np.einsum("ikk->ik", expected))
    off = (found - expected) / (scale[:, :, None] * scale[:, None, :])
    assert np.abs(off).max() < 0.2
    assert abs(off.mean()) < 0.02


def test_an_effect_draws_others_near_it_as_the_log_odds_say():
    G, pi, together, row = factor(), 0.05, (1.0, 2.0), 11
    near = (G.T @ G[:, row]) ** 2 > 0.2
    near[row] = False
    rng, each = np.random.default_rng(2), np.eye(K, dtype=bool)
    found, draws = np.zeros((SIZE, K)), 4000
    for _ in range(draws):
        at = draw_partners(G, np.array([row]), each[:1], np.full((SIZE, K), pi), each, together, rng)
        found[at] += 1
    expected = draws * pi * (np.exp(together) - 1) / 2
    assert 0 < near.sum() < SIZE - 1
    assert not found[~near].any()
    assert (np.abs(found[near] - expected) < 5 * np.sqrt(expected)).all()
    nothing = draw_partners(G, np.array([row]), each[:1], np.full((SIZE, K), pi), each, (0.0, 0.0), rng)
    assert [len(x) for x in nothing] == [0, 0]


def test_numbers_of_shared_variants_are_those_of_the_configurations():
    model = TraitModel(np.full(3, 1e5), np.eye(3), np.full(3, 5e-4), np.zeros((3, 3)))
    (block,) = world(True, 2, blocks=1, model=model, pi=0.1)
    ((_, odds, effects),) = locate([block], model)
    masks = configurations(3)
    pi = np.asarray(block.direct / model.slab)
    prior = np.exp(odds) / (1 + np.exp(odds).sum(axis=1, keepdims=True))
    by_chance = _chance(pi, pi.sum(axis=0))
    for found, p in ((_found(effects.probability, model), effects.probability), (by_chance, prior)):
        for j in range(3):
            for k in range(3):
                if j != k:
                    assert found[j, k] == pytest.approx(p[:, masks[:, j] & masks[:, k]].sum(), rel=1e-6)
        assert found[3, 0] == pytest.approx(p[:, masks.sum(axis=1) >= 2].sum(), rel=1e-6)
    twice = _chance(pi, 2 * pi.sum(axis=0) + 0.5)
    np.testing.assert_allclose(twice[:3], 4 * by_chance[:3], rtol=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(5):  # no variant can be shared: none is, not even by rounding
        pi = 1e-3 * rng.uniform(size=(2000, 2)) * np.repeat(np.eye(2), 1000, axis=0)
        assert _chance(pi, pi.sum(axis=0))[2, 0] >= 0


def test_sharing_is_found_and_independence_is_not_rejected():
    progress = []
    found = sharing_test(
        world(True, 3), MODEL, draws=19, rounds=2, slots=3, candidates=16, progress=lambda *x: progress.append(x)
    )
    assert found.p == pytest.approx(0.05)
    assert found.pair_p[0, 1] == found.pair_p[1, 0] == pytest.approx(0.05)
    assert np.isnan(found.pair_p[0, 0])
    assert found.statistic == pytest.approx(np.log((found.expected + 0.5) / (found.chance + 0.5)))
    assert found.statistic > found.null.max()
    assert progress[-1] == (22, 22)
    assert found.as_dict(["a", "b"])["pairs"][0]["traits"] == ["a", "b"]
    # Of blocks with flanks only what they score counts: two halves of them have what the whole has.
    parts = [
        sharing_test([replace(b, scored=x) for b in world(True, 3)], MODEL, draws=1, rounds=2, slots=3, candidates=16)
        for x in (slice(0, SIZE // 2), slice(SIZE // 2, SIZE))
    ]
    assert parts[0].expected + parts[1].expected == pytest.approx(found.expected, rel=1e-4)
    # Under psi = 0 the ranks of ten data sets are uniform: their mean p is within 3.5 standard errors of its own.
    p = [
        sharing_test(world(False, 10 + i, blocks=4), MODEL, draws=9, rounds=0, slots=3, candidates=16, seed=i).p
        for i in range(10)
    ]
    assert abs(np.mean(p) - 0.55) < 3.5 * np.sqrt(0.0825 / 10)


def test_every_data_set_of_the_null_has_one_t():
    draws = np.zeros((8, K, K))
    draws[::2, 0, 1] = 0.5
    blocks = world(False, 3, blocks=3)
    sets = [_Drawn(blocks, replace(MODEL, draws=draws), [0, i], None) for i in range(20)]
    assert {float(one.model.T[0, 1]) for one in sets} == {0.0, 0.5}
    assert all(not len(one.model.draws) for one in sets)
    # With a path each block's second trait shows what acts on the first.
    strong = replace(MODEL, slab=np.full(K, 0.1), draws=draws)
    for i in range(4):
        one = _Drawn([replace(b, direct=np.full((SIZE, K), 0.05) * [1, 0]) for b in blocks], strong, [1, i], None)
        along = [float(np.abs(b.whitened[:, 1]).max()) for b in one]
        assert (min(along) > 6) if one.model.T[0, 1] else (max(along) < 6)


def test_the_same_seed_gives_the_same_test():
    blocks = world(True, 4, blocks=3)
    one, two, other = (
        sharing_test(blocks, MODEL, draws=3, rounds=0, slots=3, candidates=16, seed=s) for s in (5, 5, 6)
    )
    np.testing.assert_array_equal(one.null, two.null)
    assert (one.null != other.null).any()


def test_what_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="draws is 0"):
        sharing_test(world(True, 5, blocks=1), MODEL, draws=0)
    with pytest.raises(InputError, match="one LD block or more"):
        sharing_test([], MODEL)
