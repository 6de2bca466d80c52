"""Small LD stores for windows: variants where a test wants them, each with an LD of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from deepwas.ld import LDBlock, LDStore
from deepwas.ld.write import write_ld


def small_store(
    path: Path,
    chromosomes: Sequence[str],
    positions: Sequence[int],
    alleles: Sequence[tuple[str, str]] | None = None,
    build: str = "GRCh37",
) -> LDStore:
    """A store of variants v0, v1, ... with A1 and A2 as given; a block for each chromosome."""
    M = len(positions)
    one, two = zip(*(alleles or [("A", "G")] * M), strict=True)
    variants = pl.DataFrame(
        {
            "CHR": list(chromosomes),
            "SNP": [f"v{j}" for j in range(M)],
            "BP": list(positions),
            "A1": list(one),
            "A2": list(two),
            "FREQ": np.full(M, 0.3),
        }
    )
    names = np.array(chromosomes)
    blocks = []
    for name in dict.fromkeys(chromosomes):
        rows = np.flatnonzero(names == name)
        blocks.append((int(rows[0]), LDBlock.from_correlation(np.eye(len(rows)))))
    return write_ld(path, variants, blocks, build=build, n_samples=1000)
