"""Products with the LD factor G of a block, or of a stack of blocks: the only places that read it.

Right-hand sides are the columns of x (..., k, R), and their images under G^T the rows of z (..., R, m). So G is read in
the order in which it lies in memory, in both products: with XLA on CPU this is two to four times as fast as other
layouts of the same products (`python -m benchmarks likelihood` measures it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from deepwas.likelihood.factor import Factor

__all__ = ["Precision", "column_squares", "expand", "project", "row_squares"]

Precision = Literal["highest", "default"]

_CHUNK = 16  # rows of G squared at a time, so that their squares stay in cache
_LOW = 2.0**-11  # what float16 leaves of a number


def project(x: Array, factor: Factor, precision: Precision = "highest") -> Array:
    """G^T x, transposed: x (..., k, R) -> (..., R, m)."""
    rows = jnp.swapaxes(x * factor.scale[..., None], -1, -2)
    return _product(rows, factor.values, precision, lambda rows, values, **how: jnp.matmul(rows, values, **how))


def expand(z: Array, factor: Factor, precision: Precision = "highest") -> Array:
    """G z^T: z (..., R, m) -> (..., k, R)."""
    out = _product(z, factor.values, precision, _expanded)
    return out * factor.scale[..., None]


def _expanded(rows: Array, values: Array, **how: Any) -> Array:
    return jnp.matmul(values, jnp.swapaxes(rows, -1, -2), **how)


def row_squares(factor: Factor, c: Array) -> Array:
    """(G * G) c for each row of c: c (..., T, m) -> (..., T, k)."""
    columns = jnp.swapaxes(c, -1, -2)

    def of(values: Array) -> Array:
        some = values.astype(c.dtype)
        return jnp.matmul(some * some, columns, precision="highest")

    def chunked(values: Array) -> Array:
        k = values.shape[-2]
        whole = k - k % _CHUNK
        rest = of(values[..., whole:, :])
        if not whole:
            return rest
        starts = jnp.arange(0, whole, _CHUNK)
        parts = jax.lax.map(lambda at: of(jax.lax.dynamic_slice_in_dim(values, at, _CHUNK, axis=-2)), starts)
        first = jnp.moveaxis(parts, 0, -3).reshape(*values.shape[:-2], whole, c.shape[-2])
        return jnp.concatenate([first, rest], axis=-2)

    squares = jax.lax.platform_dependent(factor.values, cpu=chunked, default=of)
    return jnp.swapaxes(squares, -1, -2) * factor.scale[..., None, :] ** 2


def column_squares(factor: Factor, d: Array) -> Array:
    """d (G * G) for each row of d: d (..., T, k) -> (..., T, m)."""
    weights = d * factor.scale[..., None, :] ** 2

    def of(values: Array, some: Array) -> Array:
        squares = values.astype(d.dtype)
        return jnp.matmul(some, squares * squares, precision="highest")

    def chunked(values: Array, weights: Array) -> Array:
        whole = values.shape[-2] - values.shape[-2] % _CHUNK
        total = of(values[..., whole:, :], weights[..., whole:])
        if not whole:
            return total

        def add(total: Array, at: Array) -> tuple[Array, None]:
            some = jax.lax.dynamic_slice_in_dim(values, at, _CHUNK, axis=-2)
            return total + of(some, jax.lax.dynamic_slice_in_dim(weights, at, _CHUNK, axis=-1)), None

        total, _ = jax.lax.scan(add, total, jnp.arange(0, whole, _CHUNK))
        return total

    return jax.lax.platform_dependent(factor.values, weights, cpu=chunked, default=of)


def _product(rows: Array, values: Array, precision: Precision, multiply: Callable[..., Array]) -> Array:
    """`multiply`, which contracts rows (..., R, n) with values, accumulated in the dtype of rows."""
    asked = jax.lax.Precision.HIGHEST if precision == "highest" else jax.lax.Precision.DEFAULT
    if values.dtype == rows.dtype:
        return multiply(rows, values, precision=asked)

    def converted(rows: Array, values: Array) -> Array:
        return multiply(rows, values.astype(rows.dtype), precision=asked)

    def halves(rows: Array, values: Array) -> Array:
        """Products of float16 numbers are exact in float32: two of them carry 22 bits of a right-hand side."""
        size = jnp.max(jnp.abs(rows), axis=-1, keepdims=True)
        size = jnp.where(size > 0, size, 1)
        scaled = rows / size
        high = scaled.astype(jnp.float16)
        low = ((scaled - high.astype(rows.dtype)) / _LOW).astype(jnp.float16)
        weight = [size] if precision == "default" else [size, _LOW * size]
        parts = [high] if precision == "default" else [high, low]
        out = multiply(jnp.concatenate(parts, axis=-2), values.astype(jnp.float16), preferred_element_type=rows.dtype)
        return _summed(out, jnp.concatenate(weight, axis=-2), multiply is _expanded, len(parts))

    return jax.lax.platform_dependent(rows, values, cpu=converted, default=halves)


def _summed(out: Array, weight: Array, expanded: bool, parts: int) -> Array:
    """The weighted sum of a product's parts, which lie side by side along the axis of the right-hand sides."""
    axis = -1 if expanded else -2
    scaled = out * (jnp.swapaxes(weight, -1, -2) if expanded else weight)
    return sum(jnp.split(scaled, parts, axis=axis)[1:], start=jnp.split(scaled, parts, axis=axis)[0])
