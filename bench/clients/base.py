"""What a workload asks of a client. Every loop in here is the client's natural one.

A client lives in a worker process and is used by one thread. The methods that are measured
(`burst...`, `calls`) hold the loop a user of that client would write, so that no adapter's frame is
counted: the loop, and one call per record.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from multiprocessing.context import SpawnContext
from typing import Any, ClassVar

from bench.config import Setup
from bench.payload import Event

TIMEOUT_S = 60.0
NS = 1_000_000_000


class Client(ABC):
    """One producer in one worker process."""

    name: ClassVar[str]
    note: ClassVar[str] = ""
    speed: ClassVar[float] = 1.0
    """How many records of a saturation run it gets, as a part of what the fastest get."""
    sink_is_enough: ClassVar[bool] = True
    call_per_record: ClassVar[bool] = True
    """Whether `calls` loops over single records: the cost of that loop is no cost of the call."""

    def __init__(self, setup: Setup, index: int, shared: Any) -> None:
        self.setup = setup
        self.index = index
        self.sent = 0

    @classmethod
    def missing(cls) -> str | None:
        """Why this client cannot run here, or None."""
        return None

    @classmethod
    def share(cls, setup: Setup, workers: int, context: SpawnContext) -> Any:
        """Start, in the parent, what all workers of a run share; handed to each of them."""
        return None

    @classmethod  # noqa: B027 - most share nothing
    def unshare(cls, shared: Any) -> None:
        """End what `share` started."""

    def shaped(self, values: list[bytes]) -> list[Any]:
        """The values as `burst` takes them; done before anything is measured."""
        return values

    @abstractmethod
    def burst(self, values: list[bytes]) -> None:
        """Send all values, unkeyed, as fast as the client takes them."""

    @abstractmethod
    def burst_keyed(self, events: list[Event]) -> None:
        """Send all events with their keys."""

    @abstractmethod
    def drain(self) -> int:
        """Wait until everything has an outcome; the number of acknowledged records so far."""

    def settle(self) -> None:
        """Wait until everything has an outcome, without counting where counting costs extra."""
        self.drain()

    def calls(self, values: list[bytes]) -> None:
        """`burst` without what the loop does beside the call."""
        self.burst(values)

    def calls_keyed(self, events: list[Event]) -> None:
        """`burst_keyed` without what the loop does beside the call."""
        self.burst_keyed(events)

    def burst_timed(self, events: list[Event], intended_ns: int, taken_ns: list[int]) -> None:
        """`burst_keyed`; each acknowledgement appends its time since `intended_ns`."""
        raise Unsupported(f"{self.name} does not tell its workers about acknowledgements")

    def one(self, value: bytes) -> None:
        """Send one record and wait for its acknowledgement."""
        raise Unsupported(f"{self.name} has no send-and-wait")

    def wait_until(self, deadline_ns: int) -> None:
        """Do nothing until CLOCK_MONOTONIC reaches the deadline."""
        left_s = (deadline_ns - time.monotonic_ns()) / NS
        if left_s > 0:
            time.sleep(left_s)

    wait_timed = wait_until
    """The same for a worker that wants to see acknowledgements as they come."""

    def traffic(self) -> tuple[int, int] | None:
        """(produce requests, bytes written to brokers) so far; None where nobody counts."""
        return None

    def helpers(self) -> list[int]:
        """Processes beside the workers that work for the client."""
        return []

    def close(self) -> None:  # noqa: B027 - the null client has nothing to end
        """End the client."""


class Unsupported(RuntimeError):
    """The client cannot do what a workload asks; it is left out there."""
