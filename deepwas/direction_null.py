"""Statistics of a mean head, and their null distribution by flips of sign.

With y_b the whitened z-scores of block b, y_b ~ N(X_b w, B_b), w enters the likelihood through

    A = sum_b X_b' B_b^-1 X_b,    u = sum_b u_b,  u_b = X_b' B_b^-1 y_b,

log-likelihood(w) - log-likelihood(0) = w'u - w'A w / 2. Few columns are weighed by generalised least squares,
w = A^-1 u. With many, w ~ N(0, tau2 I) and tau2 maximises the marginal likelihood, in the eigenbasis A = V diag(a) V',
v = V'u:

    gain(tau2) = 1/2 sum_i [ tau2 v_i^2 / (1 + tau2 a_i) - log(1 + tau2 a_i) ].

Null: where effects have no direction, y_b and -y_b have the same law, whatever the effects' distribution. A does not
change with the signs of y, so each flip costs a sum of u_b. p = (1 + flips at least as extreme) / (1 + flips), exact
for independent blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError

__all__ = ["FlipTest", "Head", "Weights", "flip_test"]

_TIE = 1e-9  # relative: a flip of every block gives the observed statistic, but for rounding
_RANK = 1e-10
_STRENGTHS = np.concatenate([[0.0], np.logspace(-4, 4, 33)])  # tau2 times the mean eigenvalue of A
_AT_ONCE = 1 << 22  # numbers of one array of flips

Array = NDArray[np.float64]


class Weights(NamedTuple):
    """w (p,), the covariance of its error or posterior (p, p), tau2 (infinite without a prior)."""

    w: Array
    covariance: Array
    tau2: float


@dataclass(frozen=True)
class Head:
    """A mean head's information matrix, decomposed once.

    values, vectors: (r,), (p, r), the eigenpairs of A above rounding.  ridge: whether w has the normal prior.
    """

    values: Array
    vectors: Array
    ridge: bool

    @classmethod
    def of(cls, A: Array, ridge: bool) -> Head:
        """Decompose A (p, p). InputError if it is 0: the scores then say nothing about any z-score."""
        values, vectors = np.linalg.eigh((A + A.T) / 2)
        keep = values > _RANK * max(float(values[-1]), 0.0)
        if not keep.any():
            raise InputError("the signed scores are 0 at every variant that the z-scores tell about: nothing to test.")
        return cls(values[keep], vectors[:, keep], ridge)

    @property
    def strengths(self) -> Array:
        """The values of tau2 that the test looks at."""
        return _STRENGTHS / self.values.mean()

    def statistic(self, u: Array) -> Array:
        """T of u (n, p), (n,): u'A^-1 u; with the prior, twice the largest marginal gain over `strengths`."""
        squares = (u @ self.vectors) ** 2
        if not self.ridge:
            return squares @ (1 / self.values)
        tau2 = self.strengths[:, None]
        shrunk = 1 + tau2 * self.values[None, :]
        return (squares @ (tau2 / shrunk).T - np.log(shrunk).sum(axis=1)[None, :]).max(axis=1)

    def fit(self, u: Array) -> Weights:
        """w for u (p,), tau2 at the maximum of the marginal likelihood (0 where that is at 0)."""
        return self.shrunk(u, self._most_likely(self.vectors.T @ u) if self.ridge else np.inf)

    def shrunk(self, u: Array, tau2: float) -> Weights:
        """w for u (p,) and a given tau2; infinite for least squares."""
        kept = 1 / self.values if np.isinf(tau2) else tau2 / (1 + tau2 * self.values)
        return Weights(self.vectors @ (kept * (self.vectors.T @ u)), (self.vectors * kept) @ self.vectors.T, tau2)

    def _most_likely(self, v: Array) -> float:
        from scipy.optimize import minimize_scalar

        a, squares = self.values, v**2

        def loss(log_tau2: float) -> float:
            tau2 = np.exp(log_tau2)
            return -float(np.sum(tau2 * squares / (1 + tau2 * a) - np.log1p(tau2 * a)))

        losses = np.array([loss(np.log(t)) for t in self.strengths[1:]])
        best = int(losses.argmin())
        if losses[best] >= 0:
            return 0.0
        around = np.log(self.strengths[1:])[[max(best - 1, 0), min(best + 1, len(losses) - 1)]]
        found = minimize_scalar(loss, bounds=tuple(around), method="bounded", options={"xatol": 1e-6})
        return float(np.exp(found.x)) if found.fun < losses[best] else float(self.strengths[1 + best])


@dataclass(frozen=True)
class FlipTest:
    """A test by flips of sign.

    observed: T.  null: (n,) T of the flips.  p: of T.
    z: (p,) each column alone, u_q over the standard deviation that flips give it.
    column_p, column_p_adjusted: (p,) of |z_q|, and of |z_q| against the largest of all columns.
    """

    observed: float
    null: Array
    p: float
    z: Array
    column_p: Array
    column_p_adjusted: Array


def flip_test(groups: Array, head: Head, *, permutations: int, rng: np.random.Generator) -> FlipTest:
    """Test sum_g u_g against random signs of its terms.

    groups: (G, p), u_g of blocks that keep their sign together.  permutations: n, flips to draw.
    Cost O(n G p), and O(n p^2) for T.
    """
    u = groups.sum(axis=0)
    spread = np.sqrt((groups**2).sum(axis=0))
    scale = np.where(spread > 0, spread, np.inf)
    z = u / scale
    observed = float(head.statistic(u[None])[0])
    largest, least = np.abs(z)[None, :] * (1 - _TIE), observed - _TIE * abs(observed)
    null = np.empty(permutations)
    column, adjusted = np.zeros(len(u)), np.zeros(len(u))
    at_once = max(1, _AT_ONCE // max(groups.shape))
    for start in range(0, permutations, at_once):
        count = min(at_once, permutations - start)
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=(count, len(groups)), dtype=np.int8)
        flipped = signs @ groups
        null[start : start + count] = head.statistic(flipped)
        sizes = np.abs(flipped) / scale[None, :]
        column += (sizes >= largest).sum(axis=0)
        adjusted += (sizes.max(axis=1)[:, None] >= largest).sum(axis=0)
    return FlipTest(
        observed,
        null,
        float(1 + (null >= least).sum()) / (1 + permutations),
        z,
        (1 + column) / (1 + permutations),
        (1 + adjusted) / (1 + permutations),
    )
