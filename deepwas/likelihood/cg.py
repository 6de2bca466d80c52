"""The log density of whitened z-scores by one batched conjugate-gradient solve, for many blocks and traits at once.

B = noise I + G diag(c) G^T is nearly diagonal, because the z-scores live in the LD's eigenbasis. It is preconditioned
by M = D + G_T diag(c_T) G_T^T: T holds the largest entries of c (none by default), and D is the diagonal of the rest,
so that M has B's diagonal. With the symmetric root h = (D^-1/2 M D^-1/2)^-1/2, the matrix

    A = h D^-1/2 B D^-1/2 h = I + h E h,    E of zero diagonal and without the entries T,

has a small condition number, and conjugate gradients (CG) on A X = [h D^-1/2 y, e_1, ..., e_P], e_p Rademacher signs,
with a step size per right-hand side, give everything at once:

- the quadratic form y^T B^-1 y;
- log|B| = log|M| + tr log A. The CG coefficients of a probe column are the Lanczos tridiagonal T of A started at that
  probe, so Gauss quadrature of the trace costs no further product with A. As tr(A - I) is known exactly, each probe
  contributes k [e1^T log(T) e1 - (T_11 - 1)] + tr(A - I), unbiased and of much smaller variance;
- the gradient, with M as a control variate: with a = B^-1 y, v_p = D^-1/2 h A^-1 e_p, d_p = D^-1/2 h e_p and g_j the
  columns of G, the gradient of the log density is

      d/dc_j   = ((g_j.a)^2 - g_j^T M^-1 g_j - mean_p (g_j.(v_p - d_p)) (g_j.d_p)) / 2
      d/dnoise = (a.a       - tr M^-1        - mean_p (v_p - d_p).d_p) / 2

  where of each term of the first mean, moreover, its regression on (g_j.d_p)^2 - g_j^T M^-1 g_j is taken off.
  Every product G^T of a direction is kept in the sum that makes up G^T of the solution, so the gradient costs no
  further product either: two passes over G for the squares on both sides, and two per step.

Sources: Ubaru, Chen & Saad 2017 (quadrature); Golub & Meurant 2010 (CG and Lanczos); Gardner et al. 2018 (batching,
low-rank preconditioner).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from deepwas.likelihood.factor import Factor
from deepwas.likelihood.products import Precision, column_squares, expand, project, row_squares
from deepwas.likelihood.quadrature import inverse_trace, log_quadrature

__all__ = ["CGDiagnostics", "batched_cg", "cg_log_densities", "cg_log_density", "controlled_mean"]

_matmul = partial(jnp.matmul, precision="highest")


class CGDiagnostics(NamedTuple):
    """What a solve reports beside its value.

    residual: largest relative residual ||b - A x|| / ||b|| over the right-hand sides, by the recurrence of CG, or with
        `verify` the true one, if that is larger. NaN if the input was.
    standard_error: of log|B|; from the spread over probes, with the rounding and truncation error of the solve added.
    steps: CG steps taken.
    gradient_error: expected length of the error of the gradient in c, from the spread over probes; with rounding and
        truncation.
    noise_error: standard error of the gradient in noise, likewise.
    """

    residual: Array
    standard_error: Array
    steps: Array
    gradient_error: Array
    noise_error: Array


class _Solve(NamedTuple):
    value: Array
    diagnostics: CGDiagnostics
    gradient: tuple[Array, Array, Array]  # in y, c and noise


def cg_log_density(
    y: Array,
    factor: Factor,
    c: Array,
    noise: Array,
    real: Array,
    probes: Array,
    rtol: float,
    max_steps: int,
    rank: int = 0,
    precision: Precision = "highest",
    verify: bool = False,
) -> tuple[Array, CGDiagnostics]:
    """`cg_log_densities` of one block and one trait.

    y: (k,).  factor: `Factor` (k, m).  c: (m,).  noise: scalar.  real: (k,).  probes: (P, k).  Returns scalars.
    """
    stacked = Factor(factor.values[None], factor.scale[None])
    value, found = cg_log_densities(
        y[None, None],
        stacked,
        c[None, None],
        jnp.reshape(noise, (1, 1)),
        real[None],
        probes[None],
        rtol,
        max_steps,
        rank,
        precision,
        verify,
    )
    return value[0, 0], CGDiagnostics(*(x[0, 0] for x in found))


@partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8, 9, 10))
def cg_log_densities(
    y: Array,
    factor: Factor,
    c: Array,
    noise: Array,
    real: Array,
    probes: Array,
    rtol: float,
    max_steps: int,
    rank: int = 0,
    precision: Precision = "highest",
    verify: bool = False,
) -> tuple[Array, CGDiagnostics]:
    """Log densities, in nats, of y ~ N(0, B), B = noise I + G diag(c) G^T, of X blocks and T traits, estimated.

    y: (X, T, k) whitened z-scores.  factor: `Factor` (X, k, m), G, shared by the traits: one pass over it serves all.
    c: (X, T, m) >= 0, N times the effect variance.  noise: (X, T) > 0.
    real: (X, k) 1 for eigen-directions, 0 for padding: padded rows of y and G must be 0, and contribute exactly 0.
    probes: (X, P, k) signs, P >= 2 (one probe has no standard error).
    rtol, max_steps: when the solve stops: all relative residuals at rtol, or max_steps >= 1; with rtol 0 always at
        max_steps.  A solve that is still above rtol says so in its residual.
    rank: entries of c in the preconditioner; for heavy-tailed c, where the diagonal alone needs many steps.
    precision: of the products with G, 'highest' (float32 in full) or 'default' (what the device does fastest).
    verify: compute the true residual at the end, for half a step more.

    Cost O(T P k m) a step; B is never formed.  Returns values (X, T), constants included, and `CGDiagnostics` (X, T).
    A value's own standard error is half that of log|B|.

    The gradient is the control-variate estimate of the module's heading, not the derivative of the solver's loop.
    The diagnostics count as constants: their gradient is 0.
    LD is data here: asking for the gradient with respect to `factor` is an error.
    """
    solve = _solve(y, factor, c, noise, real, probes, rtol, max_steps, rank, precision, verify)
    return solve.value, solve.diagnostics


class _Preconditioner(NamedTuple):
    """M in the scaling of D: D^-1/2 M D^-1/2 = I + basis diag(squares) basis^T.

    scale: (X, T, k), D^-1/2.  rest: (X, T, m), c without the entries in M.  basis: (X, T, k, r), orthonormal columns,
    and squares (X, T, r), or None for r = 0.  log_det: (X, T), log|M|.
    """

    scale: Array
    rest: Array
    basis: Array | None
    squares: Array | None
    log_det: Array

    def root(self, x: Array) -> Array:
        """h x: (X, k, T, C) -> the same."""
        if self.basis is None or self.squares is None:
            return x
        inner = jnp.einsum("xtkr,xktc->xtrc", self.basis, x, precision="highest")
        shrunk = (1 / jnp.sqrt(1 + self.squares) - 1)[..., None] * inner
        return x + jnp.einsum("xtkr,xtrc->xktc", self.basis, shrunk, precision="highest")


def _precondition(factor: Factor, c: Array, noise: Array, real: Array, rank: int) -> _Preconditioner:
    rest, chosen = c, None
    rank = min(rank, *factor.values.shape[-2:])
    if rank:
        top, where = jax.lax.top_k(c, rank)
        rest = jnp.put_along_axis(c, where, jnp.zeros_like(top), axis=-1, inplace=False)
        columns = jnp.take_along_axis(factor.values[:, None], where[:, :, None, :], axis=-1).astype(c.dtype)
        chosen = columns * factor.scale[:, None, :, None] * jnp.sqrt(jnp.maximum(top, 0))[:, :, None, :]
    diagonal = row_squares(factor, rest) + noise[..., None] * real[:, None] + (1 - real)[:, None]
    scale = jax.lax.rsqrt(diagonal)
    log_det = jnp.sum(jnp.log(diagonal), axis=-1)
    if chosen is None:
        return _Preconditioner(scale, rest, None, None, log_det)
    # By QR and the singular values of R: the Gram matrix would square the condition, beyond what float32 holds.
    left, right = _one_by_one(jnp.linalg.qr, chosen * scale[..., None])
    vectors, singular, _ = _one_by_one(partial(jnp.linalg.svd, full_matrices=False), right)
    squares = singular * singular
    log_det = log_det + jnp.sum(jnp.log1p(squares), axis=-1)
    return _Preconditioner(scale, rest, _matmul(left, vectors), squares, log_det)


def _one_by_one(decompose: Any, x: Array) -> tuple[Array, ...]:
    """A decomposition of each matrix (..., k, r): XLA's batched ones can wait for ever for the threads they run on."""
    found = jax.lax.map(decompose, x.reshape(-1, *x.shape[-2:]))
    return tuple(part.reshape(*x.shape[:-2], *part.shape[1:]) for part in found)


def _solve(
    y: Array,
    factor: Factor,
    c: Array,
    noise: Array,
    real: Array,
    probes: Array,
    rtol: float,
    max_steps: int,
    rank: int,
    precision: Precision,
    verify: bool,
    gradient: bool = False,
) -> _Solve:
    if max_steps < 1 or probes.shape[1] < 2:
        raise ValueError(f"at least 1 step and 2 probes are needed; got {max_steps} and {probes.shape[1]}.")
    blocks, traits, k = y.shape
    m, columns = c.shape[-1], 1 + probes.shape[1]
    M = _precondition(factor, c, noise, real, rank)
    scale = jnp.swapaxes(M.scale, 1, 2)[..., None]  # (X, k, T, 1)
    ridge = (noise[:, None, :] * real[:, :, None] + (1 - real)[:, :, None])[..., None]

    def forward(x: Array) -> tuple[Array, Array]:
        """D^-1/2 h x and its product with G, (X, T, C, m)."""
        scaled = M.root(x) * scale
        inner = project(scaled.reshape(blocks, k, -1), factor, precision)
        return scaled, inner.reshape(blocks, traits, -1, m)

    def backward(x: Array, scaled: Array, inner: Array) -> Array:
        """A x, from what `forward` returned for x (or for the sums that x is made of)."""
        weighted = (inner * M.rest[:, :, None, :]).reshape(blocks, -1, m)
        outer = expand(weighted, factor, precision).reshape(scaled.shape)
        product = (outer + ridge * scaled) * scale
        return product if M.basis is None else x + M.root(product - M.root(x))

    signs = jnp.swapaxes(probes * real[:, None], 1, 2)[:, :, None, :]
    right = jnp.concatenate(
        [
            M.root(jnp.swapaxes(y, 1, 2)[..., None] * scale),
            jnp.broadcast_to(signs, (blocks, k, traits, columns - 1)),
        ],
        axis=-1,
    )
    run = batched_cg(forward, backward, right, rtol, max_steps)
    norms = jnp.sum(right * right, axis=1)
    residuals = jnp.sqrt(run.squares / jnp.where(norms > 0, norms, 1))
    if verify:
        scaled = M.root(run.solution) * scale
        off = right - backward(run.solution, scaled, run.projected)
        true = jnp.sqrt(jnp.sum(off * off, axis=1) / jnp.where(norms > 0, norms, 1))
        residuals = jnp.maximum(residuals, true)

    size = jnp.sum(real, axis=1)[:, None]
    quadratic = jnp.sum(right[..., 0] * run.solution[..., 0], axis=1)
    alphas, betas = run.alphas[..., 1:], run.betas[..., 1:]
    logs, first = log_quadrature(alphas, betas)
    shift, low_rank = _trace_and_squares(M, factor, noise, real, precision)
    log_trace = size[..., None] * (logs - (first - 1)) + shift[..., None]
    mean_log_trace, spread = _mean_and_error(log_trace, axis=-1)
    value = -0.5 * (size * math.log(2 * math.pi) + M.log_det + mean_log_trace + quadratic)

    # An iterate of relative residual rho is off by at most rho^2 |b|^2 / lambda_min(A) in a quadratic form.
    slowest = jnp.max(inverse_trace(run.alphas, run.betas), axis=-1)
    truncation = jnp.max(residuals**2 * norms, axis=-1) * slowest
    rounding = jnp.finfo(y.dtype).eps * (jnp.sum(jnp.abs(jnp.log(M.scale**2)), axis=-1) + quadratic + size)
    error = jnp.sqrt(spread**2 + truncation**2 + (4 * rounding) ** 2)
    taken = jnp.max(jnp.sum(run.alphas > 0, axis=0), axis=-1)
    worst = jnp.max(jnp.where(_valid(c, noise)[..., None], residuals, jnp.nan), axis=-1)
    unknown = jnp.full_like(worst, jnp.nan)
    if not gradient:
        return _Solve(value, CGDiagnostics(worst, error, taken, unknown, unknown), (y, c, noise))

    inverse = real[:, None] * M.scale**2
    exact, trace = column_squares(factor, inverse), jnp.sum(inverse, axis=-1)
    if low_rank is not None:
        exact, trace = exact - low_rank[0], trace - low_rank[1]
    first, last = run.first[:, :, 1:], run.projected[:, :, 1:]
    paired, pair_error = controlled_mean(first * (last - first), first**2, exact[:, :, None])
    unscaled = M.root(run.solution) * scale
    plain = M.root(right[..., 1:]) * scale
    noise_paired, noise_pair_error = _mean_and_error(jnp.sum((unscaled[..., 1:] - plain) * plain, axis=1), axis=2)
    a = jnp.swapaxes(unscaled[..., 0], 1, 2) * real[:, None]
    data = run.projected[:, :, 0]
    d_c = 0.5 * (data**2 - exact - paired)
    d_noise = 0.5 * (jnp.sum(a * a, axis=-1) - trace - noise_paired)
    # By what share of its length in A's norm a solution can be off, and what depends on it as a square doubly.
    energy = jnp.sum(right * run.solution, axis=1)
    off = residuals * jnp.sqrt(norms * slowest[..., None] / jnp.where(energy > 0, energy, jnp.inf))
    slack = 2 * jnp.max(off, axis=-1) + 4 * jnp.finfo(y.dtype).eps
    gradient_error = jnp.sqrt(jnp.sum(pair_error**2, axis=-1) + slack**2 * jnp.sum(data**4, axis=-1))
    noise_error = jnp.sqrt(noise_pair_error**2 + slack**2 * (jnp.sum(a * a, axis=-1) + trace) ** 2)
    diagnostics = CGDiagnostics(worst, error, taken, 0.5 * gradient_error, 0.5 * noise_error)
    return _Solve(value, diagnostics, (-a, d_c, d_noise))


def _valid(c: Array, noise: Array) -> Array:
    """(X, T): whether it is a model. With a negative variance B may be positive definite, and no solver would tell."""
    return jnp.all(c >= 0, axis=-1) & (noise > 0)


def controlled_mean(x: Array, twin: Array, mean: Array) -> tuple[Array, Array]:
    """The mean of x (X, T, P, m) over the probes, and its standard error, with `twin` of known mean as control variate.

    What a probe says of B^-1 - M^-1 in a direction is nearly proportional to what it says of M^-1 there, whose mean is
    known. The slope is fitted for each probe on the others, so that the mean stays unbiased.
    """
    others = x.shape[2] - 1
    if others < 3:
        return _mean_and_error(x, axis=2)
    known = twin - mean

    def without(terms: Array) -> Array:
        """The sum over the other probes, for each probe."""
        return jnp.sum(terms, axis=2, keepdims=True) - terms

    rest = without(known)
    spread = without(known * known) - rest * rest / others
    together = without(x * known) - without(x) * rest / others
    varies = spread > jnp.finfo(x.dtype).eps * mean**2  # where all probes say the same there is nothing to fit
    return _mean_and_error(x - known * jnp.where(varies, together / jnp.where(varies, spread, 1), 0), axis=2)


def _mean_and_error(x: Array, axis: int) -> tuple[Array, Array]:
    """Mean over the probes, and its standard error."""
    count = x.shape[axis]
    mean = jnp.mean(x, axis=axis, keepdims=True)
    return jnp.squeeze(mean, axis), jnp.sqrt(jnp.sum((x - mean) ** 2, axis=axis) / (count * (count - 1)))


def _trace_and_squares(
    M: _Preconditioner, factor: Factor, noise: Array, real: Array, precision: Precision
) -> tuple[Array, tuple[Array, Array] | None]:
    """tr(A - I) (X, T), and the low-rank parts of diag(G^T M^-1 G) (X, T, m) and tr M^-1 (X, T), None for rank 0."""
    if M.basis is None or M.squares is None:
        return jnp.zeros_like(M.log_det), None
    blocks, traits, k, rank = M.basis.shape
    scaled = M.basis * M.scale[..., None]
    flat = jnp.moveaxis(scaled, 1, 2).reshape(blocks, k, -1)
    images = project(flat, factor, precision).reshape(blocks, traits, rank, -1)
    lengths = jnp.sum(real[:, None, :, None] * scaled**2, axis=2)
    share = M.squares / (1 + M.squares)
    energy = noise[..., None] * lengths + jnp.sum(M.rest[:, :, None, :] * images**2, axis=-1) - 1
    return -jnp.sum(share * energy, axis=-1), (
        jnp.sum(share[..., None] * images**2, axis=2),
        jnp.sum(share * lengths, axis=-1),
    )


class _Run(NamedTuple):
    """Conjugate gradients under way. R = T (1 + P) right-hand sides of each block, as (T, 1 + P)."""

    step: Array
    solution: Array  # (X, k, T, C)
    remainder: Array
    direction: Array
    squares: Array  # (X, T, C) of the remainder's length
    projected: Array  # (X, T, C, m), G^T D^-1/2 h of the solution
    first: Array  # the same of the right-hand sides
    alphas: Array  # (steps, X, T, C), 0 where frozen
    betas: Array


def batched_cg(forward: Any, backward: Any, right: Array, rtol: float, max_steps: int) -> _Run:
    """CG on all right-hand sides together, each with its own step sizes; one that has converged is frozen.

    A frozen one would otherwise divide 0 by 0. The first step stands outside the loop: its projection is needed again.
    """
    norms = jnp.sum(right * right, axis=1)
    threshold = rtol**2 * norms

    def advance(run: _Run, scaled: Array, inner: Array) -> _Run:
        active = run.squares > threshold
        product = backward(run.direction, scaled, inner)
        curvature = jnp.sum(run.direction * product, axis=1)
        usable = active & (curvature > 0)
        alpha = jnp.where(usable, run.squares / jnp.where(usable, curvature, 1), 0)
        solution = run.solution + alpha[:, None] * run.direction
        remainder = run.remainder - alpha[:, None] * product
        fresh = jnp.where(usable, jnp.sum(remainder * remainder, axis=1), run.squares)
        beta = jnp.where(usable, fresh / jnp.where(usable, run.squares, 1), 0)
        direction = jnp.where(usable[:, None], remainder + beta[:, None] * run.direction, run.direction)
        return run._replace(
            step=run.step + 1,
            solution=solution,
            remainder=remainder,
            direction=direction,
            squares=fresh,
            projected=run.projected + alpha[..., None] * inner,
            alphas=run.alphas.at[run.step].set(alpha),
            betas=run.betas.at[run.step].set(beta),
        )

    scaled, inner = forward(right)
    empty = jnp.zeros((max_steps, *norms.shape), right.dtype)
    start = _Run(
        jnp.zeros((), jnp.int32),
        jnp.zeros_like(right),
        right,
        right,
        norms,
        jnp.zeros_like(inner),
        inner,
        empty,
        empty,
    )
    run = advance(start, scaled, inner)
    if rtol == 0:
        return jax.lax.fori_loop(1, max_steps, lambda _, run: advance(run, *forward(run.direction)), run)

    def going(run: _Run) -> Array:
        return (run.step < max_steps) & jnp.any(run.squares > threshold)

    return jax.lax.while_loop(going, lambda run: advance(run, *forward(run.direction)), run)


def _forward(y, factor, c, noise, real, probes, rtol, max_steps, rank, precision, verify):
    if factor.values.perturbed or factor.scale.perturbed:
        raise TypeError("the LD factor is data: no gradient with respect to it is defined")
    y, c, noise, real, probes = (x.value for x in (y, c, noise, real, probes))
    factor = Factor(factor.values.value, factor.scale.value)
    solve = _solve(y, factor, c, noise, real, probes, rtol, max_steps, rank, precision, verify, gradient=True)
    return (solve.value, solve.diagnostics), solve.gradient


def _backward(rtol, max_steps, rank, precision, verify, residuals, cotangents):
    d_y, d_c, d_noise = residuals
    cotangent = cotangents[0]
    if isinstance(cotangent, SymbolicZero):  # only the diagnostics were differentiated
        cotangent = jnp.zeros_like(d_noise)
    return cotangent[..., None] * d_y, None, cotangent[..., None] * d_c, cotangent * d_noise, None, None


cg_log_densities.defvjp(_forward, _backward, symbolic_zeros=True)
