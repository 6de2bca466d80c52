"""`deepwas interpret`: what a trained prior has learned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from deepwas.cli._console import progress_of_stages, say, show, warnings_said
from deepwas.cli._flags import naming_flags
from deepwas.cli._outputs import say_if_nothing_to_resume
from deepwas.errors import DataWarning, InputError

if TYPE_CHECKING:
    from deepwas.interpretation.run import Interpretation


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

    groups = parse_groups(group or [])
    with naming_flags(InterpretOptions, attributions="--shap"):
        options = InterpretOptions(
            repeats=repeats, within=cast(Within, within), groups=groups, attributions=shap, seed=seed
        )
    require_file(ld, "an LD store")
    for path in annotations or []:
        if "@" not in path.name:
            require_file(path, "a table of annotations")
    from deepwas.interpretation.run import interpret as run_interpret
    from deepwas.ld import open_ld
    from deepwas.runs import load_fit

    say_if_nothing_to_resume(resume, out)
    store = open_ld(ld)
    windows = {}
    for kind, given in (("tracks", tracks), ("sequence", sequence)):
        if given is not None:
            from deepwas.tracks import open_windows

            windows[kind] = open_windows(given, store, kind=kind)  # type: ignore[arg-type]
    with progress_of_stages() as progress, warnings_said(DataWarning):
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
    _say_found(found, out)


def _say_found(found: Interpretation, out: Path) -> None:
    from rich.table import Table

    gain, error = (found.record["held_out"][x] for x in ("gain", "standard_error"))
    clear = error is not None and gain > 2 * error
    table = Table(title="Importance: loss of held-out log-likelihood when permuted")
    for heading in ("input", "nats (± SE)", *(["share of the gain"] if clear else []), "z"):
        table.add_column(heading, justify="left" if heading == "input" else "right")
    for row in found.importance.iter_rows(named=True):
        own = "" if row["STANDARD_ERROR"] is None else f" ± {row['STANDARD_ERROR']:.2f}"
        shown = (("SHARE", "%.2f"), ("Z", "%.1f")) if clear else (("Z", "%.1f"),)
        cells = ["-" if row[c] is None else text % row[c] for c, text in shown]
        table.add_row(row["FEATURE"], f"{row['IMPORTANCE']:.2f}{own}", *cells)
    show(table)
    about = "" if error is None else f" ± {error:.1f}"
    line = f"{out}: held-out gain of the run {gain:.1f}{about} nats over the constant prior."
    if not clear:
        line += " That is not significantly above 0: there may be nothing to interpret, and shares of it say nothing."
    say(line)
    if found.responses is None:
        say(
            "responses are made for networks that read annotations alone (no tracks, sequence or allele frequency): "
            "none are written."
        )
    if found.enrichment is None:
        say("enrichment needs annotations: none is written.")
