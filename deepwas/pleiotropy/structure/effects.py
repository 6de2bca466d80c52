"""Directed effects of trait on trait, T: which traits act through others, told from pleiotropy and confounding.

Total effects of a variant B (K,) and its direct effects D are related by B = D (I - T)^-1: T_lk is the effect, in
standard deviations of trait k, of one of trait l, all other traits held. Row = cause, column = effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepwas.errors import DeepwasError, InputError
from deepwas.pleiotropy.options import MOST_AT_ONCE
from deepwas.pleiotropy.structure.instruments import Instruments, select_instruments
from deepwas.pleiotropy.structure.likelihood import MOST_EFFECT, Floats, InstrumentLikelihood
from deepwas.pleiotropy.structure.noise import checked_names
from deepwas.pleiotropy.structure.search import EdgeTests, fit, off_share, weigh_edges, with_errors
from deepwas.tally import Tally

__all__ = ["TraitEffects", "trait_effects"]

Progress = Callable[[str, int, int], None]

_LEAST_LOCI = 3  # with instruments of a trait
_WEAK = 0.1  # of the other direction's squared z-score
_OFF_SHARE = 0.2
_OFF_RATIO = 5.41  # twice the log likelihood; 1%, one-sided, at the bound
_PRIOR_SPREAD = 0.3  # of an effect that is there
_MORE_LIKELY_THAN_NOT = 0.5
_NO_CHANCE = 0.01  # posterior probability of an edge below which it is 0


@dataclass(frozen=True, eq=False)
class TraitEffects:
    """Sparse directed effects of K traits on one another, (K, K): row = cause, column = effect.

    T: zero but for `selected` edges; I - T has an inverse, spectral radius < 1.
    standard_error: of T, all other edges held at zero; NaN where T is.
    left_out: (groups, K, K), T without each group of LD blocks; None for effects that were given with their errors.
    estimate, estimate_error, p: of every edge, given those that fit best; NaN where the cause has too few instruments.
    probability: posterior probability of every edge, also of those that are not selected: 0 where it is unresolved,
        has too few instruments, or is below 1%; 1 where an effect was given without.
    selected: Benjamini-Hochberg over ordered pairs at `fdr`, of probability 0.5 or more, less the unresolved.
    unresolved: edges that fit, but so does a confounder: both directions fit, or a share of the cause's instruments
        has no such effect. T is zero there.
    off_share: that share, where an edge was tested for it, else NaN.
    instruments: (K,) of each trait.  notes: what a reader has to know.  tally: variants left out, by reason.
    """

    names: tuple[str, ...]
    T: Floats
    standard_error: Floats
    left_out: Floats | None
    estimate: Floats
    estimate_error: Floats
    p: Floats
    selected: NDArray[np.bool_]
    unresolved: NDArray[np.bool_]
    off_share: Floats
    instruments: NDArray[np.int64]
    notes: tuple[str, ...]
    tally: Tally = field(default_factory=Tally)
    probability: Floats = field(default_factory=lambda: np.zeros((0, 0)))

    def __post_init__(self) -> None:
        if not self.probability.size:
            object.__setattr__(self, "probability", (self.T != 0).astype(np.float64))

    @property
    def total(self) -> Floats:
        """(I - T)^-1, (K, K): what a direct effect of 1 on trait l makes of trait k, along all paths."""
        return np.asarray(np.linalg.inv(np.eye(len(self.T)) - self.T))

    @classmethod
    def given(
        cls,
        T: ArrayLike,
        standard_error: ArrayLike | None,
        *,
        names: Sequence[str] | None = None,
        probability: ArrayLike | None = None,
        estimate: ArrayLike | None = None,
        estimate_error: ArrayLike | None = None,
    ) -> TraitEffects:
        """Effects known from elsewhere. T: (K, K).  standard_error: (K, K), >= 0 wherever T is not zero.

        probability: (K, K), that each effect is there; by default 1 where T is not zero, else 0. An effect that is 0 in
        T has a probability only if its estimate and estimate_error (K, K) are given: draws then have it at times.
        """
        effects = np.asarray(T, np.float64)
        if effects.ndim != 2 or effects.shape[0] != effects.shape[1] or not np.isfinite(effects).all():
            raise InputError(f"T must be a finite (K, K) matrix, row = cause, column = effect; it is {effects.shape}.")
        labels = checked_names(names, len(effects))
        if standard_error is None:
            raise InputError(
                "T comes without standard errors, and its uncertainty enters the classification. Give them as a matrix "
                "of the same shape; zeros where an effect is known exactly."
            )
        errors = np.asarray(standard_error, np.float64)
        edges = effects != 0
        if errors.shape != effects.shape:
            raise InputError(f"the standard errors of T have shape {errors.shape}; T has {effects.shape}.")
        missing = edges & ~(np.isfinite(errors) & (errors >= 0))
        if missing.any():
            pairs = ", ".join(f"{labels[i]} -> {labels[j]}" for i, j in np.argwhere(missing))
            raise InputError(f"T has effects without a standard error: {pairs}. Give one >= 0 for each, or set T to 0.")
        if np.diag(effects).any():
            raise InputError("T has an effect of a trait on itself: its diagonal must be 0.")
        _check_stable(effects, labels)
        errors = np.where(edges, errors, np.nan)
        chance = edges.astype(np.float64) if probability is None else np.asarray(probability, np.float64)
        if chance.shape != effects.shape or not ((chance >= 0) & (chance <= 1)).all():
            raise InputError("the probabilities of effects must be a matrix of the shape of T, between 0 and 1.")
        seen, known = effects, errors
        if estimate is not None and estimate_error is not None:
            seen = np.where(edges, effects, np.asarray(estimate, np.float64))
            known = np.where(edges, errors, np.asarray(estimate_error, np.float64))
        chance = np.where(edges | (np.isfinite(seen) & (known > 0)), chance, 0.0)
        np.fill_diagonal(chance, 0.0)
        nothing = np.full_like(effects, np.nan)
        none = np.zeros_like(edges)
        return cls(
            labels, effects, errors, None, seen, known, nothing, edges, none, nothing,
            np.zeros(len(effects), np.int64), ("T was given.",), probability=chance,
        )  # fmt: skip

    def draws(self, count: int, *, seed: int = 0) -> Floats:
        """(count, K, K) draws of T: each edge is there with its `probability`, else 0; unstable draws are redrawn.

        Effects that are there are normal: those of selected edges with the jackknife's covariance, the others, and
        effects that were given, each with its own error. Of an edge and its reverse one at most is there, unless both
        are certain.
        """
        K = len(self.T)
        draws = np.zeros((count, K, K))
        chance = self.probability
        if not chance.any():
            return draws
        soft = (chance > 0) & ~self.selected
        # What is not selected is little known: its posterior under the prior that gave its probability.
        shrink = self.estimate_error**2 / (self.estimate_error**2 + _PRIOR_SPREAD**2)
        mean = np.where(soft, (1 - shrink) * self.estimate, self.T)
        known = np.where(self.selected, self.standard_error, 0.0)
        error = np.where(soft, self.estimate_error * np.sqrt(1 - shrink), known)
        factor = None
        if self.left_out is not None and self.selected.any():
            some = self.left_out[:, self.selected]
            groups = len(some)
            factor = (some - some.mean(axis=0)).T * np.sqrt((groups - 1) / groups)
        upper = np.triu(np.ones((K, K), bool), 1)
        certain = (chance >= 1) & (chance.T >= 1)
        rng = np.random.default_rng(seed)
        for i in range(count):
            for _ in range(1000):
                u = rng.random((K, K))
                u = np.where(upper, u, u.T)
                there = np.where(upper, u < chance, u >= 1 - chance) | certain
                T = mean + error * rng.normal(size=(K, K))
                if factor is not None:
                    T[self.selected] = mean[self.selected] + factor @ rng.normal(size=factor.shape[1])
                draws[i] = np.where(there & (chance > 0), T, 0.0)
                if _radius(draws[i]) < 1:
                    break
            else:
                raise DeepwasError("T is so uncertain that hardly any draw of it has a spectral radius below 1.")
        return draws


def trait_effects(
    z: ArrayLike,
    sample_size: ArrayLike,
    noise: ArrayLike,
    blocks: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    threshold: float = 5e-8,
    correlation: Callable[[int], ArrayLike] | None = None,
    fdr: float = 0.05,
    groups: int = 100,
    progress: Progress | None = None,
) -> TraitEffects:
    """Estimate T from lead variants of each trait; the model is that of `deepwas.pleiotropy.structure.likelihood`.

    z: (M, K) z-scores of total, marginal effects, NaN where missing (such variants are no instruments).
    sample_size: (K,) people; of (M, K), the median over variants is used.
    noise: (K, K), `NoiseCorrelation.matrix`.  blocks: (M,) int, in genome order.
    threshold, correlation: see `select_instruments`.  fdr: of edges.  groups: for the jackknife, at most.

    Edges are searched one by one, with and without a heritable factor behind several traits, by their likelihood and
    what the parameters cost (`deepwas.pleiotropy.structure.search`). p: likelihood ratio, chi-square with one degree
    of freedom. Standard errors: the larger of the curvature's and a sandwich over groups of neighbouring blocks. An
    edge that fits in both directions is unresolved, unless one has less than a tenth of the other's likelihood ratio
    and is dropped; so is one where more than a fifth of the instruments has no such effect, at 1%.
    Raises DeepwasError if the spectral radius of T is 1 or more.
    """
    from scipy.stats import chi2, false_discovery_control

    values, size, C, labels = _checked(z, sample_size, noise, blocks, names)
    if groups < 3:
        raise InputError(f"groups is {groups}; a jackknife needs at least 3.")
    if not 0 < fdr < 1:
        raise InputError(f"fdr is {fdr}; it is a share between 0 and 1.")
    K = len(labels)
    say = progress or (lambda *_: None)
    chosen = select_instruments(values, blocks, threshold=threshold, correlation=correlation)
    tally = Tally()
    lacking = ~np.isfinite(values).all(axis=1)
    tally.add("trait effects", "dropped", "no z-score in some trait: not an instrument", int(lacking.sum()))
    counts = np.bincount(chosen.trait, minlength=K)
    loci = np.array([len(np.unique(chosen.locus[chosen.trait == k])) for k in range(K)])
    known = loci >= _LEAST_LOCI
    notes = [
        f"{labels[k]}: instruments at p < {threshold:g} in {loci[k]} loci: its effects on others are not estimated."
        for k in np.flatnonzero(~known)
    ]
    nothing = np.full((K, K), np.nan)
    off = ~np.eye(K, dtype=bool)
    open_edges = off & known[:, None]
    if not known.any() or len(np.unique(chosen.block)) < 3:
        notes.append("there are instruments in too few LD blocks: no effects of trait on trait can be estimated.")
        zero = np.zeros((K, K))
        none = zero.astype(bool)
        return TraitEffects(
            labels,
            zero,
            nothing,
            zero[None],
            nothing,
            nothing,
            nothing,
            none,
            none,
            nothing,
            counts,
            tuple(notes),
            tally,
        )
    model, group = _model(values, size, C, chosen, groups)
    say("effects of trait on trait", 0, 4)
    fitted = fit(model, open_edges)
    say("effects of trait on trait", 1, 4)
    tests = weigh_edges(fitted, open_edges)
    p = np.full((K, K), np.nan)
    p[open_edges] = chi2.sf(tests.gain[open_edges], 1)
    fits = np.zeros((K, K), bool)
    fits[open_edges] = false_discovery_control(p[open_edges]) <= fdr
    fits &= _probability(tests, np.zeros_like(fits)) >= _MORE_LIKELY_THAN_NOT
    say("effects of trait on trait", 2, 4)
    selected, unresolved = _one_direction(fits, np.sign(tests.effect) * np.sqrt(tests.gain), labels, notes)
    # The edges that do not fit are held at zero from here on; of those that fit both ways, what the search kept stays.
    support = selected | (unresolved & fitted.edges)
    fitted = fitted.with_edges(support, np.where(support, tests.effect, 0.0))
    bound = selected & (np.abs(fitted.T) > 0.99 * MOST_EFFECT)
    for cause, effect in np.argwhere(bound):
        selected[cause, effect], unresolved[cause, effect] = False, True
        notes.append(
            f"{labels[cause]} -> {labels[effect]}: the estimate has come to its bound of {MOST_EFFECT:g} standard "
            "deviations: unresolved."
        )
    shares = nothing.copy()
    for cause, effect in np.argwhere(selected):
        share, ratio = off_share(fitted, cause, effect)
        shares[cause, effect] = share
        if share > _OFF_SHARE and ratio > _OFF_RATIO:
            selected[cause, effect], unresolved[cause, effect] = False, True
            notes.append(
                f"{labels[cause]} -> {labels[effect]}: fits, but {share:.0%} of the instruments of {labels[cause]} "
                "have no such effect, as if a confounder acted on both: unresolved."
            )
    if fitted.model.F:
        moved = _moved(fitted.model.unpack(fitted.theta).loadings[0] / fitted.model.scale)
        notes.append(
            f"a heritable factor stands behind instruments of {', '.join(labels[k] for k in moved)}: what they share "
            "in its ratio is no effect of one on the other."
        )
    say("effects of trait on trait", 3, 4)
    errors, replicates = with_errors(fitted, group)
    T = np.where(selected, fitted.T, 0)
    _check_stable(T, labels)
    say("effects of trait on trait", 4, 4)
    return TraitEffects(
        names=labels,
        T=T,
        standard_error=np.where(selected, errors, np.nan),
        left_out=np.where(selected, replicates, 0),
        estimate=tests.effect,
        estimate_error=tests.error,
        p=p,
        selected=selected,
        unresolved=unresolved,
        off_share=shares,
        instruments=counts,
        notes=tuple(notes),
        tally=tally,
        probability=_probability(tests, unresolved | unresolved.T),
    )


def _probability(tests: EdgeTests, unresolved: NDArray[np.bool_]) -> Floats:
    """(K, K), posterior probability of each edge against its reverse and against none, all other edges as they are.

    Bayes factors after Wakefield 2009: an effect that is there is N(0, 0.3^2), its estimate normal around it. Each
    ordered pair has a prior probability of one to twice the number of traits.
    """
    prior = 0.5 / len(unresolved)
    shrink = tests.error**2 / (tests.error**2 + _PRIOR_SPREAD**2)
    log_odds = np.log(prior / (1 - 2 * prior)) if prior < 0.25 else np.log(0.5)
    log_odds = log_odds + 0.5 * np.log(shrink) + 0.5 * tests.alone * (1 - shrink)
    log_odds = np.where(np.isfinite(log_odds), log_odds, -np.inf)
    top = np.maximum(np.maximum(log_odds, log_odds.T), 0)
    weight = np.exp(log_odds - top)
    found = weight / (np.exp(-top) + weight + weight.T)
    return np.where(unresolved | (found < _NO_CHANCE), 0.0, found)


def _moved(loadings: Floats) -> NDArray[np.int64]:
    """The traits that a factor moves by a quarter or more of what it moves the most."""
    return np.flatnonzero(np.abs(loadings) >= 0.25 * np.abs(loadings).max())


def _model(
    z: Floats, size: Floats, C: Floats, chosen: Instruments, groups: int
) -> tuple[InstrumentLikelihood, NDArray[np.int64]]:
    """The likelihood, and the group of blocks of each of its variants."""
    rows, first, variant = np.unique(chosen.rows, return_index=True, return_inverse=True)
    weight = 1 / np.bincount(chosen.locus)[chosen.locus]
    noise = C / np.sqrt(np.outer(size, size))
    model = InstrumentLikelihood(z[rows] / np.sqrt(size)[None, :], variant, chosen.trait, weight, noise)
    _, own = np.unique(chosen.block[first], return_inverse=True)
    blocks = int(own.max()) + 1
    return model, own * min(groups, blocks) // blocks


def _one_direction(
    fits: NDArray[np.bool_], score: Floats, labels: tuple[str, ...], notes: list[str]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Edges that fit in one direction, and those that fit in both. score: (K, K), z-scores."""
    selected, unresolved = fits.copy(), np.zeros_like(fits)
    for i, j in np.argwhere(np.triu(fits & fits.T)):
        strong, weak = ((i, j), (j, i)) if abs(score[i, j]) >= abs(score[j, i]) else ((j, i), (i, j))
        selected[weak] = False
        if score[weak] ** 2 < _WEAK * score[strong] ** 2:
            notes.append(
                f"{labels[weak[0]]} -> {labels[weak[1]]}: dropped (z {score[weak]:.1f}); the other direction fits far "
                f"better (z {score[strong]:.1f})."
            )
            continue
        selected[strong] = False
        unresolved[i, j] = unresolved[j, i] = True
        notes.append(
            f"{labels[i]} and {labels[j]}: effects fit in both directions (z {score[i, j]:.1f} and {score[j, i]:.1f}); "
            "feedback and a common cause look the same here: unresolved."
        )
    return selected, unresolved


def _checked(
    z: ArrayLike, sample_size: ArrayLike, noise: ArrayLike, blocks: ArrayLike, names: Sequence[str] | None
) -> tuple[Floats, Floats, Floats, tuple[str, ...]]:
    values = np.asarray(z, np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise InputError(
            f"effects of trait on trait need z (variants, traits) of two traits or more; it is {values.shape}."
        )
    M, K = values.shape
    if K > MOST_AT_ONCE:
        raise InputError(f"effects of trait on trait are fitted for at most {MOST_AT_ONCE} traits at once; given: {K}.")
    labels = checked_names(names, K)
    if np.shape(blocks) != (M,):
        raise InputError(f"blocks must hold one number for each of {M:,} variants; it has shape {np.shape(blocks)}.")
    size = np.asarray(sample_size, np.float64)
    if size.shape not in ((K,), (M, K)):
        raise InputError(f"sample_size has shape {size.shape}; give ({K},) or ({M}, {K}).")
    if size.ndim == 2:
        size = np.array([np.median(size[np.isfinite(values[:, k]), k]) for k in range(K)])
    for k, name in enumerate(labels):
        some = values[np.isfinite(values[:, k]), k]
        if not len(some) or np.ptp(some) == 0:
            raise InputError(f"{name}: all z-scores are missing, or the same. Leave the trait out.")
        if not (size[k] > 0 and np.isfinite(size[k])):
            raise InputError(f"{name}: N is {size[k]}; it must be positive.")
    C = np.asarray(noise, np.float64)
    if C.shape != (K, K) or not np.isfinite(C).all() or not np.allclose(C, C.T) or np.linalg.eigvalsh(C)[0] <= 0:
        raise InputError(f"noise must be a symmetric, positive definite ({K}, {K}) matrix; see `noise_correlation`.")
    scale = np.sqrt(np.diag(C))
    close = np.argwhere(np.triu(np.abs(C / np.outer(scale, scale)) > 0.95, 1))
    if len(close):
        pairs = ", ".join(f"{labels[i]} and {labels[j]}" for i, j in close)
        raise InputError(f"the noise of {pairs} is the same, as of one trait given twice. Leave one out.")
    return values, size, C, labels


def _radius(T: Floats) -> float:
    return float(np.abs(np.linalg.eigvals(T)).max())


def _check_stable(T: Floats, labels: tuple[str, ...]) -> None:
    radius = _radius(T)
    if radius >= 1:
        edges = ", ".join(f"{labels[i]} -> {labels[j]} {T[i, j]:.3g}" for i, j in np.argwhere(T))
        raise DeepwasError(
            f"effects of trait on trait run in a loop that grows without end: spectral radius {radius:.3g}, not below "
            f"1 ({edges}). (I - T)^-1 means nothing then. Leave out one of the traits of the loop."
        )
