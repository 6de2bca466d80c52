"""Data of a block at random, from the configuration model: for calibration, and for the null of the sharing test.

    delta_j ~ the configuration model,   u_j | delta_j ~ N(0, V_delta),   y = G U + E,   E ~ N(0, I, C_n),

y (k, K) the whitened z-scores of a block with factor G, and the model's background beside them. Where effects are
likelier near one another, by e^t in LD r^2 > 0.2, effects first fall independently; then every one of them draws others
in such LD at (e^t - 1) / 2 times their own chance, one half from either side, so that pairs are e^t times as many.
With LD of a panel of n people the noise of every direction rises by U^T U / n, as `deepwas.pleiotropy.learning.locate`
takes it to.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deepwas.finemapping.groups import CLOSE
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.learning import JointBlock, panel_noise

__all__ = ["draw_block", "draw_partners", "draw_without_sharing"]

Floats = NDArray[np.float64]


def draw_block(
    block: JointBlock, log_odds: Floats, model: TraitModel, rng: np.random.Generator, *, panel: float | None = None
) -> tuple[JointBlock, NDArray[np.bool_]]:
    """The block with whitened z-scores drawn from the model, and which variants act on two traits or more, (m,)."""
    weights = np.concatenate([np.zeros((len(log_odds), 1)), log_odds], axis=1)
    weights = np.exp(weights - weights.max(axis=1, keepdims=True))
    chance = weights / weights.sum(axis=1, keepdims=True)
    chosen = (rng.random((len(log_odds), 1)) >= np.cumsum(chance, axis=1)[:, :-1]).sum(axis=1) - 1
    acts = np.asarray(model.classes.traits, bool)
    acting = np.flatnonzero(chosen >= 0)
    rows, classes = draw_partners(
        _weighed(block, model), acting, acts[chosen[acting]], chance[:, 1:], acts, model.together, rng
    )
    free = chosen[rows] < 0
    chosen[rows[free]] = classes[free]
    acting = np.flatnonzero(chosen >= 0)
    u = np.zeros((len(log_odds), model.traits))
    root = np.asarray(model.classes.root)[chosen[acting]]
    u[acting] = np.einsum("jki,ji->jk", root, rng.normal(size=(len(acting), root.shape[2])))
    several = np.zeros(len(log_odds), bool)
    several[acting] = model.masks[chosen[acting]].sum(axis=1) >= 2
    return replace(block, whitened=_z_scores(block, u, model, rng, panel)), several


def draw_without_sharing(
    block: JointBlock, model: TraitModel, rng: np.random.Generator, panel: float | None = None
) -> NDArray[np.floating]:
    """Whitened z-scores (k, K) of a block whose traits act on variants independently, drawn from the model.

    Heritable factors act as the model has them, and T is the model's: its draws, if it has any, are of whole data sets.
    """
    m, K = block.factor.shape[1], model.traits
    pi = model.pi(block.direct)
    acts = rng.random((m, K)) < pi
    each = np.eye(K, dtype=bool)
    found, traits = np.nonzero(acts)
    acts[draw_partners(_weighed(block, model), found, each[traits], pi, each, model.together, rng)] = True
    D = acts * rng.normal(size=(m, K)) * np.sqrt(model.slab)[None, :]
    u = D @ model.forward
    for a, odds in zip(model.loadings, model.odds_of_factors(block.direct).T, strict=True):
        through = rng.random(m) < 1 / (1 + np.exp(-odds))
        u += (through * rng.normal(size=m))[:, None] * (a * np.sqrt(model.sample_size))[None, :]
    return _z_scores(block, u, model, rng, panel)


def draw_partners(
    factor: NDArray[np.floating],
    rows: NDArray[np.integer],
    traits: NDArray[np.bool_],
    chance: Floats,
    acts: NDArray[np.bool_],
    together: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and classes of effects that are there because others are near.

    rows, traits: (n,), (n, K), variants with effects and what these act on.  chance: (m, C), of an effect of each class
    alone.  acts: (C, K), what classes act on.  together: log odds of two effects in LD, with a trait in common and with
    none.
    """
    if not len(rows) or max(together) <= 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    G = np.asarray(factor, np.float64)
    unit = G / np.sqrt(np.maximum(np.einsum("ij,ij->j", G, G), 1e-30))
    near = (unit.T @ unit[:, rows]) ** 2 > CLOSE
    near[rows, np.arange(len(rows))] = False
    disjoint = traits.astype(np.float64) @ acts.T == 0
    more = np.expm1(np.where(disjoint, together[1], together[0])) / 2
    drawn = rng.random(chance.shape) < chance * (near @ more)
    found, classes = np.nonzero(drawn)
    return found, classes


def _weighed(block: JointBlock, model: TraitModel) -> Floats:
    """The factor as effects are located with it, directions of much background counting less."""
    spread = model.spread_of_background(model.signal(block.factor, block.direct))
    return np.asarray(block.factor / spread[:, None], np.float64)


def _z_scores(
    block: JointBlock, u: Floats, model: TraitModel, rng: np.random.Generator, panel: float | None
) -> NDArray[np.floating]:
    """(k, K) whitened, from effects u (m, K) in units of z-scores."""
    noise = model.noise if panel is None else panel_noise(model.noise, u.T @ u / panel)
    y = np.asarray(block.factor, np.float64) @ u
    y += rng.normal(size=y.shape) @ np.linalg.cholesky(noise).T
    y += model.draw_background(block.factor, block.direct, rng)
    return np.asarray(y, block.whitened.dtype)
