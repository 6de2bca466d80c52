"""Posterior effects of one LD block under its prior.

beta_j ~ N(0, f_j) and z_S | beta ~ N(sqrt(N) R_S: beta, noise R_SS) are jointly normal. Seen through the whitener,
y = W z_S = sqrt(N) G beta + e with covariance B = noise I + N G F G^T, F = diag(f), so that

    E[beta | z]     = sqrt(N) F G^T B^-1 y
    Var(beta_j | z) = f_j - N f_j^2 g_j^T B^-1 g_j,    g_j the columns of G.

With `genetic_variance` the same solve gives the genetic variance of the scored variants, beta_S^T R_SS beta_S. Its
posterior mean, with m = E[beta_S | z], V = Cov(beta_S | z) and R_SS = H^T H, H (k0, s) as the LD store keeps it, is

    E[beta_S^T R_SS beta_S | z] = |H m|^2 + tr(R_SS V),   tr(R_SS V) = tr(H F_S H^T) - N w^T B^-1 w summed over the
                                                          columns w of G_S F_S H^T,

of variance 2 |H V H^T|^2 + 4 m^T R V R m. |H m|^2 is the variance of the score x^T m in the population, its covariance
with the trait given z, and so its expected R2; before z was seen, E |H m|^2 = tr(H F_S H^T) - tr(R_SS V).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepwas.errors import ConvergenceWarning, InputError
from deepwas.ld.block import LDBlock
from deepwas.likelihood.api import _JACOBI_STEPS, _RANK, MAX_STEPS, SolveInfo, _concentrated
from deepwas.likelihood.question import check
from deepwas.posterior.options import Solver
from deepwas.posterior.solve import Solved, solve_cg, solve_exact

__all__ = ["EXACT_UP_TO", "GeneticVariance", "PosteriorEffects", "Way", "posterior_effects", "posterior_of_factor"]

Float = NDArray[np.float64]

EXACT_UP_TO = 2048  # directions: some seconds a block on two cores


@dataclass(frozen=True)
class GeneticVariance:
    """Genetic variance of a block's scored variants, in units of the trait's variance; see the module.

    prior: tr(R_SS F), what the prior expects in the directions of LD that the store keeps.
    mean, sd: of its posterior; sd is NaN by CG.  standard_error: of `mean`, from the probes; 0 if exact.
    score: |H m|^2, the expected R2 of the score.  expected_score: what the prior expected of that before z was seen.
    """

    prior: float
    mean: float
    sd: float
    standard_error: float
    score: float
    expected_score: float


@dataclass(frozen=True, eq=False)
class PosteriorEffects:
    """Posterior of a block's effects, per standard deviation of genotype, in standard deviations of the trait.

    mean: (m,).  variance: (m,), between 0 and f.  standard_error: (m,), of the variance: 0 by Cholesky; by CG from the
        spread over probes (with 32 of them, errors of more than 4 of it occur at 2 variants in 1,000).
    info: how it was solved; its standard_error and gradient errors are those of a likelihood, which is not computed
        here.  genetic_variance: if asked for.
    """

    mean: Float
    variance: Float
    standard_error: Float
    info: SolveInfo
    genetic_variance: GeneticVariance | None = None

    @property
    def sd(self) -> Float:
        """Posterior standard deviation, (m,)."""
        return np.sqrt(self.variance)


class Way(NamedTuple):
    """How to solve: see `posterior_effects`."""

    solver: Solver = "auto"
    probes: int = 32
    rtol: float | None = None
    max_steps: int | None = None
    rank: int | None = None
    seed: Any = 0  # of numpy.random.default_rng


def posterior_effects(
    block: LDBlock,
    z: ArrayLike,
    effect_variance: ArrayLike,
    *,
    sample_size: ArrayLike,
    noise: float = 1.0,
    solver: Solver = "auto",
    probes: int = 32,
    key: Any = None,
    rtol: float | None = None,
    max_steps: int | None = None,
    rank: int | None = None,
    genetic_variance: bool = False,
) -> PosteriorEffects:
    """Posterior mean and variance of each effect in one LD block, given its z-scores.

    Model: beta_j ~ N(0, f_j), z_S | beta ~ N(sqrt(N) R_S: beta, noise R_SS), seen through the block's whitener.
    Candidates that the block does not score (flanks, variants without a z-score) have a posterior too.

    z: (s,) z-scores of the scored variants. Where some are missing, give `block.restrict(observed)` and the others.
    effect_variance: (m,), f >= 0, of the effect of one standard deviation of genotype, in units of trait variance.
    sample_size: N, people; or (s,), one for each scored variant: then z = diag(sqrt N) R beta + e, see
        `LDBlock.restrict`.  noise: sigma2 > 0.
    solver: 'cholesky', exact, in float64; 'cg', where variances are estimated from `probes` random signs, drawn from
        `key` (of jax.random, or a whole number; by default a fixed one), in the block's dtype; 'auto', exact up to
        2,048 directions.
        Estimates are held to the bounds noise f / (noise + N f |g|^2) <= variance <= f, which always hold.
    rtol, max_steps, rank: of CG, as for `log_likelihood`, but rtol is 1e-5 in float32 by default.
    genetic_variance: find that of the scored variants too, by the LD of this block.

    A solve that does not converge warns with `ConvergenceWarning`, after 'auto' has tried Cholesky.
    Raises InputError for wrong shapes, negative variances and values that are not finite.
    Sources: Henderson 1975 (best linear unbiased prediction); Vilhjalmsson et al. 2015 (LDpred-inf, a constant f).
    """
    if not isinstance(block, LDBlock):
        raise InputError(f"the first argument is {type(block).__name__}; give an LDBlock.")
    check("z", z, (block.s,))
    check("effect_variance", effect_variance, (block.m,), minimum=0)
    check("noise", noise, (), above=0)
    check("sample_size", sample_size, (), (block.s,), above=0)
    n = np.asarray(sample_size, np.float64)
    used = block
    if n.ndim:
        relative = np.ones(block.m)
        relative[block.scored] = n / n.mean()
        used = block.restrict(block.scored, relative if n.max() > n.min() else None)
    # As given: a rotation of y and G together, such as `restrict` makes, changes no posterior.
    root = None
    if genetic_variance:
        root = block.loadings if block.restricted else block.factor[:, block.scored]
    return posterior_of_factor(
        used.factor,
        used.whiten(np.asarray(z)),
        np.asarray(effect_variance, np.float64),
        sample_size=float(n.mean()),
        noise=float(noise),
        way=Way(solver, probes, rtol, max_steps, rank, _seed(key)),
        scored=block.scored,
        ld_root=root,
    )


def _seed(key: Any) -> Any:
    """For numpy.random.default_rng."""
    if key is None or isinstance(key, int):
        return key or 0
    import jax

    return np.asarray(jax.random.key_data(key)).tolist()


def posterior_of_factor(
    G: NDArray[Any],
    y: NDArray[Any],
    f: Float,
    *,
    sample_size: float,
    noise: float,
    way: Way,
    scored: NDArray[np.bool_] | None = None,
    ld_root: NDArray[Any] | None = None,
    where: str = "",
) -> PosteriorEffects:
    """`posterior_effects` from whitened arrays: G (k, m), y (k,), f (m,).

    ld_root: H (k0, s), with H^T H the LD of the scored variants, scored (m,) bool; None leaves genetic variance out.
    where: the block's name in warnings.
    """
    if way.solver not in ("auto", "cholesky", "cg"):
        raise InputError(f"solver is {way.solver!r}; give 'auto', 'cholesky' or 'cg'.")
    if way.probes < 2:
        raise InputError(f"probes is {way.probes}; at least 2 are needed for a standard error.")
    k, m = G.shape
    c = sample_size * f
    exact = way.solver == "cholesky" or (way.solver == "auto" and k <= EXACT_UP_TO)
    inside = None if ld_root is None or scored is None else (f[scored], ld_root)
    signs = None
    if exact:
        solved, signs = solve_exact(G, y, c, noise, _images(G, scored, inside, None)), None
    else:
        rng = np.random.default_rng(way.seed)
        drawn = rng.choice(np.array([-1, 1], G.dtype), (way.probes, k))
        signs = None if ld_root is None else rng.choice(np.array([-1, 1], G.dtype), (len(ld_root), way.probes))
        images = _images(G, scored, inside, signs)
        solved = _by_cg(G, y, c, noise, drawn, images, way)
        if not solved.info.converged and way.solver == "auto":
            solved, signs = solve_exact(G, y, c, noise, _images(G, scored, inside, None)), None
        elif not solved.info.converged:
            warnings.warn(
                f"{where or 'a block'} (k = {k}, m = {m}): conjugate gradients stopped after {solved.info.steps} steps "
                f"at relative residual {solved.info.residual:.1e}: the posterior is not reliable. Use "
                "solver='cholesky', or raise max_steps.",
                ConvergenceWarning,
                stacklevel=3,
            )
    mean = np.sqrt(sample_size) * f * solved.data
    lengths = np.einsum("ij,ij->j", G, G, dtype=np.float64)
    least = f * noise / (noise + c * lengths)
    variance = np.clip(f * (1 - c * solved.energy), least, f)
    error = f * c * solved.energy_error
    found = None
    if inside is not None:
        found = _genetic_variance(mean[scored], inside, solved, sample_size, signs)
    return PosteriorEffects(mean, variance, error, solved.info, found)


def _by_cg(
    G: NDArray[Any], y: NDArray[Any], c: Float, noise: float, signs: NDArray[Any], images: Any, way: Way
) -> Solved:
    """The first attempt that converges, or the last; as `log_likelihood` does."""
    if G.dtype not in (np.float32, np.float64):
        raise InputError(f"the factor is {G.dtype}; decode it to float32 or float64.")
    tolerance = way.rtol or (1e-8 if G.dtype == np.float64 else 1e-5)
    steps = way.max_steps or MAX_STEPS
    attempts = [(way.rank, steps)] if way.rank is not None else [(0, min(steps, _JACOBI_STEPS)), (_RANK, steps)]
    if way.rank is None and _concentrated(c[None]):
        del attempts[0]
    for rank, most in attempts:
        solved = solve_cg(G, y, c, noise, signs, further=images, rtol=tolerance, max_steps=most, rank=rank or 0)
        if solved.info.converged:
            break
    return solved


def _images(G: NDArray[Any], scored: Any, inside: Any, signs: NDArray[Any] | None) -> Any:
    """G_S F_S H^T, (k, k0), or its products with signs (k0, P)."""
    if inside is None:
        return None
    f, H = inside
    if signs is None:
        return (np.asarray(G[:, scored], np.float64) * f[None, :]) @ np.asarray(H, np.float64).T
    return G[:, scored] @ (f.astype(G.dtype)[:, None] * (H.T.astype(G.dtype) @ signs))


def _genetic_variance(
    mean: Float, inside: tuple[Float, NDArray[Any]], solved: Solved, sample_size: float, signs: Any
) -> GeneticVariance:
    f, root = inside
    H = np.asarray(root, np.float64)
    prior = float(f @ np.einsum("ij,ij->j", H, H))
    image = H @ mean
    score = float(image @ image)
    if signs is None:
        half = solved.half
        assert half is not None
        explained = sample_size * float(np.einsum("ij,ij->", half, half))
        K = (H * f[None, :]) @ H.T - sample_size * (half.T @ half)
        sd, error = math.sqrt(max(0.0, float(2 * np.sum(K * K) + 4 * image @ K @ image))), 0.0
    else:
        terms = sample_size * solved.forms
        explained, sd = float(terms.mean()), float("nan")
        error = float(terms.std(ddof=1) / np.sqrt(len(terms)))
    return GeneticVariance(prior, score + prior - explained, sd, error, score, explained)
