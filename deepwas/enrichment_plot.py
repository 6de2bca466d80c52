"""A picture of enrichment: each annotation's, with its interval, and its effect by standard deviation."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from deepwas.enrichment_table import Enrichment
from deepwas.files import atomic_path

__all__ = ["plot_enrichment"]

_INK, _YES, _NO = "#3b4252", "#c8442b", "#8a93a3"
_LEAST = 0.01  # of the ratios that are drawn
_MOST_TICKS = 8


def plot_enrichment(found: Enrichment, path: str | os.PathLike[str]) -> None:
    """Enrichment with 95% intervals by annotation, greatest first; coloured where p < 0.05 after Bonferroni, unless
    the prior was given.

    Beside it, where there are coefficients, the effect of one standard deviation of the annotation over the mean
    effect variance, the others held, with 95% intervals. Annotations without an enrichment come last.
    """
    from matplotlib.figure import Figure

    table = found.table().slice(1).sort("Enrichment", nulls_last=True, descending=True)
    names = [name + ("" if binary else " *") for name, binary in table.select("Category", "Binary").iter_rows()]
    places = np.arange(len(names))[::-1]
    p = table["Enrichment_p"].fill_null(1.0).to_numpy()
    colours = np.where(p < 0.05 / len(names), _YES, _NO)
    both = found.coefficient is not None
    figure = Figure(figsize=(10 if both else 6.5, 1.6 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots(1, 2 if both else 1, sharey=True, squeeze=False)[0]
    value, low, high = (table[c].cast(float).to_numpy() for c in ("Enrichment", "Enrichment_lower", "Enrichment_upper"))
    _intervals(axes[0], places, value, low, high, colours)
    axes[0].axvline(1, color=_INK, lw=0.8, ls=":")
    shown = np.isfinite(value)
    if shown.any() and (value[shown] > 0).all():
        _log_axis(axes[0], np.concatenate([value, low, high]))
    axes[0].set_xlabel("enrichment of heritability, 95% interval" + ("" if table["Binary"].all() else "; * not 0/1"))
    axes[0].set_yticks(places, names)
    axes[0].set_ylim(-0.7, len(names) - 0.3)
    if both:
        star, spread = (table[c].cast(float).to_numpy() for c in ("Coefficient_std", "Coefficient_std_std_error"))
        _intervals(axes[1], places, star, star - 1.96 * spread, star + 1.96 * spread, np.full(len(names), _INK))
        axes[1].axvline(0, color=_INK, lw=0.8, ls=":")
        axes[1].set_xlabel("effect of one SD over the mean, others held")
    h2, error = float(found.h2.value), float(found.h2.standard_error)
    about = f"standard error {error:.2g}; red: p < 0.05 / {len(names)}" if both else "prior held fixed: no test"
    figure.suptitle(f"Heritability by annotation (h2 {h2:.4g}, {about})", x=0.01, ha="left", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _log_axis(axis: Any, values: Any) -> None:
    """A ratio is drawn on the scale of its logarithm; intervals that reach to 0 or below run out of the picture."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    found = values[np.isfinite(values)]
    low, high = max(found[found > 0].min(), _LEAST), min(found.max(), 1 / _LEAST)
    low, high = min(low, 1.0), max(high, 1.0)
    room = max((high / low) ** 0.05, 1.005)
    low, high = low / room if (found > _LEAST).all() else _LEAST, high * room
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    if high < 2 * low:
        ticks = [x for x in MaxNLocator(6).tick_values(low, high) if low <= x <= high]
    else:
        # As many labels as there is room for.
        choices = ((1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
        made = [[x * 10.0**e for e in range(-3, 4) for x in steps if low <= x * 10.0**e <= high] for steps in choices]
        ticks = next((x for x in made if len(x) <= _MOST_TICKS), made[-1])
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())


def _intervals(axis: Any, places: Any, value: Any, low: Any, high: Any, colours: Any) -> None:
    for place, x, a, b, colour in zip(places, value, low, high, colours, strict=True):
        if np.isfinite(x):
            if np.isfinite(a):
                axis.plot([a, b], [place, place], color=colour, lw=1.4)
            axis.plot(x, place, "o", color=colour, ms=5)
