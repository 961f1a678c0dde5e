"""The attached worker processes: who they are, whether they live, and what they are told.

Identity is the kernel's (SO_PEERCRED), death is the pidfd's. A closed socket says nothing: a
forked grandchild may keep it open, and a stopped process looks like a dead one to every timeout.

Completions go through one pipe per worker. A pipe that is full never stops the sender: the rest
waits in a backlog with a cap. A worker that lets it overflow has its pipe closed, which is the one
thing it cannot miss, and is counted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from typing import Final

from mpproducer.sender.actions import Complete
from mpproducer.sender.counters import Counters
from mpproducer.shm import frames
from mpproducer.shm.control import Decoder

BACKLOG_BYTES: Final = 16 * 1024 * 1024  # about 350,000 batches nobody asked about
_PIPE_BYTES: Final = 256 * 1024
_F_SETPIPE_SZ: Final = 1031
_WRITE_BYTES: Final = 64 * 1024
_write: Final = os.write  # compiled code looks up what is not Final each time


class Worker:
    """One attached process and its owner id."""

    __slots__ = (
        "backlog", "backlog_most_bytes", "decoder", "fresh", "left", "owner", "pid", "pidfd",
        "pipe", "sock",
    )  # fmt: skip

    def __init__(self, owner: int, pid: int, pidfd: int, sock: socket.socket | None) -> None:
        self.owner = owner
        self.pid = pid
        self.pidfd = pidfd
        self.sock = sock
        self.decoder = Decoder()
        self.pipe = -1
        self.fresh: list[bytes] = []  # frames of this turn
        self.backlog = bytearray()  # frames the pipe did not take
        self.backlog_most_bytes = BACKLOG_BYTES
        self.left = False  # said bye: appends nothing more

    def open_pipe(self) -> int:
        """Make the completion pipe; returns the read end, which the caller passes on and closes."""
        reader, self.pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # over the user's pipe quota: 64 KiB will do
            fcntl.fcntl(self.pipe, _F_SETPIPE_SZ, _PIPE_BYTES)
        return reader

    def flush(self, counters: Counters) -> bool:
        """Write what there is as far as the pipe takes it; False: some is left for later."""
        fresh = self.fresh
        try:
            if fresh:
                if self.pipe < 0:
                    fresh.clear()
                    return True
                data = fresh[0] if len(fresh) == 1 else b"".join(fresh)
                fresh.clear()
                if self.backlog or len(data) > _WRITE_BYTES:
                    self.backlog += data
                else:
                    self._write_at_once(data)
            while self.backlog:
                done = _write(self.pipe, memoryview(self.backlog)[:_WRITE_BYTES])
                del self.backlog[:done]
        except BlockingIOError:
            if len(self.backlog) > self.backlog_most_bytes:
                counters.completion_overflow_total += 1
                self.close_pipe()
                return True
            return False
        except BrokenPipeError:
            # Its end is closed: it will be seen as dead or gone in a moment.
            self.close_pipe()
        return True

    def _write_at_once(self, data: bytes) -> None:
        """Nothing waits before these frames: what the pipe takes is not copied."""
        try:
            done = _write(self.pipe, data)
        except BlockingIOError:
            done = 0
        if done < len(data):
            self.backlog += data[done:]

    def close_pipe(self) -> None:
        """The worker reads EOF and resolves what is pending as "sender died"."""
        self.backlog.clear()
        self.fresh.clear()
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    def close_socket(self) -> None:
        """The control socket is of no more use."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def close(self) -> None:
        """Close everything that belongs to this worker."""
        self.close_pipe()
        self.close_socket()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Workers:
    """Owner id -> worker, and the completions of the current turn."""

    def __init__(self, counters: Counters, max_owners: int) -> None:
        self._counters = counters
        self._max = max_owners
        self._last = 0
        self.touched: dict[int, Worker] = {}  # to be written at the next flush
        self.by_owner: dict[int, Worker] = {}
        self.retired: dict[int, None] = {}  # ids some slot may still carry

    def free_owner(self) -> int:
        """An owner id nobody has and no slot carries; 0 when all are taken. Ids go round, so
        that one is not reused at once."""
        for step in range(1, self._max + 1):
            owner = (self._last + step - 1) % self._max + 1
            if owner not in self.by_owner and owner not in self.retired:
                self._last = owner
                return owner
        return 0

    def add(self, worker: Worker) -> None:
        """The worker is attached from now on."""
        self.by_owner[worker.owner] = worker
        self._counters.workers = len(self.by_owner)

    def remove(self, worker: Worker) -> None:
        """The worker is gone; its id rests until no slot carries it."""
        self.by_owner.pop(worker.owner, None)
        self.touched.pop(worker.owner, None)
        self.retired[worker.owner] = None
        self._counters.workers = len(self.by_owner)

    def complete(self, action: Complete) -> None:
        """Queue the frames of a batch for every participant that is still there."""
        batch = action.batch
        batch_id = batch.batch_id
        outcomes = action.outcomes
        data = b""
        left = len(outcomes)
        for outcome in outcomes:
            left -= 1
            frame = frames.pack_frame(
                outcome.kind,
                batch_id,
                outcome.first,
                outcome.count,
                outcome.base_offset,
                outcome.log_append_time_ms,
                outcome.code,
                outcome.reason,
                outcome.message,
                action.more or left > 0,
            )
            data = data + frame if data else frame
        by_owner, touched = self.by_owner, self.touched
        told = 0
        for owner in batch.participants:
            worker = by_owner.get(owner)
            if worker is not None and not worker.left:
                worker.fresh.append(data)
                touched[owner] = worker
                told += 1
        counters = self._counters
        counters.completion_frame_total += told
        counters.completion_frame_orphaned_total += len(batch.participants) - told

    def flush(self) -> list[Worker]:
        """Write the completions of this turn, one write per worker; returns those with a backlog,
        for which the caller waits until their pipe is writable."""
        counters = self._counters
        touched = list(self.touched.values())
        self.touched.clear()
        return [worker for worker in touched if not worker.flush(counters)]

    def backlog_bytes(self) -> int:
        """Completions that wait because workers do not read."""
        return sum(len(worker.backlog) for worker in self.by_owner.values())
