"""What the commands share: progress, tables of counts, and the console they go to (standard error)."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from deepwas.tally import Count, Tally

_LONG = 10.0  # seconds

console = Console(stderr=True, highlight=False, soft_wrap=True)


class Advance(Protocol):
    """Called by long work: `advance(done, total)`."""

    def __call__(self, done: int, total: int, /) -> None: ...


class StageAdvance(Protocol):
    """Called by long work in stages: `advance(what, done, total)`."""

    def __call__(self, what: str, done: int, total: int, /) -> None: ...


@contextmanager
def progress(what: str) -> Iterator[Advance]:
    """A progress bar on standard error; plain lines at each tenth when that is not a terminal."""
    with progress_of_stages() as stages:
        yield lambda done, total, /: stages(what, done, total)


def say(text: str) -> None:
    """One line on standard error."""
    console.print(text, markup=False)


@contextmanager
def warnings_said(category: type[Warning] = Warning) -> Iterator[None]:
    """Within, warnings of the category are said at once, each time, as lines of the log."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", category)
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        yield


def say_tally(tally: Tally) -> None:
    """Every count of a tally, one line each."""
    for line in tally.lines():
        say(line)


@contextmanager
def progress_of_stages() -> Iterator[StageAdvance]:
    """Progress of work in several named stages: `advance(what, done, total)`; a bar each, or plain lines.

    An interrupt that a library swallowed is raised again at the next advance.
    """
    interrupted = threading.Event()

    def remember(_signal: int, _frame: Any) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, remember) if main else None
    try:
        with _stages() as show_stage:

            def advance(what: str, done: int, total: int, /) -> None:
                if interrupted.is_set():
                    raise KeyboardInterrupt
                show_stage(what, done, total)

            yield advance
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _stages() -> Iterator[StageAdvance]:
    if not console.is_terminal:
        said: dict[str, int] = {}
        begun: dict[str, tuple[float, int]] = {}

        def plain(what: str, done: int, total: int, /) -> None:
            tenth = 10 * done // max(total, 1)
            now = time.monotonic()
            since, before = begun.setdefault(what, (now, done))
            if said.get(what) != tenth:
                console.print(f"{what}: {done:,} of {total:,}{_left(now - since, done - before, total - done)}")
            said[what] = tenth

        yield plain
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Steps of large networks come minutes apart, and an estimate of what is left needs two.
    with Progress(*columns, console=console, transient=True, speed_estimate_period=3600.0) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int, /) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance


def _left(seconds: float, done: int, rest: int) -> str:
    """At this rate so much is left, once work takes long enough for anyone to ask."""
    if seconds < _LONG or done <= 0 or rest <= 0:
        return ""
    left = round(seconds * rest / done)
    return f" (at most {left // 60}:{left % 60:02d} min left)"


def say_counts(counts: Sequence[dict[str, Any]]) -> None:
    """The counts of a run's record, one line each."""
    say_tally(Tally([Count(**row) for row in counts]))


def show(table: Table) -> None:
    """A table on standard output, not cut to the terminal's width when it goes to a file."""
    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=140)
    out.print(table)
