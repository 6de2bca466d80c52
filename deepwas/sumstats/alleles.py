"""Alleles of two tables set against each other: which way round, and on which strand.

The same SNP can be written four ways (A/G, G/A, T/C, C/T). A z-score belongs to one allele: where the other
table counts the other allele its sign flips; where it reads the other strand it does not.
"""

from __future__ import annotations

import polars as pl

_COMPLEMENT = {"A": "T", "C": "G", "G": "C", "T": "A"}
_CLASS = {
    **dict.fromkeys(("A/G", "G/A", "T/C", "C/T"), "A/G"),
    **dict.fromkeys(("A/C", "C/A", "T/G", "G/T"), "A/C"),
    **dict.fromkeys(("A/T", "T/A"), "A/T"),
    **dict.fromkeys(("C/G", "G/C"), "C/G"),
}
PALINDROMIC = ("A/T", "C/G")


def allele_class(a1: str = "A1", a2: str = "A2") -> pl.Expr:
    """A name common to all ways of writing the same pair of alleles.

    For SNPs it depends neither on order nor on strand; for indels and longer alleles only not on order, as
    their strand is not second-guessed. At one site of a reference the classes of different alternative
    alleles differ.
    """
    first, second = pl.col(a1), pl.col(a2)
    pair = pl.concat_str(first, pl.lit("/"), second)
    ordered = pl.when(first <= second).then(pair).otherwise(pl.concat_str(second, pl.lit("/"), first))
    return pair.replace_strict(_CLASS, default=ordered, return_dtype=pl.String)


def orient(frame: pl.DataFrame) -> pl.DataFrame:
    """Add FLIP (A1 is the panel's A2) and OTHER_STRAND to rows whose allele class equals the panel's.

    frame: A1, A2 and PANEL_A1, PANEL_A2. For palindromic pairs both readings fit: FLIP is then what it is on
    the same strand, OTHER_STRAND is false, and the decision is left to `palindromes`.
    """
    a1, a2, b1, b2 = (pl.col(c) for c in ("A1", "A2", "PANEL_A1", "PANEL_A2"))
    same_strand = ((a1 == b1) & (a2 == b2)) | ((a1 == b2) & (a2 == b1))
    on_this_strand = a1.replace(_COMPLEMENT)
    return frame.with_columns(
        pl.when(same_strand).then(a1 != b1).otherwise(on_this_strand != b1).alias("FLIP"),
        (~same_strand).alias("OTHER_STRAND"),
    )


def strand_by_frequency(margin: float, panel_margin: pl.Expr) -> pl.Expr:
    """For palindromic rows: true if on the other strand, false if on the same, null if frequency cannot tell.

    Needs FRQ (of A1), FLIP and PANEL_FREQ (of PANEL_A1). Frequency tells when both departs from 1/2: the GWAS
    by more than `margin`, the panel by more than `panel_margin`. The strand is the other one when they depart
    to opposite sides.
    """
    excess = pl.when("FLIP").then(0.5 - pl.col("FRQ")).otherwise(pl.col("FRQ") - 0.5)
    panel_excess = pl.col("PANEL_FREQ") - 0.5
    tells = (excess.abs() > margin) & (panel_excess.abs() > panel_margin)
    return pl.when(tells).then(excess * panel_excess < 0)
