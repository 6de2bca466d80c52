"""`deepwas fit`: learn a prior from an LD store, one trait's summary statistics, and annotations or tracks."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from deepwas.cli._console import progress_of_stages, say, say_counts, show
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
    options = FitOptions(**{name: x for name, x in settings.items() if name in OPTIONS})
    paths: dict[str, Any] = {name: settings.get(name) for name in PATHS}
    rotations = None if rotation is None else parse_rotations(rotation)
    if write_config_to is not None:
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
        if rotations is not None:
            fit_rotations(*inputs, rotations=rotations, **common)
        else:
            result = run_fit(*inputs, resume=resume, **common)
    if not first:
        return
    where = paths["out"]
    if rotations is not None:
        numbers = ", ".join(map(str, rotations))
        say(f"rotation {numbers}: trained, in {where}; when all are, put the run together with --resume")
        return
    _say_result(result.record, options.network, where)


def _say_result(record: dict[str, Any], network: str, where: Path) -> None:
    from deepwas.summary import fits_table, mismatch_lines, sensitivity_table, verdicts

    say_counts(record["counts"])
    for rotation in record["rotations"]:
        for event in (rotation["network"] or {}).get("events", ()):
            say(f"rotation {rotation['rotation']}: {event}")
    if record["inputs"]["annotations"] is not None:
        say(f"annotations: {', '.join(record['inputs']['annotations']['names'])}")
    if record["options"].get("learning_rate") == "auto":
        found = [f"{x['network']['learning_rate']:.3g}" for x in record["rotations"] if x["network"]]
        say(f"learning rates found: {', '.join(found)}")
    waiting = [x["network"].get("waiting") for x in record["rotations"] if x["network"]]
    if shares := [x for x in waiting if x is not None]:
        say(f"training waited for its input in {sum(shares) / len(shares):.1%} of its time")
    show(fits_table({network: record}))
    show(sensitivity_table(record["sensitivity"], of="the store's variance"))
    for line in [*mismatch_lines(record["mismatch"]), *verdicts({network: record})]:
        say(line)
    say(f"the run is in {where}; write its priors with: deepwas priors {where} --out priors.tsv.gz")
