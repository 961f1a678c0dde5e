"""Codecs: one stream per batch in the form Java reads, and bounded reading of what others send."""

from __future__ import annotations

import gzip
import random
import struct
import tracemalloc
import zlib
from itertools import pairwise
from typing import Any

import cramjam
import lz4.block
import lz4.frame
import pytest
import zstandard
from aiokafka import codec as aiokafka_codec
from kafka import codec as kafka_python_codec

from mpproducer.wire.codec import ProtocolError, uvarint
from mpproducer.wire.compression import XERIAL_MAGIC, compress, decompress
from mpproducer.wire.record_batch import CODECS

PACKED = CODECS[1:]
FOREIGN: dict[str, list[Any]] = {
    "gzip": [gzip.decompress, kafka_python_codec.gzip_decode, aiokafka_codec.gzip_decode],
    "snappy": [aiokafka_codec.snappy_decode],
    "lz4": [lz4.frame.decompress, kafka_python_codec.lz4_decode, aiokafka_codec.lz4_decode],
    "zstd": [kafka_python_codec.zstd_decode, aiokafka_codec.zstd_decode],
}
LEVELS: dict[str, list[int | None]] = {
    "gzip": [None, -1, 1, 6, 9],
    "snappy": [None],
    "lz4": [None, 1, 9, 12, 17],
    "zstd": [None, -131072, -1, 1, 3, 19, 22],
}
MAX_BYTES = 1 << 20


def _text(rng: random.Random, size: int) -> bytes:
    words = [rng.randbytes(rng.randrange(3, 12)) for _ in range(50)]
    data = b" ".join(rng.choices(words, k=size // 4 + 1))[:size]
    return data.ljust(size, b"x")


def _pieces(rng: random.Random, data: bytes) -> list[memoryview]:
    """The data cut as a chain of slots is: unequal views, an empty one among them."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 1, 5, 20))))
    view = memoryview(data)
    edges = [0, *cuts, len(data)]
    return [view[a:b] for a, b in pairwise(edges)] + [view[:0]]


@pytest.mark.parametrize("codec", PACKED)
def test_one_stream_of_all_pieces_at_every_level_is_read_by_foreign_libraries(
    codec: str, rng: random.Random
) -> None:
    for level in LEVELS[codec]:
        for size in (1, 32767, 32768, 65537, 200_000):
            data = _text(rng, size)
            packed = compress(codec, level, _pieces(rng, data))
            for foreign in FOREIGN[codec]:
                assert foreign(packed) == data, (level, size, foreign)
            assert decompress(codec, packed, size) == data


@pytest.mark.parametrize("codec", ["gzip", "zstd", "lz4"])
def test_a_level_changes_the_stream(codec: str, rng: random.Random) -> None:
    data = _text(rng, 200_000)
    weak, strong = LEVELS[codec][2], LEVELS[codec][-1]
    assert len(compress(codec, strong, [data])) < len(compress(codec, weak, [data]))


@pytest.mark.parametrize("codec", PACKED)
def test_nothing_is_a_stream_too(codec: str) -> None:
    assert decompress(codec, compress(codec, None, []), 0) == b""


def test_gzip_is_one_member(rng: random.Random) -> None:
    packed = compress("gzip", None, _pieces(rng, _text(rng, 100_000)))
    unpacker = zlib.decompressobj(31)
    unpacker.decompress(packed)
    assert unpacker.eof
    assert unpacker.unused_data == b""


def test_lz4_is_one_frame_of_independent_64_kib_blocks_without_checksums(
    rng: random.Random,
) -> None:
    for level in LEVELS["lz4"]:
        data = _text(rng, 300_000)
        packed = compress("lz4", level, _pieces(rng, data))
        assert packed[:4] == b"\x04\x22\x4d\x18"
        assert packed[4:6] == b"\x60\x40"  # FLG, BD as Java writes them
        at, out = 7, []
        while size := struct.unpack_from("<I", packed, at)[0]:
            block = packed[at + 4 : at + 4 + (size & 0x7FFFFFFF)]
            # Each block by itself, as Java reads it.
            out.append(
                block if size >> 31 else lz4.block.decompress(block, uncompressed_size=1 << 16)
            )
            at += 4 + len(block)
        assert at + 4 == len(packed)
        assert b"".join(out) == data
        assert len(out) > 1


def test_snappy_has_xerials_framing_with_blocks_of_32_kib(rng: random.Random) -> None:
    data = _text(rng, 100_000)
    packed = compress("snappy", None, _pieces(rng, data))
    assert packed[:16] == b"\x82SNAPPY\0" + struct.pack(">ii", 1, 1)
    at, sizes = 16, []
    while at < len(packed):
        (size,) = struct.unpack_from(">i", packed, at)
        sizes.append(len(bytes(cramjam.snappy.decompress_raw(packed[at + 4 : at + 4 + size]))))
        at += 4 + size
    assert sizes == [32768, 32768, 32768, 100_000 - 3 * 32768]


def test_zstd_is_one_frame(rng: random.Random) -> None:
    packed = compress("zstd", None, _pieces(rng, _text(rng, 300_000)))
    unpacker = zstandard.ZstdDecompressor().decompressobj()
    unpacker.decompress(packed)
    assert unpacker.eof
    assert unpacker.unused_data == b""


def test_a_raw_snappy_body_is_read_as_java_reads_it(rng: random.Random) -> None:
    data = _text(rng, 50_000)
    assert decompress("snappy", bytes(cramjam.snappy.compress_raw(data)), 50_000) == data


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_streams_one_after_another_are_read_as_java_reads_them(
    codec: str, rng: random.Random
) -> None:
    data = [_text(rng, 3000), _text(rng, 4000)]
    packed = b"".join(compress(codec, None, [one]) for one in data)
    assert decompress(codec, packed, 7000) == b"".join(data)
    with pytest.raises(ProtocolError, match="beyond 6999"):
        decompress(codec, packed, 6999)


@pytest.mark.parametrize("codec", PACKED)
def test_what_is_cut_short_is_refused_wherever_it_is_cut(codec: str, rng: random.Random) -> None:
    packed = compress(codec, None, [_text(rng, 40_000)])
    ends = {*range(20), *(len(packed) - n for n in range(1, 12)), rng.randrange(len(packed))}
    if codec == "snappy":
        ends -= {16}  # a head and no block is an empty stream
    for end in sorted(ends):
        with pytest.raises(ProtocolError):
            decompress(codec, packed[:end], MAX_BYTES)


def _snappy_claim(claimed: int) -> bytes:
    block = uvarint(claimed) + b"\0"
    return XERIAL_MAGIC + struct.pack(">ii", 1, 1) + struct.pack(">i", len(block)) + block


BOMBS = {
    codec: compress(codec, 9 if codec == "gzip" else None, [bytes(100 << 20)]) for codec in PACKED
} | {"snappy claim": _snappy_claim((1 << 32) - 1), "snappy raw claim": uvarint((1 << 32) - 1)}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_within_bounded_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decompress(name.split()[0], BOMBS[name], MAX_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_dependent_lz4_blocks_are_refused_as_java_refuses_them(rng: random.Random) -> None:
    packed = lz4.frame.compress(_text(rng, 200_000), block_linked=True)
    with pytest.raises(ProtocolError, match="blocks depend on each other"):
        decompress("lz4", packed, MAX_BYTES)


@pytest.mark.parametrize("codec", PACKED)
def test_changed_bytes_end_in_an_error_or_in_bounded_bytes(codec: str, rng: random.Random) -> None:
    sound = compress(codec, None, [_text(rng, 5000)])
    refused = 0
    for _ in range(300):
        data = bytearray(sound)
        for _ in range(rng.choice((1, 1, 3))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            assert len(decompress(codec, bytes(data), 6000)) <= 6000
        except ProtocolError:
            refused += 1
    assert refused > 0


def test_a_codec_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no codec 'lzma'"):
        compress("lzma", None, [b""])
    with pytest.raises(ProtocolError, match="no codec 'lzma'"):
        decompress("lzma", b"", 1)
