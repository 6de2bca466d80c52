"""`fit`: from an LD store, one trait's summary statistics and annotations to a trained prior.

The inputs are read and checked before anything that computes is imported.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from deepwas import __version__
from deepwas.annotations import Annotations, read_annotations
from deepwas.errors import InputError
from deepwas.files import read_json, write_json
from deepwas.ld import LDStore, open_ld
from deepwas.options import FitOptions
from deepwas.rendezvous import current
from deepwas.runs import FORMAT, FORMAT_VERSION, RECORD, Fit, check_record, load_fit
from deepwas.sumstats import HarmonisedSumstats, QCOptions, SumStats, harmonise, read_harmonised, read_sumstats
from deepwas.tally import Tally

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

    Inside `deepwas.parallel.start` every process calls it with the same arguments; process 0 alone writes `out`.

    Returns a `Fit`. Raises InputError for input that does not fit together.
    """
    options = options or FitOptions()
    if annotations is None and options.network != "constant":
        raise InputError(f"the {options.network} network needs annotations. Give --annotations, or --network constant.")
    group = current()
    # Of several processes only the first writes; the others follow it.
    folder = _claim(Path(out), resume) if out is not None and group.first else None
    store = ld if isinstance(ld, LDStore) else open_ld(ld)
    trait = _harmonised(sumstats, store, qc)
    features = _annotated(annotations, store)
    record = _first_record(store, trait, features, options)
    fresh = folder is not None and not (folder / RECORD).exists()
    stood = folder is not None and folder.exists()
    group.agree("what they fit", _contents(record) | {"out": out is None, "resume": resume})
    finished = folder is not None and not fresh and _same_run(folder, record)
    if group.from_first("whether the run is finished", finished):
        assert out is not None
        return load_fit(out)
    if folder is not None and fresh:
        folder.mkdir(exist_ok=True)
        write_json(folder / RECORD, record)
    from deepwas.training.job import Job

    job = Job(store, trait, features, options, folder, record, progress or (lambda *_: None))
    try:
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
        for pattern in ("whitened*.h5", ".*.partial.whitened*.h5"):
            for cache in folder.glob(pattern):
                cache.unlink()
    return result


def _claim(folder: Path, resume: bool) -> Path:
    """The run folder, which must be new, empty, or resumed."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; the run needs a folder. Give another name.")
    if not folder.parent.is_dir():
        raise InputError(f"{folder}: the folder {folder.parent} does not exist. Make it first.")
    # A kill while the first record is written leaves only its unfinished copy.
    busy = folder.exists() and any(".partial." not in x.name for x in folder.iterdir())
    if resume and busy and not (folder / RECORD).is_file():
        raise InputError(f"{folder}: not empty, and there is no {RECORD} of a run to resume. Give the run's folder.")
    if busy and not resume:
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


def _annotated(given: Any, store: LDStore) -> Annotations | None:
    if given is None:
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
            "build": trait.build,
            "match": trait.match,
            "qc": trait.options,
            "content": _digest(*(frame[c].to_numpy() for c in ("VARIANT", "Z", "N"))),
        },
        "annotations": None,
    }
    if features is not None:
        tally.extend(features.tally)
        inputs["annotations"] = {
            "names": list(features.names),
            "sources": features.sources,
            "files": [{"name": Path(name).name, "sha256": checksum} for name, checksum in features.files.items()],
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


def _contents(record: dict[str, Any]) -> dict[str, Any]:
    """Version, options and inputs of a run, flat."""
    inputs = {f"{part}: {name}": value for part, x in record["inputs"].items() if x for name, value in x.items()}
    return {"deepwas_version": record["deepwas_version"], **record["options"], **inputs}


def _same_run(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the run in `folder` is finished; InputError if it is another run than `record` describes."""
    found = read_json(folder / RECORD, "the record of a run")
    check_record(found, folder)
    for part in ("options", "inputs"):
        for name, value in record[part].items():
            before = found[part].get(name)
            if before != value and name != "memory":  # how much is held changes no result
                raise InputError(
                    f"{folder}: cannot resume, {part}: {name} differs: the run has {_short(before)}, now "
                    f"{_short(value)}. Give what the run was started with, or another folder."
                )
    return found["status"] == "complete"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else text[:200] + "..."
