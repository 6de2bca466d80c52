"""Networks that map a variant's standardised annotations to the logarithm of its effect variance.

Every network starts as the constant prior: its output is `log_base` for every variant until training moves it, so that
step 0 is already sane. They return log f, so effect variances are positive by construction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.options import Network

__all__ = ["LinearPrior", "MLPPrior", "make_network", "predict_log_variance"]


class Held(nnx.Variable):
    """An array of a network that is not trained."""


class LinearPrior(nnx.Module):
    """Log-linear or softplus-linear effect variance.

    link 'log':       log f_j = log_base + b + x_j . w, the multiplicative form (one weight a fold change).
    link 'softplus':  f_j = exp(log_base) softplus(s + b + x_j . w), s with softplus(s) = 1: the additive form of
                      stratified LD score regression (Finucane et al. 2015), kept positive as in graphREML (Li et al.
                      2024).
    features: (..., p) to log f: (...).
    """

    def __init__(self, n_features: int, log_base: float, *, link: Literal["log", "softplus"], rngs: nnx.Rngs):
        self.link = link
        self.log_base = Held(jnp.asarray(log_base, jnp.float32))
        zeros = nnx.initializers.zeros_init()
        self.output = nnx.Linear(n_features, 1, kernel_init=zeros, bias_init=zeros, rngs=rngs)

    def __call__(self, features: Array) -> Array:
        score = self.output(features)[..., 0]
        if self.link == "log":
            return self.log_base[...] + score
        one = math.log(math.e - 1)
        return self.log_base[...] + jnp.log(jax.nn.softplus(one + score))


class MLPPrior(nnx.Module):
    """log f_j = log_base + g(x_j), g a multilayer perceptron with SiLU units whose last layer starts at zero.

    features: (..., p) to log f: (...).
    """

    def __init__(self, n_features: int, log_base: float, *, hidden: Sequence[int], rngs: nnx.Rngs):
        self.log_base = Held(jnp.asarray(log_base, jnp.float32))
        widths = [n_features, *hidden]
        self.layers = nnx.List(
            [nnx.Linear(a, b, rngs=rngs) for a, b in pairwise(widths)],
        )
        zeros = nnx.initializers.zeros_init()
        self.output = nnx.Linear(widths[-1], 1, kernel_init=zeros, bias_init=zeros, rngs=rngs)

    def __call__(self, features: Array) -> Array:
        hidden = features
        for layer in self.layers:
            hidden = jax.nn.silu(layer(hidden))
        return self.log_base[...] + self.output(hidden)[..., 0]


def make_network(
    name: Network, n_features: int, log_base: float, *, hidden: Sequence[int] = (32, 32), seed: int = 0
) -> LinearPrior | MLPPrior:
    """A network by name: 'linear' (log-linear), 'softplus' (softplus-linear) or 'mlp'.

    n_features: p, columns of the standardised annotations.  log_base: log f at the start, for every variant.
    hidden: widths of the MLP's layers.  The constant prior has no network: it is fitted in closed form.
    """
    if name not in get_args(Network):
        raise InputError(f"network is {name!r}; give one of {', '.join(get_args(Network))}.")
    if name == "constant":
        raise InputError("the constant prior has no network: see deepwas.training.baseline.")
    if n_features < 1:
        raise InputError(f"the {name} network needs at least one annotation. Give annotations, or network 'constant'.")
    rngs = nnx.Rngs(seed)
    if name == "mlp":
        if not hidden or min(hidden) < 1:
            raise InputError(f"hidden is {tuple(hidden)}; give one positive width per layer, such as 32,32.")
        return MLPPrior(n_features, log_base, hidden=hidden, rngs=rngs)
    return LinearPrior(n_features, log_base, link="log" if name == "linear" else "softplus", rngs=rngs)


@nnx.jit
def _apply(network: nnx.Module, features: Array) -> Array:
    return network(features)


def predict_log_variance(
    network: nnx.Module, features: NDArray[np.float32], *, rows: int = 65536
) -> NDArray[np.float64]:
    """log f of every variant, (M,), from standardised annotations (M, p), `rows` at a time (one compiled shape)."""
    out = np.empty(len(features))
    size = min(rows, len(features))
    for start in range(0, len(features), size):
        piece = features[start : start + size]
        padded = np.zeros((size, features.shape[1]), np.float32)
        padded[: len(piece)] = piece
        out[start : start + size] = np.asarray(_apply(network, jnp.asarray(padded)))[: len(piece)]
    return out
