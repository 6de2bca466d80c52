"""The mean head: its sums against dense algebra, its test against enumeration, and whole runs with a known truth."""

from __future__ import annotations

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from scipy.stats import multivariate_normal

import deepwas
from deepwas import direction, direction_blocks
from deepwas.annotations.features import check_variants
from deepwas.annotations.signed import SignedScores
from deepwas.cli import main
from deepwas.direction import DirectionOptions
from deepwas.direction_blocks import BlockSums, block_terms, prior_of
from deepwas.direction_control import given_control, minor_allele_columns
from deepwas.direction_null import Head, flip_test
from deepwas.direction_scores import ScaledScores
from deepwas.errors import InputError
from deepwas.ld import LDBlock, write_ld
from deepwas.specs import validate_json, validate_table
from deepwas.sumstats import HarmonisedSumstats
from deepwas.tally import Tally
from deepwas.training.trait import open_trait
from tests import dense

M, BLOCKS, N = 30, 24, 20_000.0
LD = dense.ld_matrix("ar1", M, np.random.default_rng(0))


def table(m: int = M * BLOCKS, chromosomes: int = 6) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    return pl.DataFrame(
        {
            "CHR": [str(1 + i * chromosomes // m) for i in range(m)],
            "SNP": [f"rs{i}" for i in range(m)],
            "BP": np.arange(1, m + 1),
            "A1": ["A"] * m,
            "A2": ["C"] * m,
            "FREQ": rng.uniform(0.05, 0.95, m),
        }
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("direction") / "ld.h5"
    block = LDBlock.from_correlation(LD, eigenvalue_floor=0.05)
    with write_ld(
        path, table(), ((i * M, block) for i in range(BLOCKS)), build="hg19", n_samples=5000, dtype="float32"
    ) as made:
        yield made


def simulated(store, *, share: float, columns: int = 2, seed: int = 0, mean_c: float = 0.5):
    """Signed scores per allele and z-scores: `share` of the effect variance follows the first score's sign."""
    rng = np.random.default_rng(seed)
    m = store.n_variants
    q = store.variants["FREQ"].to_numpy()
    scores = (rng.normal(size=(m, columns)) * 3).astype(np.float32)
    per_sd = scores[:, 0] * np.sqrt(2 * q * (1 - q))
    f = mean_c / N
    mu = per_sd / np.sqrt(np.mean(per_sd**2)) * np.sqrt(share * f)
    beta = mu + rng.normal(size=m) * np.sqrt((1 - share) * f)
    root = np.linalg.cholesky(LD)
    z = np.concatenate([np.sqrt(N) * LD @ beta[i : i + M] + root @ rng.normal(size=M) for i in range(0, m, M)])
    names = tuple(f"s{i}" for i in range(columns))
    keys = check_variants(store.variants)
    return SignedScores(names, scores, keys, dict.fromkeys(names, "simulated")), z


def harmonised(store, z, *, n=N, present=None) -> HarmonisedSumstats:
    m = store.n_variants
    frame = store.variants.select(
        pl.int_range(m, dtype=pl.UInt32).alias("VARIANT"), "CHR", "SNP", "BP", "A1", "A2"
    ).with_columns(
        pl.Series("Z", z),
        pl.Series("N", np.broadcast_to(np.asarray(n, float), (m,))),
        pl.lit(None, pl.Float64).alias("FRQ"),
    )
    if present is not None:
        frame = frame.filter(pl.Series(present))
    return HarmonisedSumstats(
        frame, m, "simulated", "0" * 64, "test", "position", genome_build="GRCh37", store_checksum=store.checksum
    )


def fitted(store, z, **options) -> deepwas.Fit:
    chosen = deepwas.FitOptions(**({"network": "constant", "folds": 4} | options))
    return deepwas.fit(store, harmonised(store, z), options=chosen)


@pytest.fixture(scope="module")
def planted(store):
    scores, z = simulated(store, share=0.3)
    return scores, z, fitted(store, z)


# --- minor alleles


def drawn_sums(rng, *, of_minor: float, of_score: float, blocks: int = 40, k: int = 12, p: int = 1) -> BlockSums:
    """Whitened blocks with B = I: p scores that track two control columns, and means that follow either."""
    A, u = np.zeros((blocks, p + 2, p + 2)), np.zeros((blocks, p + 2))
    for b in range(blocks):
        C = rng.normal(size=(k, 2))
        S = C @ np.array([[1.0], [-0.5]]) + rng.normal(size=(k, p))
        X = np.concatenate([S, C], axis=1)
        y = X @ np.array([of_score] * p + [of_minor, 0.0]) + rng.normal(size=k)
        A[b], u[b] = X.T @ X, X.T @ y
    return BlockSums(np.arange(blocks), u, np.arange(blocks), A, np.arange(blocks) // 10)


def plain_scores(p: int) -> ScaledScores:
    names = tuple(f"s{i}" for i in range(p))
    nothing = np.zeros((0, p), np.float32)
    return ScaledScores(names, np.arange(p), np.ones(p), np.eye(p + 2), np.ones(0), nothing, Tally(), 2)


def test_weights_given_minor_alleles_are_those_beside_them():
    sums = drawn_sums(np.random.default_rng(0), of_minor=0.3, of_score=0.2, p=3)
    A, u = sums.A.sum(axis=0), sums.u.sum(axis=0)
    beside = np.linalg.solve(A, u)[:3]
    error = np.linalg.inv(A)[:3, :3]
    left, scaled = given_control(sums, plain_scores(3))
    found = Head.of(left.A.sum(axis=0), ridge=False).fit(left.u.sum(axis=0))
    np.testing.assert_allclose(found.w, beside, rtol=1e-10)
    np.testing.assert_allclose(found.covariance, error, rtol=1e-9)
    np.testing.assert_allclose(left.by_cell().sum(axis=0), left.u.sum(axis=0))
    assert (scaled.names, scaled.controls, scaled.squares.shape) == (("s0", "s1", "s2"), 0, (3, 3))


def rejections(*, of_minor: float, of_score: float, control: bool, runs: int = 400) -> float:
    rng, count = np.random.default_rng(5), 0
    for _ in range(runs):
        sums = drawn_sums(rng, of_minor=of_minor, of_score=of_score)
        if control:
            left, _ = given_control(sums, plain_scores(1))
            terms, head = left.u, Head.of(left.A.sum(axis=0), ridge=False)
        else:
            terms, head = sums.u[:, :1], Head.of(sums.A.sum(axis=0)[:1, :1], ridge=False)
        count += flip_test(terms, head, permutations=99, rng=rng).p <= 0.05
    return count / runs


def test_direction_of_minor_alleles_alone_is_not_found_given_them():
    limit = 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert rejections(of_minor=0.2, of_score=0.0, control=False) > 0.5  # what the control is for
    assert rejections(of_minor=0.2, of_score=0.0, control=True) < limit
    assert 0.02 < rejections(of_minor=0.0, of_score=0.0, control=True) < limit
    assert rejections(of_minor=0.2, of_score=0.2, control=True) > 0.8


def test_columns_of_the_minor_allele():
    q = np.array([0.01, 0.05, 0.07, 0.5, 0.9, 0.99, 0.35])
    found = minor_allele_columns(q)
    assert found.shape == (7, 6)
    assert found.sum(axis=1).tolist() == [1, 1, 1, 0, -1, -1, 1]
    assert np.abs(found).argmax(axis=1)[[0, 1, 2, 4, 5, 6]].tolist() == [0, 0, 1, 1, 0, 4]
    np.testing.assert_array_equal(minor_allele_columns(1 - q), -found)  # the alleles counted do not matter


def test_a_score_of_minor_alleles_is_nothing_beyond_them(store):
    scores, z = simulated(store, share=0.0)
    q = store.variants["FREQ"].to_numpy()
    minor = np.sign(0.5 - q).astype(np.float32)
    values = np.stack([minor, scores.values[:, 0]], axis=1)
    both = dataclasses.replace(scores, values=values)
    fit = fitted(store, z)
    chosen = DirectionOptions(permutations=199, control_maf=True)
    found = direction.test_direction(fit, store, both, options=chosen)
    assert found.columns["NAME"].to_list() == ["s1"]
    assert found.weights.shape == (1,)
    assert any("minor alleles tell wholly" in row["reason"] for row in found.record["counts"])
    assert found.record["test"]["exact"] is False
    assert "beyond that of minor alleles" in found.verdict()[0]
    only = dataclasses.replace(both, values=values[:, :1], names=("s0",), sources={"s0": "simulated"})
    with pytest.raises(InputError, match="nothing is left to test"):
        direction.test_direction(fit, store, only, options=chosen)


# --- sums and the likelihood --------------------------------------------------------------------------------------


@pytest.mark.parametrize("unequal", [False, True])
def test_the_weights_maximise_the_likelihood_with_a_mean(store, unequal):
    """Sums over blocks give the w at which log_likelihood(effect_mean=S w) is largest, by autodiff through it."""
    rng = np.random.default_rng(5)
    m = 3 * M
    present = np.tile(rng.random(M) < 0.8, BLOCKS) if unequal else np.ones(store.n_variants, bool)
    n = rng.uniform(1e4, 3e4, store.n_variants) if unequal else np.full(store.n_variants, N)
    z = 2 * rng.normal(size=store.n_variants)
    where = np.flatnonzero(present & (np.arange(store.n_variants) < m))
    frame = pl.DataFrame({"VARIANT": where, "Z": z[where], "N": n[where]})
    S, f = rng.normal(size=(m, 3)), rng.exponential(size=m) / N
    blocks = open_trait(store, frame)
    A, u = np.zeros((3, 3)), np.zeros(3)
    for block in blocks:
        information, own = block_terms(block, S[block.rows], f[block.rows], 1.3)
        A, u = A + information, u + own
    w = Head.of(A, ridge=False).fit(u).w
    parts = [(blocks.ld_block(i), blocks[i]) for i in range(len(blocks))]

    def value(w):
        return sum(
            deepwas.log_likelihood(
                ld,
                z[block.rows][block.observed],
                f[block.rows],
                sample_size=block.sample_size,
                noise=1.3,
                effect_mean=jnp.asarray(S[block.rows]) @ w,
                solver="cholesky",
            )
            for ld, block in parts
        )

    with jax.enable_x64(True):
        gradient = jax.grad(value)
        scale = np.linalg.norm(u)
        np.testing.assert_allclose(gradient(jnp.zeros(3)), u, atol=1e-4 * scale)
        np.testing.assert_allclose(gradient(jnp.asarray(w)), np.zeros(3), atol=1e-4 * scale)
        gain = float(value(jnp.asarray(w)) - value(jnp.zeros(3)))
    assert gain == pytest.approx(0.5 * u @ w, rel=1e-3)


def dense_gain(blocks, X, B, tau2: float) -> float:
    """log N(y; 0, B + tau2 X X') - log N(y; 0, B), all blocks in one matrix."""
    y = np.concatenate(blocks)
    X = np.vstack(X)
    joint = np.zeros((len(y), len(y)))
    at = 0
    for part in B:
        joint[at : at + len(part), at : at + len(part)] = part
        at += len(part)
    with_mean = multivariate_normal(None, joint + tau2 * X @ X.T).logpdf(y)
    return float(with_mean - multivariate_normal(None, joint).logpdf(y))


def test_the_ridge_statistic_is_the_marginal_likelihood():
    rng = np.random.default_rng(7)
    X = [rng.normal(size=(6, 4)) for _ in range(5)]
    B = [np.diag(rng.uniform(0.5, 2, 6)) + 0.3 for _ in range(5)]
    w = 0.6 * rng.normal(size=4)
    y = [x @ w + np.linalg.cholesky(b) @ rng.normal(size=6) for x, b in zip(X, B, strict=True)]
    A = sum(x.T @ np.linalg.solve(b, x) for x, b in zip(X, B, strict=True))
    u = sum(x.T @ np.linalg.solve(b, v) for x, b, v in zip(X, B, y, strict=True))
    head = Head.of(A, ridge=True)
    gains = [dense_gain(y, X, B, float(t)) for t in head.strengths]
    assert 2 * max(gains) == pytest.approx(head.statistic(u[None])[0])
    found = head.fit(u)
    best = dense_gain(y, X, B, found.tau2)
    assert best >= max(gains)
    for factor in (0.97, 1.03):
        assert dense_gain(y, X, B, factor * found.tau2) < best
    np.testing.assert_allclose(found.w, np.linalg.solve(A + np.eye(4) / found.tau2, u))
    np.testing.assert_allclose(found.covariance, np.linalg.inv(A + np.eye(4) / found.tau2))
    assert Head.of(A, ridge=True).fit(1e-3 * u).tau2 == 0


def test_p_is_the_share_of_all_flips():
    """Ten blocks have 1,024 flips of sign: the test's p must be their share, within the error of drawing them."""
    rng = np.random.default_rng(8)
    groups = rng.normal(size=(10, 3)) + np.array([0.5, 0.0, -0.2])
    A = np.eye(3) * 10 + 1
    flips = np.array(list(itertools.product([-1, 1], repeat=10)))
    for ridge in (False, True):
        head = Head.of(A, ridge)
        found = flip_test(groups, head, permutations=20_000, rng=np.random.default_rng(0))
        T = head.statistic(flips @ groups)
        exact = np.mean(T - found.observed >= -1e-9)
        assert 0.005 < exact < 0.5
        assert abs(found.p - exact) < 4 * np.sqrt(exact * (1 - exact) / 20_000)
        z = np.abs(flips @ groups) / np.sqrt((groups**2).sum(axis=0))
        own = (z >= np.abs(found.z) - 1e-9).mean(axis=0)
        adjusted = (z.max(axis=1)[:, None] >= np.abs(found.z) - 1e-9).mean(axis=0)
        np.testing.assert_allclose(found.column_p, own, atol=4 * 0.5 / np.sqrt(20_000))
        np.testing.assert_allclose(found.column_p_adjusted, adjusted, atol=4 * 0.5 / np.sqrt(20_000))
        assert (found.column_p_adjusted >= found.column_p).all()


def test_least_squares_leaves_out_what_is_collinear():
    rng = np.random.default_rng(9)
    X = rng.normal(size=(50, 2))
    X = np.column_stack([X, X[:, 0] + X[:, 1]])
    y = rng.normal(size=50)
    head = Head.of(X.T @ X, ridge=False)
    assert len(head.values) == 2
    fitted_y = X @ np.linalg.lstsq(X, y, rcond=None)[0]
    assert head.statistic((X.T @ y)[None])[0] == pytest.approx(fitted_y @ fitted_y)
    with pytest.raises(InputError, match="nothing to test"):
        Head.of(np.zeros((2, 2)), ridge=False)


# --- whole runs ---------------------------------------------------------------------------------------------------


def test_a_planted_direction_is_found_with_its_size(store, planted, tmp_path):
    scores, _, fit = planted
    steps = []
    found = direction.test_direction(
        fit, store, scores, options=DirectionOptions(permutations=999), progress=lambda *step: steps.append(step)
    )
    record = found.record
    assert found.p == 0.001
    assert found.columns["P_ADJUSTED"].to_list()[0] == 0.001
    assert found.columns["P"].to_list()[1] > 0.01
    assert record["gain"]["held_out"] > 2 * record["gain"]["standard_error"] > 0
    share = record["share"]
    assert abs(share["value"] - 0.3) < 3 * share["standard_error"] < 0.4
    assert record["prior"]["cross_fitted"] is True
    assert record["prior"]["h2"] == pytest.approx(fit.variants["SNPVAR_CROSS"].sum())
    assert {step[0] for step in steps} == {"whitening LD blocks", "weighing blocks", "flipping signs"}
    assert "tell direction" in found.verdict()[0]
    q = store.variants["FREQ"].to_numpy()
    mu = scores.values.astype(float) @ found.weights * np.sqrt(2 * q * (1 - q))
    assert np.sum(mu**2) / record["prior"]["h2"] == pytest.approx(share["value"], rel=0.1)
    found.write(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "direction.json",
        "direction.png",
        "direction_blocks.tsv",
        "direction_columns.tsv",
    ]
    assert json.loads((tmp_path / "out" / "direction.json").read_text()) == json.loads(json.dumps(record))
    blocks = pl.read_csv(tmp_path / "out" / "direction_blocks.tsv", separator="\t")
    validate_table(blocks, "direction_blocks", "direction_blocks.tsv")
    assert (blocks["FIRST"] <= blocks["LAST"]).all()
    assert found.blocks["GAIN"].sum() == pytest.approx(record["gain"]["held_out"])


def test_the_alleles_counted_do_not_matter(store, planted):
    """The same data with some variants' other allele counted: scores and z-scores change sign, nothing else does."""
    scores, z, fit = planted
    before = direction.test_direction(fit, store, scores, options=DirectionOptions(permutations=99))
    sign = np.ones(store.n_variants)
    sign[: M * 3] = -1  # whole blocks, so that the LD is the same
    turned = dataclasses.replace(scores, values=(scores.values * sign[:, None]).astype(np.float32))
    again = direction.test_direction(fitted(store, sign * z), store, turned, options=DirectionOptions(permutations=99))
    assert again.record["test"] == before.record["test"]
    assert again.record["gain"] == before.record["gain"]


def test_held_out_gains_are_of_weights_that_did_not_see_the_section(store, planted):
    """By the dense density of every block, with the other sections' generalised least squares."""
    scores, _, fit = planted
    found = direction.test_direction(fit, store, scores, options=DirectionOptions(permutations=19))
    prior = prior_of(fit, store, cross_fitted=True)
    q = store.variants["FREQ"].to_numpy()
    S = scores.values.astype(float) * np.sqrt(2 * q * (1 - q))[:, None]
    blocks = list(open_trait(store, prior.frame))
    X = [np.sqrt(b.sample_size) * b.factor.astype(float) @ S[b.rows] for b in blocks]
    B = [
        prior.noise[b.number] * np.eye(b.shape[0])
        + (b.factor.astype(float) * b.sample_size * prior.f[b.rows]) @ b.factor.T
        for b in blocks
    ]
    section = np.array([prior.section[b.number] for b in blocks])
    assert len(set(section)) == 4
    for i in (0, 7, BLOCKS - 1):
        others = [j for j in range(BLOCKS) if section[j] != section[i]]
        A = sum(X[j].T @ np.linalg.solve(B[j], X[j]) for j in others)
        u = sum(X[j].T @ np.linalg.solve(B[j], blocks[j].whitened.astype(float)) for j in others)
        density = multivariate_normal(None, B[i])
        y = blocks[i].whitened.astype(float)
        expected = density.logpdf(y - X[i] @ np.linalg.solve(A, u)) - density.logpdf(y)
        assert found.blocks["GAIN"][i] == pytest.approx(expected, abs=1e-6)


def test_a_prior_learned_from_flipped_blocks_is_the_same(store):
    """What makes the test valid with a prior of the very same z-scores: no step of a fit sees a block's sign."""
    rng = np.random.default_rng(2)
    log_f = 1.5 * rng.normal(size=store.n_variants)
    beta = np.exp(log_f / 2) * rng.normal(size=store.n_variants) / np.sqrt(N)
    z = np.concatenate(
        [
            np.sqrt(N) * LD @ beta[i : i + M] + np.linalg.cholesky(LD) @ rng.normal(size=M)
            for i in range(0, len(beta), M)
        ]
    )
    sign = np.repeat(rng.choice([-1.0, 1.0], size=BLOCKS), M)
    features = deepwas.Annotations(("a",), log_f[:, None].astype("f4"), check_variants(store.variants), {"a": ""})
    how = {"steps": 12, "evaluate_every": 6, "batch_blocks": 16, "cross_fit": False, "mismatch": "down-weight"}
    options = deepwas.FitOptions(network="linear", folds=4, learning_rate=0.1, **how)
    first, second = (deepwas.fit(store, harmonised(store, x), features, options=options) for x in (z, sign * z))
    assert first.variants["SNPVAR_PLAIN"].n_unique() > 1
    np.testing.assert_array_equal(first.variants["SNPVAR_PLAIN"], second.variants["SNPVAR_PLAIN"])
    assert first.record["rotations"][0]["noise"] == second.record["rotations"][0]["noise"]
    assert first.record["mismatch"]["flagged_blocks"] == second.record["mismatch"]["flagged_blocks"]


def test_many_columns_share_a_prior_and_missing_scores_count_as_none(store, planted):
    scores, _, fit = planted
    rng = np.random.default_rng(3)
    more = np.hstack([scores.values, rng.normal(size=(store.n_variants, 13)).astype(np.float32)])
    more[:, 14] = 0
    more[:5] = np.nan
    names = tuple(f"s{i}" for i in range(15))
    wide = SignedScores(names, more, scores.variants, dict.fromkeys(names, ""))
    found = direction.test_direction(fit, store, wide, options=DirectionOptions(permutations=199))
    assert found.record["test"]["statistic"] == "marginal likelihood"
    assert found.record["weights"]["tau2"] > 0
    assert found.p <= 0.01
    assert found.columns.height == found.record["columns"] == 14
    said = {row["reason"]: row["count"] for row in found.record["counts"]}
    assert said["scores that are 0 at every variant modelled"] == 1
    assert said["variants without a signed score: taken as 0"] == 5
    assert abs(found.record["share"]["value"] - 0.3) < 3 * found.record["share"]["standard_error"]
    zero = dataclasses.replace(wide, values=np.where(np.isnan(more), 0, more))
    again = direction.test_direction(fit, store, zero, options=DirectionOptions(permutations=199))
    assert again.record["test"] == found.record["test"]


def test_scores_without_direction_are_said_to_have_none(store, planted, tmp_path):
    """The prior variance of the weights goes to 0, and with it what hangs on it."""
    *_, fit = planted
    names = tuple(f"s{i}" for i in range(12))
    values = np.random.default_rng(0).normal(size=(store.n_variants, 12)).astype(np.float32)
    idle = SignedScores(names, values, check_variants(store.variants), dict.fromkeys(names, ""))
    found = direction.test_direction(fit, store, idle, options=DirectionOptions(permutations=99))
    assert found.record["weights"]["tau2"] == 0
    assert found.p > 0.05
    assert found.record["share"] == {"value": 0, "standard_error": None}
    assert found.record["gain"]["held_out"] <= 2 * found.record["gain"]["standard_error"]
    assert "No sign that the scores tell direction" in found.verdict()[0]
    assert found.verdict()[-1].endswith("most likely 0.")
    found.write(tmp_path / "out")


def test_runs_of_blocks_serve_where_matrices_do_not_fit(store, planted, monkeypatch):
    scores, _, fit = planted
    whole = direction.test_direction(fit, store, scores, options=DirectionOptions(permutations=99))
    monkeypatch.setattr(direction_blocks, "_CELL_NUMBERS", 8 * 4)
    found = direction.test_direction(fit, store, scores, options=DirectionOptions(permutations=99))
    assert 8 <= found.record["gain"]["cells"] <= 12
    assert found.record["gain"]["held_out"] == pytest.approx(whole.record["gain"]["held_out"])
    # Sums in another order: the same but for rounding.
    one, other = dict(found.record["test"]), dict(whole.record["test"])
    assert one.pop("observed") == pytest.approx(other.pop("observed"), rel=1e-12)
    assert one == other
    assert (found.blocks["LAST"] - found.blocks["FIRST"]).max() == 2


def test_overlapping_windows_flip_together_and_borrow_a_prior(tmp_path):
    """Windows score their middle; the outermost candidates are scored by none, and have no prior in the run."""
    m = 300
    R = dense.ld_matrix("ar1", m, np.random.default_rng(0))

    def windows():
        for start in range(0, m - 20, 10):
            scored = np.zeros(30, dtype=bool)
            scored[10:20] = True
            here = slice(start, start + 30)
            yield start, LDBlock.from_correlation(R[here, here], scored, eigenvalue_floor=0.05)

    rng = np.random.default_rng(1)
    z = np.linalg.cholesky(R) @ rng.normal(size=m) * 1.5
    with write_ld(tmp_path / "ld.h5", table(m, 1), windows(), build="hg19", n_samples=5000, dtype="float32") as store:
        fit = fitted(store, z, folds=3)
        scores = SignedScores(
            ("s",), rng.normal(size=(m, 1)).astype(np.float32), check_variants(store.variants), {"s": ""}
        )
        prior = prior_of(fit, store, cross_fitted=True)
        (note,) = prior.tally.rows
        assert note.count == 20
        assert (prior.f > 0).all()
        found = direction.test_direction(fit, store, scores, options=DirectionOptions(permutations=99, flip_together=2))
        assert found.record["test"]["exact"] is False
        assert 8 <= found.record["test"]["groups"] < found.record["blocks"]
        assert_held_out_of_windows(found, prior, store, scores)
        with pytest.raises(InputError, match=r"of 10 LD block\(s\) can change sign"):
            direction.test_direction(fit, store, scores)


def test_windows_that_all_overlap_leave_no_weights_to_test():
    two = np.arange(2)
    sums = direction_blocks.BlockSums(two, np.ones((2, 1)), two, np.ones((2, 1, 1)), two)
    np.testing.assert_allclose(direction._held_out(sums, np.array([[0, 5], [5, 9]]), False), [0.5, 0.5])
    with pytest.raises(InputError, match="every LD window shares variants with those of section 0"):
        direction._held_out(sums, np.array([[0, 5], [4, 9]]), False)


def assert_held_out_of_windows(found, prior, store, scores):
    """Gains with weights of the windows that share no variant with any window of the section tested."""
    q = store.variants["FREQ"].to_numpy()
    S = scores.values.astype(float) * np.sqrt(2 * q * (1 - q))[:, None]
    blocks = list(open_trait(store, prior.frame))
    terms = [block_terms(b, S[b.rows], prior.f[b.rows], prior.noise[b.number]) for b in blocks]
    section = np.array([prior.section[b.number] for b in blocks])
    left = []
    for i, (own, (A_i, u_i)) in enumerate(zip(section, terms, strict=True)):
        tested = [set(range(b.rows.start, b.rows.stop)) for b, s in zip(blocks, section, strict=True) if s == own]
        apart = [
            j for j, b in enumerate(blocks) if not any(t.intersection(range(b.rows.start, b.rows.stop)) for t in tested)
        ]
        left.append(int((section != own).sum()) - len(apart))
        w = np.linalg.solve(sum(terms[j][0] for j in apart), sum(terms[j][1] for j in apart))
        assert found.blocks["GAIN"][i] == pytest.approx(u_i @ w - 0.5 * w @ A_i @ w)
    assert set(left) == {2, 4}  # two windows at each end


def test_what_does_not_belong_together_is_refused(store, planted, tmp_path):
    scores, z, fit = planted
    other = tmp_path / "other.h5"
    block = LDBlock.from_correlation(np.eye(M))
    write_ld(other, table(), ((i * M, block) for i in range(BLOCKS)), build="hg19", n_samples=50).close()
    with pytest.raises(InputError, match="not the LD store of the run"):
        direction.test_direction(fit, other, scores)
    short = SignedScores(scores.names, scores.values[:9], scores.variants[:9], scores.sources)
    with pytest.raises(InputError, match="not those of the variants"):
        direction.test_direction(fit, store, short)
    plain = fitted(store, z, cross_fit=False)
    with pytest.raises(InputError, match="not cross-fitted"):
        direction.test_direction(plain, store, scores, options=DirectionOptions(cross_fitted=True))
    found = direction.test_direction(plain, store, scores, options=DirectionOptions(permutations=19))
    assert found.record["prior"]["cross_fitted"] is False
    none = dataclasses.replace(scores, values=np.zeros_like(scores.values))
    with pytest.raises(InputError, match="every signed score is 0 or missing"):
        direction.test_direction(fit, store, none)
    for wrong in ({"permutations": 3}, {"seed": -1}, {"ridge": "maybe"}, {"flip_together": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            DirectionOptions(**wrong)


def test_the_command(store, planted, tmp_path, capsys):
    scores, _, fit = planted
    run = tmp_path / "run"
    fit.save(run)
    scores.write_parquet(tmp_path / "s.signed.parquet")
    base = ["direction", str(run), "--ld", str(store.path), "--scores", str(tmp_path / "s.signed.parquet")]
    main_exit([*base, "--out", str(tmp_path / "out"), "--permutations", "99"])
    said = capsys.readouterr()
    assert "The signed scores tell direction: p = 0.01" in said.err
    assert "s0" in said.out
    first = json.loads((tmp_path / "out" / "direction.json").read_text())
    assert main_exit([*base, "--out", str(tmp_path / "out"), "--permutations", "99"]) == 2
    assert "--overwrite to replace its direction test" in capsys.readouterr().err
    assert main_exit([*base, "--out", str(tmp_path), "--overwrite"]) == 2
    assert "holds no direction test to replace" in capsys.readouterr().err
    assert main_exit([*base, "--out", str(tmp_path / "out"), "--permutations", "99", "--overwrite"]) == 0
    assert json.loads((tmp_path / "out" / "direction.json").read_text()) == first
    (tmp_path / "out" / "direction.json").unlink()  # as if interrupted while writing
    assert main_exit([*base, "--out", str(tmp_path / "out"), "--permutations", "99", "--overwrite"]) == 0
    assert json.loads((tmp_path / "out" / "direction.json").read_text()) == first
    given = ["--out", str(tmp_path / "given"), "--permutations", "99", "--control-maf"]
    assert main_exit([*base, *given]) == 0
    assert "tell direction beyond that of minor alleles: p = 0.01" in capsys.readouterr().err
    validate_json(json.loads((tmp_path / "given" / "direction.json").read_text()), "direction", "direction.json")
    assert main_exit([*base, "--out", str(store.path)]) == 2
    assert main_exit([*base, "--out", str(tmp_path / "no" / "out")]) == 2
    assert main_exit([*base, "--out", str(tmp_path / "new"), "--ridge", "maybe"]) == 2
    assert main_exit([*base[:-1], str(store.path), "--out", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def main_exit(arguments: list[str]) -> int:
    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0
