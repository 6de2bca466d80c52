"""The constant prior, fitted in closed form, and the block jackknife of heritability.

In the rotated eigenbasis a constant effect variance makes the covariance diagonal: y_i ~ N(0, f N d_i + noise) with
d_i = sum_j G_ij^2. Any other prior does so too after one eigendecomposition of G diag(f) G^T per block, with its shape
held and its scale free. So scale and noise are fitted, and refitted without each block in turn, at the cost of a
vector sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError

__all__ = ["ScaleFit", "Spectrum", "fit_scale", "jackknife_scale", "moment_effect_variance"]

_LOG_NOISE_BOUNDS = (np.log(1e-2), np.log(1e3))
_JACKKNIFE_GROUPS = 200


@dataclass(frozen=True)
class Spectrum:
    """One block seen along the eigenvectors of its signal covariance N G diag(shape) G^T.

    signal: (k,), variance of y_i per unit of scale.  squares: (k,), y_i^2.
    """

    signal: NDArray[np.float64]
    squares: NDArray[np.float64]


@dataclass(frozen=True)
class ScaleFit:
    """Maximum-likelihood scale of a prior's shape, and noise.

    log_scale: log of the factor on the prior.  noise: sigma2.  log_likelihood: in nats, constants included.
    no_signal: whether the scale went to 0, adding less than 1e-4 of the noise to the mean variance.
    """

    log_scale: float
    noise: float
    log_likelihood: float
    no_signal: bool


def spectrum(factor: NDArray[Any], y: NDArray[Any], c: NDArray[Any] | float) -> Spectrum:
    """Spectrum of a block under signal covariance G diag(c) G^T: factor (k, m), y (k,), c (m,) or a constant.

    For a constant no decomposition is needed, since G G^T is diagonal.
    """
    G, whitened = np.asarray(factor, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if np.ndim(c) == 0:
        return Spectrum(float(c) * np.einsum("ij,ij->i", G, G), whitened**2)
    values, vectors = np.linalg.eigh((G * np.asarray(c, dtype=np.float64)) @ G.T)
    return Spectrum(np.maximum(values, 0.0), (vectors.T @ whitened) ** 2)


def moment_effect_variance(
    z: NDArray[np.float64], ld_scores: NDArray[np.float64], sample_size: NDArray[np.float64]
) -> float:
    """Method-of-moments effect variance: (mean z^2 - 1) / mean(N l), as in LD score regression with the intercept at 1.

    z, ld_scores, sample_size: (s,), over the scored variants.  At least 1e-3 of mean z^2 is left to the effects, so
    that the logarithm exists.  Times the number of variants it is the moment-based SNP heritability.
    """
    chi2 = float(np.mean(z**2))
    return max(chi2 - 1, 1e-3 * chi2) / float(np.mean(sample_size * np.maximum(ld_scores, 1.0)))


def log_density(blocks: Sequence[Spectrum], log_scale: float, noise: float) -> NDArray[np.float64]:
    """Log-likelihood of each block, (n_blocks,), in nats, at a scale and noise."""
    out = np.empty(len(blocks))
    for i, block in enumerate(blocks):
        variance = np.exp(log_scale) * block.signal + noise
        out[i] = -0.5 * np.sum(np.log(2 * np.pi * variance) + block.squares / variance)
    return out


def fit_scale(
    blocks: Sequence[Spectrum],
    *,
    noise: float | None,
    start: tuple[float, float] = (0.0, 1.0),
    weights: NDArray[np.float64] | None = None,
) -> ScaleFit:
    """Maximise the likelihood of all blocks over the log scale, and over the noise unless it is given.

    start: (log scale, noise) to begin at.  The scale may move by a factor of e^25 either way.
    weights: (n_blocks,) of their log-likelihoods, or None for 1.
    """
    from scipy.optimize import minimize

    if not blocks:
        raise InputError("no LD block is left to fit the prior's scale on.")
    signal = np.concatenate([b.signal for b in blocks])
    squares = np.concatenate([b.squares for b in blocks])
    counts = [len(b.signal) for b in blocks]
    weight = np.ones(len(signal)) if weights is None else np.repeat(weights, counts)
    low, high = start[0] - 25.0, start[0] + 25.0

    def objective(t: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        slope = np.exp(t[0]) * signal
        sigma2 = np.exp(t[1]) if noise is None else noise
        variance = slope + sigma2
        score = 0.5 * weight * (1 - squares / variance) / variance
        gradient = [np.sum(score * slope)] + ([sigma2 * np.sum(score)] if noise is None else [])
        return 0.5 * float(np.sum(weight * (np.log(2 * np.pi * variance) + squares / variance))), np.array(gradient)

    first = [start[0]] + ([np.log(start[1])] if noise is None else [])
    bounds = [(low, high)] + ([_LOG_NOISE_BOUNDS] if noise is None else [])
    options = {"ftol": 1e-15, "gtol": 1e-9 * len(signal)}
    found = minimize(objective, first, jac=True, bounds=bounds, method="L-BFGS-B", options=options)
    sigma2 = float(np.exp(found.x[1])) if noise is None else noise
    silent = bool(np.exp(found.x[0]) * signal.mean() < 1e-4 * sigma2)
    return ScaleFit(float(found.x[0]), sigma2, -float(found.fun), silent)


def jackknife_scale(
    blocks: Sequence[Spectrum], fitted: ScaleFit, *, noise: float | None
) -> tuple[float, NDArray[np.float64]]:
    """Standard error of exp(log_scale) by a block jackknife that refits scale and noise without each block.

    Contiguous blocks are deleted together where there are more than 200. Returns the standard error and the
    leave-one-out values of exp(log_scale).
    """
    count = min(len(blocks), _JACKKNIFE_GROUPS)
    if count < 3:
        raise InputError(f"a block jackknife needs at least 3 LD blocks; there are {len(blocks)}.")
    group = np.arange(len(blocks)) * count // len(blocks)
    left_out = np.empty(count)
    for g in range(count):
        rest = [b for b, own in zip(blocks, group, strict=True) if own != g]
        left_out[g] = np.exp(fit_scale(rest, noise=noise, start=(fitted.log_scale, fitted.noise)).log_scale)
    error = np.sqrt((count - 1) / count * np.sum((left_out - left_out.mean()) ** 2))
    return float(error), left_out
