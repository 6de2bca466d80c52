"""Opening an LD store and reading its blocks."""

from __future__ import annotations

import json
import os
import threading
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from deepwas.errors import InputError
from deepwas.files import require_file
from deepwas.ld import layout
from deepwas.ld.block import LDBlock
from deepwas.specs import validate_json

if TYPE_CHECKING:
    from deepwas.likelihood.factor import Factor


class LDStore:
    """LD of a panel as whitened blocks in one HDF5 file, read block by block; made by `open_ld`.

    Block b holds the candidate variants block_slice(b), rows of `variants`, and scores those of scored_slice(b).
    Without flanks the two are the same and the blocks follow each other without gaps; with flanks, the candidates of
    neighbouring blocks overlap. Every variant is scored by at most one block, the one in the column BLOCK (-1: none).
    Reading is safe from several threads. A context manager: the file is closed at its end, or by `close`.
    """

    def __init__(self, path: Path, handle: Any) -> None:
        self.path = path
        self._handle = handle
        self._lock = threading.RLock()
        attributes = handle.attrs
        self.n_samples = int(attributes["n_samples"])
        self.genome_build = str(attributes["genome_build"])
        self.checksum = str(attributes["checksum"])
        self.n_blocks = int(attributes["n_blocks"])
        self.n_variants = int(attributes["n_variants"])
        block = handle["variants"]["BLOCK"][:]
        if len(block) != self.n_variants:
            raise InputError(
                f"{path}: {len(block):,} variants where {self.n_variants:,} are announced. Build the store again."
            )
        if "ranges" in handle:
            self._ranges = np.stack([handle["ranges"][name][:] for name in layout.RANGES[:4]], axis=1)
            _check_ranges(path, self._ranges, block, self.n_blocks)
        else:
            self._ranges = _ranges_of_version_1(path, block, self.n_blocks)

    def __enter__(self) -> LDStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LDStore({str(self.path)!r}, {self.n_variants:,} variants in {self.n_blocks:,} blocks)"

    def close(self) -> None:
        """Close the file; what was read stays usable."""
        with self._lock:
            self._handle.close()

    @property
    def flanked(self) -> bool:
        """Whether any block has candidate variants that it does not score."""
        return bool((self._ranges[:, :2] != self._ranges[:, 2:]).any())

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(k, m) of every block, without reading a factor."""
        candidates = self._ranges[:, 1] - self._ranges[:, 0]
        with self._lock:
            handle = self._open()
            if "ranges" in handle:
                kept = handle["ranges"]["KEPT"][:].tolist()
            else:
                kept = [self._group(i)["eigenvalues"].shape[0] for i in range(self.n_blocks)]
        return list(zip(kept, candidates.tolist(), strict=True))

    @cached_property
    def variants(self) -> pl.DataFrame:
        """CHR SNP CM BP A1 A2 FREQ LDSCORE BLOCK, one row per variant in genome order; FREQ is that of A1."""
        with self._lock:
            return layout.read_variants(self._open())

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the file; `options` and `provenance` as dictionaries."""
        with self._lock:
            raw = layout.describe(self._open(), ())["attributes"]
        return raw | {name: json.loads(raw[name]) for name in ("options", "provenance")}

    def block_slice(self, index: int) -> slice:
        """Rows of `variants` that are candidates in a block."""
        self._check_index(index)
        return slice(int(self._ranges[index, 0]), int(self._ranges[index, 1]))

    def scored_slice(self, index: int) -> slice:
        """Rows of `variants` that a block scores: the same, or a part of them when it has flanks."""
        self._check_index(index)
        return slice(int(self._ranges[index, 2]), int(self._ranges[index, 3]))

    def factor(self, index: int) -> Factor:
        """The factor of one block, (k, m), in the dtype it is stored in, with its row scales. Cheapest to read."""
        self._check_index(index)
        with self._lock:
            return self._factor(index, self._group(index))

    def block(self, index: int) -> LDBlock:
        """Read one block; factor and whitener in float32, or in float64 where they are stored so."""
        self._check_index(index)
        with self._lock:
            group = self._group(index)
            factor, eigenvalues = self._factor(index, group), group["eigenvalues"][:]
            whitener = layout.read_scaled(group, "whitener", "whitener_scale") if "whitener" in group else None
        G = factor.decoded()
        if eigenvalues.shape != G.shape[:1] or not (eigenvalues > 0).all():  # also if NaN
            raise self._damaged(index, f"{eigenvalues.shape[0]:,} eigenvalues, positive ones, are not there")
        rows, centre = self.block_slice(index), self.scored_slice(index)
        if whitener is None:
            if rows != centre:
                raise self._damaged(index, "it has flanks and no whitener")
            return LDBlock.from_factor(G, eigenvalues)
        W = whitener.decoded()
        if W.shape != (len(G), centre.stop - centre.start) or not np.isfinite(W).all():
            raise self._damaged(index, f"the whitener has shape {W.shape} or holds NaN")
        scored = np.zeros(G.shape[1], dtype=bool)
        scored[centre.start - rows.start : centre.stop - rows.start] = True
        return LDBlock(G, W, eigenvalues, scored)

    def _factor(self, index: int, group: Any) -> Factor:
        factor = layout.read_scaled(group, "factor", "scale")
        k, m = self.sizes[index]
        if factor.values.shape != (k, m) or factor.scale.shape != (k,):
            raise self._damaged(index, f"the factor has shape {factor.values.shape}; ({k}, {m}) is announced")
        whole = factor.values.dtype.kind == "i" or np.isfinite(factor.values).all()
        if not (whole and np.isfinite(factor.scale).all()):
            raise self._damaged(index, "it holds NaN or infinite LD")
        return factor

    def _damaged(self, index: int, what: str) -> InputError:
        return InputError(f"{self.path}: block {index}: {what}: the file is damaged. Build the store again.")

    def eigenvalues(self, index: int) -> npt.NDArray[np.float64]:
        """Kept eigenvalues of one block, descending, without reading its factor."""
        self._check_index(index)
        with self._lock:
            return self._group(index)["eigenvalues"][:]

    @cached_property
    def block_table(self) -> pl.DataFrame:
        """One row per block: BLOCK CHR START STOP VARIANTS SCORED KEPT FLOOR VARIANCE_KEPT SECONDS.

        START and STOP are the positions (BP) of the first and last candidate variant, VARIANTS and SCORED the numbers
        of candidates and scored variants, KEPT that of eigenvalues.
        """
        names = ("eigenvalue_floor", "variance_kept", "seconds")
        with self._lock:
            groups = [self._group(index) for index in range(self.n_blocks)]
            rows = [[float(group.attrs[name]) for name in names] for group in groups]
        first, last = (self.variants[at] for at in (self._ranges[:, 0], self._ranges[:, 1] - 1))
        table = pl.DataFrame(rows, schema=["FLOOR", "VARIANCE_KEPT", "SECONDS"], orient="row")
        return pl.DataFrame(
            {
                "BLOCK": np.arange(self.n_blocks),
                "CHR": first["CHR"],
                "START": first["BP"],
                "STOP": last["BP"],
                "VARIANTS": self._ranges[:, 1] - self._ranges[:, 0],
                "SCORED": self._ranges[:, 3] - self._ranges[:, 2],
                "KEPT": [k for k, _ in self.sizes],
            }
        ).hstack(table)

    def verify(self) -> None:
        """Read the whole file and check layout and checksums. InputError names the first mismatch."""
        with self._lock:
            handle = self._open()
            validate_json(layout.describe(handle, range(self.n_blocks)), "ld_store", str(self.path))
            digests = []
            for index in range(self.n_blocks):
                digest = layout.block_digest(handle, index)
                group = self._group(index)
                names = ("start", "stop", "scored_start", "scored_stop")
                stated = [int(group.attrs[name]) for name in names if name in group.attrs]
                if stated != self._ranges[index, : len(stated)].tolist():
                    raise InputError(f"{self.path}: block {index} does not cover the variants announced for it.")
                if digest != group.attrs["sha256"]:
                    raise InputError(
                        f"{self.path}: block {index} has changed since it was written: its checksum "
                        "does not fit. Copy the file again, or build it again."
                    )
                digests.append(digest)
            table = layout.variants_digest(layout.read_variants(handle))
            found = [layout.content_checksum(table, digests, build) for build in (self.genome_build, None)]
        if self.checksum not in found:
            raise InputError(
                f"{self.path}: the variant table or the genome build has changed since it was written (checksum "
                f"{found[0][:12]}..., stored {self.checksum[:12]}...). Copy the file again, or build it again."
            )

    def _open(self) -> Any:
        if not self._handle:
            raise InputError(f"{self.path}: this LD store has been closed. Open it again with open_ld.")
        return self._handle

    def _group(self, index: int) -> Any:
        handle, name = self._open(), layout.block_name(index)
        if name not in handle:
            raise InputError(f"{self.path}: block {index} of {self.n_blocks:,} is missing. Build the store again.")
        return handle[name]

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.n_blocks:
            raise IndexError(f"block {index} of an LD store with blocks 0 to {self.n_blocks - 1}")


def open_ld(path: str | os.PathLike[str]) -> LDStore:
    """Open an LD store written by `build_ld` (or `deepwas ld build`).

    Cheap: the attributes, the layout and the first block's are checked, and no factor is read; `verify`
    checks all. InputError if the file is not HDF5, is HDF5 of another kind, is damaged, or comes from a
    newer deepwas.
    """
    found = require_file(path, "an LD store")
    import h5py

    if not h5py.is_hdf5(found):
        with open(found, "rb") as raw:
            head = raw.read(16)
        raise InputError(
            f"{found}: not an HDF5 file (it starts with {head!r}). Give a file made by `deepwas ld build`."
        )
    try:
        handle = h5py.File(found, "r")
    except OSError as error:
        raise InputError(f"{found}: cannot be read as HDF5 ({error}). Copy or build the file again.") from error
    try:
        _check_kind(found, handle)
        validate_json(layout.describe(handle, (0,)), "ld_store", str(found))
        return LDStore(found, handle)
    except BaseException:
        handle.close()
        raise


def _check_ranges(path: Path, ranges: npt.NDArray[np.int64], block: npt.NDArray[np.int64], n_blocks: int) -> None:
    """Blocks are ranges of the table in genome order, and BLOCK says for each variant which of them scores it."""
    start, stop, low, high = ranges.T
    sound = len(ranges) == n_blocks and bool(
        ((start >= 0) & (start <= low) & (low < high) & (high <= stop) & (stop <= len(block))).all()
        and (high[:-1] <= low[1:]).all()
    )
    if sound:
        expected = np.full(len(block), -1, dtype=block.dtype)
        for index, (first, last) in enumerate(ranges[:, 2:].tolist()):
            expected[first:last] = index
        sound = np.array_equal(expected, block)
    if not sound:
        raise InputError(
            f"{path}: the column BLOCK and the {n_blocks:,} blocks' ranges do not fit together. Build the store again."
        )


def _ranges_of_version_1(path: Path, block: npt.NDArray[np.int64], n_blocks: int) -> npt.NDArray[np.int64]:
    starts = np.flatnonzero(np.diff(block, prepend=-1))
    if not np.array_equal(block[starts], np.arange(n_blocks)):
        raise InputError(f"{path}: the column BLOCK does not number the {n_blocks:,} blocks. Build the store again.")
    stops = np.append(starts[1:], len(block))
    return np.stack([starts, stops, starts, stops], axis=1).astype(np.int64)


def _check_kind(path: Path, handle: Any) -> None:
    kind = handle.attrs.get("format")
    if kind != layout.FORMAT:
        what = f"its format is {kind!r}" if kind is not None else f"it holds {', '.join(list(handle)[:6]) or 'nothing'}"
        raise InputError(f"{path}: HDF5, but not an LD store: {what}. Give a file made by `deepwas ld build`.")
    version = int(handle.attrs.get("format_version", 0))
    if version > layout.FORMAT_VERSION:
        raise InputError(
            f"{path}: LD store of format version {version}; this deepwas reads up to "
            f"{layout.FORMAT_VERSION}. Update deepwas: pip install --upgrade deepwas"
        )
