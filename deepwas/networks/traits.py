"""Several traits on one trunk: a head more, and which parameters are whose."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from numpy.typing import ArrayLike

from deepwas.errors import InputError
from deepwas.networks.base import Prior
from deepwas.networks.layers import Held

__all__ = ["add_trait", "of_trait", "trunk_labels", "with_trunk"]

_HEAD = ("output", "frequency", "log_noise")


def add_trait(network: Prior, log_base: ArrayLike) -> Prior:
    """A network with the same trunk and heads, and one more head for each number in `log_base`, which starts there.

    network: of T traits; it is left as it is.  log_base: log f of the new trait's constant prior, or (K,) for K traits.
    Returns a network of T + K traits.
    """
    more = jnp.atleast_1d(jnp.asarray(log_base, jnp.float32))
    grown = nnx.clone(network)
    grown.log_base = Held(jnp.concatenate([grown.log_base[...], more]))
    grown.output.grow(len(more))
    if grown.frequency is not None:
        grown.frequency.grow(len(more))
    return grown


def of_trait(network: Prior, trait: int) -> Prior:
    """The network of one of its traits alone, the number `trait` from 0; `network` is left as it is."""
    here = slice(trait, trait + 1)
    alone = nnx.clone(network)
    alone.log_base = Held(alone.log_base[...][here])
    alone.output.kernel = nnx.Param(alone.output.kernel[...][:, here])
    alone.output.bias = nnx.Param(alone.output.bias[...][here])
    if alone.frequency is not None:
        alone.frequency.alpha = type(alone.frequency.alpha)(alone.frequency.alpha[...][here])
        alone.frequency.centre = Held(alone.frequency.centre[...][here])
    return alone


def with_trunk(network: Prior, source: Prior) -> Prior:
    """`network` with the trunk of `source`, whose heads and number of traits may be others.

    Raises InputError where the trunks are not of the same layers and sizes.
    """
    graph, state, rest = nnx.split(network, nnx.Param, ...)  # type: ignore[misc]
    own, given = (jax.tree_util.tree_flatten_with_path(x)[0] for x in (state, nnx.state(source, nnx.Param)))
    labels = jax.tree.leaves(trunk_labels(state))
    found = {jax.tree_util.keystr(path): x for path, x in given}
    new = []
    for (path, x), label in zip(own, labels, strict=True):
        other = found.get(jax.tree_util.keystr(path))
        if label == "trunk" and (other is None or other.shape != x.shape):
            size = "is not there" if other is None else f"has shape {tuple(other.shape)}, not {tuple(x.shape)}"
            raise InputError(
                f"the trunk to start from is of another network: its {jax.tree_util.keystr(path)} {size}. Give the "
                "same network options and the same inputs."
            )
        new.append(other if label == "trunk" else x)
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), new), rest)


def trunk_labels(parameters: Any) -> Any:
    """'trunk' or 'head' for each array of a tree of parameters, for `optax.multi_transform`.

    parameters: of a network (`nnx.state(network, nnx.Param)`), or a dictionary that holds them, such as the trainer's
        {'network': ..., 'log_noise': ...}. Heads are the last layer, alpha, and the noise; a linear network has no
        trunk.

        optax.multi_transform({"trunk": optax.set_to_zero(), "head": optimiser}, trunk_labels)
    """

    def label(path: Any, _: Any) -> str:
        keys = [str(getattr(entry, "key", "")) for entry in path]
        top = [k for k in keys if k != "network"][:1]
        return "head" if top and top[0] in _HEAD else "trunk"

    return jax.tree_util.tree_map_with_path(label, parameters)
