"""What all networks share: the start, the bound, the dependence on allele frequency, a head for each trait."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array

from deepwas.inputs import Inputs
from deepwas.network_options import NetworkOptions
from deepwas.networks.frequency import FrequencyTerm
from deepwas.networks.layers import Held, SignedLinear

__all__ = ["Prior"]

_SMOOTH = 1e-3


class Prior(nnx.Module):
    """A trunk that all traits share, and a linear head for each:

        log f_j = log_base + bounded(link(head(trunk(inputs_j)))) + (1 + alpha) (log h_j - centre)

    bounded(x) = bound tanh(x / bound), of slope 1 at 0. The default of 7 nats lets f rise to 1,100 times the constant
    prior and fall to a 1,100th of it: enough for a prior that puts all heritability on one variant in a thousand, more
    than any enrichment that has been reported; and up to threefold it changes log f by less than 1%. Without a bound,
    an MLP sends variants of no visible effect to f = 0, which the likelihood hardly notices, but from where gradients
    no longer bring them back, and sends a few so high that conjugate gradients fail. (PolyFun, Weissbrod et al. 2020,
    caps the ratio of largest to smallest at 100.) The term of allele frequency is outside the bound.

    Subclasses give `trunk`, and set `output`, whose weights start at 0.

    log_base: (T,), held.  frequency: the last term, or None.  chunk: see `apply_network`.
    """

    output: SignedLinear

    def __init__(self, options: NetworkOptions, log_base: Array):
        self.log_base = Held(log_base)
        self.bound = options.output_bound
        self.sparse = options.sparse
        self.chunk = options.chunk
        alpha = options.maf_alpha
        self.frequency = None if alpha is None else FrequencyTerm(len(log_base), alpha)

    def trunk(self, inputs: Inputs) -> Array:
        """(..., features), in any floating dtype."""
        raise NotImplementedError

    def link(self, score: Array) -> Array:
        """From the head's output to log f - log_base, before the bound."""
        return score

    def first_weights(self) -> Array:
        """(p, units): what each annotation is multiplied by first."""
        raise NotImplementedError

    def __call__(self, inputs: Inputs) -> Array:
        """log f, (..., T) float32."""
        score = self.link(self.output(self.trunk(inputs)))
        if self.bound is not None:
            score = self.bound * jnp.tanh(score / self.bound)
        if self.frequency is not None:
            score = score + self.frequency(inputs.log_heterozygosity)
        base = self.log_base[...]
        return base.reshape((1,) * (score.ndim - 1) + base.shape) + score

    def annotation_norms(self) -> Array:
        """(p,) length of each annotation's first weights, over units (in a linear network, over traits).

        Smoothed at 0, sqrt(|w|^2 + 1e-6) - 1e-3, so that it has a gradient there.
        """
        squares = jnp.sum(self.first_weights() ** 2, axis=1)
        return jnp.sqrt(squares + _SMOOTH**2) - _SMOOTH

    def penalty(self) -> Array:
        """What training adds to its loss (nats per eigen-direction): sparse * sum_j |w_j|, 0 unless asked for.

        The group lasso over all weights of an annotation (Yuan & Lin 2006; for networks Feng & Simon 2017): useless
        annotations shrink to about 1e-3 rather than exactly to 0. With one trait and a linear network it is the lasso.
        """
        if not self.sparse:
            return jnp.zeros((), jnp.float32)
        return self.sparse * jnp.sum(self.annotation_norms())
