"""Which partition records without a key move to: chosen by what the sender publishes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

import mpproducer.producer  # noqa: F401 - configures the core
from mpproducer._core import native
from tests.core.test_append import frozen, opened

PARTITIONS = 5
SLOTS = 24


class Sticky:
    """A pool whose records each fill a batch, so that each moves on to the next partition."""

    def __init__(self) -> None:
        ctl_size, pool_size = native.segment_sizes(SLOTS, PARTITIONS, 1)
        ctl, memory = os.memfd_create("ctl"), os.memfd_create("pool")
        os.ftruncate(ctl, ctl_size)
        os.ftruncate(memory, pool_size)
        self.pool = native.Pool(
            ctl, memory, SLOTS, PARTITIONS, 1, batch_size=1, max_request_size=1 << 20,
            linger_us=1000, generation=1,
        )  # fmt: skip
        self.pool.owner_alive(1, True)
        self.pool.topic_ready(self.pool.topic_add("t"), PARTITIONS)
        reader, self.writer = os.pipe()
        wake = os.eventfd(0, os.EFD_NONBLOCK)
        self.attachment = native.Attachment(ctl, memory, wake, reader, 1, SLOTS, PARTITIONS, 1)

        class Producer(native.ProducerBase):
            pass

        self.producer: Any = Producer()
        self.producer._attachment = self.attachment
        self.producer._max_block_ns = 0

    def draw(self, records: int) -> list[int]:
        """Where so many records went, one after the other."""
        found = []
        for _ in range(records):
            found.append(self.producer.send("t", b"v").partition)
            for _, slot, _ in opened(self.pool):
                frozen(self.pool, slot)
                self.pool.release(slot)
        return found

    def publish(self, *rooms: int) -> None:
        for index, room in enumerate(rooms):
            self.pool.partition_available(index, room)

    def close(self) -> None:
        self.attachment.close()
        os.close(self.writer)
        self.pool.close()


@pytest.fixture
def sticky() -> Iterator[Sticky]:
    made = Sticky()
    yield made
    made.close()


def test_A26_without_load_the_next_partition_is_any_other_one(sticky: Sticky) -> None:
    drawn = sticky.draw(5_000)
    assert all(one != other for one, other in pairwise(drawn))
    share = Counter(drawn)
    assert sorted(share) == list(range(PARTITIONS))
    assert all(900 < count < 1_100 for count in share.values()), share
    after_2 = Counter(b for a, b in pairwise(drawn) if a == 2)
    assert all(180 < after_2[other] < 320 for other in (0, 1, 3, 4)), after_2


def test_A26_partitions_without_a_leader_are_not_chosen_and_if_none_has_one_all_are(
    sticky: Sticky,
) -> None:
    sticky.publish(0, 1, 0, 1, 0)
    assert set(sticky.draw(200)[1:]) == {1, 3}
    sticky.publish(0, 0, 0, 1, 0)
    assert set(sticky.draw(200)[2:]) == {3}
    sticky.publish(0, 0, 0, 0, 0)
    assert set(sticky.draw(400)) == set(range(PARTITIONS))


def test_A27_the_frequency_follows_the_inverse_queue_length(sticky: Sticky) -> None:
    """Weights are the largest queue + 1 - the own one: 1 for the fullest, 11 for an empty one."""
    sticky.publish(11, 1, 6, 1, 0)
    drawn = sticky.draw(8_000)
    after_1 = Counter(b for a, b in pairwise(drawn) if a == 1)
    total = sum(after_1.values())
    assert total > 2_000
    for partition, weight in {0: 1, 2: 6, 3: 11}.items():
        expected = total * weight / 18
        assert abs(after_1[partition] - expected) < 5 * expected**0.5, (partition, after_1)
    assert after_1[4] == 0


def test_A27_a_full_byte_is_the_fullest_queue_and_still_drawn_now_and_then(sticky: Sticky) -> None:
    sticky.publish(255, 1_000, 255, 1, 250)  # more than a byte holds is the most it holds
    drawn = Counter(sticky.draw(4_000))
    assert all(drawn[partition] for partition in range(PARTITIONS)), drawn
    assert drawn[3] > drawn[0] + drawn[1] + drawn[2]
