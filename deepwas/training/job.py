"""One fit, from harmonised inputs to a complete record: the constant prior, then one network per rotation."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
import polars as pl
import scipy.linalg  # noqa: F401 - its BLAS is what XLA calls; see Job.run
from threadpoolctl import threadpool_limits

from deepwas.annotations import Annotations, Standardiser
from deepwas.errors import DataWarning, InputError
from deepwas.inputs import VariantInputs
from deepwas.ld import LDStore
from deepwas.networks import make_network, predict_log_variance
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
from deepwas.training.sections import Rotation, make_rotations, split_sections, without_overlap
from deepwas.training.source import BlockSource
from deepwas.training.trait import blocks_with_scores, open_trait

__all__ = ["CACHE", "Job"]

CACHE = "whitened.h5"

Progress = Callable[[str, int, int], None]


@dataclass
class _Outcome:
    """One rotation: its part of the record, log f of every variant of the store, and what predicted it."""

    record: dict[str, Any]
    log_f: np.ndarray
    network: Any = None
    standardiser: Standardiser | None = None


@dataclass
class Job:
    """One fit under way: data, then the constant prior, then one network per rotation, then the record."""

    store: LDStore
    trait: HarmonisedSumstats
    features: Annotations | None
    options: FitOptions
    folder: Path | None
    record: dict[str, Any]
    progress: Progress

    def run(self) -> Fit:
        """Fit, and return the `Fit` with its record complete."""
        # XLA runs blocks side by side. BLAS threads inside each wait for one another by spinning: for matrices of a few
        # hundred they gain nothing, and on a busy machine they cost several times the work. XLA calls SciPy's BLAS, and
        # only libraries that are loaded by now are limited.
        with threadpool_limits(1, user_api="blas"):
            return self._run()

    def _run(self) -> Fit:
        begun = time.monotonic()
        rotations = self._rotations()
        with ExitStack() as stack:
            # Without a run folder the trait's own factors go to the system's (TMPDIR), as they may not fit in memory.
            folder = self.folder or Path(stack.enter_context(TemporaryDirectory(prefix="deepwas-")))
            self.blocks = stack.enter_context(
                open_trait(
                    self.store,
                    self.trait.frame,
                    cache=folder / CACHE,
                    factor_dtype=self.options.factor_dtype,
                    progress=lambda done, total: self.progress("whitening LD blocks", done, total),
                )
            )
            return self._fit(begun, rotations, folder / CACHE)

    def _rotations(self) -> list[Rotation]:
        """The sections and what each rotation trains, stops and tests on; faults show before anything is whitened."""
        o, names = self.options, self.store.variants["SNP"]
        numbers, unequal = blocks_with_scores(self.store, self.trait.frame)
        if unequal and o.objective == "ld-score" and o.network != "constant":
            raise InputError(
                f"the sample size N differs between variants in {len(unequal):,} of {len(numbers):,} LD blocks (first: "
                f"block {unequal[0]}). LD scores come from whitened LD, which then carries N. Give --objective "
                "likelihood, which allows for it, or z-scores of one N: a file without the column N, and --sample-size."
            )
        self.scored = [self.store.scored_slice(number) for number in numbers]
        chromosomes = [str(self.store.variants["CHR"][rows.start]) for rows in self.scored]
        sizes = [rows.stop - rows.start for rows in self.scored]
        self.section = split_sections(chromosomes, sizes, o.folds)
        rotations = make_rotations(self.section)[: o.folds if o.cross_fit else 1]
        candidates = [self.store.block_slice(number) for number in numbers]
        rotations, dropped = without_overlap(rotations, candidates, self.scored)
        tally = Tally()
        for i in dropped:
            text = "variants of LD windows that reach into a test section, left out of training for it"
            tally.add("fit", "noted", text, sizes[i], str(names[self.scored[i].start]))
        self.record["counts"] += tally.as_list()
        return rotations

    def _fit(self, begun: float, rotations: list[Rotation], cache: Path) -> Fit:
        o, frame = self.options, self.trait.frame
        self.record["counts"] += self.blocks.dropped.as_list()
        for note in self.blocks.notes:
            warnings.warn(note, DataWarning, stacklevel=2)
        standardisers = self._standardisers(rotations)
        sizes = [rows.stop - rows.start for rows in self.scored]
        # A variant that no block scores has no LD score, and no part in the likelihood.
        by_block = np.zeros(self.store.n_variants, dtype=bool)
        for rows in self.scored:
            by_block[rows] = True
        used = frame.filter(pl.Series(by_block[frame["VARIANT"].to_numpy()]))
        z, n = used["Z"].to_numpy(), used["N"].to_numpy()
        scores = self.store.variants["LDSCORE"].to_numpy()[used["VARIANT"].to_numpy()]
        moment = moment_effect_variance(z, scores, n)
        self.spectra = constant_spectra(self.blocks)
        constant = scale_heritability(self.spectra, sum(sizes), moment, o.noise)
        sensitivity = truncation_sensitivity(self.store, frame, start=moment, whitened=self.blocks, cache=cache)
        mismatch = self._mismatch(constant)
        if o.mismatch == "exclude":
            rotations = without_flagged(rotations, _of_first("flagged LD blocks", mismatch.flagged))
        self.weights = _of_first("weights of LD blocks", mismatch.weights) if o.mismatch == "down-weight" else None

        bases = [self._constant(r, rotation, moment) for r, rotation in enumerate(rotations)]
        if o.network == "constant":
            outcomes = [self._without_network(*base) for base in bases]
        else:
            devices = BlockDevices()
            source = BlockSource(
                self.blocks, factor_dtype=o.factor_dtype, memory_gb=o.memory, place=devices.place, part=devices.part
            )
            trainer = Trainer(source, o, n_panel=self.store.n_samples, block_weights=self.weights, devices=devices)
            outcomes = [
                self._train(trainer, rotation, standardiser, *base, count=len(rotations))
                for rotation, standardiser, base in zip(rotations, standardisers, bases, strict=True)
            ]
        cross = outcomes if o.cross_fit else None
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
                "mean_sample_size": float(np.mean(n)),
                "mean_chi2": float(np.mean(z**2)),
            },
            "heritability": {
                "moment": moment * sum(sizes),
                "constant": constant,
                "plain": self._heritability(outcomes[:1]),
                "cross_fitted": self._heritability(cross) if cross else None,
            },
            "mismatch": mismatch.summary(o.mismatch),
            "sensitivity": sensitivity,
            "held_out": {
                "plain": _held_out(outcomes[:1]),
                "cross_fitted": _held_out(cross) if cross else None,
            },
            "rotations": [x.record for x in outcomes],
            "priors": [],
            "seconds": round(time.monotonic() - begun, 3),
        }
        return result

    def _standardisers(self, rotations: Sequence[Rotation]) -> list[Standardiser]:
        """Means and scales of each rotation's training variants, all before training: their faults show at once."""
        if self.features is None or self.options.network == "constant":
            return []
        fitted = []
        for rotation in rotations:
            ranges = [self.scored[i] for i in rotation.train]
            fitted.append(Standardiser.fit(self.features, np.concatenate([np.arange(r.start, r.stop) for r in ranges])))
        return fitted

    def _constant(self, r: int, rotation: Rotation, moment: float) -> tuple[ScaleFit, dict[str, Any]]:
        """The constant prior of a rotation's training blocks, and the start of the rotation's record."""
        noise = self.options.noise
        start = (float(np.log(moment)), 1.0 if noise is None else noise)
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

    def _without_network(self, base: ScaleFit, record: dict[str, Any]) -> _Outcome:
        return _Outcome(record, np.full(self.store.n_variants, base.log_scale))

    def _train(
        self,
        trainer: Trainer,
        rotation: Rotation,
        standardiser: Standardiser,
        base: ScaleFit,
        record: dict[str, Any],
        *,
        count: int,
    ) -> _Outcome:
        """Train one rotation's network from its constant prior, and score its test blocks, once."""
        o, r = self.options, record["rotation"]
        assert self.features is not None
        tally = Tally()
        inputs = VariantInputs(standardiser.transform(self.features, tally=tally))
        if r == 0:
            self.record["counts"] += tally.as_list()
        trained = trainer.train(
            make_network(o, inputs.sizes, base.log_scale, seed=o.seed * 1000 + r),
            base.noise,
            inputs,
            rotation.train,
            rotation.validation,
            rotation=r,
            constant_variance=float(np.exp(base.log_scale)),
            folder=None if self.folder is None else self.folder / f"rotation_{r}",
            progress=lambda done, total: self.progress("training", r * total + done, count * total),
        )
        # Both in the same arithmetic, so that a network that never moved gains exactly 0.
        before = trainer.log_likelihood(trained.start, inputs, rotation.test)
        after = trainer.log_likelihood(trained.best, inputs, rotation.test)
        record |= {
            "network": {
                "log_base": base.log_scale,
                "inputs": list(standardiser.output_names),
                "standardiser": standardiser.as_dict(),
                "best_step": trained.best_step,
                "last_step": trained.last_step,
                "validation_gain": trained.validation_gain,
                "events": trained.events,
            },
            "noise": trained.noise,
            "test_log_likelihood_constant": before.tolist(),
            "test_log_likelihood": after.tolist(),
        }
        network = trained.best.network()
        return _Outcome(record, predict_log_variance(network, inputs)[:, 0], network, standardiser)

    def _assemble(self, outcomes: Sequence[_Outcome]) -> Fit:
        """The table of variants with their priors, and the `Fit` around it."""
        keep = np.concatenate([np.arange(rows.start, rows.stop) for rows in self.scored])
        sizes = [rows.stop - rows.start for rows in self.scored]
        section = np.repeat(self.section, sizes)
        columns = {
            "BLOCK": np.repeat([b.number for b in self.blocks], sizes),
            "SECTION": section,
            "SNPVAR_PLAIN": np.exp(outcomes[0].log_f[keep]),
        }
        if self.options.cross_fit:
            columns["SNPVAR_CROSS"] = np.exp(np.stack([x.log_f for x in outcomes])[section, keep])
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
            rows, flag = self.scored[i], found.table["FLAG"][int(i)]
            first = str(self.store.variants["SNP"][rows.start])
            tally.add("fit", "noted", f"variants {what}: {flag}", rows.stop - rows.start, first)
        self.record["counts"] += tally.as_list()
        return found

    def _effect_variances(self, outcomes: Sequence[_Outcome]) -> list[np.ndarray]:
        """The prior of every block's candidates, (m,) each: by the network of the section that scores the variant, and
        for variants that no block scores by that of the block's own section; or all by the only network."""
        log_f = np.stack([x.log_f for x in outcomes])
        section = np.full(self.store.n_variants, -1)
        for rows, own in zip(self.scored, self.section, strict=True):
            section[rows] = own
        out = []
        for block, own in zip(self.blocks, self.section, strict=True):
            here = np.arange(block.rows.start, block.rows.stop)
            by = np.where(section[here] < 0, own, section[here]) if len(outcomes) > 1 else 0
            out.append(np.exp(log_f[by, here]))
        return out

    def _heritability(self, outcomes: Sequence[_Outcome]) -> dict[str, Any]:
        f = self._effect_variances(outcomes)
        noise = float(np.mean([x.record["noise"] for x in outcomes]))
        return heritability(self.blocks, f, noise, self.options.noise is None)


def _held_out(outcomes: Sequence[_Outcome]) -> dict[str, Any]:
    """Log-likelihood of blocks that neither training nor early stopping saw, over that of the constant prior."""
    blocks = np.concatenate([x.record["test_blocks"] for x in outcomes]).astype(int)
    model = np.concatenate([x.record["test_log_likelihood"] for x in outcomes])
    null = np.concatenate([x.record["test_log_likelihood_constant"] for x in outcomes])
    gain = model - null
    count = len(gain)
    error = float(np.sqrt(count) * np.std(gain, ddof=1)) if count > 1 else None
    return {
        "blocks": blocks.tolist(),
        "log_likelihood": float(model.sum()),
        "log_likelihood_constant": float(null.sum()),
        "gain": float(gain.sum()),
        "standard_error": error,
        "gain_by_block": gain.tolist(),
    }


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
