"""One rotation: its constant prior, the training of its network or ensemble, its score on what was held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepwas.annotations import Standardiser
from deepwas.inputs import VariantInputs, Windows
from deepwas.networks import centre_heterozygosity, make_network, predict_log_variance, with_trunk
from deepwas.options import FitOptions
from deepwas.training.baseline import ScaleFit
from deepwas.training.ensemble import EnsemblePrior, member_folder, members_of, trait_of
from deepwas.training.loop import Trainer
from deepwas.training.outcome import Outcome
from deepwas.training.sections import Rotation
from deepwas.training.state import Point, Trained

__all__ = ["RotationTask", "TraitPart", "rows_of_inputs"]

Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class TraitPart:
    """What a rotation is for one trait.

    blocks: indices of the trait's training, validation and test blocks.  base: its constant prior.
    record: its part of `run.json` so far.  rows: of the store, those whose prior it is to give.
    """

    blocks: Rotation
    base: ScaleFit
    record: dict[str, Any]
    rows: slice


@dataclass(frozen=True)
class RotationTask:
    """What a rotation starts from.

    number: of the rotation.  traits: in the order of the trainer's sources.  standardiser: None without annotations.
    fitted: rows of the variants that training blocks score, of any trait.
    """

    number: int
    traits: Sequence[TraitPart]
    standardiser: Standardiser | None
    fitted: np.ndarray

    def train(
        self,
        trainer: Trainer,
        inputs: VariantInputs,
        *,
        folder: Path | None,
        progress: Advance | None = None,
        tensorboard: bool = False,
        start: Any = None,
    ) -> list[Outcome]:
        """Train the networks from the constant prior, and score each trait's test blocks, once.

        trainer: of a `BlockSource` for one trait, of `TraitSources` for several.
        folder: the rotation's own; None keeps all in memory.
        start: None, or a network of the same options and inputs whose trunk, the part that traits share, is taken over.
        """
        o = trainer.options
        first = getattr(trainer.source, "first", [0])
        used = [(x.blocks, int(begin)) for x, begin in zip(self.traits, first, strict=False)]
        members: list[Trained] = []
        for e in range(o.ensemble):
            members.append(
                trainer.train(
                    self._network(o, inputs, e, start),
                    [x.base.noise for x in self.traits],
                    inputs,
                    np.concatenate([blocks.train + begin for blocks, begin in used]),
                    np.concatenate([blocks.validation + begin for blocks, begin in used]),
                    rotation=self.number,
                    constant_variance=[float(np.exp(x.base.log_scale)) for x in self.traits],
                    folder=None if folder is None else member_folder(folder, e),
                    progress=_part(progress, e, o.ensemble),
                    member=e,
                    learning_rate=members[0].learning_rate if members else None,
                    tensorboard=tensorboard,
                )
            )
        noise = np.mean([np.broadcast_to(x.noises, len(self.traits)) for x in members], axis=0)
        found = members[0].best.network()
        point = members[0].best
        if o.ensemble > 1:
            found = EnsemblePrior([x.best.network() for x in members])
            point = Point.of(found, np.log(noise) if o.noise is None else None)
        out = []
        log_f: dict[tuple[int, int], np.ndarray] = {}
        for t, (part, (blocks, begin)) in enumerate(zip(self.traits, used, strict=True)):
            # Both in the same arithmetic, so that a network that never moved gains exactly 0.
            before = trainer.log_likelihood(members[0].start, inputs, blocks.test + begin)
            after = trainer.log_likelihood(point, inputs, blocks.test + begin)
            record = part.record | {
                "network": self._network_record(inputs, members, t),
                "noise": float(noise[t]),
                "test_log_likelihood_constant": before.tolist(),
                "test_log_likelihood": after.tolist(),
            }
            place = (part.rows.start, part.rows.stop)
            if place not in log_f:
                log_f[place] = predict_log_variance(found, rows_of_inputs(inputs, part.rows))
            own = found if len(self.traits) == 1 else trait_of(found, t)
            out.append(Outcome(record, part.rows, log_f[place][:, t], own, self.standardiser))
        return out

    def _network(self, o: FitOptions, inputs: VariantInputs, member: int, start: Any) -> Any:
        seed = o.seed * 1000 + self.number
        if member:
            seed = int(np.random.SeedSequence([o.seed, self.number, member]).generate_state(1)[0])
        names = () if self.standardiser is None else self.standardiser.output_names
        network = make_network(o, inputs.sizes, [x.base.log_scale for x in self.traits], seed=seed, names=names)
        if start is not None:
            network = with_trunk(network, members_of(start)[member % len(members_of(start))])
        if inputs.log_heterozygosity is not None:
            centre_heterozygosity(network, inputs.log_heterozygosity[self.fitted])
        return network

    def _network_record(self, inputs: VariantInputs, members: list[Trained], t: int) -> dict[str, Any]:
        first, tracks = members[0], inputs.sizes.tracks
        several = len(members) > 1
        events = [(f"network {e}: " if several else "") + text for e, x in enumerate(members) for text in x.events]
        waiting = [x.waiting for x in members if x.waiting is not None]
        return {
            "log_base": self.traits[t].base.log_scale,
            "inputs": [] if self.standardiser is None else list(self.standardiser.output_names),
            "sizes": asdict(inputs.sizes) | {"tracks": None if tracks is None else list(tracks)},
            "standardiser": None if self.standardiser is None else self.standardiser.as_dict(),
            "best_step": first.best_step,
            "last_step": first.last_step,
            "validation_gain": first.validation_gain,
            "learning_rate": first.learning_rate,
            "waiting": float(np.mean(waiting)) if waiting else None,
            "members": [
                {
                    "best_step": x.best_step,
                    "last_step": x.last_step,
                    "validation_gain": x.validation_gain,
                    "noise": x.noises[min(t, len(x.noises) - 1)],
                }
                for x in members
            ],
            "events": events,
        }


@dataclass(frozen=True)
class _Some:
    """A run of rows of windows, read when asked for."""

    whole: Windows
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.whole.shape[1:])

    @property
    def dtype(self) -> Any:
        return self.whole.dtype

    def __getitem__(self, rows: slice, /) -> Any:
        first, last, _ = rows.indices(self.stop - self.start)
        return self.whole[self.start + first : self.start + last]


def rows_of_inputs(inputs: VariantInputs, rows: slice) -> VariantInputs:
    """The inputs of some variants, (rows.start, rows.stop), without reading windows."""

    def some(windows: Windows | None) -> Windows | None:
        return None if windows is None else _Some(windows, rows.start, rows.stop)

    het = inputs.log_heterozygosity
    return VariantInputs(
        inputs.annotations[rows], None if het is None else het[rows], some(inputs.tracks), some(inputs.sequence)
    )


def _part(progress: Advance | None, e: int, count: int) -> Advance | None:
    """Progress of one of several trainings, as a part of all of them."""
    if progress is None:
        return None
    return lambda done, total: progress(e * total + done, count * total)
