"""SHAP: the log of a variant's effect variance, divided between its annotations (Lundberg & Lee 2017)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.inputs import VariantInputs
from deepwas.interpretation.options import InterpretOptions

if TYPE_CHECKING:
    from deepwas.annotations import Annotations
    from deepwas.runs import Fit

__all__ = ["attribute", "require_shap", "summarised"]

Advance = Callable[[int, int], None]
_AT_ONCE = 8192


def require_shap() -> Any:
    """The library, or InputError that says how to get it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it draws with what Matplotlib is about to drop; we draw ourselves
            import shap
    except ImportError as error:
        raise InputError(
            "attributions are made by the library SHAP, which is not installed: pip install 'deepwas[shap]'."
        ) from error
    return shap


def attribute(
    fit: Fit,
    annotations: Annotations,
    rows: NDArray[np.int64],
    options: InterpretOptions,
    progress: Advance | None = None,
) -> pl.DataFrame:
    """Shapley values of log f by annotation, of some variants: one row a variant.

    CHR SNP BP A1 A2 SECTION LOG_F BASE, then one column an annotation. BASE is the mean log f of the background, drawn
    from the same variants; BASE and the annotations add up to LOG_F. Values of an annotation that is taken away come
    from the background, others staying as they are, so that annotations are treated as independent of one another.
    Permutation sampling with both directions of each permutation (exact where at most two annotations interact).

    rows: of fit.variants, whose annotations `annotations` must hold, by row. A variant's network is the one that held
    out its section, or the only one.
    """
    shap = require_shap()
    rng = np.random.default_rng([options.seed, 3])
    chosen = np.sort(rng.permutation(rows)[: options.attributions])
    background = annotations.values[rng.permutation(rows)[: options.background]]
    section = fit.variants["SECTION"].to_numpy()[chosen] if fit.cross_fitted else np.zeros(len(chosen), np.int64)
    p = len(annotations.names)
    values, base = np.zeros((len(chosen), p)), np.zeros(len(chosen))
    log_f = np.zeros(len(chosen))
    done = 0
    for r in np.unique(section):
        own = np.flatnonzero(section == r)
        model = _log_f(fit, int(r))
        masker = shap.maskers.Independent(background, max_samples=len(background))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            explainer = shap.PermutationExplainer(model, masker, seed=options.seed)
            for start in range(0, len(own), 16):
                some = own[start : start + 16]
                found = explainer(annotations.values[chosen[some]], max_evals=options.rounds * (2 * p + 1), silent=True)
                values[some], base[some] = found.values, found.base_values
                done += len(some)
                if progress is not None:
                    progress(done, len(chosen))
        log_f[own] = model(annotations.values[chosen[own]])
    out = fit.variants[chosen].select("CHR", "SNP", "BP", "A1", "A2", "SECTION")
    return out.with_columns(
        pl.Series("LOG_F", log_f),
        pl.Series("BASE", base),
        *(pl.Series(name, values[:, j]) for j, name in enumerate(annotations.names)),
    )


def summarised(found: pl.DataFrame, annotations: Annotations, values: NDArray[np.float32]) -> pl.DataFrame:
    """ANNOTATION MEAN_ABS STANDARD_ERROR SHARE DIRECTION, most important first.

    MEAN_ABS: mean of the absolute Shapley values, in units of log f.  SHARE: of the sum over annotations.  DIRECTION:
    Spearman's correlation of Shapley value and annotation, null where either is constant.
    values: (n, p), the raw annotations of the variants in `found`.
    """
    from scipy.stats import spearmanr

    rows: list[dict[str, Any]] = []
    for j, name in enumerate(annotations.names):
        own, x = found[name].to_numpy(), values[:, j]
        present = ~np.isnan(x)
        varies = present.sum() > 2 and np.ptp(own[present]) > 0 and np.ptp(x[present]) > 0
        size = np.abs(own)
        rows.append(
            {
                "ANNOTATION": name,
                "MEAN_ABS": float(size.mean()),
                "STANDARD_ERROR": float(size.std(ddof=1) / np.sqrt(len(own))) if len(own) > 1 else None,
                "DIRECTION": float(spearmanr(own[present], x[present])[0]) if varies else None,
            }
        )
    schema = {"ANNOTATION": pl.String, "MEAN_ABS": pl.Float64, "STANDARD_ERROR": pl.Float64, "DIRECTION": pl.Float64}
    table = pl.DataFrame(rows, schema=schema)
    total = float(table["MEAN_ABS"].sum())
    share = pl.lit(None, pl.Float64) if total == 0 else pl.col("MEAN_ABS") / total
    ordered = ("ANNOTATION", "MEAN_ABS", "STANDARD_ERROR", "SHARE", "DIRECTION")
    return table.with_columns(SHARE=share).select(ordered).sort("MEAN_ABS", descending=True, maintain_order=True)


def _log_f(fit: Fit, rotation: int) -> Callable[[NDArray[Any]], NDArray[np.float64]]:
    """log f of raw annotations, (n, p) -> (n,), by one rotation's network."""
    from deepwas.networks import predict_log_variance

    network: Any = fit.networks[rotation]
    standardiser = fit.standardisers[rotation]
    assert network is not None
    assert standardiser is not None

    def log_f(raw: NDArray[Any]) -> NDArray[np.float64]:
        # One compiled shape, however many rows SHAP sends.
        size = -(-len(raw) // _AT_ONCE) * _AT_ONCE
        padded = np.zeros((size, raw.shape[1]), np.float32)
        padded[: len(raw)] = raw
        inputs = VariantInputs(standardiser.transform(padded))
        return predict_log_variance(network, inputs, rows=_AT_ONCE)[: len(raw), 0]

    return log_f
