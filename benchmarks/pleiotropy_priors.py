"""Priors that deepwas itself learns for each simulated trait, as a user's runs have them; what made the effects is not
known to them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.pleiotropy_analysis import EXACT
from benchmarks.pleiotropy_genome import Genome
from benchmarks.pleiotropy_simulate import Simulated

if TYPE_CHECKING:
    from deepwas.ld import LDStore

__all__ = ["FITTED", "fitted_prior"]

Array = NDArray[np.float64]

FITTED = ("constant", "learned", "learned from decoys")
_STEPS = 150
_FOLDS = 3
_kept: list[TemporaryDirectory[str]] = []  # removed when the process ends


def fitted_prior(simulated: Simulated, which: str) -> Array:
    """(M, K), f of total effects of each trait, from its z-scores alone.

    which: "constant"; "learned", log-linear in all annotations, those that matter and decoys, cross-fitted; "learned
    from decoys", in these alone.
    """
    from benchmarks.stores import simulated_gwas
    from deepwas import FitOptions, fit
    from deepwas.annotations import Annotations

    if which not in FITTED:
        raise ValueError(f"which is {which!r}; it is one of {', '.join(FITTED)}.")
    store = _store(simulated.genome)
    K = len(simulated.N)
    values = simulated.annotations if which == "learned" else simulated.annotations[:, [1, *range(2 + K, 2 + 2 * K)]]
    names = tuple(f"annotation_{j + 1}" for j in range(values.shape[1]))
    variants = store.variants.select("SNP", "CHR", "BP", "A1", "A2")
    constant = which == "constant"
    given = (
        None if constant else Annotations(names, values.astype(np.float32), variants, dict.fromkeys(names, "simulated"))
    )
    options = (
        FitOptions(network="constant", cross_fit=False)
        if constant
        else FitOptions(network="linear", steps=_STEPS, folds=_FOLDS)
    )
    out = []
    for z, N in zip(simulated.z.T, simulated.N, strict=True):
        run = fit(store, simulated_gwas(store, z, float(N)), given, options=options)
        column = "SNPVAR_CROSS" if run.cross_fitted else "SNPVAR_PLAIN"
        out.append(run.variants[column].to_numpy().astype(np.float64))
    return np.stack(out, axis=1)


@lru_cache(maxsize=1)
def _store(genome: Genome) -> LDStore:
    """The GWAS's own LD, cut as `deepwas ld` does for as many people as there can be."""
    from benchmarks.stores import store_of_regions
    from deepwas.ld import LDBlock, eigenvalue_floor

    _kept.append(TemporaryDirectory(prefix="deepwas-"))
    floor = [eigenvalue_floor(r.m, EXACT) for r in genome.regions]
    blocks = [
        LDBlock.from_correlation(r.correlation, eigenvalue_floor=x) for r, x in zip(genome.regions, floor, strict=True)
    ]
    return store_of_regions(genome.regions, blocks, Path(_kept[-1].name) / "ld.h5", EXACT)
