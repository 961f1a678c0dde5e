"""Compression off the loop: a few threads that turn the pieces of a batch into one stream.

The libraries release the GIL while they compress, so the loop goes on. A worker that filled a
batch itself has normally compressed it already; what comes here was closed by linger or flush.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

Pieces: TypeAlias = Sequence[memoryview]
DEFAULT_THREADS: Final = 2


class Done(NamedTuple):
    """A finished job: the stream, or what went wrong."""

    subject: Any
    data: bytes
    error: Exception | None


class Compressor:
    """A thread pool for one function. `submit` and `take` belong to the loop's thread.

    Threads are daemons and hold no lock of ours while they work: they cannot hold up the end.
    """

    def __init__(
        self,
        compress: Callable[[Pieces], bytes],
        wake: Callable[[], None],
        threads: int = DEFAULT_THREADS,
    ) -> None:
        self._compress = compress
        self._wake = wake
        self._jobs: queue.SimpleQueue[tuple[Any, Pieces] | None] = queue.SimpleQueue()
        self._done: deque[Done] = deque()
        self._threads: list[threading.Thread] = []
        self._wanted = threads
        self.pending = 0

    def submit(self, subject: Any, pieces: Pieces) -> None:
        """Compress `pieces`; they must stay unchanged until `take` has returned the job."""
        if len(self._threads) < self._wanted and self.pending >= len(self._threads):
            thread = threading.Thread(target=self._run, name="mpproducer-compress", daemon=True)
            self._threads.append(thread)
            thread.start()
        self.pending += 1
        self._jobs.put((subject, pieces))

    def take(self) -> list[Done]:
        """The jobs finished since the last call."""
        taken = []
        while self._done:
            taken.append(self._done.popleft())
        self.pending -= len(taken)
        return taken

    def close(self) -> None:
        """Let the threads end after their current job."""
        for _ in self._threads:
            self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            subject, pieces = job
            try:
                done = Done(subject, self._compress(pieces), None)
            except Exception as error:  # noqa: BLE001 - reported to the loop, which aborts
                done = Done(subject, b"", error)
            # The pieces are views of shared memory: let go of them before anybody is told.
            del job, pieces
            self._done.append(done)
            self._wake()
