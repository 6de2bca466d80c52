"""The LD factor as the engine reads it: full, half or 8-bit numbers, with one scale per row.

G is read once or twice per solver step, and the solver is bound by that on most machines, so smaller numbers are faster
and let more of the genome fit. Products are always accumulated in float32 (float64 for a float64 factor).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError

__all__ = ["Factor", "FactorDtype", "encode_factor"]

FactorDtype = Literal["float64", "float32", "float16", "int8"]


class Factor(NamedTuple):
    """G = diag(scale) values.

    values: (..., k, m), float64, float32, float16 or int8.  scale: (..., k), floating, of the dtype to compute in.
    """

    values: Any
    scale: Any

    @classmethod
    def of(cls, G: Any) -> Factor:
        """A floating factor as it is, all scales 1."""
        return cls(G, (np if isinstance(G, np.ndarray) else _jnp()).ones(G.shape[:-1], G.dtype))

    def decoded(self) -> Any:
        """G in the dtype of the scale, (..., k, m)."""
        return self.values.astype(self.scale.dtype) * self.scale[..., None]


def encode_factor(G: NDArray[Any], dtype: FactorDtype) -> Factor:
    """G (..., k, m) in the dtype asked for.

    float16 and int8 rows are divided by their largest entry (times 1/127 for int8) first, so that no row underflows;
    an entry is then off by at most 2^-11 of itself (or 2^-25 of its row's largest), or 1/254 of its row's largest.
    Raises InputError for an unknown dtype and for entries that are not finite, which 8 bits cannot say.
    """
    if dtype not in get_args(FactorDtype):
        raise InputError(f"the factor's dtype is {dtype!r}; give one of {', '.join(get_args(FactorDtype))}.")
    if dtype in ("float64", "float32"):
        return Factor.of(np.asarray(G, dtype))
    if not np.isfinite(G).all():
        raise InputError(f"the LD factor holds {int((~np.isfinite(G)).sum()):,} entries that are not finite.")
    largest = np.max(np.abs(G), axis=-1, initial=0).astype(np.float32)
    scale = np.where(largest > 0, largest, 1).astype(np.float32)
    if dtype == "int8":
        scale = scale / np.float32(127)
        return Factor(np.rint(G / scale[..., None]).astype(np.int8), scale)
    return Factor((G / scale[..., None]).astype(np.float16), scale)


def _jnp() -> Any:
    import jax.numpy as jnp

    return jnp
