"""Local recombination rate from a genetic map, by linear interpolation of the genetic position."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from deepwas.annotations.intervals import per_chromosome, require_coverage
from deepwas.errors import InputError
from deepwas.genome import normalise_chromosome
from deepwas.tables import numeric_column, read_bytes, read_delimited
from deepwas.tally import Tally

RATE_OFFSET = 0.01  # cM/Mb, added before the logarithm: maps hold stretches of rate 0 (gaps, centromeres)
_COLUMNS = {
    "CHR": ("chr", "chrom", "chromosome"),
    "BP": ("pos", "position", "positionbp", "bp", "physicalpos"),
    "CM": ("cm", "mapcm", "geneticmapcm", "geneticmap", "genpos"),
}
_FORMS = (
    "Understood: a header naming chr, pos and cM (SHAPEIT `pos chr cM`), HapMap `Chromosome Position(bp) Rate(cM/Mb) "
    "Map(cM)`, Eagle, or PLINK .map without a header (CHR SNP CM BP)"
)


def read_genetic_map(path: str | os.PathLike[str], chromosome: str | None = None) -> pl.DataFrame:
    """Read a genetic map: columns CHR, BP, CM, sorted by chromosome and position; CM never falls.

    Layouts: with a header, `pos chr cM` (SHAPEIT), `Chromosome Position(bp) Rate(cM/Mb) Map(cM)` (HapMap), Eagle's;
    without one, PLINK .map `CHR SNP CM BP`. `chromosome` stands in where the file has no chromosome column.
    InputError: unknown layout, a value that is missing or not a number, two genetic positions at one position, a
    genetic position that falls, fewer than two points on a chromosome, or the same genetic position everywhere.
    """
    what = "a genetic map"
    first = read_bytes(path, what).lstrip().split(b"\n", 1)[0].decode("utf-8", "replace").split()
    header = not (len(first) in (3, 4) and all(re.fullmatch(r"-?[\d.]+(e-?\d+)?", f) for f in first[2:]))
    frame = read_delimited(path, what=what, header=header)
    if header:
        plain = {re.sub(r"[^a-z]", "", name.lower()): name for name in reversed(frame.columns)}
        chosen = {key: plain[alias] for key, aliases in _COLUMNS.items() for alias in aliases[::-1] if alias in plain}
    elif frame.width == 4:
        chosen = {"CHR": frame.columns[0], "CM": frame.columns[2], "BP": frame.columns[3]}
    else:
        chosen = {}
    if chromosome is not None and "CHR" not in chosen:
        frame = frame.with_columns(pl.lit(chromosome).alias("chromosome of the file name"))
        chosen["CHR"] = "chromosome of the file name"
    absent = [key for key in ("CHR", "BP", "CM") if key not in chosen]
    if absent:
        lacking = {"CHR": "chromosome", "BP": "position", "CM": "genetic position (cM)"}
        hint = " If each chromosome has its own file, write @ in its name for the number." if absent == ["CHR"] else ""
        raise InputError(
            f"{path}: no column for {', '.join(lacking[a] for a in absent)} in {' '.join(frame.columns)}. "
            f"{_FORMS}.{hint}"
        )
    columns = [
        frame.select(normalise_chromosome(chosen["CHR"]).alias("CHR")).to_series(),
        numeric_column(frame, chosen["BP"], path, integer=True, header=header).alias("BP"),
        numeric_column(frame, chosen["CM"], path, header=header).alias("CM"),
    ]
    for column in columns:
        if column.null_count():
            row = int(column.is_null().arg_true()[0])
            raise InputError(
                f"{path}: column {chosen[column.name]}, line {row + 1 + header}: missing value "
                f"({column.null_count():,} such). Every point of a map needs chromosome, position and cM."
            )
    return _checked(pl.DataFrame(columns), path)


def _checked(frame: pl.DataFrame, path: str | os.PathLike[str]) -> pl.DataFrame:
    points = frame.unique().sort("CHR", "BP", "CM")
    same = pl.col("CHR") == pl.col("CHR").shift(1)
    for fault, expression in {
        "two genetic positions at one position": same & (pl.col("BP") == pl.col("BP").shift(1)),
        "the genetic position falls": same & (pl.col("CM") < pl.col("CM").shift(1)),
    }.items():
        bad = points.select(expression.fill_null(False)).to_series()
        if bad.any():
            row = int(bad.arg_true()[0])
            c, bp, cm = points.row(row)
            raise InputError(
                f"{path}: {fault}: chromosome {c} has {points['CM'][row - 1]} cM at {points['BP'][row - 1]} and {cm} "
                f"cM at {bp} ({int(bad.sum()):,} such). A genetic map rises with position: mend or replace the file."
            )
    for (chromosome,), piece in points.group_by("CHR", maintain_order=True):
        if piece.height < 2:
            raise InputError(f"{path}: chromosome {chromosome} has one map point only; two are needed for a rate.")
    if points["CM"].max() == points["CM"].min():
        raise InputError(
            f"{path}: every genetic position is {points['CM'][0]}: this file carries no genetic map "
            "(PLINK writes 0 when it is unknown). Give a recombination map of the genome build."
        )
    return points


def recombination_rate(
    positions: np.ndarray, map_positions: np.ndarray, map_centimorgans: np.ndarray, window: int
) -> np.ndarray:
    """Mean recombination rate, in cM/Mb, between p - window and p + window; float64 (M,), NaN outside the map.

    positions: (M,).  map_positions: (n,) rising.  map_centimorgans: (n,) not falling.  Genetic positions
    between map points are interpolated linearly. Near an end of the map the window is cut there, and the rate
    is over the rest.
    """
    first, last = map_positions[0], map_positions[-1]
    low, high = np.maximum(positions - window, first), np.minimum(positions + window, last)
    covered = (positions >= first) & (positions <= last)
    span = np.where(covered, high - low, 1)
    gained = np.interp(high, map_positions, map_centimorgans) - np.interp(low, map_positions, map_centimorgans)
    return np.where(covered, gained / span * 1e6, np.nan)


def map_annotations(
    variants: pl.DataFrame,
    path: str | os.PathLike[str],
    *,
    window: int,
    uncovered: Literal["error", "missing"],
    tally: Tally,
) -> dict[str, tuple[np.ndarray, str]]:
    """`log_recombination_rate`: log(0.01 + cM/Mb) within `window` bases; NaN, counted, outside the map.

    A path with @ stands for one file a chromosome, @ being its number.
    """
    if "@" in Path(path).name:
        chromosomes = variants["CHR"].unique(maintain_order=True)
        points = pl.concat([read_genetic_map(str(path).replace("@", c), c) for c in chromosomes])
    else:
        points = read_genetic_map(path)
    spans = points.group_by("CHR", maintain_order=True).agg(
        (pl.col("BP").min() - 1).alias("START"), pl.col("BP").max().alias("END")
    )
    covered = require_coverage(variants, spans, path, "the map", uncovered, tally, reach=0)
    points = points.filter(pl.col("CHR").is_in(covered["CHR"].to_list()))
    rates = per_chromosome(
        variants,
        points,
        lambda p, piece: recombination_rate(p, piece["BP"].to_numpy(), piece["CM"].to_numpy(), window),
    )
    outside = variants["CHR"].is_in(covered["CHR"].to_list()).to_numpy() & np.isnan(rates)
    if outside.any():
        first = variants["SNP"][int(outside.argmax())]
        tally.add(Path(path).name, "noted", "missing: outside the genetic map", int(outside.sum()), str(first))
    values = np.log(RATE_OFFSET + rates).astype(np.float32)
    return {
        "log_recombination_rate": (
            values,
            f"log({RATE_OFFSET} + cM/Mb) within {window:,} bases, from {Path(path).name}",
        ),
    }
