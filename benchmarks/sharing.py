"""The test of sharing: how often it rejects where traits act on variants independently, and where they do not.

Blocks are cut from coalescent regions. Direct effects are drawn under the model of
`deepwas.pleiotropy.configurations`, psi = 0 or as said, with sample overlap; the test starts from slabs that are off by
half and learns them under psi = 0, as in a classification.

Without sharing: a constant prior; priors that follow annotations and rise together for all traits, so that effects on
two traits do meet more often than in a genome at random; a path from the first trait to the second, known with an
error, so that every effect on the first is seen in both; and effects that are e^`near` times likelier in LD with one
another, which look as if they were shared. With sharing: psi from 1 to 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rates import rate, said
from benchmarks.simulate import Region, simulate_regions

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from deepwas.pleiotropy.configurations import TraitModel
    from deepwas.pleiotropy.learning import JointBlock
    from deepwas.pleiotropy.sharing_test import SharingTest

__all__ = ["SETTINGS", "Problem", "draw", "measure", "tables"]

Progress = Callable[[str, int, int], None]
Array = NDArray[np.float64]

LEVEL = 0.05
SETTINGS = {
    "constant": "constant priors",
    "annotated": "priors that rise together",
    "path": "a path from trait to trait",
    "near": "effects that lie near one another",
}


@dataclass(frozen=True)
class Problem:
    """What is simulated.

    regions, people: of the LD.  m: variants of a block, and blocks: of a data set.  traits: K.  sample_size: N.
    overlap: off-diagonal of C_n.  share: pi, of the variants that act on a trait.  signal: N times the slab.
    path, path_error: T from the first trait to the second, and its standard error.  near: log odds.
    runs: data sets with constant priors and no sharing; some_runs: of each other setting without.  power_runs: of each
    psi.  psi: log odds.
    draws: of each test's bootstrap.  off: the slab that a test starts from, over the true one.
    """

    regions: int = 12
    people: int = 2000
    m: int = 50
    blocks: int = 16
    traits: int = 2
    sample_size: float = 2e5
    overlap: float = 0.3
    share: float = 0.01
    signal: float = 60.0
    path: float = 0.4
    path_error: float = 0.03
    near: float = 2.0
    runs: int = 700
    some_runs: int = 200
    power_runs: int = 60
    psi: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    draws: int = 19
    rounds: int = 3
    off: float = 1.5
    seed: int = 0


QUICK = Problem(regions=2, people=300, blocks=6, m=30, runs=6, some_runs=3, power_runs=4, psi=(4.0,))


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Simulate, test every data set, and return the figures, ready for JSON."""
    problem = QUICK if quick else Problem()
    regions = simulate_regions(
        problem.regions,
        m=8 * problem.m,
        people=problem.people,
        seed=problem.seed,
        progress=lambda done, total: progress("simulating LD", done, total),
    )
    factors = _factors(problem, regions)
    null = {}
    for number, name in enumerate(SETTINGS):
        runs = problem.runs if name == "constant" else problem.some_runs
        p = _tested(problem, factors, name, 0.0, runs, 1 + number, progress)
        null[name] = {"rejected": rate(sum(x <= LEVEL + 1e-9 for x in p), len(p)), "p": p}
    power = []
    for number, psi in enumerate(problem.psi):
        p = _tested(problem, factors, "constant", psi, problem.power_runs, 10 + number, progress)
        power.append({"psi": psi, "rejected": rate(sum(x <= LEVEL + 1e-9 for x in p), len(p)), "p": p})
    return {"settings": asdict(problem), "variants": problem.blocks * problem.m, "null": null, "power": power}


def _factors(problem: Problem, regions: list[Region]) -> list[NDArray[np.float32]]:
    """Of blocks of m neighbouring variants, every other stretch of the regions, so that no two touch."""
    from deepwas.ld import LDBlock

    found = []
    for region in regions:
        for start in range(0, region.m - problem.m + 1, 2 * problem.m):
            R = region.correlation[start : start + problem.m, start : start + problem.m]
            found.append(np.asarray(LDBlock.from_correlation(R, variance_kept=0.99).factor, np.float32))
    return found


def _tested(
    problem: Problem,
    factors: list[NDArray[np.float32]],
    setting: str,
    psi: float,
    runs: int,
    stream: int,
    progress: Progress,
) -> list[float]:
    """p of each data set."""
    what = f"psi = {psi:g}" if psi else SETTINGS[setting]
    found = []
    for run in range(runs):
        rng = np.random.default_rng([problem.seed, stream, run])
        found.append(_one(problem, factors, setting, psi, rng).p)
        progress(f"testing, {what}", run + 1, runs)
    return found


def _one(
    problem: Problem, factors: list[NDArray[np.float32]], setting: str, psi: float, rng: np.random.Generator
) -> SharingTest:
    from deepwas.pleiotropy.drawing import draw_block
    from deepwas.pleiotropy.learning import JointBlock
    from deepwas.pleiotropy.sharing_test import sharing_test

    true = _model(problem, setting, psi)
    largest = max(len(G) for G in factors)
    shape = (largest + (-largest) % 8, problem.m)
    blocks: list[JointBlock] = []
    chosen = rng.choice(len(factors), size=problem.blocks, replace=problem.blocks > len(factors))
    for i, number in enumerate(chosen.tolist()):
        G = factors[number]
        prior = problem.share * np.ones(problem.m)
        if setting == "annotated":
            prior = prior * np.exp(rng.normal(size=problem.m) - 0.5)
        direct = prior[:, None] * true.slab[None, :]
        nothing = np.zeros((len(G), problem.traits), np.float32)
        empty = JointBlock(G, nothing, direct, slice(i * problem.m, (i + 1) * problem.m), shape)
        blocks.append(draw_block(empty, true.log_odds(direct), true, rng)[0])
    return sharing_test(
        blocks,
        _believed(problem, true, setting, rng),
        draws=problem.draws,
        rounds=problem.rounds,
        seed=int(rng.integers(2**31)),
        slots=4,
        candidates=16,
    )


def _model(problem: Problem, setting: str, psi: float) -> TraitModel:
    """The truth."""
    from deepwas.pleiotropy.configurations import TraitModel

    K = problem.traits
    N = np.full(K, problem.sample_size)
    C = np.full((K, K), problem.overlap) + (1 - problem.overlap) * np.eye(K)
    T = np.zeros((K, K))
    if setting == "path":
        T[0, 1] = problem.path
    excess = np.where(np.arange(K + 1) >= 2, psi, 0.0)
    near = problem.near if setting == "near" else 0.0
    slab = np.full(K, problem.signal / problem.sample_size)
    return TraitModel(N, C, slab, T, excess=excess, together=(near, near))


def _believed(problem: Problem, true: TraitModel, setting: str, rng: np.random.Generator) -> TraitModel:
    """What the test is given: slabs that are off, the path as an estimate with its error, and where learning starts."""
    from deepwas.pleiotropy.learning import TOGETHER

    K = problem.traits
    model = replace(true, slab=problem.off * true.slab, excess=np.zeros(K + 1), together=(TOGETHER, TOGETHER))
    if setting != "path":
        return model
    T = np.zeros((K, K))
    T[0, 1] = problem.path + problem.path_error * rng.normal()
    draws = np.zeros((40, K, K))
    draws[:, 0, 1] = T[0, 1] + problem.path_error * rng.normal(size=40)
    return replace(model, T=T, draws=draws)


def tables(figures: dict[str, Any]) -> list[Table]:
    """Type I error by setting; power by psi."""
    from rich.table import Table

    settings = figures["settings"]
    size = f"{settings['blocks']} blocks, {figures['variants']:,} variants, {settings['draws']} draws a test"
    null = Table(title=f"Rejected at 5% without sharing; {size}")
    null.add_column("priors and traits")
    for heading in ("data sets", "rejected (95% interval)", "mean p"):
        null.add_column(heading, justify="right")
    for name, text in SETTINGS.items():
        found = figures["null"][name]
        null.add_row(text, f"{found['rejected']['runs']:,}", said(found["rejected"]), f"{np.mean(found['p']):.3f}")
    power = Table(title="Rejected at 5% with sharing")
    for heading in ("psi", "data sets", "rejected (95% interval)"):
        power.add_column(heading, justify="right")
    for row in figures["power"]:
        power.add_row(f"{row['psi']:g}", f"{row['rejected']['runs']:,}", said(row["rejected"]))
    return [null, power]


def draw(figures: dict[str, Any], path: Path) -> None:
    """Left: p-values without sharing against uniform ones. Right: how many data sets are rejected, by psi."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="#3b4252", lw=0.8, ls=":")
    for (name, text), colour in zip(SETTINGS.items(), ("#2b6cb0", "#c8442b", "#6b7a3a", "#8b5fbf"), strict=True):
        p = np.asarray(figures["null"][name]["p"])
        at = np.arange(1, figures["settings"]["draws"] + 2) / (figures["settings"]["draws"] + 1)
        left.plot(at, [np.mean(p <= x + 1e-9) for x in at], marker=".", color=colour, lw=1.2, label=text)
    left.set_xlabel("p")
    left.set_ylabel("share of data sets with p or less")
    left.set_title("Traits independent of one another", loc="left", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    psi = [0.0, *(row["psi"] for row in figures["power"])]
    rows = [figures["null"]["constant"]["rejected"], *(row["rejected"] for row in figures["power"])]
    share = np.array([row["share"] for row in rows])
    spread = [share - [row["low"] for row in rows], [row["high"] for row in rows] - share]
    right.errorbar(psi, share, yerr=spread, marker="o", color="#2b6cb0", capsize=3)
    right.axhline(LEVEL, color="#3b4252", lw=0.8, ls="--")
    right.set_ylim(0, 1.03)
    right.set_xticks(psi)
    right.set_xlabel("psi, log odds of a shared effect over chance")
    right.set_ylabel("share of data sets rejected at 5%")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=130)
