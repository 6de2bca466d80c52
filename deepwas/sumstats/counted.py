"""Dropping and noting rows of a table of variants so that every one is counted, with the first case."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from deepwas.tally import Tally


def describe(frame: pl.DataFrame, row: int, show: Sequence[str] = ()) -> str:
    """One row in a few words: its identifier, or CHR:BP:A1:A2 without one, then the columns in `show`."""
    values = frame.row(row, named=True)
    name = values.get("SNP") or ":".join(str(values.get(c) or "?") for c in ("CHR", "BP", "A1", "A2"))
    return ", ".join([str(name), *(f"{c} = {_plain(values[c])}" for c in show)])


def _plain(value: object) -> str:
    if value is None:
        return "missing"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def note(
    frame: pl.DataFrame,
    where: pl.Expr,
    tally: Tally,
    step: str,
    reason: str,
    *,
    changed: bool = False,
    show: Sequence[str] = (),
) -> None:
    """Count the rows where `where` holds as noted (or changed), without touching them."""
    rows = _mask(frame, where)
    if rows.any():
        first = describe(frame, int(rows.arg_true()[0]), show)
        tally.add(step, "changed" if changed else "noted", reason, int(rows.sum()), first)


def drop(
    frame: pl.DataFrame, where: pl.Expr, tally: Tally, step: str, reason: str, *, show: Sequence[str] = ()
) -> pl.DataFrame:
    """`frame` without the rows where `where` holds (null is not held), which are counted as dropped."""
    rows = _mask(frame, where)
    if not rows.any():
        return frame
    first = describe(frame, int(rows.arg_true()[0]), show)
    tally.add(step, "dropped", reason, int(rows.sum()), first)
    return frame.filter(~rows)


def _mask(frame: pl.DataFrame, where: pl.Expr) -> pl.Series:
    return frame.select(where.fill_null(False)).to_series()
