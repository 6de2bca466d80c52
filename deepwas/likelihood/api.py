"""The likelihood of one LD block, checked and dispatched: what the Python API exposes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from deepwas.errors import ConvergenceWarning, InputError
from deepwas.ld.block import LDBlock
from deepwas.likelihood.cg import CGDiagnostics, cg_log_density
from deepwas.likelihood.exact import exact_log_density

__all__ = ["SolveInfo", "choose_solver", "log_likelihood", "log_likelihood_and_grad"]

Solver = Literal["auto", "cholesky", "cg"]

_HIGHEST = jax.lax.Precision.HIGHEST
_EXPECTED_STEPS = 8
MAX_STEPS = 100


class SolveInfo(NamedTuple):
    """How a value was found.

    solver: 'cholesky' or 'cg'.
    residual: largest relative residual over the right-hand sides; 0 for Cholesky.
    standard_error: of log|B| (the log-likelihood's is half of it); 0 for Cholesky.
    steps: CG steps taken; 0 for Cholesky.
    converged: whether the tolerance asked for was reached (and, for Cholesky, the covariance was positive definite).
    """

    solver: str
    residual: Any
    standard_error: Any
    steps: Any
    converged: Any


def choose_solver(k: int, m: int, probes: int, steps: int = _EXPECTED_STEPS) -> Literal["cholesky", "cg"]:
    """The solver that takes fewer floating-point operations for a value and gradient.

    Cholesky: forming B and the triangular solve 3 k^2 m, factorisation and inverse k^3.
    CG: 4 (probes + 1) k m a step, and as much as one more step for the gradient.
    """
    cholesky = 3 * k * k * m + k**3
    cg = 4 * (probes + 1) * k * m * (steps + 1)
    return "cholesky" if cholesky <= cg else "cg"


def default_rtol(dtype: Any) -> float:
    """The tolerance at which the truncation error of a value is far below its probe error, reachable in `dtype`."""
    return 1e-8 if np.dtype(dtype).itemsize >= 8 else 1e-4


def log_likelihood(
    block: LDBlock,
    z: ArrayLike,
    effect_variance: ArrayLike,
    *,
    sample_size: ArrayLike,
    noise: ArrayLike = 1.0,
    solver: Solver = "auto",
    probes: int = 16,
    key: Array | None = None,
    effect_mean: ArrayLike | None = None,
    info: bool = False,
    rtol: float | None = None,
    max_steps: int = MAX_STEPS,
) -> Any:
    """Log-likelihood, in nats, of one LD block's z-scores; constants included.

    Model: z_S ~ N(sqrt(N) R_S: mu, N R_S: diag(f) R_:S + noise R_SS), seen through the block's whitener:
    y = W z_S ~ N(sqrt(N) G mu, noise I + N G diag(f) G^T), of length k.

    block: `LDBlock`.  z: (s,) z-scores of the scored variants.  effect_variance: (m,), f >= 0, variance of the effect
    of one standard deviation of genotype, in units of the trait's variance.  sample_size: N, people.  noise: sigma2 >
    0, 1 when GWAS and LD panel are perfect.  effect_mean: (m,), mu, or None for 0.
    solver: 'cholesky' (exact), 'cg' (estimated with `probes` random signs drawn from `key`; by default from a fixed
    key, so that values change smoothly with the parameters), or 'auto', whichever takes fewer operations.
    rtol, max_steps: of CG; by default 1e-4 in float32 and 1e-8 in float64, and 100.

    Returns the value, or with info=True the value and a `SolveInfo`. A solve that does not converge warns with
    `ConvergenceWarning`. Differentiable (jax.grad) in z, effect_variance, noise, sample_size and effect_mean; can be
    traced by jit and vmap. Raises InputError for wrong shapes, negative variances and values that are not finite.

    Sources: Amin, Potapczynski & Wilson 2025 for the full likelihood of a learned prior; `deepwas.likelihood.cg`.
    """
    function, arguments, chosen = _prepared(
        block, z, effect_variance, sample_size, noise, solver, probes, key, effect_mean, rtol, max_steps
    )
    value, found = function(*arguments)
    said = _said(chosen, value, found, rtol, block)
    return (value, said) if info else value


def log_likelihood_and_grad(
    block: LDBlock,
    z: ArrayLike,
    effect_variance: ArrayLike,
    *,
    sample_size: ArrayLike,
    noise: ArrayLike = 1.0,
    solver: Solver = "auto",
    probes: int = 16,
    key: Array | None = None,
    effect_mean: ArrayLike | None = None,
    info: bool = False,
    rtol: float | None = None,
    max_steps: int = MAX_STEPS,
    with_noise: bool = False,
) -> Any:
    """`log_likelihood` and its gradient with respect to effect_variance, from one solve.

    Arguments as for `log_likelihood`. Returns (value, gradient (m,)); with_noise=True appends the derivative with
    respect to noise; info=True appends the `SolveInfo`.
    """
    function, arguments, chosen = _prepared(
        block, z, effect_variance, sample_size, noise, solver, probes, key, effect_mean, rtol, max_steps
    )
    (value, found), (d_variance, d_noise) = _gradient_of(function)(*arguments)
    said = _said(chosen, value, found, rtol, block)
    return (value, d_variance, *([d_noise] if with_noise else []), *([said] if info else []))


def _prepared(
    block: LDBlock,
    z: ArrayLike,
    effect_variance: ArrayLike,
    sample_size: ArrayLike,
    noise: ArrayLike,
    solver: Solver,
    probes: int,
    key: Array | None,
    effect_mean: ArrayLike | None,
    rtol: float | None,
    max_steps: int,
) -> tuple[Callable[..., Any], tuple[Any, ...], str]:
    """Checked arguments, and the compiled function that takes them."""
    if solver not in ("auto", "cholesky", "cg"):
        raise InputError(f"solver is {solver!r}; give 'auto', 'cholesky' or 'cg'.")
    if probes < 2:
        raise InputError(f"probes is {probes}; at least 2 are needed for a standard error.")
    _check("z", z, (block.s,))
    _check("effect_variance", effect_variance, (block.m,), minimum=0)
    _check("sample_size", sample_size, (), above=0)
    _check("noise", noise, (), above=0)
    if effect_mean is not None:
        _check("effect_mean", effect_mean, (block.m,))
    chosen = choose_solver(block.k, block.m, probes) if solver == "auto" else solver
    dtype = block.device_factor.dtype
    f, n, sigma2 = (jnp.asarray(x, dtype) for x in (effect_variance, sample_size, noise))
    mean = jnp.zeros((block.m,), dtype) if effect_mean is None else jnp.asarray(effect_mean, dtype)
    arguments = (f, sigma2, jnp.asarray(z, dtype), n, mean, block.device_whitener, block.device_factor)
    if chosen == "cholesky":
        return _exact, arguments, chosen
    start = jax.random.key(0) if key is None else key
    signs = jax.random.rademacher(start, (probes, block.k), dtype)
    tolerance = default_rtol(dtype) if rtol is None else float(rtol)
    return _estimator(tolerance, int(max_steps)), (*arguments, signs), chosen


def _check(
    name: str, value: Any, shape: tuple[int, ...], minimum: float | None = None, above: float | None = None
) -> None:
    """Shape always; finiteness and sign where the value is concrete (not traced)."""
    if np.shape(value) != shape:
        hint = " For an N per variant see LDBlock.restrict." if name == "sample_size" else ""
        raise InputError(f"{name} has shape {np.shape(value)}; {shape or 'one number'} is expected.{hint}")
    if isinstance(value, jax.core.Tracer):
        return
    array = np.asarray(value)
    bad = ~np.isfinite(array)
    if minimum is not None:
        bad |= array < minimum
    if above is not None:
        bad |= array <= above
    if bad.any():
        where = f" at index {int(np.argmax(bad))}" if shape else ""
        bound = f" and >= {minimum}" if minimum is not None else f" and > {above}" if above is not None else ""
        raise InputError(
            f"{name} must be finite{bound}; found {array[bad][0]}{where} ({int(bad.sum()):,} such values)."
        )


def _whitened(z: Array, n: Array, mean: Array, whitener: Array, factor: Array) -> Array:
    y = jnp.matmul(whitener, z, precision=_HIGHEST)
    return y - jnp.sqrt(n) * jnp.matmul(factor, mean, precision=_HIGHEST)


@jax.jit
def _exact(
    f: Array, noise: Array, z: Array, n: Array, mean: Array, whitener: Array, factor: Array
) -> tuple[Array, None]:
    y = _whitened(z, n, mean, whitener, factor)
    return exact_log_density(y, factor, n * f, noise, jnp.ones_like(y)), None


_ESTIMATORS: dict[tuple[float, int], Callable[..., Any]] = {}
_GRADIENTS: dict[Callable[..., Any], Callable[..., Any]] = {}


def _estimator(rtol: float, max_steps: int) -> Callable[..., Any]:
    """The compiled CG function of one tolerance; kept, so that each is compiled once per shape."""

    def estimate(f, noise, z, n, mean, whitener, factor, signs):
        y = _whitened(z, n, mean, whitener, factor)
        return cg_log_density(y, factor, n * f, noise, jnp.ones_like(y), signs, rtol, max_steps)

    return _ESTIMATORS.setdefault((rtol, max_steps), jax.jit(estimate))


def _gradient_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Value and gradient in (effect_variance, noise) of a compiled function; kept likewise."""
    if function not in _GRADIENTS:
        _GRADIENTS[function] = jax.jit(jax.value_and_grad(function, argnums=(0, 1), has_aux=True))
    return _GRADIENTS[function]


def _said(chosen: str, value: Array, found: CGDiagnostics | None, rtol: float | None, block: LDBlock) -> SolveInfo:
    """The SolveInfo; warns, now or when the traced program runs, if the solve did not converge."""
    if found is None:
        said = SolveInfo(chosen, 0.0, 0.0, 0, jnp.isfinite(value))
    else:
        tolerance = default_rtol(value.dtype) if rtol is None else rtol
        converged = (found.residual <= tolerance) & jnp.isfinite(value)
        said = SolveInfo(chosen, *found, converged)
    warn = partial(_warn, chosen, block.k, block.m)
    if isinstance(said.converged, jax.core.Tracer):
        jax.debug.callback(warn, said.converged, said.residual, said.steps)
    else:
        warn(said.converged, said.residual, said.steps)
    return said


def _warn(chosen: str, k: int, m: int, converged: Any, residual: Any, steps: Any) -> None:
    if np.all(converged):
        return
    if chosen == "cholesky":
        text = (
            f"the covariance of a block (k = {k}, m = {m}) is not positive definite in floating point: the "
            "log-likelihood is NaN. Use float64, or a higher eigenvalue floor."
        )
    else:
        text = (
            f"conjugate gradients on a block (k = {k}, m = {m}) stopped after {np.max(steps)} steps at relative "
            f"residual {np.max(residual):.1e}: the value is not reliable. Use solver='cholesky', or raise max_steps."
        )
    warnings.warn(text, ConvergenceWarning, stacklevel=3)
