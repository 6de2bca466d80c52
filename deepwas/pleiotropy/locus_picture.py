"""The picture of a locus: association of each trait, inclusion probabilities, credible sets, priors, genes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.files import atomic_path
from deepwas.pleiotropy.locus import LocusView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["locus_figure", "plot_locus"]

Floats = NDArray[np.float64]

_INK, _APART, _GENE, _OTHER = "#3b4252", "#c3c8d1", "#2f5d62", "#9aa5a8"
_COLOURS = ("#c8442b", "#2b6cb0", "#6b7a3a", "#8e5ea2", "#c98a1b", "#2a9d8f", "#7f4f24", "#5c677d")
_MARKS = "osD^vPXh"
_WIDTH = 10.0  # inches
_INSIDE = 8.2  # of them, about, are a panel's
_GENOME_WIDE = 5e-8
_LEAST = 0.005  # inclusion probability drawn
_SMALL = 7  # points, of words in panels
_LETTERS = 120  # of a line of the title
_LINES = 8  # of genes or sets, at most
_LEGEND = 6.0  # inches, beside the words
_LARGER = 150.0  # points squared, the first trait's marks over the last's


def plot_locus(view: LocusView, path: str | os.PathLike[str]) -> None:
    """Write `locus_figure` as PNG, or as PDF or SVG by the name's ending."""
    figure = locus_figure(view)
    kind = Path(path).suffix.lower().removeprefix(".")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=kind if kind in ("pdf", "svg") else "png", dpi=140)


def locus_figure(view: LocusView) -> Figure:
    """Panels above one axis of positions: -log10 p of each trait, coloured by LD to the lead; inclusion probabilities
    of all traits; credible sets; prior variances; and genes, where a file of them was given."""
    from matplotlib.figure import Figure

    low, high = _span(view)
    sets = _packed(view.sets, "SAID", low, high)
    genes: list[_Placed] = []
    if view.genes is not None:
        length = (view.genes["STOP"] - view.genes["START"]).to_numpy()
        genes = _packed(view.genes, "NAME", low, high, np.lexsort((-length, ~view.genes["CODING"].to_numpy())))
    heights = [1.6] * len(view.traits) + [1.7]
    heights += [0.35 + 0.2 * _lines(sets)] * bool(view.sets.height)
    heights += [1.3] + [0.35 + 0.27 * _lines(genes)] * (view.genes is not None)
    figure = Figure(figsize=(_WIDTH, sum(heights) + 1.0), layout="constrained")
    axes = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0])
    panels = iter(axes)
    strongest = [next(panels) for _ in view.traits]
    for axis, trait in zip(strongest, view.traits, strict=True):
        drawn = _association(axis, view, trait)
    label = f"r² to {view.variants['SNP'][view.lead]} (◇)"
    figure.colorbar(drawn, ax=strongest, label=label, pad=0.01, aspect=12 * len(strongest), fraction=0.03)
    _inclusion(next(panels), view)
    if view.sets.height:
        _sets(next(panels), view, sets, low, high)
    _priors(next(panels), view)
    if view.genes is not None:
        _genes(next(panels), view.genes, genes, low, high)
    place = view.variants["BP"][view.lead] / 1e6
    for axis in axes:
        axis.axvline(place, color=_INK, lw=0.6, ls=":", zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    axes[-1].set_xlim(low / 1e6, high / 1e6)
    axes[-1].ticklabel_format(axis="x", useOffset=False)
    axes[-1].set_xlabel(f"chromosome {view.chromosome}, Mb ({view.genome_build})", fontsize=9)
    title = "\n".join([view.title, *wrap(view.subtitle, _LETTERS)])
    figure.suptitle(title, x=0.01, ha="left", fontsize=9.5)
    figure.align_ylabels(axes)
    return figure


def _span(view: LocusView) -> tuple[float, float]:
    """Ends of the axis: of the region, as far as there are variants, and some room."""
    position = view.variants["BP"].to_numpy()
    width = max(float(position.max() - position.min()), 1000.0)
    low = max(float(view.start), position.min() - 0.02 * width)
    return low, min(float(view.stop), position.max() + 0.02 * width)


def _association(axis: Axes, view: LocusView, trait: str) -> Any:
    """-log10 p by position; returns what its colours stand for."""
    from scipy.stats import norm

    z = np.abs(view.values("Z", trait))
    height = -(norm.logsf(z) + np.log(2)) / np.log(10)
    x = view.variants["BP"].to_numpy() / 1e6
    r2 = view.variants["R2"].fill_null(np.nan).to_numpy()
    apart = np.isnan(r2)
    axis.scatter(x[apart], height[apart], s=9, color=_APART, linewidths=0)
    order = np.flatnonzero(~apart)[np.argsort(r2[~apart], kind="stable")]
    drawn = axis.scatter(x[order], height[order], s=14, c=r2[order], cmap="turbo", vmin=0, vmax=1, linewidths=0)
    at = view.lead
    if np.isfinite(height[at]):
        axis.scatter(x[at], height[at], s=60, marker="D", facecolor="none", edgecolor=_INK, lw=1.2, zorder=4)
    top = float(np.nanmax(height)) if np.isfinite(height).any() else 1.0
    line = -np.log10(_GENOME_WIDE)
    if top > 0.5 * line:
        axis.axhline(line, color=_INK, lw=0.5, ls="--", alpha=0.6)
        top = max(top, line)
    axis.set_ylim(-0.03 * top, 1.15 * top)
    axis.set_ylabel("−log₁₀ p", fontsize=9)
    behind = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.0}
    label: dict[str, Any] = {"fontsize": 9, "va": "top", "weight": "bold", "color": _INK, "bbox": behind}
    axis.text(0.006, 0.97, trait, transform=axis.transAxes, **label)
    return drawn


def _inclusion(axis: Axes, view: LocusView) -> None:
    x, member = view.variants["BP"].to_numpy() / 1e6, view.variants["SET"].to_numpy() > 0
    for k, trait in enumerate(view.traits):  # the first are largest, so that equal ones are seen behind each other
        pip = view.values("PIP", trait)
        seen = pip >= _LEAST
        colour, mark = _COLOURS[k % len(_COLOURS)], _MARKS[(k + k // len(_COLOURS)) % len(_MARKS)]
        style: dict[str, Any] = {
            "s": 26 + min(18.0, _LARGER / len(view.traits)) * (len(view.traits) - 1 - k),
            "marker": mark,
            "linewidths": 0.9,
            "edgecolors": colour,
        }
        axis.scatter(x[seen & member], pip[seen & member], color=colour, label=trait, **style)
        axis.scatter(x[seen & ~member], pip[seen & ~member], facecolor="none", **style)
    axis.set_ylim(-0.04, 1.08)
    axis.set_ylabel("inclusion\nprobability", fontsize=9)
    if len(view.traits) > 1:
        place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 0.97), "borderaxespad": 0}
        longest = max(_inches(name) for name in view.traits)
        columns = max(1, min(len(view.traits), int(_LEGEND / (longest + 0.4))))
        axis.legend(frameon=False, fontsize=8, ncols=columns, handletextpad=0.1, **place)
    axis.text(0.006, 1.0, "filled: in a credible set", transform=axis.transAxes, fontsize=7.5, va="bottom", color=_INK)


def _sets(axis: Axes, view: LocusView, placed: Sequence[_Placed], low: float, high: float) -> None:
    member, position = view.variants["SET"].to_numpy(), view.variants["BP"].to_numpy()
    for one in placed:
        row = view.sets.row(one.row, named=True)
        ends = np.clip([row["START"], row["STOP"]], low, high) / 1e6
        axis.plot(ends, [one.line, one.line], color=_INK, lw=1.2, solid_capstyle="butt")
        own = position[member == row["SET"]] / 1e6
        axis.plot(own, np.full(len(own), one.line), "|", color=_INK, ms=6, mew=1.0)
        if low <= row["LEAD_BP"] <= high:
            axis.plot(row["LEAD_BP"] / 1e6, one.line, "D", color=_INK, ms=3.5)
        axis.text(one.x / 1e6, one.line, row["SAID"], fontsize=_SMALL, va="center", ha=one.align, color=_INK)
    _bare(axis, placed, "credible\nsets", view.sets.height)


def _priors(axis: Axes, view: LocusView) -> None:
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

    x = view.variants["BP"].to_numpy() / 1e6
    order = np.argsort(x, kind="stable")
    for k, trait in enumerate(view.traits):
        f = view.values("F", trait)
        shown = np.where(f > 0, f, np.nan)
        axis.plot(x[order], shown[order], color=_COLOURS[k % len(_COLOURS)], lw=0.8, alpha=0.85)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.yaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_ylabel("prior\nvariance f", fontsize=9)


def _genes(axis: Axes, genes: pl.DataFrame, placed: Sequence[_Placed], low: float, high: float) -> None:
    for one in placed:
        row = genes.row(one.row, named=True)
        colour = _GENE if row["CODING"] else _OTHER
        middle, half = (row["START"] + row["STOP"]) / 2, 0.001 * (high - low)  # the shortest can be seen
        ends = np.clip([min(row["START"], middle - half), max(row["STOP"], middle + half)], low, high) / 1e6
        axis.plot(ends, [one.line, one.line], color=colour, lw=2.4, solid_capstyle="butt")
        said = {"+": f"{row['NAME']} →", "-": f"← {row['NAME']}"}.get(row["STRAND"], row["NAME"])
        axis.text(one.x / 1e6, one.line - 0.18, said, fontsize=_SMALL, ha=one.align, va="bottom", color=colour)
    _bare(axis, placed, "genes" if genes.height else "no gene", genes.height)


def _bare(axis: Axes, placed: Sequence[_Placed], label: str, total: int) -> None:
    """A panel of lines without a scale, the first on top; what found no place is counted."""
    axis.set_ylim(_lines(placed) - 0.4, -0.9)
    axis.set_yticks([])
    left = total - len(placed)
    axis.set_ylabel(label + (f"\n({left} more)" if left else ""), fontsize=9)
    axis.spines["left"].set_visible(False)


def _inches(words: str) -> float:
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), words, size=_SMALL).get_extents().width) / 72


class _Placed(NamedTuple):
    """One thing on its line, and where its words stand."""

    row: int
    line: int
    x: float
    align: str


def _lines(placed: Sequence[_Placed]) -> int:
    return 1 + max((one.line for one in placed), default=0)


def _packed(
    frame: pl.DataFrame, words: str, low: float, high: float, order: NDArray[np.int64] | None = None
) -> list[_Placed]:
    """Which of the things between START and STOP go to which line, so that neither they nor their words meet.

    What finds no place is left out.  words: column of what is said of each, over its middle with an `order` (who
    chooses first), else at its right or, where there is no room, left end.
    """
    an_inch = (high - low) / _INSIDE
    taken: list[list[tuple[float, float]]] = [[] for _ in range(_LINES)]
    out = []
    for j in range(frame.height) if order is None else order.tolist():
        row = frame.row(j, named=True)
        first, last = max(float(row["START"]), low), min(float(row["STOP"]), high)
        length = an_inch * (_inches(row[words] + " →") + 0.15)
        if order is not None:
            x = min(max((first + last) / 2, low + length / 2), high - length / 2)
            align, span = "center", (min(first, x - length / 2), max(last, x + length / 2))
        elif last + length <= high:
            x, align, span = last + 0.06 * an_inch, "left", (first, last + length)
        else:
            x, align, span = first - 0.06 * an_inch, "right", (first - length, last)
        for line, spans in enumerate(taken):
            if all(span[1] < a or span[0] > b for a, b in spans):
                spans.append(span)
                out.append(_Placed(j, line, x, align))
                break
    return out
