"""`await` on a future: an asyncio loop reads the completion pipe itself, without a thread.

Imported with the first `await`: a worker without asyncio does not pay for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import Generator
from typing import Any

from mpproducer._core import native
from mpproducer.worker.completions import no_watcher


class _PipeReader:
    """An event loop's use of one attachment's completion pipe, while something awaits it.

    It watches a duplicate of the descriptor: the attachment may be closed, and its number be given
    to another pipe, before the last awaiting task has run.
    """

    def __init__(self, attachment: native.Attachment) -> None:
        self.attachment = attachment  # also keeps its id() from being used again
        self.fd = -1  # for __del__, where the next line fails
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
    if attachment is None:
        waiter.set_result(None)
        return waiter
    try:
        reader = _read_pipe(loop, attachment)
    except OSError:
        if attachment.fileno() >= 0:
            raise
        waiter.set_result(None)  # another thread detached just now, which decides every future
        return waiter

    def finish() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def told(_future: native.DeliveryFuture) -> None:
        # Called by whoever drained the pipe: this loop's reader, or another thread.
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(finish)

    waiter.add_done_callback(lambda _waiter: _leave_pipe(loop, reader))
    with no_watcher(attachment):
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


def forget() -> None:
    """In a forked child: the parent's event loops do not run here."""
    for readers in list(_readers.values()):
        for reader in readers.values():
            reader.close()
    _readers.clear()


os.register_at_fork(after_in_child=forget)
