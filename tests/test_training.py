"""Sections, baseline, packing and objectives of training, against slow, obvious versions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from deepwas.errors import InputError
from deepwas.inputs import VariantInputs
from deepwas.ld.block import LDBlock
from deepwas.options import FitOptions
from deepwas.training.baseline import (
    Spectrum,
    fit_scale,
    jackknife_scale,
    log_density,
    moment_effect_variance,
    spectrum,
)
from deepwas.training.loop import _relative_rates
from deepwas.training.objective import Solve, ld_score_terms, likelihood_terms
from deepwas.training.packing import pack_blocks, plan_shapes
from deepwas.training.sections import (
    make_rotations,
    sections_by_chromosome,
    sections_held_out,
    split_sections,
    without_overlap,
)
from deepwas.training.trait import TraitBlock


def trait_blocks(sizes, seed=0, n=1e4, f=2e-5):
    """Blocks of AR(1) genotypes with z-scores from the model."""
    rng = np.random.default_rng(seed)
    blocks, start = [], 0
    for number, m in enumerate(sizes):
        R = 0.7 ** np.abs(np.subtract.outer(np.arange(m), np.arange(m)))
        block = LDBlock.from_correlation(R, eigenvalue_floor=0.3)
        beta = rng.normal(size=m) * np.sqrt(f)
        z = np.sqrt(n) * R @ beta + np.linalg.cholesky(R) @ rng.normal(size=m)
        blocks.append(
            TraitBlock(
                number,
                slice(start, start + m),
                block.factor.astype(np.float32),
                np.asarray(block.whiten(z), np.float32),
                z,
                np.ones(m, bool),
                n,
            )
        )
        start += m
    return blocks


# --- sections ---


@given(
    chromosomes=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    folds=st.integers(3, 6),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_sections_are_contiguous_complete_and_keep_chromosomes_whole(chromosomes, folds, data):
    names = [str(c) for c, count in enumerate(chromosomes) for _ in range(count)]
    sizes = data.draw(st.lists(st.integers(1, 1000), min_size=len(names), max_size=len(names)))
    units = len(chromosomes) if len(chromosomes) >= folds else len(names)
    if units < folds:
        with pytest.raises(InputError, match="cannot make"):
            split_sections(names, sizes, folds)
        return
    section = split_sections(names, sizes, folds)
    assert (np.diff(section) >= 0).all()
    assert set(section) == set(range(folds))
    if len(chromosomes) >= folds:
        for name in set(names):
            assert len({s for s, n in zip(section, names, strict=True) if n == name}) == 1


def test_equal_blocks_are_split_evenly():
    assert np.bincount(split_sections(["22"] * 25, [600] * 25, 5)).tolist() == [5] * 5


def test_each_block_is_tested_once_and_never_seen_by_its_network():
    section = split_sections(["1"] * 11, [5] * 11, 4)
    rotations = make_rotations(section)
    assert sorted(np.concatenate([r.test for r in rotations])) == list(range(11))
    for rotation in rotations:
        parts = [set(rotation.train), set(rotation.validation), set(rotation.test)]
        assert set.union(*parts) == set(range(11))
        assert sum(map(len, parts)) == 11


def test_blocks_that_reach_into_the_test_section_are_left_out():
    section = split_sections(["1"] * 12, [10] * 12, 4)
    scored = [slice(10 * i, 10 * i + 10) for i in range(12)]
    rotations = make_rotations(section)
    same, left = without_overlap(rotations, scored, scored)
    assert left.size == 0
    for before, after in zip(rotations, same, strict=True):
        assert all(np.array_equal(getattr(before, x), getattr(after, x)) for x in ("train", "validation", "test"))
    reach = 11  # one variant beyond the neighbour
    candidates = [slice(max(0, s.start - reach), s.stop + reach) for s in scored]
    parts, left = without_overlap(rotations, candidates, scored)
    for before, after in zip(rotations, parts, strict=True):
        tested = {row for i in after.test for row in range(scored[i].start, scored[i].stop)}
        for name in ("train", "validation"):
            clear = [
                i for i in getattr(before, name) if tested.isdisjoint(range(candidates[i].start, candidates[i].stop))
            ]
            assert getattr(after, name).tolist() == clear
        assert after.test.tolist() == before.test.tolist()
    assert [p.train.tolist() for p in parts] == [[6, 7, 8, 9, 10, 11], [0, 9, 10, 11], [0, 1, 2, 3], [3, 4, 5, 6]]
    assert [p.validation.tolist() for p in parts] == [[5], [8], [11], [0, 1, 2]]
    assert left.tolist() == list(range(1, 11))
    everywhere = [slice(0, 120)] * 12
    with pytest.raises(InputError, match="fewer folds, shorter windows"):
        without_overlap(rotations, everywhere, scored)


def test_sections_of_one_chromosome_each_and_of_those_held_out_by_name():
    chromosomes = ["1", "1", "2", "10", "10", "X"]
    assert sections_by_chromosome(chromosomes).tolist() == [0, 0, 1, 2, 2, 3]
    assert sections_held_out(chromosomes, ["chr10", "2"], ["X"]).tolist() == [2, 2, 0, 0, 0, 1]
    (rotation, *_) = make_rotations(sections_held_out(chromosomes, ["10"], ["1", "2"]))
    assert [x.tolist() for x in (rotation.train, rotation.validation, rotation.test)] == [[5], [0, 1, 2], [3, 4]]
    with pytest.raises(InputError, match="2 chromosome"):
        sections_by_chromosome(["1", "1", "2"])
    with pytest.raises(InputError, match=r"validation_chromosomes has .3.*There are 1, 2, 10, X"):
        sections_held_out(chromosomes, ["1"], ["3"])


def test_blocks_out_of_genome_order_are_refused():
    with pytest.raises(InputError, match="genome order"):
        split_sections(["1", "2", "1", "2"], [1] * 4, 3)
    with pytest.raises(InputError, match="at least 3"):
        split_sections(["1"] * 5, [1] * 5, 2)


# --- the constant prior ---


def test_spectrum_gives_the_dense_density_for_constant_and_other_priors():
    (block,) = trait_blocks([40])
    rng = np.random.default_rng(3)
    for c in (0.2, rng.exponential(size=40)):
        seen = spectrum(block.factor, block.whitened, c)
        G = block.factor.astype(float)
        for scale, noise in ((0.0, 1.0), (1.0, 0.5), (-2.0, 2.0)):
            B = noise * np.eye(len(G)) + np.exp(scale) * (G * c) @ G.T
            expected = multivariate_normal(np.zeros(len(G)), B).logpdf(block.whitened)
            # the factor is float32, so G G^T is diagonal to 1e-6 only
            assert log_density([seen], scale, noise)[0] == pytest.approx(expected, rel=1e-5)


def test_scale_and_noise_are_at_the_maximum_and_recover_the_truth():
    rng = np.random.default_rng(0)
    signal = rng.exponential(size=20_000) * 2
    blocks = [Spectrum(part, (0.7 * part + 1.3) * rng.chisquare(1, size=len(part))) for part in np.split(signal, 40)]
    fitted = fit_scale(blocks, noise=None)
    assert np.exp(fitted.log_scale) == pytest.approx(0.7, rel=0.05)
    assert fitted.noise == pytest.approx(1.3, rel=0.05)
    assert not fitted.no_signal
    best = log_density(blocks, fitted.log_scale, fitted.noise).sum()
    assert best == pytest.approx(fitted.log_likelihood, rel=1e-12)
    for da, db in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)):
        assert log_density(blocks, fitted.log_scale + da, fitted.noise * np.exp(db)).sum() < best
    held = fit_scale(blocks, noise=1.3)
    assert held.noise == 1.3
    assert np.exp(held.log_scale) == pytest.approx(0.7, rel=0.05)


def test_no_signal_is_said():
    blocks = [Spectrum(np.ones(50), np.full(50, 0.5))]
    assert fit_scale(blocks, noise=1.0).no_signal


def test_jackknife_is_the_spread_over_repetitions():
    rng = np.random.default_rng(5)
    signal = [rng.exponential(size=40) for _ in range(60)]
    estimates, errors = [], []
    for _ in range(60):
        blocks = [Spectrum(s, (0.8 * s + 1) * rng.chisquare(1, size=len(s))) for s in signal]
        fitted = fit_scale(blocks, noise=None)
        estimates.append(np.exp(fitted.log_scale))
        errors.append(jackknife_scale(blocks, fitted, noise=None)[0])
    spread = np.std(estimates, ddof=1)
    assert np.mean(errors) == pytest.approx(spread, rel=4 / np.sqrt(2 * 59))
    with pytest.raises(InputError, match="at least 3"):
        jackknife_scale(blocks[:2], fitted, noise=None)


def test_jackknife_leaves_each_block_out():
    rng = np.random.default_rng(6)
    blocks = [Spectrum(rng.exponential(size=30), rng.chisquare(1, size=30) * 2) for _ in range(7)]
    fitted = fit_scale(blocks, noise=None)
    error, left_out = jackknife_scale(blocks, fitted, noise=None)
    slow = [np.exp(fit_scale(blocks[:i] + blocks[i + 1 :], noise=None).log_scale) for i in range(7)]
    np.testing.assert_allclose(left_out, slow, rtol=1e-4, atol=1e-6)
    assert error == pytest.approx(np.sqrt(6 / 7 * np.sum((slow - np.mean(slow)) ** 2)), rel=1e-3)


def test_moment_estimate_recovers_the_effect_variance():
    rng = np.random.default_rng(1)
    scores = rng.uniform(1, 50, size=200_000)
    z = rng.normal(size=scores.size) * np.sqrt(1 + 1e5 * 2e-6 * scores)
    assert moment_effect_variance(z, scores, np.full(scores.size, 1e5)) == pytest.approx(2e-6, rel=0.03)
    assert moment_effect_variance(np.zeros(3) + 0.5, np.ones(3), np.ones(3)) > 0


# --- packing ---


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 900)), min_size=1, max_size=60), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_shapes_hold_every_block_once(sizes, most):
    groups = plan_shapes(sizes, max_shapes=most)
    assert sorted(i for g in groups for i in g) == list(range(len(sizes)))
    assert 1 <= len(groups) <= most
    volumes = [len(g) * max(sizes[i][0] for i in g) * max(sizes[i][1] for i in g) for g in groups]
    whole = len(sizes) * max(k for k, _ in sizes) * max(m for _, m in sizes)
    assert sum(volumes) <= 1.15 * whole


def test_two_kinds_of_blocks_get_two_shapes():
    sizes = [(10, 20)] * 30 + [(300, 700)] * 2
    assert [len(g) for g in plan_shapes(sizes)] == [30, 2]


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_padded_batches_give_each_blocks_own_likelihood(solver, noise):
    blocks = trait_blocks([12, 30, 31, 50])
    buckets = pack_blocks(blocks, max_shapes=2)
    assert len(buckets) == 2
    rng = np.random.default_rng(0)
    f = rng.exponential(size=123) * 3e-5
    values = f[:, None].astype(np.float32)
    inputs = VariantInputs(values)
    packed = [inputs.gather([blocks[i].rows for i in b.member], b.shape[1]).annotations for b in buckets]
    solve = Solve("cg", probes=64, rtol=1e-6, max_steps=40) if solver == "cg" else Solve("cholesky")
    for bucket, values in zip(buckets, packed, strict=True):
        arrays = jax.tree.map(jnp.asarray, bucket)
        terms = jax.jit(likelihood_terms, static_argnames="solve")
        found, residual = terms(arrays, jnp.asarray(values[..., 0]), jnp.float32(noise), jax.random.key(0), solve=solve)
        assert float(residual.max()) <= 1e-6
        for i, value in zip(bucket.member, found, strict=True):
            b = blocks[i]
            B = noise * np.eye(len(b.whitened)) + (b.factor * (b.sample_size * f[b.rows])) @ b.factor.T
            expected = multivariate_normal(np.zeros(len(B)), B).logpdf(b.whitened)
            assert float(value) == pytest.approx(expected, rel=1e-4, abs=0.3 if solver == "cg" else 1e-3)


def test_ld_score_terms_are_the_weighted_squares_of_regression():
    (block,) = trait_blocks([25])
    (bucket,) = pack_blocks([block])
    bucket = jax.tree.map(jnp.asarray, bucket)
    f = np.random.default_rng(0).exponential(size=25) * 1e-5
    padded = np.zeros((1, bucket.shape[1]), np.float32)
    padded[0, :25] = f
    found, _ = ld_score_terms(
        bucket, jnp.asarray(padded), jnp.float32(1.1), n_panel=500, constant=(jnp.float32(1e-5), jnp.float32(1.2))
    )
    R = block.factor.T @ block.factor
    total = 0.0
    for j in range(25):
        adjusted = [R[j, k] ** 2 - (1 - R[j, k] ** 2) / 498 for k in range(25)]
        score = sum(adjusted)
        weight = 1 / (max(score, 1) * max(1.2 + 1e4 * 1e-5 * score, 1) ** 2)
        expected = 1.1 + 1e4 * sum(a * v for a, v in zip(adjusted, f, strict=True))
        total += weight * (block.z[j] ** 2 - expected) ** 2
    assert float(found[0]) == pytest.approx(-total, rel=1e-4)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.5), (10, 0.0), (10, 0.2), (4, 0.9)])
def test_no_step_has_a_rate_of_0(steps, warmup):
    rates = _relative_rates(FitOptions(steps=steps, warmup=warmup))
    warm = round(warmup * steps)
    assert rates.shape == (steps,)
    assert rates.min() > 0.04
    assert rates.max() == 1
    assert (np.diff(rates[:warm]) > 0).all()
    assert (np.diff(rates[max(warm - 1, 0) :]) <= 0).all()
    if warm < steps:
        assert rates[warm] == 1
