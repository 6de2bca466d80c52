"""The ways to compute one block's log-likelihood and its gradient that `benchmarks.likelihood` compares.

z_S ~ N(0, A_SS),  A = R diag(c) R + noise R,  c = N f,  with R given: without whitening every step must form A (or its
scored part), factorise it and solve triangular systems,

    d/dc_j = ((R_jS a)^2 - R_jS A_SS^-1 R_Sj) / 2,   a = A_SS^-1 z_S.

This is what the published implementations do at each step. R is singular where variants are in perfect LD, so they, and
the references here, add a small ridge to A's diagonal. The whitened contenders are the package's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RIDGE", "Contender", "Window", "autodiff", "cola", "dense", "exact", "ld_score", "memory_of", "whitened"]

RIDGE = 1e-6
_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Window:
    """One window's data as the dense references take them, float64.

    R: (m, m).  scored: (m,) bool, S.  z: (m,), those outside S ignored.  c: (m,), N f.  noise: sigma2.
    """

    R: NDArray[np.float64]
    scored: NDArray[np.bool_]
    z: NDArray[np.float64]
    c: NDArray[np.float64]
    noise: float = 1.0


@dataclass(frozen=True)
class Contender:
    """One way of computing value and gradient.

    run: computes both, waits for them, and returns (value or None, gradient in c (m,), ...).
    memory: bytes it holds at its peak, its input included; None where that is found by tracing a call.
    """

    run: Callable[[], tuple[Any, ...]]
    memory: int | None = None


def dense(window: Window, *, full: bool) -> Contender:
    """Cholesky of A in float64 by NumPy and SciPy.

    full: form all of A, (m, m), and then take its scored part, as published implementations do; otherwise only the
    scored part is formed, by a symmetric product of half the operations.  The derivative in noise is left out.
    """
    from scipy.linalg import cholesky, solve_triangular
    from scipy.linalg.blas import dsyrk

    R, S, c, noise = window.R, window.scored, window.c, window.noise
    everything = bool(S.all())
    z = window.z[S]
    to_all = R.T if everything else np.asfortranarray(R[S])  # R = R^T, so its transpose is R in column order
    inside = R if everything else R[np.ix_(S, S)]

    def covariance() -> NDArray[np.float64]:
        if not full:
            A = dsyrk(1.0, to_all * np.sqrt(c), lower=1)
            A += noise * inside
            return A
        A = (R * c) @ R
        A += noise * R
        return A.T if everything else A[np.ix_(S, S)].T

    def run() -> tuple[float, Any]:
        A = covariance()
        np.einsum("ii->i", A)[:] += RIDGE
        lower = cholesky(A, lower=True, overwrite_a=True, check_finite=False)
        half = solve_triangular(lower, z, lower=True, check_finite=False)
        a = solve_triangular(lower, half, lower=True, trans=1, check_finite=False)
        inner = solve_triangular(lower, to_all, lower=True, check_finite=False)
        value = -0.5 * (len(z) * _LOG_2PI + 2 * np.log(np.diagonal(lower)).sum() + half @ half)
        return value, 0.5 * ((a @ to_all) ** 2 - np.einsum("ji,ji->j", inner.T, inner.T))

    return Contender(run)


def autodiff(window: Window) -> Contender:
    """The full dense density in float64, differentiated by JAX."""
    import jax
    import jax.numpy as jnp
    from jax.scipy.linalg import solve_triangular

    where = np.flatnonzero(window.scored)

    def density(c: Any, R: Any, z: Any) -> Any:
        A = (R * c[None, :]) @ R + window.noise * R
        A = A[np.ix_(where, where)] + RIDGE * jnp.eye(len(where))
        lower = jnp.linalg.cholesky(A)
        half = solve_triangular(lower, z, lower=True)
        return -0.5 * (len(where) * _LOG_2PI + 2 * jnp.sum(jnp.log(jnp.diagonal(lower))) + half @ half)

    with jax.enable_x64(True):
        given = tuple(jnp.asarray(x) for x in (window.c, window.R, window.z[where]))
        compiled = jax.jit(jax.value_and_grad(density)).lower(*given).compile()
    return Contender(lambda: jax.block_until_ready(compiled(*given)), memory_of(compiled))


def whitened(G: NDArray[Any], y: NDArray[Any], c: Any, noise: float, solver: str, **settings: int) -> Any:
    """The package's density by `solver`, 'cg' or 'cholesky', in float32: a function of the probes' key, and its bytes.

    settings: probes, steps and rank of CG, which takes that many steps exactly.  The function waits for its result and
    returns (value, gradient in c, gradient in noise, standard error of the value), from one compiled program.
    """
    import jax
    import jax.numpy as jnp

    from deepwas.likelihood.cg import cg_log_density
    from deepwas.likelihood.exact import exact_log_density
    from deepwas.likelihood.factor import Factor

    def density(c: Any, noise: Any, y: Any, factor: Factor, key: Any) -> Any:
        real = jnp.ones_like(y)
        if solver == "cholesky":
            return exact_log_density(y, factor, c, noise, real), jnp.zeros((), y.dtype)
        signs = jax.random.rademacher(key, (settings["probes"], len(G)), y.dtype)
        value, found = cg_log_density(y, factor, c, noise, real, signs, 0.0, settings["steps"], settings["rank"])
        return value, found.standard_error / 2

    given = (*(jnp.asarray(x, jnp.float32) for x in (c, noise, y)), Factor.of(jnp.asarray(G, jnp.float32)))
    first = jax.random.key(0)
    compiled = jax.jit(jax.value_and_grad(density, argnums=(0, 1), has_aux=True)).lower(*given, first).compile()

    def run(key: Any = first) -> tuple[Any, Any, Any, Any]:
        (value, error), (d_c, d_noise) = jax.block_until_ready(compiled(*given, key))
        return value, d_c, d_noise, error

    return run, memory_of(compiled)


def exact(G: NDArray[np.float64], y: NDArray[np.float64], c: Any, noise: float) -> tuple[float, Any, float, float]:
    """The whitened density in float64 by NumPy and SciPy, which errors are errors from.

    Returns the value, its gradients in c and noise, and the standard deviation of the latter over z from the model.
    """
    from scipy.linalg import cholesky, solve_triangular

    B = (G * c) @ G.T
    np.einsum("ii->i", B)[:] += noise
    lower = cholesky(B.T, lower=True, overwrite_a=True, check_finite=False)
    half = solve_triangular(lower, y, lower=True)
    a = solve_triangular(lower, half, lower=True, trans=1)
    inner = solve_triangular(lower, np.asfortranarray(G), lower=True)
    root = solve_triangular(lower, np.eye(len(y)), lower=True)
    value = -0.5 * (len(y) * _LOG_2PI + 2 * np.log(np.diagonal(lower)).sum() + half @ half)
    gradient = 0.5 * ((a @ G) ** 2 - np.einsum("ji,ji->j", inner.T, inner.T))
    deviation = np.linalg.norm(root.T @ root) / math.sqrt(2)
    return float(value), gradient, float(0.5 * (a @ a - np.sum(root * root))), float(deviation)


def cola(block: Any, y: NDArray[np.float32], c: Any, noise: float, *, probes: int, steps: int) -> Contender:
    """CoLA's conjugate gradients on `covariance_operator`, with its preconditioner, on the same right-hand sides.

    The gradient is put together from its solutions as the package does; CoLA has no value to give, because its
    log-determinant by Lanczos has the wrong sign below 1.  block: an `LDBlock`, float32.
    """
    import jax
    import jax.numpy as jnp
    from cola.linalg.inverse.cg import run_batched_cg

    from deepwas.likelihood.cg import controlled_mean
    from deepwas.likelihood.operator import covariance_operator

    @jax.jit
    def gradient(B: Any, y: Any, signs: Any) -> Any:
        G, diagonal = B.factor, B.diagonal()
        right = jnp.concatenate([y[:, None], jnp.sqrt(diagonal)[:, None] * signs], axis=1)
        x, *_ = run_batched_cg(B, right, jnp.zeros_like(right), steps, 0.0, B.preconditioner(), False)
        plain = right[:, 1:] / diagonal[:, None]
        projected = jnp.matmul(jnp.concatenate([x[:, :1], plain, x[:, 1:] - plain], axis=1).T, G, precision="highest")
        first, last = projected[1 : 1 + probes], projected[1 + probes :]
        squares = jnp.matmul((1 / diagonal)[None, :], G * G, precision="highest")[0]
        paired, _ = controlled_mean((first * last)[None, None], (first**2)[None, None], squares[None, None, None])
        return 0.5 * (projected[0] ** 2 - squares - paired[0, 0])

    signs = jax.random.rademacher(jax.random.key(0), (probes, block.k), jnp.float32).T
    given = (covariance_operator(block, c, 1.0, noise), jnp.asarray(y, jnp.float32), signs)
    compiled = gradient.lower(*given).compile()
    return Contender(lambda: (None, jax.block_until_ready(compiled(*given))), memory_of(compiled))


def ld_score(window: Window, n_panel: int) -> Contender:
    """The LD score regression objective and its gradient in float32, r^2 between scored and all variants given."""
    import jax
    import jax.numpy as jnp

    from deepwas.likelihood.ldscore import adjusted_ld_squared, ld_score_loss, ld_score_weights

    squared = adjusted_ld_squared(np.asarray(window.R[window.scored], np.float32), n_panel)
    scores = jnp.sum(squared, axis=1)
    weights = ld_score_weights(scores, window.noise + float(window.c.mean()) * scores)

    def loss(c: Any, z: Any, squared: Any, weights: Any) -> Any:
        return -ld_score_loss(z, squared, c, sample_size=1.0, noise=window.noise, weights=weights)

    given = (jnp.asarray(window.c, jnp.float32), jnp.asarray(window.z[window.scored], jnp.float32), squared, weights)
    compiled = jax.jit(jax.value_and_grad(loss)).lower(*given).compile()
    return Contender(lambda: jax.block_until_ready(compiled(*given)), memory_of(compiled))


def memory_of(compiled: Any) -> int:
    """Bytes of a compiled program: arguments, results and temporaries."""
    found = compiled.memory_analysis()
    return int(found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes)
