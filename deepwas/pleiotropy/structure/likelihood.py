"""Conditional likelihood of directed effects of trait on trait, given the instruments of each.

Estimated effects b (K,) of an instrument on K traits, in standard deviations, are normal given which of them are direct
(configuration c, a set of traits):

    b | c ~ N(0, V_c),   V_c = A' diag(delta_c s) A + Omega + E,   A = (I - T)^-1

T_lk: effect of trait l on trait k.  s_k: variance of direct effects.  Omega: background of smaller effects in LD, free.
E: noise. An instrument of trait l was chosen by |b_l| alone, so its likelihood is that of the other traits given b_l,

    log sum_c pi_c N(b; 0, V_c) - log sum_c pi_c N(b_l; 0, V_c,ll),

which the choice does not change (no winner's curse), and which knows that b_l has noise, shared with the others (no
bias of weak instruments). A variant whose effect on k passes through l lies on the line T_lk b_l, configuration
{l}; one with an effect of its own lies off it, {l, k}; one that reached l from k lies on the line of k, {k}: both
directions, chains and horizontal pleiotropy are told apart in one model. Configurations: none, each trait, each pair,
all.
The mixture of line and direct effects follows MR-Mix and CAUSE (Qi & Chatterjee 2019; Morrison et al. 2020).
"""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import DeepwasError

__all__ = ["MOST_EFFECT", "InstrumentLikelihood", "Parameters", "configurations"]

Floats = NDArray[np.float64]

_PSEUDO_COUNT = 1.0  # of each configuration: the data may not tell the shares of rare ones
MOST_EFFECT = 1.25
_STEP = 1e-4
_NEVER = 1e30
_LEAST_CURVATURE = 1e-6  # of a parameter's own
_MOST_LEVERAGE = 0.8  # of one group: a mixture is not convex, and a longer Newton step leads astray


class Parameters(NamedTuple):
    """T (K, K); log s (K,); lower Cholesky factor of Omega in units of the noise (K, K); log odds of pi (C,)."""

    T: Floats
    log_slab: Floats
    background: Floats
    logits: Floats


def configurations(K: int) -> Floats:
    """(C, K) of 0 and 1: no trait, each trait, each pair of traits, all traits if K > 2."""
    pairs = [np.isin(np.arange(K), pair).astype(float) for pair in combinations(range(K), 2)]
    return np.array([np.zeros(K), *np.eye(K), *pairs] + [np.ones(K)] * (K > 2))


class InstrumentLikelihood:
    """The likelihood of n instruments, its gradient and its maximum.

    b: (n, K).  trait: (n,), l of each.  noise: (K, K), E.  group: (n,), ascending from 0, for the jackknife.
    delta: (C, K) configurations.  edges: (C, K, K), 0 where a configuration has no effect of trait on trait.
    Parameters are one vector: T off the diagonal by row, log s, the lower triangle of Omega's factor, logits.
    """

    def __init__(
        self,
        b: Floats,
        trait: NDArray[np.int64],
        noise: Floats,
        group: NDArray[np.int64],
        delta: Floats | None = None,
        edges: Floats | None = None,
    ):
        self.b, self.trait, self.noise, self.group = b, trait, noise, group
        K = self.K = b.shape[1]
        self.delta = configurations(K) if delta is None else delta
        self.edges = np.ones((len(self.delta), K, K)) if edges is None else edges
        self.off = ~np.eye(K, dtype=bool)
        self.lower = np.tril_indices(K)
        self.unit = np.sqrt(np.diag(noise))
        self.n_groups = int(group.max()) + 1
        self.cuts = np.searchsorted(group, np.arange(self.n_groups + 1))
        self.ends = np.cumsum([K * (K - 1), K, K * (K + 1) // 2, len(self.delta)])

    def with_edge_off(self, cause: int, effect: int) -> InstrumentLikelihood:
        """One more configuration, last: {cause} where the edge to `effect` is not there."""
        edges = np.concatenate([self.edges, np.ones((1, self.K, self.K))])
        edges[-1, cause, effect] = 0
        delta = np.vstack([self.delta, np.eye(self.K)[cause]])
        return InstrumentLikelihood(self.b, self.trait, self.noise, self.group, delta, edges)

    def start(self) -> Floats:
        """No edges, slabs as large as the instruments' effects, most instruments direct on one trait."""
        slab = np.empty(self.K)
        for k in range(self.K):
            own = self.b[self.trait == k, k]
            slab[k] = np.median(own**2) if len(own) else 30 * self.noise[k, k]
        size = self.delta.sum(axis=1)
        logits = np.where(size == 1, 0.0, np.where(size == 0, -2.0, -3.0))
        return np.concatenate([np.zeros(self.ends[0]), np.log(slab), 0.3 * np.eye(self.K)[self.lower], logits])

    def unpack(self, theta: Floats) -> Parameters:
        """The parts of a parameter vector."""
        t, s, o, logits = np.split(theta, self.ends[:-1])
        T, background = np.zeros((2, self.K, self.K))
        T[self.off] = t
        background[self.lower] = o
        return Parameters(T, s, background, logits)

    def shares(self, theta: Floats) -> Floats:
        """pi, (C,)."""
        return np.exp(_log_softmax(self.unpack(theta).logits))

    def value_and_gradient(self, theta: Floats, *, prior: bool = True) -> tuple[float, Floats]:
        """Log likelihood of all instruments and its gradient; prior adds log pi of each configuration, once."""
        values, gradient = self._evaluate(theta, np.array([0, len(self.b)]))
        value, gradient = float(values.sum()), gradient[0]
        if prior:
            log_pi = _log_softmax(self.unpack(theta).logits)
            value += _PSEUDO_COUNT * float(log_pi.sum())
            gradient[self.ends[2] :] += _PSEUDO_COUNT * (1 - len(log_pi) * np.exp(log_pi))
        return value, gradient

    def scores(self, theta: Floats) -> Floats:
        """(n_groups, P), the gradient of each group's log likelihood, without the prior of pi."""
        return self._evaluate(theta, self.cuts)[1]

    def maximise(self, theta: Floats, free: NDArray[np.bool_]) -> tuple[Floats, float]:
        """Where the likelihood of the free parameters is largest, from theta, and its value; by L-BFGS."""
        from scipy.optimize import minimize

        index = np.flatnonzero(free)
        low, high = self._bounds()

        def negative(x: Floats) -> tuple[float, Floats]:
            full = theta.copy()
            full[index] = x
            try:
                value, gradient = self.value_and_gradient(full)
            except np.linalg.LinAlgError:  # I - T has no inverse: the line search turns back
                return _NEVER, np.zeros(len(index))
            return -value, -gradient[index]

        found = minimize(
            negative,
            np.clip(theta, low, high)[index],
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(low[index], high[index], strict=True)),
            options={"maxiter": 3000, "maxfun": 6000, "ftol": 1e-9, "gtol": 1e-3, "maxcor": 30},
        )
        if not np.isfinite(found.fun) or found.status == 1:
            raise DeepwasError(f"the search for effects of trait on trait did not converge: {found.message}.")
        best = theta.copy()
        best[index] = found.x
        return best, -float(found.fun)

    def search(self, edges: NDArray[np.bool_]) -> Floats:
        """The best of two searches, from T = 0 and from half the median ratios of effects; edges: (K, K), T to fit.

        The likelihood has false maxima, of large backgrounds and loops, far below the true one: so shares are fitted
        first, then T, slabs and background last.
        """
        ratios = np.zeros((self.K, self.K))
        for k in range(self.K):
            own = self.b[self.trait == k]
            if len(own):
                ratios[k] = np.clip(0.5 * np.median(own / own[:, [k]], axis=0), -0.5, 0.5)
        found, failures = [], []
        for begin in (np.zeros_like(ratios), ratios):
            theta = self.start()
            theta[: self.ends[0]] = np.where(edges, begin, 0)[self.off]
            free = np.zeros(self.ends[-1], bool)
            try:
                for part, open_now in ((slice(self.ends[2], None), True), (slice(0, self.ends[0]), edges[self.off])):
                    free[part] = open_now
                    theta, _ = self.maximise(theta, free)
                free[self.ends[0] :] = True
                found.append(self.maximise(theta, free))
            except DeepwasError as failure:
                failures.append(failure)
        if not found:
            raise failures[0]
        return max(found, key=lambda one: one[1])[0]

    def left_out(self, theta: Floats, free: NDArray[np.bool_]) -> Floats:
        """(n_groups, P), one Newton step from the maximum to that without each group.

        (H - H_g)^-1 s_g, s_g the group's gradient: a sandwich that knows how much hangs on one group. The Hessians, of
        all and of each group, are differences of gradients: 2 P passes.
        """
        index = np.flatnonzero(free)
        P = len(index)
        by_group = np.empty((self.n_groups, P, P))
        prior = np.zeros((P, P))
        for row, i in enumerate(index):
            above, below = theta.copy(), theta.copy()
            above[i] += _STEP
            below[i] -= _STEP
            by_group[:, row] = (self.scores(below) - self.scores(above))[:, index] / (2 * _STEP)
        first = self.ends[2]
        own = index >= first
        pi = self.shares(theta)[index[own] - first]
        prior[np.ix_(own, own)] = _PSEUDO_COUNT * len(self.delta) * (np.diag(pi) - np.outer(pi, pi))
        # The odds of pi have one direction too many: a ridge on it alone.
        prior[np.ix_(own, own)] += 1 / max(own.sum(), 1)
        whole = by_group.sum(axis=0) + prior
        gradient = self.scores(theta)[:, index]
        told = np.diag(whole) > 0  # others are at a bound, and stay
        unit = np.sqrt(np.diag(whole)[told])
        values, vectors = np.linalg.eigh(whole[np.ix_(told, told)] / np.outer(unit, unit))
        root = vectors / np.sqrt(np.maximum(values, _LEAST_CURVATURE)) / unit[:, None]  # root root' = H^-1
        steps = np.tile(theta, (self.n_groups, 1))
        for g in range(self.n_groups):
            leverage = root.T @ by_group[g][np.ix_(told, told)] @ root
            share, axes = np.linalg.eigh((leverage + leverage.T) / 2)
            along = axes @ ((axes.T @ (root.T @ gradient[g, told])) / (1 - np.clip(share, 0, _MOST_LEVERAGE)))
            steps[g, index[told]] -= root @ along
        return steps

    def _bounds(self) -> tuple[Floats, Floats]:
        low, high = np.full(self.ends[-1], -15.0), np.full(self.ends[-1], 15.0)
        low[: self.ends[0]], high[: self.ends[0]] = -MOST_EFFECT, MOST_EFFECT
        slab = slice(self.ends[0], self.ends[1])
        low[slab] = np.log(0.01 * np.diag(self.noise))
        high[slab] = np.log(10 * np.maximum((self.b**2).max(axis=0), np.diag(self.noise)))
        low[self.ends[1] : self.ends[2]], high[self.ends[1] : self.ends[2]] = -1e3, 1e3
        return low, high

    def _evaluate(self, theta: Floats, cuts: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Log likelihood of each instrument (n,), and gradients of the sums between cuts (g, P).

        With u = V^-1 b and responsibilities q_c, dL/dV_c = sum q_c (u u' - V_c^-1) / 2, less the same of b_l alone.
        """
        K, b, cause = self.K, self.b, self.trait
        T, log_slab, background, logits = self.unpack(theta)
        A = np.linalg.inv(np.eye(K) - T * self.edges)
        slab = np.exp(log_slab)
        W = np.swapaxes(A, 1, 2) @ ((self.delta * slab)[:, :, None] * A)
        L = background * self.unit[:, None]
        V = W + self.noise + L @ L.T
        inverse = np.linalg.inv(V)
        log_pi = _log_softmax(logits)
        u = b @ inverse  # (C, n, K)
        whole = log_pi[:, None] - 0.5 * ((u * b).sum(axis=-1) + np.linalg.slogdet(V)[1][:, None])
        v, own = V[:, cause, cause], b[np.arange(len(b)), cause]
        alone = log_pi[:, None] - 0.5 * (own**2 / v + np.log(v))
        above, below = _log_sum(whole), _log_sum(alone)
        q, r = np.exp(whole - above), np.exp(alone - below)
        alone_slope = -0.5 * r * (own**2 / v - 1) / v
        P = np.empty((len(cuts) - 1, len(logits), K, K))
        odds = np.empty((len(cuts) - 1, len(logits)))
        for g, (first, last) in enumerate(pairwise(cuts)):
            some = slice(first, last)
            weighted = np.swapaxes(u[:, some] * q[:, some, None], 1, 2)
            P[g] = 0.5 * (weighted @ u[:, some] - q[:, some].sum(axis=1)[:, None, None] * inverse)
            for k in range(K):
                P[g, :, k, k] += alone_slope[:, some][:, cause[some] == k].sum(axis=1)
            odds[g] = (q[:, some] - r[:, some]).sum(axis=1)
        through = A @ P
        d_T = (2 * (W @ np.swapaxes(through, -1, -2)) * self.edges).sum(axis=1)
        d_slab = (np.einsum("gckm,ckm->gck", through, A) * self.delta).sum(axis=1) * slab
        d_background = 2 * (P.sum(axis=1) @ L) * self.unit[:, None]
        gradient = [d_T[:, self.off], d_slab, d_background[:, *self.lower], odds]
        constant = 0.5 * (K - 1) * np.log(2 * np.pi)
        return above - below - constant, np.concatenate(gradient, axis=1)


def _log_sum(x: Floats) -> Floats:
    most = x.max(axis=0)
    return most + np.log(np.exp(x - most).sum(axis=0))


def _log_softmax(x: Floats) -> Floats:
    return x - _log_sum(x)
