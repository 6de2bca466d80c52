"""What a posterior has computed so far, in memory, and on disk so that an interrupted one goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepwas.errors import InputError
from deepwas.files import reopen_hdf5

__all__ = ["COLUMNS", "PARTIAL", "Computed", "require_folder"]

PARTIAL = "posterior.partial.h5"
COLUMNS = ("prior", "mean", "sd", "standard_error", "score", "expected_score", "exact", "residual")
_VARIANTS = ("mean", "variance", "error")
_SECONDS = 20.0


def require_folder(folder: Path, resume: bool) -> bool:
    """Whether a folder to write is new or empty; InputError if it cannot be written, or is neither and not resumed."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; the results need a folder. Give another name.")
    if not folder.absolute().parent.is_dir():
        raise InputError(f"{folder}: the folder {folder.absolute().parent} does not exist. Make it first.")
    if not folder.exists() or not any(folder.iterdir()):
        return True
    if not resume:
        raise InputError(f"{folder}: not empty. To go on with an interrupted one, give --resume; else another folder.")
    return False


class Computed:
    """Posterior by row of the LD store, and by block.

    mean, variance, error: (M,), NaN where no block has scored.  blocks: (blocks, COLUMNS).  done: (blocks,) bool.
    path: file that `flush` writes, made if needed; None keeps all in memory.  identity: of inputs and options: what
    another posterior has left there is not used.
    """

    def __init__(self, n_variants: int, n_blocks: int, path: Path | None, identity: str) -> None:
        self.mean, self.variance, self.error = (np.full(n_variants, np.nan) for _ in _VARIANTS)
        self.blocks = np.full((n_blocks, len(COLUMNS)), np.nan)
        self.done = np.zeros(n_blocks, dtype=bool)
        self._waiting: list[tuple[int, slice]] = []
        self._file: Any = None
        self._last = time.monotonic()
        if path is None:
            return
        import h5py

        busy = InputError(f"{path}: another process is writing this posterior. Wait for it, or give another folder.")
        self._file = reopen_hdf5(path, identity, busy)
        if self._file is None:
            self._file = h5py.File(path, "w")
            for name in (*_VARIANTS, "blocks", "done"):
                self._file[name] = getattr(self, name)
            self._file.attrs["identity"] = identity
            self._file.flush()
        else:
            for name in (*_VARIANTS, "blocks", "done"):
                setattr(self, name, self._file[name][:])

    def put(self, i: int, rows: slice, values: Sequence[Any], block: Sequence[float]) -> None:
        """Block i's mean, variance and error at `rows`, and its own figures; to disk every 20 seconds."""
        for name, found in zip(_VARIANTS, values, strict=True):
            getattr(self, name)[rows] = found
        self.blocks[i] = block
        self.done[i] = True
        self._waiting.append((i, rows))
        if time.monotonic() - self._last > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is new; blocks count as done only after their values are written."""
        if self._file is None:
            return
        for i, rows in self._waiting:
            for name in _VARIANTS:
                self._file[name][rows] = getattr(self, name)[rows]
            self._file["blocks"][i] = self.blocks[i]
        self._file.flush()
        for i, _ in self._waiting:
            self._file["done"][i] = True
        self._file.flush()
        self._waiting.clear()
        self._last = time.monotonic()

    def close(self) -> None:
        """Write what is new and close the file."""
        if self._file is not None:
            self.flush()
            self._file.close()
            self._file = None
