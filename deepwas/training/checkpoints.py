"""Saving and restoring training state with Orbax, and the metrics table beside it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

__all__ = ["Checkpoints", "Metrics", "load_tree", "save_tree"]


class Checkpoints:
    """The newest states of one training run, in `folder`. Orbax writes each beside and renames it into place.

    A state is a pytree of arrays; the step is its name.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        import orbax.checkpoint as ocp

        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=False,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(**_alone()),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Write a state; returns when it is on disk."""
        import orbax.checkpoint as ocp

        self._manager.save(step, args=ocp.args.StandardSave(_on_host(state)))
        self._manager.wait_until_finished()

    def restore(self, step: int, like: Any) -> Any:
        """Read the state of a step into the structure, shapes and dtypes of `like`."""
        import jax
        import orbax.checkpoint as ocp

        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _on_host(like))
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def close(self) -> None:
        """Release the manager's threads."""
        self._manager.close()


def save_tree(folder: Path, tree: Any) -> None:
    """Write one pytree of arrays to a folder of its own, replacing what is there."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer(multiprocessing_options=ocp.options.MultiprocessingOptions(**_alone())) as writer:
        writer.save(folder.resolve(), _on_host(tree), force=True)


def load_tree(folder: Path, like: Any) -> Any:
    """Read what `save_tree` wrote into the structure of `like`."""
    import jax
    import orbax.checkpoint as ocp

    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _on_host(like))
    with ocp.StandardCheckpointer(multiprocessing_options=ocp.options.MultiprocessingOptions(**_alone())) as reader:
        return reader.restore(folder.resolve(), abstract)


def _on_host(tree: Any) -> Any:
    """As NumPy arrays, which one process can write by itself."""
    import jax
    import numpy as np

    return jax.tree.map(np.asarray, tree)


def _alone() -> dict[str, Any]:
    """Of several processes one writes and reads, without the others: Orbax would wait for them."""
    import jax

    if jax.process_count() == 1:
        return {}
    here = jax.process_index()
    return {"primary_host": here, "active_processes": {here}, "barrier_sync_key_prefix": f"process{here}"}


class Metrics:
    """A CSV table of training metrics that survives interruption: one row an evaluation, flushed as it is written.

    gains: (step, validation gain) of the rows kept from before an interruption.
    """

    COLUMNS = (
        "step",
        "train_loss",
        "validation_log_likelihood",
        "validation_gain",
        "noise",
        "learning_rate",
        "gradient_norm",
        "residual",
        "solver",
        "waiting",
    )

    def __init__(self, path: Path, *, resume_after: int | None):
        """Start the table at `path`; to resume after a checkpoint, keep the rows up to its step."""
        kept: list[list[str]] = []
        if resume_after is not None and path.exists():
            with open(path, newline="", encoding="utf-8") as handle:
                rows = list(csv.reader(handle))[1:]
            kept = [r for r in rows if len(r) == len(self.COLUMNS) and int(r[0]) <= resume_after]
        gain = self.COLUMNS.index("validation_gain")
        self.gains = [(int(r[0]), float(r[gain])) for r in kept]
        partial = path.with_name(f".{path.name}.partial")
        with open(partial, "w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(self.COLUMNS)
            writer.writerows(kept)
        partial.replace(path)
        self._handle = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._writer = csv.writer(self._handle)

    def add(self, **values: Any) -> None:
        """Append one row."""
        self._writer.writerow([_text(values[name]) for name in self.COLUMNS])
        self._handle.flush()

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)
