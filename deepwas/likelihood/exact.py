"""The exact log density of one block's whitened z-scores, by Cholesky factorisation of its k x k covariance.

It is the oracle of every other solver, and the fastest one for small k.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.scipy.linalg import solve_triangular

from deepwas.likelihood.factor import Factor

__all__ = ["exact_log_density", "exact_with_rounding"]

_HIGHEST = jax.lax.Precision.HIGHEST


def exact_log_density(y: Array, factor: Factor, c: Array, noise: Array, real: Array) -> Array:
    """Log density, in nats, of y ~ N(0, B), B = noise I + G diag(c) G^T, constants included.

    y: (k,) whitened z-scores.  factor: `Factor` (k, m), G.  c: (m,) >= 0, N times the effect variance.
    noise: scalar > 0.
    real: (k,) 1 for eigen-directions, 0 for padding: padded rows of y and G must be 0, and contribute exactly 0.
    Cost k^2 m + k^3/3, gradient another k^2 m.  NaN if B is not positive definite in floating point, and for
    negative c or noise <= 0.

    Gradients (custom, with a = B^-1 y and g_j the columns of G):
        d/dc_j = ((g_j.a)^2 - g_j.B^-1 g_j) / 2;   d/dnoise = (a.a - tr B^-1) / 2;   d/dy = -a.
    LD is data here: asking for the gradient with respect to `factor` is an error.
    """
    return exact_with_rounding(y, factor, c, noise, real)[0]


@jax.custom_vjp
def exact_with_rounding(y: Array, factor: Factor, c: Array, noise: Array, real: Array) -> tuple[Array, Array]:
    """`exact_log_density`, and how far rounding is likely to have moved it, in nats; the latter counts as a constant.

    To first order log|B| moves by tr(B^-1 dB) and the quadratic form by a^T dB a, with rounding errors dB of eps B. In
    float32 that is visible where N f reaches 1e4 or so.
    """
    value, rounding, _ = _solve(y, factor.decoded(), c, noise, real)
    return value, rounding


def _solve(y: Array, factor: Array, c: Array, noise: Array, real: Array) -> tuple[Array, Array, tuple[Array, Array]]:
    covariance = jnp.matmul(factor * c[None, :], factor.T, precision=_HIGHEST)
    covariance = covariance + jnp.diag(noise * real + (1 - real))
    lower = jnp.linalg.cholesky(covariance)
    half = solve_triangular(lower, y, lower=True)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(lower)))
    quadratic = jnp.sum(half * half)
    value = -0.5 * (jnp.sum(real) * math.log(2 * math.pi) + log_det + quadratic)
    valid = jnp.all(c >= 0) & (noise > 0)
    share = jnp.diagonal(covariance) / jnp.diagonal(lower) ** 2
    rounding = 0.5 * jnp.finfo(y.dtype).eps * (jnp.sum(share) + quadratic * jnp.max(share))
    return jnp.where(valid, value, jnp.nan), rounding, (lower, half)


def _forward(y, factor, c, noise, real):
    if factor.values.perturbed or factor.scale.perturbed:
        raise TypeError("the LD factor is data: no gradient with respect to it is defined")
    y, c, noise, real = (x.value for x in (y, c, noise, real))
    G = Factor(factor.values.value, factor.scale.value).decoded()
    value, rounding, (lower, half) = _solve(y, G, c, noise, real)
    a = solve_triangular(lower, half, lower=True, trans="T")
    inner = solve_triangular(lower, G, lower=True)
    inverse_root = solve_triangular(lower, jnp.diag(real), lower=True)
    projected = jnp.matmul(a, G, precision=_HIGHEST)
    d_c = 0.5 * (projected**2 - jnp.sum(inner * inner, axis=0))
    d_noise = 0.5 * (jnp.sum(a * a) - jnp.sum(inverse_root**2))
    return (value, rounding), (a, d_c, d_noise)


def _backward(residuals, cotangents):
    a, d_c, d_noise = residuals
    cotangent = cotangents[0]
    if isinstance(cotangent, SymbolicZero):  # only the rounding was differentiated
        cotangent = jnp.zeros_like(d_noise)
    return -cotangent * a, None, cotangent * d_c, cotangent * d_noise, None


exact_with_rounding.defvjp(_forward, _backward, symbolic_zeros=True)
