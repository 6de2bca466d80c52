"""The LD score regression objective: against a slow loop, by simulation, and by what it recovers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepwas import InputError, ld_score_loss
from deepwas.likelihood import adjusted_ld_squared, ld_score_weights
from tests import dense


def example(s: int = 12, m: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """z, r^2 of the first s variants with all m, f, and weights."""
    rng = np.random.default_rng(seed)
    R = dense.ld_matrix("panel", m, rng)
    return rng.standard_normal(s) * 2, R[:s] ** 2, rng.exponential(size=m) / m, rng.uniform(0.1, 1, s)


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_loss_is_the_slow_loop(noise):
    z, r2, f, w = example()
    found = ld_score_loss(z, r2, f, sample_size=3e4, noise=noise, weights=w)
    assert float(found) == pytest.approx(dense.ld_score_objective(z, r2, f, 3e4, noise, w), rel=1e-12)
    equal = ld_score_loss(z, r2, f, sample_size=3e4, noise=noise)
    assert float(equal) == pytest.approx(dense.ld_score_objective(z, r2, f, 3e4, noise, np.ones(12)), rel=1e-12)


def test_only_the_proportion_of_the_weights_counts():
    z, r2, f, w = example()
    first, second = (ld_score_loss(z, r2, f, sample_size=1e3, weights=x) for x in (w, 7 * w))
    assert float(first) == pytest.approx(float(second), rel=1e-12)


def test_gradients_agree_with_finite_differences():
    z, r2, f, w = example()

    def loss(f, noise):
        return ld_score_loss(z, r2, f, sample_size=1e2, noise=noise, weights=w)

    d_f, d_noise = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.asarray(f), 1.2)
    step = 1e-5
    for j in range(len(f)):
        move = step * np.eye(len(f))[j]
        assert float(d_f[j]) == pytest.approx(float(loss(f + move, 1.2) - loss(f - move, 1.2)) / (2 * step), rel=1e-6)
    assert float(d_noise) == pytest.approx(float(loss(f, 1.2 + step) - loss(f, 1.2 - step)) / (2 * step), rel=1e-6)


def test_noise_free_regression_recovers_the_effect_variances_and_the_intercept():
    rng = np.random.default_rng(1)
    m, sample_size, noise = 30, 1e3, 1.3
    R = dense.ld_matrix("ar1", m, rng)
    f = rng.exponential(size=m) / m
    z = np.sqrt(noise + sample_size * R**2 @ f)
    w = ld_score_weights((R**2).sum(axis=1), z**2)

    def loss(theta):
        return ld_score_loss(z, R**2, theta[:m], sample_size=sample_size, noise=theta[m], weights=w)

    true = jnp.asarray([*f, noise])
    assert float(loss(true)) == pytest.approx(0, abs=1e-20)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(true), 0, atol=1e-8)

    # With the intercept known the problem is quadratic in f with full rank: one Newton step from anywhere arrives.
    def known_noise(f):
        return loss(jnp.append(f, noise))

    @jax.jit
    def newton(f):
        return f - jnp.linalg.solve(jax.hessian(known_noise)(f), jax.grad(known_noise)(f))

    np.testing.assert_allclose(newton(jnp.full(m, 0.01)), f, rtol=1e-7)


@pytest.mark.parametrize("r", [0.0, 0.3, 0.8])
def test_adjusted_r2_is_nearly_unbiased_where_plain_r2_is_not(r):
    rng = np.random.default_rng(2)
    people, repeats = 50, 20_000
    x = rng.standard_normal((repeats, people))
    y = r * x + np.sqrt(1 - r**2) * rng.standard_normal((repeats, people))
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x, y))
    found = (x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    adjusted = np.asarray(adjusted_ld_squared(found, people))
    error = adjusted.std() / np.sqrt(repeats)
    # To first order E[r^2] is r^2 + (1 - r^2)(1 - 2 r^2) / n: exact for unlinked variants, and what remains is small.
    remains = -2 * r**2 * (1 - r**2) / people
    assert abs(adjusted.mean() - r**2 - remains) < 4 * error + 4 / people**2
    if r < 0.5:
        assert (found**2).mean() - r**2 > 8 * error


def test_adjusted_r2_keeps_perfect_ld_and_may_be_negative():
    np.testing.assert_allclose(adjusted_ld_squared([1.0, -1.0, 0.0], 102), [1, 1, -0.01], rtol=1e-14)


def test_weights_are_those_of_stratified_ld_score_regression():
    found = ld_score_weights([0.2, 1.0, 50.0, 50.0], [1.0, 0.5, 1.0, 3.0])
    np.testing.assert_allclose(found, [1, 1, 1 / 50, 1 / 450], rtol=1e-14)


def test_wrong_input_is_refused():
    z, r2, f, _ = example()
    with pytest.raises(InputError, match=r"\(20, 12\).*ask for \(12, 20\)"):
        ld_score_loss(z, r2.T, f, sample_size=1e3)
    with pytest.raises(InputError, match="more than 2 people"):
        adjusted_ld_squared(r2, 2)
