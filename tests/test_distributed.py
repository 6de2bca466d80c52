"""Several processes over loopback, for real: the figures of one process, and none that hangs when another ends."""

from __future__ import annotations

import json
import os
import signal
import time

import numpy as np
import polars as pl
import pytest

import deepwas
from deepwas.rendezvous import free_port
from tests.processes import launch, start_together, wait
from tests.synthetic import write_problem

# --- the trainer ---


def outcomes(folder, count, *, devices=1, memory=1):
    """What each of `count` processes found; with memory=0 (GB) the blocks stream."""
    ended = wait(start_together("train", count, free_port(), folder, devices=devices, MEMORY=str(memory)))
    assert [e.code for e in ended] == [0] * count, "\n".join(e.errors for e in ended)
    return [json.loads(e.said.splitlines()[-1]) for e in ended]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process with one device finds."""
    (found,) = outcomes(tmp_path_factory.mktemp("alone"), 1)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "devices", "memory"),
    [(1, 4, 1), (2, 2, 0), (4, 1, 1)],
)
def test_training_is_that_of_one_process(alone, tmp_path, count, devices, memory):
    one = alone
    assert one["devices"] == 1
    assert one["gain"] > 0
    found = outcomes(tmp_path, count, devices=devices, memory=memory)
    assert [x for x in found if x != found[0]] == []  # to the bit among themselves
    assert found[0]["devices"] == count * devices
    assert found[0]["last_step"] == one["last_step"]
    # The gain is a difference of log-likelihoods of some 100 nats in float32.
    assert found[0]["gain"] == pytest.approx(one["gain"], abs=1e-3)
    np.testing.assert_allclose(found[0]["held_out"], one["held_out"], rtol=1e-5)
    for a, b in zip(found[0]["parameters"], one["parameters"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert (tmp_path / "checkpoints").is_dir()


# --- the command ---


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A small problem, as the files that `deepwas fit` takes."""
    folder = tmp_path_factory.mktemp("problem")
    problem = write_problem(folder, variants=240, people=300)
    # Blocks of one size: one shape to compile in each of many processes; the trainer's test above has two.
    rows = [f"{c}\t{p}\t{p + 40_000}\n" for c in range(1, 5) for p in range(999_999, 1_239_000, 40_000)]
    (folder / "blocks.bed").write_text("".join(rows))
    options = deepwas.LDOptions(build="GRCh37", blocks=folder / "blocks.bed", eigenvalue_floor=0.05)
    with deepwas.build_ld(problem.genotypes, folder / "ld.h5", options) as store:
        z = deepwas.harmonise(
            deepwas.read_sumstats(problem.sumstats),
            store.variants,
            n_panel=store.n_samples,
            genome_build=store.genome_build,
            options=deepwas.QCOptions(exclude="none"),
            store_checksum=store.checksum,
        )
    z.write_parquet(folder / "z.parquet")
    return folder


def command(inputs, out, *options):
    """`deepwas fit` as arguments of Python."""
    fit = ["-c", "from deepwas.cli import main; main()", "fit", "--out", out, "--ld", inputs / "ld.h5"]
    fit += ["--sumstats", inputs / "z.parquet", "--annotations", inputs / "annotations.tsv", "--network", "mlp"]
    fit += ["--hidden", "4", "--folds", "4", "--no-cross-fit", "--steps", "72", "--evaluate-every", "3"]
    return [*fit, "--patience", "90", "--batch-blocks", "4", *options]


def together(inputs, out, count, *options, of_process=None):
    """Start `count` processes of one fit; of_process: further options by process."""
    start = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", count]
    own = of_process or {}
    return [launch(command(inputs, out, *options, *start, "--process-id", i, *own.get(i, ()))) for i in range(count)]


def by_slurm(inputs, out, count, *options):
    """The same, as Slurm would start them."""
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": str(count)}
    places = [job | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(count)]
    return [launch(command(inputs, out, "--distributed", *options), **place) for place in places]


def figures(out):
    """What a run found: held-out log-likelihoods, and the priors."""
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "complete"
    variants = pl.read_parquet(out / "variants.parquet")
    return np.array(record["rotations"][0]["test_log_likelihood"]), variants["SNPVAR_PLAIN"].to_numpy(), record


@pytest.fixture(scope="module")
def reference(inputs):
    """The fit of one process."""
    (ended,) = wait([launch(command(inputs, inputs / "alone"))])
    assert ended.code == 0, ended.errors
    return figures(inputs / "alone")


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3)


@pytest.mark.slow
def test_a_fit_of_two_processes_is_that_of_one(inputs, reference, tmp_path):
    ended = wait(by_slurm(inputs, tmp_path / "run", 2))
    assert [e.code for e in ended] == [0, 0], "\n".join(e.errors for e in ended)
    found = figures(tmp_path / "run")
    assert_same(found, reference)
    assert found[2]["environment"]["device"].endswith("2 processes")
    assert "the run is in" in ended[0].errors
    assert "the run is in" not in ended[1].errors
    assert "training" not in ended[1].errors
    assert deepwas.load_fit(tmp_path / "run").record["held_out"]["plain"] == found[2]["held_out"]["plain"]
    # A finished run is read, by both.
    assert [e.code for e in wait(together(inputs, tmp_path / "run", 2, "--resume"))] == [0, 0]


def evaluations(run):
    """How many evaluations a run has recorded."""
    return sum(max(len(path.read_text().splitlines()) - 1, 0) for path in run.glob("rotation_*/metrics.csv"))


def after_evaluations(processes, run, count):
    """Wait until a run has recorded so many evaluations."""
    deadline = time.monotonic() + 150
    while evaluations(run) < count:
        assert all(p.poll() is None for p in processes), [e.errors for e in wait(processes)]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "dies"), [(2, 0), (3, 2)])
def test_a_killed_process_ends_the_others_and_the_run_resumes(inputs, reference, tmp_path, count, dies):
    processes = together(inputs, tmp_path / "run", count)
    after_evaluations(processes, tmp_path / "run", 12)
    os.kill(processes[dies].pid, signal.SIGKILL)
    killed = time.monotonic()
    ended = wait(processes, timeout=40)
    assert time.monotonic() - killed < 30  # half the heartbeat timeout: the connection tells, not silence
    assert ended[dies].code == -signal.SIGKILL
    for i, one in enumerate(ended):
        if i == dies:
            continue
        assert one.code != 0
        if dies == 0:  # JAX aborts without its coordinator, and may be first to say so
            assert "process 0 (" in one.errors or "JAX distributed service detected fatal errors" in one.errors
        else:
            assert one.code == 1
            assert f"deepwas: process {dies} (" in one.errors
            assert "ended without a word" in one.errors
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"
    if dies != 0:
        # The same run, with another number of processes.
        ended = wait(together(inputs, tmp_path / "run", 2, "--resume"))
        assert [e.code for e in ended] == [0, 0], "\n".join(e.errors for e in ended)
        assert_same(figures(tmp_path / "run"), reference)


@pytest.mark.slow
def test_a_process_that_stands_still_is_lost_after_the_timeout(inputs, tmp_path):
    processes = together(inputs, tmp_path / "run", 2, "--heartbeat-timeout", "4")
    after_evaluations(processes, tmp_path / "run", 1)
    os.kill(processes[1].pid, signal.SIGSTOP)
    stopped = time.monotonic()
    (ended,) = wait(processes[:1], timeout=60)
    assert time.monotonic() - stopped < 40
    os.kill(processes[1].pid, signal.SIGKILL)
    wait(processes[1:])
    assert ended.code == 1
    assert "has not been heard for 4 s" in ended.errors


@pytest.mark.slow
def test_differing_inputs_are_refused_and_leave_nothing(inputs, tmp_path):
    ended = wait(together(inputs, tmp_path / "run", 2, of_process={1: ["--seed", "5"]}))
    assert [e.code for e in ended] == [2, 2], "\n".join(e.errors for e in ended)
    assert any("seed is 0 on process 0 and 5 on process 1" in e.errors for e in ended)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_error_of_one_process_ends_all(inputs, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("x")
    ended = wait(together(inputs, tmp_path / "run", 2))
    assert [e.code for e in ended] == [2, 2], "\n".join(e.errors for e in ended)
    assert "not empty" in ended[0].errors
    assert "process 0 stopped:" in ended[1].errors
    assert "not empty" in ended[1].errors
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]
