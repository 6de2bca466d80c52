"""Settings from TOML, from the record of a run, and from flags, say the same things."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from typer.testing import CliRunner

from deepwas.cli._fit_options import HELP, SECTIONS
from deepwas.cli._flags import naming_flags
from deepwas.config import OPTIONS, parse, read_config, write_config
from deepwas.errors import InputError
from deepwas.interpretation.options import InterpretOptions
from deepwas.options import FitOptions

OTHER = FitOptions(
    network="residual",
    hidden=(7, 3),
    width=16,
    maf_alpha=-0.38,
    bound=0.0,
    noise=1.1,
    folds="loco",
    learning_rate="auto",
    ema=0.9,
    ensemble=3,
    memory=2.0,
    cross_fit=False,
    variants_at_once=64,
)


def written(tmp_path, text, name="run.toml"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_flat_and_in_sections_with_paths_beside_the_file(tmp_path):
    path = written(
        tmp_path,
        """
        ld = "ld.h5"
        sumstats = "/data/z.parquet"
        annotations = ["a.tsv", "b.tsv"]
        tensorboard = true
        seed = 4
        [network]
        network = "cnn"
        hidden = [8, 8]
        [anything]
        noise = "learned"
        rtol = 1
        folds = "loco"
        test_chromosomes = ["21", "22"]
        """,
    )
    found = read_config(path)
    assert [str(found[name]) for name in ("ld", "sumstats")] == [str(tmp_path / "ld.h5"), "/data/z.parquet"]
    assert found["annotations"] == [tmp_path / "a.tsv", tmp_path / "b.tsv"]
    assert found["noise"] is None
    assert (found["hidden"], found["rtol"], found["folds"]) == ((8, 8), 1.0, "loco")
    assert found["test_chromosomes"] == ("21", "22")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rat = 1", ("learning_rat is not an option", "learning_rate")),
        ("[training]\nbatch_block = 1", ("[training] batch_block", "batch_blocks")),
        ("steps = 'many'", ("steps is 'many'", "whole number")),
        ("steps = 1.5", ("steps is 1.5", "whole number")),
        ("steps = true", ("steps is True", "whole number")),
        ("cross_fit = 1", ("cross_fit is 1", "true or false")),
        ("network = 'transformer'", ("'transformer'", "softplus, mlp")),
        ("hidden = ['a']", ("hidden is ['a']", "32,32")),
        ("ld = 3", ("ld is 3", "path")),
        ("ld = ['a', 'b']", ("ld is a list",)),
        ("tensorboard = 'yes'", ("tensorboard is 'yes'", "true")),
        ("seed = 1\n[more]\nseed = 2", ("[more] seed is given twice",)),
        ("seed = ", ("not valid TOML",)),
    ],
)
def test_what_a_file_has_wrong_is_named(tmp_path, text, says):
    path = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_config(path)
    for part in (str(path), *says):
        assert part in str(error.value)


def test_a_file_written_reads_back_to_the_same_options(tmp_path):
    pytest.importorskip("tomli_w")
    for options in (FitOptions(), OTHER):
        write_config(tmp_path / "w.toml", {"ld": "x.h5", "annotations": ["a"], "out": None}, options, SECTIONS)
        found = read_config(tmp_path / "w.toml")
        assert FitOptions(**{name: x for name, x in found.items() if name in OPTIONS}) == options
        assert found["ld"].is_absolute()
        assert "out" not in found


def test_what_is_not_set_stands_in_a_comment(tmp_path):
    chosen = FitOptions(network="cnn")
    write_config(tmp_path / "w.toml", {"ld": "x.h5"}, chosen, SECTIONS)
    text = (tmp_path / "w.toml").read_text()
    for name in ("sumstats", "annotations", "tracks", "sequence", "out", "tensorboard", *OPTIONS):
        assert (
            sum(line.lstrip("# ").startswith(f"{name} = ") or line == f"# {name} =" for line in text.splitlines()) == 1
        )
    assert "# width =  # default: 32\n" in text
    assert "# learning_rate =  # default: 0.002\n" in text
    assert "# noise =  # learned\n" in text


def test_errors_of_options_name_the_flags(run):
    for arguments, says in (
        (("--test-chromosomes", "21"), "--validation-chromosomes beside them"),
        (("--batch-blocks", 0), "--batch-blocks is 0; at least 1"),
        (("--network", "cnn", "--monotone", "a:+"), "--monotone is for linear, softplus, mlp; the network is cnn"),
        (("--monotone", "a"), "--monotone has 'a'"),
        (("--network", "enformer", "--width", "3"), "--width is 3; with 4 heads"),
    ):
        assert says in str(run(*arguments))
    with pytest.raises(InputError, match=r"^test_chromosomes need"):  # in Python, their own names
        FitOptions(test_chromosomes=("21",))


def test_flags_are_named_only_where_a_message_speaks_of_the_option():
    def said(text, **other):
        with pytest.raises(InputError) as error, naming_flags(InterpretOptions, **other):
            raise InputError(text)
        return str(error.value)

    assert said("attributions is -1; at least 0", attributions="--shap") == "--shap is -1; at least 0"
    assert said("repeats=0: give a seed, within reason") == "--repeats 0: give a seed, within reason"
    with pytest.raises(InputError, match=r"^column learning_rate is missing"), naming_flags(FitOptions, at_start=True):
        raise InputError("column learning_rate is missing")  # of the data, though a field is called so
    with pytest.raises(InputError, match=r"^--test-chromosomes has"), naming_flags(FitOptions, at_start=True):
        raise InputError("test_chromosomes has '23'")
    for other in ("/a/seed is missing.tsv: no such file", "rounds of the seed", "groups_of.tsv: column groups is NA"):
        assert said(other) == other


def test_the_record_of_a_run_gives_its_options_back(tmp_path):
    record = {"format": "deepwas-run", "options": OTHER.as_dict()}
    assert FitOptions(**read_config(written(tmp_path, json.dumps(record), "run.json"))) == OTHER
    with pytest.raises(InputError, match="not the record of a deepwas run"):
        read_config(written(tmp_path, "{}", "run.json"))
    with pytest.raises(InputError, match="not valid JSON"):
        read_config(written(tmp_path, "{", "run.json"))


def as_text(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_every_option_has_a_flag_of_its_name_that_takes_its_values():
    assert {name for names in HELP.values() for name in names} == {field.name for field in fields(FitOptions)}
    for options in (FitOptions(), OTHER):
        for name in OPTIONS:
            value = getattr(options, name)
            if value is not None and not isinstance(value, bool):
                assert parse(name, as_text(value)) == value
    assert parse("noise", "learned") is None
    assert parse("ema", "none") is None
    for name, text in (("ema", "much"), ("folds", "three"), ("learning_rate", "fast"), ("variants_at_once", "1.5")):
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')} '{text}'"):
            parse(name, text)


@pytest.fixture
def run(monkeypatch):
    """Runs `deepwas fit` up to the point where it would fit; returns how the fit was called."""
    from deepwas import fitting
    from deepwas.cli import _register, app

    called = {}

    def instead(*inputs, **rest):
        called.update(rest, inputs=inputs, progress=None, counted=None)
        raise InputError("as far as this test goes")

    monkeypatch.setattr(fitting, "fit", instead)
    monkeypatch.setattr(fitting, "fit_rotations", instead)
    _register()

    def run(*arguments):
        called.clear()
        told = CliRunner().invoke(app, ["fit", *map(str, arguments)])
        assert called or told.exit_code == 0 or isinstance(told.exception, InputError), told.output
        return dict(called) or told.exception

    return run


def test_flags_override_the_configuration(tmp_path, run):
    for name in ("ld.h5", "z.parquet", "t.h5"):
        (tmp_path / name).write_text("x")
    path = written(
        tmp_path,
        'ld = "ld.h5"\nsumstats = "z.parquet"\ntracks = "t.h5"\nout = "run"\n'
        '[training]\nsteps = 7\nema = 0.5\nnetwork = "cnn"\ncross_fit = false',
    )
    called = run("--config", path)
    assert called["options"] == FitOptions(network="cnn", steps=7, ema=0.5, cross_fit=False)
    assert called["inputs"] == (tmp_path / "ld.h5", tmp_path / "z.parquet", None)
    assert (called["tracks"], called["out"]) == (tmp_path / "t.h5", tmp_path / "run")
    assert not called["tensorboard"]
    called = run(
        "--config", path, "--steps", 9, "--ema", "none", "--cross-fit", "--out", tmp_path / "x", "--tensorboard"
    )
    assert called["options"] == FitOptions(network="cnn", steps=9)
    assert called["out"] == tmp_path / "x"
    assert called["tensorboard"]
    called = run("--config", path, "--rotation", "3,4", "--folds", "loco")
    assert called["rotations"] == (3, 4)
    assert "resume" not in called
    assert "--rotation 'x'" in str(run("--config", path, "--rotation", "x"))
    assert "needs --ld, --sumstats, --out" in str(run("--steps", 3))


def test_settings_written_by_the_command_are_those_of_its_flags(tmp_path, run):
    pytest.importorskip("tomli_w")
    for name in ("ld.h5", "z.parquet"):
        (tmp_path / name).write_text("x")
    flags = ["--ld", tmp_path / "ld.h5", "--sumstats", tmp_path / "z.parquet", "--out", tmp_path / "run"]
    flags += ["--network", "constant", "--learning-rate", "auto", "--noise", "1", "--tensorboard"]
    run(*flags, "--write-config", tmp_path / "c.toml")
    assert not (tmp_path / "run").exists()
    assert run("--config", tmp_path / "c.toml") == run(*flags)
    before = (tmp_path / "c.toml").read_text()
    assert "--overwrite" in str(run(*flags, "--seed", 5, "--write-config", tmp_path / "c.toml"))
    assert (tmp_path / "c.toml").read_text() == before
    run(*flags, "--seed", 5, "--write-config", tmp_path / "c.toml", "--overwrite")
    assert "seed = 5" in (tmp_path / "c.toml").read_text()
    assert "--overwrite is for --write-config" in str(run(*flags, "--overwrite"))
