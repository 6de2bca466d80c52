"""LD as a CoLA operator or its inverse: against the density of SciPy on the dense covariance, and CoLA's own solver."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from deepwas import ConvergenceWarning, InputError, LDBlock, log_likelihood, log_likelihood_and_grad
from deepwas.likelihood.general import (
    PrecisionOperator,
    operator_log_likelihood,
    operator_log_likelihood_and_grad,
    solve_ld,
)
from deepwas.likelihood.operator import apply_product, operator_form, traced_product
from tests import dense

M = 60
SOLVERS = ("cg", "cholesky")
KINDS = ("dense", "sparse", "kronecker", "diagonal", "product", "matmat", "precision", "precision_unknown")


def ar1(m: int, neighbours: float) -> np.ndarray:
    place = np.arange(m)
    return neighbours ** np.abs(place[:, None] - place[None, :])


@cache
def operator(kind: str, dtype=jnp.float64):
    """R (M, M) dense, and the operator that stands for it."""
    import cola

    ops, near = cola.ops, ar1(M, 0.9)

    def dense_operator(x):
        return ops.Dense(jnp.asarray(x, dtype))

    if kind == "dense":
        return near, dense_operator(near)
    if kind == "sparse":  # moving average: banded, so sparse, of full rank
        R = np.eye(M) + 0.45 * (np.eye(M, k=1) + np.eye(M, k=-1))
        coo = scipy.sparse.coo_array(R)
        return R, ops.Sparse(jnp.asarray(coo.data, dtype), jnp.asarray(coo.row), jnp.asarray(coo.col), coo.shape)
    if kind == "kronecker":
        left, right = ar1(M // 10, 0.5), ar1(10, 0.8)
        return np.kron(left, right), ops.Kronecker(dense_operator(left), dense_operator(right))
    if kind == "diagonal":
        return np.eye(M), ops.Diagonal(jnp.ones(M, dtype))
    if kind == "product":
        root = np.linalg.cholesky(near)
        return near, dense_operator(root) @ dense_operator(root.T)
    if kind == "matmat":  # an AR(1) correlation by two recurrences, in O(m)
        return near, ops.LinearOperator(dtype, (M, M), matmat=lambda X: jnp.asarray(near, X.dtype) @ X)
    P = np.linalg.inv(near)
    P[np.abs(P) < 1e-9] = 0
    if kind == "precision":
        return near, PrecisionOperator.from_sparse(P, dtype)
    assert kind == "precision_unknown", kind
    off = jnp.asarray(np.diagonal(P, 1), dtype)
    return near, PrecisionOperator(ops.Tridiagonal(off, jnp.asarray(np.diagonal(P), dtype), off))


def effects(kind: str, m: int, rng: np.random.Generator) -> np.ndarray:
    """f (m,), summing to 0.5 except where heavy tails forbid it."""
    f = rng.exponential(size=m)
    if kind == "sparse":
        f = f * (rng.random(m) < 0.3)
        f[0] = 1.0
    elif kind == "heavy":
        f = np.exp(4 * rng.standard_normal(m))
    return 0.5 * f / f.sum()


def trait(R: np.ndarray, rng: np.random.Generator, f: np.ndarray, n: float, noise: float, mean=False) -> dense.Trait:
    made = dense.simulated_trait(R, rng, sample_size=n, noise=noise)
    mu = 0.3 * np.sqrt(f) * rng.standard_normal(len(f)) if mean else np.zeros(len(f))
    beta = mu + np.sqrt(f) * rng.standard_normal(len(f))
    error = np.sqrt(noise) * dense.root(R.tobytes(), len(f)) @ rng.standard_normal(len(f))
    return made._replace(f=f, mean=mu, z=np.sqrt(n) * R @ beta + error)


def whitener(R: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(R)
    return vectors.T / np.sqrt(values)[:, None]


def keywords(t: dense.Trait) -> dict:
    return {"sample_size": t.sample_size, "noise": t.noise, "effect_mean": t.mean}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_traced_is_the_product(kind):
    R, ld = operator(kind)
    linear = ld.operator if isinstance(ld, PrecisionOperator) else ld
    matrix = np.linalg.inv(R) if isinstance(ld, PrecisionOperator) else R
    product = traced_product(linear, *operator_form(linear), 5)
    X = np.random.default_rng(0).standard_normal((M, 5))
    np.testing.assert_allclose(jax.jit(product)(X), matrix @ X, atol=1e-10)
    np.testing.assert_allclose(apply_product({5: product}, jnp.asarray(X[:, :2])), matrix @ X[:, :2], atol=1e-10)
    assert traced_product(linear, *operator_form(linear), 5) is product


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", ["dense", "kronecker", "precision"])
def test_value_and_gradient_are_those_of_the_dense_density(kind, solver):
    rng = np.random.default_rng(1)
    R, ld = operator(kind)
    W = whitener(R)
    far = []
    for n in (1e2, 1e4, 1e6):
        for shape in ("plain", "sparse", "heavy"):
            t = trait(R, rng, effects(shape, M, rng), n, 0.5 if n == 1e4 else 1.0, mean=shape == "plain")
            value, d_f, d_noise, info = operator_log_likelihood_and_grad(
                ld, t.z, t.f, solver=solver, with_noise=True, info=True, **keywords(t)
            )
            exact, (wanted, wanted_noise, *_) = dense.log_density(W, t), dense.textbook_gradient(W, t)
            assert info.converged
            assert info.solver == solver
            if solver == "cholesky":
                assert float(value) == pytest.approx(exact, rel=1e-8, abs=1e-6), (n, shape)
                np.testing.assert_allclose(d_f, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())
                assert float(d_noise) == pytest.approx(wanted_noise, rel=1e-6)
                continue
            assert abs(float(value) - exact) < 4 * float(info.standard_error) / 2 + 1e-6, (n, shape)
            assert float(info.standard_error) < 0.2 * M
            error = np.linalg.norm(np.asarray(d_f) - wanted)
            assert error < 4 * float(info.gradient_error), (n, shape)
            assert abs(float(d_noise) - wanted_noise) < 4 * float(info.noise_error) + 1e-6, (n, shape)
            far.append(error / float(info.gradient_error))
    assert solver == "cholesky" or 0.3 < np.sqrt(np.mean(np.square(far))) < 1.7, far


def test_it_is_the_value_of_the_block_that_the_same_matrix_makes():
    R, ld = operator("dense")
    t = trait(R, np.random.default_rng(2), effects("plain", M, np.random.default_rng(3)), 1e4, 0.8)
    block = LDBlock.from_correlation(R, eigenvalue_floor=0)
    arguments = {"sample_size": t.sample_size, "noise": t.noise, "solver": "cholesky"}
    of_block = log_likelihood_and_grad(block, t.z, t.f, with_noise=True, **arguments)
    ours = operator_log_likelihood_and_grad(ld, t.z, t.f, with_noise=True, **arguments)
    for one, other in zip(of_block, ours, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7)
    assert float(log_likelihood(ld, t.z, t.f, **arguments)) == pytest.approx(float(of_block[0]), rel=1e-10)


@pytest.mark.parametrize("kind", ["dense", "precision_unknown"])
def test_every_derivative_is_that_of_the_textbook(kind):
    rng = np.random.default_rng(4)
    R, ld = operator(kind)
    t = trait(R, rng, effects("sparse", M, rng), 1e3, 0.7, mean=True)
    wanted = dense.textbook_gradient(whitener(R), t)

    def value(solver, f, noise, z, n, mean):
        return operator_log_likelihood(
            ld, z, f, sample_size=n, noise=noise, effect_mean=mean, solver=solver, probes=400 if solver == "cg" else 2
        )

    both = {s: jax.grad(partial(value, s), argnums=range(5))(*map(jnp.asarray, t.arguments)) for s in SOLVERS}
    for ours, exact in zip(both["cholesky"], wanted, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-6, atol=1e-8 * np.abs(exact).max())
    d_f, d_noise, d_z, d_n, d_mean = both["cg"]
    np.testing.assert_allclose(d_z, wanted[2], atol=1e-5 * np.abs(wanted[2]).max())
    np.testing.assert_allclose(d_mean, wanted[4], atol=1e-5 * np.abs(wanted[4]).max())
    # The error comes from diag(K^-1), whose own size it is held against; f = 0 for most variants.
    V = dense.covariance(t)
    diagonal = np.diagonal(R @ np.linalg.solve(V, R))
    off = np.asarray(d_f) - wanted[0]
    assert np.linalg.norm(off) < 0.1 * t.sample_size / 2 * np.linalg.norm(diagonal)
    assert abs(float(d_n) - wanted[3]) < 0.1 * np.sum(t.f * diagonal) / 2
    assert float(d_noise) == pytest.approx(wanted[1], abs=0.02 * M / t.noise)


def test_sixteen_probes_give_a_useful_gradient():
    """Errors of the diagonal of K^-1 over keys: far below those without control variates (0.67, 0.47), and no bias."""
    rng = np.random.default_rng(5)
    for kind in ("dense", "precision"):
        R, ld = operator(kind)
        for c, bound in ((0.02, 0.17), (0.2, 0.27)):
            t = trait(R, rng, np.full(M, c / 1e4), 1e4, 1.0)
            wanted = np.diag(np.linalg.inv(np.linalg.inv(R) + c * np.eye(M)))
            data = (R @ np.linalg.solve(dense.covariance(t), t.z)) ** 2
            estimates = []
            for seed in range(20):
                _, d_f = operator_log_likelihood_and_grad(
                    ld, t.z, t.f, sample_size=1e4, solver="cg", key=jax.random.key(seed)
                )
                estimates.append(data - 2 * np.asarray(d_f) / 1e4)
            errors = np.linalg.norm(np.array(estimates) - wanted, axis=1) / np.linalg.norm(wanted)
            assert errors.mean() < bound, (kind, c, errors.mean())
            far = np.abs(np.mean(estimates, axis=0) - wanted) / (np.std(estimates, axis=0) / np.sqrt(20))
            assert np.mean(far**2) < 2, (kind, c)


def test_a_diagonal_operator_is_exact_whatever_the_probes():
    rng = np.random.default_rng(6)
    R, ld = operator("diagonal")
    t = trait(R, rng, effects("sparse", M, rng), 1e4, 0.5)
    value, d_f, d_noise, info = operator_log_likelihood_and_grad(
        ld, t.z, t.f, sample_size=1e4, noise=0.5, solver="cg", probes=2, with_noise=True, info=True
    )
    wanted = dense.textbook_gradient(np.eye(M), t)
    assert float(value) == pytest.approx(dense.log_density(np.eye(M), t), rel=1e-10)
    np.testing.assert_allclose(d_f, wanted[0], rtol=1e-8)
    assert float(d_noise) == pytest.approx(wanted[1], rel=1e-9)
    assert float(info.standard_error) < 1e-8


def test_conjugate_gradients_of_cola_agree():
    """The quadratic form and the data's part of the gradient, from CoLA's solver on V = N R F R + noise R."""
    import cola
    from cola.linalg.inverse.cg import CG

    rng = np.random.default_rng(7)
    R, ld = operator("kronecker")
    t = trait(R, rng, effects("sparse", M, rng), 1e3, 0.6)
    z, c = jnp.asarray(t.z), jnp.asarray(t.f) * t.sample_size

    def covariance(X):
        inner = ld @ X
        return ld @ (c[:, None] * inner) + 0.6 * inner

    tight = CG(tol=1e-13, max_iters=2000)
    V = cola.PSD(cola.ops.LinearOperator(jnp.float64, (M, M), matmat=covariance))
    a = cola.linalg.solve(V, z, tight)
    # What hangs on z alone: the log determinant and its derivatives are the same at z = 0.
    arguments = {"sample_size": t.sample_size, "noise": 0.6, "solver": "cg", "with_noise": True}
    value, d_f, d_noise = operator_log_likelihood_and_grad(ld, z, t.f, **arguments)
    value_0, d_f_0, d_noise_0 = operator_log_likelihood_and_grad(ld, 0 * z, t.f, **arguments)
    assert float(2 * (value_0 - value)) == pytest.approx(float(z @ a), rel=1e-8)
    data = t.sample_size / 2 * (ld @ a) ** 2
    np.testing.assert_allclose(d_f - d_f_0, data, atol=1e-6 * float(data.max()))
    assert float(d_noise - d_noise_0) == pytest.approx(float(a @ (ld @ a)) / 2, rel=1e-6)
    plain = cola.PSD(cola.ops.LinearOperator(jnp.float64, (M, M), matmat=lambda X: ld @ X))
    np.testing.assert_allclose(solve_ld(ld, z), cola.linalg.solve(plain, z, tight), atol=1e-6)


def test_z_solved_is_used_and_its_error_is_seen():
    rng = np.random.default_rng(8)
    R, ld = operator("dense")
    t = trait(R, rng, effects("plain", M, rng), 1e4, 1.0)
    arguments = {"sample_size": t.sample_size, "solver": "cg", "info": True}
    both = operator_log_likelihood_and_grad
    solved = solve_ld(ld, t.z)
    np.testing.assert_allclose(solved, np.linalg.solve(R, t.z), atol=1e-6 * np.abs(t.z).max())
    value, _, _ = both(ld, t.z, t.f, **arguments)
    given, _, info = both(ld, t.z, t.f, z_solved=solved, **arguments)
    assert float(given) == pytest.approx(float(value), rel=1e-10)
    assert info.converged
    with pytest.warns(ConvergenceWarning, match="give a better z_solved"):
        *_, info = both(ld, t.z, t.f, z_solved=1.01 * solved, **arguments)
    assert not info.converged
    assert float(info.residual) == pytest.approx(0.01, rel=1e-3)


def test_values_in_float32(float32):
    rng = np.random.default_rng(9)
    for kind in ("dense", "precision"):
        R, ld = operator(kind, jnp.float32)
        W = whitener(R)
        for n in (1e2, 1e4):
            t = trait(R, rng, effects("sparse", M, rng), n, 0.5)
            arguments = {"sample_size": n, "noise": 0.5, "solver": "cg", "info": True}
            if kind == "precision":
                value, info = operator_log_likelihood(ld, t.z, t.f, **arguments)
            else:
                value, d_f, info = operator_log_likelihood_and_grad(ld, t.z, t.f, **arguments)
                error = np.linalg.norm(np.asarray(d_f) - dense.textbook_gradient(W, t)[0])
                assert d_f.dtype == jnp.float32
                assert error < 4 * float(info.gradient_error), n
            assert value.dtype == jnp.float32
            assert info.converged
            assert abs(float(value) - dense.log_density(W, t)) < 4 * float(info.standard_error) / 2, (kind, n)


def test_inside_jit_from_a_traced_matrix():
    rng = np.random.default_rng(10)
    R, ld = operator("dense")
    t = trait(R, rng, effects("sparse", M, rng), 1e4, 1.0)

    @jax.jit
    def both(R, z, f):
        import cola

        made = cola.ops.Dense(R)
        *found, info = operator_log_likelihood_and_grad(made, z, f, sample_size=1e4, solver="cg", info=True)
        return *found, info.converged

    value, d_f, converged = both(jnp.asarray(R), t.z, t.f)
    eager, d_eager = operator_log_likelihood_and_grad(ld, t.z, t.f, sample_size=1e4, solver="cg")
    assert float(value) == pytest.approx(float(eager), rel=1e-9)
    np.testing.assert_allclose(d_f, d_eager, rtol=1e-6)
    assert converged


@pytest.mark.parametrize("solver", SOLVERS)
def test_ld_has_no_gradient(solver):
    import cola

    def value(R):
        return operator_log_likelihood(cola.ops.Dense(R), jnp.ones(4), jnp.ones(4), sample_size=1.0, solver=solver)

    with pytest.raises(TypeError, match="is data"):
        jax.grad(value)(jnp.eye(4))


def test_a_second_operator_of_the_same_shape_is_not_mistaken_for_the_first():
    import cola

    rng = np.random.default_rng(11)
    t = trait(np.eye(M), rng, effects("plain", M, rng), 1e4, 1.0)
    for neighbours in (0.3, 0.45):
        coo = scipy.sparse.coo_array(np.eye(M) + neighbours * (np.eye(M, k=1) + np.eye(M, k=-1)))
        ld = cola.ops.Sparse(*(jnp.asarray(x) for x in (coo.data, coo.row, coo.col)), coo.shape)
        value = operator_log_likelihood(ld, t.z, t.f, sample_size=1e4, solver="cholesky")
        R = coo.toarray()
        assert float(value) == pytest.approx(dense.log_density(whitener(R), t._replace(R=R)), rel=1e-8)


def test_what_does_not_converge_is_said():
    import cola

    rng = np.random.default_rng(12)
    R, ld = operator("dense")
    t = trait(R, rng, effects("heavy", M, rng), 1e6, 1.0)
    with pytest.warns(ConvergenceWarning, match="stopped after 3 steps at relative residual"):
        _, info = operator_log_likelihood(ld, t.z, t.f, sample_size=1e6, solver="cg", max_steps=3, info=True)
    assert not info.converged
    assert int(info.steps) == 3
    assert np.isnan(float(info.gradient_error))  # none was asked for

    indefinite = cola.ops.Dense(jnp.asarray(np.full((3, 3), -0.9) + 1.9 * np.eye(3)))
    for solver in SOLVERS:
        with pytest.warns(ConvergenceWarning):
            operator_log_likelihood(indefinite, np.ones(3), np.full(3, 1e-2), sample_size=1e4, solver=solver)


def test_wrong_input_is_refused():
    import cola

    _, ld = operator("dense")
    one = np.ones(M)
    good = {"operator": ld, "z": one, "effect_variance": 1e-4 * one, "sample_size": 1e4}

    def call(match, **change):
        with pytest.raises(InputError, match=match):
            operator_log_likelihood(**{**good, **change})

    bad = one.copy()
    bad[4] = np.nan
    call(r"z has shape \(3,\)", z=np.ones(3))
    call("z must be finite; found nan at index 4", z=bad)
    call("effect_variance must be finite and >= 0", effect_variance=-one)
    call("effect_variance must be finite and >= 0; found inf", effect_variance=np.inf * one)
    call("sample_size must be finite and > 0", sample_size=0.0)
    call("noise must be finite and > 0", noise=np.nan)
    call("z_solved must be finite", z_solved=bad)
    call("at least 2 are needed", probes=1)
    call("CG takes at least 1 step", max_steps=0)
    call("rtol is 2", rtol=2)
    call("solver is 'lu'", solver="lu")
    call("give a CoLA operator", operator=np.eye(M))
    call(r"has shape \(60, 3\)", operator=cola.ops.Dense(jnp.ones((M, 3))))
    call("give one of JAX arrays in float32 or float64", operator=cola.ops.Dense(jnp.ones((M, M), jnp.int32)))
    call("not symmetric", operator=cola.ops.Dense(jnp.eye(M) + jnp.asarray(np.triu(np.full((M, M), 0.1), 1))))
    call("diagonal is 2 at variant", operator=cola.ops.Dense(2 * jnp.eye(M)))
    call("not finite", operator=cola.ops.Dense(jnp.full((M, M), jnp.nan)))
    call("0.5 on its diagonal", operator=PrecisionOperator(cola.ops.Diagonal(jnp.full(M, 2.0))))
    call("diagonal is not the diagonal", operator=PrecisionOperator(cola.ops.Diagonal(jnp.ones(M)), diagonal=2 * one))
    call("z_solved is not used with a PrecisionOperator", operator=operator("precision")[1], z_solved=one)
    with pytest.raises(InputError, match="not positive definite"):
        PrecisionOperator.from_sparse(np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(InputError, match="finite and symmetric"):
        PrecisionOperator.from_sparse(np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(InputError, match="diagonal must be finite and > 0"):
        PrecisionOperator(cola.ops.Diagonal(-jnp.ones(M)))
    with pytest.raises(InputError, match="give an LDBlock"):
        log_likelihood(np.eye(M), one, one, sample_size=1e4)


def test_the_determinant_of_a_sparse_precision():
    P = np.linalg.inv(ar1(M, 0.7))
    found = PrecisionOperator.from_sparse(scipy.sparse.coo_array(P))
    assert float(found.log_det) == pytest.approx(np.linalg.slogdet(P)[1], rel=1e-10)
    np.testing.assert_allclose(found.diagonal, np.diagonal(P), rtol=1e-12)
    np.testing.assert_allclose(found.operator.to_dense(), P, atol=1e-12)
