"""What training changes and what comes of it: parameters, optimiser, averages, the best so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import ArrayLike

from deepwas.parallel import BlockDevices
from deepwas.rendezvous import current
from deepwas.training.objective import Solve

__all__ = ["Average", "Point", "State", "Trained"]


class Point(NamedTuple):
    """A network and noise as arrays.

    graph: the network's static part, the same for all that are built alike.  held: its arrays that are not trained.
    parameters: what is trained: the network's weights, and the log of the noise of each trait, (T,), if it is learned.
    """

    graph: nnx.GraphDef
    held: nnx.State
    parameters: dict[str, Any]

    @classmethod
    def of(cls, network: nnx.Module, log_noise: ArrayLike | None) -> Point:
        """Split a network; log_noise (T,), or a number for one trait, or None if the noise is not trained."""
        graph, weights, held = nnx.split(network, nnx.Param, ...)  # type: ignore[misc]
        parameters: dict[str, Any] = {"network": weights}
        if log_noise is not None:
            parameters["log_noise"] = jnp.atleast_1d(jnp.asarray(log_noise, jnp.float32))
        return cls(graph, held, parameters)

    def network(self) -> Any:
        """The network put together again."""
        return nnx.merge(self.graph, self.parameters["network"], self.held)


class Average(NamedTuple):
    """An exponential moving average of parameters: a_t = d a_(t-1) + (1 - d) p_t from a_0 = 0, after `count` updates.

    a_t / (1 - d^t) is the weighted mean of what was seen, free of the start (Kingma & Ba 2015).
    """

    moment: Any
    count: Any

    @classmethod
    def start(cls, parameters: Any) -> Average:
        """Before any update."""
        return cls(jax.tree.map(jnp.zeros_like, parameters), jnp.zeros((), jnp.int32))

    def updated(self, parameters: Any, decay: float) -> Average:
        """With one more set of parameters seen."""
        return Average(optax.tree.update_moment(parameters, self.moment, decay, 1), self.count + 1)

    def value(self, parameters: Any, decay: float) -> Any:
        """The average, or `parameters` before any update."""
        found = optax.tree.bias_correction(self.moment, decay, jnp.maximum(self.count, 1))
        return jax.tree.map(lambda mean, now: jnp.where(self.count > 0, mean, now), found, parameters)


@dataclass
class Trained:
    """The outcome of one training run.

    start: the constant prior it started from.  best: at the step with the best validation log-likelihood.
    noises: sigma2 of best, of each trait.  best_step, last_step: 0 is the start.
    validation_gain: over the start, in nats.
    events: what the solver had to change, and why the run stopped.
    learning_rate: the peak.  waiting: share of the time of steps in which there was no input, None without steps.
    """

    start: Point
    best: Point
    noises: tuple[float, ...]
    best_step: int
    last_step: int
    validation_gain: float
    events: list[str]
    learning_rate: float = float("nan")
    waiting: float | None = None

    @property
    def noise(self) -> float:
        """sigma2, the mean over traits."""
        return sum(self.noises) / len(self.noises)


@dataclass
class State:
    """What changes while training, and is checkpointed.

    average: of the parameters, or None where none is kept.  best: the parameters judged best, averaged if they are.
    solves: how blocks of each shape are solved.  events: with the step at which they came.
    """

    parameters: dict[str, Any]
    optimiser: Any
    best: dict[str, Any]
    solves: list[Solve]
    average: Average | None = None
    best_value: float = 0.0
    best_step: int = 0
    step: int = 0
    events: list[tuple[int, str]] = field(default_factory=list)

    @property
    def _trees(self) -> tuple[str, ...]:
        return ("parameters", "optimiser", "best", *(() if self.average is None else ("average",)))

    def tree(self) -> dict[str, Any]:
        """Plain lists of arrays, so that a checkpoint's layout does not hang on the classes of Flax and Optax."""
        tree: dict[str, Any] = {name: jax.tree.leaves(getattr(self, name)) for name in self._trees}
        tree["solves"] = np.array([[s.solver == "cholesky", s.max_steps, s.rank] for s in self.solves], dtype=np.int32)
        return tree

    def restore(self, step: int, tree: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        for name in self._trees:
            structure = jax.tree.structure(getattr(self, name))
            setattr(self, name, jax.tree.unflatten(structure, [jnp.asarray(x) for x in tree[name]]))
        self.step = step
        for b, (exact, steps, rank) in enumerate(np.asarray(tree["solves"]).tolist()):
            solver: Literal["cholesky", "cg"] = "cholesky" if exact else "cg"
            self.solves[b] = replace(self.solves[b], solver=solver, max_steps=steps, rank=rank)

    def spread(self, devices: BlockDevices) -> None:
        """Put the arrays on all devices; every process takes over the state of process 0, which may have resumed."""
        plain = ("best_value", "best_step", "step", "events")
        first = current().from_first(
            "the state of training",
            {name: getattr(self, name) for name in plain} | {"solves": [asdict(s) for s in self.solves]},
        )
        self.solves = [Solve(**content) for content in first.pop("solves")]
        for name, value in first.items():
            setattr(self, name, value)
        for name, tree in zip(
            self._trees, devices.of_first(tuple(getattr(self, name) for name in self._trees)), strict=True
        ):
            setattr(self, name, tree)
