"""The handshake: other versions, strangers, nonsense, and too few descriptors."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import mpproducer
from mpproducer._core import native
from mpproducer.shm import control
from mpproducer.testing import Broker
from mpproducer.worker import attach
from tests.conftest import metric, run_child, senders, wait_until

TOPIC = "events"
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
FORK: Any = multiprocessing.get_context("fork")


def make(broker: Broker, **config: Any) -> mpproducer.Producer:
    defaults: dict[str, Any] = {"linger_ms": 0, "sender_idle_ms": 200}
    return mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers, **(defaults | config))


@pytest.fixture
def producer(broker: Broker) -> Iterator[mpproducer.Producer]:
    broker.create_topic(TOPIC)
    with make(broker) as producer:
        yield producer


def descriptors() -> int:
    """How many are open, without the connections of the broker in this process."""
    tcp = psutil.Process().net_connections("tcp")
    return len(os.listdir("/proc/self/fd")) - len([one for one in tcp if one.fd >= 0])


def targets() -> dict[str, str]:
    """What is open, for a child: of the broker's connections, which it inherited, one may end."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # of the listing itself
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


@pytest.mark.parametrize("what", ["version", "layout"])
def test_W17_X12_a_worker_of_another_version_is_refused_and_told_both(
    producer: mpproducer.Producer, broker: Broker, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    producer.send(TOPIC, b"v").result(20)
    refused = metric(producer, "worker-refused-total")

    def child() -> None:
        before = targets()
        if what == "version":
            monkeypatch.setattr(attach, "__version__", "0.0.1")
        else:
            monkeypatch.setattr(native, "LAYOUT_HASH", native.LAYOUT_HASH ^ 1)
        for call in (
            lambda: producer.send(TOPIC, b"v"),
            lambda: producer.send_many(TOPIC, [b"v"]),
            lambda: producer.attach(5),
        ):
            with pytest.raises(mpproducer.SenderVersionMismatch) as found:
                call()
            assert mpproducer.__version__ in str(found.value)
            if what == "version":
                assert "0.0.1" in str(found.value)
            assert not found.value.retriable
        assert targets() == before

    run_child(child)
    assert producer.send(TOPIC, b"v").result(20).offset == 1
    assert wait_until(lambda: metric(producer, "worker-refused-total") == refused + 3)


def test_M6_nonsense_on_the_control_socket_is_dropped_and_disturbs_nobody(
    producer: mpproducer.Producer, rng: Any
) -> None:
    producer.send(TOPIC, b"v").result(20)
    deadline_ns = time.monotonic_ns() + 20_000_000_000
    hello: dict[str, Any] = {"type": "hello", "magic": "mpproducer"}
    nonsense: list[bytes] = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        rng.randbytes(3000),
        b"\xff\xff\xff\xff",
        b"\x02\x00\x00\x00[]",
        control.encode({"type": "hello"}),
        control.encode(hello),
        control.encode(hello | {"version": mpproducer.__version__, "layout_hash": "x"}),
        control.encode({"type": "bye"}),
        control.encode(hello)[:-3],
    ]
    for data in nonsense:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(producer._place.socket)
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(10)
            while sock.recv(65536):
                pass
        assert producer.send(TOPIC, b"v").exception(20) is None
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(producer._place.socket)
        sock.setblocking(False)
        control.send_with_fds(sock, hello | {"version": "9"}, [], deadline_ns)
        answer, fds = control.recv_with_fds(sock, deadline_ns)
        assert (answer["type"], answer["reason"], fds) == ("refused", "version", [])


def test_a_welcome_that_makes_no_sense_leaves_no_descriptor(
    producer: mpproducer.Producer, monkeypatch: pytest.MonkeyPatch, runtime_dir: Path
) -> None:
    producer.attach(10)
    other: mpproducer.Producer = pickle.loads(pickle.dumps(producer))
    attach.detach(next(iter(attach._table.links.values())))
    assert wait_until(lambda: not senders(runtime_dir))
    before = descriptors()
    original = control.recv_with_fds

    def changed(**fields: Any) -> Callable[..., Any]:
        def receive(sock: socket.socket, deadline_ns: int) -> Any:
            answer, fds = original(sock, deadline_ns)
            return answer | fields, fds

        return receive

    wrong: list[dict[str, Any]] = [
        {"owner": 0}, {"owner": "x"}, {"owner": 10**9}, {"slots": 2**31}, {"slots": 10**6},
        {"max_topics": None},
    ]  # fmt: skip
    for fields in wrong:
        monkeypatch.setattr(control, "recv_with_fds", changed(**fields))
        with pytest.raises(mpproducer.SenderError):
            other.attach(5)
        assert wait_until(lambda: descriptors() <= before, 5), fields
    monkeypatch.undo()
    other.send(TOPIC, b"v").result(20)
    other.close()


def test_R5_attaching_without_free_descriptors_says_so_and_leaks_none(
    producer: mpproducer.Producer,
) -> None:
    import resource

    def child() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(int(fd) for fd in os.listdir("/proc/self/fd"))
        before = targets()
        for extra in range(0, 8):
            holes = [os.dup(0) for _ in range(used + 1 - len(targets()))]
            top = max(int(fd) for fd in os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (top + 1 + extra, hard))
            error: Any = None
            try:
                producer.send(TOPIC, b"v").result(20)
            except mpproducer.SenderError as caught:
                error = caught
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in holes:
                os.close(fd)
            if error is None:
                break
            assert "open files" in str(error), error
            assert targets() == before
        else:
            raise AssertionError("8 descriptors should do")
        assert extra > 0

    producer.attach(10)
    run_child(child)
    producer.send(TOPIC, b"v").result(20)
