"""Calls of shared variants from one half of the people, tested in the other; see `benchmarks.geuvadis`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.geuvadis_data import Half
from benchmarks.geuvadis_report import BINS
from benchmarks.rates import exact

__all__ = ["LEVEL", "Call", "equal", "rates", "tested", "within"]

LEVEL = 0.05
_LINKED = 0.05  # r^2
_REACH = 1500  # variants either side among which a gene's own lead is looked for


@dataclass(frozen=True)
class Call:
    """A variant said to act on two genes.  score: by which calls are ranked.  model: the model's probability of it."""

    place: int
    variant: int
    genes: tuple[int, int]
    score: float
    model: float


def tested(call: Call, here: Half, there: Half) -> dict[str, Any]:
    """A call in the other half."""
    from scipy.stats import t as student

    genes, v = list(call.genes), call.variant
    first, second = here.correlation([v], genes)[0], there.correlation([v], genes)[0]
    d = there.directions
    p = 2 * student.sf(np.abs(second) * np.sqrt((d - 1) / (1 - second**2)), d - 1)
    replicated = bool((p < LEVEL).all() and (np.sign(first) == np.sign(second)).all())
    near = np.flatnonzero(here.X[:, max(0, v - _REACH) : v + _REACH].any(axis=0)) + max(0, v - _REACH)
    near = near[here.ld([v], near)[0] ** 2 > _LINKED]
    own_p = []
    for column, gene in enumerate(genes):
        lead = int(near[np.abs(here.correlation(near, [gene])[:, 0]).argmax()])
        between, alone = float(there.ld([v], [lead])[0, 0]), float(there.correlation([lead], [gene])[0, 0])
        left = (1 - between**2) * (1 - second[column] ** 2)
        if lead == v or 1 - between**2 < 0.01:
            own_p.append(1.0)
            continue
        partial = (alone - between * second[column]) / np.sqrt(left)
        own_p.append(float(2 * student.sf(abs(partial) * np.sqrt((d - 2) / (1 - partial**2)), d - 2)))
    return {
        "place": call.place,
        "score": call.score,
        "model": call.model,
        "p": float(p.max()),
        "same_signs": bool((np.sign(first) == np.sign(second)).all()),
        "replicated": replicated,
        "refuted": bool(min(own_p) < LEVEL),
    }


def within(tests: Sequence[dict[str, Any]], low: float, high: float, key: str = "score") -> list[dict[str, Any]]:
    """low is within the bin, and high as well if it is 1."""
    return [x for x in tests if low <= x[key] and (x[key] < high or high >= 1)]


def rates(tests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Shares with exact 95% intervals."""
    held = [x["replicated"] and not x["refuted"] for x in tests]
    strict = [x["replicated"] and x["p"] < LEVEL / len(tests) for x in tests]
    return {
        "calls": len(tests),
        "stated": float(np.mean([x["model"] for x in tests])) if tests else None,
        "replicated": _rate([x["replicated"] for x in tests]),
        "replicated_bonferroni": _rate(strict),
        "refuted": _rate([x["refuted"] for x in tests]),
        "held": _rate(held),
    }


def _rate(hits: Sequence[bool]) -> dict[str, Any]:
    low, high = exact(sum(hits), len(hits))
    return {"count": sum(hits), "rate": sum(hits) / len(hits) if hits else None, "low": low, "high": high}


def equal(tests: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each method's best calls, as many as the model with learned priors has above each level."""
    out = []
    for low, _ in reversed(BINS):
        n = len(within(tests["learned"], low, 1.0))
        best = {name: sorted(own, key=lambda x: -x["score"])[:n] for name, own in tests.items()}
        out.append({"above": low, "calls": n, "methods": {name: rates(own) for name, own in best.items()}})
    return out
