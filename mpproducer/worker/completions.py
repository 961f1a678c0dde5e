"""Who reads the completion pipe while done-callbacks wait, and nobody else does.

A process that neither waits, nor awaits, nor has callbacks, has no thread and no wake-up (D13).
"""

from __future__ import annotations

from mpproducer._core import native
from mpproducer.light import RLock, suppress, thread_local

_SLICE_NS = 200_000_000

_watch_lock = RLock()
"""Reentrant, for signal handlers that send and add a callback."""
_watched: dict[int, object] = {}
"""Who is being drained, by the attachment's id()."""
_unwatched = thread_local()


class no_watcher:
    """Callbacks added inside have a reader already: the event loop."""

    __slots__ = ("_attachment",)

    def __init__(self, attachment: native.Attachment) -> None:
        self._attachment = attachment

    def __enter__(self) -> None:
        _unwatched.attachment = self._attachment

    def __exit__(self, *_error: object) -> None:
        _unwatched.attachment = None


def watch(attachment: native.Attachment) -> None:
    """Make sure that somebody drains the pipe while done-callbacks wait (called by the core)."""
    if getattr(_unwatched, "attachment", None) is attachment:
        return
    key = id(attachment)
    mine = object()
    with _watch_lock:
        # In one step, and first: a signal handler that adds a callback may come at any later one.
        if _watched.setdefault(key, mine) is not mine:
            return
        import threading

        thread = threading.Thread(
            target=_drain_while_callbacks,
            args=(attachment,),
            name="mpproducer-callbacks",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError:
            # At the interpreter's end no thread starts any more; the flush at exit runs the
            # callbacks.
            del _watched[key]


def _drain_while_callbacks(attachment: native.Attachment) -> None:
    """Drain until no callback waits, then end: an idle process has no thread.

    1. The last callback has run; this thread sees none waiting.
    2. Another thread adds one, and finds this thread still in the table: it starts none.
    3. So the count is read again under the lock under which the entry is removed.
    """
    while True:
        with suppress(ValueError):  # closed under us: its callbacks have run
            attachment.wait(_SLICE_NS)
        with _watch_lock:
            if attachment.callbacks == 0 or attachment.closed:
                del _watched[id(attachment)]
                return


def forget() -> None:
    """In a forked child: the parent's threads do not exist here."""
    global _watch_lock
    _watch_lock = RLock()
    _watched.clear()
