"""Enrichment of heritability in annotations, with block-jackknife standard errors: by full likelihood of z-scores.

The peer of stratified LD score regression (S-LDSC; Finucane et al. 2015, Gazal et al. 2017) and of graphREML (Li et al.
2024): an additive prior over all annotations at once, and for each annotation its share of the heritability over its
share of the variants.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from deepwas.annotations import Annotations, Standardiser
from deepwas.enrichment_reml import (
    SHIFT,
    Maximum,
    SoftplusLikelihood,
    at_bound,
    in_one_group,
    leave_out,
    maximise,
    pieces,
    softplus,
)
from deepwas.enrichment_table import Enrichment, Estimate, ratios
from deepwas.errors import DataWarning, DeepwasError, InputError
from deepwas.tally import Tally
from deepwas.training.baseline import fit_scale

if TYPE_CHECKING:
    from deepwas.ld import LDStore
    from deepwas.sumstats import HarmonisedSumstats, QCOptions, SumStats
    from deepwas.training.trait import TraitBlock

__all__ = ["Enrichment", "Estimate", "enrichment_of_blocks", "enrichment_of_prior", "estimate_enrichment"]

Floats = NDArray[np.float64]
Jackknife = Literal["one-step", "refit"]
Progress = Callable[[str, int, int], None]
PathLike = str | os.PathLike[str]

GROUPS = 200


def estimate_enrichment(
    ld: LDStore | PathLike,
    sumstats: HarmonisedSumstats | SumStats | PathLike,
    annotations: Annotations | PathLike | Sequence[PathLike],
    *,
    noise: float | None = None,
    jackknife: Jackknife = "one-step",
    groups: int = GROUPS,
    qc: QCOptions | None = None,
    progress: Progress | None = None,
) -> Enrichment:
    """Heritability of each annotation, its enrichment, and their standard errors, by full likelihood.

    Model: z ~ N(0, N R diag(f) R + sigma2 R), f_j = base softplus(s + b + x_j . w), softplus(s) = 1, with base the
    effect variance of the constant prior, where the search begins. All of b, w and sigma2 maximise the likelihood of
    all LD blocks; see `deepwas.enrichment_reml`. Memory is set by the largest block, time by k^2 m a block and pass,
    of which there are some ten.

    ld: an LD store or its path.
    sumstats: a GWAS file, or what `read_sumstats` or `harmonise` returned, or a Parquet file of harmonised z-scores.
    annotations: one or more files that `read_annotations` understands, or `Annotations`; as they are, 0/1 or numbers.
        Missing values become the mean, and are counted.
    noise: sigma2 to hold, or None to learn it.
    jackknife: 'one-step' estimates without each group of blocks (graphREML's; no further pass), or 'refit', exact, at
        the price of a few passes a group.
    groups: at most as many groups of neighbouring blocks are left out in turn; at least 3.
    qc: quality control when `sumstats` is not harmonised yet.  progress: called as progress(what, done, total).

    Raises InputError for annotations that repeat each other, and DeepwasError if the search does not converge. Sums
    are over the variants that the blocks score, with and without a z-score of their own.
    """
    from deepwas.fit_inputs import annotated, harmonised
    from deepwas.ld import LDStore, open_ld
    from deepwas.training.trait import open_trait

    _check(noise, jackknife, groups)
    store = ld if isinstance(ld, LDStore) else open_ld(ld)
    trait = harmonised(sumstats, store, qc)
    features = annotated(annotations, store)
    if features is None:
        raise InputError("enrichment needs annotations. Give --annotations.")
    tally = Tally()
    tally.extend(trait.tally)
    tally.extend(features.tally)
    say = progress or (lambda *_: None)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="deepwas-")))
        blocks = stack.enter_context(
            open_trait(
                store,
                trait.frame,
                cache=folder / "whitened.h5",
                progress=lambda done, total: say("whitening LD blocks", done, total),
            )
        )
        tally.extend(blocks.dropped)
        found = enrichment_of_blocks(
            blocks, features.values, features.names, noise=noise, jackknife=jackknife, groups=groups, progress=say
        )
    tally.extend(found.tally)
    found.tally.rows[:] = tally.rows
    found.model["inputs"] = {
        "ld": {"file": store.path.name, "checksum": store.checksum},
        "sumstats": {"file": trait.source, "sha256": trait.source_sha256},
        "annotations": [{"name": Path(name).name, "sha256": checksum} for name, checksum in features.files.items()],
    }
    return found


def enrichment_of_blocks(
    blocks: Sequence[TraitBlock],
    values: NDArray[np.float32],
    names: Sequence[str],
    *,
    noise: float | None = None,
    jackknife: Jackknife = "one-step",
    groups: int = GROUPS,
    progress: Progress | None = None,
) -> Enrichment:
    """`estimate_enrichment` of one trait's whitened blocks.

    blocks: see `deepwas.training.trait`.  values: (M, p) annotations of the store's variants, raw, NaN where missing.
    """
    _check(noise, jackknife, groups)
    if len(blocks) < 3:
        raise InputError(f"a block jackknife needs at least 3 LD blocks; there are {len(blocks)}.")
    say = progress or (lambda *_: None)
    tally = Tally()
    scored = np.concatenate([np.arange(b.scored_rows.start, b.scored_rows.stop) for b in blocks])
    standardiser = Standardiser.fit(values, scored, names=names, missing="mean", clip=None)
    if standardiser.constant:
        raise InputError(
            f"annotation {', '.join(standardiser.constant)} has one value for all {len(scored):,} variants of the LD "
            "blocks: it has no enrichment. Leave it out."
        )
    features = standardiser.transform(values, tally=tally)
    _refuse_repeats(features, scored, names)

    from deepwas.training.heritability import constant_spectra

    spectra = constant_spectra(blocks)
    start = _moments(spectra)
    constant = fit_scale(spectra, noise=noise, start=(float(np.log(start)), 1.0 if noise is None else noise))
    if constant.no_signal:
        raise DeepwasError(
            "the z-scores hold no heritability by the constant prior, so there is none to divide between annotations. "
            "Is N right?"
        )
    count = min(groups, len(blocks))
    group = np.arange(len(blocks)) * count // len(blocks)
    model = SoftplusLikelihood(blocks, features, float(np.exp(constant.log_scale)), group, noise)
    theta = np.zeros(model.n_parameters)
    if noise is None:
        theta[-1] = np.log(constant.noise)

    def advance(done: int, total: int) -> None:
        # How many passes there will be is not known; ten are usual.
        least = 10
        while least <= model.passes:
            least *= 2
        say("maximising the likelihood", model.passes * total + done, least * total)

    model.progress = advance
    found = maximise(model, theta)
    model.progress = None
    left_out, far = _replicates(model, found, jackknife, say)
    binary = _binary(values[scored])
    bound = binary & at_bound(found, standardiser.means, standardiser.scales)
    one_group = in_one_group(found, len(names)) & ~bound
    _warn(found, far, bound, one_group, names)
    return _summarised(model, found, left_out, standardiser, scored, tally, jackknife, (binary, bound, one_group))


def enrichment_of_prior(
    f: Floats, block: NDArray[np.int64], annotations: NDArray[np.float32], names: Sequence[str], *, groups: int = GROUPS
) -> Enrichment:
    """Enrichment of a prior that is given, such as that of a trained network, with a jackknife of the ratios alone.

    f: (M,), effect variances.  block: (M,), the LD block of each variant, ascending.  annotations: (M, p), raw; missing
    values become the mean.
    The prior is held fixed: the standard errors tell how the ratios vary along the genome, not how sure the network is.
    """
    _check(None, "one-step", groups)
    numbers, own = np.unique(block, return_inverse=True)
    if len(numbers) < 3:
        raise InputError(f"a block jackknife needs at least 3 LD blocks; there are {len(numbers)}.")
    count = min(groups, len(numbers))
    group = own * count // len(numbers)
    tally = Tally()
    x = _imputed(annotations, names, tally)
    present, weighted = np.zeros((2, count, len(names)))
    total, variants = np.bincount(group, f, count), np.bincount(group, minlength=count)
    for j in range(len(names)):
        present[:, j] = np.bincount(group, x[:, j], count)
        weighted[:, j] = np.bincount(group, x[:, j] * f, count)

    scale = x.std(axis=0)

    def quantities(h2: Any, h2_of: Any, inside: Any, size: Any) -> dict[str, Any]:
        return ratios(h2, h2_of, inside / size, scale, size)

    whole = quantities(total.sum(), weighted.sum(axis=0), present.sum(axis=0), len(f))
    parts = [
        quantities(
            total.sum() - total[g],
            weighted.sum(axis=0) - weighted[g],
            present.sum(axis=0) - present[g],
            len(f) - variants[g],
        )
        for g in range(count)
    ]
    made = {name: Estimate(whole[name], np.array([part[name] for part in parts])) for name in whole}
    return Enrichment(
        names=tuple(names),
        binary=_binary(annotations),
        bound=np.zeros(len(names), bool),
        one_group=np.zeros(len(names), bool),
        prop=present.sum(axis=0) / len(f),
        scale=scale,
        n_variants=len(f),
        n_blocks=len(numbers),
        h2=Estimate(total.sum(), total.sum() - total),
        coefficient=None,
        noise=None,
        model={"prior": "given, held fixed", "standard_errors": "jackknife of the ratios over LD blocks, prior held"},
        tally=tally,
        **made,
    )


def _check(noise: float | None, jackknife: str, groups: int) -> None:
    if noise is not None and not 0 < noise < float("inf"):
        raise InputError(f"noise is {noise}; it must be positive and finite, or None to learn it.")
    if jackknife not in get_args(Jackknife):
        raise InputError(f"jackknife is {jackknife!r}; give one of {', '.join(get_args(Jackknife))}.")
    if groups < 3:
        raise InputError(f"groups is {groups}; a jackknife needs at least 3.")


def _refuse_repeats(features: NDArray[np.float32], scored: NDArray[np.int64], names: Sequence[str]) -> None:
    """InputError for annotations that are linear combinations of the others and a constant."""
    p = features.shape[1]
    gram = np.zeros((p, p))
    for rows in pieces(len(scored)):
        some = features[scored[rows]].astype(np.float64)
        gram += some.T @ some / len(scored)
    values, vectors = np.linalg.eigh(gram)
    if values[0] < 1e-6:
        together = [names[int(j)] for j in np.flatnonzero(np.abs(vectors[:, 0]) > 1e-3)]
        raise InputError(
            f"annotations {', '.join(together[:20])} add up to a constant, or repeat one another, on the variants of "
            "the LD blocks: their coefficients are not determined. Leave one of them out."
        )


def _moments(spectra: Sequence[Any]) -> float:
    """Effect variance by the mean of y_i^2 = f signal_i + 1, or a tenth of the noise where there is no excess."""
    squares, signal = (np.concatenate([getattr(s, name) for s in spectra]) for name in ("squares", "signal"))
    return max(float(squares.mean()) - 1, 0.1) / float(signal.mean())


def _replicates(model: SoftplusLikelihood, found: Maximum, jackknife: Jackknife, say: Progress) -> tuple[Floats, int]:
    """theta without each group, (n_groups, P), and how many one-step estimates are far away."""
    first, far = leave_out(model, found)
    if jackknife == "one-step":
        return first, far
    refitted = np.empty_like(first)
    for g in range(len(first)):
        say("refitting without each group of blocks", g, len(first))
        refitted[g] = maximise(model, first[g], without=g).theta
    say("refitting without each group of blocks", len(first), len(first))
    return refitted, 0


def _warn(
    found: Maximum, far: int, bound: NDArray[np.bool_], one_group: NDArray[np.bool_], names: Sequence[str]
) -> None:
    """Say where the likelihood is flat: standard errors are not to be trusted there."""
    if bound.any():
        few = [name for name, own in zip(names, bound, strict=True) if own]
        warnings.warn(
            f"annotation {', '.join(few[:20])}: an effect variance of 0 fits as well as any near it, or too few "
            "variants say otherwise. The estimate has come to its bound, and has no standard error.",
            DataWarning,
            stacklevel=3,
        )
    if one_group.any():
        few = [name for name, own in zip(names, one_group, strict=True) if own]
        warnings.warn(
            f"annotation {', '.join(few[:20])}: one of the {len(found.terms.value)} groups of LD blocks holds more "
            "than 80% of the information, so a jackknife cannot tell the error: none is given, and no p-value. Leave "
            "the annotation out, or join it to others like it; if there are more blocks than groups, raise --groups.",
            DataWarning,
            stacklevel=3,
        )
    if far:
        warnings.warn(
            f"{far} of {len(found.terms.value)} one-step estimates without a group of LD blocks lie far from the "
            "estimate, more than e^3-fold at some variant: their standard errors are a guess. There is too little data "
            "for so many annotations, or one of them has nearly no heritability. Leave annotations out, or take "
            "--jackknife refit (jackknife='refit').",
            DataWarning,
            stacklevel=3,
        )


def _summarised(
    model: SoftplusLikelihood,
    found: Maximum,
    left_out: Floats,
    standardiser: Standardiser,
    scored: NDArray[np.int64],
    tally: Tally,
    jackknife: Jackknife,
    masks: tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]],
) -> Enrichment:
    """Sums over the scored variants, at the estimate and at each leave-one-out estimate.

    masks: binary, bound and one_group of `Enrichment`.
    """
    theta = np.vstack([found.theta, left_out]).T  # (P, 1 + n_groups)
    p, n = len(standardiser.names), theta.shape[1]
    total, slope, of, x_sum = np.zeros(n), np.zeros(n), np.zeros((p, n)), np.zeros(p)
    for rows in pieces(len(scored), 4096):
        here = scored[rows]
        z = model.features[here].astype(np.float64)
        x = standardiser.means + z * standardiser.scales
        u = SHIFT + theta[0] + z @ theta[1 : 1 + p]
        f = model.base * softplus(u)
        total += f.sum(axis=0)
        of += x.T @ f
        x_sum += x.sum(axis=0)
        slope += model.base * np.exp(u - softplus(u)).sum(axis=0)
    made = {
        name: Estimate(both[..., 0], np.moveaxis(both[..., 1:], -1, 0))
        for name, both in ratios(
            total, of, (x_sum / len(scored))[:, None], standardiser.scales[:, None], len(scored)
        ).items()
    }
    tau = slope / len(scored) * theta[1 : 1 + p] / standardiser.scales[:, None]
    learned = model.noise is None
    noise = np.exp(theta[-1]) if learned else np.full(n, model.noise)
    description = {
        "prior": "softplus-linear: f = base softplus(s + intercept + x . weights), softplus(s) = 1",
        "base": model.base,
        "intercept": float(theta[0, 0] - np.sum(theta[1 : 1 + p, 0] * standardiser.means / standardiser.scales)),
        "weights": dict(zip(standardiser.names, (theta[1 : 1 + p, 0] / standardiser.scales).tolist(), strict=True)),
        "noise_learned": learned,
        "log_likelihood": found.history[-1],
        "log_likelihood_constant": found.history[0],
        "steps": len(found.history) - 1,
        "passes": model.passes,
        "distance_to_maximum": float(np.sqrt(max(found.decrement, 0.0))),
        "flat": found.flat,
        "standard_errors": f"block jackknife, {len(left_out)} groups of neighbouring LD blocks, "
        + ("one Newton step each" if jackknife == "one-step" else "refitted without each"),
    }
    return Enrichment(
        names=standardiser.names,
        binary=masks[0],
        bound=masks[1],
        one_group=masks[2],
        prop=x_sum / len(scored),
        scale=standardiser.scales,
        n_variants=len(scored),
        n_blocks=len(model.blocks),
        h2=Estimate(total[0], total[1:]),
        coefficient=Estimate(tau[:, 0], tau[:, 1:].T),
        noise=Estimate(noise[0], noise[1:]),
        model=description,
        tally=tally,
        **made,
    )


def _binary(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.array([bool(np.isin(column[~np.isnan(column)], (0, 1)).all()) for column in values.T], dtype=bool)


def _imputed(values: NDArray[np.float32], names: Sequence[str], tally: Tally) -> Floats:
    x = values.astype(np.float64)
    for j, name in enumerate(names):
        gone = np.isnan(x[:, j])
        if gone.all():
            raise InputError(f"annotation {name} is missing for all {len(x):,} variants. Leave it out.")
        x[gone, j] = x[~gone, j].mean()
        tally.add("enrichment", "changed", f"{name}: missing, set to the mean", int(gone.sum()))
    return x
