"""Setting a GWAS against the variants of an LD store: same variant, allele and strand, or counted out."""

from __future__ import annotations

import dataclasses
import warnings

import polars as pl

from deepwas.errors import DataWarning, InputError
from deepwas.genome import chromosome_rank, normalise_chromosome, parse_build
from deepwas.sumstats.alleles import PALINDROMIC, allele_class, orient, strand_by_frequency
from deepwas.sumstats.counted import describe, drop, note
from deepwas.sumstats.harmonised import SCHEMA, HarmonisedSumstats
from deepwas.sumstats.qc import (
    QCOptions,
    frequency_agrees,
    frequency_standard_error,
    outside_regions,
    quality,
)
from deepwas.sumstats.read import SumStats
from deepwas.tally import Tally

MATCH, STRAND, REPEATS = "match", "strand", "repeats"
_KEYS = {"position": ("CHR", "BP"), "rsid": ("SNP",)}
_MOVED_SHARE = 0.10
_ALLELES_SHARE = 0.10
_LEAST_SHARE = 0.01
_MANY = 100  # variants, whose z-scores cannot be all the same
_PANEL_COLUMNS = ("CHR", "SNP", "BP", "A1", "A2", "FREQ")


def harmonise(
    sumstats: SumStats,
    variants: pl.DataFrame,
    *,
    n_panel: int | None = None,
    options: QCOptions | None = None,
    genome_build: str | None = None,
    store_checksum: str | None = None,
) -> HarmonisedSumstats:
    """Align summary statistics to the variants and alleles of an LD store, and filter them.

    variants: the store's variants in its order: CHR (str), SNP, BP, A1, A2, FREQ (frequency of A1).
    n_panel: people in the LD panel, for the standard error of FREQ; None takes FREQ as exact.
    genome_build: the store's; needed for `exclude='long-range'`, which is the default.
    store_checksum: the store's, recorded with the result.

    Steps, at each of which kept + dropped is what came in: quality (N, INFO, chi-square), match (same place
    or identifier, same pair of alleles), strand (palindromic variants), frequency (against the panel),
    regions (MHC and long-range LD), repeats (rows for the same variant: equal ones leave one, different ones
    none). Z changes sign where the GWAS counts the store's A2; on the other strand alleles are complemented
    (SNPs only).

    Raises InputError when nothing matches, when positions belong to another genome build than the store's,
    and when no row is left.
    """
    options = options or QCOptions()
    genome_build = parse_build(genome_build) if genome_build is not None else None
    if missing := [c for c in _PANEL_COLUMNS if c not in variants.columns]:
        raise InputError(f"the LD store's variants have no column {', '.join(missing)}.")
    tally = Tally()
    tally.extend(sumstats.tally)
    panel = _panel(variants)

    frame = quality(sumstats.frame, options, tally)
    frame = frame.with_columns(allele_class().alias("CLASS"))
    if options.match != "rsid":
        _refuse_mixed_builds(sumstats, frame, panel, genome_build)
    key = _choose_key(sumstats, frame, panel, options)
    frame = _match(frame, panel, key, tally)
    frame = _settle_strand(frame, options, n_panel, tally)
    frame = frame.select(
        "VARIANT",
        *(pl.col(f"PANEL_{c}").alias(c) for c in ("CHR", "SNP", "BP", "A1", "A2")),
        # Adding 0 turns -0.0, the flipped 0.0, into 0.0.
        (pl.when("FLIP").then(-pl.col("Z")).otherwise("Z") + 0.0).alias("Z"),
        "N",
        pl.when("FLIP").then(1 - pl.col("FRQ")).otherwise("FRQ").alias("FRQ"),
        "PANEL_FREQ",
    )
    frame = frequency_agrees(frame, options, n_panel, tally)
    frame = outside_regions(frame, options, genome_build, tally)
    frame = _one_row_each(frame, tally)
    if not frame.height:
        raise InputError(f"{sumstats.path}: no variant is left.\n" + "\n".join(tally.lines()))
    if frame.height >= _MANY and frame["Z"].n_unique() == 1:
        raise InputError(f"{sumstats.path}: column Z: every z-score that is left is {frame['Z'][0]:g}. Is it a GWAS?")
    frame = frame.sort("VARIANT").select(pl.col(c).cast(kind) for c, kind in SCHEMA.items())
    absent = panel.join(frame, on="VARIANT", how="anti").sort("VARIANT")
    if absent.height:
        first = str(absent["PANEL_SNP"][0])
        tally.add("result", "noted", "variants of the LD store without a z-score", absent.height, first)
    tally.add("result", "kept", f"variants of the LD store with a z-score, of {variants.height:,}", frame.height)
    return HarmonisedSumstats(
        frame=frame,
        n_store=variants.height,
        source=sumstats.path.name,
        source_sha256=sumstats.sha256,
        source_format=sumstats.format,
        match=key,
        build=sumstats.build,
        genome_build=genome_build,
        store_checksum=store_checksum,
        options=dataclasses.asdict(options),
        tally=tally,
    )


def _panel(variants: pl.DataFrame) -> pl.DataFrame:
    """The store's variants under PANEL_ names, with VARIANT and CLASS."""
    return (
        variants.select(
            normalise_chromosome("CHR"),
            "SNP",
            pl.col("BP").cast(pl.Int64),
            pl.col("A1", "A2").str.to_uppercase(),
            pl.col("FREQ").cast(pl.Float64),
        )
        .with_columns(allele_class().alias("CLASS"))
        .rename({c: f"PANEL_{c}" for c in _PANEL_COLUMNS})
        .with_row_index("VARIANT")
    )


def _on(key: str) -> tuple[list[str], list[str]]:
    columns = list(_KEYS[key])
    return columns, [f"PANEL_{c}" for c in columns]


def _available(frame: pl.DataFrame, key: str) -> bool:
    return all(frame[c].null_count() < frame.height for c in _KEYS[key])


def _choose_key(sumstats: SumStats, frame: pl.DataFrame, panel: pl.DataFrame, options: QCOptions) -> str:
    """The key that matches more rows, or the one asked for; InputError, showing both sides, if none does."""
    asked = [k for k in _KEYS if options.match in ("auto", k)]
    counts = {}
    for key in asked:
        if _available(frame, key):
            left, right = _on(key)
            joined = frame.join(panel, left_on=[*left, "CLASS"], right_on=[*right, "CLASS"], how="semi")
            counts[key] = joined.height
    if options.match not in ("auto", *counts):
        what = {"position": "chromosomes and positions", "rsid": "identifiers"}[options.match]
        raise InputError(f"{sumstats.path}: the file has no {what} to match by. Leave --match out.")
    # Positions of another build meet the store's by chance, one in thousands.
    near = frame.filter(pl.col("CHR").is_null() | pl.col("CHR").is_in(panel["PANEL_CHR"].unique().to_list()))
    most = max(counts.values(), default=0)
    if most > 0 and most >= _LEAST_SHARE * min(near.height, panel.height):
        return max(counts, key=lambda k: counts[k])
    tried = ", ".join(f"{n:,} by {key} and alleles" for key, n in counts.items()) or "no key to match by"
    raise InputError(
        f"{sumstats.path}: {'none' if not most else f'only {most:,}'} of its {frame.height:,} variants "
        f"{'is' if most < 2 else 'are'} among the {panel.height:,} of the LD store ({tried}).\n"
        f"First of the GWAS: {_example(frame, 0)}. First of the LD store: {_example(panel, 0, 'PANEL_')}.\n"
        + _why_none(frame, panel)
    )


def _why_none(frame: pl.DataFrame, panel: pl.DataFrame) -> str:
    """What to look at when hardly any variant is in both."""
    theirs, ours = (set(x.drop_nulls().unique().to_list()) for x in (frame["CHR"], panel["PANEL_CHR"]))
    if theirs and not theirs & ours:
        gwas, store = (", ".join(sorted(x, key=chromosome_rank)) for x in (theirs, ours))
        return (
            f"The GWAS is of chromosome {gwas}, the LD store of {store}: give an LD store of the GWAS's chromosomes, "
            "or the other way round."
        )
    return "Are they of the same genome build, and is the store of the chromosomes and identifiers of the GWAS?"


def _example(frame: pl.DataFrame, row: int, prefix: str = "") -> str:
    values = frame.row(row, named=True)
    place = f"chr{values[prefix + 'CHR'] or '?'}:{values[prefix + 'BP'] or '?'}"
    alleles = f"{values[prefix + 'A1']}/{values[prefix + 'A2']}"
    return f"{values[prefix + 'SNP'] or 'no identifier'} at {place}, {alleles}"


def _refuse_mixed_builds(
    sumstats: SumStats, frame: pl.DataFrame, panel: pl.DataFrame, genome_build: str | None
) -> None:
    """Compare positions through the identifiers both sides share: between builds most differ."""
    if not _available(frame, "position"):
        return
    remedy = (
        "Match by identifier with `deepwas sumstats --match rsid`, lift the GWAS over to the build of the LD store, "
        "or take an LD store of the build of the GWAS."
    )
    sides = f"GWAS: {sumstats.build or 'not given'}; LD store: {genome_build or 'not given'}"
    shared = frame.drop_nulls(["CHR", "BP"]).join(
        panel, left_on=["SNP", "CLASS"], right_on=["PANEL_SNP", "CLASS"], coalesce=False
    )
    moved = shared.filter((pl.col("BP") != pl.col("PANEL_BP")) | (pl.col("CHR") != pl.col("PANEL_CHR")))
    if moved.height > _MOVED_SHARE * shared.height:
        raise InputError(
            f"{sumstats.path}: two genome builds are mixed: {moved.height:,} of {shared.height:,} identifiers "
            f"shared with the LD store have another position ({sides}).\n"
            f"GWAS: {_example(moved, 0)}. LD store: {_example(moved, 0, 'PANEL_')}.\n{remedy}"
        )
    if sumstats.build and genome_build and sumstats.build != genome_build:
        raise InputError(
            f"{sumstats.path}: two genome builds are mixed ({sides}).\n"
            f"GWAS: {_example(frame, 0)}. LD store: {_example(panel, 0, 'PANEL_')}.\n"
            + (remedy if not shared.height else f"But the positions agree: correct --build. Or: {remedy}")
        )


def _match(frame: pl.DataFrame, panel: pl.DataFrame, key: str, tally: Tally) -> pl.DataFrame:
    """Rows with their panel variant and FLIP; at most one variant for each row."""
    left, right = _on(key)
    known = panel.select(right).unique()
    where = {"position": "position", "rsid": "identifier"}[key]
    frame = _drop_unmatched(frame, known, left, right, tally, f"the {where} is not in the LD store")
    located = frame.height
    full = [*right, "CLASS"]
    known = panel.select(full).unique()
    reason = f"the LD store has this {where} with other alleles"
    frame = _drop_unmatched(frame, known, [*left, "CLASS"], full, tally, reason)
    if (strange := located - frame.height) > _ALLELES_SHARE * located:
        warnings.warn(
            f"{strange:,} of {located:,} variants found by {where} have other alleles than the LD store. "
            "Another genome build, or columns mistaken for alleles?",
            DataWarning,
            stacklevel=3,
        )
    unclear = panel.filter(pl.struct(full).is_duplicated())
    if unclear.height:
        twice = frame.join(unclear, left_on=[*left, "CLASS"], right_on=full, how="semi")
        if twice.height:
            reason = f"the {where} and alleles stand for several variants of the LD store"
            tally.add(MATCH, "dropped", reason, twice.height, describe(twice, 0))
        frame = frame.join(unclear, left_on=[*left, "CLASS"], right_on=full, how="anti", maintain_order="left")
        panel = panel.join(unclear, on="VARIANT", how="anti")
    frame = frame.join(
        panel, left_on=[*left, "CLASS"], right_on=full, how="inner", coalesce=False, maintain_order="left"
    )
    if key == "rsid" and frame["BP"].null_count() < frame.height:
        note(frame, pl.col("BP") != pl.col("PANEL_BP"), tally, MATCH, "matched by identifier, position differs")
    frame = orient(frame)
    if "FRQ" not in frame.columns:
        frame = frame.with_columns(pl.lit(None, pl.Float64).alias("FRQ"))
    tally.add(MATCH, "kept", f"rows matched by {where} and alleles", frame.height)
    return frame


def _drop_unmatched(
    frame: pl.DataFrame, known: pl.DataFrame, left: list[str], right: list[str], tally: Tally, reason: str
) -> pl.DataFrame:
    hit = frame.join(known, left_on=left, right_on=right, how="semi", maintain_order="left")
    if hit.height < frame.height:
        missed = frame.join(known, left_on=left, right_on=right, how="anti", maintain_order="left")
        tally.add(MATCH, "dropped", reason, missed.height, describe(missed, 0, ("A1", "A2")))
    return hit


def _settle_strand(frame: pl.DataFrame, options: QCOptions, n_panel: int | None, tally: Tally) -> pl.DataFrame:
    """Decide FLIP for palindromic variants, or drop them; count what will be flipped and complemented."""
    palindromic = pl.col("CLASS").is_in(PALINDROMIC)
    if options.palindromes == "drop":
        frame = drop(frame, palindromic, tally, STRAND, "palindromic (A/T or C/G)", show=("A1", "A2"))
    elif options.palindromes == "keep":
        note(frame, palindromic, tally, STRAND, "palindromic, kept as on the panel's strand", show=("A1", "A2"))
    else:
        margin = options.palindrome_margin
        error = frequency_standard_error(n_panel, pl.lit(0.5))
        opposite = strand_by_frequency(margin, pl.max_horizontal(pl.lit(margin), 3 * error))
        frame = frame.with_columns(pl.when(palindromic).then(opposite).alias("OPPOSITE"))
        unknown = palindromic & pl.col("FRQ").is_null()
        reason = "palindromic (A/T or C/G), no allele frequency in the GWAS to tell the strand"
        frame = drop(frame, unknown, tally, STRAND, reason, show=("A1", "A2"))
        unclear = palindromic & pl.col("OPPOSITE").is_null()
        reason = "palindromic (A/T or C/G), frequency too near 1/2 to tell the strand"
        frame = drop(frame, unclear, tally, STRAND, reason, show=("FRQ", "PANEL_FREQ"))
        note(frame, pl.col("OPPOSITE").is_not_null(), tally, STRAND, "palindromic, strand told by frequency")
        turn = pl.col("OPPOSITE").fill_null(False)
        frame = frame.with_columns((pl.col("FLIP") ^ turn).alias("FLIP"), pl.col("OTHER_STRAND") | turn)
    note(
        frame,
        pl.col("OTHER_STRAND"),
        tally,
        STRAND,
        "on the other strand, alleles complemented",
        changed=True,
        show=("A1", "A2", "PANEL_A1", "PANEL_A2"),
    )
    note(
        frame,
        pl.col("FLIP"),
        tally,
        STRAND,
        "effect allele is the store's A2, sign of Z changed",
        changed=True,
        show=("A1", "PANEL_A1"),
    )
    tally.add(STRAND, "kept", "rows of known strand", frame.height)
    return frame


def _one_row_each(frame: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    """Rows for the same variant: of equal Z and N the first stays, of different ones none."""
    again = ~pl.struct("VARIANT", "Z", "N").is_first_distinct()
    frame = drop(frame, again, tally, REPEATS, "the same variant again, with equal Z and N", show=("Z", "N"))
    several = pl.col("VARIANT").is_duplicated()
    frame = drop(frame, several, tally, REPEATS, "several rows for a variant, with different Z or N", show=("Z", "N"))
    tally.add(REPEATS, "kept", "one row for each variant", frame.height)
    return frame
