"""Tests run in float64, with warnings as errors (pyproject.toml) and strict rank promotion."""

from __future__ import annotations

import os

# Two test processes share two cores: threads of BLAS on top of that cost tenfold.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def float32():
    """Run one test without x64, as users do."""
    with jax.enable_x64(False):
        yield
