"""Genome-wide structure of several traits: noise correlation, and effects of trait on trait, estimated or given."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.pleiotropy.joint import JointBlocks, Traits
from deepwas.pleiotropy.options import PleiotropyOptions
from deepwas.pleiotropy.structure import NoiseCorrelation, TraitEffects, noise_correlation_from_blocks, trait_effects
from deepwas.pleiotropy.structure.noise import positive_definite
from deepwas.tables import numeric_column, read_delimited

__all__ = ["Structure", "likely_noise", "read_noise", "read_trait_effects", "refuse_copies", "structure_of"]

Floats = NDArray[np.float64]
PathLike = str | os.PathLike[str]
Say = Callable[[str, int, int], None]

_SAME, _KNOWN = 0.98, 0.02  # genetic correlation above which two traits are one, and the standard error it has to have
_SAME_NOISE, _KNOWN_NOISE = 0.99, 0.05  # the same of noise
_BELOW, _ABOVE, _OVERLAP = 0.05, 0.5, 0.3  # standard deviations of noise
_TOLD = 0.1
_OF_EDGES = ("T", "SE", "ESTIMATE", "ESTIMATE_SE", "PROBABILITY")  # columns of numbers


@dataclass(frozen=True, eq=False)
class Structure:
    """matrix: (K, K), C_n.  noise: its estimate, None where it was given.  effects: T.  draws: (n, K, K) of T."""

    matrix: Floats
    noise: NoiseCorrelation | None
    effects: TraitEffects
    draws: Floats

    @property
    def passing(self) -> Floats:
        """(K,), probability that a direct effect on the trait reaches another one: that there is T, of its sign."""
        if not len(self.draws):
            return np.zeros(len(self.matrix))
        sign = np.sign(np.where(self.effects.T != 0, self.effects.T, np.nan_to_num(self.effects.estimate)))
        agree = ((np.sign(self.draws) == sign[None]) & (sign != 0)[None]).mean(axis=0)
        return np.asarray(agree.max(axis=1))


def structure_of(
    traits: Traits,
    joint: JointBlocks,
    options: PleiotropyOptions,
    *,
    noise: Floats | None = None,
    effects: TraitEffects | None = None,
    progress: Say | None = None,
) -> Structure:
    """Noise correlation by the whitened blocks' spectrum and T by instruments, or either as given.

    Raises InputError for two traits whose genetic correlation is 1, and for a noise that is no covariance.
    """
    names, K = traits.names, len(traits.names)
    found = None
    if noise is None:
        inside = np.zeros(joint.store.n_variants, bool)
        for i in range(len(joint)):
            inside[joint.rows(i)] = True
        found = noise_correlation_from_blocks(
            joint.whitened, joint.row_squares, traits.sample_size, n_variants=float(inside.sum()), names=names
        )
        refuse_copies(found)
        found = likely_noise(found)
        matrix = found.matrix
    else:
        matrix = np.asarray(noise, np.float64)
        if matrix.shape != (K, K) or not np.allclose(matrix, matrix.T) or not (np.linalg.eigvalsh(matrix) > 1e-8).all():
            raise InputError(
                f"the noise correlation must be a symmetric, positive definite ({K}, {K}) matrix of the traits "
                f"{', '.join(names)}; this one has the shape {matrix.shape}, or correlations that cannot all be."
            )
    if effects is not None:
        if effects.names != names:
            raise InputError(f"T is of the traits {', '.join(effects.names)}; these are {', '.join(names)}.")
        own = effects
    elif not options.vertical:
        zero = np.zeros((K, K))
        own = replace(TraitEffects.given(zero, zero, names=names), notes=())
    else:
        own = _effects(traits, joint, matrix, options, progress)
    draws = own.draws(options.draws, seed=options.seed) if own.probability.any() else np.zeros((0, K, K))
    return Structure(matrix, found, own, draws)


def likely_noise(found: NoiseCorrelation) -> NoiseCorrelation:
    """The estimate drawn to what noise can be expected to be, by its own error: 1, with more below than above it.

    Each entry's prior is normal, of a standard deviation `_BELOW` or `_ABOVE` for a trait's noise, which is 1 unless
    z-scores are over-corrected or the LD is not theirs, and `_OVERLAP` around 0 for two traits' people in common.
    Genomes leave the estimate as it is; one chromosome, whose error is of the size of the noise itself, does not.
    """
    estimate, error = found.intercepts.value, found.standard_error
    K = len(estimate)
    own = np.eye(K, dtype=bool)
    prior = own.astype(np.float64)
    spread = np.where(own, np.where(estimate < 1, _BELOW, _ABOVE), _OVERLAP)
    weight = np.where(np.isfinite(error), spread**2 / (spread**2 + np.square(np.nan_to_num(error))), 0.0)
    matrix, mended = positive_definite(prior + weight * (estimate - prior))
    notes = list(found.notes)
    for k, name in enumerate(found.names):
        if abs(matrix[k, k] - estimate[k, k]) > _TOLD:
            notes.append(
                f"{name}: noise {estimate[k, k]:.2f} ± {error[k, k]:.2f} is known badly; {matrix[k, k]:.2f} is used, "
                "drawn towards 1. Give --noise-correlation if it is known."
            )
    return replace(found, matrix=matrix, projected=found.projected or mended, notes=tuple(notes))


def _effects(
    traits: Traits, joint: JointBlocks, matrix: Floats, options: PleiotropyOptions, progress: Say | None
) -> TraitEffects:
    rows = [np.arange(s.start, s.stop) for s in map(joint.scored_rows, range(len(joint)))]
    z = np.where(traits.observed[:, None], traits.z, np.nan)[np.concatenate(rows)]
    labels = np.repeat(np.arange(len(joint)), [len(x) for x in rows])

    def correlation(i: int) -> Floats:
        G = np.asarray(joint.factor(i)[:, joint.scored(i)], np.float64)
        G /= np.sqrt(np.maximum(np.einsum("ij,ij->j", G, G), 1e-12))
        return np.asarray(G.T @ G)

    return trait_effects(
        z,
        traits.sample_size,
        matrix,
        labels,
        names=traits.names,
        threshold=options.threshold,
        correlation=correlation,
        fdr=options.fdr,
        progress=progress,
    )


def refuse_copies(found: NoiseCorrelation) -> None:
    """Two traits are one if their noise or their effects correlate at 1, which the estimate's own error has to show."""
    rg, error = found.genetic_correlation.value, found.genetic_correlation.standard_error
    noise, noise_error = found.intercepts.value, found.standard_error
    for j, k in combinations(range(len(found.names)), 2):
        a, b = found.names[j], found.names[k]
        own = np.sqrt(noise[j, j] * noise[k, k])
        shared, about = noise[j, k] / own, noise_error[j, k] / own
        if abs(shared) > _SAME_NOISE and about < _KNOWN_NOISE:
            raise InputError(f"{a} and {b} have the same noise ({shared:.3f} ± {about:.3f}): keep one of the two.")
        if abs(rg[j, k]) > _SAME and error[j, k] < _KNOWN:
            raise InputError(
                f"{a} and {b} are the same trait genetically: their genetic correlation is {rg[j, k]:.3f} ± "
                f"{error[j, k]:.3f}. Keep one of the two."
            )


def read_noise(path: PathLike, names: tuple[str, ...]) -> Floats:
    """(K, K) from a table TRAIT_1 TRAIT_2 NOISE, as trait_pairs.tsv; a diagonal that is not there is 1."""
    frame = _table(path, ("TRAIT_1", "TRAIT_2", "NOISE"), "noise correlations")
    matrix = np.full((len(names), len(names)), np.nan)
    place = {name: k for k, name in enumerate(names)}
    for number, (a, b, value) in enumerate(frame.select("TRAIT_1", "TRAIT_2", "NOISE").iter_rows(), start=1):
        if a not in place or b not in place or value is None:
            continue
        j, k = place[a], place[b]
        before = matrix[j, k]
        if np.isfinite(before) and before != value:
            raise InputError(
                f"{path}: row {number}, column NOISE: {a} and {b} have {value:g}, and {before:g} before. Keep one row."
            )
        matrix[j, k] = matrix[k, j] = value
    own = np.where(np.isnan(np.diag(matrix)), 1.0, np.diag(matrix))
    np.fill_diagonal(matrix, own)
    if np.isnan(matrix).any():
        j, k = np.argwhere(np.isnan(matrix))[0]
        raise InputError(f"{path}: column NOISE: no value for {names[j]} and {names[k]}. Add the row, 0 for none.")
    if not (own > 0).all():
        k = int(own.argmin())
        raise InputError(
            f"{path}: column NOISE: {names[k]} has {own[k]:g} with itself; noise is above 0, 1 by default."
        )
    most = np.sqrt(np.outer(own, own))
    if (np.abs(np.triu(matrix, 1)) >= most).any():
        j, k = np.argwhere(np.abs(np.triu(matrix, 1)) >= most)[0]
        raise InputError(
            f"{path}: column NOISE: {names[j]} and {names[k]} have {matrix[j, k]:g}; a correlation lies between "
            f"-{most[j, k]:g} and {most[j, k]:g}."
        )
    return matrix


def read_trait_effects(path: PathLike, names: tuple[str, ...]) -> TraitEffects:
    """T from a table CAUSE EFFECT T SE, as trait_effects.tsv; pairs that are not there have none.

    PROBABILITY, where there is the column, is how likely an effect is there, 1 where it is empty; with ESTIMATE and
    ESTIMATE_SE also of effects whose T is 0.
    """
    frame = _table(path, ("CAUSE", "EFFECT", "T"), "effects of trait on trait")
    K = len(names)
    found = {column: np.full((K, K), np.nan) for column in _OF_EDGES}
    seen: set[tuple[int, int]] = set()
    place = {name: k for k, name in enumerate(names)}
    for number, row in enumerate(frame.iter_rows(named=True), start=1):
        for column in ("CAUSE", "EFFECT"):
            if row[column] not in place:
                raise InputError(
                    f"{path}: row {number}, column {column}: {row[column]!r} is no trait here: {', '.join(names)}."
                )
        here = place[row["CAUSE"]], place[row["EFFECT"]]
        if here in seen:
            raise InputError(f"{path}: row {number}: {row['CAUSE']} on {row['EFFECT']} is given twice. Keep one row.")
        seen.add(here)
        if here[0] == here[1] and row.get("T"):
            raise InputError(
                f"{path}: row {number}: {row['CAUSE']} has an effect on itself. Remove the row, or give T 0."
            )
        if row.get("T") and row.get("SE") is None:
            lacks = "" if "SE" in frame.columns else "; the table has no column SE"
            raise InputError(
                f"{path}: row {number}: the effect of {row['CAUSE']} on {row['EFFECT']} has no standard error{lacks}. "
                "Give one in the column SE, 0 where the effect is known exactly."
            )
        for column in _OF_EDGES:
            value = row.get(column)
            found[column][here] = np.nan if value is None else value
    T = np.nan_to_num(found["T"])
    errors = found["SE"] if "SE" in frame.columns else None
    known: dict[str, Floats] = {}
    if "PROBABILITY" in frame.columns:
        chance = found["PROBABILITY"]
        if ((chance < 0) | (chance > 1)).any():
            raise InputError(
                f"{path}: column PROBABILITY holds {chance[(chance < 0) | (chance > 1)][0]:g}; give 0 to 1."
            )
        known = {"probability": np.where(np.isnan(chance), (T != 0).astype(np.float64), chance)}
        if {"ESTIMATE", "ESTIMATE_SE"} <= set(frame.columns):
            known |= {"estimate": found["ESTIMATE"], "estimate_error": found["ESTIMATE_SE"]}
    try:
        return TraitEffects.given(T, errors, names=names, **known)
    except InputError as error:
        raise InputError(f"{path}: {error} (column SE)") from error


def _table(path: PathLike, needed: tuple[str, ...], what: str) -> pl.DataFrame:
    frame = read_delimited(path, what=f"a table of {what}")
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise InputError(
            f"{path}: column {', '.join(missing)} is missing; found {' '.join(frame.columns[:12])}. A table of {what} "
            f"has {' '.join(needed)}."
        )
    numbers: list[Any] = [x for x in ("NOISE", *_OF_EDGES) if x in frame.columns]
    texts = [pl.col(x).cast(pl.String) for x in needed if x not in numbers]
    return frame.select(*texts, *(numeric_column(frame, x, str(path)).alias(x) for x in numbers))
