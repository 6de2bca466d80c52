"""Noise and genetic correlation of traits by cross-trait LD score regression.

    E[z_ij z_ik] = C_jk + sqrt(N_j N_k) rho_jk l_i / M

for variant i and traits j, k, with l_i its LD score, M the number of variants the scores sum over, rho_jk the genetic
covariance (rho_jj: heritability), C_jk the intercept: noise correlation by shared samples, and inflation where j = k.
Sources: Bulik-Sullivan et al. 2015a, 2015b; weights of Finucane et al. 2015.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepwas.enrichment_table import Estimate
from deepwas.errors import DataWarning, DeepwasError, InputError
from deepwas.tally import Tally

__all__ = [
    "NoiseCorrelation",
    "checked_names",
    "group_sums",
    "jackknife_groups",
    "noise_correlation",
    "summarised_noise",
]

Floats = NDArray[np.float64]
Progress = Callable[[int, int], None]

_LEAST_EIGENVALUE = 1e-3  # of the noise correlation matrix, below which it is mended
_OUTLIER = 1000.0  # chi-square over its expectation
_LEAST_MEAN = 0.5
_WEIGHT_PASSES = 3


@dataclass(frozen=True, eq=False)
class NoiseCorrelation:
    """Noise covariance of z-scores and genetic covariance of K traits, each with its block jackknife.

    matrix: (K, K) C, positive definite; its diagonal is the noise of each trait (1 without inflation).
    intercepts: the same before it was made positive definite: value (K, K), left_out (groups, K, K).
    genetic_covariance: rho, per trait variances; the diagonal is the heritability.
    genetic_correlation: rho_jk / sqrt(rho_jj rho_kk); NaN where a heritability is not positive.
    projected: whether `matrix` differs from the intercepts.  notes: what a reader has to know.
    tally: variants left out, by trait and reason.
    """

    names: tuple[str, ...]
    matrix: Floats
    intercepts: Estimate
    genetic_covariance: Estimate
    genetic_correlation: Estimate
    projected: bool
    notes: tuple[str, ...]
    tally: Tally = field(default_factory=Tally)

    @property
    def standard_error(self) -> Floats:
        """(K, K), block-jackknife standard errors of the intercepts."""
        return np.asarray(self.intercepts.standard_error)

    @property
    def correlation(self) -> Floats:
        """(K, K), `matrix` scaled to a unit diagonal."""
        scale = np.sqrt(np.diag(self.matrix))
        return self.matrix / np.outer(scale, scale)


def noise_correlation(
    z: ArrayLike,
    sample_size: ArrayLike,
    ld_scores: ArrayLike,
    blocks: ArrayLike,
    *,
    n_variants: float,
    weight_scores: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    groups: int = 200,
    progress: Progress | None = None,
) -> NoiseCorrelation:
    """Noise and genetic covariance by LD score regression, within and across traits; see the module's docstring.

    z: (M, K), NaN where missing (a pair uses the variants that both traits have).  sample_size: (K,) or (M, K), people.
    ld_scores: (M,), sum of r^2 over `n_variants` variants.  blocks: (M,) int, the LD block of each variant.
    weight_scores: (M,), sum of r^2 over the variants of the regression, for over-counting; by default `ld_scores`.
    groups: the jackknife leaves out at most as many groups of neighbouring blocks; at least 3.

    Weights 1 / (l (a_j a_k + c_jk^2)), a and c the fitted means, are iterated. Intercept and slope are fitted together,
    to all variants but outliers, chi-square above 1,000 times its expectation. The usual two steps, an intercept from
    variants with chi-square below 30 and limits of 80 or 0.001 N, cut into the signal, and bias both where it is strong
    or sparse. Where there are whitened LD blocks, `noise_correlation_from_blocks` is two to five times as precise.
    """
    values = _checked_z(z)
    M, K = values.shape
    labels = checked_names(names, K)
    sizes = _checked_sizes(sample_size, values, labels)
    scores = _checked_scores(ld_scores, M, "ld_scores")
    over = np.maximum(scores if weight_scores is None else _checked_scores(weight_scores, M, "weight_scores"), 1)
    if not 0 < n_variants < np.inf:
        raise InputError(f"n_variants is {n_variants}; it is the number of variants that the LD scores sum over.")
    group, count = jackknife_groups(blocks, M, groups)
    tally = Tally()
    present = np.isfinite(values)
    for k, name in enumerate(labels):
        tally.add("noise correlation", "dropped", f"{name}: no z-score", int((~present[:, k]).sum()))
    intercept, slope = np.zeros((2, count + 1, K, K))
    own = np.zeros((K, 2))  # intercept and slope of each trait, for the weights
    pairs = [(k, k) for k in range(K)] + [(j, k) for j in range(K) for k in range(j + 1, K)]
    for done, (j, k) in enumerate(pairs, 1):
        rows = np.flatnonzero(present[:, j] & present[:, k])
        if len(np.unique(group[rows])) < 3:
            raise InputError(
                f"{labels[j]} and {labels[k]} share z-scores of {len(rows)} variants, in too few LD blocks."
            )
        size = np.sqrt(sizes[rows, j] * sizes[rows, k])
        ld = np.maximum(scores[rows], 1) / n_variants
        fit = _pair(
            values[rows, j], values[rows, k], size * ld, sizes[rows, j] * ld, sizes[rows, k] * ld, over[rows],
            group[rows], count, own[j], own[k], j == k,
        )  # fmt: skip
        intercept[:, j, k] = intercept[:, k, j] = fit[0]
        slope[:, j, k] = slope[:, k, j] = fit[1]
        if j == k:
            own[k] = fit[0][-1], fit[1][-1]
            what = f"{labels[k]}: chi-square above {_OUTLIER:g} times its expectation"
            tally.add("noise correlation", "dropped", what, fit[2])
        if progress:
            progress(done, len(pairs))
    return summarised_noise(labels, intercept, slope, tally)


def summarised_noise(labels: tuple[str, ...], noise: Floats, genetic: Floats, tally: Tally) -> NoiseCorrelation:
    """The result, from estimates without each group and, last, of all: noise and genetic covariance (g + 1, K, K)."""
    notes = []
    h2 = np.diagonal(genetic, axis1=1, axis2=2)
    for k, name in enumerate(labels):
        if not h2[-1, k] > 0:
            notes.append(f"{name}: heritability estimate {h2[-1, k]:.3g}; its genetic correlations are not defined.")
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = genetic / np.sqrt(np.where(h2 > 0, h2, np.nan)[:, :, None] * h2[:, None, :])
    for k in range(len(labels)):
        if h2[-1, k] > 0 and not (h2[:-1, k] > 0).all():
            notes.append(f"{labels[k]}: heritability not positive without some groups of blocks; no error is given.")
    if not (np.diag(noise[-1]) > 0).all():
        bad = ", ".join(
            f"{name} {own:.3g}" for name, own in zip(labels, np.diag(noise[-1]), strict=True) if not own > 0
        )
        raise DeepwasError(
            f"the intercept, the noise of a trait's z-scores, is not positive: {bad}. N is wrong, or the signal is "
            "too strong and sparse for LD scores: estimate it from whitened LD blocks (noise_correlation_from_blocks)."
        )
    matrix, projected = positive_definite(noise[-1])
    if projected:
        shift = float(np.abs(matrix - noise[-1]).max())
        notes.append(f"the noise correlations were not positive definite and were mended; largest change {shift:.3g}.")
        warnings.warn(notes[-1], DataWarning, stacklevel=3)
    return NoiseCorrelation(
        names=labels,
        matrix=matrix,
        intercepts=Estimate(noise[-1], noise[:-1]),
        genetic_covariance=Estimate(genetic[-1], genetic[:-1]),
        genetic_correlation=Estimate(correlation[-1], correlation[:-1]),
        projected=projected,
        notes=tuple(notes),
        tally=tally,
    )


def jackknife_groups(blocks: ArrayLike, M: int, groups: int) -> tuple[NDArray[np.int64], int]:
    """(M,) group of each variant and the number of groups: runs of neighbouring blocks, of nearly as many each."""
    given = np.asarray(blocks)
    if given.shape != (M,) or not np.issubdtype(given.dtype, np.integer):
        raise InputError(
            f"blocks must hold one whole number for each of {M:,} variants; it is {given.dtype} {given.shape}."
        )
    if groups < 3:
        raise InputError(f"groups is {groups}; a jackknife needs at least 3.")
    numbers, own = np.unique(given, return_inverse=True)
    if len(numbers) < 3:
        raise InputError(f"a block jackknife needs at least 3 LD blocks; there are {len(numbers)}.")
    count = min(groups, len(numbers))
    return own * count // len(numbers), count


def checked_names(names: Sequence[str] | None, K: int) -> tuple[str, ...]:
    """K distinct names of traits."""
    labels = tuple(f"trait{k + 1}" for k in range(K)) if names is None else tuple(names)
    if len(labels) != K or len(set(labels)) != K:
        raise InputError(f"{K} traits need {K} different names; given: {', '.join(labels)}.")
    return labels


def _pair(
    zj: Floats,
    zk: Floats,
    x: Floats,
    xj: Floats,
    xk: Floats,
    over: Floats,
    group: NDArray[np.int64],
    count: int,
    own_j: Floats,
    own_k: Floats,
    same: bool,
) -> tuple[Floats, Floats, int]:
    """Intercept and slope, each (count + 1,), without each group, then of all; and how many variants are outliers."""
    y = zj * zk
    slope = (y.mean() - float(same)) / x.mean()
    fitted = np.array([float(same), max(slope, 0.0) if same else slope])
    for _ in range(_WEIGHT_PASSES):
        mean = fitted[0] + fitted[1] * x
        aj, ak = (
            np.maximum(a + max(g, 0) * own_x, _LEAST_MEAN)
            for (a, g), own_x in (((fitted, x), (fitted, x)) if same else ((own_j, xj), (own_k, xk)))
        )
        w = 1 / (over * (aj * ak + np.minimum(mean**2, aj * ak)))
        trusted = np.maximum(zj**2 / aj, zk**2 / ak) < _OUTLIER
        sw, swx, swxx, swy, swxy = group_sums(w[trusted], x[trusted], y[trusted], group[trusted], count)
        slopes = (sw * swxy - swx * swy) / (sw * swxx - swx**2)
        intercepts = (swy - slopes * swx) / sw
        fitted = np.array([intercepts[-1], max(slopes[-1], 0.0) if same else slopes[-1]])
    return intercepts, slopes, int((~trusted).sum())


def group_sums(w: Floats, x: Floats, y: Floats, group: NDArray[np.int64], count: int) -> Floats:
    """(5, count + 1): sums of w, wx, wx^2, wy, wxy without each group, then of all."""
    wx = w * x
    by_group = np.array([np.bincount(group, v, count) for v in (w, wx, wx * x, w * y, wx * y)])
    total = by_group.sum(axis=1, keepdims=True)
    return np.concatenate([total - by_group, total], axis=1)


def positive_definite(C: Floats, least: float = _LEAST_EIGENVALUE) -> tuple[Floats, bool]:
    """The covariance (K, K), positive diagonal, whose correlation has no eigenvalue under `least`; if it was mended."""
    scale = np.sqrt(np.diag(C))
    values, vectors = np.linalg.eigh(C / np.outer(scale, scale))
    if values[0] >= least:
        return C.copy(), False
    mended = (vectors * np.maximum(values, 2 * least)) @ vectors.T
    unit = np.sqrt(np.diag(mended))
    return mended / np.outer(unit, unit) * np.outer(scale, scale), True


def _checked_z(z: ArrayLike) -> Floats:
    values = np.asarray(z, np.float64)
    if values.ndim != 2 or values.shape[1] < 1 or not len(values):
        raise InputError(f"z must be (variants, traits); it has shape {values.shape}.")
    if np.isinf(values).any():
        i, k = np.argwhere(np.isinf(values))[0]
        raise InputError(f"z is infinite at variant {i}, trait {k}.")
    return values


def _checked_sizes(sample_size: ArrayLike, z: Floats, labels: tuple[str, ...]) -> Floats:
    given = np.asarray(sample_size, np.float64)
    if given.shape not in ((z.shape[1],), z.shape):
        raise InputError(f"sample_size has shape {given.shape}; z {z.shape} asks for {z.shape[1:]} or {z.shape}.")
    sizes = np.broadcast_to(given, z.shape)
    for k, name in enumerate(labels):
        some = np.isfinite(z[:, k])
        if not (sizes[some, k] > 0).all() or not np.isfinite(sizes[some, k]).all():
            raise InputError(f"{name}: N is missing or <= 0 for variants that have a z-score.")
        if not some.any() or np.ptp(z[some, k]) == 0:
            raise InputError(f"{name}: all z-scores are missing, or the same. Leave the trait out.")
    return sizes


def _checked_scores(scores: ArrayLike, M: int, what: str) -> Floats:
    given = np.asarray(scores, np.float64)
    if given.shape != (M,) or not np.isfinite(given).all():
        raise InputError(f"{what} must hold one finite number for each of {M:,} variants; it has shape {given.shape}.")
    return given
