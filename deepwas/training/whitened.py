"""A cache of one trait's whitened blocks in an HDF5 file.

    /                       attributes: format, format_version, key, summary (a checksum)
    /summary/NAME           small arrays, read when the file is opened
    /factors/00000/values, scale    a factor of one block; attribute sha256
    /factors/00000/loadings         where sample sizes differ; attribute loadings_sha256

It is beside a run for its later passes: it can always be made again, so whatever does not fit is, with a note.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import DeepwasError
from deepwas.files import atomic_path
from deepwas.likelihood.factor import Factor

__all__ = ["CacheDamage", "CacheWriter", "FactorCache", "digest", "remove_unfinished", "scratch_folder"]

_FORMAT, _FORMAT_VERSION = "deepwas-whitened", 1
_SCRATCH, _LOCK = "deepwas-whitened-", "in_use"


class CacheDamage(DeepwasError):
    """A cached factor is not what was written."""


def digest(*parts: NDArray[Any] | str) -> str:
    """SHA-256 of arrays (type, shape and content) and texts, in order."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(f"{len(part)}:{part}".encode())
        else:
            found.update(f"{part.dtype.str}{part.shape}".encode())
            found.update(np.ascontiguousarray(part).data)
    return found.hexdigest()


def remove_unfinished(path: Path) -> None:
    """Remove what a process that was killed while it wrote the cache `path` has left beside it.

    Only the owner of the folder may call it: a copy that is being written would go too.
    """
    for unfinished in path.parent.glob(f".*.partial.{glob.escape(path.name)}"):
        unfinished.unlink(missing_ok=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder in the system's temporary one (TMPDIR) for a cache that ends with this process.

    A process that is killed cannot remove its own. So each holds a lock on a file in its folder, which ends with it,
    and the next one to start removes the folders whose lock nobody holds. Another user's are not touched.
    """
    with TemporaryDirectory(prefix=_SCRATCH) as name:
        folder = Path(name)
        for other in folder.parent.glob(f"{_SCRATCH}*"):
            with suppress(OSError), open(other / _LOCK, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if other.stat().st_uid == os.getuid():
                    shutil.rmtree(other)
        with open(folder / ".unlocked", "wb") as own:
            fcntl.flock(own, fcntl.LOCK_EX)
            # Named so once it is locked: a lock that is only about to be taken would look like nobody's.
            os.replace(folder / ".unlocked", folder / _LOCK)
            yield folder


class CacheWriter:
    """A cache that is being written; see `FactorCache.write`."""

    def __init__(self, handle: Any):
        self._handle = handle

    def add(self, number: int, factor: Factor, loadings: NDArray[Any] | None = None) -> None:
        """Write the factor of one block, and its loadings where these are not in it."""
        group = self._handle.create_group(f"factors/{number:05d}")
        values, scale = np.asarray(factor.values), np.asarray(factor.scale)
        group.create_dataset("values", data=values)
        group.create_dataset("scale", data=scale)
        group.attrs["sha256"] = digest(values, scale)
        if loadings is not None:
            group.create_dataset("loadings", data=loadings)
            group.attrs["loadings_sha256"] = digest(loadings)

    def finish(self, summary: Mapping[str, NDArray[Any]], key: str) -> None:
        """Write the small arrays and, last, what says that the file is complete."""
        for name, array in summary.items():
            self._handle[f"summary/{name}"] = array
        attributes = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "summary": _summary_digest(summary),
            "key": key,
        }
        for name, value in attributes.items():
            self._handle.attrs[name] = value


class FactorCache:
    """A complete cache, opened for reading; safe from several threads.

    summary: the small arrays by name.
    """

    def __init__(self, path: Path, handle: Any, summary: dict[str, NDArray[Any]]):
        self.path = path
        self.summary = summary
        self._handle = handle
        self._lock = threading.Lock()
        self._checked: set[tuple[int, str]] = set()

    @classmethod
    @contextmanager
    def write(cls, path: Path) -> Iterator[CacheWriter]:
        """Write a cache beside its name, and rename it when `finish` has been called and all went well."""
        import h5py

        with atomic_path(path) as temporary, h5py.File(temporary, "w") as handle:
            yield CacheWriter(handle)

    @classmethod
    def open(cls, path: Path, key: str) -> FactorCache | str:
        """The cache at `path` if it is sound and has this key, or why it is of no use."""
        import h5py

        try:
            handle = h5py.File(path, "r")
        except OSError:
            return "is damaged"
        try:
            attributes = dict(handle.attrs)
            if attributes.get("format") != _FORMAT or attributes.get("format_version") != _FORMAT_VERSION:
                reason = "is of another kind or version"
            elif attributes["key"] != key:
                reason = "belongs to other inputs or options"
            else:
                summary = {name: item[()] for name, item in handle["summary"].items()}
                if _summary_digest(summary) == attributes["summary"]:
                    return cls(path, handle, summary)
                reason = "is damaged"
        except (OSError, RuntimeError, KeyError, AttributeError):
            reason = "is damaged"
        handle.close()
        return reason

    def read(self, number: int) -> Factor:
        """The factor of one block; its checksum is verified the first time. CacheDamage if it does not fit."""
        values, scale = self._read(number, "factor", ("values", "scale"), "sha256")
        return Factor(values, scale)

    def read_loadings(self, number: int) -> NDArray[Any]:
        """The loadings of one block, likewise; CacheDamage also if there are none."""
        return self._read(number, "loadings", ("loadings",), "loadings_sha256")[0]

    def _read(self, number: int, what: str, names: tuple[str, ...], checksum: str) -> list[NDArray[Any]]:
        with self._lock:
            if not self._handle:
                raise DeepwasError(f"{self.path}: this cache has been closed.")
            try:
                group = self._handle[f"factors/{number:05d}"]
                found, stated = [group[name][:] for name in names], group.attrs[checksum]
            except (OSError, RuntimeError, KeyError) as error:
                raise CacheDamage(f"{self.path}: the {what} of block {number} cannot be read ({error}).") from error
        if (number, what) not in self._checked:
            if digest(*found) != stated:
                raise CacheDamage(f"{self.path}: the {what} of block {number} does not fit its checksum.")
            self._checked.add((number, what))
        return found

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._handle.close()


def _summary_digest(summary: Mapping[str, NDArray[Any]]) -> str:
    return digest(*(part for name in sorted(summary) for part in (name, summary[name])))
