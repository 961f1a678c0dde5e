"""`python -m bench`: run the cases interleaved, print a table, write JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from pathlib import Path

from bench import cases
from bench.clients import CLIENTS, Setup

Rows = dict[str, dict[str, list[float]]]


def main() -> int:
    """Run the bench; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--bootstrap-servers",
        default=os.environ.get("MPPRODUCER_BOOTSTRAP"),
        help="a running cluster; see scripts/kafka start",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=1_000_000, help="per saturation round")
    parser.add_argument("--seconds", type=float, default=8.0, help="per fixed-rate round")
    parser.add_argument("--rate", type=int, default=8000, help="records/s of the fixed-rate case")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--partitions", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("bench/results.json"))
    args = parser.parse_args()  # fmt: skip
    if not args.bootstrap_servers:
        parser.error("--bootstrap-servers is missing; `scripts/kafka start` prints some")
    topic = _make_topic(args.bootstrap_servers, args.partitions)
    results: dict[str, Rows] = {}
    fast = Setup(args.bootstrap_servers, topic, 5, "none")
    slow = Setup(args.bootstrap_servers, topic, 5, "zstd")
    for round_ in range(args.rounds):
        print(f"round {round_ + 1} of {args.rounds}", file=sys.stderr)
        for name in CLIENTS:
            _note(results, "saturation, 100 B, one process", name,
                  cases.saturate(name, fast, args.records, 100))  # fmt: skip
        if round_ % 2 == 0:
            for count in args.processes:
                for name in CLIENTS:
                    case = f"{args.rate} records/s, {count} processes"
                    _note(results, case, name,
                          cases.fixed_rate(name, slow, count, args.rate, args.seconds))  # fmt: skip
    report = {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(),
                    "kernel": platform.release()},
        "setup": {"saturation": vars(fast), "fixed rate": vars(slow),
                  "partitions": args.partitions, "idempotence": True},
        "results": results,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    _print(results)
    print(f"\nall rounds: {args.out}")
    return 0


def _make_topic(bootstrap: str, partitions: int) -> str:
    from confluent_kafka.admin import AdminClient, NewTopic

    topic = f"bench-{os.getpid()}"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in admin.create_topics([NewTopic(topic, partitions, 1)]).values():
        future.result(30)
    return topic


def _note(results: dict[str, Rows], case: str, client: str, numbers: cases.Result) -> None:
    for name, value in numbers.items():
        results.setdefault(case, {}).setdefault(name, {}).setdefault(client, []).append(value)


def _print(results: dict[str, Rows]) -> None:
    ours, peer = CLIENTS
    for case, rows in results.items():
        print(f"\n{case}\n  {'':32} {ours + ' min/median/max':>34} {peer + ' min/median/max':>34}"
              f" {'ratio':>8}")  # fmt: skip
        for name, values in rows.items():
            mine, theirs = statistics.median(values[ours]), statistics.median(values[peer])
            ratio = f"{mine / theirs:.3f}" if theirs else "-"
            print(f"  {name:32} {_spread(values[ours]):>34} {_spread(values[peer]):>34} {ratio:>8}")


def _spread(values: list[float]) -> str:
    middle = statistics.median(values)
    return " / ".join(f"{value:,.1f}" for value in (min(values), middle, max(values)))


if __name__ == "__main__":
    sys.exit(main())
