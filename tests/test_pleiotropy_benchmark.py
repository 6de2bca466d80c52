"""The pleiotropy benchmark's parts: simulations are what they say, baselines hold where their theory does, metrics."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats

from benchmarks import pleiotropy_baselines as baselines
from benchmarks import pleiotropy_metrics as metrics
from benchmarks.pleiotropy_genome import Genome, load_genome, save_genome, simulate_genome
from benchmarks.pleiotropy_simulate import CLASSES, SCENARIOS, Pair, Recipe, Simulated, simulate
from benchmarks.simulate import Region
from deepwas.errors import InputError

CODE = {name: number for number, name in enumerate(CLASSES)}


@pytest.fixture(scope="module")
def genome() -> Genome:
    """60 regions of 40 variants with correlations 0.9^distance in the GWAS, 0.85^distance in the panel."""
    distance = np.abs(np.subtract.outer(np.arange(40), np.arange(40)))
    region = Region(np.linspace(0, 1e6, 40), np.full(40, 0.2), 0.9**distance)
    return Genome((region,) * 60, (0.85**distance,) * 60, 400)


@pytest.fixture(scope="module")
def mixed(genome) -> Simulated:
    return simulate("mixed", genome=genome, seed=3, polygenicity=0.02)


def test_effects_are_those_of_the_model(genome, mixed):
    K = mixed.recipe.traits
    through = mixed.total @ (np.eye(K) - mixed.T)
    np.testing.assert_allclose(through, mixed.own + np.outer(mixed.factor, mixed.loading), atol=1e-12)
    assert not np.linalg.matrix_power(mixed.T, K).any()
    assert (mixed.T != 0).sum() == 3
    strength = np.abs(mixed.T[mixed.T != 0])
    assert ((strength >= 0.1) & (strength <= 0.5)).all()
    assert (mixed.loading != 0).sum() == 3
    np.testing.assert_array_equal(mixed.D, mixed.own != 0)


def test_classes_follow_from_the_effects(mixed):
    """Worked out anew from D, T, u and the pairs; `total` then says on how many traits each class acts."""
    causes = (mixed.T != 0).any(axis=1)
    in_pair = {row for pair in mixed.pairs for row in (pair.first, pair.second)}
    for row, number in enumerate(mixed.klass):
        own = np.flatnonzero(mixed.D[row])
        if len(own) > 1:
            expected = "direct"
        elif mixed.factor[row]:
            expected = "confounder"
        elif row in in_pair:
            expected = "ld_only"
        elif len(own):
            expected = "vertical" if causes[own[0]] else "single"
        else:
            expected = "null"
        assert CLASSES[number] == expected, row
    acts = (np.abs(mixed.total) > 1e-12).sum(axis=1)
    assert (acts[mixed.klass == CODE["null"]] == 0).all()
    for name in ("single", "ld_only"):
        assert (acts[mixed.klass == CODE[name]] == 1).all()
    for name in ("direct", "vertical", "confounder"):
        assert (acts[mixed.klass == CODE[name]] >= 2).all()
    counts = mixed.recipe.counts(len(mixed.klass))
    found = {name: int((mixed.klass == CODE[name]).sum()) for name in CLASSES}
    assert found["single"] + found["vertical"] == counts["single"]
    for name in ("direct", "confounder", "ld_only"):
        assert found[name] == counts[name] > 0
    acting = mixed.D.sum() + (mixed.factor != 0).sum() * 3
    assert acting / (6 * len(mixed.klass)) == pytest.approx(0.02, rel=0.1)


def test_replicates_of_the_same_traits_differ_in_their_effects(genome, mixed):
    other = simulate("mixed", genome=genome, seed=4, like=mixed, polygenicity=0.02)
    for name in ("annotations", "T", "loading", "noise_correlation"):
        np.testing.assert_array_equal(getattr(other, name), getattr(mixed, name))
    assert (other.D & mixed.D).sum() < 0.1 * mixed.D.sum()
    through = other.total @ (np.eye(6) - mixed.T)
    np.testing.assert_allclose(through, other.own + np.outer(other.factor, mixed.loading), atol=1e-12)
    for name, prior in mixed.priors.items():
        np.testing.assert_allclose(other.priors[name], prior, rtol=1e-9)


def test_pairs_are_distinct_variants_of_two_traits_in_ld(genome, mixed):
    assert len(mixed.pairs) == mixed.recipe.counts(genome.M)["ld_only"] // 2
    for pair in mixed.pairs:
        number = genome.block[pair.first]
        assert number == genome.block[pair.second]
        begin = genome.starts[number]
        R = genome.regions[number].correlation
        assert pair.r2 == pytest.approx(R[pair.first - begin, pair.second - begin] ** 2)
        assert 0.2 <= pair.r2 <= 0.95
        for row, trait in zip((pair.first, pair.second), pair.traits, strict=True):
            np.testing.assert_array_equal(np.flatnonzero(mixed.D[row]), [trait])
        assert pair.traits[0] != pair.traits[1]
    assert max(p.r2 for p in mixed.pairs) - min(p.r2 for p in mixed.pairs) > 0.3


def test_noise_has_the_covariance_of_sample_overlap(genome):
    found = simulate("mixed", genome=genome, seed=1, overlap=0.8, sample_size=(5e4, 1e5, 1e5, 2e5, 2e5, 5e5))
    whitened = []
    for number, region in enumerate(genome.regions):
        rows = genome.rows(number)
        mean = region.correlation @ found.total[rows] * np.sqrt(found.N)
        whitened.append(np.linalg.solve(np.linalg.cholesky(region.correlation), found.z[rows] - mean))
    e, C = np.concatenate(whitened), found.noise_correlation
    error = np.sqrt((1 + C**2) / len(e))
    assert (np.abs(e.T @ e / len(e) - C) < 4.5 * error).all()
    assert np.abs(C - np.eye(6)).max() > 0.2
    # No correlation between neighbours is left.
    assert abs((e[1:] * e[:-1]).mean()) < 4.5 / math.sqrt(6 * len(e))


@pytest.mark.parametrize("bounded", [False, True])
def test_effect_sizes_and_heritability(genome, bounded):
    recipe = Recipe(polygenicity=0.15, bounded=bounded, signal=50.0, sample_size=1e5)
    found = simulate(recipe, genome=genome)
    size = np.sqrt(1e5) * found.own[found.D]
    assert len(size) == round(0.15 * 6 * genome.M)
    # Squares of a normal variate have variance 2; of the bounded sizes less.
    assert abs((size**2).mean() / 50 - 1) < 4 * math.sqrt(2 / len(size))
    if bounded:
        assert np.ptp(np.abs(size)) < np.sqrt(50) * 0.6 / np.sqrt(1.03)
    scaled = simulate(replace(recipe, h2=0.3), genome=genome)
    np.testing.assert_allclose((scaled.own**2).sum(axis=0), 0.3, rtol=0.3)


def test_informative_priors_are_the_variance_of_total_effects(genome):
    """In tenths of the prior, squared effects of many replicates sum to what it says; misleading ones reverse it."""
    said, true, false, decoys = np.zeros(10), np.zeros(10), np.zeros(10), []
    few = Genome(genome.regions[:12])
    shares = {"single": 0.4, "direct": 0.4, "confounder": 0.2}
    for seed in range(100):
        found = simulate("h", genome=few, seed=seed, polygenicity=0.008, bounded=True, shares=shares)
        assert {name: prior.shape for name, prior in found.priors.items()} == dict.fromkeys(
            ("flat", "informative", "uninformative", "misleading"), found.z.shape
        )
        np.testing.assert_allclose(found.priors["flat"], found.priors["flat"][:1].repeat(few.M, axis=0))
        for prior in found.priors.values():
            np.testing.assert_allclose(prior.mean(axis=0), found.priors["flat"][0])
        tenth = np.argsort(np.argsort(found.priors["informative"].ravel())) * 10 // found.z.size
        square = found.total.ravel() ** 2
        said += np.bincount(tenth, weights=found.priors["informative"].ravel())
        true += np.bincount(tenth, weights=square)
        false += np.bincount(np.argsort(np.argsort(found.priors["misleading"].ravel())) * 10 // len(square), square)
        decoys.append(np.corrcoef(found.priors["uninformative"].ravel(), square)[0, 1])
    assert true.sum() == pytest.approx(said.sum(), rel=0.1)
    np.testing.assert_allclose(true / true.sum(), said / said.sum(), atol=0.05)
    assert said[9] / said.sum() > 0.4
    assert false[9] / false.sum() < 0.1
    assert abs(np.mean(decoys)) < 4 * np.std(decoys) / math.sqrt(len(decoys))
    unannotated = simulate("mixed", genome=genome)
    np.testing.assert_array_equal(unannotated.priors["informative"], unannotated.priors["flat"])


def test_scenarios_hold_what_they_are_for(genome):
    classes = {"a": set(), "b": {"single"}, "c": {"single", "direct"}, "d": {"single", "vertical"}}
    classes |= {"e": {"single", "confounder"}, "f": {"ld_only"}}
    everything = {"single", "direct", "vertical", "confounder", "ld_only"}
    classes |= {"mixed": everything, "g": everything, "h": everything, "pilot": everything - {"confounder"}}
    assert set(classes) == set(SCENARIOS)
    for name, expected in classes.items():
        found = simulate(name, genome=genome, seed=2, **({} if name == "a" else {"polygenicity": 0.02}))
        assert {CLASSES[number] for number in np.unique(found.klass)} - {"null"} == expected, name
        assert np.isfinite(found.z).all()
    panel = simulate("g", genome=genome)
    np.testing.assert_array_equal(panel.ld[0], genome.panel[0])
    r2 = panel.ld[3] ** 2
    np.testing.assert_allclose(panel.ld_scores[genome.rows(3)], (r2 - (1 - r2) / 398).sum(axis=1))
    gwas = simulate("mixed", genome=genome)
    np.testing.assert_array_equal(gwas.z, panel.z)
    np.testing.assert_allclose(gwas.ld_scores[:40], (genome.regions[0].correlation ** 2).sum(axis=1))
    assert (simulate("mixed", genome=genome, seed=1).z != gwas.z).all()


def test_wrong_recipes_are_refused(genome):
    def refused(pattern, scenario="mixed", genome=genome, **changes):
        with pytest.raises(InputError, match=pattern):
            simulate(scenario, genome=genome, **changes)

    refused("no scenario is called 'z'", "z")
    refused("traits is 1", traits=1)
    refused("give single, direct, confounder, ld_only", shares={"shared": 1.0})
    refused("shares are all 0", shares={"single": 0.0})
    refused("between 0 and 1", polygenicity=1.5)
    refused("lie in 2 to 6", direct_traits=(2, 7))
    refused("up to 15 without a cycle", paths=16)
    refused("ranges above 0", pair_r2=(0.5, 0.2))
    refused("one for each of 6 traits", sample_size=(1e5, 1e5))
    refused("asks for 14,400 of 2,400 variants", "b", polygenicity=1.0)
    refused("the genome has none", "g", genome=Genome(genome.regions))
    unlinked = Region(np.linspace(0, 1e6, 40), np.full(40, 0.2), np.eye(40))
    refused("no free partner", "f", genome=Genome((unlinked,) * 60), polygenicity=0.02)
    with pytest.raises(InputError, match="panel_people 1"):
        simulate_genome(2, panel_people=1)


def test_coalescent_genomes_are_kept_and_read(tmp_path):
    pytest.importorskip("msprime")
    found = simulate_genome(2, m=20, people=60, panel_people=40, seed=1)
    assert found.M == 40
    assert found.panel is not None
    np.testing.assert_array_equal(found.starts, [0, 20, 40])
    np.testing.assert_array_equal(found.block, np.repeat([0, 1], 20))
    for R, other in zip((r.correlation for r in found.regions), found.panel, strict=True):
        np.testing.assert_allclose(np.diag(R), 1)
        assert 0.02 < np.sqrt(((R - other) ** 2).mean()) < 0.3  # two samples of one population
        assert np.corrcoef(R.ravel(), other.ravel())[0, 1] > 0.8
    save_genome(found, tmp_path / "genome.npz")
    again = load_genome(tmp_path / "genome.npz")
    np.testing.assert_allclose(again.regions[1].correlation, found.regions[1].correlation, atol=1e-7)
    np.testing.assert_allclose(again.panel[1], found.panel[1], atol=1e-7)
    np.testing.assert_array_equal(again.regions[0].position, found.regions[0].position)
    assert again.panel_people == 40
    save_genome(Genome(found.regions), tmp_path / "alone.npz")
    assert load_genome(tmp_path / "alone.npz").panel is None


def test_the_tail_of_a_product_of_normals():
    t = np.array([1e-3, 0.1, 1.0, 5.0, 30.0])

    def integrand(x: float, cut: float) -> float:
        return 4 * stats.norm.pdf(x) * stats.norm.sf(cut / x)

    exact = [integrate.quad(integrand, 0, 20, args=(cut,), epsabs=0, points=[math.sqrt(cut)])[0] for cut in t]
    np.testing.assert_allclose(np.exp(baselines.log_product_tail(t)), exact, rtol=1e-4)
    # Beyond the table the leading term takes over without a step, and nothing underflows.
    near, far = baselines.log_product_tail(np.array([999.9999, 1000.0001]))
    assert abs(near - far) < 1e-3
    assert baselines.log_product_tail(np.array([5000.0]))[0] < -4990


def test_the_product_test_is_uniform_without_effects_and_holds_for_one_trait():
    rng = np.random.default_rng(4)
    z = rng.normal(size=(20_000, 2)) @ np.linalg.cholesky([[1, 0.4], [0.4, 1]]).T
    found = baselines.product_test(z)
    assert stats.kstest(found.p, "uniform").pvalue > 0.01
    assert not found.called.any()
    z[:4_000, 0] += rng.normal(size=4_000)  # effects on one trait: the composite null
    found = baselines.product_test(z)
    for cut in (1e-2, 1e-3):
        assert stats.binomtest(int((found.p < cut).sum()), 20_000, cut).pvalue > 1e-3
    z[50:60] += 9.0
    found = baselines.product_test(z)
    assert found.called[50:60].all()
    assert set(np.argsort(-found.score)[:10]) == set(range(50, 60))
    three = baselines.product_test(np.column_stack([z, rng.normal(size=20_000)]))
    assert (three.p[50:60] >= found.p[50:60]).all()  # the number of pairs is paid for


def test_two_significant_traits():
    cut = stats.norm.isf(2.5e-8)
    z = np.array([[cut + 0.01, -cut - 0.01, 0], [cut + 9, cut - 0.01, 0], [0, 0, 30.0]])
    found = baselines.two_significant(z)
    np.testing.assert_array_equal(found.called, [True, False, False])
    np.testing.assert_allclose(found.score, [cut + 0.01, cut - 0.01, 0])


def test_components_of_the_mixture_are_normal_densities_and_conditional_moments():
    rng = np.random.default_rng(5)
    z, C = rng.normal(size=(4, 2)), np.array([[1, 0.3], [0.3, 1]])
    variances = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 9.0]])
    log_density, squares = baselines._components(z, C, variances)
    for row, v in enumerate(variances):
        S = C + np.diag(v)
        np.testing.assert_allclose(
            log_density[:, row] - math.log(2 * math.pi), stats.multivariate_normal(None, S).logpdf(z)
        )
        gain = np.diag(v) @ np.linalg.inv(S)
        spread = np.diag(v) - gain @ np.diag(v)
        np.testing.assert_allclose(squares[row], (z @ gain.T) ** 2 + np.diag(spread), atol=1e-12)


def test_the_mixture_is_calibrated_where_it_is_true():
    rng = np.random.default_rng(6)
    delta = rng.random((12_000, 3)) < 0.05
    delta[:600] = True
    noise = rng.normal(size=(12_000, 3)) @ np.linalg.cholesky(0.3 + 0.7 * np.eye(3)).T
    z = noise + delta * rng.normal(size=(12_000, 3)) * np.sqrt([30.0, 60.0, 90.0])
    found = baselines.mixture(z)
    truth = delta.sum(axis=1) >= 2
    assert metrics.reliability(found.probability, truth).error < 0.01
    false = (found.called & ~truth).sum() / found.called.sum()
    assert 0.02 < false < 0.08
    assert (found.called & truth).sum() / truth.sum() > 0.6
    with pytest.raises(InputError, match="K is 9"):
        baselines.mixture(np.zeros((10, 9)))
    with pytest.raises(InputError, match="too few"):
        baselines.mixture(np.full((10, 2), 9.0))


def test_every_baseline_answers_on_every_variant(mixed):
    found = baselines.all_baselines(mixed.z, mixed.ld_scores, permutations=2)
    modes = ("plain", "polygenicity", "LD", "LD, polygenicity")
    hops = [f"HOPS {score} ({mode})" for mode in modes for score in ("Pm", "Pn")]
    assert [c.name for c in found] == [*hops, "product test, pairs", ">= 2 traits at 5e-08", "mixture without LD"]
    chance = mixed.direct.mean()
    for calls in found:
        assert calls.score.shape == calls.called.shape == mixed.klass.shape
        assert np.isfinite(calls.score).all()
    assert metrics.average_precision(mixed.direct, found[9].score) > 2 * chance
    assert [c.name for c in found if c.probability is not None] == ["mixture without LD"]


def test_average_precision_and_power_by_enumeration():
    rng = np.random.default_rng(7)
    truth, score = rng.random(200) < 0.2, np.round(rng.normal(size=200), 1)
    score[truth] += 1
    cuts = [(truth & (score >= c), score >= c) for c in np.unique(score)[::-1]]
    area, before = 0.0, 0.0
    for hit, call in cuts:
        recall = hit.sum() / truth.sum()
        area += (recall - before) * hit.sum() / call.sum()
        before = recall
    assert metrics.average_precision(truth, score) == pytest.approx(area)
    best = max(hit.sum() / truth.sum() for hit, call in cuts if 1 - hit.sum() / call.sum() <= 0.3)
    assert metrics.power_at_fdr(truth, score, 0.3) == pytest.approx(best)
    assert 0 < best < 1
    assert math.isnan(metrics.average_precision(np.zeros(3, bool), np.arange(3.0)))
    assert metrics.power_at_fdr(np.array([False, True]), np.array([2.0, 1.0])) == 0
    assert metrics.average_precision(np.array([True, False]), np.array([1.0, np.nan])) == 1
    sklearn = pytest.importorskip("sklearn.metrics")
    assert metrics.average_precision(truth, score) == pytest.approx(sklearn.average_precision_score(truth, score))


def test_calls_at_a_nominal_rate():
    p = np.array([0.001, 0.02, 0.024, 0.9, np.nan])
    np.testing.assert_array_equal(metrics.calls_by_p(p), [True, True, True, False, False])
    np.testing.assert_array_equal(metrics.calls_by_p(p, 0.01), [True, False, False, False, False])
    fdr = np.array([0.09, 0.01, 0.01, 0.08, np.nan, 0.08])
    # Means from the smallest on: 0.01, 0.01, then both of 0.08 together 0.045, then 0.054.
    np.testing.assert_array_equal(metrics.calls_by_local_fdr(fdr), [False, True, True, True, False, True])
    np.testing.assert_array_equal(metrics.calls_by_local_fdr(fdr, 0.04), [False, True, True, False, False, False])
    assert not metrics.calls_by_local_fdr(fdr, 0.001).any()


def test_reliability_by_hand():
    probability, truth = np.array([0.02, 0.06, 0.95, 1.0, 0.5]), np.array([False, True, True, True, False])
    found = metrics.reliability(probability, truth)
    np.testing.assert_allclose(found.stated, [0.04, 0.5, 0.975])
    np.testing.assert_allclose(found.observed, [0.5, 0, 1])
    np.testing.assert_array_equal(found.number, [2, 1, 2])
    assert found.error == pytest.approx((2 * 0.46 + 0.5 + 2 * 0.025) / 5)
    assert metrics.reliability(probability, truth, above=0.9).error == pytest.approx(0.025)
    assert math.isnan(metrics.reliability(probability[:2], truth[:2], above=0.9).error)
    with pytest.raises(InputError, match="between 0 and 1"):
        metrics.reliability(np.array([1.2]), np.array([True]))


def test_tables_over_classes_pairs_and_loci():
    klass = np.array([CODE[n] for n in ("null", "direct", "vertical", "ld_only", "ld_only", "null", "single")])
    called = np.array([False, True, True, False, True, True, False])
    table = metrics.confusion(klass, np.where(called, CODE["direct"], CODE["null"]))
    assert table.sum() == 7
    assert table[CODE["vertical"], CODE["direct"]] == 1
    assert table[CODE["null"], CODE["null"]] == 1
    assert metrics.class_rates(klass, called) == {
        "null": (1, 2), "single": (0, 1), "direct": (1, 1), "vertical": (1, 1), "ld_only": (1, 2)
    }  # fmt: skip
    pairs = [Pair(3, 4, (0, 1), 0.3), Pair(0, 6, (0, 1), 0.95)]
    assert metrics.pair_rates(pairs, called) == {(0.2, 0.5): (1, 1), (0.5, 0.8): (0, 0), (0.8, 0.95): (0, 1)}
    R = np.eye(7)
    R[1, 2] = R[2, 1] = 0.9
    R[4, 5] = R[5, 4] = 0.3  # r2 0.09
    loci = metrics.clump(called, np.array([0, 1, 3, 0, 2, 4, 0.0]), [R[:4, :4], R[4:, 4:]], np.array([0, 4, 7]))
    assert [list(rows) for rows in loci] == [[2, 1], [5], [4]]
    np.testing.assert_array_equal(metrics.locus_classes(loci, klass), [CODE["direct"], CODE["null"], CODE["ld_only"]])
    np.testing.assert_array_equal(np.flatnonzero(metrics.union(loci, 7)), [1, 2, 4, 5])


def test_rates_over_replicates():
    found = metrics.pooled_fdr([1, 0, 2, 1], [20, 20, 20, 20])
    assert (found.share, found.false, found.called) == (0.05, 4, 80)
    # All 256 equally likely draws of four replicates.
    shares = [sum(draw) / 80 for draw in itertools.product([1, 0, 2, 1], repeat=4)]
    np.testing.assert_allclose([found.low, found.high], np.quantile(shares, [0.025, 0.975]), atol=0.0126)
    assert found.within(0.05)
    assert not metrics.pooled_fdr([10, 12], [20, 20]).within(0.05)
    assert metrics.pooled_fdr([0, 0], [0, 0]).within(0.05)
    with pytest.raises(InputError, match="never above"):
        metrics.pooled_fdr([3], [2])
    assert metrics.false_calls_per_100k([1, 0, 1], [50_000] * 3) == pytest.approx(4 / 3)
    summary = metrics.mean_and_error([1.0, 3.0, math.nan])
    assert summary == {"mean": 2.0, "standard_error": pytest.approx(1.0), "replicates": 2}


def test_some_traits_share_and_some_are_silent(genome):
    """Direct variants act on the first traits alone, nothing on the last; what cannot be is refused."""
    found = simulate(
        "c", genome=genome, seed=3, traits=5, polygenicity=0.05, sharers=2, silent=1, factor_traits=3, signal=60.0
    )
    assert found.direct.sum() > 3
    assert found.D[found.direct][:, :2].all()
    assert not found.D[found.direct][:, 2:].any()
    assert not found.total[:, 4].any()
    # Priors have as many effects of each trait as there are; the last is given what others have that share nothing.
    said = found.priors["flat"].sum(axis=0) / found.recipe.effect_variance(genome.M)
    drawn = np.mean(
        [
            simulate(
                "c", genome=genome, seed=s, traits=5, polygenicity=0.05, sharers=2, silent=1, factor_traits=3
            ).D.sum(axis=0)
            for s in range(20)
        ],
        axis=0,
    )
    np.testing.assert_allclose(said[:4], drawn[:4], rtol=0.06)
    assert said[4] == pytest.approx(said[3])
    assert (found.D[:, 2:4].sum(axis=0) > 0).all()
    np.testing.assert_allclose(found.priors["flat"][:, 4], found.priors["flat"][:, 3])
    for wrong in ({"silent": 4}, {"sharers": 1}, {"sharers": 5, "silent": 1}, {"factor_traits": 5, "silent": 1}):
        with pytest.raises(InputError, match=r"silent is|lie in 2 to"):
            simulate("c", genome=genome, traits=5, **({"factor_traits": 3} | wrong))
