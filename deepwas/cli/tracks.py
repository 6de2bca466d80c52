"""`deepwas tracks` and `deepwas sequence`: windows of signals, and of DNA, around an LD store's variants."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from deepwas.cli._console import progress, say, say_counts
from deepwas.cli._flags import naming_flags
from deepwas.cli._outputs import Overwrite, require_output
from deepwas.errors import InputError
from deepwas.files import require_file

if TYPE_CHECKING:
    from deepwas.tracks import WindowFile
    from deepwas.tracks.options import Compression, Missing, Transform, Uncovered


def register(app: typer.Typer) -> None:
    """Add the two commands to the root application."""
    app.command("tracks")(tracks)
    app.command("sequence")(sequence)


def tracks(
    ld: Annotated[
        Path, typer.Option(help="LD store around whose variants is read (deepwas ld build).", metavar="STORE")
    ],
    out: Annotated[Path, typer.Option(help="The file to write (HDF5), for example tracks.h5.", metavar="FILE")],
    bigwig: Annotated[
        list[str] | None,
        typer.Option(
            help="A name and a bigWig file of a signal, such as dnase=K562.bigWig. Repeat for more tracks.",
            metavar="NAME=FILE",
        ),
    ] = None,
    bed: Annotated[
        list[str] | None,
        typer.Option(
            help="A name and a BED file of intervals: the share of each bin they cover. Repeat for more tracks.",
            metavar="NAME=FILE",
        ),
    ] = None,
    bins: Annotated[int, typer.Option(help="Bins around each variant; it lies in number BINS // 2, from 0.")] = 64,
    resolution: Annotated[int, typer.Option(help="Bases of a bin.")] = 32,
    missing: Annotated[
        str,
        typer.Option(
            help="Bases without a value in a bigWig: zero (they count as 0), or mean (left out; a bin of such bases "
            "alone gets the track's mean)."
        ),
    ] = "zero",
    transform: Annotated[
        str, typer.Option(help="Of bigWig bins, before they are standardised: none, log1p or arcsinh.")
    ] = "none",
    clip: Annotated[
        float, typer.Option(help="Cut standardised values to this many standard deviations; 0 leaves them.")
    ] = 10.0,
    statistics_variants: Annotated[
        int, typer.Option(help="Variants, spread over the genome, that mean and standard deviation are taken over.")
    ] = 100_000,
    uncovered: Annotated[
        str,
        typer.Option(
            help="A chromosome of which a file says nothing: error (another genome build, perhaps), or missing."
        ),
    ] = "error",
    compression: Annotated[
        str, typer.Option(help="none, or lzf: smaller where most bins are alike, slower to read.")
    ] = "none",
    check_build: Annotated[
        bool, typer.Option(help="Compare chromosome lengths with those of the LD store's genome build.")
    ] = True,
    overwrite: Overwrite = False,
) -> None:
    """Read signals around the variants of an LD store, in bins, and write them standardised to one file.

    All files must be of the genome build of the LD store; chromosomes may be called 1 or chr1. An interrupted
    extraction goes on where it stopped when the same command is given again.

    Example: deepwas tracks --ld ld.h5 --bigwig dnase=K562.bigWig --bed peaks=H3K27ac.bed.gz --out tracks.h5
    """
    from deepwas.tracks.options import TrackOptions

    with naming_flags(TrackOptions):
        options = TrackOptions(
            bins=bins,
            resolution=resolution,
            missing=cast("Missing", missing),
            transform=cast("Transform", transform),
            clip=None if clip == 0 else clip,
            statistics_variants=statistics_variants,
            uncovered=cast("Uncovered", uncovered),
            compression=cast("Compression", compression),
            check_build=check_build,
        )
    bigwigs, beds = parse_tracks("--bigwig", bigwig or []), parse_tracks("--bed", bed or [])
    if not bigwigs and not beds:
        raise InputError("no track is given: give bigWig files (--bigwig NAME=FILE) or BED files (--bed NAME=FILE).")
    require_file(ld, "an LD store")
    require_output(out, overwrite, [ld, *bigwigs.values(), *beds.values()])

    from deepwas.ld import open_ld
    from deepwas.tracks import extract_tracks

    with open_ld(ld) as store, progress("windows") as advance:
        made = extract_tracks(store, out, bigwigs=bigwigs, beds=beds, options=options, progress=advance)
    with made:
        _say_made(made)
        width = max(len("track"), *map(len, made.names))
        typer.echo(f"{'track':<{width}}  {'mean':>10}  {'sd':>10}")
        for name, mean, sd in zip(made.names, made.mean, made.sd, strict=True):
            typer.echo(f"{name:<{width}}  {mean:>10.4g}  {sd:>10.4g}")


def sequence(
    ld: Annotated[
        Path, typer.Option(help="LD store around whose variants is read (deepwas ld build).", metavar="STORE")
    ],
    fasta: Annotated[
        Path, typer.Option(help="FASTA file of the store's genome build, plain or compressed by bgzip.", metavar="FILE")
    ],
    out: Annotated[Path, typer.Option(help="The file to write (HDF5), for example sequence.h5.", metavar="FILE")],
    bases: Annotated[int, typer.Option(help="Bases of a window; the variant is number BASES // 2, from 0.")] = 256,
    max_mismatch: Annotated[
        float, typer.Option(help="Largest share of variants neither of whose alleles is the genome's.")
    ] = 0.01,
    compression: Annotated[str, typer.Option(help="none, or lzf: about half the size, slower to read.")] = "none",
    check_build: Annotated[
        bool, typer.Option(help="Compare chromosome lengths with those of the LD store's genome build.")
    ] = True,
    overwrite: Overwrite = False,
) -> None:
    """Read the DNA around the variants of an LD store, with the reference and with the alternative allele.

    Which of the store's alleles is the reference is found in the genome, and recorded. An interrupted extraction goes
    on where it stopped when the same command is given again.

    Example: deepwas sequence --ld ld.h5 --fasta hg19.fa --bases 256 --out sequence.h5
    """
    from deepwas.tracks.options import SequenceOptions

    with naming_flags(SequenceOptions):
        options = SequenceOptions(
            bases=bases,
            max_mismatch=max_mismatch,
            compression=cast("Compression", compression),
            check_build=check_build,
        )
    require_file(fasta, "a FASTA file of the reference genome")
    require_file(ld, "an LD store")
    require_output(out, overwrite, [ld, fasta])

    from deepwas.ld import open_ld
    from deepwas.tracks import extract_sequence

    with open_ld(ld) as store, progress("windows") as advance:
        made = extract_sequence(store, out, fasta=fasta, options=options, progress=advance)
    with made:
        _say_made(made)


def parse_tracks(option: str, texts: list[str]) -> dict[str, Path]:
    """`NAME=FILE` texts as name -> path; InputError for another form and for a name given twice."""
    named: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (equals and name.strip() and path.strip()):
            raise InputError(f"{option} {text!r}: give a name and a file, such as {option} dnase=FILE.")
        if name.strip() in named:
            raise InputError(f"{option}: the name {name.strip()} is given twice. Choose another for {path}.")
        named[name.strip()] = require_file(path.strip(), f"a file of the track {name.strip()}")
    return named


def _say_made(made: WindowFile) -> None:
    say_counts(made.provenance["tally"])
    shape = " x ".join(f"{size:,}" for size in made.shape)
    size = made.path.stat().st_size / 1e6
    say(f"{made.path}: {made.kind}, {shape} (variants first), on {made.genome_build}; {size:,.1f} MB")
