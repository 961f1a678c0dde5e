"""One life of the sender process: start, end, crash, and what is left of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import mpproducer
from mpproducer.errors import NotWritten, Unknown
from mpproducer.sender import process
from mpproducer.sender.batch import NEVER_NS
from mpproducer.sender.server import Server
from mpproducer.shm.rendezvous import Rendezvous, lock, unlock
from mpproducer.testing import Broker
from tests.conftest import wait_until

StatusOf = Callable[[Any], dict[str, Any]]


@pytest.fixture
def place(runtime_dir: Path) -> Rendezvous:
    made = Rendezvous(str(runtime_dir / "0123456789abcdef"))
    made.create()
    return made


@pytest.fixture
def term() -> Iterator[None]:
    """`serve` sets a handler of its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def _serve(place: Rendezvous) -> tuple[int, bytes]:
    """Run a sender in this process; returns (exit code, what it told its starter)."""
    reader, writer = os.pipe()
    try:
        code = process.serve(place, writer)
        return code, os.read(reader, 100)
    finally:
        os.close(reader)


def test_a_sender_nobody_says_hello_to_ends_and_leaves_nothing(
    place: Rendezvous, term: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "FIRST_HELLO_NS", 50_000_000)
    assert _serve(place) == (0, b"ready\n")
    assert not os.path.exists(place.folder)


def test_a_second_sender_of_a_rendezvous_says_that_one_runs_and_leaves(place: Rendezvous) -> None:
    held = lock(place.sender_lock, None)
    assert held is not None
    assert _serve(place) == (0, b"running\n")
    assert os.path.exists(place.folder)
    unlock(held)
    place.remove()


def test_a_folder_in_which_somebody_starts_the_next_sender_is_left_to_him(
    place: Rendezvous, term: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "FIRST_HELLO_NS", 10_000_000)
    starting = lock(place.start_lock, None)
    assert starting is not None
    assert _serve(place)[0] == 0
    assert os.path.exists(place.folder)
    assert not os.path.exists(place.socket)
    unlock(starting)
    place.remove()


def test_a_socket_left_by_a_killed_sender_does_not_stop_the_next(
    place: Rendezvous, term: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "FIRST_HELLO_NS", 10_000_000)
    Path(place.socket).touch()
    Path(place.folder, "socket.new").touch()
    assert _serve(place) == (0, b"ready\n")


def _sender(status_of: StatusOf, producer: Any) -> psutil.Process:
    return psutil.Process(status_of(producer)["pid"])


def test_a_term_lets_the_workers_that_are_there_finish(broker: Broker, status_of: StatusOf) -> None:
    producer = mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers)
    producer.send("t", b"one").result(timeout=10)
    sender = _sender(status_of, producer)
    sender.terminate()
    time.sleep(0.2)
    producer.send("t", b"two").result(timeout=10)
    assert sender.is_running()
    producer.close()
    assert wait_until(lambda: not sender.is_running() or sender.status() == "zombie")
    assert [record.value for record in broker.records("t")] == [b"one", b"two"]


def test_a_sender_that_ends_at_once_while_it_compresses_leaves_nothing(
    broker: Broker, status_of: StatusOf, runtime_dir: Path
) -> None:
    config: dict[str, Any] = {"compression_type": "zstd", "compression_zstd_level": 22}
    config |= {"linger_ms": 20, "batch_size": 8_000_000, "max_request_size": 8_000_000}
    with mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers, **config) as producer:
        producer.send("t", b"one", partition=0).result(timeout=10)
        sender = _sender(status_of, producer)
        words = [os.urandom(6) for _ in range(5_000)]
        value = b"".join(random.choices(words, k=1_000_000))  # seconds of work
        future = producer.send("t", value, partition=0)
        time.sleep(0.3)
        sender.terminate()
        time.sleep(0.1)
        sender.terminate()
        with pytest.raises(NotWritten, match="closed before delivery"):
            future.result(timeout=10)
        assert wait_until(lambda: not any(runtime_dir.iterdir())), "its folder"
    assert [record.value for record in broker.records("t")] == [b"one"]


def test_a_killed_sender_leaves_unknown_outcomes_and_the_next_send_starts_another(
    broker: Broker, status_of: StatusOf
) -> None:
    with mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        producer.send("t", b"one").result(timeout=10)
        sender = _sender(status_of, producer)
        fault = broker.on("Produce").drop_reply()
        lost = producer.send("t", b"two")
        assert wait_until(lambda: fault.hits == 1)
        sender.kill()
        with pytest.raises(Unknown):
            lost.result(timeout=10)
        assert producer.send("t", b"three").result(timeout=20).offset == 2
        assert _sender(status_of, producer).pid != sender.pid
    assert [record.value for record in broker.records("t")] == [b"one", b"two", b"three"]


def test_the_sender_inherits_nothing_of_its_starter(broker: Broker, status_of: StatusOf) -> None:
    script = (
        "import os, signal, sys, time, mpproducer;"
        "os.umask(0); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]);"
        "p = mpproducer.Producer(bootstrap_servers=sys.argv[1]);"
        "p.send('t', b'x').result(timeout=10); print('sent', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, broker.bootstrap_servers],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"sent\n"
        with mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
            producer.send("t", b"y").result(timeout=10)
            sender = _sender(status_of, producer)
            assert sender.ppid() != child.pid
            assert os.getsid(sender.pid) != os.getsid(child.pid)
            assert sender.cwd() == "/"
            facts = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/{sender.pid}/status").read_text().splitlines()
                if ":\t" in line
            )
            assert int(facts["SigBlk"], 16) == 0
            assert facts["Umask"] == "0077"
    finally:
        child.stdin.close()
        child.wait(15)
        child.stdout.close()


@pytest.fixture
def in_thread(
    runtime_dir: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Any, list[int]]]:
    """A producer, and the exit code of its sender, which runs in a thread and so can be broken."""
    producer = mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers, linger_ms=60_000)
    place = producer._place
    place.create()
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "set_wakeup_fd", lambda *_, **__: -1)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(_serve(place)[0]), daemon=True)
    thread.start()
    assert wait_until(lambda: os.path.exists(place.socket))
    yield producer, codes
    thread.join(10)
    producer.close(timeout=1)


def test_a_crash_is_told_to_the_workers_and_is_the_exit_status(
    in_thread: tuple[Any, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    producer, codes = in_thread
    future = producer.send("t", b"never sent")
    broken = threading.Event()

    def crash(*_: Any) -> None:
        broken.set()
        raise AssertionError("a bug")

    monkeypatch.setattr(Server, "on_turn", crash)
    with pytest.raises(mpproducer.KafkaError, match="crashed"):
        producer.flush(timeout=5)
        future.result(timeout=10)
    assert wait_until(lambda: codes == [process.EXIT_CRASHED], 10)
    assert broken.is_set()


def test_a_record_that_comes_as_the_sender_ends_is_not_written_and_says_so(
    in_thread: tuple[Any, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the machine had said Exit after its last look at shared memory."""
    producer, codes = in_thread
    late: list[Any] = []
    producer.partitions_for("t")  # attaches, and has the topic known

    def at_last(self: Server, _now_ns: int) -> int:
        assert self.loop is not None
        if not late:
            late.append(producer.send("t", b"late"))
        self.loop.exit_why = "a test ends it"
        return NEVER_NS

    monkeypatch.setattr(Server, "on_turn", at_last)
    assert wait_until(lambda: codes == [0], 10)
    with pytest.raises(mpproducer.NotWritten, match="has ended"):
        late[0].result(timeout=10)


def test_an_idle_sender_sleeps(broker: Broker, status_of: Callable[[Any], dict[str, Any]]) -> None:
    """Only the two questions wake it, and the answers' way out."""
    with mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers) as producer:
        producer.send("t", b"one").result(10)
        time.sleep(0.3)
        before = status_of(producer)["counters"]["loop-turn-total"]
        time.sleep(1.5)
        turns = status_of(producer)["counters"]["loop-turn-total"] - before
    assert turns <= 6, turns
