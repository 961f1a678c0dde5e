"""Completions over pipes: one write per worker and turn, never blocked, nothing lost (X4, X5)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from mpproducer.reason import Reason
from mpproducer.sender import actions as a
from mpproducer.sender.batch import ProducerBatch
from mpproducer.sender.counters import Counters
from mpproducer.sender.partition import Partition
from mpproducer.sender.workers import Worker, Workers
from mpproducer.shm import frames

Join = Callable[[int], tuple[Worker, int]]


@pytest.fixture
def table() -> Workers:
    return Workers(Counters(), 5)


@pytest.fixture
def join(table: Workers) -> Iterator[Join]:
    """Attach a worker; returns it and the reading end of its pipe."""
    made: list[tuple[Worker, int]] = []

    def attach(owner: int) -> tuple[Worker, int]:
        ours, theirs = socket.socketpair()
        theirs.close()
        worker = Worker(owner, os.getpid(), os.pidfd_open(os.getpid()), ours)
        reader = worker.open_pipe()
        table.add(worker)
        made.append((worker, reader))
        return worker, reader

    yield attach
    for worker, reader in made:
        worker.close()
        os.close(reader)


def _batch(participants: tuple[int, ...], seq: int = 3) -> ProducerBatch:
    batch = ProducerBatch(Partition("t", 0, 0, 7), seq, 1, 0, 10)
    batch.records = 4
    batch.participants = participants
    return batch


def _acked(batch: ProducerBatch, *, more: bool = False) -> a.Complete:
    outcome = a.Outcome(a.Kind.ACKED, 0, Reason.NONE, "", 0, 4, 100, -1)
    return a.Complete(batch, (outcome,), more)


def _frames(reader: int) -> list[tuple[int, ...]]:
    """(kind, batch id, first, count) of the frames in a pipe."""
    try:
        data = os.read(reader, 1 << 20)
    except BlockingIOError:
        return []
    return _parse(data)


def _parse(data: bytes) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    while data:
        size, kind, _, batch_id, first, count, *_ = frames.HEADER.unpack_from(data)
        found.append((kind, batch_id, first, count))
        data = data[size:]
    return found


def test_X5_every_participant_gets_the_frames_of_a_batch_once(table: Workers, join: Join) -> None:
    _, first = join(1)
    _, second = join(2)
    _, third = join(3)
    batch = _batch((1, 3))
    table.complete(_acked(batch))
    assert _frames(first) == [], "not before the end of the turn"
    assert table.flush() == []
    frame = (int(frames.Kind.ACKED), batch.batch_id, 0, 4)
    assert [_frames(r) for r in (first, second, third)] == [[frame], [], [frame]]
    assert table.flush() == []
    assert _frames(first) == []


def test_frames_of_one_turn_come_in_order_and_in_one_write(table: Workers, join: Join) -> None:
    _, reader = join(1)
    for seq in (5, 6, 7):
        table.complete(_acked(_batch((1,), seq)))
    table.flush()
    assert [found[1] & 0xFF for found in _frames(reader)] == [5, 6, 7]


def test_all_frames_of_a_batch_but_the_last_say_that_more_follow(
    table: Workers, join: Join
) -> None:
    _, reader = join(1)
    outcomes = tuple(
        a.Outcome(a.Kind.NOT_WRITTEN, 87, Reason.REJECTED, "no", first, 2) for first in (0, 2)
    )
    table.complete(a.Complete(_batch((1,)), outcomes))
    table.complete(a.Complete(_batch((1,)), outcomes[:1], more=True))
    table.flush()
    assert [bool(kind & frames.MORE) for kind, *_ in _frames(reader)] == [True, False, True]


def test_a_participant_that_is_gone_is_counted_and_harms_nobody(table: Workers, join: Join) -> None:
    worker, _ = join(1)
    _, reader = join(2)
    worker.left = True
    table.complete(_acked(_batch((1, 2, 5))))
    table.flush()
    assert len(_frames(reader)) == 1
    assert table._counters.completion_frame_orphaned_total == 2
    assert table._counters.completion_frame_total == 1


def test_X4_a_worker_that_does_not_read_is_written_to_later_and_nothing_is_lost(
    table: Workers, join: Join
) -> None:
    worker, reader = join(1)
    count = 20_000
    for seq in range(count):
        table.complete(_acked(_batch((1,), seq)))
    assert table.flush() == [worker]
    assert table.backlog_bytes() > 0
    data = b""
    while table.backlog_bytes():
        data += os.read(reader, 1 << 20)
        worker.flush(table._counters)
    data += os.read(reader, 1 << 20)
    seen = [batch_id & 0xFFFFF for _, batch_id, *_ in _parse(data)]
    assert seen == list(range(count))
    assert table.backlog_bytes() == 0


def test_X4_a_frame_that_finds_the_pipe_full_waits_whole_and_in_its_place(
    table: Workers, join: Join
) -> None:
    worker, reader = join(1)
    filler = bytes(4096)
    count = 0
    with pytest.raises(BlockingIOError):
        while True:
            count += os.write(worker.pipe, filler)
    for seq in (5, 6):
        table.complete(_acked(_batch((1,), seq)))
        assert table.flush() == [worker], "nothing of it was taken"
    assert table.backlog_bytes() == 2 * frames.HEADER.size
    while count:
        count -= len(os.read(reader, count))
    assert worker.flush(table._counters)
    assert table.backlog_bytes() == 0
    assert [found[1] & 0xFF for found in _frames(reader)] == [5, 6]


def test_X4_a_backlog_over_its_cap_closes_the_pipe_which_the_worker_cannot_miss(
    table: Workers, join: Join
) -> None:
    worker, reader = join(1)
    worker.backlog_most_bytes = 100_000
    for seq in range(20_000):
        table.complete(_acked(_batch((1,), seq)))
    assert table.flush() == []
    assert worker.pipe == -1
    assert table._counters.completion_overflow_total == 1
    data = b"".join(iter(lambda: os.read(reader, 1 << 16), b""))
    assert data, "what was in the pipe can still be read, then comes the end"
    table.complete(_acked(_batch((1,))))
    assert table.flush() == []
    assert worker.fresh == []


def test_a_closed_reading_end_is_no_error(table: Workers, join: Join) -> None:
    worker, reader = join(1)
    other = os.dup(reader)
    os.close(other)
    os.dup2(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), reader)
    table.complete(_acked(_batch((1,))))
    assert table.flush() == []
    assert worker.pipe == -1


def test_owner_ids_go_round_and_are_not_given_twice(table: Workers, join: Join) -> None:
    taken = []
    for _ in range(5):
        owner = table.free_owner()
        join(owner)
        taken.append(owner)
    assert sorted(taken) == [1, 2, 3, 4, 5]
    assert table.free_owner() == 0
    gone = table.by_owner[2]
    table.remove(gone)
    assert table.free_owner() == 0, "a slot may still carry it"
    del table.retired[2]
    assert table.free_owner() == 2
    assert table._counters.workers == 4
