"""`deepwas priors`: the learned priors of a run as a table for fine-mapping and polygenic scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepwas.cli._console import say
from deepwas.cli._outputs import Overwrite, require_output
from deepwas.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the command to the root application."""
    app.command("priors")(priors)


def priors(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of `deepwas fit`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="File to write, .tsv or .tsv.gz.", show_default=False)],
    plain: Annotated[
        bool, typer.Option("--plain", help="Priors of one network for all variants, not the cross-fitted ones.")
    ] = False,
    all_variants: Annotated[
        bool,
        typer.Option("--all-variants", help="Also variants without a z-score, with Z and N missing (NA)."),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write priors as TSV: CHR SNP BP A1 A2 SNPVAR Z N BLOCK SECTION.

    SNPVAR is the variance of a variant's effect per standardised genotype,
    the column that PolyFun's fine-mapper reads. Where the run was
    cross-fitted, each variant's prior comes from a network that saw
    neither its z-score nor its section of the genome. The file's sum of
    SNPVAR is noted in the run's run.json.

    Example: deepwas priors run --out priors.tsv.gz
    """
    from deepwas.runs import load_fit

    if not out.name.endswith((".tsv", ".tsv.gz")):
        raise InputError(f"{out}: priors are written as text: give a name that ends in .tsv or .tsv.gz.")
    require_output(out, overwrite)
    fit = load_fit(run)
    note = fit.write_priors(out, cross_fitted=False if plain else None, which="all" if all_variants else "scored")
    kind = "cross-fitted" if note["cross_fitted"] else "plain"
    left = "" if all_variants else "; those without a z-score are left out (--all-variants keeps them)"
    say(f"{out}: {note['rows']:,} variants, {kind} priors, sum of SNPVAR {note['h2']:.6g}{left}")
    held = fit.record["held_out"]["cross_fitted" if note["cross_fitted"] else "plain"]
    if fit.options.network != "constant" and held["gain"] < 0:
        error = "" if held["standard_error"] is None else f" (standard error {held['standard_error']:.1f})"
        say(
            f"warning: on held-out blocks these priors lose {-held['gain']:.1f} nats{error} against the constant "
            "prior, which predicts better: --network constant."
        )
