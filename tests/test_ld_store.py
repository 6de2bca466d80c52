"""LD stores: built from real PLINK files, held against dense algebra, and refused when something is wrong."""

from __future__ import annotations

import fcntl
import json
import re
import threading
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
import typer
from bed_reader import to_bed
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from deepwas.cli.ld import app
from deepwas.errors import InputError
from deepwas.genotypes import open_plink
from deepwas.ld import LDOptions, build, build_ld, eigenvalue_floor, layout, open_ld, report
from deepwas.specs import load_spec

EXAMPLE = Path(__file__).parents[1] / "deepwas" / "data" / "example" / "1000G_eur_chr22"
N, M = 120, 150


def chain(n: int, m: int, seed: int) -> np.ndarray:
    """Dosages of a Markov chain of alleles of frequency one half."""
    rng = np.random.default_rng(seed)
    alleles = rng.integers(0, 2, (2 * n, m))
    for j in range(1, m):
        same = rng.random(2 * n) < 0.8
        alleles[same, j] = alleles[same, j - 1]
    return (alleles[:n] + alleles[n:]).astype(float)


def write_panel(folder: Path, dosages: np.ndarray, chromosome: list[str] | None = None) -> str:
    m = dosages.shape[1]
    properties = {
        "chromosome": chromosome or ["1"] * m,
        "sid": [f"rs{j}" for j in range(m)],
        "bp_position": np.arange(1, m + 1) * 1000,
        "cm_position": np.arange(m) / 100,
        "allele_1": ["A"] * m,
        "allele_2": ["GATTACA" if j == 3 else "G" for j in range(m)],
    }
    to_bed(str(folder / "panel.bed"), dosages, properties=properties)
    return str(folder / "panel")


@pytest.fixture
def panel(tmp_path: Path) -> str:
    """Two chromosomes, 1% of the genotypes missing, one variant each: constant, all missing, rare, on X."""
    dosages = chain(N, M, 0)
    dosages[np.random.default_rng(1).random(dosages.shape) < 0.01] = np.nan
    dosages[:, 10] = 2
    dosages[:, 20] = np.nan
    dosages[:, 30] = 0
    dosages[5, 30] = 1
    dosages[:40, 40] = np.nan
    return write_panel(tmp_path, dosages, ["1"] * 90 + ["2"] * 59 + ["X"])


OPTIONS = LDOptions("GRCh38", min_block=20, max_block=45, dtype="float64")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("example") / "ld.h5"
    build_ld(EXAMPLE, path, LDOptions("hg19")).close()
    return path


def dense_correlation(prefix: str, names: list[str]) -> np.ndarray:
    """The obvious way: mean-filled dosages, then NumPy's correlation."""
    source = open_plink(prefix)
    rows = [source.variants["SNP"].to_list().index(name) for name in names]
    x = source.read(rows).astype(np.float64)
    return np.corrcoef(np.where(np.isnan(x), np.nanmean(x, axis=0), x).T)


def test_example_blocks_reproduce_the_truncated_correlation(example):
    with open_ld(example) as store:
        assert (store.n_variants, store.n_samples, store.genome_build) == (15_878, 378, "GRCh37")
        assert store.n_blocks == 25
        rows = store.block_slice(7)
        block = store.block(7)
        R = dense_correlation(str(EXAMPLE), store.variants["SNP"][rows].to_list())
        values, vectors = np.linalg.eigh(R)
        kept = values > 2 * len(R) / 378
        truncated = (vectors[:, kept] * values[kept]) @ vectors[:, kept].T
        assert block.factor.dtype == np.float32
        assert block.scored.all()
        np.testing.assert_allclose(block.factor.T @ block.factor, truncated, atol=2e-5)
        np.testing.assert_allclose(block.eigenvalues, values[kept][::-1], rtol=1e-7)
        np.testing.assert_allclose(block.whitener @ truncated @ block.whitener.T, np.eye(block.k), atol=1e-4)


def test_example_table_accounts_for_every_variant(example):
    with open_ld(example) as store:
        tally = store.attributes["provenance"]["tally"]
        assert sum(r["count"] for r in tally if r["action"] == "dropped") + store.n_variants == 15_938
        table = store.block_table
        assert table["VARIANTS"].sum() == store.n_variants
        assert 200 <= table["VARIANTS"].min() <= table["VARIANTS"].max() <= 800
        provenance = store.attributes["provenance"]
        assert 0 < provenance["r2_cut"] < 0.03 * provenance["r2_total"]
        assert store.variants["BP"].is_sorted()
        assert store.variants["FREQ"].is_between(0.01, 0.99).all()


def test_positions_beyond_the_builds_chromosomes_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"bim: position 51,.* beyond 50,818,468, .* on GRCh38. They fit GRCh37: give"):
        build_ld(EXAMPLE, tmp_path / "ld.h5", LDOptions("GRCh38"))
    assert not list(tmp_path.iterdir())


def test_every_block_of_a_small_panel_is_its_dense_correlation(panel, tmp_path):
    options = LDOptions(**asdict(OPTIONS) | {"eigenvalue_floor": 1e-8})
    with build_ld(panel, tmp_path / "ld.h5", options) as store:
        assert store.variants["CHR"].unique(maintain_order=True).to_list() == ["1", "2"]
        for index in range(store.n_blocks):
            variants = store.variants[store.block_slice(index)]
            R = dense_correlation(panel, variants["SNP"].to_list())
            block = store.block(index)
            np.testing.assert_allclose(block.factor.T @ block.factor, R, atol=1e-6)
            adjusted = R**2 - (1 - R**2) / (N - 2)
            np.testing.assert_allclose(variants["LDSCORE"], adjusted.sum(axis=1), atol=1e-5)
            assert variants["CHR"].n_unique() == 1
            assert (variants["BLOCK"] == index).all()


def test_drops_are_counted_by_reason_with_the_first_case(panel, tmp_path):
    with build_ld(panel, tmp_path / "ld.h5", OPTIONS) as store:
        rows = store.attributes["provenance"]["tally"]
        dropped = {r["reason"]: (r["count"], r["first"]) for r in rows if r["action"] == "dropped"}
        assert dropped == {
            "not on an autosome (1 to 22)": (1, "rs149"),
            "no genotype at all": (1, "rs20"),
            "genotype missing in more than 0.1 of the people": (1, "rs40"),
            "does not vary in the panel": (1, "rs10"),
            "minor allele frequency below 0.01": (1, "rs30"),
        }
        assert store.n_variants == M - 5
        by_name = dict(store.variants.select("SNP", "FREQ").iter_rows())
        dosages = open_plink(panel).read([7])
        np.testing.assert_allclose(by_name["rs7"], np.nanmean(dosages) / 2, rtol=1e-6)
        assert store.variants.filter(SNP="rs3")["A2"].to_list() == ["GATTACA"]
        assert store.variants["CM"].to_list() == pytest.approx([int(s[2:]) / 100 for s in store.variants["SNP"]])


def test_shrinkage_and_variance_kept_follow_their_definitions(panel, tmp_path):
    shrunk = LDOptions(**asdict(OPTIONS) | {"shrinkage": 0.2})
    with build_ld(panel, tmp_path / "a.h5", shrunk) as store:
        R = dense_correlation(panel, store.variants["SNP"][store.block_slice(1)].to_list())
        block = store.block(1)
        assert block.k == len(R)
        np.testing.assert_allclose(block.factor.T @ block.factor, 0.8 * R + 0.2 * np.eye(len(R)), atol=1e-6)
        assert store.block_table["FLOOR"].to_list() == [0.0] * store.n_blocks
    with build_ld(panel, tmp_path / "b.h5", LDOptions(**asdict(OPTIONS) | {"variance_kept": 0.9})) as store:
        values = np.linalg.eigvalsh(R)[::-1]
        fewest = int((np.cumsum(values) < 0.9 * len(R)).sum()) + 1
        assert store.block(1).k == fewest
        assert (store.block_table["VARIANCE_KEPT"] >= 0.9).all()


def test_given_blocks_are_used_and_the_rest_counted(panel, tmp_path):
    bed = tmp_path / "blocks.bed"
    bed.write_text("chr1\t0\t50000\nchr1\t50000\t80000\nchr2\t100000\t149000\n")
    with build_ld(panel, tmp_path / "ld.h5", LDOptions("GRCh38", blocks=bed)) as store:
        table = store.block_table
        assert table.select("CHR", "START", "STOP").rows() == [
            ("1", 1000, 50000),
            ("1", 51000, 80000),
            ("2", 101000, 149000),
        ]
        outside = [r for r in store.attributes["provenance"]["tally"] if "outside all intervals" in r["reason"]]
        assert [(r["count"], r["first"]) for r in outside] == [(20, "rs80")]
        assert store.attributes["provenance"]["r2_cut"] is None
        assert [i["name"] for i in store.attributes["provenance"]["inputs"]][-1] == "blocks.bed"


def test_a_block_of_one_variant_is_kept(panel, tmp_path):
    bed = tmp_path / "one.bed"
    bed.write_text("1\t0\t1000\n")
    with build_ld(panel, tmp_path / "ld.h5", LDOptions("GRCh38", blocks=bed)) as store:
        np.testing.assert_allclose(np.abs(store.block(0).factor), [[1.0]])
        assert store.variants["LDSCORE"].to_list() == [1.0]
        assert store.variants["SNP"].to_list() == ["rs0"]


@pytest.mark.parametrize(("dtype", "tolerance"), [("int8", 4e-3), ("float16", 5e-4), ("float32", 1e-7), ("float64", 0)])
def test_stored_types_round_as_they_promise(panel, tmp_path, dtype, tolerance):
    """An entry is off by at most `tolerance` of its row's largest; the whitener is never rounded to 8 bits."""
    reference = build_ld(panel, tmp_path / "r.h5", OPTIONS).block(0)
    with build_ld(panel, tmp_path / "s.h5", LDOptions(**asdict(OPTIONS) | {"dtype": dtype})) as store:
        store.verify()
        block, encoded = store.block(0), store.factor(0)
        assert encoded.values.dtype == dtype
        np.testing.assert_array_equal(encoded.decoded(), block.factor)
        assert block.factor.dtype == ("float64" if dtype == "float64" else "float32")
        np.testing.assert_array_equal(block.eigenvalues, reference.eigenvalues)
        for name, limit in (("factor", tolerance), ("whitener", min(tolerance, 5e-4))):
            exact = getattr(reference, name)
            off = np.abs(getattr(block, name) - exact) / np.abs(exact).max(axis=1, keepdims=True)
            assert off.max() <= limit
            assert tolerance == 0 or off.max() > 0


@pytest.mark.parametrize(("m", "n", "known"), [(1, 50, True), (40, 1000, True), (500, 60, False), (2000, 50, False)])
def test_the_default_floor_is_twice_the_inflation_by_sampling(m, n, known):
    # Unlinked variants: the spectrum is sampling alone, and no direction passes once variants far outnumber people.
    dosages = np.random.default_rng(m).binomial(2, 0.4, (n, m)).astype(np.float32)
    R = build._correlation((dosages - dosages.mean(axis=0)) / dosages.std(axis=0))
    assert (np.linalg.eigvalsh(R)[-1] > eigenvalue_floor(m, n)) == known
    assert eigenvalue_floor(10, 1_000_000) == 1e-4


def test_equal_content_has_the_equal_checksum_and_other_content_another(panel, tmp_path):
    sums = [build_ld(panel, tmp_path / f"{i}.h5", OPTIONS).checksum for i in range(2)]
    assert sums[0] == sums[1]
    other = build_ld(panel, tmp_path / "o.h5", LDOptions(**asdict(OPTIONS) | {"shrinkage": 0.01}))
    assert other.checksum != sums[0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("blocks/00001/factor", "block 1 has changed"),
        ("blocks/00000/eigenvalues", "block 0 has changed"),
        ("variants/LDSCORE", "block 0 has changed"),
        ("variants/FREQ", "the variant table or the genome build has changed"),
        ("variants/SNP", "the variant table or the genome build has changed"),
    ],
)
def test_verify_finds_every_kind_of_change(panel, tmp_path, path, message):
    out = tmp_path / "ld.h5"
    build_ld(panel, out, OPTIONS).verify()
    with h5py.File(out, "r+") as handle:
        data = handle[path][:]
        data.flat[0] = b"other" if data.dtype.kind == "S" else data.flat[0] * 1.5 + 0.25
        handle[path][:] = data
    with open_ld(out) as store, pytest.raises(InputError, match=message):
        store.verify()


def test_the_genome_build_is_under_the_checksum_of_new_stores(panel, tmp_path):
    out = tmp_path / "ld.h5"
    build_ld(panel, out, OPTIONS).close()
    with h5py.File(out, "r+") as handle:
        build = handle.attrs["genome_build"]
        handle.attrs["genome_build"] = "GRCh37" if build == "GRCh38" else "GRCh38"
    with open_ld(out) as store, pytest.raises(InputError, match="or the genome build has changed"):
        store.verify()


def test_an_interrupted_build_goes_on_with_the_finished_blocks(panel, tmp_path, monkeypatch):
    out = tmp_path / "ld.h5"
    expected = build_ld(panel, tmp_path / "whole.h5", OPTIONS).checksum
    write_block, written = build._write_block, []

    def stop_at_three(handle, index, *rest):
        if index == 3:
            raise KeyboardInterrupt
        written.append(index)
        write_block(handle, index, *rest)

    monkeypatch.setattr(build, "_write_block", stop_at_three)
    with pytest.raises(KeyboardInterrupt):
        build_ld(panel, out, OPTIONS)
    assert not out.exists()
    partial = tmp_path / ".ld.h5.partial"
    with h5py.File(partial, "r+") as handle:
        handle["blocks/00001/factor"][0, 0] += 1.0  # damage: this one must be computed again

    def record(handle, index, *rest):
        written.append(index)
        write_block(handle, index, *rest)

    written.clear()
    monkeypatch.setattr(build, "_write_block", record)
    with build_ld(panel, out, OPTIONS) as store:
        assert written == [1, *range(3, store.n_blocks)]
        assert store.checksum == expected
        store.verify()
    assert not partial.exists()


@pytest.mark.parametrize("leftover", ["other options", "damaged"])
def test_a_partial_file_that_does_not_fit_is_not_used(panel, tmp_path, monkeypatch, leftover):
    partial = tmp_path / ".ld.h5.partial"
    if leftover == "damaged":
        partial.write_bytes(b"\x89HDF\r\n\x1a\n cut short")
    else:
        with h5py.File(partial, "w") as handle:
            handle.attrs["identity"] = "another build"
    expected = build_ld(panel, tmp_path / "whole.h5", OPTIONS).checksum
    with build_ld(panel, tmp_path / "ld.h5", OPTIONS) as store:
        assert store.checksum == expected


def test_a_store_that_another_process_builds_is_left_alone(panel, tmp_path):
    partial = tmp_path / ".ld.h5.partial"
    with h5py.File(partial, "w") as handle:
        handle.attrs["identity"] = "theirs"
    with open(partial, "r+b") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is building this store"):
            build_ld(panel, tmp_path / "ld.h5", OPTIONS)
    assert partial.exists()


def test_blocks_can_be_read_from_several_threads(example):
    with open_ld(example) as store:
        expected = [store.block(i).factor.sum() for i in range(store.n_blocks)]
        found: list[list[float]] = [[], [], []]

        def read(which: int) -> None:
            found[which] = [store.block(i).factor.sum() for i in range(store.n_blocks)]

        threads = [threading.Thread(target=read, args=(w,)) for w in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [expected] * 3


def test_a_closed_store_and_a_wrong_index_say_so(example):
    store = open_ld(example)
    for index in (-1, 25):
        with pytest.raises(IndexError, match=f"block {index} of an LD store with blocks 0 to 24"):
            store.block(index)
    store.close()
    with pytest.raises(InputError, match="has been closed"):
        store.block(0)


def test_what_is_not_an_ld_store_is_named(example, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_ld(tmp_path / "absent.h5")
    text = tmp_path / "text.h5"
    text.write_text("SNP A1 A2\n")
    with pytest.raises(InputError, match=r"not an HDF5 file \(it starts with b'SNP A1"):
        open_ld(text)
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as handle:
        handle["SAD"] = np.zeros(3)
    with pytest.raises(InputError, match="HDF5, but not an LD store: it holds SAD"):
        open_ld(other)
    short = tmp_path / "short.h5"
    short.write_bytes(example.read_bytes()[:100_000])
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        open_ld(short)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("format_version", 3, "format version 3; this deepwas reads up to 2"),
        ("genome_build", "hg17", "at attributes/genome_build: 'hg17' is not one of"),
        ("n_blocks", 7, "the column BLOCK and the 7 blocks' ranges do not fit together"),
        ("n_variants", 7, "145 variants where 7 are announced"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(panel, tmp_path, attribute, value, message):
    out = tmp_path / "ld.h5"
    build_ld(panel, out, OPTIONS).close()
    with h5py.File(out, "r+") as handle:
        handle.attrs[attribute] = value
    with pytest.raises(InputError, match=message):
        open_ld(out)


def test_a_missing_column_or_block_is_refused(panel, tmp_path):
    out = tmp_path / "ld.h5"
    build_ld(panel, out, OPTIONS).close()
    with h5py.File(out, "r+") as handle:
        del handle["blocks/00002"]
    with open_ld(out) as store, pytest.raises(InputError, match=r"block 2 of . is missing"):
        store.block(2)
    with h5py.File(out, "r+") as handle:
        del handle["variants/FREQ"]
    with pytest.raises(InputError, match="'FREQ' is a required property"):
        open_ld(out)


def test_the_specification_names_what_the_layout_writes():
    spec = load_spec("ld_store")["properties"]
    assert spec["attributes"]["required"] == list(layout.ROOT_ATTRIBUTES)
    assert spec["variants"]["required"] == list(layout.COLUMNS)
    block = spec["blocks"]["items"]["properties"]
    assert set(block["attributes"]["properties"]) == set(layout.BLOCK_ATTRIBUTES)
    assert list(spec["ranges"]["properties"]) == list(layout.RANGES)
    assert set(block["datasets"]["properties"]) == {"factor", "scale", "whitener", "whitener_scale", "eigenvalues"}


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00\n"), min_size=1), min_size=1, max_size=5))
def test_identifiers_of_any_length_and_script_come_back(tmp_path_factory, names):
    m = len(names)
    frame = pl.DataFrame({"SNP": names, "CHR": ["1"] * m, "A1": ["A" * 200] * m, "A2": ["C"] * m})
    frame = frame.with_columns(CM=pl.lit(None, pl.Float64), FREQ=0.5, LDSCORE=1.0, BP=pl.lit(7), BLOCK=pl.lit(0))
    frame = frame.select(*layout.COLUMNS).cast({"BP": pl.Int64, "BLOCK": pl.Int64})
    path = tmp_path_factory.getbasetemp() / "names.h5"
    with h5py.File(path, "w") as handle:
        layout.write_variants(handle, frame)
    with h5py.File(path, "r") as handle:
        assert layout.read_variants(handle).equals(frame)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"build": "hg17"}, "genome build 'hg17' is not known"),
        ({"min_maf": 0.5}, "min_maf is 0.5"),
        ({"max_missing": 1.0}, "max_missing is 1.0"),
        ({"min_block": 0}, "min_block is 0"),
        ({"min_block": 100, "max_block": 150}, "max_block is 150; it must be at least 199"),
        ({"eigenvalue_floor": -1.0}, "eigenvalue_floor is -1.0"),
        ({"variance_kept": 1.2}, "variance_kept is 1.2"),
        ({"variance_kept": 0.9, "eigenvalue_floor": 0.1}, "give one of them"),
        ({"shrinkage": 1.0}, "shrinkage is 1.0"),
        ({"dtype": "int4"}, "dtype is int4"),
        ({"window": 3e6}, "window and step belong together"),
        ({"window": 3e6, "step": 0.5}, r"step is 0\.5; it must be a whole number"),
        ({"window": float("inf"), "step": 1}, "window is inf"),
        ({"window": 0, "step": 0}, "step is 0; it must be 1 base pair or more"),
        ({"window": 1e6, "step": 3e6}, "window is 1000000; it must be at least the step, 3000000"),
        ({"window": 3e6, "step": 1e6, "blocks": "b.bed"}, "two ways to divide"),
    ],
)
def test_options_check_themselves(fields, message):
    with pytest.raises(InputError, match=message):
        LDOptions(**{"build": "GRCh37"} | fields)


def test_correlations_that_are_not_finite_name_block_and_variant(panel, tmp_path, monkeypatch):
    real = build._correlation

    def broken(x, scored):
        R = real(x, scored)
        R[2, :] = np.nan
        return R

    monkeypatch.setattr(build, "_correlation", broken)
    with pytest.raises(InputError, match=r"block 0 \(rs0 and on\): the correlations of variant rs2 are not finite"):
        build_ld(panel, tmp_path / "ld.h5", OPTIONS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["panel.bed", "panel.bim", "panel.fam"]


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_command_line_builds_and_describes(panel, tmp_path):
    out, picture = tmp_path / "ld.h5", tmp_path / "ld.png"
    made = run(
        "build", "--genotypes", panel, "--out", str(out), "--build", "hg38", "--min-block", "20", "--max-block", "45"
    )
    assert made.exit_code == 0, made.output
    assert "1 dropped: does not vary in the panel (first: rs10)" in " ".join(made.output.split())
    told = run("info", str(out), "--plot", str(picture), "--verify")
    assert told.exit_code == 0, told.output
    assert "genome build    GRCh38" in told.output
    assert "145 on chromosome 1, 2; 145 with a genetic position" in told.output
    assert "layout and checksums are right" in told.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    with open_ld(out) as store:
        assert store.attributes["options"] == json.loads(
            json.dumps(LDOptions("GRCh38", min_block=20, max_block=45).as_dict())
        )


def test_pictures_and_text_of_other_stores(panel, tmp_path):
    bed = tmp_path / "b.bed"
    bed.write_text("1\t0\t50000\n")
    with build_ld(panel, tmp_path / "a.h5", LDOptions("GRCh37", blocks=bed, variance_kept=0.5)) as store:
        report.plot(store, tmp_path / "a.svg")
        assert (tmp_path / "a.svg").read_text().startswith("<?xml")
        lines = "\n".join(report.summary(store))
        assert "the fewest eigenvalues that reach 0.5 of their sum" in lines
        assert "lost by cutting" not in lines
        with pytest.raises(InputError, match=r"a picture is written as one of \.png"):
            report.plot(store, tmp_path / "a.txt")


def bad_constant(folder: Path) -> str:
    return write_panel(folder, np.ones((60, 5)))


def bad_rare(folder: Path) -> str:
    dosages = np.zeros((60, 5))
    dosages[0] = 1
    return write_panel(folder, dosages)


def bad_truncated(folder: Path) -> str:
    prefix = write_panel(folder, chain(60, 5, 0))
    bed = Path(prefix + ".bed")
    bed.write_bytes(bed.read_bytes()[:-10])
    return prefix


def bad_kind(folder: Path) -> str:
    prefix = write_panel(folder, chain(60, 5, 0))
    Path(prefix + ".bed").write_text("chr1\t0\t10\n")
    return prefix


@pytest.mark.parametrize(
    ("make", "extra", "message"),
    [
        (lambda folder: str(folder / "absent"), (), "no such file"),
        (bad_constant, (), "none of the 5 variants is left.*does not vary"),
        (bad_rare, (), "none of the 5 variants is left.*minor allele frequency below 0.01"),
        (bad_truncated, (), "truncated"),
        (bad_kind, (), "not a PLINK 1 genotype file"),
        (lambda folder: write_panel(folder, chain(60, 5, 0)), ("--shrinkage", "2"), "shrinkage is 2"),
        (lambda folder: write_panel(folder, chain(60, 5, 0)), ("--blocks", "absent.bed"), "no such file"),
        (lambda folder: write_panel(folder, chain(60, 5, 0)), ("--eigenvalue-floor", "99"), "no eigenvalue"),
    ],
)
def test_wrong_input_ends_with_code_2_and_writes_nothing(tmp_path, monkeypatch, capsys, make, extra, message):
    prefix = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    root = typer.Typer()
    root.add_typer(app, name="ld")
    monkeypatch.setattr("deepwas.cli.app", root)
    monkeypatch.setattr("deepwas.cli._register", lambda: None)
    from deepwas.cli import main

    with pytest.raises(SystemExit) as end:
        main(["ld", "build", "--genotypes", prefix, "--out", str(tmp_path / "ld.h5"), "--build", "GRCh37", *extra])
    assert end.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(message, said), said
    assert sorted(tmp_path.iterdir()) == before
