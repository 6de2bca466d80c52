"""The options of the networks of pleiotropy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from deepwas.errors import InputError

__all__ = ["OBJECTIVES", "NetworkOptions"]

OBJECTIVES = ("supervised", "generative", "both")


@dataclass(frozen=True)
class NetworkOptions:
    """How the networks are made and trained; every field checks itself.

    objective: whose networks are used; all of `OBJECTIVES` are always trained and reported.
    width: channels.  depth: dilated convolutions, None for as many as see a block of median length.
    bound: largest correction of log odds, either way.
    folds: parts of whole chromosomes, or of LD blocks where there are fewer than 5 chromosomes; each is scored by
    networks trained on the others.
    learn_blocks: LD blocks, at most, that are trained on.  epochs: passes over them.  learning_rate, weight_decay: of
    AdamW.  noise: standard deviation of what is added to standardised channels, and share of channels left out.
    consistency: weight of the change of predictions that this noise makes.  shrinkage: weight of the divergence from no
    correction.
    validation: share of the training blocks that says which epoch's network is kept.
    batch: variants at once.  seed: of everything random.
    """

    objective: str = "supervised"
    width: int = 8
    depth: int | None = None
    bound: float = 4.0
    folds: int = 3
    learn_blocks: int = 200
    epochs: int = 25
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    noise: float = 0.1
    consistency: float = 1.0
    shrinkage: float = 0.5
    validation: float = 0.25
    batch: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise InputError(f"objective is {self.objective!r}; choose {', '.join(OBJECTIVES)}.")
        least = {"width": 2, "folds": 2, "learn_blocks": 4, "epochs": 1, "batch": 64, "seed": 0}
        for name, value in (least | ({} if self.depth is None else {"depth": 1})).items():
            if getattr(self, name) < value:
                raise InputError(f"{name} is {getattr(self, name)}; at least {value} is needed.")
        for name in ("bound", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be above 0.")
        for name in ("weight_decay", "consistency", "shrinkage"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        for name in ("noise", "validation"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 0 or more, below 1.")
        if self.validation == 0:
            raise InputError("validation is 0; blocks that choose the epoch are needed.")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
