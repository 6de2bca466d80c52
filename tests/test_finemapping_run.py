"""Fine-mapping of a whole store: its tables against single blocks, mismatch said, resumed, and on the command line."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

import deepwas
from deepwas.cli import main
from deepwas.errors import InputError
from deepwas.finemapping import FineMapOptions, finemap
from deepwas.ld import LDBlock
from deepwas.ld.write import write_ld
from deepwas.posterior import PosteriorOptions, estimate_posterior
from deepwas.posterior import finemap as finemap_module
from deepwas.posterior import progress as computed_parts
from deepwas.specs import validate_table
from deepwas.sumstats import HarmonisedSumstats
from tests.dense import ld_matrix
from tests.fit_problem import tiny_problem

SIZE, BLOCKS, N, NOISE, SLAB = 40, 3, 1e5, 1.1, 5e-4
M = SIZE * BLOCKS
PLANTED = {7: 0.03, 52: -0.025, 60: 0.03}  # by row of the store; block 2 has none
OPTIONS = FineMapOptions(slab=SLAB)
FILES = {
    "finemap.tsv.gz": "finemap",
    "credible_sets.tsv": "credible_sets",
    "credible_set_variants.tsv": "credible_set_variants",
    "finemap_blocks.tsv": "finemap_blocks",
}


def ld():
    return [ld_matrix("ar1", SIZE, np.random.default_rng(number)) for number in range(BLOCKS)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder, store, table of priors, and a function that makes a GWAS of z-scores."""
    folder = tmp_path_factory.mktemp("finemap")
    variants = pl.DataFrame(
        {
            "CHR": ["1"] * SIZE + ["2"] * (M - SIZE),
            "SNP": [f"rs{j}" for j in range(M)],
            "BP": [1000 * (j + 1) for j in range(M)],
            "A1": ["A"] * M,
            "A2": ["G"] * M,
            "FREQ": [0.3] * M,
        }
    )
    blocks = ((SIZE * i, LDBlock.from_correlation(R, dtype=np.float64)) for i, R in enumerate(ld()))
    store = write_ld(folder / "ld.h5", variants, blocks, build="GRCh37", n_samples=100_000, dtype="float64")
    rng = np.random.default_rng(5)
    f = 0.01 * SLAB * np.exp(rng.normal(size=M))
    priors = variants.select("CHR", "SNP", "BP", "A1", "A2").with_columns(pl.Series("SNPVAR", f))
    priors.write_csv(folder / "priors.tsv", separator="\t")
    beta = np.zeros(M)
    beta[list(PLANTED)] = list(PLANTED.values())
    z = []
    for i, R in enumerate(ld()):
        error = np.linalg.cholesky(R + 1e-9 * np.eye(SIZE)) @ rng.normal(size=SIZE)
        z.append(np.sqrt(N) * R @ beta[SIZE * i : SIZE * (i + 1)] + np.sqrt(NOISE) * error)

    def gwas(z):
        frame = variants.with_row_index("VARIANT").drop("FREQ")
        frame = frame.with_columns(pl.Series("Z", z), pl.lit(N).alias("N"), pl.lit(0.3).alias("FRQ"))
        return HarmonisedSumstats(
            frame, M, "z.tsv", "0" * 64, "LDSC", "position", genome_build="GRCh37", store_checksum=store.checksum
        )

    gwas(np.concatenate(z)).write_parquet(folder / "z.parquet")
    return folder, store, f, np.concatenate(z), gwas


@pytest.fixture(scope="module")
def found(world):
    folder, store, _, z, gwas = world
    return estimate_posterior(
        folder / "priors.tsv",
        store,
        gwas(z),
        options=PosteriorOptions(noise=NOISE),
        finemap=OPTIONS,
        out=folder / "out",
    )


def test_the_tables_hold_what_single_blocks_give(world, found):
    _, store, f, z, _ = world
    table, mapped = found.finemap.variants, found.finemap
    numbers = []
    for i in range(BLOCKS):
        rows = slice(SIZE * i, SIZE * (i + 1))
        alone = finemap(
            store.block(i), z[rows], f[rows], sample_size=N, slab=SLAB, noise=NOISE, panel=100_000, options=OPTIONS
        )
        own = table[rows]
        np.testing.assert_allclose(own["PIP"], alone.inclusion, atol=1e-4)
        np.testing.assert_allclose(own["BETA_MEAN"], alone.mean, atol=1e-4 * np.sqrt(SLAB))
        np.testing.assert_allclose(own["BETA_SD"], np.sqrt(alone.variance), atol=1e-3 * np.sqrt(SLAB))
        row = mapped.blocks.row(i, named=True)
        assert row["EFFECTS"] == pytest.approx(alone.effects, rel=1e-3)
        assert row["RESIDUAL"] == pytest.approx(alone.misfit, rel=1e-3)
        assert row["EFFECTS_PRIOR"] == pytest.approx(np.sum(f[rows] / SLAB))
        for one in alone.sets:
            members = mapped.members.filter(pl.col("SET") == len(numbers) + 1)
            assert members["SNP"].to_list() == [f"rs{SIZE * i + j}" for j in one.variants]
            np.testing.assert_allclose(members["PROBABILITY"], one.probability, atol=1e-3)
            numbers.append(i)
    assert mapped.sets["BLOCK"].to_list() == numbers == [0, 1, 1]
    np.testing.assert_allclose(table["PRIOR_PIP"], f / SLAB)


def test_planted_effects_are_in_sets_that_say_what_they_are(found):
    sets, table = found.finemap.sets, found.finemap.variants
    for number, planted in zip(sets["SET"], PLANTED, strict=True):
        row = sets.row(number - 1, named=True)
        inside = found.finemap.members.filter(pl.col("SET") == number)
        assert f"rs{planted}" in inside["SNP"]
        assert inside.height == row["SIZE"]
        assert row["LEAD"] == inside["SNP"][0]
        assert inside["PROBABILITY"].sum() == pytest.approx(row["COVERAGE"], abs=1e-6)
        assert row["COVERAGE"] >= 0.95
        positions = inside["BP"].to_list()
        assert (row["START"], row["STOP"]) == (min(positions), max(positions))
        assert row["CHR"] == ("1" if planted < SIZE else "2")
        lead = table.filter(pl.col("SNP") == row["LEAD"])
        assert (lead["Z"][0], lead["PIP"][0]) == (row["LEAD_Z"], row["LEAD_PIP"])
        assert table["CREDIBLE_SET"][planted] == number
    assert set(table["CREDIBLE_SET"]) == {0, 1, 2, 3}
    record = found.record["finemap"]
    assert record["slab"] == SLAB
    assert record["slab_rounds"] == 0
    assert record["variants"] == {level: int((table["PIP"] > float(level)).sum()) for level in ("0.5", "0.95")}
    assert record["median_size"] == np.median(sets["SIZE"])
    assert record["effects"] == pytest.approx(table["PIP"].sum(), rel=1e-3)
    assert record["mismatch"]["warnings"] == []
    assert record["mismatch"]["noise"]["used"] == pytest.approx(NOISE)
    assert [locus.number for locus in found.finemap.loci] == [1, 3]
    rows = found.finemap.loci[0].rows
    lead = int(sets["LEAD"][0][2:])
    np.testing.assert_allclose(found.finemap.loci[0].r, ld()[0][lead], atol=1e-4)
    assert rows.tolist() == list(range(SIZE))


def test_files_follow_their_specifications(world, found):
    out = world[0] / "out"
    tables = found.finemap
    for (name, spec), frame in zip(
        FILES.items(), (tables.variants, tables.sets, tables.members, tables.blocks), strict=True
    ):
        read = pl.read_csv(
            out / name,
            separator="\t",
            null_values="NA",
            schema_overrides={"CHR": pl.String, "FLAG": pl.String},
            infer_schema_length=None,
        )
        validate_table(read, spec, name)
        assert read.height == frame.height > 0
    assert json.loads((out / "posterior.json").read_text()) == found.record
    assert (out / "finemap.png").stat().st_size > 30_000
    assert {p.name for p in out.iterdir()} == {
        *FILES,
        "finemap.png",
        "posterior.json",
        "posterior.tsv.gz",
        "local_heritability.tsv",
        "local_heritability.png",
        "score.txt.gz",
    }


def test_an_interrupted_fine_mapping_goes_on_to_the_same_files(world, found, monkeypatch):
    folder, store, _, z, gwas = world
    out, given = folder / "interrupted", (folder / "priors.tsv", store, gwas(z))
    options = PosteriorOptions(noise=NOISE)
    mapped = []
    real = finemap_module.own_sets

    def counted(block, one):
        mapped.append(block.number)
        if len(mapped) == 2:
            raise KeyboardInterrupt
        return real(block, one)

    monkeypatch.setattr(finemap_module, "own_sets", counted)
    monkeypatch.setattr(computed_parts, "_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        estimate_posterior(*given, options=options, finemap=OPTIONS, out=out)
    assert {p.name for p in out.iterdir()} == {"posterior.json", "posterior.partial.h5", "finemap.partial.h5"}
    with pytest.raises(InputError, match="other inputs, options or version"):
        estimate_posterior(*given, options=options, out=out, resume=True)
    estimate_posterior(*given, options=options, finemap=OPTIONS, out=out, resume=True)
    assert mapped == [0, 1, 1, 2]
    for name in (*FILES, "finemap.png", "posterior.json"):
        assert (out / name).read_bytes() == (folder / "out" / name).read_bytes(), name


def test_ld_of_other_people_is_said(world):
    """The signs of every third variant are wrong, so R is not the LD of these z-scores."""
    folder, store, _, z, gwas = world
    wrong = np.where(np.arange(M) % 3 == 0, -z, z)
    found = estimate_posterior(folder / "priors.tsv", store, gwas(wrong), finemap=FineMapOptions(slab=SLAB))
    fit = found.record["finemap"]["mismatch"]
    assert fit["flagged"] == BLOCKS
    assert fit["by_reason"]["residual"] == BLOCKS
    assert any("3 of 3 LD blocks flagged" in x for x in fit["warnings"])
    assert found.finemap.sets["FLAG"].null_count() == 0
    assert found.record["finemap"]["sets_flagged"] == found.finemap.sets.height > 0


def test_a_genome_without_effects_has_no_sets(world):
    folder, store, _, _, gwas = world
    found = estimate_posterior(folder / "priors.tsv", store, gwas(np.zeros(M)), finemap=OPTIONS, out=folder / "nothing")
    assert found.finemap.sets.height == 0
    assert found.record["finemap"]["median_size"] is None
    assert (found.finemap.variants["PIP"] < 0.1).all()
    assert (folder / "nothing" / "credible_sets.tsv").read_text().count("\n") == 1
    assert (folder / "nothing" / "finemap.png").stat().st_size > 5_000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A cross-fitted run on a small problem, in its folder."""
    folder, store, z, annotations, _ = tiny_problem(tmp_path_factory)
    out = tmp_path_factory.mktemp("run") / "run"
    options = deepwas.FitOptions(network="constant", folds=3)
    return folder, store, deepwas.fit(store, z, annotations, options=options, out=out)


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(x) for x in arguments])
    return end.value.code


def test_the_command_maps_a_run_with_its_own_noise_and_mismatch(run, tmp_path, capsys):
    folder, _, fit = run
    out = tmp_path / "p"
    assert call("posterior", fit.folder, "--ld", folder / "ld.h5", "--out", out, "--finemap", "--purity", "0.6") == 0
    said = "".join(capsys.readouterr())
    assert "95% credible sets" in said
    assert "learned in" in said
    mapped = pl.read_csv(out / "finemap.tsv.gz", separator="\t", null_values="NA", infer_schema_length=None)
    best = mapped.row(int(mapped["PIP"].arg_max()), named=True)
    told = f"likeliest to have an effect of its own: {best['SNP']}, inclusion probability {best['PIP']:.3g}, effect"
    assert told in " ".join(said.split())
    record = json.loads((out / "posterior.json").read_text())["finemap"]
    assert record["options"]["purity"] == 0.6
    assert record["slab_rounds"] >= 1
    assert 0 < record["prior_inclusion"] < 0.5
    blocks = pl.read_csv(
        out / "finemap_blocks.tsv", separator="\t", null_values="NA", schema_overrides={"FLAG": pl.String}
    )
    known = pl.read_csv(
        fit.folder / "mismatch.tsv", separator="\t", null_values="NA", schema_overrides={"FLAG": pl.String}
    )
    engine = [
        None if x is None else "+".join(y for y in x.split("+") if y not in ("residual", "panel")) or None
        for x in blocks["FLAG"]
    ]
    assert engine == known["FLAG"].to_list()
    levels = fit.variants.group_by("BLOCK", maintain_order=True).first()["SECTION"]
    noise = {r["test_blocks"][0]: r["noise"] for r in fit.record["rotations"]}
    section = dict(zip(fit.variants["BLOCK"].unique(maintain_order=True), levels, strict=True))
    own = {section[b]: level for b, level in noise.items()}
    base = np.array([own[x] for x in levels])
    raised = np.maximum(base, np.minimum(base, 1) + blocks["PANEL_ERROR"].to_numpy())
    np.testing.assert_allclose(blocks["NOISE"], raised, rtol=0.03)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--slab", "1e-4"), "--slab is for fine-mapping. Give --finemap too"),
        (("--finemap", "--coverage", "1.5"), "--coverage is 1.5"),
        (("--finemap", "--max-effects", "0"), "--max-effects is 0"),
        (("--finemap", "--slab", "-1"), "--slab is -1.0"),
        (("--finemap", "--purity", "2"), "--purity is 2.0"),
    ],
)
def test_flags_that_make_no_sense_are_told(flags, message, tmp_path, capsys):
    assert call("posterior", tmp_path, "--ld", tmp_path / "ld.h5", "--out", tmp_path / "o", *flags) == 2
    assert message in " ".join("".join(capsys.readouterr()).split())
