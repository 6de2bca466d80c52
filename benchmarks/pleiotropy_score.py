"""What one replicate shows of deepwas and of other methods: counts that add up over replicates, ready for JSON.

A locus that is called is true if its set holds a variant with own effects on two traits or more. Variants that act
through a heritable factor, and partners in LD that act on a trait each, make it no truer. Loci of methods that have
none are clumps, wider than credible sets, so they hold one more easily: at locus level such methods are flattered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.pleiotropy_baselines import Calls
from benchmarks.pleiotropy_metrics import (
    average_precision,
    bin_sums,
    calls_by_local_fdr,
    class_rates,
    clump,
    confusion,
    locus_classes,
    pair_rates,
    power_at_fdr,
    precision_at,
    union,
)
from benchmarks.pleiotropy_simulate import CLASSES, Simulated

if TYPE_CHECKING:
    from benchmarks.pleiotropy_analysis import Analysis

__all__ = ["RECALL", "score_analysis", "score_calls"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

RECALL = np.linspace(0.05, 1.0, 20)
_DIRECT, _CONFOUNDER = CLASSES.index("direct"), CLASSES.index("confounder")
_SAME = {"none": "null", "pleiotropic": "direct"}  # else the classes of the product are called as here
_LOOKED_AT = 0.02  # share of the variants, the best of a method without loci, that are clumped
LIKELY = 0.1


def score_analysis(simulated: Simulated, found: Analysis) -> dict[str, Any]:
    """Figures of deepwas; loci are its credible sets."""
    p = found.value["pleiotropy"]
    sets = [one.variants for one in found.loci]
    called = calls_by_local_fdr(found.locus_fdr)
    flagged = union([s for s, flag in zip(sets, found.unresolvable, strict=True) if flag], len(p))
    klass = np.array([CLASSES.index(_SAME.get(x, x)) for x in found.klass.tolist()])
    figures = _score(simulated, p, calls_by_local_fdr(found.local_fdr), sets, found.shared, called)
    wrong = _wrong(simulated, sets, called)
    true = called & (locus_classes(sets, simulated.klass) == _DIRECT)
    pairs = [pair for pair in simulated.pairs if wrong[pair.first] or wrong[pair.second]]
    return figures | {
        "bins": bin_sums(p, simulated.direct).tolist(),
        "likely": bin_sums(p, simulated.direct, above=LIKELY).tolist(),
        "locus_bins": bin_sums(found.shared, locus_classes(sets, simulated.klass) == _DIRECT).tolist(),
        "traits": _traits(simulated, found),
        "confusion": confusion(simulated.klass, klass).tolist(),
        "pairs_flagged": _named(pair_rates(simulated.pairs, flagged)),
        "wrong_pairs_flagged": _named(pair_rates(pairs, flagged)),
        "true_flagged": [int((true & found.unresolvable).sum()), int(true.sum())],
        "seconds": found.seconds,
        "rounds": found.rounds,
        "factors": found.model.factors,
        "structure": _structure(simulated, found),
    }


def score_calls(simulated: Simulated, calls: Calls) -> dict[str, Any]:
    """Figures of a method that scores variants: its loci are clumps, by the score, of LD r2 >= 0.1 with the best."""
    score = np.where(np.isnan(calls.score), -np.inf, calls.score)
    best = score >= np.quantile(score, 1 - _LOOKED_AT)
    sets = clump(best | calls.called, score, simulated.ld, simulated.genome.starts)
    called = np.array([bool(calls.called[s].any()) for s in sets], dtype=bool)
    leads = np.array([score[s[0]] for s in sets], dtype=np.float64)
    # A clump is wide: of those that are called, the variants that are called themselves stand for it.
    sets = [s[calls.called[s]] if hit else s for s, hit in zip(sets, called, strict=True)]
    figures = _score(simulated, score, calls.called, sets, leads, called)
    if calls.probability is not None:
        figures["bins"] = bin_sums(calls.probability, simulated.direct).tolist()
        figures["likely"] = bin_sums(calls.probability, simulated.direct, above=LIKELY).tolist()
    return figures


def _score(
    simulated: Simulated,
    score: Array,
    variants_called: Mask,
    sets: Sequence[NDArray[np.int64]],
    locus_score: Array,
    called: Mask,
) -> dict[str, Any]:
    direct, klass = simulated.direct, simulated.klass
    of_set = locus_classes(sets, klass)
    true = of_set == _DIRECT
    missed = int((direct & ~union(sets, len(direct))).sum())
    total = int(true.sum()) + missed
    hits = variants_called & direct
    wrong = _wrong(simulated, sets, called)
    inside = union([s for s, hit in zip(sets, called, strict=True) if hit], len(direct))
    share = true.sum() / total if total else float("nan")
    return {
        "average_precision": average_precision(direct, score),
        "locus_average_precision": average_precision(true, locus_score) * share if true.any() else share,
        "power_matched": power_at_fdr(direct, score),
        "locus_power_matched": power_at_fdr(true, locus_score) * share if true.any() else share,
        "precision": precision_at(true, locus_score, RECALL, total).tolist(),
        "variants": _calls(variants_called, hits, klass == _CONFOUNDER) | {"direct": int(direct.sum())},
        "loci": _calls(called, called & true, of_set == _CONFOUNDER)
        | {"direct": int(direct.sum()), "found": int((inside & direct).sum())},
        "classes": _counts(class_rates(klass, variants_called)),
        "locus_classes": _counts(class_rates(klass, wrong)),
        "pairs": _named(pair_rates(simulated.pairs, variants_called & ~direct)),
        "locus_pairs": _named(pair_rates(simulated.pairs, wrong)),
    }


def _wrong(simulated: Simulated, sets: Sequence[NDArray[np.int64]], called: Mask) -> Mask:
    """(M,) in a called set that holds no direct variant."""
    bad = [s for s, hit in zip(sets, called, strict=True) if hit and not simulated.direct[s].any()]
    return union(bad, len(simulated.direct))


def _calls(called: Mask, true: Mask, confounder: Mask) -> dict[str, int]:
    return {
        "called": int(called.sum()),
        "false": int((called & ~true).sum()),
        "confounder": int((called & ~true & confounder).sum()),
    }


def _counts(rates: dict[str, tuple[int, int]]) -> dict[str, list[int]]:
    return {name: list(pair) for name, pair in rates.items()}


def _named(rates: dict[tuple[float, float], tuple[int, int]]) -> dict[str, list[int]]:
    return {f"{low:g}-{high:g}": list(pair) for (low, high), pair in rates.items()}


def _traits(simulated: Simulated, found: Analysis) -> dict[str, float]:
    """Of called variants with own effects on several traits: how many traits they have, those of them with an inclusion
    probability above one half, and other traits with one."""
    hit = calls_by_local_fdr(found.local_fdr) & simulated.direct
    named = np.stack([found.value[f"pip_{k}"] for k in range(len(simulated.N))], axis=1)[hit] > 0.5
    true = simulated.D[hit]
    return {"true": int(true.sum()), "named": int((named & true).sum()), "false": int((named & ~true).sum())}


def _structure(simulated: Simulated, found: Analysis) -> dict[str, Any]:
    """Edges of T found, and made up; largest errors of T and C_n."""
    T, estimate = simulated.T, found.structure.effects.T
    return {
        "edges": int((T != 0).sum()),
        "found": int(((T != 0) & (estimate != 0)).sum()),
        "made_up": int(((T == 0) & (estimate != 0)).sum()),
        "off_T": float(np.abs(estimate - T).max()),
        "off_noise": float(np.abs(found.structure.matrix - simulated.noise_correlation).max()),
    }
