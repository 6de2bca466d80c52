"""The benchmark of semi-supervised networks: its figures from replicates whose figures are known, told and drawn."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from benchmarks import networks
from benchmarks.pleiotropy_genome import Genome, save_genome
from benchmarks.simulate import Region


def known(number: int, better: float) -> dict:
    """A replicate in which networks raise AUPRC by `better` if they read annotations that matter."""
    none = {"auprc": 0.5 + 0.1 * number, "log_loss": 40.0, "calibration_error": 0.1, "called": 20, "false": 1}
    by_read = {}
    for read in networks.READ:
        rise = better if read == "matter" else 0.0
        own = none | {"auprc": none["auprc"] + rise, "log_loss": 40.0 - 10 * rise, "called": 22, "false": 2}
        gain = 5.0 if rise else -1.0
        row = {"gain": gain, "gain_standard_error": 1.0, "accepted": gain > 2, "posterior": own, "evidence": none}
        by_read[read] = dict.fromkeys(networks.OBJECTIVES, row)
    labels = {"positive": 10, "positive_wrong": 1, "negative": 100, "negative_wrong": 0}
    return {"number": number, "true": 40, "labels": labels, "none": none, "networks": by_read}


@pytest.fixture
def figures(tmp_path, monkeypatch):
    """`measure` on replicates that are known, stopped after the first and taken up again."""
    small = dataclasses.replace(networks.PRESETS["quick"], regions=1, m=4, replicates=2)
    monkeypatch.setitem(networks.PRESETS, "quick", small)
    genome = Genome((Region(np.arange(4.0), np.full(4, 0.2), np.eye(4)),))
    save_genome(genome, tmp_path / f"genome-1x4-{small.people}-0-{small.seed}.npz")
    asked: list[int] = []

    def made(_, number, __):
        asked.append(number)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return known(number, 0.1 * (1 + number))

    monkeypatch.setattr(networks, "replicate", made)
    with pytest.raises(KeyboardInterrupt):
        networks.measure("quick", lambda *_: None, tmp_path)
    found = networks.measure("quick", lambda *_: None, tmp_path)
    assert asked == [0, 1, 1]
    return found


def test_differences_are_taken_replicate_by_replicate(figures):
    json.dumps(figures)
    summary = figures["summary"]
    rows = {(row["read"], row["objective"]): row for row in summary["networks"]}
    assert len(rows) == 9
    own = rows["matter", "both"]["posterior"]["auprc"]
    assert own["mean"] == pytest.approx(0.15)
    assert own["standard_error"] == pytest.approx(0.05)
    assert rows["matter", "both"]["posterior"]["log_loss"]["mean"] == pytest.approx(-1.5)
    assert rows["decoys", "both"]["posterior"]["auprc"]["mean"] == pytest.approx(0.0)
    assert (rows["matter", "supervised"]["accepted"], rows["decoys", "supervised"]["accepted"]) == (2, 0)
    assert (summary["called"], summary["false"], summary["labels"]["positive_wrong"]) == (40, 2, 2)


def test_figures_are_told_and_drawn(figures, tmp_path):
    console = Console(record=True, width=250)
    for table in networks.tables(figures):
        console.print(table)
    said = console.export_text()
    assert "+0.150 ± 0.050" in said
    assert "9.1% of 44" in said
    networks.draw(figures, tmp_path / "networks.png")
    assert (tmp_path / "networks.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_figures_of_probabilities():
    p = np.array([0.99, 0.98, 0.6, 0.01, 0.0])
    found = networks._figures(p, np.array([True, True, False, False, False]))
    assert found["auprc"] == 1.0
    assert (found["called"], found["false"]) == (2, 0)
    assert found["log_loss"] == pytest.approx(-np.log([0.99, 0.98, 0.4, 0.99, 1.0]).sum(), abs=1e-6)
    assert found["calibration_error"] == pytest.approx((2 * 0.015 + 0.6) / 3)


@pytest.mark.slow
def test_networks_read_the_annotations_that_are_said(monkeypatch):
    """One replicate whose networks are not trained: what they would read, and a correction of 0 changes nothing."""
    distance = np.abs(np.subtract.outer(np.arange(24), np.arange(24)))
    genome = Genome((Region(np.linspace(0, 1e6, 24), np.full(24, 0.2), 0.8**distance),) * 16)
    problem = dataclasses.replace(networks.PRESETS["quick"], traits=2, paths=0, polygenicity=0.05, learn_blocks=6)
    read = []

    def untrained(features, labels, options, *, simulated):
        read.append(features)
        nothing = {key: [np.zeros(f.m, np.float32) for f in features] for key in networks.OBJECTIVES}
        gain = {key: {"gain": 0.0, "gain_standard_error": 1.0} for key in networks.OBJECTIVES}
        posterior = {key: [f.posterior for f in features] for key in networks.OBJECTIVES}
        return SimpleNamespace(corrections=nothing, probabilities=posterior, ablations={"prior": gain})

    monkeypatch.setattr(networks, "OBJECTIVES", ("both",))
    monkeypatch.setattr("deepwas.pleiotropy.network.fit_network", untrained)
    monkeypatch.setattr("deepwas.pleiotropy.network.calibration_report", lambda *_, **__: SimpleNamespace(blocks=[]))
    kept = []
    real = networks.simulate
    monkeypatch.setattr(networks, "simulate", lambda *a, **k: kept.append(real(*a, **k)) or kept[0])
    found = networks.replicate(problem, 0, genome)
    plain, matter, decoys = read
    n = plain[0].free.shared.shape[1]
    annotations = kept[0].annotations.astype(np.float32)
    for columns, features in (([0, 2, 3], matter), ([1, 4, 5], decoys)):
        for block in features:
            np.testing.assert_array_equal(block.free.shared[:, n:], annotations[block.rows][:, columns])
    assert {f.chromosome for f in plain} == {str(1 + i * 22 // 16) for i in range(16)}
    for own in found["networks"].values():
        for row in own.values():
            assert row["posterior"] == pytest.approx(found["none"], abs=1e-3)
            assert row["evidence"] == pytest.approx(found["none"], abs=1e-9)
            assert not row["accepted"]
