"""Who trains on what: the blocks of a trait, the sections of the genome, and the rotations over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.options import FitOptions
from deepwas.tally import Tally
from deepwas.training.sections import (
    Rotation,
    make_rotations,
    sections_by_chromosome,
    sections_held_out,
    split_sections,
    without_overlap,
)
from deepwas.training.trait import blocks_with_scores

if TYPE_CHECKING:
    from deepwas.ld import LDStore

__all__ = ["Plan", "choose_rotations", "log_heterozygosity", "plan_fit", "plan_traits"]


@dataclass(frozen=True)
class Plan:
    """The blocks with z-scores, and how they are used.

    candidates, scored: of each block, rows of the store.  section: (n_blocks,).  rotations: all that are to be trained.
    rotates: whether each section is held out in turn.
    tally: variants left out of training because their windows reach into a test section.
    """

    candidates: list[slice]
    scored: list[slice]
    section: NDArray[np.int64]
    rotations: list[Rotation]
    rotates: bool
    tally: Tally

    @property
    def sizes(self) -> list[int]:
        """Variants that each block scores."""
        return [rows.stop - rows.start for rows in self.scored]

    @property
    def section_of_variant(self) -> NDArray[np.int64]:
        """(rows up to the last scored,) section of the block that scores each variant, -1 where none does."""
        out = np.full(max(rows.stop for rows in self.candidates), -1)
        for rows, own in zip(self.scored, self.section, strict=True):
            out[rows] = own
        return out

    def rows_of(self, r: int, n_variants: int) -> slice:
        """The rows whose prior rotation r gives: of its section's candidates; of rotation 0, which is also the plain
        prior, all."""
        if r == 0:
            return slice(0, n_variants)
        own = [self.candidates[i] for i in np.flatnonzero(self.section == r)]
        return slice(min(rows.start for rows in own), max(rows.stop for rows in own))


def plan_fit(store: LDStore, frame: pl.DataFrame, options: FitOptions) -> Plan:
    """Sections and rotations for a trait's harmonised z-scores. Nothing is whitened yet; faults show here first."""
    return _plan(store, frame, options, None)


def plan_traits(store: LDStore, frames: Mapping[str, pl.DataFrame], options: FitOptions) -> dict[str, Plan]:
    """Plans of several traits, by name, with the same sections of the genome for all.

    frames: harmonised z-scores.  Sections are those of the blocks in which any trait has a z-score. InputError if a
    trait has none in one of them.
    """
    union = pl.concat([frame.select("VARIANT", "Z", "N") for frame in frames.values()])
    union = union.unique("VARIANT", keep="first").sort("VARIANT")
    numbers, _ = blocks_with_scores(store, union)
    section = dict(zip(numbers, _sections(store, numbers, options).tolist(), strict=True))
    plans = {}
    for name, frame in frames.items():
        found = {section[number] for number in blocks_with_scores(store, frame)[0]}
        if missing := sorted(set(section.values()) - found):
            number = next(n for n, own in section.items() if own == missing[0])
            where = store.variants.row(store.scored_slice(number).start, named=True)
            raise InputError(
                f"{name}: no z-score in section {missing[0]} of the genome (from {where['CHR']}:{where['BP']}), where "
                "other traits have some. Fit it alone, or give fewer folds."
            )
        plans[name] = _plan(store, frame, options, section)
    return plans


def _sections(store: LDStore, numbers: Sequence[int], options: FitOptions) -> NDArray[np.int64]:
    """The section of each of these blocks."""
    scored = [store.scored_slice(number) for number in numbers]
    chromosomes = [str(store.variants["CHR"][rows.start]) for rows in scored]
    if options.test_chromosomes:
        return sections_held_out(chromosomes, options.test_chromosomes, options.validation_chromosomes)
    if isinstance(options.folds, str):
        return sections_by_chromosome(chromosomes)
    return split_sections(chromosomes, [rows.stop - rows.start for rows in scored], options.folds)


def _plan(store: LDStore, frame: pl.DataFrame, options: FitOptions, known: Mapping[int, int] | None) -> Plan:
    numbers, unequal = blocks_with_scores(store, frame)
    if unequal and options.objective == "ld-score" and options.network != "constant":
        raise InputError(
            f"the sample size N differs between variants in {len(unequal):,} of {len(numbers):,} LD blocks (first: "
            f"block {unequal[0]}). LD scores come from whitened LD, which then carries N. Give --objective "
            "likelihood, which allows for it, or z-scores of one N: a file without the column N, and --sample-size."
        )
    scored = [store.scored_slice(number) for number in numbers]
    candidates = [store.block_slice(number) for number in numbers]
    sizes = [rows.stop - rows.start for rows in scored]
    section = _sections(store, numbers, options) if known is None else np.array([known[n] for n in numbers])
    rotations = make_rotations(section)[: None if options.rotates else 1]
    tested = None
    if known is not None:
        tested = [[store.scored_slice(n) for n, own in known.items() if own == r] for r in range(len(rotations))]
    rotations, dropped = without_overlap(rotations, candidates, scored, tested)
    tally = Tally()
    for i in dropped:
        text = "variants of LD windows that reach into a test section, left out of training for it"
        tally.add("fit", "noted", text, sizes[i], str(store.variants["SNP"][scored[i].start]))
    return Plan(candidates, scored, section, rotations, options.rotates, tally)


def choose_rotations(asked: Sequence[int], plan: Plan) -> list[int]:
    """The rotations asked for, in order, once they are known to exist."""
    count = len(plan.rotations)
    wrong = [r for r in asked if not 0 <= r < count]
    if wrong or not asked:
        found = f"rotation {wrong[0]}" if wrong else "no rotation"
        raise InputError(f"{found} was asked for; this fit has {count}, numbered from 0 to {count - 1}.")
    return sorted(set(asked))


def log_heterozygosity(store: LDStore) -> NDArray[np.float32]:
    """log 2q(1 - q) of every variant, (M,) float32, q its frequency in the LD panel. InputError where it has none."""
    q = store.variants["FREQ"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    wrong = np.flatnonzero(~((q > 0) & (q < 1)))
    if wrong.size:
        first = int(wrong[0])
        raise InputError(
            f"{store.path}: FREQ is {q[first]:g} for {wrong.size:,} of {len(q):,} variants (first: "
            f"{store.variants['SNP'][first]}, row {first}). --maf-alpha needs frequencies between 0 and 1: build the "
            "LD with --min-maf, or leave --maf-alpha out."
        )
    return np.log(2 * q * (1 - q)).astype(np.float32)
