"""The benchmark suite runs, says what is wrong with its input, and simulates what it claims. No speed is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import BENCHMARKS
from benchmarks.simulate import Region, effect_variance, simulate_annotations, simulate_regions, simulate_trait
from deepwas.errors import InputError

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def toy_regions(count: int, m: int = 40) -> list[Region]:
    """Regions of exponentially decaying correlation: no simulator needed."""
    position = np.linspace(0, 1e6, m)
    R = 0.8 ** np.abs(np.subtract.outer(np.arange(m), np.arange(m)))
    return [Region(position, np.full(m, 0.2), R) for _ in range(count)]


def test_the_runner_lists_every_benchmark_with_its_question():
    done = run()
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [b.name for b in BENCHMARKS]
    assert all(b.question in line for b, line in zip(BENCHMARKS, lines, strict=True))


def test_an_unknown_name_ends_with_2_and_writes_nothing(tmp_path):
    done = run("trainning", "--out", str(tmp_path / "results"))
    assert done.returncode == 2
    assert "trainning" in done.stderr
    assert "training" in done.stderr
    assert not (tmp_path / "results").exists()


def test_an_output_that_is_a_file_ends_with_2(tmp_path):
    (tmp_path / "results").write_text("")
    done = run("training", "--quick", "--out", str(tmp_path / "results"))
    assert done.returncode == 2
    assert "--out" in done.stderr


@pytest.mark.slow
def test_quick_training_writes_its_figures_and_picture(tmp_path):
    pytest.importorskip("msprime")
    done = run("training", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Cholesky / CG" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["training-quick.json", "training-quick.png"]
    assert (tmp_path / "training-quick.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    found = json.loads((tmp_path / "training-quick.json").read_text())
    assert found["quick"] is True
    assert set(found["contenders"]) == {"cg", "cholesky", "ld-score"}
    seeds, tests = found["settings"]["seeds"], found["settings"]["test"]
    assert [s["seed"] for s in found["seeds"]] == seeds
    for name, summary in found["contenders"].items():
        by_block = np.array([s["contenders"][name]["gain_by_block"] for s in found["seeds"]])
        oracle = np.array([s["oracle_gain_by_block"] for s in found["seeds"]])
        assert by_block.shape == oracle.shape == (len(seeds), tests)
        assert summary["gain"]["over_blocks"]["mean"] == pytest.approx(by_block.mean())
        assert summary["gain"]["over_blocks"]["standard_error"] == pytest.approx(
            by_block.std(ddof=1) / np.sqrt(by_block.size)
        )
        shares = by_block.sum(axis=1) / oracle.sum(axis=1)
        assert summary["gain"]["share_of_oracle"]["mean"] == pytest.approx(shares.mean())
    for comparison in found["comparisons"].values():
        error = comparison["gain"]["over_blocks"]["standard_error"]
        assert np.isfinite(error)
        assert error >= 0
    rates = found["settings"]["learning_rates"]
    assert len(found["runs"]) == 3 * len(rates) * len(seeds)
    for row in found["timing"]:
        assert row["cholesky_over_cg"] == pytest.approx(row["cholesky_ms_a_block"] / row["cg_ms_a_block"])


def test_simulated_ld_is_a_correlation_matrix_and_repeats_itself():
    pytest.importorskip("msprime")
    first, again = (simulate_regions(2, m=50, people=200, length=2e5, seed=7) for _ in range(2))
    other = simulate_regions(1, m=50, people=200, length=2e5, seed=8)
    for region, same in zip(first, again, strict=True):
        assert np.array_equal(region.correlation, same.correlation)
        assert region.m <= 50
        assert (np.diff(region.position) > 0).all()
        assert (region.maf >= 0.01).all()
        assert (region.maf <= 0.5).all()
        assert np.allclose(np.diagonal(region.correlation), 1)
        assert np.linalg.eigvalsh(region.correlation).min() > -1e-10
        assert np.allclose(region.root @ region.root, region.correlation, atol=1e-8)
        apart = np.subtract.outer(region.position, region.position)
        near = region.correlation[(np.abs(apart) < 1e4) & (apart != 0)] ** 2
        far = region.correlation[np.abs(apart) > 1e5] ** 2
        assert near.mean() > 3 * far.mean()
    assert not np.array_equal(first[0].position, other[0].position)
    assert not np.array_equal(first[0].position, first[1].position)


def test_without_msprime_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "msprime", None)
    with pytest.raises(InputError, match=r"pip install 'deepwas\[benchmarks\]'"):
        simulate_regions(1, m=10)


def test_annotations_are_standardised_and_only_the_first_are_smooth():
    regions = toy_regions(50)
    C = simulate_annotations(regions, smooth=3, independent=2, length_scale=1e5, seed=1)
    assert C.shape == (2000, 5)
    assert np.allclose(C.mean(axis=0), 0)
    assert np.allclose(C.std(axis=0), 1)
    neighbours = [np.mean(x[:, :-1] * x[:, 1:]) for x in C.T.reshape(5, 50, 40)]
    expected = np.exp(-0.5 * (1e6 / 39 / 1e5) ** 2)
    assert neighbours[:3] == pytest.approx([expected] * 3, abs=0.06)
    assert neighbours[3:] == pytest.approx([0, 0], abs=0.1)


def test_the_true_effect_variance_is_its_formula_scaled_to_the_mean():
    C = simulate_annotations(toy_regions(5), smooth=2, independent=3, seed=2)
    f = effect_variance(C, smooth=2, mean=2e-6)
    assert f.mean() == pytest.approx(2e-6)
    i, j = 3, 77
    logs = [
        2 * np.tanh(c[0] * c[2]) + (2 if c[1] > 0.5 else 0) + (1.5 if c[3] > 1 else 0) + 0.5 * c[4] for c in C[[i, j]]
    ]
    assert np.log(f[i] / f[j]) == pytest.approx(logs[0] - logs[1])
    with pytest.raises(InputError, match="2 smooth and 3 independent"):
        effect_variance(C, smooth=4, mean=1e-6)


def test_simulated_z_scores_have_the_covariance_of_the_model():
    n, m, sample_size, noise = 20_000, 6, 1e4, 1.3
    regions = toy_regions(n, m)
    f = np.linspace(1e-5, 3e-4, m)
    z = np.array(simulate_trait(regions, np.tile(f, n), sample_size=sample_size, noise=noise, seed=3))
    R = regions[0].correlation
    expected = sample_size * R @ np.diag(f) @ R + noise * R
    error = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / n)
    assert (np.abs(z.T @ z / n - expected) < 5 * error).all()
    with pytest.raises(InputError, match="variances"):
        simulate_trait(regions, f, sample_size=sample_size)
