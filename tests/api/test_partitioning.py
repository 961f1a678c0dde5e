"""Where records go that name no partition: by key as in Java, else to the host's sticky one."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from itertools import groupby
from typing import Any

import pytest

import mpproducer
from mpproducer.testing import Broker
from tests.conftest import metric, wait_until
from tests.integration.support import java_partition

TOPIC = "events"
PARTITIONS = 6
BATCH_BYTES = 2_000
VALUE = bytes(90)


def unkeyed_runs(
    broker: Broker, records: int, value: bytes = VALUE, batch_size: int = BATCH_BYTES
) -> tuple[list[tuple[int, int]], int]:
    """Sends records without a key; (partition, records) of each run on one partition, in order,
    and how many batches they made."""
    broker.create_topic(TOPIC, PARTITIONS)
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers,
        batch_size=batch_size,
        linger_ms=10_000,  # only full batches move records on
        sender_idle_ms=0,
    ) as producer:
        futures = [producer.send(TOPIC, value) for _ in range(records)]
        producer.flush()
        assert wait_until(lambda: metric(producer, "record-send-total") == records)
        batches = int(metric(producer, "batch-send-total"))
    found = [future.result(0).partition for future in futures]
    return [(partition, len(list(run))) for partition, run in groupby(found)], batches


def test_A25_A28_records_without_a_key_fill_a_batch_of_one_partition_then_move(
    broker: Broker,
) -> None:
    """They move when their batch is full, not when one of them opens another: no batch of one."""
    runs, batches = unkeyed_runs(broker, 1_000)
    assert len(runs) > 20
    assert batches == len(runs)
    # As full as a batch can be, and at most twice that, on one partition at a time.
    full = {records for _partition, records in runs[:-1]}
    assert max(full) * len(VALUE) <= 2 * BATCH_BYTES
    assert (min(full) + 1) * (len(VALUE) + 10) >= BATCH_BYTES - 61


def test_A28_records_of_which_a_batch_holds_a_few_move_on_when_one_more_has_no_room(
    broker: Broker,
) -> None:
    """A batch that has room for a small record, but not for another large one."""
    runs, batches = unkeyed_runs(broker, 60, bytes(3_000), 11_000)
    assert [records for _partition, records in runs] == [3] * 20
    assert batches == len(runs)
    assert len({partition for partition, _records in runs}) > 2


def test_A26_records_without_a_key_spread_evenly_in_the_long_run(broker: Broker) -> None:
    runs, _batches = unkeyed_runs(broker, 10_000)
    share = Counter(partition for partition, _records in runs)
    assert sorted(share) == list(range(PARTITIONS))
    even = len(runs) / PARTITIONS
    assert all(even / 2 < count < even * 2 for count in share.values()), share


def test_A30_the_partition_of_a_key_is_javas_however_it_is_sent(broker: Broker) -> None:
    broker.create_topic(TOPIC, PARTITIONS)
    keys = [b"", b"\0", *(b"user-%d" % number for number in range(200))]
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, sender_idle_ms=0
    ) as producer:
        one_by_one = [producer.send(TOPIC, b"v", key=key) for key in keys]
        many = producer.send_many(TOPIC, [b"v"] * len(keys), keys=keys)
        producer.flush()
    expected = [java_partition(key, PARTITIONS) for key in keys]
    assert [future.result(0).partition for future in one_by_one] == expected
    assert [metadata.partition for metadata in many.result(0)] == expected
    assert len(set(expected)) == PARTITIONS


def test_A30_a_key_keeps_its_partition_while_that_has_no_leader(broker: Broker) -> None:
    """It waits there; records without a key go elsewhere."""
    broker.create_topic(TOPIC, PARTITIONS)
    away = {0, 2, 5}
    for partition in away:
        broker.set_leader(TOPIC, partition, -1)
    keys = [b"user-%d" % number for number in range(60)]
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, sender_idle_ms=0, retry_backoff_ms=20
    ) as producer:
        assert producer.partitions_for(TOPIC) == list(range(PARTITIONS))
        futures = [producer.send(TOPIC, b"v", key=key) for key in keys]
        assert [future.partition for future in futures] == [
            java_partition(key, PARTITIONS) for key in keys
        ]
        unkeyed = [producer.send(TOPIC, b"v").result(20).partition for _ in range(10)]
        assert not away & set(unkeyed)
        for partition in away:
            broker.set_leader(TOPIC, partition, 1)
        for future, key in zip(futures, keys, strict=True):
            assert future.result(20).partition == java_partition(key, PARTITIONS)


def test_keys_that_are_to_be_ignored_are_kept_and_decide_nothing(broker: Broker) -> None:
    broker.create_topic(TOPIC, PARTITIONS)
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers,
        partitioner_ignore_keys=True,
        batch_size=BATCH_BYTES,
        linger_ms=10_000,
        sender_idle_ms=0,
    ) as producer:
        futures = [producer.send(TOPIC, VALUE, key=b"same") for _ in range(400)]
        many = producer.send_many(TOPIC, [VALUE] * 400, keys=[b"same"] * 400)
        producer.flush()
        assert producer.send(TOPIC, VALUE, key=b"same", partition=3).partition == 3
    runs = [len(list(run)) for _partition, run in groupby(f.result(0).partition for f in futures)]
    assert len(runs) > 10  # full batches, one partition after the other, as without a key
    assert len({metadata.partition for metadata in many.result(0)}) > 3
    assert {record.key for record in broker.records(TOPIC)} == {b"same"}


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd"])
def test_A2_a_record_larger_than_batch_size_is_sent_in_a_batch_of_its_own(
    broker: Broker, codec: str
) -> None:
    broker.create_topic(TOPIC)
    sizes = [10, 40_000, 10, 60_000, 70_000]
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers,
        batch_size=BATCH_BYTES,
        linger_ms=50,
        compression_type=codec,
        sender_idle_ms=0,
    ) as producer:
        futures = [producer.send(TOPIC, bytes(size)) for size in sizes]
        assert [future.result(20).offset for future in futures] == list(range(len(sizes)))
    assert [len(record.value or b"") for record in broker.records(TOPIC, 0)] == sizes
    assert [batch.codec for batch in broker.batches(TOPIC, 0)] == [codec] * len(sizes)


def _one_record(producer: mpproducer.Producer, barrier: Any) -> None:
    producer.attach(20)
    producer.partitions_for(TOPIC)
    barrier.wait(20)
    producer.send(TOPIC, b"v", partition=0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_A25_all_processes_share_the_sticky_partition_and_fill_its_batch(broker: Broker) -> None:
    broker.create_topic(TOPIC, PARTITIONS)
    fork = multiprocessing.get_context("fork")
    told: Any = fork.SimpleQueue()
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, linger_ms=60_000, sender_idle_ms=0
    ) as producer:
        first = producer.send(TOPIC, VALUE)

        def send() -> None:
            told.put([producer.send(TOPIC, VALUE).partition for _ in range(10)])

        for _ in range(4):
            process = fork.Process(target=send)
            process.start()
            process.join(30)
            assert process.exitcode == 0
            assert told.get() == [first.partition] * 10
        producer.flush()
        assert [batch.count for batch in broker.batches(TOPIC, first.partition)] == [41]


def test_A29_processes_that_open_a_batch_at_once_make_one_batch(broker: Broker) -> None:
    broker.create_topic(TOPIC)
    context = multiprocessing.get_context("fork")
    for number in range(1, 6):
        barrier = context.Barrier(4)
        with mpproducer.Producer(
            bootstrap_servers=broker.bootstrap_servers, linger_ms=60_000, sender_idle_ms=0
        ) as producer:
            producer.attach(20)
            processes = [
                context.Process(target=_one_record, args=(producer, barrier)) for _ in range(4)
            ]
            for process in processes:
                process.start()
            for process in processes:
                process.join(30)
                assert process.exitcode == 0
        # The sender delivers what the others had sent, and ends.
        assert wait_until(lambda: len(broker.records(TOPIC, 0)) == 4 * number)  # noqa: B023
        assert [batch.count for batch in broker.batches(TOPIC, 0)] == [4] * number
