"""Annotations of an LD store's variants from every kind of source, in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import polars as pl

from deepwas.annotations.features import Annotations, add_columns, check_variants, read_annotations, stack
from deepwas.annotations.genes import gene_annotations
from deepwas.annotations.genetic_map import map_annotations
from deepwas.annotations.intervals import FEATURES, Feature, interval_annotations
from deepwas.annotations.table import KeyChoice
from deepwas.errors import InputError
from deepwas.files import require_file, sha256
from deepwas.tally import Tally

Made = dict[str, tuple[np.ndarray, str]]


@dataclass(frozen=True)
class AnnotationOptions:
    """How annotations are made; every field checks itself.

    promoter_upstream, promoter_downstream: bases before and after a transcription start that make up a promoter.
    density_window: gene density counts the genes that overlap the bases within this distance of a variant.
    map_window: the recombination rate is the mean over the bases within this distance.
    interval_features: what is made of each BED file: 'inside', 'fraction', 'count', 'distance'.
    interval_window: distance for 'fraction' and 'count'.
    store_features: whether allele frequency and LD score of the LD store are annotations (maf, log_ld_score).
    table_key: how tables are matched: 'auto', 'alleles', 'snp' or 'position'.
    uncovered: a chromosome that a BED file or map does not cover is an 'error', or its variants are 'missing'.
    """

    promoter_upstream: int = 2000
    promoter_downstream: int = 500
    density_window: int = 500_000
    map_window: int = 10_000
    interval_features: tuple[Feature, ...] = ("inside",)
    interval_window: int = 10_000
    store_features: bool = True
    table_key: KeyChoice = "auto"
    uncovered: Literal["error", "missing"] = "error"

    def __post_init__(self) -> None:
        smallest = {
            "promoter_upstream": 0,
            "promoter_downstream": 0,
            "density_window": 0,
            "interval_window": 0,
        }
        for name, least in {**smallest, "map_window": 1}.items():
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)!r}: give a number of bases, {least} or more.")
        unknown = [f for f in self.interval_features if f not in FEATURES]
        if unknown or not self.interval_features or len(set(self.interval_features)) < len(self.interval_features):
            raise InputError(
                f"interval_features={self.interval_features!r}: give one or more of {', '.join(FEATURES)}, each once."
            )
        if self.table_key not in get_args(KeyChoice):
            raise InputError(f"table_key={self.table_key!r}: give one of {', '.join(get_args(KeyChoice))}.")
        if self.uncovered not in ("error", "missing"):
            raise InputError(f"uncovered={self.uncovered!r}: give error or missing.")


def annotate(
    variants: pl.DataFrame,
    *,
    genes: str | os.PathLike[str] | None = None,
    genetic_map: str | os.PathLike[str] | None = None,
    intervals: Mapping[str, str | os.PathLike[str]] | None = None,
    tables: Sequence[str | os.PathLike[str]] = (),
    options: AnnotationOptions | None = None,
) -> Annotations:
    """Annotate the variants of an LD store; rows of the result are in their order.

    variants: frame with CHR SNP BP A1 A2, and FREQ and LDSCORE unless options.store_features is False.
    genes: BED file with name and strand -> log_tss_distance, log_gene_distance, gene_body, promoter,
    gene_density.
    genetic_map: SHAPEIT, HapMap, Eagle or PLINK map -> log_recombination_rate.
    intervals: name -> BED file -> the columns that options.interval_features asks for.
    tables: variants x annotations, text or Parquet; see `read_annotations`.
    All files must be of the genome build of the LD store. Values are raw: `Standardiser` prepares them for a
    network. Raises InputError, naming file, column and row, for unusable input and when no annotation is
    asked for.
    """
    options = options or AnnotationOptions()
    keys = check_variants(variants)
    if genes is not None:
        require_file(genes, "a BED file of genes")
    for name, path in (intervals or {}).items():
        require_file(path, f"a BED file of intervals for {name}")
    tally = Tally()
    columns: dict[str, np.ndarray] = {}
    sources: dict[str, str] = {}
    files: dict[str, str] = {}

    def add(made: Made, *paths: str | os.PathLike[str]) -> None:
        add_columns(columns, sources, {n: v for n, (v, _) in made.items()}, {n: text for n, (_, text) in made.items()})
        files.update({str(path): sha256(path) for path in paths})

    if genes is not None:
        made = gene_annotations(
            keys,
            genes,
            promoter_upstream=options.promoter_upstream,
            promoter_downstream=options.promoter_downstream,
            density_window=options.density_window,
            uncovered=options.uncovered,
            tally=tally,
        )
        add(made, genes)
    if genetic_map is not None:
        made = map_annotations(keys, genetic_map, window=options.map_window, uncovered=options.uncovered, tally=tally)
        several = "@" in Path(genetic_map).name
        chromosomes = keys["CHR"].unique(maintain_order=True) if several else [""]
        add(made, *(str(genetic_map).replace("@", c) for c in chromosomes))
    for name, path in (intervals or {}).items():
        add(
            interval_annotations(
                keys, name, path, options.interval_features, options.interval_window, options.uncovered, tally
            ),
            path,
        )
    if tables:
        read = read_annotations(list(tables), keys, table_key=options.table_key)
        new = {name: read.values[:, j] for j, name in enumerate(read.names)}
        add_columns(columns, sources, new, read.sources)
        files.update(read.files)
        tally.extend(read.tally)
    if options.store_features:
        add(store_features(variants, tally))
    if not columns:
        raise InputError("no annotation asked for: give genes, a genetic map, intervals or tables, or store features.")
    names = tuple(columns)
    return Annotations(names, stack(columns, keys.height), keys, sources, files, tally)


def store_features(variants: pl.DataFrame, tally: Tally) -> Made:
    """Annotations that the LD store itself carries, from its columns FREQ and LDSCORE.

    maf           min(FREQ, 1 - FREQ), in [0, 0.5]
    log_ld_score  log(1 + l), l the noise-adjusted LD score; a negative l (noise) counts as 0 and is counted
    """
    absent = [name for name in ("FREQ", "LDSCORE") if name not in variants.columns]
    if absent:
        raise InputError(
            f"variants: column {', '.join(absent)} is missing, which store features need; found "
            f"{' '.join(variants.columns)}. Give the variants of an LD store, or turn store features off."
        )
    frequency = variants["FREQ"].cast(pl.Float64).to_numpy()
    if ((frequency < 0) | (frequency > 1)).any():
        row = int(((frequency < 0) | (frequency > 1)).argmax())
        raise InputError(f"variants: FREQ of {variants['SNP'][row]} is {frequency[row]}, outside 0 to 1.")
    score = variants["LDSCORE"].cast(pl.Float64).to_numpy()
    negative = score < 0
    if negative.any():
        first = str(variants["SNP"][int(negative.argmax())])
        tally.add("log_ld_score", "changed", "negative LD score, taken as 0", int(negative.sum()), first)
    for name, column in {"maf": frequency, "log_ld_score": score}.items():
        gone = np.isnan(column)
        if gone.any():
            first = str(variants["SNP"][int(gone.argmax())])
            tally.add(name, "noted", "missing: the LD store has no value", int(gone.sum()), first)
    return {
        "maf": (
            np.minimum(frequency, 1 - frequency).astype(np.float32),
            "minor allele frequency in the LD panel",
        ),
        "log_ld_score": (
            np.log1p(np.where(negative, 0, score)).astype(np.float32),
            "log(1 + LD score) in the LD panel",
        ),
    }
