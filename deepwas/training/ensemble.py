"""Several networks as one prior, and networks of a rotation as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from deepwas.errors import InputError
from deepwas.inputs import Inputs
from deepwas.networks import make_network, of_trait
from deepwas.options import FitOptions
from deepwas.runs import sizes_of
from deepwas.training.checkpoints import load_tree, save_tree

__all__ = [
    "EnsemblePrior",
    "build_network",
    "load_network",
    "member_folder",
    "members_of",
    "save_network",
    "trait_of",
]


class EnsemblePrior(nnx.Module):
    """f_j = mean over n networks of their f_j.

    If each network is as likely to be right, an effect has the variance mean_n f_nj (law of total variance), and the
    heritabilities of the networks average. The geometric mean lies below it, most where networks disagree. Of six
    simulated traits it was better for one, by 1 nat on 40 held-out blocks, and worse for five, by 1 to 23: most where
    there was least to learn from.
    """

    def __init__(self, members: Sequence[nnx.Module]):
        self.members = nnx.List(members)
        self.chunk = getattr(members[0], "chunk", None)

    def __call__(self, inputs: Inputs) -> Array:
        """log f, (..., T)."""
        log_f = jnp.stack([member(inputs) for member in self.members])
        return jax.nn.logsumexp(log_f, axis=0) - jnp.log(jnp.float32(len(self.members)))


def member_folder(folder: Path, member: int) -> Path:
    """Where a rotation keeps the training of one network of its ensemble: the first has the rotation's own folder."""
    return folder / f"member_{member}" if member else folder


def members_of(network: Any) -> list[Any]:
    """The networks of an ensemble, or the only one."""
    return list(network.members) if isinstance(network, EnsemblePrior) else [network]


def trait_of(network: Any, trait: int) -> Any:
    """One trait's part of a network or ensemble of several traits."""
    if isinstance(network, EnsemblePrior):
        return EnsemblePrior([of_trait(member, trait) for member in members_of(network)])
    return of_trait(network, trait)


def save_network(folder: Path, network: nnx.Module) -> None:
    """Write a rotation's network or networks into its folder."""
    for e, member in enumerate(members_of(network)):
        own = member_folder(folder, e)
        own.mkdir(parents=True, exist_ok=True)
        save_tree(own / "network", nnx.to_pure_dict(nnx.state(member)))


def build_network(options: FitOptions, content: dict[str, Any]) -> nnx.Module:
    """The network or ensemble that a rotation's record describes, untrained."""

    def one() -> nnx.Module:
        return make_network(options, sizes_of(content), content["log_base"], names=content["inputs"])

    return one() if options.ensemble == 1 else EnsemblePrior([one() for _ in range(options.ensemble)])


def load_network(folder: Path, options: FitOptions, content: dict[str, Any]) -> nnx.Module:
    """Read what `save_network` wrote. InputError if it is not there."""
    network = build_network(options, content)
    found = []
    for e, member in enumerate(members_of(network)):
        own = member_folder(folder, e) / "network"
        if not own.is_dir():
            raise InputError(f"{own}: missing. The run folder is incomplete: run the fit again.")
        graph, state = nnx.split(member)
        nnx.replace_by_pure_dict(state, load_tree(own, nnx.to_pure_dict(state)))
        found.append(nnx.merge(graph, state))
    return found[0] if len(found) == 1 else EnsemblePrior(found)
