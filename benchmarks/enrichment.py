"""Enrichment by full likelihood, over many simulated traits: its bias, and how often its intervals hold the truth.

Effects of every trait are drawn afresh from one softplus-linear prior of binary and continuous annotations, on
coalescent LD. Every trait is analysed as a user's would be: from the constant prior, the noise learned, standard errors
by the one-step block jackknife. The truth is the ratio of sums of the true f; a trait's own effects vary around it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rates import exact
from benchmarks.simulate import Region, simulate_annotations, simulate_regions, simulate_trait

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from deepwas.ld import LDBlock

__all__ = ["draw", "measure", "tables"]

Progress = Callable[[str, int, int], None]

# Annotations, and their weights in the argument of softplus: a rare, strong and smooth one as of promoters, a frequent
# one as of repressed chromatin, one as of coding variants, a smooth continuous one, an independent one, and two idle.
NAMES = ("rare_binary", "frequent_binary", "coding_binary", "smooth", "independent", "idle_binary", "idle")
WEIGHTS = (2.5, -0.8, 4.0, 0.5, 0.7, 0.0, 0.0)
IDLE = ("idle_binary", "idle")

WORKERS = 2


@dataclass(frozen=True)
class Problem:
    """What is simulated.

    regions, m, people, length: LD; every region is one block.  eigenvalue_floor: of the blocks.  traits: how many.
    sample_size: N.  mean_c: mean of N f.  noise: sigma2, learned by the analysis.
    """

    regions: int = 150
    m: int = 150
    people: int = 1000
    length: float = 5e5
    eigenvalue_floor: float = 2e-2
    traits: int = 1000
    sample_size: float = 1e5
    mean_c: float = 0.3
    noise: float = 1.1
    seed: int = 23  # 11 sized the problem


QUICK = Problem(regions=40, m=80, people=300, traits=12)


def annotations_of(regions: Sequence[Region], seed: int) -> NDArray[np.float32]:
    """(M, 7), in the order of NAMES: the binary ones are continuous ones cut at a quantile."""
    drawn = simulate_annotations(regions, smooth=3, independent=4, seed=seed)
    smooth, independent = drawn[:, :3], drawn[:, 3:]
    columns = [
        smooth[:, 0] > np.quantile(smooth[:, 0], 0.93),
        smooth[:, 1] > np.quantile(smooth[:, 1], 0.65),
        independent[:, 0] > np.quantile(independent[:, 0], 0.97),
        smooth[:, 2] + 3,  # so that its mean is positive, as an enrichment needs
        np.exp(independent[:, 1] / 2),  # positive, as scores and distances are
        independent[:, 2] > np.quantile(independent[:, 2], 0.9),
        independent[:, 3] + 2,
    ]
    return np.column_stack(columns).astype(np.float32)


def true_variance(x: NDArray[np.float32], mean: float) -> NDArray[np.float64]:
    """f, (M,): softplus-linear, of the mean asked for."""
    from deepwas.enrichment_reml import SHIFT, softplus

    f = softplus(SHIFT + (x - x.mean(axis=0, dtype=np.float64)) @ np.asarray(WEIGHTS))
    return f * (mean / f.mean())


def true_values(x: NDArray[np.float32], f: NDArray[np.float64]) -> dict[str, list[float]]:
    """Each annotation's share of heritability, enrichment, and difference, from their definitions."""
    wide = x.astype(np.float64)
    share = wide.T @ f / f.sum()
    outside = 1 - wide
    with np.errstate(divide="ignore"):
        difference = (wide.T @ f) / wide.sum(axis=0) - (outside.T @ f) / outside.sum(axis=0)
    return {
        "share": share.tolist(),
        "enrichment": (share / wide.mean(axis=0)).tolist(),
        "difference": difference.tolist(),
    }


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Simulate and analyse every trait. Returns the figures, ready for JSON."""
    problem = QUICK if quick else Problem()
    regions = simulate_regions(
        problem.regions,
        m=problem.m,
        people=problem.people,
        length=problem.length,
        seed=problem.seed,
        progress=lambda done, total: progress("simulating LD", done, total),
    )
    x = annotations_of(regions, problem.seed)
    f = true_variance(x, problem.mean_c / problem.sample_size)
    traits = []
    # The workers inherit nothing but what is sent: LD once each, then seeds.
    environment = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        with ProcessPoolExecutor(
            WORKERS, get_context("spawn"), initializer=_prepare, initargs=(problem, regions, x, f)
        ) as pool:
            for n, found in enumerate(pool.map(_analyse, range(problem.traits))):
                traits.append(found)
                progress("analysing traits", n + 1, problem.traits)
    finally:
        if environment is None:
            del os.environ["OPENBLAS_NUM_THREADS"]
        else:
            os.environ["OPENBLAS_NUM_THREADS"] = environment
    truth: dict[str, Any] = true_values(x, f) | {
        "h2": float(f.sum()),
        "noise": problem.noise,
        "prop": x.mean(axis=0, dtype=float).tolist(),
    }
    return {
        "settings": asdict(problem) | {"annotations": dict(zip(NAMES, WEIGHTS, strict=True))},
        "truth": truth,
        "annotations": {name: _annotation(j, traits, truth) for j, name in enumerate(NAMES)},
        "pooled": _pooled(traits, truth),
        "totals": {name: _total(name, traits, truth[name]) for name in ("h2", "noise")},
        "flat": sum(t["flat"] for t in traits),
        "steps": {"median": float(np.median([t["steps"] for t in traits])), "most": max(t["steps"] for t in traits)},
        "estimates": {name: [float(f"{t['enrichment'][j]:.4g}") for t in traits] for j, name in enumerate(NAMES)},
    }


_STATE: dict[str, Any] = {}


def _prepare(problem: Problem, regions: Sequence[Region], x: NDArray[np.float32], f: NDArray[np.float64]) -> None:
    from deepwas.ld import LDBlock

    blocks: list[LDBlock] = [
        LDBlock.from_correlation(r.correlation, eigenvalue_floor=problem.eigenvalue_floor) for r in regions
    ]
    _STATE.update(problem=problem, regions=regions, x=x, f=f, ld=blocks)


def _analyse(number: int) -> dict[str, Any]:
    """One trait: drawn, whitened, analysed."""
    import warnings

    from deepwas.enrichment import enrichment_of_blocks
    from deepwas.errors import DataWarning
    from deepwas.training.trait import TraitBlock

    problem, ld = _STATE["problem"], _STATE["ld"]
    z = simulate_trait(
        _STATE["regions"],
        _STATE["f"],
        sample_size=problem.sample_size,
        noise=problem.noise,
        seed=problem.seed * 100_000 + number,
    )
    ends = np.cumsum([block.m for block in ld])
    blocks = [
        TraitBlock(
            i,
            slice(int(end) - block.m, int(end)),
            np.asarray(block.factor, np.float32),
            np.asarray(block.whiten(own), np.float32),
            own,
            np.ones(block.m, dtype=bool),
            problem.sample_size,
        )
        for i, (block, own, end) in enumerate(zip(ld, z, ends, strict=True))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # counted as `flat`
        found = enrichment_of_blocks(blocks, _STATE["x"], NAMES)
    out: dict[str, Any] = {"flat": found.model["flat"], "steps": found.model["steps"]}
    for name in ("share", "enrichment", "difference"):
        own = getattr(found, name)
        out[name] = own.value.tolist()
        out[f"{name}_error"] = own.standard_error.tolist()
        out[f"{name}_interval"] = np.stack(own.interval(log=name == "enrichment")).T.tolist()
    out["enrichment_plain_interval"] = np.stack(found.enrichment.interval()).T.tolist()
    out["p"] = found.table()["Enrichment_p"].to_list()[1:]
    for name in ("h2", "noise"):
        own = getattr(found, name)
        out[name], out[f"{name}_error"] = float(own.value), float(own.standard_error)
        out[f"{name}_interval"] = [float(end) for end in own.interval()]
    return out


def _annotation(j: int, traits: Sequence[dict[str, Any]], truth: dict[str, Any]) -> dict[str, Any]:
    """Bias, coverage, and errors of one annotation over the traits."""
    found: dict[str, Any] = {"prop": truth["prop"][j], "active": NAMES[j] not in IDLE}
    for name in ("share", "enrichment", "difference"):
        values = np.array([t[name][j] for t in traits])
        errors = np.array([t[f"{name}_error"][j] for t in traits])
        found[name] = _judged(values, errors, [t[f"{name}_interval"][j] for t in traits], truth[name][j])
    plain = [t["enrichment_plain_interval"][j] for t in traits]
    found["enrichment"]["coverage_plain"] = _coverage(plain, truth["enrichment"][j])
    found["rejected_at_0.05"] = _rate(sum(t["p"][j] < 0.05 for t in traits), len(traits))
    return found


def _pooled(traits: Sequence[dict[str, Any]], truth: dict[str, Any]) -> dict[str, float]:
    """Coverage of the intervals of enrichment over all annotations; its standard error takes traits as independent."""
    by_trait = [
        np.mean(
            [
                low <= true <= high
                for (low, high), true in zip(t["enrichment_interval"], truth["enrichment"], strict=True)
            ]
        )
        for t in traits
    ]
    return {
        "coverage": float(np.mean(by_trait)),
        "standard_error": float(np.std(by_trait, ddof=1) / len(by_trait) ** 0.5),
    }


def _total(name: str, traits: Sequence[dict[str, Any]], truth: float) -> dict[str, Any]:
    values, errors = (np.array([t[key] for t in traits]) for key in (name, f"{name}_error"))
    return _judged(values, errors, [t[f"{name}_interval"] for t in traits], truth)


def _judged(
    values: NDArray[np.float64], errors: NDArray[np.float64], intervals: Sequence[Any], truth: float
) -> dict[str, Any]:
    """Mean and its standard error, relative bias, empirical and reported standard errors, coverage."""
    spread = float(values.std(ddof=1))
    return {
        "truth": truth,
        "mean": float(values.mean()),
        "standard_error_of_mean": spread / np.sqrt(len(values)),
        "relative_bias": float(values.mean() / truth - 1) if truth else None,
        "standard_deviation": spread,
        "mean_standard_error": float(errors.mean()),
        "coverage": _coverage(intervals, truth),
    }


def _coverage(intervals: Sequence[Any], truth: float) -> dict[str, float]:
    return _rate(sum(low <= truth <= high for low, high in intervals), len(intervals))


def _rate(hits: int, count: int) -> dict[str, float]:
    """A rate with its exact 95% interval."""
    lower, upper = exact(hits, count)
    return {"rate": hits / count, "lower": lower, "upper": upper}


def tables(figures: dict[str, Any]) -> list[Table]:
    """The figures as tables: enrichment by annotation, and the totals."""
    from rich.table import Table

    many = len(next(iter(figures["estimates"].values())))
    main = Table(title=f"Enrichment over {many} traits (coverage: 95% intervals, exact binomial range in brackets)")
    for heading in (
        "annotation",
        "mean x",
        "truth",
        "mean (± SE)",
        "bias",
        "SD",
        "mean SE",
        "coverage, log scale",
        "coverage, plain",
        "p < 0.05",
    ):
        main.add_column(heading)
    for name, found in figures["annotations"].items():
        own = found["enrichment"]
        main.add_row(
            name,
            f"{found['prop']:.3f}",
            f"{own['truth']:.3f}",
            f"{own['mean']:.3f} ± {own['standard_error_of_mean']:.3f}",
            f"{own['relative_bias']:+.1%}",
            f"{own['standard_deviation']:.3f}",
            f"{own['mean_standard_error']:.3f}",
            _said(own["coverage"]),
            _said(own["coverage_plain"]),
            _said(found["rejected_at_0.05"]),
        )
    pooled = figures["pooled"]
    main.caption = f"all annotations: coverage {pooled['coverage']:.1%} ± {pooled['standard_error']:.1%}, log scale"
    total = Table(title="Heritability and noise")
    for heading in ("", "truth", "mean (± SE)", "bias", "SD", "mean SE", "coverage"):
        total.add_column(heading)
    for name, own in figures["totals"].items():
        total.add_row(
            name,
            f"{own['truth']:.4f}",
            f"{own['mean']:.4f} ± {own['standard_error_of_mean']:.4f}",
            f"{own['relative_bias']:+.1%}",
            f"{own['standard_deviation']:.4f}",
            f"{own['mean_standard_error']:.4f}",
            _said(own["coverage"]),
        )
    return [main, total]


def _said(rate: dict[str, float]) -> str:
    return f"{rate['rate']:.1%} ({rate['lower']:.1%}, {rate['upper']:.1%})"


def draw(figures: dict[str, Any], path: Path) -> None:
    """Three panels: estimates over the truth, coverage, and reported over empirical standard errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    ratio, coverage, errors = figure.subplots(1, 3, width_ratios=(1.4, 1.2, 1))
    names = list(figures["annotations"])
    places = np.arange(len(names))[::-1]
    blue, red, ink = "#0072b2", "#d55e00", "0.35"
    truth = np.array(figures["truth"]["enrichment"])
    estimates = np.array([figures["estimates"][name] for name in names]).T / truth
    ratio.violinplot(estimates, positions=places, orientation="horizontal", widths=0.8, showextrema=False)
    for place, own in zip(places, estimates.T, strict=True):
        ratio.plot(own.mean(), place, "o", color=blue, ms=6)
    ratio.axvspan(0.95, 1.05, color="0.9", zorder=0)
    ratio.axvline(1, color=ink, lw=0.8)
    ratio.set_yticks(places, names)
    ratio.set_xlabel("enrichment, estimate over truth (dot: mean; grey: ± 5%)")
    ratio.set_title(f"Estimates of {len(estimates)} traits", fontsize=10)
    for shift, key, colour, label in (
        (0.12, "coverage", blue, "log scale (reported)"),
        (-0.12, "coverage_plain", red, "natural scale"),
    ):
        rates = [figures["annotations"][name]["enrichment"][key] for name in names]
        centre = np.array([r["rate"] for r in rates])
        low, high = (np.array([r[end] for r in rates]) for end in ("lower", "upper"))
        coverage.errorbar(
            centre, places + shift, xerr=[centre - low, high - centre], fmt="o", color=colour, capsize=3, label=label
        )
    coverage.axvspan(0.93, 0.97, color="0.9", zorder=0)
    coverage.axvline(0.95, color=ink, lw=0.8)
    coverage.set_yticks(places, [])
    coverage.set_xlabel("95% intervals that hold the truth")
    coverage.set_title("Coverage (bars: exact binomial; grey: ± 2 points)", fontsize=10)
    for axis in (ratio, coverage, errors):
        axis.set_ylim(-1.2, len(names) - 0.5)
    coverage.legend(frameon=False, fontsize=8, loc="lower center", ncols=2)
    for name, marker in (("enrichment", "o"), ("difference", "^")):
        own = [figures["annotations"][x][name] for x in names]
        errors.plot([x["mean_standard_error"] / x["standard_deviation"] for x in own], places, marker, label=name)
    errors.axvline(1, color=ink, lw=0.8)
    errors.set_yticks(places, [])
    errors.set_xlabel("mean reported SE over SD of estimates")
    errors.set_title("Standard errors", fontsize=10)
    errors.legend(frameon=False, fontsize=8)
    figure.savefig(path, format="png", dpi=110)
