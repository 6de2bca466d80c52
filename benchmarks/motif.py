"""Does a convolutional network find a motif that lies 40 base pairs away?

Every variant lies in random sequence. Near some of them a motif is planted at a fixed distance; only there is the
effect variance raised. Decoys carry the same motif at other distances, where it does nothing. One convolutional
network reads the sequence. Another reads signal tracks instead: white noise in which the same variants have a shape at
that distance, and decoys elsewhere. The reference is a perceptron that is told which variants have the motif in its
place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contest import (
    Contender,
    Splits,
    Truth,
    make_blocks,
    mean_and_error,
    score,
    summary,
    train,
    whiten_regions,
)
from benchmarks.simulate import simulate_effects_and_trait, simulate_regions

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from rich.table import Table

__all__ = ["draw", "measure", "tables"]

Progress = Callable[[str, int, int], None]

CONTENDERS = {
    "told": Contender("MLP, told where the motif is", {"network": "mlp", "hidden": (8,)}, "told"),
    "cnn": Contender(
        "CNN, reads the sequence", {"network": "cnn", "width": 16, "hidden": (32,), "kernel": 9}, "sequence"
    ),
    "tracks": Contender(
        "CNN, reads signal tracks", {"network": "cnn", "width": 16, "hidden": (32,), "kernel": 9}, "tracks"
    ),
}


@dataclass(frozen=True)
class Problem:
    """What is simulated and how it is trained; see `benchmarks.objectives.Problem`.

    bases: of the sequence around a variant.  motif: its length.  distance: from the variant to the motif's middle.
    planted: share of variants with the motif there; as many have it elsewhere.  fold: what it multiplies f by.
    tracks, resolution: number of signal tracks, and bases a bin.  shape: bins of the shape in them.  height: its values
    are plus or minus so many standard deviations of the noise.
    """

    train: int = 300
    validation: int = 40
    test: int = 60
    m: int = 300
    people: int = 2000
    sample_size: float = 1e5
    mean_c: float = 0.2
    eigenvalue_floor: float = 1e-2
    seeds: tuple[int, ...] = tuple(range(300, 305))
    learning_rates: tuple[float, ...] = (0.004,)
    steps: int = 600
    batch_blocks: int = 8
    evaluate_every: int = 20
    patience: int = 15
    bases: int = 128
    motif: int = 8
    distance: int = 40
    planted: float = 0.15
    fold: float = 10.0
    tracks: int = 4
    resolution: int = 2
    shape: int = 6
    height: float = 1.5


QUICK = Problem(
    train=24,
    validation=8,
    test=8,
    m=100,
    people=500,
    seeds=(0, 1),
    learning_rates=(0.005,),
    steps=20,
    evaluate_every=10,
)


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Simulate, train both, and score them on test blocks. Figures for JSON."""
    import scipy.linalg  # noqa: F401  # loads the BLAS that JAX uses too, which `threadpool_limits` then finds
    from threadpoolctl import threadpool_limits

    problem = QUICK if quick else Problem()
    count = problem.train + problem.validation + problem.test
    splits = Splits.of(problem.train, problem.validation, problem.test)
    regions = simulate_regions(
        count, m=problem.m, people=problem.people, progress=lambda done, total: progress("simulating LD", done, total)
    )
    common = {k: getattr(problem, k) for k in ("steps", "batch_blocks", "evaluate_every", "patience")}
    with threadpool_limits(1, user_api="blas"):
        ld = whiten_regions(regions, problem.eigenvalue_floor)
        truths = [_simulated(problem, regions, ld, seed) for seed in problem.seeds]
        runs = train(
            truths,
            CONTENDERS,
            splits,
            common,
            problem.learning_rates,
            lambda done, total: progress("training", done, total),
        )
        seeds = [score(truth, runs, splits) for truth in truths]
    shares = {
        name: [
            sum(s["contenders"][name]["gain_by_block"]) / sum(s["contenders"]["told"]["gain_by_block"]) for s in seeds
        ]
        for name in CONTENDERS
        if name != "told"
    }
    return {
        "settings": asdict(problem),
        "contenders": {name: {"label": c.label} | _summary(name, seeds) for name, c in CONTENDERS.items()},
        "share_of_told": {name: {"by_seed": own} | mean_and_error(own) for name, own in shares.items()},
        "seeds": seeds,
        "runs": [{k: v for k, v in run.items() if k not in ("f", "noise")} for run in runs],
    }


def _summary(name: str, seeds: list[dict[str, Any]]) -> dict[str, Any]:
    found = summary(name, seeds)
    return {k: found[k] for k in ("gain", "oracle_gain", "correlation_with_truth", "learning_rates", "steps")}


def _simulated(problem: Problem, regions: list[Any], ld: list[Any], seed: int) -> Truth:
    from deepwas.inputs import VariantInputs

    rng = np.random.default_rng([seed, 5])
    sequence, told = plant(problem, sum(r.m for r in regions), rng)
    f = np.where(told, problem.fold, 1.0)
    f *= problem.mean_c / problem.sample_size / f.mean()
    effects, z = simulate_effects_and_trait(regions, f, sample_size=problem.sample_size, seed=seed)
    none = np.zeros((len(f), 0), np.float32)
    standard = ((told - told.mean()) / told.std()).astype(np.float32)
    signal = plant_shape(problem, told, np.random.default_rng([seed, 6]))
    inputs = {
        "told": VariantInputs(standard[:, None]),
        "sequence": VariantInputs(none, sequence=sequence),
        "tracks": VariantInputs(none, tracks=signal),
    }
    return Truth(seed, make_blocks(ld, z, problem.sample_size), f, effects, inputs)


def plant(problem: Problem, variants: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Sequences (variants, 2, bases) of both alleles, and which of them have the motif in its place."""
    sequence = rng.integers(0, 4, (variants, problem.bases), dtype=np.uint8)
    motif = rng.integers(0, 4, problem.motif, dtype=np.uint8)
    middle = problem.bases // 2
    place = middle + problem.distance - problem.motif // 2
    kind = rng.random(variants)
    told, decoy = kind < problem.planted, (kind >= problem.planted) & (kind < 2 * problem.planted)
    sequence[told, place : place + problem.motif] = motif
    near = [*range(middle - problem.motif, middle + 1)]  # would cover the variant itself
    allowed = [x for x in range(problem.bases - problem.motif) if abs(x - place) >= problem.motif and x not in near]
    for i in np.flatnonzero(decoy):
        at = rng.choice(allowed)
        sequence[i, at : at + problem.motif] = motif
    both = np.stack([sequence, sequence], axis=1)
    both[:, 1, middle] = (both[:, 0, middle] + rng.integers(1, 4, variants)) % 4
    return both, told


def plant_shape(problem: Problem, told: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """Tracks (variants, bins, tracks) of white noise, with the shape in its place where told, elsewhere in as many."""
    bins = problem.bases // problem.resolution
    signal = rng.standard_normal((len(told), bins, problem.tracks), dtype=np.float32)
    shape = problem.height * rng.choice([-1.0, 1.0], (problem.shape, problem.tracks)).astype(np.float32)
    place = (problem.bases // 2 + problem.distance) // problem.resolution - problem.shape // 2
    signal[told, place : place + problem.shape] += shape
    allowed = [x for x in range(bins - problem.shape) if abs(x - place) >= problem.shape]
    others = np.flatnonzero(~told)
    for i in rng.choice(others, min(int(told.sum()), len(others)), replace=False):
        at = rng.choice(allowed)
        signal[i, at : at + problem.shape] += shape
    return signal


def tables(figures: dict[str, Any]) -> list[Table]:
    """Both contenders."""
    from rich.table import Table

    table = Table(title="Held-out log-likelihood over the constant prior's, nats a test block (± standard error)")
    for heading in ("prior", "gain", "share of oracle", "r(log f)", "rate", "step"):
        table.add_column(heading)
    for found in figures["contenders"].values():
        own, share = found["gain"]["over_blocks"], found["gain"]["share_of_oracle_by_seed"]
        table.add_row(
            found["label"],
            f"{own['mean']:.2f} ± {own['standard_error']:.2f}",
            f"{np.mean(share):.3f}",
            f"{found['correlation_with_truth']['mean']:.3f}",
            " ".join(f"{x:g}" for x in sorted(set(found["learning_rates"]))),
            f"{np.median(found['steps']):.0f}",
        )
    table.caption = "share of the gain of the MLP that is told: " + ", ".join(
        f"{figures['contenders'][name]['label']}: {share['mean']:.3f} ± {share['standard_error']:.3f}"
        for name, share in figures["share_of_told"].items()
    )
    return [table]


def draw(figures: dict[str, Any], path: Path) -> None:
    """Share of the oracle's gain by seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for x, found in enumerate(figures["contenders"].values()):
        share = found["gain"]["share_of_oracle_by_seed"]
        axes.plot(np.full(len(share), x), share, "o", color="#0072b2", alpha=0.5)
        axes.plot([x - 0.15, x + 0.15], [np.mean(share)] * 2, color="#0072b2", lw=2)
    axes.set_xticks(range(len(CONTENDERS)), [c["label"].replace(", ", ",\n") for c in figures["contenders"].values()])
    axes.set_xlim(-0.5, len(CONTENDERS) - 0.5)
    axes.set_ylim(0, 1.05)
    axes.axhline(1, color="0.6", lw=0.8, ls="--")
    axes.set_ylabel("share of the oracle's held-out gain")
    axes.set_title("A motif 40 base pairs from the variant (bar: mean, points: seeds)", fontsize=10)
    figure.savefig(path, format="png", dpi=110)
