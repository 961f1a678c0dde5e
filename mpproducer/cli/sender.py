"""`mpproducer sender`: look at the host's senders, stop them, keep one running."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import sys
import time
from typing import Any

from mpproducer.cli import metrics
from mpproducer.cli.metrics import numbers, shown
from mpproducer.cli.produce import add_brokers, config_of
from mpproducer.shm.metrics import Metrics
from mpproducer.shm.rendezvous import Rendezvous
from mpproducer.visitor import ask, places, read_all, runtime_folder

_RETRY_S = 0.1
_SHOWN = (
    "record-acked-total", "record-not-written-total", "record-unknown-total",
    "produce-request-total", "batch-send-total", "connection-count",
    "buffer-available-bytes", "buffer-total-bytes", "batches-incomplete",
    "record-send-rate", "records-per-request-avg", "request-latency-p50", "request-latency-p99",
    "send-to-ack-p50", "send-to-ack-p99",
)  # fmt: skip


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "sender",
        help="look at this host's sender processes, stop them, or keep one running",
        description="A sender starts with the first process that sends and ends after the last.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    status = verbs.add_parser("status", help="what every sender does; status 1 when none runs")
    stop = verbs.add_parser(
        "stop",
        help="end every sender after it has delivered what it holds",
        description="Exit status 0 when all of them have ended, 1 when none runs or one goes on.",
    )
    stop.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="how long to wait for them (60)"
    )
    for verb in (status, stop):
        verb.add_argument("--runtime-dir", help="where senders live, if not in the default folder")
        verb.add_argument("--json", action="store_true", help="everything they say, as JSON")
        verb.set_defaults(run=run)
    metrics.add_arguments(verbs)
    keep = verbs.add_parser(
        "run",
        help="keep the sender of a configuration running until Ctrl-C or SIGTERM",
        description="Starts the sender that producers of this configuration use, where there is "
        "none, and keeps it while no process sends; should it die, another is started. For a "
        "service of its own: connections and metadata stay warm, and the sender belongs to the "
        "service and not to the worker that happened to come first.",
    )
    add_brokers(keep)
    keep.set_defaults(run=run_keeper)


def run(args: argparse.Namespace) -> int:
    """Run `status` and `stop`; status 1 when no sender runs."""
    base = runtime_folder(args.runtime_dir)
    found = [answer for place in places(base) if (answer := ask(place, args.verb)) is not None]
    measured = {one.folder: one.metrics for one in read_all(base)} if args.verb == "status" else {}
    for answer in found:
        if answer["type"] == "status":
            answer["metrics"] = numbers(measured.get(answer["folder"], Metrics()))
    gone = True
    if args.verb == "stop":
        gone = _await_ends(found, time.monotonic() + args.timeout)
    if args.json:
        print(json.dumps(found, indent=1))
    elif not found:
        print(f"no sender runs in {base}", file=sys.stderr)
    else:
        for answer in found:
            print(_describe(answer))
    return 0 if found and gone else 1


def _await_ends(found: list[dict[str, Any]], until_s: float) -> bool:
    """Wait for senders that were told to stop; marks those that ended."""
    all_gone = True
    for answer in found:
        if answer["type"] == "stopping":
            try:
                pidfd = os.pidfd_open(answer["pid"])
            except ProcessLookupError:
                answer["type"] = "stopped"
                continue
            try:
                left_s = max(0.0, until_s - time.monotonic())
                if select.select([pidfd], [], [], left_s)[0]:
                    answer["type"] = "stopped"
            finally:
                os.close(pidfd)
        all_gone = all_gone and answer["type"] == "stopped"
    return all_gone


class _EndAsked(Exception):
    """SIGTERM or SIGINT."""


def run_keeper(args: argparse.Namespace) -> int:
    """Run `run`: hold an attachment, which is what keeps a sender alive; make it anew when the
    sender died."""
    from mpproducer.producer import Producer

    def on_end(_number: int, _frame: object) -> None:
        raise _EndAsked

    producer = Producer(config_of(args).to_wire())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_end)
    try:
        while True:
            producer.attach()
            place = Rendezvous.of(producer.config.sender_key(), producer.config.runtime_dir)
            answer = ask(place, "status")
            if answer is None or answer["type"] != "status":
                time.sleep(_RETRY_S)  # it ended just now
                continue
            print(f"sender {answer['pid']} runs in {place.folder}", file=sys.stderr)
            if _watch(answer["pid"]):
                print(f"sender {answer['pid']} ended; starting another", file=sys.stderr)
    except _EndAsked:
        print("leaving the sender: it ends when its last process has", file=sys.stderr)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # once is enough
        producer.close()
    return 0


def _watch(pid: int) -> bool:
    """Return when the process has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        select.select([pidfd], [], [])
    finally:
        os.close(pidfd)
    return True


def _describe(answer: dict[str, Any]) -> str:
    head = f"sender {answer['pid']} in {answer['folder']}"
    kind = answer["type"]
    if kind == "silent":
        return f"{head}: does not answer ({answer['why']})"
    if kind == "stopping":
        return f"{head}: still delivering what it holds"
    if kind == "stopped":
        return f"{head}: has delivered what it held, and ended"
    if kind != "status":
        return f"{head}: {answer.get('message', kind)}"
    counters = answer["counters"] | answer["metrics"].get("producer-metrics", {})
    rows = [
        ("workers", ", ".join(map(str, answer["workers"])) or "none"),
        *((f"node {node['id']}", _node(node)) for node in answer["nodes"] if node["id"] >= 0),
        *((name, shown(counters[name])) for name in _SHOWN if name in counters),
    ]
    return "\n".join([head, *(f"  {name:26} {value}" for name, value in rows)])


def _node(node: dict[str, Any]) -> str:
    why = f" ({node['why']})" if node["why"] else ""
    return f"{node['host']}:{node['port']} {node['state'].lower().replace('_', ' ')}{why}"
