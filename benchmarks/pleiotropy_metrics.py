"""How well calls of pleiotropy agree with the truth, by variant and by locus, in one replicate and over many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from benchmarks.pleiotropy_simulate import CLASSES, Pair
from deepwas.errors import InputError

__all__ = [
    "Pooled",
    "Reliability",
    "average_precision",
    "bin_sums",
    "calls_by_local_fdr",
    "calls_by_p",
    "class_rates",
    "clump",
    "confusion",
    "false_calls_per_100k",
    "locus_classes",
    "mean_and_error",
    "pair_rates",
    "pooled_fdr",
    "pooled_reliability",
    "power_at_fdr",
    "precision_at",
    "reliability",
    "union",
]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# What a set of variants counts as, the first that it holds.
_PRECEDENCE = ("direct", "confounder", "vertical", "ld_only", "single", "null")


def average_precision(truth: Mask, score: Array) -> float:
    """Area under the precision-recall steps: the mean, over true ones, of the precision at their score; ties together.

    truth, score: (M,), or of loci. nan without true ones. Missing scores count as the lowest.
    """
    hits, calls = _steps(truth, score)
    if not truth.any():
        return float("nan")
    gained = np.diff(hits, prepend=0)
    return float((gained * hits / calls).sum() / truth.sum())


def power_at_fdr(truth: Mask, score: Array, level: float = 0.05) -> float:
    """Largest share of the true ones that a cut of the score finds while its realised share of false calls <= level."""
    hits, calls = _steps(truth, score)
    if not truth.any():
        return float("nan")
    allowed = (calls - hits) <= level * calls
    return float(hits[allowed].max(initial=0) / truth.sum())


def _steps(truth: Mask, score: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True calls and calls at every cut between unequal scores, from the highest down."""
    if len(truth) != len(score):
        raise InputError(f"{len(truth):,} truths, and {len(score):,} scores.")
    score = np.where(np.isnan(score), -np.inf, score)
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.zeros(0, dtype=np.intp)
    return np.cumsum(truth[order], dtype=np.int64)[ends], ends + 1


def calls_by_p(p: Array, level: float = 0.05) -> Mask:
    """Benjamini-Hochberg calls; a missing p is no call and no test."""
    called = np.zeros(len(p), dtype=bool)
    known = ~np.isnan(p)
    if known.any():
        called[known] = stats.false_discovery_control(p[known], method="bh") <= level
    return called


def calls_by_local_fdr(local_fdr: Array, level: float = 0.05) -> Mask:
    """The largest set of smallest local FDRs whose mean is at most level; ties enter together; missing: no call."""
    value = np.where(np.isnan(local_fdr), np.inf, local_fdr)
    ranked = np.sort(value)
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])
    fine = ends[(np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ends] <= level]
    return value <= ranked[fine[-1]] if len(fine) else np.zeros(len(value), dtype=bool)


@dataclass(frozen=True, eq=False)
class Reliability:
    """Bins of equal width in which probabilities fell: mean probability, share that is true, number, (bins,) each.

    error: expected calibration error, the mean over the probabilities of |mean probability - share| of their bin.
    """

    stated: Array
    observed: Array
    number: NDArray[np.int64]
    error: float


def bin_sums(probability: Array, truth: Mask, *, bins: int = 10, above: float = 0.0) -> Array:
    """(3, bins), of the probabilities >= above by bins of equal width: their sum, how many are true, how many there
    are. Sums of replicates add up."""
    if np.isnan(probability).any() or probability.min(initial=0) < -1e-9 or probability.max(initial=0) > 1 + 1e-9:
        raise InputError("probabilities lie between 0 and 1, and none is missing.")
    kept = probability >= above
    p, true = probability[kept], truth[kept]
    which = np.minimum((np.clip(p, 0, 1) * bins).astype(int), bins - 1)
    return np.array([np.bincount(which, weights=x, minlength=bins) for x in (p, true, np.ones(len(p)))])


def pooled_reliability(sums: Array) -> Reliability:
    """Calibration from `bin_sums`, or a sum of them. Empty bins are left out; with nothing in any, the error is nan."""
    stated, observed, number = sums[:, sums[2] > 0]
    error = float(np.abs(stated - observed).sum() / number.sum()) if len(number) else float("nan")
    return Reliability(stated / number, observed / number, number.astype(np.int64), error)


def reliability(probability: Array, truth: Mask, *, bins: int = 10, above: float = 0.0) -> Reliability:
    """Calibration of the probabilities >= above, in bins of equal width; see `pooled_reliability`."""
    return pooled_reliability(bin_sums(probability, truth, bins=bins, above=above))


def precision_at(truth: Mask, score: Array, recall: Array, total: int | None = None) -> Array:
    """Precision at the first cut that finds each share of the true ones; 0 where none does, nan without true ones.

    total: true ones in all, where some are not among those scored.
    """
    hits, calls = _steps(truth, score)
    every = int(truth.sum()) if total is None else total
    if not every:
        return np.full(len(recall), np.nan)
    place = np.searchsorted(hits, np.ceil(np.asarray(recall) * every - 1e-9))
    found = place < len(hits)
    precision = np.zeros(len(recall))
    precision[found] = (hits / calls)[place[found]]
    return precision


def confusion(truth: NDArray[np.int64], called: NDArray[np.int64]) -> NDArray[np.int64]:
    """(classes, classes) counts, true class in rows, called class in columns, numbered as in CLASSES."""
    size = len(CLASSES)
    return np.bincount(truth * size + called, minlength=size * size).reshape(size, size)


def class_rates(klass: NDArray[np.int64], called: Mask) -> dict[str, tuple[int, int]]:
    """Of each class that occurs: variants called, and variants."""
    return {
        name: (int(called[klass == number].sum()), int((klass == number).sum()))
        for number, name in enumerate(CLASSES)
        if (klass == number).any()
    }


def pair_rates(
    pairs: Iterable[Pair], called: Mask, *, edges: Sequence[float] = (0.2, 0.5, 0.8, 0.95)
) -> dict[tuple[float, float], tuple[int, int]]:
    """By range of r2: pairs with a variant called, and pairs. Ranges hold their lower end, the last both."""
    pairs = list(pairs)
    r2 = np.array([pair.r2 for pair in pairs])
    hit = np.array([called[pair.first] or called[pair.second] for pair in pairs], dtype=bool)
    rates = {}
    for low, high in pairwise(edges):
        inside = (r2 >= low) & ((r2 < high) | ((r2 == high) & (high == edges[-1])))
        rates[low, high] = int(hit[inside].sum()), int(inside.sum())
    return rates


def clump(
    called: Mask, score: Array, ld: Sequence[Array], starts: NDArray[np.int64], *, r2: float = 0.1
) -> list[NDArray[np.int64]]:
    """Loci of called variants: the best score leads, and takes the called ones with r2 >= 0.1 to it; then the next.

    ld: (m, m) by region.  starts: (regions + 1,) first variant of each.  Returns variants of each locus, lead first.
    """
    loci = []
    for R, begin, end in zip(ld, starts[:-1], starts[1:], strict=True):
        left = begin + np.flatnonzero(called[begin:end])
        left = left[np.argsort(-score[left], kind="stable")]
        while len(left):
            near = R[left[0] - begin, left - begin] ** 2 >= r2
            near[0] = True
            loci.append(left[near])
            left = left[~near]
    return loci


def union(sets: Iterable[NDArray[np.int64]], M: int) -> Mask:
    """(M,) which variants lie in one of the sets."""
    inside = np.zeros(M, dtype=bool)
    for rows in sets:
        inside[rows] = True
    return inside


def locus_classes(sets: Iterable[NDArray[np.int64]], klass: NDArray[np.int64]) -> NDArray[np.int64]:
    """Class of each set: direct if it holds a direct variant, else confounder, vertical, ld_only, single, null."""
    rank = np.array([_PRECEDENCE.index(name) for name in CLASSES])
    order = np.array([CLASSES.index(name) for name in _PRECEDENCE])
    return np.array([order[rank[klass[rows]].min()] for rows in sets], dtype=np.int64)


@dataclass(frozen=True)
class Pooled:
    """Share of false calls over all replicates, with its 95% interval by bootstrap over replicates.

    nan where nothing is called.
    """

    share: float
    low: float
    high: float
    false: int
    called: int

    def within(self, target: float) -> bool:
        """The interval contains the target or lies below it; so does no call at all."""
        return self.called == 0 or self.low <= target


def pooled_fdr(false: ArrayLike, called: ArrayLike, *, draws: int = 2000, seed: int = 0) -> Pooled:
    """Pooled FDR from false calls and calls, one each a replicate."""
    wrong, every = np.asarray(false, dtype=np.int64), np.asarray(called, dtype=np.int64)
    if wrong.shape != every.shape or wrong.ndim != 1 or not len(wrong) or (wrong > every).any():
        raise InputError("false and called hold one number a replicate, false never above called.")
    if every.sum() == 0:
        return Pooled(float("nan"), float("nan"), float("nan"), 0, 0)
    rows = np.random.default_rng([seed, 31]).integers(len(wrong), size=(draws, len(wrong)))
    total = every[rows].sum(axis=1)
    drawn = wrong[rows].sum(axis=1)[total > 0] / total[total > 0]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Pooled(float(wrong.sum() / every.sum()), float(low), float(high), int(wrong.sum()), int(every.sum()))


def false_calls_per_100k(called: ArrayLike, variants: ArrayLike) -> float:
    """Calls per 100,000 variants of null replicates, where each is false."""
    return float(1e5 * np.sum(called) / np.sum(variants))


def mean_and_error(values: ArrayLike) -> Mapping[str, float]:
    """Mean and standard error over replicates, those that are nan left out."""
    found = np.asarray(values, dtype=np.float64)
    found = found[~np.isnan(found)]
    n = len(found)
    return {
        "mean": float(found.mean()) if n else float("nan"),
        "standard_error": float(found.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan"),
        "replicates": n,
    }
