"""Fine-mapping of one trait: one LD block, or all of them, under a learned prior.

beta_j is 0 but with probability pi_j, and then N(0, s): the slab. The prior's effect variance is f_j = pi_j s, so what
the network learned sets where effects are likely, and s how large they are. It is learned by expectation-maximisation
with f held: with p_j the inclusion probabilities,

    s <- (sum_j f_j (1 - p_j) / (1 - pi_j) + 1/2 sum_j E[beta_j^2]) / (3/2 sum_j p_j).

pi_j is at most 1/2. Units are those of the standardised genotype and the trait's variance.

LD from a sample of n_R other people is off by chance: cov(R^ e_j) = (R + R_:j R_:j^T) / n_R for the column of variant
j. An effect beta_j so adds N beta_j^2 / n_R to the variance of every whitened direction, and a block needs at least

    sigma2 = 1 + N sum_j E[beta_j^2] / n_R,

which is found by going back and forth. Where the sample is that of the GWAS, n_R = N, this is next to nothing.

Effects too small to be located one by one, and more of them than a block has slots for, still act together. In the
eigenbasis of LD they raise the variance of direction i by t N sum_j G_ij^2 f_j, all but independently (see
`deepwas.likelihood`); t is fitted to what the located effects leave, block by block, and directions are weighed by what
results. Source of that idea: Cui et al. 2023 (SuSiE-inf).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepwas.errors import InputError
from deepwas.finemapping.background import background, squares_left
from deepwas.finemapping.block import BlockEffects, Task, locate_effects
from deepwas.finemapping.effects import normal_slab
from deepwas.finemapping.options import FineMapOptions
from deepwas.finemapping.sets import CredibleSet, purity

if TYPE_CHECKING:
    from deepwas.ld import LDBlock
    from deepwas.training.trait import TraitBlock

__all__ = ["FineMapping", "GenomeFineMapping", "finemap", "finemap_blocks", "finemap_each", "learn_slab", "own_sets"]

Floats = NDArray[np.float64]
Advance = Callable[[int, int], None]

MOST_LIKELY = 0.5  # pi_j at most
_LEARN_FROM = 200  # blocks
_ROUNDS = 8  # of two passes
_SETTLED = 0.05  # change of log s
_LEAP = 2.0  # of log s, at most
_RAISES = 4  # of a block's noise
_CLOSE = 0.02  # of its logarithm
_START = 1e-3  # mean pi_j that learning starts from


@dataclass(frozen=True, eq=False)
class FineMapping:
    """Posterior of one block's effects under spike and slab.

    inclusion: (m,), P(beta_j is not 0).  mean, variance: (m,) of beta_j, per standard deviation of genotype.
    sets: credible sets, whose indices are the block's.  effects: expected number of effects, and its standard
    deviation.  converged: whether the coordinate ascent came to rest.
    misfit: mean square, in units of sigma2, of what the mean effects leave of the whitened z-scores in the half of the
    directions with the least LD: 1 or less on average if the LD is that of the z-scores.
    noise: sigma2 used, and panel_error: what it owes to the sampling error of the LD.
    background: variance of effects that cannot be located one by one, over that of the prior.
    """

    inclusion: Floats
    mean: Floats
    variance: Floats
    sets: list[CredibleSet]
    effects: float
    effects_sd: float
    converged: bool
    misfit: float
    noise: float
    panel_error: float
    background: float


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
    panel: float | None = None,
    options: FineMapOptions | None = None,
) -> FineMapping:
    """Which variants of one LD block have effects, and which effects.

    Model: z_S ~ N(sqrt(N) R_S: beta, noise R_SS), beta_j ~ pi_j N(0, slab) + (1 - pi_j) delta_0, pi_j = f_j / slab.
    z: (s,) of the scored variants.  effect_variance: (m,), f_j >= 0.  sample_size: N.  slab: variance of an effect
    that is there.  panel: people that the LD was estimated from; noise is raised for its error. None takes LD as exact.
    Effects in LD with one another are weighed exactly, up to two at a time; all others by mean-field
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
    for name, value in (("sample_size", sample_size), ("slab", slab), ("noise", noise), ("panel", panel or 1)):
        if not 0 < value < np.inf:
            raise InputError(f"{name} is {value}; it must be positive and finite.")
    G, y = np.asarray(block.factor), np.asarray(block.whiten(scores))
    (found,) = _locate([_task(G, y, f, slab)], [(sample_size, noise)], [f], slab, panel, settings, None)
    return found


def finemap_blocks(
    blocks: Sequence[TraitBlock],
    effect_variance: Floats,
    *,
    noise: float | Mapping[int, float] = 1.0,
    panel: float | None = None,
    options: FineMapOptions | None = None,
    batch: int = 1,
    progress: Advance | None = None,
) -> GenomeFineMapping:
    """`finemap` of all blocks of one trait, each read once it is needed.

    blocks: see `deepwas.training.trait`.  effect_variance: (M,), f of the store's variants.
    noise: sigma2, of all, or by the blocks' numbers.  panel: people that the LD was estimated from, see `finemap`.
    batch: blocks computed together, padded to one shape.  progress: called as progress(blocks done, blocks).
    """
    settings = FineMapOptions() if options is None else options
    slab, rounds = settings.slab, 0
    if slab is None:
        slab, rounds = learn_slab(blocks, effect_variance, noise=noise, panel=panel, options=settings, batch=batch)
    total = len(effect_variance)
    inclusion, mean, variance = np.full((3, total), np.nan)
    sets: list[tuple[int, CredibleSet]] = []
    effects, spread = np.zeros((2, len(blocks)))
    converged = np.zeros(len(blocks), bool)
    each = finemap_each(
        blocks, effect_variance, slab, noise=noise, panel=panel, options=settings, batch=batch, progress=progress
    )
    for i, block, found in each:
        rows, own = block.scored_rows, block.scored
        inclusion[rows], mean[rows], variance[rows] = found.inclusion[own], found.mean[own], found.variance[own]
        effects[i], spread[i], converged[i] = found.effects, found.effects_sd, found.converged
        sets += [(block.number, one) for one in own_sets(block, found)]
    capped = int(np.sum(effect_variance[np.isfinite(inclusion)] > MOST_LIKELY * slab))
    return GenomeFineMapping(inclusion, mean, variance, sets, effects, spread, converged, slab, capped, rounds)


def own_sets(block: TraitBlock, found: FineMapping) -> list[CredibleSet]:
    """The sets led by a variant that the block scores, with rows of the store; others belong to the block that does."""
    first, last = block.scored.start, block.scored.stop
    return [
        CredibleSet(one.variants + block.rows.start, one.probability, one.effect, one.purity)
        for one in found.sets
        if first <= one.lead < last
    ]


def small_half(directions: int) -> slice:
    """Of a block's directions, in order of falling LD, those with the least."""
    return slice((directions + 1) // 2, directions)


def learn_slab(
    blocks: Sequence[TraitBlock],
    effect_variance: Floats,
    *,
    noise: float | Mapping[int, float] = 1.0,
    panel: float | None = None,
    options: FineMapOptions | None = None,
    batch: int = 1,
    progress: Advance | None = None,
) -> tuple[float, int]:
    """The slab's variance s, and the rounds it took, from at most 200 blocks spread over the genome.

    progress: called as progress(blocks done, blocks of all rounds there may be).
    """
    # Background depends on the slab little, and costs each round another pass.
    settings = replace(FineMapOptions() if options is None else options, background=False)
    some = np.unique(np.linspace(0, len(blocks) - 1, min(len(blocks), _LEARN_FROM)).astype(int)).tolist()
    inside = np.concatenate([np.arange(blocks[i].rows.start, blocks[i].rows.stop) for i in some])
    mean = float(effect_variance[inside].mean())
    if not mean > 0:
        raise InputError("the prior's effect variances are all 0: there is nothing to locate.")
    chosen = [blocks[i] for i in some]
    passes, most = 0, 2 * _ROUNDS * len(some)

    def say(done: int, _: int) -> None:
        if progress is not None:
            progress(passes * len(some) + done, most)

    def step(log_slab: float) -> float:
        nonlocal passes
        slab = float(np.exp(log_slab))
        expected = squares = prior = 0.0
        for _, block, found in finemap_each(
            chosen, effect_variance, slab, noise=noise, panel=panel, options=settings, batch=batch, progress=say
        ):
            f = effect_variance[block.rows]
            p, pi = found.inclusion, np.minimum(f / slab, MOST_LIKELY)
            expected += float(p.sum())
            squares += float(np.sum(found.variance + found.mean**2))
            prior += float(np.sum(f * (1 - p) / (1 - pi)))
        passes += 1
        return float(np.log((prior + squares / 2) / (1.5 * expected)))

    here = float(np.log(mean / _START))
    number, settled = 0, False
    while not settled and number < _ROUNDS:
        number += 1
        once = step(here)
        twice = step(once)
        # Where the data say little the map moves by a fraction of the way: Aitken's extrapolation goes all of it.
        first, second = once - here, twice - once
        towards = 0 < second / first < 1 if first else False
        limit = twice + second / (1 - second / first) * second / first if towards else twice
        new = float(np.clip(limit, twice - _LEAP, twice + _LEAP))
        settled = abs(new - here) < _SETTLED
        here = new
    if progress is not None:
        progress(most, most)
    return float(np.exp(here)), number


def finemap_each(
    blocks: Sequence[TraitBlock],
    effect_variance: Floats,
    slab: float,
    *,
    noise: float | Mapping[int, float] = 1.0,
    panel: float | None = None,
    options: FineMapOptions | None = None,
    batch: int = 1,
    skip: NDArray[np.bool_] | None = None,
    progress: Advance | None = None,
) -> Iterator[tuple[int, TraitBlock, FineMapping]]:
    """(index, block, its effects) of all blocks but those to skip, by padded shape; arguments as `finemap_blocks`.

    skip: (blocks,).  What is found of the others does not hang on it, unless batches are broken up.
    """
    from deepwas.training.packing import padded_shape, plan_shapes

    settings = FineMapOptions() if options is None else options
    sizes = [blocks[i].shape for i in range(len(blocks))]
    done = 0 if skip is None else int(skip.sum())
    for group in plan_shapes(sizes):
        shape = padded_shape([sizes[i] for i in group])
        for first in range(0, len(group), batch):
            members = [i for i in group[first : first + batch] if skip is None or not skip[i]]
            if not members:
                continue
            some = [blocks[i] for i in members]
            f = [effect_variance[b.rows] for b in some]
            tasks = [_task(np.asarray(b.factor), b.whitened, own, slab) for b, own in zip(some, f, strict=True)]
            level = [noise[b.number] if isinstance(noise, Mapping) else noise for b in some]
            scale = [(b.sample_size, own) for b, own in zip(some, level, strict=True)]
            yield from zip(members, some, _locate(tasks, scale, f, slab, panel, settings, shape), strict=True)
            done += len(members)
            if progress is not None:
                progress(done, len(blocks))


def _task(factor: NDArray[Any], whitened: NDArray[Any], f: Floats, slab: float) -> Task:
    with np.errstate(divide="ignore"):
        pi = np.minimum(f / slab, MOST_LIKELY)
        return Task(factor, whitened[:, None], (np.log(pi) - np.log1p(-pi))[:, None])


def _locate(
    tasks: list[Task],
    scale: list[tuple[float, float]],
    f: Sequence[Floats],
    slab: float,
    panel: float | None,
    settings: FineMapOptions,
    shape: tuple[int, int] | None,
) -> list[FineMapping]:
    """Blocks of one trait, again until their noise is what the effects found ask for.  scale: N and sigma2 of each."""
    sizes = [size for size, _ in scale]
    noise = [np.full(len(task.whitened), own) for task, (_, own) in zip(tasks, scale, strict=True)]
    found = _locate_once(tasks, sizes, noise, slab, settings, shape)
    if panel is None and not settings.background:
        return found
    for i, (task, (size, own)) in enumerate(zip(tasks, scale, strict=True)):
        used = noise[i]
        for number in range(_RAISES + 1):
            error = 0.0 if panel is None else size * float(np.sum(found[i].variance + found[i].mean ** 2)) / panel
            level = max(own, min(own, 1.0) + error)
            wanted, share = np.full(len(used), level), 0.0
            if settings.background:
                signal = size * ((task.factor.astype(np.float64) ** 2) @ f[i])
                rest = task.whitened[:, 0].astype(np.float64) - task.factor @ (np.sqrt(size) * found[i].mean)
                leads = task.factor[:, [one.lead for one in found[i].sets]]
                share = background(squares_left(rest, leads / np.sqrt(used)[:, None]), level, signal)
                wanted += share * signal
            found[i] = replace(found[i], noise=level, panel_error=error, background=share)
            if number == _RAISES or np.abs(np.log(wanted / used)).max() < _CLOSE:
                break
            used = wanted
            (found[i],) = _locate_once([task], [size], [used], slab, settings, shape)
    return found


def _locate_once(
    tasks: list[Task],
    sizes: Sequence[float],
    noise: Sequence[Floats],
    slab: float,
    settings: FineMapOptions,
    shape: tuple[int, int] | None,
) -> list[FineMapping]:
    """sizes: N of each block.  noise: (k,) of each, the variance of its whitened directions.

    The effect classes are shared, so all blocks are put on the scale of the first one's N, n: with y' = y / sqrt(noise)
    and G' = G sqrt(N / noise / n), u = sqrt(n) beta beside noise of 1.
    """
    n = float(sizes[0])
    scaled = []
    for task, size, level in zip(tasks, sizes, noise, strict=True):
        weight = (1 / np.sqrt(level))[:, None]
        G = task.factor * (weight * np.sqrt(size / n)).astype(task.factor.dtype)
        scaled.append(Task(G, task.whitened * weight, task.log_odds))
    found = locate_effects(
        scaled,
        normal_slab(n * slab, 1.0),
        slots=settings.max_effects,
        candidates=settings.candidates,
        coverage=settings.coverage,
        shape=shape,
    )
    return [_summary(one, a, b, n, level) for one, a, b, level in zip(found, tasks, scaled, noise, strict=True)]


def _summary(found: BlockEffects, task: Task, scaled: Task, n: float, noise: Floats) -> FineMapping:
    u = found.mean[:, 0]
    small = small_half(len(task.whitened))
    rest = scaled.whitened[small, 0].astype(np.float64) - scaled.factor[small] @ u
    misfit = float(np.mean(rest**2)) if len(rest) else 1.0
    return FineMapping(
        found.inclusion,
        u / np.sqrt(n),
        np.maximum(found.square[:, 0] - u**2, 0.0) / n,
        [replace(one, purity=purity(task.factor, one.variants)) for one in found.sets],
        found.expected,
        float(np.sqrt(found.variance)),
        found.converged,
        misfit,
        float(noise.min()),
        0.0,
        0.0,
    )
