"""HOPS scores against a slow version by other algebra, closed forms, and what theory says of their p-values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import linalg, stats

import deepwas.pleiotropy
from deepwas.errors import InputError
from deepwas.pleiotropy import hops_scores

NAMES = ("height", "bmi", "lipids", "asthma")


def noise(M: int, C: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(M, len(C))) @ np.linalg.cholesky(C).T


def correlated(K: int = 4) -> np.ndarray:
    return 0.5 ** np.abs(np.subtract.outer(np.arange(K), np.arange(K)))


def slow(z, *, ld=None, pruned=None, reference=False):
    """Steps 1 to 5 in loops; the root by Schur decomposition, the line by the normal equations."""
    M, K = z.shape
    rows = [i for i in range(M) if not any(math.isnan(v) for v in z[i]) and (pruned is None or pruned[i])]
    means = [sum(z[i, k] for i in rows) / len(rows) for k in range(K)]
    covariance = [[sum((z[i, k] - means[k]) * (z[i, j] - means[j]) for i in rows) for j in range(K)] for k in range(K)]
    C = np.array([[covariance[k][j] / math.sqrt(covariance[k][k] * covariance[j][j]) for j in range(K)]
                  for k in range(K)])  # fmt: skip
    root = linalg.sqrtm(linalg.inv(C))
    Pm, Pn = np.empty(M), np.empty(M)
    for i in range(M):
        star = [sum(root[k, j] * z[i, j] for j in range(K)) for k in range(K)]
        Pn[i] = sum(1 for v in star if abs(v) > 2)
        Pm[i] = math.sqrt(sum(v * v for v in star))
    if ld is not None:
        for score in (Pm, Pn):
            used = [i for i in range(M) if not math.isnan(score[i]) and not math.isnan(ld[i])]
            design = np.array([[1.0, ld[i]] for i in used])
            slope = np.linalg.solve(design.T @ design, design.T @ score[used])[1]
            for i in range(M):
                score[i] = score[i] if math.isnan(score[i]) else max(0.0, score[i] - slope * ld[i])
    p = 0.045 if reference else math.erfc(math.sqrt(2))
    pmf = [math.comb(K, x) * p**x * (1 - p) ** (K - x) for x in range(K + 1)]
    Pn_p = [sum(pmf[x] for x in range(K + 1) if (x > math.floor(v) if reference else x >= math.ceil(v))) for v in Pn]
    return C, Pm, Pn, stats.gamma.sf(Pm**2, K / 2, scale=2), np.array(Pn_p)


@pytest.mark.parametrize(("use_ld", "reference"), list(itertools.product([False, True], [False, True])))
def test_scores_equal_the_slow_version(use_ld, reference):
    z = 1.5 * noise(300, correlated(), 0) + 0.3
    z[7, 2] = z[40, 0] = np.nan
    rng = np.random.default_rng(1)
    ld, pruned = rng.gamma(4, 30, size=300) if use_ld else None, rng.random(300) < 0.5
    found = hops_scores(z, ld_scores=ld, pruned=pruned, reference_tail=reference)
    C, Pm, Pn, Pm_p, Pn_p = slow(z, ld=ld, pruned=pruned, reference=reference)
    np.testing.assert_allclose(found.C, C, atol=1e-9)
    for mine, theirs in ((found.Pm, 25 * Pm), (found.Pn, 25 * Pn), (found.Pm_p, Pm_p), (found.Pn_p, Pn_p)):
        np.testing.assert_allclose(mine, theirs, atol=1e-6, rtol=1e-6)
    assert np.isnan(found.Pm[[7, 40]]).all()
    assert found.missing == 2
    assert found.modes == ("ld",) * use_ld + ("reference tail",) * reference


def test_uncorrelated_traits_are_scored_as_they_are():
    """Orthogonal signs: C = I exactly, so Z* = Z; only the reference tail calls no trait significant."""
    z = np.array(list(itertools.product([-3.0, 3.0], repeat=3)))
    found = hops_scores(z)
    np.testing.assert_allclose(found.C, np.eye(3), atol=1e-15)
    np.testing.assert_allclose(found.Pm, 100 * math.sqrt(27) / 3)
    np.testing.assert_allclose(found.Pn, 100)
    np.testing.assert_allclose(found.Pn_p, math.erfc(math.sqrt(2)) ** 3)
    assert (hops_scores(z, reference_tail=True).Pn_p == 0).all()
    assert (hops_scores(z, threshold=3.5).Pn == 0).all()
    assert hops_scores(z).names == ("trait 1", "trait 2", "trait 3")


def test_two_traits_have_a_closed_form():
    """C^(-1/2) of two traits: sums scaled by (1 + r)^(-1/2), differences by (1 - r)^(-1/2)."""
    r = 0.6
    z = noise(50, np.array([[1, r], [r, 1]]), 3)
    found = hops_scores(z, correlation=[[1, r], [r, 1]])
    total, difference = (z[:, 0] + z[:, 1]) / math.sqrt(1 + r), (z[:, 0] - z[:, 1]) / math.sqrt(1 - r)
    star = np.stack([total + difference, total - difference], axis=1) / 2
    np.testing.assert_allclose(found.Pm, 50 * np.sqrt((star**2).sum(axis=1)), rtol=1e-12)
    np.testing.assert_array_equal(found.Pn, 50 * (np.abs(star) > 2).sum(axis=1))
    np.testing.assert_allclose(found.Pm**2 / 2500, [v @ np.linalg.solve(found.C, v) for v in z], rtol=1e-12)


def test_whitened_scores_with_missing_values_count_what_is_there():
    star = np.array([[2.5, np.nan, -2.1], [2.5, 0.1, -2.1], [np.nan, np.nan, 0.3], [0.0, 1.0, 2.0]])
    found = hops_scores(star, whitened=True)
    np.testing.assert_allclose(found.Pn, np.array([2, 2, 0, 0]) * 100 / 3)
    np.testing.assert_array_equal(np.isnan(found.Pm), [True, False, True, False])
    np.testing.assert_allclose(found.Pm[1], 100 / 3 * math.sqrt(2.5**2 + 0.1**2 + 2.1**2))
    assert found.C is None


def test_null_p_values_are_those_of_theory():
    found = hops_scores(noise(20_000, correlated(6), 5))
    assert stats.kstest(found.Pm_p, "uniform").pvalue > 0.01
    for count in range(1, 4):
        exact = stats.binom.sf(count - 1, 6, math.erfc(math.sqrt(2)))
        below = np.mean(found.Pn_p <= exact * (1 + 1e-9))
        assert abs(below - exact) < 4 * math.sqrt(exact * (1 - exact) / 20_000), count
        assert np.mean(found.Pn_p < exact * (1 - 1e-9)) < exact
    assert 0.01 < found.Pm_global.p < 0.99
    assert abs(found.Pm_global.superiority - 0.5) < 0.01


def test_the_slope_on_the_ld_score_is_taken_off():
    rng = np.random.default_rng(8)
    ld = rng.gamma(4, 30, size=20_000)
    z = noise(20_000, np.eye(4), 9) * np.sqrt(1 + ld / 200)[:, None]
    plain, corrected = hops_scores(z), hops_scores(z, ld_scores=ld)
    slope = stats.linregress(ld, plain.Pm * 4 / 100).slope
    assert corrected.Pm_slope == pytest.approx(slope)
    assert slope > 0.001
    np.testing.assert_allclose(corrected.Pm, np.maximum(0, plain.Pm - 25 * slope * ld))
    assert abs(np.corrcoef(ld, corrected.Pm)[0, 1]) < 0.02 < np.corrcoef(ld, plain.Pm)[0, 1]
    ld[:5] = np.nan
    lacking = hops_scores(z, ld_scores=ld)
    assert np.isnan(lacking.Pm[:5]).all()
    assert np.isnan(lacking.Pn_p[:5]).all()
    assert lacking.missing == 5


@pytest.mark.parametrize("use_ld", [False, True])
def test_permutations_give_the_share_of_null_scores(use_ld):
    """Against the same shuffles, scored in loops by `slow`, and quantiles by scipy."""
    z = noise(60, np.eye(3), 2) * np.array([1.0, 1.0, 2.5])
    z[11] += 25.0
    ld = np.linspace(5, 90, 60) if use_ld else None
    found = hops_scores(z, correlation=np.eye(3), ld_scores=ld, permutations=3, seed=4)
    rng = np.random.default_rng([4, 11])
    null_Pm, null_Pn = [], []
    for _ in range(3):
        shuffled = np.stack([rng.permutation(column) for column in z.T], axis=1)
        Pm = np.array([math.sqrt(sum(v * v for v in row)) for row in shuffled])
        Pn = np.array([float(sum(abs(v) > 2 for v in row)) for row in shuffled])
        for score, null in ((Pm, null_Pm), (Pn, null_Pn)):
            slope = 0.0 if ld is None else stats.linregress(ld, score).slope
            null += [max(0.0, v - slope * x) for v, x in zip(score, np.zeros(60) if ld is None else ld, strict=True)]
    raw = hops_scores(z, correlation=np.eye(3), ld_scores=ld)
    for score, null, p in ((raw.Pm, null_Pm, found.Pm_p), (raw.Pn, null_Pn, found.Pn_p)):
        expected = [(1 + sum(n >= s * 0.03 * (1 - 1e-12) for n in null)) / 181 for s in score]
        np.testing.assert_allclose(p, expected, rtol=1e-12)
    assert found.Pm_p[11] == pytest.approx(1 / 181)
    assert found.Pm_p.min() >= 1 / 181
    np.testing.assert_allclose(found.Pm, 100 / 3 * np.sqrt(stats.chi2.isf(found.Pm_p, 3)))
    quantile = np.maximum(0, stats.binom.isf(found.Pn_p, 3, math.erfc(math.sqrt(2))))  # scipy says -1 at p = 1
    np.testing.assert_allclose(found.Pn, 100 / 3 * quantile)
    assert found.pool == (180, 180)
    assert found.modes == ("ld",) * use_ld + ("polygenicity",)
    again, other = (hops_scores(z, correlation=np.eye(3), ld_scores=ld, permutations=3, seed=s) for s in (4, 5))
    np.testing.assert_array_equal(found.Pm_p, again.Pm_p)
    assert (found.Pm_p != other.Pm_p).any()


def test_permutation_p_values_are_uniform_where_polygenicity_breaks_the_theory():
    """Heavy tails in every trait, independent between traits: theory rejects too often, permutation does not."""
    rng = np.random.default_rng(6)
    z = rng.normal(size=(8_000, 4)) * np.where(rng.random((8_000, 4)) < 0.1, 6.0, 1.0)
    theory, empirical = hops_scores(z), hops_scores(z, permutations=5)
    assert np.mean(theory.Pm_p < 0.01) > 0.1
    assert stats.kstest(empirical.Pm_p, "uniform").pvalue > 0.01
    assert abs(empirical.Pm_global.superiority - 0.5) < 0.02
    assert theory.Pn_global.superiority > 0.5


@pytest.mark.parametrize("permutations", [0, 2])
def test_the_global_test_is_scipys_rank_sum_test(permutations):
    z = noise(400, correlated(), 12) * 1.15
    z[5, 1] = np.nan
    found = hops_scores(z, permutations=permutations, seed=1)
    raw = hops_scores(z)
    if permutations:
        star = np.full_like(z, np.nan)
        kept = ~np.isnan(z).any(axis=1)
        star[kept] = z[kept] @ linalg.inv(linalg.sqrtm(raw.C))
        rng = np.random.default_rng([1, 11])
        shuffles = [np.stack([rng.permutation(column) for column in star.T], axis=1) for _ in range(2)]
        null = np.concatenate([np.nansum(np.abs(s) > 2, axis=1) for s in shuffles])
    else:
        null = stats.binom.ppf((np.arange(400) + 0.5) / 400, 4, math.erfc(math.sqrt(2)))
    expected = stats.mannwhitneyu(raw.Pn * 0.04, null, alternative="greater", method="asymptotic")
    assert found.Pn_global.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.Pn_global.superiority == pytest.approx(expected.statistic / (400 * len(null)))
    assert found.Pn_global.z == pytest.approx(stats.norm.isf(expected.pvalue))


def test_wrong_input_is_refused_with_the_traits_named():
    good = noise(100, np.eye(4), 0)

    def refused(pattern, z=good, **options):
        with pytest.raises(InputError, match=pattern):
            hops_scores(z, **({"names": NAMES} if np.shape(z)[1:] == (4,) else {}) | options)

    near = good.copy()
    near[:, 2] = 0.95 * near[:, 0] + 0.3 * near[:, 2]
    refused(r"1 pair of traits .* height and lipids \(0\.\d{3}\)", near)
    near[:, 3] = -0.95 * near[:, 1] + 0.3 * near[:, 3]
    refused(r"2 pairs of traits .* height and lipids .* bmi and asthma \(-0\.\d{3}\)", near)
    copied = good.copy()
    copied[:, 3] = copied[:, 1]
    refused("asthma has the z-scores of bmi", copied)
    refused("asthma has the z-scores of bmi", copied, correlation=np.eye(4))
    copied[:, 3] *= -2
    refused("the same trait is given twice: bmi and asthma", copied)
    linear = good.copy()
    linear[:, 3] = linear[:, 0] + linear[:, 1] + linear[:, 2]
    refused("depend on each other linearly: height, bmi, lipids, asthma", linear)
    constant = good.copy()
    constant[:, 1] = 0.5
    refused("bmi: every z-score is 0.5", constant)
    constant[60:, 1] = 0.1
    refused("bmi: every z-score is 0.5 in the 60 variants", constant, pruned=np.arange(100) < 60)
    refused("two traits or more; z has 1", good[:, :1])
    refused(r"shape \(variants, traits\)", good[:, 0])
    refused("4 traits, and 2 names", names=("height", "bmi"))
    refused("two traits are named 'height'", names=("height", "height", "bmi", "lipids"))
    infinite = good.copy()
    infinite[3, 2] = np.inf
    refused("lipids: the z-score of row 4 is infinite", infinite)
    empty = good.copy()
    empty[:, 1] = np.nan
    refused("none of the 100 variants has a z-score for each", empty)
    refused("more than 4 variants without a missing z-score; there are 3", pruned=np.arange(100) < 3)
    refused("pruned needs 100 values True or False", pruned=np.ones(100))
    refused("not both", pruned=np.ones(100, bool), correlation=np.eye(4))
    refused(r"correlation needs the shape \(4, 4\)", correlation=np.eye(3))
    refused("ones on its diagonal", correlation=2 * np.eye(4))
    refused("leave both out", whitened=True, correlation=np.eye(4))
    refused("permutations is -1", permutations=-1)
    refused("threshold is 0", threshold=0)
    refused("threshold 2 alone", threshold=3, reference_tail=True)
    refused("one value for each of 100", ld_scores=np.ones(99))
    refused("no spread", ld_scores=np.ones(100))
    refused("row 2 is infinite", ld_scores=np.r_[1.0, np.inf, np.arange(98)])
    holes = np.full((100, 4), np.nan)
    holes[0] = good[0]
    holes[1:5] = np.where(np.eye(4) > 0, good[1:5], np.nan)
    refused("no permuted variant has all of them", holes, whitened=True, permutations=1, seed=0)


def test_names_of_the_package_come_on_first_use():
    assert set(dir(deepwas.pleiotropy)) == set(deepwas.pleiotropy.__all__)
    for name in deepwas.pleiotropy.__all__:
        assert callable(getattr(deepwas.pleiotropy, name))
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = deepwas.pleiotropy.no_such_name
