"""From options to a network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from numpy.typing import ArrayLike

from deepwas.errors import InputError
from deepwas.inputs import InputSizes
from deepwas.network_options import NetworkOptions, require_monotone_names, required_inputs
from deepwas.networks.annotation import LinearPrior, MLPPrior, MonotonePrior, ResidualPrior
from deepwas.networks.base import Prior
from deepwas.networks.enformer import EnformerTrunk
from deepwas.networks.windows import ConvolutionTrunk, WindowPrior

__all__ = ["count_parameters", "make_network"]


def make_network(
    options: NetworkOptions, sizes: InputSizes, log_base: ArrayLike, *, seed: int = 0, names: Sequence[str] = ()
) -> Prior:
    """The network that `options` describe, for inputs of `sizes`.

    log_base: log f at the start, for every variant: a number, or (T,) for T traits.
    names: of the annotations' columns, which option `monotone` needs.
    The constant prior has no network: it is fitted in closed form.
    """
    if options.network == "constant":
        raise InputError("the constant prior has no network: see deepwas.training.baseline.")
    required_inputs(options, sizes)
    base = jnp.atleast_1d(jnp.asarray(log_base, jnp.float32))
    rngs = nnx.Rngs(seed)
    signs = _signs(options, sizes, names)
    if options.network in ("linear", "softplus"):
        return LinearPrior(options, sizes, base, signs=signs)
    if options.network == "mlp" and signs is not None:
        return MonotonePrior(options, sizes, base, signs=signs, rngs=rngs)
    if options.network == "mlp":
        return MLPPrior(options, sizes, base, rngs=rngs)
    if options.network == "residual":
        return ResidualPrior(options, sizes, base, rngs=rngs)
    make = ConvolutionTrunk if options.network == "cnn" else EnformerTrunk
    return WindowPrior(options, sizes, base, make=make, rngs=rngs)


def _signs(options: NetworkOptions, sizes: InputSizes, names: Sequence[str]) -> tuple[int, ...] | None:
    """(p,) -1, 0 or 1 from option `monotone`, or None if it is empty."""
    if not options.monotone:
        return None
    if len(names) != sizes.annotations:
        raise InputError(
            f"monotone needs the names of all {sizes.annotations} annotations; {len(names)} were given as names=."
        )
    require_monotone_names(options, names, with_missing=False)
    given = {name: 1 if sign == "+" else -1 for name, _, sign in (text.rpartition(":") for text in options.monotone)}
    return tuple(given.get(name, 0) for name in names)


def count_parameters(network: nnx.Module) -> int:
    """Numbers that are trained. An abstract network, of `nnx.eval_shape`, has them too."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(network, nnx.Param)))
