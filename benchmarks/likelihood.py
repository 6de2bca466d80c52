"""What one value and gradient of the likelihood costs, by every way to compute it, and how far it is from the truth.

LD is that of a long region simulated by the coalescent; windows of m variants are its first m. In one setting all of a
window's variants are scored, in the other the third in the middle, the rest being flanks. The prior is steep (its
logarithm spans 8) and its mean is that of a trait like height. Whitened contenders work with k eigen-directions,
chosen by one of three rules; their gradient errors are relative to the exact gradient with the same directions, and
also to the dense reference, which truncates nothing. Times of one window are interleaved, so ratios hold within a run.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import contenders
from benchmarks.likelihood_report import acceptance, draw, tables
from benchmarks.machine import THREADS, exponent, interleaved, measure_machine, read_bandwidth
from benchmarks.simulate import Panel, effect_variance, simulate_annotations, simulate_panel

if TYPE_CHECKING:
    from deepwas.ld import LDBlock

__all__ = ["draw", "measure", "tables"]

Progress = Callable[[str, int, int], None]

GENOME = 2.9e9  # base pairs over which the heritability is spread
AMORTISED_OVER = 100  # steps
_FLOOR = 1e-4
_SMOOTH = 4


@dataclass(frozen=True)
class Problem:
    """What is measured.

    sizes: m of the windows.  people: whose genotypes give the LD.  sample_size, heritability: of the trait; their
    product spread over the genome, at the density of the simulated variants, is the mean of c = N f.
    probes, steps, rank: of CG.  keys: draws of the probes that gradient errors are averaged over.
    columns: right-hand sides of the iteration held against the machine's rates; 16 are a fit's, 15 probes and the data.
    most_k: directions kept at most.  *_up_to: largest m at which the dense references, autodiff of them, and the
    whitening from R are run.  rounds: turns of the timing.  growth_*: sizes of the sweeps, the fixed size last.
    """

    sizes: tuple[int, ...] = (500, 1000, 2000, 4000, 8000, 12000)
    people: int = 3000
    sample_size: float = 454_000
    heritability: float = 0.5
    probes: int = 11
    steps: int = 5
    rank: int = 0
    columns: int = 16
    keys: int = 20
    rules: tuple[str, ...] = ("store", "99%", "most")
    most_k: int = 2000
    dense_up_to: int = 8000
    autodiff_up_to: int = 2000
    whiten_up_to: int = 8000
    rounds: int = 3
    growth_m: tuple[int, ...] = (1500, 3000, 6000, 12000)
    growth_k: tuple[int, ...] = (250, 500, 1000, 2000)
    growth_fixed: tuple[int, int] = (1000, 6000)
    growth_blocks: tuple[int, ...] = (1, 2, 4, 8, 16)
    growth_block: tuple[int, int] = (304, 648)
    growth_probes: tuple[int, ...] = (3, 7, 15, 31)
    seed: int = 0

    @property
    def cg(self) -> dict[str, int]:
        """The settings of CG."""
        return {"probes": self.probes, "steps": self.steps, "rank": self.rank}


QUICK = Problem(
    sizes=(200,),
    people=300,
    keys=3,
    rules=("99%",),
    rounds=1,
    growth_m=(100, 200),
    growth_k=(20, 40),
    growth_fixed=(40, 200),
    growth_blocks=(1, 4),
    growth_block=(48, 104),
    growth_probes=(7, 15),
)


def _threads(name: str) -> None:
    """BLAS threads of a contender: both, but one for CG, as in training, and for the second try of Cholesky.

    XLA's own products run on all cores whatever this is. It calls LAPACK from its own threads, which more threads of
    BLAS can slow down many times.
    """
    from threadpoolctl import threadpool_limits

    threadpool_limits(1 if name.startswith(("cg", "one_thread")) else THREADS)


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """Simulate, compute by every contender, and time them. Returns the figures, ready for JSON."""
    import scipy.linalg  # noqa: F401  # loads its BLAS, which `threadpool_limits` then finds
    from threadpoolctl import threadpool_limits

    problem = QUICK if quick else Problem()
    with threadpool_limits(THREADS):
        progress("machine's own rates", 0, 1)
        machine = measure_machine(quick)
        progress("machine's own rates", 1, 1)
        panel, c = _simulated(problem)
        cases, iterations = [], []
        settings = [(m, scored) for m in problem.sizes for scored in ("all", "third")]
        for number, (m, scored) in enumerate(settings):
            progress("windows", number, len(settings))
            figures, base = _window(problem, panel.leading(m), c[:m], scored)
            cases.append(figures)
            if scored == "all":
                for row in figures["truncations"]:
                    iterations.append(_iteration(base.factor[: row["k"]], c[:m], problem.columns, machine))
                largest = base.factor[: figures["truncations"][-1]["k"]]
        progress("windows", len(settings), len(settings))
        growth = _growth(problem, largest, c, progress)
    found = {
        "settings": asdict(problem) | {"mean_c": float(c.mean()), "ridge_of_dense": contenders.RIDGE},
        "machine": machine,
        "windows": cases,
        "iterations": iterations,
        "growth": growth,
    }
    return found | {"acceptance": acceptance(found)}


def _simulated(problem: Problem) -> tuple[Panel, NDArray[np.float64]]:
    """The largest window's genotypes, and c = N f of its variants."""
    panel = simulate_panel(max(problem.sizes), people=problem.people, seed=problem.seed)
    density = panel.m / np.ptp(panel.position)
    annotations = simulate_annotations([panel], smooth=_SMOOTH, seed=problem.seed)
    mean = problem.heritability / (density * GENOME)
    return panel, problem.sample_size * effect_variance(annotations, smooth=_SMOOTH, mean=mean)


def _window(problem: Problem, panel: Panel, c: NDArray[np.float64], scored: str) -> tuple[dict[str, Any], LDBlock]:
    """Every contender on one window: figures, and the block with all its directions."""
    m = panel.m
    place = np.arange(m)
    mask = np.ones(m, bool) if scored == "all" else (place >= m // 3) & (place < 2 * m // 3)
    z = panel.z_scores(c / problem.sample_size, sample_size=problem.sample_size, seed=problem.seed)
    R = panel.region().correlation if m <= max(problem.dense_up_to, problem.whiten_up_to) else None
    base, whitening = _whitened(problem, panel, R, mask)
    figures: dict[str, Any] = {"m": m, "s": int(mask.sum()), "scored": scored, "whitening_seconds": whitening}
    calls: dict[str, contenders.Contender] = {}
    if R is not None and m <= problem.dense_up_to:
        window = contenders.Window(R, mask, z, c)
        calls["dense"] = contenders.dense(window, full=True)
        calls["dense_scored"] = contenders.dense(window, full=False)
        calls["ld_score"] = contenders.ld_score(window, problem.people)
        if m <= problem.autodiff_up_to:
            calls["autodiff"] = contenders.autodiff(window)
    figures["references"] = {name: _reference(call) for name, call in calls.items()}
    gradients = {name: reference.pop("gradient") for name, reference in figures["references"].items()}
    dense_gradient = gradients.get("dense")
    rows: list[dict[str, Any]] = []
    for rule, k in _kept(problem, base).items():
        found = next((x for x in rows if x["k"] == k), None)
        if found is None:
            found, own = _truncation(problem, base, k, z[mask], c, dense_gradient)
            calls |= {f"{name}:{k}": call for name, call in own.items()}
        rows.append({name: dict(x) if isinstance(x, dict) else x for name, x in found.items()} | {"rule": rule})
    seconds = interleaved({name: call.run for name, call in calls.items()}, rounds=problem.rounds, before=_threads)
    milliseconds = {name: 1e3 * float(np.median(found)) for name, found in seconds.items()}
    for name, reference in figures["references"].items():
        reference["ms"] = milliseconds[name]
    for row in rows:
        for name in ("cg", "cholesky", "cola"):
            row[name]["ms"] = milliseconds[f"{name}:{row['k']}"]
        one, both = milliseconds[f"one_thread_cholesky:{row['k']}"], row["cholesky"]["ms"]
        row["cholesky"] |= {"ms": min(one, both), "ms_one_blas_thread": one, "ms_both": both}
    return figures | {"truncations": rows}, base


def _whitened(
    problem: Problem, panel: Panel, R: NDArray[np.float64] | None, mask: NDArray[np.bool_]
) -> tuple[LDBlock, dict[str, float | None]]:
    """The block of all directions above the floor, float64, and the seconds it took from R and from the genotypes."""
    from deepwas.ld import LDBlock

    seconds: dict[str, float | None] = {"from_correlation": None, "from_genotypes": None}
    block = None
    if R is not None and panel.m <= problem.whiten_up_to:
        begun = time.perf_counter()
        block = LDBlock.from_correlation(R, mask, _FLOOR, dtype=np.float64)
        seconds["from_correlation"] = time.perf_counter() - begun
    if block is None or mask.sum() > problem.people:
        X = panel.genotypes.T
        begun = time.perf_counter()
        block = LDBlock.from_genotypes(X, mask, _FLOOR, dtype=np.float64)
        seconds["from_genotypes"] = time.perf_counter() - begun
    return block, seconds


def _kept(problem: Problem, base: LDBlock) -> dict[str, int]:
    """Directions kept by the store's default rule, for 99% of the variance, and as many as there are."""
    from deepwas.ld import eigenvalue_floor

    values = base.eigenvalues
    share = np.cumsum(values) / base.s
    rules = {
        "store": int((values > eigenvalue_floor(base.s, problem.people)).sum()),
        "99%": int(np.searchsorted(share, 0.99)) + 1,
        "most": len(values),
    }
    return {rule: max(2, min(rules[rule], problem.most_k, len(values))) for rule in problem.rules}


def _reference(call: contenders.Contender) -> dict[str, Any]:
    """Value, gradient and peak memory of a contender's first call, which warms it up too."""
    if call.memory is None:
        tracemalloc.start()
        value, gradient = call.run()[:2]
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    else:
        value, gradient = call.run()[:2]
        memory = call.memory
    return {"value": float(value), "memory_bytes": int(memory), "gradient": np.asarray(gradient, np.float64)}


def _truncation(
    problem: Problem,
    base: LDBlock,
    k: int,
    z: NDArray[np.float64],
    c: NDArray[np.float64],
    dense_gradient: NDArray[np.float64] | None,
) -> tuple[dict[str, Any], dict[str, contenders.Contender]]:
    """The whitened contenders with k directions: errors, memory, and what is to be timed."""
    import jax

    from deepwas.ld import LDBlock

    share = np.cumsum(base.eigenvalues) / base.eigenvalues.sum()
    block = base.leading(min(float(share[k - 1]), 1.0))
    G, y = block.factor, block.whiten(z)
    value, gradient, d_noise, deviation = contenders.exact(G, y, c, 1.0)
    _threads("cg")
    run, memory = contenders.whitened(G, y, c, 1.0, "cg", **problem.cg)
    keys = jax.random.split(jax.random.key(problem.seed), problem.keys)
    drawn = [run(key) for key in keys]
    estimates = [np.asarray(x[1], np.float64) for x in drawn]
    deviations = [(float(x[0]) - value) / float(x[3]) for x in drawn]
    own: dict[str, Any] = {
        "memory_bytes": memory,
        "value": float(drawn[0][0]),
        "standard_error": float(drawn[0][3]),
        "value_rms_error_in_standard_errors": float(np.sqrt(np.mean(np.square(deviations)))),
        "gradient_error": _mean_error(estimates, gradient),
        "noise_gradient_error": float(np.mean([abs(float(x[2]) - d_noise) for x in drawn]) / deviation),
        "gradient_error_untruncated": None if dense_gradient is None else _mean_error(estimates, dense_gradient),
    }
    _threads("cholesky")
    exact_run, exact_memory = contenders.whitened(G, y, c, 1.0, "cholesky")
    found = exact_run()
    by_cholesky = {
        "memory_bytes": exact_memory,
        "value": float(found[0]),
        "gradient_error": _mean_error([np.asarray(found[1], np.float64)], gradient),
    }
    single = LDBlock(G.astype(np.float32), block.whitener.astype(np.float32), block.eigenvalues, block.scored)
    theirs = contenders.cola(single, y, c, 1.0, probes=problem.probes, steps=problem.steps)
    by_cola = {
        "memory_bytes": theirs.memory,
        "gradient_error": _mean_error([np.asarray(theirs.run()[1], np.float64)], gradient),
    }
    row = {
        "k": k,
        "variance_kept": float(block.eigenvalues.sum() / block.s),
        "exact_value": value,
        "truncation_error": None if dense_gradient is None else _mean_error([gradient], dense_gradient),
        "cg": own,
        "cholesky": by_cholesky,
        "cola": by_cola,
    }
    return row, {
        "cg": contenders.Contender(run),
        "cholesky": contenders.Contender(exact_run),
        "one_thread_cholesky": contenders.Contender(exact_run),
        "cola": theirs,
    }


def _mean_error(estimates: list[NDArray[np.float64]], truth: NDArray[np.float64]) -> float:
    """Mean of ||g - g*|| / ||g*||."""
    return float(np.mean([np.linalg.norm(g - truth) for g in estimates]) / np.linalg.norm(truth))


def _iteration(G: NDArray[np.float64], c: NDArray[np.float64], columns: int, machine: dict[str, Any]) -> dict[str, Any]:
    """The matrix work of one CG step, G diag(c) G^T x with x (k, columns), against the machine's rates.

    Bytes are one reading of G, the least possible; operations 4 k m columns. The bound is whichever takes longer: bytes
    at the measured copy bandwidth, or operations at the measured rate of square products (the faster library's). Where
    G fits a cache, the bandwidth of reading an array of G's size is the one that binds.
    """
    import jax
    import jax.numpy as jnp

    from deepwas.likelihood.factor import Factor
    from deepwas.likelihood.products import expand, project

    repeats = 8
    k, m = G.shape
    factor = Factor.of(jnp.asarray(G, jnp.float32)[None])
    start = jax.random.normal(jax.random.key(0), (1, k, columns), jnp.float32)
    weight = jnp.asarray(c / (c.max() * np.square(G).sum(axis=1).max()), jnp.float32)[None, None]

    @jax.jit
    def many(start: Any, factor: Any, weight: Any) -> Any:
        def once(_: Any, x: Any) -> Any:
            return start + expand(project(x, factor) * weight, factor)

        return jax.lax.fori_loop(0, repeats, once, start)

    def call() -> Any:
        return jax.block_until_ready(many(start, factor, weight))

    call()
    seconds = float(np.median(interleaved({"": call}, rounds=3)[""])) / repeats
    size, operations = 4 * k * m, 4 * k * m * columns
    rate = max(value for name, value in machine["matmul_gflop_s"].items() if name.endswith("float32"))
    resident = read_bandwidth(size) if machine["backend"] == "cpu" else machine["copy_gb_s"]
    by_rate = operations / rate * 1e-9
    bound, resident_bound = (max(size / x * 1e-9, by_rate) for x in (machine["copy_gb_s"], resident))
    return {
        "m": m,
        "k": k,
        "columns": columns,
        "ms": 1e3 * seconds,
        "gb_s": 1e-9 * size / seconds,
        "gflop_s": 1e-9 * operations / seconds,
        "read_gb_s_at_this_size": resident,
        "bound_by": "operations" if bound == by_rate else "bytes",
        "share_of_bound": bound / seconds,
        "share_of_bound_in_cache": resident_bound / seconds,
    }


def _growth(
    problem: Problem, directions: NDArray[np.float64], c: NDArray[np.float64], progress: Progress
) -> dict[str, dict[str, Any]]:
    """Seconds against m, k, blocks and probes, the rest held, and fitted exponents.

    Parts of one window's G serve; one thread of BLAS.
    """
    G = directions.astype(np.float32)
    k_fixed, m_fixed = (min(x) for x in zip(problem.growth_fixed, G.shape, strict=True))

    @cache
    def one(k: int, m: int, solver: str, probes: int) -> Callable[[], Any]:
        settings = problem.cg | {"probes": probes} if solver == "cg" else {}
        return contenders.whitened(G[:k, :m], np.ones(k), c[:m], 1.0, solver, **settings)[0]

    def within(sizes: tuple[int, ...], most: int) -> tuple[int, ...]:
        return tuple(x for x in sizes if x <= most)

    sweeps: dict[str, dict[int, Callable[[], Any]]] = {}
    for solver in ("cg", "cholesky"):
        rest = (solver, problem.probes)
        sweeps[f"m ({solver})"] = {m: partial(one, k_fixed, m, *rest) for m in within(problem.growth_m, G.shape[1])}
        sweeps[f"k ({solver})"] = {k: partial(one, k, m_fixed, *rest) for k in within(problem.growth_k, len(G))}
    sweeps["probes (cg)"] = {p: partial(one, k_fixed, m_fixed, "cg", p) for p in problem.growth_probes}
    k, m = problem.growth_block
    sweeps["blocks (cg)"] = {b: partial(_stacked, G[:k, :m], c[:m], b, problem.cg) for b in problem.growth_blocks}
    found = {}
    for number, (name, makers) in enumerate(sweeps.items()):
        progress("growth", number, len(sweeps))
        _threads("one_thread")
        calls = {str(size): make() for size, make in makers.items()}
        for call in calls.values():
            call()
        sizes = list(makers)
        seconds = interleaved(calls, rounds=problem.rounds)
        own = [float(np.median(seconds[str(size)])) for size in sizes]
        found[name] = {
            "sizes": sizes,
            "ms": [1e3 * x for x in own],
            "exponent": exponent(sizes, own),
            "exponent_of_the_larger_half": exponent(sizes[-2:], own[-2:]),
        }
    progress("growth", len(sweeps), len(sweeps))
    return found


def _stacked(G: NDArray[np.float32], c: NDArray[np.float64], blocks: int, settings: dict[str, int]) -> Any:
    """Value and gradient of several blocks at once, as training batches them."""
    import jax
    import jax.numpy as jnp

    from deepwas.likelihood.cg import cg_log_densities
    from deepwas.likelihood.factor import Factor

    k, m = G.shape
    factor = Factor.of(jnp.asarray(np.broadcast_to(G, (blocks, k, m))))
    y, real, noise = jnp.ones((blocks, 1, k)), jnp.ones((blocks, k)), jnp.ones((blocks, 1))
    signs = jax.random.rademacher(jax.random.key(0), (blocks, settings["probes"], k), jnp.float32)
    given = jnp.asarray(np.broadcast_to(c, (blocks, 1, m)), jnp.float32)

    @jax.jit
    def gradient(c: Any, noise: Any, y: Any, factor: Any, real: Any, signs: Any) -> Any:
        def total(c: Any, noise: Any) -> Any:
            values, _ = cg_log_densities(y, factor, c, noise, real, signs, 0.0, settings["steps"], settings["rank"])
            return jnp.sum(values)

        return jax.value_and_grad(total, argnums=(0, 1))(c, noise)

    return lambda: jax.block_until_ready(gradient(given, noise, y, factor, real, signs))
