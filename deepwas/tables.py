"""Reading delimited text into polars, with errors that name the file, the column and the row."""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Sequence

import polars as pl

from deepwas.errors import InputError
from deepwas.files import kind_of, require_file

MISSING = ("", "NA", "#NA", "nan", "NaN", "NAN", ".", "N/A", "na", "-nan", "None", "null", "NULL")


def read_bytes(path: str | os.PathLike[str], what: str) -> bytes:
    """The bytes of a file, decompressed when they start with gzip's magic number, whatever the name says."""
    found = require_file(path, what)
    with open(found, "rb") as handle:
        magic = handle.read(2)
    try:
        if magic == b"\x1f\x8b":
            with gzip.open(found, "rb") as handle:
                return handle.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{found}: the gzip data are damaged or cut short ({error}). Copy or download the file again."
        ) from error
    return found.read_bytes()


def read_delimited(
    path: str | os.PathLike[str],
    *,
    what: str,
    header: bool = True,
    comment: Sequence[str] = (),
    floats: Callable[[str], bool] | None = None,
) -> pl.DataFrame:
    """Read a delimited text file, plain or gzip, every column as text; missing codes become null.

    The separator is a tab, else a comma, else runs of spaces, whichever the first line holds. With `header` the
    first line names the columns, else they are column_1, column_2 and so on. Lines that start with a `comment`
    prefix are passed over. A row with another number of fields is an error that names it.

    `floats` says of a header name whether its column is parsed as float32 at once, which a wide table needs (text
    takes many times the memory). If any of them holds text, all columns come as text: `numeric_column` names the row.
    """
    data = read_bytes(path, what)
    if b"\x00" in data[:4096]:
        raise InputError(f"{path}: this is {kind_of(data[:4096])}, {what} expected.")
    if comment:
        prefixes = tuple(c.encode() for c in comment)
        data = b"\n".join(line for line in data.split(b"\n") if not line.startswith(prefixes))
    data = data.replace(b"\r\n", b"\n").strip(b"\n")
    if not data.strip():
        raise InputError(f"{path}: the file is empty, {what} expected.")
    first = data.split(b"\n", 1)[0]
    if b"\t" in first:
        separator = "\t"
    elif b"," in first:
        separator = ","
    else:
        separator = " "
        data = re.sub(rb"[ \t]+", b" ", data)
        data = re.sub(rb"(?m)^ | $", b"", data)
        first = data.split(b"\n", 1)[0]
    fields = first.count(separator.encode()) + 1
    if header:
        names = [n.strip().strip('"') for n in first.decode("utf-8", "replace").split(separator)]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise InputError(f"{path}: the header names {', '.join(twice)} twice. Rename or remove one of them.")
    types: list[type[pl.DataType]] | None = None
    if header and floats is not None:
        types = [pl.Float32 if floats(name) else pl.String for name in names]

    def parse(overrides: list[type[pl.DataType]] | None) -> pl.DataFrame:
        return pl.read_csv(
            io.BytesIO(data),
            separator=separator,
            has_header=header,
            infer_schema=False,
            schema_overrides=overrides,
            null_values=list(MISSING),
            quote_char='"' if separator == "," else None,
        )

    try:
        try:
            frame = parse(types)
        except pl.exceptions.ComputeError:
            frame = parse(None)
    except pl.exceptions.PolarsError as error:
        sep = separator.encode()
        for number, line in enumerate(data.split(b"\n"), start=1):
            found = line.count(sep) + 1
            if found != fields and separator != ",":
                raise InputError(
                    f"{path}: line {number} has {found} fields, the first line has {fields}. Mend or remove that line."
                ) from error
        raise InputError(f"{path}: cannot be read as {what} ({error}).") from error
    if header:
        frame.columns = names
    short = frame.select(pl.last().is_null()).to_series() if frame.height else pl.Series([], dtype=pl.Boolean)
    if short.any():
        _refuse_short_lines(path, data, separator, fields, short)
    return frame


def _refuse_short_lines(
    path: str | os.PathLike[str], data: bytes, separator: str, fields: int, suspects: pl.Series
) -> None:
    """polars pads short lines with nulls; only lines whose last field is null can be short."""
    if separator == ",":
        return
    sep = separator.encode()
    lines = data.split(b"\n")
    offset = len(lines) - len(suspects)
    for index in suspects.arg_true():
        line = lines[offset + index]
        if line.count(sep) + 1 < fields:
            raise InputError(
                f"{path}: line {offset + index + 1} has {line.count(sep) + 1} fields, the first line has {fields}. "
                "The file may be cut short: check it, or remove that line."
            )


def numeric_column(
    frame: pl.DataFrame,
    column: str,
    path: str | os.PathLike[str],
    *,
    integer: bool = False,
    header: bool = True,
) -> pl.Series:
    """Parse a text column as float64 (or int64), nulls kept; text in it is an error naming row and value."""
    text = frame.get_column(column)
    if text.dtype != pl.String:
        return text.cast(pl.Int64 if integer else pl.Float64)
    parsed = text.str.strip_chars().cast(pl.Float64, strict=False)
    if integer:
        whole = parsed.cast(pl.Int64, strict=False)
        bad = text.is_not_null() & (whole.is_null() | (whole.cast(pl.Float64) != parsed).fill_null(True))
        parsed = whole
    else:
        bad = text.is_not_null() & parsed.is_null()
    if bad.any():
        row = int(bad.arg_true()[0])
        kind = "a whole number" if integer else "a number"
        raise InputError(
            f"{path}: column {column}, line {row + 1 + header}: {text[row]!r} is not {kind} "
            f"({int(bad.sum()):,} such values). Mend the column, or write NA where the value is missing."
        )
    return parsed.alias(column)
