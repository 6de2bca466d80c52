"""The genome's sequence around every variant of an LD store, with the reference and the alternative allele."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from deepwas.errors import InputError
from deepwas.files import refuse_overwrite, require_file, require_parent
from deepwas.genome import chromosome_names, chromosome_rank, require_build
from deepwas.ld.store import LDStore
from deepwas.tally import Tally
from deepwas.tracks.bins import chromosome_runs, stretches, window_starts
from deepwas.tracks.options import SequenceOptions
from deepwas.tracks.store import WindowFile, open_windows
from deepwas.tracks.write import Advance, describe_inputs, fill, partial_file, piece_rows, write_end

__all__ = ["OTHER", "encode_bases", "extract_sequence"]

OTHER = 4  # any base but A, C, G and T, and what lies beyond the ends of a chromosome
_CODES = np.full(256, OTHER, np.uint8)
for _code, _base in enumerate("ACGT"):
    _CODES[[ord(_base), ord(_base.lower())]] = _code
_COMPLEMENT = np.array([3, 2, 1, 0, OTHER], np.uint8)


def encode_bases(text: str) -> npt.NDArray[np.uint8]:
    """Codes of bases, (length,): 0 to 3 for A, C, G, T of either case, 4 for anything else."""
    return _CODES[np.frombuffer(text.encode("ascii", "replace"), np.uint8)]


def extract_sequence(
    store: LDStore,
    out: str | os.PathLike[str],
    *,
    fasta: str | os.PathLike[str],
    options: SequenceOptions | None = None,
    progress: Advance | None = None,
) -> WindowFile:
    """Write the sequence around the variants of an LD store, (M, 2, bases) uint8; returns the file, opened.

    fasta: the reference genome of the store's build, plain or compressed by bgzip; its index FILE.fai is made beside it
        where there is none.  progress(done, total): in variants.

    Window of W bases, x the variant's position: [:, 0] is the reference from x - W // 2 on. [:, 1] is the same with the
    alternative allele: the bases before x, the alternative, and the reference from behind the reference allele on, cut
    to W. So what stands before the variant stays in place, and an insertion or deletion moves what follows.

    The reference allele is the one that the FASTA file has at the position; `orientation` says which of A1 and A2 is
    the other. Where both fit, as insertions and deletions in repeats do, it is taken to be the one of A1 and A2 that is
    the reference for most other variants. Where neither fits, or an allele is not of A, C, G, T, the window of the
    alternative repeats the reference's and the orientation is 0. Each is counted; if neither fits for more than
    `options.max_mismatch` of the variants, InputError says so: another build or strand.

    Resumed and written as `extract_tracks` does.
    """
    options = options or SequenceOptions()
    target = require_parent(out)
    path = require_file(fasta, "a FASTA file of the reference genome")
    refuse_overwrite(target, [store.path, path])
    tally = Tally()
    shape = (store.n_variants, 2, options.bases)
    with _open_fasta(path) as genome:
        lengths = _checked_lengths(path, genome, store, options)
        inputs = describe_inputs([path])
        maker = _Maker(store, genome, lengths, options.bases, tally)
        identity = {
            "kind": "sequence",
            "ld_checksum": store.checksum,
            "inputs": inputs,
            "options": options.as_dict(),
            "piece_rows": piece_rows(2 * options.bases),
        }
        M = store.n_variants
        with partial_file(target, identity, 2 * options.bases * M) as handle:
            if "fits" not in handle:
                handle["fits"] = maker.fits(lambda done, _: progress(done, 2 * M) if progress is not None else None)
                handle.flush()
            orientation = _orientation(store, path, handle["fits"][:], options, tally)
            if "orientation" not in handle:
                handle["orientation"] = orientation
            fill(
                handle,
                shape,
                np.uint8,
                (1, 1),
                options.compression,
                lambda rows: maker.windows(rows, orientation),
                lambda done, _: progress(M + done, 2 * M) if progress is not None else None,
            )
            del handle["fits"]
            write_end(
                handle,
                {
                    "kind": "sequence",
                    "genome_build": store.genome_build,
                    "ld_checksum": store.checksum,
                    "names": ["reference", "alternative"],
                    "options": options.as_dict(),
                    "provenance": {"command": "extract_sequence", "inputs": inputs, "tally": tally.as_list()},
                },
            )
    return open_windows(target, store, kind="sequence")


@contextmanager
def _open_fasta(path: Path) -> Iterator[Any]:
    import pyfaidx

    try:
        genome = pyfaidx.Faidx(str(path), as_raw=True, strict_bounds=True)
    except ImportError as error:
        raise InputError(
            f"{path}: a compressed FASTA file is read with Biopython: pip install biopython, or unpack the file: "
            f"bgzip -d {path.name}"
        ) from error
    except pyfaidx.UnsupportedCompressionFormat as error:
        raise InputError(
            f"{path}: compressed, but not by bgzip, so that it cannot be read in places. "
            f"Unpack it, and compress it by bgzip if need be: gunzip {path.name}"
        ) from error
    except (pyfaidx.FastaIndexingError, pyfaidx.IndexNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read or indexed as FASTA ({error}). The index {path.name}.fai is written beside it: is "
            "the folder writable? If not, make it where it is: samtools faidx."
        ) from error
    try:
        yield genome
    finally:
        genome.close()


def _checked_lengths(path: Path, genome: Any, store: LDStore, options: SequenceOptions) -> dict[str, tuple[str, int]]:
    """Chromosome -> its name in the file and its bases; every chromosome of the store is there."""
    names = chromosome_names(path, genome.index)
    lengths = {plain: (name, int(genome.index[name].rlen)) for plain, name in names.items()}
    bare = sorted(set(store.variants["CHR"].unique()) - set(lengths), key=chromosome_rank)
    if bare:
        there = sorted(lengths, key=chromosome_rank)
        raise InputError(
            f"{path}: chromosome {', '.join(bare)} of the LD store is not there; found {', '.join(there) or 'none'}. "
            "Give the FASTA file of the whole genome."
        )
    if options.check_build:
        require_build(path, {plain: length for plain, (_, length) in lengths.items()}, store.genome_build)
    return lengths


class _Maker:
    """Reads the genome in stretches, and cuts windows for rows of the store."""

    def __init__(
        self, store: LDStore, genome: Any, lengths: dict[str, tuple[str, int]], bases: int, tally: Tally
    ) -> None:
        self._genome, self._lengths, self._bases = genome, lengths, bases
        variants = store.variants
        self._runs = chromosome_runs(variants)
        self._positions = variants["BP"].to_numpy().astype(np.int64)
        self._starts = window_starts(self._positions, bases)
        one, two = (variants[name].str.len_bytes() == 1 for name in ("A1", "A2"))
        self._single = (one & two).to_numpy()
        long = np.flatnonzero(~self._single)
        self._long = dict(zip(long.tolist(), variants[long].select("A1", "A2").rows(), strict=True))
        self._codes = [_first_codes(variants[name]) for name in ("A1", "A2")]
        self._longest = max(int(variants[name].str.len_bytes().max() or 1) for name in ("A1", "A2"))  # type: ignore[arg-type]
        for chromosome, rows in self._runs:
            length = lengths[chromosome][1]
            last = rows.stop - 1
            if self._positions[last] > length:
                raise InputError(
                    f"{store.path}: variant {variants['SNP'][last]} is at {self._positions[last]:,} on chromosome "
                    f"{chromosome}, which has {length:,} bases. Give a FASTA file of the LD store's genome build."
                )
            over = (self._starts[rows] < 0) | (self._starts[rows] + bases > length)
            if over.any():
                name = str(variants["SNP"][rows.start + int(over.argmax())])
                reason = "window reaches over the end of the chromosome; coded 4 there"
                tally.add("windows", "noted", reason, int(over.sum()), name)

    def _read(self, chromosome: str, low: int, high: int) -> npt.NDArray[np.uint8]:
        """Codes of the bases [low, high), 4 beyond the ends."""
        name, length = self._lengths[chromosome]
        first, last = max(low, 0), min(high, length)
        codes = np.full(high - low, OTHER, np.uint8)
        if first < last:
            text = self._genome.fetch(name, first + 1, last)
            if len(text) != last - first:
                raise InputError(
                    f"{self._genome.filename}: {len(text):,} bases of {name} where {last - first:,} are expected. "
                    "The file may be cut short, or its index out of date: remove the .fai file."
                )
            codes[first - low : last - low] = encode_bases(text)
        return codes

    def fits(self, progress: Advance) -> npt.NDArray[np.uint8]:
        """(M,): 1 where A1 is what the genome has, + 2 where A2 is, + 4 where an allele is not of A, C, G, T,
        + 8 where an allele fits the other strand.
        """
        M = len(self._positions)
        found = np.zeros(M, np.uint8)
        for stretch in stretches(self._runs, self._starts, self._bases, slice(0, M)):
            low = int(self._positions[stretch.rows.start]) - 1
            high = int(self._positions[stretch.rows.stop - 1]) + self._longest
            codes = self._read(stretch.chromosome, low, high)
            at = self._positions[stretch.rows] - 1 - low
            base = codes[at]
            here = found[stretch.rows]
            for bit, own in enumerate(self._codes):
                known = own[stretch.rows]
                here |= np.where((known == base) & (known < OTHER), np.uint8(1 << bit), np.uint8(0))
                here |= np.where(known == OTHER, np.uint8(4), np.uint8(0))
                other = (_COMPLEMENT[known] == base) & (known < OTHER)
                here |= np.where(other, np.uint8(8), np.uint8(0))
            for offset in np.flatnonzero(~self._single[stretch.rows]):
                here[offset] = self._fits_long(stretch.rows.start + int(offset), codes[at[offset] :])
            progress(stretch.rows.stop, M)
        return found

    def _fits_long(self, row: int, codes: npt.NDArray[np.uint8]) -> int:
        result = 0
        for bit, allele in enumerate(self._long[row]):
            own = encode_bases(allele)
            if not own.size or (own == OTHER).any():
                return 4
            there = codes[: own.size]
            result |= (1 << bit) * bool(np.array_equal(own, there))
        return result

    def windows(
        self, rows: slice, orientation: npt.NDArray[np.int8]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Windows (n, 2, bases) of the rows, and how many reach over an end."""
        W = self._bases
        out = np.empty((rows.stop - rows.start, 2, W), np.uint8)
        over = 0
        for stretch in stretches(self._runs, self._starts, W, rows):
            codes = self._read(stretch.chromosome, stretch.low, stretch.high + self._longest)
            here = slice(stretch.rows.start - rows.start, stretch.rows.stop - rows.start)
            starts = self._starts[stretch.rows]
            views = np.lib.stride_tricks.sliding_window_view(codes, W)
            out[here] = views[starts - stretch.low][:, None, :]
            over += int(((starts < 0) | (starts + W > self._lengths[stretch.chromosome][1])).sum())
            known = orientation[stretch.rows]
            alternative = np.where(known > 0, self._codes[0][stretch.rows], self._codes[1][stretch.rows])
            point = np.flatnonzero((known != 0) & self._single[stretch.rows])
            out[here.start + point, 1, W // 2] = alternative[point]
            for offset in np.flatnonzero((known != 0) & ~self._single[stretch.rows]):
                row = stretch.rows.start + int(offset)
                one, two = self._long[row]
                other, reference = (one, two) if known[offset] > 0 else (two, one)
                left = int(starts[offset]) - stretch.low
                behind = left + W // 2 + len(reference)
                changed = np.concatenate([codes[left : left + W // 2], encode_bases(other), codes[behind : behind + W]])
                out[here.start + offset, 1] = changed[:W]
        return out, np.array([[over]], np.int64)


def _first_codes(alleles: pl.Series) -> npt.NDArray[np.uint8]:
    """Code of each allele's first base, (M,)."""
    different = alleles.unique()
    codes = pl.Series([int(encode_bases(text)[0]) if text else OTHER for text in different], dtype=pl.UInt8)
    return alleles.replace_strict(different, codes, return_dtype=pl.UInt8).to_numpy()


def _orientation(
    store: LDStore, path: Path, fits: npt.NDArray[np.uint8], options: SequenceOptions, tally: Tally
) -> npt.NDArray[np.int8]:
    """(M,): 1 where A1 is the alternative allele, -1 where A2 is, 0 unknown; counted, and refused if too few fit."""
    variants = store.variants
    match, unread = fits & 3, (fits & 4) > 0
    first, second, both = (match == 1) & ~unread, (match == 2) & ~unread, (match == 3) & ~unread
    neither = (match == 0) & ~unread

    def add(action: Any, reason: str, chosen: npt.NDArray[np.bool_]) -> None:
        if chosen.any():
            tally.add("alleles", action, reason, int(chosen.sum()), str(variants["SNP"][int(chosen.argmax())]))

    add("kept", "A2 is the reference, A1 the alternative", second)
    add("kept", "A1 is the reference, A2 the alternative", first)
    common = int(first.sum() <= second.sum())
    add("kept", f"both alleles fit the reference, A{common + 1} taken as it", both)
    add("noted", "neither allele is the reference's: no alternative window", neither)
    add("noted", "an allele is not of A, C, G, T: no alternative window", unread)
    if neither.sum() > options.max_mismatch * len(fits):
        row = variants.row(int(neither.argmax()), named=True)
        turned = int((neither & ((fits & 8) > 0)).sum())
        raise InputError(
            f"{path}: for {int(neither.sum()):,} of {len(fits):,} variants neither allele is what this genome has "
            f"(first: {row['SNP']}, {row['A1']} and {row['A2']} at {row['CHR']}:{row['BP']}); {turned:,} of these fit "
            f"the other strand. The LD store is on {store.genome_build}: give its genome, or raise --max-mismatch "
            f"(now {options.max_mismatch})."
        )
    orientation = np.zeros(len(fits), np.int8)
    orientation[second | (both & (common == 1))] = 1
    orientation[first | (both & (common == 0))] = -1
    return orientation
