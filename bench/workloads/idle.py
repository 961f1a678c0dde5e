"""(f) and (g): many workers that do nothing, and many partitions with little in them."""

from __future__ import annotations

import functools
import time

from bench import facts
from bench.clients.base import Client
from bench.config import Options, Result, Setup
from bench.fleet import Fleet, RunFailed
from bench.target import Target
from bench.workloads.base import Case, Workload
from bench.workloads.saturation import traffic

_CLIENTS = ("nothing", "mpproducer", "confluent", "kafka-python", "aiokafka")
_WIDE_CLIENTS = ("mpproducer", "confluent", "kafka-python", "aiokafka")
_SETTLE_S = 1.5
_TICK_NS = 10_000_000
_WIDE_RATE = 5_000


def _sleep(client: Client, until_ns: int) -> None:
    client.wait_until(until_ns)


def _watch(fleet: Fleet, seconds: float) -> Result:
    """Wake-ups and CPU of all processes while the workers sleep, each in one call."""
    ends_ns = time.monotonic_ns() + int((_SETTLE_S + seconds + 0.5) * 1e9)
    fleet.begin(_sleep, ends_ns)
    time.sleep(_SETTLE_S)
    workers, helpers = facts.wakeups(fleet.pids), facts.wakeups(fleet.helpers)
    cpu, started = facts.cpu_ns([*fleet.pids, *fleet.helpers]), time.monotonic()
    time.sleep(seconds)
    workers, helpers = facts.wakeups(fleet.pids) - workers, facts.wakeups(fleet.helpers) - helpers
    cpu = facts.cpu_ns([*fleet.pids, *fleet.helpers]) - cpu
    elapsed = time.monotonic() - started
    fleet.finish()
    return {
        "worker_wakeups_per_s": workers / elapsed,
        "sender_wakeups_per_s": helpers / elapsed,
        "idle_cpu_ms_per_s": cpu / elapsed / 1e6,
    }


def idle(
    client: str,
    target: Target,
    options: Options,
    before: dict[str, Result],
    *,
    setup: Setup,
    workers: int,
) -> Result:
    """One record each, then nothing."""
    topic = target.topic(setup.partitions)
    mine = Setup(**{**vars(setup), "bootstrap": target.bootstrap, "topic": topic})
    try:
        with Fleet(client, mine, workers) as fleet:
            found = _watch(fleet, options.seconds)
            found["uss_kib"] = sum(facts.uss_kib(pid) for pid in fleet.pids) / workers
            found["threads"] = float(
                sum(facts.threads(pid) for pid in [*fleet.pids, *fleet.helpers])
            )
            found["connections"] = float(
                facts.connections([*fleet.pids, *fleet.helpers], facts.ports_of(target.bootstrap))
            )
            if fleet.helpers:
                found["sender_uss_kib"] = sum(facts.uss_kib(pid) for pid in fleet.helpers)
    finally:
        target.drop(topic)
    bare = before.get("nothing", {}).get("uss_kib")
    if bare is not None and client != "nothing":
        found["uss_over_bare_kib"] = found["uss_kib"] - bare
    return found


def _trickle(client: Client, rate: float, seconds: float, keys: int) -> tuple[int, int]:
    """Events of ever another key, a few at each tick; (sent, acknowledged)."""
    before = client.drain()
    ticks = max(1, int(seconds * 1e9 / _TICK_NS))
    per_tick = max(1, int(rate * _TICK_NS / 1e9))
    number = 0
    start_ns = time.monotonic_ns()
    for tick in range(ticks):
        client.wait_until(start_ns + tick * _TICK_NS)
        some = [(b"x" * 100, b"%d" % (n * 7919 % keys)) for n in range(number, number + per_tick)]
        number += per_tick
        client.burst_keyed(some)
    return number, client.drain() - before


def wide(
    client: str,
    target: Target,
    options: Options,
    _before: dict[str, Result],
    *,
    setup: Setup,
) -> Result:
    """A trickle over all partitions, then silence."""
    topic = target.topic(setup.partitions)
    mine = Setup(**{**vars(setup), "bootstrap": target.bootstrap, "topic": topic})
    with Fleet(client, mine, 1) as fleet:
        # Every partition has had something before anything is measured.
        fleet.run(_trickle, _WIDE_RATE, 2.0, 4 * setup.partitions)
        wire = traffic(fleet)
        worker, helper = facts.cpu_ns(fleet.pids), facts.cpu_ns(fleet.helpers)
        ((sent, acked),) = fleet.run(_trickle, _WIDE_RATE, options.seconds, 4 * setup.partitions)
        worker, helper = facts.cpu_ns(fleet.pids) - worker, facts.cpu_ns(fleet.helpers) - helper
        if acked != sent:
            raise RunFailed(f"{acked} of {sent} records acknowledged")
        found = {
            "records_per_s": acked / options.seconds,
            "worker_cpu_us": worker / acked / 1000,
            "sender_cpu_us": helper / acked / 1000,
            "client_cpu_us": (worker + helper) / acked / 1000,
            "uss_kib": facts.uss_kib(fleet.pids[0]),
        }
        now = traffic(fleet)
        if wire is not None and now is not None:
            found["requests_per_1000"] = (now[0] - wire[0]) / acked * 1000
        if fleet.helpers:
            found["sender_uss_kib"] = sum(facts.uss_kib(pid) for pid in fleet.helpers)
            found["segment_kib"] = max(facts.shared_memory_kib(pid) for pid in fleet.helpers)
        quiet = _watch(fleet, max(0.5, options.seconds / 2))
        found["idle_cpu_ms_per_s"] = quiet["idle_cpu_ms_per_s"]
        return found


def _idle_cases(options: Options) -> list[Case]:
    setup = Setup("", "", 12, 5, "none", options.batch_bytes)
    workers = options.idle_processes
    return [
        Case(
            f"{workers} idle workers",
            tuple(name for name in _CLIENTS if options.wants(name)),
            functools.partial(idle, setup=setup, workers=workers),
            setup.shown(),
        )
    ]


def _wide_cases(options: Options) -> list[Case]:
    found = []
    for partitions in (12, options.wide_partitions):
        setup = Setup("", "", partitions, 5, "none", options.batch_bytes)
        found.append(
            Case(
                f"{_WIDE_RATE:,} records/s over {partitions:,} partitions",
                tuple(name for name in _WIDE_CLIENTS if options.wants(name)),
                functools.partial(wide, setup=setup),
                setup.shown(),
                partitions,
            )
        )
    return found


IDLE = Workload("idle", "Workers that do nothing", _idle_cases)
WIDE = Workload("wide", "A trickle over many partitions", _wide_cases)
