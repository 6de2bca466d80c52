"""Fine-mapping of one trait: one LD block, or all of them, under a learned prior.

beta_j is 0 but with probability pi_j, and then N(0, s): the slab. The prior's effect variance is f_j = pi_j s, so what
the network learned sets where effects are likely, and s how large they are. It is learned by expectation-maximisation
with f held: with p_j the inclusion probabilities,

    s <- (sum_j f_j (1 - p_j) / (1 - pi_j) + 1/2 sum_j E[beta_j^2]) / (3/2 sum_j p_j).

pi_j is at most 1/2. Units are those of the standardised genotype and the trait's variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepwas.errors import InputError
from deepwas.finemapping.block import BlockEffects, Task, locate_effects
from deepwas.finemapping.effects import normal_slab
from deepwas.finemapping.options import FineMapOptions
from deepwas.finemapping.sets import CredibleSet

if TYPE_CHECKING:
    from deepwas.ld import LDBlock
    from deepwas.training.trait import TraitBlock

__all__ = ["FineMapping", "GenomeFineMapping", "finemap", "finemap_blocks", "learn_slab"]

Floats = NDArray[np.float64]
Advance = Callable[[int, int], None]

MOST_LIKELY = 0.5  # pi_j at most
_LEARN_FROM = 200  # blocks
_ROUNDS = 8  # of two passes
_SETTLED = 0.05  # change of log s
_LEAP = 2.0  # of log s, at most
_START = 1e-3  # mean pi_j that learning starts from


@dataclass(frozen=True, eq=False)
class FineMapping:
    """Posterior of one block's effects under spike and slab.

    inclusion: (m,), P(beta_j is not 0).  mean, variance: (m,) of beta_j, per standard deviation of genotype.
    sets: credible sets, whose indices are the block's.  effects: expected number of effects, and its standard
    deviation.  converged: whether the coordinate ascent came to rest.
    """

    inclusion: Floats
    mean: Floats
    variance: Floats
    sets: list[CredibleSet]
    effects: float
    effects_sd: float
    converged: bool


@dataclass(frozen=True, eq=False)
class GenomeFineMapping:
    """`FineMapping` of all blocks of a trait.

    inclusion, mean, variance: (M,) of the store's variants, NaN where no block with z-scores scores them.
    sets: (number of the block in the store, credible set with rows of the store as indices, lead's block first).
    effects, effects_sd, converged: by block, in the order of the blocks.
    slab: s.  capped: variants whose pi_j was cut to 1/2.  rounds: of learning s; 0 if it was given.
    """

    inclusion: Floats
    mean: Floats
    variance: Floats
    sets: list[tuple[int, CredibleSet]]
    effects: Floats
    effects_sd: Floats
    converged: NDArray[np.bool_]
    slab: float
    capped: int
    rounds: int


def finemap(
    block: LDBlock,
    z: ArrayLike,
    effect_variance: ArrayLike,
    *,
    sample_size: float,
    slab: float,
    noise: float = 1.0,
    options: FineMapOptions | None = None,
) -> FineMapping:
    """Which variants of one LD block have effects, and which effects.

    Model: z_S ~ N(sqrt(N) R_S: beta, noise R_SS), beta_j ~ pi_j N(0, slab) + (1 - pi_j) delta_0, pi_j = f_j / slab.
    z: (s,) of the scored variants.  effect_variance: (m,), f_j >= 0.  sample_size: N.  slab: variance of an effect
    that is there.  Effects in LD with one another are weighed exactly, up to two at a time; all others by mean-field
    (see `deepwas.finemapping.pairs`).

    Raises InputError for wrong shapes, negative or infinite values.
    Sources: Maller et al. 2012 (credible sets); Wang et al. 2020 (sums of single effects).
    """
    settings = FineMapOptions() if options is None else options
    f, scores = np.asarray(effect_variance, np.float64), np.asarray(z, np.float64)
    if f.shape != (block.m,) or not (np.isfinite(f) & (f >= 0)).all():
        raise InputError(f"effect_variance must hold {block.m} finite numbers >= 0; its shape is {f.shape}.")
    if scores.shape != (block.s,) or not np.isfinite(scores).all():
        raise InputError(f"z must hold {block.s} finite numbers; its shape is {scores.shape}.")
    for name, value in (("sample_size", sample_size), ("slab", slab), ("noise", noise)):
        if not 0 < value < np.inf:
            raise InputError(f"{name} is {value}; it must be positive and finite.")
    task = _task(np.asarray(block.factor), np.asarray(block.whiten(scores)), f, slab)
    (found,) = _locate([task], sample_size, slab, noise, settings, None)
    return FineMapping(
        found.inclusion,
        found.mean[:, 0] / np.sqrt(sample_size),
        _variance(found, sample_size),
        found.sets,
        found.expected,
        float(np.sqrt(found.variance)),
        found.converged,
    )


def finemap_blocks(
    blocks: Sequence[TraitBlock],
    effect_variance: Floats,
    *,
    noise: float = 1.0,
    options: FineMapOptions | None = None,
    batch: int = 1,
    progress: Advance | None = None,
) -> GenomeFineMapping:
    """`finemap` of all blocks of one trait, each read once it is needed.

    blocks: see `deepwas.training.trait`.  effect_variance: (M,), f of the store's variants.
    batch: blocks computed together, padded to one shape.  progress: called as progress(blocks done, blocks).
    """
    settings = FineMapOptions() if options is None else options
    slab, rounds = settings.slab, 0
    if slab is None:
        slab, rounds = learn_slab(blocks, effect_variance, noise=noise, options=settings, batch=batch)
    total = len(effect_variance)
    inclusion, mean, variance = np.full((3, total), np.nan)
    sets: list[tuple[int, CredibleSet]] = []
    effects, spread = np.zeros((2, len(blocks)))
    converged = np.zeros(len(blocks), bool)
    for i, block, found in _run(blocks, range(len(blocks)), effect_variance, slab, noise, settings, batch, progress):
        n = block.sample_size
        rows, own = block.scored_rows, block.scored
        inclusion[rows], mean[rows] = found.inclusion[own], found.mean[own, 0] / np.sqrt(n)
        variance[rows] = _variance(found, n)[own]
        effects[i], spread[i], converged[i] = found.expected, np.sqrt(found.variance), found.converged
        first = block.rows.start
        for one in found.sets:
            # Sets led by a variant of the flanks belong to the block that scores it.
            if rows.start <= first + one.lead < rows.stop:
                moved = CredibleSet(one.variants + first, one.probability, one.effect, one.purity)
                sets.append((block.number, moved))
    capped = int(np.sum(effect_variance[np.isfinite(inclusion)] > MOST_LIKELY * slab))
    return GenomeFineMapping(inclusion, mean, variance, sets, effects, spread, converged, slab, capped, rounds)


def learn_slab(
    blocks: Sequence[TraitBlock],
    effect_variance: Floats,
    *,
    noise: float = 1.0,
    options: FineMapOptions | None = None,
    batch: int = 1,
) -> tuple[float, int]:
    """The slab's variance s, and the rounds it took, from at most 200 blocks spread over the genome."""
    settings = FineMapOptions() if options is None else options
    some = np.unique(np.linspace(0, len(blocks) - 1, min(len(blocks), _LEARN_FROM)).astype(int)).tolist()
    inside = np.concatenate([np.arange(blocks[i].rows.start, blocks[i].rows.stop) for i in some])
    mean = float(effect_variance[inside].mean())
    if not mean > 0:
        raise InputError("the prior's effect variances are all 0: there is nothing to locate.")

    def step(log_slab: float) -> float:
        slab = float(np.exp(log_slab))
        expected = squares = prior = 0.0
        for _, block, found in _run(blocks, some, effect_variance, slab, noise, settings, batch, None):
            f = effect_variance[block.rows]
            p, pi = found.inclusion, np.minimum(f / slab, MOST_LIKELY)
            expected += float(p.sum())
            squares += float(found.square.sum()) / block.sample_size
            prior += float(np.sum(f * (1 - p) / (1 - pi)))
        return float(np.log((prior + squares / 2) / (1.5 * expected)))

    here = float(np.log(mean / _START))
    for number in range(1, _ROUNDS + 1):
        once = step(here)
        twice = step(once)
        # Where the data say little the map moves by a fraction of the way: Aitken's extrapolation goes all of it.
        first, second = once - here, twice - once
        towards = 0 < second / first < 1 if first else False
        limit = twice + second / (1 - second / first) * second / first if towards else twice
        new = float(np.clip(limit, twice - _LEAP, twice + _LEAP))
        settled = abs(new - here) < _SETTLED
        here = new
        if settled:
            return float(np.exp(here)), number
    return float(np.exp(here)), _ROUNDS


def _run(
    blocks: Sequence[TraitBlock],
    which: Sequence[int],
    f: Floats,
    slab: float,
    noise: float,
    settings: FineMapOptions,
    batch: int,
    progress: Advance | None,
) -> Any:
    """(index, block, its effects) of the blocks asked for, by padded shape."""
    from deepwas.training.packing import padded_shape, plan_shapes

    sizes = [blocks[i].shape for i in which]
    done = 0
    for group in plan_shapes(sizes):
        shape = padded_shape([sizes[i] for i in group])
        for first in range(0, len(group), batch):
            members = [which[i] for i in group[first : first + batch]]
            some = [blocks[i] for i in members]
            tasks = [_task(np.asarray(b.factor), b.whitened, f[b.rows], slab) for b in some]
            n = np.array([b.sample_size for b in some])
            found = _locate(tasks, n, slab, noise, settings, shape)
            yield from zip(members, some, found, strict=True)
            done += len(members)
            if progress is not None:
                progress(done, len(which))


def _task(factor: NDArray[Any], whitened: NDArray[Any], f: Floats, slab: float) -> Task:
    with np.errstate(divide="ignore"):
        pi = np.minimum(f / slab, MOST_LIKELY)
        return Task(factor, whitened[:, None], (np.log(pi) - np.log1p(-pi))[:, None])


def _locate(
    tasks: list[Task], n: Any, slab: float, noise: float, settings: FineMapOptions, shape: tuple[int, int] | None
) -> list[BlockEffects]:
    """Blocks of one trait; n: (blocks,) or one number.

    The effect classes are shared, so each block's z-scores are put on the scale of the first one's N: with
    G' = G sqrt(n / n_0), u = sqrt(n_0) beta.
    """
    sizes = np.broadcast_to(np.asarray(n, np.float64), (len(tasks),))
    scaled = [Task(t.factor * np.sqrt(x / sizes[0]), t.whitened, t.log_odds) for t, x in zip(tasks, sizes, strict=True)]
    found = locate_effects(
        scaled,
        normal_slab(float(sizes[0]) * slab, noise),
        slots=settings.max_effects,
        candidates=settings.candidates,
        coverage=settings.coverage,
        shape=shape,
    )
    out = []
    for one, x in zip(found, sizes, strict=True):
        ratio = np.sqrt(x / sizes[0])
        out.append(replace(one, mean=one.mean * ratio, square=one.square * ratio**2))
    return out


def _variance(found: BlockEffects, sample_size: float) -> Floats:
    """(m,), of beta."""
    return np.maximum(found.square[:, 0] - found.mean[:, 0] ** 2, 0.0) / sample_size
