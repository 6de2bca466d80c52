"""One fit, from harmonised inputs to a complete record: the constant prior, then one network per rotation."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
import scipy.linalg  # noqa: F401 - its BLAS is what XLA calls; see Job.run
from threadpoolctl import threadpool_limits

from deepwas.annotations import Annotations, Standardiser
from deepwas.errors import DataWarning
from deepwas.inputs import VariantInputs, Windows
from deepwas.ld import LDStore
from deepwas.locks import exclusive
from deepwas.networks import predict_log_variance
from deepwas.options import FitOptions
from deepwas.parallel import BlockDevices
from deepwas.rendezvous import current
from deepwas.runs import Fit
from deepwas.sumstats import HarmonisedSumstats
from deepwas.tally import Tally
from deepwas.training.baseline import ScaleFit, fit_scale, log_density, moment_effect_variance
from deepwas.training.heritability import (
    constant_spectra,
    heritability,
    scale_heritability,
    truncation_sensitivity,
)
from deepwas.training.loop import Trainer
from deepwas.training.mismatch import Mismatch, diagnose, without_flagged
from deepwas.training.outcome import OUTCOME, Outcome, finished_outcomes, held_out
from deepwas.training.plan import Plan, log_heterozygosity
from deepwas.training.rotation import RotationTask, TraitPart, rows_of_inputs
from deepwas.training.sections import Rotation
from deepwas.training.source import BlockSource
from deepwas.training.trait import open_trait
from deepwas.training.whitened import scratch_folder

__all__ = ["CACHE", "LOCK", "Job"]

CACHE, LOCK = "whitened.h5", ".lock"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Examined:
    """A trait before its networks are trained: its constant prior, what hangs on the truncation, how its LD fits."""

    constant: dict[str, Any]
    sensitivity: list[dict[str, Any]]
    mismatch: Mismatch
    rotations: list[Rotation]


@dataclass
class Job:
    """One fit under way: data, then the constant prior, then one network per rotation, then the record.

    features, tracks, sequence: what networks read of each variant of the store; None for what is not given.
    folder: of the run, where finished rotations are found and kept; None to keep all in memory.
    record: `run.json` so far.  tensorboard: write metrics for TensorBoard as well.
    """

    store: LDStore
    trait: HarmonisedSumstats
    features: Annotations | None
    options: FitOptions
    plan: Plan
    folder: Path | None
    record: dict[str, Any]
    progress: Progress
    tracks: Windows | None = None
    sequence: Windows | None = None
    tensorboard: bool = False
    weights: np.ndarray | None = field(default=None, init=False)

    def run(self) -> Fit:
        """Fit, and return the `Fit` with its record complete. Rotations that the folder has finished are read."""
        begun = time.monotonic()
        with ExitStack() as stack:
            cache = self.open(stack)
            return self._fit(begun, cache)

    def run_rotations(self, asked: Sequence[int]) -> list[int]:
        """Train these rotations alone, into their folders; returns those that were not finished before."""
        with ExitStack() as stack:
            self.open(stack)
            finished = self.finished(asked)
            todo = [r for r in asked if r not in finished]
            if todo:
                needed = self.options.mismatch != "report"
                mismatch = self._mismatch(self._constant_of_all()) if needed else None
                self._train_all(self._rotations(mismatch), todo, {})
            return todo

    def open(self, stack: ExitStack) -> Path:
        """Whiten the blocks, or find them whitened, for as long as `stack` is open; returns the path of the cache."""
        # XLA runs blocks side by side. BLAS threads inside each wait for one another by spinning: for matrices of a few
        # hundred they gain nothing, and on a busy machine they cost several times the work. XLA calls SciPy's BLAS, and
        # only libraries that are loaded by now are limited.
        stack.enter_context(threadpool_limits(1, user_api="blas"))
        # Without a run folder the trait's own factors go to the system's (TMPDIR), as they may not fit in memory.
        folder = self.folder or stack.enter_context(scratch_folder())
        # Processes that train rotations of one run share the cache: the first makes it, the others wait for it.
        with exclusive(folder / LOCK):
            self.blocks = stack.enter_context(
                open_trait(
                    self.store,
                    self.trait.frame,
                    cache=folder / CACHE,
                    factor_dtype=self.options.factor_dtype,
                    progress=lambda done, total: self.progress("whitening LD blocks", done, total),
                )
            )
        for note in self.blocks.notes:
            warnings.warn(note, DataWarning, stacklevel=4)
        self.spectra = constant_spectra(self.blocks)
        # A variant that no block scores has no LD score, and no part in the likelihood.
        by_block = np.zeros(self.store.n_variants, dtype=bool)
        for rows in self.plan.scored:
            by_block[rows] = True
        frame = self.trait.frame
        used = frame.filter(pl.Series(by_block[frame["VARIANT"].to_numpy()]))
        self.z, self.n = used["Z"].to_numpy(), used["N"].to_numpy()
        scores = self.store.variants["LDSCORE"].to_numpy()[used["VARIANT"].to_numpy()]
        self.moment = moment_effect_variance(self.z, scores, self.n)
        return folder / CACHE

    def _constant_of_all(self) -> dict[str, Any]:
        return scale_heritability(self.spectra, sum(self.plan.sizes), self.moment, self.options.noise)

    def _rotations(self, mismatch: Mismatch | None) -> list[Rotation]:
        """The rotations as they are trained, and the weights of blocks, once the LD is tested where that matters."""
        o, rotations = self.options, self.plan.rotations
        if mismatch is None or o.mismatch == "report":
            return rotations
        if o.mismatch == "exclude":
            return without_flagged(rotations, _of_first("flagged LD blocks", mismatch.flagged))
        self.weights = _of_first("weights of LD blocks", mismatch.weights)
        return rotations

    def _fit(self, begun: float, cache: Path) -> Fit:
        everything = range(len(self.plan.rotations))
        finished = self.finished(everything)
        examined = self.examine(cache)
        todo = [r for r in everything if r not in finished]
        found = finished | self._train_all(examined.rotations, todo, finished)
        return self.finish(begun, examined, [found[r] for r in everything])

    def examine(self, cache: Path) -> Examined:
        """What is found before any network is trained."""
        constant = self._constant_of_all()
        sensitivity = truncation_sensitivity(
            self.store, self.trait.frame, start=self.moment, whitened=self.blocks, cache=cache
        )
        mismatch = self._mismatch(constant)
        return Examined(constant, sensitivity, mismatch, self._rotations(mismatch))

    def finish(self, begun: float, examined: Examined, outcomes: Sequence[Outcome]) -> Fit:
        """The complete record and the `Fit`, from all rotations' outcomes.

        begun: `time.monotonic` at the start.
        """
        o, sizes = self.options, self.plan.sizes
        self.record["counts"] += self.plan.tally.as_list() + self.blocks.dropped.as_list() + outcomes[0].counts
        cross = outcomes if self.plan.rotates else None
        result = self._assemble(outcomes)
        self.record |= {
            "status": "complete",
            "environment": _environment(),
            "size": {
                "blocks": len(self.blocks),
                "variants_in_store": self.store.n_variants,
                "variants_modelled": sum(sizes),
                "variants_scored": int(sum(b.observed.sum() for b in self.blocks)),
                "eigenvalues": int(sum(k for k, _ in self.blocks.sizes)),
                "mean_sample_size": float(np.mean(self.n)),
                "mean_chi2": float(np.mean(self.z**2)),
            },
            "heritability": {
                "moment": self.moment * sum(sizes),
                "constant": examined.constant,
                "plain": self._heritability(outcomes[:1]),
                "cross_fitted": self._heritability(cross) if cross else None,
            },
            "mismatch": examined.mismatch.summary(o.mismatch),
            "sensitivity": examined.sensitivity,
            "held_out": {
                "plain": held_out(outcomes[:1]),
                "cross_fitted": held_out(cross) if cross else None,
            },
            "rotations": [x.record for x in outcomes],
            "priors": [],
            "seconds": round(time.monotonic() - begun, 3),
        }
        return result

    # --- the rotations ---

    def _folder_of(self, r: int) -> Path | None:
        return None if self.folder is None else self.folder / f"rotation_{r}"

    def finished(self, asked: Sequence[int]) -> dict[int, Outcome]:
        """Those rotations that the run folder has finished, in every process."""
        found = finished_outcomes({r: self._folder_of(r) for r in asked}, self.options)
        for r, outcome in found.items():
            if not len(outcome.log_f):  # of another process, which sent the network alone
                outcome.rows = self.plan.rows_of(r, self.store.n_variants)
                inputs = rows_of_inputs(self.inputs(outcome.standardiser), outcome.rows)
                outcome.log_f = predict_log_variance(outcome.network, inputs)[:, 0]
        return found

    def _train_all(
        self, rotations: list[Rotation], todo: Sequence[int], finished: Mapping[int, Outcome]
    ) -> dict[int, Outcome]:
        """Train the rotations `todo`, one after the other."""
        o = self.options
        standardisers = self._standardisers(rotations, todo)
        bases = {r: self.constant(r, rotations[r]) for r in todo}
        if o.network == "constant":
            every = slice(0, self.store.n_variants)
            flat = {r: np.full(self.store.n_variants, base.log_scale) for r, (base, _) in bases.items()}
            return {r: Outcome(record, every, flat[r]) for r, (_, record) in bases.items()}
        if not todo:
            return {}
        devices = BlockDevices()
        source = BlockSource(
            self.blocks, factor_dtype=o.factor_dtype, memory_gb=o.memory, place=devices.place, part=devices.part
        )
        trainer = Trainer(source, o, n_panel=self.store.n_samples, block_weights=self.weights, devices=devices)
        found: dict[int, Outcome] = {}
        for r in todo:
            base, record = bases[r]
            ranges = [self.plan.scored[i] for i in rotations[r].train]
            fitted = np.concatenate([np.arange(x.start, x.stop) for x in ranges])
            rows = self.plan.rows_of(r, self.store.n_variants)
            part = TraitPart(rotations[r], base, record, rows)
            task = RotationTask(r, [part], standardisers.get(r), fitted)
            done = len(finished) + len(found)
            found[r] = self._train(trainer, task, done, len(finished) + len(todo))
        return found

    def _train(self, trainer: Trainer, task: RotationTask, done: int, count: int) -> Outcome:
        """Train one rotation, and keep its outcome; no other process may do so at the same time."""
        folder = self._folder_of(task.number)

        def advance(step: int, steps: int) -> None:
            self.progress("training", done * steps + step, count * steps)

        tally = Tally()
        inputs = self.inputs(task.standardiser, tally)
        with ExitStack() as stack:
            if folder is not None:
                text = (
                    f"{folder}: rotation {task.number} is being trained by {{}}. Wait for it, or give other rotations."
                )
                stack.enter_context(exclusive(folder / LOCK, busy=text.format))
                if current().count == 1 and (folder / OUTCOME).is_file():  # since it was looked for
                    return Outcome.load(folder, self.options)
            (outcome,) = task.train(trainer, inputs, folder=folder, progress=advance, tensorboard=self.tensorboard)
            outcome.counts = tally.as_list()
            if folder is not None:
                outcome.save(folder)
        return outcome

    def inputs(self, standardiser: Standardiser | None, tally: Tally | None = None) -> VariantInputs:
        """What networks read of each variant of the store."""
        values = np.zeros((self.store.n_variants, 0), np.float32)
        if standardiser is not None and self.features is not None:
            values = standardiser.transform(self.features, tally=tally)
        het = None if self.options.maf_alpha is None else log_heterozygosity(self.store)
        return VariantInputs(values, het, self.tracks, self.sequence)

    def _standardisers(self, rotations: Sequence[Rotation], todo: Sequence[int]) -> dict[int, Standardiser]:
        """Means and scales of each rotation's training variants, all before training: their faults show at once."""
        if self.features is None or self.options.network == "constant":
            return {}
        fitted = {}
        for r in todo:
            ranges = [self.plan.scored[i] for i in rotations[r].train]
            rows = np.concatenate([np.arange(x.start, x.stop) for x in ranges])
            fitted[r] = Standardiser.fit(self.features, rows)
        return fitted

    def constant(self, r: int, rotation: Rotation) -> tuple[ScaleFit, dict[str, Any]]:
        """The constant prior of a rotation's training blocks, and the start of the rotation's record."""
        noise = self.options.noise
        start = (float(np.log(self.moment)), 1.0 if noise is None else noise)
        weights = None if self.weights is None else self.weights[rotation.train]
        base = fit_scale([self.spectra[i] for i in rotation.train], noise=noise, start=start, weights=weights)
        held_out = log_density([self.spectra[i] for i in rotation.test], base.log_scale, base.noise)
        record = {
            "rotation": r,
            "train_blocks": [self.blocks[i].number for i in rotation.train],
            "validation_blocks": [self.blocks[i].number for i in rotation.validation],
            "test_blocks": [self.blocks[i].number for i in rotation.test],
            "constant": {"log_effect_variance": base.log_scale, "noise": base.noise},
            "network": None,
            "noise": base.noise,
            "test_log_likelihood_constant": held_out.tolist(),
            "test_log_likelihood": held_out.tolist(),
        }
        return base, record

    def _assemble(self, outcomes: Sequence[Outcome]) -> Fit:
        """The table of variants with their priors, and the `Fit` around it."""
        keep = np.concatenate([np.arange(rows.start, rows.stop) for rows in self.plan.scored])
        sizes = self.plan.sizes
        section = np.repeat(self.plan.section, sizes)
        columns = {
            "BLOCK": np.repeat([b.number for b in self.blocks], sizes),
            "SECTION": section,
            "SNPVAR_PLAIN": np.exp(outcomes[0].at(keep)),
        }
        if self.plan.rotates:
            cross = np.empty(len(keep))
            for r, outcome in enumerate(outcomes):
                cross[section == r] = np.exp(outcome.at(keep[section == r]))
            columns["SNPVAR_CROSS"] = cross
        frame = self.store.variants.select("CHR", "SNP", "BP", "A1", "A2").with_row_index("VARIANT")
        scored = self.trait.frame.select("VARIANT", "Z", "N")
        variants = frame[keep].hstack(pl.DataFrame(columns)).join(scored, on="VARIANT", how="left")
        return Fit(
            record=self.record,
            variants=variants.sort("VARIANT").drop("VARIANT"),
            networks=[x.network for x in outcomes],
            standardisers=[x.standardiser for x in outcomes],
            folder=self.folder,
        )

    def _mismatch(self, constant: dict[str, Any]) -> Mismatch:
        """Test every block's z-scores against its LD, write the tables, and count what will not be used as it is."""
        o = self.options
        found = diagnose(
            self.blocks,
            self.store,
            effect_variance=constant["effect_variance"],
            noise=constant["noise"],
            threshold=o.mismatch_threshold,
            progress=lambda done, total: self.progress("testing the LD", done, total),
        )
        if self.folder is not None:
            found.write(self.folder)
        what = {
            "report": "in LD blocks flagged for mismatch, used all the same",
            "down-weight": "in LD blocks flagged for mismatch, down-weighted in training",
            "exclude": "in LD blocks flagged for mismatch, left out of training",
        }[o.mismatch]
        tally = Tally()
        for i in np.flatnonzero(found.flagged):
            rows, flag = self.plan.scored[i], found.table["FLAG"][int(i)]
            first = str(self.store.variants["SNP"][rows.start])
            tally.add("fit", "noted", f"variants {what}: {flag}", rows.stop - rows.start, first)
        self.record["counts"] += tally.as_list()
        return found

    def _effect_variances(self, outcomes: Sequence[Outcome]) -> list[np.ndarray]:
        """The prior of every block's candidates, (m,) each: by the network of the section that scores the variant, and
        for variants that no block scores by that of the block's own section; or all by the only network."""
        section = self.plan.section_of_variant
        out = []
        for block, own in zip(self.blocks, self.plan.section, strict=True):
            here = np.arange(block.rows.start, block.rows.stop)
            if len(outcomes) == 1:
                out.append(np.exp(outcomes[0].at(here)))
                continue
            by = np.where(section[here] < 0, own, section[here])
            f = np.empty(len(here))
            for r in np.unique(by):
                f[by == r] = np.exp(outcomes[r].at(here[by == r]))
            out.append(f)
        return out

    def _heritability(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        f = self._effect_variances(outcomes)
        noise = float(np.mean([x.record["noise"] for x in outcomes]))
        return heritability(self.blocks, f, noise, self.options.noise is None)


def _of_first(what: str, values: np.ndarray) -> np.ndarray:
    """Process 0's values: a last bit that differs between hosts must not change what is trained on."""
    return np.asarray(current().from_first(what, values.tolist()), dtype=values.dtype)


def _environment() -> dict[str, Any]:
    devices, processes = jax.devices(), jax.process_count()
    over = f", {processes} processes" if processes > 1 else ""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "polars", "h5py")
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform}){over}",
        "x64": bool(jax.config.read("jax_enable_x64")),
        "packages": {name: version(name) for name in packages},
    }
