"""What a command writes: checked before its work, and never in place of something unasked.

One rule for all commands. A file that is there already is replaced with --overwrite only. A folder that holds a run is
never replaced: an interrupted run goes on with --resume, a new one takes another folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from deepwas.cli._console import say
from deepwas.errors import InputError
from deepwas.files import refuse_overwrite, require_parent

__all__ = ["Overwrite", "require_output", "say_if_nothing_to_resume", "say_what_is_kept"]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there under the output's name.")]


def require_output(path: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> Path:
    """The path of a file to write. InputError if its folder is not there, it is an input, or is there already."""
    target = require_parent(path)
    refuse_overwrite(target, inputs)
    if target.exists() and not overwrite:
        raise InputError(f"{target}: is there already. Give --overwrite to replace it, or another name.")
    return target


def say_if_nothing_to_resume(resume: bool, folder: Path) -> None:
    """Say that --resume starts a new run where there is none."""
    if resume and not (folder.is_dir() and any(folder.iterdir())):
        say(f"warning: {folder}: nothing to resume there; a new run starts.")


def say_what_is_kept(resume: bool, *partials: Path) -> None:
    """Say what --resume need not compute again.  partials: files of `deepwas.posterior.progress`."""
    if not resume:
        return
    from deepwas.posterior.progress import blocks_kept

    for path in partials:
        if (found := blocks_kept(path)) is not None:
            done, total, learned = found
            say(f"{path}: holds {done:,} of {total:,} LD blocks{', and what was learned,' * learned} from before.")
