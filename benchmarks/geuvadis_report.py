"""Tables and picture of the benchmark on expression."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["BINS", "MODELS", "OTHERS", "draw", "tables"]

BINS = ((0.5, 0.8), (0.8, 0.95), (0.95, 1.0))
MODELS = {"learned": "configuration model, learned priors", "flat": "configuration model, flat priors"}
OTHERS = {"intersection": "intersection: second largest |z|", "pm": "HOPS Pm", "pn": "HOPS Pn"}
_ASKED = {
    "replicated": "replicated",
    "replicated_bonferroni": "after Bonferroni",
    "refuted": "refuted",
    "held": "holds",
}
_COLOURS = {"learned": "#c8442b", "flat": "#e0a08f", "intersection": "#2b6cb0", "pm": "#6b7a3a", "pn": "#b7a57a"}


def tables(figures: dict[str, Any]) -> list[Table]:
    """Calls by posterior; equal numbers of calls by method; what the model says of the intersection's calls."""
    from rich.table import Table

    if "missing" in figures:
        table = Table(title="GEUVADIS", title_justify="left", show_header=False)
        table.add_row(figures["missing"])
        return [table]
    size, halves = figures["size"], figures["halves"]
    people = " and ".join(str(n) for n in size["people"])
    sets = ", ".join(f"{half['sets']:,}" for half in halves)
    title = f"GEUVADIS: {size['genes']} genes, {people} people, {sets} sets of neighbours"
    bins = _table(f"{title}\nCalls by posterior (95% intervals)", "posterior", "calls", "mean posterior")
    for name, rows in figures["bins"].items():
        for (low, high), row in zip(BINS, rows, strict=True):
            stated = "-" if row["stated"] is None else f"{row['stated']:.2f}"
            bins.add_row(f"{MODELS[name]}, {low:g} to {high:g}", f"{row['calls']}", stated, *_cells(row))
    equal = _table("Equal numbers of calls", "method", "calls")
    for level in figures["equal"]:
        for name, row in level["methods"].items():
            said = (MODELS | OTHERS)[name]
            calls = f"{row['calls']}" + (f" (posterior >= {level['above']:g})" if name == "learned" else "")
            equal.add_row(said, calls, *_cells(row))
        equal.add_section()
    asked = _table("Calls of the intersection, |z| > 4 for both genes, by the model's posterior", "posterior", "calls")
    for row in figures["by_model"]:
        asked.add_row(f"{row['low']:g} to {row['high']:g}", f"{row['calls']}", *_cells(row))
    return [bins, equal, asked, _learned(halves)]


def _table(title: str, first: str, *more: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for heading in (*more, *_ASKED.values()):
        table.add_column(heading, justify="right")
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    return [_said(row[key]) for key in _ASKED]


def _said(rate: dict[str, Any]) -> str:
    return "-" if rate["rate"] is None else f"{rate['rate']:.0%} ({rate['low']:.0%} to {rate['high']:.0%})"


def _learned(halves: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title="What each half learned", title_justify="left")
    for heading in ("half", "prior", "held-out gain, nats", "variance of an effect", "psi", "effects", "shared"):
        table.add_column(heading, justify="left" if heading in ("half", "prior") else "right")
    for number, half in enumerate(halves, start=1):
        for name, found in half["models"].items():
            gain = half["held_out"]
            said = f"{gain['gain']:+.0f} ± {gain['standard_error'] or 0:.0f}" if name == "learned" else ""
            psi = ", ".join(f"{n}: {x:+.1f}" for n, x in found["excess_log_odds"].items())
            counts = f"{found['effects']:.0f}", f"{found['shared']:.0f}"
            table.add_row(f"{number}", name, said, f"{found['slab']:.2g}", psi, *counts)
    return table


def draw(figures: dict[str, Any], path: Path) -> None:
    """Rates by posterior bin, and at equal numbers of calls by method, with 95% intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    if "missing" in figures:
        figure.text(0.5, 0.5, figures["missing"], ha="center", va="center", wrap=True)
        figure.savefig(path, format="png", dpi=110)
        return
    axes = figure.subplots(2, 3)
    asked = {"replicated": "replicated in the other half", "refuted": "refuted there", "held": "holds there"}
    for column, (key, said) in enumerate(asked.items()):
        top, bottom = axes[:, column]
        for shift, (name, rows) in enumerate(figures["bins"].items()):
            for place, row in enumerate(rows):
                _point(top, place + 0.16 * (shift - 0.5), row[key], name, first=place == 0)
        top.set_xticks(range(len(BINS)), [f"{a:g} to {b:g}" for a, b in BINS], fontsize=8)
        top.set_xlabel("posterior probability of both genes")
        top.set_title(f"{said}, by posterior", loc="left", fontsize=10)
        for place, level in enumerate(figures["equal"]):
            for shift, (name, row) in enumerate(level["methods"].items()):
                _point(bottom, place + 0.15 * (shift - 2), row[key], name, first=place == 0)
        counts = [f"{level['calls']}" for level in figures["equal"]]
        bottom.set_xticks(range(len(counts)), counts)
        bottom.set_xlabel("calls of each method")
        bottom.set_title(f"{said}, equal numbers of calls", loc="left", fontsize=10)
        for axis in (top, bottom):
            axis.set_ylim(-0.03, 1.03)
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    figure.savefig(path, format="png", dpi=110)


def _point(axis: Any, x: float, rate: dict[str, Any], name: str, first: bool) -> None:
    if rate["rate"] is None:
        return
    ends = [[rate["rate"] - rate["low"]], [rate["high"] - rate["rate"]]]
    label = (MODELS | OTHERS)[name] if first else None
    axis.errorbar(x, rate["rate"], yerr=ends, fmt="o", ms=5, lw=1.2, color=_COLOURS[name], label=label)
