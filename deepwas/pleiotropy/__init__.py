"""Which variants act on several traits: scores, trait structure and configurations of effects.

Names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "GlobalTest": "deepwas.pleiotropy.hops",
    "HOPSScores": "deepwas.pleiotropy.hops",
    "NoiseCorrelation": "deepwas.pleiotropy.structure",
    "Pleiotropy": "deepwas.pleiotropy.run",
    "PleiotropyOptions": "deepwas.pleiotropy.options",
    "TraitEffects": "deepwas.pleiotropy.structure",
    "classify": "deepwas.pleiotropy.run",
    "hops_scores": "deepwas.pleiotropy.hops",
    "noise_correlation": "deepwas.pleiotropy.structure",
    "noise_correlation_from_blocks": "deepwas.pleiotropy.structure",
    "trait_effects": "deepwas.pleiotropy.structure",
}

__all__ = [
    "GlobalTest",
    "HOPSScores",
    "NoiseCorrelation",
    "Pleiotropy",
    "PleiotropyOptions",
    "TraitEffects",
    "classify",
    "hops_scores",
    "noise_correlation",
    "noise_correlation_from_blocks",
    "trait_effects",
]

if TYPE_CHECKING:
    from deepwas.pleiotropy.hops import GlobalTest, HOPSScores, hops_scores
    from deepwas.pleiotropy.options import PleiotropyOptions
    from deepwas.pleiotropy.run import Pleiotropy, classify
    from deepwas.pleiotropy.structure import (
        NoiseCorrelation,
        TraitEffects,
        noise_correlation,
        noise_correlation_from_blocks,
        trait_effects,
    )


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'deepwas.pleiotropy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
