"""Unkeyed records of workers that get into each other's way: apart while they do, then together."""

from __future__ import annotations

import mmap
import random
import re
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import mpproducer.producer  # noqa: F401 - configures the core
from mpproducer._core import native
from tests.core.test_append import Host, frozen, opened
from tests.core.words import OWNER, OWNER_SHIFT, SEAL, find_word

PARTITIONS = 6
TURNS = 64
ENOUGH = 8
SOMEBODY = 900  # the owner id of a worker that is stopped in the middle of an append
VALUE = bytes(100)


class Crowd(Host):
    """Several workers of one topic with several partitions."""

    MAX_PARTITIONS = PARTITIONS

    def __init__(self, batch_size: int = 64 << 10, workers: int = 1) -> None:
        super().__init__(batch_size, slots=400)
        self.pool.topic_ready(0, PARTITIONS)
        self.pool.owner_alive(SOMEBODY, True)
        self.held: list[tuple[int, int]] = []
        self.frozen: dict[int, Any] = {}
        for owner in range(2, workers + 1):
            self.join(owner)

    def close(self) -> None:
        self.frozen.clear()  # their bodies hold the memory
        super().close()

    def stop_in(self, batch_id: int) -> None:
        """Somebody is owner of this open batch, and does not go on: whoever wants it loses."""
        with mmap.mmap(self.memory, 0) as memory:
            at = find_word(memory, batch_id)
            (word,) = struct.unpack_from("<Q", memory, at)
            assert not word & (SEAL | OWNER), "the batch is not open"
            struct.pack_into("<Q", memory, at, word | SOMEBODY << OWNER_SHIFT)

    def send_some(self, producer: Any, lost: int, turns: int = TURNS) -> list[int]:
        """Appends, of which the last `lost` lose a race; their partitions."""
        futures: list[native.DeliveryFuture] = []
        for turn in range(turns):
            if turn >= turns - lost:
                self.stop_in(futures[-1].batch_id)
            futures.append(producer.send("t", VALUE))
        return [future.partition for future in futures]

    def look(self) -> None:
        """As the sender finds new batches."""
        self.held += [(partition, slot) for partition, slot, _ in opened(self.pool)]

    def linger_over(self) -> None:
        """As the sender ends every batch that there is."""
        self.look()
        for _partition, slot in self.held:
            if slot not in self.frozen:
                self.frozen[slot] = frozen(self.pool, slot)

    def take_all(self) -> list[tuple[int, int]]:
        """(partition, records) of every batch, each partition's in order; all memory goes back."""
        self.pool.owner_alive(SOMEBODY, False)
        self.linger_over()
        found = [(partition, self.frozen[slot][0]) for partition, slot in self.held]
        for _partition, slot in self.held:
            assert self.pool.release(slot)
        self.held.clear()
        self.frozen.clear()
        assert self.pool.free_slots() == self.slots
        return found


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    made = Crowd(workers=PARTITIONS)
    yield made
    made.take_all()
    made.close()


def stats(producer: Any) -> dict[str, int]:
    found: dict[str, int] = producer._attachment.stats()
    return found


def test_a_worker_that_keeps_losing_races_takes_a_partition_of_its_own(crowd: Crowd) -> None:
    assert len(set(crowd.send_some(crowd.producer, ENOUGH))) == 1
    assert stats(crowd.producer)["lost_races"] == ENOUGH
    own = crowd.send_some(crowd.producer, 0, 200)
    assert set(own) == {1}  # by its owner id
    assert stats(crowd.producer)["spreads"] == 1
    assert sum(records for _partition, records in crowd.take_all()) == TURNS + 200


def test_few_lost_races_move_nobody(crowd: Crowd) -> None:
    """Counted in each window anew: they do not add up over time."""
    found = {
        partition for _ in range(5) for partition in crowd.send_some(crowd.producer, ENOUGH - 1)
    }
    assert len(found) == 1
    assert stats(crowd.producer)["lost_races"] == 5 * (ENOUGH - 1)
    assert stats(crowd.producer)["spreads"] == 0


def test_workers_spread_over_different_partitions(crowd: Crowd) -> None:
    for producer in crowd.producers:
        crowd.send_some(producer, ENOUGH)
    places = [crowd.send_some(producer, 0, 10) for producer in crowd.producers]
    assert all(len(set(place)) == 1 for place in places)
    assert len({place[0] for place in places}) == PARTITIONS


def test_A26_a_worker_apart_uses_available_partitions_only(crowd: Crowd) -> None:
    for partition in (1, 2, 4):
        crowd.pool.partition_available(partition, False)
    crowd.send_some(crowd.producer, ENOUGH)
    assert {crowd.producer.send("t", VALUE).partition for _ in range(5_000)} == {0, 3, 5}
    for partition in range(PARTITIONS):
        crowd.pool.partition_available(partition, False)
    assert {crowd.producer.send("t", VALUE).partition for _ in range(9_000)} == {*range(PARTITIONS)}
    assert stats(crowd.producer)["returns"] == 0


@pytest.mark.parametrize("many", [False, True])
def test_A25_A28_a_worker_apart_moves_with_full_batches_evenly_round_the_topic(
    crowd: Crowd, many: bool
) -> None:
    crowd.send_some(crowd.producer, ENOUGH)
    crowd.take_all()
    if many:
        for _ in range(20):
            crowd.producer.send_many("t", [VALUE] * 1_000)
    else:
        for _ in range(20_000):
            crowd.producer.send("t", VALUE)
    crowd.look()
    taken = crowd.take_all()
    sizes = sorted(records for _partition, records in taken)
    assert sum(sizes) == 20_000
    assert sizes[1] == sizes[-1]  # all but the one that is being filled
    assert sizes[-1] * len(VALUE) > 0.85 * (64 << 10)
    share = Counter(partition for partition, _records in taken)
    assert max(share.values()) - min(share.values()) <= 1, share


def test_two_workers_that_meet_on_their_way_part_with_the_batch(crowd: Crowd) -> None:
    one, other = crowd.producers[:2]
    for producer in (one, other):
        crowd.send_some(producer, ENOUGH)
    crowd.take_all()
    while (at := one.send("t", VALUE).partition) != 2:
        pass
    assert other.send("t", VALUE).partition == at
    together = 0
    while one.send("t", VALUE).partition == other.send("t", VALUE).partition:
        together += 1
    assert 2 * (together + 1) * len(VALUE) < 64 << 10
    for _ in range(2_000):  # on they go, side by side
        assert one.send("t", VALUE).partition != other.send("t", VALUE).partition
    assert stats(one)["returns"] == stats(other)["returns"] == 0


@pytest.mark.parametrize("many", [False, True])
def test_a_worker_whose_batch_was_not_filled_in_time_comes_back(crowd: Crowd, many: bool) -> None:
    one, other = crowd.producers[:2]
    (shared,) = set(crowd.send_some(other, 0))
    crowd.send_some(one, ENOUGH)
    own = crowd.send_some(one, 0, 20)
    crowd.linger_over()
    if many:
        one.send_many("t", [VALUE])  # finds out
    else:
        assert one.send("t", VALUE).partition == own[0]
    assert stats(one)["returns"] == 1
    assert set(crowd.send_some(one, 0)) == {shared}
    assert set(crowd.send_some(other, 0)) == {shared}
    assert stats(one)["spreads"] == 1


def test_records_of_a_worker_keep_their_order_in_each_partition(crowd: Crowd, seed: int) -> None:
    """Going apart and coming back."""
    rng = random.Random(seed)
    sent: dict[int, list[bytes]] = {partition: [] for partition in range(PARTITIONS)}
    number = 0
    for _ in range(60):
        producer = crowd.producers[rng.randrange(3)]
        futures: list[native.DeliveryFuture] = []
        lost = rng.choice((0, ENOUGH))
        for turn in range(TURNS):
            if 0 < turn <= lost:
                crowd.stop_in(futures[-1].batch_id)
            value = b"%08d" % number + VALUE
            futures.append(producer.send("t", value))
            sent[futures[-1].partition].append(value)
            number += 1
        if rng.random() < 0.3:
            crowd.linger_over()
    assert sum(stats(producer)["spreads"] for producer in crowd.producers) > 2
    assert sum(stats(producer)["returns"] for producer in crowd.producers) > 2
    crowd.linger_over()
    got: dict[int, list[bytes]] = {partition: [] for partition in range(PARTITIONS)}
    for partition, slot in crowd.held:
        data = b"".join(crowd.frozen[slot][-1].pieces)
        got[partition] += re.findall(rb"\d{8}" + bytes(100), data)
    assert got == sent
