"""Length-prefixed frames out of any division of the stream."""

from __future__ import annotations

import random

import pytest

from mpproducer.net.errors import FrameTooLarge
from mpproducer.net.frames import FrameReader


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


def _read_all(reader: FrameReader, pieces: Pieces) -> list[bytes]:
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
        assert _read_all(FrameReader(), Pieces(data, sizes)) == payloads


def test_a_frame_larger_than_the_buffer_is_read_whole_and_the_memory_given_back() -> None:
    reader = FrameReader()
    large = bytes(range(256)) * 20_000
    assert _read_all(reader, Pieces(_frame(large) + _frame(b"x"), [])) == [large, b"x"]
    assert _read_all(reader, Pieces(_frame(b"y"), [])) == [b"y"]
    assert len(reader._buffer) < 100_000


def test_nothing_received_is_nothing() -> None:
    assert FrameReader().read(lambda _view: 0) == (0, [])


@pytest.mark.parametrize("length", [b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\x06\x40\0\x01"])
def test_a_negative_or_oversize_length_is_refused_before_memory_is_taken(length: bytes) -> None:
    reader = FrameReader()
    with pytest.raises(FrameTooLarge, match="bytes was announced"):
        reader.read(Pieces(length + b"rest", []).read_into)
    assert len(reader._buffer) <= 16 * 1024


def test_whole_frames_before_a_refused_length_count() -> None:
    reader = FrameReader(max_frame_bytes=1_000)
    data = _frame(b"first") + _frame(b"second") + b"\x7f\xff\xff\xff"
    assert reader.read(Pieces(data, []).read_into) == (len(data), [b"first", b"second"])
    assert isinstance(reader.refused, FrameTooLarge)


def test_the_largest_allowed_frame_passes() -> None:
    reader = FrameReader(max_frame_bytes=1_000)
    assert _read_all(reader, Pieces(_frame(b"z" * 1_000), [3, 500, 501])) == [b"z" * 1_000]
    with pytest.raises(FrameTooLarge):
        reader.read(Pieces(_frame(b"z" * 1_001), []).read_into)


def test_errors_of_the_stream_pass_through() -> None:
    def broken(_view: memoryview) -> int:
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        FrameReader().read(broken)
