"""The last words of a sender that ends: the most that is certain about every record."""

from __future__ import annotations

from typing import Any, cast

import pytest

from mpproducer._core import native
from mpproducer.reason import Reason
from mpproducer.sender import actions as a
from mpproducer.sender.abort import CRASHED, tell_everybody
from mpproducer.sender.partition import Partition
from mpproducer.sender.store import Store
from mpproducer.sender.workers import Workers
from tests.sender.harness import Fill, Harness


class World:
    """What the crashed sender leaves: a machine, and fakes of the rest in one."""

    def __init__(self, h: Harness) -> None:
        self.h = h
        self.order: list[str] = []
        self.told: list[a.Complete] = []
        self.fresh: list[a.Event] = []
        self.broken: Exception | None = None

    def close_region(self) -> None:
        self.order.append("closed")

    def collect_all(self) -> list[a.Event]:
        if self.broken is not None:
            raise self.broken
        return self.fresh

    def seal(self, action: a.Seal) -> a.Sealed:
        self.order.append("sealed")
        (batch,) = action.batches
        fill = self.h.fills[batch.slot]
        if not fill.records:
            return a.Sealed(action, [a.BatchEmpty(batch)])
        sealed = a.BatchSealed(batch, fill.records, fill.size_bytes, 1, 1, fill.owners)
        return a.Sealed(action, [sealed])

    def complete(self, action: a.Complete) -> None:
        self.told.append(action)

    def flush(self) -> list[Any]:
        self.order.append("flushed")
        return []

    def end(self) -> int:
        """The crash."""
        return tell_everybody(self.h.machine, cast(Store, self), cast(Workers, self), self, CRASHED)


def test_memory_that_cannot_be_read_does_not_keep_back_what_is_certain() -> None:
    h = Harness(linger_ms=1_000).ready()
    h.open("t", 0)
    world = World(h)
    world.broken = native.CorruptBatch("a chain that never ends")
    with pytest.raises(native.CorruptBatch):
        world.end()
    assert [action.outcomes[0].kind for action in world.told] == [a.Kind.NOT_WRITTEN]
    assert world.order[-1] == "flushed"


def test_each_batch_is_told_by_what_may_have_happened_to_it() -> None:
    h = Harness(linger_ms=1_000).ready({0: 0, 1: 1, 2: 0, 3: 1})
    h.open("t", 0)
    h.open("t", 1)
    h.feed(a.FlushAsked())
    sent, refused = h.produce_requests()
    h.answer(refused, 19)
    h.open("t", 2)
    world = World(h)
    assert world.end() == 3
    told = {action.batch.partition.number: action.outcomes[0] for action in world.told}
    assert told[0].kind is a.Kind.UNKNOWN
    assert sent.batches[0].partition.number == 0
    assert told[1].kind is a.Kind.NOT_WRITTEN, "refused: nothing was appended"
    assert told[2].kind is a.Kind.NOT_WRITTEN, "never sent"
    assert {outcome.reason for outcome in told.values()} == {Reason.SENDER_DIED}
    assert {outcome.count for outcome in told.values()} == {10}


def test_a_retry_that_may_be_in_the_log_is_unknown() -> None:
    h = Harness().ready()
    h.open("t", 0)
    h.close(h.produce_requests()[0].conn)
    world = World(h)
    world.end()
    assert [action.outcomes[0].kind for action in world.told] == [a.Kind.UNKNOWN]


def test_the_region_is_closed_before_any_batch_is_sealed_and_told() -> None:
    h = Harness(linger_ms=1_000).ready()
    h.open("t", 0)
    world = World(h)
    world.end()
    assert world.order == ["closed", "sealed", "flushed"]


def test_batches_the_machine_has_not_heard_of_are_told_too_and_empty_ones_are_not() -> None:
    h = Harness(linger_ms=1_000).ready()
    world = World(h)
    for slot, records in ((50, 4), (51, 0)):
        h.fills[slot] = Fill(records, 10, (1,))
        world.fresh.append(a.BatchOpened(0, slot, slot))
    assert world.end() == 1
    (action,) = world.told
    assert (action.batch.batch_id, action.outcomes[0].count) == (50, 4)
    assert action.batch.participants == (1,)


def test_only_the_last_part_of_a_split_batch_says_that_nothing_follows() -> None:
    h = Harness().ready()
    h.open("t", 0)
    h.answer(h.produce_requests()[0], 10)
    world = World(h)
    assert world.end() == 2
    assert [action.more for action in world.told] == [True, False]
    assert [action.outcomes[0].first for action in world.told] == [0, 5]
    assert isinstance(world.told[0].batch.partition, Partition)
