"""`deepwas direction`: do signed scores tell the direction of effects, beside a run's variance prior?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from deepwas.cli._console import progress_of_stages, say, say_counts, show
from deepwas.cli._flags import naming_flags
from deepwas.cli._outputs import Overwrite
from deepwas.errors import InputError
from deepwas.files import require_file

_SHOWN = 10


def register(app: typer.Typer) -> None:
    """Add the command to the root application."""
    app.command("direction")(direction)


def direction(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of `deepwas fit`.", show_default=False)],
    ld: Annotated[Path, typer.Option(help="LD store that the run was made with.", show_default=False)],
    scores: Annotated[Path, typer.Option(help="Signed scores, made by `deepwas scores`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write, made if missing.", show_default=False)],
    permutations: Annotated[int, typer.Option(help="Flips of sign.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the flips.")] = 0,
    plain: Annotated[
        bool, typer.Option("--plain", help="The prior of one network for all variants, not the cross-fitted one.")
    ] = False,
    per_standardised: Annotated[
        bool,
        typer.Option(
            "--per-standardised",
            help="Scores are per standardised genotype already; otherwise they are of an allele, times sqrt(2q(1-q)).",
        ),
    ] = False,
    ridge: Annotated[
        str, typer.Option(help="A normal prior on the weights: yes, no, or auto (with more than 10 scores).")
    ] = "auto",
    control_maf: Annotated[
        bool,
        typer.Option("--control-maf", help="Test direction beyond that of minor alleles, by bins of their frequency."),
    ] = False,
    flip_together: Annotated[
        int | None,
        typer.Option(
            help="LD blocks that keep their sign together. By default 1, or 10 windows where they overlap.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Test whether signed scores tell the direction of effects.

    A mean head, mu = scores x weights, is added to the run's variance
    prior and fitted in the same likelihood. Its p-value comes from flips
    of sign by LD block; its gain is measured on sections of the genome
    that its weights did not see. The folder holds direction.json,
    direction_columns.tsv, direction_blocks.tsv and direction.png.

    Example: deepwas direction run --ld ld.h5 --scores scores.signed.parquet --out direction
    """
    from deepwas.direction import BLOCKS, COLUMNS, PICTURE, RECORD, DirectionOptions, test_direction
    from deepwas.runs import load_fit

    with naming_flags(DirectionOptions):
        options = DirectionOptions(
            permutations=permutations,
            seed=seed,
            cross_fitted=False if plain else None,
            per_allele=not per_standardised,
            ridge=cast("Literal['auto', 'yes', 'no']", ridge),
            control_maf=control_maf,
            flip_together=flip_together,
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; the results need a folder. Give another name.")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: the folder {out.absolute().parent} does not exist. Make it first.")
    names = {x.name for x in out.iterdir()} if out.is_dir() else set()
    made = RECORD in names or (bool(names) and names <= {COLUMNS, BLOCKS, PICTURE})  # the latter: one interrupted
    if names and not (overwrite and made):
        remedy = "Give --overwrite to replace its direction test" if made else "It holds no direction test to replace"
        raise InputError(f"{out}: not empty. {remedy}, or another folder.")
    require_file(ld, "an LD store")
    require_file(scores, "signed scores")
    fit = load_fit(run)
    with progress_of_stages() as progress:
        found = test_direction(fit, ld, scores, options=options, progress=progress)
    found.write(out)
    say_counts(found.record["counts"])
    show(_table(found.columns.sort("P_ADJUSTED", "P").head(_SHOWN).to_dicts(), found.columns.height))
    for line in found.verdict():
        say(line)
    say(f"{out}: direction.json, direction_columns.tsv, direction_blocks.tsv, direction.png")


def _table(rows: list[dict], total: int):
    from rich.table import Table

    shown = f"first {len(rows)} of {total:,} signed scores" if total > len(rows) else "signed scores"
    title = f"Direction: {shown} (in brackets: standard errors; effects per unit of the score's root mean square)"
    table = Table(title=title, title_justify="left")
    table.add_column("score")
    for name in ("z alone", "p alone", "p adjusted for all", "effect alone, SD of trait", "effect beside the others"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["NAME"],
            f"{row['Z']:.2f}",
            f"{row['P']:.3g}",
            f"{row['P_ADJUSTED']:.3g}",
            f"{row['EFFECT']:.3g} ({row['EFFECT_SE']:.2g})",
            f"{row['WEIGHT']:.3g} ({row['WEIGHT_SE']:.2g})",
        )
    return table
