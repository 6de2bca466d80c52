"""Files of sequence-model scores, variants x tracks: text, Parquet and HDF5, read some rows at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.annotations.score_text import NO_SCORE, TextTable
from deepwas.errors import InputError
from deepwas.files import require_file
from deepwas.genome import normalise_chromosomes
from deepwas.tables import MISSING

__all__ = ["ScoreFile", "open_scores"]

PIECE_BYTES = 1 << 25  # of float32 scores handed on together; what is done with them takes several times that
_PARQUET_BYTES = 1 << 28  # a row group is decoded again for every piece of it
_ALIASES = {
    "SNP": ("snp", "rsid", "rs_id", "rs", "id", "markerid"),
    "CHR": ("chr", "chrom", "chromosome", "chromosomes"),
    "BP": ("pos", "bp", "position", "base_pair_location", "start_pos"),
    "REF": ("ref", "ref_allele", "reference_allele", "reference", "reference_bases", "other_allele", "a2"),
    "ALT": (
        *("alt", "alt_allele", "alternate_allele", "alternative_allele", "alternate", "alternate_bases"),
        *("effect_allele", "a1"),
    ),
}
_VARIANT = ("variant_id", "variant", "snp", "id")
_VARIANT_FORM = r"^(?i)(?:chr)?(\w+)[:_-](\d+)[:_-]([ACGTN]+)(?:>|:|_|-|/)([ACGTN]+)(?:_b3[78])?$"
_NOT_SCORES = ("cm", "index", "unnamed: 0", "")


@dataclass(frozen=True)
class ScoreFile:
    """One file of scores.

    path: its own.  names: (p,) its score columns.  keys: one row for each of its rows: CHR (text without prefix), BP,
    REF, ALT (upper case), SNP; null where the file has none.  first_line: of row 0, to speak of rows as the file does.
    unused: columns of text, or that are keys under another name; those that were not asked for are not among them.
    """

    path: Path
    names: tuple[str, ...]
    keys: pl.DataFrame
    first_line: int
    unused: tuple[str, ...]
    _read: Any = field(repr=False)

    def pieces(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(row of the file, values (rows, p) float32 with NaN where missing), some rows at a time.

        InputError for text where a number is needed, and for infinite values.
        """
        start = 0
        for values in self._read():
            wild = np.isinf(values)
            if wild.any():
                row, column = (int(x) for x in np.argwhere(wild)[0])
                raise InputError(
                    f"{self.path}: column {self.names[column]}, {self.place(start + row)}: the value is infinite or "
                    f"beyond float32 ({int(wild.sum()):,} such). Write NA where it is missing, or transform the column."
                )
            yield start, values
            start += len(values)
        if start != self.keys.height:
            raise InputError(
                f"{self.path}: {start:,} rows of scores for {self.keys.height:,} variants. Was it changed?"
            )

    def place(self, row: int) -> str:
        """Where a row stands, in words."""
        return f"line {row + self.first_line:,}" if self.first_line else f"row {row + 1:,}"


def open_scores(path: str | os.PathLike[str], *, matrix: str | None = None, columns: Sequence[str] = ()) -> ScoreFile:
    """Read the keys of a file of scores, and make its scores readable piece by piece.

    Text (tab, comma or spaces; plain or gzip) and Parquet: columns for chromosome, position, reference and alternative
    allele under any common name, or one column such as `chr22:36201698:A>C`; every other numeric column is a score.
    HDF5: datasets `chr pos ref_allele alt_allele` (or other common names) and a matrix of rows x tracks, `SAD` or the
    one that `matrix` names; `target_labels` or `target_ids` name the tracks.

    columns: shell patterns of the scores to use; all by default.
    Memory: keys, and pieces of 32 MB (256 MB of Parquet), one at a time.
    Raises InputError for a file that is none of these, lacks a key or has no score.
    """
    found = require_file(path, "a file of scores")
    with open(found, "rb") as handle:
        magic = handle.read(8)
    if magic == b"\x89HDF\r\n\x1a\n":
        return _open_hdf5(found, matrix, columns)
    if matrix is not None:
        raise InputError(f"{found}: is not HDF5, so it has no matrix {matrix!r}. Leave the matrix out.")
    if magic[:4] == b"PAR1":
        return _open_parquet(found, columns)
    return _open_text(found, columns)


def _chosen(names: Sequence[str], patterns: Sequence[str], path: Path) -> list[str]:
    if not patterns:
        chosen = list(names)
    else:
        chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                shown = " ".join(names[:12]) + (" ..." if len(names) > 12 else "")
                raise InputError(f"{path}: no score column fits {pattern!r}; there are {shown}.")
    if not chosen:
        raise InputError(f"{path}: no numeric column beside the keys: it holds no scores.")
    return chosen


def _plain(name: str) -> str:
    return name.strip().lstrip("#").lower()


def _key_columns(header: Sequence[str], path: Path) -> dict[str, str]:
    """Which column serves as SNP, CHR, BP, REF and ALT, or as VARIANT that holds them all."""
    plain = {_plain(name): name for name in reversed(header)}
    chosen = {
        key: next(plain[alias] for alias in aliases if alias in plain)
        for key, aliases in _ALIASES.items()
        if any(alias in plain for alias in aliases)
    }
    if {"CHR", "BP", "REF", "ALT"} <= set(chosen):
        return chosen
    for alias in _VARIANT:
        if alias in plain:
            return {"VARIANT": plain[alias]}
    shown = " ".join(header[:12]) + (" ..." if len(header) > 12 else "")
    raise InputError(
        f"{path}: no key to variants among {shown}. A score belongs to an allele: give the columns chrom, pos, ref and "
        "alt (or variant_id such as chr22:36201698:A>C)."
    )


def _keys(frame: pl.DataFrame, chosen: dict[str, str], path: Path, first_line: int) -> pl.DataFrame:
    """CHR BP REF ALT SNP from the columns chosen."""
    if "VARIANT" in chosen:
        text = frame[chosen["VARIANT"]].cast(pl.String)
        parts = pl.DataFrame(
            [text.str.extract(_VARIANT_FORM, i + 1).alias(name) for i, name in enumerate(("CHR", "BP", "REF", "ALT"))]
        )
        if parts["CHR"].null_count() == parts.height:
            raise InputError(
                f"{path}: column {chosen['VARIANT']} holds {text[0]!r}, and there are no columns chrom, pos, ref and "
                "alt. Give these, or variants such as chr22:36201698:A>C."
            )
        frame, chosen = parts, {name: name for name in parts.columns}
    position = frame[chosen["BP"]]
    if position.dtype == pl.String:
        whole = position.str.strip_chars().cast(pl.Float64, strict=False)
    else:
        whole = position.cast(pl.Float64, strict=False)
    whole = whole.fill_nan(None)
    bad = (position.is_not_null() & whole.is_null()) | (whole != whole.round()).fill_null(False)
    if bad.any():
        row = int(bad.arg_true()[0])
        where = f"line {row + first_line:,}" if first_line else f"row {row + 1:,}"
        raise InputError(
            f"{path}: column {chosen['BP']}, {where}: {position[row]!r} is not a position ({int(bad.sum()):,} such). "
            "Mend it, or write NA and the row is left out."
        )

    def text_of(name: str) -> pl.Series:
        column = pl.col(chosen[name]).cast(pl.String).str.strip_chars()
        return frame.select(pl.when(~column.is_in(list(MISSING))).then(column)).to_series()

    return pl.DataFrame(
        {
            "CHR": normalise_chromosomes(text_of("CHR")),
            "BP": whole.cast(pl.Int64),
            "REF": text_of("REF").str.to_uppercase(),
            "ALT": text_of("ALT").str.to_uppercase(),
            "SNP": text_of("SNP") if "SNP" in chosen else pl.Series([None] * frame.height, dtype=pl.String),
        }
    )


# --- text ---------------------------------------------------------------------------------------------------------


def _open_text(path: Path, patterns: Sequence[str]) -> ScoreFile:
    layout = TextTable.of(path)
    _, sample = next(layout.bodies(), (0, b""))
    if not sample:
        raise InputError(f"{path}: a header and no row. Give a table of scores.")
    keys_of = _key_columns(layout.header, path)
    shown = layout.parse(0, b"\n".join(sample.split(b"\n")[:1000]), layout.header, floats=False)
    free = [name for name in layout.header if name not in keys_of.values() and not _is_key(name)]
    counted = {name: _counted(shown[name]) for name in free}
    numeric = [name for name, (values, numbers) in counted.items() if _is_score(values, numbers)]
    names = _chosen(numeric, patterns, path)
    layout.refuse_text(0, shown.select(names))
    wanted = list(dict.fromkeys(keys_of.values()))
    frames = [layout.parse(row, data, wanted, floats=False) for row, data in layout.bodies()]
    keys = _keys(pl.concat(frames), keys_of, path, first_line=2)
    unused = tuple(name for name in layout.header if name not in keys_of.values() and name not in numeric)

    def read() -> Iterator[NDArray[np.float32]]:
        for row, data in layout.bodies():
            yield _matrix(layout.parse(row, data, names, floats=True))

    return ScoreFile(path, tuple(names), keys, 2, unused, read)


def _counted(column: pl.Series) -> tuple[int, int]:
    """How many values a column of text has, and how many of them are numbers."""
    present = column.drop_nulls().str.strip_chars()
    present = present.filter(~present.is_in(list(NO_SCORE)))
    return len(present), len(present) - present.cast(pl.Float64, strict=False).null_count()


def _is_score(values: int, numbers: int) -> bool:
    """Whether a column holds scores: most of its values are numbers, the others then faults, or it is empty."""
    return 2 * numbers > values or not values


def _is_key(name: str) -> bool:
    """Whether a column is a key under some name, and so no score."""
    return _plain(name) in {*_NOT_SCORES, *_VARIANT, *(alias for group in _ALIASES.values() for alias in group)}


def _matrix(frame: pl.DataFrame) -> NDArray[np.float32]:
    out = np.empty((frame.height, frame.width), dtype=np.float32)
    for j, column in enumerate(frame.iter_columns()):
        out[:, j] = column.cast(pl.Float32).to_numpy()
    return out


# --- Parquet ------------------------------------------------------------------------------------------------------


def _open_parquet(path: Path, patterns: Sequence[str]) -> ScoreFile:
    try:
        schema = pl.read_parquet_schema(path)
        keys_of = _key_columns(list(schema), path)
        frame = pl.read_parquet(path, columns=list(dict.fromkeys(keys_of.values())))
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: damaged Parquet file ({error}). Write or download it again.") from error
    free = {name: kind for name, kind in schema.items() if name not in keys_of.values() and not _is_key(name)}
    texts = [name for name, kind in free.items() if kind == pl.String]
    counted = {name: _counted(pl.read_parquet(path, columns=[name])[name]) for name in texts}
    written = [name for name, (values, numbers) in counted.items() if values and _is_score(values, numbers)]
    numeric = [name for name, kind in free.items() if kind.is_numeric() or kind == pl.Boolean or name in written]
    names = _chosen(numeric, patterns, path)
    for name in written:
        if name in names:
            _refuse_text_column(path, pl.read_parquet(path, columns=[name])[name])
    unused = tuple(name for name in schema if name not in keys_of.values() and name not in numeric)
    rows, part = (max(1, size // (4 * len(names))) for size in (_PARQUET_BYTES, PIECE_BYTES))

    def read() -> Iterator[NDArray[np.float32]]:
        for start in range(0, frame.height, rows):
            large = pl.scan_parquet(path).select(names).slice(start, rows).collect()
            for first in range(0, large.height, part):
                yield _matrix(large[first : first + part])

    return ScoreFile(path, tuple(names), _keys(frame, keys_of, path, 0), 0, unused, read)


def _refuse_text_column(path: Path, column: pl.Series) -> None:
    """A column of text that holds numbers: one that is not a number has made text of all."""
    plain = column.str.strip_chars()
    bad = plain.is_not_null() & ~plain.is_in(list(NO_SCORE)) & plain.cast(pl.Float64, strict=False).is_null()
    if bad.fill_null(False).any():
        row = int(bad.arg_true()[0])
        raise InputError(
            f"{path}: column {column.name}, row {row + 1:,}: {column[row]!r} is not a number ({int(bad.sum()):,} "
            "such). Mend it, leave it empty where it is missing, or name the columns to read with --columns."
        )
    raise InputError(f"{path}: column {column.name} holds numbers written as text. Write it as float32 or float64.")


# --- HDF5 ---------------------------------------------------------------------------------------------------------


def _open_hdf5(path: Path, matrix: str | None, patterns: Sequence[str]) -> ScoreFile:
    import h5py

    try:
        handle = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: cannot be read as HDF5 ({error}). Copy or download the file again.") from error
    with handle:
        datasets = {name: x for name, x in handle.items() if isinstance(x, h5py.Dataset)}
        keys_of = _key_columns([name for name, x in datasets.items() if x.ndim == 1], path)
        columns = {name: _decoded(datasets[name][:]) for name in dict.fromkeys(keys_of.values())}
        if len({len(x) for x in columns.values()}) > 1:
            lengths = ", ".join(f"{name} {len(x):,}" for name, x in columns.items())
            raise InputError(f"{path}: the datasets of keys have different lengths: {lengths}. The file is damaged.")
        keys = _keys(pl.DataFrame(columns), keys_of, path, 0)
        chosen = _matrix_name(path, datasets, matrix, keys.height)
        tracks = datasets[chosen].shape[1]
        labels = _labels(chosen, datasets, tracks)
        known = (*keys_of.values(), chosen, "target_labels", "target_ids", "targets")
        unused = tuple(name for name in datasets if name not in known)
        chunk = datasets[chosen].chunks[0] if datasets[chosen].chunks else 1
    names = _chosen(labels, patterns, path)
    where = None if len(names) == tracks else np.array([labels.index(name) for name in names])
    rows = max(1, PIECE_BYTES // (4 * tracks))
    rows = -(-rows // chunk) * chunk  # no compressed chunk is read twice

    def read() -> Iterator[NDArray[np.float32]]:
        with h5py.File(path, "r") as again:
            values = again[chosen]
            for start in range(0, values.shape[0], rows):
                piece = np.asarray(values[start : start + rows], dtype=np.float32)
                yield piece if where is None else piece[:, where]

    return ScoreFile(path, tuple(names), keys, 0, unused, read)


def _matrix_name(path: Path, datasets: dict[str, Any], matrix: str | None, rows: int) -> str:
    fitting = [n for n, x in datasets.items() if x.ndim == 2 and x.shape[0] == rows and x.dtype.kind in "fiu"]
    shapes = ", ".join(f"{name} {x.shape}" for name, x in datasets.items() if x.ndim > 1) or "none"
    if matrix is not None:
        if matrix not in fitting:
            raise InputError(f"{path}: no matrix {matrix!r} of {rows:,} rows x tracks; there are {shapes}.")
        return matrix
    if "SAD" in fitting:
        return "SAD"
    if len(fitting) != 1:
        raise InputError(
            f"{path}: {'no matrix' if not fitting else 'several matrices'} of {rows:,} rows x tracks; there are "
            f"{shapes}. Name the one with the scores, such as --matrix SAD."
        )
    return fitting[0]


def _labels(matrix: str, datasets: dict[str, Any], tracks: int) -> list[str]:
    """Names of the tracks, all different."""
    for name in ("target_labels", "target_ids", "targets"):
        if name in datasets and datasets[name].shape == (tracks,):
            labels = [str(x).strip() for x in _decoded(datasets[name][:])]
            break
    else:
        return [f"{matrix}_{i}" for i in range(tracks)]
    seen: dict[str, int] = {}
    out = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        out.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return out


def _decoded(values: NDArray[Any]) -> NDArray[Any]:
    """Bytes as text; numbers as they are."""
    if values.dtype.kind == "S" or values.dtype.kind == "O":
        return np.array([x.decode() if isinstance(x, bytes) else str(x) for x in values], dtype=object)
    return values
