"""The pool of memory as its writers see it: who waits, who is served, and what comes back.

One process is the sender (`Pool`); its writers are attachments of their own, in threads or in
processes that are killed. A batch holds one record, so memory comes back record by record.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mpproducer.producer  # noqa: F401 - configures the core
from mpproducer import errors
from mpproducer._core import native
from tests.conftest import wait_until
from tests.core.test_append import frozen, opened

NS = 1_000_000_000
SLOTS = 24
SLOT = native.SLOT_SIZE
WRITERS = 8


class Memory:
    """A pool with a topic of one partition per writer, every record in a batch of its own."""

    def __init__(self, slots: int = SLOTS) -> None:
        self.slots = slots
        ctl_size, pool_size = native.segment_sizes(slots, WRITERS, 1)
        self.ctl, self.memory = os.memfd_create("ctl"), os.memfd_create("pool")
        self.wake = os.eventfd(0, os.EFD_NONBLOCK)
        os.ftruncate(self.ctl, ctl_size)
        os.ftruncate(self.memory, pool_size)
        self.pool = native.Pool(
            self.ctl, self.memory, slots, WRITERS, 1, batch_size=1, max_request_size=1 << 22,
            linger_us=1000, generation=1,
        )  # fmt: skip
        for owner in range(1, WRITERS + 1):
            self.pool.owner_alive(owner, True)
        self.pool.topic_ready(self.pool.topic_add("t"), WRITERS)
        self.open: list[tuple[Any, int]] = []
        self.kept: list[int] = []

    def writer(self, owner: int, max_block_s: float = 20.0) -> Writer:
        ctl, memory, wake = (os.dup(fd) for fd in (self.ctl, self.memory, self.wake))
        reader, writer = os.pipe()
        attachment = native.Attachment(ctl, memory, wake, reader, owner, self.slots, WRITERS, 1)
        self.open.append((attachment, writer))
        return Writer(attachment, owner, max_block_s)

    def found(self) -> list[int]:
        """Head slots of all batches that are not given back, oldest first; sealed."""
        for _, slot, _ in opened(self.pool):
            frozen(self.pool, slot)
            self.kept.append(slot)
        return self.kept

    def give_back(self, batches: int = 1) -> None:
        """Release the oldest batches, and serve who waits."""
        self.found()
        for _ in range(batches):
            assert self.pool.release(self.kept.pop(0))
        self.pool.grant()

    def fill(self) -> None:
        """Records of one slot each until nothing is free."""
        writer = self.writer(WRITERS, 0)
        while self.pool.free_slots():
            assert not writer.send(1).done()
        self.found()

    def close(self) -> None:
        for attachment, pipe in self.open:
            attachment.close()
            os.close(pipe)
        self.pool.close()
        for fd in (self.ctl, self.memory, self.wake):
            os.close(fd)


class Writer:
    """One writer and its producer; a record of `units` slots goes to a partition of its own."""

    def __init__(self, attachment: native.Attachment, owner: int, max_block_s: float) -> None:
        class Producer(native.ProducerBase):
            pass

        self.attachment = attachment
        self.partition = owner - 1
        self.producer = Producer()
        self.producer._attachment = attachment
        self.producer._max_block_ns = int(max_block_s * NS)
        self.result: Any = None
        self.took_s = 0.0
        self.thread: threading.Thread | None = None

    def send(self, units: int) -> native.DeliveryFuture:
        value = bytes(units * SLOT - 200)
        return self.producer.send("t", value, partition=self.partition)

    def start(self, units: int) -> None:
        """Send in a thread of its own; the future or the exception comes into `result`."""

        def run() -> None:
            began = time.monotonic()
            try:
                self.result = self.send(units)
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                self.result = error
            self.took_s = time.monotonic() - began

        self.thread = threading.Thread(target=run)
        self.thread.start()

    @property
    def waits(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def join(self) -> Any:
        assert self.thread is not None
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.result


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory()
    yield made
    made.close()


def served(writer: Writer) -> bool:
    return isinstance(writer.join(), native.DeliveryFuture) and not writer.result.done()


def waiting(memory: Memory, *writers: tuple[Writer, int]) -> None:
    """Start the writers one after the other, so that their tickets are in this order."""
    for count, (writer, units) in enumerate(writers, memory.pool.waiters() + 1):
        writer.start(units)
        assert wait_until(lambda c=count: memory.pool.waiters() == c)  # type: ignore[misc]


def test_B1_memory_is_accounted_slot_by_slot_whatever_the_size(memory: Memory) -> None:
    writer = memory.writer(1, 0)
    free, sizes = SLOTS, [1, 3, 1, 7, 2]
    for units in sizes:
        assert not writer.send(units).done()
        free -= units
        assert memory.pool.free_slots() == free
    assert isinstance(writer.send(free + 1).exception(0), errors.BufferFull)
    assert memory.pool.free_slots() == free
    for units in sizes:
        memory.give_back()
        free += units
        assert memory.pool.free_slots() == free
    assert free == SLOTS
    assert not writer.send(SLOTS).done()  # in one piece, wherever the pieces were
    assert memory.pool.free_slots() == 0
    memory.give_back()


def test_B2_a_record_larger_than_the_whole_memory_never_waits(memory: Memory) -> None:
    writer = memory.writer(1, 1e9)
    began = time.monotonic()
    error = writer.send(SLOTS + 1).exception(0)
    assert isinstance(error, errors.RecordTooLarge)
    assert f"buffer_memory={SLOTS * SLOT}" in str(error)
    assert time.monotonic() - began < 5
    assert memory.pool.waiters() == 0
    assert memory.pool.free_slots() == SLOTS


def test_B3_a_writer_that_waits_gets_its_memory_when_another_ones_comes_back(
    memory: Memory,
) -> None:
    memory.fill()
    writer = memory.writer(1)
    waiting(memory, (writer, 2))
    memory.give_back()
    time.sleep(0.05)
    assert writer.waits
    memory.give_back()
    assert served(writer)
    assert memory.pool.free_slots() == 0
    memory.give_back(SLOTS - 1)
    assert memory.pool.free_slots() == SLOTS


def test_B5_B6_a_wait_that_gets_part_of_its_memory_ends_at_its_deadline_and_leaves_the_part(
    memory: Memory,
) -> None:
    """Neither what is put by for it nor signals to its thread move the deadline."""
    memory.fill()
    writer = memory.writer(1, 0.8)
    other = memory.writer(2, 0)
    woken: list[int] = []

    def free_slowly() -> None:
        assert wait_until(lambda: memory.pool.waiters() == 1)
        for _ in range(5):
            memory.give_back()
            time.sleep(0.1)
        assert memory.pool.waiters() == 1
        assert memory.pool.free_slots() == 0  # put by for the one that waits
        assert isinstance(other.send(1).exception(0), errors.BufferFull)

    thread = threading.Thread(target=free_slowly)
    before = signal.signal(signal.SIGALRM, lambda *_: woken.append(1))
    thread.start()
    signal.setitimer(signal.ITIMER_REAL, 0.03, 0.03)
    began = time.monotonic()
    try:
        error = writer.send(6).exception(0)
        took_s = time.monotonic() - began
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        thread.join(20)
    assert isinstance(error, errors.BufferFull)
    assert len(woken) > 5
    assert 0.79 <= took_s < 1.5
    # The sender hears of it and gives the part back; others can have it at once.
    assert memory.pool.waiters() == 0
    assert memory.pool.free_slots() == 5
    assert not other.send(5).done()
    memory.give_back(SLOTS - 4)
    assert memory.pool.free_slots() == SLOTS


def test_B8_a_large_request_is_served_before_the_small_ones_behind_it(memory: Memory) -> None:
    memory.fill()
    large, *small = (memory.writer(owner) for owner in (1, 2, 3))
    waiting(memory, (large, 6), (small[0], 1), (small[1], 1))
    for _ in range(5):
        memory.give_back()
    # A newcomer does not pass them, although slots came back.
    assert isinstance(memory.writer(4, 0).send(1).exception(0), errors.BufferFull)
    time.sleep(0.05)
    assert large.waits
    assert all(writer.waits for writer in small)
    memory.give_back()
    assert served(large)
    assert all(writer.waits for writer in small)
    for writer in small:
        memory.give_back()
        assert served(writer)
    memory.give_back(len(memory.found()))
    assert memory.pool.free_slots() == SLOTS


@pytest.mark.parametrize("victim", ["head", "middle", "last"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_X2_B7_a_process_killed_while_it_waits_leaves_no_waiter_and_no_lost_memory(
    memory: Memory, victim: str
) -> None:
    """Also when part of its memory was put by for it. The others are served in their order."""
    memory.fill()
    pids: list[int] = []
    ended: list[int] = []
    try:
        for owner in (1, 2, 3):
            pid = os.fork()
            if pid == 0:
                os._exit(_child(memory, owner))
            pids.append(pid)
            assert wait_until(lambda: memory.pool.waiters() == len(pids))
        for _ in range(2):
            memory.give_back()  # of the three that each wants: put by for the head
        dead = ["head", "middle", "last"].index(victim)
        os.kill(pids[dead], signal.SIGKILL)
        os.waitpid(pids[dead], 0)
        ended.append(pids[dead])
        memory.pool.owner_alive(dead + 1, False)
        memory.pool.reap(dead + 1)
        assert memory.pool.waiters() == 2
        left = [pid for place, pid in enumerate(pids) if place != dead]
        memory.give_back(0)
        for place, pid in enumerate(left):
            # The first needs one slot beyond the two that came back, the second three.
            for _ in range(1 if place == 0 else 3):
                assert os.waitpid(pid, os.WNOHANG) == (0, 0)
                memory.give_back()
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            ended.append(pid)
        assert memory.pool.waiters() == 0
        memory.give_back(len(memory.found()))
        assert memory.pool.free_slots() == SLOTS
        assert memory.pool.owner_reusable(dead + 1)
    finally:
        for pid in pids:
            if pid not in ended:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _child(memory: Memory, owner: int) -> int:
    return 0 if not memory.writer(owner).send(3).done() else 1


def test_B9_random_sizes_from_many_threads_all_return_and_all_memory_comes_back(
    memory: Memory, rng: random.Random
) -> None:
    writers = [memory.writer(owner) for owner in range(1, WRITERS + 1)]
    seeds = [rng.getrandbits(32) for _ in writers]
    returned: list[int] = []
    failed: list[BaseException] = []

    def hammer(writer: Writer, own_seed: int) -> None:
        own = random.Random(own_seed)
        try:
            for _ in range(150):
                assert not writer.send(own.choice((1, 1, 1, 2, 3, 9, SLOTS))).done()
                returned.append(1)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            failed.append(error)

    threads = [
        threading.Thread(target=hammer, args=pair) for pair in zip(writers, seeds, strict=True)
    ]
    for thread in threads:
        thread.start()
    granted = 0
    until = time.monotonic() + 60
    while any(thread.is_alive() for thread in threads) and time.monotonic() < until:
        memory.found()
        while memory.kept:
            assert memory.pool.release(memory.kept.pop(rng.randrange(len(memory.kept))))
        memory.pool.waiters()
        granted += memory.pool.grant()
        time.sleep(0)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not failed
    assert len(returned) == 150 * WRITERS
    assert granted > 100
    memory.give_back(len(memory.found()))
    assert memory.pool.waiters() == 0
    assert memory.pool.free_slots() == SLOTS


@pytest.mark.parametrize("gib", [3, 5])
def test_B10_memory_beyond_2_and_4_GiB_is_accounted_and_written_where_it_is(gib: int) -> None:
    """The segment is sparse: only what is looked at takes memory."""
    slots = gib * (1 << 30) // SLOT
    memory = Memory(slots)
    try:
        writer = memory.writer(1, 0)
        assert memory.pool.free_slots() == slots
        with mmap.mmap(memory.memory, 4096) as page:  # the cursor: the 64 slots it looks at first
            struct.pack_into("<Q", page, 128, (slots - 1) // 64)
        value = random.Random(gib).randbytes(65 * SLOT)
        assert not writer.producer.send("t", value, partition=0).done()
        assert memory.pool.free_slots() == slots - 66  # the last 64, and round the corner
        ((_, slot, _),) = opened(memory.pool)
        assert slot == slots - 64
        body = frozen(memory.pool, slot)[-1]
        pieces = body.pieces
        assert value in b"".join(pieces)
        assert body.unchanged()
        payload: Any = memory.pool
        with memoryview(payload) as view:
            assert view[(slots - 64) * SLOT :] == pieces[0]
            assert view[: len(pieces[1])] == pieces[1]
        assert len(pieces) == 2
        del body, pieces
        assert memory.pool.release(slot)
        assert memory.pool.free_slots() == slots
    finally:
        memory.close()


def closed_by_sender(memory: Memory, _writers: list[Writer]) -> None:
    memory.pool.close_region()


def closed_by_detaching(_memory: Memory, writers: list[Writer]) -> None:
    for writer in writers:
        writer.attachment.close()


def closed_by_its_producer(_memory: Memory, writers: list[Writer]) -> None:
    for writer in writers:
        writer.producer._closed = 1


@pytest.mark.parametrize(
    ("close", "expected"),
    [
        (closed_by_sender, errors.NotSent),
        (closed_by_detaching, errors.ClosedError),
        (closed_by_its_producer, errors.ClosedError),
    ],
)
def test_B12_closing_wakes_every_waiter_with_an_error_and_what_is_out_still_comes_back(
    memory: Memory, close: Callable[[Memory, list[Writer]], None], expected: type[Exception]
) -> None:
    memory.fill()
    writers = [memory.writer(owner, 3.0) for owner in (1, 2, 3)]
    for writer in writers:
        attach = lambda _deadline, w=writer: _raise(w)  # noqa: E731
        type(writer.producer)._attach = attach  # type: ignore[method-assign]
    waiting(memory, *((writer, 2) for writer in writers))
    close(memory, writers)
    for writer in writers:
        result = writer.join()
        error = result.exception(0) if isinstance(result, native.DeliveryFuture) else result
        assert isinstance(error, expected)
        # Woken at once; a sender that closes its region is then waited for until it has ended.
        assert writer.took_s < 3.5 if expected is errors.NotSent else writer.took_s < 2.0
    assert memory.pool.waiters() == 0
    late = memory.writer(4, 0.0)
    if close is closed_by_sender:
        assert isinstance(late.send(1).exception(0), errors.NotSent)
    memory.give_back(SLOTS)
    assert memory.pool.free_slots() == SLOTS


def _raise(_writer: Writer) -> native.Attachment:
    raise errors.ClosedError("detached")
