"""Networks that map a variant's inputs to the logarithm of its effect variance, for one trait or several.

A network is called with `Inputs` of leading axes (...), and returns log f of (..., traits). Every network starts as the
constant prior: its output is `log_base` for every variant until training moves it, so that step 0 is already sane. They
return log f, so effect variances are positive by construction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import ArrayLike, NDArray

from deepwas.errors import InputError
from deepwas.inputs import Inputs, InputSizes, VariantInputs
from deepwas.network_options import NetworkOptions

__all__ = ["LinearPrior", "MLPPrior", "make_network", "predict_log_variance"]


class Held(nnx.Variable):
    """An array of a network that is not trained."""


class LinearPrior(nnx.Module):
    """Log-linear or softplus-linear effect variance.

    link 'log':       log f_j = log_base + b + x_j . w, the multiplicative form (one weight a fold change).
    link 'softplus':  f_j = exp(log_base) softplus(s + b + x_j . w), s with softplus(s) = 1: the additive form of
                      stratified LD score regression (Finucane et al. 2015), kept positive as in graphREML (Li et al.
                      2024).
    """

    def __init__(self, sizes: InputSizes, log_base: Array, *, link: Literal["log", "softplus"], rngs: nnx.Rngs):
        self.link = link
        self.log_base = Held(log_base)
        zeros = nnx.initializers.zeros_init()
        self.output = nnx.Linear(sizes.annotations, len(log_base), kernel_init=zeros, bias_init=zeros, rngs=rngs)

    def __call__(self, inputs: Inputs) -> Array:
        score = self.output(inputs.annotations)
        if self.link == "softplus":
            score = jnp.log(jax.nn.softplus(math.log(math.e - 1) + score))
        return _like(self.log_base[...], score) + score


class MLPPrior(nnx.Module):
    """log f_j = log_base + g(x_j), g a multilayer perceptron with SiLU units whose last layer starts at zero."""

    def __init__(self, sizes: InputSizes, log_base: Array, *, hidden: Sequence[int], rngs: nnx.Rngs):
        self.log_base = Held(log_base)
        widths = [sizes.annotations, *hidden]
        self.layers = nnx.List(
            [nnx.Linear(a, b, rngs=rngs) for a, b in pairwise(widths)],
        )
        zeros = nnx.initializers.zeros_init()
        self.output = nnx.Linear(widths[-1], len(log_base), kernel_init=zeros, bias_init=zeros, rngs=rngs)

    def __call__(self, inputs: Inputs) -> Array:
        hidden = inputs.annotations
        for layer in self.layers:
            hidden = jax.nn.silu(layer(hidden))
        score = self.output(hidden)
        return _like(self.log_base[...], score) + score


def _like(base: Array, score: Array) -> Array:
    """(T,) with as many axes as (..., T)."""
    return base.reshape((1,) * (score.ndim - 1) + base.shape)


def make_network(
    options: NetworkOptions, sizes: InputSizes, log_base: ArrayLike, *, seed: int = 0
) -> LinearPrior | MLPPrior:
    """The network that `options` describe, for inputs of `sizes`.

    log_base: log f at the start, for every variant: a number, or (T,) for T traits.
    The constant prior has no network: it is fitted in closed form.
    """
    if options.network == "constant":
        raise InputError("the constant prior has no network: see deepwas.training.baseline.")
    if sizes.annotations < 1:
        raise InputError(
            f"the {options.network} network needs at least one annotation. Give annotations, or network 'constant'."
        )
    base = jnp.atleast_1d(jnp.asarray(log_base, jnp.float32))
    rngs = nnx.Rngs(seed)
    if options.network == "mlp":
        return MLPPrior(sizes, base, hidden=options.hidden, rngs=rngs)
    return LinearPrior(sizes, base, link="log" if options.network == "linear" else "softplus", rngs=rngs)


@nnx.jit
def _apply(network: nnx.Module, inputs: Inputs) -> Array:
    return network(inputs)


def predict_log_variance(network: nnx.Module, inputs: VariantInputs, *, rows: int = 65536) -> NDArray[np.float64]:
    """log f of every variant and trait, (M, T), `rows` variants at a time (one compiled shape)."""
    found = [(where, np.asarray(_apply(network, piece), np.float64)) for where, piece in inputs.pieces(rows)]
    return np.concatenate([values[: where.stop - where.start] for where, values in found])
