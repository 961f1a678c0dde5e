"""The measurements. Each case runs one client in fresh processes and returns plain numbers."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import time
from multiprocessing.connection import Connection
from typing import Any

from bench.clients import CLIENTS, Setup, cpu_seconds

Result = dict[str, float]


def broker_pids(bootstrap: str) -> list[int]:
    """Processes that listen on the bootstrap ports of this host; empty for a remote cluster."""
    import psutil

    ports = {int(item.rpartition(":")[2]) for item in bootstrap.split(",")}
    found = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.port in ports
        and connection.pid
    }
    return sorted(found)


def connections_to(bootstrap: str, pids: list[int]) -> int:
    """Established TCP connections of these processes to the brokers of this host."""
    import psutil

    ports = {int(item.rpartition(":")[2]) for item in bootstrap.split(",")}
    return sum(
        1
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_ESTABLISHED
        and connection.pid in pids
        and connection.raddr
        and connection.raddr.port in ports
    )


def _cpu(pids: list[int]) -> float:
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += cpu_seconds(pid)
    return total


def saturate(client_name: str, setup: Setup, records: int, size_bytes: int) -> Result:
    """One process sends as fast as it can: cost of the call, CPU per acknowledged record."""
    return _in_process(_saturate, client_name, setup, records, size_bytes)


def _saturate(client_name: str, setup: Setup, records: int, size_bytes: int) -> Result:
    client = CLIENTS[client_name](setup)
    value = os.urandom(size_bytes)
    send = client.send
    for _ in range(2000):
        send(value, None)
    before = client.finish()
    # The call alone: a burst that fits the buffers, so that nothing blocks.
    burst = 20_000
    timed_ns = time.thread_time_ns()
    for _ in range(burst):
        send(value, None)
    call_ns = (time.thread_time_ns() - timed_ns) / burst
    timed_ns = time.thread_time_ns()
    for _ in range(burst):
        _nothing(value, None)
    call_ns -= (time.thread_time_ns() - timed_ns) / burst
    before = client.finish()
    pids = [os.getpid(), *client.helper_pids()]
    brokers = broker_pids(setup.bootstrap)
    cpu, broker_cpu, started_s = _cpu(pids), _cpu(brokers), time.monotonic()
    traffic = client.traffic()
    for _ in range(records):
        send(value, None)
    acked = client.finish() - before
    seconds = time.monotonic() - started_s
    cpu, broker_cpu = _cpu(pids) - cpu, _cpu(brokers) - broker_cpu
    after = client.traffic()
    if acked < records:
        raise RuntimeError(f"{client_name}: {acked} of {records} records acknowledged")
    return {
        "send_call_ns": call_ns,
        "client_cpu_ns_per_record": cpu / records * 1e9,
        "broker_cpu_ns_per_record": broker_cpu / records * 1e9,
        "records_per_s": records / seconds,
        "requests_per_1000_records": (after.requests - traffic.requests) / records * 1000,
        "wire_bytes_per_record": (after.wire_bytes - traffic.wire_bytes) / records,
    }


def _nothing(value: bytes, key: bytes | None) -> None:
    """What the loop and the adapter's frame cost without a client behind them."""


def fixed_rate(client_name: str, setup: Setup, processes: int, rate: int, seconds: float) -> Result:
    """`processes` workers send `rate` records/s together: requests, bytes, CPU, connections."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes + 1)
    workers = []
    for index in range(processes):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_trickle,
            args=(client_name, setup, index, rate / processes, seconds, barrier, theirs),
        )
        process.start()
        theirs.close()
        workers.append((process, ours))
    barrier.wait(120)
    brokers = broker_pids(setup.bootstrap)
    broker_cpu = _cpu(brokers)
    time.sleep(seconds / 2)
    pids = [int(process.pid or 0) for process, _pipe in workers]
    helpers = {pid for _process, pipe in workers for pid in pipe.recv()}
    connections = connections_to(setup.bootstrap, pids + sorted(helpers))
    reports = [pipe.recv() for _process, pipe in workers]
    broker_cpu = _cpu(brokers) - broker_cpu
    for process, _pipe in workers:
        process.join(60)
    acked = sum(report["acked"] for report in reports)
    shared = bool(helpers)
    requests = max(r["requests"] for r in reports) if shared else sum(
        r["requests"] for r in reports)  # fmt: skip
    wire = max(r["wire_bytes"] for r in reports) if shared else sum(
        r["wire_bytes"] for r in reports)  # fmt: skip
    helper_cpu = max((r["helper_cpu"] for r in reports), default=0.0)
    cpu = sum(r["cpu"] for r in reports) + helper_cpu
    return {
        "requests_per_s": requests / seconds,
        "wire_bytes_per_record": wire / acked,
        "client_cpu_us_per_record": cpu / acked * 1e6,
        "broker_cpu_us_per_record": broker_cpu / acked * 1e6,
        "connections": connections,
        "records": acked,
    }


def _trickle(
    client_name: str, setup: Setup, index: int, rate: float, seconds: float, barrier: Any,
    pipe: Connection,
) -> None:  # fmt: skip
    client = CLIENTS[client_name](setup)
    rng = random.Random(index)
    client.send(_event(rng), b"warm-up")
    warm = client.finish()
    helpers = client.helper_pids()
    start = client.traffic()
    barrier.wait(120)
    cpu, helper_cpu = _cpu([os.getpid()]), _cpu(helpers)
    started_s, sent, told = time.monotonic(), 0, False
    while (elapsed_s := time.monotonic() - started_s) < seconds:
        for _ in range(int(elapsed_s * rate) - sent):
            event = _event(rng)
            client.send(event, event[9:17])
            sent += 1
        if not told and elapsed_s > seconds / 2:
            told = True
            pipe.send(helpers)
        time.sleep(0.002)
    cpu, helper_cpu = _cpu([os.getpid()]) - cpu, _cpu(helpers) - helper_cpu
    acked = client.finish() - warm
    end = client.traffic()
    pipe.send({"acked": acked, "cpu": cpu, "helper_cpu": helper_cpu,
               "requests": end.requests - start.requests,
               "wire_bytes": end.wire_bytes - start.wire_bytes})  # fmt: skip
    with contextlib.suppress(Exception):
        barrier.wait(60)


def _event(rng: random.Random) -> bytes:
    return b'{"user":"%08x","action":"%s","amount":%d,"ok":true}' % (
        rng.getrandbits(16),
        rng.choice((b"view", b"click", b"buy", b"leave")),
        rng.randrange(100_000),
    )


def _in_process(target: Any, *args: Any) -> Result:
    """Run in a fresh interpreter, so that no client inherits anything from another."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(target, args, theirs))
    process.start()
    theirs.close()
    if not ours.poll(300):
        process.kill()
        raise TimeoutError(f"{args[0]} did not finish within 300 s")
    result = ours.recv()
    process.join(60)
    if isinstance(result, Exception):
        raise result
    return dict(result)


def _child(target: Any, args: tuple[Any, ...], pipe: Connection) -> None:
    try:
        pipe.send(target(*args))
    except Exception as error:  # noqa: BLE001 - told to the parent
        pipe.send(error)
