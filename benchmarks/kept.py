"""Parts of a long benchmark that are kept as they are done, under a name made of settings and code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

__all__ = ["digest_of", "read_kept"]

_ROOT = Path(__file__).parents[1]
_COMMON = ("benchmarks/simulate.py", "benchmarks/stores.py")
# What decides on no figure: the terminal, and how things are shown.
_SHOWN = ("deepwas/cli/", "deepwas/plots.py", "picture.py", "pleiotropy/locus", "_plot.py")


def read_kept(path: Path) -> list[dict[str, Any]]:
    """Replicates that are kept; a last line that was cut off is dropped."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def digest_of(settings: dict[str, Any], benchmarks: str, leave: Collection[str] = ()) -> str:
    """Of settings, of the package's code but what only shows, and of the benchmark's own modules.

    benchmarks: their pattern in the folder of benchmarks.  leave: names of those that are not to count.
    """
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    own = [_ROOT / name for name in _COMMON] + sorted((_ROOT / "benchmarks").glob(benchmarks))
    package = sorted((_ROOT / "deepwas").rglob("*.py"))
    package = [p for p in package if not any(x in p.relative_to(_ROOT).as_posix() for x in _SHOWN)]
    for path in [*package, *(p for p in own if p.name not in leave)]:
        found.update(path.read_bytes())
    return found.hexdigest()[:12]
