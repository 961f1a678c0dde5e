"""Everything the sender waits for, in one heap: cost follows what is due, not what exists."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, TypeAlias

from mpproducer.sender.batch import NEVER_NS

Handler: TypeAlias = Callable[[Any, int], None]


class Timers:
    """One-shot timers. A timer is never cancelled: its handler checks whether it still matters.

    Ties are broken by the order of `at`, so that a run is repeatable.
    """

    __slots__ = ("_count", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Handler, Any]] = []
        self._count = 0

    def at(self, when_ns: int, handler: Handler, subject: Any = None) -> None:
        """Call handler(subject, now_ns) in the first turn at or after `when_ns`."""
        self._count += 1
        heapq.heappush(self._heap, (when_ns, self._count, handler, subject))

    def run(self, now_ns: int) -> None:
        """Call what is due. Timers set meanwhile for `now_ns` or before wait for the next run,
        so that a handler that re-arms itself cannot keep the sender here."""
        heap = self._heap
        if not heap or heap[0][0] > now_ns:
            return
        due = []
        while heap and heap[0][0] <= now_ns:
            due.append(heapq.heappop(heap))
        for _, _, handler, subject in due:
            handler(subject, now_ns)

    def next_ns(self) -> int:
        """When the earliest timer is due, or NEVER_NS."""
        return self._heap[0][0] if self._heap else NEVER_NS

    def __len__(self) -> int:
        return len(self._heap)
