"""Priors of effects on expression: one `deepwas.fit` over the windows of all genes, as if each were an LD block."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.geuvadis_data import Data, Half

if TYPE_CHECKING:
    from benchmarks.geuvadis import Problem

__all__ = ["Priors", "learn_priors"]

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]

_LEAST = 20  # variants of a window
_UPSTREAM = 2_000


@dataclass(frozen=True, eq=False)
class Priors:
    """By gene its variants, ascending, and their f; learned and flat.  held_out: gain.  heritability: mean sum of f."""

    learned: dict[int, tuple[Numbers, Array]]
    flat: dict[int, tuple[Numbers, Array]]
    held_out: dict[str, Any]
    heritability: float


def learn_priors(problem: Problem, data: Data, half: Half, say: Callable[[str, int, int], None]) -> Priors:
    """f of each gene and variant of its window, by distance and direction to the transcription start, open chromatin
    and frequency; by networks that did not see the gene, with problem.folds of them."""
    import polars as pl

    from deepwas import FitOptions, fit
    from deepwas.annotations import Annotations
    from deepwas.ld import LDBlock
    from deepwas.ld.write import write_ld
    from deepwas.sumstats import HarmonisedSumstats

    start, position = data.genes["TSS"].to_numpy(), data.variants["BP"].to_numpy()
    usable = half.X.any(axis=0)
    windows = {}
    for gene, place in enumerate(start):
        windows[gene] = np.flatnonzero((np.abs(position - place) <= problem.window) & usable)
    used = [gene for gene, variants in windows.items() if len(variants) >= _LEAST]
    starts = np.cumsum([0, *(len(windows[gene]) for gene in used)])
    M = int(starts[-1])
    # A variant is in the windows of several genes: places are counted, not those of the chromosome.
    keys = pl.DataFrame(
        {
            "CHR": ["22"] * M,
            "SNP": [f"w{j}" for j in range(M)],
            "BP": np.arange(1, M + 1),
            "A1": ["A"] * M,
            "A2": ["C"] * M,
        }
    )
    z = np.concatenate([half.correlation(windows[gene], [gene])[:, 0] for gene in used]) * np.sqrt(half.directions)

    def blocks() -> Any:
        for number, gene in enumerate(used):
            say("windows of genes", number + 1, len(used))
            yield int(starts[number]), LDBlock.from_genotypes(half.X[:, windows[gene]])

    names, values = _annotations(data, windows, used)
    with tempfile.TemporaryDirectory(prefix="deepwas-geuvadis-") as folder:
        frame = keys.with_columns(pl.lit(0.3).alias("FREQ"))
        path = Path(folder) / "ld.h5"
        with write_ld(path, frame, blocks(), build="GRCh37", n_samples=half.directions) as store:
            gwas = HarmonisedSumstats(
                frame=keys.with_row_index("VARIANT").with_columns(
                    Z=pl.Series(z), N=pl.lit(float(half.directions)), FRQ=pl.lit(None, dtype=pl.Float64)
                ),
                n_store=M,
                source="expression",
                source_sha256="0" * 64,
                source_format="residuals",
                match="position",
                genome_build=store.genome_build,
                store_checksum=store.checksum,
            )
            variants = store.variants.select("SNP", "CHR", "BP", "A1", "A2")
            annotations = Annotations(names, values, variants, dict.fromkeys(names, "of gene and variant"))
            options = FitOptions(
                network=problem.network,  # type: ignore[arg-type]
                hidden=(16,),
                steps=problem.steps,
                cross_fit=problem.folds > 0,
                folds=problem.folds or 5,
                seed=problem.seed,
            )
            run = fit(store, gwas, annotations, options=options, progress=say)
            f = run.priors(which="all")["SNPVAR"].to_numpy()
    held = run.record["held_out"]["cross_fitted" if run.cross_fitted else "plain"]
    level = float(run.record["heritability"]["constant"]["effect_variance"])
    ends = zip(used, starts[:-1], starts[1:], strict=True)
    learned = {gene: (windows[gene], f[a:b]) for gene, a, b in ends}
    nothing = {gene: (variants, np.zeros(len(variants))) for gene, variants in windows.items() if gene not in learned}
    flat = {gene: (variants, np.full(len(variants), level)) for gene, (variants, _) in learned.items()}
    gain = {key: held[key] for key in ("gain", "standard_error")}
    return Priors(learned | nothing, flat | nothing, gain, float(f.sum() / len(used)))


def _annotations(
    data: Data, windows: dict[int, Numbers], used: list[int]
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """Of each gene's variants, one gene after another, as float32 (M, p)."""
    from deepwas.annotations.intervals import distance, log_distance, merge_intervals
    from deepwas.genome import read_intervals

    position, start = data.variants["BP"].to_numpy(), data.genes["TSS"].to_numpy()
    forward = (data.genes["STRAND"] == "+").to_numpy()
    off = [(position[windows[g]] - start[g]) * (1 if forward[g] else -1) for g in used]
    d = np.concatenate(off)
    columns = {
        "log_distance": log_distance(np.abs(d)),
        "upstream": (d < 0).astype(float),
        "promoter": ((d > -_UPSTREAM) & (d < _UPSTREAM)).astype(float),
    }
    if data.open_chromatin is not None:
        peaks = read_intervals(data.open_chromatin)
        merged = merge_intervals(peaks["START"].to_numpy(), peaks["END"].to_numpy())
        near = log_distance(distance(position, *merged))
        columns["open_chromatin"] = np.concatenate([near[windows[g]] for g in used])
    return tuple(columns), np.column_stack(list(columns.values())).astype(np.float32)
