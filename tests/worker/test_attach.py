"""Attaching: lazily, once per process, from everywhere, over forks and deaths."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import json
import multiprocessing
import os
import pickle
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
from mpproducer.testing import Broker
from mpproducer.worker import attach, start
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


def send_one(producer: mpproducer.Producer) -> tuple[int, int]:
    """As a task of a pool: (pid, offset)."""
    return os.getpid(), producer.send(TOPIC, b"v").result(30).offset


def descriptors() -> int:
    """How many are open, without the connections of the broker in this process."""
    tcp = psutil.Process().net_connections("tcp")
    return len(os.listdir("/proc/self/fd")) - len([one for one in tcp if one.fd >= 0])


# --- lazy, once


def test_L18_importing_and_making_a_producer_opens_and_starts_nothing(
    broker: Broker, runtime_dir: Path
) -> None:
    script = (
        "import os, sys, threading, signal\n"
        "def state():\n"
        "    handlers = [signal.getsignal(n) for n in signal.valid_signals()]\n"
        "    return sorted(os.listdir('/proc/self/fd')), threading.active_count(), handlers\n"
        "before = state()\n"
        "import mpproducer\n"
        "producer = mpproducer.Producer(bootstrap_servers=sys.argv[1])\n"
        "repr(producer), producer.metrics(), producer.flush(), producer.config\n"
        "assert state() == before, (before, state())\n"
        "producer.close()\n"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", script, broker.bootstrap_servers],
        check=True,
        timeout=60,
    )
    assert list(runtime_dir.iterdir()) == []
    assert broker.connections == 0


def test_1000_unpickled_handles_of_one_process_are_one_attachment(
    producer: mpproducer.Producer, status_of: Callable[[Any], dict[str, Any]]
) -> None:
    producer.send(TOPIC, b"v").result(20)
    wire = pickle.dumps(producer)
    assert len(wire) < 4096
    before = descriptors()

    def tasks() -> None:
        for _ in range(500):
            handle = pickle.loads(wire)
            handle.send(TOPIC, b"v").result(20)

    threads = [threading.Thread(target=tasks) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    gc.collect()
    assert wait_until(lambda: descriptors() == before, 5)
    status = status_of(producer)
    assert status["workers"] == [os.getpid()]
    assert status["counters"]["worker-joined-total"] == 1
    assert len(attach._table.links) == 1
    assert len(next(iter(attach._table.links.values())).handles) == 1


def test_C10_close_detaches_with_the_last_open_handle_only(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    other: mpproducer.Producer = pickle.loads(pickle.dumps(producer))
    unused: mpproducer.Producer = pickle.loads(pickle.dumps(producer))
    futures = [producer.send(TOPIC, b"1"), other.send(TOPIC, b"2")]
    unused.close()
    other.close()
    assert [future.done() for future in futures] == [True, True]
    assert len(attach._table.links) == 1
    assert producer.send(TOPIC, b"3").result(20).offset == 2
    producer.close()
    assert attach._table.links == {}
    again: mpproducer.Producer = pickle.loads(pickle.dumps(producer))  # a new, open one
    assert again.send(TOPIC, b"4").result(20).offset == 3
    again.close()
    assert attach._table.links == {}


def test_an_exception_leaves_a_with_block_within_close_timeout_ms(
    broker: Broker, runtime_dir: Path
) -> None:
    broker.create_topic(TOPIC)
    held = broker.on("Produce", times=1).delay(2.5)
    with pytest.raises(ZeroDivisionError), make(broker, close_timeout_ms=100) as producer:
        future = producer.send(TOPIC, b"v")
        assert wait_until(lambda: held.hits == 1)
        start = time.monotonic()
        raise ZeroDivisionError
    assert time.monotonic() - start < 2.4
    assert isinstance(future.exception(0), mpproducer.Unknown)
    assert wait_until(lambda: not senders(runtime_dir))  # it had delivered all the same
    assert len(broker.records(TOPIC)) == 1


# --- many at once


def test_S7_processes_that_attach_at_the_same_instant_start_one_sender(
    producer: mpproducer.Producer, broker: Broker, runtime_dir: Path, status_of: Any
) -> None:
    count = 12
    gate = FORK.Barrier(count + 1)
    stay = FORK.Event()

    def job() -> None:
        gate.wait(30)
        producer.send(TOPIC, b"v").result(30)
        gate.wait(30)
        stay.wait(30)

    children = [FORK.Process(target=job) for _ in range(count)]
    for child in children:
        child.start()
    gate.wait(30)
    gate.wait(30)
    assert len(senders(runtime_dir)) == 1
    assert len([path for path in runtime_dir.iterdir() if path.is_dir()]) == 1
    producer.attach(10)
    status = status_of(producer)
    assert sorted(status["workers"]) == sorted([os.getpid(), *[child.pid for child in children]])
    assert status["counters"]["worker-joined-total"] == count + 1
    stay.set()
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0] * count
    assert len({batch.producer_id for batch in broker.batches(TOPIC, 0)}) == 1
    assert len(broker.records(TOPIC)) == count


def test_threads_that_attach_at_the_same_instant_make_one_attachment(
    producer: mpproducer.Producer, status_of: Any
) -> None:
    gate = threading.Barrier(16)

    def job(_number: int) -> int:
        gate.wait(20)
        offset: int = producer.send(TOPIC, b"v").result(20).offset
        return offset

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(job, range(16))) == list(range(16))
    assert status_of(producer)["counters"]["worker-joined-total"] == 1


def test_senders_of_two_configurations_are_two_and_worker_only_keys_make_no_difference(
    producer: mpproducer.Producer, broker: Broker, runtime_dir: Path
) -> None:
    with make(broker, linger_ms=1) as other, make(broker, max_block_ms=1234) as same:
        for each in (producer, other, same):
            each.send(TOPIC, b"v").result(20)
        assert len(senders(runtime_dir)) == 2
        assert len(attach._table.links) == 2


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_L3_a_producer_is_an_argument_of_pools(
    producer: mpproducer.Producer, broker: Broker, method: str
) -> None:
    producer.send(TOPIC, b"v").result(20)
    context: Any = multiprocessing.get_context(method)
    with context.Pool(2) as pool:  # daemonic processes
        found = pool.map(send_one, [producer] * 10, chunksize=1)
        pool.close()
        pool.join()
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        found += list(executor.map(send_one, [producer] * 10))
    assert sorted(offset for _pid, offset in found) == list(range(1, 21))
    assert os.getpid() not in {pid for pid, _offset in found}
    assert producer.send(TOPIC, b"v").result(20).offset == 21


def test_a_daemonic_process_starts_the_sender(producer: mpproducer.Producer) -> None:
    context: Any = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        found = pool.map(send_one, [producer] * 4, chunksize=1)
        pool.close()
        pool.join()
    assert sorted(offset for _pid, offset in found) == [0, 1, 2, 3]


# --- over forks


def test_L1_child_and_parent_both_go_on_after_a_fork(
    producer: mpproducer.Producer, broker: Broker, status_of: Any
) -> None:
    producer.send(TOPIC, b"parent").result(20)

    def child() -> None:
        assert producer._attachment is not None
        assert producer._attachment.closed
        producer.send(TOPIC, b"child").result(20)
        assert len(status_of(producer)["workers"]) == 2

        def grandchild() -> None:
            producer.send(TOPIC, b"grandchild").result(20)

        run_child(grandchild)
        producer.send(TOPIC, b"child").result(20)

    run_child(child)
    assert producer.send(TOPIC, b"parent").result(20).offset == 4
    assert wait_until(lambda: status_of(producer)["workers"] == [os.getpid()])
    values = [record.value for record in broker.records(TOPIC)]
    assert values == [b"parent", b"child", b"grandchild", b"child", b"parent"]


def test_L4_a_child_that_closes_or_drops_its_copy_leaves_the_parent_alone(
    producer: mpproducer.Producer, status_of: Any
) -> None:
    producer.send(TOPIC, b"v").result(20)
    run_child(producer.close)

    def child() -> None:
        attach._at_exit()  # inherited exit handler
        gc.collect()

    run_child(child)
    assert producer.send(TOPIC, b"v").result(20).offset == 1
    assert status_of(producer)["workers"] == [os.getpid()]


def test_L5_a_child_that_never_sends_keeps_nothing_of_the_parent_open(
    producer: mpproducer.Producer, broker: Broker, status_of: Any
) -> None:
    """So a parent's death is noticed while its child lives, and its outcomes are not awaited."""
    producer.attach(10)
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        producer.send(TOPIC, b"v").result(20)
        inherited = os.listdir("/proc/self/fd")
        if os.fork() == 0:
            left = [os.readlink(f"/proc/self/fd/{fd}") for fd in inherited if fd_open(int(fd))]
            bad = [name for name in left if "memfd" in name or "eventfd" in name]
            os.write(writer, json.dumps([os.getpid(), bad]).encode())
        time.sleep(20)
        os._exit(0)
    grandchild, left = json.loads(os.read(reader, 1000))
    try:
        assert left == []
        assert sorted(status_of(producer)["workers"]) == sorted([os.getpid(), parent])
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        assert wait_until(lambda: status_of(producer)["workers"] == [os.getpid()], 4.5)
        os.kill(grandchild, 0)  # still there
    finally:
        os.kill(grandchild, signal.SIGKILL)
        os.close(reader)
        os.close(writer)


def fd_open(fd: int) -> bool:
    with contextlib.suppress(OSError):
        os.fstat(fd)
        return True
    return False


def test_L2_fork_while_other_threads_send(producer: mpproducer.Producer, broker: Broker) -> None:
    """A child never waits on what its parent's threads had in hand."""
    stop = threading.Event()

    def hammer() -> None:
        while not stop.is_set():
            producer.send(TOPIC, bytes(100)).result(20)

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            run_child(lambda: producer.send(TOPIC, b"child").result(20))
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert [r.value for r in broker.records(TOPIC)].count(b"child") == 10


def test_a_fork_while_another_thread_starts_a_sender_keeps_no_lock(
    producer: mpproducer.Producer, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child's copy of start.lock must not keep others from starting senders."""
    forked = threading.Event()
    started = threading.Event()
    original = start.start_sender

    def slow(*args: Any) -> None:
        started.set()
        assert forked.wait(20)
        original(*args)

    monkeypatch.setattr(attach, "start_sender", slow)
    thread = threading.Thread(target=lambda: producer.send(TOPIC, b"v").result(20))
    thread.start()
    assert started.wait(20)
    child = os.fork()
    if child == 0:
        time.sleep(20)
        os._exit(0)
    try:
        forked.set()
        thread.join(20)
        producer.close()
        assert wait_until(lambda: not senders(runtime_dir), 5)
        assert wait_until(lambda: not any(runtime_dir.iterdir()), 5)  # needs start.lock
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# --- deaths


def test_S11_the_sender_outlives_the_process_that_started_it(
    producer: mpproducer.Producer, runtime_dir: Path, status_of: Any
) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        producer.send(TOPIC, b"v").result(20)
        os.write(writer, b".")
        time.sleep(30)
        os._exit(0)
    assert os.read(reader, 1) == b"."
    producer.attach(10)
    sender = status_of(producer)["pid"]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert producer.send(TOPIC, b"v").result(20).offset == 1
    assert status_of(producer)["pid"] == sender
    os.close(reader)
    os.close(writer)


def test_S1_X3_after_the_sender_was_killed_pending_is_Unknown_and_the_next_send_works(
    producer: mpproducer.Producer, broker: Broker, status_of: Any
) -> None:
    for round_ in range(3):
        producer.send(TOPIC, b"before").result(20)
        dropped = broker.on("Produce").close_before()
        dropped.delay(5)
        future = producer.send(TOPIC, b"lost")
        many = producer.send_many(TOPIC, [b"lost"] * 3)
        old = status_of(producer)["pid"]
        os.kill(old, signal.SIGKILL)
        for pending in (future, many):
            error = pending.exception(20)
            assert isinstance(error, mpproducer.SenderDied), round_
            assert isinstance(error, mpproducer.Unknown)
            assert "sender process ended" in str(error)
        producer.flush(20)
        assert producer.send(TOPIC, b"after").result(20).offset >= 2 * round_
        assert status_of(producer)["pid"] != old
        dropped.remove()


def test_S1_threads_that_wait_for_memory_and_topics_see_the_senders_death(
    broker: Broker, status_of: Any
) -> None:
    broker.create_topic(TOPIC)
    with make(
        broker, buffer_memory=64 * 16_384, max_request_size=500_000, batch_size=100_000
    ) as producer:
        producer.send(TOPIC, b"v").result(20)
        broker.on("Produce", times=50).delay(20)
        stuck = broker.on("Metadata", topic="slow", times=50).delay(20)
        futures: list[Any] = []

        def fill() -> None:
            for _ in range(40):
                futures.append(producer.send(TOPIC, bytes(50_000)))

        def other_topic() -> None:
            futures.append(producer.send("slow", b"v"))

        threads = [threading.Thread(target=job) for job in (fill, fill, other_topic)]
        for thread in threads:
            thread.start()
        assert wait_until(lambda: metric(producer, "waiting-threads") > 0)
        os.kill(status_of(producer)["pid"], signal.SIGKILL)
        for fault in broker._faults.scripted:
            fault.remove()
        del stuck
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert len(futures) == 81
        for future in futures:
            error = future.exception(30)
            assert error is None or isinstance(error, mpproducer.SenderDied)


def test_a_sender_that_was_stopped_by_hand_is_followed_by_another(
    producer: mpproducer.Producer, broker: Broker, status_of: Any
) -> None:
    from mpproducer import visitor

    producer.send(TOPIC, b"v").result(20)
    old = status_of(producer)["pid"]
    visitor.ask(producer._place, "stop")

    # Nothing is pending, so only an append can find out. One that comes behind the last look of
    # the sender, before its end, is told that it was not sent.
    missed = 0
    for _ in range(20):
        error = producer.send(TOPIC, b"v").exception(20)
        assert error is None or isinstance(error, mpproducer.NotWritten), error
        missed += error is not None
        time.sleep(0.01)
    assert status_of(producer)["pid"] != old
    assert missed <= 1
    assert len(broker.records(TOPIC)) == 21 - missed
