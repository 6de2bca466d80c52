"""`deepwas enrich`: enrichment of heritability by annotation, with standard errors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from deepwas.cli._console import progress_of_stages, say, say_tally, warnings_said
from deepwas.cli._outputs import Overwrite, require_output
from deepwas.errors import DataWarning, InputError

if TYPE_CHECKING:
    from deepwas.enrichment import Enrichment


def register(app: typer.Typer) -> None:
    """Add the command to the root application."""
    app.command("enrich")(enrich)


def enrich(
    ld: Annotated[Path, typer.Option(help="LD store, made by `deepwas ld build`.", show_default=False)],
    sumstats: Annotated[
        Path,
        typer.Option(
            help="z-scores harmonised by `deepwas sumstats`, or a GWAS file, harmonised here with the defaults.",
            show_default=False,
        ),
    ],
    annotations: Annotated[
        list[Path],
        typer.Option(help="Annotations: of `deepwas annotate`, or a table. Repeat for more.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Table to write, .tsv or .tsv.gz; NAME.json goes beside.")] = Path(
        "enrichment.tsv"
    ),
    noise: Annotated[str, typer.Option(help="Noise inflation sigma2: 'learned', or a number to hold it at.")] = (
        "learned"
    ),
    jackknife: Annotated[
        str, typer.Option(help="one-step (fast, as graphREML), or refit: exact, a few passes for each group.")
    ] = "one-step",
    groups: Annotated[int, typer.Option(help="Groups of LD blocks left out in turn, at most.")] = 200,
    plot: Annotated[Path | None, typer.Option(help="Picture to write, .png.", show_default=False)] = None,
    overwrite: Overwrite = False,
) -> None:
    """Heritability of each annotation, and its enrichment, by full likelihood.

    An additive prior of all annotations together (softplus-linear) is
    fitted to all LD blocks, and its heritability divided between them. The
    columns are those of stratified LD score regression, which this does by
    likelihood instead of regression; standard errors come from a block
    jackknife. Leave a category of annotations that add up to a constant
    out: coefficients are relative to it.

    Example: deepwas enrich --ld ld.h5 --sumstats z.parquet --annotations a.parquet --out enrichment.tsv
    """
    from deepwas.cli.fit import parse_noise
    from deepwas.files import require_file, write_json

    if not out.name.endswith((".tsv", ".tsv.gz")):
        raise InputError(f"{out}: the table is written as text: give a name that ends in .tsv or .tsv.gz.")
    if plot is not None and plot.suffix != ".png":
        raise InputError(f"{plot}: the picture is written as PNG: give a name that ends in .png.")
    level = parse_noise(noise)
    if jackknife not in ("one-step", "refit"):
        raise InputError(f"--jackknife {jackknife!r}: give one-step or refit.")
    require_file(ld, "an LD store")
    require_file(sumstats, "summary statistics")
    for path in annotations:
        if "@" not in path.name:
            require_file(path, "a table of annotations")
    beside = out.with_name(out.name.removesuffix(".gz").removesuffix(".tsv") + ".json")
    for target in (out, beside, *([plot] if plot else [])):
        require_output(target, overwrite, [ld, sumstats, *annotations])

    from deepwas.enrichment import Jackknife, estimate_enrichment

    with progress_of_stages() as progress, warnings_said(DataWarning):
        found = estimate_enrichment(
            ld,
            sumstats,
            annotations,
            noise=level,
            jackknife=cast(Jackknife, jackknife),
            groups=groups,
            progress=progress,
        )
    found.write(out)
    write_json(beside, found.summary())
    if plot is not None:
        from deepwas.enrichment_plot import plot_enrichment

        plot_enrichment(found, plot)
    say_tally(found.tally)
    _say_what_was_found(found, out)


def _say_what_was_found(found: Enrichment, out: Path) -> None:
    from rich.table import Table

    from deepwas.cli._console import show

    table = Table(title=f"Enrichment of heritability (h2 {found.h2.value:.4g} ± {found.h2.standard_error:.2g})")
    for heading in ("annotation", "mean", "share of h2 (± SE)", "enrichment", "95% interval", "p", "coefficient z"):
        table.add_column(heading, justify="left" if heading == "annotation" else "right")
    for row in found.table().slice(1).iter_rows(named=True):
        error, low, high = (row[c] for c in ("Prop._h2_std_error", "Enrichment_lower", "Enrichment_upper"))
        share = f"{row['Prop._h2']:.3f}" + ("" if error is None else f" ± {error:.3f}")
        cells = [f"{row['Prop._SNPs']:.4g}", share, "-" if row["Enrichment"] is None else f"{row['Enrichment']:.3g}"]
        cells.append("-" if low is None else f"{low:.3g} to {high:.3g}")
        cells += ["-" if row[c] is None else f"{row[c]:.2g}" for c in ("Enrichment_p", "Coefficient_z-score")]
        table.add_row(row["Category"] + ("" if row["Binary"] else " *"), *cells)
    show(table)
    if not found.binary.all():
        say(
            "* not 0/1: its enrichment is its mean weighted by effect variance over its plain mean, and hangs on its "
            "zero; p and coefficient do not. Compare it with no 0/1 annotation's."
        )
    gain = found.model["log_likelihood"] - found.model["log_likelihood_constant"]
    level = float("nan") if found.noise is None else float(found.noise.value)
    held = "learned" if found.model["noise_learned"] else "held"
    say(
        f"{out}: {len(found.names)} annotations, {found.n_blocks} LD blocks; log-likelihood {gain:+.1f} nats over the "
        f"constant prior in {found.model['steps']} steps; noise {level:.3f}, {held}."
    )
