"""CoLA linear operators: one block's covariance as one, and LD given as one.

CoLA takes seconds to import, so it is imported when the first operator is made. Training does not go through it: the
loss needs values, gradients and diagnostics of one solve together (see `deepwas.likelihood.cg`).
"""

from __future__ import annotations

from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.tree_util import Partial
from jax.typing import ArrayLike

from deepwas.errors import InputError
from deepwas.ld.block import LDBlock
from deepwas.likelihood.question import check

__all__ = [
    "PrecisionOperator",
    "apply_product",
    "covariance_operator",
    "is_operator",
    "operator_form",
    "traced_product",
]

_HIGHEST = jax.lax.Precision.HIGHEST
_CHUNK = 256  # columns of the identity multiplied at a time


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
    check("effect_variance", effect_variance, (block.m,), minimum=0)
    check("sample_size", sample_size, (), above=0)
    check("noise", noise, (), above=0)
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


class PrecisionOperator:
    """LD given by its inverse: P = R^-1 as a CoLA operator (m, m), such as the sparse precision of an LDGM.

    operator: P, symmetric, positive definite, and the inverse of a correlation matrix (ones on R's diagonal).
    log_det: log|P|. If it is not given, each likelihood estimates it, with a standard error, by another solve.
    diagonal: (m,), diag(P). If it is not given, it is found here by m products.

    It is read as data and should not be changed. Raises InputError for wrong shapes, and for values that are not finite
    or, on the diagonal, not positive. `PrecisionOperator.from_sparse` knows log|P| exactly.
    """

    def __init__(self, operator: Any, *, log_det: ArrayLike | None = None, diagonal: ArrayLike | None = None) -> None:
        m, dtype = operator_form(operator)
        self.operator = operator
        if diagonal is None:
            diagonal = _diagonal(operator, m, dtype)
        check("diagonal", diagonal, (m,), above=0)
        self.diagonal = jnp.asarray(diagonal, dtype)
        if log_det is not None:
            check("log_det", log_det, ())
        self.log_det = None if log_det is None else jnp.asarray(log_det, dtype)

    @classmethod
    def from_sparse(cls, matrix: Any, dtype: Any = None) -> PrecisionOperator:
        """From a SciPy sparse matrix (m, m), symmetric and positive definite.

        log|P| is computed by a sparse factorisation in float64, whose cost hangs on the fill-in: seconds for a
        banded or tree-like P of 1e5 variants. dtype: of the products, by default float64 under x64, else float32.
        """
        import cola
        import scipy.sparse

        csc = scipy.sparse.csc_array(matrix).astype(np.float64)
        csc.sum_duplicates()
        if csc.shape[0] != csc.shape[1]:
            raise InputError(f"the precision matrix has shape {csc.shape}; a square one is expected.")
        if not np.isfinite(csc.data).all() or abs(csc - csc.T).max() > 1e-6 * abs(csc).max():
            raise InputError("the precision matrix must be finite and symmetric; give (P + P.T) / 2 of a clean P.")
        log_det, diagonal = _sparse_log_det(csc), csc.diagonal()
        # CoLA 0.0.7 pairs values with the wrong columns unless those are sorted within each row.
        csr = scipy.sparse.csr_array(csc)
        csr.sort_indices()
        coo = csr.tocoo()
        dtype = jnp.zeros(()).dtype if dtype is None else dtype
        parts = jnp.asarray(coo.data, dtype), jnp.asarray(coo.row, jnp.int32), jnp.asarray(coo.col, jnp.int32)
        return cls(cola.ops.Sparse(*parts, coo.shape), log_det=log_det, diagonal=diagonal)


def is_operator(x: Any) -> bool:
    """Whether x is LD that `operator_log_likelihood` takes; does not import CoLA."""
    return isinstance(x, PrecisionOperator) or any(base.__module__.split(".")[0] == "cola" for base in type(x).__mro__)


def operator_form(operator: Any) -> tuple[int, Any]:
    """(m, dtype) of an operator that can be used."""
    if isinstance(operator, PrecisionOperator) or not is_operator(operator):
        raise InputError(f"LD is given as {type(operator).__name__}; give a CoLA operator, such as cola.ops.Dense(R).")
    if len(operator.shape) != 2 or operator.shape[0] != operator.shape[1] or operator.shape[0] < 1:
        raise InputError(f"the operator has shape {tuple(operator.shape)}; LD is square, (m, m).")
    try:
        dtype = np.dtype(jax.dtypes.canonicalize_dtype(operator.dtype))
    except TypeError:
        dtype = np.dtype(object)
    if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise InputError(f"the operator's dtype is {operator.dtype}; give one of JAX arrays in float32 or float64.")
    return int(operator.shape[0]), dtype


_TRACED: WeakKeyDictionary[Any, dict[Any, Partial]] = WeakKeyDictionary()


def traced_product(operator: Any, m: int, dtype: Any, width: int) -> Partial:
    """X (m, width) -> operator @ X, as a pytree whose leaves are the operator's arrays.

    Traced here rather than passed as CoLA's own pytree, because in cola-ml 0.0.7 the matrix of a Sparse operator is no
    leaf, and rebuilding an operator from leaves fails where there are several devices. Kept as long as the operator
    is, so that what takes the product is compiled once.
    """
    kept = _TRACED.setdefault(operator, {})
    if (dtype, width) in kept:
        return kept[dtype, width]
    with jax.default_matmul_precision("highest"):
        traced = jax.make_jaxpr(lambda X: operator @ X)(jax.ShapeDtypeStruct((m, width), dtype))
    jaxpr, found = traced.jaxpr, [(x.shape, x.dtype) for x in traced.out_avals]
    if found != [((m, width), dtype)]:
        raise InputError(f"the operator's product with {(m, width)} {dtype} is {found}; the same is expected.")

    def evaluate(*arguments: Any) -> Array:
        return jaxpr_as_fun(ClosedJaxpr(jaxpr, arguments[:-1]))(arguments[-1])[0]

    product = Partial(evaluate, *traced.consts)
    if not any(isinstance(x, jax.core.Tracer) for x in traced.consts):
        kept[dtype, width] = product
    return product


def apply_product(products: dict[int, Partial], X: Array) -> Array:
    """operator @ X, X (m, t), padded with columns of 0 to a width that was traced."""
    width = min(w for w in products if w >= X.shape[1])
    return products[width](jnp.pad(X, ((0, 0), (0, width - X.shape[1]))))[:, : X.shape[1]]


def _diagonal(operator: Any, m: int, dtype: Any) -> Array:
    width = min(m, _CHUNK)
    product = jax.jit(traced_product(operator, m, dtype, width))
    parts = []
    for start in range(0, m, width):
        rows = np.arange(start, min(start + width, m))
        unit = np.zeros((m, width), dtype)
        unit[rows, rows - start] = 1
        parts.append(product(unit)[rows, rows - start])
    return jnp.concatenate(parts)


def _sparse_log_det(csc: Any) -> float:
    from scipy.sparse.linalg import splu

    refused = InputError("the precision matrix is not positive definite: its factorisation meets a pivot <= 0.")
    options = {"SymmetricMode": True}
    try:
        factors = splu(csc, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
    except RuntimeError as error:  # an exact 0
        raise refused from error
    pivots = factors.U.diagonal()
    if not (pivots > 0).all() or not np.array_equal(factors.perm_r, factors.perm_c):
        raise refused
    return float(np.log(pivots).sum())
