"""The exact log density of one block's whitened z-scores, by Cholesky factorisation of its k x k covariance.

It is the oracle of every other solver, and the fastest one for small k.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

from deepwas.likelihood.factor import Factor

__all__ = ["exact_log_density"]

_HIGHEST = jax.lax.Precision.HIGHEST


@jax.custom_vjp
def exact_log_density(y: Array, factor: Factor, c: Array, noise: Array, real: Array) -> Array:
    """Log density, in nats, of y ~ N(0, B), B = noise I + G diag(c) G^T, constants included.

    y: (k,) whitened z-scores.  factor: `Factor` (k, m), G.  c: (m,) >= 0, N times the effect variance.
    noise: scalar > 0.
    real: (k,) 1 for eigen-directions, 0 for padding: padded rows of y and G must be 0, and contribute exactly 0.
    Cost k^2 m + k^3/3, gradient another k^2 m.  NaN if B is not positive definite in floating point.

    Gradients (custom, with a = B^-1 y and g_j the columns of G):
        d/dc_j = ((g_j.a)^2 - g_j.B^-1 g_j) / 2;   d/dnoise = (a.a - tr B^-1) / 2;   d/dy = -a.
    LD is data here: asking for the gradient with respect to `factor` is an error.
    """
    value, _ = _solve(y, factor.decoded(), c, noise, real)
    return value


def _solve(y: Array, factor: Array, c: Array, noise: Array, real: Array) -> tuple[Array, tuple[Array, Array]]:
    covariance = jnp.matmul(factor * c[None, :], factor.T, precision=_HIGHEST)
    covariance = covariance + jnp.diag(noise * real + (1 - real))
    lower = jnp.linalg.cholesky(covariance)
    half = solve_triangular(lower, y, lower=True)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(lower)))
    value = -0.5 * (jnp.sum(real) * math.log(2 * math.pi) + log_det + jnp.sum(half * half))
    return value, (lower, half)


def _forward(y, factor, c, noise, real):
    if factor.values.perturbed or factor.scale.perturbed:
        raise TypeError("the LD factor is data: no gradient with respect to it is defined")
    y, c, noise, real = (x.value for x in (y, c, noise, real))
    G = Factor(factor.values.value, factor.scale.value).decoded()
    value, (lower, half) = _solve(y, G, c, noise, real)
    a = solve_triangular(lower, half, lower=True, trans="T")
    inner = solve_triangular(lower, G, lower=True)
    inverse_root = solve_triangular(lower, jnp.diag(real), lower=True)
    projected = jnp.matmul(a, G, precision=_HIGHEST)
    d_c = 0.5 * (projected**2 - jnp.sum(inner * inner, axis=0))
    d_noise = 0.5 * (jnp.sum(a * a) - jnp.sum(inverse_root**2))
    return value, (a, d_c, d_noise)


def _backward(residuals, cotangent):
    a, d_c, d_noise = residuals
    return -cotangent * a, None, cotangent * d_c, cotangent * d_noise, None


exact_log_density.defvjp(_forward, _backward, symbolic_zeros=True)
