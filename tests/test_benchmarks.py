"""The benchmark suite runs, says what is wrong with its input, and simulates what it claims. No speed is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import BENCHMARKS, contenders
from benchmarks.likelihood_report import acceptance
from benchmarks.machine import exponent, interleaved
from benchmarks.simulate import (
    Panel,
    Region,
    effect_variance,
    simulate_annotations,
    simulate_panel,
    simulate_regions,
    simulate_trait,
)
from deepwas.errors import InputError
from deepwas.ld import LDBlock
from tests.dense import Trait, log_density, simulated_trait, textbook_gradient

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


def toy_panel(m: int, people: int, seed: int = 0) -> Panel:
    """A panel of correlated Gaussian columns: no simulator needed."""
    X = np.cumsum(np.random.default_rng(seed).normal(size=(m, people)), axis=0)
    X = (X - X.mean(axis=1, keepdims=True)) / X.std(axis=1, keepdims=True)
    return Panel(np.linspace(0, 1e6, m), np.full(m, 0.2), X)


def test_a_simulated_panel_is_standardised_dense_and_repeats_itself():
    pytest.importorskip("msprime")
    first, again, other = (simulate_panel(300, people=200, seed=seed) for seed in (7, 7, 8))
    assert np.array_equal(first.genotypes, again.genotypes)
    assert not np.array_equal(first.position, other.position)
    assert first.genotypes.shape == (300, 200)
    assert np.allclose(first.genotypes.mean(axis=1), 0)
    assert np.allclose(first.genotypes.var(axis=1), 1)
    assert (np.diff(first.position) > 0).all()
    assert ((first.maf >= 0.01) & (first.maf <= 0.5)).all()
    part = first.leading(40)
    assert np.array_equal(part.region().correlation, first.region().correlation[:40, :40])
    assert np.allclose(part.region().correlation, np.corrcoef(part.genotypes))


def test_a_panels_z_scores_have_the_covariance_of_the_model():
    panel, draws, sample_size, noise = toy_panel(5, 12), 20_000, 1e4, 1.3
    f = np.linspace(1e-5, 3e-4, 5)
    z = np.array([panel.z_scores(f, sample_size=sample_size, noise=noise, seed=seed) for seed in range(draws)])
    R = panel.region().correlation
    expected = sample_size * R @ np.diag(f) @ R + noise * R
    error = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / draws)
    assert (np.abs(z.T @ z / draws - expected) < 5 * error).all()


@pytest.fixture(params=["all", "middle"])
def trait(request) -> Trait:
    m = 60
    place = np.arange(m)
    scored = np.ones(m, bool) if request.param == "all" else (place >= 20) & (place < 40)
    R = toy_panel(m, 500).region().correlation
    return simulated_trait(R, np.random.default_rng(1), scored=scored, noise=1.0, mean_c=0.3)


def window_of(trait: Trait) -> contenders.Window:
    z = np.zeros(len(trait.R))
    z[trait.scored] = trait.z
    return contenders.Window(trait.R, trait.scored, z, trait.sample_size * trait.f, trait.noise)


def test_the_dense_references_are_the_textbook_density_and_gradient(trait):
    window = window_of(trait)
    ridge = contenders.RIDGE * np.eye(len(trait.R))
    unwhitened = np.eye(int(trait.scored.sum()))
    value = log_density(unwhitened, trait)
    gradient = textbook_gradient(unwhitened, trait)[0] / trait.sample_size
    assert np.linalg.eigvalsh(trait.R).min() > 50 * ridge.max()  # so that the ridge is a small change
    for contender in (
        contenders.dense(window, full=True),
        contenders.dense(window, full=False),
        contenders.autodiff(window),
    ):
        found, slope = contender.run()[:2]
        assert float(found) == pytest.approx(value, abs=0.05)
        assert np.linalg.norm(np.asarray(slope) - gradient) < 0.01 * np.linalg.norm(gradient)


def test_the_whitened_contenders_agree_with_the_exact_density_and_that_with_the_textbook(trait):
    block = LDBlock.from_correlation(trait.R, trait.scored, 1e-8, dtype=np.float64)
    y, c = block.whiten(trait.z), trait.sample_size * trait.f
    value, gradient, d_noise, deviation = contenders.exact(block.factor, y, c, trait.noise)
    d_f, noise_slope = textbook_gradient(block.whitener, trait)[:2]
    assert value == pytest.approx(log_density(block.whitener, trait))
    assert gradient == pytest.approx(d_f / trait.sample_size)
    assert d_noise == pytest.approx(noise_slope)
    B = (block.factor * c) @ block.factor.T + trait.noise * np.eye(block.k)
    assert deviation == pytest.approx(np.sqrt(np.trace(np.linalg.inv(B) @ np.linalg.inv(B)) / 2))
    cholesky, memory = contenders.whitened(block.factor, y, c, trait.noise, "cholesky")
    assert memory > 4 * block.factor.size
    found = cholesky()
    assert float(found[0]) == pytest.approx(value, rel=1e-5)
    assert np.linalg.norm(np.asarray(found[1]) - gradient) < 1e-4 * np.linalg.norm(gradient)
    cg, _ = contenders.whitened(block.factor, y, c, trait.noise, "cg", probes=64, steps=30, rank=0)
    estimate = cg()
    assert abs(float(estimate[0]) - value) < 4 * float(estimate[3]) + 1e-3 * abs(value)
    assert np.linalg.norm(np.asarray(estimate[1]) - gradient) < 0.1 * np.linalg.norm(gradient)


@pytest.mark.parametrize("trait", ["middle"], indirect=True)
def test_colas_conjugate_gradients_give_the_gradient_of_the_packages(trait):
    block = LDBlock.from_correlation(trait.R, trait.scored, 1e-6, dtype=np.float32)
    y, c = block.whiten(trait.z), trait.sample_size * trait.f
    ours, _ = contenders.whitened(block.factor, y, c, trait.noise, "cg", probes=5, steps=4, rank=0)
    theirs = contenders.cola(block, y, c, trait.noise, probes=5, steps=4).run()[1]
    own = np.asarray(ours()[1])
    assert np.linalg.norm(np.asarray(theirs) - own) < 1e-3 * np.linalg.norm(own)


def test_times_are_taken_in_turns_and_exponents_are_slopes():
    calls: list[str] = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2, most=3)
    assert "".join(calls) == 2 * ("aaaa" + "bbbb")
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 6, "b": 6}
    assert exponent([1, 2, 8], [3, 12, 192]) == pytest.approx(2)


def test_goals_are_met_only_by_speed_with_accuracy():
    def window(m: int, ms: float, error: float) -> dict:
        row = {"rule": "99%", "k": 1500, "cg": {"ms": ms, "gradient_error": error}, "cholesky": {"ms": 300.0}}
        whitening = {"from_correlation": 2.0, "from_genotypes": None}
        return {
            "m": m, "s": m, "scored": "all", "whitening_seconds": whitening,
            "references": {"dense": {"ms": 1000.0}}, "truncations": [row],
        }  # fmt: skip

    shares = [{"m": 9000, "k": k, "bound_by": "bytes", "share_of_bound": x} for k, x in ((500, 0.1), (1000, 0.7))]
    windows = [window(1000, 1, 0), window(2000, 9, 0.05), window(2000, 9, 0.2), window(4000, 9, 0.05)]
    rows = acceptance({"windows": windows, "iterations": shares})
    assert [row["met"] for row in rows] == [True, False, False, True, True]
    assert rows[0]["found"] == pytest.approx(1000 / 9)
    assert rows[0]["found_with_whitening_from_correlation"] == pytest.approx(1000 / 29)
    assert rows[3]["found"] == pytest.approx(300 / 9)
    assert rows[4]["found"] == 0.7


@pytest.mark.slow
def test_quick_likelihood_writes_its_figures_and_picture(tmp_path):
    pytest.importorskip("msprime")
    done = run("likelihood", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["likelihood-quick.json", "likelihood-quick.png"]
    assert (tmp_path / "likelihood-quick.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    found = json.loads((tmp_path / "likelihood-quick.json").read_text())
    assert [(w["m"], w["scored"]) for w in found["windows"]] == [(200, "all"), (200, "third")]
    for window in found["windows"]:
        assert set(window["references"]) == {"dense", "dense_scored", "autodiff", "ld_score"}
        assert window["references"]["dense"]["value"] == pytest.approx(window["references"]["autodiff"]["value"])
        for row in window["truncations"]:
            assert row["variance_kept"] >= 0.99
            assert 0 < row["cg"]["gradient_error"] < 0.2
            assert row["cg"]["value"] == pytest.approx(row["exact_value"], abs=6 * row["cg"]["standard_error"] + 1e-2)
            assert row["cholesky"]["gradient_error"] < 1e-4
    assert {name.split()[0] for name in found["growth"]} == {"m", "k", "probes", "blocks"}
    assert min(found["machine"]["copy_gb_s"], *found["machine"]["matmul_gflop_s"].values()) > 0


@pytest.mark.slow
def test_quick_genome_needs_only_what_a_bare_gpu_machine_has(tmp_path):
    """Without the packages that such a machine lacks, the same module runs and writes its figures."""
    lacking = ("cola", "polars", "bed_reader", "msprime", "typer", "matplotlib", "jsonschema", "orbax")
    out = tmp_path / "figures.json"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({lacking})); from benchmarks.genome import main; "
        f"main(['--preset', 'quick', '--dtype', 'float16', '--rank', '2', '--out', {str(out)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["variants"] == 64 * 96
    assert found["factor_bytes"] == 2 * 64 * 96 * 48
    assert found["blocks"] == [8, 16, 32, 64]
    assert np.isfinite(found["log_likelihood"])
    assert found["gradient_norm"] > 0
    assert found["largest_residual"] < 0.5
    assert 0 < found["rss_gb_of_the_data"] <= found["peak_rss_gb"] <= found["peak_rss_gb_with_several_traits"] < 4


@pytest.mark.slow
def test_quick_genome_writes_its_figures_and_picture(tmp_path):
    done = run("genome", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "4 traits (3 probes each) / 1 trait" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["genome-quick.json", "genome-quick.png"]
    found = json.loads((tmp_path / "genome-quick.json").read_text())
    assert found["traits_ratio"] == pytest.approx(found["seconds_of_several_traits"] / found["epoch_seconds"])


def test_a_genome_that_cannot_be_is_refused(capsys):
    from benchmarks.genome import main

    with pytest.raises(SystemExit) as ended:
        main(["--preset", "quick", "--k", "200"])
    assert ended.value.code == 2
    assert "k must be at most m" in capsys.readouterr().err
