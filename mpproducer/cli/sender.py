"""`mpproducer sender`: look at the host's senders, and stop one."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from mpproducer.errors import KafkaError, SenderError
from mpproducer.shm import control
from mpproducer.shm.rendezvous import RUNTIME_DIR_VARIABLE, Rendezvous, default_base

_ANSWER_NS = 5_000_000_000
_SHOWN = (
    "record-acked-total", "record-not-written-total", "record-unknown-total",
    "produce-request-total", "batch-send-total", "connection-count",
    "buffer-available-bytes", "buffer-total-bytes", "batches-incomplete",
)  # fmt: skip


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "sender",
        help="look at this host's sender processes, or stop them",
        description="A sender starts with the first process that sends and ends after the last.",
    )
    parser.add_argument("verb", choices=("status", "stop"), help="what to do with each sender")
    parser.add_argument("--runtime-dir", help="where senders live, if not in the default folder")
    parser.add_argument("--json", action="store_true", help="everything they say, as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand; status 1 when no sender runs."""
    given = args.runtime_dir or os.environ.get(RUNTIME_DIR_VARIABLE)
    base = Path(given).absolute() if given else default_base()
    found = [answer for place in places(base) if (answer := ask(place, args.verb)) is not None]
    if args.json:
        print(json.dumps(found, indent=1))
    elif not found:
        print(f"no sender runs in {base}", file=sys.stderr)
    else:
        for answer in found:
            print(_describe(answer, args.verb))
    return 0 if found else 1


def places(base: Path) -> list[Rendezvous]:
    """Return the rendezvous folders with a socket below a runtime folder."""
    try:
        return [Rendezvous(path.parent) for path in sorted(base.glob("*/socket"))]
    except OSError as error:
        raise KafkaError(f"cannot look into {base}: {error.strerror}") from error


def ask(place: Rendezvous, verb: str) -> dict[str, Any] | None:
    """Send one message to the sender of a rendezvous; None when there is none.

    `stop` is answered by the end of the connection; the sender delivers what it has first.
    """
    deadline_ns = time.monotonic_ns() + _ANSWER_NS
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        try:
            sock.connect(str(place.socket))
        except OSError:
            return None
        pid, _uid, _gid = control.peer_credentials(sock)
        try:
            control.send_with_fds(sock, {"type": verb}, [], deadline_ns)
            if verb == "stop":
                return {"type": "stopping", "pid": pid, "folder": str(place.folder)}
            answer, _fds = control.recv_with_fds(sock, deadline_ns)
        except (OSError, TimeoutError, SenderError) as error:
            return {"type": "silent", "pid": pid, "folder": str(place.folder), "why": str(error)}
    return answer | {"folder": str(place.folder)}


def _describe(answer: dict[str, Any], verb: str) -> str:
    head = f"sender {answer['pid']} in {answer['folder']}"
    if answer["type"] == "silent":
        return f"{head}: does not answer ({answer['why']})"
    if verb == "stop":
        return f"{head}: stopping, after it has delivered what it holds"
    workers = ", ".join(map(str, answer["workers"])) or "none"
    nodes = ", ".join(
        f"{node['id']} ({node['host']}:{node['port']}, {node['state'].lower()})"
        for node in answer["nodes"]
    )
    counters = answer["counters"]
    lines = [head, f"  workers: {workers}", f"  nodes: {nodes or 'none'}"]
    lines += [f"  {name}: {counters[name]:,}" for name in _SHOWN if name in counters]
    return "\n".join(lines)
