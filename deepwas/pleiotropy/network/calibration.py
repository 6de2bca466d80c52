"""Calibration by held-out simulation: data drawn from the fitted model on real LD blocks, and classified anew.

This shows whether the probabilities mean what they say *if the model holds* (`deepwas.pleiotropy.drawing`): it measures
what inference approximates, not what the model leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.drawing import draw_block
from deepwas.pleiotropy.learning import JointBlock, locate
from deepwas.pleiotropy.network.features import BlockFeatures, block_features
from deepwas.pleiotropy.network.metrics import figures, reliability

__all__ = ["CalibrationReport", "calibration_report", "plot_reliability"]

Floats = NDArray[np.float64]

_BINS = 10
_FEW = 5  # variants: curves pass by bins of fewer


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """Stated probabilities of two direct traits or more against simulated truth.

    probability: by name ('P_PLEIOTROPY', and 'P_NETWORK' once `with_network` has it), (n,) over the scored variants of
    the simulated blocks.  truth: (n,).  number: of simulated blocks.  blocks: their features with truth, none where the
    report was read from a file.
    """

    probability: dict[str, Floats]
    truth: NDArray[np.bool_]
    number: int
    blocks: list[BlockFeatures]

    def with_network(self, probability: Sequence[NDArray[np.floating]]) -> CalibrationReport:
        """The same with P_NETWORK, of each simulated block (m,)."""
        found = [p[b.scored] for p, b in zip(probability, self.blocks, strict=True)]
        return replace(self, probability=self.probability | {"P_NETWORK": np.concatenate(found).astype(np.float64)})

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: by name, the curve in 10 bins with its standard errors, and the figures of `metrics.figures`."""
        out: dict[str, Any] = {"blocks": self.number, "variants": len(self.truth), "true": int(self.truth.sum())}
        for name, p in self.probability.items():
            curve = reliability(p, self.truth, bins=_BINS)
            error = np.sqrt(curve.stated * (1 - curve.stated) / curve.number)
            out[name] = figures(p, self.truth.astype(np.float64)) | {
                "curve": [
                    {"stated": float(a), "observed": float(b), "standard_error": float(e), "variants": int(n)}
                    for a, b, e, n in zip(curve.stated, curve.observed, error, curve.number, strict=True)
                ]
            }
        return out


def calibration_report(
    blocks: Sequence[JointBlock],
    model: TraitModel,
    *,
    scored: Sequence[slice] | None = None,
    chromosomes: Sequence[str] | None = None,
    annotations: Callable[[slice], NDArray[np.floating]] | None = None,
    n_blocks: int = 40,
    draws: int = 1,
    slots: int = 10,
    candidates: int = 64,
    more: int = 0,
    panel: float | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CalibrationReport:
    """Simulate `draws` data sets on at most n_blocks of the blocks, evenly spread, and classify them.

    model: factors that are less likely than not are left out.
    scored, chromosomes: of each block, for `block_features`.  annotations: of the rows of a block, where the networks
    read any.  slots, candidates, more, panel: as for `locate`, which takes one pass a block and draw.
    """
    if n_blocks < 1 or draws < 1 or not blocks:
        raise InputError(f"n_blocks is {n_blocks}, draws {draws}, and {len(blocks)} LD blocks are given: 1 at least.")
    some = np.unique(np.linspace(0, len(blocks) - 1, min(n_blocks, len(blocks))).astype(int)).tolist()
    model = model.believed()
    drawn: list[tuple[int, NDArray[np.bool_]]] = []

    def simulated() -> Iterator[JointBlock]:
        for i in some:
            block = blocks[i]
            odds = model.log_odds(block.direct, block.shared)
            for draw in range(draws):
                rng = np.random.default_rng([seed, 97, i, draw])
                data, truth = draw_block(block, odds, model, rng, panel=panel)
                drawn.append((i, truth))
                yield data

    found: list[BlockFeatures] = []
    how: dict[str, Any] = {"slots": slots, "candidates": candidates, "more": more, "panel": panel}
    for data, used, effects in locate(simulated(), model, **how):
        i, truth = drawn[len(found)]
        features = block_features(
            data,
            used,
            effects,
            model,
            scored=None if scored is None else scored[i],
            chromosome="" if chromosomes is None else chromosomes[i],
            annotations=None if annotations is None else annotations(data.rows),
        )
        found.append(replace(features, truth=truth))
        if progress is not None:
            progress(len(found), len(some) * draws)
    p = np.concatenate([b.posterior[b.scored] for b in found])
    truth = np.concatenate([np.asarray(b.truth)[b.scored] for b in found])
    return CalibrationReport({"P_PLEIOTROPY": p}, truth, len(found), found)


def plot_reliability(report: CalibrationReport, path: Any) -> None:
    """Shares against probabilities in bins, with exact 95% intervals; below, how many variants each bin holds."""
    from matplotlib.figure import Figure
    from scipy.stats import binomtest

    from deepwas.files import atomic_path

    figure = Figure(figsize=(5, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot([0, 1], [0, 1], color="#3b4252", lw=0.8, ls=":")
    width = 0.04 if len(report.probability) > 1 else 0.08
    for place, (name, p) in enumerate(report.probability.items()):
        curve = reliability(p, report.truth, bins=_BINS)
        colour = ("#c8442b", "#2b6cb0")[place % 2]
        many = curve.number >= _FEW
        hits = np.round(curve.observed * curve.number).astype(int)
        interval = np.array(
            [binomtest(int(a), int(n)).proportion_ci() for a, n in zip(hits, curve.number, strict=True)]
        )
        error = np.abs(interval.T - curve.observed)
        own = figures(p, report.truth.astype(np.float64))
        likely, chance = (own[f"calibration_error_above{x}"] for x in ("", "_by_chance"))
        said = "" if likely is None else f", calibration error {likely:.2g} from 0.1 on (by chance {chance:.2g})"
        top.errorbar(
            curve.stated,
            curve.observed,
            yerr=error,
            color=colour,
            ls="none",
            marker="os"[place % 2],
            ms=4,
            capsize=2,
            label=name + said,
        )
        top.plot(curve.stated[many], curve.observed[many], color=colour, lw=1.2, ls=("-", "--")[place % 2])
        bottom.bar(
            (np.minimum(curve.stated * _BINS, _BINS - 1).astype(int) + 0.5) / _BINS
            + (place - (len(report.probability) - 1) / 2) * width,
            curve.number,
            width,
            color=colour,
        )
    top.set_ylabel("share that acts on two traits or more")
    top.set_ylim(-0.03, 1.03)
    top.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.06), borderaxespad=0)
    said = f"{report.number:,} simulated LD blocks, {int(report.truth.sum()):,} variants act on two traits or more"
    top.set_title(said, loc="left", fontsize=9)
    bottom.set_yscale("log")
    bottom.set_ylabel("variants")
    bottom.set_xlabel("stated probability")
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
