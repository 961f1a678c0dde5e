"""Backoff, delivery deadline, and the fate of a batch when its time or its attempts are up."""

from __future__ import annotations

from typing import Final, Protocol

from mpproducer.reason import Reason
from mpproducer.sender.actions import Kind, Outcome
from mpproducer.sender.batch import IN_FLIGHT, NEVER_NS, ProducerBatch

MS: Final = 1_000_000
JITTER: Final = 0.2
_MAX_EXPONENT: Final = 30  # 2**30 times any base exceeds every cap


class Randomness(Protocol):
    """The part of random.Random the sender uses; a seeded one makes a run repeatable."""

    def random(self) -> float:
        """A float in [0, 1)."""
        ...

    def randrange(self, stop: int, /) -> int:
        """An int in [0, stop)."""
        ...


class Backoff:
    """Exponential backoff: base * 2**failures within +-20 %, capped (ExponentialBackoff, KIP-580).

    `base_ms` >= `max_ms` means a constant wait of `max_ms` without jitter, as in Java.
    """

    __slots__ = ("_base_ns", "_max_ns", "_random")

    def __init__(self, base_ms: int, max_ms: int, random: Randomness) -> None:
        self._base_ns = base_ms * MS
        self._max_ns = max_ms * MS
        self._random = random

    def draw_ns(self, failures: int) -> int:
        """The wait before the next try after `failures` >= 1 failures in a row.

        Drawn once per attempt by the caller and kept: drawing at every check would favour short
        waits.
        """
        if self._base_ns >= self._max_ns:
            return self._max_ns
        exponent = min(max(0, failures - 1), _MAX_EXPONENT)
        term = min(self._base_ns << exponent, self._max_ns)
        factor = 1.0 - JITTER + 2.0 * JITTER * self._random.random()
        return min(int(term * factor), self._max_ns)


def deadline_ns(created_ns: int, timeout_ms: int) -> int:
    """When a batch created then must have its outcome; huge timeouts never overflow or expire."""
    return min(created_ns + timeout_ms * MS, NEVER_NS)


def failure(
    batch: ProducerBatch, code: int, reason: Reason, message: str, *, on_wire: bool
) -> Outcome:
    """The outcome of all records of a batch that failed. The fate is decided here.

    NOT_WRITTEN only if every attempt is known to have appended nothing. `on_wire`: a request
    that carries the batch is still open, so its bytes may yet arrive.
    """
    kind = Kind.UNKNOWN if batch.unsure or on_wire else Kind.NOT_WRITTEN
    return Outcome(kind, code, reason, message, first=batch.first, count=batch.records)


def expiry_message(batch: ProducerBatch, timeout_ms: int) -> str:
    """What is told about a batch whose delivery timeout passed."""
    if batch.state is IN_FLIGHT:
        stage = "its request was still unanswered"
    elif batch.attempts:
        stage = f"{batch.attempts} attempt(s) had been made"
    else:
        stage = "it had never been sent"
    return (
        f"Expiring {batch.records} record(s) for {batch.partition.topic}-"
        f"{batch.partition.number}: {timeout_ms} ms has passed since batch creation; {stage}"
    )
