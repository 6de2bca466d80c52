"""The slow, obvious formulas that the fast code is held against, and LD matrices of every kind it can meet.

Nothing here is shared with the package: covariances are formed from R in full and only then whitened.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri
from scipy.stats import multivariate_normal

EXAMPLE = Path(__file__).parents[1] / "deepwas" / "data" / "example" / "1000G_eur_chr22"


class Trait(NamedTuple):
    """Arguments of one density: R (m, m), scored (m,) bool, z (s,), f (m,), sample size, noise, mean effect (m,)."""

    R: np.ndarray
    scored: np.ndarray
    z: np.ndarray
    f: np.ndarray
    sample_size: float
    noise: float
    mean: np.ndarray

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What a density is a function of."""
        return self.f, self.noise, self.z, self.sample_size, self.mean


def covariance(trait: Trait) -> np.ndarray:
    """Covariance of the scored z-scores, N R_S: F R_:S + noise R_SS, (s, s)."""
    to_all = trait.R[trait.scored]
    inside = trait.R[np.ix_(trait.scored, trait.scored)]
    return trait.sample_size * to_all @ np.diag(trait.f) @ to_all.T + trait.noise * inside


def log_density(whitener: np.ndarray, trait: Trait) -> float:
    """Log density of W z under the dense model, by SciPy."""
    W = np.asarray(whitener, dtype=np.float64)
    centre = np.sqrt(trait.sample_size) * W @ trait.R[trait.scored] @ trait.mean
    V = W @ covariance(trait) @ W.T
    return float(multivariate_normal(centre, (V + V.T) / 2).logpdf(W @ trait.z))


def textbook_gradient(whitener: np.ndarray, trait: Trait) -> tuple[Any, ...]:
    """Derivatives of `log_density` in the order of `Trait.arguments`.

    For y ~ N(mu(t), V(t)) and a = V^-1 (y - mu):  dL/dt = a'(dmu/dt) + (a' (dV/dt) a - tr(V^-1 dV/dt)) / 2.
    """
    W, n = whitener, trait.sample_size
    to_all = W @ trait.R[trait.scored]
    inverse = np.linalg.inv(W @ covariance(trait) @ W.T)
    a = inverse @ (W @ trait.z - np.sqrt(n) * to_all @ trait.mean)

    def from_variance(dV: np.ndarray) -> float:
        return float(a @ dV @ a - np.trace(inverse @ dV)) / 2

    d_f = np.array([from_variance(n * np.outer(column, column)) for column in to_all.T])
    d_noise = from_variance(W @ trait.R[np.ix_(trait.scored, trait.scored)] @ W.T)
    d_n = from_variance(to_all @ np.diag(trait.f) @ to_all.T) + a @ to_all @ trait.mean / (2 * np.sqrt(n))
    return d_f, d_noise, -W.T @ a, float(d_n), np.sqrt(n) * to_all.T @ a


def jax_log_density(whitener: np.ndarray, R: np.ndarray, scored: np.ndarray) -> Any:
    """The dense density as a function of `Trait.arguments` that JAX can differentiate, in float64."""
    to_all, inside = jnp.asarray(whitener @ R[scored]), jnp.asarray(whitener @ R[np.ix_(scored, scored)] @ whitener.T)

    def density(f: Any, noise: Any, z: Any, sample_size: Any, mean: Any) -> Any:
        V = sample_size * to_all @ jnp.diag(f) @ to_all.T + noise * inside
        off = jnp.asarray(whitener) @ z - jnp.sqrt(sample_size) * to_all @ mean
        return -(len(whitener) * jnp.log(2 * jnp.pi) + jnp.linalg.slogdet(V)[1] + off @ jnp.linalg.solve(V, off)) / 2

    return density


def ld_score_objective(z: Any, r2: Any, f: Any, sample_size: float, noise: float, weights: Any) -> float:
    """The LD score regression objective, one variant at a time."""
    total = 0.0
    for j in range(len(z)):
        expected = noise
        for k in range(len(f)):
            expected += sample_size * r2[j][k] * f[k]
        total += weights[j] * (z[j] ** 2 - expected) ** 2
    return total / sum(weights)


def correlation(genotypes: np.ndarray) -> np.ndarray:
    """Correlation of the columns (people, variants), with a diagonal of exactly 1."""
    scaled = (genotypes - genotypes.mean(axis=0)) / genotypes.std(axis=0)
    R = scaled.T @ scaled / len(scaled)
    np.fill_diagonal(R, 1.0)
    return R


def genotypes(m: int, people: int, rng: np.random.Generator, decay: float = 0.95) -> np.ndarray:
    """Counts (people, m) of two haplotypes each, whose liabilities follow an AR(1) process along the chromosome."""
    liability = rng.standard_normal((2 * people, m))
    for j in range(1, m):
        liability[:, j] = decay * liability[:, j - 1] + np.sqrt(1 - decay**2) * liability[:, j]
    carried = liability < ndtri(rng.uniform(0.2, 0.8, m))
    return carried[:people].astype(float) + carried[people:]


def ld_matrix(kind: str, m: int, rng: np.random.Generator) -> np.ndarray:
    """One LD matrix (m, m).

    'ar1': full rank, neighbours at 0.9.  'panel': fewer people than variants, singular.  'duplicates': a panel in which
    every variant occurs twice, half of them with the alleles swapped.  'independent': the identity.
    """
    if kind == "ar1":
        place = np.arange(m)
        return 0.9 ** np.abs(place[:, None] - place[None, :])
    if kind == "panel":
        return correlation(genotypes(m, max(20, m // 3), rng))
    if kind == "duplicates":
        half = genotypes((m + 1) // 2, 3 * m + 20, rng)
        return correlation(np.concatenate([half, 2 - half], axis=1)[:, :m])
    assert kind == "independent", kind
    return np.eye(m)


def simulated_trait(
    R: np.ndarray,
    rng: np.random.Generator,
    *,
    scored: np.ndarray | None = None,
    sample_size: float = 1e4,
    noise: float = 1.0,
    mean_c: float | None = None,
    with_mean: bool = False,
) -> Trait:
    """A trait whose z-scores follow the model, z = sqrt(N) R beta + e, with exponential f.

    mean_c: mean of N f; by default a heritability of 0.5 is spread over the variants.
    """
    m = len(R)
    f = rng.exponential(size=m) * (0.5 / m if mean_c is None else mean_c / sample_size)
    mean = 0.5 * np.sqrt(f) * rng.standard_normal(m) if with_mean else np.zeros(m)
    beta = mean + np.sqrt(f) * rng.standard_normal(m)
    error = np.sqrt(noise) * root(R.tobytes(), m) @ rng.standard_normal(m)
    z = np.sqrt(sample_size) * R @ beta + error
    mask = np.ones(m, dtype=bool) if scored is None else scored
    return Trait(R, mask, z[mask], f, float(sample_size), float(noise), mean)


@cache
def root(R: bytes, m: int) -> np.ndarray:
    """A square root of R, given by its float64 bytes so that it is computed once per matrix."""
    values, vectors = np.linalg.eigh(np.frombuffer(R).reshape(m, m))
    return vectors * np.sqrt(np.maximum(values, 0))


def third(m: int, rng: np.random.Generator) -> np.ndarray:
    """A mask that scores every third variant or so, and at least one."""
    mask = rng.random(m) < 1 / 3
    mask[rng.integers(m)] = True
    return mask


@cache
def example_ld(start: int, m: int) -> tuple[np.ndarray, int]:
    """LD of m neighbouring common variants of the example panel, and the number of people."""
    from deepwas.genotypes import open_plink

    panel = open_plink(EXAMPLE)
    counts = panel.read(slice(start, start + 2 * m)).astype(np.float64)
    assert not np.isnan(counts).any()
    frequency = counts.mean(axis=0) / 2
    common = np.flatnonzero(np.minimum(frequency, 1 - frequency) > 0.01)[:m]
    assert len(common) == m
    return correlation(counts[:, common]), panel.n_samples
