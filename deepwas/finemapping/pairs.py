"""At most two effects in a group of variants, weighed exactly: one shared variant against two distinct ones.

Independent slots cannot say 'either this variant alone, or those two', and are too sure of what they say where LD is
strong. Here the posterior is summed over no effect, one effect (every variant and class) and two effects (every pair
of the `candidates` likeliest variants and classes, see below), each by its exact Bayes factor. With the notation of
`deepwas.finemapping.effects`, the effects u_a, u_b of two variants have

    (v_a, v_b) ~ N(M^-1 (t_a, t_b), M^-1),   log BF_ab = 1/2 [ (t_a, t_b)^T M^-1 (t_a, t_b) - log|M| ],
    M = [[D_a, X], [X^T, D_b]],   D = diag(1 + d a),   X = g_a^T g_b A_a^T P A_b,

through the Schur complement S = D_b - X^T D_a^-1 X, of (K, K).

Effects may lie near one another more often than by chance: pairs with r^2 above `CLOSE` then have prior odds of
exp(together) times the product of the two, together one number for effects with a trait in common and one for others.

A pair is a candidate only if both of its members are, and members are chosen by their weight alone, given the first
slot's effect, and given the second's, whichever is best: two effects that mask each other are seen only so. Of several
traits one effect on all may stand in for two on some each, which slots then do not hold: for each trait the likeliest
effect on it alone is tried, the likeliest beside that, and what is likely beside this one, each weighed as a pair.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from deepwas.finemapping.effects import (
    HIGHEST,
    ClassArrays,
    alone_moments,
    log_bayes_factors,
    mean_effect,
    shrinkage,
    whitened_effect,
)
from deepwas.finemapping.groups import CLOSE

__all__ = [
    "Alone",
    "Candidates",
    "Group",
    "Pairs",
    "at_most_two",
    "fit",
    "look",
    "moments",
    "report",
    "shared",
    "weigh_pairs",
]

_SOME_ALONE = 1e-3  # of one effect alone, for it to say which of two is the first


class Group(NamedTuple):
    """The posterior of at most two effects in a group of variants.

    probability: (m, C), that variant j has an effect of class c.
    fitted: (m, K), E[u], in units of z-scores.  mean, square: (m, K), E[w] and E[w^2] of the effect reported (`own` of
        the classes), 0 where there is none.
    numbers: (3,), probabilities of 0, 1 and 2 effects.
    first, second: (m, C), probability that the first (second) effect lies at the variant and is of the class: one
        alone is the first, of two the one that is nearer to where one alone would be, by the likeliest pair. They sum
        to P(>= 1) and P(2).
    apart: (m,), probability that the variant has an effect, and another variant one on none of the same traits.
    log_evidence: log of the sum over all states of prior odds times Bayes factor.
    """

    probability: Any
    fitted: Any
    mean: Any
    square: Any
    numbers: Any
    first: Any
    second: Any
    apart: Any
    log_evidence: Any


class Alone(NamedTuple):
    """What single effects say of a group.

    t: as `whitened_effect`.  weight: (m, C), log of prior odds times Bayes factor.
    """

    t: tuple[Any, ...]
    weight: Any


class Candidates(NamedTuple):
    """The q likeliest variants and classes: where, what (q,), and what is known of them.

    ld: (q, q), g_a^T g_b.  b: (q, K).  odds, bayes: (q,), log prior odds and log Bayes factor.
    top, one: the largest weight or 0, and the sum of all weights of single effects over exp(top).
    """

    where: Any
    what: Any
    ld: Any
    b: Any
    odds: Any
    bayes: Any
    top: Any
    one: Any


class Pairs(NamedTuple):
    """What pairs of candidates say.

    member, lead, follower, apart: (q,), probability that the candidate is one of two effects; and the first; and the
    second; and on none of the other's traits.  fitted, mean, square: (q, K), E[u], E[w], E[w^2] of it as one of two.
    numbers: (3,).  top, total: single effects have the probability exp(weight - top) / total.
    """

    member: Any
    lead: Any
    follower: Any
    apart: Any
    fitted: Any
    mean: Any
    square: Any
    numbers: Any
    top: Any
    total: Any


def at_most_two(
    G: ArrayLike,
    residual: ArrayLike,
    classes: ClassArrays,
    log_odds: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    candidates: int,
) -> Group:
    """G: (k, m).  residual: (k, K), y less the means of effects outside the group.

    log_odds: (m, C), -inf outside the group.  first, second: (m, K), mean effects of the two slots to begin with,
    zeros where there is none. They only choose the candidates.
    Cost O(k m^2 + m C K^2 + q^2 K^3), q candidates.
    """
    factor = np.asarray(G)
    gram = factor.T @ factor
    shrink = shrinkage(classes, jnp.asarray(gram.diagonal()))
    b = factor.T @ np.asarray(residual)
    starts = np.stack([np.asarray(first), np.asarray(second)])
    alone, chosen = look(gram, b, classes, np.asarray(log_odds), *shrink, starts, candidates=candidates)
    pairs = weigh_pairs(classes, chosen)
    probability, fitted = fit(classes, alone, shrink[0], chosen, pairs)
    return report(classes, alone, shrink[0], probability, fitted, chosen, pairs)


@partial(jax.jit, static_argnames="candidates")
def look(
    gram: Array,
    b: Array,
    classes: ClassArrays,
    log_odds: Array,
    shrink: tuple[Array, ...],
    half_log: Array,
    starts: Array,
    *,
    candidates: int,
) -> tuple[Alone, Candidates]:
    """Single effects, and the candidates.

    gram: (m, m), G^T G.  b: (m, K), G^T residual.  shrink, half_log: see `shrinkage`.  starts: (2, m, K), of the slots.
    """
    count = log_odds.shape[1]
    t = whitened_effect(classes, b)
    bayes = log_bayes_factors(t, shrink, half_log)
    weight = log_odds + bayes
    score = weight - jnp.max(weight)

    def left(explained: Array) -> Array:
        """Log weights given other effects, that explain this of b."""
        return log_odds + log_bayes_factors(whitened_effect(classes, b - explained), shrink, half_log)

    def given(mean: Array, score: Array) -> Array:
        new = left(jnp.matmul(gram, mean, precision=HIGHEST))
        return jnp.maximum(score, new - jnp.max(new))

    def one_slot(score: Array, mean: Array) -> tuple[Array, None]:
        return jax.lax.cond(jnp.any(mean != 0), given, lambda _, score: score, mean, score), None

    if b.shape[1] > 1:
        tried = jax.lax.cond(
            jnp.max(weight) > 0,
            lambda: jnp.maximum(weight, _splits(gram, b, classes, weight, left)),
            lambda: weight,
        )
        score = tried - jnp.max(tried)
    score, _ = jax.lax.scan(one_slot, score, starts)
    chosen = jax.lax.top_k(score.ravel(), candidates)[1]
    where, what = chosen // count, chosen % count
    top = jnp.maximum(jnp.max(weight), 0.0)
    one = jnp.sum(jnp.exp(weight - top))
    ld = gram[where[:, None], where[None, :]]
    return Alone(t, weight), Candidates(where, what, ld, b[where], log_odds[where, what], bayes[where, what], top, one)


def _splits(gram: Array, b: Array, classes: ClassArrays, weight: Array, left: Callable[[Array], Array]) -> Array:
    """(m, C), about the largest log weight of a pair that a candidate is one of, an effect on one trait the other.

    weight: (m, C), log weights of effects alone.  left: of effects (m, C) given others, from what these explain of b.
    """
    m, count = weight.shape
    alone = jnp.sum(classes.traits, axis=1) == 1

    def beside(flat: Array) -> Array:
        """Log weights of pairs with this effect, at its mean."""
        j, c = flat // count, flat % count
        v = jnp.matmul(classes.project[c], b[j], precision=HIGHEST) / (1 + gram[j, j] * classes.gain[c])
        u = jnp.matmul(v, classes.root[c], precision=HIGHEST)
        pair = weight[j, c] + left(gram[:, j, None] * u[None])
        return jnp.where(jnp.arange(m)[:, None] == j, -jnp.inf, pair)

    def one_trait(best: Array, acts: Array) -> tuple[Array, None]:
        first = jnp.argmax(jnp.where((acts > 0) & alone, weight, -jnp.inf))
        pairs = beside(first)
        back = beside(jnp.argmax(pairs))
        return jnp.maximum(best, jnp.maximum(pairs, back)), None

    best, _ = jax.lax.scan(one_trait, jnp.full_like(weight, -jnp.inf), classes.traits.T)
    return best


def weigh_pairs(classes: ClassArrays, chosen: Candidates, together: ArrayLike = (0.0, 0.0)) -> Pairs:
    """Every pair of candidates, with as many coordinates as any of them has, a power of 2.

    together: (2,), added to the log prior odds of pairs in LD, with a trait in common and with none.
    """
    most = int(classes.rank[np.asarray(chosen.what)].max())
    rank = min(1 << (most - 1).bit_length(), classes.gain.shape[1])
    return _weigh_pairs(classes, chosen, np.asarray(together, chosen.b.dtype), rank=rank)


@partial(jax.jit, static_argnames="rank")
def _weigh_pairs(classes: ClassArrays, chosen: Candidates, together: Array, *, rank: int) -> Pairs:
    """Ordered pairs (a, b), a slower; each unordered one appears twice.

    Coordinates come first, so that steps on small matrices run over all pairs at once.
    """
    where, what, ld = chosen.where, chosen.what, chosen.ld
    d = jnp.diagonal(ld)
    root, project, own = (x[what, -rank:] for x in (classes.root, classes.project, classes.own))
    X = ld[None, None] * jnp.einsum("aik,bjk->ijab", project, root, precision=HIGHEST)
    t = jnp.einsum("aik,ak->ia", project, chosen.b, precision=HIGHEST)
    shrink = (1 / (1 + d[:, None] * classes.gain[what, -rank:])).T
    S = (jnp.eye(rank, dtype=X.dtype)[:, :, None] / shrink[None])[:, :, None, :]
    rest = t[:, None, :]
    for i in range(rank):
        scaled = shrink[i][None, :, None] * X[i]
        S = S - scaled[:, None] * X[i][None]
        rest = rest - t[i][None, :, None] * scaled
    inverse, log_det = _inverse(S)
    v = inverse[0] * rest[0][None]
    for i in range(1, rank):
        v = v + inverse[i] * rest[i][None]
    log_bayes = chosen.bayes[:, None] + 0.5 * (jnp.sum(v * rest, axis=0) - log_det)
    size = jnp.sqrt(jnp.where(d > 0, d, 1.0))
    correlation = ld / size[:, None] / size[None, :]
    close = correlation**2 > CLOSE
    acts = classes.traits[what]
    disjoint = jnp.matmul(acts, acts.T) == 0
    nearness = jnp.where(close, jnp.where(disjoint, together[1], together[0]), 0.0)
    both = chosen.odds[:, None] + chosen.odds[None, :] + log_bayes + nearness
    both = jnp.where(where[:, None] == where[None, :], -jnp.inf, both)
    # The two orders differ by rounding; pairs are weighed once.
    both = jnp.where(jnp.isnan(both), -jnp.inf, 0.5 * (both + both.T))

    top = jnp.maximum(jnp.max(both), chosen.top)
    none, one, two = jnp.exp(-top), chosen.one * jnp.exp(chosen.top - top), jnp.exp(both - top)
    number = jnp.stack([none, one, 0.5 * jnp.sum(two)])
    total = jnp.sum(number)
    two = two / total
    lead, follower = _labelled(correlation, two, jnp.exp(chosen.odds + chosen.bayes - top) / total)
    of_v = jnp.sum(two[None] * v, axis=1)
    of_vv = jnp.sum(two[None, None] * (v[:, None] * v[None] + inverse), axis=2)
    return Pairs(
        jnp.sum(two, axis=0),
        lead,
        follower,
        jnp.sum(jnp.where(disjoint, two, 0.0), axis=0),
        jnp.einsum("bik,ib->bk", root, of_v, precision=HIGHEST),
        jnp.einsum("bik,ib->bk", own, of_v, precision=HIGHEST),
        jnp.einsum("bik,bjk,ijb->bk", own, own, of_vv, precision=HIGHEST),
        number / total,
        top,
        total,
    )


@jax.jit
def fit(
    classes: ClassArrays, alone: Alone, shrink: tuple[Array, ...], chosen: Candidates, pairs: Pairs
) -> tuple[Array, Array]:
    """Of single effects the probabilities (m, C), and of all effects E[u] (m, K)."""
    probability = jnp.exp(alone.weight - pairs.top) / pairs.total
    return probability, mean_effect(classes, probability, alone.t, shrink).at[chosen.where].add(pairs.fitted)


@jax.jit
def shared(classes: ClassArrays, alone: Alone, pairs: Pairs) -> Array:
    """Probability of one effect alone, on several traits."""
    several = jnp.sum(classes.traits, axis=1) > 1
    return jnp.sum(jnp.exp(alone.weight - pairs.top) * several[None, :]) / pairs.total


moments = jax.jit(alone_moments)


def report(
    classes: ClassArrays,
    alone: Alone,
    shrink: tuple[Array, ...],
    probability: Array,
    fitted: Array,
    chosen: Candidates,
    pairs: Pairs,
) -> Group:
    """The posterior from what `look`, `weigh_pairs` and `fit` found, as NumPy arrays."""
    one, own, (where, what, *_), two, u = jax.device_get(
        (probability, moments(classes, probability, alone.t, shrink), chosen, pairs, fitted)
    )
    mean, square = (np.array(x) for x in own)
    whole, first, second, apart = np.array(one), np.array(one), np.zeros_like(one), np.zeros_like(one[:, 0])
    np.add.at(whole, (where, what), two.member)
    np.add.at(first, (where, what), two.lead)
    np.add.at(second, (where, what), two.follower)
    np.add.at(apart, where, two.apart)
    np.add.at(mean, where, two.mean)
    np.add.at(square, where, two.square)
    evidence = float(two.top) + float(np.log(two.total))
    return Group(whole, u, mean, square, two.numbers, first, second, apart, evidence)


def _inverse(S: Array) -> tuple[Array, Array]:
    """Inverse and log-determinant of positive definite S (r, r, ...), all at once, by symmetric sweeps."""
    rank = len(S)
    if rank == 1:
        return 1 / S, jnp.log(S[0, 0])
    number = jnp.arange(rank)
    rows = number.reshape(rank, 1, *(1,) * (S.ndim - 2))
    columns = number.reshape(1, rank, *(1,) * (S.ndim - 2))

    def sweep(i: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        A, log_det = carry
        row = jax.lax.dynamic_index_in_dim(A, i, keepdims=False)
        pivot = jax.lax.dynamic_index_in_dim(row, i, keepdims=False)
        scaled = row / pivot[None]
        A = jnp.where(
            rows == i,
            jnp.where(columns == i, -1 / pivot[None, None], scaled[None]),
            jnp.where(columns == i, scaled[:, None], A - row[:, None] * scaled[None]),
        )
        return A, log_det + jnp.log(pivot)

    swept, log_det = jax.lax.fori_loop(0, rank, sweep, (S, jnp.zeros_like(S[0, 0])))
    return -swept, log_det


def _labelled(correlation: Array, two: Array, one: Array) -> tuple[Array, Array]:
    """Probabilities (q,) that a candidate is the first, or the second, of two; two: (q, q), each pair twice.

    The likeliest pair names the effects, the first being the one that effects alone, one (q,), are nearer to by LD;
    another pair's members are named as fits that one's LD with it best.
    """
    a, b = jnp.unravel_index(jnp.argmax(two), two.shape)
    # One difference, taken both ways, so that rounding cannot name both orders of a pair alike.
    nearer = jnp.abs(correlation[:, a]) - jnp.abs(correlation[:, b])
    nearer = jnp.where(jnp.sum(one * nearer) < -_SOME_ALONE, -nearer, nearer)
    straight = nearer[:, None] - nearer[None, :]
    weight = two * jnp.where(straight > 0, 1.0, jnp.where(straight < 0, 0.0, 0.5))
    return jnp.sum(weight, axis=1), jnp.sum(weight, axis=0)
