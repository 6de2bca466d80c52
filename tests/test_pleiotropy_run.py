"""Classification of variants over several traits: planted classes, files, resumption, refusals, the command."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from deepwas.cli import main
from deepwas.errors import InputError
from deepwas.ld import LDBlock
from deepwas.ld.write import write_ld
from deepwas.pleiotropy import PleiotropyOptions, TraitEffects, classify, learning
from deepwas.pleiotropy import joint as joint_module
from deepwas.pleiotropy import model_of as model_module
from deepwas.pleiotropy import run as run_module
from deepwas.pleiotropy.calls import block_figures, classify_probabilities
from deepwas.pleiotropy.configurations import TraitModel
from deepwas.pleiotropy.genome import read_trait_effects
from deepwas.pleiotropy.learning import JointBlock, locate
from deepwas.pleiotropy.model_of import BlocksToLocate
from deepwas.pleiotropy.run import _blurred
from deepwas.posterior import progress as computed_parts
from deepwas.runs import Fit
from deepwas.specs import validate_json, validate_table
from deepwas.sumstats import HarmonisedSumstats
from tests.dense import ld_matrix

SIZE, BLOCKS, N, SLAB, PATH = 32, 6, 1e5, 9e-4, 0.4
M = SIZE * BLOCKS
NAMES = ("a", "b", "c")
CN = np.array([[1.0, 0.3, 0.0], [0.3, 1.0, 0.0], [0.0, 0.0, 1.0]])
SHARED, APART, THROUGH = 7, (SIZE + 8, SIZE + 14), 2 * SIZE + 16  # rows of the store
MISSING = 5 * SIZE + 3  # has no z-score in c
OPTIONS = PleiotropyOptions(rounds=4, max_effects=3, candidates=16, draws=4)
FILES = {
    "pleiotropy.tsv.gz": "pleiotropy",
    "loci.tsv": "pleiotropy_loci",
    "trait_pairs.tsv": "pleiotropy_pairs",
    "trait_effects.tsv": "pleiotropy_trait_effects",
}


def paths():
    T = np.zeros((3, 3))
    T[0, 1] = PATH
    return T


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder, store, priors and z-scores by trait, and a function that makes a GWAS of z-scores."""
    folder = tmp_path_factory.mktemp("pleiotropy")
    R = ld_matrix("ar1", SIZE, np.random.default_rng(0))
    variants = pl.DataFrame(
        {
            "CHR": ["1"] * (3 * SIZE) + ["2"] * (M - 3 * SIZE),
            "SNP": [f"rs{j}" for j in range(M)],
            "BP": [1000 * (j + 1) for j in range(M)],
            "A1": ["A"] * M,
            "A2": ["G"] * M,
            "FREQ": [0.3] * M,
        }
    )
    blocks = ((SIZE * i, LDBlock.from_correlation(R, dtype=np.float64)) for i in range(BLOCKS))
    store = write_ld(folder / "ld.h5", variants, blocks, build="GRCh37", n_samples=100_000, dtype="float64")
    direct = np.zeros((M, 3))
    direct[SHARED] = [0.03, -0.03, 0.0]
    direct[APART[0], 1], direct[APART[1], 2] = 0.035, -0.035
    direct[THROUGH, 0] = 0.06
    total = direct @ np.linalg.inv(np.eye(3) - paths())
    rng = np.random.default_rng(3)
    root = np.linalg.cholesky(R)
    z = []
    for i in range(BLOCKS):
        error = root @ rng.normal(size=(SIZE, 3)) @ np.linalg.cholesky(CN).T
        z.append(np.sqrt(N) * R @ total[SIZE * i : SIZE * (i + 1)] + error)
    f = np.full((M, 3), 0.02 * SLAB) @ np.linalg.inv(np.eye(3) - paths()) ** 2
    f[:, 2] *= np.exp(0.7 * np.random.default_rng(8).normal(size=M))

    def gwas(values, name):
        frame = variants.with_row_index("VARIANT").drop("FREQ")
        frame = frame.with_columns(pl.Series("Z", values), pl.lit(N).alias("N"), pl.lit(0.3).alias("FRQ"))
        if name == "c":
            frame = frame.filter(pl.col("VARIANT") != MISSING)
        return HarmonisedSumstats(
            frame, M, f"{name}.tsv", "0" * 64, "LDSC", "position", genome_build="GRCh37", store_checksum=store.checksum
        )

    z = np.concatenate(z)
    for k, name in enumerate(NAMES):
        table = variants.select("CHR", "SNP", "BP", "A1", "A2").with_columns(pl.Series("SNPVAR", f[:, k]))
        table.write_csv(folder / f"{name}.priors.tsv", separator="\t")
        gwas(z[:, k], name).write_parquet(folder / f"{name}.parquet")
    pl.DataFrame({"CAUSE": ["a"], "EFFECT": ["b"], "T": [PATH], "SE": [0.01]}).write_csv(
        folder / "T.tsv", separator="\t"
    )
    pairs = [(NAMES[j], NAMES[k], CN[j, k]) for j in range(3) for k in range(j, 3)]
    pl.DataFrame(pairs, schema=["TRAIT_1", "TRAIT_2", "NOISE"], orient="row").write_csv(
        folder / "noise.tsv", separator="\t"
    )
    return SimpleNamespace(folder=folder, store=store, z=z, gwas=gwas)


def inputs(world, names=NAMES):
    """Tables of priors and z-scores by trait."""
    priors = {name: world.folder / f"{name}.priors.tsv" for name in names}
    return priors, {name: world.folder / f"{name}.parquet" for name in names}


@pytest.fixture(scope="module")
def found(world):
    priors, z = inputs(world)
    return classify(
        priors,
        world.store,
        sumstats=z,
        noise_correlation=CN,
        trait_effects=world.folder / "T.tsv",
        options=OPTIONS,
        out=world.folder / "out",
    )


def test_planted_classes_are_found(found):
    table = found.variants
    assert table.height == M
    both = table.row(SHARED, named=True)
    assert both["CLASS"] == "pleiotropic"
    assert both["P_PLEIOTROPY"] > 0.9
    assert min(both["PIP_a"], both["PIP_b"]) > 0.9
    assert both["EFFECT_a"] == pytest.approx(0.03, abs=0.01)
    assert both["EFFECT_b"] == pytest.approx(-0.03, abs=0.01)
    first, second = (slice(x - 2, x + 3) for x in APART)
    assert table["P_PLEIOTROPY"][SIZE : 2 * SIZE].sum() < 0.1
    assert table["P_LD_ONLY"][first].sum() > 0.9
    assert table["P_LD_ONLY"][second].sum() > 0.9
    assert table["PIP_b"][first].sum() > 0.9
    assert table["PIP_c"][second].sum() > 0.9
    through = table[2 * SIZE : 3 * SIZE]
    assert through["P_VERTICAL"].sum() > 0.8
    assert through["P_PLEIOTROPY"].sum() < 0.2
    assert table[3 * SIZE :]["N_TRAITS"].max() < 0.3
    assert not table["OBSERVED"][MISSING]
    assert table["OBSERVED"].sum() == M - 1
    np.testing.assert_allclose(table["LFDR"], 1 - table["P_PLEIOTROPY"])


def test_loci_say_their_traits(found):
    loci = found.loci
    assert loci["CLASS"].to_list() == ["pleiotropic", "ld_only", "ld_only", "vertical"]
    assert loci["TRAITS"].to_list() == ["a,b", "b", "c", "a"]
    assert loci["CHR"].to_list() == ["1"] * 4
    r2 = 0.9 ** (2 * (APART[1] - APART[0]))
    np.testing.assert_allclose(loci["R2_NEAREST"][1:3], r2, atol=0.15)
    assert not loci["UNRESOLVABLE"].any()
    for row in loci.iter_rows(named=True):
        members = found.variants.filter(pl.col("LOCUS") == row["LOCUS"])
        assert row["LEAD"] in members["SNP"]
        assert members.height == row["SIZE"]
        assert row["P_SHARED"] + row["P_SINGLE"] + row["P_CONFOUNDER"] == pytest.approx(1, abs=1e-4)
        assert row["LFDR"] == pytest.approx(1 - row["P_SHARED"] * row["COVERAGE"], abs=1e-3)
    pairs = found.pairs.filter(TRAIT_1="a", TRAIT_2="b").row(0, named=True)
    assert pairs["BOTH"] == pytest.approx(found.variants["P_PLEIOTROPY"].sum(), abs=0.1)
    assert pairs["NOISE"] == 0.3
    assert 0 < pairs["SHARE"] < 1


def test_without_effects_of_trait_on_trait_vertical_is_called_direct(world, found):
    priors, z = inputs(world)
    options = PleiotropyOptions(**(OPTIONS.as_dict() | {"vertical": False, "sharing": False}))
    other = classify(priors, world.store, sumstats=z, noise_correlation=CN, options=options)
    block = other.variants[2 * SIZE : 3 * SIZE]
    assert block["P_PLEIOTROPY"].sum() > 0.4  # by independent priors, beside two effects in LD; with T below 0.2
    assert block["P_VERTICAL"].max() == 0
    assert set(other.record["learned"]["excess_log_odds"].values()) == {0.0}
    assert other.record["trait_effects"] == "held at 0"


def test_structure_is_estimated_where_it_is_not_given(world, found, monkeypatch):
    """Too few instruments for effects of trait on trait is said; the noise comes with its error."""
    seen = []
    real = run_module.structure_of

    def kept(*arguments, **how):
        seen.append(real(*arguments, **how))
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "structure_of", kept)
    priors, z = inputs(world)
    with pytest.raises(KeyboardInterrupt):
        classify(priors, world.store, sumstats=z, options=OPTIONS)
    (structure,) = seen
    off = np.abs(structure.noise.matrix - CN)
    assert (off < 5 * np.maximum(structure.noise.standard_error, 0.05)).all()
    assert any("instruments" in note for note in structure.effects.notes)
    assert not structure.effects.T.any()
    assert (structure.passing < 0.5).all()


def test_files_follow_their_specifications(world, found):
    out = world.folder / "out"
    for (name, spec), frame in zip(
        FILES.items(), (found.variants, found.loci, found.pairs, found.trait_effects), strict=True
    ):
        read = pl.read_csv(
            out / name,
            separator="\t",
            null_values="NA",
            schema_overrides={"CHR": pl.String} if "CHR" in frame.columns else None,
            infer_schema_length=None,
        ).cast({c: t for c, t in frame.schema.items() if t == pl.Float64})
        validate_table(read, spec, name)
        assert read.columns == frame.columns
        assert read.height == frame.height > 0
    record = json.loads((out / "pleiotropy.json").read_text())
    assert record == found.record
    assert record["status"] == "complete"
    validate_json(record, "pleiotropy_run", "pleiotropy.json")
    powers = record["learned"]["prior_exponent"]
    assert powers["a"] == powers["b"] == 1.0  # their priors are the same for all variants
    assert abs(powers["c"] - 1) > 0.01
    assert any("z-scores of variants that another trait lacks" in row["reason"] for row in record["counts"])
    assert {p.name for p in out.iterdir()} == {
        *FILES,
        "pleiotropy.png",
        "sharing.png",
        "reliability.png",
        "pleiotropy.json",
    }
    assert min((out / x).stat().st_size for x in ("pleiotropy.png", "sharing.png")) > 15_000


def call(*arguments):
    with pytest.raises(SystemExit) as end:
        main([str(x) for x in arguments])
    return end.value.code


def test_the_command_goes_on_to_the_same_files(world, found, monkeypatch, capsys):
    out = world.folder / "command"
    command = ["pleiotropy", *(f"{name}={world.folder / name}.priors.tsv" for name in NAMES)]
    for name in NAMES:
        command += ["--sumstats", f"{name}={world.folder / name}.parquet"]
    command += ["--ld", world.folder / "ld.h5", "--out", out, "--noise-correlation", world.folder / "noise.tsv"]
    command += ["--trait-effects", world.folder / "T.tsv"]
    for name in ("rounds", "max_effects", "candidates", "draws"):
        command += ["--" + name.replace("_", "-"), getattr(OPTIONS, name)]
    located = []
    real = run_module.loci_of

    def counted(*arguments):
        located.append(arguments[2])
        if len(located) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    simulated = []
    compute = run_module.beside_of
    monkeypatch.setattr(run_module, "loci_of", counted)
    monkeypatch.setattr(run_module, "beside_of", lambda *a: simulated.append(1) or compute(*a))
    monkeypatch.setattr(computed_parts, "_SECONDS", 0.0)
    assert call(*command) == 130
    assert {p.name for p in out.iterdir()} == {"pleiotropy.json", "pleiotropy.partial.h5"}
    record = json.loads((out / "pleiotropy.json").read_text())
    validate_json(record, "pleiotropy_run", "an interrupted pleiotropy.json")
    with pytest.raises(InputError, match="'learned' is a required property"):
        validate_json(record | {"status": "complete"}, "pleiotropy_run", "pleiotropy.json")
    assert call(*command) == 2
    assert "give --resume" in capsys.readouterr().err
    assert call(*command, "--resume", "--seed", 3) == 2
    assert "other inputs, options or version" in capsys.readouterr().err
    assert call(*command, "--resume") == 0
    assert located[1] == located[2]
    assert simulated == [1]
    assert sorted(located[2:] + located[:1]) == [SIZE * i for i in range(BLOCKS)]
    said = " ".join("".join(capsys.readouterr()).split())
    kept = f"pleiotropy.partial.h5: holds 1 of {BLOCKS} LD blocks, and what was learned, from before."
    for text in (
        kept,
        "not at all): a 1.00, b 1.00, c",
        "Noise correlation",
        "Effects of trait on trait",
        "Loci",
        "0.4 ± 0.01",
    ):
        assert text in said
    for name in (*FILES, "pleiotropy.json", "pleiotropy.png", "sharing.png"):
        assert (out / name).read_bytes() == (world.folder / "out" / name).read_bytes(), name
    assert call(*command, "--resume") == 2
    assert "complete already" in capsys.readouterr().err


def test_effects_at_flanks_are_another_blocks():
    model = TraitModel(np.full(2, 1e5), np.eye(2), np.full(2, 4e-4), np.zeros((2, 2)))
    probability = np.zeros((10, 3))
    probability[[1, 5], 2] = 0.9, 0.3
    found = SimpleNamespace(probability=probability, variance=0.4, converged=True)
    block = SimpleNamespace(direct=np.full((10, 2), 4e-6))
    effects, variance, _, *pairs = block_figures(block, found, model, slice(3, 8))
    assert effects == pytest.approx(0.3)
    assert variance == pytest.approx(0.1)
    np.testing.assert_allclose(pairs[:3], [0.3, 0.3, 0.3])
    np.testing.assert_allclose(pairs[3:], [0.05, 5e-4, 0.05])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a=x"], "needs two traits or more; given: a"),
        (["a=x", "a=y"], "a is given twice"),
        ([f"t{k}=x" for k in range(21)], "21 traits are given; at most 20"),
        (["x/run", "y/run"], "two traits are called 'run'"),
        (["x/run", "x/run"], "x/run is given twice"),
        (["a=x", "b=y", "--fdr", "2"], "--fdr is 2.0"),
        (["a=x", "b=y", "--annotations", "z"], "--annotations: only the networks read them"),
        (["a=x", "b=y", "--network-objective", "both"], "--network-objective: it is for the networks"),
        (["a=x", "b=y", "--network", "--network-objective", "all"], "--network-objective is 'all'; choose supervised"),
        (["--network", *(f"t{k}=x" for k in range(9))], "--network is for 8 traits at most; 9 are given"),
        (["a=x", "b=y", "--sumstats", "z"], "--sumstats 'z': give a trait's name"),
        (["a=x", "b=y"], "x: no such file"),
    ],
)
def test_the_command_refuses(arguments, message, tmp_path, capsys):
    assert call("pleiotropy", *arguments, "--ld", tmp_path / "ld.h5", "--out", tmp_path / "o") == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_traits_that_do_not_belong_together_are_refused(world):
    priors, z = inputs(world)
    with pytest.raises(InputError, match="pleiotropy needs two traits or more"):
        classify({"a": priors["a"]}, world.store, sumstats=z)
    with pytest.raises(InputError, match="run is given twice"):
        classify(["x/run", "x/run"], world.store)
    with pytest.raises(InputError, match="two runs are called 'run'"):
        classify(["x/run", "y/run"], world.store)
    copy = world.gwas(-world.z[:, 0] + 0.05 * world.z[:, 1], "a")
    with pytest.raises(InputError, match=r"a and b are the same trait: their z-scores correlate at -0\.99"):
        classify({x: priors[x] for x in "ab"}, world.store, sumstats={"a": z["a"], "b": copy})
    constant = world.gwas(np.ones(M), "b")
    with pytest.raises(InputError, match="b: every z-score is 1"):
        classify({x: priors[x] for x in "ab"}, world.store, sumstats={"a": z["a"], "b": constant})
    with pytest.raises(InputError, match="b: a table of priors needs z-scores"):
        classify({x: priors[x] for x in "ab"}, world.store, sumstats={"a": z["a"]})
    with pytest.raises(InputError, match="given for 'd', which is no trait"):
        classify(priors, world.store, sumstats=z | {"d": z["a"]})
    for what, build, checksum in (("genome build", "GRCh38", "x"), ("LD store", "GRCh37", "y")):
        fits = {
            name: Fit({"inputs": {"ld": {"genome_build": b, "checksum": c}}}, pl.DataFrame(), [], [])
            for name, b, c in (("a", "GRCh37", "x"), ("b", build, checksum))
        }
        with pytest.raises(InputError, match=f"a and b are of different {what}s"):
            classify(fits, world.store)


def test_tables_of_structure_that_lack_something_are_refused(world, tmp_path):
    priors, z = inputs(world)
    for table, message in (
        (
            {"CAUSE": ["a"], "EFFECT": ["b"], "T": [PATH]},
            "row 1: the effect of a on b has no standard error; the table has",
        ),
        ({"CAUSE": ["a", "b"], "EFFECT": ["c", "c"], "T": [0.0, 0.2], "SE": [None, None]}, "row 2: the effect of b on"),
        ({"CAUSE": ["a"], "EFFECT": ["a"], "T": [0.1], "SE": [0.1]}, "row 1: a has an effect on itself"),
        ({"CAUSE": ["a"], "EFFECT": ["x"], "T": [0.1], "SE": [0.1]}, "row 1, column EFFECT: 'x' is no trait here"),
        (
            {"CAUSE": ["a", "a"], "EFFECT": ["b", "b"], "T": [0.1, 0.5], "SE": [0.1, 0.1]},
            "row 2: a on b is given twice",
        ),
    ):
        pl.DataFrame(table).write_csv(tmp_path / "T.tsv", separator="\t", null_value="NA")
        with pytest.raises(InputError, match=message):
            classify(priors, world.store, sumstats=z, trait_effects=tmp_path / "T.tsv")
    pl.DataFrame({"TRAIT_1": ["a"], "TRAIT_2": ["b"], "NOISE": [0.1]}).write_csv(tmp_path / "n.tsv", separator="\t")
    with pytest.raises(InputError, match="no value for a and c"):
        classify(priors, world.store, sumstats=z, noise_correlation=tmp_path / "n.tsv")
    twice = {"TRAIT_1": ["a", "b"], "TRAIT_2": ["b", "a"], "NOISE": [0.1, 0.5]}
    pl.DataFrame(twice).write_csv(tmp_path / "n.tsv", separator="\t")
    with pytest.raises(InputError, match=r"n\.tsv: row 2, column NOISE: b and a have 0\.5, and 0\.1 before"):
        classify(priors, world.store, sumstats=z, noise_correlation=tmp_path / "n.tsv")
    for pair, value, message in (
        ("b", 1.4, "a and b have 1.4; a correlation lies between -1 and 1"),
        ("a", 0, "a has 0"),
    ):
        table = {"TRAIT_1": ["a"] * 2 + ["b"], "TRAIT_2": [pair, "c", "c"], "NOISE": [value, 0.1, 0.1]}
        if pair == "a":
            table = {name: [*x, y] for (name, x), y in zip(table.items(), ("a", "b", 0.1), strict=True)}
        pl.DataFrame(table, strict=False).write_csv(tmp_path / "n.tsv", separator="\t")
        with pytest.raises(InputError, match=f"column NOISE: {message}"):
            classify(priors, world.store, sumstats=z, noise_correlation=tmp_path / "n.tsv")
    given = TraitEffects.given(paths(), np.where(paths() != 0, 0.1, 0), names=NAMES)
    with pytest.raises(InputError, match="T is one or the other"):
        classify(priors, world.store, sumstats=z, trait_effects=given, options=PleiotropyOptions(vertical=False))
    with pytest.raises(InputError, match="draws is 1; at least 2"):
        PleiotropyOptions(draws=1)


def test_a_table_of_trait_effects_says_how_sure_it_is(tmp_path):
    def read(frame):
        frame.write_csv(tmp_path / "T.tsv", separator="\t", null_value="NA")
        return read_trait_effects(tmp_path / "T.tsv", ("a", "b", "c"))

    rows = {"CAUSE": ["a", "b", "c"], "EFFECT": ["b", "c", "a"], "T": [0.4, 0.2, 0.0], "SE": [0.01, 0.02, None]}
    more = {"ESTIMATE": [0.4, 0.2, 0.3], "ESTIMATE_SE": [0.01, 0.02, 0.03], "PROBABILITY": [1.0, 0.6, 0.25]}
    certain = read(pl.DataFrame(rows))
    np.testing.assert_array_equal(certain.probability, certain.T != 0)
    found = read(pl.DataFrame(rows | more))
    there = (found.draws(2000, seed=1) != 0).mean(axis=0)
    np.testing.assert_allclose([there[0, 1], there[1, 2], there[2, 0]], [1.0, 0.6, 0.25], atol=0.05)
    assert there.sum() == pytest.approx(there[0, 1] + there[1, 2] + there[2, 0])
    some = read(pl.DataFrame(rows | {"PROBABILITY": [None, 0.6, 0.25]}))
    np.testing.assert_array_equal(some.probability, [[0, 1, 0], [0, 0, 0.6], [0, 0, 0]])
    with pytest.raises(InputError, match=r"T\.tsv: column PROBABILITY holds 1\.2; give 0 to 1"):
        read(pl.DataFrame(rows | {"PROBABILITY": [1.0, 1.2, 0.0]}))


def test_variants_without_a_prior_are_refused_or_have_no_effect(world, tmp_path):
    priors, z = inputs(world)
    some = {name: tmp_path / f"{name}.tsv" for name in priors}
    for name, path in some.items():
        lines = priors[name].read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:-3]), encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.tsv: no prior for 3 of the .* --missing-prior zero"):
        classify(some, world.store, sumstats=z)
    table = joint_module.read_traits(some, world.store, z, "zero")
    assert (table.f[-3:] == 0).all()
    assert (table.f[:-3] > 0).all()
    with pytest.raises(InputError, match="missing_prior is 'mean'; it is refuse or zero"):
        PleiotropyOptions(missing_prior="mean")


def test_names_come_from_folders(tmp_path):
    assert list(joint_module.named([tmp_path / "height", tmp_path / "bmi"], "runs")) == ["height", "bmi"]
    with pytest.raises(InputError, match="'SHARED' cannot name a trait: a column is called P_SHARED already"):
        joint_module.named([tmp_path / "height", tmp_path / "SHARED"], "runs")
    with pytest.raises(InputError, match="cannot name a trait"):
        joint_module.named({"a b": 1, "c": 2}, "runs")


def test_classes_are_the_likeliest():
    p = np.array([[0.1, 0.1, 0, 0, 0], [0.6, 0.3, 0.3, 0, 0.2], [0.1, 0.8, 0.6, 0, 0.7], [0.1, 0.8, 0.1, 0, 0.7]])
    p = np.concatenate([p, [[0.1, 0.8, 0.1, 0, 0.2], [0.2, 0.1, 0, 0.6, 0]]])
    expected = ["none", "pleiotropic", "vertical", "ld_only", "single", "confounder"]
    assert classify_probabilities(*p.T).tolist() == expected


def test_leads_that_show_no_factor_are_said_and_pairs_cost_what_they_were_learned_from(world, monkeypatch):
    priors, z = inputs(world)
    given = {"sumstats": z, "noise_correlation": CN, "trait_effects": world.folder / "T.tsv"}
    learned_from = []
    monkeypatch.setattr(model_module, "price_of_pairs", lambda *a: learned_from.append(a[3]) or 0.0)
    classify(priors, world.store, options=OPTIONS, **given)
    assert learned_from == [pytest.approx(1.0, abs=0.05)]  # the one shared variant
    some = BlocksToLocate.some
    monkeypatch.setattr(BlocksToLocate, "some", lambda self, most: some(self, most) if most < BLOCKS else without(self))

    def without(blocks):  # that with the shared variant
        return BlocksToLocate(blocks.joint, blocks.direct, blocks.members[1:], blocks.shapes[1:])

    classify(priors, world.store, options=OPTIONS, **given)
    assert learned_from[1:] in ([], [0.0])
    monkeypatch.undo()
    monkeypatch.setattr(model_module, "_OBSERVED", 1.01)  # of standardised variants no direction holds more than all
    blurred = classify(priors, world.store, options=OPTIONS, **given)
    assert any("1 of 1 leads of effects on two traits or more were not searched" in x for x in blurred.record["notes"])
    assert [_blurred(leads, few) for leads, few in ((0, 0), (40, 0), (40, 9))] == [[], [], []]
    assert "10 of 40 leads" in _blurred(40, 10)[0]


def test_uncertain_paths_and_factors_enter_the_classes():
    rng = np.random.default_rng(2)
    size, slab = np.array([1e5, 2e5, 5e4]), np.array([1e-4, 3e-4, 2e-4])
    draws = paths()[None] + 0.1 * rng.normal(size=(5, 1, 1)) * (paths() != 0)
    loadings = np.array([[0.01, 0.0, -0.02]])
    model = TraitModel(size, CN, slab, paths(), draws=draws, loadings=loadings, factor_odds=np.array([-5.0]))
    assert model.masks.shape == (8, 3)
    assert not model.masks[7].any()
    for c, mask in enumerate(model.masks):
        V = np.zeros((3, 3))
        for T in draws:
            forward = np.linalg.inv(np.eye(3) - T) * np.sqrt(size)[None, :]
            V += forward.T @ np.diag(slab * mask) @ forward / len(draws)
        if c == 7:
            u = loadings[0] * np.sqrt(size)
            V = np.outer(u, u)
        root = model.classes.root[c]
        np.testing.assert_allclose(root @ root.T, V, atol=1e-8 * V.max())
        assert not model.classes.own[c][~mask].any()
    np.testing.assert_array_equal(model.classes.traits[:7], model.masks[:7])
    np.testing.assert_array_equal(model.classes.traits[7] > 0, [True, True, True])
    odds = model.log_odds(np.full((2, 3), 1e-6))
    assert odds.shape == (2, 8)
    np.testing.assert_array_equal(odds[:, 7], -5)


def test_error_of_the_panel_raises_noise_where_effects_are(world):
    """A few hundred people: the strongest effect stays, and its error is beside it in all directions."""
    model = TraitModel(np.full(3, N), CN, np.full(3, SLAB), paths())
    block = world.store.block(2)
    rows = slice(2 * SIZE, 3 * SIZE)
    y = block.whiten(world.z[rows])
    one = JointBlock(np.asarray(block.factor), y, np.full((SIZE, 3), 0.02 * SLAB), rows, (SIZE, SIZE))
    how = {"slots": 3, "candidates": 16}
    ((_, _, exact),) = locate([one], model, **how)
    ((_, _, careful),) = locate([one], model, panel=300, **how)
    raised = learning.raised(model, exact, 300)
    moment = exact.mean.T @ exact.mean
    np.fill_diagonal(moment, exact.square.sum(axis=0))
    u = np.sqrt(N) * np.linalg.inv(np.eye(3) - paths())
    np.testing.assert_allclose(np.diag(raised - CN), np.diag(u.T @ moment @ u) / 300, rtol=0.02)
    assert np.linalg.eigvalsh(raised - CN).min() > -1e-9
    assert raised[0, 0] > 1.8
    noisy = TraitModel(np.full(3, N), 2 * CN, np.full(3, SLAB), paths())
    np.testing.assert_allclose(np.diag(learning.raised(noisy, exact, 1e9)), np.diag(2 * CN))
    assert careful.inclusion.max() > 0.5
    assert careful.probability[:, 3:].sum() < exact.probability[:, 3:].sum() + 0.05
    spread = [np.sum(x.probability.sum(axis=1) ** 2) for x in (exact, careful)]
    assert spread[1] < spread[0]
