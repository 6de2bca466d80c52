"""The training loop of one network on one assignment of blocks.

AdamW with warm-up, cosine decay and clipping, on minibatches of blocks of one shape; early stopping on the validation
blocks, whose log-likelihood is always computed exactly where k allows it. Everything random is drawn from the seed and
the step, so that a resumed run repeats an uninterrupted one.

With several devices (see `deepwas.parallel`) the blocks of each batch are split over them; with several processes, each
runs this same loop and takes the same decisions, and one of them keeps the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from deepwas.errors import DeepwasError, InputError
from deepwas.files import read_json, write_json
from deepwas.inputs import VariantInputs
from deepwas.likelihood.api import choose_solver
from deepwas.options import FitOptions
from deepwas.parallel import BlockDevices
from deepwas.rendezvous import current
from deepwas.training.checkpoints import Checkpoints, Metrics
from deepwas.training.objective import Solve, ld_score_terms, likelihood_terms
from deepwas.training.source import Batch, BlockSource, Minibatch

__all__ = ["Point", "Trained", "Trainer"]

_EXACT_UP_TO = 2048
_EVALUATION = Solve("cg", probes=64, rtol=1e-4, max_steps=200)
_MOST_STEPS = 64
_RANK = 32  # of the preconditioner, once the most steps are too few
_CHECKPOINT_EVERY = 5  # evaluations
_TRUSTED = 10.0  # times rtol: an update whose solve has a greater residual is left out


class Point(NamedTuple):
    """A network and noise as arrays.

    graph: the network's static part, the same for all that are built alike.  held: its arrays that are not trained.
    parameters: what is trained: the network's weights, and the log of the noise if it is learned.
    """

    graph: nnx.GraphDef
    held: nnx.State
    parameters: dict[str, Any]

    @classmethod
    def of(cls, network: nnx.Module, log_noise: float | None) -> Point:
        """Split a network; log_noise None if the noise is not trained."""
        graph, weights, held = nnx.split(network, nnx.Param, ...)  # type: ignore[misc]
        parameters: dict[str, Any] = {"network": weights}
        if log_noise is not None:
            parameters["log_noise"] = jnp.asarray(log_noise, jnp.float32)
        return cls(graph, held, parameters)

    def network(self) -> Any:
        """The network put together again."""
        return nnx.merge(self.graph, self.parameters["network"], self.held)


@dataclass
class Trained:
    """The outcome of one training run.

    start: the constant prior it started from.  best: at the step with the best validation log-likelihood.
    noise: sigma2 of best.  best_step, last_step: 0 is the start.  validation_gain: over the start, in nats.
    events: what the solver had to change, and why the run stopped.
    """

    start: Point
    best: Point
    noise: float
    best_step: int
    last_step: int
    validation_gain: float
    events: list[str]


@dataclass
class _State:
    """What changes while training, and is checkpointed."""

    parameters: dict[str, Any]
    optimiser: Any
    best: dict[str, Any]
    solves: list[Solve]
    best_value: float = 0.0
    best_step: int = 0
    step: int = 0
    events: list[tuple[int, str]] = field(default_factory=list)

    _TREES = ("parameters", "optimiser", "best")

    def tree(self) -> dict[str, Any]:
        """Plain lists of arrays, so that a checkpoint's layout does not hang on the classes of Flax and Optax."""
        tree: dict[str, Any] = {name: jax.tree.leaves(getattr(self, name)) for name in self._TREES}
        tree["solves"] = np.array([[s.solver == "cholesky", s.max_steps, s.rank] for s in self.solves], dtype=np.int32)
        return tree

    def restore(self, step: int, tree: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        for name in self._TREES:
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
        trees = devices.of_first(tuple(getattr(self, name) for name in self._TREES))
        self.parameters, self.optimiser, self.best = trees


class Trainer:
    """Compiled steps over the blocks of one source; `train` runs them for one network and assignment of blocks.

    n_panel: people in the LD panel, for the LD score objective.
    block_weights: (n_blocks,) >= 0, factors on the blocks' log-likelihoods in training, or None for 1. A weight common
        to all blocks changes nothing. Evaluation knows no weights.
    devices: over which batches are split; the source must place them there. By default one device.
    """

    def __init__(
        self,
        source: BlockSource,
        options: FitOptions,
        *,
        n_panel: int,
        block_weights: NDArray[np.floating] | None = None,
        devices: BlockDevices | None = None,
    ):
        self.options = options
        self.devices = devices or BlockDevices(jax.local_devices()[:1])
        self.n_panel = n_panel
        self.source = source
        count = len(self.source.eigenvalues)
        weights = np.ones(count) if block_weights is None else np.asarray(block_weights, np.float64)
        if weights.shape != (count,) or not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
            raise InputError(f"block_weights must be {count} finite numbers >= 0, one per LD block and not all 0.")
        self.block_weights = weights
        self.mean_k = float(np.sum(weights * self.source.eigenvalues) / np.count_nonzero(weights))
        self.schedule = self._make_schedule()
        self.optimiser = optax.chain(
            optax.clip_by_global_norm(options.clip_norm),
            optax.adamw(self.schedule, weight_decay=options.weight_decay, mask=_decays),
        )
        self._update = self.devices.compile(self._update_step, static_argnames="solve")
        self._values = self.devices.compile(self._block_values, static_argnames="solve")

    def _first_solve(self, k: int, m: int) -> Solve:
        chosen = self.options.solver
        if chosen == "auto":
            chosen = choose_solver(k, m, self.options.probes)
        return Solve("cg" if chosen == "cg" else "cholesky", probes=self.options.probes, rtol=self.options.rtol)

    # --- compiled pieces ---

    def _noise(self, parameters: dict[str, Any]) -> Array:
        fixed = self.options.noise
        return jnp.exp(parameters["log_noise"]) if fixed is None else jnp.asarray(fixed, jnp.float32)

    def _update_step(
        self,
        point: Point,
        state: Any,
        batch: Batch,
        step: Any,
        constant: Any,
        *,
        solve: Solve,
    ) -> tuple[Any, Any, Array, Array, Array]:
        """One optimiser step on a batch; `step` gives the probes.

        The gradient of a solve that is far from converged can be wrong by orders of magnitude, and one such step can
        send the network where every solve fails. So it is not taken: parameters and state stay as they were.
        """
        # Probes are drawn afresh at each step: a network fits the error of signs that stay the same, loses held-out
        # likelihood by it, and drifts to priors that CG cannot solve.
        key = jax.random.fold_in(jax.random.key(self.options.seed), step)
        measure = self.devices.spread(partial(self._measure, solve=solve), False, True, False, False)
        value, residual, gradient = measure(point, batch, jax.random.key_data(key), constant)
        updates, moved = self.optimiser.update(gradient, state, point.parameters)
        trusted = (residual <= _TRUSTED * self.options.rtol) & jnp.isfinite(value)
        parameters, state = jax.tree.map(
            lambda new, old: jnp.where(trusted, new, old),
            (optax.apply_updates(point.parameters, updates), moved),
            (point.parameters, state),
        )
        return parameters, state, value, residual, optax.tree.norm(gradient)

    def _measure(
        self, point: Point, batch: Batch, key: Array, constant: Array, *, solve: Solve
    ) -> tuple[Array, Array, Any]:
        """Loss, greatest residual and gradient of a batch; on each device from its own blocks, then put together."""
        norm = self.options.batch_blocks * self.mean_k
        key = jax.random.wrap_key_data(key)

        def loss(parameters: dict[str, Any]) -> tuple[Array, Array]:
            f = jnp.exp(point._replace(parameters=parameters).network()(batch.inputs)[..., 0])
            noise = self._noise(parameters)
            if self.options.objective == "ld-score":
                values, residual = ld_score_terms(
                    batch.blocks, f, noise, n_panel=self.n_panel, constant=(constant[0], constant[1])
                )
            else:
                values, residual = likelihood_terms(batch.blocks, f, noise, key, solve)
            return -jnp.sum(values * batch.weight) / norm, jnp.max(residual)

        (value, residual), gradient = jax.value_and_grad(loss, has_aux=True)(point.parameters)
        value, gradient = self.devices.total((value, gradient))
        return value, self.devices.greatest(residual), gradient

    def _block_values(self, point: Point, batch: Batch, *, solve: Solve) -> tuple[Array, Array]:
        """Log-likelihoods and residuals of the blocks of a batch."""

        def values(point: Point, batch: Batch) -> tuple[Array, Array]:
            f = jnp.exp(point.network()(batch.inputs)[..., 0])
            key = jax.random.key(self.options.seed + 1)
            return self.devices.joined(likelihood_terms(batch.blocks, f, self._noise(point.parameters), key, solve))

        return self.devices.spread(values, False, True)(point, batch)

    # --- what they are used for ---

    def _make_schedule(self) -> optax.Schedule:
        """Learning rate by step: linear warm-up, then cosine decay to 5% of the peak."""
        o = self.options
        warm = max(1, round(o.warmup * o.steps))
        return optax.warmup_cosine_decay_schedule(
            0.0, o.peak_learning_rate, warm, max(o.steps, warm + 1), 0.05 * o.peak_learning_rate
        )

    def log_likelihood(self, point: Point, inputs: VariantInputs, which: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-likelihood of the blocks `which`, in their order, in nats.

        inputs: of the store's variants.
        By Cholesky up to k of 2,048, beyond by CG with 64 probes that are the same for every model; what does not
        converge there is solved with the largest entries preconditioned, and at last by Cholesky.
        """
        point = self.devices.same(point)
        todo = [
            x for b, members in enumerate(self.source.members) for x in self._split(b, members[np.isin(members, which)])
        ]
        found: dict[int, float] = {}
        for rung in (_EVALUATION, replace(_EVALUATION, rank=_RANK), Solve("cholesky")):
            measured: list[tuple[Minibatch, Array, Array]] = []
            with closing(self.source.batches(todo, inputs)) as stream:
                for item, batch in stream:
                    exact = self.source.shapes[item.bucket][0] <= _EXACT_UP_TO
                    solve = Solve("cholesky") if exact else rung
                    measured.append((item, *self._values(point, batch, solve=solve)))
                    _await_earlier(measured)
            todo = []
            for item, values, residual in measured:
                if float(np.max(residual)) <= _EVALUATION.rtol:
                    found.update(zip(item.members.tolist(), np.asarray(values).tolist(), strict=True))
                else:
                    todo.append(item)
            if not todo:
                break
        return np.array([found[i] for i in which.tolist()], dtype=np.float64)

    def batches(self, train: NDArray[np.int64], epoch: int, rotation: int) -> list[Minibatch]:
        """The minibatches of one epoch, in random order."""
        rng = np.random.default_rng([self.options.seed, rotation, epoch])
        out: list[Minibatch] = []
        for b, members in enumerate(self.source.members):
            out += self._split(b, rng.permutation(members[np.isin(members, train)]))
        return [out[i] for i in rng.permutation(len(out))]

    def _split(self, bucket: int, members: NDArray[np.int64]) -> list[Minibatch]:
        """Blocks of one shape, in batches of equal size; the last is filled up by repetition, at weight 0."""
        size = self.options.batch_blocks
        out = []
        for start in range(0, len(members), size):
            some = members[start : start + size]
            filled = np.resize(some, self.devices.padded(size))
            weight = np.where(np.arange(len(filled)) < len(some), self.block_weights[filled], 0)
            out.append(Minibatch(bucket, filled, weight.astype(np.float32)))
        return out

    def _plan(self, train: NDArray[np.int64], rotation: int, first: int) -> Iterator[Minibatch]:
        """The minibatches from step `first` to the last, epoch after epoch."""
        order = self.batches(train, 0, rotation)
        for step in range(first, self.options.steps):
            epoch, position = divmod(step, len(order))
            if position == 0 or step == first:
                order = self.batches(train, epoch, rotation)
            yield order[position]

    def train(
        self,
        network: Any,
        noise: float,
        inputs: VariantInputs,
        train: NDArray[np.int64],
        validation: NDArray[np.int64],
        *,
        rotation: int,
        constant_variance: float,
        folder: Path | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Trained:
        """Train from the constant prior; resume from the newest checkpoint in `folder`, if there is one.

        network, noise: where to start.  inputs: of the store's variants.  train, validation: block indices.
        constant_variance: effect variance of the constant prior, for the weights of the LD score objective.
        """
        o = self.options
        start = self.devices.of_first(Point.of(network, float(np.log(noise)) if o.noise is None else None))
        origin = self.log_likelihood(start, inputs, validation)
        state = _State(
            start.parameters,
            self.optimiser.init(self.devices.local(start.parameters)),
            start.parameters,
            [self._first_solve(*shape) for shape in self.source.shapes],
        )
        constant = self.devices.of_first(jnp.asarray([constant_variance, noise], jnp.float32))
        taken: list[tuple[int, Array, Array, Array]] = []
        with ExitStack() as stack:
            journal = stack.enter_context(Journal(folder)) if folder is not None else None
            if journal is not None:
                journal.resume(state)
            state.spread(self.devices)
            stream = self.source.batches(self._plan(train, rotation, state.step), inputs)
            stack.enter_context(closing(stream))
            while state.step < o.steps and not self._stop(state):
                item, batch = next(stream)
                state.parameters, state.optimiser, *measured = self._update(
                    start._replace(parameters=state.parameters),
                    state.optimiser,
                    batch,
                    np.uint32(state.step),
                    constant,
                    solve=state.solves[item.bucket],
                )
                state.step += 1
                taken.append((item.bucket, *measured))
                _await_earlier(taken)
                if state.step % o.evaluate_every and state.step < o.steps:
                    continue
                point = start._replace(parameters=state.parameters)
                gain = float(np.sum(self.log_likelihood(point, inputs, validation) - origin))
                row = self._evaluate(state, taken, gain)
                taken = []
                if journal is not None:
                    row["validation_log_likelihood"] = gain + float(origin.sum())
                    due = state.step % (_CHECKPOINT_EVERY * o.evaluate_every) == 0
                    journal.add(state, row, keep=due or state.step == o.steps or self._stop(state))
                if progress is not None:
                    progress(o.steps if self._stop(state) else state.step, o.steps)
        events = [text for _, text in state.events]
        if self._stop(state):
            events.append(
                f"stopped at step {state.step}: no better validation log-likelihood since step {state.best_step}"
            )
        return Trained(
            start=self.devices.local(start),
            best=self.devices.local(start._replace(parameters=state.best)),
            noise=float(self._noise(self.devices.local(state.best))),
            best_step=state.best_step,
            last_step=state.step,
            validation_gain=state.best_value,
            events=events,
        )

    # --- watching ---

    def _stop(self, state: _State) -> bool:
        """Early stopping: no better validation log-likelihood for `patience` evaluations."""
        return state.step - state.best_step >= self.options.patience * self.options.evaluate_every

    def _evaluate(self, state: _State, taken: Sequence[tuple[int, Array, Array, Array]], gain: float) -> dict[str, Any]:
        """Judge the updates since the last evaluation, keep the best parameters, and return the row of metrics."""
        o, step = self.options, state.step
        bucket = np.array([b for b, *_ in taken])
        losses, residuals, norms = np.array([[float(x) for x in measured] for _, *measured in taken]).T
        trusted = residuals <= _TRUSTED * o.rtol
        if not trusted.all():
            text = (
                f"step {step}: {int((~trusted).sum())} of the last {len(trusted)} updates left out: the residual of "
                f"their solve was above {_TRUSTED * o.rtol:g}"
            )
            state.events.append((step, text))
        if not np.isfinite(losses[trusted]).all():
            raise DeepwasError(
                f"training diverged before step {step}: the loss is not finite. Use a lower learning rate"
                f" (now {o.peak_learning_rate:g}), or solver 'cholesky'."
            )
        if gain > state.best_value:
            state.best, state.best_value, state.best_step = state.parameters, gain, step
        row = {
            "step": step,
            "train_loss": float(losses[trusted].mean()) if trusted.any() else float("nan"),
            "validation_gain": gain,
            "noise": float(self._noise(self.devices.local(state.parameters))),
            "learning_rate": float(self.schedule(step - 1)),
            "gradient_norm": float(norms.mean()),
            "residual": float(residuals.max()),
            "solver": "+".join(sorted({s.solver for s in state.solves})),
        }
        for b in np.unique(bucket):
            self._raise_steps(state, int(b), float(residuals[bucket == b].max()))
        return row

    def _raise_steps(self, state: _State, b: int, residual: float) -> None:
        """For a shape whose residual was too large: more CG steps, then the preconditioner, then Cholesky."""
        solve = state.solves[b]
        if solve.solver != "cg" or residual <= solve.rtol:
            return
        k, m = self.source.shapes[b]
        if solve.max_steps < _MOST_STEPS:
            steps = min(2 * solve.max_steps, _MOST_STEPS)
            state.solves[b] = replace(solve, max_steps=steps)
            what = f"CG steps raised from {solve.max_steps} to {steps}"
        elif solve.rank < _RANK:
            state.solves[b] = replace(solve, rank=_RANK)
            what = (
                f"{solve.max_steps} CG steps were too few: the {_RANK} largest effects are preconditioned from here on"
            )
        else:
            state.solves[b] = replace(solve, solver="cholesky")
            what = f"{solve.max_steps} preconditioned CG steps were too few: Cholesky from here on"
        text = f"step {state.step}: blocks of k = {k}, m = {m}: residual {residual:.1e} > {solve.rtol:g}; {what}"
        state.events.append((state.step, text))


class Journal:
    """A training run on disk: metrics, events and checkpoints, so that it survives interruption at any moment.

    Metrics and events are written before the checkpoint of their step; what is newer than the newest checkpoint is cut
    off on resuming, and made again.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.metrics: Metrics | None = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.metrics is not None:
            self.metrics.close()
        self.checkpoints.close()

    def resume(self, state: _State) -> None:
        """Bring `state` to the newest checkpoint, if there is one, and open the metrics after it."""
        latest = self.checkpoints.latest()
        if latest is not None:
            state.restore(latest, self.checkpoints.restore(latest, state.tree()))
            events = read_json(self.folder / "events.json", "the events of a training run")
            state.events = [(step, text) for step, text in events if step <= latest]
        self.metrics = Metrics(self.folder / "metrics.csv", resume_after=latest)
        for step, gain in self.metrics.gains:
            if gain > state.best_value:
                state.best_value, state.best_step = gain, step

    def add(self, state: _State, row: dict[str, Any], *, keep: bool) -> None:
        """Write one evaluation and, to keep it, the checkpoint that makes it permanent."""
        assert self.metrics is not None
        self.metrics.add(**row)
        if keep:
            write_json(self.folder / "events.json", state.events)
            self.checkpoints.save(state.step, state.tree())


def _await_earlier(measured: Sequence[tuple[Any, ...]]) -> None:
    """Wait for the step before the last, so that steps sent to the device do not pile up with their batches."""
    if len(measured) > 1:
        jax.block_until_ready(measured[-2][1])


def _decays(parameters: Any) -> Any:
    """Which parameters AdamW shrinks: weights, not biases, nor the noise."""
    return jax.tree.map(lambda x: x.ndim >= 2, parameters)
