"""Where training takes its minibatches from: blocks in memory, or blocks that stream through it.

A trait whose factors fit the memory allowed is held: in host memory where that is what the device computes from, else
padded on the device. A larger one streams: a background thread loads, encodes, pads and transfers batches ahead of
use, so that memory is set by the batches in flight, not by the genome. Every way gives the same arrays.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.inputs import VariantInputs
from deepwas.likelihood.factor import Factor, FactorDtype
from deepwas.training.packing import (
    Bucket,
    encode_block,
    pack,
    padded_shape,
    plan_shapes,
)
from deepwas.training.trait import TraitBlock

__all__ = ["AHEAD", "Batch", "BlockSource", "Minibatch", "prefetch"]

T = TypeVar("T")
U = TypeVar("U")

_CHUNK = 4  # blocks sent to the device at a time, where it is to hold all
AHEAD = 2  # batches ready before they are asked for; one more is being made, and one is in use


class Minibatch(NamedTuple):
    """Which blocks make up a step, all of one shape.

    bucket: number of the shape.  members: (B,), indices of blocks.  weight: (B,), 0 for those that only fill up.
    """

    bucket: int
    members: NDArray[np.int64]
    weight: NDArray[np.float32]


class Batch(NamedTuple):
    """The arrays of a minibatch: of NumPy while it is made, then on the device.

    blocks: B blocks of one shape.  inputs: `Inputs` of (B, m, ...), 0 in the padding.  weight: (B,).
    trait: (B,), the number of the trait, the same for all.
    """

    blocks: Bucket
    inputs: Any
    weight: Any
    trait: Any


class BlockSource:
    """The blocks of one trait, and their minibatches as arrays on the device.

    blocks: in memory, or `TraitBlocks`, whose factors are read when they are needed.
    factor_dtype: of the factors held, and read by the solver; see `deepwas.likelihood.factor`.
    memory_gb: memory that the factors may take where they are held, in 10^9 bytes. Beyond it they stream. None: half of
        what is free on the host now, or 80% on the device; without limit where the system does not tell.
    max_shapes: padded shapes at most; each is compiled.
    hold: where factors within `memory_gb` are held: 'host' or 'device', None for the host on a CPU, else the device.
    place: called with a `Batch` of NumPy arrays, returns it on the devices; None for the default device.
    trait: number of the trait among those of a network.  share: of the free memory that is this source's, where
        `memory_gb` does not say.
    part: (i, n): make only the i-th of n equal parts of each batch, for `place` to put together with the others.

    members: per shape, indices of its blocks.  shapes: (k, m) after padding.  eigenvalues: (n_blocks,), k of each.
    needed: bytes of all factors.  streaming: whether they were too many.
    """

    def __init__(
        self,
        blocks: Sequence[TraitBlock],
        *,
        factor_dtype: FactorDtype = "float32",
        memory_gb: float | None = None,
        max_shapes: int = 4,
        hold: Literal["host", "device"] | None = None,
        place: Callable[[Batch], Batch] | None = None,
        part: tuple[int, int] = (0, 1),
        trait: int = 0,
        share: float = 1.0,
    ):
        if memory_gb is not None and not memory_gb >= 0:
            raise InputError(f"memory is {memory_gb} GB; give 0 (always stream) or more.")
        sizes = [b.shape for b in blocks]
        groups = plan_shapes(sizes, max_shapes=max_shapes)
        self.blocks = blocks
        self.trait = trait
        self.factor_dtype: FactorDtype = factor_dtype
        self.members = [np.array(group) for group in groups]
        self.shapes = [padded_shape([sizes[i] for i in group]) for group in groups]
        self.eigenvalues = np.array([k for k, _ in sizes])
        self._rows = [b.rows for b in blocks]
        self._position = np.zeros(len(blocks), np.int32)
        for group in self.members:
            self._position[group] = np.arange(len(group))
        # Parts of a batch are put together from host arrays, so whoever places them holds nothing on the device.
        where = hold or ("host" if place is not None or jax.default_backend() == "cpu" else "device")
        held = self.shapes if where == "device" else None
        padded = [k * m * len(g) for (k, m), g in zip(self.shapes, self.members, strict=True)]
        self.needed = np.dtype(factor_dtype).itemsize * (sum(padded) if held else sum(k * m for k, m in sizes))
        allowed = share * _free_bytes(where) if memory_gb is None else 1e9 * memory_gb
        self.streaming = self.needed > allowed
        self._on_device = where == "device" and not self.streaming
        self._place = place or jax.device_put
        self._part = part
        self._held: dict[int, tuple[TraitBlock, Factor]] = {}
        self._buckets: dict[int, Bucket] = {}

    def batches(
        self, plan: Iterable[Minibatch], inputs: VariantInputs
    ) -> Generator[tuple[Minibatch, Batch], None, None]:
        """The minibatches of a plan, in its order, with their arrays.

        inputs: of the store's variants; rows are gathered batch by batch, ahead of use where they are in a file.
        Close the generator (`contextlib.closing`) to leave early: it ends the thread, if there is one. What fails in
        the thread is raised here.
        """

        def make(item: Minibatch) -> tuple[Minibatch, Batch]:
            return item, self.make(item, inputs)

        if self.streaming or inputs.in_file:
            yield from prefetch(make, plan, ahead=AHEAD)
        else:
            yield from map(make, plan)

    def make(self, item: Minibatch, inputs: VariantInputs) -> Batch:
        """The arrays of one minibatch."""
        index, count = self._part
        members = item.members.reshape(count, -1)[index]
        weight = item.weight.reshape(count, -1)[index]
        shape = self.shapes[item.bucket]
        trait = np.full(len(members), self.trait, np.int32)
        found = inputs.gather([self._rows[i] for i in members], shape[1])
        if not self._on_device:
            return self._place(Batch(self._pack(members, shape), found, weight, trait))
        if item.bucket not in self._buckets:
            self._buckets[item.bucket] = self._send(self.members[item.bucket], shape)
        blocks = _take(self._buckets[item.bucket], self._position[members])
        return Batch(blocks, *jax.device_put((found, weight, trait)))

    def _pack(self, members: NDArray[np.int64], shape: tuple[int, int]) -> Bucket:
        some = {i: self._load(i) for i in dict.fromkeys(members.tolist())}
        return pack(members.tolist(), [some[i] for i in members.tolist()], shape)

    def _send(self, members: NDArray[np.int64], shape: tuple[int, int]) -> Bucket:
        """All blocks of one shape, on the device, without ever being all on the host."""
        size = min(_CHUNK, len(members))
        bucket: Bucket | None = None
        for first in range(0, len(members), size):
            row = min(first, len(members) - size)
            part = self._pack(members[row : row + size], shape)
            if bucket is None:
                bucket = jax.tree.map(lambda x: jnp.zeros((len(members), *x.shape[1:]), x.dtype), part)
            bucket = _put(bucket, part, np.int32(row))
        assert bucket is not None
        return bucket

    def _load(self, i: int) -> tuple[TraitBlock, Factor]:
        if i in self._held:
            return self._held[i]
        block = self.blocks[i]
        loaded = block, encode_block(block, self.factor_dtype)
        if not self.streaming and not self._on_device:
            self._held[i] = loaded
        return loaded


@jax.jit
def _take(bucket: Bucket, rows: Array) -> Bucket:
    return jax.tree.map(lambda x: x[rows], bucket)


@partial(jax.jit, donate_argnums=0)
def _put(bucket: Bucket, part: Bucket, row: Array) -> Bucket:
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, row, 0), bucket, part)


def prefetch(make: Callable[[T], U], items: Iterable[T], *, ahead: int) -> Generator[U, None, None]:
    """make(item) of every item, in order, made by a background thread up to `ahead` results early.

    An exception in the thread is raised here, in its place in the order. The thread has ended when the generator has:
    exhausted, failed, or closed.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def work() -> None:
        try:
            for item in items:
                if stop.is_set():
                    return
                ready.put((True, make(item)))
            ready.put((False, None))
        except BaseException as error:  # whatever it is, the main thread must not wait for ever
            ready.put((False, error))

    thread = threading.Thread(target=work, name="deepwas-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            more, result = ready.get()
            if more:
                yield result
            elif result is None:
                return
            else:
                raise result
    finally:
        stop.set()
        while thread.is_alive():
            with suppress(queue.Empty):  # makes room, should the thread wait for it
                ready.get_nowait()
            thread.join(0.01)


def _free_bytes(where: str) -> float:
    """The share of the memory free on the host or the device that factors may take; infinite if that is not known."""
    if where == "device":
        device = jax.local_devices()[0]
        found = device.memory_stats() or {}
        if "bytes_limit" in found:
            return 0.8 * (found["bytes_limit"] - found["bytes_in_use"])
        if device.platform != "cpu":
            return float("inf")
    free = float("inf")
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = 1024 * float(line.split()[1])
    with suppress(OSError, ValueError):  # a container's own limit; "max" where there is none
        group = Path("/sys/fs/cgroup")
        free = min(free, float((group / "memory.max").read_text()) - float((group / "memory.current").read_text()))
    return 0.5 * free
