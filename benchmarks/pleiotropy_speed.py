"""Time and memory of a classification, by number of LD blocks and of traits: 8 traits on a genome of HapMap3's size.

Some regions of coalescent LD are simulated and used again and again, written as an LD store: what a classification
costs hangs on the shapes and on how many effects there are, not on where the LD comes from. z-scores come from the
model, with LD as exact as the GWAS's own. Each size runs `deepwas.pleiotropy.classify` in a process of its own, with
noise correlation and effects of trait on trait estimated, so that peak memory is its own:
`python -m benchmarks.pleiotropy_speed --blocks 100 --traits 8`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.kept import digest_of
from benchmarks.machine import exponent, peak_rss

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.table import Table

    from deepwas.ld import LDStore

__all__ = ["PRESETS", "Genome", "draw", "make", "measure", "run", "tables"]

Progress = Callable[[str, int, int], None]

GOALS = {"seconds": "<= 1,200 on 2 cores", "peak_rss_gb": "<= 8", "exponent": "0.95 to 1.05"}
_CHROMOSOMES = 22


@dataclass(frozen=True)
class Genome:
    """What is classified.

    blocks: in all, of m variants.  distinct: regions whose LD is simulated, of `people`.  kept: share of the variance.
    traits: K.  sample_size: N of each, and of the LD.  polygenicity: share of variants that act on a trait.
    shared: share of the acting variants that act on 2 to 4 traits.  signal: N times the slab.  annotation: standard
    deviation of the log prior.  learn_blocks: as in `PleiotropyOptions`.
    """

    blocks: int = 1700
    m: int = 650
    distinct: int = 20
    people: int = 2000
    kept: float = 0.995
    traits: int = 8
    sample_size: float = 2e5
    polygenicity: float = 5e-4
    shared: float = 0.3
    signal: float = 80.0
    annotation: float = 0.5
    learn_blocks: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.blocks < 1 or self.distinct < 1 or self.m < 2 or self.traits < 2:
            raise ValueError(f"blocks and distinct must be 1 or more, m and traits 2 or more; got {self}.")


FULL = Genome()
PRESETS: dict[str, tuple[Genome, ...]] = {
    "quick": tuple(
        Genome(blocks=n, m=60, distinct=3, people=300, traits=3, polygenicity=5e-3, learn_blocks=4) for n in (6, 12)
    ),
    "medium": tuple(Genome(blocks=n, learn_blocks=25) for n in (50, 100, 200)),
    "full": (*(Genome(blocks=n) for n in (425, 850)), FULL, Genome(blocks=100, traits=20, learn_blocks=50)),
}


def make(genome: Genome, folder: Path) -> tuple[LDStore, dict[str, Any], dict[str, Any]]:
    """The LD store in `folder`, and by trait priors and z-scores as `classify` takes them."""
    import polars as pl

    from benchmarks.pleiotropy_genome import simulate_genome
    from deepwas.ld import LDBlock
    from deepwas.ld.write import write_ld
    from deepwas.sumstats import HarmonisedSumstats

    distinct = min(genome.distinct, genome.blocks)
    pool = simulate_genome(distinct, m=genome.m, people=genome.people, panel_people=0, seed=genome.seed)
    decomposed = [LDBlock.from_correlation(r.correlation, variance_kept=genome.kept) for r in pool.regions]
    M, K, m = genome.blocks * genome.m, genome.traits, genome.m
    chromosome = 1 + np.arange(genome.blocks) * _CHROMOSOMES // genome.blocks
    variants = pl.DataFrame(
        {
            "CHR": np.repeat(chromosome, m).astype(str),
            "SNP": [f"rs{j}" for j in range(M)],
            "BP": 1000 * (1 + np.arange(M)),
            "A1": ["A"] * M,
            "A2": ["G"] * M,
            "FREQ": np.concatenate([pool.regions[i % distinct].maf for i in range(genome.blocks)]),
        }
    )

    def blocks() -> Iterator[tuple[int, LDBlock]]:
        for i in range(genome.blocks):
            yield i * m, decomposed[i % distinct]

    size = genome.sample_size
    store = write_ld(folder / "ld.h5", variants, blocks(), build="GRCh37", n_samples=int(size), source="simulated")
    roots = []
    for region in pool.regions:
        values, vectors = np.linalg.eigh(region.correlation)
        roots.append(vectors * np.sqrt(np.maximum(values, 0.0)))
    rng = np.random.default_rng([genome.seed, 3])
    load = rng.uniform(-0.5, 0.5, K)
    noise = np.outer(load, load)
    np.fill_diagonal(noise, 1.0)
    mix = np.linalg.cholesky(noise).T
    weight = np.exp(genome.annotation * rng.normal(size=M))
    weight /= weight.mean()
    z = np.empty((M, K))
    for i in range(genome.blocks):
        rows, root = slice(i * m, (i + 1) * m), roots[i % distinct]
        u = _effects(genome, weight[rows], rng)
        z[rows] = root @ (root.T @ u + rng.normal(size=(m, K)) @ mix)
    base = variants.select("CHR", "SNP", "BP", "A1", "A2")
    prior = base.with_columns(pl.Series("SNPVAR", genome.polygenicity * genome.signal / size * weight))
    priors, scores = {}, {}
    for k in range(K):
        name = f"trait{k + 1}"
        frame = base.with_row_index("VARIANT").with_columns(
            pl.Series("Z", z[:, k]), pl.lit(size).alias("N"), pl.lit(0.3).alias("FRQ")
        )
        priors[name] = prior
        scores[name] = HarmonisedSumstats(
            frame, M, name, "0" * 64, "LDSC", "position", genome_build="GRCh37", store_checksum=store.checksum
        )
    return store, priors, scores


def _effects(genome: Genome, weight: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """(m, K), sqrt(N) times the effects of a block's variants."""
    m, K = len(weight), genome.traits
    most = min(4, K)
    traits = 1 + genome.shared * ((2 + most) / 2 - 1)  # of an acting variant, on average
    acts = np.zeros((m, K), bool)
    for j in np.flatnonzero(rng.random(m) < genome.polygenicity * K / traits * weight):
        number = int(rng.integers(2, most + 1)) if rng.random() < genome.shared else 1
        acts[j, rng.choice(K, size=number, replace=False)] = True
    return np.asarray(acts * rng.normal(size=(m, K)) * np.sqrt(genome.signal))


def run(genome: Genome, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Make the genome and classify it; the figures."""
    from deepwas.pleiotropy import PleiotropyOptions, classify

    with tempfile.TemporaryDirectory(prefix="deepwas-") as name:
        begun = time.perf_counter()
        store, priors, scores = make(genome, Path(name))
        say(f"made {genome.blocks} blocks in {time.perf_counter() - begun:.0f} s")
        before = peak_rss()
        parts: dict[str, float] = {}
        begun, cpu = time.perf_counter(), time.process_time()
        last = begun

        def progress(what: str, done: int, total: int) -> None:
            nonlocal last
            if what not in parts:
                say(what)
            now = time.perf_counter()
            parts[what], last = parts.get(what, 0.0) + now - last, now

        found = classify(
            priors,
            store,
            sumstats=scores,
            options=PleiotropyOptions(learn_blocks=genome.learn_blocks, seed=genome.seed),
            out=Path(name) / "out",
            progress=progress,
        )
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        parts["tables and pictures"] = time.perf_counter() - last
    totals = found.record["totals"]
    return {
        "genome": asdict(genome),
        "variants": genome.blocks * genome.m,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "parts": parts,
        "rounds": found.record["learned"]["rounds"],
        "loci": totals["loci"],
        "effects": totals["effects"],
        "not_converged": totals["not_converged"],
        "peak_rss_gb": 1e-9 * peak_rss(),
        "rss_gb_of_the_data": 1e-9 * before,
    }


def measure(preset: str | bool, progress: Progress, parts: Path | None = None) -> dict[str, Any]:
    """Every genome of the preset, in processes of their own; growth over those of most traits alike.

    parts: folder that keeps the figures of each as it is done, and from which they are read again.
    """
    chosen = preset if isinstance(preset, str) else "quick" if preset else "full"
    genomes = PRESETS[chosen]
    runs = []
    for i, genome in enumerate(genomes):
        progress("classifying genomes", i, len(genomes))
        digest = digest_of(asdict(genome), "pleiotropy_speed.py")
        kept = None if parts is None else parts / f"{chosen}-{genome.blocks}-{genome.traits}-{digest}.json"
        if kept is not None and kept.exists():
            runs.append(json.loads(kept.read_text()))
            continue
        runs.append(_apart(genome))
        if kept is not None:
            from deepwas.files import write_json

            kept.parent.mkdir(exist_ok=True)
            write_json(kept, runs[-1])
    progress("classifying genomes", len(genomes), len(genomes))
    alike = [x for x in runs if x["genome"]["traits"] == genomes[0].traits]
    blocks = [x["genome"]["blocks"] for x in alike]
    located = [x["parts"]["classifying LD blocks"] for x in alike]
    return {
        "preset": chosen,
        "runs": runs,
        "exponent": exponent(blocks, located),
        "seconds_a_block": located[-1] / blocks[-1],
    }


def _apart(genome: Genome) -> dict[str, Any]:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(genome).items()]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pleiotropy_speed", *flags], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"classifying {genome} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def tables(figures: dict[str, Any]) -> list[Table]:
    """Time and memory by genome, and the parts of the last run of most blocks."""
    from rich.table import Table

    table = Table(title=f"Classification by blocks; goals: {GOALS['seconds']}, {GOALS['peak_rss_gb']} GB")
    for heading in ("variants", "blocks", "traits", "seconds", "CPU seconds", "peak GB", "of these data", "loci"):
        table.add_column(heading)
    for one in figures["runs"]:
        genome = one["genome"]
        table.add_row(
            f"{one['variants']:,}",
            f"{genome['blocks']:,}",
            str(genome["traits"]),
            f"{one['seconds']:.3g}",
            f"{one['cpu_seconds']:.3g}",
            f"{one['peak_rss_gb']:.2f}",
            f"{one['rss_gb_of_the_data']:.2f}",
            f"{one['loci']:,}",
        )
    largest = max(figures["runs"], key=lambda x: x["variants"])
    parts = Table(
        title=f"Parts of {largest['variants']:,} variants; exponent of location in blocks {figures['exponent']:.2f}, "
        f"goal {GOALS['exponent']}; {1e3 * figures['seconds_a_block']:.0f} ms a block"
    )
    parts.add_column("part")
    parts.add_column("seconds")
    for what, seconds in largest["parts"].items():
        parts.add_row(what, f"{seconds:.1f}")
    parts.add_row("all", f"{largest['seconds']:.1f}")
    return [table, parts]


def draw(figures: dict[str, Any], path: Path) -> None:
    """Seconds by blocks, and the largest genome's time in its parts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    growth, parts = figure.subplots(1, 2)
    traits = figures["runs"][0]["genome"]["traits"]
    alike = [x for x in figures["runs"] if x["genome"]["traits"] == traits]
    blocks = np.array([x["genome"]["blocks"] for x in alike])
    located = np.array([x["parts"]["classifying LD blocks"] for x in alike])
    growth.plot(blocks, located, "o", color="#0072b2", label="measured")
    growth.plot(blocks, located[-1] * blocks / blocks[-1], "k--", lw=1, label="in proportion")
    growth.set_xscale("log")
    growth.set_yscale("log")
    growth.set_xticks(blocks, [f"{x:,}" for x in blocks])
    growth.minorticks_off()
    growth.set_xlabel("LD blocks")
    growth.set_ylabel("seconds to classify all blocks")
    growth.set_title(f"{traits} traits; exponent {figures['exponent']:.2f}", fontsize=10)
    growth.legend(frameon=False)
    largest = max(figures["runs"], key=lambda x: x["variants"])
    names = list(largest["parts"])
    bars = parts.barh(names[::-1], [largest["parts"][x] for x in names[::-1]], color="#0072b2")
    parts.bar_label(bars, fmt="%.3g s", padding=3)
    parts.margins(x=0.2)
    parts.set_xlabel("seconds")
    parts.set_title(f"{largest['variants']:,} variants: {largest['seconds']:.0f} s in all", fontsize=10)
    figure.savefig(path, format="png", dpi=110)


def main(arguments: list[str] | None = None) -> None:
    """`python -m benchmarks.pleiotropy_speed`: one genome's figures, as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pleiotropy_speed", description=__doc__)
    for name, value in asdict(FULL).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value))
    given = vars(parser.parse_args(arguments))
    try:
        genome = replace(FULL, **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        parser.error(str(error))
    print(json.dumps(run(genome, say=lambda text: print(text, file=sys.stderr, flush=True))))


if __name__ == "__main__":
    main()
