"""The LD score regression objective: the baseline every likelihood is compared with.

It fits only the expected squares, E[z_j^2] = noise + N sum_k r_jk^2 f_k, and so sees each variant's total but not how
neighbouring z-scores vary together. Sources: Bulik-Sullivan et al. 2015; Finucane et al. 2015.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from deepwas.errors import InputError

__all__ = ["adjusted_ld_squared", "ld_score_loss", "ld_score_weights"]

_HIGHEST = jax.lax.Precision.HIGHEST


def adjusted_ld_squared(correlation: ArrayLike, n_panel: float) -> Array:
    """r^2 without the upward bias of a panel of n people: r^2 - (1 - r^2) / (n - 2), for r of any shape."""
    if not n_panel > 2:
        raise InputError(f"the panel must hold more than 2 people; n_panel = {n_panel}.")
    squared = jnp.square(jnp.asarray(correlation))
    return squared - (1 - squared) / (n_panel - 2)


def ld_score_weights(ld_scores: ArrayLike, expected_chi2: ArrayLike) -> Array:
    """Regression weights of S-LDSC: 1 / (max(l_j, 1) E[z_j^2]^2), for over-counting and for unequal variance.

    ld_scores: (s,), l_j over the scored variants.  expected_chi2: (s,), noise + N sum_k r_jk^2 f_k under a first model.
    """
    scores, chi2 = jnp.asarray(ld_scores), jnp.asarray(expected_chi2)
    return 1 / (jnp.maximum(scores, 1) * jnp.maximum(chi2, 1) ** 2)


def ld_score_loss(
    z: ArrayLike,
    ld_squared: ArrayLike,
    effect_variance: ArrayLike,
    *,
    sample_size: ArrayLike,
    noise: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
) -> Array:
    """Weighted mean square of z_j^2 - (noise + N sum_k r_jk^2 f_k); to be minimised.

    z: (s,) z-scores.  ld_squared: (s, m), r^2 between scored and candidate variants, see `adjusted_ld_squared`.
    effect_variance: (m,), f per standardised genotype.  sample_size: scalar N.  noise: scalar, the free intercept.
    weights: (s,), see `ld_score_weights`; None for equal ones.  Differentiable in all of them.
    """
    z, ld_squared, effect_variance = jnp.asarray(z), jnp.asarray(ld_squared), jnp.asarray(effect_variance)
    if ld_squared.shape != z.shape + effect_variance.shape:
        raise InputError(
            f"ld_squared has shape {ld_squared.shape}; z {z.shape} and effect_variance {effect_variance.shape} "
            f"ask for {z.shape + effect_variance.shape}."
        )
    expected = noise + sample_size * jnp.matmul(ld_squared, effect_variance, precision=_HIGHEST)
    w = jnp.ones_like(z) if weights is None else jnp.asarray(weights)
    return jnp.sum(w * (z**2 - expected) ** 2) / jnp.sum(w)
