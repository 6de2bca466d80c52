"""Scores of sequence models and DNA language models, set on the alleles of an LD store.

A score of the alternative allele against the reference one belongs to an allele: where the store counts the reference
allele (its A1), the score changes sign. Two things come of it: |score|, an annotation as any other, and the signed
score, which says in which direction a variant is predicted to act (`deepwas.test_direction`). Columns named as unsigned
(conservation, embeddings of the place) do not flip and are annotations as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepwas.annotations.features import Annotations, check_variants
from deepwas.annotations.reduce import Moments, Reduction
from deepwas.annotations.score_files import ScoreFile, open_scores
from deepwas.annotations.score_matching import Aligned, ScoreOptions, align, no_match
from deepwas.annotations.signed import SignedScores
from deepwas.errors import InputError
from deepwas.files import sha256
from deepwas.tally import Tally

__all__ = ["ScoreOptions", "Scores", "read_scores"]

PathLike = str | os.PathLike[str]
Given = PathLike | Sequence[PathLike] | Mapping[str, PathLike | Sequence[PathLike]]
Progress = Callable[[str, int, int], None]

_STEP = "scores"


@dataclass(frozen=True)
class Scores:
    """What `read_scores` made.

    annotations: |score| and unsigned columns, or their components; None if not asked for.
    signed: signed scores, or their components; None if not asked for.
    reductions: the components' loadings, by name: 'absolute' or 'signed', after 'NAME.' where scores were named.
    tally: what was matched, flipped, missing and dropped.
    """

    annotations: Annotations | None
    signed: SignedScores | None
    reductions: dict[str, Reduction]
    tally: Tally


def read_scores(
    paths: Given,
    variants: pl.DataFrame,
    *,
    options: ScoreOptions | None = None,
    loadings: Sequence[Reduction] = (),
    progress: Progress | None = None,
) -> Scores:
    """Scores of the variants of an LD store, on its alleles; rows are in its order.

    paths: one file or several, see `deepwas.annotations.score_files.open_scores`; or name -> file(s), the name then
        stands before the columns'. @ in a file name stands for the chromosome. Files with the same columns are parts
        of one table; others add columns.
    variants: the store's, with SNP CHR BP A1 A2; A1 is the allele it counts.
    loadings: components fitted before, applied as they are to the table that has their columns.
    progress: called as progress(what, done, total), in rows.

    A variant is matched by place and alleles, in either order, SNPs on either strand too; its score changes sign where
    A1 is the file's reference allele. Rows for the same variant count once if they agree and are an error if not.
    Components: of signed scores uncentred, missing values 0; of the others centred, missing values the mean; each
    table's own. See `deepwas.annotations.reduce`.

    Memory: a piece of a file, the results (M, p) float32, and with `pca` p^2 float64; files are read once more for
    components. Raises InputError when nothing matches, when positions are of another genome build, and for what is
    wrong in a file.
    """
    options = options or ScoreOptions()
    if options.pca is not None and loadings:
        raise InputError("give either pca, to fit components, or loadings fitted before.")
    panel = check_variants(variants)
    tally = Tally()
    opened = _tables(paths, panel, options)
    _check_unsigned(options.unsigned, opened)
    tables = [_Table.of(prefix, files, panel, options, tally) for prefix, files in opened]
    report = progress or (lambda *_: None)
    made: dict[str, list[tuple[tuple[str, ...], NDArray[np.float32], dict[str, str]]]] = {"absolute": [], "signed": []}
    reductions: dict[str, Reduction] = {}
    for table in tables:
        for kind, found in table.make(options, loadings, panel.height, tally, report).items():
            made[kind].append(found.columns)
            if found.reduction is not None:
                reductions[table.key(kind)] = found.reduction
    for given in loadings:
        if not any(set(given.names) == set(r.names) and given.signed == r.signed for r in reductions.values()):
            raise InputError(
                f"loadings of {len(given.names):,} {'signed' if given.signed else 'absolute'} scores ({given.names[0]} "
                "...): no table has just these columns, or that kind is not asked for. Leave them out, or give the "
                "same unsigned columns as when they were fitted."
            )
    files = {str(part.file.path): sha256(part.file.path) for table in tables for part in table.parts}
    results: dict[str, Any] = {}
    for kind, parts in made.items():
        results[kind] = None
        if parts:
            names = tuple(name for part in parts for name in part[0])
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise InputError(
                    f"score {', '.join(twice[:5])} comes from two tables. Name them: --scores NAME=FILE, in Python "
                    "{'name': file}."
                )
            values = parts[0][1] if len(parts) == 1 else np.concatenate([part[1] for part in parts], axis=1)
            sources = {name: text for part in parts for name, text in part[2].items()}
            build = Annotations if kind == "absolute" else SignedScores
            results[kind] = build(names, values, panel, sources, files, tally)
    return Scores(results["absolute"], results["signed"], reductions, tally)


def _tables(paths: Given, panel: pl.DataFrame, options: ScoreOptions) -> list[tuple[str, list[ScoreFile]]]:
    """The files, opened, those with the same columns together; (name or '', parts)."""
    named: list[tuple[str, Any]] = list(paths.items()) if isinstance(paths, Mapping) else [("", paths)]
    tables: list[tuple[str, list[ScoreFile]]] = []
    for name, given in named:
        several = [given] if isinstance(given, str | os.PathLike) else list(given)
        for path in several:
            chromosomes = panel["CHR"].unique(maintain_order=True) if "@" in Path(path).name else [""]
            for chromosome in chromosomes:
                where = Path(path).with_name(Path(path).name.replace("@", chromosome))
                opened = open_scores(where, matrix=options.matrix, columns=options.columns)
                same = [parts for own, parts in tables if own == name and set(parts[0].names) == set(opened.names)]
                if same:
                    same[0].append(opened)
                else:
                    tables.append((name, [opened]))
    if not tables:
        raise InputError("read_scores: no file given.")
    return tables


def _check_unsigned(patterns: Sequence[str], tables: Sequence[tuple[str, list[ScoreFile]]]) -> None:
    """Each pattern must fit a column: one misspelt would turn scores that have no sign."""
    names = list(dict.fromkeys(name for _, files in tables for name in files[0].names))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = " ".join(names[:12]) + (" ..." if len(names) > 12 else "")
            where = ", ".join(str(files[0].path) for _, files in tables[:3]) + (" ..." if len(tables) > 3 else "")
            raise InputError(f"{where}: no score column fits the unsigned {pattern!r}; those used are {shown}.")


class _Made:
    """Columns of one kind from one table, and what reduced them."""

    def __init__(self, names: Sequence[str], values: NDArray[np.float32], text: str, reduction: Reduction | None):
        self.columns = tuple(names), values, {name: f"{name}: {text}" for name in names}
        self.reduction = reduction


@dataclass(frozen=True)
class _Table:
    """Files with the same score columns, aligned. prefix: the name given, or ''."""

    prefix: str
    parts: list[Aligned] = field(repr=False)

    @classmethod
    def of(
        cls, prefix: str, files: Sequence[ScoreFile], panel: pl.DataFrame, options: ScoreOptions, tally: Tally
    ) -> _Table:
        seen = np.zeros(panel.height, dtype=bool)
        parts = []
        for file in files:
            part = align(file, panel, options, tally)
            twice = part.variant[seen[part.variant]]
            if len(twice):
                raise InputError(
                    f"{file.path}: {len(twice):,} variants (first: {panel['SNP'][int(twice[0])]}) stand in "
                    f"{files[0].path} or another file with the same columns too. Give each variant once, or name the "
                    "files apart: --scores NAME=FILE, in Python {'name': file}."
                )
            seen[part.variant] = True
            parts.append(part)
        if not seen.any():
            raise InputError(no_match(files[0], panel, options))
        if not seen.all():
            first = str(panel["SNP"][int((~seen).argmax())])
            what = prefix or files[0].path.name
            tally.add(_STEP, "noted", f"missing: variants without a row in {what}", int((~seen).sum()), first)
        return cls(prefix, parts)

    @property
    def names(self) -> tuple[str, ...]:
        return self.parts[0].file.names

    @property
    def says(self) -> str:
        """The files, in words."""
        first = self.parts[0].file.path.name
        return first if len(self.parts) == 1 else f"{first} and {len(self.parts) - 1} more"

    def key(self, kind: str) -> str:
        """The name of its loadings of a kind."""
        return f"{self.prefix}.{kind}" if self.prefix else kind

    def label(self, name: str) -> str:
        return f"{self.prefix}:{name}" if self.prefix else name

    def make(
        self,
        options: ScoreOptions,
        loadings: Sequence[Reduction],
        height: int,
        tally: Tally,
        progress: Progress,
    ) -> dict[str, _Made]:
        """Columns or components of the kinds asked for."""
        unsigned = options.without_sign(self.names)
        names = {
            "absolute": list(self.names),
            "signed": [n for n, u in zip(self.names, unsigned, strict=True) if not u],
        }
        asked = [kind for kind in names if options.make in (kind, "both")]
        if options.make == "signed" and not names["signed"]:
            raise InputError(f"{self.says}: every column is named unsigned, so that none has a direction.")
        kinds = [kind for kind in asked if names[kind]]

        def of_kind(kind: str, sign: NDArray[np.int8], values: NDArray[np.float32]) -> NDArray[np.float32]:
            if kind == "absolute":
                return np.where(unsigned[None, :], values, np.abs(values))
            known = np.where(sign == 0, np.nan, sign).astype(np.float32)
            return values[:, ~unsigned] * known[:, None]

        reductions: dict[str, Reduction | None] = dict.fromkeys(kinds)
        if options.pca is not None:
            moments = {kind: Moments(len(names[kind])) for kind in kinds}
            for sign, _, values in self._stream("fitting components of", options, progress):
                for kind in kinds:
                    moments[kind].add(of_kind(kind, sign, values))
            for kind in kinds:
                found = Reduction.fit(moments[kind], names[kind], options.pca, signed=kind == "signed")
                reductions[kind] = found
                if found.constant:
                    text = f"{kind} score columns without variation, in no component"
                    tally.add(_STEP, "dropped", text, len(found.constant), found.constant[0])
        for given in loadings:
            kind = "signed" if given.signed else "absolute"
            if kind in kinds and set(given.names) == set(names[kind]):
                reductions[kind] = given.ordered(names[kind])
        out = {}
        for kind in kinds:
            r = reductions[kind]
            out[kind] = np.full((height, len(names[kind]) if r is None else r.loadings.shape[1]), np.nan, np.float32)
        for sign, variant, values in self._stream("reading", options, progress):
            for kind in kinds:
                found_values, r = of_kind(kind, sign, values), reductions[kind]
                out[kind][variant] = found_values if r is None else r.transform(found_values)
        made = {}
        for kind in kinds:
            r, values = reductions[kind], out.pop(kind)
            if r is None:
                stem = "" if kind == "signed" else "abs:"
                labels = [
                    self.label(n if kind == "signed" or unsigned[self.names.index(n)] else stem + n)
                    for n in names[kind]
                ]
                text = "signed score of A1" if kind == "signed" else "absolute or unsigned score"
                made[kind] = _Made(labels, values, f"{text}, {self.says}", None)
            else:
                stem = "signed_PC" if kind == "signed" else "abs_PC"
                labels = [self.label(f"{stem}{i + 1}") for i in range(values.shape[1])]
                text = f"component of {len(r.names):,} {kind} scores, {self.says}"
                made[kind] = _Made(labels, values, text, r)
        return made

    def _stream(
        self, what: str, options: ScoreOptions, progress: Progress
    ) -> Iterator[tuple[NDArray[np.int8], NDArray[np.int64], NDArray[np.float32]]]:
        """(sign, variant, raw values) of matched rows, in the column order of the first file."""
        total, done = sum(part.file.keys.height for part in self.parts), 0
        for part in self.parts:
            order = [part.file.names.index(name) for name in self.names]
            straight = order == list(range(len(order)))
            for rows, variant, sign, values in part.pieces(options):
                if len(variant):
                    yield sign, variant, values if straight else values[:, order]
                done += rows
                progress(f"{what} {self.says}", done, total)
