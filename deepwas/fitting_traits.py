"""`fit_traits`: several traits at once, their priors by networks that share a trunk; or one more on a trained trunk."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepwas.annotations import Annotations
from deepwas.errors import InputError
from deepwas.files import write_json
from deepwas.fit_inputs import FitInputs, read_inputs
from deepwas.fitting import PathLike, Progress, claim, same_run, tidy
from deepwas.inputs import Windows
from deepwas.ld import LDStore, open_ld
from deepwas.network_options import NetworkOptions
from deepwas.options import FitOptions
from deepwas.rendezvous import current
from deepwas.runs import RECORD, Fit, load_fit
from deepwas.sumstats import HarmonisedSumstats, QCOptions, SumStats

if TYPE_CHECKING:
    from deepwas.training.plan import Plan

__all__ = ["fit_traits"]

_NAME = re.compile(r"(?!rotation_)[A-Za-z0-9][A-Za-z0-9_.+-]*")


def fit_traits(
    ld: LDStore | PathLike,
    sumstats: Mapping[str, HarmonisedSumstats | SumStats | PathLike],
    annotations: Annotations | PathLike | Sequence[PathLike] | None = None,
    *,
    tracks: Windows | PathLike | None = None,
    sequence: Windows | PathLike | None = None,
    options: FitOptions | None = None,
    qc: QCOptions | None = None,
    weights: Mapping[str, float] | None = None,
    start_from: Fit | PathLike | None = None,
    freeze_trunk: bool = False,
    out: PathLike | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    progress: Progress | None = None,
    counted: Callable[[dict[str, list[dict[str, Any]]]], None] | None = None,
) -> dict[str, Fit]:
    """Learn the priors of several traits by networks that share a trunk and have a head for each trait.

    Model: f_tj = exp(head_t(trunk(inputs of j))) for trait t; given f, each trait's z-scores have the likelihood of
    `fit`, with their own sample sizes, missing variants and noise. The sum of the traits' log-likelihoods is maximised:
    covariance between traits' z-scores, as from people that their GWAS share, is not modelled here and biases no prior,
    as each trait's own likelihood is right without it. Sections held out are the same for all traits.

    sumstats: by the trait's name, as for `fit`.  weights: of traits in training, by name, 1 where not given.
    start_from: a finished run (or its folder) on the same LD store, inputs, network options and sections, whose trunks
        are taken over: the way to add a trait to trained ones.  freeze_trunk: train the new heads alone.
    out: folder for the runs, one folder in it per trait, each a run like those of `fit`, for `load_fit`, `deepwas
        priors` and whatever reads runs.  resume: go on with an interrupted run.
    counted: as for `fit`, with the counts of each trait by name.
    The rest as for `fit`.

    Returns the `Fit` of each trait by name; its networks are the trunk with the trait's head. Raises InputError for
    input that does not fit together.
    """
    options = options or FitOptions()
    _check(sumstats, weights, options, start_from, freeze_trunk)
    with ExitStack() as stack:
        store = ld if isinstance(ld, LDStore) else open_ld(ld)
        if store is not ld:
            stack.callback(store.close)
        given: dict[str, FitInputs] = {}
        for name, own in sumstats.items():
            try:
                given[name] = read_inputs(stack, store, own, annotations, tracks, sequence, options, qc)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
            # Read once for all.
            annotations, tracks, sequence = given[name].features, given[name].tracks, given[name].sequence
        start = start_from if isinstance(start_from, Fit) or start_from is None else load_fit(start_from)
        if start is not None:
            _check_start(start, next(iter(given.values())))
        for name, one in given.items():
            one.record["inputs"]["traits"] = {
                "own": name,
                "all": list(given),
                "weights": {n: float((weights or {}).get(n, 1.0)) for n in given},
                "freeze_trunk": freeze_trunk,
                "start_from": None if start is None else _described(start),
            }
        if counted is not None:
            counted({name: list(one.record["counts"]) for name, one in given.items()})
        return _run(given, options, start, freeze_trunk, out, resume, tensorboard, progress)


def _run(
    given: Mapping[str, FitInputs],
    options: FitOptions,
    start: Fit | None,
    freeze_trunk: bool,
    out: PathLike | None,
    resume: bool,
    tensorboard: bool,
    progress: Progress | None,
) -> dict[str, Fit]:
    store = next(iter(given.values())).store
    from deepwas.training.plan import plan_traits

    plans = plan_traits(store, {name: x.trait.frame for name, x in given.items()}, options)
    if start is not None:
        _check_sections(start, store, given, plans)
    folders: dict[str, Path | None] = dict.fromkeys(given)
    whole, fresh, stood = None, False, False
    if out is not None:
        whole = Path(out)
        stood = whole.exists()
        fresh = not (resume and whole.exists() and any(whole.iterdir()))
        _claim_all(whole, list(given), resume)
        folders = {name: whole / name for name in given}
        if not fresh and _finished(given, folders):
            return {name: load_fit(folder) for name, folder in folders.items() if folder is not None}
        whole.mkdir(exist_ok=True)
        for name, one in given.items():
            (whole / name).mkdir(exist_ok=True)
            if not (whole / name / RECORD).exists():
                write_json(whole / name / RECORD, one.record)
    from deepwas.training.job import CACHE, LOCK, Job
    from deepwas.training.traits_job import TraitsJob

    say = progress or (lambda *_: None)
    jobs = {
        name: Job(
            one.store,
            one.trait,
            one.features,
            options,
            plans[name],
            folders[name],
            one.record,
            lambda what, a, b, name=name: say(f"{name}: {what}", a, b),  # type: ignore[misc]
            one.tracks,
            one.sequence,
        )
        for name, one in given.items()
    }
    weights = next(iter(given.values())).record["inputs"]["traits"]["weights"]
    try:
        found = TraitsJob(jobs, options, whole, say, weights, start, freeze_trunk, tensorboard).run()
    except InputError:
        # Only some faults show in training, as a column without values on its variants: then, too, nothing stays.
        if whole is not None and fresh:
            shutil.rmtree(whole)
            if stood:
                whole.mkdir()
        raise
    if whole is not None:
        for name, fit in found.items():
            fit.save(whole / name)
            tidy(whole / name, CACHE, LOCK)
        tidy(whole, CACHE, LOCK)
    return found


def _check(
    sumstats: Any, weights: Mapping[str, float] | None, options: FitOptions, start_from: Any, freeze_trunk: bool
) -> None:
    if not isinstance(sumstats, Mapping) or not sumstats:
        raise InputError("sumstats must name the traits: {'height': 'height.parquet', 'bmi': 'bmi.parquet'}.")
    for name in sumstats:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(
                f"{name!r} cannot name a trait: its run gets a folder of that name. Use letters, digits and _ . + -"
            )
    for name, weight in (weights or {}).items():
        if name not in sumstats:
            raise InputError(f"a weight is given for {name!r}, which is no trait here: {', '.join(sumstats)}.")
        if not 0 < weight < float("inf"):
            raise InputError(f"the weight of {name} is {weight}; it must be positive and finite.")
    if options.network == "constant":
        raise InputError("constant priors share nothing: fit each trait alone, or give another --network.")
    if freeze_trunk and start_from is None:
        raise InputError("a trunk that is not trained must come from a run. Give start_from (--start-from) as well.")
    if current().count > 1:
        raise InputError("several traits are fitted in one process; --distributed is for one trait.")


def _check_start(start: Fit, given: FitInputs) -> None:
    """The run to start from must have the same network, read the same inputs, on the same LD store."""
    where = start.folder or "the run to start from"
    before, now = start.options, given.options
    for field in fields(NetworkOptions):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if old != new:
            raise InputError(f"{where}: its network has {field.name} {old}, now {new}. Give {_flag(field.name, old)}.")
    for name in ("ld", "annotations", "tracks", "sequence"):
        then, here = (x["inputs"].get(name) or {} for x in (start.record, given.record))
        key = "checksum" if name == "ld" else "content"
        if then.get(key) != here.get(key):
            raise InputError(f"{where}: was fitted with other {name}. Give the same, or fit without --start-from.")


def _check_sections(start: Fit, store: LDStore, given: Mapping[str, FitInputs], plans: Mapping[str, Plan]) -> None:
    """The run to start from must have held out what this one holds out."""
    from deepwas.training.trait import blocks_with_scores

    where = start.folder or "the run to start from"
    count = len(next(iter(plans.values())).rotations)
    if any(network is None for network in start.networks) or len(start.networks) != count:
        raise InputError(
            f"{where}: has {sum(x is not None for x in start.networks)} network(s), {count} are needed, one for each "
            "section. Give a run with the same --folds and --cross-fit."
        )
    for name, plan in plans.items():
        numbers, _ = blocks_with_scores(store, given[name].trait.frame)
        for own in start.record["rotations"]:
            seen = set(own["train_blocks"]) | set(own["validation_blocks"])
            tested = {numbers[int(i)] for i in plan.rotations[own["rotation"]].test}
            if both := sorted(seen & tested):
                raise InputError(
                    f"{where}: its rotation {own['rotation']} was trained on LD block {both[0]}, on which {name} is "
                    "tested. Give a run on the same LD store with the same sections."
                )


def _flag(name: str, value: Any) -> str:
    """The flag that gives an option this value."""
    said = ",".join(map(str, value)) if isinstance(value, tuple) else "none" if value is None else str(value)
    return f"--{name.replace('_', '-')} {said}" if said else f"no --{name.replace('_', '-')}"


def _described(start: Fit) -> dict[str, Any]:
    return {
        "folder": None if start.folder is None else start.folder.name,
        "created": start.record["created"],
        "sumstats": start.record["inputs"]["sumstats"]["content"],
    }


def _claim_all(whole: Path, names: Sequence[str], resume: bool) -> None:
    """The folder must be new or empty, or hold runs of these traits to go on with."""
    if not resume or not whole.exists() or not any(whole.iterdir()):
        claim(whole, False)
        return
    found = sorted(x.parent.name for x in whole.glob(f"*/{RECORD}"))
    if not set(found) <= set(names) or not found:
        what = f"runs of {', '.join(found)}" if found else "no run"
        raise InputError(f"{whole}: holds {what}, not of {', '.join(names)}. Give the folder that was interrupted.")


def _finished(given: Mapping[str, FitInputs], folders: Mapping[str, Path | None]) -> bool:
    """Whether all runs are complete; InputError if any is another run than it was started as."""
    done = []
    for name, folder in folders.items():
        assert folder is not None
        done.append((folder / RECORD).is_file() and same_run(folder, given[name].record))
    return all(done)
