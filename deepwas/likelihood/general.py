"""The log-likelihood of z-scores when LD is any linear operator: only its products are used, no matrix is formed.

All m variants are scored and R has full rank. With c = N f, s = sqrt(c) and C = noise I + diag(s) R diag(s), (m, m),

    z ~ N(0, V),  V = N R diag(f) R + noise R
    log p(R^-1/2 z) = -1/2 [m log 2 pi + log|C| + z'V^-1 z],   z'V^-1 z = (z'R^-1 z - (s z)'C^-1 (s z)) / noise

which is the density that `LDBlock.from_correlation(R, eigenvalue_floor=0)` gives. Where products with the inverse
P = R^-1 are cheap instead (a sparse LD graphical model), with K = noise P + diag(c),

    log p = -1/2 [m log 2 pi + log|K| - log|P| + (P z)'K^-1 (P z)]

Both are estimated by conjugate gradients and Lanczos quadrature (`deepwas.likelihood.operator_density`), or computed
exactly by Cholesky once the matrix is formed, for few variants and as the check of the other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import solve_triangular
from jax.tree_util import Partial
from jax.typing import ArrayLike

from deepwas.errors import ConvergenceWarning, InputError
from deepwas.likelihood.api import SolveInfo
from deepwas.likelihood.exact import exact_log_density
from deepwas.likelihood.factor import Factor
from deepwas.likelihood.operator import PrecisionOperator, apply_product, is_operator, operator_form, traced_product
from deepwas.likelihood.operator_density import OperatorDiagnostics, Way, operator_density, operator_solve
from deepwas.likelihood.question import Question, check, default_rtol

__all__ = [
    "PrecisionOperator",
    "answer",
    "is_operator",
    "operator_log_likelihood",
    "operator_log_likelihood_and_grad",
    "solve_ld",
]

OperatorSolver = Literal["auto", "cholesky", "cg"]

MAX_STEPS = 1000
_DENSE_LIMIT = 512  # variants up to which 'auto' forms the matrix (2 MB), for an exact value
_NEARLY_ONE = 0.02  # off the diagonal of an inverse precision; estimates of P leave as much
_SPOTS = 8  # columns of an operator looked at before it is used


def operator_log_likelihood(
    operator: Any,
    z: ArrayLike,
    effect_variance: ArrayLike,
    *,
    sample_size: ArrayLike,
    noise: ArrayLike = 1.0,
    solver: OperatorSolver = "auto",
    probes: int = 16,
    key: Array | None = None,
    effect_mean: ArrayLike | None = None,
    info: bool = False,
    rtol: float | None = None,
    max_steps: int | None = None,
    z_solved: ArrayLike | None = None,
) -> Any:
    """Log-likelihood, in nats, of z-scores under LD given as a linear operator; constants included.

    Model: z ~ N(sqrt(N) R mu, N R diag(f) R + noise R), seen through R^-1/2, so that the value is that of
    `LDBlock.from_correlation(R, eigenvalue_floor=0)`.

    operator: R (m, m), a correlation matrix of full rank, as a real `cola.ops.LinearOperator` of JAX arrays in float32
    or float64 (Dense, Sparse, Kronecker, Diagonal, BlockDiag, a product, your own with a `matmat`); or R^-1 as a
    `PrecisionOperator`. Only its products with m x t arrays are used. It is data: it has no gradient.
    z: (m,).  effect_variance: (m,), f >= 0, per standardised genotype.  sample_size: N, people.  noise: sigma2 > 0.
    effect_mean: (m,), mu, or None for 0.
    solver: 'cg'; 'cholesky', exact, which forms the (m, m) matrix; 'auto', Cholesky up to m = 512.
    probes, key: of CG, random signs drawn from a fixed key by default.
    rtol, max_steps: of CG, by default 1e-4 in float32 and 1e-8 in float64, and 1,000. Its steps grow with the square
        root of a condition number: of R (for z_solved) and C, or of P and noise P + N diag(f).
    z_solved: (m,), R^-1 z, which does not depend on f: from `solve_ld`, once for many values. None: solved here. With
    a `PrecisionOperator` it is a product, and not asked for.

    Returns the value, or with info=True the value and a `SolveInfo`; its residual is the largest true one, and its
    gradient_error and noise_error are NaN, as no gradient is estimated. A solve that does not converge warns with
    `ConvergenceWarning`. Differentiable (jax.grad) in z, effect_variance, noise, sample_size and effect_mean, also
    inside jit. Raises InputError for wrong shapes, values that are not finite, negative variances, and an operator
    that is seen not to be symmetric with a diagonal of 1 (a few of its columns are looked at, the first time it is met
    outside jit).
    """
    question = Question(z, effect_variance, sample_size, noise, effect_mean, solver, probes, key, rtol, max_steps)
    return answer(operator, question, z_solved, gradient=False, info=info)


def operator_log_likelihood_and_grad(
    operator: Any,
    z: ArrayLike,
    effect_variance: ArrayLike,
    *,
    sample_size: ArrayLike,
    noise: ArrayLike = 1.0,
    solver: OperatorSolver = "auto",
    probes: int = 16,
    key: Array | None = None,
    effect_mean: ArrayLike | None = None,
    info: bool = False,
    rtol: float | None = None,
    max_steps: int | None = None,
    z_solved: ArrayLike | None = None,
    with_noise: bool = False,
) -> Any:
    """`operator_log_likelihood` and its gradient with respect to effect_variance, from one solve.

    Returns (value, gradient (m,)); with_noise=True appends the derivative with respect to noise; info=True appends the
    `SolveInfo`.
    """
    question = Question(z, effect_variance, sample_size, noise, effect_mean, solver, probes, key, rtol, max_steps)
    return answer(operator, question, z_solved, gradient=True, info=info, with_noise=with_noise)


def answer(
    operator: Any,
    question: Question,
    z_solved: ArrayLike | None,
    *,
    gradient: bool,
    info: bool,
    with_noise: bool = False,
) -> Any:
    """What `operator_log_likelihood` returns, or, with `gradient`, `operator_log_likelihood_and_grad`."""
    asked = _asked(operator, question, z_solved)
    derivatives: tuple[Any, ...] = ()
    if gradient:
        (value, found), (d_variance, d_noise) = _gradient(asked.way)(*asked.arguments)
        derivatives = (d_variance, d_noise) if with_noise else (d_variance,)
    else:
        value, found = _value(asked.way)(*asked.arguments)
    said = _said(asked.way, value, found)
    if not gradient and not info:
        return value
    return (value, *derivatives, said) if info else (value, *derivatives)


def solve_ld(operator: Any, z: ArrayLike, *, rtol: float | None = None, max_steps: int | None = None) -> Array:
    """R^-1 z (m,), for the `z_solved` of `operator_log_likelihood`.

    operator: R as a CoLA operator (m, m), solved by CG to the relative residual rtol (by default 1e-5 in float32 and
    1e-9 in float64), or a `PrecisionOperator`, for which it is a product.  z: (m,).
    A constant to jax.grad: the likelihood's own derivative in z accounts for it.
    A solve that does not converge warns with `ConvergenceWarning`.
    """
    precision = isinstance(operator, PrecisionOperator)
    linear = operator.operator if precision else operator
    m, dtype = operator_form(linear)
    check("z", z, (m,))
    z = jnp.asarray(z, dtype)
    products = {1: traced_product(linear, m, dtype, 1)}
    if precision:
        return apply_product(products, z[:, None])[:, 0]
    tolerance = default_rtol(dtype) / 10 if rtol is None else float(rtol)
    solution, residual, steps = _solver(tolerance, MAX_STEPS if max_steps is None else int(max_steps))(
        jax.lax.stop_gradient(products), jax.lax.stop_gradient(z)
    )
    # Rounding keeps the true residual a little above the recurrence's.
    _warn_if("R", residual <= 3 * tolerance, residual, steps)
    return solution


class _Asked(NamedTuple):
    way: Way
    arguments: tuple[Any, ...]


def _asked(operator: Any, question: Question, z_solved: ArrayLike | None) -> _Asked:
    precision = isinstance(operator, PrecisionOperator)
    linear = operator.operator if precision else operator
    m, dtype = operator_form(linear)
    if np.ndim(question.z) > 1:
        raise InputError(
            f"z has shape {np.shape(question.z)}: with LD given as an operator, one trait at a time: ({m},)."
        )
    question.check_arrays(m, m)
    if z_solved is not None:
        check("z_solved", z_solved, (m,))
        if precision:
            raise InputError("z_solved is not used with a PrecisionOperator, whose product with z it is; leave it out.")
    _look_at(operator, linear, m, dtype)
    tolerance, steps, probes = question.tolerance(dtype), question.steps(MAX_STEPS), question.probes
    chosen = question.solver if question.solver != "auto" else "cholesky" if m <= _DENSE_LIMIT else "cg"
    way = Way(chosen, precision, tolerance, steps)
    z, f, n, noise, mean = question.arrays(m, dtype)
    if chosen == "cholesky":
        return _Asked(way, (f, noise, z, n, mean, traced_product(linear, m, dtype, m)))
    products = {width: traced_product(linear, m, dtype, width) for width in (1 + probes, 1 + 2 * probes)}
    known: Any
    if precision:
        known = (operator.diagonal, operator.log_det)
    elif z_solved is not None:
        known = jnp.asarray(z_solved, dtype)
    else:
        known = solve_ld(linear, z, rtol=tolerance / 10, max_steps=steps)
    return _Asked(way, (f, noise, z, n, mean, products, known, question.signs((m, probes), dtype)))


def _look_at(operator: Any, linear: Any, m: int, dtype: Any) -> None:
    """Refuse an operator of which a few columns show that it is no correlation matrix (or the inverse of one)."""
    if operator in _LOOKED_AT:
        return
    spots = np.unique(np.linspace(0, m - 1, _SPOTS).astype(int))
    unit = jnp.zeros((m, len(spots)), dtype).at[spots, np.arange(len(spots))].set(1)
    products = {len(spots): traced_product(linear, m, dtype, len(spots))}
    inside = apply_product(products, unit)[spots]
    if isinstance(inside, jax.core.Tracer):
        return
    square = np.asarray(inside, np.float64)
    precision = isinstance(operator, PrecisionOperator)
    close = 1e-3 if dtype == np.float32 else 1e-6
    if not np.isfinite(square).all():
        raise InputError("the operator's products hold values that are not finite; LD must be finite.")
    if np.abs(square - square.T).max() > close * np.abs(square).max():
        raise InputError("the operator is not symmetric; LD is. CoLA's Sparse needs columns sorted within each row.")
    diagonal = np.diagonal(square)
    if precision:
        given = np.asarray(operator.diagonal)[spots]
        if not np.allclose(given, diagonal, rtol=close):
            raise InputError("diagonal is not the diagonal of the precision operator; leave it out to have it found.")
        variance = _variances(products, jnp.asarray(operator.diagonal), unit)[spots, np.arange(len(spots))]
        if np.abs(variance - 1).max() > _NEARLY_ONE:
            worst = int(np.argmax(np.abs(variance - 1)))
            raise InputError(
                f"the inverse of the precision operator has {variance[worst]:.4g} on its diagonal at variant "
                f"{spots[worst]}; R is a correlation matrix, with ones there. Scale P: D^1/2 P D^1/2, D = diag(P^-1)."
            )
    if not precision and np.abs(diagonal - 1).max() > close / 10:
        worst = int(np.argmax(np.abs(diagonal - 1)))
        raise InputError(
            f"the operator's diagonal is {diagonal[worst]:.6g} at variant {spots[worst]}; R is a correlation matrix, "
            "with ones there. Scale it: D^-1/2 R D^-1/2."
        )
    _LOOKED_AT[operator] = True


_LOOKED_AT: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_solve_compiled = jax.jit(operator_solve, static_argnums=(6, 7))


def _variances(products: dict[int, Partial], diagonal: Array, unit: Array) -> np.ndarray:
    """P^-1 `unit`; NaN, which no comparison refuses, where the solve fails: that of the likelihood will say so."""
    one = jnp.ones_like(diagonal)
    solved = _solve_compiled(products, diagonal, one, one, 0 * one, unit, 1e-4, MAX_STEPS)
    return np.where(np.asarray(solved.residuals)[None, :] < 1e-3, np.asarray(solved.solution), np.nan)


def _exact(way: Way, f: Array, noise: Array, z: Array, n: Array, mean: Array, product: Partial) -> Array:
    """By Cholesky: with R = A A', A^-1 z has the density of R^-1/2 z."""
    m = z.shape[0]
    lower = jnp.linalg.cholesky(product(jnp.eye(m, dtype=z.dtype)))
    if way.precision:
        factor = solve_triangular(lower, jnp.eye(m, dtype=z.dtype), lower=True)
        y = jnp.matmul(lower.T, z, precision="highest")
    else:
        factor = lower.T
        y = solve_triangular(lower, z, lower=True)
    y = y - jnp.sqrt(n) * jnp.matmul(factor, mean, precision="highest")
    return exact_log_density(y, Factor.of(factor), n * f, noise, jnp.ones_like(y))


@cache
def _value(way: Way) -> Callable[..., Any]:
    """The compiled value and diagnostics (None for Cholesky)."""
    if way.solver == "cholesky":
        return jax.jit(lambda *arguments: (_exact(way, *arguments), None))
    return jax.jit(partial(operator_density, way))


@cache
def _gradient(way: Way) -> Callable[..., Any]:
    """The same with the derivatives in (effect_variance, noise)."""
    return jax.jit(jax.value_and_grad(_value(way), argnums=(0, 1), has_aux=True))


@cache
def _solver(rtol: float, max_steps: int) -> Callable[..., Any]:
    """The compiled R^-1 z, its residual and steps."""

    def solve(products: dict[int, Partial], z: Array) -> tuple[Array, Array, Array]:
        one = jnp.ones_like(z)
        solved = operator_solve(products, one, one, one, 0 * one, z[:, None], rtol, max_steps)
        return solved.solution[:, 0], solved.residuals[0], solved.steps

    return jax.jit(solve)


def _said(way: Way, value: Array, found: OperatorDiagnostics | None) -> SolveInfo:
    """The SolveInfo; warns, now or when the traced program runs, if the solve did not converge."""
    finite = jnp.isfinite(value)
    if found is None:
        said = SolveInfo("cholesky", 0.0, 0.0, 0, finite)
        what = "Cholesky"
    else:
        # The true residual may exceed the recurrence's, which was held against rtol, by rounding.
        said = SolveInfo("cg", converged=(found.residual <= 1.1 * way.rtol) & finite, **found._asdict())
        what = "P or noise P + N diag(f)" if way.precision else "R or of its covariance"
    _warn_if(what, said.converged, said.residual, said.steps)
    return said


def _warn_if(what: str, converged: Any, residual: Any, steps: Any) -> None:
    if any(isinstance(x, jax.core.Tracer) for x in (converged, residual, steps)):
        jax.debug.callback(partial(_warn, what), converged, residual, steps)
    else:
        _warn(what, converged, residual, steps)


def _warn(what: str, converged: Any, residual: Any, steps: Any) -> None:
    if np.all(converged):
        return
    if what == "Cholesky":
        text = (
            "the LD operator or its covariance is not positive definite in floating point: the log-likelihood is NaN. "
            "Use float64, or R of full rank: (1 - s) R + s I."
        )
    else:
        text = (
            f"conjugate gradients with an LD operator ({what}) stopped after {np.max(steps)} steps at relative "
            f"residual {np.max(residual):.1e}: the value is not reliable. Raise max_steps, give a better z_solved, "
            "use float64, or solver='cholesky', which forms the matrix."
        )
    warnings.warn(text, ConvergenceWarning, stacklevel=4)
