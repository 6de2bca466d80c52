"""LD: genotypes to whitened blocks to an HDF5 store.

Names are imported on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "LDBlock": "deepwas.ld.block",
    "LDOptions": "deepwas.ld.options",
    "LDStore": "deepwas.ld.store",
    "build_ld": "deepwas.ld.build",
    "eigenvalue_floor": "deepwas.ld.options",
    "open_ld": "deepwas.ld.store",
    "write_ld": "deepwas.ld.write",
}

__all__ = ["LDBlock", "LDOptions", "LDStore", "build_ld", "eigenvalue_floor", "open_ld", "write_ld"]

if TYPE_CHECKING:
    from deepwas.ld.block import LDBlock
    from deepwas.ld.build import build_ld
    from deepwas.ld.options import LDOptions, eigenvalue_floor
    from deepwas.ld.store import LDStore, open_ld
    from deepwas.ld.write import write_ld


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'deepwas.ld' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
