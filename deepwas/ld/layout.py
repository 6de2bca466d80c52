"""The HDF5 layout of an LD store: one place that names its groups, datasets and attributes, and digests them.

    /                       attributes: ROOT_ATTRIBUTES
    /variants/COLUMN        (m,)  CHR SNP CM BP A1 A2 FREQ LDSCORE BLOCK, in genome order
    /blocks/00000/factor    (k, m_b) float, G = diag(eigenvalues)^(1/2) U^T
    /blocks/00000/eigenvalues  (k,) float64, descending
                            attributes: BLOCK_ATTRIBUTES

All variants of a block are scored, so the whitener is diag(1 / eigenvalues) G and is not stored (whitener =
'implied'). The JSON view of a file, `describe`, is what `data_specs/ld_store.schema.json` specifies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

FORMAT = "deepwas-ld"
FORMAT_VERSION = 1

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
BLOCK_ATTRIBUTES = (
    "start",
    "stop",
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
    factor: npt.NDArray[np.floating],
    eigenvalues: npt.NDArray[np.float64],
    ld_scores: npt.NDArray[np.float64],
    attributes: dict[str, Any],
) -> None:
    """Write one block and its slice of LDSCORE. Its digest comes last: a block without is unfinished."""
    group = handle.create_group(block_name(index))
    group.create_dataset("factor", data=factor)
    group.create_dataset("eigenvalues", data=eigenvalues.astype("<f8"))
    handle["variants"]["LDSCORE"][attributes["start"] : attributes["stop"]] = ld_scores
    for name, value in attributes.items():
        group.attrs[name] = value
    group.attrs["sha256"] = block_digest(handle, index)


def block_digest(handle: Any, index: int) -> str:
    """SHA-256 of a block: its range, factor, eigenvalues and LD scores, each in little-endian C order."""
    group = handle[block_name(index)]
    start, stop = int(group.attrs["start"]), int(group.attrs["stop"])
    digest = hashlib.sha256(f"{start}:{stop}".encode())
    for data in (group["factor"][:], group["eigenvalues"][:], handle["variants"]["LDSCORE"][start:stop]):
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


def content_checksum(variants: str, blocks: Iterable[str]) -> str:
    """The store's checksum, from the digests of the variants and of all blocks in order."""
    return hashlib.sha256("\n".join([variants, *blocks]).encode()).hexdigest()


def describe(handle: Any, blocks: Iterable[int]) -> dict[str, Any]:
    """JSON view of a file: attributes, the datasets of /variants, and those of the blocks asked for."""
    return {
        "attributes": _attributes(handle),
        "variants": {name: _dataset(item) for name, item in _members(handle, "variants")},
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
