"""Several traits on one LD store: their priors and z-scores, checked, and LD blocks whitened once for all of them.

A block's z-scores are those of the variants that every trait has. The others stay candidate causal variants.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.likelihood.factor import Factor, encode_factor
from deepwas.pleiotropy.options import MOST_AT_ONCE
from deepwas.posterior.options import MissingPrior, PosteriorOptions
from deepwas.posterior.source import Source, source_of
from deepwas.posterior.tables import names_of
from deepwas.runs import Fit, load_fit
from deepwas.tally import Tally
from deepwas.training.whitened import FactorCache

if TYPE_CHECKING:
    from deepwas.ld import LDStore

__all__ = ["STEP", "JointBlocks", "Traits", "named", "open_joint", "read_traits"]

Floats = NDArray[np.float64]
Advance = Callable[[int, int], None]

STEP = "pleiotropy"
COPIES = 0.99  # correlation of z-scores above which two traits are one
_OF_TRAITS = ("P_", "PIP_", "EFFECT_", "Z_", "SNPVAR_")  # what columns that bear a trait's name begin with
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_UNEQUAL = 0.2


@dataclass(frozen=True, eq=False)
class Traits:
    """K traits by row of the LD store, M variants.

    z: (M, K), NaN where there is none.  f: (M, K), prior variances of total effects, of cross-fitted priors where runs
    have them.  sample_size: (K,), median over the variants that all traits have.  observed: (M,) bool, those.
    records: of prior and z-scores, ready for JSON.
    mismatch: how each trait's z-scores fit the LD by block, BLOCK FLAG NOISE, as its run found it, None where that is
    not known; empty for none.
    """

    names: tuple[str, ...]
    z: Floats
    f: Floats
    sample_size: Floats
    observed: NDArray[np.bool_]
    records: list[dict[str, Any]]
    tally: Tally
    mismatch: tuple[pl.DataFrame | None, ...] = ()


def named(given: Any, what: str) -> dict[str, Any]:
    """What is given, by the trait's name: a mapping as it is; of a sequence the names of folders or files."""
    if isinstance(given, Mapping):
        found = dict(given)
    elif isinstance(given, Sequence) and not isinstance(given, str):
        pairs = [(_name_of(one, i), one) for i, one in enumerate(given)]
        found = {}
        for name, one in pairs:
            if name in found and (found[name] is one or str(found[name]) == str(one)):
                raise InputError(f"{name} is given twice. Give every trait once.")
            if name in found:
                raise InputError(f"two {what} are called {name!r}. Give a mapping from names, which differ.")
            found[name] = one
    else:
        raise InputError(f"{what} are a {type(given).__name__}: give a list, or a mapping from the traits' names.")
    columns = {column for table in ("pleiotropy", "pleiotropy_loci") for column in names_of(table)}
    for name in found:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f"{name!r} cannot name a trait: columns bear its name. Use letters, digits and _ . + -")
        if taken := sorted(columns & {prefix + name for prefix in _OF_TRAITS}):
            raise InputError(f"{name!r} cannot name a trait: a column is called {taken[0]} already. Give another.")
    if len(found) < 2:
        raise InputError(f"pleiotropy needs two traits or more; given: {', '.join(found) or 'none'}.")
    if len(found) > MOST_AT_ONCE:
        raise InputError(f"{len(found)} traits are given; at most {MOST_AT_ONCE} are classified at once.")
    return found


def _name_of(one: Any, i: int) -> str:
    path = one.folder if isinstance(one, Fit) else one
    if isinstance(path, str | os.PathLike):
        return Path(path).resolve().name.split(".")[0]
    return f"trait{i + 1}"


def read_traits(
    runs: Mapping[str, Any],
    store: LDStore,
    sumstats: Mapping[str, Any] | None = None,
    missing_prior: MissingPrior = "refuse",
) -> Traits:
    """Priors and z-scores of traits, by name.

    runs: finished runs or their folders; or tables of priors, whose z-scores are in `sumstats` under the same name.
    Raises InputError for traits of different LD stores or genome builds, constant ones, and copies of another.
    """
    z_of = dict(sumstats or {})
    if unknown := set(z_of) - set(runs):
        raise InputError(f"sumstats are given for {sorted(unknown)[0]!r}, which is no trait: {', '.join(runs)}.")
    opened = {name: _opened(one) for name, one in runs.items()}
    _same_store(opened)
    sources: dict[str, Source] = {}
    for name, one in opened.items():
        try:
            sources[name] = source_of(one, store, z_of.get(name), PosteriorOptions(missing_prior=missing_prior))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    names, M = tuple(sources), store.n_variants
    z, n = np.full((2, M, len(names)), np.nan)
    tally = Tally()
    for k, source in enumerate(sources.values()):
        rows = source.frame["VARIANT"].to_numpy()
        z[rows, k], n[rows, k] = source.frame["Z"].to_numpy(), source.frame["N"].to_numpy()
        for row in source.tally.rows:
            tally.add(names[k], row.action, row.reason, row.count, row.first)
    observed = np.isfinite(z).all(axis=1)
    if not observed.any():
        raise InputError(f"no variant has a z-score in each of {', '.join(names)}. Are they of the same genome build?")
    snp = store.variants["SNP"]
    for k, name in enumerate(names):
        lost = np.isfinite(z[:, k]) & ~observed
        reason = "z-scores of variants that another trait lacks; they stay candidates"
        tally.add(name, "dropped", reason, int(lost.sum()), str(snp[int(lost.argmax())]) if lost.any() else "")
    _refuse(z[observed], names)
    size = np.median(n[observed], axis=0)
    for k, name in enumerate(names):
        off = np.abs(n[observed, k] / size[k] - 1) > _UNEQUAL
        first = str(snp[int(np.flatnonzero(observed)[off.argmax()])]) if off.any() else ""
        tally.add(name, "noted", f"variants whose N is over {_UNEQUAL:.0%} off the median", int(off.sum()), first)
    f = np.stack([source.f for source in sources.values()], axis=1)
    records, mismatch = ([getattr(x, part) for x in sources.values()] for part in ("record", "mismatch"))
    return Traits(names, z, f, size, observed, records, tally, tuple(mismatch))


def _opened(one: Any) -> Any:
    if isinstance(one, str | os.PathLike) and Path(one).is_dir():
        return load_fit(one)
    return one


def _same_store(opened: Mapping[str, Any]) -> None:
    """Runs must be of one LD store, and so of its genome build; a GWAS of another may have been matched by name."""
    runs = {name: fit.record["inputs"] for name, fit in opened.items() if isinstance(fit, Fit)}
    if not runs:
        return
    (first, known), *others = runs.items()
    for name, one in others:
        for what, a, b in (
            ("genome build", known["ld"]["genome_build"], one["ld"]["genome_build"]),
            ("LD store", known["ld"]["checksum"][:12], one["ld"]["checksum"][:12]),
        ):
            if a != b and None not in (a, b):
                raise InputError(
                    f"{first} and {name} are of different {what}s: {a} and {b}. Fit all traits on one LD store."
                )


def _refuse(z: Floats, names: tuple[str, ...]) -> None:
    for k, name in enumerate(names):
        if np.ptp(z[:, k]) == 0:
            raise InputError(f"{name}: every z-score is {z[0, k]:g}. Leave this trait out.")
    correlation: Floats = np.asarray(np.corrcoef(z, rowvar=False))
    for j, k in combinations(range(len(names)), 2):
        if abs(correlation[j, k]) > COPIES:
            raise InputError(
                f"{names[j]} and {names[k]} are the same trait: their z-scores correlate at {correlation[j, k]:.4f}. "
                "Keep one of the two."
            )


class JointBlocks:
    """Blocks in which all traits have z-scores, made by `open_joint`: all but the factors in memory.

    numbers: of each in the store.  sizes: (k, m).  whitened: (k, K) each.  row_squares: (k,) each, sum_j G_ij^2.
    """

    def __init__(
        self,
        store: LDStore,
        numbers: list[int],
        whitened: list[NDArray[Any]],
        row_squares: list[Floats],
        cache: FactorCache | None,
        made: NDArray[np.bool_],
    ):
        self.store, self.numbers, self.whitened, self.row_squares = store, numbers, whitened, row_squares
        self.sizes = [
            (len(y), self._length(store.block_slice(number))) for y, number in zip(whitened, numbers, strict=True)
        ]
        self._cache, self._made = cache, made

    def __len__(self) -> int:
        return len(self.numbers)

    @staticmethod
    def _length(rows: slice) -> int:
        return int(rows.stop - rows.start)

    def rows(self, i: int) -> slice:
        """Rows of the store that are candidates in block i."""
        return self.store.block_slice(self.numbers[i])

    def scored(self, i: int) -> slice:
        """Of its candidates, those that block i reports: all without flanks."""
        rows, inside = self.rows(i), self.scored_rows(i)
        return slice(inside.start - rows.start, inside.stop - rows.start)

    def scored_rows(self, i: int) -> slice:
        """The same as rows of the store."""
        return self.store.scored_slice(self.numbers[i])

    def factor(self, i: int) -> NDArray[Any]:
        """G (k, m) of block i, float32."""
        number = self.numbers[i]
        if self._made[i]:
            assert self._cache is not None
            return self._cache.read(number).decoded()
        return self.store.factor(number).decoded()


@contextmanager
def open_joint(store: LDStore, traits: Traits, cache: Path, progress: Advance | None = None) -> Iterator[JointBlocks]:
    """Whiten all traits block by block; factors of blocks that lack variants go to the file `cache`."""
    numbers = [b for b in range(store.n_blocks) if traits.observed[store.scored_slice(b)].any()]
    inside = np.zeros(store.n_variants, bool)
    for number in numbers:
        inside[store.scored_slice(number)] = True
    outside = (np.isfinite(traits.z).any(axis=1)) & ~inside
    if outside.any():
        text = "variants of LD blocks without a variant that all traits have"
        first = str(store.variants["SNP"][int(outside.argmax())])
        traits.tally.add(STEP, "dropped", text, int(outside.sum()), first)
    if not numbers:
        raise InputError("no LD block holds a variant with a z-score in every trait: nothing can be classified.")
    whitened, squares = [], []
    made = np.zeros(len(numbers), bool)
    with FactorCache.write(cache) as writer:
        for i, number in enumerate(numbers):
            rows, scored = store.block_slice(number), store.scored_slice(number)
            whole = store.block(number)
            observed = whole.scored & traits.observed[rows]
            observed[: scored.start - rows.start] = False
            observed[scored.stop - rows.start :] = False
            block = whole.restrict(observed)
            made[i] = block is not whole
            factor: Factor = encode_factor(np.asarray(block.factor), "float32")
            if made[i]:
                writer.add(number, factor)
            whitened.append(np.asarray(block.whiten(traits.z[rows][observed]), np.float32))
            squares.append(np.einsum("ij,ij->i", block.factor, block.factor, dtype=np.float64))
            if progress is not None:
                progress(i + 1, len(numbers))
        writer.finish({"made": made}, "joint")
    opened = FactorCache.open(cache, "joint")
    if not isinstance(opened, FactorCache):
        raise InputError(f"{cache}: the cache of whitened LD just written {opened}. Is the disk full or faulty?")
    try:
        yield JointBlocks(store, numbers, whitened, squares, opened, made)
    finally:
        opened.close()
