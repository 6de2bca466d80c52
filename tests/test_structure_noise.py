"""Noise and genetic correlation: LD score regression and whitened blocks against slow formulas and simulated truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deepwas.errors import DataWarning, DeepwasError, InputError
from deepwas.pleiotropy.genome import likely_noise, refuse_copies
from deepwas.pleiotropy.structure import noise_correlation, noise_correlation_from_blocks

C = np.array([[1.0, 0.4, 0.0], [0.4, 1.1, -0.2], [0.0, -0.2, 0.95]])
BLOCKS, SIZE = 300, 40
M = BLOCKS * SIZE
H2, RG = 0.3, 0.6


def simulate(seed, *, n=1e4, causal=0.2):
    """z (M, 3), LD scores, block numbers, whitened blocks, eigenvalues, realised genetic covariance."""
    rng = np.random.default_rng(seed)
    S = np.eye(3)
    S[0, 1] = S[1, 0] = RG
    B = (rng.random((M, 1)) < causal) * rng.normal(size=(M, 3)) @ np.linalg.cholesky(S).T
    B *= np.sqrt(H2 / (B**2).sum(axis=0))
    z, scores = np.empty((M, 3)), np.empty(M)
    whitened, eigenvalues = [], []
    decay = rng.choice([0.3, 0.7, 0.95], BLOCKS)
    for rho in np.unique(decay):
        R = rho ** np.abs(np.subtract.outer(np.arange(SIZE), np.arange(SIZE)))
        lower = np.linalg.cholesky(R)
        for b in np.flatnonzero(decay == rho):
            rows = slice(b * SIZE, (b + 1) * SIZE)
            noise = lower @ rng.normal(size=(SIZE, 3)) @ np.linalg.cholesky(C).T
            z[rows] = np.sqrt(n) * R @ B[rows] + noise
            scores[rows] = (R**2).sum(axis=0)
    spectra = {}
    for b in range(BLOCKS):
        if decay[b] not in spectra:
            R = decay[b] ** np.abs(np.subtract.outer(np.arange(SIZE), np.arange(SIZE)))
            spectra[decay[b]] = np.linalg.eigh(R)
        lam, U = spectra[decay[b]]
        whitened.append(U.T @ z[b * SIZE : (b + 1) * SIZE] / np.sqrt(lam)[:, None])
        eigenvalues.append(lam)
    return z, scores, np.repeat(np.arange(BLOCKS), SIZE), whitened, eigenvalues, B.T @ B


def from_scores(data, n=1e4, **options):
    return noise_correlation(data[0], np.full(3, n), data[1], data[2], n_variants=M, **options)


def from_blocks(data, n=1e4, **options):
    return noise_correlation_from_blocks(data[3], data[4], np.full(3, n), n_variants=M, **options)


@pytest.mark.parametrize(("estimate", "n"), [(from_scores, 1e4), (from_blocks, 1e4), (from_blocks, 2e5)])
def test_noise_and_genetic_covariance_are_found_within_their_errors(estimate, n):
    upper = np.triu_indices(3)
    noise, genetic, rg = [], [], []
    for seed in range(5):
        data = simulate(seed, n=n)
        found = estimate(data, n)
        truth = data[5]
        noise.append(((found.intercepts.value - C) / found.standard_error)[upper])
        genetic.append(((found.genetic_covariance.value - truth) / found.genetic_covariance.standard_error)[upper])
        scale = np.sqrt(np.diag(truth))
        error = found.genetic_correlation.value - truth / np.outer(scale, scale)
        rg.append(error[0, 1] / found.genetic_correlation.standard_error[0, 1])
        assert not found.projected
        assert (found.matrix == found.intercepts.value).all()
    for scores in (np.array(noise), np.array(genetic)):
        # The traits of a data set are correlated: 5 independent sets of 6.
        assert (np.abs(scores) < 4).all()
        assert np.abs(scores.mean(axis=0)).max() < 3.5 / np.sqrt(5)
    assert np.mean(np.square(noise)) > 0.3
    assert np.abs(rg).max() < 3.5


def test_whitened_blocks_are_the_more_precise():
    data = simulate(0)
    assert (from_blocks(data).standard_error < 0.6 * from_scores(data).standard_error).all()


def test_the_estimate_from_blocks_maximises_the_likelihood():
    data = simulate(1)
    y, lam = np.concatenate(data[3])[:, :2], np.concatenate(data[4])
    # The noise comes from the lower directions of quiet blocks; given it, all directions enter the genetic part.
    found = noise_correlation_from_blocks([b[:, :2] for b in data[3]], data[4], np.full(2, 1e4), n_variants=M)

    def log_likelihood(noise, genetic):
        V = noise + lam[:, None, None] * genetic * 1e4 / M
        quadratic = np.einsum("ia,iab,ib->i", y, np.linalg.inv(V), y)
        return -0.5 * (np.linalg.slogdet(V)[1] + quadratic).sum()

    genetic, best = found.genetic_covariance.value, log_likelihood(found.matrix, found.genetic_covariance.value)
    for i, j in ((0, 0), (0, 1), (1, 1)):
        step = np.zeros((2, 2))
        step[i, j] = step[j, i] = found.genetic_covariance.standard_error[i, j]
        assert log_likelihood(found.matrix, genetic + step) < best
        assert log_likelihood(found.matrix, genetic - step) < best


def test_the_jackknife_is_the_estimate_without_each_group():
    """The weights are held, so the estimate of all but a group, made anew, differs by less than a tenth of an error."""
    data = simulate(2)
    groups = 6
    for estimate in (from_scores, from_blocks):
        found = estimate(data, groups=groups)
        for g in (0, 5):
            keep = np.flatnonzero(np.arange(BLOCKS) * groups // BLOCKS != g)
            rows = (keep[:, None] * SIZE + np.arange(SIZE)).ravel()
            less = (*(x[rows] for x in data[:3]), *([x[b] for b in keep] for x in data[3:5]), None)
            off = np.abs(estimate(less).intercepts.value - found.intercepts.left_out[g])
            assert (off < 0.15 * found.standard_error).all()


def test_missing_z_are_left_out_of_their_pairs_alone():
    data = simulate(3)
    z = data[0].copy()
    z[:2000, 2] = np.nan
    found = from_scores((z, *data[1:]))
    whole = from_scores(data)
    np.testing.assert_array_equal(found.intercepts.value[:2, :2], whole.intercepts.value[:2, :2])
    part = noise_correlation(z[2000:], np.full(3, 1e4), data[1][2000:], data[2][2000:], n_variants=M)
    np.testing.assert_allclose(found.intercepts.value[2], part.intercepts.value[2], rtol=0.02, atol=0.01)
    assert [(row.reason, row.count) for row in found.tally.rows] == [("trait3: no z-score", 2000)]


def test_sample_sizes_may_vary_by_variant():
    data = simulate(4)
    plain = from_scores(data)
    by_variant = noise_correlation(data[0], np.full((M, 3), 1e4), data[1], data[2], n_variants=M)
    np.testing.assert_allclose(by_variant.matrix, plain.matrix, rtol=1e-12)


def test_a_matrix_that_is_not_positive_definite_is_mended_and_it_is_said():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3000, 1)) * np.ones(3) + 1e-3 * rng.normal(size=(3000, 3))
    with pytest.warns(DataWarning, match="not positive definite"):
        found = noise_correlation(
            z, [1e3] * 3, rng.uniform(1, 50, 3000), np.repeat(np.arange(30), 100), n_variants=3000
        )
    assert found.projected
    assert np.linalg.eigvalsh(found.matrix)[0] > 0
    np.testing.assert_allclose(np.diag(found.matrix), np.diag(found.intercepts.value))


def test_bad_input_is_refused():
    z, scores, blocks = np.random.default_rng(0).normal(size=(60, 2)), np.ones(60), np.repeat(np.arange(6), 10)
    good = {"z": z, "sample_size": [10, 10], "ld_scores": scores, "blocks": blocks, "n_variants": 60}
    for change, message in (
        ({"z": z * [1, 0]}, "trait2: all z-scores"),
        ({"z": z[:, 0]}, "must be"),
        ({"sample_size": [10]}, "sample_size has shape"),
        ({"sample_size": [10, -1]}, "trait2: N is missing"),
        ({"ld_scores": scores[1:]}, "ld_scores must hold"),
        ({"blocks": np.repeat([0, 1], 30)}, "at least 3 LD blocks"),
        ({"n_variants": 0}, "n_variants is 0"),
        ({"names": ["a"]}, "2 different names"),
        ({"groups": 2}, "at least 3"),
    ):
        with pytest.raises(InputError, match=message):
            noise_correlation(**(good | change))
    y = [np.random.default_rng(b).normal(size=(10, 2)) for b in range(4)]
    with pytest.raises(InputError, match="block 1"):
        noise_correlation_from_blocks(y, [np.ones(10), np.ones(9), *[np.ones(10)] * 2], [10, 10], n_variants=40)
    with pytest.raises(DeepwasError, match="not positive"):
        noise_correlation(z * scores_like(scores), [10, 10], 1 + 50 * scores_like(scores)[:, 0], blocks, n_variants=60)


def scores_like(x):
    """(60, 1), rising within each block: z that grow faster than their LD scores have a negative intercept."""
    return (np.arange(len(x)) % 10)[:, None] / 3.0


def sparse_blocks(seed, blocks=8, k=40, K=3):
    """Whitened blocks in which one variant each carries all of the signal, on all traits."""
    rng = np.random.default_rng(seed)
    spectra = [np.sort(rng.exponential(size=k))[::-1] * 4 for _ in range(blocks)]
    whitened = []
    for b, lam in enumerate(spectra):
        effect = np.array([18.0, -16.0, 15.0])[:K] * (1 if b % 2 else -1)
        g = np.sqrt(lam) * rng.normal(size=k) / np.sqrt(k)
        whitened.append(np.outer(g, effect) + rng.normal(size=(k, K)))
    return whitened, spectra


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.filterwarnings("ignore::deepwas.errors.DataWarning", "ignore::deepwas.errors.ConvergenceWarning")
def test_few_blocks_with_all_signal_in_few_variants_have_noise_all_the_same(seed):
    """The likelihood may ask for noise that is no covariance; what is used is one, and is drawn to what noise is."""
    whitened, spectra = sparse_blocks(seed)
    found = noise_correlation_from_blocks(whitened, spectra, [1e4] * 3, n_variants=320)
    assert np.linalg.eigvalsh(found.matrix)[0] > 0
    used = likely_noise(found)
    assert np.linalg.eigvalsh(used.matrix)[0] > 0
    assert (np.abs(np.diag(used.matrix) - 1) <= np.abs(np.diag(found.intercepts.value) - 1) + 1e-9).all()
    assert np.diag(used.matrix).min() > 0.6


def test_noise_is_drawn_to_one_by_its_own_error():
    data = simulate(5)
    found = from_blocks(data)
    error, value = found.standard_error, found.intercepts.value
    used = likely_noise(found)
    own = np.eye(3, dtype=bool)
    spread = np.where(own, np.where(value < 1, 0.05, 0.5), 0.3)
    expected = own + (value - own) * spread**2 / (spread**2 + error**2)
    np.testing.assert_allclose(used.matrix, expected, rtol=1e-9)
    # Little is left to draw at this size, and nothing is said.
    assert np.abs(used.matrix - value).max() < error.max()
    assert used.notes == found.notes
    rough = replace(found, intercepts=type(found.intercepts)(value - 0.5 * own, found.intercepts.left_out * 40))
    drawn = likely_noise(rough)
    np.testing.assert_allclose(np.diag(drawn.matrix), 1, atol=0.1)
    assert sum("known badly" in note for note in drawn.notes) == 3


@pytest.mark.filterwarnings("ignore::deepwas.errors.DataWarning", "ignore::deepwas.errors.ConvergenceWarning")
def test_noise_under_what_a_trait_can_have_is_held_and_it_is_said():
    """Whitened z-scores that vanish with the eigenvalue leave a negative intercept."""
    rng = np.random.default_rng(0)
    spectra = [np.sort(rng.exponential(size=40))[::-1] for _ in range(40)]
    whitened = [np.stack([3 * lam, np.ones(40)], axis=1) * rng.normal(size=(40, 2)) for lam in spectra]
    found = noise_correlation_from_blocks(whitened, spectra, [1e4] * 2, n_variants=1600, names=("a", "b"))
    assert found.matrix[0, 0] == pytest.approx(0.05)
    assert 0.7 < found.matrix[1, 1] < 1.3
    assert [note for note in found.notes if note.startswith("a: the noise of its z-scores is estimated as -0.")]
    assert not [note for note in found.notes if note.startswith("b: the noise")]
    used = likely_noise(found).matrix
    assert np.linalg.eigvalsh(used)[0] > 0
    assert used[0, 0] > 0.05


def test_traits_are_one_where_the_error_of_their_correlation_shows_it():
    found = from_blocks(simulate(6), names=("a", "b", "c"))
    refuse_copies(found)

    def with_correlation(part, value, error):
        """A correlation of a and b, known with a standard error."""
        old = getattr(found, part)
        matrix = old.value.copy()
        matrix[0, 1] = matrix[1, 0] = value * np.sqrt(matrix[0, 0] * matrix[1, 1])
        left_out = old.left_out - old.left_out.mean(axis=0)
        left_out *= error * np.sqrt(matrix[0, 0] * matrix[1, 1]) / old.standard_error[0, 1]
        return replace(found, **{part: type(old)(matrix, matrix + left_out)})

    with pytest.raises(InputError, match=r"a and b have the same noise \(-0\.995 ± 0\.010\): keep one"):
        refuse_copies(with_correlation("intercepts", -0.995, 0.01))
    refuse_copies(with_correlation("intercepts", 1.2, 0.3))  # mended to 1 nearly, but it may be anything
    found = replace(found, genetic_correlation=replace(found.genetic_correlation, value=np.eye(3)))
    with pytest.raises(InputError, match=r"a and b are the same trait genetically: .* 0\.990 ± 0\.015"):
        refuse_copies(with_correlation("genetic_correlation", 0.99, 0.015))
    refuse_copies(with_correlation("genetic_correlation", 0.99, 0.03))
