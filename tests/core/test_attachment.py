"""What goes on in an attachment while others wait, compress, detach or are killed half-way."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import mpproducer.producer  # noqa: F401 - configures the core
from mpproducer import errors
from mpproducer._core import native
from mpproducer.sender.actions import Kind
from mpproducer.shm import frames
from mpproducer.worker import completions
from tests.conftest import wait_until
from tests.core.test_append import SLOTS, Host, Record

NS = 1_000_000_000
MOST = bytes(20 * native.SLOT_SIZE)
MORE = bytes(6 * native.SLOT_SIZE)


# MOST does not fill a batch, and has no room for MORE beside it.
BATCH_BYTES = len(MOST) + native.SLOT_SIZE


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    made = [Host(compress=True, batch_size=BATCH_BYTES) for _ in range(2)]
    yield made
    for host in made:
        host.take()
        assert host.pool.free_slots() == host.slots
        host.close()


class Rejoining(native.ProducerBase):
    """Attaches to what it is given, one after the other."""

    def __init__(self, attachments: list[native.Attachment]) -> None:
        self.attachments = attachments
        self._max_block_ns = NS // 5

    def _attach(self, _deadline_ns: int) -> native.Attachment:
        if len(self.attachments) > 1:
            return self.attachments.pop(0)
        return self.attachments[0]


def test_an_attachment_that_was_closed_on_the_way_to_send_is_left_alone(hosts: list[Host]) -> None:
    first, second = hosts
    first.send(Record(b"the topic is known"))
    first.attachment.close()
    producer = Rejoining([first.attachment, second.attachment])
    producer.send("t", b"v")
    producer._attachment = None
    producer.attachments.insert(0, first.attachment)
    producer.send_many("t", [b"w"])
    assert [records for records, *_ in second.take()] == [2]
    never = Rejoining([first.attachment])
    with pytest.raises(errors.SenderStartFailed, match="ended at once"):
        never.send("t", b"v")


def test_a_process_that_only_sends_reads_its_pipe_now_and_then(hosts: list[Host]) -> None:
    """With many batches pending at once; with some after a while: a dead sender is noticed so."""
    host = hosts[0]

    def send(batches: int, *, told: bool = True) -> None:
        futures = []
        for _ in range(batches):
            futures.append(host.send(Record(b"v")))
            assert len(host.take()) == 1
        for future in futures if told else ():
            frame = frames.pack_frame(Kind.ACKED, future.batch_id, 0, 1, base_offset=7)
            os.write(host.writer, frame)

    send(100)
    assert host.attachment.pending() == 100
    send(1)
    assert host.attachment.pending() == 1
    send(20)
    time.sleep(0.06)
    send(1)
    assert host.attachment.pending() == 1
    send(20, told=False)
    assert host.attachment.drain() == 1  # of those before
    os.close(host.writers.pop())
    time.sleep(0.06)
    assert not host.attachment.sender_dead
    last = host.send(Record(b"v"))
    assert host.attachment.sender_dead
    assert isinstance(last.exception(0), errors.SenderDied)


def test_a_thread_that_detaches_during_compression_makes_no_record_too_large(
    hosts: list[Host],
) -> None:
    first, second = hosts
    producer = Rejoining([first.attachment, second.attachment])
    producer.send("t", MOST)
    closed = []

    def compress(_pieces: list[memoryview], _size: int) -> bytes:
        assert first.attachment.busy
        first.attachment.close()  # as another thread would, while the codec runs
        closed.append(first.attachment.closed)
        return b"stream"

    first.attachment.set_compressor(compress)
    future = producer.send("t", MORE)
    assert closed == [True]
    assert not first.attachment.busy
    assert not future.done()
    assert [records for records, *_ in second.take()] == [1]


@pytest.mark.parametrize("many", [{"keys": [None]}, {}])
def test_a_thread_that_detaches_during_compression_leaves_send_many_unharmed(
    many: dict[str, Any],
) -> None:
    host = Host(batch_size=1000, compress=True)
    try:
        host.attachment.set_compressor(lambda _pieces, _size: host.attachment.close() or b"stream")
        runs = host.producer.send_many("t", [bytes(960)], **many)
        assert host.attachment.closed
        assert isinstance(runs.exception(0), errors.Unknown)
        assert [records for records, *_ in host.take()] == [1]
    finally:
        host.close()


def test_memory_granted_to_a_producer_that_was_closed_meanwhile_goes_back(
    hosts: list[Host],
) -> None:
    host, _ = hosts
    host.producer._max_block_ns = 20 * NS
    host.send(Record(MOST))
    raised: list[BaseException] = []

    def send() -> None:
        try:
            host.send(Record(MORE))
        except errors.ClosedError as error:
            raised.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        assert wait_until(lambda: host.pool.waiters() == 1)
        assert host.attachment.busy
        host.producer._closed = 1
        assert len(host.take()) == 1
        assert host.pool.grant() == 1
    finally:
        thread.join(20)
    assert not thread.is_alive()
    assert len(raised) == 1
    assert not host.attachment.busy
    assert host.pool.free_slots() == SLOTS


def test_a_callback_that_sends_from_within_a_wait_for_memory_waits_its_turn(
    hosts: list[Host],
) -> None:
    host, _ = hosts
    host.producer._max_block_ns = 5 * NS
    waiting: list[native.DeliveryFuture] = []
    sent_inside: list[native.DeliveryFuture] = []
    first = host.send(Record(MOST))
    with completions.no_watcher(host.attachment):
        first.add_done_callback(lambda _future: sent_inside.append(host.send(Record(MORE))))
    thread = threading.Thread(target=lambda: waiting.append(host.send(Record(MORE))))
    thread.start()
    try:
        assert wait_until(lambda: host.pool.waiters() == 1)
        frame = frames.pack_frame(Kind.ACKED, first.batch_id, 0, 1, base_offset=7)
        os.write(host.writer, frame)
        # Its callback runs in the thread that waits, which is the only one that reads the pipe.
        assert wait_until(lambda: host.attachment.callbacks == 0)
        assert wait_until(lambda: host.pool.waiters() == 1)
        assert not sent_inside
        assert not waiting
        host.take()
        assert wait_until(lambda: bool(host.pool.grant() or (sent_inside and waiting)))
        assert wait_until(lambda: bool(sent_inside and waiting))
    finally:
        thread.join(20)
    assert not thread.is_alive()
    assert [future.done() for future in (*sent_inside, *waiting)] == [False, False]


def test_of_a_topics_error_that_is_half_written_nothing_is_told() -> None:
    ctl_size, pool_size = native.segment_sizes(4, 4, 1)
    ctl, memory = os.memfd_create("ctl"), os.memfd_create("pool")
    os.ftruncate(ctl, ctl_size)
    os.ftruncate(memory, pool_size)
    pool = native.Pool(
        ctl, memory, 4, 4, 1, batch_size=1000, max_request_size=1000, linger_us=0, generation=1
    )
    pool.topic_error(pool.topic_add("events"), 29, "no access")
    reader, writer = os.pipe()
    with mmap.mmap(ctl, ctl_size) as page:
        lock = page.find(b"events\0") + 256 + 8
        assert struct.unpack_from("<Q", page, lock) == (2 | 29 << 32,)
        attachment = native.Attachment(
            ctl, memory, os.eventfd(0, os.EFD_NONBLOCK), reader, 1, 4, 4, 1
        )
        told = (native.TOPIC_ERROR, 0, 29, "no access")
        assert attachment.topic("events") == told
        struct.pack_into("<I", page, lock, 3)  # the sender was stopped while it wrote
        assert attachment.topic("events") == (native.TOPIC_ERROR, 0, 0, "")
        struct.pack_into("<I", page, lock, 4)
        assert attachment.topic("events") == told
    attachment.close()
    os.close(writer)
    pool.close()


@pytest.mark.parametrize(
    ("told", "why"),
    [((3, 2, 1), "geometry"), ((4, 1, 1), "geometry"), ((0, 0, 0), "geometry"), (None, "layout")],
)
def test_segments_that_are_not_what_was_told_are_refused(
    told: tuple[int, int, int] | None, why: str
) -> None:
    made = (4, 2, 1)
    ctl, pool, wake = os.memfd_create("ctl"), os.memfd_create("pool"), os.eventfd(0)
    reader, writer = os.pipe()
    try:
        for fd, size in zip((ctl, pool), native.segment_sizes(*made), strict=True):
            os.ftruncate(fd, size)
        if told is not None:
            native.Pool(
                ctl, pool, 4, 2, 1, batch_size=9000, max_request_size=9000, linger_us=0,
                generation=1,
            ).close()  # fmt: skip
        slots, partitions, topics = told or made
        with pytest.raises(ValueError, match=why):
            native.Attachment(ctl, pool, wake, reader, 1, slots, partitions, topics)
    finally:
        for fd in (ctl, pool, wake, reader, writer):
            os.close(fd)


def test_a_core_that_was_not_configured_says_so_and_does_not_crash() -> None:
    """Its exceptions and results are made by hooks that `mpproducer.producer` sets."""
    code = (
        "import asyncio\n"
        "from mpproducer._core import native\n"
        "future = native.failed_future('t', ValueError('x'))\n"
        "async def wait():\n"
        "    await future\n"
        "try:\n"
        "    asyncio.run(wait())\n"
        "except TypeError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (0, "'NoneType' object is not callable\n")
