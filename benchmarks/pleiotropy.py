"""Pleiotropy: are variants with own effects on several traits found, are their probabilities true, does it hold up?

Every scenario of `benchmarks.pleiotropy_simulate` is simulated again and again on one coalescent genome; deepwas, with
noise correlation and effects of trait on trait that it estimates itself, and others (`benchmarks.pleiotropy_baselines`)
call variants and loci, and the truth judges them (`benchmarks.pleiotropy_score`). Scenarios by letter: a no effects,
b single ones, c own effects on several traits, d paths between traits, e a heritable confounder, f pairs in LD, g all
of b to f with the LD of 400 other people, h all with annotations, once with more effects to learn them from, mixed all
of b to f, "pairs share" c where all that is shared is shared by two traits of the six, and a last trait has no effect.

Sizes of effects are held while the sample grows: mixed, g and h take N = 50,000, 200,000 and 500,000 in turn.
Each replicate is kept as one line as soon as it is done, under a name made of the settings and the code: a second call
goes on where the first was stopped, and computes anew once either has changed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.kept import digest_of, read_kept
from benchmarks.pleiotropy_analysis import Analysis, analyse
from benchmarks.pleiotropy_genome import Genome, kept_genome, load_genome
from benchmarks.pleiotropy_priors import FITTED, fitted_prior
from benchmarks.pleiotropy_report import draw, summary, tables
from benchmarks.pleiotropy_simulate import PRIORS, simulate

__all__ = ["PRESETS", "Analysis", "Cell", "Preset", "analyse", "draw", "measure", "replicate", "tables"]

Progress = Callable[[str, int, int], None]

SIZES = (5e4, 2e5, 5e5)
EFFECT = 4e-4  # mean square of an effect; N = 200,000 sees a signal of 80


@dataclass(frozen=True)
class Cell:
    """One scenario under fixed settings.

    scenario: a name in SCENARIOS.  changes: to its recipe.  sizes: N, in turn by replicate, effects held.
    priors: that deepwas is given, true ones by name, or those of `benchmarks.pleiotropy_priors.FITTED`.
    structure: "estimated" or "true".  others: whether baselines are computed.
    """

    scenario: str
    replicates: int
    changes: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[float, ...] = (2e5,)
    priors: tuple[str, ...] = ("flat",)
    structure: str = "estimated"
    others: bool = False


@dataclass(frozen=True)
class Preset:
    """How much is simulated.

    regions, m: of the genome.  people, panel: whose LD; of others.  polygenicity: of scenarios that name none.
    traits: K, but where a cell names it.  cells: by name.  learn_blocks, rounds: options of deepwas.
    permutations: of HOPS.  workers: processes, 0 for none but this.
    others: replicates of the same traits from which deepwas learns priors.
    """

    regions: int
    m: int
    people: int
    panel: int
    polygenicity: float
    cells: dict[str, Cell]
    traits: int = 6
    learn_blocks: int = 60
    rounds: int = 5
    permutations: int = 5
    others: int = 5
    workers: int = 2
    seed: int = 1


def _cells(most: int, some: int, few: int) -> dict[str, Cell]:
    """All cells, of `most` replicates, `some` where priors are compared, or `few`."""
    # Heritability held: signals of 1,200, 12 and 1.2, in 30,000 variants.
    h2 = EFFECT * 45
    return {
        "mixed": Cell("mixed", most, sizes=SIZES, others=True),
        "mixed, 8 traits": Cell("mixed", 6 * few, {"traits": 8}, sizes=SIZES),
        "g": Cell("g", most, sizes=SIZES),
        "h": Cell("h", some, sizes=SIZES, priors=(*PRIORS, "learned")),
        # Annotations that tell more.
        "h, telling": Cell(
            "h", 3 * few, {"annotation": 2.5}, sizes=SIZES, priors=(*PRIORS[:2], "misleading", "learned")
        ),
        # Many effects to learn from, many in one block.
        "h, 5e-3": Cell("h", few, {"polygenicity": 5e-3}, sizes=SIZES[:2], priors=("flat", "informative", *FITTED[1:])),
        "mixed, true T and C": Cell("mixed", few, sizes=SIZES, structure="true"),
        "a": Cell("a", 5 * few, {"polygenicity": 0.0}, others=True),
        **{
            f"b, {share:g}": Cell("b", 4 * few, {"polygenicity": share, "h2": h2}, others=share == 1e-3)
            for share in (1e-4, 1e-3, 1e-2, 1e-1)
        },
        **{f"c, {K} traits": Cell("c", few, {"traits": K}) for K in (2, 4, 6, 8)},
        "pairs share": Cell("c", 3 * few, {"sharers": 2, "silent": 1}),
        "d": Cell("d", few),
        "e": Cell("e", few),
        "f": Cell("f", few),
        "pilot": Cell("pilot", few, others=True),
    }


PRESETS = {
    "quick": Preset(
        regions=20, m=40, people=300, panel=300, polygenicity=0.02, traits=3, learn_blocks=20, rounds=2,
        permutations=2, others=1, workers=0,
        cells={
            "mixed": Cell("mixed", 2, sizes=SIZES, others=True),
            "g": Cell("g", 1),
            "h": Cell("h", 1, priors=("flat", "informative", "constant", "learned")),
            "a": Cell("a", 1, {"polygenicity": 0.0}),
        },
    ),
    "medium": Preset(regions=100, m=200, people=2000, panel=400, polygenicity=2e-3, cells=_cells(9, 6, 3)),
    "full": Preset(regions=150, m=200, people=2000, panel=400, polygenicity=1.5e-3, cells=_cells(51, 9, 2)),
}  # fmt: skip


def replicate(preset: Preset, name: str, number: int, genome: Genome) -> dict[str, Any]:
    """One replicate of a cell: figures by method, ready for JSON. What deepwas refuses is said under "refused"."""
    from benchmarks.pleiotropy_baselines import all_baselines, two_significant
    from benchmarks.pleiotropy_score import score_analysis, score_calls
    from deepwas.errors import DeepwasError
    from deepwas.pleiotropy import PleiotropyOptions

    cell = preset.cells[name]
    size = cell.sizes[number % len(cell.sizes)]
    changes = {"traits": preset.traits, "polygenicity": preset.polygenicity, "signal": EFFECT * size} | cell.changes
    K = changes["traits"]
    if cell.scenario in ("mixed", "g", "h", "d", "pilot"):
        changes.setdefault("paths", min(3, K - 1))
    if cell.scenario == "pilot":
        changes["signal"] = 150.0
    changes |= {"sample_size": size, "factor_traits": min(3, K)}
    simulated = simulate(cell.scenario, genome=genome, seed=1000 * preset.seed + number, **changes)
    others = [
        simulate(cell.scenario, genome=genome, seed=10**6 * (i + 1) + number, like=simulated, **changes)
        for i in range(preset.others if set(cell.priors) & set(FITTED) else 0)
    ]
    found: dict[str, Any] = {
        "cell": name,
        "number": number,
        "sample_size": size,
        "traits": K,
        "variants": genome.M,
        "methods": {},
        "refused": {},
    }
    options = PleiotropyOptions(learn_blocks=preset.learn_blocks, rounds=preset.rounds)
    structure: Any = cell.structure
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user of one analysis is warned; here figures say it
        for prior in cell.priors:
            try:
                f = fitted_prior(simulated, prior, others) if prior in FITTED else prior
                own = analyse(simulated, prior=f, structure=structure, options=options)
            except DeepwasError as error:
                found["refused"][prior] = str(error)
                continue
            found["methods"][f"deepwas, {prior}"] = score_analysis(simulated, own)
            structure = own.structure
        calls = [two_significant(simulated.z)]
        if cell.others:
            calls = all_baselines(
                simulated.z, simulated.ld_scores, permutations=preset.permutations, seed=number, level=0.05
            )
        for one in calls:
            found["methods"][one.name] = score_calls(simulated, one)
    return found


def measure(preset: str, progress: Progress, parts: Path) -> dict[str, Any]:
    """All replicates of a preset, kept in the folder `parts` one by one, and what they say together."""
    plan = PRESETS[preset]
    parts.mkdir(exist_ok=True)
    world = kept_genome(
        parts,
        plan.regions,
        m=plan.m,
        people=plan.people,
        panel_people=plan.panel,
        seed=plan.seed,
        progress=progress,
    )
    kept = parts / f"replicates-{_digest(plan)}.jsonl"
    known = {(x["cell"], x["number"]): x for x in read_kept(kept)}
    every = [(name, n) for name, cell in plan.cells.items() for n in range(cell.replicates)]
    # First replicates of all cells first: what is there when a run is stopped is of every kind.
    left = sorted((x for x in every if x not in known), key=lambda x: x[1] / plan.cells[x[0]].replicates)
    with kept.open("a", encoding="utf-8") as file:
        for done, one in enumerate(_each(plan, left, world), start=len(every) - len(left) + 1):
            file.write(json.dumps(one) + "\n")
            file.flush()
            known[one["cell"], one["number"]] = one
            progress("replicates", done, len(every))
    settings = asdict(plan)
    return {"settings": settings, "preset": preset, **summary([known[x] for x in every], plan.cells)}


def _digest(plan: Preset) -> str:
    """Of the settings but for numbers of replicates, and of the code that is measured."""
    settings = asdict(plan)
    for cell in settings["cells"].values():
        del cell["replicates"]
    return digest_of(settings, "pleiotropy*.py", leave=("pleiotropy_report.py", "pleiotropy_speed.py"))


def _each(plan: Preset, left: list[tuple[str, int]], world: Path) -> Iterator[dict[str, Any]]:
    """Replicates as they are done, by processes of one thread each; when one dies others go on."""
    if not left:
        return
    if plan.workers == 0:
        genome = load_genome(world)
        for name, number in left:
            yield replicate(plan, name, number, genome)
        return
    while left:
        done = set()
        try:
            for one in _by_processes(plan, left, world):
                done.add((one["cell"], one["number"]))
                yield one
        except BrokenProcessPool:
            if not done:
                raise
            warnings.warn("a process died; its replicates are computed again", stacklevel=2)
        left = [one for one in left if one not in done]


def _by_processes(plan: Preset, left: list[tuple[str, int]], world: Path) -> Iterator[dict[str, Any]]:
    with _one_thread():
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(plan.workers, mp_context=context, initializer=_begin, initargs=(plan, world))
        try:
            for one in as_completed([pool.submit(_work, name, number) for name, number in left]):
                yield one.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """What processes started meanwhile see: one thread for linear algebra."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_shared: dict[str, Any] = {}


def _begin(plan: Preset, world: Path) -> None:
    """A process: JAX starts while one core is allowed, so it has one thread; then all cores are."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if allowed is not None:
        os.sched_setaffinity(0, {min(allowed)})
    import jax

    jax.devices()
    if allowed is not None:
        # JAX's own threads, too: they would all stay on the one core.
        tasks = Path("/proc/self/task")
        for thread in tasks.iterdir() if tasks.is_dir() else ():
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread.name), allowed)
        os.sched_setaffinity(0, allowed)
    _shared.update(plan=plan, genome=load_genome(world))


def _work(name: str, number: int) -> dict[str, Any]:
    return replicate(_shared["plan"], name, number, _shared["genome"])
