"""(c): large batches into the sink, against raw `sendmsg` of the same bytes.

End to end a worker makes the records meanwhile, on the cores that sender and sink need. What the
sender does alone is `mpproducer-filled`: it is stopped while a worker fills the memory, then goes
on, and what counts is the time until all of it is acknowledged; raw `sendmsg` finds its requests
made as well.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import socket
import time
from multiprocessing.connection import Connection
from typing import Any

from bench import facts, payload, raw
from bench.clients.base import Client
from bench.config import Options, Result, Setup
from bench.fleet import RUN_S, Fleet, RunFailed
from bench.target import Target
from bench.workloads.base import Case, Workload
from mpproducer._core import native
from mpproducer.wire.crc import crc32c
from mpproducer.wire.record_batch import Record, encode_record

_RAW, _RAW_CRC = "sendmsg", "sendmsg-crc"
_FILLED = "mpproducer-filled"
_CLIENTS = (
    _RAW,
    _RAW_CRC,
    _FILLED,
    "mpproducer-many",
    "mpproducer",
    "confluent",
    "confluent-batch",
)
_REQUEST_BYTES = 1 << 20  # max_request_size
_BUFFER_BYTES = 64 << 20
_FRAMES = 64  # in turn, so that no cache holds them: as much as the producer's memory
_IN_FLIGHT = 5
_FILL_BYTES = 56_000_000  # of that, and nothing blocks


def _frames(size_bytes: int, batch_bytes: int, topic: str) -> tuple[list[Any], int]:
    """(requests as buffers for sendmsg, record bytes in each)."""
    count = max(1, batch_bytes // (size_bytes + 20))
    partitions = max(1, _REQUEST_BYTES // batch_bytes)
    made = []
    for seed in range(_FRAMES):
        batches = []
        for partition in range(partitions):
            values = payload.values(size_bytes, count, seed * partitions + partition)
            records = b"".join(
                encode_record(Record(n, 0, None, value)) for n, value in enumerate(values)
            )
            batches.append((partition, native.Body(records, count, 0, 0)))
        made.append(raw.buffers(topic, batches))
    return made, partitions * count * size_bytes


def _raw(
    pipe: Connection, bootstrap: str, size_bytes: int, batch_bytes: int, total: int, crc: bool
) -> None:
    """In a process: send, at most five requests without an answer, as a producer does."""
    frames, record_bytes = _frames(size_bytes, batch_bytes, "raw")
    host, _, port = bootstrap.partition(":")
    with socket.create_connection((host, int(port)), timeout=RUN_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pipe.send("ready")
        pipe.recv()
        sent = waiting = 0
        while sent < total:
            buffers = frames[sent // record_bytes % _FRAMES]
            if crc:
                for buffer in buffers:
                    crc32c(buffer)
            _send(sock, buffers)
            sent += record_bytes
            waiting += 1
            if waiting == _IN_FLIGHT:
                _answer(sock)
                waiting -= 1
        for _ in range(waiting):
            _answer(sock)
        pipe.send(sent)
        pipe.recv()


def _send(sock: socket.socket, buffers: list[Any]) -> None:
    left = [memoryview(buffer) for buffer in buffers]
    while left:
        sent = sock.sendmsg(left)
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if left and sent:
            left[0] = left[0][sent:]


def _answer(sock: socket.socket) -> None:
    size = int.from_bytes(_exactly(sock, 4), "big")
    _exactly(sock, size)


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise ConnectionError("the sink closed the connection")
        data += more
    return data


def _run_raw(target: Target, setup: Setup, size_bytes: int, total: int, crc: bool) -> Result:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    batch_bytes = setup.batch_bytes or 256 * 1024
    process = context.Process(
        target=_raw, args=(theirs, target.bootstrap, size_bytes, batch_bytes, total, crc)
    )
    process.start()
    theirs.close()
    try:
        if not ours.poll(60):
            raise RunFailed("the raw sender did not start")
        ours.recv()
        pid = process.pid or 0
        cpu, broker, started = (
            facts.cpu_ns([pid]), facts.cpu_ns(target.broker_pids()), time.monotonic()
        )  # fmt: skip
        ours.send("go")
        if not ours.poll(RUN_S):
            raise RunFailed("the raw sender did not finish")
        sent = ours.recv()
        seconds = time.monotonic() - started
        cpu = facts.cpu_ns([pid]) - cpu
        broker = facts.cpu_ns(target.broker_pids()) - broker
        ours.send("end")
    except EOFError:
        raise RunFailed("the raw sender died") from None
    finally:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
        ours.close()
    return _figures(sent, seconds, 0, cpu, broker)


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
    if client in (_RAW, _RAW_CRC):
        return _run_raw(target, mine, size_bytes, total, client == _RAW_CRC)
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
    sizes = (10_000,) if options.quick else (10_000, 100_000)
    setup = Setup("", "", 12, 5, "none", options.batch_bytes, _BUFFER_BYTES)
    return [
        Case(
            f"{size // 1000} kB records",
            tuple(
                name
                for name in _CLIENTS
                if name.startswith("sendmsg")
                or options.wants("mpproducer" if name == _FILLED else name)
            ),
            functools.partial(throughput, setup=setup, size_bytes=size),
            setup.shown(),
            12,
        )
        for size in sizes
    ]


THROUGHPUT = Workload("throughput", "Large batches against raw sendmsg", _cases)
