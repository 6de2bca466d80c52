"""Enrichment of heritability: derivatives, maximum, jackknife, definitions; each against the slow, obvious formula."""

from __future__ import annotations

import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from scipy.stats import t as student

import deepwas
from deepwas.cli import main
from deepwas.enrichment import enrichment_of_blocks, enrichment_of_prior
from deepwas.enrichment_plot import _log_axis
from deepwas.enrichment_reml import SHIFT, SoftplusLikelihood, block_terms, maximise, softplus
from deepwas.errors import DataWarning, DeepwasError, InputError
from deepwas.ld import LDBlock
from deepwas.likelihood import Factor, exact_log_density
from deepwas.specs import validate_table
from deepwas.training.trait import TraitBlock
from tests.dense import ld_matrix
from tests.synthetic import write_problem

N = 50_000.0
NAMES = ("rare", "frequent", "score")


@dataclass(frozen=True)
class Simulated:
    """Blocks of one trait, annotations (M, 3), true f (M,)."""

    blocks: list[TraitBlock]
    x: np.ndarray
    f: np.ndarray


def simulated(count: int, m: int = 60, *, weights: tuple[float, ...] = (4.0, -1.0, 0.6), seed: int = 0) -> Simulated:
    """Blocks of one R, decaying with distance, with z-scores from the model; mean N f is 0.5."""
    rng = np.random.default_rng(seed)
    M = count * m
    x = np.column_stack([rng.random(M) < 0.06, rng.random(M) < 0.4, rng.normal(2, 0.8, M)]).astype(np.float32)
    f = softplus(SHIFT + (x - x.mean(axis=0)).astype(float) @ np.array(weights))
    f *= 0.5 / N / f.mean()
    R = 0.8 ** np.abs(np.subtract.outer(np.arange(m), np.arange(m)))
    ld, half = LDBlock.from_correlation(R, eigenvalue_floor=0.2), np.linalg.cholesky(R)
    blocks = []
    for b in range(count):
        own = slice(b * m, (b + 1) * m)
        z = np.sqrt(N) * R @ (rng.normal(size=m) * np.sqrt(f[own])) + half @ rng.normal(size=m)
        y = np.asarray(ld.whiten(z), np.float32)
        blocks.append(TraitBlock(b, own, np.asarray(ld.factor, np.float32), y, z, np.ones(m, bool), N))
    return Simulated(blocks, x, f)


@pytest.fixture(scope="module")
def trait():
    return simulated(80)


@pytest.fixture(scope="module")
def found(trait):
    return enrichment_of_blocks(trait.blocks, trait.x, NAMES)


@pytest.mark.parametrize(("kind", "scale"), [("ar1", 1e-2), ("panel", 3.0), ("duplicates", 30.0)])
def test_terms_of_a_block_are_those_of_the_dense_density(kind, scale):
    rng = np.random.default_rng(1)
    m = 24
    block = LDBlock.from_correlation(ld_matrix(kind, m, rng), eigenvalue_floor=1e-3)
    G = np.asarray(block.factor, np.float64)
    k = len(G)
    y, x, noise = rng.normal(size=k), rng.normal(size=(m, 2)), 0.8
    theta = np.array([0.3, -0.7])

    def density(theta, log_noise):
        c = scale * jax.nn.softplus(SHIFT + jnp.asarray(x) @ theta)
        factor = Factor(jnp.asarray(G), jnp.ones(k))
        return exact_log_density(jnp.asarray(y), factor, c, jnp.exp(log_noise), jnp.ones(k))

    value, (by_theta, by_noise) = jax.value_and_grad(density, argnums=(0, 1))(jnp.asarray(theta), jnp.log(noise))
    u = SHIFT + x @ theta
    rise = 1 / (1 + np.exp(-u))
    c, slope, curvature = scale * softplus(u), scale * rise, scale * rise * (1 - rise)
    terms = block_terms(G, y, x, c, slope, curvature, noise)
    assert terms.value == pytest.approx(float(value), rel=1e-10)
    np.testing.assert_allclose(terms.score, [*by_theta, by_noise], rtol=1e-8)
    B = noise * np.eye(k) + (G * c) @ G.T
    assert terms.value == pytest.approx(multivariate_normal(np.zeros(k), B).logpdf(y), rel=1e-9)
    moves = [(G * slope * x[:, i]) @ G.T for i in range(2)] + [noise * np.eye(k)]
    bends = [[(G * curvature * x[:, i] * x[:, j]) @ G.T for i in range(2)] for j in range(2)]
    a, inverse = np.linalg.solve(B, y), np.linalg.inv(B)
    q = np.stack([dB @ a for dB in moves])
    expected = q @ np.linalg.solve(B, q.T) / 2
    expected[:2, :2] -= [[(a @ dB @ a - np.sum(inverse * dB)) / 2 for dB in row] for row in bends]
    expected[2, 2] -= noise * (a @ a - np.trace(inverse)) / 2
    np.testing.assert_allclose(terms.information, expected, rtol=1e-8)


def test_the_information_is_the_fisher_information_on_average():
    """E[I_ij] = tr(B^-1 B_i B^-1 B_j) / 2, over draws of y from the model, curved link or not."""
    rng = np.random.default_rng(2)
    G = np.asarray(LDBlock.from_correlation(ld_matrix("ar1", 12, rng)).factor)
    k, c, x, slope, curvature = len(G), *(rng.exponential(size=s) for s in (12, (12, 2), 12, 12))
    B = np.eye(k) + (G * c) @ G.T
    moves = [np.linalg.solve(B, (G * slope * x[:, i]) @ G.T) for i in range(2)] + [np.linalg.inv(B)]
    fisher = [[np.sum(a * b.T) / 2 for b in moves] for a in moves]
    root = np.linalg.cholesky(B)
    draws = np.array([block_terms(G, root @ rng.normal(size=k), x, c, slope, curvature, 1.0)[2] for _ in range(4000)])
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - fisher) < 4 * error).all()


@pytest.mark.parametrize("noise", [None, 1.2])
def test_the_search_ends_at_the_maximum(trait, noise):
    """The same likelihood by another route: dense normal densities, maximised without derivatives of ours."""
    some = trait.blocks[:12]
    x = trait.x[: some[-1].rows.stop]
    model = SoftplusLikelihood(some, x, 0.5 / N, np.arange(12), noise)
    start = np.zeros(model.n_parameters)
    found = maximise(model, start)
    G = np.asarray(some[0].factor, np.float64)

    def minus(theta):
        f = 0.5 / N * softplus(SHIFT + theta[0] + x @ theta[1:4])
        level = noise or np.exp(theta[4])
        parts = []
        for b in some:
            B = level * np.eye(len(G)) + (G * (N * f[b.rows])) @ G.T
            _, log_det = np.linalg.slogdet(B)
            parts.append(log_det + b.whitened @ np.linalg.solve(B, b.whitened) + len(G) * np.log(2 * np.pi))
        return sum(parts) / 2

    other = minimize(minus, start, method="BFGS", options={"gtol": 1e-4})
    assert found.history[-1] == pytest.approx(-minus(found.theta), rel=1e-10)
    assert found.history[-1] >= -other.fun - 1e-5
    np.testing.assert_allclose(found.theta, other.x, atol=2e-2)
    assert np.all(np.diff(found.history) > 0)
    assert found.decrement < 1e-6
    assert not found.flat


def test_true_enrichment_lies_within_the_standard_errors(trait, found):
    inside = trait.x.astype(float)
    true = (inside.T @ trait.f) / trait.f.sum() / inside.mean(axis=0)
    assert (np.abs(found.enrichment.value - true) < 3 * found.enrichment.standard_error).all()
    assert (found.enrichment.standard_error < 0.3 * true).all()
    assert abs(found.h2.value - trait.f.sum()) < 3 * found.h2.standard_error
    assert abs(found.noise.value - 1) < 3 * found.noise.standard_error
    assert found.table()["Enrichment_p"][1] < 1e-3


def test_one_step_jackknife_is_close_to_refitting(trait):
    """With as few as 80 blocks in 10 groups: each estimate without a group moves as the refitted one does."""
    one, exact = (
        enrichment_of_blocks(trait.blocks, trait.x, NAMES, jackknife=kind, groups=10) for kind in ("one-step", "refit")
    )
    for name in ("h2", "enrichment", "coefficient", "noise"):
        a, b = getattr(one, name), getattr(exact, name)
        np.testing.assert_allclose(a.value, b.value, rtol=1e-9)
        np.testing.assert_allclose(a.standard_error, b.standard_error, rtol=0.3)
        moved, refitted = (np.atleast_2d((x.left_out - x.value).T) for x in (a, b))
        for own, other in zip(moved, refitted, strict=True):
            assert np.corrcoef(own, other)[0, 1] > 0.95, name


def test_refitting_is_fitting_without_the_group(trait):
    exact = enrichment_of_blocks(trait.blocks[:20], trait.x[:1200], NAMES, jackknife="refit", groups=4, noise=1.0)
    model = SoftplusLikelihood(
        trait.blocks[5:20], _standard(trait.x[:1200]), exact.model["base"], np.zeros(15, int), 1.0
    )
    rest = maximise(model, np.zeros(4))
    f = model.base * softplus(SHIFT + model.scores(slice(0, 1200), rest.theta))
    assert exact.h2.left_out[0] == pytest.approx(f.sum(), rel=1e-3)
    np.testing.assert_allclose(exact.h2_of.left_out[0], trait.x[:1200].T.astype(float) @ f, rtol=1e-3)


def _standard(x):
    wide = x.astype(np.float64)
    return ((wide - wide.mean(axis=0)) / wide.std(axis=0)).astype(np.float32)


def test_figures_are_those_of_the_fitted_prior(trait, found):
    """Intercept and weights, as reported, give back every figure by its definition."""
    x = trait.x.astype(np.float64)
    u = SHIFT + found.model["intercept"] + x @ np.array([found.model["weights"][name] for name in NAMES])
    f = found.model["base"] * softplus(u)
    assert found.h2.value == pytest.approx(f.sum(), rel=1e-5)
    np.testing.assert_allclose(found.h2_of.value, x.T @ f, rtol=1e-5)
    np.testing.assert_allclose(found.enrichment.value, x.T @ f / f.sum() / x.mean(axis=0), rtol=1e-5)
    outside = ((1 - x).T @ f) / (1 - x).sum(axis=0)
    np.testing.assert_allclose(found.difference.value, (x.T @ f) / x.sum(axis=0) - outside, rtol=1e-4)
    step = 1e-4
    for j, name in enumerate(NAMES):
        moved = found.model["base"] * softplus(u + step * found.model["weights"][name])
        assert found.coefficient.value[j] == pytest.approx(np.mean(moved - f) / step, rel=1e-3)
    np.testing.assert_allclose(found.tau_star.value, found.coefficient.value * x.std(axis=0) / f.mean(), rtol=1e-4)


def test_units_of_the_annotations_do_not_matter(trait, found):
    other = enrichment_of_blocks(trait.blocks, trait.x * np.float32(250), NAMES)
    np.testing.assert_allclose(other.enrichment.value, found.enrichment.value, rtol=1e-4)
    np.testing.assert_allclose(other.coefficient.value, found.coefficient.value / 250, rtol=1e-4)
    np.testing.assert_allclose(other.enrichment.standard_error, found.enrichment.standard_error, rtol=1e-3)


def test_the_table_is_that_of_s_ldsc_and_more(trait, found):
    table = found.table()
    validate_table(table, "enrichment", "table")
    assert table.columns[:10] == [
        "Category", "Prop._SNPs", "Prop._h2", "Prop._h2_std_error", "Enrichment", "Enrichment_std_error",
        "Enrichment_p", "Coefficient", "Coefficient_std_error", "Coefficient_z-score",
    ]  # fmt: skip
    base = table.row(0, named=True)
    assert (base["Category"], base["Enrichment"], base["Enrichment_p"], base["Coefficient"]) == ("base", 1, None, None)
    assert base["h2"] == pytest.approx(found.h2.value, rel=1e-6)
    row = table.row(1, named=True)
    assert row["Prop._SNPs"] == pytest.approx(trait.x[:, 0].mean(), rel=1e-6)
    assert row["Enrichment"] == pytest.approx(row["Prop._h2"] / row["Prop._SNPs"], rel=1e-6)
    left, g = found.enrichment.left_out[:, 0], 80
    assert row["Enrichment_std_error"] == pytest.approx(np.sqrt(g - 1) * left.std(), rel=1e-6)
    z = found.difference.value[0] / (np.sqrt(g - 1) * found.difference.left_out[:, 0].std())
    assert row["Enrichment_p"] == pytest.approx(2 * student.sf(abs(z), g - 1), rel=1e-5)
    reach = np.exp(student.ppf(0.975, g - 1) * np.sqrt(g - 1) * np.log(left).std())
    assert row["Enrichment_lower"] == pytest.approx(row["Enrichment"] / reach, rel=1e-5)
    assert row["Enrichment_upper"] == pytest.approx(row["Enrichment"] * reach, rel=1e-5)
    assert table["Binary"].to_list() == [True, True, True, False]


def test_a_signed_annotation_has_a_test_but_no_enrichment(trait):
    x = trait.x.copy()
    x[:, 2] -= x[:, 2].mean(dtype=np.float64)
    found = enrichment_of_blocks(trait.blocks, x, NAMES)
    row = found.table().row(3, named=True)
    assert (row["Enrichment"], row["Enrichment_lower"]) == (None, None)
    plain = enrichment_of_blocks(trait.blocks, trait.x, NAMES).table().row(3, named=True)
    for name in ("Coefficient", "Coefficient_z-score", "Enrichment_p"):
        assert row[name] == pytest.approx(plain[name], rel=1e-3)


def test_an_annotation_without_heritability_comes_to_its_bound():
    trait = simulated(60, weights=(0.0, -30.0, 0.0), seed=1)
    with pytest.warns(DataWarning, match=r"annotation frequent: an effect variance of 0"):
        found = enrichment_of_blocks(trait.blocks, trait.x, NAMES)
    assert found.bound.tolist() == [False, True, False]
    assert found.enrichment.value[1] < 1e-3
    table = found.table()
    validate_table(table, "enrichment", "table")
    row = table.row(2, named=True)
    assert [row[c] for c in ("Enrichment_std_error", "Enrichment_p", "Enrichment_upper")] == [None] * 3
    assert table["Enrichment_std_error"][1] > 0.1
    true = trait.x[:, 0].astype(float) @ trait.f / trait.f.sum() / trait.x[:, 0].mean(dtype=float)
    assert abs(found.enrichment.value[0] - true) < 3 * table["Enrichment_std_error"][1]


@pytest.mark.parametrize("coded", [lambda x: x, lambda x: 1 - x, lambda x: x + 100])
def test_an_annotation_of_one_group_of_blocks_has_no_error(trait, coded):
    """Nothing is known of it without that group, and its jackknife would say that it is known exactly."""
    block, rng = np.arange(len(trait.x)) // 60, np.random.default_rng(5)
    one = coded(((block == 7) & (rng.random(len(block)) < 0.5)).astype(np.float32))
    with pytest.warns(DataWarning, match=r"annotation local: one of the 30 groups of LD blocks holds more than 80%"):
        found = enrichment_of_blocks(
            trait.blocks[:30], np.column_stack([trait.x, one])[:1800], (*NAMES, "local"), noise=1.0
        )
    assert found.one_group.tolist() == [False, False, False, True]
    assert not found.bound.any()
    table = found.table()
    validate_table(table, "enrichment", "table")
    row = table.row(4, named=True)
    errors = [name for name in table.columns if name.endswith(("std_error", "_p", "z-score", "_lower", "_upper"))]
    assert len(errors) == 9
    assert [row[name] for name in errors] == [None] * 9
    assert row["Enrichment"] is not None
    assert table["Enrichment_std_error"][1] > 0.1


def test_an_annotation_spread_over_five_groups_of_blocks_has_an_error(trait):
    block, rng = np.arange(len(trait.x)) // 60, np.random.default_rng(5)
    five = (np.isin(block, [3, 8, 14, 20, 26]) & (rng.random(len(block)) < 0.5)).astype(np.float32)
    found = enrichment_of_blocks(
        trait.blocks[:30], np.column_stack([trait.x, five])[:1800], (*NAMES, "local"), noise=1.0
    )
    assert not found.one_group.any()
    assert found.table()["Enrichment_std_error"][4] > 0


def test_missing_values_become_the_mean_and_are_counted(trait):
    x = trait.x.copy()
    x[::50, 2] = np.nan
    found = enrichment_of_blocks(trait.blocks[:30], x, NAMES, noise=1.0)
    (row,) = [r for r in found.tally.rows if "score" in r.reason]
    assert (row.action, row.count) == ("changed", len(x[::50]))
    assert found.noise.value == 1
    assert found.noise.standard_error == 0


def test_a_given_prior_has_the_jackknife_of_its_ratios():
    rng = np.random.default_rng(4)
    block = np.repeat(np.arange(10, 22), 30)
    f, x = rng.exponential(size=360), np.column_stack([rng.random(360) < 0.2, rng.exponential(size=360)])
    x = x.astype(np.float32)
    found = enrichment_of_prior(f, block, x, ("in", "score"))

    def ratio(rows):
        return (x[rows].T.astype(float) @ f[rows]) / f[rows].sum() / x[rows].mean(axis=0, dtype=float)

    left = np.array([ratio(block != b) for b in range(10, 22)])
    np.testing.assert_allclose(found.enrichment.value, ratio(block > 0), rtol=1e-6)
    np.testing.assert_allclose(found.enrichment.standard_error, np.sqrt(11) * left.std(axis=0), rtol=1e-5)
    table = found.table()
    validate_table(table, "enrichment", "table")
    assert table["Coefficient"].null_count() == table["Enrichment_p"].null_count() == 3
    with pytest.raises(DeepwasError, match="no coefficients"):
        _ = found.tau_star


@pytest.mark.parametrize(
    "values", [[1.02, 0.97, 1.1], [3.0, 0.5, 4.0], [12.0, 1e-9, -3.0, 40.0], [1.0], [200.0, 1.0]], ids=str
)
def test_ratios_are_drawn_on_a_logarithmic_axis_with_labels(values):
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    _log_axis(axis, np.array([*values, np.nan]))
    low, high = axis.get_xlim()
    assert axis.get_xscale() == "log"
    assert low <= max(min(values), 0.01)
    assert high >= min(max(values), 100)
    ticks = axis.get_xticks()
    assert 1 <= len(ticks) <= 8
    assert len(ticks) >= 3 or len(values) == 1
    assert ((ticks >= low) & (ticks <= high)).all()


def test_wrong_input_is_told(trait):
    blocks, x = trait.blocks[:5], trait.x[:300]
    for options, match in (
        ({"noise": 0.0}, "noise"),
        ({"jackknife": "bootstrap"}, "jackknife"),
        ({"groups": 2}, "groups"),
    ):
        with pytest.raises(InputError, match=match):
            enrichment_of_blocks(blocks, x, NAMES, **options)
    with pytest.raises(InputError, match="at least 3 LD blocks"):
        enrichment_of_blocks(blocks[:2], x, NAMES)
    with pytest.raises(InputError, match="one value for all"):
        enrichment_of_blocks(blocks, np.column_stack([x[:, :2], np.ones(300, np.float32)]), NAMES)
    with pytest.raises(InputError, match="rare, score add up"):
        enrichment_of_blocks(blocks, np.column_stack([x[:, :2], 1 - x[:, 0]]), NAMES)
    silent = [
        TraitBlock(b.number, b.rows, b.factor, 0.5 * np.ones_like(b.whitened), b.z, b.observed, N) for b in blocks
    ]
    with pytest.raises(DeepwasError, match="no heritability"):
        enrichment_of_blocks(silent, x, NAMES)


def test_the_command_writes_table_record_and_picture(tmp_path, capsys):
    problem = write_problem(tmp_path, chromosomes=3)
    options = deepwas.LDOptions(build="GRCh37", min_block=20, max_block=80, eigenvalue_floor=0.05)
    store = deepwas.build_ld(problem.genotypes, tmp_path / "ld.h5", options)
    given = ["--ld", tmp_path / "ld.h5", "--sumstats", problem.sumstats, "--annotations", problem.annotations]
    out = tmp_path / "enrichment.tsv"
    with pytest.raises(SystemExit) as end:
        main([str(x) for x in ("enrich", *given, "--out", out, "--noise", "1", "--plot", tmp_path / "e.png")])
    assert not end.value.code
    table = pl.read_csv(out, separator="\t", null_values="NA")
    validate_table(table, "enrichment", str(out))
    assert table["Category"].to_list() == ["base", "active", "idle"]
    assert abs(table["Coefficient_z-score"][1]) > 3 > abs(table["Coefficient_z-score"][2])
    record = json.loads((tmp_path / "enrichment.json").read_text())
    assert record["noise"] == 1
    assert record["inputs"]["ld"]["checksum"] == store.checksum
    assert record["h2"] == pytest.approx(table["h2"][0], rel=1e-6)
    assert (tmp_path / "e.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    said = capsys.readouterr()
    assert "active" in said.out
    assert ("idle *" in said.out) == ("* not 0/1" in said.err) == (not table["Binary"].all())
    before = sorted(p.name for p in tmp_path.iterdir())
    for wrong in (
        ["--out", out],
        ["--out", out, "--overwrite", "--noise", "x"],
        ["--out", problem.annotations],
        ["--out", out, "--jackknife", "x"],
    ):
        with pytest.raises(SystemExit) as end:
            main([str(x) for x in ("enrich", *given, *wrong)])
        assert end.value.code == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == before
