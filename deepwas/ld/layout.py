"""The HDF5 layout of an LD store: one place that names its groups, datasets and attributes, and digests them.

    /                       attributes: ROOT_ATTRIBUTES
    /variants/COLUMN        (M,)  CHR SNP CM BP A1 A2 FREQ LDSCORE BLOCK, in genome order
    /ranges/COLUMN          (n_blocks,) int64  START STOP SCORED_START SCORED_STOP KEPT
    /blocks/00000/factor    (k, m) G, float or int8
    /blocks/00000/scale     (k,) float32, if the factor is float16 or int8: G = diag(scale) factor
    /blocks/00000/eigenvalues  (k,) float64 of R_SS, descending
    /blocks/00000/whitener  (k, s) float, W = diag(whitener_scale) whitener; whitener_scale (k,) if it is float16
                            attributes: BLOCK_ATTRIBUTES

A block's candidate variants are the rows START to STOP - 1 of /variants, those it scores SCORED_START to
SCORED_STOP - 1 among them; BLOCK is the block that scores a variant, or -1. Where all are scored the whitener is
diag(1 / eigenvalues) G and is left out, unless the factor is int8: that division would magnify its rounding.

Format version 1 had no flanks: no /ranges, no SCORED_ attributes, no scale, no whitener. The JSON view of a file,
`describe`, is what `data_specs/ld_store.schema.json` specifies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

if TYPE_CHECKING:
    from deepwas.ld.block import LDBlock
    from deepwas.likelihood.factor import Factor, FactorDtype

FORMAT = "deepwas-ld"
FORMAT_VERSION = 2

# Column: (polars type, NumPy type on disk or None for text)
COLUMNS: dict[str, tuple[type[pl.DataType], str | None]] = {
    "CHR": (pl.String, None),
    "SNP": (pl.String, None),
    "CM": (pl.Float64, "<f8"),
    "BP": (pl.Int64, "<i8"),
    "A1": (pl.String, None),
    "A2": (pl.String, None),
    "FREQ": (pl.Float64, "<f8"),
    "LDSCORE": (pl.Float64, "<f8"),
    "BLOCK": (pl.Int64, "<i4"),
}
ROOT_ATTRIBUTES = (
    "format",
    "format_version",
    "deepwas_version",
    "created",
    "genome_build",
    "n_samples",
    "n_variants",
    "n_blocks",
    "whitener",
    "options",
    "provenance",
    "checksum",
)
RANGES = ("START", "STOP", "SCORED_START", "SCORED_STOP", "KEPT")
BLOCK_ATTRIBUTES = (
    "start",
    "stop",
    "scored_start",
    "scored_stop",
    "eigenvalue_floor",
    "eigenvalue_total",
    "variance_kept",
    "seconds",
    "sha256",
)


def block_name(index: int) -> str:
    """Path of a block's group."""
    return f"/blocks/{index:05d}"


def write_variants(handle: Any, variants: pl.DataFrame) -> None:
    """Write the columns of COLUMNS under /variants, compressed. A null CM is stored as NaN."""
    import h5py

    group = handle.create_group("variants")
    for name, (_, kind) in COLUMNS.items():
        column = variants.get_column(name)
        if kind is not None:
            data = column.cast(pl.Float64).fill_null(np.nan).to_numpy() if kind == "<f8" else column.to_numpy()
            group.create_dataset(name, data=data.astype(kind), compression="gzip", compression_opts=1, shuffle=True)
            continue
        # Fixed width reads a hundred times faster; a few long alleles must not blow every row up.
        width = max(1, *column.str.len_bytes().unique().to_list())
        fixed = width <= 64
        dtype = h5py.string_dtype("utf-8", width if fixed else None)
        # h5py converts no plain bytes to fixed-width UTF-8: the array must bear the type itself.
        text = column.cast(pl.Binary).to_numpy().astype(dtype) if fixed else column.to_list()
        group.create_dataset(name, data=text, dtype=dtype, compression="gzip", compression_opts=1)


def read_variants(handle: Any, columns: Iterable[str] = tuple(COLUMNS)) -> pl.DataFrame:
    """Read columns of /variants as polars; NaN in CM becomes null."""
    out = {}
    for name in columns:
        kind, stored = COLUMNS[name]
        raw = handle["variants"][name][:]
        if stored is None:
            values = pl.Series(name, raw if raw.dtype.kind == "S" else raw.tolist(), dtype=pl.Binary)
            out[name] = values.cast(pl.String)
        else:
            out[name] = pl.Series(name, raw).cast(kind)
    frame = pl.DataFrame(out)
    return frame.with_columns(pl.col("CM").fill_nan(None)) if "CM" in out else frame


def write_block(
    handle: Any,
    index: int,
    block: LDBlock,
    ld_scores: npt.NDArray[np.float64],
    attributes: dict[str, Any],
    dtype: FactorDtype,
) -> None:
    """Write one block and the LD scores of the variants it scores.

    attributes: BLOCK_ATTRIBUTES but the digest, which comes last: a block without is unfinished.
    dtype: of the factor. The whitener, where it must be stored, is float16 beside float16 and int8.
    """
    from deepwas.likelihood.factor import encode_factor  # its package imports JAX, which opening a store need not

    group = handle.create_group(block_name(index))
    factor = encode_factor(block.factor, dtype)
    group.create_dataset("factor", data=factor.values)
    if dtype in ("float16", "int8"):
        group.create_dataset("scale", data=factor.scale)
    if dtype == "int8" or not block.scored.all():
        small = dtype in ("float16", "int8")
        whitener = encode_factor(block.whitener, "float16" if small else dtype)
        group.create_dataset("whitener", data=whitener.values)
        if small:
            group.create_dataset("whitener_scale", data=whitener.scale)
    group.create_dataset("eigenvalues", data=block.eigenvalues.astype("<f8"))
    handle["variants"]["LDSCORE"][attributes["scored_start"] : attributes["scored_stop"]] = ld_scores
    for name, value in attributes.items():
        group.attrs[name] = value
    group.attrs["sha256"] = block_digest(handle, index)


def write_ranges(handle: Any, ranges: npt.NDArray[np.int64], kept: Iterable[int]) -> None:
    """Write /ranges. ranges: (n_blocks, 4), the first four columns of RANGES.  kept: eigenvalues of each block."""
    columns = [*ranges.T, np.fromiter(kept, dtype=np.int64)]
    group = handle.create_group("ranges")
    for name, data in zip(RANGES, columns, strict=True):
        group.create_dataset(name, data=data.astype("<i8"))


def read_scaled(group: Any, name: str, scale: str) -> Factor:
    """A matrix and its row scales as they are on disk; without scales, float16 of version 1 becomes float32."""
    from deepwas.likelihood.factor import Factor

    values = group[name][:]
    if scale in group:
        return Factor(values, group[scale][:])
    return Factor.of(values.astype(np.promote_types(values.dtype, np.float32), copy=False))


def block_digest(handle: Any, index: int) -> str:
    """SHA-256 of a block: its ranges, datasets and LD scores, each in little-endian C order."""
    group = handle[block_name(index)]
    start, stop = int(group.attrs["start"]), int(group.attrs["stop"])
    if "scored_start" in group.attrs:
        low, high = int(group.attrs["scored_start"]), int(group.attrs["scored_stop"])
        digest = hashlib.sha256(f"{start}:{stop}:{low}:{high}".encode())
        names = [n for n in ("factor", "scale", "whitener", "whitener_scale", "eigenvalues") if n in group]
    else:
        low, high = start, stop
        digest = hashlib.sha256(f"{start}:{stop}".encode())
        names = ["factor", "eigenvalues"]
    for data in (*(group[name][:] for name in names), handle["variants"]["LDSCORE"][low:high]):
        digest.update(f"{data.dtype.newbyteorder('<').str}{data.shape}".encode())
        digest.update(np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def variants_digest(variants: pl.DataFrame) -> str:
    """SHA-256 of every column but LDSCORE (that is in the blocks' digests); text is joined by newlines."""
    digest = hashlib.sha256(str(variants.height).encode())
    for name, (_, kind) in COLUMNS.items():
        if name == "LDSCORE":
            continue
        column = variants.get_column(name)
        digest.update(name.encode())
        if kind is None:
            digest.update("\n".join(column.to_list()).encode())
        else:
            numbers = column.cast(pl.Float64).fill_null(np.nan) if kind == "<f8" else column
            digest.update(numbers.to_numpy().astype(kind).tobytes())
    return digest.hexdigest()


def content_checksum(variants: str, blocks: Iterable[str], build: str | None) -> str:
    """The store's checksum, from the digests of the variants and of all blocks in order, and from the genome build.

    build: None for the checksum of a store of before the build was part of it.
    """
    parts = [variants, *blocks, *([] if build is None else [build])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def describe(handle: Any, blocks: Iterable[int]) -> dict[str, Any]:
    """JSON view of a file: attributes, the datasets of /variants and /ranges, and those of the blocks asked for."""
    return {
        "attributes": _attributes(handle),
        "variants": {name: _dataset(item) for name, item in _members(handle, "variants")},
        "ranges": {name: _dataset(item) for name, item in _members(handle, "ranges")},
        "blocks": [
            {
                "name": block_name(index),
                "attributes": _attributes(handle[block_name(index)]),
                "datasets": {name: _dataset(item) for name, item in _members(handle, block_name(index))},
            }
            for index in blocks
            if block_name(index) in handle
        ],
    }


def _members(handle: Any, path: str) -> list[tuple[str, Any]]:
    return list(handle[path].items()) if path in handle else []


def _attributes(node: Any) -> dict[str, Any]:
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in node.attrs.items()}


def _dataset(item: Any) -> dict[str, Any]:
    if not hasattr(item, "dtype"):
        return {"dtype": "group", "shape": []}
    text = item.dtype.kind in "SO"
    return {"dtype": "string" if text else item.dtype.name, "shape": list(item.shape)}
