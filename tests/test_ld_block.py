"""The algebra of one whitened LD block, held against dense matrices."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from deepwas import InputError, LDBlock
from deepwas.likelihood.factor import encode_factor
from tests import dense

KINDS = ["ar1", "panel", "duplicates", "independent"]


def make(kind: str, m: int = 40, subset: bool = False, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    R = dense.ld_matrix(kind, m, rng)
    return R, dense.third(m, rng) if subset else np.ones(m, dtype=bool)


def density(block: LDBlock, trait: dense.Trait) -> float:
    """Log density of y = W z ~ N(0, noise I + N G diag(f) G^T), from what the block holds."""
    B = trait.noise * np.eye(block.k) + trait.sample_size * (block.factor * trait.f) @ block.factor.T
    return float(multivariate_normal(np.zeros(block.k), B).logpdf(block.whiten(trait.z)))


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
    value = density(block, trait)
    assert value == pytest.approx(dense.log_density(block.whitener, held), rel=1e-9)

    # The whole block holds R itself: the density is that of the matrix with the floor of `restrict`.
    floor = 0.5 * whole.eigenvalues[-1] * observed.sum() / 40
    direct = LDBlock.from_correlation(R, observed, eigenvalue_floor=floor)
    assert (block.k, block.s) == (direct.k, direct.s)
    expected = density(direct, trait)
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
    value = density(block, trait)
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
    value = density(block, trait)
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


def centre(m: int, low: int, high: int) -> np.ndarray:
    mask = np.zeros(m, dtype=bool)
    mask[low:high] = True
    return mask


def standardised(m: int, people: int, seed: int = 0) -> np.ndarray:
    X = dense.genotypes(m, people, np.random.default_rng(seed))
    return (X - X.mean(axis=0)) / X.std(axis=0)


@pytest.mark.parametrize("people", [25, 90])
@pytest.mark.parametrize("flanks", [False, True])
@pytest.mark.parametrize("rule", [{"eigenvalue_floor": 0.05}, {"variance_kept": 0.9}])
def test_genotypes_give_the_block_of_their_correlation(people, flanks, rule):
    X = standardised(60, people)
    R = X.T @ X / people
    scored = centre(60, 10, 50) if flanks else np.ones(60, dtype=bool)
    block, direct = (LDBlock.from_genotypes(X, scored, **rule), LDBlock.from_correlation(R, scored, **rule))
    np.testing.assert_allclose(block.eigenvalues, direct.eigenvalues, rtol=1e-10)
    np.testing.assert_array_equal(block.scored, scored)
    np.testing.assert_allclose(
        block.whitener @ R[np.ix_(scored, scored)] @ block.whitener.T, np.eye(block.k), atol=1e-10
    )
    np.testing.assert_allclose(block.whitener @ R[scored], block.factor, atol=1e-10)
    np.testing.assert_allclose(np.abs(block.factor), np.abs(direct.factor), atol=1e-8)
    squares = block.factor @ block.factor.T
    np.testing.assert_allclose(squares, np.diag(np.diagonal(squares)), atol=1e-10 * squares.max())
    assert (np.diff(np.diagonal(squares)) <= 1e-10 * squares.max()).all()
    narrow = LDBlock.from_genotypes(X.astype(np.float32), scored, **rule)
    assert narrow.factor.dtype == np.float32
    np.testing.assert_allclose(narrow.eigenvalues, block.eigenvalues, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_scored_rows_of_the_matrix_are_enough(kind):
    R, scored = make(kind, subset=True)
    whole, rows = LDBlock.from_correlation(R, scored), LDBlock.from_rows(R[scored], scored)
    np.testing.assert_allclose(rows.factor, whole.factor, atol=1e-13)
    np.testing.assert_allclose(rows.whitener, whole.whitener, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("observed_share", [0.2, 0.9])
@pytest.mark.parametrize("unequal", [False, True])
def test_restrict_with_flanks_is_the_density_of_the_observed_scores(kind, observed_share, unequal):
    """No direction is truncated that has support: the dense R says everything."""
    rng = np.random.default_rng(6)
    m = 60
    R, _ = make(kind, m)
    scored = centre(m, 20, 45)
    whole = LDBlock.from_correlation(R, scored, eigenvalue_floor=1e-8)
    observed = scored & (rng.random(m) < observed_share)
    observed[33] = True
    n = rng.uniform(5e3, 1e4, m) if unequal else np.full(m, 1e4)
    top = float(n[observed].max())
    block = whole.restrict(observed, np.where(observed, n / top, np.nan) if unequal else None)
    to_all = np.sqrt(n[observed] / top)[:, None] * R[observed]
    W = block.whitener
    inside = R[np.ix_(observed, observed)]
    np.testing.assert_allclose(W @ inside @ W.T, np.eye(block.k), atol=1e-7)
    np.testing.assert_allclose(W @ to_all, block.factor, atol=1e-7)
    trait = dense.simulated_trait(R, rng, scored=observed, sample_size=top, noise=0.7)
    V = W @ (top * to_all @ np.diag(trait.f) @ to_all.T + 0.7 * inside) @ W.T
    B = 0.7 * np.eye(block.k) + top * (block.factor * trait.f) @ block.factor.T
    y = W @ trait.z
    expected, value = (np.linalg.slogdet(A)[1] + y @ np.linalg.solve(A, y) for A in (V, B))
    assert value == pytest.approx(expected, rel=1e-7)
    assert block.k == np.linalg.matrix_rank(inside, tol=1e-7)
    squares = block.factor @ block.factor.T
    np.testing.assert_allclose(squares, np.diag(np.diagonal(squares)), atol=1e-9 * squares.max())


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000), m=st.integers(2, 30), floor=st.sampled_from([1e-4, 0.1, 0.5]))
def test_restricted_blocks_hold_the_truncated_ld(data, seed, m, floor):
    """With T the projection onto the kept directions of R_SS: R_OO is that of T R_SS, and R_O: that of T R_S:."""
    R, _ = make("panel", m, seed=seed)
    low = data.draw(st.integers(0, m - 1))
    high = data.draw(st.integers(low + 1, m))
    scored = centre(m, low, high)
    inside = R[np.ix_(scored, scored)]
    values, vectors = np.linalg.eigh(inside)
    whole = LDBlock.from_correlation(R, scored, eigenvalue_floor=floor)
    kept = vectors[:, values > floor]
    T = kept @ kept.T
    pick = np.array(data.draw(st.lists(st.booleans(), min_size=high - low, max_size=high - low)))
    pick[data.draw(st.integers(0, high - low - 1))] = True
    observed = scored.copy()
    observed[scored] = pick
    held, to_all = (T @ inside)[np.ix_(pick, pick)], (T @ R[scored])[pick]
    np.testing.assert_allclose(whole.loadings.T @ whole.loadings, T @ inside, atol=1e-9)
    try:
        block = whole.restrict(observed)
    except InputError:  # every direction of the observed ones is below the floor
        limit = 0.5 * whole.eigenvalues[-1] * pick.mean()
        assert np.linalg.eigvalsh(held)[-1] <= limit * (1 + 1e-9)
        return
    W = block.whitener
    np.testing.assert_allclose(W @ held @ W.T, np.eye(block.k), atol=1e-6)
    np.testing.assert_allclose(W @ to_all, block.factor, atol=1e-6)
    spectrum = np.linalg.eigvalsh(held)[::-1]
    limit = 0.5 * whole.eigenvalues[-1] * pick.mean()
    assert block.k == len(block.eigenvalues)
    np.testing.assert_allclose(block.eigenvalues, spectrum[: block.k], rtol=1e-6)
    assert (block.eigenvalues > limit * (1 - 1e-9)).all() or block is whole
    assert (spectrum[block.k :] <= limit * (1 + 1e-9)).all() or block is whole


@pytest.mark.parametrize("flanks", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_leading_part_is_the_block_of_the_fewer_eigenvalues(flanks, share):
    rng = np.random.default_rng(8)
    R, _ = make("ar1", 50)
    scored = centre(50, 15, 35) if flanks else np.ones(50, dtype=bool)
    whole = LDBlock.from_correlation(R, scored)
    part, direct = whole.leading(share), LDBlock.from_correlation(R, scored, variance_kept=share)
    assert part.k == direct.k < whole.k
    np.testing.assert_allclose(part.eigenvalues, direct.eigenvalues, rtol=1e-12)
    trait = dense.simulated_trait(R, rng, scored=scored)
    values = [density(b, trait) for b in (part, direct)]
    assert values[0] == pytest.approx(float(values[1]), rel=1e-9)
    assert whole.leading(1.0) is whole
    observed = scored & (rng.random(50) < 0.7)
    held = direct.restrict(observed)
    np.testing.assert_allclose(part.restrict(observed).eigenvalues, held.eigenvalues, rtol=1e-9)


@pytest.mark.parametrize("flanks", [False, True])
@pytest.mark.parametrize("unequal", [False, True])
def test_loadings_are_the_square_root_of_the_observed_ld(flanks, unequal):
    rng = np.random.default_rng(9)
    R, _ = make("ar1", 50)
    scored = centre(50, 15, 35) if flanks else np.ones(50, dtype=bool)
    observed = scored & (rng.random(50) < 0.7)
    block = LDBlock.from_correlation(R, scored).restrict(observed, rng.uniform(0.5, 1, 50) if unequal else None)
    L = block.loadings
    assert L.shape == (block.k, block.s)
    np.testing.assert_allclose(L.T @ L, R[np.ix_(observed, observed)], atol=1e-10)
    np.testing.assert_allclose(block.whitener @ L.T, np.eye(block.k), atol=1e-10)
    assert np.allclose(L, block.factor[:, observed], atol=1e-9) != unequal


@pytest.mark.parametrize("flanks", [False, True])
def test_rounding_of_the_factor_stays_out_of_loadings_and_whitener(flanks):
    """W'W and L'L, which no rotation changes, are those of the block whose factor was not rounded to 8 bits."""
    rng = np.random.default_rng(10)
    R, _ = make("panel", 60)
    scored = centre(60, 20, 45) if flanks else np.ones(60, dtype=bool)
    block = LDBlock.from_correlation(R, scored, eigenvalue_floor=1e-3)
    rough = replace(block, factor=encode_factor(block.factor, "int8").decoded().astype(np.float64))
    assert np.abs(rough.factor - block.factor).max() > 1e-4
    np.testing.assert_array_equal(rough.loadings, block.loadings)
    observed = scored & (rng.random(60) < 0.8)
    n = rng.uniform(0.5, 1, 60)
    for part in (
        lambda b: b.restrict(observed),
        lambda b: b.restrict(scored, n),
        lambda b: b.leading(0.9),
        lambda b: b.leading(0.9).restrict(observed),
    ):
        found, expected = part(rough), part(block)
        np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=1e-9)
        for a, b in ((found.whitener, expected.whitener), (found.loadings, expected.loadings)):
            np.testing.assert_allclose(a.T @ a, b.T @ b, atol=1e-8 * np.abs(b.T @ b).max())


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
    for again in (lambda b: b.restrict(some), lambda b: b.leading(0.5)):
        with pytest.raises(InputError, match="restricted already"):
            again(block.restrict(some))
    with pytest.raises(InputError, match=r"variant 0 of the block is observed but not scored by it \(2 such\)"):
        LDBlock.from_correlation(np.eye(4), np.array([False, False, True, True])).restrict(np.ones(4, dtype=bool))
    for share in (0.0, 1.1, np.nan):
        with pytest.raises(InputError, match="share of variance must be above 0"):
            block.leading(share)
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


def test_genotypes_and_rows_that_do_not_fit_are_refused():
    X = standardised(6, 40)
    with pytest.raises(InputError, match=r"variant 2 has mean square 4, not 1 \(1 such\): standardise"):
        LDBlock.from_genotypes(X * np.where(np.arange(6) == 2, 2, 1))
    with pytest.raises(InputError, match="variant 0 has mean square nan"):
        LDBlock.from_genotypes(np.where(np.arange(6) == 0, np.nan, X))
    with pytest.raises(InputError, match=r"people, variants.*\(6,\)"):
        LDBlock.from_genotypes(np.ones(6))
    with pytest.raises(InputError, match="eigenvalue_floor must be >= 0"):
        LDBlock.from_genotypes(X, eigenvalue_floor=-1)
    with pytest.raises(InputError, match="no eigenvalue"):
        LDBlock.from_genotypes(X, eigenvalue_floor=7)
    R, scored = X.T @ X / 40, np.arange(6) < 2
    with pytest.raises(InputError, match=r"2 of 6 variants are scored; their rows of R have \(3, 6\)"):
        LDBlock.from_rows(R[:3], scored)
    with pytest.raises(InputError, match=r"holds 1\.5, which is no correlation"):
        LDBlock.from_rows(np.where(np.arange(6) == 4, 1.5, R[:2]), scored)
    with pytest.raises(InputError, match="holds nan, which"):
        LDBlock.from_rows(np.where(np.arange(6) == 4, np.nan, R[:2]), scored)
