"""What the benchmark of fine-mapping says: its tables and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["FOUND", "METHODS", "PANELS", "PRIORS", "SCENARIOS", "draw", "tables"]

FOUND = 0.9
SCENARIOS = {"informative": "effects where annotations say", "uninformative": "effects anywhere alike"}
PRIORS = {"true": "true prior", "learned": "learned prior", "flat": "flat prior"}
METHODS = {"flat": "deepwas", "slots": "slots alone", "single": "one effect at most"}
PANELS = {
    "own": "the GWAS's own people",
    "panel": "small panel, cut as by default",
    "panel in full": "small panel, nearly in full",
}


def tables(figures: dict[str, Any]) -> list[Table]:
    """Calibration by prior and method, what priors add, and what the LD of other people does."""
    from rich.table import Table

    main = Table(title="Fine-mapping: causal share by inclusion probability (exact 95% intervals)")
    for heading in ("effects", "prior or method", "0.5 to 0.9", "0.9 to 1", "sets that cover", "size", "found"):
        main.add_column(heading, justify="left" if heading in ("effects", "prior or method") else "right")
    for scenario, own in figures["scenarios"].items():
        for key, label in {**PRIORS, **METHODS}.items():
            if key in own:
                name = f"{PRIORS['flat']}, {label}" if key in METHODS else label
                main.add_row(SCENARIOS[scenario], name, *_cells(own[key]))
    gains = Table(title=f"Causal variants found (inclusion probability > {FOUND:g}) over the flat prior, same traits")
    for heading in ("prior", "traits", "found", "by the flat prior", "gain (bootstrap over traits)"):
        gains.add_column(heading, justify="left" if heading == "prior" else "right")
    for key, own in figures["gains"].items():
        said = "-"
        if own["gain"] is not None:
            said = f"{own['gain']:+.0%} ({own['interval'][0]:+.0%} to {own['interval'][1]:+.0%})"
        gains.add_row(PRIORS[key], str(own["traits"]), str(own["found"]), str(own["found_flat"]), said)
    panels = Table(title="LD of other people, noise and constant prior learned with it")
    headings = ("LD", "noise", "blocks flagged", "warned", "0.5 to 0.9", "0.9 to 1", "sets that cover", "size", "found")
    for heading in headings:
        panels.add_column(heading, justify="left" if heading == "LD" else "right")
    for key, label in PANELS.items():
        own = figures["panels"][key]
        noise, share = np.mean(own["noise"]), np.sum(own["flagged"]) / (own["blocks"] * len(own["flagged"]))
        said = f"{own['warned']} of {len(own['flagged'])}"
        panels.add_row(label, f"{noise:.2f}", f"{share:.0%}", said, *_cells(own))
        panels.add_row("  blocks not flagged", "", "", "", *_cells(own["unflagged"]))
    return [main, gains, panels]


def _cells(own: dict[str, Any]) -> list[str]:
    sets, found = own["sets"], own["found"]
    size = "-" if sets.get("median_size") is None else f"{sets['median_size']:g}"
    power = f"{found['hits']} of {found['causal']}"
    return [_said(own["bins"][-2]), _said(own["bins"][-1]), _said(sets), size, power]


def _said(x: dict[str, Any]) -> str:
    if x["share"] is None:
        return "-"
    return f"{x['share']:.3f} ({x['interval'][0]:.2f}-{x['interval'][1]:.2f}) of {x['count']}"


def draw(figures: dict[str, Any], path: Path) -> None:
    """Calibration by bin, of priors and methods and of LD; and the sets' coverage."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.4), layout="constrained")
    left, middle, right, cover = figure.subplots(1, 4, width_ratios=(1, 1, 1, 0.9))
    informative, panels = figures["scenarios"]["informative"], figures["panels"]
    shown = {
        left: (
            "Priors, effects where annotations say",
            {PRIORS[k]: informative[k] for k in PRIORS if k in informative},
        ),
        middle: ("Methods, flat prior, the same", {METHODS[k]: informative[k] for k in METHODS}),
        right: ("LD", {PANELS[k]: panels[k] for k in PANELS}),
    }
    colours = ("#2b6cb0", "#c8442b", "0.45")
    lines: list[tuple[str, dict[str, Any], str]] = []
    for axis, (title, rows) in shown.items():
        axis.plot([0, 1], [0, 1], color="0.8", lw=1, zorder=0)
        for (label, own), colour in zip(rows.items(), colours, strict=False):
            seen = [b for b in own["bins"] if b["share"] is not None]
            x, y = (np.array([b[name] for b in seen]) for name in ("mean", "share"))
            interval = np.array([b["interval"] for b in seen])
            off = np.stack([y - interval[:, 0], interval[:, 1] - y])
            axis.errorbar(x, y, yerr=np.maximum(off, 0), fmt="o-", ms=4, lw=1, color=colour, label=label)
            lines.append((f"{label}" if axis is not right else f"LD: {label}", own["sets"], colour))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("mean inclusion probability")
        axis.legend(frameon=False, fontsize=8, loc="upper left")
    left.set_ylabel("share of variants that are causal")
    for place, (_, sets, colour) in enumerate(lines):
        if sets["share"] is not None:
            low, high = sets["interval"]
            cover.plot([low, high], [-place, -place], color=colour)
            cover.plot(sets["share"], -place, "o", color=colour, ms=4)
    cover.axvline(0.95, color="0.6", lw=0.8)
    cover.set_yticks(-np.arange(len(lines)), [name for name, _, _ in lines], fontsize=7)
    cover.set_xlabel("credible sets that hold an effect")
    figure.savefig(path, format="png", dpi=110)
