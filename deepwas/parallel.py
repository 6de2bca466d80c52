"""Data parallel work over LD blocks: all devices of one process, or of several processes on one or more hosts.

Blocks are independent given the network, so a minibatch's blocks are split over the devices, each device solves its
own (in its own number of CG steps), and the gradient is summed once at the end. Parameters are the same everywhere.
What training decides on (losses, gains, residuals) comes out of sums over devices, hence is the same number in every
process, and they stay in step without messages of their own.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deepwas.errors import DeepwasError, InputError
from deepwas.rendezvous import Group, free_port, join, set_current

__all__ = ["AXIS", "BlockDevices", "start"]

AXIS = "blocks"
_SPLIT, _SAME = PartitionSpec(AXIS), PartitionSpec()


@contextmanager
def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    start_timeout: float = 300.0,
    heartbeat_timeout: float = 60.0,
) -> Iterator[Group]:
    """Join this process to the others of a distributed run, for the duration of a `with` block.

        with deepwas.parallel.start("node1:4321", num_processes=2, process_id=0):
            deepwas.fit(...)

    Every process runs the same code with the same inputs. Call it before anything of JAX runs.

    coordinator: "host:port", where process 0 listens.  num_processes, process_id: how many, and which one this is, from
    0. What is None comes from the cluster's environment, as JAX reads it (Slurm, Open MPI, Kubernetes, TPU).
    start_timeout: seconds for all processes to come.
    heartbeat_timeout: seconds of silence after which a process counts as lost.

    When another process fails or is lost, this one prints which and why, and exits with a code that is not 0; when the
    `with` block raises, the others are told the error, and do likewise. Raises InputError for wrong or missing options,
    DeepwasError if not all processes come in time.
    """
    host, port, count, process, local_devices = _place(coordinator, num_processes, process_id, start_timeout)
    group = join(host, port, count, process, start_timeout=start_timeout, heartbeat_timeout=heartbeat_timeout)
    try:
        set_current(group)
        _initialize(group, host, local_devices, start_timeout, heartbeat_timeout)
        yield group
        group.close()
    except BaseException as error:
        _await_cause(error)
        code = 2 if isinstance(error, InputError) else 130 if isinstance(error, KeyboardInterrupt) else 1
        group.fail(str(error) if isinstance(error, DeepwasError) else repr(error), code)
        # JAX would wait at exit for processes that are gone.
        atexit.register(_leave, code)
        raise
    finally:
        set_current(None)
    jax.distributed.shutdown()


def _place(
    coordinator: str | None, count: int | None, process: int | None, timeout: float
) -> tuple[str, int, int, int, Any]:
    """Host, port, number of processes, which one this is, and the devices that are its own (None for all)."""
    local_devices = None
    if coordinator is None or count is None or process is None:
        # JAX has no public way to ask what it would detect without starting.
        from jax._src.clusters import ClusterEnv

        coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
        coordinator, count, process, local_devices = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, count, process, None, None, int(timeout)
        )
    given = {"--coordinator HOST:PORT": coordinator, "--num-processes N": count, "--process-id I": process}
    missing = [name for name, value in given.items() if value is None]
    if coordinator is None or count is None or process is None:
        raise InputError(
            f"distributed: no cluster environment (Slurm, Open MPI, Kubernetes, TPU) was found that gives "
            f"{', '.join(missing)}. Give these options (coordinator, num_processes, process_id)."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(
            f"coordinator {coordinator!r}: give process 0's host and a free port on it, such as node1:4321."
        )
    if count < 1 or not 0 <= process < count:
        raise InputError(f"process {process} of {count}: --process-id counts from 0 to one below --num-processes.")
    return host, int(port), count, process, local_devices


def _initialize(group: Group, host: str, local_devices: Any, start_timeout: float, heartbeat_timeout: float) -> None:
    """Start JAX's own service, on a port that process 0 chooses; its heartbeats are the slower, so that ours speak."""
    # Else SIGTERM, by which clusters end jobs, would be held back.
    jax.config.update("jax_enable_preemption_service", False)
    address = group.from_first("address of JAX's service", f"{host}:{free_port()}" if group.first else None)
    try:
        jax.distributed.initialize(
            address,
            group.count,
            group.process,
            local_device_ids=local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=max(int(start_timeout), 1),
            heartbeat_timeout_seconds=int(2 * heartbeat_timeout) + 10,
            shutdown_timeout_seconds=30,
        )
    except RuntimeError as error:
        raise DeepwasError(
            f"JAX's distributed service could not start at {address} ({error}). Call deepwas.parallel.start before "
            "anything of JAX runs, and once in a process; see that processes can reach each other on any port."
        ) from error
    devices = {"kind": jax.devices()[0].platform, "number": jax.local_device_count(), "jax": jax.__version__}
    group.agree("their devices", devices)


def _await_cause(error: BaseException) -> None:
    """A failed collective is how this thread hears of a lost process; the watching thread knows more, and exits."""
    if not isinstance(error, DeepwasError | KeyboardInterrupt | SystemExit):
        time.sleep(2)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class BlockDevices:
    """A line of devices along which the blocks of a batch are split.

    devices: by default all of JAX's, of all processes; each process must have the same number.

    count: number of devices.  processes: number of processes that own them.  With one device every method leaves
    things as they are, and nothing is compiled differently.
    """

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        found = sorted(jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id))
        self.count = len(found)
        self.processes = len({d.process_index for d in found})
        self.mesh = Mesh(np.array(found), (AXIS,))
        self._split = NamedSharding(self.mesh, _SPLIT)
        self._same = NamedSharding(self.mesh, _SAME)

    def padded(self, size: int) -> int:
        """The least multiple of the number of devices that holds `size` blocks."""
        return -(-size // self.count) * self.count

    @property
    def part(self) -> tuple[int, int]:
        """(i, n): this process loads the i-th of n equal parts of each batch."""
        return (jax.process_index(), self.processes) if self.processes > 1 else (0, 1)

    @property
    def place(self) -> Callable[[Any], Any] | None:
        """What puts this process's part of a batch (NumPy arrays, blocks first) on the devices; None for JAX's way.

        Nothing is sent between processes, so that a background thread may call it.
        """
        return self.split if self.count > 1 else None

    def split(self, tree: Any) -> Any:
        """Host arrays of this process's own blocks, as global arrays split along their first axis."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._split, np.asarray(x)), tree)

    def same(self, tree: Any) -> Any:
        """Arrays that all processes hold alike, as global arrays, whole on every device."""
        if self.count == 1:
            return tree
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._same, np.asarray(x)), tree)

    def of_first(self, tree: Any) -> Any:
        """Process 0's arrays, whole on every device; the others give arrays of the same shapes.

        For what was read from files, or computed on hosts whose arithmetic may differ in the last bit.
        """
        if self.processes > 1:
            from jax.experimental.multihost_utils import broadcast_one_to_all

            tree = broadcast_one_to_all(jax.tree.map(np.asarray, tree))
        return self.same(tree)

    def local(self, tree: Any) -> Any:
        """Arrays that are whole on every device, as arrays of this process alone."""
        return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), tree) if self.processes > 1 else tree

    def compile(self, function: Callable[..., Any], **options: Any) -> Any:
        """`jax.jit`, its results whole on every device."""
        return (
            jax.jit(function, **options) if self.count == 1 else jax.jit(function, out_shardings=self._same, **options)
        )

    def spread(self, function: Callable[..., Any], *split: bool) -> Callable[..., Any]:
        """`function` on every device, given its own part of the arguments that are split and the whole of the others.

        Its results must be alike on all devices: made by `total`, `greatest` or `joined`.
        """
        if self.count == 1:
            return function
        specs = tuple(_SPLIT if s else _SAME for s in split)
        # check_vma would put a sum of its own into the gradient at each use of a parameter; one at the end is enough.
        return jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=_SAME, check_vma=False)

    def total(self, tree: Any) -> Any:
        """Inside `spread`: sums over devices."""
        return tree if self.count == 1 else jax.lax.psum(tree, AXIS)

    def greatest(self, tree: Any) -> Any:
        """Inside `spread`: maxima over devices."""
        return tree if self.count == 1 else jax.lax.pmax(tree, AXIS)

    def joined(self, tree: Any) -> Any:
        """Inside `spread`: the parts of all devices, put together along their first axis."""
        return tree if self.count == 1 else jax.lax.all_gather(tree, AXIS, tiled=True)
