"""(e): a new worker process: import, attach, first acknowledgement; and its memory.

The memory is USS, what belongs to the process alone, over that of a bare interpreter.
"""

from __future__ import annotations

import compileall
import contextlib
import functools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import facts
from bench.config import Options, Result, Setup
from bench.fleet import Fleet, RunFailed
from bench.target import ROOT, Target
from bench.workloads.base import Case, Workload

_BARE = "bare python"
_STARTING = "mpproducer, no sender yet"
_RUNNING = "mpproducer"
_CLIENTS = (_BARE, _RUNNING, _STARTING, "confluent", "kafka-python", "aiokafka")
_WAIT_S = 60

_FRAME = """
import sys, time
started = time.monotonic_ns()
def uss():
    return sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup")
               if line.startswith(("Private_Clean:", "Private_Dirty:")))
bootstrap, topic, folder = sys.argv[1:4]
{body}
acked = time.monotonic_ns()
print('{{"started": %d, "imported": %d, "acked": %d, "uss_kib": %d}}'
      % (started, imported, acked, uss()), flush=True)
sys.stdin.read()
"""
_BODIES = {
    _BARE: "imported = started",
    _RUNNING: """
from mpproducer import Producer
imported = time.monotonic_ns()
producer = Producer(bootstrap_servers=bootstrap, runtime_dir=folder, sender_idle_ms=100)
producer.send(topic, b"first").result(60)
""",
    "confluent": """
from confluent_kafka import Producer
imported = time.monotonic_ns()
producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True,
                     "linger.ms": 5, "log_level": 0})
done = []
producer.produce(topic, b"first", on_delivery=lambda error, message: done.append(error))
while not done:
    producer.poll(1)
assert done == [None], done
""",
    "kafka-python": """
from kafka import KafkaProducer
imported = time.monotonic_ns()
producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True,
                         linger_ms=5)
producer.send(topic, b"first").get(60)
""",
    "aiokafka": """
import asyncio
from aiokafka import AIOKafkaProducer
imported = time.monotonic_ns()
async def main():
    global producer
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True,
                                linger_ms=5)
    await producer.start()
    await producer.send_and_wait(topic, b"first")
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
""",
}
_BODIES[_STARTING] = _BODIES[_RUNNING]
_PROGRAMS = {name: _FRAME.format(body=body) for name, body in _BODIES.items()}


def cold(
    client: str, target: Target, options: Options, before: dict[str, Result], *, setup: Setup
) -> Result:
    """One new process."""
    topic = target.topic(setup.partitions)
    try:
        with _sender(client, target, topic) as (folder, pids):
            return _one(client, target.bootstrap, topic, folder, pids, before)
    finally:
        target.drop(topic)


@contextlib.contextmanager
def _sender(client: str, target: Target, topic: str) -> Iterator[tuple[str, list[int]]]:
    """(folder of senders, pid of the running one if the client is to find one)."""
    if client != _RUNNING:
        folder = tempfile.mkdtemp(prefix="mppb-")
        try:
            yield folder, []
        finally:
            until = time.monotonic() + 10
            while any(Path(folder).iterdir()) and time.monotonic() < until:
                time.sleep(0.02)
            shutil.rmtree(folder, ignore_errors=True)
        return
    # The same defaults as the new process: they share the sender. batch_bytes 0: the default.
    setup = Setup(target.bootstrap, topic, linger_ms=5, batch_bytes=0)
    with Fleet("mpproducer", setup, 1) as fleet:
        yield fleet.setup.runtime_dir, fleet.helpers


def _one(
    client: str, bootstrap: str, topic: str, folder: str, pids: list[int],
    before: dict[str, Result],
) -> Result:  # fmt: skip
    launched = time.monotonic_ns()
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAMS[client], bootstrap, topic, folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RunFailed(process.stderr.read().strip()[-300:])
        told = json.loads(line)
        found = {
            "start_ms": (told["started"] - launched) / 1e6,
            "import_ms": (told["imported"] - told["started"]) / 1e6,
            "first_ack_ms": (told["acked"] - told["imported"]) / 1e6,
            "cold_ms": (told["acked"] - launched) / 1e6,
            "uss_kib": float(told["uss_kib"]),
        }
        bare = before.get(_BARE, {}).get("uss_kib")
        if bare is not None and client != _BARE:
            found["uss_over_bare_kib"] = found["uss_kib"] - bare
        if pids:
            found["sender_uss_kib"] = sum(facts.uss_kib(pid) for pid in pids)
            found["segment_kib"] = max(facts.shared_memory_kib(pid) for pid in pids)
    finally:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            process.communicate(timeout=_WAIT_S)
        if process.poll() is None:
            process.kill()
            process.wait()
    return found


def _cases(options: Options) -> list[Case]:
    # As an installer does for the other clients; a checkout may be without.
    compileall.compile_dir(ROOT / "mpproducer", quiet=1)
    setup = Setup("", "", 12, 5, "none", 0)
    wanted = tuple(name for name in _CLIENTS if name in (_BARE, _STARTING) or options.wants(name))
    return [
        Case(
            "a new process, to its first acknowledgement",
            wanted,
            functools.partial(cold, setup=setup),
            setup.shown(),
        )
    ]


COLD = Workload("cold", "A cold worker, and its memory", _cases)
