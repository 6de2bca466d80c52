"""The formats of GWAS summary statistics: which column means what, and which allele the effect belongs to.

A format is one `Format` in `FORMATS`. Its columns map onto the quantities named in `QUANTITIES`; units are
converted in one place (`deepwas.sumstats.read`), so that a further format needs no code unless it has rows to
leave out or columns to work out first (`prepare`), or is not a delimited table (`reader`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from deepwas.errors import InputError
from deepwas.tables import read_delimited
from deepwas.tally import Tally

QUANTITIES: Mapping[str, str] = {
    "CHR": "chromosome",
    "SNP": "variant identifier",
    "BP": "position",
    "A1": "effect allele",
    "A2": "other allele",
    "BETA": "effect size",
    "OR": "odds ratio",
    "SE": "standard error",
    "Z": "z-score",
    "N": "sample size",
    "N_CASES": "number of cases",
    "N_CONTROLS": "number of controls",
    "FRQ": "effect allele frequency",
    "P": "p-value",
    "NEG_LOG10_P": "-log10 p-value",
    "INFO": "imputation quality",
}
TEXT = ("CHR", "SNP", "A1", "A2")

Reader = Callable[[str | os.PathLike[str]], pl.DataFrame]
Prepare = Callable[[pl.DataFrame, Tally], pl.DataFrame]


def read_table(path: str | os.PathLike[str]) -> pl.DataFrame:
    """A delimited table of summary statistics, every column as text."""
    return read_delimited(path, what="GWAS summary statistics")


@dataclass(frozen=True)
class Format:
    """One format of summary statistics.

    name: what `--format` calls it; compared without regard to case.
    columns: quantity -> the names its column may have, the preferred one first.
    required: quantities without which a file is refused; 'BETA|OR' asks for one of the two. N is never
        among them: a file without N is accepted together with a sample size.
    effect_allele: a sentence that says which allele the effect belongs to.
    signature: column names by which the format is told from others that share its required columns.
    missing: quantity -> why a file without it cannot be used, said after the list of what is missing.
    prepare: takes the table as text and the tally, returns the table with rows left out (and counted) or
        columns worked out.
    reader: reads the file into a table of text columns.
    """

    name: str
    columns: Mapping[str, tuple[str, ...]]
    required: tuple[str, ...]
    effect_allele: str
    signature: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    prepare: Prepare | None = None
    reader: Reader = read_table

    def __post_init__(self) -> None:
        named = {q for group in self.required for q in group.split("|")}
        unknown = sorted({*self.columns, *named} - {*QUANTITIES})
        if unknown:
            raise ValueError(f"format {self.name}: no such quantity: {', '.join(unknown)}")
        if without := sorted(named - {*self.columns}):
            raise ValueError(f"format {self.name}: required but without a column: {', '.join(without)}")

    def resolve(self, header: Sequence[str]) -> dict[str, str]:
        """Quantity -> column of `header`, for the columns present: exact spelling first, then any case."""
        folded: dict[str, list[str]] = {}
        for name in header:
            folded.setdefault(name.lower(), []).append(name)
        found = {}
        for quantity, names in self.columns.items():
            exact = [n for n in names if n in header]
            loose = [folded[n.lower()][0] for n in names if len(folded.get(n.lower(), [])) == 1]
            if exact or loose:
                found[quantity] = (exact or loose)[0]
        return found

    def lacks(self, header: Sequence[str]) -> list[str]:
        """The required quantities that `header` does not hold."""
        found = self.resolve(header)
        return [group for group in self.required if not any(q in found for q in group.split("|"))]

    def recognises(self, header: Sequence[str], *, any_case: bool) -> bool:
        """Whether `header` holds the required columns and the signature, spelt exactly or in any case."""
        names = {n.lower() for n in header} if any_case else {*header}

        def spelt(candidates: Iterable[str]) -> bool:
            return any((n.lower() if any_case else n) in names for n in candidates)

        return all(spelt([n]) for n in self.signature) and all(
            any(spelt(self.columns[q]) for q in group.split("|")) for group in self.required
        )


FASTGWA = Format(
    name="fastGWA",
    columns={
        "CHR": ("CHR",),
        "SNP": ("SNP",),
        "BP": ("POS",),
        "A1": ("A1",),
        "A2": ("A2",),
        "BETA": ("BETA",),
        "SE": ("SE",),
        "N": ("N",),
        "FRQ": ("AF1",),
        "P": ("P",),
        "INFO": ("INFO",),
    },
    required=("CHR", "SNP", "BP", "A1", "A2", "BETA", "SE"),
    effect_allele="A1 is the effect allele, AF1 its frequency",
    signature=("POS", "AF1"),
)

_NO_ALLELES = "Without both alleles the sign of Z cannot be set against the LD panel. Keep both when munging."

LDSC = Format(
    name="LDSC",
    columns={
        "SNP": ("SNP",),
        "A1": ("A1",),
        "A2": ("A2",),
        "Z": ("Z",),
        "N": ("N",),
        "FRQ": ("FRQ",),
        "P": ("P",),
        "INFO": ("INFO",),
    },
    required=("SNP", "A1", "A2", "Z"),
    effect_allele="A1 is the effect allele, to which Z belongs",
    missing={
        "A1": _NO_ALLELES,
        "A2": _NO_ALLELES,
        "Z": "The likelihood needs signed statistics; chi-squares (CHISQ) have lost the sign. "
        "Give Z, from the original BETA and SE.",
    },
)

FORMATS: tuple[Format, ...] = (FASTGWA, LDSC)


def format_by_name(name: str, formats: Sequence[Format] = FORMATS) -> Format:
    """The format called `name`, in any case; InputError lists the known ones."""
    for candidate in formats:
        if candidate.name.lower() == name.strip().lower():
            return candidate
    known = ", ".join(f.name for f in formats)
    raise InputError(f"the summary statistics format {name!r} is not known. Give one of: {known}.")


def recognise(header: Sequence[str], path: str | os.PathLike[str], formats: Sequence[Format] = FORMATS) -> Format:
    """The one format that `header` fits: exact spelling first, then any case.

    A format that uses only some of the columns that another fitting format uses gives way to it. When none
    fits, or several do, InputError lists what was understood, what is missing, and what to do.
    """
    for any_case in (False, True):
        fitting = [f for f in formats if f.recognises(header, any_case=any_case)]
        used = {f.name: {*f.resolve(header).values()} for f in fitting}
        fitting = [f for f in fitting if not any(used[f.name] < used[g.name] for g in fitting)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            names = ", ".join(f.name for f in fitting)
            raise InputError(
                f"{path}: the header fits several formats: {names}.\n"
                f"Found: {' '.join(header)}. Say which one it is with --format."
            )
    nearest = max(formats, key=lambda f: (-len(f.lacks(header)), len(f.resolve(header))))
    raise InputError(_misfit(header, path, nearest, formats, "the header fits no known format"))


def require_columns(header: Sequence[str], path: str | os.PathLike[str], chosen: Format) -> dict[str, str]:
    """Quantity -> column for a format the user named; InputError if a required one is missing."""
    if chosen.lacks(header):
        raise InputError(_misfit(header, path, chosen, (), f"the header does not fit the format {chosen.name}"))
    return chosen.resolve(header)


def _misfit(
    header: Sequence[str],
    path: str | os.PathLike[str],
    nearest: Format,
    known: Sequence[Format],
    complaint: str,
) -> str:
    found, lacks = nearest.resolve(header), nearest.lacks(header)
    understood = ", ".join(f"{column} = {QUANTITIES[q]}" for q, column in found.items()) or "nothing"
    missing = "; ".join(
        "no " + " or ".join(f"{QUANTITIES[q]} column ({' or '.join(nearest.columns[q])})" for q in group.split("|"))
        for group in lacks
    )
    if not lacks:
        absent = [s for s in nearest.signature if s.lower() not in {n.lower() for n in header}]
        missing = f"no column {' or '.join(absent)}, by which {nearest.name} is known"
    lines = [f"{path}: {complaint}."]
    if known:
        lines[0] += f" Nearest: {nearest.name}."
    lines.append(f"Understood: {understood}.")
    lines.append(f"Missing: {missing}.")
    if rest := [n for n in header if n not in found.values()]:
        lines.append(f"Not understood: {', '.join(rest)}.")
    if reasons := dict.fromkeys(nearest.missing[g] for g in lacks if g in nearest.missing):
        lines.extend(reasons)
    elif known:
        lines.append(
            f"Known formats: {', '.join(f.name for f in known)}. Rename the columns to those of one of them, "
            "or say which it is with --format."
        )
    else:
        lines.append(f"Rename the columns ({nearest.effect_allele}), or leave --format out to have it recognised.")
    return "\n".join(lines)
