"""Input of `mpproducer produce`: chunks of whole lines from files and stdin."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

CHUNK_BYTES = 256 * 1024


def open_input(path: str) -> BinaryIO:
    """Open a file for reading; `-` is stdin, `.gz` and `.zst` are decompressed on the way.

    Raises OSError that names the file.
    """
    if path == "-":
        return sys.stdin.buffer
    if path.endswith(".gz"):
        return cast("BinaryIO", gzip.open(path, "rb"))
    if path.endswith((".zst", ".zstd")):
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(
            Path(path).open("rb"),  # noqa: SIM115 - closed with the reader
            read_across_frames=True,
            closefd=True,
        )
        return io.BufferedReader(cast("io.RawIOBase", reader), CHUNK_BYTES)
    return Path(path).open("rb")


def chunks(stream: BinaryIO, size_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yield pieces of about `size_bytes` that end at a line's end (the last one may not).

    A line longer than `size_bytes` comes whole.
    """
    kept: list[bytes] = []
    while True:
        data = stream.read(size_bytes)
        if not data:
            break
        cut = data.rfind(b"\n") + 1
        if cut == 0:
            kept.append(data)
            continue
        yield b"".join((*kept, data[:cut]))
        kept = [data[cut:]] if cut < len(data) else []
    rest = b"".join(kept)
    if rest:
        yield rest


def split_lines(chunk: bytes) -> list[bytes]:
    """Return the lines of a chunk without their newline; empty lines are lines, too."""
    lines = chunk.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines
