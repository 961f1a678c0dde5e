"""One Kafka broker process: its configuration, its files, its end.

A node is broker and controller at once (KRaft). Its process cannot outlive the supervisor that
started it: the kernel kills it when the supervisor dies, however that happens.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import random
import signal
import socket
import subprocess
from pathlib import Path

import kafka_jars
import kafka_probe
from kafka_jars import ClusterError

HEAP = "-Xmx512m"
FORMAT_TIMEOUT_S = 60
HOST = "127.0.0.1"
# Below the range the kernel takes the ports of outgoing connections from: nobody else's connection
# can take a port between the choice and the bind.
FREE_PORTS = range(20_000, 32_000)
PR_SET_PDEATHSIG = 1
LOG_TAIL_BYTES = 6_000
CLUSTER_ID = "bXBwcm9kdWNlcktBRktBMQ"  # any 16 bytes in base64url: clusters never meet

_LOGGING = """status = error
appenders = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = warn
rootLogger.appenderRefs = out
rootLogger.appenderRef.out.ref = out
"""


class PortTaken(ClusterError):
    """Somebody else has a port this node needs."""


@dataclasses.dataclass
class Node:
    """One broker of a local cluster; `folder` holds everything it writes."""

    id: int
    port: int
    controller_port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def prepare(self, nodes: list[Node], extra: dict[str, str]) -> None:
        """Write the configuration and format the storage. Raises ClusterError."""
        self.folder.mkdir(parents=True)
        (self.folder / "log4j2.properties").write_text(_LOGGING)
        settings = self._settings(nodes) | extra
        text = "".join(f"{name}={value}\n" for name, value in settings.items())
        (self.folder / "server.properties").write_text(text)
        done = subprocess.run(
            [
                *self._java(), "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID,
                "-c", str(self.folder / "server.properties"),
            ],
            check=False, capture_output=True, text=True, timeout=FORMAT_TIMEOUT_S,
            preexec_fn=die_with_parent,
        )  # fmt: skip
        if done.returncode != 0:
            raise ClusterError(f"formatting node {self.id} failed:\n{done.stdout}{done.stderr}")

    def start(self) -> None:
        """Start the broker; its output goes to `log` in its folder."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._java(), "kafka.Kafka", str(self.folder / "server.properties")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                preexec_fn=die_with_parent,
            )  # fmt: skip

    def serves(self, brokers: int) -> bool:
        """Whether it answers, and knows a controller and this many brokers. Raises ClusterError."""
        if self.process is None or (status := self.process.poll()) is not None:
            text = self.log_tail()
            kind = PortTaken if "Address already in use" in text else ClusterError
            ended = "was not started" if self.process is None else f"ended with status {status}"
            raise kind(f"Kafka node {self.id} {ended}. The end of its log:\n{text}")
        view = kafka_probe.ask(HOST, self.port, timeout_s=1.0)
        return view is not None and len(view.brokers) == brokers and view.controller >= 0

    def log_tail(self) -> str:
        """The last lines of the broker's log."""
        path = self.folder / "log"
        text = path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace") if path.exists() else ""
        return text.strip() or "(nothing was logged)"

    def kill(self) -> None:
        """End the broker at once; its data is thrown away, so there is nothing to close."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _java(self) -> list[str]:
        return [
            kafka_jars.java(), HEAP, f"-Djava.io.tmpdir={self.folder}",
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
            "-cp", str(kafka_jars.cache_folder() / "lib" / "*"),
        ]  # fmt: skip

    def _settings(self, nodes: list[Node]) -> dict[str, str]:
        copies = str(min(3, len(nodes)))
        in_sync = "1" if len(nodes) == 1 else "2"
        voters = ",".join(f"{n.id}@{HOST}:{n.controller_port}" for n in nodes)
        return {
            "process.roles": "broker,controller",
            "node.id": str(self.id),
            "controller.quorum.voters": voters,
            "listeners": f"PLAINTEXT://{HOST}:{self.port},"
            f"CONTROLLER://{HOST}:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            "default.replication.factor": copies,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": in_sync,
            "group.initial.rebalance.delay.ms": "0",
        }


def die_with_parent() -> None:
    """Run in the child between fork and exec: SIGKILL when the parent ends; own signals reset."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if os.getppid() == 1:  # the parent ended before the line above took effect
        os._exit(1)


def make_nodes(count: int, base_port: int | None, folder: Path) -> list[Node]:
    """Nodes with ports: `base_port`, base_port + 1, ..., or free ones. Raises PortTaken."""
    taken: set[int] = set()
    nodes = []
    for place in range(count):
        if base_port is None:
            port = _free_port(taken)
        else:
            port = base_port + place
            taken.add(port)
            if not _is_free(port):
                raise PortTaken(f"port {port} is in use; give another --port, or none")
        nodes.append(Node(place + 1, port, 0, folder / f"node-{place + 1}"))
    for node in nodes:
        node.controller_port = _free_port(taken)
    return nodes


def _free_port(taken: set[int]) -> int:
    for port in random.sample(FREE_PORTS, len(FREE_PORTS)):
        if port not in taken and _is_free(port):
            taken.add(port)
            return port
    raise PortTaken(f"no port is free from {FREE_PORTS.start} to {FREE_PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
