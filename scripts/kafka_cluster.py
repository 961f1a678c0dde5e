"""A local Apache Kafka for tests and demos: start, stop, look at. Behind `scripts/kafka`.

`start` runs a supervisor in a session of its own, which starts the brokers, says when all of them
serve, and stays. Everything of a cluster lives in one folder, `<root>/<name>/`:

    lock        flock held by the supervisor for as long as it lives: "is it running?"
    state.json  appears when the cluster serves
    node-N/     configuration, log and data of a broker

Nobody is left behind: brokers die with the supervisor (kernel), the supervisor ends when its
starter goes away before the cluster serves, on `stop`, or when the process named by --owner-pid
ends. `MPPRODUCER_BOOTSTRAP` names a cluster to use instead. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import kafka_jars
import kafka_node
import kafka_probe
from kafka_jars import ClusterError, locked
from kafka_node import Node, PortTaken

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
PORT_ATTEMPTS = 3
POLL_S = 0.1
MAX_BROKERS = 9

State = dict[str, Any]


class Interrupted(BaseException):
    """SIGTERM or SIGINT arrived."""


def root_folder() -> Path:
    """Where clusters live: MPPRODUCER_KAFKA_DIR, else a private folder in /tmp."""
    given = os.environ.get("MPPRODUCER_KAFKA_DIR")
    folder = Path(given) if given else Path(f"/tmp/mpproducer-kafka-{os.getuid()}")  # noqa: S108
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise ClusterError(f"{folder} is not a folder of this user; remove it")
    return folder.absolute()


def cluster_folder(name: str) -> Path:
    """The folder of a cluster; raises ClusterError for a name that is no plain word."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise ClusterError(f"cluster name {name!r}: use letters, digits, '_' and '-' only")
    return root_folder() / name


# --- seen from outside


def is_running(folder: Path) -> bool:
    """Whether a supervisor holds the folder's lock."""
    try:
        with (folder / "lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def status(name: str) -> State | None:
    """The state of a serving cluster, or None."""
    folder = cluster_folder(name)
    if not is_running(folder):
        return None
    try:
        state: State = json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        return None
    return state


def start(name: str, brokers: int, port: int | None, extra: dict[str, str], owner: int) -> State:
    """Start a cluster, or return the state of the one that runs under this name."""
    folder = cluster_folder(name)
    kafka_jars.java()
    kafka_jars.ensure()
    with locked(folder.with_suffix(".start"), READY_TIMEOUT_S + STOP_TIMEOUT_S):
        if state := status(name):
            if len(state["nodes"]) != brokers:
                raise ClusterError(
                    f"cluster {name!r} already runs with {len(state['nodes'])} brokers, not "
                    f"{brokers}; stop it first (scripts/kafka stop --name {name})"
                )
            return state
        _clear(folder)
        folder.mkdir(mode=0o700)
        spec = {"name": name, "brokers": brokers, "port": port, "extra": extra, "owner": owner}
        return _run_supervisor(folder, spec)


def _run_supervisor(folder: Path, spec: dict[str, Any]) -> State:
    with (folder / "supervisor.log").open("wb") as log:
        supervisor = subprocess.Popen(  # noqa: S603
            [sys.executable, __file__, "supervise", json.dumps(spec)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True, cwd=folder,
        )  # fmt: skip
    assert supervisor.stdout is not None
    try:
        with supervisor.stdout as pipe:
            readable, _, _ = select.select([pipe], [], [], READY_TIMEOUT_S + STOP_TIMEOUT_S)
            answer = pipe.readline() if readable else ""
        if answer:
            said: State = json.loads(answer)
            if "error" not in said:
                return said
            why = said["error"]
        else:
            why = (folder / "supervisor.log").read_text(errors="replace") or "no answer"
    except BaseException:
        _end(supervisor.pid, folder)
        supervisor.wait()
        raise
    _end(supervisor.pid, folder)
    supervisor.wait()
    raise ClusterError(why)


def stop(name: str) -> bool:
    """Stop the cluster and remove everything of it; False when none was running."""
    folder = cluster_folder(name)
    with locked(folder.with_suffix(".start"), READY_TIMEOUT_S + STOP_TIMEOUT_S):
        running = is_running(folder)
        if running:
            _end(int((folder / "pid").read_text()), folder)
        _clear(folder)
        folder.with_suffix(".start").unlink()
    return running


def _end(supervisor: int, folder: Path) -> None:
    """Ask the supervisor to end, then make it. Its pid is its own while it holds the lock."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    with contextlib.suppress(ProcessLookupError):
        os.kill(supervisor, signal.SIGTERM)
        while is_running(folder) and time.monotonic() < deadline:
            time.sleep(0.02)
        if is_running(folder):
            os.kill(supervisor, signal.SIGKILL)
    _clear(folder)


def _clear(folder: Path) -> None:
    """Remove a cluster's folder; a dying broker may still be writing in it."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    raise ClusterError(f"{folder} cannot be removed")


def revive(name: str, timeout_s: float = READY_TIMEOUT_S) -> State:
    """Start the brokers of a running cluster that have died, with their data, and wait for them."""
    folder = cluster_folder(name)
    state = _running_state(name)
    old = {node["pid"] for node in state["nodes"] if not _is_node(node)}
    os.kill(int((folder / "pid").read_text()), signal.SIGHUP)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        state = _running_state(name)
        if not old & {node["pid"] for node in state["nodes"]} and all(
            _serves(node["port"], len(state["nodes"])) for node in state["nodes"]
        ):
            return state
        time.sleep(POLL_S)
    raise ClusterError(f"the brokers of {name!r} did not all serve within {timeout_s:.0f} s")


def _serves(port: int, brokers: int) -> bool:
    view = kafka_probe.ask(kafka_node.HOST, port)
    return view is not None and len(view.brokers) == brokers and view.controller >= 0


def send_signal(name: str, node_id: int, number: signal.Signals) -> None:
    """Send a signal to one broker: KILL, STOP and CONT make good faults."""
    for node in _running_state(name)["nodes"]:
        if node["id"] == node_id:
            if not _is_node(node):
                raise ClusterError(f"node {node_id} of {name!r} is not running")
            os.kill(node["pid"], number)
            return
    raise ClusterError(f"cluster {name!r} has no node {node_id}")


def _is_node(node: dict[str, Any]) -> bool:
    """Whether the pid still is this broker: pids are used again."""
    try:
        command = Path(f"/proc/{node['pid']}/cmdline").read_bytes()
    except FileNotFoundError:
        return False
    return node["folder"].encode() in command


def _running_state(name: str) -> State:
    state = status(name)
    if state is None:
        raise ClusterError(f"no cluster {name!r} is running")
    return state


def dump(name: str, topic: str, partition: int) -> str:
    """What the brokers stored for a partition, batch by batch (Kafka's DumpLogSegments)."""
    for node in _running_state(name)["nodes"]:
        logs = sorted(Path(node["folder"], "data", f"{topic}-{partition}").glob("*.log"))
        if logs:
            return subprocess.run(  # noqa: S603
                [
                    kafka_jars.java(), "-cp", str(kafka_jars.cache_folder() / "lib" / "*"),
                    "org.apache.kafka.tools.DumpLogSegments", "--deep-iteration",
                    "--files", ",".join(map(str, logs)),
                ],
                check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                timeout=120,
            ).stdout  # fmt: skip
    raise ClusterError(f"no broker of {name!r} stores {topic}-{partition}")
