"""Quality control of summary statistics: the options, and the filters on single rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import polars as pl

from deepwas.errors import InputError
from deepwas.files import require_file
from deepwas.sumstats.counted import drop, note
from deepwas.sumstats.regions import NAMED_REGIONS, excluded_regions, inside
from deepwas.tally import Tally

QUALITY, FREQUENCY, REGIONS = "quality", "frequency", "regions"


@dataclass(frozen=True)
class QCOptions:
    """Which variants enter the likelihood, and how they are matched to the LD panel.

    min_n_fraction: drop variants with N below this fraction of the 90th percentile of N (LDSC takes
        1 / 1.5). Their z-scores come from fewer of the cohorts, with another LD. 0 keeps all.
    min_info: drop variants with INFO below this, where the file gives INFO. 0 keeps all.
    extreme_chi2: 'keep' or 'drop' variants with chi-square above max(80, 0.001 N), LDSC's rule. They are
        kept, and counted, by default: the largest real effects (of height at N = 450,000, of most protein
        and expression traits) are among them, and a prior learnt without them is too small.
    max_frequency_difference: drop variants whose frequency differs from the panel's by more than this, or by
        three standard errors of the panel's frequency if that is more: another population, or alleles
        mistaken. 1 keeps all.
    exclude: regions whose z-scores are not scored: 'long-range' (the MHC, chr6:25-34 Mb, and the regions of
        long-range LD), 'mhc', 'none', or the path of a BED file on the panel's build.
    palindromes: for A/T and C/G variants, whose strand cannot be read from the alleles: 'frequency' takes the
        strand on which the frequencies agree and drops those it cannot tell; 'drop' drops all; 'keep' trusts
        that the GWAS is on the panel's strand.
    palindrome_margin: frequency tells the strand when it is further than this from 1/2 in the GWAS, and
        further than this and three standard errors in the panel.
    match: 'position' (chromosome, position and alleles), 'rsid' (identifier and alleles), or 'auto':
        whichever matches more, and position when they match equally many.
    """

    min_n_fraction: float = 0.67
    min_info: float = 0.6
    extreme_chi2: str = "keep"
    max_frequency_difference: float = 0.15
    exclude: str = "long-range"
    palindromes: str = "frequency"
    palindrome_margin: float = 0.08
    match: str = "auto"

    def __post_init__(self) -> None:
        ranges = {
            "min_n_fraction": 1.0,
            "min_info": 1.0,
            "max_frequency_difference": 1.0,
            "palindrome_margin": 0.5,
        }
        for name, upper in ranges.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= upper):
                raise InputError(f"{_flag(name)} is {value}: give a number from 0 to {upper:g}.")
        choices = {
            "extreme_chi2": ("keep", "drop"),
            "palindromes": ("frequency", "drop", "keep"),
            "match": ("auto", "position", "rsid"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{_flag(name)} is {getattr(self, name)!r}: give one of {', '.join(allowed)}.")
        if self.exclude not in NAMED_REGIONS:
            require_file(self.exclude, f"{', '.join(NAMED_REGIONS)} or a BED file of regions to exclude")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def quality(frame: pl.DataFrame, options: QCOptions, tally: Tally) -> pl.DataFrame:
    """Filter rows on what the GWAS says of itself: sample size, imputation quality, extreme chi-squares."""
    ninetieth = frame["N"].quantile(0.9, "linear")
    if ninetieth is None:
        return frame
    least = options.min_n_fraction * ninetieth
    reason = f"N below {least:,.0f}, {options.min_n_fraction:g} of its 90th percentile"
    frame = drop(frame, pl.col("N") < least, tally, QUALITY, reason, show=("N",))
    if "INFO" in frame.columns:
        reason = f"INFO below {options.min_info:g}"
        frame = drop(frame, pl.col("INFO") < options.min_info, tally, QUALITY, reason, show=("INFO",))
        if options.min_info > 0:
            note(frame, pl.col("INFO").is_null(), tally, QUALITY, "INFO is missing, kept")
    extreme = pl.col("Z") ** 2 > pl.max_horizontal(pl.lit(80.0), 0.001 * pl.col("N"))
    reason = "chi-square above max(80, 0.001 N)"
    if options.extreme_chi2 == "drop":
        frame = drop(frame, extreme, tally, QUALITY, reason, show=("Z", "N"))
    else:
        note(frame, extreme, tally, QUALITY, f"{reason}, kept", show=("Z", "N"))
    tally.add(QUALITY, "kept", "rows of sufficient quality", frame.height)
    return frame


def frequency_standard_error(n_panel: int | None, frequency: pl.Expr) -> pl.Expr:
    """Sampling standard error of an allele frequency in `n_panel` people; 0 if their number is not known."""
    if n_panel is None:
        return pl.lit(0.0)
    return (frequency * (1 - frequency) / (2 * n_panel)).sqrt()


def frequency_agrees(frame: pl.DataFrame, options: QCOptions, n_panel: int | None, tally: Tally) -> pl.DataFrame:
    """Filter aligned rows (FRQ and PANEL_FREQ of the same allele) on their difference from the panel."""
    allowed = pl.max_horizontal(
        pl.lit(options.max_frequency_difference), 3 * frequency_standard_error(n_panel, pl.col("PANEL_FREQ"))
    )
    differs = (pl.col("FRQ") - pl.col("PANEL_FREQ")).abs() > allowed
    reason = f"frequency differs from the panel's by more than {options.max_frequency_difference:g}"
    frame = drop(frame, differs, tally, FREQUENCY, reason, show=("FRQ", "PANEL_FREQ"))
    note(frame, pl.col("FRQ").is_null(), tally, FREQUENCY, "no allele frequency in the GWAS: not compared")
    tally.add(FREQUENCY, "kept", "rows that do not contradict the panel's frequency", frame.height)
    return frame


def outside_regions(frame: pl.DataFrame, options: QCOptions, genome_build: str | None, tally: Tally) -> pl.DataFrame:
    """Leave out the rows (CHR, BP of the panel) in the regions that `options.exclude` stands for."""
    hit = inside(frame, excluded_regions(options.exclude, genome_build))
    what = {"long-range": "in the MHC or a region of long-range LD", "mhc": "in the MHC (chr6:25-34 Mb)"}
    reason = what.get(options.exclude, "in an excluded region") + ", not scored"
    frame = drop(frame.with_columns(hit.alias("HIT")), pl.col("HIT"), tally, REGIONS, reason, show=("CHR", "BP"))
    tally.add(REGIONS, "kept", "rows outside the excluded regions", frame.height)
    return frame.drop("HIT")
