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

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from deepwas.errors import InputError

__all__ = ["EffectClasses", "SingleEffect", "effect_classes", "single_effect", "whitened_effect"]

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


def whitened_effect(classes: EffectClasses, b: Array, d: Array) -> tuple[Array, Array, Array]:
    """t (m, C, K), 1 / (1 + d a) (m, C, K) and the log Bayes factors (m, C), from b (m, K) and d (m,)."""
    t = jnp.einsum("cik,mk->mci", classes.project, b, precision=HIGHEST)
    shrink = 1 / (1 + d[:, None, None] * classes.gain[None])
    return t, shrink, 0.5 * jnp.sum(t * t * shrink + jnp.log(shrink), axis=2)


def single_effect(classes: EffectClasses, log_odds: Array, b: Array, d: Array) -> SingleEffect:
    """At most one effect in the block.  log_odds: (m, C), -inf where there can be none.  b: (m, K).  d: (m,)."""
    t, shrink, log_bayes = whitened_effect(classes, b, d)
    weight = log_odds + log_bayes
    top = jnp.maximum(jnp.max(weight), 0.0)
    scaled = jnp.exp(weight - top)
    total = jnp.exp(-top) + jnp.sum(scaled)
    probability = scaled / total
    mean = jnp.einsum("mci,cki->mk", probability[:, :, None] * t * shrink, classes.root, precision=HIGHEST)
    return SingleEffect(probability, mean, top + jnp.log(total))


def as_arrays(classes: EffectClasses, dtype: Any) -> EffectClasses:
    """The classes on the device."""
    return EffectClasses(*(jnp.asarray(np.asarray(x), dtype) for x in classes))


def normal_slab(variance: float, noise: float) -> EffectClasses:
    """One trait, one class: u ~ N(0, variance), in units of z-scores, beside noise sigma2."""
    one: NDArray[np.float64] = np.ones((1, 1, 1))
    return effect_classes(variance * one, noise * one[0])
