"""The direction test under the null, and its power.

LD is that of coalescent regions. Whitened z-scores are drawn from the model, y = sqrt(N) G beta + e, e ~ N(0, I), for
all data sets of a setting at once; what a prior needs of a block is computed once for all of them. Every data set then
has its own flips of sign, by the code that `deepwas.test_direction` runs.

Null settings: effects without direction, normal with the variance the prior says; a constant prior at half the level
where the truth varies; 1% of variants causal and the prior constant; and a prior chosen for each data set, from 18, by
its likelihood on the very z-scores that are tested. Signed scores are 64 correlated tracks, 0 at nine in ten variants;
the test is given the first, the first 8 (least squares) or all 64 (normal prior on the weights).

Power: the first track moves the means, sum mu^2 being a share of sum f; the rest of f has no direction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rates import rate, said
from benchmarks.simulate import Region, effect_variance, simulate_annotations, simulate_regions

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from deepwas.training.trait import TraitBlock

__all__ = ["draw", "measure", "tables"]

Progress = Callable[[str, int, int], None]
Array = NDArray[np.float64]

LEVEL = 0.05
SMOOTH = 4
SETTINGS = {
    "prior": "normal effects, true prior",
    "wrong": "constant prior at half the level",
    "sparse": "1% of variants causal, constant prior",
    "learned": "prior chosen on the same z-scores",
}
_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
_SCALES = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Problem:
    """What is simulated.

    regions, m, people: of the LD.  sample_size: N.  mean_c: mean of N f.  columns: numbers of scores tested together.
    runs: data sets of each null setting.  power_runs: of each share.  shares: of the effect variance with direction.
    """

    regions: int = 100
    m: int = 300
    people: int = 2000
    sample_size: float = 1e5
    mean_c: float = 0.2
    eigenvalue_floor: float = 1e-2
    columns: tuple[int, ...] = (1, 8, 64)
    few_columns: int = 10
    runs: int = 2000
    power_runs: int = 500
    permutations: int = 999
    shares: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.2)
    seed: int = 0


QUICK = Problem(regions=16, m=80, people=400, columns=(1, 12), runs=60, power_runs=20, permutations=99, shares=(0.2,))


@dataclass(frozen=True)
class _Truth:
    """Blocks (their z-scores are not used), f (M,), scores per standardised genotype (M, 64)."""

    blocks: list[TraitBlock]
    f: Array
    scores: Array

    def of(self, values: Array, i: int) -> Array:
        return values[self.blocks[i].rows]


@dataclass(frozen=True)
class _Solved:
    """What a prior makes of every block: A (p, p) in all, X'B^-1 (p, k) by block, and its likelihood's pieces.

    whitening: by block, L^-1 with B = L L'.  log_det: in all.
    """

    A: Array
    projections: list[Array]
    whitening: list[Array]
    log_det: float

    def u(self, y: Sequence[Array]) -> Array:
        """(runs, blocks, p) from y (k, runs) by block."""
        return np.stack([(P @ v).T for P, v in zip(self.projections, y, strict=True)], axis=1)

    def log_likelihood(self, y: Sequence[Array]) -> Array:
        """(runs,), without constants."""
        squares = sum(((L @ v) ** 2).sum(axis=0) for L, v in zip(self.whitening, y, strict=True))
        return -0.5 * (np.asarray(squares) + self.log_det)


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Simulate, test every data set, and return the figures, ready for JSON."""
    problem = QUICK if quick else Problem()
    regions = simulate_regions(
        problem.regions,
        m=problem.m,
        people=problem.people,
        seed=problem.seed,
        progress=lambda done, total: progress("simulating LD", done, total),
    )
    truth = _truth(problem, regions)
    constant = np.full_like(truth.f, truth.f.mean())
    true, flat = _solve(problem, truth, truth.f), _solve(problem, truth, constant)
    null: dict[str, Any] = {}
    for number, name in enumerate(SETTINGS):
        rng = np.random.default_rng([problem.seed, 10 + number])
        y = _draw_y(problem, truth, rng, problem.runs, sparse=name == "sparse")
        if name == "learned":
            chosen = _learn(problem, truth, y, progress)
            null[name] = _judged(problem, *chosen, rng, progress, SETTINGS[name])
        else:
            half = _solve(problem, truth, 0.5 * constant) if name == "wrong" else None
            solved = true if name == "prior" else half or flat
            which = np.zeros(problem.runs, dtype=int)
            null[name] = _judged(problem, [solved], solved.u(y), which, rng, progress, SETTINGS[name])
    power = []
    for number, share in enumerate(problem.shares):
        rng = np.random.default_rng([problem.seed, 20 + number])
        y = _draw_y(problem, truth, rng, problem.power_runs, share=share)
        which = np.zeros(problem.power_runs, dtype=int)
        found = _judged(problem, [true], true.u(y), which, rng, progress, f"power at {share:g}")
        power.append({"share": share, "tests": found, "estimates": _shares(problem, truth, true, true.u(y))})
    blocks = truth.blocks
    return {
        "settings": asdict(problem),
        "problem": {
            "variants": len(truth.f),
            "mean_k": float(np.mean([b.shape[0] for b in blocks])),
            "h2": float(truth.f.sum()),
            "correlation_of_scores": float(_mean_correlation(truth.scores)),
        },
        "null": null,
        "power": power,
    }


def _mean_correlation(scores: Array) -> float:
    R = np.abs(np.corrcoef(scores, rowvar=False))
    return float((R.sum() - len(R)) / (len(R) * (len(R) - 1)))


def _truth(problem: Problem, regions: Sequence[Region]) -> _Truth:
    from deepwas.ld import LDBlock
    from deepwas.training.trait import TraitBlock

    annotations = simulate_annotations(regions, smooth=SMOOTH, seed=problem.seed)
    f = effect_variance(annotations, smooth=SMOOTH, mean=problem.mean_c / problem.sample_size)
    rng = np.random.default_rng([problem.seed, 3])
    count, wide = len(f), max(problem.columns)
    tracks = rng.normal(size=(count, 8)) @ rng.normal(size=(8, wide)) / np.sqrt(8) + rng.normal(size=(count, wide))
    scores = tracks * (rng.random(count) < 0.1)[:, None]
    scores /= np.sqrt((scores**2).mean(axis=0))
    blocks, start = [], 0
    for number, region in enumerate(regions):
        ld = LDBlock.from_correlation(region.correlation, eigenvalue_floor=problem.eigenvalue_floor, dtype=np.float64)
        blocks.append(
            TraitBlock(
                number=number,
                rows=slice(start, start + region.m),
                factor=ld.factor,
                whitened=np.zeros(ld.k, np.float32),
                z=np.zeros(region.m),
                observed=np.ones(region.m, dtype=bool),
                sample_size=problem.sample_size,
            )
        )
        start += region.m
    return _Truth(blocks, f, scores)


def _draw_y(
    problem: Problem, truth: _Truth, rng: np.random.Generator, runs: int, *, share: float = 0.0, sparse: bool = False
) -> list[Array]:
    """Whitened z-scores of all data sets, (k, runs) by block."""
    first = truth.scores[:, 0]
    mu = first * np.sqrt(share * truth.f.sum() / np.sum(first**2))
    out = []
    for i, block in enumerate(truth.blocks):
        f = truth.of(truth.f, i)
        if sparse:
            causal = rng.random((len(f), runs)) < 0.01
            beta = causal * rng.normal(size=causal.shape) * np.sqrt(truth.f.mean() / 0.01)
        else:
            beta = rng.normal(size=(len(f), runs)) * np.sqrt((1 - share) * f)[:, None]
        beta += truth.of(mu, i)[:, None]
        noise = rng.normal(size=(block.shape[0], runs))
        out.append(np.sqrt(block.sample_size) * block.factor @ beta + noise)
    return out


def _solve(problem: Problem, truth: _Truth, f: Array) -> _Solved:
    """Everything that depends on the prior f, and on no data set; noise 1."""
    from scipy.linalg import cholesky, solve_triangular

    A, projections, whitening, log_det = np.zeros((truth.scores.shape[1],) * 2), [], [], 0.0
    for i, block in enumerate(truth.blocks):
        G = block.factor
        B = (G * (block.sample_size * truth.of(f, i))[None, :]) @ G.T + np.eye(len(G))
        lower = cholesky(B, lower=True)
        inverse = solve_triangular(lower, np.eye(len(G)), lower=True)
        half = inverse @ (np.sqrt(block.sample_size) * G @ truth.of(truth.scores, i))
        A += half.T @ half
        projections.append(half.T @ inverse)
        whitening.append(inverse)
        log_det += 2 * float(np.log(np.diagonal(lower)).sum())
    return _Solved(A, projections, whitening, log_det)


def _learn(
    problem: Problem, truth: _Truth, y: Sequence[Array], progress: Progress
) -> tuple[list[_Solved], Array, NDArray[np.int64]]:
    """For each data set the prior f^a, scaled, of the largest likelihood on that very data set; and its u."""
    shapes = [truth.f**a for a in _POWERS]
    priors = [scale * s * (truth.f.mean() / s.mean()) for s in shapes for scale in _SCALES]
    solved, values = [], []
    for number, f in enumerate(priors):
        solved.append(_solve(problem, truth, f))
        values.append(solved[-1].log_likelihood(y))
        progress("learning priors", number + 1, len(priors))
    best = np.argmax(values, axis=0)
    u = np.empty((len(best), len(truth.blocks), truth.scores.shape[1]))
    for number in np.unique(best):
        own = best == number
        u[own] = solved[number].u([v[:, own] for v in y])
    return solved, u, best


def _judged(
    problem: Problem,
    solved: Sequence[_Solved],
    u: Array,
    which: NDArray[np.int64],
    rng: np.random.Generator,
    progress: Progress,
    what: str,
) -> dict[str, Any]:
    """Share of data sets rejected at 5%, by number of scores; and of any score alone, adjusted."""
    from deepwas.direction_null import Head, flip_test

    out = {}
    done, total = 0, len(u) * len(problem.columns)
    for p in problem.columns:
        heads = [Head.of(x.A[:p, :p], ridge=p > problem.few_columns) for x in solved]
        together = alone = 0
        for run in range(len(u)):
            found = flip_test(u[run, :, :p], heads[which[run]], permutations=problem.permutations, rng=rng)
            together += found.p <= LEVEL
            alone += bool((found.column_p_adjusted <= LEVEL).any())
            done += 1
            if done % 50 == 0 or done == total:
                progress(what, done, total)
        out[str(p)] = {"together": rate(together, len(u)), "any_alone": rate(alone, len(u))}
    return out


def _shares(problem: Problem, truth: _Truth, solved: _Solved, u: Array) -> dict[str, Any]:
    """Estimates of the directional share by least squares: mean over data sets and its standard error."""
    out = {}
    for p in (x for x in problem.columns if x <= problem.few_columns):
        S = truth.scores[:, :p]
        squares = S.T @ S / truth.f.sum()
        inverse = np.linalg.inv(solved.A[:p, :p])
        w = u[:, :, :p].sum(axis=1) @ inverse
        found = np.einsum("ri,ij,rj->r", w, squares, w) - np.sum(squares * inverse)
        out[str(p)] = {"mean": float(found.mean()), "standard_error": float(found.std(ddof=1) / np.sqrt(len(found)))}
    return out


def tables(figures: dict[str, Any]) -> list[Table]:
    """Type I error, and power by share."""
    from rich.table import Table

    settings = figures["settings"]
    null = Table(title=f"Rejected at 5% without direction, {settings['runs']:,} data sets each (95% interval)")
    null.add_column("effects and prior")
    for p in settings["columns"]:
        null.add_column(f"{p} score{'s' if p > 1 else ''}", justify="right")
    null.add_column(f"any of {settings['columns'][-1]}, adjusted", justify="right")
    for name, text in SETTINGS.items():
        row = figures["null"][name]
        cells = [said(row[str(p)]["together"]) for p in settings["columns"]]
        null.add_row(text, *cells, said(row[str(settings["columns"][-1])]["any_alone"]))
    power = Table(title=f"Power at 5%, {settings['power_runs']:,} data sets each; the first score has the direction")
    power.add_column("share of f with direction", justify="right")
    for p in settings["columns"]:
        power.add_column(f"{p} score{'s' if p > 1 else ''}", justify="right")
    power.add_column("share estimated from 1", justify="right")
    for row in figures["power"]:
        estimate = row["estimates"]["1"]
        power.add_row(
            f"{100 * row['share']:g}%",
            *(said(row["tests"][str(p)]["together"]) for p in settings["columns"]),
            f"{estimate['mean']:.2%} ({estimate['standard_error']:.2%})",
        )
    return [null, power]


def draw(figures: dict[str, Any], path: Path) -> None:
    """Type I error with its interval by setting and number of scores; power by share."""
    from matplotlib.figure import Figure

    settings = figures["settings"]
    columns = settings["columns"]
    colours = ("#2b6cb0", "#c8442b", "#6b7a3a", "#3b4252")
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
    for i, (p, colour) in enumerate(zip(columns, colours, strict=False)):
        rows = [figures["null"][name][str(p)]["together"] for name in SETTINGS]
        places = np.arange(len(rows)) + (i - (len(columns) - 1) / 2) * 0.18
        share = np.array([r["share"] for r in rows])
        spread = [share - [r["low"] for r in rows], [r["high"] for r in rows] - share]
        left.errorbar(share, places, xerr=spread, fmt="o", color=colour, ms=5, label=f"{p} score{'s' if p > 1 else ''}")
    left.axvline(LEVEL, color="#3b4252", lw=0.8, ls="--")
    left.set_yticks(np.arange(len(SETTINGS)), list(SETTINGS.values()))
    left.invert_yaxis()
    left.set_xlim(0, max(0.1, left.get_xlim()[1]))
    left.set_xlabel("share of data sets rejected at 5%, with 95% interval")
    left.set_title(f"No direction: {settings['runs']:,} data sets each", loc="left", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    shares = [row["share"] for row in figures["power"]]
    for p, colour in zip(columns, colours, strict=False):
        values = [row["tests"][str(p)]["together"]["share"] for row in figures["power"]]
        right.plot(shares, values, marker="o", color=colour, label=f"{p} score{'s' if p > 1 else ''}")
    right.axhline(0.9, color="#3b4252", lw=0.8, ls=":")
    right.set_ylim(0, 1.03)
    right.set_xscale("log")
    right.set_xticks(shares, [f"{100 * x:g}%" for x in shares])
    right.minorticks_off()
    right.set_xlabel("share of effect variance with direction")
    right.set_ylabel("power at 5%")
    size = f"{figures['problem']['variants']:,} variants, N = {settings['sample_size']:,.0f}, mean N f = "
    right.set_title(size + f"{settings['mean_c']:g}", loc="left", fontsize=10)
    right.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
