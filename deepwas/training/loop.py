"""The training loop of one network on one assignment of blocks.

AdamW with warm-up, cosine decay and clipping, on minibatches of blocks of one shape; early stopping on the validation
blocks, whose log-likelihood is always computed exactly where k allows it. Everything random is drawn from the seed and
the step, so that a resumed run repeats an uninterrupted one.

With several devices (see `deepwas.parallel`) the blocks of each batch are split over them; with several processes, each
runs this same loop and takes the same decisions, and one of them keeps the journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from numpy.typing import ArrayLike, NDArray

from deepwas.errors import DeepwasError, InputError
from deepwas.files import read_json, write_json
from deepwas.inputs import VariantInputs
from deepwas.likelihood.api import choose_solver
from deepwas.options import FitOptions
from deepwas.parallel import BlockDevices
from deepwas.rendezvous import current
from deepwas.training.journal import Journal
from deepwas.training.objective import Solve
from deepwas.training.range_test import RangeTest, range_test
from deepwas.training.source import Batch, Minibatch
from deepwas.training.state import Average, Point, State, Trained
from deepwas.training.steps import TRUSTED, Steps, Total
from deepwas.training.trait_sources import Source

__all__ = ["Point", "Trained", "Trainer"]

_EXACT_UP_TO = 2048
_EVALUATION = Solve("cg", probes=64, rtol=1e-4, max_steps=200)
_MOST_STEPS = 64
_RANK = 32  # of the preconditioner, once the most steps are too few
_CHECKPOINT_EVERY = 5  # evaluations
_RANGE_TEST = "learning_rate.json"
_OTHER_ORDER = 1 << 31  # the epoch from which the range test takes its batches: never one of training


@dataclass
class _Taken:
    """What the steps since the last evaluation measured, still on the device, and their time.

    solved: (shape, residual) of each batch.  steps: (loss, residual, gradient norm) of each step.
    seconds: of the steps.  waited: those in which there was no input and the device had nothing else to do.
    """

    solved: list[tuple[int, Array]] = field(default_factory=list)
    steps: list[tuple[Array, Array, Array]] = field(default_factory=list)
    begun: float = field(default_factory=time.perf_counter)
    waited: float = 0.0

    def next(self, stream: Iterator[tuple[Minibatch, Batch]]) -> tuple[Minibatch, Batch]:
        """The next batch, and the time that its absence cost: an upper limit, as the device may have just finished."""
        begun = time.perf_counter()
        found = next(stream)
        last: Any = self.solved[-1][1] if self.solved else None
        if last is None or last.is_ready():
            self.waited += time.perf_counter() - begun
        return found

    def add(self, bucket: int, residual: Array) -> None:
        """A batch sent to the device; waits for the one before the last, so that batches do not pile up there."""
        self.solved.append((bucket, residual))
        if len(self.solved) > 1:
            jax.block_until_ready(self.solved[-2][1])


class Trainer:
    """Compiled steps over the blocks of one source; `train` runs them for one network and assignment of blocks.

    n_panel: people in the LD panel, for the LD score objective.
    block_weights: (n_blocks,) >= 0, factors on the blocks' log-likelihoods in training, or None for 1. A weight common
        to all blocks changes nothing. Evaluation knows no weights.
    devices: over which batches are split; the source must place them there. By default one device.
    freeze_trunk: train the heads and the noise alone.
    """

    def __init__(
        self,
        source: Source,
        options: FitOptions,
        *,
        n_panel: int,
        block_weights: NDArray[np.floating] | None = None,
        devices: BlockDevices | None = None,
        freeze_trunk: bool = False,
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
        self.rates = _relative_rates(options)
        self.steps = Steps(options, self.devices, n_panel=n_panel, mean_k=self.mean_k, freeze_trunk=freeze_trunk)

    def _first_solve(self, k: int, m: int) -> Solve:
        chosen = self.options.solver
        if chosen == "auto":
            chosen = choose_solver(k, m, self.options.probes)
        return Solve("cg" if chosen == "cg" else "cholesky", probes=self.options.probes, rtol=self.options.rtol)

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
                    measured.append((item, *self.steps.values(point, batch, solve=solve)))
                    if len(measured) > 1:  # batches must not pile up on the device
                        jax.block_until_ready(measured[-2][1])
            todo = []
            for item, values, residual in measured:
                if float(np.max(residual)) <= _EVALUATION.rtol:
                    found.update(zip(item.members.tolist(), np.asarray(values).tolist(), strict=True))
                else:
                    todo.append(item)
            if not todo:
                break
        return np.array([found[i] for i in which.tolist()], dtype=np.float64)

    def batches(self, train: NDArray[np.int64], epoch: int, rotation: int, member: int = 0) -> list[Minibatch]:
        """The minibatches of one epoch, in random order; each network of an ensemble has its own."""
        rng = np.random.default_rng([self.options.seed, rotation, epoch, *([member] if member else [])])
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

    def _plan(self, train: NDArray[np.int64], rotation: int, member: int, first: int) -> Iterator[Minibatch]:
        """The minibatches from step `first` to the last, `accumulate` a step, epoch after epoch."""
        order = self.batches(train, 0, rotation, member)
        each, begun = self.options.accumulate, False
        for number in range(first * each, self.options.steps * each):
            epoch, position = divmod(number, len(order))
            if position == 0 or not begun:
                order, begun = self.batches(train, epoch, rotation, member), True
            yield order[position]

    def train(
        self,
        network: Any,
        noise: ArrayLike,
        inputs: VariantInputs,
        train: NDArray[np.int64],
        validation: NDArray[np.int64],
        *,
        rotation: int,
        constant_variance: ArrayLike,
        folder: Path | None,
        progress: Callable[[int, int], None] | None = None,
        member: int = 0,
        learning_rate: float | None = None,
        tensorboard: bool = False,
    ) -> Trained:
        """Train from the constant prior; resume from the newest checkpoint in `folder`, if there is one.

        network, noise: where to start; noise is a number, or (T,) for T traits.
        inputs: of the store's variants.  train, validation: block indices.
        constant_variance: effect variance of the constant prior, as noise, for the weights of the LD score objective.
        member: number of the network in its ensemble, for the seeds of order and probes.
        learning_rate: the peak; by default what the options say, which may be to find it.
        tensorboard: write the metrics for TensorBoard as well.
        """
        o = self.options
        start = self.devices.of_first(Point.of(network, np.log(noise) if o.noise is None else None))
        origin = self.log_likelihood(start, inputs, validation)
        state = State(
            start.parameters,
            self.steps.optimiser.init(self.devices.local(start.parameters)),
            start.parameters,
            [self._first_solve(*shape) for shape in self.source.shapes],
            None if o.ema is None else Average.start(self.devices.local(start.parameters)),
        )
        priors = [jnp.atleast_1d(jnp.asarray(x, jnp.float32)) for x in (constant_variance, noise)]
        constant = self.devices.of_first(jnp.stack(priors, axis=1))
        key = _key(o.seed if not member else int(np.random.SeedSequence([o.seed, member]).generate_state(1)[0]))
        peak = learning_rate or o.peak_learning_rate
        if peak is None:
            peak = self._find_rate(start, inputs, train, rotation, constant, folder)
        seconds = waited = 0.0
        with ExitStack() as stack:
            journal = None
            if folder is not None:
                journal = stack.enter_context(Journal(folder, tensorboard=tensorboard))
                journal.resume(state)
            state.spread(self.devices)
            stream = self.source.batches(self._plan(train, rotation, member, state.step), inputs)
            stack.enter_context(closing(stream))
            taken = _Taken()
            while state.step < o.steps and not self._stop(state):
                point = start._replace(parameters=state.parameters)
                total: Total | None = None
                for number in range(o.accumulate * state.step, o.accumulate * (state.step + 1)):
                    item, batch = taken.next(stream)
                    found = self.steps.gradient(
                        point, batch, key, np.uint32(number), constant, solve=state.solves[item.bucket]
                    )
                    total = found if total is None else self.steps.sum(total, found)
                    taken.add(item.bucket, found[1])
                assert total is not None
                state.parameters, state.optimiser, state.average, norm = self.steps.move(
                    state.parameters, state.optimiser, state.average, total, np.float32(peak * self.rates[state.step])
                )
                taken.steps.append((total[0], total[1], norm))
                state.step += 1
                if state.step % o.evaluate_every and state.step < o.steps:
                    continue
                jax.block_until_ready(norm)
                passed = time.perf_counter() - taken.begun
                seconds, waited = seconds + passed, waited + taken.waited
                judged = (
                    state.parameters if state.average is None else self.steps.averaged(state.average, state.parameters)
                )
                gain = float(
                    np.sum(self.log_likelihood(start._replace(parameters=judged), inputs, validation) - origin)
                )
                row = self._evaluate(state, judged, taken, gain)
                row |= {"learning_rate": float(peak * self.rates[state.step - 1]), "waiting": taken.waited / passed}
                if journal is not None:
                    row["validation_log_likelihood"] = gain + float(origin.sum())
                    due = state.step % (_CHECKPOINT_EVERY * o.evaluate_every) == 0
                    journal.add(state, row, keep=due or state.step == o.steps or self._stop(state))
                if progress is not None:
                    progress(o.steps if self._stop(state) else state.step, o.steps)
                taken = _Taken()
        events = [text for _, text in state.events]
        if self._stop(state):
            events.append(
                f"stopped at step {state.step}: no better validation log-likelihood since step {state.best_step}"
            )
        return Trained(
            start=self.devices.local(start),
            best=self.devices.local(start._replace(parameters=state.best)),
            noises=tuple(np.asarray(self.steps.noise(self.devices.local(state.best)), np.float64).tolist()),
            best_step=state.best_step,
            last_step=state.step,
            validation_gain=state.best_value,
            events=events,
            learning_rate=peak,
            waiting=waited / seconds if seconds else None,
        )

    def _find_rate(
        self, start: Point, inputs: VariantInputs, train: NDArray[np.int64], rotation: int, constant: Any, folder: Any
    ) -> float:
        """The peak learning rate by a range test on training blocks; kept in `folder`, so that it is made once."""
        kept = None if folder is None else folder / _RANGE_TEST
        known = None
        if kept is not None and kept.exists():
            known = RangeTest(**read_json(kept, "a learning-rate range test"))
        known = current().from_first("the learning rate found", None if known is None else known.chosen)
        if known is not None:
            return float(known)
        solves = [self._first_solve(*shape) for shape in self.source.shapes]
        order = self.batches(train, _OTHER_ORDER, rotation)
        plan = (order[i % len(order)] for i in range(1 << 31))
        key = _key(self.options.seed + 2)
        parameters, average = start.parameters, None
        state = self.devices.of_first(self.steps.optimiser.init(self.devices.local(start.parameters)))
        with closing(self.source.batches(plan, inputs)) as stream:

            def step(number: int, rate: float) -> tuple[float, float]:
                nonlocal parameters, state
                item, batch = next(stream)
                measured = [
                    self.steps.gradient(point, batch, key, np.uint32(number), constant, solve=solves[item.bucket])
                    for point in (start._replace(parameters=parameters), start)
                ]
                (now, *_), (before, *_) = measured
                parameters, state, _, _ = self.steps.move(parameters, state, average, measured[0], np.float32(rate))
                weight = self.options.accumulate * self.options.batch_blocks * self.mean_k
                return weight * float(before - now), float(measured[0][1])

            found = range_test(step, worst=TRUSTED * self.options.rtol)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, found.as_dict())
        return float(current().from_first("the learning rate", found.chosen))

    # --- watching ---

    def _stop(self, state: State) -> bool:
        """Early stopping: no better validation log-likelihood for `patience` evaluations."""
        return state.step - state.best_step >= self.options.patience * self.options.evaluate_every

    def _evaluate(self, state: State, judged: dict[str, Any], taken: _Taken, gain: float) -> dict[str, Any]:
        """Judge the steps since the last evaluation, keep the best parameters, and return the row of metrics."""
        o, step = self.options, state.step
        losses, residuals, norms = np.array([[float(x) for x in measured] for measured in taken.steps]).T
        trusted = residuals <= TRUSTED * o.rtol
        if not trusted.all():
            text = (
                f"step {step}: {int((~trusted).sum())} of the last {len(trusted)} updates left out: the residual of "
                f"their solve was above {TRUSTED * o.rtol:g}"
            )
            state.events.append((step, text))
        if not np.isfinite(losses[trusted]).all():
            raise DeepwasError(
                f"training diverged before step {step}: the loss is not finite. Use a lower learning rate"
                " or solver 'cholesky'."
            )
        if gain > state.best_value:
            state.best, state.best_value, state.best_step = judged, gain, step
        row = {
            "step": step,
            "train_loss": float(losses[trusted].mean()) if trusted.any() else float("nan"),
            "validation_gain": gain,
            "noise": float(np.mean(self.steps.noise(self.devices.local(judged)))),
            "gradient_norm": float(norms.mean()),
            "residual": float(residuals.max()),
            "solver": "+".join(sorted({s.solver for s in state.solves})),
        }
        worst: dict[int, float] = {}
        for b, residual in taken.solved:
            worst[b] = float(np.maximum(worst.get(b, 0.0), residual))  # NaN stays
        for b in sorted(worst):
            self._raise_steps(state, b, worst[b])
        return row

    def _raise_steps(self, state: State, b: int, residual: float) -> None:
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


def _relative_rates(options: FitOptions) -> NDArray[np.float64]:
    """Learning rate of each step over its peak: linear warm-up, which reaches it, then cosine decay to 5%."""
    warm = round(options.warmup * options.steps)
    decay = optax.cosine_decay_schedule(1.0, max(options.steps - warm, 1), 0.05)
    return np.concatenate([np.arange(1, warm + 1) / max(warm, 1), np.asarray(decay(np.arange(options.steps - warm)))])


def _key(seed: int) -> NDArray[np.uint32]:
    return np.asarray(jax.random.key_data(jax.random.key(seed)))
