"""Learning what all blocks share: slab variances and the excess of shared variants, by expectation-maximisation.

With p_jk the posterior probability that variant j acts on trait k by itself and pi_jk = d_jk / s_k its prior one,

    s_k <- (sum_j d_jk (1 - p_jk) / (1 - pi_jk) + 1/2 sum_j E[D_jk^2] + w s_0k) / (3/2 sum_j p_jk + w),

where w = `_PRIOR_COUNT` effects of the slab s_0 that learning starts from keep s_k in range where a trait shows none.

psi(n) moves by the log of the expected number of variants that act on n traits over the number that the prior gives,
both with `_PRIOR_COUNT` more, and the offsets a by the log of sum_j pi_jk over the prior's expected number for trait k:
iterative scaling, whose fixed point is the maximum over psi with the marginals held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deepwas.finemapping.block import BlockEffects, Task, locate_effects
from deepwas.pleiotropy.configurations import MOST_LIKELY, TraitModel

__all__ = ["Counts", "JointBlock", "learn", "locate"]

Floats = NDArray[np.float64]

_PRIOR_COUNT = 0.5
_LEAP = 1.5  # of a logarithm, a round
_RAISES = 2  # of a block's noise
_CLOSE = 0.03


@dataclass(frozen=True, eq=False)
class JointBlock:
    """One LD block with the z-scores of K traits.

    factor: G (k, m).  whitened: (k, K), of the trait-wise z-scores.  direct: (m, K), direct variances d.
    rows: of its variants in the store.  shape: to pad to; None for that of the call.
    """

    factor: NDArray[np.floating]
    whitened: NDArray[np.floating]
    direct: Floats
    rows: slice
    shape: tuple[int, int] | None = None


@dataclass
class Counts:
    """Sums over variants that learning needs.

    present, prior: (K,), of p and of pi.  kept: (K,), sum d (1 - p) / (1 - pi).  squares: (K,), sum E[D^2].
    sizes, prior_sizes: (K + 1,), numbers of variants by number of traits acted on, of posterior and prior.
    prior_present: (K,), expected number of variants by trait under the prior with psi and a.
    """

    present: Floats
    prior: Floats
    kept: Floats
    squares: Floats
    sizes: Floats
    prior_sizes: Floats
    prior_present: Floats

    @classmethod
    def zero(cls, traits: int) -> Counts:
        """Nothing counted."""
        present, prior, kept, squares, prior_present = np.zeros((5, traits))
        return cls(present, prior, kept, squares, np.zeros(traits + 1), np.zeros(traits + 1), prior_present)

    def add(self, block: JointBlock, log_odds: Floats, found: BlockEffects, model: TraitModel) -> None:
        """Count a block."""
        masks = model.masks.astype(np.float64)
        size = model.masks.sum(axis=1)
        p = found.probability @ masks
        pi = np.minimum(block.direct / model.slab[None, :], MOST_LIKELY)
        self.present += p.sum(axis=0)
        self.prior += pi.sum(axis=0)
        self.kept += np.sum(block.direct * (1 - np.minimum(p, 1)) / (1 - pi), axis=0)
        self.squares += found.square.sum(axis=0)
        prior = np.exp(log_odds - np.logaddexp(0, np.logaddexp.reduce(log_odds, axis=1))[:, None])
        np.add.at(self.sizes, size, found.probability.sum(axis=0))
        np.add.at(self.prior_sizes, size, prior.sum(axis=0))
        self.prior_present += (prior @ masks).sum(axis=0)

    def update(self, model: TraitModel, start: Floats, *, share: bool) -> tuple[TraitModel, float]:
        """The model after one round, and the largest change of a logarithm; share: learn psi."""
        slab = (self.kept + self.squares / 2 + _PRIOR_COUNT * start) / (1.5 * self.present + _PRIOR_COUNT)
        step = np.clip(np.log(slab / model.slab), -_LEAP, _LEAP)
        excess, offsets = model.excess.copy(), model.offsets.copy()
        moved = np.zeros(len(excess))
        if share:
            moved = np.clip(np.log((self.sizes + _PRIOR_COUNT) / (self.prior_sizes + _PRIOR_COUNT)), -_LEAP, _LEAP)
            moved[:2] = 0.0
            excess += moved
            offsets += np.log(self.prior / self.prior_present)
        changed = replace(model, slab=model.slab * np.exp(step), excess=excess, offsets=offsets)
        return changed, float(max(np.abs(step).max(), np.abs(moved).max()))


def locate(
    blocks: Iterable[JointBlock],
    model: TraitModel,
    *,
    slots: int = 10,
    candidates: int = 64,
    coverage: float = 0.95,
    panel: float | None = None,
    shape: tuple[int, int] | None = None,
) -> Iterator[tuple[JointBlock, Floats, BlockEffects]]:
    """Each block with its log odds and its effects.

    panel: people that the LD was estimated from. Effects u add E[u u^T] / panel to the noise of every whitened
    direction, as LD of other people is off by chance; where that matters a block is weighed again. None takes LD as
    exact.
    """
    for block in blocks:
        odds = model.log_odds(block.direct)
        task, level = Task(block.factor, block.whitened, odds), model.noise
        for number in range(_RAISES + 1):
            used = model if number == 0 else replace(model, noise=level)
            (found,) = locate_effects(
                [task],
                used.classes,
                slots=slots,
                candidates=candidates,
                coverage=coverage,
                shape=block.shape or shape,
            )
            if panel is None:
                break
            wanted = _raised(model, found, panel)
            if np.abs(np.log(np.diag(wanted) / np.diag(level))).max() < _CLOSE:
                break
            level = wanted
        yield block, odds, found


def _raised(model: TraitModel, found: BlockEffects, panel: float) -> Floats:
    """Noise with the LD panel's error; inflation that the noise has already is part of it."""
    moment = np.diag(np.sum(found.square - found.mean**2, axis=0)) + found.mean.T @ found.mean
    error = model.forward.T @ moment @ model.forward / panel
    own = np.diag(model.noise)
    extra = np.maximum(0.0, np.minimum(own, 1.0) + np.diag(error) - own)
    scale = np.sqrt(extra / np.maximum(np.diag(error), 1e-300))
    return np.asarray(model.noise + error * np.outer(scale, scale))


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
) -> tuple[TraitModel, int]:
    """Slab variances and psi from blocks, read anew each round; returns the model and the rounds taken.

    share: learn psi; else independence.  The rest as for `locate`.  progress: called as progress(blocks done, blocks of
    all rounds).
    """
    start = model.slab
    done, total = 0, rounds * len(blocks)
    for number in range(rounds):
        counts = Counts.zero(model.traits)
        each = locate(blocks, model, slots=slots, candidates=candidates, panel=panel, shape=shape)
        for block, odds, found in each:
            counts.add(block, odds, found, model)
            done += 1
            if progress is not None:
                progress(done, total)
        model, change = counts.update(model, start, share=share)
        if change < tolerance:
            if progress is not None:
                progress(total, total)
            return model, number + 1
    return model, rounds
