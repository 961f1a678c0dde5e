"""What is measured, one module per group of workloads."""

from __future__ import annotations

from typing import Final

from bench.workloads.base import Case, Workload
from bench.workloads.cold import COLD
from bench.workloads.contention import CONTENTION
from bench.workloads.fixed_rate import FIXED_RATE
from bench.workloads.idle import IDLE, WIDE
from bench.workloads.saturation import SATURATION, SINK
from bench.workloads.single import SINGLE
from bench.workloads.stations import STATIONS
from bench.workloads.throughput import THROUGHPUT

WORKLOADS: Final[dict[str, Workload]] = {
    one.name: one
    for one in (
        SATURATION, CONTENTION, FIXED_RATE, THROUGHPUT, SINGLE, COLD, IDLE, WIDE, SINK, STATIONS,
    )
}  # fmt: skip

__all__ = ["WORKLOADS", "Case", "Workload"]
