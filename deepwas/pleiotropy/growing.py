"""Configurations of many traits: the larger ones that variants of the genome seem to have.

A first pass with configurations of one trait and of two (`deepwas.pleiotropy.configurations`) says where effects lie.
At the likeliest variant of each credible set, what the block's other effects leave of the z-scores (and, again, what
those out of LD with it leave) is then explained by one effect of its own, whose set of traits grows one by one: of all
traits that could join, the one that raises prior odds times Bayes factor the most, as long as one does. Each set on the
way, and each without one of its traits, is kept with the weight exp(its log odds - the best's), summed over credible
sets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deepwas.finemapping.block import BlockEffects
from deepwas.pleiotropy.configurations import MOST_SETS, TraitModel
from deepwas.pleiotropy.learning import JointBlock

__all__ = ["grown"]

Floats = NDArray[np.float64]
Set = frozenset[int]

_LEAST = 1e-3  # weight below which a set is not kept
_NEAR = 0.25  # r^2 of variants whose effects may be of the same one
_WAIT = 2  # traits that may join in vain, in case a third one needs them


def grown(
    located: Iterable[tuple[JointBlock, Floats, BlockEffects]], model: TraitModel, *, most: int = MOST_SETS
) -> TraitModel:
    """The model with the larger configurations that the located blocks ask for, at most `most` in all.

    located: what `deepwas.pleiotropy.learning.locate` yields for the model.  Configurations of one trait are always
    kept; then the others by their weight, and pairs before larger ones without any.
    """
    K = model.traits
    found: dict[Set, float] = {}
    for block, _, effects in located:
        G = np.asarray(block.factor, np.float64)
        y = np.asarray(block.whitened, np.float64)
        u = effects.mean @ model.forward
        fitted = G @ u
        for one in effects.sets:
            g = G[:, one.lead]
            d = float(g @ g)
            # One effect on many traits may have been located as two in LD.
            near = (g @ G) ** 2 > _NEAR * d * np.einsum("ij,ij->j", G, G)
            for own in (one.variants, np.flatnonzero(near)):
                b = g @ (y - fitted + G[:, own] @ u[own])
                for traits, weight in _grow(model, block.direct[one.lead], b, d).items():
                    found[traits] = found.get(traits, 0.0) + weight * min(one.effect, 1.0)
    pairs = [frozenset((j, k)) for j in range(K) for k in range(j + 1, K)]
    score = {traits: found.get(traits, 0.0) for traits in [*found, *pairs] if len(traits) > 1}
    order = sorted(score, key=lambda x: (-score[x] if score[x] > _LEAST else 0.0, len(x), sorted(x)))
    kept = [x for x in order if score[x] > _LEAST or len(x) == 2][: max(0, most - K)]
    sets = np.eye(K, dtype=bool)
    if kept:
        more = np.array([[k in x for k in range(K)] for x in sorted(kept, key=lambda x: (len(x), sorted(x)))])
        sets = np.concatenate([sets, more])
    return replace(model, sets=sets)


def _grow(model: TraitModel, direct: Floats, b: Floats, d: float) -> dict[Set, float]:
    """Sets of traits on the way to the likeliest one, and their weights, for one variant.

    direct: (K,), its direct variances.  b: (K,), g^T residual.  d: g^T g.
    """
    K = model.traits
    with np.errstate(divide="ignore"):
        pi = model.pi(direct)
        odds = np.log(pi) - np.log1p(-pi) + model.offsets
    half = np.linalg.cholesky(np.linalg.inv(model.noise))
    x, forward = half.T @ b, model.forward @ half  # noise 1, by trait
    seen: dict[Set, float] = {}
    beside = model.beside_mean(direct[None])[0] if len(model.mean_direct) else np.zeros(K)

    def value(traits: Set) -> float:
        if traits not in seen:
            k = sorted(traits)
            root = forward[k] * np.sqrt(model.slab[k])[:, None]  # u = v root, v ~ N(0, I)
            inside = np.eye(len(k)) + d * root @ root.T
            t = root @ x
            fit = 0.5 * float(t @ np.linalg.solve(inside, t)) - 0.5 * float(np.linalg.slogdet(inside)[1])
            prior = float(odds[k].sum() + model.excess[len(k)] + model.pairs[np.ix_(k, k)].sum() / 2)
            if len(k) >= 2 and np.isfinite(prior):
                prior -= (1 - model.follows) * (1 - 1 / len(k)) * float(beside[k].sum())
            seen[traits] = fit + prior
        return seen[traits]

    here: Set = frozenset()
    best, at_best, vain = -np.inf, here, 0
    while len(here) < K and vain <= _WAIT:
        here = max((here | {k} for k in range(K) if k not in here), key=value)
        if value(here) > best:
            best, at_best, vain = value(here), here, 0
        else:
            vain += 1
    if not np.isfinite(best):
        return {}
    for k in at_best:
        if len(at_best) > 1:
            value(at_best - {k})
    best = max(seen.values())
    return {traits: float(np.exp(v - best)) for traits, v in seen.items()}
