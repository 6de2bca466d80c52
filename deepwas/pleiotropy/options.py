"""The options of a classification of variants by the traits they act on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, get_args

from deepwas.errors import InputError
from deepwas.pleiotropy.network.options import OBJECTIVES
from deepwas.posterior.options import MissingPrior

__all__ = ["MOST_AT_ONCE", "MOST_TRAITS", "PleiotropyOptions"]

MOST_AT_ONCE = 20  # traits of a classification
MOST_TRAITS = 8  # of which all sets are kept, 255 configurations; and that networks are for


@dataclass(frozen=True)
class PleiotropyOptions:
    """How variants are classified; every field checks itself.

    vertical: estimate effects of trait on trait, T; else T = 0, and effects through another trait count as direct.
    sharing: learn how many variants act on several traits; else traits are independent given their priors.
    confounders: look for heritable factors that act on several traits, and set variants acting through one apart.
    fdr: of the effects of trait on trait.  threshold: p-value of their instruments.
    learn_blocks: LD blocks, at most, from which sizes of effects and sharing are learned.  rounds: of each learning, at
    most: sharing is learned again where a prior is far off, and where a factor is found.
    draws: of T, that carry its uncertainty.
    max_effects: of a block.  coverage: of credible sets.  purity: least |r| between two variants of a set that is not
    marked impure.  candidates: variants, each with traits, whose pairs are
    weighed exactly.  more_candidates: where one effect on several traits stands against two.
    network: train the semi-supervised networks (`deepwas.pleiotropy.network`); blocks are then gone through twice.
    network_objective: 'supervised' (labels alone), 'generative' (without labels) or 'both', whose networks are used;
    all three are trained and reported.
    calibration_blocks: LD blocks, at most, on which data are simulated under the fitted model and classified, to see
    whether probabilities mean what they say; 0 for none.
    bootstrap: draws of the test that variants are shared beyond chance, on the learning blocks; 0 for no test.
    missing_prior: of variants that a table of priors lacks: 'refuse', or 'zero': they have no effect.
    hops_permutations: of the HOPS scores' null, 0 for the theoretical one.  seed: of everything random.
    """

    vertical: bool = True
    sharing: bool = True
    confounders: bool = True
    fdr: float = 0.05
    threshold: float = 5e-8
    learn_blocks: int = 200
    rounds: int = 10
    draws: int = 32
    max_effects: int = 10
    coverage: float = 0.95
    purity: float = 0.5
    candidates: int = 96
    more_candidates: int = 384
    network: bool = False
    network_objective: str = "supervised"
    calibration_blocks: int = 30
    bootstrap: int = 0
    missing_prior: MissingPrior = "refuse"
    hops_permutations: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"learn_blocks": 1, "rounds": 1, "draws": 2, "max_effects": 1, "candidates": 2, "more_candidates": 0}
        for name, value in (
            least | dict.fromkeys(("hops_permutations", "calibration_blocks", "bootstrap", "seed"), 0)
        ).items():
            if getattr(self, name) < value:
                raise InputError(f"{name} is {getattr(self, name)}; at least {value} is needed.")
        if self.missing_prior not in get_args(MissingPrior):
            raise InputError(f"missing_prior is {self.missing_prior!r}; it is refuse or zero.")
        if self.network_objective not in OBJECTIVES:
            raise InputError(f"network_objective is {self.network_objective!r}; choose {', '.join(OBJECTIVES)}.")
        if not 0 <= self.purity <= 1:
            raise InputError(f"purity is {self.purity}; it is a correlation, 0 to 1.")
        for name in ("fdr", "threshold", "coverage"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be above 0 and below 1.")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
