"""What the in-memory broker answers: one function per API, no sockets, no clock.

Each takes the cluster, the node that was asked, the API version and the decoded request, and
returns the message of the response. Produce and Fetch are in `data_handlers.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from mpproducer.testing.cluster import Cluster, Partition, Topic, legal_name
from mpproducer.wire import error_codes as codes

Message = dict[str, Any]
Handler = Callable[[Cluster, int, int, Message], Message]

LATEST_TIMESTAMP: Final = -1
EARLIEST_TIMESTAMP: Final = -2
MAX_TIMESTAMP: Final = -3
EARLIEST_LOCAL_TIMESTAMP: Final = -4
_MAX_NEW_PARTITIONS: Final = 10_000
_TOPIC_CONFIGS: Final = """
    cleanup.policy compression.gzip.level compression.lz4.level compression.type
    compression.zstd.level delete.retention.ms file.delete.delay.ms flush.messages flush.ms
    follower.replication.throttled.replicas index.interval.bytes
    leader.replication.throttled.replicas local.retention.bytes local.retention.ms
    max.compaction.lag.ms max.message.bytes message.timestamp.after.max.ms
    message.timestamp.before.max.ms message.timestamp.type min.cleanable.dirty.ratio
    min.compaction.lag.ms min.insync.replicas preallocate remote.log.copy.disable
    remote.log.delete.on.disable remote.storage.enable retention.bytes retention.ms segment.bytes
    segment.index.bytes segment.jitter.ms segment.ms unclean.leader.election.enable
"""
_CLUSTER_ID: Final = "mpproducer-testing-xxx"


def metadata(cluster: Cluster, node: int, version: int, request: Message) -> Message:
    """Metadata; unknown topics are created where request and cluster allow it."""
    wanted = request["topics"]
    with cluster.lock:
        if wanted is None or (version == 0 and not wanted):
            topics = [_topic(cluster, topic) for topic in cluster.topics.values()]
        else:
            may_create = request["allow_auto_topic_creation"] and cluster.auto_create
            once = {(entry["name"], entry["topic_id"]): entry for entry in wanted}
            topics = [_wanted_topic(cluster, e, may_create=may_create) for e in once.values()]
        return {
            "brokers": [
                {"node_id": number, "host": host, "port": port, "rack": None}
                for number, (host, port) in sorted(cluster.addresses.items())
                if number in cluster.alive
            ],
            "cluster_id": _CLUSTER_ID,
            "controller_id": min(cluster.alive, default=-1),
            "topics": topics,
        }


def _wanted_topic(cluster: Cluster, entry: Message, *, may_create: bool) -> Message:
    name: str | None = entry["name"]
    if name is None:
        found = cluster.by_id(entry["topic_id"])
        if found is None:
            return {"error_code": codes.UNKNOWN_TOPIC_ID, "topic_id": entry["topic_id"]} | _NO_NAME
        return _topic(cluster, found)
    topic = cluster.topics.get(name)
    if topic is not None:
        return _topic(cluster, topic)
    if not legal_name(name):
        return {"error_code": codes.INVALID_TOPIC, "name": name}
    if may_create:
        # As a KRaft broker: this answer still says unknown, the next one has the topic.
        cluster.create(name, cluster.default_partitions)
    return {"error_code": codes.UNKNOWN_TOPIC_OR_PARTITION, "name": name}


_NO_NAME: Final[Message] = {"name": None, "partitions": []}


def _topic(cluster: Cluster, topic: Topic) -> Message:
    return {
        "error_code": codes.NONE,
        "name": topic.name,
        "topic_id": topic.topic_id,
        "partitions": [_partition(cluster, partition) for partition in topic.partitions],
    }


def _partition(cluster: Cluster, partition: Partition) -> Message:
    served = partition.leader in cluster.alive
    return {
        "error_code": codes.NONE if served else codes.LEADER_NOT_AVAILABLE,
        "partition_index": partition.number,
        "leader_id": partition.leader if served else -1,
        "leader_epoch": partition.leader_epoch,
        "replica_nodes": partition.replicas,
        "isr_nodes": [replica for replica in partition.replicas if replica in cluster.alive],
        "offline_replicas": [r for r in partition.replicas if r not in cluster.alive],
    }


def init_producer_id(cluster: Cluster, node: int, version: int, request: Message) -> Message:
    """A new producer id for every call, epoch 0, as Kafka without a transactional id."""
    if request["transactional_id"] is not None:
        return {"error_code": codes.INVALID_REQUEST, "producer_epoch": -1}
    return {"error_code": codes.NONE, "producer_id": cluster.producer_id(), "producer_epoch": 0}


def list_offsets(cluster: Cluster, node: int, version: int, request: Message) -> Message:
    """First, last, or first-since-a-time offset of partitions this node leads."""
    return {
        "topics": [
            {
                "name": topic["name"],
                "partitions": [
                    _offset_of(cluster, node, topic["name"], wanted)
                    for wanted in topic["partitions"]
                ],
            }
            for topic in request["topics"]
        ]
    }


def _offset_of(cluster: Cluster, node: int, name: str, wanted: Message) -> Message:
    number: int = wanted["partition_index"]
    with cluster.lock:
        partition = cluster.partition(name, number)
        error = leader_error(partition, node, wanted["current_leader_epoch"])
        if partition is None or error:
            return {"partition_index": number, "error_code": error}
        log, when = partition.log, wanted["timestamp"]
        offset, timestamp = -1, -1
        if when < EARLIEST_LOCAL_TIMESTAMP:
            return {"partition_index": number, "error_code": codes.UNSUPPORTED_VERSION}
        if when == LATEST_TIMESTAMP:
            offset = log.end_offset
        elif when in (EARLIEST_TIMESTAMP, EARLIEST_LOCAL_TIMESTAMP):
            offset = log.start_offset
        elif when == MAX_TIMESTAMP:
            newest = max((batch.max_timestamp_ms for batch in log.batches), default=-1)
            offset, timestamp = log.offset_for_time(newest)
        else:
            offset, timestamp = log.offset_for_time(when)
        return {
            "partition_index": number,
            "error_code": codes.NONE,
            "timestamp": timestamp,
            "offset": offset,
            "leader_epoch": partition.leader_epoch if offset >= 0 else -1,
        }


def leader_error(partition: Partition | None, node: int, epoch: int = -1) -> int:
    """Error code of a request for `partition` at `node` that thinks the leader epoch is `epoch`."""
    if partition is None:
        return codes.UNKNOWN_TOPIC_OR_PARTITION
    if partition.leader != node:
        return codes.NOT_LEADER_OR_FOLLOWER
    if 0 <= epoch < partition.leader_epoch:
        return codes.FENCED_LEADER_EPOCH
    if epoch > partition.leader_epoch:
        return codes.UNKNOWN_LEADER_EPOCH
    return codes.NONE


def create_topics(cluster: Cluster, node: int, version: int, request: Message) -> Message:
    """Create topics; `max.message.bytes` is the one topic configuration that has an effect."""
    return {
        "topics": [
            _create(cluster, wanted, validate_only=request["validate_only"])
            for wanted in request["topics"]
        ]
    }


class _Refused(Exception):
    """(error code, message) of a topic that cannot be created."""


def _create(cluster: Cluster, wanted: Message, *, validate_only: bool) -> Message:
    name: str = wanted["name"]
    with cluster.lock:
        try:
            replicas = _replicas(cluster, wanted)
            max_message_bytes = _max_message_bytes(wanted["configs"])
        except _Refused as refused:
            code, message = refused.args
            return {"name": name, "error_code": code, "error_message": message, "configs": []}
        answer = {
            "name": name,
            "error_code": codes.NONE,
            "error_message": None,
            "num_partitions": len(replicas),
            "replication_factor": len(replicas[0]),
            "configs": [],
        }
        if validate_only:
            return answer
        topic = cluster.create(name, len(replicas), len(replicas[0]))
        for partition, nodes in zip(topic.partitions, replicas, strict=True):
            if wanted["assignments"]:
                partition.replicas, partition.leader = nodes, nodes[0]
            if max_message_bytes is not None:
                partition.log.max_message_bytes = max_message_bytes
        return answer | {"topic_id": topic.topic_id}


def _replicas(cluster: Cluster, wanted: Message) -> list[list[int]]:
    """The nodes of each partition of a topic to create. Raises _Refused."""
    name: str = wanted["name"]
    count, replication = wanted["num_partitions"], wanted["replication_factor"]
    if not legal_name(name):
        raise _Refused(codes.INVALID_TOPIC, f"{name!r} is not a legal topic name")
    if name in cluster.topics:
        raise _Refused(codes.TOPIC_ALREADY_EXISTS, f"Topic '{name}' already exists.")
    if wanted["assignments"]:
        if (count, replication) != (-1, -1):
            raise _Refused(codes.INVALID_REQUEST, "an assignment, and not -1 for the counts")
        return _assigned(cluster, wanted["assignments"])
    count = cluster.default_partitions if count == -1 else count
    replication = 1 if replication == -1 else replication
    if count < 1:
        raise _Refused(codes.INVALID_PARTITIONS, "at least one partition")
    if count > _MAX_NEW_PARTITIONS:
        raise _Refused(codes.POLICY_VIOLATION, f"{count} partitions in one request")
    if not 1 <= replication <= len(cluster.alive):
        message = f"replication {replication} with {len(cluster.alive)} nodes"
        raise _Refused(codes.INVALID_REPLICATION_FACTOR, message)
    return [[-1] * replication for _ in range(count)]


def _assigned(cluster: Cluster, assignments: list[Message]) -> list[list[int]]:
    by_number = {entry["partition_index"]: list(entry["broker_ids"]) for entry in assignments}
    if sorted(by_number) != list(range(len(assignments))):
        raise _Refused(codes.INVALID_REPLICA_ASSIGNMENT, "partitions are not 0, 1, 2...")
    for nodes in by_number.values():
        if len(nodes) != len(by_number[0]) or not nodes or len(set(nodes)) != len(nodes):
            raise _Refused(codes.INVALID_REPLICA_ASSIGNMENT, "replicas missing or repeated")
        if not cluster.alive.issuperset(nodes):
            raise _Refused(codes.INVALID_REPLICA_ASSIGNMENT, f"not all of {nodes} are there")
    return [by_number[number] for number in range(len(by_number))]


def _max_message_bytes(configs: list[Message]) -> int | None:
    found = None
    for entry in configs:
        name, value = entry["name"], entry["value"]
        if name not in _TOPIC_CONFIGS.split():
            raise _Refused(codes.INVALID_CONFIG, f"Unknown topic config name: {name}")
        if value is None:
            raise _Refused(codes.INVALID_CONFIG, f"Null value not supported: {name}")
        if name == "max.message.bytes":
            if not re.fullmatch(r"\d{1,10}", value):
                raise _Refused(codes.INVALID_CONFIG, f"Invalid value {value} for {name}")
            found = int(value)
    return found


def delete_topics(cluster: Cluster, node: int, version: int, request: Message) -> Message:
    """Delete topics by name."""
    responses = []
    with cluster.lock:
        for name in request["topic_names"]:
            error = codes.NONE if name in cluster.topics else codes.UNKNOWN_TOPIC_OR_PARTITION
            if not error:
                cluster.delete(name)
            responses.append({"name": name, "error_code": error})
    return {"responses": responses}


def find_coordinator(cluster: Cluster, node: int, version: int, request: Message) -> Message:
    """The first node that is alive coordinates everything."""
    with cluster.lock:
        number = min(cluster.alive, default=-1)
        host, port = cluster.addresses.get(number, ("", -1))
    found: Message = {"node_id": number, "host": host, "port": port, "error_code": codes.NONE}
    if version < 4:
        return found
    return {"coordinators": [found | {"key": key} for key in request["coordinator_keys"]]}


def offset_commit(cluster: Cluster, node: int, version: int, request: Message) -> Message:
    """Remember offsets of a group that assigns its partitions itself."""
    topics = []
    with cluster.lock:
        for topic in request["topics"]:
            partitions = []
            for entry in topic["partitions"]:
                number = entry["partition_index"]
                known = cluster.partition(topic["name"], number) is not None
                if known:
                    place = (request["group_id"], topic["name"], number)
                    cluster.committed[place] = entry["committed_offset"]
                error = codes.NONE if known else codes.UNKNOWN_TOPIC_OR_PARTITION
                partitions.append({"partition_index": number, "error_code": error})
            topics.append({"name": topic["name"], "partitions": partitions})
    return {"topics": topics}


def offset_fetch(cluster: Cluster, node: int, version: int, request: Message) -> Message:
    """Tell committed offsets; -1 where there is none."""
    group = request["group_id"]
    with cluster.lock:
        wanted = request["topics"]
        if wanted is None:
            by_name: dict[str, list[int]] = {}
            for owner, name, number in cluster.committed:
                if owner == group:
                    by_name.setdefault(name, []).append(number)
            wanted = [{"name": n, "partition_indexes": p} for n, p in by_name.items()]
        return {
            "topics": [
                {
                    "name": topic["name"],
                    "partitions": [
                        {
                            "partition_index": number,
                            "committed_offset": cluster.committed.get(
                                (group, topic["name"], number), -1
                            ),
                            "metadata": "",
                            "error_code": codes.NONE,
                        }
                        for number in topic["partition_indexes"]
                    ],
                }
                for topic in wanted
            ]
        }


HANDLERS: Final[dict[str, Handler]] = {
    "Metadata": metadata,
    "InitProducerId": init_producer_id,
    "ListOffsets": list_offsets,
    "CreateTopics": create_topics,
    "DeleteTopics": delete_topics,
    "FindCoordinator": find_coordinator,
    "OffsetCommit": offset_commit,
    "OffsetFetch": offset_fetch,
}
