"""(d): one record at a time, linger 0: the time from the call to the acknowledgement."""

from __future__ import annotations

import functools
import time

from bench import compiled, payload
from bench.clients import COMPILED
from bench.clients.base import Client
from bench.config import Options, Result, Setup
from bench.fleet import Fleet
from bench.target import Target
from bench.workloads.base import Case, Workload, quantiles

_CLIENTS = ("mpproducer", "confluent", "franz-go", "librdkafka", "aiokafka", "kafka-python")
_WARM_PART = 0.1
_SIZE_BYTES = 100
_MAX_RECORDS = 20_000
"""A second or two: where two new processes take turns on one processor takes the scheduler up to
4,000 records to settle, and a shorter run measures little else."""


def _one_by_one(client: Client, count: int, seconds: float) -> list[int]:
    values = payload.values(_SIZE_BYTES, count, 1)
    now, one = time.perf_counter_ns, client.one
    taken = []
    until = now() + int(seconds * 1e9)
    for value in values:
        started = now()
        one(value)
        ended = now()
        taken.append(ended - started)
        if ended > until:
            break
    return taken


def single(
    client: str, target: Target, options: Options, _before: dict[str, Result], *, setup: Setup
) -> Result:
    """Quantiles over one run, its first tenth left out."""
    count = max(50, min(_MAX_RECORDS, options.records // 10))
    topic = target.topic(setup.partitions)
    mine = Setup(**{**vars(setup), "bootstrap": target.bootstrap, "topic": topic})
    try:
        if client in COMPILED:
            taken = compiled.single(client, options.scratch, mine, count, _SIZE_BYTES)
        else:
            with Fleet(client, mine, 1) as fleet:
                (taken,) = fleet.run(_one_by_one, count, options.seconds)
    finally:
        target.drop(topic)
    return quantiles(taken[int(len(taken) * _WARM_PART) :])


def _cases(options: Options) -> list[Case]:
    setup = Setup("", "", 1, 0, "none", options.batch_bytes)
    return [
        Case(
            "100 B, linger 0, send to acknowledgement",
            tuple(name for name in _CLIENTS if options.wants(name)),
            functools.partial(single, setup=setup),
            setup.shown(),
        )
    ]


SINGLE = Workload("single", "One record at a time", _cases)
