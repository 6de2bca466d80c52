"""What a log-likelihood is asked: its arguments as they were given, with the checks that all kinds of LD share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from deepwas.errors import InputError

__all__ = ["Question", "check"]


@dataclass(frozen=True, eq=False)
class Question:
    """Arguments of `deepwas.log_likelihood`, which describes them; how to solve is checked when it is made."""

    z: ArrayLike
    effect_variance: ArrayLike
    sample_size: ArrayLike
    noise: ArrayLike
    effect_mean: ArrayLike | None
    solver: str
    probes: int
    key: Array | None
    rtol: float | None
    max_steps: int | None

    def __post_init__(self) -> None:
        if self.solver not in ("auto", "cholesky", "cg"):
            raise InputError(f"solver is {self.solver!r}; give 'auto', 'cholesky' or 'cg'.")
        if self.probes < 2:
            raise InputError(f"probes is {self.probes}; at least 2 are needed for a standard error.")
        if self.max_steps is not None and self.max_steps < 1:
            raise InputError(f"max_steps is {self.max_steps}; CG takes at least 1 step.")
        if self.rtol is not None and not 0 < self.rtol < 1:
            raise InputError(f"rtol is {self.rtol}; give a relative residual above 0 and below 1, such as 1e-4.")

    @property
    def several(self) -> bool:
        """Whether z is that of several traits, (s, t)."""
        return np.ndim(self.z) == 2

    def check_arrays(self, s: int, m: int) -> None:
        """InputError unless the arrays fit s scored of m candidate variants, and are finite and of the right sign."""
        t = np.shape(self.z)[1] if self.several else 1
        wide, one = ((m, t), (t,)) if self.several else (None, None)
        check("z", self.z, (s, t) if self.several else (s,))
        check("effect_variance", self.effect_variance, (m,), wide, minimum=0)
        check("sample_size", self.sample_size, (), one, above=0)
        check("noise", self.noise, (), one, above=0)
        if self.effect_mean is not None:
            check("effect_mean", self.effect_mean, (m,), wide)

    def arrays(self, m: int, dtype: Any) -> tuple[Array, Array, Array, Array, Array]:
        """z, effect variance, sample size, noise and mean effect, of `dtype`, in the shapes given."""
        mean = jnp.zeros((m,), dtype) if self.effect_mean is None else jnp.asarray(self.effect_mean, dtype)
        z, f, n, noise = (jnp.asarray(x, dtype) for x in (self.z, self.effect_variance, self.sample_size, self.noise))
        return z, f, n, noise, mean

    def signs(self, shape: tuple[int, int], dtype: Any) -> Array:
        """The probes, of the key given or a fixed one."""
        return jax.random.rademacher(jax.random.key(0) if self.key is None else self.key, shape, dtype)

    def steps(self, most: int) -> int:
        """Steps of CG at most; `most` unless given."""
        return most if self.max_steps is None else int(self.max_steps)

    def tolerance(self, dtype: Any) -> float:
        """Relative residual at which CG stops."""
        return default_rtol(dtype) if self.rtol is None else float(self.rtol)


def default_rtol(dtype: Any) -> float:
    """The tolerance at which the truncation error of a value is far below its probe error, reachable in `dtype`."""
    return 1e-8 if np.dtype(dtype).itemsize >= 8 else 1e-4


def check(
    name: str,
    value: Any,
    shape: tuple[int, ...],
    or_shape: tuple[int, ...] | None = None,
    minimum: float | None = None,
    above: float | None = None,
) -> None:
    """Shape always; finiteness and sign where the value is concrete (not traced)."""
    if np.shape(value) not in (shape, or_shape):
        hint = " For an N per variant see LDBlock.restrict." if name == "sample_size" else ""
        expected = f"{shape or 'one number'}" + ("" if or_shape is None else f" or {or_shape}")
        raise InputError(f"{name} has shape {np.shape(value)}; {expected} is expected.{hint}")
    if isinstance(value, jax.core.Tracer):
        return
    array = np.asarray(value)
    bad = ~np.isfinite(array)
    if minimum is not None:
        bad |= array < minimum
    if above is not None:
        bad |= array <= above
    if bad.any():
        where = np.argwhere(bad)[0].tolist()
        place = f" at index {where[0] if len(where) == 1 else tuple(where)}" if where else ""
        bound = f" and >= {minimum}" if minimum is not None else f" and > {above}" if above is not None else ""
        raise InputError(
            f"{name} must be finite{bound}; found {array[bad][0]}{place} ({int(bad.sum()):,} such values)."
        )
