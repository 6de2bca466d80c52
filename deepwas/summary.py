"""What a fit found, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

__all__ = ["fits_table", "mismatch_lines", "sensitivity_table", "verdicts"]

_SMALL = 1e-4  # of a heritability: below it, five decimals are hardly any digits
_NOTHING = 1e-8


def _with_error(value: float, error: float | None, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if error is None else f" ({error:.{digits}f})")


def _h2(value: float, error: float | None) -> str:
    """A heritability and its standard error: to 5 decimals, or where that leaves nothing, to 2 digits."""
    if value < _NOTHING:
        return "0 (at its bound)"  # where the jackknife's error is of nothing

    def text(x: float) -> str:
        return f"{x:.5f}" if x >= _SMALL else f"{x:.2g}"

    return text(value) + ("" if error is None else f" ({text(error)})")


def _kind(record: Mapping[str, Any]) -> str:
    return "cross_fitted" if record["heritability"]["cross_fitted"] else "plain"


def fits_table(records: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a fit: variants, SNP heritability with standard error, noise, held-out gain with standard error, seconds.

    records: the content of `run.json` by the name to show. A row says whether its figures are those of the cross-fitted
    prior or of the plain one, the first network's for all variants, whose heritability has a column of its own. SNP
    heritability is the sum of the prior; the constant prior's is its maximum-likelihood estimate on all blocks. `scale`
    is the factor on the row's whole prior that fits best; the standard error is that of the scale, times h2.
    """
    table = Table(title="Priors fitted (standard errors in brackets: block jackknife; gains: over blocks)")
    table.title_justify = "left"
    table.add_column("prior")
    for name in (
        "variants scored / modelled",
        "SNP heritability",
        "if not cross-fitted",
        "scale",
        "noise",
        "held-out gain, nats",
        "blocks",
        "seconds",
    ):
        table.add_column(name, justify="right")
    for name, record in records.items():
        size, kind = record["size"], _kind(record)
        h2, plain, held = record["heritability"][kind], record["heritability"]["plain"], record["held_out"][kind]
        scale, gain = f"{h2['scale']:.2f}", _with_error(held["gain"], held["standard_error"], 1)
        of = "cross-fitted" if kind == "cross_fitted" else "not cross-fitted"
        if (members := record["options"].get("ensemble", 1)) > 1:
            of += f", mean of {members}"
        if record["options"]["network"] == "constant":
            h2 = plain = record["heritability"]["constant"]
            scale, gain, of = "1", "0 (reference)", "all blocks"
        table.add_row(
            f"{name} ({of})",
            f"{size['variants_scored']:,} / {size['variants_modelled']:,}",
            _h2(h2["h2"], h2["standard_error"]),
            _h2(plain["h2"], plain["standard_error"]),
            scale,
            f"{h2['noise']:.2f}",
            gain,
            str(len(held["blocks"])),
            f"{record['seconds']:.1f}",
        )
    return table


def verdicts(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the held-out blocks say of each network, in a sentence."""
    lines = []
    for name, record in records.items():
        if record["options"]["network"] == "constant":
            continue
        held = record["held_out"][_kind(record)]
        gain, error = held["gain"], held["standard_error"]
        ratio = gain / error if error else 0.0
        verdict = "better than" if ratio > 2 else "worse than" if ratio < -2 else "not significantly different from"
        spread = f"standard error {error:.1f}" if error is not None else "one block: no standard error"
        lines.append(
            f"{name}: held-out log-likelihood {gain:+.1f} nats ({spread}): {verdict} the constant prior on "
            f"{len(held['blocks'])} blocks."
        )
    return lines


def mismatch_lines(found: Mapping[str, Any]) -> list[str]:
    """How the z-scores fit the LD, in a sentence or two; `found` is the entry `mismatch` of `run.json`."""
    done = {
        "report": "used all the same (--mismatch report)",
        "down-weight": "down-weighted in training",
        "exclude": "left out of training",
    }[found["action"]]
    reasons = found["by_reason"]
    many = f"{found['flagged']} of {found['blocks']} LD blocks"
    lines = [f"LD mismatch: {many} flagged, beyond what the noise of {found['noise']:.2f} stands for"]
    if found["flagged"]:
        lines[0] += (
            f" (energy in dropped directions {reasons['dropped']}, in small ones {reasons['small']}, variants at odds "
            f"with their neighbours {reasons['outliers']}); {done}. mismatch.tsv lists every block."
        )
    else:
        lines[0] += "."
    if (worst := found["worst_variant"]) is not None:
        lines.append(
            f"{found['outliers']:,} variant(s) at odds with their neighbours (mismatch_variants.tsv), most of all "
            f"{worst['SNP']}: z = {worst['Z']:.1f}, expected {worst['EXPECTED_Z']:.1f}."
            + (" Are its alleles swapped?" if worst["Z"] * worst["EXPECTED_Z"] < 0 else "")
        )
    return lines


def sensitivity_table(rows: Sequence[Mapping[str, Any]], *, of: str) -> Table:
    """Heritability of the constant prior by the eigenvalues used; `of` says what the shares are shares of."""
    table = Table(title="How the constant prior's heritability hangs on the LD eigenvalues used", title_justify="left")
    table.add_column(f"share of {of}", justify="right")
    table.add_column("eigenvalues", justify="right")
    table.add_column("h2, noise learned", justify="right")
    table.add_column("noise", justify="right")
    table.add_column("h2, noise = 1", justify="right")
    for row in rows:
        table.add_row(
            row.get("label", f"{row['share']:.0%}"),
            f"{row['eigenvalues']:,}",
            _h2(row["h2_noise_learned"], row["standard_error_noise_learned"]),
            f"{row['noise']:.2f}",
            _h2(row["h2_noise_1"], row["standard_error_noise_1"]),
        )
    return table
