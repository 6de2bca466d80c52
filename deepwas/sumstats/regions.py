"""Regions whose z-scores are left out by default: the MHC and the regions of long-range LD.

LD there reaches across many megabases, beyond any block, and in the MHC a few variants of very large effect
would steer the whole prior. The variants stay in the LD blocks as possible causes; only their z-scores are
not scored.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from deepwas.errors import InputError
from deepwas.genome import read_intervals

NAMED_REGIONS = ("long-range", "mhc", "none")

# The extended MHC, chr6:25,000,001-34,000,000. The two builds differ there by less than 0.04 Mb.
_MHC = ("6", 25_000_000, 34_000_000)

# The list of Anderson et al. 2010 (Nature Protocols 5:1564, made from Price et al. 2008) lifted to GRCh38 for
# plinkQC; pieces under 1 kb left out, the pieces about the centromere of chromosome 6 joined.
_LONG_RANGE_GRCH38 = (
    ("1", 47_761_740, 51_761_740),
    ("2", 85_919_365, 100_517_106),
    ("2", 182_427_027, 189_427_029),
    ("3", 47_483_505, 49_987_563),
    ("3", 83_368_158, 86_868_160),
    ("5", 44_464_140, 51_168_409),
    ("5", 129_636_407, 132_636_409),
    ("6", 25_391_792, 33_424_245),
    ("6", 57_788_603, 61_424_451),
    ("6", 139_637_169, 142_137_170),
    ("7", 54_964_812, 66_897_578),
    ("8", 8_105_067, 12_105_082),
    ("8", 43_025_699, 48_924_888),
    ("8", 110_918_594, 113_918_595),
    ("10", 36_671_065, 43_184_546),
    ("11", 88_127_183, 91_127_184),
    ("12", 32_955_798, 41_319_931),
    ("20", 33_948_532, 36_438_183),
)


def excluded_regions(exclude: str, genome_build: str | None) -> pl.DataFrame:
    """The intervals (CHR, START, END; 0-based, half-open) of `exclude`, on the LD panel's build.

    exclude: 'long-range' (the MHC and the regions of long-range LD), 'mhc', 'none', or the path of a BED file.
    'long-range' needs `genome_build`; the MHC is chr6:25-34 Mb on GRCh37 and GRCh38 alike.
    """
    if exclude == "none":
        return _frame([])
    if exclude == "mhc":
        return _frame([_MHC])
    if exclude != "long-range":
        return read_intervals(exclude).select("CHR", "START", "END")
    if genome_build == "GRCh37":
        packaged = Path(__file__).resolve().parents[1] / "data" / "example" / "long_range_ld_hg19.txt"
        return pl.concat([_frame([_MHC]), read_intervals(packaged).select("CHR", "START", "END")])
    if genome_build == "GRCh38":
        return _frame([_MHC, *_LONG_RANGE_GRCH38])
    if genome_build is None:
        raise InputError(
            "the regions of long-range LD lie elsewhere on each genome build, and that of the LD panel is "
            "unknown. Give genome_build (GRCh37 or GRCh38), or exclude = 'mhc', 'none' or a BED file."
        )
    raise InputError(
        f"there is no list of long-range LD regions for the genome build {genome_build!r}. "
        "Give exclude = 'none' or a BED file."
    )


def _frame(rows: list[tuple[str, int, int]]) -> pl.DataFrame:
    schema = {"CHR": pl.String, "START": pl.Int64, "END": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def inside(frame: pl.DataFrame, regions: pl.DataFrame) -> pl.Series:
    """Bool per row of `frame` (CHR, BP 1-based): does it lie in any of `regions`?  O(n log n)."""
    if not regions.height:
        return pl.repeat(False, frame.height, eager=True)
    merged = _merge(regions)
    rows = frame.select("CHR", "BP").with_row_index("ROW").sort("BP")
    # The last interval that starts before position p holds p if it ends at p or later.
    located = rows.join_asof(
        merged.with_columns(FROM=pl.col("START") + 1).sort("FROM"),
        left_on="BP",
        right_on="FROM",
        by="CHR",
        strategy="backward",
        check_sortedness=False,
    )
    return located.sort("ROW").select((pl.col("BP") <= pl.col("END")).fill_null(False)).to_series()


def _merge(regions: pl.DataFrame) -> pl.DataFrame:
    """Overlapping intervals joined, so that at most one holds a position."""
    ordered = regions.sort("CHR", "START", "END")
    reach = pl.col("END").cum_max().shift(1).over("CHR")
    opens = (pl.col("START") > reach).fill_null(True)
    return (
        ordered.with_columns(opens.cast(pl.Int64).cum_sum().alias("RUN"))
        .group_by("CHR", "RUN", maintain_order=True)
        .agg(pl.col("START").min(), pl.col("END").max())
        .drop("RUN")
    )
