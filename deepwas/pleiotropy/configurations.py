"""Configurations of effects: which traits a variant acts on by itself, under learned priors.

For one LD block and K traits, with total effects B = D (I - T)^-1 of direct effects D and trait-to-trait effects T,

    Z = R B diag(sqrt N) + E,   E ~ matrix normal(0, R, C_n),

    D_jk = delta_jk N(0, s_k),
    P(delta_j) = prod_k pi_jk^delta_k (1 - pi_jk)^(1 - delta_k) exp(psi(delta) + sum_k a_k delta_k - h_j) / c_j,
    psi(delta) = psi_n + sum_kl b_kl,   n = |delta| >= 2, over pairs of its traits.

The learned prior f_jk is the variance of the total effect, f_jk = sum_l [(I - T)^-1]_lk^2 d_jl. The direct variances
d >= 0 are solved for, and pi_jk = d_jk / s_k. psi is the excess of variants that act on several traits over what
independent traits would show, in log odds; 0 is independence. psi_n says how many act on n traits, b_kl on which ones.
a_k holds the marginals: the expected number of variants that act on trait k stays sum_j pi_jk whatever psi is.

The product alone would let annotations that raise all traits' priors e-fold raise sets of n traits by e^n: each single
effect of a variant with high priors would look like a shared one. For n >= 2

    h_j = (1 - rho) (1 - 1/n) sum_k delta_k (logit pi_jk - logit(mean d_k / s_k)),

so that rho = 1 is the product, as of independent traits, and with rho = 0 sets follow the geometric mean of their
traits' prior odds, which is what is used where sharing is learned. rho itself is better not learned: fitted variances
are shrunken, so a rho that makes up for it grows, and makes up for it in sets alone.

Up to `MOST_TRAITS` traits have all their 2^K - 1 configurations. Of more traits a model holds some: those of one trait
and of two, and the larger ones that variants of the genome seem to have (`deepwas.pleiotropy.growing`); all others have
the prior 0.

A configuration delta is a class of an effect (`deepwas.finemapping.effects`): u = sqrt(N) times the total effect has
covariance diag(sqrt N) (I - T)^-T diag(s delta) (I - T)^-1 diag(sqrt N), its mean over draws of T where T is uncertain.

Beside them stand effects through heritable factors that no trait here measures: one class each, of u = sqrt(N) v a with
v ~ N(0, 1) and loadings a, that acts on no trait directly (`deepwas.pleiotropy.factors`). What makes it likely that a
variant acts on the traits of a factor makes it likely that it does so through it: such effects, too, follow the
geometric mean of these traits' prior odds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepwas.errors import InputError
from deepwas.finemapping.effects import EffectClasses, effect_classes
from deepwas.pleiotropy.options import MOST_TRAITS

__all__ = [
    "MOST_LIKELY",
    "MOST_SETS",
    "MOST_TRAITS",
    "TraitModel",
    "configurations",
    "direct_variances",
    "first_sets",
    "numbers_of_sets",
    "sets_of_numbers",
]

Floats = NDArray[np.float64]

MOST_SETS = 320  # kept of more traits
MOST_LIKELY = 0.5  # pi_jk at most
_SWEEPS = 200
_MOVED = 0.2  # of what a factor does to the trait that it moves most


def configurations(traits: int, most: int | None = None) -> NDArray[np.bool_]:
    """(C, K), every non-empty set of traits, of at most `most`; small ones first."""
    if traits < 1 or (most is None and traits > MOST_TRAITS):
        raise InputError(f"all sets of {traits} traits are too many: give 1 to {MOST_TRAITS}, or how many at most.")
    sets = [chosen for n in range(1, (most or traits) + 1) for chosen in combinations(range(traits), n)]
    masks = np.zeros((len(sets), traits), bool)
    for row, chosen in enumerate(sets):
        masks[row, list(chosen)] = True
    return masks


def first_sets(traits: int) -> NDArray[np.bool_]:
    """(C, K), all configurations of up to `MOST_TRAITS` traits; of more, those of one trait and of two."""
    return configurations(traits, None if traits <= MOST_TRAITS else 2)


def numbers_of_sets(sets: NDArray[np.bool_]) -> Floats:
    """(C,), each set as a sum of 2^k: exact in a float up to 53 traits."""
    return np.asarray(sets @ 2.0 ** np.arange(sets.shape[1]), np.float64)


def sets_of_numbers(numbers: ArrayLike, traits: int) -> NDArray[np.bool_]:
    """(C, K), what `numbers_of_sets` was made of."""
    whole = np.asarray(numbers, np.float64).astype(np.int64)
    return (whole[:, None] >> np.arange(traits)) % 2 == 1


def direct_variances(total: ArrayLike, T: ArrayLike) -> Floats:
    """d (M, K) >= 0 that fits sum_l [(I - T)^-1]_lk^2 d_jl = f_jk best, by least squares in each variant.

    total: (M, K), f.  T: (K, K), T[l, k] the effect of trait l on trait k. Exact where the solution is not negative;
    elsewhere by coordinate descent.
    """
    f, paths = np.asarray(total, np.float64), np.asarray(T, np.float64)
    matrix = _spread(paths) ** 2
    found = f @ np.linalg.inv(matrix)
    rows = np.flatnonzero((found < 0).any(axis=1))
    if rows.size:
        gram, target = matrix @ matrix.T, f[rows] @ matrix.T
        d = np.maximum(found[rows], 0.0)
        for _ in range(_SWEEPS):
            before = d.copy()
            for k in range(len(paths)):
                d[:, k] = np.maximum(d[:, k] + (target[:, k] - d @ gram[:, k]) / gram[k, k], 0.0)
            if np.abs(d - before).max() <= 1e-9 * max(d.max(), 1e-300):
                break
        found[rows] = d
    return np.asarray(np.maximum(found, 0.0))


def _logit(p: Floats) -> Floats:
    return np.asarray(np.log(p) - np.log1p(-p))


def _spread(T: Floats) -> Floats:
    """(I - T)^-1, effects of direct effects."""
    if T.ndim != 2 or T.shape[0] != T.shape[1] or not np.isfinite(T).all() or np.diagonal(T).any():
        raise InputError("T must be a finite (K, K) matrix with zeros on its diagonal.")
    radius = float(np.abs(np.linalg.eigvals(T)).max())
    if radius >= 1:
        raise InputError(
            f"trait-to-trait effects feed on themselves: the spectral radius of T is {radius:.2f}, not < 1."
        )
    return np.asarray(np.linalg.inv(np.eye(len(T)) - T), np.float64)


@dataclass(frozen=True, eq=False)
class TraitModel:
    """The parameters that all blocks share.

    sample_size: (K,), N.  noise: (K, K), C_n.  slab: (K,), s, variances of direct effects.  T: (K, K).
    excess: (K + 1,), psi_n by number of traits; that of 0 and 1 is 0.  pairs: (K, K), b, symmetric, 0 on the diagonal.
    offsets: (K,), a.
    draws: (n, K, K), of T, over which the covariance of effects is averaged; none takes T as exact.
    loadings: (F, K), a of F heritable factors.  factor_odds: (F,), log prior odds that a variant of average priors acts
        through each, if there is this factor; see `odds_of_factors`.  factor_probability: (F,), that there is; 1 by
        default.
    mean_direct: (K,), mean d_k, and follows: rho; without mean_direct h is 0.
    background: (K,), t: effects that cannot be located add t_k s_ik to the noise of trait k in direction i of a block's
        whitened z-scores, s_ik = sum_j G_ij^2 times the prior variance of j's effect on its z-scores.
    together: log odds, >= 0, by which two effects in LD r^2 > 0.2 are likelier than two independent ones: with a trait
        in common, and with none.
    sets: (C, K) bool, the configurations, small ones first and the K of one trait in order; `first_sets` by default.
    exponents: (K,), to which the priors f have been raised that direct variances given here come from; 1 by default.
    """

    sample_size: Floats
    noise: Floats
    slab: Floats
    T: Floats
    excess: Floats = field(default_factory=lambda: np.zeros(0))
    offsets: Floats = field(default_factory=lambda: np.zeros(0))
    draws: Floats = field(default_factory=lambda: np.zeros((0, 0, 0)))
    loadings: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    factor_odds: Floats = field(default_factory=lambda: np.zeros(0))
    factor_probability: Floats = field(default_factory=lambda: np.zeros(0))
    sets: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), bool))
    together: tuple[float, float] = (0.0, 0.0)
    mean_direct: Floats = field(default_factory=lambda: np.zeros(0))
    follows: float = 1.0
    background: Floats = field(default_factory=lambda: np.zeros(0))
    pairs: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    exponents: Floats = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        K = len(self.sample_size)
        sets = np.asarray(self.sets, bool) if len(self.sets) else first_sets(K)
        object.__setattr__(self, "sets", sets)
        size = sets.sum(axis=1) if sets.ndim == 2 and sets.shape[1] == K else np.zeros(1)
        ordered = len(size) >= K and (np.diff(size) >= 0).all() and np.array_equal(sets[:K], np.eye(K, dtype=bool))
        if not ordered or len(np.unique(sets, axis=0)) < len(sets) or (K > 1 and size[K : K + 1].sum() == 1):
            raise InputError(
                f"sets must be different ones of {K} traits, small ones first: each trait alone, in order, then others."
            )
        for name, default in (
            ("excess", np.zeros(K + 1)),
            ("offsets", np.zeros(K)),
            ("background", np.zeros(K)),
            ("pairs", np.zeros((K, K))),
            ("factor_probability", np.ones(self.factors)),
            ("exponents", np.ones(K)),
        ):
            if not len(getattr(self, name)):
                object.__setattr__(self, name, default)

    @property
    def traits(self) -> int:
        """K."""
        return len(self.sample_size)

    def believed(self) -> TraitModel:
        """The same with the factors that are likelier than not, for certain, and no others."""
        keep = self.factor_probability > 0.5
        return replace(
            self,
            loadings=self.loadings.reshape(self.factors, self.traits)[keep],
            factor_odds=self.factor_odds[keep],
            factor_probability=np.ones(int(keep.sum())),
        )

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        """(C + F, K), traits acted on directly: the configurations, then the factors, which act on none."""
        return np.concatenate([self.sets, np.zeros((self.factors, self.traits), bool)])

    @property
    def factors(self) -> int:
        """F."""
        return len(self.factor_odds)

    @cached_property
    def moved_traits(self) -> NDArray[np.bool_]:
        """(F, K), those that each factor moves, two or more, not through T alone."""
        loadings = self.loadings.reshape(self.factors, self.traits)
        own = np.abs(loadings @ (np.eye(self.traits) - self.T)) * np.sqrt(self.sample_size)
        first, second = np.sort(own, axis=1)[:, ::-1][:, :2].T
        return np.asarray(own >= np.minimum(_MOVED * first, second)[:, None])

    @cached_property
    def moved_by_factors(self) -> NDArray[np.int64]:
        """(F,), the configuration of two traits or more that is nearest to those that each factor moves."""
        several = np.flatnonzero(self.sets.sum(axis=1) >= 2)
        away = (self.sets[several][None] != self.moved_traits[:, None]).sum(axis=2)
        return np.asarray(several[away.argmin(axis=1)], np.int64)

    @cached_property
    def classes(self) -> EffectClasses:
        """The configurations as classes of an effect; direct effects are what is reported."""
        scale = np.sqrt(self.sample_size)
        forward = self.forward
        each = np.stack([_spread(T) for T in self.draws]) * scale[None, None, :] if len(self.draws) else forward[None]
        weights = self.sets * self.slab[None, :]
        covariances = np.einsum("nlk,cl,nli->cki", each, weights, each, optimize=True) / len(each)
        loads = self.loadings.reshape(self.factors, self.traits) * scale[None, :]
        covariances = np.concatenate([covariances, loads[:, :, None] * loads[:, None, :]])
        found = effect_classes(covariances, self.noise, report=np.linalg.inv(forward).T)
        # What T's uncertainty or a factor does to a trait is no direct effect.
        own = found.own * self.masks[:, :, None]
        through = np.flatnonzero(~self.masks.any(axis=1))
        traits = self.masks.astype(np.float64)
        traits[through] = found.traits[through]
        return found._replace(own=own, traits=traits)

    @property
    def forward(self) -> Floats:
        """(K, K), u = d forward: effects in units of z-scores of direct effects d."""
        return _spread(self.T) * np.sqrt(self.sample_size)[None, :]

    def pi(self, direct: Floats) -> Floats:
        """Prior probabilities of direct effects, d / s and one half at most, from direct variances (..., K)."""
        return np.asarray(np.minimum(direct / self.slab, MOST_LIKELY))

    def signal(self, factor: NDArray[np.floating], direct: Floats) -> Floats:
        """(k, K), s: by the prior, the variance that all effects together add to each direction of a block."""
        each = direct @ np.square(self.forward)
        return np.asarray(np.square(factor, dtype=np.float64) @ each)

    def draw_background(self, factor: NDArray[np.floating], direct: Floats, rng: np.random.Generator) -> Floats:
        """(k, K), background of whitened z-scores at random."""
        spread = np.sqrt(self.signal(factor, direct) * self.background[None, :])
        return np.asarray(spread * rng.normal(size=spread.shape))

    def spread_of_background(self, signal: Floats) -> Floats:
        """(k,), the standard deviation of noise and background over that of noise, of the trait where it is largest.

        signal: (k, K), as `signal` gives it.
        """
        own = signal * (self.background / np.diag(self.noise))[None, :]
        return np.asarray(np.sqrt(1 + own.max(axis=1)))

    @property
    def psi(self) -> Floats:
        """(C,), log odds of each configuration beside those of independent traits."""
        return np.asarray(self.excess[self.sets.sum(axis=1)] + ((self.sets @ self.pairs) * self.sets).sum(axis=1) / 2)

    def tilt(self, direct: Floats) -> Floats:
        """(m, C), (1 - 1/n) sum_k delta_k of what `beside_mean` gives, for sets of n >= 2 traits, 0 of others."""
        size = self.sets.sum(axis=1)
        weight = np.where(size >= 2, 1 - 1 / size, 0.0)
        return np.asarray(self.beside_mean(direct) @ (self.sets * weight[:, None]).T)

    def odds_of_factors(self, direct: Floats) -> Floats:
        """(m, F), log prior odds that a variant acts through each factor, from the direct variances (m, K).

        They follow the geometric mean of the prior odds over the traits that the factor moves: what makes it likely
        that a variant acts on these makes it likely that it does so through what they have in common. A variant that
        cannot act on one of them does not act through the factor.
        """
        odds = np.broadcast_to(self.factor_odds, (len(direct), self.factors))
        if not len(self.mean_direct) or not self.factors:
            return odds
        moved = self.moved_traits.astype(np.float64)
        follows = self.beside_mean(direct) @ (moved / moved.sum(axis=1, keepdims=True)).T
        cannot = (direct <= 0).astype(np.float64) @ moved.T > 0
        return np.where(cannot, -np.inf, odds + follows)

    def beside_mean(self, direct: Floats) -> Floats:
        """(m, K), logit pi_jk less that of a variant of average prior; 0 where pi_jk is 0."""
        with np.errstate(divide="ignore"):
            each = _logit(self.pi(direct)) - _logit(self.pi(self.mean_direct))[None, :]
        return np.where(np.isfinite(each), each, 0.0)

    def follow(self) -> Floats:
        """(C + F, K), how fast the log odds of each class move with log d of each trait, where pi is small."""
        if not len(self.mean_direct):
            return self.masks.astype(np.float64)
        size = np.maximum(self.sets.sum(axis=1), 1.0)
        own = self.sets * (self.follows + (1 - self.follows) / size)[:, None]
        moved = self.moved_traits.astype(np.float64)
        return np.concatenate([own, moved / np.maximum(moved.sum(axis=1, keepdims=True), 1.0)])

    def log_odds(self, direct: Floats, shared: NDArray[np.floating] | None = None) -> Floats:
        """(m, C + F), log P(delta) - log P(0), from the direct variances (m, K).

        shared: (m,), to be added for configurations of two traits or more.
        """
        pi = self.pi(direct)
        with np.errstate(divide="ignore"):
            each = _logit(pi) + self.offsets[None, :]
        masks, size = self.sets.astype(np.float64), self.sets.sum(axis=1)
        gone = (~np.isfinite(each)).astype(np.float64) @ masks.T > 0
        odds = np.where(gone, -np.inf, np.where(np.isfinite(each), each, 0.0) @ masks.T + self.psi[None, :])
        if len(self.mean_direct):
            odds -= (1 - self.follows) * np.where(np.isfinite(odds), self.tilt(direct), 0.0)
        if shared is not None:
            odds[:, size >= 2] += np.asarray(shared, np.float64)[:, None]
        return np.concatenate([odds, self.odds_of_factors(direct)], axis=1)
