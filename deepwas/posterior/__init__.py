"""Posterior effects under a prior: their means and variances, scores made of them, and local heritability.

All but the options is imported on first use, since it needs JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from deepwas.posterior.options import PosteriorOptions

if TYPE_CHECKING:
    from deepwas.posterior.effects import GeneticVariance, PosteriorEffects, posterior_effects
    from deepwas.posterior.run import Posterior, estimate_posterior
    from deepwas.posterior.score_file import write_score_file

__all__ = [
    "GeneticVariance",
    "Posterior",
    "PosteriorEffects",
    "PosteriorOptions",
    "estimate_posterior",
    "posterior_effects",
    "write_score_file",
]

_HOME = {
    "GeneticVariance": "effects",
    "Posterior": "run",
    "PosteriorEffects": "effects",
    "estimate_posterior": "run",
    "posterior_effects": "effects",
    "write_score_file": "score_file",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
