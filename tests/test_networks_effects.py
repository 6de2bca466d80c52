"""Options that make effects readable: signs, sparsity, allele frequency, bounds; and several traits on one trunk."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from deepwas.errors import InputError
from deepwas.networks import add_trait, centre_heterozygosity, make_network, trunk_labels
from deepwas.networks.layers import SOFTPLUS_ONE, log_softplus
from tests.zoo import NAMES, P, fitted, inputs, made, options, sizes, stirred

FORWARD = nnx.jit(lambda network, x: network(x))
SIGNED = {"monotone": ("conserved:+", "distance:-")}


@pytest.mark.parametrize("kind", ["linear", "softplus", "monotone"])
def test_monotone_networks_are_monotone(kind):
    network = stirred(made(kind, **SIGNED), size=1.0)
    x = inputs(kind, (400,)).annotations
    more = jnp.abs(inputs(kind, (400,), seed=1).annotations)
    base = np.asarray(FORWARD(network, inputs(kind, (400,))))

    def change(column):
        moved = inputs(kind, (400,))._replace(annotations=x.at[:, column].add(more[:, column]))
        return np.asarray(FORWARD(network, moved)) - base

    assert change(0).min() > -1e-5
    assert change(1).max() < 1e-5
    assert change(0).max() > 0.1
    assert change(1).min() < -0.1
    if kind == "monotone":  # the free one does either
        assert change(2).min() < -0.01 < 0.01 < change(2).max()


def test_a_weight_of_the_wrong_sign_stays_at_zero_and_one_of_the_right_sign_is_found():
    x = inputs("linear", (300,))
    target = x.annotations @ jnp.asarray([0.7, 0.5, -0.4], jnp.float32)
    network = fitted(made("linear", (0.0,), **SIGNED), x, target, steps=300, rate=0.02)
    free = jnp.concatenate([x.annotations[:, ::2], jnp.ones((300, 1), jnp.float32)], axis=1)
    best = np.linalg.lstsq(np.asarray(free), np.asarray(target))[0]
    np.testing.assert_allclose(network.output.weights()[:, 0], [best[0], 0, best[1]], atol=0.02)


def test_a_monotone_mlp_fits_what_is_neither_convex_nor_concave():
    x = inputs("monotone", (300,))
    target = jnp.tanh(2 * x.annotations[:, 0]) - 0.5 * jnp.tanh(2 * x.annotations[:, 1]) + x.annotations[:, 2] ** 2 / 4
    network = fitted(made("monotone", (0.0,), hidden=(12, 12)), x, target, steps=400, rate=0.02)
    error = FORWARD(network, x)[:, 0] - target
    assert 1 - float(error.var() / target.var()) > 0.9


def test_names_of_signs_are_checked():
    with pytest.raises(InputError, match=r"'conserve', which is no annotation\. Did you mean conserved"):
        made("linear", monotone=("conserve:+",))
    with pytest.raises(InputError, match="'conserved:missing', which is no annotation"):  # there is no such column
        made("linear", monotone=("conserved:missing:+",))


@pytest.mark.parametrize("kind", ["linear", "mlp", "residual"])
def test_the_penalty_is_the_group_lasso(kind):
    network = stirred(made(kind, (-9.0, -8.0), sparse=0.5))
    weights = np.asarray(network.first_weights())
    assert weights.shape[0] == P
    assert float(network.penalty()) == pytest.approx(0.5 * np.linalg.norm(weights, axis=1).sum(), rel=1e-2)
    assert float(made(kind).penalty()) == 0


def test_sparse_effects_are_found():
    x = inputs("linear", (300,))
    noise = jnp.asarray(np.random.default_rng(5).normal(size=300), jnp.float32)
    target = x.annotations[:, 1] + 0.3 * noise
    norms = np.asarray(fitted(made("linear", (0.0,), sparse=0.2), x, target, steps=300, rate=0.02).annotation_norms())
    assert norms[1] > 0.8
    assert norms[[0, 2]].max() < 0.01


def test_f_follows_heterozygosity_to_the_power_of_one_plus_alpha():
    x = inputs("mlp", (50,))
    network, plain = (stirred(made("mlp", maf_alpha=alpha)) for alpha in (-0.38, None))
    ratio = np.exp(np.asarray(FORWARD(network, x) - FORWARD(plain, x)))[:, 0]
    heterozygosity = np.exp(np.asarray(x.log_heterozygosity))
    np.testing.assert_allclose(ratio, (heterozygosity / 0.32) ** 0.62, rtol=1e-4)


@pytest.mark.parametrize("alpha", [-0.38, 0.0, "learned"])
def test_centred_networks_start_with_the_heritability_of_the_constant_prior(alpha):
    network = made("linear", (-9.0,), maf_alpha=alpha)
    x = inputs("linear", (500,))
    centre_heterozygosity(network, np.asarray(x.log_heterozygosity))
    assert float(jnp.exp(FORWARD(network, x)).mean()) == pytest.approx(np.exp(-9), rel=1e-5)
    if alpha == "learned":
        np.testing.assert_allclose(network.frequency.centre[...], np.mean(x.log_heterozygosity), rtol=1e-5)


def test_alpha_is_learned_for_each_trait():
    network = made("linear", (0.0, 0.0), maf_alpha="learned")
    x = inputs("linear", (200,))
    centre_heterozygosity(network, np.asarray(x.log_heterozygosity))
    network = fitted(network, x, 0.6 * (x.log_heterozygosity - x.log_heterozygosity.mean()), steps=200, rate=0.02)
    np.testing.assert_allclose(network.frequency.alpha[...], [-0.4, -1.0], atol=0.02)
    with pytest.raises(InputError, match="1 values that are not finite"):
        centre_heterozygosity(network, np.array([-1.0, -np.inf]))


def test_log_f_keeps_within_its_bound():
    network = made("mlp", (-9.0,), bound=2.0)
    network.output.bias[...] = jnp.array([100.0], jnp.float32)
    assert np.asarray(network(inputs("mlp"))).max() == pytest.approx(-7.0)
    small = made("mlp", (-9.0,))
    small.output.bias[...] = jnp.array([1.0], jnp.float32)
    np.testing.assert_allclose(small(inputs("mlp")), -9 + 7 * np.tanh(1 / 7), rtol=1e-6)
    for kind, more in (("mlp", {"bound": 0.0}), ("linear", {})):
        free = made(kind, (-9.0,), **more)
        free.output.bias[...] = jnp.array([100.0], jnp.float32)
        np.testing.assert_allclose(free(inputs(kind)), 91.0)


def test_log_softplus_is_right_where_float32_would_say_log_of_zero():
    x = jnp.asarray([-200.0, -30.0, -10.5, -9.5, 0.0, SOFTPLUS_ONE, 30.0], jnp.float32)
    exact = np.log(np.log1p(np.exp(np.asarray(x, np.float64))))
    np.testing.assert_allclose(log_softplus(x), exact, rtol=2e-6, atol=2e-7)
    slope = jax.vmap(jax.grad(log_softplus))(x)
    np.testing.assert_allclose(slope[:2], 1, rtol=1e-6)
    assert np.isfinite(np.asarray(slope)).all()


@pytest.mark.parametrize("kind", ["linear", "monotone", "residual"])
def test_a_trait_more_leaves_the_others_as_they_are(kind):
    network = stirred(made(kind, (-9.0, -8.0), maf_alpha="learned"))
    before = np.asarray(FORWARD(network, inputs(kind)))
    grown = add_trait(network, -6.0)
    after = np.asarray(FORWARD(grown, inputs(kind)))
    np.testing.assert_allclose(after[:, :2], before, rtol=1e-6)
    np.testing.assert_allclose(after[:, 2], -6, atol=1.1e-5)
    np.testing.assert_array_equal(FORWARD(network, inputs(kind)), before)
    # What is saved of it fits the network that its options make.
    again = make_network(options(kind, maf_alpha="learned"), sizes(kind), [-9.0, -8.0, -6.0], seed=9, names=NAMES)
    nnx.update(again, nnx.state(grown))
    np.testing.assert_allclose(FORWARD(again, inputs(kind)), after, rtol=1e-6)


def test_the_trunk_can_be_frozen():
    network = stirred(made("residual", (-9.0,), maf_alpha="learned"))
    parameters = {"network": nnx.state(network, nnx.Param), "log_noise": jnp.zeros((), jnp.float32)}
    optimiser = optax.multi_transform({"trunk": optax.set_to_zero(), "head": optax.sgd(1.0)}, trunk_labels)
    ones = jax.tree.map(jnp.ones_like, parameters)
    updates, _ = optimiser.update(ones, optimiser.init(parameters), parameters)
    moved = {jax.tree_util.keystr(k).removesuffix(".value") for k, v in jax.tree.leaves_with_path(updates) if v.any()}
    head = {f"['network']['output']['{x}']" for x in ("kernel", "bias")}
    assert moved == head | {"['network']['frequency']['alpha']", "['log_noise']"}
    assert set(jax.tree.leaves(trunk_labels(nnx.state(made("linear"), nnx.Param)))) == {"head"}
