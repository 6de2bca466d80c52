"""Horizontal pleiotropy scores of single variants, by magnitude and by number of traits (HOPS).

Source: Jordan, Verbanck & Do 2019, Genome Biology 20:222.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from deepwas.errors import InputError

__all__ = ["GlobalTest", "HOPSScores", "hops_scores"]

Array = NDArray[np.float64]

HIGHEST_CORRELATION = 0.8
REFERENCE_PROBABILITY = 0.045
_SMALLEST_EIGENVALUE = 1e-10


@dataclass(frozen=True)
class GlobalTest:
    """Rank-sum test that the scores of the genome lie above their null.

    p: one-sided.  z: the normal statistic behind it.  superiority: P(score > null) + P(equal) / 2.
    Variants in LD are counted as independent, so p is too small wherever there is LD.
    """

    p: float
    z: float
    superiority: float


@dataclass(frozen=True, eq=False)
class HOPSScores:
    """Scores of M variants over K traits.

    Pm, Pn: (M,) magnitude and number of traits, times 100 / K; nan where missing.
    Pm_p, Pn_p: (M,) upper-tail p-values.
    Pm_global, Pn_global: is the genome above its null.
    C: (K, K) the correlation that whitened the z-scores; None when they came whitened.
    names: of the traits.  modes: corrections made, of "ld" and "polygenicity", and "reference tail" if asked for.
    Pm_slope, Pn_slope: per unit of LD score, before scaling, that the LD correction took off; None without it.
    pool: number of null scores of Pm and Pn behind the empirical p-values; None without permutations.
    missing: number of variants without Pm.
    """

    Pm: Array
    Pn: Array
    Pm_p: Array
    Pn_p: Array
    Pm_global: GlobalTest
    Pn_global: GlobalTest
    C: Array | None
    names: tuple[str, ...]
    modes: tuple[str, ...]
    Pm_slope: float | None
    Pn_slope: float | None
    pool: tuple[int, int] | None
    missing: int


def hops_scores(
    z: ArrayLike,
    *,
    ld_scores: ArrayLike | None = None,
    permutations: int = 0,
    seed: int = 0,
    names: Sequence[str] | None = None,
    pruned: ArrayLike | None = None,
    correlation: ArrayLike | None = None,
    whitened: bool = False,
    threshold: float = 2.0,
    reference_tail: bool = False,
) -> HOPSScores:
    """HOPS of every variant.

        Z* = Z C^(-1/2),   Pm = |Z*|,   Pn = number of traits with |Z*| > threshold

    and null distributions Pm^2 ~ chi-square(K), Pn ~ Binomial(K, P(|N(0, 1)| > threshold)).

    z: (M, K) z-scores; nan where missing.
    ld_scores: (M,), or nan. With them, slope * ld_score of the least-squares line is taken off each score, not below 0.
    permutations: with 25, say, each column of Z* is shuffled so often, scored anew (LD correction and its slope
    included), and p is the share of these null scores that are at least as large, (1 + count) / (1 + pool). Scores then
    are the theoretical quantiles at p. This corrects for polygenicity.
    seed: of the permutations.  names: (K,) of the traits, for messages.
    pruned: (M,) bool, the variants that C is computed from (default: all). C is the Pearson correlation over those of
    them without a missing value.
    correlation: (K, K), C itself, of the noise say, instead.  whitened: z is Z* already.
    reference_tail: the authors' program takes P(X > floor(Pn)) and probability 0.045; we take P(X >= ceil(Pn)) and the
    probability of the threshold. Only with threshold 2.

    A missing z-score makes every whitened score of its variant missing: Pm is then missing, and Pn, which ignores
    missing values, 0. With `whitened`, Pn counts the values that are there. A missing LD score makes both missing.

    Memory grows with permutations * M, since all null scores are kept: 1.6 GB for 1.1 million variants, 8 traits and
    25 permutations.

    Raises InputError if any |C_kl| > 0.8, for copies of a trait, traits that are linear in others, constant traits,
    fewer than two traits, and arguments of wrong shape.
    """
    z, labels = _checked(z, names, permutations, threshold, reference_tail)
    M, K = z.shape
    ld = None if ld_scores is None else _checked_ld_scores(ld_scores, M)
    C = None
    if whitened:
        if pruned is not None or correlation is not None:
            raise InputError("whitened z-scores need neither pruned nor correlation: leave both out.")
        z_star = z
    else:
        C = _given(correlation, pruned, K) if correlation is not None else _correlation(z, pruned, labels)
        z_star = _whiten(z, C, labels)
    probability = REFERENCE_PROBABILITY if reference_tail else float(2 * stats.norm.sf(threshold))
    Pm, Pn, Pm_slope, Pn_slope = _score(z_star, threshold, ld)
    sizes: tuple[int, int] | None = None
    if permutations:
        pools = _null_scores(z_star, threshold, ld, permutations, seed)
        sizes = len(pools[0]), len(pools[1])
        Pm_global, Pn_global = _rank_sum(Pm, pools[0]), _rank_sum(Pn, pools[1])
        Pm_p, Pn_p = _empirical_p(Pm, pools[0]), _empirical_p(Pn, pools[1])
        Pm = np.sqrt(stats.chi2.isf(Pm_p, K))
        Pn = _binomial_quantile(Pn_p, K, probability)
    else:
        level = (np.arange(M) + 0.5) / M
        Pm_global = _rank_sum(Pm, np.sqrt(stats.chi2.ppf(level, K)))
        Pn_global = _rank_sum(Pn, _binomial_quantile(level[::-1], K, probability))
        Pm_p = stats.chi2.sf(Pm**2, K)
        least = np.floor(Pn) + 1 if reference_tail else np.ceil(Pn)
        Pn_p = np.where(np.isnan(Pn), np.nan, stats.binom.sf(least - 1, K, probability))
    used = {"ld": ld is not None, "polygenicity": permutations > 0, "reference tail": reference_tail}
    return HOPSScores(
        Pm=100 * Pm / K,
        Pn=100 * Pn / K,
        Pm_p=Pm_p,
        Pn_p=Pn_p,
        Pm_global=Pm_global,
        Pn_global=Pn_global,
        C=C,
        names=labels,
        modes=tuple(mode for mode, on in used.items() if on),
        Pm_slope=Pm_slope,
        Pn_slope=Pn_slope,
        pool=sizes,
        missing=int(np.isnan(Pm).sum()),
    )


def _checked(
    z: ArrayLike, names: Sequence[str] | None, permutations: int, threshold: float, reference_tail: bool
) -> tuple[Array, tuple[str, ...]]:
    z = np.asarray(z, dtype=np.float64)
    if z.ndim != 2:
        raise InputError(f"z needs the shape (variants, traits); it has {z.shape}.")
    M, K = z.shape
    if K < 2:
        raise InputError(f"pleiotropy needs two traits or more; z has {K}.")
    labels = tuple(f"trait {k + 1}" for k in range(K)) if names is None else tuple(names)
    if len(labels) != K:
        raise InputError(f"z has {K} traits, and {len(labels)} names are given.")
    if len(set(labels)) < K:
        twice = next(name for name in labels if labels.count(name) > 1)
        raise InputError(f"two traits are named {twice!r}; give each its own name.")
    if np.isinf(z).any():
        row, column = np.argwhere(np.isinf(z))[0]
        raise InputError(f"{labels[column]}: the z-score of row {row + 1} is infinite. Drop it or make it nan.")
    if permutations < 0:
        raise InputError(f"permutations is {permutations}; give 0 (none) or more, 25 as the authors do.")
    if not (np.isfinite(threshold) and threshold > 0):
        raise InputError(f"threshold is {threshold}; |z| > threshold needs a number above 0.")
    if reference_tail and threshold != 2:
        raise InputError(f"reference_tail holds for threshold 2 alone; threshold is {threshold}.")
    if not M or np.isnan(z).any(axis=1).all():
        raise InputError(f"none of the {M:,} variants has a z-score for each of {', '.join(labels)}.")
    _refuse_constant_and_copied(z, labels)
    return z, labels


def _refuse_constant_and_copied(z: Array, names: tuple[str, ...]) -> None:
    for k, name in enumerate(names):
        present = z[~np.isnan(z[:, k]), k]
        if np.ptp(present) == 0:
            raise InputError(f"{name}: every z-score is {present[0]:g}. Leave this trait out.")
        for j in range(k):
            if np.array_equal(z[:, j], z[:, k], equal_nan=True):
                raise InputError(f"{name} has the z-scores of {names[j]}, one by one. Keep one of the two.")


def _checked_ld_scores(ld_scores: ArrayLike, M: int) -> Array:
    ld = np.asarray(ld_scores, dtype=np.float64)
    if ld.shape != (M,):
        raise InputError(f"ld_scores needs one value for each of {M:,} variants; its shape is {ld.shape}.")
    if np.isinf(ld).any():
        raise InputError(f"ld_scores: the value of row {np.flatnonzero(np.isinf(ld))[0] + 1} is infinite.")
    present = ld[~np.isnan(ld)]
    if len(present) < 3 or np.ptp(present) == 0:
        raise InputError(f"ld_scores has {len(present):,} values and no spread: the LD correction needs a slope.")
    return ld


def _correlation(z: Array, pruned: ArrayLike | None, names: tuple[str, ...]) -> Array:
    """(K, K), over the chosen variants without a missing value."""
    M, K = z.shape
    chosen = ~np.isnan(z).any(axis=1)
    if pruned is not None:
        mask = np.asarray(pruned)
        if mask.shape != (M,) or mask.dtype != bool:
            raise InputError(
                f"pruned needs {M:,} values True or False, one a variant; it is {mask.dtype} of shape {mask.shape}."
            )
        chosen &= mask
    if chosen.sum() <= K:
        raise InputError(
            f"the correlation of {K} traits needs more than {K} variants without a missing z-score; there are "
            f"{chosen.sum()}. Leave out traits that lack many variants, or give correlation."
        )
    complete = z[chosen]
    for name, column in zip(names, complete.T, strict=True):
        if np.ptp(column) == 0:
            raise InputError(
                f"{name}: every z-score is {column[0]:g} in the {len(complete):,} variants that give the correlation. "
                "Leave this trait out."
            )
    return np.asarray(np.corrcoef(complete, rowvar=False))


def _given(correlation: ArrayLike, pruned: ArrayLike | None, K: int) -> Array:
    if pruned is not None:
        raise InputError("give pruned or correlation, not both: pruned says where the correlation is computed.")
    C = np.asarray(correlation, dtype=np.float64)
    if C.shape != (K, K):
        raise InputError(f"correlation needs the shape ({K}, {K}); it has {C.shape}.")
    if not np.allclose(C, C.T, atol=1e-8) or not np.allclose(np.diag(C), 1, atol=1e-8):
        raise InputError("correlation is not symmetric with ones on its diagonal.")
    return C


def _whiten(z: Array, C: Array, names: tuple[str, ...]) -> Array:
    """Z C^(-1/2), zero-phase; rows with a missing value are missing."""
    _refuse_correlated(C, names)
    left, values, right = np.linalg.svd(C)
    if values[-1] < _SMALLEST_EIGENVALUE:
        vector = right[-1]
        linear = [name for name, weight in zip(names, vector, strict=True) if abs(weight) > 1e-3]
        raise InputError(
            f"these traits depend on each other linearly: {', '.join(linear)} (smallest eigenvalue of the correlation "
            f"{values[-1]:.1e}). Leave one of them out."
        )
    whitener = (left / np.sqrt(values)) @ right
    z_star = np.full_like(z, np.nan)
    complete = ~np.isnan(z).any(axis=1)
    z_star[complete] = z[complete] @ whitener.T
    return z_star


def _refuse_correlated(C: Array, names: tuple[str, ...]) -> None:
    pairs = np.argwhere(np.triu(np.abs(C) > HIGHEST_CORRELATION, k=1))
    if not len(pairs):
        return
    copies = [f"{names[k]} and {names[j]}" for k, j in pairs if abs(C[k, j]) > 1 - 1e-9]
    if copies:
        raise InputError(f"the same trait is given twice: {'; '.join(copies)}. Keep one of each pair.")
    said = "; ".join(f"{names[k]} and {names[j]} ({C[k, j]:.3f})" for k, j in pairs)
    raise InputError(
        f"z-scores of {len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} of traits correlate above "
        f"{HIGHEST_CORRELATION}: {said}. Keep one trait of each pair."
    )


def _score(z_star: Array, threshold: float, ld: Array | None) -> tuple[Array, Array, float | None, float | None]:
    """Pm and Pn, and the slopes of both on the LD score."""
    Pm = np.sqrt((z_star**2).sum(axis=1))
    Pn = (np.abs(z_star) > threshold).sum(axis=1).astype(np.float64)
    if ld is None:
        return Pm, Pn, None, None
    Pm, Pm_slope = _ld_corrected(Pm, ld)
    Pn, Pn_slope = _ld_corrected(Pn, ld)
    return Pm, Pn, Pm_slope, Pn_slope


def _ld_corrected(score: Array, ld: Array) -> tuple[Array, float]:
    known = ~(np.isnan(score) | np.isnan(ld))
    centred = ld[known] - ld[known].mean()
    spread = centred @ centred
    if spread == 0:
        raise InputError(
            f"{known.sum():,} variants have both a score and an LD score, and these LD scores have no spread: "
            "the LD correction needs a slope."
        )
    slope = float(centred @ score[known] / spread)
    return np.maximum(score - slope * ld, 0.0), slope


def _null_scores(
    z_star: Array, threshold: float, ld: Array | None, permutations: int, seed: int
) -> tuple[Array, Array]:
    """Sorted scores of Pm and Pn with the columns of Z* shuffled independently, missing ones left out."""
    rng = np.random.default_rng([seed, 11])
    M = len(z_star)
    Pm_pool, Pn_pool = np.empty((permutations, M)), np.empty((permutations, M))
    for row in range(permutations):
        shuffled = np.stack([rng.permutation(column) for column in z_star.T], axis=1)
        Pm_pool[row], Pn_pool[row], _, _ = _score(shuffled, threshold, ld)
    pools = _sorted_without_missing(Pm_pool), _sorted_without_missing(Pn_pool)
    if not len(pools[0]):
        raise InputError("so many values are missing that no permuted variant has all of them: permutations is no use.")
    return pools


def _sorted_without_missing(pool: Array) -> Array:
    flat = pool.reshape(-1)
    flat.sort()  # nan go to the end
    return flat[: len(flat) - int(np.isnan(flat).sum())]


def _empirical_p(score: Array, pool: Array) -> Array:
    """(1 + null scores at least as large) / (1 + pool); pool is sorted."""
    at_least = len(pool) - np.searchsorted(pool, score, side="left")
    return np.where(np.isnan(score), np.nan, (1 + at_least) / (1 + len(pool)))


def _binomial_quantile(p: Array, K: int, probability: float) -> Array:
    """Smallest x with P(X > x) <= p, X ~ Binomial(K, probability)."""
    upper = stats.binom.sf(np.arange(K + 1), K, probability)  # falls from P(X > 0) to 0
    x = K + 1 - np.searchsorted(upper[::-1], p, side="right")
    return np.where(np.isnan(p), np.nan, x)


def _rank_sum(score: Array, null: Array) -> GlobalTest:
    """Wilcoxon's rank-sum test with ties and continuity correction; null is sorted."""
    present = np.sort(score[~np.isnan(score)])
    n, m = len(present), len(null)
    below, up_to = np.searchsorted(null, present, side="left"), np.searchsorted(null, present, side="right")
    U = 0.5 * (below.sum(dtype=np.float64) + up_to.sum(dtype=np.float64))
    together = np.concatenate([present, null])
    together.sort()
    ends = np.flatnonzero(np.append(together[1:] != together[:-1], True))
    ties = np.diff(ends, prepend=-1).astype(np.float64)
    total = float(n + m)
    variance = n * m / 12 * (total + 1 - (ties**3 - ties).sum() / (total * (total - 1)))
    if variance <= 0:  # all scores are equal
        return GlobalTest(p=1.0, z=0.0, superiority=0.5)
    z = (U - 0.5 * n * m - 0.5) / np.sqrt(variance)
    return GlobalTest(p=float(stats.norm.sf(z)), z=float(z), superiority=float(U / (n * m)))
