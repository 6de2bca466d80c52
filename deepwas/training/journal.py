"""A training run on disk, so that it survives interruption at any moment."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from deepwas.errors import DeepwasError
from deepwas.files import read_json, write_json
from deepwas.training.checkpoints import Checkpoints, Metrics
from deepwas.training.state import State

__all__ = ["CHECKPOINTS", "EVENTS", "Journal", "remove_checkpoints"]

CHECKPOINTS, EVENTS = "checkpoints", "events.json"


class Journal:
    """Metrics, events and checkpoints of one network's training, in `folder`.

    Metrics and events are written before the checkpoint of their step; what is newer than the newest checkpoint is cut
    off on resuming, and made again.
    tensorboard: write the metrics for TensorBoard as well, into folder/tensorboard.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.checkpoints = Checkpoints(folder / CHECKPOINTS)
        self.metrics: Metrics | None = None
        self._tensorboard = tensorboard
        self._board: Any = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.metrics is not None:
            self.metrics.close()
        if self._board is not None:
            self._board.close()
        self.checkpoints.close()

    def resume(self, state: State) -> None:
        """Bring `state` to the newest checkpoint, if there is one, and open the metrics after it."""
        latest = self.checkpoints.latest()
        if latest is not None:
            try:
                state.restore(latest, self.checkpoints.restore(latest, state.tree()))
            except (ValueError, KeyError, OSError) as error:
                raise DeepwasError(
                    f"{self.checkpoints.folder}: the checkpoint of step {latest} cannot be read ({error}). It is "
                    f"damaged, or of another version of deepwas. Remove {self.folder} to train this network again."
                ) from error
            events = read_json(self.folder / EVENTS, "the events of a training run")
            state.events = [(step, text) for step, text in events if step <= latest]
        self.metrics = Metrics(self.folder / "metrics.csv", resume_after=latest)
        for step, gain in self.metrics.gains:
            if gain > state.best_value:
                state.best_value, state.best_step = gain, step
        if self._tensorboard:
            from tensorboardX import SummaryWriter

            # What was written after the checkpoint is made again, and not shown twice.
            self._board = SummaryWriter(
                str(self.folder / "tensorboard"), purge_step=None if latest is None else latest + 1
            )

    def add(self, state: State, row: dict[str, Any], *, keep: bool) -> None:
        """Write one evaluation and, to keep it, the checkpoint that makes it permanent."""
        assert self.metrics is not None
        self.metrics.add(**row)
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, float):
                    self._board.add_scalar(name, value, row["step"])
            self._board.flush()
        if keep:
            write_json(self.folder / EVENTS, state.events)
            self.checkpoints.save(state.step, state.tree())


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a rotation's networks, which have been trained."""
    for own in (folder, *folder.glob("member_*")):
        shutil.rmtree(own / CHECKPOINTS, ignore_errors=True)
