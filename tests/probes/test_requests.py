"""Requests as a whole: acks, versions, topics by name and id, and how connections end."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from mpproducer.wire import error_codes as codes
from mpproducer.wire import framing
from mpproducer.wire.codec import int32
from mpproducer.wire.messages import (
    API_VERSIONS,
    CREATE_TOPICS,
    INIT_PRODUCER_ID,
    METADATA,
    PRODUCE,
)
from mpproducer.wire.record_batch import Record
from tests.probes import batches as b
from tests.probes.client import Closed, Raw, Topic

VERSIONS = range(PRODUCE.versions[0], PRODUCE.versions[1] + 1)
NOBODY = Topic("nobody", b"\x07" * 16)


def _closed(raw: Raw) -> bool:
    """Whether the broker closes the connection instead of answering."""
    try:
        raw.receive()
    except Closed:
        return True
    return False


# --- acks


@pytest.mark.parametrize("acks", [1, -1])
def test_acks_1_and_all_are_answered(raw: Raw, topic: Topic, acks: int) -> None:
    result = raw.produce(topic, b.sound(), acks=acks)
    assert (result.error_code, result.base_offset) == (0, 0)


@pytest.mark.parametrize("acks", [2, -2, 32767])
def test_other_acks_are_refused(raw: Raw, topic: Topic, acks: int) -> None:
    result = raw.produce(topic, b.sound(), acks=acks)
    assert (result.error_code, result.base_offset) == (codes.INVALID_REQUIRED_ACKS, -1)
    assert raw.end_offset(topic) == 0


def test_errors_of_a_partition_come_before_wrong_acks(raw: Raw, topic: Topic) -> None:
    unknown = raw.produce(topic, b.sound(), acks=2, partition=9)
    assert unknown.error_code == codes.UNKNOWN_TOPIC_OR_PARTITION
    assert raw.produce(topic, b"", acks=2).error_code == codes.INVALID_RECORD
    assert raw.produce(topic, b.damaged(), acks=2).error_code == codes.INVALID_REQUIRED_ACKS


def test_acks_0_is_stored_and_not_answered(raw: Raw, topic: Topic) -> None:
    for _ in range(3):
        raw.send_produce(9, {topic: [(0, b.sound()), (1, b.sound())]}, acks=0)
    assert raw.end_offset(topic) == 9  # the answer to the next request is the next answer
    assert raw.end_offset(topic, 1) == 9


@pytest.mark.parametrize(
    ("version", "partition", "data"),
    [(9, 0, b.damaged()), (9, 0, b""), (9, 8, b.sound()), (3, 0, b.damaged())],
    ids=["CRC", "no batch", "unknown partition", "old version"],
)
def test_an_error_under_acks_0_closes_the_connection(
    raw: Raw, topic: Topic, version: int, partition: int, data: bytes
) -> None:
    raw.send_produce(version, {topic: [(partition, data)]}, acks=0)
    assert _closed(raw)


def test_an_unknown_topic_id_under_acks_0_closes_the_connection(raw: Raw, topic: Topic) -> None:
    raw.send_produce(13, {NOBODY: [(0, b.sound())]}, acks=0)
    assert _closed(raw)


# --- versions


@pytest.mark.parametrize("version", VERSIONS)
def test_every_produce_version_stores_and_answers(raw: Raw, topic: Topic, version: int) -> None:
    for number in range(2):
        raw.send_produce(version, {topic: [(0, b.sound()), (1, b.sound())]})
        response = raw.produce_response(version)
        ((name, results),) = response.topics
        assert name == (topic.topic_id if version >= 13 else topic.name)
        assert sorted(r.partition for r in results) == [0, 1]
        for result in results:
            assert (result.error_code, result.base_offset) == (0, 3 * number)
            assert result.log_start_offset == (0 if version >= 5 else -1)
            assert result.log_append_time_ms == -1
            assert (result.record_errors, result.error_message, result.leader) == ((), None, None)
        assert response.throttle_time_ms == 0
        assert response.node_endpoints == ()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_produce_version_says_what_is_wrong(raw: Raw, topic: Topic, version: int) -> None:
    assert raw.produce(topic, b.damaged(), version=version).error_code == codes.CORRUPT_MESSAGE
    wrong = raw.produce(topic, b"", version=version)
    assert (wrong.error_code, wrong.base_offset) == (codes.INVALID_RECORD, -1)
    far = b.sound(timestamp_ms=b.NOW_MS + 2 * b.HOUR_MS)
    late = raw.produce(topic, far, version=version)
    assert late.error_code == codes.INVALID_TIMESTAMP
    named = [index for index, _message in late.record_errors]
    assert named == ([0, 1, 2] if version >= 8 else [])


def test_the_versions_a_producer_needs_are_spoken(raw: Raw) -> None:
    spoken = raw.api_versions()
    for api in (METADATA, INIT_PRODUCER_ID, API_VERSIONS, CREATE_TOPICS, PRODUCE):
        low, high = spoken[api.key]
        assert low <= api.versions[0]
        assert high >= api.versions[1]


def test_api_versions_of_the_future_is_answered_with_what_it_speaks_of_it(raw: Raw) -> None:
    body = framing.request_header(API_VERSIONS, 99, 5, "probe") + b"\2a\2b\0"
    raw.send(int32(len(body)) + body)
    found = framing.decode_response(raw.receive(), API_VERSIONS, 4, 5)
    assert found["error_code"] == codes.UNSUPPORTED_VERSION
    assert [key["api_key"] for key in found["api_keys"]] == [API_VERSIONS.key]
    assert raw.api_versions()  # the connection goes on


@pytest.mark.parametrize("name", ["a b", "", "-x", "é"])
def test_api_versions_of_a_client_without_a_proper_name_is_refused(raw: Raw, name: str) -> None:
    message = {"client_software_name": name, "client_software_version": "1"}
    assert raw.ask(API_VERSIONS, 3, message)["error_code"] == codes.INVALID_REQUEST


HEAD = b"\0\0\0\1\0\4abcd"


@pytest.mark.parametrize(
    "data",
    [
        int32(14) + b"\x7f\0\0\0" + HEAD,
        int32(14) + b"\0\0\0\x0e" + HEAD,
        int32(14) + b"\0\0\0\x02" + HEAD,
        int32(15) + b"\0\3\0\1" + HEAD + b"\0",
        int32(18) + b"\0\3\0\1" + HEAD + b"\x7f\xff\xff\xff",
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
        bytes(4),
    ],
    ids=[
        "unknown API", "Produce v14", "Produce v2", "request cut short", "array of two billion",
        "length of -1", "length of 2 GiB", "length of 0",
    ],
)  # fmt: skip
def test_what_is_no_request_closes_the_connection(raw: Raw, data: bytes) -> None:
    raw.send(data)
    assert _closed(raw)


# --- topics and partitions


@pytest.mark.parametrize("partition", [2, 9, -1, (1 << 31) - 1])
@pytest.mark.parametrize("version", [3, 9, 13])
def test_an_unknown_partition(raw: Raw, topic: Topic, partition: int, version: int) -> None:
    result = raw.produce(topic, b.sound(), partition=partition, version=version)
    assert result.partition == partition
    assert result.error_code == codes.UNKNOWN_TOPIC_OR_PARTITION
    assert (result.base_offset, result.log_start_offset, result.leader) == (-1, -1, None)


@pytest.mark.parametrize("name", ["nobody-has-this", "", "no legal name!"])
def test_an_unknown_topic(raw: Raw, name: str) -> None:
    result = raw.produce(Topic(name, bytes(16)), b.sound())
    assert (result.error_code, result.base_offset) == (codes.UNKNOWN_TOPIC_OR_PARTITION, -1)


@pytest.mark.parametrize("topic_id", [bytes(16), b"\x07" * 16])
def test_an_unknown_topic_id(raw: Raw, topic_id: bytes) -> None:
    result = raw.produce(Topic("x", topic_id), b.sound(), version=13)
    assert (result.error_code, result.base_offset) == (codes.UNKNOWN_TOPIC_ID, -1)


def test_a_topic_deleted_and_made_again_has_another_id(raw: Raw, topic: Topic) -> None:
    raw.delete(topic.name)
    again = raw.create(f"{topic.name}-again")
    assert again.topic_id != topic.topic_id
    assert raw.produce(topic, b.sound(), version=13).error_code == codes.UNKNOWN_TOPIC_ID
    assert raw.produce(again, b.sound(), version=13).error_code == 0
    raw.delete(again.name)


def test_partitions_of_one_request_stand_for_themselves(raw: Raw, topic: Topic) -> None:
    rows = {topic: [(0, b.sound()), (1, b""), (7, b.sound())], NOBODY: [(0, b.sound())]}
    raw.send_produce(9, rows)
    told = {
        (name, result.partition): result.error_code
        for name, results in raw.produce_response(9).topics
        for result in results
    }
    assert told == {
        (topic.name, 0): 0,
        (topic.name, 1): codes.INVALID_RECORD,
        (topic.name, 7): codes.UNKNOWN_TOPIC_OR_PARTITION,
        (NOBODY.name, 0): codes.UNKNOWN_TOPIC_OR_PARTITION,
    }
    assert (raw.end_offset(topic), raw.end_offset(topic, 1)) == (3, 0)


def test_of_a_partition_named_twice_the_last_batch_counts(raw: Raw, topic: Topic) -> None:
    raw.send_produce(9, {topic: [(0, b.sound()), (0, b.sound(b.records(5)))]})
    ((_name, results),) = raw.produce_response(9).topics
    assert [(r.error_code, r.base_offset) for r in results] == [(0, 0)]
    assert raw.end_offset(topic) == 5


def test_a_request_of_nothing_is_answered_with_nothing(raw: Raw) -> None:
    raw.send_produce(9, {})
    assert raw.produce_response(9) == ([], 0, ())


def test_requests_sent_at_once_are_answered_in_order(raw: Raw, topic: Topic) -> None:
    message = {"topics": [{"name": topic.name}], "allow_auto_topic_creation": False}
    frames = [framing.encode_request(METADATA, 9, number, "probe", message) for number in range(20)]
    raw.send(b"".join(frames))
    for number in range(20):
        framing.decode_response(raw.receive(), METADATA, 9, number)


# --- metadata


@pytest.mark.parametrize("version", range(METADATA.versions[0], METADATA.versions[1] + 1))
def test_metadata_of_a_topic_in_every_version(raw: Raw, topic: Topic, version: int) -> None:
    found = raw.metadata(topic.name, version)
    (one,) = found["topics"]
    assert (one["error_code"], one["name"], one["is_internal"]) == (0, topic.name, False)
    assert one["topic_id"] == (topic.topic_id if version >= 10 else bytes(16))
    numbers = sorted(p["partition_index"] for p in one["partitions"])
    assert numbers == [0, 1]
    nodes = {broker["node_id"] for broker in found["brokers"]}
    for partition in one["partitions"]:
        assert partition["error_code"] == 0
        assert partition["leader_id"] in nodes
        assert partition["leader_epoch"] == (0 if version >= 7 else -1)
        assert partition["replica_nodes"] == partition["isr_nodes"] == [partition["leader_id"]]
        assert partition["offline_replicas"] == []


def test_metadata_by_id_twice_none_and_unknown(raw: Raw, topic: Topic) -> None:
    def ask(*topics: dict[str, Any], version: int = 12) -> list[tuple[int, str | None]]:
        message = {"topics": list(topics), "allow_auto_topic_creation": False}
        found = raw.ask(METADATA, version, message)["topics"]
        return [(one["error_code"], one["name"]) for one in found]

    assert ask({"topic_id": topic.topic_id, "name": None}) == [(0, topic.name)]
    unknown = ask({"topic_id": NOBODY.topic_id, "name": None})
    assert unknown == [(codes.UNKNOWN_TOPIC_ID, None)]
    assert ask({"name": topic.name}, {"name": topic.name}) == [(0, topic.name)]
    assert ask() == ask(version=1) == []
    wrong = ask({"name": "no legal name!"}, {"name": "nobody-has-this"})
    assert sorted(wrong) == [
        (codes.UNKNOWN_TOPIC_OR_PARTITION, "nobody-has-this"),
        (codes.INVALID_TOPIC, "no legal name!"),
    ]


# --- producer ids


def test_every_question_gets_another_producer_id_at_epoch_0(raw: Raw) -> None:
    first, second = raw.producer_id(), raw.producer_id()
    assert first[0] != second[0]
    assert first[1] == second[1] == 0


@pytest.mark.parametrize("version", range(6))
def test_init_producer_id_in_every_version(raw: Raw, version: int) -> None:
    message = {"transactional_id": None, "transaction_timeout_ms": 0}
    raw.producer_id()  # a broker that has just started answers 14 for a while: this one waits
    answer = raw.ask(INIT_PRODUCER_ID, version, message)
    assert (answer["error_code"], answer["producer_epoch"]) == (0, 0)
    assert answer["producer_id"] >= 0


def test_an_epoch_cannot_be_raised_without_a_transactional_id(raw: Raw) -> None:
    producer_id, epoch = raw.producer_id()
    message = {
        "transactional_id": None, "transaction_timeout_ms": 1000, "producer_id": producer_id,
        "producer_epoch": epoch,
    }  # fmt: skip
    answer = raw.ask(INIT_PRODUCER_ID, 4, message)
    assert (answer["error_code"], answer["producer_epoch"]) == (0, 0)
    assert answer["producer_id"] != producer_id


def test_an_empty_transactional_id_is_refused(raw: Raw) -> None:
    answer = raw.ask(INIT_PRODUCER_ID, 4, {"transactional_id": "", "transaction_timeout_ms": 1000})
    told = (answer["error_code"], answer["producer_id"], answer["producer_epoch"])
    assert told == (codes.INVALID_REQUEST, -1, -1)


# --- creating topics

AUTOMATIC = {"num_partitions": -1, "replication_factor": -1}
CREATED: dict[str, tuple[int, dict[str, Any]]] = {
    "counts": (0, {}),
    "defaults": (0, AUTOMATIC),
    "assigned": (0, AUTOMATIC | {"assignments": [{"partition_index": 0, "broker_ids": [1]}]}),
    "no partitions": (codes.INVALID_PARTITIONS, {"num_partitions": 0}),
    "fewer than none": (codes.INVALID_PARTITIONS, {"num_partitions": -5}),
    "too many partitions": (codes.POLICY_VIOLATION, {"num_partitions": (1 << 31) - 1}),
    "too many replicas": (codes.INVALID_REPLICATION_FACTOR, {"replication_factor": 99}),
    "no replicas": (codes.INVALID_REPLICATION_FACTOR, {"replication_factor": 0}),
    "illegal name": (codes.INVALID_TOPIC, {"name": "a b"}),
    "empty name": (codes.INVALID_TOPIC, {"name": ""}),
    "name of dots": (codes.INVALID_TOPIC, {"name": ".."}),
    "name of 250": (codes.INVALID_TOPIC, {"name": "x" * 250}),
    "unknown config": (codes.INVALID_CONFIG, {"configs": [{"name": "nope", "value": "1"}]}),
    "wrong config": (
        codes.INVALID_CONFIG, {"configs": [{"name": "max.message.bytes", "value": "abc"}]},
    ),
    "null config": (
        codes.INVALID_CONFIG, {"configs": [{"name": "max.message.bytes", "value": None}]},
    ),
    "assigned and counted": (
        codes.INVALID_REQUEST, {"assignments": [{"partition_index": 0, "broker_ids": [1]}]},
    ),
    "assigned with a gap": (
        codes.INVALID_REPLICA_ASSIGNMENT,
        AUTOMATIC | {"assignments": [{"partition_index": 1, "broker_ids": [1]}]},
    ),
    "assigned to nobody": (
        codes.INVALID_REPLICA_ASSIGNMENT,
        AUTOMATIC | {"assignments": [{"partition_index": 0, "broker_ids": [99]}]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CREATED)
def test_creating_a_topic(raw: Raw, name: str) -> None:
    expected, changes = CREATED[name]
    wanted = {
        "name": f"probe-{uuid.uuid4().hex}", "num_partitions": 1, "replication_factor": 1,
        "assignments": [], "configs": [],
    } | changes  # fmt: skip
    for validate_only in (True, False):
        message = {"topics": [wanted], "timeout_ms": 10_000, "validate_only": validate_only}
        (told,) = raw.ask(CREATE_TOPICS, 7, message)["topics"]
        assert told["error_code"] == expected, told
        assert (told["error_message"] is None) == (expected == 0)
        counts = (told["num_partitions"], told["replication_factor"])
        assert counts == ((1, 1) if expected == 0 else (-1, -1))
    if expected == 0:
        (again,) = raw.ask(CREATE_TOPICS, 7, message)["topics"]
        assert again["error_code"] == codes.TOPIC_ALREADY_EXISTS
        raw.delete(str(wanted["name"]))


# --- reading back


def test_offsets_by_time(raw: Raw, topic: Topic) -> None:
    at = b.NOW_MS
    deltas = (0, 5, 3)
    raw.produce(topic, b.sound([Record(i, d, None, b"v") for i, d in enumerate(deltas)]))

    def found(when: int) -> tuple[int, int, int, int]:
        told = raw.latest(topic, timestamp=when)
        return told["error_code"], told["offset"], told["timestamp"], told["leader_epoch"]

    assert found(-1) == (0, 3, -1, 0)
    assert found(-2) == found(-4) == (0, 0, -1, 0)
    assert found(-3) == found(at + 1) == found(at + 4) == (0, 1, at + 5, 0)
    assert found(at) == found(0) == (0, 0, at, 0)
    assert found(at + 6) == (0, -1, -1, -1)
    assert found(-9) == (codes.UNSUPPORTED_VERSION, -1, -1, -1)
