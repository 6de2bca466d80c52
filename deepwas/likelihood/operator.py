"""One block's covariance as a CoLA linear operator, for the solvers and trace estimators of that library.

CoLA takes seconds to import, so it is imported when the first operator is made. Training does not go through it: the
loss needs values, gradients and diagnostics of one solve together (see `deepwas.likelihood.cg`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from deepwas.ld.block import LDBlock
from deepwas.likelihood.api import _check

__all__ = ["covariance_operator"]

_HIGHEST = jax.lax.Precision.HIGHEST


def covariance_operator(
    block: LDBlock, effect_variance: ArrayLike, sample_size: ArrayLike, noise: ArrayLike = 1.0
) -> Any:
    """The covariance of the whitened z-scores, B = noise I + N G diag(f) G^T, as a `cola.ops.LinearOperator` (k, k).

    block: `LDBlock`, whose factor is G (k, m).  effect_variance: (m,), f >= 0, per standardised genotype.
    sample_size: N, people.  noise: sigma2 > 0.

    The operator is annotated positive definite and never forms B: a product with k x t numbers costs O(k m t). It is a
    pytree in G, c = N f and noise, so that it can be made inside `jit` and differentiated. Two additions to CoLA's
    interface: `diagonal()`, diag(B) (k,), and `preconditioner()`, the operator diag(B)^-1, with which conjugate
    gradients need few steps, because the whitened z-scores live in the eigenbasis of the LD:

        from cola.linalg.inverse.cg import CG
        B = covariance_operator(block, f, sample_size=N)
        x = cola.linalg.solve(B, y, CG(tol=1e-8, P=B.preconditioner()))

    The operator has its own product instead of being a sum of CoLA operators, because with cola-ml 0.0.7 and JAX 0.10
    such sums raise AmbiguousLookupError. Raises InputError for wrong shapes and values.
    """
    _check("effect_variance", effect_variance, (block.m,), minimum=0)
    _check("sample_size", sample_size, (), above=0)
    _check("noise", noise, (), above=0)
    factor = block.device_factor
    f, n, sigma2 = (jnp.asarray(x, factor.dtype) for x in (effect_variance, sample_size, noise))
    return _operator_class()(factor, n * f, sigma2)


@cache
def _operator_class() -> Any:
    import cola

    class CovarianceOperator(cola.ops.LinearOperator):
        """B = noise I + G diag(c) G^T.  factor: (k, m), G.  c: (m,), N f.  noise: scalar."""

        def __init__(self, factor: Array, c: Array, noise: Array) -> None:
            self.factor, self.c, self.noise = factor, c, noise
            k = factor.shape[0]
            super().__init__(dtype=factor.dtype, shape=(k, k), annotations={cola.annotations.PSD})

        def _matmat(self, X: Array) -> Array:
            inner = self.c[:, None] * jnp.matmul(self.factor.T, X, precision=_HIGHEST)
            return jnp.matmul(self.factor, inner, precision=_HIGHEST) + self.noise * X

        def diagonal(self) -> Array:
            """diag(B), (k,)."""
            return jnp.sum(self.factor * self.factor * self.c[None, :], axis=1) + self.noise

        def preconditioner(self) -> Any:
            """diag(B)^-1 as a CoLA operator."""
            return cola.ops.Diagonal(1 / self.diagonal())

    return CovarianceOperator
