"""How effect variance depends on allele frequency."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.networks.layers import Held

if TYPE_CHECKING:
    from deepwas.networks.base import Prior

__all__ = ["FrequencyTerm", "centre_heterozygosity"]

_REFERENCE = math.log(2 * 0.2 * 0.8)


class FrequencyTerm(nnx.Module):
    """(1 + alpha) (log h_j - centre), h_j = 2q(1 - q), to be added to log f_j.

    The effect of one more copy of an allele of frequency q has a variance proportional to h^alpha (Zeng et al. 2018,
    who write S for alpha; Schoech et al. 2019); the effect of one standard deviation of genotype, sqrt(h), then has
    h^(1 + alpha). Alpha = -1: f does not depend on frequency. Alpha = 0: effects per allele do not. Complex traits are
    near -0.4.

    alpha: (T,), a number that is held, or 'learned', from -1.
    centre: (T,), held: log h at which the term is 0; that of q = 0.2 unless `centre_heterozygosity` set it.
    """

    def __init__(self, traits: int, alpha: float | Literal["learned"]):
        start = jnp.full(traits, -1.0 if alpha == "learned" else alpha, jnp.float32)
        self.alpha: nnx.Variable[Array] = nnx.Param(start) if alpha == "learned" else Held(start)
        self.centre = Held(jnp.full(traits, _REFERENCE, jnp.float32))

    def __call__(self, log_heterozygosity: Array) -> Array:
        """(...) -> (..., T)."""
        x = log_heterozygosity.astype(jnp.float32)[..., None]
        ones = (1,) * (x.ndim - 1)
        alpha, centre = (v[...].reshape(ones + v[...].shape) for v in (self.alpha, self.centre))
        return (1 + alpha) * (x - centre)

    def grow(self, traits: int) -> None:
        """Append `traits` traits, with alpha as at the start."""
        alpha, centre = self.alpha[...], self.centre[...]
        learned = isinstance(self.alpha, nnx.Param)
        more = jnp.full(traits, -1.0, jnp.float32) if learned else jnp.repeat(alpha[-1:], traits)
        self.alpha = type(self.alpha)(jnp.concatenate([alpha, more]))
        self.centre = Held(jnp.concatenate([centre, jnp.repeat(centre[-1:], traits)]))


def centre_heterozygosity(network: Prior, log_heterozygosity: NDArray[np.floating]) -> None:
    """Set the centre so that an untrained network's mean f over these variants is that of the constant prior.

        centre = log(mean_j h_j^(1 + alpha)) / (1 + alpha),   and its limit, mean_j log h_j, where alpha = -1

    log_heterozygosity: (M,), log 2q(1 - q) of the variants that are fitted.
    The centre is part of the network's state and is saved with it. A network without `maf_alpha` is left as it is.
    """
    term = network.frequency
    if term is None:
        return
    x = np.asarray(log_heterozygosity, np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise InputError(
            f"log_heterozygosity of shape {x.shape} with {int((~np.isfinite(x)).sum()):,} values that are not finite: "
            "give one finite value for each variant. An allele frequency of 0 or 1 has none: drop such variants."
        )
    exponents = 1 + np.asarray(term.alpha[...], np.float64)
    centre = [x.mean() if e == 0 else (jax.nn.logsumexp(e * x) - math.log(len(x))) / e for e in exponents]
    term.centre[...] = jnp.asarray(np.array(centre), jnp.float32)
