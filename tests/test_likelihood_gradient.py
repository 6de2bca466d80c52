"""Gradients: exact ones against autodiff of the dense density, estimated ones for bias and for their size of error."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepwas import LDBlock, log_likelihood, log_likelihood_and_grad
from deepwas.ld import eigenvalue_floor
from deepwas.likelihood import Factor, cg_log_density, exact_log_density
from tests import dense

NAMES = ("effect_variance", "noise", "z", "sample_size", "effect_mean")


def relative_error(found, expected) -> float:
    """||found - expected|| / ||expected||."""
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def as_function(block: LDBlock, solver: str):
    """`log_likelihood` as a function of `Trait.arguments`."""

    def density(f, noise, z, sample_size, mean):
        return log_likelihood(block, z, f, sample_size=sample_size, noise=noise, effect_mean=mean, solver=solver)

    return density


@pytest.mark.parametrize("kind", ["ar1", "panel", "duplicates"])
@pytest.mark.parametrize("subset", [False, True])
def test_exact_gradients_are_those_of_the_dense_density(kind, subset):
    rng = np.random.default_rng(0)
    R = dense.ld_matrix(kind, 40, rng)
    scored = dense.third(40, rng) if subset else np.ones(40, dtype=bool)
    block = LDBlock.from_correlation(R, scored)
    every = tuple(range(5))
    autodiff = jax.jit(jax.grad(dense.jax_log_density(block.whitener, R, scored), argnums=every))
    ours = jax.jit(jax.grad(as_function(block, "cholesky"), argnums=every))
    for sample_size in (1e2, 1e4, 1e6):
        for noise in (0.5, 1.0, 2.0):
            trait = dense.simulated_trait(R, rng, scored=scored, sample_size=sample_size, noise=noise, with_mean=True)
            expected, found = autodiff(*trait.arguments), ours(*trait.arguments)
            textbook = dense.textbook_gradient(block.whitener, trait)
            for name, one, other, third in zip(NAMES, expected, found, textbook, strict=True):
                assert relative_error(other, one) < 1e-6, (name, sample_size, noise)
                assert relative_error(third, one) < 1e-6, (name, sample_size, noise)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_value_and_gradient_of_one_solve_are_the_separate_ones(solver):
    rng = np.random.default_rng(1)
    R = dense.ld_matrix("panel", 40, rng)
    block = LDBlock.from_correlation(R)
    trait = dense.simulated_trait(R, rng, mean_c=0.3, with_mean=True)
    f, noise, z, sample_size, mean = trait.arguments
    options = {"sample_size": sample_size, "noise": noise, "effect_mean": mean, "solver": solver}
    value, d_f, d_noise, info = log_likelihood_and_grad(block, z, f, **options, with_noise=True, info=True)
    assert info.solver == solver
    assert info.converged
    assert float(value) == pytest.approx(float(log_likelihood(block, z, f, **options)), rel=1e-12)
    separate = jax.grad(as_function(block, solver), argnums=(0, 1))(*trait.arguments)
    np.testing.assert_allclose(d_f, separate[0], rtol=1e-9, atol=1e-9 * np.abs(d_f).max())
    assert float(d_noise) == pytest.approx(float(separate[1]), rel=1e-9)
    assert len(log_likelihood_and_grad(block, z, f, **options)) == 2


def test_data_gradients_of_cg_are_exact():
    """With respect to z and the mean no probe is involved: they are as accurate as the solve."""
    rng = np.random.default_rng(2)
    R = dense.ld_matrix("panel", 40, rng)
    scored = dense.third(40, rng)
    block = LDBlock.from_correlation(R, scored)
    trait = dense.simulated_trait(R, rng, scored=scored, mean_c=0.3, with_mean=True)
    found = jax.grad(as_function(block, "cg"), argnums=(2, 4))(*trait.arguments)
    expected = dense.textbook_gradient(block.whitener, trait)
    assert relative_error(found[0], expected[2]) < 1e-7
    assert relative_error(found[1], expected[4]) < 1e-7


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_the_factor_is_data_and_diagnostics_are_constants(solver):
    y, G, c, ones = jnp.ones(3), jnp.eye(3), jnp.arange(3.0), jnp.ones(3)
    signs = jnp.asarray([[1.0, 1, -1], [1, -1, 1]])

    def density(G):
        if solver == "cholesky":
            return exact_log_density(y, Factor.of(G), c, 1.0, ones)
        return cg_log_density(y, Factor.of(G), c, 1.0, ones, signs, 1e-8, 5)[0]

    with pytest.raises(TypeError, match="LD factor is data"):
        jax.grad(density)(G)
    with pytest.raises(TypeError, match="LD factor is data"):
        jax.jit(jax.grad(density))(G)
    error = jax.grad(lambda c: cg_log_density(y, Factor.of(G), c, 1.0, ones, signs, 1e-8, 5)[1].standard_error)(c)
    np.testing.assert_array_equal(error, 0)


@cache
def estimator(rtol: float):
    """(value, d_f, d_noise, residual) by CG with 16 probes for each of many keys, compiled once per shape."""

    @jax.jit
    def estimate(keys, y, factor, f, noise, sample_size):
        def one(key):
            signs = jax.random.rademacher(key, (16, len(y)), float)

            def density(f, noise):
                return cg_log_density(y, Factor.of(factor), sample_size * f, noise, jnp.ones_like(y), signs, rtol, 60)

            (value, found), gradient = jax.value_and_grad(density, argnums=(0, 1), has_aux=True)(f, noise)
            return value, *gradient, found.residual

        return jax.lax.map(one, keys)

    return estimate


def estimates(block: LDBlock, trait: dense.Trait, rtol: float, seed: int, keys: int) -> list[np.ndarray]:
    """One row per key of (value, d_f, d_noise); every solve has converged."""
    found = estimator(rtol)(
        jax.random.split(jax.random.key(seed), keys),
        block.whiten(trait.z),
        block.factor,
        trait.f,
        trait.noise,
        trait.sample_size,
    )
    assert float(found[-1].max()) <= rtol
    return [np.asarray(x) for x in found[:-1]]


@pytest.mark.parametrize(("kind", "noise"), [("ar1", 0.5), ("panel", 1.0)])
def test_estimated_value_and_gradients_are_unbiased(kind, noise):
    rng = np.random.default_rng(3)
    R = dense.ld_matrix(kind, 50, rng)
    scored = dense.third(50, rng) if kind == "panel" else np.ones(50, dtype=bool)
    block = LDBlock.from_correlation(R, scored)
    trait = dense.simulated_trait(R, rng, scored=scored, noise=noise, mean_c=0.3)
    count = 1000
    values, d_f, d_noise = estimates(block, trait, 1e-9, 11, count)
    exact = dense.textbook_gradient(block.whitener, trait)
    true = dense.log_density(block.whitener, trait)
    assert abs(values.mean() - true) < 4 * values.std(ddof=1) / np.sqrt(count)
    assert abs(d_noise.mean() - exact[1]) < 4 * d_noise.std(ddof=1) / np.sqrt(count)
    off = d_f.mean(axis=0) - exact[0]
    errors = d_f.std(axis=0, ddof=1) / np.sqrt(count)
    # All 50 components, and the squared length of the error against what its variances sum to.
    assert (np.abs(off) < 4.5 * errors + 1e-9 * np.abs(exact[0]).max()).all()
    assert (off**2).sum() < 3 * (errors**2).sum()


# The size of the error in realistic LD: blocks of the example panel (378 people, 1000 Genomes), random exponential f.


@cache
def example_block(m: int, floor: str, subset: bool) -> tuple[LDBlock, np.ndarray]:
    R, people = dense.example_ld(4000, m)
    scored = dense.third(m, np.random.default_rng(m)) if subset else np.ones(m, dtype=bool)
    lowest = 1e-4 if floor == "1e-4" else eigenvalue_floor(m, people)
    return LDBlock.from_correlation(R, scored, eigenvalue_floor=lowest), R


def gradient_errors(m: int, floor: str, subset: bool, mean_c: float, noise: float) -> tuple[int, float, float]:
    """k; and over 20 keys of 16 probes the mean relative error of the gradient in f and mean error of that in noise.

    The derivative in noise passes through 0, so its error is in units of its own standard deviation over traits,
    sqrt(tr(B^-2) / 2).
    """
    block, R = example_block(m, floor, subset)
    trait = dense.simulated_trait(R, np.random.default_rng(5), scored=block.scored, noise=noise, mean_c=mean_c)
    f, _, z, sample_size, _ = trait.arguments
    _, d_f, d_noise = log_likelihood_and_grad(
        block, z, f, sample_size=sample_size, noise=noise, solver="cholesky", with_noise=True
    )
    _, found, found_noise = estimates(block, trait, 1e-4, 0, 20)
    spectrum = np.linalg.eigvalsh(sample_size * (block.factor * f) @ block.factor.T) + noise
    return (
        block.k,
        float(np.mean([relative_error(one, d_f) for one in found])),
        float(np.mean(np.abs(found_noise - float(d_noise))) / np.sqrt((spectrum**-2).sum() / 2)),
    )


@pytest.mark.parametrize("floor", ["1e-4", "store"])
@pytest.mark.parametrize("subset", [False, True], ids=["all", "third"])
@pytest.mark.parametrize("mean_c", [0.07, 0.2])
@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_error_of_the_estimated_gradient_is_small(floor, subset, mean_c, noise, record_property):
    k, error, error_noise = gradient_errors(300, floor, subset, mean_c, noise)
    for name, measured in {"k": k, "relative_error": error, "error_noise": error_noise}.items():
        record_property(name, measured)
    assert 0 < error < 0.13, (k, error)
    assert 0 < error_noise < 0.13, (k, error_noise)
