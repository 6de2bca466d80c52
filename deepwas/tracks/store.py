"""Files of windows around variants: their layout, opening them, reading rows.

    /                   attributes: ATTRIBUTES
    /windows            (M, bins, tracks) float16, standardised; or (M, 2, bases) uint8
    /mean, /sd          (tracks,) float64: of the values before they were standardised; tracks only
    /orientation        (M,) int8: 1 if A1 is the alternative allele, -1 if A2 is, 0 if it is not known; sequence only
    /digests            (pieces,) SHA-256 of each `piece_rows` rows and of their counts
    /counts             (pieces, tracks, 3) int64, COUNTS; (pieces, 1, 1) for sequence: windows over a chromosome's end

Rows are the variants of an LD store, whose checksum the file bears. The JSON view of a file, `describe`, is what
`data_specs/windows.schema.json` specifies.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from deepwas.errors import InputError
from deepwas.files import kind_of, require_file
from deepwas.specs import validate_json

if TYPE_CHECKING:
    from deepwas.ld.store import LDStore

Kind = Literal["tracks", "sequence"]

FORMAT = "deepwas-windows"
FORMAT_VERSION = 1
ATTRIBUTES = (
    "format",
    "format_version",
    "kind",
    "deepwas_version",
    "created",
    "genome_build",
    "n_variants",
    "ld_checksum",
    "names",
    "options",
    "provenance",
    "piece_rows",
    "checksum",
)
COUNTS = ("without a value", "beyond the chromosome", "clipped")


class WindowFile:
    """Windows around the variants of an LD store, read row by row; made by `open_windows`.

    Acts like an array: `shape`, `dtype`, and slices of rows, which are read from the file. Reading is safe from several
    threads. A context manager: the file is closed at its end, or by `close`.

    kind: 'tracks', (M, bins, tracks) float16, standardised; or 'sequence', (M, 2, bases) uint8, 0 to 3 for A, C, G, T
        and 4 for anything else, the reference allele and then the alternative in their surroundings.
    names: of the tracks; of a sequence, reference and alternative.
    """

    def __init__(self, path: Path, handle: Any) -> None:
        self.path = path
        self._handle = handle
        self._lock = threading.RLock()
        self._data = handle["windows"]
        self.shape: tuple[int, ...] = tuple(map(int, self._data.shape))
        self.dtype: np.dtype[Any] = self._data.dtype
        self.kind: Kind = handle.attrs["kind"]
        self.genome_build = str(handle.attrs["genome_build"])
        self.ld_checksum = str(handle.attrs["ld_checksum"])
        self.checksum = str(handle.attrs["checksum"])
        self.names: tuple[str, ...] = tuple(json.loads(handle.attrs["names"]))

    def __enter__(self) -> WindowFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"WindowFile({str(self.path)!r}, {self.kind} of shape {self.shape})"

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        """The rows of a slice, in memory."""
        if not isinstance(rows, slice):
            raise TypeError(f"windows[{rows!r}]: rows are read by slices, such as windows[10:20].")
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"windows[{start}:{stop}:{step}]: rows are read in order, with a step of 1.")
        with self._lock:
            self._open()
            return self._data[start : max(start, stop)]

    def close(self) -> None:
        """Close the file; what was read stays usable."""
        with self._lock:
            self._handle.close()

    @cached_property
    def options(self) -> dict[str, Any]:
        """The options of the extraction."""
        return self._json("options")

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """command; inputs, with name, bytes and SHA-256; tally, what was counted."""
        return self._json("provenance")

    @cached_property
    def mean(self) -> npt.NDArray[np.float64]:
        """(tracks,) of the bins' values before they were standardised: a value stored is (x - mean) / sd."""
        return self._read("mean", "tracks")

    @cached_property
    def sd(self) -> npt.NDArray[np.float64]:
        """(tracks,) standard deviations; 1 for a track that does not vary."""
        return self._read("sd", "tracks")

    @cached_property
    def orientation(self) -> npt.NDArray[np.int8]:
        """(M,): 1 where A1 of the LD store is the alternative allele, -1 where A2 is, 0 where it is not known."""
        return self._read("orientation", "sequence")

    def verify(self) -> None:
        """Read the whole file and check it against its checksums. InputError names the first rows at fault."""
        with self._lock:
            handle = self._open()
            size = int(handle.attrs["piece_rows"])
            digests = handle["digests"][:]
            for index, expected in enumerate(digests):
                start = index * size
                stop = min(start + size, len(self))
                found = piece_digest(self._data[start:stop], handle["counts"][index])
                if found != expected.decode():
                    raise InputError(
                        f"{self.path}: rows {start + 1:,} to {stop:,} have changed since they were written. "
                        "Copy the file again, or extract it again."
                    )
            if content_checksum(handle) != self.checksum:
                raise InputError(f"{self.path}: the checksum does not fit. Copy the file again, or extract it again.")

    def require(self, store: LDStore) -> None:
        """InputError unless the rows are the variants of this LD store."""
        if self.ld_checksum == store.checksum and len(self) == store.n_variants:
            return
        raise InputError(
            f"{self.path}: for {len(self):,} variants of another LD store (checksum {self.ld_checksum[:12]}...); "
            f"{store.path} has {store.n_variants:,} (checksum {store.checksum[:12]}...). Extract them for it: "
            f"deepwas {self.kind} --ld {store.path} --out {self.path} --overwrite and the options of before."
        )

    def _open(self) -> Any:
        if not self._handle:
            raise InputError(f"{self.path}: this file has been closed. Open it again with open_windows.")
        return self._handle

    def _json(self, name: str) -> Any:
        with self._lock:
            return json.loads(self._open().attrs[name])

    def _read(self, name: str, kind: Kind) -> npt.NDArray[Any]:
        if self.kind != kind:
            raise InputError(f"{self.path}: a file of {self.kind}; {name} belongs to files of {kind}.")
        with self._lock:
            return self._open()[name][:]


def open_windows(path: str | os.PathLike[str], store: LDStore | None = None, *, kind: Kind | None = None) -> WindowFile:
    """Open a file written by `extract_tracks` or `extract_sequence` (`deepwas tracks`, `deepwas sequence`).

    store: if given, the rows must be its variants.  kind: if given, 'tracks' or 'sequence', what is expected.
    Cheap: layout, attributes and statistics are checked, no window is read; `WindowFile.verify` reads all.
    Raises InputError if the file is of another kind or LD store, damaged, or of a newer deepwas.
    """
    found = require_file(path, f"a file of {kind or 'tracks or sequence'}")
    import h5py

    remedy = f"Give a file made by `deepwas {kind or 'tracks'}`."
    if not h5py.is_hdf5(found):
        with open(found, "rb") as raw:
            what = kind_of(raw.read(4096))
        raise InputError(f"{found}: not an HDF5 file, but {what}. {remedy}")
    try:
        handle = h5py.File(found, "r")
    except OSError as error:
        raise InputError(f"{found}: cannot be read as HDF5 ({error}). Copy or extract the file again.") from error
    try:
        form = handle.attrs.get("format")
        if form != FORMAT:
            raise InputError(f"{found}: HDF5, but no file of windows (its format is {form!r}). {remedy}")
        version = int(handle.attrs.get("format_version", 0))
        if version > FORMAT_VERSION:
            raise InputError(
                f"{found}: format version {version}; this deepwas reads up to {FORMAT_VERSION}. "
                "Update deepwas: pip install --upgrade deepwas"
            )
        validate_json(describe(handle), "windows", str(found))
        _check_shapes(found, handle)
        windows = WindowFile(found, handle)
        if kind is not None and windows.kind != kind:
            raise InputError(f"{found}: holds {windows.kind}, {kind} expected. {remedy}")
        if store is not None:
            windows.require(store)
    except BaseException:
        handle.close()
        raise
    return windows


def _check_shapes(path: Path, handle: Any) -> None:
    """What the specification cannot say: that the sizes fit together, and that the statistics are usable."""
    M, tracks = int(handle.attrs["n_variants"]), len(json.loads(handle.attrs["names"]))
    shape = handle["windows"].shape
    pieces = -(-M // int(handle.attrs["piece_rows"]))
    fault = None
    if shape[0] != M or handle["digests"].shape != (pieces,) or handle["counts"].shape[0] != pieces:
        fault = f"/windows has {shape[0]:,} rows, /digests {handle['digests'].shape[0]}; {M:,} variants are announced"
    elif handle.attrs["kind"] == "sequence":
        if shape[1] != 2 or handle["orientation"].shape != (M,):
            fault = f"/windows has shape {shape}, /orientation {handle['orientation'].shape}"
    elif shape[2] != tracks or handle["mean"].shape != (tracks,) or handle["sd"].shape != (tracks,):
        fault = f"/windows has shape {shape}, /mean {handle['mean'].shape}; {tracks} tracks are named"
    elif not (
        np.isfinite(handle["mean"][:]).all() and np.isfinite(handle["sd"][:]).all() and (handle["sd"][:] > 0).all()
    ):
        fault = "a mean is not finite, or a standard deviation not positive"
    if fault:
        raise InputError(f"{path}: {fault}: the file is damaged. Extract it again.")


def piece_digest(values: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> str:
    """SHA-256 of a piece's windows and counts, in little-endian C order."""
    digest = hashlib.sha256(f"{values.dtype.str}{values.shape}".encode())
    digest.update(np.ascontiguousarray(values).view(np.uint8).data)
    digest.update(np.ascontiguousarray(counts, dtype="<i8").tobytes())
    return digest.hexdigest()


def content_checksum(handle: Any) -> str:
    """The file's checksum: SHA-256 over the names, the statistics or orientation, and the digests of all pieces."""
    digest = hashlib.sha256(handle.attrs["names"].encode())
    for name in ("mean", "sd", "orientation", "digests"):
        if name in handle:
            digest.update(name.encode() + handle[name][:].tobytes())
    return digest.hexdigest()


def describe(handle: Any) -> dict[str, Any]:
    """JSON view of a file: its attributes, and the type and shape of its datasets."""
    attributes = {n: v.item() if isinstance(v, np.generic) else v for n, v in handle.attrs.items()}
    datasets = {
        name: {"dtype": "string" if item.dtype.kind in "SO" else item.dtype.name, "shape": list(item.shape)}
        for name, item in handle.items()
        if hasattr(item, "dtype")
    }
    return {"attributes": attributes, "datasets": datasets}
