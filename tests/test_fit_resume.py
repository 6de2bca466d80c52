"""A fit that is interrupted, killed, or shared by several processes comes to the figures of one that is not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import deepwas
from deepwas import FitOptions, InputError
from deepwas.fitting import fit_rotations
from deepwas.locks import exclusive
from deepwas.rendezvous import free_port
from deepwas.training.loop import Trainer
from tests.fit_problem import QUICK, evaluations, figures, quick_fit, small_problem, tiny_problem
from tests.processes import launch, wait

# Everything that training keeps from step to step: averages, sums of batches, several networks.
FULL = FitOptions(
    network="mlp",
    hidden=(4,),
    folds="loco",
    steps=14,
    evaluate_every=2,
    batch_blocks=2,
    accumulate=2,
    ema=0.8,
    ensemble=2,
    learning_rate="auto",
    solver="cg",
    probes=3,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return small_problem(tmp_path_factory)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return quick_fit(tmp_path_factory)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_problem(tmp_path_factory)


@pytest.fixture(scope="module")
def at_once(tiny):
    """The run folder of FULL, fitted without interruption."""
    folder, store, z, annotations, _ = tiny
    deepwas.fit(store, z, annotations, options=FULL, out=folder / "at_once", resume=True)
    return folder / "at_once"


def assert_same(run, reference):
    (found, tables, priors), (expected, their_tables, their_priors) = figures(run), figures(reference)
    assert found == expected
    assert tables.keys() == their_tables.keys()
    for name, table in tables.items():
        assert table.equals(their_tables[name]), name
    assert priors.equals(their_priors)


# --- killed ---

_SCRIPT = """
import json, sys
import deepwas
folder, resume = sys.argv[1], sys.argv[2] == "resume"
store = deepwas.open_ld(folder + "/ld.h5")
options = deepwas.FitOptions(**json.loads(sys.argv[4]))
deepwas.fit(store, folder + "/z.parquet", folder + "/annotations.tsv", options=options, out=sys.argv[3], resume=resume)
"""
_MLP = {"network": "mlp", "hidden": [8], "folds": 4, "steps": 120, "evaluate_every": 10, "batch_blocks": 4}
_KILLED = {
    "cg": (9, _MLP | {"solver": "cg", "patience": 20}),
    "everything": (20, _MLP | {"steps": 60, "accumulate": 2, "ema": 0.9, "ensemble": 2, "folds": "loco"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", _KILLED)
def test_a_killed_run_resumes_to_the_same_figures(inputs, tmp_path, case):
    folder, *_ = inputs
    count, options = _KILLED[case]
    command = [sys.executable, "-c", _SCRIPT, folder]
    reference, run, said = tmp_path / "uninterrupted", tmp_path / "killed", json.dumps(options)
    subprocess.run([*command, "new", reference, said], check=True)
    process = subprocess.Popen([*command, "new", run, said], stderr=subprocess.DEVNULL)
    # At a random moment after so many evaluations: in training, in an evaluation, or in writing a checkpoint.
    deadline = time.monotonic() + 120
    while evaluations(run) < count:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.1))
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert json.loads((run / "run.json").read_text())["status"] == "running"
    with pytest.raises(InputError, match="not finished"):
        deepwas.load_fit(run)
    subprocess.run([*command, "resume", run, said], check=True)
    (found, resumed, _), (expected, tables, _) = figures(run), figures(reference)
    for kind in ("plain", "cross_fitted"):
        assert found["held_out"][kind]["gain"] == pytest.approx(expected["held_out"][kind]["gain"], rel=1e-6)
        assert found["heritability"][kind]["h2"] == pytest.approx(expected["heritability"][kind]["h2"], rel=1e-6)
    assert sorted(resumed) == sorted(tables)
    for name, table in tables.items():
        assert resumed[name]["step"].to_list() == table["step"].to_list()
        for column in ("train_loss", "validation_gain", "noise"):
            np.testing.assert_allclose(resumed[name][column], table[column], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_an_interrupt_ends_with_130_and_the_run_resumes(inputs, tmp_path):
    folder, *_ = inputs
    command = [sys.executable, "-c", "import sys; from deepwas.cli import main; main()", "fit"]
    command += ["--ld", folder / "ld.h5", "--sumstats", folder / "z.parquet", "--out", tmp_path / "run"]
    command += ["--annotations", folder / "annotations.tsv", "--network", "mlp", "--folds", "4", "--patience", "50"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while evaluations(tmp_path / "run") < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in said.splitlines()[-1]
    assert "--resume" in said.splitlines()[-1]
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert deepwas.load_fit(tmp_path / "run").record["status"] == "complete"


# --- interrupted, and shared ---


def test_leave_one_chromosome_out_tests_each_chromosome_by_a_network_that_saw_the_others(at_once, tiny):
    _, store, *_ = tiny
    fit = deepwas.load_fit(at_once)
    record = fit.record
    chromosome = store.variants["CHR"].to_list()
    of_block = [chromosome[store.scored_slice(b).start] for b in range(store.n_blocks)]
    assert [{of_block[b] for b in r["test_blocks"]} for r in record["rotations"]] == [{c} for c in "1234"]
    assert [{of_block[b] for b in r["validation_blocks"]} for r in record["rotations"]] == [{c} for c in "2341"]
    assert all(len({of_block[b] for b in r["train_blocks"]}) == 2 for r in record["rotations"])
    assert len(list(at_once.glob("rotation_*/member_1/network"))) == 4
    left = ("checkpoints", "outcome.json", "log_f.npy", ".lock", "whitened.h5")
    assert [path for name in left for path in at_once.glob(f"**/{name}")] == []
    for network in (r["network"] for r in record["rotations"]):
        assert network["learning_rate"] > 0
        assert len(network["members"]) == 2
        assert 0 <= network["waiting"] <= 1
    noises = [[member["noise"] for member in r["network"]["members"]] for r in record["rotations"]]
    assert any(first != second for first, second in noises)  # equal where neither moved from the constant prior
    assert [r["noise"] for r in record["rotations"]] == pytest.approx(np.mean(noises, axis=1).tolist())
    priors = fit.variants["SNPVAR_CROSS"].to_numpy()
    assert np.isfinite(priors).all()
    assert not np.allclose(priors, fit.variants["SNPVAR_PLAIN"].to_numpy())


def test_interrupted_in_the_middle_it_resumes_to_the_same_bits(at_once, tiny, tmp_path, monkeypatch):
    _, store, z, annotations, _ = tiny
    trained = []
    original = Trainer.train

    def watched(self, *given, rotation, member, **rest):
        trained.append((rotation, member))
        return original(self, *given, rotation=rotation, member=member, **rest)

    monkeypatch.setattr(Trainer, "train", watched)

    def interrupt(what, done, total):
        # In rotation 1, in the second network, after the checkpoint of step 10 and an evaluation that it does not hold.
        if what == "training" and done >= (1 + 0.5 + 0.5 * 12 / FULL.steps) * total / 4:
            raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        deepwas.fit(store, z, annotations, options=FULL, out=run, progress=interrupt)
    assert trained == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert (run / "rotation_0" / "outcome.json").exists()
    assert not (run / "rotation_1" / "outcome.json").exists()
    trained.clear()
    deepwas.fit(store, z, annotations, options=FULL, out=run, resume=True)
    assert trained == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert_same(run, at_once)


def test_rotations_trained_one_by_one_make_the_same_run(at_once, tiny, tmp_path, monkeypatch):
    _, store, z, annotations, _ = tiny
    run = tmp_path / "run"
    for numbers in ([3, 1], [1, 0]):
        fit_rotations(store, z, annotations, rotations=numbers, options=FULL, out=run)
        assert json.loads((run / "run.json").read_text())["status"] == "running"
    assert sorted(path.parent.name for path in run.glob("*/outcome.json")) == [f"rotation_{r}" for r in (0, 1, 3)]
    shutil.copytree(run, tmp_path / "again")
    deepwas.fit(store, z, annotations, options=FULL, out=run, resume=True)
    assert_same(run, at_once)
    # Another seed is another run; a rotation that another process is at is refused; all finished, none is trained.
    with pytest.raises(InputError, match="seed differs: the run has 0, now 1"):
        fit_rotations(store, z, annotations, rotations=[2], options=replace(FULL, seed=1), out=tmp_path / "again")
    with pytest.raises(InputError, match="rotation 4 was asked for; this fit has 4, numbered from 0 to 3"):
        fit_rotations(store, z, annotations, rotations=[4], options=FULL, out=tmp_path / "again")
    with (
        exclusive(tmp_path / "again" / "rotation_2" / ".lock"),
        pytest.raises(InputError, match=rf"rotation 2 is being trained by process {os.getpid()} on"),
    ):
        fit_rotations(store, z, annotations, rotations=[2], options=FULL, out=tmp_path / "again")
    monkeypatch.setattr(Trainer, "train", None)
    fit_rotations(store, z, annotations, rotations=[0, 3], options=FULL, out=tmp_path / "again")
    fit_rotations(store, z, annotations, rotations=[2], options=FULL, out=run)


@pytest.mark.slow
def test_several_processes_take_over_the_rotations_that_one_has_finished(tiny, tmp_path):
    folder, *_ = tiny
    options = {"network": "mlp", "hidden": "4", "folds": "loco", "steps": 14, "batch-blocks": 2, "ensemble": 2}
    command = ["-c", "from deepwas.cli import main; main()", "fit", "--out", tmp_path / "run"]
    command += ["--ld", folder / "ld.h5", "--sumstats", folder / "z.parquet"]
    command += ["--annotations", folder / "annotations.tsv"]
    command += [x for name, value in options.items() for x in (f"--{name}", value)]
    (ended,) = wait([launch([*command, "--rotation", "0,2"])])
    assert ended.code == 0, ended.errors
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    together = [*command, "--resume", "--distributed", "--coordinator", f"127.0.0.1:{free_port()}"]
    processes = [launch([*together, "--num-processes", 2, "--process-id", i]) for i in range(2)]
    processes.append(launch([*command, "--resume", "--out", tmp_path / "alone"]))
    ended = wait(processes)
    assert [e.code for e in ended] == [0, 0, 0], "\n".join(e.errors for e in ended)
    (found, _, priors), (expected, _, their_priors) = figures(tmp_path / "run"), figures(tmp_path / "alone")
    assert found["rotations"][0] == expected["rotations"][0]
    for column in ("SNPVAR_PLAIN", "SNPVAR_CROSS"):
        np.testing.assert_allclose(priors[column], their_priors[column], rtol=1e-3)


def test_a_damaged_outcome_or_checkpoint_says_what_to_remove(tiny, tmp_path):
    _, store, z, annotations, _ = tiny
    options = replace(FULL, network="linear", ensemble=1, accumulate=1, learning_rate=None, ema=None)

    def interrupt(what, done, total):
        if what == "training" and done >= (1 + 12 / options.steps) * total / 4:
            raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        deepwas.fit(store, z, annotations, options=options, out=run, progress=interrupt)
    (run / "rotation_0" / "log_f.npy").write_bytes(b"x")
    with pytest.raises(InputError, match=r"rotation_0: its outcome is damaged.*Remove this folder"):
        deepwas.fit(store, z, annotations, options=options, out=run, resume=True)
    (run / "rotation_0" / "outcome.json").unlink()
    for file in (run / "rotation_1" / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"x")
    with pytest.raises(deepwas.DeepwasError, match=r"checkpoint of step 10 cannot be read.*train this network again"):
        fit_rotations(store, z, annotations, rotations=[1], options=options, out=run)


def test_a_run_resumes_only_with_what_it_was_started_with(inputs, fitted):
    folder, store, z, annotations, _ = inputs
    done = deepwas.fit(store, z, annotations, options=QUICK, out=folder / "run", resume=True)
    assert done.record["created"] == fitted.record["created"]
    with pytest.raises(InputError, match=r"options: steps differs: the run has 90, now 70"):
        deepwas.fit(store, z, annotations, options=replace(QUICK, steps=70), out=folder / "run", resume=True)
    fewer = annotations.select(["active"])
    with pytest.raises(InputError, match="inputs: annotations differs"):
        deepwas.fit(store, z, fewer, options=QUICK, out=folder / "run", resume=True)
    with pytest.raises(InputError, match=r"not empty.*--resume"):
        deepwas.fit(store, z, annotations, options=QUICK, out=folder / "run")


def test_runs_of_before_some_options_are_read(inputs, fitted, tmp_path):
    folder, _, _, annotations, _ = inputs
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    record = json.loads((run / "run.json").read_text())
    since = ("width depth heads kernel maf_alpha bound compute_dtype variants_at_once monotone sparse accumulate ema "
             "ensemble test_chromosomes validation_chromosomes")  # fmt: skip
    for name in since.split():
        del record["options"][name]
    for name in ("tracks", "sequence"):
        del record["inputs"][name]
    for rotation in record["rotations"]:
        for name in ("sizes", "learning_rate", "waiting", "members"):
            del rotation["network"][name]
    (run / "run.json").write_text(json.dumps(record))
    again = deepwas.load_fit(run)
    np.testing.assert_array_equal(again.predict(annotations), fitted.predict(annotations))
    assert again.options == replace(QUICK, bound=0.0)
    # A network without a bound is what it was: the default of networks today does not hold for it.
    assert FitOptions.of_record({"network": "mlp"}).output_bound is None
    assert FitOptions(network="mlp").output_bound is not None


def test_the_table_of_metrics_says_how_long_training_waited(at_once):
    table = pl.read_csv(at_once / "rotation_0" / "metrics.csv")
    assert table["waiting"].is_between(0, 1).all()
    assert table["step"].to_list() == list(range(2, 15, 2))
