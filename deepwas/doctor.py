"""Checks of an installation, run by `deepwas doctor`."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import numpy as np

from deepwas import __version__

__all__ = ["Finding", "examine"]


class Finding(NamedTuple):
    """One check: its name, what was found, and whether that is as it should be."""

    check: str
    result: str
    ok: bool


def examine() -> list[Finding]:
    """Run every check; a check that raises is a finding, not an error."""
    checks: dict[str, Callable[[], str]] = {
        "deepwas": lambda: (
            f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}"
        ),
        "packages": _packages,
        "devices": _devices,
        "specifications": _specifications,
        "example data": _example,
        "likelihood by Cholesky and CG": _likelihood,
    }
    findings = []
    for name, check in checks.items():
        try:
            findings.append(Finding(name, check(), True))
        except Exception as error:
            findings.append(Finding(name, f"{type(error).__name__}: {error}", False))
    return findings


def _packages() -> str:
    names = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "cola-ml",
        "numpy",
        "scipy",
        "h5py",
        "polars",
        "bed-reader",
    )
    return ", ".join(f"{name} {version(name)}" for name in names)


def _devices() -> str:
    import jax

    return ", ".join(f"{d.device_kind} ({d.platform})" for d in jax.devices())


def _specifications() -> str:
    from deepwas.specs import load_spec

    names = ("annotations", "ld_store", "priors", "run", "sumstats")
    for name in names:
        load_spec(name)
    return ", ".join(names)


def _example() -> str:
    from deepwas.demo import example_files

    files = example_files()
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(", ".join(missing))
    return f"{len(files)} files"


def _likelihood() -> str:
    """A small block: Cholesky within float32 rounding of the dense density, CG within 4 of its standard errors."""
    from deepwas.ld.block import LDBlock
    from deepwas.likelihood import log_likelihood

    rng = np.random.default_rng(0)
    people = np.cumsum(rng.normal(size=(300, 60)), axis=1)
    R = np.corrcoef(people, rowvar=False)
    block = LDBlock.from_correlation(R, eigenvalue_floor=1e-2)
    f = rng.exponential(size=60) * 1e-5
    z = rng.normal(size=60)
    y = np.asarray(block.whiten(z), dtype=float)
    B = np.eye(block.k) + 1e4 * (block.factor * f) @ block.factor.T
    dense = -0.5 * (block.k * np.log(2 * np.pi) + np.linalg.slogdet(B)[1] + y @ np.linalg.solve(B, y))
    exact = float(log_likelihood(block, z, f, sample_size=1e4, solver="cholesky"))
    estimate, info = log_likelihood(block, z, f, sample_size=1e4, solver="cg", info=True)
    close = abs(exact - dense) <= 1e-4 * abs(dense)
    agree = abs(float(estimate) - dense) <= 4 * float(info.standard_error) + 1e-4 * abs(dense)
    if not (close and agree and bool(info.converged)):
        raise ArithmeticError(f"dense {dense:.4f}, Cholesky {exact:.4f}, CG {float(estimate):.4f}")
    return f"dense {dense:.3f}, Cholesky {exact:.3f}, CG {float(estimate):.3f} in {int(info.steps)} steps"
