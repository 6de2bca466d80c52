"""The networks' place in a classification: a first pass over all LD blocks, labels, training, corrections by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.learning import JointBlock, locate
from deepwas.pleiotropy.network.calibration import CalibrationReport
from deepwas.pleiotropy.network.features import BlockFeatures, block_features
from deepwas.pleiotropy.network.fit import NetworkResult, fit_network
from deepwas.pleiotropy.network.labels import Labels, mixture_labels
from deepwas.pleiotropy.network.options import NetworkOptions

__all__ = ["by_row", "first_pass", "network_of"]

Say = Callable[[str, int, int], None]


def first_pass(
    blocks: Sequence[JointBlock],
    model: TraitModel,
    *,
    scored: Sequence[slice],
    chromosomes: Sequence[str],
    annotations: Callable[[slice], NDArray[np.floating]] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **how: Any,
) -> list[BlockFeatures]:
    """Features of every block, in order; annotations: of the rows of a block.  how: arguments of `locate`."""
    out: list[BlockFeatures] = []
    for i, (block, odds, found) in enumerate(locate(blocks, model, **how)):
        own = None if annotations is None else annotations(block.rows)
        each: dict[str, Any] = {"scored": scored[i], "chromosome": chromosomes[i], "annotations": own}
        out.append(block_features(block, odds, found, model, **each))
        if progress is not None:
            progress(i + 1, len(blocks))
    return out


def network_of(
    features: Sequence[BlockFeatures],
    model: TraitModel,
    report: CalibrationReport,
    variants: int,
    *,
    labels: Labels | None = None,
    options: NetworkOptions | None = None,
    progress: Say | None = None,
) -> tuple[NetworkResult, Labels, list[str]]:
    """Networks trained on labels given, and on those of a mixture where these are silent; the labels; and notes.

    features: of the first pass.  report: simulated under the fitted model.  variants: of the LD store.  Labels that are
    given are used alone, with a note, where there are too few variants for a mixture.
    """
    options = options or NetworkOptions()
    told = None if progress is None else partial(progress, "fitting the mixture that labels variants")
    notes = []
    try:
        mixture, _ = mixture_labels(features, model, variants, seed=options.seed, progress=told)
        own = mixture if labels is None else labels.filled(mixture)
    except InputError as few:
        if labels is None:
            raise
        own = labels
        notes.append(f"no mixture labels variants, {labels.source} alone does: {few}")
    return fit_network(features, own, options, simulated=report.blocks, progress=progress), own, notes


def by_row(values: Iterable[NDArray[np.floating]], features: Sequence[BlockFeatures], variants: int) -> NDArray[Any]:
    """(variants,), values (m,) of each block at the variants it reports, NaN elsewhere."""
    out = np.full(variants, np.nan)
    for x, block in zip(values, features, strict=True):
        rows = np.arange(block.rows.start, block.rows.stop)[block.scored]
        out[rows] = x[block.scored]
    return out
