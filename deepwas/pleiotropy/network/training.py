"""Training one head, its ablations and its parts of the genome all at once: `train_head`.

The 3 objectives x folds networks differ in the weights that blocks have in their losses, and are stacked into one, so
that there is one compilation a shape and one pass over the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray
from scipy.special import expit

from deepwas.pleiotropy.network.features import BlockFeatures, Channels, log_odds_of, standardised
from deepwas.pleiotropy.network.model import Padded, SharingNetwork, depth_for, pad, padded_length
from deepwas.pleiotropy.network.objective import (
    Batch,
    evidence_loss,
    noisy,
    predictions,
    prior_loss,
    unsteady,
)
from deepwas.pleiotropy.network.options import OBJECTIVES, NetworkOptions

__all__ = ["Head", "train_head"]

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Progress = Callable[[int, int], None]

_SUPERVISED = np.array([1.0, 0.0, 1.0], np.float32)
_GENERATIVE = np.array([0.0, 1.0, 1.0], np.float32)


@dataclass(frozen=True, eq=False)
class Head:
    """One head's predictions.

    values: by objective, of each block (m,): c or h, of networks that did not see the block's chromosome.
    fold: (blocks,), the part that each block is in.
    history: validation loss, nats a block, of each epoch, from 0 (before training), by objective and fold.
    """

    values: dict[str, list[Singles]]
    fold: NDArray[np.int64]
    history: dict[str, list[list[float]]]


@dataclass(frozen=True, eq=False)
class _Member:
    """A block to train on.  weight: of it in each objective, (3,)."""

    block: BlockFeatures
    x: Channels
    base: Floats
    label: Singles
    fold: int
    weight: Singles


def train_head(
    blocks: Sequence[BlockFeatures],
    labels: Sequence[Singles],
    fold: NDArray[np.int64],
    weight: NDArray[np.floating],
    options: NetworkOptions,
    *,
    evidence: bool,
    progress: Progress | None = None,
) -> Head:
    """Train 3 objectives x folds networks at once, and predict every block with those that did not see its part.

    Of each network the epoch with the least validation loss is kept if that is below the loss before training by more
    than its standard error over blocks; else the network stays as it was before training, without corrections.

    labels: of each block, (m,).  fold: (blocks,).  weight: (blocks, 3), of a block in each objective; 0 for one that is
    only predicted.  evidence: which head.
    """
    channels = standardised([b.evidence if evidence else b.free for b in blocks])
    members = [
        _Member(b, x, log_odds_of(b.posterior if evidence else b.prior), y, int(f), np.asarray(v, np.float32))
        for b, x, y, f, v in zip(blocks, channels, labels, fold, weight, strict=True)
    ]
    folds = int(fold.max()) + 1
    used = [i for i, one in enumerate(members) if one.weight.any()]
    rng = np.random.default_rng([options.seed, 83, int(evidence)])
    train, check = _split(used, fold, folds, members, options.validation, rng)
    depth = options.depth or depth_for([members[i].block.m for i in used])
    keys = jax.random.split(jax.random.key(options.seed + 7 * evidence), 3 * folds)
    sizes = channels[0].by_trait.shape[-1], channels[0].shared.shape[-1]

    def new(key: Any) -> SharingNetwork:
        return SharingNetwork(*sizes, width=options.width, depth=depth, bound=options.bound, rngs=nnx.Rngs(key))

    graph = nnx.split(new(keys[0]))[0]
    states = [nnx.split(new(key))[1] for key in keys]
    state = jax.tree.map(lambda *x: jnp.stack(x), *states)
    steps = options.epochs * sum(1 for _ in _batches(members, used, options.batch))
    rate = optax.cosine_decay_schedule(options.learning_rate, max(steps, 1))
    tune = optax.adamw(rate, weight_decay=options.weight_decay)
    parameters = (state, jnp.asarray(_intercepts(members, train), jnp.float32))
    loss = _losses(graph, evidence_loss if evidence else prior_loss, folds)
    step, score = _steps(loss, tune, options)
    opened = tune.init(parameters)
    best, lowest = parameters, np.full(3 * folds, np.inf)
    history: list[Floats] = []
    taken, total = 0, (options.epochs + 1) * len(used)
    for epoch in range(options.epochs + 1):
        if epoch:
            order = rng.permutation(used).tolist()
            for chosen, batch in _batches(members, order, options.batch, shuffle=rng):
                key = jax.random.fold_in(keys[0], 1_000_000 + taken)
                parameters, opened = step(parameters, opened, batch, _columns(train, chosen, batch), key)
                taken += 1
        each = np.zeros_like(check)
        for chosen, batch in _batches(members, used, options.batch):
            lost = np.asarray(score(parameters, batch, _columns(check, chosen, batch)), np.float64)
            each[:, chosen] = lost[:, : len(chosen)]
        found = each.sum(axis=1) / np.maximum(check.sum(axis=1), 1)
        history.append(found)
        if not epoch:
            start, before, kept = parameters, each, each
        better = found < lowest
        kept = np.where(better[:, None], each, kept)
        best = jax.tree.map(partial(_where, jnp.asarray(better)), parameters, best)
        lowest = np.where(better, found, lowest)
        if progress is not None:
            progress((epoch + 1) * len(used), total)
    saved = before - kept
    sure = saved.sum(axis=1) > np.sqrt((check > 0).sum(axis=1)) * np.array(
        [x[own].std() if own.any() else 0.0 for x, own in zip(saved, check > 0, strict=True)]
    )
    best = jax.tree.map(partial(_where, jnp.asarray(sure)), best, start)
    values = _predict(graph, best[0], members, folds, options.batch)
    if not evidence:
        values["supervised"] = _levelled(values["supervised"], members, folds, options.bound)
    by_model = np.array(history).reshape(-1, 3, folds)
    return Head(values, fold, {name: by_model[:, j, :].T.tolist() for j, name in enumerate(OBJECTIVES)})


def _intercepts(members: Sequence[_Member], train: Floats) -> Floats:
    """(models,), a at which as many labels are expected as there are, before anything else is learned."""
    out = np.zeros(len(train))
    for row, weight in enumerate(train):
        known = [
            (one.base[ok], one.label[ok]) for i in np.flatnonzero(weight).tolist() for one, ok in [_known(members[i])]
        ]
        base = np.concatenate([np.zeros(0), *(x for x, _ in known)])
        label = np.concatenate([np.zeros(0), *(y for _, y in known)])
        if not 0 < label.sum() < len(label):
            continue
        low, high = -40.0, 40.0
        for _ in range(60):
            out[row] = (low + high) / 2
            more = expit(base + out[row]).sum() > label.sum()
            low, high = (low, out[row]) if more else (out[row], high)
    return out


def _known(member: _Member) -> tuple[_Member, NDArray[np.bool_]]:
    return member, member.block.inside & np.isfinite(member.label)


def _where(better: Any, new: Any, old: Any) -> Any:
    return jnp.where(better.reshape(-1, *([1] * (new.ndim - 1))), new, old)


def _split(
    used: list[int],
    fold: NDArray[np.int64],
    folds: int,
    members: list[_Member],
    validation: float,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Weights (3 folds, blocks) to train with and to choose the epoch with; 0 in the part that is held out."""
    train, check = np.zeros((2, 3 * folds, len(members)))
    for f in range(folds):
        others = [i for i in rng.permutation(used).tolist() if fold[i] != f]
        # Blocks with most at stake are spread over both sets, one in every few.
        others.sort(key=lambda i: -_stake(members[i]))
        every = max(2, round(1 / validation))
        left_out = {a + int(rng.integers(every)) for a in range(0, len(others), every)}
        for place, i in enumerate(others):
            target = check if place in left_out else train
            for objective in range(3):
                target[objective * folds + f, i] = members[i].weight[objective]
    return train, check


def _stake(member: _Member) -> float:
    return float(member.block.posterior[member.block.scored].sum() + np.nansum(member.label))


def _columns(weight: Floats, chosen: list[int], batch: Batch) -> Any:
    """(models, B) for the blocks of a batch; blocks of padding count nothing."""
    out = np.zeros((len(weight), len(batch.base)), np.float32)
    out[:, : len(chosen)] = weight[:, chosen]
    return jnp.asarray(out)


def _batches(
    members: Sequence[_Member], order: Sequence[int], size: int, *, shuffle: np.random.Generator | None = None
) -> Any:
    """(indices, Batch) over blocks, padded to few shapes."""
    buckets: dict[int, list[int]] = {}
    for i in order:
        buckets.setdefault(padded_length(members[i].block.m), []).append(i)
    parts = []
    for length, inside in buckets.items():
        at_once = max(1, min(size // length, 2 ** math.ceil(math.log2(len(inside)))))
        parts += [(length, at_once, inside[a : a + at_once]) for a in range(0, len(inside), at_once)]
    if shuffle is not None:
        shuffle.shuffle(parts)
    for length, at_once, chosen in parts:
        yield chosen, _batch([members[i] for i in chosen], length, at_once)


def _batch(members: Sequence[_Member], length: int, at_once: int) -> Batch:
    def padded(arrays: list[NDArray[Any]], fill: float = 0.0) -> Any:
        whole = pad(arrays, length, fill)
        missing = np.full((at_once - len(arrays), *whole.shape[1:]), fill, whole.dtype)
        return jnp.asarray(np.concatenate([whole, missing]))

    real = padded([np.ones(one.block.m, np.float32) for one in members])
    x = Padded(padded([one.x.by_trait for one in members]), padded([one.x.shared for one in members]), real)
    return Batch(
        x,
        padded([one.base.astype(np.float32) for one in members]),
        padded([one.block.prior.astype(np.float32) for one in members]),
        padded([one.block.posterior.astype(np.float32) for one in members]),
        padded([one.label for one in members], np.nan),
        padded([one.block.group for one in members]),
        padded([one.block.inside.astype(np.float32) for one in members]),
    )


def _losses(graph: Any, of_block: Any, folds: int) -> Any:
    """(models, B), of stacked parameters and channels to read."""
    supervised = jnp.repeat(jnp.asarray(_SUPERVISED), folds)
    generative = jnp.repeat(jnp.asarray(_GENERATIVE), folds)

    def losses(parameters: Any, batch: Batch, x: Padded) -> tuple[Any, Any]:
        found = predictions(graph, parameters[0], x)
        each = jax.vmap(of_block, in_axes=(0, None, 0, 0, 0))(found, batch, supervised, generative, parameters[1])
        return each, found

    return losses


def _steps(losses: Any, tune: Any, options: NetworkOptions) -> tuple[Any, Any]:
    def total(parameters: Any, batch: Batch, weight: Any, key: Any) -> Any:
        each, found = losses(parameters, batch, batch.x)
        moved, other = losses(parameters, batch, noisy(batch.x, key, options.noise))
        steady = jax.vmap(unsteady, in_axes=(0, 0, None))(found, other, batch)
        small = jax.vmap(unsteady, in_axes=(None, 0, None))(jnp.zeros_like(found[0]), found, batch)
        return (((each + moved) / 2 + options.consistency * steady + options.shrinkage * small) * weight).sum()

    @partial(jax.jit, donate_argnums=(1,))
    def step(parameters: Any, opened: Any, batch: Batch, weight: Any, key: Any) -> tuple[Any, Any]:
        slope = jax.grad(total)(parameters, batch, weight, key)
        change, opened = tune.update(slope, opened, parameters)
        return optax.apply_updates(parameters, change), opened

    @jax.jit
    def score(parameters: Any, batch: Batch, weight: Any) -> Any:
        return losses(parameters, batch, batch.x)[0] * weight

    return step, score


def _predict(graph: Any, state: Any, members: Sequence[_Member], folds: int, size: int) -> dict[str, list[Singles]]:
    run = jax.jit(partial(predictions, graph))
    out: dict[str, list[Singles]] = {name: [np.zeros(0, np.float32)] * len(members) for name in OBJECTIVES}
    for f in range(folds):
        own = jax.tree.map(lambda x, f=f: x[f::folds], state)
        for chosen, batch in _batches(members, [i for i, one in enumerate(members) if one.fold == f], size):
            found = np.asarray(run(own, batch.x))
            for row, i in enumerate(chosen):
                for j, name in enumerate(OBJECTIVES):
                    out[name][i] = found[j, row, : members[i].block.m]
    return out


def _levelled(values: list[Singles], members: Sequence[_Member], folds: int, bound: float) -> list[Singles]:
    """c - s, with one s a part, so that the expected number of variants stays what it was."""
    out = list(values)
    for f in range(folds):
        own = [i for i, one in enumerate(members) if one.fold == f]
        if not own:
            continue
        c = np.concatenate([values[i][members[i].block.scored] for i in own]).astype(np.float64)
        p = np.concatenate([members[i].block.prior[members[i].block.scored] for i in own])
        low, high = -2 * bound, 2 * bound
        for _ in range(60):
            middle = (low + high) / 2
            rise = np.exp(c - middle)
            more = (p * rise / (1 - p + p * rise)).sum() > p.sum()
            low, high = (middle, high) if more else (low, middle)
        for i in own:
            out[i] = np.clip(values[i] - middle, -bound, bound).astype(np.float32)
    return out
