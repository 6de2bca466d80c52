"""Rows of a file of scores against the variants of an LD store: which is which, on which alleles, and how often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.annotations.score_files import ScoreFile
from deepwas.errors import InputError
from deepwas.sumstats.alleles import PALINDROMIC, allele_class, orient
from deepwas.tally import Tally

__all__ = ["Aligned", "ScoreOptions", "align", "no_match"]

_STEP = "scores"
_OTHER_STRAND_SHARE = 1e-3
_MOVED_SHARE = 0.10


@dataclass(frozen=True)
class ScoreOptions:
    """How scores are read; every field checks itself.

    make: 'absolute' (annotations), 'signed', or 'both'.
    unsigned: shell patterns of columns without a sign; they are annotations as they are.
    columns: shell patterns of the columns to use; all by default.
    pca: this many principal components of each kind instead of the columns; None keeps the columns.
    match: by 'position' (CHR BP and alleles) or 'rsid' (SNP and alleles).
    palindromes: the sign of A/T and C/G variants: 'auto' trusts it if the file and the store are on the same strand
        everywhere else (at most 1 in 1,000 other SNPs complemented), 'keep' always does, 'drop' leaves it missing.
    matrix: dataset of an HDF5 file that holds the scores; None finds it.
    """

    make: Literal["absolute", "signed", "both"] = "both"
    unsigned: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    pca: int | None = None
    match: Literal["position", "rsid"] = "position"
    palindromes: Literal["auto", "keep", "drop"] = "auto"
    matrix: str | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("make", ("absolute", "signed", "both")),
            ("match", ("position", "rsid")),
            ("palindromes", ("auto", "keep", "drop")),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"{name}={getattr(self, name)!r}: give one of {', '.join(known)}.")
        if self.pca is not None and (not isinstance(self.pca, int) or self.pca < 1):
            raise InputError(f"pca={self.pca!r}: give a number of components, 1 or more, or None for the columns.")

    def without_sign(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """(p,), which columns are named as unsigned."""
        return np.array([any(fnmatchcase(name, pattern) for pattern in self.unsigned) for name in names], dtype=bool)


@dataclass(frozen=True)
class Aligned:
    """One file against the store.

    row, variant, sign: (n,) rows of the file, ascending; the store's variant each is for; +1, -1, or 0 if unknown.
    again: (d, 2) rows that repeat a variant, and the row that counts; again_sign: (d,) +1 where both give the alleles
        in one order, -1 where they exchange them.
    """

    file: ScoreFile
    row: NDArray[np.int64]
    variant: NDArray[np.int64]
    sign: NDArray[np.int8]
    again: NDArray[np.int64]
    again_sign: NDArray[np.int8]

    def pieces(
        self, options: ScoreOptions
    ) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int8], NDArray[np.float32]]]:
        """(rows read, variant (r,), sign (r,), raw values (r, p)) of matched rows.

        At the end InputError for rows of one variant whose scores differ, once set on the same alleles: unsigned ones
        as they are, others with their sign, or with make='absolute' without.
        """
        kept: dict[int, NDArray[np.float32]] = {}
        watched = np.unique(self.again)
        for start, values in self.file.pieces():
            stop = start + len(values)
            for row in watched[(watched >= start) & (watched < stop)].tolist():
                kept[row] = values[row - start].copy()
            low, high = np.searchsorted(self.row, (start, stop))
            yield len(values), self.variant[low:high], self.sign[low:high], values[self.row[low:high] - start]
        self._refuse_conflicts(kept, options)

    def _refuse_conflicts(self, kept: dict[int, NDArray[np.float32]], options: ScoreOptions) -> None:
        unsigned = options.without_sign(self.file.names)
        for (row, first), sign in zip(self.again.tolist(), self.again_sign.tolist(), strict=True):
            a, b = kept[first], kept[row]
            agree = np.abs(a) == np.abs(b) if options.make == "absolute" else a == b * sign
            same = np.where(unsigned, a == b, agree) | (np.isnan(a) & np.isnan(b))
            if not same.all():
                j = int((~same).argmax())
                key, other = (self.file.keys.row(r, named=True) for r in (first, row))
                raise InputError(
                    f"{self.file.path}: {self.file.place(first)} and {self.file.place(row)} are the same variant "
                    f"({key['CHR']}:{key['BP']} {key['REF']}>{key['ALT']}) but column {self.file.names[j]} holds "
                    f"{a[j]:g} and, for {other['REF']}>{other['ALT']}, {b[j]:g}. Keep one row a variant."
                )


def align(file: ScoreFile, panel: pl.DataFrame, options: ScoreOptions, tally: Tally) -> Aligned:
    """Which rows of a file are which variants of the store, and whether their sign turns; every row is counted."""
    on = ["SNP"] if options.match == "rsid" else ["CHR", "BP"]
    if file.keys["SNP"].null_count() == file.keys.height and options.match == "rsid":
        raise InputError(f"{file.path}: has no identifiers to match by. Leave --match out.")
    step = f"{_STEP} of {file.path.name}"
    rows = file.keys.rename({"ALT": "A1", "REF": "A2"}).with_row_index("ROW")
    keyed = rows.drop_nulls([*on, "A1", "A2"])
    tally.add(step, "dropped", "rows without place or alleles", rows.height - keyed.height)
    if options.match == "position":
        _refuse_other_build(file, keyed, panel)
    keyed = keyed.with_columns(allele_class().alias("CLASS"))
    ours = (
        panel.with_columns(pl.col("A1", "A2").str.to_uppercase())
        .with_columns(allele_class().alias("CLASS"))
        .with_row_index("VARIANT")
        .rename({"A1": "PANEL_A1", "A2": "PANEL_A2"})
        .select("VARIANT", "PANEL_A1", "PANEL_A2", "CLASS", *on)
    )
    joined = keyed.select("ROW", "A1", "A2", "CLASS", *on).join(ours, on=[*on, "CLASS"], how="inner")
    joined = orient(joined).sort("VARIANT", "ROW")
    near = keyed.join(ours, on=on, how="semi").height
    hit = joined["ROW"].n_unique()
    tally.add(step, "noted", "rows of other variants, unused", keyed.height - near)
    tally.add(step, "dropped", "rows at a variant's place with other alleles", near - hit)
    first = joined.unique("VARIANT", keep="first", maintain_order=True)
    again = joined.join(first.select("VARIANT", FIRST="ROW", FIRST_FLIP="FLIP"), on="VARIANT", how="inner")
    again = again.filter(pl.col("ROW") != pl.col("FIRST")).sort("ROW")
    tally.add(step, "dropped", "rows that repeat a variant, with the same scores", again.height)
    tally.add(step, "kept", f"variants matched by {' '.join(on)} and alleles", first.height)
    sign = np.where(first["FLIP"].to_numpy(), -1, 1).astype(np.int8)
    tally.add(step, "changed", "sign turned: A1 is the reference allele", int((sign < 0).sum()))
    other = int(first["OTHER_STRAND"].sum())
    tally.add(step, "changed", "on the other strand, alleles complemented", other)
    palindromic = first["CLASS"].is_in(list(PALINDROMIC)).to_numpy()
    doubtful = options.palindromes == "drop" or (
        options.palindromes == "auto" and other > _OTHER_STRAND_SHARE * max(1, first.height - int(palindromic.sum()))
    )
    what = "no signed score: " if doubtful else "sign taken as on the store's strand: "
    action: Literal["dropped", "noted"] = "dropped" if doubtful else "noted"
    tally.add(step, action, what + "palindromic variants (A/T or C/G)", int(palindromic.sum()))
    if doubtful:
        sign[palindromic] = 0
    if file.unused:
        named = ", ".join(file.unused[:8]) + (", ..." if len(file.unused) > 8 else "")
        tally.add(step, "noted", f"columns unused, no scores: {named}", len(file.unused))
    order = np.argsort(first["ROW"].to_numpy(), kind="stable")
    turned = np.where((again["FLIP"] == again["FIRST_FLIP"]).to_numpy(), 1, -1) if again.height else np.zeros(0)
    return Aligned(
        file,
        first["ROW"].to_numpy()[order].astype(np.int64),
        first["VARIANT"].to_numpy()[order].astype(np.int64),
        sign[order],
        again.select("ROW", "FIRST").to_numpy().astype(np.int64).reshape(-1, 2),
        turned.astype(np.int8),
    )


def _refuse_other_build(file: ScoreFile, rows: pl.DataFrame, panel: pl.DataFrame) -> None:
    """Compare positions through the identifiers both sides share: between builds most differ."""
    shared = rows.drop_nulls("SNP").join(panel.select("SNP", "CHR", PANEL_BP="BP"), on=["SNP", "CHR"], how="inner")
    moved = shared.filter(pl.col("BP") != pl.col("PANEL_BP"))
    if moved.height > _MOVED_SHARE * shared.height:
        row = moved.row(0, named=True)
        raise InputError(
            f"{file.path}: of {shared.height:,} identifiers shared with the LD store, {moved.height:,} have another "
            f"position ({row['SNP']}: {row['BP']:,}, in the store {row['PANEL_BP']:,}): two genome builds. Match by "
            "identifier with --match rsid, or lift the scores over."
        )


def no_match(file: ScoreFile, panel: pl.DataFrame, options: ScoreOptions) -> str:
    """What to say of a file of which no row matches."""
    a, b = file.keys.row(0, named=True), panel.row(0, named=True)
    by = "identifier" if options.match == "rsid" else "position"
    return (
        f"{file.path}: no row matches any of {panel.height:,} variants of the LD store by {by} and alleles. First of "
        f"the file: {a['SNP'] or ''} chr{a['CHR']}:{a['BP']} {a['REF']}>{a['ALT']}; of the store: {b['SNP']} "
        f"chr{b['CHR']}:{b['BP']} {b['A1']}/{b['A2']}. Are they of the same genome build?"
    )
