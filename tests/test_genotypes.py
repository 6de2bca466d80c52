"""PLINK panels: real files written by bed-reader, and every way they can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bed_reader import to_bed
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepwas.errors import InputError
from deepwas.genotypes import open_plink, standardise

EXAMPLE = Path(__file__).parents[1] / "deepwas" / "data" / "example" / "1000G_eur_chr22"
N, M = 61, 7  # neither is a multiple of four: the last byte of each variant is padded


def write_panel(folder: Path, dosages: np.ndarray | None = None, **properties: object) -> str:
    """A small PLINK panel; dosages (n, m) count A1, NaN where missing."""
    if dosages is None:
        dosages = np.random.default_rng(1).integers(0, 3, (N, M)).astype(float)
    m = dosages.shape[1]
    known: dict[str, object] = {
        "chromosome": ["1"] * m,
        "sid": [f"rs{j}" for j in range(m)],
        "bp_position": np.arange(1, m + 1) * 100,
        "allele_1": ["A"] * m,
        "allele_2": ["G"] * m,
    }
    prefix = str(folder / "panel")
    to_bed(prefix + ".bed", dosages, properties=known | properties)
    return prefix


def test_reads_back_counts_of_a1_with_nan_where_missing(tmp_path):
    dosages = np.random.default_rng(0).integers(0, 3, (N, M)).astype(np.float32)
    dosages[[3, 60], [0, 6]] = np.nan
    panel = open_plink(write_panel(tmp_path, dosages))
    assert panel.n_samples == N
    np.testing.assert_array_equal(panel.read(slice(0, M)), dosages)
    np.testing.assert_array_equal(panel.read([4, 1]), dosages[:, [4, 1]])
    people = np.array([60, 2])
    np.testing.assert_array_equal(panel.read([0, 6], samples=people), dosages[np.ix_(people, [0, 6])])
    assert panel.read([]).shape == (N, 0)
    assert panel.read([0]).dtype == np.float32


def test_count_genotypes_agrees_with_the_dosages(tmp_path):
    dosages = np.random.default_rng(2).choice([0, 1, 2, np.nan], (N, M))
    counts = open_plink(write_panel(tmp_path, dosages)).count_genotypes()
    expected = [[(dosages[:, j] == c).sum() for c in range(3)] + [np.isnan(dosages[:, j]).sum()] for j in range(M)]
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("suffix", ["", ".bed", ".bim", ".fam"])
def test_the_prefix_or_any_of_the_files_may_be_named(tmp_path, suffix):
    assert open_plink(write_panel(tmp_path) + suffix).n_variants == M


def test_the_example_panel_opens_whole_and_in_order():
    panel = open_plink(EXAMPLE)
    assert (panel.n_samples, panel.n_variants) == (378, 15_938)
    assert panel.variants["BP"].is_sorted()
    assert panel.variants["CM"].null_count() == 0
    assert panel.tally.total("dropped") == 0
    assert panel.variants.row(0) == ("22", "rs131538", 2.2360313, 16_871_137, "A", "G")


def test_unsorted_panel_is_sorted_by_genome_and_the_genotypes_follow(tmp_path):
    dosages = np.random.default_rng(3).integers(0, 3, (N, M)).astype(np.float32)
    chromosome = ["chr10", "2", "23", "2", "GL1", "1", "2"]
    position = np.array([5, 300, 7, 100, 1, 9, 200])
    panel = open_plink(write_panel(tmp_path, dosages, chromosome=chromosome, bp_position=position))
    assert panel.variants["CHR"].to_list() == ["1", "2", "2", "2", "10", "X", "GL1"]
    assert panel.variants["BP"].to_list() == [9, 100, 200, 300, 5, 7, 1]
    np.testing.assert_array_equal(panel.read(slice(None)), dosages[:, [5, 3, 6, 1, 0, 2, 4]])
    assert [r.reason for r in panel.tally.rows if r.action == "noted"] == [
        "not in genome order in the .bim file: sorted"
    ]


def test_unusable_variants_are_dropped_and_counted_by_reason(tmp_path):
    panel = open_plink(
        write_panel(
            tmp_path,
            bp_position=np.array([100, 100, 100, 0, 500, 600, 700]),
            allele_1=["A", "G", "A", "A", "0", "C", "T"],
            allele_2=["g", "a", "T", "G", "G", "C", "C"],
        )
    )
    dropped = {r.reason: (r.count, r.first) for r in panel.tally.rows if r.action == "dropped"}
    assert dropped == {
        "repeats an earlier variant: same position and alleles": (1, "rs1"),
        "no position, or one below 1": (1, "rs3"),
        "an allele is missing (0 or . in the .bim file)": (1, "rs4"),
        "both alleles are the same": (1, "rs5"),
    }
    assert panel.variants["SNP"].to_list() == ["rs0", "rs2", "rs6"]
    assert panel.variants["A2"].to_list() == ["G", "T", "C"]
    assert panel.tally.total("dropped") + panel.tally.total("kept") == M
    assert panel.variants["CM"].null_count() == 3  # 0 throughout: no genetic map


def test_unnamed_variants_are_named_and_shared_names_noted(tmp_path):
    panel = open_plink(write_panel(tmp_path, sid=["rs0", ".", "rs2", "rs0", "rs4", ".", "rs6"]))
    assert panel.variants["SNP"].to_list() == ["rs0", "1:200:G:A", "rs2", "rs0", "rs4", "1:600:G:A", "rs6"]
    assert [(r.action, r.count, r.first) for r in panel.tally.rows if r.action in ("changed", "noted")] == [
        ("changed", 2, "line 2 of the .bim file"),
        ("noted", 1, "rs0"),
    ]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.bed: no such file"):
        open_plink(tmp_path / "absent")
    prefix = write_panel(tmp_path)
    Path(prefix + ".fam").unlink()
    with pytest.raises(InputError, match=r"panel\.fam: no such file \(the sample table"):
        open_plink(prefix)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"chr1\t10\t20\n", "starts with 63 68, not 6c 1b"),
        (b"", "starts with nothing"),
        (b"\x6c\x1b\x00\x00", "sample by sample.*plink2 --bfile .* --make-bed"),
        (b"\x6c\x1b\x07\x00", "unknown layout 0x07"),
    ],
)
def test_files_that_are_not_variant_major_plink_are_refused(tmp_path, head, message):
    prefix = write_panel(tmp_path)
    Path(prefix + ".bed").write_bytes(head)
    with pytest.raises(InputError, match=message):
        open_plink(prefix)


@pytest.mark.parametrize(("change", "word"), [(-1, "truncated"), (1, "too long")])
def test_a_size_that_does_not_fit_is_refused_with_both_numbers(tmp_path, change, word):
    prefix = write_panel(tmp_path)
    bed = Path(prefix + ".bed")
    data = bed.read_bytes()
    bed.write_bytes(data[:-1] if change < 0 else data + b"\x00")
    expected = 3 + 16 * M
    with pytest.raises(InputError, match=f"{word}: {expected + change} bytes.* take {expected}"):
        open_plink(prefix)


def test_malformed_tables_are_refused_with_the_line(tmp_path):
    prefix = write_panel(tmp_path)
    bim = Path(prefix + ".bim")
    good = bim.read_text()
    bim.write_text(good.replace("\t300\t", "\t3oo\t"))
    with pytest.raises(InputError, match=r"panel\.bim: column BP, line 3: '3oo'"):
        open_plink(prefix)
    bim.write_text("\n".join(line.rsplit("\t", 1)[0] for line in good.splitlines()))
    with pytest.raises(InputError, match=r"5 columns found, a \.bim table has 6"):
        open_plink(prefix)
    bim.write_text(good)
    fam = Path(prefix + ".fam")
    fam.write_text("a b\n" * N)
    with pytest.raises(InputError, match=r"2 columns found, a \.fam table has 6"):
        open_plink(prefix)


def test_too_few_people_and_no_usable_variant_are_refused(tmp_path):
    with pytest.raises(InputError, match="49 people"):
        open_plink(write_panel(tmp_path, np.ones((49, 2))))
    with pytest.raises(InputError, match=r"none of the 7 variants is usable.*below 1"):
        open_plink(write_panel(tmp_path, bp_position=np.zeros(M, dtype=int)))


def test_other_formats_are_named_with_the_conversion(tmp_path):
    with pytest.raises(InputError, match="plink2 --vcf"):
        open_plink(tmp_path / "x.vcf.gz")
    (tmp_path / "new.pgen").touch()
    with pytest.raises(InputError, match="plink2 --pfile"):
        open_plink(tmp_path / "new")


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(3, 40), st.integers(1, 8)), elements=st.sampled_from([0.0, 1.0, 2.0, np.nan])
    )
)
def test_standardised_genotypes_have_mean_0_variance_1_and_nothing_missing(dosages):
    out = standardise(dosages)
    x = out.genotypes
    assert x.shape == dosages.shape
    assert np.isfinite(x).all()
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose((x**2).mean(axis=0), ~out.monomorphic, atol=1e-5)
    np.testing.assert_allclose(x[np.isnan(dosages)], 0, atol=0)
    np.testing.assert_allclose(out.missing, np.isnan(dosages).mean(axis=0))
    for j in range(dosages.shape[1]):
        seen = dosages[~np.isnan(dosages[:, j]), j]
        assert out.monomorphic[j] == (len(np.unique(seen)) <= 1)
        np.testing.assert_allclose(out.frequency[j], seen.mean() / 2 if seen.size else np.nan, rtol=1e-6)


def test_complete_genotypes_give_the_correlations_of_numpy():
    dosages = np.random.default_rng(5).binomial(2, 0.3, (200, 6)).astype(np.float64)
    x = standardise(dosages).genotypes
    np.testing.assert_allclose(x.T @ x / 200, np.corrcoef(dosages.T), atol=1e-12)
