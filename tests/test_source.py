"""Minibatches from memory and from a stream: the same arrays and the same training, whatever fails or stops."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import jax
import numpy as np
import polars as pl
import pytest
from scipy.stats import multivariate_normal

from deepwas import FitOptions, InputError, LDBlock
from deepwas.inputs import InputSizes, VariantInputs
from deepwas.ld import write_ld
from deepwas.likelihood.factor import Factor, encode_factor
from deepwas.network_options import NetworkOptions
from deepwas.networks import make_network
from deepwas.training.loop import Point, Trainer
from deepwas.training.source import BlockSource, Minibatch, prefetch
from deepwas.training.state import State
from deepwas.training.trait import TraitBlock, open_trait
from tests.test_training import trait_blocks

SIZES = [12, 30, 31, 50, 25, 48, 14, 29, 52]
OPTIONS = FitOptions(
    network="linear", folds=3, steps=16, evaluate_every=1, batch_blocks=3, learning_rate=0.05, solver="cholesky"
)
START = 2e-5  # a fifth of the truth, so that there is something to learn
WAYS = {
    "host": {"hold": "host", "memory_gb": 1},
    "device": {"hold": "device", "memory_gb": 1},
    "stream": {"memory_gb": 0},
}


@pytest.fixture(scope="module")
def blocks():
    return trait_blocks(SIZES, f=1e-4)


@pytest.fixture(scope="module")
def features():
    return VariantInputs(np.random.default_rng(7).normal(size=(sum(SIZES), 2)).astype(np.float32))


class Lazy(Sequence):
    """Blocks whose factors are made anew at each use; counts them, and fails at block `broken`."""

    def __init__(self, blocks, broken=None):
        self.blocks, self.broken = blocks, broken
        self.loads = 0
        self.seen = []
        self.most_alive = 0

    def alive(self):
        return sum(x() is not None for x in self.seen)

    def __len__(self):
        return len(self.blocks)

    def __getitem__(self, i):
        block = self.blocks[i]

        def load():
            self.loads += 1
            if i == self.broken:
                raise InputError(f"block {i} is damaged")
            values = block.factor.copy()
            self.seen.append(weakref.ref(values))
            self.most_alive = max(self.most_alive, self.alive())
            return Factor.of(values)

        return TraitBlock(
            block.number,
            block.rows,
            load,
            block.whitened,
            block.z,
            block.observed,
            block.sample_size,
            shape=block.shape,
            row_squares=block.row_squares,
        )


def plan_of(source, size=3):
    """Two rounds of batches of every shape, the last of each filled up by repetition."""
    out = []
    for b, members in enumerate(source.members):
        for start in range(0, len(members), size):
            weight = (np.arange(size) < len(members) - start).astype(np.float32)
            out.append(Minibatch(b, np.resize(members[start : start + size], size), weight))
    return out + out[::-1]


def prefetching():
    return [t for t in threading.enumerate() if t.name == "deepwas-prefetch"]


def eventually(holds):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- the arrays ---


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_batches_hold_each_block_and_nothing_else(blocks, features, way, dtype):
    source = BlockSource(Lazy(blocks), factor_dtype=dtype, max_shapes=2, **WAYS[way])
    assert source.streaming == (way == "stream")
    assert sorted(np.concatenate(source.members)) == list(range(len(blocks)))
    plan = plan_of(source)
    seen = 0
    with closing(source.batches(plan, features)) as stream:
        for expected, (item, (bucket, inputs, weight, trait)) in zip(plan, stream, strict=True):
            assert item is expected
            assert all(isinstance(x, jax.Array) for x in jax.tree.leaves((bucket, inputs, weight, trait)))
            np.testing.assert_array_equal(weight, item.weight)
            np.testing.assert_array_equal(bucket.member, item.members)
            assert bucket.shape == source.shapes[item.bucket]
            assert bucket.factor.values.dtype == dtype
            for row, i in enumerate(item.members):
                block, (k, m) = blocks[i], blocks[i].shape
                factor = encode_factor(block.factor, dtype)
                slow = {
                    "member": i,
                    "whitened": np.pad(block.whitened, (0, bucket.shape[0] - k)),
                    "real": np.arange(bucket.shape[0]) < k,
                    "z": np.pad(block.z, (0, bucket.shape[1] - m)).astype(np.float32),
                    "observed": np.arange(bucket.shape[1]) < m,
                    "present": np.arange(bucket.shape[1]) < m,
                    "sample_size": np.float32(block.sample_size),
                }
                for name, value in slow.items():
                    np.testing.assert_array_equal(getattr(bucket, name)[row], value, err_msg=name)
                values, scale = (np.asarray(x[row]) for x in bucket.factor)
                np.testing.assert_array_equal(values[:k, :m], factor.values)
                np.testing.assert_array_equal(scale[:k], factor.scale)
                assert not values[k:].any()
                assert not values[:, m:].any()
                assert np.isfinite(scale).all()
                np.testing.assert_array_equal(inputs.annotations[row, :m], features.annotations[block.rows])
                assert not np.asarray(inputs.annotations[row, m:]).any()
            seen += 1
    assert seen == len(plan)
    assert not prefetching()


def test_parts_of_a_batch_make_up_the_whole(blocks, features):
    whole = BlockSource(blocks)
    plan = plan_of(whole, size=4)
    placed = []

    def place(batch):
        placed.append(batch)
        return batch

    for memory in (0, 1):
        parts = [BlockSource(blocks, place=place, part=(i, 2), memory_gb=memory) for i in range(2)]
        streams = [list(x.batches(plan, features)) for x in (whole, *parts)]
        for (_, full), (_, low), (_, high) in zip(*streams, strict=True):
            assert any(low is x for x in placed)
            joined = jax.tree.map(lambda a, b: np.concatenate([a, b]), low, high)
            jax.tree.map(np.testing.assert_array_equal, full, joined)


def test_memory_decides_whether_blocks_stream(blocks):
    numbers = sum(k * m for k, m in (b.shape for b in blocks))
    for dtype, size in (("float32", 4), ("float16", 2), ("int8", 1)):
        enough = size * numbers / 1e9
        source = BlockSource(blocks, factor_dtype=dtype, memory_gb=enough)
        assert source.needed == size * numbers
        assert not source.streaming
        assert BlockSource(blocks, factor_dtype=dtype, memory_gb=0.999 * enough).streaming
    assert not BlockSource(blocks).streaming
    held = BlockSource(blocks, hold="device", max_shapes=1)
    assert held.needed == 4 * len(blocks) * np.prod(held.shapes[0])
    for wrong in (-1, float("nan")):
        with pytest.raises(InputError, match="memory is"):
            BlockSource(blocks, memory_gb=wrong)


def test_blocks_in_memory_are_read_once_and_streamed_ones_never_kept(blocks, features):
    held, streamed = Lazy(blocks), Lazy(blocks)
    source = BlockSource(held, memory_gb=1)
    for _ in range(3):
        list(source.batches(plan_of(source), features))
    assert held.loads == len(blocks)
    source = BlockSource(streamed, memory_gb=0)
    plan = plan_of(source)
    list(source.batches(plan, features))
    assert streamed.loads == sum(len(set(item.members.tolist())) for item in plan)
    gc.collect()
    assert streamed.alive() == 0
    assert streamed.most_alive <= 2 * 3  # the batch being made, and the one before that is about to go


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_store_on_disk_streams_the_blocks_that_are_in_memory(tmp_path, dtype):
    """Windows with flanks, and a trait that lacks variants: factors from the store and from the cache beside a run."""
    rng, m = np.random.default_rng(0), 120
    R = 0.8 ** np.abs(np.subtract.outer(np.arange(m), np.arange(m)))
    starts = range(0, m, 30)

    def windows():
        for start in starts:
            low, high = max(start - 10, 0), min(start + 40, m)
            scored = np.isin(np.arange(low, high), np.arange(start, start + 30))
            yield low, LDBlock.from_correlation(R[low:high, low:high], scored)

    columns = {"CHR": "1", "SNP": [f"rs{i}" for i in range(m)], "BP": np.arange(m) + 1, "A1": "A", "A2": "C"}
    table = pl.DataFrame(columns | {"FREQ": np.full(m, 0.3)})
    seen = np.setdiff1d(np.arange(m), [5, 6, 100])
    frame = pl.DataFrame({"VARIANT": seen, "Z": rng.normal(size=len(seen)) * 2, "N": np.full(len(seen), 1e4)})
    values = rng.normal(size=(m, 3)).astype(np.float32)
    inputs = VariantInputs(values)
    with (
        write_ld(tmp_path / "ld.h5", table, windows(), build="hg19", n_samples=500) as store,
        open_trait(store, frame, cache=tmp_path / "whitened.h5", factor_dtype=dtype) as lazy,
    ):
        streamed = BlockSource(lazy, factor_dtype=dtype, memory_gb=0)
        held = BlockSource([lazy.load(i) for i in range(len(lazy))], factor_dtype=dtype)
        plan = plan_of(streamed)
        for (_, a), (_, b) in zip(streamed.batches(plan, inputs), held.batches(plan, inputs), strict=True):
            jax.tree.map(np.testing.assert_array_equal, a, b)
            for row, i in enumerate(a.blocks.member.tolist()):
                rows = lazy[i].rows
                np.testing.assert_array_equal(a.inputs.annotations[row, : rows.stop - rows.start], values[rows])
            assert float(a.blocks.observed.sum(axis=1).max()) <= 30
            assert float(a.blocks.present.sum(axis=1).min()) > 30
    assert not prefetching()


def test_the_thread_runs_ahead_by_so_many_and_no_more():
    made = []

    def make(i):
        made.append(i)
        return i

    with closing(prefetch(make, range(100), ahead=2)) as stream:
        assert next(stream) == 0
        eventually(lambda: len(made) == 4)  # one in use, two ready, one waiting for room
        time.sleep(0.05)
        assert made == [0, 1, 2, 3]
        assert [next(stream) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert not prefetching()


# --- what fails and what stops ---


def test_what_fails_in_the_thread_is_raised_in_its_place():
    def make(i):
        if i == 3:
            raise InputError("block 3 is damaged")
        return i

    got = []
    with pytest.raises(InputError, match="block 3 is damaged"):
        got.extend(prefetch(make, range(10), ahead=2))
    # extend keeps what came before
    assert got == [0, 1, 2]
    assert not prefetching()

    def items():
        yield 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(prefetch(make, items(), ahead=2))
    assert not prefetching()


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_leaving_early_ends_the_thread(after, error):
    def leave():
        with closing(prefetch(lambda i: i, iter(range(10**9)), ahead=2)) as stream:
            for i in stream:
                assert len(prefetching()) == 1
                if i == after:
                    raise error

    with pytest.raises(error):
        leave()
    assert not prefetching()


def test_a_damaged_block_stops_training_with_its_own_error(blocks, features):
    trainer = Trainer(BlockSource(Lazy(blocks, broken=4), memory_gb=0, max_shapes=1), OPTIONS, n_panel=500)
    with pytest.raises(InputError, match="block 4 is damaged"):
        train(trainer, features)
    assert not prefetching()


# --- training ---


def train(trainer, features, folder=None, progress=None):
    network = make_network(NetworkOptions("linear"), features.sizes, np.log(START))
    return trainer.train(
        network,
        1.0,
        features,
        np.arange(6),
        np.array([6, 7]),
        rotation=0,
        constant_variance=START,
        folder=folder,
        progress=progress,
    )


def test_streaming_trains_to_the_same_bits_and_resumes_exactly(blocks, features, tmp_path):
    def interrupt(step, _):
        if step >= 8:
            raise KeyboardInterrupt

    found, tables = {}, {}
    for way in ("host", "stream"):  # the device holds the same arrays: see above
        trainer = Trainer(BlockSource(Lazy(blocks), max_shapes=2, **WAYS[way]), OPTIONS, n_panel=500)
        if way == "stream":
            with pytest.raises(KeyboardInterrupt):
                train(trainer, features, tmp_path / way, interrupt)
            assert not prefetching()
            assert pl.read_csv(tmp_path / way / "metrics.csv")["step"].to_list() == list(range(1, 9))
        trained = train(trainer, features, tmp_path / way)
        found[way] = jax.tree.leaves(trained.best.parameters)
        tables[way] = pl.read_csv(tmp_path / way / "metrics.csv").drop("waiting")  # hangs on the clock
        assert trained.best_step > 8
        assert not prefetching()
    assert tables["stream"].equals(tables["host"])
    for a, b in zip(found["stream"], found["host"], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("float16", 1e-3), ("int8", 3e-2)])
def test_log_likelihoods_are_the_dense_densities_to_the_factors_precision(blocks, features, dtype, error):
    trainer = Trainer(BlockSource(blocks, factor_dtype=dtype), OPTIONS, n_panel=500)
    start = Point.of(make_network(NetworkOptions("linear"), InputSizes(2), np.log(1e-4)), 0.0)
    which = np.array([8, 0, 5, 3])
    found = trainer.log_likelihood(start, features, which)
    for i, value in zip(which, found, strict=True):
        G, y = blocks[i].factor.astype(np.float64), blocks[i].whitened
        B = np.eye(len(G)) + blocks[i].sample_size * 1e-4 * G @ G.T
        assert value == pytest.approx(multivariate_normal(np.zeros(len(G)), B).logpdf(y), rel=error)


def test_epochs_hold_every_training_block_once_in_an_order_set_by_the_seed(blocks):
    train_blocks = np.array([0, 2, 3, 4, 5, 7, 8])
    trainers = [Trainer(BlockSource(blocks, **how), OPTIONS, n_panel=500) for how in WAYS.values()]
    orders = []
    for trainer in trainers:
        for epoch in range(3):
            batches = trainer.batches(train_blocks, epoch, 1)
            assert all(len(x.members) == OPTIONS.batch_blocks for x in batches)
            real = np.concatenate([x.members[x.weight > 0] for x in batches])
            assert sorted(real) == train_blocks.tolist()
            orders.append(np.concatenate([x.members for x in batches]).tolist())
    assert orders[:3] == orders[3:6] == orders[6:]
    assert orders[0] != orders[1]


def test_block_weights_scale_the_loss_of_their_blocks_in_training_only(blocks, features, tmp_path):
    weights = np.array([1, 0.25, 0, 2, 1, 0.5, 1, 1, 1.5])
    options = replace(OPTIONS, steps=5, batch_blocks=7)  # six blocks, and one to fill up
    start = Point.of(make_network(NetworkOptions("linear"), InputSizes(2), np.log(START)), 0.0)
    k = np.array([b.shape[0] for b in blocks])
    values, parameters = [], []
    for number, given in enumerate((None, weights, np.full(len(blocks), 2.0))):
        trainer = Trainer(BlockSource(blocks, max_shapes=1), options, n_panel=500, block_weights=given)
        values.append(trainer.log_likelihood(start, features, np.arange(len(blocks))))
        parameters.append(jax.tree.leaves(train(trainer, features, tmp_path / str(number)).best.parameters))
        w = np.ones(len(blocks)) if given is None else given
        norm = options.batch_blocks * (w * k).sum() / (w > 0).sum()
        loss = pl.read_csv(tmp_path / str(number) / "metrics.csv")["train_loss"][0]
        assert loss == pytest.approx(-(w * values[0])[:6].sum() / norm, rel=1e-5)
    np.testing.assert_array_equal(values[1], values[0])
    for plain, weighted, doubled in zip(*parameters, strict=True):
        np.testing.assert_array_equal(plain, doubled)
        assert not np.array_equal(plain, weighted)
    for wrong in (np.ones(3), np.zeros(len(blocks)), np.full(len(blocks), np.nan), -np.ones(len(blocks))):
        with pytest.raises(InputError, match="block_weights must be 9 finite numbers"):
            Trainer(BlockSource(blocks), OPTIONS, n_panel=500, block_weights=wrong)


def test_a_shape_that_cg_cannot_solve_gets_steps_then_the_preconditioner_then_cholesky(blocks):
    trainer = Trainer(BlockSource(blocks, max_shapes=2), replace(OPTIONS, solver="cg"), n_panel=500)
    first = trainer._first_solve(*trainer.source.shapes[1])
    assert (first.solver, first.max_steps, first.rank) == ("cg", 16, 0)
    state = State({}, {}, {}, [first, first], step=5)
    trainer._raise_steps(state, 1, first.rtol)
    assert state.solves == [first, first]
    seen = []
    for residual in (0.5, 0.5, float("nan"), 0.5, 0.5):
        trainer._raise_steps(state, 1, residual)
        seen.append((state.solves[1].solver, state.solves[1].max_steps, state.solves[1].rank))
        other = State({}, {}, {}, [first, first])
        other.restore(5, state.tree())
        assert other.solves == state.solves
    assert seen == [("cg", 32, 0), ("cg", 64, 0), ("cg", 64, 32), ("cholesky", 64, 32), ("cholesky", 64, 32)]
    assert state.solves[0] == first
    k, m = trainer.source.shapes[1]
    start = f"step 5: blocks of k = {k}, m = {m}: residual "
    assert [text for _, text in state.events] == [
        f"{start}5.0e-01 > 0.01; CG steps raised from 16 to 32",
        f"{start}5.0e-01 > 0.01; CG steps raised from 32 to 64",
        f"{start}nan > 0.01; 64 CG steps were too few: the 32 largest effects are preconditioned from here on",
        f"{start}5.0e-01 > 0.01; 64 preconditioned CG steps were too few: Cholesky from here on",
    ]
