"""Maximum likelihood of a softplus-linear prior by Newton's method with average information.

Per LD block y ~ N(0, B), B = noise I + G diag(c) G^T, c_j = N f_j (see docs/model.md), with

    f_j = base softplus(s + b + x_j . w),   softplus(s) = 1,   theta = (b, w, log noise)

Everything is float64, by Cholesky factorisation of the k x k covariance: standard errors need a score that is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, solve_triangular
from scipy.linalg.blas import dtrsm
from scipy.special import expit

from deepwas.errors import DeepwasError

if TYPE_CHECKING:
    from deepwas.training.trait import TraitBlock

__all__ = [
    "Maximum",
    "SoftplusLikelihood",
    "Terms",
    "at_bound",
    "block_terms",
    "in_one_group",
    "leave_out",
    "maximise",
    "pieces",
    "softplus",
]

Floats = NDArray[np.float64]
Advance = Callable[[int, int], None]

SHIFT = math.log(math.e - 1)  # s: softplus(s) = 1
_ROWS = 16384
_LARGEST_STEP = 3.0  # of the argument of softplus, at any variant
_LARGEST_GROWTH, _SOME = math.exp(3), 0.1
_MOST_STEPS = 100
_DECREMENT = 1e-6  # squared distance to the maximum in standard errors
_FLAT, _FAR = 1e-5, 1e-3  # a step that gains less than so many nats, at such a distance, shows a flat likelihood
_SINGULAR = 1e-11
_LEAST_INFORMATION = 0.1
_LEAST_LEFT = 0.2  # of the information about a weight, without the group of blocks that holds most of it


def softplus(u: Floats) -> Floats:
    """log(1 + exp(u)), without overflow."""
    return np.logaddexp(0.0, u)


class Terms(NamedTuple):
    """Log-likelihood in nats, its gradient (P,), and the information (P, P), see `block_terms`; or stacks of them."""

    value: Any
    score: Any
    information: Any

    def without(self, which: int) -> Terms:
        """The sum over a stack, one of it left out."""
        return Terms(*(x.sum(axis=0) - x[which] for x in self))

    def total(self) -> Terms:
        """The sum over a stack."""
        return Terms(*(x.sum(axis=0) for x in self))


def block_terms(
    G: NDArray[Any], y: NDArray[Any], design: Floats, c: Floats, slope: Floats, curvature: Floats, noise: float
) -> Terms:
    """One block's log density of y ~ N(0, B), B = noise I + G diag(c) G^T, its gradient and information.

    G: (k, m).  y: (k,).  design: (m, P - 1), of the linear predictor u = design theta.  c: (m,), N f, a function of u.
    slope, curvature: (m,), its first and second derivative.  The last parameter is log noise.
    With a = B^-1 y, B_i = dB/dtheta_i, B_ij its derivative and q_i = B_i a:

        score_i = (a' B_i a - tr B^-1 B_i) / 2,   information_ij = q_i' B^-1 q_j / 2 - (a' B_ij a - tr B^-1 B_ij) / 2

    The first term is the average information (Gilmour, Thompson & Cullis 1995), the mean of the observed and the
    expected information where B is linear in theta, at P solves instead of P^2 traces; the second is what the bend of
    the link adds, exactly. Cost 2 k^2 m + k m P + m P^2.
    Raises LinAlgError where B is not positive definite in floating point.
    """
    k = len(y)
    across = np.asarray(G, np.float64).T  # (m, k), in Fortran's order: no copy below
    scaled = across * np.sqrt(c)[:, None]
    covariance = scaled.T @ scaled
    covariance.flat[:: k + 1] += noise
    lower = cholesky(covariance, lower=True, check_finite=False)
    half = solve_triangular(lower, y, lower=True, check_finite=False)
    a = solve_triangular(lower, half, lower=True, trans="T", check_finite=False)
    value = -0.5 * (k * math.log(2 * math.pi) + 2 * np.sum(np.log(np.diagonal(lower))) + half @ half)
    inner = dtrsm(1.0, lower, across, side=1, lower=1, trans_a=1)  # (L^-1 G)^T
    leverage = np.einsum("jk,jk->j", inner, inner)
    projected = across @ a
    trace = (k - c @ leverage) / noise  # of B^-1, since tr B^-1 B = k
    by_c, by_noise = (projected**2 - leverage) / 2, noise * (a @ a - trace) / 2
    score = np.append(design.T @ (by_c * slope), by_noise)
    moved = across.T @ (design * (projected * slope)[:, None])
    columns = np.column_stack([moved, noise * a])
    whitened = solve_triangular(lower, columns, lower=True, check_finite=False)
    information = whitened.T @ whitened / 2
    information[:-1, :-1] -= design.T @ (design * (by_c * curvature)[:, None])
    information[-1, -1] -= by_noise
    return Terms(value, score, information)


@dataclass
class SoftplusLikelihood:
    """The likelihood of one trait's blocks under the softplus-linear prior, and its derivatives, by group of blocks.

    blocks: one trait's; factors are read at every pass, so that memory is set by the largest block.
    features: (M, p) of the store's variants, standardised, without NaN.  base: effect variance at theta = 0.
    groups: (n_blocks,), the jackknife group of each.  noise: sigma2, or None to learn it.
    theta is (b, w_1 .. w_p), and log noise if it is learned.
    """

    blocks: Sequence[TraitBlock]
    features: NDArray[np.float32]
    base: float
    groups: NDArray[np.int64]
    noise: float | None = None
    progress: Advance | None = None
    passes: int = field(default=0, init=False)

    @property
    def n_parameters(self) -> int:
        """P."""
        return 1 + self.features.shape[1] + (self.noise is None)

    def noise_at(self, theta: Floats) -> float:
        """sigma2."""
        return float(np.exp(theta[-1])) if self.noise is None else self.noise

    def scores(self, rows: slice, theta: Floats) -> Floats:
        """b + x_j . w, the linear predictor of the variants `rows`; theta may be (P, n) for n predictors."""
        p = self.features.shape[1]
        return theta[0] + self.features[rows].astype(np.float64) @ theta[1 : 1 + p]

    def shortening(self, theta: Floats, step: Floats) -> float:
        """The factor, at most 1, by which a step (P,) is to be taken: see `maximise`."""
        everywhere, somewhere, _ = self.moves(theta, step[:, None])[:, 0]
        return min(1.0, _LARGEST_STEP / max(somewhere, 1e-300), 10 * _LARGEST_STEP / max(everywhere, 1e-300))

    def moves(self, theta: Floats, steps: Floats) -> Floats:
        """What each of n steps (P, n) does at most to a variant: three figures, (3, n).

        The change of the linear predictor; the same, of variants whose effect variance is or becomes a tenth of the
        base or more; and the effect variance after the step over that before, plus the base.
        """
        most = np.zeros((3, steps.shape[1]))
        for rows in pieces(len(self.features), _ROWS // 4):
            u = SHIFT + self.scores(rows, theta)[:, None]
            change = self.scores(rows, steps)
            f, after = softplus(u), softplus(u + change)
            size, some = np.abs(change), (f > _SOME) | (after > _SOME)
            most = np.maximum(most, [x.max(axis=0) for x in (size, np.where(some, size, 0.0), after / (f + 1))])
        return most

    def terms(self, theta: Floats) -> Terms | None:
        """Value (n_groups,), score (n_groups, P) and information (n_groups, P, P); None where they do not exist."""
        count = int(self.groups.max()) + 1
        P = 2 + self.features.shape[1]
        found = Terms(np.zeros(count), np.zeros((count, P)), np.zeros((count, P, P)))
        for i, block in enumerate(self.blocks):
            terms = self._block(block, theta)
            if terms is None:
                return None
            for total, own in zip(found, terms, strict=True):
                total[self.groups[i]] += own
            if self.progress is not None:
                self.progress(i + 1, len(self.blocks))
        self.passes += 1
        n = self.n_parameters
        return Terms(found.value, found.score[:, :n], found.information[:, :n, :n])

    def _block(self, block: TraitBlock, theta: Floats) -> Terms | None:
        u = SHIFT + self.scores(block.rows, theta)
        scale, rise = block.sample_size * self.base, expit(u)
        c, slope, curvature = scale * softplus(u), scale * rise, scale * rise * (1 - rise)
        design = np.column_stack([np.ones(len(u)), self.features[block.rows]])
        with np.errstate(over="ignore", invalid="ignore"):
            try:
                found = block_terms(block.factor, block.whitened, design, c, slope, curvature, self.noise_at(theta))
            except LinAlgError:
                return None
        return found if all(np.isfinite(x).all() for x in found) else None


@dataclass(frozen=True)
class Maximum:
    """Where the likelihood is greatest.

    theta: (P,).  terms: by group, at theta.  history: log-likelihood after each step, the first before any.
    decrement: score' I^-1 score, the squared distance to the maximum in standard errors.
    flat: whether the search ended where the likelihood hardly changes, though the decrement is not small: some
        parameter runs to infinity, as that of an annotation whose variants have no heritability.
    """

    theta: Floats
    terms: Terms
    history: list[float]
    decrement: float
    flat: bool


def maximise(
    model: SoftplusLikelihood,
    theta: Floats,
    *,
    without: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Maximum:
    """Maximise the likelihood from theta: Newton steps with the information, damped where they overshoot.

    Levenberg and Marquardt's damping, (I + l diag I) step = score, with the linear predictor moved by no more
    than 3 at once, or by 30 where there is hardly any effect variance; a step is taken only if the likelihood rises.
    without: a group of blocks to leave out.  progress: called with the number of steps taken.
    Raises DeepwasError after 100 steps, with the figures.
    """

    def summed(found: Terms) -> Terms:
        return found.total() if without is None else found.without(without)

    terms = model.terms(theta)
    if terms is None:
        raise DeepwasError("the likelihood cannot be computed at the constant prior: are z-scores or LD out of bounds?")
    here = summed(terms)
    history, damping, idle = [float(here.value)], 0.0, 0
    for taken in range(_MOST_STEPS):
        decrement = float(here.score @ damped_solve(here.information, here.score, 0.0))
        if decrement < _DECREMENT or idle == 2:
            return Maximum(theta, terms, history, decrement, idle == 2)
        while True:
            step = damped_solve(here.information, here.score, damping)
            step *= model.shortening(theta, step)
            expected = float(here.score @ step - step @ here.information @ step / 2)
            tried = model.terms(theta + step)
            after = None if tried is None else summed(tried)
            gain = -math.inf if after is None else float(after.value - here.value)
            if gain > 0:
                break
            damping = max(10 * damping, 1e-3)
            if damping > 1e9:
                if expected < 1e-9 * abs(here.value) and decrement < _FAR:  # rounding is all that is left
                    return Maximum(theta, terms, history, decrement, False)
                raise DeepwasError(
                    f"no step raises the log-likelihood of {here.value:.3f} after {taken} steps; squared distance to "
                    f"its maximum {decrement:.2g} standard errors. Leave out annotations that nearly repeat others."
                )
        assert tried is not None
        assert after is not None
        damping = (
            0.0
            if gain > 0.75 * expected and damping < 1e-3
            else damping / 10
            if gain > 0.25 * expected
            else (max(4 * damping, 1e-3))
        )
        idle = idle + 1 if gain < _FLAT and decrement > _FAR else 0
        theta, terms, here = theta + step, tried, after
        history.append(float(here.value))
        if progress is not None:
            progress(taken + 1)
    raise DeepwasError(
        f"the likelihood has not converged in {_MOST_STEPS} steps: log-likelihood {history[-1]:.4f}, last gain "
        f"{history[-1] - history[-2]:.2g} nats, squared distance to the maximum {decrement:.2g} standard errors. "
        "Leave out annotations that nearly repeat others, or hold the noise (--noise 1)."
    )


def leave_out(model: SoftplusLikelihood, found: Maximum) -> tuple[Floats, int]:
    """One-step estimates without each group, (n_groups, P), and how many of them lie too far away to be trusted.

    theta_(-g) = theta + (I - I_g)^-1 (score - score_g), one Newton step from the estimate, as graphREML's jackknife
    (Li et al. 2024). It costs nothing beyond the last pass. Far is a step that moves the linear predictor of a variant
    with some effect variance by more than 3: the likelihood is no parabola so far out. A step that would multiply the
    effect variance of a variant by more than e^3 is halved until it does not.
    """
    rests = [found.terms.without(g) for g in range(len(found.terms.value))]
    steps = np.stack([damped_solve(rest.information, rest.score, 0.0) for rest in rests])
    far, open_ = model.moves(found.theta, steps.T)[1], np.arange(len(steps))
    while open_.size:
        growth = model.moves(found.theta, steps[open_].T)[2]
        open_ = open_[growth > _LARGEST_GROWTH]
        steps[open_] /= 2
    return found.theta + steps, int((far > _LARGEST_STEP).sum())


def at_bound(found: Maximum, means: Floats, scales: Floats) -> NDArray[np.bool_]:
    """Whether the likelihood no longer changes with the effect variance of a binary annotation's variants, (p,).

    It is about 0 there: a change of their linear predictor by 1 has an information below 0.1, a standard error above 3.
    means, scales: (p,), by which the annotations were standardised.
    """
    p = len(means)
    directions = np.zeros((p, len(found.theta)))
    directions[:, 0] = means
    directions[np.arange(p), 1 + np.arange(p)] = scales
    information = np.einsum("ip,pq,iq->i", directions, found.terms.total().information, directions)
    return information < _LEAST_INFORMATION


def in_one_group(found: Maximum, p: int) -> NDArray[np.bool_]:
    """Annotations of which one group of blocks holds more than 80% of the information, (p,): no jackknife is possible.

    Without that group nothing is known of the weight, `leave_out` leaves it where it is, and the group that matters
    adds nothing to the standard error. Information about w_i is meant with the intercept unknown, I_ii - I_0i^2 / I_00,
    so that it is the same for x, 1 - x and x + 100.
    """
    i = 1 + np.arange(p)

    def about(information: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return information[..., i, i] - information[..., 0, i] ** 2 / information[..., :1, 0]

    each = found.terms.information
    whole = each.sum(axis=0)
    left = about(whole - each)
    return (about(whole) > 0) & ~(left > _LEAST_LEFT * about(whole)).all(axis=0)


def damped_solve(information: Floats, score: Floats, damping: float) -> Floats:
    """(|I| + damping D)^-1 score, D the diagonal; directions in which there is no information are left alone.

    |I|: with the absolute values of the eigenvalues, scaled by D. Far from the maximum some may be negative, and a step
    along them must go up all the same.
    """
    diagonal = np.abs(np.diagonal(information))
    scale = np.where(diagonal > 0, 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0)), 0.0)
    values, vectors = np.linalg.eigh(information * np.outer(scale, scale))
    values = np.abs(values) + damping
    kept = values > _SINGULAR * max(values.max(), 1e-300)
    inverse = np.where(kept, 1 / np.where(kept, values, 1.0), 0.0)
    return scale * (vectors @ (inverse * (vectors.T @ (scale * score))))


def pieces(n: int, size: int = _ROWS) -> Iterator[slice]:
    """Rows 0 to n in pieces."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
