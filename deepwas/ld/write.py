"""Writing an LD store from blocks that are at hand, and the end of every store's writing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from deepwas import __version__
from deepwas.errors import InputError
from deepwas.files import atomic_path, require_parent
from deepwas.genome import parse_build
from deepwas.ld import layout
from deepwas.ld.block import LDBlock
from deepwas.ld.options import DTYPES
from deepwas.ld.store import LDStore, open_ld

if TYPE_CHECKING:
    from deepwas.likelihood.factor import FactorDtype

__all__ = ["write_end", "write_ld"]


def write_ld(
    path: str | os.PathLike[str],
    variants: pl.DataFrame,
    blocks: Iterable[tuple[int, LDBlock]],
    *,
    build: str,
    n_samples: int,
    dtype: FactorDtype = "float32",
    source: str = "",
) -> LDStore:
    """Write blocks of a caller's own LD, any matrices of correlations, as an LD store; returns it, opened.

    variants: CHR SNP BP A1 A2 FREQ, in genome order; FREQ is the frequency of A1, the allele counted. CM (null without)
        and LDSCORE may follow; without LDSCORE it is sum_k r2_jk - (1 - r2_jk) / (n - 2) over the candidates of the
        block that scores the variant, of the LD that the block keeps, and 1 for a variant that none scores.
    blocks: (start, block), one at a time, so that an iterator over many never holds them all: the block's m candidates
        are the rows start to start + m - 1 of `variants`, and those it scores are neighbours. Blocks follow each other
        in genome order and no variant is scored twice; some may be scored by none. A window of 3 Mb that scores its
        middle, say: (start, LDBlock.from_correlation(R, scored)).
    build: GRCh37 or GRCh38.  n_samples: people the correlations were computed from.  dtype: as in `LDOptions`.
    source: where the LD comes from, in words, for the record.

    Raises InputError for variants or blocks that do not fit; nothing is left behind then.
    """
    import h5py

    target = require_parent(path)
    genome_build = parse_build(build)
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    if n_samples < 3:
        raise InputError(f"n_samples is {n_samples}; give the number of people the correlations were computed from.")
    table, has_scores = _checked_variants(variants)
    chromosome = table["CHR"].to_numpy()
    given_scores = table["LDSCORE"].to_numpy() if has_scores else np.ones(table.height)
    with atomic_path(target) as temporary, h5py.File(temporary, "w") as handle:
        ranges: list[tuple[int, int, int, int]] = []
        owner = np.full(table.height, -1, dtype=np.int64)
        digests: list[str] = []
        layout.write_variants(handle, table.with_columns(LDSCORE=pl.Series(given_scores)))
        for index, (start, block) in enumerate(blocks):
            began = time.perf_counter()
            here = _place(index, start, block, ranges[-1] if ranges else None, chromosome)
            low, high = here[2:]
            scores = given_scores[low:high] if has_scores else _ld_scores(block, n_samples)
            attributes = {
                **dict(zip(layout.BLOCK_ATTRIBUTES, here, strict=False)),
                "eigenvalue_floor": 0.0,
                "eigenvalue_total": float(block.s),
                "variance_kept": float(block.eigenvalues.sum() / block.s),
                "seconds": time.perf_counter() - began,
            }
            layout.write_block(handle, index, block, scores, attributes, dtype)
            owner[low:high] = index
            ranges.append(here)
            digests.append(handle[layout.block_name(index)].attrs["sha256"])
        if not ranges:
            raise InputError(f"{target}: no LD block was given.")
        handle["variants"]["BLOCK"][:] = owner
        write_end(
            handle,
            np.array(ranges, dtype=np.int64),
            digests,
            variants_digest=layout.variants_digest(table.with_columns(BLOCK=owner)),
            genome_build=genome_build,
            n_samples=n_samples,
            options={"build": genome_build, "dtype": dtype},
            provenance={"command": "write_ld", "source": source, "inputs": [], "tally": []},
        )
    return open_ld(target)


def write_end(
    handle: Any,
    ranges: npt.NDArray[np.int64],
    digests: Sequence[str],
    *,
    variants_digest: str,
    genome_build: str,
    n_samples: int,
    options: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Write what makes the file whole: /ranges and the root attributes, the checksum among them.

    ranges: (n_blocks, 4) as in `layout.write_ranges`.  digests: of the blocks, in order.
    """
    kept = [handle[layout.block_name(index)]["eigenvalues"].shape[0] for index in range(len(ranges))]
    layout.write_ranges(handle, ranges, kept)
    stored = any("whitener" in handle[layout.block_name(index)] for index in range(len(ranges)))
    attributes = {
        "format": layout.FORMAT,
        "format_version": layout.FORMAT_VERSION,
        "deepwas_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "genome_build": genome_build,
        "n_samples": n_samples,
        "n_variants": len(handle["variants"]["BLOCK"]),
        "n_blocks": len(ranges),
        "whitener": "stored" if stored else "implied",
        "options": json.dumps(options),
        "provenance": json.dumps(provenance),
        "checksum": layout.content_checksum(variants_digest, digests, genome_build),
    }
    for name, value in attributes.items():
        handle.attrs[name] = value


def _checked_variants(variants: pl.DataFrame) -> tuple[pl.DataFrame, bool]:
    """The columns of a store, and whether LD scores were among those given."""
    missing = [name for name in ("CHR", "SNP", "BP", "A1", "A2", "FREQ") if name not in variants.columns]
    if missing:
        raise InputError(f"variants: column {', '.join(missing)} is missing; found {' '.join(variants.columns)}.")
    has_scores = "LDSCORE" in variants.columns
    extra = {"CM": pl.lit(None, pl.Float64)} if "CM" not in variants.columns else {}
    if not has_scores:
        extra["LDSCORE"] = pl.lit(1.0)
    kinds = [pl.col(name).cast(kind) for name, (kind, _) in layout.COLUMNS.items()]
    table = variants.with_columns(**extra, BLOCK=pl.lit(-1)).select(kinds)
    for name in ("CHR", "SNP", "BP", "A1", "A2"):
        if table[name].null_count():
            raise InputError(f"variants: {name} is missing in row {int(table[name].is_null().arg_true()[0]) + 1}.")
    checks = {"FREQ": table["FREQ"].is_between(0, 1), "LDSCORE": table["LDSCORE"].is_finite()}
    for name, sound in checks.items():
        bad = (~sound.fill_null(False)).arg_true()
        if len(bad):
            row = int(bad[0])
            raise InputError(
                f"variants: {name} is {table[name][row]} in row {row + 1} ({len(bad):,} such). Every variant needs one."
            )
    names, position = table["CHR"].to_numpy(), table["BP"].to_numpy()
    changes = np.flatnonzero(names[1:] != names[:-1]) + 1
    if len(changes) + 1 != table["CHR"].n_unique():
        raise InputError("variants: a chromosome's variants must follow one another. Sort by CHR and BP.")
    back = np.flatnonzero((position[1:] < position[:-1]) & (names[1:] == names[:-1]))
    if back.size:
        raise InputError(f"variants: BP goes down after row {int(back[0]) + 1}. Sort by CHR and BP.")
    return table, has_scores


def _place(
    index: int, start: int, block: LDBlock, before: tuple[int, ...] | None, chromosome: npt.NDArray[Any]
) -> tuple[int, int, int, int]:
    """Start and stop of a block's candidates and scored variants in the table, or why it does not fit there."""
    inside = np.flatnonzero(block.scored)
    start, stop = int(start), int(start) + block.m
    low, high = start + int(inside[0]), start + int(inside[-1]) + 1
    fault = None
    if block.restricted:
        fault = "is restricted to one trait's variants; give the block of all"
    elif start < 0 or stop > len(chromosome):
        fault = f"has candidates {start:,} to {stop:,}, the table {len(chromosome):,} variants"
    elif high - low != block.s:
        fault = f"scores {block.s:,} variants that are not neighbours (among {high - low:,})"
    elif (chromosome[start:stop] != chromosome[start]).any():
        fault = f"reaches over two chromosomes, {chromosome[start]} and {chromosome[stop - 1]}"
    elif before is not None and low < before[3]:
        fault = f"scores from row {low:,}, which the block before it scores too (up to {before[3]:,})"
    if fault:
        raise InputError(f"LD block {index} {fault}.")
    return start, stop, low, high


def _ld_scores(block: LDBlock, n_samples: int) -> npt.NDArray[np.float64]:
    """LD scores from the LD that a block keeps, R_S: = G_S' G: sum_k r2_jk = g_j' (G G') g_j, own term 1."""
    G = block.factor.astype(np.float64)
    inside = G[:, block.scored]
    r2 = np.einsum("ij,ij->j", inside, (G @ G.T) @ inside)
    own = np.einsum("ij,ij->j", inside, inside)
    others = r2 - own**2
    return others - (block.m - 1 - others) / (n_samples - 2) + 1.0
