"""More traits than all sets can be enumerated of: which configurations are kept, and that they suffice."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest

from deepwas.errors import InputError
from deepwas.pleiotropy.configurations import (
    MOST_SETS,
    TraitModel,
    configurations,
    first_sets,
    numbers_of_sets,
    sets_of_numbers,
)
from deepwas.pleiotropy.growing import grown
from deepwas.pleiotropy.learning import JointBlock, locate
from deepwas.pleiotropy.model_of import model_from_numbers, numbers_of
from tests.dense import ld_matrix

SIZE = 16


def model_of(K, **fields):
    return TraitModel(np.full(K, 1e5), 0.8 * np.eye(K) + 0.2, np.full(K, 1e-3), np.zeros((K, K)), **fields)


def blocks_of(K, acting, seed):
    """One block for each set in `acting`: one variant acts on it, by 10 standard errors on each trait."""
    values, vectors = np.linalg.eigh(ld_matrix("ar1", SIZE, np.random.default_rng(0)))
    G = (vectors * np.sqrt(np.maximum(values, 0.0))).T
    rng, out, model = np.random.default_rng(seed), [], model_of(K)
    for i, traits in enumerate(acting):
        y = rng.normal(size=(SIZE, K)) @ np.linalg.cholesky(model.noise).T
        y[:, list(traits)] += 10 * G[:, [5]] * rng.choice([-1, 1], size=(1, len(traits)))
        direct = np.full((SIZE, K), 0.01 * 1e-3)
        out.append(JointBlock(G, y, direct, slice(i * SIZE, (i + 1) * SIZE)))
    return out


def of_set(model, found, traits):
    """Probability that variant 5 has an effect on exactly these traits."""
    (c,) = np.flatnonzero((model.masks == np.isin(np.arange(model.traits), list(traits))).all(axis=1))
    return found.probability[5, c]


def test_more_than_eight_traits_begin_with_pairs():
    assert first_sets(8).shape == (255, 8)
    assert first_sets(20).shape == (20 + 190, 20)
    assert model_of(12).masks.shape == (12 + 66, 12)
    sets = first_sets(20)
    np.testing.assert_array_equal(sets_of_numbers(numbers_of_sets(sets), 20), sets)


def test_a_model_is_read_back_from_numbers_as_it_was():
    sets = np.concatenate([first_sets(10), [np.arange(10) < 4], [np.arange(10) > 2]])
    rng = np.random.default_rng(0)
    model = replace(
        model_of(10, sets=sets),
        excess=rng.normal(size=11),
        offsets=rng.normal(size=10),
        loadings=rng.normal(size=(2, 10)),
        factor_odds=np.array([-7.0, -8.0]),
        factor_probability=np.array([1.0, 0.3]),
        together=(0.5, 2.0),
        mean_direct=rng.random(10),
        follows=0.4,
        background=rng.random(10),
        pairs=rng.normal(size=(10, 10)),
        exponents=2 * rng.random(10),
    )
    traits = SimpleNamespace(names=tuple("abcdefghij"), sample_size=model.sample_size)
    structure = SimpleNamespace(matrix=model.noise, effects=SimpleNamespace(T=model.T), draws=model.draws)
    again = model_from_numbers(numbers_of(model), traits, structure)
    for one in fields(TraitModel):
        np.testing.assert_array_equal(getattr(again, one.name), getattr(model, one.name), err_msg=one.name)


@pytest.mark.parametrize(
    "sets",
    [
        configurations(3)[::-1],
        configurations(4),
        configurations(3)[1:],
        configurations(3)[[0, 1, 2, 3, 3]],
        configurations(3)[[1, 0, 2, 3]],
    ],
)
def test_sets_out_of_order_are_refused(sets):
    with pytest.raises(InputError, match="small ones first"):
        model_of(3, sets=sets)


def test_configurations_grow_to_the_sets_that_variants_act_on():
    K = 10
    acting = [(0, 3, 4, 7), (2,), (1, 5, 6, 8, 9), (0, 1)]
    # By independent traits alone one variant for five traits is no likelier than two, in close LD, for one and four.
    start = model_of(K, excess=np.where(np.arange(K + 1) >= 2, np.arange(K + 1), 0.0))
    blocks = blocks_of(K, acting, 1)
    found = grown(locate(blocks, start, slots=3, candidates=16), start)
    assert {tuple(np.flatnonzero(x)) for x in found.sets} >= set(acting)
    assert len(found.sets) < 255
    np.testing.assert_array_equal(found.sets[:K], np.eye(K, dtype=bool))
    for traits, (_, _, effects) in zip(acting, locate(blocks, found, slots=3, candidates=16), strict=True):
        assert of_set(found, effects, traits) > 0.7
    few = grown(locate(blocks, start, slots=3, candidates=16), start, most=K + 8)
    assert len(few.sets) == K + 8
    assert few.sets[:, [0, 3, 4, 7]].sum(axis=1).max() == 4


def test_kept_sets_say_what_all_sets_say():
    """Of 6 traits all sets can be enumerated: kept ones give the same probabilities."""
    K = 6
    acting = [(0, 2, 3, 5), (1,), (0, 4), (1, 2, 3)]
    blocks = blocks_of(K, acting, 2)
    whole = model_of(K)
    kept = grown(locate(blocks, whole, slots=3, candidates=16), whole)
    assert len(kept.sets) < len(whole.sets)
    for (_, _, a), (_, _, b) in zip(
        locate(blocks, whole, slots=3, candidates=16), locate(blocks, kept, slots=3, candidates=16), strict=True
    ):
        several = [x.probability[:, m.masks.sum(axis=1) >= 2].sum(axis=1) for x, m in ((a, whole), (b, kept))]
        np.testing.assert_allclose(several[0], several[1], atol=0.02)
        np.testing.assert_allclose(a.probability @ whole.masks, b.probability @ kept.masks, atol=0.02)


def test_sets_of_twenty_traits_grow_from_pairs():
    K = 20
    start = model_of(K)
    located = locate(blocks_of(K, [(0, 7, 19), (4, 5, 6, 11, 12, 13)], 3), start, slots=2, candidates=16)
    found = grown(located, start)
    assert {tuple(np.flatnonzero(x)) for x in found.sets} >= {(0, 7, 19), (4, 5, 6, 11, 12, 13)}
    assert len(start.sets) < len(found.sets) <= MOST_SETS
