"""The log density of one block's whitened z-scores by one batched conjugate-gradient solve.

B = noise I + G diag(c) G^T is nearly diagonal, because the z-scores live in the LD's eigenbasis. With D = diag(B), the
scaled matrix A = D^-1/2 B D^-1/2 has unit diagonal and a small condition number, and conjugate gradients (CG) on

    A X = [D^-1/2 y, e_1, ..., e_P],   e_p Rademacher signs,

with a step size per right-hand side, give everything at once:

- the quadratic form y^T B^-1 y;
- log|B| = sum log D_i + tr log A. The CG coefficients of a probe column are the Lanczos tridiagonal T of A started at
  that probe, so Gauss quadrature of the trace costs no further product with A. Since tr(A - I) = 0, each probe
  contributes k [e1^T log(T) e1 - (T_11 - 1)], unbiased and of much smaller variance;
- the gradient, with the diagonal as a control variate: with a = B^-1 y, d_p = D^-1/2 e_p, v_p = B^-1 D^1/2 e_p and
  g_j the columns of G, the gradient of the log density is

      d/dc_j   = ((g_j.a)^2 - sum_i G_ij^2 / D_i - mean_p (g_j.(v_p - d_p)) (g_j.d_p)) / 2
      d/dnoise = (a.a       - sum_i 1 / D_i      - mean_p (v_p - d_p).d_p) / 2

Sources: Ubaru, Chen & Saad 2017 (quadrature); Golub & Meurant 2010 (CG and Lanczos); Gardner et al. 2018 (batching).
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

__all__ = ["CGDiagnostics", "cg_log_density"]

_HIGHEST = jax.lax.Precision.HIGHEST


class CGDiagnostics(NamedTuple):
    """What a solve reports beside its value.

    residual: largest relative residual ||b - A x|| / ||b|| over the right-hand sides, by the recurrence of CG.
    standard_error: of log|B|; from the spread over probes, with the rounding and truncation error of the solve added.
    steps: CG steps taken.
    """

    residual: Array
    standard_error: Array
    steps: Array


class _Solve(NamedTuple):
    solution: Array  # (1 + P, k)
    diagonal: Array  # (k,) of B
    scale: Array  # (k,) D^-1/2
    value: Array
    diagnostics: CGDiagnostics


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def cg_log_density(
    y: Array, factor: Array, c: Array, noise: Array, real: Array, probes: Array, rtol: float, max_steps: int
) -> tuple[Array, CGDiagnostics]:
    """Log density, in nats, of y ~ N(0, B), B = noise I + G diag(c) G^T, estimated; constants included.

    y: (k,) whitened z-scores.  factor: (k, m), G.  c: (m,) >= 0, N times the effect variance.  noise: scalar > 0.
    real: (k,) 1 for eigen-directions, 0 for padding: padded rows of y and G must be 0, and contribute exactly 0.
    probes: (P, k) signs, P >= 2 (one probe has no standard error).  rtol, max_steps: when the solve stops.
    Cost O(P k m) a step; B is never formed.  Returns the value and `CGDiagnostics`; it has converged if
    residual <= rtol.  The value's own standard error is half that of log|B|.

    The gradient is the control-variate estimate of the module's heading, not the derivative of the solver's loop.
    The diagnostics count as constants: their gradient is 0.
    LD is data here: asking for the gradient with respect to `factor` is an error.
    """
    solve = _solve(y, factor, c, noise, real, probes, rtol, max_steps)
    return solve.value, solve.diagnostics


def _solve(
    y: Array, factor: Array, c: Array, noise: Array, real: Array, probes: Array, rtol: float, max_steps: int
) -> _Solve:
    diagonal = jnp.sum(factor * factor * c[None, :], axis=1) + noise * real + (1 - real)
    scale = jax.lax.rsqrt(diagonal)
    signs = probes * real[None, :]

    def apply(rows: Array) -> Array:
        scaled = rows * scale[None, :]
        inner = jnp.matmul(scaled, factor, precision=_HIGHEST) * c[None, :]
        outer = jnp.matmul(inner, factor.T, precision=_HIGHEST)
        return (outer + scaled * (noise * real + (1 - real))[None, :]) * scale[None, :]

    right = jnp.concatenate([(y * scale)[None, :], signs])
    solution, alphas, betas, residuals, steps = _batched_cg(apply, right, rtol, max_steps)

    k = jnp.sum(real)
    quadratic = jnp.sum(right[0] * solution[0])
    log_trace, ritz_min = _log_quadrature(alphas[:, 1:], betas[:, 1:], k)
    log_diagonal = jnp.sum(jnp.log(diagonal))
    log_det = log_diagonal + jnp.mean(log_trace)
    value = -0.5 * (k * math.log(2 * math.pi) + log_det + quadratic)

    count = log_trace.shape[0]
    spread = jnp.sum((log_trace - jnp.mean(log_trace)) ** 2) / (count * max(count - 1, 1))
    # An iterate of relative residual rho is off by at most rho^2 |b|^2 / lambda_min(A) in a quadratic form.
    norms = jnp.sum(right * right, axis=1)
    truncation = jnp.max(residuals**2 * norms) / ritz_min
    rounding = jnp.finfo(y.dtype).eps * (jnp.sum(jnp.abs(jnp.log(diagonal))) + quadratic + k)
    error = jnp.sqrt(spread + truncation**2 + (4 * rounding) ** 2)
    return _Solve(solution, diagonal, scale, value, CGDiagnostics(jnp.max(residuals), error, steps))


def _batched_cg(apply, right: Array, rtol: float, max_steps: int):
    """CG on all rows of `right` together, each with its own step sizes; a row that has converged is frozen.

    Returns the solution, the coefficients alpha and beta (max_steps, rows; NaN-free, 0 where frozen), the relative
    residuals and the number of steps. Frozen rows would otherwise divide 0 by 0.
    """
    norms = jnp.sum(right * right, axis=1)
    threshold = rtol**2 * norms
    rows = right.shape[0]
    empty = jnp.zeros((max_steps, rows), right.dtype)

    def going(state):
        step, _, _, _, squares, _, _ = state
        return (step < max_steps) & jnp.any(squares > threshold)

    def advance(state):
        step, x, r, p, squares, alphas, betas = state
        active = squares > threshold
        product = apply(p)
        curvature = jnp.sum(p * product, axis=1)
        usable = active & (curvature > 0)
        alpha = jnp.where(usable, squares / jnp.where(usable, curvature, 1), 0)
        x = x + alpha[:, None] * p
        r = r - alpha[:, None] * product
        fresh = jnp.where(usable, jnp.sum(r * r, axis=1), squares)
        beta = jnp.where(usable, fresh / jnp.where(usable, squares, 1), 0)
        p = jnp.where(usable[:, None], r + beta[:, None] * p, p)
        return step + 1, x, r, p, fresh, alphas.at[step].set(alpha), betas.at[step].set(beta)

    start = (jnp.zeros((), jnp.int32), jnp.zeros_like(right), right, right, norms, empty, empty)
    step, x, _, _, squares, alphas, betas = jax.lax.while_loop(going, advance, start)
    residuals = jnp.sqrt(squares / jnp.where(norms > 0, norms, 1))
    return x, alphas, betas, residuals, step


def _log_quadrature(alphas: Array, betas: Array, k: Array) -> tuple[Array, Array]:
    """Per probe k [e1^T log(T) e1 - (T_11 - 1)], and the smallest Ritz value of all probes.

    T has diagonal 1/alpha_i + beta_{i-1}/alpha_{i-1} and off-diagonal sqrt(beta_i)/alpha_i. Steps not taken leave rows
    of the identity, which are decoupled and add nothing.
    """
    alphas, betas = alphas.T, betas.T
    taken = alphas > 0
    inverse = jnp.where(taken, 1 / jnp.where(taken, alphas, 1), 0)
    carried = jnp.concatenate([jnp.zeros_like(alphas[:, :1]), (betas * inverse)[:, :-1]], axis=1)
    diagonal = jnp.where(taken, inverse + carried, 1)
    coupled = taken[:, :-1] & taken[:, 1:]
    off = jnp.where(coupled, jnp.sqrt(jnp.maximum(betas[:, :-1], 0)) * inverse[:, :-1], 0)
    tridiagonal = jax.vmap(lambda d, o: jnp.diag(d) + jnp.diag(o, 1) + jnp.diag(o, -1))(diagonal, off)
    ritz, vectors = jnp.linalg.eigh(tridiagonal)
    ritz = jnp.maximum(ritz, jnp.finfo(alphas.dtype).tiny)
    logs = jnp.sum(vectors[:, 0, :] ** 2 * jnp.log(ritz), axis=1)
    return k * (logs - (diagonal[:, 0] - 1)), jnp.min(ritz)


def _forward(y, factor, c, noise, real, probes, rtol, max_steps):
    if factor.perturbed:
        raise TypeError("the LD factor is data: no gradient with respect to it is defined")
    y, factor, c, noise, real, probes = (x.value for x in (y, factor, c, noise, real, probes))
    solve = _solve(y, factor, c, noise, real, probes, rtol, max_steps)
    unscaled = solve.solution * (solve.scale * real)[None, :]
    a = unscaled[0]
    plain = probes * (solve.scale * real)[None, :]
    excess = unscaled[1:] - plain
    projected = jnp.matmul(jnp.concatenate([a[None, :], plain, excess]), factor, precision=_HIGHEST)
    count = probes.shape[0]
    paired = jnp.mean(projected[1 : 1 + count] * projected[1 + count :], axis=0)
    exact = jnp.sum(factor * factor * (real / solve.diagonal)[:, None], axis=0)
    d_c = 0.5 * (projected[0] ** 2 - exact - paired)
    d_noise = 0.5 * (
        jnp.sum(a * a) - jnp.sum(real / solve.diagonal) - jnp.mean(jnp.sum(excess * plain, axis=1), axis=0)
    )
    return (solve.value, solve.diagnostics), (a, d_c, d_noise, factor, real, probes)


def _backward(rtol, max_steps, residuals, cotangents):
    a, d_c, d_noise, factor, real, probes = residuals
    cotangent = cotangents[0]
    if isinstance(cotangent, SymbolicZero):  # only the diagnostics were differentiated
        cotangent = jnp.zeros((), a.dtype)
    return (
        -cotangent * a,
        jnp.zeros_like(factor),
        cotangent * d_c,
        cotangent * d_noise,
        jnp.zeros_like(real),
        jnp.zeros_like(probes),
    )


cg_log_density.defvjp(_forward, _backward, symbolic_zeros=True)
