"""`deepwas interpret`: what a trained prior has learned."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, cast

import typer

from deepwas.cli._console import progress_of_stages, say, show
from deepwas.errors import DataWarning, InputError


def register(app: typer.Typer) -> None:
    """Add the command to the root application."""
    app.command("interpret")(interpret)


def parse_groups(texts: list[str]) -> dict[str, list[str]]:
    """['genes=promoter,gene_body'] -> {'genes': ['promoter', 'gene_body']}."""
    out: dict[str, list[str]] = {}
    for text in texts:
        name, equals, members = text.partition("=")
        if not equals or not name or name in out:
            raise InputError(f"--group {text!r}: give NAME=ANNOTATION,ANNOTATION, each NAME once.")
        out[name] = [member for member in members.split(",") if member]
    return out


def interpret(
    run: Annotated[Path, typer.Argument(help="Run folder of `deepwas fit`.", show_default=False)],
    ld: Annotated[Path, typer.Option(help="The LD store the run was made with.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    annotations: Annotated[
        list[Path] | None,
        typer.Option(help="The annotations the run was made with. Repeat for more.", show_default=False),
    ] = None,
    tracks: Annotated[
        Path | None, typer.Option(help="The tracks the run was made with, if any.", show_default=False)
    ] = None,
    sequence: Annotated[
        Path | None, typer.Option(help="The sequence the run was made with, if any.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted one in --out.")] = False,
    repeats: Annotated[int, typer.Option(help="Permutations of each annotation.")] = 3,
    within: Annotated[
        str, typer.Option(help="Permute among all variants of a test 'section', or only inside each LD 'block'.")
    ] = "section",
    group: Annotated[
        list[str] | None,
        typer.Option(help="NAME=ANNOTATION,...: permute these together as well. Repeat for more.", show_default=False),
    ] = None,
    shap: Annotated[
        int, typer.Option(help="Divide log f of so many random variants between annotations, by SHAP (optional).")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """What a trained prior has learned, and what of it holds where it has not looked.

    Each annotation is permuted in the sections of the genome that a
    network was not trained on; what their log-likelihood loses is its
    importance, with a standard error over LD blocks. Written as well: how
    the effect variance responds to each annotation, the enrichment of the
    prior's heritability, pictures of all three, and interpretation.json.

    Example: deepwas interpret run --ld ld.h5 --annotations annotations.parquet --out learned
    """
    from deepwas.files import require_file
    from deepwas.interpretation.options import InterpretOptions, Within

    options = InterpretOptions(
        repeats=repeats,
        within=cast(Within, within),
        groups=parse_groups(group or []),
        attributions=shap,
        seed=seed,
    )
    require_file(ld, "an LD store")
    for path in annotations or []:
        if "@" not in path.name:
            require_file(path, "a table of annotations")
    from deepwas.interpretation.run import interpret as run_interpret
    from deepwas.ld import open_ld
    from deepwas.runs import load_fit

    store = open_ld(ld)
    windows = {}
    for kind, given in (("tracks", tracks), ("sequence", sequence)):
        if given is not None:
            from deepwas.tracks import open_windows

            windows[kind] = open_windows(given, store, kind=kind)  # type: ignore[arg-type]
    with progress_of_stages() as progress, warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        found = run_interpret(
            load_fit(run),
            store,
            annotations or None,
            options=options,
            out=out,
            resume=resume,
            progress=progress,
            **windows,
        )
    from rich.table import Table

    table = Table(title="Importance: loss of held-out log-likelihood when permuted")
    for heading in ("input", "nats (± SE)", "share of the gain", "z"):
        table.add_column(heading, justify="left" if heading == "input" else "right")
    for row in found.importance.iter_rows(named=True):
        error = "" if row["STANDARD_ERROR"] is None else f" ± {row['STANDARD_ERROR']:.2f}"
        cells = ["-" if row[c] is None else text % row[c] for c, text in (("SHARE", "%.2f"), ("Z", "%.1f"))]
        table.add_row(row["FEATURE"], f"{row['IMPORTANCE']:.2f}{error}", *cells)
    show(table)
    gain = found.record["held_out"]
    error = "" if gain["standard_error"] is None else f" ± {gain['standard_error']:.1f}"
    say(f"{out}: held-out gain of the run {gain['gain']:.1f}{error} nats over the constant prior.")
