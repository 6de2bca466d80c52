"""What is extracted around each variant: the options of tracks and of sequence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from deepwas.errors import InputError

Missing = Literal["zero", "mean"]
Transform = Literal["none", "log1p", "arcsinh"]
Compression = Literal["none", "lzf"]
Uncovered = Literal["error", "missing"]

LARGEST_WINDOW = 1 << 22  # bases; one window is read at once


@dataclass(frozen=True)
class TrackOptions:
    """How signals become bins.

    bins, resolution: a window has `bins` bins of `resolution` bases. With W = bins * resolution it holds the bases
        x - W // 2 to x - W // 2 + W - 1, x the variant's position: the variant lies in bin bins // 2, counted from 0.
        With an odd number that is the bin in the middle, and the variant the base in its middle; with an even number
        it is the first bin of the right half, and the variant its first base.
    missing: bases for which a bigWig has no value count as 0 ('zero'), right for signals that are left out where they
        are 0; or they are left out of the bin's mean, and a bin without any value gets the track's mean ('mean'),
        right for scores that do not exist everywhere, such as conservation. BED tracks have no missing values.
    transform: of a bigWig's bin means: none, log1p (of values of 0 or more) or arcsinh; BED tracks are left.
    clip: standardised values are cut to +-clip standard deviations; None leaves them.
    statistics_variants: mean and standard deviation of each track are over all bins of about this many variants, in
        stretches of neighbours evenly spread over the genome, or of all variants where there are no more.
    uncovered: a chromosome of the LD store of which a file says nothing is an 'error', or its bins are 'missing'.
    compression: none, or lzf: smaller where most bins are alike, slower to read.
    check_build: compare chromosome lengths with those of the LD store's genome build. Off only for another genome.
    """

    bins: int = 64
    resolution: int = 32
    missing: Missing = "zero"
    transform: Transform = "none"
    clip: float | None = 10.0
    statistics_variants: int = 100_000
    uncovered: Uncovered = "error"
    compression: Compression = "none"
    check_build: bool = True

    def __post_init__(self) -> None:
        for name in ("bins", "resolution", "statistics_variants"):
            _require_count(self, name, 1)
        if self.width > LARGEST_WINDOW:
            raise InputError(
                f"bins={self.bins}, resolution={self.resolution}: a window of {self.width:,} bases; "
                f"at most {LARGEST_WINDOW:,} can be read."
            )
        _require_choice(self, "missing", get_args(Missing))
        _require_choice(self, "transform", get_args(Transform))
        _require_choice(self, "uncovered", get_args(Uncovered))
        _require_choice(self, "compression", get_args(Compression))
        if self.clip is not None and not 0 < self.clip <= 60_000:
            raise InputError(f"clip={self.clip!r}: give a positive number of standard deviations, or none.")

    @property
    def width(self) -> int:
        """Bases of a window."""
        return self.bins * self.resolution

    def as_dict(self) -> dict[str, Any]:
        """The options as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True)
class SequenceOptions:
    """How sequence is cut around each variant.

    bases: W, the length of a window. It begins W // 2 bases before the variant's position: the variant's first base is
        number W // 2 of the window, counted from 0.
    max_mismatch: largest share of the variants neither of whose alleles may be what the FASTA file has there.
    compression: none, or lzf.  check_build: as in `TrackOptions`.
    """

    bases: int = 256
    max_mismatch: float = 0.01
    compression: Compression = "none"
    check_build: bool = True

    def __post_init__(self) -> None:
        _require_count(self, "bases", 2)
        if self.bases > LARGEST_WINDOW:
            raise InputError(f"bases={self.bases}: at most {LARGEST_WINDOW:,} can be read.")
        if not 0 <= self.max_mismatch <= 1:
            raise InputError(f"max_mismatch={self.max_mismatch!r}: give a share from 0 to 1, such as 0.01.")
        _require_choice(self, "compression", get_args(Compression))

    def as_dict(self) -> dict[str, Any]:
        """The options as JSON-ready values."""
        return asdict(self)


def _require_count(options: Any, name: str, least: int) -> None:
    value = getattr(options, name)
    if not isinstance(value, int) or value < least:
        raise InputError(f"{name}={value!r}: give a whole number, {least} or more.")


def _require_choice(options: Any, name: str, choices: tuple[str, ...]) -> None:
    if getattr(options, name) not in choices:
        raise InputError(f"{name}={getattr(options, name)!r}: give one of {', '.join(choices)}.")
