"""A non-blocking stream over real sockets: nothing is copied, lost, repeated or reordered."""

from __future__ import annotations

import random
import select
import socket
from collections.abc import Iterator

import pytest

from mpproducer._core.native import FrameReader, Send
from mpproducer.net.errors import FrameTooLarge, StreamClosed
from mpproducer.net.stream import Address, TcpStream
from tests.conftest import received

WAIT_S = 10.0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(WAIT_S)
        yield made


def _address(listener: socket.socket) -> Address:
    return Address(socket.AF_INET, listener.getsockname())


def _writable(stream: TcpStream) -> None:
    assert select.select([], [stream.fileno()], [], WAIT_S)[1]


def _pair(listener: socket.socket, send_buffer: int = -1) -> tuple[TcpStream, socket.socket]:
    stream = TcpStream(_address(listener), send_buffer, -1)
    peer, _ = listener.accept()
    peer.settimeout(WAIT_S)
    _writable(stream)
    assert stream.finish_connect()
    return stream, peer


def test_connecting_ends_with_writability(listener: socket.socket) -> None:
    stream = TcpStream(_address(listener), -1, -1)
    assert stream.wants_write
    _writable(stream)
    assert stream.finish_connect()
    assert not stream.wants_write
    stream.close()
    assert stream.fileno() == -1


def test_a_refused_connection_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = _address(closed)
    with pytest.raises(ConnectionRefusedError):
        stream = TcpStream(address, -1, -1)
        try:
            select.select([], [stream.fileno()], [], WAIT_S)
            stream.finish_connect()
        finally:
            stream.close()


def test_an_impossible_address_raises_and_leaves_no_descriptor() -> None:
    with pytest.raises(OSError):
        TcpStream(Address(socket.AF_INET6, ("127.0.0.1", 1, 0, 0)), -1, -1)


def test_buffers_arrive_in_order_and_empty_ones_do_no_harm(listener: socket.socket) -> None:
    stream, peer = _pair(listener)
    with peer:
        assert stream.write(
            Send([b"one", memoryview(b""), bytearray(b"two"), memoryview(b"three")])
        )
        assert received(peer, 11) == b"onetwothree"
    stream.close()


def test_more_buffers_than_one_call_takes_arrive_all(listener: socket.socket) -> None:
    stream, peer = _pair(listener)
    with peer:
        buffers = [str(number).zfill(4).encode() for number in range(3_000)]
        assert stream.write(Send(buffers))
        assert received(peer, 12_000) == b"".join(buffers)
    stream.close()


def test_fault_N08_what_the_kernel_does_not_take_follows_in_order_with_flush(
    listener: socket.socket, rng: random.Random
) -> None:
    stream, peer = _pair(listener)
    first = [rng.randbytes(rng.randrange(600_000)) for _ in range(60)]
    second = [b"second", b"", rng.randbytes(100_000)]
    with peer:
        assert not stream.write(Send(first))
        assert stream.wants_write
        assert not stream.write(Send(second)), "nothing passes what was left"
        expected = b"".join([*first, *second])
        got = bytearray()
        while len(got) < len(expected):
            got += peer.recv(1 << 20)
            done = stream.flush()
        assert done
        assert not stream.wants_write
        assert bytes(got) == expected
    stream.close()


def test_fault_N06_memory_is_lent_until_flush_or_close(listener: socket.socket) -> None:
    stream, peer = _pair(listener)
    lent = bytearray(32_000_000)
    view = memoryview(lent)
    with peer:
        assert not stream.write(Send([view]))
        view.release()
        with pytest.raises(BufferError):
            lent.extend(b"x")
        stream.close()
        lent.extend(b"x")


def test_nothing_to_read_is_zero_and_the_end_is_an_error(listener: socket.socket) -> None:
    stream, peer = _pair(listener)
    reader = FrameReader(1_000, FrameTooLarge)
    assert stream.receive(reader) == (0, [])
    peer.sendall(b"\0\0\0\3abc\0")
    assert select.select([stream.fileno()], [], [], WAIT_S)[0]
    assert stream.receive(reader) == (8, [b"abc"])
    peer.close()
    assert select.select([stream.fileno()], [], [], WAIT_S)[0]
    with pytest.raises(StreamClosed, match="the broker closed"):
        stream.receive(reader)
    stream.close()


def test_a_reset_peer_is_an_error_for_writes(listener: socket.socket) -> None:
    stream, peer = _pair(listener)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    with pytest.raises(OSError):
        for _ in range(1_000):
            stream.write(Send([b"x" * 1_000]))
            select.select([stream.fileno()], [], [], 0.01)
    stream.close()


def test_C3_buffer_sizes_are_set_and_minus_one_leaves_them_to_the_system(
    listener: socket.socket,
) -> None:
    def size(stream: TcpStream) -> int:
        return stream._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    small, peer = _pair(listener, send_buffer=8_192)
    peer.close()
    free, peer = _pair(listener)
    peer.close()
    assert size(small) == 2 * 8_192, "Linux doubles it for its own use"
    assert size(free) > size(small)
    small.close()
    free.close()


def test_small_requests_are_not_held_back(listener: socket.socket) -> None:
    stream, peer = _pair(listener)
    peer.close()
    assert stream._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert stream._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    stream.close()
