"""The command line: `deepwas COMMAND`.

Each command parses and checks its arguments, and only then imports what computes: a typing mistake never waits
for JAX. Wrong input prints the message of an `InputError` and ends with exit code 2.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import Annotated

import typer

from deepwas import __version__
from deepwas.errors import DeepwasError, InputError

app = typer.Typer(
    name="deepwas",
    help="Learn which variants matter from GWAS summary statistics, by full likelihood under LD.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"deepwas {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options that stand before the command."""


@cache
def _register() -> None:
    """Add the commands, once however often `main` is called."""
    from deepwas.cli import (
        annotate,
        demo,
        direction,
        doctor,
        enrich,
        fit,
        fit_traits,
        interpret,
        ld,
        locus,
        pleiotropy,
        posterior,
        priors,
        scores,
        sumstats,
        tracks,
    )

    app.add_typer(ld.app, name="ld")
    for module in (
        sumstats,
        annotate,
        scores,
        tracks,
        fit,
        fit_traits,
        priors,
        posterior,
        pleiotropy,
        locus,
        direction,
        enrich,
        interpret,
        demo,
        doctor,
    ):
        module.register(app)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `deepwas` command."""
    _register()
    try:
        app(arguments, prog_name="deepwas")
    except InputError as error:
        typer.echo(f"deepwas: {error}", err=True)
        sys.exit(2)
    except DeepwasError as error:
        typer.echo(f"deepwas: {error}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as end:
        # Typer turns an interrupt inside a command into exit code 130, without a word.
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        typer.echo(
            "deepwas: interrupted. No output is half written. Commands that have --resume go on where they were: give "
            "the same command with it.",
            err=True,
        )
        if arguments is None:
            # The process's own end: threads of JAX and its checkpoint library may crash it when they are torn down.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)
        sys.exit(130)
