"""Harmonising: matching, signs, strands, duplicates, regions; and that no row vanishes uncounted."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deepwas
from deepwas.errors import DataWarning, InputError
from deepwas.sumstats import QCOptions, SumStats, harmonise, read_sumstats
from deepwas.sumstats.regions import excluded_regions, inside

EXAMPLE = Path(deepwas.__file__).parent / "data" / "example"
STEPS = ("quality", "match", "strand", "frequency", "regions", "repeats")
COMPLEMENT = {"A": "T", "C": "G", "G": "C", "T": "A"}


@pytest.fixture(scope="module")
def height() -> SumStats:
    return read_sumstats(EXAMPLE / "ukb_height_chr22.fastGWA.gz", build="GRCh37")


@pytest.fixture(scope="module")
def panel() -> pl.DataFrame:
    """The example panel's variants, with the frequency of A1 counted in its genotypes."""
    from bed_reader import open_bed

    with open_bed(EXAMPLE / "1000G_eur_chr22.bed") as bed:
        frequency = np.nanmean(bed.read(dtype="float32"), axis=0, dtype=np.float64) / 2
        return pl.DataFrame(
            {
                "CHR": bed.chromosome,
                "SNP": bed.sid,
                "BP": bed.bp_position.astype(np.int64),
                "A1": bed.allele_1,
                "A2": bed.allele_2,
                "FREQ": frequency,
            }
        )


def gwas(rows: list[dict], build: str | None = None) -> SumStats:
    """A GWAS of a few variants; what a row does not say is that of an ordinary SNP."""
    usual = {"CHR": "1", "A1": "A", "A2": "G", "Z": 1.5, "N": 1000.0, "FRQ": 0.2}
    filled = [{**usual, "SNP": f"rs{i}", "BP": 100 * i, **row} for i, row in enumerate(rows, start=1)]
    schema = {"CHR": pl.String, "SNP": pl.String, "BP": pl.Int64, "FRQ": pl.Float64}
    return SumStats(pl.DataFrame(filled, schema_overrides=schema), Path("t.tsv"), "test", build, "0" * 64)


def variants(rows: list[dict]) -> pl.DataFrame:
    usual = {"CHR": "1", "A1": "A", "A2": "G", "FREQ": 0.2}
    return pl.DataFrame([{**usual, "SNP": f"rs{i}", "BP": 100 * i, **row} for i, row in enumerate(rows, start=1)])


PLAIN = QCOptions(exclude="none")


def align(rows: list[dict], panel_rows: list[dict], **options):
    return harmonise(gwas(rows), variants(panel_rows), options=QCOptions(exclude="none", **options))


def reasons(result, action: str = "dropped") -> dict[str, int]:
    return {r.reason: r.count for r in result.tally.rows if r.action == action}


def assert_conserved(result, rows_in: int) -> None:
    """At every step kept + dropped is what the step before kept."""
    for step in STEPS:
        kept = result.tally.total("kept", step)
        assert kept + result.tally.total("dropped", step) == rows_in, step
        rows_in = kept
    assert result.n_matched == rows_in == result.frame.height


def test_the_example_matches_its_panel(height, panel):
    result = harmonise(height, panel, n_panel=378, genome_build="GRCh37")
    assert_conserved(result, 15935)
    assert result.match == "position"
    by_name = result.frame.join(height.frame, on="SNP", suffix="_GWAS")
    assert by_name.height == result.n_matched > 15_700
    same = by_name.filter(pl.col("A1") == pl.col("A1_GWAS"))
    other = by_name.filter(pl.col("A1") == pl.col("A2_GWAS"))
    assert same.height + other.height == by_name.height
    assert same["Z"].equals(same["Z_GWAS"])
    assert other["Z"].equals(-other["Z_GWAS"])
    # An allele mistaken for the other would be many standard errors off; Europeans of 1000 Genomes are not the
    # British of UK Biobank, so the spread is a little above 1.
    frequency = panel["FREQ"].gather(result.frame["VARIANT"]).to_numpy()
    error = np.sqrt(frequency * (1 - frequency) / (2 * 378))
    deviation = (result.frame["FRQ"].to_numpy() - frequency) / error
    assert 0.9 < np.sqrt(np.mean(deviation**2)) < 2
    assert result.frame["SNP"].equals(panel["SNP"].gather(result.frame["VARIANT"]))


@pytest.mark.parametrize(
    ("alleles", "sign"),
    [("AG", 1), ("GA", -1), ("TC", 1), ("CT", -1)],
    ids=["same", "swapped", "other strand", "other strand, swapped"],
)
def test_the_four_ways_to_write_a_snp(alleles, sign):
    frequency = 0.2 if sign > 0 else 0.8
    result = align([{"A1": alleles[0], "A2": alleles[1], "FRQ": frequency}], [{}])
    row = result.frame.row(0, named=True)
    assert (row["A1"], row["A2"], row["Z"]) == ("A", "G", sign * 1.5)
    assert row["FRQ"] == pytest.approx(0.2)
    expected = (alleles in ("GA", "CT")) + (alleles in ("TC", "CT"))
    assert len(reasons(result, "changed")) == expected


def test_indels_are_matched_as_written_and_never_complemented():
    panel_rows = [{"A1": "AT", "A2": "A"}, {"A1": "AT", "A2": "A"}, {"A1": "A", "A2": "AT"}]
    rows = [{"A1": "AT", "A2": "A"}, {"A1": "TA", "A2": "T"}, {"A1": "AT", "A2": "A", "FRQ": 0.8}]
    with pytest.warns(DataWarning, match="1 of 3 variants found by position have other alleles"):
        result = align(rows, panel_rows)
    assert result.frame["VARIANT"].to_list() == [0, 2]
    assert result.frame["Z"].to_list() == [1.5, -1.5]
    assert reasons(result) == {"the LD store has this position with other alleles": 1}


def test_alleles_pick_the_variant_at_a_site_with_several():
    panel_rows = [{"BP": 100, "A1": "C", "A2": "A"}, {"BP": 100, "A1": "T", "A2": "A"}, {"BP": 100}]
    result = align([{"A1": "A", "A2": "C", "FRQ": 0.8}, {"BP": 100, "Z": 3.0}], panel_rows)
    assert result.frame.select("VARIANT", "Z").rows() == [(0, -1.5), (2, 3.0)]


@pytest.mark.parametrize(
    ("frq", "panel_freq", "alleles", "z"),
    [
        (0.2, 0.25, "AT", 1.5),
        (0.8, 0.25, "AT", -1.5),
        (0.8, 0.25, "TA", -1.5),
        (0.2, 0.25, "TA", 1.5),
        (0.46, 0.25, "AT", None),
        (0.2, 0.47, "AT", None),
        (None, 0.25, "AT", None),
    ],
)
def test_frequency_tells_the_strand_of_a_palindromic_variant(frq, panel_freq, alleles, z):
    """FRQ belongs to A1: whichever letter it is, a frequency on the panel's side of 1/2 means the panel's A1."""
    rows = [{"A1": alleles[0], "A2": alleles[1], "FRQ": frq}, {"SNP": "rs9", "BP": 900}]
    panel_rows = [{"A1": "A", "A2": "T", "FREQ": panel_freq}, {"SNP": "rs9", "BP": 900}]
    result = align(rows, panel_rows, max_frequency_difference=1.0)
    assert_conserved(result, 2)
    kept = result.frame.filter(pl.col("VARIANT") == 0)
    assert kept["Z"].to_list() == ([] if z is None else [z])
    if z is not None:
        assert kept["FRQ"].to_list() == pytest.approx([0.2])


def test_a_small_panel_widens_the_margin_of_palindromes():
    rows, panel_rows = [{"A1": "A", "A2": "T", "FRQ": 0.35}], [{"A1": "A", "A2": "T", "FREQ": 0.35}]
    both = (gwas([*rows, {}]), variants([*panel_rows, {}]))
    assert harmonise(*both, options=PLAIN, n_panel=400).n_matched == 2
    few = harmonise(*both, options=PLAIN, n_panel=20)
    assert reasons(few) == {"palindromic (A/T or C/G), frequency too near 1/2 to tell the strand": 1}


def test_palindromes_can_be_dropped_or_taken_as_they_are():
    rows, panel_rows = [{"A1": "G", "A2": "C"}, {}], [{"A1": "C", "A2": "G", "FREQ": 0.8}, {}]
    assert align(rows, panel_rows, palindromes="drop").frame["VARIANT"].to_list() == [1]
    assert align(rows, panel_rows, palindromes="keep").frame["Z"].to_list() == [-1.5, 1.5]
    assert reasons(align(rows, panel_rows, palindromes="drop")) == {"palindromic (A/T or C/G)": 1}


def test_rows_again_leave_one_and_conflicting_rows_none():
    rows = [
        {"Z": 2.0},
        {"SNP": "rs1", "BP": 100, "A1": "G", "A2": "A", "Z": -2.0, "FRQ": 0.8},
        {"SNP": "rs2", "BP": 200, "Z": 1.0},
        {"SNP": "rs2", "BP": 200, "Z": 1.1},
        {"SNP": "rs3", "BP": 300, "Z": 0.0},
        {"SNP": "rs3", "BP": 300, "A1": "G", "A2": "A", "Z": 0.0, "FRQ": 0.8},
    ]
    result = align(rows, [{}, {}, {}])
    assert_conserved(result, 6)
    assert result.frame.select("VARIANT", "Z").rows() == [(0, 2.0), (2, 0.0)]
    assert not np.signbit(result.frame["Z"].to_numpy()).any()
    assert reasons(result) == {
        "the same variant again, with equal Z and N": 2,
        "several rows for a variant, with different Z or N": 2,
    }


def test_an_identifier_that_stands_for_several_variants_is_not_guessed():
    panel_rows = [{"SNP": "rs1"}, {"SNP": "rs1"}, {"SNP": "rs2"}]
    result = align([{"BP": None}, {"BP": None}], panel_rows)
    assert result.match == "rsid"
    assert result.frame["VARIANT"].to_list() == [2]
    assert reasons(result) == {"the identifier and alleles stand for several variants of the LD store": 1}
    assert_conserved(result, 2)


def test_the_key_that_matches_more_is_taken_and_can_be_forced():
    rows = [{"SNP": f"1:{100 * i}"} for i in (1, 2, 3)]
    assert align(rows, [{}, {}, {}]).match == "position"
    without = gwas([{"BP": None}, {"BP": None}])
    assert harmonise(without, variants([{}, {}]), options=PLAIN).match == "rsid"
    with pytest.raises(InputError, match="no chromosomes and positions to match by"):
        harmonise(without, variants([{}]), options=QCOptions(exclude="none", match="position"))
    with pytest.raises(InputError, match="none of its 3 variants"):
        align(rows, [{}, {}, {}], match="rsid")


def test_a_gwas_of_one_z_score_is_none():
    rows = [{"Z": 0.5}] * 120
    with pytest.raises(InputError, match=r"t\.tsv: column Z: every z-score that is left is 0\.5"):
        align(rows, [{}] * 120)
    assert align([*rows[1:], {"Z": 0.6}], [{}] * 120).frame.height == 120


def test_nothing_matched_shows_both_sides():
    with pytest.raises(InputError) as error:
        align([{"CHR": "2", "SNP": "x1"}, {"CHR": "2", "SNP": "x2"}], [{}])
    message = str(error.value)
    assert "none of its 2 variants is among the 1 of the LD store" in message
    assert "0 by position and alleles, 0 by rsid and alleles" in message
    assert "x1 at chr2:100, A/G" in message
    assert "rs1 at chr1:100, A/G" in message


def test_two_builds_mixed_are_found_through_the_identifiers(height, panel):
    lifted = panel.with_columns(pl.col("BP") - 427_000)
    with pytest.raises(InputError) as error:
        harmonise(height, lifted, n_panel=378, genome_build="GRCh38", options=PLAIN)
    message = str(error.value)
    assert "two genome builds are mixed: 15,935 of 15,935 identifiers" in message
    assert "GWAS: GRCh37; LD store: GRCh38" in message
    assert "rs131538 at chr22:16871137" in message
    assert "rs131538 at chr22:16444137" in message
    assert "--match rsid" in message
    by_name = harmonise(
        height, lifted, n_panel=378, genome_build="GRCh38", options=QCOptions(exclude="none", match="rsid")
    )
    assert reasons(by_name, "noted")["matched by identifier, position differs"] == 15935
    assert by_name.frame["BP"].max() == lifted["BP"].gather(by_name.frame["VARIANT"]).max()


def test_builds_that_are_declared_different_are_refused_even_where_no_identifier_is_shared():
    with pytest.raises(InputError, match="two genome builds are mixed"):
        harmonise(gwas([{"SNP": "x"}], build="GRCh38"), variants([{}]), options=PLAIN, genome_build="GRCh37")
    with pytest.raises(InputError, match="But the positions agree: correct --build"):
        harmonise(gwas([{}], build="GRCh38"), variants([{}]), options=PLAIN, genome_build="GRCh37")


def test_frequencies_far_from_the_panel_are_dropped():
    result = align([{"FRQ": 0.36}, {"FRQ": 0.34}, {"FRQ": None}], [{}, {}, {}])
    assert result.frame["VARIANT"].to_list() == [1, 2]
    assert reasons(result) == {"frequency differs from the panel's by more than 0.15": 1}
    assert result.frame["FRQ"].to_list() == [0.34, None]
    # three standard errors of the frequency of 20 people: 3 * sqrt(0.2 * 0.8 / 40) = 0.19
    few = harmonise(gwas([{"FRQ": 0.36}, {"FRQ": 0.4}]), variants([{}, {}]), options=PLAIN, n_panel=20)
    assert few.frame["VARIANT"].to_list() == [0]


def test_quality_filters_count_by_reason():
    rows = [{"N": 1000.0, "INFO": 0.9}] * 18 + [{"N": 600.0, "INFO": 0.9}, {"N": 1000.0, "INFO": 0.5}]
    rows[3] = {**rows[3], "INFO": None}
    rows[4] = {**rows[4], "Z": 9.5}
    panel_rows: list[dict] = [{}] * 20
    result = align(rows, panel_rows)
    assert_conserved(result, 20)
    assert reasons(result) == {"N below 670, 0.67 of its 90th percentile": 1, "INFO below 0.6": 1}
    assert reasons(result, "noted")["chi-square above max(80, 0.001 N), kept"] == 1
    assert reasons(result, "noted")["INFO is missing, kept"] == 1
    everything = align(rows, panel_rows, min_n_fraction=0.0, min_info=0.0)
    assert everything.n_matched == 20
    assert 4 not in align(rows, panel_rows, extreme_chi2="drop").frame["VARIANT"].to_list()
    for row in rows:
        row["N"] = 100_000.0
    assert 4 in align(rows, panel_rows, extreme_chi2="drop").frame["VARIANT"].to_list()


def test_the_mhc_and_long_range_ld_are_not_scored_by_default(tmp_path):
    places = [("6", 25_000_000), ("6", 25_000_001), ("6", 34_000_000), ("6", 34_000_001), ("8", 8_000_000)]
    panel_rows = [{"CHR": c, "BP": p} for c, p in places]

    def kept(**keywords) -> list[int]:
        result = harmonise(gwas(panel_rows), variants(panel_rows), **keywords)
        assert_conserved(result, len(places))
        return result.frame["VARIANT"].to_list()

    assert kept(genome_build="GRCh37") == [0, 3]
    assert kept(genome_build="GRCh38") == [0, 3, 4]
    assert kept(options=QCOptions(exclude="mhc")) == [0, 3, 4]
    assert kept(options=PLAIN) == [0, 1, 2, 3, 4]
    bed = tmp_path / "regions.bed"
    bed.write_text("chr6\t24999999\t25000000\nchr8\t0\t9000000\nchr8\t10\t20\n")
    assert kept(options=QCOptions(exclude=str(bed))) == [1, 2, 3]
    with pytest.raises(InputError, match="genome_build"):
        harmonise(gwas(panel_rows), variants(panel_rows))


@given(
    st.lists(st.tuples(st.sampled_from("12"), st.integers(0, 30), st.integers(1, 15)), max_size=6),
    st.lists(st.tuples(st.sampled_from("123"), st.integers(1, 50)), min_size=1, max_size=20),
)
def test_inside_is_the_plain_definition(intervals, points):
    schema = {"CHR": pl.String, "START": pl.Int64, "END": pl.Int64}
    regions = pl.DataFrame([(c, a, a + n) for c, a, n in intervals], schema=schema, orient="row")
    frame = pl.DataFrame(points, schema={"CHR": pl.String, "BP": pl.Int64}, orient="row")
    expected = [any(c == d and a < p <= a + n for d, a, n in intervals) for c, p in points]
    assert inside(frame, regions).to_list() == expected


def test_the_lists_of_regions_name_the_same_regions_on_both_builds():
    """In genome order, region by region: the same chromosome, and centres less than 5 Mb apart."""
    old, new = (
        excluded_regions("long-range", build)
        .filter(pl.col("END") - pl.col("START") > 1_000_000)
        .sort(pl.col("CHR").cast(pl.Int64), "START")
        for build in ("GRCh37", "GRCh38")
    )
    assert old.height == new.height == 19
    assert old["CHR"].equals(new["CHR"])
    centres = [f.select((pl.col("START") + pl.col("END")) / 2).to_series() for f in (old, new)]
    assert (centres[0] - centres[1]).abs().max() < 5e6


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_n_fraction": 1.2},
        {"min_info": -0.1},
        {"max_frequency_difference": float("nan")},
        {"palindrome_margin": 0.6},
        {"palindromes": "guess"},
        {"match": "name"},
        {"extreme_chi2": "cap"},
        {"exclude": "no-such-file.bed"},
    ],
)
def test_options_check_themselves(wrong):
    name = next(iter(wrong))
    with pytest.raises(InputError) as error:
        QCOptions(**wrong)
    assert ("no-such-file.bed" if name == "exclude" else "--" + name.replace("_", "-")) in str(error.value)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_swaps_strands_and_order_come_back_to_the_same_z(height, panel, seed):
    """Write each row in a random one of its forms, shuffle: the harmonised z-scores are the same bits."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(height.frame.height, 500, replace=False)
    frame = height.frame[chosen].select("CHR", "SNP", "BP", "A1", "A2", "Z", "N", "FRQ")
    swap = pl.Series(rng.random(500) < 0.5)
    strand = pl.Series(rng.random(500) < 0.5)
    frame_out = frame.with_columns(
        A1=pl.when(swap).then("A2").otherwise("A1"),
        A2=pl.when(swap).then("A1").otherwise("A2"),
        Z=pl.when(swap).then(-pl.col("Z")).otherwise("Z"),
        FRQ=pl.when(swap).then(1 - pl.col("FRQ")).otherwise("FRQ"),
    ).with_columns(pl.when(strand).then(pl.col(c).replace(COMPLEMENT)).otherwise(c).alias(c) for c in ("A1", "A2"))
    scrambled = frame_out[rng.permutation(500)]
    results = [
        harmonise(SumStats(f, height.path, "t", "GRCh37", "0"), panel, n_panel=378, genome_build="GRCh37")
        for f in (frame, scrambled)
    ]
    for result in results:
        assert_conserved(result, 500)
    one, two = (r.frame for r in results)
    assert one.drop("FRQ").equals(two.drop("FRQ"))
    np.testing.assert_allclose(one["FRQ"], two["FRQ"], rtol=1e-12)


ALLELES = st.sampled_from(["A", "C", "G", "T", "AT"])
ANY_ROW = st.fixed_dictionaries(
    {
        "BP": st.sampled_from([100, 200, 300, None]),
        "SNP": st.sampled_from(["rs1", "rs2", None]),
        "A1": ALLELES,
        "A2": ALLELES,
        "Z": st.sampled_from([0.0, 1.0, -1.0, 20.0]),
        "N": st.sampled_from([100.0, 1000.0]),
        "FRQ": st.sampled_from([None, 0.1, 0.5, 0.9]),
        "INFO": st.sampled_from([None, 0.3, 1.0]),
    }
)


@settings(deadline=None)
@given(
    st.lists(ANY_ROW, max_size=15),
    st.sampled_from(["frequency", "drop", "keep"]),
    st.sampled_from(["position", "rsid"]),
)
def test_no_row_vanishes_uncounted(rows, palindromes, match):
    if match == "position":  # identifiers that contradict the positions would be another genome build
        rows = [{**row, "SNP": None} for row in rows]
    anchor = {"SNP": "rs9", "BP": 900, "N": 1000.0, "INFO": 1.0}
    rows = [anchor, *(row for row in rows if row["A1"] != row["A2"])]
    panel_rows = [{}, {"A1": "C", "A2": "G"}, {"A1": "AT", "A2": "A"}, {"SNP": "rs9", "BP": 900}]
    options = QCOptions(exclude="none", match=match, palindromes=palindromes, min_n_fraction=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        result = harmonise(gwas(rows), variants(panel_rows), options=options)
    assert_conserved(result, len(rows))
    assert result.frame["VARIANT"].is_unique().all()
    assert result.frame["VARIANT"].is_sorted()
    assert 3 in result.frame["VARIANT"]


def test_matches_by_chance_are_refused(height, panel):
    moved = height.frame.with_columns(pl.col("BP") + 400_000, SNP="other" + pl.col("SNP"))
    shifted = SumStats(moved, height.path, "fastGWA", None, "0" * 64)
    with pytest.raises(InputError, match=r"only \d+ of its 15,935 variants are among the 15,938"):
        harmonise(shifted, panel, genome_build="GRCh37")
