"""Permutation importance in held-out log-likelihood (Breiman 2001; Fisher, Rudin & Dominici 2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.inputs import VariantInputs, Windows
from deepwas.interpretation.held_out import HeldOut, Section
from deepwas.interpretation.options import InterpretOptions

if TYPE_CHECKING:
    from deepwas.annotations import Annotations
    from deepwas.runs import Fit

__all__ = ["Feature", "block_drops", "features_of", "importance_table"]

Advance = Callable[[int, int], None]
FREQUENCY, TRACKS, SEQUENCE = "allele frequency", "tracks", "sequence"


@dataclass(frozen=True)
class Feature:
    """What is permuted together.

    name: of it.  kind: 'annotation', 'group', or 'window'.  members: names of the annotations.
    """

    name: str
    kind: str
    members: tuple[str, ...] = ()


def features_of(
    fit: Fit,
    annotations: Annotations | None,
    groups: Mapping[str, Sequence[str]],
    *,
    tracks: bool,
    sequence: bool,
) -> list[Feature]:
    """Every annotation, every group, and each other input of the networks. InputError for a group that does not fit.

    tracks, sequence: whether the networks read them.
    """
    names = () if annotations is None else annotations.names
    made = [Feature(name, "annotation", (name,)) for name in names]
    for name, members in groups.items():
        unknown = [member for member in members if member not in names]
        if unknown:
            raise InputError(f"group {name}: no annotation {', '.join(unknown)}; there are {', '.join(names)}.")
        if name in (*names, FREQUENCY, TRACKS, SEQUENCE):
            raise InputError(f"group {name}: another input has this name. Choose another.")
        made.append(Feature(name, "group", tuple(members)))
    if fit.record["rotations"][0]["network"].get("sizes", {}).get("log_heterozygosity"):
        made.append(Feature(FREQUENCY, "annotation"))
    return made + [Feature(name, "window") for name, given in ((TRACKS, tracks), (SEQUENCE, sequence)) if given]


def block_drops(
    held: HeldOut,
    section: Section,
    features: Sequence[Feature],
    options: InterpretOptions,
    *,
    progress: Advance | None = None,
) -> Iterator[tuple[Feature, NDArray[np.float64]]]:
    """For each feature, what its permutation takes from the log-likelihood of each test block: (n,), mean over repeats.

    The section's own network scores its blocks, unpermuted (once) and permuted, so that the difference is paired. Every
    feature is permuted by the same permutations. The annotation's indicator of missing values moves with it.
    Windows of tracks or sequence are not permuted but shifted along the section, by a quarter of it at least, since
    reading them in random order would take for ever; that keeps neighbours neighbours.
    """
    spans = _spans(held, section, options.within)
    for done, feature in enumerate(features):
        total = np.zeros(len(section.blocks))
        for repeat in range(options.repeats):
            rng = np.random.default_rng([options.seed, section.number, repeat])
            permuted = _permuted(section, feature, spans, rng)
            total += section.log_likelihood - held.score(section, permuted)
        if progress is not None:
            progress(done + 1, len(features))
        yield feature, total / options.repeats


def importance_table(drops: pl.DataFrame, features: Sequence[Feature], repeats: int, gain: float) -> pl.DataFrame:
    """FEATURE KIND IMPORTANCE STANDARD_ERROR Z SHARE BLOCKS REPEATS MEMBERS, most important first.

    drops: FEATURE BLOCK DROP.  IMPORTANCE: sum of the drops, in nats.  STANDARD_ERROR: over blocks, sqrt(B) times their
    standard deviation, so that it also holds for other blocks like these.  SHARE: of the held-out gain over the
    constant prior, null where there is none. Shares of annotations that interact or repeat each other do not add up.
    """
    rows: list[dict[str, Any]] = []
    for feature in features:
        own = drops.filter(pl.col("FEATURE") == feature.name)["DROP"].to_numpy()
        count = len(own)
        error = float(np.sqrt(count) * own.std(ddof=1)) if count > 1 else None
        rows.append(
            {
                "FEATURE": feature.name,
                "KIND": feature.kind,
                "IMPORTANCE": float(own.sum()),
                "STANDARD_ERROR": error,
                "Z": float(own.sum()) / error if error else None,
                "SHARE": float(own.sum()) / gain if gain > 0 else None,
                "BLOCKS": count,
                "REPEATS": repeats,
                "MEMBERS": ",".join(feature.members) or None,
            }
        )
    schema = {"FEATURE": pl.String, "KIND": pl.String, "IMPORTANCE": pl.Float64, "STANDARD_ERROR": pl.Float64}
    schema |= {"Z": pl.Float64, "SHARE": pl.Float64, "BLOCKS": pl.Int64, "REPEATS": pl.Int64, "MEMBERS": pl.String}
    return pl.DataFrame(rows, schema=schema).sort("IMPORTANCE", descending=True, maintain_order=True)


def _spans(held: HeldOut, section: Section, within: str) -> list[NDArray[np.int64]]:
    """Rows of the store that are permuted among themselves: of the section's test blocks, candidates all."""
    rows = [held.blocks[int(i)].rows for i in section.blocks]
    if within == "block":
        # Candidates in the flanks of a block belong to the block that scores them, or else to the first that has them.
        owner = np.full(held.store.n_variants, -1)
        for i, where in reversed(list(enumerate(rows))):
            owner[where] = i
        for i, block in enumerate(section.blocks):
            owner[held.blocks[int(block)].scored_rows] = i
        return [np.flatnonzero(owner == i) for i in range(len(rows))]
    return [np.unique(np.concatenate([np.arange(where.start, where.stop) for where in rows]))]


def _permuted(
    section: Section, feature: Feature, spans: Sequence[NDArray[np.int64]], rng: np.random.Generator
) -> VariantInputs:
    inputs = section.inputs
    if feature.kind == "window":
        own = np.sort(np.concatenate(spans))
        shift = int(rng.integers(len(own) // 4, max(3 * len(own) // 4, 1) + 1))
        moved = _Shifted(getattr(inputs, feature.name), own, shift)
        changed: dict[str, Any] = {feature.name: moved}
        return replace(inputs, **changed)
    order = [(span, rng.permutation(span)) for span in spans]
    if feature.name == FREQUENCY and not feature.members:
        assert inputs.log_heterozygosity is not None
        frequency = inputs.log_heterozygosity.copy()
        for span, other in order:
            frequency[span] = inputs.log_heterozygosity[other]
        return replace(inputs, log_heterozygosity=frequency)
    assert section.standardiser is not None
    columns = np.array(_columns(section.standardiser, feature.members))
    values = inputs.annotations.copy()
    for span, other in order:
        values[np.ix_(span, columns)] = inputs.annotations[np.ix_(other, columns)]
    return replace(inputs, annotations=values)


def _columns(standardiser: Any, members: Sequence[str]) -> list[int]:
    """Columns of the standardised matrix that say something of these annotations."""
    own = {standardiser.names.index(name) for name in members}
    first = len(standardiser.names)
    return [*sorted(own), *(first + i for i, group in enumerate(standardiser.indicators) if own & set(group))]


@dataclass(frozen=True)
class _Shifted:
    """Windows moved along by `shift` among some rows: in place of rows[i] is rows[i + shift], around the end.

    rows: (n,), ascending, not always without gaps: a section may be chromosomes far apart. All others stay.
    """

    whole: Windows
    rows: NDArray[np.int64]
    shift: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape

    @property
    def dtype(self) -> Any:
        return self.whole.dtype

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        start, stop, _ = rows.indices(self.shape[0])
        here = np.arange(start, stop)
        own = np.arange(*np.searchsorted(self.rows, (start, max(start, stop))))
        here[self.rows[own] - start] = self.rows[(own + self.shift) % len(self.rows)]
        parts = np.split(here, np.flatnonzero(np.diff(here) != 1) + 1)
        return np.concatenate([self.whole[int(p[0]) : int(p[-1]) + 1] for p in parts if len(p)] or [self.whole[0:0]])
