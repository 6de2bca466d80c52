"""Chromosome names, genome builds and intervals.

Inside deepwas a chromosome is a string without prefix: '1' to '22', 'X', 'Y', 'MT'. Positions are 1-based,
as in VCF and PLINK; BED intervals are 0-based and half-open, so position p lies in [start, end) when
start < p <= end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import polars as pl

from deepwas.errors import InputError
from deepwas.tables import numeric_column, read_delimited

_SPECIAL = {"23": "X", "24": "Y", "25": "X", "26": "MT", "M": "MT", "XY": "X", "PAR1": "X", "PAR2": "X"}
CHROMOSOMES = (*map(str, range(1, 23)), "X", "Y", "MT")
BUILDS = {"GRCh37": ("grch37", "hg19", "b37", "37", "19"), "GRCh38": ("grch38", "hg38", "b38", "38")}

# Bases of the chromosomes 1 to 22, X, Y of each build, as its assembly report states them. The mitochondrion tells no
# build: UCSC's hg19 has another one than GRCh37, which has that of GRCh38.
CHROMOSOME_LENGTHS: dict[str, dict[str, int]] = {
    build: dict(zip(CHROMOSOMES, lengths, strict=False))
    for build, lengths in {
        "GRCh37": (
            *(249_250_621, 243_199_373, 198_022_430, 191_154_276, 180_915_260, 171_115_067, 159_138_663, 146_364_022),
            *(141_213_431, 135_534_747, 135_006_516, 133_851_895, 115_169_878, 107_349_540, 102_531_392, 90_354_753),
            *(81_195_210, 78_077_248, 59_128_983, 63_025_520, 48_129_895, 51_304_566, 155_270_560, 59_373_566),
        ),
        "GRCh38": (
            *(248_956_422, 242_193_529, 198_295_559, 190_214_555, 181_538_259, 170_805_979, 159_345_973, 145_138_636),
            *(138_394_717, 133_797_422, 135_086_622, 133_275_309, 114_364_328, 107_043_718, 101_991_189, 90_338_345),
            *(83_257_441, 80_373_285, 58_617_616, 64_444_167, 46_709_983, 50_818_468, 156_040_895, 57_227_415),
        ),
    }.items()
}


def normalise_chromosome(column: str | pl.Expr) -> pl.Expr:
    """Polars expression: 'chr22', '22' and 22 become '22'; 'chrX' and 23 become 'X'; 'M', 26 become 'MT'."""
    expr = pl.col(column) if isinstance(column, str) else column
    bare = expr.cast(pl.String).str.strip_chars().str.replace(r"^(?i)chr", "").str.to_uppercase()
    bare = bare.str.replace(r"^0+(\d)", "${1}").str.replace(r"^(\d+)\.0$", "${1}")
    return bare.replace(_SPECIAL)


def normalise_chromosomes(column: pl.Series) -> pl.Series:
    """A column of chromosome names as `normalise_chromosome` gives them, worked out once for each different name."""
    names = column.cast(pl.String)
    different = names.unique().drop_nulls()
    plain = different.to_frame("CHR").select(normalise_chromosome("CHR")).to_series()
    return names.replace_strict(different, plain, default=None, return_dtype=pl.String)


def chromosome_rank(chromosome: str) -> int:
    """Position of a chromosome in genome order; unknown contigs come last."""
    return CHROMOSOMES.index(chromosome) if chromosome in CHROMOSOMES else len(CHROMOSOMES)


def parse_build(name: str) -> str:
    """'hg19', 'b37', 'GRCh37' -> 'GRCh37'; 'hg38' -> 'GRCh38'. InputError for anything else."""
    wanted = name.strip().lower()
    for build, aliases in BUILDS.items():
        if wanted in aliases:
            return build
    raise InputError(f"genome build {name!r} is not known. Give GRCh37 (hg19) or GRCh38 (hg38).")


def chromosome_names(path: str | os.PathLike[str], names: Iterable[str]) -> dict[str, str]:
    """Of the sequences that a file names, those that are chromosomes: '1' -> its name in the file, 'chr1' or '1'."""
    given = list(names)
    found: dict[str, str] = {}
    for plain, name in zip(normalise_chromosomes(pl.Series(given, dtype=pl.String)), given, strict=True):
        if plain not in CHROMOSOMES:
            continue
        if plain in found:
            raise InputError(
                f"{path}: chromosome {plain} is there twice, as {found[plain]} and {name}. Keep one of them."
            )
        found[plain] = name
    return found


def require_build(path: str | os.PathLike[str], lengths: Mapping[str, int], build: str) -> None:
    """InputError unless the chromosomes of a file are as long as those of the build; it names the build they are of.

    lengths: bases of chromosomes by plain name. Those of which no length is known are not compared.
    """
    known = CHROMOSOME_LENGTHS[build]
    wrong = [name for name in lengths if name in known and lengths[name] != known[name]]
    if not wrong:
        return
    for other, table in CHROMOSOME_LENGTHS.items():
        if all(lengths[name] == table[name] for name in lengths if name in table):
            raise InputError(
                f"{path}: its chromosomes have the lengths of {other}, the LD store is on {build}. "
                f"Give this file on {build}."
            )
    first = wrong[0]
    raise InputError(
        f"{path}: chromosome {first} has {lengths[first]:,} bases, not {known[first]:,} as on {build}, the LD store's "
        f"({len(wrong)} chromosomes differ; their lengths are not those of another known build either). "
        f"Give a file on {build}, or --no-check-build for a genome of your own."
    )


def require_positions(what: str, furthest: Mapping[str, int], build: str) -> None:
    """InputError if a chromosome has a position beyond its end on the build.

    furthest: the greatest position, counted from 1, by chromosome. Those of which no length is known are not compared.
    """
    known = CHROMOSOME_LENGTHS[build]
    for name, position in furthest.items():
        if name in known and position > known[name]:
            tables = CHROMOSOME_LENGTHS.items()
            fits = [b for b, table in tables if all(x <= table.get(n, x) for n, x in furthest.items())]
            advice = f"They fit {fits[0]}: give --build {fits[0]}." if fits else "They fit no known build."
            end = f"{known[name]:,}, the end of chromosome {name} on {build}"
            raise InputError(f"{what}: position {position:,} is beyond {end}. {advice}")


def read_intervals(path: str | os.PathLike[str], *, names: tuple[str, ...] = ()) -> pl.DataFrame:
    """Read a BED file (plain or gzip): columns CHR, START, END, then as many further columns as `names` asks for.

    0-based, half-open. A header that starts with chr,
    chrom or chromosome, and `track`, `browser` and comment lines, are passed over. A separator of tabs or spaces
    is recognised. Errors name the file, the line and what was found.
    """
    frame = read_delimited(path, header=False, comment=("#", "track", "browser"), what="a BED file of intervals")
    wanted = ["CHR", "START", "END", *names]
    if frame.width < len(wanted):
        raise InputError(
            f"{path}: {frame.width} columns found, {len(wanted)} needed ({' '.join(wanted)}). "
            "Is this a BED file, tab-separated and without a header?"
        )
    frame = frame.select(pl.nth(i).alias(name) for i, name in enumerate(wanted))
    if frame.height and str(frame["CHR"][0]).lower() in ("chr", "chrom", "chromosome"):
        frame = frame.slice(1)
    frame = frame.with_columns(
        normalise_chromosome("CHR"),
        numeric_column(frame, "START", path, integer=True, header=False),
        numeric_column(frame, "END", path, integer=True, header=False),
    )
    bad = frame.with_row_index("row").filter(pl.col("END") <= pl.col("START"))
    if bad.height:
        row = bad.row(0, named=True)
        raise InputError(
            f"{path}: interval {row['row'] + 1} ends at {row['END']}, not after its start {row['START']} "
            f"({bad.height:,} such). BED intervals are 0-based and half-open: start < end."
        )
    return frame
