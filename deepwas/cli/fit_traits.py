"""`deepwas fit-traits`: learn the priors of several traits by networks that share a trunk."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from deepwas.cli._console import progress_of_stages, say, say_counts
from deepwas.cli._fit_options import (
    INPUTS,
    AnnotationFiles,
    Resume,
    SequenceFile,
    TracksFile,
    given_options,
    require_inputs,
    with_option_flags,
)
from deepwas.cli._fit_result import say_found, say_training
from deepwas.cli._flags import naming_flags
from deepwas.cli._outputs import say_if_nothing_to_resume
from deepwas.config import OPTIONS, read_config
from deepwas.errors import InputError
from deepwas.options import FitOptions


def register(app: typer.Typer) -> None:
    """Add the command to the root application."""
    app.command("fit-traits")(with_option_flags(fit_traits))


def fit_traits(
    ld: Annotated[Path, typer.Option(help="LD store, made by `deepwas ld build`.", rich_help_panel=INPUTS)],
    sumstats: Annotated[
        list[str],
        typer.Option(
            help="A trait's name and its z-scores, such as height=height.parquet. Repeat for more.",
            rich_help_panel=INPUTS,
            metavar="NAME=FILE",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write, with a run for each trait.", rich_help_panel=INPUTS)],
    annotations: AnnotationFiles = None,
    tracks: TracksFile = None,
    sequence: SequenceFile = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            help="A trait's weight in training, such as height=0.5; 1 where not given. Repeat for more.",
            rich_help_panel=INPUTS,
            metavar="NAME=NUMBER",
        ),
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(
            help="A finished run whose trunks are taken over: adds traits to trained ones.", rich_help_panel=INPUTS
        ),
    ] = None,
    freeze_trunk: Annotated[
        bool, typer.Option("--freeze-trunk", help="Train the new heads alone.", rich_help_panel=INPUTS)
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML, or the run.json of a run, for the options of the fit; its paths are not used. Flags override.",
            rich_help_panel=INPUTS,
        ),
    ] = None,
    resume: Resume = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write metrics for TensorBoard too.", rich_help_panel=INPUTS)
    ] = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Learn the priors of several traits by networks that share a trunk.

    Each trait has a head of its own, its own sample size, missing variants
    and noise, and the same sections of the genome held out. The folder gets
    one run for each trait, which `deepwas priors` and all that reads runs
    take as those of `deepwas fit`.

    Example: deepwas fit-traits --ld ld.h5 --sumstats height=h.parquet --sumstats bmi=b.parquet
    --annotations a.parquet --out runs
    """
    from deepwas.files import require_file

    files = {name: Path(text) for name, text in _named("--sumstats", sumstats, "height=height.parquet").items()}
    weights = {name: _number(name, text) for name, text in _named("--weight", weight or [], "height=0.5").items()}
    settings = {} if config is None else read_config(config)
    with naming_flags(FitOptions):
        options = FitOptions(**({name: x for name, x in settings.items() if name in OPTIONS} | given_options(flags)))
    require_file(ld, "an LD store")
    for name, path in files.items():
        require_file(path, f"summary statistics of {name}")
    require_inputs(annotations, tracks, sequence)
    if start_from is not None and not start_from.is_dir():
        raise InputError(f"--start-from {start_from}: no such folder. Give the folder of a finished run.")
    counted: dict[str, int] = {}

    def before_training(counts: dict[str, list[dict[str, Any]]]) -> None:
        own = list(counts.values())
        shared = [row for row in own[0] if len(own) > 1 and all(row in rows for rows in own)]
        if shared:
            say("all traits:")
            say_counts(shared)
        for name, rows in counts.items():
            counted[name] = len(rows)
            if rest := [row for row in rows if row not in shared]:
                say(f"{name}:")
                say_counts(rest)
        say_training(options)

    with ExitStack() as stack:
        from deepwas.fitting_traits import fit_traits as run

        say_if_nothing_to_resume(resume, out)
        stack.enter_context(naming_flags(FitOptions, at_start=True))
        found = run(
            ld,
            files,
            annotations or None,
            tracks=tracks,
            sequence=sequence,
            options=options,
            weights=weights,
            start_from=start_from,
            freeze_trunk=freeze_trunk,
            out=out,
            resume=resume,
            tensorboard=tensorboard or bool(settings.get("tensorboard")),
            progress=stack.enter_context(progress_of_stages()),
            counted=before_training,
        )
    say_found({name: fit.record for name, fit in found.items()}, {name: out / name for name in found}, counted)


def _named(flag: str, texts: list[str], example: str) -> dict[str, str]:
    """`NAME=TEXT` as name -> text; InputError for another form and for a name given twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = (x.strip() for x in text.partition("="))
        if not (equals and name and value):
            raise InputError(f"{flag} {text!r}: give a trait's name and what is its own, such as {flag} {example}.")
        if name in found:
            raise InputError(f"{flag}: {name} is given twice. Give every trait once, under its own name.")
        found[name] = value
    return found


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--weight {name}={text}: {text!r} is not a number.") from None
