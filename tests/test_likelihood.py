"""The likelihood of one block: exact against SciPy's dense normal density, CG against its own standard error."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepwas import ConvergenceWarning, InputError, LDBlock, log_likelihood, log_likelihood_and_grad
from deepwas.likelihood import Factor, cg_log_density, choose_solver, exact_log_density
from tests import dense

CASES = [
    *((kind, m, subset) for kind in ("ar1", "panel", "duplicates") for m in (2, 50) for subset in (False, True)),
    ("ar1", 300, False),
    ("panel", 300, True),
    ("independent", 50, False),
    ("independent", 1, False),
    pytest.param("panel", 1500, True, marks=pytest.mark.slow),
]


def make(kind: str, m: int, subset: bool = False, seed: int = 0) -> tuple[LDBlock, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    R = dense.ld_matrix(kind, m, rng)
    scored = dense.third(m, rng) if subset else None
    return LDBlock.from_correlation(R, scored), R, rng


def value_of(block: LDBlock, trait: dense.Trait, **options):
    return log_likelihood(
        block, trait.z, trait.f, sample_size=trait.sample_size, noise=trait.noise, effect_mean=trait.mean, **options
    )


@pytest.mark.parametrize(("kind", "m", "subset"), CASES)
def test_cholesky_is_the_dense_normal_density(kind, m, subset):
    block, R, rng = make(kind, m, subset)
    for sample_size in (1e2, 1e4, 1e6):
        for noise in (0.5, 1.0, 2.0):
            trait = dense.simulated_trait(R, rng, scored=block.scored, sample_size=sample_size, noise=noise)
            expected = dense.log_density(block.whitener, trait)
            value = float(value_of(block, trait, solver="cholesky"))
            assert abs(value - expected) < 1e-8 * max(1, abs(expected)), (sample_size, noise)


@pytest.mark.parametrize("subset", [False, True])
def test_effect_mean_moves_the_centre(subset):
    block, R, rng = make("panel", 50, subset)
    trait = dense.simulated_trait(R, rng, scored=block.scored, with_mean=True)
    value = float(value_of(block, trait, solver="cholesky"))
    assert value == pytest.approx(dense.log_density(block.whitener, trait), rel=1e-9)
    assert value > float(value_of(block, trait._replace(mean=-trait.mean), solver="cholesky"))


# CG. A value is half a log-determinant's error away from the exact one, so its standard error is half the reported one.


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("sample_size", [1e2, 1e4, 1e6])
@pytest.mark.parametrize(("kind", "subset"), [("ar1", False), ("panel", True), ("duplicates", False)])
def test_cg_is_within_four_reported_standard_errors_or_says_that_it_is_not(kind, subset, sample_size, noise):
    block, R, rng = make(kind, 60, subset)
    trait = dense.simulated_trait(R, rng, scored=block.scored, sample_size=sample_size, noise=noise)
    exact = float(value_of(block, trait, solver="cholesky"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value, info = value_of(block, trait, solver="cg", key=jax.random.key(1), info=True)
    assert info.converged == (not any(issubclass(w.category, ConvergenceWarning) for w in caught))
    if sample_size <= 1e4:
        assert info.converged
    if info.converged:
        assert info.residual <= 1e-8
        assert abs(float(value) - exact) < 4 * float(info.standard_error) / 2


def probe_estimates(B: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """What each probe says of log|B|, by eigendecomposition: sum log D + e' (log A - A + I) e, A = D^-1/2 B D^-1/2."""
    D = np.diagonal(B)
    values, vectors = np.linalg.eigh(B / np.sqrt(np.outer(D, D)))
    return np.log(D).sum() + (signs @ vectors) ** 2 @ (np.log(values) - values + 1)


@pytest.mark.parametrize("kind", ["ar1", "panel"])
def test_quadrature_and_standard_error_are_those_of_the_dense_matrix_over_many_keys(kind):
    block, R, rng = make(kind, 60)
    trait = dense.simulated_trait(R, rng, mean_c=0.3, noise=0.7)
    B = block.whitener @ dense.covariance(trait) @ block.whitener.T
    y, c = jnp.asarray(block.whiten(trait.z)), jnp.asarray(trait.f * trait.sample_size)
    quadratic = float(y @ np.linalg.solve(B, y))
    exact = -(block.k * np.log(2 * np.pi) + np.linalg.slogdet(B)[1] + quadratic) / 2
    keys = 1000
    signs = jax.random.rademacher(jax.random.key(7), (keys, 16, block.k), float)

    @jax.jit
    @jax.vmap
    def estimate(signs):
        value, found = cg_log_density(y, Factor.of(block.device_factor), c, 0.7, jnp.ones(block.k), signs, 1e-8, 30)
        return value, found.standard_error / 2, found.residual

    values, errors, residuals = (np.asarray(x) for x in estimate(signs))
    assert residuals.max() <= 1e-8

    # Key by key: the value and its standard error are those of the dense formula on the same probes.
    by_probe = -(block.k * np.log(2 * np.pi) + probe_estimates(B, np.asarray(signs)) + quadratic) / 2
    np.testing.assert_allclose(values, by_probe.mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(errors, by_probe.std(axis=1, ddof=1) / 4, rtol=1e-6)

    # Over keys: unbiased, the estimated variance right on average, and errors beyond 4 rare. With 16 probes of a normal
    # distribution the rate would be Student's 0.0012; under strong LD they are skewed (a few chi-squares of 1 degree).
    assert abs(values.mean() - exact) < 4 * values.std(ddof=1) / np.sqrt(keys)
    assert np.mean(errors**2) == pytest.approx(values.var(ddof=1), rel=0.25)
    assert (np.abs(values - exact) > 4 * errors).mean() < 0.03


@pytest.mark.parametrize("kind", ["ar1", "panel", "independent"])
@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_constant_prior_is_solved_exactly_in_one_step(kind, noise):
    block, R, rng = make(kind, 50)
    trait = dense.simulated_trait(R, rng, noise=noise)._replace(f=np.full(50, 0.01))
    value, gradient, d_noise, info = log_likelihood_and_grad(
        block, trait.z, trait.f, sample_size=1e4, noise=noise, solver="cg", with_noise=True, info=True
    )
    assert info.steps == 1
    assert info.converged
    assert float(value) == pytest.approx(dense.log_density(block.whitener, trait), rel=1e-10)
    expected = dense.textbook_gradient(block.whitener, trait)
    np.testing.assert_allclose(gradient, expected[0], rtol=1e-7, atol=1e-7 * np.abs(expected[0]).max())
    assert float(d_noise) == pytest.approx(expected[1], rel=1e-8)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("kind", ["ar1", "panel"])
def test_no_effects_and_no_signal(solver, kind):
    block, _, rng = make(kind, 50)
    z = np.zeros(50)
    f = np.zeros(50)
    value, gradient, info = log_likelihood_and_grad(block, z, f, sample_size=1e4, noise=2.0, solver=solver, info=True)
    assert info.converged
    assert float(value) == pytest.approx(-block.k * np.log(2 * np.pi * 2.0) / 2, rel=1e-12)
    np.testing.assert_allclose(gradient, -0.25 * 1e4 * (block.factor**2).sum(axis=0), rtol=1e-9)
    z = rng.standard_normal(50)
    value, _ = log_likelihood_and_grad(block, z, f, sample_size=1e4, noise=2.0, solver=solver)
    y = block.whiten(z)
    assert float(value) == pytest.approx(-(block.k * np.log(4 * np.pi) + y @ y / 2) / 2, rel=1e-12)


def test_determinant_below_one_keeps_its_sign():
    """With noise 0.5 and weak effects log|B| < 0: a quadrature that loses the sign would be far off."""
    block, R, rng = make("panel", 60)
    trait = dense.simulated_trait(R, rng, noise=0.5, mean_c=1e-3)
    y = block.whiten(trait.z)
    B = block.whitener @ dense.covariance(trait) @ block.whitener.T
    assert np.linalg.slogdet(B)[1] < -0.5 * block.k
    value, info = value_of(block, trait, solver="cg", info=True)
    expected = -(block.k * np.log(2 * np.pi) + np.linalg.slogdet(B)[1] + y @ np.linalg.solve(B, y)) / 2
    assert abs(float(value) - expected) < 4 * float(info.standard_error) / 2
    assert float(info.standard_error) < 1e-3


def test_heavy_tails_and_huge_samples_are_converged_or_said_not_to_be():
    """Strong annotations: log-normal c with sd 4, up to N = 1e7. Nearly all of B is then far from diagonal."""
    block, R, rng = make("ar1", 100)
    told = 0
    for sample_size, max_steps in ((1e5, 20), (1e6, 20), (1e7, 20), (1e7, 300)):
        f = np.exp(4 * rng.standard_normal(100))
        f *= 0.5 / f.sum()
        trait = dense.simulated_trait(R, rng, sample_size=sample_size)._replace(f=f)
        exact = float(value_of(block, trait, solver="cholesky"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            value, info = value_of(block, trait, solver="cg", max_steps=max_steps, info=True)
        assert np.isfinite(float(value))
        assert bool(info.converged) == (len(caught) == 0)
        told += len(caught)
        if info.converged:
            assert abs(float(value) - exact) < 4 * float(info.standard_error) / 2
    assert told >= 1


def test_a_solve_that_stops_early_warns_and_names_the_remedy():
    block, R, rng = make("ar1", 60)
    trait = dense.simulated_trait(R, rng, sample_size=1e5)
    with pytest.warns(
        ConvergenceWarning, match=r"k = 60, m = 60.*after 2 steps.*solver='cholesky', or raise max_steps"
    ):
        _, info = value_of(block, trait, solver="cg", max_steps=2, rank=0, info=True)
    assert not info.converged
    assert info.steps == 2
    with pytest.warns(ConvergenceWarning, match="after 2 steps"):
        log_likelihood_and_grad(block, trait.z, trait.f, sample_size=1e5, solver="cg", max_steps=2, rank=0)


def test_a_traced_solve_warns_when_the_program_runs():
    block, R, rng = make("ar1", 60)
    trait = dense.simulated_trait(R, rng, sample_size=1e5)
    compiled = jax.jit(lambda f: value_of(block, trait._replace(f=f), solver="cg", max_steps=2))

    def run(f):
        compiled(f).block_until_ready()
        jax.effects_barrier()

    for _ in range(2):
        with pytest.warns(ConvergenceWarning, match="after 2 steps"):
            run(trait.f)
    run(np.zeros(60))  # the same program is silent where it converges


def test_cholesky_says_when_the_covariance_is_not_positive_definite(float32):
    block, _, _ = make("panel", 60)
    f = np.where(np.arange(60) < 3, 1.0, 0.0)  # three effects in more directions, and no noise to speak of
    with pytest.warns(ConvergenceWarning, match=r"not positive definite.*float64"):
        value, info = log_likelihood(block, np.ones(60), f, sample_size=1e12, noise=1e-12, solver="cholesky", info=True)
    assert np.isnan(float(value))
    assert not info.converged


# Padding: blocks of one batch share the shape of the largest.


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_padding_adds_exactly_nothing(solver):
    block, R, rng = make("panel", 30, subset=True)
    trait = dense.simulated_trait(R, rng, scored=block.scored, mean_c=0.4)
    k, m, rows, columns = block.k, block.m, 5, 4
    y, G, c = block.whiten(trait.z), block.factor, trait.f * trait.sample_size
    signs = jax.random.rademacher(jax.random.key(0), (8, k + rows), float)

    @jax.jit
    def value_and_gradients(y, factor, c, noise, real, signs):
        def value(y, c, noise):
            if solver == "cholesky":
                return exact_log_density(y, Factor.of(factor), c, noise, real)
            return cg_log_density(y, Factor.of(factor), c, noise, real, signs, 1e-10, 60)[0]

        return jax.value_and_grad(value, argnums=(0, 1, 2))(y, c, noise)

    wide_y, wide_G, real = np.pad(y, (0, rows)), np.pad(G, ((0, rows), (0, columns))), np.pad(np.ones(k), (0, rows))
    wide_c = np.pad(c, (0, columns), constant_values=3.0)
    for noise in (0.5, 1.0, 2.0):
        value, (d_y, d_c, d_noise) = value_and_gradients(y, G, c, noise, np.ones(k), signs[:, :k])
        padded, (e_y, e_c, e_noise) = value_and_gradients(wide_y, wide_G, wide_c, noise, real, signs)
        assert float(padded) == pytest.approx(float(value), rel=1e-14)
        assert float(e_noise) == pytest.approx(float(d_noise), rel=1e-12)
        np.testing.assert_allclose(e_y[:k], d_y, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(e_c[:m], d_c, rtol=1e-11, atol=1e-13)
        np.testing.assert_array_equal(e_y[k:], 0)
        np.testing.assert_array_equal(e_c[m:], 0)


def test_an_empty_block_of_padding_has_density_one():
    zeros, G, c, signs = np.zeros(3), np.zeros((3, 4)), np.ones(4), np.ones((2, 3))
    assert float(jax.jit(exact_log_density)(zeros, Factor.of(G), c, 0.5, zeros)) == 0
    value, found = jax.jit(cg_log_density, static_argnums=(6, 7))(zeros, Factor.of(G), c, 0.5, zeros, signs, 1e-8, 5)
    assert float(value) == 0
    assert int(found.steps) == 0
    assert np.isfinite(float(found.standard_error))


# Transformations.


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_jit_and_vmap_change_nothing(solver):
    block, R, rng = make("panel", 50, subset=True)
    trait = dense.simulated_trait(R, rng, scored=block.scored, mean_c=0.3)
    many = jnp.asarray(rng.exponential(size=(3, 50)) * 1e-4)

    def value(f, noise):
        return log_likelihood(block, trait.z, f, sample_size=1e4, noise=noise, solver=solver)

    one_by_one = [float(value(f, 0.9)) for f in many]
    np.testing.assert_allclose([jax.jit(value)(f, 0.9) for f in many], one_by_one, rtol=1e-10)
    np.testing.assert_allclose(jax.jit(jax.vmap(value, (0, None)))(many, 0.9), one_by_one, rtol=1e-10)


def test_auto_takes_the_cheaper_solver():
    assert choose_solver(50, 2000, 16) == "cholesky"
    assert choose_solver(2000, 2000, 16) == "cg"
    assert choose_solver(300, 300, 16) == "cg"
    assert choose_solver(300, 300, 64) == "cholesky"
    block, R, rng = make("panel", 50)
    value, info = value_of(block, dense.simulated_trait(R, rng), info=True)
    assert info.solver == "cholesky"
    assert info.residual == info.steps == 0
    assert 0 < info.standard_error < 1e-10  # rounding
    assert info.converged
    assert np.isfinite(float(value))


def test_the_default_key_is_fixed_and_another_gives_another_estimate():
    block, R, rng = make("panel", 50)
    trait = dense.simulated_trait(R, rng, mean_c=0.3)
    first, second, other = (
        float(value_of(block, trait, solver="cg", key=key)) for key in (None, None, jax.random.key(5))
    )
    assert first == second != other


def test_float32_agrees_with_the_dense_density(float32):
    block, R, rng = make("panel", 150, subset=True)
    trait = dense.simulated_trait(R, rng, scored=block.scored, mean_c=0.3, noise=0.8)
    assert block.factor.dtype == np.float32
    expected = dense.log_density(block.whitener, trait)
    value = value_of(block, trait, solver="cholesky")
    assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(expected, rel=1e-5)
    value, info = value_of(block, trait, solver="cg", info=True)
    assert value.dtype == jnp.float32
    assert info.converged
    assert abs(float(value) - expected) < 4 * float(info.standard_error) / 2
    _, gradient = log_likelihood_and_grad(
        block, trait.z, trait.f, sample_size=trait.sample_size, noise=0.8, solver="cholesky"
    )
    exact = dense.textbook_gradient(block.whitener.astype(float), trait)[0]
    assert np.linalg.norm(gradient - exact) < 1e-4 * np.linalg.norm(exact)


# Errors.


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"z": np.ones(9)}, r"z has shape \(9,\); \(10,\) is expected"),
        ({"z": np.r_[np.ones(7), np.nan, 1, 1]}, r"z must be finite; found nan at index 7 \(1 such"),
        ({"effect_variance": np.ones((10, 1))}, r"effect_variance has shape \(10, 1\)"),
        ({"effect_variance": 1.0}, r"effect_variance has shape \(\)"),
        (
            {"effect_variance": np.r_[-1e-9, np.ones(9)]},
            r"effect_variance must be finite and >= 0; found -1e-09 at index 0",
        ),
        ({"effect_variance": np.full(10, np.inf)}, r"finite and >= 0; found inf at index 0 \(10 such"),
        ({"noise": 0.0}, r"noise must be finite and > 0; found 0\.0"),
        ({"noise": -1.0}, r"noise must be finite and > 0; found -1\.0"),
        ({"noise": np.ones(10)}, r"noise has shape \(10,\); one number is expected"),
        ({"sample_size": 0}, "sample_size must be finite and > 0; found 0"),
        ({"sample_size": np.nan}, "sample_size must be finite and > 0; found nan"),
        ({"effect_mean": np.ones(9)}, r"effect_mean has shape \(9,\)"),
        ({"effect_mean": np.full(10, np.nan)}, "effect_mean must be finite"),
        ({"solver": "lu"}, "solver is 'lu'; give 'auto', 'cholesky' or 'cg'"),
        ({"probes": 1}, "probes is 1; at least 2"),
    ],
)
@pytest.mark.parametrize("function", [log_likelihood, log_likelihood_and_grad])
def test_wrong_input_is_refused(function, changed, message):
    block, _, _ = make("ar1", 10)
    arguments = {"z": np.ones(10), "effect_variance": np.full(10, 1e-3), "sample_size": 1e3} | changed
    with pytest.raises(InputError, match=message):
        function(block, **arguments)
