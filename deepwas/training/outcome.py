"""What one rotation found, in memory and in its folder, so that it is never trained or scored again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from numpy.typing import NDArray

from deepwas.annotations import Standardiser
from deepwas.errors import InputError
from deepwas.files import atomic_path, read_json, write_json
from deepwas.options import FitOptions
from deepwas.parallel import BlockDevices
from deepwas.rendezvous import current
from deepwas.training.ensemble import build_network, load_network, save_network
from deepwas.training.journal import remove_checkpoints

__all__ = ["OUTCOME", "PREDICTIONS", "Outcome", "finished_outcomes", "held_out"]

OUTCOME, PREDICTIONS = "outcome.json", "log_f.npy"


@dataclass
class Outcome:
    """One rotation's outcome.

    record: its part of `run.json`.  counts: what its standardiser counted.
    rows: of the store, those whose prior it gives.  log_f: (rows,) float64.
    network, standardiser: what predicts; None for the constant prior, and without annotations.
    """

    record: dict[str, Any]
    rows: slice
    log_f: NDArray[np.float64]
    network: Any = None
    standardiser: Standardiser | None = None
    counts: list[dict[str, Any]] = field(default_factory=list)

    def at(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """log f at these rows of the store."""
        return self.log_f[rows - self.rows.start]

    def save(self, folder: Path) -> None:
        """Write it into the rotation's folder; the record last, which says that all of it is there.

        Checkpoints go then: a large network's take several times its size for each rotation.
        """
        assert self.network is not None
        folder.mkdir(parents=True, exist_ok=True)
        save_network(folder, self.network)
        with atomic_path(folder / PREDICTIONS) as temporary, open(temporary, "wb") as handle:
            np.save(handle, self.log_f, allow_pickle=False)
        write_json(folder / OUTCOME, {"record": self.record, "counts": self.counts, "start": self.rows.start})
        remove_checkpoints(folder)

    @classmethod
    def load(cls, folder: Path, options: FitOptions) -> Outcome:
        """Read a finished rotation. InputError if its files do not fit together."""
        found = read_json(folder / OUTCOME, "the outcome of a rotation")
        try:
            record, start = found["record"], int(found["start"])
            log_f = np.load(folder / PREDICTIONS, allow_pickle=False)
            content = record["network"]
            given = content["standardiser"]
        except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise InputError(
                f"{folder}: its outcome is damaged ({error}). Remove this folder to train the rotation again."
            ) from error
        return cls(
            record,
            slice(start, start + len(log_f)),
            log_f,
            load_network(folder, options, content),
            None if given is None else Standardiser.from_dict(given),
            found["counts"],
        )


def finished_outcomes(folders: Mapping[int, Path | None], options: FitOptions) -> dict[int, Outcome]:
    """The finished ones of these rotations, by number.

    Of several processes the first reads them, and sends the others record and network; their log_f is empty.
    """
    found: dict[int, Outcome] = {}
    for r, folder in folders.items():
        if folder is not None and (folder / OUTCOME).is_file():
            found[r] = Outcome.load(folder, options)
    group = current()
    known = group.from_first("finished rotations", [[r, x.record, x.counts] for r, x in found.items()])
    if group.count == 1 or not known:
        return found
    devices = BlockDevices()
    out: dict[int, Outcome] = {}
    for r, record, counts in known:
        content = record["network"]
        given = content["standardiser"]
        own = found.get(r) or Outcome(
            record,
            slice(0, 0),
            np.empty(0),
            build_network(options, content),
            None if given is None else Standardiser.from_dict(given),
            counts,
        )
        graph, state = nnx.split(own.network)
        own.network = nnx.merge(graph, devices.local(devices.of_first(state)))
        out[r] = own
    return out


def held_out(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Log-likelihood of blocks that neither training nor early stopping saw, over that of the constant prior."""
    blocks = np.concatenate([x.record["test_blocks"] for x in outcomes]).astype(int)
    model = np.concatenate([x.record["test_log_likelihood"] for x in outcomes])
    null = np.concatenate([x.record["test_log_likelihood_constant"] for x in outcomes])
    gain = model - null
    count = len(gain)
    error = float(np.sqrt(count) * np.std(gain, ddof=1)) if count > 1 else None
    return {
        "blocks": blocks.tolist(),
        "log_likelihood": float(model.sum()),
        "log_likelihood_constant": float(null.sum()),
        "gain": float(gain.sum()),
        "standard_error": error,
        "gain_by_block": gain.tolist(),
    }
