"""What a fit found, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

__all__ = ["fits_table", "sensitivity_table"]


def _with_error(value: float, error: float | None, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if error is None else f" ({error:.{digits}f})")


def fits_table(records: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a fit: variants, SNP heritability with standard error, noise, held-out gain with standard error, seconds.

    records: the content of `run.json` by the name to show. Cross-fitted figures where they exist, else the plain ones.
    """
    table = Table(title="Priors fitted by full likelihood (standard errors in brackets)", title_justify="left")
    for name in ("prior", "variants scored / modelled", "SNP heritability", "noise"):
        table.add_column(name, justify="left" if name == "prior" else "right")
    table.add_column("held-out gain, nats", justify="right")
    table.add_column("blocks held out", justify="right")
    table.add_column("seconds", justify="right")
    for name, record in records.items():
        size = record["size"]
        kind = "cross_fitted" if record["heritability"]["cross_fitted"] else "plain"
        h2, held = record["heritability"][kind], record["held_out"][kind]
        if record["options"]["network"] == "constant":
            h2 = record["heritability"]["constant"]
            gain = "0 (reference)"
        else:
            gain = _with_error(held["gain"], held["standard_error"], 1)
        table.add_row(
            name,
            f"{size['variants_scored']:,} / {size['variants_modelled']:,}",
            _with_error(h2["h2"], h2["standard_error"], 5),
            f"{h2['noise']:.2f}",
            gain,
            str(len(held["blocks"])),
            f"{record['seconds']:.1f}",
        )
    return table


def sensitivity_table(rows: Sequence[Mapping[str, Any]], *, of: str) -> Table:
    """Heritability of the constant prior by the eigenvalues used; `of` says what the shares are shares of."""
    table = Table(title="How the heritability hangs on the LD eigenvalues used", title_justify="left")
    table.add_column(f"share of {of}", justify="right")
    table.add_column("eigenvalues", justify="right")
    table.add_column("h2, noise learned", justify="right")
    table.add_column("noise", justify="right")
    table.add_column("h2, noise = 1", justify="right")
    for row in rows:
        table.add_row(
            row.get("label", f"{row['share']:.0%}"),
            f"{row['eigenvalues']:,}",
            _with_error(row["h2_noise_learned"], row["standard_error_noise_learned"], 5),
            f"{row['noise']:.2f}",
            _with_error(row["h2_noise_1"], row["standard_error_noise_1"], 5),
        )
    return table
