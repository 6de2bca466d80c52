"""A picture of fine-mapping: inclusion probabilities along the genome, and credible sets with the largest z-scores."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from deepwas.files import atomic_path
from deepwas.genome import chromosome_rank

if TYPE_CHECKING:
    from deepwas.posterior.finemap import FineMap, Locus

__all__ = ["plot_finemap"]

_INK, _SET, _FLAGGED, _PRIOR = "#3b4252", "#c8442b", "#b7a57a", "#2b6cb0"
_LEAST = 0.01  # PIP drawn
_LEAST_PRIOR = 1e-6


def plot_finemap(found: FineMap, path: str | os.PathLike[str]) -> None:
    """PIP along the genome, flagged blocks apart; below, for each locus, |z| coloured by LD to the set's lead, the PIP
    with the set's members ringed, and the prior probability of an effect."""
    from matplotlib.figure import Figure

    columns = min(3, max(1, len(found.loci)))
    lines = -(-len(found.loci) // columns)
    figure = Figure(figsize=(12, 3 + 3.6 * lines), layout="constrained")
    parts = figure.subfigures(1 + lines, 1, height_ratios=[3, *[3.6] * lines], squeeze=False)[:, 0]
    _genome(parts[0], found)
    colours: Any = None
    for line in range(lines):
        here = found.loci[line * columns : (line + 1) * columns]
        axes = parts[1 + line].subplots(2, columns, squeeze=False, height_ratios=[1, 1])
        for j, locus in enumerate(here):
            colours = _locus(axes[0, j], axes[1, j], found, locus, first=j == 0)
        for j in range(len(here), columns):
            axes[0, j].set_axis_off()
            axes[1, j].set_axis_off()
        parts[1 + line].colorbar(colours, ax=axes, label="r² to lead", shrink=0.7, pad=0.01)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _genome(part: Any, found: FineMap) -> None:
    table, axis = found.variants, part.subplots()
    names = sorted(table["CHR"].unique().to_list(), key=chromosome_rank)
    extent = dict(
        table.group_by("CHR").agg(pl.struct(pl.col("BP").min().alias("a"), pl.col("BP").max().alias("b"))).rows()
    )
    gap = 0.01 * sum(x["b"] - x["a"] + 1 for x in extent.values())
    starts, at = {}, float(extent[names[0]]["a"])  # so that one chromosome alone is drawn by its positions
    for name in names:
        starts[name] = at - extent[name]["a"]
        at += extent[name]["b"] - extent[name]["a"] + 1 + gap
    seen = table.filter(pl.col("PIP") >= _LEAST)
    x = seen["BP"].to_numpy() + np.array([starts[name] for name in seen["CHR"]])
    pip, flagged = seen["PIP"].to_numpy(), seen["FLAG"].is_not_null().to_numpy()
    within = seen["CREDIBLE_SET"].to_numpy() > 0
    for rows, colour, edge, label, size in (
        (flagged & ~within, _FLAGGED, "none", "LD block flagged for mismatch", 9),
        (~flagged & ~within, _INK, "none", "in no credible set", 5),
        (flagged & within, _FLAGGED, _SET, "in a credible set, LD block flagged", 14),
        (~flagged & within, _SET, "none", "in a credible set", 9),
    ):
        if rows.any():
            style: dict[str, Any] = {"s": size, "facecolor": colour, "edgecolor": edge, "linewidths": 0.8}
            axis.scatter(x[rows], pip[rows], label=label, **style)
    axis.set_ylim(0, 1.03)
    axis.set_ylabel(f"inclusion probability\n(from {_LEAST:g})")
    if len(seen):
        axis.legend(frameon=False, fontsize=8, ncols=4, loc="lower right", bbox_to_anchor=(1, 1))
    if len(names) == 1:
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:.4g}")
        axis.set_xlabel(f"chromosome {names[0]}, Mb")
    else:
        middle = [starts[name] + (extent[name]["a"] + extent[name]["b"]) / 2 for name in names]
        axis.set_xticks(middle, names, fontsize=7)
        axis.tick_params(axis="x", length=0)
        axis.set_xlabel("chromosome")
    count, total = found.record["variants"], found.record
    part.suptitle(
        f"{total['sets']:,} credible sets, {count['0.5']:,} variants of PIP > 0.5, {count['0.95']:,} > 0.95; "
        f"effects: {total['effects']:.3g} ± {total['effects_sd']:.2g}",
        x=0.01,
        ha="left",
        fontsize=10,
    )


def _locus(top: Any, bottom: Any, found: FineMap, locus: Locus, first: bool) -> Any:
    """Draws one locus; returns what its colours stand for."""
    row = found.sets.row(locus.number - 1, named=True)
    table = found.variants.filter(pl.col("BLOCK") == row["BLOCK"])
    x, r2 = table["BP"].to_numpy() / 1e6, locus.r**2
    z = np.abs(table["Z"].cast(pl.Float64).fill_null(np.nan).to_numpy())
    order = np.argsort(r2, kind="stable")
    lead = table["SNP"].to_numpy() == row["LEAD"]
    drawn = top.scatter(x[order], z[order], s=10, c=r2[order], cmap="turbo", vmin=0, vmax=1, linewidths=0)
    top.scatter(x[lead], z[lead], s=55, marker="D", facecolor="none", edgecolor=_INK, lw=1.1)
    pip = table["PIP"].to_numpy()
    bottom.scatter(x[order], pip[order], s=10, c=r2[order], cmap="turbo", vmin=0, vmax=1, linewidths=0)
    members = found.members.filter(pl.col("SET") == locus.number)["SNP"].implode()
    inside = table["SNP"].is_in(members).to_numpy()
    bottom.scatter(x[inside], pip[inside], s=45, facecolor="none", edgecolor=_SET, lw=1.0)
    bottom.set_ylim(-0.03, 1.08)
    prior = bottom.twinx()
    prior.semilogy(x, np.maximum(table["PRIOR_PIP"].to_numpy(), _LEAST_PRIOR), color=_PRIOR, lw=0.7, alpha=0.7)
    prior.set_ylim(_LEAST_PRIOR, 1.2)
    prior.tick_params(labelsize=6, colors=_PRIOR)
    others = found.sets.filter(pl.col("BLOCK") == row["BLOCK"]).height - 1
    said = f"{row['LEAD']}: {row['SIZE']} variant(s), purity {row['PURITY']:.2f}"
    more = [f"{others} more set(s) here"] if others else []
    more += [] if row["FLAG"] is None else ["LD flagged"]
    said += "\n" + "; ".join(more)  # beside other panels two lines have room that one has not
    top.set_title(said, fontsize=8, loc="left", color=_INK)
    for axis in (top, bottom):
        axis.tick_params(labelsize=7)
    top.tick_params(labelbottom=False)
    top.sharex(bottom)
    bottom.set_xlabel(f"chromosome {row['CHR']}, Mb", fontsize=8)
    if first:
        top.set_ylabel("|z|", fontsize=8)
        bottom.set_ylabel("PIP (line: prior)", fontsize=8)
    return drawn
