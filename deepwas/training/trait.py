"""One trait's z-scores in its LD blocks, whitened.

Whitening a block for a trait that lacks some of its variants, or whose sample size varies, takes an eigendecomposition
(`LDBlock.restrict`). It is done once; the small results are kept in memory, and the factors, nearly all of the bytes,
are read when they are asked for: from the LD store, or, restricted, from a cache beside the run.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from deepwas.errors import DataWarning, InputError
from deepwas.likelihood.factor import Factor, FactorDtype, encode_factor
from deepwas.tally import Tally
from deepwas.training.whitened import CacheDamage, FactorCache, digest, remove_unfinished

if TYPE_CHECKING:
    import polars as pl

    from deepwas.ld import LDBlock, LDStore

__all__ = ["TraitBlock", "TraitBlocks", "blocks_with_scores", "open_trait"]

# Enters the key of every cache: to be raised whenever whitening changes its results.
_VERSION = 2
Advance = Callable[[int, int], None]


class TraitBlock:
    """One LD block with one trait's z-scores; m candidate variants, k eigen-directions. Not to be changed.

    number: of the block in the store.  rows: its candidate variants in the store.
    scored: those of them, positions from 0 to m, that the block scores; all without flanks.
    scored_rows: the same as rows of the store; every variant is in those of one block at most.
    shape: (k, m).  whitened: (k,) float32, y.  z: (m,), 0 where there is none.
    observed: (m,) bool, the scored variants with a z-score.  sample_size: mean N of those.
    row_squares: (k,) float64, sum_j G_ij^2, the variance of y_i per unit of N f.
    encoded: the factor G (k, m) with its scales.  factor: the same, decoded, float32 (or float64).

    The factor may be given as an array, as a `Factor`, or as a function that loads one (then shape and row_squares
    must be given too). Each use of `encoded` or `factor` then loads it again, and nothing is kept: take it once.
    """

    def __init__(
        self,
        number: int,
        rows: slice,
        factor: NDArray[Any] | Factor | Callable[[], Factor],
        whitened: NDArray[np.float32],
        z: NDArray[np.float64],
        observed: NDArray[np.bool_],
        sample_size: float,
        scored: slice | None = None,
        shape: tuple[int, int] | None = None,
        row_squares: NDArray[np.float64] | None = None,
    ):
        self.number = number
        self.rows = rows
        self.whitened = whitened
        self.z = z
        self.observed = observed
        self.sample_size = sample_size
        self.scored = slice(0, rows.stop - rows.start) if scored is None else scored
        self._factor = Factor.of(factor) if isinstance(factor, np.ndarray) else factor
        if isinstance(self._factor, Factor):
            shape = self._factor.values.shape
            row_squares = _row_squares(self._factor) if row_squares is None else row_squares
        if shape is None or row_squares is None:
            raise TypeError("a factor that is loaded later needs shape and row_squares.")
        self.shape = shape
        self.row_squares = row_squares

    @property
    def scored_rows(self) -> slice:
        """Rows of the store that this block scores."""
        return slice(self.rows.start + self.scored.start, self.rows.start + self.scored.stop)

    @property
    def encoded(self) -> Factor:
        """The factor as values (k, m) and scales (k,)."""
        return self._factor if isinstance(self._factor, Factor) else self._factor()

    @property
    def factor(self) -> NDArray[Any]:
        """The factor, (k, m), decoded."""
        return _decoded(self.encoded)


class TraitBlocks(Sequence[TraitBlock]):
    """A trait's blocks, made by `open_trait`: all but the factors in memory. A context manager, as it may hold a file.

    Blocks without any z-score are left out, so the i-th block is not the i-th of the store: see TraitBlock.number.
    dropped: the count of variants that no block models or scores.  notes: what became of the cache, if worth saying.
    """

    def __init__(
        self,
        store: LDStore,
        trait: _Trait,
        summary: dict[str, NDArray[Any]],
        dtype: FactorDtype,
        cache: FactorCache | None,
        held: dict[int, Factor],
        kept: bool,
    ):
        self.dropped = trait.dropped
        self.notes: list[str] = []
        self._store = store
        self._trait = trait
        self._dtype = dtype
        self._summary = summary
        self._ends = np.append(0, np.cumsum(summary["k"]))
        self._cache = cache
        self._held = held
        self._kept = kept
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._summary["number"])

    @overload
    def __getitem__(self, i: int) -> TraitBlock: ...
    @overload
    def __getitem__(self, i: slice) -> list[TraitBlock]: ...
    def __getitem__(self, i: int | slice) -> TraitBlock | list[TraitBlock]:
        """Block i, its factor to be loaded at each use."""
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"block {i} of {len(self)}")
        i %= len(self)
        return self._block(i, lambda: self._load(i))

    def __enter__(self) -> TraitBlocks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(k, m) of every block; nothing is loaded."""
        return list(zip(self._summary["k"].tolist(), self._summary["m"].tolist(), strict=True))

    def load(self, i: int) -> TraitBlock:
        """Block i with its factor in memory, in the dtype asked for. Safe from several threads."""
        return self._block(i, self._load(i))

    def ld_block(self, i: int) -> LDBlock:
        """The whitened LD that block i of this trait was made with, whitener and all; made again from the store."""
        return self._trait.ld_block(self._store, int(self._summary["number"][i]))[0]

    def ld_parts(self, i: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """G (k, m) of block i and L (observed, k), the square root of its observed variants' LD: z = L y.

        In the digits of the LD store, whatever the dtype asked for. L^T is the observed columns of G unless sample
        sizes differ, which G then carries. Read where they are kept, in float32 at least; else made again.
        """
        number = int(self._summary["number"][i])
        if not self._summary["made"][i]:
            whole = self._store.block(number)
            return whole.factor, whole.loadings.T
        if np.dtype(self._dtype).itemsize >= 4 and self._kept:
            block = self.load(i)
            if not self._summary["unequal"][i]:
                return block.factor, block.factor[:, block.observed].T
            # A factor held in memory is there without its loadings, as after damage to the cache.
            if self._cache is not None and number not in self._held:
                with suppress(CacheDamage):
                    return block.factor, self._cache.read_loadings(number).T
        own = self.ld_block(i)
        return own.factor, own.loadings.T

    def close(self) -> None:
        """Close the cache. The LD store is the caller's."""
        if self._cache is not None:
            self._cache.close()

    def _block(self, i: int, factor: Factor | Callable[[], Factor]) -> TraitBlock:
        number = int(self._summary["number"][i])
        rows, scored = self._store.block_slice(number), self._store.scored_slice(number)
        inside = slice(scored.start - rows.start, scored.stop - rows.start)
        z, observed, _ = self._trait.scores(rows, inside)
        here = slice(int(self._ends[i]), int(self._ends[i + 1]))
        return TraitBlock(
            number,
            rows,
            factor,
            self._summary["whitened"][here],
            z,
            observed,
            float(self._summary["sample_size"][i]),
            inside,
            (here.stop - here.start, rows.stop - rows.start),
            self._summary["row_squares"][here],
        )

    def _load(self, i: int) -> Factor:
        number = int(self._summary["number"][i])
        if not self._summary["made"][i]:
            return _encoded(self._store.factor(number), self._dtype)
        if (held := self._held.get(number)) is not None:
            return held
        if self._cache is None or not self._kept:
            return encode_factor(self._trait.ld_block(self._store, number)[0].factor, self._dtype)
        try:
            return self._cache.read(number)
        except CacheDamage as damage:
            # One block in memory is little; the file goes, and the next fit makes a new one.
            self._cache.path.unlink(missing_ok=True)
            text = f"{damage} It was computed again, and the file removed."
            warnings.warn(text, DataWarning, stacklevel=3)
            factor = encode_factor(self._trait.ld_block(self._store, number)[0].factor, self._dtype)
            with self._lock:
                self.notes.append(text)
                self._held[number] = factor
            return factor


def blocks_with_scores(store: LDStore, frame: pl.DataFrame) -> tuple[list[int], list[int]]:
    """Numbers of the blocks that `open_trait` would make of `frame`, and of those in which N differs.

    Nothing is read or computed. InputError as `open_trait`.
    """
    trait = _Trait(store, frame, 1.0)
    return trait.numbers, [number for number in trait.numbers if trait.unequal(store, number)]


def open_trait(
    store: LDStore,
    frame: pl.DataFrame,
    *,
    cache: Path | None = None,
    factor_dtype: FactorDtype = "float32",
    variance_share: float = 1.0,
    keep_factors: bool = True,
    progress: Advance | None = None,
) -> TraitBlocks:
    """Whiten one trait's z-scores block by block, and leave the factors where they are.

    frame: harmonised z-scores, columns VARIANT (row of the store, ascending), Z, N.  Candidates of a block without a
    z-score stay candidate causal variants. Where N differs between variants of a block, z = diag(sqrt N) R beta + e
    with e ~ N(0, noise R), which assumes samples of nearly the same people (see `LDBlock.restrict`).

    cache: a file for the factors that the trait needs for itself; None keeps them in memory. One that was made from
        the same store, z-scores, sample sizes and options is used as it is; any other is replaced, which `notes` says.
        Its folder is this process's own: unfinished copies of the file, which a kill leaves behind, are removed.
    factor_dtype: of the factors loaded. Blocks whose variants all have z-scores of one N are read from the store.
    variance_share: use only the leading eigenvalues that hold this share of the variance the store keeps.
    keep_factors: False for those who want y and row_squares: a factor of the trait's own is made again at each use.

    Returns the blocks that have any z-score. Raises InputError if there is none, or if VARIANT does not ascend within
    the rows of the store.
    """
    trait = _Trait(store, frame, variance_share)
    key = digest(
        f"{_VERSION} {store.checksum} {factor_dtype} {variance_share!r} {keep_factors}",
        *(np.asarray(frame[name].to_numpy()) for name in ("VARIANT", "Z", "N")),
    )
    note = None
    if cache is not None:
        remove_unfinished(cache)
    opened = FactorCache.open(cache, key) if cache is not None and cache.exists() else None
    if isinstance(opened, str):
        note = f"{cache}: the cache of whitened LD {opened}; it was made again."
    if isinstance(opened, FactorCache):
        return TraitBlocks(store, trait, opened.summary, factor_dtype, opened, {}, keep_factors)
    held: dict[int, Factor] = {}
    if cache is None:

        def hold(number: int, factor: Factor, _: NDArray[Any] | None) -> None:
            held[number] = factor

        summary = _whiten_all(store, trait, factor_dtype, hold if keep_factors else None, progress)
        return TraitBlocks(store, trait, summary, factor_dtype, None, held, keep_factors)
    with FactorCache.write(cache) as writer:
        summary = _whiten_all(store, trait, factor_dtype, writer.add if keep_factors else None, progress)
        writer.finish(summary, key)
    opened = FactorCache.open(cache, key)
    if not isinstance(opened, FactorCache):
        raise InputError(f"{cache}: the cache of whitened LD just written {opened}. Is the disk full or faulty?")
    blocks = TraitBlocks(store, trait, summary, factor_dtype, opened, held, keep_factors)
    if note is not None:
        blocks.notes.append(note)
    return blocks


class _Trait:
    """z-scores and sample sizes by row of the store, and which blocks they fall in.

    numbers: the blocks with any z-score.  dropped: what falls in none.
    """

    def __init__(self, store: LDStore, frame: pl.DataFrame, variance_share: float):
        variant = _ascending(frame, store.n_variants)
        self.variance_share = variance_share
        self.z = np.zeros(store.n_variants)
        self.n = np.zeros(store.n_variants)
        self.observed = np.zeros(store.n_variants, dtype=bool)
        self.z[variant], self.n[variant], self.observed[variant] = frame["Z"].to_numpy(), frame["N"].to_numpy(), True
        self.dropped = Tally()
        self.numbers: list[int] = []
        scored = np.zeros(store.n_variants, dtype=bool)
        names = store.variants["SNP"]
        for number in range(store.n_blocks):
            rows = store.scored_slice(number)
            scored[rows] = True
            if self.observed[rows].any():
                self.numbers.append(number)
            else:
                text = "variants of LD blocks without any z-score"
                self.dropped.add("fit", "dropped", text, rows.stop - rows.start, str(names[rows.start]))
        outside = np.flatnonzero(~scored)
        if outside.size:
            text = "variants that no LD block scores"
            self.dropped.add("fit", "dropped", text, int(outside.size), str(names[int(outside[0])]))
        if not self.numbers:
            raise InputError("no LD block holds a variant with a z-score: nothing can be fitted.")

    def scores(self, rows: slice, inside: slice) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
        """z, which of the candidates have one that the block scores, and N, each (m,)."""
        m = rows.stop - rows.start
        z, observed, n = np.zeros(m), np.zeros(m, dtype=bool), np.zeros(m)
        observed[inside] = self.observed[rows][inside]
        z[inside], n[inside] = self.z[rows][inside], self.n[rows][inside]
        return z, observed, n

    def unequal(self, store: LDStore, number: int) -> bool:
        """Whether N differs between the variants that the block scores."""
        rows = store.scored_slice(number)
        used = self.n[rows][self.observed[rows]]
        return bool(used.max() > used.min())

    def ld_block(self, store: LDStore, number: int) -> tuple[LDBlock, bool, bool]:
        """The block with the LD of the variants that have z-scores; is it other than the store's; do their N differ."""
        whole = store.block(number)
        inside = np.flatnonzero(whole.scored)
        _, observed, n = self.scores(store.block_slice(number), slice(int(inside[0]), int(inside[-1]) + 1))
        unequal = self.unequal(store, number)
        block = whole.leading(self.variance_share).restrict(observed, n / n[observed].mean() if unequal else None)
        return block, block is not whole, unequal


def _ascending(frame: pl.DataFrame, n_variants: int) -> NDArray[Any]:
    """VARIANT, (rows,), checked: rows of the store, each once, in its order."""
    variant = frame["VARIANT"].to_numpy()
    if variant.size and (variant.min() < 0 or variant.max() >= n_variants):
        raise InputError(
            f"the z-scores name rows {variant.min():,} to {variant.max():,} of the LD store (VARIANT), which has rows "
            f"0 to {n_variants - 1:,}. Harmonise them against this store."
        )
    if (at := np.flatnonzero(variant[1:] <= variant[:-1])).size:
        here = int(at[0])
        raise InputError(
            f"the z-scores are not in the order of the LD store: VARIANT is {variant[here]} in row {here}, and "
            f"{variant[here + 1]} in the next. Sort them by VARIANT, each variant once."
        )
    return variant


def _whiten_all(
    store: LDStore,
    trait: _Trait,
    dtype: FactorDtype,
    keep: Callable[[int, Factor, NDArray[Any] | None], Any] | None,
    progress: Advance | None,
) -> dict[str, NDArray[Any]]:
    """Whiten every block, hand the factors that are not the store's to `keep`, and return all the rest.

    keep: called with number, factor, and loadings (k, observed) where N differs and the factor is in full digits.

    number, k, m, sample_size, made (whether the factor is the trait's own), unequal (whether N differs): (blocks,).
    whitened, row_squares: (sum of k,), block after block.
    """
    names = ("k", "m", "sample_size", "made", "unequal", "whitened", "row_squares")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for done, number in enumerate(trait.numbers):
        block, made, unequal = trait.ld_block(store, number)
        rows, observed = store.block_slice(number), block.scored
        factor = encode_factor(block.factor, dtype) if made else _encoded(store.factor(number), dtype)
        if made and keep is not None:
            full = unequal and factor.values.dtype.itemsize >= 4
            keep(number, factor, block.loadings if full else None)
        whitened = np.asarray(block.whiten(trait.z[rows][observed]), dtype=np.float32)
        mean_n = trait.n[rows][observed].mean()
        values = (block.k, block.m, mean_n, made, unequal, whitened, _row_squares(factor))
        for name, value in zip(names, values, strict=True):
            columns[name].append(value)
        if progress is not None:
            progress(done + 1, len(trait.numbers))
    joined = {name: np.concatenate(columns.pop(name)) for name in ("whitened", "row_squares")}
    return {"number": np.array(trait.numbers), **{name: np.array(x) for name, x in columns.items()}, **joined}


def _encoded(factor: Factor, dtype: FactorDtype) -> Factor:
    """A factor in the dtype asked for; as it is where it has that already."""
    return factor if factor.values.dtype == dtype else encode_factor(_decoded(factor), dtype)


def _decoded(factor: Factor) -> NDArray[Any]:
    if factor.values.dtype.itemsize >= 4 and (factor.scale == 1).all():
        return factor.values
    return factor.decoded()


def _row_squares(factor: Factor) -> NDArray[np.float64]:
    values = factor.values if factor.values.dtype.itemsize >= 4 else factor.values.astype(np.float32)
    return np.einsum("ij,ij->i", values, values, dtype=np.float64) * factor.scale.astype(np.float64) ** 2
