"""Does the LD bear out what was located in it? Flags of LD blocks, and what is to be said of many.

A block is flagged if the tests of `deepwas.training.mismatch` flag it, or for its *residual*: the mean square of what
the located effects leave of the whitened z-scores in the half of the directions with the least LD, more than 1.5 sigma2
and improbable (p < 0.05 over all blocks). Effects leave sigma2 there at most; LD of other people leaves more. Or for
its *panel*: the sampling error of the LD, which is allowed for, adds more than 0.1 to sigma2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["flags_of", "mismatch_record", "residual_p"]

Floats = NDArray[np.float64]

_MISFIT = 1.5
_PANEL = 0.1  # of sigma2
_FAMILY_P = 0.05
_NOISY = 1.3  # sigma2 that no imperfection of a GWAS explains well
_MANY = 0.1  # share of blocks flagged


def residual_p(misfit: Floats, directions: Floats) -> Floats:
    """Of each block, how likely a mean square as large is, over so many directions, where the LD is right."""
    from scipy.stats import chi2

    return np.asarray(np.where(directions > 0, chi2.sf(misfit * directions, np.maximum(directions, 1)), 1.0))


def flags_of(known: Iterable[str | None], misfit: Floats, directions: Floats, panel_error: Floats) -> list[str | None]:
    """One trait's flags by block, joined by +; None where there is none.

    known: of the trait's LD blocks, by the tests made before.  misfit, directions: mean square and number of the
    directions of `deepwas.finemapping.trait.small_half`.  panel_error: what the LD's sampling error adds to the noise,
    in units of sigma2.
    """
    odd = (misfit > _MISFIT) & (residual_p(misfit, directions) < _FAMILY_P / max(len(misfit), 1))
    small = panel_error > _PANEL
    return [
        "+".join(part for part in (before, own and "residual", few and "panel") if part) or None
        for before, own, few in zip(known, odd, small, strict=True)
    ]


def mismatch_record(flags: Sequence[str | None], noise: dict[str, float | None], panel: int) -> dict[str, Any]:
    """Counts of one trait's flags by reason, and warnings where they are many, ready for JSON.

    noise: "used", sigma2, and "of_single_blocks", its median over blocks, None where that is not known.
    panel: people that the LD is of.
    """
    reasons = [text.split("+") for text in flags if text is not None]
    counts = {name: sum(name in x for x in reasons) for name in sorted({name for x in reasons for name in x})}
    odd = sum(x != ["panel"] for x in reasons)
    return {
        "blocks": len(flags),
        "flagged": len(reasons),
        "by_reason": counts,
        "noise": noise,
        "panel": panel,
        "warnings": _warnings(len(flags), odd, counts.get("panel", 0), noise, panel),
    }


def _warnings(blocks: int, odd: int, small: int, noise: dict[str, float | None], panel: int) -> list[str]:
    """What to say if the LD fits the z-scores nowhere, or its panel is small for the effects.

    odd, small: blocks flagged for other reasons than the panel, and for it.
    """
    out = []
    level = max(x for x in noise.values() if x is not None)
    many = max(2, _MANY * blocks)
    if level >= _NOISY or odd >= many:
        out.append(
            f"the LD may not be that of these z-scores: noise {level:.2f} (1 where it is), {odd:,} of {blocks:,} "
            "LD blocks flagged. Inclusion probabilities and credible sets may be off, those of flagged blocks first of "
            "all. Use LD of the GWAS's own people, or of more people of their ancestry."
        )
    if small >= many:
        out.append(
            f"the LD panel of {panel:,} people is small for these effects: in {small:,} of {blocks:,} LD blocks its "
            f"sampling error adds more than {_PANEL:g} to the noise. That is allowed for, but a block's strongest "
            "effects then hide the others. Use LD of more people."
        )
    return out
