"""One effect on K traits: its prior classes, and what a block's z-scores say of it.

A causal variant j has an effect u on the whitened z-scores, y = g_j u^T + E with E ~ matrix normal(0, I, C_n):
y (k, K), g_j the j-th column of the factor G (k, m), u = sqrt(N) times the effect in units of the trait, for each of K
traits. The prior of u is a mixture of classes c = 1 ... C, each N(0, V_c), where class c at variant j has the prior
odds o_jc = P(j has an effect of class c) / P(j has none). One trait with a normal slab is K = C = 1.

With b_j = g_j^T r for residuals r (k, K), d_j = g_j^T g_j, P = C_n^-1 and a root V_c = A_c A_c^T turned so that
A_c^T P A_c = diag(a_c), the effect is u = A_c v with v ~ N(0, I). Given b_j its coordinates are independent,
v ~ N(t / (1 + d_j a_c), 1 / (1 + d_j a_c)), t = A_c^T P b_j, and the log Bayes factor is

    log BF_jc = 1/2 sum_i [ t_i^2 / (1 + d_j a_ci) - log(1 + d_j a_ci) ].

Sources: sums of single effects, Wang et al. 2020; effects of several traits with one Bayes factor for each covariance,
Wakefield 2009 and Urbut et al. 2019.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from deepwas.errors import InputError

__all__ = [
    "ClassArrays",
    "EffectClasses",
    "SingleEffect",
    "alone_moments",
    "as_arrays",
    "by_rank",
    "effect_classes",
    "log_bayes_factors",
    "mean_effect",
    "normal_slab",
    "shrinkage",
    "single_effect",
    "single_effect_given",
    "take_classes",
    "whitened_effect",
]

HIGHEST = jax.lax.Precision.HIGHEST


class EffectClasses(NamedTuple):
    """The classes of an effect's prior, ready for use.

    root: (C, K, K), A_c.  gain: (C, K), a_c >= 0, 0 where the class has no such coordinate.
    project: (C, K, K), A_c^T P.
    own: (C, K, K), what v is read as where effects are reported: w = own_c v. By default that is u itself.
    traits: (C, K), 1 where the class acts on the trait by itself, else 0.
    """

    root: Any
    gain: Any
    project: Any
    own: Any
    traits: Any


class Run(NamedTuple):
    """A run of C' neighbouring classes, of n coordinates at most.

    project: (K, n, C').  gain: (n, C').  root: (n, C', K).  own: (n, a, C'), on the `a` traits that a class acts on,
    and onto: (a, C', K), 1 where that is trait k.
    """

    project: Any
    gain: Any
    root: Any
    own: Any
    onto: Any


class ClassArrays(NamedTuple):
    """The classes on the device, most of the coordinates that a class does not have left out.

    runs: in the classes' order; a new one begins where the number of coordinates passes a power of 2: each is another
    loop to compile.  project, root, own: (C, r, K), gain: (C, r), r coordinates at most, 0 where a class has fewer.
    traits: (C, K).  rank: (C,), how many coordinates each has; not on the device.
    """

    runs: tuple[Run, ...]
    project: Any
    gain: Any
    root: Any
    own: Any
    traits: Any
    rank: Any


class SingleEffect(NamedTuple):
    """The posterior of at most one effect in a block.

    probability: (m, C), of an effect of class c at variant j; what is missing to 1 is the probability of none.
    mean: (m, K), E[u_j].  log_evidence: log of (1 + the sum of all odds times Bayes factors).
    """

    probability: Array
    mean: Array
    log_evidence: Array


def effect_classes(covariances: ArrayLike, noise: ArrayLike, report: ArrayLike | None = None) -> EffectClasses:
    """Classes from V (C, K, K), of u in units of z-scores, and C_n (K, K); in float64, by eigendecomposition.

    report: (K, K), X: effects are reported as w = X u, and a class acts on trait k if w_k varies; the identity by
    default.

    Raises InputError where a matrix is not finite, symmetric and positive (semi-)definite.
    """
    V, C = np.asarray(covariances, np.float64), np.asarray(noise, np.float64)
    if V.ndim != 3 or V.shape[1:] != C.shape or C.ndim != 2 or C.shape[0] != C.shape[1]:
        raise InputError(f"covariances (C, K, K) and noise (K, K) are needed; got {V.shape} and {C.shape}.")
    for name, matrix, least in (("noise", C[None], 1e-10), ("covariances", V, -1e-8)):
        if not np.isfinite(matrix).all() or not np.allclose(matrix, np.swapaxes(matrix, 1, 2), rtol=1e-6, atol=1e-12):
            raise InputError(f"{name} must be finite and symmetric.")
        values = np.linalg.eigvalsh(matrix)
        if (values[:, 0] < least * np.maximum(values[:, -1], 1e-300)).any():
            raise InputError(
                f"{name} must be positive {'' if least > 0 else 'semi-'}definite; eigenvalue {values.min()}."
            )
    values, vectors = np.linalg.eigh(V)
    half = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
    precision = np.linalg.inv(C)
    gain, turn = np.linalg.eigh(np.swapaxes(half, 1, 2) @ precision @ half)
    root = half @ turn
    # Coordinates a class does not have are exactly nothing, not the rounding of nothing.
    gone = gain <= 1e-12 * np.maximum(gain[:, -1:], 1e-300)
    root[np.broadcast_to(gone[:, None, :], root.shape)] = 0.0
    own = root if report is None else np.asarray(report, np.float64) @ root
    spread = np.einsum("cki,cki->ck", own, own)
    traits = (spread > 1e-9 * np.maximum(spread.max(axis=1, keepdims=True), 1e-300)).astype(np.float64)
    return EffectClasses(root, np.where(gone, 0.0, gain), np.swapaxes(root, 1, 2) @ precision, own, traits)


def by_rank(classes: EffectClasses) -> NDArray[np.int64]:
    """(C,), an order of the classes with equally many coordinates side by side: few runs, for speed."""
    return np.argsort((np.asarray(classes.gain) > 0).sum(axis=1), kind="stable")


def take_classes(classes: EffectClasses, order: NDArray[np.int64]) -> EffectClasses:
    """The classes in another order."""
    return EffectClasses(*(np.asarray(x)[order] for x in classes))


def as_arrays(classes: EffectClasses, dtype: Any) -> ClassArrays:
    """The classes on the device."""
    root, gain, project, own, traits = (np.asarray(x, np.float64) for x in classes)
    # Eigenvalues ascend: the coordinates that there are stand last.
    rank = np.maximum((gain > 0).sum(axis=1), 1)
    edges = [0, *(np.flatnonzero(np.diff(np.ceil(np.log2(rank)))) + 1).tolist(), len(rank)]
    runs = []
    for first, last in pairwise(edges):
        here, n = slice(first, last), int(rank[first:last].max())
        acts = (own[here] != 0).any(axis=2)
        order = np.argsort(~acts, axis=1, kind="stable")[:, : int(acts.sum(axis=1).max())]
        rows = np.take_along_axis(own[here, :, -n:], order[:, :, None], axis=1)
        onto = np.eye(own.shape[1])[order]
        runs.append(
            Run(
                project[here, -n:].transpose(2, 1, 0),
                gain[here, -n:].T,
                root[here, :, -n:].transpose(2, 0, 1),
                rows.transpose(2, 1, 0),
                onto.transpose(1, 0, 2),
            )
        )
    r = int(rank.max())
    whole = ClassArrays(
        tuple(runs),
        project[:, -r:],
        gain[:, -r:],
        root[:, :, -r:].transpose(0, 2, 1),
        own[:, :, -r:].transpose(0, 2, 1),
        traits,
        rank,
    )
    found: ClassArrays = jax.device_put(jax.tree.map(lambda x: np.ascontiguousarray(x, dtype), whole))
    return found._replace(rank=rank)


def shrinkage(classes: ClassArrays, d: Array) -> tuple[tuple[Array, ...], Array]:
    """1 / (1 + d a), (m, n, C') of each run, and half the sum of its logarithms (m, C), from d (m,)."""
    shrink = tuple(1 / (1 + d[:, None, None] * run.gain[None]) for run in classes.runs)
    return shrink, jnp.concatenate([0.5 * jnp.sum(jnp.log(x), axis=1) for x in shrink], axis=1)


def whitened_effect(classes: ClassArrays, b: Array) -> tuple[Array, ...]:
    """t, (m, n, C') of each run, from b (m, K)."""
    return tuple(
        jnp.matmul(b, run.project.reshape(len(run.project), -1), precision=HIGHEST).reshape(-1, *run.gain.shape)
        for run in classes.runs
    )


def log_bayes_factors(t: tuple[Array, ...], shrink: tuple[Array, ...], half_log: Array) -> Array:
    """(m, C), from `whitened_effect` and `shrinkage`."""
    fit = [sum(x[:, i] ** 2 * s[:, i] for i in range(x.shape[1])) for x, s in zip(t, shrink, strict=True)]
    return 0.5 * jnp.concatenate(fit, axis=1) + half_log


def mean_effect(classes: ClassArrays, probability: Array, t: tuple[Array, ...], shrink: tuple[Array, ...]) -> Array:
    """E[u] (m, K) of single effects."""
    parts, first = [], 0
    for run, x, s in zip(classes.runs, t, shrink, strict=True):
        p = probability[:, None, first : first + x.shape[2]]
        root = run.root.reshape(-1, run.root.shape[2])
        parts.append(jnp.matmul((p * x * s).reshape(len(x), -1), root, precision=HIGHEST))
        first += x.shape[2]
    return sum(parts[1:], parts[0])


def alone_moments(
    classes: ClassArrays, probability: Array, t: tuple[Array, ...], shrink: tuple[Array, ...]
) -> tuple[Array, Array]:
    """E[w] and E[w^2] (m, K) of single effects w = own_c v."""
    mean = square = jnp.zeros((len(probability), classes.traits.shape[1]), probability.dtype)
    first = 0
    for run, x, s in zip(classes.runs, t, shrink, strict=True):
        p = probability[:, None, first : first + x.shape[2]]
        first += x.shape[2]
        n, acts, _ = run.own.shape
        if not acts:
            continue
        effect, spread = run.own[0][None] * (x * s)[:, 0, None], run.own[0][None] ** 2 * s[:, 0, None]
        for i in range(1, n):
            effect = effect + run.own[i][None] * (x * s)[:, i, None]
            spread = spread + run.own[i][None] ** 2 * s[:, i, None]
        onto = run.onto.reshape(-1, run.onto.shape[2])
        mean = mean + jnp.matmul((p * effect).reshape(len(x), -1), onto, precision=HIGHEST)
        square = square + jnp.matmul((p * (effect**2 + spread)).reshape(len(x), -1), onto, precision=HIGHEST)
    return mean, square


def single_effect(classes: ClassArrays, log_odds: Array, b: Array, d: Array) -> SingleEffect:
    """At most one effect in the block.  log_odds: (m, C), -inf where there can be none.  b: (m, K).  d: (m,)."""
    return single_effect_given(classes, log_odds, b, *shrinkage(classes, d))


def single_effect_given(
    classes: ClassArrays, log_odds: Array, b: Array, shrink: tuple[Array, ...], half_log: Array
) -> SingleEffect:
    """The same with `shrinkage` known."""
    t = whitened_effect(classes, b)
    weight = log_odds + log_bayes_factors(t, shrink, half_log)
    top = jnp.maximum(jnp.max(weight), 0.0)
    scaled = jnp.exp(weight - top)
    total = jnp.exp(-top) + jnp.sum(scaled)
    probability = scaled / total
    return SingleEffect(probability, mean_effect(classes, probability, t, shrink), top + jnp.log(total))


def normal_slab(variance: float, noise: float) -> EffectClasses:
    """One trait, one class: u ~ N(0, variance), in units of z-scores, beside noise sigma2."""
    one: NDArray[np.float64] = np.ones((1, 1, 1))
    return effect_classes(variance * one, noise * one[0])
