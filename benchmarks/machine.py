"""What this machine can do: bandwidths, matrix-product rates, and times that are compared within one run.

An achieved rate says little without the rate that was possible. Bandwidths and rates are the best of several tries;
times of contenders are interleaved, so that whatever slows the machine for a while slows them all.
"""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

__all__ = ["THREADS", "exponent", "interleaved", "measure_machine", "peak_rss", "read_bandwidth"]

THREADS = 2
_GIB = 2**30


def measure_machine(quick: bool = False) -> dict[str, Any]:
    """Bandwidths, in GB/s (1e9 bytes), and matrix-product rates, in GFLOP/s, of JAX's default device.

    copy_gb_s: x to y, its bytes counted as read and written, arrays far larger than any cache.
    read_gb_s: the sum or the squared length of one such array.
    matmul: by library and dtype; square products, 2 n^3 operations.
    On CPU everything runs on `THREADS` threads. On a GPU the products are XLA's, float32 once in full precision.
    """
    import jax

    backend = jax.default_backend()
    found: dict[str, Any] = {"backend": backend, "device": jax.devices()[0].device_kind}
    if backend == "cpu":
        size = _GIB // 16 if quick else _GIB // 2
        found |= {"device": _processor(), "threads": THREADS, "array_bytes": size}
        found |= {"copy_gb_s": _cpu_copy(size), "read_gb_s": read_bandwidth(size)}
        products = {f"numpy_{kind}": _numpy_product(kind, 500 if quick else 2000) for kind in ("float32", "float64")}
        n = 500 if quick else 2000
    else:
        size = 2 * _GIB
        found |= {"array_bytes": size, "copy_gb_s": _device_copy(size), "read_gb_s": _device_read(size)}
        products, n = {"xla_float16": _xla_product("float16", 8000, "default")}, 8000
    products |= {f"xla_{kind}": _xla_product(kind, n, "highest") for kind in ("float32", "float64")}
    return found | {"matmul_gflop_s": products}


def read_bandwidth(size: int) -> float:
    """GB/s at which `THREADS` threads of this processor read an array of `size` bytes over and over.

    An array that fits a cache is read from there, so a product with a matrix of that size is bound by this and not by
    the memory. Read as single-precision dot products of halves with themselves.
    """
    from threadpoolctl import threadpool_limits

    count = max(size // 4, 2 * THREADS)
    parts = np.array_split(np.ones(count, np.float32), THREADS)
    times = max(1, int(2e8 // size))

    def many(part: Any) -> None:
        for _ in range(times):
            np.dot(part, part)

    with threadpool_limits(1), ThreadPoolExecutor(THREADS) as pool:
        return 4e-9 * count * times / _best(lambda: list(pool.map(many, parts)), 9)


def interleaved(
    contenders: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 5,
    share: float = 0.3,
    most: int = 25,
    before: Callable[[str], Any] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every call of every contender, in turns: `rounds` of them, each one visiting all contenders.

    A contender is called again and again within its turn until that has lasted `share` seconds, at most `most` times,
    and at least once; with one more call before, untimed, because the last contender left its data in the caches.
    A contender whose call lasts longer than `share` goes without that. Calls must wait for their own result, and have
    been warmed up.  before: called with a contender's name as its turn begins.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            known = seconds[name]
            if before is not None:
                before(name)
            if not known or known[-1] < share:
                call()
            turn = 0.0
            for _ in range(most):
                begun = time.perf_counter()
                call()
                known.append(time.perf_counter() - begun)
                turn += known[-1]
                if turn >= share:
                    break
    return seconds


def exponent(sizes: Any, seconds: Any) -> float:
    """b of seconds = a sizes^b, by least squares of the logarithms."""
    return float(np.polyfit(np.log(np.asarray(sizes, float)), np.log(np.asarray(seconds, float)), 1)[0])


def peak_rss() -> int:
    """Largest resident set of this process so far, bytes."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else 1024 * found


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo") as handle:
            for line in handle:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _best(call: Callable[[], Any], tries: int) -> float:
    call()
    seconds = []
    for _ in range(tries):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def _cpu_copy(size: int) -> float:
    source = np.array_split(np.ones(size, np.uint8), THREADS)
    target = np.array_split(np.zeros(size, np.uint8), THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        return 2e-9 * size / _best(lambda: list(pool.map(np.copyto, target, source)), 9)


def _numpy_product(kind: str, n: int) -> float:
    from threadpoolctl import threadpool_limits

    a, out = np.ones((n, n), kind), np.empty((n, n), kind)
    with threadpool_limits(THREADS):
        return 2e-9 * n**3 / _best(partial(np.matmul, a, a, out), 7)


def _xla_product(kind: str, n: int, precision: str) -> float:
    """Float16 products are accumulated in float32."""
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(kind == "float64"):
        kept = jnp.float32 if kind == "float16" else kind
        product = jax.jit(lambda x: jnp.matmul(x, x, precision=precision, preferred_element_type=kept))
        a = jnp.ones((n, n), kind)
        return 2e-9 * n**3 / _best(lambda: jax.block_until_ready(product(a)), 7)


def _device_copy(size: int) -> float:
    import jax
    import jax.numpy as jnp

    x = jnp.ones(size // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2e-9 * size / _best(lambda: jax.block_until_ready(copy(x)), 15)


def _device_read(size: int) -> float:
    import jax
    import jax.numpy as jnp

    x = jnp.ones(size // 4, jnp.float32)
    total = jax.jit(jnp.sum)
    return 1e-9 * size / _best(lambda: jax.block_until_ready(total(x)), 15)
