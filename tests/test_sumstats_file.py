"""The parquet file of harmonised summary statistics, its specification, and the command that writes it."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import deepwas
from deepwas.cli import sumstats as command
from deepwas.errors import InputError
from deepwas.specs import load_spec, validate_table
from deepwas.sumstats import HarmonisedSumstats, QCOptions, harmonise, read_harmonised, read_sumstats
from deepwas.sumstats.harmonised import SCHEMA

EXAMPLE = Path(deepwas.__file__).parent / "data" / "example"
HEIGHT = EXAMPLE / "ukb_height_chr22.fastGWA.gz"


class Store:
    """What the command asks of an LD store, over 1,000 variants of the example."""

    n_samples = 378
    genome_build = "GRCh37"
    checksum = "ab" * 32

    @property
    def variants(self) -> pl.DataFrame:
        return read_sumstats(HEIGHT, build="GRCh37").frame[:1000].with_columns(FREQ=pl.col("FRQ"))


@pytest.fixture
def result() -> HarmonisedSumstats:
    store = Store()
    return harmonise(
        read_sumstats(HEIGHT, build="GRCh37"),
        store.variants,
        n_panel=store.n_samples,
        genome_build=store.genome_build,
        store_checksum=store.checksum,
    )


def test_what_is_written_is_read_back(result, tmp_path):
    path = tmp_path / "height.parquet"
    result.write_parquet(path)
    again = read_harmonised(path, expected_checksum=Store.checksum)
    assert again.frame.equals(result.frame)
    assert again.frame.schema == SCHEMA
    assert again.tally == result.tally
    assert again.options == result.options == vars(QCOptions())
    for name in ("n_store", "source", "source_sha256", "source_format", "match", "build", "genome_build"):
        assert getattr(again, name) == getattr(result, name), name
    assert (again.source, again.match, again.n_store) == (HEIGHT.name, "position", 1000)


def test_equal_contents_give_equal_bytes_and_leave_nothing_beside(result, tmp_path):
    for name in ("a.parquet", "b.parquet"):
        result.write_parquet(tmp_path / name)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_a_file_for_another_store_is_refused(result, tmp_path):
    path = tmp_path / "height.parquet"
    result.write_parquet(path)
    with pytest.raises(InputError, match="made for the LD store abababababab, not for cdcdcdcdcdcd"):
        read_harmonised(path, expected_checksum="cd" * 32)


def test_files_of_another_kind_are_refused(result, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_harmonised(tmp_path / "absent.parquet")
    with pytest.raises(InputError, match="not a parquet file"):
        read_harmonised(HEIGHT)
    other = tmp_path / "other.parquet"
    result.frame.write_parquet(other)
    with pytest.raises(InputError, match="this is a parquet table of another origin"):
        read_harmonised(other)
    result.frame.write_parquet(other, metadata={"format": "deepwas-annotations"})
    with pytest.raises(InputError, match="this is deepwas-annotations"):
        read_harmonised(other)
    newer = {"format": "deepwas-sumstats", "format_version": "2", "deepwas_version": "9.0"}
    result.frame.write_parquet(other, metadata=newer)
    with pytest.raises(InputError, match=r"format version 2, made by deepwas 9\.0.*Upgrade"):
        read_harmonised(other)
    result.write_parquet(other)
    other.write_bytes(other.read_bytes()[:2000])
    with pytest.raises(InputError, match="damaged or cut short"):
        read_harmonised(other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (pl.lit(None, pl.Float64).alias("Z"), "column Z, row 1: a missing value"),
        (pl.lit(float("nan")).alias("Z"), "column Z, row 1: a value that is not finite"),
        (pl.lit(0.0).alias("N"), "column N, row 1: a value not above 0"),
        (pl.lit("a").alias("A1"), "column A1, row 1"),
        (pl.lit(1, pl.UInt32).alias("VARIANT"), "column VARIANT"),
        (pl.col("VARIANT").reverse(), "VARIANT is not ascending"),
        (pl.col("VARIANT") + 1000, "not below the store's 1,000"),
    ],
)
def test_a_table_that_breaks_its_specification_is_refused(result, tmp_path, change, said):
    path = tmp_path / "t.parquet"
    result.write_parquet(path)
    metadata = pl.read_parquet_metadata(path)
    metadata.pop("ARROW:schema", None)
    result.frame.with_columns(change).write_parquet(path, metadata=metadata)
    with pytest.raises(InputError, match=said):
        read_harmonised(path)


def test_the_specification_is_a_valid_table_schema_and_names_every_column(result):
    from frictionless import Schema

    spec = load_spec("sumstats")
    assert [f["name"] for f in spec["fields"]] == list(SCHEMA)
    assert Schema.from_descriptor(spec).field_names == list(SCHEMA)
    validate_table(result.frame, "sumstats", "the example")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command on a store in place of a file; returns exit code and what it said."""
    import typer
    from typer.testing import CliRunner

    import deepwas.ld

    monkeypatch.setattr(deepwas.ld, "open_ld", lambda path: Store(), raising=False)
    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)
    (tmp_path / "ld.h5").write_bytes(b"")

    def call(file: Path, *options: str) -> tuple[int, str]:
        out = tmp_path / "out.parquet"
        arguments = ["sumstats", str(file), "--ld", str(tmp_path / "ld.h5"), "--out", str(out), *options]
        outcome = CliRunner().invoke(app, arguments)
        if isinstance(outcome.exception, InputError):
            return 2, str(outcome.exception)
        return outcome.exit_code, outcome.output

    return call


def test_the_command_writes_the_file_and_prints_the_counts(run, tmp_path, result):
    code, output = run(HEIGHT, "--build", "hg19")
    assert code == 0, output
    for line in result.tally.lines():
        assert line in output
    again = read_harmonised(tmp_path / "out.parquet", expected_checksum=Store.checksum)
    assert again.frame.equals(result.frame)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--palindromes", "guess"), "--palindromes is 'guess'"),
        (("--build", "hg38"), "two genome builds are mixed"),
        (("--build", "hg17"), "hg17"),
        (("--format", "LDSC"), "does not fit the format LDSC"),
        (("--sample-size", "0"), "--sample-size"),
        (("--exclude", "absent.bed"), "absent.bed"),
    ],
)
def test_wrong_options_end_with_code_2_and_nothing_written(run, tmp_path, options, said):
    code, message = run(HEIGHT, *options)
    assert code == 2
    assert said in message
    assert [p.name for p in tmp_path.iterdir()] == ["ld.h5"]


def test_a_missing_file_ends_with_code_2_and_nothing_written(run, tmp_path):
    code, message = run(tmp_path / "absent.tsv")
    assert (code, "absent.tsv: no such file" in message) == (2, True)
    assert [p.name for p in tmp_path.iterdir()] == ["ld.h5"]


def test_the_output_may_not_be_the_input(run, tmp_path):
    code, message = run(HEIGHT, "--out", str(tmp_path / "ld.h5"))
    assert (code, "one of the input files" in message) == (2, True)
    assert (tmp_path / "ld.h5").read_bytes() == b""


def test_every_quality_option_is_a_flag_with_the_same_default():
    import dataclasses
    import inspect

    flags = inspect.signature(command.sumstats).parameters
    for option in dataclasses.fields(QCOptions):
        assert flags[option.name].default == option.default, option.name


def test_from_genotypes_to_harmonised_statistics_with_a_real_store(tmp_path):
    import typer
    from typer.testing import CliRunner

    from deepwas.ld import LDOptions, build_ld, open_ld

    panel, out = tmp_path / "ld.h5", tmp_path / "height.parquet"
    build_ld(EXAMPLE / "1000G_eur_chr22", panel, LDOptions(build="GRCh37")).close()
    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)
    outcome = CliRunner().invoke(app, ["sumstats", str(HEIGHT), "--ld", str(panel), "--out", str(out)])
    assert outcome.exit_code == 0, outcome.output
    with open_ld(panel) as store:
        again = read_harmonised(out, expected_checksum=store.checksum)
        rows = store.variants[again.frame["VARIANT"].to_numpy()]
    assert again.frame.select("CHR", "SNP", "BP", "A1", "A2").equals(rows.select("CHR", "SNP", "BP", "A1", "A2"))
    assert again.n_matched > 0.98 * again.n_store
    assert (again.genome_build, again.build) == ("GRCh37", None)
