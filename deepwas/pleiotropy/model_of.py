"""The parameters that all blocks share, learned from some of them: sizes of effects, sharing, heritable factors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.finemapping.block import BlockEffects
from deepwas.pleiotropy.configurations import (
    MOST_TRAITS,
    TraitModel,
    direct_variances,
    numbers_of_sets,
    sets_of_numbers,
)
from deepwas.pleiotropy.factors import HeritableFactor, find_factors
from deepwas.pleiotropy.genome import Structure
from deepwas.pleiotropy.growing import grown
from deepwas.pleiotropy.joint import JointBlocks, Traits
from deepwas.pleiotropy.learning import TOGETHER, JointBlock, learn, least_slab, locate
from deepwas.pleiotropy.options import PleiotropyOptions
from deepwas.pleiotropy.sharing import price_of_pairs

__all__ = [
    "BlocksToLocate",
    "Learned",
    "TraitPriors",
    "learn_model",
    "model_from_numbers",
    "numbers_of",
    "prior_direct",
    "priors_of",
]

Floats = NDArray[np.float64]
Say = Callable[[str, int, int], None]

_START = 1e-3  # mean pi_jk that learning starts from
_SHARED = 0.5
_OBSERVED = 0.8  # g^T g of leads that may show a factor: the LD store's directions hold so much of their variance
_LEAST_OWN = 0.02  # of f: f and T are estimates, and rule out no effect of a variant's own
_VARIES = 1e-6  # of log d
_OTHERWISE = 0.25  # change of exponents: sharing that was learned beside such priors is learned anew
_RANGE = 7.0  # nats that an effect variance may lie below the trait's mean, as far as networks of `fit` go by default


def prior_direct(f: Floats, T: Floats) -> Floats:
    """Direct variances d (M, K), `direct_variances` and at least a fiftieth of f; f of 0 is none, others are raised to
    e^-7 of the trait's mean: a part of the genome whose fit finds no heritability rules out no effect."""
    likely = np.where(f > 0, np.maximum(f, np.exp(-_RANGE) * _mean_of_some(f)), 0.0)
    return np.maximum(direct_variances(likely, T), _LEAST_OWN * likely)


def _mean_of_some(f: Floats) -> Floats:
    """(K,), mean of those that are not 0."""
    some = f > 0
    return np.asarray(np.where(some, f, 0.0).sum(axis=0) / np.maximum(some.sum(axis=0), 1))


@dataclass(frozen=True, eq=False)
class TraitPriors:
    """Priors f (M, K) of the store's variants, T (K, K), and which of the variants (M,) are in blocks."""

    f: Floats
    T: Floats
    inside: NDArray[np.bool_]

    def direct(self, exponents: Floats) -> Floats:
        """(M, K), d by f^t with the mean of f: `prior_direct`.  exponents: (K,), t."""
        f = self.f.copy()
        for k in np.flatnonzero(exponents != 1).tolist():
            some = f[:, k] > 0
            given, _ = self._floored(slice(None), k)
            raised = np.exp(exponents[k] * np.log(given[some] / given[some].max()))
            f[some, k] = raised * (given[self.inside].mean() / (raised[self.inside[some]].sum() / self.inside.sum()))
        return prior_direct(f, self.T)

    def log_prior(self, direct: Floats) -> Callable[[slice], Floats]:
        """Of rows (m, K), log f less its mean by the variances d (M, K), which exponents weigh. It is 0 where f
        does not vary, and of f that is raised to the least, which says nothing."""
        K = self.f.shape[1]
        centre = np.full(K, np.nan)
        for k in range(K):
            given, told = self._floored(slice(None), k)
            told &= self.inside
            log = np.log(given[told])
            if len(log) and np.ptp(log) > _VARIES:
                centre[k] = np.average(log, weights=np.maximum(direct[told, k], 1e-300))

        def of_rows(rows: slice) -> Floats:
            out = np.zeros((rows.stop - rows.start, K))
            for k in np.flatnonzero(np.isfinite(centre)).tolist():
                given, told = self._floored(rows, k)
                out[told, k] = np.log(given[told]) - centre[k]
            return out

        return of_rows

    def _floored(self, rows: slice, k: int) -> tuple[Floats, NDArray[np.bool_]]:
        """f of a trait, raised to the least that it is taken for, and which of it is more than that."""
        f = self.f[rows, k]
        least = np.exp(-_RANGE) * self._mean[k]
        return np.where(f > 0, np.maximum(f, least), 0.0), f > least

    @cached_property
    def _mean(self) -> Floats:
        return _mean_of_some(self.f)


def priors_of(traits: Traits, joint: JointBlocks, structure: Structure) -> TraitPriors:
    """The traits' priors, in the blocks that are used."""
    inside = np.zeros(len(traits.f), bool)
    for i in range(len(joint)):
        inside[joint.rows(i)] = True
    return TraitPriors(traits.f, structure.effects.T, inside)


class BlocksToLocate(Sequence[JointBlock]):
    """Some of the joint blocks, read at each use, padded to few shapes.

    direct: (M, K), d of the store's variants.  shared: of every joint block, `JointBlock.shared`.
    log_prior: of rows, `JointBlock.log_prior`, if exponents of priors are to be learned.
    """

    def __init__(
        self,
        joint: JointBlocks,
        direct: Floats,
        members: Sequence[int],
        shapes: Sequence[tuple[int, int]],
        shared: Sequence[NDArray[np.float32]] | None = None,
        log_prior: Callable[[slice], Floats] | None = None,
    ):
        self.joint, self.direct, self.members, self.shapes = joint, direct, list(members), list(shapes)
        self.shared, self.log_prior = shared, log_prior

    def some(self, most: int) -> BlocksToLocate:
        """At most so many of them, evenly spread."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(len(self), most)).astype(int)).tolist()
        members, shapes = [self.members[j] for j in chosen], [self.shapes[j] for j in chosen]
        return BlocksToLocate(self.joint, self.direct, members, shapes, self.shared, self.log_prior)

    def __len__(self) -> int:
        return len(self.members)

    @overload
    def __getitem__(self, j: int) -> JointBlock: ...
    @overload
    def __getitem__(self, j: slice) -> list[JointBlock]: ...
    def __getitem__(self, j: int | slice) -> JointBlock | list[JointBlock]:
        if isinstance(j, slice):
            return [self[x] for x in range(*j.indices(len(self)))]
        i = self.members[j]
        rows = self.joint.rows(i)
        shared = None if self.shared is None else self.shared[i]
        return JointBlock(
            self.joint.factor(i),
            self.joint.whitened[i],
            self.direct[rows],
            rows,
            self.shapes[j],
            shared,
            self.joint.scored(i),
            None if self.log_prior is None else self.log_prior(rows),
        )

    def direct_variances(self) -> Floats:
        """(n, K), of all variants of the blocks, one block after another."""
        return np.concatenate([self.direct[self.joint.rows(i)] for i in self.members])


@dataclass(frozen=True, eq=False)
class Learned:
    """The model.  direct: (M, K), d, by priors raised to its exponents.  rounds: taken.

    leads, blurred: of effects that seem to act on several traits, all, and those of which the LD store's directions
    hold too little for a factor to be seen in them.
    """

    model: TraitModel
    direct: Floats
    rounds: int
    leads: int = 0
    blurred: int = 0


def learn_model(
    traits: Traits,
    joint: JointBlocks,
    structure: Structure,
    shapes: Sequence[tuple[int, int]],
    options: PleiotropyOptions,
    panel: float | None,
    progress: Say | None = None,
) -> Learned:
    """The model, from at most `learn_blocks` blocks over the genome; heritable factors are looked for in all of them.

    shapes: that each joint block is padded to.  panel: people that the LD was estimated from.
    """
    priors = priors_of(traits, joint, structure)
    mean = priors.direct(np.ones(len(traits.names)))[priors.inside].mean(axis=0)
    for k, name in enumerate(traits.names):
        if not mean[k] > 0:
            raise InputError(f"{name}: its prior is 0 in all LD blocks that are used. Leave the trait out.")
    model = TraitModel(
        traits.sample_size,
        structure.matrix,
        mean / _START,
        structure.effects.T,
        draws=structure.draws,
        together=(TOGETHER, TOGETHER),
        mean_direct=mean,
        follows=0.0 if options.sharing else 1.0,
    )
    model = replace(model, slab=np.maximum(model.slab, least_slab(model)))

    def every(exponents: Floats) -> BlocksToLocate:
        direct = priors.direct(exponents)
        return BlocksToLocate(joint, direct, range(len(joint)), shapes, log_prior=priors.log_prior(direct))

    def some(exponents: Floats) -> BlocksToLocate:
        return every(exponents).some(options.learn_blocks)

    def begun(exponents: Floats) -> TraitModel:
        """What learning starts from."""
        start = replace(model, exponents=exponents)
        if model.traits <= MOST_TRAITS:
            return start
        blocks = some(exponents)
        how: dict[str, Any] = {"slots": options.max_effects, "candidates": options.candidates, "panel": panel}
        each = locate(blocks, start, **how)
        return grown(_said(each, "looking for sets of traits", len(blocks), progress), start)

    def learned(start: TraitModel, by_exponents: Any, what: str) -> tuple[TraitModel, int]:
        def say(done: int, total: int) -> None:
            if progress is not None:
                progress(what, done, total)

        return learn(
            some(start.exponents),
            start,
            share=options.sharing,
            rounds=options.rounds,
            slots=options.max_effects,
            candidates=options.candidates,
            panel=panel,
            progress=say,
            by_exponents=by_exponents,
        )

    given = model.exponents
    found, rounds = learned(begun(given), some, "learning sizes of effects and sharing")
    if options.sharing and np.abs(found.exponents - given).max() > _OTHERWISE:
        found, more = learned(begun(found.exponents), some, "learning them anew beside the priors' powers")
        rounds += more
    leads = blurred = 0
    if options.confounders and model.traits > 2:
        blocks = every(found.exponents)
        learned_on = set(blocks.some(options.learn_blocks).members)
        factors, leads, blurred = _factors(blocks, learned_on, found, options, panel, progress)
        found = _with_factors(found, factors, blocks)
        if found.factors:
            found, more = learned(found, None, "learning them anew beside factors")
            rounds += more
    return Learned(found, priors.direct(found.exponents), rounds, leads, blurred)


def _with_factors(model: TraitModel, factors: Sequence[HeritableFactor], blocks: BlocksToLocate) -> TraitModel:
    """The model with these factors, less those that no variant can act through by the priors."""
    if not factors:
        return model
    number = len(factors)
    changed = replace(
        model,
        loadings=np.stack([one.loadings for one in factors]),
        factor_odds=np.zeros(number),
        factor_probability=np.array([one.probability for one in factors]),
    )
    by_prior = np.zeros(number)
    for i in blocks.members:
        by_prior += np.exp(changed.odds_of_factors(blocks.direct[blocks.joint.scored_rows(i)])).sum(axis=0)
    able = by_prior > 0
    members = np.array([one.members for one in factors])
    return replace(
        changed,
        loadings=changed.loadings[able],
        factor_odds=np.log(members[able] / by_prior[able]),
        factor_probability=changed.factor_probability[able],
    )


def _said(
    located: Iterator[tuple[JointBlock, Floats, BlockEffects]], what: str, total: int, progress: Say | None
) -> Iterator[tuple[JointBlock, Floats, BlockEffects]]:
    """The same, with progress."""
    for done, one in enumerate(located, start=1):
        if progress is not None:
            progress(what, done, total)
        yield one


def _factors(
    blocks: BlocksToLocate,
    learned_on: set[int],
    model: TraitModel,
    options: PleiotropyOptions,
    panel: float | None,
    progress: Say | None,
) -> tuple[list[HeritableFactor], int, int]:
    """The heritable factors that the leads of shared effects show, if any: the few that there are lie far apart; how
    many such leads there are, and how many of them are blurred by LD.

    learned_on: the blocks, of all, that psi was learned from.
    """
    size = model.masks.sum(axis=1)
    own = np.eye(model.traits) - model.T  # of total effects: those that no other trait passes on
    n = np.sqrt(model.sample_size)
    effects, weights = [], []
    known_from, blurred = 0.0, 0
    each = locate(blocks, model, slots=options.max_effects, candidates=options.candidates, panel=panel)
    told = _said(each, "looking for heritable factors", len(blocks), progress)
    for i, (block, _, found) in zip(blocks.members, told, strict=True):
        scored = blocks.joint.scored(i)
        G = np.asarray(block.factor, np.float64)
        u = found.mean @ model.forward
        left = block.whitened - G @ u
        for one, of_class in zip(found.sets, found.of_sets, strict=True):
            shared = float(of_class[size >= 2].sum())
            if shared > _SHARED:
                # Not the posterior mean, which is 0 where the likeliest configuration has no effect.
                g = G[:, one.lead]
                if not scored.start <= one.lead < scored.stop:  # another block reports it
                    continue
                if g @ g < _OBSERVED:  # its effect is not as well known as E says
                    blurred += 1
                    continue
                alone = left + G[:, one.variants] @ u[one.variants]
                effects.append(g @ alone / (g @ g) / n)
                weights.append(min(shared, 1.0))
                known_from += weights[-1] if i in learned_on else 0.0
    leads = len(effects) + blurred
    if not effects:
        return [], leads, blurred
    masks = model.masks[size >= 2]
    sets = masks[:, :, None] * np.diag(model.slab)[None]
    error = own.T @ (model.noise / np.outer(n, n)) @ own
    share = model.log_odds(model.mean_direct[None])[0, size >= 2]
    price = price_of_pairs(model.pairs, share, masks, known_from) if options.sharing else 0.0
    factors = find_factors(np.array(effects) @ own, np.array(weights), sets, model.slab, error, share, price)
    spread = np.linalg.inv(own)
    return [replace(one, loadings=one.loadings @ spread) for one in factors], leads, blurred


def numbers_of(model: TraitModel) -> dict[str, float]:
    """What was learned, as numbers by name."""
    out: dict[str, float] = {"follows": model.follows}
    for name in (
        "slab",
        "excess",
        "offsets",
        "factor_odds",
        "factor_probability",
        "mean_direct",
        "background",
        "together",
        "exponents",
    ):
        out |= {f"{name}_{k}": float(x) for k, x in enumerate(getattr(model, name))}
    out |= {f"sets_{c}": float(x) for c, x in enumerate(numbers_of_sets(model.sets))}
    for name in ("loadings", "pairs"):
        out |= {f"{name}_{k}": float(x) for k, x in enumerate(getattr(model, name).ravel())}
    return out


def model_from_numbers(known: dict[str, float], traits: Traits, structure: Structure) -> TraitModel:
    """The model that `numbers_of` was made of."""
    K = len(traits.names)

    def read(name: str) -> Floats:
        found = [known[f"{name}_{k}"] for k in range(len(known)) if f"{name}_{k}" in known]
        return np.array(found, np.float64)

    return TraitModel(
        traits.sample_size,
        structure.matrix,
        read("slab"),
        structure.effects.T,
        read("excess"),
        read("offsets"),
        structure.draws,
        read("loadings").reshape(-1, K),
        read("factor_odds"),
        read("factor_probability"),
        sets_of_numbers(read("sets"), K),
        (known["together_0"], known["together_1"]),
        read("mean_direct"),
        float(known["follows"]),
        read("background"),
        read("pairs").reshape(K, K),
        read("exponents"),
    )
