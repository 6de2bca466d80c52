"""The page of the Python API: it names what the package exports, and nothing that is gone."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import deepwas

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def test_the_api_page_lists_every_exported_name_and_nothing_that_is_not_there():
    listed = re.findall(r"^::: (.+)\.(\w+)$", PAGE.read_text(), flags=re.MULTILINE)
    assert len(listed) == len(set(listed)) == PAGE.read_text().count(":::")
    found = {name: getattr(import_module(module), name) for module, name in listed}
    for name in set(deepwas.__all__) - {"__version__"}:
        assert found.get(name) is getattr(deepwas, name), f"docs/api.md does not list {name}"
