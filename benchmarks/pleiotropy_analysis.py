"""One simulated replicate through the steps of `deepwas.pleiotropy.classify`, in memory.

LD is decomposed once for all replicates, as `deepwas ld` would; from there on the code is that of the command.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.pleiotropy_genome import Genome
from benchmarks.pleiotropy_simulate import SCENARIOS, Simulated
from deepwas.errors import InputError

if TYPE_CHECKING:
    from deepwas.pleiotropy import PleiotropyOptions
    from deepwas.pleiotropy.calls import Locus
    from deepwas.pleiotropy.configurations import TraitModel
    from deepwas.pleiotropy.genome import Structure
    from deepwas.pleiotropy.joint import JointBlocks, Traits
    from deepwas.pleiotropy.model_of import BlocksToLocate

__all__ = ["EXACT", "Analysis", "Prepared", "Reference", "analyse", "opened", "prepare", "prior_of", "reference"]

Array = NDArray[np.float64]
Say = Callable[[str, int, int], None]

EXACT = 500_000  # people that LD without error is said to be of: the largest GWAS here


@dataclass(frozen=True, eq=False)
class Analysis:
    """What deepwas says of one replicate.

    value: by name (M,): pleiotropy (own effects on two traits or more), single, vertical, confounder, apart (in LD with
    an effect on other traits), pip_k, effect_k.  klass: (M,) of `deepwas.pleiotropy.calls.CLASSES`.
    loci: credible sets.  shared: (loci,), probability that the set holds a variant with own effects on several traits:
    that of its effect to be such a one, times the share of it that lies in the set.
    unresolvable: (loci,), as the product marks them: one effect cannot be told from two that close.
    structure, model, rounds: what was learned.  seconds: of processor time, by part.
    """

    value: dict[str, Array]
    klass: NDArray[Any]
    loci: list[Locus]
    shared: Array
    unresolvable: NDArray[np.bool_]
    structure: Structure
    model: TraitModel
    rounds: int
    seconds: dict[str, float]

    @property
    def local_fdr(self) -> Array:
        """(M,)."""
        return 1 - self.value["pleiotropy"]

    @property
    def locus_fdr(self) -> Array:
        """(loci,)."""
        return 1 - self.shared


@dataclass(frozen=True, eq=False)
class _Decoded:
    factor: NDArray[np.float32]

    def decoded(self) -> NDArray[np.float32]:
        return self.factor


@dataclass(frozen=True, eq=False)
class Reference:
    """The LD of a genome as an LD store holds it, in memory: what `JointBlocks` asks of a store.

    n_samples: people that the LD is of.
    """

    genome: Genome
    n_samples: int
    factors: tuple[NDArray[np.float32], ...]
    whiteners: tuple[NDArray[np.float32], ...]
    row_squares: tuple[Array, ...]

    @property
    def n_variants(self) -> int:
        """M."""
        return self.genome.M

    @property
    def n_blocks(self) -> int:
        """LD blocks, one a region."""
        return len(self.factors)

    def block_slice(self, number: int) -> slice:
        """Rows of its candidates."""
        return self.genome.rows(number)

    scored_slice = block_slice  # blocks have no flanks

    def factor(self, number: int) -> _Decoded:
        """G, to be decoded."""
        return _Decoded(self.factors[number])


@lru_cache(maxsize=4)
def reference(genome: Genome, people: int, panel: bool = False) -> Reference:
    """LD of the GWAS, or of the panel, cut as `deepwas ld` does for so many people; made once for all replicates."""
    from deepwas.ld import LDBlock, eigenvalue_floor

    if panel and genome.panel is None:
        raise InputError("the genome has no panel: simulate_genome(panel_people=400).")
    ld = genome.panel if panel and genome.panel is not None else tuple(r.correlation for r in genome.regions)
    factors, whiteners, squares = [], [], []
    for R in ld:
        block = LDBlock.from_correlation(R, eigenvalue_floor=eigenvalue_floor(len(R), people), dtype=np.float64)
        factors.append(np.asarray(block.factor, np.float32))
        whiteners.append(np.asarray(block.whitener, np.float32))
        squares.append(np.einsum("ij,ij->i", block.factor, block.factor, dtype=np.float64))
    return Reference(genome, people, tuple(factors), tuple(whiteners), tuple(squares))


def _joint(simulated: Simulated) -> JointBlocks:
    """All traits, whitened."""
    from deepwas.pleiotropy.joint import JointBlocks

    panel = simulated.recipe.panel
    people = simulated.genome.panel_people if panel else EXACT
    own = reference(simulated.genome, people, panel)
    z = [simulated.z[own.block_slice(b)] for b in range(own.n_blocks)]
    whitened = [np.asarray(W @ part, np.float32) for W, part in zip(own.whiteners, z, strict=True)]
    made = np.zeros(own.n_blocks, bool)
    blocks: Any = own
    return JointBlocks(blocks, list(range(own.n_blocks)), whitened, list(own.row_squares), None, made)


def prior_of(simulated: Simulated, prior: str | Array) -> Array:
    """(M, K), f.  A name in `benchmarks.pleiotropy_simulate.PRIORS`, or the prior itself.

    Where nothing has an effect no prior is true: each trait then is promised what scenario b has.
    """
    if not isinstance(prior, str):
        return np.asarray(prior, np.float64)
    if prior not in simulated.priors:
        raise InputError(f"no prior is called {prior!r}; there are: {', '.join(simulated.priors)}.")
    f = simulated.priors[prior]
    if simulated.recipe.polygenicity > 0:
        return f
    other = SCENARIOS["b"].polygenicity * simulated.recipe.effect_variance(simulated.genome.M)
    return np.broadcast_to(other[None, :], f.shape).copy()


def _traits(simulated: Simulated, f: Array) -> Traits:
    from deepwas.pleiotropy.joint import Traits
    from deepwas.tally import Tally

    names = tuple(f"trait{k + 1}" for k in range(f.shape[1]))
    observed = np.ones(len(f), bool)
    return Traits(names, simulated.z, f, np.asarray(simulated.N, np.float64), observed, [{} for _ in names], Tally())


def opened(simulated: Simulated, prior: str | Array = "flat") -> tuple[Traits, JointBlocks]:
    """Traits as `deepwas.pleiotropy.joint` reads them, and their whitened blocks.  prior: see `prior_of`."""
    return _traits(simulated, prior_of(simulated, prior)), _joint(simulated)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A replicate with what all blocks share learned: everything before blocks are located for good.

    direct: (M, K), d.  blocks: all of them, in an order that keeps equal shapes together; order: their numbers.
    how: arguments of `deepwas.pleiotropy.learning.locate`.
    """

    traits: Traits
    joint: JointBlocks
    structure: Structure
    model: TraitModel
    direct: Array
    rounds: int
    blocks: BlocksToLocate
    order: list[int]
    how: dict[str, Any]
    seconds: dict[str, float]


def prepare(
    simulated: Simulated,
    *,
    prior: str | Array = "flat",
    structure: str | Structure = "estimated",
    options: PleiotropyOptions | None = None,
    progress: Say | None = None,
) -> Prepared:
    """Whiten, estimate the traits' structure, and learn the model; arguments as of `analyse`."""
    from deepwas.pleiotropy import PleiotropyOptions, TraitEffects
    from deepwas.pleiotropy.genome import structure_of
    from deepwas.pleiotropy.model_of import BlocksToLocate, learn_model
    from deepwas.training.packing import shape_of_each

    if isinstance(structure, str) and structure not in ("estimated", "true"):
        raise InputError(f"structure is {structure!r}; it is 'estimated' or 'true'.")
    options = options or PleiotropyOptions()
    seconds: dict[str, float] = {}
    with _timed(seconds, "whitening"):
        traits, joint = opened(simulated, prior)
    with _timed(seconds, "structure"):
        if isinstance(structure, str):
            known: dict[str, Any] = {}
            if structure == "true":
                effects = TraitEffects.given(simulated.T, np.zeros_like(simulated.T), names=traits.names)
                known = {"noise": simulated.noise_correlation, "effects": effects}
            found = structure_of(traits, joint, options, **known, progress=progress)
        else:
            found = structure
    shapes, order = shape_of_each(joint.sizes)
    people = float(joint.store.n_samples)
    with _timed(seconds, "learning"):
        learned = learn_model(traits, joint, found, shapes, options, people, progress)
    model, direct = learned.model, learned.direct
    blocks = BlocksToLocate(joint, direct, order, [shapes[i] for i in order])
    how: dict[str, Any] = {
        "slots": options.max_effects,
        "candidates": options.candidates,
        "more": options.more_candidates,
        "panel": people,
    }
    return Prepared(traits, joint, found, model, direct, learned.rounds, blocks, order, how, seconds)


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Keep a part's processor time."""
    begun = time.process_time()
    yield
    seconds[part] = time.process_time() - begun


def analyse(
    simulated: Simulated,
    *,
    prior: str | Array = "flat",
    structure: str | Structure = "estimated",
    options: PleiotropyOptions | None = None,
    progress: Say | None = None,
) -> Analysis:
    """One replicate through the steps of `deepwas.pleiotropy.classify`, in memory.

    prior: see `prior_of`.
    structure: C_n and T, "estimated", or "true": the simulated ones, without error; or as another analysis of the same
        z-scores found them.
    """
    from deepwas.pleiotropy import PleiotropyOptions
    from deepwas.pleiotropy.calls import classify_probabilities, loci_of, names_of_values, read_loci, values_of
    from deepwas.pleiotropy.learning import locate
    from deepwas.pleiotropy.splitting import splits

    options = options or PleiotropyOptions()
    made = prepare(simulated, prior=prior, structure=structure, options=options, progress=progress)
    joint, model, found = made.joint, made.model, made.structure
    names = names_of_values(len(made.traits.names))
    value = {name: np.zeros(len(made.direct)) for name in names}
    loci: list[Locus] = []
    with _timed(made.seconds, "locating"):
        each = locate(made.blocks, model, coverage=options.coverage, **made.how)
        for i, (block, _, located) in zip(made.order, each, strict=True):
            scored, rows = joint.scored(i), joint.scored_rows(i)
            for name, x in zip(names, values_of(located, model, scored, found.passing), strict=True):
                value[name][rows] = x
            split = splits(block, located, model, scored, made.how["panel"])
            loci += read_loci(joint.numbers[i], loci_of(located, block.factor, block.rows.start, scored, split))
    loci.sort(key=lambda x: (x.block, int(x.variants.min())))
    shared = np.array([one.shared(model) for one in loci])
    klass = classify_probabilities(*(value[x] for x in ("pleiotropy", "single", "vertical", "confounder", "apart")))
    unresolvable = np.array([one.unresolvable for one in loci], dtype=bool)
    return Analysis(value, klass, loci, shared, unresolvable, found, model, made.rounds, made.seconds)
