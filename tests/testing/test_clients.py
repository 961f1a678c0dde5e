"""Any Kafka client can write to the in-memory broker and read back from it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from mpproducer.testing import Broker
from mpproducer.wire.messages import FETCH, PRODUCE
from mpproducer.wire.record_batch import CODECS, Record, encode_batch
from tests.probes.client import Raw, Topic
from tests.testing import clients
from tests.testing.clients import Got, Read, Write

NOW_MS = int(time.time() * 1000)
PARTITIONS, NODES = 6, 3
READERS = [clients.by_confluent, clients.by_kafka_python, clients.by_aiokafka]
WRITERS = [clients.with_confluent, clients.with_kafka_python, clients.with_aiokafka]
# kafka-python needs one more library for snappy than is installed with it.
READS = [(r, c) for r in READERS for c in CODECS if (r, c) != (clients.by_kafka_python, "snappy")]
WRITES = [
    (w, c) for w in WRITERS for c in CODECS if (w, c) != (clients.with_kafka_python, "snappy")
]


@pytest.fixture
def cluster() -> Iterator[Broker]:
    with Broker(brokers=NODES) as running:
        running.create_topic("t", partitions=PARTITIONS)
        yield running
        assert not running.malformed, running.malformed


def _records(rng: random.Random, count: int) -> list[Record]:
    """Null and empty keys and values, headers twice, timestamps out of order."""
    return [
        Record(
            number,
            0 if number == 0 else rng.randrange(-1000, 1000),
            rng.choice((None, b"", rng.randbytes(8))),
            rng.choice((None, b"", rng.randbytes(100), bytes(2000))),
            rng.choice(((), (("a", b"1"), ("a", None), ("é", b"")))),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(("read", "codec"), READS)
def test_records_of_every_node_and_codec_are_read_by_a_consumer(
    cluster: Broker, read: Read, codec: str, rng: random.Random
) -> None:
    sent: dict[int, list[Got]] = {}
    for partition in range(PARTITIONS):
        leader = cluster.leader("t", partition)
        address = cluster.bootstrap_servers.split(",")[leader - 1]
        with Raw(address) as raw:
            for _ in range(2):
                records = _records(rng, 40)
                data = encode_batch(records, base_timestamp_ms=NOW_MS, codec_name=codec)
                result = raw.produce(Topic("t", b""), data, partition=partition)
                assert result.error_code == 0
                sent.setdefault(partition, []).extend(
                    Got(result.base_offset + r.offset_delta, r.key, r.value, r.headers,
                        NOW_MS + r.timestamp_delta)
                    for r in records
                )  # fmt: skip
    assert {cluster.leader("t", p) for p in sent} == set(range(1, NODES + 1))
    found = read(cluster.bootstrap_servers, "t", dict.fromkeys(sent, 80))
    assert found == sent
    assert all(cluster.requests_by_node[node] for node in range(1, NODES + 1))
    assert cluster.versions_seen[FETCH.name]


@pytest.mark.parametrize(("write", "codec"), WRITES)
def test_an_idempotent_producer_s_records_are_stored_as_it_was_told(
    cluster: Broker, write: Write, codec: str, rng: random.Random
) -> None:
    keys = (None, b"", b"key")
    rows: clients.Rows = [
        (n % PARTITIONS, rng.choice(keys), b"%d-" % n + bytes(rng.randrange(200)))
        for n in range(300)
    ]
    told = write(cluster.bootstrap_servers, "t", rows, codec)
    for partition in range(PARTITIONS):
        stored = cluster.records("t", partition)
        ours = [
            (offset, key, value)
            for (number, offset), (_p, key, value) in zip(told, rows, strict=True)
            if number == partition
        ]
        assert [(r.offset, r.key, r.value) for r in stored] == ours
        assert all(r.headers == (("trace", b"\0\1"), ("empty", b"")) for r in stored)
        assert [r.sequence for r in stored] == list(range(len(stored)))
        assert len({(r.producer_id, r.epoch) for r in stored}) == 1
        assert stored[0].producer_id >= 0
        assert {batch.codec for batch in cluster.batches("t", partition)} <= {codec, "none"}
    facts = [cluster.batch_facts("t", p) for p in range(PARTITIONS)]
    assert sum(count for count, _ids in facts) < len(rows)  # it filled batches
    assert cluster.requests[PRODUCE.name] > 0
    assert cluster.request_bytes[PRODUCE.name] > 0
    assert cluster.clients


@pytest.mark.parametrize("write", WRITERS)
def test_a_producer_loses_and_doubles_nothing_through_faults(cluster: Broker, write: Write) -> None:
    faults = [
        cluster.on("Produce").close_after(),  # stored, and nobody told
        cluster.on("Produce").error(6),
        cluster.on("Produce").close_before(),
        cluster.on("InitProducerId").close_before(),
    ]
    rows: clients.Rows = [(n % 2, None, b"%d" % n) for n in range(40)]
    told = write(cluster.bootstrap_servers, "t", rows, "none")
    assert [fault.hits for fault in faults] == [1, 1, 1, 1]
    for partition in (0, 1):
        values = [r.value for r in cluster.records("t", partition)]
        assert values == [value for p, _key, value in rows if p == partition]
    assert sorted(told) == [(p, n) for p in (0, 1) for n in range(20)]


@pytest.mark.parametrize("write", WRITERS)
def test_a_producer_follows_a_moved_leader(cluster: Broker, write: Write) -> None:
    rows: clients.Rows = [(0, None, b"%d" % n) for n in range(10)]
    first = cluster.leader("t", 0)
    write(cluster.bootstrap_servers, "t", rows, "none")
    cluster.set_leader("t", 0, first % NODES + 1)
    told = write(cluster.bootstrap_servers, "t", rows, "none")
    assert told == [(0, 10 + n) for n in range(10)]


@pytest.mark.parametrize("read", READERS)
def test_a_consumer_waits_for_records_that_come_later(cluster: Broker, read: Read) -> None:
    fault = cluster.on("Fetch", times=2).delay(0.05)
    rows: clients.Rows = [(0, b"k", b"v")]
    clients.with_confluent(cluster.bootstrap_servers, "t", rows, "none")
    found = read(cluster.bootstrap_servers, "t", {0: 1})
    assert [(got.key, got.value) for got in found[0]] == [(b"k", b"v")]
    assert fault.hits >= 1
