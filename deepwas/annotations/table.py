"""Reading tables of variants x annotations, text or Parquet, and aligning them to the variants of an LD store.

Annotations are taken as unsigned: the order of the two alleles, and their strand, do not matter to a value.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import polars as pl

from deepwas.errors import InputError
from deepwas.files import require_file, sha256
from deepwas.genome import normalise_chromosomes
from deepwas.tables import MISSING, numeric_column, read_delimited
from deepwas.tally import Tally

KeyChoice = Literal["auto", "alleles", "snp", "position"]
_KEYS: dict[str, tuple[str, ...]] = {
    "alleles": ("CHR", "BP", "ALLELES"),
    "snp": ("SNP",),
    "position": ("CHR", "BP"),
}
_SAID = {"alleles": "CHR BP A1 A2 (alleles in either order)", "snp": "SNP", "position": "CHR BP"}
_ALIASES = {
    "SNP": ("snp", "rsid", "rs_id", "variant_id", "markerid", "id"),
    "CHR": ("chr", "chrom", "chromosome"),
    "BP": ("bp", "pos", "position", "base_pair_location", "physpos"),
    "A1": ("a1", "allele1", "effect_allele", "alt"),
    "A2": ("a2", "allele2", "other_allele", "ref"),
}
_RESULTS = {
    *("z", "zscore", "z_score", "t_stat", "tstat", "beta", "b", "effect", "or", "odds_ratio", "log_or"),
    *("se", "stderr", "standard_error", "p", "pval", "p_value", "pvalue", "p.value", "log10p", "neg_log_10_p_value"),
    *("chisq", "chi2", "n", "neff", "obs_ct", "snpvar", "pip", "posterior", "variant", "section"),
}
_NOT_ANNOTATIONS = ("cm", "genpos")
_SIGNED_SHARE = 0.05  # of the values that are not 0, with either sign
_AT_ONCE = 16  # Parquet columns read together: bounds the memory beyond the result


@dataclass(frozen=True)
class Table:
    """Aligned columns: name -> (M,) float32, NaN where missing; the key used; SHA-256 by path; counts."""

    columns: dict[str, np.ndarray]
    key: str
    files: dict[str, str]
    tally: Tally


@dataclass
class _Piece:
    """One file: `keys` holds those of SNP CHR BP ALLELES that it has; `names` are its annotation columns."""

    path: Path
    keys: pl.DataFrame
    names: list[str]
    header_lines: int
    frame: pl.DataFrame | None  # None for Parquet, whose columns are read when needed
    ignored: list[str]  # columns that say where a variant is, beside the ones chosen
    index: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    repeated: pl.DataFrame = field(default_factory=pl.DataFrame)

    def columns(self) -> Iterator[tuple[str, pl.Series]]:
        """Annotation columns one after another, as float32 with nulls."""
        for begin in range(0, len(self.names), _AT_ONCE):
            group = self.names[begin : begin + _AT_ONCE]
            frame = self.frame if self.frame is not None else pl.read_parquet(self.path, columns=group)
            for name in group:
                yield name, self._as_float(frame, name)

    def _as_float(self, frame: pl.DataFrame, name: str) -> pl.Series:
        kind = frame.schema[name]
        if kind == pl.String:
            column = numeric_column(frame, name, self.path, header=bool(self.header_lines)).cast(pl.Float32)
        elif kind.is_numeric() or kind == pl.Boolean:
            column = frame[name].cast(pl.Float32, strict=False)
        else:
            raise InputError(
                f"{self.path}: column {name} holds {kind}, numbers are needed. Leave the column out, or code it as "
                "one 0/1 column for each value."
            )
        wild = column.is_infinite().fill_null(False)
        if wild.any():
            row = int(wild.arg_true()[0])
            raise InputError(
                f"{self.path}: column {name}, line {row + 1 + self.header_lines}: the value is infinite or beyond "
                f"float32 ({int(wild.sum()):,} such). Write NA where it is missing, or transform the column."
            )
        return column


def read_table(
    path: str | os.PathLike[str],
    variants: pl.DataFrame,
    *,
    key: KeyChoice = "auto",
    keep_constant: bool = False,
) -> Table:
    """Read a table of annotations and align it to `variants` (M rows; SNP CHR BP A1 A2).

    Forms: text (tab, comma or spaces, plain or gzip, with a header) or Parquet; PolyFun `SNP CHR BP A1 A2
    ...`, S-LDSC `.annot` `CHR BP SNP CM ...`, SBayesRC `SNP Intercept ...`, or any table with such key
    columns. A path with @ stands for one file a chromosome, @ being its number. Text is held in memory whole;
    Parquet a few columns at a time.

    key: 'alleles' (CHR BP A1 A2), 'snp' or 'position' (CHR BP). 'auto' takes the alleles when the table has
    them; else, of SNP and CHR BP, whichever matches more variants, SNP if equal. The choice is noted in the
    tally.

    Rows that repeat a key of a matched variant collapse when identical and are an error when not. Variants
    without a row are missing, and counted. Columns constant over the matched variants are dropped and
    counted, unless `keep_constant`. Raises InputError for a table that matches no variant, a column without
    any value or with text, and infinite values.
    """
    if key not in get_args(KeyChoice):
        raise InputError(f"table key {key!r}: give one of {', '.join(get_args(KeyChoice))}.")
    ours = variants.select(
        pl.when(~pl.col("SNP").is_in(list(MISSING))).then(pl.col("SNP")).alias("SNP"),
        "CHR",
        "BP",
        _unordered_alleles(),
    ).with_row_index("variant")
    tally = Tally()
    step = Path(path).name
    if "@" in Path(path).name:
        chromosomes = ours["CHR"].unique(maintain_order=True).to_list()
        paths = [require_file(str(path).replace("@", c), f"annotations of chromosome {c}") for c in chromosomes]
        shares = [ours.filter(pl.col("CHR") == c) for c in chromosomes]
    else:
        paths, shares = [require_file(path, "a table of annotations")], [ours]
    columns: dict[str, np.ndarray] = {}
    used = ""
    for number, (one, share) in enumerate(zip(paths, shares, strict=True)):
        piece = _open(one)
        used = _match(piece, share, used or key, tally, step)
        if number == 0:
            columns = {name: np.full(variants.height, np.nan, dtype=np.float32) for name in piece.names}
        elif set(piece.names) != set(columns):
            odd = sorted(set(piece.names) ^ set(columns))
            raise InputError(f"{one}: its annotations differ from those of {paths[0]}: {', '.join(odd[:10])}.")
        if number == 0 and piece.ignored:
            tally.add(step, "noted", "columns unused: no annotation", len(piece.ignored), piece.ignored[0])
        rows = share["variant"].to_numpy()
        found = piece.index >= 0
        for name, values in piece.columns():
            _refuse_conflicts(piece, name, values)
            columns[name][rows[found]] = values.to_numpy()[piece.index[found]]
    matched = sum(row.count for row in tally.rows if row.step == step and row.action == "kept")
    if matched == 0:
        raise InputError(_no_match(paths[0], ours, used))
    _drop_constant(columns, tally, step, keep_constant)
    return Table(columns, used, {str(p): sha256(p) for p in paths}, tally)


def _unordered_alleles() -> pl.Expr:
    """'A/G' for A1, A2 in either order and on either strand.

    A single-base pair becomes one of A/C, A/G, A/T, C/G. Two variants of one position never share a pair:
    their reference base is the same.
    """
    first, second = pl.col("A1").str.to_uppercase(), pl.col("A2").str.to_uppercase()
    pair = pl.when(first < second).then(first + "/" + second).otherwise(second + "/" + first)
    return pair.replace({"C/T": "A/G", "G/T": "A/C"}).alias("ALLELES")


def _open(path: Path) -> _Piece:
    with open(path, "rb") as handle:
        parquet = handle.read(4) == b"PAR1"
    frame: pl.DataFrame | None = None
    if parquet:
        try:
            header = list(pl.read_parquet_schema(path))
            chosen = _key_columns(header, path)
            text = pl.read_parquet(path, columns=list(chosen.values()))
        except pl.exceptions.PolarsError as error:
            raise InputError(f"{path}: damaged Parquet file ({error}). Write or download it again.") from error
    else:
        text = frame = read_delimited(path, what="a table of annotations", floats=_is_annotation)
        header = frame.columns
        chosen = _key_columns(header, path)
    keys = _keys(text, chosen, path, header_lines=0 if parquet else 1)
    names = [name for name in header if _is_annotation(name)]
    _refuse_results(path, names)
    if not names:
        raise InputError(f"{path}: no annotation column beside {' '.join(header)}.")
    ignored = [name for name in header if name not in chosen.values() and name not in names]
    return _Piece(path, keys, names, 0 if parquet else 1, frame, ignored)


def _refuse_results(path: Path, names: Sequence[str]) -> None:
    """A GWAS, z-scores or priors taken for annotations would show a network what it is to predict."""
    results = [name for name in names if name.lower() in _RESULTS]
    if results:
        raise InputError(
            f"{path}: column {', '.join(results)} holds the outcome of a GWAS or of a fit, not an annotation: a prior "
            "learned from it would see the z-scores it is judged on. Is this the annotation file? If the column is one "
            "after all, rename it."
        )


def _is_annotation(name: str) -> bool:
    """Whether a column is neither a name of a key nor a genetic position."""
    return _plain(name) not in {*_NOT_ANNOTATIONS, *(alias for group in _ALIASES.values() for alias in group)}


def _plain(name: str) -> str:
    return name.strip().lstrip("#").lower()


def _key_columns(header: list[str], path: Path) -> dict[str, str]:
    """Which header name serves as SNP, CHR, BP, A1 and A2; the first alias in our order wins."""
    plain = {_plain(name): name for name in reversed(header)}
    chosen = {
        key: next(plain[alias] for alias in aliases if alias in plain)
        for key, aliases in _ALIASES.items()
        if any(alias in plain for alias in aliases)
    }
    if "SNP" not in chosen and not {"CHR", "BP"} <= set(chosen):
        raise InputError(
            f"{path}: no key to variants among the columns "
            f"{' '.join(header[:12])}{' ...' if len(header) > 12 else ''}. A table needs CHR BP A1 A2, CHR BP, or "
            "SNP. A thin S-LDSC .annot has none of them: paste the columns CHR BP SNP of the matching .bim before it."
        )
    return chosen


def _keys(frame: pl.DataFrame, chosen: dict[str, str], path: Path, header_lines: int) -> pl.DataFrame:
    """Those of SNP CHR BP ALLELES that the table has, as text, text, int64 and text."""
    columns: list[pl.Series | pl.Expr] = []
    if "SNP" in chosen:
        snp = pl.col(chosen["SNP"]).cast(pl.String)
        columns.append(pl.when(~snp.is_in(list(MISSING))).then(snp).alias("SNP"))
    if {"CHR", "BP"} <= set(chosen):
        columns.append(normalise_chromosomes(frame[chosen["CHR"]]).alias("CHR"))
        position = frame[chosen["BP"]]
        if position.dtype.is_float():
            position = position.fill_nan(None)
        parsed = numeric_column(
            position.to_frame(chosen["BP"]), chosen["BP"], path, integer=True, header=bool(header_lines)
        )
        columns.append(parsed.alias("BP"))
        if {"A1", "A2"} <= set(chosen):
            columns.append(
                frame.select(pl.col(chosen[a]).cast(pl.String).alias(a) for a in ("A1", "A2"))
                .select(_unordered_alleles())
                .to_series()
            )
    return frame.select(columns)


def _match(piece: _Piece, share: pl.DataFrame, wanted: str, tally: Tally, step: str) -> str:
    """Set piece.index, (M,) row of the table for each variant of `share` or -1, and piece.repeated; return the key."""
    possible = [name for name, columns in _KEYS.items() if set(columns) <= set(piece.keys.columns)]
    if wanted != "auto":
        if wanted not in possible:
            raise InputError(
                f"{piece.path}: cannot be matched by {_SAID[wanted]}: its key columns are "
                f"{' '.join(piece.keys.columns)}. Choose another --table-key."
            )
        possible = [wanted]
    elif "alleles" in possible:
        possible = ["alleles"]
    used = possible[0]
    if len(possible) > 1:
        counts = {name: share.join(piece.keys, on=list(_KEYS[name]), how="semi").height for name in possible}
        used = max(counts, key=lambda name: counts[name])
    on = list(_KEYS[used])
    rows = piece.keys.with_row_index("row").join(share, on=on, how="semi", maintain_order="left")
    first = rows.unique(subset=on, keep="first", maintain_order=True)
    joined = share.join(first, on=on, how="left", maintain_order="left", suffix="_table")
    piece.index = joined["row"].cast(pl.Int64).fill_null(-1).to_numpy()
    piece.repeated = rows.join(first.select(*on, pl.col("row").alias("first")), on=on, how="left").filter(
        pl.col("row") != pl.col("first")
    )
    matched = int((piece.index >= 0).sum())
    tally.add(step, "kept", f"variants matched by {_SAID[used]}", matched)
    tally.add(step, "noted", "table rows read", piece.keys.height)
    tally.add(step, "noted", "table rows of other variants, unused", piece.keys.height - rows.height)
    tally.add(step, "dropped", "table rows that repeat a key, all values equal", piece.repeated.height)
    lost = joined.filter(pl.col("row").is_null())
    if lost.height:
        tally.add(step, "noted", "missing: variant without a row in the table", lost.height, str(lost["SNP"][0]))
    if used == "snp" and {"CHR_table", "BP_table"} <= set(joined.columns):
        moved = joined.filter((pl.col("CHR") != pl.col("CHR_table")) | (pl.col("BP") != pl.col("BP_table")))
        if moved.height:
            reason = "matched by SNP at another position than in the LD reference (another genome build?)"
            tally.add(step, "noted", reason, moved.height, str(moved["SNP"][0]))
    return used


def _refuse_conflicts(piece: _Piece, name: str, values: pl.Series) -> None:
    if not piece.repeated.height:
        return
    rows, firsts = piece.repeated["row"].to_numpy(), piece.repeated["first"].to_numpy()
    column = values.to_numpy()
    bad = ~((column[rows] == column[firsts]) | (np.isnan(column[rows]) & np.isnan(column[firsts])))
    if bad.any():
        at = int(bad.argmax())
        lines = firsts[at] + 1 + piece.header_lines, rows[at] + 1 + piece.header_lines
        what = ", ".join(f"{c} {piece.repeated[c][at]}" for c in piece.keys.columns)
        raise InputError(
            f"{piece.path}: lines {lines[0]} and {lines[1]} are the same variant ({what}) but column {name} holds "
            f"{column[firsts[at]]:g} and {column[rows[at]]:g} ({int(bad.sum()):,} such rows). Keep one row a variant."
        )


def _no_match(path: Path, ours: pl.DataFrame, used: str) -> str:
    return (
        f"{path}: no row matches any of {ours.height:,} variants of the LD reference by {_SAID[used]} (the first "
        f"variant there: {' '.join(str(ours[c][0]) for c in _KEYS[used])}). Is it the same genome build, and are "
        "identifiers of the same kind? Another key can be chosen with --table-key."
    )


def note_signs(table: Table, step: str) -> None:
    """Count columns of both signs in a table with alleles, as the sign of a score may hang on which is counted."""
    signed = []
    for name, values in table.columns.items():
        below, above = np.count_nonzero(values < 0), np.count_nonzero(values > 0)
        if min(below, above) > _SIGNED_SHARE * (below + above):
            signed.append(name)
    if signed and table.key == "alleles":
        reason = "columns with both signs, taken as they are; if it is that of an allele, give them to `deepwas scores`"
        table.tally.add(step, "noted", reason, len(signed), signed[0])


def _drop_constant(columns: dict[str, np.ndarray], tally: Tally, step: str, keep_constant: bool) -> None:
    for name in list(columns):
        present = columns[name][~np.isnan(columns[name])]
        if present.size == 0:
            raise InputError(
                f"{step}: column {name} has no value for any matched variant. Leave the column out of the table."
            )
        if not keep_constant and present.min() == present.max():
            tally.add(step, "dropped", "annotation columns constant over the matched variants", 1, name)
            del columns[name]
    if not columns:
        raise InputError(f"{step}: every annotation is constant over the matched variants: nothing can be learnt.")
