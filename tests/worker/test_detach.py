"""Detaching while other threads of the process act, and from a sender that has given one up."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mpproducer
from mpproducer.testing import Broker
from mpproducer.worker import attach
from tests.conftest import senders, wait_until
from tests.worker.test_attach import TOPIC, make

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def producer(broker: Broker) -> Iterator[mpproducer.Producer]:
    broker.create_topic(TOPIC)
    with make(broker) as producer:
        yield producer


def fill_batches(producer: mpproducer.Producer, inside: threading.Event) -> None:
    """Whoever fills a batch compresses it, in its own call, unless the sender was faster."""
    while not inside.is_set():
        producer.send_many(TOPIC, [bytes(900)] * 30)


def test_detaching_waits_for_a_thread_that_compresses_before_it_says_bye(
    broker: Broker, runtime_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker.create_topic(TOPIC)
    producer = make(broker, compression_type="gzip", batch_size=20_000)
    producer.attach()
    link = attach.find(producer._place)
    assert link is not None
    inside = threading.Event()
    seen: list[tuple[bool, bool]] = []

    def compress(pieces: list[memoryview], _size: int) -> bytes:
        inside.set()
        assert wait_until(lambda: link.attachment.closed)
        time.sleep(0.05)
        assert sum(len(bytes(piece)) for piece in pieces) > 0  # it is mapped still
        seen.append((link.attachment.busy, link.sock.fileno() >= 0))
        return b"too late for any use"

    link.attachment.set_compressor(compress)
    thread = threading.Thread(target=fill_batches, args=(producer, inside))
    thread.start()
    assert inside.wait(20)
    attach.detach(link)
    assert seen == [(True, True)]
    assert not link.attachment.busy
    assert link.sock.fileno() == -1
    assert "detached while another" not in caplog.text
    thread.join(20)
    assert not thread.is_alive()
    producer.close()
    assert wait_until(lambda: not senders(runtime_dir))  # it has heard the bye
    assert len(broker.records(TOPIC)) % 30 == 0


def test_who_detaches_in_the_midst_of_a_long_compression_is_retired_by_its_death_alone(
    producer: mpproducer.Producer, broker: Broker, status_of: Callable[[Any], dict[str, Any]]
) -> None:
    config = {"compression_type": "gzip", "batch_size": 20_000}
    ours = make(broker, **config)
    ours.send(TOPIC, b"v").result(20)
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            theirs = make(broker, **config)
            theirs.attach()
            link = attach.find(theirs._place)
            assert link is not None
            inside = threading.Event()

            def compress(_pieces: list[memoryview], _size: int) -> bytes:
                inside.set()
                time.sleep(60)
                return b""

            link.attachment.set_compressor(compress)
            threading.Thread(target=fill_batches, args=(theirs, inside), daemon=True).start()
            assert inside.wait(20)
            attach.detach(link)
            assert link.attachment.busy
            assert link.sock.fileno() == -1
            os.write(ready_write, b"left")
            time.sleep(60)
        except BaseException as error:  # noqa: BLE001 - told to the parent
            os.write(ready_write, repr(error).encode())
        os._exit(1)
    try:
        os.close(ready_write)
        assert os.read(ready_read, 1000) == b"left"
        ours.flush(20)
        status = status_of(ours)
        assert sorted(status["workers"]) == sorted([os.getpid(), child])
        assert status["counters"]["worker-left-total"] == 0
        assert wait_until(lambda: len(broker.records(TOPIC)) > 1)  # delivered all the same
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready_read)
    assert wait_until(lambda: status_of(ours)["workers"] == [os.getpid()])
    assert status_of(ours)["counters"]["worker-died-total"] == 1
    assert wait_until(lambda: status_of(ours)["counters"]["batches-quarantined"] == 0)
    ours.close()


def test_a_link_that_another_thread_detaches_before_it_is_used_is_replaced(
    producer: mpproducer.Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = attach.attach
    detached: list[attach.Link] = []

    def racing(*args: Any) -> attach.Link:
        link = real(*args)
        if not detached:
            detached.append(link)
            attach.detach(link)  # as the last other handle's close() does
        return link

    monkeypatch.setattr(attach, "attach", racing)
    assert producer.send(TOPIC, b"v").result(20).offset == 0
    link = attach.find(producer._place)
    assert link is not None
    assert link is not detached[0]
    assert [handle() for handle in link.handles] == [producer]


def test_a_worker_whose_completions_are_damaged_attaches_anew_and_leaves_its_old_place(
    producer: mpproducer.Producer, status_of: Callable[[Any], dict[str, Any]]
) -> None:
    producer.send(TOPIC, b"v").result(20)
    link = attach.find(producer._place)
    assert link is not None
    pipe = os.open(f"/proc/self/fd/{link.attachment.fileno()}", os.O_WRONLY)
    os.write(pipe, b"\xff" * 64)
    os.close(pipe)
    link.attachment.drain()
    assert link.attachment.sender_dead
    producer.send(TOPIC, b"v").result(20)
    assert attach.find(producer._place) is not link
    assert wait_until(lambda: status_of(producer)["workers"] == [os.getpid()])
    assert status_of(producer)["counters"]["worker-left-total"] == 1


def test_a_send_that_finds_its_link_gone_but_not_closed_waits_without_spinning(
    broker: Broker,
) -> None:
    """Another thread detaches, and is held up by a callback on its way."""
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, max_block_ms=400, sender_idle_ms=0
    ) as producer:
        producer.attach(10)
        links = dict(attach._table.links)
        attach._table.links.clear()
        spent_s: list[float] = []
        errors: list[BaseException | None] = []

        def send() -> None:
            before = time.thread_time()
            errors.append(producer.send("unheard-of", b"v").exception(0))
            spent_s.append(time.thread_time() - before)

        thread = threading.Thread(target=send)
        began = time.monotonic()
        thread.start()
        thread.join(20)
        took_s = time.monotonic() - began
        attach._table.links.update(links)
        assert isinstance(errors[0], mpproducer.NotWritten)
        assert "detaches" in str(errors[0])
        assert took_s >= 0.39
        assert spent_s[0] < took_s / 2
