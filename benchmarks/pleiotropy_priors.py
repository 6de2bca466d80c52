"""Priors that deepwas itself learns for each simulated trait, as a user's runs have them; what made the effects is not
known to them.

A genome has ten times as many blocks as are classified here, and priors are learned from all of it. So they are learned
from more replicates of the same traits, with effects drawn anew: as if these were the other blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

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
_kept: list[TemporaryDirectory[str]] = []  # removed when the process ends


def fitted_prior(simulated: Simulated, which: str, others: Sequence[Simulated] = ()) -> Array:
    """(M, K), f of total effects of each trait, from z-scores alone.

    which: "constant", from this replicate; "learned", log-linear in all annotations, those that matter and decoys, the
    geometric mean of what is learned from each of the others, of which there is one at least; "learned from decoys", in
    these alone, from the first of the others.
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
    if not constant and not others:
        raise ValueError(f"{which!r} is learned from others, and there is none.")
    given = (
        None if constant else Annotations(names, values.astype(np.float32), variants, dict.fromkeys(names, "simulated"))
    )
    network: Any = "constant" if constant else "linear"
    options = FitOptions(network=network, steps=_STEPS, cross_fit=False)
    logs = []
    for one in [simulated] if constant else others if which == "learned" else others[:1]:
        out = []
        for z, N in zip(one.z.T, one.N, strict=True):
            run = fit(store, simulated_gwas(store, z, float(N)), given, options=options)
            out.append(np.log(run.variants["SNPVAR_PLAIN"].to_numpy().astype(np.float64)))
        logs.append(np.stack(out, axis=1))
    return np.asarray(np.exp(np.mean(logs, axis=0)))


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
