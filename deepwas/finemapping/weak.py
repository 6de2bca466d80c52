"""Effects too weak to be found, among variants that no found effect is linked to.

One effect at most, or two, is too few for them: of many weak ones each is as likely as its own odds say, whatever lies
elsewhere in the block. With w_jc the prior odds times Bayes factor of an effect of class c at variant j, and only
variants in LD competing for the same signal,

    P(effect of class c at j) = w_jc / (1 + sum_i r_ij^2 sum_c w_ic),

which is exact where variants are independent (the one effect of each) and where they are copies of one another (at most
one effect of all).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from deepwas.finemapping.effects import (
    HIGHEST,
    ClassArrays,
    log_bayes_factors,
    mean_effect,
    shrinkage,
    whitened_effect,
)
from deepwas.finemapping.pairs import Alone, Group, moments

__all__ = ["fit_weak", "report_weak", "weak_effects"]


def weak_effects(G: ArrayLike, residual: ArrayLike, classes: ClassArrays, log_odds: ArrayLike) -> Group:
    """Arguments as for `at_most_two`. Its `numbers` are those of independent effects: none, one, and the rest.

    Cost O(k m^2).
    """
    factor = np.asarray(G)
    gram = factor.T @ factor
    shrink, half_log = shrinkage(classes, jnp.asarray(gram.diagonal()))
    t = whitened_effect(classes, jnp.asarray(factor.T @ np.asarray(residual)))
    alone = Alone(t, jnp.asarray(log_odds) + log_bayes_factors(t, shrink, half_log))
    probability, _, fitted, total = fit_weak(classes, gram, alone, shrink)
    return report_weak(classes, alone, shrink, probability, fitted, total)


@jax.jit
def fit_weak(
    classes: ClassArrays, gram: Array, alone: Alone, shrink: tuple[Array, ...]
) -> tuple[Array, Array, Array, Array]:
    """Probabilities (m, C), their sum, E[u] (m, K), and the sum of odds times Bayes factors.  gram: (m, m), G^T G."""
    length = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 1e-30))
    weight = jnp.exp(alone.weight)
    own = jnp.sum(weight, axis=1)
    competing = jnp.matmul((gram / length[:, None] / length[None, :]) ** 2, own, precision=HIGHEST)
    probability = weight / (1 + competing)[:, None]
    fitted = mean_effect(classes, probability, alone.t, shrink)
    return probability, jnp.sum(probability), fitted, jnp.sum(own)


def report_weak(
    classes: ClassArrays, alone: Alone, shrink: tuple[Array, ...], probability: Array, fitted: Array, total: Array
) -> Group:
    """The posterior from what `fit_weak` found, as NumPy arrays."""
    p, u, all_of_them, (mean, square) = jax.device_get(
        (probability, fitted, total, moments(classes, probability, alone.t, shrink))
    )
    where = np.minimum(p.sum(axis=1), 1 - 1e-6)
    none = np.exp(np.log1p(-where).sum())
    one = none * np.sum(where / (1 - where))
    numbers = np.array([none, one, max(1 - none - one, 0.0)])
    nowhere = np.zeros_like(p)
    return Group(p, u, mean, square, numbers, nowhere, nowhere, np.zeros_like(where), float(np.log1p(all_of_them)))
