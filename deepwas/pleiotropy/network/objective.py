"""What the networks maximise: labels, the marginal likelihood of variants without one, and steady predictions.

Prior head. A correction c_j is added to the log odds of every configuration of two traits or more. With p_j the prior
and w_j the posterior probability of these in the first pass, the log marginal likelihood of a block rises by

    g(c) = sum over groups of log(1 + sum_{j in group} w_j (e^c_j - 1)) - sum_j log(1 + p_j (e^c_j - 1)),

where a group is a credible set, which holds at most one effect, or a variant alone: the mean of the ratio of prior
densities over the first-pass posterior, exact where groups are independent in it. A label y_j takes the place of w_j,
which makes its terms log P(y_j) under the corrected prior. So

    generative: g.    both: g with labels.    supervised: log P(y_j | a + log odds p_j + c_j) over labels alone, with a
    free intercept a, for labels are not a random sample (Prentice & Pyke 1979); it leaves the level of c open, which is
    then set to keep the expected number of variants.

Evidence head. P_j = sigmoid(log odds w_j + h_j), with the cross-entropy of labels (supervised), of truth simulated
under the fitted model (generative), or of both.

Both heads: shrinkage, the divergence from no correction; and steadiness, the sum of p (1 - p) / 2 times the squared
change that noise in the channels makes, which is the divergence between two predictions. Source of the combination:
Cozman et al. 2003, who show that data without labels hurt where the model is wrong; hence all three are reported.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from deepwas.pleiotropy.network.model import Padded

__all__ = ["Batch", "evidence_loss", "gain", "prior_loss", "unsteady"]


class Batch(NamedTuple):
    """Blocks of one length.  x: channels.  base: (B, L), log odds that the head starts from: of p, or of w.

    prior, posterior: (B, L), p and w.  label: (B, L), NaN for none.  group: (B, L).  inside: (B, L), 1 for variants
    that count.
    """

    x: Padded
    base: Any
    prior: Any
    posterior: Any
    label: Any
    group: Any
    inside: Any


def gain(c: Array, w: Array, p: Array, group: Array, inside: Array) -> Array:
    """g of each block, (B,), in nats.  c, w, p: (B, L).  group: (B, L) int, below L."""
    rise = jnp.expm1(c) * inside
    length = c.shape[1]
    of_group = partial(jax.ops.segment_sum, num_segments=length)
    held = jax.vmap(of_group)(w * inside, group)
    # Labels and rounding can make a set hold more than one effect.
    raised = jax.vmap(of_group)(w * rise, group) / jnp.maximum(held, 1.0)
    return jnp.log1p(raised).sum(axis=1) - jnp.log1p(p * rise).sum(axis=1)


def cross_entropy(logit: Array, label: Array) -> Array:
    """-log P(label), 0 where there is none."""
    known = jnp.isfinite(label)
    y = jnp.where(known, label, 0.0)
    return jnp.where(known, jax.nn.softplus(logit) - y * logit, 0.0)


def prior_loss(c: Array, batch: Batch, supervised: Array, generative: Array, intercept: Array) -> Array:
    """Of each block, (B,), in nats, without steadiness.  supervised, generative: 0 or 1."""
    known = jnp.isfinite(batch.label) & (supervised > 0)
    w = jnp.where(known, jnp.nan_to_num(batch.label), batch.posterior)
    data = -gain(c, w, batch.prior, batch.group, batch.inside)
    labelled = (cross_entropy(batch.base + c + intercept, batch.label) * batch.inside).sum(axis=1)
    return jnp.where(generative > 0, data, labelled)


def evidence_loss(h: Array, batch: Batch, supervised: Array, generative: Array, intercept: Array) -> Array:
    """Of each block, (B,), in nats; which blocks count is up to their weights."""
    del supervised, generative, intercept
    return (cross_entropy(batch.base + h, batch.label) * batch.inside).sum(axis=1)


def unsteady(one: Array, other: Array, batch: Batch) -> Array:
    """Divergence of two predictions, (B,), in nats."""
    p = jax.nn.sigmoid(batch.base + jax.lax.stop_gradient(one))
    return (0.5 * p * (1 - p) * (one - other) ** 2 * batch.inside).sum(axis=1)


def noisy(x: Padded, key: Array, size: float) -> Padded:
    """Channels with noise, and some of them left out for all variants of the block."""
    out = []
    for value, number in ((x.by_trait, 0), (x.shared, 1)):
        one, two = jax.random.split(jax.random.fold_in(key, number))
        kept = jax.random.bernoulli(two, 1 - size, (len(value), *([1] * (value.ndim - 2)), value.shape[-1]))
        out.append((value + size * jax.random.normal(one, value.shape, value.dtype)) * kept.astype(value.dtype))
    return Padded(out[0], out[1], x.real)


def predictions(graph: Any, state: Any, x: Padded) -> Array:
    """(n, B, L) of n networks, stacked in `state`."""
    return jax.vmap(lambda one: nnx.merge(graph, one)(x))(state)
