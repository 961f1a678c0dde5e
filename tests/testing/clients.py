"""Consumers and producers of three clients, for one job each; all bounded in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import aiokafka
import confluent_kafka
import kafka

WAIT_S = 20.0


class Got(NamedTuple):
    """A record as a client gave it; headers as pairs."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int


Read = Callable[[str, str, dict[int, int]], dict[int, list[Got]]]
Write = Callable[..., list[tuple[int, int]]]


def by_confluent(servers: str, topic: str, wanted: dict[int, int]) -> dict[int, list[Got]]:
    """Read `wanted` (records by partition) from the start."""
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": servers, "group.id": "readers", "enable.auto.commit": False,
            "auto.offset.reset": "earliest", "check.crcs": True,
        }
    )  # fmt: skip
    found: dict[int, list[Got]] = {partition: [] for partition in wanted}
    try:
        consumer.assign([confluent_kafka.TopicPartition(topic, p, 0) for p in wanted])
        until = time.monotonic() + WAIT_S
        while _missing(found, wanted) and time.monotonic() < until:
            for message in consumer.consume(500, timeout=0.2):
                assert message.error() is None, message.error()
                record: Any = message
                found[record.partition()].append(
                    Got(record.offset(), record.key(), record.value(),
                        tuple(record.headers() or ()), record.timestamp()[1])
                )  # fmt: skip
    finally:
        consumer.close()
    return found


def by_kafka_python(servers: str, topic: str, wanted: dict[int, int]) -> dict[int, list[Got]]:
    """Read `wanted` from the start."""
    consumer = kafka.KafkaConsumer(
        bootstrap_servers=servers, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    found: dict[int, list[Got]] = {partition: [] for partition in wanted}
    try:
        consumer.assign([kafka.TopicPartition(topic, p) for p in wanted])
        until = time.monotonic() + WAIT_S
        while _missing(found, wanted) and time.monotonic() < until:
            for place, records in consumer.poll(timeout_ms=200).items():
                found[place.partition] += [
                    Got(r.offset, r.key, r.value, tuple(r.headers), r.timestamp) for r in records
                ]
    finally:
        consumer.close()
    return found


def by_aiokafka(servers: str, topic: str, wanted: dict[int, int]) -> dict[int, list[Got]]:
    """Read `wanted` from the start."""
    found: dict[int, list[Got]] = {partition: [] for partition in wanted}

    async def read() -> None:
        consumer = aiokafka.AIOKafkaConsumer(
            bootstrap_servers=servers, enable_auto_commit=False, auto_offset_reset="earliest",
            check_crcs=True,
        )  # fmt: skip
        consumer.assign([aiokafka.TopicPartition(topic, p) for p in wanted])
        await consumer.start()
        try:
            until = time.monotonic() + WAIT_S
            while _missing(found, wanted) and time.monotonic() < until:
                for place, records in (await consumer.getmany(timeout_ms=200)).items():
                    found[place.partition] += [
                        Got(r.offset, r.key, r.value, tuple(r.headers), r.timestamp)
                        for r in records
                    ]
        finally:
            await consumer.stop()

    asyncio.run(read())
    return found


def _missing(found: dict[int, list[Got]], wanted: dict[int, int]) -> bool:
    return any(len(found[partition]) < count for partition, count in wanted.items())


Rows = list[tuple[int, bytes | None, bytes | None]]
"""(partition, key, value)."""
HEADERS: list[tuple[str, Any]] = [("trace", b"\0\1"), ("empty", b"")]


def with_confluent(servers: str, topic: str, rows: Rows, codec: str) -> list[tuple[int, int]]:
    """Send the rows with an idempotent producer; returns (partition, offset) of each."""
    producer = confluent_kafka.Producer(
        {
            "bootstrap.servers": servers, "enable.idempotence": True, "compression.type": codec,
            "linger.ms": 5, "message.timeout.ms": int(WAIT_S * 1000),
        }
    )  # fmt: skip
    told: dict[int, tuple[int, int]] = {}

    def reported(number: int) -> Callable[[Any, Any], None]:
        def report(error: Any, message: Any) -> None:
            assert error is None, error
            told[number] = (message.partition(), message.offset())

        return report

    for number, (partition, key, value) in enumerate(rows):
        producer.produce(
            topic, value=value, key=key, partition=partition, headers=HEADERS,
            on_delivery=reported(number),
        )  # fmt: skip
    assert producer.flush(WAIT_S) == 0
    return [told[number] for number in range(len(rows))]


def with_kafka_python(servers: str, topic: str, rows: Rows, codec: str) -> list[tuple[int, int]]:
    """Send the rows with an idempotent producer."""
    producer = kafka.KafkaProducer(
        bootstrap_servers=servers, enable_idempotence=True, linger_ms=5,
        compression_type=None if codec == "none" else codec,
    )  # fmt: skip
    try:
        futures = [
            producer.send(topic, value=value, key=key, partition=partition, headers=HEADERS)
            for partition, key, value in rows
        ]
        producer.flush(WAIT_S)
        return [(f.get(WAIT_S).partition, f.get(WAIT_S).offset) for f in futures]
    finally:
        producer.close(WAIT_S)


def with_aiokafka(servers: str, topic: str, rows: Rows, codec: str) -> list[tuple[int, int]]:
    """Send the rows with an idempotent producer."""

    async def send() -> list[tuple[int, int]]:
        producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=servers, enable_idempotence=True, linger_ms=5,
            compression_type=None if codec == "none" else codec,
        )  # fmt: skip
        await producer.start()
        try:
            futures = [
                await producer.send(topic, value, key=key, partition=partition, headers=HEADERS)
                for partition, key, value in rows
            ]
            done = [await asyncio.wait_for(future, WAIT_S) for future in futures]
            return [(one.partition, one.offset) for one in done]
        finally:
            await producer.stop()

    return asyncio.run(send())
