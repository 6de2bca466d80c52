"""Do larger networks help, and does it take the full likelihood to see it?

Networks of growing size, by the full likelihood and by the LD score objective, on coalescent LD with a non-linear
truth: an interaction, two thresholds, smooth features along the genome. The tables of annotations hold the features as
they are; the convolutional network reads noisy tracks of the smooth ones in their place, and beside it stands the large
perceptron that sees only the noisy value at the variant. The same contest is then held on the embedded example, real
data whose truth nobody knows.

The LD score objective gets no handicap: exact LD, S-LDSC weights, a free intercept, the same validation criterion, and
`refitted` figures in which scale and noise are those of maximum likelihood.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contest import (
    Contender,
    Splits,
    Truth,
    difference,
    make_blocks,
    mean_and_error,
    score,
    summary,
    train,
    whiten_regions,
)
from benchmarks.simulate import (
    Region,
    effect_variance,
    simulate_annotations,
    simulate_effects_and_trait,
    simulate_regions,
    simulate_tracks,
)

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

__all__ = ["NETWORKS", "Problem", "contenders", "draw", "measure", "simulated", "tables"]

Progress = Callable[[str, int, int], None]

SMOOTH = 4
OBJECTIVES = {"likelihood": "full likelihood", "ld-score": "LD score objective"}
NETWORKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "linear": ("log-linear", {"network": "linear"}, "table"),
    "small": ("small MLP (4)", {"network": "mlp", "hidden": (4,)}, "table"),
    "large": ("large MLP (64, 64)", {"network": "mlp", "hidden": (64, 64)}, "table"),
    "at-variant": ("large MLP, noisy value", {"network": "mlp", "hidden": (64, 64)}, "at variant"),
    "cnn": ("CNN, noisy tracks", {"network": "cnn", "width": 16, "hidden": (64, 64)}, "tracks"),
}
_REAL = ("linear", "softplus", "mlp")


@dataclass(frozen=True)
class Problem:
    """What is simulated and how it is trained.

    train, validation, test: numbers of regions.  m: variants a region.  people: whose genotypes give the LD.
    sample_size: N.  mean_c: mean of N f.  eigenvalue_floor: of the LD blocks.  seeds: each draws annotations, effects,
    noise, network and probes anew; the LD is the same.  copies: how often each training region's LD is used, with
    annotations and effects of its own each time.  features: columns of the table, all but the 8 of the truth without
    meaning.
    """

    train: int = 300
    validation: int = 60
    test: int = 60
    m: int = 300
    people: int = 2000
    sample_size: float = 1e5
    mean_c: float = 0.2
    eigenvalue_floor: float = 1e-2
    seeds: tuple[int, ...] = tuple(range(100, 106))
    learning_rates: tuple[float, ...] = (0.002, 0.006, 0.02)
    steps: int = 600
    batch_blocks: int = 8
    evaluate_every: int = 20
    patience: int = 8
    copies: int = 1
    features: int = 8

    @property
    def splits(self) -> Splits:
        """Test first, so that it stays as it is when training grows."""
        return Splits.of(self.train * self.copies, self.validation, self.test)

    def regions(self, progress: Callable[[int, int], None]) -> list[Region]:
        """Test, validation and training regions; the LD of the last repeats itself `copies` times."""
        count = self.test + self.validation + self.train
        found = simulate_regions(count, m=self.m, people=self.people, progress=progress)
        held = self.test + self.validation
        return found[:held] + found[held:] * self.copies

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of `FitOptions` common to all contenders."""
        return {k: getattr(self, k) for k in ("steps", "batch_blocks", "evaluate_every", "patience")}


QUICK = Problem(
    train=24, validation=8, test=8, m=100, people=500, seeds=(0, 1), learning_rates=(0.01,), steps=20, evaluate_every=10
)


def contenders(networks: Sequence[str] = tuple(NETWORKS)) -> dict[str, Contender]:
    """Every network under both objectives."""
    return {
        f"{network} {objective}": Contender(
            f"{NETWORKS[network][0]}, {label}",
            NETWORKS[network][1]
            | {"objective": objective, "solver": "auto" if objective == "likelihood" else "cholesky"},
            NETWORKS[network][2],
        )
        for objective, label in OBJECTIVES.items()
        for network in networks
    }


def simulated(
    problem: Problem, regions: Sequence[Region], ld: Sequence[Any], seed: int, *, tracks: bool = True
) -> Truth:
    """One seed's trait, with the table of annotations and, if asked for, noisy tracks of its smooth columns."""
    from deepwas.inputs import VariantInputs

    annotations = simulate_annotations(regions, smooth=SMOOTH, seed=seed)
    f = effect_variance(annotations, smooth=SMOOTH, mean=problem.mean_c / problem.sample_size)
    effects, z = simulate_effects_and_trait(regions, f, sample_size=problem.sample_size, seed=seed)
    table = annotations.astype(np.float32)
    if problem.features > table.shape[1]:
        rng = np.random.default_rng([seed, 4])
        empty = rng.standard_normal((len(table), problem.features - table.shape[1]), np.float32)
        table = np.hstack([table, empty])
    inputs = {"table": VariantInputs(table)}
    if tracks:
        windows = simulate_tracks(regions, smooth=SMOOTH, seed=seed)
        independent = np.ascontiguousarray(table[:, SMOOTH:])
        middle = windows[:, windows.shape[1] // 2].astype(np.float32)
        inputs["tracks"] = VariantInputs(independent, tracks=windows)
        inputs["at variant"] = VariantInputs(np.hstack([middle, independent]))
    return Truth(seed, make_blocks(ld, z, problem.sample_size), f, effects, inputs)


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Simulate, train every contender, score it on the test blocks; then the real example. Figures for JSON."""
    problem = QUICK if quick else Problem()
    import scipy.linalg  # noqa: F401  # loads the BLAS that JAX uses too, which `threadpool_limits` then finds
    from threadpoolctl import threadpool_limits

    example = _example(quick, progress)
    regions = problem.regions(lambda done, total: progress("simulating LD", done, total))
    with threadpool_limits(1, user_api="blas"):
        ld = whiten_regions(regions, problem.eigenvalue_floor, lambda done, total: progress("whitening", done, total))
        truths = [simulated(problem, regions, ld, seed) for seed in problem.seeds]
        runs = train(
            truths,
            contenders(),
            problem.splits,
            problem.settings,
            problem.learning_rates,
            lambda done, total: progress("training", done, total),
        )
        seeds = []
        for n, truth in enumerate(truths):
            seeds.append(score(truth, runs, problem.splits, regions))
            progress("scoring test blocks", n + 1, len(truths))
    k = [b.shape[0] for b in truths[0].blocks]
    return {
        "settings": asdict(problem) | {"selection": "learning rate and step of the best validation log-likelihood"},
        "problem": {
            "training_eigenvalues": int(sum(k[i] for i in problem.splits.train)),
            "mean_k": float(np.mean(k)),
            "mean_chi2": float(np.mean(np.concatenate([b.z for t in truths for b in t.blocks]) ** 2)),
            "sd_of_log_f": float(np.mean([np.std(np.log(t.f)) for t in truths])),
        },
        "contenders": {name: {"label": c.label} | summary(name, seeds) for name, c in contenders().items()},
        "comparisons": _comparisons(seeds),
        "polygenic_r2": {
            name: mean_and_error([s["polygenic_r2"][name] for s in seeds]) for name in seeds[0]["polygenic_r2"]
        },
        "example": example,
        "seeds": seeds,
        "runs": [{k: v for k, v in run.items() if k not in ("f", "noise")} for run in runs],
    }


def _comparisons(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each network against the next smaller one within an objective, and each objective against the other."""
    pairs = [
        (f"{large} {objective}", f"{small} {objective}")
        for objective in OBJECTIVES
        for small, large in (*pairwise(("linear", "small", "large")), ("linear", "large"), ("at-variant", "cnn"))
    ]
    pairs += [(f"{network} likelihood", f"{network} ld-score") for network in NETWORKS]
    return {
        f"{a} minus {b}": {kind: difference(a, b, kind, seeds) for kind in ("gain", "refitted_gain")} for a, b in pairs
    }


def _example(quick: bool, progress: Progress) -> dict[str, Any]:
    """Cross-fitted held-out gains on the embedded example, by network and objective.

    LD scores know one sample size, so both objectives are given the median, from which it differs by 5% at most.
    """
    from dataclasses import replace
    from pathlib import Path

    import polars as pl

    from deepwas.annotations import annotate
    from deepwas.demo import example_files
    from deepwas.fitting import fit
    from deepwas.ld import LDOptions, build_ld
    from deepwas.options import FitOptions
    from deepwas.sumstats import harmonise, read_sumstats

    files = example_files()
    networks = _REAL[:1] if quick else _REAL
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        store = build_ld(files["genotypes"], Path(folder) / "ld.h5", LDOptions(build="GRCh37"))
        annotations = annotate(store.variants, genes=files["genes"], genetic_map=files["genetic_map"])
        gwas = read_sumstats(files["sumstats"], build="GRCh37")
        trait = harmonise(
            gwas,
            store.variants,
            n_panel=store.n_samples,
            genome_build=store.genome_build,
            store_checksum=store.checksum,
        )
        trait = replace(trait, frame=trait.frame.with_columns(N=pl.col("N").median()))
        todo = [(network, objective) for objective in OBJECTIVES for network in networks]
        for n, (network, objective) in enumerate(todo):
            options = FitOptions(network=network, objective=objective)  # type: ignore[arg-type]
            if quick:
                options = replace(options, steps=10)
            found = fit(store, trait, annotations, options=options).record["held_out"]["cross_fitted"]
            out[f"{network} {objective}"] = {k: found[k] for k in ("gain", "standard_error", "gain_by_block")}
            progress("the real example", n + 1, len(todo))
        store.close()
    return out


def _pm(figure: Mapping[str, float], digits: int = 2) -> str:
    return f"{figure['mean']:.{digits}f} ± {figure['standard_error']:.{digits}f}"


def tables(figures: dict[str, Any]) -> list[Table]:
    """The figures as tables: contenders, paired differences, calibration, the example."""
    from rich.table import Table

    gain = Table(title="Held-out log-likelihood over the constant prior's, nats a test block (± standard error)")
    for heading in ("prior", "gain", "share of oracle", "share, refitted", "r(log f)", "polygenic R2", "rate", "step"):
        gain.add_column(heading)
    r2 = figures["polygenic_r2"]
    gain.add_row("constant", "0", "0", "0", "-", _pm(r2["constant"], 4), "-", "-")
    for name, found in figures["contenders"].items():
        gain.add_row(
            found["label"],
            _pm(found["gain"]["over_seeds"]),
            _pm(found["gain"]["share_of_oracle"], 3),
            _pm(found["refitted_gain"]["share_of_oracle"], 3),
            _pm(found["correlation_with_truth"], 3),
            _pm(r2[name], 4),
            " ".join(f"{x:g}" for x in sorted(set(found["learning_rates"]))),
            f"{np.median(found['steps']):.0f}",
        )
    first = next(iter(figures["contenders"].values()))
    gain.add_row("oracle (true f)", _pm(first["oracle_gain"]), "1", "1", "1", _pm(r2["oracle"], 4), "-", "-")
    paired = Table(title="Paired differences, nats a test block (± standard error over seeds)")
    for heading in ("difference", "as trained", "SE from 0", "refitted", "SE from 0"):
        paired.add_column(heading)
    for name, found in figures["comparisons"].items():
        cells = []
        for kind in ("gain", "refitted_gain"):
            cells += [_pm(found[kind]["over_seeds"], 3), f"{found[kind]['standard_errors_from_zero']:+.1f}"]
        paired.add_row(name, *cells)
    deciles = Table(title="Mean true f over mean predicted f, by decile of predicted f, lowest first")
    deciles.add_column("prior")
    for d in range(1, 11):
        deciles.add_column(str(d))
    for found in figures["contenders"].values():
        deciles.add_row(found["label"], *(f"{x['mean']:.2f}" for x in found["calibration"]))
    example = Table(title="Embedded example (height, chr22): cross-fitted held-out gain, nats (± standard error)")
    for heading in ("network, objective", "gain"):
        example.add_column(heading)
    for name, found in figures["example"].items():
        example.add_row(name, f"{found['gain']:+.1f} ± {found['standard_error']:.1f}")
    return [gain, paired, deciles, example]


def draw(figures: dict[str, Any], path: Path) -> None:
    """Three panels: share of the oracle's gain by network and objective, calibration, polygenic score."""
    from matplotlib.figure import Figure

    colours = {"likelihood": "#0072b2", "ld-score": "#d55e00"}
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    share, deciles, scores = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    places = np.arange(len(NETWORKS))
    names = [NETWORKS[n][0].replace(", ", ",\n").replace(" (", "\n(") for n in NETWORKS]
    for shift, objective in ((-0.15, "likelihood"), (0.15, "ld-score")):
        found = [figures["contenders"][f"{n} {objective}"] for n in NETWORKS]
        for kind, marker, face in (("gain", "o", colours[objective]), ("refitted_gain", "s", "white")):
            centre = [x[kind]["share_of_oracle"]["mean"] for x in found]
            error = [x[kind]["share_of_oracle"]["standard_error"] for x in found]
            at = places + shift + (0.06 if kind == "refitted_gain" else -0.06)
            label = OBJECTIVES[objective] + (", scale and noise refitted" if kind == "refitted_gain" else "")
            share.errorbar(
                at, centre, error, fmt=marker, color=colours[objective], mfc=face, ms=6, capsize=3, label=label
            )
        r2 = [figures["polygenic_r2"][f"{n} {objective}"] for n in NETWORKS]
        scores.errorbar(
            places + shift, [x["mean"] for x in r2], [x["standard_error"] for x in r2], fmt="o",
            color=colours[objective], capsize=3, label=OBJECTIVES[objective],
        )  # fmt: skip
    share.axhline(0, color="0.6", lw=0.8)
    share.axhline(1, color="0.6", lw=0.8, ls="--")
    share.set_xticks(places, names, fontsize=8)
    share.set_ylabel("share of the oracle's held-out gain")
    share.set_title("Held-out log-likelihood (0: constant prior, 1: true f)", fontsize=10)
    share.legend(frameon=False, fontsize=7.5)
    for name, style in (("large likelihood", "-"), ("cnn likelihood", "--"), ("linear likelihood", ":"),
                        ("large ld-score", "-")):  # fmt: skip
        found = figures["contenders"][name]
        values = [x["mean"] for x in found["calibration"]]
        deciles.plot(
            range(1, 11), values, style, marker="o", ms=3, color=colours[name.split(" ", 1)[1]], label=found["label"]
        )
    deciles.axhspan(0.85, 1.15, color="0.92", zorder=0)
    deciles.axhline(1, color="0.6", lw=0.8)
    deciles.set_yscale("log")
    deciles.set_xlabel("decile of predicted f")
    deciles.set_ylabel("mean true f / mean predicted f")
    deciles.set_title("Calibration (band: 15%)", fontsize=10)
    deciles.legend(frameon=False, fontsize=7.5)
    for name, style in (("oracle", "--"), ("constant", ":")):
        scores.axhline(figures["polygenic_r2"][name]["mean"], color="0.4", ls=style, lw=1, label=name)
    scores.set_xticks(places, names, fontsize=8)
    scores.set_ylabel("R2 with the genetic value, test regions")
    scores.set_title("Polygenic score of posterior means", fontsize=10)
    low, _ = scores.get_ylim()
    oracle = figures["polygenic_r2"]["oracle"]["mean"]
    scores.set_ylim(low, oracle + 0.35 * (oracle - low))  # room for the legend above the line
    scores.legend(frameon=False, fontsize=7.5, loc="upper right")
    figure.savefig(path, format="png", dpi=110)
