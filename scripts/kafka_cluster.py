"""A local Apache Kafka for tests and demos: start, stop, look at. Behind `scripts/kafka`.

Everything of a cluster lives in one folder, `<root>/<name>/`:

    lock        flock held by the supervisor for as long as it lives: "is it running?"
    pid         of the supervisor
    state.json  appears when the cluster serves
    node-N/     configuration, log and data of a broker

and, beside it, `<name>.end`: why a cluster ended that nobody stopped.

Nobody is left behind: brokers die with the supervisor (see kafka_supervisor.py), and the supervisor
ends on `stop`, when its starter goes away before the cluster serves, or when the process named by
--owner-pid ends. `MPPRODUCER_BOOTSTRAP` names a cluster to use instead. Standard library only.
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
from pathlib import Path
from typing import Any, NoReturn

import kafka_jars
import kafka_node
import kafka_probe
from kafka_jars import ClusterError, ending, locked

READY_TIMEOUT_S = 120.0  # the supervisor's own deadline comes first
STOP_TIMEOUT_S = 20.0
POLL_S = 0.1
MAX_BROKERS = 9
SUPERVISOR = Path(__file__).with_name("kafka_supervisor.py")

State = dict[str, Any]


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
            _check_same(state, brokers)
            return state
        _clear(folder)
        folder.mkdir(mode=0o700)
        spec = {"name": name, "brokers": brokers, "port": port, "extra": extra, "owner": owner}
        try:
            return _run_supervisor(folder, spec)
        except BaseException:
            folder.with_suffix(".start").unlink()
            raise


def _check_same(state: State, brokers: int) -> None:
    way_out = f"stop it first (scripts/kafka stop --name {state['name']})"
    if len(state["nodes"]) != brokers:
        raise ClusterError(
            f"cluster {state['name']!r} already runs with {len(state['nodes'])} brokers, not "
            f"{brokers}; {way_out}"
        )
    dead = [node["id"] for node in state["nodes"] if not _is_node(node)]
    if dead:
        raise ClusterError(
            f"cluster {state['name']!r} already runs, but node {dead[0]} is dead; {way_out}"
        )


def _run_supervisor(folder: Path, spec: dict[str, Any]) -> State:
    log_path = folder / "supervisor.log"
    with log_path.open("wb") as log:
        supervisor = subprocess.Popen(
            [sys.executable, str(SUPERVISOR), str(folder), json.dumps(spec)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True, cwd=folder,
        )  # fmt: skip
    assert supervisor.stdout is not None
    said: State = {}
    try:
        with supervisor.stdout as pipe:
            readable, _, _ = select.select([pipe], [], [], READY_TIMEOUT_S)
            answer = pipe.readline() if readable else ""
        said = json.loads(answer) if answer else {"error": log_path.read_text() or "no answer"}
    finally:
        # Reached by KeyboardInterrupt too: a cluster that is not whole leaves nothing behind.
        if "nodes" not in said:
            supervisor.terminate()
            try:
                supervisor.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                supervisor.kill()
                supervisor.wait()
            _clear(folder)
    if "error" in said:
        raise ClusterError(said["error"])
    return said


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
    """Ask the supervisor to end, then make it. The pid is its own while the lock is held."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    with contextlib.suppress(ProcessLookupError):
        os.kill(supervisor, signal.SIGTERM)
        while is_running(folder) and time.monotonic() < deadline:
            time.sleep(0.02)
        if is_running(folder):
            os.kill(supervisor, signal.SIGKILL)


def _clear(folder: Path) -> None:
    """Remove a cluster's folder; a dying broker may still be writing in it."""
    ending(folder).unlink(missing_ok=True)
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    raise ClusterError(f"{folder} cannot be removed")


def revive(name: str, timeout_s: float = READY_TIMEOUT_S) -> State:
    """Start the brokers of a running cluster that have died, with their data, and wait for them."""
    folder = cluster_folder(name)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        state = _running_state(name)
        nodes = state["nodes"]
        if not all(_is_node(node) for node in nodes):
            # Each time: a broker whose threads are still ending is not dead for the supervisor.
            os.kill(int((folder / "pid").read_text()), signal.SIGHUP)
        elif all(_serves(node["port"], len(nodes)) for node in nodes):
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
        ended = ending(cluster_folder(name))
        why = f": its end was {ended.read_text().strip()}" if ended.exists() else ""
        raise ClusterError(f"no cluster {name!r} is running{why}")
    return state


def dump(name: str, topic: str, partition: int) -> str:
    """What the brokers stored for a partition, batch by batch (Kafka's DumpLogSegments)."""
    for node in _running_state(name)["nodes"]:
        logs = sorted(Path(node["folder"], "data", f"{topic}-{partition}").glob("*.log"))
        if logs:
            return subprocess.run(
                [
                    kafka_jars.java(), "-cp", str(kafka_jars.cache_folder() / "lib" / "*"),
                    "org.apache.kafka.tools.DumpLogSegments", "--deep-iteration",
                    "--files", ",".join(map(str, logs)),
                ],
                check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                timeout=120,
            ).stdout  # fmt: skip
    raise ClusterError(f"no broker of {name!r} stores {topic}-{partition}")


# --- the command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/kafka", description=(__doc__ or "").split("\n")[0]
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (
        ("start", "start a cluster, or find the one running under this name"),
        ("stop", "stop it and remove everything of it"),
        ("status", "say whether it serves; exit status 1 when it does not"),
        ("revive", "start brokers that have died, with their data"),
        ("signal", "send a signal to one broker"),
        ("dump", "print what the brokers stored for a partition"),
        ("prepare", "fetch what start needs, and no more"),
    ):
        one = verbs.add_parser(verb, help=text)
        if verb != "prepare":
            one.add_argument("--name", default="default", help="several clusters can run at once")
        if verb == "start":
            one.add_argument("--brokers", type=int, default=1, choices=range(1, MAX_BROKERS + 1))
            one.add_argument("--port", type=int, help="of the first broker; default: free ones")
            one.add_argument("--owner-pid", type=int, default=0, help="stop when this process ends")
            one.add_argument("--property", action="append", default=[], metavar="NAME=VALUE")
            one.add_argument("--print", action="store_true", help="print bootstrap servers only")
        elif verb == "status":
            one.add_argument("--json", action="store_true")
        elif verb == "signal":
            one.add_argument("node", type=int)
            one.add_argument("signal", choices=("KILL", "STOP", "CONT", "TERM"))
        elif verb == "dump":
            one.add_argument("topic")
            one.add_argument("partition", type=int)
    return parser


def _show(state: State) -> str:
    return (
        f"Kafka {state['version']}, {len(state['nodes'])} broker(s), cluster {state['name']!r}: "
        f"{state['bootstrap']}\n  files: {state['folder']}\n"
        f"  stop:  scripts/kafka stop --name {state['name']}\n"
    )


def _external() -> State | None:
    given = os.environ.get("MPPRODUCER_BOOTSTRAP")
    return {"name": "MPPRODUCER_BOOTSTRAP", "bootstrap": given, "nodes": []} if given else None


def _start(arguments: argparse.Namespace) -> str:
    if external := _external():
        state = external
        shown = f"using the cluster of MPPRODUCER_BOOTSTRAP: {state['bootstrap']}\n"
    else:
        pairs = [text.partition("=")[::2] for text in arguments.property]
        state = start(
            arguments.name, arguments.brokers, arguments.port, dict(pairs), arguments.owner_pid
        )
        shown = _show(state)
    return f"{state['bootstrap']}\n" if arguments.print else shown


def _status(arguments: argparse.Namespace) -> str:
    state = _external() or status(arguments.name)
    if state is None:
        if arguments.json:
            sys.stdout.write("null\n")
            raise SystemExit(1)
        raise ClusterError(f"no cluster {arguments.name!r} is running")
    if arguments.json:
        return f"{json.dumps(state, indent=1)}\n"
    return _show(state) if state["nodes"] else f"{state['bootstrap']} (MPPRODUCER_BOOTSTRAP)\n"


def _run(arguments: argparse.Namespace) -> str:
    match arguments.verb:
        case "start":
            return _start(arguments)
        case "status":
            return _status(arguments)
        case "stop":
            was = stop(arguments.name)
            return f"cluster {arguments.name!r} {'is stopped' if was else 'was not running'}\n"
        case "revive":
            return _show(revive(arguments.name))
        case "signal":
            number = signal.Signals[f"SIG{arguments.signal}"]
            send_signal(arguments.name, arguments.node, number)
        case "dump":
            return dump(arguments.name, arguments.topic, arguments.partition)
        case "prepare":
            kafka_jars.java()
            kafka_jars.ensure()
    return ""


def _on_signal(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> None:
    """Run the command line; one line on stderr and status 1 for what can be expected to fail."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, _on_signal)  # so that a half-started cluster is cleaned up
    signal.signal(signal.SIGINT, _on_signal)
    try:
        sys.stdout.write(_run(arguments))
    except ClusterError as error:
        sys.stderr.write(f"kafka: {error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
