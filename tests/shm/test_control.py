"""Control messages: whole however they arrive, bounded, and refused when they make no sense."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

from mpproducer.shm import control

Pair = tuple[socket.socket, socket.socket]


def soon(seconds: float = 5.0) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


@pytest.fixture
def pair() -> Iterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX)
    left.setblocking(False)
    right.setblocking(False)
    with left, right:
        yield left, right


def test_messages_are_the_same_whole_and_byte_by_byte() -> None:
    messages = [{"type": "hello", "n": n, "text": "ü" * n} for n in range(5)]
    data = b"".join(control.encode(message) for message in messages)
    assert control.Decoder().feed(data) == messages
    decoder = control.Decoder()
    found = [message for at in range(len(data)) for message in decoder.feed(data[at : at + 1])]
    assert found == messages


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xff\xff\xff", "claims 4294967295 bytes"),
        (b"\x01\x00\x10\x00", "claims 1048577 bytes"),
        (b"\x03\x00\x00\x00l0:", "not a dict with a type"),
        (b"\x03\x00\x00\x00d0:", "not a dict with a type"),
        (b"\x0d\x00\x00\x00d1:s4:typei1:", "not a dict with a type"),
        (b"\x04\x00\x00\x00nope", "makes no sense"),
        (b"\x02\x00\x00\x00\xff\xfe", "makes no sense"),
        (b"\x00\x00\x00\x00", "makes no sense"),
    ],
)
def test_M2_what_is_no_message_is_refused_before_anything_is_allocated(
    data: bytes, message: str
) -> None:
    with pytest.raises(control.ControlError, match=message):
        control.Decoder().feed(data)


def test_M2_deep_nesting_is_no_recursion() -> None:
    body = b"l1:" * 100_000
    with pytest.raises(control.ControlError):
        control.Decoder().feed(len(body).to_bytes(4, "little") + body)


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(control.ControlError, match="exceeds 1048576"):
        control.encode({"type": "x", "text": "x" * control.MAX_MESSAGE_BYTES})


def test_descriptors_come_with_their_message_and_close_on_exec(pair: Pair) -> None:
    left, right = pair
    reader, writer = os.pipe()
    control.send_with_fds(left, {"type": "welcome"}, [reader, writer], soon())
    message, fds = control.recv_with_fds(right, soon())
    try:
        assert message == {"type": "welcome"}
        assert [os.get_inheritable(fd) for fd in fds] == [False, False]
        os.write(fds[1], b"x")
        assert os.read(reader, 1) == b"x"
    finally:
        for fd in (*fds, reader, writer):
            os.close(fd)


def test_descriptors_of_a_message_that_never_ends_are_closed(pair: Pair) -> None:
    left, right = pair
    reader, writer = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(left, [control.encode({"type": "x"})[:-1]], [reader])
    with pytest.raises(TimeoutError):
        control.recv_with_fds(right, soon(0.05))
    assert len(os.listdir("/proc/self/fd")) == before
    left.close()
    with pytest.raises(ConnectionError):
        control.recv_with_fds(right, soon())
    os.close(reader)
    os.close(writer)


def test_a_full_socket_is_left_in_time_and_the_rest_can_follow(pair: Pair) -> None:
    left, right = pair
    data = control.encode({"type": "x", "text": "x" * 900_000})
    start = time.monotonic()
    sent = control.send_bytes(left, data, soon(0.1))
    assert 0 < sent < len(data)
    assert 0.09 < time.monotonic() - start < 3
    decoder = control.Decoder()
    messages: list[control.Message] = []
    while not messages:
        try:
            messages = decoder.feed(right.recv(65536))
        except BlockingIOError:
            sent += control.send_bytes(left, data[sent:], soon(0.01))
    assert messages[0]["text"] == "x" * 900_000


def test_receive_returns_the_newest_answer_and_keeps_the_beginning_of_the_next(pair: Pair) -> None:
    left, right = pair
    decoder = control.Decoder()
    last = control.encode({"type": "status", "n": 3})
    left.sendall(b"".join(control.encode({"type": "status", "n": n}) for n in (1, 2)) + last[:5])
    assert control.receive(right, decoder, soon())["n"] == 2
    with pytest.raises(TimeoutError):
        control.receive(right, decoder, soon(0.02))
    left.sendall(last[5:])
    assert control.receive(right, decoder, soon())["n"] == 3
    left.close()
    with pytest.raises(ConnectionError):
        control.receive(right, decoder, soon())


def test_the_kernel_says_who_the_peer_is(pair: Pair) -> None:
    assert control.peer_credentials(pair[0]) == (os.getpid(), os.getuid(), os.getgid())
