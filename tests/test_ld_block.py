"""The algebra of one whitened LD block, held against dense matrices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepwas import InputError, LDBlock, log_likelihood
from tests import dense

KINDS = ["ar1", "panel", "duplicates", "independent"]


def make(kind: str, m: int = 40, subset: bool = False, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    R = dense.ld_matrix(kind, m, rng)
    return R, dense.third(m, rng) if subset else np.ones(m, dtype=bool)


@pytest.mark.parametrize("subset", [False, True])
@pytest.mark.parametrize("m", [1, 2, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_whitener_whitens_and_factor_is_its_product_with_ld(kind, m, subset):
    R, scored = make(kind, m, subset)
    block = LDBlock.from_correlation(R, scored)
    W, G = block.whitener, block.factor
    assert (block.k, block.m, block.s) == (len(block.eigenvalues), m, scored.sum())
    assert W.dtype == G.dtype == block.eigenvalues.dtype == np.float64
    np.testing.assert_array_equal(block.scored, scored)
    np.testing.assert_allclose(W @ R[np.ix_(scored, scored)] @ W.T, np.eye(block.k), atol=1e-11)
    np.testing.assert_allclose(W @ R[scored], G, atol=1e-11)
    squares = G @ G.T
    np.testing.assert_allclose(squares, np.diag(np.diagonal(squares)), atol=1e-11 * squares.max())
    assert (np.diff(np.diagonal(squares)) <= 1e-11 * squares.max()).all()
    assert (np.diff(block.eigenvalues) <= 0).all()


def test_well_conditioned_ld_is_whitened_to_rounding():
    R, scored = make("ar1", 60, subset=True)
    block = LDBlock.from_correlation(R, scored)
    np.testing.assert_allclose(
        block.whitener @ R[np.ix_(scored, scored)] @ block.whitener.T, np.eye(block.k), atol=2e-14
    )
    np.testing.assert_allclose(block.whitener @ R[scored], block.factor, atol=2e-14)


@pytest.mark.parametrize("subset", [False, True])
def test_perfect_ld_leaves_one_direction_for_each_distinct_variant(subset):
    R, scored = make("duplicates", 40, subset)
    block = LDBlock.from_correlation(R, scored)
    assert block.k == len(np.unique(np.flatnonzero(scored) % 20)) == np.linalg.matrix_rank(R[np.ix_(scored, scored)])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    m=st.integers(1, 25),
    kind=st.sampled_from(KINDS),
    floor=st.floats(0, 1),
    share=st.floats(0.01, 1),
)
def test_floor_and_variance_kept_choose_the_eigenvalues_they_say(seed, m, kind, floor, share):
    R, _ = make(kind, m, seed=seed)
    spectrum = np.linalg.eigvalsh(R)[::-1]
    real = spectrum[spectrum > 1e-12 * m]
    above = real[real > floor]
    if len(above):
        np.testing.assert_allclose(LDBlock.from_correlation(R, eigenvalue_floor=floor).eigenvalues, above, rtol=1e-9)
    else:
        with pytest.raises(InputError, match="no eigenvalue"):
            LDBlock.from_correlation(R, eigenvalue_floor=floor)
    kept = LDBlock.from_correlation(R, variance_kept=share).eigenvalues
    np.testing.assert_allclose(kept, real[: len(kept)], rtol=1e-9)
    assert kept.sum() >= share * m * (1 - 1e-9)
    assert kept[:-1].sum() < share * m


def test_variance_kept_of_one_keeps_the_rank_and_no_rounding_error():
    R, _ = make("panel", 60)
    assert LDBlock.from_correlation(R, variance_kept=1.0).k == np.linalg.matrix_rank(R) < 60


def test_equal_input_gives_equal_output():
    R, scored = make("panel", 60, subset=True)
    first, second = (LDBlock.from_correlation(R.copy(), scored.copy()) for _ in range(2))
    np.testing.assert_array_equal(first.factor, second.factor)
    np.testing.assert_array_equal(first.whitener, second.whitener)


def test_a_block_is_rebuilt_from_factor_and_eigenvalues():
    R, _ = make("panel")
    block = LDBlock.from_correlation(R)
    again = LDBlock.from_factor(block.factor, block.eigenvalues)
    np.testing.assert_allclose(again.whitener, block.whitener, rtol=1e-13, atol=1e-14)
    np.testing.assert_array_equal(again.factor, block.factor)
    assert again.scored.all()
    assert again.s == block.s == 40
    assert LDBlock.from_factor(block.factor.astype(np.float32), block.eigenvalues).whitener.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("observed_share", [0.1, 0.5, 0.9])
def test_restrict_gives_the_density_of_the_observed_scores(kind, observed_share):
    rng = np.random.default_rng(3)
    R, _ = make(kind)
    whole = LDBlock.from_correlation(R, eigenvalue_floor=1e-3)
    observed = rng.random(40) < observed_share
    observed[7] = True
    block = whole.restrict(observed)
    trait = dense.simulated_trait(R, rng, scored=observed)
    held = trait._replace(R=whole.factor.T @ whole.factor)
    value = log_likelihood(block, trait.z, trait.f, sample_size=1e4, solver="cholesky")
    assert value == pytest.approx(dense.log_density(block.whitener, held), rel=1e-9)

    # The whole block holds R itself: the density is that of the matrix with the floor of `restrict`.
    floor = 0.5 * whole.eigenvalues[-1] * observed.sum() / 40
    direct = LDBlock.from_correlation(R, observed, eigenvalue_floor=floor)
    assert (block.k, block.s) == (direct.k, direct.s)
    expected = log_likelihood(direct, trait.z, trait.f, sample_size=1e4, solver="cholesky")
    assert value == pytest.approx(float(expected), rel=1e-8)
    np.testing.assert_allclose(block.eigenvalues, direct.eigenvalues, rtol=1e-8)


def test_restrict_of_a_truncated_block_uses_the_ld_that_the_block_holds():
    rng = np.random.default_rng(4)
    R, people = dense.example_ld(1000, 120)
    whole = LDBlock.from_correlation(R, eigenvalue_floor=120 / people)
    observed = rng.random(120) < 0.6
    block = whole.restrict(observed)
    low_rank = whole.factor.T @ whole.factor
    inside = low_rank[np.ix_(observed, observed)]
    assert 0 < block.k <= whole.k
    np.testing.assert_allclose(block.whitener @ inside @ block.whitener.T, np.eye(block.k), atol=1e-10)
    np.testing.assert_allclose(block.whitener @ low_rank[observed], block.factor, atol=1e-10)
    spectrum = np.linalg.eigvalsh(inside)[::-1]
    floor = 0.5 * whole.eigenvalues[-1] * observed.mean()
    np.testing.assert_allclose(block.eigenvalues, spectrum[spectrum > floor], rtol=1e-9)
    trait = dense.simulated_trait(R, rng, scored=observed)._replace(R=low_rank)
    value = log_likelihood(block, trait.z, trait.f, sample_size=1e4, solver="cholesky")
    assert value == pytest.approx(dense.log_density(block.whitener, trait), rel=1e-9)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_restrict_with_sample_sizes_is_the_model_with_one_n_per_variant(share):
    rng = np.random.default_rng(5)
    R, _ = make("panel", 60)
    whole = LDBlock.from_correlation(R)
    observed = rng.random(60) < share
    n = rng.uniform(2e3, 1e4, 60)
    top = n[observed].max()
    block = whole.restrict(observed, np.where(observed, n / top, np.nan))
    trait = dense.simulated_trait(R, rng, scored=observed, sample_size=top, noise=0.8)

    to_all = np.sqrt(n[observed])[:, None] * R[observed]
    V = block.whitener @ (to_all @ np.diag(trait.f) @ to_all.T + 0.8 * R[np.ix_(observed, observed)]) @ block.whitener.T
    y = block.whiten(trait.z)
    expected = -(block.k * np.log(2 * np.pi) + np.linalg.slogdet(V)[1] + y @ np.linalg.solve(V, y)) / 2
    value = log_likelihood(block, trait.z, trait.f, sample_size=top, noise=0.8, solver="cholesky")
    assert value == pytest.approx(expected, rel=1e-9)
    squares = block.factor @ block.factor.T
    np.testing.assert_allclose(squares, np.diag(np.diagonal(squares)), atol=1e-10 * squares.max())


def test_equal_sample_sizes_change_nothing():
    R, scored = make("panel", subset=True)
    whole = LDBlock.from_correlation(R)
    assert whole.restrict(np.ones(40, dtype=bool)) is whole
    plain, weighted = whole.restrict(scored), whole.restrict(scored, np.ones(40))
    np.testing.assert_allclose(weighted.factor, plain.factor, atol=1e-10)
    np.testing.assert_allclose(weighted.whitener, plain.whitener, atol=1e-10)


def test_whiten_takes_numpy_jax_and_several_traits():
    R, scored = make("ar1", subset=True)
    block = LDBlock.from_correlation(R, scored)
    z = np.random.default_rng(0).standard_normal((block.s, 3))
    expected = block.whitener @ z
    np.testing.assert_allclose(block.whiten(z), expected, rtol=1e-14)
    np.testing.assert_allclose(block.whiten(z[:, 0]), expected[:, 0], rtol=1e-13)
    on_device = block.whiten(jnp.asarray(z))
    assert isinstance(on_device, jax.Array)
    np.testing.assert_allclose(on_device, expected, rtol=1e-12)


def test_a_block_first_used_inside_jit_can_be_used_outside():
    block = LDBlock.from_correlation(make("ar1")[0])
    z = jnp.ones(40)
    traced = jax.jit(block.whiten)(z)
    np.testing.assert_allclose(traced, block.whiten(np.ones(40)), atol=1e-13)
    np.testing.assert_array_equal(np.asarray(block.device_whitener), block.whitener)


def test_dtype_follows_the_matrix_under_x64():
    R = np.eye(3)
    assert LDBlock.from_correlation(R).factor.dtype == np.float64
    assert LDBlock.from_correlation(R.astype(np.float32)).factor.dtype == np.float32
    assert LDBlock.from_correlation(R.astype(int)).factor.dtype == np.float64
    narrow = LDBlock.from_correlation(R, dtype=np.float32)
    assert narrow.factor.dtype == narrow.whitener.dtype == np.float32
    assert narrow.eigenvalues.dtype == np.float64


def test_dtype_is_float32_without_x64(float32):
    R, scored = make("panel", subset=True)
    block = LDBlock.from_correlation(R, scored)
    assert block.factor.dtype == block.whitener.dtype == np.float32
    # Decomposed in float64, rounded once.
    np.testing.assert_allclose(
        block.whitener @ R[np.ix_(scored, scored)] @ block.whitener.T, np.eye(block.k), atol=1e-5
    )


def one_changed(row: int, column: int, value: float) -> np.ndarray:
    R = np.eye(4)
    R[row, column] = value
    return R


@pytest.mark.parametrize(
    ("R", "message"),
    [
        (one_changed(1, 2, np.nan), r"nan at row 1, column 2 \(1 such\).*drop it"),
        (one_changed(1, 2, np.inf), "inf at row 1, column 2"),
        (np.eye(4) / 2, r"0\.5 on its diagonal \(variant 0\).*M \+ M\^T"),
        (one_changed(2, 2, 0.9), r"0\.9 on its diagonal \(variant 2\), not 1\.$"),
        (one_changed(0, 3, 0.4), r"not symmetric \(largest difference 0\.4\)"),
        (np.ones((2, 3)), r"square.*\(2, 3\)"),
        (np.ones(3), r"square.*\(3,\)"),
        (np.empty((0, 0)), "not empty"),
    ],
)
def test_what_is_not_a_correlation_matrix_is_refused(R, message):
    with pytest.raises(InputError, match=message):
        LDBlock.from_correlation(R)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scored": np.ones(3, dtype=bool)}, r"bool of shape \(4,\); got bool of shape \(3,\)"),
        ({"scored": np.ones(4)}, "got float64"),
        ({"scored": np.zeros(4, dtype=bool)}, "no variant of the block is scored"),
        ({"eigenvalue_floor": -1.0}, "eigenvalue_floor must be >= 0"),
        ({"eigenvalue_floor": np.nan}, "eigenvalue_floor must be >= 0"),
        ({"eigenvalue_floor": 2.0}, r"above the floor 2 \(the largest is 1\).*lower"),
        ({"variance_kept": 0.0}, r"variance_kept in \(0, 1\]"),
        ({"variance_kept": 1.5}, r"variance_kept in \(0, 1\]"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        LDBlock.from_correlation(np.eye(4), **options)


def test_wrong_restrictions_factors_and_scores_are_refused():
    block = LDBlock.from_correlation(np.eye(4))
    some = np.array([True, True, False, True])
    with pytest.raises(InputError, match="restricted already"):
        block.restrict(some).restrict(some)
    with pytest.raises(InputError, match="no variant"):
        block.restrict(np.zeros(4, dtype=bool))
    for bad in (0.0, -1.0, np.nan):
        with pytest.raises(InputError, match="positive and finite"):
            block.restrict(some, np.array([1, bad, 1, 1]))
    with pytest.raises(InputError, match=r"shape \(3,\); \(4,\) is expected"):
        block.restrict(some, np.ones(3))
    with pytest.raises(InputError, match=r"shape \(3,\); the block scores 4"):
        block.whiten(np.ones(3))
    with pytest.raises(InputError, match="positive eigenvalues"):
        LDBlock.from_factor(np.eye(4), [1, 1, 1, 0])
    with pytest.raises(InputError, match=r"\(4, 4\), \(3,\)"):
        LDBlock.from_factor(np.eye(4), np.ones(3))
