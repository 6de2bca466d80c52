"""The benchmark of fine-mapping, small: it runs, says its figures, and its baselines are what they are said to be."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from rich.console import Console

from benchmarks import finemapping
from benchmarks.finemapping_report import METHODS, PANELS, PRIORS
from benchmarks.simulate import Panel
from deepwas.finemapping import finemap_blocks
from deepwas.ld import LDBlock
from deepwas.training.trait import TraitBlock
from tests.dense import genotypes, ld_matrix


def toy_panel(m, *, people, seed):
    X = genotypes(m, people, np.random.default_rng(seed)).T
    frequency = X.mean(axis=1) / 2
    X = (X - X.mean(axis=1, keepdims=True)) / X.std(axis=1, keepdims=True)
    return Panel(np.linspace(0, 1e5, m), np.minimum(frequency, 1 - frequency), X)


def test_a_small_problem_from_end_to_end(monkeypatch, tmp_path):
    monkeypatch.setattr(finemapping, "simulate_panel", toy_panel)
    monkeypatch.setattr(finemapping, "QUICK", dataclasses.replace(finemapping.QUICK, m=24, slab=1e-3))
    found = finemapping.measure(True, lambda *_: None)
    own = found["scenarios"]["informative"]
    assert set(own) == {*PRIORS, *METHODS}
    for x in own.values():
        assert sum(b["count"] for b in x["bins"]) == found["size"]["variants"]
        assert sum(b["hits"] for b in x["bins"]) == x["found"]["causal"] > 0
    assert set(found["panels"]) == set(PANELS)
    assert found["panels"]["own"]["warned"] == 0
    console = Console(record=True, width=220)
    for table in finemapping.tables(found):
        console.print(table)
    said = console.export_text()
    assert all(label in said for label in (*PRIORS.values(), *PANELS.values()))
    finemapping.draw(found, tmp_path / "finemapping.png")
    assert (tmp_path / "finemapping.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_shares_have_exact_intervals():
    assert finemapping._share(0, 0)["share"] is None
    found = finemapping._share(9, 10)
    assert found["share"] == 0.9
    assert found["interval"] == pytest.approx([0.5550, 0.9975], abs=1e-4)


def test_without_ld_all_methods_agree_on_one_effect():
    """One strong effect, variants independent: pairs, slots and single effects say the same of it."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=16)
    z[3] = 12.0
    block = LDBlock.from_correlation(ld_matrix("independent", 16, rng), dtype=np.float64)
    y = np.asarray(block.whiten(z), np.float32)
    blocks = [TraitBlock(0, slice(0, 16), np.asarray(block.factor), y, z, np.ones(16, bool), 1e5)]
    f, beta = np.full(16, 1e-6), np.where(np.arange(16) == 3, 0.04, 0.0)
    mapped = finemap_blocks(blocks, f)
    for which in ("slots", "single"):
        found = finemapping._baseline(which, blocks, f, mapped.slab, beta)
        assert found.pip[3] == pytest.approx(mapped.inclusion[3], abs=1e-3)
        assert [(covered, size) for covered, size, _, _ in found.sets] == [(True, 1)]
