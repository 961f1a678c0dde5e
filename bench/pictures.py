"""From the JSON of a run to pictures and tables: nothing in them is written by hand.

    python -m bench.pictures [RESULTS.json]

Writes docs/pictures/*.svg, and the places of README.md and docs/PERFORMANCE.md between
`<!-- bench:NAME -->` and `<!-- /bench -->`, NAME being `summary`, `setup`, or a workload.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bench import svg
from bench.clients import REFERENCE
from bench.config import Options
from bench.report import FIGURES, CaseRows, figures, median, number, ratio, spread
from bench.workloads import WORKLOADS

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "bench" / "results" / "latest.json"
_PLACE: Final = re.compile(r"(<!-- bench:([a-z-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)
_PEER: Final = "confluent"
_RATE_LABEL: Final = re.compile(r"^([\d,]+) records/s, (\d+) process(?:es)?, (.*)$")
_HIDDEN: Final = ("nothing", "bare python")

Report = dict[str, Any]


def _cases(report: Report, workload: str) -> list[dict[str, Any]]:
    return list(report["workloads"].get(workload, {}).get("cases", []))


def _said(case: dict[str, Any], report: Report, workload: str) -> str:
    setup = case["setup"]
    return (
        f"{case['label']}; acks=all, idempotent, linger {setup['linger_ms']} ms; "
        f"{report['machine']['cpus']} cores; median and spread of {_rounds(report, workload)}"
    )


def _rounds(report: Report, *workloads: str) -> str:
    """How many rounds these workloads had: one that was added to the report had its own."""
    counts = {
        report["workloads"][name].get("run", report["options"])["rounds"] for name in workloads
    }
    least, most = min(counts), max(counts)
    shown = f"{least}" if least == most else f"{least} to {most}"
    return f"{shown} interleaved round{'s' if most > 1 else ''}"


# --- pictures


def _dots(
    report: Report, workload: str, case: dict[str, Any], figure: str, title: str
) -> str | None:
    rows: CaseRows = case["results"]
    found = [
        (client, min(values[figure]), statistics.median(values[figure]), max(values[figure]))
        for client, values in rows.items()
        if client not in _HIDDEN and figure in values and min(values[figure]) > 0
    ]
    if not found:
        return None
    found.sort(key=lambda row: row[2], reverse=FIGURES[figure].more_is_better)
    return svg.dots(title, _said(case, report, workload), FIGURES[figure].unit, found, REFERENCE)


def _by_processes(report: Report, figure: str, title: str) -> str | None:
    """The fixed-rate cases that differ in the number of processes only, the first such group."""
    groups: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for case in _cases(report, "fixed-rate"):
        match = _RATE_LABEL.match(case["label"])
        if match is None:
            continue
        series = groups.setdefault((match[1], match[3]), {})
        for client in case["results"]:
            value = median(case["results"], client, figure)
            if client not in _HIDDEN and value is not None and value > 0:
                series.setdefault(client, []).append((float(match[2]), value))
    for (rate, rest), series in groups.items():
        if any(len(points) > 1 for points in series.values()):
            subtitle = f"{rate} records/s in all, {rest}, zstd; medians"
            unit = FIGURES[figure].unit
            name = f"{FIGURES[figure].text.strip()} ({unit})"
            return svg.lines(title, subtitle, "processes", name, list(series.items()), REFERENCE)
    return None


def pictures(report: Report) -> dict[str, str]:
    """File name to SVG, for what the report has."""
    found: dict[str, str | None] = {}
    for workload, name in (("saturation", ""), ("sink", "sink-")):
        for case in _cases(report, workload)[:1]:
            found[f"{name}cpu.svg"] = _dots(
                report, workload, case, "client_cpu_ns", "Client CPU per acknowledged record, ns"
            )
            found[f"{name}rate.svg"] = _dots(
                report, workload, case, "records_per_s", "Acknowledged records per second"
            )
            found[f"{name}call.svg"] = _dots(
                report, workload, case, "call_ns", "One call of send, ns"
            )
    found["processes-requests.svg"] = _by_processes(
        report, "requests_per_s", "Produce requests by number of processes"
    )
    found["processes-bytes.svg"] = _by_processes(
        report, "wire_bytes", "Bytes on the wire by number of processes"
    )
    found["processes-cpu.svg"] = _by_processes(
        report, "client_cpu_net_us", "Client CPU by number of processes, the generator's taken off"
    )
    found["processes-broker.svg"] = _by_processes(
        report, "broker_cpu_us", "Broker CPU by number of processes"
    )
    found["processes-latency.svg"] = _by_processes(
        report, "latency_p99_us", "Time to acknowledgement, p99, by number of processes"
    )
    for case in _cases(report, "single")[:1]:
        found["single.svg"] = _dots(
            report, "single", case, "latency_p50_us",
            "One record at a time: send to acknowledgement, p50, us",
        )
    for case in _cases(report, "cold")[:1]:
        found["cold.svg"] = _dots(
            report, "cold", case, "cold_ms", "A new process, to its first acknowledgement, ms"
        )
    return {name: text for name, text in found.items() if text is not None}


# --- tables


def _table(case: dict[str, Any]) -> Iterator[str]:
    rows: CaseRows = case["results"]
    shown = [client for client in rows if rows[client]]
    yield f"**{case['label']}**"
    yield ""
    yield "| | " + " | ".join(shown) + " |"
    yield "|---|" + "---|" * len(shown)
    for name in figures(rows):
        figure = FIGURES[name]
        unit = f" ({figure.unit})" if figure.unit else ""
        cells = [spread(rows[c][name]) if name in rows[c] else "" for c in shown]
        yield f"| {figure.text.strip()}{unit} | " + " | ".join(cells) + " |"
    for client, why in case["failed"].items():
        yield f"\nNo figures for {client}: {why}"
    yield ""


def _workload(report: Report, name: str) -> Iterator[str]:
    if not _cases(report, name):
        yield "Not part of the last run."
        return
    run = report["workloads"][name].get("run")
    of = ""
    if run:
        of = f" {run['rounds']} round{'s' if run['rounds'] > 1 else ''}, {run['started']}."
    all_cases = WORKLOADS[name].cases(Options()) if name in WORKLOADS else []
    missing = len(all_cases) - len(_cases(report, name))
    if missing > 0:
        of += f" `python -m bench {name}` has {len(all_cases)} cases; those recorded are below."
    yield "Minimum / median / maximum of the rounds." + of
    yield ""
    for case in _cases(report, name):
        yield from _table(case)


_SUMMARY: Final = (
    ("saturation", r"100 B, none, unkeyed, 1 worker", "one `send()` of 100 B", "call_ns"),
    ("saturation", r"100 B, none, unkeyed, 1 worker", "CPU per record, one worker",
     "client_cpu_ns"),
    ("saturation", r"100 B, none, unkeyed, 4 worker", "CPU per record, four workers",
     "client_cpu_ns"),
    ("saturation", r"100 B, none, unkeyed, 1 worker", "records/s, one worker", "records_per_s"),
    ("fixed-rate", r"8,000 records/s, 16 processes, 12 partitions, linger 5",
     "8,000 records/s from 16 processes: requests", "requests_per_s"),
    ("fixed-rate", r"8,000 records/s, 16 processes, 12 partitions, linger 5",
     "bytes on the wire per record", "wire_bytes"),
    ("fixed-rate", r"8,000 records/s, 16 processes, 12 partitions, linger 5",
     "client CPU per record, net of the generator's", "client_cpu_net_us"),
    ("fixed-rate", r"8,000 records/s, 16 processes, 12 partitions, linger 5",
     "broker CPU per record", "broker_cpu_us"),
    ("fixed-rate", r"8,000 records/s, 16 processes, 12 partitions, linger 5",
     "connections", "connections"),
    ("fixed-rate", r"8,000 records/s, 16 processes, 12 partitions, linger 5",
     "time to acknowledgement, p99", "latency_p99_us"),
    ("single", r"100 B", "one record at a time, p50", "latency_p50_us"),
)  # fmt: skip


def _summary(report: Report) -> Iterator[str]:
    yield f"| | {REFERENCE} | confluent-kafka | ratio |"
    yield "|---|---|---|---|"
    for workload, wanted, text, figure in _SUMMARY:
        for case in _cases(report, workload):
            if not case["label"].startswith(wanted):
                continue
            rows: CaseRows = case["results"]
            mine, theirs = median(rows, REFERENCE, figure), median(rows, _PEER, figure)
            if mine is None or theirs is None:
                continue
            unit = FIGURES[figure].unit
            yield (
                f"| {text} | {number(mine)} {unit} | {number(theirs)} {unit} "
                f"| {ratio(rows, _PEER, figure)} |"
            )
    yield ""
    shown = [name for name in dict.fromkeys(row[0] for row in _SUMMARY) if _cases(report, name)]
    yield f"Medians of {_rounds(report, *shown)}. {_where(report)}"


def _where(report: Report) -> str:
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"{report['target']}; {machine['cpus']} cores shared by clients and broker "
        f"({machine['cpu'] or 'unknown CPU'}), Python {machine['python']}; {versions}; "
        f"{report['started']}."
    )


def _setup(report: Report) -> Iterator[str]:
    yield _where(report)
    yield ""
    yield "| client | used as |"
    yield "|---|---|"
    used = {
        client
        for workload in report["workloads"].values()
        for case in workload["cases"]
        for client in case["results"]
    }
    for client, note in report["clients"].items():
        if client in used:
            yield f"| {client} | {note} |"
    for client, why in report["left_out"].items():
        yield f"| {client} | left out: {why} |"
    others = [c for c in report["clients"] if c not in used and c not in report["left_out"]]
    if others:
        yield ""
        yield f"There are clients that this run did not have: {', '.join(others)}."


def filled(text: str, report: Report) -> str:
    """A document with its places filled from the report."""

    def fill(match: re.Match[str]) -> str:
        name = match[2]
        makers = {"summary": _summary, "setup": _setup}
        made = makers[name](report) if name in makers else _workload(report, name)
        return match[1] + "\n".join(made).rstrip() + "\n" + match[3]

    return _PLACE.sub(fill, text)


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.pictures", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("--root", type=Path, default=ROOT, help="of the checkout to write to")
    args = parser.parse_args(argv)
    if not args.results.exists():
        parser.error(f"{args.results} is not there; `python -m bench` writes it")
    report: Report = json.loads(args.results.read_text())
    folder = args.root / "docs" / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pictures(report).items():
        (folder / name).write_text(text)
        print(f"written: docs/pictures/{name}")
    for name in ("README.md", "docs/PERFORMANCE.md"):
        path = args.root / name
        if path.exists():
            before = path.read_text()
            after = filled(before, report)
            path.write_text(after)
            print(f"{'filled' if after != before else 'unchanged'}: {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
