"""GWAS summary statistics: reading, quality control, and alignment to the variants of an LD store."""

from deepwas.sumstats.formats import FORMATS, Format
from deepwas.sumstats.harmonise import harmonise
from deepwas.sumstats.harmonised import HarmonisedSumstats, read_harmonised
from deepwas.sumstats.qc import QCOptions
from deepwas.sumstats.read import SumStats, read_sumstats

__all__ = [
    "FORMATS",
    "Format",
    "HarmonisedSumstats",
    "QCOptions",
    "SumStats",
    "harmonise",
    "read_harmonised",
    "read_sumstats",
]
