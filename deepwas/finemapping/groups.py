"""Cutting a block's variants into groups that hold at most two effects each.

Slots that are more likely full than not are paired, the two in strongest LD first, if they are in LD at all; every
variant goes to the group whose lead it is in strongest LD with, and those in LD with none form a group of their own, in
which new effects may still be found. Groups are then weighed in turn, each given the mean effects of the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLOSE", "LINKED", "Cut", "cut", "squared_ld"]

LINKED = 0.05  # r^2 above which effects are weighed together
CLOSE = 0.2  # r^2 above which two effects may be likelier than chance has it


class Cut(NamedTuple):
    """Groups of variants.

    group: (m,) int, of each variant, 0 <= group < n.  slots: (n, 2) int, the slots in each, -1 for none.
    """

    group: NDArray[np.int64]
    slots: NDArray[np.int64]


def cut(G: NDArray[np.floating], lead: NDArray[np.integer], full: NDArray[np.bool_]) -> Cut:
    """G: (k, m).  lead: (L,), a variant for each slot.  full: (L,), the slots that count."""
    which = np.flatnonzero(full)
    if not len(which):
        return Cut(np.zeros(G.shape[1], np.int64), np.full((1, 2), -1))
    squared = squared_ld(G[:, lead[which]], G)
    among = squared[:, lead[which]]
    np.fill_diagonal(among, 0.0)
    slots: list[tuple[int, int]] = []
    free = np.ones(len(which), bool)
    for flat in np.argsort(-among, axis=None, kind="stable"):
        a, b = divmod(int(flat), len(which))
        if among[a, b] <= LINKED:
            break
        if free[a] and free[b]:
            slots.append((a, b))
            free[[a, b]] = False
    slots += [(int(a), -1) for a in np.flatnonzero(free)]
    strength = np.stack([squared[[x for x in pair if x >= 0]].max(axis=0) for pair in slots])
    group = strength.argmax(axis=0)
    group[strength.max(axis=0) <= LINKED] = len(slots)
    named = [[which[x] if x >= 0 else -1 for x in pair] for pair in slots]
    return Cut(group, np.array([*named, [-1, -1]]))


def squared_ld(leads: NDArray[np.floating], G: NDArray[np.floating]) -> NDArray[Any]:
    """(sets, m), r^2 of each lead with each variant.  leads: (k, sets), G: (k, m), columns of a block's factor."""
    length = np.sqrt(np.maximum(np.einsum("ij,ij->j", G, G), 1e-30))
    own = np.sqrt(np.maximum(np.einsum("ij,ij->j", leads, leads), 1e-30))
    return np.asarray((leads.T @ G / own[:, None] / length[None, :]) ** 2)
