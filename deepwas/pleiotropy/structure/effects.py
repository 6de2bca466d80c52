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
from deepwas.pleiotropy.structure.instruments import Instruments, select_instruments
from deepwas.pleiotropy.structure.likelihood import MOST_EFFECT, Floats, InstrumentLikelihood
from deepwas.pleiotropy.structure.noise import checked_names
from deepwas.tally import Tally

__all__ = ["TraitEffects", "trait_effects"]

Progress = Callable[[str, int, int], None]

_MOST_TRAITS = 20  # time grows as the sixth power
_LEAST_INSTRUMENTS = 5
_WEAK = 0.1  # of the other direction's squared z-score
_OFF_SHARE = 0.2
_OFF_RATIO = 5.41  # twice the log likelihood; 1%, one-sided, at the bound


@dataclass(frozen=True, eq=False)
class TraitEffects:
    """Sparse directed effects of K traits on one another, (K, K): row = cause, column = effect.

    T: zero but for `selected` edges; I - T has an inverse, spectral radius < 1.
    standard_error: of T, all other edges held at zero; NaN where T is.
    left_out: (groups, K, K), T without each group of LD blocks; None for effects that were given with their errors.
    estimate, estimate_error, p: of every edge, all estimated at once; NaN where the cause has too few instruments.
    selected: Benjamini-Hochberg over ordered pairs at `fdr`, less the unresolved.
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

    @property
    def total(self) -> Floats:
        """(I - T)^-1, (K, K): what a direct effect of 1 on trait l makes of trait k, along all paths."""
        return np.asarray(np.linalg.inv(np.eye(len(self.T)) - self.T))

    @classmethod
    def given(
        cls, T: ArrayLike, standard_error: ArrayLike | None, *, names: Sequence[str] | None = None
    ) -> TraitEffects:
        """Effects known from elsewhere. T: (K, K).  standard_error: (K, K), >= 0 wherever T is not zero."""
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
        nothing = np.full_like(effects, np.nan)
        none = np.zeros_like(edges)
        return cls(
            labels, effects, errors, None, effects, errors, nothing, edges, none, nothing,
            np.zeros(len(effects), np.int64), ("T was given.",),
        )  # fmt: skip

    def draws(self, count: int, *, seed: int = 0) -> Floats:
        """(count, K, K) draws of T from the normal distribution of its estimate; those that are not stable are redrawn.

        The covariance is the jackknife's; edges that were given are independent.
        """
        K = len(self.T)
        draws = np.zeros((count, K, K))
        if not self.selected.any():
            return draws
        mean = self.T[self.selected]
        if self.left_out is None:
            factor = np.diag(self.standard_error[self.selected])
        else:
            some = self.left_out[:, self.selected]
            groups = len(some)
            factor = (some - some.mean(axis=0)).T * np.sqrt((groups - 1) / groups)
        rng = np.random.default_rng(seed)
        for i in range(count):
            for _ in range(1000):
                draws[i, self.selected] = mean + factor @ rng.normal(size=factor.shape[1])
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

    Standard errors: one Newton step without each group of neighbouring blocks, Student's t with groups - 1 degrees of
    freedom. An edge that fits in both directions is unresolved, unless one has less than a tenth of the other's squared
    z-score and is dropped; so is one where more than a fifth of the instruments has no such effect, at 1%.
    Raises DeepwasError if the spectral radius of T is 1 or more.
    """
    from scipy.stats import false_discovery_control, t

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
    known = counts >= _LEAST_INSTRUMENTS
    notes = [
        f"{labels[k]}: {counts[k]} instruments at p < {threshold:g}; its effects on other traits are not estimated."
        for k in np.flatnonzero(~known)
    ]
    nothing = np.full((K, K), np.nan)
    off = ~np.eye(K, dtype=bool)
    open_edges = off & known[:, None]
    model = _model(values, size, C, chosen, groups) if known.any() else None
    if model is None or model.n_groups < 3:
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
    say("effects of trait on trait", 0, 4)
    theta = model.search(open_edges)
    say("effects of trait on trait", 1, 4)
    estimate, error, _ = _with_errors(model, theta, open_edges)
    p = np.full((K, K), np.nan)
    p[open_edges] = 2 * t.sf(np.abs(estimate / error)[open_edges], model.n_groups - 1)
    selected = np.zeros((K, K), bool)
    selected[open_edges] = false_discovery_control(p[open_edges]) <= fdr
    say("effects of trait on trait", 2, 4)
    selected, unresolved = _one_direction(selected, estimate / error, labels, notes)
    # The edges that do not fit are held at zero from here on.
    support = selected | unresolved
    theta, _ = model.maximise(_held(model, theta, support), _free(model, support))
    bound = selected & (np.abs(model.unpack(theta).T) > 0.99 * MOST_EFFECT)
    for cause, effect in np.argwhere(bound):
        selected[cause, effect], unresolved[cause, effect] = False, True
        notes.append(
            f"{labels[cause]} -> {labels[effect]}: the estimate has come to its bound of {MOST_EFFECT:g} standard "
            "deviations: unresolved."
        )
    off_share = nothing.copy()
    for cause, effect in np.argwhere(selected):
        share, ratio = _off(model, theta, support, cause, effect)
        off_share[cause, effect] = share
        if share > _OFF_SHARE and ratio > _OFF_RATIO:
            selected[cause, effect], unresolved[cause, effect] = False, True
            notes.append(
                f"{labels[cause]} -> {labels[effect]}: fits, but {share:.0%} of the instruments of {labels[cause]} "
                "have no such effect, as if a confounder acted on both: unresolved."
            )
    say("effects of trait on trait", 3, 4)
    T, errors, replicates = _with_errors(model, theta, support)
    T = np.where(selected, T, 0)
    _check_stable(T, labels)
    say("effects of trait on trait", 4, 4)
    return TraitEffects(
        names=labels,
        T=T,
        standard_error=np.where(selected, errors, np.nan),
        left_out=np.where(selected, replicates, 0),
        estimate=np.where(open_edges, estimate, np.nan),
        estimate_error=np.where(open_edges, error, np.nan),
        p=p,
        selected=selected,
        unresolved=unresolved,
        off_share=off_share,
        instruments=counts,
        notes=tuple(notes),
        tally=tally,
    )


def _model(z: Floats, size: Floats, C: Floats, chosen: Instruments, groups: int) -> InstrumentLikelihood:
    b = z[chosen.rows] / np.sqrt(size)
    _, own = np.unique(chosen.block, return_inverse=True)
    blocks = int(own.max()) + 1
    count = min(groups, blocks)
    return InstrumentLikelihood(b, chosen.trait, C / np.sqrt(np.outer(size, size)), own * count // blocks)


def _free(model: InstrumentLikelihood, edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    free = np.ones(model.ends[-1], bool)
    free[: model.ends[0]] = edges[model.off]
    return free


def _held(model: InstrumentLikelihood, theta: Floats, edges: NDArray[np.bool_]) -> Floats:
    """theta with the other edges at zero."""
    held = theta.copy()
    held[: model.ends[0]] *= edges[model.off]
    return held


def _with_errors(model: InstrumentLikelihood, theta: Floats, edges: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """T, its standard errors (NaN where it is held), (K, K), and T without each group (groups, K, K)."""
    G, K = model.n_groups, model.K
    replicates = np.zeros((G, K, K))
    replicates[:, model.off] = model.left_out(theta, _free(model, edges))[:, : model.ends[0]]
    error = np.sqrt((G - 1) / G * ((replicates - replicates.mean(axis=0)) ** 2).sum(axis=0))
    return model.unpack(theta).T, np.where(edges, error, np.nan), replicates


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


def _off(
    model: InstrumentLikelihood, theta: Floats, support: NDArray[np.bool_], cause: int, effect: int
) -> tuple[float, float]:
    """Share of the cause's direct instruments that have no effect of the edge, and twice the log likelihood gained."""
    wider = model.with_edge_off(cause, effect)
    # A third without the edge to begin with: far from the bound, where the likelihood is flat.
    first = model.ends[2] + 1 + cause
    begin = np.append(theta, theta[first] - 1)
    # The rest is held, so the gain is, if anything, too small.
    free = np.zeros(wider.ends[-1], bool)
    free[wider.ends[2] :] = True
    edge = np.zeros_like(support)
    edge[cause, effect] = True
    free[: wider.ends[0]] = edge[wider.off]
    best, share = -np.inf, 0.0
    here = int(np.flatnonzero(edge[wider.off])[0])
    for times in (1, 3):  # a mean over instruments with and without the effect is smaller than the effect
        begin[here] = np.clip(times * theta[here], -MOST_EFFECT, MOST_EFFECT)
        found, _ = wider.maximise(begin, free)
        value = wider.value_and_gradient(found, prior=False)[0]
        odds = wider.unpack(found).logits
        if value > best:
            best, share = value, float(1 / (1 + np.exp(odds[1 + cause] - odds[-1])))
    return share, 2 * (best - model.value_and_gradient(theta, prior=False)[0])


def _checked(
    z: ArrayLike, sample_size: ArrayLike, noise: ArrayLike, blocks: ArrayLike, names: Sequence[str] | None
) -> tuple[Floats, Floats, Floats, tuple[str, ...]]:
    values = np.asarray(z, np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise InputError(
            f"effects of trait on trait need z (variants, traits) of two traits or more; it is {values.shape}."
        )
    M, K = values.shape
    if K > _MOST_TRAITS:
        raise InputError(f"effects of trait on trait are fitted for at most {_MOST_TRAITS} traits at once; given: {K}.")
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
