"""Learning what all blocks share: slab variances and the excess of shared variants, by expectation-maximisation.

With p_jk the posterior probability that variant j acts on trait k by itself and pi_jk = d_jk / s_k its prior one,

    s_k <- (sum_j d_jk (1 - p_jk) / (1 - pi_jk) + 1/2 sum_j E[D_jk^2] + w s_0k) / (3/2 sum_j p_jk + w),

where w = `_PRIOR_COUNT` effects of the slab s_0 that learning starts from keep s_k in range where a trait shows none.

The slab stays at what makes an effect visible, N s >= `_VISIBLE` times the noise: smaller ones cannot be told from
none, so nothing would speak against them wherever other traits have an effect.

How often variants act on several traits follows from what is counted (`deepwas.pleiotropy.sharing`), with `_SIZE_COUNT`
more variants of each number of traits, and `_PRIOR_COUNT` more effects on one trait alone; the shares of numbers of
traits are shrunk with the weight of `_SMOOTH_COUNT` variants towards a geometric series of the same mean.
What is in doubt is decided in part (between expectation-maximisation and classification EM, Celeux & Govaert 1992): a
share q that is of several traits counts q^a / (q^a + (1 - q)^a), a = `_SHARPER`, less than q below one half and more
above. What the model leaves out, such as errors of T and of LD, makes many single effects look as if they might be
shared; counted by q these would raise psi, and that their q once more.

Effects of different variants lie near one another more often than by chance where loci are what matters. The log odds
of two effects in LD r^2 > 0.2 move to the log of their number over that by chance, `_PAIR_COUNT` added to the latter
and e^`TOGETHER` times as much to the former, and stay at 0 or above: one number for effects with a trait in common, one
for others. Both numbers are of effects that are located, in credible sets, with LD r^2 below `_APART`, where two can be
told from one: if effects that only may be there counted, weak z-scores would put a second one beside every first, and
shared variants would be taken for two. Without these log odds one variant with effects on two traits would stand in
for two variants.

How far effects follow a trait's prior is learned, too, where it varies: f is raised to a power t, its mean held. The
score of t_k is the sum over variants and classes of (posterior - prior probability) times log f_jk less its mean, as
far as the class's odds follow it (`TraitModel.follow`); steps go by the information that known effects would have, so
that they are short where the z-scores tell little, with a prior N(1, `_EXPONENT_SD`^2), 0 <= t <= `_MOST_EXPONENT`. At
0 a prior says nothing, as one that misleads should; above 1 effects follow it more than it says, as they do one that
was shrunken. Sharing that was learned beside a prior which turns out otherwise is left only slowly: one trait's effects
may all seem to be another's. So `deepwas.pleiotropy.model_of.learn_model` starts anew from the exponents found.

What located effects leave of the z-scores says how much background there is of effects that cannot be located
(`deepwas.finemapping.background`).

Learning starts from some sharing: expectation-maximisation leaves a size of which there is nearly nothing to start with
only slowly, and one that the z-scores speak against at once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from deepwas.finemapping.background import background, squares_left
from deepwas.finemapping.block import BlockEffects, Task, locate_effects
from deepwas.finemapping.groups import CLOSE, squared_ld
from deepwas.finemapping.sets import purity
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.sharing import Sample, Shares, smoothed

__all__ = [
    "Counts",
    "JointBlock",
    "all_direct",
    "beside_background",
    "learn",
    "least_slab",
    "locate",
    "panel_error",
    "panel_noise",
    "raised",
]

Floats = NDArray[np.float64]

_PRIOR_COUNT = 0.5
_PAIR_COUNT = 0.5  # pairs of effects in LD, by chance
_APART = 0.8  # LD r^2 below which two effects can be told from one
_SIZE_COUNT = 0.05  # variants of each number of traits
_SMOOTH_COUNT = 5.0  # variants
_VISIBLE = 10.0  # times the noise
_LEAP = 1.5  # of a slab's logarithm, a round
_RAISES = 2  # of a block's noise
_WORKERS = 4  # threads, at most
_MOST_TOGETHER = 8.0
TOGETHER = 2.0  # log odds that learning starts from
_SETTLED = 0.03  # of the logarithm of a block's noise
_SHARPER = 1.5
_EXPONENT_SD = 0.5
_MOST_EXPONENT = 2.0
_EXPONENT_LEAP = 0.5  # a round
_EXPONENT_MOVES = 1e-3


@dataclass(frozen=True, eq=False)
class JointBlock:
    """One LD block with the z-scores of K traits.

    factor: G (k, m).  whitened: (k, K), of the trait-wise z-scores.  direct: (m, K), direct variances d.
    rows: of its variants in the store.  shape: to pad to; None for that of the call.
    shared: (m,), added to the log odds of all configurations of two traits or more; None for 0.
    scored: of its variants, those that it reports, the others being its flanks; all by default.
    log_prior: (m, K), log f less its mean by d, 0 where f says nothing; None where exponents of priors are held.
    """

    factor: NDArray[np.floating]
    whitened: NDArray[np.floating]
    direct: Floats
    rows: slice
    shape: tuple[int, int] | None = None
    shared: NDArray[np.floating] | None = None
    scored: slice = field(default_factory=lambda: slice(None))
    log_prior: Floats | None = None


@dataclass
class Counts:
    """Sums over variants that learning needs.

    present: (K,), of p.  kept: (K,), sum d (1 - p) / (1 - pi).  squares: (K,), sum E[D^2].
    sizes: (K + 1,), numbers of variants by number of traits acted on.  pairs: (K, K), that act on two each.
    close: (2,), pairs of credible sets in LD r^2 of `CLOSE` to `_APART`, with a trait in common and with none.
    located: (C + F,), of credible sets by class.  around: the same times the number of variants in such LD with the
    lead.  variants: in all.
    left: of each block what located effects leave of the squares of whitened z-scores, `TraitModel.signal`, and the
    noise that these stand beside, each (k, K).
    score, information: (K,), of the exponents.
    """

    present: Floats
    kept: Floats
    squares: Floats
    sizes: Floats
    pairs: Floats
    close: Floats
    located: Floats
    around: Floats
    score: Floats
    information: Floats
    variants: int = 0
    left: list[tuple[Floats, Floats, Floats]] = field(default_factory=list)

    @classmethod
    def zero(cls, model: TraitModel) -> Counts:
        """Nothing counted."""
        present, kept, squares, score, information = np.zeros((5, model.traits))
        located, around = np.zeros((2, len(model.masks)))
        K = model.traits
        sizes, pairs = np.zeros(K + 1), np.zeros((K, K))
        return cls(present, kept, squares, sizes, pairs, np.zeros(2), located, around, score, information)

    def add(
        self,
        block: JointBlock,
        found: BlockEffects,
        model: TraitModel,
        panel: float | None = None,
        odds: Floats | None = None,
    ) -> None:
        """Count a block, of which `locate` has found this.  panel: as there.  odds: that it gave, for exponents."""
        G = np.asarray(block.factor, np.float64)
        signal = model.signal(G, block.direct)
        weighed = G / model.spread_of_background(signal)[:, None]  # as effects were located
        leads = weighed[:, [one.lead for one in found.sets]]
        self.located += found.of_sets.sum(axis=0)
        self.close += _close(leads, found.of_sets, np.asarray(model.classes.traits))
        self.around += _near(weighed, leads) @ found.of_sets
        self.variants += block.factor.shape[1]
        p = found.probability @ model.masks.astype(np.float64)
        pi = model.pi(block.direct)
        self.present += p.sum(axis=0)
        self.kept += np.sum(block.direct * (1 - np.minimum(p, 1)) / (1 - pi), axis=0)
        self.squares += found.square.sum(axis=0)
        level = np.diag(model.noise if panel is None else raised(model, found, panel))
        squares = squares_left(block.whitened - found.fitted, leads)
        self.left.append((squares, signal, np.broadcast_to(level, squares.shape)))
        if block.log_prior is not None and odds is not None:
            own = block.scored
            score, information = exponent_score(block.log_prior[own], odds[own], found.probability[own], model)
            self.score += score
            self.information += information
        masks = model.masks.astype(np.float64)
        of_class = _sharpened(found.probability, masks.sum(axis=1) >= 2).sum(axis=0)
        np.add.at(self.sizes, model.masks.sum(axis=1), of_class)
        self.pairs += (masks * of_class[:, None]).T @ masks

    def update(self, model: TraitModel, start: Floats, sample: Sample | None) -> tuple[TraitModel, float]:
        """The model after one round, and the largest change of a logarithm; sample: to learn psi from, None for 0."""
        slab = (self.kept + self.squares / 2 + _PRIOR_COUNT * start) / (1.5 * self.present + _PRIOR_COUNT)
        step = np.clip(np.log(np.maximum(slab, least_slab(model)) / model.slab), -_LEAP, _LEAP)
        nearer = (self.close + _PAIR_COUNT * np.exp(TOGETHER)) / (self.close_by_chance(model) + _PAIR_COUNT)
        before = np.array(model.together)
        close = np.clip(before + np.clip(np.log(nearer) - before, -_LEAP, _LEAP), 0.0, _MOST_TOGETHER)
        together = (float(close[0]), float(close[1]))
        squares, signal, level = (np.concatenate(each) for each in zip(*self.left, strict=True))
        own = np.array([background(squares[:, k], level[:, k], signal[:, k]) for k in range(model.traits)])
        changed = replace(model, slab=model.slab * np.exp(step), together=together, background=own)
        moved = max(np.abs(step).max(), np.abs(close - before).max(), np.abs(own - model.background).max())
        if sample is not None:
            changed, now = sample.solve(changed, self.shares(model))
            then = sample.expected(model)
            for one, other in ((now.sizes[2:], then.sizes[2:]), (now.pairs, then.pairs)):
                moved = max(moved, np.abs(np.log((one + _PRIOR_COUNT) / (other + _PRIOR_COUNT))).max())
        return changed, float(moved)

    def exponents(self, model: TraitModel) -> Floats:
        """(K,), after one round."""
        precision = 1 / _EXPONENT_SD**2
        step = (self.score + precision * (1 - model.exponents)) / (self.information + precision)
        moved = model.exponents + np.clip(step, -_EXPONENT_LEAP, _EXPONENT_LEAP)
        return np.asarray(np.clip(moved, 0.0, _MOST_EXPONENT))

    def close_by_chance(self, model: TraitModel) -> Floats:
        """(2,), what `close` would be if the located effects were anywhere."""
        traits = np.asarray(model.classes.traits)
        disjoint = traits @ traits.T == 0
        pairs = np.outer(self.around, self.located) / max(self.variants, 1) / 2
        return np.array([pairs[~disjoint].sum(), pairs[disjoint].sum()])

    def shares(self, model: TraitModel) -> Shares:
        """What is counted of variants that act on several traits, over all effects."""
        K = len(self.present)
        n = np.arange(K + 1)
        possible = np.isin(n, model.sets.sum(axis=1))
        sizes, pairs = smoothed(np.where(n >= 2, self.sizes, 0.0), self.pairs, possible, _SMOOTH_COUNT)
        several = possible & (n >= 2)
        sizes = np.where(several, sizes + _SIZE_COUNT, 0.0)
        effects = float(self.present.sum() + _SIZE_COUNT * n[several].sum() + _PRIOR_COUNT * K)
        return Shares(sizes / effects, pairs / effects, effects)


def exponent_score(log_prior: Floats, odds: Floats, probability: Floats, model: TraitModel) -> tuple[Floats, Floats]:
    """(K,) each, of variants the score of the exponents and the information that known effects would have on them.

    log_prior: (m, K), of the variants.  odds, probability: (m, C + F), log prior odds and posterior.
    """
    prior = np.exp(odds - np.logaddexp(0, np.logaddexp.reduce(odds, axis=1))[:, None])
    follow = model.follow()
    score = (((probability - prior) @ follow) * log_prior).sum(axis=0)
    return score, ((prior @ follow**2) * log_prior**2).sum(axis=0)


def _sharpened(probability: Floats, several: NDArray[np.bool_]) -> Floats:
    """(m, C + F), the probabilities, those of classes on `several` traits times what makes their share q of the
    variant's q^a / (q^a + (1 - q)^a)."""
    q = probability[:, several].sum(axis=1) / np.maximum(probability.sum(axis=1), 1e-30)
    q = np.clip(q, 0.0, 1.0)
    sure = q ** (_SHARPER - 1) / (q**_SHARPER + (1 - q) ** _SHARPER)
    return np.where(several[None, :], probability * sure[:, None], probability)


def all_direct(blocks: Sequence[JointBlock]) -> Floats:
    """(n, K), d of all variants of the blocks; blocks that know it need not be read."""
    known = getattr(blocks, "direct_variances", None)
    return np.concatenate([block.direct for block in blocks]) if known is None else np.asarray(known())


def least_slab(model: TraitModel) -> Floats:
    """(K,), the smallest variance of effects that can be seen: N s is `_VISIBLE` times the noise."""
    return np.asarray(_VISIBLE * np.diag(model.noise) / model.sample_size)


def _close(leads: Floats, of_sets: Floats, traits: Floats) -> Floats:
    """(2,), expected pairs of credible sets, leads in LD of `CLOSE` to `_APART`, with a trait in common and with none.

    leads: (k, sets), columns of G.  of_sets: (sets, C).  traits: (C, K), that each class acts on.
    """
    near = _in_reach(leads, leads)
    np.fill_diagonal(near, False)
    disjoint = (of_sets @ (traits @ traits.T == 0) @ of_sets.T)[near].sum() / 2
    every = np.outer(of_sets.sum(axis=1), of_sets.sum(axis=1))[near].sum() / 2
    return np.array([every - disjoint, disjoint])


def _near(G: Floats, leads: Floats) -> Floats:
    """(sets,), numbers of variants in such LD with each lead."""
    return np.asarray(_in_reach(leads, G).sum(axis=1), np.float64)


def _in_reach(leads: Floats, G: Floats) -> NDArray[np.bool_]:
    """(sets, m), LD r^2 of `CLOSE` to `_APART`."""
    r2 = squared_ld(leads, G)
    return np.asarray((r2 > CLOSE) & (r2 < _APART))


def locate(
    blocks: Iterable[JointBlock],
    model: TraitModel,
    *,
    slots: int = 10,
    candidates: int = 64,
    coverage: float = 0.95,
    panel: float | None = None,
    shape: tuple[int, int] | None = None,
    more: int = 0,
) -> Iterator[tuple[JointBlock, Floats, BlockEffects]]:
    """Each block with its log odds and its effects.

    slots, candidates, coverage, more: as of `locate_effects`.

    panel: people that the LD was estimated from. Effects u add E[u u^T] / panel to the noise of every whitened
    direction, as LD of other people is off by chance; where that matters a block is weighed again. None takes LD as
    exact.  Blocks are located in threads, a few ahead of what is asked for, and come in their order.
    """
    classes = model.classes

    def one(block: JointBlock) -> tuple[JointBlock, Floats, BlockEffects]:
        odds = model.log_odds(block.direct, block.shared)
        level, used = model.noise, classes
        G, y, spread = beside_background(block, model)
        task = Task(G, y, odds)
        for number in range(_RAISES + 1):
            if number:
                used = replace(model, noise=level).classes
            (found,) = locate_effects(
                [task],
                used,
                slots=slots,
                candidates=candidates,
                coverage=coverage,
                shape=block.shape or shape,
                together=model.together,
                more=more,
            )
            if panel is None:
                break
            wanted = raised(model, found, panel)
            if np.abs(np.log(np.diag(wanted) / np.diag(level))).max() < _SETTLED:
                break
            level = wanted
        if spread is not None:
            sets = [replace(one, purity=purity(block.factor, one.variants)) for one in found.sets]
            found = replace(found, sets=sets, fitted=found.fitted * spread)
        return block, odds, _doubted(found, model)

    each = iter(blocks)
    for block in each:
        yield one(block)  # compiles, once
        break
    workers = min(_WORKERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[tuple[JointBlock, Floats, BlockEffects]]] = deque()
        for block in each:
            waiting.append(pool.submit(one, block))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def beside_background(
    block: JointBlock, model: TraitModel
) -> tuple[NDArray[np.floating], NDArray[np.floating], Floats | None]:
    """Factor and whitened z-scores over the spread (k, 1) of noise with background, and that; None is 1."""
    if not model.background.any():
        return block.factor, block.whitened, None
    spread = model.spread_of_background(model.signal(block.factor, block.direct))[:, None]
    G, y = (x / spread.astype(x.dtype) for x in (block.factor, block.whitened))
    return G, y, spread


def _doubted(found: BlockEffects, model: TraitModel) -> BlockEffects:
    """The same, where an effect through a factor that there may not be is one of the variant's own then.

    How large these own effects would be is not worked out: they have the slab's variance.
    """
    doubt = 1 - model.factor_probability
    if not (doubt > 0).any():
        return found
    probability, of_sets, square = found.probability.copy(), found.of_sets.copy(), found.square.copy()
    C = len(model.sets)
    moved = found.probability[:, C:] * doubt[None, :]
    square += moved @ (model.sets[model.moved_by_factors] * model.slab[None, :])
    for array in (probability, of_sets):
        own = array[:, C:] * doubt[None, :]
        array[:, C:] -= own
        for column, c in zip(own.T, model.moved_by_factors.tolist(), strict=True):
            array[:, c] += column
    return replace(found, probability=probability, of_sets=of_sets, square=square)


def raised(model: TraitModel, found: BlockEffects, panel: float) -> Floats:
    """Noise (K, K) with the error that the effects found have in LD of `panel` people."""
    return panel_noise(model.noise, panel_error(model, found, panel))


def panel_error(model: TraitModel, found: BlockEffects, panel: float) -> Floats:
    """(K, K), E[u u^T] / panel, u the total effects times sqrt(N); through a factor, as large as its prior has them."""
    moment = np.diag(np.sum(found.square - found.mean**2, axis=0)) + found.mean.T @ found.mean
    loads = model.loadings.reshape(model.factors, model.traits) * np.sqrt(model.sample_size)[None, :]
    through = found.probability[:, len(model.sets) :].sum(axis=0)
    return np.asarray((model.forward.T @ moment @ model.forward + (loads.T * through) @ loads) / panel)


def panel_noise(noise: Floats, error: Floats) -> Floats:
    """Noise (K, K) with the LD panel's error (K, K), less the inflation above 1 that the noise has already."""
    own = np.diag(noise)
    extra = np.maximum(0.0, np.minimum(own, 1.0) + np.diag(error) - own)
    scale = np.sqrt(extra / np.maximum(np.diag(error), 1e-300))
    return np.asarray(noise + error * np.outer(scale, scale))


def learn(
    blocks: Sequence[JointBlock],
    model: TraitModel,
    *,
    share: bool = True,
    rounds: int = 15,
    tolerance: float = 0.05,
    slots: int = 10,
    candidates: int = 64,
    panel: float | None = None,
    shape: tuple[int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
    by_exponents: Callable[[Floats], Sequence[JointBlock]] | None = None,
) -> tuple[TraitModel, int]:
    """Slab variances and psi from blocks, read anew each round; returns the model and the rounds taken.

    share: learn psi; else independence.  by_exponents: the blocks with priors raised to exponents (K,), which are
    learned then; None holds them.  The rest as for `locate`.  progress: called as progress(blocks done, blocks of all
    rounds).
    """
    start = model.slab
    sample = Sample.of(all_direct(blocks), model) if share else None
    if sample is not None and not model.excess.any():
        model = sample.shared(model)
    done, total = 0, rounds * len(blocks)
    for number in range(rounds):
        counts = Counts.zero(model)
        each = locate(blocks, model, slots=slots, candidates=candidates, panel=panel, shape=shape)
        for block, odds, found in each:
            counts.add(block, found, model, panel, None if by_exponents is None else odds)
            done += 1
            if progress is not None:
                progress(done, total)
        step = 0.0
        if by_exponents is not None:
            exponents = counts.exponents(model)
            step = float(np.abs(exponents - model.exponents).max())
            if step > _EXPONENT_MOVES:
                model, blocks = replace(model, exponents=exponents), by_exponents(exponents)
                sample = Sample.of(all_direct(blocks), model) if share else None
        model, change = counts.update(model, start, sample)
        change = max(change, step)
        if change < tolerance:
            if progress is not None:
                progress(total, total)
            return model, number + 1
    return model, rounds
