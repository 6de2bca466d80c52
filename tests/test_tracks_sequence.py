"""Sequence around variants: real FASTA files against text cut and joined, which allele is the reference, refusals."""

from __future__ import annotations

import contextlib
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from Bio import bgzf

from deepwas.cli import main
from deepwas.errors import InputError
from deepwas.genome import CHROMOSOME_LENGTHS
from deepwas.inputs import VariantInputs
from deepwas.ld import LDStore
from deepwas.tracks import SequenceOptions, bins, extract_sequence, open_windows, sequence, write
from tests.test_tracks import write_bigwig
from tests.windows import small_store

OWN = {"check_build": False}
W = 20


def random_genome(seed: int = 0) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    genome = {name: "".join(rng.choice(list("ACGTacgt"), size)) for name, size in (("chr1", 700), ("chr2", 420))}
    genome["chr1"] = genome["chr1"][:100] + "N" * 7 + genome["chr1"][107:300] + "CAAAAG" + genome["chr1"][306:]
    return genome


GENOME = random_genome()


def write_fasta(path: Path, genome: dict[str, str], line: int = 60, compress: bool = False) -> Path:
    text = "".join(
        f">{name} a description\n" + "".join(s[i : i + line] + "\n" for i in range(0, len(s), line))
        for name, s in genome.items()
    )
    if compress:
        with bgzf.open(str(path), "wb") as handle:
            handle.write(text.encode())
    else:
        path.write_text(text)
    return path


def base(chromosome: str, position: int, count: int = 1) -> str:
    return GENOME[f"chr{chromosome}"][position - 1 : position - 1 + count].upper()


def other(letter: str) -> str:
    return "ACGT"["ACGT".index(letter) - 1]


# (chromosome, position, reference, alternative, whether A1 is the alternative)
VARIANTS = [
    ("1", 1, base("1", 1), other(base("1", 1)), True),
    ("1", 3, base("1", 3), other(base("1", 3)), False),
    ("1", 98, base("1", 98), other(base("1", 98)), True),
    ("1", 250, base("1", 250, 4), base("1", 250), True),  # a deletion
    ("1", 260, base("1", 260), base("1", 260) + "GATTACA", True),  # an insertion
    ("1", 270, base("1", 270, 3), "".join(other(x) for x in base("1", 270, 3)), False),  # three bases at once
    ("1", 280, base("1", 280), base("1", 280) + "T" * 40, True),  # longer than the window
    ("1", 302, "A", "AA", True),  # in CAAAAG, where both fit
    ("1", 690, base("1", 690, 5), base("1", 690), True),
    ("1", 700, base("1", 700), other(base("1", 700)), True),
    ("2", 30, base("2", 30), other(base("2", 30)), True),
    ("2", 420, base("2", 420), other(base("2", 420)), False),
]


def allele_pairs() -> list[tuple[str, str]]:
    return [(alt, ref) if first else (ref, alt) for _, _, ref, alt, first in VARIANTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sequence")


@pytest.fixture(scope="module")
def store(folder) -> LDStore:
    return small_store(folder / "ld.h5", [v[0] for v in VARIANTS], [v[1] for v in VARIANTS], allele_pairs())


@pytest.fixture(scope="module")
def fasta(folder) -> Path:
    return write_fasta(folder / "genome.fa", GENOME)


def codes(text: str) -> list[int]:
    return ["ACGT".find(x) if x in "ACGT" else 4 for x in text.upper()]


def slow_window(chromosome: str, position: int, reference: str, alternative: str, width: int) -> list[list[int]]:
    """Both windows of one variant, by cutting and joining text."""
    text = "-" * 1000 + GENOME[f"chr{chromosome}"] + "-" * 1000
    at = 1000 + position - 1
    left = text[at - width // 2 : at]
    plain = left + text[at:]
    changed = left + alternative + text[at + len(reference) :]
    return [codes(plain[:width]), codes(changed[:width])]


def slow(width: int) -> np.ndarray:
    return np.array([slow_window(c, p, ref, alt, width) for c, p, ref, alt, _ in VARIANTS], np.uint8)


@pytest.mark.parametrize("width", [W, 21, 2, 64])
def test_windows_are_the_text_cut_and_joined(store, fasta, width, tmp_path):
    options = SequenceOptions(bases=width, **OWN)
    with extract_sequence(store, tmp_path / "s.h5", fasta=fasta, options=options) as windows:
        assert (windows.shape, windows.dtype) == ((len(VARIANTS), 2, width), np.uint8)
        assert np.array_equal(windows[:], slow(width))
        assert windows.orientation.tolist() == [1 if v[4] else -1 for v in VARIANTS]
        assert windows.names == ("reference", "alternative")
        assert np.array_equal(windows[2:5][:, 0, width // 2], [codes(v[2])[0] for v in VARIANTS[2:5]])
        inputs = VariantInputs(np.zeros((len(VARIANTS), 0), np.float32), sequence=windows)
        assert inputs.sizes.sequence == width
        windows.verify()


def test_small_stretches_and_pieces_give_the_same(store, fasta, tmp_path, monkeypatch):
    monkeypatch.setattr(bins, "GAP", 0)
    monkeypatch.setattr(bins, "LONGEST", 30)
    monkeypatch.setattr(write, "PIECE_BYTES", 3 * 2 * W)
    monkeypatch.setattr(write, "CHUNK_BYTES", 2 * W)
    options = SequenceOptions(bases=W, compression="lzf", **OWN)
    with extract_sequence(store, tmp_path / "s.h5", fasta=fasta, options=options) as windows:
        assert np.array_equal(windows[:], slow(W))


def test_bgzip_reads_as_plain(store, folder, tmp_path):
    packed = write_fasta(tmp_path / "genome.fa.gz", GENOME, compress=True)
    with extract_sequence(store, tmp_path / "s.h5", fasta=packed, options=SequenceOptions(bases=W, **OWN)) as windows:
        assert np.array_equal(windows[:], slow(W))
    plain = tmp_path / "plain.fa.gz"
    plain.write_bytes(gzip.compress(write_fasta(tmp_path / "p.fa", GENOME).read_bytes()))
    with pytest.raises(InputError, match="compressed, but not by bgzip"):
        extract_sequence(store, tmp_path / "t.h5", fasta=plain, options=SequenceOptions(bases=W, **OWN))


def counted(windows) -> dict[str, int]:
    return {row["reason"]: row["count"] for row in windows.provenance["tally"]}


def test_where_both_alleles_fit_the_commoner_side_is_the_reference(fasta, tmp_path):
    repeat = [("1", 302, "AA", "A")]
    for turn in (False, True):
        chosen = [v for v in VARIANTS if v[1] != 302][:3] + repeat
        pairs = [(v[2], v[3]) if turn else (v[3], v[2]) for v in chosen[:3]] + [("A", "AA")]
        with (
            small_store(tmp_path / f"{turn}.h5", [v[0] for v in chosen], [v[1] for v in chosen], pairs) as store,
            extract_sequence(store, tmp_path / "s.h5", fasta=fasta, options=SequenceOptions(bases=W, **OWN)) as windows,
        ):
            assert windows.orientation[3] == (-1 if turn else 1)
            reference, alternative = pairs[3] if turn else pairs[3][::-1]
            assert np.array_equal(windows[3:][0], slow_window("1", 302, reference, alternative, W))
            assert counted(windows)[f"both alleles fit the reference, A{1 if turn else 2} taken as it"] == 1


def test_alleles_that_do_not_fit_are_counted_or_refused(fasta, tmp_path):
    here = base("2", 200)
    turned = {"A": "T", "C": "G", "G": "C", "T": "A"}[base("2", 220)]
    spare = [x for x in "ACGT" if x not in (base("2", 220), turned)]
    alleles = [
        (here, other(here)),
        tuple(x for x in "ACGT" if x != base("2", 210))[:2],
        (turned, spare[0]),
        ("<INS:ME>", base("2", 230)),
        ("ACGTN", base("2", 240)),
        ("A", "C"),
    ]
    names, positions = ["2"] * 5, [200, 210, 220, 230, 240]
    with small_store(tmp_path / "ld.h5", ["1", *names], [103, *positions], [alleles[5], *alleles[:5]]) as store:
        options = SequenceOptions(bases=W, max_mismatch=0.5, **OWN)
        with extract_sequence(store, tmp_path / "s.h5", fasta=fasta, options=options) as windows:
            assert windows.orientation.tolist() == [0, -1, 0, 0, 0, 0]
            found = windows[:]
            assert np.array_equal(found[[0, 2, 3, 4, 5], 0], found[[0, 2, 3, 4, 5], 1])
            assert np.array_equal(found[3, 0], slow_window("2", 220, "", "", W)[0])
            assert counted(windows) == {
                "A1 is the reference, A2 the alternative": 1,
                "neither allele is the reference's: no alternative window": 3,
                "an allele is not of A, C, G, T: no alternative window": 2,
            }
        match = r"for 3 of 6 variants neither allele .*\(first: v0, A and C at 1:103\); 1 of these fit the other strand"
        with pytest.raises(InputError, match=match):
            extract_sequence(
                store, tmp_path / "t.h5", fasta=fasta, options=SequenceOptions(bases=W, max_mismatch=0.4, **OWN)
            )
    assert not list(tmp_path.glob(".t*")) + list(tmp_path.glob("t*"))


class _StopError(RuntimeError):
    """What a test interrupts with."""


@pytest.mark.parametrize("when", [3, len(VARIANTS) + 8])
def test_an_interrupted_extraction_goes_on_to_the_same_file(store, fasta, when, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "PIECE_BYTES", 4 * 2 * W)
    monkeypatch.setattr(write, "CHUNK_BYTES", 2 * W)
    options = SequenceOptions(bases=W, **OWN)
    whole = extract_sequence(store, tmp_path / "whole.h5", fasta=fasta, options=options)
    out = tmp_path / "s.h5"

    def stop(done: int, total: int) -> None:
        assert total == 2 * len(VARIANTS)
        if done >= when:
            raise _StopError

    with pytest.raises(_StopError):
        extract_sequence(store, out, fasta=fasta, options=options, progress=stop)
    assert not out.exists()
    made = []
    plain = sequence._Maker.windows
    monkeypatch.setattr(
        sequence._Maker, "windows", lambda self, rows, o: (made.append(rows.start), plain(self, rows, o))[1]
    )
    with whole, extract_sequence(store, out, fasta=fasta, options=options) as resumed:
        assert made == ([8] if when > len(VARIANTS) else [0, 4, 8])
        assert resumed.checksum == whole.checksum
        assert resumed.provenance == whole.provenance
        for name in ("windows", "orientation", "digests", "counts"):
            assert np.array_equal(resumed._handle[name][:], whole._handle[name][:]), name
        assert "fits" not in resumed._handle
    assert not list(tmp_path.glob(".*"))


def test_genomes_that_cannot_serve_are_refused(store, fasta, tmp_path):
    def refused(match: str, file: Path, **fields) -> None:
        with pytest.raises(InputError, match=match):
            extract_sequence(store, tmp_path / "s.h5", fasta=file, options=SequenceOptions(bases=W, **fields))
        assert not (tmp_path / "s.h5").exists()
        assert not list(tmp_path.glob(".*"))

    refused("chromosome 1 has 700 bases, not 249,250,621 as on GRCh37.* --no-check-build", fasta)
    refused("no such file", tmp_path / "gone.fa")
    refused(
        "chromosome 2 of the LD store is not there; found 1", write_fasta(tmp_path / "1.fa", {"1": "A" * 700}), **OWN
    )
    refused("variant v9 is at 700", write_fasta(tmp_path / "short.fa", {"1": "A" * 650, "2": "C" * 420}), **OWN)
    odd = tmp_path / "odd.fa"
    odd.write_text(">1\nACGT\nACGTAC\nAC\n")
    refused("cannot be read or indexed as FASTA", odd, **OWN)
    refused("neither allele is what this genome has", write_fasta(tmp_path / "w.fa", random_genome(9)), **OWN)


def test_a_genome_of_another_build_is_told_by_its_lengths(tmp_path):
    """An index as samtools makes it serves: the file itself is read only for its sequence."""
    lengths = CHROMOSOME_LENGTHS["GRCh38"]
    fasta, index = tmp_path / "38.fa", tmp_path / "38.fa.fai"
    fasta.write_text(">chr21\nA\n>chr22\nA\n")
    index.write_text(f"chr21\t{lengths['21']}\t7\t60\t61\nchr22\t{lengths['22']}\t16\t60\t61\n")
    with (
        small_store(tmp_path / "ld.h5", ["21", "22"], [10, 10]) as store,
        pytest.raises(InputError, match="lengths of GRCh38, the LD store is on GRCh37"),
    ):
        extract_sequence(store, tmp_path / "s.h5", fasta=fasta)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"bases": 1}, "bases=1"), ({"max_mismatch": 2.0}, "max_mismatch"), ({"compression": "zip"}, "none, lzf")],
)
def test_options_check_themselves(fields, message):
    with pytest.raises(InputError, match=message):
        SequenceOptions(**fields)


def command(*arguments: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        main([str(x) for x in arguments])
    return end.value.code or 0, out.getvalue(), err.getvalue()


def test_the_commands_write_what_the_functions_do(store, fasta, tmp_path):
    out = tmp_path / "s.h5"
    given = ["sequence", "--ld", store.path, "--fasta", fasta, "--bases", W, "--out", out]
    code, _, err = command(*given)
    assert code == 2
    assert "--no-check-build" in err
    code, _, err = command(*given, "--no-check-build")
    assert code == 0, err
    assert "sequence, 12 x 2 x 20 (variants first), on GRCh37" in err
    assert "A2 is the reference, A1 the alternative" in err
    with open_windows(out, store, kind="sequence") as windows:
        assert np.array_equal(windows[:], slow(W))

    lengths = CHROMOSOME_LENGTHS["GRCh37"]
    signal = write_bigwig(
        tmp_path / "a.bw",
        {name: [(0, 150, 1.0), (150, 500, 2.0)] for name in ("1", "2")},
        {name: lengths[name] for name in ("1", "2")},
    )
    peaks = tmp_path / "p.bed"
    peaks.write_text("chr1\t10\t300\nchr2\t10\t50\n")
    out = tmp_path / "t.h5"
    given = ["tracks", "--ld", store.path, "--bigwig", f"dnase={signal}", "--bed", f"peaks={peaks}", "--out", out]
    code, said, err = command(*given, "--bins", 5, "--resolution", 3, "--clip", 0, "--transform", "log1p")
    assert code == 0, err
    assert "tracks, 12 x 5 x 2 (variants first), on GRCh37" in err
    assert "windows reaches" not in err
    assert [line.split()[0] for line in said.splitlines()] == ["track", "dnase", "peaks"]
    with open_windows(out, store, kind="tracks") as windows:
        assert windows.options["clip"] is None
        assert windows.options["transform"] == "log1p"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bigwig", "signal.bw"], "give a name and a file"),
        (["--bigwig", "s=gone.bw"], "no such file"),
        ([], "no track is given"),
        (["--bed", "p={here}", "--bed", "p={here}"], "the name p is given twice"),
        (["--bed", "p={here}", "--missing", "nan"], "give one of zero, mean"),
    ],
)
def test_wrong_arguments_say_what_to_type(arguments, says, store, tmp_path):
    here = tmp_path / "here.bed"
    here.write_text("1\t1\t2\n")
    code, _, err = command(
        "tracks", "--ld", store.path, "--out", tmp_path / "t.h5", *(a.format(here=here) for a in arguments)
    )
    assert code == 2
    assert says in err
    assert [p.name for p in tmp_path.iterdir()] == ["here.bed"]
