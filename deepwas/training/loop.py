"""The training loop of one network on one assignment of blocks.

AdamW with warm-up, cosine decay and clipping, on minibatches of blocks of one shape; early stopping on the validation
blocks, whose log-likelihood is always computed exactly where k allows it. Everything random is drawn from the seed and
the step, so that a resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from deepwas.errors import DeepwasError
from deepwas.likelihood.api import choose_solver
from deepwas.options import FitOptions
from deepwas.training.checkpoints import Checkpoints, Metrics
from deepwas.training.data import Bucket
from deepwas.training.objective import Solve, ld_score_terms, likelihood_terms

__all__ = ["Point", "Trained", "Trainer"]

_EXACT_UP_TO = 2048
_EVALUATION = Solve("cg", probes=64, rtol=1e-4, max_steps=200)
_MOST_STEPS = 128
_TRUSTED = 10.0  # times rtol: an update whose solve has a greater residual is left out


class Point(NamedTuple):
    """A network and noise as arrays: `graph` is the network's static part, `parameters` what is trained."""

    graph: nnx.GraphDef
    parameters: dict[str, Any]


@dataclass
class Trained:
    """The outcome of one training run.

    start: the constant prior it started from.  best: at the step with the best validation log-likelihood; `network` and
    `noise` (sigma2) are read from it.
    best_step, last_step: 0 is the constant prior it started from.  validation_gain: over that start, in nats.
    events: what the solver had to change, and why the run stopped.
    """

    start: Point
    best: Point
    network: Any
    noise: float
    best_step: int
    last_step: int
    validation_gain: float
    events: list[str] = field(default_factory=list)


class Trainer:
    """Compiled steps over a fixed set of buckets; `train` runs them for one network and assignment of blocks."""

    def __init__(self, buckets: Sequence[Bucket], options: FitOptions, *, n_panel: int):
        self.options = options
        self.n_panel = n_panel
        self.host_buckets = list(buckets)
        self.members = [np.asarray(b.member) for b in buckets]
        self.buckets = [Bucket(*(jnp.asarray(x) for x in b)) for b in buckets]
        self.mean_k = float(np.mean(np.concatenate([np.asarray(b.real).sum(1) for b in buckets])))
        self.solves = [self._first_solve(*b.shape) for b in buckets]
        self.schedule = self._make_schedule()
        self.optimiser = optax.chain(
            optax.clip_by_global_norm(options.clip_norm),
            optax.adamw(self.schedule, weight_decay=options.weight_decay, mask=_decays),
        )
        self._update = jax.jit(self._update_step, static_argnames=("graph", "solve"))
        self._values = jax.jit(self._block_values, static_argnames=("graph", "solve"))

    def _first_solve(self, k: int, m: int) -> Solve:
        chosen = self.options.solver
        if chosen == "auto":
            chosen = choose_solver(k, m, self.options.probes)
        return Solve("cg" if chosen == "cg" else "cholesky", probes=self.options.probes, rtol=self.options.rtol)

    # --- compiled pieces ---------------------------------------------------------------------------------------------

    @staticmethod
    def _log_variance(network: nnx.State, features: Array, *, graph: nnx.GraphDef) -> Array:
        return nnx.merge(graph, network)(features)

    def _noise(self, parameters: dict[str, Any]) -> Array:
        fixed = self.options.noise
        return jnp.exp(parameters["log_noise"]) if fixed is None else jnp.asarray(fixed, jnp.float32)

    def _update_step(
        self,
        parameters: dict[str, Any],
        state: Any,
        bucket: Bucket,
        features: Array,
        chosen: Array,
        weight: Array,
        key: Array,
        constant: Array,
        *,
        graph: nnx.GraphDef,
        solve: Solve,
    ) -> tuple[Any, Any, Array, Array, Array]:
        """One optimiser step on the blocks `chosen` of one bucket; `weight` is 0 for those that fill up a batch.

        The gradient of a solve that is far from converged can be wrong by orders of magnitude, and one such step can
        send the network where every solve fails. So it is not taken: parameters and state stay as they were.
        """
        batch = Bucket(*(x[chosen] for x in bucket))
        inputs = features[chosen]
        norm = self.options.batch_blocks * self.mean_k

        def loss(parameters: dict[str, Any]) -> tuple[Array, Array]:
            f = jnp.exp(self._log_variance(parameters["network"], inputs, graph=graph))
            noise = self._noise(parameters)
            if self.options.objective == "ld-score":
                values, residual = ld_score_terms(
                    batch, f, noise, n_panel=self.n_panel, constant=(constant[0], constant[1])
                )
            else:
                values, residual = likelihood_terms(batch, f, noise, key, solve)
            return -jnp.sum(values * weight) / norm, jnp.max(residual)

        (value, residual), gradient = jax.value_and_grad(loss, has_aux=True)(parameters)
        updates, moved = self.optimiser.update(gradient, state, parameters)
        trusted = residual <= _TRUSTED * self.options.rtol
        parameters, state = jax.tree.map(
            lambda new, old: jnp.where(trusted, new, old),
            (optax.apply_updates(parameters, updates), moved),
            (parameters, state),
        )
        return parameters, state, value, residual, optax.global_norm(gradient)

    def _block_values(
        self,
        parameters: dict[str, Any],
        bucket: Bucket,
        features: Array,
        chosen: Array,
        key: Array,
        *,
        graph: nnx.GraphDef,
        solve: Solve,
    ) -> tuple[Array, Array]:
        batch = Bucket(*(x[chosen] for x in bucket))
        f = jnp.exp(self._log_variance(parameters["network"], features[chosen], graph=graph))
        return likelihood_terms(batch, f, self._noise(parameters), key, solve)

    # --- what they are used for --------------------------------------------------------------------------------------

    def _make_schedule(self) -> optax.Schedule:
        """Learning rate by step: linear warm-up, then cosine decay to 5% of the peak."""
        o = self.options
        warm = max(1, round(o.warmup * o.steps))
        return optax.warmup_cosine_decay_schedule(
            0.0, o.peak_learning_rate, warm, max(o.steps, warm + 1), 0.05 * o.peak_learning_rate
        )

    def log_likelihood(self, point: Point, features: Sequence[Any], which: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-likelihood of the blocks `which`, in their order, in nats.

        By Cholesky up to k of 2,048, beyond by CG with 64 probes that are the same for every model.
        """
        wanted = set(which.tolist())
        found: dict[int, float] = {}
        key = jax.random.key(self.options.seed + 1)
        size = self.options.batch_blocks
        for members, bucket, inputs in zip(self.members, self.buckets, features, strict=True):
            rows = np.flatnonzero([i in wanted for i in members])
            solve = Solve("cholesky") if bucket.shape[0] <= _EXACT_UP_TO else _EVALUATION
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                filled = np.resize(some, size)
                values, residual = self._values(
                    point.parameters, bucket, inputs, jnp.asarray(filled), key, graph=point.graph, solve=solve
                )
                if float(jnp.max(residual)) > _EVALUATION.rtol:
                    raise DeepwasError(
                        f"the held-out likelihood of a block of k = {bucket.shape[0]} did not converge in "
                        f"{_EVALUATION.max_steps} CG steps. Use smaller blocks or a higher eigenvalue floor."
                    )
                found.update(zip(members[some].tolist(), np.asarray(values)[: len(some)].tolist(), strict=True))
        return np.array([found[i] for i in which.tolist()], dtype=np.float64)

    def batches(self, train: NDArray[np.int64], epoch: int, rotation: int) -> list[tuple[int, NDArray, NDArray]]:
        """The minibatches of one epoch, in random order: (bucket, rows of the bucket, weights)."""
        rng = np.random.default_rng([self.options.seed, rotation, epoch])
        inside = set(train.tolist())
        size = self.options.batch_blocks
        out = []
        for b, members in enumerate(self.members):
            rows = rng.permutation(np.flatnonzero([i in inside for i in members]))
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                weight = (np.arange(size) < len(some)).astype(np.float32)
                out.append((b, np.resize(some, size), weight))
        rng.shuffle(out)
        return out

    def train(
        self,
        network: Any,
        noise: float,
        features: Sequence[Any],
        train: NDArray[np.int64],
        validation: NDArray[np.int64],
        *,
        rotation: int,
        constant_variance: float,
        folder: Path | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Trained:
        """Train from the constant prior; resume from the newest checkpoint in `folder`, if there is one.

        network, noise: where to start.  features: (B, m, p) per bucket.  train, validation: block indices.
        """
        o = self.options
        features = [jnp.asarray(x) for x in features]
        graph, state_of_network = nnx.split(network)
        parameters: dict[str, Any] = {"network": state_of_network}
        if o.noise is None:
            parameters["log_noise"] = jnp.asarray(np.log(noise), jnp.float32)
        start = Point(graph, parameters)
        state = self.optimiser.init(parameters)
        best, best_value, best_step, step = parameters, 0.0, 0, 0
        checkpoints = metrics = None
        origin = self.log_likelihood(start, features, validation)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            checkpoints = Checkpoints(folder / "checkpoints")
            latest = checkpoints.latest()
            if latest is not None:
                tree = self._tree(parameters, state, best, best_value, best_step)
                restored = checkpoints.restore(latest, tree)
                parameters, state, best = (_like(x, restored[n]) for n, x in self._parts(parameters, state, best))
                best_value, best_step, step = float(restored["best_value"]), int(restored["best_step"]), latest
                self._restore_solves(np.asarray(restored["solves"]))
            metrics = Metrics(folder / "metrics.csv", resume_after=latest)
        events: list[str] = []
        key = jax.random.key(o.seed)
        constant = jnp.asarray([constant_variance, noise], jnp.float32)
        losses: list[Array] = []
        norms: list[Array] = []
        solved: list[tuple[int, Array]] = []
        order: list[tuple[int, NDArray, NDArray]] = []
        per_epoch = len(self.batches(train, 0, rotation))
        stopped = False
        while step < o.steps and not stopped:
            if not order or step % per_epoch == 0:
                order = self.batches(train, step // per_epoch, rotation)
            b, rows, weight = order[step % per_epoch]
            parameters, state, value, residual, norm = self._update(
                parameters,
                state,
                self.buckets[b],
                features[b],
                jnp.asarray(rows),
                jnp.asarray(weight),
                key,
                constant,
                graph=graph,
                solve=self.solves[b],
            )
            step += 1
            losses.append(value)
            norms.append(norm)
            solved.append((b, residual))
            if step % o.evaluate_every and step < o.steps:
                continue
            bucket_of = np.array([i for i, _ in solved])
            residuals = np.array([float(x) for _, x in solved])
            trusted = residuals <= _TRUSTED * o.rtol
            if not trusted.all():
                events.append(
                    f"step {step}: {int((~trusted).sum())} of the last {len(trusted)} updates left out: the residual of "
                    f"their solve was above {_TRUSTED * o.rtol:g}"
                )
            loss = float(np.mean([float(x) for x in losses], where=trusted)) if trusted.any() else float("nan")
            if trusted.any() and not np.isfinite(loss):
                raise DeepwasError(
                    f"training diverged before step {step}: the loss is {loss}. Use a lower learning rate"
                    f" (now {o.peak_learning_rate:g}), or solver 'cholesky'."
                )
            largest = {int(i): float(residuals[bucket_of == i].max()) for i in np.unique(bucket_of)}
            gain = float(np.sum(self.log_likelihood(Point(graph, parameters), features, validation) - origin))
            if gain > best_value:
                best, best_value, best_step = parameters, gain, step
            if metrics is not None:
                metrics.add(
                    step=step,
                    train_loss=loss,
                    validation_log_likelihood=gain + float(origin.sum()),
                    validation_gain=gain,
                    noise=float(self._noise(parameters)),
                    learning_rate=float(self.schedule(step - 1)),
                    gradient_norm=float(np.mean([float(x) for x in norms])),
                    residual=max(largest.values()),
                    solver="+".join(sorted({s.solver for s in self.solves})),
                )
            events += self._raise_steps(largest, step)
            losses, norms, solved = [], [], []
            if step - best_step >= o.patience * o.evaluate_every:
                events.append(f"stopped at step {step}: no better validation log-likelihood since step {best_step}")
                stopped = True
            if checkpoints is not None:
                checkpoints.save(step, self._tree(parameters, state, best, best_value, best_step))
            if progress is not None:
                progress(o.steps if stopped else step, o.steps)
        if metrics is not None:
            metrics.close()
        if checkpoints is not None:
            checkpoints.close()
        return Trained(
            start=start,
            best=Point(graph, best),
            network=nnx.merge(graph, best["network"]),
            noise=float(self._noise(best)),
            best_step=best_step,
            last_step=step,
            validation_gain=best_value,
            events=events,
        )

    # --- residual watch and state ------------------------------------------------------------------------------------

    def _raise_steps(self, largest: dict[int, float], step: int) -> list[str]:
        """More CG steps for the shapes whose residual was too large, or Cholesky when that is no use."""
        said = []
        for b, residual in largest.items():
            solve = self.solves[b]
            if solve.solver != "cg" or residual <= solve.rtol:
                continue
            k, m = self.buckets[b].shape
            if solve.max_steps < _MOST_STEPS:
                self.solves[b] = replace(solve, max_steps=2 * solve.max_steps)
                what = f"CG steps raised from {solve.max_steps} to {2 * solve.max_steps}"
            else:
                self.solves[b] = replace(solve, solver="cholesky")
                what = f"{_MOST_STEPS} CG steps were too few: Cholesky from here on"
            said.append(f"step {step}: blocks of k = {k}, m = {m}: residual {residual:.1e} > {solve.rtol:g}; {what}")
        return said

    def _restore_solves(self, saved: NDArray[np.int32]) -> None:
        for b, (exact, steps) in enumerate(saved):
            self.solves[b] = replace(self.solves[b], solver="cholesky" if exact else "cg", max_steps=int(steps))

    @staticmethod
    def _parts(parameters: Any, state: Any, best: Any) -> list[tuple[str, Any]]:
        return [("parameters", parameters), ("optimiser", state), ("best", best)]

    def _tree(self, parameters: Any, state: Any, best: Any, best_value: float, best_step: int) -> dict[str, Any]:
        """A checkpoint: plain lists of arrays, so that its layout does not hang on the classes of Flax and Optax."""
        tree: dict[str, Any] = {n: jax.tree.leaves(x) for n, x in self._parts(parameters, state, best)}
        tree["best_value"] = np.float64(best_value)
        tree["best_step"] = np.int64(best_step)
        tree["solves"] = np.array([[s.solver == "cholesky", s.max_steps] for s in self.solves], dtype=np.int32)
        return tree


def _decays(parameters: Any) -> Any:
    """Which parameters AdamW shrinks: weights, not biases, nor the noise."""
    return jax.tree.map(lambda x: x.ndim >= 2, parameters)


def _like(tree: Any, leaves: Sequence[Any]) -> Any:
    """The leaves in the structure of `tree`."""
    return jax.tree.unflatten(jax.tree.structure(tree), [jnp.asarray(x) for x in leaves])
