"""Harmonised summary statistics: one row per variant of an LD store, and the parquet file that holds them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

import polars as pl

import deepwas
from deepwas.errors import InputError
from deepwas.files import atomic_path, require_file, require_parent
from deepwas.specs import validate_table
from deepwas.tally import Count, Tally

FILE_FORMAT = "deepwas-sumstats"
FORMAT_VERSION = 1
SCHEMA: dict[str, Any] = {
    "VARIANT": pl.UInt32,
    "CHR": pl.String,
    "SNP": pl.String,
    "BP": pl.Int64,
    "A1": pl.String,
    "A2": pl.String,
    "Z": pl.Float64,
    "N": pl.Float64,
    "FRQ": pl.Float64,
}
_TEXT = ("source", "source_sha256", "source_format", "build", "genome_build", "store_checksum", "match")


@dataclass(frozen=True)
class HarmonisedSumstats:
    """Summary statistics of one trait on the variants and alleles of an LD store.

    frame: VARIANT (row of the store's variants, unique, ascending), CHR SNP BP A1 A2 (the store's), Z (of the
        store's A1), N (people), FRQ (of the store's A1; null where the GWAS gives none).
    n_store: number of variants of the store.  store_checksum, genome_build: the store's, if known.
    source, source_sha256, source_format, build: the name, checksum, format and genome build of the GWAS file.
    match: 'position' or 'rsid', the key used.  options: the quality control options used.
    tally: every row kept, changed and dropped, from the GWAS file on.
    """

    frame: pl.DataFrame
    n_store: int
    source: str
    source_sha256: str
    source_format: str
    match: str
    build: str | None = None
    genome_build: str | None = None
    store_checksum: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    @property
    def n_matched(self) -> int:
        """Number of the store's variants with a z-score."""
        return self.frame.height

    def write_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the frame and, as key-value metadata, everything else; equal contents give equal bytes.

        The file appears under its name only when complete. `read_harmonised` reads it back.
        """
        target = require_parent(path)
        validate_table(self.frame, "sumstats", str(target))
        metadata = {name: getattr(self, name) for name in _TEXT if getattr(self, name) is not None}
        metadata |= {
            "format": FILE_FORMAT,
            "format_version": str(FORMAT_VERSION),
            "deepwas_version": deepwas.__version__,
            "n_store": str(self.n_store),
            "options": json.dumps(self.options, allow_nan=False),
            "tally": json.dumps(self.tally.as_list(), allow_nan=False),
        }
        with atomic_path(target) as temporary:
            self.frame.write_parquet(temporary, metadata=metadata)


def read_harmonised(path: str | os.PathLike[str], *, expected_checksum: str | None = None) -> HarmonisedSumstats:
    """Read what `HarmonisedSumstats.write_parquet` wrote, and check it.

    expected_checksum: checksum of the LD store it is to be used with. VARIANT counts rows of one store, so a
    file made for another store is an InputError, as is one that is not of this kind, is newer, or breaks its
    specification.
    """
    found = require_file(path, "harmonised summary statistics (parquet)")
    remake = "Make it with `deepwas sumstats`."
    with open(found, "rb") as handle:
        if handle.read(4) != b"PAR1":
            raise InputError(f"{found}: not a parquet file, harmonised summary statistics expected. {remake}")
    try:
        metadata = pl.read_parquet_metadata(found)
        frame = pl.read_parquet(found)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{found}: the parquet file is damaged or cut short ({error}). {remake}") from error
    if metadata.get("format") != FILE_FORMAT:
        kind = metadata.get("format", "a parquet table of another origin")
        raise InputError(f"{found}: harmonised summary statistics expected, this is {kind}. {remake}")
    version = int(metadata["format_version"])
    if version > FORMAT_VERSION:
        raise InputError(
            f"{found}: format version {version}, made by deepwas {metadata['deepwas_version']}; this deepwas "
            f"{deepwas.__version__} reads versions up to {FORMAT_VERSION}. Upgrade deepwas."
        )
    store = metadata.get("store_checksum")
    if expected_checksum is not None and store != expected_checksum:
        made_for = f"the LD store {store[:12]}" if store else "an LD store that was not named"
        raise InputError(
            f"{found}: made for {made_for}, not for {expected_checksum[:12]}. Its rows count the variants of "
            "that store: run `deepwas sumstats` again with the store in use."
        )
    validate_table(frame, "sumstats", str(found))
    n_store = int(metadata["n_store"])
    if frame.height and int(frame["VARIANT"][-1]) >= n_store:
        raise InputError(f"{found}: VARIANT {frame['VARIANT'][-1]} is not below the store's {n_store:,}. {remake}")
    if not frame["VARIANT"].is_sorted():
        raise InputError(f"{found}: VARIANT is not ascending. {remake}")
    return HarmonisedSumstats(
        frame=frame,
        n_store=n_store,
        options=json.loads(metadata["options"]),
        tally=Tally([Count(**row) for row in json.loads(metadata["tally"])]),
        **{name: metadata.get(name) for name in _TEXT},  # type: ignore[arg-type]
    )
