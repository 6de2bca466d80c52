"""The tables of a posterior: by variant, by LD block, and in all."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.files import atomic_path
from deepwas.ld import LDStore
from deepwas.posterior.options import PosteriorOptions
from deepwas.posterior.progress import COLUMNS, Computed
from deepwas.posterior.source import STEP, Source
from deepwas.specs import load_spec
from deepwas.tally import Tally
from deepwas.training.trait import TraitBlocks

__all__ = ["block_table", "names_of", "rounded", "totals_of", "variant_table", "write_large"]

_ROWS = 200_000  # of a table written at a time


def variant_table(
    store: LDStore, source: Source, blocks: TraitBlocks, computed: Computed, options: PosteriorOptions
) -> tuple[pl.DataFrame, Tally]:
    """One row a variant, as data_specs/posterior.schema.json has them, and the count of what became of variants."""
    tally = Tally()
    tally.extend(source.tally)
    for row in blocks.dropped.rows:
        tally.add(STEP, row.action, row.reason, row.count, row.first)
    numbers = [block.number for block in blocks]
    rows = np.concatenate([np.arange(s.start, s.stop) for s in map(store.scored_slice, numbers)])
    mean, variance, error = (computed.values[name][rows] for name in ("mean", "variance", "error"))
    sd = np.sqrt(variance)
    scores = source.scores(rows)
    q, whose = _frequencies(store, source, rows, options.frequencies == "gwas")
    usable = (q > 0) & (q < 1)
    scale = np.full(len(q), np.nan)
    scale[usable] = 1 / np.sqrt(2 * q[usable] * (1 - q[usable]))
    reason = "variants without an allele frequency between 0 and 1: no effect per allele"
    names = store.variants["SNP"]
    tally.add(STEP, "noted", reason, int((~usable).sum()), "" if usable.all() else str(names[int(rows[~usable][0])]))
    with np.errstate(invalid="ignore", divide="ignore"):
        standardised = np.where(sd > 0, mean / np.where(sd > 0, sd, 1), np.nan)
    table = (
        store.variants.select("CHR", "SNP", "BP", "A1", "A2", pl.col("BLOCK").cast(pl.Int64))[rows]
        .with_columns(
            pl.Series("SNPVAR", source.f[rows]),
            scores["Z"],
            scores["N"],
            pl.Series("POST_MEAN", mean),
            pl.Series("POST_SD", sd),
            pl.Series("POST_Z", standardised),
            pl.Series("POST_BETA", mean * scale),
            pl.Series("POST_BETA_SD", sd * scale),
            pl.Series("FREQ", np.where(usable, q, np.nan)),
            pl.when(pl.Series(usable)).then(pl.Series(whose)).alias("FREQ_FROM"),
            pl.Series("VARIANCE_SE", error),
        )
        .with_columns(pl.col(pl.Float64).fill_nan(None))
        .select(names_of("posterior"))
    )
    return table, tally


def _frequencies(
    store: LDStore, source: Source, rows: NDArray[Any], own_first: bool
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Frequency of A1 for rows of the store, NaN if unknown, and whose it is."""
    panel = store.variants["FREQ"].cast(pl.Float64).fill_null(math.nan).to_numpy()[rows]
    gwas = source.frequency[rows]
    own = (gwas > 0) & (gwas < 1) & own_first
    return np.where(own, gwas, panel), np.where(own, "gwas", "panel")


def names_of(spec: str) -> list[str]:
    """The columns of a specification."""
    return [field["name"] for field in load_spec(spec)["fields"]]


def block_table(
    store: LDStore, source: Source, blocks: TraitBlocks, computed: Computed, table: pl.DataFrame
) -> pl.DataFrame:
    """One row an LD block, as data_specs/local_heritability.schema.json has them."""
    figures = {name: computed.blocks[:, j] for j, name in enumerate(COLUMNS)}
    by_block = table.group_by("BLOCK", maintain_order=True).agg(
        pl.col("CHR").first(),
        pl.col("BP").min().alias("START"),
        pl.col("BP").max().alias("STOP"),
        pl.len().cast(pl.Int64).alias("VARIANTS"),
        pl.col("Z").count().cast(pl.Int64).alias("OBSERVED"),
        pl.col("SNPVAR").sum().alias("H2_PRIOR"),
        pl.col("POST_Z").sort_by(pl.col("POST_Z").abs(), nulls_last=True, descending=True).first().alias("LARGEST_Z"),
    )
    numbers = [block.number for block in blocks]
    if by_block["BLOCK"].to_list() != numbers:
        raise InputError(f"{store.path}: the column BLOCK is not in the order of the blocks. Build the store again.")
    return (
        by_block.with_columns(
            pl.Series("N", [block.sample_size for block in blocks]),
            pl.Series("NOISE", [source.noise[number] for number in numbers]),
            pl.Series("H2_PRIOR_KEPT", figures["prior"]),
            pl.Series("H2", figures["mean"]),
            pl.Series("H2_SD", figures["sd"]),
            pl.Series("H2_SE", figures["standard_error"]),
            pl.Series("R2", figures["score"]),
            pl.Series("R2_PRIOR", figures["expected_score"]),
            pl.Series("SOLVER", np.where(figures["exact"] == 1, "cholesky", "cg")),
            pl.Series("RESIDUAL", figures["residual"]),
        )
        .with_columns(pl.col(pl.Float64).fill_nan(None))
        .select(names_of("local_heritability"))
    )


def totals_of(table: pl.DataFrame, blocks: pl.DataFrame) -> dict[str, Any]:
    """Sums over variants and blocks, ready for JSON; blocks count as independent."""
    sums = {name.lower(): float(blocks[name].sum()) for name in ("H2_PRIOR", "H2_PRIOR_KEPT", "H2", "R2", "R2_PRIOR")}
    sd = blocks["H2_SD"]
    return {
        "variants": table.height,
        "observed": int(table["Z"].is_not_null().sum()),
        "blocks": blocks.height,
        "blocks_by_cg": int((blocks["SOLVER"] == "cg").sum()),
        "largest_residual": float(blocks["RESIDUAL"].to_numpy().max()),
        **sums,
        "h2_sd": None if sd.null_count() else math.sqrt(float((sd**2).sum())),
        "h2_standard_error": math.sqrt(float((blocks["H2_SE"] ** 2).sum())),
        "frequencies": {name: int((table["FREQ_FROM"] == name).sum()) for name in ("gwas", "panel")},
    }


def rounded(frame: pl.DataFrame) -> pl.DataFrame:
    """To 7 significant digits."""
    return frame.with_columns(pl.col(pl.Float64).round_sig_figs(7))


def write_large(path: Path, frame: pl.DataFrame) -> None:
    """A table as gzip text, piece by piece, so that it is never in memory as text; equal tables give equal bytes."""
    with (
        atomic_path(path) as temporary,
        open(temporary, "wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as target,
    ):
        for start in range(0, max(frame.height, 1), _ROWS):
            piece = rounded(frame.slice(start, _ROWS))
            target.write(piece.write_csv(separator="\t", null_value="NA", include_header=start == 0).encode())
