"""Held-out likelihoods of blocks too large for Cholesky to be the first choice."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepwas import FitOptions
from deepwas.inputs import InputSizes, VariantInputs
from deepwas.network_options import NetworkOptions
from deepwas.networks import make_network
from deepwas.training import loop
from deepwas.training import steps as steps_
from deepwas.training.source import BlockSource
from tests.test_training import trait_blocks


@pytest.mark.parametrize("steps", [2, 200])
def test_beyond_cholesky_by_cg_and_by_cholesky_again_where_that_fails(steps, monkeypatch, float32):
    blocks = trait_blocks([30, 45, 30, 60], n=1e5, f=1e-4)
    features = VariantInputs(np.random.default_rng(0).standard_normal((165, 2)).astype(np.float32))
    trainer = loop.Trainer(BlockSource(blocks), FitOptions(hidden=(4,), batch_blocks=2), n_panel=1000)
    point = loop.Point.of(make_network(NetworkOptions("mlp", (4,)), InputSizes(2), np.log(1e-4)), 0.0)
    # A network starts as the constant prior, which needs one step: this one has learned something.
    moved = jax.tree.map(lambda x: x + 0.7, point.parameters) | {"log_noise": jnp.zeros(1, jnp.float32)}
    point = point._replace(parameters=moved)
    which = np.array([3, 0, 1, 2])
    exact = trainer.log_likelihood(point, features, which)
    used = []
    original = steps_.likelihood_terms

    def watched(bucket, f, noise, key, solve):
        used.append(solve.solver)
        return original(bucket, f, noise, key, solve)

    monkeypatch.setattr(steps_, "likelihood_terms", watched)
    monkeypatch.setattr(loop, "_EXACT_UP_TO", 0)
    monkeypatch.setattr(loop, "_EVALUATION", replace(loop._EVALUATION, max_steps=steps))
    trainer = loop.Trainer(BlockSource(blocks), FitOptions(hidden=(4,), batch_blocks=2), n_panel=1000)
    values = trainer.log_likelihood(point, features, which)
    assert ("cholesky" in used) == (steps == 2)
    np.testing.assert_allclose(values, exact, rtol=1e-5 if steps == 2 else 0, atol=1.0 if steps > 2 else 1e-3)
