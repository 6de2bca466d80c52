"""One locus of a classification or of a fine-mapping: what its folder, its z-scores and the LD say of it."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.errors import InputError
from deepwas.files import read_json
from deepwas.genome import CHROMOSOMES, normalise_chromosomes
from deepwas.ld import LDStore, open_ld
from deepwas.pleiotropy.locus_genes import genes_of_region
from deepwas.tables import numeric_column, read_delimited

__all__ = ["WINDOW", "LocusView", "locus_view", "parse_region"]

PathLike = str | os.PathLike[str]
Floats = NDArray[np.float64]

WINDOW = 250_000  # bases either side of the lead

_KEYS = ("CHR", "BP", "A1", "A2")
_WORDS = ("CLASS", "FLAG", "OBSERVED", "LEAD", "TRAITS", "SPLIT_TRAIT", "SPLIT_SNPS", "UNRESOLVABLE", "IMPURE")
_TEXT = ("CHR", "SNP", "A1", "A2", *_WORDS)
_WHOLE = ("BP", "LOCUS", "CREDIBLE_SET", "SET", "BLOCK", "START", "STOP", "SIZE", "LEAD_BP")
_PLACE = re.compile(r"(?:chr)?([0-9A-Za-z]+):([0-9,]+)(?::([^:]+):([^:]+))?", re.IGNORECASE)
_REGION = re.compile(r"(?:chr)?([0-9A-Za-z]+):([0-9,]+)-([0-9,]+)", re.IGNORECASE)
_ALIKE = 5_000  # names looked at for the nearest
_SAID = {
    "pleiotropic": "acts on two traits or more by itself",
    "vertical": "acts on one trait, which acts on others",
    "ld_only": "acts on one trait; in LD with another's variant",
    "single": "acts on one trait alone",
    "confounder": "acts through a heritable factor",
    "none": "acts on no trait",
}


@dataclass(frozen=True, eq=False)
class LocusView:
    """A region around a lead variant, ready to be drawn (see `deepwas.pleiotropy.locus_picture`).

    traits: (K,) names.  chromosome, start, stop: the region, both ends counted.  lead: row of `variants`.
    variants: CHR SNP BP A1 A2 SET, and for each trait Z_, F_ (prior variance) and PIP_; R2 with the lead, null for
        variants outside the lead's LD block, of whose LD with it the store says nothing.
    sets: SET LEAD LEAD_BP START STOP SAID, the credible sets that overlap the region.
    genes: NAME START STOP STRAND CODING, or None without a file of genes.
    title, subtitle: what is found, in words.  genome_build: of the positions.
    """

    traits: tuple[str, ...]
    chromosome: str
    start: int
    stop: int
    lead: int
    variants: pl.DataFrame
    sets: pl.DataFrame
    genes: pl.DataFrame | None
    title: str
    subtitle: str
    genome_build: str

    def values(self, what: str, trait: str) -> Floats:
        """Z, F or PIP of a trait, (variants,), NaN where there is none."""
        return _floats(self.variants[f"{what}_{trait}"])


def locus_view(
    folder: PathLike,
    ld: LDStore | PathLike,
    *,
    variant: str | None = None,
    region: str | None = None,
    window: int = WINDOW,
    genes: PathLike | None = None,
    runs: Mapping[str, Any] | Sequence[Any] | None = None,
    sumstats: Mapping[str, Any] | None = None,
) -> LocusView:
    """A locus of a folder that `classify` or `estimate_posterior` (with fine-mapping) wrote.

    ld: the LD store that the folder was made with.
    variant: the lead, by its name or as CHR:BP or CHR:BP:A1:A2.  region: CHR:START-STOP. One of them at least; without
        a variant the lead is the region's likeliest to act on any trait, without a region `window` bases either side
        of the lead are looked at.
    genes: file of genes on the same genome build, see `genes_of_region`.
    runs, sumstats: the traits as they were given to `classify`, whose table may hold no z-scores and priors.
    """
    where = Path(folder)
    table, sets, traits, record, kind = _read(where)
    store = ld if isinstance(ld, LDStore) else open_ld(ld)
    if record["ld"]["checksum"] != store.checksum:
        raise InputError(
            f"{store.path}: not the LD store that {where} was made with: checksum {store.checksum[:12]}, not "
            f"{record['ld']['checksum'][:12]} ({record['ld']['file']}). Give that one."
        )
    if variant is None and region is None:
        raise InputError("give a variant, or a region such as 2:1000000-2000000.")
    if window < 1:
        raise InputError(f"window is {window}; give bases either side of the lead, such as {WINDOW}.")
    rows = _rows_of(store, table, where)
    table = _with_inputs(table, rows, traits, record, store, where, runs, sumstats)
    lead = None if variant is None else _find(table, variant, store, where)
    if region is None:
        assert lead is not None
        chromosome, place = table["CHR"][lead], int(table["BP"][lead])
        start, stop = max(1, place - window), place + window
    else:
        chromosome, start, stop = parse_region(region)
    inside = (table["CHR"] == chromosome) & table["BP"].is_between(start, stop)
    if not inside.any():
        raise InputError(f"{chromosome}:{start}-{stop}: {_none_there(table, chromosome, start, stop, where)}")
    if lead is not None and not inside[lead]:
        at = f"{table['CHR'][lead]}:{table['BP'][lead]}"
        raise InputError(f"{variant} is at {at}, outside the region {region}. Give one of the two, or another region.")
    if lead is None:
        act = np.sum([_floats(table[f"PIP_{name}"]) for name in traits], axis=0)
        lead = int(np.where(inside.to_numpy(), act, -1.0).argmax())
    r2 = _r2_with(store, int(rows[lead]))[rows]
    here = np.flatnonzero(inside.to_numpy())
    shown = table.with_columns(pl.Series("R2", r2).fill_nan(None))[here]
    overlap = (pl.col("CHR") == chromosome) & (pl.col("START") <= stop) & (pl.col("STOP") >= start)
    title, subtitle = _words(table.row(lead, named=True), sets, traits, kind)
    return LocusView(
        tuple(traits),
        chromosome,
        start,
        stop,
        int(np.searchsorted(here, lead)),
        shown,
        sets.filter(overlap),
        None if genes is None else genes_of_region(genes, chromosome, start, stop),
        title,
        subtitle,
        store.genome_build,
    )


def parse_region(text: str) -> tuple[str, int, int]:
    """'2:1000-2000' or 'chr2:1,000-2,000' as chromosome without prefix, start, stop."""
    found = _REGION.fullmatch(text.strip())
    if found is None:
        raise InputError(f"region {text!r}: give CHR:START-STOP, such as 2:1000000-2000000.")
    chromosome = _plain(found[1])
    start, stop = (int(found[n].replace(",", "")) for n in (2, 3))
    if chromosome not in CHROMOSOMES:
        raise InputError(f"region {text!r}: {found[1]!r} is no chromosome; give 1 to 22, X, Y or MT.")
    if not 1 <= start <= stop:
        raise InputError(f"region {text!r}: it starts at {start} and ends at {stop}. Positions count from 1.")
    return chromosome, start, stop


def _plain(chromosome: str) -> str:
    return str(normalise_chromosomes(pl.Series([chromosome]))[0])


def _read(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame, list[str], dict[str, Any], str]:
    """Variants, sets, traits, record, and which of the two kinds of folder it is."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Give one that `deepwas pleiotropy` or `deepwas posterior` wrote.")
    if (folder / "pleiotropy.json").is_file():
        record = read_json(folder / "pleiotropy.json", "the record of a classification")
        _complete(record, folder, "deepwas pleiotropy")
        traits = [str(trait["name"]) for trait in record["traits"]]
        table = _table(folder / "pleiotropy.tsv.gz").rename({"LOCUS": "SET"})
        return table, _locus_sets(_table(folder / "loci.tsv")), traits, record, "pleiotropy"
    if (folder / "posterior.json").is_file():
        record = read_json(folder / "posterior.json", "the record of a posterior")
        _complete(record, folder, "deepwas posterior")
        if "finemap" not in record:
            raise InputError(f"{folder}: made without fine-mapping. Run `deepwas posterior` with --finemap.")
        name = str(record["sumstats"]["file"]).split(".")[0]
        columns = {"CREDIBLE_SET": "SET", "Z": f"Z_{name}", "SNPVAR": f"SNPVAR_{name}", "PIP": f"PIP_{name}"}
        table = _table(folder / "finemap.tsv.gz").rename(columns)
        return table, _finemap_sets(_table(folder / "credible_sets.tsv")), [name], record, "finemap"
    raise InputError(
        f"{folder}: holds neither pleiotropy.json nor posterior.json. Give a folder that `deepwas pleiotropy`, or "
        "`deepwas posterior --finemap`, wrote."
    )


def _complete(record: Any, folder: Path, command: str) -> None:
    if record.get("status") != "complete":
        raise InputError(f"{folder}: not finished. Finish it with `{command} ... --resume`.")


def _table(path: Path) -> pl.DataFrame:
    """A table as deepwas writes them, numbers parsed."""
    frame = read_delimited(path, what="a table of deepwas", floats=lambda name: name not in (*_TEXT, *_WHOLE))
    return frame.with_columns(
        *(numeric_column(frame, name, path, integer=True).alias(name) for name in _WHOLE if name in frame.columns),
        *(
            numeric_column(frame, name, path).alias(name)
            for name in frame.columns
            if name not in (*_TEXT, *_WHOLE) and frame.schema[name] == pl.String
        ),
    )


def _locus_sets(loci: pl.DataFrame) -> pl.DataFrame:
    """Credible sets of a classification with a line of what each is."""
    unclear = pl.when(pl.col("UNRESOLVABLE") == "true").then(pl.lit(", unresolvable")).otherwise(pl.lit(""))
    said = pl.format("{}: {}, shared {}{}{}", "LOCUS", "TRAITS", _share("P_SHARED"), unclear, _flagged())
    return loci.with_columns(said.alias("SAID")).rename({"LOCUS": "SET"})


def _finemap_sets(sets: pl.DataFrame) -> pl.DataFrame:
    impure = pl.when(pl.col("IMPURE") == "true").then(pl.lit(", impure")).otherwise(pl.lit(""))
    return sets.with_columns(pl.format("{}: {} variant(s){}{}", "SET", "SIZE", impure, _flagged()).alias("SAID"))


def _flagged() -> pl.Expr:
    return pl.when(pl.col("FLAG").is_null()).then(pl.lit("")).otherwise(pl.lit(", flagged"))


def _share(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.Float64).round(2).cast(pl.String)


def _rows_of(store: LDStore, table: pl.DataFrame, folder: Path) -> NDArray[np.int64]:
    """(variants of the table,), their rows of the store."""
    own = store.variants.select(*_KEYS).with_row_index("ROW")
    rows = table.select(*_KEYS).join(own, on=list(_KEYS), how="left", maintain_order="left")["ROW"]
    if rows.null_count():
        first = " ".join(map(str, table.select(*_KEYS).row(int(rows.is_null().arg_true()[0]))))
        raise InputError(f"{folder}: {first} is not in {store.path}, though its checksum fits: the table was changed.")
    return rows.to_numpy().astype(np.int64)


def _with_inputs(
    table: pl.DataFrame,
    rows: NDArray[np.int64],
    traits: Sequence[str],
    record: dict[str, Any],
    store: LDStore,
    folder: Path,
    runs: Mapping[str, Any] | Sequence[Any] | None,
    sumstats: Mapping[str, Any] | None,
) -> pl.DataFrame:
    """The table with Z_ and F_ of each trait: its own, or of the runs."""
    lacking = [name for name in traits if not {f"Z_{name}", f"SNPVAR_{name}"} <= set(table.columns)]
    if not lacking:
        return table.rename({f"SNPVAR_{name}": f"F_{name}" for name in traits})
    if runs is None:
        raise InputError(
            f"{folder}: its table holds no z-scores and priors of {lacking[0]}. Give the traits as "
            f"`deepwas pleiotropy` was given them: {' '.join(f'{name}=RUN' for name in traits)}."
        )
    from deepwas.pleiotropy.joint import named, read_traits

    given = named(runs, "runs")
    if set(given) != set(traits):
        raise InputError(f"{folder} is of {', '.join(traits)}; given are {', '.join(given)}. Name them: NAME=RUN.")
    found = read_traits({name: given[name] for name in traits}, store, sumstats)
    for name, known, own in zip(traits, record["traits"], found.records, strict=True):
        for what in ("prior", "sumstats"):
            if json.dumps(known[what], sort_keys=True) != json.dumps(own[what], sort_keys=True):
                raise InputError(
                    f"{name}: not the {what} that {folder} was made of. Give the same run, or classify anew."
                )
    return table.with_columns(
        *(pl.Series(f"Z_{name}", found.z[rows, k]).fill_nan(None) for k, name in enumerate(traits)),
        *(pl.Series(f"F_{name}", found.f[rows, k]) for k, name in enumerate(traits)),
    )


def _find(table: pl.DataFrame, text: str, store: LDStore, folder: Path) -> int:
    """Row of a variant given by name or place; InputError names the nearest."""
    match = table["SNP"] == text
    place = _PLACE.fullmatch(text.strip())
    chromosome, position = "", 0
    if not match.any() and place is not None:
        chromosome, position = _plain(place[1]), int(place[2].replace(",", ""))
        match = (table["CHR"] == chromosome) & (table["BP"] == position)
        if place[3] is not None:
            alleles = {place[3].upper(), place[4].upper()}
            one, other = table["A1"].str.to_uppercase(), table["A2"].str.to_uppercase()
            match = match & one.is_in(alleles) & other.is_in(alleles)
    found = match.arg_true()
    if len(found) == 1:
        return int(found[0])
    if len(found):
        some = "; ".join(":".join(map(str, table.select(*_KEYS).row(int(j)))) for j in found[:4])
        raise InputError(f"{text}: {len(found)} variants are called so in {folder}: {some}. Give one of these.")
    if chromosome:
        raise InputError(f"{text}: {_none_there(table, chromosome, position, position, folder)}")
    in_store = (store.variants["SNP"] == text).arg_true()
    if len(in_store):
        row = store.variants.row(int(in_store[0]), named=True)
        near = _none_there(table, row["CHR"], row["BP"], row["BP"], folder)
        raise InputError(f"{text} is in the LD store, in an LD block without z-scores of all traits: {near}")
    alike = _alike(table["SNP"], text)
    said = f"The nearest name is {alike}." if alike else "No name is like it."
    raise InputError(f"{text}: no variant of {folder} is called so. {said} CHR:BP names one too.")


def _none_there(table: pl.DataFrame, chromosome: str, start: int, stop: int, folder: Path) -> str:
    """That no variant of the table lies there, and which is nearest."""
    own = table.filter(pl.col("CHR") == chromosome)
    if not own.height:
        there = ", ".join(sorted(table["CHR"].unique(), key=lambda x: CHROMOSOMES.index(x) if x in CHROMOSOMES else 99))
        return f"no variant of {folder} is on chromosome {chromosome}; it has {there}."
    bp = own["BP"].to_numpy()
    off = np.maximum(np.maximum(start - bp, bp - stop), 0)
    near = own.row(int(off.argmin()), named=True)
    return f"no variant of {folder} lies there; the nearest is {near['SNP']}, {chromosome}:{near['BP']}."


def _alike(names: pl.Series, text: str) -> str | None:
    """The name most like a text; only names that share a half with it are compared, as there may be millions."""
    half = max(1, len(text) // 2)
    near = (names.str.len_chars().cast(pl.Int64) - len(text)).abs() <= 1
    some = names.filter(near & (names.str.starts_with(text[:half]) | names.str.ends_with(text[half:]))).head(_ALIKE)
    found = difflib.get_close_matches(text, some.to_list(), n=1, cutoff=0.0)
    return found[0] if found else None


def _r2_with(store: LDStore, row: int) -> Floats:
    """(M,), r^2 with a variant in the LD block that scores it, as the store keeps it; NaN outside."""
    out = np.full(store.n_variants, np.nan)
    number = int(store.variants["BLOCK"][row])
    rows = store.block_slice(number)
    G = store.factor(number).decoded().astype(np.float64)
    length = np.sqrt(np.einsum("ij,ij->j", G, G))
    lead = row - rows.start
    r = (G.T @ G[:, lead]) / np.maximum(length * length[lead], 1e-12)
    out[rows] = np.minimum(r**2, 1.0)
    return out


def _floats(values: pl.Series) -> Floats:
    return values.cast(pl.Float64).fill_null(np.nan).to_numpy()


def _words(lead: dict[str, Any], sets: pl.DataFrame, traits: Sequence[str], kind: str) -> tuple[str, str]:
    """Title and subtitle."""
    place = f"{lead['SNP']}, {lead['CHR']}:{lead['BP']:,}, {lead['A1']}/{lead['A2']}"
    own = sets.filter(pl.col("SET") == lead["SET"])
    row = own.row(0, named=True) if own.height else None
    if kind == "finemap":
        title = f"{place}: probability of an effect on {traits[0]} {lead[f'PIP_{traits[0]}']:.2f}"
        if row is None:
            return title, "in no credible set"
        lines = [f"credible set {row['SET']}: {row['SIZE']} variant(s), coverage {row['COVERAGE']:.2f}"]
        lines += [f"purity {row['PURITY']:.2f}"]
        lines += [f"LD block flagged: {row['FLAG']}"] if row["FLAG"] is not None else []
        return title, ", ".join(lines)
    # Of a locus of many proxies none is likely by itself, whatever the locus is.
    shown = lead if row is None else row
    p = lead["P_PLEIOTROPY"] if row is None else row["P_SHARED"]
    where = place if row is None else f"{place}, in locus {row['SET']}"
    title = f"{where}: {shown['CLASS']} ({_SAID[shown['CLASS']]}); P(two traits or more) {p:.2f}"
    several, one, factor = (lead[name] for name in ("P_PLEIOTROPY", "P_SINGLE", "P_CONFOUNDER"))
    variant = (
        f"The variant itself: two traits or more {several:.2f}, one trait {one:.2f} (of it vertical "
        f"{lead['P_VERTICAL']:.2f}, LD only {lead['P_LD_ONLY']:.2f}), heritable factor {factor:.2f}, no effect "
        f"{max(0.0, 1 - several - one - factor):.2f}"
    )
    if row is None:
        return title, f"{variant}. In no credible set"
    lines = [f"The locus: {row['SIZE']} variant(s)"]
    lines += [name.lower() for name in ("IMPURE", "UNRESOLVABLE") if row[name] == "true"]
    lines += [f"LD block flagged: {row['FLAG']}"] if row["FLAG"] is not None else []
    return title, f"{variant}. {', '.join(lines)}"
