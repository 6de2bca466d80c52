"""Convolutions that halve the window, then Transformer blocks: the trunk of Enformer, at the size one asks for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from deepwas.network_options import NetworkOptions
from deepwas.networks.layers import Convolution, FeedForward, dense, wide_bias
from deepwas.networks.windows import Readout, grouped, middle

__all__ = ["EnformerTrunk"]

_TOKENS = 64
_TOWER_KERNEL = 5


class EnformerTrunk(nnx.Module):
    """A convolution of `kernel` positions, stages that halve the window until at most 64 positions are left, at least
    one, `depth` Transformer blocks, then `Readout`.

    A stage: a residual convolution of 5 positions (not in the first), one of 1 position, and attention pooling of two
    neighbours. About (8 depth + 7 stages - 5) width^2 parameters.
    Layer normalisation takes the place of Enformer's batch normalisation, so that no variant hangs on others of its
    batch, and rotary positions (Su et al. 2021) that of its relative ones: both let attention know distances alone.
    Source: Avsec et al. 2021.
    """

    def __init__(self, channels: int, positions: int, options: NetworkOptions, *, pool: int = 1, rngs: nnx.Rngs):
        del pool  # the tower decides
        width, dtype = options.channels, options.compute_dtype
        self.features = 2 * width
        self.stem = Convolution(channels, width, options.kernel, dtype=dtype, bias_init=wide_bias, rngs=rngs)
        stages: list[Stage] = []
        tokens, centre = positions, middle(positions)
        while not stages or tokens > _TOKENS:
            stages.append(Stage(width, first=not stages, dtype=dtype, rngs=rngs))
            tokens, centre = -(-tokens // 2), centre // 2
        self.stages = nnx.List(stages)
        self.blocks = nnx.List([TransformerBlock(options, rngs=rngs) for _ in range(options.depth)])
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.read = Readout(width, tokens, centre, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        hidden = self.stem(x)
        for stage in self.stages:
            hidden = stage(hidden)
        for block in self.blocks:
            hidden = block(hidden)
        return self.read(self.norm(hidden))


class Stage(nnx.Module):
    """(n, positions, width) -> (n, positions / 2, width)."""

    def __init__(self, width: int, *, first: bool, dtype: Any, rngs: nnx.Rngs):
        self.wide = None if first else Branch(width, _TOWER_KERNEL, dtype=dtype, rngs=rngs)
        self.point = Branch(width, 1, dtype=dtype, rngs=rngs)
        self.pool = AttentionPool(width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        if self.wide is not None:
            x = x + self.wide(x)
        return self.pool(x + self.point(x))


class Branch(nnx.Module):
    """conv(silu(LN(x)))."""

    def __init__(self, width: int, kernel: int, *, dtype: Any, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.convolution = Convolution(width, width, kernel, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.convolution(jax.nn.silu(self.norm(x)))


class AttentionPool(nnx.Module):
    """Two neighbours become their mean, weighted in each channel by a softmax of x Q; Q starts as 2 I."""

    def __init__(self, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.query = nnx.Linear(width, width, use_bias=False, dtype=dtype, kernel_init=_twice_identity, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        pairs = grouped(x, 2)
        weight = jax.nn.softmax(self.query(pairs).astype(jnp.float32), axis=2).astype(x.dtype)
        return jnp.sum(pairs * weight, axis=2)


def _twice_identity(key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
    del key, out_sharding
    return 2 * jnp.eye(shape[0], shape[1], dtype=dtype)


class TransformerBlock(nnx.Module):
    """x + attention(LN(x)), then x + feed-forward(LN(x)), the latter of twice the width as in Enformer."""

    def __init__(self, options: NetworkOptions, *, rngs: nnx.Rngs):
        width, dtype, self.heads = options.channels, options.compute_dtype, options.heads
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.project = dense(width, 3 * width, dtype=dtype, rngs=rngs, use_bias=False)
        self.join = dense(width, width, dtype=dtype, rngs=rngs, branches=2 * options.depth)
        self.feed = FeedForward(width, 2, 2 * options.depth, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        n, tokens, width = x.shape
        shape = (n, tokens, self.heads, width // self.heads)
        query, key, value = (part.reshape(shape) for part in jnp.split(self.project(self.norm(x)), 3, axis=-1))
        mixed = jax.nn.dot_product_attention(rotated(query), rotated(key), value)
        x = x + self.join(mixed.reshape(n, tokens, width))
        return x + self.feed(x)


def rotated(x: Array) -> Array:
    """Rotary positions: the inner product of two rotated vectors hangs on their distance, not on where they are.

    x: (n, tokens, heads, 2 d); its pairs (x_i, x_(i+d)) turn by position * 1000^(-i / d), i < d.
    """
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] * 1000.0 ** (-np.arange(half) / half)
    cos, sin = (jnp.asarray(f(angle)[None, :, None, :], x.dtype) for f in (np.cos, np.sin))
    left, right = x[..., :half], x[..., half:]
    return jnp.concatenate([left * cos - right * sin, left * sin + right * cos], axis=-1)
