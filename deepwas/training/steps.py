"""The compiled pieces of training: the gradient of a batch, the update of the parameters, the values of blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from deepwas.errors import DeepwasError
from deepwas.networks import apply_network, trunk_labels
from deepwas.options import FitOptions
from deepwas.parallel import BlockDevices
from deepwas.training.objective import Solve, ld_score_terms, likelihood_terms
from deepwas.training.source import Batch
from deepwas.training.state import Average, Point

__all__ = ["TRUSTED", "Steps", "Total"]

TRUSTED = 10.0  # times rtol: an update whose solve has a greater residual is left out

Total = tuple[Array, Array, Any]
"""Loss, greatest residual, and gradient, of one batch or of several that make up a step."""


class Steps:
    """Functions over batches, compiled for the devices, once for each shape and way to solve.

    n_panel: people in the LD panel, for the LD score objective.  mean_k: of the blocks, by which losses are divided, so
        that they, and gradients, are of the same size whatever the blocks.  freeze_trunk: train heads and noise alone.

    gradient(point, batch, key, number, constant, solve=): the `Total` of a batch. key, number: of its probes, which are
        drawn afresh for each: a network fits the error of signs that stay the same, loses held-out likelihood by it,
        and drifts to priors that CG cannot solve. constant: (T, 2), effect
        variance and noise of each trait's constant prior.
    sum(total, total): of two batches of a step.
    move(parameters, state, average, total, rate): one update by AdamW; all of these anew, and the gradient's norm.
    values(point, batch, solve=): log-likelihoods and residuals of the blocks of a batch.
    averaged(average, parameters): the averaged parameters.
    """

    def __init__(
        self, options: FitOptions, devices: BlockDevices, *, n_panel: int, mean_k: float, freeze_trunk: bool = False
    ):
        self.options = options
        self.devices = devices
        self.n_panel = n_panel
        self.norm = options.batch_blocks * options.accumulate * mean_k
        frozen = [optax.masked(optax.set_to_zero(), _of_trunk)] if freeze_trunk else []
        self.optimiser = optax.chain(
            *frozen,  # else its gradient would count in the norm that is clipped
            optax.clip_by_global_norm(options.clip_norm),
            optax.scale_by_adam(),
            optax.add_decayed_weights(options.weight_decay, mask=_decays),
            *frozen,
        )
        self.gradient = devices.compile(self._gradient, static_argnames="solve")
        self.sum = devices.compile(_sum)
        self.move = devices.compile(self._move)
        self.values = devices.compile(self._block_values, static_argnames="solve")
        self.averaged = devices.compile(partial(Average.value, decay=options.ema or 0.0))

    def noise(self, parameters: dict[str, Any]) -> Array:
        """sigma2 of each trait, (T,), learned; or (1,), given for all."""
        fixed = self.options.noise
        return jnp.exp(parameters["log_noise"]) if fixed is None else jnp.full(1, fixed, jnp.float32)

    def _noise_of(self, parameters: dict[str, Any], batch: Batch) -> Array:
        return self.noise(parameters)[0 if self.options.noise is not None else batch.trait[0]]

    def _effect_variances(self, point: Point, batch: Batch) -> Array:
        """f, (B, m), for the batch's trait.

        The network may compute in bfloat16; what it returns, and all that follows, is of 32 bits.
        """
        log_f = apply_network(point.network(), batch.inputs)[..., batch.trait[0]]
        if jnp.finfo(log_f.dtype).bits < 32:
            raise DeepwasError(f"the network returns log f in {log_f.dtype}; the likelihood needs float32.")
        return jnp.exp(log_f)

    def _gradient(self, point: Point, batch: Batch, key: Any, number: Any, constant: Any, *, solve: Solve) -> Total:
        key = jax.random.fold_in(jax.random.wrap_key_data(key), number)
        measure = self.devices.spread(partial(self._measure, solve=solve), False, True, False, False)
        return measure(point, batch, jax.random.key_data(key), constant)

    def _move(
        self, parameters: Any, state: Any, average: Average | None, total: Total, rate: Any
    ) -> tuple[Any, Any, Average | None, Array]:
        """One optimiser step, and the norm of its gradient.

        The gradient of a solve that is far from converged can be wrong by orders of magnitude, and one such step can
        send the network where every solve fails. So it is not taken: parameters and state stay as they were.
        """
        value, residual, gradient = total
        updates, moved = self.optimiser.update(gradient, state, parameters)
        taken = optax.apply_updates(parameters, jax.tree.map(lambda u: -rate * u, updates))
        seen = None if average is None else average.updated(taken, self.options.ema or 0.0)
        trusted = (residual <= TRUSTED * self.options.rtol) & jnp.isfinite(value)
        kept = jax.tree.map(
            lambda new, old: jnp.where(trusted, new, old), (taken, moved, seen), (parameters, state, average)
        )
        return *kept, optax.tree.norm(gradient)

    def _measure(self, point: Point, batch: Batch, key: Array, constant: Array, *, solve: Solve) -> Total:
        """Loss, greatest residual and gradient of a batch; on each device from its own blocks, then put together."""
        o = self.options
        key = jax.random.wrap_key_data(key)

        def loss(parameters: dict[str, Any]) -> tuple[Array, Array]:
            f = self._effect_variances(point._replace(parameters=parameters), batch)
            noise = self._noise_of(parameters, batch)
            if o.objective == "ld-score":
                start = constant[batch.trait[0]]
                values, residual = ld_score_terms(
                    batch.blocks, f, noise, n_panel=self.n_panel, constant=(start[0], start[1])
                )
            else:
                values, residual = likelihood_terms(batch.blocks, f, noise, key, solve)
            # Each device, and each batch of a step, adds its share of what the network's own penalty is.
            share = 1 / (o.accumulate * self.devices.count)
            penalty = point._replace(parameters=parameters).network().penalty() * share
            return penalty - jnp.sum(values * batch.weight) / self.norm, jnp.max(residual)

        (value, residual), gradient = jax.value_and_grad(loss, has_aux=True)(point.parameters)
        value, gradient = self.devices.total((value, gradient))
        return value, self.devices.greatest(residual), gradient

    def _block_values(self, point: Point, batch: Batch, *, solve: Solve) -> tuple[Array, Array]:
        """Log-likelihoods and residuals of the blocks of a batch."""

        def values(point: Point, batch: Batch) -> tuple[Array, Array]:
            f = self._effect_variances(point, batch)
            noise = self._noise_of(point.parameters, batch)
            key = jax.random.key(self.options.seed + 1)
            return self.devices.joined(likelihood_terms(batch.blocks, f, noise, key, solve))

        return self.devices.spread(values, False, True)(point, batch)


def _sum(a: Total, b: Total) -> Total:
    (value, residual, gradient), (other, its, more) = a, b
    return value + other, jnp.maximum(residual, its), jax.tree.map(jnp.add, gradient, more)


def _of_trunk(parameters: Any) -> Any:
    """Which parameters are of the trunk."""
    return jax.tree.map(lambda label: label == "trunk", trunk_labels(parameters))


def _decays(parameters: Any) -> Any:
    """Which parameters AdamW shrinks: weights, not biases, nor the noise."""
    return jax.tree.map(lambda x: x.ndim >= 2, parameters)
