"""Produce requests: the glue around payload, against two encoders."""

from __future__ import annotations

import random
from typing import Any

import pytest
from aiokafka.protocol import produce as aiokafka_produce

from mpproducer.wire import framing
from mpproducer.wire.codec import Buffer
from mpproducer.wire.messages import PRODUCE
from mpproducer.wire.produce import Batch, encode_produce_request
from tests.wire import peers

VERSIONS = range(PRODUCE.versions[0], PRODUCE.versions[1] + 1)


def _topics(rng: random.Random) -> list[tuple[str, bytes, list[Batch]]]:
    """Topics whose batches are a header and some pieces, empty ones too."""
    topics = []
    for number in range(rng.choice((1, 1, 2, 5))):
        batches: list[Batch] = []
        for _ in range(rng.choice((1, 1, 3))):
            pieces: list[Buffer] = [rng.randbytes(61)]
            for _ in range(rng.choice((0, 1, 1, 3))):
                pieces.append(memoryview(rng.randbytes(rng.choice((1, 60, 16384)))))
            batches.append((rng.randrange(1 << 31), pieces, sum(map(len, pieces))))
        topics.append((f"topic-é{number}" * rng.choice((1, 20)), rng.randbytes(16), batches))
    return topics


def _message(topics: Any, acks: int, timeout_ms: int, transactional_id: str | None) -> Any:
    return {
        "transactional_id": transactional_id,
        "acks": acks,
        "timeout_ms": timeout_ms,
        "topics": [
            {
                "name": name,
                "topic_id": topic_id,
                "partitions": [
                    {"index": partition, "records": b"".join(pieces)}
                    for partition, pieces, _size in batches
                ],
            }
            for name, topic_id, batches in topics
        ],
    }


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("transactional_id", [None, "lane-1"])
def test_requests_are_those_of_kafka_python(
    version: int, transactional_id: str | None, rng: random.Random
) -> None:
    for _ in range(10):
        topics, acks = _topics(rng), rng.choice((-1, 0, 1))
        ours = encode_produce_request(version, 7, "c", acks, 30_000, transactional_id, topics)
        message = _message(topics, acks, 30_000, transactional_id)
        if version >= 13:
            for topic in message["topics"]:
                del topic["name"]
        else:
            for topic in message["topics"]:
                del topic["topic_id"]
        theirs = peers.kafka_python_message(peers.Case(PRODUCE.request, version, message))
        theirs.with_header(correlation_id=7, client_id="c")
        assert b"".join(ours) == theirs.encode(version=version, header=True, framed=True)


@pytest.mark.parametrize("version", range(3, 9))
def test_requests_are_those_of_aiokafka(version: int, rng: random.Random) -> None:
    theirs = getattr(aiokafka_produce, f"ProduceRequest_v{version}")
    for _ in range(10):
        topics, acks = _topics(rng), rng.choice((-1, 0, 1))
        rows = [
            (name, [(partition, b"".join(pieces)) for partition, pieces, _size in batches])
            for name, _id, batches in topics
        ]
        body = theirs(None, acks, 1234, rows).encode()
        ours = b"".join(encode_produce_request(version, 1, "c", acks, 1234, None, topics))
        header = framing.request_header(PRODUCE, version, 1, "c")
        assert ours[4:] == header + body


def test_payload_is_handed_on_without_a_copy(rng: random.Random) -> None:
    shared = memoryview(bytearray(100_000))
    batches: list[Batch] = [(0, [bytes(61), shared[:50_000], shared[50_000:]], 100_061)]
    buffers = encode_produce_request(9, 1, None, -1, 1, None, [("t", bytes(16), batches)])
    views = [one for one in buffers if isinstance(one, memoryview)]
    assert [view.obj for view in views] == [shared.obj, shared.obj]
    assert sum(map(len, buffers)) == 4 + int.from_bytes(buffers[0][:4], "big")
