"""Functional annotations of variants: from intervals, a genetic map, tables and the LD reference itself."""

from __future__ import annotations

from deepwas.annotations.build import AnnotationOptions, annotate
from deepwas.annotations.features import Annotations, read_annotations
from deepwas.annotations.standardise import Standardiser

__all__ = ["AnnotationOptions", "Annotations", "Standardiser", "annotate", "read_annotations"]
