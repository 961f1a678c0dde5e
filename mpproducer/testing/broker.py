"""`Broker`: a strict Kafka in memory, for tests and demonstrations."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Any, Final, TypeVar

from mpproducer.testing.cluster import Cluster
from mpproducer.testing.faults import Fault, Faults
from mpproducer.testing.log import PartitionLog, StoredRecord
from mpproducer.testing.node import Appends, Node, Seen
from mpproducer.wire.messages import APIS
from mpproducer.wire.record_batch import RecordBatch, parse_batches

_T = TypeVar("_T")
_START_S: Final = 10.0
_CALL_S: Final = 60.0


class Broker:
    """A Kafka cluster in a thread of this process; a context manager. All methods are thread-safe.

    It is as strict as a Kafka leader: CRC, record structure, timestamps, duplicate, gap and epoch
    of producer ids, leadership, sizes, versions; one suite of probes gets the same answers from it
    and from Kafka 4.3. It is stricter where Kafka overlooks a client's mistake (`strict_offsets`,
    bytes behind a request), and says in `error_message` why where Kafka says nothing.
    Any Kafka client can write to it and read back from it.
    Consumers must assign their partitions themselves: there is no group membership, no TLS or
    SASL, and there are no transactions. Nothing is on disk; `stop` forgets everything.

        with Broker(brokers=3) as broker:
            broker.create_topic("events", partitions=6, replication=3)
            producer = mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers)

    `auto_create_topics`: unknown topics get `default_partitions` partitions when a client asks for
    their metadata. `strict_offsets`: refuse uncompressed batches with holes, which Kafka takes.
    `versions`: {"Produce": (3, 9)} speaks fewer versions of an API. Raises ValueError.
    """

    def __init__(
        self,
        brokers: int = 1,
        *,
        default_partitions: int = 1,
        auto_create_topics: bool = True,
        strict_offsets: bool = True,
        max_message_bytes: int = 1_048_588,
        versions: Mapping[str, tuple[int, int]] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        if brokers < 1:
            raise ValueError(f"brokers={brokers}: must be at least 1")
        self._versions = {api.name: api.versions for api in APIS.values()}
        for name, (low, high) in (versions or {}).items():
            if name not in self._versions:
                raise ValueError(f"versions: there is no API {name!r} here")
            known = self._versions[name]
            if not known[0] <= low <= high <= known[1]:
                raise ValueError(f"versions: {name} has v{known[0]} to v{known[1]}")
            self._versions[name] = (low, high)
        self._cluster = Cluster(
            brokers,
            default_partitions=default_partitions,
            auto_create=auto_create_topics,
            strict_offsets=strict_offsets,
            max_message_bytes=max_message_bytes,
        )
        self._host = host
        self._faults = Faults()
        self._seen = Seen()
        self._appends = Appends()
        self._nodes = {
            number: Node(
                number, self._cluster, self._faults, self._seen, self._appends, self._versions
            )
            for number in range(1, brokers + 1)
        }
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # --- life

    def start(self) -> Broker:
        """Listen; returns self. Raises OSError, and RuntimeError when it runs already."""
        if self._thread is not None:
            raise RuntimeError("the broker runs already")
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, args=(self._loop, ready), name="mpproducer-broker", daemon=True
        )
        self._thread.start()
        if not ready.wait(_START_S):
            raise RuntimeError("the broker's thread did not start")
        try:
            for number, node in self._nodes.items():
                self._cluster.addresses[number] = self._call(node.start(self._host, 0))
        except BaseException:
            self.stop()
            raise
        return self

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop, ready: threading.Event) -> None:
        asyncio.set_event_loop(loop)
        loop.call_soon(ready.set)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def stop(self) -> None:
        """Close everything; idempotent."""
        if self._thread is None or self._loop is None:
            return
        for node in self._nodes.values():
            self._call(node.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_S)
        self._thread = self._loop = None

    def __enter__(self) -> Broker:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        if self._loop is None:
            work.close()
            raise RuntimeError("the broker does not run")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_S)

    # --- what a client needs

    @property
    def bootstrap_servers(self) -> str:
        """Addresses of all nodes, as for `bootstrap_servers` of any client."""
        addresses = sorted(self._cluster.addresses.items())
        return ",".join(f"{host}:{port}" for _number, (host, port) in addresses)

    def create_topic(self, name: str, partitions: int = 1, replication: int = 1) -> None:
        """Create a topic, its leaders spread over the nodes. Raises ValueError."""
        self._cluster.create(name, partitions, replication)

    def add_partitions(self, name: str, partitions: int) -> None:
        """Add partitions up to `partitions`. Raises KeyError."""
        self._cluster.grow(name, partitions)

    def delete_topic(self, name: str) -> None:
        """Delete a topic with its records. Raises KeyError."""
        self._cluster.delete(name)

    # --- what it has

    def _log(self, topic: str, partition: int) -> PartitionLog:
        found = self._cluster.partition(topic, partition)
        if found is None:
            raise KeyError(f"there is no partition {topic}-{partition}")
        return found.log

    def partitions(self, topic: str) -> list[int]:
        """Partition numbers of a topic. Raises KeyError."""
        return list(range(len(self._cluster.topics[topic].partitions)))

    def records(self, topic: str, partition: int | None = None) -> list[StoredRecord]:
        """Return all records of one partition, or of all one after another. Raises KeyError."""
        with self._cluster.lock:
            numbers = self.partitions(topic) if partition is None else [partition]
            return [record for n in numbers for record in self._log(topic, n).records()]

    def batches(self, topic: str, partition: int) -> list[RecordBatch]:
        """Return the stored batches of a partition, as they came. Raises KeyError."""
        with self._cluster.lock:
            stored = list(self._log(topic, partition).batches)
        return [batch for one in stored for batch in parse_batches(one.raw)]

    def batch_facts(self, topic: str, partition: int) -> tuple[int, set[int]]:
        """Return (number of stored batches, producer ids in them). Raises KeyError."""
        found = self.batches(topic, partition)
        return len(found), {batch.producer_id for batch in found}

    @property
    def requests(self) -> Counter[str]:
        """How many requests came in so far, by API name."""
        return Counter(self._seen.requests)

    @property
    def request_bytes(self) -> Counter[str]:
        """Bytes of the requests so far, by API name."""
        return Counter(self._seen.request_bytes)

    @property
    def requests_by_node(self) -> Counter[int]:
        """How many requests each node got."""
        return Counter(self._seen.by_node)

    @property
    def versions_seen(self) -> dict[str, set[int]]:
        """Versions of each API that were asked."""
        return {name: set(found) for name, found in list(self._seen.versions.items())}

    @property
    def clients(self) -> set[str]:
        """Client ids seen so far."""
        return set(self._seen.clients)

    @property
    def connections(self) -> int:
        """How many connections were accepted so far."""
        return self._seen.connections

    @property
    def connections_now(self) -> int:
        """How many connections are open."""
        return self._seen.connections_now

    @property
    def malformed(self) -> list[str]:
        """Why connections were ended for a malformed request; empty with a sound client."""
        return list(self._seen.malformed)

    # --- what can go wrong

    def on(
        self, api: str, *, node: int | None = None, topic: str | None = None, times: int = 1
    ) -> Fault:
        """Script a fault: `broker.on("Produce", times=2).error(6)`; see `Fault`.

        It applies to the next `times` requests of the API, at one node or about one topic if
        given; `hits` counts them. Raises ValueError for an unknown API.
        """
        if api not in self._versions:
            raise ValueError(f"there is no API {api!r} here")
        return self._faults.add(Fault(api, node, topic, times))

    def leader(self, topic: str, partition: int) -> int:
        """Return the node that leads a partition. Raises KeyError."""
        found = self._cluster.partition(topic, partition)
        if found is None:
            raise KeyError(f"there is no partition {topic}-{partition}")
        return found.leader

    def set_leader(self, topic: str, partition: int, node: int) -> None:
        """Move a partition to another node; -1: nobody leads it. Raises KeyError."""
        self._cluster.set_leader(topic, partition, node)

    def forget_producers(self) -> None:
        """Forget every producer id's state, as after producer.id.expiration.ms."""
        with self._cluster.lock:
            for topic in self._cluster.topics.values():
                for partition in topic.partitions:
                    partition.log.forget_producers()

    def stop_node(self, node: int) -> None:
        """Kill a node: connections are reset, what it leads moves to a living replica."""
        with self._cluster.lock:
            self._cluster.alive.discard(node)
            for topic in self._cluster.topics.values():
                for partition in topic.partitions:
                    living = [r for r in partition.replicas if r in self._cluster.alive]
                    if partition.leader == node and living:
                        partition.leader = living[0]
                        partition.leader_epoch += 1
        self._call(self._nodes[node].stop())

    def start_node(self, node: int, port: int | None = None) -> None:
        """Start a killed node again, with its data, at its old address or on another port (0: any).

        Raises OSError.
        """
        host, old = self._cluster.addresses[node]
        address = self._call(self._nodes[node].start(host, old if port is None else port))
        with self._cluster.lock:
            self._cluster.addresses[node] = address
            self._cluster.alive.add(node)
