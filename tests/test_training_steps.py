"""Steps of training: sums over batches, averages of parameters, precision, the learning-rate range test, metrics."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from deepwas import FitOptions, InputError
from deepwas.inputs import VariantInputs
from deepwas.networks import make_network
from deepwas.training.ensemble import EnsemblePrior
from deepwas.training.loop import Point, Trainer
from deepwas.training.range_test import range_test
from deepwas.training.source import BlockSource
from deepwas.training.state import Average
from tests.test_training import trait_blocks

SIZES = [12, 30, 31, 50, 25, 48, 14, 29, 52]
START = 2e-5
OPTIONS = FitOptions(
    network="linear", folds=3, steps=6, evaluate_every=1, batch_blocks=3, learning_rate=0.05, solver="cholesky"
)


@pytest.fixture(scope="module")
def blocks():
    return trait_blocks(SIZES, f=1e-4)


@pytest.fixture(scope="module")
def features():
    return VariantInputs(np.random.default_rng(7).normal(size=(sum(SIZES), 2)).astype(np.float32))


def trainer_of(blocks, options):
    return Trainer(BlockSource(blocks, max_shapes=1), options, n_panel=500)


def train(trainer, features, folder=None, **rest):
    network = make_network(trainer.options, features.sizes, np.log(START))
    return trainer.train(
        network,
        1.0,
        features,
        np.arange(6),
        np.array([6, 7]),
        rotation=0,
        constant_variance=START,
        folder=folder,
        **rest,
    )


def leaves(point):
    return [np.asarray(x) for x in jax.tree.leaves(point.parameters)]


def test_batches_summed_are_one_batch_of_all_their_blocks(blocks, features, tmp_path):
    """Six training blocks: two batches of three a step, or one of six."""
    options = replace(OPTIONS, network="linear", sparse=0.01)
    found = {}
    for accumulate, size in ((1, 6), (2, 3)):
        o = replace(options, accumulate=accumulate, batch_blocks=size)
        found[accumulate] = leaves(train(trainer_of(blocks, o), features, tmp_path / str(accumulate)).best)
    for a, b in zip(found[2], found[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    once, twice = (pl.read_csv(tmp_path / name / "metrics.csv") for name in ("1", "2"))
    assert once["step"].to_list() == twice["step"].to_list() == list(range(1, 7))
    for column in ("train_loss", "gradient_norm"):
        np.testing.assert_allclose(twice[column], once[column], rtol=1e-4)


def test_the_average_is_the_weighted_mean_of_what_was_seen():
    rng, decay = np.random.default_rng(0), 0.7
    seen = [rng.normal(size=(2, 3)) for _ in range(5)]
    average = Average.start({"w": jnp.zeros((2, 3))})
    np.testing.assert_array_equal(average.value({"w": jnp.ones((2, 3))}, decay)["w"], 1)
    for t, x in enumerate(seen):
        average = average.updated({"w": jnp.asarray(x)}, decay)
        weights = decay ** np.arange(t, -1, -1)
        mean = np.tensordot(weights, seen[: t + 1], 1) / weights.sum()
        np.testing.assert_allclose(average.value({"w": jnp.zeros((2, 3))}, decay)["w"], mean, rtol=1e-6)


def test_what_is_judged_and_kept_is_the_average(blocks, features):
    plain, averaged = trainer_of(blocks, OPTIONS), trainer_of(blocks, replace(OPTIONS, ema=0.6))
    seen = []
    original = plain.steps.move

    def watched(*given):
        out = original(*given)
        seen.append([np.asarray(x) for x in jax.tree.leaves(out[0])])
        return out

    plain.steps.move = watched
    train(plain, features)
    best = train(averaged, features)
    weights = 0.6 ** np.arange(best.best_step - 1, -1, -1)
    for position, found in enumerate(leaves(best.best)):
        mean = sum(w * x[position] for w, x in zip(weights, seen, strict=False)) / weights.sum()
        np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-7)
    start = Point.of(make_network(OPTIONS, features.sizes, np.log(START)), 0.0)
    which = np.array([6, 7])
    gain = averaged.log_likelihood(best.best, features, which) - averaged.log_likelihood(start, features, which)
    assert best.validation_gain == pytest.approx(gain.sum(), rel=1e-6)


def test_a_network_in_bfloat16_leaves_the_likelihood_in_float32(blocks, features, float32):
    found = {}
    for dtype in ("float32", "bfloat16"):
        trainer = trainer_of(blocks, replace(OPTIONS, network="mlp", hidden=(8,), compute_dtype=dtype))
        point = train(trainer, features).best
        assert all(x.dtype == np.float32 for x in leaves(point))
        item = trainer.batches(np.arange(6), 0, 0)[0]
        batch = next(iter(trainer.source.batches([item], features)))[1]
        assert trainer.steps._effect_variances(point, batch).dtype == np.float32
        key, constant = np.zeros(2, np.uint32), jnp.asarray([START, 1.0], jnp.float32)
        total = trainer.steps.gradient(point, batch, key, np.uint32(0), constant, solve=trainer._first_solve(8, 8))
        assert {x.dtype for x in jax.tree.leaves(total)} == {np.dtype(np.float32)}
        found[dtype] = trainer.log_likelihood(point, features, np.arange(6, 9)).sum()
    assert found["bfloat16"] == pytest.approx(found["float32"], abs=0.5)
    assert found["bfloat16"] != found["float32"]


def test_an_ensemble_is_the_mean_of_effect_variances(features):
    rng = np.random.default_rng(3)
    options = FitOptions(network="mlp", hidden=(4,))
    members = []
    for seed in range(3):
        network = make_network(options, features.sizes, np.log(START), seed=seed)
        point = Point.of(network, None)
        moved = jax.tree.map(lambda x: x + 0.5 * rng.normal(size=x.shape).astype(x.dtype), point.parameters)
        members.append(point._replace(parameters=moved).network())
    _, given = next(features.pieces(50))
    mean = np.mean([np.exp(np.asarray(m(given), np.float64)) for m in members], axis=0)
    np.testing.assert_allclose(np.exp(np.asarray(EnsemblePrior(members)(given))), mean, rtol=1e-5)


def test_networks_of_an_ensemble_see_blocks_and_probes_of_their_own(blocks):
    trainer = trainer_of(blocks, replace(OPTIONS, batch_blocks=2))
    orders = [[x.members.tolist() for x in trainer.batches(np.arange(8), 0, 0, member)] for member in (0, 1, 2)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert all(sorted(itertools.chain(*order)) == list(range(8)) for order in orders)


def test_networks_of_an_ensemble_draw_probes_of_their_own(blocks, features, monkeypatch):
    """Probes are drawn from the key and the number of the batch; a network has one key, and no two share it."""
    trainer = trainer_of(blocks, replace(OPTIONS, steps=2, evaluate_every=2))
    original, keys = trainer.steps.gradient, []

    def watched(point, batch, key, number, constant, *, solve):
        keys[-1].append((*np.asarray(key).tolist(), int(number)))
        return original(point, batch, key, number, constant, solve=solve)

    monkeypatch.setattr(trainer.steps, "gradient", watched)
    for member in (0, 1):
        keys.append([])
        train(trainer, features, member=member)
    for own in keys:
        assert [number for *_, number in own] == [0, 1]
        assert len({numbered[:-1] for numbered in own}) == 1
    assert keys[0][0][:-1] != keys[1][0][:-1]


def test_the_time_without_input_is_measured(blocks, features, monkeypatch):
    trainer = trainer_of(blocks, replace(OPTIONS, evaluate_every=6))
    train(trainer, features)  # compiles
    make = trainer.source.make

    def slow(*given):
        time.sleep(0.05)
        return make(*given)

    monkeypatch.setattr(trainer.source, "make", slow)
    assert 0.5 < train(trainer, features).waiting <= 1


# --- the learning rate ---


@pytest.mark.parametrize("best", [3e-3, 3e-2, 0.3])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_quarter_of_the_rate_of_greatest_gain_is_chosen(best, noise):
    """Gains that rise up to a rate and fall beyond it; smoothing may put the greatest a few rates later."""
    rng, tried = np.random.default_rng(0), []

    def step(number, rate):
        assert number == len(tried)
        tried.append(rate)
        return 10 - 4 * np.log10(rate / best) ** 2 + noise * rng.normal(), 0.0

    found = range_test(step, worst=1.0)
    assert 0.25 * best / 1.3 < found.chosen < 0.25 * best * 2.5
    assert found.rates == tuple(tried[: len(found.rates)])
    np.testing.assert_allclose(np.diff(np.log(found.rates)), np.log(1e4) / 63)


def test_the_range_test_ends_where_nothing_can_be_trusted():
    calls = []

    def step(number, rate):
        calls.append(rate)
        return float(number), 0.0 if number < 10 else float("nan")

    found = range_test(step, worst=0.1)
    assert len(found.rates) == 10
    assert len(calls) == 11
    assert found.chosen == max(0.25 * found.rates[-1], 1e-4)
    assert range_test(lambda *_: (-1.0, 0.0), worst=1.0).chosen == 1e-4
    assert range_test(lambda *_: (float("nan"), 0.0), worst=1.0).rates == ()


def test_a_rate_is_found_once_and_kept(blocks, features, tmp_path, monkeypatch):
    trainer = trainer_of(blocks, replace(OPTIONS, learning_rate="auto"))
    first = train(trainer, features, tmp_path / "run")
    assert 1e-4 <= first.learning_rate <= 1
    table = pl.read_csv(tmp_path / "run" / "metrics.csv")
    assert table["learning_rate"].max() == pytest.approx(first.learning_rate)
    assert first.best_step > 0
    from deepwas.training import loop

    monkeypatch.setattr(loop, "range_test", None)
    assert train(trainer, features, tmp_path / "run").learning_rate == first.learning_rate
    assert train(trainer, features, learning_rate=0.125).learning_rate == 0.125


# --- metrics ---


def test_tensorboard_has_the_metrics_of_the_table(blocks, features, tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    train(trainer_of(blocks, OPTIONS), features, tmp_path, tensorboard=True)
    table = pl.read_csv(tmp_path / "metrics.csv")
    (file,) = (tmp_path / "tensorboard").iterdir()
    found = {}
    data, at = file.read_bytes(), 0
    while at < len(data):  # length, its checksum, the event, its checksum
        size = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + size])
        at += 16 + size
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    for name in ("validation_gain", "noise", "learning_rate", "waiting"):
        assert list(found[name]) == table["step"].to_list()
        np.testing.assert_allclose(list(found[name].values()), table[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"ema": 1.0}, "ema is 1.0"),
        ({"ensemble": 0}, "ensemble is 0; at least 1"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"learning_rate": "fast"}, "'auto' to find it"),
        ({"folds": "chromosomes"}, "'loco' for one a chromosome"),
        ({"test_chromosomes": ("1",)}, "need validation_chromosomes"),
        ({"test_chromosomes": ("1", "2"), "validation_chromosomes": ("2",)}, "chromosome 2 is in test"),
        ({"test_chromosomes": "1", "validation_chromosomes": "2"}, "give a list"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, match):
    with pytest.raises(InputError, match=match):
        FitOptions(**wrong)
