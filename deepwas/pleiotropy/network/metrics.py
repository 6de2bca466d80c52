"""How well probabilities agree with labels or truth."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

__all__ = ["Curve", "average_precision", "error_by_chance", "figures", "log_loss", "reliability"]

Floats = NDArray[np.float64]
_SMALL = 1e-9


class Curve(NamedTuple):
    """Bins that probabilities fell into, empty ones left out.

    stated: mean probability.  observed: share that is true.  number: of probabilities.
    error: expected calibration error, the mean over probabilities of |stated - observed| of their bin; nan for none.
    """

    stated: Floats
    observed: Floats
    number: NDArray[np.int64]
    error: float


def reliability(p: Floats, truth: NDArray[np.bool_], *, bins: int = 10, above: float = 0.0) -> Curve:
    """Of the probabilities that are at least `above`, in bins of equal width."""
    kept = p >= above
    p, truth = p[kept], truth[kept]
    which = np.minimum((p * bins).astype(int), bins - 1)
    number = np.bincount(which, minlength=bins)
    filled = number > 0
    stated = np.bincount(which, weights=p, minlength=bins)[filled] / number[filled]
    observed = np.bincount(which, weights=truth, minlength=bins)[filled] / number[filled]
    error = float((number[filled] * np.abs(stated - observed)).sum() / len(p)) if len(p) else float("nan")
    return Curve(stated, observed, number[filled], error)


def error_by_chance(stated: Floats, number: NDArray[np.int64]) -> float:
    """The expected calibration error of probabilities that are all true: mean absolute deviations of binomials, by bin
    (de Moivre's closed form); nan for none.  stated, number: as of `Curve`."""
    if not number.sum():
        return float("nan")
    above = np.floor(number * stated) + 1
    return float(np.sum(2 * above * (1 - stated) * binom.pmf(above, number, stated)) / number.sum())


def average_precision(truth: NDArray[np.bool_], score: Floats) -> float:
    """Area under precision against recall: the mean over true ones of the precision at their score, ties together."""
    if not truth.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    hits = np.cumsum(truth[order])[ends]
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / truth.sum())


def log_loss(p: Floats, label: Floats) -> float:
    """Mean of -log P(label), in nats; label may be a probability."""
    p = np.clip(p, _SMALL, 1 - _SMALL)
    return float(-(label * np.log(p) + (1 - label) * np.log1p(-p)).mean()) if len(p) else float("nan")


def figures(p: Floats, label: Floats) -> dict[str, Any]:
    """Log loss, area under precision-recall, calibration errors and numbers, ready for JSON: None where undefined.

    calibration_error_above: of the probabilities that are at least 0.1, for nearly all variants have nearly 0;
    calibration_error_above_by_chance: what it would be if these were all true.
    """
    truth = label > 0.5
    likely = reliability(p, truth, above=0.1)
    values = {
        "log_loss": log_loss(p, label),
        "auprc": average_precision(truth, p),
        "calibration_error": reliability(p, truth).error,
        "calibration_error_above": likely.error,
        "calibration_error_above_by_chance": error_by_chance(likely.stated, likely.number),
        "expected": float(p.sum()),
    }
    known: dict[str, Any] = {name: x if np.isfinite(x) else None for name, x in values.items()}
    return known | {"positive": int(truth.sum()), "negative": int((~truth).sum())}
