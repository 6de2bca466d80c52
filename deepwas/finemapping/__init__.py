"""Fine-mapping: which variants have effects of their own, under a learned prior.

All but the options is imported on first use, since it needs JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from deepwas.finemapping.options import FineMapOptions

if TYPE_CHECKING:
    from deepwas.finemapping.sets import CredibleSet
    from deepwas.finemapping.trait import FineMapping, GenomeFineMapping, finemap, finemap_blocks

__all__ = ["CredibleSet", "FineMapOptions", "FineMapping", "GenomeFineMapping", "finemap", "finemap_blocks"]

_HOME = {
    "CredibleSet": "sets",
    "FineMapping": "trait",
    "GenomeFineMapping": "trait",
    "finemap": "trait",
    "finemap_blocks": "trait",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
