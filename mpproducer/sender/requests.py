"""The seam to `wire`: which versions are used, and what the sender reads from an answer.

Everything the machine knows about Kafka's messages is here, as plain values; the machine never
looks into a wire class itself.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Final, NamedTuple

from mpproducer.sender.inflight import (
    API_INIT_PRODUCER_ID,
    API_METADATA,
    API_PRODUCE,
    API_VERSIONS,
)

UNSUPPORTED_VERSION: Final = 35
API_VERSIONS_MAX: Final = 4
SUPPORTED: Final[dict[int, tuple[int, int]]] = {
    API_PRODUCE: (3, 12),
    API_METADATA: (4, 12),
    API_VERSIONS: (0, API_VERSIONS_MAX),
    API_INIT_PRODUCER_ID: (0, 4),
}
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

    index: int
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


class ProduceResult(NamedTuple):
    """What a Produce response says about one partition; `leader` is (id, epoch) (KIP-951)."""

    topic: str
    partition: int
    error_code: int
    base_offset: int
    log_append_time_ms: int
    log_start_offset: int
    record_errors: tuple[tuple[int, str | None], ...]
    error_message: str | None
    leader: tuple[int, int] | None = None


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


def api_versions():
    return SimpleNamespace()


def metadata(names, auto_create):
    return SimpleNamespace(topics=names, allow_auto_topic_creation=auto_create)


def init_producer_id():
    return SimpleNamespace()


def api_ranges(message):
    return message.error_code, message.ranges


def produce_version(versions):
    return version_of(versions, API_PRODUCE)


def metadata_answer(message):
    return message.answer


def producer_id(message):
    return message.error_code, message.producer_id, message.producer_epoch


def produce_results(message):
    return message.results, message.endpoints
