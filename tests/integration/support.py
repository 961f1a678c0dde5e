"""What the integration tests share: jobs for worker processes, reading back, checking."""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zstandard
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from kafka.partitioner.default import murmur2

import mpproducer

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "debian-packages-sample.jsonl.zst"


class Read(NamedTuple):
    """One record as a foreign consumer got it."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


class Told(NamedTuple):
    """What a worker was told about one of its records."""

    number: int
    partition: int
    offset: int


def package_lines() -> list[bytes]:
    """The lines of the real input."""
    path = os.environ.get("MPPRODUCER_DATA", str(SAMPLE))
    with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
        return reader.read().splitlines()


def new_topic(bootstrap: str, partitions: int, replication: int = 1, **config: str) -> str:
    """Create a topic with a name nobody has, and wait until it is there."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    topic = NewTopic(name, partitions, replication, config=config)
    admin.create_topics([topic], operation_timeout=30)[name].result(60)
    return name


def read_back(bootstrap: str, topic: str, partitions: int) -> list[Read]:
    """Every record of a topic by confluent-kafka, partition by partition in offset order."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"g-{uuid.uuid4().hex}",
            "check.crcs": True,
            "enable.auto.commit": False,
        }
    )
    found: list[Read] = []
    try:
        places = [TopicPartition(topic, number, 0) for number in range(partitions)]
        ends = {
            place.partition: consumer.get_watermark_offsets(place, timeout=30)[1]
            for place in places
        }
        consumer.assign(places)
        until = time.monotonic() + 120
        while len(found) < sum(ends.values()) and time.monotonic() < until:
            for message in consumer.consume(10_000, 0.2):
                assert message.error() is None, message.error()
                partition, offset = message.partition(), message.offset()
                assert partition is not None
                assert offset is not None
                headers: Any = message.headers() or []
                found.append(Read(partition, offset, message.key(), message.value(), headers))
        assert len(found) == sum(ends.values())
    finally:
        consumer.close()
    return sorted(found)


def java_partition(key: bytes, partitions: int) -> int:
    """Where Java's partitioner puts a key, by kafka-python's murmur2."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def publish(
    producer: mpproducer.Producer, topic: str, worker: int, lines: Sequence[bytes]
) -> list[Told]:
    """One worker's share of the job: every line keyed by its package; returns what it was told."""
    futures = []
    for number, line in enumerate(lines):
        key = json.loads(line)["package"].encode()
        headers = [("worker", b"%d" % worker), ("number", b"%d" % number)]
        futures.append(producer.send(topic, line, key=key, headers=headers))
    producer.flush(timeout=60)
    told = []
    for number, future in enumerate(futures):
        metadata = future.result(timeout=1)
        told.append(Told(number, metadata.partition, metadata.offset))
    return told


def publish_to(
    connection: Any, producer: mpproducer.Producer, topic: str, worker: int, lines: list[bytes]
) -> None:
    """`publish` as the target of a process."""
    try:
        connection.send(publish(producer, topic, worker, lines))
    except BaseException as error:
        connection.send(error)
        raise


def publish_task(
    task: tuple[mpproducer.Producer, str, int, list[bytes]],
) -> tuple[int, int, list[Told]]:
    """`publish` as a task of a pool: (worker id, pid, told)."""
    producer, topic, worker, lines = task
    return worker, os.getpid(), publish(producer, topic, worker, lines)


def check(
    found: Iterable[Read],
    sent: dict[int, list[bytes]],
    told: dict[int, list[Told]],
    partitions: int,
) -> None:
    """Every line there once, byte for byte, where Java would put it, where the future said, and
    in its worker's order."""
    left = {(worker, n) for worker, lines in sent.items() for n in range(len(lines))}
    offsets = {(w, t.number): (t.partition, t.offset) for w, all_ in told.items() for t in all_}
    last: dict[tuple[int, int], int] = {}
    for record in found:
        headers = dict(record.headers)
        worker, number = int(headers["worker"] or b""), int(headers["number"] or b"")
        left.remove((worker, number))
        line = sent[worker][number]
        assert record.value == line
        assert record.key is not None
        assert record.key == json.loads(line)["package"].encode()
        assert record.partition == java_partition(record.key, partitions)
        assert offsets[worker, number] == (record.partition, record.offset)
        place = (worker, record.partition)
        assert last.get(place, -1) < number, f"worker {worker} is out of order"
        last[place] = number
    assert not left, f"{len(left)} records are missing"


def check_sequences(dump: Callable[[str, int], str], topic: str, partitions: int) -> set[int]:
    """Sequences of the stored batches have no gap; returns the producer ids in them."""
    ids: set[int] = set()
    for partition in range(partitions):
        expected = 0
        for line in dump(topic, partition).splitlines():
            batch = re.match(
                r"baseOffset: (\d+) lastOffset: (\d+) count: (\d+) baseSequence: (-?\d+) "
                r"lastSequence: (-?\d+) producerId: (-?\d+) .*isvalid: true",
                line,
            )
            if batch is None:
                assert not line.startswith("baseOffset:"), line
                continue
            first, count = int(batch[4]), int(batch[3])
            assert first == expected, f"{topic}-{partition}: {line}"
            expected += count
            ids.add(int(batch[6]))
        assert expected > 0
    return ids
