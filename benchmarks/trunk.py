"""Networks that read windows from a file: does training wait for them, and does a large trunk fit in memory?

`deepwas fit` in a process of its own, on tracks that were extracted from a bigWig file into HDF5. The convolutional
network is the default one; the trunk is Enformer-style, of some 50 million parameters, and takes one optimiser step on
one LD block, with the evaluations before and after it. What a step costs hangs on shapes, not on what the tracks say.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import loco

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Problem", "draw", "measure", "tables"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Problem:
    """What is made and trained.

    small, large: genomes of the two fits, see `benchmarks.loco.Problem`.  tracks, bins, resolution: of the windows.
    run: mean length of the runs of equal values in the bigWig file.
    """

    small: loco.Problem = field(
        default_factory=lambda: loco.Problem(
            chromosomes=3, blocks=12, distinct=4, m=650,
            flags=("--network", "cnn", "--steps", "60", "--evaluate-every", "20"),
        )
    )  # fmt: skip
    large: loco.Problem = field(
        default_factory=lambda: loco.Problem(
            chromosomes=3, blocks=1, distinct=1, m=400,
            flags=(
                "--network", "enformer", "--width", "1024", "--depth", "6", "--heads", "8", "--hidden", "512",
                "--steps", "1", "--batch-blocks", "1", "--evaluate-every", "1", "--variants-at-once", "64",
            ),
        )
    )  # fmt: skip
    tracks: int = 10
    bins: int = 64
    resolution: int = 32
    run: int = 30


QUICK = Problem(
    small=loco.Problem(
        chromosomes=3, blocks=2, distinct=2, m=60, people=300,
        flags=("--network", "cnn", "--width", "4", "--depth", "1", "--steps", "6", "--evaluate-every", "3"),
    ),
    large=loco.Problem(
        chromosomes=3, blocks=1, distinct=1, m=40, people=300,
        flags=(
            "--network", "enformer", "--width", "16", "--depth", "1", "--heads", "2", "--hidden", "8",
            "--steps", "1", "--batch-blocks", "1", "--evaluate-every", "1",
        ),
    ),
    tracks=2,
    bins=8,
)  # fmt: skip


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Both fits. Figures for JSON."""
    problem = QUICK if quick else Problem()
    return {"settings": asdict(problem)} | {
        name: _fit(getattr(problem, name), problem, name, progress) for name in ("small", "large")
    }


def _fit(genome: loco.Problem, problem: Problem, name: str, progress: Progress) -> dict[str, Any]:
    from deepwas.ld import open_ld
    from deepwas.options import FitOptions
    from deepwas.runs import load_fit
    from deepwas.tracks import TrackOptions, extract_tracks

    def say(what: str, done: int, total: int) -> None:
        progress(f"{name}: {what}", done, total)

    with tempfile.TemporaryDirectory(prefix="deepwas-trunk-") as place:
        folder = Path(place)
        loco.make_genome(genome, folder, say)
        length = int(genome.blocks * genome.length) + problem.bins * problem.resolution
        _write_bigwig(folder / "signal.bw", genome.chromosomes, length, problem.run)
        with open_ld(folder / loco.FILES["ld"]) as store:
            options = TrackOptions(bins=problem.bins, resolution=problem.resolution, check_build=False)
            names = {f"track{t}": folder / "signal.bw" for t in range(problem.tracks)}
            with extract_tracks(store, folder / "tracks.h5", bigwigs=names, options=options):
                pass
        command = [*loco.fit_command(folder), "--tracks", str(folder / "tracks.h5"), "--out", str(folder / "run")]
        command += ["--test-chromosomes", str(genome.chromosomes), "--validation-chromosomes", "2", *genome.flags]
        say("fit", 0, 1)
        cost = loco.run_command(command)
        say("fit", 1, 1)
        fit = load_fit(folder / "run")
        record = fit.record["rotations"][0]["network"]
        read = FitOptions.of_record(fit.record["options"])
        return cost | {
            "network": read.network,
            "parameters": _parameters(fit.networks[0]),
            "variants": fit.record["size"]["variants_modelled"],
            "variants_a_step": genome.m * read.batch_blocks,
            "steps": record["last_step"],
            "waiting": record["waiting"],
        }


def _parameters(network: Any) -> int:
    import jax
    from flax import nnx

    return sum(x.size for x in jax.tree.leaves(nnx.state(network, nnx.Param)))


def _write_bigwig(path: Path, chromosomes: int, length: int, run: int) -> None:
    import pyBigWig

    rng = np.random.default_rng(0)
    handle = pyBigWig.open(str(path), "w")
    handle.addHeader([(f"chr{c}", length) for c in range(1, chromosomes + 1)])
    for c in range(1, chromosomes + 1):
        ends = np.append(np.cumsum(rng.geometric(1 / run, length // run)), length)
        ends = ends[ends <= length]
        starts = np.concatenate([[0], ends[:-1]])
        values = rng.gamma(0.5, 2, len(starts)).round(3)
        for low in range(0, len(starts), 100_000):
            piece = slice(low, low + 100_000)
            handle.addEntries([f"chr{c}"] * len(starts[piece]), starts[piece], ends=ends[piece], values=values[piece])
    handle.close()


def tables(figures: dict[str, Any]) -> list[Table]:
    """A row a fit."""
    from rich.table import Table

    table = Table(title="Training on windows read from a file")
    for heading in ("network", "parameters", "variants a step", "steps", "seconds in all", "peak GB", "waiting"):
        table.add_column(heading)
    for name in ("small", "large"):
        found = figures[name]
        table.add_row(
            found["network"],
            f"{found['parameters']:,}",
            f"{found['variants_a_step']:,}",
            str(found["steps"]),
            f"{found['seconds']:.0f}",
            f"{found['peak_rss_gb']:.2f}",
            f"{found['waiting']:.2%} of the time of steps",
        )
    return [table]


def draw(figures: dict[str, Any], path: Path) -> None:
    """Peak memory beside what the machine has to offer, and the share of time spent waiting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    memory, waiting = figure.subplots(1, 2)
    names = [f"{figures[n]['network']}\n{figures[n]['parameters']:,} parameters" for n in ("small", "large")]
    bars = memory.bar(names, [figures[n]["peak_rss_gb"] for n in ("small", "large")], color="#0072b2", width=0.5)
    memory.bar_label(bars, fmt="%.1f")
    memory.axhline(24, color="0.4", ls="--", lw=1)
    memory.annotate("24 GB", (0.5, 24), ha="center", va="bottom", fontsize=8)
    memory.set_ylim(0, 28)
    memory.set_ylabel("peak memory, GB")
    bars = waiting.bar(names, [100 * figures[n]["waiting"] for n in ("small", "large")], color="#d55e00", width=0.5)
    waiting.bar_label(bars, fmt="%.2f%%")
    waiting.set_ylim(0, 100)
    waiting.set_ylabel("% of the time of steps without input")
    figure.savefig(path, format="png", dpi=110)
