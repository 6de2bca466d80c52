"""Which effects of trait on trait there are: a search over sets of edges, with and without a heritable factor.

Each model is a set of edges with free effects; all other effects are zero. Edges are added one at a time, the one that
gains most first, and dropped where nothing is lost. A factor is added where the evidence is for it: the likelihood at
the mode less what its parameters cost, half the log determinant of their curvature (Laplace). Fitting few edges at a
time, not all, is what makes ten instruments of a trait enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import DeepwasError
from deepwas.pleiotropy.structure.likelihood import MOST_EFFECT, STEP, InstrumentLikelihood, log_sum

__all__ = ["EdgeTests", "Fitted", "fit", "off_share", "weigh_edges", "with_errors"]

Floats = NDArray[np.float64]
Edges = NDArray[np.bool_]

_GRID = (-0.8, -0.4, -0.2, -0.08, 0.08, 0.2, 0.4, 0.8)
_COARSE = (-0.4, -0.1, 0.1, 0.4)
_FEW = 8  # traits
_LEAST_GAIN = 2.0  # log likelihood of an edge, in the search
_TRIED = 2
_PER_TRAIT = 2  # edges tried, of many traits
_FACTOR_SHARE = 0.15
_FACTOR_STARTS = 3
_CHUNK = 512  # variants whose loadings are tried at once
_FACTOR_SEEN = 4.0  # |z| in two traits, of a variant that may lie on a factor
_WORTH = 5.0  # log likelihood: a factor is followed if it gains this beside the edges, or alone comes so close to them
_LITTLE = 4.0
_PRIOR_CURVATURE = 0.4  # the least of the priors of slabs, backgrounds, tilts and loadings
_FLAT = 1e-3  # curvature of a direction that the prior alone, nearly, tells


class EdgeTests(NamedTuple):
    """Each (K, K), NaN where an edge is not allowed: effect, standard error, and twice the log likelihood it gains.

    alone: of an edge whose reverse is in the model, twice what it gains instead of the reverse; else as `gain`.
    """

    effect: Floats
    error: Floats
    gain: Floats
    alone: Floats


@dataclass(frozen=True, eq=False)
class Fitted:
    """A model at its mode. value: log likelihood and log prior."""

    model: InstrumentLikelihood
    theta: Floats
    edges: Edges
    value: float

    @property
    def T(self) -> Floats:
        """(K, K)."""
        return self.model.unpack(self.theta).T

    @property
    def free(self) -> NDArray[np.bool_]:
        """(P,), the parameters that are fitted."""
        return _free(self.model, self.edges)

    def with_edges(self, edges: Edges, start: Floats | None = None) -> Fitted:
        """The mode with these edges, from this one; start: (K, K), T to begin with, where it is not zero."""
        theta = self.theta.copy()
        t = np.where(edges, self.T if start is None else np.where(start != 0, start, self.T), 0.0)
        theta[: self.model.ends[0]] = t[self.model.off]
        theta, value = self.model.maximise(theta, _free(self.model, edges))
        return Fitted(self.model, theta, edges, value)


def fit(model: InstrumentLikelihood, allowed: Edges) -> Fitted:
    """The model of most evidence. allowed: (K, K), edges that may be there."""
    none = np.zeros_like(allowed)
    theta, value = model.maximise(model.start(), _free(model, none))
    empty = Fitted(model, theta, none, value)
    edges = _grow(empty, allowed)
    best, evidence = edges, _evidence(edges)
    both = _with_factor(edges)
    starts = [both] if both is not None and both.value > edges.value + _WORTH else []
    alone = _with_factor(empty)
    if alone is not None and alone.value > edges.value - _WORTH:
        starts.append(_grow(alone, allowed))
    for one in map(_pruned, starts):
        other = _evidence(one)
        if other > evidence:
            best, evidence = one, other
    return best


def weigh_edges(fitted: Fitted, allowed: Edges) -> EdgeTests:
    """Likelihood ratio of every allowed edge, given the other edges of the model.

    Edges of the model are compared with the mode without them; others are added, all else fitted again, or, where the
    slope shows that they gain little, by one Newton step.
    """
    model, K = fitted.model, fitted.model.K
    tests = EdgeTests(*np.full((4, K, K), np.nan))
    index = np.flatnonzero(fitted.free)
    first = int(fitted.edges.sum())
    model.narrow(fitted.theta)
    slopes = model.value_and_gradient(fitted.theta)[1]
    H = model.curvature(fitted.theta, index)
    nuisance = _floored_inverse(H[first:, first:], _PRIOR_CURVATURE)
    covariance, project = _profile(H, first)

    def curvature(theta: Floats, i: int) -> float:
        step = np.zeros(model.P)
        step[i] = STEP
        change = model.value_and_gradient(theta - step)[1] - model.value_and_gradient(theta + step)[1]
        across = change[index] / (2 * STEP)
        rest, edges = across[first:], across[:first] - across[first:] @ project
        return float(change[i] / (2 * STEP) - rest @ nuisance @ rest - edges @ covariance @ edges)

    missing = [(int(i), int(j)) for i, j in np.argwhere(allowed & ~fitted.edges)]
    for j, k in missing:
        i = model.place[j, k]
        told = curvature(fitted.theta, i)
        if told > 0 and slopes[i] ** 2 / told < _LITTLE:
            effect, gain = slopes[i] / told, slopes[i] ** 2 / told
        else:
            effect, gain, theta = _added(fitted, j, k)
            model.narrow(theta)
            told = curvature(theta, i)
            model.narrow(fitted.theta)
        tests.effect[j, k], tests.gain[j, k], tests.alone[j, k] = effect, gain, gain
        tests.error[j, k] = 1 / np.sqrt(max(told, _PRIOR_CURVATURE))
    own = np.sqrt(np.diag(covariance))
    for number, (j, k) in enumerate(np.argwhere(fitted.edges)):
        edges = fitted.edges.copy()
        edges[j, k] = False
        without = fitted.with_edges(edges)
        gain = max(2 * (fitted.value - without.value), 0.0)
        tests.effect[j, k], tests.error[j, k] = fitted.T[j, k], own[number]
        tests.gain[j, k] = tests.alone[j, k] = gain
        if allowed[k, j]:
            tests.alone[k, j] = _added(without, k, j)[1]
    return tests


def with_errors(fitted: Fitted, group: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Standard errors of T (K, K), NaN without an edge, and T without each group of variants (groups, K, K).

    The larger of two errors: from the curvature, and from a sandwich over the groups, one Newton step for each without
    its slope. Replicates are scaled so that their jackknife has that error.
    """
    model, theta = fitted.model, fitted.theta
    K, groups = model.K, int(group.max()) + 1
    errors, left_out = np.full((K, K), np.nan), np.zeros((groups, K, K))
    if not fitted.edges.any():
        return errors, left_out
    index = np.flatnonzero(fitted.free)
    first = int(fitted.edges.sum())
    model.narrow(theta)
    covariance, project = _profile(model.curvature(theta, index), first)
    s = model.scores(theta, group)[:, index]
    steps = (s[:, :first] - s[:, first:] @ project) @ covariance
    steps -= steps.mean(axis=0)
    spread = np.sqrt((groups - 1) / groups * (steps**2).sum(axis=0))
    error = np.maximum(spread, np.sqrt(np.diag(covariance)))
    left_out[:, fitted.edges] = fitted.T[fitted.edges] - steps * (error / np.maximum(spread, 1e-12))
    errors[fitted.edges] = error
    return errors, left_out


def off_share(fitted: Fitted, cause: int, effect: int) -> tuple[float, float]:
    """Share of the cause's direct instruments that have no effect of an edge, and twice the log likelihood gained.

    They are one class more: on the cause's line, but for the edge.
    """
    model, theta = fitted.model, fitted.theta
    part = model.unpack(theta)
    T = part.T.copy()
    T[cause, effect] = 0
    line = np.linalg.inv(np.eye(model.K) - T)[cause] * np.sqrt(part.slab[cause])
    wider = model.with_factors(model.F + 1)
    shares = np.exp(model.log_shares(theta))
    own = float(shares[: model.C][(model.delta.sum(axis=1) == 1) & (model.delta[:, cause] == 1)].sum())
    begin = model.with_factor(theta, line, np.clip(own / 3, 1e-3, 0.3))
    free = np.zeros(wider.P, bool)
    edge = np.zeros_like(fitted.edges)
    edge[cause, effect] = True
    free[: wider.ends[0]] = edge[wider.off]
    free[wider.ends[3] : wider.ends[4]] = True
    best, share = -np.inf, 0.0
    for times in (1, 3):  # a mean over instruments with and without the effect is smaller than the effect
        begin[wider.place[cause, effect]] = np.clip(times * part.T[cause, effect], -MOST_EFFECT, MOST_EFFECT)
        found, _ = wider.maximise(begin, free)
        value = wider.value(found, prior=False)
        shares = np.exp(wider.log_shares(found))
        own = float(shares[: wider.C][(wider.delta.sum(axis=1) == 1) & (wider.delta[:, cause] == 1)].sum())
        gone = float(shares[wider.group_of == wider.group_of[-1]].sum())
        if value > best:
            best, share = value, gone / (gone + own)
    model.narrow(theta)
    return share, max(2 * (best - model.value(theta, prior=False)), 0.0)


def _added(fitted: Fitted, cause: int, effect: int) -> tuple[float, float, Floats]:
    """An edge added to the model: its effect, twice what it gains, and the mode."""
    guess = _scan(fitted, [(cause, effect)])[0][1]
    edges, start = fitted.edges.copy(), np.zeros_like(fitted.T)
    edges[cause, effect], start[cause, effect] = True, guess
    found = fitted.with_edges(edges, start)
    return float(found.T[cause, effect]), max(2 * (found.value - fitted.value), 0.0), found.theta


def _profile(H: Floats, first: int) -> tuple[Floats, Floats]:
    """Covariance of the first parameters, all else profiled out, and H_nn^-1 H_nt, how the rest follows them.

    A mixture's likelihood need not be concave at its mode; the prior alone is, so no direction counts as flatter.
    """
    inverse = _floored_inverse(H[first:, first:], _PRIOR_CURVATURE)
    project = inverse @ H[first:, :first]
    return _floored_inverse(H[:first, :first] - H[:first, first:] @ project, _PRIOR_CURVATURE), project


def _floored_inverse(H: Floats, least: float) -> Floats:
    values, vectors = np.linalg.eigh((H + H.T) / 2)
    return np.asarray(vectors / np.maximum(values, least) @ vectors.T)


def _free(model: InstrumentLikelihood, edges: Edges) -> NDArray[np.bool_]:
    free = np.ones(model.P, bool)
    free[: model.ends[0]] = edges[model.off]
    return free


def _scan(fitted: Fitted, pairs: list[tuple[int, int]]) -> list[tuple[float, float, int, int]]:
    """Gain of each edge over a grid of effects, all else held; with the effect, cause and effect."""
    model, found = fitted.model, []
    model.narrow(fitted.theta)
    base = model.value(fitted.theta)
    grid = _GRID if model.K <= _FEW else _COARSE
    for cause, effect in pairs:
        best = (-np.inf, 0.0)
        for t in grid:
            theta = fitted.theta.copy()
            theta[model.place[cause, effect]] = t
            try:
                best = max(best, (model.value(theta) - base, t))
            except np.linalg.LinAlgError:  # a loop: no such model
                continue
        found.append((*best, cause, effect))
    return found


def _likely(fitted: Fitted, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs to be tried: of many traits those whose instruments correlate most, the effects known taken off."""
    model = fitted.model
    most = _PER_TRAIT * model.K
    if model.K <= _FEW or len(pairs) <= most:
        return pairs
    rest = model.b - model.b @ fitted.T
    score = []
    for cause, effect in pairs:
        mine = model.variant[model.trait == cause]
        product = model.b[mine, cause] * rest[mine, effect]
        score.append(abs(product.sum()) / np.sqrt((product**2).sum()))
    return [pairs[i] for i in np.argsort(score)[::-1][:most]]


def _grow(fitted: Fitted, allowed: Edges) -> Fitted:
    while True:
        closed = fitted.edges | fitted.edges.T
        pairs = [(int(i), int(j)) for i, j in np.argwhere(allowed & ~closed)]
        likely = sorted(_scan(fitted, _likely(fitted, pairs)), reverse=True)[:_TRIED]
        tried = []
        for _, guess, cause, effect in likely:
            edges, start = fitted.edges.copy(), np.zeros_like(fitted.T)
            edges[cause, effect], start[cause, effect] = True, guess
            try:
                tried.append(fitted.with_edges(edges, start))
            except DeepwasError:
                continue
        best = max(tried, key=lambda one: one.value, default=None)
        if best is None or best.value < fitted.value + _LEAST_GAIN:
            return _pruned(fitted)
        fitted = best


def _pruned(fitted: Fitted) -> Fitted:
    """Without the edges that gain too little now that others are there."""
    for cause, effect in np.argwhere(fitted.edges):
        edges = fitted.edges.copy()
        edges[cause, effect] = False
        less = fitted.with_edges(edges)
        if less.value > fitted.value - _LEAST_GAIN:
            fitted = less
    return fitted


def _with_factor(fitted: Fitted) -> Fitted | None:
    """The best mode with one factor more; it starts from the effects of variants that act on several traits."""
    model, theta = fitted.model, fitted.theta
    wider = model.with_factors(model.F + 1)
    mixture = log_sum(model.narrow(theta), 1)
    part = model.unpack(theta)
    A = np.linalg.inv(np.eye(model.K) - part.T)
    V = A.T @ (part.background[:, None] * A) + model.noise
    b = model.b
    solved, log_det = np.linalg.solve(V, b.T).T, np.linalg.slogdet(V)[1]
    own = np.einsum("ik,ik->i", b, solved)
    gain = np.empty(len(b))
    for start in range(0, len(b), _CHUNK):
        these = slice(start, start + _CHUNK)
        # [i, j]: variant i under a factor with the loadings of variant j
        products = b @ solved[these].T
        line = own[:, None] - products**2 / (1 + own[these])[None, :] + log_det + np.log1p(own[these])[None, :]
        each = np.log1p(_FACTOR_SHARE * np.expm1(np.minimum(-0.5 * line - mixture[:, None], 500)))
        gain[these] = (each * model.of_variant[:, None]).sum(axis=0)
    gain[(np.abs(b) > _FACTOR_SEEN * np.sqrt(model.unit)[None, :]).sum(axis=1) < 2] = -np.inf
    found = []
    for j in np.argsort(-gain)[:_FACTOR_STARTS]:
        if np.isfinite(gain[j]):
            begin = model.with_factor(theta, b[j], _FACTOR_SHARE)
            end, value = wider.maximise(begin, _free(wider, fitted.edges))
            found.append(Fitted(wider, end, fitted.edges, value))
    return max(found, key=lambda one: one.value, default=None)


def _evidence(fitted: Fitted) -> float:
    """Log marginal likelihood by Laplace, up to a constant of the parameters that all models have.

    Effects of trait on trait have prior N(0, 0.3^2), an edge has odds of one to twice the number of traits.
    """
    index = np.flatnonzero(fitted.free)
    fitted.model.narrow(fitted.theta)
    H = fitted.model.curvature(fitted.theta, index)
    edges = int(fitted.edges.sum())
    H[range(edges), range(edges)] += 1 / 0.3**2
    prior = -0.5 * float((fitted.T**2).sum()) / 0.3**2 - edges * (np.log(0.3) + np.log(2 * fitted.model.K))
    logs = np.log(np.maximum(np.linalg.eigvalsh(H), _FLAT))
    # The factor's share is log odds: its prior, Dirichlet(1.5), is about a normal of variance 2.
    prior -= 0.5 * fitted.model.F * np.log(2.0)
    return fitted.value + prior - 0.5 * float(logs.sum())
