"""What is in the log, read by somebody else: the strict broker itself, or a foreign client.

Partition by partition in offset order and in chunks, so that ten million records need no memory.
Nothing between start and end may be missing: no topic of a run is compacted or transactional.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mpproducer.testing import Broker, BrokerProcess

CHUNK: Final = 20_000
_READ_S: Final = 60.0


class Extent(NamedTuple):
    """One partition as it is now: offsets `start` to `end`, `end` excluded."""

    topic: str
    partition: int
    start: int
    end: int


class Chunk(NamedTuple):
    """Records of one partition that follow each other."""

    topic: str
    partition: int
    offsets: npt.NDArray[np.int64]
    values: Sequence[bytes | None]
    keys: Sequence[bytes | None]
    timestamps_ms: npt.NDArray[np.int64]


class Incomplete(Exception):
    """The log could not be read to its end."""


class Log(Protocol):
    """The topics of one run."""

    def extents(self) -> list[Extent]:
        """Every partition of every topic there is."""

    def chunks(self, extent: Extent) -> Iterator[Chunk]:
        """The records of an extent. Raises Incomplete."""


def chunk(extent: Extent, rows: Sequence[Any]) -> Chunk:
    """Make a chunk of (offset, value, key, timestamp in ms)."""
    offsets, values, keys, timestamps = zip(*rows, strict=True)
    return Chunk(
        extent.topic, extent.partition, np.array(offsets, np.int64), values, keys,
        np.array(timestamps, np.int64),
    )  # fmt: skip


class BrokerLog:
    """The log of the broker in memory, without any client."""

    def __init__(self, broker: Broker | BrokerProcess, topics: Sequence[str]) -> None:
        self._broker = broker
        self._topics = topics

    def extents(self) -> list[Extent]:
        return [
            Extent(topic, number, 0, len(self._broker.records(topic, number)))
            for topic in self._topics
            for number in self._broker.partitions(topic)
        ]

    def chunks(self, extent: Extent) -> Iterator[Chunk]:
        records = self._broker.records(extent.topic, extent.partition)[extent.start : extent.end]
        for place in range(0, len(records), CHUNK):
            rows = [(r.offset, r.value, r.key, r.timestamp_ms) for r in records[place:][:CHUNK]]
            yield chunk(extent, rows)


class ConfluentLog:
    """A cluster's log by confluent-kafka, which checks the CRCs."""

    def __init__(self, bootstrap: str, topics: Sequence[str]) -> None:
        self._bootstrap = bootstrap
        self._topics = topics

    def _consumer(self) -> Any:
        from confluent_kafka import Consumer

        return Consumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": "checker",
                "check.crcs": True,
                "enable.auto.commit": False,
                "enable.partition.eof": False,
                "auto.offset.reset": "error",
                "queued.max.messages.kbytes": 65_536,
            }
        )

    def extents(self) -> list[Extent]:
        from confluent_kafka import TopicPartition

        consumer = self._consumer()
        try:
            found = []
            for topic in self._topics:
                there = consumer.list_topics(topic, timeout=30).topics[topic]
                if there.error is not None:
                    raise Incomplete(f"{topic}: {there.error}")
                for number in sorted(there.partitions):
                    place = TopicPartition(topic, number)
                    start, end = consumer.get_watermark_offsets(place, timeout=30)
                    found.append(Extent(topic, number, start, end))
            return found
        finally:
            consumer.close()

    def chunks(self, extent: Extent) -> Iterator[Chunk]:
        from confluent_kafka import TopicPartition

        consumer = self._consumer()
        try:
            consumer.assign([TopicPartition(extent.topic, extent.partition, extent.start)])
            offset, until = extent.start, time.monotonic() + _READ_S
            while offset < extent.end:
                messages = consumer.consume(min(CHUNK, extent.end - offset), 0.5)
                for message in messages:
                    if message.error() is not None:
                        raise Incomplete(f"{extent}: {message.error()}")
                if messages:
                    yield chunk(
                        extent,
                        [(m.offset(), m.value(), m.key(), m.timestamp()[1]) for m in messages],
                    )
                    offset, until = messages[-1].offset() + 1, time.monotonic() + _READ_S
                elif time.monotonic() > until:
                    raise Incomplete(f"{extent}: nothing behind {offset} for {_READ_S:.0f} s")
        finally:
            consumer.close()


class KafkaPythonLog:
    """A cluster's log by kafka-python, which is written in Python throughout."""

    def __init__(self, bootstrap: str, topics: Sequence[str]) -> None:
        self._bootstrap = bootstrap
        self._topics = topics

    def _consumer(self) -> Any:
        from kafka import KafkaConsumer

        return KafkaConsumer(
            bootstrap_servers=self._bootstrap,
            enable_auto_commit=False,
            auto_offset_reset="none",
            check_crcs=True,
        )

    def extents(self) -> list[Extent]:
        from kafka import TopicPartition

        consumer = self._consumer()
        try:
            found = []
            for topic in self._topics:
                numbers = consumer.partitions_for_topic(topic)
                if not numbers:
                    raise Incomplete(f"{topic}: no partitions")
                places = [TopicPartition(topic, number) for number in sorted(numbers)]
                starts, ends = consumer.beginning_offsets(places), consumer.end_offsets(places)
                found += [Extent(topic, p.partition, starts[p], ends[p]) for p in places]
            return found
        finally:
            consumer.close()

    def chunks(self, extent: Extent) -> Iterator[Chunk]:
        from kafka import TopicPartition

        consumer = self._consumer()
        try:
            place = TopicPartition(extent.topic, extent.partition)
            consumer.assign([place])
            consumer.seek(place, extent.start)
            offset, until = extent.start, time.monotonic() + _READ_S
            while offset < extent.end:
                found = consumer.poll(timeout_ms=500, max_records=CHUNK).get(place, [])
                rows = [
                    (r.offset, r.value, r.key, r.timestamp) for r in found if r.offset < extent.end
                ]
                if rows:
                    yield chunk(extent, rows)
                    offset, until = rows[-1][0] + 1, time.monotonic() + _READ_S
                elif time.monotonic() > until:
                    raise Incomplete(f"{extent}: nothing behind {offset} for {_READ_S:.0f} s")
        finally:
            consumer.close()
