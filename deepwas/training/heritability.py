"""SNP heritability of a prior, its block-jackknife standard error, and its sensitivity to the eigenvalues kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepwas.training.baseline import Spectrum, fit_scale, jackknife_scale, spectrum
from deepwas.training.trait import TraitBlock, open_trait

if TYPE_CHECKING:
    import polars as pl

    from deepwas.ld import LDStore

__all__ = ["constant_spectra", "heritability", "scale_heritability", "truncation_sensitivity"]

SHARES = (1.0, 0.9, 0.75)


def constant_spectra(blocks: Sequence[TraitBlock]) -> list[Spectrum]:
    """Spectra under an effect variance of 1 for every variant: the scale is then f itself. No factor is loaded."""
    return [Spectrum(b.sample_size * b.row_squares, b.whitened.astype(np.float64) ** 2) for b in blocks]


def scale_heritability(spectra: Sequence[Spectrum], variants: int, start: float, noise: float | None) -> dict[str, Any]:
    """Heritability of the constant prior at maximum likelihood, with its jackknife standard error.

    variants: how many the effect variance applies to.  start: effect variance to begin at.
    """
    found = fit_scale(spectra, noise=noise, start=(float(np.log(start)), 1.0 if noise is None else noise))
    error, _ = jackknife_scale(spectra, found, noise=noise)
    h2 = float(np.exp(found.log_scale)) * variants
    return {
        "h2": h2,
        "standard_error": error * variants,
        "noise": found.noise,
        "noise_learned": noise is None,
        "effect_variance": h2 / variants,
        "log_likelihood": found.log_likelihood,
        "no_signal": found.no_signal,
        "standard_error_of": f"jackknife of the constant prior over {len(spectra)} LD blocks, scale"
        + (" and noise refitted" if noise is None else " refitted"),
    }


def heritability(
    blocks: Sequence[TraitBlock], f: Sequence[NDArray[Any]], noise: float, learned: bool
) -> dict[str, Any]:
    """Heritability sum_j f_j of a given prior, with the jackknife standard error of its scale, its shape held.

    f: (m,) per block, of all its candidates; the sum is over the variants that it scores.  noise: the fitted sigma2.
    learned: whether the jackknife refits it.
    `scale` is the maximum-likelihood factor on the whole prior: near 1 when the prior's level fits the data.
    """
    spectra = [spectrum(b.factor, b.whitened, b.sample_size * v) for b, v in zip(blocks, f, strict=True)]
    fixed = None if learned else noise
    found = fit_scale(spectra, noise=fixed, start=(0.0, noise))
    error, _ = jackknife_scale(spectra, found, noise=fixed)
    h2 = float(sum(np.sum(v[b.scored], dtype=np.float64) for b, v in zip(blocks, f, strict=True)))
    return {
        "h2": h2,
        "standard_error": error * h2,
        "noise": noise,
        "noise_learned": learned,
        "scale": float(np.exp(found.log_scale)),
        "standard_error_of": f"jackknife of this prior's scale over {len(spectra)} LD blocks, its shape held, scale"
        + (" and noise refitted" if learned else " refitted"),
    }


def truncation_sensitivity(
    store: LDStore,
    frame: pl.DataFrame,
    *,
    start: float,
    shares: Sequence[float] = SHARES,
    whitened: Sequence[TraitBlock] | None = None,
    cache: Path | None = None,
) -> list[dict[str, Any]]:
    """Heritability of the constant prior by how many of the store's eigenvalues are used, noise learned and held at 1.

    shares: of the variance that the store keeps.  frame: harmonised z-scores.  start: effect variance to begin at.
    whitened: the blocks at share 1, if they are at hand.  cache: the file of `open_trait`; small ones for the other
    shares are put beside it, so that a resumed fit does not whiten again.
    One row a share: eigenvalues used in all, and h2, standard error and noise under both treatments of the noise. With
    a small panel that is not the GWAS sample these figures differ by far more than their standard errors, which is why
    they are reported together.
    """
    rows = []
    for share in shares:
        with ExitStack() as stack:
            if share == 1 and whitened is not None:
                blocks = whitened
            else:
                beside = None if cache is None else cache.with_name(f"{cache.stem}_{share:g}{cache.suffix}")
                blocks = stack.enter_context(
                    open_trait(store, frame, cache=beside, variance_share=share, keep_factors=False)
                )
            spectra = constant_spectra(blocks)
            variants = sum(b.scored.stop - b.scored.start for b in blocks)
        learned = scale_heritability(spectra, variants, start, None)
        held = scale_heritability(spectra, variants, start, 1.0)
        rows.append(
            {
                "share": share,
                "eigenvalues": sum(len(s.signal) for s in spectra),
                "h2_noise_learned": learned["h2"],
                "standard_error_noise_learned": learned["standard_error"],
                "noise": learned["noise"],
                "h2_noise_1": held["h2"],
                "standard_error_noise_1": held["standard_error"],
            }
        )
    return rows
