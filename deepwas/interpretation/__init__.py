"""What a trained prior has learned: importance, responses, attributions, and enrichment of its heritability."""

from __future__ import annotations

from deepwas.interpretation.options import InterpretOptions
from deepwas.interpretation.run import Interpretation, interpret

__all__ = ["InterpretOptions", "Interpretation", "interpret"]
