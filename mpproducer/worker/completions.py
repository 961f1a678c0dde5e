"""Who reads the completion pipe when nobody waits: asyncio loops, and callbacks' watcher.

A process that neither waits, nor awaits, nor has callbacks, has no thread and no wake-up (D13).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import weakref
from collections.abc import Generator
from typing import Any

from mpproducer._core import native

_SLICE_NS = 200_000_000

_readers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, int]] = (
    weakref.WeakKeyDictionary()
)
"""Per event loop: how many awaits need the pipe with this descriptor."""

_watch_lock = threading.Lock()
_watched: dict[int, threading.Thread] = {}


def await_future(future: native.DeliveryFuture) -> Generator[Any, None, Any]:
    """Iterate as `await future` does: in any running event loop, without a thread.

    Cancelling the awaiting task leaves the record in delivery.
    """
    if future.done():
        return future.result(0)
    loop = asyncio.get_running_loop()
    yield from _asyncio_future(future, loop).__await__()
    return future.result(0)


def wrap_asyncio(
    future: native.DeliveryFuture, loop: asyncio.AbstractEventLoop | None = None
) -> asyncio.Future[Any]:
    """Return a real asyncio.Future of the record's metadata, for `asyncio.wait` and others."""
    loop = loop or asyncio.get_running_loop()
    outer: asyncio.Future[Any] = loop.create_future()

    def told(_done: asyncio.Future[None]) -> None:
        if outer.done():
            return
        error = future.exception(0)
        if error is not None:
            outer.set_exception(error)
        else:
            outer.set_result(future.result(0))

    _asyncio_future(future, loop).add_done_callback(told)
    return outer


def wrap_concurrent(future: native.DeliveryFuture) -> concurrent.futures.Future[Any]:
    """Return a real concurrent.futures.Future, for `concurrent.futures.wait` and others."""
    outer: concurrent.futures.Future[Any] = concurrent.futures.Future()
    outer.set_running_or_notify_cancel()

    def told(done: native.DeliveryFuture) -> None:
        error = done.exception(0)
        if error is not None:
            outer.set_exception(error)
        else:
            outer.set_result(done.result(0))

    future.add_done_callback(told)
    return outer


def _asyncio_future(
    future: native.DeliveryFuture, loop: asyncio.AbstractEventLoop
) -> asyncio.Future[None]:
    """Return a loop's future that is done when the record's outcome is known."""
    waiter: asyncio.Future[None] = loop.create_future()
    attachment = future._attachment
    fd = attachment.fileno() if attachment is not None else -1

    def finish() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def told(_future: native.DeliveryFuture) -> None:
        # Called by whoever drained the pipe: this loop's reader, or another thread.
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(finish)

    if attachment is None or fd < 0:
        finish()
        return waiter
    _read_pipe(loop, attachment, fd)
    waiter.add_done_callback(lambda _waiter: _leave_pipe(loop, fd))
    with _no_watcher(attachment):
        future.add_done_callback(told)
    return waiter


def _read_pipe(loop: asyncio.AbstractEventLoop, attachment: native.Attachment, fd: int) -> None:
    counts = _readers.setdefault(loop, {})
    if counts.get(fd, 0) == 0:
        loop.add_reader(fd, attachment.drain)
    counts[fd] = counts.get(fd, 0) + 1


def _leave_pipe(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    counts = _readers.get(loop, {})
    counts[fd] = counts.get(fd, 1) - 1
    if counts[fd] == 0:
        del counts[fd]
        if not loop.is_closed():
            loop.remove_reader(fd)


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
        _watched[key] = thread
        thread.start()


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
    _readers.clear()
