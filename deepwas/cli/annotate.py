"""`deepwas annotate`: annotations of an LD store's variants, from genes, a genetic map, intervals and tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from deepwas.cli._console import say, say_tally
from deepwas.cli._flags import naming_flags
from deepwas.cli._outputs import Overwrite, require_output
from deepwas.errors import InputError
from deepwas.files import require_file

if TYPE_CHECKING:
    from deepwas.annotations.intervals import Feature
    from deepwas.annotations.table import KeyChoice

    Uncovered = Literal["error", "missing"]


def register(app: typer.Typer) -> None:
    """Add the command to the root application."""
    app.command("annotate")(annotate)


def annotate(
    ld: Annotated[
        Path, typer.Option(help="LD store whose variants are annotated (see deepwas ld build).", metavar="STORE")
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Parquet file to write: SNP CHR BP A1 A2, then one column an annotation, as PolyFun reads it.",
            metavar="FILE.parquet",
        ),
    ],
    genes: Annotated[
        Path | None,
        typer.Option(
            help="BED file of genes with strand (chrom start end name score strand): makes log_tss_distance, "
            "log_gene_distance, gene_body, promoter and gene_density.",
            metavar="BED",
        ),
    ] = None,
    genetic_map: Annotated[
        Path | None,
        typer.Option(
            help="Genetic map (SHAPEIT `pos chr cM`, HapMap, Eagle, or PLINK .map; @ in the name stands for the "
            "chromosome): makes log_recombination_rate.",
            metavar="FILE",
        ),
    ] = None,
    intervals: Annotated[
        list[str] | None,
        typer.Option(
            help="A name and a BED file of intervals, such as peaks=H3K4me1.bed.gz. Repeat for more files.",
            metavar="NAME=BED",
        ),
    ] = None,
    table: Annotated[
        list[Path] | None,
        typer.Option(
            help="Table of variants x annotations, text or Parquet, keyed by CHR BP A1 A2, SNP or CHR BP: PolyFun, "
            "S-LDSC .annot, SBayesRC, or your own. @ stands for the chromosome. Repeat for more files. Values are "
            "taken as they are: scores with the sign of an allele belong to `deepwas scores`.",
            metavar="FILE",
        ),
    ] = None,
    promoter_upstream: Annotated[
        int, typer.Option(help="A promoter begins this many bases before a transcription start.")
    ] = 2000,
    promoter_downstream: Annotated[
        int, typer.Option(help="A promoter ends this many bases after a transcription start.")
    ] = 500,
    density_window: Annotated[
        int, typer.Option(help="Gene density counts the genes that overlap the bases within this distance.")
    ] = 500_000,
    map_window: Annotated[
        int, typer.Option(help="The recombination rate is the mean over the bases within this distance.")
    ] = 10_000,
    interval_features: Annotated[
        str,
        typer.Option(
            help="What to make of each BED file, separated by commas: inside (0/1), fraction (of the bases within "
            "--interval-window covered), count (of intervals there, log), distance (to the nearest, log)."
        ),
    ] = "inside",
    interval_window: Annotated[int, typer.Option(help="Distance in bases for fraction and count.")] = 10_000,
    store_features: Annotated[
        bool, typer.Option(help="Whether minor allele frequency and LD score of the LD store are annotations.")
    ] = True,
    table_key: Annotated[
        str,
        typer.Option(
            help="How tables are matched to variants: auto (alleles where the table has them), alleles, snp, position."
        ),
    ] = "auto",
    uncovered: Annotated[
        str,
        typer.Option(
            help="A chromosome that a BED file or map does not cover at all: error (another genome build, perhaps), "
            "or missing (its variants get missing values)."
        ),
    ] = "error",
    overwrite: Overwrite = False,
) -> None:
    """Annotate the variants of an LD store, and write a table that deepwas fit and PolyFun read.

    All files must be of the genome build of the LD store. Values are raw; a fit standardises them on its training
    variants. Whatever is missing is counted and left empty.

    Example: deepwas annotate --ld ld.h5 --genes genes.bed.gz --genetic-map map.gz --out annotations.parquet
    """
    from deepwas.annotations import AnnotationOptions
    from deepwas.annotations import annotate as make
    from deepwas.ld import open_ld

    with naming_flags(AnnotationOptions):
        options = AnnotationOptions(
            promoter_upstream=promoter_upstream,
            promoter_downstream=promoter_downstream,
            density_window=density_window,
            map_window=map_window,
            interval_features=tuple(cast("Feature", part.strip()) for part in interval_features.split(",")),
            interval_window=interval_window,
            store_features=store_features,
            table_key=cast("KeyChoice", table_key),
            uncovered=cast("Uncovered", uncovered),
        )
    named = parse_intervals(intervals or [])
    if out.suffix != ".parquet":
        raise InputError(f"{out}: the output is a Parquet file: give a name that ends in .parquet.")
    require_file(ld, "an LD store")
    given = [ld, *named.values(), *(path for path in (genes, genetic_map, *(table or [])) if path is not None)]
    require_output(out, overwrite, given)
    with open_ld(ld) as store:
        variants, build = store.variants, store.genome_build
    made = make(variants, genes=genes, genetic_map=genetic_map, intervals=named, tables=table or [], options=options)
    made.write_parquet(out)
    say_tally(made.tally)
    for line in summary_lines(made.summary().rows()):
        typer.echo(line)
    say(f"{out}: {len(made.names)} annotations of {variants.height:,} variants on {build}")


def parse_intervals(texts: list[str]) -> dict[str, Path]:
    """`NAME=BED` texts as name -> path; InputError for another form and for a name given twice."""
    named: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (equals and name.strip() and path.strip()):
            raise InputError(f"--intervals {text!r}: give a name and a file, such as --intervals peaks=peaks.bed.gz.")
        if name.strip() in named:
            raise InputError(f"--intervals: the name {name.strip()} is given twice. Choose another for {path}.")
        named[name.strip()] = require_file(path.strip(), f"a BED file of intervals for {name.strip()}")
    return named


def summary_lines(rows: list[tuple]) -> list[str]:
    """The rows of `Annotations.summary` as aligned text."""
    width = max(len("annotation"), *(len(row[0]) for row in rows))
    lines = [
        f"{'annotation':<{width}}  {'mean':>10}  {'sd':>10}  {'minimum':>10}  {'maximum':>10}  {'missing':>9}  source"
    ]
    for name, *numbers, missing, source in rows:
        cells = "  ".join(f"{'-' if number is None else format(number, '.4g'):>10}" for number in numbers)
        lines.append(f"{name:<{width}}  {cells}  {missing:>9,}  {source}")
    return lines
