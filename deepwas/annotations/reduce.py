"""Principal components of wide matrices of scores, fitted and applied piece by piece, exactly.

Unsigned scores x (absolute values, conservation, embeddings) have components in the usual way: eigenvectors of their
correlation matrix. For signed scores the mean has no meaning, because a score changes sign with the choice of the
counted allele, which is arbitrary: after centring, a flipped row would no longer have flipped components. Signed scores
are therefore decomposed uncentred: eigenvectors of sum_j s_j s_j^T, which no flip of a row changes, each column scaled
to root mean square 1; and the components of a flipped row are exactly the flipped components.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas import __version__
from deepwas.errors import InputError
from deepwas.files import atomic_path, require_file, require_parent

__all__ = ["Moments", "Reduction", "read_reduction"]

FORMAT = "deepwas-loadings"
_METADATA_KEY = "deepwas"
_RELATIVE_RANK = 1e-10

Array = NDArray[np.float64]


class Moments:
    """Counts, sums and cross-products of rows with missing values, in float64; p^2 numbers (3 p^2 with missing ones).

    Each piece of r rows costs one product of p r p (three where values are missing).
    """

    def __init__(self, columns: int):
        self.rows = 0
        self.present = np.zeros(columns)
        self.sums = np.zeros(columns)
        self._products: Array = np.zeros((columns, columns))
        self._whole = 0  # rows without missing values
        self._whole_sums = np.zeros(columns)
        self._pairs: Array | None = None
        self._halves: Array | None = None
        self._shift: Array | None = None

    def add(self, values: NDArray[Any]) -> None:
        """Count rows in: values (r, p), NaN where missing."""
        x = np.array(values, dtype=np.float64)
        if not len(x):
            return
        missing = np.isnan(x)
        if self._shift is None:
            # Near the mean, so that little is lost when the mean is taken off afterwards.
            counts = np.maximum((~missing).sum(axis=0), 1)
            self._shift = np.where(missing, 0, x).sum(axis=0) / counts
        x -= self._shift[None, :]
        holes = missing.any(axis=1)
        self.rows += len(x)
        if holes.any():
            seen = (~missing[holes]).astype(np.float64)
            part = np.where(missing[holes], 0, x[holes])
            if self._pairs is None or self._halves is None:
                self._pairs, self._halves = np.zeros_like(self._products), np.zeros_like(self._products)
            self._pairs += seen.T @ seen
            self._halves += part.T @ seen
            self._products += part.T @ part
            self.present += seen.sum(axis=0)
            self.sums += part.sum(axis=0)
            x = x[~holes]
        self._whole += len(x)
        self._whole_sums += x.sum(axis=0)
        self._products += x.T @ x
        self.present += len(x)
        self.sums += x.sum(axis=0)

    def mean(self) -> Array:
        """(p,), over the values present."""
        shift = np.zeros(len(self.sums)) if self._shift is None else self._shift
        return self.sums / np.maximum(self.present, 1) + shift

    def products(self, centre: Array) -> Array:
        """(p, p), sum over rows of (x_i - centre_i)(x_j - centre_j) where both are present."""
        shift = np.zeros(len(self.sums)) if self._shift is None else self._shift
        c = centre - shift
        out = self._products - np.outer(self._whole_sums, c) - np.outer(c, self._whole_sums)
        out += self._whole * np.outer(c, c)
        if self._pairs is not None and self._halves is not None:
            out += self._pairs * np.outer(c, c) - self._halves * c[None, :] - self._halves.T * c[:, None]
        return out


@dataclass(frozen=True)
class Reduction:
    """k components of p columns: ((x - mean) / scale) @ loadings, missing values being 0 after scaling.

    names: (p,) columns.  mean: (p,), 0 where signed.  scale: (p,) standard deviations, or root mean squares where
    signed; 0 marks a column without variation, which takes no part.  loadings: (p, k), orthonormal.
    variances: (k,) of the components, a column counting 1.  signed: whether the scores carry a sign.
    """

    names: tuple[str, ...]
    mean: Array
    scale: Array
    loadings: Array
    variances: Array
    signed: bool

    @classmethod
    def fit(cls, moments: Moments, names: Sequence[str], components: int, *, signed: bool) -> Reduction:
        """The leading components of what `moments` counted; fewer where the columns have no more dimensions.

        Exact, by eigendecomposition of the (p, p) matrix of second moments: about 10 p^3 operations in float64.
        """
        from scipy.linalg import eigh

        if components < 1:
            raise InputError(f"{components} principal components: give 1 or more.")
        mean = np.zeros(len(names)) if signed else moments.mean()
        products = moments.products(mean)
        squares = np.maximum(np.diagonal(products), 0.0)
        size = np.maximum(np.maximum(np.abs(mean), np.abs(moments.mean())), 1e-30)
        scale = np.sqrt(squares / np.maximum(moments.present, 1))
        scale[scale <= 1e-7 * size] = 0.0  # rounding of a constant
        used = np.flatnonzero(scale > 0)
        if not len(used):
            raise InputError("no score varies over the matched variants: there is nothing to decompose.")
        matrix = products[np.ix_(used, used)] / np.outer(scale[used], scale[used]) / moments.rows
        count = min(components, len(used))
        first = len(used) - count
        values, vectors = eigh(matrix, subset_by_index=[first, len(used) - 1])
        values, vectors = values[::-1], vectors[:, ::-1]
        kept = values > _RELATIVE_RANK * max(float(values[0]), 0.0)
        values, vectors = values[kept], vectors[:, kept]
        vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
        loadings = np.zeros((len(names), len(values)))
        loadings[used] = vectors
        return cls(tuple(names), mean, scale, loadings, values, signed)

    def ordered(self, names: Sequence[str]) -> Reduction:
        """The same for columns in another order."""
        if tuple(names) == self.names:
            return self
        at = [self.names.index(name) for name in names]
        return replace(self, names=tuple(names), mean=self.mean[at], scale=self.scale[at], loadings=self.loadings[at])

    @property
    def constant(self) -> tuple[str, ...]:
        """Columns without variation, which take no part."""
        return tuple(name for name, scale in zip(self.names, self.scale, strict=True) if scale == 0)

    @property
    def share(self) -> float:
        """Of the scaled columns' variance, what the components hold."""
        return float(self.variances.sum() / max(1, int((self.scale > 0).sum())))

    def transform(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """(r, k) components of rows (r, p); a row without any value has none (NaN)."""
        x = np.asarray(values, dtype=np.float64)
        missing = np.isnan(x)
        x = (x - self.mean[None, :]) / np.where(self.scale > 0, self.scale, 1.0)[None, :]
        out = (np.where(missing, 0.0, x) @ self.loadings).astype(np.float32)
        out[missing.all(axis=1)] = np.nan
        return out

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write Parquet: one row a column (NAME MEAN SCALE PC1 PC2 ...), atomically; `read_reduction` reads it."""
        target = require_parent(path)
        columns = {f"PC{i + 1}": self.loadings[:, i] for i in range(self.loadings.shape[1])}
        frame = pl.DataFrame({"NAME": list(self.names), "MEAN": self.mean, "SCALE": self.scale, **columns})
        content = {
            "format": FORMAT,
            "format_version": 1,
            "deepwas_version": __version__,
            "signed": self.signed,
            "variances": self.variances.tolist(),
        }
        with atomic_path(target) as temporary:
            frame.write_parquet(temporary, metadata={_METADATA_KEY: json.dumps(content)})


def read_reduction(path: str | os.PathLike[str]) -> Reduction:
    """Loadings that `Reduction.write` wrote, so that they are applied to other variants as they are."""
    found = require_file(path, "loadings of principal components")
    with open(found, "rb") as handle:
        parquet = handle.read(4) == b"PAR1"
    try:
        content = json.loads(pl.read_parquet_metadata(found).get(_METADATA_KEY, "null")) if parquet else None
        frame = pl.read_parquet(found) if parquet else None
    except (pl.exceptions.PolarsError, json.JSONDecodeError) as error:
        raise InputError(f"{found}: damaged Parquet file ({error}). Copy it again.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or frame is None:
        raise InputError(
            f"{found}: no loadings of principal components. Give a file that `deepwas scores --pca` wrote."
        )
    if content["format_version"] != 1:
        raise InputError(
            f"{found}: loadings of format {content['format_version']}, newer than this deepwas: update it."
        )
    return Reduction(
        tuple(frame["NAME"].to_list()),
        frame["MEAN"].to_numpy(),
        frame["SCALE"].to_numpy(),
        frame.drop("NAME", "MEAN", "SCALE").to_numpy(),
        np.array(content["variances"]),
        bool(content["signed"]),
    )
