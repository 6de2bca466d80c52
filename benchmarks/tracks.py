"""Extraction of tracks and of sequence: variants a second on one core, peak memory, and reading them again.

Signals are bigWig files of one chromosome, runs of random length whose values are smooth; the LD stores hold hardly any
LD. Each task runs in a process of its own, on one thread, so that its time and its peak memory are its own; the files
are in the system's cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import peak_rss

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Tasks", "draw", "measure", "tables"]

Progress = Callable[[str, int, int], None]

CHROMOSOME = "22"
GENOME = 2.88e9  # bases of the autosomes
BLOCK = 600  # variants read at once, as training does
GOALS = {"variants_s": ">= 5,000", "peak_rss_gb": "< 1"}


@dataclass(frozen=True)
class Tasks:
    """What is run.

    bases: of the chromosome that signals and variants cover.  spacings: bases from variant to variant: 2,600 as of
        HapMap3 (1.1 million in the genome), 290 as imputed (10 million).
    runs: mean lengths of the runs of equal values in a bigWig: 10 bases in a fine one, 150 in a coarse one.
    tracks, bins, resolution: of the windows.  sequence: bases of a sequence window.
    """

    bases: int = 50_000_000
    spacings: tuple[int, ...] = (2600, 290)
    runs: tuple[int, ...] = (10, 30, 150)
    tracks: int = 10
    bins: int = 64
    resolution: int = 32
    sequence: int = 256
    seed: int = 0


QUICK = Tasks(bases=400_000, runs=(10, 30), tracks=2)


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Figures of every task."""
    tasks = QUICK if quick else Tasks()
    wanted: list[dict[str, Any]] = [
        *({"kind": "tracks", "runs": r, "spacing": s} for s in tasks.spacings for r in tasks.runs),
        *({"kind": "tracks", "runs": tasks.runs[1], "spacing": s, "compression": "lzf"} for s in tasks.spacings[-1:]),
        *({"kind": "sequence", "spacing": s, "compression": c} for s in tasks.spacings[-1:] for c in ("none", "lzf")),
    ]
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = len(tasks.runs) + len(tasks.spacings) + 1
        for number, write in enumerate(_files(tasks, folder)):
            progress("files", number, steps)
            write()
        progress("files", steps, steps)
        for number, task in enumerate(wanted):
            progress("extractions", number, len(wanted))
            command = [sys.executable, "-m", "benchmarks.tracks", name, json.dumps(asdict(tasks) | task)]
            done = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True)
            found.append(task | json.loads(done.stdout))
        progress("extractions", len(wanted), len(wanted))
    return {"tasks": asdict(tasks), "goals": GOALS, "extractions": found}


def _files(tasks: Tasks, folder: Path) -> list[Callable[[], None]]:
    """What writes each file: a bigWig for each length of runs, an LD store for each spacing, the FASTA file."""
    return [
        *(partial(_write_bigwig, tasks, folder / f"{runs}.bw", runs) for runs in tasks.runs),
        *(partial(_write_store, tasks, folder / f"{spacing}.h5", spacing) for spacing in tasks.spacings),
        partial(_write_fasta, tasks, folder / "genome.fa"),
    ]


def _write_bigwig(tasks: Tasks, path: Path, mean: int) -> None:
    import pyBigWig

    from deepwas.genome import CHROMOSOME_LENGTHS

    rng = np.random.default_rng(tasks.seed)
    ends = np.cumsum(rng.geometric(1 / mean, tasks.bases // mean))
    ends = ends[ends < tasks.bases]
    starts = np.concatenate([[0], ends[:-1]])
    values = np.convolve(rng.gamma(0.5, 2, len(starts)), np.ones(20) / 20, "same").round(3)
    kept = rng.random(len(starts)) < 0.9
    starts, ends, values = starts[kept], ends[kept], values[kept]
    handle = pyBigWig.open(str(path), "w")
    handle.addHeader([(f"chr{CHROMOSOME}", CHROMOSOME_LENGTHS["GRCh37"][CHROMOSOME])])
    for low in range(0, len(starts), 100_000):
        piece = slice(low, low + 100_000)
        handle.addEntries(
            [f"chr{CHROMOSOME}"] * len(starts[piece]), starts[piece], ends=ends[piece], values=values[piece]
        )
    handle.close()


def _write_store(tasks: Tasks, path: Path, spacing: int) -> None:
    """Variants at random places; a store needs a block, so its first twenty have one."""
    import polars as pl

    from deepwas.ld import LDBlock
    from deepwas.ld.write import write_ld

    rng = np.random.default_rng(tasks.seed + 1)
    M = tasks.bases // spacing
    bases = np.array(list("ACGT"))
    first = rng.integers(0, 4, M)
    variants = pl.DataFrame(
        {
            "CHR": pl.repeat(CHROMOSOME, M, eager=True),
            "SNP": [f"v{j}" for j in range(M)],
            "BP": np.sort(rng.integers(1, tasks.bases, M)),
            "A1": bases[first],
            "A2": bases[(first + rng.integers(1, 4, M)) % 4],
            "FREQ": np.full(M, 0.3),
        }
    )
    write_ld(path, variants, [(0, LDBlock.from_correlation(np.eye(20)))], build="GRCh37", n_samples=1000).close()


def _write_fasta(tasks: Tasks, path: Path) -> None:
    import pyfaidx

    from deepwas.genome import CHROMOSOME_LENGTHS

    length, line = CHROMOSOME_LENGTHS["GRCh37"][CHROMOSOME], 60
    rng = np.random.default_rng(tasks.seed + 2)
    codes = rng.integers(0, 4, -(-length // line) * line, np.uint8)
    rows = np.frombuffer(b"ACGT", np.uint8)[codes].reshape(-1, line)
    lines = np.concatenate([rows, np.full((len(rows), 1), ord("\n"), np.uint8)], axis=1).ravel()
    over = len(codes) - length
    with open(path, "wb") as handle:
        handle.write(f">chr{CHROMOSOME}\n".encode())
        lines[: len(lines) - 1 - over].tofile(handle)
        handle.write(b"\n")
    pyfaidx.Faidx(str(path)).close()  # makes the index


def run(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """One extraction: seconds and processor seconds, variants a second of the latter, memory; the speed of reading."""
    from deepwas.ld import open_ld
    from deepwas.tracks import SequenceOptions, TrackOptions, extract_sequence, extract_tracks

    compression = task.get("compression", "none")
    out = folder / "out.h5"
    with open_ld(folder / f"{task['spacing']}.h5") as store:
        M = store.variants.height
        before = _peak()
        began, used = time.perf_counter(), time.process_time()
        if task["kind"] == "tracks":
            names = {f"track{t}": folder / f"{task['runs']}.bw" for t in range(task["tracks"])}
            # The same share of the variants as of a whole genome's.
            sampled = max(1, round(TrackOptions().statistics_variants * task["bases"] / GENOME))
            options = TrackOptions(
                bins=task["bins"],
                resolution=task["resolution"],
                compression=compression,
                statistics_variants=sampled,
            )
            windows = extract_tracks(store, out, bigwigs=names, options=options)
        else:
            # Nothing to do with the truth of the alleles: they are random.
            choice = SequenceOptions(bases=task["sequence"], max_mismatch=1.0, compression=compression)
            windows = extract_sequence(store, out, fasta=folder / "genome.fa", options=choice)
        seconds, processor = time.perf_counter() - began, time.process_time() - used
    memory = _peak()
    with windows:
        began = time.perf_counter()
        size = sum(windows[start : start + BLOCK].nbytes for start in range(0, M, BLOCK))
        reading = time.perf_counter() - began
    figures = {
        "variants": M,
        "seconds": seconds,
        "processor_seconds": processor,
        "variants_s": M / processor,
        "peak_rss_gb": 1e-9 * memory,
        "rss_gb_before": 1e-9 * before,
        "file_mb": 1e-6 * out.stat().st_size,
        "windows_mb": 1e-6 * size,
        "read_mb_s": 1e-6 * size / reading,
        "read_variants_s": M / reading,
    }
    out.unlink()
    return figures


def _peak() -> int:
    """Largest resident set of this process, bytes; `peak_rss` would count that of the process that started it."""
    try:
        with open("/proc/self/status") as handle:
            return next(1024 * int(line.split()[1]) for line in handle if line.startswith("VmHWM"))
    except OSError:
        return peak_rss()


def tables(figures: dict[str, Any]) -> list[Table]:
    """A row an extraction."""
    from rich.table import Table

    t = figures["tasks"]
    what = f"{t['tracks']} bigWig tracks of {t['bins']} bins of {t['resolution']} bases; sequence of {t['sequence']}"
    table = Table(
        title=f"Extraction on one core: {what}. Goal: {GOALS['variants_s']} variants/s, {GOALS['peak_rss_gb']} GB"
    )
    for heading in (
        "what",
        "variants",
        "bases apart",
        "run length",
        "stored",
        "variants/s",
        "peak GB",
        "MB",
        "read MB/s",
    ):
        table.add_column(heading)
    for row in figures["extractions"]:
        table.add_row(
            row["kind"],
            f"{row['variants']:,}",
            f"{row['spacing']:,}",
            str(row.get("runs", "")),
            row.get("compression", "none"),
            f"{row['variants_s']:,.0f}",
            f"{row['peak_rss_gb']:.2f}",
            f"{row['file_mb']:,.0f}",
            f"{row['read_mb_s']:,.0f}",
        )
    return [table]


def draw(figures: dict[str, Any], path: Path) -> None:
    """Variants a second by length of runs and density, beside the goal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for spacing, colour in zip(figures["tasks"]["spacings"], ("#0072b2", "#d55e00"), strict=False):
        rows = [
            row
            for row in figures["extractions"]
            if row["kind"] == "tracks" and row["spacing"] == spacing and "compression" not in row
        ]
        speeds = [row["variants_s"] for row in rows]
        axes.plot([row["runs"] for row in rows], speeds, "o-", color=colour, label=f"a variant every {spacing:,} bases")
    axes.axhline(5000, color="black", ls="--", lw=1, label="goal")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(figures["tasks"]["runs"], [str(r) for r in figures["tasks"]["runs"]])
    axes.minorticks_off()
    axes.set_xlabel("bases of a run of equal values in the bigWig")
    axes.set_ylabel("variants a second and core")
    axes.set_title(f"{figures['tasks']['tracks']} tracks, {figures['tasks']['bins']} bins each", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(path, format="png", dpi=110)


def main(arguments: list[str]) -> None:
    """`python -m benchmarks.tracks FOLDER TASK`: one extraction's figures as JSON, for `measure`."""
    print(json.dumps(run(Path(arguments[0]), json.loads(arguments[1]))))


if __name__ == "__main__":
    main(sys.argv[1:])
