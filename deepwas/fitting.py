"""`fit`: from an LD store, one trait's summary statistics and annotations to a trained prior.

The inputs are read and checked before anything that computes is imported.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from deepwas import __version__
from deepwas.annotations import Annotations, Standardiser, read_annotations
from deepwas.errors import InputError
from deepwas.files import read_json, write_json
from deepwas.ld import LDStore, open_ld
from deepwas.options import FitOptions
from deepwas.runs import FORMAT, FORMAT_VERSION, RECORD, Fit, check_record, load_fit
from deepwas.sumstats import HarmonisedSumstats, QCOptions, SumStats, harmonise, read_harmonised, read_sumstats
from deepwas.tally import Tally

if TYPE_CHECKING:
    from deepwas.training.sections import Rotation

__all__ = ["fit"]

Progress = Callable[[str, int, int], None]
PathLike = str | os.PathLike[str]


def fit(
    ld: LDStore | PathLike,
    sumstats: HarmonisedSumstats | SumStats | PathLike,
    annotations: Annotations | PathLike | Sequence[PathLike] | None = None,
    *,
    options: FitOptions | None = None,
    qc: QCOptions | None = None,
    out: PathLike | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Fit:
    """Learn a prior: the variance of each variant's effect as a function of its annotations.

    Model: z | beta ~ N(sqrt(N) R beta, sigma2 R), beta_j ~ N(0, f_j), f_j = exp(network(annotations of j)), per
    standardised genotype. The full likelihood of z is maximised over the training blocks, starting from the constant
    prior that is best there; training stops early on the validation blocks; the test blocks are scored once.

    ld: an LD store or its path.
    sumstats: a GWAS file, or what `read_sumstats` or `harmonise` returned, or a Parquet file of harmonised z-scores.
    annotations: a file that `read_annotations` understands, or `Annotations`; may be None for the constant prior.
    options: see `FitOptions`.  qc: quality control when `sumstats` is not harmonised yet.
    out: folder for the run: `run.json`, checkpoints, metrics, the table of variants. None keeps the fit in memory.
    resume: go on with an interrupted run in `out`, which must have the same inputs and options; a finished one is read.
    progress: called as progress(what, done, total).

    Returns a `Fit`. Raises InputError for input that does not fit together.
    """
    options = options or FitOptions()
    folder = None if out is None else _claim(Path(out), resume)
    store = ld if isinstance(ld, LDStore) else open_ld(ld)
    trait = _harmonised(sumstats, store, qc)
    features = _annotated(annotations, store, options)
    record = _first_record(store, trait, features, options)
    fresh = folder is not None and not (folder / RECORD).exists()
    stood = folder is not None and folder.exists()
    if folder is not None:
        if not fresh:
            finished = _same_run(folder, record)
            if finished:
                return load_fit(folder)
        else:
            folder.mkdir(exist_ok=True)
            write_json(folder / RECORD, record)
    job = _Job(store, trait, features, options, folder, record, progress or (lambda *_: None))
    try:
        # XLA runs blocks side by side. BLAS threads inside each wait for one another by spinning: for matrices of a few
        # hundred they gain nothing, and on a busy machine they cost several times the work. XLA calls SciPy's BLAS, and
        # only libraries loaded by now are limited.
        import scipy.linalg  # noqa: F401

        with threadpool_limits(1, user_api="blas"):
            result = job.run()
    except InputError:
        # Only some faults show in training, as a column without values on its variants: then, too, nothing stays.
        if fresh and folder is not None:
            shutil.rmtree(folder)
            if stood:
                folder.mkdir()
        raise
    if folder is not None:
        result.save(folder)
        for checkpoints in folder.glob("rotation_*/checkpoints"):
            shutil.rmtree(checkpoints)
    return result


def _claim(folder: Path, resume: bool) -> Path:
    """The run folder, which must be new, empty, or resumed."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; the run needs a folder. Give another name.")
    if not folder.parent.is_dir():
        raise InputError(f"{folder}: the folder {folder.parent} does not exist. Make it first.")
    if resume and folder.exists() and any(folder.iterdir()) and not (folder / RECORD).is_file():
        raise InputError(f"{folder}: not empty, and there is no {RECORD} of a run to resume. Give the run's folder.")
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise InputError(
            f"{folder}: not empty. To go on with an interrupted run, give --resume (resume=True); else another folder."
        )
    return folder


def _harmonised(given: Any, store: LDStore, qc: QCOptions | None) -> HarmonisedSumstats:
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        given = read_harmonised(path, expected_checksum=store.checksum) if _is_parquet(path) else read_sumstats(path)
    if isinstance(given, SumStats):
        return harmonise(
            given,
            store.variants,
            n_panel=store.n_samples,
            options=qc or QCOptions(),
            genome_build=store.genome_build,
            store_checksum=store.checksum,
        )
    if not isinstance(given, HarmonisedSumstats):
        raise InputError(
            f"sumstats is a {type(given).__name__}: give a file, or what read_sumstats or harmonise returns."
        )
    if given.store_checksum not in (None, store.checksum) or given.n_store != store.n_variants:
        raise InputError(
            f"{given.source}: harmonised against another LD store than {store.path}. Harmonise it against this one."
        )
    if qc is not None:
        raise InputError(
            f"{given.source}: already harmonised, so quality-control options cannot apply. Leave them out."
        )
    return given


def _is_parquet(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as handle:
        return handle.read(4) == b"PAR1"


def _annotated(given: Any, store: LDStore, options: FitOptions) -> Annotations | None:
    if given is None:
        if options.network != "constant":
            raise InputError(
                f"the {options.network} network needs annotations. Give --annotations, or --network constant."
            )
        return None
    found = given if isinstance(given, Annotations) else read_annotations(given, store.variants)
    if not found.names:
        raise InputError("the annotations hold no column that varies.")
    if found.variants.height != store.n_variants or not found.variants["SNP"].equals(store.variants["SNP"]):
        raise InputError(f"the annotations are not those of the variants of {store.path}. Annotate this store.")
    return found


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _first_record(
    store: LDStore, trait: HarmonisedSumstats, features: Annotations | None, options: FitOptions
) -> dict[str, Any]:
    """What is known before training: `run.json` while the run is under way."""
    frame = trait.frame
    tally = Tally()
    tally.extend(trait.tally)
    inputs: dict[str, Any] = {
        "ld": {
            "file": store.path.name,
            "checksum": store.checksum,
            "genome_build": store.genome_build,
            "n_samples": store.n_samples,
        },
        "sumstats": {
            "file": trait.source,
            "sha256": trait.source_sha256,
            "format": trait.source_format,
            "content": _digest(*(frame[c].to_numpy() for c in ("VARIANT", "Z", "N"))),
        },
        "annotations": None,
    }
    if features is not None:
        tally.extend(features.tally)
        inputs["annotations"] = {
            "names": list(features.names),
            "sources": features.sources,
            "files": {Path(name).name: checksum for name, checksum in features.files.items()},
            "content": _digest(features.values),
        }
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "deepwas_version": __version__,
        "status": "running",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": options.as_dict(),
        "inputs": inputs,
        "counts": tally.as_list(),
    }


def _same_run(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the run in `folder` is finished; InputError if it is another run than `record` describes."""
    found = read_json(folder / RECORD, "the record of a run")
    check_record(found, folder)
    for part in ("options", "inputs"):
        for name, value in record[part].items():
            before = found[part].get(name)
            if before != value:
                raise InputError(
                    f"{folder}: cannot resume, {part}: {name} differs: the run has {_short(before)}, now "
                    f"{_short(value)}. Give what the run was started with, or another folder."
                )
    return found["status"] == "complete"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else text[:200] + "..."


@dataclass
class _Job:
    """One fit under way: data, then the constant prior, then one network per rotation, then the record."""

    store: LDStore
    trait: HarmonisedSumstats
    features: Annotations | None
    options: FitOptions
    folder: Path | None
    record: dict[str, Any]
    progress: Progress

    def run(self) -> Fit:
        from deepwas.training.baseline import moment_effect_variance
        from deepwas.training.data import whiten_trait
        from deepwas.training.heritability import constant_spectra, scale_heritability, truncation_sensitivity
        from deepwas.training.sections import make_rotations, split_sections

        begun = time.monotonic()
        o, frame = self.options, self.trait.frame
        self.blocks, dropped = whiten_trait(
            self.store, frame, progress=lambda done, total: self.progress("whitening LD blocks", done, total)
        )
        chromosomes = [str(self.store.variants["CHR"][b.rows.start]) for b in self.blocks]
        sizes = [len(b.z) for b in self.blocks]
        self.section = split_sections(chromosomes, sizes, o.folds)
        rotations = make_rotations(self.section)[: o.folds if o.cross_fit else 1]
        scores = self.store.variants["LDSCORE"].to_numpy()[frame["VARIANT"].to_numpy()]
        moment = moment_effect_variance(frame["Z"].to_numpy(), scores, frame["N"].to_numpy())
        self.spectra = constant_spectra(self.blocks)
        constant = scale_heritability(self.spectra, sum(sizes), moment, o.noise)
        sensitivity = truncation_sensitivity(self.store, frame, start=moment)

        outcomes = self._rotate(rotations, moment)
        cross = outcomes if o.cross_fit else None
        result = self._assemble(outcomes)
        self.record["counts"] += dropped.as_list()
        self.record |= {
            "status": "complete",
            "environment": _environment(),
            "size": {
                "blocks": len(self.blocks),
                "variants_in_store": self.store.n_variants,
                "variants_modelled": sum(sizes),
                "variants_scored": int(sum(b.observed.sum() for b in self.blocks)),
                "eigenvalues": int(sum(len(b.whitened) for b in self.blocks)),
                "mean_sample_size": float(frame["N"].mean()),  # type: ignore[arg-type]
                "mean_chi2": float(np.mean(frame["Z"].to_numpy() ** 2)),
            },
            "heritability": {
                "moment": moment * sum(sizes),
                "constant": constant,
                "plain": self._heritability(result.variants["SNPVAR_PLAIN"], outcomes[:1]),
                "cross_fitted": self._heritability(result.variants["SNPVAR_CROSS"], cross) if cross else None,
            },
            "sensitivity": sensitivity,
            "held_out": {
                "plain": _held_out(outcomes[:1]),
                "cross_fitted": _held_out(cross) if cross else None,
            },
            "rotations": [x["record"] for x in outcomes],
            "priors": [],
            "seconds": round(time.monotonic() - begun, 3),
        }
        return result

    def _rotate(self, rotations: list[Rotation], moment: float) -> list[dict[str, Any]]:
        """Train one network per rotation; each outcome holds the network, log f of every variant, and its record."""
        from deepwas.training.baseline import fit_scale, log_density

        if self.options.network != "constant":
            from deepwas.training.data import pack_blocks
            from deepwas.training.loop import Trainer

            trainer = Trainer(pack_blocks(self.blocks), self.options, n_panel=self.store.n_samples)
        outcomes = []
        for r, rotation in enumerate(rotations):
            noise = self.options.noise
            start = (float(np.log(moment)), 1.0 if noise is None else noise)
            base = fit_scale([self.spectra[i] for i in rotation.train], noise=noise, start=start)
            null = log_density([self.spectra[i] for i in rotation.test], base.log_scale, base.noise)
            record: dict[str, Any] = {
                "rotation": r,
                "train_blocks": rotation.train.tolist(),
                "validation_blocks": rotation.validation.tolist(),
                "test_blocks": rotation.test.tolist(),
                "constant": {"log_effect_variance": base.log_scale, "noise": base.noise},
                "test_log_likelihood_constant": null.tolist(),
            }
            if self.options.network == "constant":
                record |= {"network": None, "noise": base.noise, "test_log_likelihood": null.tolist()}
                log_f = np.full(self.store.n_variants, base.log_scale)
                outcomes.append({"record": record, "log_f": log_f, "network": None, "standardiser": None})
                continue
            outcomes.append(self._train(trainer, r, len(rotations), rotation, base, record))
        return outcomes

    def _train(
        self, trainer: Any, r: int, count: int, rotation: Rotation, base: Any, record: dict[str, Any]
    ) -> dict[str, Any]:
        from deepwas.networks import make_network, predict_log_variance
        from deepwas.training.data import pack_features

        o = self.options
        assert self.features is not None
        rows = np.concatenate([np.arange(self.blocks[i].rows.start, self.blocks[i].rows.stop) for i in rotation.train])
        standardiser = Standardiser.fit(self.features, rows)
        values = standardiser.transform(self.features)
        network = make_network(o.network, values.shape[1], base.log_scale, hidden=o.hidden, seed=o.seed * 1000 + r)
        packed = pack_features(self.blocks, trainer.host_buckets, values)
        trained = trainer.train(
            network,
            base.noise,
            packed,
            rotation.train,
            rotation.validation,
            rotation=r,
            constant_variance=float(np.exp(base.log_scale)),
            folder=None if self.folder is None else self.folder / f"rotation_{r}",
            progress=lambda done, total: self.progress("training", r * total + done, count * total),
        )
        before = trainer.log_likelihood(trained.start, packed, rotation.test)
        after = trainer.log_likelihood(trained.best, packed, rotation.test)
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
        log_f = predict_log_variance(network, values)
        return {"record": record, "log_f": log_f, "network": network, "standardiser": standardiser}

    def _assemble(self, outcomes: list[dict[str, Any]]) -> Fit:
        """The table of variants with their priors, and the `Fit` around it."""
        names = ("CHR", "SNP", "BP", "A1", "A2")
        keep = np.concatenate([np.arange(b.rows.start, b.rows.stop) for b in self.blocks])
        sizes = [len(b.z) for b in self.blocks]
        frame = self.store.variants.select(*names).with_row_index("VARIANT")
        scored = self.trait.frame.select("VARIANT", "Z", "N")
        plain = np.exp(outcomes[0]["log_f"])
        columns = {
            "BLOCK": np.repeat([b.number for b in self.blocks], sizes),
            "SECTION": np.repeat(self.section, sizes),
            "SNPVAR_PLAIN": plain[keep],
        }
        if self.options.cross_fit:
            own = np.repeat(self.section, sizes)
            stacked = np.stack([x["log_f"] for x in outcomes])
            columns["SNPVAR_CROSS"] = np.exp(stacked[own, keep])
        variants = frame[keep].hstack(pl.DataFrame(columns)).join(scored, on="VARIANT", how="left")
        variants = variants.sort("VARIANT").drop("VARIANT")
        return Fit(
            record=self.record,
            variants=variants,
            networks=[x["network"] for x in outcomes],
            standardisers=[x["standardiser"] for x in outcomes],
            folder=self.folder,
        )

    def _heritability(self, snpvar: pl.Series, outcomes: list[dict[str, Any]]) -> dict[str, Any]:
        from deepwas.training.heritability import heritability

        values = snpvar.to_numpy()
        ends = np.cumsum([len(b.z) for b in self.blocks])
        f = np.split(values, ends[:-1])
        noise = float(np.mean([x["record"]["noise"] for x in outcomes]))
        return heritability(self.blocks, f, noise, self.options.noise is None)


def _held_out(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Log-likelihood of blocks that neither training nor early stopping saw, over that of the constant prior."""
    blocks = np.concatenate([x["record"]["test_blocks"] for x in outcomes]).astype(int)
    model = np.concatenate([x["record"]["test_log_likelihood"] for x in outcomes])
    null = np.concatenate([x["record"]["test_log_likelihood_constant"] for x in outcomes])
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


def _environment() -> dict[str, Any]:
    import jax

    devices = jax.devices()
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "polars", "h5py")
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "x64": bool(jax.config.read("jax_enable_x64")),
        "packages": {name: version(name) for name in packages},
    }
