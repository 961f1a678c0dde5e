"""What a record became: `RecordMetadata` for one, `BatchFuture` for many.

`DeliveryFuture`, the future of `send`, is made by the C core: a reference to the record's batch
and an index, resolved when somebody asks. A `BatchFuture` holds one of them per run of records
that follow each other in one batch, so it costs per batch and not per record.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

from mpproducer._core.native import DeliveryFuture, failed_future

__all__ = ["BatchFuture", "DeliveryFuture", "RecordMetadata", "as_concurrent"]


class RecordMetadata(NamedTuple):
    """Where an acknowledged record is (org.apache.kafka.clients.producer.RecordMetadata)."""

    topic: str
    partition: int
    offset: int
    """-1 when the broker did not tell it: acks=0, or a duplicate it no longer remembers."""
    timestamp_ms: int
    """The broker's append time for topics that use it, else the record's own timestamp."""


class BatchFuture:
    """The outcome of all records of one `send_many`. Thread-safe.

    Awaitable in a running event loop. It belongs to the process that called `send_many`.
    """

    __slots__ = ("_batches", "_runs", "count")

    def __init__(self, runs: Sequence[tuple[DeliveryFuture, int]]) -> None:
        self._runs = tuple(runs)
        # The batches may be split on their way: one record's outcome says nothing of the others'.
        self._batches = tuple(first._whole() for first, _length in self._runs)
        self.count = sum(length for _first, length in self._runs)
        """How many records the call appended or failed."""

    def __len__(self) -> int:
        return self.count

    def done(self) -> bool:
        """Whether every outcome is known; never blocks."""
        return all(batch.done() for batch in self._batches)

    def cancel(self) -> bool:
        """False: records cannot be taken back."""
        return False

    def _wait(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        for batch in self._batches:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not batch._wait(left):
                raise TimeoutError("not all outcomes are known yet; the records stay in delivery")

    def _outcomes(self) -> Generator[tuple[int, int, BaseException | None, int], None, None]:
        """Yield (index of the first record, count, error or None, base offset) in order."""
        start = 0
        for first, length in self._runs:
            for at, count, error, offset in first._run(length):
                yield start + at, count, error, offset
            start += length

    def result(self, timeout: float | None = None) -> list[RecordMetadata]:
        """Wait for all records and return their metadata, in the order given to `send_many`.

        `timeout` is in seconds for the whole call; TimeoutError when it passes. Raises the error of
        the first record that failed; `failed` names them all.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        found: list[RecordMetadata] = []
        for first, length in self._runs:
            base = first.result(0)
            for _at, count, _error, offset in first._run(length):
                found += [
                    base._replace(offset=offset + i if offset >= 0 else -1) for i in range(count)
                ]
        return found

    get = result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for all records; the error of the first one that failed, or None."""
        self._wait(timeout)
        for _first, _count, error, _offset in self._outcomes():
            if error is not None:
                return error
        return None

    @property
    def failed(self) -> list[tuple[int, BaseException]]:
        """(index, error) of every record that is known not to be acknowledged. Blocks for all."""
        self._wait(None)
        return [
            (at + i, error)
            for at, count, error, _offset in self._outcomes()
            if error is not None
            for i in range(count)
        ]

    @property
    def offsets(self) -> list[int]:
        """Offset per record, -1 where it failed or is not known. Blocks until all are told."""
        self._wait(None)
        found: list[int] = []
        for _at, count, _error, offset in self._outcomes():
            found += range(offset, offset + count) if offset >= 0 else [-1] * count
        return found

    def add_done_callback(self, fn: Callable[[BatchFuture], object], /) -> None:
        """Call fn(self) once when every outcome is known; at once if it is already.

        It runs in some thread of this process. What it raises is reported and dropped.
        """
        left = [max(1, len(self._batches))]
        guard = threading.Lock()

        def told(_future: DeliveryFuture) -> None:
            with guard:
                left[0] -= 1
                last = left[0] == 0
            if last:
                fn(self)

        # Of nothing everything is known: as for any future that is done already.
        for batch in self._batches or (failed_future("", KeyError()),):
            batch.add_done_callback(told)

    def __await__(self) -> Generator[Any, None, list[RecordMetadata]]:
        for batch in self._batches:
            with contextlib.suppress(Exception):  # told by result() below, for all at once
                yield from batch.__await__()
        return self.result(0)

    def __repr__(self) -> str:
        state = "done" if self.done() else "pending"
        return f"<BatchFuture of {self.count} records, {state}>"


def as_concurrent(future: DeliveryFuture | BatchFuture) -> concurrent.futures.Future[Any]:
    """Return a concurrent.futures.Future with the same outcome, for `concurrent.futures.wait`,
    `as_completed` and `asyncio.wrap_future`.

    `asyncio.ensure_future(future)` makes a task of a future, for `asyncio.wait` and others that
    take nothing else.
    """
    outer: concurrent.futures.Future[Any] = concurrent.futures.Future()
    outer.set_running_or_notify_cancel()  # a record cannot be taken back

    def told(_done: object) -> None:
        error = future.exception(0)
        if error is not None:
            outer.set_exception(error)
        else:
            outer.set_result(future.result(0))

    future.add_done_callback(told)
    return outer
