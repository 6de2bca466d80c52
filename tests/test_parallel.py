"""Finding each other, exchanging values, and hearing of failures: in threads of one process, over real sockets."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepwas import DeepwasError, InputError
from deepwas.cli import main
from deepwas.parallel import BlockDevices, start
from deepwas.rendezvous import Group, current, free_port, join
from tests.processes import launch, wait


class Failures:
    """What each process was told, instead of exiting."""

    def __init__(self):
        self.told = {}
        self.changed = threading.Condition()

    def of(self, process):
        def tell(text, code):
            with self.changed:
                self.told[process] = (text, code)
                self.changed.notify_all()

        return tell

    def wait(self, *processes):
        with self.changed:
            assert self.changed.wait_for(lambda: set(processes) <= set(self.told), timeout=20), self.told
        return [self.told[p] for p in processes]


@pytest.fixture
def failures():
    return Failures()


def in_threads(*calls):
    """Run the calls side by side, and return what each returned or raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(call) for call in calls]
        return [f.exception(timeout=30) or f.result() for f in futures]


def gather(count, failures, **options):
    """The groups of `count` processes, each in a thread while they join."""
    port = free_port()

    def one(process):
        return join("127.0.0.1", port, count, process, on_failure=failures.of(process), **options)

    groups = in_threads(*(lambda i=i: one(i) for i in range(count)))
    assert all(isinstance(g, Group) for g in groups), groups
    return groups


def close(groups):
    assert in_threads(*(g.close for g in groups)) == [None] * len(groups)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_process_gets_every_value_in_order(failures, count):
    groups = gather(count, failures)
    for value in ({"a": [1, None]}, "text", 2.5, "x" * 300_000):
        found = in_threads(*(lambda g=g, v=value: g.exchange("a value", [g.process, v]) for g in groups))
        assert found == [[[i, value] for i in range(count)]] * count
    first = in_threads(*(lambda g=g: g.from_first("an address", f"of {g.process}") for g in groups))
    assert first == ["of 0"] * count
    assert [g.first for g in groups] == [True] + [False] * (count - 1)
    close(groups)
    time.sleep(0.1)
    assert failures.told == {}


def test_a_process_alone_needs_no_port_and_waits_for_nobody():
    alone = current()
    assert (alone.process, alone.count) == (0, 1)
    assert alone.exchange("anything", 3) == [3]
    alone.agree("anything", {"a": 1})
    alone.fail("nobody hears it")


def test_differing_values_are_named_in_every_process(failures):
    groups = gather(3, failures)
    same = in_threads(*(lambda g=g: g.agree("their inputs", {"a": [1], "b": "x"}) for g in groups))
    assert same == [None] * 3
    different = in_threads(*(lambda g=g: g.agree("their inputs", {"a": 1, "b": g.process // 2}) for g in groups))
    for error in different:
        assert isinstance(error, InputError)
        assert "differ in their inputs: b is 0 on process 0 and 1 on process 2" in str(error)
    close(groups)


def test_processes_out_of_step_are_an_error_not_a_wait(failures):
    groups = gather(2, failures)

    def first():
        try:
            groups[0].exchange("one thing", 0)
        except DeepwasError as error:
            groups[0].fail(str(error))
            return str(error)

    said, other = in_threads(first, lambda: groups[1].exchange("another", 1))
    assert said == "the processes are out of step: process 0 is at 'one thing', process 1 at 'another'."
    assert isinstance(other, DeepwasError)
    assert failures.wait(1) == [(f"process 0 stopped: {said}", 1)]


@pytest.mark.parametrize("dies", [0, 2])
def test_a_lost_connection_ends_the_others_and_what_they_wait_for(failures, dies):
    groups = gather(3, failures)
    others = [g for g in groups if g.process != dies]

    def break_off():
        time.sleep(0.2)
        groups[dies]._closing = True  # the dead pass nothing on
        for peer in groups[dies]._peers.values():
            peer.connection.shutdown(socket.SHUT_RDWR)

    waiting = in_threads(break_off, *(lambda g=g: g.exchange("never", 0) for g in others))[1:]
    for (text, code), error in zip(failures.wait(*(g.process for g in others)), waiting, strict=True):
        assert f"process {dies} (" in text
        assert "ended without a word" in text
        assert code == 1
        assert isinstance(error, DeepwasError)


@pytest.mark.parametrize("fails", [0, 1])
def test_the_reason_of_a_failure_reaches_all(failures, fails):
    groups = gather(3, failures)
    others = [g.process for g in groups if g.process != fails]
    groups[fails].fail("z.tsv: no such file", 2)
    assert failures.wait(*others) == [(f"process {fails} stopped: z.tsv: no such file", 2)] * 2
    assert fails not in failures.told
    # What waits for them ends as they do, with the exit code of the failure.
    with pytest.raises(InputError, match="no such file"):
        groups[others[0]].exchange("never", 0)


def greet(port, process=1, count=2):
    """A process that says who it is, and nothing more."""
    deadline = time.monotonic() + 20
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port))
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    hello = {"deepwas": 1, "process": process, "count": count, "who": "somewhere"}
    connection.sendall(json.dumps(hello).encode() + b"\n")
    return connection


def test_silence_counts_as_loss(failures):
    port = free_port()
    group, silent = in_threads(
        lambda: join("127.0.0.1", port, 2, 0, heartbeat_timeout=0.4, on_failure=failures.of(0)), lambda: greet(port)
    )
    begun = time.monotonic()
    ((text, code),) = failures.wait(0)
    assert text.startswith("process 1 (somewhere) has not been heard for 0.4 s")
    assert code == 1
    assert time.monotonic() - begun < 10
    silent.close()
    with pytest.raises(DeepwasError, match="not been heard"):
        group.exchange("more", 0)


def test_beats_keep_quiet_processes_alive(failures):
    groups = gather(2, failures, heartbeat_timeout=1.0)
    time.sleep(2.0)
    assert failures.told == {}
    close(groups)


def test_who_does_not_come_is_named(failures):
    port = free_port()
    begun = time.monotonic()
    found = in_threads(
        lambda: join("127.0.0.1", port, 5, 0, start_timeout=1.0),
        lambda: join("127.0.0.1", port, 5, 3, start_timeout=1.0),
        lambda: join("127.0.0.1", port, 5, 1, start_timeout=1.0),
    )
    assert time.monotonic() - begun < 10
    assert all(isinstance(error, DeepwasError) for error in found)
    assert str(found[0]).startswith("processes 2, 4 did not come within 1 s: 3 of 5 processes are here")
    assert str(found[1]) == str(found[2]) == f"process 0 stopped: {found[0]}"


def test_process_0_missing_is_said():
    with pytest.raises(DeepwasError, match=r"process 0 did not answer at 127\.0\.0\.1:\d+ within 0 s"):
        join("127.0.0.1", free_port(), 2, 1, start_timeout=0.3)


def test_wrong_numbers_are_refused_everywhere():
    port = free_port()
    found = in_threads(*(lambda i=i: join("127.0.0.1", port, 3, i, start_timeout=20) for i in (0, 1, 1)))
    assert all(isinstance(error, InputError) for error in found), found
    assert "two processes say that they are process 1" in str(found[0])
    port = free_port()
    found = in_threads(
        lambda: join("127.0.0.1", port, 2, 0, start_timeout=20), lambda: join("127.0.0.1", port, 3, 2, start_timeout=20)
    )
    assert all(isinstance(error, InputError) for error in found), found
    assert "process 0 expects 2 processes" in str(found[1])


def test_a_taken_port_is_refused():
    with socket.create_server(("", 0)) as taken, pytest.raises(InputError, match=r"cannot listen on port .*free port"):
        join("127.0.0.1", taken.getsockname()[1], 2, 0, start_timeout=1)


def test_strangers_at_the_port_are_turned_away(failures):
    port = free_port()

    def stranger():
        connection = greet(port, process="1; DROP TABLE")
        with connection:
            connection.settimeout(20)
            assert connection.recv(100) == b""
        return join("127.0.0.1", port, 2, 1, on_failure=failures.of(1))

    groups = in_threads(lambda: join("127.0.0.1", port, 2, 0, on_failure=failures.of(0)), stranger)
    assert [g.process for g in groups] == [0, 1]
    close(groups)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((None, None, None), r"--coordinator HOST:PORT, --num-processes N, --process-id I\. Give these"),
        (("node1:4321", 2, None), r"gives --process-id I\."),
        (("node1", 2, 0), "'node1': give process 0's host and a free port"),
        (("node1:99999", 2, 0), "free port"),
        (("node1:4321", 2, 2), "process 2 of 2: --process-id counts from 0"),
        (("node1:4321", 0, 0), "process 0 of 0"),
    ],
)
def test_where_a_process_stands_must_be_known(monkeypatch, place, message):
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "JAX_COORDINATOR_ADDRESS", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=message), start(*place):
        pass


def test_one_device_changes_nothing():
    one = BlockDevices(jax.devices()[:1])
    tree = {"a": np.arange(3.0)}
    assert one.same(tree) is tree
    assert one.of_first(tree) is tree
    assert one.local(tree) is tree
    assert one.total(tree) is one.greatest(tree) is one.joined(tree) is tree
    assert (one.place, one.part, one.padded(7)) == (None, (0, 1), 7)
    function = len
    assert one.spread(function, True) is function


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coordinator", "127.0.0.1:4000"], "go with --distributed"),
        (["--distributed", "--coordinator", "here", "--num-processes", "2", "--process-id", "0"], "a free port on it"),
    ],
)
def test_the_commands_options_are_checked_before_anything_starts(tmp_path, capsys, options, message):
    table = tmp_path / "table.tsv"
    table.write_text("x\n")
    files = ["--ld", table, "--sumstats", table, "--annotations", table, "--out", tmp_path / "run"]
    with pytest.raises(SystemExit) as end:
        main([str(x) for x in ("fit", *files, *options)])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_devices_share_a_batch_and_join_what_they_find():
    """On the devices there are; `test_four_devices_do_likewise` runs it on four."""
    devices = BlockDevices()
    size = devices.padded(5)
    assert size % devices.count == 0
    assert 5 <= size < 5 + devices.count
    x = np.arange(3.0 * size).reshape(size, 3)

    def measure(scale, part):
        squares = jnp.sum((scale * part) ** 2, axis=1)
        return devices.total(jnp.sum(squares)), devices.greatest(jnp.max(squares)), devices.joined(squares)

    total, greatest, joined = devices.compile(devices.spread(measure, False, True))(2.0, devices.split(x))
    expected = np.sum((2 * x) ** 2, axis=1)
    np.testing.assert_allclose(total, expected.sum())
    np.testing.assert_allclose(greatest, expected.max())
    np.testing.assert_allclose(joined, expected)


@pytest.mark.slow
def test_four_devices_do_likewise():
    name = test_devices_share_a_batch_and_join_what_they_find.__name__
    code = f"import jax, tests.test_parallel as t; assert jax.device_count() == 4; t.{name}()"
    (ended,) = wait([launch(["-c", code], devices=4, JAX_ENABLE_X64="1")])
    assert ended.code == 0, ended.errors
