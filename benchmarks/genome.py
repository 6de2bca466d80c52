"""An epoch of a synthetic genome: value and gradient through a network, by number of blocks and of traits.

The LD is random but of the right shape and spectrum: G = diag(sqrt lam) Q, with Q orthonormal rows and eigenvalues lam
that fall as those of real blocks do; z-scores are drawn from the whitened null, and the network's last layer is random,
so that the prior varies. With a fixed number of CG steps the time does not hang on what the numbers are. Blocks are
streamed in batches from the host's memory; on a GPU all of G is made and kept on the device.

It needs JAX, Flax and Optax only, so that it runs on a GPU machine with nothing else:
`python -m benchmarks.genome --preset imputed --out FILE`.  `python -m benchmarks genome` runs it in a process of its
own, so that the peak memory is its own too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import exponent, interleaved, measure_machine, peak_rss

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["PRESETS", "Genome", "draw", "measure", "run", "tables"]

Progress = Callable[[str, int, int], None]

GOALS = {
    "seconds": "<= 15",
    "peak_rss_gb": "<= 6",
    "exponent": "0.95 to 1.05",
    "traits_ratio": "< 2",
    "share_of_copy_bandwidth": ">= 0.5 (GPU)",
}


@dataclass(frozen=True)
class Genome:
    """What is run.

    blocks: in all.  m, k: variants and eigen-directions of each.  features: of a variant.  hidden: the MLP's widths.
    probes, steps, rank: of CG for one trait alone.  traits: at once, with traits_probes each; by default with as many
        right-hand sides in all as the one trait has. They are compared with one trait of as few probes too.
    batch: blocks on the device at a time.
    dtype: of G.  fractions: of the blocks, for the growth of the time.  rounds: epochs timed of each kind.
    """

    blocks: int = 1700
    m: int = 648
    k: int = 304
    features: int = 64
    hidden: tuple[int, ...] = (32, 32)
    probes: int = 15
    steps: int = 4
    rank: int = 0
    traits: int = 4
    traits_probes: int = 3
    batch: int = 20
    dtype: str = "float32"
    fractions: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    rounds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.k <= self.m or self.batch > min(self.fractions) * self.blocks or self.traits < 1:
            raise ValueError(
                f"k must be at most m, and a batch within the smallest fraction of the blocks; got {self}."
            )
        if self.dtype not in ("float32", "float16"):
            raise ValueError(f"dtype is {self.dtype!r}; give float32 or float16.")


PRESETS = {
    "hapmap3": Genome(),
    "quick": Genome(blocks=64, m=96, k=48, features=8, hidden=(8,), batch=8, rounds=1),
    "imputed": Genome(blocks=591, m=11_848, k=2_000, dtype="float16", batch=3, fractions=(0.25, 0.5, 1.0), rounds=3),
}


@dataclass(frozen=True)
class _Batch:
    """Blocks of one batch: a `Bucket` without z-scores of its own, y (B, T, k) and features (B, m, p)."""

    bucket: Any
    whitened: Any
    features: Any

    @property
    def size(self) -> int:
        return len(self.bucket.member)


def run(genome: Genome, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Make the genome, and time epochs of one trait by number of blocks, and of several traits. Returns the figures."""
    import jax

    on_host = jax.default_backend() == "cpu"
    begun = time.perf_counter()
    batches = _batches(genome, on_host)
    say(f"made {genome.blocks} blocks in {time.perf_counter() - begun:.1f} s")
    found: dict[str, Any] = {"genome": asdict(genome), "variants": genome.blocks * genome.m}
    found["factor_bytes"] = genome.blocks * genome.m * genome.k * np.dtype(genome.dtype).itemsize
    found["rss_gb_of_the_data"] = 1e-9 * peak_rss()

    epoch = _epoch(genome, 1)
    counts = sorted({max(1, round(x * len(batches))) for x in genome.fractions})
    calls: dict[str, Callable[[], Any]] = {str(count): partial(epoch, batches[:count]) for count in counts}
    begun = time.perf_counter()
    value = calls[str(counts[-1])]()
    say(f"first epoch, compilation included, {time.perf_counter() - begun:.1f} s")
    found["compiling_and_first_epoch_seconds"] = time.perf_counter() - begun
    found["log_likelihood"] = float(value[0])
    found["gradient_norm"] = float(value[1])
    found["largest_residual"] = float(value[2])
    found["peak_rss_gb"] = 1e-9 * peak_rss()

    several = _epoch(genome, genome.traits)
    calls["traits"] = partial(several, batches)
    calls["few"] = partial(_epoch(replace(genome, probes=genome.traits_probes), 1), batches)
    calls["network"] = partial(_network_only(genome), batches)
    for name in ("traits", "few", "network"):
        calls[name]()
    timed = interleaved(calls, rounds=genome.rounds, most=1)
    seconds = {name: float(np.median(x)) for name, x in timed.items()}
    blocks = [sum(b.size for b in batches[:count]) for count in counts]
    own = [seconds[str(count)] for count in counts]
    found |= {
        "blocks": blocks,
        "seconds_by_blocks": own,
        "epoch_seconds": own[-1],
        "exponent": exponent(blocks, own),
        "seconds_of_several_traits": seconds["traits"],
        "seconds_of_the_network": seconds["network"],
        "traits_ratio": seconds["traits"] / own[-1],
        "seconds_of_one_trait_with_few_probes": seconds["few"],
        "traits_ratio_with_equal_probes": seconds["traits"] / seconds["few"],
        "peak_rss_gb_with_several_traits": 1e-9 * peak_rss(),
        # The least there is to read: G once for the squares on each side, once in each step.
        "gb_s_one_reading_a_step": 1e-9 * found["factor_bytes"] * (genome.steps + 2) / own[-1],
    }
    return found | {"machine": measure_machine(genome.blocks < PRESETS["hapmap3"].blocks and on_host)}


def _batches(genome: Genome, on_host: bool) -> list[_Batch]:
    """All batches; the last blocks that do not fill a batch make one of their own size."""
    import jax
    import jax.numpy as jnp

    from deepwas.likelihood.factor import Factor
    from deepwas.training.packing import Bucket

    base = _orthonormal(genome.m, genome.seed)
    values = jnp.asarray(eigenvalues(genome.k, genome.m), jnp.float32)
    largest = jnp.max(jnp.abs(base)) if genome.dtype == "float16" else jnp.ones(())

    @jax.jit
    def block(key: Any, base: Any) -> Any:
        """(values, scale) of one block: rows of the base, with its columns shuffled and their signs drawn."""
        rows, columns, signs = jax.random.split(key, 3)
        chosen = base[jax.random.permutation(rows, genome.m)[: genome.k]]
        chosen = chosen[:, jax.random.permutation(columns, genome.m)]
        chosen = chosen * jax.random.rademacher(signs, (1, genome.m), jnp.float32)
        if genome.dtype == "float16":
            return (chosen / largest).astype(jnp.float16), jnp.sqrt(values) * largest
        return chosen * jnp.sqrt(values)[:, None], jnp.ones_like(values)

    @jax.jit
    def others(key: Any) -> Any:
        first, second = jax.random.split(key)
        whitened = jax.random.normal(first, (genome.traits, genome.k), jnp.float32)
        return whitened, jax.random.normal(second, (genome.m, genome.features), jnp.float32)

    def stacked(make: Callable[[Any], Any], keys: list[Any]) -> Any:
        """Each result's pieces stacked; on the host one block at a time, so that no copy of all is made."""
        if not on_host:
            return tuple(jnp.stack(x) for x in zip(*(make(key) for key in keys), strict=True))
        first = make(keys[0])
        out = tuple(np.empty((len(keys), *x.shape), x.dtype) for x in first)
        for number, key in enumerate(keys):
            for whole, piece in zip(out, first if number == 0 else make(key), strict=True):
                whole[number] = piece
        return out

    found = []
    for start in range(0, genome.blocks, genome.batch):
        members = range(start, min(start + genome.batch, genome.blocks))
        keys = [jax.random.fold_in(jax.random.key(genome.seed), member) for member in members]
        size = len(keys)
        whitened, features = stacked(others, keys)
        ones = np.ones((size, genome.m), np.float32)
        bucket = Bucket(
            member=np.asarray(members),
            factor=Factor(*stacked(lambda key: block(key, base), keys)),
            whitened=whitened[:, 0],
            real=np.ones((size, genome.k), np.float32),
            z=np.zeros((size, genome.m), np.float32),
            observed=ones,
            present=ones,
            sample_size=np.full(size, 454_000, np.float32),
        )
        found.append(_Batch(bucket if on_host else jax.device_put(bucket), whitened, features))
    return found


def _orthonormal(m: int, seed: int) -> Any:
    """(m, m) float32, random orthonormal rows."""
    import jax
    import jax.numpy as jnp

    normal = jax.random.normal(jax.random.key(seed + 1), (m, m), jnp.float32)
    return jnp.linalg.qr(normal)[0]


def eigenvalues(k: int, m: int) -> np.ndarray:
    """(k,), descending: lam_i in proportion to exp(-6 (i / k)^(1/2)), summing to m, the trace of a correlation."""
    decay = np.exp(-6 * np.sqrt(np.arange(k) / k))
    return decay * (m / decay.sum())


def _network(genome: Genome, traits: int) -> tuple[Any, Any]:
    """An MLP with one output per trait, whose last layer is not 0: its graph, and its state."""
    from flax import nnx

    from deepwas.inputs import InputSizes
    from deepwas.network_options import NetworkOptions
    from deepwas.networks import make_network

    options = NetworkOptions("mlp", hidden=genome.hidden)
    log_base = np.full(traits, np.log(4.5e-7))
    network: Any = make_network(options, InputSizes(genome.features), log_base, seed=genome.seed)
    network.output = nnx.Linear(
        genome.hidden[-1], traits, kernel_init=nnx.initializers.normal(0.5), rngs=nnx.Rngs(genome.seed)
    )
    return nnx.split(network)


def _log_f(network: Any, features: Any) -> Any:
    """(B, T, m) from features (B, m, p)."""
    import jax.numpy as jnp

    from deepwas.inputs import Inputs

    return jnp.moveaxis(network(Inputs(features)), -1, 1)


def _epoch(genome: Genome, traits: int) -> Callable[[list[_Batch]], tuple[Any, Any, Any]]:
    """An epoch's log-likelihood, norm of its gradient in the network's parameters and noise, and largest residual."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from deepwas.training.objective import Solve, trait_terms

    graph, state = _network(genome, traits)
    probes = genome.traits_probes if traits > 1 else genome.probes
    solve = Solve("cg", probes=probes, max_steps=genome.steps, rank=genome.rank, fixed=True)
    noise = jnp.ones(traits, jnp.float32)

    def objective(parameters: Any, bucket: Any, whitened: Any, features: Any, key: Any) -> Any:
        state, noise = parameters
        f = jnp.exp(_log_f(nnx.merge(graph, state), features))
        size = jnp.broadcast_to(bucket.sample_size[:, None], f.shape[:2])
        values, residual = trait_terms(bucket, whitened, f, size, noise, key, solve)
        return jnp.sum(values), jnp.max(residual)

    @jax.jit
    def add(total: Any, parameters: Any, bucket: Any, whitened: Any, features: Any, key: Any) -> Any:
        (value, residual), gradient = jax.value_and_grad(objective, has_aux=True)(
            parameters, bucket, whitened, features, key
        )
        fresh = jax.tree.map(jnp.add, total[:2], (value, gradient))
        return *fresh, jnp.maximum(total[2], residual)

    def epoch(batches: list[_Batch]) -> tuple[Any, Any, Any]:
        parameters = (state, noise)
        total = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, parameters), jnp.zeros(()))
        key = jax.random.key(genome.seed)
        for batch in batches:
            total = add(total, parameters, batch.bucket, batch.whitened[:, :traits], batch.features, key)
        norm = jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(total[1])))
        return jax.block_until_ready((total[0], norm, total[2]))

    return epoch


def _network_only(genome: Genome) -> Callable[[list[_Batch]], Any]:
    """The network of one trait forward and backward, with the sum of f in place of the likelihood."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    graph, state = _network(genome, 1)

    @jax.jit
    def add(total: Any, state: Any, features: Any) -> Any:
        def objective(state: Any) -> Any:
            return jnp.sum(jnp.exp(_log_f(nnx.merge(graph, state), features)))

        return jax.tree.map(jnp.add, total, jax.grad(objective)(state))

    def epoch(batches: list[_Batch]) -> Any:
        total = jax.tree.map(jnp.zeros_like, state)
        for batch in batches:
            total = add(total, state, batch.features)
        return jax.block_until_ready(total)

    return epoch


def measure(quick: bool, progress: Progress) -> dict[str, Any]:
    """The figures of a process of its own."""
    from deepwas.errors import DeepwasError

    progress("epochs, in a process of their own", 0, 1)
    command = [sys.executable, "-m", "benchmarks.genome", "--preset", "quick" if quick else "hapmap3"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise DeepwasError(f"the process of the benchmark ended with {done.returncode}; what it said is above.")
    progress("epochs, in a process of their own", 1, 1)
    return json.loads(done.stdout)


def tables(figures: dict[str, Any]) -> list[Table]:
    """The goals, and the epoch's time by blocks."""
    from rich.table import Table

    g = figures["genome"]
    what = f"{figures['variants']:,} variants in {g['blocks']:,} blocks (k {g['k']:,}, G in {g['dtype']})"
    how = f"MLP of {g['features']} features; {g['probes']} probes, {g['steps']} steps, rank {g['rank']}"
    goals = Table(title=f"An epoch of {what}, {how}")
    for heading in ("what", "found", "goal"):
        goals.add_column(heading)
    goals.add_row("seconds", f"{figures['epoch_seconds']:.3g}", GOALS["seconds"])
    goals.add_row("of these the network", f"{figures['seconds_of_the_network']:.3g}", "")
    goals.add_row("peak memory, GB", f"{figures['peak_rss_gb']:.2f}", GOALS["peak_rss_gb"])
    goals.add_row("of these the data", f"{figures['rss_gb_of_the_data']:.2f}", "")
    goals.add_row("exponent of time in blocks", f"{figures['exponent']:.3f}", GOALS["exponent"])
    several = f"{g['traits']} traits ({g['traits_probes']} probes each) / 1 trait"
    goals.add_row(f"{several} ({g['probes']} probes)", f"{figures['traits_ratio']:.2f}", GOALS["traits_ratio"])
    equal = figures["traits_ratio_with_equal_probes"]
    goals.add_row(f"{several} ({g['traits_probes']} probes)", f"{equal:.2f}", GOALS["traits_ratio"])
    share = figures["gb_s_one_reading_a_step"] / figures["machine"]["copy_gb_s"]
    goals.add_row("share of the copy bandwidth", f"{share:.2f}", GOALS["share_of_copy_bandwidth"])
    times = Table(title="Seconds an epoch, one trait")
    times.add_column("blocks")
    times.add_column("seconds")
    for blocks, seconds in zip(figures["blocks"], figures["seconds_by_blocks"], strict=True):
        times.add_row(f"{blocks:,}", f"{seconds:.3g}")
    return [goals, times]


def draw(figures: dict[str, Any], path: Path) -> None:
    """Time by blocks, and the whole genome's time in its parts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    growth, parts = figure.subplots(1, 2)
    blocks, seconds = np.array(figures["blocks"]), np.array(figures["seconds_by_blocks"])
    growth.plot(blocks, seconds, "o", color="#0072b2", label="measured")
    growth.plot(blocks, seconds[-1] * (blocks / blocks[-1]), "k--", lw=1, label="in proportion")
    growth.set_xscale("log")
    growth.set_yscale("log")
    growth.set_xticks(blocks, [f"{x:,}" for x in blocks])
    growth.minorticks_off()
    growth.set_xlabel("LD blocks")
    growth.set_ylabel("seconds an epoch")
    growth.set_title(f"Value and gradient of one trait; exponent {figures['exponent']:.3f}", fontsize=10)
    growth.legend(frameon=False)
    traits = figures["genome"]["traits"]
    heights = [figures["seconds_of_the_network"], figures["epoch_seconds"], figures["seconds_of_several_traits"]]
    bars = parts.bar(["network alone", "1 trait", f"{traits} traits at once"], heights, color="#0072b2", width=0.6)
    parts.bar_label(bars, [f"{x:.3g} s" for x in heights])
    parts.set_ylabel("seconds an epoch")
    parts.margins(y=0.15)
    parts.set_title(f"{figures['variants']:,} variants in {blocks[-1]:,} blocks", fontsize=10)
    figure.savefig(path, format="png", dpi=110)


def main(arguments: list[str] | None = None) -> None:
    """`python -m benchmarks.genome`: the figures as JSON, to a file or standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.genome", description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="hapmap3")
    for name in (
        "blocks",
        "m",
        "k",
        "features",
        "probes",
        "steps",
        "rank",
        "traits",
        "traits-probes",
        "batch",
        "rounds",
        "seed",
    ):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--dtype", choices=("float32", "float16"))
    parser.add_argument("--out", type=Path, help="file for the figures; standard output if not given")
    given = vars(parser.parse_args(arguments))
    preset, out = PRESETS[given.pop("preset")], given.pop("out")
    try:
        genome = replace(preset, **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        parser.error(str(error))
    figures = run(genome, say=lambda text: print(text, file=sys.stderr, flush=True))
    if out is None:
        print(json.dumps(figures))
    else:
        from deepwas.files import write_json

        write_json(out, figures)


if __name__ == "__main__":
    main()
