"""Annotations from a gene BED file with strand: distance to promoters and genes, gene body, gene density."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from deepwas.annotations.intervals import (
    count_overlapping,
    distance,
    inside,
    log_distance,
    merge_intervals,
    per_chromosome,
    require_coverage,
)
from deepwas.errors import InputError
from deepwas.genome import read_intervals
from deepwas.tally import Tally


def read_genes(path: str | os.PathLike[str]) -> pl.DataFrame:
    """Read a gene BED file: CHR START END NAME SCORE STRAND; a strand other than + or - is an error with its row.

    Adds TSS, the 1-based transcription start: START + 1 on +, END on -.
    """
    genes = read_intervals(path, names=("NAME", "SCORE", "STRAND")).with_columns(pl.col("STRAND").str.strip_chars())
    bad = genes.select(~pl.col("STRAND").is_in(["+", "-"]).fill_null(False)).to_series()
    if bad.any():
        row = int(bad.arg_true()[0])
        raise InputError(
            f"{path}: gene {row + 1} ({genes['NAME'][row] or 'unnamed'}): strand {genes['STRAND'][row] or '.'!r} is "
            f"neither + nor - ({int(bad.sum()):,} such). The transcription start depends on the strand: column 6 must "
            "hold it. For intervals without strand use --intervals NAME=FILE."
        )
    return genes.with_columns(TSS=pl.when(pl.col("STRAND") == "+").then(pl.col("START") + 1).otherwise(pl.col("END")))


def merge_transcripts(genes: pl.DataFrame) -> pl.DataFrame:
    """One interval a gene: overlapping records of one chromosome, name and strand become their union.

    Records of one name that do not overlap stay apart (gene copies); records without a name stay as they are.
    """
    group = ["CHR", "NAME", "STRAND"]
    named = genes.filter(pl.col("NAME").is_not_null()).sort([*group, "START", "END"])
    reach = pl.col("END").cum_max().shift(1).over(group)
    named = named.with_columns(copy=(pl.col("START") >= reach).fill_null(True).cum_sum().over(group))
    merged = named.group_by([*group, "copy"], maintain_order=True).agg(pl.col("START").min(), pl.col("END").max())
    columns = ["CHR", "START", "END"]
    return pl.concat([merged.select(columns), genes.filter(pl.col("NAME").is_null()).select(columns)])


def gene_annotations(
    variants: pl.DataFrame,
    path: str | os.PathLike[str],
    *,
    promoter_upstream: int,
    promoter_downstream: int,
    density_window: int,
    uncovered: Literal["error", "missing"],
    tally: Tally,
) -> dict[str, tuple[np.ndarray, str]]:
    """Five annotations of a gene BED file: for each name its values, float32 (M,), and a line saying what they are.

    log_tss_distance   log(1 + d / 1000), d bases to the nearest transcription start on either strand
    log_gene_distance  the same to the nearest gene body, 0 inside
    gene_body          1 inside a gene
    promoter           1 from `promoter_upstream` bases before a transcription start to `promoter_downstream`
    after it,
                       in the direction of transcription
    gene_density       genes that overlap the bases within `density_window`; transcripts of a gene count once
    """
    file = Path(path).name
    genes = require_coverage(variants, read_genes(path), path, "a gene", uncovered, tally)
    bodies = merge_transcripts(genes)
    tally.add(file, "noted", "gene records used", genes.height)
    tally.add(file, "noted", "genes after merging overlapping records of one name", bodies.height)
    forward = pl.col("STRAND") == "+"
    before = pl.when(forward).then(promoter_upstream).otherwise(promoter_downstream)
    after = pl.when(forward).then(promoter_downstream).otherwise(promoter_upstream)
    promoters = genes.select("CHR", START=pl.col("TSS") - before - 1, END=pl.col("TSS") + after)

    def merged(piece: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        return merge_intervals(piece["START"].to_numpy(), piece["END"].to_numpy())

    def to_tss(positions: np.ndarray, piece: pl.DataFrame) -> np.ndarray:
        starts = np.unique(piece["TSS"].to_numpy())
        return log_distance(distance(positions, starts - 1, starts))

    def density(positions: np.ndarray, piece: pl.DataFrame) -> np.ndarray:
        return count_overlapping(positions, piece["START"].to_numpy(), piece["END"].to_numpy(), density_window)

    return {
        "log_tss_distance": (
            per_chromosome(variants, genes, to_tss),
            f"log(1 + kb to the nearest transcription start of {file})",
        ),
        "log_gene_distance": (
            per_chromosome(variants, bodies, lambda p, piece: log_distance(distance(p, *merged(piece)))),
            f"log(1 + kb to the nearest gene of {file})",
        ),
        "gene_body": (
            per_chromosome(variants, bodies, lambda p, piece: inside(p, *merged(piece))),
            f"1 inside a gene of {file}",
        ),
        "promoter": (
            per_chromosome(variants, promoters, lambda p, piece: inside(p, *merged(piece))),
            (
                f"1 from {promoter_upstream:,} bases before a transcription start of {file} "
                f"to {promoter_downstream:,} after"
            ),
        ),
        "gene_density": (
            per_chromosome(variants, bodies, density),
            f"genes of {file} that overlap the bases within {density_window:,}",
        ),
    }
