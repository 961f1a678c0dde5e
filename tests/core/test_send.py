"""Bytes on their way to a socket: in order, once, from where it stopped, and the memory they are in
is lent until then."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from mpproducer._core import native
from mpproducer._core.native import Send
from tests.conftest import grown_bytes, received

Pair = tuple[socket.socket, socket.socket]
WAIT_S = 10.0


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, peer = socket.socketpair()
    peer.settimeout(WAIT_S)
    with ours, peer:
        yield ours, peer


def _request(rng: random.Random) -> Send:
    """Three batches of several pieces, empty ones too."""
    memory = rng.randbytes(2_000)
    spans = [(0, 7), (7, 0), (100, 60), (5, 1)], [(1_000, 33)], [(3, 2), (9, 0)]
    rows: list[Any] = [
        (topic, place, native.Body(memory, 1, 0, 0, spans=span), 1, 0, place)
        for place, (topic, span) in enumerate(zip("aba", spans, strict=True))
    ]
    return native.produce_request(9, 1, "c", -1, 1, None, rows)


def test_a_send_goes_on_wherever_it_stopped(pair: Pair, rng: random.Random) -> None:
    ours, peer = pair
    size = _request(rng).size_bytes
    assert size > 250
    for first in range(size + 1):
        for request in (
            _request(rng),
            Send([b"", rng.randbytes(3), b"", bytearray(size - 3), b""]),
        ):
            data = request.peek(size)
            assert len(data) == request.size_bytes == size
            request.advance(first)
            assert request.left_bytes == size - first
            assert request.peek(size) == data[first:]
            second = rng.randrange(size - first + 1)
            assert request.peek(second) == data[first : first + second]
            request.advance(second)
            assert request.write_to(ours.fileno())
            assert request.left_bytes == 0
            assert received(peer, size - first - second) == data[first + second :]


def test_fault_N08_a_full_socket_is_not_waited_for_and_then_gone_on_with(
    pair: Pair, rng: random.Random
) -> None:
    ours, peer = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # as little as the system has
    buffers = [rng.randbytes(rng.choice((0, 1, 100, 3_000, 40_000))) for _ in range(300)]
    data = b"".join(buffers)
    request = Send(buffers)
    refused = 0
    got = bytearray()
    while not request.write_to(ours.fileno()):
        refused += 1
        assert data[-request.left_bytes :] == request.peek(len(data))
        got += peer.recv(rng.randrange(1, 30_000))
    assert refused > 50
    assert bytes(got) + received(peer, len(data) - len(got)) == data


def test_more_buffers_than_a_call_takes_go_out_in_order(pair: Pair) -> None:
    ours, peer = pair
    buffers = [str(number).zfill(4).encode() for number in range(3_000)]
    assert Send(buffers).write_to(ours.fileno())
    assert received(peer, 12_000) == b"".join(buffers)


def test_nothing_to_send_is_sent_at_once() -> None:
    for request in (Send([]), Send([b"", b""])):
        assert request.write_to(-1)
        assert request.peek(10) == b""


@pytest.mark.parametrize("batch", [True, False])
def test_fault_N06_memory_is_lent_until_the_last_byte_is_handed_over(
    pair: Pair, batch: bool
) -> None:
    ours, peer = pair
    lent = bytearray(4_000_000)
    if batch:
        rows: list[Any] = [("t", 0, native.Body(lent, 1, 0, 0), 1, 0, 0)]
        request = native.produce_request(9, 1, "c", -1, 1, None, rows)
        del rows
    else:
        request = Send([lent])
    turns = 0
    while not request.write_to(ours.fileno()):
        turns += 1
        with pytest.raises(BufferError):
            lent.append(1)
        peer.recv(1 << 20)
    assert turns > 1
    assert request.left_bytes == 0
    lent.append(1)


def test_memory_of_a_send_that_is_dropped_is_given_back() -> None:
    lent = bytearray(100)
    request = Send([memoryview(lent)[10:20]])
    with pytest.raises(BufferError):
        lent.append(1)
    del request
    lent.append(1)


def test_errors_of_a_socket_are_those_of_the_system(pair: Pair) -> None:
    ours, peer = pair
    peer.close()
    request = Send([b"x"])
    with pytest.raises(BrokenPipeError):
        request.write_to(ours.fileno())
    assert request.left_bytes == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        request.write_to(-1)
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="non-socket"):
        request.write_to(writer)
    os.close(reader)
    os.close(writer)


def test_what_cannot_be_sent_is_refused_and_nothing_is_held() -> None:
    lent = bytearray(100)
    for buffers in ([lent, "text"], [lent, memoryview(bytes(10))[::2]], [lent, None], 7):
        with pytest.raises((TypeError, BufferError)):
            Send(buffers)  # type: ignore[arg-type]
    lent.append(1)
    request = Send([b"abc"])
    for count in (-1, 4, 1 << 40):
        with pytest.raises(ValueError, match="3 bytes are left"):
            request.advance(count)
    assert request.peek(-5) == b""
    assert request.peek(1 << 40) == b"abc"


def test_nothing_leaks_from_sends(pair: Pair, rng: random.Random) -> None:
    ours, peer = pair

    def some() -> None:
        for _ in range(100):
            for request in (_request(rng), Send([b"a" * 100, bytearray(50)])):
                request.advance(rng.randrange(request.size_bytes))
                assert request.write_to(ours.fileno())
                _request(rng).advance(10)
            peer.recv(1 << 16)

    assert grown_bytes(some, 20) < 30_000
