"""The picture of a direction test: the statistic among its flips, and each score's z."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from deepwas.files import atomic_path

if TYPE_CHECKING:
    from deepwas.direction import Direction

__all__ = ["plot_direction"]

_INK, _FOUND, _NULL = "#3b4252", "#c8442b", "#2b6cb0"
_SHOWN = 20


def plot_direction(found: Direction, path: str | os.PathLike[str]) -> None:
    """Draw the null distribution of T with what was observed, and the z of the scores that stand out most."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    test = found.record["test"]
    left.hist(found.null, bins=60, color=_NULL, alpha=0.6)
    left.axvline(test["observed"], color=_FOUND, lw=2)
    left.annotate(
        f" observed\n p = {test['p']:.3g} ",
        (test["observed"], 0.9),
        xycoords=("data", "axes fraction"),
        color=_FOUND,
        ha="right" if test["observed"] > np.median(left.get_xlim()) else "left",
        va="top",
    )
    left.set_xlabel(f"T ({test['statistic']})")
    left.set_ylabel("flips of sign")
    left.set_title(f"{test['permutations']:,} flips of {test['groups']:,} blocks' signs", loc="left", fontsize=10)
    table = found.columns.sort(found.columns["Z"].abs().rename("SIZE"), descending=True).head(_SHOWN)[::-1]
    places = np.arange(table.height)
    clear = table["P_ADJUSTED"].to_numpy() < 0.05
    right.barh(places, table["Z"].to_numpy(), color=np.where(clear, _FOUND, _INK), alpha=0.8)
    right.axvline(0, color=_INK, lw=0.8)
    right.set_yticks(places, [name if len(name) <= 40 else name[:37] + "..." for name in table["NAME"]], fontsize=7)
    right.set_xlabel("z of each score alone (over flips of sign); red: adjusted p < 0.05")
    more = found.columns.height - table.height
    right.set_title(
        f"the {table.height} largest of {found.columns.height:,}" if more else "scores", loc="left", fontsize=10
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)
