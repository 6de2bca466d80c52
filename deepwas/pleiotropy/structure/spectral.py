"""Noise and genetic covariance of traits from whitened LD blocks: maximum likelihood over the LD's eigenvalues.

With every trait whitened by the same block (`LDBlock.whiten`), the K values of eigen-direction i are

    y_i ~ N(0, C + lam_i S),   S_jk = sqrt(N_j N_k) rho_jk / M,

lam_i = sum_j G_ij^2 the eigenvalue. Small eigenvalues hold noise alone, so C is told from S much better than by LD
scores, which average over the spectrum. Let Q make both diagonal, Q C Q' = I, Q S Q' = diag(d): for u = Q y Fisher
scoring of the pair (j, k) is the regression of u_ij u_ik on 1 and lam_i, weighted by
1 / ((1 + lam_i d_j) (1 + lam_i d_k)).
Its fixed point maximises the likelihood; as a regression of moments it holds for effects that are not normal, too.
The LD has to fit the GWAS: what a panel gets wrong shows at small eigenvalues, as noise.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from deepwas.errors import ConvergenceWarning, InputError
from deepwas.pleiotropy.structure.noise import (
    Floats,
    NoiseCorrelation,
    checked_names,
    group_sums,
    jackknife_groups,
    positive_definite,
    summarised_noise,
)
from deepwas.tally import Tally

__all__ = ["noise_correlation_from_blocks"]

_MOST_STEPS = 50
_TRIM_AFTER = 3
_LEADING = 0.25
_LOUD = 3.0
_TOLERANCE = 1e-6
_LEAST_NOISE, _LEAST_EIGENVALUE = 0.05, 0.02  # of a trait; of the correlation, on the way


def noise_correlation_from_blocks(
    whitened: Sequence[ArrayLike],
    eigenvalues: Sequence[ArrayLike],
    sample_size: ArrayLike,
    *,
    n_variants: float,
    names: Sequence[str] | None = None,
    groups: int = 200,
) -> NoiseCorrelation:
    """Noise and genetic covariance of K traits; see the module's docstring.

    whitened: one (k, K) a block, in genome order, all traits of a block whitened by the same `LDBlock`.
    eigenvalues: one (k,) a block, sum_j G_ij^2 (`LDBlock.eigenvalues` without flanks).
    sample_size: (K,), people.  n_variants: candidate variants in all, so that rho_kk is the heritability.
    groups: as in `noise_correlation`.  Warns (ConvergenceWarning) if scoring has not converged.

    Noise under 0.05 of its trait's z-scores, as few blocks may ask for, is held there, with a note.
    """
    if len(whitened) != len(eigenvalues) or len(whitened) < 3:
        raise InputError(f"{len(whitened)} whitened blocks and {len(eigenvalues)} sets of eigenvalues; 3 are needed.")
    parts = [np.asarray(y, np.float64) for y in whitened]
    spectra = [np.asarray(lam, np.float64) for lam in eigenvalues]
    K = parts[0].shape[-1]
    for b, (y, lam) in enumerate(zip(parts, spectra, strict=True)):
        if y.shape != (len(lam), K) or not np.isfinite(y).all() or not (lam >= 0).all():
            raise InputError(
                f"block {b}: whitened {y.shape} and eigenvalues {lam.shape} must be finite (k, K) and (k,)."
            )
    labels = checked_names(names, K)
    size = np.asarray(sample_size, np.float64)
    if size.shape != (K,) or not (size > 0).all():
        raise InputError(f"sample_size must hold {K} positive numbers; it has shape {size.shape}.")
    if not 0 < n_variants < np.inf:
        raise InputError(f"n_variants is {n_variants}; it is the number of candidate variants of all blocks.")
    y, lam = np.concatenate(parts), np.concatenate(spectra)
    block = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    group, count = jackknife_groups(block, len(y), groups)
    # Means over the lower and upper half of the spectrum start the scoring; blocks are left out in the last step alone.
    noise = np.diag(np.maximum((y[lam <= np.median(lam)] ** 2).mean(axis=0), 0.1))
    genetic = np.diag(np.maximum(((y**2).mean(axis=0) - np.diag(noise)) / lam.mean(), 1e-6))
    quiet = np.ones(len(y), bool)
    for step in range(_MOST_STEPS):
        if step == _TRIM_AFTER:
            quiet = _quiet(y, lam, noise, genetic, block)
        sums = _score(y, lam, noise, genetic, group, count, quiet)
        new_noise, new_genetic = sums[0][-1].copy(), sums[1][-1]
        unit = np.sqrt(np.diag(noise))
        change = np.abs((new_noise - noise) / np.outer(unit, unit)).max()
        change = max(change, float(np.abs((new_genetic - genetic) * lam.mean() / np.outer(unit, unit)).max()))
        # Few blocks, or few variants with all of the signal, may ask for noise that is no covariance: held at the edge.
        np.fill_diagonal(new_noise, np.maximum(np.diag(new_noise), _LEAST_NOISE))
        noise, genetic = positive_definite(new_noise, _LEAST_EIGENVALUE)[0], new_genetic
        if change < _TOLERANCE and step >= _TRIM_AFTER:
            break
    else:
        warnings.warn(
            f"scoring stopped after {_MOST_STEPS} steps; last change {change:.2g}.", ConvergenceWarning, stacklevel=2
        )
    scale = n_variants / np.sqrt(np.outer(size, size))
    own = np.diagonal(sums[0][-1]).copy()
    np.fill_diagonal(sums[0][-1], np.maximum(own, _LEAST_NOISE))
    found = summarised_noise(labels, sums[0], sums[1] * scale, Tally())
    held = [
        f"{name}: the noise of its z-scores is estimated as {value:.2f}, less than noise can be: there are few LD "
        "blocks, or N is too large, or z-scores are over-corrected."
        for name, value in zip(labels, own, strict=True)
        if value < _LEAST_NOISE
    ]
    return replace(found, notes=(*found.notes, *held))


def _score(
    y: Floats, lam: Floats, noise: Floats, genetic: Floats, group: np.ndarray, count: int, quiet: np.ndarray
) -> tuple[Floats, Floats]:
    """One step of Fisher scoring: C and S, each (count + 1, K, K), without each group and of all."""
    K = y.shape[1]
    lower = np.linalg.cholesky(noise)
    inverse = np.linalg.inv(lower)
    d, U = np.linalg.eigh(inverse @ genetic @ inverse.T)
    Q, back = U.T @ inverse, lower @ U
    u = y @ Q.T
    v = 1 / (1 + lam[:, None] * np.maximum(d, 0))
    C, S = np.empty((2, count + 1, K, K))
    for j in range(K):
        for k in range(j, K):
            w, product = v[:, j] * v[:, k], u[:, j] * u[:, k]
            sw, sx, sxx, sy, sxy = group_sums(w[quiet], lam[quiet], product[quiet], group[quiet], count)
            C[:, j, k] = C[:, k, j] = constant = (sxx * sy - sx * sxy) / (sw * sxx - sx**2)
            _, sx, sxx, _, sxy = group_sums(w, lam, product, group, count)
            S[:, j, k] = S[:, k, j] = (sxy - constant * sx) / sxx
    return back @ C @ back.T, back @ S @ back.T


def _quiet(y: Floats, lam: Floats, noise: Floats, genetic: Floats, own: np.ndarray) -> np.ndarray:
    """(n,) bool, the lower three quarters of the directions of blocks whose leading quarter is no outlier."""
    expected = np.diag(noise) + lam[:, None] * np.maximum(np.diag(genetic), 0)
    quiet = np.zeros(len(y), bool)
    for b in range(own[-1] + 1):
        rows = np.flatnonzero(own == b)
        rows = rows[np.argsort(-lam[rows], kind="stable")]
        leading = max(int(_LEADING * len(rows)), 1)
        quiet[rows[leading:]] = (y[rows[:leading]] ** 2 / expected[rows[:leading]]).mean(axis=0).max() < _LOUD
    return quiet
