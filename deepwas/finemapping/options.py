"""The options of fine-mapping."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from deepwas.errors import InputError

__all__ = ["FineMapOptions"]


@dataclass(frozen=True)
class FineMapOptions:
    """How effects are located; every field checks itself.

    slab: variance of the effect of a causal variant, per standard deviation of genotype, in units of the trait's
        variance; None learns it from the z-scores, the prior's sum held.
    max_effects: of a block.  coverage: of credible sets.
    purity: credible sets with two members of |r| below it are marked as impure: they say little of where.
    candidates: variants of a group of effects whose pairs are weighed exactly.
    background: allow for effects that cannot be located one by one, where z-scores show them: strong ones are located
        with less confidence among many others.
    """

    slab: float | None = None
    max_effects: int = 10
    coverage: float = 0.95
    purity: float = 0.5
    candidates: int = 64
    background: bool = True

    def __post_init__(self) -> None:
        if self.slab is not None and not 0 < self.slab < math.inf:
            raise InputError(f"slab is {self.slab}; it must be positive and finite.")
        for name, least in (("max_effects", 1), ("candidates", 2)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; at least {least} is needed.")
        if not 0 < self.coverage < 1:
            raise InputError(f"coverage is {self.coverage}; give a probability, such as 0.95.")
        if not 0 <= self.purity <= 1:
            raise InputError(f"purity is {self.purity}; it is a correlation, from 0 to 1.")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
