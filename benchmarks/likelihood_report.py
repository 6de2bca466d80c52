"""The figures of `benchmarks.likelihood` as goals met or not, as tables and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

__all__ = ["acceptance", "draw", "tables"]

GOALS = {2000: 100, 4000: 200, 8000: 400}  # times as fast as the dense reference, by m
GRADIENT_GOAL = 0.1
CHOLESKY_GOAL = 10
SHARE_GOAL = 0.6
LARGE_K = 1000
STEPS = 100
_COLOURS = {"dense": "#d55e00", "dense_scored": "#e69f00", "autodiff": "#cc79a7", "cholesky": "#009e73",
            "cola": "#56b4e9", "cg": "#0072b2", "ld_score": "0.5"}  # fmt: skip
_LABELS = {
    "dense": "dense Cholesky, all of A",
    "dense_scored": "dense Cholesky, scored part",
    "autodiff": "autodiff of dense (JAX)",
    "cholesky": "whitened, Cholesky",
    "cola": "whitened, CoLA's CG (gradient)",
    "cg": "whitened, CG",
    "ld_score": "LD score objective",
}
_RULES = {"store": "o", "99%": "s", "most": "^"}


def acceptance(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Each goal with what was found: rows of what, found, goal, met, and the gradient error where there is one."""
    rows: list[dict[str, Any]] = []
    for window in figures["windows"]:
        dense, m = window["references"].get("dense"), window["m"]
        if m in GOALS and dense:
            for row in window["truncations"]:
                rows.append(_against_dense(window, row, dense["ms"]))
    last = max(figures["windows"], key=lambda w: (w["m"], w["s"]))
    row = last["truncations"][-1]
    ratio = row["cholesky"]["ms"] / row["cg"]["ms"]
    rows.append(
        {
            "what": f"own Cholesky / CG, m {last['m']:,}, k {row['k']:,}",
            "found": ratio,
            "goal": CHOLESKY_GOAL,
            "gradient_error": row["cg"]["gradient_error"],
            "met": ratio >= CHOLESKY_GOAL,
        }
    )
    for row in figures["iterations"]:
        if row["k"] >= LARGE_K:
            share = row["share_of_bound"]
            what = f"iteration's share of the bound ({row['bound_by']}), m {row['m']:,}, k {row['k']:,}"
            rows.append({"what": what, "found": share, "goal": SHARE_GOAL, "met": share >= SHARE_GOAL})
    return rows


def _against_dense(window: dict[str, Any], row: dict[str, Any], dense: float) -> dict[str, Any]:
    m, error = window["m"], row["cg"]["gradient_error"]
    ratio = dense / row["cg"]["ms"]
    amortised = {
        f"found_with_whitening_{name}": dense / (row["cg"]["ms"] + 1e3 * seconds / STEPS)
        for name, seconds in window["whitening_seconds"].items()
        if seconds is not None
    }
    return {
        "what": f"dense / CG, m {m:,}, {window['scored']} scored, {row['rule']} (k {row['k']:,})",
        "found": ratio,
        "goal": GOALS[m],
        "gradient_error": error,
        "met": ratio >= GOALS[m] and error <= GRADIENT_GOAL,
    } | amortised


def tables(figures: dict[str, Any]) -> list[Table]:
    """Goals, times, errors, the iteration against the machine, and growth."""
    return [_goals(figures), _times(figures), _errors(figures), _iterations(figures), _growth(figures)]


def _table(title: str, *headings: str) -> Table:
    from rich.table import Table

    table = Table(title=title)
    for heading in headings:
        table.add_column(heading)
    return table


def _goals(figures: dict[str, Any]) -> Table:
    s = figures["settings"]
    table = _table(
        f"Goals (CG with {s['probes']} probes, {s['steps']} steps, rank {s['rank']}; gradient error: mean of "
        f"{s['keys']} draws)",
        "what", "found", "goal", "gradient error", "whitening of R in", "of genotypes in", "met",
    )  # fmt: skip
    for row in figures["acceptance"]:
        table.add_row(
            row["what"],
            f"{row['found']:.3g}",
            f">= {row['goal']}",
            f"{row['gradient_error']:.3f}" if "gradient_error" in row else "-",
            *(f"{row[x]:.3g}" if x in row else "-" for x in (
                "found_with_whitening_from_correlation", "found_with_whitening_from_genotypes")),
            "yes" if row["met"] else "no",
        )  # fmt: skip
    return table


def _times(figures: dict[str, Any]) -> Table:
    table = _table(
        "Value and gradient, ms (peak memory, MB)", "m", "scored", "rule", "k", *_LABELS.values(), "whitening, s"
    )
    for window in figures["windows"]:
        for row in window["truncations"]:
            both = window["references"] | row
            seconds = (f"{x:.2g}" for x in window["whitening_seconds"].values() if x is not None)
            table.add_row(
                f"{window['m']:,}", window["scored"], row["rule"], f"{row['k']:,}",
                *(f"{both[x]['ms']:.3g} ({both[x]['memory_bytes'] / 1e6:.3g})" if x in both else "-" for x in _LABELS),
                " / ".join(seconds),
            )  # fmt: skip
    return table


def _errors(figures: dict[str, Any]) -> Table:
    table = _table(
        "Values, nats, and relative errors of gradients",
        "m", "scored", "k", "variance kept", "exact", "CG", "its SE", "rms error / SE", "CG's gradient",
        "in noise (SDs of the score)", "CoLA's", "Cholesky's", "truncation alone", "CG's from dense",
    )  # fmt: skip
    for window in figures["windows"]:
        for row in window["truncations"]:
            own = row["cg"]
            from_dense = (row["truncation_error"], own["gradient_error_untruncated"])
            table.add_row(
                f"{window['m']:,}", window["scored"], f"{row['k']:,}", f"{row['variance_kept']:.4f}",
                f"{row['exact_value']:.2f}", f"{own['value']:.2f}", f"{own['standard_error']:.2f}",
                f"{own['value_rms_error_in_standard_errors']:.2f}", f"{own['gradient_error']:.3f}",
                f"{own['noise_gradient_error']:.3f}", f"{row['cola']['gradient_error']:.3f}",
                f"{row['cholesky']['gradient_error']:.1e}",
                *("-" if x is None else f"{x:.3f}" for x in from_dense),
            )  # fmt: skip
    return table


def _iterations(figures: dict[str, Any]) -> Table:
    machine = figures["machine"]
    rates = ", ".join(f"{name} {value:.0f}" for name, value in machine["matmul_gflop_s"].items())
    table = _table(
        f"Matrix work of a CG step on {machine['device']}: copy {machine['copy_gb_s']:.0f} GB/s, read "
        f"{machine['read_gb_s']:.0f} GB/s; matrix products, GFLOP/s: {rates}",
        "m", "k", "columns", "ms", "GB/s", "GFLOP/s", "bound by", "share of bound", "GB/s reading this size",
        "share of bound in cache",
    )  # fmt: skip
    for row in figures["iterations"]:
        table.add_row(
            f"{row['m']:,}", f"{row['k']:,}", str(row["columns"]), f"{row['ms']:.3g}", f"{row['gb_s']:.1f}",
            f"{row['gflop_s']:.0f}", row["bound_by"], f"{row['share_of_bound']:.2f}",
            f"{row['read_gb_s_at_this_size']:.0f}", f"{row['share_of_bound_in_cache']:.2f}",
        )  # fmt: skip
    return table


def _growth(figures: dict[str, Any]) -> Table:
    table = _table("Growth of the time", "with", "sizes", "ms", "exponent", "of the last doubling")
    for name, row in figures["growth"].items():
        table.add_row(
            name,
            ", ".join(f"{x:,}" for x in row["sizes"]),
            ", ".join(f"{x:.3g}" for x in row["ms"]),
            f"{row['exponent']:.2f}",
            f"{row['exponent_of_the_larger_half']:.2f}",
        )
    return table


def draw(figures: dict[str, Any], path: Path) -> None:
    """Six panels: time by m for both settings, ratio to dense, gradient error, the roofline, and growth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis, scored in zip(axes[0, :2], ("all", "third"), strict=True):
        _draw_times(axis, [w for w in figures["windows"] if w["scored"] == scored])
        what = "all variants scored" if scored == "all" else "a third scored, the rest flanks"
        axis.set_title(f"Value and gradient, {what}; 99% of variance", fontsize=10)
    axes[0, 0].legend(frameon=False, fontsize=8, loc="upper left")
    _draw_ratios(axes[0, 2], figures)
    _draw_errors(axes[1, 0], figures)
    _draw_roofline(axes[1, 1], figures)
    _draw_growth(axes[1, 2], figures)
    figure.savefig(path, format="png", dpi=100)


def _by_rule(window: dict[str, Any], rule: str) -> dict[str, Any]:
    return next(row for row in window["truncations"] if row["rule"] == rule)


def _plain_ticks(axis: Any, values: Any) -> None:
    values = sorted(set(values))
    axis.set_xticks(values, [f"{x:,}" for x in values])
    axis.minorticks_off()
    axis.tick_params(axis="x", labelsize=8)


def _draw_times(axis: Any, windows: list[dict[str, Any]]) -> None:
    for name, label in _LABELS.items():
        points = []
        for window in windows:
            row = _by_rule(window, "99%")
            both = window["references"] | row
            if name in both:
                points.append((window["m"], both[name]["ms"]))
        if points:
            axis.plot(*zip(*points, strict=True), "o-", ms=4, color=_COLOURS[name], label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    _plain_ticks(axis, [w["m"] for w in windows])
    axis.set_xlabel("variants in the window, m")
    axis.set_ylabel("ms")


def _draw_ratios(axis: Any, figures: dict[str, Any]) -> None:
    sizes = []
    for scored, style in (("all", "-"), ("third", "--")):
        for rule in figures["settings"]["rules"]:
            points = []
            for window in figures["windows"]:
                if window["scored"] == scored and "dense" in window["references"]:
                    row = _by_rule(window, rule)
                    points.append((window["m"], window["references"]["dense"]["ms"] / row["cg"]["ms"]))
            sizes += [m for m, _ in points]
            axis.plot(*zip(*points, strict=True), style, marker=_RULES[rule], ms=4, label=f"{scored} scored, {rule}")
    goals = {m: goal for m, goal in GOALS.items() if m in sizes}
    if goals:
        axis.plot(list(goals), list(goals.values()), "k_", ms=22, mew=2, label="goal")
    axis.set_xscale("log")
    axis.set_yscale("log")
    _plain_ticks(axis, sizes)
    axis.set_xlabel("variants in the window, m")
    axis.set_ylabel("times as fast")
    axis.set_title("Dense Cholesky (all of A) / CG, by directions kept", fontsize=10)
    axis.legend(frameon=False, fontsize=8)


def _draw_errors(axis: Any, figures: dict[str, Any]) -> None:
    for scored, style in (("all", "-"), ("third", "--")):
        windows = [w for w in figures["windows"] if w["scored"] == scored]
        for rule in figures["settings"]["rules"]:
            rows = [_by_rule(w, rule) for w in windows]
            axis.plot(
                [w["m"] for w in windows], [r["cg"]["gradient_error"] for r in rows], style, marker=_RULES[rule], ms=4,
                label=f"{scored} scored, {rule}",
            )  # fmt: skip
    axis.axhline(GRADIENT_GOAL, color="k", lw=1, ls=":", label="goal")
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    _plain_ticks(axis, [w["m"] for w in figures["windows"]])
    axis.set_xlabel("variants in the window, m")
    axis.set_ylabel("relative error")
    s = figures["settings"]
    axis.set_title(f"Gradient of CG: {s['probes']} probes, {s['steps']} steps, rank {s['rank']}", fontsize=10)
    axis.legend(frameon=False, fontsize=8)


def _draw_roofline(axis: Any, figures: dict[str, Any]) -> None:
    rows = figures["iterations"]
    machine = figures["machine"]
    size = np.array([4e-6 * r["m"] * r["k"] for r in rows])
    order = np.argsort(size)
    achieved = np.array([r["gflop_s"] for r in rows])
    axis.plot(size[order], achieved[order], "o", color=_COLOURS["cg"], label="a CG step's products")
    columns = rows[0]["columns"]
    rate = max(v for n, v in machine["matmul_gflop_s"].items() if n.endswith("float32"))
    axis.axhline(rate, color="k", lw=1, label="square float32 products")
    axis.axhline(columns * machine["copy_gb_s"], color="k", lw=1, ls="--", label="G read once at copy bandwidth")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("size of G, MB")
    axis.set_ylabel("GFLOP/s")
    axis.set_title(f"Matrix work of an iteration, {columns} right-hand sides", fontsize=10)
    axis.legend(frameon=False, fontsize=8)


def _draw_growth(axis: Any, figures: dict[str, Any]) -> None:
    for name, row in figures["growth"].items():
        sizes, ms = np.array(row["sizes"]), np.array(row["ms"])
        style = "--" if "cholesky" in name else "-"
        axis.plot(sizes / sizes[0], ms / ms[0], style, marker="o", ms=4, label=f"{name}: {row['exponent']:.2f}")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xlabel("size, relative to the smallest")
    axis.set_ylabel("time, relative to the smallest")
    axis.set_title("Growth, with fitted exponents", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
