"""The process that owns a local Kafka cluster for as long as it runs. Started by kafka_cluster.py.

It starts the brokers, writes one line of JSON to stdout (the state, or `{"error": ...}`), and
stays until SIGTERM, or until the process named as owner ends. Before the cluster serves, it also
ends when the reader of its stdout goes away, so that an interrupted start leaves nothing. If it is
killed, the kernel kills its brokers. SIGHUP starts brokers that have died.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import kafka_jars
import kafka_node
from kafka_jars import ClusterError, ending
from kafka_node import Node, PortTaken

READY_TIMEOUT_S = 90.0
PORT_ATTEMPTS = 3
POLL_S = 0.1


class Supervisor:
    """One cluster: `spec` is what kafka_cluster.start was asked for."""

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        self.folder = folder
        self.spec = spec
        self.nodes: list[Node] = []
        self.revive_asked = False
        self.owner_fd = os.pidfd_open(spec["owner"]) if spec["owner"] else None

    def bring_up(self) -> None:
        """Start all brokers and return when every one serves. Raises ClusterError."""
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self.nodes = kafka_node.make_nodes(self.spec["brokers"], self.spec["port"], self.folder)
            try:
                for node in self.nodes:
                    node.prepare(self.nodes, self.spec["extra"])
                for node in self.nodes:
                    node.start()
                self._wait_until_serving()
            except PortTaken:
                # Chosen ports can be taken by others before they are bound; given ones cannot help.
                self.bring_down()
                if self.spec["port"] is not None or attempt == PORT_ATTEMPTS:
                    raise
            else:
                return

    def _wait_until_serving(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        waiting = list(self.nodes)
        while waiting:
            waiting = [node for node in waiting if not node.serves(len(self.nodes))]
            if waiting and time.monotonic() > deadline:
                raise ClusterError(
                    f"Kafka node {waiting[0].id} did not serve within {READY_TIMEOUT_S:.0f} s. "
                    f"The end of its log:\n{waiting[0].log_tail()}"
                )
            self._sleep(starting=True)

    def stay(self) -> None:
        """Return when the owner has ended; revive brokers on the way."""
        while True:
            self._sleep(starting=False)
            if self.revive_asked:
                self.revive_asked = False
                for node in self.nodes:
                    if node.process is None or node.process.poll() is not None:
                        node.start()
                self.write_state()

    def bring_down(self) -> None:
        """Kill the brokers and remove their files."""
        for node in self.nodes:
            node.kill()
            shutil.rmtree(node.folder, ignore_errors=True)

    def write_state(self) -> dict[str, Any]:
        """Publish what the cluster consists of, in one step."""
        state = {
            "name": self.spec["name"],
            "version": kafka_jars.KAFKA_VERSION,
            "bootstrap": ",".join(f"{kafka_node.HOST}:{node.port}" for node in self.nodes),
            "folder": str(self.folder),
            "supervisor": os.getpid(),
            "nodes": [
                {
                    "id": node.id,
                    "port": node.port,
                    "pid": node.process.pid if node.process else None,
                    "folder": str(node.folder),
                }
                for node in self.nodes
            ],
        }
        written = self.folder / "state.json.new"
        written.write_text(json.dumps(state))
        written.replace(self.folder / "state.json")
        return state

    def _sleep(self, *, starting: bool) -> None:
        """Wait a moment; ends the process when nobody wants the cluster any more."""
        poll = select.poll()
        if starting:
            poll.register(sys.stdout.fileno(), 0)  # only "the reader is gone"
        if self.owner_fd is not None:
            poll.register(self.owner_fd, select.POLLIN)
        if poll.poll(POLL_S * 1000):
            raise SystemExit(0)


def _on_end(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _why(error: BaseException) -> str:
    """What ends this process, for who wonders where the cluster went; "" for its owner's end."""
    if not isinstance(error, SystemExit):
        return traceback.format_exc()
    if not error.code:
        return ""
    return f"{signal.Signals(int(error.code) - 128).name} at {time.strftime('%H:%M:%S')}"


def _say(answer: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


def main() -> None:
    """`kafka_supervisor.py FOLDER SPEC-JSON`."""
    folder, spec = Path(sys.argv[1]), json.loads(sys.argv[2])
    signal.signal(signal.SIGTERM, _on_end)
    signal.signal(signal.SIGINT, _on_end)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "pid").write_text(str(os.getpid()))
        try:
            supervisor = Supervisor(folder, spec)
        except ProcessLookupError:
            _say({"error": f"there is no process {spec['owner']} to be the owner"})
            return

        def on_hup(_number: int, _frame: object) -> None:
            supervisor.revive_asked = True

        signal.signal(signal.SIGHUP, on_hup)
        try:
            supervisor.bring_up()
            _say(supervisor.write_state())
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            supervisor.stay()
        except ClusterError as error:
            _say({"error": str(error)})
        except BaseException as error:
            if why := _why(error):
                ending(folder).write_text(why)
            raise
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            supervisor.bring_down()
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
