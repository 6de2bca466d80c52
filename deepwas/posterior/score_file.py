"""Polygenic scores as the PGS Catalog's scoring files, format 2.0: comment lines, then tab-separated columns.

Format: https://www.pgscatalog.org/downloads/#dl_ftp_scoring. A person's score is the sum over variants of weight times
the number of effect alleles; with posterior means as weights it predicts the trait in its standard deviations.
"""

from __future__ import annotations

import os

import polars as pl

from deepwas import __version__
from deepwas.errors import InputError
from deepwas.files import write_text
from deepwas.genome import parse_build
from deepwas.specs import validate_table

__all__ = ["check_name", "score_frame", "write_score_file"]

_FORMAT = "https://www.pgscatalog.org/downloads/#dl_ftp_scoring"


def score_frame(table: pl.DataFrame) -> pl.DataFrame:
    """rsID chr_name chr_position effect_allele other_allele effect_weight, from a table of posterior effects.

    Weights are POST_BETA, per copy of A1. Variants without one, or with 0, are left out. rsID is missing where the
    identifier is of another kind.
    """
    rows = table.filter(pl.col("POST_BETA").is_not_null() & (pl.col("POST_BETA") != 0))
    return rows.select(
        pl.when(pl.col("SNP").str.contains(r"^rs\d+$")).then(pl.col("SNP")).alias("rsID"),
        pl.col("CHR").alias("chr_name"),
        pl.col("BP").alias("chr_position"),
        pl.col("A1").alias("effect_allele"),
        pl.col("A2").alias("other_allele"),
        pl.col("POST_BETA").round_sig_figs(7).alias("effect_weight"),
    )


def check_name(name: str) -> None:
    """InputError unless it can stand in a header."""
    if not name.strip() or not name.isprintable():
        raise InputError(f"the score's name is {name!r}; give one line of text (--name).")


def write_score_file(path: str | os.PathLike[str], table: pl.DataFrame, *, build: str, name: str, trait: str) -> int:
    """Write the score of a table of posterior effects; gzip if the name ends in .gz. Returns its number of variants.

    build: GRCh37 or GRCh38, of the positions.  name: of the score.  trait: as reported.
    """
    frame = score_frame(table)
    if not frame.height:
        raise InputError(f"{path}: no variant has a weight per allele: there is no score to write.")
    validate_table(frame, "score", str(path))
    check_name(name)
    header = [
        f"###PGS CATALOG SCORING FILE - see {_FORMAT} for additional information",
        "#format_version=2.0",
        "##POLYGENIC SCORE (PGS) INFORMATION",
        f"#pgs_name={name}",
        f"#trait_reported={trait}",
        f"#genome_build={parse_build(build)}",
        f"#variants_number={frame.height}",
        "#weight_type=beta",
        "##SOURCE INFORMATION",
        f"#software=deepwas {__version__}, posterior mean effects, standard deviations of the trait per effect allele",
    ]
    write_text(path, "\n".join(header) + "\n" + frame.write_csv(separator="\t", null_value=""))
    return frame.height
