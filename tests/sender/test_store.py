"""Shared memory as the loop sees it, over a scripted pool."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from mpproducer._core import native
from mpproducer.config import Config
from mpproducer.sender import actions as a
from mpproducer.sender.batch import ProducerBatch
from mpproducer.sender.counters import Counters
from mpproducer.sender.partition import Partition
from mpproducer.sender.store import Store
from mpproducer.wire import compression, record_batch
from mpproducer.wire.record_batch import Record


class Corrupt(Exception):
    """What the pool raises for bytes that no append leaves."""


class Pool:
    """The pool's answers, set by the test."""

    def __init__(self) -> None:
        self.announced: list[tuple[int, int, int, bool, int]] = []
        self.linked: list[tuple[int, int, int, bool, int]] = []  # and not announced
        self.unborn = self.looks = 0
        self.words: dict[int, tuple[bool, int]] = {}  # slot -> sealed, records
        self.alive = True
        self.spans: dict[int, list[tuple[int, int]]] = {}
        self.corrupt: set[int] = set()
        self.streams: dict[int, tuple[str, int, list[tuple[int, int]]]] = {}
        self.released: list[int] = []
        self.can_free = True
        self.arena = bytearray(1 << 20)

    def collect(
        self, everything: bool, /
    ) -> tuple[list[tuple[int, int, int, bool, int]], int, int]:
        found = [*self.announced, *(self.linked if everything else [])]
        self.announced.clear()
        return found, self.unborn, self.looks

    def freeze(self, slots: list[int], room: int, /) -> list[Any]:
        found: list[Any] = []
        for slot in slots:
            if found and room <= 0:
                break
            records = self.words[slot][1]
            spans = self.spans.get(slot, [])
            size = sum(length for _, length in spans)
            if not records and self.alive:
                found.append(None)
                continue
            self.words[slot] = (True, records)
            room -= size
            corrupt = slot in self.corrupt
            body = native.Body(memoryview(self.arena), records, 5, 6, spans=spans)
            good = (records, size, 5, 6, (1, 2), body)
            found.append(("bad record", records) if corrupt else good)
        return found

    def release(self, slot: int, /) -> bool:
        self.released.append(slot)
        return self.can_free

    def compressed(self, slot: int, /) -> tuple[str, int, list[tuple[int, int]]]:
        return self.streams.get(slot, ("none", 0, []))

    def take_compression(self, slot: int, /) -> bool:
        return self.streams.get(slot, ("none",))[0] != "done"


class Bench:
    """A store over a scripted pool and a small arena."""

    def __init__(self, codec_name: str = "none") -> None:
        self.pool = Pool()
        self.arena = self.pool.arena
        self.used = 0
        config = Config.from_user(
            None, {"bootstrap_servers": "x:1", "compression_type": codec_name}
        )
        self.woken = 0
        self.store = Store(
            config, self.pool, memoryview(self.arena), Corrupt, Counters(), self._wake
        )

    def _wake(self) -> None:
        self.woken += 1

    def put(self, data: bytes) -> tuple[int, int]:
        """Bytes into the arena; returns their span."""
        place = self.used
        self.arena[place : place + len(data)] = data
        self.used += len(data)
        return place, len(data)

    def sealed(self, slot: int, count: int = 3) -> ProducerBatch:
        """A sealed batch of `count` records."""
        data = b"".join(
            record_batch.encode_record(Record(n, 0, None, b"value" * 40)) for n in range(count)
        )
        self.pool.words[slot] = (False, count)
        self.pool.spans[slot] = [self.put(data[:50]), self.put(data[50:])]
        batch = ProducerBatch(Partition("t", 0, 0, 1), slot, slot, 0, 10)
        event = self.seal(batch)
        assert isinstance(event, a.BatchSealed)
        batch.records, batch.size_bytes = event.records, event.size_bytes
        return batch

    def seal(self, batch: ProducerBatch) -> Any:
        """What freezing one batch comes to."""
        (result,) = self.store.seal(a.Seal([batch])).results
        return result

    def done(self) -> list[Any]:
        """What compression finished, waiting for threads."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            events = self.store.compression_done(time.monotonic_ns())
            if events:
                return events
            time.sleep(0.002)
        raise AssertionError("nothing was compressed")


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def packing() -> Iterator[Bench]:
    made = Bench("gzip")
    yield made
    assert made.store.compressor is not None
    made.store.compressor.close()
    for thread in made.store.compressor._threads:
        thread.join(10)


# --- finding


def test_what_the_pool_finds_is_told_in_its_order(bench: Bench) -> None:
    bench.pool.announced = [(4, 0, 30, True, 50), (4, 2, 31, True, 100), (9, 1, 33, False, 200)]
    assert bench.store.collect() == [
        a.BatchFull(30),
        a.BatchOpened(4, 2, 31, full=True, opened_ns=100),
        a.BatchOpened(9, 1, 33, opened_ns=200),
    ]
    assert bench.store.collect() == []


def test_collect_all_finds_what_nobody_announced(bench: Bench) -> None:
    bench.pool.linked = [(2, 1, 31, False, 7)]
    assert bench.store.collect() == []
    assert bench.store.collect_all() == [a.BatchOpened(2, 1, 31, opened_ns=7)]


def test_a_batch_without_a_record_is_looked_at_again_at_once_and_then_ever_more_seldom(
    bench: Bench,
) -> None:
    bench.pool.unborn = 1
    waits = []
    for looks in range(10):
        bench.pool.looks = looks
        bench.store.collect()
        waits.append(bench.store.look_again_ns())
    assert waits[0] < 100_000
    assert waits == sorted(waits)
    assert waits[-1] == 1_000_000
    bench.pool.unborn = 0
    bench.store.collect()
    assert not bench.store.look_again_ns()
    assert not bench.store.watches_worker()


def test_a_worker_that_never_commits_does_not_keep_the_sender_awake(bench: Bench) -> None:
    bench.pool.unborn, bench.pool.looks = 1, 60
    bench.store.collect()
    assert not bench.store.look_again_ns()
    assert bench.store.watches_worker(), "the loop's regular look finds the record"


# --- freezing


def test_an_empty_batch_of_a_living_worker_is_not_sealed(bench: Bench) -> None:
    bench.pool.words[30] = (False, 0)
    batch = ProducerBatch(Partition("t", 0, 0, 1), 1, 30, 0, 10)
    assert bench.seal(batch) == a.BatchEmpty(batch)
    bench.pool.alive = False
    event = bench.seal(batch)
    assert isinstance(event, a.BatchSealed)
    assert event.records == 0


def test_batches_behind_a_full_room_stay_open(bench: Bench) -> None:
    batches = []
    for slot in (30, 31, 32):
        bench.pool.words[slot] = (False, 1)
        bench.pool.spans[slot] = [bench.put(bytes(100))]
        batches.append(ProducerBatch(Partition("t", 0, 0, slot), 1, slot, 0, 10))
    asked = a.Seal(batches, 150, 7)
    answer = bench.store.seal(asked)
    assert answer.asked is asked
    assert [result.batch for result in answer.results] == batches[:2]
    assert [bench.pool.words[slot][0] for slot in (30, 31, 32)] == [True, True, False]


def test_a_sealed_batch_is_views_of_shared_memory_and_not_a_copy(bench: Bench) -> None:
    batch = bench.sealed(30)
    before = bytes(batch.body.pieces[0])
    bench.arena[0] ^= 0xFF
    assert bytes(batch.body.pieces[0]) != before


def test_bytes_no_append_leaves_are_corrupt_with_the_reason(bench: Bench) -> None:
    bench.pool.words[30] = (False, 3)
    bench.pool.corrupt.add(30)
    batch = ProducerBatch(Partition("t", 0, 0, 1), 1, 30, 0, 10)
    assert bench.seal(batch) == a.BatchCorrupt(batch, "bad record", 3)


def test_after_a_crc_error_only_changed_bytes_are_corrupt(bench: Bench) -> None:
    batch = bench.sealed(30)
    assert bench.store.verify(batch) is None
    bench.arena[60] ^= 1
    event = bench.store.verify(batch)
    assert isinstance(event, a.BatchCorrupt)


def test_A21_a_split_gives_private_parts(bench: Bench) -> None:
    batch = bench.sealed(30, count=10)
    event = bench.store.split(a.Split(batch, 1_000))
    assert isinstance(event, a.SplitDone)
    assert sum(part.records for part in event.parts) == 10
    before = bytes(event.parts[0].body.pieces[0])
    bench.arena[: bench.used] = bytes(bench.used)
    assert bytes(event.parts[0].body.pieces[0]) == before


def test_a_split_of_overwritten_memory_is_corrupt_and_no_crash(bench: Bench) -> None:
    batch = bench.sealed(30, count=10)
    bench.arena[: bench.used] = b"\xff" * bench.used
    event = bench.store.split(a.Split(batch, 1_000))
    assert isinstance(event, a.BatchCorrupt)


# --- compression


def test_a_small_batch_is_compressed_at_once(packing: Bench) -> None:
    batch = packing.sealed(30)
    plain = b"".join(batch.body.pieces)
    event = packing.store.compress(batch, 0)
    assert isinstance(event, a.Compressed)
    stream = b"".join(batch.body.pieces)
    assert event.size_bytes == len(stream)
    assert compression.decompress("gzip", stream, 1 << 20) == plain


def test_a_large_batch_is_compressed_by_a_thread(packing: Bench) -> None:
    batch = packing.sealed(30, count=200)
    plain = b"".join(batch.body.pieces)
    assert packing.store.compress(batch, 0) is None
    (event,) = packing.done()
    assert event.batch is batch
    assert packing.woken
    assert compression.decompress("gzip", b"".join(batch.body.pieces), 1 << 20) == plain


def test_the_stream_a_worker_made_is_taken_as_it_is(packing: Bench) -> None:
    batch = packing.sealed(30)
    packing.pool.streams[30] = ("done", 6, [packing.put(b"stream")])
    event = packing.store.compress(batch, 0)
    assert event == a.Compressed(batch, 6)
    assert b"".join(batch.body.pieces) == b"stream"


def test_a_worker_that_is_at_it_is_waited_for_and_then_overtaken(packing: Bench) -> None:
    store = packing.store
    batch = packing.sealed(30)
    packing.pool.streams[30] = ("busy", 1, [])
    assert store.compress(batch, 1_000) is None
    assert store.look_again_ns()
    assert store.compression_done(2_000) == []
    packing.pool.streams[30] = ("done", 6, [packing.put(b"stream")])
    assert store.compression_done(3_000) == [a.Compressed(batch, 6)]
    slow = packing.sealed(31)
    packing.pool.streams[31] = ("busy", 1, [])
    assert store.compress(slow, 0) is None
    assert store.compression_done(30_000_000) == []
    (event,) = packing.done()
    assert event.batch is slow
    assert not store.look_again_ns()


def test_a_stream_that_is_broken_is_made_anew_and_is_no_crash(
    packing: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, waited_for = packing.sealed(30), packing.sealed(31)
    plain = b"".join(at_once.body.pieces)
    packing.pool.streams[31] = ("busy", 1, [])
    assert packing.store.compress(waited_for, 0) is None

    def broken(_slot: int, /) -> Any:
        raise Corrupt("a chain holds a slot of another batch")

    monkeypatch.setattr(packing.pool, "compressed", broken)
    event = packing.store.compress(at_once, 0)
    assert isinstance(event, a.Compressed)
    assert compression.decompress("gzip", b"".join(at_once.body.pieces), 1 << 20) == plain
    assert packing.store.compression_done(1) == []
    (event,) = packing.done()
    assert event.batch is waited_for


# --- giving back


def test_released_memory_that_a_writer_may_still_touch_is_quarantined(bench: Bench) -> None:
    batch = bench.sealed(30)
    bench.store.release(batch)
    assert (bench.pool.released, bench.store.quarantined) == ([30], False)
    assert batch.body is None
    bench.pool.can_free = False
    bench.store.release(bench.sealed(31))
    assert bench.store.quarantined


def test_a_part_of_a_split_batch_has_no_shared_memory(bench: Bench) -> None:
    part = ProducerBatch(Partition("t", 0, 0, 1), 1, -1, 0, 10, first=5)
    bench.store.release(part)
    assert bench.pool.released == []
