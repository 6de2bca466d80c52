"""Simulated LD and z-scores as deepwas reads them: LD stores and harmonised GWAS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulate import Region, variant_table

if TYPE_CHECKING:
    from deepwas.ld import LDBlock, LDStore
    from deepwas.sumstats import HarmonisedSumstats

__all__ = ["simulated_gwas", "store_of_regions"]


def store_of_regions(regions: Sequence[Region], blocks: Sequence[LDBlock], path: Path, people: int) -> LDStore:
    """The LD store of regions, a block each, of the LD of so many people."""
    from deepwas.ld.write import write_ld

    starts = np.cumsum([0, *(r.m for r in regions)])
    variants = variant_table(regions)
    pairs = ((int(start), block) for start, block in zip(starts[:-1], blocks, strict=True))
    return write_ld(path, variants, pairs, build="GRCh37", n_samples=people)


def simulated_gwas(store: LDStore, z: NDArray[np.float64], sample_size: float) -> HarmonisedSumstats:
    """z-scores (M,) of all variants of a store."""
    import polars as pl

    from deepwas.sumstats import HarmonisedSumstats

    keys = store.variants.with_row_index("VARIANT").select("VARIANT", "CHR", "SNP", "BP", "A1", "A2")
    return HarmonisedSumstats(
        frame=keys.with_columns(Z=pl.Series(z), N=pl.lit(sample_size), FRQ=store.variants["FREQ"]),
        n_store=store.n_variants,
        source="simulated",
        source_sha256="0" * 64,
        source_format="simulated",
        match="position",
        genome_build=store.genome_build,
        store_checksum=store.checksum,
    )
