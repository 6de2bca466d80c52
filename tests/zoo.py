"""Small networks of every kind and the inputs they read, for tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from deepwas.inputs import Inputs, InputSizes
from deepwas.network_options import NetworkOptions
from deepwas.networks import make_network

P, BINS, TRACKS, BASES = 3, 9, 2, 14
NAMES = ("conserved", "distance", "open")

SMALL = {
    "linear": {"network": "linear"},
    "softplus": {"network": "softplus"},
    "mlp": {"network": "mlp", "hidden": (6,)},
    "monotone": {"network": "mlp", "hidden": (6, 6), "monotone": ("conserved:+", "distance:-")},
    "residual": {"network": "residual", "width": 6, "depth": 2},
    "cnn": {"network": "cnn", "hidden": (6,), "width": 4, "depth": 2, "kernel": 3},
    "enformer": {"network": "enformer", "hidden": (), "width": 4, "depth": 1, "heads": 2, "kernel": 3},
}
WINDOWS = {"cnn": ("sequence",), "enformer": ("tracks",)}
BOTH = ("tracks", "sequence")


def options(kind, **more):
    return NetworkOptions(**(SMALL[kind] | more))


def sizes(kind, windows=None):
    given = WINDOWS.get(kind, ()) if windows is None else windows
    return InputSizes(P, True, (BINS, TRACKS) if "tracks" in given else None, BASES if "sequence" in given else None)


def made(kind, log_base=(-9.0,), *, windows=None, seed=0, **more):
    return make_network(options(kind, **more), sizes(kind, windows), np.array(log_base), seed=seed, names=NAMES)


def inputs(kind, shape=(7,), *, windows=None, seed=0):
    rng = np.random.default_rng(seed)
    of = sizes(kind, windows)
    return Inputs(
        jnp.asarray(rng.normal(size=(*shape, P)), jnp.float32),
        jnp.asarray(np.log(rng.uniform(0.02, 0.5, shape)), jnp.float32),
        None if of.tracks is None else jnp.asarray(rng.normal(size=(*shape, BINS, TRACKS)), jnp.float16),
        None if of.sequence is None else jnp.asarray(rng.integers(0, 5, (*shape, 2, BASES)), jnp.uint8),
    )


def stirred(network, *, size=0.3, seed=1):
    """The network with all parameters moved, so that its last layer is not zero."""
    graph, weights, held = nnx.split(network, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(weights)
    rng = np.random.default_rng(seed)
    moved = [jnp.asarray(np.asarray(x) + size * rng.normal(size=x.shape), x.dtype) for x in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, moved), held)


def differentiated(network, function=lambda network, given: network(given)):
    """(network like this one, inputs, weight of each output) -> values, {path: gradient of their weighted sum}."""
    graph, _, held = nnx.split(network, nnx.Param, ...)

    @jax.jit
    def run(weights, given, weight):
        def total(weights):
            found = function(nnx.merge(graph, weights, held), given)
            return jnp.sum(found * weight), found

        return jax.value_and_grad(total, has_aux=True)(weights)

    def of(network, given, weight):
        (_, found), gradient = run(nnx.state(network, nnx.Param), given, weight)
        paths = {
            jax.tree_util.keystr(k).removesuffix(".value"): np.asarray(v)
            for k, v in jax.tree.leaves_with_path(gradient)
        }
        return np.asarray(found), paths

    return of


def fitted(network, given, target, *, steps, rate):
    """The network after `steps` steps of Adam on the mean squared error of log f, and its penalty."""
    graph, weights, held = nnx.split(network, nnx.Param, ...)
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def loss(weights):
        now = nnx.merge(graph, weights, held)
        return jnp.mean((now(given)[..., 0] - target) ** 2) + now.penalty()

    @jax.jit
    def run(weights):
        def step(carry, _):
            weights, state = carry
            updates, state = optimiser.update(jax.grad(loss)(weights), state)
            return (optax.apply_updates(weights, updates), state), None

        return jax.lax.scan(step, (weights, optimiser.init(weights)), length=steps)[0][0]

    return nnx.merge(graph, run(weights), held)
