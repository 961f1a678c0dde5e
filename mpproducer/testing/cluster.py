"""The state all nodes of the in-memory broker share: topics, leaders, producer ids, groups."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from typing import Final

from mpproducer.testing.log import PartitionLog

_LEGAL: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")


@dataclass
class Partition:
    """One partition: its log, and who leads it since which epoch."""

    number: int
    log: PartitionLog
    leader: int
    replicas: list[int]
    leader_epoch: int = 0


@dataclass
class Topic:
    """One topic and its partitions."""

    name: str
    topic_id: bytes
    partitions: list[Partition] = field(default_factory=list)


def legal_name(name: str) -> bool:
    """Whether Kafka takes the topic name."""
    return bool(_LEGAL.fullmatch(name)) and name not in (".", "..")


class Cluster:
    """Everything but sockets. All methods are thread-safe."""

    def __init__(
        self, nodes: int, *, default_partitions: int, auto_create: bool, strict_offsets: bool,
        max_message_bytes: int,
    ) -> None:  # fmt: skip
        self.lock = threading.RLock()
        self.topics: dict[str, Topic] = {}
        self.auto_create = auto_create
        self.default_partitions = default_partitions
        self.addresses: dict[int, tuple[str, int]] = {}
        self.alive: set[int] = set(range(1, nodes + 1))
        self.committed: dict[tuple[str, str, int], int] = {}
        self._strict_offsets = strict_offsets
        self._max_message_bytes = max_message_bytes
        self._next_producer_id = 1000
        self._created = 0

    def create(self, name: str, partitions: int, replication: int = 1) -> Topic:
        """Create a topic, leaders spread over the nodes in turn. Raises ValueError."""
        with self.lock:
            if not legal_name(name):
                raise ValueError(f"{name!r} is not a legal topic name")
            if name in self.topics:
                raise ValueError(f"topic {name!r} exists")
            self._created += 1
            digest = hashlib.sha256(f"{name}/{self._created}".encode()).digest()
            topic = Topic(name, digest[:16])
            self.topics[name] = topic
            self._grow(topic, partitions, replication)
            return topic

    def grow(self, name: str, partitions: int) -> None:
        """Add partitions up to a count."""
        with self.lock:
            topic = self.topics[name]
            self._grow(topic, partitions, len(topic.partitions[0].replicas))

    def _grow(self, topic: Topic, partitions: int, replication: int) -> None:
        nodes = sorted(self.addresses) or sorted(self.alive)
        for number in range(len(topic.partitions), partitions):
            replicas = [
                nodes[(number + i) % len(nodes)] for i in range(min(replication, len(nodes)))
            ]
            log = PartitionLog(
                max_message_bytes=self._max_message_bytes, strict_offsets=self._strict_offsets
            )
            topic.partitions.append(Partition(number, log, replicas[0], replicas))

    def delete(self, name: str) -> None:
        """Delete a topic and its records."""
        with self.lock:
            del self.topics[name]

    def by_id(self, topic_id: bytes) -> Topic | None:
        """Return the topic with this id."""
        with self.lock:
            return next((t for t in self.topics.values() if t.topic_id == topic_id), None)

    def partition(self, name: str, number: int) -> Partition | None:
        """Return a partition, or None."""
        with self.lock:
            topic = self.topics.get(name)
            if topic is None or not 0 <= number < len(topic.partitions):
                return None
            return topic.partitions[number]

    def set_leader(self, name: str, number: int, node: int) -> None:
        """Move the leadership; the leader epoch goes up. -1: no leader."""
        with self.lock:
            partition = self.topics[name].partitions[number]
            partition.leader = node
            partition.leader_epoch += 1

    def producer_id(self) -> int:
        """Return a producer id nobody had."""
        with self.lock:
            self._next_producer_id += 1
            return self._next_producer_id
