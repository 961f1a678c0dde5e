"""Sends the records of one stream through a producer and keeps its journal."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import mpproducer
from mpproducer.future import BatchFuture, DeliveryFuture
from tests.checker.journal import Journal, Kind
from tests.checker.records import ANY, NO_KEY, Identity, encode, encode_many, key_bytes

_TOLD_S = 10.0
_places: dict[tuple[int, int], int] = {}


def java_partition(key: int, partitions: int) -> int:
    """Where Java's partitioner puts a key, by kafka-python's murmur2."""
    from kafka.partitioner.default import murmur2

    place = (key, partitions)
    if place not in _places:
        _places[place] = int((murmur2(key_bytes(key)) & 0x7FFFFFFF) % partitions)
    return _places[place]


def kind_of(error: BaseException | None) -> Kind:
    """The outcome that a future's error stands for."""
    if error is None:
        return Kind.ACKED
    if isinstance(error, (mpproducer.BufferFull, mpproducer.MetadataTimeout)):
        return Kind.REFUSED
    if isinstance(error, mpproducer.NotWritten):
        return Kind.NOT_WRITTEN
    return Kind.UNKNOWN if isinstance(error, mpproducer.Unknown) else Kind.OTHER


class Writer:
    """One stream. Used by one thread; `partitions` of its topic, where keys are to be checked.

    Outcomes are noted by `poll` and `finish`, so a little late, or with `callbacks` as they come.
    """

    def __init__(
        self,
        producer: mpproducer.Producer,
        journal: Journal,
        *,
        partitions: int = 0,
        callbacks: bool = False,
    ) -> None:
        self.producer = producer
        self.journal = journal
        self._partitions = partitions
        self._callbacks = callbacks
        self._pid = os.getpid()
        self._pending: deque[tuple[int, DeliveryFuture | BatchFuture]] = deque()

    def _identity(
        self, seq: int, partition: int | None, key: int, timestamp: int | None
    ) -> Identity:
        if partition is None and key != NO_KEY and self._partitions:
            partition = java_partition(key, self._partitions)
        return Identity(
            self.journal.run, self.journal.stream, seq, self.journal.topic,
            ANY if partition is None else partition, key, ANY if timestamp is None else timestamp,
        )  # fmt: skip

    def send(
        self,
        partition: int | None = None,
        key: int = NO_KEY,
        size: int = 100,
        timestamp_ms: int | None = None,
    ) -> DeliveryFuture:
        """One record. What `send` raises is raised, after it was noted."""
        journal = self.journal
        seq = journal.begin()
        value = encode(self._identity(seq, partition, key, timestamp_ms), size)
        try:
            future = self.producer.send(
                journal.topic, value, key_bytes(key), None, partition, timestamp_ms
            )
        except Exception:
            journal.tell(seq, Kind.REFUSED)
            journal.returned()
            raise
        journal.returned()
        if future.done() and isinstance(future.exception(0), mpproducer.NotWritten):
            journal.tell(seq, Kind.REFUSED)
            return future
        if self._callbacks:
            future.add_done_callback(lambda done: self._tell(seq, done))
        self._pending.append((seq, future))
        return future

    def send_many(
        self, count: int, partition: int | None = None, size: int = 100, keys: Sequence[int] = ()
    ) -> BatchFuture:
        """`count` records by one call, none of them with a stated partition but `partition`."""
        journal = self.journal
        seq = journal.begin(count)
        values = encode_many(self._identity(seq, partition, NO_KEY, None), count, size, keys)
        given = [key_bytes(key) for key in keys] if keys else None
        try:
            batch: BatchFuture = self.producer.send_many(
                journal.topic, values, given, None, partition
            )
        except Exception:
            journal.tell_many(seq, Kind.REFUSED, [ANY] * count, [-1] * count)
            journal.returned()
            raise
        journal.returned()
        if self._callbacks:
            batch.add_done_callback(lambda done: self._tell_many(seq, done))
        self._pending.append((seq, batch))
        return batch

    @property
    def waiting(self) -> int:
        """How many futures are not known to be done."""
        return len(self._pending)

    def poll(self) -> None:
        """Note the outcomes of the oldest records that are done."""
        while self._pending and self._pending[0][1].done():
            self._note(*self._pending.popleft())

    def _note(self, seq: int, future: DeliveryFuture | BatchFuture) -> None:
        if self._callbacks:
            return
        if isinstance(future, BatchFuture):
            self._tell_many(seq, future)
        else:
            self._tell(seq, future)

    def _tell(self, seq: int, future: DeliveryFuture) -> None:
        if os.getpid() != self._pid:
            return  # a forked child knows nothing of what its parent sent
        error = future.exception(0)
        if error is None:
            metadata: Any = future.result(0)
            self.journal.tell(seq, Kind.ACKED, metadata.partition, metadata.offset)
        else:
            self.journal.tell(seq, kind_of(error))

    def _tell_many(self, first: int, batch: BatchFuture) -> None:
        if os.getpid() != self._pid:
            return
        kinds = [int(Kind.ACKED)] * len(batch)
        for index, error in batch.failed:
            kinds[index] = int(kind_of(error))
        self.journal.tell_many(first, kinds, batch.partitions, batch.offsets_array(0))

    def finish(self, timeout_s: float) -> int:
        """Send without linger, note every outcome that comes in time, and end the stream.

        Returns how many futures had none: K9 tells them.
        """
        until = time.monotonic() + timeout_s
        with contextlib.suppress(TimeoutError, mpproducer.KafkaError):
            self.producer.flush(timeout_s)
        late = 0
        for seq, future in self._pending:
            # What the future holds may be a TimeoutError too: `done` tells them apart.
            with contextlib.suppress(TimeoutError):
                future.exception(max(0.0, until - time.monotonic()))
            if future.done():
                self._note(seq, future)
            else:
                late += 1
        self._pending.clear()
        if self._callbacks and not late:
            self._wait_for_callbacks()
        self.journal.finish()
        return late

    def _wait_for_callbacks(self) -> None:
        """A future is done a moment before its callbacks have run."""
        until = time.monotonic() + _TOLD_S
        while (self.journal.entries()["kind"] == 0).any() and time.monotonic() < until:
            time.sleep(0.005)
