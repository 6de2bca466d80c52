"""Locks between processes, on one host or on several that share a file system; the system frees those of the dead."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deepwas.errors import DataWarning, InputError

__all__ = ["exclusive"]


@contextmanager
def exclusive(path: Path, *, busy: Callable[[str], str] | None = None) -> Iterator[None]:
    """Hold the lock file `path`, which is made if need be and stays.

    busy: gives the message of the InputError that is raised if another process holds the lock, from the host and number
        of that process; None waits for the lock instead.
    A file system without locks is warned of (DataWarning), and the block runs without.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            handle.seek(0)
            assert busy is not None
            raise InputError(busy(handle.read().strip() or "another process")) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            text = f"{path}: this file system has no locks ({error}). See that no two processes do the same work here."
            warnings.warn(text, DataWarning, stacklevel=3)
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        yield
