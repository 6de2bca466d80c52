"""`deepwas doctor`: what this installation is, and whether its parts work."""

from __future__ import annotations

import typer

from deepwas.cli._console import show
from deepwas.errors import DeepwasError


def register(app: typer.Typer) -> None:
    """Add the command to the root application."""
    app.command("doctor")(doctor)


def doctor() -> None:
    """Check the installation: versions, devices, example data, and a likelihood against its dense formula.

    Ends with exit code 1 if a check fails.
    """
    from rich.table import Table

    from deepwas.doctor import examine

    table = Table(title="deepwas doctor", title_justify="left")
    for name in ("check", "result", "ok"):
        table.add_column(name)
    findings = examine()
    for finding in findings:
        table.add_row(finding.check, finding.result, "yes" if finding.ok else "NO")
    show(table)
    failed = [f.check for f in findings if not f.ok]
    if failed:
        raise DeepwasError(f"checks failed: {', '.join(failed)}. Reinstall deepwas, or report this table.")
