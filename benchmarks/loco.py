"""Leave one chromosome out, on a genome of HapMap3's size: one command, its time, its memory, and its interruption.

22 chromosomes of coalescent LD, block after block, written as an LD store; z-scores from the model with a non-linear
truth. `deepwas fit --folds loco` runs once from end to end, and once more with a SIGKILL halfway and `--resume`; both
must give the same priors, bit for bit. A few regions are simulated and their LD is used again and again: what a fit
costs hangs on the shapes, not on where they come from.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.simulate import Region, effect_variance, simulate_annotations, simulate_regions, simulate_trait
from benchmarks.stores import simulated_gwas

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.table import Table

__all__ = ["FILES", "Problem", "draw", "fit_command", "make_genome", "measure", "run_command", "tables"]

Progress = Callable[[str, int, int], None]

_SMOOTH = 4


@dataclass(frozen=True)
class Problem:
    """What is made and how it is fitted.

    chromosomes, blocks: of each.  distinct: regions whose LD is simulated.  m: variants a block.  people: whose
    genotypes give the LD.  mean_c: mean of N f.  flags: of `deepwas fit`, beside its files and --folds loco.
    """

    chromosomes: int = 22
    blocks: int = 77
    distinct: int = 44
    m: int = 650
    people: int = 2000
    length: float = 1.2e6
    eigenvalue_floor: float = 2e-2
    sample_size: float = 3e5
    mean_c: float = 0.2
    seed: int = 0
    flags: tuple[str, ...] = ("--network", "mlp", "--evaluate-every", "20", "--factor-dtype", "float16")


QUICK = Problem(
    chromosomes=4, blocks=3, distinct=3, m=60, people=300, flags=("--network", "mlp", "--hidden", "4", "--steps", "40")
)


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Make the genome, fit it whole and interrupted, and compare. Figures for JSON."""
    problem = QUICK if quick else Problem()
    with tempfile.TemporaryDirectory(prefix="deepwas-loco-") as name:
        folder = Path(name)
        size = make_genome(problem, folder, progress)
        command = [*fit_command(folder), "--folds", "loco", *problem.flags]
        progress("uninterrupted", 0, 1)
        whole = run_command([*command, "--out", str(folder / "whole")])
        progress("uninterrupted", 1, 1)
        progress("killed halfway", 0, 1)
        broken = run_command([*command, "--out", str(folder / "broken")], kill_after=0.5 * whole["seconds"])
        done = sum(1 for x in (folder / "broken").glob("rotation_*") if x.is_dir())
        resumed = run_command([*command, "--out", str(folder / "broken"), "--resume"])
        progress("killed halfway", 1, 1)
        from deepwas.runs import load_fit

        first, second = load_fit(folder / "whole"), load_fit(folder / "broken")
        held_out = first.record["held_out"]["cross_fitted"]
        return {
            "settings": asdict(problem),
            "size": size | {k: first.record["size"][k] for k in ("blocks", "variants_modelled", "eigenvalues")},
            "whole": whole,
            "interrupted": {
                "killed_after_seconds": broken["seconds"],
                "rotations_begun": done,
                "resumed_seconds": resumed["seconds"],
                "resumed_peak_rss_gb": resumed["peak_rss_gb"],
                "same_priors": first.variants.equals(second.variants),
                "same_gains": held_out == second.record["held_out"]["cross_fitted"],
            },
            "rotations": len(first.record["rotations"]),
            "held_out": {k: held_out[k] for k in ("gain", "standard_error")},
            "steps": [r["network"]["last_step"] for r in first.record["rotations"]],
            "waiting": [r["network"].get("waiting") for r in first.record["rotations"]],
        }


FILES = {"ld": "ld.h5", "sumstats": "z.parquet", "annotations": "annotations.parquet"}


def fit_command(folder: Path) -> list[str]:
    """`deepwas fit` on the files of `make_genome`."""
    program = [sys.executable, "-c", "from deepwas.cli import main; main()", "fit"]
    return [*program, *(f"--{what}={folder / file}" for what, file in FILES.items())]


def make_genome(problem: Problem, folder: Path, progress: Progress) -> dict[str, Any]:
    """The LD store, z-scores and annotations as files."""
    import polars as pl

    from deepwas.ld import LDBlock, write_ld

    distinct = simulate_regions(
        problem.distinct,
        m=problem.m,
        people=problem.people,
        length=problem.length,
        progress=lambda done, total: progress("simulating LD", done, total),
    )
    distinct = [r for r in distinct if r.m == problem.m] or distinct[:1]
    ld = [LDBlock.from_correlation(r.correlation, eigenvalue_floor=problem.eigenvalue_floor) for r in distinct]
    count = problem.chromosomes * problem.blocks
    which = np.arange(count) % len(distinct)
    regions = [distinct[i] for i in which]
    starts = np.cumsum([0, *(r.m for r in regions)])
    table = _variants(problem, regions)

    def blocks() -> Iterator[tuple[int, LDBlock]]:
        for n, i in enumerate(which):
            progress("writing the LD store", n + 1, count)
            yield int(starts[n]), ld[i]

    store = write_ld(folder / FILES["ld"], table, blocks(), build="GRCh37", n_samples=problem.people, dtype="float16")
    annotations = simulate_annotations(regions, smooth=_SMOOTH, seed=problem.seed)
    f = effect_variance(annotations, smooth=_SMOOTH, mean=problem.mean_c / problem.sample_size)
    z = np.concatenate(simulate_trait(regions, f, sample_size=problem.sample_size, seed=problem.seed))
    keys = table.select("SNP", "CHR", "BP", "A1", "A2")
    values = {f"annotation_{j + 1}": annotations[:, j].astype(np.float32) for j in range(annotations.shape[1])}
    keys.with_columns(**{name: pl.Series(x) for name, x in values.items()}).write_parquet(folder / FILES["annotations"])
    simulated_gwas(store, z, problem.sample_size).write_parquet(folder / FILES["sumstats"])
    store.close()
    return {"store_gb": 1e-9 * (folder / FILES["ld"]).stat().st_size, "mean_chi2": float(np.mean(z**2))}


def _variants(problem: Problem, regions: list[Region]) -> Any:
    """The table of variants: blocks one after the other, `blocks` of them a chromosome."""
    import polars as pl

    chromosome = np.repeat(np.arange(len(regions)) // problem.blocks + 1, [r.m for r in regions])
    offset = np.repeat(np.arange(len(regions)) % problem.blocks, [r.m for r in regions]) * problem.length
    position = (offset + np.concatenate([r.position for r in regions])).astype(np.int64) + 1
    frequency: NDArray[np.float64] = np.concatenate([r.maf for r in regions])
    return pl.DataFrame(
        {
            "CHR": [str(c) for c in chromosome],
            "SNP": [f"v{j}" for j in range(len(position))],
            "BP": position,
            "A1": ["A"] * len(position),
            "A2": ["C"] * len(position),
            "FREQ": frequency,
        }
    )


def run_command(command: list[str], kill_after: float | None = None) -> dict[str, float]:
    """Seconds and peak memory of a process of its own; SIGKILL after a while, if asked for."""
    begun = time.monotonic()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        try:
            if kill_after is not None:
                time.sleep(kill_after)
                process.send_signal(signal.SIGKILL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
        seconds = time.monotonic() - begun
        if process.returncode != (0 if kill_after is None else -signal.SIGKILL):
            said.seek(0)
            text = said.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"deepwas fit ended with {process.returncode}: {text}")
    scale = 1e-9 if sys.platform == "darwin" else 1.024e-6
    return {"seconds": seconds, "peak_rss_gb": scale * usage.ru_maxrss}


def tables(figures: dict[str, Any]) -> list[Table]:
    """One table of figures."""
    from rich.table import Table

    size, whole, broken = figures["size"], figures["whole"], figures["interrupted"]
    table = Table(title="Leave one chromosome out: one command")
    for heading in ("what", "figure"):
        table.add_column(heading)
    table.add_row(
        "variants, blocks, eigenvalues", f"{size['variants_modelled']:,}, {size['blocks']:,}, {size['eigenvalues']:,}"
    )
    table.add_row("LD store", f"{size['store_gb']:.2f} GB")
    table.add_row("rotations, steps (median)", f"{figures['rotations']}, {np.median(figures['steps']):.0f}")
    table.add_row("wall time", f"{whole['seconds']:.0f} s")
    table.add_row("peak memory", f"{whole['peak_rss_gb']:.2f} GB")
    table.add_row(
        "killed after, resumed for", f"{broken['killed_after_seconds']:.0f} s, {broken['resumed_seconds']:.0f} s"
    )
    table.add_row("same priors and gains as uninterrupted", f"{broken['same_priors']}, {broken['same_gains']}")
    gain = figures["held_out"]
    table.add_row("held-out gain, nats", f"{gain['gain']:.1f} ± {gain['standard_error']:.1f}")
    return [table]


def draw(figures: dict[str, Any], path: Path) -> None:
    """Steps of each rotation, and the times."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    steps, times = figure.subplots(1, 2, width_ratios=(1.6, 1))
    steps.bar(range(1, figures["rotations"] + 1), figures["steps"], color="#0072b2")
    steps.set_xlabel("chromosome left out")
    steps.set_ylabel("optimiser steps until stopped")
    whole, broken = figures["whole"], figures["interrupted"]
    times.barh(["uninterrupted"], [whole["seconds"]], color="#0072b2")
    times.barh(["interrupted"], [broken["killed_after_seconds"]], color="#999999", label="until SIGKILL")
    times.barh(
        ["interrupted"], [broken["resumed_seconds"]], left=[broken["killed_after_seconds"]], color="#009e73",
        label="resumed",
    )  # fmt: skip
    times.set_xlabel("seconds")
    times.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    steps.set_title(
        f"{figures['size']['variants_modelled']:,} variants: {whole['seconds']:.0f} s, {whole['peak_rss_gb']:.1f} GB",
        fontsize=10,
    )
    figure.savefig(path, format="png", dpi=110)
