"""At most two effects in a group of variants, weighed exactly: one shared variant against two distinct ones.

Independent slots cannot say 'either this variant alone, or those two', and are too sure of what they say where LD is
strong. Here the posterior is summed over no effect, one effect (every variant and class) and two effects (every pair
of the `candidates` likeliest variants and classes, see below), each by its exact Bayes factor. With the notation of
`deepwas.finemapping.effects`, the effects u_a, u_b of two variants have

    (v_a, v_b) ~ N(M^-1 (t_a, t_b), M^-1),   log BF_ab = 1/2 [ (t_a, t_b)^T M^-1 (t_a, t_b) - log|M| ],
    M = [[D_a, X], [X^T, D_b]],   D = diag(1 + d a),   X = g_a^T g_b A_a^T P A_b,

through the Schur complement S = D_b - X^T D_a^-1 X, of (K, K).

A pair is a candidate only if both of its members are, and members are chosen by their weight alone, given the first
slot's effect, and given the second's, whichever is best: two effects that mask each other are seen only so.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from deepwas.finemapping.effects import HIGHEST, EffectClasses, whitened_effect

__all__ = ["Group", "alone_moments", "at_most_two"]


class Group(NamedTuple):
    """The posterior of at most two effects in a group of variants.

    probability: (m, C), that variant j has an effect of class c.
    fitted: (m, K), E[u], in units of z-scores.  mean, square: (m, K), E[w] and E[w^2] of the effect reported (`own` of
        the classes), 0 where there is none.
    numbers: (3,), probabilities of 0, 1 and 2 effects.
    first, second: (m, C), probability that the first (second) effect lies at the variant and is of the class: of two
        effects, which one is the first is told by the likeliest pair; one alone is the first. They sum to P(>= 1) and
        P(2).
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


@partial(jax.jit, static_argnames="candidates")
def at_most_two(
    G: Array, residual: Array, classes: EffectClasses, log_odds: Array, first: Array, second: Array, *, candidates: int
) -> Group:
    """G: (k, m).  residual: (k, K), y less the means of effects outside the group.

    log_odds: (m, C), -inf outside the group.  first, second: (m, K), mean effects of the two slots to begin with,
    zeros where there is none. They only choose the candidates.
    Cost O(k m K + m C K^2 + q^2 K^3), q candidates.
    """
    (m, count), q = log_odds.shape, candidates
    d = jnp.sum(G * G, axis=0)
    b = jnp.matmul(G.T, residual, precision=HIGHEST)
    t, shrink, log_bayes = whitened_effect(classes, b, d)
    alone = log_odds + log_bayes
    chosen = _candidates(G, classes, log_odds, d, b, alone, (first, second), q)
    where, what = chosen // count, chosen % count

    # Every ordered pair (a, b) of candidates; each unordered one appears twice.
    root, project = classes.root[what], classes.project[what]
    ld = jnp.matmul(G[:, where].T, G[:, where], precision=HIGHEST)
    X = ld[:, :, None, None] * jnp.einsum("aik,bkj->abij", project, root, precision=HIGHEST)
    own_t, own_shrink = t[where, what], shrink[where, what]
    scaled = X * own_shrink[:, None, :, None]
    S = jnp.zeros_like(X) + jnp.apply_along_axis(jnp.diag, 1, 1 / own_shrink)[None]
    S = S - jnp.einsum("abij,abil->abjl", scaled, X, precision=HIGHEST)
    rest = own_t[None] - jnp.einsum("abij,ai->abj", scaled, own_t, precision=HIGHEST)
    inverse, log_det = _inverse(S)
    v = jnp.einsum("abij,abj->abi", inverse, rest, precision=HIGHEST)
    log_bayes_two = log_bayes[where, what][:, None] + 0.5 * (jnp.sum(v * rest, axis=2) - log_det)
    odds = log_odds[where, what]
    both = odds[:, None] + odds[None, :] + log_bayes_two
    both = jnp.where(where[:, None] == where[None, :], -jnp.inf, both)
    # The two orders differ by rounding; pairs are weighed once.
    both = jnp.where(jnp.isnan(both), -jnp.inf, 0.5 * (both + both.T))

    top = jnp.maximum(jnp.maximum(jnp.max(alone), jnp.max(both)), 0.0)
    none, one, two = jnp.exp(-top), jnp.exp(alone - top), jnp.exp(both - top)
    total = none + jnp.sum(one) + 0.5 * jnp.sum(two)
    none, one, two = none / total, one / total, two / total
    member = jnp.sum(two, axis=0)  # probability that the candidate is one of two

    lead, follower = _labelled(ld / jnp.sqrt(d[where])[:, None] / jnp.sqrt(d[where])[None, :], two)
    acts = classes.traits[what]
    disjoint = jnp.matmul(acts, acts.T) == 0
    nowhere = jnp.zeros((m, count), G.dtype)
    moments = [alone_moments(one, t, shrink, out) for out in (classes.root, classes.own)]
    fitted = moments[0][0].at[where].add(_of_two(two, v, inverse, root)[0])
    mean, square = (
        x.at[where].add(y) for x, y in zip(moments[1], _of_two(two, v, inverse, classes.own[what]), strict=True)
    )
    return Group(
        one.at[where, what].add(member),
        fitted,
        mean,
        square,
        jnp.stack([none, jnp.sum(one), 0.5 * jnp.sum(two)]),
        one.at[where, what].add(lead),
        nowhere.at[where, what].add(follower),
        jnp.zeros(m, G.dtype).at[where].add(jnp.sum(jnp.where(disjoint, two, 0.0), axis=0)),
        top + jnp.log(total),
    )


def alone_moments(probability: Array, t: Array, shrink: Array, out: Array) -> tuple[Array, Array]:
    """E[w] and E[w^2] (m, K) of single effects w = out_c v."""
    effect = jnp.einsum("mci,cki->mck", t * shrink, out, precision=HIGHEST)
    spread = jnp.einsum("mci,cki->mck", shrink, out**2, precision=HIGHEST)
    mean = jnp.sum(probability[:, :, None] * effect, axis=1)
    return mean, jnp.sum(probability[:, :, None] * (effect**2 + spread), axis=1)


def _of_two(two: Array, v: Array, inverse: Array, out: Array) -> tuple[Array, Array]:
    """The same (q, K) of the second member of each ordered pair."""
    effect = jnp.einsum("abi,bki->abk", v, out, precision=HIGHEST)
    spread = jnp.einsum("bki,abij,bkj->abk", out, inverse, out, precision=HIGHEST)
    return jnp.sum(two[:, :, None] * effect, axis=0), jnp.sum(two[:, :, None] * (effect**2 + spread), axis=0)


def _candidates(
    G: Array,
    classes: EffectClasses,
    log_odds: Array,
    d: Array,
    b: Array,
    alone: Array,
    slots: tuple[Array, Array],
    q: int,
) -> Array:
    """(q,), the likeliest variants and classes, as variant * C + class."""
    score = alone - jnp.max(alone)
    for mean in slots:
        taken = jnp.matmul(G.T, jnp.matmul(G, mean, precision=HIGHEST), precision=HIGHEST)
        given = log_odds + whitened_effect(classes, b - taken, d)[2]
        score = jnp.maximum(score, given - jnp.max(given))
    return jax.lax.top_k(score.ravel(), q)[1]


def _inverse(S: Array) -> tuple[Array, Array]:
    """Inverse and log-determinant of (..., K, K), positive definite."""
    if S.shape[-1] == 1:
        return 1 / S, jnp.log(S[..., 0, 0])
    lower = jnp.linalg.cholesky(S)
    unit = jnp.broadcast_to(jnp.eye(S.shape[-1], dtype=S.dtype), S.shape)
    half = jax.scipy.linalg.solve_triangular(lower, unit, lower=True)
    diagonal = jnp.diagonal(lower, axis1=-2, axis2=-1)
    return jnp.einsum("...ji,...jl->...il", half, half, precision=HIGHEST), 2 * jnp.sum(jnp.log(diagonal), axis=-1)


def _labelled(correlation: Array, two: Array) -> tuple[Array, Array]:
    """Probabilities (q,) that a candidate is the first, or the second, of two; two: (q, q), each pair twice.

    The likeliest pair names the effects; another pair's members are named as fits that one's LD with it best.
    """
    a, b = jnp.unravel_index(jnp.argmax(two), two.shape)
    near_a, near_b = jnp.abs(correlation[:, a]), jnp.abs(correlation[:, b])
    straight = near_a[:, None] + near_b[None, :] - near_b[:, None] - near_a[None, :]
    weight = two * jnp.where(straight > 0, 1.0, jnp.where(straight < 0, 0.0, 0.5))
    return jnp.sum(weight, axis=1), jnp.sum(weight, axis=0)
