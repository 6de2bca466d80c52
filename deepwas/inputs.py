"""What a network is given about variants: annotations, and windows of tracks or sequence around each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError

__all__ = ["InputSizes", "Inputs", "VariantInputs", "Windows"]


class Inputs(NamedTuple):
    """Arrays about variants, with the same leading axes (...): of blocks and variants, or of variants alone.

    annotations: (..., p) float32, standardised; p may be 0.
    log_heterozygosity: (...) float32, log 2q(1 - q) of the allele frequency q, or None.
    tracks: (..., bins, tracks) float16 or float32, standardised signals around the variant, its own bin in the middle,
        or None.
    sequence: (..., 2, bases) uint8, the reference and the alternative allele in their surroundings, 0 to 3 for A, C, G,
        T and 4 for anything else, or None.
    """

    annotations: Any
    log_heterozygosity: Any = None
    tracks: Any = None
    sequence: Any = None


@dataclass(frozen=True)
class InputSizes:
    """What a network must be built for.

    annotations: p.  log_heterozygosity: whether it is given.  tracks: (bins, tracks).  sequence: bases.
    """

    annotations: int = 0
    log_heterozygosity: bool = False
    tracks: tuple[int, int] | None = None
    sequence: int | None = None


class Windows(Protocol):
    """Rows of windows around variants, in memory or in a file: an array of NumPy or HDF5, or what acts like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, ...)."""

    @property
    def dtype(self) -> Any:
        """Of the values."""

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """The rows asked for, in memory."""


@dataclass(frozen=True, eq=False)
class VariantInputs:
    """Inputs of all M variants of an LD store, by row; what is large may stay in a file until it is asked for.

    annotations: (M, p) float32, standardised.  log_heterozygosity: (M,) float32.  tracks: (M, bins, tracks).
    sequence: (M, 2, bases) uint8. See `Inputs`.
    """

    annotations: NDArray[np.float32]
    log_heterozygosity: NDArray[np.float32] | None = None
    tracks: Windows | None = None
    sequence: Windows | None = None

    def __post_init__(self) -> None:
        if self.annotations.ndim != 2:
            raise InputError(f"annotations of shape {self.annotations.shape} where (variants, p) is expected.")
        for name, axes in (("log_heterozygosity", 1), ("tracks", 3), ("sequence", 3)):
            found = getattr(self, name)
            if found is not None and (len(found.shape) != axes or found.shape[0] != len(self)):
                raise InputError(
                    f"{name} of shape {found.shape}: {axes} axes are expected, the first of {len(self):,} variants."
                )

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def sizes(self) -> InputSizes:
        """What a network for these inputs must be built for."""
        return InputSizes(
            annotations=self.annotations.shape[1],
            log_heterozygosity=self.log_heterozygosity is not None,
            tracks=None if self.tracks is None else (self.tracks.shape[1], self.tracks.shape[2]),
            sequence=None if self.sequence is None else self.sequence.shape[2],
        )

    @property
    def in_file(self) -> bool:
        """Whether rows are read from a file, so that it pays to read ahead."""
        return any(not isinstance(x, np.ndarray) for x in (self.tracks, self.sequence) if x is not None)

    def gather(self, rows: Sequence[slice], m: int) -> Inputs:
        """The inputs of B blocks of variants, (B, m, ...), 0 in the padding.

        rows: of each block's variants, at most m.
        """

        def padded(values: Windows | None) -> NDArray[Any] | None:
            if values is None:
                return None
            out = np.zeros((len(rows), m, *values.shape[1:]), values.dtype)
            for row, own in enumerate(rows):
                out[row, : own.stop - own.start] = values[own]
            return out

        return Inputs(*map(padded, (self.annotations, self.log_heterozygosity, self.tracks, self.sequence)))

    def pieces(self, size: int) -> Iterator[tuple[slice, Inputs]]:
        """The inputs of all variants, `size` at a time (one shape, 0 in the last one's padding), and whose they are."""
        size = min(size, len(self))
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            found = self.gather([rows], size)
            yield rows, Inputs(*(None if x is None else x[0] for x in found))
