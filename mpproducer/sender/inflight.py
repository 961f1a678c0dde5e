"""Requests of one connection that wait for their response (InFlightRequests in Java).

A broker answers the requests of a connection in the order they were sent, so this is a queue and
nothing else: a response completes the oldest, and when the connection ends all complete, oldest
first.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from mpproducer.sender.batch import ProducerBatch
from mpproducer.sender.bugs import NotReady

API_PRODUCE: Final = 0
API_METADATA: Final = 3
API_VERSIONS: Final = 18
API_INIT_PRODUCER_ID: Final = 22

# Kafka's Java client keeps the top of the int32 range for SASL (SaslClientAuthenticator): a
# response on a SASL connection must not be mistaken for one of these.
MAX_CORRELATION_ID: Final = 2**31 - 1
MIN_RESERVED_CORRELATION_ID: Final = MAX_CORRELATION_ID - 7


class Correlation:
    """Correlation ids of one sender: int32, never in the range reserved for SASL."""

    __slots__ = ("_next",)

    def __init__(self, first: int = 0) -> None:
        self._next = first

    def take(self) -> int:
        """The next id; wraps to 0 below the reserved range."""
        if self._next >= MIN_RESERVED_CORRELATION_ID:
            self._next = 0
        taken = self._next
        self._next += 1
        return taken


class InFlight:
    """One request on the wire. `batches` is empty for everything but Produce."""

    __slots__ = (
        "api_key",
        "api_version",
        "batches",
        "correlation_id",
        "deadline_ns",
        "expects_response",
        "message",
        "sent_ns",
        "written",
    )

    def __init__(
        self,
        correlation_id: int,
        api_key: int,
        api_version: int,
        sent_ns: int,
        deadline_ns: int,
        batches: tuple[ProducerBatch, ...] = (),
        message: Any = None,
    ) -> None:
        self.correlation_id = correlation_id
        self.api_key = api_key
        self.api_version = api_version
        self.sent_ns = sent_ns
        self.deadline_ns = deadline_ns
        self.batches = batches
        self.message = message
        self.written = False
        self.expects_response = True


class InFlightRequests:
    """FIFO of one connection, with the limit of max.in.flight.requests.per.connection.

    Every request type counts. `can_send_more` is also False while the newest request is partly
    written: a connection carries at most one half-written request, whose memory it still reads.
    """

    __slots__ = ("_limit", "_queue")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queue: deque[InFlight] = deque()

    def can_send_more(self) -> bool:
        """Whether `add` would be accepted now."""
        queue = self._queue
        return not queue or (queue[-1].written and len(queue) < self._limit)

    def add(self, request: InFlight) -> None:
        """Register a request; raises NotReady past the limit or behind a half-written one."""
        if not self.can_send_more():
            raise NotReady(
                f"{len(self._queue)} requests in flight (limit {self._limit}), newest "
                f"{'written' if self._queue[-1].written else 'not fully written'}"
            )
        self._queue.append(request)

    def wrote(self, correlation_id: int) -> InFlight | None:
        """Mark the newest request as fully written; None if it is not the newest any more."""
        queue = self._queue
        if queue and queue[-1].correlation_id == correlation_id:
            queue[-1].written = True
            return queue[-1]
        return None

    def complete_next(self, correlation_id: int) -> InFlight | None:
        """Take the oldest request if it has this id; None (nothing taken) otherwise."""
        queue = self._queue
        if queue and queue[0].correlation_id == correlation_id:
            return queue.popleft()
        return None

    def complete_last_sent(self) -> InFlight:
        """Take the newest request (acks=0: it is over once written); raises when empty."""
        if not self._queue:
            raise NotReady("no request is in flight")
        return self._queue.pop()

    def clear(self) -> list[InFlight]:
        """Take all, oldest first."""
        taken = list(self._queue)
        self._queue.clear()
        return taken

    def oldest(self) -> InFlight | None:
        """The request whose response comes next."""
        return self._queue[0] if self._queue else None

    def extend_deadlines(self, by_ns: int) -> None:
        """Throttle time is not the request's time."""
        for request in self._queue:
            request.deadline_ns += by_ns

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Any:
        return iter(self._queue)
