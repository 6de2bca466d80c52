"""Semi-supervised networks of pleiotropy: corrections of prior log odds, and a score beside the posterior.

Two networks, for two uses that must not be mixed up:

- the *prior* network reads channels without evidence, and corrects prior log odds; z-scores then weigh the corrected
  prior, so nothing is counted twice;
- the *evidence* network reads z-scores and first-pass posteriors too, and gives a score, P_NETWORK, that is reported
  beside the posterior and never becomes part of a prior.

Cross-fitting does not make evidence channels legitimate in a prior: a network that was trained elsewhere still reads
the variant's own z-scores. It keeps labels, and noise that was fitted, from scoring themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from deepwas.errors import InputError
from deepwas.pleiotropy.network.features import BlockFeatures, log_odds_of
from deepwas.pleiotropy.network.folds import folds_of
from deepwas.pleiotropy.network.labels import Labels
from deepwas.pleiotropy.network.metrics import figures
from deepwas.pleiotropy.network.options import OBJECTIVES, NetworkOptions

__all__ = ["NetworkResult", "corrected", "fit_network"]

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Progress = Callable[[str, int, int], None]

_STANDARD_ERRORS = 2  # of the held-out gain, that a correction must reach
_REAL, _DRAWN = np.array([1.0, 1.0, 1.0]), np.array([0.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class NetworkResult:
    """What the networks say, by networks that did not see the part of the genome that they score.

    correction: of each block, (m,), c, to be added to the log odds of every configuration of two traits or more; all 0
    where no correction was `accepted`.
    probability: of each block, (m,), P_NETWORK.  simulated: the same of each simulated block.
    corrections, probabilities: by objective, for comparison.
    accepted: whether corrections of the chosen objective raise the held-out marginal likelihood by more than two
    standard errors.  ablations: table of held-out figures, ready for JSON.  history: losses of each epoch.
    """

    correction: list[Singles]
    probability: list[Singles]
    simulated: list[Singles]
    corrections: dict[str, list[Singles]]
    probabilities: dict[str, list[Singles]]
    accepted: bool
    ablations: dict[str, Any]
    history: dict[str, Any]
    options: NetworkOptions

    @property
    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "options": self.options.as_dict(),
            "accepted": self.accepted,
            "ablations": self.ablations,
            "history": self.history,
        }


def fit_network(
    blocks: Sequence[BlockFeatures],
    labels: Labels,
    options: NetworkOptions | None = None,
    *,
    simulated: Sequence[BlockFeatures] = (),
    progress: Progress | None = None,
) -> NetworkResult:
    """Train both networks, with all objectives, and score every block.

    blocks: features of the first pass, of the whole genome in its order.  labels: of the store's variants.
    simulated: blocks simulated under the fitted model, with truth (`deepwas.pleiotropy.network.calibration`), that
    teach the evidence network; without them its generative objective has the first pass's posteriors as targets.
    progress: called as progress(what, done, total).

    Objectives (`deepwas.pleiotropy.network.objective`): supervised, labels alone; generative, no label; both. Raises
    InputError where there are too few blocks, or labels of one kind alone.
    """
    from deepwas.pleiotropy.network.training import train_head

    options = options or NetworkOptions()
    own = [labels.of(block) for block in blocks]
    _refuse(own, labels)
    fold, parts = folds_of([b.chromosome for b in blocks], [b.m for b in blocks], options.folds)
    some = _learned(own, options)
    weight = some[:, None] * _REAL[None, :]
    drawn_fold = _folds_of_drawn(blocks, fold, simulated)

    def say(what: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(what, done, total)

    prior = train_head(blocks, own, fold, weight, options, evidence=False, progress=say("training the prior network"))
    taught = weight.copy()
    taught[:, 1] = 0.0
    drawn = list(simulated)
    truth = [np.asarray(b.truth, np.float32) for b in simulated]
    drawn_weight = np.tile(_DRAWN, (len(drawn), 1))
    if not drawn:
        drawn, drawn_fold = [b for b, ok in zip(blocks, some, strict=True) if ok], fold[some > 0]
        truth = [b.posterior.astype(np.float32) for b in drawn]
        drawn_weight = some[some > 0][:, None] * _DRAWN[None, :]
    evidence = train_head(
        [*blocks, *drawn],
        [*own, *truth],
        np.concatenate([fold, drawn_fold]),
        np.concatenate([taught, drawn_weight]),
        options,
        evidence=True,
        progress=say("training the evidence network"),
    )
    probabilities = {
        name: [
            expit(log_odds_of(b.posterior) + h).astype(np.float32)
            for b, h in zip([*blocks, *drawn], evidence.values[name], strict=True)
        ]
        for name in OBJECTIVES
    }
    n = len(blocks)
    of_prior = _of_prior(blocks, own, prior.values)
    ablations: dict[str, Any] = {
        "parts": parts,
        "labels": labels.record,
        "prior": of_prior,
        "evidence": _of_evidence(blocks, own, {k: v[:n] for k, v in probabilities.items()}),
    }
    if simulated:
        after = {k: v[n:] for k, v in probabilities.items()}
        ablations["evidence_simulated"] = _of_evidence(simulated, truth, after)
    chosen = of_prior[options.objective]
    accepted = bool(chosen["gain"] > _STANDARD_ERRORS * chosen["gain_standard_error"])
    correction = prior.values[options.objective] if accepted else [np.zeros(b.m, np.float32) for b in blocks]
    return NetworkResult(
        correction=correction,
        probability=probabilities[options.objective][:n],
        simulated=probabilities[options.objective][n:] if simulated else [],
        corrections=prior.values,
        probabilities={k: v[:n] for k, v in probabilities.items()},
        accepted=accepted,
        ablations=ablations,
        history={"prior": prior.history, "evidence": evidence.history},
        options=options,
    )


def _refuse(own: list[Singles], labels: Labels) -> None:
    known = np.concatenate([y[np.isfinite(y)] for y in own])
    positive = int((known > 0.5).sum())
    if not 0 < positive < len(known):
        raise InputError(
            f"labels ({labels.source}) of variants in these LD blocks: {positive:,} of two traits or more and "
            f"{len(known) - positive:,} of fewer. Both kinds are needed to train on; give --labels with both, or leave "
            "the network out."
        )


def _learned(own: list[Singles], options: NetworkOptions) -> Floats:
    """(blocks,), weights in training, 0 for blocks that are left out.

    All blocks; or half of `learn_blocks` from those with positive labels and half from the others, evenly over the
    genome, each standing for as many as there are.
    """
    weight = np.zeros(len(own))
    if len(own) <= options.learn_blocks:
        return weight + 1
    positive = np.array([(y > 0.5).any() for y in own])
    for rows, share in ((np.flatnonzero(positive), 0.5), (np.flatnonzero(~positive), 0.5)):
        n = min(len(rows), max(1, round(options.learn_blocks * share)))
        if n:
            weight[rows[np.linspace(0, len(rows) - 1, n).astype(int)]] = len(rows) / n
    return weight


def _folds_of_drawn(
    blocks: Sequence[BlockFeatures], fold: NDArray[np.int64], simulated: Sequence[BlockFeatures]
) -> NDArray[np.int64]:
    place = {block.rows.start: int(f) for block, f in zip(blocks, fold, strict=True)}
    for block in simulated:
        if block.truth is None or block.rows.start not in place:
            raise InputError("simulated blocks need truth, and LD blocks that are among those to be scored.")
    return np.array([place[block.rows.start] for block in simulated], np.int64)


def corrected(p: Floats, c: NDArray[np.floating]) -> Floats:
    """The prior probability of two traits or more, p, with its log odds raised by c."""
    return np.asarray(p * np.exp(c) / (1 + p * np.expm1(c)))


def gains(blocks: Sequence[BlockFeatures], corrections: Sequence[Singles]) -> Floats:
    """(blocks,), rise of the log marginal likelihood by corrections, in nats: g of the objective."""
    out = np.zeros(len(blocks))
    for i, (block, c) in enumerate(zip(blocks, corrections, strict=True)):
        rise = np.expm1(c.astype(np.float64)) * block.inside
        held = np.bincount(block.group, block.posterior * block.inside, minlength=block.m)
        raised = np.bincount(block.group, block.posterior * rise, minlength=block.m) / np.maximum(held, 1.0)
        out[i] = np.log1p(raised).sum() - np.log1p(block.prior * rise).sum()
    return out


def _of_prior(
    blocks: Sequence[BlockFeatures], own: list[Singles], values: dict[str, list[Singles]]
) -> dict[str, dict[str, Any]]:
    """By objective: held-out gain in nats over all blocks with its standard error; labels against corrected priors."""
    nothing = {"none": [np.zeros(b.m, np.float32) for b in blocks]}
    out = {}
    for name, each in (nothing | values).items():
        found = gains(blocks, each)
        p = [corrected(b.prior, c) for b, c in zip(blocks, each, strict=True)]
        out[name] = {
            "gain": float(found.sum()),
            "gain_standard_error": float(found.std(ddof=1) * np.sqrt(len(found))),
            "expected": float(sum(x[b.scored].sum() for x, b in zip(p, blocks, strict=True))),
            "expected_by_posterior": float(sum(b.posterior[b.scored].sum() for b in blocks)),
            "labels": _against(p, own),
        }
    return out


def _of_evidence(
    blocks: Sequence[BlockFeatures], own: Sequence[Singles], values: dict[str, list[Singles]]
) -> dict[str, Any]:
    first = {"none": [b.posterior.astype(np.float32) for b in blocks]}
    inside = [np.where(b.inside, y, np.float32(np.nan)) for b, y in zip(blocks, own, strict=True)]
    return {name: _against(each, inside) for name, each in (first | values).items()}


def _against(p: Sequence[NDArray[np.floating]], own: Sequence[Singles]) -> dict[str, Any]:
    label = np.concatenate(list(own)).astype(np.float64)
    known = np.isfinite(label)
    return figures(np.concatenate(list(p)).astype(np.float64)[known], label[known])
