"""What is imported when: `import deepwas` costs nothing, and no typing mistake waits for JAX."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import deepwas

HEAVY = ("jax", "numpy", "polars", "flax", "scipy", "h5py", "matplotlib", "rich", "typer")

# Reads argument lists as JSON, runs each through the command line, prints [exit code, is JAX imported].
DRIVER = """
import contextlib, io, json, sys
from deepwas.cli import main
for arguments in json.load(sys.stdin):
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main(arguments)
    except SystemExit as end:
        print(json.dumps([end.code or 0, "jax" in sys.modules, said.getvalue()]))
"""


def in_fresh_process(code: str, given: str = "") -> str:
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, deepwas; print([name for name in {HEAVY} if name in sys.modules])"
    assert in_fresh_process(code).strip() == "[]"


def test_reading_tables_and_options_needs_no_jax():
    code = """
import sys, deepwas
for name in ("FitOptions", "LDOptions", "QCOptions", "AnnotationOptions", "InputError", "read_sumstats", "harmonise",
             "open_ld", "annotate", "read_annotations", "Fit", "fit"):
    getattr(deepwas, name)
    assert "jax" not in sys.modules, name
"""
    in_fresh_process(code)


def test_every_public_name_resolves_and_is_listed():
    assert sorted(deepwas.__all__) == deepwas.__all__
    assert set(deepwas._HOME) | {"__version__"} == set(deepwas.__all__)
    assert set(deepwas.__all__) <= set(dir(deepwas))
    for name in deepwas.__all__:
        assert getattr(deepwas, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = deepwas.no_such_name


@pytest.mark.parametrize("name", [name for name in deepwas.__all__ if name != "__version__"])
def test_public_names_are_documented_functions_and_classes(name):
    found = getattr(deepwas, name)
    assert callable(found)
    assert not isinstance(found, ModuleType)
    assert len(inspect.getdoc(found) or "") > 20


def modules() -> list[str]:
    return sorted(m.name for m in pkgutil.walk_packages(deepwas.__path__, "deepwas.") if "__main__" not in m.name)


def test_every_module_imports_and_says_what_it_is():
    for name in modules():
        assert (importlib.import_module(name).__doc__ or "").strip(), name


def test_no_module_hides_a_public_function():
    """A submodule is set on its package when imported, and would replace a function of the same name there."""
    code = f"""
import importlib, types, deepwas
for name in {modules()}:
    importlib.import_module(name)
for name in deepwas.__all__:
    assert not isinstance(getattr(deepwas, name), types.ModuleType), name
from deepwas import Fit
assert callable(deepwas.fit) and callable(deepwas.annotate) and callable(deepwas.harmonise)
"""
    in_fresh_process(code)


def test_help_and_wrong_arguments_do_not_wait_for_jax(tmp_path):
    gone, here = str(tmp_path / "gone"), tmp_path / "here.txt"
    here.write_text("some text\n")
    present, out = str(here), str(tmp_path / "out")
    parquet = out + ".parquet"
    single = (
        *(
            "sumstats",
            "annotate",
            "scores",
            "tracks",
            "sequence",
            "fit",
            "fit-traits",
            "priors",
            "direction",
            "enrich",
            "interpret",
            "posterior",
            "pleiotropy",
            "locus",
        ),
        *("demo", "doctor"),
    )
    names = (["ld"], ["ld", "build"], ["ld", "info"], *([name] for name in single))
    helps = [["--help"], ["--version"], *([*name, "--help"] for name in names)]
    fit = ["fit", "--ld", present, "--sumstats", present, "--annotations", present, "--out", out]
    build = ["ld", "build", "--genotypes", gone, "--out", out, "--build"]
    refusals = [
        ["no-such-command"],
        ["fit", "--no-such-option"],
        ["fit"],
        [*build, "GRCh37"],
        [*build, "hg17"],
        [*build, "GRCh37", "--min-maf", "0.7"],
        [*build, "GRCh37", "--max-block", "many"],
        ["ld", "info", gone],
        ["ld", "info", present],
        ["sumstats", gone, "--ld", present, "--out", parquet],
        ["sumstats", present, "--ld", gone, "--out", parquet],
        ["sumstats", present, "--ld", present, "--out", parquet],
        ["sumstats", present, "--ld", present, "--out", parquet, "--match", "guess"],
        ["sumstats", present, "--ld", present, "--out", str(tmp_path / "no" / "folder.parquet")],
        ["annotate", "--ld", gone, "--out", parquet],
        ["annotate", "--ld", present, "--out", parquet],
        ["annotate", "--ld", present, "--out", out + ".txt"],
        ["annotate", "--ld", present, "--out", parquet, "--intervals", "peaks"],
        ["annotate", "--ld", present, "--out", parquet, "--interval-features", "shape"],
        ["fit", "--ld", gone, *fit[3:]],
        fit,
        [*fit[:3], "--sumstats", gone, *fit[5:]],
        [*fit[:5], "--annotations", gone, *fit[7:]],
        [*fit[:5], *fit[7:]],
        [*fit, "--network", "transformer"],
        [*fit, "--hidden", "abc"],
        [*fit, "--noise", "x"],
        [*fit, "--folds", "2"],
        ["priors", gone, "--out", out + ".tsv"],
        ["priors", str(tmp_path), "--out", out + ".tsv"],
        ["priors", str(tmp_path), "--out", out + ".parquet"],
        ["scores", "--ld", gone, "--scores", present, "--out", parquet],
        ["direction", gone, "--ld", present, "--scores", present, "--out", out],
        ["tracks", "--ld", present, "--out", out],
        ["fit-traits", "--ld", present, "--sumstats", present, "--out", out],
        ["fit-traits", "--ld", present, "--sumstats", f"a={gone}", "--out", out],
        ["sequence", "--ld", present, "--fasta", gone, "--out", out],
        ["posterior", gone, "--ld", present, "--out", out],
        ["posterior", "--priors", present, "--sumstats", present, "--ld", present, "--out", out],
        ["pleiotropy", f"a={gone}", f"b={gone}", "--ld", present, "--out", out],
        ["locus", gone, "--ld", present, "--variant", "rs1", "--out", out + ".png"],
        ["demo", "--out", present],
        ["demo", "--out", str(tmp_path / "no" / "folder")],
        ["demo", "--seed", "-1"],
    ]
    lines = in_fresh_process(DRIVER, json.dumps(helps + refusals)).splitlines()
    assert len(lines) == len(helps) + len(refusals)
    for number, (arguments, line) in enumerate(zip(helps + refusals, lines, strict=True)):
        code, jax_imported, said = json.loads(line)
        assert code == (0 if number < len(helps) else 2), (arguments, said)
        assert not jax_imported, arguments
        assert len(said) > 10, arguments
    assert [p.name for p in tmp_path.iterdir()] == ["here.txt"]
