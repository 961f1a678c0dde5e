"""The frames of a stream in plain Python, to hold the core's reader against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mpproducer.net.errors import FrameTooLarge

_START_BYTES: Final = 16 * 1024
_KEEP_BYTES: Final = 1024 * 1024  # a larger buffer is given back after its frame


class FrameReader:
    """Collects Kafka frames (i32 length, then that many bytes) from one connection."""

    __slots__ = ("_buffer", "_filled", "_max", "_view", "refused")

    def __init__(self, max_frame_bytes: int) -> None:
        self._max = max_frame_bytes
        self._buffer = bytearray(_START_BYTES)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self.refused: FrameTooLarge | None = None  # behind the last frames: nothing can follow

    @property
    def buffer_bytes(self) -> int:
        """What is held."""
        return len(self._buffer)

    def read(self, read_into: Callable[[memoryview], int]) -> tuple[int, list[bytes]]:
        """Receive once; returns (bytes received, complete frames without their length).

        A negative or oversize length is refused before any memory is taken for it: raises
        FrameTooLarge, or leaves it in `refused` when whole frames came before it, which count.
        Raises whatever `read_into` raises.
        """
        count = read_into(self._view[self._filled :])
        self._filled += count
        if not count:
            return 0, []
        frames: list[bytes] = []
        start = 0
        buffer = self._buffer
        while self._filled - start >= 4:
            length = int.from_bytes(buffer[start : start + 4], "big")
            if length > self._max:
                self.refused = FrameTooLarge(
                    f"a frame of {length} bytes was announced; is a Kafka broker there, and does "
                    "it expect PLAINTEXT?"
                )
                if not frames:
                    raise self.refused
                return count, frames
            end = start + 4 + length
            if end > self._filled:
                self._make_room(start, 4 + length)
                return count, frames
            frames.append(bytes(self._view[start + 4 : end]))
            start = end
        self._make_room(start, _START_BYTES)
        return count, frames

    def _make_room(self, start: int, need: int) -> None:
        """Move what is left to the front of a buffer that holds the next frame."""
        left = self._filled - start
        size = len(self._buffer)
        if need > size or (size > _KEEP_BYTES and need <= _START_BYTES):
            fresh = bytearray(max(need, _START_BYTES))
            fresh[:left] = self._view[start : self._filled]
            self._buffer = fresh
            self._view = memoryview(fresh)
        elif start and left:
            self._view[:left] = bytes(self._view[start : self._filled])
        self._filled = left
