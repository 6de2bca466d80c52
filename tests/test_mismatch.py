"""LD mismatch: the statistics against dense formulas, their calibration, and what they find."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy.stats import binom, chi2, norm

from deepwas import InputError, LDBlock
from deepwas.ld import write_ld
from deepwas.mismatch import OUTLIER_P, block_mismatch
from deepwas.specs import load_spec, validate_table
from deepwas.summary import mismatch_lines
from deepwas.training.baseline import Spectrum, fit_scale
from deepwas.training.mismatch import _BLOCK_SCHEMA, _VARIANT_SCHEMA, Mismatch, _judgement, diagnose, without_flagged
from deepwas.training.sections import Rotation
from deepwas.training.trait import open_trait
from tests import dense


def _standardised(rng, people: int, m: int, stay: float = 0.98) -> np.ndarray:
    """Genotypes of independent people along one chromosome, (people, m), mean 0 and variance 1."""
    x = np.empty((2 * people, m))
    x[:, 0] = rng.normal(size=2 * people)
    for j in range(1, m):
        x[:, j] = stay * x[:, j - 1] + np.sqrt(1 - stay**2) * rng.normal(size=2 * people)
    haplotypes = (x < rng.uniform(-1, 1, m)).astype(float)
    dosage = haplotypes[:people] + haplotypes[people:]
    return (dosage - dosage.mean(axis=0)) / dosage.std(axis=0)


class Gwas:
    """LD of some people, its block, and z-scores drawn from the model."""

    def __init__(self, people: int, floor: float, m: int = 120, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.X = _standardised(self.rng, people, m)
        self.R = self.X.T @ self.X / people
        self.block = LDBlock.from_correlation(self.R, eigenvalue_floor=floor)

    def draw(self, b: np.ndarray, noise: float = 1.0) -> np.ndarray:
        e = self.X.T @ self.rng.normal(size=len(self.X)) / np.sqrt(len(self.X))
        return self.R @ b + np.sqrt(noise) * e

    def effects(self, c: float) -> np.ndarray:
        return self.rng.normal(size=len(self.R)) * np.sqrt(c)


@pytest.mark.parametrize("floor", [0.3, 1e-4])
def test_leave_one_out_is_conditioning_on_all_other_variants(floor):
    gwas = Gwas(500, floor, m=60)
    c = gwas.rng.exponential(size=60) * 0.3
    z = gwas.draw(gwas.rng.normal(size=60) * np.sqrt(c), 0.7)
    found = block_mismatch(gwas.block.factor, z, c, 0.7)
    assert not len(found.hits)
    G = gwas.block.factor
    k, t, noise = len(G), found.level, 0.7
    B = noise * np.eye(k) + t * (G * c) @ G.T
    lost = np.maximum(1 - np.sum(G**2, axis=0), 0)
    signal = np.sum(G**2 * c, axis=1)
    spread = noise + t * signal[k - max(1, k // 8) :].mean()
    S = G.T @ B @ G + np.diag(lost * spread) + 1e-3 * noise * np.eye(60)
    model_R = G.T @ G + np.diag(lost)
    for j in range(0, 60, 7):
        rest = np.arange(60) != j
        weights = np.linalg.solve(S[np.ix_(rest, rest)], S[rest, j])
        residual = z[j] - weights @ z[rest]
        variance = S[j, j] - weights @ S[rest, j]
        moved = model_R[j, j] - weights @ model_R[rest, j]
        assert found.residual[j] == pytest.approx(residual, rel=1e-6, abs=1e-8)
        assert found.variance[j] == pytest.approx(variance, rel=1e-6)
        expected = residual / np.sqrt(found.inflation * variance + moved**2 * z[j] ** 2)
        assert found.statistic[j] == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert found.inflation == pytest.approx(
        max(1, np.median(found.residual**2 / found.variance) / chi2.median(1)), 1e-6
    )


def test_energies_are_their_definition():
    gwas = Gwas(500, 0.3)
    c = gwas.rng.exponential(size=120) * 0.1
    z = gwas.draw(gwas.rng.normal(size=120) * np.sqrt(c))
    found = block_mismatch(gwas.block.factor, z, c, 1.3)
    G, y = gwas.block.factor, gwas.block.whiten(z)
    k, half = len(y), (len(y) + 1) // 2
    for energy, rows, level in ((found.small, np.arange(half, k), found.level), (found.leading, np.arange(half), 1.0)):
        B = 1.3 * np.eye(k) + level * (G * c) @ G.T
        scaled = B[np.ix_(rows, rows)] / np.sqrt(np.outer(np.diag(B)[rows], np.diag(B)[rows]))
        total, mean, variance = np.sum(y[rows] ** 2 / np.diag(B)[rows]), len(rows), 2 * np.sum(scaled**2)
        assert energy.ratio == pytest.approx(total / mean)
        assert energy.p == pytest.approx(chi2.sf(total * 2 * mean / variance, 2 * mean**2 / variance))
    values, vectors = np.linalg.eigh(gwas.R)
    dropped = values < 0.3
    energy = np.sum((vectors[:, dropped].T @ z) ** 2)
    weak = np.sum(G**2 * c, axis=1)[k - k // 8 :].mean()
    expected = values[dropped].sum() * (1.3 + found.level * weak)
    assert found.dropped.ratio == pytest.approx(energy / expected, rel=1e-6)
    lam = gwas.block.eigenvalues[-1]
    freedom = values[dropped].sum() / lam
    assert found.dropped.p == pytest.approx(chi2.sf(found.dropped.ratio * freedom, freedom), rel=1e-6)

    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 4001))
    signal = np.sum(G**2 * c, axis=1)
    loss = [np.sum(np.log(t + signal) + y**2 / (t + signal)) for t in grid]
    assert found.noise == pytest.approx(grid[np.argmin(loss)], rel=3e-3)


@pytest.mark.parametrize(("people", "floor"), [(1500, 0.16), (300, 0.8), (1500, 1e-4)])
@pytest.mark.parametrize("effects", ["constant", "sparse"])
def test_tests_keep_their_size_when_the_model_holds(people, floor, effects):
    """Counts of p < 0.05 and of outliers within the exact binomial bounds that one run in a million leaves."""
    gwas = Gwas(people, floor, seed=5)
    draws, c = 200, 0.2
    p = {"dropped": [], "small": [], "leading": []}
    statistics, flagged = [], 0
    for _ in range(draws):
        b = gwas.effects(c)
        if effects == "sparse":
            b *= (gwas.rng.random(len(b)) < 0.05) / np.sqrt(0.05)
        found = block_mismatch(gwas.block.factor, gwas.draw(b), c, 1.0)
        statistics.append(found.statistic)
        flagged += len(found.outliers()) > 0
        for name, values in p.items():
            if (energy := getattr(found, name)) is not None:
                values.append(energy.p)
    most = binom.isf(1e-6, draws, 0.05)
    for name in ("dropped", "small"):
        if p[name]:
            assert len(p[name]) == draws
            assert np.sum(np.array(p[name]) < 0.05) <= most
    assert np.sum(np.array(p["small"]) < 0.5) >= binom.ppf(1e-6, draws, 0.35)  # not without power either
    if effects == "constant":  # then y_i^2 / D_i are independent chi-squares: exact
        inside = binom.ppf([1e-6, 1 - 1e-6], draws, 0.5)
        assert inside[0] <= np.sum(np.array(p["leading"]) < 0.5) <= inside[1]
        assert np.mean(np.abs(statistics) > norm.isf(0.025)) < 0.05
        assert np.mean(np.square(statistics)) > 0.3
    assert flagged == 0
    assert bool(p["dropped"]) == (floor > 1e-3)


@pytest.mark.parametrize(("people", "floor"), [(1500, 0.16), (300, 0.8), (1500, 1e-4)])
def test_a_swapped_allele_is_found(people, floor):
    gwas = Gwas(people, floor, seed=7)
    tight = np.sort(gwas.R**2, axis=1)[:, -2] > 0.6
    tried = right = 0
    for _ in range(60):
        z = gwas.draw(gwas.effects(0.6))
        candidates = np.flatnonzero(tight & (np.abs(z) > 4.5))
        if not len(candidates):
            continue
        j = gwas.rng.choice(candidates)
        assert not len(block_mismatch(gwas.block.factor, z, 0.6, 1.0).outliers())
        z[j] *= -1
        found = block_mismatch(gwas.block.factor, z, 0.6, 1.0)
        out = found.outliers()
        tried += 1
        right += len(out) > 0 and out[0] == j
        assert np.sign(z[j] - found.residual[j]) == -np.sign(z[j])
    assert tried > 20
    assert right / tried > 0.6


@pytest.mark.parametrize("kept", [0.9, 0.98, 0.995])
def test_variants_in_perfect_ld_make_no_outliers_of_others(kept):
    """Of such variants nothing is dropped, of others more than the mean; wrong signs are still found."""
    rng = np.random.default_rng(6)
    found = tried = 0
    for _ in range(10):
        different = rng.normal(size=(500, 30))
        for j in range(1, 30):
            different[:, j] = 0.6 * different[:, j - 1] + 0.8 * different[:, j]
        R = np.corrcoef(np.repeat(different, rng.choice([1, 1, 2, 5, 15], size=30), axis=1).T)
        m = len(R)
        block = LDBlock.from_correlation(R, variance_kept=kept, eigenvalue_floor=0.0)
        values, vectors = np.linalg.eigh(R)
        noise = vectors @ (np.sqrt(np.maximum(values, 0)) * rng.normal(size=m))
        b = np.zeros(m)
        b[rng.choice(m, 3, replace=False)] = 12 * rng.normal(size=3)
        for effects, c in ((np.zeros(m), 0.02), (b, 1.0)):
            assert not len(block_mismatch(block.factor, R @ effects + noise, c, 1.0).outliers())
        z = R @ b + noise
        for j in np.flatnonzero((np.abs(z) > 6) & ((R**2 > 0.9).sum(axis=1) > 2))[:1]:
            z[j] *= -1
            found += j in block_mismatch(block.factor, z, 1.0, 1.0).outliers()
            tried += 1
    assert tried >= 5
    assert found >= tried - 1


def test_strong_effects_are_not_mismatch():
    """Two variants of |z| near 40, wherever they are, flag neither themselves nor the block."""
    gwas = Gwas(1500, 0.16, seed=3)
    rejected = 0
    for _ in range(60):
        b = gwas.effects(0.05)
        where = gwas.rng.choice(120, size=2, replace=False)
        b[where] += gwas.rng.choice([-40, 40], size=2)
        found = block_mismatch(gwas.block.factor, gwas.draw(b), 0.05, 1.0)
        assert not len(found.outliers())
        assert len(found.hits) >= 1
        rejected += min(found.small.p, found.dropped.p) < 1e-3
    assert rejected <= 3


def test_ld_of_another_population_is_found():
    gwas = Gwas(1500, 0.16, seed=11)
    other = Gwas(1500, 0.16, seed=12)
    fits = block_mismatch(gwas.block.factor, gwas.draw(gwas.effects(0.5)), 0.5, 1.0)
    found = block_mismatch(gwas.block.factor, other.draw(other.effects(0.5)), 0.5, 1.0)
    assert max(fits.small.ratio, fits.dropped.ratio) < 1.5
    assert fits.noise < 1.5
    assert min(found.small.ratio, found.dropped.ratio) > 2
    assert max(found.small.p, found.dropped.p) < 1e-4
    assert found.noise > 1.5


def test_restricted_blocks_with_flanks_and_unequal_sample_sizes():
    """With unequal N the loadings are the whitener's pseudo-inverse; under equal N both ways agree."""
    gwas = Gwas(800, 0.1, seed=2)
    scored = np.zeros(120, dtype=bool)
    scored[30:90] = True
    block = LDBlock.from_correlation(gwas.R, scored=scored, eigenvalue_floor=0.1)
    z = gwas.draw(gwas.effects(0.3))[scored]
    implied = block_mismatch(block.factor, z, 0.3, 1.0, scored=scored)
    given = block_mismatch(block.factor, z, 0.3, 1.0, scored=scored, loadings=np.linalg.pinv(block.whitener))
    np.testing.assert_allclose(implied.statistic, given.statistic, rtol=1e-6, atol=1e-9)
    assert implied.dropped.ratio == pytest.approx(given.dropped.ratio, rel=1e-6)

    observed = gwas.rng.random(120) < 0.8
    relative = gwas.rng.uniform(0.5, 1.5, 120)
    few = gwas.block.restrict(observed, relative)
    p = []
    for _ in range(100):
        b = gwas.effects(0.3)
        e = gwas.draw(np.zeros(120))
        z = (np.sqrt(relative) * (gwas.R @ b) + e)[observed]
        loadings = np.linalg.pinv(few.whitener)
        found = block_mismatch(few.factor, z, 0.3, 1.0, scored=observed, loadings=loadings)
        np.testing.assert_allclose(
            loadings @ loadings.T, (gwas.block.factor.T @ gwas.block.factor)[observed][:, observed], atol=0.1
        )
        assert not len(found.outliers())
        p.append((found.small.p, found.dropped.p))
    assert (np.sum(np.array(p) < 0.05, axis=0) <= binom.isf(1e-6, 100, 0.05)).all()


def test_a_block_of_one_direction_has_no_small_half():
    found = block_mismatch(np.array([[1.0, 0.9]]), [1.0, 0.9], 0.1, 1.0, largest_dropped=0.2)
    assert found.small is None
    assert found.leading is not None


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"z": [1.0, np.nan, 0.0]}, "z holds nan"),
        ({"z": [1.0, 0.0]}, "do not fit together"),
        ({"c": -0.1}, "c must be >= 0"),
        ({"noise": 0.0}, "noise positive"),
        ({"factor": np.full((2, 3), np.inf)}, "factor holds inf"),
        ({"loadings": np.ones((2, 3))}, "do not fit together"),
    ],
)
def test_wrong_input_is_refused(change, match):
    good = {"factor": np.linalg.qr(np.random.default_rng(0).normal(size=(3, 2)))[0].T, "z": [1.0, 2.0, 0.5]}
    good |= {"c": 0.1, "noise": 1.0, "loadings": None}
    given = good | change
    with pytest.raises(InputError, match=match):
        block_mismatch(given["factor"], given["z"], given["c"], given["noise"], loadings=given["loadings"])


# --- flags, weights, exclusion ---


def _variants(m: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "CHR": ["7"] * m,
            "SNP": [f"rs{j}" for j in range(m)],
            "BP": np.arange(1, m + 1) * 1000,
            "A1": ["A"] * m,
            "A2": ["G"] * m,
            "FREQ": np.full(m, 0.3),
        }
    )


def _trait(tmp_path, *, unequal: bool = False):
    """A store of four blocks of 120 variants, the second with flanks of 10, and z-scores of most of its variants."""
    parts = [Gwas(1500, 0.16, seed=seed) for seed in range(20, 24)]
    rng = np.random.default_rng(9)
    middle = np.zeros(120, dtype=bool)
    middle[10:110] = True
    blocks = [part.block for part in parts]
    blocks[1] = LDBlock.from_correlation(parts[1].R, scored=middle, eigenvalue_floor=0.16)
    variants = _variants(480)
    placed = zip(range(0, 480, 120), blocks, strict=True)
    store = write_ld(tmp_path / "ld.h5", variants, placed, build="GRCh38", n_samples=1500)
    n = rng.choice([15_000.0, 20_000.0], 480) if unequal else np.full(480, 20_000.0)
    own = [np.sqrt(some / some.mean()) for some in np.split(n, 4)]
    z = np.concatenate([r * (p.R @ p.effects(0.3)) + p.draw(np.zeros(120)) for r, p in zip(own, parts, strict=True)])
    frame = pl.DataFrame({"VARIANT": np.arange(480, dtype=np.uint32), "Z": z, "N": n})
    return store, frame.filter(pl.col("VARIANT") % 11 != 5)


@pytest.mark.parametrize("unequal", [False, True])
def test_the_table_is_what_each_block_says(tmp_path, unequal):
    store, frame = _trait(tmp_path, unequal=unequal)
    blocks = open_trait(store, frame)
    found = diagnose(blocks, store, effect_variance=0.3 / 17_500, noise=1.0, threshold=1.5)
    assert found.table.height == 4
    assert not found.flagged.any()
    assert (found.weights == 1).all()
    for i, row in enumerate(found.table.to_dicts()):
        block, ld = blocks[i], blocks.ld_block(i)
        expected = block_mismatch(
            ld.factor,
            block.z[block.observed],
            block.sample_size * 0.3 / 17_500,
            1.0,
            scored=block.observed,
            loadings=np.linalg.pinv(ld.whitener.astype(float)),
            largest_dropped=store.eigenvalues(i)[-1],
        )
        assert row["BLOCK"] == i
        assert row["SMALL_RATIO"] == pytest.approx(expected.small.ratio, rel=1e-3)
        assert row["DROPPED_RATIO"] == pytest.approx(expected.dropped.ratio, rel=1e-3)
        assert row["LEADING_P"] == pytest.approx(expected.leading.p, rel=1e-2)
        assert row["NOISE"] == pytest.approx(expected.noise, rel=1e-3)
        assert abs(row["WORST_T"]) == pytest.approx(np.abs(expected.statistic).max(), rel=1e-3)
        rows = block.rows.start + np.flatnonzero(block.observed)
        assert row["WORST"] == f"rs{rows[np.abs(expected.statistic).argmax()]}"
        assert (row["START"], row["STOP"], row["SCORED"]) == ((rows[0] + 1) * 1000, (rows[-1] + 1) * 1000, len(rows))
        assert row["EIGENVALUES"] == ld.k


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("floor", [0.02, 1e-3])
def test_factors_of_8_bits_do_not_look_like_mismatch(tmp_path, complete, floor):
    """Neither those of the store nor those a fit asks for: under the model, with 20 for N f, and with flanks."""
    R, people = dense.example_ld(2000, 300)
    scored = np.ones((2, 300), dtype=bool)
    scored[1] = (np.arange(300) >= 100) & (np.arange(300) < 200)
    parts = [LDBlock.from_correlation(R, mask, eigenvalue_floor=floor) for mask in scored]
    traits = [dense.simulated_trait(R, np.random.default_rng(i), scored=x, mean_c=20.0) for i, x in enumerate(scored)]
    size = traits[0].sample_size
    rows = np.flatnonzero(scored.ravel())
    frame = pl.DataFrame({"VARIANT": rows, "Z": np.concatenate([t.z for t in traits]), "N": np.full(len(rows), size)})
    if not complete:
        frame = frame.filter(pl.col("VARIANT") % 11 != 5)
    tables = {}
    for dtype in ("float32", "int8"):
        path, blocks = tmp_path / f"{dtype}.h5", zip((0, 300), parts, strict=True)
        with write_ld(path, _variants(600), blocks, build="GRCh38", n_samples=people, dtype=dtype) as store:
            for used in ("float32", "int8"):
                opened = open_trait(store, frame, factor_dtype=used)
                tables[dtype, used] = diagnose(opened, store, effect_variance=20 / size, noise=1.0).table
    expected = tables["float32", "float32"]
    for table in tables.values():
        assert table["FLAG"].null_count() == 2
        for name, tolerance in (("SMALL_RATIO", 0.03), ("LEADING_RATIO", 0.03), ("DROPPED_RATIO", 0.1)):
            found, right = (x[name].cast(pl.Float64).fill_null(-1.0).to_numpy() for x in (table, expected))
            np.testing.assert_allclose(found, right, atol=tolerance, err_msg=name)


def test_nothing_dropped_has_no_energy():
    """All directions are kept; that the stored loadings fall short of R_jj = 1 by rounding is no dropped direction."""
    gwas = Gwas(1500, 1e-6, m=40)
    assert gwas.block.k == 40
    factor = gwas.block.factor * 0.99
    z = gwas.draw(gwas.effects(0.3))
    assert block_mismatch(factor, z, 0.3, 1.0).dropped is None
    assert block_mismatch(factor[:-1], z, 0.3, 1.0).dropped is not None


def test_a_block_of_weight_0_is_as_if_left_out_of_the_constant_prior():
    rng = np.random.default_rng(4)
    signal = [rng.exponential(size=200) * 3 for _ in range(4)]
    blocks = [Spectrum(x, (0.5 * x + 1.2) * rng.normal(size=200) ** 2) for x in signal]
    blocks[1] = Spectrum(signal[1], 9 * blocks[1].squares)
    for noise in (None, 1.2):
        whole = fit_scale(blocks, noise=noise)
        without = fit_scale([blocks[i] for i in (0, 2, 3)], noise=noise)
        dropped = fit_scale(blocks, noise=noise, weights=np.array([1.0, 0.0, 1.0, 1.0]))
        twice = fit_scale([*blocks, blocks[1]], noise=noise)
        double = fit_scale(blocks, noise=noise, weights=np.array([1.0, 2.0, 1.0, 1.0]))
        half = fit_scale(blocks, noise=noise, weights=np.array([1.0, 0.5, 1.0, 1.0]))
        for found, expected in ((dropped, without), (double, twice)):
            assert found.log_scale == pytest.approx(expected.log_scale, abs=1e-5)
            assert found.noise == pytest.approx(expected.noise, rel=1e-5)
            assert found.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-9)
        assert without.log_scale + 0.05 < half.log_scale < whole.log_scale - 0.05


def test_swapped_alleles_are_listed(tmp_path):
    store, frame = _trait(tmp_path)
    R = store.block(2).factor.T @ store.block(2).factor
    tight = 240 + np.flatnonzero(np.sort(R**2, axis=1)[:, -2] > 0.7)
    inside = frame.filter(pl.col("VARIANT").is_in(tight)).with_columns(SIZE=pl.col("Z").abs()).sort("SIZE")
    worst = int(inside["VARIANT"][-1])
    z = pl.when(pl.col("VARIANT") == worst).then(-pl.col("Z")).otherwise(pl.col("Z"))
    wrong = frame.with_columns(Z=z)
    found = diagnose(open_trait(store, wrong), store, effect_variance=0.3 / 20_000, noise=1.0)
    assert found.flagged.tolist() == [False, False, True, False]
    assert found.weights[2] < 1
    found.write(tmp_path)
    table = pl.read_csv(tmp_path / "mismatch_variants.tsv", separator="\t", schema=_VARIANT_SCHEMA)
    validate_table(table, "mismatch_variants", "mismatch_variants.tsv")
    row = table.row(0, named=True)
    assert (row["SNP"], row["BLOCK"]) == (f"rs{worst}", 2)
    assert row["Z"] * row["EXPECTED_Z"] < 0
    summary = found.summary("exclude")
    assert summary["worst_variant"]["SNP"] == f"rs{worst}"
    assert summary["by_reason"]["outliers"] == 1
    assert [b["weight"] for b in summary["flagged_blocks"]] == [0.0]
    (first, *rest) = mismatch_lines(summary)
    assert "1 of 4 LD blocks flagged" in first
    assert "left out of training" in first
    assert f"rs{worst}: z = {row['Z']:.1f}" in rest[0]


def test_flags_and_weights():
    gwas = Gwas(1500, 0.16, seed=11)
    z = gwas.draw(gwas.effects(0.5))
    good = block_mismatch(gwas.block.factor, z, 0.5, 1.0)
    assert _judgement(good, 0, 1.5, 1e-4) == ([], 1.0)
    other = Gwas(1500, 0.16, seed=12)
    bad = block_mismatch(gwas.block.factor, other.draw(other.effects(0.5)), 0.5, 1.0)
    flags, weight = _judgement(bad, len(bad.outliers()), 1.5, 1e-4)
    assert flags[:2] == ["dropped", "small"]
    assert weight <= 1 / max(bad.dropped.ratio, bad.small.ratio)
    most = np.max(bad.statistic**2) / chi2.isf(OUTLIER_P, 1)
    assert weight == pytest.approx(1 / max(bad.dropped.ratio, bad.small.ratio, most), rel=1e-3)
    assert _judgement(bad, 0, 1e6, 1e-4) == ([], 1.0)  # however improbable, below the threshold


def test_excluded_blocks_leave_training_and_early_stopping_only():
    rotation = Rotation(np.array([0, 1, 2]), np.array([3, 4]), np.array([5]))
    flagged = np.array([False, True, False, True, False, True])
    (found,) = without_flagged([rotation], flagged)
    assert (found.train.tolist(), found.validation.tolist(), found.test.tolist()) == ([0, 2], [4], [5])
    with pytest.raises(InputError, match=r"5 of 6 LD blocks are flagged.*--mismatch report"):
        without_flagged([rotation], np.arange(6) > 0)


def test_tables_have_their_specified_columns(tmp_path):
    for schema, name in ((_BLOCK_SCHEMA, "mismatch"), (_VARIANT_SCHEMA, "mismatch_variants")):
        assert list(schema) == [field["name"] for field in load_spec(name)["fields"]]
    empty = Mismatch(pl.DataFrame(schema=_BLOCK_SCHEMA), pl.DataFrame(schema=_VARIANT_SCHEMA), 1.5, 1e-6, 1.0)
    empty.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mismatch.tsv", "mismatch_variants.tsv"]
    assert (tmp_path / "mismatch.tsv").read_text().rstrip().split("\t") == list(_BLOCK_SCHEMA)
    wrong = pl.DataFrame({name: [None] for name in _BLOCK_SCHEMA}, schema=_BLOCK_SCHEMA)
    with pytest.raises(InputError, match="missing value"):
        validate_table(wrong, "mismatch", "mismatch.tsv")
