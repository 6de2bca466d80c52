"""Do signed scores tell the direction of effects? A mean head beside a run's variance prior, and its test.

Model: beta_j ~ N(mu_j, f_j), mu_j = sum_q s_jq w_q, so that a block's whitened z-scores are y ~ N(sqrt(N) G mu, B),
B = noise I + N G diag(f) G', f the run's prior. w is fitted by generalised least squares in that likelihood, or with
many columns under w ~ N(0, tau2 I), tau2 at the maximum of its marginal likelihood.

Null: no direction, so that y_b and -y_b have the same law. Blocks' signs are flipped at random. That holds whatever the
distribution of effects, and also where f was learned from the very same z-scores: the likelihood that trained it, early
stopping, the noise and the LD mismatch tests see y_b only through squares, so that flipped data give the same f.

The null is of no direction at all, and the coding of alleles is one: if minor, or derived, alleles lower the trait on
average, any score that tracks minor or derived status rejects it and need know nothing else. The option `control_maf`
gives scores the minor allele; see `deepwas.direction_control`.

Source of the idea of flipping signs by block: Reshef et al. 2018 (signed LD profile regression), who condition on
columns of the minor allele in bins of its frequency.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas import __version__
from deepwas.annotations.signed import SignedScores, read_signed_scores
from deepwas.direction_control import given_control, minor_allele_columns
from deepwas.direction_null import FlipTest, Head, Weights, flip_test
from deepwas.direction_scores import ScaledScores
from deepwas.errors import InputError
from deepwas.files import write_json, write_text
from deepwas.ld import LDStore, open_ld
from deepwas.runs import Fit, load_fit
from deepwas.specs import validate_json, validate_table

if TYPE_CHECKING:
    from deepwas.direction_blocks import BlockSums, Prior

__all__ = ["Direction", "DirectionOptions", "test_direction"]

PathLike = str | os.PathLike[str]
Progress = Callable[[str, int, int], None]
Array = NDArray[np.float64]

RECORD, COLUMNS, BLOCKS, PICTURE = "direction.json", "direction_columns.tsv", "direction_blocks.tsv", "direction.png"
_FEW_COLUMNS = 10
_WINDOWS_TOGETHER = 10
_FEW_GROUPS = 8
_JACKKNIFE_GROUPS = 100


@dataclass(frozen=True)
class DirectionOptions:
    """How the test is made; every field checks itself.

    permutations: flips of sign.  seed: of the flips.
    cross_fitted: take the cross-fitted prior; None takes it if there is one.
    per_allele: a score is of an allele, and so is multiplied by sqrt(2q(1 - q)), q the allele frequency in the LD
        panel, to speak of a standardised genotype; False takes it as it is.
    ridge: 'yes' gives the weights a normal prior, 'no' weighs by least squares, 'auto' gives the prior to more than 10
        columns.
    control_maf: test what scores tell beyond the direction of minor alleles, which may differ between bins of their
        frequency; see `deepwas.direction_control`.
    flip_together: blocks that keep their sign together; None means 1, or 10 windows where these overlap, whose
        neighbours share causal variants.
    """

    permutations: int = 10_000
    seed: int = 0
    cross_fitted: bool | None = None
    per_allele: bool = True
    ridge: Literal["auto", "yes", "no"] = "auto"
    control_maf: bool = False
    flip_together: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("permutations", 19), ("seed", 0)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)!r}: give a whole number, {least} or more.")
        if self.ridge not in ("auto", "yes", "no"):
            raise InputError(f"ridge={self.ridge!r}: give auto, yes or no.")
        if self.flip_together is not None and self.flip_together < 1:
            raise InputError(f"flip_together={self.flip_together!r}: give 1 or more blocks, or None.")


@dataclass(frozen=True, repr=False)
class Direction:
    """What was found.

    record: the content of direction.json.  columns: one row a score, see data_specs/direction_columns.schema.json.
    blocks: one row a block or run of blocks, a cell: CELL, its FIRST and LAST block by the store's numbering, SECTION,
        GAIN, its held-out gain in nats; see data_specs/direction_blocks.schema.json.
    null: (permutations,) the statistic under flips of sign.
    weights: (p,) of the mean head, for scores as they were read and, with per_allele, multiplied by sqrt(2q(1 - q)).
    """

    record: dict[str, Any]
    columns: pl.DataFrame
    blocks: pl.DataFrame
    null: Array
    weights: Array

    def __repr__(self) -> str:
        return f"Direction(p = {self.p:.3g}, {self.columns.height:,} signed scores)"

    @property
    def p(self) -> float:
        """Of all columns together."""
        return float(self.record["test"]["p"])

    def verdict(self) -> list[str]:
        """The result in plain words, a sentence or two each."""
        r, test, gain, share = self.record, self.record["test"], self.record["gain"], self.record["share"]
        carried = test["p"] < 0.05
        given = " beyond that of minor alleles" if r["options"].get("control_maf") else ""
        first = (
            f"{'The signed scores tell direction' if carried else 'No sign that the scores tell direction'}{given}: "
            f"p = {test['p']:.3g} ({test['permutations']:,} flips of sign of {test['groups']:,} "
            f"{'blocks' if test['blocks_together'] == 1 else 'runs of blocks'}, smallest possible p "
            f"{test['smallest_p']:.2g})."
        )
        lines = [first]
        best = self.columns.sort("P_ADJUSTED", pl.col("Z").abs(), descending=[False, True]).row(0, named=True)
        if r["columns"] > 1:
            found = int((self.columns["P_ADJUSTED"] < 0.05).sum())
            lines.append(
                f"{found:,} of {r['columns']:,} scores tell it alone (adjusted p < 0.05); first {best['NAME']}: "
                f"z = {best['Z']:.2f}, adjusted p = {best['P_ADJUSTED']:.3g}."
            )
        error = gain["standard_error"]
        better = gain["held_out"] > 2 * error
        worse = gain["held_out"] < -2 * error
        said = "gains" if better else "loses" if worse else "neither clearly gains nor loses:"
        lines.append(
            f"On held-out sections the mean head {said} {gain['held_out']:.2f} nats (standard error {error:.2f}) over "
            f"the variance-only prior{'' if better else ', which is the one to use'}."
        )
        if share["standard_error"] is None:
            lines.append("Directional share of the effect variance: most likely 0.")
        else:
            low, high = (share["value"] + sign * 1.96 * share["standard_error"] for sign in (-1, 1))
            text = f"{share['value']:.2%} (95% interval {low:.2%} to {high:.2%})"
            lines.append(f"Directional share of the effect variance: {text}.")
        return lines

    def write(self, folder: PathLike) -> None:
        """Write direction_columns.tsv, direction_blocks.tsv, direction.png and, last, direction.json into a folder."""
        from deepwas.direction_plot import plot_direction

        target = Path(folder)
        target.mkdir(exist_ok=True)
        validate_json(self.record, "direction", str(target / RECORD))
        validate_table(self.columns, "direction_columns", str(target / COLUMNS))
        validate_table(self.blocks, "direction_blocks", str(target / BLOCKS))
        (target / RECORD).unlink(missing_ok=True)  # a folder with a record is complete
        for frame, name in ((self.columns, COLUMNS), (self.blocks, BLOCKS)):
            rounded = frame.with_columns(pl.col(pl.Float64).round_sig_figs(6))
            write_text(target / name, rounded.write_csv(separator="\t", null_value="NA"))
        plot_direction(self, target / PICTURE)
        write_json(target / RECORD, self.record)


def test_direction(
    fit: Fit | PathLike,
    ld: LDStore | PathLike,
    scores: SignedScores | PathLike,
    *,
    options: DirectionOptions | None = None,  # noqa: PT028
    progress: Progress | None = None,  # noqa: PT028
) -> Direction:
    """Test whether signed scores tell the direction of effects, and weigh them beside a run's variance prior.

    fit: a finished run or its folder.  ld: the LD store it was made with.  scores: what `read_scores` returned as
    `signed`, or its file. A missing score is 0: no direction is predicted.

    The test's statistic T is u'A^-1 u, or with a normal prior on the weights twice the largest marginal gain; its p
    comes from flips of sign by block, exact for blocks without flanks. Columns have their own p, and one adjusted for
    the largest of all. The held-out gain compares, on each section of the run, the likelihood with w fitted on the
    other sections, but for windows that share variants with it, and without a mean. The directional share is sum_j
    mu_j^2 / sum_j f_j over the variants modelled, less what error in w adds (with a prior on w: its posterior mean),
    with a block jackknife.

    Cost: once O(k^2 m + k m p + k p^2) a block, in float64; memory one block, the scores, and up to 1 GB of sums.
    Raises InputError if run, LD store and scores do not belong together.
    """
    from deepwas.direction_blocks import prior_of, sum_blocks
    from deepwas.training.trait import open_trait

    options = options or DirectionOptions()
    report = progress or (lambda *_: None)
    run = fit if isinstance(fit, Fit) else load_fit(fit)
    store = ld if isinstance(ld, LDStore) else open_ld(ld)
    signed = scores if isinstance(scores, SignedScores) else read_signed_scores(scores, store.variants)
    if signed.variants.height != store.n_variants or not signed.variants["SNP"].equals(store.variants["SNP"]):
        raise InputError(f"the signed scores are not those of the variants of {store.path}. Read them for this store.")
    cross = run.cross_fitted if options.cross_fitted is None else options.cross_fitted
    if cross and not run.cross_fitted:
        raise InputError("this run was not cross-fitted. Ask for the plain prior, or fit with cross-fitting.")
    prior = prior_of(run, store, cross)
    control = minor_allele_columns(store.variants["FREQ"].cast(pl.Float64).to_numpy()) if options.control_maf else None
    scaled = ScaledScores.of(signed, store, prior, options.per_allele, control)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="deepwas-")))
        blocks = open_trait(
            store,
            prior.frame,
            cache=folder / "whitened.h5",
            progress=lambda done, total: report("whitening LD blocks", done, total),
        )
        sums = sum_blocks(
            stack.enter_context(blocks),
            scaled.rows,
            prior,
            len(scaled.names) + scaled.controls,
            progress=lambda done, total: report("weighing blocks", done, total),
        )
    if control is not None:
        sums, scaled = given_control(sums, scaled)
    report("flipping signs", 0, 1)
    found = _judge(run, store, signed, prior, scaled, sums, cross, options)
    report("flipping signs", 1, 1)
    return found


def _judge(
    run: Fit,
    store: LDStore,
    signed: SignedScores,
    prior: Prior,
    scaled: ScaledScores,
    sums: BlockSums,
    cross: bool,
    options: DirectionOptions,
) -> Direction:
    p = len(scaled.names)
    ridge = options.ridge == "yes" or (options.ridge == "auto" and p > _FEW_COLUMNS)
    A, u = sums.A.sum(axis=0), sums.u.sum(axis=0)
    head = Head.of(A, ridge)
    together = options.flip_together or (_WINDOWS_TOGETHER if store.flanked else 1)
    group = _groups(store, sums.number, together)
    terms = np.zeros((int(group[-1]) + 1, p))
    np.add.at(terms, group, sums.u)
    if len(terms) < _FEW_GROUPS:
        raise InputError(
            f"{len(terms)} runs of {together} LD block(s) can change sign, which gives no p below "
            f"{2.0 ** (1 - len(terms)):.2g}. At least {_FEW_GROUPS} are needed: more of the genome, or smaller blocks."
        )
    test = flip_test(terms, head, permutations=options.permutations, rng=np.random.default_rng(options.seed))
    weights = head.fit(u)
    candidates = np.array([(rows.start, rows.stop) for rows in map(store.block_slice, sums.number.tolist())])
    gains = _held_out(sums, candidates, ridge)
    total_f = float(prior.f[prior.scored].sum())
    share, share_error = _share(head, weights, sums, scaled.squares / total_f)
    error = float(np.sqrt(len(gains)) * np.std(gains, ddof=1))
    record = {
        "format": "deepwas-direction",
        "format_version": 1,
        "deepwas_version": __version__,
        "options": asdict(options),
        "inputs": {
            "run": None if run.folder is None else run.folder.name,
            "ld": run.record["inputs"]["ld"],
            "sumstats": {k: run.record["inputs"]["sumstats"][k] for k in ("file", "sha256")},
            "scores": signed.files,
        },
        "prior": {"network": run.record["options"]["network"], "cross_fitted": cross, "h2": total_f},
        "columns": p,
        "variants": int(prior.scored.sum()),
        "blocks": len(sums.number),
        "test": {
            "statistic": "marginal likelihood" if ridge else "least squares",
            "observed": test.observed,
            "p": test.p,
            "permutations": options.permutations,
            "groups": len(terms),
            "blocks_together": together,
            "smallest_p": max(1 / (1 + options.permutations), 2.0 ** (1 - len(terms))),
            "exact": not store.flanked and not options.control_maf,
        },
        "weights": {"tau2": weights.tau2 if ridge else None, "rank": len(head.values)},
        "gain": {
            "fitted": test.observed / 2,
            "held_out": float(gains.sum()),
            "standard_error": error,
            "cells": len(gains),
        },
        "share": {"value": share, "standard_error": share_error},
        "counts": [*signed.tally.as_list(), *scaled.tally.as_list()],
    }
    return Direction(
        record, _columns(scaled, head, test, weights, A, u), _cells(sums, gains), test.null, weights.w / scaled.scale
    )


def _groups(store: LDStore, numbers: NDArray[np.int64], together: int) -> NDArray[np.int64]:
    """Which blocks keep their sign together: runs of `together`, within a chromosome."""
    chromosome = store.variants["CHR"]
    out, run, last = np.zeros(len(numbers), dtype=np.int64), 0, ""
    for i, number in enumerate(numbers.tolist()):
        own = str(chromosome[store.scored_slice(number).start])
        if i and (own != last or run == together):
            out[i], run = out[i - 1] + 1, 0
        elif i:
            out[i] = out[i - 1]
        run, last = run + 1, own
    return out


def _held_out(sums: BlockSums, candidates: NDArray[np.int64], ridge: bool) -> Array:
    """(cells,), log-likelihood of each cell with w fitted on the other sections, over that without a mean, in nats.

    candidates: (blocks, 2), first row of the store and the one past the last. Cells with a window that shares any with
    the section tested, and so its causal effects, are left out of the fit.
    """
    u = sums.by_cell()
    out = np.zeros(len(u))
    low, high = candidates.T
    for section in np.unique(sums.cell_section):
        here = sums.cell_section == section
        starts, stops = (np.sort(x[here[sums.cell]]) for x in (low, high))
        shares = np.searchsorted(starts, high, "left") > np.searchsorted(stops, low, "right")
        fitted = np.ones(len(here), dtype=bool)
        fitted[sums.cell[shares]] = False
        if not fitted.any():
            raise InputError(
                f"every LD window shares variants with those of section {section}, so none is left to fit weights on "
                "that are tested there. Fit with fewer folds, shorter windows or more of the genome."
            )
        w = Head.of(sums.A[fitted].sum(axis=0), ridge).fit(u[fitted].sum(axis=0)).w
        out[here] = u[here] @ w - 0.5 * np.einsum("i,cij,j->c", w, sums.A[here], w)
    return out


def _share(head: Head, weights: Weights, sums: BlockSums, squares: Array) -> tuple[float, float | None]:
    """sum_j mu_j^2 over the prior's sum, and its jackknife error over runs of cells; none where tau2 is 0."""

    def of(A: Array, u: Array) -> float:
        found = Head.of(A, head.ridge).fit(u)
        noise = float(np.sum(squares * found.covariance))
        return float(found.w @ squares @ found.w) + (noise if head.ridge else -noise)

    A, u = sums.A.sum(axis=0), sums.by_cell()
    if weights.tau2 == 0:
        return 0.0, None
    count = min(len(u), _JACKKNIFE_GROUPS)
    group = np.arange(len(u)) * count // len(u)
    left_out = np.array([of(A - sums.A[group == g].sum(axis=0), u[group != g].sum(axis=0)) for g in range(count)])
    error = np.sqrt((count - 1) / count * np.sum((left_out - left_out.mean()) ** 2))
    return of(A, u.sum(axis=0)), float(error)


def _columns(scaled: ScaledScores, head: Head, test: FlipTest, weights: Weights, A: Array, u: Array) -> pl.DataFrame:
    own = np.maximum(np.diagonal(A), 1e-300)
    return pl.DataFrame(
        {
            "NAME": list(scaled.names),
            "Z": test.z,
            "P": test.column_p,
            "P_ADJUSTED": test.column_p_adjusted,
            "EFFECT": u / own,
            "EFFECT_SE": 1 / np.sqrt(own),
            "WEIGHT": weights.w,
            "WEIGHT_SE": np.sqrt(np.maximum(np.diagonal(weights.covariance), 0.0)),
            "SCALE": scaled.scale,
        }
    )


def _cells(sums: BlockSums, gains: Array) -> pl.DataFrame:
    first = np.searchsorted(sums.cell, np.arange(len(gains)))
    last = np.append(first[1:], len(sums.cell)) - 1
    return pl.DataFrame(
        {
            "CELL": np.arange(len(gains)),
            "FIRST": sums.number[first],
            "LAST": sums.number[last],
            "SECTION": sums.cell_section,
            "GAIN": gains,
        }
    )
