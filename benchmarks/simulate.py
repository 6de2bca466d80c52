"""Problems whose truth is known: coalescent LD, annotations that matter non-linearly, z-scores drawn from the model.

Everything is drawn from seeds, so equal arguments give equal problems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "Panel",
    "Region",
    "effect_variance",
    "simulate_annotations",
    "simulate_effects_and_trait",
    "simulate_panel",
    "simulate_regions",
    "simulate_tracks",
    "simulate_trait",
    "variant_table",
]

RECOMBINATION_RATE = 1e-8  # per base pair and generation
MUTATION_RATE = 1.29e-8
MINIMUM_MAF = 0.01
DENSITY = 850e-6  # variants of MAF >= 1% a base pair, fewer than any seed tried has given
_WAVES = 256


@dataclass(frozen=True, eq=False)
class Region:
    """One independent region of the simulated genome.

    position: (m,) base pairs, ascending.  maf: (m,).  correlation: (m, m), R of the standardised genotypes, float64.
    """

    position: NDArray[np.float64]
    maf: NDArray[np.float64]
    correlation: NDArray[np.float64]

    @property
    def m(self) -> int:
        """Number of variants."""
        return len(self.position)

    @cached_property
    def root(self) -> NDArray[np.float64]:
        """(m, m) symmetric square root of R; eigenvalues that rounding made negative count as 0."""
        values, vectors = np.linalg.eigh(self.correlation)
        return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


@dataclass(frozen=True, eq=False)
class Panel:
    """The genotypes of one long region, from which LD of every size is cut.

    position: (m,) base pairs, ascending.  maf: (m,).  genotypes: (m, people), standardised, float64.
    """

    position: NDArray[np.float64]
    maf: NDArray[np.float64]
    genotypes: NDArray[np.float64]

    @property
    def m(self) -> int:
        """Number of variants."""
        return len(self.position)

    def leading(self, m: int) -> Panel:
        """The first m variants."""
        return Panel(self.position[:m], self.maf[:m], self.genotypes[:m])

    def region(self) -> Region:
        """All variants with their correlation, (m, m)."""
        return Region(self.position, self.maf, _correlation(self.genotypes))

    def z_scores(
        self, f: NDArray[np.float64], *, sample_size: float, noise: float = 1.0, seed: int = 0
    ) -> NDArray[np.float64]:
        """One trait's z-scores (m,) from the model of `simulate_trait`, without the (m, m) matrix or its root.

        With X the genotypes of n people, R = X X^T / n, and X e / sqrt(n), e standard normal, has covariance R.
        """
        m, people = self.genotypes.shape
        rng = np.random.default_rng([seed, 2])
        signal = self.genotypes.T @ (rng.normal(size=m) * np.sqrt(f)) * np.sqrt(sample_size / people)
        return self.genotypes @ (signal + np.sqrt(noise) * rng.normal(size=people)) / np.sqrt(people)


def simulate_panel(m: int, *, people: int = 3000, seed: int = 0) -> Panel:
    """The first m variants of MAF >= 1% of one region, with the demography and the errors of `simulate_regions`.

    No variant between them is left out, so LD is that of sequenced or well imputed data.
    """
    if m < 1 or people < 2:
        raise InputError(f"m {m} must be at least 1, and people {people} at least 2.")
    trees = _mutated(people, round(m / DENSITY) + 100_000, np.random.SeedSequence([seed, 0]).generate_state(2))
    rows = []
    for variant in trees.variants():
        frequency = variant.genotypes.mean()
        if min(frequency, 1 - frequency) >= MINIMUM_MAF and variant.genotypes.max() <= 1:
            rows.append((variant.site.position, variant.genotypes.copy()))
            if len(rows) == m:
                break
    if len(rows) < m:
        raise InputError(f"the simulated region holds {len(rows)} variants of MAF >= {MINIMUM_MAF}, not {m}.")
    haplotypes = np.stack([genotypes for _, genotypes in rows])
    frequency = haplotypes.mean(axis=1)
    position = np.array([position for position, _ in rows])
    return Panel(position, np.minimum(frequency, 1 - frequency), _standardised(haplotypes))


def simulate_regions(
    n_regions: int,
    *,
    m: int,
    people: int = 2000,
    length: float = 1e6,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Region]:
    """European-like LD of independent regions, by the coalescent with recombination.

    One population with the sizes of Gravel et al. 2011 for Europeans, migration left out: 7,310 ancestral, 14,474 from
    5,920 generations ago, 1,861 from 2,040 (out of Africa), 1,032 from 920, growing by 0.38% a generation since.
    Recombination 1e-8 and mutation 1.29e-8 per base pair and generation. Biallelic variants of MAF >= 1% among `people`
    diploids are kept, and of these m drawn at random (all, if there are fewer), in order of position.

    R is the correlation in that very sample: z-scores drawn from it have no mismatch between GWAS and LD reference.
    Needs msprime (Baumdicker et al. 2022). Raises InputError when it is not installed, and for a region without
    variants.
    """
    if min(n_regions, m) < 1 or people < 2:
        raise InputError(f"n_regions {n_regions} and m {m} must be at least 1, and people {people} at least 2.")
    regions = []
    for number in range(n_regions):
        seeds = np.random.SeedSequence([seed, number]).generate_state(3)
        mutated = _mutated(people, length, seeds)
        regions.append(_thinned(mutated, m, np.random.default_rng(seeds[2])))
        if progress is not None:
            progress(number + 1, n_regions)
    return regions


def _mutated(people: int, length: float, seeds: NDArray[Any]) -> Any:
    """The tree sequence of one region, with mutations."""
    msprime = _msprime()
    demography = msprime.Demography()
    demography.add_population(name="EUR", initial_size=1032 * np.exp(0.0038 * 920), growth_rate=0.0038)
    for time, size in ((920, 1861), (2040, 14474), (5920, 7310)):
        demography.add_population_parameters_change(time=time, initial_size=size, growth_rate=0, population="EUR")
    ancestry = msprime.sim_ancestry(
        samples={"EUR": people},
        demography=demography,
        sequence_length=length,
        recombination_rate=RECOMBINATION_RATE,
        random_seed=int(seeds[0]) % (2**31 - 1) + 1,
    )
    return msprime.sim_mutations(
        ancestry,
        rate=MUTATION_RATE,
        model=msprime.BinaryMutationModel(),
        random_seed=int(seeds[1]) % (2**31 - 1) + 1,
    )


def _msprime() -> Any:
    try:
        import msprime
    except ImportError as error:
        raise InputError("this benchmark simulates LD with msprime: pip install 'deepwas[benchmarks]'.") from error
    return msprime


def _thinned(trees: Any, m: int, rng: np.random.Generator) -> Region:
    """m variants of MAF >= 1%, and the correlation of their genotypes."""
    haplotypes = trees.genotype_matrix()
    frequency = haplotypes.mean(axis=1)
    maf = np.minimum(frequency, 1 - frequency)
    common = np.flatnonzero((maf >= MINIMUM_MAF) & (haplotypes.max(axis=1) <= 1))
    if not len(common):
        raise InputError(f"a simulated region holds no variant of MAF >= {MINIMUM_MAF}: give a greater length.")
    chosen = np.sort(rng.choice(common, size=min(m, len(common)), replace=False))
    correlation = _correlation(_standardised(haplotypes[chosen]))
    return Region(np.asarray(trees.tables.sites.position[chosen]), maf[chosen], correlation)


def _standardised(haplotypes: NDArray[Any]) -> NDArray[np.float64]:
    """Genotypes (m, people) of mean 0 and variance 1, from haplotypes (m, 2 people) of 0 and 1."""
    genotypes = haplotypes[:, 0::2].astype(np.float64) + haplotypes[:, 1::2]
    genotypes -= genotypes.mean(axis=1, keepdims=True)
    genotypes /= np.sqrt(np.mean(genotypes**2, axis=1, keepdims=True))
    return genotypes


def _correlation(genotypes: NDArray[np.float64]) -> NDArray[np.float64]:
    correlation = genotypes @ genotypes.T / genotypes.shape[1]
    np.fill_diagonal(correlation, 1.0)
    return correlation


def simulate_annotations(
    regions: Sequence[Region | Panel],
    *,
    smooth: int = 4,
    independent: int = 4,
    length_scale: float = 2e4,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Standardised annotations (M, smooth + independent) of all variants, region after region.

    The first `smooth` columns vary smoothly along the genome, as chromatin and gene density do: Gaussian processes of
    kernel exp(-(d / length_scale)^2 / 2), d in base pairs, drawn afresh in each region by random Fourier features
    (Rahimi & Recht 2007). The others are independent standard normal, as conservation or allele-specific scores nearly
    are.
    """
    raw, _ = _raw_annotations(regions, smooth, independent, length_scale, seed)
    return (raw - raw.mean(axis=0)) / raw.std(axis=0)


def _raw_annotations(
    regions: Sequence[Region | Panel], smooth: int, independent: int, length_scale: float, seed: int
) -> tuple[NDArray[np.float64], list[_Waves]]:
    """Annotations before they are standardised, and each region's smooth functions of position."""
    rng = np.random.default_rng([seed, 1])
    columns, waves = [], []
    for region in regions:
        frequency = rng.normal(scale=1 / length_scale, size=(smooth, _WAVES))
        phase = rng.uniform(0, 2 * np.pi, size=(smooth, _WAVES))
        waves.append(_Waves(frequency, phase))
        columns.append(np.hstack([waves[-1](region.position), rng.normal(size=(region.m, independent))]))
    return np.concatenate(columns), waves


class _Waves(NamedTuple):
    """Random functions of position, (smooth, waves) frequencies and phases."""

    frequency: NDArray[np.float64]
    phase: NDArray[np.float64]

    def __call__(self, position: NDArray[np.float64]) -> NDArray[np.float64]:
        """(len(position), smooth)."""
        angle = position[:, None, None] * self.frequency + self.phase
        return np.asarray(np.sqrt(2 / _WAVES) * np.cos(angle).sum(axis=2))


def simulate_tracks(
    regions: Sequence[Region],
    *,
    smooth: int = 4,
    independent: int = 4,
    length_scale: float = 2e4,
    seed: int = 0,
    bins: int = 17,
    resolution: float = 4000.0,
    noise: float = 1.0,
) -> NDArray[np.float16]:
    """Windows (M, bins, smooth) of noisy tracks whose truth is the smooth columns of `simulate_annotations`.

    Each region is cut into bins of `resolution` base pairs. A bin's value is the standardised annotation at its middle
    plus an error of standard deviation `noise` of its own; a variant sees the bins around the one it lies in. So one
    bin tells less than its neighbourhood does. Arguments that both functions have must be equal.
    """
    if bins < 1 or bins % 2 == 0:
        raise InputError(f"bins is {bins}; give an odd number, the middle one holding the variant.")
    raw, waves = _raw_annotations(regions, smooth, independent, length_scale, seed)
    mean, scale = raw[:, :smooth].mean(axis=0), raw[:, :smooth].std(axis=0)
    rng = np.random.default_rng([seed, 3])
    reach = bins // 2
    windows = []
    for region, function in zip(regions, waves, strict=True):
        own = (region.position // resolution).astype(int)
        grid = np.arange(own.min() - reach, own.max() + reach + 1)
        track = (function((grid + 0.5) * resolution) - mean) / scale + noise * rng.normal(size=(len(grid), smooth))
        windows.append(track[(own - own.min())[:, None] + np.arange(bins)[None, :]])
    return np.concatenate(windows).astype(np.float16)


def effect_variance(annotations: NDArray[np.float64], *, smooth: int, mean: float) -> NDArray[np.float64]:
    """The truth f(C), (M,): log f = const + 2 tanh(s_1 t_1) + 2 [s_2 > 1/2] + 1.5 [t_2 > 1] + t_3 / 2.

    s_i: smooth annotations, the first `smooth` columns (at least 2).  t_i: the others (at least 3).  So there is an
    interaction between a smooth and an independent annotation, two thresholds, and one log-linear effect; the remaining
    annotations do nothing. No log-linear or softplus-linear prior can express it.
    mean: of f over all variants, to which it is scaled: the heritability a variant explains on average.
    """
    s, t = annotations[:, :smooth], annotations[:, smooth:]
    if smooth < 2 or t.shape[1] < 3:
        raise InputError(f"the truth needs 2 smooth and 3 independent annotations; got {smooth} and {t.shape[1]}.")
    log_f = 2.0 * np.tanh(s[:, 0] * t[:, 0]) + 2.0 * (s[:, 1] > 0.5) + 1.5 * (t[:, 1] > 1) + 0.5 * t[:, 2]
    f = np.exp(log_f)
    return f * (mean / f.mean())


def simulate_trait(
    regions: Sequence[Region], f: NDArray[np.float64], *, sample_size: float, noise: float = 1.0, seed: int = 0
) -> list[NDArray[np.float64]]:
    """One trait's z-scores, (m,) per region, from the model itself.

    z ~ N(sqrt(N) R beta, noise R) with beta_j ~ N(0, f_j).  f: (M,) effect variances, region after region.
    sample_size: N, people.  noise: sigma2.
    """
    return simulate_effects_and_trait(regions, f, sample_size=sample_size, noise=noise, seed=seed)[1]


def simulate_effects_and_trait(
    regions: Sequence[Region], f: NDArray[np.float64], *, sample_size: float, noise: float = 1.0, seed: int = 0
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """As `simulate_trait`, with the effects beta, (m,) per region, before the z-scores."""
    total = sum(r.m for r in regions)
    if f.shape != (total,) or not (np.isfinite(f) & (f >= 0)).all():
        raise InputError(f"f must hold {total} finite variances >= 0; its shape is {f.shape}.")
    rng = np.random.default_rng([seed, 2])
    effects, z = [], []
    for region, variance in zip(regions, np.split(f, np.cumsum([r.m for r in regions])[:-1]), strict=True):
        beta = rng.normal(size=region.m) * np.sqrt(variance)
        error = region.root @ rng.normal(size=region.m)
        effects.append(beta)
        z.append(np.sqrt(sample_size) * region.correlation @ beta + np.sqrt(noise) * error)
    return effects, z


def variant_table(regions: Sequence[Region | Panel]) -> pl.DataFrame:
    """The regions' variants as an LD store has them, a hundred bases apart on one chromosome."""
    import polars as pl

    frequency = np.concatenate([r.maf for r in regions])
    M = len(frequency)
    return pl.DataFrame(
        {
            "CHR": ["1"] * M,
            "SNP": [f"v{j}" for j in range(M)],
            "BP": np.arange(1, M + 1) * 100,
            "A1": ["A"] * M,
            "A2": ["C"] * M,
            "FREQ": frequency,
        }
    )
