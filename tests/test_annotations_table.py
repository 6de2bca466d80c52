"""Tables of annotations: layouts, keys, duplicates, what is missing, and errors that name the place."""

from __future__ import annotations

import gzip

import h5py
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepwas.annotations import read_annotations
from deepwas.annotations.table import read_table
from deepwas.errors import InputError

VARIANTS = pl.DataFrame(
    {
        "CHR": ["1", "1", "2", "2"],
        "SNP": ["rs1", "rs2", "rs3", "rs4"],
        "BP": [100, 200, 100, 300],
        "A1": ["A", "C", "G", "AT"],
        "A2": ["G", "T", "C", "A"],
    }
)
NAN = np.nan


def counts(tally) -> dict[str, int]:
    return {row.reason: row.count for row in tally.rows}


def write(path, text: str):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("a.tsv", "CHR\tBP\tA1\tA2\tx\nchr1\t100\tG\tA\t1\n1\t200\tC\tT\t2\n2\t300\ta\tat\t4\n", "alleles"),
        ("strand.tsv", "CHR\tBP\tA1\tA2\tx\n1\t100\tT\tC\t1\n1\t200\tG\tA\t2\n2\t300\tAT\tA\t4\n", "alleles"),
        ("a.annot.gz", "CHR BP SNP CM x\n1 100 rs1 0.1 1\n1 200 rs2 0.2 2\n2 300 rs4 0.3 4\n", "snp"),
        ("other_ids.annot", "CHR BP SNP CM x\n1 100 v1 0.1 1\n1 200 v2 0.2 2\n2 300 v4 0.3 4\n", "position"),
        ("sbayesrc.txt", "SNP Intercept x\nrs4 1 4\nrs2 1 2\nrs1 1 1\nrs99 1 9\n", "snp"),
        ("position.csv", "chrom,pos,x\n1,100,1\n1,200,2\n2,300,4\n", "position"),
    ],
)
def test_layouts_and_keys(tmp_path, name, text, key):
    table = read_table(write(tmp_path / name, text), VARIANTS)
    assert table.key == key
    assert list(table.columns) == ["x"]
    np.testing.assert_array_equal(table.columns["x"], np.array([1, 2, NAN, 4], dtype=np.float32))
    assert counts(table.tally)["missing: variant without a row in the table"] == 1
    assert sum(row.count for row in table.tally.rows if row.action == "kept") == 3


def test_polyfun_parquet_with_integer_chromosomes_and_boolean_annotation(tmp_path):
    path = tmp_path / "polyfun.parquet"
    keys = VARIANTS.select("SNP", pl.col("CHR").cast(pl.Int8), "BP", A1="A2", A2="A1")
    keys.with_columns(
        base=pl.lit(1), coding=pl.Series([True, False, None, True]), phylop=pl.Series([0.5, None, 1.5, 2.5])
    ).write_parquet(path)
    table = read_table(path, VARIANTS)
    np.testing.assert_array_equal(table.columns["coding"], np.array([1, 0, NAN, 1], dtype=np.float32))
    np.testing.assert_array_equal(table.columns["phylop"], np.array([0.5, NAN, 1.5, 2.5], dtype=np.float32))
    assert counts(table.tally)["annotation columns constant over the matched variants"] == 1
    assert table.files[str(path)]


def test_one_file_a_chromosome(tmp_path):
    write(tmp_path / "x.1.annot", "CHR BP SNP CM x y\n1 100 rs1 0 1 5\n1 200 rs2 0 2 6\n")
    write(tmp_path / "x.2.annot", "CHR BP SNP CM y x\n2 100 rs3 0 7 3\n2 300 rs4 0 8 4\n")
    table = read_table(tmp_path / "x.@.annot", VARIANTS)
    assert table.columns["x"].tolist() == [1, 2, 3, 4]
    assert table.columns["y"].tolist() == [5, 6, 7, 8]
    assert len(table.files) == 2
    (tmp_path / "x.2.annot").unlink()
    with pytest.raises(InputError, match=r"x\.2\.annot: no such file \(annotations of chromosome 2"):
        read_table(tmp_path / "x.@.annot", VARIANTS)


def test_identical_repeats_collapse_and_conflicts_are_named(tmp_path):
    text = "SNP\tx\nrs1\t1\nrs2\t2\nrs1\t1\nrs9\t1\nrs9\t2\n"
    table = read_table(write(tmp_path / "a.tsv", text), VARIANTS)
    np.testing.assert_array_equal(table.columns["x"], np.array([1, 2, NAN, NAN], dtype=np.float32))
    assert counts(table.tally)["table rows that repeat a key, all values equal"] == 1
    message = r"lines 2 and 4 are the same variant \(SNP rs1\) but column x holds 1 and 3 \(1 such rows\)"
    with pytest.raises(InputError, match=message):
        read_table(write(tmp_path / "b.tsv", "SNP\tx\nrs1\t1\nrs2\t2\nrs1\t3\n"), VARIANTS)
    with pytest.raises(InputError, match=r"column x holds nan and 3"):
        read_table(write(tmp_path / "c.tsv", "SNP\tx\nrs1\tNA\nrs2\t2\nrs1\t3\n"), VARIANTS)


def test_alleles_keep_variants_of_one_position_apart(tmp_path):
    variants = VARIANTS.head(2).with_columns(BP=pl.lit(100), A1=pl.lit("A"), A2=pl.Series(["G", "T"]))
    path = write(tmp_path / "a.tsv", "CHR\tBP\tA1\tA2\tx\n1\t100\tT\tA\t2\n1\t100\tA\tC\t3\n1\t100\tA\tG\t1\n")
    assert read_table(path, variants).columns["x"].tolist() == [1, 2]


def test_a_table_of_another_build_is_noticed(tmp_path):
    path = write(tmp_path / "a.tsv", "CHR\tBP\tSNP\tx\n1\t1100\trs1\t1\n1\t1200\trs2\t2\n")
    table = read_table(path, VARIANTS)
    assert table.key == "snp"
    reason = "matched by SNP at another position than in the LD reference (another genome build?)"
    assert counts(table.tally)[reason] == 2
    with pytest.raises(InputError, match=r"no row matches any of 4 variants .* by CHR BP"):
        read_table(path, VARIANTS, key="position")
    with pytest.raises(InputError, match=r"cannot be matched by CHR BP A1 A2"):
        read_table(path, VARIANTS, key="alleles")


def test_missing_identifiers_match_nothing(tmp_path):
    variants = VARIANTS.with_columns(SNP=pl.Series(["rs1", ".", ".", "rs4"]))
    path = tmp_path / "a.parquet"
    pl.DataFrame({"SNP": ["rs1", ".", "rs4"], "x": [1.0, 2.0, 3.0]}).write_parquet(path)
    np.testing.assert_array_equal(read_table(path, variants).columns["x"], np.array([1, NAN, NAN, 3], dtype=np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SNP\tx\ty\nrs1\t1\t2\nrs2\tlow\t3\n", r"column x, line 3: 'low' is not a number \(1 such"),
        ("SNP\tx\nrs1\tinf\nrs2\t1\n", r"column x, line 2: the value is infinite"),
        ("SNP\tx\nrs1\t1\nrs2\t1e60\n", r"column x, line 3: the value is infinite or beyond"),
        ("SNP\tx\ty\nrs1\t1\tNA\nrs2\t2\tNA\nrs9\t2\t1\n", r"column y has no value for any matched variant"),
        ("SNP\tx\nrs1\t1\nrs2\t1\n", r"every annotation is constant"),
        ("SNP\tx\nrs8\t1\nrs9\t2\n", r"no row matches any of 4 variants of the LD reference by SNP"),
        ("x\ty\n1\t2\n", r"no key to variants among the columns x y.*paste the columns"),
        ("CHR\tBP\tSNP\tCM\n1\t100\trs1\t0\n", r"no annotation column"),
        ("CHR\tBP\tx\n1\t100.5\t1\n", r"column BP, line 2: '100.5' is not a whole number"),
        ("SNP\tx\tx\nrs1\t1\t2\n", r"the header names x twice"),
        ("SNP\tx\ty\nrs1\t1\t2\nrs2\t1\n", r"line 3 has 2 fields"),
        ("", r"the file is empty"),
    ],
)
def test_unusable_tables_are_named(tmp_path, text, message):
    with pytest.raises(InputError, match=rf"a\.tsv: .*{message}"):
        read_table(write(tmp_path / "a.tsv", text), VARIANTS)


def test_damaged_and_odd_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match="damaged Parquet file"):
        read_table(path, VARIANTS)
    pl.DataFrame({"SNP": ["rs1", "rs2"], "x": [[1], [2]]}).write_parquet(path)
    with pytest.raises(InputError, match=r"column x holds List\(Int64\), numbers are needed"):
        read_table(path, VARIANTS)


def test_columns_of_both_signs_are_noted_where_alleles_are_known(tmp_path):
    rows = "1 100 A G -1 1\n1 200 C T 2 2\n2 300 AT A -3 3\n"
    table = read_annotations(write(tmp_path / "a.txt", "CHR BP A1 A2 x y\n" + rows), VARIANTS)
    (note,) = (row for row in table.tally.rows if "both signs" in row.reason)
    assert (note.action, note.count, note.first) == ("noted", 1, "x")
    assert "deepwas scores" in note.reason
    np.testing.assert_array_equal(table.values[:, 0], np.array([-1, 2, NAN, -3], np.float32))
    # What deepwas wrote has been noted.
    table.write_parquet(tmp_path / "a.parquet")
    again = read_annotations(tmp_path / "a.parquet", VARIANTS)
    assert not any("both signs" in row.reason for row in again.tally.rows)


def test_a_file_of_another_kind_is_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as handle:
        handle["x"] = np.arange(3)
    with pytest.raises(InputError, match="this is an HDF5 file, a table of annotations expected"):
        read_table(tmp_path / "a.h5", VARIANTS)


def test_names_that_come_from_two_files(tmp_path):
    one = write(tmp_path / "a.tsv", "SNP\tx\nrs1\t1\nrs2\t2\n")
    two = write(tmp_path / "b.tsv", "SNP\ty\nrs1\t3\nrs3\t4\n")
    both = read_annotations([one, two], VARIANTS)
    assert both.names == ("x", "y")
    np.testing.assert_array_equal(both.values[:, 1], np.array([3, NAN, 4, NAN], dtype=np.float32))
    with pytest.raises(InputError, match=r"annotation x comes twice: .*a\.tsv; .*c\.tsv.*with @"):
        read_annotations([one, write(tmp_path / "c.tsv", "SNP\tx\nrs3\t1\nrs4\t2\n")], VARIANTS)


@given(st.data())
def test_alignment_is_that_of_a_dictionary(tmp_path_factory, data):
    keys = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=40, unique=True))
    ours = data.draw(st.permutations(range(0, 40, 2)))
    values = [float(2 * k + 1) for k in keys]
    variants = pl.DataFrame(
        {"CHR": "3", "SNP": [f"rs{i}" for i in ours], "BP": [10 + i for i in ours], "A1": "A", "A2": "G"}
    )
    path = tmp_path_factory.mktemp("tables") / "t.parquet"
    frame = pl.DataFrame({"CHR": 3, "BP": [10 + k for k in keys], "A1": "G", "A2": "A", "x": values})
    frame.write_parquet(path)
    wanted = dict(zip(keys, values, strict=True))
    if not set(keys) & set(ours):
        with pytest.raises(InputError, match="no row matches"):
            read_table(path, variants, keep_constant=True)
        return
    found = read_table(path, variants, keep_constant=True).columns["x"]
    np.testing.assert_array_equal(found, np.array([wanted.get(i, NAN) for i in ours], dtype=np.float32))
