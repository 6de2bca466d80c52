"""Traits that share variants or seem to: sample overlap, own effects, paths between traits, a confounder, LD pairs.

    Z = R B diag(sqrt N) + E,   B = (D + u w') (I - T)^-1,   E ~ matrix normal(0, R, Cn)

D: (M, K) effects of a variant's own, u: (M,) effects on a heritable factor that moves trait k by w_k, T: T[l, k] is the
effect of trait l on trait k. Replicates share the LD (`benchmarks.pleiotropy_genome`).

A variant's class is what made it: "direct" has effects of its own on two traits or more, "vertical" on one trait that
acts on others, "confounder" on the factor alone, "ld_only" on one trait while its partner in LD acts on another,
"single" on one trait that acts on none, "null" on none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from benchmarks.pleiotropy_genome import Genome
from benchmarks.simulate import simulate_annotations
from deepwas.errors import InputError

__all__ = [
    "CLASSES",
    "PRIORS",
    "SCENARIOS",
    "Pair",
    "Recipe",
    "Simulated",
    "simulate",
]

Array = NDArray[np.float64]

CLASSES = ("null", "single", "direct", "vertical", "confounder", "ld_only")
PRIORS = ("flat", "informative", "uninformative", "misleading")
_NEAREST = 5  # partners in LD to choose from
_TRIES = 200


@dataclass(frozen=True)
class Recipe:
    """What is simulated; every scenario is one.

    traits: K.  sample_size: N, people, one or K.
    polygenicity: share of the variants that act on a trait, by themselves or through the factor, the average trait.
    signal: mean of N effect^2 (so a causal variant alone has E[z^2] = 1 + signal), or
    h2: expected sum of squared effects of a trait, instead.
    bounded: sizes between 0.7 and 1.3 of their scale, signs at random; else normal.
    shares: of the variants that do anything, by class among single, direct, confounder, ld_only. Single variants of a
    trait with a path out of it become vertical.
    direct_traits: fewest and most traits of a direct variant (None: K).
    sharers: traits that direct variants act on, the first ones (None: all).
    silent: last traits on which nothing acts; their prior is that of others that share nothing all the same.
    paths: edges of T, which has no cycle.  path: range of their absolute size.
    factor_traits: traits that the factor moves, by 0.5 to 1.
    pair_r2: range of r2 between the two variants of an ld_only pair, evenly filled as far as the LD allows.
    overlap: Cn = I + overlap (v v' off its diagonal), v_k uniform in (-0.9, 0.9).
    annotation: standard deviation of log enrichment by the annotations, 0 without.
    panel: analyse with the LD of the panel.
    """

    traits: int = 6
    sample_size: float | tuple[float, ...] = 2e5
    polygenicity: float = 5e-4
    signal: float = 80.0
    h2: float | None = None
    bounded: bool = False
    shares: Mapping[str, float] = field(default_factory=lambda: {"single": 1.0})
    direct_traits: tuple[int, int | None] = (2, None)
    sharers: int | None = None
    silent: int = 0
    paths: int = 0
    path: tuple[float, float] = (0.1, 0.5)
    factor_traits: int = 3
    pair_r2: tuple[float, float] = (0.2, 0.95)
    overlap: float = 0.3
    annotation: float = 0.0
    panel: bool = False

    def __post_init__(self) -> None:
        K, most = self.traits, self.most_direct
        if K < 2:
            raise InputError(f"traits is {K}; pleiotropy needs two or more.")
        if not set(self.shares) <= {"single", "direct", "confounder", "ld_only"} or min(self.shares.values()) < 0:
            raise InputError(f"shares is {dict(self.shares)}; give single, direct, confounder, ld_only, 0 or more.")
        if sum(self.shares.values()) <= 0:
            raise InputError("shares are all 0; for a genome without effects set polygenicity to 0.")
        if not 0 <= self.polygenicity <= 1 or not 0 <= self.overlap <= 1 or self.annotation < 0:
            raise InputError("polygenicity and overlap lie between 0 and 1, and annotation is 0 or more.")
        if not 0 <= self.silent <= K - 2 or not 2 <= self.all_sharers <= K - self.silent:
            raise InputError(
                f"silent is {self.silent} and sharers {self.sharers}; of {K} traits two or more act, and sharers are "
                "of them."
            )
        if not 2 <= self.direct_traits[0] <= most <= self.all_sharers or not 2 <= self.factor_traits <= K - self.silent:
            raise InputError(
                f"direct_traits {self.direct_traits} and factor_traits {self.factor_traits} lie in 2 to {K}, or to as "
                "many as share."
            )
        if not 0 <= self.paths <= K * (K - 1) // 2:
            raise InputError(f"paths is {self.paths}; {K} traits have up to {K * (K - 1) // 2} without a cycle.")
        if not 0 < self.pair_r2[0] < self.pair_r2[1] <= 1 or not 0 < self.path[0] <= self.path[1]:
            raise InputError(f"pair_r2 {self.pair_r2} and path {self.path} are ranges above 0, r2 up to 1.")
        if self.N.shape != (K,) or (self.N <= 0).any():
            raise InputError(
                f"sample_size is {self.sample_size}; give one number above 0, or one for each of {K} traits."
            )

    @property
    def all_sharers(self) -> int:
        """Traits that direct variants act on."""
        return self.sharers or self.traits - self.silent

    @property
    def most_direct(self) -> int:
        """Most traits of a direct variant."""
        return self.direct_traits[1] or self.all_sharers

    @property
    def N(self) -> Array:
        """(K,) sample sizes."""
        given = np.asarray(self.sample_size, dtype=np.float64)
        return np.full(self.traits, given) if given.ndim == 0 else given

    def effect_variance(self, M: int) -> Array:
        """(K,) s_k, the mean square of an effect."""
        if self.h2 is None:
            return self.signal / self.N
        return np.full(self.traits, self.h2 / max(self.polygenicity * M, 1.0))

    def counts(self, M: int) -> dict[str, int]:
        """Variants of each class that does something, single ones before vertical ones are told apart."""
        total = sum(self.shares.values())
        share = {name: self.shares.get(name, 0.0) / total for name in ("single", "direct", "confounder", "ld_only")}
        traits = {
            "single": 1.0,
            "direct": 0.5 * (self.direct_traits[0] + self.most_direct),
            "confounder": float(self.factor_traits),
            "ld_only": 1.0,
        }
        variants = self.polygenicity * M * self.traits / sum(share[name] * traits[name] for name in share)
        counts = {name: round(share[name] * variants) for name in share}
        counts["ld_only"] -= counts["ld_only"] % 2
        if sum(counts.values()) > M:
            raise InputError(f"polygenicity {self.polygenicity} asks for {sum(counts.values()):,} of {M:,} variants.")
        return counts


_MIXED = Recipe(shares={"single": 0.35, "direct": 0.3, "confounder": 0.1, "ld_only": 0.25}, paths=3)
SCENARIOS: dict[str, Recipe] = {
    "a": Recipe(polygenicity=0.0, overlap=0.8),
    "b": Recipe(),
    "c": Recipe(shares={"single": 0.5, "direct": 0.5}),
    "d": Recipe(paths=3),
    "e": Recipe(shares={"single": 0.5, "confounder": 0.5}),
    "f": Recipe(shares={"ld_only": 1.0}),
    "g": replace(_MIXED, panel=True),
    "h": replace(_MIXED, annotation=1.5),
    "mixed": _MIXED,
    "pilot": Recipe(shares={"single": 0.4, "direct": 0.3, "ld_only": 0.3}, paths=3, signal=150.0, bounded=True),
}


@dataclass(frozen=True)
class Pair:
    """Two distinct causal variants in LD: their numbers in the genome, the trait of each, and r2 in the GWAS."""

    first: int
    second: int
    traits: tuple[int, int]
    r2: float


@dataclass(frozen=True, eq=False)
class Simulated:
    """One replicate.

    z: (M, K).  N: (K,).  noise_correlation: (K, K), Cn.  T: (K, K).  own: (M, K), D.  factor: (M,), u.  loading: (K,),
    w.  total: (M, K), B.  klass: (M,) number in CLASSES.  pairs: the ld_only pairs.  annotations: (M, 2 + 2 K): shared,
    shared decoy, one for each trait, one decoy for each trait.  priors: variance of the total effects, (M, K), by name
    in PRIORS: the truth without annotations; with them (nearly: the second variant of a pair is chosen by LD before
    annotation); from the decoys; with every enrichment inverted. All have one mean.
    ld: (m, m) by region, what an analysis may use.  ld_scores: (M,) from it, adjusted for the size of a panel.
    """

    genome: Genome
    recipe: Recipe
    z: Array
    N: Array
    noise_correlation: Array
    T: Array
    own: Array
    factor: Array
    loading: Array
    total: Array
    klass: NDArray[np.int64]
    pairs: tuple[Pair, ...]
    annotations: Array
    priors: dict[str, Array]
    ld: tuple[Array, ...]

    @property
    def D(self) -> NDArray[np.bool_]:
        """(M, K) which effects are a variant's own."""
        return self.own != 0

    @property
    def direct(self) -> NDArray[np.bool_]:
        """(M,) has own effects on two traits or more."""
        return self.klass == CLASSES.index("direct")

    @cached_property
    def ld_scores(self) -> Array:
        """(M,) sum of r2 with the variants of the region."""
        scores = []
        for R in self.ld:
            r2 = R**2
            scores.append((r2 - (1 - r2) / (self.genome.panel_people - 2) if self.recipe.panel else r2).sum(axis=1))
        return np.concatenate(scores)


def simulate(
    scenario: str | Recipe, *, genome: Genome, seed: int = 0, like: Simulated | None = None, **changes: object
) -> Simulated:
    """One replicate of a scenario (a name in SCENARIOS, or a recipe); `changes` are fields of the recipe.

    like: another replicate, whose traits these are: its annotations, T, loadings and Cn. Effects are drawn anew.
    Equal arguments give equal replicates. Raises InputError for an unknown scenario, and where the LD holds no pair
    with the r2 asked for.
    """
    if isinstance(scenario, str):
        if scenario not in SCENARIOS:
            raise InputError(f"no scenario is called {scenario!r}; there are: {', '.join(SCENARIOS)}.")
        scenario = SCENARIOS[scenario]
    recipe = replace(scenario, **changes)  # type: ignore[arg-type]
    if recipe.panel and genome.panel is None:
        raise InputError("the LD of a panel is asked for, and the genome has none: simulate_genome(panel_people=400).")
    rng = np.random.default_rng([seed, 21])
    K, M = recipe.traits, genome.M
    counts = recipe.counts(M)
    variance = recipe.effect_variance(M)
    T = _paths(recipe, rng) if like is None else like.T
    spread = np.linalg.inv(np.eye(K) - T)
    annotations = (
        simulate_annotations(genome.regions, smooth=2, independent=2 * K, seed=seed)
        if like is None
        else like.annotations
    )
    weight = _weights(recipe, annotations[:, 0], annotations[:, 2 : 2 + K])
    picked = _Picked(genome, recipe, weight, T, rng)
    for name, count in counts.items():
        picked.add(name, count)
    size = np.sqrt(variance)
    own = picked.acts * _effects(recipe, (M, K), rng) * size[None, :]
    loading = np.zeros(K)
    moved = rng.choice(K - recipe.silent, size=recipe.factor_traits, replace=False)
    loading[moved] = rng.uniform(0.5, 1.0, size=len(moved)) * rng.choice([-1.0, 1.0], size=len(moved))
    if like is not None:
        loading = like.loading.copy()
    on_factor = picked.klass == CLASSES.index("confounder")
    factor = on_factor * _effects(recipe, (M,), rng) * np.sqrt(variance.mean())
    if not on_factor.any():
        loading[:] = 0.0
    total = (own + factor[:, None] * loading[None, :]) @ spread
    by_factor = counts["confounder"] / M * variance.mean() * (loading @ spread) ** 2
    priors = {}
    for name, (shared, specific, sign) in {
        "flat": (0, slice(2, 2 + K), 0.0),
        "informative": (0, slice(2, 2 + K), 1.0),
        "uninformative": (1, slice(2 + K, 2 + 2 * K), 1.0),
        "misleading": (0, slice(2, 2 + K), -1.0),
    }.items():
        enriched = _weights(recipe, sign * annotations[:, shared], sign * annotations[:, specific])
        own_variance = _inclusion(recipe, counts, enriched) * variance[None, :]
        priors[name] = own_variance @ spread**2 + enriched.mean(axis=1)[:, None] * by_factor[None, :]
    v = rng.uniform(-0.9, 0.9, size=K)
    noise = recipe.overlap * np.outer(v, v)
    np.fill_diagonal(noise, 1.0)
    if like is not None:
        noise = like.noise_correlation
    root = np.linalg.cholesky(noise)
    z = np.empty((M, K))
    for number, region in enumerate(genome.regions):
        rows = genome.rows(number)
        error = region.root @ rng.normal(size=(region.m, K)) @ root.T
        z[rows] = region.correlation @ total[rows] * np.sqrt(recipe.N)[None, :] + error
    return Simulated(
        genome=genome,
        recipe=recipe,
        z=z,
        N=recipe.N,
        noise_correlation=noise,
        T=T,
        own=own,
        factor=factor,
        loading=loading,
        total=total,
        klass=picked.klass,
        pairs=tuple(picked.pairs),
        annotations=annotations,
        priors=priors,
        ld=genome.panel if recipe.panel and genome.panel else tuple(r.correlation for r in genome.regions),
    )


def _paths(recipe: Recipe, rng: np.random.Generator) -> Array:
    """T: edges from earlier to later traits of a random order, so there is no cycle."""
    K = recipe.traits
    order = rng.permutation(K)
    early, late = np.triu_indices(K, k=1)
    edges = rng.choice(len(early), size=recipe.paths, replace=False)
    T = np.zeros((K, K))
    strength = rng.uniform(*recipe.path, size=recipe.paths) * rng.choice([-1.0, 1.0], size=recipe.paths)
    T[order[early[edges]], order[late[edges]]] = strength
    return T


def _effects(recipe: Recipe, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Of mean square 1."""
    if not recipe.bounded:
        return rng.normal(size=shape)
    size = rng.uniform(0.7, 1.3, size=shape) / np.sqrt(1.03)
    return np.asarray(size * rng.choice([-1.0, 1.0], size=shape))


def _weights(recipe: Recipe, shared: Array, specific: Array) -> Array:
    """(M, K) enrichment, of mean 1 in every trait."""
    weight = np.exp(recipe.annotation * (shared[:, None] + specific) / np.sqrt(2))
    return np.asarray(weight / weight.mean(axis=0, keepdims=True))


def _inclusion(recipe: Recipe, counts: Mapping[str, int], weight: Array) -> Array:
    """(M, K) probability of an own effect, given enrichment; of pairs, one variant in two follows it.

    A direct variant of n of S traits that share is drawn by their mean enrichment, so trait k, one of them with
    probability n / S, has (w_k + sum of n - 1 others) / n of it. Silent traits are given what others have that share
    nothing.
    """
    M, K = weight.shape
    S = recipe.all_sharers
    extra = 0.5 * (recipe.direct_traits[0] + recipe.most_direct) - 1
    effects = (counts["single"] * weight + counts["ld_only"] * 0.5 * (weight + 1)) / (K - recipe.silent)
    sharing = weight[:, :S]
    others = (sharing.sum(axis=1, keepdims=True) - sharing) / (S - 1)
    effects[:, :S] += counts["direct"] * (sharing + extra * others) / S
    return np.asarray(effects / M)


class _Picked:
    """Which variants act on what, picked class by class; none is picked twice."""

    def __init__(self, genome: Genome, recipe: Recipe, weight: Array, T: Array, rng: np.random.Generator) -> None:
        self.genome, self.recipe, self.weight, self.rng = genome, recipe, weight, rng
        self.acts = np.zeros(weight.shape, dtype=bool)
        self.klass = np.zeros(len(weight), dtype=np.int64)
        self.pairs: list[Pair] = []
        self.causes = (T != 0).any(axis=1)

    def add(self, name: str, count: int) -> None:
        """Pick `count` variants of a class."""
        K = self.recipe.traits
        if name == "single":
            active = K - self.recipe.silent
            for k, of_trait in enumerate(np.bincount(self.rng.integers(active, size=count), minlength=active)):
                rows = self._free(self.weight[:, k], int(of_trait))
                self.acts[rows, k] = True
                self.klass[rows] = CLASSES.index("vertical" if self.causes[k] else "single")
        elif name == "confounder":
            self.klass[self._free(self.weight.mean(axis=1), count)] = CLASSES.index("confounder")
        elif name == "direct":
            for _ in range(count):
                size = self.rng.integers(self.recipe.direct_traits[0], self.recipe.most_direct + 1)
                traits = self.rng.choice(self.recipe.all_sharers, size=size, replace=False)
                row = self._free(self.weight[:, traits].mean(axis=1), 1)[0]
                self.acts[row, traits] = True
                self.klass[row] = CLASSES.index("direct")
        else:
            for _ in range(count // 2):
                self._add_pair()

    def _free(self, weight: Array, count: int) -> NDArray[np.int64]:
        open_weight = np.where(self.klass == 0, weight, 0.0)
        return self.rng.choice(len(weight), size=count, replace=False, p=open_weight / open_weight.sum())

    def _add_pair(self) -> None:
        low, high = self.recipe.pair_r2
        active = self.recipe.traits - self.recipe.silent
        ends = np.flatnonzero(~self.causes[:active])
        ends = ends if len(ends) > 1 else np.arange(active)
        one, two = (int(k) for k in self.rng.choice(ends, size=2, replace=False))
        for _ in range(_TRIES):
            first = int(self._free(self.weight[:, one], 1)[0])
            number = int(self.genome.block[first])
            begin = int(self.genome.starts[number])
            r2 = self.genome.regions[number].correlation[first - begin] ** 2
            fit = np.flatnonzero((r2 >= low) & (r2 <= high) & (self.klass[self.genome.rows(number)] == 0))
            fit = fit[fit != first - begin]
            if len(fit):
                nearest = fit[np.argsort(np.abs(r2[fit] - self.rng.uniform(low, high)))[:_NEAREST]]
                chance = self.weight[begin + nearest, two]
                partner = int(self.rng.choice(nearest, p=chance / chance.sum()))
                second = begin + partner
                self.acts[first, one] = self.acts[second, two] = True
                self.klass[[first, second]] = CLASSES.index("ld_only")
                self.pairs.append(Pair(first, second, (one, two), float(r2[partner])))
                return
        raise InputError(f"{_TRIES} variants drawn have no free partner with r2 in {self.recipe.pair_r2}.")
