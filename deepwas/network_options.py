"""The options of a network: which, and how large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from deepwas.errors import InputError

__all__ = ["Network", "NetworkOptions"]

Network = Literal["constant", "linear", "softplus", "mlp"]


@dataclass(frozen=True)
class NetworkOptions:
    """Which network maps a variant's inputs to the logarithm of its effect variance.

    network: 'constant', 'linear' (log-linear), 'softplus' (softplus-linear, the form of S-LDSC) or 'mlp'.
    hidden: widths of the MLP's layers.
    """

    network: Network = "mlp"
    hidden: tuple[int, ...] = (32, 32)

    def __post_init__(self) -> None:
        if self.network not in get_args(Network):
            raise InputError(f"network is {self.network!r}; give one of {', '.join(get_args(Network))}.")
        if self.network == "mlp" and (not self.hidden or min(self.hidden) < 1):
            raise InputError(f"hidden is {self.hidden}; give one positive width per layer, such as 32,32.")
