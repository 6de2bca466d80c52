"""How often variants act on several traits: psi and a under which the prior expects what the posterior counts.

psi of a set of n traits is psi_n + sum of b_kl over its pairs (`deepwas.pleiotropy.configurations`): n alone would hold
that any two traits share as many variants as any other two, so that a trait which shares nothing seems to act wherever
others do. With D effects counted by the posterior on all traits together, psi and the offsets a are those under which

    the share of the effects in variants of n >= 2 traits is by the prior as by the posterior, for each n,
    the number of variants of each pair of traits is by the prior as by the posterior, less b_kl / tau^2 (tau =
        `_PAIR_SD`, the standard deviation of b in its normal prior: pairs that data say little of stay near 0),
    sum_j pi_jk variants act on trait k:

the maximum over psi with the marginals held. They are found by iterative scaling (Darroch & Ratcliff 1972), psi_n by
the log of wanted over expected numbers, a by the same over the mean size of the sets that hold the trait, and b by
that over the mean number of pairs, allowing for its prior, so that steps do not overshoot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import comb

import numpy as np
from numpy.typing import NDArray

from deepwas.pleiotropy.configurations import TraitModel

__all__ = ["Expected", "Sample", "Shares", "price_of_pairs", "smoothed"]

Floats = NDArray[np.float64]

_START_SHARE, _JOINS = 0.03, 0.3
_SAMPLE = 500_000  # variants times configurations by which psi and a are solved for
_SCALINGS = 60
_SCALED = 0.02
_NOTHING = 1e-12
_LEAP = 1.5
_PAIR_SD = 1.5  # of b
_HALVINGS = 12
_STEEPEST, _BISECTIONS = 12.0, 50  # of the log of the factor between neighbouring sizes
_MOST_OFFSET = 8.0  # of a: where more variants are shared than the prior has, no a would do


@dataclass(frozen=True, eq=False)
class Shares:
    """What the posterior counts, over the number of effects on all traits.

    sizes: (K + 1,), variants of n traits, 0 for n < 2.  pairs: (K, K), variants that act on two traits each; None
    leaves b as it is.  effects: their number.
    """

    sizes: Floats
    pairs: Floats | None = None
    effects: float = 1.0


def smoothed(sizes: Floats, pairs: Floats, possible: NDArray[np.bool_], count: float) -> tuple[Floats, Floats]:
    """Numbers of variants by number of traits, shrunk with the weight of `count` variants towards shares that fall or
    rise by one factor from n to n + 1 and have the same mean; and pairs, scaled like the pairs in all sizes.

    Where few variants tell, one number of traits would be found frequent and its neighbours never to be.

    sizes: (K + 1,), 0 for n < 2.  pairs: (K, K).  possible: (K + 1,), the numbers that there are sets of.
    """
    n = np.arange(len(sizes), dtype=np.float64)
    total = float(sizes.sum())
    if possible[2:].sum() < 2 or total <= 0:
        return sizes, pairs
    even = total * _geometric(n, possible & (n >= 2), float(n @ sizes) / total)
    found = (total * sizes + count * even) / (total + count)
    return found, pairs * float((n * (n - 1)) @ found) / float((n * (n - 1)) @ sizes)


def price_of_pairs(pairs: Floats, log_share: Floats, masks: NDArray[np.bool_], variants: float) -> float:
    """Log of likelihood at its maximum over its integral over b ~ N(0, tau^2), by Laplace's method, numbers of traits
    given.

    pairs: (K, K), b.  log_share: (C,), log of how frequent the sets (C, K) of two traits or more are, but for a
    constant.  variants: how many b was learned from.
    """
    left, right = np.triu_indices(len(pairs), 1)
    b = pairs[left, right]
    share = np.exp(log_share - np.logaddexp.reduce(log_share))
    information = np.zeros((len(b), len(b)))
    size = masks.sum(axis=1)
    for n in np.unique(size):
        own = share[size == n, None]
        holds = (masks[size == n][:, left] & masks[size == n][:, right]).astype(np.float64)
        holds -= (own * holds).sum(axis=0) / max(own.sum(), _NOTHING)
        information += variants * holds.T @ (own * holds)
    determinant = np.linalg.slogdet(np.eye(len(b)) + _PAIR_SD**2 * information)[1]
    return float(np.sum(b**2) / (2 * _PAIR_SD**2) + determinant / 2)


def _geometric(n: Floats, possible: NDArray[np.bool_], mean: float) -> Floats:
    """Shares of the n that are possible, in a geometric series of n, with this mean."""
    low, high = -_STEEPEST, _STEEPEST
    for _ in range(_BISECTIONS):
        slope = (low + high) / 2
        each = np.where(possible, np.exp(slope * (n - n[possible][-1 if slope > 0 else 0])), 0.0)
        each /= each.sum()
        low, high = (slope, high) if n @ each < mean else (low, slope)
    return np.asarray(each)


@dataclass(frozen=True, eq=False)
class Expected:
    """Numbers of variants by the prior.

    sizes: (K + 1,), by number of traits.  present: (K,), that act on each.  weighted: (K,), those times the size of
    their sets.  pi: (K,), what `present` should be.  pairs: (K, K), that act on two each.  crowded: (K, K), those times
    the number of pairs in their sets.
    """

    sizes: Floats
    present: Floats
    weighted: Floats
    pi: Floats
    pairs: Floats
    crowded: Floats


@dataclass(frozen=True, eq=False)
class Sample:
    """Some variants, that stand for those of all blocks.

    direct: (n, K), d.  weight: (n,), how many variants each stands for.
    """

    direct: Floats
    weight: Floats

    @classmethod
    def of(cls, direct: Floats, model: TraitModel) -> Sample:
        """All variants, d (n, K); of too many, those with the largest priors, and of the others some, evenly spread."""
        n, most = len(direct), max(2048, _SAMPLE // len(model.masks))
        if n <= most:
            return cls(direct, np.ones(n))
        order = np.argsort(-(direct / model.slab[None, :]).sum(axis=1), kind="stable")
        rest = np.sort(order[most // 2 :])
        some = rest[:: -(-2 * len(rest) // most)]
        weight = np.concatenate([np.ones(most // 2), np.full(len(some), len(rest) / len(some))])
        return cls(direct[np.concatenate([order[: most // 2], some])], weight)

    def expected(self, model: TraitModel) -> Expected:
        """By the prior."""
        odds = model.log_odds(self.direct)
        each = np.exp(odds - np.logaddexp(0, np.logaddexp.reduce(odds, axis=1))[:, None])
        prior = self.weight @ each
        masks = model.masks.astype(np.float64)
        size = masks.sum(axis=1)
        sizes = np.bincount(size.astype(int), weights=prior, minlength=model.traits + 1).astype(np.float64)
        pi = self.weight @ model.pi(self.direct)
        pairs, crowded = (_by_pair(masks, weight) for weight in (prior, prior * size * (size - 1) / 2))
        return Expected(sizes, prior @ masks, (prior * size) @ masks, pi, pairs, crowded)

    def solve(self, model: TraitModel, wanted: Shares) -> tuple[TraitModel, Expected]:
        """The model with psi, a and, where pairs are counted, b that expect what is wanted; what it expects."""
        now = self.expected(model)
        free = wanted.pairs is not None and model.traits > 2  # of two traits psi_2 says all
        for _ in range(_SCALINGS):
            total = now.pi.sum()
            off = np.log(np.maximum(wanted.sizes * total, _NOTHING) / np.maximum(now.sizes, _NOTHING))
            off[:2] = 0.0
            off[now.sizes == 0] = 0.0  # no set of this size can be
            shift = np.log(np.maximum(now.pi, _NOTHING) / np.maximum(now.present, _NOTHING)) * (now.present + _NOTHING)
            shift /= now.weighted + _NOTHING
            pairs = model.pairs
            if wanted.pairs is not None and free:
                scale = wanted.effects / total
                pairs = pairs + 0.5 * _step(
                    wanted.effects * wanted.pairs, scale * now.pairs, scale * now.crowded, pairs
                )
            moved = max(np.abs(x).max() for x in (off, shift, pairs - model.pairs))
            if moved < _SCALED:
                break
            model = replace(
                model,
                excess=model.excess + 0.5 * np.clip(off, -6, 6),
                offsets=np.clip(model.offsets + np.clip(shift, -2, 2), -_MOST_OFFSET, _MOST_OFFSET),
                pairs=pairs,
            )
            now = self.expected(model)
        return model, now

    def shared(self, model: TraitModel) -> TraitModel:
        """The model with `_START_SHARE` of the effects in variants of two traits or more, of which every further trait
        joins with odds of `_JOINS`: where data say little of a trait, it is not drawn into what others share."""
        sizes = np.arange(model.traits + 1)
        variants = np.array([comb(model.traits, int(n)) * _JOINS ** (n - 2) if n >= 2 else 0.0 for n in sizes])
        return self.solve(model, Shares(_START_SHARE * variants / (sizes @ variants)))[0]


def _step(wanted: Floats, pairs: Floats, crowded: Floats, b: Floats) -> Floats:
    """(K, K), the x at which pairs e^(c x) + (b + x) / tau^2 is what is wanted, c pairs in a set; at most `_LEAP`."""
    each = np.maximum(crowded / np.maximum(pairs, _NOTHING), 1.0)
    low, high = np.full(b.shape, -_LEAP), np.full(b.shape, _LEAP)
    for _ in range(_HALVINGS):
        x = (low + high) / 2
        above = pairs * np.exp(each * x) + (b + x) / _PAIR_SD**2 > wanted
        low, high = np.where(above, low, x), np.where(above, x, high)
    np.fill_diagonal(x, 0.0)
    return np.asarray(x)


def _by_pair(masks: Floats, weight: Floats) -> Floats:
    """(K, K), sum of the weights of sets that hold both, 0 on the diagonal."""
    found = (masks * weight[:, None]).T @ masks
    np.fill_diagonal(found, 0.0)
    return np.asarray(found)
