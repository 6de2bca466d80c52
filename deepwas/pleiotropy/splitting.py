"""Could a shared variant be two? One effect on several traits against two of them that lie close to one another.

A set's effect on the traits delta is weighed against two effects at variants a and b, one on a trait k of delta and one
on the other traits of it. Let g (m of them, of k directions) be the columns of a block's factor and r (k, K) its
whitened z-scores less what the effects of other credible sets explain, both over the spread that background adds to
noise, P = C_n^-1 (K, K), V_c = A_c A_c^T the covariance of an effect of class c (`deepwas.pleiotropy.configurations`):

    log BF_ab = 1/2 [ t^T M^-1 t - log|M| ],   M = I + [[d_a Q_11, x Q_12], [x Q_21, d_b Q_22]],   Q = A^T P A,

A = [A_1, A_2] the roots of both parts, V_1 + V_2 = V_delta, d_a = g_a^T g_a, x = g_a^T g_b, and t = (A_1^T P r^T g_a,
A_2^T P r^T g_b). With the traits k and the places that fit best, of one effect and of two, taken for equally likely,

    P(split) = max BF_ab / (max BF_ab + max BF_j)   over a != b and j in LD r^2 > `CLOSEST` with the lead.

That is what the z-scores alone say, as for a lead and its perfect proxy one half. The probability that a variant is
shared rests on prior odds besides: how often variants are shared, and how often two effects lie near one another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from deepwas.finemapping.block import BlockEffects
from deepwas.finemapping.groups import squared_ld
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.learning import JointBlock, beside_background, raised

__all__ = ["CLOSEST", "Split", "splits"]

Floats = NDArray[np.float64]

CLOSEST = 0.8  # r^2 with the lead
_LIKELIEST = 25  # places of each of the two effects that are tried: those that fit it best, alone
_SHARED = 0.2  # probability of several traits, given that the effect exists; calls at a mean of 5% go down to 0.4


@dataclass(frozen=True)
class Split:
    """probability: P(split).  trait: k, which the first of the two likeliest effects is on, the second on the others.
    variants: where these are, in the block. Both None, and P(split) 0, where the lead is close to no other variant.
    """

    probability: float
    trait: int | None = None
    variants: tuple[int, int] | None = None


def splits(
    block: JointBlock, found: BlockEffects, model: TraitModel, scored: slice, panel: float | None = None
) -> list[Split | None]:
    """Of each credible set in `found`; None where it is hardly shared, or led by a variant that is not scored.

    panel: as of `deepwas.pleiotropy.learning.locate`.
    """
    out: list[Split | None] = [None] * len(found.sets)
    several = np.flatnonzero(model.masks.sum(axis=1) >= 2)
    leads = np.array([one.lead for one in found.sets], np.int64)
    effect = np.array([one.effect for one in found.sets])
    shared = found.of_sets[:, several].sum(axis=1) > _SHARED * np.maximum(effect, 1e-12)
    wanted = np.flatnonzero(shared & (leads >= scored.start) & (leads < scored.stop))
    if not len(wanted):
        return out
    P: Floats = np.linalg.inv(model.noise if panel is None else raised(model, found, panel)).astype(np.float64)
    G, y = (np.asarray(x, np.float64) for x in beside_background(block, model)[:2])
    roots = np.asarray(model.classes.root, np.float64)
    covariance = roots @ np.swapaxes(roots, 1, 2)
    explained = _effects(G[:, leads], y, roots[found.of_sets.argmax(axis=1)], P)
    factor = np.asarray(block.factor, np.float64)  # LD as it is, whatever the background
    close = squared_ld(factor[:, leads[wanted]], factor) > CLOSEST
    for s, here in zip(wanted.tolist(), close, strict=True):
        near = np.flatnonzero(here)
        if len(near) < 2:
            out[s] = Split(0.0)
            continue
        others = np.arange(len(leads)) != s
        left = y - G[:, leads[others]] @ explained[others]
        best = int(several[found.of_sets[s][several].argmax()])
        traits = np.flatnonzero(model.masks[best]).tolist()
        parts = [(_root(covariance[k]), _root(covariance[best] - covariance[k])) for k in traits]
        p, part, pair = _split(G[:, near], left, _root(covariance[best]), parts, P)
        out[s] = Split(p, traits[part], (int(near[pair[0]]), int(near[pair[1]])))
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


def _split(
    G: Floats, left: Floats, whole: Floats, parts: list[tuple[Floats, Floats]], P: Floats
) -> tuple[float, int, tuple[int, int]]:
    """P(split) from the columns of the variants G (k, n), residuals (k, K), and roots of the effect and its parts; the
    likeliest parts, and their places."""
    gram, b = G.T @ G, G.T @ left
    one = _alone(gram, b, whole, P).max()
    two = [_pairs(gram, b, *each, P) for each in parts]
    best = int(np.argmax([bayes.max() for bayes, _ in two]))
    bayes, places = two[best]
    first, second = places[int(bayes.argmax())].tolist()
    return float(expit(bayes.max() - one)), best, (first, second)


def _alone(gram: Floats, b: Floats, A: Floats, P: Floats) -> Floats:
    """(n,), log Bayes factors of one effect with the root A (K, r).  b: (n, K)."""
    return _log_bayes(np.diag(gram)[:, None, None] * (A.T @ P @ A), b @ P @ A)


def _pairs(gram: Floats, b: Floats, A: Floats, B: Floats, P: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """(pairs,), log Bayes factors of two effects at the likeliest places of each, never the same; (pairs, 2), those."""
    places = [np.argsort(-_alone(gram, b, root, P), kind="stable")[:_LIKELIEST] for root in (A, B)]
    first, second = (x.ravel() for x in np.meshgrid(*places, indexing="ij"))
    first, second = first[first != second], second[first != second]
    r, joined = A.shape[1], np.concatenate([A, B], axis=1)
    Q = joined.T @ P @ joined
    size = np.empty((len(first), len(Q), len(Q)))
    size[:, :r, :r] = gram[first, first][:, None, None] * Q[:r, :r]
    size[:, r:, r:] = gram[second, second][:, None, None] * Q[r:, r:]
    size[:, :r, r:] = gram[first, second][:, None, None] * Q[:r, r:]
    size[:, r:, :r] = np.swapaxes(size[:, :r, r:], 1, 2)
    bayes = _log_bayes(size, np.concatenate([b[first] @ P @ A, b[second] @ P @ B], axis=1))
    return bayes, np.stack([first, second], axis=1)


def _log_bayes(size: Floats, t: Floats) -> Floats:
    """(n,), from M - I (n, r, r) and t (n, r)."""
    L = np.linalg.cholesky(np.eye(t.shape[1]) + size)
    half = np.linalg.solve(L, t[:, :, None])[:, :, 0]
    log_half = np.log(np.diagonal(L, axis1=1, axis2=2)).sum(axis=1)
    return np.asarray(0.5 * np.square(half).sum(axis=1) - log_half)
