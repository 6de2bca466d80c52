"""`python -m benchmarks [NAME ...] [--quick] [--preset SIZE] [--out DIR]`: run benchmarks, print and keep figures."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import BENCHMARKS, Benchmark
from deepwas import __version__
from deepwas.cli._console import progress_of_stages, say, show
from deepwas.errors import DeepwasError, InputError
from deepwas.files import atomic_path, write_json

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("jax", "flax", "optax", "numpy", "scipy", "msprime")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def run(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Benchmarks to run, or 'all'; none lists them.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small problem, under a minute: shows that it runs, proves nothing.")
    ] = False,
    preset: Annotated[
        str | None, typer.Option(help="Another size than the full one, of a benchmark that has several.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for NAME.json and NAME.png (NAME-quick with --quick); made if missing.")
    ] = RESULTS,
) -> None:
    """Run benchmarks by name: each prints its tables and writes its figures as JSON and a picture as PNG."""
    if not names:
        for benchmark in BENCHMARKS:
            typer.echo(f"{benchmark.name:12s} {benchmark.question}")
        return
    chosen = _chosen(names)
    if quick and preset not in (None, "quick"):
        raise InputError(f"--quick and --preset {preset} are two sizes: give one of them.")
    size = preset or ("quick" if quick else "full")
    for benchmark in chosen:
        presets = benchmark.presets or ("quick", "full")
        if size not in presets:
            raise InputError(f"{benchmark.name} has no preset {size!r}; it has: {', '.join(presets)}.")
    for benchmark in chosen:
        _run_one(benchmark, size, _folder(out))


def _chosen(names: list[str]) -> list[Benchmark]:
    known = {b.name: b for b in BENCHMARKS}
    wanted = list(known) if names == ["all"] else names
    for name in wanted:
        if name not in known:
            raise InputError(f"no benchmark is called {name!r}; there are: {', '.join(known)} (or all).")
    return [known[name] for name in dict.fromkeys(wanted)]


def _folder(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out needs a folder.")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: the folder {out.absolute().parent} does not exist. Make it first.")
    out.mkdir(exist_ok=True)
    return out


def _run_one(benchmark: Benchmark, size: str, folder: Path) -> None:
    module: Any = importlib.import_module(benchmark.module)
    quick = size == "quick"
    stem = benchmark.name if size == "full" else f"{benchmark.name}-{size}"
    begun = time.monotonic()
    with progress_of_stages() as progress:
        if benchmark.presets:
            figures = module.measure(size, progress, folder / f"{stem}.parts")
        else:
            figures = module.measure(quick, progress)
    content = {
        "benchmark": benchmark.name,
        "question": benchmark.question,
        "quick": quick,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begun, 1),
        "environment": _environment(),
        **figures,
    }
    for table in module.tables(figures):
        show(table)
    write_json(folder / f"{stem}.json", content)
    with atomic_path(folder / f"{stem}.png") as temporary:
        module.draw(figures, temporary)
    say(f"{benchmark.name}: {content['seconds']:.0f} s; wrote {folder / stem}.json and .png")


def _environment() -> dict[str, Any]:
    import jax

    devices = jax.devices()
    found = {"deepwas": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "packages": found,
    }


def main(arguments: list[str] | None = None) -> None:
    """Entry point: wrong input ends with exit code 2, other failures on purpose with 1."""
    try:
        app(arguments)
    except InputError as error:
        typer.echo(f"benchmarks: {error}", err=True)
        sys.exit(2)
    except DeepwasError as error:
        typer.echo(f"benchmarks: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
