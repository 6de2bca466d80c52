"""e1^T log(T) e1 of the Lanczos matrices T that conjugate gradients leave behind, without decomposing them.

CG with step sizes alpha_i and direction updates beta_i has computed T = L diag(1 / alpha) L^T, L lower bidiagonal with
sqrt(beta) below its unit diagonal (Golub & Meurant 2010). Everything wanted of T follows from recurrences over the
steps, which run for all right-hand sides side by side, on any device.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["inverse_trace", "log_quadrature"]


def log_quadrature(alphas: Array, betas: Array) -> tuple[Array, Array]:
    """e1^T log(T) e1 and T_11 of each column.

    alphas, betas: (steps, ...) of CG, 0 for steps not taken. A column that took none has T = 1.

    log(T) = integral over all u of e^u [1 / (1 + e^u) - (T + e^u)^-1], by the trapezoid rule, whose error falls
    exponentially with the number of nodes; (T + e^u)^-1_11 is a continued fraction. The error is below 1e-7 (float32)
    or 1e-13 (float64) of |log| + 1 for eigenvalues between 1e-8 and 1e8.
    Source: Trefethen & Weideman 2014 (the rule); Golub & Meurant 2010 (T and its resolvent).
    """
    diagonal, squares = _tridiagonal(alphas, betas)
    dtype = alphas.dtype
    accuracy = 1e-8 if dtype == jnp.float32 else 1e-15
    reach = math.log(1e8 / accuracy)
    spacing = 2 * math.pi**2 / math.log(1 / accuracy) * 0.9
    count = 2 * math.ceil(reach / spacing) + 1
    nodes = spacing * (jnp.arange(count, dtype=dtype) - count // 2)
    shift = jnp.exp(nodes).reshape(-1, *[1] * (alphas.ndim - 1))

    def up(above: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        d, o = row
        return d[None, ...] - o[None, ...] / (above + shift), None

    # `above` + shift is the continued fraction from the last row up to the present one.
    last = jnp.broadcast_to(diagonal[-1][None, ...], (count, *diagonal.shape[1:]))
    first, _ = jax.lax.scan(up, last, (diagonal[:-1], squares), reverse=True)
    terms = shift * (first - 1) / ((1 + shift) * (first + shift))
    return spacing * jnp.sum(terms, axis=0), diagonal[0]


def inverse_trace(alphas: Array, betas: Array) -> Array:
    """tr(T^-1) of each column, which bounds 1 / (its smallest eigenvalue) from above."""

    def along(row: Array, coefficients: tuple[Array, Array]) -> tuple[Array, Array]:
        alpha, beta = coefficients
        return 1 + beta * row, alpha * row

    _, terms = jax.lax.scan(along, jnp.ones_like(alphas[0]), (alphas, betas))
    return jnp.sum(terms, axis=0)


def _tridiagonal(alphas: Array, betas: Array) -> tuple[Array, Array]:
    """Diagonal (steps, ...) of T, and the squares (steps - 1, ...) beside it; rows not taken are decoupled ones."""
    taken = alphas > 0
    inverse = jnp.where(taken, 1 / jnp.where(taken, alphas, 1), 0)
    carried = jnp.concatenate([jnp.zeros_like(alphas[:1]), (betas * inverse)[:-1]])
    diagonal = jnp.where(taken, inverse + carried, 1)
    coupled = taken[:-1] & taken[1:]
    return diagonal, jnp.where(coupled, (betas * inverse * inverse)[:-1], 0)
