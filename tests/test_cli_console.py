"""What the command line says of itself, of interrupts and of long work."""

from __future__ import annotations

import deepwas
from deepwas.cli._console import progress
from tests.commands import run, succeed


def test_version_and_doctor():
    assert succeed("--version").out.strip() == f"deepwas {deepwas.__version__}"
    answer = succeed("doctor")
    for check in ("packages", "devices", "specifications", "example data", "likelihood by Cholesky and CG"):
        assert check in answer.out
    assert answer.out.count("yes") == 6
    assert "NO" not in answer.out


def test_doctor_fails_when_a_check_does(monkeypatch):
    from deepwas import doctor

    def broken() -> str:
        raise FileNotFoundError("genes_hg19.bed.gz")

    monkeypatch.setattr(doctor, "_example", broken)
    answer = run("doctor")
    assert answer.code == 1
    assert "genes_hg19.bed.gz" in answer.out
    assert "checks failed: example data" in answer.err


def test_an_interrupt_is_said_and_has_its_own_exit_code(monkeypatch):
    from deepwas import doctor

    def interrupted() -> list[doctor.Finding]:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    answer = run("doctor")
    assert answer.code == 130
    assert "interrupted" in answer.err


def test_long_work_says_how_long_it_may_take(capsys, monkeypatch):
    now = iter([0.0, 40.0, 100.0])
    monkeypatch.setattr("deepwas.cli._console.time.monotonic", lambda: next(now, 100.0))
    with progress("training") as advance:
        for done in (0, 20, 50):
            advance(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "training: 0 of 100",
        "training: 20 of 100 (at most 2:40 min left)",
        "training: 50 of 100 (at most 1:40 min left)",
    ]
