"""How an LD store is built: the options, and the default rule of the truncation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepwas.errors import InputError
from deepwas.genome import parse_build

DTYPES = ("int8", "float16", "float32", "float64")


@dataclass(frozen=True)
class LDOptions:
    """How an LD store is built.

    build: genome build of the panel's positions, GRCh37 (hg19) or GRCh38 (hg38).
    min_maf: variants with a minor allele rarer than this in the panel are dropped; one that does not vary
        always is.
    max_missing: variants without a genotype in a larger share of people are dropped.
    min_block, max_block: variants per block, when the panel is cut where the least LD is lost.
    blocks: a BED file whose intervals are the blocks, instead of cutting.
    window, step: sliding windows, in base pairs, instead of cutting: each chromosome is divided every `step`, and the
        variants of each division are scored in one block whose candidates reach (window - step) / 2 further on both
        sides. So no LD up to that distance is lost, at about window / step times the size and the work.
    eigenvalue_floor: eigenvalues of a block's correlation matrix above it are kept; None means the rule of
        the function `eigenvalue_floor`, or with `shrinkage` everything (that bounds the eigenvalues from
        below itself).
    variance_kept: instead of a floor, keep the fewest eigenvalues that reach this share of their sum.
    shrinkage: a in R <- (1 - a) R + a I, before the decomposition.
    dtype: of the stored factors: float32, float64, float16 or int8, the last two with one scale per row. An entry is
        then off by at most 2^-11 of itself, or 1/254 of its row's largest. For int8 the whitener is stored beside the
        factor, in float16: it is read once per trait, the factor once per epoch.
    """

    build: str
    min_maf: float = 0.01
    max_missing: float = 0.1
    min_block: int = 200
    max_block: int = 800
    blocks: Path | None = None
    window: int | None = None
    step: int | None = None
    eigenvalue_floor: float | None = None
    variance_kept: float | None = None
    shrinkage: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "build", parse_build(self.build))
        if self.blocks is not None:
            object.__setattr__(self, "blocks", Path(self.blocks))
        _require(0 <= self.min_maf < 0.5, "min_maf", self.min_maf, "0 or more and below 0.5, for example 0.01")
        _require(
            0 <= self.max_missing < 1,
            "max_missing",
            self.max_missing,
            "0 or more and below 1, for example 0.1",
        )
        _require(self.min_block >= 1, "min_block", self.min_block, "1 or more")
        _require(
            self.max_block >= 2 * self.min_block - 1,
            "max_block",
            self.max_block,
            f"at least {2 * self.min_block - 1} (2 min_block - 1), so that every chromosome can be cut",
        )
        if (self.window is None) != (self.step is None):
            raise InputError("window and step belong together: give both, for example 3e6 and 1e6.")
        if self.window is not None and self.step is not None:
            for name in ("window", "step"):
                value = getattr(self, name)
                _require(float(value).is_integer(), name, value, "a whole number of base pairs, for example 3000000")
                object.__setattr__(self, name, int(value))
            _require(self.step >= 1, "step", self.step, "1 base pair or more, for example 1000000")
            _require(self.window >= self.step, "window", self.window, f"at least the step, {self.step}")
            if self.blocks is not None:
                raise InputError("blocks and window are two ways to divide the genome: give one of them.")
        floor, share = self.eigenvalue_floor, self.variance_kept
        _require(floor is None or 0 <= floor < np.inf, "eigenvalue_floor", floor, "0 or more")
        _require(share is None or 0 < share <= 1, "variance_kept", share, "above 0 and at most 1, for example 0.95")
        if floor is not None and share is not None:
            raise InputError("eigenvalue_floor and variance_kept are two rules for the same choice: give one of them.")
        _require(0 <= self.shrinkage < 1, "shrinkage", self.shrinkage, "0 or more and below 1, for example 0.1")
        _require(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")

    def floor(self, s: int, n_samples: int) -> float:
        """The eigenvalue floor of a block that scores s variants; 0 if `variance_kept` or `shrinkage` is the rule."""
        if self.eigenvalue_floor is not None:
            return self.eigenvalue_floor
        if self.variance_kept is not None or self.shrinkage > 0:
            return 0.0
        return eigenvalue_floor(s, n_samples)

    def as_dict(self) -> dict[str, Any]:
        """The options as JSON-ready values; of the blocks file, its name."""
        return asdict(self) | {"blocks": None if self.blocks is None else self.blocks.name}


def eigenvalue_floor(s: int, n_samples: int) -> float:
    """Default truncation: eigenvalues of a block that scores s variants above max(1e-4, 2 s / n_samples) are kept.

    A panel of n people inflates an eigenvalue lam_i of the LD by lam_i / n times the sum over j of
    lam_j / (lam_i - lam_j), which is about tr(R) / n = s / n for the larger ones. A sample eigenvalue below 2 s / n
    thus owes as much to sampling as to LD, and whitening would divide by it, amplifying every mismatch between panel
    and GWAS. With 50,000 people and 1,000 variants the floor is 0.04; with a few hundred people it leaves the leading
    directions only, which is what such a panel knows.
    """
    return max(1e-4, 2 * s / n_samples)


def _require(condition: bool, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise InputError(f"{name} is {value}; it must be {allowed}.")
