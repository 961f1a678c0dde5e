"""Input of `mpproducer produce`: chunks of whole lines from files and stdin."""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
from pathlib import Path
from typing import Any, BinaryIO, cast

CHUNK_BYTES = 256 * 1024
MAX_LINE_BYTES = 64 * 1024 * 1024
_PACKED_BYTES = 16 * 1024


def open_input(path: str) -> BinaryIO:
    """Open a file for reading; `-` is stdin, `.gz` and `.zst` are decompressed on the way.

    Raises OSError that names the file; reading raises OSError, EOFError or zlib.error for damaged
    files. `read1` of what is returned never holds data back.
    """
    if path == "-":
        return cast("BinaryIO", io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False)))
    if path.endswith(".gz"):
        return cast("BinaryIO", gzip.open(path, "rb"))
    if path.endswith((".zst", ".zstd")):
        return cast("BinaryIO", io.BufferedReader(_Zstd(Path(path).open("rb")), CHUNK_BYTES))
    return Path(path).open("rb")


class _Zstd(io.RawIOBase):
    """The content of a zstd file; unlike zstandard's own reader it tells a file that was cut off
    from a whole one."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._file = file
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new()
        self._inside = False  # a frame has begun and not ended
        self._error = zstandard.ZstdError
        self._packed = b""
        self._plain = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            packed = self._packed or self._file.read(_PACKED_BYTES)
            if not packed:
                if self._inside:
                    raise EOFError("compressed data ended before the end of its frame")
                return 0
            self._inside = True
            try:
                self._plain = self._frame.decompress(packed)
            except self._error as error:
                raise OSError(f"not zstd data, or damaged: {error}") from error
            self._packed = b""
            if self._frame.eof:
                self._packed, self._inside = self._frame.unused_data, False
                self._frame = self._new()
        count = min(len(buffer), len(self._plain))
        buffer[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def may_wait(stream: BinaryIO) -> bool:
    """Whether reading can wait for somebody: a pipe, a terminal, a socket, not a file."""
    if not isinstance(stream, io.BufferedReader) or not isinstance(stream.raw, io.FileIO):
        return False
    return not stat.S_ISREG(os.fstat(stream.fileno()).st_mode)


class Lines:
    """Cuts what is read into chunks that end at a line's end, the last one perhaps not."""

    def __init__(self, stream: BinaryIO, delimiter: bytes = b"\n") -> None:
        self._stream = stream
        self._delimiter = delimiter
        self._kept: list[bytes] = []
        self._kept_bytes = 0

    def read(self, size_bytes: int = CHUNK_BYTES) -> bytes | None:
        """Read once; returns a chunk, b"" when no line is whole yet, None at the end.

        A line longer than `size_bytes` comes whole. Raises OSError, or ValueError for a line
        that no record can hold.
        """
        data = cast("io.BufferedReader", self._stream).read1(size_bytes)
        if not data:
            return self.rest()
        kept = self._kept
        # A delimiter may lie across two reads: look at the end of what is kept, too.
        if kept and len(self._delimiter) > 1:
            data = kept.pop() + data
            self._kept_bytes = sum(map(len, kept))
        cut = data.rfind(self._delimiter)
        if cut < 0:
            kept.append(data)
            self._kept_bytes += len(data)
            if self._kept_bytes > MAX_LINE_BYTES:
                raise ValueError(f"a line of more than {MAX_LINE_BYTES} bytes")
            return b""
        cut += len(self._delimiter)
        chunk = b"".join((*kept, data[:cut]))
        self._kept = [data[cut:]] if cut < len(data) else []
        self._kept_bytes = len(data) - cut
        return chunk

    def rest(self) -> bytes | None:
        """Take what stands behind the last line's end; None when there is nothing."""
        rest = b"".join(self._kept)
        self._kept, self._kept_bytes = [], 0
        return rest or None


def split_lines(chunk: bytes, delimiter: bytes = b"\n") -> list[bytes]:
    """Return the lines of a chunk without their delimiter; empty lines are lines, too."""
    lines = chunk.split(delimiter)
    if not lines[-1]:
        lines.pop()
    return lines
