"""Several effects in a block, each fitted to what the others leave: the start of fine-mapping.

y = sum_l g_(j_l) u_l^T + E: each of L slots holds at most one effect (`deepwas.finemapping.effects`). Coordinate
ascent in the family of independent slots (iterative Bayesian stepwise selection, Wang et al. 2020) fits one slot at a
time to the residuals from the means of the others. Unlike there, no slot's prior variance is tuned: a slot may be
empty, with the prior odds of the model, and a new slot is opened only once all open ones but one are more likely full
than not. So slots do not share out the signal of none among them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from deepwas.finemapping.effects import HIGHEST, ClassArrays, shrinkage, single_effect_given

__all__ = ["Slots", "mean_field"]

_FULL = 0.5


class Slots(NamedTuple):
    """Where coordinate ascent ended.

    mean: (L, m, K), E of each slot's effect at each variant.  lead: (L,), its likeliest variant.
    full: (L,), the probability that it holds an effect.  sweeps: done.  converged: whether they changed no mean z-score
    by more than the tolerance.
    """

    mean: Any
    lead: Any
    full: Any
    sweeps: Any
    converged: Any


@partial(jax.jit, static_argnames=("slots", "max_sweeps"))
def mean_field(
    G: Array,
    y: Array,
    classes: ClassArrays,
    log_odds: Array,
    *,
    slots: int,
    tolerance: float = 1e-2,
    max_sweeps: int = 100,
) -> Slots:
    """G: (k, m).  y: (k, K).  log_odds: (m, C).  slots: L at most.

    tolerance: on the change of a slot's fitted z-scores, |G (change of mean)| by trait, in their own units.
    Rows and columns of 0 (padding) change nothing if their log odds are -inf. Cost O(k m K + m C K^2) per slot and
    sweep.
    """
    m, traits = G.shape[1], y.shape[1]
    shrink, half_log = shrinkage(classes, jnp.sum(G * G, axis=0))

    def one_slot(number: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        mean, fitted, lead, full, change = carry
        own = jnp.matmul(G, mean[number], precision=HIGHEST)
        rest = fitted - own
        b = jnp.matmul(G.T, y - rest, precision=HIGHEST)
        found = single_effect_given(classes, log_odds, b, shrink, half_log)
        new = jnp.matmul(G, found.mean, precision=HIGHEST)
        by_variant = jnp.sum(found.probability, axis=1)
        moved = jnp.sqrt(jnp.max(jnp.sum((new - own) ** 2, axis=0)))
        return (
            mean.at[number].set(found.mean),
            rest + new,
            lead.at[number].set(jnp.argmax(by_variant).astype(lead.dtype)),
            full.at[number].set(jnp.sum(by_variant)),
            jnp.maximum(change, moved),
        )

    def sweep(carry: Any) -> Any:
        mean, fitted, lead, full, opened, done, _, _ = carry
        begin = (mean, fitted, lead, full, jnp.zeros((), y.dtype))
        mean, fitted, lead, full, change = jax.lax.fori_loop(0, opened, one_slot, begin)
        wanted = jnp.minimum(slots, 1 + jnp.sum(full > _FULL, dtype=opened.dtype))
        grown = wanted > opened
        return mean, fitted, lead, full, jnp.maximum(opened, wanted), done + 1, change, grown

    def going(carry: Any) -> Any:
        *_, done, change, grown = carry
        return (done < max_sweeps) & (grown | (change > tolerance))

    zero = jnp.zeros((), y.dtype)
    start = (
        jnp.zeros((slots, m, traits), y.dtype),
        jnp.zeros_like(y),
        jnp.zeros(slots, jnp.int32),
        jnp.zeros(slots, y.dtype),
        jnp.ones((), jnp.int32),
        jnp.zeros((), jnp.int32),
        zero + jnp.inf,
        jnp.ones((), bool),
    )
    mean, _, lead, full, _, done, change, grown = jax.lax.while_loop(going, sweep, start)
    return Slots(mean, lead, full, done, (change <= tolerance) & ~grown)
