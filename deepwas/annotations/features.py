"""`Annotations`: a matrix of variants by named columns in the row order of an LD store, written and read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from deepwas import __version__
from deepwas.annotations.table import KeyChoice, note_signs, read_table
from deepwas.errors import InputError
from deepwas.files import atomic_path, require_parent
from deepwas.genome import normalise_chromosomes
from deepwas.specs import validate_table
from deepwas.tally import Tally

KEY_COLUMNS = ("SNP", "CHR", "BP", "A1", "A2")
METADATA_KEY = "deepwas"
FORMAT = "deepwas-annotations"
_PLINK_CODES = {"X": "23", "Y": "24", "MT": "26"}


@dataclass(frozen=True)
class Annotations:
    """Raw annotations of the variants of an LD reference.

    names: (p,) column names, all different.  values: (M, p) float32, NaN where missing, rows in the order of
    `variants`.  variants: frame (M) with SNP CHR BP A1 A2.  sources: for each name, a line saying what it is
    and which file it came from.  files: SHA-256 of each file read, by path.  tally: what was matched, missing
    or dropped.
    """

    names: tuple[str, ...]
    values: np.ndarray
    variants: pl.DataFrame
    sources: dict[str, str]
    files: dict[str, str] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        if self.values.dtype != np.float32 or self.values.shape != (self.variants.height, len(self.names)):
            raise InputError(
                f"annotations: values are {self.values.dtype} of shape {self.values.shape}; float32 of shape "
                f"({self.variants.height}, {len(self.names)}) is needed: variants by names."
            )
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise InputError(f"annotations: {', '.join(twice)} stands twice. Rename one of them.")
        if set(self.sources) != set(self.names):
            raise InputError("annotations: every name needs a source, and no other may stand there.")
        for j, name in enumerate(self.names):
            if not name.strip() or name in KEY_COLUMNS or name.endswith(":missing"):
                raise InputError(f"annotations: {name!r} cannot name an annotation: it has another meaning.")
            if np.isinf(self.values[:, j]).any():
                row = int(np.isinf(self.values[:, j]).argmax())
                raise InputError(f"annotations: {name} of variant {self.variants['SNP'][row]} is infinite.")

    def select(self, names: Sequence[str]) -> Annotations:
        """The annotations named, in that order; InputError for a name that is not there."""
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise InputError(f"no annotation {', '.join(unknown)}; there are {', '.join(self.names)}.")
        columns = [self.names.index(name) for name in names]
        kept = {name: self.sources[name] for name in names}
        return replace(self, names=tuple(names), values=self.values[:, columns], sources=kept)

    def summary(self) -> pl.DataFrame:
        """One row an annotation: name, mean, sd, minimum and maximum of the values present, missing, source."""
        rows = []
        for name, column in zip(self.names, self.values.T, strict=True):
            present = column[~np.isnan(column)].astype(np.float64)
            known = present.size > 0
            rows.append(
                {
                    "name": name,
                    "mean": present.mean() if known else None,
                    "sd": present.std() if known else None,
                    "minimum": present.min() if known else None,
                    "maximum": present.max() if known else None,
                    "missing": column.size - present.size,
                    "source": self.sources[name],
                }
            )
        schema = {"name": pl.String, "mean": pl.Float64, "sd": pl.Float64, "minimum": pl.Float64}
        return pl.DataFrame(rows, schema={**schema, "maximum": pl.Float64, "missing": pl.Int64, "source": pl.String})

    def write_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write Parquet in PolyFun's layout, `SNP CHR BP A1 A2 <annotation...>`, atomically.

        Annotations are float32, missing ones null. CHR is an integer as PolyFun expects, X, Y and MT being
        23, 24 and 26 as in PLINK. Names, sources, file checksums and the tally stand as JSON in the file's
        metadata under `deepwas`. Raises InputError when the folder cannot be written or a contig has no
        number.
        """
        target = require_parent(path)
        codes = pl.col("CHR").replace(_PLINK_CODES).cast(pl.Int64, strict=False)
        keys = self.variants.select("SNP", codes, pl.col("BP").cast(pl.Int64), "A1", "A2")
        if keys["CHR"].null_count():
            row = int(keys["CHR"].is_null().arg_true()[0])
            raise InputError(
                f"{target}: contig {self.variants['CHR'][row]!r} of variant {keys['SNP'][row]} has no number in the "
                "layout. Leave out contigs other than 1-22, X, Y and MT."
            )
        columns = [pl.Series(name, self.values[:, j], nan_to_null=True) for j, name in enumerate(self.names)]
        frame = keys.hstack(columns)
        validate_table(frame.select(KEY_COLUMNS), "annotations", f"{target}")
        content = {
            "format": FORMAT,
            "format_version": 1,
            "deepwas_version": __version__,
            "names": list(self.names),
            "sources": self.sources,
            "files": self.files,
            "tally": self.tally.as_list(),
        }
        with atomic_path(target) as temporary:
            frame.write_parquet(temporary, metadata={METADATA_KEY: json.dumps(content)})


def check_variants(variants: pl.DataFrame) -> pl.DataFrame:
    """The columns SNP CHR BP A1 A2 of `variants`, checked: all there, at least one row, no missing position."""
    absent = [name for name in KEY_COLUMNS if name not in variants.columns]
    if absent:
        raise InputError(
            f"variants: column {', '.join(absent)} is missing; found {' '.join(variants.columns)}. "
            "Give the variants of an LD store: open_ld(path).variants."
        )
    if variants.height == 0:
        raise InputError("variants: no rows. Give the variants of an LD store: open_ld(path).variants.")
    if not variants.schema["BP"].is_integer() or variants["BP"].null_count() or variants["CHR"].null_count():
        raise InputError("variants: CHR and BP must be there for every variant, BP as an integer.")
    return variants.select(
        "SNP",
        normalise_chromosomes(variants["CHR"]).alias("CHR"),
        pl.col("BP").cast(pl.Int64),
        pl.col("A1"),
        pl.col("A2"),
    )


def stored_content(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `Annotations.write_parquet` noted in a file's metadata; None for any other file."""
    target = Path(path)
    if "@" in target.name or not target.is_file():
        return None
    with open(target, "rb") as handle:
        if handle.read(4) != b"PAR1":
            return None
    try:
        content = json.loads(pl.read_parquet_metadata(target).get(METADATA_KEY, "null"))
    except (pl.exceptions.PolarsError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: damaged Parquet file ({error}). Write or download it again.") from error
    if isinstance(content, dict) and content.get("format") == "deepwas-signed-scores":
        raise InputError(
            f"{path}: signed scores, not annotations: their sign depends on which allele is counted, and the variance "
            "of an effect cannot. Give the file of absolute scores that `deepwas scores` wrote; signed ones are for "
            "`deepwas direction`."
        )
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def stack(columns: dict[str, np.ndarray], height: int) -> np.ndarray:
    """Columns (M,) into one float32 matrix (M, p); `columns` is emptied, so that memory is not held twice."""
    values = np.empty((height, len(columns)), dtype=np.float32)
    for j, name in enumerate(list(columns)):
        values[:, j] = columns.pop(name)
    return values


def read_annotations(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    variants: pl.DataFrame,
    *,
    table_key: KeyChoice = "auto",
) -> Annotations:
    """Read annotation tables and align them to `variants`, the frame of an LD store; rows keep its order.

    path: one file or several with different annotations: what `Annotations.write_parquet` wrote, or any table
    that `deepwas.annotations.table.read_table` understands. Variants that a table lacks are missing (NaN) and
    counted. Constant columns are dropped and counted, except from a file that deepwas wrote, whose columns
    all stay. Raises InputError for unreadable files, tables that match no variant, and names that come from
    two files.
    """
    keys = check_variants(variants)
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise InputError("read_annotations: no file given.")
    columns: dict[str, np.ndarray] = {}
    sources: dict[str, str] = {}
    files: dict[str, str] = {}
    tally = Tally()
    for one in paths:
        content = stored_content(one)
        if content is not None and content.get("format_version") != 1:
            raise InputError(f"{one}: annotation format {content.get('format_version')} is newer: update deepwas.")
        table = read_table(one, keys, key=table_key, keep_constant=content is not None)
        if content is None:
            note_signs(table, Path(one).name)
        add_columns(columns, sources, table.columns, {n: f"{n} of {Path(one).name}" for n in table.columns})
        files.update(table.files)
        tally.extend(table.tally)
        if content is not None:
            sources.update({name: text for name, text in content["sources"].items() if name in sources})
    names = tuple(columns)
    return Annotations(names, stack(columns, keys.height), keys, sources, files, tally)


def add_columns(
    columns: dict[str, np.ndarray],
    sources: dict[str, str],
    new: dict[str, np.ndarray],
    texts: dict[str, str],
) -> None:
    """Move `new` columns into `columns`, with their sources; a name already there is an error."""
    for name in list(new):
        if name in columns:
            raise InputError(
                f"annotation {name} comes twice: {sources[name]}; {texts[name]}. Rename one of them, or leave one "
                "out; for one file a chromosome, give a single path with @ for the number."
            )
        columns[name], sources[name] = new.pop(name), texts[name]
