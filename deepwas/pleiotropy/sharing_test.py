"""Is there pleiotropy beyond chance? A test of psi = 0 by parametric bootstrap over LD blocks.

Under psi = 0 traits act on variants independently of one another given their priors
(`deepwas.pleiotropy.configurations`). The statistic of two traits is the log of the expected number of variants that
act on both, given the z-scores, over the number that independent traits would show, 1/2 added to both; that of all
traits counts the variants that act on two or more. Both come from the model with psi = 0, slabs learned under it. What
independent traits would show is sum_j q_j1 q_j2, where q_jk is the prior pi_jk scaled to as many variants acting on
trait k as the z-scores show: how many effects a trait has by chance says nothing of sharing.

The bound that learning climbs has no chi-square null, so the null distribution is simulated: on the same blocks, with
the same factors G, direct effects are drawn from their priors, D_jk = delta_jk N(0, s_k) with P(delta_jk = 1) = pi_jk,
and z-scores whitened as the data's are, y = G D (I - T)^-1 diag(sqrt N) + E with rows E_i ~ N(0, C_n) and the model's
background, effects as much likelier near one another as the model has it (`deepwas.pleiotropy.drawing`); they are
located as in the data. Of n draws, p = (1 + number of statistics >= the data's) /
(1 + n): never below 1 / (1 + n).

Slabs, C_n and the exponents of priors are held at their estimates in all draws, so the test is exact up to their error.
Variants count in the one block that scores them; blocks that overlap in their flanks are drawn one by one all the same.
Where T is uncertain every data set drawn has one of the model's draws of it, the same for all of its blocks.
Source: Davison & Hinkley 1997, section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.pleiotropy.configurations import MOST_LIKELY, TraitModel
from deepwas.pleiotropy.drawing import draw_without_sharing
from deepwas.pleiotropy.learning import JointBlock, learn, locate

__all__ = ["SharingTest", "sharing_test"]

Floats = NDArray[np.float64]

_COUNT = 0.5  # added to both numbers of a ratio
_ROUNDS = 6


@dataclass(frozen=True, eq=False)
class SharingTest:
    """Evidence that variants act on several traits more often than by chance.

    expected, chance: expected numbers of variants that act on two traits or more, given the z-scores, and of
    independent traits with as many effects.
    statistic: log((expected + 1/2) / (chance + 1/2)).  null: (draws,), of the bootstrap's.  p: one-sided.
    pair_expected, pair_chance, pair_statistic, pair_p: (K, K) symmetric, the same of every two traits, NaN on the
    diagonal.  blocks: used.  slab: (K,), learned under psi = 0.
    null_expected: (draws,), `expected` of each draw.
    """

    expected: float
    chance: float
    statistic: float
    p: float
    null: Floats
    pair_expected: Floats
    pair_chance: Floats
    pair_statistic: Floats
    pair_p: Floats
    blocks: int
    slab: Floats
    null_expected: Floats

    @property
    def draws(self) -> int:
        """Of the bootstrap."""
        return len(self.null)

    def as_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """JSON-ready; names: of the traits."""
        pairs = [(j, k) for j in range(len(names)) for k in range(j + 1, len(names))]
        return {
            "draws": self.draws,
            "blocks": self.blocks,
            "expected": self.expected,
            "chance": self.chance,
            "null_median": float(np.median(self.null_expected)),
            "log_ratio": self.statistic,
            "p": self.p,
            "pairs": [
                {
                    "traits": [names[j], names[k]],
                    "expected": float(self.pair_expected[j, k]),
                    "chance": float(self.pair_chance[j, k]),
                    "log_ratio": float(self.pair_statistic[j, k]),
                    "p": float(self.pair_p[j, k]),
                }
                for j, k in pairs
            ],
        }


def sharing_test(
    blocks: Sequence[JointBlock],
    model: TraitModel,
    *,
    draws: int = 99,
    seed: int = 0,
    rounds: int = _ROUNDS,
    slots: int = 10,
    candidates: int = 64,
    panel: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SharingTest:
    """Test psi = 0 on some LD blocks, over all traits and for every two.

    model: its psi is set to 0 here, and factors that are less likely than not are left out.
    draws: of the bootstrap; 19 allow p = 0.05 at least, 99 p = 0.01.
    rounds: in which slabs are learned under psi = 0; 0 keeps the model's.  The rest as for `locate`.
    progress: called as progress(passes over the blocks done, passes of all).
    Cost: 1 + rounds + draws passes over the blocks.
    """
    if draws < 1:
        raise InputError(f"draws is {draws}; the bootstrap needs one or more, 19 to find p = 0.05.")
    if model.traits < 2 or not len(blocks):
        raise InputError(f"sharing is tested between two traits or more, on one LD block or more; got {model.traits}.")
    settings: dict[str, Any] = {"slots": slots, "candidates": candidates, "panel": panel}
    K, total = model.traits, rounds + 1 + draws
    null = replace(model.believed(), excess=np.zeros(K + 1), pairs=np.zeros((K, K)), offsets=np.zeros(K), follows=1.0)
    if rounds:

        def say(done: int, _: int) -> None:
            if progress is not None:
                progress(done // len(blocks), total)

        null, _ = learn(blocks, null, share=False, rounds=rounds, progress=say, **settings)
    done = rounds
    prior: list[Floats] = []

    def numbers(data: Sequence[JointBlock]) -> tuple[Floats, Floats]:
        """Expected numbers, and those by chance: (K + 1, K), by pair, the last row for all traits."""
        nonlocal done
        found, present = np.zeros((K + 1, K)), np.zeros(K)
        known = bool(prior)
        for block, _, effects in locate(data, null, **settings):
            probability = effects.probability[block.scored]
            found += _found(probability, null)
            present += (probability @ null.masks).sum(axis=0)
            if not known:
                prior.append(null.pi(block.direct[block.scored]))
        done += 1
        if progress is not None:
            progress(done, total)
        return found, _chance(np.concatenate(prior), present)

    found, chance = numbers(blocks)
    observed = np.log((found + _COUNT) / (chance + _COUNT))
    simulated, drawn = np.empty((draws, K + 1, K)), np.empty(draws)
    for i in range(draws):
        of_draw = numbers(_Drawn(blocks, null, [seed, i], panel))
        drawn[i] = of_draw[0][K, 0]
        simulated[i] = np.log((of_draw[0] + _COUNT) / (of_draw[1] + _COUNT))
    p = (1 + np.sum(simulated >= observed[None], axis=0)) / (1 + draws)
    off = ~np.eye(K, dtype=bool)

    def pairs(x: Floats) -> Floats:
        return np.where(off, x[..., :K, :], np.nan)

    return SharingTest(
        float(found[K, 0]),
        float(chance[K, 0]),
        float(observed[K, 0]),
        float(p[K, 0]),
        simulated[:, K, 0],
        pairs(found),
        pairs(chance),
        pairs(observed),
        pairs(p),
        len(blocks),
        null.slab,
        drawn,
    )


def _found(probability: Floats, model: TraitModel) -> Floats:
    """(K + 1, K): expected numbers of variants that act on both traits of a pair; in the last row on two or more.

    probability: (m, C + F), of each variant and class.
    """
    masks = model.masks.astype(np.float64)
    p = probability.sum(axis=0)
    several = float(p[masks.sum(axis=1) >= 2].sum())
    return np.concatenate([(masks * p[:, None]).T @ masks, np.full((1, model.traits), several)])


def _chance(prior: Floats, present: Floats) -> Floats:
    """The same of independent traits.  prior: (M, K), pi.  present: (K,), expected number of variants on each trait."""
    scale = (present + _COUNT) / (prior.sum(axis=0) + _COUNT)
    q = np.minimum(prior * scale[None, :], MOST_LIKELY)
    none = np.prod(1 - q, axis=1)
    one = none * np.sum(q / (1 - q), axis=1)
    return np.concatenate([q.T @ q, np.full((1, prior.shape[1]), np.maximum(1 - none - one, 0.0).sum())])


class _Drawn(Sequence[JointBlock]):
    """The blocks with z-scores drawn anew, each at its use."""

    def __init__(self, blocks: Sequence[JointBlock], model: TraitModel, seed: list[int], panel: float | None):
        if len(model.draws):
            number = np.random.default_rng([*seed, len(blocks)]).integers(len(model.draws))
            model = replace(model, T=model.draws[number], draws=np.zeros((0, 0, 0)))
        self.blocks, self.model, self.seed, self.panel = blocks, model, seed, panel

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, i: Any) -> Any:
        block = self.blocks[i]
        rng = np.random.default_rng([*self.seed, i])
        return replace(block, whitened=draw_without_sharing(block, self.model, rng, self.panel))

    def __iter__(self) -> Iterator[JointBlock]:
        return (self[i] for i in range(len(self)))
