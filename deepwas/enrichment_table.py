"""Enrichment of heritability by annotation as estimates with standard errors, and as a table."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.errors import DeepwasError
from deepwas.files import require_parent, write_text
from deepwas.specs import validate_table
from deepwas.tally import Tally

__all__ = ["Enrichment", "Estimate", "ratios"]

Floats = NDArray[np.float64]
PathLike = str | os.PathLike[str]

_LEVEL = 0.95
_ERRORS = (
    "Prop._h2_std_error",
    "Enrichment_std_error",
    "Enrichment_p",
    "Coefficient_std_error",
    "Coefficient_z-score",
    "Enrichment_lower",
    "Enrichment_upper",
    "h2_std_error",
    "Coefficient_std_std_error",
)
_LEAST_MEAN = 1e-3  # standard deviations; the ratio to a mean nearer 0 says nothing


@dataclass(frozen=True, eq=False)
class Estimate:
    """A quantity and its block jackknife.

    value: (p,) or scalar.  left_out: (n_groups, p) or (n_groups,), the quantity without each group of blocks.
    """

    value: Any
    left_out: Floats

    @property
    def standard_error(self) -> Any:
        """sqrt((g - 1) / g sum_g (t_(-g) - mean)^2), of the shape of `value`."""
        return _jackknife_error(self.left_out)

    def interval(self, *, log: bool = False, level: float = _LEVEL) -> tuple[Any, Any]:
        """Lower and upper end of an interval by Student's t with n_groups - 1 degrees of freedom.

        log: on the scale of the logarithm, for what is positive; NaN where it is not.
        """
        from scipy.stats import t

        reach = t.ppf((1 + level) / 2, len(self.left_out) - 1)
        if not log:
            return self.value - reach * self.standard_error, self.value + reach * self.standard_error
        with np.errstate(invalid="ignore", divide="ignore"):
            centre, error = np.log(self.value), _jackknife_error(np.log(self.left_out))
        return np.exp(centre - reach * error), np.exp(centre + reach * error)


@dataclass(frozen=True, eq=False)
class Enrichment:
    """Heritability by annotation.

    With V the variants that the LD blocks score, M of them, x_ja annotation a of variant j and f_j its effect variance:

        h2            sum_j f_j
        h2_of         sum_j x_ja f_j              the heritability of the annotation, if it is 0 or 1
        share         h2_of / h2                  Prop._h2
        prop          sum_j x_ja / M              Prop._SNPs
        enrichment    share / prop                mean f inside over mean f, if the annotation is 0 or 1
        difference    mean of f weighted by x less mean of f weighted by 1 - x, whose z-score tests enrichment = 1

    names: (p,).  binary: (p,) bool.  bound: (p,) bool, where the estimate is at its lower bound, an effect variance of
        0, and jackknife errors mean nothing.  one_group: (p,) bool, where nearly all that is known of the annotation
        comes from one group of blocks, and they mean nothing either; see `deepwas.enrichment_reml.in_one_group`.
    prop: (p,).  scale: (p,), standard deviation of x.
    coefficient: average of df_j / dx_ja, the change of a variant's effect variance by one unit of the annotation, all
        others held: tau of S-LDSC, which it is where the prior is linear. None for a prior that is not softplus-linear.
    enrichment: NaN where the mean of x is not positive, or next to 0.  difference: NaN where that mean is 0 or 1.
    noise: sigma2; learned or held.  groups: blocks are deleted together in the jackknife.
    model: how it was fitted, ready for JSON.  tally: what was changed or left out.
    """

    names: tuple[str, ...]
    binary: NDArray[np.bool_]
    bound: NDArray[np.bool_]
    one_group: NDArray[np.bool_]
    prop: Floats
    scale: Floats
    n_variants: int
    n_blocks: int
    h2: Estimate
    h2_of: Estimate
    share: Estimate
    enrichment: Estimate
    difference: Estimate
    coefficient: Estimate | None
    noise: Estimate | None
    model: dict[str, Any]
    tally: Tally = field(default_factory=Tally)

    def __repr__(self) -> str:
        error = float(self.h2.standard_error)
        size = f"{len(self.names)} annotations, {self.n_variants:,} variants"
        return f"Enrichment({size}, h2 {self.h2.value:.4g}, standard error {error:.2g})"

    def table(self) -> pl.DataFrame:
        """One row an annotation, the columns of S-LDSC's `.results` first, after a row `base` of all variants.

        Category Prop._SNPs Prop._h2 Prop._h2_std_error Enrichment Enrichment_std_error Enrichment_p Coefficient
        Coefficient_std_error Coefficient_z-score, then Enrichment_lower Enrichment_upper (95%; on the scale of the
        logarithm for annotations >= 0), h2 h2_std_error, Coefficient_std (tau*: the coefficient times the annotation's
        standard deviation over the mean of f; Gazal et al. 2017) Coefficient_std_std_error, Binary.

        Enrichment_p: two-sided, Student's t of `difference` over its standard error, as in S-LDSC. Missing values are
        null: enrichment where the annotation's mean is not positive; coefficients and p-values of a prior that was
        given; errors and p-values where the estimate is at its bound, or rests on one group of blocks.
        """
        from scipy.stats import t

        freedom = len(self.h2.left_out) - 1
        with np.errstate(invalid="ignore", divide="ignore"):
            z = self.difference.value / self.difference.standard_error
            p = 2 * t.sf(np.abs(z), freedom)
        plain, logged = self.enrichment.interval(), self.enrichment.interval(log=True)
        positive = np.isfinite(logged[0])
        lower, upper = (np.where(positive, b, a) for a, b in zip(plain, logged, strict=True))
        nothing = np.full(len(self.names), np.nan)
        tau, tau_error, star, star_error = nothing, nothing, nothing, nothing
        if self.coefficient is None:
            p = nothing
        else:
            tau, tau_error = self.coefficient.value, self.coefficient.standard_error
            star, star_error = self.tau_star.value, self.tau_star.standard_error
        with np.errstate(invalid="ignore", divide="ignore"):
            columns: dict[str, Any] = {
                "Category": ["base", *self.names],
                "Prop._SNPs": _with_first(1.0, self.prop),
                "Prop._h2": _with_first(1.0, self.share.value),
                "Prop._h2_std_error": _with_first(0.0, self.share.standard_error),
                "Enrichment": _with_first(1.0, self.enrichment.value),
                "Enrichment_std_error": _with_first(0.0, self.enrichment.standard_error),
                "Enrichment_p": _with_first(np.nan, p),
                "Coefficient": _with_first(np.nan, tau),
                "Coefficient_std_error": _with_first(np.nan, tau_error),
                "Coefficient_z-score": _with_first(np.nan, tau / tau_error),
                "Enrichment_lower": _with_first(1.0, lower),
                "Enrichment_upper": _with_first(1.0, upper),
                "h2": _with_first(float(self.h2.value), self.h2_of.value),
                "h2_std_error": _with_first(float(self.h2.standard_error), self.h2_of.standard_error),
                "Coefficient_std": _with_first(np.nan, star),
                "Coefficient_std_std_error": _with_first(np.nan, star_error),
                "Binary": [True, *self.binary.tolist()],
            }
        blank = np.append(False, self.bound | self.one_group)
        for name in _ERRORS:
            columns[name] = np.where(blank, np.nan, columns[name])
        found = pl.DataFrame(columns)
        floats = [name for name, kind in found.schema.items() if kind == pl.Float64]
        return found.with_columns(
            pl.when(pl.col(name).is_finite()).then(pl.col(name).round_sig_figs(7)).alias(name) for name in floats
        )

    @property
    def tau_star(self) -> Estimate:
        """The coefficient by one standard deviation of the annotation, over the mean effect variance."""
        if self.coefficient is None:
            raise DeepwasError("a prior that is not softplus-linear has no coefficients.")
        mean, means = self.h2.value / self.n_variants, self.h2.left_out / self.n_variants
        return Estimate(
            self.coefficient.value * self.scale / mean, self.coefficient.left_out * self.scale / means[:, None]
        )

    def summary(self) -> dict[str, Any]:
        """What belongs beside the table, ready for JSON."""
        return {
            "h2": float(self.h2.value),
            "h2_standard_error": float(self.h2.standard_error),
            "noise": None if self.noise is None else float(self.noise.value),
            "noise_standard_error": None if self.noise is None else float(self.noise.standard_error),
            "variants": self.n_variants,
            "blocks": self.n_blocks,
            "jackknife_groups": len(self.h2.left_out),
            **self.model,
            "counts": self.tally.as_list(),
        }

    def write(self, path: PathLike) -> None:
        """Write `table` as tab-separated text, missing values NA (gzip if the name ends in .gz)."""
        target = require_parent(path)
        frame = self.table()
        validate_table(frame, "enrichment", str(target))
        write_text(target, frame.write_csv(separator="\t", null_value="NA"))


def ratios(h2: Any, h2_of: Any, prop: Any, scale: Any, count: Any) -> dict[str, Any]:
    """What follows from sums over variants; the names are those of `Enrichment`.

    h2_of: (p, ...), sum_j x_ja f_j.  h2: (...), sum_j f_j.  prop: (p, ...), mean of x.  scale: (p, ...), standard
    deviation of x.  count: M.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        share = h2_of / h2
        spread = prop * (1 - prop)
        return {
            "h2_of": h2_of,
            "share": share,
            "enrichment": np.where(prop > _LEAST_MEAN * scale, share / prop, np.nan),
            "difference": np.where(spread != 0, (h2_of / count - prop * h2 / count) / spread, np.nan),
        }


def _jackknife_error(left_out: Floats) -> Any:
    count = len(left_out)
    return np.sqrt((count - 1) / count * np.sum((left_out - left_out.mean(axis=0)) ** 2, axis=0))


def _with_first(first: float, rest: Any) -> Floats:
    return np.append(first, np.asarray(rest, np.float64))
