"""What a block's located effects say of its variants and credible sets: on which traits they act, and how."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwas.finemapping.block import BlockEffects
from deepwas.finemapping.groups import squared_ld
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.learning import JointBlock
from deepwas.pleiotropy.splitting import CLOSEST, Split

__all__ = [
    "CLASSES",
    "KEPT",
    "Locus",
    "block_columns",
    "block_figures",
    "classify_probabilities",
    "ld_kept",
    "loci_of",
    "names_of_values",
    "read_loci",
    "values_of",
]

Floats = NDArray[np.float64]

_UNRESOLVABLE = 0.1  # of P(split): the z-scores do not hold one effect for nine times as likely as two
KEPT = "ld_kept"  # of the values of a block's variants: what `ld_kept` gives
CLASSES = ("none", "pleiotropic", "vertical", "ld_only", "single", "confounder")
_SHARES = ("pleiotropy", "single", "vertical", "confounder", "apart")


def names_of_values(traits: int) -> tuple[str, ...]:
    """What `values_of` returns, in order."""
    return (*_SHARES, *(f"pip_{k}" for k in range(traits)), *(f"effect_{k}" for k in range(traits)))


def values_of(found: BlockEffects, model: TraitModel, scored: slice, passing: Floats) -> list[Floats]:
    """Of each scored variant the probabilities of >= 2 direct traits, of one alone, of that one acting through T on
    others, of an effect through a heritable factor, of an effect in LD with one on other traits; then of each direct
    trait; then direct effects.

    passing: (K,), probability that a direct effect on the trait reaches another one.
    """
    p, masks = np.clip(found.probability[scored], 0, 1), model.masks
    size = masks.sum(axis=1)
    alone = p[:, size == 1]  # the first K configurations, trait by trait
    through = p[:, len(size) - model.factors :].sum(axis=1)
    shares = [p[:, size >= 2].sum(axis=1), alone.sum(axis=1), alone @ passing, through, found.apart[scored]]
    values = [*shares, *(p @ masks.astype(np.float64)).T]
    return [np.clip(x, 0, 1) for x in values] + list(found.mean[scored].T)


def ld_kept(G: NDArray[Any]) -> Floats:
    """(m,), share of each variant's variance that lies in the directions kept.  G: (k, m)."""
    return np.asarray(np.minimum(np.einsum("ij,ij->j", G, G, dtype=np.float64), 1.0))


def block_columns(traits: int) -> tuple[str, ...]:
    """What `block_figures` returns, in order."""
    pairs = [f"{what}_{j}_{k}" for what in ("both", "chance") for j in range(traits) for k in range(j, traits)]
    return ("effects", "variance", "converged", *pairs)


def block_figures(block: JointBlock, found: BlockEffects, model: TraitModel, scored: slice) -> list[float]:
    """Expected number of effects, its variance, whether it converged; for each pair of traits the expected number of
    variants that act on both, given the z-scores, and then by independent priors."""
    masks = model.masks.astype(np.float64)
    p = found.probability[scored].sum(axis=0)
    both = (masks * p[:, None]).T @ masks
    pi = model.pi(block.direct[scored])
    chance = pi.T @ pi
    np.fill_diagonal(chance, pi.sum(axis=0))
    upper = np.triu_indices(model.traits)
    # Effects at flanks are another block's; of the variance no more is known than that it is shared like the number.
    expected = float(found.probability[scored].sum())
    share = expected / max(float(found.probability.sum()), 1e-12)
    return [expected, share * found.variance, float(found.converged), *both[upper], *chance[upper]]


@dataclass(frozen=True, eq=False)
class Locus:
    """A credible set.  variants: rows of the store, likeliest first.  probability: of each.  effect: that it exists.

    of_class: (C + F,), probability that it exists and is of the class.  apart: at its lead, given that it exists.
    nearest: largest r^2 of its lead with another set's of the block.
    split: of a shared set, whether its effect could be two, with rows of the store; None of others.
    """

    block: int
    variants: NDArray[np.int64]
    probability: Floats
    effect: float
    purity: float
    of_class: Floats
    apart: float
    nearest: float
    split: Split | None

    @property
    def unresolvable(self) -> bool:
        """One effect here cannot be told from two so close to one another."""
        return self.nearest > CLOSEST or (self.split is not None and self.split.probability > _UNRESOLVABLE)

    def shared(self, model: TraitModel) -> float:
        """Probability that the set's effect is one on two traits or more, of a member's own."""
        several = float(self.of_class[model.masks.sum(axis=1) >= 2].sum()) / max(self.effect, 1e-12)
        return min(several, 1.0) * min(float(self.probability.sum()), 1.0)


def loci_of(found: BlockEffects, G: NDArray[Any], first: int, scored: slice, split: Sequence[Split | None]) -> str:
    """The sets led by a scored variant, as text for `Locus`.

    first: row of the store of the first candidate.  split: of each set, in rows of the block.
    """
    own = [j for j, one in enumerate(found.sets) if scored.start <= one.lead < scored.stop]
    leads = [one.lead for one in found.sets]
    columns = np.asarray(G[:, leads], np.float64)
    r2 = squared_ld(columns, columns)
    np.fill_diagonal(r2, 0.0)
    out = []
    for j in own:
        one = found.sets[j]
        apart = float(found.apart[one.lead]) / max(float(found.inclusion[one.lead]), 1e-12)
        out.append(
            [
                (one.variants + first).tolist(),
                one.probability.tolist(),
                one.effect,
                one.purity,
                found.of_sets[j].tolist(),
                float(np.clip(apart, 0.0, 1.0)),
                float(r2[j].max()) if len(leads) > 1 else 0.0,
                _in_store(split[j], first),
            ]
        )
    return json.dumps(out)


def _in_store(split: Split | None, first: int) -> list[Any] | None:
    if split is None:
        return None
    rows = None if split.variants is None else [j + first for j in split.variants]
    return [split.probability, split.trait, rows]


def read_loci(block: int, text: str) -> list[Locus]:
    """What `loci_of` wrote."""
    return [
        Locus(
            block,
            np.array(rows, np.int64),
            np.array(p),
            effect,
            purity,
            np.array(of_class),
            apart,
            nearest,
            None
            if split is None
            else Split(split[0], split[1], None if split[2] is None else (split[2][0], split[2][1])),
        )
        for rows, p, effect, purity, of_class, apart, nearest, split in json.loads(text)
    ]


def classify_probabilities(
    pleiotropy: Floats, single: Floats, vertical: Floats, confounder: Floats, apart: Floats
) -> NDArray[Any]:
    """The likeliest class, of `CLASSES`: no effect, several direct traits, one direct trait, or a heritable factor.

    One direct trait is 'vertical' if that acts through T on others, with more than half of the probability; else
    'ld_only' if another variant in LD acts on other traits with more than half; else 'single'.
    """
    none = np.maximum(1 - pleiotropy - single - confounder, 0.0)
    best = np.argmax(np.stack([none, pleiotropy, single, confounder], axis=-1), axis=-1)
    one = np.where(vertical > single / 2, 2, np.where(apart > single / 2, 3, 4))
    index = np.where(best == 2, one, np.where(best == 3, 5, best))
    return np.asarray(CLASSES)[index]
