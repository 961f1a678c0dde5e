from __future__ import annotations

import gzip
import io
import random
from pathlib import Path
from typing import BinaryIO

import pytest
import zstandard

from mpproducer.cli.lines import MAX_LINE_BYTES, Lines, may_wait, open_input, split_lines


class Dribble(io.RawIOBase):
    """Gives out its data in pieces of random size, as a pipe does."""

    def __init__(self, data: bytes, rng: random.Random) -> None:
        self._data = data
        self._rng = rng

    def read1(self, size: int = -1) -> bytes:
        taken = self._data[: min(size, self._rng.randrange(1, 9))]
        self._data = self._data[len(taken) :]
        return taken


def all_lines(stream: BinaryIO, delimiter: bytes = b"\n", size: int = 64) -> list[bytes]:
    lines, found = Lines(stream, delimiter), []
    while (chunk := lines.read(size)) is not None:
        if chunk:
            found += split_lines(chunk, delimiter)
    return found


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n", b"<>", b"\0"])
@pytest.mark.parametrize("ended", [True, False])
def test_lines_are_the_same_however_the_input_arrives(
    delimiter: bytes, ended: bool, rng: random.Random
) -> None:
    lines = [rng.randbytes(rng.randrange(0, 40)).hex().encode() for _ in range(200)] + [b"end"]
    data = delimiter.join(lines) + (delimiter if ended else b"")
    assert all_lines(Dribble(data, rng), delimiter) == lines  # type: ignore[arg-type]
    assert all_lines(io.BytesIO(data), delimiter, 1 << 20) == lines


def test_a_line_longer_than_a_chunk_comes_whole() -> None:
    long = b"x" * 1000
    assert all_lines(io.BytesIO(b"a\n" + long + b"\nb\n"), size=10) == [b"a", long, b"b"]


def test_a_line_no_record_can_hold_is_an_error_and_not_endless_memory() -> None:
    class Endless(io.RawIOBase):
        def read1(self, size: int = -1) -> bytes:
            return b"x" * (MAX_LINE_BYTES // 4)

    with pytest.raises(ValueError, match="a line of more than"):
        all_lines(Endless())  # type: ignore[arg-type]


def test_compressed_files_are_read_directly(tmp_path: Path, rng: random.Random) -> None:
    data = b"\n".join(rng.randbytes(50).hex().encode() for _ in range(20_000)) + b"\n"
    half = len(data) // 2
    two_frames = zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    for name, packed in (("a.gz", gzip.compress(data)), ("a.zst", two_frames), ("a", data)):
        path = tmp_path / name
        path.write_bytes(packed)
        with open_input(str(path)) as stream:
            assert not may_wait(stream)
            assert b"".join(line + b"\n" for line in all_lines(stream, size=4096)) == data


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
@pytest.mark.parametrize("how", ["cut", "garbage"])
def test_a_damaged_compressed_file_is_an_error_and_not_a_short_file(
    name: str, how: str, tmp_path: Path, rng: random.Random
) -> None:
    data = rng.randbytes(100_000).hex().encode()
    packed = gzip.compress(data) if name == "a.gz" else zstandard.compress(data)
    path = tmp_path / name
    path.write_bytes(packed[: len(packed) // 2] if how == "cut" else b"no such format at all\n")
    with open_input(str(path)) as stream, pytest.raises((OSError, EOFError)):
        all_lines(stream)


def test_what_a_pipe_has_is_handed_out_at_once(tmp_path: Path) -> None:
    import os

    reader, writer = os.pipe()
    with open(reader, "rb") as stream:
        assert may_wait(stream)
        os.write(writer, b"one\ntwo\nthr")
        lines = Lines(stream)
        assert lines.read() == b"one\ntwo\n"
        os.write(writer, b"ee\n")
        assert lines.read() == b"three\n"
        os.close(writer)
        assert lines.read() is None
