"""The benchmark of pleiotropy, small: it runs from end to end, goes on where it stopped, and scores by the truth."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from benchmarks import pleiotropy, pleiotropy_analysis, pleiotropy_report, pleiotropy_score
from benchmarks import pleiotropy_metrics as metrics
from benchmarks.pleiotropy import Cell
from benchmarks.pleiotropy_baselines import Calls
from benchmarks.pleiotropy_genome import Genome, save_genome
from benchmarks.pleiotropy_simulate import CLASSES, simulate
from benchmarks.simulate import Region
from deepwas.errors import InputError
from deepwas.pleiotropy.calls import Locus

M = 30


@pytest.fixture(scope="module")
def genome() -> Genome:
    distance = np.abs(np.subtract.outer(np.arange(M), np.arange(M)))
    region = Region(np.linspace(0, 1e6, M), np.full(M, 0.2), 0.8**distance)
    return Genome((region,) * 8, (0.75**distance,) * 8, 400)


@pytest.fixture(scope="module")
def run(genome, tmp_path_factory):
    """A preset of two cells, measured; then measured again, to go on from what is there."""
    parts = tmp_path_factory.mktemp("pleiotropy")
    plan = dataclasses.replace(
        pleiotropy.PRESETS["quick"], regions=8, m=M, traits=2, learn_blocks=8, rounds=1, permutations=0,
        cells={"mixed": Cell("mixed", 1), "h": Cell("h", 1, priors=("flat", "informative", "constant", "learned"))},
    )  # fmt: skip
    save_genome(genome, parts / f"genome-8x{M}-{plan.people}-{plan.panel}-{plan.seed}.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pleiotropy.PRESETS, "quick", plan)
        patch.setattr(pleiotropy, "digest_of", lambda *_, **__: "same")  # files may change while tests run
        figures = pleiotropy.measure("quick", lambda *_: None, parts)
        (kept,) = parts.glob("*.jsonl")
        lines = kept.read_text().splitlines(keepends=True)
        kept.write_text(lines[0] + lines[1][:50])
        done: list[tuple[str, int, int]] = []
        again = pleiotropy.measure("quick", lambda *x: done.append(x), parts)
    return SimpleNamespace(figures=figures, again=again, done=done, lines=lines, kept=kept)


def test_a_small_problem_from_end_to_end(run, tmp_path):
    cells = run.figures["cells"]
    ours = {f"deepwas, {x}" for x in ("flat", "informative", "constant", "learned")}
    assert set(cells["h"]["methods"]) == {*ours, ">= 2 traits at 5e-08"}
    for cell in cells.values():
        assert cell["refused"] == 0
        for method, own in cell["methods"].items():
            assert own["variants"]["direct"] == own["loci"]["direct"] > 0
            if method.startswith("deepwas"):
                assert sum(own["bins"]["number"]) == np.sum(own["confusion"]) == 8 * M
    json.dumps(run.figures, allow_nan=False)
    console = Console(record=True, width=240)
    for table in pleiotropy.tables(run.figures):
        console.print(table)
    said = console.export_text()
    assert all(x["what"] in said for x in run.figures["targets"])
    pleiotropy.draw(run.figures, tmp_path / "found.png")
    assert (tmp_path / "found.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_an_interrupted_run_goes_on_and_ends_the_same(run):
    assert run.done == [("replicates", 2, 2)]  # the first is not computed again, the one cut off is
    lines = run.kept.read_text().splitlines()
    assert len(lines) == 2
    assert lines[0] == run.lines[0].rstrip()
    for cell in [*run.figures["cells"].values(), *run.again["cells"].values()]:
        for own in cell["methods"].values():
            own.pop("seconds", None)
    assert run.again["cells"] == run.figures["cells"]


def test_other_settings_make_another_file():
    plan = pleiotropy.PRESETS["quick"]
    more = dataclasses.replace(plan, cells=plan.cells | {"a": dataclasses.replace(plan.cells["a"], replicates=9)})
    assert pleiotropy._digest(more) == pleiotropy._digest(plan)
    assert pleiotropy._digest(dataclasses.replace(plan, rounds=plan.rounds + 1)) != pleiotropy._digest(plan)


def test_unknown_priors_and_structures_are_refused(genome):
    simulated = simulate("mixed", genome=genome, seed=0, traits=2, factor_traits=2, paths=1, polygenicity=0.02)
    with pytest.raises(InputError, match="no prior is called 'nice'; there are: flat"):
        pleiotropy.analyse(simulated, prior="nice")
    with pytest.raises(InputError, match="structure is 'guessed'"):
        pleiotropy.analyse(simulated, structure="guessed")


def test_the_store_in_memory_holds_the_ld(genome):
    """G' G is the LD, and y = W z has the covariance I where z has R."""
    own = pleiotropy_analysis.reference(genome, 500_000)
    G, R = own.factor(3).decoded().astype(np.float64), genome.regions[3].correlation
    np.testing.assert_allclose(G.T @ G, R, atol=1e-4)
    W = own.whiteners[3].astype(np.float64)
    np.testing.assert_allclose(W @ R @ W.T, np.eye(len(W)), atol=1e-4)
    np.testing.assert_allclose(own.row_squares[3], (G**2).sum(axis=1), rtol=1e-4)
    assert own.block_slice(3) == slice(3 * M, 4 * M)


def test_where_nothing_acts_priors_promise_what_scenario_b_has(genome):
    simulated = simulate("a", genome=genome, seed=0, traits=2, factor_traits=2)
    f = pleiotropy_analysis.prior_of(simulated, "flat")
    np.testing.assert_allclose(f, 5e-4 * 80.0 / 2e5)


def _found(simulated, sets, shared, p):
    """An analysis that names these sets."""
    loci = [Locus(0, np.array(rows), np.ones(len(rows)), 1.0, 1.0, np.ones(1), 0.0, 0.0, None) for rows in sets]
    model = SimpleNamespace(factors=0)
    structure = SimpleNamespace(effects=SimpleNamespace(T=simulated.T), matrix=simulated.noise_correlation)
    klass = np.where(p > 0.5, "pleiotropic", "none")
    flagged = np.arange(len(sets)) == 1
    return pleiotropy.Analysis(
        {"pleiotropy": p} | {f"pip_{k}": p if k < 2 else 1e-4 * p for k in range(len(simulated.N))},
        klass,
        loci,
        np.array(shared),
        flagged,
        structure,
        model,
        1,
        {"locating": 0.0},
    )


def test_sets_are_judged_by_what_they_hold(genome):
    """One set with a direct variant, one with an LD pair, one with a vertical variant; the last is not called."""
    simulated = simulate(
        "mixed", genome=genome, seed=4, traits=3, polygenicity=0.06,
        shares={"single": 0.4, "direct": 0.3, "ld_only": 0.3}, paths=1,
    )  # fmt: skip
    code = {name: number for number, name in enumerate(CLASSES)}
    direct = int(np.flatnonzero(simulated.direct)[0])
    pair = simulated.pairs[0]
    vertical = int(np.flatnonzero(simulated.klass == code["vertical"])[0])
    null = int(np.flatnonzero(simulated.klass == 0)[0])
    p = np.full(genome.M, 1e-4)
    p[direct] = 0.99
    found = _found(simulated, [[direct, null], [pair.first, pair.second], [vertical]], [0.99, 0.98, 0.3], p)
    own = pleiotropy_score.score_analysis(simulated, found)
    assert own["loci"] == {
        "called": 2, "false": 1, "confounder": 0, "direct": int(simulated.direct.sum()), "found": 1,
    }  # fmt: skip
    assert own["variants"] == {"called": 1, "false": 0, "confounder": 0, "direct": int(simulated.direct.sum())}
    assert own["locus_classes"]["ld_only"][0] == 2
    assert own["locus_classes"]["vertical"][0] == own["locus_classes"]["direct"][0] == 0
    (place,) = [name for name, (hit, _) in own["locus_pairs"].items() if hit]
    low, high = map(float, place.split("-"))
    assert low <= pair.r2 <= high
    assert own["wrong_pairs_flagged"][place] == [1, 1]
    assert own["locus_average_precision"] == pytest.approx(1 / simulated.direct.sum())
    assert own["locus_power_matched"] == pytest.approx(1 / simulated.direct.sum())
    assert own["precision"][-1] == (1.0 if simulated.direct.sum() == 1 else 0.0)
    assert own["confusion"][code["direct"]][code["direct"]] == 1
    acts = simulated.D[direct]
    assert own["traits"] == {"true": int(acts.sum()), "named": int(acts[:2].sum()), "false": int((~acts[:2]).sum())}
    sums = np.array(own["locus_bins"])
    np.testing.assert_allclose(sums.sum(axis=1), [0.99 + 0.98 + 0.3, 1, 3])


def test_loci_of_other_methods_are_clumps_of_what_they_call(genome):
    simulated = simulate("mixed", genome=genome, seed=4, traits=3, polygenicity=0.06, paths=1)
    direct = int(np.flatnonzero(simulated.direct)[0])
    score = np.zeros(genome.M)
    score[direct] = 9.0
    far = (direct + 4 * M) % genome.M  # in another region
    score[far] = 5.0
    called = score > 0
    own = pleiotropy_score.score_calls(simulated, Calls("one", score, called))
    assert own["loci"]["called"] == 2
    assert own["loci"]["false"] == int(not simulated.direct[far])
    assert own["variants"]["called"] == 2


def test_nothing_to_call_is_no_call():
    assert metrics.calls_by_local_fdr(np.zeros(0)).shape == (0,)
    assert metrics.precision_at(np.zeros(0, bool), np.zeros(0), np.array([0.5]), 3).tolist() == [0.0]
    truth, score = np.array([True, False, True, False]), np.array([4.0, 3.0, 2.0, 1.0])
    np.testing.assert_allclose(metrics.precision_at(truth, score, np.array([0.5, 0.6, 1.0])), [1, 2 / 3, 2 / 3])
    assert metrics.precision_at(truth, score, np.array([0.25, 0.75]), 4).tolist() == [1.0, 0.0]


def test_calibration_of_parts_is_that_of_the_whole():
    rng = np.random.default_rng(0)
    p = rng.random(500)
    truth = rng.random(500) < p**2
    parts = metrics.bin_sums(p[:200], truth[:200]) + metrics.bin_sums(p[200:], truth[200:])
    bins = [(p >= low / 10) & (p < (low + 1) / 10) for low in range(10)]
    error = sum(abs(p[b].mean() - truth[b].mean()) * b.sum() for b in bins) / 500
    assert metrics.pooled_reliability(parts).error == pytest.approx(error)


def test_targets_follow_the_figures():
    fdr = {"share": 0.2, "low": 0.1, "high": 0.3, "false": 2, "called": 10}
    methods = {
        "deepwas, flat": {
            "loci": {"fdr": fdr, "false_per_100k": 3.0},
            "variants": {"fdr": fdr, "false_per_100k": 0.5},
        }
    }
    cell = {"methods": methods, "gains": {}, "refused": 1}
    targets = {x["what"]: x for x in pleiotropy_report._targets({"a": cell})}
    assert not targets["a: false calls per 100,000 variants, loci"]["met"]
    assert targets["a: false calls per 100,000 variants, variants"]["met"]
    assert not targets["replicates that deepwas refuses"]["met"]


def test_replicates_of_a_process_that_died_are_computed_by_others(monkeypatch, tmp_path):
    plan = dataclasses.replace(pleiotropy.PRESETS["quick"], workers=2)
    asked = []

    def dies(plan, left, world):
        asked.append(list(left))
        for one in left if len(asked) == 3 else left[:1]:
            yield {"cell": one[0], "number": one[1]}
        if len(asked) < 3:
            raise BrokenProcessPool

    monkeypatch.setattr(pleiotropy, "_by_processes", dies)
    left = [("mixed", 0), ("g", 0), ("mixed", 1), ("h", 0)]
    with pytest.warns(UserWarning, match="a process died"):
        found = [(one["cell"], one["number"]) for one in pleiotropy._each(plan, left, tmp_path)]
    assert found == left
    assert asked == [left, left[1:], left[2:]]

    def never(plan, left, world):
        raise BrokenProcessPool
        yield

    monkeypatch.setattr(pleiotropy, "_by_processes", never)
    with pytest.raises(BrokenProcessPool):
        list(pleiotropy._each(plan, left, tmp_path))
