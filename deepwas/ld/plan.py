"""Deciding which variants of a panel enter an LD store, and in which blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from deepwas.errors import InputError
from deepwas.genotypes import PlinkPanel, standardise
from deepwas.ld import layout
from deepwas.ld.options import LDOptions
from deepwas.partition import partition_by_intervals, partition_by_ld
from deepwas.tally import Tally

Advance = Callable[[int, int], None]
AUTOSOMES = [str(c) for c in range(1, 23)]
# r2 summed over thousands of pairs is well enough known from this many people; more would only be slower.
PARTITION_SAMPLES = 2000
LARGE_BLOCK = 10_000


@dataclass(frozen=True)
class BlockPlan:
    """Which variants, in which blocks.

    rows: their rows in the panel.  variants: the columns of the store, LDSCORE still NaN.
    boundaries: block b holds the variants boundaries[b] to boundaries[b + 1] - 1.
    r2_total, r2_cut: as in `deepwas.partition.Partition`, summed over chromosomes; None for given intervals.
    """

    rows: npt.NDArray[np.int64]
    variants: pl.DataFrame
    boundaries: npt.NDArray[np.int64]
    r2_total: float | None
    r2_cut: float | None


def plan_blocks(panel: PlinkPanel, options: LDOptions, tally: Tally, progress: Advance | None = None) -> BlockPlan:
    """Filter a panel's variants and cut each chromosome into blocks; every drop is counted in `tally`."""
    keep, frequency = _filter(panel, options, tally)
    rows = np.flatnonzero(keep)
    chosen = panel.variants[rows].with_columns(FREQ=frequency[rows])
    r2_total = r2_cut = None
    if options.blocks is not None:
        inside, boundaries = partition_by_intervals(chosen, options.blocks, tally)
        rows, chosen = rows[inside], chosen.filter(pl.Series(inside))
        sizes = np.diff(boundaries)
        large = np.flatnonzero(sizes > LARGE_BLOCK)
        if large.size:
            worst = int(sizes.max())
            tally.add(
                "cut into blocks",
                "noted",
                f"variants in blocks of more than {LARGE_BLOCK:,} (the largest, {worst:,}, takes about "
                f"{4 * 8 * worst**2 / 1e9:.0f} GB of memory)",
                int(sizes[large].sum()),
                str(chosen["SNP"][int(boundaries[large[0]])]),
            )
    else:
        boundaries, r2_total, r2_cut = _cut(panel, rows, chosen, options, progress)
    tally.add("cut into blocks", "kept", f"in {len(boundaries) - 1:,} LD blocks", len(rows))
    block = np.repeat(np.arange(len(boundaries) - 1), np.diff(boundaries))
    variants = chosen.with_columns(LDSCORE=pl.lit(np.nan), BLOCK=block).select(*layout.COLUMNS)
    return BlockPlan(rows, variants, boundaries, r2_total, r2_cut)


def _filter(
    panel: PlinkPanel, options: LDOptions, tally: Tally
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    step = "filter variants"
    counts = panel.count_genotypes()
    called = counts[:, :3].sum(axis=1)
    with np.errstate(invalid="ignore"):
        frequency = (counts[:, 1] + 2 * counts[:, 2]) / (2 * called)
    missing = counts[:, 3] / panel.n_samples
    rare = np.minimum(frequency, 1 - frequency) < options.min_maf
    reasons = {
        "not on an autosome (1 to 22)": ~panel.variants["CHR"].is_in(AUTOSOMES).to_numpy(),
        "no genotype at all": called == 0,
        f"genotype missing in more than {options.max_missing:g} of the people": missing > options.max_missing,
        "does not vary in the panel": counts[:, :3].max(axis=1) == called,
        f"minor allele frequency below {options.min_maf:g}": rare,
    }
    keep = np.ones(panel.n_variants, dtype=bool)
    for reason, fault in reasons.items():
        dropped = np.flatnonzero(keep & fault)
        if dropped.size:
            tally.add(step, "dropped", reason, int(dropped.size), str(panel.variants["SNP"][int(dropped[0])]))
        keep &= ~fault
    if not keep.any():
        said = "; ".join(line for line in tally.lines() if "dropped" in line)
        raise InputError(
            f"{panel.prefix}: none of the {panel.n_variants:,} variants is left ({said}). "
            "Check the panel, or relax min_maf and max_missing."
        )
    filled = np.flatnonzero(keep & (counts[:, 3] > 0))
    if filled.size:
        name = str(panel.variants["SNP"][int(filled[0])])
        tally.add(step, "changed", "missing genotypes set to the mean", int(filled.size), name)
    tally.add(step, "kept", "pass the filters", int(keep.sum()))
    return keep, frequency


def _cut(
    panel: PlinkPanel,
    rows: npt.NDArray[np.int64],
    chosen: pl.DataFrame,
    options: LDOptions,
    progress: Advance | None,
) -> tuple[npt.NDArray[np.int64], float, float]:
    samples = None
    if panel.n_samples > PARTITION_SAMPLES:
        samples = np.linspace(0, panel.n_samples - 1, PARTITION_SAMPLES).round().astype(np.int64)
    n = panel.n_samples if samples is None else len(samples)
    starts = np.flatnonzero(chosen["CHR"].to_numpy() != np.roll(chosen["CHR"].to_numpy(), 1))
    edges = np.append(np.unique(np.append(starts, 0)), len(rows))
    pieces, total, cut = [np.zeros(1, dtype=np.int64)], 0.0, 0.0
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):

        def read(start: int, stop: int, low: int = low) -> npt.NDArray[np.floating]:
            return standardise(panel.read(rows[low + start : low + stop], samples=samples)).genotypes

        def advance(done: int, _: int, low: int = low) -> None:
            if progress is not None:
                progress((low + done) // 2, len(rows))  # the first of two passes

        part = partition_by_ld(
            read, high - low, n, min_size=options.min_block, max_size=options.max_block, advance=advance
        )
        pieces.append(low + part.boundaries[1:])
        total, cut = total + part.r2_total, cut + part.r2_cut
    return np.concatenate(pieces), total, cut
