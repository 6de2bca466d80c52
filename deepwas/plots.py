"""Pictures of a fit: priors along the genome with z-scores and genes, and the response to each annotation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from deepwas.files import atomic_path
from deepwas.genome import read_intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from deepwas.annotations import Annotations
    from deepwas.runs import Fit

__all__ = ["plot_priors", "plot_responses"]

_INK, _PRIOR, _OTHER, _GENE = "#3b4252", "#c8442b", "#2b6cb0", "#6b7a3a"
_GENOME_WIDE = 5e-8
PathLike = str | os.PathLike[str]


def plot_priors(
    fit: Fit, path: PathLike, *, genes: PathLike | None = None, reference: Fit | None = None, window: float = 4e5
) -> None:
    """Association, learned prior and genes: along the chromosome of the strongest association, and around it.

    genes: BED file with names and strands.  reference: a fit of the constant prior, drawn as a line.
    window: bases either side of the strongest variant in the right-hand column.
    """
    from matplotlib.figure import Figure

    table = fit.priors(which="scored").with_columns(pl.Series("CHI2", fit.priors(which="scored")["Z"] ** 2))
    lead = table.row(int(np.argmax(table["CHI2"].to_numpy())), named=True)
    table = table.filter(pl.col("CHR") == lead["CHR"])
    bodies = None if genes is None else _genes_of(genes, lead["CHR"])
    level = None
    if reference is not None:
        level = float(reference.record["heritability"]["constant"]["effect_variance"])

    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(3, 2, sharex="col", height_ratios=[3, 3, 1.6], width_ratios=[1.7, 1])
    spans = [
        (table["BP"].min(), table["BP"].max()),
        (max(0, lead["BP"] - window), lead["BP"] + window),
    ]
    for column, (low, high) in enumerate(spans):
        part = table.filter(pl.col("BP").is_between(low, high))
        x = part["BP"].to_numpy() / 1e6
        _association(axes[0, column], x, part, lead)
        _prior(axes[1, column], x, part, level)
        if fit.cross_fitted:
            _sections(axes[1, column], part)
        if bodies is not None:
            near = bodies.filter((pl.col("END") > low) & (pl.col("START") < high))
            if column == 0:
                _gene_density(axes[2, 0], near, low, high)
            else:
                _gene_rows(axes[2, 1], near, low, high)
        axes[2, column].set_xlabel(f"chromosome {lead['CHR']}, Mb")
        axes[2, column].set_xlim(low / 1e6, high / 1e6)
    axes[0, 0].set_title("whole chromosome", loc="left")
    axes[0, 1].set_title(f"around {lead['SNP']}", loc="left")
    if bodies is None:
        for axis in axes[2]:
            axis.set_visible(False)
    figure.suptitle(
        f"Learned prior ({fit.options.network}{', cross-fitted' if fit.cross_fitted else ''}): "
        "variance of each variant's effect"
        + ("; dashed: sections, each by its own network" if fit.cross_fitted else ""),
        x=0.01,
        ha="left",
    )
    _save(figure, path)


def _association(axis: Axes, x: NDArray[Any], part: pl.DataFrame, lead: dict[str, Any]) -> None:
    from scipy.stats import norm

    z = np.abs(part["Z"].to_numpy())
    log_p = -(norm.logsf(z) + np.log(2)) / np.log(10)
    axis.scatter(x, log_p, s=5, color=_INK, alpha=0.5, linewidths=0)
    threshold = -np.log10(_GENOME_WIDE)
    axis.axhline(threshold, color=_INK, lw=0.6, ls=":")
    axis.annotate("5e-8", (axis.get_xlim()[0], threshold), fontsize=7, va="bottom", color=_INK)
    here = int(np.argmax(z))
    axis.scatter(x[here : here + 1], log_p[here : here + 1], s=28, color=_PRIOR, marker="D", zorder=3)
    axis.set_ylabel("association, -log10 p")


def _prior(axis: Axes, x: NDArray[Any], part: pl.DataFrame, level: float | None) -> None:
    axis.scatter(x, part["SNPVAR"].to_numpy(), s=5, color=_PRIOR, alpha=0.5, linewidths=0)
    if level is not None:
        axis.axhline(level, color=_OTHER, lw=1.2, label="constant prior")
        axis.legend(loc="lower right", fontsize=8)
    axis.set_yscale("log")
    axis.set_ylabel("effect variance (SNPVAR)")


def _sections(axis: Axes, part: pl.DataFrame) -> None:
    """Lines where one section of the cross-fit ends and the next, predicted by another network, begins."""
    for (_, before), (start, after) in pairwise(part.select("BP", "SECTION").iter_rows()):
        if before != after:
            axis.axvline(start / 1e6, color=_INK, lw=0.6, ls="--")


def _genes_of(path: PathLike, chromosome: str) -> pl.DataFrame:
    """Gene bodies of one chromosome, one row a name: the span of its transcripts."""
    found = read_intervals(path, names=("NAME", "SCORE", "STRAND")).filter(pl.col("CHR") == chromosome)
    merged = found.group_by("NAME", "STRAND").agg(pl.col("START").min(), pl.col("END").max())
    return merged.sort("START", "END", "NAME")


def _gene_density(axis: Axes, genes: pl.DataFrame, low: float, high: float) -> None:
    from matplotlib.ticker import MaxNLocator

    edges = np.linspace(low, high, 141)
    middle = ((genes["START"] + genes["END"]) / 2).to_numpy()
    count, _ = np.histogram(middle, edges)
    axis.stairs(count, edges / 1e6, fill=True, color=_GENE, alpha=0.7)
    axis.set_ylabel("genes")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))


def _gene_rows(axis: Axes, genes: pl.DataFrame, low: float, high: float) -> None:
    """Gene bodies with names and direction, in as few rows as keep names from running into each other."""
    ends: list[float] = []
    room = (high - low) * 0.012
    for gene in genes.iter_rows(named=True):
        arrow = f"{gene['NAME']} >" if gene["STRAND"] == "+" else f"< {gene['NAME']}"
        start, end = max(gene["START"], low), min(gene["END"], high)
        need = max(end, start + room * len(arrow))
        row = next((i for i, busy in enumerate(ends) if busy < start), len(ends))
        ends[row : row + 1] = [need + room]
        axis.plot([start / 1e6, end / 1e6], [-row, -row], color=_GENE, lw=4, solid_capstyle="butt")
        axis.annotate(arrow, (start / 1e6, -row), xytext=(0, 3), textcoords="offset points", fontsize=6, clip_on=True)
    axis.set_ylim(-max(len(ends), 1) + 0.2, 1)
    axis.set_yticks([])
    axis.set_ylabel("genes")


def plot_responses(fits: Mapping[str, Fit], annotations: Annotations, path: PathLike, *, rows: int = 2000) -> None:
    """How the effect variance changes with each annotation: partial dependence, relative to the mean effect variance.

    For each annotation a grid of its observed values replaces it in a sample of variants, and the mean effect variance
    is shown, by each fit: a thin line for each network of the cross-fit, a thick one for their mean. Bars below: where
    variants are.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(len(annotations.values))[:rows])
    sample = annotations.values[chosen]
    names = annotations.names
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.7 * lines + 0.5), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns, sharey=True, squeeze=False)).ravel()
    for j, (axis, name) in enumerate(zip(axes, names, strict=False)):
        values = annotations.values[:, j]
        present = values[~np.isnan(values)]
        grid = np.unique(np.quantile(present, np.linspace(0.005, 0.995, 25)))
        if len(np.unique(present)) <= 3:
            grid = np.unique(present)
        for colour, (label, fit) in zip((_OTHER, _PRIOR, _GENE, _INK), fits.items(), strict=False):
            curves = partial_dependence(fit, sample, j, grid)
            for curve in curves:
                axis.plot(grid, curve, color=colour, lw=0.5, alpha=0.5)
            axis.plot(grid, np.exp(np.log(curves).mean(axis=0)), color=colour, lw=2, label=label, marker="o", ms=2)
        axis.axhline(1, color=_INK, lw=0.6, ls=":")
        axis.set_yscale("log")
        axis.set_xlabel(name)
        heights = axis.get_xaxis_transform()
        count, edges = np.histogram(present, bins=30, range=(grid[0], grid[-1]))
        axis.bar(
            edges[:-1],
            0.12 * count / max(count.max(), 1),
            np.diff(edges),
            align="edge",
            transform=heights,
            color=_INK,
            alpha=0.25,
        )
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for axis in axes[::columns]:
        axis.set_ylabel("fold change of\neffect variance")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0].yaxis.set_minor_locator(NullLocator())
    axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle("Learned response to each annotation (thin: one network of the cross-fit each)", x=0.01, ha="left")
    _save(figure, path)


def partial_dependence(
    fit: Fit, sample: NDArray[np.float32], column: int, grid: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Mean effect variance at each grid value over that of the sample as it is, (networks, grid)."""
    from deepwas.inputs import VariantInputs
    from deepwas.networks import predict_log_variance

    stacked = np.repeat(sample[None], len(grid), axis=0)
    stacked[:, :, column] = grid[:, None]
    out = []
    pairs: Any = zip(fit.networks, fit.standardisers, strict=True)
    for network, standardiser in pairs:
        if network is None or standardiser is None:
            out.append(np.ones(len(grid)))
            continue
        flat = standardiser.transform(stacked.reshape(-1, sample.shape[1]))
        f = np.exp(predict_log_variance(network, VariantInputs(flat))).reshape(len(grid), -1).mean(axis=1)
        out.append(f / np.exp(predict_log_variance(network, VariantInputs(standardiser.transform(sample)))).mean())
    return np.stack(out)


def _save(figure: Any, path: PathLike) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)
