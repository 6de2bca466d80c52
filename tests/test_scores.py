"""Sequence-model scores: formats, matching, signs, duplicates, components, and what is written."""

from __future__ import annotations

import gzip

import h5py
import numpy as np
import polars as pl
import pytest

import deepwas
from deepwas.annotations import score_files, score_text
from deepwas.annotations.reduce import Moments, Reduction, read_reduction
from deepwas.annotations.scores import ScoreOptions, read_scores
from deepwas.annotations.signed import SignedScores, read_signed_scores
from deepwas.cli import main
from deepwas.errors import InputError
from deepwas.ld import LDBlock, write_ld

# rs1: A1 is the file's alt.  rs2: A1 is its ref.  rs3: palindromic.  rs4: an indel.  rs5: in no file.
VARIANTS = pl.DataFrame(
    {
        "CHR": ["1", "1", "2", "2", "2"],
        "SNP": ["rs1", "rs2", "rs3", "rs4", "rs5"],
        "BP": [100, 200, 100, 300, 400],
        "A1": ["A", "C", "G", "AT", "T"],
        "A2": ["G", "T", "C", "A", "C"],
        "FREQ": [0.1, 0.2, 0.3, 0.4, 0.5],
    }
)
NAN = np.nan
TEXT = """\
chrom\tpos\tref\talt\trsid\tdnase\tcage\tgene
chr1\t100\tG\tA\trs1\t1\t-2\tx
chr1\t200\tC\tT\trs2\t2\t-3\ty
2\t100\tC\tG\trs3\t3\tNA\tz
2\t300\tA\tAT\trs4\t-4\t5\tz
2\t999\tA\tG\trs99\t9\t9\tz
1\t100\tG\tT\trs1b\t8\t8\tz
"""
SIGNED = np.array([[1, -2], [-2, 3], [3, NAN], [-4, 5], [NAN, NAN]], dtype=np.float32)


def counts(tally) -> dict[str, int]:
    return {row.reason: row.count for row in tally.rows}


def rows_of(text: str = TEXT) -> list[list[str]]:
    return [line.split("\t") for line in text.strip().split("\n")]


def write(path, kind: str, text: str = TEXT):
    """The same table in every format."""
    header, *rows = rows_of(text)
    if kind in ("tsv", "csv", "txt"):
        separator = {"tsv": "\t", "csv": ",", "txt": "  "}[kind]
        data = "\n".join(separator.join(line) for line in rows_of(text)) + "\n"
        if kind == "csv":
            data = "##comment\n" + data.replace("\n", "\r\n")
        path.write_bytes(gzip.compress(data.encode()) if kind == "txt" else data.encode())
        return path
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    numbers = {n: np.array([NAN if x == "NA" else float(x) for x in columns[n]], np.float32) for n in ("dnase", "cage")}
    if kind == "parquet":
        pl.DataFrame({**columns, "pos": [int(x) for x in columns["pos"]], **numbers}).write_parquet(path)
    else:
        with h5py.File(path, "w") as handle:
            for name, own in (("chrom", "chr"), ("ref", "ref_allele"), ("alt", "alt_allele"), ("rsid", "snp")):
                handle[own] = np.array(columns[name], dtype="S")
            handle["pos"] = np.array(columns["pos"], dtype=int)
            handle["SAD"] = np.stack(list(numbers.values()), axis=1).astype(np.float16)
            handle["target_labels"] = np.array(["dnase", "cage"], dtype="S")
            handle["gene"] = np.array(columns["gene"], dtype="S")
    return path


@pytest.mark.parametrize("kind", ["tsv", "csv", "txt", "parquet", "h5"])
def test_every_format_gives_the_same_scores_on_the_stores_alleles(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(score_text, "TEXT_BYTES", 60)  # so that lines are split between pieces
    monkeypatch.setattr(score_files, "PIECE_BYTES", 16)
    found = read_scores(write(tmp_path / f"scores.{kind}", kind), VARIANTS)
    assert found.signed is not None
    assert found.annotations is not None
    assert found.signed.names == ("dnase", "cage")
    assert found.annotations.names == ("abs:dnase", "abs:cage")
    np.testing.assert_array_equal(found.signed.values, SIGNED)
    np.testing.assert_array_equal(found.annotations.values, np.abs(SIGNED))
    said = counts(found.tally)
    assert said["variants matched by CHR BP and alleles"] == 4
    assert said["sign turned: A1 is the reference allele"] == 1
    assert said["rows of other variants, unused"] == 1
    assert said["rows at a variant's place with other alleles"] == 1
    assert said[f"missing: variants without a row in scores.{kind}"] == 1
    assert said["sign taken as on the store's strand: palindromic variants (A/T or C/G)"] == 1
    assert said["columns unused, no scores: gene"] == 1


def test_variant_names_serve_as_key(tmp_path):
    header, *rows = rows_of()
    lines = ["variant_id,llr", *(f"chr{r[0].removeprefix('chr')}:{r[1]}:{r[2]}>{r[3]},{r[5]}" for r in rows)]
    (tmp_path / "llr.csv").write_text("\n".join(lines))
    found = read_scores(tmp_path / "llr.csv", VARIANTS, options=ScoreOptions(make="signed"))
    assert found.annotations is None
    assert found.signed is not None
    np.testing.assert_array_equal(found.signed.values[:, 0], SIGNED[:, 0])
    assert header[0] == "chrom"


def test_strand_and_palindromes(tmp_path):
    """On the other strand alleles are complemented; what is palindromic then has no known sign, but a size."""
    turned = TEXT.replace("100\tG\tA\t", "100\tC\tT\t")
    path = write(tmp_path / "s.tsv", "tsv", turned)
    found = read_scores(path, VARIANTS)
    expected = SIGNED.copy()
    expected[2] = NAN
    np.testing.assert_array_equal(found.signed.values, expected)
    np.testing.assert_array_equal(found.annotations.values, np.abs(SIGNED))
    said = counts(found.tally)
    assert said["on the other strand, alleles complemented"] == 1
    assert said["no signed score: palindromic variants (A/T or C/G)"] == 1
    kept = read_scores(path, VARIANTS, options=ScoreOptions(palindromes="keep"))
    np.testing.assert_array_equal(kept.signed.values, SIGNED)
    dropped = read_scores(write(tmp_path / "t.tsv", "tsv"), VARIANTS, options=ScoreOptions(palindromes="drop"))
    np.testing.assert_array_equal(dropped.signed.values, expected)


def test_flipping_the_stores_alleles_flips_every_sign_and_no_size(tmp_path):
    path = write(tmp_path / "s.tsv", "tsv")
    found = read_scores(path, VARIANTS)
    flipped = read_scores(path, VARIANTS.rename({"A1": "A2", "A2": "A1"}))
    np.testing.assert_array_equal(flipped.signed.values, -found.signed.values)
    np.testing.assert_array_equal(flipped.annotations.values, found.annotations.values)


def test_unsigned_columns_do_not_flip_and_are_no_signed_scores(tmp_path):
    options = ScoreOptions(unsigned=("ca*",))
    found = read_scores(write(tmp_path / "s.tsv", "tsv"), VARIANTS, options=options)
    assert found.signed.names == ("dnase",)
    assert found.annotations.names == ("abs:dnase", "cage")
    np.testing.assert_array_equal(found.annotations.values[:, 1], np.array([-2, -3, NAN, 5, NAN], np.float32))
    with pytest.raises(InputError, match="every column is named unsigned"):
        read_scores(tmp_path / "s.tsv", VARIANTS, options=ScoreOptions(unsigned=("*",), make="signed"))
    with pytest.raises(
        InputError, match=r"s\.tsv: no score column fits the unsigned 'cagf'; those used are dnase cage"
    ):
        read_scores(tmp_path / "s.tsv", VARIANTS, options=ScoreOptions(unsigned=("dnase", "cagf")))
    tables = {"a": tmp_path / "s.tsv", "b": tmp_path / "t.tsv"}
    write(tables["b"], "tsv", TEXT.replace("dnase\tcage", "gerp\tllr"))
    assert read_scores(tables, VARIANTS, options=ScoreOptions(unsigned=("gerp",))).signed.names == (
        *("a:dnase", "a:cage"),
        "b:llr",
    )


def test_repeated_rows_count_once_or_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(score_text, "TEXT_BYTES", 60)
    same = TEXT + "1\t200\tT\tC\trs2\t-2\t3\tz\n1\t100\tG\tA\trs1\t1\t-2\tx\n"  # once with ref and alt exchanged
    found = read_scores(write(tmp_path / "s.tsv", "tsv", same), VARIANTS)
    np.testing.assert_array_equal(found.signed.values, SIGNED)
    assert counts(found.tally)["rows that repeat a variant, with the same scores"] == 2
    other = TEXT + "1\t200\tC\tT\trs2\t2\t-7\tz\n"
    with pytest.raises(InputError, match=r"line 3 and line 8 are the same variant \(1:200 C>T\) but column cage"):
        read_scores(write(tmp_path / "t.tsv", "tsv", other), VARIANTS)


@pytest.mark.parametrize(
    ("row", "given", "agrees"),
    [
        ("T\tC\trs2\t-2\t3", {}, True),
        ("T\tC\trs2\t2\t3", {}, False),  # the alleles exchanged, the score of either the same
        ("C\tT\trs2\t-2\t-3", {}, False),
        ("G\tA\trs2\t2\t-3", {}, True),  # on the other strand
        ("T\tC\trs2\t2\t3", {"make": "absolute"}, True),
        ("T\tC\trs2\t2.5\t3", {"make": "absolute"}, False),
        ("T\tC\trs2\t2\t3", {"unsigned": ("dnase",)}, True),
        ("T\tC\trs2\t-2\t3", {"unsigned": ("dnase",)}, False),
        ("T\tC\trs2\t-2\t3", {"unsigned": ("dnase",), "make": "absolute"}, False),
    ],
)
def test_repeats_agree_on_the_same_alleles(tmp_path, row, given, agrees):
    """Against line 3, C>T with dnase 2 and cage -3."""
    path = write(tmp_path / "s.tsv", "tsv", TEXT + f"1\t200\t{row}\tz\n")
    options = ScoreOptions(**given)
    if agrees:
        found = read_scores(path, VARIANTS, options=options)
        assert counts(found.tally)["rows that repeat a variant, with the same scores"] == 1
    else:
        with pytest.raises(InputError, match=r"line 3 and line 8 are the same variant .* but column dnase holds 2 and"):
            read_scores(path, VARIANTS, options=options)


def test_parts_and_several_tables(tmp_path):
    header, *rows = rows_of()
    for chromosome in ("1", "2"):
        own = [r for r in rows if r[0].removeprefix("chr") == chromosome]
        text = "\n".join("\t".join(line) for line in [header, *own])
        write(tmp_path / f"s{chromosome}.tsv", "tsv", text)
    other = write(tmp_path / "other.h5", "h5")
    found = read_scores(tmp_path / "s@.tsv", VARIANTS)
    np.testing.assert_array_equal(found.signed.values, SIGNED)
    both = read_scores({"a": tmp_path / "s@.tsv", "b": other}, VARIANTS)
    assert both.signed.names == ("a:dnase", "a:cage", "b:dnase", "b:cage")
    np.testing.assert_array_equal(both.signed.values, np.hstack([SIGNED, SIGNED]))
    with pytest.raises(InputError, match=r"4 variants .* or another file with the same columns too"):
        read_scores([tmp_path / "s@.tsv", other], VARIANTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("\t-3\t", "\tinf\t"), "column cage, line 3: the value is infinite"),
        (("\t200\t", "\tfar\t"), "column pos, line 3: 'far' is not a position"),
        (("rs4\t-4\t5\tz", "rs4\t-4"), "line 5 has 6 fields, the header has 8"),
        (("chrom\t", "where\t"), "no key to variants among where pos ref alt"),
        (("pos\tref", "pos\tpos"), "the header names pos twice"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, change, message):
    text = TEXT.replace(*change)
    assert text != TEXT
    with pytest.raises(InputError, match=message):
        read_scores(raw(tmp_path, text), VARIANTS)


@pytest.mark.parametrize("kind", ["tsv", "csv", "txt"])
@pytest.mark.parametrize(
    ("row", "fields"),
    [("1\t500\tG\tA\trs1\t1", 6), ("1\t500\tG\tA\trs1\t1\t-2", 7), ("1\t500\tG\tA\trs1\t1\t-2\tx\t9", 9)],
)
def test_lines_cut_short_or_too_long_are_no_missing_scores(tmp_path, kind, row, fields):
    path = write(tmp_path / "s", kind, TEXT + row + "\n")
    with pytest.raises(InputError, match=f"line 8 has {fields} fields, the header has 8"):
        read_scores(path, VARIANTS)


def test_a_comma_between_quotes_ends_no_field(tmp_path):
    text = "\n".join(",".join(line) for line in rows_of())
    path = tmp_path / "s.csv"
    path.write_text(text.replace(",z", ',"z, or y"').replace(",x", ","))  # the last column missing in one line
    np.testing.assert_array_equal(read_scores(path, VARIANTS).signed.values, SIGNED)
    path.write_text(text.replace("rs2,2,-3,y", '"rs2, or rs1",2'))
    with pytest.raises(InputError, match="line 3 has 6 fields, the header has 8"):
        read_scores(path, VARIANTS)


def test_text_among_numbers_is_named_wherever_it_stands(tmp_path, monkeypatch):
    monkeypatch.setattr(score_text, "TEXT_BYTES", 5000)
    filler = "".join(f"9\t{i}\tA\tG\tx\t1\t1\tz\n" for i in range(1000))
    header, rest = TEXT.split("\n", 1)
    with pytest.raises(InputError, match="column cage, line 1,003: 'low' is not a number"):
        read_scores(raw(tmp_path, header + "\n" + filler + rest.replace("\t-3\t", "\tlow\t")), VARIANTS)


def test_a_text_cell_costs_no_column(tmp_path):
    for text in ("low", "1,5"):
        with pytest.raises(InputError, match=rf"s.tsv: column dnase, line 4: '{text}' is not a number"):
            read_scores(raw(tmp_path, TEXT.replace("rs3\t3\t", f"rs3\t{text}\t")), VARIANTS)
    found = read_scores(raw(tmp_path, TEXT.replace("rs3\t3\t", "rs3\tN/A\t")), VARIANTS)
    assert np.isnan(found.signed.values[2]).all()
    found = read_scores(raw(tmp_path, TEXT.replace("rs3\t3\t", "rs3\t-\t")), VARIANTS)  # as annotators write it
    assert np.isnan(found.signed.values[2]).all()
    # What is not asked for need not be mended.
    cage = ScoreOptions(columns=("cage",))
    assert read_scores(raw(tmp_path, TEXT.replace("\t3\t", "\tlow\t")), VARIANTS, options=cage).signed.names == (
        "cage",
    )


def test_a_text_cell_in_parquet_is_named(tmp_path):
    path = write(tmp_path / "s.parquet", "parquet")
    frame = pl.read_parquet(path)
    frame.with_columns(cage=pl.Series(["-2", "low", None, "5", "9", "8"])).write_parquet(path)
    with pytest.raises(InputError, match="column cage, row 2: 'low' is not a number \\(1 such\\)"):
        read_scores(path, VARIANTS)
    frame.with_columns(pl.col("cage").cast(pl.String)).write_parquet(path)
    with pytest.raises(InputError, match="column cage holds numbers written as text"):
        read_scores(path, VARIANTS)


def raw(tmp_path, text: str):
    (tmp_path / "s.tsv").write_text(text)
    return tmp_path / "s.tsv"


def test_files_that_cannot_be_scores(tmp_path):
    with pytest.raises(InputError, match="no row matches any of 5 variants"):
        read_scores(raw(tmp_path, "chrom\tpos\tref\talt\tx\n9\t1\tA\tG\t1\n"), VARIANTS)
    with pytest.raises(InputError, match="no numeric column beside the keys"):
        read_scores(raw(tmp_path, "chrom\tpos\tref\talt\tx\n1\t100\tG\tA\ta\n"), VARIANTS)
    with pytest.raises(InputError, match="no score column fits 'dn'"):
        read_scores(write(tmp_path / "s.tsv", "tsv"), VARIANTS, options=ScoreOptions(columns=("dn",)))
    path = write(tmp_path / "s.h5", "h5")
    with pytest.raises(InputError, match=r"no matrix 'SAR' of 6 rows x tracks; there are SAD \(6, 2\)"):
        read_scores(path, VARIANTS, options=ScoreOptions(matrix="SAR"))
    with h5py.File(path, "a") as handle:
        handle["SAR"] = handle["SAD"][:]
        handle.move("SAD", "SED")
    with pytest.raises(InputError, match="several matrices of 6 rows x tracks"):
        read_scores(path, VARIANTS)
    with pytest.raises(InputError, match="two genome builds"):
        read_scores(path, VARIANTS.with_columns(pl.col("BP") + 7), options=ScoreOptions(matrix="SAR"))
    found = read_scores(path, VARIANTS.with_columns(pl.col("BP") + 7), options=ScoreOptions(matrix="SAR", match="rsid"))
    np.testing.assert_array_equal(found.signed.values, SIGNED)
    for wrong in ({"make": "all"}, {"pca": 0}, {"match": "name"}, {"palindromes": "yes"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            ScoreOptions(**wrong)


# --- components -------------------------------------------------------------------------------------------------


def dense_components(x: np.ndarray, k: int, signed: bool) -> np.ndarray:
    """By singular values of the whole matrix, missing values filled in."""
    mean = np.zeros(x.shape[1]) if signed else np.nanmean(x, axis=0)
    centred = x - mean
    scale = np.sqrt(np.nanmean(centred**2, axis=0))
    filled = np.nan_to_num(centred / scale)
    _, _, Vt = np.linalg.svd(filled, full_matrices=False)
    Vt = Vt[:k]
    Vt *= np.sign(Vt[np.arange(k), np.abs(Vt).argmax(axis=1)])[:, None]
    return filled @ Vt.T


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("holes", [True, False])
def test_components_are_those_of_the_whole_matrix(signed, holes):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 8)) + 0.2 * rng.normal(size=(200, 8)) + 5
    if holes:
        x[rng.random(x.shape) < 0.1] = NAN
    moments = Moments(8)
    for start in range(0, 200, 33):
        moments.add(x[start : start + 33])
    names = [f"t{i}" for i in range(8)]
    found = Reduction.fit(moments, names, 3, signed=signed)
    expected = dense_components(x, 3, signed)
    np.testing.assert_allclose(found.transform(x), expected, atol=2e-5)
    if not holes:
        np.testing.assert_allclose(found.variances, expected.var(axis=0) + expected.mean(axis=0) ** 2, rtol=1e-6)
        assert found.share == pytest.approx(found.variances.sum() / 8)
    shuffled = found.ordered(names[::-1])
    np.testing.assert_allclose(shuffled.transform(x[:, ::-1]), found.transform(x), atol=1e-6)


def test_signed_components_do_not_depend_on_the_alleles_counted():
    """Flipped rows have flipped components and leave the loadings alone; with centring neither would hold."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(100, 5)) + 1
    signs = rng.choice([-1.0, 1.0], size=100)[:, None]
    made = []
    for values in (x, signs * x):
        moments = Moments(5)
        moments.add(values)
        made.append((Reduction.fit(moments, list("abcde"), 2, signed=True), moments))
    (first, own), (second, _) = made
    np.testing.assert_allclose(first.loadings, second.loadings, atol=1e-10)
    np.testing.assert_allclose(second.transform(signs * x), signs * first.transform(x), atol=1e-6)
    centred = Reduction.fit(own, list("abcde"), 2, signed=False)
    assert np.abs(centred.transform(-x) + centred.transform(x)).max() > 0.1


def test_constant_and_collinear_columns_make_no_component():
    x = np.column_stack([np.arange(6.0), 2 * np.arange(6.0), np.full(6, 3.3)])
    moments = Moments(3)
    moments.add(x)
    found = Reduction.fit(moments, ["a", "b", "c"], 3, signed=False)
    assert found.constant == ("c",)
    assert found.loadings.shape == (3, 1)
    assert found.share == pytest.approx(1)
    alone = Moments(1)
    alone.add(np.full((4, 1), 2.0))
    with pytest.raises(InputError, match="no score varies"):
        Reduction.fit(alone, ["c"], 1, signed=False)


def wide(path, m: int, p: int, seed: int = 0):
    """Scores of m variants on one chromosome, and the store's variants."""
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(m, 3)) @ rng.normal(size=(3, p))).astype(np.float32)
    with h5py.File(path, "w") as handle:
        handle["chr"] = np.full(m, b"chr1")
        handle["pos"] = np.arange(1, m + 1)
        handle["ref_allele"], handle["alt_allele"] = np.full(m, b"A"), np.full(m, b"G")
        handle.create_dataset("SAD", data=values, chunks=(16, p), compression="gzip")
    flipped = rng.random(m) < 0.5
    variants = pl.DataFrame(
        {
            "CHR": ["1"] * m,
            "SNP": [f"rs{i}" for i in range(m)],
            "BP": np.arange(1, m + 1),
            "A1": np.where(flipped, "A", "G"),
            "A2": np.where(flipped, "G", "A"),
            "FREQ": np.full(m, 0.3),
        }
    )
    return values * np.where(flipped, -1, 1)[:, None], variants


def test_components_are_fitted_stored_and_applied_again(tmp_path, monkeypatch):
    monkeypatch.setattr(score_files, "PIECE_BYTES", 4 * 20 * 16)
    signed, variants = wide(tmp_path / "s.h5", 90, 20)
    steps = []
    found = read_scores(
        tmp_path / "s.h5", variants, options=ScoreOptions(pca=3), progress=lambda *step: steps.append(step)
    )
    np.testing.assert_allclose(found.signed.values, dense_components(signed, 3, True), atol=1e-4)
    np.testing.assert_allclose(found.annotations.values, dense_components(np.abs(signed), 3, False), atol=1e-4)
    assert found.signed.names == ("signed_PC1", "signed_PC2", "signed_PC3")
    assert steps[-1][1:] == (90, 90)
    assert len({step[0] for step in steps}) == 2
    for name, reduction in found.reductions.items():
        reduction.write(tmp_path / f"{name}.parquet")
    loadings = [read_reduction(tmp_path / f"{name}.parquet") for name in ("signed", "absolute")]
    again = read_scores(tmp_path / "s.h5", variants[:40], loadings=loadings)
    np.testing.assert_array_equal(again.signed.values, found.signed.values[:40])
    np.testing.assert_array_equal(again.annotations.values, found.annotations.values[:40])
    with pytest.raises(InputError, match="no table has just these columns"):
        read_scores(tmp_path / "s.h5", variants, loadings=loadings, options=ScoreOptions(columns=("SAD_1*",)))
    with pytest.raises(InputError, match="no loadings of principal components"):
        read_reduction(tmp_path / "s.h5")


# --- files and command line -------------------------------------------------------------------------------------


def test_signed_scores_come_back_and_only_for_their_store(tmp_path):
    found = read_scores(write(tmp_path / "s.tsv", "tsv"), VARIANTS)
    found.signed.write_parquet(tmp_path / "s.signed.parquet")
    again = read_signed_scores(tmp_path / "s.signed.parquet", VARIANTS)
    np.testing.assert_array_equal(again.values, SIGNED)
    assert again.sources == found.signed.sources
    assert counts(again.tally) == counts(found.tally)
    with pytest.raises(InputError, match="made for another LD store"):
        read_signed_scores(tmp_path / "s.signed.parquet", VARIANTS[:3])
    with pytest.raises(InputError, match="made for another LD store"):
        read_signed_scores(tmp_path / "s.signed.parquet", VARIANTS.rename({"A1": "A2", "A2": "A1"}))
    found.annotations.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="signed scores expected, this is deepwas-annotations"):
        read_signed_scores(tmp_path / "a.parquet", VARIANTS)
    with pytest.raises(InputError, match="signed scores, not annotations"):
        deepwas.read_annotations(tmp_path / "s.signed.parquet", VARIANTS)
    with pytest.raises(InputError, match="no column"):
        SignedScores((), np.zeros((5, 0), np.float32), found.signed.variants, {})


@pytest.fixture
def store(tmp_path):
    """A store of the five variants, its path."""
    table = VARIANTS.with_columns(pl.col("BP").cast(pl.Int64))
    blocks = [(0, LDBlock.from_correlation(np.eye(2))), (2, LDBlock.from_correlation(np.eye(3)))]
    write_ld(tmp_path / "ld.h5", table, blocks, build="GRCh37", n_samples=100).close()
    return tmp_path / "ld.h5"


def command(*arguments) -> int:
    try:
        main([str(a) for a in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_writes_annotations_and_signed_scores(tmp_path, store, capsys):
    path = write(tmp_path / "scores.tsv", "tsv")
    out = tmp_path / "out.parquet"
    assert command("scores", "--ld", store, "--scores", path, "--out", out) == 0
    said = capsys.readouterr().err
    assert "1 changed: sign turned: A1 is the reference allele" in said
    with deepwas.open_ld(store) as opened:
        annotations = deepwas.read_annotations(out, opened.variants)
        signed = read_signed_scores(tmp_path / "out.signed.parquet", opened.variants)
    np.testing.assert_array_equal(annotations.values, np.abs(SIGNED))
    np.testing.assert_array_equal(signed.values, SIGNED)
    components = ("scores", "--ld", store, "--scores", f"e={path}", "--signed", "--pca", 1, "--out", out, "--overwrite")
    assert command(*components) == 0
    assert (tmp_path / "out.e.signed.loadings.parquet").exists()
    given = ("--loadings", tmp_path / "out.e.signed.loadings.parquet")
    with deepwas.open_ld(store) as opened:
        first = read_signed_scores(tmp_path / "out.signed.parquet", opened.variants)
        again = ("scores", "--ld", store, "--scores", f"e={path}", "--signed", *given, "--out", out)
        assert command(*again) == 2
        assert "out.signed.parquet: is there already. Give --overwrite" in capsys.readouterr().err
        assert command(*again, "--overwrite") == 0
        second = read_signed_scores(tmp_path / "out.signed.parquet", opened.variants)
    assert first.names == ("e:signed_PC1",)
    np.testing.assert_array_equal(first.values, second.values)


def test_the_command_refuses_what_cannot_be_meant(tmp_path, store, capsys):
    path = write(tmp_path / "scores.tsv", "tsv")
    base = ("scores", "--ld", store, "--scores", path, "--out")
    before = sorted(tmp_path.iterdir())
    for arguments, message in (
        ((*base, tmp_path / "out.tsv"), "ends in .parquet"),
        ((*base, tmp_path / "out.parquet", "--signed", "--absolute"), "exclude one another"),
        ((*base, tmp_path / "out.parquet", "--palindromes", "maybe"), "--palindromes 'maybe'"),
        ((*base, tmp_path / "no" / "out.parquet"), "does not exist"),
        (("scores", "--ld", store, "--scores", tmp_path / "gone.tsv", "--out", tmp_path / "o.parquet"), "no such file"),
    ):
        assert command(*arguments) == 2
        assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
