"""Opening an LD store and reading its blocks."""

from __future__ import annotations

import json
import os
import threading
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from deepwas.errors import InputError
from deepwas.files import require_file
from deepwas.ld import layout
from deepwas.ld.block import LDBlock
from deepwas.specs import validate_json


class LDStore:
    """LD of a panel as whitened blocks in one HDF5 file, read block by block; made by `open_ld`.

    Block b covers the rows block_slice(b) of `variants`; the blocks follow each other without gaps, in
    genome order. Reading is safe from several threads. A context manager: the file is closed at its end, or
    by `close`.
    """

    def __init__(self, path: Path, handle: Any) -> None:
        self.path = path
        self._handle = handle
        self._lock = threading.RLock()
        attributes = handle.attrs
        self.n_samples = int(attributes["n_samples"])
        self.genome_build = str(attributes["genome_build"])
        self.checksum = str(attributes["checksum"])
        block = handle["variants"]["BLOCK"][:]
        self.boundaries: npt.NDArray[np.int64] = np.append(
            np.flatnonzero(np.diff(block, prepend=-1)), len(block)
        ).astype(np.int64)
        n_blocks = int(attributes["n_blocks"])
        if len(block) != int(attributes["n_variants"]) or not np.array_equal(np.unique(block), np.arange(n_blocks)):
            raise InputError(
                f"{path}: the column BLOCK does not number the {n_blocks:,} blocks. Build the store again."
            )
        if len(self.boundaries) != n_blocks + 1:
            raise InputError(f"{path}: the blocks are not contiguous in the variant table. Build the store again.")

    def __enter__(self) -> LDStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LDStore({str(self.path)!r}, {self.n_variants:,} variants in {self.n_blocks:,} blocks)"

    def close(self) -> None:
        """Close the file; what was read stays usable."""
        with self._lock:
            self._handle.close()

    @property
    def n_variants(self) -> int:
        """Number of variants."""
        return int(self.boundaries[-1])

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.boundaries) - 1

    @cached_property
    def variants(self) -> pl.DataFrame:
        """CHR SNP CM BP A1 A2 FREQ LDSCORE BLOCK, one row per variant in genome order; FREQ is that of A1."""
        with self._lock:
            return layout.read_variants(self._open())

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the file; `options` and `provenance` as dictionaries."""
        with self._lock:
            raw = layout.describe(self._open(), ())["attributes"]
        return raw | {name: json.loads(raw[name]) for name in ("options", "provenance")}

    def block_slice(self, index: int) -> slice:
        """Rows of `variants` that belong to a block."""
        self._check_index(index)
        return slice(int(self.boundaries[index]), int(self.boundaries[index + 1]))

    def block(self, index: int) -> LDBlock:
        """Read one block: every variant scored. A factor stored in float16 is returned in float32."""
        self._check_index(index)
        with self._lock:
            group = self._group(index)
            factor, eigenvalues = group["factor"][:], group["eigenvalues"][:]
        rows = self.block_slice(index)
        if factor.shape != (len(eigenvalues), rows.stop - rows.start):
            raise InputError(
                f"{self.path}: block {index}: the factor has shape {factor.shape}; "
                f"{len(eigenvalues)} eigenvalues and {rows.stop - rows.start} variants are stored. "
                "Build the store again."
            )
        if not (np.isfinite(factor).all() and np.isfinite(eigenvalues).all()):
            raise InputError(
                f"{self.path}: block {index} holds NaN or infinite LD: the file is damaged. Build it again."
            )
        return LDBlock.from_factor(factor.astype(np.promote_types(factor.dtype, np.float32)), eigenvalues)

    def eigenvalues(self, index: int) -> npt.NDArray[np.float64]:
        """Kept eigenvalues of one block, descending, without reading its factor."""
        self._check_index(index)
        with self._lock:
            return self._group(index)["eigenvalues"][:]

    @cached_property
    def block_table(self) -> pl.DataFrame:
        """One row per block: BLOCK CHR START STOP VARIANTS KEPT FLOOR VARIANCE_KEPT SECONDS.

        START and STOP are the positions (BP) of the first and last variant, KEPT the number of eigenvalues.
        """
        rows = []
        with self._lock:
            for index in range(self.n_blocks):
                group = self._group(index)
                kept, size = group["factor"].shape
                numbers = (float(group.attrs[name]) for name in ("eigenvalue_floor", "variance_kept", "seconds"))
                rows.append((index, size, kept, *numbers))
        schema = ["BLOCK", "VARIANTS", "KEPT", "FLOOR", "VARIANCE_KEPT", "SECONDS"]
        table = pl.DataFrame(rows, schema=schema, orient="row")
        first = self.variants[self.boundaries[:-1]].select("CHR", pl.col("BP").alias("START"))
        last = self.variants[self.boundaries[1:] - 1].select(pl.col("BP").alias("STOP"))
        return pl.concat([table, first, last], how="horizontal").select(
            "BLOCK", "CHR", "START", "STOP", "VARIANTS", "KEPT", "FLOOR", "VARIANCE_KEPT", "SECONDS"
        )

    def verify(self) -> None:
        """Read the whole file and check layout and checksums. InputError names the first mismatch."""
        with self._lock:
            handle = self._open()
            validate_json(layout.describe(handle, range(self.n_blocks)), "ld_store", str(self.path))
            digests = []
            for index in range(self.n_blocks):
                digest = layout.block_digest(handle, index)
                group = self._group(index)
                rows = self.block_slice(index)
                if (int(group.attrs["start"]), int(group.attrs["stop"])) != (rows.start, rows.stop):
                    raise InputError(f"{self.path}: block {index} does not cover the rows that name it in BLOCK.")
                if digest != group.attrs["sha256"]:
                    raise InputError(
                        f"{self.path}: block {index} has changed since it was written: its checksum "
                        "does not fit. Copy the file again, or build it again."
                    )
                digests.append(digest)
            found = layout.content_checksum(layout.variants_digest(layout.read_variants(handle)), digests)
        if found != self.checksum:
            raise InputError(
                f"{self.path}: the variant table has changed since it was written (checksum "
                f"{found[:12]}..., stored {self.checksum[:12]}...). Copy the file again, or build it again."
            )

    def _open(self) -> Any:
        if not self._handle:
            raise InputError(f"{self.path}: this LD store has been closed. Open it again with open_ld.")
        return self._handle

    def _group(self, index: int) -> Any:
        handle, name = self._open(), layout.block_name(index)
        if name not in handle:
            raise InputError(f"{self.path}: block {index} of {self.n_blocks:,} is missing. Build the store again.")
        return handle[name]

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.n_blocks:
            raise IndexError(f"block {index} of an LD store with blocks 0 to {self.n_blocks - 1}")


def open_ld(path: str | os.PathLike[str]) -> LDStore:
    """Open an LD store written by `build_ld` (or `deepwas ld build`).

    Cheap: the attributes, the layout and the first block's are checked, and no factor is read; `verify`
    checks all. InputError if the file is not HDF5, is HDF5 of another kind, is damaged, or comes from a
    newer deepwas.
    """
    found = require_file(path, "an LD store")
    import h5py

    if not h5py.is_hdf5(found):
        with open(found, "rb") as raw:
            head = raw.read(16)
        raise InputError(
            f"{found}: not an HDF5 file (it starts with {head!r}). Give a file made by `deepwas ld build`."
        )
    try:
        handle = h5py.File(found, "r")
    except OSError as error:
        raise InputError(f"{found}: cannot be read as HDF5 ({error}). Copy or build the file again.") from error
    try:
        _check_kind(found, handle)
        validate_json(layout.describe(handle, (0,)), "ld_store", str(found))
        return LDStore(found, handle)
    except BaseException:
        handle.close()
        raise


def _check_kind(path: Path, handle: Any) -> None:
    kind = handle.attrs.get("format")
    if kind != layout.FORMAT:
        what = f"its format is {kind!r}" if kind is not None else f"it holds {', '.join(list(handle)[:6]) or 'nothing'}"
        raise InputError(f"{path}: HDF5, but not an LD store: {what}. Give a file made by `deepwas ld build`.")
    version = int(handle.attrs.get("format_version", 0))
    if version > layout.FORMAT_VERSION:
        raise InputError(
            f"{path}: LD store of format version {version}; this deepwas reads up to "
            f"{layout.FORMAT_VERSION}. Update deepwas: pip install --upgrade deepwas"
        )
