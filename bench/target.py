"""Where the records go: a cluster that was named, a Kafka started for the run, or the sink."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from bench import facts

ROOT = Path(__file__).resolve().parent.parent
KAFKA = ROOT / "scripts" / "kafka_cluster.py"
_START_S = 240.0
_TOPIC_S = 60.0
_numbers = itertools.count(1)


class TargetError(RuntimeError):
    """There is nothing to send to; the message says why and what to do."""


class Target(Protocol):
    """Brokers, as a workload sees them."""

    bootstrap: str
    kind: str

    def broker_pids(self) -> list[int]:
        """The brokers' processes on this host; none for a remote cluster."""

    def topic(self, partitions: int) -> str:
        """A fresh topic."""

    def drop(self, topic: str) -> None:
        """Delete a topic; a failure does not matter."""

    def producer_ids(self, topic: str, partitions: int) -> int | None:
        """How many producer ids wrote to the topic, None where nobody can tell."""

    def counts(self) -> dict[str, int] | None:
        """What has come in so far, where the target counts."""


class Cluster:
    """A Kafka cluster, or anything that speaks its protocol."""

    kind = "kafka"

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self._pids = facts.listeners(facts.ports_of(bootstrap))
        self._kept_admin: Any = None

    def broker_pids(self) -> list[int]:
        return self._pids

    def _admin(self) -> Any:
        from confluent_kafka.admin import AdminClient

        # Kept: its futures fail when it goes.
        if self._kept_admin is None:
            self._kept_admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        return self._kept_admin

    def topic(self, partitions: int) -> str:
        from confluent_kafka.cimpl import NewTopic

        name = f"bench-{os.getpid()}-{next(_numbers)}"
        for future in self._admin().create_topics([NewTopic(name, partitions, 1)]).values():
            future.result(_TOPIC_S)
        return name

    def drop(self, topic: str) -> None:
        for future in self._admin().delete_topics([topic]).values():
            with contextlib.suppress(Exception):
                future.result(_TOPIC_S)

    def producer_ids(self, topic: str, partitions: int) -> int | None:
        """By DescribeProducers (KIP-664)."""
        try:
            from kafka.admin import KafkaAdminClient
        except ImportError:
            return None
        from kafka import TopicPartition

        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            wanted = [TopicPartition(topic, n) for n in range(partitions)]
            found = admin.describe_producers(wanted)
        except Exception:  # noqa: BLE001 - a broker that does not speak it cannot tell
            return None
        finally:
            admin.close()
        return len(_producer_ids(found))

    def counts(self) -> dict[str, int] | None:
        return None


def _producer_ids(found: Any) -> set[int]:
    """Every producer id in what describe_producers returned, however nested it is."""
    if isinstance(found, dict):
        here = {found["producer_id"]} if "producer_id" in found else set()
        return here.union(*map(_producer_ids, found.values()))
    if isinstance(found, (list, tuple, set)) and not hasattr(found, "producer_id"):
        return set().union(*map(_producer_ids, found))
    return {int(found.producer_id)} if hasattr(found, "producer_id") else set()


class StartedKafka(Cluster):
    """Apache Kafka from scripts/kafka, for as long as the block lasts."""

    def __init__(self, brokers: int) -> None:
        self._name = f"bench-{os.getpid()}"
        command = [
            sys.executable, str(KAFKA), "start", "--name", self._name, "--brokers", str(brokers),
            "--owner-pid", str(os.getpid()), "--print",
            "--property", "log.segment.delete.delay.ms=1000",
        ]  # fmt: skip
        print("starting Kafka", file=sys.stderr)
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=_START_S
        )
        if done.returncode != 0:
            raise TargetError(
                f"Kafka does not start: {done.stderr.strip()}\nname a cluster with "
                "--bootstrap-servers, or run only the workloads that need none (sink, throughput, "
                "wide)"
            )
        super().__init__(done.stdout.strip())

    def __enter__(self) -> StartedKafka:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        subprocess.run(
            [sys.executable, str(KAFKA), "stop", "--name", self._name],
            check=False, capture_output=True, timeout=_START_S,
        )  # fmt: skip


class SinkTarget:
    """The instant-ack sink in a process of its own, for as long as the block lasts."""

    kind = "sink"

    def __init__(self, partitions: int, spin_ms: float = 0) -> None:
        self._partitions = partitions
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.sink", f"--partitions={partitions}",
             f"--spin-ms={spin_ms}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        self.bootstrap = f"127.0.0.1:{int(self._line())}"

    def _line(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 20.0)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self._process.kill()
            raise TargetError("the sink does not answer")
        return line

    def broker_pids(self) -> list[int]:
        return [self._process.pid]

    def topic(self, partitions: int) -> str:
        if partitions != self._partitions:
            raise ValueError(f"this sink has {self._partitions} partitions, not {partitions}")
        return f"bench-{next(_numbers)}"

    def drop(self, topic: str) -> None:
        """Nothing is kept."""

    def producer_ids(self, topic: str, partitions: int) -> int | None:
        return None

    def counts(self) -> dict[str, int] | None:
        assert self._process.stdin is not None
        self._process.stdin.write("counts\n")
        self._process.stdin.flush()
        return dict(json.loads(self._line()))

    def __enter__(self) -> SinkTarget:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def settle(seconds: float = 0.2) -> None:
    """Let what ended end, so that its CPU is not counted to the next."""
    time.sleep(seconds)
