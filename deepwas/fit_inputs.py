"""What a fit is made from: its inputs, read and checked before anything that computes is imported, and recorded."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from deepwas import __version__
from deepwas.annotations import Annotations, read_annotations
from deepwas.errors import InputError
from deepwas.inputs import InputSizes, Windows
from deepwas.ld import LDStore, open_ld
from deepwas.network_options import require_monotone_names, required_inputs
from deepwas.options import FitOptions
from deepwas.runs import FORMAT, FORMAT_VERSION
from deepwas.sumstats import HarmonisedSumstats, QCOptions, SumStats, harmonise, read_harmonised, read_sumstats
from deepwas.tally import Tally

__all__ = ["FitInputs", "annotated", "describe_windows", "described", "harmonised", "read_inputs"]


@dataclass(frozen=True)
class FitInputs:
    """What a fit is made from, read and checked, and the start of its record."""

    store: LDStore
    trait: HarmonisedSumstats
    features: Annotations | None
    tracks: Windows | None
    sequence: Windows | None
    options: FitOptions
    record: dict[str, Any]


def read_inputs(
    stack: ExitStack,
    ld: Any,
    sumstats: Any,
    annotations: Any,
    tracks: Any,
    sequence: Any,
    options: FitOptions | None,
    qc: QCOptions | None,
) -> FitInputs:
    """Read and check everything a fit is given; files stay open as long as `stack`. See `deepwas.fit`."""
    options = options or FitOptions()
    if options.network != "constant" and all(x is None for x in (annotations, tracks, sequence)):
        raise InputError(
            f"the {options.network} network needs annotations, tracks or sequence. Give --annotations, --tracks or "
            "--sequence, or --network constant."
        )
    store = ld if isinstance(ld, LDStore) else open_ld(ld)
    trait = harmonised(sumstats, store, qc)
    features = annotated(annotations, store)
    around = {"tracks": tracks, "sequence": sequence}
    windows = {name: _windows(stack, name, given, store) for name, given in around.items()}
    _require_inputs(options, features, windows)
    record = _first_record(store, trait, features, windows, options)
    return FitInputs(store, trait, features, windows["tracks"], windows["sequence"], options, record)


def harmonised(given: Any, store: LDStore, qc: QCOptions | None = None) -> HarmonisedSumstats:
    """A trait's z-scores on the store's variants, from a file of either kind, or from what was read already."""
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        given = read_harmonised(path, expected_checksum=store.checksum) if _is_parquet(path) else read_sumstats(path)
    if isinstance(given, SumStats):
        return harmonise(
            given,
            store.variants,
            n_panel=store.n_samples,
            options=qc or QCOptions(),
            genome_build=store.genome_build,
            store_checksum=store.checksum,
        )
    if not isinstance(given, HarmonisedSumstats):
        raise InputError(
            f"sumstats is a {type(given).__name__}: give a file, or what read_sumstats or harmonise returns."
        )
    if given.store_checksum not in (None, store.checksum) or given.n_store != store.n_variants:
        raise InputError(
            f"{given.source}: harmonised against another LD store than {store.path}. Harmonise it against this one."
        )
    if qc is not None:
        raise InputError(
            f"{given.source}: already harmonised, so quality-control options cannot apply. Leave them out."
        )
    return given


def _is_parquet(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as handle:
        return handle.read(4) == b"PAR1"


def annotated(given: Any, store: LDStore) -> Annotations | None:
    """Annotations of the store's variants, from files, or from what was read already; None for None."""
    if given is None:
        return None
    found = given if isinstance(given, Annotations) else read_annotations(given, store.variants)
    if not found.names:
        raise InputError("the annotations hold no column that varies.")
    if found.variants.height != store.n_variants or not found.variants["SNP"].equals(store.variants["SNP"]):
        raise InputError(f"the annotations are not those of the variants of {store.path}. Annotate this store.")
    return found


def _windows(stack: ExitStack, name: str, given: Any, store: LDStore) -> Windows | None:
    """Windows of the store's variants: opened, for as long as `stack` is, or an array."""
    if given is None:
        return None
    if isinstance(given, str | os.PathLike):
        from deepwas.tracks import open_windows

        return stack.enter_context(open_windows(given, store, kind="tracks" if name == "tracks" else "sequence"))
    if not hasattr(given, "shape") or len(given.shape) != 3 or given.shape[0] != store.n_variants:
        what = f"of shape {given.shape}" if hasattr(given, "shape") else f"a {type(given).__name__}"
        raise InputError(
            f"{name} is {what}: give a file of `deepwas {name}`, or an array of windows around the "
            f"{store.n_variants:,} variants of {store.path}."
        )
    return given


def _require_inputs(options: FitOptions, features: Annotations | None, windows: dict[str, Windows | None]) -> None:
    """InputError unless the network's inputs are there, and none that it ignores."""
    if options.network == "constant":
        return
    tracks, sequence = windows["tracks"], windows["sequence"]
    sizes = InputSizes(
        annotations=0 if features is None else len(features.names),
        log_heterozygosity=options.maf_alpha is not None,
        tracks=None if tracks is None else (tracks.shape[1], tracks.shape[2]),
        sequence=None if sequence is None else sequence.shape[2],
    )
    required_inputs(options, sizes)
    if features is not None:
        require_monotone_names(options, features.names)


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _first_record(
    store: LDStore,
    trait: HarmonisedSumstats,
    features: Annotations | None,
    windows: dict[str, Windows | None],
    options: FitOptions,
) -> dict[str, Any]:
    """What is known before training: `run.json` while the run is under way."""
    frame = trait.frame
    tally = Tally()
    tally.extend(trait.tally)
    inputs: dict[str, Any] = {
        "ld": {
            "file": store.path.name,
            "checksum": store.checksum,
            "genome_build": store.genome_build,
            "n_samples": store.n_samples,
        },
        "sumstats": {
            "file": trait.source,
            "sha256": trait.source_sha256,
            "format": trait.source_format,
            "build": trait.build,
            "match": trait.match,
            "qc": trait.options,
            "content": _digest(*(frame[c].to_numpy() for c in ("VARIANT", "Z", "N"))),
        },
        "annotations": None,
    }
    if features is not None:
        tally.extend(features.tally)
        inputs["annotations"] = described(features)
    inputs |= {name: None if found is None else describe_windows(found) for name, found in windows.items()}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "deepwas_version": __version__,
        "status": "running",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": options.as_dict(),
        "inputs": inputs,
        "counts": tally.as_list(),
    }


def described(features: Annotations) -> dict[str, Any]:
    """Annotations by their names, sources, files and content, JSON-ready."""
    return {
        "names": list(features.names),
        "sources": features.sources,
        "files": [{"name": Path(name).name, "sha256": checksum} for name, checksum in features.files.items()],
        "content": _digest(features.values),
    }


def describe_windows(windows: Windows) -> dict[str, Any]:
    """A file of windows by its names and checksum; an array by its content."""
    known = getattr(windows, "checksum", None)
    names, path = getattr(windows, "names", None), getattr(windows, "path", None)
    return {
        "file": None if path is None else Path(path).name,
        "names": None if names is None else list(names),
        "shape": list(windows.shape),
        "content": known or _digest(windows[0 : windows.shape[0]]),
    }
