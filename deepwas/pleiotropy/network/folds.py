"""Parts of the genome for cross-fitting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError

__all__ = ["folds_of"]

_FEW = 5


def folds_of(chromosomes: Sequence[str], sizes: Sequence[int], folds: int) -> tuple[NDArray[np.int64], str]:
    """(blocks,), the part of each block, and what the parts are made of: 'chromosomes' or 'LD blocks'.

    Parts are whole chromosomes, the largest dealt first to the smallest part; where there are fewer than 5 chromosomes,
    runs of neighbouring LD blocks.  sizes: variants of each block.
    """
    if len(sizes) < 2 * folds:
        raise InputError(
            f"{len(sizes)} LD blocks are too few for {folds} parts that are held out in turn; {2 * folds} are needed."
        )
    weight = np.asarray(sizes, np.float64)
    names = list(dict.fromkeys(chromosomes))
    if len(names) < max(_FEW, folds):
        middle = np.cumsum(weight) - weight / 2
        fold = np.minimum((middle / weight.sum() * folds).astype(np.int64), folds - 1)
        if len(np.unique(fold)) == folds:
            return fold, "LD blocks"
        return (np.arange(len(sizes)) * folds // len(sizes)).astype(np.int64), "LD blocks"
    total = {name: float(weight[[c == name for c in chromosomes]].sum()) for name in names}
    filled = np.zeros(folds)
    part: dict[str, int] = {}
    for name in sorted(names, key=lambda name: -total[name]):
        part[name] = int(filled.argmin())
        filled[part[name]] += total[name]
    return np.array([part[c] for c in chromosomes], np.int64), "chromosomes"
