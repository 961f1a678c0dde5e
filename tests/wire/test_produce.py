"""Produce on the data path: the glue around payload, against two encoders and a decoder."""

from __future__ import annotations

import random
from typing import Any

import pytest
from aiokafka.protocol import produce as aiokafka_produce

from mpproducer.wire import framing, produce
from mpproducer.wire.codec import Buffer, ProtocolError
from mpproducer.wire.messages import PRODUCE
from mpproducer.wire.produce import (
    FLEXIBLE,
    TOPIC_IDS,
    Batch,
    PartitionResult,
    decode_produce_response,
    encode_produce_request,
)
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


def _answers(rng: random.Random, version: int, count: int) -> list[peers.Case]:
    return [case for case in peers.cases(rng, count, [PRODUCE.response]) if case.version == version]


@pytest.mark.parametrize("version", VERSIONS)
def test_answers_say_what_the_table_reads_in_them(version: int, rng: random.Random) -> None:
    for case in _answers(rng, version, 20):
        frame = framing.encode_response(PRODUCE, version, 3, case.message)[4:]
        told = decode_produce_response(frame, version, 3)
        message = case.whole()
        assert told.throttle_time_ms == message["throttle_time_ms"]
        endpoints = [(e["node_id"], e["host"], e["port"]) for e in message["node_endpoints"]]
        assert list(told.node_endpoints) == endpoints
        assert len(told.topics) == len(message["topics"])
        for (name, results), topic in zip(told.topics, message["topics"], strict=True):
            assert name == topic["topic_id" if version >= 13 else "name"]
            assert results == [_result(p) for p in topic["partitions"]]


@pytest.mark.parametrize("version", range(FLEXIBLE, TOPIC_IDS))
def test_an_answer_about_one_partition_is_read_at_once_exactly_where_the_long_way_reads_the_same(
    version: int, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = produce._decode_one
    monkeypatch.setattr(produce, "_decode_one", lambda _frame, _id: None)
    for name in ("t", "topic-é", "x" * 126, "x" * 127):
        partition = {
            "index": rng.randrange(1 << 31), "error_code": rng.choice((0, 19)),
            "base_offset": rng.choice((-1, 5, 1 << 50)), "log_start_offset": 3,
        }  # fmt: skip
        topics = [{"name": name, "partitions": [partition]}]
        message = {"topics": topics, "throttle_time_ms": rng.choice((0, 70_000))}
        frame = framing.encode_response(PRODUCE, version, 3, message)[4:]
        told = decode_produce_response(frame, version, 3)
        assert at_once(frame, 3) == (told if len(name) < 127 else None)
        assert at_once(frame, 4) is None
        for at in range(len(frame)):
            changed = bytearray(frame)
            changed[at] ^= 1 << rng.randrange(8)
            short = at_once(bytes(changed), 3)
            if short is not None:
                assert short == decode_produce_response(bytes(changed), version, 3), at
            assert at_once(frame[:at], 3) is None


def _result(partition: Any) -> PartitionResult:
    leader = (partition["current_leader"]["leader_id"], partition["current_leader"]["leader_epoch"])
    return PartitionResult(
        partition["index"],
        partition["error_code"],
        partition["base_offset"],
        partition["log_append_time_ms"],
        partition["log_start_offset"],
        tuple((e["batch_index"], e["message"]) for e in partition["record_errors"]),
        partition["error_message"],
        None if leader == (-1, -1) else leader,
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_an_answer_cut_short_or_too_long_or_to_another_request_is_refused(
    version: int, rng: random.Random
) -> None:
    message = next(c.message for c in _answers(rng, version, 50) if len(c.message["topics"]) > 1)
    frame = framing.encode_response(PRODUCE, version, 3, message)[4:]
    decode_produce_response(frame, version, 3)
    for end in range(len(frame)):
        with pytest.raises(ProtocolError):
            decode_produce_response(frame[:end], version, 3)
    with pytest.raises(ProtocolError, match="1 bytes too many"):
        decode_produce_response(frame + b"\0", version, 3)
    with pytest.raises(ProtocolError, match="response to request 3 where 4 was expected"):
        decode_produce_response(frame, version, 4)
