"""The log density of z-scores from products with an LD operator, by one batched conjugate-gradient solve.

With R (m, m), c = N f, s = sqrt(c), D = noise + c and C = noise I + diag(s) R diag(s), or with products with P = R^-1
and K = noise P + diag(c) instead, the density of R^-1/2 z, z ~ N(0, V), V = N R diag(f) R + noise R, is

    -1/2 [m log 2 pi + log|C| + (z'R^-1 z - (s z)'C^-1 (s z)) / noise]
    = -1/2 [m log 2 pi + log|K| - log|P| + (P z)'K^-1 (P z)]

and its gradient, with a = V^-1 z and x = R a = K^-1 P z,

    d/dc_j = (x_j^2 - (K^-1)_jj) / 2      d/dnoise = (a'x - tr C^-1) / 2      d/dz = -a
    noise tr C^-1 = m - sum_j c_j (K^-1)_jj

One batched CG, with the known diagonal as preconditioner, gives the quadratic form, the Lanczos quadrature of the log
determinant and the gradient. From R, K^-1 u = (s h + R (u - s h)) / D with h = C^-1 (s R u): nothing is divided by s,
so f may be 0. The diagonal of K^-1 is the mean of e * (K^-1 e) over random signs e. Where effects are small its noise
is that of LD itself; so the same estimate of a matrix like K^-1 whose diagonal is known (R D^-1, or R by solves with
P) is subtracted, times a slope fitted to the other probes, and so still unbiased. Relative errors of the diagonal with
16 probes, R of AR(1) with neighbours at 0.9: 0.67 without and 0.10 with it for c = 0.02, 0.47 and 0.18 for c = 0.2.

Sources: Ubaru, Chen & Saad 2017 (quadrature); Bekas, Kokiopoulou & Saad 2007 (diagonals).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.tree_util import Partial

from deepwas.likelihood.cg import batched_cg
from deepwas.likelihood.operator import apply_product
from deepwas.likelihood.quadrature import inverse_trace, log_quadrature

__all__ = ["OperatorDiagnostics", "Way", "operator_density", "operator_solve"]


class Way(NamedTuple):
    """How to solve; hashable, since each way is compiled once."""

    solver: str
    precision: bool
    rtol: float
    max_steps: int


class OperatorDiagnostics(NamedTuple):
    """What a solve reports beside its value.

    residual: largest true relative residual.  standard_error: of log|C|, or log|K| - log|P|; from the spread over
    probes, with the rounding and truncation error of the solve added.  steps: CG steps taken.
    gradient_error: expected length of the error of the gradient in f.  noise_error: standard error of that in noise.
    Both NaN where no gradient is asked for.
    """

    residual: Array
    standard_error: Array
    steps: Array
    gradient_error: Array
    noise_error: Array


class _Solved(NamedTuple):
    solution: Array  # (m, C)
    image: Array  # (m, C), operator @ (inner * solution)
    residuals: Array  # (C,), true and relative, in the scaled space
    norms: Array  # (C,), squared, of the scaled right-hand sides
    alphas: Array  # (max_steps, C)
    betas: Array
    steps: Array


def operator_solve(
    products: dict[int, Partial],
    diagonal: Array,
    outer: Array,
    inner: Array,
    ridge: Array,
    right: Array,
    rtol: float,
    max_steps: int,
) -> _Solved:
    """CG on M X = right (m, C), M = diag(outer) operator diag(inner) + diag(ridge), with `diagonal` as preconditioner.

    diagonal, outer, inner, ridge: (m,), such that M is symmetric.
    """
    scale = jax.lax.rsqrt(diagonal)[None, :, None]

    def forward(x: Array) -> tuple[Array, Array]:
        scaled = x * scale
        return scaled, apply_product(products, inner[:, None] * scaled[0]).T[None]

    def backward(x: Array, scaled: Array, image: Array) -> Array:
        return scale * (outer[None, :, None] * jnp.swapaxes(image, 1, 2) + ridge[None, :, None] * scaled)

    scaled_right = right[None] * scale
    run = batched_cg(forward, backward, scaled_right, rtol, max_steps)
    scaled = run.solution * scale
    # From the sum of the products that make up the solution: rounding shows, at no further product.
    off = scaled_right - backward(run.solution, scaled, run.projected)
    norms = jnp.sum(scaled_right**2, axis=1)[0]
    residuals = jnp.sqrt(jnp.sum(off * off, axis=1)[0] / jnp.where(norms > 0, norms, 1))
    steps = jnp.sum(run.alphas > 0, axis=0).max()
    return _Solved(scaled[0], run.projected[0].T, residuals, norms, run.alphas[:, 0], run.betas[:, 0], steps)


class _Density(NamedTuple):
    value: Array
    diagnostics: OperatorDiagnostics
    gradient: tuple[Array, ...]  # in f, noise, z, N and mean


def _from_correlation(
    f: Array,
    noise: Array,
    z: Array,
    n: Array,
    mean: Array,
    products: dict[int, Partial],
    z_solved: Array,
    signs: Array,
    rtol: float,
    max_steps: int,
    gradient: bool,
) -> _Density:
    """The density from products with R; z_solved (m,) = R^-1 z, signs (m, P)."""
    m, count = signs.shape
    s = jnp.sqrt(n * f)
    diagonal = noise + n * f
    shift = jnp.sqrt(n) * mean
    q = z_solved - shift
    both = apply_product(products, jnp.stack([shift, q], axis=1))
    centred = z - both[:, 0]
    off = centred - both[:, 1]

    right = [(s * centred)[:, None], jnp.sqrt(diagonal)[:, None] * signs]
    if gradient:
        mixed = apply_product(products, jnp.concatenate([signs, signs / diagonal[:, None]], axis=1))
        right.append(s[:, None] * mixed[:, :count])
    ridge = jnp.full_like(s, noise)
    solved = operator_solve(products, diagonal, s, s, ridge, jnp.concatenate(right, axis=1), rtol, max_steps)
    traces = _log_traces(solved, slice(1, 1 + count), m)
    log_det = jnp.sum(jnp.log(diagonal)) + jnp.mean(traces)
    h = solved.solution[:, 0]
    # z'R^-1 z to second order in what q is off by.
    whole = jnp.sum((centred + off) * q)
    quadratic = (whole - jnp.sum(s * centred * h)) / noise
    value = -0.5 * (m * math.log(2 * math.pi) + log_det + quadratic)

    worst = jnp.max(inverse_trace(solved.alphas, solved.betas))
    truncation = jnp.max(solved.residuals**2 * solved.norms) * worst * jnp.maximum(1, 1 / noise)
    squares = jnp.sum(centred * centred)
    gain = jnp.sqrt(jnp.sum(q * q) / jnp.where(squares > 0, squares, 1))
    truncation = truncation + jnp.sum(off * off) * gain / noise
    rounding = jnp.sum(jnp.abs(jnp.log(diagonal))) + jnp.sum(jnp.abs(centred * q)) / noise + m
    residual = jnp.maximum(jnp.max(solved.residuals), jnp.sqrt(jnp.sum(off * off) / jnp.where(squares > 0, squares, 1)))
    diagnostics = _without_gradient(residual, _error(traces, truncation, rounding), solved.steps)
    if not gradient:
        return _Density(value, diagnostics, ())

    a = (q - s * h) / noise
    x = (s * h + centred - solved.image[:, 0]) / diagonal
    plain = signs / jnp.sqrt(diagonal)[:, None]
    paired = jnp.sum((solved.solution[:, 1 : 1 + count] - plain) * plain, axis=0)
    trace = jnp.sum(1 / diagonal) + jnp.mean(paired)
    images = s[:, None] * solved.solution[:, 1 + count :] + mixed[:, :count] - solved.image[:, 1 + count :]
    controls = signs * mixed[:, count:] - (1 / diagonal)[:, None]
    terms = _cross_fitted(signs * images / diagonal[:, None], controls)
    d_c = 0.5 * (x * x - jnp.mean(terms, axis=1))
    d_noise = 0.5 * (jnp.sum(a * x) - trace)
    diagnostics = _with_gradient(diagnostics, n * terms, paired, n * x * x, jnp.sum(a * x) + trace, worst)
    d_n = jnp.sum(f * d_c) + jnp.sum(x * mean) / (2 * jnp.sqrt(n))
    return _Density(value, diagnostics, (n * d_c, d_noise, -a, d_n, jnp.sqrt(n) * x))


def _from_precision(
    f: Array,
    noise: Array,
    z: Array,
    n: Array,
    mean: Array,
    products: dict[int, Partial],
    known: tuple[Array, Array | None],
    signs: Array,
    rtol: float,
    max_steps: int,
    gradient: bool,
) -> _Density:
    """The density from products with P = R^-1; known: diag(P) (m,) and log|P|, or None; signs (m, P)."""
    m = signs.shape[0]
    own, log_det_own = known
    one = jnp.ones_like(own)
    c = n * f
    diagonal = noise * own + c
    q = apply_product(products, z[:, None])[:, 0] - jnp.sqrt(n) * mean
    right = jnp.concatenate([q[:, None], jnp.sqrt(diagonal)[:, None] * signs], axis=1)
    solved = operator_solve(products, diagonal, noise * one, one, c, right, rtol, max_steps)
    traces = _log_traces(solved, slice(1, None), m)
    log_diagonal = jnp.sum(jnp.log(diagonal))
    worst = jnp.max(inverse_trace(solved.alphas, solved.betas))
    truncation = jnp.max(solved.residuals**2 * solved.norms) * worst
    residual, steps = jnp.max(solved.residuals), solved.steps
    if log_det_own is None or gradient:
        # With the same signs: what the two matrices share cancels.
        alone = operator_solve(products, own, one, one, 0 * one, jnp.sqrt(own)[:, None] * signs, rtol, max_steps)
        if log_det_own is None:
            traces = traces - _log_traces(alone, slice(None), m)
            log_diagonal = jnp.sum(jnp.log(diagonal / own))
            slow = jnp.max(inverse_trace(alone.alphas, alone.betas))
            truncation = truncation + jnp.max(alone.residuals**2 * alone.norms) * slow
        residual = jnp.maximum(residual, jnp.max(alone.residuals))
        steps = jnp.maximum(steps, alone.steps)
    if log_det_own is not None:
        log_diagonal = log_diagonal - log_det_own
    log_det = log_diagonal + jnp.mean(traces)
    x = solved.solution[:, 0]
    quadratic = jnp.sum(q * x)
    value = -0.5 * (m * math.log(2 * math.pi) + log_det + quadratic)
    rounding = jnp.sum(jnp.abs(jnp.log(diagonal))) + quadratic + m
    diagnostics = _without_gradient(residual, _error(traces, truncation, rounding), steps)
    if not gradient:
        return _Density(value, diagnostics, ())

    plain = signs / jnp.sqrt(diagonal)[:, None]
    controls = signs * alone.solution / jnp.sqrt(own)[:, None] - 1
    terms = 1 / diagonal[:, None] + _cross_fitted((solved.solution[:, 1:] - plain) * plain, controls)
    traces = (m - jnp.sum(c[:, None] * terms, axis=0)) / noise
    squares = jnp.sum(x * solved.image[:, 0])
    d_c = 0.5 * (x * x - jnp.mean(terms, axis=1))
    d_noise = 0.5 * (squares - jnp.mean(traces))
    diagnostics = _with_gradient(diagnostics, n * terms, traces, n * x * x, squares + jnp.mean(traces), worst)
    d_n = jnp.sum(f * d_c) + jnp.sum(x * mean) / (2 * jnp.sqrt(n))
    return _Density(value, diagnostics, (n * d_c, d_noise, -solved.image[:, 0], d_n, jnp.sqrt(n) * x))


def _log_traces(solved: _Solved, columns: slice, m: int) -> Array:
    """Per probe (P,), an unbiased estimate of tr log of the scaled matrix, whose trace is known to be m."""
    logs, first = log_quadrature(solved.alphas[:, columns], solved.betas[:, columns])
    return m * (logs - (first - 1))


def _spread(x: Array) -> Array:
    """Standard error of the mean over the last axis, the probes."""
    count = x.shape[-1]
    squares = jnp.sum((x - jnp.mean(x, axis=-1, keepdims=True)) ** 2, axis=-1)
    return jnp.sqrt(squares / (count * (count - 1)))


def _error(traces: Array, truncation: Array, rounding: Array) -> Array:
    return jnp.sqrt(_spread(traces) ** 2 + truncation**2 + (4 * jnp.finfo(traces.dtype).eps * rounding) ** 2)


def _without_gradient(residual: Array, error: Array, steps: Array) -> OperatorDiagnostics:
    unknown = jnp.full_like(error, jnp.nan)
    return OperatorDiagnostics(residual, error, steps, unknown, unknown)


def _with_gradient(
    found: OperatorDiagnostics, terms: Array, paired: Array, squares: Array, size: Array, worst: Array
) -> OperatorDiagnostics:
    """Errors of the halves of squares (m,) - mean of terms (m, P) and of something of `size` less the mean of paired.

    worst: bounds 1 / (the smallest eigenvalue), by which a residual can grow into an error.
    """
    slack = 2 * found.residual * worst + 4 * jnp.finfo(terms.dtype).eps
    of_terms = jnp.sqrt(jnp.sum(_spread(terms) ** 2) + slack**2 * jnp.sum(squares**2))
    of_paired = jnp.sqrt(_spread(paired) ** 2 + (slack * size) ** 2)
    return found._replace(gradient_error=0.5 * of_terms, noise_error=0.5 * of_paired)


def _cross_fitted(samples: Array, controls: Array) -> Array:
    """Samples (m, P) less a slope times controls (m, P), whose mean is known to be 0; the mean over probes is wanted.

    A probe's slope, one per variant, is fitted to the other probes, so that it is independent of its control. With
    few probes it leans on the slope of all variants together, as if on three more probes.
    """
    count = samples.shape[1]
    product, square = samples * controls, controls * controls

    def others(x: Array, axis: int) -> Array:
        return jnp.sum(x, axis=axis, keepdims=True) - x

    total, squares = jnp.sum(product, axis=0, keepdims=True), jnp.sum(square, axis=0, keepdims=True)
    total, squares = others(total, 1), others(squares, 1)
    common = jnp.where(squares > 0, total / jnp.where(squares > 0, squares, 1), 0)
    weight = 3 * squares / (samples.shape[0] * (count - 1))
    base = others(square, 1) + weight
    slope = (others(product, 1) + weight * common) / jnp.where(base > 0, base, 1)
    return samples - slope * controls


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def operator_density(
    way: Way,
    f: Array,
    noise: Array,
    z: Array,
    n: Array,
    mean: Array,
    products: Any,
    known: Any,
    signs: Array,
) -> tuple[Array, OperatorDiagnostics]:
    found = _estimate(way, f, noise, z, n, mean, products, known, signs, False)
    return found.value, found.diagnostics


def _estimate(way: Way, *arguments: Any) -> _Density:
    estimate: Callable[..., _Density] = _from_precision if way.precision else _from_correlation
    return estimate(*arguments[:-1], way.rtol, way.max_steps, arguments[-1])


def _forward(way, f, noise, z, n, mean, products, known, signs):
    _refuse_perturbed(products)
    plain = jax.tree.map(lambda x: x.value, (f, noise, z, n, mean, products, known, signs), is_leaf=_is_primal)
    found = _estimate(way, *plain, True)
    return (found.value, found.diagnostics), found.gradient


def _backward(way, gradient, cotangents):
    cotangent = cotangents[0]
    if isinstance(cotangent, SymbolicZero):  # only the diagnostics were differentiated
        cotangent = jnp.zeros_like(gradient[1])
    return (*(cotangent * g for g in gradient), None, None, None)


operator_density.defvjp(_forward, _backward, symbolic_zeros=True)


def _is_primal(x: Any) -> bool:
    return hasattr(x, "perturbed")


def _refuse_perturbed(products: Any) -> None:
    if any(x.perturbed for x in jax.tree.leaves(products, is_leaf=_is_primal)):
        raise TypeError("the LD operator is data: no gradient with respect to it is defined")
