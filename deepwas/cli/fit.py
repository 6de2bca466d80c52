"""`deepwas fit`: learn a prior from an LD store, one trait's summary statistics, and annotations."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, cast

import typer

from deepwas.cli._console import progress_of_stages, say, say_counts, show
from deepwas.errors import InputError
from deepwas.network_options import Network
from deepwas.options import FactorDtype, FitOptions, MismatchAction, Objective, Solver

_NETWORK, _LIKELIHOOD, _TRAINING, _DISTRIBUTED = "Network", "Likelihood", "Training", "Several processes"


def register(app: typer.Typer) -> None:
    """Add the command to the root application."""
    app.command("fit")(fit)


def parse_hidden(text: str) -> tuple[int, ...]:
    """'32,32' -> (32, 32)."""
    try:
        return tuple(int(x) for x in text.split(",") if x.strip())
    except ValueError:
        raise InputError(f"--hidden {text!r}: give one width per layer, such as 32,32.") from None


def parse_noise(text: str) -> float | None:
    """'learned' -> None, otherwise the number."""
    if text == "learned":
        return None
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--noise {text!r}: give 'learned', or a number such as 1.") from None


def fit(
    ld: Annotated[Path, typer.Option(help="LD store, made by `deepwas ld build`.", show_default=False)],
    sumstats: Annotated[
        Path,
        typer.Option(
            help="z-scores harmonised by `deepwas sumstats`, or a GWAS file, harmonised here with the defaults.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Run folder to write.", show_default=False)],
    annotations: Annotated[
        list[Path] | None,
        typer.Option(help="Annotations: of `deepwas annotate`, or a table. Repeat for more.", show_default=False),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run in --out, same inputs and options.")
    ] = False,
    network: Annotated[
        str,
        typer.Option(
            help="constant, linear (log-linear), softplus (additive, as S-LDSC), mlp.", rich_help_panel=_NETWORK
        ),
    ] = FitOptions.network,
    hidden: Annotated[str, typer.Option(help="Widths of the MLP's layers.", rich_help_panel=_NETWORK)] = "32,32",
    objective: Annotated[
        str, typer.Option(help="likelihood (full), or ld-score (the baseline).", rich_help_panel=_LIKELIHOOD)
    ] = FitOptions.objective,
    noise: Annotated[
        str,
        typer.Option(help="Noise inflation sigma2: 'learned', or a number to hold it at.", rich_help_panel=_LIKELIHOOD),
    ] = "learned",
    solver: Annotated[
        str, typer.Option(help="cholesky (exact), cg, or auto.", rich_help_panel=_LIKELIHOOD)
    ] = FitOptions.solver,
    probes: Annotated[int, typer.Option(help="Random probes of CG.", rich_help_panel=_LIKELIHOOD)] = FitOptions.probes,
    rtol: Annotated[
        float, typer.Option(help="Relative residual asked of CG in training.", rich_help_panel=_LIKELIHOOD)
    ] = FitOptions.rtol,
    mismatch: Annotated[
        str,
        typer.Option(
            help="LD blocks whose z-scores do not fit their LD: report, down-weight, or exclude from training.",
            rich_help_panel=_LIKELIHOOD,
        ),
    ] = FitOptions.mismatch,
    mismatch_threshold: Annotated[
        float,
        typer.Option(help="Observed over expected energy that flags a block.", rich_help_panel=_LIKELIHOOD),
    ] = FitOptions.mismatch_threshold,
    factor_dtype: Annotated[
        str, typer.Option(help="LD in memory: float32, float16 or int8.", rich_help_panel=_LIKELIHOOD)
    ] = FitOptions.factor_dtype,
    memory: Annotated[
        float | None,
        typer.Option(
            help="GB that the LD may take, beyond which it streams. By default half of what is free.",
            rich_help_panel=_LIKELIHOOD,
            show_default=False,
        ),
    ] = None,
    cross_fit: Annotated[
        bool,
        typer.Option(
            "--cross-fit/--no-cross-fit",
            help="One network per section of the genome, so that no variant's prior comes from a network that saw it.",
            rich_help_panel=_TRAINING,
        ),
    ] = FitOptions.cross_fit,
    folds: Annotated[
        int,
        typer.Option(help="Sections: all but two train, one stops early, one is held out.", rich_help_panel=_TRAINING),
    ] = FitOptions.folds,
    steps: Annotated[int, typer.Option(help="Most optimiser steps.", rich_help_panel=_TRAINING)] = FitOptions.steps,
    batch_blocks: Annotated[
        int, typer.Option(help="LD blocks a step.", rich_help_panel=_TRAINING)
    ] = FitOptions.batch_blocks,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate. By default 0.02, for the MLP 0.005.",
            rich_help_panel=_TRAINING,
            show_default=False,
        ),
    ] = None,
    weight_decay: Annotated[
        float, typer.Option(help="AdamW's shrinkage of weights.", rich_help_panel=_TRAINING)
    ] = FitOptions.weight_decay,
    warmup: Annotated[
        float, typer.Option(help="Share of the steps in which the learning rate rises.", rich_help_panel=_TRAINING)
    ] = FitOptions.warmup,
    clip_norm: Annotated[
        float, typer.Option(help="Largest gradient norm.", rich_help_panel=_TRAINING)
    ] = FitOptions.clip_norm,
    evaluate_every: Annotated[
        int, typer.Option(help="Steps between evaluations; a checkpoint every fifth.", rich_help_panel=_TRAINING)
    ] = FitOptions.evaluate_every,
    patience: Annotated[
        int, typer.Option(help="Evaluations without improvement before training stops.", rich_help_panel=_TRAINING)
    ] = FitOptions.patience,
    seed: Annotated[int, typer.Option(help="Seed of everything random.", rich_help_panel=_TRAINING)] = FitOptions.seed,
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
            show_default=False,
        ),
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(help="How many there are.", rich_help_panel=_DISTRIBUTED, show_default=False)
    ] = None,
    process_id: Annotated[
        int | None, typer.Option(help="Which this one is, from 0.", rich_help_panel=_DISTRIBUTED, show_default=False)
    ] = None,
    start_timeout: Annotated[
        float, typer.Option(help="Seconds for all processes to come.", rich_help_panel=_DISTRIBUTED)
    ] = 300.0,
    heartbeat_timeout: Annotated[
        float, typer.Option(help="Seconds of silence after which a process is lost.", rich_help_panel=_DISTRIBUTED)
    ] = 60.0,
) -> None:
    """Learn a prior: the variance of each variant's effect as a function of its annotations.

    The full likelihood of the z-scores under LD is maximised on part of
    the genome, starting from the constant prior; training stops early on a
    second part; a third is held out and scored once. With cross-fitting
    the parts rotate. The run folder holds run.json (options, inputs with
    checksums, counts, heritability, held-out gains), metrics, networks and
    the table of variants. An interrupted run goes on with --resume.

    Example: deepwas fit --ld ld.h5 --sumstats z.parquet --annotations a.parquet --out run
    """
    from deepwas.files import require_file

    options = FitOptions(
        network=cast(Network, network),
        hidden=parse_hidden(hidden),
        objective=cast(Objective, objective),
        solver=cast(Solver, solver),
        probes=probes,
        rtol=rtol,
        noise=parse_noise(noise),
        mismatch=cast(MismatchAction, mismatch),
        mismatch_threshold=mismatch_threshold,
        factor_dtype=cast(FactorDtype, factor_dtype),
        memory=memory,
        cross_fit=cross_fit,
        folds=folds,
        steps=steps,
        batch_blocks=batch_blocks,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        clip_norm=clip_norm,
        evaluate_every=evaluate_every,
        patience=patience,
        seed=seed,
    )
    if not distributed and (coordinator, num_processes, process_id) != (None, None, None):
        raise InputError("--coordinator, --num-processes and --process-id go with --distributed. Give that as well.")
    require_file(ld, "an LD store")
    require_file(sumstats, "summary statistics")
    for path in annotations or []:
        if "@" not in path.name:
            require_file(path, "a table of annotations")
    from deepwas.fitting import fit as run_fit
    from deepwas.summary import fits_table, mismatch_lines, sensitivity_table, verdicts

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
        progress = stack.enter_context(progress_of_stages()) if first else None
        result = run_fit(ld, sumstats, annotations or None, options=options, out=out, resume=resume, progress=progress)
    if not first:
        return
    record = result.record
    say_counts(record["counts"])
    for rotation in record["rotations"]:
        for event in (rotation["network"] or {}).get("events", ()):
            say(f"rotation {rotation['rotation']}: {event}")
    if record["inputs"]["annotations"] is not None:
        say(f"annotations: {', '.join(record['inputs']['annotations']['names'])}")
    show(fits_table({network: record}))
    show(sensitivity_table(record["sensitivity"], of="the store's variance"))
    for line in [*mismatch_lines(record["mismatch"]), *verdicts({network: record})]:
        say(line)
    say(f"the run is in {out}; write its priors with: deepwas priors {out} --out priors.tsv.gz")
