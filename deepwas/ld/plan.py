"""Deciding which variants of a panel enter an LD store, and in which blocks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from deepwas.errors import DataWarning, InputError
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
_FEW_VARIANTS, _MANY_BLOCKS = 20, 10


@dataclass(frozen=True)
class BlockPlan:
    """Which variants, in which blocks.

    rows: their rows in the panel.  variants: the columns of the store, LDSCORE still NaN.
    ranges: (n_blocks, 4), start and stop of each block's candidates, then of the variants it scores, in `variants`.
    r2_total, r2_cut: as in `deepwas.partition.Partition`, summed over chromosomes; None for given intervals.
    """

    rows: npt.NDArray[np.int64]
    variants: pl.DataFrame
    ranges: npt.NDArray[np.int64]
    r2_total: float | None
    r2_cut: float | None


def plan_blocks(panel: PlinkPanel, options: LDOptions, tally: Tally, progress: Advance | None = None) -> BlockPlan:
    """Filter a panel's variants and cut each chromosome into blocks; every drop is counted in `tally`.

    Warns with `DataWarning` of blocks of hardly any variants, and of one that is hardly a block.
    progress(done, total): in variants; where the panel is cut, total is twice their number, and this the first half.
    """
    keep, frequency = _filter(panel, options, tally)
    rows = np.flatnonzero(keep)
    chosen = panel.variants[rows].with_columns(FREQ=frequency[rows])
    r2_total = r2_cut = None
    if options.blocks is not None:
        inside, boundaries = partition_by_intervals(chosen, options.blocks, tally)
        rows, chosen = rows[inside], chosen.filter(pl.Series(inside))
        ranges = _ranges(boundaries)
    elif options.window is not None and options.step is not None:
        ranges = sliding_windows(chosen, options.window, options.step)
    else:
        boundaries, r2_total, r2_cut = _cut(panel, rows, chosen, options, progress)
        ranges = _ranges(boundaries)
    scored = ranges[:, 3] - ranges[:, 2]
    _note_large(ranges, panel.n_samples, options, chosen, tally)
    _warn_of_sizes(panel, options, chosen, ranges)
    tally.add("cut into blocks", "kept", f"in {len(ranges):,} LD blocks", len(rows))
    block = np.repeat(np.arange(len(ranges)), scored)
    variants = chosen.with_columns(LDSCORE=pl.lit(np.nan), BLOCK=block).select(*layout.COLUMNS)
    return BlockPlan(rows, variants, ranges, r2_total, r2_cut)


def sliding_windows(variants: pl.DataFrame, window: int, step: int) -> npt.NDArray[np.int64]:
    """Blocks with flanks: ranges (n_blocks, 4) as in `BlockPlan`.

    variants: CHR and BP in genome order.  Division i of a chromosome holds the positions i step + 1 to (i + 1) step,
    whatever the panel; each that has a variant becomes a block, with candidates (window - step) / 2 base pairs
    further on both sides. Every variant is scored once.
    """
    names, position = variants["CHR"].to_numpy(), variants["BP"].to_numpy()
    reach = (window - step) // 2
    edges = np.append(np.flatnonzero(np.append(True, names[1:] != names[:-1])), len(names))
    out = []
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        here = position[low:high]
        division, first = np.unique((here - 1) // step, return_index=True)
        stops = np.append(first[1:], len(here))
        start = np.searchsorted(here, division * step + 1 - reach, side="left")
        stop = np.searchsorted(here, (division + 1) * step + reach, side="right")
        out.append(low + np.stack([start, stop, first, stops], axis=1))
    return np.concatenate(out).astype(np.int64)


def _ranges(boundaries: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Blocks without flanks, block b from boundaries[b] to boundaries[b + 1]."""
    start, stop = boundaries[:-1], boundaries[1:]
    return np.stack([start, stop, start, stop], axis=1)


def _note_large(
    ranges: npt.NDArray[np.int64], n_samples: int, options: LDOptions, chosen: pl.DataFrame, tally: Tally
) -> None:
    """Say how much memory a block of very many variants takes: matrices (s, s) and (s, m), or (n, n) and (n, m)."""
    candidates, scored = ranges[:, 1] - ranges[:, 0], ranges[:, 3] - ranges[:, 2]
    large = np.flatnonzero(candidates > LARGE_BLOCK)
    if not large.size:
        return
    rank = scored if options.shrinkage > 0 else np.minimum(scored, n_samples)
    memory = 8 * rank * (2 * rank + 2 * candidates) / 1e9
    tally.add(
        "cut into blocks",
        "noted",
        f"variants scored in blocks of more than {LARGE_BLOCK:,} candidates (the largest takes about "
        f"{memory.max():.0f} GB of memory)",
        int(scored[large].sum()),
        str(chosen["SNP"][int(ranges[large[0], 2])]),
    )


def _warn_of_sizes(panel: PlinkPanel, options: LDOptions, chosen: pl.DataFrame, ranges: npt.NDArray[np.int64]) -> None:
    """Say it before hours of work if blocks are so small that they hold no LD, or one so large that it is no block."""
    candidates, scored = ranges[:, 1] - ranges[:, 0], ranges[:, 3] - ranges[:, 2]
    if options.window is not None and options.step is not None:
        how, remedy = (
            f"windows of {options.window:,} base pairs every {options.step:,}",
            "Both are in base pairs: --window 3e6 --step 1e6 is usual",
        )
    elif options.blocks is not None:
        how, remedy = f"the blocks of {options.blocks}", "Give a BED file with a row for each 1 to 3 million base pairs"
    else:
        how = f"blocks of {options.min_block:,} to {options.max_block:,} variants"
        remedy = "--min-block 200 --max-block 800 is the default"
    typical = float(np.median(scored))
    if len(ranges) >= _MANY_BLOCKS and typical < _FEW_VARIANTS:
        lost = "between blocks"
        if options.window is not None and options.step is not None:
            lost = f"beyond {(options.window - options.step) // 2:,} base pairs"
        warnings.warn(
            f"{panel.prefix}: {how}: {len(ranges):,} LD blocks score {typical:g} variant(s) each (median), among "
            f"{float(np.median(candidates)):g} candidates. LD {lost} is lost, and all blocks together hold "
            f"{candidates.sum() / scored.sum():.1f} times the variants. {remedy}.",
            DataWarning,
            stacklevel=3,
        )
    largest = int(scored.argmax())
    s = int(scored[largest])
    if s > LARGE_BLOCK:
        first = chosen.row(int(ranges[largest, 2]), named=True)
        kept = ""
        if options.eigenvalue_floor is None and options.variance_kept is None and not options.shrinkage:
            kept = f", and of {s:,} eigenvalues only those above {options.floor(s, panel.n_samples):.3g} are kept"
        warnings.warn(
            f"{panel.prefix}: {how}: LD block {largest} (chromosome {first['CHR']}, from {first['SNP']} on) scores "
            f"{s:,} of the {int(scored.sum()):,} variants. Its time grows with the cube of that, its memory with the "
            f"square{kept}. {remedy}.",
            DataWarning,
            stacklevel=3,
        )


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
                progress(low + done, 2 * len(rows))

        part = partition_by_ld(
            read, high - low, n, min_size=options.min_block, max_size=options.max_block, advance=advance
        )
        pieces.append(low + part.boundaries[1:])
        total, cut = total + part.r2_total, cut + part.r2_cut
    return np.concatenate(pieces), total, cut
