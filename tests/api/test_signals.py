"""Signal handlers that use the producer while their own thread is inside of it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import mpproducer
from mpproducer.sender.actions import Kind
from mpproducer.shm import frames
from mpproducer.testing import Broker
from tests.conftest import senders, wait_until
from tests.core.test_append import Host, Record

NS = 1_000_000_000
MOST = bytes(20 * 16_384)
MORE = bytes(6 * 16_384)
TOPIC = "events"


@contextmanager
def handling(handler: Callable[[], object]) -> Iterator[None]:
    """SIGUSR1 runs the handler in this, the main, thread."""
    before = signal.signal(signal.SIGUSR1, lambda _number, _frame: handler())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_handler_that_sends_within_a_wait_for_memory_of_its_own_thread_is_served() -> None:
    """It takes the wait over; the interrupted one waits anew, and both get their memory."""
    host = Host()
    host.producer._max_block_ns = 10 * NS
    inside: list[Any] = []
    steps: list[bool] = []

    def drive() -> None:
        steps.append(wait_until(lambda: host.pool.waiters() == 1))
        os.kill(os.getpid(), signal.SIGUSR1)
        steps.append(wait_until(lambda: host.attachment.stats()["memory_waits"] == 2))
        host.take()
        steps.append(wait_until(lambda: bool(host.pool.grant())))
        steps.append(wait_until(lambda: host.attachment.stats()["records"] == 3))

    try:
        host.send(Record(MOST))
        thread = threading.Thread(target=drive)
        thread.start()
        began = time.monotonic()
        with handling(lambda: inside.append(host.send(Record(MORE)))):
            outer = host.send(Record(MORE))
        took_s = time.monotonic() - began
        thread.join(20)
        assert steps == [True] * 4
        assert len(inside) == 1
        assert not inside[0].done()  # in shared memory both: neither ran into its deadline
        assert not outer.done()
        assert took_s < 9
        assert not host.attachment.busy
        assert sum(records for records, *_ in host.take()) == 2
        assert host.pool.free_slots() == host.slots
    finally:
        host.close()


def test_B7_C8_a_handler_that_raises_within_a_wait_for_memory_leaves_no_waiter() -> None:
    host = Host()
    host.producer._max_block_ns = 30 * NS

    def interrupt() -> None:
        raise KeyboardInterrupt

    def drive() -> None:
        wait_until(lambda: host.pool.waiters() == 1)
        os.kill(os.getpid(), signal.SIGUSR1)

    try:
        host.send(Record(MOST))
        thread = threading.Thread(target=drive)
        thread.start()
        with handling(interrupt), pytest.raises(KeyboardInterrupt):
            host.send(Record(MORE))
        thread.join(20)
        assert host.pool.waiters() == 0
        assert not host.attachment.busy
        assert len(host.take()) == 1
        assert host.pool.free_slots() == host.slots
        host.producer._max_block_ns = 0
        assert not host.send(Record(MORE)).done()  # the next one needs no wait
        host.take()
    finally:
        host.close()


@pytest.mark.parametrize("place", ["polls", "queues"])
def test_a_handler_that_waits_for_a_future_within_a_wait_of_its_own_thread_gets_it(
    place: str,
) -> None:
    """The interrupted wait holds no lock while the handler runs, whether it polls the pipe itself
    or queues behind a thread that does."""
    host = Host()
    told: list[object] = []
    other: list[threading.Thread] = []

    def handler() -> None:
        told.append(second.result(15).offset)

    def drive() -> None:
        time.sleep(0.1)
        if place == "queues":
            other.append(threading.Thread(target=lambda: third.exception(15)))
            other[0].start()
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.2)
        os.write(host.writer, frames.pack_frame(Kind.ACKED, batch, 0, 3, base_offset=7))

    try:
        first, second, third = (host.send(Record(b"%d" % n)) for n in range(3))
        batch = first.batch_id
        thread = threading.Thread(target=drive)
        if place == "queues":
            leader = threading.Thread(target=lambda: third.exception(15))
            leader.start()
            time.sleep(0.05)
        with handling(handler):
            thread.start()
            assert first.result(15).offset == 7
            thread.join(20)
        assert told == [8]
        for waiting in [*other, *([leader] if place == "queues" else [])]:
            waiting.join(20)
            assert not waiting.is_alive()
        host.take()
    finally:
        host.close()


def test_C8_an_interrupt_in_close_leaves_the_process_detached(
    broker: Broker, runtime_dir: Path
) -> None:
    """What it waited for stays in delivery, and the sender ends after that."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    producer = mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, linger_ms=0, sender_idle_ms=0
    )
    producer.send(TOPIC, b"0").result(20)
    held = broker.on("Produce", times=1).delay(4.0)
    future = producer.send(TOPIC, b"1")
    assert wait_until(lambda: held.hits == 1)
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    with handling(interrupt):
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            producer.close()
    assert time.monotonic() - began < 3.5
    timer.join(10)
    assert isinstance(future.exception(0), mpproducer.errors.Unknown)
    with pytest.raises(mpproducer.ClosedError):
        producer.send(TOPIC, b"2")
    producer.close()  # idempotent, whatever the first one came to
    assert producer.metrics() == {}
    assert wait_until(lambda: not senders(runtime_dir))
    assert [record.value for record in broker.records(TOPIC)] == [b"0", b"1"]
