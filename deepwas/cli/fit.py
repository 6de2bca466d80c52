"""`deepwas fit`: learn a prior from an LD store, one trait's summary statistics, and annotations or tracks."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from deepwas.cli._console import progress_of_stages, say, say_counts
from deepwas.cli._fit_options import (
    INPUTS,
    SECTIONS,
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
from deepwas.cli._outputs import Overwrite, require_output, say_if_nothing_to_resume
from deepwas.config import OPTIONS, PATHS, parse, read_config, write_config
from deepwas.errors import InputError
from deepwas.options import FitOptions

_DISTRIBUTED = "Several processes"


def register(app: typer.Typer) -> None:
    """Add the command to the root application."""
    app.command("fit")(with_option_flags(fit))


def parse_noise(text: str) -> float | None:
    """'learned' -> None, otherwise the number."""
    return parse("noise", text)


def _given_files(config: Path | None, paths: dict[str, Any]) -> list[Path]:
    """All files that were named, none of which a written file may replace."""
    single = [paths[name] for name in ("ld", "sumstats", "tracks", "sequence")]
    return [Path(x) for x in (config, *single, *(paths["annotations"] or ())) if x]


def parse_rotations(text: str) -> tuple[int, ...]:
    """'3,4' -> (3, 4)."""
    try:
        return tuple(int(x) for x in text.split(",") if x.strip())
    except ValueError:
        raise InputError(f"--rotation {text!r}: give numbers from 0, such as 3,4.") from None


def fit(
    ld: Annotated[
        Path | None, typer.Option(help="LD store, made by `deepwas ld build`.", rich_help_panel=INPUTS)
    ] = None,
    sumstats: Annotated[
        Path | None,
        typer.Option(
            help="z-scores harmonised by `deepwas sumstats`, or a GWAS file, harmonised here with the defaults.",
            rich_help_panel=INPUTS,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write.", rich_help_panel=INPUTS)] = None,
    annotations: AnnotationFiles = None,
    tracks: TracksFile = None,
    sequence: SequenceFile = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML with the flags' names, with underscores; or a run's run.json, for its options. Flags override.",
            rich_help_panel=INPUTS,
        ),
    ] = None,
    write_config_to: Annotated[
        Path | None,
        typer.Option("--write-config", help="Write these settings as TOML, and stop.", rich_help_panel=INPUTS),
    ] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    rotation: Annotated[
        str | None,
        typer.Option(
            help="Train these alone, such as 3,4, of a run whose folder other processes share; --resume then ends it.",
            rich_help_panel=_DISTRIBUTED,
        ),
    ] = None,
    tensorboard: Annotated[
        bool | None,
        typer.Option("--tensorboard", help="Write metrics for TensorBoard too.", rich_help_panel=INPUTS),
    ] = None,
    distributed: Annotated[
        bool,
        typer.Option(
            "--distributed",
            help="One of several processes that run this same command. Process 0 writes --out.",
            rich_help_panel=_DISTRIBUTED,
        ),
    ] = False,
    coordinator: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT where process 0 listens. This and the next two come from Slurm, Open MPI, ... if left out.",
            rich_help_panel=_DISTRIBUTED,
        ),
    ] = None,
    num_processes: Annotated[int | None, typer.Option(help="How many there are.", rich_help_panel=_DISTRIBUTED)] = None,
    process_id: Annotated[
        int | None, typer.Option(help="Which this one is, from 0.", rich_help_panel=_DISTRIBUTED)
    ] = None,
    start_timeout: Annotated[
        float, typer.Option(help="Seconds for all processes to come.", rich_help_panel=_DISTRIBUTED)
    ] = 300.0,
    heartbeat_timeout: Annotated[
        float, typer.Option(help="Seconds of silence after which a process is lost.", rich_help_panel=_DISTRIBUTED)
    ] = 60.0,
    *,
    flags: dict[str, Any],
) -> None:
    """Learn a prior: the variance of each variant's effect as a function of what is known about it.

    The full likelihood of the z-scores under LD is maximised on part of
    the genome, starting from the constant prior; training stops early on a
    second part; a third is held out and scored once. With cross-fitting
    the parts rotate. The run folder holds run.json (options, inputs with
    checksums, counts, heritability, held-out gains), metrics, networks and
    the table of variants. An interrupted run goes on with --resume.

    Example: deepwas fit --ld ld.h5 --sumstats z.parquet --annotations a.parquet --out run
    """
    from deepwas.files import require_file

    settings: dict[str, Any] = {} if config is None else read_config(config)
    given = {"ld": ld, "sumstats": sumstats, "out": out, "annotations": annotations, "tracks": tracks}
    settings |= {name: x for name, x in (given | {"sequence": sequence, "tensorboard": tensorboard}).items() if x}
    settings |= given_options(flags)
    with naming_flags(FitOptions):
        options = FitOptions(**{name: x for name, x in settings.items() if name in OPTIONS})
    paths: dict[str, Any] = {name: settings.get(name) for name in PATHS}
    rotations = None if rotation is None else parse_rotations(rotation)
    if overwrite and write_config_to is None:
        raise InputError("--overwrite is for --write-config. A run is not replaced: give another --out, or --resume.")
    if write_config_to is not None:
        if write_config_to.suffix != ".toml":
            raise InputError(f"{write_config_to}: settings are written as TOML: give a name that ends in .toml.")
        require_output(write_config_to, overwrite, _given_files(config, paths))
        write_config(write_config_to, paths, options, SECTIONS, tensorboard=bool(settings.get("tensorboard")))
        say(f"wrote {write_config_to}; use it with: deepwas fit --config {write_config_to}")
        return
    if missing := [f"--{name}" for name in ("ld", "sumstats", "out") if not paths[name]]:
        raise InputError(f"deepwas fit needs {', '.join(missing)}. Give it, as a flag or in --config.")
    if not distributed and (coordinator, num_processes, process_id) != (None, None, None):
        raise InputError("--coordinator, --num-processes and --process-id go with --distributed. Give that as well.")
    require_file(paths["ld"], "an LD store")
    require_file(paths["sumstats"], "summary statistics")
    require_inputs(paths["annotations"], paths["tracks"], paths["sequence"])
    with ExitStack() as stack:
        first = True
        if distributed:
            from deepwas.parallel import start

            group = start(
                coordinator,
                num_processes,
                process_id,
                start_timeout=start_timeout,
                heartbeat_timeout=heartbeat_timeout,
            )
            first = stack.enter_context(group).first
        from deepwas.fitting import fit as run_fit
        from deepwas.fitting import fit_rotations

        common: dict[str, Any] = {
            "tracks": paths["tracks"],
            "sequence": paths["sequence"],
            "options": options,
            "out": paths["out"],
            "tensorboard": bool(settings.get("tensorboard")),
            "progress": stack.enter_context(progress_of_stages()) if first else None,
        }
        inputs = (paths["ld"], paths["sumstats"], paths["annotations"] or None)
        counted: list[dict[str, Any]] = []

        def before_training(counts: list[dict[str, Any]]) -> None:
            counted.extend(counts)
            say_counts(counts)
            say_training(options)

        stack.enter_context(naming_flags(FitOptions, at_start=True))
        if rotations is not None:
            fit_rotations(*inputs, rotations=rotations, counted=before_training if first else None, **common)
        else:
            if first:
                say_if_nothing_to_resume(resume, Path(paths["out"]))
            result = run_fit(*inputs, resume=resume, counted=before_training if first else None, **common)
    if not first:
        return
    where = paths["out"]
    if rotations is not None:
        numbers = ", ".join(map(str, rotations))
        say(f"rotation {numbers}: trained, in {where}; when all are, put the run together with --resume")
        return
    say_found({options.network: result.record}, {options.network: where}, {options.network: len(counted)})
