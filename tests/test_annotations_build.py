"""annotate() on the example, the written file, and `deepwas annotate`."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import deepwas.ld
from deepwas.annotations import AnnotationOptions, Annotations, Standardiser, annotate, read_annotations
from deepwas.errors import InputError
from deepwas.files import sha256
from deepwas.specs import load_spec
from deepwas.tally import Tally

EXAMPLE = files("deepwas") / "data" / "example"
GENES = str(EXAMPLE / "genes_hg19.bed.gz")
MAP = str(EXAMPLE / "recombination_chr22_hg19.gmap.gz")
NAMES = (
    "log_tss_distance",
    "log_gene_distance",
    "gene_body",
    "promoter",
    "gene_density",
    "log_recombination_rate",
    "maf",
    "log_ld_score",
)


@pytest.fixture(scope="module")
def variants():
    columns = ["CHR", "SNP", "CM", "BP", "A1", "A2"]
    bim = pl.read_csv(str(EXAMPLE / "1000G_eur_chr22.bim"), separator="\t", has_header=False, new_columns=columns)
    rng = np.random.default_rng(0)
    return bim.with_columns(
        pl.col("CHR").cast(pl.String),
        FREQ=pl.Series(rng.uniform(0.01, 0.99, bim.height)),
        LDSCORE=pl.Series(rng.gamma(2, 20, bim.height)),
        BLOCK=pl.Series(np.arange(bim.height) // 700),
    )


@pytest.fixture(scope="module")
def made(variants):
    return annotate(variants, genes=GENES, genetic_map=MAP)


def test_the_example(variants, made):
    assert made.names == NAMES
    assert made.values.shape == (15_938, 8)
    assert not np.isnan(made.values).any()
    column = dict(zip(made.names, made.values.T, strict=True))
    np.testing.assert_array_equal(column["gene_body"] == 1, column["log_gene_distance"] == 0)
    assert (column["log_tss_distance"] >= column["log_gene_distance"]).all()
    assert (column["log_tss_distance"][column["promoter"] == 1] <= np.log1p(2.0)).all()
    np.testing.assert_allclose(column["maf"], np.minimum(variants["FREQ"], 1 - variants["FREQ"]), rtol=1e-6)
    np.testing.assert_allclose(column["log_ld_score"], np.log1p(variants["LDSCORE"]), rtol=1e-6)
    assert made.files == {GENES: sha256(GENES), MAP: sha256(MAP)}


def test_the_map_agrees_with_the_genetic_positions_of_the_panel(variants, made):
    # The panel's own cM column comes from another map; both must rank recombination along the chromosome alike.
    rate = np.exp(made.values[:, made.names.index("log_recombination_rate")].astype(float)) - 0.01
    position, centimorgan = variants["BP"].to_numpy(), variants["CM"].to_numpy()
    edges = np.arange(0, position.size - 1, 200)
    panel = np.diff(centimorgan[edges]) / np.diff(position[edges]) * 1e6
    local = [rate[a:b].mean() for a, b in pairwise(edges)]
    assert np.corrcoef(panel, local)[0, 1] > 0.6


def test_written_and_read_back(tmp_path, variants, made):
    path = tmp_path / "annotations.parquet"
    expected = made.values.copy()
    expected[5, 0] = np.nan
    replace(made, values=expected).write_parquet(path)
    again = read_annotations(path, variants)
    shuffled = variants.sample(fraction=0.5, shuffle=True, seed=1)
    part = read_annotations(path, shuffled)
    np.testing.assert_array_equal(again.values, expected)
    assert again.names == made.names
    assert again.sources == made.sources
    rows = variants.with_row_index("row").select("row", "SNP")
    order = shuffled.join(rows, on="SNP", how="left", maintain_order="left")["row"].to_numpy()
    np.testing.assert_array_equal(part.values, expected[order])
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_as_specified(tmp_path, made):
    frictionless = pytest.importorskip("frictionless")
    path = tmp_path / "annotations.parquet"
    made.write_parquet(path)
    frame = pl.read_parquet(path)
    assert frame.columns == ["SNP", "CHR", "BP", "A1", "A2", *NAMES]
    assert frame.schema["CHR"] == pl.Int64
    content = json.loads(pl.read_parquet_metadata(path)["deepwas"])
    assert content["format"] == "deepwas-annotations"
    assert content["names"] == list(NAMES)
    assert content["files"] == {GENES: sha256(GENES), MAP: sha256(MAP)}
    assert content["tally"] == made.tally.as_list()
    schema = frictionless.Schema.from_descriptor(
        {key: value for key, value in load_spec("annotations").items() if key in ("fields", "primaryKey")}
    )
    rows = frame.select(field.name for field in schema.fields).head(300).rows(named=True)
    report = frictionless.Resource(rows, schema=schema).validate()
    assert report.valid, report.flatten(["message"])


def test_sex_chromosomes_come_back_and_contigs_are_refused(tmp_path):
    keys = pl.DataFrame({"SNP": ["a", "b"], "CHR": ["X", "MT"], "BP": [5, 6], "A1": ["A", "C"], "A2": ["G", "T"]})
    one = Annotations(("x",), np.array([[1], [2]], dtype=np.float32), keys, {"x": "made up"})
    path = tmp_path / "a.parquet"
    one.write_parquet(path)
    assert pl.read_parquet(path)["CHR"].to_list() == [23, 26]
    assert read_annotations(path, keys).values.tolist() == [[1], [2]]
    odd = Annotations(one.names, one.values, keys.with_columns(CHR=pl.lit("GL000191.1")), one.sources)
    with pytest.raises(InputError, match=r"contig 'GL000191\.1' of variant a"):
        odd.write_parquet(tmp_path / "b.parquet")
    assert list(tmp_path.iterdir()) == [path]


def test_every_source_at_once_and_selection(tmp_path, variants):
    bed, table = tmp_path / "peaks.bed", tmp_path / "scores.tsv"
    variants.select(pl.lit("chr22"), pl.col("BP") - 1, END=pl.col("BP") + 50).gather_every(3).write_csv(
        bed, separator="\t", include_header=False
    )
    variants.select("SNP", score=pl.col("BP") % 7).write_csv(table, separator="\t")
    options = AnnotationOptions(interval_features=("inside", "distance"), store_features=False)
    made = annotate(variants, intervals={"peaks": bed}, tables=[table], options=options)
    assert made.names == ("peaks", "peaks_log_distance", "score")
    np.testing.assert_array_equal(made.values[:, 2], variants["BP"].to_numpy() % 7)
    assert made.values[::3, 0].min() == 1
    assert set(made.files) == {str(bed), str(table)}
    chosen = made.select(["score", "peaks"])
    np.testing.assert_array_equal(chosen.values, made.values[:, [2, 0]])
    assert Standardiser.fit(chosen).transform(chosen).shape == (variants.height, 2)
    with pytest.raises(InputError, match=r"no annotation depth; there are peaks"):
        made.select(["depth"])
    with pytest.raises(InputError, match="annotations score, peaks were given"):
        Standardiser.fit(made).transform(chosen)


def test_summary_counts_what_is_missing():
    keys = pl.DataFrame({"SNP": ["a", "b", "c"], "CHR": "1", "BP": [5, 6, 7], "A1": "A", "A2": "G"})
    values = np.array([[1, np.nan], [2, np.nan], [np.nan, np.nan]], dtype=np.float32)
    summary = Annotations(("x", "y"), values, keys, {"x": "one", "y": "two"}).summary()
    assert summary.rows() == [("x", 1.5, 0.5, 1.0, 2.0, 1, "one"), ("y", None, None, None, None, 3, "two")]


@pytest.mark.parametrize("name", ["SNP", " ", "x:missing"])
def test_names_with_another_meaning_are_refused(name):
    keys = pl.DataFrame({"SNP": ["a"], "CHR": "1", "BP": [5], "A1": "A", "A2": "G"})
    with pytest.raises(InputError, match="cannot name an annotation"):
        Annotations((name,), np.ones((1, 1), dtype=np.float32), keys, {name: "made up"})


def test_store_features_ask_for_their_columns_and_count_what_they_change(variants):
    with pytest.raises(InputError, match="column FREQ, LDSCORE is missing, which store features need"):
        annotate(variants.drop("FREQ", "LDSCORE"), genes=GENES)
    with pytest.raises(InputError, match=r"FREQ of rs131538 is 1\.5, outside 0 to 1"):
        annotate(variants.with_columns(FREQ=pl.lit(1.5)))
    odd = variants.with_columns(
        LDSCORE=pl.when(pl.col("SNP") == "rs131538").then(-0.5).otherwise(pl.col("LDSCORE")),
        FREQ=pl.when(pl.col("SNP") == "rs9605903").then(None).otherwise(pl.col("FREQ")),
    )
    made = annotate(odd)
    assert made.values[0, 1] == 0
    assert np.isnan(made.values[1, 0])
    assert [(r.step, r.count, r.first) for r in made.tally.rows] == [
        ("log_ld_score", 1, "rs131538"),
        ("maf", 1, "rs9605903"),
    ]


def test_wrong_calls_say_what_to_do(variants):
    nothing = AnnotationOptions(store_features=False)
    with pytest.raises(InputError, match="no annotation asked for"):
        annotate(variants, options=nothing)
    with pytest.raises(InputError, match="column A2 is missing"):
        annotate(variants.drop("A2"))
    with pytest.raises(InputError, match="no rows"):
        annotate(variants.clear())
    with pytest.raises(InputError, match=r"genes\.bed: no such file \(a BED file of genes expected\)"):
        annotate(variants, genes="genes.bed")
    with pytest.raises(InputError, match="annotation maf comes twice"):
        annotate(variants, intervals={"maf": GENES})


@pytest.mark.parametrize(
    "wrong",
    [
        {"promoter_upstream": -1},
        {"map_window": 0},
        {"interval_window": 1.5},
        {"interval_features": ()},
        {"interval_features": ("inside", "inside")},
        {"interval_features": ("outside",)},
        {"table_key": "rsid"},
        {"uncovered": "drop"},
    ],
)
def test_options_check_themselves(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        AnnotationOptions(**wrong)


class Store:
    """What the command uses of an LD store."""

    genome_build = "GRCh37"

    def __init__(self, variants):
        self.variants = variants

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.fixture
def command(monkeypatch, tmp_path, variants):
    import typer

    from deepwas.cli import annotate as module

    monkeypatch.setattr(deepwas.ld, "open_ld", lambda path: Store(variants))
    store = tmp_path / "ld.h5"
    store.write_bytes(b"stands for a store")
    app = typer.Typer(pretty_exceptions_enable=False)
    module.register(app)
    return lambda *arguments: CliRunner().invoke(app, ["--ld", str(store), *map(str, arguments)])


def test_command_writes_and_prints_the_summary(command, tmp_path, variants, made):
    out = tmp_path / "annotations.parquet"
    result = command("--out", out, "--genes", GENES, "--genetic-map", MAP)
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(read_annotations(out, variants).values, made.values)
    for name in NAMES:
        assert name in result.output
    assert "8 annotations of 15,938 variants on GRCh37" in result.output
    before = out.read_bytes()
    assert "Give --overwrite" in str(command("--out", out, "--no-store-features", "--genes", GENES).exception)
    assert out.read_bytes() == before
    assert command("--out", out, "--no-store-features", "--genes", GENES, "--overwrite").exit_code == 0
    assert read_annotations(out, variants).names == tuple(
        x for x in NAMES if x in read_annotations(out, variants).names
    )
    assert out.read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--intervals", "peaks"], "give a name and a file"),
        (["--intervals", f"a={GENES}", "--intervals", f"a={GENES}"], "the name a is given twice"),
        (["--genes", "absent.bed"], "absent.bed: no such file"),
        (["--interval-features", "inside,outside"], "--interval-features \\('inside', 'outside'\\): give"),
        (["--no-store-features"], "no annotation asked for"),
        (["--map-window", "0"], "--map-window 0: give"),
        (["--table", MAP], "no annotation column|no row matches"),
    ],
)
def test_wrong_command_writes_nothing(command, tmp_path, arguments, message):
    result = command("--out", tmp_path / "annotations.parquet", *arguments)
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match=message):
        raise result.exception
    assert [path.name for path in tmp_path.iterdir()] == ["ld.h5"]


def test_command_wants_a_parquet_name_in_a_folder_that_exists(command, tmp_path):
    assert "ends in .parquet" in str(command("--out", tmp_path / "a.tsv").exception)
    assert "does not exist" in str(command("--out", tmp_path / "no" / "a.parquet").exception)


def test_tally_of_a_table_adds_up(tmp_path, variants):
    path = tmp_path / "half.tsv"
    half = variants.gather_every(2)
    half.select("SNP", score=pl.col("BP") % 7).write_csv(path, separator="\t")
    made = read_annotations(path, variants)
    assert isinstance(made.tally, Tally)
    found = {row.reason: row.count for row in made.tally.rows}
    assert found["variants matched by SNP"] == half.height
    assert found["missing: variant without a row in the table"] == variants.height - half.height
    assert int(np.isnan(made.values[:, 0]).sum()) == variants.height - half.height
