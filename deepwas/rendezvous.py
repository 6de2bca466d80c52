"""Processes that work together find each other, exchange small values, and learn at once when one of them fails.

JAX's own coordination service ends a process from within when another is lost, without its own messages, and does not
say which processes never came. So each process also holds one TCP connection to process 0, over which go lines of JSON:
who is there, values that all must know, a beat every few seconds, and the reason when a process stops. A connection
that closes without a goodbye, or falls silent, means that its process is lost; then every other process prints which
one it was, and exits: the main thread may be inside a collective that would wait for ever.

Anyone who reaches the port can join, as with JAX's coordinator: run it on a private network.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from deepwas.errors import DeepwasError, InputError

__all__ = ["Group", "current", "free_port", "join", "set_current"]

_LONGEST_LINE = 1 << 24


_current: Group | None = None


def current() -> Group:
    """The group that `deepwas.parallel.start` joined this process to; a group of one without it."""
    return _current or Group(0, 1, {}, heartbeat_timeout=60.0)


def set_current(group: Group | None) -> None:
    """Make `group` what `current` returns; None for a group of one."""
    global _current
    _current = group


def free_port(host: str = "") -> int:
    """A TCP port that nothing listens on now."""
    with socket.create_server((host, 0)) as server:
        return int(server.getsockname()[1])


def _exit_process(text: str, code: int) -> None:
    """Say why and end the process, whatever its other threads are doing."""
    sys.stdout.flush()
    os.write(2, f"\ndeepwas: {text}\n".encode())
    os._exit(code)


class _Peer:
    """One connection: lines out, lines in, and when it was last heard."""

    def __init__(self, connection: socket.socket, who: str):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self.who = who
        self.heard = time.monotonic()
        self.gone = False  # it said goodbye, or its loss is known
        self.pending: list[dict[str, Any]] = []  # came with the greeting
        self._unread = b""
        self._lock = threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message; a broken connection is noticed where it is read."""
        data = json.dumps(message).encode() + b"\n"
        with suppress(OSError), self._lock:
            self.connection.sendall(data)

    def finish(self) -> None:
        """Say that no more comes; the other end answers with its own end, and `receive` then closes."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come; ConnectionError when the connection has ended or carries something else."""
        data = self.connection.recv(1 << 16)
        if not data:
            raise ConnectionError("closed")
        self.heard = time.monotonic()
        *lines, self._unread = (self._unread + data).split(b"\n")
        if len(self._unread) > _LONGEST_LINE:
            raise ConnectionError("a line without end")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError as error:
            raise ConnectionError("not a line of JSON") from error
        if not all(isinstance(message, dict) for message in messages):
            raise ConnectionError("not a message")
        return messages


class Group:
    """This process among `count` that `join` brought together. Every process makes the same calls, in the same order.

    process: this one's number, 0 to count - 1.
    """

    def __init__(
        self,
        process: int,
        count: int,
        peers: dict[int, _Peer],
        *,
        heartbeat_timeout: float,
        on_failure: Callable[[str, int], None] = _exit_process,
    ):
        self.process, self.count = process, count
        self._peers = peers
        self._timeout = heartbeat_timeout
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._calls = 0
        self._said: dict[int, dict[int, tuple[str, Any]]] = defaultdict(dict)
        self._answers: dict[int, list[Any]] = {}
        self._failure: DeepwasError | None = None
        self._closing = False
        for peer in peers.values():
            peer.heard = time.monotonic()
            peer.connection.settimeout(heartbeat_timeout)  # of sends to a process that does not read
        if peers:
            threading.Thread(target=self._watch_peers, name="deepwas-group", daemon=True).start()

    @property
    def first(self) -> bool:
        """Whether this is process 0, which alone writes files."""
        return self.process == 0

    def exchange(self, what: str, value: Any) -> list[Any]:
        """The values (JSON) that all processes give in this call, by process. Waits for the slowest.

        what: names the call; DeepwasError if the processes are not in the same one.
        """
        call, self._calls = self._calls, self._calls + 1
        if not self.first:
            self._peers[0].send({"say": call, "what": what, "value": value})
            self._wait(lambda: call in self._answers)
            return self._answers.pop(call)
        self._wait(lambda: len(self._said[call]) == self.count - 1)
        said = self._said.pop(call) | {0: (what, value)}
        for process, (name, _) in sorted(said.items()):
            if name != what:
                raise DeepwasError(
                    f"the processes are out of step: process 0 is at {what!r}, process {process} at {name!r}."
                )
        values = [said[process][1] for process in range(self.count)]
        for peer in self._peers.values():
            peer.send({"all": call, "values": values})
        return values

    def from_first(self, what: str, value: Any = None) -> Any:
        """The value (JSON) that process 0 gives; that of the others is ignored."""
        return self.exchange(what, value if self.first else None)[0]

    def agree(self, what: str, values: Mapping[str, Any]) -> None:
        """InputError, on every process, if they do not all give the same values (JSON)."""
        everyone = self.exchange(what, dict(values))
        for name in dict.fromkeys(name for one in everyone for name in one):
            found = [one.get(name) for one in everyone]
            for process, value in enumerate(found):
                if value != found[0]:
                    raise InputError(
                        f"the processes differ in {what}: {name} is {_short(found[0])} on process 0 and "
                        f"{_short(value)} on process {process}. Give every process the same files and options."
                    )

    def fail(self, text: str, code: int = 1) -> None:
        """Tell the others why this process stops; they print it and exit with `code`.

        Process 0 waits a few seconds for them, since JAX aborts what still runs when its coordinator ends.
        """
        with self._changed:
            if self._closing:
                return
            self._closing = True
        self._spread(f"process {self.process} stopped: {text}", code)
        deadline = time.monotonic() + 5
        while self.first and time.monotonic() < deadline and not all(p.gone for p in self._peers.values()):
            time.sleep(0.02)
        self._finish()

    def close(self) -> None:
        """Leave, once all are here: from then on the end of a process is no failure."""
        self.exchange("end", None)
        with self._changed:
            self._closing = True
        for peer in self._peers.values():
            peer.send({"bye": self.process})
        self._finish()

    def _wait(self, done: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: done() or self._failure is not None)
        if self._failure is not None:
            raise self._failure

    # --- the watching thread ---

    def _watch_peers(self) -> None:
        beat = min(5.0, self._timeout / 5)
        due = 0.0
        with selectors.DefaultSelector() as selector:
            for number, peer in self._peers.items():
                selector.register(peer.connection, selectors.EVENT_READ, number)
                for message in peer.pending:
                    self._take(number, message)
            while selector.get_map():
                for key, _ in selector.select(beat):
                    number = key.data
                    try:
                        for message in self._peers[number].receive():
                            self._take(number, message)
                    except OSError as error:
                        selector.unregister(key.fileobj)
                        self._peers[number].connection.close()
                        closed = isinstance(error, ConnectionError) and error.errno in (None, errno.ECONNRESET)
                        self._lost(number, "ended without a word" if closed else f"is lost: {error}")
                now = time.monotonic()
                if now >= due:
                    due = now + beat
                    for peer in self._peers.values():
                        peer.send({"beat": self.process})
                for number, peer in self._peers.items():
                    if now - peer.heard > self._timeout and not peer.gone:
                        self._lost(number, f"has not been heard for {self._timeout:g} s")

    def _take(self, number: int, message: dict[str, Any]) -> None:
        if "bye" in message:
            self._peers[number].gone = True
        elif "failed" in message:
            self._peers[number].gone = True
            self._fail(str(message["failed"]), int(message["code"]), but=number)
        with self._changed:
            if "say" in message:
                self._said[message["say"]][number] = (message["what"], message["value"])
            elif "all" in message:
                self._answers[message["all"]] = message["values"]
            self._changed.notify_all()

    def _lost(self, number: int, how: str) -> None:
        peer = self._peers[number]
        if not peer.gone:
            peer.gone = True
            self._fail(f"process {number} ({peer.who}) {how}. Its own output says why; this process stops.", 1, number)

    def _fail(self, text: str, code: int, but: int) -> None:
        """Another process failed: pass it on, wake who waits here, and end."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._failure = InputError(text) if code == 2 else DeepwasError(text)
            self._changed.notify_all()
        self._spread(text, code, but)
        if self.first:  # the others first: see fail()
            time.sleep(0.5)
        self._on_failure(text, code)
        self._finish()

    def _finish(self) -> None:
        for peer in self._peers.values():
            peer.finish()

    def _spread(self, text: str, code: int, but: int | None = None) -> None:
        for number, peer in self._peers.items():
            if number != but:
                peer.send({"failed": text, "code": code})


def join(
    host: str,
    port: int,
    count: int,
    process: int,
    *,
    start_timeout: float = 300.0,
    heartbeat_timeout: float = 60.0,
    on_failure: Callable[[str, int], None] = _exit_process,
) -> Group:
    """Wait until all `count` processes are there, process 0 listening on host:port.

    start_timeout: seconds for all to come; the error names those that did not.
    heartbeat_timeout: seconds of silence after which a process counts as lost. One whose connection closes is lost at
        once.
    on_failure: called as on_failure(text, exit code) in a thread when another process is lost or failed; by default it
        prints the text and exits the process.

    Raises DeepwasError if not all come, InputError if two claim one number or their counts differ.
    """
    deadline = time.monotonic() + start_timeout
    gather = _listen if process == 0 else _connect
    peers = gather(host, port, count, process, deadline)
    return Group(process, count, peers, heartbeat_timeout=heartbeat_timeout, on_failure=on_failure)


def _here() -> str:
    return f"{socket.gethostname()}, pid {os.getpid()}"


def _listen(host: str, port: int, count: int, process: int, deadline: float) -> dict[int, _Peer]:
    """Process 0: collect the others, then tell them that all are there, or what is wrong."""
    begun = time.monotonic()
    try:
        # On all addresses: the name by which others reach this host need not be one of its own.
        server = socket.create_server(("", port), backlog=count)
    except OSError as error:
        raise InputError(
            f"coordinator {host}:{port}: process 0 cannot listen on port {port} ({error.strerror}). Give a free port."
        ) from error
    peers: dict[int, _Peer] = {}
    try:
        with server:
            while len(peers) < count - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                try:
                    connection, _ = server.accept()
                    hello = _read_hello(connection)
                except TimeoutError:
                    missing = [i for i in range(1, count) if i not in peers]
                    raise DeepwasError(
                        f"{_named(missing)} did not come within {deadline - begun:.0f} s: {count - len(missing)} of "
                        f"{count} processes are here. Start them all, or give a longer --start-timeout."
                    ) from None
                if hello is None:
                    connection.close()
                    continue
                number, peer = hello["process"], _Peer(connection, hello["who"])
                if hello["count"] != count or not 0 < number < count or number in peers:
                    other = f"process 0 expects {count} processes, {hello['who']} says process {number} of "
                    other += f"{hello['count']}"
                    if number in peers:
                        other = f"two processes say that they are process {number}: {peers[number].who}; {hello['who']}"
                    peers[-1] = peer
                    raise InputError(f"{other}. Give each its own --process-id, and all the same --num-processes.")
                peers[number] = peer
    except DeepwasError as error:
        code = 2 if isinstance(error, InputError) else 1
        for peer in peers.values():
            peer.send({"failed": str(error), "code": code})
            peer.connection.close()
        raise
    for peer in peers.values():
        peer.send({"start": _here()})
    return peers


def _read_hello(connection: socket.socket) -> dict[str, Any] | None:
    """The greeting of a process, or None for something else that came to this port."""
    connection.settimeout(5)
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) < 4096:
            piece = connection.recv(4096)
            if not piece:
                return None
            data += piece
        hello = json.loads(data)
        good = isinstance(hello["process"], int) and isinstance(hello["count"], int) and isinstance(hello["who"], str)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return hello if good and hello.get("deepwas") == 1 else None


def _connect(host: str, port: int, count: int, process: int, deadline: float) -> dict[int, _Peer]:
    """Another process: greet process 0, again and again until it listens, and wait until all are there."""
    begun = time.monotonic()
    while True:
        left = deadline - time.monotonic()
        try:
            connection = socket.create_connection((host, port), timeout=max(left, 0.001))
            break
        except socket.gaierror as error:
            raise InputError(f"coordinator {host}:{port}: no such host ({error.strerror}). Check its name.") from error
        except OSError as error:
            if left <= 0:
                raise DeepwasError(
                    f"process 0 did not answer at {host}:{port} within {deadline - begun:.0f} s ({error}). Start it, "
                    "and check --coordinator and the firewall."
                ) from error
            time.sleep(0.2)
    peer = _Peer(connection, f"{host}:{port}")
    peer.send({"deepwas": 1, "process": process, "count": count, "who": _here()})
    # Process 0 keeps the time, and says who is missing; the surplus is for its message to arrive.
    connection.settimeout(max(deadline - time.monotonic(), 0) + 10)
    messages: list[dict[str, Any]] = []
    try:
        while not messages:
            messages = peer.receive()
    except OSError as error:
        connection.close()
        raise DeepwasError(f"process 0 at {host}:{port} did not let this process in ({error}).") from error
    first, *peer.pending = messages
    if "failed" in first:
        connection.close()
        kind = InputError if first["code"] == 2 else DeepwasError
        raise kind(f"process 0 stopped: {first['failed']}")
    peer.who = str(first["start"])
    return {0: peer}


def _named(processes: list[int]) -> str:
    names = ", ".join(map(str, processes[:10])) + (", ..." if len(processes) > 10 else "")
    return f"process{'es' if len(processes) > 1 else ''} {names}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 80 else text[:80] + "..."
