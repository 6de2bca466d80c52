"""`deepwas sumstats`: a GWAS file onto the variants and alleles of an LD store."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from deepwas.cli._console import say, say_tally
from deepwas.cli._outputs import Overwrite, require_output
from deepwas.errors import DataWarning, InputError
from deepwas.sumstats.qc import QCOptions

_FILE, _QC = "The GWAS file", "Quality control and matching"


def sumstats(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="GWAS summary statistics: text, plain or gzip.", show_default=False),
    ],
    ld: Annotated[Path, typer.Option(help="LD store, made by `deepwas ld build`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Parquet file to write.", show_default=False)],
    format: Annotated[
        str | None,
        typer.Option(
            help="Format of FILE: fastGWA or LDSC. Recognised by its columns when left out.",
            rich_help_panel=_FILE,
            show_default=False,
        ),
    ] = None,
    build: Annotated[
        str | None,
        typer.Option(
            help="Genome build of FILE: GRCh37 (hg19) or GRCh38 (hg38). Checked against the LD store.",
            rich_help_panel=_FILE,
            show_default=False,
        ),
    ] = None,
    sample_size: Annotated[
        float | None,
        typer.Option(
            help="People in the GWAS, for variants without N in FILE. N in FILE stays.",
            rich_help_panel=_FILE,
            show_default=False,
        ),
    ] = None,
    drop_missing_n: Annotated[
        bool, typer.Option("--drop-missing-n", help="Drop variants without N.", rich_help_panel=_FILE)
    ] = False,
    match: Annotated[
        str,
        typer.Option(
            help="Match by 'position' or 'rsid', each with alleles, or 'auto': what matches more variants.",
            rich_help_panel=_QC,
        ),
    ] = QCOptions.match,
    palindromes: Annotated[
        str,
        typer.Option(
            help="A/T and C/G variants: 'frequency' tells the strand by frequency and drops those it cannot "
            "tell (all, if FILE has no frequency), 'drop' drops all, 'keep' trusts the panel's strand.",
            rich_help_panel=_QC,
        ),
    ] = QCOptions.palindromes,
    palindrome_margin: Annotated[
        float,
        typer.Option(help="Frequency tells the strand when further than this from 1/2.", rich_help_panel=_QC),
    ] = QCOptions.palindrome_margin,
    exclude: Annotated[
        str,
        typer.Option(
            help="Regions not scored: 'long-range' (the MHC and the regions of long-range LD), "
            "'mhc' (chr6:25-34 Mb), 'none', or a BED file on the LD store's build.",
            rich_help_panel=_QC,
        ),
    ] = QCOptions.exclude,
    min_n_fraction: Annotated[
        float,
        typer.Option(
            help="Drop variants with N below this fraction of the 90th percentile of N; 0 keeps all.",
            rich_help_panel=_QC,
        ),
    ] = QCOptions.min_n_fraction,
    min_info: Annotated[
        float,
        typer.Option(help="Drop variants with INFO below this, if FILE gives INFO; 0 keeps all.", rich_help_panel=_QC),
    ] = QCOptions.min_info,
    max_frequency_difference: Annotated[
        float,
        typer.Option(
            help="Drop variants whose frequency differs from the panel's by more than this (or three "
            "standard errors of the panel's frequency); 1 keeps all.",
            rich_help_panel=_QC,
        ),
    ] = QCOptions.max_frequency_difference,
    extreme_chi2: Annotated[
        str,
        typer.Option(
            help="Variants with chi-square above max(80, 0.001 N): 'keep' (they may be real) or 'drop'.",
            rich_help_panel=_QC,
        ),
    ] = QCOptions.extreme_chi2,
    overwrite: Overwrite = False,
) -> None:
    """Align a GWAS to an LD store: same variants, same alleles, every change and loss counted.

    Reads FILE, sets its variants against those of the LD store by position
    or identifier and by alleles (swapped alleles change the sign of Z, the
    other strand is complemented), filters, and writes one row for each
    variant of the store that has a z-score. What was kept, changed and
    dropped is counted on standard error and in the file. On wrong input
    nothing is written and the exit code is 2.

    Example: deepwas sumstats GWAS.gz --ld ld.h5 --build GRCh37 --out z.parquet
    """
    from deepwas.files import require_file
    from deepwas.sumstats import harmonise, read_sumstats

    options = QCOptions(
        min_n_fraction=min_n_fraction,
        min_info=min_info,
        extreme_chi2=extreme_chi2,
        max_frequency_difference=max_frequency_difference,
        exclude=exclude,
        palindromes=palindromes,
        palindrome_margin=palindrome_margin,
        match=match,
    )
    require_file(file, "GWAS summary statistics")
    require_file(ld, "an LD store, made by `deepwas ld build`,")
    target = require_output(out, overwrite, (file, ld))
    if out.suffix != ".parquet":
        raise InputError(f"--out {out}: the z-scores are written as Parquet. Give a name that ends in .parquet.")

    import deepwas.ld

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", DataWarning)
        store = deepwas.ld.open_ld(ld)  # before the GWAS, whose reading takes longer
        read = read_sumstats(file, format=format, sample_size=sample_size, drop_missing_n=drop_missing_n, build=build)
        result = harmonise(
            read,
            store.variants,
            n_panel=store.n_samples,
            options=options,
            genome_build=store.genome_build,
            store_checksum=store.checksum,
        )
    result.write_parquet(target)
    say_tally(result.tally)
    for warning in caught:
        say(f"warning: {warning.message}")
    counts = f"{result.n_matched:,} of the {result.n_store:,} variants of the LD store"
    say(f"{target}: {counts}, matched by {result.match}")


def register(app: typer.Typer) -> None:
    """Add the command to the root app."""
    app.command(name="sumstats")(sumstats)
