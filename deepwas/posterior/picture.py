"""A picture of local heritability along the genome."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from deepwas.files import atomic_path
from deepwas.genome import chromosome_rank

if TYPE_CHECKING:
    from deepwas.posterior.run import Posterior

__all__ = ["plot_local_heritability"]

_INK, _POSTERIOR, _OTHER = "#3b4252", "#c8442b", "#2b6cb0"


def plot_local_heritability(found: Posterior, path: str | os.PathLike[str]) -> None:
    """Posterior genetic variance of each LD block with one standard deviation, what the prior expected there, and the
    variance of the score; below, the effect of each block that is surest to differ from 0."""
    from matplotlib.figure import Figure

    table = found.blocks
    names = sorted(table["CHR"].unique().to_list(), key=chromosome_rank)
    low = {name: float(np.min(table.filter(CHR=name)["START"].to_numpy())) for name in names}
    length = {name: float(np.max(table.filter(CHR=name)["STOP"].to_numpy())) - low[name] + 1 for name in names}
    gap = 0.01 * sum(length.values())
    starts, at = {}, low[names[0]]  # so that one chromosome alone is drawn by its positions
    for name in names:
        starts[name] = at
        at += length[name] + gap
    origin = np.array([starts[name] - low[name] for name in table["CHR"]])
    left, right = (table[c].to_numpy() + origin for c in ("START", "STOP"))
    middle = (left + right) / 2

    figure = Figure(figsize=(12, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    h2 = table["H2"].to_numpy()
    spread = table["H2_SD"].cast(pl.Float64).fill_null(0.0).to_numpy()
    top.errorbar(middle, h2, yerr=spread, fmt="o", ms=2.5, lw=0.7, color=_POSTERIOR, label="posterior (± SD)", zorder=2)
    top.hlines(table["H2_PRIOR_KEPT"].to_numpy(), left, right, color=_INK, lw=1.6, label="prior", zorder=3)
    top.scatter(middle, table["R2"].to_numpy(), s=9, color=_OTHER, marker="_", label="score (R2)", zorder=4)
    top.set_ylabel("genetic variance of an LD block")
    top.set_ylim(bottom=0)
    top.legend(frameon=False, fontsize=8)
    size = np.abs(table["LARGEST_Z"].cast(pl.Float64).fill_null(0.0).to_numpy())
    bottom.scatter(middle, size, s=9, color=_INK, linewidths=0)
    bottom.set_ylabel("largest |posterior\nmean / SD|")
    bottom.set_ylim(bottom=0)
    if len(names) == 1:
        bottom.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:.4g}")
        bottom.set_xlabel(f"chromosome {names[0]}, Mb")
    else:
        _label_chromosomes(bottom, names, starts, length)
    for name in names[1:]:
        for axis in (top, bottom):
            axis.axvline(starts[name] - gap / 2, color=_INK, lw=0.4, ls=":")
    total = found.record["totals"]
    error = "" if total["h2_sd"] is None else f" ± {total['h2_sd']:.2g}"
    figure.suptitle(
        f"Local heritability: total {total['h2']:.4g}{error} (prior {total['h2_prior_kept']:.4g}), expected R2 of the "
        f"score {total['r2']:.4g}",
        x=0.01,
        ha="left",
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _label_chromosomes(axis: Any, names: list[str], starts: dict[str, float], length: dict[str, float]) -> None:
    axis.set_xticks([starts[name] + length[name] / 2 for name in names], names, fontsize=7)
    axis.tick_params(axis="x", length=0)
    axis.set_xlabel("chromosome")
