"""What the posterior needs of a block's covariance B = noise I + G diag(c) G^T: G^T B^-1 y and diag(G^T B^-1 G).

Exactly, by Cholesky factorisation in float64 on the host, whose work is no more than that of one training step; or by
the likelihood's conjugate gradients with its preconditioner M. There the diagonal is that of M^-1, exact, plus a mean
over probes of what B^-1 adds, the control variate of `deepwas.likelihood.cg`, with a standard error for each variant.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.likelihood.api import SolveInfo
from deepwas.likelihood.cg import _precondition, _trace_and_squares, batched_cg, controlled_mean
from deepwas.likelihood.factor import Factor
from deepwas.likelihood.products import column_squares, expand, project
from deepwas.likelihood.quadrature import inverse_trace

__all__ = ["Solved", "solve_cg", "solve_exact"]

Float = NDArray[np.float64]

_PAD_K, _PAD_M = 128, 256  # blocks differ in size: a program is compiled for each multiple only


class Solved(NamedTuple):
    """data: (m,), g_j^T B^-1 y.  energy: (m,), g_j^T B^-1 g_j.  energy_error: (m,), its standard error, 0 if exact.

    forms: (q,), w^T B^-1 w of the further columns w.  half: (k, q), L^-1 w with B = L L^T; None by CG.
    """

    data: Float
    energy: Float
    energy_error: Float
    forms: Float
    half: Float | None
    info: SolveInfo


def solve_exact(G: NDArray[Any], y: NDArray[Any], c: Float, noise: float, further: Float | None = None) -> Solved:
    """By Cholesky factorisation in float64.

    G: (k, m).  y: (k,).  c: (m,) >= 0, N times the effect variance.  noise > 0.  further: (k, q).
    Cost 3/2 k^2 m + k^3 / 3 + k^2 q; memory of two copies of G.
    """
    from scipy.linalg import LinAlgError, cholesky, solve_triangular

    k, m = G.shape
    columns = np.asarray(G, np.float64)
    weighted = columns * np.sqrt(c)[None, :]
    B = weighted @ weighted.T
    B[np.diag_indices(k)] += noise
    try:
        lower = cholesky(B, lower=True, overwrite_a=True)
    except LinAlgError as error:
        raise InputError(
            f"the covariance of a block (k = {k}, m = {m}) is not positive definite ({error}). Is the prior finite?"
        ) from error
    right = [columns, np.asarray(y, np.float64)[:, None]] + ([] if further is None else [further])
    half = solve_triangular(lower, np.concatenate(right, axis=1), lower=True, overwrite_b=True, check_finite=False)
    inner, mine, rest = half[:, :m], half[:, m], half[:, m + 1 :]
    info = SolveInfo("cholesky", 0.0, 0.0, 0, True)
    energy = np.einsum("ij,ij->j", inner, inner)
    return Solved(mine @ inner, energy, np.zeros(m), np.einsum("ij,ij->j", rest, rest), rest, info)


def solve_cg(
    G: NDArray[Any],
    y: NDArray[Any],
    c: Float,
    noise: float,
    signs: NDArray[Any],
    *,
    further: NDArray[Any] | None = None,
    rtol: float,
    max_steps: int,
    rank: int = 0,
) -> Solved:
    """By conjugate gradients in the dtype of G; arguments as of `solve_exact`, and signs: (P, k), P >= 2.

    rank: entries of c that the preconditioner holds beside the diagonal.
    `SolveInfo.standard_error` is NaN: log|B| is not asked for.
    """
    k, m = G.shape
    dtype = G.dtype
    deep, wide = -k % _PAD_K, -m % _PAD_M
    extra = np.zeros((k, 0), dtype) if further is None else further
    found = _solve(
        jnp.asarray(np.pad(G, ((0, deep), (0, wide)))),
        jnp.asarray(np.pad(np.asarray(y, dtype), (0, deep))),
        jnp.asarray(np.pad(np.asarray(c, dtype), (0, wide))),
        jnp.asarray(noise, dtype),
        jnp.asarray(np.pad(np.ones(k, dtype), (0, deep))),
        jnp.asarray(np.pad(np.asarray(signs, dtype), ((0, 0), (0, deep)))),
        jnp.asarray(np.pad(np.asarray(extra, dtype), ((0, deep), (0, 0)))),
        rtol,
        max_steps,
        min(rank, k, m),
    )
    data, energy, error, forms, residual, steps = (np.asarray(x, np.float64) for x in found)
    converged = bool(residual <= 1.1 * rtol) and bool(np.isfinite(energy).all())
    info = SolveInfo("cg", float(residual), float("nan"), int(steps), converged, min(rank, k, m))
    return Solved(data[:m], energy[:m], error[:m], forms, None, info)


@partial(jax.jit, static_argnums=(7, 8, 9))
def _solve(
    G: Array,
    y: Array,
    c: Array,
    noise: Array,
    real: Array,
    signs: Array,
    further: Array,
    rtol: float,
    max_steps: int,
    rank: int,
) -> tuple[Array, ...]:
    """One block, one trait, with the likelihood's axes of blocks and traits of length 1."""
    factor = Factor.of(G[None])
    level, mask = jnp.reshape(noise, (1, 1)), real[None]
    M = _precondition(factor, c[None, None], level, mask, rank)
    scale = M.scale[0, 0][None, :, None, None]
    ridge = (noise * real + (1 - real))[None, :, None, None]

    def forward(x: Array) -> tuple[Array, Array]:
        scaled = M.root(x) * scale
        return scaled, project(scaled[:, :, 0], factor)[:, None]

    def backward(x: Array, scaled: Array, inner: Array) -> Array:
        outer = expand(inner[:, 0] * M.rest[:, 0, None, :], factor)[:, :, None]
        product = (outer + ridge * scaled) * scale
        return product if M.basis is None else x + M.root(product - M.root(x))

    count = signs.shape[0]
    given = jnp.concatenate([y[:, None], further], axis=1)[None, :, None]
    probes = (signs * real[None, :]).T[None, :, None]
    right = jnp.concatenate([M.root(given * scale), probes], axis=-1)
    run = batched_cg(forward, backward, right, rtol, max_steps)
    off = right - backward(run.solution, M.root(run.solution) * scale, run.projected)
    norms = jnp.sum(right * right, axis=1)
    size = jnp.where(norms > 0, norms, 1)
    residuals = jnp.sqrt(jnp.maximum(run.squares, jnp.sum(off * off, axis=1)) / size)

    _, low_rank = _trace_and_squares(M, factor, level, mask, "highest")
    exact = column_squares(factor, mask[:, None] * M.scale**2)
    if low_rank is not None:
        exact = exact - low_rank[0]
    first, last = run.first[:, :, -count:], run.projected[:, :, -count:]
    paired, spread = controlled_mean(first * (last - first), first**2, exact[:, :, None])
    # By what share of its length in A's norm a solution can be off, and rounding.
    slowest = jnp.max(inverse_trace(run.alphas, run.betas))
    energy = jnp.sum(right * run.solution, axis=1)
    slack = jnp.max(residuals * jnp.sqrt(norms * slowest / jnp.where(energy > 0, energy, jnp.inf)))
    total = exact + paired
    spread = _moderated(spread, total)
    error = jnp.sqrt(spread**2 + ((2 * slack + 4 * jnp.finfo(y.dtype).eps) * total) ** 2)
    forms = energy[0, 0, 1 : 1 + further.shape[1]]
    steps = jnp.max(jnp.sum(run.alphas > 0, axis=0))
    return run.projected[0, 0, 0], total[0, 0], error[0, 0], forms, jnp.max(residuals), steps


def _moderated(spread: Array, total: Array) -> Array:
    """Standard errors (X, T, m), their squares a quarter the block's mean in proportion to `total`.

    What a probe says has heavy tails: of 32 probes' own standard errors one in 150 was less than a quarter of the true
    error; moderated, one in 500.
    """
    known = total > 0
    relative = jnp.where(known, spread / jnp.where(known, total, 1), 0)
    count = jnp.maximum(jnp.sum(known, axis=-1, keepdims=True), 1)
    usual = jnp.sum(relative**2, axis=-1, keepdims=True) / count
    return jnp.sqrt(0.75 * spread**2 + 0.25 * usual * total**2)
