"""mpproducer and its peers on the same broker, in interleaved rounds; a table, and JSON.

python -m bench                      everything, on a Kafka that is started for it
python -m bench saturation sink --rounds 3
python -m bench --bootstrap-servers localhost:9092 fixed-rate
python -m bench stations --add       the way of a record, beside what was measured before
python -m bench --quick              a look at everything, in a few minutes
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import compiled, facts, report
from bench.clients import COMPILED, PYTHON, notes
from bench.clients.base import Unsupported
from bench.config import Options, Result
from bench.fleet import RunFailed
from bench.target import Cluster, SinkTarget, StartedKafka, Target, TargetError, settle
from bench.workloads import WORKLOADS, Case

RESULTS = Path(__file__).resolve().parent / "results" / "latest.json"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD",
                        help=f"of {', '.join(WORKLOADS)}; default: all")  # fmt: skip
    parser.add_argument("--bootstrap-servers", help="a running cluster; default: start a Kafka")
    parser.add_argument("--brokers", type=int, default=1, help="of the Kafka that is started")
    parser.add_argument("--rounds", type=int, help="default 5, quick 2")
    parser.add_argument("--clients", nargs="+", default=[], metavar="CLIENT",
                        help=f"of {', '.join([*PYTHON, *COMPILED])}; default: all")  # fmt: skip
    parser.add_argument("--records", type=int, help="of a saturation run; default 1,000,000")
    parser.add_argument("--seconds", type=float, help="of a fixed-rate run; default 5")
    parser.add_argument("--rates", type=int, nargs="+", help="records/s; default 8000 50000")
    parser.add_argument("--processes", type=int, nargs="+", help="default 1 4 16 64")
    parser.add_argument("--idle-processes", type=int, help="default 64")
    parser.add_argument("--wide-partitions", type=int, help="default 10,000")
    parser.add_argument("--batch-bytes", type=int,
                        help="of all clients; default 262144, 0: each client's own")  # fmt: skip
    parser.add_argument("--tick-ms", type=float, help="of the load generator; default 10")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="few cases, short runs")
    mode.add_argument("--full", action="store_true", help="every size, codec and count; hours")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    parser.add_argument("--add", action="store_true",
                        help="keep what --out has of other workloads")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print the cases and end")
    return parser


_QUICK = Options(
    rounds=2, seconds=2.0, records=200_000, processes=(1, 16), idle_processes=8,
    wide_partitions=2_000, quick=True,
)  # fmt: skip


def _options(args: argparse.Namespace, scratch: Path) -> Options:
    base = _QUICK if args.quick else Options(full=args.full)
    chosen: dict[str, Any] = {**vars(base), "scratch": scratch, "clients": tuple(args.clients)}
    for name in ("rounds", "records", "seconds", "rates", "processes", "idle_processes",
                 "wide_partitions", "batch_bytes", "tick_ms"):  # fmt: skip
        value = getattr(args, name)
        if value is not None:
            chosen[name] = tuple(value) if isinstance(value, list) else value
    return Options(**chosen)


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    for given, known, what in (
        (args.workloads, WORKLOADS, "workload"), (args.clients, PYTHON | COMPILED, "client"),
    ):  # fmt: skip
        for name in given:
            if name not in known:
                parser.error(f"{name!r} is no {what}; there are {', '.join(known)}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status is 1 where a run had no figures."""
    parser = _parser()
    args = parser.parse_args(argv)
    _check(parser, args)
    if compiled.sender_missing():
        parser.error("the sender is not compiled, or is older than its sources: run "
                     "python scripts/native_build.py")  # fmt: skip
    names = args.workloads or list(WORKLOADS)
    with tempfile.TemporaryDirectory(prefix="mppb-build-") as folder:
        options = _options(args, Path(folder))
        plan = {name: WORKLOADS[name].cases(options) for name in names}
        if args.list:
            for name, cases in plan.items():
                for case in cases:
                    print(f"{name}: {case.label}: {', '.join(case.clients)}")
            return 0
        try:
            found = run(plan, options, args.bootstrap_servers, args.brokers)
        except TargetError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    args.out.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(args.out.read_text()) if args.add and args.out.exists() else None
    kept = _added(before, found) if before else found
    args.out.write_text(json.dumps(kept, indent=1) + "\n")
    print(report.text(found))
    print(f"\nall rounds: {args.out}")
    failed = [case for w in found["workloads"].values() for case in w["cases"] if case["failed"]]
    return 1 if failed else 0


def _added(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """An older run with the workloads of this one in it, each with the day it was measured."""
    for workload in found["workloads"].values():
        workload["run"] = {
            "started": found["started"], "rounds": found["options"]["rounds"],
            "machine": found["machine"], "options": found["options"],
        }  # fmt: skip
    return {**before, "workloads": before["workloads"] | found["workloads"]}


def run(
    plan: dict[str, list[Case]], options: Options, bootstrap: str | None, brokers: int
) -> dict[str, Any]:
    """Run all cases, `options.rounds` times round; the report as it is written."""
    left_out = _left_out(plan, options)
    found: dict[str, Any] = {
        "machine": facts.machine(),
        "versions": facts.versions() | compiled.versions(),
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "options": {k: v for k, v in vars(options).items() if k not in ("scratch",)},
        "clients": notes(),
        "left_out": left_out,
        "workloads": {},
    }
    with contextlib.ExitStack() as stack:
        cluster: Target | None = None
        if any(not case.sink_partitions for cases in plan.values() for case in cases):
            cluster = (
                Cluster(bootstrap) if bootstrap else stack.enter_context(StartedKafka(brokers))
            )
        found["target"] = bootstrap or f"Apache Kafka started for the run, {brokers} broker(s)"
        for name, cases in plan.items():
            rows = [
                {"label": case.label, "setup": case.setup, "results": {}, "failed": {}}
                for case in cases
            ]
            found["workloads"][name] = {"title": WORKLOADS[name].title, "cases": rows}
            for round_ in range(options.rounds):
                for case, row in zip(cases, rows, strict=True):
                    print(f"{name}, round {round_ + 1} of {options.rounds}: {case.label}",
                          file=sys.stderr)  # fmt: skip
                    _round(case, row, round_, cluster, options, left_out)
    found["machine"]["load_after"] = round(os.getloadavg()[0], 2)
    return found


def _left_out(plan: dict[str, list[Case]], options: Options) -> dict[str, str]:
    wanted = {name for cases in plan.values() for case in cases for name in case.clients}
    found = {}
    for name in sorted(wanted):
        if name in COMPILED:
            why = compiled.missing(name, options.scratch)
        elif name in PYTHON:
            why = PYTHON[name].missing()
        else:
            why = None
        if why:
            found[name] = why
            print(f"left out: {name}: {why}", file=sys.stderr)
    return found


def _round(
    case: Case, row: dict[str, Any], round_: int, cluster: Target | None, options: Options,
    left_out: dict[str, str],
) -> None:  # fmt: skip
    """Every client once; who is first changes from round to round, but for the null client."""
    names = [name for name in case.clients if name not in left_out]
    fixed = [name for name in names if name in ("nothing", "bare python")]
    others = [name for name in names if name not in fixed]
    if others:
        shift = round_ % len(others)
        others = others[shift:] + others[:shift]
    before: dict[str, Result] = {}
    for name in fixed + others:
        with contextlib.ExitStack() as stack:
            if case.sink_partitions:
                target: Target = stack.enter_context(
                    SinkTarget(case.sink_partitions, case.sink_spin_ms)
                )
            else:
                assert cluster is not None
                target = cluster
            try:
                before[name] = case.run(name, target, options, before)
            except (RunFailed, Unsupported, OSError, TimeoutError, EOFError) as error:
                row["failed"][name] = f"round {round_ + 1}: {error}"
                print(f"  no figures for {name}: {error}", file=sys.stderr)
                continue
        settle()
        for figure, value in before[name].items():
            row["results"].setdefault(name, {}).setdefault(figure, []).append(value)


def _on_signal(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)  # so that brokers, workers and folders go


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _on_signal)
    sys.exit(main())
