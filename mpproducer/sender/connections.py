"""The sockets behind the connections of the machine: connect, send, receive, decode.

Only bytes and events here; every decision is the machine's. A connection that fails in any way
is closed first and reported once.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mpproducer._core import native
from mpproducer.net.errors import FrameTooLarge
from mpproducer.net.stream import MAX_FRAME_BYTES, Stream, TcpStream
from mpproducer.sender import actions, codec

if TYPE_CHECKING:
    from mpproducer.config import Config
    from mpproducer.sender.actions import Event
    from mpproducer.sender.counters import Counters
    from mpproducer.sender.metrics import Recorder

_IN: Final = select.EPOLLIN
_OUT: Final = select.EPOLLOUT
_BROKEN: Final = select.EPOLLERR | select.EPOLLHUP


class Connection:
    """One stream, the requests whose answers it owes, and what epoll watches it for."""

    __slots__ = ("conn", "expected", "label", "mask", "reader", "ready", "row", "stream", "writing")

    def __init__(self, conn: int, label: str, row: int, stream: Stream) -> None:
        self.conn = conn
        self.label = label
        self.row = row  # of its node's metrics
        self.stream = stream
        self.reader = native.FrameReader(MAX_FRAME_BYTES, FrameTooLarge)
        self.expected: deque[tuple[int, int, int]] = deque()  # correlation id, api key, version
        self.writing: deque[int] = deque()  # correlation ids not fully handed to the kernel
        self.ready = False
        self.mask = 0


class Connections:
    """All broker sockets of the loop."""

    def __init__(
        self,
        config: Config,
        epoll: select.epoll,
        handlers: dict[int, Callable[[int], None]],
        report: Callable[[Event], None],
        counters: Counters,
        measure: Recorder,
    ) -> None:
        self._send_buffer_bytes = config.send_buffer_bytes
        self._receive_buffer_bytes = config.receive_buffer_bytes
        self._epoll = epoll
        self._handlers = handlers
        self._report = report
        self._counters = counters
        self._measure = measure
        self._by_conn: dict[int, Connection] = {}

    def connect(self, action: actions.Connect) -> None:
        """Start connecting; the outcome is reported as Connected or ConnectFailed."""
        # Bootstrap servers have ids of our own, below 0.
        who = "bootstrap server" if action.node_id < 0 else f"broker {action.node_id}"
        label = f"{who} at {action.address}"
        try:
            stream = TcpStream(action.address, self._send_buffer_bytes, self._receive_buffer_bytes)
        except OSError as error:
            self._report(actions.ConnectFailed(action.conn, f"{label}: {error}"))
            return
        connection = Connection(action.conn, label, self._measure.node(action.node_id), stream)
        self._by_conn[action.conn] = connection
        self._counters.connection_count = len(self._by_conn)
        fd = stream.fileno()
        connection.mask = _IN | _OUT
        self._epoll.register(fd, connection.mask)
        self._handlers[fd] = lambda mask: self._on_io(connection, mask)

    def close(self, conn: int) -> None:
        """Close at once, without a report."""
        connection = self._by_conn.pop(conn, None)
        if connection is None:
            return
        fd = connection.stream.fileno()
        del self._handlers[fd]
        self._epoll.unregister(fd)
        connection.stream.close()
        self._counters.connection_count = len(self._by_conn)

    def close_all(self) -> None:
        """Close everything, without reports."""
        for conn in list(self._by_conn):
            self.close(conn)

    def send(
        self,
        conn: int,
        correlation_id: int,
        api_key: int,
        version: int,
        request: native.Send,
        *,
        answered: bool = True,
    ) -> None:
        """Write a request; reports Wrote once the kernel has all of it."""
        connection = self._by_conn.get(conn)
        if connection is None:
            return  # closed in this turn; the machine knows
        if answered:
            connection.expected.append((correlation_id, api_key, version))
        size_bytes = request.size_bytes
        self._counters.outgoing_byte_total += size_bytes
        self._measure.sent(connection.row, size_bytes)
        try:
            whole = connection.stream.write(request)
        except OSError as error:
            self._fail(connection, error)
            return
        if whole:
            self._report(actions.Wrote(conn, correlation_id))
        else:
            connection.writing.append(correlation_id)
            self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        mask = _IN | _OUT if connection.stream.wants_write else _IN
        if mask != connection.mask:
            connection.mask = mask
            self._epoll.modify(connection.stream.fileno(), mask)

    def _on_io(self, connection: Connection, mask: int) -> None:
        try:
            if not connection.ready:
                if not connection.stream.finish_connect():
                    return
                connection.ready = True
                self._watch(connection)
                self._report(actions.Connected(connection.conn))
                return
            if mask & _OUT:
                self._flush(connection)
            if mask & (_IN | _BROKEN):
                self._read(connection)
        except (OSError, codec.DecodeError) as error:
            self._fail(connection, error)

    def _flush(self, connection: Connection) -> None:
        if not connection.stream.flush():
            return
        self._watch(connection)
        while connection.writing:
            self._report(actions.Wrote(connection.conn, connection.writing.popleft()))

    def _read(self, connection: Connection) -> None:
        """Receive once: epoll is level-triggered, and no broker keeps the loop to itself."""
        count, received = connection.stream.receive(connection.reader)
        self._counters.incoming_byte_total += count
        self._measure.received(connection.row, count, len(received))
        for frame in received:
            self._take(connection, frame)
            if connection.conn not in self._by_conn:
                return  # closed while a response was handled
        refused = connection.reader.refused
        if refused is not None:
            raise refused

    def _take(self, connection: Connection, frame: bytes) -> None:
        if not connection.expected:
            raise codec.DecodeError("a response nobody asked for")
        correlation_id, api_key, version = connection.expected.popleft()
        if connection.writing and correlation_id in connection.writing:
            # Taken for an answer, it would give back memory that is still to be sent from.
            raise codec.DecodeError("a response to a request that is not sent whole yet")
        message: Any = codec.decode_response(frame, correlation_id, api_key, version)
        self._report(actions.Response(connection.conn, correlation_id, message))

    def _fail(self, connection: Connection, error: Exception) -> None:
        if connection.conn not in self._by_conn:
            return
        why = f"{connection.label}: {error}"
        self.close(connection.conn)
        if connection.ready:
            self._report(actions.Closed(connection.conn, why))
        else:
            self._report(actions.ConnectFailed(connection.conn, why))
