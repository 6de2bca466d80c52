"""What holds for every network: the start, gradients everywhere, pieces, precision, sizes, errors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepwas.errors import InputError
from deepwas.inputs import InputSizes, VariantInputs
from deepwas.network_options import NetworkOptions, required_inputs
from deepwas.networks import apply_network, count_parameters, make_network, predict_log_variance
from deepwas.options import FitOptions
from tests.zoo import BOTH, SMALL, differentiated, inputs, made, options, sizes, stirred

EACH = pytest.mark.parametrize("kind", SMALL)
SHAPE = (2, 5)


FORWARD = nnx.jit(lambda network, x: network(x))
WEIGHT = jnp.asarray(np.random.default_rng(3).normal(size=(*SHAPE, 2)), jnp.float32)


@functools.cache
def subject(kind):
    """A network of two traits at its start, the same after all its parameters moved, and `differentiated`."""
    network = made(kind, (-9.0, -7.0), maf_alpha="learned")
    return network, stirred(network), differentiated(network)


@functools.cache
def direct(kind):
    """Values and gradients of the network that has moved."""
    _, moved, run = subject(kind)
    return run(moved, inputs(kind, SHAPE), WEIGHT)


@EACH
def test_every_network_starts_as_the_constant_prior(kind):
    start, _, run = subject(kind)
    found, gradient = run(start, inputs(kind, SHAPE), WEIGHT)
    assert found.shape == (*SHAPE, 2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.broadcast_to([-9.0, -7.0], found.shape), atol=1.1e-5)
    # The slope of log softplus where softplus is 1; 1 for all others.
    slope = 1 - np.exp(-1) if kind == "softplus" else 1.0
    np.testing.assert_allclose(gradient["['output']['bias']"], slope * WEIGHT.sum((0, 1)), rtol=1e-5)
    assert np.abs(gradient["['output']['kernel']"]).max() > 1e-4


@EACH
def test_gradients_reach_every_parameter(kind):
    # Nothing but the start of the last layer keeps them from the others, and the first step leaves it.
    for path, gradient in direct(kind)[1].items():
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 1e-7, path


@pytest.mark.parametrize("kind", ["monotone", "residual", "cnn", "enformer"])
def test_pieces_give_the_same_value_and_gradient(kind):
    network, moved, _ = subject(kind)
    run = differentiated(network, functools.partial(apply_network, at_once=4))
    found, gradient = run(moved, inputs(kind, SHAPE), WEIGHT)
    value, expected = direct(kind)
    np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5)
    for path in expected:
        np.testing.assert_allclose(gradient[path], expected[path], rtol=1e-4, atol=1e-5, err_msg=path)


@EACH
def test_a_variant_does_not_hang_on_the_others(kind):
    _, moved, run = subject(kind)

    def alone(x):
        return jnp.zeros_like(x).at[1, 3].set(x[1, 3])

    found, _ = run(moved, jax.tree.map(alone, inputs(kind, SHAPE)), WEIGHT)
    np.testing.assert_allclose(found[1, 3], direct(kind)[0][1, 3], rtol=1e-6)


@pytest.mark.parametrize("kind", ["cnn", "enformer"])
def test_bfloat16_is_near_float32_and_its_parameters_are_float32(kind):
    half = made(kind, (-9.0, -7.0), maf_alpha="learned", compute_dtype="bfloat16")
    nnx.update(half, nnx.state(subject(kind)[1]))
    assert {x.dtype for x in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    found = FORWARD(half, inputs(kind, SHAPE))
    assert found.dtype == jnp.float32
    value = direct(kind)[0]
    assert 0 < np.abs(np.asarray(found) - value).max() < 0.05 * np.ptp(value)


@pytest.mark.parametrize("kind", ["cnn", "enformer"])
def test_windows_of_both_kinds_and_annotations_are_read(kind):
    start = made(kind, windows=BOTH, bound=3.0, compute_dtype="bfloat16")
    x = inputs(kind, SHAPE, windows=BOTH)
    np.testing.assert_allclose(FORWARD(start, x), -9)
    moved = stirred(start)
    before = np.asarray(FORWARD(moved, x))
    for name in required_inputs(options(kind), sizes(kind, BOTH)):
        other = x._replace(**{name: getattr(inputs(kind, SHAPE, windows=BOTH, seed=7), name)})
        assert np.abs(np.asarray(FORWARD(moved, other)) - before).max() > 0.01, name


def test_pieces_need_less_memory():
    network = make_network(NetworkOptions("residual", width=64, depth=2), InputSizes(4), -9.0)
    graph, weights, held = nnx.split(network, nnx.Param, ...)
    x = inputs("mlp", (4096,))._replace(annotations=jnp.zeros((4096, 4), jnp.float32))

    def temporary(at_once):
        def total(weights):
            return apply_network(nnx.merge(graph, weights, held), x, at_once=at_once).sum()

        return jax.jit(jax.grad(total)).lower(weights).compile().memory_analysis().temp_size_in_bytes

    assert temporary(128) < temporary(0) / 8


@pytest.mark.parametrize(
    ("chosen", "low", "high"),
    [
        ({"network": "residual", "width": 8, "depth": 2}, 7e2, 2e3),
        ({"network": "residual", "width": 1024, "depth": 12}, 4.9e7, 5.2e7),
        ({"network": "cnn", "width": 8, "depth": 1, "hidden": ()}, 1e3, 3e3),
        ({"network": "cnn", "width": 1024, "depth": 16}, 4.8e7, 5.3e7),
        ({"network": "enformer", "width": 8, "depth": 1, "hidden": ()}, 1e3, 3e3),
        ({"network": "enformer", "width": 768, "depth": 10, "heads": 12}, 4.8e7, 5.3e7),
    ],
)
def test_sizes_from_a_thousand_to_fifty_million(chosen, low, high):
    of = InputSizes(10, tracks=None if chosen["network"] == "residual" else (64, 10))
    network = nnx.eval_shape(lambda: make_network(NetworkOptions(**chosen), of, -9.0))
    assert low <= count_parameters(network) <= high


def test_parameters_are_counted():
    assert count_parameters(made("mlp", (-9.0, -8.0), maf_alpha="learned")) == (3 * 6 + 6) + (6 * 2 + 2) + 2
    assert count_parameters(made("linear", maf_alpha=-0.4)) == 4


def test_prediction_reads_windows_in_pieces():
    x = inputs("cnn", (11,))
    moved = stirred(made("cnn", (-9.0, -7.0), maf_alpha="learned", variants_at_once=2))
    host = VariantInputs(*(None if values is None else np.asarray(values) for values in x))
    whole = FORWARD(subject("cnn")[1], x)
    np.testing.assert_allclose(predict_log_variance(moved, host, rows=4), whole, rtol=1e-5)


@pytest.mark.parametrize(
    ("chosen", "of", "message"),
    [
        (
            {"network": "cnn"},
            InputSizes(2),
            r"cnn network reads tracks or sequence; give --tracks FILE .* --network mlp",
        ),
        ({"network": "mlp"}, InputSizes(2, tracks=(4, 1)), "mlp network does not read tracks"),
        ({"network": "mlp"}, InputSizes(), "at least one annotation"),
        ({"maf_alpha": -0.4}, InputSizes(2), "allele frequencies"),
        ({"monotone": ("a:+",)}, InputSizes(2), "names of all 2 annotations; 0 were given"),
    ],
)
def test_missing_inputs_are_named(chosen, of, message):
    with pytest.raises(InputError, match=message):
        make_network(NetworkOptions(**chosen), of, 0.0)


def test_the_inputs_that_are_read():
    of = InputSizes(2, True, (4, 1), 8)
    assert required_inputs(NetworkOptions("cnn"), of) == ("annotations", "tracks", "sequence")
    assert required_inputs(NetworkOptions("mlp", maf_alpha=0.0), InputSizes(2, True)) == (
        "annotations",
        "log_heterozygosity",
    )
    assert required_inputs(NetworkOptions("constant"), InputSizes(2, True)) == ()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"network": "enformer", "width": 20}, "multiple of 8"),
        ({"kernel": 4}, "odd number"),
        ({"depth": 0}, "at least 1"),
        ({"bound": float("inf")}, "0 for no bound"),
        ({"maf_alpha": "free"}, "'learned', or a number"),
        ({"compute_dtype": "float16"}, "float32, bfloat16"),
        ({"variants_at_once": -1}, "at least 0"),
        ({"monotone": ("a",)}, r"NAME:\+"),
        ({"monotone": ("a:+", "a:-")}, "names a twice"),
        ({"monotone": "a:+"}, "give a list"),
        ({"network": "cnn", "monotone": ("a:+",)}, "monotone is for linear, softplus, mlp"),
        ({"network": "enformer", "sparse": 0.1}, "sparse is for"),
        ({"sparse": -1.0}, "0 or more"),
    ],
)
def test_options_check_themselves(wrong, message):
    with pytest.raises(InputError, match=message):
        NetworkOptions(**wrong)


def test_options_survive_json_lists():
    chosen = FitOptions(monotone=("a:+",), maf_alpha="learned", bound=0.0, variants_at_once=10)
    assert FitOptions.from_dict(chosen.as_dict() | {"monotone": ["a:+"], "hidden": [32, 32]}) == chosen
