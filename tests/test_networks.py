"""Networks start as the constant prior, are positive, and predict in pieces what they predict at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepwas.errors import InputError
from deepwas.inputs import Inputs, InputSizes, VariantInputs
from deepwas.network_options import NetworkOptions
from deepwas.networks import make_network, predict_log_variance
from deepwas.options import FitOptions

FEATURES = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32)
INPUTS = VariantInputs(FEATURES)


def made(name, log_base, *, hidden=(8,), seed=0):
    return make_network(NetworkOptions(name, hidden), INPUTS.sizes, log_base, seed=seed)


def test_links_are_as_written():
    for name in ("linear", "softplus"):
        network = made(name, -10.0)
        network.output.kernel[...] = jnp.arange(5, dtype=jnp.float32).reshape(5, 1) / 10
        network.output.bias[...] = jnp.array([0.3], jnp.float32)
        score = FEATURES @ (np.arange(5) / 10) + 0.3
        expected = -10 + score if name == "linear" else -10 + np.log(np.log1p(np.exp(score + np.log(np.e - 1))))
        np.testing.assert_allclose(predict_log_variance(network, INPUTS)[:, 0], expected, rtol=1e-5)


def test_mlp_moves_the_way_of_its_gradient_from_the_first_step():
    network = made("mlp", -10.0, seed=1)
    graph, state = nnx.split(network)

    def total(state):
        return nnx.merge(graph, state)(Inputs(jnp.asarray(FEATURES))).sum()

    gradient = jax.grad(total)(state)
    assert float(jnp.abs(gradient["output"]["kernel"][...]).max()) > 0
    assert float(gradient["output"]["bias"][...][0]) == pytest.approx(1000)


def test_prediction_in_pieces_is_the_prediction():
    network = made("mlp", -10.0, seed=1)
    network.output.kernel[...] = jnp.ones((8, 1), jnp.float32)
    whole = np.asarray(network(Inputs(jnp.asarray(FEATURES))))
    np.testing.assert_allclose(predict_log_variance(network, INPUTS, rows=64), whole, rtol=1e-5)


def test_equal_seeds_give_equal_networks():
    kernels = [made("mlp", 0.0, seed=s).layers[0].kernel[...] for s in (1, 1, 2)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert float(jnp.abs(kernels[0] - kernels[2]).max()) > 0.01


def test_wrong_networks_are_refused():
    with pytest.raises(InputError, match=r"'forest'.*constant, linear"):
        NetworkOptions("forest")
    with pytest.raises(InputError, match="at least one annotation"):
        make_network(NetworkOptions("linear"), InputSizes(), 0.0)
    with pytest.raises(InputError, match="no network"):
        made("constant", 0.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"network": "tree"}, "network is 'tree'"),
        ({"hidden": ()}, "one positive width"),
        ({"folds": 2}, "folds is 2; at least 3"),
        ({"noise": 0.0}, "noise is 0.0; it must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"warmup": 1.0}, "share of the steps"),
        ({"probes": 1}, "at least 2"),
        ({"weight_decay": -1.0}, "0 or more"),
    ],
)
def test_options_check_themselves(wrong, message):
    with pytest.raises(InputError, match=message):
        FitOptions(**wrong)


def test_options_survive_json():
    options = FitOptions(hidden=(7, 3), noise=1.0, network="softplus")
    assert FitOptions.from_dict(options.as_dict()) == options
    with pytest.raises(InputError, match="unknown option trees"):
        FitOptions.from_dict(options.as_dict() | {"trees": 3})
