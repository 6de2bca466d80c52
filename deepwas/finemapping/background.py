"""Background: effects too many and too weak to be located one by one.

They raise the variance of direction i of the whitened z-scores from the noise by t s_i, s_i = N sum_j G_ij^2 f_j what
all effects together would by their prior. t is fitted to what located effects leave of the z-scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["background", "squares_left"]

Floats = NDArray[np.float64]

_MOST = 2.0  # times the prior's variance: more is no background
_CLEARLY = 0.5  # nats
_LEAST_LEFT = 0.1  # of a direction


def squares_left(rest: Floats, leads: Floats) -> Floats:
    """Squares of rest (k,) or (k, K), each over what a fit by the columns `leads` (k, sets) leaves of its direction."""
    Q, _ = np.linalg.qr(leads)
    left = np.maximum(1 - np.einsum("ij,ij->i", Q, Q), _LEAST_LEFT)
    return np.asarray(rest**2 / (left if rest.ndim == 1 else left[:, None]))


def background(squares: Floats, noise: float | Floats, signal: Floats) -> float:
    """The t >= 0 at which N(0, noise + t signal_i) is likeliest for the squares; 0 unless clearly less likely there."""
    from scipy.optimize import minimize_scalar

    def loss(t: float) -> float:
        D = noise + t * signal
        return 0.5 * float(np.sum(np.log(D) + squares / D))

    best = minimize_scalar(loss, bounds=(0.0, _MOST), method="bounded", options={"xatol": 1e-3})
    return float(best.x) if loss(0.0) - float(best.fun) > _CLEARLY else 0.0
