"""What one seed means: the configuration, the sizes, and which faults happen how often.

Swarm testing: each seed switches a part of the fault kinds off and draws the rates of the others,
so that no kind hides another one in every run.
"""

from __future__ import annotations

import dataclasses
import enum
import random
from dataclasses import dataclass, field
from typing import Any, Final

from mpproducer.config import Config
from mpproducer.sender.retry import MS


class Fault(enum.Enum):
    """Every kind of fault: what happens, and the chance it has at each of its opportunities."""

    def __init__(self, what: str, rate: float) -> None:
        self.what = what
        self.rate = rate

    # connections
    RESOLVE_FAILED = ("a host name has no address", 0.15)
    CONNECT_REFUSED = ("a connection is refused", 0.15)
    CONNECT_SLOW = ("a connection comes up late", 0.2)
    CONNECT_LOST = ("nothing is heard of a connection attempt", 0.1)
    SLOW_NETWORK = ("bytes take long, one way", 0.1)
    PARTIAL_WRITE = ("the kernel takes a request in two parts", 0.25)
    STALLED_WRITE = ("the kernel never takes the rest of a request", 0.03)
    RESET_BEFORE = ("reset before the broker has the request, or just after", 0.06)
    RESET_AFTER = ("carried out, then closed instead of answered", 0.08)
    HALF_OPEN = ("a connection falls silent", 0.03)
    REQUEST_ARRIVES_LATE = ("carried out after the sender has closed", 0.5)
    GARBAGE = ("an answer that is no response", 0.02)
    WRONG_CORRELATION = ("an answer to another request", 0.02)
    FLIPPED_BIT = ("the broker sees a wrong CRC", 0.04)
    # brokers
    BROKER_DOWN = ("a broker dies and comes back", 0.5)
    BROKER_STOPPED = ("a broker hangs for a while", 0.4)
    BROKER_MOVED = ("a broker comes back at another address", 0.3)
    IDLE_RESET = ("a broker closes a connection", 0.5)
    LEADER_MOVED = ("another broker leads a partition", 0.9)
    LEADERLESS = ("nobody leads a partition", 0.4)
    TAIL_LOST = ("a new leader lacks what was not replicated", 0.6)
    SLOW_REPLICAS = ("replicas lag", 0.25)
    STALE_METADATA = ("a broker learns of a change late", 0.5)
    THROTTLED = ("throttle_time_ms in an answer", 0.06)
    OLD_BROKER = ("a broker speaks old versions", 0.3)
    VERSIONS_REFUSED = ("ApiVersions at our version is refused", 0.1)
    # answers
    REFUSED = ("a retriable error before the append", 0.12)
    REFUSED_FOR_GOOD = ("a final error before the append", 0.04)
    FAILED_AFTER_APPEND = ("a retriable error after the append", 0.1)
    UNKNOWN_ERROR = ("UNKNOWN_SERVER_ERROR after the append", 0.03)
    RECORD_ERRORS = ("single records are invalid (KIP-467)", 0.05)
    TOO_LARGE = ("a batch is larger than max.message.bytes", 0.6)
    DUPLICATE_REFUSED = ("a duplicate is answered with 46", 0.8)
    PARTITION_MISSING = ("an answer lacks a partition", 0.06)
    PARTITION_REPEATED = ("an answer has a partition twice", 0.06)
    PARTITION_FOREIGN = ("an answer has a partition nobody asked about", 0.04)
    LEADER_HINT = ("an answer names the leader (KIP-951)", 0.6)
    STALE_HINT = ("it names an old one", 0.2)
    FATAL = ("no batch of this producer is accepted", 0.004)
    # metadata, topics, producer ids
    METADATA_ERROR = ("a metadata answer without brokers", 0.12)
    METADATA_TOPIC_ERROR = ("a topic has an error in the metadata", 0.12)
    REBOOTSTRAP_ASKED = ("the broker asks to bootstrap again", 0.04)
    TOPIC_DELETED = ("a topic is deleted, and made again", 0.12)
    PARTITIONS_ADDED = ("a topic gets one more partition", 0.2)
    PRODUCER_EXPIRED = ("the broker forgets a producer id", 0.9)
    UNKNOWN_PRODUCER = ("an old broker says so (59)", 0.7)
    SEQUENCE_WRAP = ("sequences near the end of int32", 0.4)
    EPOCH_EXHAUSTED = ("the epoch is at its end", 0.5)
    ID_NOT_YET = ("a producer id cannot be had now", 0.3)
    ID_DENIED = ("a producer id is denied", 0.15)
    # workers and the sender
    WORKER_DIED = ("a worker dies", 0.25)
    UNBORN_BATCH = ("a batch is linked before its first record", 0.08)
    SCRIBBLED = ("a worker writes into an open batch", 0.03)
    SCRIBBLED_LATER = ("a worker writes into a batch that was sent", 0.04)
    ANNOUNCED_LATE = ("a worker stops between commit and announcement", 0.1)
    MEMORY_FULL = ("a worker waits for memory", 0.3)
    SLOW_COMPRESSION = ("a compressor takes its time", 0.2)
    SENDER_STALLED = ("the sender stands still", 0.4)
    CLOSED = ("the sender is asked to end", 0.1)


# Kinds that can only be seen together with another one.
_NEEDS: Final = {
    Fault.TAIL_LOST: Fault.SLOW_REPLICAS,
    Fault.UNKNOWN_PRODUCER: Fault.PRODUCER_EXPIRED,
    Fault.STALE_HINT: Fault.LEADER_HINT,
    Fault.LEADER_HINT: Fault.LEADER_MOVED,
    Fault.BROKER_MOVED: Fault.BROKER_DOWN,
}


def _pick(rng: random.Random, *choices: Any) -> Any:
    return choices[rng.randrange(len(choices))]


@dataclass(frozen=True)
class Plan:
    """One run. `without`, `records` and `brokers` are what shrinking changes."""

    seed: int
    config: Config
    brokers: int
    workers: int
    records: int
    partitions: tuple[int, ...]
    memory_bytes: int
    gap_ns: int
    rates: dict[Fault, float] = field(default_factory=dict)

    @staticmethod
    def of(seed: int) -> Plan:
        """The plan of a seed."""
        rng = random.Random(f"plan {seed}")
        share = _pick(rng, 0.0, 0.15, 0.3, 0.5, 0.8)
        strength = _pick(rng, 0.3, 1.0, 1.0, 2.0)
        rates = {kind: min(1.0, kind.rate * strength) for kind in Fault if rng.random() < share}
        for kind, needed in _NEEDS.items():
            if kind in rates:
                rates.setdefault(needed, needed.rate)
        batch_size = _pick(rng, 200, 600, 2_000)
        return Plan(
            seed=seed,
            config=_config(
                rng, batch_size, mute=Fault.PRODUCER_EXPIRED in rates and rng.random() < 0.6
            ),
            brokers=_pick(rng, 1, 2, 3, 3),
            workers=_pick(rng, 1, 2, 3),
            records=_pick(rng, 15, 40, 120),
            partitions=_pick(rng, (1,), (2,), (3,), (1, 2)),
            memory_bytes=3 * batch_size if Fault.MEMORY_FULL in rates else 1 << 30,
            gap_ns=_pick(rng, 1, 10, 40) * MS,
            rates=rates,
        )

    def shrunk(
        self,
        *,
        without: frozenset[Fault] = frozenset(),
        records: int | None = None,
        brokers: int | None = None,
    ) -> Plan:
        """The same seed with less in it."""
        return dataclasses.replace(
            self,
            rates={kind: rate for kind, rate in self.rates.items() if kind not in without},
            records=min(self.records, records or self.records),
            brokers=min(self.brokers, brokers or self.brokers),
        )


def _config(rng: random.Random, batch_size: int, *, mute: bool) -> Config:
    idempotent = rng.random() < 0.8
    request_timeout = _pick(rng, 300, 800)
    linger = _pick(rng, 0, 0, 5, 50)
    values: dict[str, Any] = {
        "bootstrap_servers": _pick(rng, "boot:9092", "boot:9092,boot2:9092"),
        "enable_idempotence": idempotent,
        "acks": -1 if idempotent else _pick(rng, -1, -1, 1, 0),
        "linger_ms": linger,
        # No draw of its own: the kept seeds stay what they are.
        "partitioner_availability_timeout_ms": {0: 0, 5: 60, 50: 400}[linger],
        "request_timeout_ms": request_timeout,
        "delivery_timeout_ms": _pick(rng, max(1_200, linger + request_timeout), 2_500, 6_000),
        "max_in_flight_requests_per_connection": 1 if mute else _pick(rng, 1, 2, 5, 5),
        "retry_backoff_ms": _pick(rng, 10, 50),
        "retry_backoff_max_ms": _pick(rng, 100, 300),
        "reconnect_backoff_ms": _pick(rng, 10, 50),
        "reconnect_backoff_max_ms": _pick(rng, 100, 300),
        "socket_connection_setup_timeout_ms": 200,
        "socket_connection_setup_timeout_max_ms": 400,
        "metadata_max_age_ms": _pick(rng, 1_000, 300_000),
        "metadata_recovery_rebootstrap_trigger_ms": _pick(rng, 2_000, 300_000),
        "connections_max_idle_ms": _pick(rng, 500, 540_000),
        "sender_idle_ms": 2_000,
        "compression_type": _pick(rng, "none", "none", "zstd"),
    }
    if rng.random() < 0.15:
        values["retries"] = _pick(rng, 1, 3)
    config = Config.from_user(None, values)
    request = _pick(rng, batch_size, 3 * batch_size, 1 << 20)
    return Config(vars(config) | {"batch_size": batch_size, "max_request_size": request})
