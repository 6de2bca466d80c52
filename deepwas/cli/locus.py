"""`deepwas locus`: a picture of one locus of a classification or a fine-mapping."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepwas.cli._console import say
from deepwas.cli._outputs import Overwrite, require_output
from deepwas.errors import InputError

if TYPE_CHECKING:
    from deepwas.pleiotropy.locus import LocusView

_SUFFIXES = (".png", ".pdf", ".svg")


def register(app: typer.Typer) -> None:
    """Add the command to the root application."""
    app.command("locus")(locus)


def locus(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder written by `deepwas pleiotropy`, or by `deepwas posterior --finemap`.", show_default=False
        ),
    ],
    ld: Annotated[Path, typer.Option(help="The LD store that the folder was made with.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .pdf or .svg.", show_default=False)],
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[[NAME=]RUN]...",
            help="The traits as given to `deepwas pleiotropy`, if FOLDER holds no z-scores and priors.",
            show_default=False,
        ),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="The lead: its name, CHR:BP, or CHR:BP:A1:A2.", show_default=False)
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(help="CHR:START-STOP. Without --variant its likeliest variant leads.", show_default=False),
    ] = None,
    window: Annotated[int, typer.Option(help="Without --region: kb either side of the lead.")] = 250,
    genes: Annotated[
        Path | None,
        typer.Option(
            help="Genes on the same genome build: GTF, GFF3, BED or a UCSC table such as refGene; gzip or not.",
            show_default=False,
        ),
    ] = None,
    sumstats: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="With a table of priors as RUN: the trait's z-scores. Repeat for more.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """A picture of one locus.

    Above one axis of positions: association of each trait, coloured by LD
    to the lead; inclusion probabilities and credible sets; the prior
    variances; genes. The title says what the lead's locus was classified as.

    Example: deepwas locus pleiotropy --ld ld.h5 --variant rs1421085 --genes genes.gtf.gz --out fto.png
    """
    from deepwas.cli.pleiotropy import _named, _traits
    from deepwas.files import require_file

    if variant is None and region is None:
        raise InputError("give --variant NAME, or --region such as 2:1000000-2000000.")
    if out.suffix.lower() not in _SUFFIXES:
        raise InputError(f"{out}: a picture ends in {', '.join(_SUFFIXES)}. Give another --out.")
    if window < 1:
        raise InputError(f"--window is {window}; give kb either side of the lead, such as 250.")
    given = _traits(runs) if runs else None
    z = _named("--sumstats", sumstats or [])
    if z and given is None:
        raise InputError("--sumstats is for traits given as NAME=PRIORS; none is given.")
    inputs = [ld, *([genes] if genes is not None else [])]
    require_output(out, overwrite, inputs)
    require_file(ld, "an LD store")
    if genes is not None:
        require_file(genes, "a file of genes")

    from deepwas.ld import open_ld
    from deepwas.pleiotropy.locus import locus_view
    from deepwas.pleiotropy.locus_picture import plot_locus

    with open_ld(ld) as store:
        view = locus_view(
            folder,
            store,
            variant=variant,
            region=region,
            window=1000 * window,
            genes=genes,
            runs=given,
            sumstats=z,
        )
    plot_locus(view, out)
    _say(view, out)


def _say(view: LocusView, out: Path) -> None:
    say(view.title)
    say(view.subtitle)
    genes = "" if view.genes is None else f", {view.genes.height:,} gene(s)"
    say(
        f"{out}: {view.chromosome}:{view.start}-{view.stop}, {view.variants.height:,} variants, "
        f"{view.sets.height:,} credible set(s){genes}."
    )
