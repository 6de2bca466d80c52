"""Reading summary statistics: formats, units, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

import deepwas
from deepwas.errors import DataWarning, InputError
from deepwas.sumstats import FORMATS, Format, read_sumstats
from deepwas.sumstats.formats import format_by_name, recognise

EXAMPLE = Path(deepwas.__file__).parent / "data" / "example" / "ukb_height_chr22.fastGWA.gz"
FASTGWA = "CHR SNP POS A1 A2 N AF1 BETA SE P"
ROW = {
    "CHR": "22",
    "SNP": "rs1",
    "POS": "100",
    "A1": "A",
    "A2": "G",
    "N": "1000",
    "AF1": "0.3",
    "BETA": "0.1",
    "SE": "0.05",
    "P": "0.0455",
}


def write(path: Path, rows: list[dict[str, str]], separator: str = "\t") -> Path:
    """Rows as a table; the columns are those of the first row."""
    lines = [separator.join(rows[0]), *(separator.join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def rows_of(*changes: dict[str, str], leave_out: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """A good row, then one for each change, named rs1, rs2, ..."""
    numbered = enumerate(({}, *changes), start=1)
    rows = [{**ROW, "SNP": f"rs{i}", "POS": str(100 * i), **change} for i, change in numbered]
    return [{k: v for k, v in row.items() if k not in leave_out} for row in rows]


def dropped(sumstats) -> dict[str, int]:
    return {r.reason: r.count for r in sumstats.tally.rows if r.action == "dropped"}


def test_the_example_is_read_as_it_stands_in_the_file():
    sumstats = read_sumstats(EXAMPLE, build="hg19")
    with gzip.open(EXAMPLE, "rt") as handle:
        header, first = handle.readline().split(), handle.readline().split()
    row = dict(zip(header, first, strict=True))
    assert (sumstats.format, sumstats.build, sumstats.frame.height) == ("fastGWA", "GRCh37", 15935)
    got = sumstats.frame.row(0, named=True)
    assert (got["CHR"], got["SNP"], got["BP"]) == (row["CHR"], row["SNP"], int(row["POS"]))
    assert (got["A1"], got["A2"], got["N"]) == (row["A1"], row["A2"], float(row["N"]))
    assert got["Z"] == float(row["BETA"]) / float(row["SE"])
    assert sumstats.tally.total("kept") == 15935
    assert sumstats.tally.total("dropped") == 0
    assert sumstats.frame.select((pl.col("Z") ** 2).mean()).item() == pytest.approx(4.14, abs=0.01)


def test_p_of_the_example_belongs_to_its_z():
    sumstats = read_sumstats(EXAMPLE, build="GRCh37")
    p = sumstats.frame["P"].to_numpy()
    # BETA and SE have six digits: d log p = -z dz is up to z^2 * 1e-5, about 1e-3 at the largest z of 10.5.
    np.testing.assert_allclose(2 * norm.sf(np.abs(sumstats.frame["Z"].to_numpy())), p, rtol=1e-3)
    assert sumstats.tally.total("noted") == 0


def test_ldsc_has_no_positions_and_separators_may_be_spaces(tmp_path):
    path = tmp_path / "t.sumstats"
    path.write_text("SNP A1 A2 Z N\nrs1 a g -1.5 1000.5\nrs2   C T 0.25 900\n")
    sumstats = read_sumstats(path)
    assert sumstats.format == "LDSC"
    assert sumstats.frame.columns == ["CHR", "SNP", "BP", "A1", "A2", "Z", "N"]
    assert sumstats.frame["A1"].to_list() == ["A", "C"]
    assert sumstats.frame["Z"].to_list() == [-1.5, 0.25]
    assert sumstats.frame["N"].to_list() == [1000.5, 900.0]
    assert sumstats.frame["BP"].null_count() == 2
    assert sumstats.build is None


def test_rows_that_munging_left_empty_are_counted_not_taken_for_missing_n(tmp_path):
    path = tmp_path / "t.sumstats"
    path.write_text("SNP\tA1\tA2\tZ\tN\nrs1\tA\tG\t1.0\t500\nrs2\t\t\t\t\nrs3\tA\tG\t\t500\n")
    sumstats = read_sumstats(path)
    assert sumstats.frame["SNP"].to_list() == ["rs1"]
    assert dropped(sumstats) == {"an allele is missing": 1, "Z is missing": 1}


def test_header_in_another_case_is_recognised_and_the_exact_case_wins(tmp_path):
    rows = [{k.lower(): v for k, v in row.items()} for row in rows_of({})]
    assert read_sumstats(write(tmp_path / "a", rows), build="GRCh37").format == "fastGWA"
    both = [{**row, "p": "junk"} for row in rows_of({})]
    assert read_sumstats(write(tmp_path / "b", both), build="GRCh37").frame["P"].to_list() == [0.0455] * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"A1": "NA"}, "an allele is missing"),
        ({"A1": "<DEL>"}, "an allele is not written in A, C, G, T"),
        ({"A1": "G"}, "both alleles are the same"),
        ({"SNP": "NA", "POS": "NA"}, "neither an identifier nor a position"),
        ({"BETA": "NA"}, "the effect size is missing"),
        ({"BETA": "inf"}, "the effect size is not finite"),
        ({"SE": "NA"}, "the standard error is missing"),
        ({"SE": "inf", "P": "1"}, "the standard error is infinite, as when P = 1"),
        ({"SE": "0"}, "the standard error is not above 0"),
        ({"AF1": "30"}, "the allele frequency does not lie between 0 and 1"),
        ({"P": "1.5"}, "the p-value does not lie between 0 and 1"),
    ],
)
def test_an_unusable_row_is_dropped_and_counted_with_its_reason(tmp_path, change, reason):
    sumstats = read_sumstats(write(tmp_path / "t", rows_of(change, {})), build="GRCh37")
    assert sumstats.frame["SNP"].to_list() == ["rs1", "rs3"]
    assert dropped(sumstats) == {reason: 1}
    first = next(r.first for r in sumstats.tally.rows if r.action == "dropped")
    assert first.startswith(("rs2", "22:"))


def test_p_of_zero_is_kept_because_z_does_not_come_from_it(tmp_path):
    sumstats = read_sumstats(write(tmp_path / "t", rows_of({"BETA": "5", "P": "0"})), build="GRCh37")
    assert sumstats.frame["Z"].to_list() == [2.0, 100.0]
    assert [r.count for r in sumstats.tally.rows if r.reason.startswith("P = 0")] == [1]


def test_p_that_does_not_belong_to_z_is_noted_and_warned_of_when_common(tmp_path):
    rare = rows_of(*[{}] * 18, {"P": "1e-9"})
    sumstats = read_sumstats(write(tmp_path / "rare", rare), build="GRCh37")
    assert [r.count for r in sumstats.tally.rows if "departs from Z" in r.reason] == [1]
    with pytest.warns(DataWarning, match="disagree by more than 10% for 50% of the variants"):
        common = read_sumstats(write(tmp_path / "common", rows_of({"P": "1e-9"})), build="GRCh37")
    assert common.frame["Z"].to_list() == [2.0, 2.0]


def test_missing_sample_sizes_are_asked_for(tmp_path):
    path = write(tmp_path / "t", rows_of({"N": "NA"}, {"N": "0"}))
    said = r"N is missing or <= 0 for 2 of 3 variants \(first: rs2, N = missing\)"
    with pytest.raises(InputError, match=said) as error:
        read_sumstats(path)
    assert "--sample-size" in str(error.value)
    assert "--drop-missing-n" in str(error.value)
    filled = read_sumstats(path, sample_size=5000, build="GRCh37")
    assert filled.frame["N"].to_list() == [1000.0, 5000.0, 5000.0]
    assert filled.tally.total("changed") == 2
    fewer = read_sumstats(path, drop_missing_n=True, build="GRCh37")
    assert fewer.frame["SNP"].to_list() == ["rs1"]
    assert dropped(fewer) == {"N is missing or <= 0 (--drop-missing-n)": 2}


def test_a_file_without_n_needs_a_sample_size(tmp_path):
    path = write(tmp_path / "t", rows_of({}, leave_out=("N",)))
    for keywords in ({}, {"drop_missing_n": True}):
        with pytest.raises(InputError, match=r"no sample size column \(N\).*\n.*--sample-size"):
            read_sumstats(path, **keywords)
    assert read_sumstats(path, sample_size=700, build="GRCh37").frame["N"].to_list() == [700.0, 700.0]


@pytest.mark.parametrize("size", [0, -5, float("nan"), float("inf")])
def test_a_sample_size_that_cannot_be_one_is_refused(size):
    with pytest.raises(InputError, match="--sample-size"):
        read_sumstats(EXAMPLE, sample_size=size)


def test_sample_size_and_dropping_exclude_each_other():
    with pytest.raises(InputError, match="exclude each other"):
        read_sumstats(EXAMPLE, sample_size=10, drop_missing_n=True)


def test_an_unknown_build_is_said_and_a_wrong_one_refused(tmp_path):
    path = write(tmp_path / "t", rows_of({}))
    assert any("build was not given" in r.reason for r in read_sumstats(path).tally.rows)
    with pytest.raises(InputError, match="hg17"):
        read_sumstats(path, build="hg17")


def test_a_header_without_effect_allele_says_what_was_understood_and_what_is_missing(tmp_path):
    rows = [{("EA" if k == "A1" else k): v for k, v in row.items()} for row in rows_of({})]
    with pytest.raises(InputError) as error:
        read_sumstats(write(tmp_path / "t", rows))
    message = str(error.value)
    assert "no effect allele column (A1)" in message
    assert "POS = position" in message
    assert "Not understood: EA" in message


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("SNP A1 A2 CHISQ N", "chi-squares (CHISQ) have lost the sign"),
        ("SNP A1 Z N", "Without both alleles the sign of Z"),
        ("SNP Z N", "Without both alleles the sign of Z"),
    ],
)
def test_ldsc_files_without_sign_or_alleles_are_refused_with_the_reason(tmp_path, header, said):
    path = tmp_path / "t"
    path.write_text(f"{header}\n{' '.join(['1'] * len(header.split()))}\n")
    for name in (None, "ldsc"):
        with pytest.raises(InputError) as error:
            read_sumstats(path, format=name)
        assert said in str(error.value)


def test_a_header_that_fits_two_formats_is_refused_until_one_is_named(tmp_path):
    rows = [{**row, "Z": "-9"} for row in rows_of({})]
    path = write(tmp_path / "t", rows)
    with pytest.raises(InputError, match="several formats: fastGWA, LDSC"):
        read_sumstats(path)
    assert read_sumstats(path, format="FASTGWA", build="GRCh37").frame["Z"].to_list() == [2.0, 2.0]
    with pytest.warns(DataWarning):
        assert read_sumstats(path, format="ldsc").frame["Z"].to_list() == [-9.0, -9.0]


def test_an_unknown_format_name_lists_the_known_ones():
    with pytest.raises(InputError, match="fastGWA, LDSC"):
        read_sumstats(EXAMPLE, format="plink")


def test_text_among_numbers_names_column_line_and_value(tmp_path):
    with pytest.raises(InputError, match=r"column BETA, line 3: 'high' is not a number"):
        read_sumstats(write(tmp_path / "t", rows_of({"BETA": "high"})))
    with pytest.raises(InputError, match=r"column POS, line 3: '1\.5' is not a whole number"):
        read_sumstats(write(tmp_path / "u", rows_of({"POS": "1.5"})))


def test_files_that_are_no_files_or_hold_nothing(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_sumstats(tmp_path / "absent")
    empty = tmp_path / "empty"
    empty.write_text("")
    with pytest.raises(InputError, match="the file is empty"):
        read_sumstats(empty)
    empty.write_text(FASTGWA + "\n")
    with pytest.raises(InputError, match="no row"):
        read_sumstats(empty)
    useless = write(tmp_path / "useless", rows_of({})[:1])
    useless.write_text(useless.read_text().replace("0.05", "0"))
    with pytest.raises(InputError, match=r"no usable row is left\.\nread: 1 dropped: the standard error"):
        read_sumstats(useless)


def test_a_gzip_file_cut_short_is_refused(tmp_path):
    cut = tmp_path / "cut.gz"
    cut.write_bytes(EXAMPLE.read_bytes()[:50_000])
    with pytest.raises(InputError, match="damaged or cut short"):
        read_sumstats(cut)


def test_a_short_line_is_refused_with_its_number(tmp_path):
    path = write(tmp_path / "t", rows_of({}, {}))
    lines = path.read_text().splitlines()
    lines[2] = lines[2].rsplit("\t", 2)[0]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="line 3 has 8 fields, the first line has 10"):
        read_sumstats(path)


def only_additive(table, tally):
    tally.add("read", "dropped", "not the additive test", table.filter(pl.col("TEST") != "ADD").height)
    return table.filter(pl.col("TEST") == "ADD")


STEPWISE = Format(
    name="stepwise",
    columns={
        "CHR": ("CHROM",),
        "BP": ("GENPOS",),
        "SNP": ("ID",),
        "A1": ("ALLELE1",),
        "A2": ("ALLELE0",),
        "BETA": ("BETA",),
        "OR": ("OR",),
        "SE": ("SE",),
        "N_CASES": ("CASES",),
        "N_CONTROLS": ("CONTROLS",),
        "NEG_LOG10_P": ("LOG10P",),
    },
    required=("CHR", "BP", "A1", "A2", "BETA|OR"),
    effect_allele="ALLELE1 is the effect allele",
    prepare=only_additive,
)


def test_a_format_is_a_registry_entry_units_included(tmp_path):
    """Odds ratios become logarithms, -log10 p far below the smallest double a z-score, cases and controls N."""
    path = tmp_path / "t"
    path.write_text(
        "CHROM GENPOS ID ALLELE0 ALLELE1 OR CASES CONTROLS TEST LOG10P\n"
        "chr1 10 rs1 G A 2 300 700 ADD 500\n"
        "1 10 rs1 G A 2 300 700 DOM 1\n"
        "1 20 rs2 G A 0.5 300 700 ADD 0.30102999566398120\n"
    )
    assert recognise(path.read_text().split("\n")[0].split(), path, (*FORMATS, STEPWISE)) is STEPWISE
    sumstats = read_sumstats(path, format=STEPWISE, build="GRCh38")
    assert sumstats.frame["N"].to_list() == [1000.0, 1000.0]
    np.testing.assert_allclose(sumstats.frame["BETA"], [np.log(2), -np.log(2)], rtol=1e-15)
    z = sumstats.frame["Z"].to_numpy()
    assert z[1] == pytest.approx(norm.ppf(0.25), rel=1e-12)
    assert (norm.logsf(z[0]) + np.log(2)) / np.log(10) == pytest.approx(-500, rel=1e-12)
    assert dropped(sumstats) == {"not the additive test": 1}


def test_a_format_that_names_unknown_quantities_is_a_programming_error():
    with pytest.raises(ValueError, match="EFFECT"):
        Format(name="x", columns={"EFFECT": ("b",)}, required=(), effect_allele="")
    with pytest.raises(ValueError, match="required but without a column: BETA"):
        Format(name="x", columns={"OR": ("or",)}, required=("BETA|OR",), effect_allele="")


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
def test_each_registered_format_recognises_its_own_header_and_name(form):
    header = [names[0] for names in form.columns.values()]
    assert recognise(header, "t") is form
    assert recognise([h.lower() for h in header], "t") is form
    assert format_by_name(form.name.upper()) is form
    assert form.lacks(header) == []


FIELDS = {
    "A1": st.sampled_from(["A", "C", "NA", "<I>", "at"]),
    "BETA": st.sampled_from(["0.1", "-2", "NA", "inf", "0"]),
    "SE": st.sampled_from(["0.1", "0", "-1", "inf", "NA"]),
    "AF1": st.sampled_from(["0.1", "NA", "2"]),
    "P": st.sampled_from(["NA", "0", "7"]),
    "N": st.sampled_from(["100", "0", "NA", "-3"]),
}


@given(st.lists(st.fixed_dictionaries(FIELDS), max_size=12))
def test_rows_in_are_rows_kept_and_dropped(tmp_path_factory, changes):
    path = tmp_path_factory.mktemp("conserved") / "t"
    rows = rows_of(*changes)
    rows[0]["P"] = "NA"
    sumstats = read_sumstats(write(path, rows), drop_missing_n=True, build="GRCh37")
    assert sumstats.tally.total("kept") + sumstats.tally.total("dropped") == len(rows)
    assert sumstats.tally.total("kept") == sumstats.frame.height
    assert sumstats.frame.select(pl.col("Z").is_finite().all() & (pl.col("N") > 0).all()).item()
