"""What a record became: `RecordMetadata` for one, `BatchFuture` for many.

`DeliveryFuture`, the future of `send`, is made by the C core: a reference to the record's batch
and an index, resolved when somebody asks. A `BatchFuture` holds 16 bytes per run of records that
follow each other in one batch, also made by the core.
"""

from __future__ import annotations

from mpproducer._core.native import DeliveryFuture, Runs, failed_future
from mpproducer.light import Lock, suppress

TYPE_CHECKING = False  # typing is dear: see light.py
if TYPE_CHECKING:
    import concurrent.futures
    from array import array
    from collections.abc import Callable, Generator, Iterable
    from typing import Any

__all__ = ["BatchFuture", "DeliveryFuture", "RecordMetadata", "as_concurrent"]


class RecordMetadata(tuple[str, int, int, int]):
    """Where an acknowledged record is (org.apache.kafka.clients.producer.RecordMetadata).

    A named tuple in all it does, spelt out because `collections` would be half of what a worker
    imports.
    """

    __slots__ = ()
    __match_args__ = _fields = ("topic", "partition", "offset", "timestamp_ms")

    def __new__(cls, topic: str, partition: int, offset: int, timestamp_ms: int) -> RecordMetadata:
        return tuple.__new__(cls, (topic, partition, offset, timestamp_ms))

    @property
    def topic(self) -> str:
        """The record's topic."""
        return self[0]

    @property
    def partition(self) -> int:
        """The partition it went to."""
        return self[1]

    @property
    def offset(self) -> int:
        """-1 when the broker did not tell it: acks=0, or a duplicate it no longer remembers."""
        return self[2]

    @property
    def timestamp_ms(self) -> int:
        """The broker's append time for topics that use it, else the record's own timestamp."""
        return self[3]

    @classmethod
    def _make(cls, values: Iterable[Any]) -> RecordMetadata:
        return cls(*values)

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def _replace(self, **changes: Any) -> RecordMetadata:
        return type(self)(**(self._asdict() | changes))

    def __getnewargs__(self) -> tuple[str, int, int, int]:
        return (self[0], self[1], self[2], self[3])

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
        return f"{type(self).__name__}({shown})"


class BatchFuture:
    """The outcome of all records of one `send_many`. Thread-safe.

    Awaitable in a running event loop. It belongs to the process that called `send_many`. Lists are
    in the order given to `send_many`, whatever partitions the records went to.
    """

    __slots__ = ("_runs", "count")

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self.count = len(runs)
        """How many records the call appended or failed."""

    def __len__(self) -> int:
        return self.count

    def done(self) -> bool:
        """Whether every outcome is known; never blocks."""
        return self._runs.done()

    def cancel(self) -> bool:
        """False: records cannot be taken back."""
        return False

    def _wait(self, timeout: float | None) -> None:
        if not self._runs.wait(timeout):
            raise TimeoutError("not all outcomes are known yet; the records stay in delivery")

    def result(self, timeout: float | None = None) -> list[RecordMetadata]:
        """Wait for all records and return their metadata, in the order given to `send_many`.

        `timeout` is in seconds for the whole call; TimeoutError when it passes. Raises the error of
        the first record that failed; `failed` names them all. `offsets_array` costs a hundredth.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._runs.metadata()

    get = result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for all records; the error of the first one that failed, or None."""
        self._wait(timeout)
        return self._runs.first_error()

    @property
    def failed(self) -> list[tuple[int, BaseException]]:
        """(index, error) of every record that is known not to be acknowledged. Blocks for all."""
        self._wait(None)
        return sorted(self._runs.failed(), key=lambda entry: entry[0])

    @property
    def offsets(self) -> list[int]:
        """Offset per record, -1 where it failed or is not known. Blocks until all are told."""
        return self.offsets_array().tolist()

    def offsets_array(self, timeout: float | None = None) -> array[int]:
        """Offsets as `offsets` has them, 8 bytes each: `numpy.frombuffer(a, "i8")` copies nothing.

        `timeout` is in seconds; TimeoutError when it passes.
        """
        from array import array  # here, because it registers itself with collections

        self._wait(timeout)
        return array("q", self._runs.offsets())

    @property
    def partitions(self) -> list[int]:
        """Partition per record, -1 where it was not appended. Never blocks."""
        return memoryview(self._runs.partitions()).cast("i").tolist()

    def add_done_callback(self, fn: Callable[[BatchFuture], object], /) -> None:
        """Call fn(self) once when every outcome is known; at once if it is already.

        It runs in some thread of this process. What it raises is reported and dropped.
        """
        # Where everything is known: as for any future that is done already.
        batches = self._runs.batches() or (failed_future("", KeyError()),)
        left = [len(batches)]
        guard = Lock()

        def told(_future: DeliveryFuture) -> None:
            with guard:
                left[0] -= 1
                last = left[0] == 0
            if last:
                fn(self)

        for batch in batches:
            batch.add_done_callback(told)

    def __await__(self) -> Generator[Any, None, list[RecordMetadata]]:
        for batch in self._runs.batches():
            with suppress(Exception):  # told by result() below, for all at once
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
    import concurrent.futures  # here, because it brings logging and threading

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
