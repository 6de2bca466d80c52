"""The CG engine where it is hard: heavy tails, several traits, few digits, damaged input; and on every platform."""

from __future__ import annotations

import warnings

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwas import ConvergenceWarning, InputError, LDBlock, likelihood, log_likelihood, log_likelihood_and_grad
from deepwas.likelihood import Factor, cg_log_densities, encode_factor, products
from tests import dense

M, K = 120, 39

# Outside jit every operation is compiled by itself, which takes longer.
cg_log_density = jax.jit(likelihood.cg_log_density, static_argnums=(6, 7, 8, 9, 10))
exact_log_density = jax.jit(likelihood.exact_log_density)


def heavy(rng: np.random.Generator, m: int = M, mean: float = 0.2) -> np.ndarray:
    """Log-normal of standard deviation 4: one entry in a hundred carries nearly everything."""
    c = np.exp(4 * rng.standard_normal(m))
    return c * mean / c.mean()


def spanning(rng: np.random.Generator, m: int = M) -> np.ndarray:
    """Twelve orders of magnitude."""
    return 10.0 ** rng.uniform(-13, -1, m)


def block_of(kind: str, scored: np.ndarray | None = None, seed: int = 3, **options) -> tuple[LDBlock, np.ndarray]:
    R = dense.ld_matrix(kind, M, np.random.default_rng(seed))
    return LDBlock.from_correlation(R, scored, **options), R


def leading(block: LDBlock) -> LDBlock:
    """K of the block's directions: one shape for LD of every kind, as each shape is compiled."""
    return LDBlock(block.factor[:K], block.whitener[:K], block.eigenvalues[:K], block.scored, block.restricted)


def flanked() -> np.ndarray:
    return (np.arange(M) >= M // 3) & (np.arange(M) < 2 * M // 3)


REGIMES = {
    "determinant below 1": {"kind": "ar1", "noise": 0.5, "sample_size": 1e2},
    "singular": {"kind": "duplicates"},
    "fewer people than variants": {"kind": "panel", "noise": 2.0},
    "flanks": {"kind": "panel", "scored": flanked()},
    "missing variants": {"kind": "ar1", "missing": True},
    "unequal sample sizes": {"kind": "ar1", "missing": True, "unequal": True},
    "N of a hundred": {"kind": "ar1", "sample_size": 1e2},
    "N of ten million": {"kind": "panel", "sample_size": 1e7},
    "N of ten million, full rank": {"kind": "ar1", "sample_size": 1e7},
    "twelve orders of magnitude": {"kind": "panel", "f": spanning},
    "heavy tails": {"kind": "ar1", "f": lambda rng: heavy(rng) / 1e4},
    "heavy tails, half the noise": {"kind": "panel", "f": lambda rng: heavy(rng) / 1e4, "noise": 0.5},
    "one enormous z": {"kind": "ar1", "enormous": True},
}


def problem(kind, *, scored=None, missing=False, unequal=False, sample_size=1e4, noise=1.0, f=None, enormous=False):
    """Block and z-scores, f, N, noise, and the dense float64 answer: value, gradients in f and in noise."""
    rng = np.random.default_rng(11)
    block, R = block_of(kind, scored)
    ratio = np.ones(M)
    if missing:
        observed = np.isin(np.arange(M), rng.permutation(M)[: flanked().sum()])
        ratio = rng.uniform(0.3, 1.5, M) if unequal else ratio
        block = block.restrict(observed, ratio if unequal else None)
    if block.k < M:
        block = leading(block)
    variance = rng.exponential(size=M) * 0.5 / M if f is None else f(rng)
    trait = dense.simulated_trait(R, rng, scored=block.scored, sample_size=sample_size, noise=noise)
    z = trait.z.copy()
    if enormous:
        z[len(z) // 2] = 60.0
    W = block.whitener
    to_all = W @ (np.sqrt(ratio[block.scored])[:, None] * R[block.scored])
    V = sample_size * (to_all * variance) @ to_all.T + noise * W @ R[np.ix_(block.scored, block.scored)] @ W.T
    inverse = np.linalg.inv(V)
    a = inverse @ (W @ z)
    value = -(len(V) * np.log(2 * np.pi) + np.linalg.slogdet(V)[1] + W @ z @ a) / 2
    d_f = sample_size * ((to_all.T @ a) ** 2 - np.einsum("kj,kj->j", to_all, inverse @ to_all)) / 2
    d_noise = (a @ a - np.trace(inverse)) / 2
    return block, z, variance, sample_size, noise, (value, d_f, d_noise)


@pytest.mark.parametrize("regime", REGIMES)
def test_value_and_gradients_are_dense_or_the_failure_is_said(regime):
    block, z, f, n, noise, (value, d_f, d_noise) = problem(**REGIMES[regime])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = log_likelihood_and_grad(
            block, z, f, sample_size=n, noise=noise, solver="cg", with_noise=True, info=True, key=jax.random.key(5)
        )
    info = found[3]
    assert bool(info.converged) == (not any(issubclass(w.category, ConvergenceWarning) for w in caught))
    if not info.converged:
        found = log_likelihood_and_grad(
            block, z, f, sample_size=n, noise=noise, solver="cholesky", with_noise=True, info=True
        )
        info = found[3]
    tiny = 1e-9
    assert abs(float(found[0]) - value) <= 2 * float(info.standard_error) + tiny * abs(value)
    assert np.linalg.norm(found[1] - d_f) <= 4 * float(info.gradient_error) + tiny * np.linalg.norm(d_f)
    assert abs(float(found[2]) - d_noise) <= 4 * float(info.noise_error) + tiny * (abs(d_noise) + block.k)


@pytest.mark.parametrize("regime", ["flanks", "N of ten million", "heavy tails, half the noise", "one enormous z"])
def test_in_float32_too(regime, float32):
    # With flanks, all of them: one shape.
    flanks = {"kind": "panel", "scored": flanked()}
    block, z, f, n, noise, (value, d_f, d_noise) = problem(**REGIMES[regime] | flanks)
    block = LDBlock(block.factor.astype(np.float32), block.whitener.astype(np.float32), block.eigenvalues, block.scored)
    found = log_likelihood_and_grad(
        block, z, f, sample_size=n, noise=noise, solver="cg", with_noise=True, info=True, key=jax.random.key(6)
    )
    info = found[3]
    assert info.solver == "cg"
    assert info.converged
    # Rounding of the whitened z-scores: |z| eps / sqrt(smallest eigenvalue), which the solver cannot know of.
    entered = 1e-6 * np.abs(z).max() * np.sqrt(block.k / block.eigenvalues[-1])
    assert abs(float(found[0]) - value) <= 2 * float(info.standard_error) + 1e-5 * abs(value) + entered
    slack = 2e-4 * np.linalg.norm(d_f) * (1 + entered)
    assert np.linalg.norm(found[1] - d_f) <= 4 * float(info.gradient_error) + slack
    assert abs(float(found[2]) - d_noise) <= 4 * float(info.noise_error) + 2e-4 * (abs(d_noise) + block.k)


@jax.jit
def _padded(y, G, c, noise, real, signs):
    """Value, gradients and diagnostics by CG with 4 preconditioned entries; value and gradients by Cholesky."""

    def estimate(c, noise):
        return cg_log_density(y, Factor.of(G), c, noise, real, signs, 1e-9, 60, 4)

    def exact(c, noise):
        return exact_log_density(y, Factor.of(G), c, noise, real)

    return (
        jax.value_and_grad(estimate, argnums=(0, 1), has_aux=True)(c, noise),
        jax.value_and_grad(exact, argnums=(0, 1))(c, noise),
    )


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 40),
    people=st.integers(3, 60),
    share=st.floats(0.05, 1.0),
    log_n=st.floats(2, 7),
    noise=st.floats(0.3, 3.0),
    seed=st.integers(0, 10_000),
)
def test_any_shape_and_mask(m, people, share, log_n, noise, seed):
    rng = np.random.default_rng(seed)
    R = dense.correlation(rng.standard_normal((people, m)))
    scored = rng.random(m) < share
    scored[rng.integers(m)] = True
    block = LDBlock.from_correlation(R, scored)
    G, y, real, c = np.zeros((40, 40)), np.zeros(40), np.zeros(40), np.zeros(40)
    G[: block.k, :m], real[: block.k] = block.factor, 1
    y[: block.k] = block.whiten(rng.standard_normal(block.s) * 3)
    c[:m] = 10**log_n * rng.exponential(size=m) / m * (rng.random(m) < 0.8)
    signs = jax.random.rademacher(jax.random.key(seed), (64, 40), float)
    ((value, found), (d_c, d_noise)), (exact, (c_exact, n_exact)) = _padded(y, G, c, noise, real, signs)
    # The exact one against the slow formula, for any mask.
    B = noise * np.eye(block.k) + (block.factor * c[:m]) @ block.factor.T
    a = np.linalg.solve(B, y[: block.k])
    slow = -(block.k * np.log(2 * np.pi) + np.linalg.slogdet(B)[1] + y[: block.k] @ a) / 2
    assert float(exact) == pytest.approx(slow, rel=1e-9)
    # 64 probes and 6 standard errors: the hardest of 40 drawn problems. Not converged counts as said.
    assert np.isfinite(float(value))
    if found.residual <= 1e-9:
        assert abs(float(value - exact)) <= 3 * float(found.standard_error) + 1e-7 * abs(slow)
        error, size = np.linalg.norm(d_c - c_exact), np.linalg.norm(c_exact)
        assert error <= 6 * float(found.gradient_error) + 1e-7 * size
        assert abs(float(d_noise - n_exact)) <= 6 * float(found.noise_error) + 1e-7 * (abs(float(n_exact)) + block.k)


def test_the_largest_entries_make_heavy_tails_easy():
    block, _R = block_of("ar1")
    rng = np.random.default_rng(0)
    c = 50 * heavy(rng)
    y = jnp.asarray(rng.standard_normal(block.k) * 3)
    G = Factor.of(block.device_factor)
    signs = jax.random.rademacher(jax.random.key(0), (16, block.k), float)
    exact = exact_log_density(y, G, jnp.asarray(c), jnp.asarray(1.0), jnp.ones(block.k))

    def run(rank):
        return cg_log_density(y, G, jnp.asarray(c), jnp.asarray(1.0), jnp.ones(block.k), signs, 1e-8, 200, rank)

    plain, low_rank = run(0), run(32)
    assert low_rank[1].residual <= 1e-8
    assert low_rank[1].steps < plain[1].steps / 3
    assert low_rank[1].standard_error < plain[1].standard_error / 10
    for value, found in (plain, low_rank):
        assert abs(float(value - exact)) <= 2 * float(found.standard_error)


@pytest.mark.parametrize("rank", [3, 1000])
def test_a_preconditioner_of_any_rank_changes_no_answer(rank):
    block, z, f, n, noise, (value, d_f, d_noise) = problem("panel", noise=0.6)
    found = log_likelihood_and_grad(
        block, z, f, sample_size=n, noise=noise, solver="cg", rank=rank, probes=256, with_noise=True, info=True
    )
    assert found[3].rank == min(rank, block.k)
    assert found[3].converged
    assert abs(float(found[0]) - value) <= 2 * float(found[3].standard_error)
    assert np.linalg.norm(found[1] - d_f) <= 4 * float(found[3].gradient_error)
    assert abs(float(found[2]) - d_noise) <= 4 * float(found[3].noise_error)


def test_auto_falls_back_to_cholesky_and_says_so():
    block, z, f, n, noise, (value, _, _) = problem("ar1", f=lambda rng: heavy(rng) / 1e4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Two steps are too few for either preconditioner.
        got, info = log_likelihood(block, z, f, sample_size=n, noise=noise, probes=2, max_steps=2, info=True)
        assert info.solver == "cholesky"
        assert info.converged
        assert float(got) == pytest.approx(value, rel=1e-9)
    with pytest.warns(ConvergenceWarning, match="stopped after 2 steps"):
        log_likelihood(block, z, f, sample_size=n, noise=noise, solver="cg", probes=2, max_steps=2)


# Several traits.


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_several_traits_at_once_are_the_same_as_one_by_one(solver):
    block, _R = block_of("panel", flanked())
    rng = np.random.default_rng(1)
    T = 3
    f = np.stack([heavy(rng) / 1e4, rng.exponential(size=M) / M, np.full(M, 1e-5)], axis=1)
    z = rng.standard_normal((block.s, T)) * 2
    n, noise = np.array([1e4, 3e4, 1e5]), np.array([0.7, 1.0, 1.3])
    mean = 1e-3 * rng.standard_normal((M, T))
    how = {"solver": solver, "rank": 0 if solver == "cg" else None, "with_noise": True, "info": True}
    values, d_f, d_noise, info = log_likelihood_and_grad(
        block, z, f, sample_size=n, noise=noise, effect_mean=mean, **how
    )
    assert values.shape == (T,)
    assert d_f.shape == (M, T)
    for t in range(T):
        value, one, at, said = log_likelihood_and_grad(
            block, z[:, t], f[:, t], sample_size=n[t], noise=noise[t], effect_mean=mean[:, t], **how
        )
        assert float(values[t]) == pytest.approx(float(value), rel=1e-9)
        np.testing.assert_allclose(d_f[:, t], one, rtol=1e-6, atol=1e-9 * float(jnp.abs(one).max()))
        assert float(d_noise[t]) == pytest.approx(float(at), rel=1e-8)
        assert float(info.residual[t]) == pytest.approx(float(said.residual), abs=1e-8)
    shared, *_ = log_likelihood_and_grad(block, z, f[:, 1], sample_size=1e4, **how)
    alone, *_ = log_likelihood_and_grad(block, z[:, 0], f[:, 1], sample_size=1e4, **how)
    assert float(shared[0]) == pytest.approx(float(alone), rel=1e-9)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"effect_variance": np.ones((M, 2))}, "effect_variance has shape"),
        ({"sample_size": np.ones(2)}, "sample_size has shape"),
        ({"noise": np.array([1.0, 0.0, 1.0])}, "noise must be finite and > 0; found 0.0 at index 1"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"rank": -1}, "rank is -1"),
        ({"rtol": 0.0}, "rtol is 0.0"),
    ],
)
def test_wrong_input_for_several_traits_is_refused(changed, message):
    block, _ = block_of("ar1")
    given = {"effect_variance": np.full(M, 1e-5), "sample_size": 1e4} | changed
    with pytest.raises(InputError, match=message):
        log_likelihood(block, np.zeros((block.s, 3)), **given)


def test_blocks_and_traits_share_one_solve():
    rng = np.random.default_rng(2)
    X, T, k, m = 3, 2, 24, 40
    G = rng.standard_normal((X, k, m)) / np.sqrt(m)
    c, y = rng.exponential(size=(X, T, m)), rng.standard_normal((X, T, k))
    noise = rng.uniform(0.5, 2, (X, T))
    signs = jax.random.rademacher(jax.random.key(0), (X, 8, k), float)
    real = jnp.ones((X, k))
    together = jax.jit(cg_log_densities, static_argnums=(6, 7))
    values, found = together(y, Factor.of(jnp.asarray(G)), c, noise, real, signs, 1e-10, 60)
    for x in range(X):
        for t in range(T):
            one, said = cg_log_density(
                y[x, t], Factor.of(jnp.asarray(G[x])), c[x, t], noise[x, t], real[x], signs[x], 1e-10, 60
            )
            assert float(values[x, t]) == pytest.approx(float(one), rel=1e-12)
            assert float(found.standard_error[x, t]) == pytest.approx(float(said.standard_error), rel=1e-6)


def test_fixed_steps_are_the_adaptive_ones_and_report_their_residual():
    block, z, f, n, _, _ = problem("ar1")
    y = jnp.asarray(block.whiten(z))
    signs = jax.random.rademacher(jax.random.key(0), (8, block.k), float)
    arguments = (y, Factor.of(block.device_factor), jnp.asarray(n * f), jnp.asarray(1.0), jnp.ones(block.k), signs)
    free = cg_log_density(*arguments, 1e-3, 100)
    steps = int(free[1].steps)
    assert 1 < steps < 30
    fixed = cg_log_density(*arguments, 0.0, steps)
    assert float(fixed[1].residual) == pytest.approx(float(free[1].residual), rel=0.5)
    assert float(fixed[0]) == pytest.approx(float(free[0]), abs=float(free[1].standard_error))
    few = cg_log_density(*arguments, 0.0, 2)
    assert few[1].steps == 2
    assert few[1].residual > 5 * fixed[1].residual


# Few digits.


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 2e-4), ("int8", 3e-3)])
def test_a_factor_of_few_digits_changes_the_loss_by_little(dtype, bound, record_property):
    for kind in ("ar1", "panel"):
        block, z, f, n, _, _ = problem(kind)
        block = leading(block)
        y, c = jnp.asarray(block.whiten(z)), jnp.asarray(n * f)
        ones = jnp.ones(block.k)
        exact = exact_log_density(y, Factor.of(block.device_factor), c, jnp.asarray(1.0), ones)
        few = encode_factor(block.factor, dtype)
        few = Factor(jnp.asarray(few.values), jnp.asarray(few.scale, float))
        value = exact_log_density(y, few, c, jnp.asarray(1.0), ones)
        error = abs(float(value - exact)) / abs(float(exact))
        record_property(f"{kind} {dtype}", error)
        assert 0 < error < bound
        signs = jax.random.rademacher(jax.random.key(0), (64, block.k), float)
        estimate, found = cg_log_density(y, few, c, jnp.asarray(1.0), ones, signs, 1e-8, 100)
        assert abs(float(estimate - value)) <= 2 * float(found.standard_error)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 6), m=st.integers(1, 9), small=st.floats(-9, 3))
def test_encoding_errs_by_no_more_than_it_says(seed, k, m, small):
    G = np.random.default_rng(seed).standard_normal((k, m)) * 10.0**small
    G[0, 0] = 0
    largest = np.abs(G).max(axis=1, keepdims=True)
    half = encode_factor(G, "float16")
    assert half.values.dtype == np.float16
    assert (np.abs(half.decoded() - G) <= np.maximum(np.abs(G) * 2.0**-11, largest * 2.0**-25) * 1.001).all()
    byte = encode_factor(G, "int8")
    assert byte.values.dtype == np.int8
    assert (np.abs(byte.decoded() - G) <= largest / 254 * 1.001).all()
    assert encode_factor(np.zeros((1, 3)), "int8").decoded().tolist() == [[0, 0, 0]]


def test_an_unknown_dtype_is_refused():
    with pytest.raises(InputError, match="bfloat16"):
        encode_factor(np.zeros((1, 1)), "bfloat16")


# Damaged input inside compiled code, where nothing can be raised.


def test_standard_errors_hold_over_keys_where_variance_is_concentrated():
    block, z, f, n, noise, (value, _, _) = problem(**REGIMES["heavy tails"])
    off = []
    for key in range(60):
        got, _, info = log_likelihood_and_grad(  # compiled above
            block, z, f, sample_size=n, noise=noise, solver="cg", key=jax.random.key(key), info=True
        )
        assert info.rank == 32  # chosen for its share of the variance
        off.append(abs(float(got) - value) / (float(info.standard_error) / 2))
    assert np.mean(np.array(off) > 4) <= 0.05
    assert np.median(off) < 1.5


@pytest.mark.parametrize("damage", ["y", "factor", "c", "infinite c", "one negative c", "noise", "no noise"])
@pytest.mark.parametrize("solver", ["rank 0", "rank 4", "cholesky"])
def test_nothing_wrong_passes_without_a_word(damage, solver):
    block, z, f, n, _, _ = problem("ar1")
    y, G, c, noise = block.whiten(z), block.factor.copy(), n * f, 1.0
    if damage == "y":
        y[3] = np.nan
    elif damage == "factor":
        G[3, 5] = np.nan
    elif damage == "c":
        c[7] = np.nan
    elif damage == "infinite c":
        c[7] = np.inf
    elif damage == "one negative c":
        c[7] = -1e-3
    else:
        noise = float("nan") if damage == "noise" else 0.0
    if solver == "cholesky":
        value = exact_log_density(y, Factor.of(jnp.asarray(G)), c, noise, jnp.ones(block.k))
        assert not np.isfinite(float(value))
        return
    signs = jax.random.rademacher(jax.random.key(0), (8, block.k), float)
    rank = int(solver[-1])
    value, found = cg_log_density(
        y, Factor.of(jnp.asarray(G)), c, noise, jnp.ones(block.k), signs, 1e-6, 50, rank, "highest", False
    )
    assert not (np.isfinite(float(value)) and found.residual <= 1e-6)


def waited(function, *arguments):
    """Run, and let the callbacks of the program run too."""
    jax.block_until_ready(function(*arguments))
    jax.effects_barrier()


@pytest.mark.parametrize("solver", ["cg", "cholesky"])
def test_what_compiled_code_cannot_refuse_warns(solver):
    block, z, f, n, _, _ = problem("ar1")
    f[3] = -1e-8  # the covariance stays positive definite
    ask = jax.jit(lambda f: log_likelihood(block, z, f, sample_size=n, solver=solver))
    with pytest.warns(ConvergenceWarning, match="negative"):
        waited(ask, f)


@pytest.mark.parametrize("of", ["effect_variance", "z"])
def test_a_gradient_that_does_not_converge_warns_outside_jit_too(of):
    block, z, f, n, _, _ = problem("ar1")

    def ask(z, f):
        return log_likelihood(block, z, f, sample_size=100 * n, solver="cg", max_steps=2)

    with pytest.warns(ConvergenceWarning, match="stopped after 2 steps"):
        waited(jax.grad(ask, argnums=int(of == "effect_variance")), z, f)


def test_rounding_of_cholesky_is_reported(float32):
    rng = np.random.default_rng(4)
    block, R = block_of("ar1")
    f = np.where(rng.random(M) < 0.05, 1e-3, 0)
    trait = dense.simulated_trait(R, rng, sample_size=1e7)
    expected = dense.log_density(np.asarray(block.whitener, float), trait._replace(f=f))
    value, info = log_likelihood(block, trait.z, f, sample_size=1e7, solver="cholesky", info=True)
    entered = 1e-6 * np.abs(trait.z).max() * np.sqrt(block.k / block.eigenvalues[-1])
    assert info.standard_error > 1e-4
    assert abs(float(value) - expected) <= 2 * float(info.standard_error) + entered * np.sqrt(
        abs(expected)
    ) + 1e-6 * abs(expected)


def test_damaged_ld_is_not_hidden_by_few_digits():
    G = np.ones((2, 3))
    G[1, 2] = np.nan
    with pytest.raises(InputError, match="1 entries that are not finite"):
        encode_factor(G, "int8")


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_accelerators_products_of_few_digits_are_those_of_float32(dtype, monkeypatch, float32):
    rng = np.random.default_rng(0)
    few = encode_factor(rng.standard_normal((2, 24, 40)) * np.exp(rng.standard_normal((2, 24, 1))), dtype)
    factor = Factor(jnp.asarray(few.values), jnp.asarray(few.scale))
    x = jnp.asarray(rng.standard_normal((2, 24, 5)) * 10.0 ** rng.integers(-6, 6, 5), jnp.float32)
    z = jnp.asarray(rng.standard_normal((2, 5, 40)), jnp.float32)
    plain = [products.project(x, factor), products.expand(z, factor)]
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    split = [products.project(x, factor), products.expand(z, factor)]
    rough = products.expand(z, factor, "default")
    for one, other in zip(plain, split, strict=True):
        size = jnp.abs(one).max(axis=(-1 if one is plain[0] else -2), keepdims=True)
        assert float((jnp.abs(one - other) / size).max()) < 3e-6
    assert 1e-5 < float(jnp.abs(rough - plain[1]).max() / jnp.abs(plain[1]).max()) < 3e-3


def test_zero_steps_are_refused():
    block, _ = block_of("ar1")
    signs = jnp.ones((2, block.k))
    with pytest.raises(ValueError, match="at least 1 step"):
        cg_log_density(
            jnp.zeros(block.k), Factor.of(block.device_factor), jnp.zeros(M), 1.0, jnp.ones(block.k), signs, 1e-6, 0
        )


def test_the_residual_is_the_true_one_where_it_is_worse():
    # In float32 the recurrence goes on falling when the solution no longer gets better.
    block, _ = block_of("ar1")
    rng = np.random.default_rng(0)
    c = jnp.asarray(heavy(rng), jnp.float32)
    y = jnp.asarray(rng.standard_normal(block.k), jnp.float32)
    G = Factor.of(jnp.asarray(block.factor, jnp.float32))
    signs = jax.random.rademacher(jax.random.key(0), (4, block.k), jnp.float32)
    arguments = (y, G, c, jnp.float32(1), jnp.ones(block.k, jnp.float32), signs, 1e-8, 60, 0, "highest")
    believed = cg_log_density(*arguments, False)[1].residual
    true = cg_log_density(*arguments, True)[1].residual
    assert believed <= 1e-8
    assert true > 5 * believed


# Every platform.


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("rank", [0, 8])
def test_a_step_lowers_for_cpu_cuda_and_tpu_with_full_precision(dtype, rank, float32):
    X, T, k, m, P = 2, 2, 32, 48, 4
    shape = jax.ShapeDtypeStruct
    factor = Factor(shape((X, k, m), dtype), shape((X, k), "float32"))

    def loss(c, noise, y, factor, real, signs):
        values, found = cg_log_densities(y, factor, c, noise, real, signs, 0.0, 4, rank)
        return jnp.sum(values), found.residual

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    exported = jax.export.export(step, platforms=["cpu", "cuda", "tpu"])(
        shape((X, T, m), "float32"),
        shape((X, T), "float32"),
        shape((X, T, k), "float32"),
        factor,
        shape((X, k), "float32"),
        shape((X, P, k), "float32"),
    )
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    products = [line for line in exported.mlir_module().splitlines() if "dot_general" in line]
    full = [line for line in products if "f32>, tensor" in line.split(":")[-1] and "f16" not in line]
    assert len(full) >= 4
    assert all("HIGHEST" in line for line in full), [line for line in full if "HIGHEST" not in line]
    halves = [line for line in products if "f16" in line]
    assert all("-> tensor" in line and line.rstrip().rsplit("->", 1)[1].count("f32") == 1 for line in halves)
    assert bool(halves) == (dtype != "float32")
