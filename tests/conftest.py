"""Tests run in float64, with warnings as errors (pyproject.toml) and strict rank promotion.

Programs that were compiled once are read from a folder of this test run, also by the processes that tests start: many
fits of one problem compile the same programs. Each worker has its own, since JAX does not write them atomically.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Two test processes share two cores: threads of BLAS on top of that cost tenfold.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import jax
import pytest

if "DEEPWAS_TEST_PROGRAMS" not in os.environ:  # else this is a worker
    os.environ["DEEPWAS_TEST_PROGRAMS"] = tempfile.mkdtemp(prefix="deepwas-programs-")
    atexit.register(shutil.rmtree, os.environ["DEEPWAS_TEST_PROGRAMS"], ignore_errors=True)
_own = Path(os.environ["DEEPWAS_TEST_PROGRAMS"]) / os.environ.get("PYTEST_XDIST_WORKER", "alone")
for _name, _value in {
    "jax_compilation_cache_dir": str(_own),
    "jax_persistent_cache_min_compile_time_secs": 0.2,
}.items():
    jax.config.update(_name, _value)
    os.environ[_name.upper()] = str(_value)

jax.config.update("jax_enable_x64", True)
# How long an example takes hangs on what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def float32():
    """Run one test without x64, as users do."""
    with jax.enable_x64(False):
        yield
