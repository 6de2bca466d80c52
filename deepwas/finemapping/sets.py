"""Credible sets: the variants among which an effect lies with a given probability."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CredibleSet", "credible_set", "purity"]

_MOST = 500  # members whose LD is looked at


@dataclass(frozen=True)
class CredibleSet:
    """Where one effect lies.

    variants: indices in the block, likeliest first.  probability: of each, that the effect is there (and exists).
    effect: probability that there is this effect at all.  purity: least |r| between two members (of the first 500).
    """

    variants: NDArray[np.int64]
    probability: NDArray[np.float64]
    effect: float
    purity: float

    @property
    def coverage(self) -> float:
        """The probability that the effect exists and is one of the set's variants."""
        return float(self.probability.sum())

    @property
    def lead(self) -> int:
        """The likeliest variant."""
        return int(self.variants[0])


def credible_set(G: NDArray[np.floating], where: NDArray[np.floating], coverage: float) -> CredibleSet | None:
    """The fewest variants that hold an effect with probability `coverage`; None if even all of them do not.

    G: (k, m).  where: (m,), probability that the effect exists and lies at each variant.
    """
    order = np.argsort(-where, kind="stable")
    cumulated = np.cumsum(where[order], dtype=np.float64)
    if not cumulated[-1] >= coverage:
        return None
    chosen = order[: int(np.searchsorted(cumulated, coverage)) + 1]
    return CredibleSet(chosen, where[chosen].astype(np.float64), float(cumulated[-1]), purity(G, chosen))


def purity(G: NDArray[np.floating], variants: NDArray[np.integer]) -> float:
    """Least |r| between two of the variants (of the first 500).  G: (k, m)."""
    some = np.asarray(G[:, variants[:_MOST]], np.float64)
    length = np.sqrt(np.einsum("ij,ij->j", some, some))
    r = np.abs(some.T @ some) / np.outer(length, length)
    return float(min(r.min(), 1.0))
