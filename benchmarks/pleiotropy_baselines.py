"""What others would call pleiotropic: HOPS, the product test, two traits at 5e-8, a mixture of z-scores without LD."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from benchmarks.pleiotropy_metrics import calls_by_local_fdr, calls_by_p
from deepwas.errors import InputError
from deepwas.pleiotropy import hops_scores

__all__ = ["Calls", "all_baselines", "hops", "mixture", "null_correlation", "product_test", "two_significant"]

Array = NDArray[np.float64]

GENOME_WIDE = 5e-8
_NULL_P = 1e-4
_LARGEST = 1000.0
_FIT_ROWS = 10_000


@dataclass(frozen=True, eq=False)
class Calls:
    """What one method says of M variants.

    score: higher is more pleiotropic.  called: at nominal FDR 5%, or at the method's own cut.
    p: of the test for pleiotropy, or None.  probability: of two traits or more, or None.
    """

    name: str
    score: Array
    called: NDArray[np.bool_]
    p: Array | None = None
    probability: Array | None = None


def all_baselines(
    z: Array, ld_scores: Array, *, permutations: int = 25, level: float = 0.05, seed: int = 0
) -> list[Calls]:
    """HOPS in its four modes (Pm and Pn of each), product test, two traits at 5e-8, and the mixture if K <= 8."""
    calls = hops(z, ld_scores, permutations=permutations, level=level, seed=seed)
    calls += [product_test(z, level=level), two_significant(z)]
    return [*calls, mixture(z, level=level, seed=seed)] if z.shape[1] <= 8 else calls


def hops(z: Array, ld_scores: Array, *, permutations: int = 25, level: float = 0.05, seed: int = 0) -> list[Calls]:
    """Jordan, Verbanck & Do 2019: plain, corrected for LD, for polygenicity, for both; BH on each score's p."""
    calls = []
    for ld, polygenicity in itertools.product([False, True], repeat=2):
        found = hops_scores(
            z, ld_scores=ld_scores if ld else None, permutations=permutations if polygenicity else 0, seed=seed
        )
        mode = ", ".join(["LD"] * ld + ["polygenicity"] * polygenicity) or "plain"
        for name, score, p in (("Pm", found.Pm, found.Pm_p), ("Pn", found.Pn, found.Pn_p)):
            calls.append(Calls(f"HOPS {name} ({mode})", score, calls_by_p(p, level), p))
    return calls


def null_correlation(z: Array) -> tuple[Array, Array]:
    """Correlation (K, K) and variances (K,) of z over variants with p > 1e-4 in every trait."""
    null = (np.abs(z) < stats.norm.isf(_NULL_P / 2)).all(axis=1)
    if null.sum() <= z.shape[1]:
        raise InputError(f"{null.sum()} variants have p > 1e-4 in every trait: too few to estimate the null.")
    return np.corrcoef(z[null], rowvar=False), z[null].var(axis=0, ddof=1)


def product_test(z: Array, *, level: float = 0.05) -> Calls:
    """Ray & Chatterjee 2020 (PLACO) for every pair of traits; the smallest p times the number of pairs.

    Of decorrelated z_1, z_2 with t = |z_1 z_2|:  p = F(t / s_1) + F(t / s_2) - F(t),  F the two-sided tail of a product
    of two standard normals, s_k^2 the variance of z_k. Correlation and variances are from variants with p > 1e-4.
    The null is composite: neither trait, or one of them.
    """
    correlation, variance = null_correlation(z)
    pairs = list(itertools.combinations(range(z.shape[1]), 2))
    least = np.zeros(len(z))
    for one, two in pairs:
        r = correlation[one, two]
        plus, minus = (1 + r) ** -0.5, (1 - r) ** -0.5
        a, b = 0.5 * (plus + minus), 0.5 * (plus - minus)
        t = np.abs((a * z[:, one] + b * z[:, two]) * (b * z[:, one] + a * z[:, two]))
        either = np.logaddexp(*(log_product_tail(t / np.sqrt(variance[k])) for k in (one, two)))
        log_p = either + np.log1p(-np.exp(np.minimum(log_product_tail(t) - either, -1e-12)))
        least = np.minimum(least, log_p)
    p = np.minimum(1.0, len(pairs) * np.exp(least))
    return Calls("product test, pairs", -least, calls_by_p(p, level), p)


def log_product_tail(t: Array) -> Array:
    """log P(|X Y| > t), X and Y standard normal: the integral of (2 / pi) exp(-t cosh u) / cosh u over u > 0."""
    root, value = _tail_table()
    far = 0.5 * np.log(2 / (np.pi * np.maximum(t, 1.0)))
    return -t + np.where(t < _LARGEST, np.interp(np.sqrt(t), root, value), far)


@lru_cache(maxsize=1)
def _tail_table() -> tuple[Array, Array]:
    """log F(t) + t on a grid of sqrt(t)."""
    root = np.linspace(0, np.sqrt(_LARGEST), 4001)
    u, step = np.linspace(0, 40, 1601, retstep=True)
    weight = np.full(len(u), step)
    weight[0] *= 0.5
    value = np.empty(len(root))
    for row, t in enumerate(root**2):
        value[row] = np.log(2 / np.pi * (weight * np.exp(-t * (np.cosh(u) - 1)) / np.cosh(u)).sum())
    return root, value


def two_significant(z: Array, *, level: float = GENOME_WIDE) -> Calls:
    """p < 5e-8 in two traits or more; the score is the second largest |z|."""
    second = np.sort(np.abs(z), axis=1)[:, -2]
    p = 2 * stats.norm.sf(second)
    return Calls(f">= 2 traits at {level:g}", second, p < level)


def mixture(z: Array, *, level: float = 0.05, iterations: int = 100, tolerance: float = 1e-4, seed: int = 0) -> Calls:
    """Mixture of normals over the 2^K configurations of traits, LD left out, fitted by EM.

    z_j ~ sum over delta of w_delta N(0, C + diag(delta v)),  C from `null_correlation`, w and v free.
    The weights and variances are fitted on 10,000 variants at random, where there are more. K <= 8.
    """
    M, K = z.shape
    if K > 8:
        raise InputError(f"the mixture has 2^K components; K is {K}, at most 8.")
    C, _ = null_correlation(z)
    configuration = np.array(list(itertools.product([0.0, 1.0], repeat=K)))
    rng = np.random.default_rng([seed, 41])
    rows = z if M <= _FIT_ROWS else z[rng.choice(M, size=_FIT_ROWS, replace=False)]
    variance = np.maximum(np.nanmean(np.where(np.abs(rows) > 2, rows**2, np.nan), axis=0), 4.0)
    weight = np.prod(np.where(configuration > 0, 0.05, 0.95), axis=1)
    before = -np.inf
    for _ in range(iterations):
        log_joint, squares = _components(rows, C, configuration * variance[None, :])
        log_joint += np.log(weight)[None, :]
        total = special.logsumexp(log_joint, axis=1, keepdims=True)
        responsible = np.exp(log_joint - total)
        on = responsible @ configuration
        variance = np.maximum(np.einsum("jd,djk->k", responsible, squares) / np.maximum(on.sum(axis=0), 1e-12), 1e-6)
        weight = np.maximum(responsible.mean(axis=0), 1e-300)
        if total.mean() - before < tolerance:
            break
        before = float(total.mean())
    log_joint, _ = _components(z, C, configuration * variance[None, :], moments=False)
    probability = special.softmax(log_joint + np.log(weight)[None, :], axis=1) @ (configuration.sum(axis=1) >= 2)
    return Calls("mixture without LD", probability, calls_by_local_fdr(1 - probability, level), probability=probability)


def _components(z: Array, C: Array, variances: Array, *, moments: bool = True) -> tuple[Array, Array]:
    """log N(z_j; 0, C + diag v_d), (M, components), and E[a_jk^2 | z_j, d], (components, M, K), of the effects a."""
    log_density = np.empty((len(z), len(variances)))
    squares = np.empty((len(variances) if moments else 0, *z.shape))
    for row, v in enumerate(variances):
        factor = np.linalg.cholesky(C + np.diag(v))
        whitener = np.linalg.inv(factor)
        y = z @ whitener.T
        log_density[:, row] = -0.5 * (y**2).sum(axis=1) - np.log(np.diag(factor)).sum()
        if moments:
            gain = whitener.T @ whitener * v[None, :]
            squares[row] = (z @ gain) ** 2 + (v - v * np.diag(gain))[None, :]
    return log_density, squares
