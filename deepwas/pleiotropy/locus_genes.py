"""Genes of a region from a file: GTF, GFF3, BED, or a UCSC table of genes (refGene, refFlat, genePred), gzip or not."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterable, Iterator

import polars as pl

from deepwas.errors import InputError
from deepwas.files import kind_of, require_file
from deepwas.genome import normalise_chromosomes

__all__ = ["genes_of_region"]

_GENES = ("gene", "ncRNA_gene", "pseudogene")
_TRANSCRIPTS = ("transcript", "mRNA")
_NAMES = ("gene_name", "Name", "gene", "gene_id", "ID")
_BIOTYPES = ("gene_type", "gene_biotype", "biotype")
_HEADINGS = ("chr", "chrom", "chromosome", "bin", "name", "genename")
_SHOWN = 20

# CHR START END (0-based, half-open) STRAND NAME BIOTYPE, and whether it is a whole gene.
Record = tuple[str, int, int, str, str, str, bool]
Parser = Callable[[list[str]], Record | None]


def genes_of_region(path: str | os.PathLike[str], chromosome: str, start: int, stop: int) -> pl.DataFrame:
    """NAME START STOP STRAND CODING of the genes that overlap a region, in order of START.

    START, STOP: 1-based, both ends counted.  CODING: False where the file says that the gene is not protein-coding.
    Of a GTF or GFF3 the genes are taken, and transcripts only where it has none; transcripts of one name, strand and
    place are one gene. The file is read line by line and never held. Raises InputError for a file of another kind, or
    without a gene on the chromosome: its genome build or naming is another then.
    """
    named: dict[str, str | None] = {}
    found: list[Record] = []
    whole = False
    for record in _records(path):
        if record[0] not in named:
            named[record[0]] = normalise_chromosomes(pl.Series([record[0]], dtype=pl.String))[0]
        if named[record[0]] == chromosome:
            whole = whole or record[6]
            found.append(record)
    if not found:
        others = ", ".join(list(named)[:_SHOWN]) or "none"
        raise InputError(
            f"{path}: no gene of chromosome {chromosome}; sequences in the file: {others}. Is it complete?"
        )
    kept = [x for x in found if (x[6] or not whole) and x[1] < stop and x[2] >= start]
    rows = _merged(kept)
    schema = {"NAME": pl.String, "START": pl.Int64, "STOP": pl.Int64, "STRAND": pl.String, "CODING": pl.Boolean}
    return pl.DataFrame(rows, schema=schema, orient="row").sort("START", "STOP", "NAME")


def _merged(records: Iterable[Record]) -> list[tuple[str, int, int, str, bool]]:
    """Overlapping records of one name and strand as one."""
    out: list[tuple[str, int, int, str, bool]] = []
    for _, start, end, strand, name, biotype, _ in sorted(records, key=lambda x: (x[4], x[3], x[1])):
        coding = biotype in ("", "protein_coding")
        if out and out[-1][0] == name and out[-1][3] == strand and start < out[-1][2]:
            last = out[-1]
            out[-1] = (name, last[1], max(end, last[2]), strand, coding or last[4])
        else:
            out.append((name, start + 1, end, strand, coding))
    return out


def _records(path: str | os.PathLike[str]) -> Iterator[Record]:
    parse: Parser | None = None
    for number, line in _lines(path):
        fields = line.split("\t") if "\t" in line else line.split()
        if parse is None:
            parse = _parser(fields)
            if parse is None:
                if number == 1 and fields[0].lower() in _HEADINGS:
                    continue
                raise InputError(
                    f"{path}: line {number} is not of a file of genes: {line[:60]!r}. Give a GTF, GFF3, BED, or a UCSC "
                    "table of genes such as refGene.txt.gz."
                )
        try:
            record = parse(fields)
        except (ValueError, IndexError) as error:
            raise InputError(
                f"{path}: line {number}: {line[:60]!r} is unlike the lines before it ({error})."
            ) from error
        if record is not None:
            yield record


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Numbered lines without comments and empty ones."""
    found = require_file(path, "a file of genes")
    with open(found, "rb") as raw:
        head = raw.read(64)
    packed = head[:2] == b"\x1f\x8b"
    if not packed and b"\x00" in head:
        raise InputError(f"{path}: this is {kind_of(head)}, a text file of genes expected.")
    opener = gzip.open if packed else open
    try:
        with opener(found, "rt", encoding="utf-8", errors="replace") as handle:
            for number, text in enumerate(handle, start=1):
                line = text.rstrip("\r\n")
                if line.startswith("##FASTA"):  # what follows in a GFF3 are sequences
                    return
                if line and not line.startswith(("#", "track", "browser")):
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}). Copy or download the file again.") from error


def _parser(fields: list[str]) -> Parser | None:
    """How to read lines like this one; None if it is of no known kind."""

    def whole(*places: int) -> bool:
        return len(fields) > max(places) and all(fields[x].isdigit() for x in places)

    def strand(place: int) -> bool:
        return len(fields) > place and fields[place] in ("+", "-", ".")

    if whole(1, 2) and not strand(2):
        return _bed
    if len(fields) >= 9 and whole(3, 4) and strand(6):
        return _gff
    if strand(3) and whole(4, 5):
        # refGene has a bin first and the gene's name in column 13; refFlat the gene's name first.
        return _table(2, fields[0].isdigit() and len(fields) > 12, 12)
    if strand(2) and whole(3, 4):
        return _table(1, len(fields) > 11, 11)
    return None


def _bed(fields: list[str]) -> Record:
    name = fields[3] if len(fields) > 3 else f"{fields[1]}-{fields[2]}"
    strand = fields[5] if len(fields) > 5 and fields[5] in ("+", "-") else "."
    return fields[0], int(fields[1]), int(fields[2]), strand, name, "", True


def _gff(fields: list[str]) -> Record | None:
    if fields[2] not in _GENES and fields[2] not in _TRANSCRIPTS:
        return None
    given = dict(_attributes(fields[8]))
    name = next((given[x] for x in _NAMES if x in given), "")
    biotype = next((given[x] for x in _BIOTYPES if x in given), "")
    start, end = int(fields[3]) - 1, int(fields[4])
    return fields[0], start, end, fields[6], name.removeprefix("gene:"), biotype, fields[2] in _GENES


def _attributes(text: str) -> Iterator[tuple[str, str]]:
    """`gene_name "APOE"; level 2` of a GTF, `ID=x;Name=APOE` of a GFF3."""
    for part in text.split(";"):
        words = part.strip()
        place = min((at for at in (words.find("="), words.find(" ")) if at > 0), default=-1)
        if place > 0:
            yield words[:place], words[place + 1 :].strip().strip('"')


def _table(chromosome: int, has_name: bool, name: int) -> Parser:
    def parse(fields: list[str]) -> Record:
        start, end = int(fields[chromosome + 2]), int(fields[chromosome + 3])
        called = fields[name] if has_name else fields[0]
        return fields[chromosome], start, end, fields[chromosome + 1], called, "", True

    return parse
