"""Which variants act on several traits: scores, trait structure and configurations of effects.

Names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "GlobalTest": "deepwas.pleiotropy.hops",
    "HOPSScores": "deepwas.pleiotropy.hops",
    "hops_scores": "deepwas.pleiotropy.hops",
}

__all__ = ["GlobalTest", "HOPSScores", "hops_scores"]

if TYPE_CHECKING:
    from deepwas.pleiotropy.hops import GlobalTest, HOPSScores, hops_scores


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'deepwas.pleiotropy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
