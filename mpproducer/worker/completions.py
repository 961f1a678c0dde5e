"""Who reads the completion pipe when nobody waits: asyncio loops, and callbacks' watcher.

A process that neither waits, nor awaits, nor has callbacks, has no thread and no wake-up (D13).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Generator
from typing import Any

from mpproducer._core import native

_SLICE_NS = 200_000_000

_watch_lock = threading.Lock()
_watched: dict[int, threading.Thread] = {}


class _PipeReader:
    """An event loop's use of one attachment's completion pipe, while something awaits it.

    It watches a duplicate of the descriptor: the attachment may be closed, and its number be given
    to another pipe, before the last awaiting task has run.
    """

    def __init__(self, attachment: native.Attachment) -> None:
        self.attachment = attachment  # also keeps its id() from being used again
        self.fd = os.dup(attachment.fileno())
        self.waiting = 0

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()  # its loop was closed, or never ran again


_readers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, _PipeReader]] = (
    weakref.WeakKeyDictionary()
)


def await_future(future: native.DeliveryFuture) -> Generator[Any, None, Any]:
    """Iterate as `await future` does: in any running event loop, without a thread.

    Cancelling the awaiting task leaves the record in delivery.
    """
    if not future.done():
        yield from _asyncio_future(future, asyncio.get_running_loop()).__await__()
    return future.result(0)


def _asyncio_future(
    future: native.DeliveryFuture, loop: asyncio.AbstractEventLoop
) -> asyncio.Future[None]:
    """Return a loop's future that is done when the record's outcome is known."""
    waiter: asyncio.Future[None] = loop.create_future()
    attachment = future._attachment
    if attachment is None or attachment.fileno() < 0:
        waiter.set_result(None)
        return waiter

    def finish() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def told(_future: native.DeliveryFuture) -> None:
        # Called by whoever drained the pipe: this loop's reader, or another thread.
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(finish)

    reader = _read_pipe(loop, attachment)
    waiter.add_done_callback(lambda _waiter: _leave_pipe(loop, reader))
    with _no_watcher(attachment):
        future.add_done_callback(told)
    return waiter


def _read_pipe(loop: asyncio.AbstractEventLoop, attachment: native.Attachment) -> _PipeReader:
    readers = _readers.setdefault(loop, {})
    reader = readers.get(id(attachment))
    if reader is None:
        reader = readers[id(attachment)] = _PipeReader(attachment)
        loop.add_reader(reader.fd, attachment.drain)
    reader.waiting += 1
    return reader


def _leave_pipe(loop: asyncio.AbstractEventLoop, reader: _PipeReader) -> None:
    reader.waiting -= 1
    if reader.waiting:
        return
    _readers.get(loop, {}).pop(id(reader.attachment), None)
    if not loop.is_closed():
        loop.remove_reader(reader.fd)
    reader.close()


_unwatched = threading.local()


@contextlib.contextmanager
def _no_watcher(attachment: native.Attachment) -> Generator[None, None, None]:
    """Callbacks added inside have a reader already: the event loop."""
    _unwatched.attachment = attachment
    try:
        yield
    finally:
        _unwatched.attachment = None


def watch(attachment: native.Attachment) -> None:
    """Make sure that somebody drains the pipe while done-callbacks wait (called by the core)."""
    if getattr(_unwatched, "attachment", None) is attachment:
        return
    with _watch_lock:
        key = id(attachment)
        if key in _watched:
            return
        thread = threading.Thread(
            target=_drain_while_callbacks, args=(attachment,), name="mpproducer-callbacks"
        )
        thread.daemon = True
        # At the interpreter's end no thread starts any more; the flush at exit runs the callbacks.
        with contextlib.suppress(RuntimeError):
            thread.start()
            _watched[key] = thread


def _drain_while_callbacks(attachment: native.Attachment) -> None:
    """Drain until no callback waits, then end: an idle process has no thread.

    1. The last callback has run; this thread sees none waiting.
    2. Another thread adds one, and finds this thread still in the table: it starts none.
    3. So the count is read again under the lock under which the entry is removed.
    """
    while True:
        with contextlib.suppress(ValueError):  # closed under us: its callbacks have run
            attachment.wait(_SLICE_NS)
        with _watch_lock:
            if attachment.callbacks == 0 or attachment.closed:
                del _watched[id(attachment)]
                return


def forget() -> None:
    """In a forked child: threads and event loops of the parent do not exist here."""
    global _watch_lock
    _watch_lock = threading.Lock()
    _watched.clear()
    for readers in list(_readers.values()):
        for reader in readers.values():
            reader.close()
    _readers.clear()
