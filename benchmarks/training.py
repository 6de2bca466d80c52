"""Training through CG, through Cholesky, and by the LD score objective, on one problem whose truth is known.

Every contender is the same network, starts from the same constant prior, sees the same training blocks in the same
order, and is given the same learning rates to choose from; learning rate and stopping step are those with the best
validation log-likelihood, for the LD score objective too. They differ only in what they maximise and how it is solved.
Test blocks are independent regions that neither training nor selection saw, and their log-likelihood is exact (float64,
by eigendecomposition) whatever trained the network.

The LD score objective gets no handicap: exact LD (so its adjustment of r^2 is for an infinite panel), S-LDSC weights,
a free intercept; and `refitted` gives every contender the maximum-likelihood scale and noise on its training blocks,
which leaves only the shape of the prior to be compared.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contest import Contender, Splits, Truth, difference, make_blocks, score, summary, train, whiten_regions
from benchmarks.simulate import (
    Region,
    effect_variance,
    simulate_annotations,
    simulate_effects_and_trait,
    simulate_regions,
)

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table


__all__ = ["draw", "measure", "tables"]

Progress = Callable[[str, int, int], None]

SMOOTH = 4
METHODS = {
    "cg": {"objective": "likelihood", "solver": "cg"},
    "cholesky": {"objective": "likelihood", "solver": "cholesky"},
    "ld-score": {"objective": "ld-score", "solver": "cholesky"},
}
LABELS = {"cg": "likelihood, CG", "cholesky": "likelihood, Cholesky", "ld-score": "LD score objective"}


@dataclass(frozen=True)
class Problem:
    """What is simulated and how it is trained.

    train, validation, test: numbers of regions.  m: variants a region.  people: whose genotypes give the LD.
    sample_size: N.  mean_c: mean of N f.  eigenvalue_floor: of the LD blocks.  seeds: each draws annotations, effects,
    noise, network and probes anew; the LD is the same.  timing: (m, blocks in a batch) of the speed comparison.
    """

    train: int = 100
    validation: int = 20
    test: int = 40
    m: int = 300
    people: int = 2000
    sample_size: float = 1e5
    mean_c: float = 0.2
    eigenvalue_floor: float = 1e-2
    seeds: tuple[int, ...] = tuple(range(6, 18))  # 0 to 5 sized the problem, so the figures come from others
    learning_rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    hidden: tuple[int, ...] = (32, 32)
    steps: int = 240
    batch_blocks: int = 8
    evaluate_every: int = 10
    patience: int = 6
    timing: tuple[tuple[int, int], ...] = ((300, 8), (1000, 2), (2000, 1))

    @property
    def regions(self) -> int:
        """Regions in all."""
        return self.train + self.validation + self.test


QUICK = Problem(
    train=24,
    validation=8,
    test=8,
    m=100,
    people=500,
    seeds=(0, 1),
    learning_rates=(0.01,),
    steps=40,
    timing=((100, 8),),
)


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Simulate, train every contender, and score it on the test blocks. Returns the figures, ready for JSON."""
    problem = QUICK if quick else Problem()
    import scipy.linalg  # noqa: F401  # loads the BLAS that JAX uses too, which `threadpool_limits` then finds
    from threadpoolctl import threadpool_limits

    progress("timing", 0, 1)
    timing = _timing_on_one_core(problem)
    progress("timing", 1, 1)
    regions = simulate_regions(
        problem.regions,
        m=problem.m,
        people=problem.people,
        progress=lambda done, total: progress("simulating LD", done, total),
    )
    with threadpool_limits(1, user_api="blas"):
        truths = _truths(problem, regions)
        splits = Splits.of(problem.train, problem.validation, problem.test)
        common = {k: getattr(problem, k) for k in ("hidden", "steps", "batch_blocks", "evaluate_every", "patience")}
        contenders = {name: Contender(LABELS[name], how, "annotations") for name, how in METHODS.items()}
        runs = train(
            truths,
            contenders,
            splits,
            common,
            problem.learning_rates,
            lambda done, total: progress("training", done, total),
        )
        seeds = []
        for n, truth in enumerate(truths):
            progress("scoring test blocks", n, len(truths))
            seeds.append(score(truth, runs, splits))
    progress("scoring test blocks", len(truths), len(truths))
    return {
        "settings": asdict(problem) | {"selection": "learning rate and step of the best validation log-likelihood"},
        "problem": _described(truths),
        "contenders": {name: summary(name, seeds) for name in METHODS},
        "comparisons": {
            f"{a} minus {b}": {kind: difference(a, b, kind, seeds) for kind in ("gain", "refitted_gain")}
            for a, b in (("cg", "cholesky"), ("cg", "ld-score"), ("cholesky", "ld-score"))
        },
        "timing": timing,
        "seeds": seeds,
        "runs": [{k: v for k, v in run.items() if k not in ("f", "noise")} for run in runs],
    }


def _truths(problem: Problem, regions: Sequence[Region]) -> list[Truth]:
    """One trait, annotations and truth per seed, on the same LD."""
    from deepwas.inputs import VariantInputs

    ld = whiten_regions(regions, problem.eigenvalue_floor)
    truths = []
    for seed in problem.seeds:
        annotations = simulate_annotations(regions, smooth=SMOOTH, seed=seed)
        f = effect_variance(annotations, smooth=SMOOTH, mean=problem.mean_c / problem.sample_size)
        effects, z = simulate_effects_and_trait(regions, f, sample_size=problem.sample_size, seed=seed)
        inputs = {"annotations": VariantInputs(annotations.astype(np.float32))}
        truths.append(Truth(seed, make_blocks(ld, z, problem.sample_size), f, effects, inputs))
    return truths


def _described(truths: Sequence[Truth]) -> dict[str, Any]:
    """The size of the problem and what a perfect prior would gain."""
    blocks = [b for t in truths for b in t.blocks]
    kept = sum(float(np.sum(np.asarray(b.factor, np.float64) ** 2)) for b in blocks)
    return {
        "mean_m": float(np.mean([b.factor.shape[1] for b in blocks])),
        "mean_k": float(np.mean([b.factor.shape[0] for b in blocks])),
        "share_of_trace_kept": kept / sum(b.factor.shape[1] for b in blocks),
        "mean_chi2": float(np.mean(np.concatenate([b.z for b in blocks]) ** 2)),
        "sd_of_log_f": float(np.mean([np.std(np.log(t.f)) for t in truths])),
        "largest_c": float(max((t.f * t.blocks[0].sample_size).max() for t in truths)),
    }


def _timing_on_one_core(problem: Problem) -> list[dict[str, Any]]:
    """`_timing` in a process of its own that is held to one core where the system can do that.

    The two solvers use threads differently, and threaded LAPACK slows down many times when other work holds a core.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_hold_to_one_core) as pool:
        return pool.submit(_timing, problem).result()


def _hold_to_one_core() -> None:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _timing(problem: Problem, *, repeats: int = 15) -> list[dict[str, Any]]:
    """Milliseconds a block for the value and gradient of one batch under the true prior, CG and Cholesky in turn.

    float32, 16 probes and rtol 1e-2 as in training. The shortest of `repeats`, which other work on the machine disturbs
    least, and the ratio: it is what carries over to other machines.
    """
    import jax
    import jax.numpy as jnp

    from deepwas.training.objective import Solve, likelihood_terms
    from deepwas.training.packing import Bucket, pack_blocks

    out = []
    for m, batch in problem.timing:
        regions = simulate_regions(batch, m=m, people=problem.people, seed=1)
        sized = Problem(m=m, people=problem.people, mean_c=problem.mean_c * problem.m / m, seeds=(0,))
        truth = _truths(sized, regions)[0]
        bucket = jax.tree.map(jnp.asarray, pack_blocks(truth.blocks, max_shapes=1)[0])
        padded = np.full((batch, bucket.shape[1]), -100.0, np.float32)
        for row, member in enumerate(np.asarray(bucket.member)):
            f = truth.f[truth.blocks[int(member)].rows]
            padded[row, : len(f)] = np.log(f)
        log_f, noise = jnp.asarray(padded), jnp.asarray(1.0, jnp.float32)

        def loss(log_f: Any, bucket: Bucket, noise: Any, solve: Solve) -> Any:
            values, residual = likelihood_terms(bucket, jnp.exp(log_f), noise, jax.random.key(0), solve)
            return jnp.sum(values), jnp.max(residual)

        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnames="solve")
        steps = {name: partial(gradient, log_f, bucket, noise, solve=Solve(name)) for name in ("cg", "cholesky")}
        found = {name: jax.block_until_ready(step()) for name, step in steps.items()}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(repeats):
            for name, step in steps.items():
                begun = time.perf_counter()
                jax.block_until_ready(step())
                seconds[name].append(time.perf_counter() - begun)
        cg, cholesky = (1e3 * min(seconds[x]) / batch for x in ("cg", "cholesky"))
        exact = np.asarray(found["cholesky"][1])
        out.append(
            {
                "m": m,
                "k": bucket.shape[0],
                "blocks": batch,
                "cg_ms_a_block": cg,
                "cholesky_ms_a_block": cholesky,
                "cholesky_over_cg": cholesky / cg,
                "cg_residual": float(found["cg"][0][1]),
                "cg_gradient_relative_error": float(
                    np.linalg.norm(np.asarray(found["cg"][1]) - exact) / np.linalg.norm(exact)
                ),
            }
        )
    return out


def _pm(figure: dict[str, float], digits: int = 2) -> str:
    return f"{figure['mean']:.{digits}f} ± {figure['standard_error']:.{digits}f}"


def tables(figures: dict[str, Any]) -> list[Table]:
    """The figures as tables: contenders, paired differences, speed."""
    from rich.table import Table

    gain = Table(title="Held-out log-likelihood over the constant prior's, nats a test block (± standard error)")
    for heading in (
        "prior", "over blocks", "over seeds", "share of oracle", "share, refitted", "r(log f)", "rate (seeds)", "step"
    ):  # fmt: skip
        gain.add_column(heading)
    first = next(iter(figures["contenders"].values()))
    gain.add_row("constant", "0", "0", "0", "0", "-", "-", "-")
    for name, found in figures["contenders"].items():
        gain.add_row(
            LABELS[name],
            _pm(found["gain"]["over_blocks"]),
            _pm(found["gain"]["over_seeds"]),
            _pm(found["gain"]["share_of_oracle"], 3),
            _pm(found["refitted_gain"]["share_of_oracle"], 3),
            _pm(found["correlation_with_truth"], 3),
            ", ".join(f"{x:g} ({n})" for x, n in sorted(Counter(found["learning_rates"]).items())),
            f"{np.median(found['steps']):.0f} (median)",
        )
    gain.add_row("oracle (true f)", _pm(first["oracle_gain"]), "", "1", "1", "1", "-", "-")
    paired = Table(title="Paired differences, nats a test block (± standard error)")
    for heading in (
        "difference",
        "over blocks",
        "over seeds",
        "share of oracle",
        "SE from 0",
        "refitted, over blocks",
        "over seeds",
    ):
        paired.add_column(heading)
    for name, found in figures["comparisons"].items():
        own, refitted = found["gain"], found["refitted_gain"]
        paired.add_row(
            name,
            _pm(own["over_blocks"], 3),
            _pm(own["over_seeds"], 3),
            f"{own['share_of_oracle']:+.3f}",
            f"{own['standard_errors_from_zero']:+.1f}",
            _pm(refitted["over_blocks"], 3),
            _pm(refitted["over_seeds"], 3),
        )
    speed = Table(title="Value and gradient, milliseconds a block on one core (shortest of 15)")
    for heading in ("m", "k", "CG", "Cholesky", "Cholesky / CG", "gradient error of CG"):
        speed.add_column(heading)
    for row in figures["timing"]:
        times = [f"{row[x]:.2f}" for x in ("cg_ms_a_block", "cholesky_ms_a_block", "cholesky_over_cg")]
        speed.add_row(str(row["m"]), str(row["k"]), *times, f"{row['cg_gradient_relative_error']:.3f}")
    return [gain, paired, speed]


def draw(figures: dict[str, Any], path: Path) -> None:
    """Three panels: share of the oracle's gain by seed, validation gain by learning rate, and speed by block size."""
    from matplotlib.figure import Figure

    colours = {"cg": "#0072b2", "cholesky": "#009e73", "ld-score": "#d55e00"}
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    share, rates, speed = figure.subplots(1, 3, width_ratios=(1.1, 1, 1))
    for x, (name, found) in enumerate(figures["contenders"].items()):
        for shift, kind, marker in ((-0.14, "gain", "o"), (0.14, "refitted_gain", "s")):
            centre, points = found[kind]["share_of_oracle"], found[kind]["share_of_oracle_by_seed"]
            share.plot(np.full(len(points), x + shift), points, marker, ms=4, color=colours[name], alpha=0.4, mew=0)
            share.errorbar(
                x + shift, centre["mean"], centre["standard_error"], fmt=marker, ms=7, color=colours[name], capsize=4,
                label={"gain": "as trained", "refitted_gain": "scale and noise refitted"}[kind] if x == 0 else None,
            )  # fmt: skip
    share.axhline(0, color="0.6", lw=0.8)
    share.set_xlim(-0.5, len(METHODS) - 0.5)
    share.set_ylim(top=share.get_ylim()[1] * 1.3)
    share.set_xticks(range(len(METHODS)), ["likelihood,\nCG", "likelihood,\nCholesky", "LD score\nobjective"])
    share.set_ylabel("share of the oracle's held-out gain")
    share.set_title("Test blocks: mean ± SE over seeds, each seed pale", fontsize=10)
    share.legend(frameon=False, fontsize=8, loc="upper right")
    grid = figures["settings"]["learning_rates"]
    for name in METHODS:
        own = [[r["validation_gain"] for r in figures["runs"] if (r["contender"], r["learning_rate"]) == (name, rate)]
               for rate in grid]  # fmt: skip
        rates.plot(grid, np.mean(own, axis=1), "o-", color=colours[name], label=LABELS[name])
    rates.set_xscale("log")
    rates.set_xticks(grid, [f"{x:g}" for x in grid])
    rates.minorticks_off()
    rates.set_xlabel("peak learning rate")
    rates.set_ylabel("validation gain, nats (mean over seeds)")
    rates.set_title("Selection: best step at each rate", fontsize=10)
    rates.legend(frameon=False, fontsize=8)
    sizes = [f"m {r['m']:,}\nk {r['k']:,}" for r in figures["timing"]]
    for name in ("cg", "cholesky"):
        times = [r[f"{name}_ms_a_block"] for r in figures["timing"]]
        speed.plot(range(len(sizes)), times, "o-", color=colours[name], label=LABELS[name].split(", ")[1])
    for x, row in enumerate(figures["timing"]):
        top = max(row["cg_ms_a_block"], row["cholesky_ms_a_block"])
        speed.annotate(f"{row['cholesky_over_cg']:.1f}×", (x, top), (-7, 3), textcoords="offset points", ha="right")
    speed.set_yscale("log")
    speed.margins(x=0.2, y=0.2)
    speed.set_xticks(range(len(sizes)), sizes)
    speed.set_ylabel("ms a block, value and gradient, one core")
    speed.set_title("Cost (labels: Cholesky / CG)", fontsize=10)
    speed.legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path, format="png", dpi=110)
