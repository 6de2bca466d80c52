"""The likelihood of one LD block, checked and dispatched: what the Python API exposes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from deepwas.errors import ConvergenceWarning, InputError
from deepwas.ld.block import LDBlock
from deepwas.likelihood.cg import CGDiagnostics, cg_log_densities
from deepwas.likelihood.exact import exact_with_rounding
from deepwas.likelihood.factor import Factor
from deepwas.likelihood.question import Question

__all__ = ["SolveInfo", "choose_solver", "log_likelihood", "log_likelihood_and_grad"]

Solver = Literal["auto", "cholesky", "cg"]

_HIGHEST = jax.lax.Precision.HIGHEST
_EXPECTED_STEPS = 8
MAX_STEPS = 100
_JACOBI_STEPS = 40  # before the largest entries are preconditioned too
_RANK = 32
_SHARE = 1 / 3  # of the variance in that many variants


class SolveInfo(NamedTuple):
    """How a value was found. Of several traits, each field but solver and rank is an array (t,).

    solver: 'cholesky' or 'cg'.
    residual: largest relative residual over the right-hand sides, the true one; 0 for Cholesky.
    standard_error: of log|B| (the log-likelihood's is half of it); for Cholesky, what rounding may have done to it.
        From few probes it is itself uncertain: with 16, errors of more than 4 of it occur in up to 4 of 100 keys where
        the variance is concentrated in few variants and `rank` is 0.
    steps: CG steps taken; 0 for Cholesky.
    converged: whether the tolerance asked for was reached (and, for Cholesky, the covariance was positive definite).
    rank: entries of the effect variance in CG's preconditioner beside the diagonal.
    gradient_error: expected length of the error of the gradient in effect_variance; 0 for Cholesky.
    noise_error: standard error of the derivative in noise; 0 for Cholesky.  Both NaN where no gradient was asked for.
    """

    solver: str
    residual: Any
    standard_error: Any
    steps: Any
    converged: Any
    rank: int = 0
    gradient_error: Any = 0.0
    noise_error: Any = 0.0


def choose_solver(
    k: int, m: int, probes: int, steps: int = _EXPECTED_STEPS, traits: int = 1
) -> Literal["cholesky", "cg"]:
    """The solver that should be faster for a value and gradient, by operations and by numbers read from memory.

    Cholesky: forming B and the triangular solve 3 k^2 m, factorisation and inverse k^3, for each trait.
    CG: 4 k m operations per step and right-hand side, of which there are probes + 1 a trait, but no less time than
    reading G takes (once a step, and twice for the squares); a machine does about 5 operations for a byte it reads.
    """
    operations_per_number = 20
    cholesky = traits * (3 * k * k * m + k**3)
    step = max(4 * traits * (probes + 1), operations_per_number) * k * m
    return "cholesky" if cholesky <= step * steps + 2 * operations_per_number * k * m else "cg"


def log_likelihood(
    block: LDBlock | Any,
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
    max_steps: int | None = None,
    rank: int | None = None,
) -> Any:
    """Log-likelihood, in nats, of one LD block's z-scores; constants included.

    Model: z_S ~ N(sqrt(N) R_S: mu, N R_S: diag(f) R_:S + noise R_SS), seen through the block's whitener:
    y = W z_S ~ N(sqrt(N) G mu, noise I + N G diag(f) G^T), of length k.

    block: `LDBlock`; or the LD matrix R as a CoLA operator, or a `PrecisionOperator`, see `operator_log_likelihood`.
    z: (s,) z-scores of the scored variants.  effect_variance: (m,), f >= 0, variance of the effect of one standard
    deviation of genotype, in units of the trait's variance.  sample_size: N, people.  noise: sigma2 > 0, 1 when GWAS
    and LD panel are perfect.  effect_mean: (m,), mu, or None for 0.
    Several traits at once, with one pass over the LDBlock for all: z (s, t), effect_variance (m, t) or (m,),
    sample_size, noise (t,) or one number, effect_mean (m, t) or (m,); the values are (t,).

    solver: 'cholesky' (exact); 'cg', estimated with `probes` random signs drawn from `key` (by default from a fixed
        key, so that values change smoothly with the parameters); or 'auto', whichever should be faster.
    rtol, max_steps: of CG; by default 1e-4 in float32 and 1e-8 in float64, and 100 (1,000 for an operator).
    rank: the largest entries of effect_variance that CG's preconditioner holds beside the diagonal. None: 32 if these
        carry a third of the variance, which then makes for fewer steps and a far smaller standard error; otherwise
        none, and 32 if that does not converge within 40 steps. If neither converges, 'auto' takes Cholesky.
        Inside jit, vmap or grad nothing of this can be decided, and None means 0: give rank=32 there where a few
        variants may carry much of the variance (heavy tails), or CG may not converge, and warns.

    Returns the value, or with info=True the value and a `SolveInfo`, which names what was done in the end. A solve that
    does not converge warns with `ConvergenceWarning`. Differentiable (jax.grad) in z, effect_variance, noise,
    sample_size and effect_mean; can be traced by jit and vmap. Return fields of `SolveInfo` from jit, not all, since
    its solver is text.
    Raises InputError for wrong shapes, negative variances and values that are not finite.

    Sources: Amin, Potapczynski & Wilson 2025 for the full likelihood of a learned prior; `deepwas.likelihood.cg`.
    """
    question = Question(z, effect_variance, sample_size, noise, effect_mean, solver, probes, key, rtol, max_steps)
    return _answer(block, question, rank, _value, info)


def log_likelihood_and_grad(
    block: LDBlock | Any,
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
    max_steps: int | None = None,
    rank: int | None = None,
    with_noise: bool = False,
) -> Any:
    """`log_likelihood` and its gradient with respect to effect_variance, from one solve.

    Arguments as for `log_likelihood`; inside jit give rank=32 where a few variants may carry much of the variance.
    Returns (value, gradient (m,)), for several traits (t,) and (m, t); with_noise=True appends the derivative with
    respect to noise; info=True appends the `SolveInfo`.
    """
    question = Question(z, effect_variance, sample_size, noise, effect_mean, solver, probes, key, rtol, max_steps)
    return _answer(block, question, rank, _gradient, info, with_noise)


def _answer(
    block: Any, question: Question, rank: int | None, of: Callable[..., Any], info: bool, with_noise: bool = False
) -> Any:
    """What the public functions return; of: `_value` or `_gradient`."""
    if not isinstance(block, LDBlock):
        return _of_operator(block, question, rank, of is _gradient, info, with_noise)
    asked = _asked(block, question, rank)
    result, said = _run(asked, of)
    found: tuple[Any, ...]
    if of is _value:
        found = (result if asked.several else result[0],)
    else:
        value, d_variance, d_noise = result
        found = (value, d_variance.T, d_noise) if asked.several else (value[0], d_variance[0], d_noise[0])
        found = found if with_noise else found[:2]
    found += (said,) if info else ()
    return found[0] if len(found) == 1 else found


def _of_operator(operator: Any, question: Question, rank: int | None, gradient: bool, info: bool, noise: bool) -> Any:
    """The same for LD that is an operator; CoLA takes seconds to import, so only now."""
    from deepwas.likelihood import general

    if not general.is_operator(operator):
        raise InputError(
            f"the first argument is {type(operator).__name__}; give an LDBlock (LDBlock.from_correlation makes one "
            "from a matrix), a CoLA operator, or a PrecisionOperator."
        )
    if rank is not None:
        raise InputError("rank is for an LDBlock; LD given as an operator is preconditioned by its diagonal only.")
    return general.answer(operator, question, None, gradient=gradient, info=info, with_noise=noise)


class _Attempt(NamedTuple):
    """One way to solve; hashable, since each is compiled once."""

    solver: str
    rtol: float = 0.0
    max_steps: int = 0
    rank: int = 0


class _Asked(NamedTuple):
    """Checked arguments of t traits: f (t, m), noise (t,), z (s, t), n (t,), mean (t, m), whitener, factor, signs."""

    attempts: Sequence[_Attempt]
    arguments: tuple[Any, ...]
    several: bool
    k: int
    m: int


def _asked(block: LDBlock, question: Question, rank: int | None) -> _Asked:
    if rank is not None and rank < 0:
        raise InputError(f"rank is {rank}; give 0 or more entries of the preconditioner.")
    question.check_arrays(block.s, block.m)
    several, probes, dtype = question.several, question.probes, block.device_factor.dtype
    z, f, n, noise, mean = question.arrays(block.m, dtype)
    t = z.shape[1] if several else 1
    arguments = (
        jnp.broadcast_to(f.T if f.ndim == 2 else f[None], (t, block.m)),
        jnp.broadcast_to(jnp.reshape(noise, (-1,)), (t,)),
        z if several else z[:, None],
        jnp.broadcast_to(jnp.reshape(n, (-1,)), (t,)),
        jnp.broadcast_to(mean.T if mean.ndim == 2 else mean[None], (t, block.m)),
        block.device_whitener,
        block.device_factor,
        question.signs((probes, block.k), dtype),
    )
    auto, exact = question.solver == "auto", _Attempt("cholesky")
    chosen = choose_solver(block.k, block.m, probes, traits=t) if auto else question.solver
    if chosen == "cholesky":
        return _Asked([exact], arguments, several, block.k, block.m)
    tolerance, steps = question.tolerance(dtype), question.steps(MAX_STEPS)
    if rank is not None:
        attempts = [_Attempt("cg", tolerance, steps, min(rank, block.k, block.m))]
    elif any(isinstance(x, jax.core.Tracer) for x in arguments):
        attempts = [_Attempt("cg", tolerance, steps)]
    else:
        attempts = [_Attempt("cg", tolerance, steps, min(_RANK, block.k, block.m))]
        if not _concentrated(np.asarray(arguments[0])):
            attempts.insert(0, _Attempt("cg", tolerance, min(steps, _JACOBI_STEPS)))
    return _Asked([*attempts, exact] if auto else attempts, arguments, several, block.k, block.m)


def _concentrated(f: np.ndarray) -> bool:
    """Whether, for any trait of f (t, m), the largest entries carry so much that the preconditioner needs them."""
    if f.shape[1] <= 2 * _RANK:
        return False
    top = np.partition(f, -_RANK, axis=1)[:, -_RANK:].sum(axis=1)
    return bool((top > _SHARE * f.sum(axis=1)).any())


def _run(asked: _Asked, of: Callable[[_Attempt], Callable[..., Any]]) -> tuple[Any, SolveInfo]:
    """The result of the first attempt that converges, or of the last; a traced one cannot be looked at."""
    for attempt in asked.attempts:
        result, found = of(attempt)(*asked.arguments)
        value = result if isinstance(result, Array) else result[0]
        said = _said(attempt, value, found, asked)
        if any(isinstance(x, jax.core.Tracer) for x in said):
            warn = partial(_warn, attempt.solver, asked.k, asked.m)
            jax.debug.callback(warn, said.converged, said.residual, said.steps)
            return result, said
        if np.all(said.converged):
            return result, said
    _warn(said.solver, asked.k, asked.m, said.converged, said.residual, said.steps)
    return result, said


def _said(attempt: _Attempt, value: Array, found: CGDiagnostics, asked: _Asked) -> SolveInfo:
    # The true residual may exceed the recurrence's, which was held against rtol, by rounding.
    converged = (found.residual <= 1.1 * attempt.rtol) & jnp.isfinite(value)
    found = found._replace(gradient_error=asked.arguments[3] * found.gradient_error)
    residual, error, steps, gradient, noise, reached = (x if asked.several else x[0] for x in (*found, converged))
    return SolveInfo(attempt.solver, residual, error, steps, reached, attempt.rank, gradient, noise)


def _warn(chosen: str, k: int, m: int, converged: Any, residual: Any, steps: Any) -> None:
    if np.all(converged):
        return
    if not np.isfinite(residual).all():
        text = (
            f"the likelihood of a block (k = {k}, m = {m}) is not defined: the LD or another input holds NaN, or "
            "inside jit an effect variance is negative or a noise or sample size not positive."
        )
    elif chosen == "cholesky":
        text = (
            f"the covariance of a block (k = {k}, m = {m}) is not positive definite in floating point: the "
            "log-likelihood is NaN. Use float64, or a higher eigenvalue floor. (Or the LD holds NaN, or inside jit an "
            "effect variance is negative.)"
        )
    else:
        text = (
            f"conjugate gradients on a block (k = {k}, m = {m}) stopped after {np.max(steps)} steps at relative "
            f"residual {np.max(residual):.1e}: the value is not reliable. Use rank={_RANK}, solver='cholesky', or "
            "raise max_steps."
        )
    warnings.warn(text, ConvergenceWarning, stacklevel=5)


def _whitened(z: Array, n: Array, mean: Array, whitener: Array, factor: Array) -> Array:
    """(t, k)."""
    y = jnp.matmul(whitener, z, precision=_HIGHEST).T
    return y - jnp.sqrt(n)[:, None] * jnp.matmul(mean, factor.T, precision=_HIGHEST)


@cache
def _value(attempt: _Attempt) -> Callable[..., Any]:
    """The compiled log-likelihoods (t,) and diagnostics of one way to solve."""

    def exact(f, noise, z, n, mean, whitener, factor, _signs):
        y = _whitened(z, n, mean, whitener, factor)
        density = jax.vmap(exact_with_rounding, in_axes=(0, None, 0, 0, None))
        values, rounding = density(y, Factor.of(factor), n[:, None] * f, noise, jnp.ones_like(y[0]))
        none = jnp.zeros_like(values)
        return values, CGDiagnostics(none, 2 * rounding, jnp.zeros(values.shape, int), none, none)

    def estimate(f, noise, z, n, mean, whitener, factor, signs):
        y = _whitened(z, n, mean, whitener, factor)
        values, found = cg_log_densities(
            y[None],
            Factor.of(factor[None]),
            (n[:, None] * f)[None],
            noise[None],
            jnp.ones_like(y[:1]),
            signs[None],
            attempt.rtol,
            attempt.max_steps,
            attempt.rank,
            "highest",
            True,
        )
        return values[0], CGDiagnostics(*(x[0] for x in found))

    return jax.jit(exact if attempt.solver == "cholesky" else estimate)


@cache
def _gradient(attempt: _Attempt) -> Callable[..., Any]:
    """The compiled values, derivatives in (effect_variance, noise), and diagnostics of one way to solve."""

    def total(*arguments):
        values, found = _value(attempt)(*arguments)
        return jnp.sum(values), (values, found)

    def both(*arguments):
        (_, (values, found)), derivatives = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(*arguments)
        return (values, *derivatives), found

    return jax.jit(both)
