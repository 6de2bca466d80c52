"""Semi-supervised networks: what do labels, unlabelled data and annotations add to a classification?

Scenario h of `benchmarks.pleiotropy_simulate`: effects of all kinds, annotations of which some say where effects on
several traits are, others nothing. deepwas is given flat priors, so that all there is to learn is left to the networks.
Each replicate is classified without networks, and then with networks that read priors and LD alone, the annotations
that matter, or those that do not; trained on the mixture's labels alone, without labels, and with both.

Looked at are the posterior under the prior network's correction, used whether or not the held-out likelihood accepts
it, and P_NETWORK of the evidence network, both against the truth: area under precision-recall, log loss, calibration
error of the probabilities above 0.1, and false discoveries among the variants called at 5%. Figures are differences
from the posterior without networks, replicate by replicate.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.kept import digest_of, read_kept
from benchmarks.pleiotropy_genome import Genome, kept_genome, load_genome
from benchmarks.pleiotropy_metrics import average_precision, calls_by_local_fdr
from benchmarks.pleiotropy_simulate import CLASSES, Simulated, simulate

if TYPE_CHECKING:
    from rich.table import Table

    from benchmarks.pleiotropy_analysis import Prepared
    from deepwas.pleiotropy.network import Labels
    from deepwas.pleiotropy.network.features import BlockFeatures

__all__ = ["PRESETS", "READ", "Problem", "draw", "measure", "replicate", "tables"]

Progress = Callable[[str, int, int], None]
Array = NDArray[np.float64]

OBJECTIVES = ("supervised", "generative", "both")
READ = {"nothing more": "priors and LD", "matter": "annotations that matter", "decoys": "annotations that do not"}
_FIGURES = ("auprc", "log_loss", "calibration_error", "called", "false")


@dataclass(frozen=True)
class Problem:
    """What is simulated.

    regions, m, people: of the genome.  traits: K.  sample_size: N.  polygenicity, signal, paths: of scenario h.
    learn_blocks, rounds: options of deepwas.  simulated: LD blocks that teach the evidence network.  epochs: of
    training.  replicates: how many.
    """

    regions: int = 150
    m: int = 200
    people: int = 2000
    traits: int = 4
    sample_size: float = 2e5
    polygenicity: float = 3e-3
    signal: float = 80.0
    paths: int = 2
    learn_blocks: int = 60
    rounds: int = 5
    simulated: int = 60
    epochs: int = 25
    replicates: int = 3  # of ten minutes each
    seed: int = 1


PRESETS = {
    "quick": Problem(
        regions=16, m=40, people=300, polygenicity=0.05, learn_blocks=16, rounds=1, simulated=4, epochs=1, replicates=1
    ),
    "full": Problem(),
}


def measure(preset: str, progress: Progress, parts: Path) -> dict[str, Any]:
    """All replicates, kept in the folder `parts` one by one, and what they say together."""
    problem = PRESETS[preset]
    parts.mkdir(exist_ok=True)
    world = kept_genome(
        parts,
        problem.regions,
        m=problem.m,
        people=problem.people,
        panel_people=0,
        seed=problem.seed,
        progress=progress,
    )
    genome = load_genome(world)
    settings = {name: value for name, value in asdict(problem).items() if name != "replicates"}
    digest = digest_of(settings, "pleiotropy*.py", leave=("pleiotropy_report.py", "pleiotropy_speed.py"))
    kept = parts / f"replicates-{digest}.jsonl"
    known = {x["number"]: x for x in read_kept(kept)}
    for number in range(problem.replicates):
        if number not in known:
            known[number] = replicate(problem, number, genome)
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[number]) + "\n")
        progress("replicates", number + 1, problem.replicates)
    each = [known[number] for number in range(problem.replicates)]
    return {"settings": asdict(problem), "summary": _summary(each), "replicates": each}


def replicate(problem: Problem, number: int, genome: Genome) -> dict[str, Any]:
    """One replicate: figures without networks, and by what networks read and how they were trained."""
    from benchmarks.pleiotropy_analysis import prepare
    from deepwas.pleiotropy import PleiotropyOptions
    from deepwas.pleiotropy.learning import locate
    from deepwas.pleiotropy.network.labels import mixture_labels

    simulated = simulate(
        "h",
        genome=genome,
        seed=1000 * problem.seed + number,
        traits=problem.traits,
        sample_size=problem.sample_size,
        polygenicity=problem.polygenicity,
        signal=problem.signal,
        paths=problem.paths,
        factor_traits=min(3, problem.traits),
    )
    truth = simulated.klass == CLASSES.index("direct")
    options = PleiotropyOptions(learn_blocks=problem.learn_blocks, rounds=problem.rounds)
    out: dict[str, Any] = {"number": number, "true": int(truth.sum()), "networks": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = prepare(simulated, options=options)
        located = list(locate(made.blocks, made.model, **made.how))
        K = problem.traits
        columns: dict[str, list[int]] = {
            "nothing more": [],
            "matter": [0, *range(2, 2 + K)],
            "decoys": [1, *range(2 + K, 2 + 2 * K)],
        }
        for name, chosen in columns.items():
            own = simulated.annotations[:, chosen] if chosen else None
            features = _features(made, located, own)
            if not chosen:
                labels, _ = mixture_labels(features, made.model, genome.M, seed=problem.seed)
                out["labels"] = _precision(labels, truth)
                p = _by_row([f.posterior for f in features], features, genome.M)
                out["none"] = _figures(p, truth)
            out["networks"][name] = _networks(problem, made, features, labels, own, simulated, truth)
    return out


def _features(made: Prepared, located: Sequence[Any], annotations: Array | None) -> list[BlockFeatures]:
    from deepwas.pleiotropy.network.features import block_features

    out = []
    for i, (block, odds, found) in zip(made.order, located, strict=True):
        own = None if annotations is None else annotations[block.rows]
        chromosome = str(1 + i * 22 // len(located))
        out.append(
            block_features(block, odds, found, made.model, scored=made.joint.scored(i), chromosome=chromosome,
                           annotations=own)
        )  # fmt: skip
    return out


def _networks(
    problem: Problem,
    made: Prepared,
    features: list[BlockFeatures],
    labels: Labels,
    annotations: Array | None,
    simulated: Simulated,
    truth: NDArray[np.bool_],
) -> dict[str, Any]:
    """By objective: the posterior under the correction, P_NETWORK, and whether the correction was accepted."""
    from deepwas.pleiotropy.learning import locate
    from deepwas.pleiotropy.model_of import BlocksToLocate
    from deepwas.pleiotropy.network import NetworkOptions, calibration_report, fit_network

    report = calibration_report(
        made.blocks,
        made.model,
        scored=[made.joint.scored(i) for i in made.order],
        chromosomes=[f.chromosome for f in features],
        annotations=None if annotations is None else annotations.__getitem__,
        n_blocks=problem.simulated,
        seed=problem.seed,
        **made.how,
    )
    options = NetworkOptions(epochs=problem.epochs, seed=problem.seed)
    found = fit_network(features, labels, options, simulated=report.blocks)
    M = simulated.genome.M
    several = made.model.masks.sum(axis=1) >= 2
    out: dict[str, Any] = {}
    for name in OBJECTIVES:
        shared: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(made.joint)
        for i, c in zip(made.order, found.corrections[name], strict=True):
            shared[i] = c
        blocks = BlocksToLocate(made.joint, made.direct, made.order, made.blocks.shapes, shared)
        each = [x.probability[:, several].sum(axis=1) for _, _, x in locate(blocks, made.model, **made.how)]
        held_out = found.ablations["prior"][name]
        out[name] = {
            "gain": held_out["gain"],
            "gain_standard_error": held_out["gain_standard_error"],
            "accepted": bool(held_out["gain"] > 2 * held_out["gain_standard_error"]),
            "posterior": _figures(_by_row(each, features, M), truth),
            "evidence": _figures(_by_row(found.probabilities[name], features, M), truth),
        }
    return out


def _by_row(values: Sequence[NDArray[Any]], features: Sequence[BlockFeatures], M: int) -> Array:
    from deepwas.pleiotropy.network.stage import by_row

    return np.asarray(np.nan_to_num(by_row(values, features, M)), np.float64)


def _figures(p: Array, truth: NDArray[np.bool_]) -> dict[str, float]:
    from deepwas.pleiotropy.network.metrics import log_loss, reliability

    p = np.clip(p, 0, 1)
    called = calls_by_local_fdr(1 - p)
    return {
        "auprc": average_precision(truth, p),
        "log_loss": log_loss(p, truth.astype(np.float64)) * len(p),
        "calibration_error": reliability(p, truth, above=0.1).error,
        "called": int(called.sum()),
        "false": int((called & ~truth).sum()),
    }


def _precision(labels: Labels, truth: NDArray[np.bool_]) -> dict[str, int]:
    known = np.isfinite(labels.value)
    positive = known & (labels.value > 0.5)
    return {
        "positive": int(positive.sum()),
        "positive_wrong": int((positive & ~truth).sum()),
        "negative": int((known & ~positive).sum()),
        "negative_wrong": int((known & ~positive & truth).sum()),
    }


def _summary(each: list[dict[str, Any]]) -> dict[str, Any]:
    """Without networks, and differences of networks from it: mean and standard error over replicates."""
    none = {name: _mean([x["none"][name] for x in each]) for name in _FIGURES}
    rows = []
    for read in READ:
        for objective in OBJECTIVES:
            own = [x["networks"][read][objective] for x in each]
            row: dict[str, Any] = {
                "read": read,
                "objective": objective,
                "accepted": sum(x["accepted"] for x in own),
                "gain": _mean([x["gain"] for x in own]),
            }
            for which in ("posterior", "evidence"):
                row[which] = {
                    name: _mean([a[which][name] - b["none"][name] for a, b in zip(own, each, strict=True)])
                    for name in _FIGURES[:3]
                }
                called, false = (sum(x[which][name] for x in own) for name in ("called", "false"))
                row[which] |= {"called": called, "false": false}
            rows.append(row)
    return {
        "none": none,
        "called": sum(x["none"]["called"] for x in each),
        "false": sum(x["none"]["false"] for x in each),
        "labels": {name: sum(x["labels"][name] for x in each) for name in each[0]["labels"]},
        "networks": rows,
    }


def _mean(values: Sequence[float]) -> dict[str, float]:
    x = np.asarray(values, np.float64)
    error = float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else 0.0
    return {"mean": float(x.mean()), "standard_error": error}


def _said(x: dict[str, float], digits: int = 3) -> str:
    return f"{x['mean']:+.{digits}f} ± {x['standard_error']:.{digits}f}"


def tables(figures: dict[str, Any]) -> list[Table]:
    """Differences by what the networks read and how they were trained."""
    from rich.table import Table

    found, n = figures["summary"], figures["settings"]["replicates"]
    none = found["none"]
    title = (
        f"Differences from the posterior without networks, {n} replicates (its area under precision-recall "
        f"{none['auprc']['mean']:.3f}, log loss {none['log_loss']['mean']:.1f} nats, calibration error "
        f"{none['calibration_error']['mean']:.3f}; {found['called']:,} variants called at 5%, "
        f"{found['false'] / max(found['called'], 1):.1%} false)"
    )
    out = []
    for which, text in (("posterior", "posterior under the prior network"), ("evidence", "P_NETWORK")):
        table = Table(title=f"{text}. {title}", title_justify="left")
        for heading in ("networks read", "trained with"):
            table.add_column(heading)
        for heading in ("AUPRC", "log loss", "calibration error", "false at 5%", "held-out gain, nats", "accepted"):
            table.add_column(heading, justify="right")
        for row in found["networks"]:
            own = row[which]
            table.add_row(
                READ[row["read"]],
                row["objective"],
                _said(own["auprc"]),
                _said(own["log_loss"], 1),
                _said(own["calibration_error"]),
                f"{own['false'] / max(own['called'], 1):.1%} of {own['called']:,}",
                _said(row["gain"], 1) if which == "posterior" else "",
                f"{row['accepted']} of {n}" if which == "posterior" else "",
            )
        out.append(table)
    labels = Table(title="Labels of the mixture, all replicates", title_justify="left")
    for heading in ("label", "variants", "wrong"):
        labels.add_column(heading, justify="right")
    for name, text in (("positive", "two traits or more"), ("negative", "fewer")):
        labels.add_row(text, f"{found['labels'][name]:,}", f"{found['labels'][name + '_wrong']:,}")
    return [*out, labels]


def draw(figures: dict[str, Any], path: Path) -> None:
    """Differences of AUPRC and log loss, with two standard errors, by what is read and how it was trained."""
    from matplotlib.figure import Figure

    rows = figures["summary"]["networks"]
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(rows)) + np.repeat(np.arange(len(READ)), len(OBJECTIVES)) * 0.6
    texts = [f"{READ[row['read']]}, {row['objective']}" for row in rows]
    for axis, name, label in (
        (axes[0], "auprc", "area under precision-recall, difference"),
        (axes[1], "log_loss", "log loss, difference in nats (less is better)"),
    ):
        axis.axvline(0, color="#3b4252", lw=0.8, ls=":")
        for shift, which, colour, said in (
            (-0.15, "posterior", "#2b6cb0", "posterior under the prior network"),
            (0.15, "evidence", "#c8442b", "P_NETWORK"),
        ):
            mean = [row[which][name]["mean"] for row in rows]
            error = [2 * row[which][name]["standard_error"] for row in rows]
            axis.errorbar(mean, places + shift, xerr=error, fmt="o", ms=4, color=colour, capsize=2, label=said)
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(places, texts, fontsize=8)
    axes[0].invert_yaxis()
    axes[0].legend(frameon=False, fontsize=8)
    n = figures["settings"]["replicates"]
    axes[0].set_title(f"{n} replicates, two standard errors", loc="left", fontsize=10)
    figure.savefig(path, format="png", dpi=130)
