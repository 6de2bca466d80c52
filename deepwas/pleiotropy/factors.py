"""Heritable factors that no trait here measures: variants that act through one have effects in one ratio.

The effects of n variants that seem to act on several traits, b_i (K,) with errors E = C_n / N, are a mixture

    b_i ~ (1 - w) mean_c N(0, V_c + E) + w N(0, a a^T + E),

own effects on two traits or more, c their set, or one effect with loadings a. It is fitted by expectation-maximisation
from many starts. A factor is kept only if the mixture is much likelier than own effects alone, and holds several
variants. Two traits are too few: effects in one ratio are then a line through a cloud that few variants make.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["HeritableFactor", "find_factor"]

Floats = NDArray[np.float64]

_STARTS = 30
_STEPS = 60
_LEAST_MEMBERS = 5.0
_LEAST_SHARE = 0.1
_ACTS = 0.05  # squared loading over the largest, below which a trait is not of the factor


@dataclass(frozen=True, eq=False)
class HeritableFactor:
    """loadings: (K,), a; a a^T is the covariance of effects through it.  share: w.  members: expected number of them.

    gain: log likelihood over own effects alone, less the price of its parameters.
    """

    loadings: Floats
    share: float
    members: float
    gain: float


def find_factor(effects: Floats, weights: Floats, own: Floats, error: Floats) -> HeritableFactor | None:
    """The factor that explains the most, or None.

    effects: (n, K), total effects.  weights: (n,), probability that each acts on several traits.
    own: (C, K, K), V_c, covariance of own effects on each set of two traits or more.  error: (K, K), of the estimates.
    """
    K = effects.shape[1]
    if K < 3 or weights.sum() < 2 * _LEAST_MEMBERS:
        return None
    alone = np.logaddexp.reduce([_log_density(effects, V + error) for V in own], axis=0) - np.log(len(own))
    unit = np.sqrt(np.max([np.diag(V) for V in own], axis=0))
    strength = np.sum((effects / unit[None, :]) ** 2, axis=1) * weights
    best: tuple[float, Floats, float, Floats] | None = None
    for start in np.argsort(-strength, kind="stable")[:_STARTS]:
        found = _fit(effects, weights, alone, error, effects[start])
        if best is None or found[0] > best[0]:
            best = found
    assert best is not None
    gain, a, share, member = best
    gain -= (K + 1) * np.log(weights.sum())
    members = float(member.sum())
    if gain <= 0 or members < _LEAST_MEMBERS or share < _LEAST_SHARE:
        return None
    relative = (a / unit) ** 2
    a = np.where(relative < _ACTS * relative.max(), 0.0, a)
    return HeritableFactor(a, share, members, float(gain)) if (a != 0).sum() >= 2 else None


def _fit(
    effects: Floats, weights: Floats, alone: Floats, error: Floats, start: Floats
) -> tuple[float, Floats, float, Floats]:
    """Gain, a, w and each variant's weight in the factor, from one start."""
    a, w = start.copy(), 0.3
    gain, member = -np.inf, weights
    for _ in range(_STEPS):
        through = _log_density(effects, np.outer(a, a) + error)
        both = np.logaddexp(np.log1p(-w) + alone, np.log(w) + through)
        before, gain = gain, float(np.sum(weights * (both - alone)))
        member = weights * np.exp(np.log(w) + through - both)
        total = max(member.sum(), 1e-9)
        w = float(np.clip(total / weights.sum(), 1e-3, 0.99))
        moment = (effects * member[:, None]).T @ effects / total
        # The likeliest a a^T beside known errors: the leading direction once errors are whitened.
        root = np.linalg.cholesky(error)
        half = np.linalg.inv(root)
        values, vectors = np.linalg.eigh(half @ moment @ half.T)
        a = root @ vectors[:, -1] * np.sqrt(max(values[-1] - 1, 1e-6))
        if gain - before < 1e-6 * max(abs(gain), 1.0):
            break
    return gain, a, w, member


def _log_density(x: Floats, covariance: Floats) -> Floats:
    _, log_det = np.linalg.slogdet(covariance)
    solved = np.linalg.solve(covariance, x.T)
    return np.asarray(-0.5 * (np.einsum("ki,ik->i", solved, x) + log_det + x.shape[1] * np.log(2 * np.pi)))
