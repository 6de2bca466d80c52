"""A network on many variants, within bounded memory."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from deepwas.inputs import Inputs, VariantInputs
from deepwas.networks.base import Prior

__all__ = ["apply_network", "predict_log_variance"]

_MOST_ROWS = 65536
_MOST_BYTES = 2**28


def apply_network(network: Prior, inputs: Inputs, *, at_once: int | None = None) -> Array:
    """log f, (..., T), what `network(inputs)` is, with the activations of at most `at_once` variants in memory.

    at_once: None for what the network's options say; 0 for all at once.
    Beyond that many, variants go through in equal pieces, one after the other. Under differentiation a piece keeps its
    inputs alone and is computed once more on the way back: a third more operations.
    """
    size = network.chunk if at_once is None else at_once
    leading = inputs.annotations.shape[:-1]
    n = math.prod(leading)
    if not size or n <= size:
        return network(inputs)
    pieces = -(-n // size)
    each = -(-n // pieces)

    def cut(x: Any) -> Array:
        flat = jnp.reshape(x, (n, *x.shape[len(leading) :]))
        filled = jnp.pad(flat, [(0, pieces * each - n), *[(0, 0)] * (flat.ndim - 1)])
        return filled.reshape(pieces, each, *flat.shape[1:])

    graph, state = nnx.split(network)

    # The loop keeps XLA from merging the two computations, which is what prevent_cse is for.
    def of_piece(state: nnx.State, piece: Inputs) -> Array:
        return nnx.merge(graph, state)(piece)

    checkpointed = jax.checkpoint(of_piece, prevent_cse=False)
    found = jax.lax.map(lambda piece: checkpointed(state, piece), jax.tree.map(cut, inputs))
    return found.reshape(pieces * each, -1)[:n].reshape(*leading, -1)


_apply = nnx.jit(apply_network)


def predict_log_variance(network: Prior, inputs: VariantInputs, *, rows: int | None = None) -> NDArray[np.float64]:
    """log f of every variant and trait, (M, T).

    rows: variants read and computed at a time (one compiled shape); None for 65,536, or fewer where that many would
        have more than 256 MB of inputs.
    """
    if rows is None:
        rows = max(1, min(_MOST_ROWS, _MOST_BYTES // max(1, _bytes_each(inputs))))
    found = [(where, np.asarray(_apply(network, piece), np.float64)) for where, piece in inputs.pieces(rows)]
    return np.concatenate([values[: where.stop - where.start] for where, values in found])


def _bytes_each(inputs: VariantInputs) -> int:
    given = (inputs.annotations, inputs.tracks, inputs.sequence)
    return sum(math.prod(x.shape[1:]) * np.dtype(x.dtype).itemsize for x in given if x is not None)
