"""Interval and gene annotations against a slow, obvious version that looks at every base."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwas.annotations.genes import gene_annotations, merge_transcripts, read_genes
from deepwas.annotations.intervals import (
    count_overlapping,
    distance,
    fraction_covered,
    inside,
    interval_annotations,
    merge_intervals,
)
from deepwas.errors import InputError
from deepwas.tally import Tally

EXAMPLE = files("deepwas") / "data" / "example"

intervals = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 12)).map(lambda t: (t[0], t[0] + t[1])), min_size=1, max_size=8
)


def bases(spans: list[tuple[int, int]]) -> set[int]:
    """1-based positions that 0-based half-open spans hold, one by one."""
    return {base + 1 for start, end in spans for base in range(start, end)}


def arrays(spans: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    starts, ends = np.array(spans, dtype=np.int64).T
    return starts, ends


def make_variants(chromosomes: list[str], positions: list[int]) -> pl.DataFrame:
    names = [f"rs{i}" for i in range(len(positions))]
    return pl.DataFrame({"CHR": chromosomes, "SNP": names, "BP": positions, "A1": "A", "A2": "G"})


@given(intervals)
def test_merged_intervals_hold_the_same_bases_and_do_not_touch(spans):
    starts, ends = merge_intervals(*arrays(spans))
    assert bases(list(zip(starts, ends, strict=True))) == bases(spans)
    assert (starts[1:] > ends[:-1]).all()


@given(intervals, st.integers(0, 9))
def test_every_interval_feature_is_that_of_the_bases_one_by_one(spans, window):
    positions = np.arange(1, 90)
    merged = merge_intervals(*arrays(spans))
    held = bases(spans)
    for p, is_inside, far, share, count in zip(
        positions,
        inside(positions, *merged),
        distance(positions, *merged),
        fraction_covered(positions, *merged, window),
        count_overlapping(positions, *arrays(spans), window),
        strict=True,
    ):
        around = set(range(max(1, p - window), p + window + 1))
        assert is_inside == (p in held)
        assert far == min(abs(p - base) for base in held)
        assert share == pytest.approx(len(around & held) / len(around), abs=1e-15)
        assert count == sum(bool(around & bases([span])) for span in spans)


def test_bed_is_zero_based_and_half_open():
    merged = np.array([9]), np.array([20])  # the bases 10 to 20
    assert inside(np.array([9, 10, 20, 21]), *merged).tolist() == [False, True, True, False]
    assert distance(np.array([9, 10, 20, 21, 31]), *merged).tolist() == [1, 0, 0, 1, 11]


def test_columns_of_a_bed_file_follow_the_rows_of_the_variants(tmp_path):
    path = tmp_path / "peaks.bed"
    path.write_text("track name=peaks\nchr2\t99\t200\nchr1\t999\t2000\nchr1\t1500\t2500\n")
    variants = make_variants(["2", "1", "2", "1"], [100, 2501, 201, 1000])
    made = interval_annotations(
        variants, "peaks", path, ("inside", "fraction", "count", "distance"), 500, "error", Tally()
    )
    assert list(made) == ["peaks", "peaks_fraction", "peaks_count", "peaks_log_distance"]
    assert made["peaks"][0].tolist() == [1, 0, 0, 1]
    assert made["peaks"][0].dtype == np.float32
    np.testing.assert_allclose(made["peaks_fraction"][0], [101 / 600, 500 / 1001, 101 / 701, 501 / 1001], rtol=1e-6)
    np.testing.assert_allclose(made["peaks_count"][0], np.log1p([1, 1, 1, 1]), rtol=1e-6)
    np.testing.assert_allclose(made["peaks_log_distance"][0], np.log1p(np.array([0, 1, 1, 0]) / 1000), rtol=1e-6)


def test_gene_features_are_those_of_a_loop_over_genes(tmp_path):
    rng = np.random.default_rng(1)
    starts = rng.integers(0, 3_000_000, 60)
    ends = starts + rng.integers(1, 100_000, 60)
    strands = rng.choice(["+", "-"], 60)
    path = tmp_path / "genes.bed"
    lines = [f"chr5\t{s}\t{e}\tG{i}\t0\t{d}" for i, (s, e, d) in enumerate(zip(starts, ends, strands, strict=True))]
    path.write_text("\n".join(lines))
    positions = np.concatenate([rng.integers(1, 3_200_000, 200), starts, starts + 1, ends, ends + 1, starts + 501])
    positions = np.maximum(positions, 1)
    variants = make_variants(["5"] * positions.size, positions.tolist())
    made = gene_annotations(
        variants,
        path,
        promoter_upstream=2000,
        promoter_downstream=500,
        density_window=50_000,
        uncovered="error",
        tally=Tally(),
    )
    for row, p in enumerate(positions):
        to_start, to_gene, body, promoter, density = np.inf, np.inf, False, False, 0
        for start, end, strand in zip(starts, ends, strands, strict=True):
            tss = start + 1 if strand == "+" else end
            along = p - tss if strand == "+" else tss - p
            to_start = min(to_start, abs(p - tss))
            to_gene = min(to_gene, max(start + 1 - p, p - end, 0))
            body |= start < p <= end
            promoter |= -2000 <= along <= 500
            density += start + 1 <= p + 50_000 and end >= p - 50_000
        expected = [np.log1p(to_start / 1000), np.log1p(to_gene / 1000), float(body), float(promoter), density]
        assert [made[name][0][row] for name in made] == pytest.approx(expected, rel=1e-6)


def test_transcripts_of_a_gene_count_once_but_copies_and_unnamed_records_do_not_merge(tmp_path):
    path = tmp_path / "genes.bed"
    path.write_text(
        "chr1\t100\t200\tA\t0\t+\nchr1\t150\t300\tA\t0\t+\nchr1\t290\t310\tA\t0\t-\nchr1\t900\t950\tA\t0\t+\n"
        "chr1\t100\t200\t.\t0\t+\nchr1\t100\t200\t.\t0\t+\n"
    )
    merged = merge_transcripts(read_genes(path)).sort("START", "END")
    assert merged.rows() == [("1", 100, 200), ("1", 100, 200), ("1", 100, 300), ("1", 290, 310), ("1", 900, 950)]


def test_real_genes_of_chromosome_22():
    genes = read_genes(str(EXAMPLE / "genes_hg19.bed.gz")).filter(pl.col("NAME") == "SHANK3")
    assert genes.select("CHR", "STRAND", "TSS").row(0) == ("22", "+", 51113070)


def test_a_gene_without_strand_is_named(tmp_path):
    path = tmp_path / "genes.bed"
    path.write_text("chr1\t100\t200\tA\t0\t+\nchr1\t100\t200\tB\t0\t.\n")
    with pytest.raises(InputError, match=r"genes\.bed: gene 2 \(B\).*neither \+ nor -"):
        read_genes(path)


def test_a_bed_file_without_strand_column_is_refused(tmp_path):
    path = tmp_path / "genes.bed"
    path.write_text("chr1\t100\t200\n")
    with pytest.raises(InputError, match="3 columns found, 6 needed"):
        read_genes(path)


@pytest.mark.parametrize("line", ["chr2\t100\t200", "chr1\t5000000\t5000100"])
def test_a_file_that_covers_no_variant_of_the_only_chromosome_is_an_error(tmp_path, line):
    path = tmp_path / "peaks.bed"
    path.write_text(line + "\n")
    variants = make_variants(["1", "1"], [100, 300])
    for uncovered in ("error", "missing"):
        with pytest.raises(InputError, match="none of 2 variants of chromosome 1 lies within 1,000 kb") as caught:
            interval_annotations(variants, "peaks", path, ("inside",), 10, uncovered, Tally())
        assert "--uncovered" not in str(caught.value)


def test_one_chromosome_that_is_not_covered_can_be_missing(tmp_path):
    path = tmp_path / "peaks.bed"
    path.write_text("chr1\t99\t200\nchrX\t0\t10\n")
    variants = make_variants(["1", "2", "2"], [100, 300, 400])
    with pytest.raises(InputError, match=r"chromosomes in the file: 1, X.*--uncovered missing"):
        interval_annotations(variants, "peaks", path, ("inside",), 10, "error", Tally())
    tally = Tally()
    made = interval_annotations(variants, "peaks", path, ("inside",), 10, "missing", tally)
    np.testing.assert_array_equal(made["peaks"][0], [1, np.nan, np.nan])
    assert ("missing: chromosome 2 is not covered by the file", 2) in [(r.reason, r.count) for r in tally.rows]
