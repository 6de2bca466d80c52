"""Signed scores as a mean head takes them: per standardised genotype, all columns of one size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.annotations.signed import SignedScores
from deepwas.errors import InputError
from deepwas.ld import LDStore
from deepwas.tally import Tally

if TYPE_CHECKING:
    from deepwas.direction_blocks import Prior

__all__ = ["ScaledScores"]

_ROWS = 1 << 16

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScaledScores:
    """Scores per standardised genotype, each column divided by its root mean square over the variants modelled.

    names: (p,) columns that are used.  column: (p,) their places in `values`.  scale: (p,) root mean squares.
    squares: (p, p), sum_j s_j s_j' over the variants modelled.  spread: (M,), sqrt(2q(1 - q)), or 1.
    values: (M, all columns), as they were read.  tally: what was filled in or left out.
    """

    names: tuple[str, ...]
    column: NDArray[np.int64]
    scale: Array
    squares: Array
    spread: Array
    values: NDArray[np.float32]
    tally: Tally

    @classmethod
    def of(cls, signed: SignedScores, store: LDStore, prior: Prior, per_allele: bool) -> ScaledScores:
        """Scale the scores of a store; per_allele: they are of an allele. InputError if all are 0."""
        tally = Tally()
        tally.extend(prior.tally)
        q = store.variants["FREQ"].cast(pl.Float64).to_numpy()
        spread = np.sqrt(2 * q * (1 - q)) if per_allele else np.ones(len(q))
        if not np.isfinite(spread).all():
            row = int((~np.isfinite(spread)).argmax())
            raise InputError(
                f"{store.path}: FREQ of {store.variants['SNP'][row]} is {q[row]}. Scores per allele need it: build the "
                "LD store with frequencies, or give scores per standardised genotype (--per-standardised)."
            )
        names = store.variants["SNP"]
        gone = np.isnan(signed.values).all(axis=1) & prior.scored
        if gone.any():
            tally.add(
                "direction",
                "noted",
                "variants without a signed score: taken as 0",
                int(gone.sum()),
                str(names[int(gone.argmax())]),
            )
        p = len(signed.names)
        squares = np.zeros((p, p))
        modelled = np.flatnonzero(prior.scored)
        for start in range(0, len(modelled), _ROWS):
            rows = modelled[start : start + _ROWS]
            part = np.nan_to_num(signed.values[rows], nan=0.0).astype(np.float64) * spread[rows, None]
            squares += part.T @ part
        scale = np.sqrt(np.diagonal(squares) / len(modelled))
        used = np.flatnonzero(scale > 0)
        if len(used) < p:
            first = signed.names[int((scale == 0).argmax())]
            tally.add("direction", "dropped", "scores that are 0 at every variant modelled", p - len(used), first)
        if not len(used):
            raise InputError("every signed score is 0 or missing at the variants of the run: nothing to test.")
        scale = scale[used]
        return cls(
            tuple(signed.names[i] for i in used),
            used,
            scale,
            squares[np.ix_(used, used)] / np.outer(scale, scale),
            spread,
            signed.values,
            tally,
        )

    def rows(self, rows: slice) -> Array:
        """(m, p), of rows of the store, missing ones 0."""
        part = np.nan_to_num(self.values[rows][:, self.column], nan=0.0).astype(np.float64)
        return part * self.spread[rows, None] / self.scale[None, :]
