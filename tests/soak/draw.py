"""What one round of a soak is: configuration and workers, all drawn from its seed."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any, Final

import mpproducer
from tests.checker.records import HEAD_BYTES
from tests.checker.scenario import Job, Worker

LEAST_ROOM: Final = 4_096
_CODECS: Final = ("none", "none", "gzip", "snappy", "lz4", "zstd")


@dataclass(frozen=True)
class Round:
    """A draw: `expires` says that a short delivery timeout may give records up."""

    config: dict[str, Any]
    partitions: int
    workers: int
    expires: bool

    @staticmethod
    def of(rng: random.Random) -> Round:
        """The draw of a seed."""
        expires = rng.random() < 0.2
        linger_ms = rng.choice((0, 1, 5, 20, 100))
        idempotent = rng.random() < 0.85
        config: dict[str, Any] = {
            "linger_ms": linger_ms,
            "batch_size": rng.choice((1, 4_096, 65_536, 262_144)),
            "compression_type": rng.choice(_CODECS),
            "buffer_memory": rng.choice((2, 8, 32)) << 20,
            "enable_idempotence": idempotent,
            "max_in_flight_requests_per_connection": rng.choice((1, 2, 5, 5)),
            "request_timeout_ms": rng.choice((1_500, 5_000)),
            "delivery_timeout_ms": 6_000 if expires else 120_000,
            "retry_backoff_ms": rng.choice((10, 100)),
            "metadata_max_age_ms": rng.choice((2_000, 300_000)),
            "max_request_size": 1 << 20,
            "max_block_ms": 30_000,
        }
        return Round(config, rng.choice((1, 3, 12)), rng.randrange(2, 6), expires)


def life(seed: int, *, claims: bool) -> Job:
    """What a worker does: bursts of every kind of send, until it is asked to end. `claims`:
    records say which partition they must be in."""

    def job(worker: Worker) -> None:
        rng = random.Random(seed)
        writer, journal = worker.writer, worker.journal
        largest = rng.choice((200, 200, 2_000, 20_000))
        pause_s = rng.choice((0.002, 0.01, 0.05))
        while not journal.stop and journal.attempted < journal.capacity - LEAST_ROOM:
            try:
                _burst(worker, rng, largest, claims=claims)
            except mpproducer.KafkaError:
                time.sleep(0.02)  # it was noted as refused
            writer.poll()
            time.sleep(rng.random() * pause_s)

    return job


def _burst(worker: Worker, rng: random.Random, largest: int, *, claims: bool) -> None:
    writer, partitions = worker.writer, worker.run.partitions
    size, count = rng.randrange(HEAD_BYTES, largest + 1), rng.randrange(1, 40)
    match rng.randrange(5):
        case 0 if claims:
            for _ in range(count):
                writer.send(rng.randrange(partitions), size=size)
        case 1:
            now_ms = time.time_ns() // 1_000_000
            for _ in range(count):
                writer.send(key=rng.randrange(100), size=size, timestamp_ms=now_ms)
        case 2:
            writer.send_many(count, size=size, keys=[rng.randrange(100) for _ in range(count)])
        case 3:
            writer.send_many(count, size=size)
        case _:
            for _ in range(count):
                writer.send(size=size)


def share(records: int, *, many: int) -> Job:
    """Send so many records as fast as they are taken, `many` at a time or, with 1, one by one."""

    def job(worker: Worker) -> None:
        writer, left = worker.writer, records
        while left:
            count = min(left, 1_000)
            if many > 1:
                writer.send_many(count)
            else:
                for _ in range(count):
                    writer.send()
            left -= count
            writer.poll()

    return job
