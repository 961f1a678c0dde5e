"""The sockets of the loop against a peer that does what a test says."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mpproducer._core import native
from mpproducer.config import Config
from mpproducer.net.stream import Address
from mpproducer.sender import actions as a
from mpproducer.sender.connections import Connections
from mpproducer.sender.counters import Counters
from mpproducer.wire import framing

WAIT_S = 10.0
ID_ANSWER = {"throttle_time_ms": 0, "error_code": 0, "producer_id": 5, "producer_epoch": 0}


class Bench:
    """Connections, the events they reported, and a listening peer."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.counters = Counters()
        self.metrics = native.Metrics(1)
        self.epoll = select.epoll()
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.on_event: Callable[[Any], None] = lambda _event: None
        self.connections = Connections(
            Config.from_user(None, {"bootstrap_servers": "x:1"}),
            self.epoll,
            self.handlers,
            self._report,
            self.counters,
            self.metrics,
        )
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(WAIT_S)
        self.peer: socket.socket | None = None

    def _report(self, event: Any) -> None:
        self.events.append(event)
        self.on_event(event)

    def until(self, what: Callable[[], bool]) -> None:
        """Turn until something is true."""
        end = time.monotonic() + WAIT_S
        while not what():
            assert time.monotonic() < end, self.events
            for fd, mask in self.epoll.poll(0.05):
                if fd in self.handlers:
                    self.handlers[fd](mask)

    def connect(self, conn: int = 1) -> socket.socket:
        """A connection that is up; returns the peer's end."""
        address = Address(socket.AF_INET, self.listener.getsockname())
        self.connections.connect(a.Connect(conn, 0, "h", address))
        self.peer, _ = self.listener.accept()
        self.peer.settimeout(WAIT_S)
        self.until(lambda: a.Connected(conn) in self.events)
        self.events.clear()
        return self.peer

    def send(self, correlation_id: int, conn: int = 1, size: int = 10, **more: Any) -> None:
        """Send bytes as an InitProducerId request."""
        data = b"r" * size
        self.connections.send(conn, correlation_id, 22, 4, native.Send([data]), **more)

    def close(self) -> None:
        self.connections.close_all()
        assert not self.handlers
        self.epoll.close()
        self.listener.close()
        if self.peer is not None:
            self.peer.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def _answer(correlation_id: int) -> bytes:
    return framing.encode_response(framing.api_of(22), 4, correlation_id, ID_ANSWER)


def test_a_request_is_written_and_its_response_decoded(bench: Bench) -> None:
    peer = bench.connect()
    assert bench.counters.connection_count == 1
    bench.send(7)
    assert bench.events == [a.Wrote(1, 7)]
    assert peer.recv(100) == b"r" * 10
    answer = _answer(7)
    peer.sendall(answer[:9])
    peer.sendall(answer[9:])
    bench.until(lambda: len(bench.events) == 2)
    response = bench.events[1]
    assert (response.conn, response.correlation_id) == (1, 7)
    assert response.message["producer_id"] == 5
    assert bench.counters.incoming_byte_total == len(answer)
    assert bench.counters.outgoing_byte_total == 10
    ((node, requests, responses, sent, received, *_rest),) = bench.metrics.read()[0][3]
    assert (node, requests, responses) == (0, 1, 1)
    assert (sent, received) == (10, len(answer))


def test_responses_come_in_the_order_of_their_requests(bench: Bench) -> None:
    peer = bench.connect()
    for correlation_id in (1, 2, 3):
        bench.send(correlation_id)
    peer.sendall(b"".join(_answer(correlation_id) for correlation_id in (1, 2, 3)))
    bench.until(lambda: len(bench.events) == 6)
    assert [event.correlation_id for event in bench.events[3:]] == [1, 2, 3]


def test_a_response_counts_although_nonsense_follows_it_in_the_same_read(bench: Bench) -> None:
    peer = bench.connect()
    bench.send(1)
    bench.send(2)
    peer.sendall(_answer(1) + b"\x7f\xff\xff\xff")
    bench.until(lambda: len(bench.events) == 4)
    response, closed = bench.events[2:]
    assert (response.conn, response.correlation_id) == (1, 1)
    assert isinstance(closed, a.Closed)
    assert "bytes was announced" in closed.why


def test_N6_a_request_counts_as_written_with_its_last_byte(bench: Bench) -> None:
    peer = bench.connect()
    size = 32 << 20
    bench.send(1, size=size)
    assert bench.events == []
    got = 0
    while got < size:
        bench.until(lambda: bool(select.select([peer], [], [], 0)[0]))
        got += len(peer.recv(1 << 20))
    bench.until(lambda: bool(bench.events))
    assert bench.events == [a.Wrote(1, 1)]


def test_a_request_without_answer_expects_none(bench: Bench) -> None:
    peer = bench.connect()
    bench.send(1, answered=False)
    bench.send(2)
    peer.sendall(_answer(2))
    bench.until(lambda: len(bench.events) == 3)
    assert bench.events[2].correlation_id == 2


def test_fault_N03_a_refused_connection_is_reported_once_with_its_address(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = Address(socket.AF_INET, gone.getsockname())
    bench.connections.connect(a.Connect(3, 5, "h", address))
    bench.until(lambda: bool(bench.events))
    (event,) = bench.events
    assert isinstance(event, a.ConnectFailed)
    assert event.conn == 3
    assert str(address) in event.why
    assert not bench.handlers


def test_a_connection_that_cannot_even_start_is_reported_too(bench: Bench) -> None:
    bench.connections.connect(
        a.Connect(3, 5, "h", Address(socket.AF_INET6, ("127.0.0.1", 1, 0, 0)))
    )
    assert isinstance(bench.events[0], a.ConnectFailed)


@pytest.mark.parametrize("early", [True, False])
def test_fault_N02_the_end_of_a_stream_is_reported_once(bench: Bench, early: bool) -> None:
    peer = bench.connect()
    bench.send(1)
    if early:
        peer.sendall(_answer(1)[:5])
    peer.close()
    bench.until(lambda: len(bench.events) >= 2)
    bench.epoll.poll(0)
    (closed,) = bench.events[1:]
    assert isinstance(closed, a.Closed)
    assert "broker 0 at" in closed.why
    assert not bench.handlers
    bench.send(2)
    assert len(bench.events) == 2, "nobody is told about a request of a closed connection"


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        (3).to_bytes(4, "big") + b"abc",
        _answer(9),
        _answer(1)[:4] + b"\0\0\0\1" + b"\xff" * (len(_answer(1)) - 8),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
def test_fault_N10_a_peer_that_breaks_the_protocol_is_closed(bench: Bench, data: bytes) -> None:
    peer = bench.connect()
    bench.send(1)
    peer.sendall(data)
    bench.until(lambda: len(bench.events) >= 2)
    assert isinstance(bench.events[1], a.Closed)
    assert peer.recv(100) == b"r" * 10
    assert peer.recv(100) == b"", "closed on our side too"


def test_a_response_to_half_a_request_closes_the_connection(bench: Bench) -> None:
    peer = bench.connect()
    lent = bytearray(32 << 20)
    bench.connections.send(1, 1, 22, 4, native.Send([lent]))
    assert bench.events == [], "the peer reads nothing"
    peer.sendall(_answer(1))
    bench.until(lambda: bool(bench.events))
    (closed,) = bench.events
    assert isinstance(closed, a.Closed), "an answer frees the memory that is still sent from"
    assert "not sent whole" in closed.why
    lent.append(1)  # raises BufferError while a view of it is alive


def test_a_response_nobody_asked_for_closes_the_connection(bench: Bench) -> None:
    bench.connect().sendall(_answer(1))
    bench.until(lambda: bool(bench.events))
    assert isinstance(bench.events[0], a.Closed)
    assert "nobody asked" in bench.events[0].why


def test_nothing_is_reported_of_a_connection_closed_while_a_response_was_handled(
    bench: Bench,
) -> None:
    peer = bench.connect()
    bench.send(1)
    bench.send(2)
    bench.on_event = lambda event: (
        bench.connections.close(1) if isinstance(event, a.Response) else None
    )
    peer.sendall(_answer(1) + _answer(2))
    bench.until(lambda: len(bench.events) >= 3)
    bench.epoll.poll(0.05)
    assert [type(event) for event in bench.events] == [a.Wrote, a.Wrote, a.Response]


def test_fault_N01_a_reset_while_writing_is_reported_and_lends_no_memory_any_more(
    bench: Bench,
) -> None:
    peer = bench.connect()
    lent = bytearray(32 << 20)
    view = memoryview(lent)
    bench.connections.send(1, 1, 22, 4, native.Send([view]))
    view.release()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    bench.until(lambda: bool(bench.events))
    assert isinstance(bench.events[0], a.Closed)
    lent.append(1)  # raises BufferError while a view of it is alive
