"""Does the LD bear out what was located for each of several traits? As `deepwas.posterior.ld_fit` asks of one.

Of runs, the tests of `deepwas.training.mismatch` are known by block; a trait given as a table of priors has none, and
that is said. What located effects leave of each trait's z-scores, and the LD panel's sampling error, are looked at
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.finemapping.block import BlockEffects
from deepwas.finemapping.trait import small_half
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.joint import JointBlocks, Traits
from deepwas.pleiotropy.learning import JointBlock, panel_error, panel_noise
from deepwas.posterior.ld_fit import flags_of, mismatch_record

__all__ = ["LDFit", "fit_columns", "fit_figures", "fit_of_ld"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LDFit:
    """flags: (blocks,), such as "bmi=outliers+residual;ldl=panel", None without one.

    record: by trait, as of `deepwas.posterior.ld_fit.mismatch_record`, and whether its run's tests are known, ready for
    JSON.  notes: what is to be said.
    """

    flags: list[str | None]
    record: dict[str, Any]
    notes: list[str]


def fit_columns(traits: int) -> tuple[str, ...]:
    """What `fit_figures` returns, in order."""
    return tuple(f"{what}_{k}" for what in ("misfit", "panel_error") for k in range(traits))


def fit_figures(block: JointBlock, found: BlockEffects, model: TraitModel, panel: float) -> list[float]:
    """Of each trait the mean square, in units of the noise, of what located effects leave of the half of the directions
    with the least LD; and what the error of LD from `panel` people adds to the noise, in the units of z^2."""
    small = small_half(len(block.whitened))
    rest = np.asarray(block.whitened, np.float64)[small] - found.fitted[small]
    error = panel_error(model, found, panel)
    of_background = model.background[None, :] * model.signal(block.factor[small], block.direct)
    level = np.diag(panel_noise(model.noise, error))[None, :] + of_background
    misfit = (rest**2 / level).mean(axis=0) if len(rest) else np.ones(model.traits)
    return [*misfit.tolist(), *np.diag(error).tolist()]


def fit_of_ld(traits: Traits, joint: JointBlocks, noise: Floats, figures: dict[str, Floats], panel: int) -> LDFit:
    """Flags of all blocks.  noise: (K,), of each trait.  figures: (blocks,) by name of `fit_columns`."""
    directions = np.array([k - small_half(k).start for k, _ in joint.sizes], np.float64)
    numbers = pl.DataFrame({"BLOCK": pl.Series(joint.numbers, dtype=pl.Int64)})
    texts: list[list[str]] = [[] for _ in joint.numbers]
    record, notes = {}, []
    tables = traits.mismatch or (None,) * len(traits.names)
    for k, (name, table) in enumerate(zip(traits.names, tables, strict=True)):
        known: Sequence[str | None] = [None] * len(joint)
        single = None
        if table is not None:
            own = numbers.join(table, on="BLOCK", how="left", maintain_order="left")
            known, single = own["FLAG"].to_list(), own["NOISE"].median()
        error = figures[f"panel_error_{k}"] / max(noise[k], 1e-12)
        flags = flags_of(known, figures[f"misfit_{k}"], directions, error)
        for own_texts, flag in zip(texts, flags, strict=True):
            own_texts += [f"{name}={flag}"] if flag else []
        level = {"used": float(noise[k]), "of_single_blocks": None if single is None else float(single)}  # type: ignore[arg-type]
        record[name] = {"tested": table is not None} | mismatch_record(flags, level, panel)
        notes += [f"{name}: {text}" for text in record[name]["warnings"]]
    untested = [name for name in traits.names if not record[name]["tested"]]
    if untested:
        notes.append(
            f"{', '.join(untested)}: no run says how the z-scores fit the LD. Flags are of what located effects leave "
            "alone; `deepwas fit` tests more."
        )
    return LDFit([";".join(x) or None for x in texts], record, notes)
