"""Direction beyond that of minor alleles: scores given columns of the minor allele, one for each bin of its frequency.

If minor alleles lower the trait on average, any score that tracks them tells direction and need know nothing else. Each
score is therefore replaced by what is left of it after its regression on those columns,

    S~ = S - C P,   P = A_cc^-1 A_cs,   A = sum X'B^-1 X over all blocks, X = sqrt(N) G [S C],

in the metric of the likelihood, so that the weights of S~ are those of S beside C by generalised least squares. P hangs
on f, LD and scores alone, not on the signs of the z-scores: without any direction flips stay exact. With a direction of
minor alleles and no other, the sum of X~'B^-1 y over blocks has mean 0 and single blocks' terms need not; flips then
have more spread than the sum, and the test is somewhat conservative.

Source: Reshef et al. 2018 condition on such columns.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deepwas.direction_blocks import BlockSums
from deepwas.direction_scores import ScaledScores
from deepwas.errors import InputError
from deepwas.tally import Tally

__all__ = ["MAF_BINS", "given_control", "minor_allele_columns"]

MAF_BINS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
_LEFT = 1e-6  # of a score's information, below which the minor allele tells it wholly

Array = NDArray[np.float64]


def minor_allele_columns(frequencies: Array) -> NDArray[np.float32]:
    """(M, bins) scores of the allele counted: 1 where it is the minor one, -1 where the other is, 0 outside the bin.

    frequencies: (M,) of the allele counted. A bin of MAF is open below and closed above; at exactly 1/2 all are 0.
    """
    maf = np.round(np.minimum(frequencies, 1 - frequencies), 9)  # whichever allele is counted, the same bin
    of = np.clip(np.searchsorted(MAF_BINS, maf, side="left") - 1, 0, len(MAF_BINS) - 2)
    out = np.zeros((len(maf), len(MAF_BINS) - 1), np.float32)
    out[np.arange(len(maf)), of] = np.sign(0.5 - frequencies)
    return out


def given_control(sums: BlockSums, scaled: ScaledScores) -> tuple[BlockSums, ScaledScores]:
    """Sums and scores without the control columns, which are the last, each score what is left of it given them.

    A score that they tell wholly is left out, and counted. InputError if none is left.
    """
    p = len(scaled.names)
    A = sums.A.sum(axis=0)
    P = np.linalg.pinv(A[p:, p:], rcond=1e-10, hermitian=True) @ A[p:, :p]
    own = np.diagonal(A)[:p]
    left = own - np.einsum("cp,cp->p", P, A[p:, :p])
    kept = np.flatnonzero(left > _LEFT * own)
    tally = Tally()
    tally.extend(scaled.tally)
    if len(kept) < p:
        first = scaled.names[int(np.flatnonzero(left <= _LEFT * own)[0])]
        tally.add("direction", "dropped", "scores that minor alleles tell wholly", p - len(kept), first)
    if not len(kept):
        raise InputError("minor alleles tell every signed score wholly: nothing is left to test (--control-maf).")
    T = np.concatenate([np.eye(p), -P])[:, kept]
    names = tuple(scaled.names[i] for i in kept)
    return (
        replace(sums, A=T.T[None] @ sums.A @ T[None], u=sums.u @ T),
        replace(
            scaled,
            names=names,
            column=scaled.column[kept],
            scale=scaled.scale[kept],
            squares=T.T @ scaled.squares @ T,
            tally=tally,
            controls=0,
        ),
    )
