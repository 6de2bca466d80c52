"""Does the LD of a block fit the z-scores of a trait?

Under the model z_S = R_S: b + e, e ~ N(0, noise R_SS), b_j ~ N(0, c_j), c = N f. A block holds R_SS only up to its k
kept eigen-directions, as L L^T, L (s, k) the loadings of the scored variants. The kept part of z_S is
y = pinv(L) z_S ~ N(0, B), B = noise I + G diag(c) G^T, the dropped part z_S - L y. Of the dropped eigenvalues the sum
is known, tau = s - |L|^2, since R_jj = 1; so is each variant's share, d_j = 1 - |L_j|^2; and none is above
`largest_dropped`, lam.

Two things are no mismatch and are allowed for first. *Hits*: effects of single variants that stand out at p < 5e-8 are
estimated by stepwise least squares, up to ten, and taken out of z; effects that have to cancel (any of them twice the
largest marginal z) are not believed, as wrong signs look like that. *Level*: a block may hold more signal than the
prior says; the prior is scaled by the factor t >= 1 that fits the leading half of the directions best.

Energies, with D = diag(noise I + t G diag(c) G^T) and H the hits:

    small half     sum_i y_i^2 / D_i over the half of the kept directions with the least LD; expected: their number less
                   the share of the hits' fit; variance: 2 sum_ij B_ij^2 / (D_i D_j)
    leading half   the same over the other half, with t = 1: it tells of signal more than of mismatch
    dropped        |z_S - L y|^2; expected: at most tau (noise + t u) + sum_H b_h^2 (lam d_h - d_h^2), u the signal
                   sum_j G_ij^2 c_j of the last kept directions; variance: at most that of tau / lam equal directions

Each is compared with the chi-square distribution of the same mean and variance (Welch and Satterthwaite). For the
dropped directions both bounds make the test conservative.

Leave-one-out: with what variants have outside the kept directions taken for independent,

    S = L B L^T + diag(E),   E_j = d_j (noise + t u) + noise / 1000,

    r_j = z_j - E[z_j | the others] = [S^-1 z]_j / [S^-1]_jj,    variance v_j = 1 / [S^-1]_jj,

at the cost s k^2. Were what was dropped spread evenly, variants in perfect LD, of which nothing is, would make others,
that lost more than the mean, look like outliers. An effect b_j of the variant's own moves r_j by h_j b_j, h_j = v_j
[S^-1 R_:j]_j. A variant in weak LD would be an outlier for having an effect, so an effect as large as its own z-score
is granted:

    T_j^2 = r_j^2 / (inflation v_j + h_j^2 z_j^2),   at most a chi-square with 1 degree of freedom,

inflation >= 1 being the median of r_j^2 / v_j over that of the chi-square. In strong LD h_j is small, and a wrong sign
or allele frequency stands out: the effect that would explain it had to be many times z_j. Two causal variants in strong
LD whose effects cancel look the same; no z-score tells them apart.

Sources: the leave-one-out statistic follows the idea of DENTIST (Chen et al. 2021); that outliers are telling in strong
LD is the observation of SLALOM (Kanai et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepwas.errors import InputError

__all__ = ["OUTLIER_P", "BlockMismatch", "Energy", "block_mismatch"]

OUTLIER_P = 5e-8
_HIT_CHI2 = 29.71  # p = 5e-8
_MOST_HITS = 10
_MEDIAN_CHI2 = 0.4549364
_LEAST_DROPPED = 1e-3  # share of the trace: below it, rounding of stored LD outweighs what was dropped
_NUGGET = 1e-3  # of the noise: z-scores are rounded and imputed, so no LD is trusted further than this

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Energy:
    """Observed over expected energy, and the probability of a ratio as large under the model."""

    ratio: float
    p: float


@dataclass(frozen=True)
class BlockMismatch:
    """How one trait's z-scores fit the LD of one block.

    dropped, small, leading: energies; None where there are no such directions.
    noise: sigma2 that is most likely for the block alone, the prior held.  level: t.
    hits: (h,) candidate variants whose effects were taken out first.
    residual, variance: (s,), r and v.  statistic: (s,), T with the sign of r.  inflation: of r^2 / v.
    """

    dropped: Energy | None
    small: Energy | None
    leading: Energy | None
    noise: float
    level: float
    hits: NDArray[np.int64]
    residual: Array
    variance: Array
    statistic: Array
    inflation: float

    def outliers(self, p: float = OUTLIER_P) -> NDArray[np.int64]:
        """Scored variants whose T has a two-sided p-value below p, the most extreme first."""
        from scipy.stats import norm

        size = np.abs(self.statistic)
        order = np.argsort(-size, kind="stable")
        return order[size[order] > norm.isf(p / 2)]


def block_mismatch(
    factor: ArrayLike,
    z: ArrayLike,
    c: ArrayLike,
    noise: float,
    *,
    scored: ArrayLike | None = None,
    loadings: ArrayLike | None = None,
    largest_dropped: float | None = None,
) -> BlockMismatch:
    """Energies and leave-one-out statistics of one block; see the module's docstring for model and formulas.

    factor: (k, m), G.  z: (s,) z-scores of the scored variants.  c: N f, a number or (m,), >= 0.  noise: sigma2.
    scored: (m,) bool, or None for all.
    loadings: (s, k), L; by default the columns of G that are scored, which is right when N is the same for all.
    largest_dropped: the largest eigenvalue that the LD may have lost, such as the smallest one of the LD store; by
        default the smallest one of L^T L.

    In float64, O(s k^2 + k^2 m) operations. InputError for shapes that do not fit or values that are not finite.
    """
    G, zs, prior = (np.asarray(x, dtype=np.float64) for x in (factor, z, c))
    k, m = G.shape
    mask = np.ones(m, dtype=bool) if scored is None else np.asarray(scored)
    place = np.flatnonzero(mask)
    L = G[:, place].T if loadings is None else np.asarray(loadings, dtype=np.float64)
    _check(G, zs, prior, noise, mask, L)
    gram = L.T @ L
    y = np.asarray(np.linalg.solve(gram, L.T @ zs), dtype=np.float64)
    lam = float(np.linalg.eigvalsh(gram)[0]) if largest_dropped is None else float(largest_dropped)
    signal: Array = (G * G) @ np.broadcast_to(prior, (m,))
    half = (k + 1) // 2
    lead, small = slice(0, half), slice(half, k)

    hits, effects, fitted = _hits(G, y, noise + signal)
    rest = y - fitted
    leverage = _leverage(G[:, hits], noise + signal)
    squares = rest**2 / np.maximum(1 - leverage, 1e-6)  # so that the expectation stays D_i
    level = max(1.0, _most_likely(lambda t: noise + t * signal[lead], squares[lead], 1e3))
    own_noise = _most_likely(lambda t: t + signal, squares, 1e3)
    weak = float(np.mean(signal[k - max(1, k // 8) :]))

    # What single variants have outside the kept directions: nothing negative, as rounding has it.
    lost = np.maximum(1 - np.einsum("ij,ij->i", L, L), 0.0)
    lost_hit = np.maximum(1 - np.einsum("ij,ij->j", G[:, hits], G[:, hits]), 0.0)
    outside = zs - L @ y
    position = np.cumsum(mask) - 1
    seen = mask[hits]
    outside[position[hits[seen]]] -= effects[seen] * lost_hit[seen]
    allowed = float(np.sum(effects**2 * np.maximum(lam * lost_hit - lost_hit**2, 0.0)))
    B = _covariance(G, prior * level, noise)
    residual, variance, move = _leave_one_out(L, G[:, place], L @ rest + outside, B, lost, noise + level * weak, noise)
    inflation = max(1.0, float(np.median(residual**2 / variance)) / _MEDIAN_CHI2)
    statistic = residual / np.sqrt(inflation * variance + move**2 * zs**2)
    return BlockMismatch(
        dropped=None if k == len(zs) else _dropped_energy(outside, lost, noise + level * weak, lam, allowed),
        small=_energy(B[small, small], rest[small], leverage[small]),
        leading=_energy(_covariance(G[lead], prior, noise), rest[lead], leverage[lead]),
        noise=own_noise,
        level=level,
        hits=hits,
        residual=residual,
        variance=variance,
        statistic=statistic,
        inflation=inflation,
    )


def _check(G: Array, z: Array, c: Array, noise: float, mask: NDArray[Any], L: Array) -> None:
    k, m = G.shape
    s = int(mask.sum())
    if mask.shape != (m,) or mask.dtype != bool or z.shape != (s,) or L.shape != (s, k) or c.shape not in ((), (m,)):
        raise InputError(
            f"factor {G.shape}, scored {mask.shape}, z {z.shape}, loadings {L.shape} and c {c.shape} do not fit "
            "together: give (k, m), (m,) bool, (s,), (s, k) and a number or (m,)."
        )
    for name, array in (("factor", G), ("z", z), ("c", c), ("loadings", L)):
        if not np.isfinite(array).all():
            raise InputError(f"{name} holds {array[~np.isfinite(array)][0]}: drop such variants first.")
    if (c < 0).any() or not 0 < noise < np.inf:
        raise InputError(f"c must be >= 0 and noise positive; got {c.min()} and {noise}.")


def _covariance(G: Array, c: Array, noise: float) -> Array:
    """noise I + G diag(c) G^T."""
    return np.asarray((G * c) @ G.T + noise * np.eye(len(G)))


def _hits(G: Array, y: Array, D: Array) -> tuple[NDArray[np.int64], Array, Array]:
    """Variants whose effects stand out of N(0, D), their joint effects, and what these make of y."""
    scale = 1 / np.sqrt(D)
    A, target = G * scale[:, None], y * scale
    norms = np.maximum(np.einsum("ij,ij->j", A, A), 1e-12)
    marginal = np.abs(G.T @ y) / np.maximum(np.einsum("ij,ij->j", G, G), 1e-12)
    # A column all but outside the kept directions says nothing of its variant's effect.
    norms[norms < 1e-3 * norms.max()] = np.inf
    chosen: list[int] = []
    effects: Array = np.zeros(0)
    fitted: Array = np.zeros(len(y))
    while len(chosen) < min(_MOST_HITS, len(y) // 4):
        gain = (A.T @ (target - fitted * scale)) ** 2 / norms
        best = int(gain.argmax())
        if gain[best] <= _HIT_CHI2 or best in chosen:
            break
        found = np.asarray(np.linalg.lstsq(A[:, [*chosen, best]], target)[0], dtype=np.float64)
        if np.abs(found).max() > 2 * marginal[[*chosen, best]].max():
            break
        chosen.append(best)
        effects, fitted = found, G[:, chosen] @ found
    return np.array(chosen, dtype=np.int64), effects, fitted


def _leverage(columns: Array, D: Array) -> Array:
    """Diagonal of the projection on the hits, each direction scaled by its standard deviation."""
    if not columns.shape[1]:
        return np.zeros(len(D))
    Q, _ = np.linalg.qr(columns / np.sqrt(D)[:, None])
    return np.einsum("ij,ij->i", Q, Q)


def _most_likely(variance: Any, squares: Array, most: float) -> float:
    """The t > 0 at which independent N(0, variance(t)) are most likely, between 1e-3 and `most`."""
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        D = variance(np.exp(log_t))
        return float(np.sum(np.log(D) + squares / D))

    found = minimize_scalar(loss, bounds=(np.log(1e-3), np.log(most)), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def _energy(B: Array, y: Array, leverage: Array) -> Energy | None:
    """sum_i y_i^2 / D_i against its expectation, over some directions, of covariance B."""
    if not len(y):
        return None
    D = np.diagonal(B)
    count = float(np.sum(1 - leverage))
    if count < 0.5:
        return None
    freedom = count * len(y) / float(np.sum(B**2 / np.outer(D, D)))
    return _judged(float(np.sum(y**2 / D)) / count, freedom)


def _dropped_energy(outside: Array, lost: Array, spread: float, lam: float, allowed: float) -> Energy | None:
    """|outside|^2 against its bound; None where next to nothing was dropped."""
    tau = float(lost.sum())
    if tau < _LEAST_DROPPED * len(lost):
        return None
    return _judged(float(outside @ outside) / (tau * spread + allowed), max(tau / lam, 1.0))


def _judged(ratio: float, freedom: float) -> Energy:
    from scipy.stats import chi2

    return Energy(ratio, float(chi2.sf(ratio * freedom, freedom)))


def _leave_one_out(
    L: Array, own: Array, z: Array, B: Array, lost: Array, spread: float, noise: float
) -> tuple[Array, Array, Array]:
    """r, v and h of every scored variant.

    own: (k, s), columns of G of the scored variants.  B: (k, k), covariance of y.  lost: (s,), d.  spread: variance of
    z outside the kept directions, per unit of d.
    """
    from scipy.linalg import solve_triangular

    E = lost * spread + _NUGGET * noise
    A = L @ np.linalg.cholesky(B)
    scaled = A / E[:, None]
    inner = np.linalg.cholesky(np.eye(len(B)) + A.T @ scaled)
    half: Array = solve_triangular(inner, scaled.T, lower=True)  # S^-1 = diag(1 / E) - half^T half
    precision = 1 / E - np.einsum("ij,ij->j", half, half)
    solved = z / E - half.T @ (half @ z)
    moved = np.einsum("ji,ij->j", L, own) / E - np.einsum("ij,ij->j", half, (half @ L) @ own) + precision * lost
    return solved / precision, 1 / precision, moved / precision
