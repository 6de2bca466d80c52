"""A look at an LD store: text for the terminal, and a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from deepwas.errors import InputError
from deepwas.files import atomic_path, require_parent
from deepwas.ld.store import LDStore

PLOT_SUFFIXES = (".png", ".pdf", ".svg")
_SPECTRA = 100
_DARK, _LIGHT, _PALE, _ACCENT = "#1f4e79", "#9dc3e6", "#e4eef8", "#c55a11"


def plot_path(path: str | os.PathLike[str]) -> Path:
    """Check the name and the folder of a picture before any work."""
    target = require_parent(path)
    if target.suffix.lower() not in PLOT_SUFFIXES:
        raise InputError(f"{target}: a picture is written as one of {', '.join(PLOT_SUFFIXES)}; name it so.")
    return target


def summary(store: LDStore) -> list[str]:
    """Lines of text: panel, variants, blocks, what the truncation kept, LD scores, what was dropped."""
    attributes, table, variants = store.attributes, store.block_table, store.variants
    options, provenance = attributes["options"], attributes["provenance"]
    sizes, scored, kept = (table[name].to_numpy() for name in ("VARIANTS", "SCORED", "KEPT"))
    share = float(np.average(table["VARIANCE_KEPT"].to_numpy(), weights=scored))
    scores = np.quantile(variants["LDSCORE"].to_numpy(), (0.05, 0.5, 0.95))
    names = ", ".join(variants["CHR"].unique(maintain_order=True).to_list())
    total = int(kept.sum())
    mapped = variants.height - variants["CM"].null_count()
    factor_bytes = int((sizes * kept).sum()) * np.dtype(options["dtype"]).itemsize
    size_range, kept_range = _range(scored), _range(kept)
    flanks = f", with flanks {_range(sizes)}" if store.flanked else ""
    unscored = store.n_variants - int(scored.sum())
    inputs = ", ".join(i["name"] for i in provenance["inputs"]) or provenance.get("source") or "correlations as given"
    lines = [
        f"LD store        {store.path} ({store.path.stat().st_size / 1e6:,.1f} MB)",
        f"made            {attributes['created']} by deepwas {attributes['deepwas_version']}",
        f"panel           {inputs}; {store.n_samples:,} people",
        f"genome build    {store.genome_build}",
        f"variants        {store.n_variants:,} on chromosome {names}; {mapped:,} with a genetic position",
        f"blocks          {store.n_blocks:,} of {size_range} variants{flanks}",
        *_windows(options),
        f"kept            {total:,} eigenvalues ({kept_range} a block), {share:.1%} of the variance",
        f"rule            {_rule(options)}",
        f"factors         {options['dtype']}, {factor_bytes / 1e6:,.1f} MB",
        f"LD score        median {scores[1]:.1f}, 5% below {scores[0]:.1f}, 5% above {scores[2]:.1f}",
    ]
    if unscored:
        lines.append(f"not scored      {unscored:,} variants are in no block's scored part")
    if provenance.get("r2_total"):
        lost = provenance["r2_cut"] / provenance["r2_total"]
        lines.append(f"lost by cutting {lost:.2%} of the r2 between variants up to {options['max_block']:,} apart")
    for row in provenance["tally"]:
        if row["action"] != "kept":
            first = f" (first: {row['first']})" if row["first"] else ""
            lines.append(f"{row['action']:<15} {row['count']:,}: {row['reason']}{first}")
    lines.append(f"checksum        {store.checksum}")
    return lines


def plot(store: LDStore, path: str | os.PathLike[str]) -> None:
    """Write a picture: block sizes along the genome, eigenvalue spectra, and the variance kept."""
    target = plot_path(path)
    from matplotlib.figure import Figure

    table = store.block_table
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    along, spectra, shares = (
        figure.add_subplot(grid[0, :]),
        figure.add_subplot(grid[1, 0]),
        figure.add_subplot(grid[1, 1]),
    )
    edges = np.arange(store.n_blocks + 1) - 0.5
    if store.flanked:
        along.stairs(table["VARIANTS"].to_numpy(), edges, fill=True, color=_PALE, label="candidates, with flanks")
    label = "variants scored" if store.flanked else "variants"
    along.stairs(table["SCORED"].to_numpy(), edges, fill=True, color=_LIGHT, label=label)
    along.stairs(table["KEPT"].to_numpy(), edges, fill=True, color=_DARK, label="eigenvalues kept")
    along.set(ylabel="per block", title=f"{store.n_blocks:,} LD blocks along the genome", xlim=(edges[0], edges[-1]))
    along.legend(loc="upper right", ncols=3, framealpha=0.9)
    along.set_ylim(0, 1.2 * float(table["VARIANTS"].to_numpy().max()))
    _mark_genome(along, store)

    shown = np.unique(np.linspace(0, store.n_blocks - 1, min(store.n_blocks, _SPECTRA)).round().astype(int))
    for index in shown.tolist():
        values = store.eigenvalues(index)
        spectra.plot(np.arange(1, len(values) + 1), values, color=_DARK, linewidth=0.8, alpha=0.5)
    floors = table["FLOOR"].to_numpy()
    if floors.max() > 0:
        spectra.axhspan(
            max(floors.min(), 1e-6), floors.max(), color=_ACCENT, alpha=0.3, label="floor (range over blocks)"
        )
        spectra.axhline(floors.max(), color=_ACCENT, linewidth=0.8)
        spectra.axhline(max(floors.min(), 1e-6), color=_ACCENT, linewidth=0.8)
        spectra.legend(loc="upper right")
    note = "" if len(shown) == store.n_blocks else f" of {len(shown)} blocks"
    spectra.set(xscale="log", yscale="log", xlabel="rank", ylabel="eigenvalue", title="Eigenvalues kept" + note)

    kept = 100 * table["VARIANCE_KEPT"].to_numpy()
    shares.scatter(table["SCORED"].to_numpy(), kept, s=16, color=_DARK, alpha=0.7, linewidths=0)
    shares.set(xlabel=f"{label} in the block", ylabel="variance kept (%)", title="Variance kept")
    shares.set_ylim(min(90.0, float(kept.min()) - 5), 101)
    for axis in (along, spectra, shares):
        axis.spines[["top", "right"]].set_visible(False)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=150)


def _mark_genome(axis: object, store: LDStore) -> None:
    """Label the blocks by chromosome, or by position where there is one chromosome only."""
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)
    table = store.block_table
    names = table["CHR"].to_numpy()
    starts = np.flatnonzero(np.append(True, names[1:] != names[:-1]))
    if len(starts) == 1:
        ticks = np.unique(np.linspace(0, store.n_blocks - 1, min(store.n_blocks, 9)).round().astype(int))
        axis.set_xticks(ticks, [f"{p / 1e6:.1f}" for p in table["START"].to_numpy()[ticks]])
        axis.set_xlabel(
            f"LD blocks, equally spaced, by where they start on chromosome {names[0]} (Mb, {store.genome_build})"
        )
        return
    stops = np.append(starts[1:], store.n_blocks)
    for start in starts[1:]:
        axis.axvline(start - 0.5, color="0.6", linewidth=0.6)
    axis.set_xticks((starts + stops - 1) / 2, names[starts], fontsize=8)
    axis.set_xlabel(f"LD blocks, equally spaced, by chromosome ({store.genome_build})")


def _range(values: np.ndarray) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _windows(options: dict[str, Any]) -> list[str]:
    """The line on sliding windows, if that is what the blocks are."""
    if options.get("window") is None:
        return []
    reach = (options["window"] - options["step"]) // 2
    return [
        f"windows         {options['window']:,} base pairs, a step of {options['step']:,}: "
        + (f"flanks of {reach:,} on both sides" if reach else "no flanks")
    ]


def _rule(options: dict[str, object]) -> str:
    if "variance_kept" not in options:
        return "blocks as given"
    if options["variance_kept"] is not None:
        rule = f"the fewest eigenvalues that reach {options['variance_kept']:.6g} of their sum"
    elif options["eigenvalue_floor"] is not None:
        rule = f"eigenvalues above {options['eigenvalue_floor']:g}"
    elif options["shrinkage"]:
        rule = "every eigenvalue"
    else:
        rule = "eigenvalues above 2 x variants scored / people (the default)"
    return rule + (f"; R shrunk by {options['shrinkage']:g}" if options["shrinkage"] else "")
