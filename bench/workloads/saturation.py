"""(a) and (h): as fast as it goes, against brokers and against the instant-ack sink."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench import compiled, facts, payload
from bench.clients import COMPILED, PYTHON
from bench.clients.base import Client
from bench.config import Options, Result, Setup
from bench.fleet import Fleet, RunFailed
from bench.target import Target
from bench.workloads.base import Case, Workload

WARM_PART = 0.05
_CALL_BURST = 4_000
_CALL_BURST_BYTES = 4_000_000
_CALL_ROUNDS = 5
_MAX_BYTES = 400_000_000
_MIN_RECORDS = 1_000

_EVERY = (
    "mpproducer", "mpproducer-kept", "mpproducer-many", "mpproducer-columns", "confluent",
    "confluent-nocb", "confluent-batch", "franz-go", "librdkafka", "java", "kafka-python",
    "aiokafka", "aiokafka-batch", "queue",
)  # fmt: skip
_KEYED = (
    "mpproducer", "mpproducer-many", "confluent", "franz-go", "librdkafka", "kafka-python",
    "aiokafka", "queue",
)  # fmt: skip
_SEVERAL = ("mpproducer", "mpproducer-many", "confluent", "queue")


def _prepare(client: Client, size_bytes: int, records: int, keyed: bool) -> None:
    """In a worker: make what will be sent, and send a little of it."""
    kept: Any = client
    made = _made(client, size_bytes, records, keyed)
    some = made[: max(1, int(records * WARM_PART))]
    kept.work = made if keyed else client.shaped(made)
    _send(client, some if keyed else client.shaped(some), keyed)


def _made(client: Client, size_bytes: int, records: int, keyed: bool) -> list[Any]:
    made: Callable[..., list[Any]] = payload.keyed if keyed else payload.values
    return made(size_bytes, records, client.index)


def _send(client: Client, work: Any, keyed: bool) -> int:
    if keyed:
        client.burst_keyed(work)
    else:
        client.burst(work)
    return client.drain()


def _go(client: Client, keyed: bool) -> int:
    work: Any = client
    return _send(client, work.work, keyed)


def _drain(client: Client) -> int:
    return client.drain()


def _traffic(client: Client) -> tuple[int, int] | None:
    return client.traffic()


def _call_cost(client: Client, size_bytes: int, keyed: bool) -> float:
    """CPU ns of this thread per call; bursts that fit the client's buffers, so nothing blocks."""
    count = max(100, min(_CALL_BURST, _CALL_BURST_BYTES // size_bytes))
    made = _made(client, size_bytes, count, keyed)
    records = made if keyed else client.shaped(made)
    calls: Callable[[list[Any]], None] = client.calls_keyed if keyed else client.calls
    best = float("inf")
    for _ in range(_CALL_ROUNDS):
        client.drain()
        started = time.thread_time_ns()
        calls(records)
        spent = time.thread_time_ns() - started
        if client.call_per_record:
            started = time.thread_time_ns()
            for _record in records:
                pass
            spent -= time.thread_time_ns() - started
        best = min(best, spent / count)
    client.drain()
    return best


def traffic(fleet: Fleet) -> tuple[float, float] | None:
    """(requests, bytes) of all workers together: once where they share a sender."""
    told = fleet.run(_traffic)
    if any(one is None for one in told):
        return None
    if fleet.helpers:
        return max(one[0] for one in told), max(one[1] for one in told)
    return sum(one[0] for one in told), sum(one[1] for one in told)


def _records(client: str, options: Options, size_bytes: int) -> int:
    speed = PYTHON[client].speed if client in PYTHON else 1.0
    if client == "java":  # the difference of two runs: it must be longer than their spread
        speed, options = 1.0, replace(options, records=max(options.records, 500_000))
    wanted = int(options.records * speed * min(1.0, 300 / (200 + size_bytes)))
    return max(_MIN_RECORDS, min(wanted, _MAX_BYTES // size_bytes))


def saturate(
    client: str,
    target: Target,
    options: Options,
    _before: dict[str, Result],
    *,
    setup: Setup,
    size_bytes: int,
    keyed: bool,
    workers: int,
) -> Result:
    """One run: figures per acknowledged record."""
    records = _records(client, options, size_bytes)
    topic = target.topic(setup.partitions)
    mine = Setup(**{**vars(setup), "bootstrap": target.bootstrap, "topic": topic})
    brokers = target.broker_pids()

    def broker_cpu() -> int:
        return facts.cpu_ns(brokers)

    try:
        if client in COMPILED:
            return compiled.burst(
                client, options.scratch, mine, records, size_bytes, keyed, broker_cpu
            )
        with Fleet(client, mine, workers) as fleet:
            return measure(fleet, size_bytes, records // workers, keyed, broker_cpu)
    finally:
        target.drop(topic)


def measure(
    fleet: Fleet, size_bytes: int, records: int, keyed: bool, broker_cpu: compiled.Readings
) -> Result:
    """Every worker sends so many records; figures per acknowledged record of all together."""
    fleet.run(_prepare, size_bytes, records, keyed)
    call_ns = None
    if len(fleet.pids) == 1:
        (call_ns,) = fleet.run(_call_cost, size_bytes, keyed)
    before = fleet.run(_drain)
    wire = traffic(fleet)
    worker, helper, broker = facts.cpu_ns(fleet.pids), facts.cpu_ns(fleet.helpers), broker_cpu()
    started = time.monotonic()
    after = fleet.run(_go, keyed)
    seconds = time.monotonic() - started
    worker, helper = facts.cpu_ns(fleet.pids) - worker, facts.cpu_ns(fleet.helpers) - helper
    broker = broker_cpu() - broker
    acked = sum(after) - sum(before)
    if acked != records * len(fleet.pids):
        raise RunFailed(f"{acked} of {records * len(fleet.pids)} records acknowledged")
    found = {
        "records_per_s": acked / seconds,
        "mb_per_s": acked * size_bytes / seconds / 1e6,
        "client_cpu_ns": (worker + helper) / acked,
        "broker_cpu_ns": broker / acked,
    }
    if fleet.helpers:
        found |= {"worker_cpu_ns": worker / acked, "sender_cpu_ns": helper / acked}
    if call_ns is not None:
        found["call_ns"] = call_ns
    now = traffic(fleet)
    if wire is not None and now is not None:
        found["requests_per_1000"] = (now[0] - wire[0]) / acked * 1000
        found["wire_bytes"] = (now[1] - wire[1]) / acked
    return found


def _case(
    options: Options, clients: tuple[str, ...], size_bytes: int, codec: str, keyed: bool,
    workers: int, *, sink: bool = False,
) -> Case:  # fmt: skip
    partitions = 12
    setup = Setup("", "", partitions, 5, codec, options.batch_bytes)
    label = (
        f"{_size(size_bytes)}, {codec}, {'keyed' if keyed else 'unkeyed'}, "
        f"{workers} worker{'s' if workers > 1 else ''}"
    )
    if workers > 1:
        clients = tuple(name for name in clients if name not in COMPILED)
    return Case(
        label,
        tuple(name for name in clients if options.wants(name)),
        functools.partial(
            saturate, setup=setup, size_bytes=size_bytes, keyed=keyed, workers=workers
        ),
        setup.shown(),
        partitions if sink else 0,
    )


def _size(size_bytes: int) -> str:
    return f"{size_bytes // 1000} kB" if size_bytes >= 1000 else f"{size_bytes} B"


def _cases(options: Options) -> list[Case]:
    """From the base case, one thing is changed at a time; `--full`: everything with everything."""
    if options.quick:
        return [
            _case(options, _EVERY, 100, "none", False, 1),
            _case(options, _SEVERAL, 100, "zstd", True, 2),
            _case(options, _SEVERAL, 100, "none", False, 4),
        ]
    if options.full:
        return [
            _case(options, _KEYED if keyed else _EVERY, size, codec, keyed, workers)
            for size in (100, 1_000, 10_000)
            for codec in ("none", "zstd")
            for keyed in (False, True)
            for workers in (1, 2, 4)
        ]
    return [
        _case(options, _EVERY, 100, "none", False, 1),
        _case(options, _KEYED, 100, "none", True, 1),
        _case(options, _EVERY, 1_000, "none", False, 1),
        _case(options, _EVERY, 10_000, "none", False, 1),
        _case(options, _KEYED, 100, "zstd", False, 1),
        _case(options, _KEYED, 1_000, "zstd", False, 1),
        _case(options, _SEVERAL, 100, "none", False, 2),
        _case(options, _SEVERAL, 100, "none", False, 4),
        _case(options, _SEVERAL, 100, "none", True, 2),
        _case(options, _SEVERAL, 100, "none", True, 4),
    ]


def _sink_cases(options: Options) -> list[Case]:
    if options.quick:
        return [_case(options, _EVERY, 100, "none", False, 1, sink=True)]
    return [
        _case(options, _EVERY, 100, "none", False, 1, sink=True),
        _case(options, _KEYED, 100, "none", True, 1, sink=True),
        _case(options, _EVERY, 1_000, "none", False, 1, sink=True),
        _case(options, _SEVERAL, 100, "none", False, 2, sink=True),
    ]


SATURATION = Workload("saturation", "As fast as it goes, on brokers", _cases)
SINK = Workload("sink", "As fast as it goes, into an instant-ack sink", _sink_cases)
