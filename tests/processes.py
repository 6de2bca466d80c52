"""Several processes on this machine that work together over loopback: how the tests start them, and what they run.

As a program: `python -m tests.processes TASK PROCESS COUNT PORT FOLDER`, run by `run_together`. Tasks are the functions
whose names start with `task_`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TIMEOUT = 180.0


@dataclass(frozen=True)
class Ended:
    """How a process ended: exit code (minus the signal that killed it) and what it wrote."""

    code: int
    said: str
    errors: str


def launch(command, *, devices=1, **environment) -> subprocess.Popen:
    """Start one process with so many CPU devices, from the repository's root."""
    known = dict(os.environ) | {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
        "OPENBLAS_NUM_THREADS": "1",
    }
    for name in [n for n in known if n.startswith(("SLURM_", "OMPI_", "JAX_COORDINATOR"))]:
        del known[name]
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=known | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(processes, timeout=TIMEOUT) -> list[Ended]:
    """Wait for all; what still runs after `timeout` is killed, and shows as code -9."""
    ended = []
    for process in processes:
        try:
            said, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            said, errors = process.communicate()
        ended.append(Ended(process.returncode, said, errors))
    return ended


def start_together(task, count, port, folder, *, devices=1, **environment) -> list[subprocess.Popen]:
    """Start `count` processes of a task."""
    command = ("-m", "tests.processes", task)
    return [launch((*command, i, count, port, folder), devices=devices, **environment) for i in range(count)]


def _joined(process, count, port, **options):
    from deepwas.parallel import start

    return start(f"127.0.0.1:{port}", count, process, **({"start_timeout": 60, "heartbeat_timeout": 30} | options))


def _trained(folder: Path) -> dict:
    """Train a small network over all devices, and what came of it."""
    import jax
    import numpy as np

    from deepwas import FitOptions
    from deepwas.inputs import InputSizes, VariantInputs
    from deepwas.network_options import NetworkOptions
    from deepwas.networks import make_network
    from deepwas.parallel import BlockDevices
    from deepwas.training.loop import Trainer
    from deepwas.training.source import BlockSource
    from tests.test_training import trait_blocks

    sizes = [24, 30, 22, 41, 35, 28, 44, 26, 33, 40]
    blocks = trait_blocks(sizes, f=4e-4)
    options = FitOptions(network="mlp", hidden=(4,), solver="cg", steps=12, evaluate_every=4, batch_blocks=4, probes=8)
    devices = BlockDevices()
    source = BlockSource(
        blocks, max_shapes=2, memory_gb=float(os.environ["MEMORY"]), place=devices.place, part=devices.part
    )
    trainer = Trainer(source, options, n_panel=500, devices=devices)
    values = VariantInputs(np.random.default_rng(0).normal(size=(sum(sizes), 3)).astype(np.float32))
    trained = trainer.train(
        make_network(NetworkOptions("mlp", (4,)), InputSizes(3), -7.0),
        1.0,
        values,
        np.arange(7),
        np.arange(7, 9),
        rotation=0,
        constant_variance=4e-4,
        folder=folder if jax.process_index() == 0 else None,
    )
    return {
        "devices": devices.count,
        "last_step": trained.last_step,
        "gain": trained.validation_gain,
        "noise": trained.noise,
        "parameters": [np.asarray(x).tolist() for x in jax.tree.leaves(trained.best.parameters)],
        "held_out": trainer.log_likelihood(trained.best, values, np.array([9, 3, 8])).tolist(),
    }


def task_train(process, count, port, folder):
    """Training over all processes and devices: prints the outcome."""
    if count == 1:
        print(json.dumps(_trained(folder)))
        return
    with _joined(process, count, port):
        print(json.dumps(_trained(folder)))


def main(task, process, count, port, folder):
    globals()[f"task_{task}"](int(process), int(count), int(port), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
