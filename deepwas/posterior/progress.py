"""What a posterior has computed so far, in memory, and on disk so that an interrupted one goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.files import read_json, reopen_hdf5

__all__ = ["COLUMNS", "FINEMAP_PARTIAL", "PARTIAL", "Computed", "blocks_kept", "claim_folder", "require_folder"]

PARTIAL, FINEMAP_PARTIAL = "posterior.partial.h5", "finemap.partial.h5"
COLUMNS = ("prior", "mean", "sd", "standard_error", "score", "expected_score", "exact", "residual")
_VARIANTS = ("mean", "variance", "error")
_SECONDS = 20.0
_OWN = ("identity", "status", "options")  # entries of a record that are no input


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


def claim_folder(
    folder: Path, record: str, what: str, identity: str, resume: bool, given: dict[str, Any] | None = None
) -> Path:
    """The folder to write, as `require_folder`; one that is resumed must hold an unfinished record of that identity.

    record: name of the record's file.  what: whose record it is, for messages.  given: the record of what is asked for
    now, for messages.
    """
    if require_folder(folder, resume):
        return folder
    known = read_json(folder / record, f"the record of a {what}")
    if known.get("status") == "complete":
        raise InputError(f"{folder}: complete already, there is nothing to resume. Give another folder.")
    if known.get("identity") != identity:
        told = "" if given is None else _differences(known, given)
        raise InputError(f"{folder}: cannot resume: of other inputs, options or version{told}. Give another folder.")
    return folder


def _differences(known: dict[str, Any], given: dict[str, Any]) -> str:
    """What of two records differs, said: their options first, then other entries; z-scores and priors have no entry."""
    one, other = (x.get("options", {}) for x in (known, given))
    out = [f"{name} was {one.get(name)}, is {value}" for name, value in other.items() if one.get(name) != value]
    out += [name for name, value in given.items() if name not in _OWN and known.get(name) != value]
    return f" ({'; '.join(out)})" if out else " (the numbers in the inputs)"


def blocks_kept(path: Path) -> tuple[int, int, bool] | None:
    """Blocks that `Computed` has kept in a file, all of them, and whether it knows what holds for all; None where there
    is no file that can be read."""
    import h5py

    if not path.is_file():
        return None
    try:
        with h5py.File(path, "r") as handle:
            done, known = handle["done"][:], bool(len(handle["known"].attrs))
    except (OSError, KeyError):
        return None  # cut off while it was made, or another process writes it: `Computed` says so
    return int(done.sum()), len(done), known


class Computed:
    """What is known so far by row of the LD store, and by block.

    values: (M,) each, NaN where no block has scored.  blocks: (blocks, columns).  notes: (blocks,), text.
    done: (blocks,) bool.  known: numbers that hold for all blocks, see `know`.
    Larger things are kept by name, see `keep`.
    path: file that `flush` writes, made if needed; None keeps all in memory.  identity: of inputs and options: what
    others have left there is not used.
    """

    def __init__(
        self,
        n_variants: int,
        n_blocks: int,
        path: Path | None,
        identity: str,
        *,
        names: Sequence[str] = _VARIANTS,
        columns: Sequence[str] = COLUMNS,
    ) -> None:
        self.values = {name: np.full(n_variants, np.nan) for name in names}
        self.blocks = np.full((n_blocks, len(columns)), np.nan)
        self.notes = [""] * n_blocks
        self.done = np.zeros(n_blocks, dtype=bool)
        self.known: dict[str, float] = {}
        self._kept: dict[str, tuple[str, dict[str, NDArray[Any]]]] = {}
        self._waiting: list[tuple[int, slice]] = []
        self._file: Any = None
        self._last = time.monotonic()
        if path is None:
            return
        import h5py

        busy = InputError(f"{path}: another process is writing to it. Wait for it, or give another folder.")
        self._file = reopen_hdf5(path, identity, busy)
        if self._file is None:
            self._file = h5py.File(path, "w")
            for name in names:
                self._file[f"values/{name}"] = self.values[name]
            self._file["blocks"], self._file["done"] = self.blocks, self.done
            self._file.create_dataset("notes", (n_blocks,), dtype=h5py.string_dtype())
            self._file.create_group("known")
            self._file.attrs["identity"] = identity
            self._file.flush()
        else:
            self.values = {name: self._file[f"values/{name}"][:] for name in names}
            self.blocks, self.done = self._file["blocks"][:], self._file["done"][:]
            self.notes = list(self._file["notes"].asstr()[:])
            self.known = {name: float(value) for name, value in self._file["known"].attrs.items()}
            for name, group in self._file.get("kept", {}).items():
                if not name.endswith(".part"):
                    arrays = {key: array[:] for key, array in group.get("arrays", {}).items()}
                    self._kept[name] = (group["text"].asstr()[()], arrays)

    def know(self, **numbers: float) -> None:
        """Keep numbers, on disk at once."""
        self.known |= numbers
        if self._file is not None:
            for name, value in numbers.items():
                self._file["known"].attrs[name] = value
            self._file.flush()

    def keep(self, name: str, text: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep a text and arrays under a name, on disk at once and whole; `kept` has them when the work goes on."""
        self._kept[name] = (text, dict(arrays))
        if self._file is not None:
            group = self._file.require_group("kept")
            for old in (name, f"{name}.part"):
                group.pop(old, None)
            part = group.create_group(f"{name}.part")
            part["text"] = text
            for key, array in arrays.items():
                part[f"arrays/{key}"] = array
            self._file.flush()
            group.move(f"{name}.part", name)
            self._file.flush()

    def kept(self, name: str) -> tuple[str, dict[str, NDArray[Any]]] | None:
        """What was kept under the name, if anything was."""
        return self._kept.get(name)

    def put(self, i: int, rows: slice, values: Sequence[Any], block: Sequence[float], note: str = "") -> None:
        """Block i's values at `rows`, and its own figures and note; to disk every 20 seconds."""
        for name, found in zip(self.values, values, strict=True):
            self.values[name][rows] = found
        self.blocks[i], self.notes[i] = block, note
        self.done[i] = True
        self._waiting.append((i, rows))
        if time.monotonic() - self._last > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is new; blocks count as done only after their values are written."""
        if self._file is None:
            return
        for i, rows in self._waiting:
            for name, values in self.values.items():
                self._file[f"values/{name}"][rows] = values[rows]
            self._file["blocks"][i], self._file["notes"][i] = self.blocks[i], self.notes[i]
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
