"""What the networks read of an LD block: channels by variant and trait, after a first pass of fine-mapping.

Two sets of channels are kept apart. *Evidence-free* ones hold priors and LD alone: what a variant's own z-scores, or
those of a variant in LD with it, say is in none of them, for priors come from runs that held its chromosome out. What
is learned from them may be added to prior log odds, which the same z-scores then weigh. *Evidence* channels hold
z-scores and first-pass posteriors; adding what is learned from them to prior odds would count z-scores twice, so they
enter a score that stands apart.

Channels of a trait go through one encoder, whatever the trait, and signs of effects do not enter: what a network says
changes neither with the order of traits nor with the allele that is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepwas.finemapping.block import BlockEffects
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.learning import JointBlock

__all__ = ["BlockFeatures", "Channels", "block_features", "log_odds_of", "standardised"]

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

_NEIGHBOURS = (1, 4, 16, 64)
_SMALL = 1e-9
_RESOLVED = 0.9  # probability that a set's effect is at its lead
_OPEN = 1e-3  # probability of an effect above which a variant may be one that its set has not settled


class Channels(NamedTuple):
    """Channels of m variants.  by_trait: (m, K, C).  shared: (m, S)."""

    by_trait: Singles
    shared: Singles


@dataclass(frozen=True, eq=False)
class BlockFeatures:
    """One LD block, m candidates, as the networks see it.

    rows: of its candidates in the store.  scored: of them, those that the block reports.  chromosome: its name.
    prior, posterior: (m,), p and w, probabilities of two direct traits or more before and after the first pass.
    group: (m,), variants of one credible set bear one number below m, all others one each.
    free, evidence: channels without and with evidence.
    own: (m, K), z-scores of the variant's direct effects given the block's other effects, of unit-like variance.
    explained: (m,), g^T g of its column of the factor: 1 if it has z-scores, less if it enters through LD.
    lead: (m,), resolved lead of a credible set.  open: (m,), in LD with an effect that the data have not located.
    truth: (m,), simulated truth of two direct traits or more, if known.
    """

    rows: slice
    scored: slice
    chromosome: str
    prior: Floats
    posterior: Floats
    group: NDArray[np.int32]
    free: Channels
    evidence: Channels
    own: Singles
    explained: Singles
    lead: NDArray[np.bool_]
    open: NDArray[np.bool_]
    truth: NDArray[np.bool_] | None = None

    @property
    def m(self) -> int:
        """Candidates."""
        return len(self.prior)

    @property
    def inside(self) -> NDArray[np.bool_]:
        """(m,), whether the block reports the variant."""
        found = np.zeros(self.m, bool)
        found[self.scored] = True
        return found


def block_features(
    block: JointBlock,
    log_odds: Floats,
    found: BlockEffects,
    model: TraitModel,
    *,
    scored: slice | None = None,
    chromosome: str = "",
    annotations: NDArray[np.floating] | None = None,
) -> BlockFeatures:
    """Channels of one block; log_odds and found as `deepwas.pleiotropy.learning.locate` yields them.

    scored: of its candidates, those it reports; all by default.  annotations: (m, A), standardised, of the candidates,
    for the evidence-free channels.
    """
    m, size = len(block.direct), model.masks.sum(axis=1)
    masks = model.masks.astype(np.float64)
    total = np.logaddexp(0, np.logaddexp.reduce(log_odds, axis=1))
    each = np.exp(log_odds - total[:, None])
    prior = each[:, size >= 2].sum(axis=1)
    posterior = np.clip(found.probability[:, size >= 2].sum(axis=1), 0, 1)
    G = np.asarray(block.factor, np.float64)
    explained = np.maximum(np.einsum("ij,ij->j", G, G), 1e-12)
    r2 = ((G / np.sqrt(explained)[None, :]).T @ (G / np.sqrt(explained)[None, :])) ** 2
    score = r2.sum(axis=1)
    pi = model.pi(block.direct)
    around = (r2 @ pi) / score[:, None]
    free = [log_odds_of(prior), np.log(score), *(_ahead(r2, n) for n in _NEIGHBOURS)]
    if annotations is not None:
        free += list(np.asarray(annotations, np.float64).T)
    marginal, own = _z_scores(block, G, explained, found, model)
    present = found.probability @ masks
    any_effect = np.clip(found.probability.sum(axis=1), 0, 1)
    lead, unsettled, group = _settled(found, r2, any_effect)
    return BlockFeatures(
        rows=block.rows,
        scored=scored or slice(0, m),
        chromosome=chromosome,
        prior=prior,
        posterior=posterior,
        group=group,
        free=_channels([_log(pi), _log(around)], free),
        evidence=_channels(
            [
                _log(pi),
                np.arcsinh(np.abs(marginal)),
                np.arcsinh(np.abs(own)),
                log_odds_of(present),
                np.abs(found.mean) / np.sqrt(model.slab)[None, :],
            ],
            [*free, log_odds_of(posterior), log_odds_of(any_effect)],
        ),
        own=own.astype(np.float32),
        explained=explained.astype(np.float32),
        lead=lead,
        open=unsettled,
    )


def log_odds_of(p: Floats) -> Floats:
    """log p / (1 - p), of p held 1e-9 off 0 and 1."""
    p = np.clip(p, _SMALL, 1 - _SMALL)
    return np.asarray(np.log(p) - np.log1p(-p))


def _log(p: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(p, _SMALL)))


def _channels(by_trait: list[Floats], shared: list[Floats]) -> Channels:
    return Channels(np.stack(by_trait, axis=2).astype(np.float32), np.stack(shared, axis=1).astype(np.float32))


def _ahead(r2: Floats, n: int) -> Floats:
    """Mean r^2 with the n variants before and the n after."""
    place = np.arange(len(r2))
    near = np.abs(place[:, None] - place[None, :])
    inside = (near > 0) & (near <= n)
    return np.asarray((r2 * inside).sum(axis=1) / np.maximum(inside.sum(axis=1), 1))


def _z_scores(
    block: JointBlock, G: Floats, explained: Floats, found: BlockEffects, model: TraitModel
) -> tuple[Floats, Floats]:
    """Marginal z-scores, whitened over traits by C_n^(-1/2); and z-scores of direct effects given all others."""
    y = np.asarray(block.whitened, np.float64)
    fitted = found.mean @ model.forward
    alone = (G.T @ (y - G @ fitted) + explained[:, None] * fitted) / np.sqrt(explained)[:, None]
    values, vectors = np.linalg.eigh(model.noise)
    marginal = (G.T @ y / np.sqrt(explained)[:, None]) @ (vectors / np.sqrt(values)[None, :]) @ vectors.T
    return marginal, alone @ direct_of(model)


def direct_of(model: TraitModel) -> Floats:
    """(K, K), X: z-scores of direct effects are z X, with noise X^T C_n X."""
    root = np.sqrt(model.sample_size)
    return np.asarray((np.eye(model.traits) - model.T) * root[None, :] / root[:, None])


def _settled(
    found: BlockEffects, r2: Floats, any_effect: Floats
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int32]]:
    """Resolved leads, variants that an unresolved effect may be at, and numbers of groups."""
    m = len(any_effect)
    lead = np.zeros(m, bool)
    group = np.arange(m, dtype=np.int32)
    free = np.ones(m, bool)
    for one in sorted(found.sets, key=lambda one: -one.effect):
        lead[one.lead] |= bool(one.probability[0] >= _RESOLVED)
        mine = one.variants[free[one.variants]]
        if len(mine):
            group[mine] = mine[0]
            free[mine] = False
    near = (r2[:, lead].max(axis=1) > 0.8) if lead.any() else np.zeros(m, bool)
    unsettled = (any_effect > _OPEN) | near
    return lead, unsettled & ~lead, group


def standardised(blocks: list[Channels]) -> list[Channels]:
    """Channels with mean 0 and variance 1 over all variants of the blocks (and traits, which share their channels)."""
    out = []
    for axis in ("by_trait", "shared"):
        n, total, squares = 0, 0.0, 0.0
        for x in _flat(blocks, axis):
            n, total = n + len(x), total + x.sum(axis=0)
        mean = np.asarray(total / n)
        for x in _flat(blocks, axis):
            squares = squares + ((x - mean[None, :]) ** 2).sum(axis=0)
        variance = np.asarray(squares / n)
        scale = np.where(variance > 1e-12, 1 / np.sqrt(np.maximum(variance, 1e-12)), 0.0)
        out.append((mean.astype(np.float32), scale.astype(np.float32)))
    (mean_t, scale_t), (mean_s, scale_s) = out
    return [
        Channels(
            (b.by_trait - mean_t[None, None, :]) * scale_t[None, None, :],
            (b.shared - mean_s[None, :]) * scale_s[None, :],
        )
        for b in blocks
    ]


def _flat(blocks: list[Channels], axis: str) -> Iterator[Floats]:
    """Channels of each block, (rows, channels), one block at a time in float64."""
    for block in blocks:
        x = getattr(block, axis)
        yield np.asarray(x, np.float64).reshape(-1, x.shape[-1])
