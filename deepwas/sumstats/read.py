"""Reading GWAS summary statistics: a z-score and a sample size for each usable row, the others counted."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from deepwas.errors import DataWarning, InputError
from deepwas.files import require_file, sha256
from deepwas.genome import normalise_chromosome, parse_build
from deepwas.sumstats.counted import describe, drop, note
from deepwas.sumstats.formats import TEXT, Format, format_by_name, read_table, recognise, require_columns
from deepwas.tables import numeric_column
from deepwas.tally import Tally

STEP = "read"
ORDER = ("CHR", "SNP", "BP", "A1", "A2", "Z", "N", "BETA", "SE", "FRQ", "P", "INFO")
_RELATIVE, _ABSOLUTE, _TOO_MANY = 0.10, 0.05, 0.10


@dataclass(frozen=True)
class SumStats:
    """Summary statistics of one trait, as read: not yet set against an LD panel.

    frame: CHR (str, null when the file has none), SNP (str), BP (int, 1-based, null when the file has none),
        A1 (effect allele), A2 (other allele), Z, N, and BETA SE FRQ (of A1) P INFO where the file has them.
        Alleles are upper case; Z belongs to A1 and is finite; N is people and > 0.
    path, sha256: the file read.  format: the name of its format.  build: 'GRCh37', 'GRCh38', or None if not
        given.
    tally: rows kept, dropped and noted, by reason.
    """

    frame: pl.DataFrame
    path: Path
    format: str
    build: str | None
    sha256: str
    tally: Tally = field(default_factory=Tally)

    @property
    def n_variants(self) -> int:
        """The number of usable rows."""
        return self.frame.height


def read_sumstats(
    path: str | os.PathLike[str],
    *,
    format: str | Format | None = None,
    sample_size: float | None = None,
    drop_missing_n: bool = False,
    build: str | None = None,
) -> SumStats:
    """Read one trait's summary statistics from a delimited text file, plain or gzip.

    format: the name of a format or a `Format`; None recognises it by its columns.
    sample_size: people, for the rows without a sample size of their own; N in the file stays.
    drop_missing_n: drop, and count, the rows without a sample size. With neither, such a row is an error.
    build: 'GRCh37' or 'GRCh38' (hg19, hg38); None if unknown, which is said in the tally.

    Z is BETA / SE, else the file's Z, else the normal quantile of P with the sign of BETA. When there are
    BETA and SE (or Z), P only checks them: where |z| from P departs by more than 10% (and by 0.05) this is
    counted, and above a tenth of the rows it is a DataWarning. BETA may come as the logarithm of an odds
    ratio.

    Raises InputError, naming file, column and line, for a header that is not understood, text among numbers,
    missing sample sizes, damaged or empty files, and when no usable row is left.
    """
    if sample_size is not None and not (math.isfinite(sample_size) and sample_size > 0):
        raise InputError(f"--sample-size is {sample_size}: give the number of people, greater than 0.")
    if sample_size is not None and drop_missing_n:
        raise InputError("--sample-size and --drop-missing-n exclude each other: give one of them.")
    build = parse_build(build) if build is not None else None
    named = format_by_name(format) if isinstance(format, str) else format
    found = require_file(path, "GWAS summary statistics")
    tally = Tally()

    text = (named.reader if named else read_table)(found)
    chosen = named or recognise(text.columns, found)
    if not text.height:
        raise InputError(f"{found}: there is a header but no row. Summary statistics of at least one variant expected.")
    if chosen.prepare:
        text = chosen.prepare(text, tally)
    columns = require_columns(text.columns, found, chosen)
    frame = _quantities(text, columns, found)
    del text
    frame = _usable_alleles(frame, tally)
    frame = _signed_statistic(frame, tally)
    frame = _sample_size(frame, found, sample_size, drop_missing_n, tally)
    frame = _plausible(frame, tally)
    if not frame.height:
        raise InputError(f"{found}: no usable row is left.\n" + "\n".join(tally.lines()))
    _check_against_p(frame, found, tally)
    frame = frame.select(c for c in ORDER if c in frame.columns)
    if build is None and frame["BP"].null_count() < frame.height:
        reason = "the genome build was not given; positions are taken to be those of the LD panel"
        tally.add(STEP, "noted", reason, frame.height)
    tally.add(STEP, "kept", f"usable rows ({chosen.name} format)", frame.height)
    return SumStats(frame, found, chosen.name, build, sha256(found), tally)


def _quantities(text: pl.DataFrame, columns: dict[str, str], path: Path) -> pl.DataFrame:
    """The columns of a table of text as typed quantities, odds ratios and logarithms converted."""
    parsed: dict[str, pl.Series] = {}
    for quantity, column in columns.items():
        if quantity in TEXT:
            parsed[quantity] = text.get_column(column).str.strip_chars()
        else:
            parsed[quantity] = numeric_column(text, column, path, integer=quantity == "BP")
    frame = pl.DataFrame([series.alias(quantity) for quantity, series in parsed.items()])
    absent = {"CHR": pl.String, "SNP": pl.String, "BP": pl.Int64}
    frame = frame.with_columns(pl.lit(None, kind()).alias(c) for c, kind in absent.items() if c not in parsed)
    frame = frame.with_columns(
        normalise_chromosome("CHR"),
        pl.when(pl.col("BP") > 0).then("BP"),
        pl.col("A1", "A2").str.to_uppercase(),
    )
    if "OR" in parsed and "BETA" not in parsed:
        frame = frame.with_columns(pl.when(pl.col("OR") > 0).then(pl.col("OR").log()).alias("BETA"))
    if "N" not in parsed and {"N_CASES", "N_CONTROLS"} <= {*parsed}:
        frame = frame.with_columns((pl.col("N_CASES") + pl.col("N_CONTROLS")).alias("N"))
    if "P" not in parsed and "NEG_LOG10_P" in parsed:
        frame = frame.with_columns((10.0 ** -pl.col("NEG_LOG10_P")).alias("P"))
    return frame


def _usable_alleles(frame: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    bases = pl.all_horizontal(pl.col("A1", "A2").str.contains(r"^[ACGT]+$"))
    either_missing = pl.any_horizontal(pl.col("A1", "A2").is_null())
    frame = drop(frame, either_missing, tally, STEP, "an allele is missing", show=("A1", "A2"))
    frame = drop(frame, ~bases, tally, STEP, "an allele is not written in A, C, G, T", show=("A1", "A2"))
    frame = drop(frame, pl.col("A1") == pl.col("A2"), tally, STEP, "both alleles are the same", show=("A1", "A2"))
    nameless = pl.col("SNP").is_null() & (pl.col("CHR").is_null() | pl.col("BP").is_null())
    return drop(frame, nameless, tally, STEP, "neither an identifier nor a position")


def _signed_statistic(frame: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    """Add Z; drop the rows for which there is none."""
    if {"BETA", "SE"} <= {*frame.columns}:
        frame = drop(frame, pl.col("BETA").is_null(), tally, STEP, "the effect size is missing")
        frame = drop(frame, pl.col("SE").is_null(), tally, STEP, "the standard error is missing")
        frame = drop(frame, ~pl.col("BETA").is_finite(), tally, STEP, "the effect size is not finite", show=("BETA",))
        show = ("SE", "P") if "P" in frame.columns else ("SE",)
        endless = ~pl.col("SE").is_finite()
        frame = drop(frame, endless, tally, STEP, "the standard error is infinite, as when P = 1", show=show)
        frame = drop(frame, pl.col("SE") <= 0, tally, STEP, "the standard error is not above 0", show=show)
        frame = frame.with_columns((pl.col("BETA") / pl.col("SE")).alias("Z"))
    elif "Z" not in frame.columns:
        if not {"BETA", "P"} <= {*frame.columns}:
            raise ValueError("a format must require BETA and SE, or Z, or BETA and P")
        frame = drop(frame, pl.col("BETA").is_null(), tally, STEP, "the effect size is missing")
        frame = drop(frame, pl.col("P").is_null(), tally, STEP, "the p-value is missing, and there is no SE")
        frame = frame.with_columns((_z_from_p(frame) * frame["BETA"].sign()).alias("Z"))
        tally.add(STEP, "noted", "Z from P and the sign of BETA, as there is no SE", frame.height)
    frame = drop(frame, pl.col("Z").is_null(), tally, STEP, "Z is missing")
    return drop(frame, ~pl.col("Z").is_finite(), tally, STEP, "Z is not finite", show=("Z",))


def _sample_size(
    frame: pl.DataFrame, path: Path, sample_size: float | None, drop_missing_n: bool, tally: Tally
) -> pl.DataFrame:
    """N for every row: the file's, else `sample_size`, else dropped if asked, else an error."""
    if "N" not in frame.columns:
        if sample_size is None:
            raise InputError(
                f"{path}: there is no sample size column (N), and none was given.\n"
                "The likelihood scales with N, so it is not guessed. Give --sample-size."
            )
        frame = frame.with_columns(pl.lit(None, pl.Float64).alias("N"))
    unknown = (pl.col("N").is_null() | ~pl.col("N").is_finite() | (pl.col("N") <= 0)).fill_null(True)
    if drop_missing_n:
        return drop(frame, unknown, tally, STEP, "N is missing or <= 0 (--drop-missing-n)", show=("N",))
    rows = frame.select(unknown).to_series()
    if not rows.any():
        return frame
    if sample_size is None:
        first = describe(frame, int(rows.arg_true()[0]), ("N",))
        raise InputError(
            f"{path}: N is missing or <= 0 for {int(rows.sum()):,} of {frame.height:,} variants "
            f"(first: {first}).\n"
            "The likelihood scales with N, so it is not guessed. "
            "Give --sample-size, or drop these rows with --drop-missing-n."
        )
    note(
        frame,
        unknown,
        tally,
        STEP,
        f"N set to {sample_size:,.10g} (--sample-size)",
        changed=True,
        show=("N",),
    )
    return frame.with_columns(pl.when(unknown).then(float(sample_size)).otherwise("N").alias("N"))


def _plausible(frame: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    for column, what in (("FRQ", "the allele frequency"), ("P", "the p-value")):
        if column in frame.columns:
            outside = ~pl.col(column).is_between(0, 1)
            frame = drop(frame, outside, tally, STEP, f"{what} does not lie between 0 and 1", show=(column,))
    return frame


def _z_from_p(frame: pl.DataFrame) -> pl.Series:
    """|z| of a two-sided p-value; exact in the far tail when -log10 P is known, infinite for P = 0."""
    from scipy.special import ndtri_exp

    if "NEG_LOG10_P" in frame.columns:
        log_p = -math.log(10) * frame["NEG_LOG10_P"].to_numpy().astype(np.float64)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            log_p = np.log(frame["P"].to_numpy().astype(np.float64))
    log_tail = np.minimum(log_p, 0.0) - math.log(2)
    return pl.Series("Z_P", np.abs(ndtri_exp(log_tail)))


def _check_against_p(frame: pl.DataFrame, path: Path, tally: Tally) -> None:
    """Count the rows whose P does not belong to their Z."""
    if "P" not in frame.columns:
        return
    if "NEG_LOG10_P" not in frame.columns:
        reason = "P = 0, below the smallest number of the file; Z does not come from P"
        note(frame, pl.col("P") == 0, tally, STEP, reason, show=("Z",))
    known = frame.select("SNP", "CHR", "BP", "A1", "A2", "Z", "P").with_columns(_z_from_p(frame))
    known = known.filter(pl.col("Z_P").is_finite())
    gap = (pl.col("Z_P") - pl.col("Z").abs()).abs()
    apart = (gap > _RELATIVE * pl.col("Z").abs()) & (gap > _ABSOLUTE)
    note(known, apart, tally, STEP, "|z| from P departs from Z by more than 10%", show=("Z", "P"))
    share = known.select(apart.mean()).item()
    if share is not None and share > _TOO_MANY:
        ratio = known.filter(pl.col("Z").abs() > 1).select((pl.col("Z_P") / pl.col("Z").abs()).median()).item()
        scale = f" (|z| from P is {ratio:.2f} times |Z| in the median of |Z| > 1)" if ratio is not None else ""
        warnings.warn(
            f"{path}: P and Z disagree by more than 10% for {share:.0%} of the variants{scale}. "
            "Z is used. Was P corrected for genomic control, or do BETA and SE belong to different scales?",
            DataWarning,
            stacklevel=3,
        )
