"""Standardising annotations: means and scales of the training variants, missing values, heavy tails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from deepwas.annotations.features import Annotations
from deepwas.errors import InputError
from deepwas.tally import Tally

MissingPolicy = Literal["indicator", "mean", "error"]


@dataclass(frozen=True)
class Standardiser:
    """Column j becomes (x_j - mean_j) / scale_j, clipped; mean and standard deviation are those of the training rows.

    names: (p,) input columns.  means, scales: (p,) float64.  output_names: the input columns, then the
    indicators.

    missing: what happens to a missing value (NaN). In every policy but 'error' it becomes the mean, that is
    0.
        'indicator' adds a column `<name>:missing` (1 missing, else 0, not standardised) for each column with
        missing values among the training rows; columns missing on exactly the same training rows share one,
        named after the first of them. A column complete in training gets none: nothing could be learnt about
        it. 'mean' adds no column. 'error' refuses missing values.
    clip: standardised values are cut to +-clip standard deviations, so that one extreme variant (a
        recombination hotspot, a count track) cannot dominate the network; None leaves them.
    constant: columns with one value only on the training rows; their scale is 1, so they carry no information
    there.
    indicators: for each indicator column, the positions of the columns it stands for.
    """

    names: tuple[str, ...]
    means: np.ndarray
    scales: np.ndarray
    missing: MissingPolicy = "indicator"
    clip: float | None = 10.0
    indicators: tuple[tuple[int, ...], ...] = ()
    constant: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.missing not in get_args(MissingPolicy):
            raise InputError(f"missing={self.missing!r}: give one of {', '.join(get_args(MissingPolicy))}.")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip={self.clip!r}: give a positive number of standard deviations, or None.")
        p = len(self.names)
        if self.means.shape != (p,) or self.scales.shape != (p,):
            raise InputError(
                f"standardiser: {p} names, means of shape {self.means.shape}, scales of shape {self.scales.shape}; "
                "one mean and one scale a column are needed."
            )
        if not (np.isfinite(self.means).all() and np.isfinite(self.scales).all() and (self.scales > 0).all()):
            raise InputError("standardiser: means must be finite and scales positive.")
        if any(not 0 <= j < p for group in self.indicators for j in group) or not all(self.indicators):
            raise InputError(f"standardiser: an indicator stands for a column outside 0 to {p - 1}, or for none.")
        if len(set(self.output_names)) != len(self.output_names):
            raise InputError("standardiser: column names must differ, and not end in ':missing' like an indicator.")

    @classmethod
    def fit(
        cls,
        values: Annotations | np.ndarray,
        rows: np.ndarray | slice | None = None,
        *,
        names: Sequence[str] | None = None,
        missing: MissingPolicy = "indicator",
        clip: float | None = 10.0,
    ) -> Standardiser:
        """Means and standard deviations over `rows`, which must be the training variants alone, in float64.

        values: Annotations, or (M, p) with NaN for missing and `names` (p,).  rows: bool (M,), indices, or
        slice; None means all. Raises InputError for a column without any value on these rows, for infinite
        values, and for missing values under missing='error'.
        """
        if isinstance(values, Annotations):
            names, values = values.names, values.values
        if names is None:
            raise InputError("Standardiser.fit: give names= with an array, one for each column.")
        _require_matrix(values, len(names))
        if rows is None:
            rows = slice(None)
        means, scales = np.zeros(len(names)), np.ones(len(names))
        constant: list[str] = []
        patterns: dict[bytes, list[int]] = {}
        for j, name in enumerate(names):
            column = values[:, j][rows].astype(np.float64)
            if column.size == 0:
                raise InputError("Standardiser.fit: no training rows: means and scales need some.")
            gone = np.isnan(column)
            if gone.any():
                if missing == "error":
                    raise InputError(
                        f"annotation {name} is missing for {int(gone.sum()):,} of {column.size:,} training variants. "
                        "Complete it, or choose missing='indicator' or 'mean'."
                    )
                patterns.setdefault(np.packbits(gone).tobytes(), []).append(j)
                column = column[~gone]
            if column.size == 0:
                raise InputError(
                    f"annotation {name} is missing for all {gone.size:,} training variants. Leave it out of the fit."
                )
            if not np.isfinite(column).all():
                raise InputError(f"annotation {name} holds infinite values. Mend them, or mark them missing.")
            if column.min() == column.max():
                means[j] = column[0]
                constant.append(name)
            else:
                means[j], scales[j] = column.mean(), column.std()
        indicators = tuple(tuple(group) for group in patterns.values()) if missing == "indicator" else ()
        return cls(tuple(names), means, scales, missing, clip, indicators, tuple(constant))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the columns of `transform`: the input columns, then one a missing-value indicator."""
        return (*self.names, *(f"{self.names[group[0]]}:missing" for group in self.indicators))

    def transform(self, values: Annotations | np.ndarray, *, tally: Tally | None = None) -> np.ndarray:
        """Standardised values, float32 (M, p + indicators), without NaN; the input is left as it is.

        values: (M, p) with the columns of `names`, in that order. Means imputed and values clipped are
        counted in `tally` if given. Memory: the result and one float64 column.
        """
        if isinstance(values, Annotations):
            if values.names != self.names:
                raise InputError(
                    f"annotations {', '.join(values.names)} were given, but the standardiser was fitted on "
                    f"{', '.join(self.names)}. Give the same annotations in the same order."
                )
            values = values.values
        _require_matrix(values, len(self.names))
        out = np.zeros((values.shape[0], len(self.output_names)), dtype=np.float32)
        place = {j: len(self.names) + k for k, group in enumerate(self.indicators) for j in group}
        for j, name in enumerate(self.names):
            column = (values[:, j].astype(np.float64) - self.means[j]) / self.scales[j]
            gone = np.isnan(column)
            if np.isinf(column).any():
                raise InputError(f"annotation {name} holds infinite values. Mend them, or mark them missing.")
            if count := int(gone.sum()):
                if self.missing == "error":
                    raise InputError(
                        f"annotation {name} is missing for {count:,} variants. Complete it, or fit the standardiser "
                        "with missing='indicator' or 'mean'."
                    )
                column[gone] = 0.0
                if j in place:
                    out[gone, place[j]] = 1.0
                if tally is not None:
                    tally.add("standardise", "changed", f"{name}: missing, set to the mean of training", count)
            if self.clip is not None:
                if tally is not None:
                    over = int((np.abs(column) > self.clip).sum())
                    tally.add("standardise", "changed", f"{name}: cut to +-{self.clip:g} standard deviations", over)
                np.clip(column, -self.clip, self.clip, out=column)
            out[:, j] = column
        return out

    def lines(self) -> list[str]:
        """What a log should say: constant columns and the indicators made."""
        said = [f"standardise: {name} is constant on the training variants; scale 1" for name in self.constant]
        for group in self.indicators:
            stands = ", ".join(self.names[j] for j in group)
            said.append(f"standardise: {self.names[group[0]]}:missing marks missing values of {stands}")
        return said

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready content; `from_dict` gives back an equal standardiser, to the last bit."""
        return {
            "names": list(self.names),
            "means": self.means.tolist(),
            "scales": self.scales.tolist(),
            "missing": self.missing,
            "clip": self.clip,
            "indicators": [list(group) for group in self.indicators],
            "constant": list(self.constant),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Standardiser:
        """The standardiser that `as_dict` described; InputError for missing keys or another form."""
        fields = ("names", "means", "scales", "missing", "clip", "indicators", "constant")
        absent = [key for key in fields if key not in content]
        if absent:
            raise InputError(f"standardiser: {', '.join(absent)} is missing from the stored content.")
        try:
            return cls(
                names=tuple(map(str, content["names"])),
                means=np.asarray(content["means"], dtype=np.float64),
                scales=np.asarray(content["scales"], dtype=np.float64),
                missing=content["missing"],
                clip=None if content["clip"] is None else float(content["clip"]),
                indicators=tuple(tuple(map(int, group)) for group in content["indicators"]),
                constant=tuple(map(str, content["constant"])),
            )
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"standardiser: stored content of another form ({error}).") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Standardiser) and self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]


def _require_matrix(values: np.ndarray, columns: int) -> None:
    if values.ndim != 2 or values.shape[1] != columns:
        raise InputError(
            f"annotations of shape {values.shape} where (variants, {columns}) is expected: one column for each name."
        )
