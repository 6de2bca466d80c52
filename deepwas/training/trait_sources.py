"""The blocks of several traits as one source of minibatches, each of one trait."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.inputs import VariantInputs
from deepwas.training.source import AHEAD, Batch, BlockSource, Minibatch, prefetch

__all__ = ["Source", "TraitSources"]


class Source(Protocol):
    """What training needs of where its minibatches come from; see `BlockSource`."""

    members: list[NDArray[np.int64]]
    shapes: list[tuple[int, int]]
    eigenvalues: NDArray[np.int64]

    def batches(
        self, plan: Iterable[Minibatch], inputs: VariantInputs
    ) -> Generator[tuple[Minibatch, Batch], None, None]:
        """The minibatches of a plan, in its order, with their arrays."""


class TraitSources:
    """Several `BlockSource`s, one per trait in order, each made with its own `trait`, as one.

    Block i of trait t has the number first[t] + i, so that any set of blocks of any traits can be asked for. A
    minibatch holds blocks of one trait and one shape. Blocks of several traits in the same place have the same inputs.

    members, shapes: of all traits' shapes, one after the other.  eigenvalues: k of every block.  first: (T + 1,).
    """

    def __init__(self, sources: Sequence[BlockSource]):
        if [s.trait for s in sources] != list(range(len(sources))) or not sources:
            raise InputError("sources must be one per trait, made with trait=0, 1, ... in order.")
        self.sources = list(sources)
        self.first = np.cumsum([0, *(len(s.eigenvalues) for s in sources)])
        self.members = [x + start for s, start in zip(sources, self.first, strict=False) for x in s.members]
        self.shapes = [shape for s in sources for shape in s.shapes]
        self.eigenvalues = np.concatenate([s.eigenvalues for s in sources])
        self._places = [(t, b) for t, s in enumerate(sources) for b in range(len(s.shapes))]

    def batches(
        self, plan: Iterable[Minibatch], inputs: VariantInputs
    ) -> Generator[tuple[Minibatch, Batch], None, None]:
        """As `BlockSource.batches`, with the numbers of this source."""

        def make(item: Minibatch) -> tuple[Minibatch, Batch]:
            t, bucket = self._places[item.bucket]
            own = Minibatch(bucket, item.members - self.first[t], item.weight)
            return item, self.sources[t].make(own, inputs)

        if inputs.in_file or any(s.streaming for s in self.sources):
            yield from prefetch(make, plan, ahead=AHEAD)
        else:
            yield from map(make, plan)
