"""Rates over repeated data sets, with their exact binomial intervals."""

from __future__ import annotations

__all__ = ["exact", "rate", "said"]


def exact(hits: int, runs: int) -> tuple[float, float]:
    """The exact (Clopper-Pearson) 95% interval of a share; 0 and 1 where there are no runs."""
    from scipy.stats import binomtest

    if not runs:
        return 0.0, 1.0
    ends = binomtest(int(hits), int(runs)).proportion_ci(0.95, method="exact")
    return float(ends.low), float(ends.high)


def rate(hits: int, runs: int) -> dict[str, float]:
    """With the exact 95% interval; without share and interval where there are no runs."""
    if not runs:
        return {"hits": 0, "runs": 0}
    low, high = exact(hits, runs)
    return {"hits": int(hits), "runs": runs, "share": hits / runs, "low": low, "high": high}


def said(found: dict[str, float]) -> str:
    """A rate as a table has it."""
    return f"{found['share']:.1%} ({found['low']:.1%}-{found['high']:.1%})"
