"""Length-prefixed frames out of any division of the stream: what the reference in plain Python
finds."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from mpproducer._core import native
from mpproducer.net.errors import FrameTooLarge
from mpproducer.net.stream import MAX_FRAME_BYTES
from tests.conftest import grown_bytes
from tests.core import frames_reference

START_BYTES = 16 * 1024
KEEP_BYTES = 1 << 20


def _reader(max_frame_bytes: int = MAX_FRAME_BYTES) -> native.FrameReader:
    return native.FrameReader(max_frame_bytes, FrameTooLarge)


class Pieces:
    """A stream that gives its bytes in pieces of the given sizes, then whole."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.data = data
        self.at = 0
        self.sizes = iter(sizes)

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def read_into(self, view: memoryview) -> int:
        count = min(next(self.sizes, self.left), self.left, len(view))
        view[:count] = self.data[self.at : self.at + count]
        self.at += count
        return count


def _frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def _read_all(reader: native.FrameReader, pieces: Pieces) -> list[bytes]:
    frames: list[bytes] = []
    while pieces.left:
        count, more = reader.read(pieces.read_into)
        assert count > 0, "the buffer always has room"
        frames += more
    return frames


def test_fault_N07_the_same_frames_whatever_pieces_the_stream_comes_in(
    rng: random.Random,
) -> None:
    payloads = [rng.randbytes(rng.choice((0, 1, 3, 100, 2_000, 20_000))) for _ in range(30)]
    data = b"".join(map(_frame, payloads))
    for largest in (1, 7, 1_000, 1 << 20):
        sizes = [rng.randrange(largest) + 1 for _ in range(len(data) // largest * 2 + 10)]
        assert _read_all(_reader(), Pieces(data, sizes)) == payloads


def test_a_frame_larger_than_the_buffer_is_read_whole_and_the_memory_given_back() -> None:
    reader = _reader()
    large = bytes(range(256)) * 20_000
    assert _read_all(reader, Pieces(_frame(large) + _frame(b"x"), [])) == [large, b"x"]
    assert _read_all(reader, Pieces(_frame(b"y"), [])) == [b"y"]
    assert reader.buffer_bytes < 100_000


def test_nothing_received_is_nothing() -> None:
    assert _reader().read(lambda _view: 0) == (0, [])


@pytest.mark.parametrize("length", [b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\x06\x40\0\x01"])
def test_a_negative_or_oversize_length_is_refused_before_memory_is_taken(length: bytes) -> None:
    reader = _reader()
    with pytest.raises(FrameTooLarge, match="bytes was announced"):
        reader.read(Pieces(length + b"rest", []).read_into)
    assert reader.buffer_bytes <= START_BYTES


def test_whole_frames_before_a_refused_length_count() -> None:
    reader = _reader(max_frame_bytes=1_000)
    data = _frame(b"first") + _frame(b"second") + b"\x7f\xff\xff\xff"
    assert reader.read(Pieces(data, []).read_into) == (len(data), [b"first", b"second"])
    assert isinstance(reader.refused, FrameTooLarge)


def test_the_largest_allowed_frame_passes() -> None:
    reader = _reader(max_frame_bytes=1_000)
    assert _read_all(reader, Pieces(_frame(b"z" * 1_000), [3, 500, 501])) == [b"z" * 1_000]
    with pytest.raises(FrameTooLarge):
        reader.read(Pieces(_frame(b"z" * 1_001), []).read_into)


def test_errors_of_the_stream_pass_through() -> None:
    def broken(_view: memoryview) -> int:
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        _reader().read(broken)


# --- against the reference


def _stream(rng: random.Random, most: int) -> bytes:
    """Frames of every size that matters, whole or cut off, and sometimes nonsense at the end."""
    sizes = (0, 1, 3, 4, 100, START_BYTES - 5, START_BYTES - 4, START_BYTES, 70_000, most)
    data = b"".join(_frame(bytes(rng.choice(sizes))) for _ in range(rng.randrange(12)))
    tail = rng.choice((b"", b"\0", (most + 1).to_bytes(4, "big"), b"\xff" * 9, rng.randbytes(6)))
    return data + tail


def _step(reader: Any, pieces: Pieces) -> Any:
    try:
        return reader.read(pieces.read_into)
    except FrameTooLarge as error:
        return str(error)


def test_every_call_finds_what_the_reference_finds(rng: random.Random) -> None:
    refused = 0
    for _ in range(150):
        most = rng.choice((100_000, KEEP_BYTES + 10))
        data = _stream(rng, most)
        largest = rng.choice((1, 5, 1_000, 20_000, 1 << 20))
        sizes = [rng.randrange(largest) + 1 for _ in range(3_000)]
        ours, theirs = _reader(most), frames_reference.FrameReader(most)
        mine, its = Pieces(data, sizes), Pieces(data, sizes)
        while its.left:
            told = _step(ours, mine)
            assert told == _step(theirs, its)
            assert ours.buffer_bytes == theirs.buffer_bytes
            assert str(ours.refused) == str(theirs.refused)
            if theirs.refused is not None:
                refused += 1
                break
    assert refused > 20


# --- from a socket


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, peer = socket.socketpair()
    with ours, peer:
        yield ours, peer


Pair = tuple[socket.socket, socket.socket]


@pytest.mark.parametrize("blocking", [True, False])
def test_a_socket_is_received_from_without_waiting(pair: Pair, blocking: bool) -> None:
    ours, peer = pair
    ours.setblocking(blocking)
    reader = _reader()
    assert reader.receive(ours.fileno()) == (0, [])
    peer.sendall(_frame(b"one") + _frame(b"two") + b"\0\0")
    assert reader.receive(ours.fileno()) == (16, [b"one", b"two"])
    peer.sendall(b"\0\5three")
    assert reader.receive(ours.fileno()) == (7, [b"three"])
    peer.close()
    assert reader.receive(ours.fileno()) == (-1, [])


def test_a_socket_gives_the_same_frames_in_any_pieces(pair: Pair, rng: random.Random) -> None:
    ours, peer = pair
    payloads = [rng.randbytes(rng.choice((0, 1, 100, 20_000))) for _ in range(40)]
    data = b"".join(map(_frame, payloads))
    reader = _reader()
    frames: list[bytes] = []
    while data:
        piece, data = data[: (cut := rng.randrange(30_000) + 1)], data[cut:]
        peer.sendall(piece)
        count = 0
        while count < len(piece):
            received, more = reader.receive(ours.fileno())
            count += received
            frames += more
    assert frames == payloads


def test_errors_of_a_socket_are_those_of_the_system(pair: Pair) -> None:
    ours, _peer = pair
    fd = ours.fileno()
    ours.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        _reader().receive(fd)
    with pytest.raises(OverflowError):
        _reader().receive(1 << 40)
    with pytest.raises(TypeError):
        _reader().receive("socket")  # type: ignore[arg-type]


def test_nothing_is_received_behind_a_refused_length(pair: Pair) -> None:
    ours, peer = pair
    reader = _reader(100)
    peer.sendall(_frame(b"good") + b"\1\1\1\1" + _frame(b"never"))
    assert reader.receive(ours.fileno()) == (21, [b"good"])
    for _ in range(2):
        with pytest.raises(FrameTooLarge, match="a frame of 16843009 bytes"):
            reader.receive(ours.fileno())


# --- what a caller could do wrong


@pytest.mark.parametrize("count", [-1, START_BYTES + 1, 1 << 40])
def test_a_count_that_cannot_be_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="cannot have come into a room of 16384"):
        _reader().read(lambda _view: count)


def test_a_view_that_is_kept_stays_readable() -> None:
    reader = _reader()
    kept: list[memoryview] = []

    def read_into(view: memoryview) -> int:
        kept.append(view)
        view[:8] = b"\0\1\0\0abcd"
        return 8

    assert reader.read(read_into) == (8, [])
    assert reader.buffer_bytes == 4 + (1 << 16), "a larger buffer took its place"
    del reader
    assert bytes(kept[0][:8]) == b"\0\1\0\0abcd"


def test_a_read_inside_a_read_is_refused() -> None:
    reader = _reader()

    def again(view: memoryview) -> int:
        view[:1] = b"\0"
        reader.read(lambda _view: 1)
        return 1

    with pytest.raises(ValueError, match="cannot have come"):
        reader.read(again)


def test_limits_must_be_those_of_a_length() -> None:
    for most in (-1, 1 << 31):
        with pytest.raises(OverflowError, match="max_frame_bytes"):
            native.FrameReader(most, FrameTooLarge)


def test_nothing_leaks_from_frames_that_are_taken_or_refused(rng: random.Random) -> None:
    streams = [_stream(rng, 2_000) for _ in range(30)]

    def all_of_them() -> None:
        for data in streams:
            reader = _reader(2_000)
            pieces = Pieces(data, [])
            while pieces.left and reader.refused is None:
                _step(reader, pieces)

    assert grown_bytes(all_of_them, 50) < 30_000
