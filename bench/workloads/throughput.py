"""(c): large batches into the sink, against raw `sendmsg` of the same bytes.

End to end a worker makes the records meanwhile, on the cores that sender and sink need. What the
sender does alone is `mpproducer-filled`: it is stopped while a worker fills the memory, then goes
on, and what counts is the time until all of it is acknowledged. Raw `sendmsg` finds its requests
made as well, in rounds of as many bytes, in shared memory that another process has just written:
that they come from another processor's cache costs both the same. `sendmsg-own` sends from memory
that nobody else has touched. The sink looks for more before it sleeps: to wake a reader costs its
sender more than the copy does, and who sends less fast finds it asleep more often.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable

from bench import facts, payload, raw
from bench.clients.base import Client
from bench.config import Options, Result, Setup
from bench.fleet import RUN_S, Fleet, RunFailed
from bench.target import Target
from bench.workloads.base import Case, Workload

_RAW, _RAW_CRC, _RAW_OWN = "sendmsg", "sendmsg-crc", "sendmsg-own"
_FILLED = "mpproducer-filled"
_CLIENTS = (
    _RAW,
    _RAW_CRC,
    _RAW_OWN,
    _FILLED,
    "mpproducer-many",
    "mpproducer",
    "confluent",
    "confluent-batch",
)
_FILL_BYTES = 24_000_000  # of the default buffer_memory, and nothing blocks
_LARGE_BATCH_BYTES = 1_000_000  # as large as a broker takes by default
_SPIN_MS = 3


class _Part:
    """A process that does its part of a round when it is told to."""

    def __init__(self, what: Callable[..., None], *args: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=what, args=(theirs, *args))
        self._process.start()
        theirs.close()
        self.pid = self._process.pid or 0

    def wait(self) -> None:
        try:
            if not self._pipe.poll(RUN_S):
                raise RunFailed("a raw process does not answer")
            self._pipe.recv()
        except EOFError:
            raise RunFailed("a raw process died") from None

    def go(self) -> None:
        self._pipe.send("go")
        self.wait()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send("end")
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()


def _run_raw(client: str, target: Target, setup: Setup, size_bytes: int, total: int) -> Result:
    shape = size_bytes, setup.batch_bytes or 256 * 1024, _FILL_BYTES
    requests = raw.Requests(*shape)
    shared = os.memfd_create("raw")
    parts: list[_Part] = []
    try:
        os.ftruncate(shared, len(requests.data))
        memory = "" if client == _RAW_OWN else f"/proc/{os.getpid()}/fd/{shared}"
        sender = _Part(raw.send, target.bootstrap, memory, shape, client == _RAW_CRC)
        parts.append(sender)
        if memory:
            parts.append(_Part(raw.fill, memory, shape))
        for part in parts:
            part.wait()
        rounds = max(1, total // requests.record_bytes)
        seconds, cpu, broker = 0.0, 0, 0
        for number in range(rounds + 1):
            for filler in parts[1:]:
                filler.go()
            before = facts.cpu_ns([sender.pid]), facts.cpu_ns(target.broker_pids())
            started = time.monotonic()
            sender.go()
            if number > 0:  # the first one met memory that it had never mapped
                seconds += time.monotonic() - started
                cpu += facts.cpu_ns([sender.pid]) - before[0]
                broker += facts.cpu_ns(target.broker_pids()) - before[1]
        return _figures(rounds * requests.record_bytes, seconds, 0, cpu, broker)
    finally:
        for part in parts:
            part.end()
        os.close(shared)


def _figures(sent: int, seconds: float, worker: int, sender: int, broker: int) -> Result:
    kib = sent / 1024
    return {
        "mb_per_s": sent / seconds / 1e6,
        "worker_ns_per_kib": worker / kib,
        "sender_ns_per_kib": sender / kib,
        "broker_ns_per_kib": broker / kib,
    }


def _burst(client: Client, size_bytes: int, count: int, seed: int, rounds: int) -> int:
    values = client.__dict__.get("work")
    if values is None or rounds == 0:
        client.__dict__["work"] = payload.values(size_bytes, count, seed)
        return client.drain()
    for _ in range(rounds):
        client.burst(values)
    return client.drain()


def _fill(client: Client, count: int) -> None:
    client.burst(client.__dict__["work"][:count])


def _settle(client: Client) -> None:
    client.settle()


def _run_filled(target: Target, setup: Setup, size_bytes: int, total: int) -> Result:
    count = max(1, _FILL_BYTES // size_bytes)
    rounds = max(1, total // (count * size_bytes))
    with Fleet("mpproducer", setup, 1) as fleet:
        (sender,) = fleet.helpers
        (before,) = fleet.run(_burst, size_bytes, count, os.getpid(), 0)
        seconds, cpu, broker = 0.0, 0, 0
        for _ in range(rounds):
            os.kill(sender, signal.SIGSTOP)
            try:
                fleet.run(_fill, count)
                cpu -= facts.cpu_ns([sender])
                broker -= facts.cpu_ns(target.broker_pids())
                started = time.monotonic()
            finally:
                os.kill(sender, signal.SIGCONT)
            fleet.run(_settle)
            seconds += time.monotonic() - started
            cpu += facts.cpu_ns([sender])
            broker += facts.cpu_ns(target.broker_pids())
        (after,) = fleet.run(_burst, size_bytes, count, 0, 0)
        if after - before != rounds * count:
            raise RunFailed(f"{after - before} of {rounds * count} records acknowledged")
        return _figures(rounds * count * size_bytes, seconds, 0, cpu, broker)


def throughput(
    client: str,
    target: Target,
    options: Options,
    _before: dict[str, Result],
    *,
    setup: Setup,
    size_bytes: int,
) -> Result:
    """MB/s of record bytes, and CPU per KiB of them."""
    total = int(min(2_000, options.records / 500) * 1e6)
    topic = target.topic(setup.partitions)
    mine = Setup(**{**vars(setup), "bootstrap": target.bootstrap, "topic": topic})
    if client in (_RAW, _RAW_CRC, _RAW_OWN):
        return _run_raw(client, target, mine, size_bytes, total)
    if client == _FILLED:
        return _run_filled(target, mine, size_bytes, total)
    count = max(1, 16_000_000 // size_bytes)
    rounds = max(1, total // (count * size_bytes))
    with Fleet(client, mine, 1) as fleet:
        fleet.run(_burst, size_bytes, count, os.getpid(), 0)
        (before,) = fleet.run(_burst, size_bytes, count, 0, 1)
        worker, helper = facts.cpu_ns(fleet.pids), facts.cpu_ns(fleet.helpers)
        broker, started = facts.cpu_ns(target.broker_pids()), time.monotonic()
        (after,) = fleet.run(_burst, size_bytes, count, 0, rounds)
        seconds = time.monotonic() - started
        worker, helper = facts.cpu_ns(fleet.pids) - worker, facts.cpu_ns(fleet.helpers) - helper
        broker = facts.cpu_ns(target.broker_pids()) - broker
        if after - before != rounds * count:
            raise RunFailed(f"{after - before} of {rounds * count} records acknowledged")
        if not fleet.helpers:  # it sends from the worker itself
            worker, helper = 0, worker
        return _figures(rounds * count * size_bytes, seconds, worker, helper, broker)


def _cases(options: Options) -> list[Case]:
    shapes = [(10_000, options.batch_bytes), (10_000, _LARGE_BATCH_BYTES)]
    if not options.quick:
        shapes.append((100_000, options.batch_bytes))
    cases = []
    for size_bytes, batch_bytes in shapes:
        setup = Setup("", "", 12, 5, "none", batch_bytes)
        title = f"{size_bytes // 1000} kB records"
        if batch_bytes == _LARGE_BATCH_BYTES:
            title += ", batches of 1 MB"
        cases.append(
            Case(
                title,
                tuple(
                    name
                    for name in _CLIENTS
                    if name.startswith("sendmsg")
                    or options.wants("mpproducer" if name == _FILLED else name)
                ),
                functools.partial(throughput, setup=setup, size_bytes=size_bytes),
                setup.shown(),
                12,
                _SPIN_MS,
            )
        )
    return cases


THROUGHPUT = Workload("throughput", "Large batches against raw sendmsg", _cases)
