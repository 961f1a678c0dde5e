"""A workload is a list of cases; a case runs one client at a time and returns plain numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.config import Options, Result
from bench.target import Target

Run = Callable[[str, Target, Options, dict[str, Result]], Result]
"""(client, target, options, results of this round's clients before it) -> figures."""


@dataclass(frozen=True)
class Case:
    """One row of a table: the same job for each of `clients`."""

    label: str
    clients: tuple[str, ...]
    run: Run
    setup: dict[str, Any] = field(default_factory=dict)
    """What is the same for all, as it is printed."""
    sink_partitions: int = 0
    """Runs against a sink with so many partitions, not against the cluster."""
    sink_spin_ms: float = 0
    """How long that sink looks for more before it sleeps."""


@dataclass(frozen=True)
class Workload:
    """A group of cases with a name for the command line."""

    name: str
    title: str
    cases: Callable[[Options], list[Case]]


def quantiles(taken_ns: list[int]) -> Result:
    """p50, p99 and p99.9 in microseconds."""
    ordered = sorted(taken_ns)
    if not ordered:
        return {}
    last = len(ordered) - 1
    return {
        f"latency_{name}_us": ordered[min(last, int(part * len(ordered)))] / 1000
        for name, part in (("p50", 0.5), ("p99", 0.99), ("p99_9", 0.999))
    }
