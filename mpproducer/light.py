"""What a worker uses of the standard library, without the modules that cost more than the use.

A worker is any process of any program, often hundreds of them per host, and what is imported here
is imported in each. Over a bare interpreter `typing` is 1.8 MiB and 15 ms, `socket` 1.2 MiB,
`threading` 0.9 MiB, `contextlib` 0.8 MiB, `logging` 2.3 MiB: most of it for features that a worker
does not use, on its way to a first acknowledgement, or ever. The sender and the command line are
few, and import what they like. tests/api/test_imports.py pins what a worker loads.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take a variable of this name for True, as typing's
if TYPE_CHECKING:
    import logging
    from threading import Lock, RLock
    from threading import local as thread_local
    from types import TracebackType
    from weakref import ref
else:
    # Where `threading` and `weakref` have them from.
    from _thread import RLock
    from _thread import _local as thread_local
    from _thread import allocate_lock as Lock
    from _weakref import ref

__all__ = ["Lock", "RLock", "logger", "ref", "suppress", "thread_local"]


class suppress:
    """Leave out what follows an error of these kinds."""

    __slots__ = ("_kinds",)

    def __init__(self, *kinds: type[BaseException]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> bool:
        return kind is not None and issubclass(kind, self._kinds)


def logger(name: str) -> logging.Logger:
    """Import logging when there is something to say."""
    import logging

    return logging.getLogger(name)
