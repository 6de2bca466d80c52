"""The benchmark of the structure of traits, small: it runs, says its figures, and counts what it says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from rich.console import Console

from benchmarks import structure
from benchmarks.pleiotropy_genome import Genome
from benchmarks.simulate import Region

M = 40


@pytest.fixture(scope="module")
def figures():
    R = 0.8 ** np.abs(np.subtract.outer(np.arange(M), np.arange(M)))
    region = Region(np.linspace(0, 1e5, M), np.full(M, 0.2), R)
    cells = (structure.Cell("paths", "d", 0.03, 2, 2), structure.Cell("none", "a", 0.0, 0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structure, "simulate_genome", lambda *_, **__: Genome((region,) * 20))
        patch.setattr(structure, "QUICK", dataclasses.replace(structure.QUICK, traits=3, cells=cells))
        return structure.measure(True, lambda *_: None)


def test_a_small_problem_from_end_to_end(figures, tmp_path):
    paths, none = figures["cells"]
    assert paths["instruments"] > 5
    assert sum(x["runs"] for x in paths["by_strength"]) == 4
    assert sum(x["hits"] for x in paths["by_strength"]) >= 2
    assert paths["noise_covered"]["runs"] == 2 * 6
    assert paths["noise_used_off"] < 0.3
    assert none["instruments"] == 0
    assert none["made_up"]["runs"] == none["covered"]["runs"] == 0
    assert none["mean_square"] is None
    console = Console(record=True, width=200)
    for table in structure.tables(figures):
        console.print(table)
    text = console.export_text()
    assert "Effects by posterior probability" in text
    assert "selected, made up" in text
    structure.draw(figures, tmp_path / "structure.png")
    assert (tmp_path / "structure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_edges_are_counted_by_strength_and_probability():
    def edge(true, estimate, probability, error=0.1, unresolved=False):
        return {
            "true": true, "estimate": estimate, "probability": probability,
            "error": error if estimate else None, "unresolved": unresolved,
        }  # fmt: skip

    each = [
        {
            "edges": [edge(0.3, 0.25, 0.99), edge(-0.15, 0.0, 0.3), edge(0.0, 0.4, 0.6)],
            "instruments": [10, 20],
            "noise_off": [0.5, -3.0, float("nan")],
            "noise_used_off": 0.1,
        },
        {
            "edges": [edge(-0.4, -0.9, 1.0), edge(0.45, 0.0, 0.0, unresolved=True)],
            "instruments": [30, 40],
            "noise_off": [1.0, 1.0, 1.0],
            "noise_used_off": 0.3,
        },
    ]
    found = structure._summary([*each, {"refused": "one trait twice"}])
    assert found["refused"] == ["one trait twice"]
    assert found["instruments"] == 25
    assert [(x["hits"], x["runs"], x["unresolved"]) for x in found["by_strength"]] == [(0, 1, 0), (1, 1, 0), (1, 2, 1)]
    assert (found["made_up"]["hits"], found["made_up"]["runs"]) == (1, 3)
    assert (found["with_made_up"]["hits"], found["with_made_up"]["runs"]) == (1, 2)
    assert found["mean_square"] == pytest.approx((0.25 + 25) / 2)
    assert (found["covered"]["hits"], found["covered"]["runs"]) == (1, 2)
    assert [(x["hits"], x["runs"]) for x in found["by_probability"]] == [(0, 0), (1, 1), (0, 1), (0, 0), (2, 2)]
    assert (found["noise_covered"]["hits"], found["noise_covered"]["runs"]) == (4, 5)
    assert found["noise_used_off"] == pytest.approx(0.2)
