"""`mpproducer sender metrics` and `mpproducer top`: what this host's producers measure."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from typing import Any, Final

from mpproducer.errors import ConfigError
from mpproducer.shm.metrics import NODE, PRODUCER, TOPIC, Metrics
from mpproducer.visitor import SenderMetrics, read_all, runtime_folder

_COLUMNS: Final = (
    ("records/s", "record-send-rate"), ("bytes/s", "outgoing-byte-rate"),
    ("records/request", "records-per-request-avg"), ("ack p50 ms", "send-to-ack-p50"),
    ("ack p99 ms", "send-to-ack-p99"), ("errors/s", "record-error-rate"),
    ("free bytes", "buffer-available-bytes"), ("busy", "io-ratio"),
)  # fmt: skip
_TOPICS: Final = 20  # the busiest ones
_LONGEST_S: Final = 86_400


def add_arguments(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare `sender metrics`."""
    parser = verbs.add_parser(
        "metrics",
        help="what every sender measures, for people, programs, or Prometheus",
        description="Names and units: docs/METRICS.md. Exit status 1 when no sender runs.",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON; null where there is nothing")
    form.add_argument("--prometheus", action="store_true", help="in Prometheus' text format")
    form.add_argument(
        "--listen", metavar="[HOST:]PORT",
        help="serve them to Prometheus over HTTP until Ctrl-C (127.0.0.1)",
    )  # fmt: skip
    parser.add_argument("--runtime-dir", help="where senders live, if not in the default folder")
    parser.set_defaults(run=run)


def add_top(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare `top`."""
    parser = commands.add_parser(
        "top",
        help="watch this host's senders: rates, latencies, errors, memory",
        description="On a terminal a live table until Ctrl-C, elsewhere a line per sender and "
        "interval. Rates and latencies cover the last 30 to 60 seconds.",
    )
    parser.add_argument("--interval", type=float, default=2.0, metavar="S", help="seconds (2)")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="end after N looks")
    parser.add_argument("--runtime-dir", help="where senders live, if not in the default folder")
    parser.set_defaults(run=run_top)


def numbers(metrics: Metrics) -> dict[str, dict[str, float | None]]:
    """For JSON, which has no nan."""
    return {
        group: {name: None if math.isnan(value) else value for name, value in values.items()}
        for group, values in metrics.items()
    }


def shown(value: float | None) -> str:
    """A number for people."""
    if value is None or math.isnan(value):
        return "-"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.1f}"


def run(args: argparse.Namespace) -> int:
    """Run `sender metrics`."""
    if args.listen:
        return _serve(args.listen, args.runtime_dir)
    found = read_all(runtime_folder(args.runtime_dir))
    if args.prometheus:
        from mpproducer.prometheus import exposition

        sys.stdout.write(exposition(args.runtime_dir))
    elif args.json:
        rows = [
            {"pid": one.pid, "client_id": one.client_id, "folder": one.folder}
            | {"metrics": numbers(one.metrics)}
            for one in found
        ]
        print(json.dumps(rows, indent=1, allow_nan=False))
    for one in [] if args.prometheus or args.json else found:
        print(f"sender {one.pid} in {one.folder}")
        for group, values in one.metrics.items():
            for name, value in values.items():
                print(f"  {group} {name} {shown(value)}")
    if not found:
        print(f"no sender runs in {runtime_folder(args.runtime_dir)}", file=sys.stderr)
    return 0 if found else 1


def _serve(address: str, runtime_dir: str | None) -> int:
    from mpproducer.prometheus import serve

    host, _, port = address.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--listen {address}: give a port, or HOST:PORT")
    try:
        server, told = serve(host or "127.0.0.1", int(port), runtime_dir)
    except OSError as error:
        raise ConfigError(f"--listen {address}: {error.strerror or error}") from error
    print(f"metrics at http://{told}/metrics", file=sys.stderr, flush=True)
    try:
        while True:
            time.sleep(3600)
    finally:
        server.shutdown()
        server.server_close()


# --- top


def run_top(args: argparse.Namespace) -> int:
    """Run `top`; status 1 when no sender was seen."""
    if not 0 < args.interval <= _LONGEST_S:
        raise ConfigError(
            f"--interval {args.interval}: must be more than 0 seconds, and a day at most"
        )
    live: Any = None
    if sys.stdout.isatty():
        from rich.live import Live

        live = Live(auto_refresh=False, screen=False)
        live.start()
    looks, seen = 0, False
    try:
        while True:
            found = read_all(runtime_folder(args.runtime_dir))
            seen = seen or bool(found)
            if live is not None:
                live.update(_picture(found), refresh=True)
            else:
                _print_lines(found, args.runtime_dir)
            looks += 1
            if looks == args.count:
                return 0 if seen else 1
            time.sleep(args.interval)
    except KeyboardInterrupt:
        return 0 if seen else 1
    finally:
        if live is not None:
            live.stop()


def _print_lines(found: list[SenderMetrics], runtime_dir: str | None) -> None:
    for one in found:
        values = one.metrics[PRODUCER]
        told = ", ".join(f"{label} {shown(values[name])}" for label, name in _COLUMNS)
        print(f"sender {one.pid}: {told}", flush=True)
    if not found:
        print(f"no sender runs in {runtime_folder(runtime_dir)}", file=sys.stderr, flush=True)


def _picture(found: list[SenderMetrics]) -> Any:
    from rich.console import Group
    from rich.table import Table

    senders = Table("sender", "client", *(label for label, _name in _COLUMNS))
    nodes = Table("sender", "broker", "requests/s", "bytes out/s", "in flight", "p50 ms", "p99 ms")
    topics = Table("sender", "topic", "records/s", "bytes/s", "retries/s", "errors/s", "ratio")
    for one in found:
        values = one.metrics[PRODUCER]
        senders.add_row(
            str(one.pid), one.client_id, *(shown(values[name]) for _label, name in _COLUMNS)
        )
        for group, row in one.metrics.items():
            if group.startswith(f"{NODE}.node-") and not group.startswith(f"{NODE}.node--"):
                names = ("request-rate", "outgoing-byte-rate", "requests-in-flight",
                         "request-latency-p50", "request-latency-p99")  # fmt: skip
                head = group.removeprefix(f"{NODE}.node-")
                nodes.add_row(str(one.pid), head, *(shown(row[name]) for name in names))
        busiest = sorted(
            (group for group in one.metrics if group.startswith(f"{TOPIC}.")),
            key=lambda group, of=one: -of.metrics[group]["byte-rate"],  # type: ignore[misc]
        )
        for group in busiest[:_TOPICS]:
            row = one.metrics[group]
            names = ("record-send-rate", "byte-rate", "record-retry-rate", "record-error-rate",
                     "compression-rate")  # fmt: skip
            head = group.removeprefix(f"{TOPIC}.")
            topics.add_row(str(one.pid), head, *(shown(row[name]) for name in names))
    return Group(senders, nodes, topics)
