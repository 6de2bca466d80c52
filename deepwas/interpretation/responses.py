"""Response curves as a table, and the picture of importances."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from deepwas.files import atomic_path

if TYPE_CHECKING:
    from deepwas.annotations import Annotations
    from deepwas.runs import Fit

__all__ = ["plot_importance", "response_table"]

_INK, _BAR, _GROUP = "#3b4252", "#2b6cb0", "#6b7a3a"
_MOST_BARS = 40


def response_table(
    fit: Fit,
    annotations: Annotations,
    *,
    points: int = 25,
    rows: int = 2000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Partial dependence (Friedman 2001): ANNOTATION VALUE ROTATION FOLD_CHANGE.

    FOLD_CHANGE: mean effect variance of a sample of variants whose annotation is set to VALUE, over that of the sample
    as it is. One curve by the network of each rotation; their spread is the band.
    points: values of an annotation, quantiles from 0.005 to 0.995; an annotation of three values or fewer has those.
    rows: variants in the sample.
    """
    from deepwas.plots import partial_dependence

    rng = np.random.default_rng([seed, 4])
    sample = annotations.values[np.sort(rng.permutation(len(annotations.values))[:rows])]
    columns: dict[str, list[Any]] = {"ANNOTATION": [], "VALUE": [], "ROTATION": [], "FOLD_CHANGE": []}
    for j, name in enumerate(annotations.names):
        present = annotations.values[:, j]
        present = present[~np.isnan(present)]
        grid = np.unique(np.quantile(present, np.linspace(0.005, 0.995, points)))
        if len(few := np.unique(present)) <= 3:
            grid = few
        curves = partial_dependence(fit, sample, j, grid)
        for r, curve in enumerate(curves):
            columns["ANNOTATION"] += [name] * len(grid)
            columns["VALUE"] += grid.astype(float).tolist()
            columns["ROTATION"] += [r] * len(grid)
            columns["FOLD_CHANGE"] += curve.tolist()
        if progress is not None:
            progress(j + 1, len(annotations.names))
    schema = {"ANNOTATION": pl.String, "VALUE": pl.Float64, "ROTATION": pl.Int64, "FOLD_CHANGE": pl.Float64}
    return pl.DataFrame(columns, schema=schema)


def plot_importance(table: pl.DataFrame, path: str | os.PathLike[str], held_out: Mapping[str, Any]) -> None:
    """Bars of importance with one standard error either way, most important on top; at most 40 of them."""
    from matplotlib.figure import Figure

    shown = table.head(_MOST_BARS)
    places = np.arange(shown.height)[::-1]
    colours = [_GROUP if kind == "group" else _BAR for kind in shown["KIND"]]
    figure = Figure(figsize=(7, 1.7 + 0.28 * shown.height), layout="constrained")
    axis = figure.subplots()
    value = shown["IMPORTANCE"].to_numpy()
    axis.barh(places, value, color=colours, height=0.65)
    errors = shown["STANDARD_ERROR"].fill_null(0.0).to_numpy()
    axis.errorbar(value, places, xerr=errors, fmt="none", ecolor=_INK, elinewidth=1, capsize=2.5)
    axis.axvline(0, color=_INK, lw=0.8)
    axis.set_yticks(places, shown["FEATURE"].to_list())
    axis.set_ylim(-0.7, shown.height - 0.3)
    axis.set_xlabel("held-out log-likelihood lost when permuted, nats (± SE over blocks)")
    error = held_out["standard_error"]
    about = f"{held_out['gain']:.1f}" + ("" if error is None else f" ± {error:.1f}")
    left = f", first {shown.height} of {table.height}" if table.height > shown.height else ""
    figure.suptitle(f"Importance (gain over the constant prior: {about} nats{left})", x=0.01, ha="left", fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)
