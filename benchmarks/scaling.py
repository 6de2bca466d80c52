"""How much data do larger networks need, and how many features can they bear?

The problem of `benchmarks.objectives`, by the size of the training set and by the number of features, most of which
mean nothing. Training sets beyond the simulated LD use each region's LD again, with annotations, effects and noise
of its own each time; test and validation blocks are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from benchmarks.contest import score, summary, train, whiten_regions
from benchmarks.objectives import NETWORKS, OBJECTIVES, QUICK, Problem, contenders, simulated

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

__all__ = ["draw", "measure", "prepare", "tables"]

Progress = Callable[[str, int, int], None]

_COMPETING = ("linear", "large")
_BASE = Problem(seeds=tuple(range(200, 205)))
_SIZES: tuple[tuple[int, int], ...] = ((75, 1), (150, 1), (300, 1), (300, 4))  # training regions, copies of each
_FEATURES = (10, 100, 1000)


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Train and score every contender in every setting. Figures for JSON."""
    import scipy.linalg  # noqa: F401  # loads the BLAS that JAX uses too, which `threadpool_limits` then finds
    from threadpoolctl import threadpool_limits

    base = QUICK if quick else _BASE
    sizes = ((12, 1), (24, 2)) if quick else _SIZES
    features = (10, 40) if quick else _FEATURES
    settings = [("blocks", replace(base, train=train, copies=copies)) for train, copies in sizes]
    settings += [("features", replace(base, features=p)) for p in features]
    rows = []
    with threadpool_limits(1, user_api="blas"):
        most = max((problem for _, problem in settings), key=lambda x: x.train)
        regions, ld = prepare(replace(most, copies=1), "blocks", progress)
        for n, (axis, problem) in enumerate(settings):
            own, own_ld = (_used(x, problem) for x in (regions, ld))
            rows.append({"axis": axis} | _one(problem, own, own_ld, f"setting {n + 1} of {len(settings)}", progress))
    return {"settings": asdict(base), "sizes": sizes, "features": features, "rows": rows}


def _used(found: list[Any], problem: Problem) -> list[Any]:
    """What a problem uses of regions, or their LD, simulated for a larger one."""
    held = problem.test + problem.validation
    return found[:held] + found[held : held + problem.train] * problem.copies


def prepare(problem: Problem, what: str, progress: Progress) -> tuple[list[Any], list[Any]]:
    """The problem's regions and their whitened LD; copies of a region share it."""
    regions = problem.regions(lambda done, total: progress(f"{what}: simulating LD", done, total))
    distinct = problem.test + problem.validation + problem.train
    ld = whiten_regions(regions[:distinct], problem.eigenvalue_floor)
    return regions, ld + ld[problem.test + problem.validation :] * (problem.copies - 1)


def _one(problem: Problem, regions: list[Any], ld: list[Any], what: str, progress: Progress) -> dict[str, Any]:
    truths = [simulated(problem, regions, ld, seed, tracks=False) for seed in problem.seeds]
    competing = contenders(_COMPETING)
    runs = train(
        truths,
        competing,
        problem.splits,
        problem.settings,
        problem.learning_rates,
        lambda done, total: progress(f"{what}: training", done, total),
    )
    seeds = [score(truth, runs, problem.splits) for truth in truths]
    k = [b.shape[0] for b in truths[0].blocks]
    return {
        "blocks": len(problem.splits.train),
        "training_eigenvalues": int(sum(k[i] for i in problem.splits.train)),
        "features": problem.features,
        "contenders": {name: {"label": c.label} | summary(name, seeds) for name, c in competing.items()},
        "seeds": seeds,
    }


def tables(figures: dict[str, Any]) -> list[Table]:
    """Share of the oracle's gain by setting."""
    from rich.table import Table

    table = Table(title="Share of the oracle's held-out gain (± standard error over seeds; in brackets, refitted)")
    for heading in ("training blocks", "eigenvalues", "features", *contenders(_COMPETING)):
        table.add_column(heading)
    for row in figures["rows"]:
        cells = []
        for found in row["contenders"].values():
            own, refitted = (found[kind]["share_of_oracle"] for kind in ("gain", "refitted_gain"))
            cells.append(f"{own['mean']:.3f} ± {own['standard_error']:.3f} ({refitted['mean']:.3f})")
        table.add_row(f"{row['blocks']:,}", f"{row['training_eigenvalues']:,}", f"{row['features']:,}", *cells)
    return [table]


def draw(figures: dict[str, Any], path: Path) -> None:
    """Share of the oracle's gain against the number of training blocks, and of features."""
    from matplotlib.figure import Figure

    colours, styles = {"likelihood": "#0072b2", "ld-score": "#d55e00"}, {"linear": "--", "large": "-"}
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, axis in zip(figure.subplots(1, 2), ("blocks", "features"), strict=True):
        rows = [row for row in figures["rows"] if row["axis"] == axis]
        for network in _COMPETING:
            for objective, label in OBJECTIVES.items():
                found = [row["contenders"][f"{network} {objective}"]["gain"]["share_of_oracle"] for row in rows]
                axes.errorbar(
                    [row[axis] for row in rows], [x["mean"] for x in found], [x["standard_error"] for x in found],
                    fmt="o" + styles[network], color=colours[objective], capsize=3,
                    label=f"{NETWORKS[network][0]}, {label}",
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks([row[axis] for row in rows], [f"{row[axis]:,}" for row in rows])
        axes.minorticks_off()
        axes.axhline(0, color="0.6", lw=0.8)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -1.0), min(high, 1.05))
        axes.set_ylabel("share of the oracle's held-out gain")
    first, second = figure.axes
    first.set_xlabel("training blocks")
    second.set_xlabel("features (8 of them meaningful)")
    second.legend(frameon=False, fontsize=8, handlelength=3.5)
    figure.savefig(path, format="png", dpi=110)
