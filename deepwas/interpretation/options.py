"""The options of an interpretation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from deepwas.errors import InputError

__all__ = ["InterpretOptions", "Within"]

Within = Literal["section", "block"]


@dataclass(frozen=True)
class InterpretOptions:
    """How a prior is interpreted; every field checks itself.

    repeats: permutations of each annotation.
    within: 'section' permutes among all variants of a rotation's test section, so that an annotation loses all it
        says; 'block' among the variants of each LD block, so that it still says which blocks matter.
    groups: name -> annotations permuted together, as one feature beside the single ones: annotations that repeat one
        another stand in for each other when one alone is permuted.
    attributions: variants, drawn at random, whose log f is divided between annotations by SHAP; 0 for none.
    background: variants drawn for SHAP's average.
    rounds: of SHAP's permutations a variant.
    seed: of everything random.
    """

    repeats: int = 3
    within: Within = "section"
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    attributions: int = 0
    background: int = 64
    rounds: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"repeats": 1, "attributions": 0, "background": 1, "rounds": 1, "seed": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InputError(f"{name} is {getattr(self, name)}; at least {low} is needed.")
        if self.within not in get_args(Within):
            raise InputError(f"within is {self.within!r}; give one of {', '.join(get_args(Within))}.")
        for name, members in self.groups.items():
            if not name or not members or len(set(members)) < len(members):
                raise InputError(f"group {name!r} is {list(members)}; give NAME=ANNOTATION,ANNOTATION, each once.")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"groups": {name: list(members) for name, members in self.groups.items()}}
