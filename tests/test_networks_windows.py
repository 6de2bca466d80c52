"""Networks of windows: they find what lies beside the variant, and read positions and alleles as documented."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deepwas.inputs import Inputs, InputSizes
from deepwas.network_options import NetworkOptions
from deepwas.networks import make_network
from deepwas.networks.enformer import AttentionPool, TransformerBlock, rotated
from deepwas.networks.layers import Convolution
from deepwas.networks.windows import ConvolutionTrunk, grouped, middle, one_hot
from tests.zoo import fitted, inputs, made, stirred

FORWARD = nnx.jit(lambda network, x: network(x))
BINS, OFFSET = 17, 4


def test_a_peak_beside_the_variant_is_found():
    """log f is the signal four bins to the right of the variant in one of two tracks: the others are noise."""
    rng = np.random.default_rng(0)
    tracks = rng.normal(size=(600, BINS, 2)).astype(np.float32)
    target = 0.5 * tracks[:, middle(BINS) + OFFSET, 1]
    x = Inputs(jnp.zeros((600, 0), jnp.float32), tracks=jnp.asarray(tracks))
    train, test = (jax.tree.map(lambda values, rows=rows: values[rows], x) for rows in (slice(500), slice(500, None)))
    chosen = NetworkOptions("cnn", width=8, depth=2, kernel=5, hidden=())
    start = make_network(chosen, InputSizes(tracks=(BINS, 2)), 0.0)
    network = fitted(start, train, jnp.asarray(target[:500]), steps=120, rate=0.03)
    error = np.asarray(FORWARD(network, test))[:, 0] - target[500:]
    assert 1 - error.var() / target[500:].var() > 0.8


def test_the_two_alleles_are_told_apart():
    network = stirred(made("cnn"))
    x = inputs("cnn", (6,))
    exchanged = x._replace(sequence=x.sequence[:, ::-1])
    assert np.abs(np.asarray(FORWARD(network, x) - FORWARD(network, exchanged))).max() > 1e-3


def test_equal_alleles_have_no_difference():
    network = made("cnn", hidden=())
    x = inputs("cnn", (6,))
    x = x._replace(sequence=jnp.repeat(x.sequence[:, :1], 2, axis=1))
    features = np.asarray(nnx.jit(lambda network, x: network.trunk(x))(network, x))
    width = network.of_sequence.features
    np.testing.assert_array_equal(features[:, width : 2 * width], 0)
    assert np.ptp(features[:, :width]) > 0.1


def test_bases_are_one_hot_and_the_unknown_is_zero():
    np.testing.assert_array_equal(
        one_hot(jnp.array([0, 3, 4, 200], jnp.uint8), jnp.float32), [[1, 0, 0, 0], [0, 0, 0, 1], [0] * 4, [0] * 4]
    )


@pytest.mark.parametrize("positions", [8, 9, 13, 15])
def test_the_variant_stays_in_the_middle_of_pooled_windows(positions):
    where = jnp.arange(positions, dtype=jnp.float32).reshape(1, positions, 1)
    trunk = ConvolutionTrunk(1, positions, NetworkOptions("cnn", width=2), pool=4, rngs=nnx.Rngs(0))
    assert middle(positions) in np.asarray(grouped(where, 4))[0, trunk.read.centre]
    assert int(jnp.argmax(trunk.read.bias[...])) == trunk.read.centre


def test_no_dilation_reaches_beyond_the_window():
    trunk = ConvolutionTrunk(1, 9, NetworkOptions("cnn", width=2, depth=6), pool=1, rngs=nnx.Rngs(0))
    assert [block.convolution.dilation for block in trunk.blocks] == [1, 2, 4, 4, 4, 4]


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (5, 1), (3, 4)])
def test_a_convolution_is_the_same_on_every_device(monkeypatch, kernel, dilation):
    layer = stirred(Convolution(2, 3, kernel, dilation=dilation, dtype="float32", rngs=nnx.Rngs(0)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 2)), jnp.float32)
    here = layer(x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(here, layer(x), rtol=1e-5, atol=1e-6)


def test_attention_knows_distances_alone():
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(np.tile(rng.normal(size=(1, 1, 1, 6)), (1, 9, 1, 1)), jnp.float32) for _ in range(2))
    score = np.einsum("ntha,nsha->ts", rotated(query), rotated(key))
    for distance in range(-4, 5):
        diagonal = np.diagonal(score, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    assert np.ptp(score) > 0.1


def test_a_transformer_block_is_its_formula():
    block = stirred(TransformerBlock(NetworkOptions("enformer", width=8, heads=2), rngs=nnx.Rngs(0)))
    x = np.random.default_rng(1).normal(size=(2, 5, 8)).astype(np.float32)

    def weights(layer):
        return np.asarray(layer.kernel[...]), 0 if layer.bias is None else np.asarray(layer.bias[...])

    def linear(layer, x):
        kernel, bias = weights(layer)
        return x @ kernel + bias

    def norm(layer, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...])

    query, key, value = np.split(linear(block.project, norm(block.norm, x)), 3, axis=-1)
    mixed = np.zeros_like(x)
    for head in (slice(0, 4), slice(4, 8)):
        q, k = (np.asarray(rotated(jnp.asarray(part[:, :, None, head])))[:, :, 0] for part in (query, key))
        score = q @ k.transpose(0, 2, 1) / np.sqrt(4)
        weight = np.exp(score) / np.exp(score).sum(-1, keepdims=True)
        mixed[:, :, head] = weight @ value[:, :, head]
    expected = x + linear(block.join, mixed)
    inner = linear(block.feed.rise, norm(block.feed.norm, expected))
    expected = expected + linear(block.feed.fall, inner / (1 + np.exp(-inner)))
    np.testing.assert_allclose(nnx.jit(lambda b, x: b(x))(block, jnp.asarray(x)), expected, rtol=1e-3, atol=1e-4)


def test_attention_pooling_of_equal_neighbours_keeps_them_and_favours_the_larger():
    pool = AttentionPool(1, dtype="float32", rngs=nnx.Rngs(0))
    found = np.asarray(pool(jnp.asarray([[[3.0], [3.0], [0.0], [1.0], [5.0]]], jnp.float32)))[0, :, 0]
    share = 1 / (1 + np.exp(-2))
    np.testing.assert_allclose(found, [3, share, 5], rtol=1e-6)
