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
    squares: (p + controls, p + controls), sum_j s_j s_j' over the variants modelled.  spread: (M,), sqrt(2q(1 - q)), or
    1.  values: (M, all columns), as they were read.  tally: what was filled in or left out.
    controls: columns beside the scores that these are to be given, the last in `squares` and `rows`; control: (M, any),
    what they are made from, or None.
    """

    names: tuple[str, ...]
    column: NDArray[np.int64]
    scale: Array
    squares: Array
    spread: Array
    values: NDArray[np.float32]
    tally: Tally
    controls: int = 0
    control: Array | None = None

    @classmethod
    def of(
        cls,
        signed: SignedScores,
        store: LDStore,
        prior: Prior,
        per_allele: bool,
        control: NDArray[np.float32] | None = None,
    ) -> ScaledScores:
        """Scale the scores of a store; per_allele: they are of an allele. InputError if all are 0.

        control: (M, any) columns of the allele counted that the scores are to be given; those that are 0 are left out.
        """
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
        extra = np.zeros((len(q), 0)) if control is None else control * np.sqrt(2 * q * (1 - q))[:, None]
        squares = np.zeros((p + extra.shape[1], p + extra.shape[1]))
        modelled = np.flatnonzero(prior.scored)
        for start in range(0, len(modelled), _ROWS):
            rows = modelled[start : start + _ROWS]
            part = np.nan_to_num(signed.values[rows], nan=0.0).astype(np.float64) * spread[rows, None]
            part = np.concatenate([part, extra[rows]], axis=1)
            squares += part.T @ part
        scale = np.sqrt(np.diagonal(squares) / len(modelled))
        both = np.flatnonzero(scale > 0)
        used, scale_of_all = both[both < p], scale[both]
        extra = extra[:, both[both >= p] - p] / scale[both[both >= p]][None, :]
        if len(used) < p:
            first = signed.names[int((scale[:p] == 0).argmax())]
            tally.add("direction", "dropped", "scores that are 0 at every variant modelled", p - len(used), first)
        if not len(used):
            raise InputError("every signed score is 0 or missing at the variants of the run: nothing to test.")
        return cls(
            tuple(signed.names[i] for i in used),
            used,
            scale[used],
            squares[np.ix_(both, both)] / np.outer(scale_of_all, scale_of_all),
            spread,
            signed.values,
            tally,
            extra.shape[1],
            None if control is None else extra,
        )

    def rows(self, rows: slice) -> Array:
        """(m, p + controls), of rows of the store, missing ones 0."""
        part = np.nan_to_num(self.values[rows][:, self.column], nan=0.0).astype(np.float64)
        part = part * self.spread[rows, None] / self.scale[None, :]
        return part if self.control is None else np.concatenate([part, self.control[rows]], axis=1)
