"""deepwas: learn which variants matter from GWAS summary statistics.

A Flax network maps a variant's functional annotations to the variance of its effect, and is trained by
maximising the full likelihood of the summary statistics under linkage disequilibrium (LD):

    z | beta ~ N(sqrt(N) R beta, sigma2 R),  beta_j ~ N(0, f_j)   =>   z ~ N(0, N R diag(f) R + sigma2 R)

Names are imported on first use, so `import deepwas` costs milliseconds and no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "AnnotationOptions": "deepwas.annotations",
    "Annotations": "deepwas.annotations",
    "ConvergenceWarning": "deepwas.errors",
    "DataWarning": "deepwas.errors",
    "DeepwasError": "deepwas.errors",
    "Direction": "deepwas.direction",
    "DirectionOptions": "deepwas.direction",
    "Enrichment": "deepwas.enrichment",
    "FineMapOptions": "deepwas.finemapping",
    "FineMapping": "deepwas.finemapping",
    "Fit": "deepwas.runs",
    "FitOptions": "deepwas.options",
    "HarmonisedSumstats": "deepwas.sumstats",
    "InputError": "deepwas.errors",
    "InterpretOptions": "deepwas.interpretation",
    "Interpretation": "deepwas.interpretation",
    "LDBlock": "deepwas.ld",
    "LDOptions": "deepwas.ld",
    "LDStore": "deepwas.ld",
    "Posterior": "deepwas.posterior",
    "PosteriorEffects": "deepwas.posterior",
    "PosteriorOptions": "deepwas.posterior",
    "PrecisionOperator": "deepwas.likelihood.operator",
    "QCOptions": "deepwas.sumstats",
    "ScoreOptions": "deepwas.annotations.scores",
    "Scores": "deepwas.annotations.scores",
    "SequenceOptions": "deepwas.tracks",
    "SignedScores": "deepwas.annotations.signed",
    "SolveInfo": "deepwas.likelihood",
    "SumStats": "deepwas.sumstats",
    "TrackOptions": "deepwas.tracks",
    "WindowFile": "deepwas.tracks",
    "annotate": "deepwas.annotations",
    "build_ld": "deepwas.ld",
    "estimate_enrichment": "deepwas.enrichment",
    "estimate_posterior": "deepwas.posterior",
    "example_files": "deepwas.demo",
    "extract_sequence": "deepwas.tracks",
    "extract_tracks": "deepwas.tracks",
    "finemap": "deepwas.finemapping",
    "fit": "deepwas.fitting",
    "fit_rotations": "deepwas.fitting",
    "fit_traits": "deepwas.fitting_traits",
    "harmonise": "deepwas.sumstats",
    "interpret": "deepwas.interpretation",
    "ld_score_loss": "deepwas.likelihood",
    "load_fit": "deepwas.runs",
    "log_likelihood": "deepwas.likelihood",
    "log_likelihood_and_grad": "deepwas.likelihood",
    "open_ld": "deepwas.ld",
    "open_windows": "deepwas.tracks",
    "posterior_effects": "deepwas.posterior",
    "read_annotations": "deepwas.annotations",
    "read_harmonised": "deepwas.sumstats",
    "read_scores": "deepwas.annotations.scores",
    "read_signed_scores": "deepwas.annotations.signed",
    "read_sumstats": "deepwas.sumstats",
    "solve_ld": "deepwas.likelihood.general",
    "test_direction": "deepwas.direction",
    "write_ld": "deepwas.ld.write",
}

__all__ = [
    "AnnotationOptions",
    "Annotations",
    "ConvergenceWarning",
    "DataWarning",
    "DeepwasError",
    "Direction",
    "DirectionOptions",
    "Enrichment",
    "FineMapOptions",
    "FineMapping",
    "Fit",
    "FitOptions",
    "HarmonisedSumstats",
    "InputError",
    "InterpretOptions",
    "Interpretation",
    "LDBlock",
    "LDOptions",
    "LDStore",
    "Posterior",
    "PosteriorEffects",
    "PosteriorOptions",
    "PrecisionOperator",
    "QCOptions",
    "ScoreOptions",
    "Scores",
    "SequenceOptions",
    "SignedScores",
    "SolveInfo",
    "SumStats",
    "TrackOptions",
    "WindowFile",
    "__version__",
    "annotate",
    "build_ld",
    "estimate_enrichment",
    "estimate_posterior",
    "example_files",
    "extract_sequence",
    "extract_tracks",
    "finemap",
    "fit",
    "fit_rotations",
    "fit_traits",
    "harmonise",
    "interpret",
    "ld_score_loss",
    "load_fit",
    "log_likelihood",
    "log_likelihood_and_grad",
    "open_ld",
    "open_windows",
    "posterior_effects",
    "read_annotations",
    "read_harmonised",
    "read_scores",
    "read_signed_scores",
    "read_sumstats",
    "solve_ld",
    "test_direction",
    "write_ld",
]

if TYPE_CHECKING:
    from deepwas.annotations import AnnotationOptions, Annotations, annotate, read_annotations
    from deepwas.annotations.scores import ScoreOptions, Scores, read_scores
    from deepwas.annotations.signed import SignedScores, read_signed_scores
    from deepwas.demo import example_files
    from deepwas.direction import Direction, DirectionOptions, test_direction
    from deepwas.enrichment import Enrichment, estimate_enrichment
    from deepwas.errors import ConvergenceWarning, DataWarning, DeepwasError, InputError
    from deepwas.finemapping import FineMapOptions, FineMapping, finemap
    from deepwas.fitting import fit, fit_rotations
    from deepwas.fitting_traits import fit_traits
    from deepwas.interpretation import Interpretation, InterpretOptions, interpret
    from deepwas.ld import LDBlock, LDOptions, LDStore, build_ld, open_ld
    from deepwas.ld.write import write_ld
    from deepwas.likelihood import SolveInfo, ld_score_loss, log_likelihood, log_likelihood_and_grad
    from deepwas.likelihood.general import solve_ld
    from deepwas.likelihood.operator import PrecisionOperator
    from deepwas.options import FitOptions
    from deepwas.posterior import Posterior, PosteriorEffects, PosteriorOptions, estimate_posterior, posterior_effects
    from deepwas.runs import Fit, load_fit
    from deepwas.sumstats import HarmonisedSumstats, QCOptions, SumStats, read_harmonised, read_sumstats
    from deepwas.sumstats.harmonise import harmonise
    from deepwas.tracks import (
        SequenceOptions,
        TrackOptions,
        WindowFile,
        extract_sequence,
        extract_tracks,
        open_windows,
    )


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'deepwas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
