"""`fit`: from an LD store, one trait's summary statistics and annotations to a trained prior.

The inputs are read and checked before anything that computes is imported.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deepwas.annotations import Annotations
from deepwas.errors import InputError
from deepwas.files import read_json, write_json
from deepwas.fit_inputs import FitInputs, read_inputs
from deepwas.inputs import Windows
from deepwas.ld import LDStore
from deepwas.options import FitOptions
from deepwas.rendezvous import current
from deepwas.runs import RECORD, Fit, check_record, load_fit
from deepwas.sumstats import HarmonisedSumstats, QCOptions, SumStats

__all__ = ["PathLike", "Progress", "claim", "fit", "fit_rotations", "same_run", "tidy"]

Progress = Callable[[str, int, int], None]
Counted = Callable[[list[dict[str, Any]]], None]
PathLike = str | os.PathLike[str]


def fit(
    ld: LDStore | PathLike,
    sumstats: HarmonisedSumstats | SumStats | PathLike,
    annotations: Annotations | PathLike | Sequence[PathLike] | None = None,
    *,
    tracks: Windows | PathLike | None = None,
    sequence: Windows | PathLike | None = None,
    options: FitOptions | None = None,
    qc: QCOptions | None = None,
    out: PathLike | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    progress: Progress | None = None,
    counted: Counted | None = None,
) -> Fit:
    """Learn a prior: the variance of each variant's effect as a function of what is known about it.

    Model: z | beta ~ N(sqrt(N) R beta, sigma2 R), beta_j ~ N(0, f_j), f_j = exp(network(inputs of j)), per
    standardised genotype. The full likelihood of z is maximised over the training blocks, starting from the constant
    prior that is best there; training stops early on the validation blocks; the test blocks are scored once.

    ld: an LD store or its path.
    sumstats: a GWAS file, or what `read_sumstats` or `harmonise` returned, or a Parquet file of harmonised z-scores.
    annotations: a file that `read_annotations` understands, or `Annotations`.
    tracks, sequence: windows around the store's variants for networks that read them: files of `extract_tracks` and
        `extract_sequence`, or arrays by row of the store, (M, bins, tracks) and (M, 2, bases); see `VariantInputs`.
        At least one of the three is needed, unless the network is 'constant'.
    options: see `FitOptions`.  qc: quality control when `sumstats` is not harmonised yet.
    out: folder for the run: `run.json`, checkpoints, metrics, the table of variants. None keeps the fit in memory.
    resume: go on with an interrupted run in `out`, which must have the same inputs and options; a finished one is read,
        as are the finished rotations of one that is not. Where there is none, a new run starts.
    tensorboard: write metrics for TensorBoard too, into `out`; needs the package tensorboardX.
    progress: called as progress(what, done, total).  counted: called once, before anything is trained, with the counts
        of variants read, matched and dropped, the first entries of `record["counts"]`.

    Inside `deepwas.parallel.start` every process calls it with the same arguments; process 0 alone writes `out`.

    Returns a `Fit`. Raises InputError for input that does not fit together.
    """
    with ExitStack() as stack:
        given = read_inputs(stack, ld, sumstats, annotations, tracks, sequence, options, qc)
        if counted is not None:
            counted(list(given.record["counts"]))
        found = _run(given, out, resume, None, tensorboard, progress)
        assert found is not None
        return found


def fit_rotations(
    ld: LDStore | PathLike,
    sumstats: HarmonisedSumstats | SumStats | PathLike,
    annotations: Annotations | PathLike | Sequence[PathLike] | None = None,
    *,
    rotations: Sequence[int],
    out: PathLike,
    tracks: Windows | PathLike | None = None,
    sequence: Windows | PathLike | None = None,
    options: FitOptions | None = None,
    qc: QCOptions | None = None,
    tensorboard: bool = False,
    progress: Progress | None = None,
    counted: Counted | None = None,
) -> None:
    """Train some rotations of a fit, so that several processes or machines can share its work.

    rotations: which, from 0; with folds='loco' the chromosomes in genome order.
    out: the run folder that they share, made by whoever is first. Finished rotations are left alone, interrupted ones
        go on from their checkpoints, and one that another process is at is an InputError.
    The rest as for `fit`, the same in every call. When all are done, `fit(..., out=out, resume=True)` trains what is
    missing and puts the run together: to the same result as one call of `fit` from the start.
    """
    with ExitStack() as stack:
        given = read_inputs(stack, ld, sumstats, annotations, tracks, sequence, options, qc)
        if counted is not None:
            counted(list(given.record["counts"]))
        _run(given, out, True, tuple(rotations), tensorboard, progress)


def _run(
    given: FitInputs,
    out: PathLike | None,
    resume: bool,
    rotations: Sequence[int] | None,
    tensorboard: bool,
    progress: Progress | None,
) -> Fit | None:
    """Run the fit, or some of its rotations, which returns None."""
    if tensorboard and find_spec("tensorboardX") is None:
        raise InputError("TensorBoard metrics need the package tensorboardX. Install it: pip install tensorboardX")
    if tensorboard and out is None:
        raise InputError("TensorBoard metrics go into the run folder. Give out (--out).")
    group, record = current(), given.record
    # Of several processes only the first writes; the others follow it.
    folder = claim(Path(out), resume) if out is not None and group.first else None
    fresh = folder is not None and not (folder / RECORD).exists()
    stood = folder is not None and folder.exists()
    said = {"out": out is None, "resume": resume, "rotations": rotations}
    group.agree("what they fit", _contents(record) | said)
    finished = folder is not None and not fresh and same_run(folder, record)
    if group.from_first("whether the run is finished", finished):
        assert out is not None
        return load_fit(out)
    from deepwas.training.job import CACHE, LOCK, Job
    from deepwas.training.plan import choose_rotations, plan_fit

    plan = plan_fit(given.store, given.trait.frame, given.options)
    asked = None if rotations is None else choose_rotations(rotations, plan)
    if folder is not None and fresh:
        folder.mkdir(exist_ok=True)
        if not _first_to_write(folder, record):
            same_run(folder, record)
    job = Job(
        given.store,
        given.trait,
        given.features,
        given.options,
        plan,
        folder,
        record,
        progress or (lambda *_: None),
        given.tracks,
        given.sequence,
        tensorboard,
    )
    try:
        if asked is not None:
            job.run_rotations(asked)
            return None
        result = job.run()
    except InputError:
        # Only some faults show in training, as a column without values on its variants: then, too, nothing stays.
        # A folder that other processes share is left to them.
        if fresh and folder is not None and asked is None:
            shutil.rmtree(folder)
            if stood:
                folder.mkdir()
        raise
    if folder is not None:
        result.save(folder)
        tidy(folder, CACHE, LOCK)
    return result


def tidy(folder: Path, cache: str, lock: str) -> None:
    """Remove from a finished run what it needed to be resumed."""
    from deepwas.training.journal import remove_checkpoints

    for own in folder.glob("rotation_*"):
        remove_checkpoints(own)
    stem, suffix = Path(cache).stem, Path(cache).suffix
    patterns = [f"{stem}*{suffix}", f".*.partial.{stem}*{suffix}", lock, f"rotation_*/{lock}"]
    for pattern in [*patterns, "rotation_*/outcome.json", "rotation_*/log_f.npy"]:
        for file in folder.glob(pattern):
            file.unlink()


def _first_to_write(folder: Path, record: dict[str, Any]) -> bool:
    """Write the first record, whole, unless another process has; whether this one was the first."""
    beside = folder / f".{secrets.token_hex(4)}.partial.{RECORD}"
    try:
        write_json(beside, record)
        try:
            os.link(beside, folder / RECORD)
        except FileExistsError:
            return False
        except OSError:  # no hard links here
            os.replace(beside, folder / RECORD)
        return True
    finally:
        beside.unlink(missing_ok=True)


def claim(folder: Path, resume: bool) -> Path:
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


def _contents(record: dict[str, Any]) -> dict[str, Any]:
    """Version, options and inputs of a run, flat."""
    inputs = {f"{part}: {name}": value for part, x in record["inputs"].items() if x for name, value in x.items()}
    return {"deepwas_version": record["deepwas_version"], **record["options"], **inputs}


def same_run(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the run in `folder` is finished; InputError if it is another run than `record` describes."""
    found = read_json(folder / RECORD, "the record of a run")
    check_record(found, folder)
    known = FitOptions.of_record(found["options"]).as_dict()  # it may be older than some options
    for part, before_now in (("options", known), ("inputs", found["inputs"])):
        for name, value in record[part].items():
            before = before_now.get(name)
            if before != value and name != "memory":  # how much is held changes no result
                raise InputError(
                    f"{folder}: cannot resume, {part}: {name} differs: the run has {_short(before)}, now "
                    f"{_short(value)}. Give what the run was started with, or another folder."
                )
    return found["status"] == "complete"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else text[:200] + "..."
