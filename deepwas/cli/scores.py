"""`deepwas scores`: scores of sequence models, set on an LD store's alleles, as annotations and as signed scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from deepwas.cli._console import progress_of_stages, say, say_tally
from deepwas.cli._flags import naming_flags
from deepwas.cli._outputs import Overwrite, require_output
from deepwas.errors import InputError
from deepwas.files import require_file


def register(app: typer.Typer) -> None:
    """Add the command to the root application."""
    app.command("scores")(scores)


def scores(
    ld: Annotated[Path, typer.Option(help="LD store whose variants are scored.", metavar="STORE")],
    scores: Annotated[
        list[str],
        typer.Option(
            help="File of variants x tracks, text, Parquet or HDF5, with chromosome, position, reference and "
            "alternative allele; @ stands for the chromosome. NAME=FILE puts NAME: before its columns. Repeatable.",
            metavar="[NAME=]FILE",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Parquet file of annotations to write. Signed scores go to the same name with .signed.parquet, "
            "loadings of components to .absolute.loadings.parquet and .signed.loadings.parquet.",
            metavar="FILE.parquet",
        ),
    ],
    pca: Annotated[
        int | None,
        typer.Option(help="This many principal components of each table instead of its columns.", show_default=False),
    ] = None,
    loadings: Annotated[
        list[Path] | None,
        typer.Option(
            help="Loadings that --pca wrote before, applied as they are. Repeat for more.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    signed: Annotated[bool, typer.Option("--signed", help="Write signed scores only.")] = False,
    absolute: Annotated[bool, typer.Option("--absolute", help="Write annotations only: absolute values.")] = False,
    both: Annotated[bool, typer.Option("--both", help="Write both; what happens by default.")] = False,
    unsigned: Annotated[
        str,
        typer.Option(help="Columns without a sign, that never flip: names or patterns such as 'emb_*', by commas."),
    ] = "",
    columns: Annotated[str, typer.Option(help="Columns to use: names or patterns, by commas; all by default.")] = "",
    match: Annotated[
        str, typer.Option(help="position, or rsid where the file is of another genome build.")
    ] = "position",
    palindromes: Annotated[
        str,
        typer.Option(
            help="The sign of A/T and C/G variants: auto (trusted if file and store are on one strand elsewhere), "
            "keep, or drop (no signed score)."
        ),
    ] = "auto",
    matrix: Annotated[
        str | None, typer.Option(help="Dataset of an HDF5 file that holds the scores.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Read scores of Enformer, Borzoi, AlphaGenome, DNA language models and the like.

    A score belongs to the alternative allele; it changes sign where the
    LD store counts the reference allele. |score| becomes an annotation for
    deepwas fit; the signed score is for deepwas direction.

    Example: deepwas scores --ld ld.h5 --scores enformer.h5 --pca 32 --out scores.parquet
    """
    from deepwas.annotations.reduce import read_reduction
    from deepwas.annotations.scores import ScoreOptions, read_scores
    from deepwas.ld import open_ld

    if signed + absolute + both > 1:
        raise InputError("--signed, --absolute and --both exclude one another. Give one of them.")
    with naming_flags(ScoreOptions):
        options = ScoreOptions(
            make="signed" if signed else "absolute" if absolute else "both",
            unsigned=_parts(unsigned),
            columns=_parts(columns),
            pca=pca,
            match=cast("Literal['position', 'rsid']", match),
            palindromes=cast("Literal['auto', 'keep', 'drop']", palindromes),
            matrix=matrix,
        )
    named = parse_scores(scores)
    if out.suffix != ".parquet":
        raise InputError(f"{out}: the output is a Parquet file: give a name that ends in .parquet.")
    require_file(ld, "an LD store")
    reductions = [read_reduction(path) for path in loadings or []]
    if signed or absolute:
        reductions = [x for x in reductions if x.signed == signed]
    given = [ld, *(loadings or []), *(path for paths in named.values() for path in paths)]
    targets = ([] if signed else [out]) + ([] if absolute else [out.with_suffix(".signed.parquet")])
    if pca is not None:
        kinds = (["absolute"] if not signed else []) + (["signed"] if not absolute else [])
        tables = [f"{name}.{kind}" if name else kind for name in named for kind in kinds]
        targets += [out.with_suffix(f".{table}.loadings.parquet") for table in tables]
    for target in targets:
        require_output(target, overwrite, given)
    with open_ld(ld) as store:
        variants, build = store.variants, store.genome_build
    with progress_of_stages() as progress:
        made = read_scores(
            named[""] if set(named) == {""} else named,
            variants,
            options=options,
            loadings=reductions,
            progress=progress,
        )
    say_tally(made.tally)
    for key, reduction in made.reductions.items():
        kept = f"{reduction.loadings.shape[1]} components hold {reduction.share:.1%} of the variance"
        say(f"{key}: {kept} of {len(reduction.names):,} scores")
        if pca is not None:
            target = out.with_suffix(f".{key}.loadings.parquet")
            reduction.write(target)
            say(f"{target}: their loadings, to be applied elsewhere with --loadings")
    if made.annotations is not None:
        made.annotations.write_parquet(out)
        say(f"{out}: {len(made.annotations.names):,} annotations of {variants.height:,} variants on {build}")
    if made.signed is not None:
        target = out.with_suffix(".signed.parquet")
        made.signed.write_parquet(target)
        say(f"{target}: {len(made.signed.names):,} signed scores, for deepwas direction")


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_scores(texts: list[str]) -> dict[str, list[Path]]:
    """`FILE` and `NAME=FILE` texts as name -> paths, '' for files without a name; InputError for a missing file."""
    named: dict[str, list[Path]] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        # A file whose own name holds = is taken as it is.
        plain = not equals or "/" in name or Path(text).exists()
        path = Path(text if plain else rest)
        if "@" not in path.name:
            require_file(path, "a file of scores")
        named.setdefault("" if plain else name.strip(), []).append(path)
    return named
