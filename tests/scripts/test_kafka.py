"""scripts/kafka: it serves when it says so, tells why when it cannot, and leaves nobody behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kafka_jars
import kafka_probe
import psutil
import pytest

from tests.conftest import wait_until

SCRIPT = [sys.executable, str(Path(__file__).resolve().parents[2] / "scripts" / "kafka_cluster.py")]
START_S = 200.0

pytestmark = [
    pytest.mark.kafka_real,
    pytest.mark.xdist_group("kafka_script"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        bool(os.environ.get("MPPRODUCER_BOOTSTRAP")), reason="MPPRODUCER_BOOTSTRAP replaces it"
    ),
]


@pytest.fixture(autouse=True)
def needs_java() -> None:
    try:
        kafka_jars.java()
    except kafka_jars.ToolMissing as missing:
        if os.environ.get("MPPRODUCER_REQUIRE_KAFKA") == "1":
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.fixture
def clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A private place for clusters; no process may have its files there afterwards."""
    folder = tmp_path / "clusters"
    monkeypatch.setenv("MPPRODUCER_KAFKA_DIR", str(folder))
    yield folder
    gone = wait_until(lambda: not processes(folder), 10.0)
    left = processes(folder)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert gone, f"left behind: {[process.cmdline()[:3] for process in left]}"


def processes(folder: Path) -> list[psutil.Process]:
    """Supervisors and brokers of the clusters in a folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in part for part in process.info["cmdline"] or []):
            found.append(process)
    return found


def kafka(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SCRIPT, *arguments], capture_output=True, text=True, timeout=START_S, check=False,
        env=os.environ | environment,
    )  # fmt: skip


def state(name: str = "default") -> dict[str, Any]:
    done = kafka("status", "--name", name, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_one_broker_serves_when_start_says_so_and_stop_removes_everything(clusters: Path) -> None:
    started = kafka("start", "--print")
    assert started.returncode == 0, started.stderr
    host, _, port = started.stdout.strip().partition(":")
    view = kafka_probe.ask(host, int(port))  # at once: no waiting here
    assert view is not None
    assert len(view.brokers) == 1
    assert view.controller >= 0

    (node,) = state()["nodes"]
    again = kafka("start")  # finds the one that runs
    assert started.stdout.strip() in again.stdout
    assert [node["pid"]] == [each["pid"] for each in state()["nodes"]]
    refused = kafka("start", "--brokers", "3")
    assert refused.returncode == 1
    assert "already runs with 1 brokers, not 3; stop it first" in refused.stderr

    stopped = kafka("stop")
    assert (stopped.returncode, stopped.stdout) == (0, "cluster 'default' is stopped\n")
    assert kafka_probe.ask(host, int(port)) is None
    assert wait_until(lambda: not processes(clusters), 2.0)  # a moment until they are reaped
    assert list(clusters.iterdir()) == []
    assert kafka("stop").stdout == "cluster 'default' was not running\n"
    status = kafka("status")
    assert (status.returncode, status.stderr) == (1, "kafka: no cluster 'default' is running\n")
    assert kafka("status", "--json").stdout == "null\n"


def test_three_brokers_know_each_other_and_a_dead_one_can_be_revived(clusters: Path) -> None:
    name = f"three-{uuid.uuid4().hex[:8]}"
    started = kafka("start", "--name", name, "--brokers", "3")
    assert started.returncode == 0, started.stderr
    nodes = state(name)["nodes"]
    assert len({node["pid"] for node in nodes}) == 3
    for node in nodes:
        view = kafka_probe.ask("127.0.0.1", node["port"])
        assert view is not None
        assert len(view.brokers) == 3
    assert kafka("signal", "--name", name, "2", "KILL").returncode == 0
    assert wait_until(lambda: kafka_probe.ask("127.0.0.1", nodes[1]["port"]) is None)
    refused = kafka("start", "--name", name, "--brokers", "3")
    assert "node 2 is dead" in refused.stderr
    assert "is not running" in kafka("signal", "--name", name, "2", "STOP").stderr
    assert kafka("revive", "--name", name).returncode == 0
    assert kafka_probe.ask("127.0.0.1", nodes[1]["port"]) is not None
    # A cluster that ended without `stop` says why.
    os.kill(state(name)["supervisor"], signal.SIGTERM)
    assert wait_until(lambda: not processes(clusters), 10.0)
    lost = kafka("signal", "--name", name, "1", "STOP")
    assert f"no cluster {name!r} is running: its end was SIGTERM at " in lost.stderr
    # Whoever kills the supervisor kills the brokers with it.
    assert kafka("start", "--name", name, "--brokers", "1").returncode == 0
    os.kill(state(name)["supervisor"], signal.SIGKILL)
    assert wait_until(lambda: not processes(clusters), 10.0)
    assert kafka("status", "--name", name).returncode == 1
    assert kafka("stop", "--name", name).returncode == 0
    assert list(clusters.iterdir()) == []


def test_a_broker_that_dies_is_told_with_the_end_of_its_log(clusters: Path) -> None:
    started_s = time.monotonic()
    done = kafka("start", "--property", "log.retention.bytes=plenty")
    assert done.returncode == 1
    assert "log.retention.bytes" in done.stderr
    assert "plenty" in done.stderr
    assert time.monotonic() - started_s < 60  # not the deadline: it died
    assert wait_until(lambda: not processes(clusters), 2.0)
    assert list(clusters.iterdir()) == []


def test_a_port_in_use_is_named(clusters: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = kafka("start", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == f"kafka: port {port} is in use; give another --port, or none\n"
    assert list(clusters.iterdir()) == []


def test_a_cluster_ends_with_its_owner_however_that_ends(clusters: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as owner:
        done = kafka("start", "--owner-pid", str(owner.pid))
        assert done.returncode == 0, done.stderr
        assert len(processes(clusters)) >= 2  # supervisor and broker
        owner.kill()
    assert wait_until(lambda: not processes(clusters), 10.0)
    assert kafka("status").returncode == 1
    gone = kafka("start", "--owner-pid", str(owner.pid))
    assert gone.returncode == 1
    assert f"there is no process {owner.pid} to be the owner" in gone.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_start_that_is_broken_off_leaves_nobody(number: signal.Signals, clusters: Path) -> None:
    with subprocess.Popen([*SCRIPT, "start"], stderr=subprocess.DEVNULL) as starter:
        assert wait_until(lambda: len(processes(clusters)) >= 2, 60.0)  # supervisor and Java
        starter.send_signal(number)
        assert starter.wait(30) != 0
    assert wait_until(lambda: not processes(clusters), 10.0)
    assert kafka("status").returncode == 1


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    none = kafka("start", PATH="/nonexistent", JAVA_HOME="", MPPRODUCER_KAFKA_DIR=str(tmp_path))
    assert none.returncode == 1
    assert "Java is missing (Kafka" in none.stderr
    assert "apt-get install default-jre-headless" in none.stderr
    old = tmp_path / "bin"
    old.mkdir()
    (old / "java").write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    (old / "java").chmod(0o755)
    eleven = kafka("start", PATH=f"{old}:/usr/bin:/bin", JAVA_HOME="")
    assert "Java 17 or newer is needed" in eleven.stderr
    bad = kafka("start", "--name", "../x")
    assert "cluster name '../x'" in bad.stderr


def test_an_external_cluster_is_used_instead() -> None:
    done = kafka("start", "--print", MPPRODUCER_BOOTSTRAP="k1:9092")
    assert (done.returncode, done.stdout) == (0, "k1:9092\n")
    assert kafka("status", MPPRODUCER_BOOTSTRAP="k1:9092").stdout.startswith("k1:9092")
