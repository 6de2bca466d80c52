"""Heritable factors that no trait here measures: variants that act through one have effects in one ratio.

The effects of n variants that seem to act on several traits, b_i (K,) with errors E = C_n / N, are a mixture

    b_i ~ (1 - w) sum_c q_c N(0, V_c + E) + w N(0, a a^T + E),

own effects on two traits or more, c their set, or one effect v ~ N(0, 1) with loadings a on the traits S. Sets of one
size are all alike, or as frequent beside one another as the model has learned, which costs what learning it gained by
chance: were they alike alone, own effects of two traits that alone share variants would be taken for a factor; were
they as learned alone, variants of a weak factor would be, from which they were learned. Sizes' shares, w and a are
fitted by expectation-maximisation, from many starts.

A factor is believed by its evidence, the likelihood integrated over a ~ N(0, diag u^2), u^2 the slabs, and over w, by
Laplace's method, and over the choice of S: two variants always lie on a line, three rarely do by chance. With
x = E^-1/2 a and s = |x|^2 a member's information on x is s / (1 + s) across x and 2 s / (1 + s)^2 along it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, log

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

__all__ = ["HeritableFactor", "find_factors"]

Floats = NDArray[np.float64]

_STARTS = 30
_LOOKED_AT = 3000  # effects, for a start
_SHARE = 0.3  # of the effects through a factor, to begin with
_REFINED = 4  # starts whose traits are chosen with care
_STEPS = 40
_MOST_FACTORS = 3
_LEAST_MEMBERS = 1.8
_LIKELY = 0.5
_POSSIBLE = 0.02
_PRIOR_ODDS = 12.0, 1.0  # that there is one: one in thirty sets of effects without any is then thought to show one
_PRIOR_ODDS_OF_TWO = 1.0  # on two traits alone: own effects on both that have one sign look much like it
_SEEN = 3.0  # standard errors of an effect that a factor's first guess is made of


@dataclass(frozen=True, eq=False)
class HeritableFactor:
    """loadings: (K,), a; a a^T is the covariance of effects through it.  members: expected number of them.

    evidence: log Bayes factor for it, over own effects and the factors before it.  probability: that there is this
    factor, at prior odds of twelve to one for the first, of one to one for others and for one on two traits alone.
    """

    loadings: Floats
    members: float
    evidence: float
    probability: float


def find_factors(
    effects: Floats,
    weights: Floats,
    sets: Floats,
    slab: Floats,
    error: Floats,
    log_share: Floats | None = None,
    price: float = 0.0,
) -> list[HeritableFactor]:
    """Factors that the effects show, the clearest first; often none. Two traits are too few to show any.

    After one that is less likely than not no other is looked for.

    effects: (n, K), without what other traits pass on.  weights: (n,), probability that each acts on several traits.
    sets: (C, K, K), V_c, covariance of own effects on each set of two traits or more.  slab: (K,), u^2, variances of
    effects.  error: (K, K), E.  log_share: (C,), log of how frequent the sets have been learned to be, but for a
    constant of each size; None where nothing was.  price: log of likelihood that learning it has cost
    (`deepwas.pleiotropy.sharing.price_of_pairs`).
    """
    K = effects.shape[1]
    out: list[HeritableFactor] = []
    if K < 3 or weights.sum() < _LEAST_MEMBERS:
        return out
    frequent = [(np.zeros(len(sets)), 0.0)] if log_share is None else [(np.zeros(len(sets)), 0.0), (log_share, price)]
    problem = _Problem(effects, weights, sets, slab, error, frequent)
    while len(out) < _MOST_FACTORS and (not out or out[-1].probability > _LIKELY):
        found = problem.best([one.loadings for one in out], _PRIOR_ODDS[min(len(out), 1)])
        if found is None or found.probability < _POSSIBLE or found.members < _LEAST_MEMBERS:
            break
        out.append(found)
    return out


@dataclass(frozen=True, eq=False)
class _Own:
    """One hypothesis of how frequent sets of traits are beside others of their size.

    parts: (sizes + factors known, n), log densities.  price: of the hypothesis.  alone: (n,), log density of each
    variant, without a further factor.
    """

    parts: Floats
    price: float
    alone: Floats


class _Problem:
    """Effects, whitened by their errors once."""

    def __init__(
        self,
        effects: Floats,
        weights: Floats,
        sets: Floats,
        slab: Floats,
        error: Floats,
        frequent: list[tuple[Floats, float]],
    ):
        self.weights, self.slab = weights, slab
        values, vectors = np.linalg.eigh(error)
        self.half = (vectors / np.sqrt(values)) @ vectors.T  # E^-1/2
        self.x = effects @ self.half
        self.K = effects.shape[1]
        size = (np.einsum("ckk->ck", sets) > 0).sum(axis=1)
        each = np.stack([_log_density(self.x, self.half @ V @ self.half + np.eye(self.K)) for V in sets])
        self.hypotheses = [(_by_size(each, size, log_share), price) for log_share, price in frequent]
        self.strength = np.square(self.x).sum(axis=1) * weights
        self.seen = np.abs(effects) / np.sqrt(np.diag(error)) > _SEEN

    def best(self, known: list[Floats], prior_odds: float) -> HeritableFactor | None:
        """The likeliest further factor."""
        through = [self._through(self.half @ a)[None] for a in known]
        own = []
        for of_size, price in self.hypotheses:
            parts = np.concatenate([of_size, *through])
            own.append(_Own(parts, price, self._mixture(parts)))
        alone = np.array([self.weights @ one.alone - one.price for one in own])
        likeliest = own[int(alone.argmax())]
        without = float(np.logaddexp.reduce(alone))
        tried = []
        for i in self._starts(likeliest.alone):
            support = self.seen[i].copy()
            tried.append((self._weighed(own, without, support, self.x[i]), support))
        tried.sort(key=lambda one: -one[0][0])
        best: HeritableFactor | None = None
        for (evidence, x, members), support in tried[:_REFINED]:
            better = True
            while better:
                better = False
                for k in range(self.K):
                    other = support.copy()
                    other[k] = ~other[k]
                    if other.sum() < 2:
                        continue
                    # A trait that joins starts from a small loading.
                    start = x + 0.5 * (self.half[:, k] * np.sqrt(self.slab[k]))
                    new = self._weighed(own, without, other, start)
                    if new[0] > evidence + 1e-6:
                        (evidence, x, members), support, better = new, other, True
            if best is None or evidence > best.evidence:
                loadings = np.where(support, np.linalg.solve(self.half, x), 0.0)
                odds = prior_odds if support.sum() > 2 else min(prior_odds, _PRIOR_ODDS_OF_TWO)
                best = HeritableFactor(loadings, members, evidence, float(expit(evidence + log(odds))))
        return best

    def _starts(self, alone: Floats) -> NDArray[np.int64]:
        """The effects, seen on two traits or more, on whose lines through the origin most others seem to lie.

        The strongest ones need not be among them: where many variants have effects of their own, these are.
        """
        able = np.flatnonzero((self.seen.sum(axis=1) >= 2) & (self.strength > 0))
        able = able[np.argsort(-self.strength[able], kind="stable")[:_LOOKED_AT]]
        scale = np.sqrt(max(float((self.strength[able]).sum() / max(self.weights[able].sum(), 1e-12)), 1.0))
        gain = np.zeros(len(able))
        for at, i in enumerate(able.tolist()):
            joined = self._through(self.x[i] * (scale / np.sqrt(np.square(self.x[i]).sum())))
            gain[at] = self.weights @ (np.logaddexp(alone + log(1 - _SHARE), joined + log(_SHARE)) - alone)
        return able[np.argsort(-gain, kind="stable")[:_STARTS]]

    def _mixture(self, parts: Floats) -> Floats:
        """(n,), log density of each variant, with shares of the parts by expectation-maximisation."""
        share = np.full(len(parts), 1 / len(parts))
        for _ in range(_STEPS):
            log_density = np.logaddexp.reduce(parts + np.log(share)[:, None], axis=0)
            member = np.exp(parts + np.log(share)[:, None] - log_density)
            share = (member @ self.weights + 0.5) / (self.weights.sum() + 0.5 * len(parts))
        return np.asarray(np.logaddexp.reduce(parts + np.log(share)[:, None], axis=0))

    def _through(self, x: Floats) -> Floats:
        s = x @ x
        return np.asarray(
            -0.5 * (np.square(self.x).sum(axis=1) - (self.x @ x) ** 2 / (1 + s) + np.log1p(s) + self.K * log(2 * np.pi))
        )

    def _weighed(
        self, own: list[_Own], without: float, support: NDArray[np.bool_], start: Floats
    ) -> tuple[float, Floats, float]:
        """Evidence over all hypotheses, x and number of members by the likeliest, of the factor on `support`.

        without: log of likelihood over all hypotheses of no further factor.
        """
        fits = [self._fit(one.parts, support, start) for one in own]
        each = np.array([fit[0] - one.price for fit, one in zip(fits, own, strict=True)])
        _, x, members = fits[int(each.argmax())]
        return float(np.logaddexp.reduce(each)) - without, x, members

    def _fit(self, others: Floats, support: NDArray[np.bool_], start: Floats) -> tuple[float, Floats, float]:
        """Log of integrated likelihood, x and number of members of the factor on the traits `support`."""
        half = self.half[:, support]
        project = half @ np.linalg.solve(half.T @ half, half.T)
        x = project @ start
        own = np.concatenate([others, others[:1]])
        share = np.full(len(own), (1 - _SHARE) / (len(own) - 1))
        share[-1] = _SHARE
        total = self.weights.sum()
        for _ in range(_STEPS):
            own[-1] = self._through(x)
            joint = own + np.log(share)[:, None]
            log_density = np.logaddexp.reduce(joint, axis=0)
            member = np.exp(joint - log_density) * self.weights
            share = (member.sum(axis=1) + 0.5) / (total + 0.5 * len(own))
            s, r = x @ x, member[-1]
            v = self.x @ x / (1 + s)
            second = r @ v**2 + r.sum() / (1 + s)
            # The scale of v is free, too: one step more to where it is 1.
            x = project @ (self.x.T @ (r * v)) / max(second, 1e-12) * np.sqrt(second / max(r.sum(), 1e-12))
        own[-1] = self._through(x)
        joint = own + np.log(share)[:, None]
        log_density = np.logaddexp.reduce(joint, axis=0)
        members = float(self.weights @ np.exp(joint[-1] - log_density))
        return float(self.weights @ log_density) - self._price(x, members, total, support), x, members

    def _price(self, x: Floats, members: float, total: float, support: NDArray[np.bool_]) -> float:
        """Log of likelihood at its maximum over its integral, over a on the support, w, and the choice of support."""
        s, n = max(float(x @ x), 1e-6), max(members, 1e-6)
        along = np.outer(x, x) / s
        information = n * (s / (1 + s) * (np.eye(self.K) - along) + 2 * s / (1 + s) ** 2 * along)
        half = self.half[:, support]
        a = np.linalg.lstsq(half, x, rcond=None)[0]
        slab = self.slab[support]
        precision = half.T @ information @ half + np.diag(1 / slab)
        loadings = 0.5 * (np.linalg.slogdet(precision)[1] + np.log(slab).sum() + (a**2 / slab).sum())
        w = np.clip(members / total, 1 / total, 1 - 1e-3)
        share = 0.5 * (log(total / (w * (1 - w))) - log(2 * np.pi))
        return float(loadings - log(2) + share + log(self.K - 1) + log(comb(self.K, int(support.sum()))))


def _by_size(each: Floats, size: NDArray[np.int64], log_share: Floats) -> Floats:
    """(sizes, n), log densities of own effects on n traits, from those of sets (C, n) and how frequent these are."""
    return np.stack(
        [
            np.logaddexp.reduce(each[size == n] + log_share[size == n, None], axis=0)
            - np.logaddexp.reduce(log_share[size == n])
            for n in np.unique(size)
        ]
    )


def _log_density(x: Floats, covariance: Floats) -> Floats:
    _, log_det = np.linalg.slogdet(covariance)
    solved = np.linalg.solve(covariance, x.T)
    return np.asarray(-0.5 * (np.einsum("ki,ik->i", solved, x) + log_det + x.shape[1] * np.log(2 * np.pi)))
