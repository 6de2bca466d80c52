"""Structure of traits: are noise and effects of trait on trait found, and do their standard errors hold?

Traits of `benchmarks.pleiotropy_simulate` go through the first steps of a classification alone: the noise correlation
C_n by whitened blocks, and T, the effects of trait on trait, by instruments, given that estimate. Settings differ in
what makes variants act on several traits, and in how many instruments a trait has.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.pleiotropy_genome import Genome, simulate_genome
from benchmarks.pleiotropy_simulate import simulate
from benchmarks.rates import rate, said
from deepwas.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

__all__ = ["QUICK", "Cell", "Problem", "draw", "measure", "tables"]

Progress = Callable[[str, int, int], None]
Array = NDArray[np.float64]

FEW, MANY = 1.0e-3, 2.7e-3  # of the variants act on a trait: about 10 and 30 instruments, of 20,000 variants
STRENGTHS = ((0.1, 0.2), (0.2, 0.35), (0.35, 0.5))
PROBABILITIES = (0.01, 0.25, 0.5, 0.75, 0.95, 1.0)
_WITHIN = 1.96


@dataclass(frozen=True)
class Cell:
    """One setting.  scenario: of `benchmarks.pleiotropy_simulate`.  paths: true edges of T."""

    what: str
    scenario: str
    polygenicity: float
    paths: int
    replicates: int


CELLS = (
    Cell("all kinds of effects", "mixed", FEW, 3, 20),
    Cell("all kinds of effects", "mixed", MANY, 3, 20),
    Cell("single variants and paths", "d", FEW, 3, 12),
    Cell("single variants", "b", FEW, 0, 12),
    Cell("half act on two to six traits", "c", FEW, 0, 12),
    Cell("half through a factor of three traits", "e", FEW, 0, 10),
    Cell("half through a factor of three traits", "e", MANY, 0, 10),
)


@dataclass(frozen=True)
class Problem:
    """regions, m, people: of the LD.  traits: K.  sample_size: N.  signal: N effect^2, on average."""

    regions: int = 100
    m: int = 200
    people: int = 2000
    traits: int = 6
    sample_size: float = 2e5
    signal: float = 80.0
    cells: tuple[Cell, ...] = CELLS
    seed: int = 1


QUICK = Problem(
    regions=20,
    m=60,
    people=400,
    traits=4,
    cells=(Cell("all kinds of effects", "mixed", 0.02, 3, 2), Cell("none", "b", 0.02, 0, 1)),
)


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Estimate the structure of every data set, and return the figures, ready for JSON."""
    problem = QUICK if quick else Problem()
    genome = simulate_genome(
        problem.regions,
        m=problem.m,
        people=problem.people,
        panel_people=0,
        seed=problem.seed,
        progress=lambda done, total: progress("simulating LD", done, total),
    )
    total, done = sum(cell.replicates for cell in problem.cells), 0
    cells = []
    for number, cell in enumerate(problem.cells):
        each = []
        for run in range(cell.replicates):
            each.append(_replicate(problem, cell, genome, 1000 * problem.seed + 100 * number + run))
            done += 1
            progress("estimating", done, total)
        cells.append(asdict(cell) | _summary(each))
    return {"settings": asdict(problem), "cells": cells}


def _replicate(problem: Problem, cell: Cell, genome: Genome, seed: int) -> dict[str, Any]:
    """Edges, true or selected, with their estimates; noise in its standard errors; or why deepwas refuses."""
    from benchmarks.pleiotropy_analysis import opened
    from deepwas.pleiotropy import PleiotropyOptions
    from deepwas.pleiotropy.genome import structure_of

    simulated = simulate(
        cell.scenario,
        genome=genome,
        seed=seed,
        traits=problem.traits,
        sample_size=problem.sample_size,
        polygenicity=cell.polygenicity,
        signal=problem.signal,
        paths=cell.paths,
        factor_traits=min(3, problem.traits),
    )
    traits, joint = opened(simulated)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user of one data set is warned; here figures say it
        try:
            found = structure_of(traits, joint, PleiotropyOptions(seed=seed))
        except InputError as error:
            return {"refused": str(error)}
    effects, T = found.effects, simulated.T
    edges = [
        {
            "true": float(T[j, k]),
            "estimate": float(effects.T[j, k]),
            "error": float(effects.standard_error[j, k]) if effects.selected[j, k] else None,
            "unresolved": bool(effects.unresolved[j, k]),
            "probability": float(effects.probability[j, k]),
        }
        for j, k in np.argwhere((T != 0) | (effects.T != 0) | (effects.probability > 0)).tolist()
    ]
    assert found.noise is not None
    off = (found.noise.intercepts.value - simulated.noise_correlation) / found.noise.standard_error
    used = found.matrix - simulated.noise_correlation
    upper = np.triu_indices(problem.traits)
    return {
        "edges": edges,
        "instruments": effects.instruments.tolist(),
        "noise_off": off[upper].tolist(),
        "noise_used_off": float(np.abs(used).max()),
    }


def _summary(each: list[dict[str, Any]]) -> dict[str, Any]:
    refused = [x["refused"] for x in each if "refused" in x]
    each = [x for x in each if "refused" not in x]
    if not each:
        raise InputError(f"every data set is refused, the first with: {refused[0]}")
    edges = [edge for x in each for edge in x["edges"]]
    true = [edge for edge in edges if edge["true"]]
    selected = [edge for edge in edges if edge["estimate"]]
    by_strength = []
    for low, high in STRENGTHS:
        own = [edge for edge in true if low <= abs(edge["true"]) < high]
        hits = sum(bool(edge["estimate"]) for edge in own)
        unresolved = sum(edge["unresolved"] for edge in own)
        by_strength.append({"low": low, "high": high, "unresolved": unresolved, **rate(hits, len(own))})
    # What is kept is chosen by its probability: of effects that are not there none has its own error.
    known = [edge for edge in selected if edge["true"] and edge["error"]]
    off = np.array([(edge["estimate"] - edge["true"]) / edge["error"] for edge in known])
    probability = []
    for low, high in pairwise(PROBABILITIES):
        own = [e for e in edges if low <= e["probability"] < high or e["probability"] == high == 1]
        stated = float(np.mean([e["probability"] for e in own])) if own else None
        probability.append({"stated": stated, **rate(sum(e["true"] != 0 for e in own), len(own))})
    noise = np.array([x["noise_off"] for x in each])
    noise = noise[np.isfinite(noise)]
    return {
        "instruments": float(np.mean([x["instruments"] for x in each])),
        "by_strength": by_strength,
        "made_up": rate(sum(not edge["true"] for edge in selected), len(selected)),
        "with_made_up": rate(sum(any(e["estimate"] and not e["true"] for e in x["edges"]) for x in each), len(each)),
        "mean_square": float(np.mean(off**2)) if len(off) else None,
        "covered": rate(int((np.abs(off) < _WITHIN).sum()), len(off)),
        "by_probability": probability,
        "noise_mean_square": float(np.mean(noise**2)),
        "noise_covered": rate(int((np.abs(noise) < _WITHIN).sum()), len(noise)),
        "noise_used_off": float(np.mean([x["noise_used_off"] for x in each])),
        "refused": refused,
        "edges": edges,
    }


def _said(found: dict[str, float]) -> str:
    return f"{found['hits']} of {found['runs']}" if found["runs"] else ""


def tables(figures: dict[str, Any]) -> list[Table]:
    """Edges by setting; edges by their probability; noise."""
    from rich.table import Table

    settings = figures["settings"]
    size = f"{settings['traits']} traits, N = {settings['sample_size']:,.0f}, {settings['regions']} LD blocks"
    edges = Table(title=f"Effects of trait on trait; {size}", title_justify="left")
    for heading in ("effects", "replicates (refused)"):
        edges.add_column(heading)
    for heading in (
        "instruments",
        *(f"{low:g} to {high:g} selected" for low, high in STRENGTHS),
        "selected, made up",
        "in replicates",
        "mean square in errors",
        "intervals that cover",
    ):
        edges.add_column(heading, justify="right")
    for own in figures["cells"]:
        square = own["mean_square"]
        edges.add_row(
            own["what"],
            f"{own['replicates']} ({len(own['refused'])})",
            f"{own['instruments']:.0f}",
            *(_said(x) for x in own["by_strength"]),
            _said(own["made_up"]),
            _said(own["with_made_up"]),
            "" if square is None else f"{square:.2f}",
            _said(own["covered"]),
        )
    stated = Table(title="Effects by posterior probability, all settings with true ones", title_justify="left")
    for heading in ("probability", "mean", "there (95% interval)"):
        stated.add_column(heading, justify="right")
    for low, high, own in _by_probability(figures):
        stated.add_row(f"{low:g} to {high:g}", f"{own['stated']:.2f}", f"{said(own)} of {own['runs']}")
    noise = Table(title="Noise correlation", title_justify="left")
    noise.add_column("effects")
    for heading in ("instruments", "mean square in errors", "intervals that cover", "largest error of what is used"):
        noise.add_column(heading, justify="right")
    for own in figures["cells"]:
        covered = f"{said(own['noise_covered'])} of {own['noise_covered']['runs']:,}"
        square, used = f"{own['noise_mean_square']:.2f}", f"{own['noise_used_off']:.3f}"
        noise.add_row(own["what"], f"{own['instruments']:.0f}", square, covered, used)
    return [edges, stated, noise]


def _by_probability(figures: dict[str, Any]) -> list[tuple[float, float, dict[str, float]]]:
    """Over all settings that have true edges: bounds of a bin, and its mean and rate."""
    cells = [own["by_probability"] for own in figures["cells"] if own["paths"]]
    out = []
    for (low, high), *bins in zip(pairwise(PROBABILITIES), *cells, strict=True):
        bins = [x for x in bins if x["runs"]]
        runs = sum(x["runs"] for x in bins)
        if runs:
            stated = sum(x["stated"] * x["runs"] for x in bins) / runs
            out.append((low, high, {"stated": stated, **rate(sum(x["hits"] for x in bins), runs)}))
    return out


def draw(figures: dict[str, Any], path: Path) -> None:
    """Left: estimates of selected edges against the truth. Right: how many edges are there, by probability."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = ("#c8442b", "#2b6cb0", "#6b7a3a", "#8b5fbf", "#b7a36b", "#3b4252", "#e0a090")
    left.plot([-0.6, 0.6], [-0.6, 0.6], color="#3b4252", lw=0.8, ls=":")
    for own, colour in zip(figures["cells"], colours, strict=False):
        chosen = [edge for edge in own["edges"] if edge["estimate"]]
        if not chosen:
            continue
        label = f"{own['what']}, {own['instruments']:.0f} instruments"
        true, estimate = ([edge[name] for edge in chosen] for name in ("true", "estimate"))
        left.scatter(true, estimate, s=14, color=colour, alpha=0.7, lw=0, label=label)
    left.set_xlabel("true effect of trait on trait (0: made up)")
    left.set_ylabel("estimate, where selected")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    found = [own for _, _, own in _by_probability(figures)]
    share, stated = (np.array([own[name] for own in found]) for name in ("share", "stated"))
    spread = [share - [own["low"] for own in found], [own["high"] for own in found] - share]
    right.plot([0, 1], [0, 1], color="#3b4252", lw=0.8, ls=":")
    right.errorbar(stated, share, yerr=spread, marker="o", ls="", color="#2b6cb0", capsize=3)
    right.set_xlabel("posterior probability of an effect, mean of a bin")
    right.set_ylabel("share that is there")
    right.set_xlim(0, 1.03)
    right.set_ylim(0, 1.03)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=130)
