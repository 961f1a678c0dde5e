"""Produce requests: the glue around payload, against two encoders and the reference in plain
Python."""

from __future__ import annotations

import random
from typing import Any

import pytest
from aiokafka.protocol import produce as aiokafka_produce

from mpproducer._core import native
from mpproducer.wire import framing, record_batch
from mpproducer.wire.messages import PRODUCE
from tests.conftest import grown_bytes
from tests.wire import peers, produce_reference

VERSIONS = range(PRODUCE.versions[0], PRODUCE.versions[1] + 1)
TOPIC_IDS = 13
Row = tuple[Any, int, native.Body, int, int, int]
"""(topic, partition, body, producer id, epoch, base sequence)."""


def _body(rng: random.Random) -> native.Body:
    """Some pieces of a memory, none and empty ones too."""
    memory = rng.randbytes(40_000)
    spans = []
    for _ in range(rng.choice((0, 1, 1, 3))):
        size = rng.choice((0, 1, 60, 127, 16384))
        spans.append((rng.randrange(len(memory) - size), size))
    base_ms = rng.randrange(1 << 45)
    return native.Body(
        memory, rng.randrange(1, 1 << 14), base_ms, base_ms + 5, rng.randrange(5), spans
    )


def _identity(rng: random.Random) -> tuple[int, int, int]:
    return rng.choice(((-1, -1, -1), (rng.randrange(1 << 62), 32_767, rng.randrange(1 << 31))))


def _rows(rng: random.Random, version: int) -> list[Row]:
    """Batches of some topics, which come in turn or one behind the other."""
    rows: list[Row] = []
    for number in range(rng.choice((1, 1, 2, 5))):
        name = f"topic-é{number}" * rng.choice((1, 20))
        topic = rng.randbytes(16) if version >= TOPIC_IDS else name
        for _ in range(rng.choice((1, 1, 3))):
            rows.append((topic, rng.randrange(1 << 31), _body(rng), *_identity(rng)))
    if rng.random() < 0.5:
        rng.shuffle(rows)
    return rows


def _batch(row: Row) -> bytes:
    _topic, _partition, body, *identity = row
    return body.header(*identity) + b"".join(body.pieces)


def _by_topic(rows: list[Row]) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(row)
    return found


def _encode(version: int, *settings: Any, rows: list[Row]) -> bytes:
    encode: Any = native.produce_request
    request: native.Send = encode(version, *settings, rows)
    data = request.peek(request.size_bytes)
    assert len(data) == request.size_bytes == request.left_bytes
    return data


def _message(version: int, rows: list[Row], settings: tuple[Any, ...]) -> Any:
    _client, acks, timeout_ms, transactional_id = settings
    key = "topic_id" if version >= TOPIC_IDS else "name"
    return {
        "transactional_id": transactional_id,
        "acks": acks,
        "timeout_ms": timeout_ms,
        "topics": [
            {key: topic, "partitions": [{"index": row[1], "records": _batch(row)} for row in found]}
            for topic, found in _by_topic(rows).items()
        ],
    }


def _reference(version: int, number: int, settings: tuple[Any, ...], rows: list[Row]) -> bytes:
    client, acks, timeout_ms, transactional_id = settings
    topics = []
    for topic, found in _by_topic(rows).items():
        batches: list[produce_reference.Batch] = [
            (row[1], [row[2].header(*row[3:]), *row[2].pieces], 61 + row[2].size_bytes)
            for row in found
        ]
        known = isinstance(topic, bytes)
        topics.append(("" if known else topic, topic if known else b"", batches))
    return b"".join(
        produce_reference.encode_produce_request(
            version, number, client, acks, timeout_ms, transactional_id, topics
        )
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("transactional_id", [None, "lane-1"])
def test_requests_are_those_of_kafka_python(
    version: int, transactional_id: str | None, rng: random.Random
) -> None:
    for _ in range(10):
        rows = _rows(rng, version)
        settings = ("c", rng.choice((-1, 0, 1)), 30_000, transactional_id)
        message = _message(version, rows, settings)
        theirs = peers.kafka_python_message(peers.Case(PRODUCE.request, version, message))
        theirs.with_header(correlation_id=7, client_id="c")
        ours = _encode(version, 7, *settings, rows=rows)
        assert ours == theirs.encode(version=version, header=True, framed=True)


@pytest.mark.parametrize("version", range(3, 9))
def test_requests_are_those_of_aiokafka(version: int, rng: random.Random) -> None:
    theirs = getattr(aiokafka_produce, f"ProduceRequest_v{version}")
    for _ in range(10):
        rows, acks = _rows(rng, version), rng.choice((-1, 0, 1))
        topics = [
            (name, [(row[1], _batch(row)) for row in found])
            for name, found in _by_topic(rows).items()
        ]
        body = theirs(None, acks, 1234, topics).encode()
        header = framing.request_header(PRODUCE, version, 1, "c")
        assert _encode(version, 1, "c", acks, 1234, None, rows=rows)[4:] == header + body


@pytest.mark.parametrize("version", VERSIONS)
def test_requests_are_those_of_the_reference_to_the_last_byte(
    version: int, rng: random.Random
) -> None:
    for _ in range(60):
        rows = _rows(rng, version)
        client = rng.choice((None, "", "c", "é" * 200))
        lane = rng.choice((None, "", "lane", "l" * 300))
        settings = (client, rng.randrange(-1, 2), rng.randrange(1 << 31), lane)
        number = rng.randrange(-(1 << 31), 1 << 31)
        ours = _encode(version, number, *settings, rows=rows)
        assert ours == _reference(version, number, settings, rows)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_request_of_very_many_topics_keeps_the_order_of_each(
    version: int, rng: random.Random
) -> None:
    names: list[Any] = [f"t{number}" for number in range(300)]
    if version >= TOPIC_IDS:
        names = [rng.randbytes(16) for _ in names]
    body = native.Body(b"records", 1, 0, 0)
    rows: list[Row] = [
        # The same name is not always the same object.
        (name if rng.random() < 0.5 else name[:1] + name[1:], partition, body, 1, 0, partition)
        for partition in range(5)
        for name in rng.sample(names, len(names))
    ]
    settings = ("c", -1, 1, None)
    assert _encode(version, 1, *settings, rows=rows) == _reference(version, 1, settings, rows)


def test_a_request_without_batches_is_one_without_topics() -> None:
    for version in VERSIONS:
        settings = ("c", -1, 1, None)
        assert _encode(version, 1, *settings, rows=[]) == _reference(version, 1, settings, [])


def test_every_batch_of_a_request_is_one_that_a_broker_takes(rng: random.Random) -> None:
    records = [record_batch.Record(n, n, b"k", rng.randbytes(30)) for n in range(40)]
    plain = b"".join(map(record_batch.encode_record, records))
    body = native.Body(plain, 40, 1_000, 1_039, spans=[(0, 100), (100, len(plain) - 100)])
    data = _encode(9, 1, "c", -1, 1, None, rows=[("t", 4, body, 77, 3, 2**31 - 5)])
    # Behind the one batch stand three empty sets of tagged fields.
    (batch,) = record_batch.parse_batches(data[-3 - 61 - body.size_bytes : -3])
    assert (batch.producer_id, batch.epoch, batch.base_sequence) == (77, 3, 2**31 - 5)
    assert batch.crc_valid()
    assert record_batch.batch_records(batch) == records


def test_payload_is_handed_on_without_a_copy() -> None:
    memory = bytearray(100_000)
    body = native.Body(memory, 1, 0, 0, spans=[(0, 50_000), (50_000, 50_000)], crc=7)
    request = native.produce_request(9, 1, None, -1, 1, None, [("t", 0, body, 1, 0, 0)])
    before = request.peek(request.size_bytes)
    memory[40_000] = memory[60_000] = 1
    after = request.peek(request.size_bytes)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 2


@pytest.mark.parametrize("what", ["partition", "producer id", "epoch", "sequence"])
def test_a_number_its_field_does_not_hold_is_an_error_that_names_it(what: str) -> None:
    row: list[Any] = ["t", 0, native.Body(b"x", 1, 0, 0), 1, 0, 0]
    row[{"partition": 1, "producer id": 3, "epoch": 4, "sequence": 5}[what]] = 1 << 63
    with pytest.raises(OverflowError, match=f"{what} 9223372036854775808 is not in"):
        native.produce_request(9, 1, None, -1, 1, None, [tuple(row)])


def test_what_is_no_request_is_an_error_of_the_caller() -> None:
    body = native.Body(b"x", 1, 0, 0)

    def refused(error: type[Exception], why: str, version: Any, topic: Any, **more: Any) -> None:
        given: dict[str, Any] = {"client": "c", "acks": -1, "lane": None, "body": body} | more
        with pytest.raises(error, match=why):
            native.produce_request(
                version, 1, given["client"], given["acks"], 1, given["lane"],
                [(topic, 0, given["body"], 1, 0, 0)],
            )  # fmt: skip

    for version in (2, 14, -1):
        refused(ValueError, "is not spoken here", version, "t")
    no_names: list[Any] = [None, [], 7, b"0123456789abcdef"]
    for topic in no_names:
        refused(TypeError, "a topic's name is a str, not", 9, topic)
    refused(TypeError, "acks is a number, not None", 9, "t", acks=None)
    refused(OverflowError, "topic's name of 40000 bytes", 9, "t" * 40_000)
    refused(OverflowError, "client id of 40000 bytes", 9, "t", client="c" * 40_000)
    refused(OverflowError, "transactional id of 40000 bytes", 3, "t", lane="c" * 40_000)
    refused(OverflowError, "acks 40000", 9, "t", acks=40_000)
    refused(ValueError, "a topic's id is 16 bytes", 13, b"short")
    refused(ValueError, "a topic's id is 16 bytes", 13, "t")
    refused(TypeError, "a batch is", 9, "t", body=b"bytes")
    with pytest.raises(TypeError, match="a batch is"):
        native.produce_request(9, 1, None, -1, 1, None, [("t", 0, body)])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="7 arguments"):
        native.produce_request(9, 1)  # type: ignore[call-arg]
    with pytest.raises(OverflowError, match="a batch does not hold"):
        native.Body(bytes(1 << 20), 1, 0, 0, spans=[(0, 1 << 20)] * 2_048, crc=0)
    half = native.Body(bytes(1 << 20), 1, 0, 0, spans=[(0, 1 << 20)] * 1_024, crc=0)
    with pytest.raises(OverflowError, match="a request does not hold"):
        native.produce_request(9, 1, None, -1, 1, None, [("t", 0, half, 1, 0, 0)] * 2)


def test_nothing_leaks_from_requests_that_are_made_or_refused(rng: random.Random) -> None:
    made = [(version, _rows(rng, version)) for version in VERSIONS]

    def all_of_them() -> None:
        for version, rows in made:
            native.produce_request(version, 1, "c", -1, 1, None, rows)
            bad: Any = [*rows, ("t", 1 << 40, rows[0][2], 1, 0, 0)]
            with pytest.raises(OverflowError):
                native.produce_request(version, 1, "c", -1, 1, None, bad)
            with pytest.raises(OverflowError):
                native.produce_request(version, 1, "c", 1 << 20, 1, None, rows)

    assert grown_bytes(all_of_them, 100) < 30_000
