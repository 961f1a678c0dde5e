"""The clients under test, behind one small interface. Each runs in processes of its own."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Setup:
    """What both clients are configured with; printed with every result."""

    bootstrap: str
    topic: str
    linger_ms: int
    codec: str
    acks: str = "all"


@dataclass
class Traffic:
    """What a client says it sent."""

    requests: int = 0
    wire_bytes: int = 0


class Client(Protocol):
    """A producer: send returns at once, finish returns when everything is acknowledged."""

    name: str

    def send(self, value: bytes, key: bytes | None) -> None:
        """Hand one record over, with a future or a delivery callback."""

    def finish(self) -> int:
        """Wait for all outcomes; the number of acknowledged records."""

    def traffic(self) -> Traffic:
        """What was sent so far, by the client's own counters."""

    def helper_pids(self) -> list[int]:
        """Processes beside this one that work for the client."""


class MpProducer:
    """mpproducer, one future per record."""

    name = "mpproducer"

    def __init__(self, setup: Setup) -> None:
        from mpproducer import Producer

        self._producer = Producer(
            bootstrap_servers=setup.bootstrap,
            linger_ms=setup.linger_ms,
            compression_type=setup.codec,
            acks=setup.acks,
        )
        self._topic = setup.topic
        self._future: Any = None
        self.sent = 0
        self._send = self._producer.send
        self._producer.partitions_for(setup.topic)

    def send(self, value: bytes, key: bytes | None) -> None:
        self._future = self._send(self._topic, value, key)
        self.sent += 1

    def finish(self) -> int:
        self._producer.flush()
        if self._future is not None:
            self._future.result(60)
        return self.sent

    def traffic(self) -> Traffic:
        metrics = self._producer.metrics()
        return Traffic(metrics["produce-request-total"], metrics["outgoing-byte-total"])

    def helper_pids(self) -> list[int]:
        from mpproducer.worker import attach

        link = attach.find(self._producer._place)
        return [link.sender_pid] if link is not None else []


class Confluent:
    """confluent-kafka with a delivery callback per record, polled by a thread."""

    name = "confluent-kafka"

    def __init__(self, setup: Setup) -> None:
        from confluent_kafka import Producer

        self._traffic = Traffic()
        self._producer = Producer(
            {
                "bootstrap.servers": setup.bootstrap,
                "linger.ms": setup.linger_ms,
                "compression.type": setup.codec,
                "acks": setup.acks,
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "queue.buffering.max.messages": 2_000_000,
                "statistics.interval.ms": 200,
                "stats_cb": self._stats,
                "log_level": 0,
            }
        )
        self._topic = setup.topic
        self.acked = 0
        self._producer.list_topics(setup.topic, timeout=20)
        self._stop = threading.Event()
        self._poller = threading.Thread(target=self._poll, daemon=True)
        self._poller.start()

    def _poll(self) -> None:
        while not self._stop.is_set():
            self._producer.poll(0.1)

    def _told(self, error: Any, _message: Any) -> None:
        if error is None:
            self.acked += 1

    def _stats(self, text: str) -> None:
        brokers = json.loads(text)["brokers"].values()
        self._traffic = Traffic(
            sum(broker.get("req", {}).get("Produce", 0) for broker in brokers),
            sum(broker["txbytes"] for broker in brokers),
        )

    def send(self, value: bytes, key: bytes | None) -> None:
        while True:
            try:
                self._producer.produce(self._topic, value, key, on_delivery=self._told)
            except BufferError:
                time.sleep(0.001)
            else:
                return

    def finish(self) -> int:
        self._producer.flush(60)
        return self.acked

    def traffic(self) -> Traffic:
        time.sleep(0.5)  # one more statistics interval
        self._producer.poll(0.1)
        return self._traffic

    def helper_pids(self) -> list[int]:
        return []


CLIENTS: dict[str, type[MpProducer] | type[Confluent]] = {
    MpProducer.name: MpProducer,
    Confluent.name: Confluent,
}


def cpu_seconds(pid: int) -> float:
    """User and system CPU of a process so far, from /proc."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
