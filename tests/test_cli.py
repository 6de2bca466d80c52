"""The commands on real files: the whole path, and what wrong input is told. No refusal may write anything."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest

import deepwas
from deepwas.specs import validate_json, validate_table
from tests.commands import Answer, run, succeed
from tests.synthetic import write_problem

BUILD = ("--build", "GRCh37", "--min-block", "20", "--max-block", "80", "--eigenvalue-floor", "0.05")
QUICK = ("--network", "linear", "--folds", "4", "--steps", "4", "--evaluate-every", "2", "--batch-blocks", "4")
TYPES = {"CHR": pl.String, "SNP": pl.String, "A1": pl.String, "A2": pl.String}


def contents(*folders: Path) -> dict[str, str]:
    """Every path under the folders, hidden ones too, with a checksum of each file."""
    paths = [path for folder in folders for path in folder.rglob("*")]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder" for p in paths}


@dataclass(frozen=True)
class Paths:
    """The files of the problem, and what the commands made of them."""

    folder: Path
    genotypes: Path
    gwas: Path
    table: Path
    store: Path
    z: Path
    annotations: Path
    run: Path
    priors: Path
    said: dict[str, Answer]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Paths:
    """The whole path by commands: ld build, sumstats, annotate, fit, priors."""
    folder = tmp_path_factory.mktemp("path")
    problem = write_problem(folder, variants=240, people=200)
    store, z, annotations = folder / "ld.h5", folder / "z.parquet", folder / "annotations.parquet"
    fitted, priors = folder / "run", folder / "priors.tsv.gz"
    said = {
        "build": succeed("ld", "build", "--genotypes", folder / "panel", "--out", store, *BUILD),
        "sumstats": succeed("sumstats", problem.sumstats, "--ld", store, "--out", z, "--build", "hg19"),
        "annotate": succeed("annotate", "--ld", store, "--table", problem.annotations, "--out", annotations),
        "fit": succeed(
            "fit", "--ld", store, "--sumstats", z, "--annotations", annotations, "--out", fitted, *QUICK, "--seed", 3
        ),
        "priors": succeed("priors", fitted, "--out", priors),
    }
    return Paths(
        folder, problem.genotypes, problem.sumstats, problem.annotations, store, z, annotations, fitted, priors, said
    )


@pytest.fixture
def refused(made, tmp_path):
    """Run a command that must end with exit code 2, say every phrase given, and change no file anywhere."""

    def check(*arguments: object, says: tuple[str, ...]) -> str:
        before = contents(made.folder, tmp_path)
        answer = run(*arguments)
        assert answer.code == 2, answer.err
        assert contents(made.folder, tmp_path) == before
        for phrase in says:
            assert phrase in answer.err
        assert "Traceback" not in answer.err
        return answer.err

    return check


def edited(made: Paths, tmp_path: Path, change) -> Path:
    """A copy of the GWAS, its columns as text, changed."""
    frame = change(pl.read_csv(made.gwas, separator="\t", infer_schema=False))
    path = tmp_path / "changed.fastGWA"
    frame.write_csv(path, separator="\t")
    return path


def harmonise_to(made: Paths, tmp_path: Path, gwas: Path) -> tuple[object, ...]:
    return ("sumstats", gwas, "--ld", made.store, "--out", tmp_path / "new.parquet")


def fit_to(made: Paths, tmp_path: Path, **changed: object) -> tuple[object, ...]:
    given = {"ld": made.store, "sumstats": made.z, "annotations": made.annotations, "out": tmp_path / "new"} | changed
    options = [x for name, value in given.items() for x in (f"--{name}", value)]
    return ("fit", *options, *QUICK)


# The path


def test_ld_build_writes_a_store_of_every_variant(made):
    with deepwas.open_ld(made.store) as store:
        store.verify()
        assert (store.n_variants, store.n_samples, store.genome_build) == (960, 200, "GRCh37")
        assert f"{store.n_variants:,} variants in {store.n_blocks:,} blocks" in made.said["build"].err


def test_ld_info_describes_verifies_and_draws(made, tmp_path):
    answer = succeed("ld", "info", made.store, "--verify", "--plot", tmp_path / "ld.png")
    for phrase in ("960 on chromosome 1, 2, 3, 4", "200 people", "GRCh37", "verified"):
        assert phrase in answer.out
    assert (tmp_path / "ld.png").read_bytes().startswith(b"\x89PNG")


def test_sumstats_are_on_the_store_and_counted(made):
    z = deepwas.read_harmonised(made.z)
    assert z.n_matched == z.n_store == 960
    gwas = pl.read_csv(made.gwas, separator="\t")
    expected = (gwas["BETA"] / gwas["SE"]).to_numpy()
    with deepwas.open_ld(made.store) as store:
        same = (store.variants["A1"] == gwas["A1"]).to_numpy()
        assert z.store_checksum == store.checksum
    np.testing.assert_allclose(z.frame["Z"].to_numpy(), np.where(same, expected, -expected), rtol=1e-9)
    assert "960 of the 960 variants of the LD store" in made.said["sumstats"].err
    assert "usable rows" in made.said["sumstats"].err


def test_annotations_are_a_table_with_a_summary(made):
    frame = pl.read_parquet(made.annotations)
    assert frame.columns == ["SNP", "CHR", "BP", "A1", "A2", "active", "idle", "maf", "log_ld_score"]
    given = pl.read_csv(made.table, separator="\t")
    np.testing.assert_allclose(frame["active"], given["active"], rtol=1e-6)
    assert made.said["annotate"].out.startswith("annotation")
    assert "4 annotations of 960 variants" in made.said["annotate"].err


def test_fit_records_what_it_was_asked_and_shows_it(made):
    record = json.loads((made.run / "run.json").read_text())
    validate_json(record, "run", "run.json")
    assert record["status"] == "complete"
    asked = record["options"]
    assert (asked["network"], asked["folds"], asked["steps"], asked["seed"]) == ("linear", 4, 4, 3)
    assert len(record["rotations"]) == 4
    assert "SNP heritability" in made.said["fit"].out
    assert "960 / 960" in made.said["fit"].out
    said = made.said["fit"].err
    assert f"deepwas priors {made.run}" in said
    # What was dropped is said before the wait, and once.
    assert said.index("usable rows") < said.index("training: ")
    assert said.count("usable rows") == 1
    assert not list(made.run.rglob("*.partial*"))


def test_priors_are_what_run_json_lists(made):
    with gzip.open(made.priors, "rt") as handle:
        assert handle.readline().startswith("CHR\tSNP\tBP\tA1\tA2\tSNPVAR\tZ\tN")
    frame = pl.read_csv(made.priors, separator="\t", null_values="NA", schema_overrides=TYPES)
    validate_table(frame, "priors", str(made.priors))
    record = json.loads((made.run / "run.json").read_text())
    note = next(x for x in record["priors"] if x["file"] == made.priors.name)
    assert note["cross_fitted"]
    assert note["rows"] == frame.height == 960
    assert note["sha256"] == hashlib.sha256(made.priors.read_bytes()).hexdigest()
    h2 = record["heritability"]["cross_fitted"]["h2"]
    assert frame["SNPVAR"].sum() == pytest.approx(note["h2"], rel=1e-6)
    assert frame["SNPVAR"].sum() == pytest.approx(h2, rel=1e-6)
    assert f"{note['h2']:.6g}" in made.said["priors"].err


def test_plain_priors_are_those_of_the_first_network(made, tmp_path):
    copy = shutil.copytree(made.run, tmp_path / "run")
    succeed("priors", copy, "--plain", "--all-variants", "--out", tmp_path / "plain.tsv")
    frame = pl.read_csv(tmp_path / "plain.tsv", separator="\t", null_values="NA", schema_overrides=TYPES)
    expected = pl.read_parquet(copy / "variants.parquet")["SNPVAR_PLAIN"]
    np.testing.assert_allclose(frame["SNPVAR"], expected, rtol=1e-8)


def test_a_gwas_file_is_fitted_as_if_harmonised_first(made, tmp_path):
    for name, sumstats in (("raw", made.gwas), ("harmonised", made.z)):
        arguments = ("--ld", made.store, "--sumstats", sumstats, "--out", tmp_path / name)
        said = succeed("fit", *arguments, "--network", "constant", "--folds", 4, "--resume").err
        assert f"{tmp_path / name}: nothing to resume there; a new run starts" in said
    raw, harmonised = (json.loads((tmp_path / n / "run.json").read_text()) for n in ("raw", "harmonised"))
    assert raw["inputs"]["sumstats"]["build"] is None  # not said, when a file is given as it is
    assert raw["inputs"]["sumstats"] | {"build": "GRCh37"} == harmonised["inputs"]["sumstats"]
    assert raw["heritability"] == harmonised["heritability"]
    assert raw["inputs"]["annotations"] is None


def test_resuming_a_finished_run_reads_it(made):
    before = contents(made.run)
    again = ("--sumstats", made.z, "--annotations", made.annotations, "--out", made.run, *QUICK, "--seed", 3)
    answer = succeed("fit", "--ld", made.store, *again, "--resume")
    assert contents(made.run) == before
    assert answer.out == made.said["fit"].out


def test_the_installed_command_answers(made):
    command = Path(sys.executable).with_name("deepwas")
    done = subprocess.run([command, "ld", "info", made.store], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "GRCh37" in done.stdout
    done = subprocess.run([command, "ld", "info", made.gwas], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"deepwas: {made.gwas}: not an HDF5 file")


# Genotypes


@pytest.fixture
def panel(made, tmp_path) -> Path:
    """Prefix of a copy of the panel, to damage."""
    for suffix in (".bed", ".bim", ".fam"):
        shutil.copy(made.genotypes.with_suffix(suffix), tmp_path / f"copy{suffix}")
    return tmp_path / "copy"


def test_a_missing_panel_is_named(refused, tmp_path):
    arguments = ("ld", "build", "--genotypes", tmp_path / "gone", "--out", tmp_path / "ld.h5", *BUILD)
    refused(*arguments, says=("gone.bed: no such file",))


@pytest.mark.parametrize("suffix", [".bim", ".fam"])
def test_a_panel_without_one_of_its_files_is_refused(refused, panel, suffix):
    panel.with_suffix(suffix).unlink()
    arguments = ("ld", "build", "--genotypes", panel, "--out", panel.with_name("ld.h5"), *BUILD)
    refused(*arguments, says=(f"copy{suffix}: no such file",))


def test_a_bed_that_is_not_plink_is_refused(refused, panel):
    panel.with_suffix(".bed").write_text("chr1\t100\t200\n" * 3000)
    arguments = ("ld", "build", "--genotypes", panel, "--out", panel.with_name("ld.h5"), *BUILD)
    refused(*arguments, says=("copy.bed", "PLINK"))


def test_a_truncated_bed_is_refused(refused, panel):
    bed = panel.with_suffix(".bed")
    whole = bed.stat().st_size
    os.truncate(bed, whole - 1000)
    arguments = ("ld", "build", "--genotypes", panel, "--out", panel.with_name("ld.h5"), *BUILD)
    refused(*arguments, says=(f"{whole - 1000:,} bytes", f"{whole:,}", "960 variants of 200 people"))


@pytest.mark.parametrize("suffix", [".bed", ".bim", ".fam"])
def test_a_store_does_not_overwrite_its_panel(refused, panel, suffix):
    arguments = ("ld", "build", "--genotypes", panel, "--out", panel.with_suffix(suffix), *BUILD)
    refused(*arguments, says=(f"copy{suffix}", "overwrite"))


# Stores


@pytest.mark.parametrize("command", ["info", "sumstats", "annotate", "fit"])
@pytest.mark.parametrize(
    ("kind", "phrase"),
    [("text", "not an HDF5 file"), ("hdf5", "not an LD store"), ("cut", "HDF5"), ("gone", "no such file")],
)
def test_a_file_that_is_no_store_is_refused_by_every_command(refused, made, tmp_path, kind, phrase, command):
    store = tmp_path / "store.h5"
    if kind == "text":
        store.write_text("SNP\tCHR\tBP\n")
    elif kind == "hdf5":
        with h5py.File(store, "w") as handle:
            handle["weights"] = np.arange(3)
    elif kind == "cut":
        store.write_bytes(made.store.read_bytes()[: made.store.stat().st_size // 2])
    arguments = {
        "info": ("ld", "info", store),
        "sumstats": ("sumstats", made.gwas, "--ld", store, "--out", tmp_path / "new.parquet"),
        "annotate": ("annotate", "--ld", store, "--out", tmp_path / "new.parquet"),
        "fit": fit_to(made, tmp_path, ld=store),
    }
    refused(*arguments[command], says=("store.h5", phrase))


@pytest.fixture(scope="module")
def elsewhere(made, tmp_path_factory) -> tuple[Path, Path]:
    """An LD store of other variants, on chromosomes 5 to 8, and annotations of them."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for suffix in (".bed", ".fam"):
        shutil.copy(made.genotypes.with_suffix(suffix), folder / f"panel{suffix}")
    names = ["CHR", "SNP", "CM", "BP", "A1", "A2"]
    source = made.genotypes.with_suffix(".bim")
    bim = pl.read_csv(source, separator="\t", has_header=False, new_columns=names)
    bim = bim.with_columns(pl.col("CHR") + 4, SNP="x_" + pl.col("SNP"))
    bim.write_csv(folder / "panel.bim", separator="\t", include_header=False)
    store, annotations = folder / "ld.h5", folder / "annotations.parquet"
    succeed("ld", "build", "--genotypes", folder / "panel", "--out", store, *BUILD)
    succeed("annotate", "--ld", store, "--out", annotations)
    return store, annotations


def test_z_scores_of_another_store_are_refused(refused, made, elsewhere, tmp_path):
    arguments = fit_to(made, tmp_path, ld=elsewhere[0], annotations=elsewhere[1])
    refused(*arguments, says=("z.parquet", "made for the LD store", "run `deepwas sumstats` again"))


def test_annotations_of_another_store_are_refused(refused, made, elsewhere, tmp_path):
    arguments = fit_to(made, tmp_path, annotations=elsewhere[1])
    refused(*arguments, says=("annotations.parquet", "no row matches any of 960 variants", "CHR BP A1 A2"))


def test_ld_with_missing_values_is_refused():
    R = np.eye(4)
    R[1, 2] = R[2, 1] = np.nan
    with pytest.raises(deepwas.InputError, match="holds nan at row 1, column 2"):
        deepwas.LDBlock.from_correlation(R)


# Summary statistics


@pytest.mark.parametrize("through", ["sumstats", "fit"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(lambda x: x.drop("A1"), ("Missing: no effect allele", "A1"), id="no effect allele"),
        pytest.param(lambda x: x.drop("N"), ("N", "sample size"), id="no N"),
        pytest.param(
            lambda x: x.with_columns(N=pl.when(pl.col("SNP") == "rs1_3").then(pl.lit("NA")).otherwise("N")),
            ("N is missing or <= 0 for 1 of 960", "rs1_3", "--sample-size", "--drop-missing-n"),
            id="one N missing",
        ),
        pytest.param(
            lambda x: x.with_columns(BETA=pl.when(pl.col("SNP") == "rs1_3").then(pl.lit("weak")).otherwise("BETA")),
            ("column BETA, line 5", "'weak'", "Mend the column"),
            id="text in BETA",
        ),
        pytest.param(
            lambda x: x.with_columns(CHR=pl.lit("22"), SNP=pl.lit("y_") + pl.col("SNP")),
            (
                "none of its 960 variants is among the 960 of the LD store",
                "0 by position and alleles, 0 by rsid and alleles",
                "First of the GWAS: y_rs1_0 at chr22:1000000, A/G",
                "First of the LD store: rs1_0 at chr1:1000000",
                "The GWAS is of chromosome 22, the LD store of 1, 2, 3, 4: give an LD store of the GWAS's chromosomes",
            ),
            id="unmatched",
        ),
        pytest.param(
            lambda x: x.with_columns(POS=pl.col("POS").cast(pl.Int64) + 31_415),
            ("two genome builds are mixed: 960 of 960", "LD store: GRCh37", "chr1:1031415", "--match rsid"),
            id="two builds",
        ),
        pytest.param(lambda x: x.head(0), ("a header but no row",), id="no rows"),
    ],
)
def test_summary_statistics_that_cannot_be_used_are_refused(refused, made, tmp_path, change, says, through):
    gwas = edited(made, tmp_path, change)
    arguments = harmonise_to(made, tmp_path, gwas) if through == "sumstats" else fit_to(made, tmp_path, sumstats=gwas)
    refused(*arguments, says=("changed.fastGWA", *says))


def test_a_build_that_is_not_the_stores_is_refused(refused, made, tmp_path):
    arguments = (*harmonise_to(made, tmp_path, made.gwas), "--build", "GRCh38")
    refused(*arguments, says=("GWAS: GRCh38; LD store: GRCh37", "the positions agree: correct --build"))


def test_a_gzip_cut_short_is_refused(refused, made, tmp_path):
    cut = tmp_path / "cut.fastGWA.gz"
    cut.write_bytes(gzip.compress(made.gwas.read_bytes())[:-500])
    refused(*harmonise_to(made, tmp_path, cut), says=("cut.fastGWA.gz", "damaged or cut short"))


def test_no_output_replaces_an_input(refused, made, tmp_path):
    gwas = edited(made, tmp_path, lambda x: x)
    table = tmp_path / "table.parquet"
    shutil.copy(made.annotations, table)
    says = ("is one of the input files",)
    refused("sumstats", gwas, "--ld", made.store, "--out", gwas, says=says)
    refused("annotate", "--ld", made.store, "--table", table, "--out", table, says=says)


def test_what_is_there_is_replaced_when_asked_only(refused, made, tmp_path):
    for name in ("z.parquet", "a.parquet", "p.tsv", "ld.png", "ld.h5"):
        (tmp_path / name).write_text("of before")
    commands = {
        "z.parquet": ("sumstats", made.gwas, "--ld", made.store, "--out"),
        "a.parquet": ("annotate", "--ld", made.store, "--table", made.table, "--out"),
        "p.tsv": ("priors", shutil.copytree(made.run, tmp_path / "run"), "--out"),
        "ld.png": ("ld", "info", made.store, "--plot"),
        "ld.h5": ("ld", "build", "--genotypes", made.folder / "panel", *BUILD, "--out"),
    }
    for name, arguments in commands.items():
        refused(*arguments, tmp_path / name, says=(f"{name}: is there already. Give --overwrite",))
        succeed(*arguments, tmp_path / name, "--overwrite")
        assert (tmp_path / name).read_bytes() != b"of before"
    with deepwas.open_ld(tmp_path / "ld.h5") as again, deepwas.open_ld(made.store) as store:
        assert again.checksum == store.checksum


def test_no_input_is_replaced_even_when_asked(refused, made, tmp_path):
    """An @ stands for chromosomes; --write-config names the files of a fit beside the one it writes."""
    table = shutil.copy(made.table, tmp_path / "ann22.parquet")
    store = shutil.copy(made.store, tmp_path / "ld.h5")
    before = table.read_bytes()
    given = ("annotate", "--ld", store, "--table", tmp_path / "ann@.parquet", "--overwrite", "--out")
    refused(*given, table, says=("ann22.parquet: the output is one of the input files",))
    config = shutil.copy(made.store, tmp_path / "ld.toml")
    refused("fit", "--ld", config, "--write-config", config, "--overwrite", says=("one of the input files",))
    refused("fit", "--ld", store, "--write-config", store, "--overwrite", says=("ends in .toml",))
    assert table.read_bytes() == before
    with deepwas.open_ld(store), deepwas.open_ld(config):
        pass


def test_priors_that_lose_are_said_to(made, tmp_path):
    copy = shutil.copytree(made.run, tmp_path / "run")
    record = json.loads((copy / "run.json").read_text())
    for gain, says in ((-3.25, True), (3.25, False)):
        record["held_out"]["cross_fitted"] |= {"gain": gain, "standard_error": 1.5}
        (copy / "run.json").write_text(json.dumps(record))
        said = succeed("priors", copy, "--out", tmp_path / "p.tsv", "--overwrite").err
        assert ("lose 3.2 nats (standard error 1.5)" in said) == says


@pytest.mark.parametrize("kind", ["parquet of another origin", "truncated parquet"])
def test_z_scores_in_another_parquet_are_refused(refused, made, tmp_path, kind):
    if kind == "truncated parquet":
        given, phrase = tmp_path / "cut.parquet", "damaged or cut short"
        given.write_bytes(made.z.read_bytes()[:-200])
    else:
        given, phrase = made.annotations, "harmonised summary statistics expected"
    refused(*fit_to(made, tmp_path, sumstats=given), says=(given.name, phrase))


# Annotations


@pytest.mark.parametrize("through", ["annotate", "fit"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(lambda x: x.with_columns(active=pl.lit("NA")), ("column active has no value",), id="missing"),
        pytest.param(lambda x: x.with_columns(active=pl.lit("high")), ("column active, line 2", "'high'"), id="text"),
        pytest.param(lambda x: x.with_columns(idle=pl.lit("inf")), ("column idle, line 2", "infinite"), id="infinite"),
        pytest.param(lambda x: x.drop("SNP", "CHR", "BP"), ("no key to variants",), id="no key"),
        pytest.param(lambda x: x.drop("active", "idle"), ("no annotation column",), id="no annotation"),
    ],
)
def test_annotations_that_cannot_be_used_are_refused(refused, made, tmp_path, change, says, through):
    path = tmp_path / "table.tsv"
    change(pl.read_csv(made.table, separator="\t", infer_schema=False)).write_csv(path, separator="\t")
    arguments = {
        "annotate": ("annotate", "--ld", made.store, "--table", path, "--out", tmp_path / "new.parquet"),
        "fit": fit_to(made, tmp_path, annotations=path),
    }
    refused(*arguments[through], says=("table.tsv", *says))


def test_a_network_without_annotations_is_refused(refused, made, tmp_path):
    arguments = ("fit", "--ld", made.store, "--sumstats", made.z, "--out", tmp_path / "new", "--network", "mlp")
    refused(*arguments, says=("the mlp network needs annotations", "--network constant"))


def test_a_fault_found_in_training_leaves_nothing(refused, made, tmp_path):
    """With a quarter of the genome annotated, some network would have to train without a value."""
    path = tmp_path / "partial.tsv"
    frame = pl.read_csv(made.table, separator="\t")
    frame.with_columns(active=pl.when(CHR=1).then("active")).write_csv(path, separator="\t", null_value="NA")
    says = ("annotation active is missing for all 480",)
    refused(*fit_to(made, tmp_path, annotations=path), says=says)
    (tmp_path / "empty").mkdir()
    refused(*fit_to(made, tmp_path, annotations=path, out=tmp_path / "empty"), says=says)


# Options and folders


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--network", "transformer"), ("'transformer'", "constant, linear, softplus, mlp")),
        (("--objective", "r2"), ("'r2'", "likelihood, ld-score")),
        (("--hidden", "abc"), ("--hidden 'abc'", "32,32")),
        (("--noise", "x"), ("--noise 'x'", "'learned'")),
        (("--noise", "-1"), ("--noise is -1", "positive")),
        (("--folds", "2"), ("--folds is 2", "at least 3")),
        (("--no-such-option",), ("No such option",)),
        (("--steps", "many"), ("Usage: deepwas fit", "Invalid value for '--steps'")),
    ],
)
def test_wrong_options_of_fit_are_named(refused, made, tmp_path, options, says):
    refused(*fit_to(made, tmp_path), *options, says=says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--build", "hg17"), ("hg17", "GRCh37", "GRCh38")),
        (("--min-maf", "0.7"), ("--min-maf is 0.7",)),
        (("--variance-kept", "0.9"), ("--eigenvalue-floor and --variance-kept",)),
        (("--dtype", "int4"), ("int4", "float32")),
    ],
)
def test_wrong_options_of_ld_build_are_named(refused, made, tmp_path, options, says):
    arguments = ("ld", "build", "--genotypes", made.genotypes, "--out", tmp_path / "new.h5", *BUILD, *options)
    refused(*arguments, says=says)


def test_a_folder_in_use_is_not_fitted_into(refused, made, tmp_path):
    (tmp_path / "mine.txt").write_text("notes")
    refused(*fit_to(made, tmp_path, out=tmp_path), says=("not empty", "--resume"))
    refused(*fit_to(made, tmp_path, out=tmp_path), "--resume", says=("no run.json of a run to resume",))
    refused(*fit_to(made, tmp_path, out=tmp_path / "mine.txt"), says=("is a file",))
    refused(*fit_to(made, tmp_path, out=tmp_path / "no" / "folder"), says=("does not exist",))


def test_a_run_is_resumed_with_what_it_was_started_with(refused, made, tmp_path):
    arguments = fit_to(made, tmp_path, out=made.run)
    refused(*arguments, "--resume", "--seed", "4", says=("options: seed differs: the run has 3, now 4",))
    gwas = edited(made, tmp_path, lambda x: x.with_columns(N=pl.lit("19000")))
    changed = fit_to(made, tmp_path, out=made.run, sumstats=gwas)
    refused(*changed, "--resume", "--seed", "3", says=("inputs: sumstats differs",))


def test_priors_are_written_from_a_finished_run_only(refused, made, tmp_path):
    out = tmp_path / "p.tsv"
    refused("priors", tmp_path, "--out", out, says=("not a run folder", "deepwas fit"))
    refused("priors", made.run, "--out", tmp_path / "no" / "p.tsv", says=("does not exist",))
    refused("priors", made.run, "--out", made.run / "run.json", says=(".tsv or .tsv.gz",))
    copy = shutil.copytree(made.run, tmp_path / "copy")
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(record | {"status": "running"}))
    refused("priors", copy, "--out", out, says=("not finished", "--resume"))
    (copy / "run.json").write_text(json.dumps(record))
    (copy / "variants.parquet").write_bytes((made.run / "variants.parquet").read_bytes()[:-100])
    refused("priors", copy, "--out", out, says=("variants.parquet", "damaged"))


# The demonstration


@pytest.mark.parametrize("name", ["thesis.tex", "ld.h5"])
def test_the_demo_leaves_a_folder_of_others_alone(refused, tmp_path, name):
    (tmp_path / name).write_text("years of work")
    refused("demo", "--out", tmp_path, says=(str(tmp_path), "Give another --out"))
    assert (tmp_path / name).read_text() == "years of work"


def test_the_demo_needs_a_folder(refused, tmp_path):
    (tmp_path / "file").write_text("")
    refused("demo", "--out", tmp_path / "file", says=("is a file",))
    refused("demo", "--out", tmp_path / "no" / "folder", says=("does not exist",))
