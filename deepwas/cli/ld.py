"""`deepwas ld`: build an LD store from genotypes, and look at one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepwas.cli._console import progress, say, say_tally, warnings_said
from deepwas.cli._flags import naming_flags
from deepwas.cli._outputs import Overwrite, require_output
from deepwas.errors import DataWarning, InputError

app = typer.Typer(
    help="LD stores: whitened LD blocks of a genotype panel, computed once and used for every trait.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def build(
    context: typer.Context,
    genotypes: Annotated[
        str,
        typer.Option(
            help="PLINK 1 panel: the prefix of its .bed, .bim and .fam files. People of the same ancestry "
            "as the GWAS, unrelated, 50 at the least; the more the better.",
            metavar="PREFIX",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The LD store to write (HDF5), for example ld.h5.", metavar="FILE")],
    build: Annotated[str, typer.Option(help="Genome build of the panel: GRCh37 (hg19) or GRCh38 (hg38).")],
    min_maf: Annotated[
        float, typer.Option(help="Drop variants whose minor allele is rarer than this in the panel.")
    ] = 0.01,
    max_missing: Annotated[
        float, typer.Option(help="Drop variants without a genotype in a larger share of the people.")
    ] = 0.1,
    min_block: Annotated[int, typer.Option(help="Fewest variants in a block; not with --window.")] = 200,
    max_block: Annotated[
        int,
        typer.Option(
            help="Most variants in a block; time grows with its cube, the file with its square. Not with --window."
        ),
    ] = 800,
    blocks: Annotated[
        Path | None,
        typer.Option(
            help="Take the blocks from this BED file (0-based, half-open, on the same build) instead of "
            "cutting where the least LD is lost. Variants outside its intervals are dropped.",
            metavar="BED",
        ),
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(
            help="Sliding windows instead of blocks: the candidates of each reach over this many base pairs, for "
            "example 3e6, and the middle `--step` of them is scored. LD across block boundaries is then kept. Not with "
            "--min-block, --max-block or --blocks.",
            metavar="BP",
            show_default="off",
        ),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option(help="Base pairs from one window to the next, for example 1e6.", metavar="BP", show_default="off"),
    ] = None,
    eigenvalue_floor: Annotated[
        float | None,
        typer.Option(
            help="Keep the eigenvalues of each block above this.",
            show_default="2 x variants the block scores / people in the panel; with --shrinkage all are kept",
        ),
    ] = None,
    variance_kept: Annotated[
        float | None,
        typer.Option(
            help="Instead of a floor: keep the fewest eigenvalues that reach this share of their sum, for "
            "example 0.95.",
            show_default="off",
        ),
    ] = None,
    shrinkage: Annotated[
        float,
        typer.Option(help="Shrink the correlations of each block toward 0 by this share before decomposing."),
    ] = 0.0,
    dtype: Annotated[
        str,
        typer.Option(
            help="Type of the stored factors: int8 (2 digits; a quarter to read, three quarters to store), float16 "
            "(half the size, 3 digits), float32 or float64."
        ),
    ] = "float32",
    overwrite: Overwrite = False,
) -> None:
    """Compute the LD of a genotype panel, block by block, and write it as an HDF5 store.

    The panel's autosomal variants are filtered and each chromosome is cut into blocks so that the least r2
    falls between blocks, or, with --window, covered by windows that overlap. Each block's correlation matrix
    is decomposed and truncated: with a panel of few people the small eigenvalues are noise. An interrupted build
    goes on where it stopped when the same command is given again.

    Example: deepwas ld build --genotypes panel --build GRCh37 --out ld.h5
    """
    from deepwas.ld import LDOptions, build_ld
    from deepwas.tally import Count, Tally

    if window is not None:
        # Only the command line tells a value that was given from a default.
        sources = {name: context.get_parameter_source(name) for name in ("min_block", "max_block")}
        given = [f"--{x.replace('_', '-')}" for x, y in sources.items() if y is not None and y.name != "DEFAULT"]
        if given:
            raise InputError(
                f"{' and '.join(given)}: windows are not cut by size. Leave it out, or --window and --step."
            )
    with naming_flags(LDOptions):
        options = LDOptions(
            build=build,
            min_maf=min_maf,
            max_missing=max_missing,
            min_block=min_block,
            max_block=max_block,
            blocks=blocks,
            window=window,  # type: ignore[arg-type]  # checked and made whole by LDOptions
            step=step,  # type: ignore[arg-type]
            eigenvalue_floor=eigenvalue_floor,
            variance_kept=variance_kept,
            shrinkage=shrinkage,
            dtype=dtype,
        )
    panel = [Path(f"{genotypes}{suffix}") for suffix in (".bed", ".bim", ".fam")]
    require_output(out, overwrite, [*panel, *([blocks] if blocks else [])])
    cut = options.blocks is None and options.window is None
    what = "variants passed, once to cut and once to decompose" if cut else "variants decomposed"
    with progress(what) as advance, warnings_said(DataWarning):
        store = build_ld(genotypes, out, options, progress=advance)
    with store:
        say_tally(Tally([Count(**row) for row in store.attributes["provenance"]["tally"]]))
        share = store.block_table["VARIANCE_KEPT"].to_numpy() @ store.block_table["SCORED"].to_numpy()
        say(
            f"{out}: {store.n_variants:,} variants in {store.n_blocks:,} blocks, "
            f"{int(store.block_table['KEPT'].sum()):,} eigenvalues kept, {share / store.n_variants:.1%} of "
            "the variance"
        )


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="An LD store.", metavar="FILE", show_default=False)],
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Write a picture too (.png, .pdf or .svg): block sizes, eigenvalues, variance kept.",
            metavar="FILE",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the whole file and check its layout and checksums.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Say what an LD store holds: panel, variants, blocks, what the truncation kept, what was dropped.

    Example: deepwas ld info ld.h5 --plot ld.png --verify
    """
    from deepwas.ld import report
    from deepwas.ld.store import open_ld

    if plot is not None:
        require_output(report.plot_path(plot), overwrite, [file])
    with open_ld(file) as store:
        if verify:
            store.verify()
        for line in report.summary(store):
            typer.echo(line)
        if verify:
            typer.echo("verified        layout and checksums are right")
        if plot is not None:
            report.plot(store, plot)
            say(f"{plot}: written")
