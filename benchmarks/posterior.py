"""Posterior effects under learned priors: do their intervals cover, and do their scores predict better?

LD is coalescent. The people simulated are split: some are the LD panel, whose LD the GWAS has too, the others are kept
to be predicted. Effects are drawn from a prior that hangs on annotations, or does not; z-scores from the model. A prior
is learned from them, cross-fitted, and five scores are compared in the people kept, by the share of their genetic
variance that each explains (its squared correlation with their genetic values):

- marginal: the z-scores as they are;
- shrunk: LDpred-inf's (R + M / (N h2))^-1 z with its moment estimate of h2, by dense algebra, R in full;
- constant: the posterior mean under the constant prior of maximum likelihood;
- learned: under the learned prior;  true: under the prior that effects were drawn from.

Comparisons are paired, over traits. Coverage: how often 95% intervals hold the effects, and the blocks' beta'R beta.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulate import Region, effect_variance, simulate_annotations, simulate_panel
from benchmarks.stores import simulated_gwas, store_of_regions

if TYPE_CHECKING:
    from rich.table import Table

    from deepwas.annotations import Annotations
    from deepwas.ld import LDStore
    from deepwas.posterior import Posterior

__all__ = ["draw", "measure", "tables"]

Progress = Callable[[str, int, int], None]
Array = NDArray[np.float64]

SCORES = ("marginal", "shrunk", "constant", "learned", "true")
SCENARIOS = {"informative": "f by annotations", "uninformative": "f the same for all"}
_SMOOTH = 4
_INTERVAL = 1.959964


@dataclass(frozen=True)
class Problem:
    """What is simulated.

    regions, m: of the LD, m variants each, one block a region.  panel, people: numbers of people in the LD panel, and
    to be predicted.  sample_size: N.  mean_c: mean of N f.  traits: of each scenario.  network, steps, folds: of the
    learned prior; folds 0 for one network without cross-fitting.
    """

    regions: int = 60
    m: int = 250
    panel: int = 4000
    people: int = 2000
    eigenvalue_floor: float = 1e-2
    sample_size: float = 1e5
    mean_c: float = 0.5
    traits: int = 6
    network: str = "mlp"
    steps: int = 300
    folds: int = 5
    seed: int = 5


QUICK = Problem(regions=8, m=60, panel=400, people=200, mean_c=5.0, traits=2, network="linear", steps=10, folds=0)


@dataclass(frozen=True)
class _World:
    """Regions, genotypes of the people kept (m, people) in the panel's standardisation, store, annotations (M, p)."""

    regions: list[Region]
    kept: list[Array]
    store: LDStore
    values: Array

    def cut(self, x: Array) -> list[Array]:
        """By region."""
        return np.split(x, np.cumsum([r.m for r in self.regions])[:-1])


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Simulate, learn, compare. Figures for JSON."""
    problem = QUICK if quick else Problem()
    with tempfile.TemporaryDirectory(prefix="deepwas-posterior-") as name:
        world = _world(problem, Path(name), progress)
        M = sum(r.m for r in world.regions)
        level = problem.mean_c / problem.sample_size
        priors = {
            "informative": effect_variance(world.values, smooth=_SMOOTH, mean=level),
            "uninformative": np.full(M, level),
        }
        traits: dict[str, list[dict[str, Any]]] = {name: [] for name in SCENARIOS}
        for n, scenario in enumerate(SCENARIOS):
            for number in range(problem.traits):
                traits[scenario].append(_trait(problem, world, priors[scenario], [problem.seed, n, number]))
                progress("traits", n * problem.traits + number + 1, len(SCENARIOS) * problem.traits)
    return {
        "settings": asdict(problem),
        "size": {"variants": M, "h2": level * M},
        "scenarios": {name: _summary(rows) for name, rows in traits.items()},
        "traits": traits,
    }


def _world(problem: Problem, folder: Path, progress: Progress) -> _World:
    regions, kept = [], []
    for number in range(problem.regions):
        everyone = simulate_panel(problem.m, people=problem.panel + problem.people, seed=1000 * problem.seed + number)
        X = everyone.genotypes
        panel = X[:, : problem.panel]
        varies = panel.std(axis=1) > 0.05
        mean, sd = panel[varies].mean(axis=1, keepdims=True), panel[varies].std(axis=1, keepdims=True)
        own = (panel[varies] - mean) / sd
        R = own @ own.T / problem.panel
        np.fill_diagonal(R, 1.0)
        regions.append(Region(everyone.position[varies], everyone.maf[varies], R))
        kept.append((X[varies, problem.panel :] - mean) / sd)
        progress("simulating people", number + 1, problem.regions)
    values = simulate_annotations(regions, smooth=_SMOOTH, seed=problem.seed)
    from deepwas.ld import LDBlock

    blocks = [LDBlock.from_correlation(r.correlation, eigenvalue_floor=problem.eigenvalue_floor) for r in regions]
    return _World(regions, kept, store_of_regions(regions, blocks, folder / "ld.h5", problem.panel), values)


def _trait(problem: Problem, world: _World, f: Array, seed: list[int]) -> dict[str, Any]:
    """One trait: its scores' shares of the genetic variance, coverage, and expected against realised R2."""
    import polars as pl

    from deepwas import FitOptions, fit
    from deepwas.posterior import PosteriorOptions, estimate_posterior

    rng = np.random.default_rng(seed)
    N, store = problem.sample_size, world.store
    beta = rng.normal(size=len(f)) * np.sqrt(f)
    z = np.concatenate(
        [
            np.sqrt(N) * r.correlation @ b + r.root @ rng.normal(size=r.m)
            for r, b in zip(world.regions, world.cut(beta), strict=True)
        ]
    )
    gwas = simulated_gwas(store, z, N)
    options = FitOptions(
        network=problem.network,  # type: ignore[arg-type]
        steps=problem.steps,
        cross_fit=problem.folds > 0,
        folds=problem.folds or 5,
    )
    learned = fit(store, gwas, _annotations(world), options=options)
    flat = learned.record["heritability"]["constant"]

    def under(variance: Array, noise: float) -> Posterior:
        table = store.variants.select("CHR", "SNP", "BP", "A1", "A2").with_columns(SNPVAR=pl.Series(variance))
        return estimate_posterior(table, store, gwas, options=PosteriorOptions(noise=noise))

    found = {
        "constant": under(np.full(len(f), float(flat["effect_variance"])), float(flat["noise"])),
        "learned": estimate_posterior(learned, store),
        "true": under(f, 1.0),
    }
    weights = {"marginal": z / np.sqrt(N), "shrunk": _shrunk(world, z, N)}
    weights |= {name: x.table["POST_MEAN"].to_numpy() for name, x in found.items()}
    truth = sum(b @ X for b, X in zip(world.cut(beta), world.kept, strict=True))
    shares = {}
    for name in SCORES:
        score = sum(w @ X for w, X in zip(world.cut(weights[name]), world.kept, strict=True))
        shares[name] = float(np.corrcoef(score, truth)[0, 1] ** 2)
    return {
        "share": shares,
        "held_out_gain": learned.record["held_out"]["cross_fitted" if learned.cross_fitted else "plain"]["gain"],
        "posterior": {name: _calibration(world, x, beta) for name, x in found.items()},
    }


def _annotations(world: _World) -> Annotations:
    from deepwas.annotations import Annotations

    names = tuple(f"annotation_{j + 1}" for j in range(world.values.shape[1]))
    variants = world.store.variants.select("SNP", "CHR", "BP", "A1", "A2")
    return Annotations(names, world.values.astype(np.float32), variants, dict.fromkeys(names, "simulated"))


def _shrunk(world: _World, z: Array, N: float) -> Array:
    """LDpred-inf: h2 = M (mean z^2 - 1) / (N mean l), l the LD scores, and a ridge of M / (N h2)."""
    mean_score = np.concatenate([(r.correlation**2).sum(axis=1) for r in world.regions]).mean()
    c = max((np.mean(z**2) - 1) / mean_score, 1e-6)  # N h2 / M
    parts = [
        np.linalg.solve(r.correlation + np.eye(r.m) / c, own) / np.sqrt(N)
        for r, own in zip(world.regions, world.cut(z), strict=True)
    ]
    return np.concatenate(parts)


def _calibration(world: _World, found: Posterior, beta: Array) -> dict[str, float]:
    """Coverage of effects and of local heritability, and R2: expected, and realised in the panel's LD."""
    mean, sd = (found.table[c].to_numpy() for c in ("POST_MEAN", "POST_SD"))
    R = [r.correlation for r in world.regions]
    pairs = list(zip(R, world.cut(mean), world.cut(beta), strict=True))
    realised = sum(m @ r @ b for r, m, b in pairs) ** 2 / sum(m @ r @ m for r, m, _ in pairs)
    local = np.array([b @ r @ b for r, _, b in pairs])
    h2, h2_sd = found.blocks["H2"].to_numpy(), found.blocks["H2_SD"].to_numpy()
    return {
        "coverage": float(np.mean(np.abs(beta - mean) <= _INTERVAL * sd)),
        "local_coverage": float(np.mean(np.abs(local - h2) <= _INTERVAL * h2_sd)),
        "expected_r2": float(found.record["totals"]["r2"]),
        "realised_r2": float(realised),
    }


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means with standard errors over traits, and what each score explains over the constant prior's, paired."""

    def said(x: Sequence[float]) -> dict[str, float]:
        values = np.array(x)
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
        return {"mean": float(values.mean()), "standard_error": float(error)}

    share = {name: np.array([row["share"][name] for row in rows]) for name in SCORES}
    posteriors = rows[0]["posterior"]
    return {
        "share": {name: said(share[name].tolist()) for name in SCORES},
        "learned_over": {name: said((share["learned"] - share[name]).tolist()) for name in SCORES if name != "learned"},
        "posterior": {
            name: {key: said([row["posterior"][name][key] for row in rows]) for key in posteriors[name]}
            for name in posteriors
        },
        "held_out_gain": said([row["held_out_gain"] for row in rows]),
    }


def tables(figures: dict[str, Any]) -> list[Table]:
    """The scores, and the calibration of the posteriors."""
    from rich.table import Table

    settings, out = figures["settings"], []
    scores = Table(title=f"Share of genetic variance explained in {settings['people']:,} people (± SE over traits)")
    scores.add_column("scenario")
    for name in SCORES:
        scores.add_column(name, justify="right")
    for name in SCORES:
        if name != "learned":
            scores.add_column(f"learned - {name}", justify="right")
    for scenario, found in figures["scenarios"].items():
        cells = [_said(found["share"][name]) for name in SCORES]
        cells += [_said(x, signed=True) for x in found["learned_over"].values()]
        scores.add_row(SCENARIOS[scenario], *cells)
    out.append(scores)
    calibration = Table(title=f"Calibration (heritability {figures['size']['h2']:.3f})")
    headings = ("scenario", "prior", "95% intervals cover", "of local heritability", "expected R2", "realised R2")
    for heading in headings:
        calibration.add_column(heading, justify="left" if heading in ("scenario", "prior") else "right")
    for scenario, found in figures["scenarios"].items():
        for name, own in found["posterior"].items():
            cells = [_said(own[key]) for key in ("coverage", "local_coverage", "expected_r2", "realised_r2")]
            calibration.add_row(SCENARIOS[scenario], name, *cells)
    out.append(calibration)
    return out


def _said(x: dict[str, float], signed: bool = False) -> str:
    return f"{x['mean']:{'+' if signed else ''}.4f} ± {x['standard_error']:.4f}"


def draw(figures: dict[str, Any], path: Path) -> None:
    """Scores by scenario, each trait a dot; and coverage."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    *panels, coverage = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    colours = dict(zip(("constant", "learned", "true"), ("0.5", "#c8442b", "#2b6cb0"), strict=True))
    for panel, (scenario, rows) in zip(panels, figures["traits"].items(), strict=True):
        for place, name in enumerate(SCORES):
            values = [row["share"][name] for row in rows]
            panel.plot([place] * len(values), values, "o", ms=4, alpha=0.7, color=colours.get(name, "0.3"))
            panel.hlines(np.mean(values), place - 0.3, place + 0.3, color=colours.get(name, "0.3"))
        panel.set_xticks(range(len(SCORES)), SCORES, fontsize=8)
        panel.set_title(SCENARIOS[scenario], fontsize=10)
        panel.set_ylabel("share of genetic variance explained")
    for shift, (name, colour) in enumerate(colours.items()):
        for place, found in enumerate(figures["scenarios"].values()):
            own = found["posterior"][name]["coverage"]
            at = place + 0.15 * (shift - 1)
            coverage.errorbar(
                at, own["mean"], yerr=2 * own["standard_error"], fmt="o", color=colour, label=None if place else name
            )
    coverage.axhspan(0.94, 0.96, color="0.92", zorder=0)
    coverage.axhline(0.95, color="0.4", lw=0.8)
    coverage.set_xticks(range(len(SCENARIOS)), list(SCENARIOS), fontsize=8)
    coverage.set_xlim(-0.5, len(SCENARIOS) - 0.5)
    coverage.set_title("Coverage of 95% intervals (± 2 SE)", fontsize=10)
    coverage.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, format="png", dpi=110)
