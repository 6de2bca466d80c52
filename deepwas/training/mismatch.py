"""LD mismatch of one trait over its blocks: the tables of a run, which blocks are flagged, what training makes of it.

A block is flagged for an energy, of the dropped directions or of the small half of the kept ones, that is more than
`threshold` times its expectation and improbable (p < 0.05 over all tests), or for variants at odds with their
neighbours. Expectations are those of the constant prior and noise fitted to all blocks. So a mismatch that all blocks
share does not flag them: it shows in the noise, and in how the heritability hangs on the eigenvalues used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.files import write_text
from deepwas.mismatch import OUTLIER_P, BlockMismatch, Energy, block_mismatch
from deepwas.specs import validate_table
from deepwas.training.sections import Rotation

if TYPE_CHECKING:
    from deepwas.ld import LDStore
    from deepwas.training.trait import TraitBlocks

__all__ = ["BLOCKS_FILE", "VARIANTS_FILE", "Mismatch", "diagnose", "without_flagged"]

BLOCKS_FILE = "mismatch.tsv"
VARIANTS_FILE = "mismatch_variants.tsv"
_FAMILY_P = 0.05
_OUTLIER_CHI2 = 29.71  # p = OUTLIER_P

_BLOCK_SCHEMA = {
    "BLOCK": pl.Int64,
    "CHR": pl.String,
    "START": pl.Int64,
    "STOP": pl.Int64,
    "EIGENVALUES": pl.Int64,
    "VARIANTS": pl.Int64,
    "SCORED": pl.Int64,
    "DROPPED_RATIO": pl.Float64,
    "DROPPED_P": pl.Float64,
    "SMALL_RATIO": pl.Float64,
    "SMALL_P": pl.Float64,
    "LEADING_RATIO": pl.Float64,
    "LEADING_P": pl.Float64,
    "NOISE": pl.Float64,
    "LEVEL": pl.Float64,
    "HITS": pl.Int64,
    "INFLATION": pl.Float64,
    "OUTLIERS": pl.Int64,
    "WORST": pl.String,
    "WORST_T": pl.Float64,
    "FLAG": pl.String,
    "WEIGHT": pl.Float64,
}
_VARIANT_SCHEMA = {
    "CHR": pl.String,
    "SNP": pl.String,
    "BP": pl.Int64,
    "A1": pl.String,
    "A2": pl.String,
    "Z": pl.Float64,
    "EXPECTED_Z": pl.Float64,
    "T": pl.Float64,
    "P": pl.Float64,
    "BLOCK": pl.Int64,
}


@dataclass(frozen=True)
class Mismatch:
    """What was found, in the order of the trait's blocks.

    table: one row a block, see `data_specs/mismatch.schema.json`; WEIGHT is what down-weighting gives it, also where
        it is not asked for: 1 if not flagged, else the smallest of expected over observed energy, and of the outlier
        threshold over the largest T^2. `summary` has the weights that are used.
    variants: the variants at odds with their neighbours.  threshold: of the energy ratios.
    effect_variance, noise: of the constant prior that the expectations come from.
    """

    table: pl.DataFrame
    variants: pl.DataFrame
    threshold: float
    effect_variance: float
    noise: float

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """(blocks,), which are flagged."""
        return self.table["FLAG"].is_not_null().to_numpy()

    @property
    def weights(self) -> NDArray[np.float64]:
        """(blocks,), the weights of down-weighting."""
        return self.table["WEIGHT"].to_numpy()

    def summary(self, action: str) -> dict[str, Any]:
        """For `run.json`: how many blocks are flagged for what, which they are, and what was done about it."""
        flagged = self.table.filter(pl.col("FLAG").is_not_null())
        reasons = ("dropped", "small", "outliers")
        worst = self.variants.sort(pl.col("T").abs(), descending=True).head(1).to_dicts()
        return {
            "action": action,
            "threshold": self.threshold,
            "outlier_p": OUTLIER_P,
            "effect_variance": self.effect_variance,
            "noise": self.noise,
            "blocks": self.table.height,
            "flagged": flagged.height,
            "by_reason": {r: int(flagged["FLAG"].str.contains(r, literal=True).sum()) for r in reasons},
            "median_dropped_ratio": self.table["DROPPED_RATIO"].median(),
            "median_small_ratio": self.table["SMALL_RATIO"].median(),
            "outliers": self.variants.height,
            "worst_variant": worst[0] if worst else None,
            "flagged_blocks": [
                {
                    "block": row["BLOCK"],
                    "flag": row["FLAG"],
                    "dropped_ratio": row["DROPPED_RATIO"],
                    "small_ratio": row["SMALL_RATIO"],
                    "outliers": row["OUTLIERS"],
                    "weight": {"report": 1.0, "exclude": 0.0}.get(action, row["WEIGHT"]),
                }
                for row in flagged.to_dicts()
            ],
        }

    def write(self, folder: Path) -> None:
        """Write both tables into a run folder, tab-separated, missing values NA."""
        for frame, name, spec in (
            (self.table, BLOCKS_FILE, "mismatch"),
            (self.variants, VARIANTS_FILE, "mismatch_variants"),
        ):
            validate_table(frame, spec, name)
            rounded = frame.with_columns(pl.col(pl.Float64).round_sig_figs(6))
            write_text(folder / name, rounded.write_csv(separator="\t", null_value="NA"))


def diagnose(
    blocks: TraitBlocks,
    store: LDStore,
    *,
    effect_variance: float,
    noise: float,
    threshold: float = 1.5,
    progress: Callable[[int, int], None] | None = None,
) -> Mismatch:
    """Test every block of a trait against a constant prior; see `deepwas.mismatch` for the tests.

    effect_variance: of the constant prior, per standardised genotype.  noise: sigma2.
    One block is in memory at a time. The LD has the digits of the store, whatever the dtype of the blocks' factors:
    rounding to 8 bits would look like a mismatch in the small directions.
    """
    found: list[BlockMismatch] = []
    places: list[NDArray[np.int64]] = []
    shapes: list[tuple[int, int]] = []
    for i in range(len(blocks)):
        block = blocks[i]
        factor, loadings = blocks.ld_parts(i)
        found.append(
            block_mismatch(
                factor,
                block.z[block.observed],
                block.sample_size * effect_variance,
                noise,
                scored=block.observed,
                loadings=loadings,
                largest_dropped=float(store.eigenvalues(block.number)[-1]),
            )
        )
        places.append(block.rows.start + np.flatnonzero(block.observed))
        shapes.append(block.shape)
        if progress is not None:
            progress(i + 1, len(blocks))
    rarest = _FAMILY_P / max(1, sum((x.dropped is not None) + (x.small is not None) for x in found))
    names = store.variants.select("CHR", "SNP", "BP", "A1", "A2")
    rows_of_blocks: list[dict[str, Any]] = []
    outliers: list[pl.DataFrame] = []
    for i, (x, rows, (k, m)) in enumerate(zip(found, places, shapes, strict=True)):
        out = x.outliers()
        number = blocks[i].number
        outliers.append(_outliers(x, out, names[rows[out]], blocks[i].z[blocks[i].observed], number))
        flags, weight = _judgement(x, len(out), threshold, rarest)
        worst = int(np.abs(x.statistic).argmax())
        ratios = {
            f"{name}_{what}": None if e is None else value
            for name, e in (("DROPPED", x.dropped), ("SMALL", x.small), ("LEADING", x.leading))
            for what, value in (("RATIO", getattr(e, "ratio", None)), ("P", getattr(e, "p", None)))
        }
        rows_of_blocks.append(
            {
                "BLOCK": number,
                "CHR": names["CHR"][int(rows[0])],
                "START": names["BP"][int(rows[0])],
                "STOP": names["BP"][int(rows[-1])],
                "EIGENVALUES": k,
                "VARIANTS": m,
                "SCORED": len(rows),
                **ratios,
                "NOISE": x.noise,
                "LEVEL": x.level,
                "HITS": len(x.hits),
                "INFLATION": x.inflation,
                "OUTLIERS": len(out),
                "WORST": names["SNP"][int(rows[worst])],
                "WORST_T": float(x.statistic[worst]),
                "FLAG": "+".join(flags) or None,
                "WEIGHT": weight,
            }
        )
    return Mismatch(
        pl.DataFrame(rows_of_blocks, schema=_BLOCK_SCHEMA),
        pl.concat(outliers),
        threshold,
        effect_variance,
        noise,
    )


def without_flagged(rotations: list[Rotation], flagged: NDArray[np.bool_]) -> list[Rotation]:
    """The rotations with flagged blocks left out of training and early stopping; they are tested all the same.

    InputError if a rotation has then nothing left to train on, or to stop by.
    """
    kept = np.flatnonzero(~flagged)
    out = []
    for rotation in rotations:
        train, validation = (x[np.isin(x, kept)] for x in (rotation.train, rotation.validation))
        if not len(train) or not len(validation):
            raise InputError(
                f"LD mismatch: {int(flagged.sum())} of {len(flagged)} LD blocks are flagged, and excluding them leaves "
                "none to train on or to stop early by. Use LD that fits this trait's sample, or give --mismatch "
                "report, --mismatch down-weight or a higher --mismatch-threshold."
            )
        out.append(Rotation(train, validation, rotation.test))
    return out


def _outliers(
    x: BlockMismatch, out: NDArray[np.int64], names: pl.DataFrame, z: NDArray[np.float64], number: int
) -> pl.DataFrame:
    from scipy.stats import norm

    return names.with_columns(
        pl.Series("Z", z[out], dtype=pl.Float64),
        pl.Series("EXPECTED_Z", z[out] - x.residual[out], dtype=pl.Float64),
        pl.Series("T", x.statistic[out], dtype=pl.Float64),
        pl.Series("P", 2 * norm.sf(np.abs(x.statistic[out])), dtype=pl.Float64),
        pl.lit(number, dtype=pl.Int64).alias("BLOCK"),
    ).cast(_VARIANT_SCHEMA)  # type: ignore[arg-type]


def _judgement(x: BlockMismatch, outliers: int, threshold: float, rarest: float) -> tuple[list[str], float]:
    """The reasons to flag a block, and its weight."""

    def odd(energy: Energy | None) -> bool:
        return energy is not None and energy.ratio > threshold and energy.p < rarest

    flags = [name for name, energy in (("dropped", x.dropped), ("small", x.small)) if odd(energy)]
    flags += ["outliers"] if outliers else []
    if not flags:
        return flags, 1.0
    excess = [e.ratio for e in (x.dropped, x.small) if e is not None]
    return flags, 1 / max(1.0, *excess, float(np.max(x.statistic**2)) / _OUTLIER_CHI2)
