"""`deepwas demo`: the whole path on the embedded example."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepwas.cli._console import progress_of_stages, say, say_counts, show


def register(app: typer.Typer) -> None:
    """Add the command to the root application."""
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results; an earlier demo in it is replaced.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of everything random.", min=0)] = 0,
) -> None:
    """Run everything on real data that comes with the package.

    Height in UK Biobank on chromosome 22, LD from 378 Europeans of the
    1000 Genomes Project: builds the LD store, harmonises the GWAS,
    annotates the variants, fits the constant, log-linear and MLP priors,
    cross-fitted, and writes priors, tables and pictures. About a minute on
    two cores.
    """
    from deepwas.demo import prepare_folder, run_demo

    prepare_folder(out)
    from deepwas.summary import fits_table, sensitivity_table

    with progress_of_stages() as progress:
        result = run_demo(out, seed=seed, progress=progress)
    say_counts(result.counts)
    show(fits_table(result.records))
    show(sensitivity_table(result.sensitivity, of="the panel's variance"))
    for line in result.notes:
        say(line)
