"""Host names to addresses, off the loop: getaddrinfo may take as long as it likes."""

from __future__ import annotations

import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from mpproducer.net.stream import Address

Lookup: TypeAlias = Callable[[str, int], list[Address]]


class Answer(NamedTuple):
    """The result of one lookup: addresses, or why there are none."""

    token: Any
    host: str
    addresses: tuple[Address, ...]
    why: str


def lookup(host: str, port: int) -> list[Address]:
    """Every IPv4 and IPv6 address of a host, in the system's order. Raises OSError."""
    found: dict[Address, None] = {}
    for family, _, _, _, sockaddr in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    ):
        found[Address(int(family), tuple(sockaddr))] = None
    return list(found)


class Resolver:
    """One background thread for lookups. `submit` and `take` belong to the loop's thread.

    The thread is a daemon: a lookup that hangs cannot hold the process up at its end.
    """

    def __init__(self, wake: Callable[[], None], look_up: Lookup = lookup) -> None:
        self._wake = wake
        self._lookup = look_up
        self._asked: queue.SimpleQueue[tuple[Any, str, int] | None] = queue.SimpleQueue()
        self._answers: deque[Answer] = deque()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # the descriptor that `wake` writes to may be given up
        self._closed = False

    def submit(self, token: Any, host: str, port: int) -> None:
        """Look a host up; the answer carries `token`. Literal addresses are answered at once."""
        literal = _literal(host, port)
        if literal is not None:
            self._answers.append(Answer(token, host, (literal,), ""))
            self._wake()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mpproducer-dns", daemon=True)
            self._thread.start()
        self._asked.put((token, host, port))

    def take(self) -> list[Answer]:
        """The answers since the last call."""
        taken = []
        while self._answers:
            taken.append(self._answers.popleft())
        return taken

    def close(self) -> None:
        """Let the thread end after its current lookup; it wakes nobody any more."""
        with self._lock:
            self._closed = True
        self._asked.put(None)

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            token, host, port = asked
            try:
                addresses = tuple(self._lookup(host, port))
                why = "" if addresses else f"{host} has no address"
            except (OSError, UnicodeError) as error:
                addresses, why = (), f"cannot resolve {host}: {error}"
            self._answers.append(Answer(token, host, addresses, why))
            with self._lock:
                if not self._closed:
                    self._wake()


def _literal(host: str, port: int) -> Address | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        sockaddr = (host, port) if family == socket.AF_INET else (host, port, 0, 0)
        return Address(int(family), sockaddr)
    return None
