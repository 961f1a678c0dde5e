"""A partition's log on simulated brokers: the strict broker's producer rules over light batches,
with replication that lags and a tail that a failing leader can lose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

from mpproducer.testing.log import Appended, PartitionLog, _Written
from mpproducer.wire.record_batch import RecordBatch


class Wire(NamedTuple):
    """A batch as a request carries it; `ids` are the records, `intact` says that its CRC holds."""

    topic: str
    number: int
    producer_id: int
    epoch: int
    base_sequence: int
    count: int  # type: ignore[assignment]  # as RecordBatch has it, not tuple.count
    ids: tuple[int, ...]
    size_bytes: int
    intact: bool
    max_timestamp_ms: int = 1


class Entry(NamedTuple):
    """A batch in the log."""

    base_offset: int
    wire: Wire


Done = Callable[[int], None]


class SimLog(PartitionLog):
    """The log of one partition in one incarnation of its topic."""

    def __init__(self, topic: str, number: int, born_ns: int, max_bytes: int) -> None:
        super().__init__(max_message_bytes=max_bytes)
        self.topic = topic
        self.number = number
        self.born_ns = born_ns
        self.entries: list[Entry] = []
        self.replicated = 0
        self.again = False  # its topic had been deleted before
        self.lost: set[int] = set()
        self.waiting: list[tuple[int, Done]] = []
        self._warps: dict[int, _Written] = {}

    def knows(self, producer_id: int) -> bool:
        """Whether there is state of this producer id."""
        return producer_id in self._producers

    def is_at(self, producer_id: int, epoch: int) -> bool:
        """Whether this is the producer's epoch here."""
        return self._producers[producer_id].epoch == epoch

    def take(self, wire: Wire) -> tuple[Appended, bool]:
        """Append a batch as its leader would; returns the result, and whether it is new."""
        batch = cast(RecordBatch, wire)
        known = self._check_producer(batch)
        if known is not None:
            return known, False
        base_offset = self.end_offset
        self.entries.append(Entry(base_offset, wire))
        self.end_offset += wire.count
        self._remember(batch, base_offset)
        return Appended(0, base_offset), True

    def replicate(self, upto: int) -> None:
        """The followers have everything below this offset."""
        upto = min(upto, self.end_offset)
        if upto <= self.replicated:
            return
        self.replicated = upto
        waiting, self.waiting = self.waiting, []
        for need, done in waiting:
            if need <= upto:
                done(0)
            else:
                self.waiting.append((need, done))

    def lose_tail(self) -> int:
        """A new leader starts with what was replicated; returns how many batches are lost."""
        kept = [entry for entry in self.entries if entry.base_offset < self.replicated]
        lost = self.entries[len(kept) :]
        if lost:
            for entry in lost:
                self.lost.update(entry.wire.ids)
            self.entries = kept
            self.end_offset = lost[0].base_offset
            self._producers.clear()
            for entry in kept:
                self._remember(cast(RecordBatch, entry.wire), entry.base_offset)
                warp = self._warps.get(entry.wire.producer_id)
                if warp is not None and entry.base_offset <= warp.base_offset:
                    # 2^31 records lie in between: what was before is none of the last five.
                    self._forget_before(warp, entry.wire.producer_id)
        return len(lost)

    def step_down(self, code: int) -> None:
        """The leader is none any more: what waits for replicas is answered with an error."""
        waiting, self.waiting = self.waiting, []
        for _, done in waiting:
            done(code)

    def warp(self, producer_id: int, last_sequence: int) -> None:
        """As if this producer had written up to this sequence."""
        warp = _Written(last_sequence, last_sequence, self.end_offset - 1, 1)
        self._warps[producer_id] = warp
        self._forget_before(warp, producer_id)

    def _forget_before(self, warp: _Written, producer_id: int) -> None:
        batches = self._producers[producer_id].batches
        batches.clear()
        batches.append(warp)

    def ids(self) -> list[tuple[int, int]]:
        """(offset, record) of everything in the log."""
        return [
            (entry.base_offset + place, record)
            for entry in self.entries
            for place, record in enumerate(entry.wire.ids)
        ]

    def records(self) -> Any:
        """The records are numbers here: see `ids`."""
        return self.ids()
