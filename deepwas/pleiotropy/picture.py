"""Pictures of a classification: loci along the genome by number of traits and class, and what pairs of traits share."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from deepwas.files import atomic_path
from deepwas.genome import chromosome_rank
from deepwas.pleiotropy.tables import called_loci, flagged_beyond_panel

if TYPE_CHECKING:
    from deepwas.pleiotropy.run import Pleiotropy

__all__ = ["plot_map", "plot_sharing"]

_INK = "#3b4252"
_COLOURS = {
    "pleiotropic": "#c8442b",
    "vertical": "#2b6cb0",
    "ld_only": "#b7a57a",
    "single": "#8a93a3",
    "confounder": "#6b7a3a",
}
_SAID = {
    "pleiotropic": "two traits or more",
    "vertical": "one, which acts on others",
    "ld_only": "one; in LD with another's",
    "single": "one alone",
    "confounder": "a heritable factor",
}
_LEAST = 0.01


def plot_map(found: Pleiotropy, path: str | os.PathLike[str]) -> None:
    """Loci along each chromosome, as high as their expected number of traits, coloured by class; below,
    P_PLEIOTROPY of each variant.

    Hollow where one effect cannot be told from two, crossed where a trait's LD is flagged for more than a small panel,
    ringed where called at an FDR of 5%.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    table, loci = found.variants, found.loci
    names = [trait["name"] for trait in found.record["traits"]]
    starts, spans = _places(table)
    figure = Figure(figsize=(12, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    x = loci["LEAD_BP"].to_numpy() + np.array([starts[c] for c in loci["CHR"]], np.float64)
    height = np.sum([loci[f"P_{name}"].to_numpy() for name in names], axis=0)
    hollow = loci["UNRESOLVABLE"].to_numpy()
    for kind, colour in _COLOURS.items():
        here = (loci["CLASS"] == kind).to_numpy()
        if here.any():
            top.vlines(x[here], 0, height[here], color=colour, lw=0.5, alpha=0.6)
            face = np.where(hollow[here], "white", colour)
            top.scatter(x[here], height[here], s=26, c=face.tolist(), edgecolors=colour, lw=1.0, zorder=3)
            top.scatter([], [], s=26, color=colour, label=f"{_SAID[kind]} ({here.sum():,})")
    total = found.record["totals"]
    if hollow.any():
        top.scatter([], [], s=26, c="white", edgecolors=_INK, lw=1.0, label=f"hollow: unresolvable ({hollow.sum():,})")
    called = called_loci(loci).to_numpy()
    if called.any():
        said = f"called at FDR 5% ({called.sum():,})"
        top.scatter(x[called], height[called], s=80, facecolors="none", edgecolors=_INK, lw=0.9, label=said, zorder=2)
    flagged = flagged_beyond_panel(loci).to_numpy()
    if flagged.any():
        said = f"LD block flagged ({flagged.sum():,})"
        top.scatter(x[flagged], height[flagged], s=16, marker="x", color=_INK, lw=0.8, label=said, zorder=4)
    top.set_ylim(0, max(2.2, float(height.max(initial=0)) * 1.08))
    top.yaxis.set_major_locator(MaxNLocator(integer=True))
    top.set_ylabel("expected number of\ndirect traits of a locus")
    if loci.height:
        top.legend(frameon=False, fontsize=8, ncols=7, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    seen = table.filter(pl.col("P_PLEIOTROPY") >= _LEAST)
    x = seen["BP"].to_numpy() + np.array([starts[c] for c in seen["CHR"]], np.float64)
    bottom.scatter(x, seen["P_PLEIOTROPY"].to_numpy(), s=9, color=_COLOURS["pleiotropic"], linewidths=0)
    bottom.set_ylim(0, 1.04)
    bottom.set_ylabel(f"P(two traits or more)\nof variants (from {_LEAST:g})")
    _chromosomes((top, bottom), spans)
    figure.suptitle(
        f"Pleiotropy of {', '.join(names)}: {total['pleiotropic']:.3g} variants of two traits or more expected; of "
        f"{total['loci']:,} loci {total['loci_called_at_fdr_5']:,} are called at FDR 5%, "
        f"{total['loci_called_unresolvable']:,} of these unresolvable",
        x=0.01,
        ha="left",
        fontsize=11,
    )
    _save(figure, path)


def _places(table: pl.DataFrame) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Offset to add to positions of each chromosome, and its ends on the axis."""
    names = sorted(table["CHR"].unique().to_list(), key=chromosome_rank)
    low = {name: float(np.min(table.filter(CHR=name)["BP"].to_numpy())) for name in names}
    length = {name: float(np.max(table.filter(CHR=name)["BP"].to_numpy())) - low[name] + 1 for name in names}
    gap = 0.01 * sum(length.values())
    starts, spans, at = {}, {}, low[names[0]]  # so that one chromosome alone is drawn by its positions
    for name in names:
        starts[name], spans[name] = at - low[name], (at, at + length[name])
        at += length[name] + gap
    return starts, spans


def _chromosomes(axes: tuple[Any, Any], spans: dict[str, tuple[float, float]]) -> None:
    top, bottom = axes
    names, ends = list(spans), list(spans.values())
    margin = 0.01 * (ends[-1][1] - ends[0][0])
    bottom.set_xlim(ends[0][0] - margin, ends[-1][1] + margin)
    if len(names) == 1:
        bottom.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:.4g}")
        bottom.set_xlabel(f"chromosome {names[0]}, Mb")
        return
    for (_, right), (left, _) in pairwise(ends):
        for axis in (top, bottom):
            axis.axvline((right + left) / 2, color=_INK, lw=0.4, ls=":")
    bottom.set_xticks([(left + right) / 2 for left, right in ends], names, fontsize=7)
    top.tick_params(axis="x", length=0)
    bottom.tick_params(axis="x", length=0)
    bottom.set_xlabel("chromosome")


def plot_sharing(found: Pleiotropy, path: str | os.PathLike[str]) -> None:
    """Share of variants acting on either of two traits that act on both, and how many times chance; on the right the
    effects of trait on trait that were used, if there are any."""
    from matplotlib.figure import Figure

    names = [trait["name"] for trait in found.record["traits"]]
    K, place = len(names), {name: k for k, name in enumerate(names)}
    share, text = np.full((K, K), np.nan), {}
    for row in found.pairs.iter_rows(named=True):
        j, k = place[row["TRAIT_1"]], place[row["TRAIT_2"]]
        if j == k:
            text[j, k] = f"{row['BOTH']:.3g}\nvariants"
            continue
        share[j, k] = share[k, j] = row["SHARE"]
        error = "" if row["SHARE_SE"] is None else f"\n± {row['SHARE_SE']:.1%}"
        text[j, k] = text[k, j] = f"{row['SHARE']:.1%}{error}\n{row['BOTH']:.2g} (chance {row['CHANCE']:.1g})"
    T = np.full((K, K), np.nan)
    said = {}
    for row in found.trait_effects.iter_rows(named=True):
        if row["T"]:
            here = place[row["CAUSE"]], place[row["EFFECT"]]
            T[here] = row["T"]
            said[here] = f"{row['T']:.2g}\n± {row['SE']:.1g}"
        elif row["UNRESOLVED"]:
            said[place[row["CAUSE"]], place[row["EFFECT"]]] = "unre-\nsolved"
    size = 1.2 + 1.15 * K
    figure = Figure(figsize=(size * (2 if said else 1), 0.4 + size), layout="constrained")
    axes = figure.subplots(1, 2 if said else 1, squeeze=False)[0]
    # Colours mean the same in every picture: a share of one in twenty is pale, whatever the others are.
    _matrix(axes[0], share, text, names, "Reds", (0.0, 1.0), "share of variants of either trait that act on both")
    if said:
        bound = max(float(np.nanmax(np.abs(T), initial=0.0)), 1.0)
        _matrix(axes[1], T, said, names, "RdBu_r", (-bound, bound), "effects of trait on trait, T")
        axes[1].set_ylabel("cause")
        axes[1].set_xlabel("effect")
    _save(figure, path)


def _matrix(
    axis: Any,
    values: Any,
    text: dict[tuple[int, int], str],
    names: list[str],
    colours: str,
    limits: tuple[float, float],
    title: str,
) -> None:
    import matplotlib

    cmap = matplotlib.colormaps[colours].with_extremes(bad="#eceff4")
    axis.imshow(np.ma.masked_invalid(values), cmap=cmap, vmin=limits[0], vmax=limits[1])
    for (j, k), said in text.items():
        here = values[j, k]
        dark = np.isfinite(here) and max(abs(here) / limits[1], 0) > 0.6
        axis.text(k, j, said, ha="center", va="center", fontsize=7, color="white" if dark else _INK)
    axis.set_xticks(range(len(names)), names, fontsize=8, rotation=30, ha="right")
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_title(title, fontsize=9, loc="left")


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)
