"""One fit of several traits: a network whose trunk they share, with a head for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flax import nnx

from deepwas.annotations import Standardiser
from deepwas.locks import exclusive
from deepwas.options import FitOptions
from deepwas.parallel import BlockDevices
from deepwas.runs import Fit
from deepwas.tally import Tally
from deepwas.training.job import LOCK, Examined, Job
from deepwas.training.loop import Trainer
from deepwas.training.outcome import Outcome
from deepwas.training.rotation import RotationTask, TraitPart
from deepwas.training.source import BlockSource
from deepwas.training.trait_sources import TraitSources

__all__ = ["TraitsJob"]

Progress = Callable[[str, int, int], None]


@dataclass
class TraitsJob:
    """Several traits' jobs, trained as one.

    Every trait has its own whitened blocks, sample size, constant prior, noise, heritability and record, as if it were
    fitted alone; only the networks are trained together. A step takes LD blocks of one trait; those of all traits come
    in random order. Sections of the genome are the same for all traits, so that a variant's cross-fitted prior for any
    trait comes from a network that saw its section for none.

    jobs: by name, each with its folder, in which finished rotations are kept.  weights: of the traits in training, by
        name.  folder: of the checkpoints, shared by the traits; None to keep all in memory.
    start: a finished fit of the same options, inputs and sections, whose networks' trunks are taken over; or None.
    freeze_trunk: leave those trunks as they are, and train the heads alone.
    """

    jobs: Mapping[str, Job]
    options: FitOptions
    folder: Path | None
    progress: Progress
    weights: Mapping[str, float]
    start: Fit | None = None
    freeze_trunk: bool = False
    tensorboard: bool = False

    def run(self) -> dict[str, Fit]:
        """Fit, and return each trait's `Fit` with its record complete."""
        begun = time.monotonic()
        with ExitStack() as stack:
            if self.folder is not None:
                text = f"{self.folder}: the run is being trained by {{}}. Wait for it, or give another folder."
                stack.enter_context(exclusive(self.folder / LOCK, busy=text.format))
            caches = {name: job.open(stack) for name, job in self.jobs.items()}
            everything = range(len(next(iter(self.jobs.values())).plan.rotations))
            finished = {name: job.finished(everything) for name, job in self.jobs.items()}
            examined = {name: job.examine(caches[name]) for name, job in self.jobs.items()}
            todo = [r for r in everything if not all(r in found for found in finished.values())]
            trained = self._train_all(examined, todo, len(everything))
            return {
                name: job.finish(
                    begun, examined[name], [trained[r][name] if r in trained else finished[name][r] for r in everything]
                )
                for name, job in self.jobs.items()
            }

    def _train_all(
        self, examined: Mapping[str, Examined], todo: Sequence[int], count: int
    ) -> dict[int, dict[str, Outcome]]:
        """Train the rotations `todo`, one after the other."""
        if not todo:
            return {}
        o, jobs = self.options, list(self.jobs.values())
        # All faults of annotations show before the first network is trained.
        fitted = {r: self._fitted(examined, r) for r in todo}
        standardisers = {r: self._standardiser(r, fitted[r]) for r in todo}
        devices = BlockDevices()
        memory = None if o.memory is None else o.memory / len(jobs)
        sources = [
            BlockSource(
                job.blocks,
                factor_dtype=o.factor_dtype,
                memory_gb=memory,
                place=devices.place,
                part=devices.part,
                trait=t,
                share=1 / len(jobs),
            )
            for t, job in enumerate(jobs)
        ]
        trainer = Trainer(
            TraitSources(sources),
            o,
            n_panel=jobs[0].store.n_samples,
            block_weights=self._block_weights(),
            devices=devices,
            freeze_trunk=self.freeze_trunk,
        )
        found: dict[int, dict[str, Outcome]] = {}
        for r in todo:
            parts = []
            for name, job in self.jobs.items():
                rotation = examined[name].rotations[r]
                parts.append(TraitPart(rotation, *job.constant(r, rotation), job.plan.rows_of(r, job.store.n_variants)))
            found[r] = self._train(
                trainer, RotationTask(r, parts, standardisers[r], fitted[r]), count - len(todo) + len(found), count
            )
        return found

    def _train(self, trainer: Trainer, task: RotationTask, done: int, count: int) -> dict[str, Outcome]:
        """Train one rotation, and keep every trait's outcome."""
        r = task.number

        def advance(step: int, steps: int) -> None:
            self.progress("training", done * steps + step, count * steps)

        first, tally = next(iter(self.jobs.values())), Tally()
        outcomes = task.train(
            trainer,
            first.inputs(task.standardiser, tally),
            folder=None if self.folder is None else self.folder / f"rotation_{r}",
            progress=advance,
            tensorboard=self.tensorboard,
            start=None if self.start is None else self._start_of(r),
        )
        for outcome, job in zip(outcomes, self.jobs.values(), strict=True):
            outcome.counts = tally.as_list()
            if job.folder is not None:
                outcome.save(job.folder / f"rotation_{r}")
        return dict(zip(self.jobs, outcomes, strict=True))

    def _fitted(self, examined: Mapping[str, Examined], r: int) -> np.ndarray:
        """Rows of the variants that any trait's training blocks score."""
        rows = [
            np.arange(job.plan.scored[i].start, job.plan.scored[i].stop)
            for name, job in self.jobs.items()
            for i in examined[name].rotations[r].train
        ]
        return np.unique(np.concatenate(rows))

    def _standardiser(self, r: int, fitted: np.ndarray) -> Standardiser | None:
        """Of all traits' training variants; or that of the fit whose trunk is taken over, which knows no other."""
        if self.start is not None:
            return self.start.standardisers[r]
        features = next(iter(self.jobs.values())).features
        return None if features is None else Standardiser.fit(features, fitted)

    def _block_weights(self) -> np.ndarray:
        """Weights of all traits' blocks, of mean 1 over the traits."""
        mean = float(np.mean([self.weights[name] for name in self.jobs]))
        found = []
        for name, job in self.jobs.items():
            own = np.ones(len(job.blocks)) if job.weights is None else job.weights
            found.append(own * self.weights[name] / mean)
        return np.concatenate(found)

    def _start_of(self, r: int) -> nnx.Module:
        assert self.start is not None
        network = self.start.networks[r]
        assert network is not None
        return network
