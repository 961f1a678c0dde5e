"""The seam to `wire`: which versions are used, and what the sender reads from an answer.

Everything the machine knows about Kafka's messages is here, as plain values; the machine never
looks into a wire class itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple, TypeAlias

from mpproducer.sender.inflight import (
    API_INIT_PRODUCER_ID,
    API_METADATA,
    API_PRODUCE,
    API_VERSIONS,
)
from mpproducer.version import __version__
from mpproducer.wire.produce import PartitionResult, ProduceResponse

Message: TypeAlias = dict[str, Any]

UNSUPPORTED_VERSION: Final = 35
NO_TOPIC_ID: Final = bytes(16)
_TRUE_EPOCHS: Final = 9
API_VERSIONS_MAX: Final = 4
SUPPORTED: Final[dict[int, tuple[int, int]]] = {
    API_PRODUCE: (3, 12),
    API_METADATA: (4, 12),
    API_VERSIONS: (0, API_VERSIONS_MAX),
    API_INIT_PRODUCER_ID: (0, 4),
}  # Produce 13 names topics by id; a partition here is known by its topic's name
# From these versions on the broker answers first and expects the client to hold back (KIP-219).
_CLIENT_THROTTLES: Final[dict[int, int]] = {
    API_PRODUCE: 6,
    API_METADATA: 6,
    API_VERSIONS: 2,
    API_INIT_PRODUCER_ID: 1,
}


class BrokerInfo(NamedTuple):
    """One broker of a Metadata response."""

    node_id: int
    host: str
    port: int


class PartitionInfo(NamedTuple):
    """One partition of a Metadata response; leader -1: none."""

    number: int
    error_code: int
    leader_id: int
    leader_epoch: int


class TopicInfo(NamedTuple):
    """One topic of a Metadata response."""

    name: str
    error_code: int
    topic_id: bytes
    partitions: tuple[PartitionInfo, ...]


class MetadataAnswer(NamedTuple):
    """A Metadata response."""

    error_code: int
    brokers: tuple[BrokerInfo, ...]
    topics: tuple[TopicInfo, ...]


def usable(ranges: dict[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """What both sides support, per API."""
    common: dict[int, tuple[int, int]] = {}
    for api_key, (low, high) in SUPPORTED.items():
        if api_key in ranges:
            first = max(low, ranges[api_key][0])
            last = min(high, ranges[api_key][1])
            if first <= last:
                common[api_key] = (first, last)
    return common


def version_of(versions: dict[int, tuple[int, int]], api_key: int) -> int:
    """The highest common version, or -1."""
    return versions.get(api_key, (-1, -1))[1]


def client_throttles(api_key: int, version: int) -> bool:
    """Whether throttle_time_ms of this response is for us to obey (older: the broker waits)."""
    return version >= _CLIENT_THROTTLES.get(api_key, 1 << 15)


def api_versions() -> Message:
    """The first request of a connection (KIP-511)."""
    return {"client_software_name": "mpproducer", "client_software_version": __version__}


def metadata(names: Iterable[str], auto_create: bool) -> Message:
    """A Metadata request for these topics; none of them: brokers only."""
    return {
        "topics": [{"topic_id": NO_TOPIC_ID, "name": name} for name in names],
        "allow_auto_topic_creation": auto_create,
        "include_cluster_authorized_operations": False,
        "include_topic_authorized_operations": False,
    }


def init_producer_id() -> Message:
    """Ask for a producer id of an idempotent, not transactional, producer."""
    return {
        "transactional_id": None,
        "transaction_timeout_ms": 0x7FFFFFFF,
        "producer_id": -1,
        "producer_epoch": -1,
    }


def api_ranges(message: Message) -> tuple[int, dict[int, tuple[int, int]]]:
    """(error code, API key -> (lowest, highest) version) of an ApiVersions response."""
    ranges = {
        row["api_key"]: (row["min_version"], row["max_version"]) for row in message["api_keys"]
    }
    return message["error_code"], ranges


def throttle_ms(message: Message | ProduceResponse) -> int:
    """throttle_time_ms of any response; 0 where the version has none."""
    if isinstance(message, ProduceResponse):
        return message.throttle_time_ms
    value: int = message.get("throttle_time_ms", 0)
    return value


def producer_id(message: Message) -> tuple[int, int, int]:
    """(error code, producer id, epoch) of an InitProducerId response."""
    return message["error_code"], message["producer_id"], message["producer_epoch"]


def metadata_answer(message: Message, version: int) -> MetadataAnswer:
    """A Metadata response as plain values.

    Leader epochs below v9 may be older than the leader they come with: they are left out.
    """
    epochs = version >= _TRUE_EPOCHS
    brokers = tuple(
        BrokerInfo(row["node_id"], row["host"], row["port"]) for row in message["brokers"]
    )
    topics = tuple(
        TopicInfo(
            row["name"] or "",
            row["error_code"],
            row.get("topic_id", NO_TOPIC_ID),
            tuple(_partition_info(part, epochs=epochs) for part in row["partitions"]),
        )
        for row in message["topics"]
    )
    return MetadataAnswer(message.get("error_code", 0), brokers, topics)


def _partition_info(row: Message, *, epochs: bool) -> PartitionInfo:
    return PartitionInfo(
        row["partition_index"],
        row["error_code"],
        row["leader_id"],
        row["leader_epoch"] if epochs else -1,
    )


def lost(code: int, why: str) -> PartitionResult:
    """What a batch gets instead of a result when its request has no answer."""
    return PartitionResult(-1, code, -1, -1, -1, (), why, None)
