"""What the sender hears of batches: each is opened once, with its first record, and full once.

The pools are real, and so are the workers' records. A worker that was stopped between two of its
steps is played by writing what it would have left into the words of the batch.
"""

from __future__ import annotations

import functools
import mmap
import os
import random
import select
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

import mpproducer.producer  # noqa: F401 - configures the core
from mpproducer._core import native
from tests.core.words import (
    COMMITTED,
    OWNER,
    OWNER_SHIFT,
    RECORDS_SHIFT,
    SEAL,
    SEQ_BITS,
    find_word,
    heads_batch,
)

PARTITIONS = 70  # more than a word of the dirty set has bits
SLOTS = 64
WORKER = 1  # its owner id
HEADER_BYTES = 256  # of a slot
Found = tuple[int, int, int, bool]  # partition index, batch_seq or 0, head slot, full


class Head(NamedTuple):
    """A batch as its words in memory say."""

    seq: int
    slot: int
    partition: int
    sealed: bool
    owner: int
    records: int


class Twin:
    """A pool and one worker attached to it; its memory can be written to."""

    def __init__(self) -> None:
        sizes = native.segment_sizes(SLOTS, PARTITIONS, 1)
        self.ctl, self.memory = os.memfd_create("ctl"), os.memfd_create("pool")
        for fd, size in zip((self.ctl, self.memory), sizes, strict=True):
            os.ftruncate(fd, size)
        self.pool = native.Pool(
            self.ctl, self.memory, SLOTS, PARTITIONS, 1, batch_size=400,
            max_request_size=1 << 22, linger_us=1000, generation=1,
        )  # fmt: skip
        self.pool.owner_alive(WORKER, True)
        self.pool.topic_ready(self.pool.topic_add("t"), PARTITIONS)
        reader, self.writer = os.pipe()
        self.attachment = native.Attachment(
            os.dup(self.ctl), os.dup(self.memory), os.eventfd(0), reader, WORKER, SLOTS,
            PARTITIONS, 1,
        )  # fmt: skip
        self.producer = native.ProducerBase()
        self.producer._attachment = self.attachment
        self.producer._max_block_ns = 0
        self.words = mmap.mmap(self.memory, sizes[1])

    def send(self, partition: int, size: int = 1) -> None:
        self.producer.send("t", bytes(size), None, None, partition, 1)

    def look(self, everything: bool = False) -> list[Found]:
        return [found[:4] for found in self.pool.collect(everything)[0]]

    def heads(self) -> Iterator[Head]:
        """The batches there are, by head slot."""
        for slot in range(SLOTS):
            word, batch_id = struct.unpack_from("<QQ", self.words, place(slot))
            if heads_batch(word):
                yield Head(
                    batch_id % (1 << SEQ_BITS), slot, batch_id >> SEQ_BITS, bool(word & SEAL),
                    (word & OWNER) >> OWNER_SHIFT, (word & COMMITTED) >> RECORDS_SHIFT,
                )  # fmt: skip

    def change(self, slot: int, change: Callable[[int], int]) -> int:
        """Write the word of a batch; returns what it was."""
        (word,) = struct.unpack_from("<Q", self.words, place(slot))
        struct.pack_into("<Q", self.words, place(slot), change(word))
        return int(word)

    def take_record(self, slot: int) -> int:
        """As if its writer stood before its first commit; returns the word to be put back."""
        return self.change(slot, lambda word: word & ~COMMITTED | WORKER << OWNER_SHIFT)

    def close(self) -> None:
        self.words.close()
        self.attachment.close()
        self.pool.close()
        for fd in (self.ctl, self.memory, self.writer):
            os.close(fd)


@functools.cache
def _slots_at() -> int:
    """Where the words of slots begin, in the memory of every twin."""
    twin = Twin()
    twin.send(PARTITIONS - 1)
    ((partition, seq, slot, _),) = twin.look()
    at = find_word(twin.words, partition << SEQ_BITS | seq) - slot * HEADER_BYTES
    twin.close()
    return at


def place(slot: int) -> int:
    """Where the word of a slot is."""
    return _slots_at() + slot * HEADER_BYTES


@pytest.fixture
def twin() -> Iterator[Twin]:
    made = Twin()
    yield made
    made.close()


def _slot(twin: Twin, partition: int) -> int:
    """The head slot of the only batch there, told or not."""
    (slot,) = (head.slot for head in twin.heads() if head.partition == partition)
    return slot


def test_a_batch_is_told_with_its_first_record_and_once_more_when_it_is_full(twin: Twin) -> None:
    twin.send(4)
    ((partition, seq, slot, full),) = twin.look()
    assert (partition, seq, full) == (4, 1, False)
    twin.send(4)
    assert twin.look() == [], "another record is nothing new"
    twin.change(slot, lambda word: word | SEAL)
    assert twin.look() == [], "nobody announced it"
    assert twin.look(True) == [(4, 0, slot, True)]
    assert twin.look(True) == []


def test_a_newer_batch_means_that_the_older_ones_are_full(twin: Twin) -> None:
    twin.send(4, 100)
    ((_, _, first, _),) = twin.look()
    for size in (390, 390, 1):
        twin.send(4, size)
    for slot in range(SLOTS):  # whoever sealed them: nobody adds to them any more
        twin.change(slot, lambda word: word & ~SEAL)
    (again, second, third, fourth) = twin.look()
    assert again == (4, 0, first, True)
    assert [found[1] for found in (second, third, fourth)] == [2, 3, 4]
    assert [found[3] for found in (second, third, fourth)] == [True, True, False]
    assert twin.look(True) == []


def test_a_batch_without_a_record_is_told_with_its_first_one_although_nobody_announces_it(
    twin: Twin,
) -> None:
    twin.send(66)
    slot = _slot(twin, 66)
    word = twin.take_record(slot)
    assert twin.pool.collect(False) == ([], 1, 0)
    assert twin.pool.collect(False) == ([], 1, 1), "and how often it was looked at"
    assert twin.pool.collect(True) == ([], 1, 1), "a look at everything does not count"
    twin.change(slot, lambda _: word)
    found, unborn, _ = twin.pool.collect(False)
    assert [one[:4] for one in found] == [(66, 1, slot, False)]
    assert unborn == 0


def test_a_first_record_between_the_last_look_and_the_sleep_is_not_slept_over(twin: Twin) -> None:
    twin.send(66)
    slot = _slot(twin, 66)
    word = twin.take_record(slot)
    assert twin.pool.collect(False) == ([], 1, 0)
    with select.epoll() as epoll:
        twin.pool.sleep(epoll.fileno(), time.monotonic_ns() + 1_000_000)
        assert twin.pool.sleeps == 1, "there is still no record"
        twin.change(slot, lambda _: word)  # its writer finds the sender awake, and wakes nobody
        assert twin.pool.sleep(epoll.fileno(), time.monotonic_ns() + 2_000_000_000) == []
    assert twin.pool.sleeps == 1
    assert twin.look() == [(66, 1, slot, False)]


def test_a_batch_without_a_record_that_is_sealed_or_followed_is_told_and_full(twin: Twin) -> None:
    twin.send(3)
    slot = _slot(twin, 3)
    twin.take_record(slot)
    assert twin.look() == []
    twin.change(slot, lambda word: (word | SEAL) & ~OWNER)  # by a writer that waited too long
    assert twin.look() == [(3, 1, slot, True)]


def test_what_was_opened_first_comes_first(twin: Twin) -> None:
    twin.send(0)
    ((_, _, old, _),) = twin.look()
    for partition in (69, 2, 64, 1):
        twin.send(partition)
        time.sleep(0.001)
    twin.send(0, 390)
    found = twin.pool.collect(False)[0]
    assert [one[0] for one in found] == [69, 2, 64, 1, 0, 0]
    assert [one[1] for one in found][-2:] == [0, 2], "full before the one behind it is opened"
    assert found[-2][2] == old
    times = [one[4] for one in found if one[1]]
    assert times == sorted(times)
    assert 0 <= time.monotonic_ns() - times[-1] < 10_000_000_000


def test_a_batch_that_the_sender_sealed_is_not_told_as_full(twin: Twin) -> None:
    twin.send(5)
    ((_, _, slot, _),) = twin.look()
    assert len(twin.pool.freeze([slot], 0)) == 1
    assert twin.look(True) == []
    assert twin.pool.release(slot)
    twin.send(6)  # a slot that was used before is another batch
    twin.send(5)
    assert sorted(found[:2] for found in twin.look()) == [(5, 2), (6, 1)]


def test_a_broken_chain_of_batches_is_an_error(twin: Twin) -> None:
    twin.send(5)
    slot = _slot(twin, 5)
    struct.pack_into("<Q", twin.words, place(slot) + 8, 77)  # batch_id: of another batch
    with pytest.raises(native.CorruptBatch, match="chain"):
        twin.pool.collect(False)


# --- against the rule in Python, over the words in memory


class Rule:
    """The same from the words of another pool, which was treated alike."""

    def __init__(self, twin: Twin) -> None:
        self._twin = twin
        self._order: dict[tuple[int, int], int] = {}  # (partition, seq) of all that were opened
        self._seen: dict[int, int] = {}  # the last batch that was found, told or unborn
        self._newest: dict[int, int] = {}
        self._unborn: dict[int, int] = {}

    def sent(self) -> None:
        """Note in which order batches are opened: call it after each record."""
        for head in self._twin.heads():
            self._order.setdefault((head.partition, head.seq), len(self._order))

    def collect(self, partitions: set[int]) -> list[Found]:
        heads = {head.slot: head for head in self._twin.heads()}
        groups = [self._look(index, heads) for index in sorted(partitions | set(self._unborn))]
        groups.sort(key=lambda group: next((self._order[one[:2]] for one in group if one[1]), -1))
        return [found for group in groups for found in group]

    def frozen(self, index: int, slot: int) -> None:
        if self._newest.get(index) == slot:
            del self._newest[index]

    @property
    def unborn(self) -> int:
        return len(self._unborn)

    def _look(self, index: int, heads: dict[int, Head]) -> list[Found]:
        told: list[Found] = []
        seen = self._unborn.pop(index, self._seen.get(index, 0) + 1) - 1
        fresh = sorted(
            head for head in heads.values() if head.partition == index and head.seq > seen
        )
        newest = self._newest.get(index)
        if newest is not None and (fresh or heads[newest].sealed):
            del self._newest[index]
            told.append((index, 0, newest, True))
        for head in fresh:
            self._seen[index] = head.seq
            full = head.sealed or head is not fresh[-1]
            if not head.records and not full:
                self._unborn[index] = head.seq
                break
            told.append((index, head.seq, head.slot, full))
            if not full:
                self._newest[index] = head.slot
        return told


class Pair:
    """Two pools that are treated alike: one is asked, the rule looks at the other."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.twins = (Twin(), Twin())
        self.rule = Rule(self.twins[1])
        self.touched: set[int] = set()
        self.ever: set[int] = set()
        self.told: list[tuple[int, int]] = []  # partition, slot; not frozen
        self.taken: list[tuple[int, list[int]]] = []  # slot, its words, without their record
        self.seen = {"opened": 0, "full": 0, "unborn": 0, "together": 0}

    def send(self) -> None:
        partition = self.rng.choice((0, 1, 2, 63, 64, 69))
        size = self.rng.choice((1, 40, 200, 390))
        for twin in self.twins:
            if not twin.pool.free_slots():
                return
        for twin in self.twins:
            twin.send(partition, size)
            until = time.monotonic_ns() + 3_000  # no two batches are opened in one microsecond
            while time.monotonic_ns() < until:
                pass
        self.rule.sent()
        self.touched.add(partition)
        self.ever.add(partition)

    def take_record(self) -> None:
        """Of a batch with a single record that was not told yet."""
        told = {slot for _, slot in self.told} | {slot for slot, _ in self.taken}
        for head in self.twins[0].heads():
            if head.records == 1 and not head.sealed and not head.owner and head.slot not in told:
                words = [twin.take_record(head.slot) for twin in self.twins]
                self.taken.append((head.slot, words))
                return

    def put_back(self) -> None:
        if self.taken:
            slot, words = self.taken.pop(self.rng.randrange(len(self.taken)))
            for twin, word in zip(self.twins, words, strict=True):
                twin.change(slot, lambda now, word=word: word | now & SEAL)  # type: ignore[misc]

    def collect(self) -> None:
        everything = self.rng.random() < 0.2
        expected = self.rule.collect(self.ever if everything else self.touched)
        found, unborn, _ = self.twins[0].pool.collect(everything)
        self.twins[1].look(True)  # so that what was found can be released there, too
        assert [one[:4] for one in found] == expected
        assert unborn == self.rule.unborn
        self.touched.clear()
        for partition, seq, slot, full in expected:
            self.seen["opened" if seq else "full"] += 1
            if seq:
                self.told.append((partition, slot))
            self.seen["together"] += bool(seq and full)
        self.seen["unborn"] += bool(unborn)

    def freeze(self) -> None:
        """And give back: its slot is another batch's soon."""
        if not self.told:
            return
        partition, slot = self.told.pop(self.rng.randrange(len(self.told)))
        if any(slot == taken for taken, _ in self.taken):
            return self.told.append((partition, slot))
        frozen = [twin.pool.freeze([slot], 0)[0] for twin in self.twins]
        if frozen[0] is None:
            return self.told.append((partition, slot))
        self.rule.frozen(partition, slot)
        for twin in self.twins:
            assert twin.pool.release(slot)

    def close(self) -> None:
        for twin in self.twins:
            twin.close()


@pytest.mark.parametrize("seed", range(6))
def test_what_is_told_is_what_the_rule_says(seed: int) -> None:
    print("seed", seed)
    pair = Pair(random.Random(seed))
    try:
        steps: dict[Any, int] = {
            pair.send: 10, pair.collect: 4, pair.take_record: 2, pair.put_back: 2, pair.freeze: 5,
        }  # fmt: skip
        for _ in range(2_500):
            pair.rng.choices(list(steps), list(steps.values()))[0]()
        assert all(count > 20 for count in pair.seen.values()), pair.seen
    finally:
        pair.close()
