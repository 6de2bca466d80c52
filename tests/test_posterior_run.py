"""Posterior effects of a whole store: tables, scores, local heritability, and what is refused."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy.stats import norm

import deepwas
from deepwas.cli import main
from deepwas.cli.posterior import _show
from deepwas.errors import InputError
from deepwas.ld import LDBlock
from deepwas.ld.write import write_ld
from deepwas.posterior import PosteriorOptions, estimate_posterior, write_score_file
from deepwas.posterior import progress as computed_parts
from deepwas.posterior import run as run_module
from deepwas.specs import validate_table
from deepwas.sumstats import HarmonisedSumstats
from tests.dense import ld_matrix
from tests.fit_problem import tiny_problem

M, N, NOISE = 90, 2e4, 1.1
# Start, candidates, scored from, scored to. The last two overlap; 85 to 89 are candidates that no block scores.
PLACES = ((0, 40, 0, 40), (40, 40, 0, 25), (60, 30, 5, 25))


def whole_ld():
    """LD of chromosome 1 (40 variants) and of chromosome 2 (50)."""
    R = np.zeros((M, M))
    R[:40, :40] = ld_matrix("duplicates", 40, np.random.default_rng(1))
    R[40:, 40:] = ld_matrix("ar1", 50, np.random.default_rng(2))
    return R


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder, store, GWAS (variants missing from two blocks, sample sizes that differ in one), priors table, f."""
    folder = tmp_path_factory.mktemp("posterior")
    rng = np.random.default_rng(3)
    R = whole_ld()
    variants = pl.DataFrame(
        {
            "CHR": ["1"] * 40 + ["2"] * 50,
            "SNP": [f"rs{j}" if j % 10 else f"id:{j}" for j in range(M)],
            "BP": [1000 * (j + 1) for j in range(M)],
            "A1": ["A"] * M,
            "A2": ["G"] * M,
            "FREQ": rng.uniform(0.1, 0.9, M),
        }
    )
    blocks = []
    for start, m, low, high in PLACES:
        scored = np.zeros(m, bool)
        scored[low:high] = True
        blocks.append(
            (start, LDBlock.from_correlation(R[start : start + m, start : start + m], scored, dtype=np.float64))
        )
    store = write_ld(folder / "ld.h5", variants, blocks, build="GRCh37", n_samples=1000, dtype="float64")
    f = rng.exponential(size=M) * 0.3 / M
    n = np.full(M, N)
    n[65:] = rng.uniform(1e4, 3e4, 25)
    beta = np.sqrt(f) * rng.standard_normal(M)
    values, vectors = np.linalg.eigh(R)
    error = np.sqrt(NOISE) * vectors @ (np.sqrt(np.maximum(values, 0)) * rng.standard_normal(M))
    z = np.sqrt(n) * (R @ beta) + error
    rows = np.array([j for j in range(85) if j not in (3, 4, 50, 70)])
    frame = variants.with_row_index("VARIANT")[rows].with_columns(
        pl.Series("Z", z[rows]), pl.Series("N", n[rows]), pl.Series("FRQ", rng.uniform(0.1, 0.9, len(rows)))
    )
    frame = frame.with_columns(pl.when(pl.col("VARIANT") == 7).then(None).otherwise(pl.col("FRQ")).alias("FRQ"))
    gwas = HarmonisedSumstats(
        frame.select("VARIANT", "CHR", "SNP", "BP", "A1", "A2", "Z", "N", "FRQ"),
        M,
        "gwas.tsv",
        "0" * 64,
        "LDSC",
        "position",
        genome_build="GRCh37",
        store_checksum=store.checksum,
    )
    gwas.write_parquet(folder / "z.parquet")
    priors = variants.select("CHR", "SNP", "BP", "A1", "A2").with_columns(pl.Series("SNPVAR", f))
    priors.write_csv(folder / "priors.tsv", separator="\t")
    return folder, store, gwas, priors, f


OPTIONS = PosteriorOptions(noise=NOISE)


@pytest.fixture(scope="module")
def found(world):
    folder, store, gwas, _, _ = world
    said = []
    result = estimate_posterior(
        folder / "priors.tsv",
        store,
        gwas,
        options=OPTIONS,
        out=folder / "out",
        name="my score",
        progress=lambda what, done, total: said.append((what, done, total)),
    )
    assert said[-1] == ("posterior of LD blocks", 3, 3)
    return result


def dense(gwas, f):
    """Mean and variance by row, from each block's own normal conditional; and the blocks' R, mean, V of the scored."""
    R = whole_ld()
    z, n = np.full(M, np.nan), np.full(M, np.nan)
    rows = gwas.frame["VARIANT"].to_numpy()
    z[rows], n[rows] = gwas.frame["Z"].to_numpy(), gwas.frame["N"].to_numpy()
    mean, variance, inside = np.full(M, np.nan), np.full(M, np.nan), []
    for start, m, low, high in PLACES:
        here, scored = np.arange(start, start + m), np.arange(start + low, start + high)
        seen = scored[np.isfinite(z[scored])]
        to_all = np.sqrt(n[seen])[:, None] * R[np.ix_(seen, here)]
        F = np.diag(f[here])
        # Copies of a variant make R singular; their z-scores are equal, and the pseudo-inverse takes them as one.
        B = np.linalg.pinv(to_all @ F @ to_all.T + NOISE * R[np.ix_(seen, seen)], rcond=1e-10, hermitian=True)
        own = F @ to_all.T @ B
        V = F - own @ to_all @ F
        mean[scored], variance[scored] = (own @ z[seen])[low:high], np.diag(V)[low:high]
        inside.append((R[np.ix_(scored, scored)], mean[scored], V[low:high, low:high]))
    return mean, variance, inside


def test_table_holds_the_dense_posterior(world, found):
    _, store, gwas, _, f = world
    mean, variance, _ = dense(gwas, f)
    table = found.table
    assert table["SNP"].to_list() == store.variants["SNP"][:85].to_list()
    m, v = table["POST_MEAN"].to_numpy(), table["POST_SD"].to_numpy() ** 2
    np.testing.assert_allclose(m, mean[:85], rtol=1e-4, atol=1e-5 * np.nanmax(np.abs(mean)))
    np.testing.assert_allclose(v, variance[:85], rtol=1e-5)
    np.testing.assert_allclose(table["POST_Z"], m / np.sqrt(v), rtol=1e-12)
    assert (table["VARIANCE_SE"] == 0).all()
    missing = table.with_row_index("J").filter(pl.col("Z").is_null())["J"].to_list()
    assert missing == [3, 4, 50, 70]
    assert (table["POST_MEAN"][missing] != 0).all()
    np.testing.assert_array_equal(table["SNPVAR"], f[:85])


def test_effects_per_allele_take_the_frequency_they_name(world, found):
    _, store, gwas, priors, _ = world
    table = found.table
    own = np.full(M, np.nan)
    own[gwas.frame["VARIANT"].to_numpy()] = gwas.frame["FRQ"].cast(float).fill_null(np.nan).to_numpy()
    panel = store.variants["FREQ"].to_numpy()
    q = np.where(np.isfinite(own), own, panel)[:85]
    np.testing.assert_allclose(table["FREQ"], q)
    assert table["FREQ_FROM"].to_list() == ["gwas" if np.isfinite(x) else "panel" for x in own[:85]]
    np.testing.assert_allclose(table["POST_BETA"] * np.sqrt(2 * q * (1 - q)), table["POST_MEAN"])
    np.testing.assert_allclose(table["POST_BETA_SD"] * np.sqrt(2 * q * (1 - q)), table["POST_SD"])
    assert found.record["totals"]["frequencies"] == {"gwas": 80, "panel": 5}
    other = estimate_posterior(priors, store, gwas, options=replace(OPTIONS, frequencies="panel"))
    np.testing.assert_allclose(other.table["FREQ"], panel[:85])
    assert set(other.table["FREQ_FROM"]) == {"panel"}


def test_local_heritability_and_r2_are_the_dense_ones(world, found):
    _, _, gwas, _, f = world
    _, _, inside = dense(gwas, f)
    for row, (R, m, V), (start, _, low, high) in zip(found.blocks.iter_rows(named=True), inside, PLACES, strict=True):
        own = f[start + low : start + high]
        R2 = m @ R @ m
        assert row["R2"] == pytest.approx(R2, rel=1e-3)
        assert row["H2"] == pytest.approx(R2 + np.trace(R @ V), rel=1e-3)
        sd = np.sqrt(2 * np.trace(R @ V @ R @ V) + 4 * m @ R @ V @ R @ m)
        assert row["H2_SD"] == pytest.approx(sd, rel=1e-3)
        assert row["H2_PRIOR"] == pytest.approx(own.sum())
        assert row["H2_PRIOR_KEPT"] == pytest.approx(own.sum(), rel=1e-3)
        assert row["R2_PRIOR"] == pytest.approx(own.sum() - np.trace(R @ V), rel=2e-3)
        assert row["VARIANTS"] == high - low
    total, blocks = found.record["totals"], found.blocks
    assert total["h2"] == pytest.approx(blocks["H2"].sum())
    assert total["h2_sd"] == pytest.approx(np.sqrt((blocks["H2_SD"] ** 2).sum()))
    assert total["r2"] == pytest.approx(blocks["R2"].sum())
    assert blocks["OBSERVED"].to_list() == [38, 24, 19]
    assert "variants that no LD block scores" in str(found.record["counts"])


def test_files_are_complete_and_follow_their_specifications(world, found):
    folder, *_ = world
    out = folder / "out"
    assert {p.name for p in out.iterdir()} == {
        "posterior.json",
        "posterior.tsv.gz",
        "local_heritability.tsv",
        "local_heritability.png",
        "score.txt.gz",
    }
    read = pl.read_csv(out / "posterior.tsv.gz", separator="\t", null_values="NA", schema_overrides={"CHR": pl.String})
    validate_table(read, "posterior", "posterior.tsv.gz")
    np.testing.assert_allclose(read["POST_MEAN"], found.table["POST_MEAN"], rtol=1e-6)
    blocks = pl.read_csv(
        out / "local_heritability.tsv", separator="\t", null_values="NA", schema_overrides={"CHR": pl.String}
    )
    validate_table(blocks, "local_heritability", "local_heritability.tsv")
    record = json.loads((out / "posterior.json").read_text())
    assert record == found.record
    assert record["status"] == "complete"
    assert record["prior"]["file"] == "priors.tsv"
    assert (out / "local_heritability.png").stat().st_size > 10_000


def test_the_score_goes_to_a_file_and_back(world, found, tmp_path):
    folder, *_ = world
    path = folder / "out" / "score.txt.gz"
    with gzip.open(path, "rt") as handle:
        header = [line.strip() for line in handle if line.startswith("#")]
    assert header[0].startswith("###PGS CATALOG SCORING FILE")
    assert {"#format_version=2.0", "#genome_build=GRCh37", "#pgs_name=my score", "#variants_number=85"} <= set(header)
    assert "#weight_type=beta" in header
    back = pl.read_csv(path, separator="\t", comment_prefix="#", schema_overrides={"chr_name": pl.String})
    assert back.columns == ["rsID", "chr_name", "chr_position", "effect_allele", "other_allele", "effect_weight"]
    validate_table(back, "score", "score.txt.gz")
    np.testing.assert_allclose(back["effect_weight"], found.table["POST_BETA"], rtol=1e-6)
    assert back["rsID"][0] is None
    assert back["rsID"][1] == "rs1"
    assert back["chr_position"].to_list() == found.table["BP"].to_list()
    # Scores of people from counts of the effect allele: those of standardised genotypes, but for a constant.
    q = found.table["FREQ"].to_numpy()
    counts = np.random.default_rng(0).binomial(2, q, (50, 85))
    standardised = (counts - 2 * q) / np.sqrt(2 * q * (1 - q))
    by_allele, by_sd = counts @ back["effect_weight"].to_numpy(), standardised @ found.table["POST_MEAN"].to_numpy()
    np.testing.assert_allclose(by_allele - by_allele.mean(), by_sd - by_sd.mean(), atol=1e-5)
    none = found.table.with_columns(POST_BETA=pl.when(pl.col("CHR") == "2").then(pl.col("POST_BETA")).otherwise(0.0))
    assert write_score_file(tmp_path / "s.txt", none, build="hg19", name="x", trait="y") == 45
    assert "#variants_number=45" in (tmp_path / "s.txt").read_text()
    with pytest.raises(InputError, match="there is no score to write"):
        write_score_file(tmp_path / "t.txt", none.head(40), build="hg19", name="x", trait="y")
    with pytest.raises(InputError, match="genome build 'hg17' is not known"):
        write_score_file(tmp_path / "t.txt", none, build="hg17", name="x", trait="y")
    with pytest.raises(InputError, match="one line of text"):
        write_score_file(tmp_path / "t.txt", none, build="hg19", name="two\nlines", trait="y")


def test_cg_agrees_within_its_standard_errors(world, found):
    _, store, gwas, priors, _ = world
    other = estimate_posterior(priors, store, gwas, options=replace(OPTIONS, solver="cg", seed=1))
    np.testing.assert_allclose(other.table["POST_MEAN"], found.table["POST_MEAN"], rtol=1e-3, atol=1e-6)
    off = np.abs(other.table["POST_SD"].to_numpy() ** 2 - found.table["POST_SD"].to_numpy() ** 2)
    error = other.table["VARIANCE_SE"].to_numpy()
    assert (error > 0).all()
    assert (off <= 4 * error).mean() > 0.98
    assert set(other.blocks["SOLVER"]) == {"cg"}
    assert other.blocks["H2_SD"].null_count() == 3
    assert other.record["totals"]["h2_sd"] is None
    assert (np.abs(other.blocks["H2"] - found.blocks["H2"]) <= 4 * other.blocks["H2_SE"]).all()
    again = estimate_posterior(priors, store, gwas, options=replace(OPTIONS, solver="cg", seed=1))
    assert again.table.equals(other.table)


def test_an_interrupted_posterior_goes_on_to_the_same_files(world, found, monkeypatch):
    folder, store, gwas, _, _ = world
    out = folder / "interrupted"
    given = (folder / "priors.tsv", store, gwas)
    solved = []
    real = run_module.posterior_of_factor

    def counted(*arguments, **how):
        solved.append(how["where"])
        if len(solved) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **how)

    monkeypatch.setattr(run_module, "posterior_of_factor", counted)
    monkeypatch.setattr(computed_parts, "_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        estimate_posterior(*given, options=OPTIONS, out=out)
    assert {p.name for p in out.iterdir()} == {"posterior.json", "posterior.partial.h5"}
    with pytest.raises(InputError, match="give --resume"):
        estimate_posterior(*given, options=OPTIONS, out=out)
    with pytest.raises(InputError, match="other inputs, options or version"):
        estimate_posterior(*given, options=PosteriorOptions(), out=out, resume=True)
    estimate_posterior(*given, options=OPTIONS, out=out, name="my score", resume=True)
    assert solved == ["LD block 0", "LD block 1", "LD block 1", "LD block 2"]
    for name in ("posterior.tsv.gz", "local_heritability.tsv", "score.txt.gz", "posterior.json"):
        assert (out / name).read_bytes() == (folder / "out" / name).read_bytes(), name
    with pytest.raises(InputError, match="complete already"):
        estimate_posterior(*given, options=OPTIONS, out=out, resume=True)


def test_a_partial_file_that_is_damaged_is_computed_again(world, found):
    folder, store, gwas, _, _ = world
    out = folder / "damaged"
    out.mkdir()
    record = {"identity": found.record["identity"], "status": "running"}
    (out / "posterior.json").write_text(json.dumps(record))
    (out / "posterior.partial.h5").write_bytes(b"cut short")
    other = estimate_posterior(folder / "priors.tsv", store, gwas, options=OPTIONS, out=out, resume=True)
    assert other.table.equals(found.table)


def test_swapped_alleles_and_rows_beyond_the_store_are_told(world, found):
    _, store, gwas, priors, _ = world
    turned = priors.with_columns(
        A1=pl.when(pl.col("BP") < 6000).then(pl.lit("G")).otherwise(pl.lit("A")),
        A2=pl.when(pl.col("BP") < 6000).then(pl.lit("A")).otherwise(pl.lit("G")),
    )
    extra = pl.concat([turned, priors.head(2).with_columns(pl.col("BP") + 7)])
    other = estimate_posterior(extra, store, gwas, options=OPTIONS)
    assert other.table.equals(found.table)
    counts = {row["reason"]: row["count"] for row in other.record["counts"]}
    assert counts["priors matched with the alleles in the other order"] == 5
    assert counts["priors of variants that the LD store does not hold"] == 2


def test_missing_priors_are_refused_or_zero(world):
    _, store, gwas, priors, f = world
    some = priors.filter(pl.col("BP") != 12_000)
    with pytest.raises(InputError, match=r"no prior for 1 of the 90 variants .*first: rs11"):
        estimate_posterior(some, store, gwas)
    other = estimate_posterior(some, store, gwas, options=replace(OPTIONS, missing_prior="zero"))
    row = other.table.row(11, named=True)
    assert (row["POST_MEAN"], row["POST_SD"], row["POST_Z"]) == (0.0, 0.0, None)
    zero = np.where(np.arange(M) == 11, 0.0, f)
    mean, *_ = dense(gwas, zero)
    np.testing.assert_allclose(other.table["POST_MEAN"], mean[:85], rtol=1e-4, atol=1e-5 * np.nanmax(np.abs(mean)))


def test_inputs_that_do_not_belong_together_are_refused(world, tmp_path):
    _, store, gwas, priors, _ = world
    elsewhere = priors.with_columns(pl.col("BP") + 500)
    bad = [
        (elsewhere, "none of its 90 variants is among .* on GRCh37"),
        (priors.with_columns(SNPVAR=pl.when(pl.col("BP") == 3000).then(float("nan")).otherwise(1e-4)), "row 3: nan"),
        (
            priors.with_columns(SNPVAR=pl.when(pl.col("BP") == 3000).then(None).otherwise(1e-4)),
            "row 3: a missing value",
        ),
        (priors.with_columns(SNPVAR=pl.lit(-1.0)), r"row 1: -1.0 \(90 such rows\)"),
        (priors.with_columns(SNPVAR=pl.lit(0.0)), "SNPVAR is 0 for every variant"),
        (priors.drop("SNPVAR"), "column SNPVAR is missing"),
        (pl.concat([priors, priors.head(1)]), "1 1000 A G stands twice"),
        (3.0, "the prior is a float"),
    ]
    for table, text in bad:
        with pytest.raises(InputError, match=text):
            estimate_posterior(table, store, gwas, out=tmp_path / "out")
    with pytest.raises(InputError, match="a table of priors needs z-scores"):
        estimate_posterior(priors, store)
    with pytest.raises(InputError, match="another LD store"):
        estimate_posterior(priors, store, replace(gwas, store_checksum="f" * 64))
    z = gwas.frame["Z"]
    other_build = gwas.frame.select("CHR", "SNP", pl.col("BP").alias("POS") + 1_000_000, "A1", "A2", "N").with_columns(
        AF1=0.3, BETA=z / 100, SE=0.01, P=pl.Series(2 * norm.sf(z.abs()))
    )
    other_build.write_csv(tmp_path / "hg38.fastGWA", separator="\t")
    with pytest.raises(InputError, match="two genome builds are mixed"):
        estimate_posterior(priors, store, tmp_path / "hg38.fastGWA")
    for how, text in (
        ({"solver": "lu"}, "solver is 'lu'"),
        ({"probes": 1}, "probes is 1"),
        ({"noise": 0.0}, "noise is 0.0"),
        ({"rtol": 2.0}, "rtol is 2.0"),
        ({"frequencies": "mine"}, "frequencies is 'mine'"),
        ({"missing_prior": "mean"}, "missing_prior is 'mean'"),
    ):
        with pytest.raises(InputError, match=text):
            PosteriorOptions(**how)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A cross-fitted run on a small problem: folder, store, z-scores, fit."""
    folder, store, z, annotations, _ = tiny_problem(tmp_path_factory)
    options = deepwas.FitOptions(network="constant", folds=3)
    return folder, store, z, deepwas.fit(store, z, annotations, options=options, out=folder / "run")


def test_a_run_gives_its_own_prior_noise_and_scores(run):
    folder, store, z, fit = run
    found = estimate_posterior(folder / "run", store, out=folder / "posterior")
    assert found.record["prior"]["cross_fitted"] is True
    assert set(found.table["FREQ_FROM"]) == {"panel"}
    np.testing.assert_array_equal(found.table["SNPVAR"], fit.variants["SNPVAR_CROSS"])
    noises = {r["noise"] for r in fit.record["rotations"]}
    assert set(found.blocks["NOISE"]) == noises
    assert len(noises) > 1
    # The same from the table of priors, one noise at a time.
    table = fit.priors(which="all").with_columns(fit.variants["SNPVAR_CROSS"].alias("SNPVAR"))
    for level in noises:
        other = estimate_posterior(table, store, z, options=PosteriorOptions(noise=level))
        at = found.blocks.filter(pl.col("NOISE") == level)["BLOCK"].implode()
        mine, theirs = (x.table.filter(pl.col("BLOCK").is_in(at)) for x in (found, other))
        np.testing.assert_array_equal(mine["POST_MEAN"], theirs["POST_MEAN"])
        np.testing.assert_array_equal(mine["POST_SD"], theirs["POST_SD"])
    plain = fit.posterior(store, sumstats=z, options=PosteriorOptions(cross_fitted=False))
    np.testing.assert_array_equal(plain.table["SNPVAR"], fit.variants["SNPVAR_PLAIN"])
    assert len(set(plain.blocks["NOISE"])) == 1
    assert set(plain.table["FREQ_FROM"]) == {"gwas"}
    other_z = replace(z, frame=z.frame.with_columns(pl.col("Z") * 2))
    with pytest.raises(InputError, match="not the z-scores of the run"):
        estimate_posterior(fit, store, other_z)


def test_a_run_of_another_store_is_refused(run, world):
    folder, *_ = run
    with pytest.raises(InputError, match="not the LD store of the run"):
        estimate_posterior(folder / "run", world[1])


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 0


def test_a_posterior_without_weights_per_allele_is_said_to_have_no_score(found, tmp_path, capsys):
    nothing = found.table.with_columns(POST_BETA=pl.lit(None, pl.Float64))
    replace(found, table=nothing).write(tmp_path)
    assert not (tmp_path / "score.txt.gz").exists()
    _show(found, tmp_path)
    said = " ".join("".join(capsys.readouterr()).split())
    assert "no variant has a weight per allele other than 0, so there is no score.txt.gz" in said


def test_the_command_says_what_it_found(run, world, found, capsys):
    folder, *_ = run
    call("posterior", str(folder / "run"), "--ld", str(folder / "ld.h5"), "--out", str(folder / "p"), "--name", "s")
    said = "".join(capsys.readouterr())
    assert "explained by the score (R2)" in said
    assert "all exact" in said
    assert (folder / "p" / "score.txt.gz").is_file()
    own = world[0]
    given = ["--ld", str(own / "ld.h5"), "--priors", str(own / "priors.tsv"), "--sumstats", str(own / "z.parquet")]
    call("posterior", *given, "--out", str(own / "p"), "--noise", str(NOISE))
    assert (own / "p" / "posterior.tsv.gz").read_bytes() == (own / "out" / "posterior.tsv.gz").read_bytes()
    capsys.readouterr()
    for arguments, text in (
        (given[:2], "give a run folder, or --priors"),
        ([str(folder / "run"), *given], "one of the two"),
        (given[:4], "--priors needs z-scores"),
        ([*given, "--plain"], "--plain is for a run"),
        ([*given, "--missing-prior", "mean"], "--missing-prior is 'mean'"),
        ([*given[:3], str(own / "gone.tsv"), *given[4:]], "no such file"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["posterior", *arguments, "--out", str(own / "q")])
        assert end.value.code == 2
        assert text in " ".join(capsys.readouterr().err.split())
    assert not (own / "q").exists()
