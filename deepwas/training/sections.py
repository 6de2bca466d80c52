"""Sections of the genome: contiguous sets of LD blocks for training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError

__all__ = [
    "Rotation",
    "make_rotations",
    "sections_by_chromosome",
    "sections_held_out",
    "split_sections",
    "without_overlap",
]


@dataclass(frozen=True)
class Rotation:
    """One assignment of blocks: indices of the training, validation and test blocks."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split_sections(chromosomes: Sequence[str], sizes: Sequence[int], folds: int) -> NDArray[np.int64]:
    """Section number of each block, (n_blocks,), 0 to folds - 1, contiguous in genome order and about equal in size.

    chromosomes: of each block, in genome order.  sizes: of each block, for balance.  Whole chromosomes stay together
    when there are at least as many as folds; otherwise sections are runs of blocks.
    """
    if folds < 3:
        raise InputError(f"folds is {folds}; at least 3 are needed: training, validation and test.")
    starts = _chromosome_starts(chromosomes)
    if len(starts) < folds:
        starts = np.arange(len(sizes))
    if len(starts) < folds:
        raise InputError(
            f"{len(starts)} LD block(s) cannot make {folds} sections for training, validation and test. "
            "Give fewer folds, smaller blocks or more of the genome."
        )
    weight = np.add.reduceat(np.asarray(sizes, dtype=np.float64), starts)
    middle = np.cumsum(weight) - weight / 2
    section = np.minimum((folds * middle / weight.sum()).astype(np.int64), folds - 1)
    # Very unequal units could leave a section empty: number the sections so that each gets at least one unit.
    for i in range(1, len(section)):
        section[i] = min(max(section[i], section[i - 1]), section[i - 1] + 1)
    section -= section[0]
    for i in range(len(section)):
        section[i] = max(section[i], folds - (len(section) - i))
    return np.repeat(section, np.diff(np.append(starts, len(sizes))))


def sections_by_chromosome(chromosomes: Sequence[str]) -> NDArray[np.int64]:
    """Section number of each block, (n_blocks,): one section a chromosome, in genome order (leave one chromosome out).

    chromosomes: of each block, in genome order; at least three.
    """
    starts = _chromosome_starts(chromosomes)
    if len(starts) < 3:
        raise InputError(
            f"{len(starts)} chromosome(s) with z-scores cannot be left out one at a time: training, validation and "
            "test each need one. Give --folds 5, or more chromosomes."
        )
    return np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(chromosomes))))


def sections_held_out(chromosomes: Sequence[str], test: Sequence[str], validation: Sequence[str]) -> NDArray[np.int64]:
    """Section number of each block, (n_blocks,): 0 on the test chromosomes, 1 on those of validation, 2 elsewhere.

    Names may bear a prefix `chr`. InputError for one that no block is on, and if nothing is left to train on.
    """
    here = np.asarray(chromosomes)
    known = list(dict.fromkeys(chromosomes))
    section = np.full(len(here), 2)
    for number, option, names in ((0, "test", test), (1, "validation", validation)):
        for name in names:
            found = here == name.removeprefix("chr")
            if not found.any():
                raise InputError(
                    f"{option}_chromosomes has {name!r}, on which no LD block has a z-score. There are "
                    f"{', '.join(known)}."
                )
            section[found] = number
    if not (section == 2).any():
        raise InputError("test_chromosomes and validation_chromosomes leave no chromosome to train on.")
    return section


def _chromosome_starts(chromosomes: Sequence[str]) -> NDArray[np.int64]:
    """Index of the first block of each chromosome."""
    names, unit = np.unique(np.asarray(chromosomes), return_inverse=True)
    starts = np.flatnonzero(np.diff(unit, prepend=-1))
    if len(starts) != len(names):
        raise InputError("the LD blocks are not in genome order: a chromosome's blocks must follow one another.")
    return starts


def make_rotations(section: NDArray[np.int64]) -> list[Rotation]:
    """Rotation r tests on section r and validates on the next; so each block is tested exactly once, by a network that
    saw it neither in training nor in early stopping."""
    folds = int(section.max()) + 1
    out = []
    for r in range(folds):
        validation = (r + 1) % folds
        train = np.flatnonzero((section != r) & (section != validation))
        out.append(Rotation(train, np.flatnonzero(section == validation), np.flatnonzero(section == r)))
    return out


def without_overlap(
    rotations: Sequence[Rotation],
    candidates: Sequence[slice],
    scored: Sequence[slice],
    tested: Sequence[Sequence[slice]] | None = None,
) -> tuple[list[Rotation], NDArray[np.int64]]:
    """The rotations without the training and validation blocks that reach into their test section.

    A block with flanks takes the annotations of all its candidates into its likelihood. Where a test block scores some
    of them, the network would be trained, or stopped, on annotations of variants it is to be tested on. Training blocks
    that reach into the validation section stay: that section chooses a step, and no result is read from it.

    candidates, scored: of each block, rows of the store.
    tested: of each rotation, rows that its test section scores, where other traits test more than these blocks do;
        None for those of the test blocks.
    Returns also the indices of the blocks left out of any rotation. InputError if a rotation has then nothing left to
    train on, or to stop by.
    """
    low, high = np.array([(rows.start, rows.stop) for rows in candidates]).T
    first, last = np.array([(rows.start, rows.stop) for rows in scored]).T
    out, dropped = [], np.zeros(len(candidates), dtype=bool)
    for i, rotation in enumerate(rotations):
        starts, stops = first[rotation.test], last[rotation.test]
        if tested is not None:
            starts, stops = np.array([(rows.start, rows.stop) for rows in tested[i]]).T
        reaches = np.any((low[:, None] < stops[None, :]) & (starts[None, :] < high[:, None]), axis=1)
        train, validation = (x[~reaches[x]] for x in (rotation.train, rotation.validation))
        for name, blocks in (("training", train), ("validation", validation)):
            if not len(blocks):
                raise InputError(
                    f"every LD window of a {name} section has candidates that its test section scores, so none is left "
                    "to train on or to stop early by. Give fewer folds, shorter windows or more of the genome."
                )
        dropped[rotation.train] |= reaches[rotation.train]
        dropped[rotation.validation] |= reaches[rotation.validation]
        out.append(Rotation(train, validation, rotation.test))
    return out, np.flatnonzero(dropped)
