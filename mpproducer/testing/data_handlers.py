"""Produce and Fetch of the in-memory broker: what the records go through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from mpproducer.testing.cluster import Cluster, Partition, Topic
from mpproducer.testing.faults import OMIT, REPEAT, Fault
from mpproducer.testing.handlers import leader_error
from mpproducer.testing.log import Appended
from mpproducer.wire import error_codes as codes

Message = dict[str, Any]

TOPIC_IDS_IN_PRODUCE: Final = 13
TOPIC_IDS_IN_FETCH: Final = 13
_LEGAL_ACKS: Final = (-1, 0, 1)


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


def _topic(cluster: Cluster, entry: Message, name_field: str, *, by_id: bool) -> Topic | None:
    return cluster.by_id(entry["topic_id"]) if by_id else cluster.topics.get(entry[name_field])


def _partition(topic: Topic | None, number: int) -> Partition | None:
    if topic is None or not 0 <= number < len(topic.partitions):
        return None
    return topic.partitions[number]


def produce(
    cluster: Cluster, node: int, version: int, request: Message, fault: Fault | None
) -> Message:
    """Append what the request brings; per partition an offset or an error."""
    forced = fault.code if fault is not None and fault.code else codes.NONE
    topics: list[Message] = []
    hints: set[int] = set()
    with cluster.lock:
        for entry in request["topics"]:
            topic = _topic(cluster, entry, "name", by_id=version >= TOPIC_IDS_IN_PRODUCE)
            results = []
            for wanted in entry["partitions"]:
                partition = _partition(topic, wanted["index"])
                done = _append(partition, node, version, request, wanted, forced)
                if done.error_code == codes.UNKNOWN_TOPIC_OR_PARTITION and topic is None:
                    by_id = version >= TOPIC_IDS_IN_PRODUCE
                    done = Appended(codes.UNKNOWN_TOPIC_ID if by_id else done.error_code)
                results.append(_produced(wanted["index"], done, partition))
                if done.error_code == codes.NOT_LEADER_OR_FOLLOWER and partition is not None:
                    hints.add(partition.leader)
            topics.append(
                {
                    "name": entry["name"],
                    "topic_id": entry["topic_id"],
                    "partitions": results,
                }
            )
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


def _append(
    partition: Partition | None,
    node: int,
    version: int,
    request: Message,
    wanted: Message,
    forced: int,
) -> Appended:
    if forced:
        return Appended(forced, message="scripted")
    if request["acks"] not in _LEGAL_ACKS:
        return Appended(codes.INVALID_REQUIRED_ACKS)
    error = leader_error(partition, node)
    if partition is None or error:
        return Appended(error)
    if wanted["records"] is None:
        return Appended(codes.INVALID_RECORD, message="no records")
    return partition.log.append(wanted["records"], version)


def _produced(index: int, done: Appended, partition: Partition | None) -> Message:
    leader = {"leader_id": -1, "leader_epoch": -1}
    if done.error_code == codes.NOT_LEADER_OR_FOLLOWER and partition is not None:
        leader = {"leader_id": partition.leader, "leader_epoch": partition.leader_epoch}
    return {
        "index": index,
        "error_code": done.error_code,
        "base_offset": done.base_offset,
        "log_append_time_ms": -1,
        "log_start_offset": -1 if partition is None or done.error_code else 0,
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
            topic = _topic(cluster, entry, "topic", by_id=by_id)
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
