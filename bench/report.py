"""Figures of a run as a table: minimum, median, maximum, and the ratio of medians."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from bench.clients import REFERENCE

CaseRows = dict[str, dict[str, list[float]]]
"""client -> figure -> one value per round"""


@dataclass(frozen=True)
class Figure:
    """How a figure is shown."""

    text: str
    unit: str
    more_is_better: bool = False


FIGURES: Final[dict[str, Figure]] = {
    "records_per_s": Figure("acknowledged records", "/s", more_is_better=True),
    "mb_per_s": Figure("record bytes", "MB/s", more_is_better=True),
    "call_ns": Figure("one call of send", "ns"),
    "client_cpu_ns": Figure("client CPU per record", "ns"),
    "worker_cpu_ns": Figure("  of it, workers", "ns"),
    "sender_cpu_ns": Figure("  of it, sender", "ns"),
    "broker_cpu_ns": Figure("broker CPU per record", "ns"),
    "client_cpu_us": Figure("client CPU per record", "us"),
    "client_cpu_net_us": Figure("  net of the generator", "us"),
    "worker_cpu_us": Figure("  of it, workers", "us"),
    "sender_cpu_us": Figure("  of it, sender", "us"),
    "broker_cpu_us": Figure("broker CPU per record", "us"),
    "worker_ns_per_kib": Figure("worker CPU per KiB", "ns"),
    "sender_ns_per_kib": Figure("sender CPU per KiB", "ns"),
    "broker_ns_per_kib": Figure("sink CPU per KiB", "ns"),
    "requests_per_s": Figure("produce requests", "/s"),
    "requests_per_1000": Figure("requests per 1,000 records", ""),
    "wire_bytes": Figure("bytes on the wire per record", "B"),
    "lost_races": Figure("races lost per record", ""),
    "lost_commits_per_1000": Figure("commits lost per 1,000 records", ""),
    "spreads": Figure("times a worker went apart", ""),
    "batch_kib": Figure("batch", "KiB", more_is_better=True),
    "connections": Figure("connections", ""),
    "producer_ids": Figure("producer ids", ""),
    "threads": Figure("threads", ""),
    "latency_p50_us": Figure("time to acknowledgement, p50", "us"),
    "latency_p99_us": Figure("  p99", "us"),
    "latency_p99_9_us": Figure("  p99.9", "us"),
    "late_ms": Figure("generator late by at most", "ms"),
    "start_ms": Figure("start of the interpreter", "ms"),
    "import_ms": Figure("import", "ms"),
    "first_ack_ms": Figure("to the first acknowledgement", "ms"),
    "cold_ms": Figure("all of it", "ms"),
    "uss_kib": Figure("memory of a worker (USS)", "KiB"),
    "uss_over_bare_kib": Figure("  over a bare one", "KiB"),
    "sender_uss_kib": Figure("memory of the sender (USS)", "KiB"),
    "segment_kib": Figure("shared memory in use", "KiB"),
    "worker_wakeups_per_s": Figure("wake-ups of workers", "/s"),
    "sender_wakeups_per_s": Figure("wake-ups of the sender", "/s"),
    "idle_cpu_ms_per_s": Figure("CPU while idle", "ms/s"),
    "st_send_ns": Figure("send(), future kept: 1 copy, per record", "ns"),
    "st_send_keyed_ns": Figure("send() with a key: 1 copy, per record", "ns"),
    "st_many_list_ns": Figure("send_many() of a list: 1 copy, per record", "ns"),
    "st_many_columns_ns": Figure("send_many() of offsets and data: 1 copy, per record", "ns"),
    "st_many_arrow_ns": Figure("send_many() of an Arrow array: 1 copy, per record", "ns"),
    "st_open_ns": Figure("slot claimed, batch linked and announced, per batch", "ns"),
    "st_told_ns": Figure("completion frame read, per batch", "ns"),
    "st_result_ns": Figure("result() of a told future, per record", "ns"),
    "st_batch_kib": Figure("batch", "KiB"),
    "st_alone_send_us": Figure("send(): opens the batch; 1 copy", "us"),
    "st_collect_us": Figure("collect: dirty words, new batches", "us"),
    "st_freeze_us": Figure("freeze: seal, walk, CRC; 0 copies, read once", "us"),
    "st_machine_us": Figure("machine: opened, sealed, drained, answered", "us"),
    "st_encode_us": Figure("encode: header and request; 0 copies", "us"),
    "st_sendmsg_us": Figure("sendmsg: 1 copy, by the kernel", "us"),
    "st_answer_us": Figure("answer received and decoded", "us"),
    "st_frame_us": Figure("completion frame made", "us"),
    "st_pipe_us": Figure("completion pipe written", "us"),
    "st_release_us": Figure("slots released", "us"),
    "st_sleep_us": Figure("sleep: deadlines, epoll", "us"),
    "st_turn_us": Figure("the loop around them", "us"),
    "st_sender_us": Figure("all of the sender", "us"),
    "st_record_ns": Figure("  of it per record", "ns"),
    "st_drain_us": Figure("worker: completion frame read", "us"),
    "st_alone_result_us": Figure("worker: result()", "us"),
}


def median(rows: CaseRows, client: str, figure: str) -> float | None:
    """The median of a client's rounds, None where it has none."""
    values = rows.get(client, {}).get(figure)
    return statistics.median(values) if values else None


def number(value: float) -> str:
    """Three digits that matter."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value else "0"


def spread(values: list[float]) -> str:
    """min / median / max."""
    return " / ".join(number(v) for v in (min(values), statistics.median(values), max(values)))


def ratio(rows: CaseRows, client: str, figure: str) -> str:
    """The reference's median over this client's."""
    mine, theirs = median(rows, REFERENCE, figure), median(rows, client, figure)
    if client == REFERENCE or mine is None or not theirs:
        return ""
    return f"{mine / theirs:.3g}"


def figures(rows: CaseRows) -> list[str]:
    """The figures that any client has, in their order."""
    present = {name for figures in rows.values() for name in figures}
    return [name for name in FIGURES if name in present]


def table(case: dict[str, Any]) -> Iterator[str]:
    """One case as text: a block per figure, a line per client."""
    rows: CaseRows = case["results"]
    yield f"{case['label']}"
    yield "  " + ", ".join(f"{name}={value}" for name, value in case["setup"].items())
    for name in figures(rows):
        figure = FIGURES[name]
        head = f"{figure.text.strip()} ({figure.unit})" if figure.unit else figure.text.strip()
        yield f"  {head:44} {'min / median / max':>34} {REFERENCE + ' / it':>18}"
        for client, found in rows.items():
            if name in found:
                yield f"    {client:42} {spread(found[name]):>34} {ratio(rows, client, name):>18}"
    for client, why in case["failed"].items():
        yield f"  no figures for {client}: {why}"


def text(report: dict[str, Any]) -> str:
    """The whole report."""
    lines: list[str] = []
    for workload in report["workloads"].values():
        lines += ["", f"== {workload['title']}"]
        for case in workload["cases"]:
            lines += ["", *table(case)]
    if report["left_out"]:
        lines += ["", "left out: " + _reasons(report["left_out"].items())]
    return "\n".join(lines)


def _reasons(pairs: Iterable[tuple[str, str]]) -> str:
    return "; ".join(f"{name} ({why})" for name, why in pairs)
