"""The covariance as a CoLA operator: CoLA's solvers on it agree with ours and with Cholesky."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepwas import InputError, LDBlock
from deepwas.likelihood import cg_log_density, covariance_operator
from deepwas.likelihood.factor import Factor
from tests import dense


@pytest.fixture(scope="module", params=["ar1", "panel"])
def problem(request):
    """Block, trait, dense B (k, k) and whitened z-scores (k,)."""
    rng = np.random.default_rng(0)
    R = dense.ld_matrix(request.param, 80, rng)
    trait = dense.simulated_trait(R, rng, scored=dense.third(80, rng), noise=0.7, mean_c=0.5)
    block = LDBlock.from_correlation(R, trait.scored)
    B = block.whitener @ dense.covariance(trait) @ block.whitener.T
    return block, trait, B, jnp.asarray(block.whiten(trait.z))


def operator(block: LDBlock, trait: dense.Trait):
    return covariance_operator(block, trait.f, trait.sample_size, trait.noise)


def test_products_and_diagonal_are_those_of_the_dense_covariance(problem):
    block, trait, B, y = problem
    found = operator(block, trait)
    assert found.shape == (block.k, block.k)
    assert found.dtype == jnp.float64
    several = np.random.default_rng(1).standard_normal((block.k, 3))
    np.testing.assert_allclose(found.to_dense(), B, atol=1e-9)
    np.testing.assert_allclose(found @ y, B @ y, rtol=1e-8)
    np.testing.assert_allclose(found @ jnp.asarray(several), B @ several, atol=1e-8)
    np.testing.assert_allclose(y @ found, B @ y, rtol=1e-8)
    np.testing.assert_allclose(found.T @ y, B @ y, rtol=1e-8)
    np.testing.assert_allclose(found.diagonal(), np.diagonal(B), rtol=1e-9)


def test_conjugate_gradients_of_cola_agree_with_ours_and_with_cholesky(problem):
    from cola.linalg import inv
    from cola.linalg.inverse.cg import CG

    block, trait, B, y = problem
    found = operator(block, trait)
    x = inv(found, CG(tol=1e-12)) @ y
    np.testing.assert_allclose(found @ x, y, atol=1e-9 * float(jnp.linalg.norm(y)))
    exact = np.linalg.solve(np.linalg.cholesky(B), y)
    assert float(y @ x) == pytest.approx(float(exact @ exact), rel=1e-9)

    # Our solve: d value / dy = -B^-1 y. What hangs on y alone is the difference from y = 0: half of the quadratic form,
    # and the data's part of the gradient, ((g_j.x)^2 and x.x) / 2.
    ones = jnp.ones(block.k)
    signs = jax.random.rademacher(jax.random.key(0), (4, block.k), float)

    def density(y, c, noise):
        return cg_log_density(y, Factor.of(found.factor), c, noise, ones, signs, 1e-10, 100)[0]

    ours = jax.jit(jax.value_and_grad(density, argnums=(0, 1, 2)))
    with_y, (d_y, d_c, d_noise) = ours(y, found.c, found.noise)
    without, (_, d_c_0, d_noise_0) = ours(0 * y, found.c, found.noise)
    np.testing.assert_allclose(-d_y, x, atol=1e-8 * float(jnp.abs(x).max()))
    assert float(2 * (without - with_y)) == pytest.approx(float(y @ x), rel=1e-8)
    np.testing.assert_allclose(d_c - d_c_0, (x @ found.factor) ** 2 / 2, atol=1e-8 * float(x @ x))
    assert float(d_noise - d_noise_0) == pytest.approx(float(x @ x) / 2, rel=1e-7)


def test_the_preconditioner_saves_steps(problem):
    from cola.linalg.inverse.cg import cg

    block, trait, _, y = problem
    # Strong LD and no noise to speak of: the diagonal of B then spans orders of magnitude.
    strong = covariance_operator(block, 20 * trait.f, trait.sample_size, trait.noise)
    steps = {}
    for name, P in (("plain", None), ("diagonal", strong.preconditioner())):
        x, info = cg(strong, y, P=P, tol=1e-8, max_iters=200)
        assert float(jnp.linalg.norm(strong @ x - y)) < 1e-5 * float(jnp.linalg.norm(y))
        steps[name] = int(info["iterations"])
    assert steps["diagonal"] < 0.8 * steps["plain"], steps


def test_it_can_be_made_and_differentiated_inside_jit(problem):
    block, trait, B, y = problem

    @jax.jit
    def form(f, noise):
        return y @ (covariance_operator(block, f, trait.sample_size, noise) @ y)

    d_f, d_noise = jax.grad(form, argnums=(0, 1))(jnp.asarray(trait.f), trait.noise)
    np.testing.assert_allclose(d_f, trait.sample_size * (y @ block.factor) ** 2, rtol=1e-10)
    assert float(d_noise) == pytest.approx(float(y @ y), rel=1e-12)
    assert float(form(trait.f, trait.noise)) == pytest.approx(float(y @ B @ y), rel=1e-9)


def test_wrong_input_is_refused(problem):
    block, trait, _, _ = problem
    with pytest.raises(InputError, match=r"effect_variance has shape \(3,\)"):
        covariance_operator(block, np.ones(3), 1e4)
    with pytest.raises(InputError, match="effect_variance must be finite and >= 0"):
        covariance_operator(block, -trait.f, 1e4)
    with pytest.raises(InputError, match="sample_size must be finite and > 0"):
        covariance_operator(block, trait.f, 0.0)
    with pytest.raises(InputError, match="noise must be finite and > 0"):
        covariance_operator(block, trait.f, 1e4, np.nan)


def test_cola_is_imported_only_when_an_operator_is_made():
    names = "deepwas.likelihood.general, deepwas.likelihood as x"
    code = f"import sys, {names}; x.covariance_operator; sys.exit('cola' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
