"""Priors that deepwas itself learns for each simulated trait, as a user's runs have them; what made the effects is not
known to them.

A genome has ten times as many blocks as are classified here, and priors are learned from all of it. So they are learned
from more replicates of the same traits, with effects drawn anew, end to end: as if these were the other blocks.
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

    which: "constant", from this replicate; "learned", log-linear in all annotations, those that matter and decoys, from
    the others together, of which there is one at least; "learned from decoys", in these alone.
    """
    from benchmarks.stores import simulated_gwas
    from deepwas import FitOptions, fit
    from deepwas.annotations import Annotations

    if which not in FITTED:
        raise ValueError(f"which is {which!r}; it is one of {', '.join(FITTED)}.")
    K, M = len(simulated.N), simulated.genome.M
    values = simulated.annotations if which == "learned" else simulated.annotations[:, [1, *range(2 + K, 2 + 2 * K)]]
    names = tuple(f"annotation_{j + 1}" for j in range(values.shape[1]))
    constant = which == "constant"
    if not constant and not others:
        raise ValueError(f"{which!r} is learned from others, and there is none.")
    sources = [simulated] if constant else others
    store = _store(simulated.genome, len(sources))
    given = None
    if not constant:
        variants = store.variants.select("SNP", "CHR", "BP", "A1", "A2")
        every = np.tile(values.astype(np.float32), (len(sources), 1))
        given = Annotations(names, every, variants, dict.fromkeys(names, "simulated"))
    network: Any = "constant" if constant else "linear"
    options = FitOptions(network=network, steps=_STEPS, cross_fit=False)
    out = []
    for k, N in enumerate(simulated.N):
        z = np.concatenate([one.z[:, k] for one in sources])
        run = fit(store, simulated_gwas(store, z, float(N)), given, options=options)
        out.append(run.variants["SNPVAR_PLAIN"].to_numpy().astype(np.float64)[:M])
    return np.stack(out, axis=1)


@lru_cache(maxsize=2)
def _store(genome: Genome, copies: int) -> LDStore:
    """The GWAS's own LD, cut as `deepwas ld` does for as many people as there can be; so many times, end to end."""
    from benchmarks.stores import store_of_regions
    from deepwas.ld import LDBlock, eigenvalue_floor

    _kept.append(TemporaryDirectory(prefix="deepwas-"))
    floor = [eigenvalue_floor(r.m, EXACT) for r in genome.regions]
    blocks = [
        LDBlock.from_correlation(r.correlation, eigenvalue_floor=x) for r, x in zip(genome.regions, floor, strict=True)
    ]
    return store_of_regions(genome.regions * copies, blocks * copies, Path(_kept[-1].name) / "ld.h5", EXACT)
