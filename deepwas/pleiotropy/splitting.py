"""Could a shared variant be two? One effect on several traits against two of them that lie close to one another.

A set's effect on the traits delta is weighed against two effects at a pair of variants, one on a trait of delta and one
on all others of it. In a block with noise C_n and whitened z-scores r, less what other sets explain, with V_c = A A^T
the covariance of an effect of class c (`deepwas.pleiotropy.configurations`), P = C_n^-1,

    log BF = 1/2 [ t^T M^-1 t - log|M| ],   M = I + [[d_a Q_11, x Q_12], [x Q_21, d_b Q_22]],   Q = A^T P A,

A = [A_1, A_2] of both parts, V_1 + V_2 = V_delta, d_a = g_a^T g_a, x = g_a^T g_b and t = A^T P (g_a^T r, g_b^T r). With
the mean over variants, traits and pairs in LD r^2 > `CLOSEST` with the lead, one effect and two being equally likely,

    P(split) = mean BF(pair) / (mean BF(pair) + mean BF(one)).

That is what the z-scores alone say. The probability that a variant is shared rests on what is learned besides: how
seldom two effects lie so near one another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepwas.finemapping.block import BlockEffects
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.learning import JointBlock, beside_background, raised

__all__ = ["CLOSEST", "split_probabilities"]

Floats = NDArray[np.float64]

CLOSEST = 0.8  # r^2 with the lead
_MOST = 20  # variants whose pairs are weighed, those in strongest LD with the lead
_SHARED = 0.5  # probability of several traits, given that the effect exists


def split_probabilities(
    block: JointBlock, found: BlockEffects, model: TraitModel, panel: float | None = None
) -> Floats:
    """(sets,), P(split) of each credible set in `found`; nan where it is likelier not shared.

    0 where the lead is in LD r^2 > `CLOSEST` with no other variant.  panel: as of `deepwas.pleiotropy.learning.locate`.
    """
    out = np.full(len(found.sets), np.nan)
    several = np.flatnonzero(model.masks.sum(axis=1) >= 2)
    each = list(zip(found.sets, found.of_sets, strict=True))
    shared = [of[several].sum() > _SHARED * max(one.effect, 1e-12) for one, of in each]
    if not any(shared):
        return out
    level = model.noise if panel is None else raised(model, found, panel)
    P: Floats = np.linalg.inv(level).astype(np.float64)
    G, y = (np.asarray(x, np.float64) for x in beside_background(block, model)[:2])
    leads = G[:, [one.lead for one in found.sets]]
    roots = np.asarray(model.classes.root, np.float64)
    likeliest = [int(of.argmax()) for _, of in each]
    explained = _effects(leads, y, roots[likeliest], P)
    length = np.sqrt(np.maximum(np.einsum("ij,ij->j", G, G), 1e-30))
    for s in np.flatnonzero(shared):
        own = leads[:, s]
        r2 = (own @ G / (length * max(np.sqrt(own @ own), 1e-15))) ** 2
        near = np.argsort(-r2, kind="stable")[:_MOST]
        near = near[r2[near] > CLOSEST]
        if len(near) < 2:
            out[s] = 0.0
            continue
        others = np.arange(len(found.sets)) != s
        left = y - leads[:, others] @ explained[others]
        best = int(several[found.of_sets[s][several].argmax()])
        covariance = roots @ np.swapaxes(roots, 1, 2)
        parts = [
            (_root(covariance[k]), _root(covariance[best] - covariance[k])) for k in np.flatnonzero(model.masks[best])
        ]
        out[s] = _split(G[:, near], left, _root(covariance[best]), parts, P)
    return out


def _effects(leads: Floats, y: Floats, roots: Floats, P: Floats) -> Floats:
    """(sets, K), posterior means of effects at the leads, all together.  leads: (k, sets).  roots: (sets, K, K)."""
    S, K = roots.shape[:2]
    t = np.einsum("ski,kl,sl->si", roots, P, leads.T @ y).ravel()
    cross = np.einsum("ski,kl,ulj->siuj", roots, P, roots) * (leads.T @ leads)[:, None, :, None]
    v = np.linalg.solve(np.eye(S * K) + cross.reshape(S * K, S * K), t).reshape(S, K)
    return np.asarray(np.einsum("ski,si->sk", roots, v))


def _root(covariance: Floats) -> Floats:
    """(K, r), A with A A^T the covariance, of rank r."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 1e-9 * max(values[-1], 1e-300)
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))


def _split(G: Floats, left: Floats, whole: Floats, parts: list[tuple[Floats, Floats]], P: Floats) -> float:
    """P(split) from the columns of the variants G (k, n), residuals (k, K), and roots of the effect and its parts."""
    gram, b = G.T @ G, G.T @ left
    one = _log_bayes(np.diag(gram)[:, None, None] * (whole.T @ P @ whole), b @ P @ whole)
    first, second = np.nonzero(~np.eye(len(gram), dtype=bool))
    two = []
    for A, B in parts:
        r = A.shape[1]
        joined = np.concatenate([A, B], axis=1)
        Q = joined.T @ P @ joined
        size = np.empty((len(first), len(Q), len(Q)))
        size[:, :r, :r] = gram[first, first][:, None, None] * Q[:r, :r]
        size[:, r:, r:] = gram[second, second][:, None, None] * Q[r:, r:]
        size[:, :r, r:] = gram[first, second][:, None, None] * Q[:r, r:]
        size[:, r:, :r] = np.swapaxes(size[:, :r, r:], 1, 2)
        two.append(_log_bayes(size, np.concatenate([b[first] @ P @ A, b[second] @ P @ B], axis=1)))
    odds = _log_mean(np.array(two)) - _log_mean(one)
    return float(1 / (1 + np.exp(-odds)))


def _log_bayes(size: Floats, t: Floats) -> Floats:
    """(n,), from M - I (n, r, r) and t (n, r)."""
    L = np.linalg.cholesky(np.eye(t.shape[1]) + size)
    half = np.linalg.solve(L, t[:, :, None])[:, :, 0]
    log_half = np.log(np.diagonal(L, axis1=1, axis2=2)).sum(axis=1)
    return np.asarray(0.5 * np.square(half).sum(axis=1) - log_half)


def _log_mean(logs: Floats) -> float:
    """Log of the mean of exponentials."""
    top = float(logs.max())
    return top + float(np.log(np.exp(logs - top).mean()))
