"""What training maximises, batched over blocks of one shape: the full likelihood, or the LD score objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from deepwas.likelihood.cg import cg_log_densities
from deepwas.likelihood.exact import exact_log_density
from deepwas.likelihood.ldscore import ld_score_loss, ld_score_weights
from deepwas.likelihood.products import Precision
from deepwas.training.packing import Bucket

__all__ = ["Solve", "ld_score_terms", "likelihood_terms", "trait_terms"]

_HIGHEST = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class Solve:
    """How blocks of one shape are solved in training; hashable, since each choice is compiled once.

    solver: 'cholesky' or 'cg'.  probes, rtol, max_steps, rank, precision: of CG, see `cg_log_densities`.
    fixed: take max_steps steps always, whatever rtol: the time of a step does not hang on the data then, and the
        residual tells whether the steps were enough.
    """

    solver: Literal["cholesky", "cg"]
    probes: int = 15
    rtol: float = 1e-2
    max_steps: int = 16
    rank: int = 0
    precision: Precision = "highest"
    fixed: bool = False


def likelihood_terms(bucket: Bucket, f: Array, noise: Array, key: Array, solve: Solve) -> tuple[Array, Array]:
    """Log-likelihood (B,) of each block and the relative residual (B,) of its solve (0 for Cholesky).

    f: (B, m) effect variances.  noise: scalar.  key: of the probes; each block has its own signs.
    """
    values, residual = trait_terms(
        bucket, bucket.whitened[:, None], f[:, None], bucket.sample_size[:, None], noise[None], key, solve
    )
    return values[:, 0], residual[:, 0]


def trait_terms(
    bucket: Bucket, whitened: Array, f: Array, sample_size: Array, noise: Array, key: Array, solve: Solve
) -> tuple[Array, Array]:
    """Log-likelihoods and residuals, (B, T), of T traits that share the blocks' LD; G is read once for all of them.

    whitened: (B, T, k).  f: (B, T, m).  sample_size: (B, T).  noise: (T,).  `bucket` gives the rest.
    """
    c = sample_size[..., None] * f * bucket.present[:, None]
    if solve.solver == "cholesky":
        traits = jax.vmap(exact_log_density, in_axes=(0, None, 0, 0, None))
        values = jax.vmap(traits, in_axes=(0, 0, 0, None, 0))(whitened, bucket.factor, c, noise, bucket.real)
        return values, jnp.zeros_like(values)
    k = whitened.shape[-1]

    def signs(member: Array) -> Array:
        return jax.random.rademacher(jax.random.fold_in(key, member), (solve.probes, k), c.dtype)

    values, found = cg_log_densities(
        whitened,
        bucket.factor,
        c,
        jnp.broadcast_to(noise[None], c.shape[:2]),
        bucket.real,
        jax.vmap(signs)(bucket.member),
        0.0 if solve.fixed else solve.rtol,
        solve.max_steps,
        solve.rank,
        solve.precision,
    )
    return values, found.residual


def ld_score_terms(
    bucket: Bucket, f: Array, noise: Array, *, n_panel: float, constant: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Minus the weighted squared error (B,) of LD score regression in each block, and zeros.

    r^2 comes from the block's truncated LD, R = G^T G, whose largest directions carry nearly all of the sum of squares,
    adjusted for a panel of n_panel people; weights are those of S-LDSC under the constant prior (effect variance,
    noise). G must not carry sample sizes that differ between variants (`TraitBlocks.ld_parts`): then R is not G^T G.
    """

    def one(block: Bucket, f: Array) -> Array:
        G = block.factor.decoded()
        R = jnp.matmul(G.T, G, precision=_HIGHEST)
        squared = R**2 - (1 - R**2) / (n_panel - 2)
        squared = squared * block.present[:, None] * block.present[None, :]
        scores = jnp.sum(squared, axis=1)
        expected = constant[1] + block.sample_size * constant[0] * scores
        weights = ld_score_weights(scores, expected) * block.observed
        loss = ld_score_loss(
            block.z, squared, f * block.present, sample_size=block.sample_size, noise=noise, weights=weights
        )
        return -loss * jnp.sum(weights)

    values = jax.vmap(one)(bucket, f)
    return values, jnp.zeros_like(values)
