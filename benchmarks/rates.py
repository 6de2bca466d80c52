"""Rates over repeated data sets, with their exact binomial intervals."""

from __future__ import annotations

__all__ = ["rate", "said"]


def rate(hits: int, runs: int) -> dict[str, float]:
    """With the exact binomial 95% interval."""
    from scipy.stats import binomtest

    interval = binomtest(int(hits), runs).proportion_ci(method="exact")
    return {"hits": int(hits), "runs": runs, "share": hits / runs, "low": interval.low, "high": interval.high}


def said(found: dict[str, float]) -> str:
    """A rate as a table has it."""
    return f"{found['share']:.1%} ({found['low']:.1%}-{found['high']:.1%})"
