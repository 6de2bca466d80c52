"""Conditional likelihood of directed effects of trait on trait, given the instruments of each.

Estimated effects b (K,) of a variant on K traits, in standard deviations, are normal given which of them are direct
(configuration c, a set of traits):

    b | c ~ N(0, V_c),   V_c = A' diag(delta_c s + o) A + E,   A = (I - T)^-1

T_lk: effect of trait l on trait k.  s_k: variance of direct effects.  o_k: of smaller effects in LD.  E: noise.
A heritable factor is one more class, V = w w' + A' diag(o) A + E: variants that act on several traits in one ratio w,
as those of an unmeasured trait do. A fifth of them has a direct effect on one trait besides, as two variants in LD
look; its smaller effects in LD add h w w' to every class.
A variant chosen for trait l was chosen by |b_l| alone, so its likelihood is that of the other traits given b_l,

    log sum_c pi_c N(b; 0, V_c) - log sum_c pi_c N(b_l; 0, V_c,ll),

which the choice does not change (no winner's curse), and which knows that b_l has noise, shared with the others (no
bias of weak instruments). A variant whose effect on k passes through l lies on the line T_lk b_l, configuration
{l}; one with an effect of its own lies off it, {l, k}; one that reached l from k lies on the line of k, {k}: both
directions, chains, factors and horizontal pleiotropy are told apart in one model. A locus that was found for several
traits, perhaps by several leads, counts once: the weights of its instruments sum to 1.

pi_c = g(n) exp(a . delta_c) / sum over sets of n traits: a share for each number of traits, and how often each trait
is among them. Ten instruments do not tell all of this, so all but T has a weak prior, and what is found is the mode:
log s_k ~ N(log of the own instruments' median b^2, 0.7^2), log o_k ~ N(log of a tenth of the noise, 1.5^2),
a_k ~ N(0, 1), g ~ Dirichlet(1.5), w_k ~ N(0, typical s_k), log h ~ N(log 0.003, 1.5^2).

The mixture of line and direct effects follows MR-Mix and CAUSE, the factor CAUSE and LHC-MR (Qi & Chatterjee 2019;
Morrison et al. 2020; Darrous, Mounier & Kutalik 2021).
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import DeepwasError

__all__ = ["MOST_EFFECT", "STEP", "InstrumentLikelihood", "Parameters", "configurations", "log_sum"]

Floats = NDArray[np.float64]

MOST_EFFECT = 1.25
_ALL_SETS = 8  # traits, up to which every set of them is weighed: 256
_LEADING, _SEEN = 5.45, 3.0  # |z| that suggest the likely sets of more traits
_ENUMERATED = 5
_PSEUDO_COUNT = 0.5
_SLAB_SPREAD, _BACKGROUND, _BACKGROUND_SPREAD = 0.7, 0.1, 1.5
_HAZE, _MIXED = 3e-3, 0.2
_MEDIAN_TO_VARIANCE = 0.6  # of the squares of effects cut off at a threshold, about
_UNSEEN = 30.0  # variances of noise, the slab of a trait with hardly an instrument
_UNLIKELY = 1e-6  # posterior share of a configuration in a variant below which it is not followed
_ROUNDS = 4
_CHANGED = 0.05
STEP = 1e-3
_NEVER = 1e30


class Parameters(NamedTuple):
    """T (K, K); s (K,); o (K,); a (K,); log odds of the shares of sizes and factors; w (F, K); h (F,)."""

    T: Floats
    slab: Floats
    background: Floats
    tilt: Floats
    logits: Floats
    loadings: Floats
    haze: Floats


def configurations(K: int, z: Floats | None = None) -> Floats:
    """(C, K) of 0 and 1: all sets of up to eight traits; of more, small sets, all, and those that z (n, K) suggests."""
    if K <= _ALL_SETS:
        sets = {c for n in range(K + 1) for c in combinations(range(K), n)}
    else:
        sets = {c for n in range(3) for c in combinations(range(K), n)} | {tuple(range(K))}
        for row in np.abs(z) if z is not None else ():
            for least in (_LEADING, _SEEN):
                traits = tuple(int(k) for k in np.flatnonzero(row > least))
                sets.add(traits)
                if len(traits) <= _ENUMERATED:
                    sets |= {c for n in range(2, len(traits)) for c in combinations(traits, n)}
                else:
                    sets |= {traits[:i] + traits[i + 1 :] for i in range(len(traits))}
    found = np.zeros((len(sets), K))
    for row, chosen in enumerate(sorted(sets, key=lambda c: (len(c), c))):
        found[row, list(chosen)] = 1
    return found


class InstrumentLikelihood:
    """The likelihood of variants that are instruments, its gradient, its curvature and its maximum.

    b: (n, K), variants.  variant, trait, weight: (m,) of each instrument, its row of b, the trait it was chosen for,
    and what it counts.  noise: (K, K), E.  factors: F.
    Parameters are one vector: T off the diagonal by row, log s, log o in variances of noise, a, the log odds of
    shares, w in units of `scale`, log h. Configurations that a variant hardly has (`narrow`) are left out of its sum.
    """

    def __init__(
        self,
        b: Floats,
        variant: NDArray[np.int64],
        trait: NDArray[np.int64],
        weight: Floats,
        noise: Floats,
        *,
        factors: int = 0,
        delta: Floats | None = None,
    ):
        self.b, self.variant, self.trait, self.weight, self.noise = b, variant, trait, weight, noise
        self.n, self.K = b.shape
        self.unit = np.diag(noise).copy()
        self.delta = configurations(self.K, b / np.sqrt(self.unit)) if delta is None else delta
        self.sizes, self.size_of = np.unique(self.delta.sum(axis=1), return_inverse=True)
        self.F, self.C, S = factors, len(self.delta), len(self.sizes)
        self.of_variant = np.bincount(variant, weight, self.n)
        self.off = ~np.eye(self.K, dtype=bool)
        K = self.K
        self.ends = np.cumsum([K * (K - 1), K, K, K, S + factors, factors * K, factors])
        self.P = int(self.ends[-1])
        # Of each factor: its variants alone, then with a direct effect on one trait, most often of another in LD.
        alone = np.vstack([np.zeros(K), np.eye(K)])
        self.direct = np.concatenate([self.delta, np.tile(alone, (factors, 1))])
        self.through = np.vstack([np.zeros((self.C, factors)), np.repeat(np.eye(factors), K + 1, axis=0)])
        self.group_of = np.concatenate([self.size_of, np.repeat(S + np.arange(factors), K + 1)])
        self.mixed = np.tile(np.log(np.append([1 - _MIXED], np.full(K, _MIXED / K))), factors)
        self.place = np.zeros((K, K), int)  # of an edge in the vector
        self.place[self.off] = np.arange(K * (K - 1))
        self.typical = _UNSEEN * self.unit
        for k in range(K):
            own = b[variant[trait == k], k]
            if len(own) > 2:
                self.typical[k] = np.median(own**2) / _MEDIAN_TO_VARIANCE
        self.scale = np.sqrt(self.typical)
        self._active: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def with_factors(self, factors: int) -> InstrumentLikelihood:
        """The same instruments with so many factors."""
        return InstrumentLikelihood(
            self.b, self.variant, self.trait, self.weight, self.noise, factors=factors, delta=self.delta
        )

    def start(self) -> Floats:
        """No edges, slabs as large as the instruments' effects, most instruments direct on one trait."""
        shares = np.where(self.sizes == 1, 1.5, np.where(self.sizes == 0, -1.5, -0.5))
        tail = [shares, np.full(self.F, -2.0), np.zeros(self.F * self.K), np.full(self.F, np.log(_HAZE))]
        background = np.full(self.K, np.log(_BACKGROUND))
        return np.concatenate([np.zeros(self.ends[0]), np.log(self.typical), background, np.zeros(self.K), *tail])

    def with_factor(self, theta: Floats, loadings: Floats, share: float) -> Floats:
        """theta for one factor more, of a share of the variants. loadings: (K,), effects of one standard deviation."""
        odds = theta[self.ends[3] : self.ends[4]]
        mine = log_sum(odds, 0) + np.log(share / (1 - share))
        own = np.clip(loadings / self.scale, -4, 4)
        cut, end = self.ends[4:6]
        return np.concatenate([theta[:cut], [mine], theta[cut:end], own, theta[end:], [np.log(_HAZE)]])

    def unpack(self, theta: Floats) -> Parameters:
        """The parts of a parameter vector, in units of b."""
        t, s, o, a, g, w, h = np.split(theta, self.ends[:-1])
        T = np.zeros((self.K, self.K))
        T[self.off] = t
        return Parameters(T, np.exp(s), np.exp(o) * self.unit, a, g, w.reshape(self.F, self.K) * self.scale, np.exp(h))

    def log_shares(self, theta: Floats) -> Floats:
        """(C',), log pi of every configuration, then of those of the factors."""
        part = self.unpack(theta)
        within, share = self._within(part.tilt), part.logits - log_sum(part.logits, 0)
        return np.asarray(share[self.group_of] + np.concatenate([within, self.mixed]))

    def _within(self, tilt: Floats) -> Floats:
        """(C,), log share of a configuration among those of its size."""
        odds = self.delta @ tilt
        norm = np.array([log_sum(odds[self.size_of == i], 0) for i in range(len(self.sizes))])
        return np.asarray(odds - norm[self.size_of])

    def _covariances(self, part: Parameters, A: Floats, lam: Floats, which: NDArray[np.int64]) -> Floats:
        V = np.swapaxes(A[None] * lam[which][:, :, None], 1, 2) @ A[None] + self.noise[None]
        for f in range(self.F):
            times = part.haze[f] + self.through[which, f]
            V += times[:, None, None] * np.outer(part.loadings[f], part.loadings[f])[None]
        return np.asarray(V)

    def _variances(self, part: Parameters) -> tuple[Floats, Floats]:
        """A (K, K), and lam (C', K) with V = A' diag(lam) A + ..."""
        return np.asarray(np.linalg.inv(np.eye(self.K) - part.T)), self.direct * part.slab + part.background

    def narrow(self, theta: Floats, least: float = _UNLIKELY) -> Floats:
        """Follow only the configurations each variant may have at theta. Returns log pi_c N(b; 0, V_c), (n, C')."""
        part = self.unpack(theta)
        A, lam = self._variances(part)
        joint = np.tile(self.log_shares(theta), (self.n, 1))
        for first in range(0, len(self.direct), 256):
            which = np.arange(first, min(first + 256, len(self.direct)))
            V = self._covariances(part, A, lam, which)
            lower = np.linalg.inv(np.linalg.cholesky(V))
            white = np.einsum("cij,nj->cni", lower, self.b, optimize=True)
            logdet = -2 * np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1)
            joint[:, which] -= 0.5 * ((white**2).sum(axis=2) + logdet[:, None]).T
        share = np.exp(joint - log_sum(joint, 1)[:, None])
        which, row = np.nonzero((share >= least).T)  # sorted by configuration
        self._active = which.astype(np.int64), row.astype(np.int64)
        return joint

    def value(self, theta: Floats, *, prior: bool = True) -> float:
        """Log likelihood and, unless told not to, log prior; a constant is left out."""
        return self._evaluate(theta, slope=False, prior=prior)[0]

    def value_and_gradient(self, theta: Floats) -> tuple[float, Floats]:
        """Log likelihood and log prior, and their slope."""
        return self._evaluate(theta)

    def scores(self, theta: Floats, group: NDArray[np.int64]) -> Floats:
        """(groups, P), slopes of the log likelihood of each group of variants, without the prior. group: (n,)."""
        return np.array([self._evaluate(theta, among=group == g, prior=False)[1] for g in range(group.max() + 1)])

    def curvature(self, theta: Floats, index: NDArray[np.int64]) -> Floats:
        """(p, p), minus the second derivatives by the parameters of the index, as differences of 2 p slopes."""
        H = np.empty((len(index), len(index)))
        for row, i in enumerate(index):
            step = np.zeros(self.P)
            step[i] = STEP
            H[row] = (self._evaluate(theta - step)[1] - self._evaluate(theta + step)[1])[index] / (2 * STEP)
        return (H + H.T) / 2

    def maximise(self, theta: Floats, free: NDArray[np.bool_]) -> tuple[Floats, float]:
        """The mode of the free parameters, from theta, and its value; by L-BFGS."""
        from scipy.optimize import minimize

        index = np.flatnonzero(free)
        low, high = self._bounds()
        theta, best = np.clip(theta, low, high), -np.inf

        def negative(x: Floats) -> tuple[float, Floats]:
            full = theta.copy()
            full[index] = x
            try:
                value, gradient = self._evaluate(full)
            except np.linalg.LinAlgError:  # I - T has no inverse: the line search turns back
                return _NEVER, np.zeros(len(index))
            return (-value, -gradient[index]) if np.isfinite(value) else (_NEVER, np.zeros(len(index)))

        for _ in range(_ROUNDS):
            self.narrow(theta)
            found = minimize(
                negative,
                theta[index],
                jac=True,
                method="L-BFGS-B",
                bounds=list(zip(low[index], high[index], strict=True)),
                options={"maxiter": 1000, "maxfun": 2000, "ftol": 1e-7, "gtol": 1e-3, "maxcor": 20},
            )
            # A search that has used up its steps has not failed: what it reached is kept, and compared.
            if not np.isfinite(found.fun) or found.fun >= _NEVER:
                raise DeepwasError(f"the search for effects of trait on trait did not converge: {found.message}.")
            theta = theta.copy()
            theta[index] = found.x
            gained, best = -float(found.fun) - best, max(best, -float(found.fun))
            if gained < _CHANGED:
                break
        return theta, best

    def _bounds(self) -> tuple[Floats, Floats]:
        high = np.full(self.P, 12.0)
        high[: self.ends[0]] = MOST_EFFECT
        low = -high
        slab = slice(self.ends[0], self.ends[1])
        low[slab], high[slab] = np.log(self.typical) - 4, np.log(self.typical) + 4
        return low, high

    def _evaluate(
        self, theta: Floats, *, slope: bool = True, prior: bool = True, among: NDArray[np.bool_] | None = None
    ) -> tuple[float, Floats]:
        """Value and gradient. among: (n,), the variants that count.

        With u = V^-1 b and responsibilities q_c, dL/dV_c = sum q_c (u u' - V_c^-1) / 2, less the same of b_l alone.
        """
        if self._active is None:
            self.narrow(theta)
        assert self._active is not None
        part, log_pi = self.unpack(theta), self.log_shares(theta)
        A, lam = self._variances(part)
        which, row = self._active
        variant, trait, weight = self.variant, self.trait, self.weight
        if among is not None:
            which, row = which[among[row]], row[among[row]]
            mine = among[variant]
            variant, trait, weight = variant[mine], trait[mine], weight[mine]
        seen, first, place = np.unique(which, return_index=True, return_inverse=True)
        V = self._covariances(part, A, lam, seen)
        inverse, logdet = np.linalg.inv(V), np.linalg.slogdet(V)[1]
        b = self.b[row]
        u = (b[:, None, :] @ inverse[place])[:, 0]
        each = log_pi[which] - 0.5 * ((u * b).sum(axis=1) + logdet[place])
        top = np.full(self.n, -np.inf)
        np.maximum.at(top, row, each)
        relative = np.exp(each - top[row])
        total = np.bincount(row, relative, self.n)
        some = total > 0
        value = float((self.of_variant[some] * (top[some] + np.log(total[some]))).sum())
        own = self.b[variant, trait]
        variances = lam @ A**2 + self.unit[None, :]
        variances += (part.haze[None, :] + self.through) @ part.loadings**2
        v = variances[:, trait]
        alone = log_pi[:, None] - 0.5 * (own[None, :] ** 2 / v + np.log(v))
        below = log_sum(alone, 0)
        value -= float((weight * below).sum())
        gradient = np.zeros(self.P)
        if slope:
            q = relative / total[row] * self.of_variant[row]
            r = np.exp(alone - below[None, :]) * weight[None, :]
            by_seen = np.add.reduceat(q, first)
            P = np.add.reduceat((u * q[:, None])[:, :, None] * u[:, None, :], first, axis=0)
            P = 0.5 * (P - by_seen[:, None, None] * inverse)
            single = -0.5 * r * (own[None, :] ** 2 / v - 1) / v
            D = np.stack([single[:, trait == k].sum(axis=1) for k in range(self.K)], axis=1)
            counts = -r.sum(axis=1)
            counts[seen] += by_seen
            gradient = self._slope(part, A, lam, seen, P, D, counts)
        if prior:
            value += self._add_prior(theta, gradient)
        return value, gradient

    def _slope(
        self,
        part: Parameters,
        A: Floats,
        lam: Floats,
        seen: NDArray[np.int64],
        P: Floats,
        D: Floats,
        counts: Floats,
    ) -> Floats:
        """(P,), by the chain rule from dL/dV: P (seen, K, K), and of its diagonal alone D (C', K); dL/d log pi."""
        S, C = len(self.sizes), self.C
        through = A[None] @ P
        d_A = 2 * ((lam[seen][:, :, None] * through).sum(axis=0) + A * (lam.T @ D))
        d_T = A.T @ d_A @ A.T
        d_lam = D @ (A**2).T
        d_lam[seen] += (through * A[None]).sum(axis=2)
        d_slab = (d_lam * self.direct).sum(axis=0) * part.slab
        d_background = d_lam.sum(axis=0) * part.background
        totals = np.bincount(self.group_of, counts, S + self.F)
        share = np.exp(part.logits - log_sum(part.logits, 0))
        within = np.exp(self._within(part.tilt))
        expected = np.stack([within[self.size_of == i] @ self.delta[self.size_of == i] for i in range(S)])
        d_tilt = counts[:C] @ self.delta - totals[:S] @ expected
        d_loadings, d_haze = np.zeros((self.F, self.K)), np.zeros(self.F)
        for f, w in enumerate(part.loadings):
            times = part.haze[f] + self.through[:, f]
            d_loadings[f] = 2 * (times[seen] @ (P @ w) + (times @ D) * w)
            d_haze[f] = ((P @ w @ w).sum() + D.sum(axis=0) @ w**2) * part.haze[f]
        tail = (d_loadings * self.scale[None, :]).ravel()
        return np.concatenate(
            [d_T[self.off], d_slab, d_background, d_tilt, totals - totals.sum() * share, tail, d_haze]
        )

    def _add_prior(self, theta: Floats, gradient: Floats) -> float:
        """Log prior; its slope is added to the gradient."""
        value, e = 0.0, self.ends
        for part, centre, spread in (
            (slice(e[0], e[1]), np.log(self.typical), _SLAB_SPREAD),
            (slice(e[1], e[2]), np.log(_BACKGROUND), _BACKGROUND_SPREAD),
            (slice(e[2], e[3]), 0.0, 1.0),
            (slice(e[4], e[5]), 0.0, 1.0),
            (slice(e[5], e[6]), np.log(_HAZE), _BACKGROUND_SPREAD),
        ):
            away = (theta[part] - centre) / spread
            value -= 0.5 * float((away**2).sum())
            gradient[part] -= away / spread
        odds = theta[e[3] : e[4]]
        log_share = odds - log_sum(odds, 0)
        gradient[e[3] : e[4]] += _PSEUDO_COUNT * (1 - len(odds) * np.exp(log_share))
        return value + _PSEUDO_COUNT * float(log_share.sum())


def log_sum(x: Floats, axis: int) -> Floats:
    """log sum exp along an axis."""
    most = x.max(axis=axis, keepdims=True)
    return np.asarray((most + np.log(np.exp(x - most).sum(axis=axis, keepdims=True))).squeeze(axis))
