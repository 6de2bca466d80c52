"""Wide tables of text, some lines at a time: cut into fields, with errors that name the line."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from deepwas.errors import InputError
from deepwas.files import kind_of
from deepwas.tables import MISSING

__all__ = ["NO_SCORE", "TextTable"]

NO_SCORE = (*MISSING, "-")  # "-" as annotators of variants write it

TEXT_BYTES = 1 << 25  # parsed together: as float32 it is no larger


def _text_pieces(path: Path) -> Iterator[bytes]:
    """Whole lines, about TEXT_BYTES at a time, without carriage returns and lines that start with ##."""
    with open(path, "rb") as handle:
        compressed = handle.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path, "rb") if compressed else open(path, "rb") as handle:
            rest = b""
            while piece := handle.read(TEXT_BYTES):
                whole, newline, rest = (rest + piece).rpartition(b"\n")
                if newline:
                    yield _cleaned(whole)
            if rest.strip():
                yield _cleaned(rest)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: the gzip data are damaged or cut short ({error}). Copy or download the file again."
        ) from error


def _cleaned(data: bytes) -> bytes:
    data = data.replace(b"\r\n", b"\n").rstrip(b"\r\n")
    if data.startswith(b"##") or b"\n##" in data:
        data = b"\n".join(line for line in data.split(b"\n") if not line.startswith(b"##"))
    return data


@dataclass(frozen=True)
class TextTable:
    """How a text file is cut into fields: path, separator and header names."""

    path: Path
    separator: bytes
    header: list[str]

    @classmethod
    def of(cls, path: Path) -> TextTable:
        """The layout, from the header."""
        first = next((piece for piece in _text_pieces(path) if piece), b"")
        if not first.strip():
            raise InputError(f"{path}: the file is empty, a table of scores is expected.")
        if b"\x00" in first[:4096]:
            raise InputError(f"{path}: this is {kind_of(first[:4096])}; scores come as text, Parquet or HDF5.")
        head = first.split(b"\n", 1)[0]
        separator = next((sep for sep in (b"\t", b",") if sep in head), b" ")
        if separator == b" ":
            head = re.sub(rb"[ \t]+", b" ", head.strip())
        header = [name.strip().strip('"') for name in head.decode("utf-8", "replace").split(separator.decode())]
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise InputError(f"{path}: the header names {', '.join(twice[:5])} twice. Rename or remove one of them.")
        return cls(path, separator, header)

    def bodies(self) -> Iterator[tuple[int, bytes]]:
        """(row number of its first line, text), without the header."""
        row, begun = 0, False
        for piece in _text_pieces(self.path):
            if not piece:
                continue
            if not begun:
                _, _, piece = piece.partition(b"\n")
                begun = True
            if piece:
                yield row, piece
                row += piece.count(b"\n") + 1

    def parse(self, row: int, data: bytes, wanted: Sequence[str], floats: bool) -> pl.DataFrame:
        """The columns wanted, as float32 or as text, missing codes null. InputError names the line at fault."""
        if self.separator == b" ":
            data = re.sub(rb"[ \t]+", b" ", data)
            data = re.sub(rb"(?m)^ | $", b"", data)
        used = [self.header.index(name) for name in wanted]
        last = len(self.header) - 1
        names = [f"c{i}" for i in range(len(self.header))]
        try:
            frame = pl.read_csv(
                io.BytesIO(self.separator.join(name.encode() for name in names) + b"\n" + data),
                separator=self.separator.decode(),
                infer_schema=False,
                schema_overrides={names[i]: pl.Float32 if floats else pl.String for i in used},
                columns=[names[i] for i in sorted({*used, last})],
                null_values=list(NO_SCORE if floats else MISSING),
                quote_char='"' if self.separator == b"," else None,
            )
        except pl.exceptions.PolarsError as error:
            self._refuse_lines(row, data, range(data.count(b"\n") + 1))
            if floats:
                self.refuse_text(row, self.parse(row, data, wanted, floats=False))
            raise InputError(f"{self.path}: cannot be read as a table of scores ({error}).") from error
        short = frame[names[last]].is_null()
        if short.any():
            self._refuse_lines(row, data, short.arg_true().to_list())
        return frame.select(pl.col(names[i]).alias(self.header[i]) for i in used)

    def _refuse_lines(self, row: int, data: bytes, suspects: Sequence[int] | range) -> None:
        """Lines with another number of fields; short ones would be filled up with missing values."""
        lines = data.split(b"\n")
        for i in suspects:
            found = self._fields(lines[i], row + i + 2)
            if found != len(self.header):
                raise InputError(
                    f"{self.path}: line {row + i + 2:,} has {found} fields, the header has {len(self.header)}. "
                    "The file may be cut short: check it, or remove that line."
                )

    def _fields(self, line: bytes, number: int) -> int:
        """How many fields a line has; a comma between quotes ends none."""
        if self.separator != b",":
            return line.count(self.separator) + 1
        try:
            return len(next(csv.reader([line.decode("utf-8", "replace")]), []))
        except csv.Error as error:
            raise InputError(f"{self.path}: line {number:,} cannot be cut into fields ({error}). Mend it.") from error

    def refuse_text(self, row: int, frame: pl.DataFrame) -> None:
        """InputError for a value of text columns that is not a number; `row` is the number of the first row."""
        for name in frame.columns:
            there = frame[name].is_not_null() & ~frame[name].str.strip_chars().is_in(list(NO_SCORE))
            bad = there & frame[name].str.strip_chars().cast(pl.Float32, strict=False).is_null()
            if bad.any():
                at = int(bad.arg_true()[0])
                raise InputError(
                    f"{self.path}: column {name}, line {row + at + 2:,}: {frame[name][at]!r} is not a number. "
                    "Mend it, write NA where it is missing, or name the columns to read with --columns."
                )
