"""Files: existence checks, checksums, and writing beside and renaming into place."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepwas.errors import InputError


def require_file(path: str | os.PathLike[str], what: str) -> Path:
    """Return `path` as a Path, or raise InputError naming `what` was expected there."""
    found = Path(path)
    if not found.exists():
        raise InputError(f"{found}: no such file ({what} expected). Check the path.")
    if found.is_dir():
        raise InputError(f"{found}: is a folder, {what} expected.")
    if not os.access(found, os.R_OK):
        raise InputError(f"{found}: not readable ({what} expected). Check its permissions.")
    return found


def require_parent(path: str | os.PathLike[str]) -> Path:
    """Return `path` as a Path if its folder exists and can be written; outputs are checked before work starts."""
    target = Path(path)
    parent = target.parent
    if not parent.is_dir():
        raise InputError(f"{target}: the folder {parent} does not exist. Make it first.")
    if not os.access(parent, os.W_OK):
        raise InputError(f"{target}: the folder {parent} cannot be written. Choose another output.")
    if target.is_dir():
        raise InputError(f"{target}: is a folder, an output file was expected.")
    return target


def refuse_overwrite(target: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """InputError if the output `target` is one of the input files, which its writing would destroy.

    An input with @ in its name stands for all files that have something in its place.
    """
    if target.exists() and any(_is_given(target, Path(given)) for given in inputs):
        raise InputError(f"{target}: the output is one of the input files and would overwrite it. Choose another name.")


def _is_given(target: Path, given: Path) -> bool:
    if given.exists():
        return target.samefile(given)
    if "@" not in given.name or not given.parent.is_dir() or not target.parent.samefile(given.parent):
        return False
    return re.fullmatch(".+".join(map(re.escape, given.name.split("@"))), target.name) is not None


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place on success, remove it on failure.

    The temporary name keeps the suffixes of `path`, so writers that look at them (gzip, parquet) behave alike.
    """
    target = Path(path)
    temporary = target.with_name(f".{secrets.token_hex(4)}.partial.{target.name}")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically; gzip (without a timestamp, so equal text gives equal bytes) if it ends in .gz."""
    data = text.encode()
    if str(path).endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON atomically, keys in the order given. NaN and infinity are refused, as JSON has neither."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Read a JSON file, or raise InputError naming the line at fault."""
    found = require_file(path, what)
    try:
        return json.loads(found.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{found}: not valid JSON ({error}); {what} expected.") from error


def reopen_hdf5(path: Path, identity: str, busy: InputError) -> Any:
    """The HDF5 file that an interrupted run left, open for writing, if its attribute `identity` is that of this run.

    Else it is removed, and None returned: it is of other inputs or options, or was cut off in the middle of a write.
    busy: raised if another process is writing it.
    """
    import h5py

    if not path.exists():
        return None
    try:
        handle = h5py.File(path, "r+")
        if handle.attrs.get("identity") == identity:
            return handle
        handle.close()
    except BlockingIOError as error:
        raise busy from error
    except (OSError, RuntimeError):
        pass  # nothing in it can be trusted
    path.unlink()
    return None


_KINDS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"PAR1": "a Parquet file",
    b"\x26\xfc\x8f\x88": "a bigWig file",
    b"\x88\x8f\xfc\x26": "a bigWig file",
    b"\xeb\xf2\x89\x87": "a bigBed file",
    b"\x87\x89\xf2\xeb": "a bigBed file",
    b"\x1f\x8b": "a gzip file",
    b"PK\x03\x04": "a zip file (.npz, .xlsx)",
    b"%PDF": "a PDF file",
    b"l\x1b\x01": "a PLINK .bed file",
}


def kind_of(head: bytes) -> str:
    """What a file is by its first bytes, in words."""
    known = next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), None)
    return known or ("a binary file" if b"\x00" in head else "a text file")


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
