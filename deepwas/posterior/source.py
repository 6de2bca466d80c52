"""The prior and the z-scores that a posterior is made of: a finished run's, or a table of priors and a GWAS."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.direction_blocks import prior_of
from deepwas.errors import InputError
from deepwas.files import sha256
from deepwas.fit_inputs import _digest, harmonised
from deepwas.genome import normalise_chromosomes
from deepwas.posterior.options import PosteriorOptions
from deepwas.runs import Fit, load_fit
from deepwas.tables import numeric_column, read_delimited
from deepwas.tally import Tally
from deepwas.training.mismatch import BLOCKS_FILE
from deepwas.training.trait import blocks_with_scores

if TYPE_CHECKING:
    from deepwas.ld import LDStore
    from deepwas.sumstats import HarmonisedSumstats

__all__ = ["Source", "source_of"]

STEP = "posterior"
_KEYS = ("CHR", "BP", "A1", "A2")


@dataclass(frozen=True)
class Source:
    """What a posterior is made of, by row of the LD store.

    frame: VARIANT Z N, as `open_trait` takes it.  f: (M,) effect variance, 0 outside the blocks used.
    noise: sigma2 of each block used.  frequency: (M,) of A1 in the GWAS, NaN where it gives none.
    trait: what the trait is called.  record: of prior and z-scores, ready for JSON.  tally: what became of variants.
    mismatch: how the z-scores fit the LD, by block, as the run found it (see data_specs/mismatch.schema.json), or None.
    constant: effect variance and noise of the constant prior that a mismatch is judged by.
    """

    frame: pl.DataFrame
    f: NDArray[np.float64]
    noise: dict[int, float]
    frequency: NDArray[np.float64]
    trait: str
    record: dict[str, Any]
    tally: Tally
    mismatch: pl.DataFrame | None
    constant: tuple[float, float]

    def scores(self, rows: NDArray[Any]) -> pl.DataFrame:
        """Z and N of rows of the store, null where there is none."""
        own = self.frame.select(pl.col("VARIANT").cast(pl.Int64).alias("ROW"), "Z", "N")
        return pl.DataFrame({"ROW": rows}).join(own, on="ROW", how="left", maintain_order="left")


def source_of(prior: Any, store: LDStore, sumstats: Any, options: PosteriorOptions) -> Source:
    """Prior and z-scores for a store.

    prior: a `Fit` or its folder; or a table of priors, CHR BP A1 A2 SNPVAR, as a file or a DataFrame.
    sumstats: of a table the z-scores; of a run None, or its own z-scores again, for the GWAS's allele frequencies.
    """
    if isinstance(prior, Fit) or (isinstance(prior, str | os.PathLike) and Path(prior).is_dir()):
        return _of_run(prior if isinstance(prior, Fit) else load_fit(prior), store, sumstats, options)
    if sumstats is None:
        raise InputError("a table of priors needs z-scores. Give sumstats (--sumstats).")
    if options.cross_fitted is not None:
        raise InputError("a table of priors is what it is: cross_fitted (--plain) is for a run. Leave it out.")
    return _of_table(prior, store, harmonised(sumstats, store), options)


def _of_run(fit: Fit, store: LDStore, sumstats: Any, options: PosteriorOptions) -> Source:
    cross = fit.cross_fitted if options.cross_fitted is None else options.cross_fitted
    if cross and not fit.cross_fitted:
        raise InputError("this run was not cross-fitted. Ask for the plain prior, or fit with cross-fitting.")
    given = fit.record["inputs"]["sumstats"]
    found = prior_of(fit, store, cross)
    tally = Tally()
    for row in found.tally.rows:
        tally.add(STEP, row.action, row.reason, row.count, row.first)
    frequency = np.full(store.n_variants, np.nan)
    if sumstats is not None:
        trait = harmonised(sumstats, store)
        if _digest(*(trait.frame[c].to_numpy() for c in ("VARIANT", "Z", "N"))) != given["content"]:
            raise InputError(
                f"{trait.source}: not the z-scores of the run ({given['file']}). Give those, or leave them out: then "
                "allele frequencies are the LD panel's."
            )
        frequency = _frequency(trait, store)
    noise = found.noise if options.noise is None else dict.fromkeys(found.noise, options.noise)
    record = {
        "prior": {
            "kind": "run",
            "created": fit.record["created"],
            "deepwas_version": fit.record["deepwas_version"],
            "network": fit.record["options"]["network"],
            "cross_fitted": cross,
            "held_out_gain": fit.record["held_out"]["cross_fitted" if cross else "plain"]["gain"],
        },
        "sumstats": {key: given[key] for key in ("file", "sha256", "build")},
    }
    judged = fit.record["mismatch"]
    constant = (float(judged["effect_variance"]), float(judged["noise"]))
    return Source(found.frame, found.f, noise, frequency, given["file"], record, tally, _mismatch(fit), constant)


def _mismatch(fit: Fit) -> pl.DataFrame | None:
    """The table of the run's folder, if it has one."""
    path = None if fit.folder is None else fit.folder / BLOCKS_FILE
    if path is None or not path.is_file():
        return None
    frame = read_delimited(path, what="a run's table of mismatch")
    if not {"BLOCK", "FLAG", "NOISE"} <= set(frame.columns):
        raise InputError(f"{path}: columns BLOCK, FLAG and NOISE are needed; found {' '.join(frame.columns[:12])}.")
    return frame.select(
        numeric_column(frame, "BLOCK", str(path), integer=True).alias("BLOCK"),
        pl.col("FLAG").cast(pl.String),
        numeric_column(frame, "NOISE", str(path)).alias("NOISE"),
    )


def _of_table(prior: Any, store: LDStore, trait: HarmonisedSumstats, options: PosteriorOptions) -> Source:
    name, table, checksum = _read_table(prior)
    numbers, _ = blocks_with_scores(store, trait.frame)
    used = np.zeros(store.n_variants, dtype=bool)
    for number in numbers:
        used[store.block_slice(number)] = True
    tally = Tally()
    tally.extend(trait.tally)
    f = _matched(name, table, store, used, options, tally)
    level = 1.0 if options.noise is None else options.noise
    record = {
        "prior": {"kind": "table", "file": name, "sha256": checksum},
        "sumstats": {"file": trait.source, "sha256": trait.source_sha256, "build": trait.build},
    }
    frame = trait.frame.select("VARIANT", "Z", "N")
    noise = dict.fromkeys(numbers, level)
    constant = (float(f[np.concatenate([_scored(store, number) for number in numbers])].mean()), level)
    return Source(frame, f, noise, _frequency(trait, store), trait.source, record, tally, None, constant)


def _scored(store: LDStore, number: int) -> NDArray[np.int64]:
    rows = store.scored_slice(number)
    return np.arange(rows.start, rows.stop)


def _frequency(trait: HarmonisedSumstats, store: LDStore) -> NDArray[np.float64]:
    out = np.full(store.n_variants, np.nan)
    if "FRQ" in trait.frame.columns:
        out[trait.frame["VARIANT"].to_numpy()] = trait.frame["FRQ"].cast(pl.Float64).to_numpy()
    return out


def _read_table(prior: Any) -> tuple[str, pl.DataFrame, str | None]:
    """Name, CHR BP A1 A2 SNPVAR and checksum of a table of priors, checked."""
    if isinstance(prior, pl.DataFrame):
        name, frame, checksum = "the table of priors", prior, None
    elif isinstance(prior, str | os.PathLike):
        frame = read_delimited(prior, what="a table of priors")
        name, checksum = Path(prior).name, sha256(prior)
    else:
        raise InputError(f"the prior is a {type(prior).__name__}: give a run, or a table of priors.")
    where = name if checksum is None else str(prior)
    missing = [x for x in (*_KEYS, "SNPVAR") if x not in frame.columns]
    if missing:
        raise InputError(
            f"{where}: column {', '.join(missing)} is missing; found {' '.join(frame.columns[:12])}. A table of priors "
            "has CHR SNP BP A1 A2 SNPVAR, as `deepwas priors` writes it."
        )
    table = frame.select(
        normalise_chromosomes(frame["CHR"]).alias("CHR"),
        numeric_column(frame, "BP", where, integer=True).alias("BP"),
        pl.col("A1", "A2").cast(pl.String).str.to_uppercase(),
        numeric_column(frame, "SNPVAR", where).alias("SNPVAR"),
    )
    value = table["SNPVAR"]
    bad = value.is_null() | ~value.is_finite().fill_null(False) | (value < 0).fill_null(False)
    if bad.any():
        row = int(bad.arg_true()[0])
        found = "a missing value" if value[row] is None else value[row]
        raise InputError(
            f"{where}: column SNPVAR, row {row + 1}: {found} ({int(bad.sum()):,} such rows). An effect variance is "
            "finite and not negative: mend or remove these rows."
        )
    twice = table.select(pl.struct(_KEYS).is_duplicated()).to_series()
    if twice.any():
        row = int(twice.arg_true()[0])
        raise InputError(f"{where}: row {row + 1}: {' '.join(map(str, table.row(row)[:4]))} stands twice. Keep one.")
    return name, table, checksum


def _matched(
    name: str,
    table: pl.DataFrame,
    store: LDStore,
    used: NDArray[np.bool_],
    options: PosteriorOptions,
    tally: Tally,
) -> NDArray[np.float64]:
    """f by row of the store, by position and alleles in either order, which is all one to a variance."""
    variants = store.variants
    keys = variants.select("CHR", "BP", "A1", "A2")
    straight = keys.join(table, on=list(_KEYS), how="left", maintain_order="left")["SNPVAR"]
    turned_table = table.rename({"A1": "A2", "A2": "A1"})
    turned = keys.join(turned_table, on=list(_KEYS), how="left", maintain_order="left")["SNPVAR"]
    f = straight.fill_null(turned).cast(pl.Float64)
    known = f.is_not_null().to_numpy()
    names = variants["SNP"]

    def first(mask: NDArray[np.bool_]) -> str:
        return str(names[int(mask.argmax())]) if mask.any() else ""

    lacking = used & ~known
    if not (used & known).any():
        example = " ".join(map(str, table.row(0)[:4])) if table.height else "no row"
        raise InputError(
            f"{name}: none of its {table.height:,} variants is among the {int(used.sum()):,} of the LD blocks of "
            f"{store.path} by position and alleles. First of the table: {example}; of the store: "
            f"{' '.join(map(str, keys.row(int(used.argmax()))))}. Is the table of this LD store, and on "
            f"{store.genome_build}?"
        )
    if lacking.any() and options.missing_prior == "refuse":
        raise InputError(
            f"{name}: no prior for {int(lacking.sum()):,} of the {int(used.sum()):,} variants of the LD blocks (first: "
            f"{first(lacking)}). Write priors of all variants (`deepwas priors RUN --all-variants`); or give "
            "--missing-prior zero, if those have no effect."
        )
    if not (f.fill_null(0.0).to_numpy()[used] > 0).any():
        raise InputError(
            f"{name}: SNPVAR is 0 for every variant of the LD blocks: no effect is possible. Is it a prior?"
        )
    swapped = used & straight.is_null().to_numpy() & known
    tally.add(STEP, "noted", "priors matched with the alleles in the other order", int(swapped.sum()), first(swapped))
    reason = "variants without a prior: taken to have no effect (missing_prior zero)"
    tally.add(STEP, "noted", reason, int(lacking.sum()), first(lacking))
    unused = table.height - int(known.sum())
    if unused > 0:
        tally.add(STEP, "dropped", "priors of variants that the LD store does not hold", unused)
    return np.where(used, f.fill_null(0.0).to_numpy(), 0.0)
