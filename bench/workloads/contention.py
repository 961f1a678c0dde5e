"""Workers in each other's way: two and four at saturation, on one partition and on twelve.

Into the sink, so that nothing but the batch they share holds them up. Keyed records have no choice
of partition; unkeyed ones go apart where they meet (and on one partition cannot). At saturation the
workers share the cores with the sender and seldom run at once on a small machine; so the price of
meeting is measured in bursts that begin at the same moment, too: `call_ns`.
"""

from __future__ import annotations

import functools
import statistics
import time
from typing import Final

from bench import facts, payload
from bench.clients.base import Client
from bench.config import Options, Result, Setup
from bench.fleet import Fleet
from bench.target import Target
from bench.workloads.base import Case, Workload
from bench.workloads.saturation import WARM_PART, measure

_CLIENTS: Final = ("mpproducer", "mpproducer-many")
_SIZE_BYTES: Final = 100
_BURST: Final = 10_000
_BURSTS: Final = 12
_BURST_EVERY_NS: Final = 60_000_000
_LEAD_NS: Final = 200_000_000
_SPIN_NS: Final = 3_000_000


def _raced(client: Client) -> dict[str, float]:
    """In a worker: what it met, and what the host's sender got."""
    from bench.clients.mpproducer_client import MpProducer

    assert isinstance(client, MpProducer)
    found = client.producer.metrics()
    ours = {f"worker-{name}": value for name, value in found["worker-metrics"].items()}
    return found["sender-metrics"] | ours


def _meet(client: Client, start_ns: int, keyed: bool) -> list[float]:
    """In a worker: CPU ns per record of bursts that begin at the same moment everywhere."""
    events = payload.keyed(_SIZE_BYTES, _BURST, client.index)
    values = [value for value, _key in events]
    found = []
    for burst in range(_BURSTS):
        until = start_ns + burst * _BURST_EVERY_NS
        client.wait_until(until - _SPIN_NS)
        while time.monotonic_ns() < until:
            pass
        started = time.thread_time_ns()
        if keyed:
            client.burst_keyed(events)
        else:
            client.burst(values)
        found.append((time.thread_time_ns() - started) / _BURST)
        client.settle()
    return found


def contend(
    client: str,
    target: Target,
    options: Options,
    _before: dict[str, Result],
    *,
    setup: Setup,
    keyed: bool,
    workers: int,
) -> Result:
    """One run: figures per acknowledged record."""
    brokers = target.broker_pids()
    mine = Setup(
        **{
            **vars(setup),
            "bootstrap": target.bootstrap,
            "topic": target.topic(setup.partitions),
        }
    )
    each = options.records // workers
    with Fleet(client, mine, workers) as fleet:
        found = measure(fleet, _SIZE_BYTES, each, keyed, lambda: facts.cpu_ns(brokers))
        start_ns = time.monotonic_ns() + _LEAD_NS
        bursts = [ns for one in fleet.run(_meet, start_ns, keyed) for ns in one]
        met = fleet.run(_raced)
    sent = workers * (each * (1 + WARM_PART) + _BURST * _BURSTS)
    batches = max(one["batch-send-total"] for one in met)
    return {
        name: found[name]
        for name in ("records_per_s", "worker_cpu_ns", "sender_cpu_ns", "requests_per_1000")
    } | {
        "call_ns": statistics.median(bursts),
        "lost_races": sum(one["worker-lost-races"] for one in met) / sent,
        "lost_commits_per_1000": sum(one["worker-lost-commits"] for one in met) / sent * 1000,
        "spreads": float(sum(one["worker-spreads"] for one in met)),
        "batch_kib": max(one["byte-total"] for one in met) / batches / 1024,
    }


def _case(options: Options, workers: int, partitions: int, keyed: bool) -> Case:
    setup = Setup("", "", partitions, 5, "none", options.batch_bytes)
    return Case(
        f"{workers} worker{'s' if workers > 1 else ''}, "
        f"{partitions} partition{'s' if partitions > 1 else ''}, "
        f"{'keyed' if keyed else 'unkeyed'}",
        tuple(name for name in _CLIENTS if options.wants(name)),
        functools.partial(contend, setup=setup, keyed=keyed, workers=workers),
        setup.shown(),
        partitions,
    )


def _cases(options: Options) -> list[Case]:
    if options.quick:
        return [_case(options, workers, 12, False) for workers in (1, 2)]
    return [
        _case(options, workers, partitions, keyed)
        for keyed in (False, True)
        for partitions in (1, 12)
        for workers in (1, 2, 4)
    ]


CONTENTION = Workload("contention", "Workers in each other's way, into the sink", _cases)
