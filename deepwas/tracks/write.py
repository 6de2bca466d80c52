"""Writing a file of windows piece by piece, so that an interrupted extraction goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepwas import __version__
from deepwas.errors import InputError
from deepwas.files import reopen_hdf5, sha256
from deepwas.tracks.options import Compression
from deepwas.tracks.store import FORMAT, FORMAT_VERSION, content_checksum, piece_digest

__all__ = ["Advance", "describe_inputs", "fill", "partial_file", "piece_rows", "write_end"]

Advance = Callable[[int, int], None]

PIECE_BYTES = 1 << 26  # of windows in memory at once
CHUNK_BYTES = 1 << 18  # of windows compressed together: about an LD block of ten tracks
PIECE_ROWS = 1 << 16


def describe_inputs(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, bytes and SHA-256 of each input file."""
    return [{"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths]


def piece_rows(row_bytes: int) -> int:
    """Rows worked on and written at once, a multiple of the rows of a chunk."""
    chunk = _chunk_rows(row_bytes)
    return max(1, min(PIECE_BYTES // row_bytes, PIECE_ROWS) // chunk) * chunk


def _chunk_rows(row_bytes: int) -> int:
    return max(1, CHUNK_BYTES // row_bytes)


@contextmanager
def partial_file(target: Path, identity: Mapping[str, Any], bytes_needed: int) -> Iterator[Any]:
    """An HDF5 file to write, `.NAME.partial` beside the target and renamed to it when all is written.

    identity: what the content follows from. A partial file of the same identity is taken up, any other is replaced.
    bytes_needed: of the windows; InputError before anything is written if the disk has less.
    Wrong input (InputError) removes the file; after any other interruption it stays, to be taken up.
    """
    partial = target.with_name(f".{target.name}.partial")
    text = json.dumps([__version__, FORMAT_VERSION, identity], sort_keys=True)
    handle = _open_partial(partial, hashlib.sha256(text.encode()).hexdigest(), bytes_needed)
    try:
        yield handle
        del handle.attrs["identity"]
        handle.close()
    except BaseException as error:
        handle.close()
        if isinstance(error, InputError):
            partial.unlink(missing_ok=True)
        raise
    with open(partial, "rb") as written:
        os.fsync(written.fileno())
    os.replace(partial, target)


def _open_partial(path: Path, identity: str, bytes_needed: int) -> Any:
    import h5py

    busy = InputError(f"{path}: another process is writing this file. Wait for it, or choose another output.")
    if (found := reopen_hdf5(path, identity, busy)) is not None:
        return found
    free = shutil.disk_usage(path.parent).free
    if bytes_needed > free:
        raise InputError(
            f"{path.parent}: the windows take {bytes_needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free there. "
            "Choose another disk, or fewer bins, bases or tracks."
        )
    handle = h5py.File(path, "w")
    handle.attrs["identity"] = identity
    handle.flush()
    return handle


def fill(
    handle: Any,
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    counts_shape: tuple[int, int],
    compression: Compression,
    make: Callable[[slice], tuple[npt.NDArray[Any], npt.NDArray[np.int64]]],
    progress: Advance | None,
) -> npt.NDArray[np.int64]:
    """Write /windows, /digests and /counts, leaving what an earlier run has finished; returns the counts, summed.

    make: rows -> (their windows, their counts of counts_shape).  progress(done, total): in variants.
    """
    M, row_bytes = shape[0], int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
    size = piece_rows(row_bytes)
    pieces = -(-M // size)
    if "windows" not in handle:
        chunks = None if compression == "none" else (min(M, _chunk_rows(row_bytes)), *shape[1:])
        handle.create_dataset(
            "windows", shape, dtype, chunks=chunks, compression=None if compression == "none" else compression
        )
        handle.create_dataset("digests", (pieces,), "S64")
        handle.create_dataset("counts", (pieces, *counts_shape), "<i8")
        handle.attrs["piece_rows"] = size
    windows, digests, counts = handle["windows"], handle["digests"], handle["counts"]
    for index in range(pieces):
        rows = slice(index * size, min((index + 1) * size, M))
        if not _is_finished(windows, rows, digests[index], counts[index]):
            values, found = make(rows)
            windows[rows] = values
            counts[index] = found
            digests[index] = piece_digest(values, found).encode()
            handle.flush()
        if progress is not None:
            progress(rows.stop, M)
    return counts[:].sum(axis=0)


def _is_finished(windows: Any, rows: slice, digest: bytes, counts: npt.NDArray[np.int64]) -> bool:
    """Whether a piece is there with the checksum it was written with."""
    if not digest:
        return False
    try:
        return piece_digest(windows[rows], counts) == digest.decode()
    except (OSError, RuntimeError):  # a chunk that was cut off
        return False


def write_end(handle: Any, attributes: Mapping[str, Any]) -> None:
    """Write the root attributes that make the file whole, its checksum last. Mappings and lists become JSON text."""
    fixed = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "deepwas_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "n_variants": handle["windows"].shape[0],
    }
    for name, value in (fixed | dict(attributes)).items():
        handle.attrs[name] = json.dumps(value) if isinstance(value, dict | list) else value
    handle.attrs["checksum"] = content_checksum(handle)
