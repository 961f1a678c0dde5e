"""Where a soak sends, and what can be done to it: the strict broker, or a Kafka of its own.

A fault is a context manager: it begins, the caller does something meanwhile, and it is healed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

from mpproducer.testing import BrokerProcess
from tests.checker.scenario import Scenario
from tests.conftest import metric

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import kafka_cluster
import kafka_jars
import kafka_node

Fault = Callable[[Scenario, random.Random], contextlib.AbstractContextManager[None]]

_ADMIN_S: Final = 60.0
_REVIVE_S: Final = 600.0  # a JVM on a machine that is busy with more than the soak
_RETRIABLE: Final = (5, 6, 7, 19, 20, 56)


class Target(Protocol):
    """Brokers, and their faults by name."""

    @property
    def broker(self) -> BrokerProcess | str:
        """What a Scenario takes."""

    @property
    def faults(self) -> Mapping[str, Fault]:
        """What can happen to the brokers and the network."""

    def recreate(self, topic: str, partitions: int) -> None:
        """Delete a topic and make it anew."""

    def drop(self, topic: str) -> None:
        """Delete a topic."""


class StrictTarget:
    """The broker in memory, in a process of its own."""

    def __init__(self, brokers: int) -> None:
        self._count = brokers
        self.broker = BrokerProcess(brokers, auto_create_topics=False)
        self.faults: dict[str, Fault] = {
            "broker killed": self._killed,
            "brokers stopped": self._stopped,
            "throttled": self._scripted(lambda fault, rng: fault.throttle(rng.randrange(50, 500))),
            "slow answers": self._scripted(lambda fault, rng: fault.delay(rng.random() / 2)),
            "retriable error": self._scripted(
                lambda fault, rng: fault.error(rng.choice(_RETRIABLE))
            ),
            "reset before": self._scripted(lambda fault, _: fault.close_before()),
            "reset after": self._scripted(lambda fault, _: fault.close_after()),
            "answer lost": self._scripted(lambda fault, _: fault.drop_reply(), times=2),
            "half an answer": self._scripted(lambda fault, _: fault.half_reply(), times=2),
            "garbage": self._scripted(lambda fault, _: fault.garbage(), times=3),
            "wrong correlation": self._scripted(lambda fault, _: fault.wrong_correlation()),
            "partition missing": self._scripted(lambda fault, _: fault.omit_partition()),
            "partition twice": self._scripted(lambda fault, _: fault.duplicate_partition()),
        }
        if brokers > 1:
            self.faults["leader moved"] = self._moved

    def __enter__(self) -> StrictTarget:
        self.broker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.broker.stop()

    def recreate(self, topic: str, partitions: int) -> None:
        self.broker.delete_topic(topic)
        time.sleep(0.3)
        self.broker.create_topic(topic, partitions, self._count)

    def drop(self, topic: str) -> None:
        self.broker.delete_topic(topic)

    @contextlib.contextmanager
    def _killed(self, run: Scenario, rng: random.Random) -> Iterator[None]:
        node = rng.randrange(1, self._count + 1)
        self.broker.stop_node(node)
        run.hit("broker killed")
        try:
            yield
        finally:
            self.broker.start_node(node)

    @contextlib.contextmanager
    def _stopped(self, run: Scenario, _rng: random.Random) -> Iterator[None]:
        began = time.monotonic_ns()
        os.kill(self.broker.pid, signal.SIGSTOP)
        run.hit("brokers stopped")
        try:
            yield
        finally:
            os.kill(self.broker.pid, signal.SIGCONT)
            run.stalled(began)

    @contextlib.contextmanager
    def _moved(self, run: Scenario, rng: random.Random) -> Iterator[None]:
        for number in self.broker.partitions(run.topic):
            self.broker.set_leader(run.topic, number, rng.randrange(1, self._count + 1))
        run.hit("leader moved")
        yield

    def _scripted(self, what: Callable[[Any, random.Random], object], times: int = 8) -> Fault:
        @contextlib.contextmanager
        def fault(run: Scenario, rng: random.Random) -> Iterator[None]:
            scripted = self.broker.on("Produce", times=rng.randrange(1, times + 1))
            what(scripted, rng)
            until = time.monotonic() + 5
            try:
                yield
                while not scripted.hits and time.monotonic() < until:
                    time.sleep(0.02)
            finally:
                name = next(name for name, one in self.faults.items() if one is fault)
                run.hit(name, scripted.hits)
                scripted.remove()

        return fault


class KafkaTarget:
    """A real cluster, started for the soak, or `running` already under a name."""

    def __init__(self, brokers: int, running: str = "") -> None:
        self._count = brokers
        self._owned = not running
        self._name = running or f"soak-{os.getpid()}"
        self.broker = ""
        self.faults: dict[str, Fault] = {
            "broker stopped": self._stopped,
            "connections reset": self._reset,
            "throttled": self._throttled,
        }
        if brokers > 2:  # one of them may be away
            self.faults |= {
                "broker killed": self._killed,
                "broker restarted": self._restarted,
                "leaders moved": self._moved,
            }

    def __enter__(self) -> KafkaTarget:
        settings = {"auto.create.topics.enable": "false", "group.initial.rebalance.delay.ms": "0"}
        if self._owned:
            kafka_cluster.start(self._name, self._count, None, settings, os.getpid())
        self.broker = ",".join(f"{kafka_node.HOST}:{node['port']}" for node in self.nodes)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._owned:
            kafka_cluster.stop(self._name)

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """Id, port, pid and folder of each broker."""
        state = kafka_cluster.status(self._name)
        assert state is not None
        nodes: list[dict[str, Any]] = state["nodes"]
        return nodes

    def leaders(self, topic: str) -> list[int]:
        """Who leads the partitions of a topic, in their order; -1: nobody."""
        found = self.admin().list_topics(topic, timeout=30).topics[topic].partitions
        return [found[number].leader for number in sorted(found)]

    def in_sync(self, topic: str) -> int:
        """How many replicas of a topic's worst partition are in sync."""
        found = self.admin().list_topics(topic, timeout=30).topics[topic].partitions
        return min(len(partition.isrs) for partition in found.values())

    @contextlib.contextmanager
    def down(self, number: signal.Signals, *ids: int) -> Iterator[None]:
        """Some brokers are ended by a signal, and run again afterwards."""
        pids = [node["pid"] for node in self.nodes if node["id"] in ids]
        for node in ids:
            kafka_cluster.send_signal(self._name, node, number)
        try:
            yield
        finally:
            for pid in pids:
                self._wait_for_end(pid)
            kafka_cluster.revive(self._name, _REVIVE_S)

    @staticmethod
    def _wait_for_end(pid: int) -> None:
        """Until all its threads have ended: the first one is a zombie long before that."""
        until = time.monotonic() + _ADMIN_S
        while time.monotonic() < until:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                if state == "Z" and len(os.listdir(f"/proc/{pid}/task")) == 1:
                    return
            except FileNotFoundError:
                return
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def _killed(self, run: Scenario, rng: random.Random) -> Iterator[None]:
        with self.down(signal.SIGKILL, rng.choice(self.nodes)["id"]):
            run.hit("broker killed")
            yield

    @contextlib.contextmanager
    def _restarted(self, run: Scenario, rng: random.Random) -> Iterator[None]:
        with self.down(signal.SIGTERM, rng.choice(self.nodes)["id"]):
            run.hit("broker restarted")
            yield

    @contextlib.contextmanager
    def _stopped(self, run: Scenario, rng: random.Random) -> Iterator[None]:
        with self.stopped(run, rng.choice(self.nodes)["id"]):
            yield

    @contextlib.contextmanager
    def stopped(self, run: Scenario, node: int) -> Iterator[None]:
        """A broker does not run meanwhile, unless it is killed."""
        began = time.monotonic_ns()
        kafka_cluster.send_signal(self._name, node, signal.SIGSTOP)
        run.hit("broker stopped")
        try:
            yield
        finally:
            kafka_cluster.send_signal(self._name, node, signal.SIGCONT)
            run.stalled(began)

    @contextlib.contextmanager
    def _reset(self, run: Scenario, rng: random.Random) -> Iterator[None]:
        """Every connection of the sender to one broker, from outside (`ss -K`)."""
        for _ in range(rng.randrange(1, 4)):
            self.reset(run, rng.choice(self.nodes)["id"])
            time.sleep(rng.random() / 2)
        yield

    def reset(self, run: Scenario, node: int) -> None:
        """End every connection to a broker."""
        (port,) = (one["port"] for one in self.nodes if one["id"] == node)
        command = ["ss", "-K", "-tnH", "dst", kafka_node.HOST, "dport", "=", f":{port}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
        run.hit("connections reset", len(done.stdout.splitlines()))

    @contextlib.contextmanager
    def _throttled(self, run: Scenario, rng: random.Random) -> Iterator[None]:
        """A quota of the brokers; the sender's counter says whether it was felt."""
        before = metric(run.producer, "produce-throttle-time-ms-total")
        self._quota("--add-config", f"producer_byte_rate={rng.choice((20_000, 100_000))}")
        try:
            time.sleep(2)
            yield
            after = metric(run.producer, "produce-throttle-time-ms-total")
            run.hit("throttled", int(after != before))
        finally:
            self._quota("--delete-config", "producer_byte_rate")

    def _quota(self, verb: str, what: str) -> None:
        command = [
            kafka_jars.java(), "-Xmx256m", "-cp", str(kafka_jars.cache_folder() / "lib" / "*"),
            "kafka.admin.ConfigCommand", "--bootstrap-server", self.broker, "--alter", verb, what,
            "--entity-type", "clients", "--entity-default",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=_ADMIN_S)

    @contextlib.contextmanager
    def _moved(self, run: Scenario, rng: random.Random) -> Iterator[None]:
        """Other replicas are preferred, and elected."""
        from kafka import KafkaAdminClient, TopicPartition

        admin = KafkaAdminClient(bootstrap_servers=self.broker)
        try:
            nodes = list(range(1, self._count + 1))
            wanted = {}
            for number in range(run.partitions):
                rng.shuffle(nodes)
                wanted[TopicPartition(run.topic, number)] = list(nodes)
            admin.alter_partition_reassignments(wanted)
            time.sleep(0.5)
            admin.elect_leaders(0, {run.topic: list(range(run.partitions))}, raise_errors=False)
            run.hit("leaders moved")
        finally:
            admin.close()
        yield

    def admin(self) -> Any:
        """An AdminClient of confluent-kafka."""
        from confluent_kafka.admin import AdminClient

        return AdminClient({"bootstrap.servers": self.broker, "log_level": 3})

    def recreate(self, topic: str, partitions: int) -> None:
        from confluent_kafka.cimpl import KafkaException, NewTopic

        self.drop(topic)
        admin, until = self.admin(), time.monotonic() + _ADMIN_S
        while True:
            new = NewTopic(topic, partitions, min(3, self._count))
            try:
                admin.create_topics([new], operation_timeout=30)[topic].result(60)
            except KafkaException:  # the old one is not gone yet
                if time.monotonic() > until:
                    raise
                time.sleep(0.3)
            else:
                return

    def drop(self, topic: str) -> None:
        admin = self.admin()  # ends with its last reference, and so would the call
        admin.delete_topics([topic], operation_timeout=30)[topic].result(60)
