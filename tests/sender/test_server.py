"""The control socket: who is let in, what is refused and why, and who is noticed to be gone."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mpproducer.config import Config
from mpproducer.errors import SenderStartFailed
from mpproducer.sender import actions as a
from mpproducer.sender.counters import Counters
from mpproducer.sender.loop import Loop
from mpproducer.sender.server import Refused, Region, Server, _pidfd_of
from mpproducer.sender.workers import Worker, Workers
from mpproducer.shm import control
from mpproducer.version import __version__

WAIT_S = 10.0
LAYOUT = 77
CONFIG = Config.from_user(None, {"bootstrap_servers": "x:1"})


class FakeLoop:
    """What the server needs of the loop; keeps the order of what it was told."""

    def __init__(self, config: Config, order: list[Any]) -> None:
        self.config = config
        self.counters = Counters()
        self.workers = Workers(self.counters, 3)
        self.order = order
        self.pool = SimpleNamespace(
            owner_alive=lambda owner, alive: order.append(("alive", owner, alive)),
            topic_add=self._topic_add,
        )
        self.machine = SimpleNamespace(
            metadata=SimpleNamespace(topics={}), nodes=SimpleNamespace(all=list)
        )

    def _topic_add(self, name: str) -> int:
        if name == "full":
            raise OverflowError("no room")
        return 5

    def free_owner(self) -> int:
        return self.workers.free_owner()

    def worker_joined(self, worker: Worker) -> None:
        self.order.append(("joined", worker.owner))
        self.workers.add(worker)

    def worker_gone(self, worker: Worker, *, died: bool) -> None:
        self.order.append(("gone", worker.owner, died))
        self.workers.remove(worker)

    def collect(self) -> None:
        self.order.append("collect")

    def report(self, event: Any) -> None:
        self.order.append(event)

    def publish_counters(self) -> None:
        self.order.append("published")

    def counter_values(self) -> dict[str, int]:
        return {"workers": self.counters.workers}


class Bench:
    """A server in this process, its epoll, and a way to talk to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.order: list[Any] = []
        self.epoll = select.epoll()
        self.handlers: dict[int, Callable[[int], None]] = {}
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.bind(str(path))
        listener.listen(100)
        self.broken: Exception | None = None
        self.fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.server = Server(listener, self.epoll, self.handlers, self._start, LAYOUT)
        self.open: list[socket.socket] = []

    def _start(self, config: Config) -> tuple[Loop, Region]:
        if self.broken is not None:
            raise self.broken
        region = Region(self.fd, self.fd, self.fd, 10, 20, 30, 99, LAYOUT)
        return cast(Loop, FakeLoop(config, self.order)), region

    def until(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_S
        while not what():
            assert time.monotonic() < end, self.order
            for fd, mask in self.epoll.poll(0.02):
                if fd in self.handlers:
                    self.handlers[fd](mask)

    def turn(self) -> None:
        for _ in range(5):
            for fd, mask in self.epoll.poll(0.01):
                if fd in self.handlers:
                    self.handlers[fd](mask)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.connect(str(self.path))
        sock.setblocking(False)
        self.open.append(sock)
        return sock

    def ask(self, message: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Send one message on a new connection; returns (answer, number of descriptors)."""
        sock = self.connect()
        sock.sendall(control.encode(message))
        self.turn()
        answer, fds = control.recv_with_fds(sock, time.monotonic_ns() + 5_000_000_000)
        for fd in fds:
            os.close(fd)
        return answer, len(fds)

    def told(self) -> list[Any]:
        """What the loop was told since the last call."""
        taken, self.order[:] = list(self.order), []
        return taken

    def close(self) -> None:
        self.server.refuse_the_rest()
        self.server.close_workers()
        self.epoll.close()
        os.close(self.fd)
        for sock in self.open:
            sock.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "s")
    yield made
    made.close()


def _hello(**over: Any) -> dict[str, Any]:
    return {
        "type": "hello",
        "magic": "mpproducer",
        "version": __version__,
        "layout_hash": LAYOUT,
        "config": CONFIG.to_wire(),
    } | over


def test_a_worker_is_welcomed_with_an_owner_id_and_four_descriptors(bench: Bench) -> None:
    answer, count = bench.ask(_hello())
    assert (answer["type"], answer["owner"], count) == ("welcome", 1, 4)
    assert (answer["slots"], answer["max_partitions"], answer["max_topics"]) == (10, 20, 30)
    assert bench.told() == [("alive", 1, True), ("joined", 1)], "alive before it may append"
    assert bench.ask(_hello())[0]["owner"] == 2


@pytest.mark.parametrize(
    ("over", "reason"),
    [
        ({"magic": "other"}, "version"),
        ({"type": "topic"}, "version"),
        ({"version": "0.0.0"}, "version"),
        ({"layout_hash": 1}, "version"),
        ({"config": {"linger_ms": 5}}, "config"),
        ({"config": CONFIG.to_wire() | {"linger_ms": -5}}, "config"),
        ({"config": None}, "config"),
    ],
)
def test_X12_another_version_layout_or_a_broken_configuration_is_refused_with_the_reason(
    bench: Bench, over: dict[str, Any], reason: str
) -> None:
    answer, count = bench.ask(_hello(**over))
    assert (answer["type"], answer["reason"], count) == ("refused", reason, 0)
    assert bench.server.loop is None


def test_X12_a_different_configuration_at_the_same_rendezvous_is_refused(bench: Bench) -> None:
    bench.ask(_hello())
    other = CONFIG.to_wire() | {"linger_ms": 77}
    answer, _ = bench.ask(_hello(config=other))
    assert (answer["type"], answer["reason"]) == ("refused", "config")
    assert bench.server.loop is not None
    assert bench.server.loop.counters.worker_refused_total == 1
    worker_only = CONFIG.to_wire() | {"max_block_ms": 1}
    assert bench.ask(_hello(config=worker_only))[0]["type"] == "welcome"


def test_no_memory_for_the_segments_is_an_answer_and_not_the_end_of_the_sender(
    bench: Bench,
) -> None:
    bench.broken = SenderStartFailed("no shared memory; lower buffer_memory")
    answer, _ = bench.ask(_hello())
    assert (answer["type"], answer["reason"]) == ("refused", "memory")
    assert "lower buffer_memory" in answer["message"]
    bench.broken = None
    assert bench.ask(_hello())[0]["type"] == "welcome"


def test_no_owner_id_left_is_a_refusal(bench: Bench) -> None:
    for _ in range(3):
        assert bench.ask(_hello())[0]["type"] == "welcome"
    assert bench.ask(_hello())[0]["reason"] == "full"


@pytest.mark.parametrize("data", [b"\xff" * 8, b"\x03\0\0\0{x}", b"\x02\0\0\0[]", b"\x02\0\0\0{}"])
def test_a_peer_that_talks_nonsense_is_dropped_and_others_are_not(
    bench: Bench, data: bytes
) -> None:
    sock = bench.connect()
    sock.sendall(data)
    bench.turn()
    assert sock.recv(10) == b""
    assert bench.ask(_hello())[0]["type"] == "welcome"


def test_a_peer_that_says_nothing_is_dropped_after_a_while(bench: Bench) -> None:
    sock = bench.connect()
    bench.turn()
    bench.server.on_turn(time.monotonic_ns())
    with pytest.raises(BlockingIOError):
        sock.recv(10)
    bench.server.on_turn(time.monotonic_ns() + 6_000_000_000)
    assert sock.recv(10) == b""


def test_a_hello_in_pieces_is_put_together(bench: Bench) -> None:
    sock = bench.connect()
    data = control.encode(_hello())
    for start in range(0, len(data), 100):
        sock.sendall(data[start : start + 100])
        bench.turn()
    bench.until(lambda: ("joined", 1) in bench.order)


def _joined(bench: Bench) -> socket.socket:
    """A welcomed worker's socket."""
    sock = bench.connect()
    sock.sendall(control.encode(_hello()))
    bench.turn()
    _, fds = control.recv_with_fds(sock, time.monotonic_ns() + 5_000_000_000)
    for fd in fds:
        os.close(fd)
    bench.told()
    return sock


def test_messages_of_a_worker_become_events(bench: Bench) -> None:
    sock = _joined(bench)
    sock.sendall(control.encode({"type": "topic", "name": "t"}))
    sock.sendall(control.encode({"type": "flush"}))
    bench.turn()
    told = bench.told()
    assert told == [a.TopicWanted("t", 5), "collect", a.FlushAsked()]


def test_a_full_directory_or_a_nameless_topic_harms_nobody(bench: Bench) -> None:
    sock = _joined(bench)
    sock.sendall(control.encode({"type": "topic", "name": "full"}))
    sock.sendall(control.encode({"type": "topic", "name": 5}))
    sock.sendall(control.encode({"type": "surprise"}))
    bench.turn()
    assert bench.told() == []
    answer, _ = control.recv_with_fds(sock, time.monotonic_ns() + 5_000_000_000)
    assert answer["type"] == "error"
    assert "surprise" in answer["message"]


def test_X10_a_bye_collects_what_was_appended_before_it(bench: Bench) -> None:
    sock = _joined(bench)
    sock.sendall(control.encode({"type": "bye"}))
    bench.turn()
    assert bench.told() == ["collect", ("gone", 1, False)]
    assert sock.recv(10) == b""


def test_a_closed_socket_is_no_death(bench: Bench) -> None:
    sock = _joined(bench)
    sock.close()
    bench.turn()
    assert bench.told() == []
    assert bench.server.loop is not None
    assert list(bench.server.loop.workers.by_owner) == [1]


def test_X1_a_killed_worker_is_noticed_by_its_pidfd(bench: Bench) -> None:
    bench.ask(_hello())
    bench.told()
    script = (
        "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "s.sendall(bytes.fromhex(sys.argv[2])); time.sleep(60)"
    )
    hello = control.encode(_hello()).hex()
    child = subprocess.Popen([sys.executable, "-c", script, str(bench.path), hello])
    bench.until(lambda: ("joined", 2) in bench.order)
    bench.told()
    child.kill()
    bench.until(lambda: bool(bench.order))
    child.wait(WAIT_S)
    assert bench.told() == [("gone", 2, True)]


def test_status_is_told_without_attaching_and_holds_no_configuration_values(bench: Bench) -> None:
    bench.ask(_hello())
    answer, _ = bench.ask({"type": "status"})
    assert (answer["type"], answer["pid"], answer["workers"]) == (
        "status",
        os.getpid(),
        [os.getpid()],
    )
    assert answer["counters"] == {"workers": 1}
    assert "config" not in answer


def test_stop_delivers_until_the_close_timeout_and_refuses_newcomers(bench: Bench) -> None:
    bench.ask(_hello())
    bench.told()
    sock = bench.connect()
    sock.sendall(control.encode({"type": "stop"}))
    before_ns = time.monotonic_ns()
    bench.turn()
    (event,) = bench.told()
    assert isinstance(event, a.CloseAsked)
    assert event.deadline_ns >= before_ns + CONFIG.close_timeout_ms * 1_000_000
    assert bench.ask(_hello())[0]["reason"] == "closing"


def test_the_first_term_lets_workers_finish_and_the_second_does_not(bench: Bench) -> None:
    bench.ask(_hello())
    bench.told()
    bench.server.terminate(at_once=False)
    assert bench.told() == []
    assert bench.ask(_hello())[0]["reason"] == "closing"
    bench.server.terminate(at_once=True)
    (event,) = bench.told()
    assert event.deadline_ns <= time.monotonic_ns()


def test_who_is_still_in_the_queue_at_the_end_is_told_to_come_again(bench: Bench) -> None:
    waiting = [bench.connect() for _ in range(3)]
    for sock in waiting:
        sock.sendall(control.encode(_hello()))
    bench.server.refuse_the_rest()
    for sock in waiting:
        answer, _ = control.recv_with_fds(sock, time.monotonic_ns() + 5_000_000_000)
        assert answer["reason"] == "closing"
    bench.close = lambda: None  # type: ignore[method-assign]
    bench.epoll.close()
    os.close(bench.fd)
    for sock in bench.open:
        sock.close()


class _Sock:
    """A socket whose SO_PEERPIDFD fails in one way."""

    def __init__(self, code: int) -> None:
        self.code = code

    def getsockopt(self, *_args: int) -> bytes:
        raise OSError(self.code, os.strerror(self.code))


def test_only_a_kernel_without_peer_pidfds_makes_the_pid_count() -> None:
    """Any other error may mean that the peer has ended, and its pid is another process's by now."""
    sock: Any = _Sock(errno.ENOPROTOOPT)
    pidfd = _pidfd_of(sock, os.getpid())
    os.close(pidfd)
    for code in (errno.ESRCH, errno.EINVAL, errno.EMFILE):
        sock = _Sock(code)
        with pytest.raises(Refused, match="cannot be watched"):
            _pidfd_of(sock, os.getpid())
