"""Networks that read windows of tracks or DNA around the variant, together with its annotations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from deepwas.inputs import Inputs, InputSizes
from deepwas.network_options import NetworkOptions
from deepwas.networks.base import Prior
from deepwas.networks.layers import Convolution, SignedLinear, dense, wide_bias

__all__ = ["ConvolutionTrunk", "Readout", "Trunk", "WindowPrior", "middle", "one_hot"]

_SEQUENCE_POOL = 4
_DILATED_KERNEL = 3


def middle(positions: int) -> int:
    """The position of the variant in a window: n // 2, counted from 0."""
    return positions // 2


def one_hot(codes: Array, dtype: Any) -> Array:
    """Codes 0 to 3 (A, C, G, T) become unit vectors, any other code zeros: (...) -> (..., 4)."""
    return jax.nn.one_hot(codes, 4, dtype=dtype)


class Trunk(Protocol):
    """Windows of one kind to features: (n, positions, channels) -> (n, features)."""

    features: int

    def __call__(self, x: Array, /) -> Array: ...


class Readout(nnx.Module):
    """Features at the variant's own position beside a weighted mean of all: (n, positions, width) -> (n, 2 width).

    The weights are a softmax over positions of x . q + b, b by position and starting as -|distance| in quarters of the
    window, so that the neighbourhood of the variant counts most.
    """

    def __init__(self, width: int, positions: int, centre: int, *, dtype: Any, rngs: nnx.Rngs):
        self.centre = centre
        self.query = dense(width, 1, dtype=dtype, rngs=rngs, use_bias=False)
        distance = jnp.abs(jnp.arange(positions, dtype=jnp.float32) - centre)
        self.bias = nnx.Param(-distance / max(positions / 4, 1))

    def __call__(self, x: Array) -> Array:
        score = self.query(x)[..., 0].astype(jnp.float32) + self.bias[...][None, :]
        weight = jax.nn.softmax(score, axis=1).astype(x.dtype)
        return jnp.concatenate([x[:, self.centre], jnp.einsum("nt,ntc->nc", weight, x)], axis=-1)


class ConvolutionTrunk(nnx.Module):
    """A convolution of `kernel` positions, then residual ones of 3 with dilation 1, 2, 4, ..., then `Readout`.

    After `depth` blocks a position sees kernel + 2 (2^depth - 1) others; a dilation that would reach beyond the window
    stays at the last that does not.
    pool: the largest of so many neighbouring positions is kept after the first convolution.
    Source: Kelley et al. 2016 (Basset), 2018 (Basenji); the residual form is that of `ResidualPrior`.
    """

    def __init__(self, channels: int, positions: int, options: NetworkOptions, *, pool: int, rngs: nnx.Rngs):
        width, dtype = options.channels, options.compute_dtype
        self.pool = pool
        self.features = 2 * width
        positions_left = -(-positions // pool)
        self.stem = Convolution(channels, width, options.kernel, dtype=dtype, bias_init=wide_bias, rngs=rngs)
        reach = max(1, positions_left // 2)
        dilations = [min(2**i, 1 << (reach.bit_length() - 1)) for i in range(options.depth)]
        self.blocks = nnx.List([ConvolutionBlock(width, d, options, rngs=rngs) for d in dilations])
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.read = Readout(width, positions_left, middle(positions) // pool, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        hidden = self.stem(x)
        if self.pool > 1:
            hidden = jnp.max(grouped(jax.nn.silu(hidden), self.pool), axis=2)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.read(self.norm(hidden))


class ConvolutionBlock(nnx.Module):
    """conv(silu(LN(x))), three positions `dilation` apart."""

    def __init__(self, width: int, dilation: int, options: NetworkOptions, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, dtype=options.compute_dtype, rngs=rngs)
        self.convolution = Convolution(
            width,
            width,
            _DILATED_KERNEL,
            dilation=dilation,
            dtype=options.compute_dtype,
            kernel_init=nnx.initializers.variance_scaling(1 / options.depth, "fan_in", "truncated_normal"),
            rngs=rngs,
        )

    def __call__(self, x: Array) -> Array:
        return self.convolution(jax.nn.silu(self.norm(x)))


def grouped(x: Array, size: int) -> Array:
    """(n, positions, c) -> (n, groups, size, c); the last position is repeated where the last group is not full."""
    n, positions, channels = x.shape
    groups = -(-positions // size)
    filled = jnp.pad(x, ((0, 0), (0, groups * size - positions), (0, 0)), mode="edge")
    return filled.reshape(n, groups, size, channels)


class WindowPrior(Prior):
    """A trunk for each kind of window that is given; their features and the annotations enter one MLP:

        log f_j = log_base + g(trunk_tracks(tracks_j), r_j, a_j - r_j, x_j)

    r and a are the features of the window with the reference and with the alternative allele, by the same trunk. So f
    hangs on which allele is the reference one: exchanging them gives (a, r - a), another input. It does not hang on
    which allele the GWAS counts, for windows are read in the order of the reference genome.
    g: SiLU layers of widths `hidden`, if any, and the head, which starts at zero.

    make: builds a trunk from channels, positions, options; pool says how finely it may read positions.
    """

    def __init__(
        self,
        options: NetworkOptions,
        sizes: InputSizes,
        log_base: Array,
        *,
        make: Callable[..., Trunk],
        rngs: nnx.Rngs,
    ):
        super().__init__(options, log_base)
        self.dtype = options.compute_dtype
        of_tracks: Trunk | None = None
        of_sequence: Trunk | None = None
        features = sizes.annotations
        if sizes.tracks is not None:
            bins, tracks = sizes.tracks
            of_tracks = make(tracks, bins, options, pool=1, rngs=rngs)
            features += of_tracks.features
        if sizes.sequence is not None:
            of_sequence = make(4, sizes.sequence, options, pool=_SEQUENCE_POOL, rngs=rngs)
            features += 2 * of_sequence.features
        self.of_tracks, self.of_sequence = of_tracks, of_sequence
        widths = [features, *options.hidden]
        self.layers = nnx.List([nnx.Linear(a, b, dtype=self.dtype, rngs=rngs) for a, b in pairwise(widths)])
        self.output = SignedLinear.last(widths[-1], len(log_base))

    def trunk(self, inputs: Inputs) -> Array:
        leading = inputs.annotations.shape[:-1]
        found = []
        if self.of_tracks is not None:
            tracks = inputs.tracks.astype(self.dtype)
            found.append(self.of_tracks(tracks.reshape(-1, *tracks.shape[-2:])))
        if self.of_sequence is not None:
            codes = inputs.sequence.reshape(-1, inputs.sequence.shape[-1])
            reference, alternative = jnp.unstack(
                self.of_sequence(one_hot(codes, self.dtype)).reshape(-1, 2, self.of_sequence.features), axis=1
            )
            found += [reference, alternative - reference]
        found = [x.reshape(*leading, x.shape[-1]) for x in found]
        hidden = jnp.concatenate([*found, inputs.annotations.astype(self.dtype)], axis=-1)
        for layer in self.layers:
            hidden = jax.nn.silu(layer(hidden))
        return hidden
