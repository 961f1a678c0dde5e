"""What the machine and the connections measure: events of batches and requests, as they happen.

`_core.native.Metrics` is what takes them: a call of 15 to 70 ns each, straight into shared memory.
The machine knows no core and no memory, only this interface.
"""

from __future__ import annotations

from typing import Protocol


class Recorder(Protocol):
    """Takes what happens. Durations are nanoseconds; `row` is what `node` returned."""

    def drained(
        self, topic: int, records: int, wire_bytes: int, uncompressed: int, queue_ns: int, /
    ) -> None:
        """A batch went into a request; `queue_ns` < 0: not for the first time."""

    def acked(self, ns: int, /) -> None:
        """A batch is acknowledged, that long after it was opened."""

    def retried(self, topic: int, records: int, /) -> None:
        """A batch is to be sent again."""

    def failed(self, topic: int, records: int, /) -> None:
        """A batch failed."""

    def node(self, node_id: int, /) -> int:
        """The row of a broker, or -1 when there is none left."""

    def responded(self, row: int, ns: int, /) -> None:
        """A Produce request was answered, that long after it was made."""

    def sent(self, row: int, size_bytes: int, /) -> None:
        """A request was handed to the connection."""

    def received(self, row: int, size_bytes: int, responses: int, /) -> None:
        """Bytes came, and with them whole responses."""

    def throttled(self, ms: int, /) -> None:
        """A response asked the client to hold back."""


class Unmeasured:
    """Takes everything and keeps nothing: for simulations."""

    def drained(
        self, topic: int, records: int, wire_bytes: int, uncompressed: int, queue_ns: int, /
    ) -> None:
        """Nothing."""

    def acked(self, ns: int, /) -> None:
        """Nothing."""

    def retried(self, topic: int, records: int, /) -> None:
        """Nothing."""

    def failed(self, topic: int, records: int, /) -> None:
        """Nothing."""

    def node(self, node_id: int, /) -> int:
        """No row."""
        return -1

    def responded(self, row: int, ns: int, /) -> None:
        """Nothing."""

    def sent(self, row: int, size_bytes: int, /) -> None:
        """Nothing."""

    def received(self, row: int, size_bytes: int, responses: int, /) -> None:
        """Nothing."""

    def throttled(self, ms: int, /) -> None:
        """Nothing."""
