"""(b): a fixed rate over many processes: requests, bytes, CPU, connections, producer ids, latency.

Every process works to absolute deadlines `tick_ms` apart: at each it sends the events that have
come due, made beforehand. An event's intended time is its tick's deadline, whenever it is really
sent. CPU and latency are measured in two passes: in the first nobody looks at single
acknowledgements.
"""

from __future__ import annotations

import functools
import time

from bench import facts, payload
from bench.clients.base import Client
from bench.config import Options, Result, Setup
from bench.fleet import Fleet, RunFailed
from bench.target import Target
from bench.workloads.base import Case, Workload, quantiles
from bench.workloads.saturation import traffic

_CLIENTS = ("nothing", "mpproducer", "confluent", "kafka-python", "aiokafka", "queue")
_EVENTS = 5_000
_LEAD_NS = 300_000_000
_WARM_PART = 0.1
_NO_ACKS = ("queue", "nothing")


def _prepare(client: Client, count: int) -> None:
    client.__dict__["events"] = payload.events(count, client.index)


def _schedule(
    client: Client, rate: float, seconds: float, tick_ns: int, start_ns: int, timed: bool
) -> tuple[int, list[int], int]:
    """In a worker: (sent, ack times in ns, latest start of a tick in ns)."""
    events = client.__dict__["events"]
    phase_ns = client.index * 7_919_000 % tick_ns
    ticks = max(1, int(seconds * 1e9 / tick_ns))
    per_tick = rate * tick_ns / 1e9
    warm = int(ticks * _WARM_PART)
    taken: list[int] = []
    unused: list[int] = []
    sent = at = late_ns = 0
    wait = client.wait_timed if timed else client.wait_until
    for tick in range(ticks):
        due_ns = start_ns + phase_ns + tick * tick_ns
        wait(due_ns)
        late_ns = max(late_ns, time.monotonic_ns() - due_ns)
        count = int((tick + 1) * per_tick) - sent
        if not count:
            continue
        if at + count > len(events):
            at = 0
        some = events[at : at + count]
        at += count
        sent += count
        if timed:
            client.burst_timed(some, due_ns, taken if tick >= warm else unused)
        else:
            client.burst_keyed(some)
    client.settle()
    return sent, taken, late_ns


def fixed_rate(
    client: str,
    target: Target,
    options: Options,
    before: dict[str, Result],
    *,
    setup: Setup,
    rate: int,
    processes: int,
) -> Result:
    """One run of one client; figures per acknowledged record, raw and net of the generator's."""
    topic = target.topic(setup.partitions)
    mine = Setup(**{**vars(setup), "bootstrap": target.bootstrap, "topic": topic})
    try:
        with Fleet(client, mine, processes) as fleet:
            found = _cpu_pass(fleet, target, options, rate)
            found |= _idle_facts(fleet, target, topic, setup.partitions, client)
            if client not in _NO_ACKS:
                found |= _latency_pass(fleet, options, rate)
    finally:
        target.drop(topic)
    own = before.get("nothing", {}).get("client_cpu_us")
    if client != "nothing" and own is not None:
        found["client_cpu_net_us"] = found["client_cpu_us"] - own
    return found


def _drive(
    fleet: Fleet, options: Options, rate: int, seconds: float, timed: bool
) -> list[tuple[int, list[int], int]]:
    """Run the schedule everywhere; `_all_acked` says afterwards whether all of it arrived."""
    tick_ns = int(options.tick_ms * 1e6)
    start_ns = time.monotonic_ns() + _LEAD_NS
    share = rate / len(fleet.pids)
    told: list[tuple[int, list[int], int]] = fleet.run(
        _schedule, share, seconds, tick_ns, start_ns, timed
    )
    return told


def _drain(client: Client) -> int:
    return client.drain()


def _all_acked(fleet: Fleet, before: int, told: list[tuple[int, list[int], int]]) -> int:
    """How many were acknowledged; raises RunFailed unless that is all. Outside of what is timed."""
    sent = sum(one[0] for one in told)
    acked: int = sum(fleet.run(_drain)) - before
    if acked < sent:
        raise RunFailed(f"{acked} of {sent} records acknowledged")
    return acked


def _cpu_pass(fleet: Fleet, target: Target, options: Options, rate: int) -> Result:
    share = rate / len(fleet.pids)
    fleet.run(_prepare, max(_EVENTS // len(fleet.pids), int(share * options.tick_ms / 1000) + 1))
    # A second at this rate, so that every partition has been written to and memory is warm.
    _drive(fleet, options, rate, min(1.0, options.seconds / 4), False)
    brokers = target.broker_pids()
    known = sum(fleet.run(_drain))
    wire = traffic(fleet)
    worker, helper = facts.cpu_ns(fleet.pids), facts.cpu_ns(fleet.helpers)
    broker = facts.cpu_ns(brokers)
    told = _drive(fleet, options, rate, options.seconds, False)
    worker, helper = facts.cpu_ns(fleet.pids) - worker, facts.cpu_ns(fleet.helpers) - helper
    broker = facts.cpu_ns(brokers) - broker
    acked = _all_acked(fleet, known, told)
    found = {
        "client_cpu_us": (worker + helper) / acked / 1000,
        "broker_cpu_us": broker / acked / 1000,
        "late_ms": max(one[2] for one in told) / 1e6,
    }
    if fleet.helpers:
        found |= {"worker_cpu_us": worker / acked / 1000, "sender_cpu_us": helper / acked / 1000}
    now = traffic(fleet)
    if wire is not None and now is not None:
        found["requests_per_s"] = (now[0] - wire[0]) / options.seconds
        found["requests_per_1000"] = (now[0] - wire[0]) / acked * 1000
        found["wire_bytes"] = (now[1] - wire[1]) / acked
    return found


def _idle_facts(fleet: Fleet, target: Target, topic: str, partitions: int, client: str) -> Result:
    if client == "nothing":
        return {}
    everyone = [*fleet.pids, *fleet.helpers]
    found = {
        "connections": float(facts.connections(everyone, facts.ports_of(target.bootstrap))),
        "threads": float(sum(facts.threads(pid) for pid in everyone)),
    }
    ids = target.producer_ids(topic, partitions)
    if ids is not None:
        found["producer_ids"] = float(ids)
    return found


def _latency_pass(fleet: Fleet, options: Options, rate: int) -> Result:
    known = sum(fleet.run(_drain))
    told = _drive(fleet, options, rate, options.seconds, True)
    _all_acked(fleet, known, told)
    return quantiles([taken for one in told for taken in one[1]])


def _case(options: Options, rate: int, processes: int, partitions: int, linger_ms: int) -> Case:
    setup = Setup("", "", partitions, linger_ms, "zstd", options.batch_bytes)
    return Case(
        f"{rate:,} records/s, {processes} process{'es' if processes > 1 else ''}, "
        f"{partitions} partitions, linger {linger_ms} ms",
        tuple(name for name in _CLIENTS if options.wants(name)),
        functools.partial(fixed_rate, setup=setup, rate=rate, processes=processes),
        setup.shown() | {"tick_ms": options.tick_ms, "seconds": options.seconds},
    )


def _cases(options: Options) -> list[Case]:
    rates, counts = options.rates, options.processes
    if options.quick:
        return [_case(options, rates[0], n, 12, 5) for n in counts]
    if options.full:
        return [
            _case(options, rate, n, partitions, linger)
            for rate in rates
            for n in counts
            for partitions in (12, 120)
            for linger in (5, 20)
        ]
    few = sorted({counts[0], counts[len(counts) // 2], counts[-1]})
    return [
        *(_case(options, rate, n, 12, 5) for rate in rates for n in counts),
        *(_case(options, rates[0], n, 12, 20) for n in few),
        *(_case(options, rates[0], n, 120, 5) for n in few),
    ]


FIXED_RATE = Workload("fixed-rate", "A fixed rate of JSON events over many processes", _cases)
