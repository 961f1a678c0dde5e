"""Drives a Machine in simulated time against scripted brokers, one event at a time.

The harness answers what the loop answers in the same turn (`Seal`, `Split`, `Verify`,
`PublishTopic`), keeps every action, and checks the machine's invariants after every event.
Connections come up and responses come back only when a test says so, or, with `auto` on, at once.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from typing import Any, TypeVar

from mpproducer._core import native
from mpproducer.config import Config
from mpproducer.sender import actions as a
from mpproducer.sender import requests
from mpproducer.sender.batch import FREE, ProducerBatch
from mpproducer.sender.inflight import (
    API_INIT_PRODUCER_ID,
    API_METADATA,
    API_PRODUCE,
    API_VERSIONS,
)
from mpproducer.sender.machine import Machine
from mpproducer.sender.retry import MS
from mpproducer.shm import metrics
from mpproducer.wire.produce import PartitionResult, ProduceResponse
from tests.sender.driver import Driver

T = TypeVar("T")
SECOND = 1_000 * MS


class Fill:
    """A batch in the fake shared memory."""

    def __init__(self, records: int, size_bytes: int, owners: tuple[int, ...]) -> None:
        self.records = records
        self.size_bytes = size_bytes
        self.owners = owners


class Harness(Driver):
    """A machine, a clock, a cluster and the workers' side of shared memory."""

    def __init__(self, *, seed: int = 1, auto: bool = True, **config: Any) -> None:
        super().__init__()
        config.setdefault("bootstrap_servers", "boot:9092")
        config.setdefault("linger_ms", 0)
        self.config = Config.from_user(None, config)
        self.now_ns = 10 * SECOND
        self.metrics = native.Metrics(16)  # topics
        self.machine = Machine(self.config, random.Random(seed), self.now_ns, self.metrics)
        self.auto = auto
        self.fills: dict[int, Fill] = {}
        self.requests: dict[int, deque[Any]] = {}
        self.conns: dict[int, a.Connect] = {}
        self.brokers = {0: ("b0", 9092), 1: ("b1", 9092)}
        self.leaders: dict[str, dict[int, tuple[int, int]]] = {}
        self.topic_errors: dict[str, int] = {}
        self.topic_index: dict[str, int] = {}
        self.next_index = 0
        self.seqs: dict[int, int] = {}
        self.slot = 0
        self.producer_ids = 0
        self.id_error = 0
        self.metadata_error = 0
        self.metadata_requests: list[tuple[str, ...]] = []
        self.topic_ids: dict[str, bytes] = {}
        self.ranges = dict(requests.SUPPORTED)
        self.connects_fail = False
        self.completed: list[tuple[ProducerBatch, a.Outcome]] = []
        self.released: list[ProducerBatch] = []
        self.exited = ""
        self.corrupt: dict[int, str] = {}
        self.split_limits: list[int] = []
        self.compress_at_once = True

    # --- batches and topics

    def _do_Seal(self, action: a.Seal) -> list[Any]:
        results: list[Any] = []
        left = action.room_bytes
        for batch in action.batches:
            if results and left <= 0:
                break
            results.append(self._seal(batch))
            if isinstance(results[-1], a.BatchSealed):
                left -= results[-1].size_bytes
        return [a.Sealed(action, results)]

    def _seal(self, batch: ProducerBatch) -> Any:
        fill = self.fills[batch.slot]
        if batch.slot in self.corrupt:
            return a.BatchCorrupt(batch, self.corrupt[batch.slot], fill.records)
        if not fill.records and fill.owners:
            return a.BatchEmpty(batch)
        return a.BatchSealed(batch, fill.records, fill.size_bytes, 1_000, 1_000, fill.owners)

    def asked_to_seal(self) -> list[ProducerBatch]:
        """Every batch of every `Seal`, in order."""
        return [batch for action in self.of(a.Seal) for batch in action.batches]

    def _do_Verify(self, action: a.Verify) -> list[Any]:
        batch = action.batch
        if batch.slot in self.corrupt:
            return [a.BatchCorrupt(batch, self.corrupt[batch.slot])]
        return []

    def _do_Compress(self, action: a.Compress) -> list[Any]:
        return [a.Compressed(action.batch, 100)] if self.compress_at_once else []

    def _do_Split(self, action: a.Split) -> list[Any]:
        batch = action.batch
        self.split_limits.append(action.limit_bytes)
        if batch.slot in self.corrupt:
            return [a.BatchCorrupt(batch, self.corrupt[batch.slot])]
        half = batch.records // 2
        size = batch.size_bytes // 2
        return [
            a.SplitDone(
                batch,
                (
                    a.Part(0, half, size, 61 + size, 1_000, 1_000, None),
                    a.Part(half, batch.records - half, size, 61 + size, 1_000, 1_000, None),
                ),
            )
        ]

    def _do_PublishTopic(self, action: a.PublishTopic) -> list[Any]:
        known = self.topic(action.name)
        while len(known) < action.partition_count:
            known.append(self.next_index)
            self.next_index += 1
        return [a.TopicPublished(action.name, tuple(known[: action.partition_count]))]

    def topic(self, name: str) -> list[int]:
        """The partition indices of a topic."""
        return self._indices.setdefault(name, [])

    @property
    def _indices(self) -> dict[str, list[int]]:
        table: dict[str, list[int]] = self.__dict__.setdefault("_index_table", {})
        return table

    def _do_Complete(self, action: a.Complete) -> None:
        for outcome in action.outcomes:
            self.completed.append((action.batch, outcome))

    def _do_Release(self, action: a.Release) -> None:
        assert action.batch.memory is FREE
        assert action.batch not in self.released
        self.released.append(action.batch)

    def _do_Exit(self, action: a.Exit) -> None:
        self.exited = action.why

    def _do_Resolve(self, action: a.Resolve) -> list[Any]:
        if self.auto:
            return [a.Resolved(action.node_id, action.host, ((action.host, action.port),))]
        return []

    def _do_Connect(self, action: a.Connect) -> list[Any]:
        self.conns[action.conn] = action
        self.requests[action.conn] = deque()
        if self.auto:
            if self.connects_fail:
                return [a.ConnectFailed(action.conn, "refused")]
            return [a.Connected(action.conn)]
        return []

    def _do_Close(self, action: a.Close) -> None:
        self.conns.pop(action.conn, None)
        self.requests.pop(action.conn, None)

    def _do_Request(self, action: a.Request) -> list[Any]:
        self.requests[action.conn].append(action)
        events: list[Any] = [a.Wrote(action.conn, action.correlation_id)]
        return [*events, *self._answer_ahead(action.conn)]

    def _answer_ahead(self, conn: int) -> list[Any]:
        """Answers to what stands first in line and is not Produce (brokers answer in order)."""
        queue = self.requests.get(conn, deque())
        events: list[Any] = []
        while self.auto and queue and isinstance(queue[0], a.Request):
            events.append(self.answer_internal(queue[0]))
        return events

    def _do_SendProduce(self, action: a.SendProduce) -> list[Any]:
        self.requests[action.conn].append(action)
        return [a.Wrote(action.conn, action.correlation_id)] if self.auto else []

    # --- brokers

    def answer_internal(self, action: a.Request) -> a.Response:
        """The well-behaved answer to a request that is not Produce."""
        self.requests[action.conn].remove(action)
        message: dict[str, Any]
        if action.api_key == API_VERSIONS:
            rows = [
                {"api_key": key, "min_version": low, "max_version": high}
                for key, (low, high) in self.ranges.items()
            ]
            message = {"error_code": 0, "api_keys": rows}
        elif action.api_key == API_METADATA:
            message = self.metadata([row["name"] for row in action.message["topics"]])
        elif action.api_key == API_INIT_PRODUCER_ID:
            if not self.id_error:
                self.producer_ids += 1
            message = {
                "error_code": self.id_error,
                "producer_id": 1_000 * self.producer_ids,
                "producer_epoch": 0,
            }
        else:
            raise AssertionError(action)
        message["throttle_time_ms"] = 0
        return a.Response(action.conn, action.correlation_id, message)

    def metadata(self, names: Iterable[str]) -> dict[str, Any]:
        """The cluster as it is now."""
        self.metadata_requests.append(tuple(names))
        topics = [self._topic_row(name) for name in self.metadata_requests[-1]]
        brokers = [
            {"node_id": node, "host": host, "port": port}
            for node, (host, port) in self.brokers.items()
        ]
        return {"brokers": brokers, "topics": topics, "error_code": self.metadata_error}

    def _topic_row(self, name: str) -> dict[str, Any]:
        code = self.topic_errors.get(name, 0 if name in self.leaders else 3)
        parts = self.leaders.get(name, {}) if not code else {}
        return {
            "name": name,
            "error_code": code,
            "topic_id": self.topic_ids.get(name, b"i" * 16),
            "partitions": [
                {
                    "partition_index": number,
                    "error_code": 0 if node >= 0 else 5,
                    "leader_id": node,
                    "leader_epoch": epoch,
                }
                for number, (node, epoch) in parts.items()
            ],
        }

    def produce_requests(self) -> list[a.SendProduce]:
        """Produce requests that wait for an answer, oldest first."""
        waiting = [
            action
            for queue in self.requests.values()
            for action in queue
            if isinstance(action, a.SendProduce)
        ]
        return sorted(waiting, key=self.log.index)

    def node_of(self, send: a.SendProduce) -> int:
        """The broker a request went to."""
        return self.conns[send.conn].node_id

    def answer(
        self, send: a.SendProduce, code: int = 0, offset: int = 100, **extra: Any
    ) -> list[Any]:
        """Answer a Produce request: the same for every batch in it."""
        results = [
            (
                batch.partition.topic,
                PartitionResult(
                    batch.partition.number,
                    code,
                    offset if not code else -1,
                    -1,
                    extra.get("log_start", -1 if code else 0),  # as brokers do
                    extra.get("record_errors", ()),
                    extra.get("message"),
                    extra.get("leader"),
                ),
            )
            for batch in send.batches
        ]
        return self.answer_with(
            send, results, extra.get("throttle_ms", 0), extra.get("endpoints", ())
        )

    def answer_with(
        self,
        send: a.SendProduce,
        results: list[tuple[str, PartitionResult]],
        throttle_ms: int = 0,
        endpoints: tuple[tuple[int, str, int], ...] = (),
    ) -> list[Any]:
        """Answer a Produce request with exactly these results."""
        queue = self.requests[send.conn]
        assert queue[0] is send, "responses come in order"
        queue.popleft()
        rows: list[tuple[str | bytes, list[PartitionResult]]] = [
            (topic, [result]) for topic, result in results
        ]
        message = ProduceResponse(rows, throttle_ms, endpoints)
        seen = self.feed(a.Response(send.conn, send.correlation_id, message))
        for event in self._answer_ahead(send.conn):
            seen += self.feed(event)
        return seen

    def close(self, conn: int, why: str = "reset") -> list[Any]:
        """The broker ends a connection."""
        self.conns.pop(conn, None)
        self.requests.pop(conn, None)
        return self.feed(a.Closed(conn, why))

    # --- workers

    def join(self, owner: int = 1) -> None:
        """A worker attaches."""
        self.feed(a.WorkerJoined(owner))

    def want(self, name: str, partitions: dict[int, int] | None = None) -> None:
        """A worker wants a topic; `partitions` maps partition to leader."""
        if partitions is not None:
            self.leaders[name] = {number: (node, 1) for number, node in partitions.items()}
        index = self.topic_index.setdefault(name, len(self.topic_index))
        self.feed(a.TopicWanted(name, index))

    def open(
        self,
        topic: str,
        partition: int,
        records: int = 10,
        size_bytes: int = 1_000,
        owners: tuple[int, ...] = (1,),
        age_ns: int = 0,
    ) -> int:
        """A worker opened a batch `age_ns` ago, and the sender sees it; returns its head slot."""
        index = self.topic(topic)[partition]
        self.seqs[index] = self.seqs.get(index, 0) + 1
        self.slot += 1
        self.fills[self.slot] = Fill(records, size_bytes, owners)
        self.feed(a.BatchOpened(index, self.seqs[index], self.slot, opened_ns=self.now_ns - age_ns))
        return self.slot

    def ready(self, partitions: dict[int, int] | None = None, topic: str = "t") -> Harness:
        """A worker, a topic, metadata, a producer id: everything up to the first batch."""
        self.join()
        self.want(topic, partitions or {0: 0})
        return self

    def warm(self, topic: str, partition: int) -> None:
        """Have one batch of the partition acknowledged: from now on it may pipeline."""
        self.open(topic, partition)
        self.run_ms(self.config.linger_ms)
        (send,) = [s for s in self.produce_requests() if s.batches[0].partition.topic == topic]
        self.answer(send)
        self.completed.clear()

    # --- time

    def tick(self, ms: float = 0) -> list[Any]:
        """Let time pass at once, then tick."""
        self.now_ns += int(ms * MS)
        return self.feed(a.Tick())

    def run_ms(self, ms: float) -> list[Any]:
        """Let time pass deadline by deadline, as the loop does."""
        end = self.now_ns + int(ms * MS)
        seen: list[Any] = []
        for _ in range(10_000):
            due = self.machine.next_deadline_ns()
            if due is None or due > end:
                break
            self.now_ns = max(self.now_ns, due)
            seen += self.feed(a.Tick())
        else:
            raise AssertionError("the machine is busy without progress")
        self.now_ns = end
        return seen

    # --- what happened

    def distributions(self) -> dict[str, metrics.Histogram]:
        """The histograms, since the last but one sample and in all."""
        return metrics.distributions(self.metrics.read())

    def outcomes(self) -> list[tuple[a.Kind, int]]:
        """(kind, code) of everything told so far."""
        return [(outcome.kind, outcome.code) for _, outcome in self.completed]

    def of(self, kind: type[T], seen: list[Any] | None = None) -> list[T]:
        """The actions of one kind."""
        return [
            action for action in (self.log if seen is None else seen) if isinstance(action, kind)
        ]

    def partition(self, topic: str, number: int) -> Any:
        """The machine's partition."""
        return self.machine.metadata.partitions[self.topic(topic)[number]]


__all__ = ["API_PRODUCE", "SECOND", "Harness"]
