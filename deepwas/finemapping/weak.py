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
from jax import Array

from deepwas.finemapping.effects import HIGHEST, EffectClasses, whitened_effect
from deepwas.finemapping.pairs import Group, alone_moments

__all__ = ["weak_effects"]


@jax.jit
def weak_effects(G: Array, residual: Array, classes: EffectClasses, log_odds: Array) -> Group:
    """Arguments as for `at_most_two`. Its `numbers` are those of independent effects: none, one, and the rest.

    Cost O(k m^2).
    """
    d = jnp.sum(G * G, axis=0)
    b = jnp.matmul(G.T, residual, precision=HIGHEST)
    t, shrink, log_bayes = whitened_effect(classes, b, d)
    weight = jnp.exp(log_odds + log_bayes)
    own = jnp.sum(weight, axis=1)
    length = jnp.sqrt(jnp.where(d > 0, d, 1.0))
    squared = (jnp.matmul(G.T, G, precision=HIGHEST) / length[:, None] / length[None, :]) ** 2
    probability = weight / (1 + jnp.matmul(squared, own, precision=HIGHEST))[:, None]
    fitted, _ = alone_moments(probability, t, shrink, classes.root)
    mean, square = alone_moments(probability, t, shrink, classes.own)
    where = jnp.sum(probability, axis=1)
    none = jnp.exp(jnp.sum(jnp.log1p(-jnp.minimum(where, 1 - 1e-6))))
    one = none * jnp.sum(where / (1 - jnp.minimum(where, 1 - 1e-6)))
    numbers = jnp.stack([none, one, jnp.maximum(1 - none - one, 0.0)])
    nowhere = jnp.zeros_like(probability)
    apart = jnp.zeros_like(where)
    return Group(probability, fitted, mean, square, numbers, nowhere, nowhere, apart, jnp.log1p(jnp.sum(own)))
