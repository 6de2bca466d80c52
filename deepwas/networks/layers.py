"""Small layers that several networks are made of."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

__all__ = ["SOFTPLUS_ONE", "Convolution", "FeedForward", "Held", "SignedLinear", "dense", "log_softplus", "wide_bias"]

SOFTPLUS_ONE = math.log(math.e - 1)
"""softplus of this is 1."""

wide_bias = nnx.initializers.normal(0.5)
"""Biases in front of a normalisation, which would leave nothing but the sign of a single input without them."""


def dense(n_in: int, n_out: int, *, dtype: Any, rngs: nnx.Rngs, branches: int = 1, **options: Any) -> nnx.Linear:
    """A linear layer with float32 parameters.

    branches: how many residual branches, of which it ends one, are added up; it starts at 1 / sqrt(branches) of the
        usual size, so that their sum has the size of one.
    """
    init = nnx.initializers.variance_scaling(1 / branches, "fan_in", "truncated_normal")
    return nnx.Linear(n_in, n_out, dtype=dtype, kernel_init=init, rngs=rngs, **options)


class Held(nnx.Variable):
    """An array of a network that is not trained."""


class SignedLinear(nnx.Module):
    """x W + b, the rows of W free, W_j = v_j, or of one sign, W_j = s_j v_j^2.

    Squares have a true derivative everywhere, so that gradients of parts of a batch add up to that of the whole (which
    those of a projection onto W >= 0 do not), reach 0, and under Adam leave it quickly. Source: Hoff 2017.

    kernel: v, (n_in, n_out).  signs: s, (n_in,) of -1, 0 (free), 1, or None if all are free.
    """

    def __init__(self, kernel: Array, *, signs: tuple[int, ...] | None = None, dtype: Any = jnp.float32):
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(kernel.shape[1], jnp.float32))
        self.signs = signs
        self.dtype = dtype

    @classmethod
    def last(cls, n_in: int, n_out: int, *, signs: tuple[int, ...] | None = None) -> SignedLinear:
        """A last layer: its weights are 0 until it is trained, those of one sign 1e-6, where they have a gradient."""
        return cls(_start(n_in, n_out, signs), signs=signs)

    @classmethod
    def hidden(
        cls, n_in: int, n_out: int, *, signs: tuple[int, ...] | None, dtype: Any, rngs: nnx.Rngs
    ) -> SignedLinear:
        """A hidden layer.

        Weights of one sign start between 0 and 4 / n_in, so that those into a unit sum to 2: units that rise together
        would else drive the next layer into saturation.
        """
        kernel = nnx.initializers.lecun_normal()(rngs.params(), (n_in, n_out), jnp.float32)
        if signs is not None:
            bound = jax.random.uniform(rngs.params(), (n_in, n_out), jnp.float32, 0.0, 4 / n_in)
            kernel = jnp.where(_column(signs) == 0, kernel, jnp.sqrt(bound))
        return cls(kernel, signs=signs, dtype=dtype)

    def grow(self, columns: int) -> None:
        """Append outputs, as a last layer starts them."""
        kernel, bias = self.kernel[...], self.bias[...]
        self.kernel = nnx.Param(jnp.concatenate([kernel, _start(len(kernel), columns, self.signs)], axis=1))
        self.bias = nnx.Param(jnp.concatenate([bias, jnp.zeros(columns, bias.dtype)]))

    def weights(self) -> Array:
        """W, (n_in, n_out)."""
        kernel = self.kernel[...]
        if self.signs is None:
            return kernel
        signs = _column(self.signs)
        return jnp.where(signs == 0, kernel, signs * kernel**2)

    def __call__(self, x: Array) -> Array:
        bias = self.bias[...].astype(self.dtype)
        return x.astype(self.dtype) @ self.weights().astype(self.dtype) + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


def _column(signs: tuple[int, ...]) -> Array:
    return jnp.asarray(signs, jnp.float32).reshape(-1, 1)


def _start(n_in: int, n_out: int, signs: tuple[int, ...] | None) -> Array:
    rows = jnp.zeros((n_in, 1), jnp.float32) if signs is None else jnp.where(_column(signs) == 0, 0.0, 1e-3)
    return jnp.repeat(rows.astype(jnp.float32), n_out, axis=1)


def log_softplus(x: Array) -> Array:
    """log log(1 + e^x), also where log(1 + e^x) is 0 in float32."""
    low = -10.0
    tail = jnp.minimum(x, low)
    return jnp.where(x < low, tail - jnp.exp(tail) / 2, jnp.log(jax.nn.softplus(jnp.maximum(x, low))))


class FeedForward(nnx.Module):
    """silu(LN(x) U + u) V + v, the branch of a residual block; U: (width, times width)."""

    def __init__(self, width: int, times: int, branches: int, *, dtype: Any, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.rise = dense(width, times * width, dtype=dtype, rngs=rngs)
        self.fall = dense(times * width, width, dtype=dtype, rngs=rngs, branches=branches)

    def __call__(self, x: Array) -> Array:
        return self.fall(jax.nn.silu(self.rise(self.norm(x))))


class Convolution(nnx.Conv):
    """A convolution along the positions of (n, positions, channels), zeros beyond the window.

    XLA's convolutions take some twenty times as long on CPU inside a loop, where `apply_network` has them, as outside;
    one product with the unfolded window takes 1.5 times as long, inside and outside. It holds `kernel` times the
    input, so other devices convolve.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, *, dilation: int = 1, **options: Any):
        super().__init__(n_in, n_out, kernel, kernel_dilation=dilation, **options)
        self.dilation = dilation

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        if jax.default_backend() != "cpu":
            return super().__call__(inputs, out_sharding)
        taps, n_in, n_out = self.kernel_shape
        reach, positions = self.dilation * (taps // 2), inputs.shape[1]
        kernel = self.kernel[...].reshape(taps * n_in, n_out).astype(self.dtype)
        filled = jnp.pad(inputs.astype(self.dtype), ((0, 0), (reach, reach), (0, 0)))
        seen = [filled[:, t * self.dilation : t * self.dilation + positions] for t in range(taps)]
        out = jnp.concatenate(seen, axis=-1) @ kernel
        return out if self.bias is None else out + self.bias[...].astype(self.dtype).reshape(1, 1, n_out)
