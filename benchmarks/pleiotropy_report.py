"""What the benchmark of pleiotropy says: replicates pooled, targets, tables, picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.pleiotropy_metrics import mean_and_error, pooled_fdr, pooled_reliability
from benchmarks.pleiotropy_simulate import CLASSES

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["draw", "summary", "tables"]

Record = dict[str, Any]

_OURS = "deepwas, "
_BASE = "deepwas, flat"
_LEARNED = "deepwas, learned"
_USUAL = ">= 2 traits at 5e-08"
_MEANS = ("average_precision", "locus_average_precision", "power_matched", "locus_power_matched")
_COLUMNS = ("AP", "AP loci", "calls", "FDR loci (95%)", "less factor", "power", "FDR", "power", "wrong/100k")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "0.3", "0.6")


def summary(replicates: Sequence[Record], cells: Iterable[str]) -> dict[str, Any]:
    """By cell and method, pooled over replicates; and the targets."""
    found: dict[str, Any] = {}
    for name in cells:
        rows = [x for x in replicates if x["cell"] == name]
        methods = list(dict.fromkeys(m for x in rows for m in x["methods"]))
        refused = [text for x in rows for text in x["refused"].values()]
        found[name] = {
            "replicates": len(rows),
            "traits": rows[0]["traits"],
            "refused": len(refused),
            "refusals": sorted(set(refused))[:5],
            "methods": {m: _pooled([x for x in rows if m in x["methods"]], m) for m in methods},
            "by_sample_size": _by_size(rows),
            "gains": _gains(rows),
        }
    return _without_nan({"cells": found, "targets": _targets(found)})


def _without_nan(x: Any) -> Any:
    """What is not a number is null in JSON."""
    if isinstance(x, dict):
        return {key: _without_nan(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_without_nan(value) for value in x]
    return None if isinstance(x, float) and np.isnan(x) else x


def _pooled(rows: Sequence[Record], method: str) -> dict[str, Any]:
    own = [x["methods"][method] for x in rows]
    variants = sum(x["variants"] for x in rows)
    out: dict[str, Any] = {name: mean_and_error([_number(x[name]) for x in own]) for name in _MEANS}
    out["precision"] = [float(v) for v in _mean([x["precision"] for x in own])]
    for level in ("variants", "loci"):
        counts = {key: [x[level][key] for x in own] for key in own[0][level]}
        called, false, confounder = (np.array(counts[key]) for key in ("called", "false", "confounder"))
        direct = sum(counts["direct"])
        found = sum(counts["found"]) if level == "loci" else int((called - false).sum())
        out[level] = {
            "fdr": vars(pooled_fdr(false, called)),
            "fdr_without_confounders": vars(pooled_fdr(false - confounder, called - confounder)),
            "power": found / direct if direct else None,
            "direct": direct,
            "false_per_100k": 1e5 * int(false.sum()) / variants,
        }
    for key in ("classes", "locus_classes", "pairs", "locus_pairs", "pairs_flagged", "wrong_pairs_flagged"):
        names = dict.fromkeys(n for x in own for n in x.get(key, {}))
        out[key] = {n: [int(v) for v in np.sum([x[key][n] for x in own if n in x[key]], axis=0)] for n in names}
    for key in ("bins", "likely", "locus_bins"):
        if key in own[0]:
            out[key] = _reliability([x[key] for x in own])
    if "confusion" in own[0]:
        out["confusion"] = np.sum([x["confusion"] for x in own], axis=0).tolist()
        out["traits"] = {k: sum(x["traits"][k] for x in own) for k in own[0]["traits"]}
        out["true_flagged"] = [sum(x["true_flagged"][i] for x in own) for i in (0, 1)]
        parts = own[0]["seconds"]
        out["seconds"] = {part: float(np.median([x["seconds"][part] for x in own])) for part in parts}
        out["structure"] = {k: float(np.mean([x["structure"][k] for x in own])) for k in own[0]["structure"]}
        out["with_factor"] = sum(x["factors"] > 0 for x in own)
    return out


def _number(x: Any) -> float:
    return float("nan") if x is None else float(x)


def _mean(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """By column, rows that are nan left out; nan where all are."""
    kept = np.array([r for r in rows if not np.isnan(r).any()], dtype=np.float64)
    return kept.mean(axis=0) if len(kept) else np.full(len(rows[0]), np.nan)


def _by_size(rows: Sequence[Record]) -> dict[str, Any]:
    """FDR and power of the loci that deepwas calls, and their calibration, by N."""
    out = {}
    for size in sorted({x["sample_size"] for x in rows}):
        every = [x["methods"][_BASE] for x in rows if x["sample_size"] == size and _BASE in x["methods"]]
        own = [x["loci"] for x in every]
        if own:
            fdr = pooled_fdr([x["false"] for x in own], [x["called"] for x in own])
            direct = sum(x["direct"] for x in own)
            out[f"{size:g}"] = {
                "fdr": vars(fdr),
                "power": sum(x["found"] for x in own) / direct if direct else None,
                "replicates": len(own),
                "locus_bins": _reliability([x["locus_bins"] for x in every]),
            }
    return out


def _reliability(sums: Sequence[Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Of bins pooled over replicates."""
    from deepwas.pleiotropy.network.metrics import error_by_chance

    r = pooled_reliability(np.sum(sums, axis=0))
    return {
        "stated": r.stated.tolist(),
        "observed": r.observed.tolist(),
        "number": r.number.tolist(),
        "error": _number(r.error),
        "error_by_chance": error_by_chance(r.stated, r.number),
    }


def _gains(rows: Sequence[Record]) -> dict[str, Any]:
    """Average precision of deepwas over that with the flat prior, and of this over two traits at 5e-8: paired."""
    out: dict[str, Any] = {}
    pairs = {m: (m, _BASE) for x in rows for m in x["methods"] if m.startswith(_OURS) and m != _BASE}
    for name, (one, other) in ({_USUAL: (_BASE, _USUAL)} | pairs).items():
        both = [x["methods"] for x in rows if one in x["methods"] and other in x["methods"]]
        out[name] = {
            key: mean_and_error([_number(x[one][key]) - _number(x[other][key]) for x in both])
            for key in ("average_precision", "locus_average_precision")
        }
    return out


def _targets(cells: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, as far as the preset has the scenarios: figure, target, and whether it is met."""
    out: list[dict[str, Any]] = []

    def add(what: str, figure: str, target: str, met: bool) -> None:
        out.append({"what": what, "figure": figure, "target": target, "met": bool(met)})

    def of(cell: str, method: str = _BASE) -> dict[str, Any] | None:
        found = cells.get(cell, {}).get("methods", {}).get(method)
        return found if isinstance(found, dict) else None

    def add_fdr(cell: str, most: float, method: str = _BASE) -> None:
        if own := of(cell, method):
            for level in ("loci", "variants"):
                fdr = own[level]["fdr"]
                met = fdr["called"] == 0 or fdr["low"] <= most
                add(f"{cell}, {method}: FDR at nominal 5%, {level}", _said_fdr(fdr), f"<= {most:.0%}", met)

    add_fdr("mixed", 0.06)
    add_fdr("mixed, 8 traits", 0.06)
    add_fdr("g", 0.08)
    for cell in ("mixed", "g"):
        if own := of(cell):
            error = own["bins"]["error"]
            add(f"{cell}: calibration error, all variants", f"{error:.4f}", "< 0.02", error < 0.02)
            # Nearly all of these are near 0, and would be right at 0: the other figures are the harder ones.
            for key, what, most in (("likely", "probabilities >= 0.1", None), ("locus_bins", "loci", 0.02)):
                error, chance = own[key]["error"], own[key]["error_by_chance"]
                add(
                    f"{cell}: calibration error, {what} (of true probabilities: by chance)",
                    f"{error:.3f} ({chance:.3f})",
                    "(shown)" if most is None else f"< {most:g}",
                    most is None or error < most,
                )
    for cell in ("mixed", "g", "h"):
        gain = cells.get(cell, {}).get("gains", {}).get(_USUAL)
        if gain and gain["average_precision"]["replicates"]:
            for key, level in (("average_precision", "variants"), ("locus_average_precision", "loci")):
                x = gain[key]
                add(
                    f"{cell}: average precision over two traits at 5e-8, {level}",
                    _said(x),
                    ">= 0.15",
                    x["mean"] >= 0.15,
                )
    for cell in ("mixed", "d"):
        if (own := of(cell)) and "vertical" in own["classes"]:
            for key, level in (("classes", "variants"), ("locus_classes", "loci")):
                hit, total = own[key]["vertical"]
                add(f"{cell}: vertical called direct, {level}", _share(hit, total), "< 10%", hit < 0.1 * total)
    for cell in ("mixed", "f"):
        if own := of(cell):
            for key, level in (("pairs", "variants"), ("locus_pairs", "loci")):
                low = [own[key].get(name, [0, 0]) for name in ("0.2-0.5", "0.5-0.8")]
                hit, total = (sum(x[i] for x in low) for i in (0, 1))
                add(
                    f"{cell}: LD pairs of r2 < 0.8 called shared, {level}",
                    _share(hit, total),
                    "< 10%",
                    hit < 0.1 * total,
                )
            hit = own["locus_pairs"].get("0.8-0.95", [0, 0])[0]
            flagged = own["wrong_pairs_flagged"].get("0.8-0.95", [0, 0])[0]
            text = f"{_share(flagged, hit)} of {_share(hit, own['locus_pairs'].get('0.8-0.95', [0, 0])[1])}"
            add(f"{cell}: of LD pairs of r2 >= 0.8 called shared, flagged unresolvable", text, "all", flagged == hit)
            add(f"{cell}: of called loci that are shared, flagged, too", _share(*own["true_flagged"]), "(shown)", True)
    for cell in _with_priors(cells):
        for method, what in (("deepwas, informative", "informative over flat"), (_LEARNED, "learned over flat")):
            for key, level in (("average_precision", "variants"), ("locus_average_precision", "loci")):
                if x := cells[cell]["gains"].get(method, {}).get(key):
                    met = x["replicates"] > 1 and x["mean"] > 2 * x["standard_error"]
                    add(f"{cell}: average precision, {what}, {level}", _said(x), "> 2 standard errors", met)
        for method in cells[cell]["methods"]:
            if method.startswith(_OURS):
                add_fdr(cell, 0.06, method)
    if own := of("pairs share"):
        x = own["traits"]
        text = f"{x['false']} beside {x['named']} of {x['true']}"
        add("pairs share: traits named that called variants have not", text, "< 5%", x["false"] <= 0.05 * x["named"])
    for cell in cells:
        if (cell in ("a", "d", "e", "f") or cell.startswith("b, ")) and (own := of(cell)):
            for level in ("loci", "variants"):
                rate = own[level]["false_per_100k"]
                what = f"{cell}: false calls per 100,000 variants, {level}"
                # Nothing but pairs in LD, one variant in 55: how many of them are called is judged above.
                add(what, f"{rate:.2f}", *(("(shown)", True) if cell == "f" else ("<= 1", rate <= 1)))
    refused = sum(x["refused"] for x in cells.values())
    add("replicates that deepwas refuses", str(refused), "0", refused == 0)
    return out


def _with_priors(cells: Mapping[str, Any]) -> list[str]:
    return [name for name in cells if name.split(",")[0] == "h"]


def _said(x: Mapping[str, Any]) -> str:
    return f"{x['mean']:+.3f} ± {x['standard_error']:.3f}"


def _said_fdr(x: Mapping[str, Any], *, calls: bool = True) -> str:
    if not x["called"]:
        return "no call"
    return f"{x['share']:.3f} ({x['low']:.2f}-{x['high']:.2f})" + (f" of {x['called']}" if calls else "")


def _share(hit: int, total: int) -> str:
    return f"{hit} of {total}" + (f" ({hit / total:.1%})" if total else "")


def _table(title: str, *headings: str) -> Table:
    from rich.table import Table

    table = Table(title=title)
    for j, heading in enumerate(headings):
        table.add_column(heading, justify="right" if j else "left", overflow="fold")
    return table


def tables(figures: dict[str, Any]) -> list[Table]:
    """Targets; methods in the scenarios that have baselines; every scenario; sample sizes; classes and structure.

    AP: average precision.  less factor: FDR with variants that act through a heritable factor left out of the calls.
    vertical, LD pairs: shares of those variants, and of pairs with r2 < 0.8, in called sets without a direct variant.
    """
    cells = figures["cells"]
    goals = _table("Pleiotropy: targets, with estimated noise correlation and effects of trait on trait", "", "found",
                   "target", "met")  # fmt: skip
    for x in figures["targets"]:
        met = "" if x["target"] == "(shown)" else "yes" if x["met"] else "NO"
        goals.add_row(x["what"], x["figure"], x["target"], met)
    made = [goals]
    for name, cell in cells.items():
        if len(cell["methods"]) > 3:
            made.append(_methods(name, cell))
    rows = _table("deepwas by scenario; calls at nominal FDR 5%", "scenario, prior", "replicates",
                  *_COLUMNS, "seconds")  # fmt: skip
    for name, cell in cells.items():
        for method, own in cell["methods"].items():
            if method.startswith(_OURS):
                label = name if method == _BASE else f"{name}, {method[len(_OURS) :]}"
                rows.add_row(label, str(cell["replicates"]), *_row(own), f"{sum(own['seconds'].values()):.1f}")
    sizes = _table("deepwas by sample size, loci", "scenario", "N", "replicates", "FDR", "power",
                   "calibration error (by chance)")  # fmt: skip
    for name, cell in cells.items():
        if len(cell["by_sample_size"]) > 1:
            for size, x in cell["by_sample_size"].items():
                bins = x["locus_bins"]
                off = f"{bins['error']:.3f} ({bins['error_by_chance']:.3f})"
                sizes.add_row(name, size, str(x["replicates"]), _said_fdr(x["fdr"]), _percent(x["power"]), off)
    made += [rows, sizes]
    for name in ("mixed", "g"):
        if name in cells and _BASE in cells[name]["methods"]:
            own = cells[name]["methods"][_BASE]
            classes = _table(f"{name}: true class in rows, class by deepwas in columns, variants", "", *CLASSES)
            for label, counts in zip(CLASSES, own["confusion"], strict=True):
                classes.add_row(label, *(f"{x:,}" for x in counts))
            made.append(classes)
            s = own["structure"]
            of_T = _table(f"{name}: structure, means over replicates", "edges of T", "found", "made up",
                          "largest error of T", "of C", "replicates with a factor")  # fmt: skip
            of_T.add_row(f"{s['edges']:.2f}", f"{s['found']:.2f}", f"{s['made_up']:.2f}", f"{s['off_T']:.3f}",
                         f"{s['off_noise']:.3f}", str(own["with_factor"]))  # fmt: skip
            made.append(of_T)
    return made


def _methods(name: str, cell: Mapping[str, Any]) -> Table:
    table = _table(f"{name}: methods, {cell['replicates']} replicates", "method", *_COLUMNS, "vertical", "LD pairs")
    for method, own in cell["methods"].items():
        vertical = own["locus_classes"].get("vertical", [0, 0])
        low = [own["locus_pairs"].get(x, [0, 0]) for x in ("0.2-0.5", "0.5-0.8")]
        pairs = [sum(x[i] for x in low) for i in (0, 1)]
        shares = [f"{hit / total:.0%}" if total else "-" for hit, total in (vertical, pairs)]
        table.add_row(method, *_row(own), *shares)
    return table


def _row(own: Mapping[str, Any]) -> list[str]:
    loci, variants = own["loci"], own["variants"]
    means = [own[key]["mean"] for key in ("average_precision", "locus_average_precision")]
    less = loci["fdr_without_confounders"]
    return [
        *("-" if x is None else f"{x:.2f}" for x in means),
        str(loci["fdr"]["called"]),
        _said_fdr(loci["fdr"], calls=False),
        f"{less['share']:.2f}" if less["called"] else "-",
        _percent(loci["power"]),
        f"{variants['fdr']['share']:.2f}" if variants["fdr"]["called"] else "-",
        _percent(variants["power"]),
        f"{loci['false_per_100k']:.1f}",
    ]


def _percent(x: float | None) -> str:
    return "-" if x is None else f"{x:.0%}"


def draw(figures: dict[str, Any], path: Path) -> None:
    """Precision and recall, false discoveries by method, calibration, what priors add."""
    from matplotlib.figure import Figure

    from benchmarks.pleiotropy_score import RECALL

    cells = figures["cells"]
    figure = Figure(figsize=(16, 4.6), layout="constrained")
    curve, rates, truth, gain = figure.subplots(1, 4, width_ratios=(1.1, 1.1, 0.9, 0.8))
    methods = cells["mixed"]["methods"]
    shown = [m for m in methods if not m.startswith("HOPS") or m in ("HOPS Pm (LD)", "HOPS Pn (LD)")]
    for method, colour in zip(shown, _COLOURS, strict=False):
        ours = method.startswith(_OURS)
        curve.plot(
            RECALL, np.array(methods[method]["precision"], float), color=colour, lw=2.2 if ours else 1.2, label=method
        )
    if _BASE in cells.get("g", {}).get("methods", {}):
        own = cells["g"]["methods"][_BASE]
        curve.plot(
            RECALL,
            np.array(own["precision"], float),
            color=_COLOURS[0],
            lw=1.2,
            ls=":",
            label="deepwas, LD of 400 others",
        )
    curve.set(xlabel="recall of loci", ylabel="precision", ylim=(0, 1.02), xlim=(0, 1))
    curve.set_title("Own effects on several traits, mixed scenario", fontsize=10)
    curve.legend(frameon=False, fontsize=7)
    for place, method in enumerate(reversed(list(methods))):
        fdr = methods[method]["loci"]["fdr"]
        if fdr["called"]:
            colour = _COLOURS[0] if method.startswith(_OURS) else "0.4"
            rates.plot([fdr["low"], fdr["high"]], [place, place], color=colour)
            rates.plot(fdr["share"], place, "o", color=colour, ms=4)
        else:
            rates.annotate("no call", (0.02, place), va="center", fontsize=7)
    rates.axvline(0.05, color="0.6", lw=0.8)
    rates.set_yticks(range(len(methods)), list(reversed(list(methods))), fontsize=7)
    rates.set(xlabel="false share of called loci (95% interval)", xlim=(0, 1))
    rates.set_title("False discoveries, mixed", fontsize=10)
    truth.plot([0, 1], [0, 1], color="0.8", lw=1, zorder=0)
    for name, colour in zip(("mixed", "g"), _COLOURS, strict=False):
        if _BASE in cells.get(name, {}).get("methods", {}):
            bins = cells[name]["methods"][_BASE]["bins"]
            stated, observed, number = (np.array(bins[key]) for key in ("stated", "observed", "number"))
            error = 1.96 * np.sqrt(observed * (1 - observed) / number)
            label = f"{name}, error {bins['error']:.4f}"
            truth.errorbar(stated, observed, yerr=error, fmt="o-", ms=4, lw=1, color=colour, label=label)
    truth.set(xlabel="probability stated", ylabel="share with own effects on several traits")
    truth.set_title("Calibration, variants", fontsize=10)
    truth.legend(frameon=False, fontsize=8)
    own = {
        f"{name}: {m[len(_OURS) :]}": x
        for name in _with_priors(cells)
        for m, x in cells[name]["gains"].items()
        if m.startswith(_OURS)
    }
    for key, label, shift in (("average_precision", "variants", -0.1), ("locus_average_precision", "loci", 0.1)):
        across = np.arange(len(own)) + shift
        mean, error = (np.array([x[key][part] for x in own.values()], float) for part in ("mean", "standard_error"))
        colour = _COLOURS[0] if label == "loci" else "0.4"
        gain.errorbar(across, mean, yerr=np.nan_to_num(error), fmt="o", ms=5, color=colour, label=label)
    gain.axhline(0.0, color="0.8", lw=1, zorder=0)
    gain.set_xticks(np.arange(len(own)), list(own), rotation=25, fontsize=7, ha="right", rotation_mode="anchor")
    gain.set_xlim(-0.5, len(own) - 0.5)
    gain.set(ylabel="average precision, gain (± SE)")
    gain.set_title("Other priors over flat ones", fontsize=10)
    gain.legend(frameon=False, fontsize=8)
    figure.savefig(path, format="png", dpi=110)
