"""Bad input: a clear error, nothing appended, and nothing lost around it."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mpproducer
from mpproducer import errors
from mpproducer.testing import Broker

TOPIC = "events"
STRIDED = memoryview(bytes(8))[::2]


@pytest.fixture
def producer(broker: Broker) -> Iterator[mpproducer.Producer]:
    broker.create_topic(TOPIC, partitions=3)
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers,
        linger_ms=0,
        max_block_ms=5000,
        sender_idle_ms=0,
    ) as producer:
        yield producer


class Around:
    """A record before and one after what goes wrong; both must be read back, and nothing else."""

    def __init__(self, producer: mpproducer.Producer, broker: Broker) -> None:
        self.producer, self.broker = producer, broker
        self.stored = len(broker.records(TOPIC))

    def __enter__(self) -> None:
        self.futures = [self.producer.send(TOPIC, b"before", partition=0)]

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            return
        self.futures.append(self.producer.send(TOPIC, b"after", partition=0))
        offsets = [future.result(20).offset for future in self.futures]
        assert offsets == [self.stored, self.stored + 1]
        stored = [record.value for record in self.broker.records(TOPIC)]
        assert stored[self.stored :] == [b"before", b"after"]


WRONG_TYPES: list[tuple[dict[str, Any], str]] = [
    ({"value": "text"}, r"value must be bytes-like or None, got str; .*value\.encode\(\)"),
    ({"value": 5}, "value must be bytes-like or None, got int"),
    ({"value": object()}, "value must be bytes-like or None, got object"),
    ({"value": STRIDED}, "value must be a contiguous buffer"),
    ({"key": "k"}, r"key must be bytes-like or None, got str; .*key\.encode\(\)"),
    ({"key": ["k"]}, "key must be bytes-like or None, got list"),
    ({"key": STRIDED}, "key must be a contiguous buffer"),
    ({"headers": {"a": b"1"}}, "headers must be a list of .* got dict"),
    ({"headers": "ab"}, "headers must be a list of .* got str"),
    ({"headers": b"ab"}, "headers must be a list of .* got bytes"),
    ({"headers": iter([("a", b"1")])}, "headers must be a list of"),
    ({"headers": ["ab"]}, "a header must be a pair .* got 'ab'"),
    ({"headers": [("a",)]}, r"a header must be a pair .* got \('a',\)"),
    ({"headers": [("a", b"1", 2)]}, "a header must be a pair"),
    ({"headers": [None]}, "a header must be a pair .* got None"),
    ({"headers": [(b"a", b"1")]}, "a header name must be str, got bytes"),
    ({"headers": [(None, b"1")]}, "a header name must be str, got NoneType"),
    ({"headers": [("a", "text")]}, "the value of header 'a' must be bytes-like .* got str"),
    ({"headers": [("a", 1)]}, "the value of header 'a' must be bytes-like or None, got int"),
    ({"headers": [("a", STRIDED)]}, "the value of header 'a' must be a contiguous buffer"),
    ({"headers": [("a", b"1"), ("b", [])]}, "the value of header 'b'"),
    ({"partition": "0"}, "partition must be an int or None, got str"),
    ({"partition": 1.0}, "partition must be an int or None, got float"),
    ({"partition": True}, "partition must be an int or None, got bool"),
    ({"timestamp_ms": 1.5}, "timestamp_ms must be an int or None, got float"),
    ({"timestamp_ms": "now"}, "timestamp_ms must be an int or None, got str"),
    ({"timestamp_ms": False}, "timestamp_ms must be an int or None, got bool"),
    ({"topic": b"events"}, "topic must be a str, got bytes"),
    ({"topic": None}, "topic must be a str, got NoneType"),
]


def test_C1_C3_C12_a_wrong_type_raises_TypeError_and_appends_nothing(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    for arguments, message in WRONG_TYPES:
        given: dict[str, Any] = {"topic": TOPIC, "value": b"v"} | arguments
        with Around(producer, broker), pytest.raises(TypeError, match=message):
            producer.send(**given)


WRONG_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"partition": -1}, r"partition must be between 0 and 2\*\*31-1, got -1"),
    ({"partition": 2**31}, "partition must be between"),
    ({"partition": 10**30}, "partition must be between"),
    ({"timestamp_ms": -1}, r"timestamp_ms must be between 0 and 2\*\*63-1.*got -1"),
    ({"timestamp_ms": 2**63}, "timestamp_ms must be between"),
    ({"headers": [("\udcff", b"1")]}, "header name .* has no UTF-8 form"),
]


def test_C2_C3_C12_a_value_out_of_range_raises_ValueError_and_appends_nothing(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    for arguments, message in WRONG_VALUES:
        with Around(producer, broker), pytest.raises(ValueError, match=message):
            producer.send(TOPIC, b"v", **arguments)


WRONG_CALLS: list[tuple[Any, str]] = [
    (lambda p: p.send(), "topic must be a str and is required"),
    (lambda p: p.send(value=b""), "topic must be a str and is required"),
    (lambda p: p.send(TOPIC, b"", None, None, None, None, None), "at most 6 arguments"),
    (lambda p: p.send(TOPIC, b"", val=b""), "unexpected keyword argument 'val'"),
    (lambda p: p.send(TOPIC, b"", topic="t"), "multiple values for argument 'topic'"),
    (lambda p: p.send(TOPIC, b"", timestamps_ms=[1]), "unexpected keyword argument"),
    (lambda p: p.send_many(TOPIC), "values must be a sequence"),
    (lambda p: p.send_many(TOPIC, b"abc"), "values must be a sequence .* got bytes"),
    (lambda p: p.send_many(TOPIC, "abc"), "values must be a sequence .* got str"),
    (lambda p: p.send_many(TOPIC, {b"a"}), "values must be a sequence .* got set"),
    (lambda p: p.send_many(TOPIC, {b"a": 1}), "values must be a sequence .* got dict"),
    (lambda p: p.send_many(TOPIC, 7), "values must be a sequence .* got int"),
    (lambda p: p.send_many(TOPIC, [b"a"], keys=b"k"), "keys must be a sequence"),
    (lambda p: p.send_many(TOPIC, [b"a"], partition=[0]), "partition must be an int"),
]


def test_a_wrong_call_raises_TypeError_and_appends_nothing(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    for call, message in WRONG_CALLS:
        with Around(producer, broker), pytest.raises(TypeError, match=message):
            call(producer)


WRONG_COLUMNS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"values": [b"0", b"1", "2"]}, TypeError, "record 2: value .* got str.*nothing was sent"),
    ({"values": [b"0", 1]}, TypeError, "record 1: value must be bytes-like or None, got int"),
    ({"keys": [b"k", "k"]}, TypeError, "record 1: key must be bytes-like"),
    ({"keys": [b"k"]}, ValueError, "keys has 1 items, values has 2"),
    ({"headers": [None, [("a", 1)]]}, TypeError, "record 1: the value of header 'a'"),
    ({"headers": [[]]}, ValueError, "headers has 1 items, values has 2"),
    ({"timestamps_ms": [1, -1]}, ValueError, "record 1: timestamp_ms must be between"),
    ({"timestamps_ms": [1, None, 3]}, ValueError, "timestamps_ms has 3 items"),
]


def test_one_bad_record_among_many_is_named_and_none_is_sent(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    for columns, kind, message in WRONG_COLUMNS:
        given = {"values": [b"0", b"1"]} | columns
        with Around(producer, broker), pytest.raises(kind, match=message):
            producer.send_many(TOPIC, **given)


def test_C2_C4_an_illegal_topic_is_a_failed_future(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    for topic in ("", ".", "..", "a" * 250, "umlaut-ä", "a/b", "a b", "a\0b", "\udcff"):
        with Around(producer, broker):
            check_illegal(producer, topic)


def check_illegal(producer: mpproducer.Producer, topic: str) -> None:
    future = producer.send(topic, b"v")
    assert future.done()
    with pytest.raises(mpproducer.InvalidTopic, match="is not a legal topic name") as found:
        future.result(0)
    assert not found.value.retriable
    assert isinstance(found.value, errors.NotWritten)
    assert (future.topic, future.partition) == (topic, -1)
    called: list[mpproducer.DeliveryFuture] = []
    future.add_done_callback(called.append)
    assert called == [future]
    assert repr(future) == f"<DeliveryFuture {topic} failed>"
    with pytest.raises(mpproducer.InvalidTopic):
        producer.partitions_for(topic)
    many = producer.send_many(topic, [b"1", b"2"])
    assert [at for at, _error in many.failed] == [0, 1]


def test_C11_a_topic_of_249_characters_is_legal(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    producer.send("a" * 249, b"v").result(20)
    assert broker.records("a" * 249)[0].value == b"v"


def test_C4_C6_an_unknown_partition_is_a_MetadataTimeout_that_names_it(broker: Broker) -> None:
    broker.create_topic(TOPIC, partitions=3)
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, linger_ms=0, max_block_ms=300, sender_idle_ms=0
    ) as producer:
        producer.attach(10)
        assert producer.partitions_for(TOPIC, timeout=10) == [0, 1, 2]
        with Around(producer, broker):
            future = producer.send(TOPIC, b"v", partition=3)
            assert future.done()
            error = future.exception(0)
            assert isinstance(error, mpproducer.MetadataTimeout)
            assert isinstance(error, TimeoutError)
            assert error.retriable
            assert "'events' has 3 partitions; partition 3 did not appear" in str(error)
            assert "max_block_ms=300" in str(error)


def test_C6_a_partition_that_is_added_meanwhile_is_waited_for(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    producer.send(TOPIC, b"0").result(20)
    broker.add_partitions(TOPIC, 5)
    assert producer.send(TOPIC, b"v", partition=4).result(20).partition == 4


def test_R11_C4_a_record_over_max_request_size_is_a_failed_future(broker: Broker) -> None:
    broker.create_topic(TOPIC, partitions=3)
    with (
        mpproducer.Producer(
            bootstrap_servers=broker.bootstrap_servers,
            max_request_size=10_000,
            linger_ms=0,
            sender_idle_ms=0,
        ) as producer,
        Around(producer, broker),
    ):
        for parts in (
            {"value": bytes(10_000)},
            {"key": bytes(10_000)},
            {"value": b"", "headers": [("h", bytes(10_000))]},
            {"value": b"", "headers": [("h", b"")] * 4000},
        ):
            future = producer.send(TOPIC, **parts)
            with pytest.raises(mpproducer.RecordTooLarge, match="more than max_request_size=10000"):
                future.result(0)
        many = producer.send_many(TOPIC, [bytes(10_000)] * 2)
        assert [type(error) for _at, error in many.failed] == [mpproducer.RecordTooLarge] * 2


def test_R11_the_largest_record_that_is_allowed_arrives_and_one_byte_more_is_refused(
    broker: Broker,
) -> None:
    broker.create_topic(TOPIC)
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers,
        max_request_size=20_000,
        linger_ms=0,
        sender_idle_ms=0,
    ) as producer:
        fits = 19_000
        for size in range(19_900, 20_001):
            if producer.send(TOPIC, bytes(size)).exception(20) is None:
                fits = size
        assert 19_900 <= fits < 20_000
        error = producer.send(TOPIC, bytes(fits + 1)).exception(0)
        assert isinstance(error, mpproducer.RecordTooLarge)
    assert max(len(record.value or b"") for record in broker.records(TOPIC)) == fits


def test_a_list_that_is_larger_than_one_batch_mixes_good_and_too_large_records(
    broker: Broker,
) -> None:
    broker.create_topic(TOPIC)
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers,
        max_request_size=10_000,
        batch_size=5000,
        sender_idle_ms=0,
    ) as producer:
        values = [bytes(20_000) if n % 7 == 3 else b"%05d" % n + bytes(500) for n in range(100)]
        many = producer.send_many(TOPIC, values)
        bad = [n for n in range(100) if n % 7 == 3]
        with pytest.raises(mpproducer.RecordTooLarge):
            many.result(20)
        assert [at for at, _error in many.failed] == bad
        offsets = many.offsets
        good = [n for n in range(100) if n % 7 != 3]
        assert [offsets[n] for n in good] == list(range(len(good)))
        assert [offsets[n] for n in bad] == [-1] * len(bad)
    assert [record.value for record in broker.records(TOPIC)] == [values[n] for n in good]


def test_C1_what_is_legal_arrives_as_it_was_given(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    class Topics(str, enum.Enum):
        EVENTS = TOPIC

    changed = bytearray(b"copied at send")
    values: list[Any] = [
        None, b"", b"bytes", bytearray(b"array"), memoryview(b"view"), changed,
        np.frombuffer(b"numpy!", dtype=np.uint8),
    ]  # fmt: skip
    expected = [None if value is None else bytes(value) for value in values]
    futures = [producer.send(TOPIC, value, partition=1) for value in values]
    changed[:] = b"-" * len(changed)
    for future in futures:
        future.result(20)
    assert [record.value for record in broker.records(TOPIC, 1)] == expected

    metadata = producer.send(Topics.EVENTS, b"v", partition=np.int32(2)).result(20)
    assert (type(metadata.topic), metadata.topic, metadata.partition) == (str, TOPIC, 2)
    headers: Any = [("a", None), ["a", b""], ("ü", bytearray(b"x")), ("", memoryview(b"y"))]
    producer.send(TOPIC, b"h", b"", headers, 2, np.int64(7)).result(20)
    record = broker.records(TOPIC, 2)[1]
    assert record.key == b""
    assert record.timestamp_ms == 7
    assert list(record.headers) == [("a", None), ("a", b""), ("ü", b"x"), ("", b"y")]


def test_sequences_of_every_kind_can_be_sent(producer: mpproducer.Producer, broker: Broker) -> None:
    def generated() -> Iterator[bytes]:
        yield b"4"
        yield b"5"

    many: list[Any] = [[b"0"], (b"1",), np.array([b"2", b"3"]), generated(), []]
    futures = [producer.send_many(TOPIC, values, partition=0) for values in many]
    futures.append(producer.send_many(TOPIC, [b"6"], [b"k"], [[("h", b"1")]], 0, np.array([1234])))
    offsets = [future.offsets for future in futures]
    assert offsets == [[0], [1], [2, 3], [4, 5], [], [6]]
    stored = broker.records(TOPIC, 0)
    assert [record.value for record in stored] == [b"%d" % n for n in range(7)]
    assert (stored[6].key, stored[6].timestamp_ms) == (b"k", 1234)


def test_C12_what_is_changed_after_send_changes_nothing_that_was_sent(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    broker.on("Produce").delay(0.2)
    value, key, header = bytearray(b"value"), bytearray(b"key"), bytearray(b"header")
    headers: list[tuple[str, Any]] = [("h", header)]
    values = [bytearray(b"many")]
    future = producer.send(TOPIC, value, key=key, headers=headers, partition=0)
    many = producer.send_many(TOPIC, values, partition=0)
    value[:], key[:], header[:], values[0][:] = b"VALUE", b"KEY", b"HEADER", b"MANY"
    headers.clear()
    values.clear()
    future.result(20)
    many.result(20)
    first, second = broker.records(TOPIC, 0)
    assert (first.value, first.key, first.headers) == (b"value", b"key", (("h", b"header"),))
    assert second.value == b"many"


def test_C10_a_closed_producer_raises_and_what_it_had_taken_is_delivered(broker: Broker) -> None:
    producer = mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, linger_ms=60_000, sender_idle_ms=0
    )
    future = producer.send(TOPIC, b"before")
    producer.close()
    assert future.result(0).offset == 0
    calls: list[Any] = [
        lambda: producer.send(TOPIC, b"v"),
        lambda: producer.send_many(TOPIC, [b"v"]),
        producer.flush,
        producer.attach,
        lambda: producer.partitions_for(TOPIC),
    ]
    for call in calls:
        with pytest.raises(mpproducer.ClosedError, match="make a new one"):
            call()
    producer.close()  # again
    assert "closed" in repr(producer)
    with mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers, sender_idle_ms=0) as other:
        other.send(TOPIC, b"after").result(20)
    assert [record.value for record in broker.records(TOPIC)] == [b"before", b"after"]


def test_C10_a_senseless_timeout_is_refused(producer: mpproducer.Producer) -> None:
    future = producer.send(TOPIC, b"v")
    senseless: list[tuple[Any, type[Exception]]] = [
        (-1, ValueError), (float("nan"), ValueError), ("1", TypeError)
    ]  # fmt: skip
    calls: list[Any] = [
        producer.flush,
        producer.close,
        producer.attach,
        lambda timeout: producer.partitions_for(TOPIC, timeout),
    ]
    for call in calls:
        for timeout, kind in senseless:
            with pytest.raises(kind, match="timeout"):
                call(timeout)
    future.result(float("inf"))
    producer.flush(float("inf"))
    assert future.done()  # and the producer is still open
    producer.send(TOPIC, b"v").result(20)
