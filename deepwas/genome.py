"""Chromosome names, genome builds and intervals.

Inside deepwas a chromosome is a string without prefix: '1' to '22', 'X', 'Y', 'MT'. Positions are 1-based,
as in VCF and PLINK; BED intervals are 0-based and half-open, so position p lies in [start, end) when
start < p <= end.
"""

from __future__ import annotations

import os

import polars as pl

from deepwas.errors import InputError
from deepwas.tables import numeric_column, read_delimited

_SPECIAL = {"23": "X", "24": "Y", "25": "X", "26": "MT", "M": "MT", "XY": "X", "PAR1": "X", "PAR2": "X"}
CHROMOSOMES = (*map(str, range(1, 23)), "X", "Y", "MT")
BUILDS = {"GRCh37": ("grch37", "hg19", "b37", "37", "19"), "GRCh38": ("grch38", "hg38", "b38", "38")}


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
