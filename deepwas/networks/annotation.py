"""Networks that read annotations alone."""

from __future__ import annotations

from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from deepwas.inputs import Inputs, InputSizes
from deepwas.network_options import NetworkOptions
from deepwas.networks.base import Prior
from deepwas.networks.layers import SOFTPLUS_ONE, FeedForward, SignedLinear, dense, log_softplus, wide_bias

__all__ = ["LinearPrior", "MLPPrior", "MonotonePrior", "ResidualPrior"]

Signs = tuple[int, ...]


class LinearPrior(Prior):
    """Log-linear or softplus-linear effect variance.

    'linear':    log f_j = log_base + b + x_j . w, the multiplicative form (one weight a fold change).
    'softplus':  f_j = exp(log_base) softplus(s + b + x_j . w), s with softplus(s) = 1: the additive form of stratified
                 LD score regression (Finucane et al. 2015), kept positive as in graphREML (Li et al. 2024).

    signs: (p,) -1, 0, 1 for weights <= 0, free, >= 0, or None: all free.
    """

    def __init__(self, options: NetworkOptions, sizes: InputSizes, log_base: Array, *, signs: Signs | None = None):
        super().__init__(options, log_base)
        self.softplus = options.network == "softplus"
        self.output = SignedLinear.last(sizes.annotations, len(log_base), signs=signs)

    def trunk(self, inputs: Inputs) -> Array:
        return inputs.annotations

    def link(self, score: Array) -> Array:
        return log_softplus(SOFTPLUS_ONE + score) if self.softplus else score

    def first_weights(self) -> Array:
        return self.output.weights()


class MLPPrior(Prior):
    """log f_j = log_base + g(x_j), g a multilayer perceptron with SiLU units whose last layer starts at zero."""

    def __init__(self, options: NetworkOptions, sizes: InputSizes, log_base: Array, *, rngs: nnx.Rngs):
        super().__init__(options, log_base)
        widths = [sizes.annotations, *options.hidden]
        self.layers = nnx.List([nnx.Linear(a, b, dtype=options.compute_dtype, rngs=rngs) for a, b in pairwise(widths)])
        self.output = SignedLinear.last(widths[-1], len(log_base))

    def trunk(self, inputs: Inputs) -> Array:
        hidden = inputs.annotations
        for layer in self.layers:
            hidden = jax.nn.silu(layer(hidden))
        return hidden

    def first_weights(self) -> Array:
        return self.layers[0].kernel[...]


class MonotonePrior(Prior):
    """An MLP that is non-decreasing in s_j x_j for each annotation with a sign s_j, whatever the others are.

    Weights of annotations with a sign have that sign, all weights of later layers are >= 0, and units rise: a third are
    convex (ELU), a third concave (its point reflection), a third saturating (tanh), for with convex ones alone g would
    be convex. Free annotations keep free weights in the first layer.
    Source: Sill 1997; Runje & Shankaranarayana 2023.
    """

    def __init__(self, options: NetworkOptions, sizes: InputSizes, log_base: Array, *, signs: Signs, rngs: nnx.Rngs):
        super().__init__(options, log_base)
        widths = [sizes.annotations, *options.hidden]
        layers = []
        for n, (a, b) in enumerate(pairwise(widths)):
            of_layer = signs if n == 0 else (1,) * a
            layers.append(SignedLinear.hidden(a, b, signs=of_layer, dtype=options.compute_dtype, rngs=rngs))
        self.layers = nnx.List(layers)
        self.output = SignedLinear.last(widths[-1], len(log_base), signs=(1,) * widths[-1])

    def trunk(self, inputs: Inputs) -> Array:
        hidden = inputs.annotations
        for layer in self.layers:
            convex, concave, saturating = jnp.array_split(layer(hidden), 3, axis=-1)
            hidden = jnp.concatenate([jax.nn.elu(convex), -jax.nn.elu(-concave), jnp.tanh(saturating)], axis=-1)
        return hidden

    def first_weights(self) -> Array:
        return self.layers[0].weights()


class ResidualPrior(Prior):
    """log f_j = log_base + head(LN(h_depth)),  h_0 = x_j A + a,  h_i = h_(i-1) + silu(LN(h_(i-1)) U + u) V + v.

    U: (width, 2 width), V: (2 width, width); LN is layer normalisation of one variant's units, so that no variant hangs
    on others of its batch. About 4 depth width^2 parameters.
    Source: He et al. 2016; normalisation first, Xiong et al. 2020; for tables of features, Gorishniy et al. 2021.
    """

    def __init__(self, options: NetworkOptions, sizes: InputSizes, log_base: Array, *, rngs: nnx.Rngs):
        super().__init__(options, log_base)
        width, dtype = options.channels, options.compute_dtype
        self.embed = dense(sizes.annotations, width, dtype=dtype, rngs=rngs, bias_init=wide_bias)
        self.blocks = nnx.List(
            [FeedForward(width, 2, options.depth, dtype=dtype, rngs=rngs) for _ in range(options.depth)]
        )
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.output = SignedLinear.last(width, len(log_base))

    def trunk(self, inputs: Inputs) -> Array:
        hidden = self.embed(inputs.annotations)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.norm(hidden)

    def first_weights(self) -> Array:
        return self.embed.kernel[...]
