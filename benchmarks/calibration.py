"""Is a variant's predicted effect variance right, decile by decile, after training on as much data as a genome holds?

The non-linear truth and the large perceptron of `benchmarks.objectives`, trained by full likelihood on the LD of 300
regions used six times, with annotations and effects of their own each time: 1,800 blocks, some 410,000 eigenvalues, as
1.1 million HapMap3 variants in 1,700 blocks have. One network, and ensembles whose prior is the mean of their f: the
networks agree where data say much and differ where they say little, which is at the lowest f. A bound of 5 nats either
way of the start keeps single networks from claims of almost no variance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contest import Contender, score, summary, train
from benchmarks.objectives import QUICK, Problem, simulated
from benchmarks.scaling import prepare

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

__all__ = ["BAND", "draw", "measure", "tables"]

Progress = Callable[[str, int, int], None]

BAND = 0.15
_PROBLEM = Problem(copies=6, steps=2000, seeds=tuple(range(400, 404)), learning_rates=(0.006,))
_LARGE = {"network": "mlp", "hidden": (64, 64), "objective": "likelihood", "solver": "auto"}
CONTENDERS = {
    "one": Contender("one network", _LARGE, "table"),
    "ten": Contender("mean f of 10 networks", _LARGE, "table", members=10),
    "bounded": Contender("mean f of 10 networks, bound of 5 nats", _LARGE | {"bound": 5.0}, "table", members=10),
}


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Train, and compare predicted with true f on test blocks. Figures for JSON."""
    import scipy.linalg  # noqa: F401  # loads the BLAS that JAX uses too, which `threadpool_limits` then finds
    from threadpoolctl import threadpool_limits

    problem = replace(QUICK, copies=2) if quick else _PROBLEM
    with threadpool_limits(1, user_api="blas"):
        regions, ld = prepare(problem, "blocks", progress)
        truths = [simulated(problem, regions, ld, seed, tracks=False) for seed in problem.seeds]
        runs = train(
            truths,
            CONTENDERS,
            problem.splits,
            problem.settings,
            problem.learning_rates,
            lambda done, total: progress("training", done, total),
        )
        seeds = [score(truth, runs, problem.splits) for truth in truths]
    k = [b.shape[0] for b in truths[0].blocks]
    return {
        "settings": asdict(problem),
        "training_blocks": len(problem.splits.train),
        "training_eigenvalues": int(sum(k[i] for i in problem.splits.train)),
        "contenders": {name: {"label": c.label} | summary(name, seeds) for name, c in CONTENDERS.items()},
        "seeds": seeds,
        "runs": [{k: v for k, v in run.items() if k not in ("f", "noise")} for run in runs],
    }


def tables(figures: dict[str, Any]) -> list[Table]:
    """Share of the oracle's gain, and mean true over mean predicted f by decile."""
    from rich.table import Table

    table = Table(
        title=f"{figures['training_blocks']:,} training blocks, {figures['training_eigenvalues']:,} eigenvalues: mean "
        "true over mean predicted f, by decile of predicted f, lowest first"
    )
    for heading in ("prior", "share of oracle", *(str(d) for d in range(1, 11))):
        table.add_column(heading)
    for found in figures["contenders"].values():
        share = found["gain"]["share_of_oracle"]
        deciles = (f"{x['mean']:.2f} ± {x['standard_error']:.2f}" for x in found["calibration"])
        table.add_row(found["label"], f"{share['mean']:.3f} ± {share['standard_error']:.3f}", *deciles)
    return [table]


def draw(figures: dict[str, Any], path: Path) -> None:
    """True over predicted f by decile, with the band within which it should be."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.axhspan(1 - BAND, 1 + BAND, color="0.92", zorder=0, label=f"within {BAND:.0%}")
    axes.axhline(1, color="0.6", lw=0.8)
    for found, colour in zip(figures["contenders"].values(), ("#d55e00", "#0072b2", "#009e73"), strict=True):
        values = [x["mean"] for x in found["calibration"]]
        errors = [x["standard_error"] for x in found["calibration"]]
        axes.errorbar(np.arange(1, 11), values, errors, fmt="o-", color=colour, capsize=3, label=found["label"])
    axes.set_xticks(range(1, 11))
    axes.set_xlabel("decile of predicted f, lowest first")
    axes.set_ylabel("mean true f / mean predicted f")
    axes.set_title(f"{figures['training_blocks']:,} training blocks", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(path, format="png", dpi=110)
