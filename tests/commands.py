"""Running commands in this process."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

import pytest

from deepwas.cli import main

__all__ = ["Answer", "run", "succeed"]


@dataclass(frozen=True)
class Answer:
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        main([str(x) for x in arguments])
    return Answer(end.value.code or 0, out.getvalue(), err.getvalue())


def succeed(*arguments: object) -> Answer:
    answer = run(*arguments)
    assert answer.code == 0, answer.err
    return answer
