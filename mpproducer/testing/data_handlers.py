"""Produce and Fetch of the in-memory broker: what the records go through."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

from mpproducer.testing.cluster import Cluster, Partition, Topic
from mpproducer.testing.faults import ERROR, ERROR_AFTER, OMIT, REPEAT, Fault
from mpproducer.testing.handlers import leader_error
from mpproducer.testing.log import Appended, received
from mpproducer.wire import error_codes as codes
from mpproducer.wire.record_batch import TRANSACTIONAL, RecordBatch

Message = dict[str, Any]
Place = str | bytes
"""A topic as a request names it: by name or by id."""

TOPIC_IDS_IN_PRODUCE: Final = 13
TOPIC_IDS_IN_FETCH: Final = 13
_LEGAL_ACKS: Final = (-1, 0, 1)
_TOLD_WITH_LOG_START: Final = (
    codes.OUT_OF_ORDER_SEQUENCE_NUMBER, codes.INVALID_PRODUCER_EPOCH, codes.UNKNOWN_PRODUCER_ID,
)  # fmt: skip


def topics_of(cluster: Cluster, request: Message) -> set[str]:
    """Names of the topics a request is about; faults are chosen by them."""
    names: set[str] = set()
    for topic in request.get("topics") or ():
        if isinstance(topic, str):
            names.add(topic)
            continue
        name = topic.get("name") or topic.get("topic")
        if not name and (found := cluster.by_id(topic.get("topic_id", b""))):
            name = found.name
        if name:
            names.add(name)
    return names


def _topic(cluster: Cluster, place: Place) -> Topic | None:
    return cluster.by_id(place) if isinstance(place, bytes) else cluster.topics.get(place)


def _named(place: Place) -> Message:
    return {"topic_id": place} if isinstance(place, bytes) else {"name": place}


def _partition(topic: Topic | None, number: int) -> Partition | None:
    if topic is None or not 0 <= number < len(topic.partitions):
        return None
    return topic.partitions[number]


def produce(
    cluster: Cluster, node: int, version: int, request: Message, fault: Fault | None
) -> Message:
    """Append what the request brings; per partition an offset or an error."""
    hints: set[int] = set()
    now_ms = time.time_ns() // 1_000_000
    with cluster.lock:
        parsed = _received(version, request)
        forbidden = _transactional(parsed.values())
        answers: dict[Place, Message] = {}
        for (place, number), batch in parsed.items():
            topic = _topic(cluster, place)
            partition = _partition(topic, number)
            if forbidden:
                done = Appended(codes.TRANSACTIONAL_ID_AUTHORIZATION_FAILED)
            elif code := _scripted(fault, topic, ERROR):
                done = _refused(code, partition)
            elif topic is None and isinstance(place, bytes):
                done = Appended(codes.UNKNOWN_TOPIC_ID)
            else:
                done = _append(partition, node, request["acks"], batch, now_ms)
                if code := _scripted(fault, topic, ERROR_AFTER):
                    done = done if done.error_code else Appended(code, message="scripted")
            entry = answers.setdefault(place, _named(place) | {"partitions": []})
            entry["partitions"].append(_produced(number, done, partition))
            if done.error_code == codes.NOT_LEADER_OR_FOLLOWER and partition is not None:
                hints.add(partition.leader)
        topics = list(answers.values())
        endpoints = [
            {"node_id": number, "host": host, "port": port, "rack": None}
            for number, (host, port) in sorted(cluster.addresses.items())
            if number in hints
        ]
    if fault is not None and fault.kind == OMIT:
        topics[-1]["partitions"].pop()
    elif fault is not None and fault.kind == REPEAT:
        topics[0]["partitions"].append(topics[0]["partitions"][0])
    return {"topics": topics, "node_endpoints": endpoints}


def _received(version: int, request: Message) -> dict[tuple[Place, int], RecordBatch | Appended]:
    """The batches of a request. Of a partition that is there twice Kafka takes the last one."""
    found: dict[tuple[Place, int], RecordBatch | Appended] = {}
    for entry in request["topics"]:
        place = entry["topic_id"] if version >= TOPIC_IDS_IN_PRODUCE else entry["name"]
        for wanted in entry["partitions"]:
            found[place, wanted["index"]] = received(wanted["records"] or b"", version)
    return found


def _transactional(parsed: Iterable[RecordBatch | Appended]) -> bool:
    """Whether any batch is transactional: there are no transactions here, so nobody may."""
    return any(isinstance(one, RecordBatch) and one.attributes & TRANSACTIONAL for one in parsed)


def _refused(code: int, partition: Partition | None) -> Appended:
    told = partition is not None and code in _TOLD_WITH_LOG_START
    start = partition.log.start_offset if partition is not None and told else -1
    return Appended(code, message="scripted", log_start_offset=start)


def _scripted(fault: Fault | None, topic: Topic | None, kind: str) -> int:
    if (
        fault is None
        or fault.kind != kind
        or (fault.topic and (topic is None or topic.name != fault.topic))
    ):
        return codes.NONE
    return fault.code


def _append(
    partition: Partition | None, node: int, acks: int, batch: RecordBatch | Appended, now_ms: int
) -> Appended:
    """The checks of a Kafka broker in its order."""
    if partition is None:
        return Appended(codes.UNKNOWN_TOPIC_OR_PARTITION)
    if isinstance(batch, Appended):
        return batch
    if acks not in _LEGAL_ACKS:
        return Appended(codes.INVALID_REQUIRED_ACKS)
    error = leader_error(partition, node)
    return Appended(error) if error else partition.log.append(batch, now_ms)


def _produced(index: int, done: Appended, partition: Partition | None) -> Message:
    leader = {"leader_id": -1, "leader_epoch": -1}
    if done.error_code == codes.NOT_LEADER_OR_FOLLOWER and partition is not None:
        leader = {"leader_id": partition.leader, "leader_epoch": partition.leader_epoch}
    return {
        "index": index,
        "error_code": done.error_code,
        "base_offset": done.base_offset,
        "log_append_time_ms": done.log_append_time_ms,
        "log_start_offset": done.log_start_offset,
        "record_errors": [
            {"batch_index": at, "message": message} for at, message in done.record_errors
        ],
        "error_message": done.message,
        "current_leader": leader,
    }


def fetch(cluster: Cluster, node: int, version: int, request: Message) -> tuple[Message, int, bool]:
    """Return (response, bytes of records in it, whether any partition has an error)."""
    left = request["max_bytes"] or 1 << 30
    total, wrong = 0, False
    responses = []
    with cluster.lock:
        for entry in request["topics"]:
            by_id = version >= TOPIC_IDS_IN_FETCH
            topic = _topic(cluster, entry["topic_id" if by_id else "topic"])
            results = []
            for wanted in entry["partitions"]:
                partition = _partition(topic, wanted["partition"])
                result = _fetched(partition, node, wanted, left)
                if topic is None and by_id:
                    result["error_code"] = codes.UNKNOWN_TOPIC_ID
                size = len(result["records"])
                left, total = left - size, total + size
                wrong = wrong or bool(result["error_code"])
                results.append(result)
            responses.append(
                {
                    "topic": entry["topic"],
                    "topic_id": entry["topic_id"],
                    "partitions": results,
                }
            )
    return {"responses": responses}, total, wrong


def _fetched(partition: Partition | None, node: int, wanted: Message, left: int) -> Message:
    result: Message = {
        "partition_index": wanted["partition"],
        "error_code": leader_error(partition, node, wanted["current_leader_epoch"]),
        "high_watermark": -1,
        "records": b"",
        "aborted_transactions": None,
    }
    if partition is None or result["error_code"]:
        return result
    log, offset = partition.log, wanted["fetch_offset"]
    result |= {
        "high_watermark": log.end_offset,
        "last_stable_offset": log.end_offset,
        "log_start_offset": log.start_offset,
    }
    if not log.start_offset <= offset <= log.end_offset:
        result["error_code"] = codes.OFFSET_OUT_OF_RANGE
    elif offset < log.end_offset and left > 0:
        result["records"] = log.read(offset, min(left, wanted["partition_max_bytes"]))
    return result


def partition_errors(response: Message) -> Iterator[int]:
    """The error codes of a Produce response."""
    for topic in response["topics"]:
        for partition in topic["partitions"]:
            yield partition["error_code"]
