"""Fine-mapping of LD blocks: which variants have effects, by mean-field slots and then by exact weighing of pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from deepwas.finemapping.effects import ClassArrays, EffectClasses, as_arrays, by_rank, shrinkage, take_classes
from deepwas.finemapping.groups import LINKED, cut, squared_ld
from deepwas.finemapping.mean_field import Slots, mean_field
from deepwas.finemapping.pairs import Group, fit, look, report, shared, weigh_pairs
from deepwas.finemapping.sets import CredibleSet, credible_set
from deepwas.finemapping.weak import fit_weak, report_weak

__all__ = ["BlockEffects", "Task", "locate_effects"]

_FULL = 0.5
_PARTNER = 0.5  # probability of an effect that others, of other groups, may be apart from
_MUCH, _SOME = 0.3, 1e-5  # of one effect on several traits, and of two effects, for more candidates
_WIDTH = 64  # groups are padded to it and its doubles, so that few shapes are compiled
_ROUNDS = 8
_SETTLED = 1e-3  # change of a group's expected number of effects
_SAME = 1e-3  # change of z-scores, in all directions together, that a group need not be weighed again for


@dataclass(frozen=True, eq=False)
class Task:
    """One block's data.

    factor: G (k, m), whose columns are the variants.  whitened: y (k, K).  log_odds: (m, C), prior log odds of an
    effect of each class at each variant, -inf where there can be none.
    """

    factor: NDArray[Any]
    whitened: NDArray[Any]
    log_odds: NDArray[Any]


@dataclass(frozen=True, eq=False)
class BlockEffects:
    """The posterior of a block's effects.

    probability: (m, C), that the variant has an effect of the class.  mean, square: (m, K), E[w] and E[w^2] of the
    effect that is reported (`EffectClasses.own`), 0 where there is none.
    apart: (m,), probability that the variant has an effect, and another one in LD with it one on none of its traits.
    sets: credible sets.  of_sets: (sets, C), probability that the set's effect exists and is of each class.
    expected: number of effects.  variance: of that number, groups taken for independent.
    fitted: (k, K), what all effects, reported or not, explain of the whitened z-scores.
    evidence: log of the sum over states of prior odds times Bayes factor, summed over groups given the others' means.
    sweeps: of coordinate ascent.  converged: it, and the rounds over groups, came to rest.
    """

    probability: NDArray[np.float64]
    mean: NDArray[np.float64]
    square: NDArray[np.float64]
    apart: NDArray[np.float64]
    sets: list[CredibleSet]
    of_sets: NDArray[np.float64]
    expected: float
    variance: float
    evidence: float
    sweeps: int
    converged: bool
    fitted: NDArray[np.floating]

    @property
    def inclusion(self) -> NDArray[np.float64]:
        """(m,), the probability that a variant has an effect."""
        return np.minimum(self.probability.sum(axis=1), 1.0)


def locate_effects(
    tasks: Sequence[Task],
    classes: EffectClasses,
    *,
    slots: int = 10,
    candidates: int = 64,
    coverage: float = 0.95,
    shape: tuple[int, int] | None = None,
    together: tuple[float, float] = (0.0, 0.0),
    more: int = 0,
) -> list[BlockEffects]:
    """Posterior effects of blocks that are computed together, padded to one shape.

    classes: the prior of an effect; the same for all blocks.  slots: most effects a block may hold.
    candidates: variants and classes whose pairs are weighed.  coverage: of credible sets.
    shape: (k, m) to pad to; by default the largest of each.
    together: added to the log prior odds of two effects in LD r^2 > 0.2, with a trait in common, and with none.
    more: candidates, in the end, where one effect on several traits stands against two that are not negligible: there
    the many pairs that are each unlikely count. 0 for no more.
    """
    dtype = jnp.result_type(float)
    k = max(t.factor.shape[0] for t in tasks) if shape is None else shape[0]
    m = max(t.factor.shape[1] for t in tasks) if shape is None else shape[1]
    traits, count = tasks[0].whitened.shape[1], tasks[0].log_odds.shape[1]
    order = by_rank(classes)
    G = np.zeros((len(tasks), k, m), dtype)
    y = np.zeros((len(tasks), k, traits), dtype)
    odds = np.full((len(tasks), m, count), -np.inf, dtype)
    for row, task in enumerate(tasks):
        (kb, mb) = task.factor.shape
        G[row, :kb, :mb], y[row, :kb], odds[row, :mb] = task.factor, task.whitened, task.log_odds[:, order]
    on_device = as_arrays(take_classes(classes, order), dtype)
    found = _slots(G, y, on_device, odds, slots)
    found = jax.device_get(found)
    return [
        _one_block(
            task,
            G[row],
            y[row],
            odds[row],
            on_device,
            Slots(*(x[row] for x in found)),
            order,
            candidates,
            coverage,
            together,
            more,
        )
        for row, task in enumerate(tasks)
    ]


@partial(jax.jit, static_argnames="slots")
def _slots(G: Any, y: Any, classes: ClassArrays, log_odds: Any, slots: int) -> Slots:
    run = partial(mean_field, slots=slots)
    if len(G) == 1:
        return jax.tree.map(lambda x: x[None], run(G[0], y[0], classes, log_odds[0]))
    return jax.vmap(run, in_axes=(0, 0, None, 0))(G, y, classes, log_odds)


_shrinkage = jax.jit(shrinkage)


class _Part:
    """One group: its variants, padded, and what is known of it."""

    def __init__(
        self,
        variants: NDArray[np.int64],
        G: NDArray[Any],
        odds: NDArray[Any],
        starts: NDArray[Any],
        weak: bool,
        classes: ClassArrays,
        candidates: int,
        together: tuple[float, float],
    ):
        self.together = together
        self.variants, self.weak, self.classes = variants, weak, classes
        n, width = len(variants), min(G.shape[1], _WIDTH * 2 ** max(0, (len(variants) - 1) // _WIDTH).bit_length())
        self.factor = np.zeros((len(G), width), G.dtype)
        self.factor[:, :n] = G[:, variants]
        padded = np.full((width, odds.shape[1]), -np.inf, odds.dtype)
        padded[:n] = odds[variants]
        begin = np.zeros((2, width, starts.shape[2]), G.dtype)
        begin[:, :n] = starts[:, variants]
        self.candidates, self.in_doubt = candidates, False
        gram = self.factor.T @ self.factor
        self.gram, self.odds, self.starts = jax.device_put((gram, padded, begin))
        self.shrink = _shrinkage(classes, gram.diagonal())
        self.fitted = self.factor @ begin.sum(axis=0)
        self.expected = 0.0
        self.posterior: Callable[[], Group]
        self.given = np.full((len(G), starts.shape[2]), np.inf, G.dtype)

    def update(self, residual: NDArray[Any], candidates: int = 0) -> float:
        """Weigh the group, unless it was with nearly this residual; returns the change of its expected number.

        candidates: to weigh it with as many, whatever the residual.
        """
        if not candidates and np.square(residual - self.given).sum(axis=0).max() <= _SAME**2:
            return 0.0
        self.given = residual
        classes, (shrink, half_log) = self.classes, self.shrink
        b = self.factor.T @ residual
        count = min(candidates or self.candidates, self.odds.size)
        alone, chosen = look(self.gram, b, classes, self.odds, shrink, half_log, self.starts, candidates=count)
        pairs = weigh_pairs(classes, chosen, self.together)
        numbers = np.asarray(pairs.numbers)
        self.in_doubt = numbers[2] > _SOME and bool(shared(classes, alone, pairs) > _MUCH)
        if self.weak and numbers[0] > 1 - _FULL:
            probability, total, found, weight = fit_weak(classes, self.gram, alone, shrink)
            self.posterior = partial(report_weak, classes, alone, shrink, probability, found, weight)
            expected = float(total)
        else:
            one, found = fit(classes, alone, shrink, chosen, pairs)
            self.posterior = partial(report, classes, alone, shrink, one, found, chosen, pairs)
            expected = float(numbers[1] + 2 * numbers[2])
        change, self.expected = abs(expected - self.expected), expected
        self.fitted = self.factor @ np.asarray(found)
        return change


def _one_block(
    task: Task,
    G: NDArray[Any],
    y: NDArray[Any],
    odds: NDArray[Any],
    classes: ClassArrays,
    slots: Slots,
    order: NDArray[np.int64],
    candidates: int,
    coverage: float,
    together: tuple[float, float],
    more: int,
) -> BlockEffects:
    m = task.factor.shape[1]
    groups = cut(task.factor, slots.lead, slots.full > _FULL)
    nothing = np.zeros_like(slots.mean[0])
    parts = []
    for number, pair in enumerate(groups.slots):
        variants = np.flatnonzero(groups.group == number)
        if len(variants):
            starts = np.stack([slots.mean[x] if x >= 0 else nothing for x in pair])
            parts.append(_Part(variants, G, odds, starts, bool((pair < 0).all()), classes, candidates, together))
    total = sum((part.fitted for part in parts), np.zeros_like(y))
    change, rounds = float("inf"), 0
    while change > _SETTLED and rounds < _ROUNDS:
        change = 0.0
        for part in parts:
            others = total - part.fitted
            change = max(change, part.update(y - others))
            total = others + part.fitted
        rounds += 1
        if len(parts) == 1:
            change = 0.0
    for part in parts:
        if part.in_doubt and more > candidates:
            others = total - part.fitted
            part.update(y - others, more)
            total = others + part.fitted
    probability: NDArray[np.float64] = np.zeros((m, odds.shape[1]))
    mean, square = np.zeros((2, m, y.shape[1]))
    apart = np.zeros(m)
    sets: list[CredibleSet] = []
    of_sets: list[NDArray[np.float64]] = []
    partners: list[tuple[int, int, NDArray[np.float64]]] = []  # likeliest variant, group, by class
    expected, variance, evidence = 0.0, 0.0, 0.0
    for part in parts:
        found, n = part.posterior(), len(part.variants)
        probability[np.ix_(part.variants, order)] = found.probability[:n]
        mean[part.variants], square[part.variants] = found.mean[:n], found.square[:n]
        apart[part.variants] = found.apart[:n]
        here = float(found.probability.sum())
        expected, evidence = expected + here, evidence + float(found.log_evidence)
        variance += max(0.0, float(found.numbers[1] + 4 * found.numbers[2]) - here**2)
        for where in (found.first, found.second):
            own = np.zeros(m)
            own[part.variants] = where[:n].sum(axis=1)
            of_class: NDArray[np.float64] = np.zeros(len(order))
            of_class[order] = where.sum(axis=0)
            if own.sum() > _PARTNER:
                partners.append((int(own.argmax()), int(groups.group[part.variants[0]]), of_class))
            made = credible_set(task.factor, own, coverage)
            if made is not None:
                sets.append(made)
                of_sets.append(of_class)
    of_each: NDArray[np.float64] = np.reshape(of_sets, (len(sets), odds.shape[1]))
    acts = np.zeros((len(order), y.shape[1]), bool)
    acts[order] = np.asarray(classes.traits) > 0
    if partners and len(parts) > 1:
        leads, group_of_each, by_class = zip(*partners, strict=True)
        near = squared_ld(task.factor[:, list(leads)], task.factor) > LINKED
        near &= np.array(group_of_each)[:, None] != groups.group[None, :]
        apart = _apart_from_others(probability, apart, near, np.stack(by_class), acts)
    return BlockEffects(
        probability,
        mean,
        square,
        apart,
        sets,
        of_each,
        expected,
        variance,
        evidence,
        int(slots.sweeps),
        bool(slots.converged) and change <= _SETTLED,
        total[: len(task.whitened)],
    )


def _apart_from_others(
    probability: NDArray[np.float64],
    apart: NDArray[np.float64],
    near: NDArray[np.bool_],
    of_each: NDArray[np.float64],
    acts: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """(m,), `BlockEffects.apart` with effects of other groups, independent given what is known of each.

    probability: (m, C).  apart: (m,), within the variant's own group.  near: (effects, m), other groups' effects in LD.
    of_each: (effects, C), of these.  acts: (C, K).
    """
    disjoint = ~(acts[:, None] & acts[None]).any(axis=2)
    other = np.clip(of_each @ disjoint, 0.0, 1 - 1e-12)
    nowhere = np.exp(near.T @ np.log1p(-other))
    inclusion = probability.sum(axis=1)
    by_others = np.sum(probability * (1 - nowhere), axis=1)
    both = apart * by_others / np.maximum(inclusion, 1e-30)
    return np.asarray(np.clip(apart + by_others - both, 0.0, inclusion))
