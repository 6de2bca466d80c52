"""A finished run, its trait and its LD put together again, to score held-out blocks under changed inputs."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.annotations import Annotations, Standardiser
from deepwas.errors import DataWarning, InputError
from deepwas.inputs import VariantInputs, Windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from deepwas.ld import LDStore
    from deepwas.runs import Fit
    from deepwas.training.loop import Point, Trainer
    from deepwas.training.trait import TraitBlocks

__all__ = ["HeldOut", "Section", "open_held_out"]

_TOLERANCE = 0.05  # nats a block, between the run's own scores and those made again


@dataclass(frozen=True)
class Section:
    """What one rotation held out.

    number: of the rotation.  blocks: indices of its test blocks, (n,).  point: its network and noise.
    inputs: of the store's variants, standardised as it was trained.  log_likelihood: (n,), of the blocks, in nats.
    """

    number: int
    blocks: NDArray[np.int64]
    point: Point
    inputs: VariantInputs
    standardiser: Standardiser | None
    log_likelihood: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class HeldOut:
    """A run whose test blocks can be scored again.

    blocks: of the trait.  sections: one a rotation, each made when it is asked for: inputs are large.
    """

    fit: Fit
    store: LDStore
    annotations: Annotations | None
    tracks: Windows | None
    sequence: Windows | None
    blocks: TraitBlocks
    trainer: Trainer

    def sections(self) -> Iterator[Section]:
        """What each rotation held out, with its score; DataWarning if that is not the run's own."""
        numbers = {block.number: i for i, block in enumerate(self.blocks)}
        for record, network, standardiser in zip(
            self.fit.record["rotations"], self.fit.networks, self.fit.standardisers, strict=True
        ):
            if network is None:
                raise InputError(
                    "the constant prior has learned nothing from annotations: nothing is to be interpreted."
                )
            yield self._section(record, network, standardiser, numbers)

    def score(self, section: Section, inputs: VariantInputs) -> NDArray[np.float64]:
        """Log-likelihood of the section's test blocks by its network, from other inputs, (n,), in nats."""
        return self.trainer.log_likelihood(section.point, inputs, section.blocks)

    def _section(
        self, record: dict[str, Any], network: Any, standardiser: Standardiser | None, numbers: dict[int, int]
    ) -> Section:
        from deepwas.training.loop import Point

        learned = self.fit.options.noise is None
        point = Point.of(network, math.log(record["noise"]) if learned else None)
        blocks = np.array([numbers[n] for n in record["test_blocks"]], dtype=np.int64)
        made = Section(record["rotation"], blocks, point, self._inputs(record, standardiser), standardiser)
        found = self.score(made, made.inputs)
        off = np.abs(found - record["test_log_likelihood"]).max()
        if not off < _TOLERANCE:
            warnings.warn(
                f"rotation {record['rotation']}: a test block's log-likelihood is {off:.2g} nats from the one the run "
                "recorded. Are device and version the same?",
                DataWarning,
                stacklevel=3,
            )
        return replace(made, log_likelihood=found)

    def _inputs(self, record: dict[str, Any], standardiser: Standardiser | None) -> VariantInputs:
        count = self.store.n_variants
        values = np.zeros((count, 0), np.float32)
        if standardiser is not None:
            assert self.annotations is not None
            values = standardiser.transform(self.annotations)
        het = None
        if record["network"].get("sizes", {}).get("log_heterozygosity"):
            from deepwas.training.plan import log_heterozygosity

            het = log_heterozygosity(self.store)
        return VariantInputs(values, het, self.tracks, self.sequence)


@contextmanager
def open_held_out(
    fit: Fit,
    store: LDStore,
    annotations: Annotations | None,
    *,
    tracks: Windows | None = None,
    sequence: Windows | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[HeldOut]:
    """Put a run together again. InputError if LD store, annotations, tracks or sequence are not those of the run."""
    _check(fit, store, annotations, tracks, sequence)

    from deepwas.training.loop import Trainer
    from deepwas.training.source import BlockSource
    from deepwas.training.trait import open_trait

    o = fit.options
    keys = ["CHR", "SNP", "BP", "A1", "A2"]
    rows = store.variants.select(keys).with_row_index("VARIANT")
    scored = fit.variants.filter(pl.col("Z").is_not_null()).select(*keys, "Z", "N")
    frame = scored.join(rows, on=keys, how="inner").select(pl.col("VARIANT"), "Z", "N").sort("VARIANT")
    if frame.height != scored.height:
        raise InputError(
            f"{store.path}: {scored.height:,} variants of the run have z-scores, {frame.height:,} are in the LD store. "
            "Give the store that the run was made with."
        )
    with (
        TemporaryDirectory(prefix="deepwas-") as folder,
        open_trait(
            store, frame, cache=Path(folder) / "whitened.h5", factor_dtype=o.factor_dtype, progress=progress
        ) as blocks,
    ):
        source = BlockSource(blocks, factor_dtype=o.factor_dtype, memory_gb=o.memory)
        trainer = Trainer(source, o, n_panel=store.n_samples)
        yield HeldOut(fit, store, annotations, tracks, sequence, blocks, trainer)


def _check(
    fit: Fit, store: LDStore, annotations: Annotations | None, tracks: Windows | None, sequence: Windows | None
) -> None:
    from deepwas.fit_inputs import describe_windows

    inputs = fit.record["inputs"]
    if inputs["ld"]["checksum"] != store.checksum:
        raise InputError(
            f"{store.path}: the run was made with another LD store, {inputs['ld']['file']}. Give that one."
        )
    wanted = inputs["annotations"]
    if (wanted is None) != (annotations is None):
        said = "no annotations" if wanted is None else f"annotations {', '.join(wanted['names'][:10])}"
        raise InputError(f"the run was made with {said}: give just these.")
    if wanted is not None and annotations is not None:
        content = hashlib.sha256(np.ascontiguousarray(annotations.values).tobytes()).hexdigest()
        if list(annotations.names) != wanted["names"] or content != wanted["content"]:
            raise InputError(
                f"annotations {', '.join(annotations.names[:10])}: not what the run was made with, which is "
                f"{', '.join(wanted['names'][:10])} of {', '.join(x['name'] for x in wanted['files'])}. Give these."
            )
    for name, given in (("tracks", tracks), ("sequence", sequence)):
        if (inputs.get(name) is None) != (given is None):
            raise InputError(
                f"the run was made {'without' if inputs.get(name) is None else 'with'} {name}. Give just it."
            )
        if given is not None and describe_windows(given)["content"] != inputs[name]["content"]:
            own = inputs[name]
            raise InputError(
                f"{name}, {tuple(given.shape)}: not what the run was made with, which is {tuple(own['shape'])} from "
                f"{own['file'] or 'an array'}: the content differs. Give that."
            )
