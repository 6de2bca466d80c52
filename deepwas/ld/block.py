"""One LD block, whitened once.

A block holds m candidate causal variants with LD correlation matrix R, of which a subset S (s of them) is scored:
their z-scores enter the likelihood. With R_SS = U diag(lam) U^T truncated to k eigenpairs,

    whitener  W = diag(lam)^(-1/2) U^T     (k, s)
    factor    G = W R_S:                   (k, m)
    y = W z_S  ~  N(0, noise I + N G diag(f) G^T)

W and G depend on the LD alone, so they are computed once and serve every trait, network and epoch. Both are rotated
so that G G^T is diagonal, which makes the likelihood's covariance nearly diagonal: the solvers rely on it.

The columns of G that belong to S are a square root of the LD: G_S = W R_SS, so G_S^T G_S = R_SS and G_S^T G = R_S: in
the space that is kept. `restrict` and `leading` rest on that, with flanks or without. They take G_S from the whitener,
whose pseudo-inverse it is: a factor may have been stored in 8 bits, a whitener never, and z is whitened with it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from deepwas.errors import DataWarning, InputError

__all__ = ["LDBlock"]

_NEGATIVE_SHARE = 0.01
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class LDBlock:
    """Whitened LD of one block.

    factor: (k, m), G = W R_S:, with G G^T diagonal and descending.
    whitener: (k, s), W with W R_SS W^T = I.
    eigenvalues: (k,), the eigenvalues of R_SS that are kept, descending, float64.
    scored: (m,) bool, the variants whose z-scores enter the likelihood.
    restricted: whether `restrict` made it, for one trait.
    """

    factor: NDArray[Any]
    whitener: NDArray[Any]
    eigenvalues: NDArray[np.float64]
    scored: NDArray[np.bool_]
    restricted: bool = False

    @property
    def k(self) -> int:
        """Number of eigen-directions kept: the length of the whitened z-scores."""
        return self.factor.shape[0]

    @property
    def m(self) -> int:
        """Number of candidate causal variants."""
        return self.factor.shape[1]

    @property
    def s(self) -> int:
        """Number of scored variants."""
        return self.whitener.shape[1]

    @property
    def loadings(self) -> NDArray[Any]:
        """(k, s), L^T with L L^T = R_SS in the space kept, so that z_S = L y there; L is the pseudo-inverse of W.

        Without unequal sample sizes these are the factor's scored columns, but for what the factor lost when stored.
        """
        return self._loadings().astype(self.whitener.dtype)

    def _loadings(self) -> NDArray[np.float64]:
        W = self.whitener.astype(np.float64)
        if self.scored.all() and not self.restricted:
            return W * self.eigenvalues[:, None]
        # W^T = Q T: conditioned like W, where W W^T would square that.
        Q, T = np.linalg.qr(W.T)
        return np.linalg.solve(T, Q.T)

    @classmethod
    def from_correlation(
        cls,
        R: ArrayLike,
        scored: ArrayLike | None = None,
        eigenvalue_floor: float = 1e-4,
        variance_kept: float | None = None,
        dtype: DTypeLike | None = None,
    ) -> LDBlock:
        """Decompose a correlation matrix, in float64, into whitener and factor.

        R: (m, m) LD correlation, symmetric, unit diagonal.
        scored: (m,) bool, or None for all. Variants outside it may be causal, but have no z-score.
        eigenvalue_floor: eigenvalues of R_SS above it are kept.
        variance_kept: if given, in (0, 1], the fewest eigenvalues that reach this share of the trace of R_SS are kept
            instead (never one at or below rounding error).
        dtype: of factor and whitener; by default that of R (at least float32) if JAX runs in 64 bits, else float32.

        Raises InputError for a matrix that is not a finite correlation matrix, and when no eigenvalue remains.
        """
        given = np.asarray(R)
        matrix = _checked_correlation(given)
        mask = _checked_mask(scored, len(matrix))
        kind = _default_dtype(given.dtype) if dtype is None else np.dtype(dtype)
        return cls._decomposed(matrix[mask], mask, eigenvalue_floor, variance_kept, kind)

    @classmethod
    def from_rows(
        cls,
        R_S: ArrayLike,
        scored: ArrayLike,
        eigenvalue_floor: float = 1e-4,
        variance_kept: float | None = None,
        dtype: DTypeLike | None = None,
    ) -> LDBlock:
        """`from_correlation` where only the scored rows of R are at hand: R_S (s, m), scored (m,) bool with s True."""
        given = np.asarray(R_S)
        mask = _checked_mask(scored, given.shape[-1] if given.ndim else 0)
        if given.shape != (mask.sum(), len(mask)):
            raise InputError(f"{mask.sum()} of {len(mask)} variants are scored; their rows of R have {given.shape}.")
        rows = given.astype(np.float64)
        largest = np.abs(rows).max()
        if not largest <= 1 + _TOLERANCE:
            raise InputError(f"the LD matrix holds {largest:.6g}, which is no correlation.")
        rows[:, mask] = _checked_correlation(rows[:, mask])
        kind = _default_dtype(given.dtype) if dtype is None else np.dtype(dtype)
        return cls._decomposed(rows, mask, eigenvalue_floor, variance_kept, kind)

    @classmethod
    def _decomposed(
        cls, rows: NDArray[np.float64], mask: NDArray[np.bool_], floor: float, share: float | None, kind: np.dtype
    ) -> LDBlock:
        _check_rule(floor, share)
        values, vectors = _eigh_descending(rows[:, mask])
        keep = _kept(values, floor, share)
        values, vectors = values[:keep], vectors[:, :keep]
        whitener = vectors.T / np.sqrt(values)[:, None]
        if mask.all():
            factor = vectors.T * np.sqrt(values)[:, None]
        else:
            whitener, factor = _rotate(whitener, whitener @ rows)
        return cls(factor.astype(kind), whitener.astype(kind), values, mask)

    @classmethod
    def from_genotypes(
        cls,
        X: ArrayLike,
        scored: ArrayLike | None = None,
        eigenvalue_floor: float = 1e-4,
        variance_kept: float | None = None,
        dtype: DTypeLike | None = None,
    ) -> LDBlock:
        """Decompose R = X^T X / n without forming it: for n people, fewer than scored variants.

        X: (n, m) genotypes, each variant with mean 0 and mean square 1. The other arguments are those of
        `from_correlation`, and so is the result, to rounding: with X_S X_S^T / n = V diag(lam) V^T, an (n, n) matrix,
        W = diag(1 / lam) V^T X_S / sqrt(n) and G = V^T X / sqrt(n). Memory O(n m + n^2), time O(n^2 (n + m)).

        Raises InputError for genotypes that are not finite or not standardised.
        """
        given = np.asarray(X)
        if given.ndim != 2 or not given.size:
            raise InputError(f"genotypes (people, variants) are needed; their shape is {given.shape}.")
        n, m = given.shape
        squares = np.einsum("ij,ij->j", given, given, dtype=np.float64) / n
        bad = np.flatnonzero(~(np.abs(squares - 1) < _TOLERANCE))
        if bad.size:
            raise InputError(
                f"variant {bad[0]} has mean square {squares[bad[0]]:.6g}, not 1 ({bad.size:,} such): standardise first."
            )
        mask = _checked_mask(scored, m)
        _check_rule(eigenvalue_floor, variance_kept)
        inside = given[:, mask].astype(np.float64) / np.sqrt(n * squares[mask])
        values, V = _eigh_descending(inside @ inside.T)
        # Zeros stand for the rest of the spectrum of R_SS, which is (s, s).
        rest = np.zeros(max(0, inside.shape[1] - n))
        keep = _kept(np.append(values, rest), eigenvalue_floor, variance_kept)
        values, V = values[:keep], V[:, :keep]
        whitener = (V.T @ inside) / values[:, None]
        signs = np.sign(whitener[np.arange(keep), np.abs(whitener).argmax(axis=1)])
        V, whitener = V * signs, whitener * signs[:, None]
        if mask.all():
            factor = whitener * values[:, None]
        else:
            factor = np.empty((keep, m))
            for start in range(0, m, 1024):  # in pieces: X may be float32, and a float64 copy of it large
                piece = slice(start, start + 1024)
                factor[:, piece] = V.T @ (given[:, piece] / np.sqrt(n * squares[piece]))
            whitener, factor = _rotate(whitener, factor)
        kind = _default_dtype(given.dtype) if dtype is None else np.dtype(dtype)
        return cls(factor.astype(kind), whitener.astype(kind), values, mask)

    @classmethod
    def from_factor(cls, factor: ArrayLike, eigenvalues: ArrayLike) -> LDBlock:
        """The block whose variants are all scored, from G = diag(lam)^(1/2) U^T (k, m) and lam (k,): W = G / lam."""
        G = np.asarray(factor)
        values = np.asarray(eigenvalues, dtype=np.float64)
        if G.ndim != 2 or values.shape != G.shape[:1] or not (values > 0).all():
            raise InputError(f"a factor (k, m) and k positive eigenvalues are needed; got {G.shape}, {values.shape}.")
        whitener = (G / values[:, None]).astype(G.dtype)
        return cls(G, whitener, values, np.ones(G.shape[1], dtype=bool))

    def leading(self, share: float) -> LDBlock:
        """The block with the fewest leading eigenvalues that hold `share`, in (0, 1], of the variance it keeps."""
        if not 0 < share <= 1:
            raise InputError(f"the share of variance must be above 0 and at most 1; got {share}.")
        cumulated = np.cumsum(self.eigenvalues) / self.eigenvalues.sum()
        count = min(int(np.searchsorted(cumulated, share * (1 - 1e-12))) + 1, self.k)
        if count == self.k:
            return self
        if self.restricted:
            raise InputError("this block is restricted already: take the leading part of the block of the store.")
        values = self.eigenvalues[:count]
        if self.scored.all():
            return LDBlock(self.factor[:count], self.whitener[:count], values, self.scored)
        # Undo the rotation: G_S G_S^T = P diag(lam) P^T, and P^T W = diag(lam)^(-1/2) U^T.
        inside = self._loadings()
        _, P = _eigh_descending(inside @ inside.T)
        P = P[:, :count]
        whitener, factor = _rotate(P.T @ self.whitener, P.T @ self.factor)
        kind = self.factor.dtype
        return LDBlock(factor.astype(kind), whitener.astype(kind), values, self.scored)

    def restrict(self, observed: ArrayLike, relative_sample_size: ArrayLike | None = None) -> LDBlock:
        """The block of a trait that has z-scores for some of the scored variants only, or with unequal sample sizes.

        observed: (m,) bool, a subset of `scored`. The others stay candidate causal variants; no z-score is invented.
        relative_sample_size: (m,), N_j / N for the observed variants (others ignored), or None for equal ones. Then
            z = diag(sqrt N_O) R_O: beta + e with e ~ N(0, noise R_OO), so G becomes W diag(sqrt(N_O / N)) R_O:.
            The noise of estimates from n_1 <= n_2 people, n_12 of them shared, is correlated as
            R_12 n_12 / sqrt(n_1 n_2). Taking that for R_12 assumes samples that are nearly the same people; nested
            ones, n_12 = n_1, give R_12 sqrt(n_1 / n_2).

        The LD is what the block holds: with O the observed variants, R_OO = G_O^T G_O and R_O: = G_O^T G. With
        G_O = P diag(s) Q^T, R_OO = Q diag(s^2) Q^T, so the new whitener is diag(1/s) Q^T and, for equal sample sizes,
        the new factor P^T G: no (m, m) matrix is needed, and the cost is one eigendecomposition of (k, k). Directions
        whose eigenvalue falls below half of the smallest one kept so far (in proportion to the share of scored
        variants observed) have lost their support and are dropped.

        Raises InputError if a variant is observed that the block does not score, or the block is restricted already.
        """
        if self.restricted:
            raise InputError("this block is restricted already: restrict the block of the store.")
        mask = _checked_mask(observed, self.m)
        outside = np.flatnonzero(mask & ~self.scored)
        if outside.size:
            raise InputError(
                f"variant {outside[0]} of the block is observed but not scored by it ({outside.size:,} such): give "
                "observed & scored."
            )
        if np.array_equal(mask, self.scored) and relative_sample_size is None:
            return self
        G = self.factor.astype(np.float64)
        G[:, self.scored] = self._loadings()
        inside = G[:, mask]
        squares, P = _eigh_descending(inside @ inside.T)
        floor = 0.5 * float(self.eigenvalues[-1]) * inside.shape[1] / self.s
        keep = _kept(squares, floor, None)
        squares, P = squares[:keep], P[:, :keep]
        whitener = (P.T @ inside) / squares[:, None]
        if relative_sample_size is None:
            factor = P.T @ G
        else:
            given = np.asarray(relative_sample_size, dtype=np.float64)
            if given.shape != (self.m,):
                raise InputError(f"relative_sample_size has shape {given.shape}; ({self.m},) is expected.")
            ratio = given[mask]
            if not (np.isfinite(ratio) & (ratio > 0)).all():
                raise InputError("relative sample sizes of observed variants must be positive and finite.")
            factor = ((whitener * np.sqrt(ratio)) @ inside.T) @ G
        whitener, factor = _rotate(whitener, factor)
        kind = self.factor.dtype
        return LDBlock(factor.astype(kind), whitener.astype(kind), squares, mask, restricted=True)

    def whiten(self, z: Any) -> Any:
        """y = W z_S: (s,) z-scores of the scored variants, or (s, t) for t traits, to (k,) or (k, t)."""
        if np.shape(z)[:1] != (self.s,):
            raise InputError(f"z has shape {np.shape(z)}; the block scores {self.s} variants.")
        if type(z).__module__.startswith("jax"):
            import jax
            import jax.numpy as jnp

            return jnp.matmul(self.device_whitener, z, precision=jax.lax.Precision.HIGHEST)
        return self.whitener @ np.asarray(z, dtype=self.whitener.dtype)

    @cached_property
    def device_factor(self) -> Any:
        """The factor as a JAX array, transferred once."""
        import jax
        import jax.numpy as jnp

        with jax.ensure_compile_time_eval():  # first used inside jit, it would keep that trace's value
            return jnp.asarray(self.factor)

    @cached_property
    def device_whitener(self) -> Any:
        """The whitener as a JAX array, transferred once."""
        import jax
        import jax.numpy as jnp

        with jax.ensure_compile_time_eval():  # first used inside jit, it would keep that trace's value
            return jnp.asarray(self.whitener)


def _check_rule(eigenvalue_floor: float, variance_kept: float | None) -> None:
    if not eigenvalue_floor >= 0 or (variance_kept is not None and not 0 < variance_kept <= 1):
        raise InputError(
            f"eigenvalue_floor must be >= 0 and variance_kept in (0, 1]; got {eigenvalue_floor}, {variance_kept}."
        )


def _default_dtype(given: np.dtype) -> np.dtype:
    """The input's dtype when JAX runs in 64 bits, else float32."""
    import jax

    if not jax.config.read("jax_enable_x64"):
        return np.dtype(np.float32)
    return np.promote_types(given, np.float32) if np.issubdtype(given, np.floating) else np.dtype(np.float64)


def _checked_correlation(R: NDArray[Any]) -> NDArray[np.float64]:
    if R.ndim != 2 or R.shape[0] != R.shape[1] or not len(R):
        raise InputError(f"the LD matrix must be square and not empty; its shape is {R.shape}.")
    matrix = R.astype(np.float64)
    bad = ~np.isfinite(matrix)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise InputError(
            f"the LD matrix holds {matrix[row, column]} at row {row}, column {column} ({int(bad.sum()):,} such). "
            "A variant that does not vary in the panel has no correlation: drop it first."
        )
    off = np.abs(np.diagonal(matrix) - 1)
    if off.max() > _TOLERANCE:
        where = int(off.argmax())
        found = matrix[where, where]
        hint = " Some releases store half of the matrix with the diagonal at 0.5: use M + M^T." if found == 0.5 else ""
        raise InputError(f"the LD matrix has {found:.6g} on its diagonal (variant {where}), not 1.{hint}")
    largest = np.abs(matrix).max()
    if largest > 1 + _TOLERANCE:
        row, column = np.unravel_index(int(np.abs(matrix).argmax()), matrix.shape)
        raise InputError(
            f"the LD matrix has {matrix[row, column]:.6g} at row {row}, column {column}, which is no "
            "correlation. Divide covariances by both standard deviations."
        )
    skew = np.abs(matrix - matrix.T).max()
    if skew > _TOLERANCE:
        raise InputError(f"the LD matrix is not symmetric (largest difference {skew:.3g}): is it one triangle only?")
    return (matrix + matrix.T) / 2


def _checked_mask(scored: ArrayLike | None, m: int) -> NDArray[np.bool_]:
    if scored is None:
        return np.ones(m, dtype=bool)
    mask = np.asarray(scored)
    if mask.dtype != bool or mask.shape != (m,):
        raise InputError(f"the mask of variants must be bool of shape ({m},); got {mask.dtype} of shape {mask.shape}.")
    if not mask.any():
        raise InputError("no variant of the block is scored: leave the block out.")
    return mask


def _eigh_descending(matrix: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenpairs, largest first, each vector's largest component positive so that equal input gives equal output."""
    values, vectors = np.linalg.eigh(matrix)
    values, vectors = values[::-1], vectors[:, ::-1]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    return values, vectors * signs


def _kept(values: NDArray[np.float64], floor: float, variance_kept: float | None) -> int:
    """How many leading eigenvalues to keep."""
    negative = -float(values[values < 0].sum())
    if negative > _NEGATIVE_SHARE * len(values):
        warnings.warn(
            f"the LD matrix is not positive semi-definite: its negative eigenvalues, "
            f"{negative / len(values):.1%} of its trace, are dropped. Were its entries taken from different people?",
            DataWarning,
            stacklevel=3,
        )
    rounding = len(values) * np.finfo(np.float64).eps * max(float(values[0]), 0.0)
    if variance_kept is None:
        count = int((values > max(floor, rounding)).sum())
    else:
        positive = values[values > rounding]
        share = np.cumsum(positive) / positive.sum()
        count = int(np.searchsorted(share, variance_kept * (1 - 1e-12)) + 1)
        count = min(count, len(positive))
    if not count:
        raise InputError(
            f"no eigenvalue of the LD matrix is above the floor {floor:.4g} (the largest is {values[0]:.4g}). "
            "Give a lower eigenvalue floor, or larger blocks."
        )
    return count


def _rotate(
    whitener: NDArray[np.float64], factor: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rotate both so that factor @ factor.T is diagonal, descending: P^T W and P^T G, P the eigenvectors of G G^T.

    P is orthogonal to rounding whatever the conditioning, so y = P^T W z keeps its density exactly.
    """
    _, P = _eigh_descending(factor @ factor.T)
    return P.T @ whitener, P.T @ factor
