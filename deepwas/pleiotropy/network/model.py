"""The network: a dilated convolution along the variants of an LD block, over channels pooled across traits."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from deepwas.networks.layers import Convolution, dense

__all__ = ["Padded", "SharingNetwork", "depth_for", "pad"]

_MOST_DEPTH = 9
_SHORTEST = 64


class Padded(NamedTuple):
    """Blocks padded to one length: by_trait (B, L, K, C), shared (B, L, S), real (B, L), 1 for variants."""

    by_trait: Any
    shared: Any
    real: Any


class SharingNetwork(nnx.Module):
    """A number for each variant: how much likelier than before it is to act on several traits.

        e_jk = encode(x_jk),   h_j = mix(mean_k e_jk, max_k e_jk, second largest_k e_jk, s_j)
        h <- h + conv_d(silu(LN(h))) for dilation d = 1, 2, 4, ...,
        c_j = bound * tanh((a . LN(h_j) + b . (mean_k x_jk, s_j)) / bound)

    The linear part lets a plain dependence on a channel be learned before anything that a few effects would overfit.
    x_jk: channels of variant j and trait k; one encoder serves all traits, so that c does not depend on their order,
    and one set of weights serves any number of them.  s_j: channels of the variant.  c is 0 before training.
    A position sees 2^(depth + 1) - 1 variants; padding stays 0.
    Sources: Zaheer et al. 2017, for pooling over a set; van den Oord et al. 2016, for dilated convolutions.
    """

    def __init__(self, by_trait: int, shared: int, *, width: int, depth: int, bound: float, rngs: nnx.Rngs):
        kind = jnp.float32
        self.bound = bound
        self.rise = dense(by_trait, width, dtype=kind, rngs=rngs)
        self.encode = dense(width, width, dtype=kind, rngs=rngs)
        self.mix = dense(3 * width + shared, width, dtype=kind, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(width, dtype=kind, rngs=rngs) for _ in range(depth)])
        self.convolutions = nnx.List(
            [
                Convolution(
                    width,
                    width,
                    3,
                    dilation=2**i,
                    dtype=kind,
                    kernel_init=nnx.initializers.variance_scaling(1 / depth, "fan_in", "truncated_normal"),
                    rngs=rngs,
                )
                for i in range(depth)
            ]
        )
        self.norm = nnx.LayerNorm(width, dtype=kind, rngs=rngs)
        self.read = nnx.Linear(width, 1, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)
        self.linear = nnx.Linear(
            by_trait + shared, 1, use_bias=False, kernel_init=nnx.initializers.zeros_init(), rngs=rngs
        )

    def __call__(self, x: Padded) -> Array:
        """c, (B, L); 0 where there is no variant."""
        each = self.encode(jax.nn.silu(self.rise(x.by_trait)))
        ranked = jnp.sort(each, axis=2)
        pooled = jnp.concatenate([each.mean(axis=2), ranked[:, :, -1], ranked[:, :, -2], x.shared], axis=-1)
        real = x.real[:, :, None]
        hidden = self.mix(pooled) * real
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            hidden = hidden + convolution(jax.nn.silu(norm(hidden)) * real) * real
        plain = jnp.concatenate([x.by_trait.mean(axis=2), x.shared], axis=-1)
        found = (self.read(self.norm(hidden)) + self.linear(plain))[:, :, 0]
        return self.bound * jnp.tanh(found / self.bound) * x.real


def depth_for(lengths: list[int]) -> int:
    """Convolutions, so that a position sees a block of median length."""
    middle = max(2.0, float(np.median(lengths)))
    return min(_MOST_DEPTH, max(2, math.ceil(math.log2(middle + 1)) - 1))


def pad(arrays: list[NDArray[Any]], length: int, fill: float = 0.0) -> NDArray[Any]:
    """(B, length, ...) from arrays of (m, ...), m <= length."""
    first = arrays[0]
    out = np.full((len(arrays), length, *first.shape[1:]), fill, first.dtype)
    for row, x in enumerate(arrays):
        out[row, : len(x)] = x
    return out


def padded_length(m: int) -> int:
    """The next of 64, 128, 256, ...: few lengths, so few compilations."""
    return int(max(_SHORTEST, 2 ** math.ceil(math.log2(m))))
