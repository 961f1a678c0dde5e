"""Record batches that are right, and those that are wrong in one way each."""

from __future__ import annotations

import struct
import time

import crc32c

from mpproducer.wire.codec import varint
from mpproducer.wire.compression import compress
from mpproducer.wire.record_batch import (
    CODECS,
    Record,
    batch_header,
    encode_batch,
    encode_record,
)

NOW_MS = int(time.time() * 1000)
HOUR_MS = 3_600_000
LENGTH_AT, MAGIC_AT, CRC_AT, ATTRIBUTES_AT = 8, 16, 17, 21
LAST_DELTA_AT, MAX_TIMESTAMP_AT, COUNT_AT = 23, 35, 57


def records(count: int = 3) -> list[Record]:
    return [Record(number, 0, b"k", b"v%d" % number) for number in range(count)]


def sound(
    given: list[Record] | None = None, *, codec: str = "none", timestamp_ms: int = NOW_MS
) -> bytes:
    return encode_batch(
        records() if given is None else given, base_timestamp_ms=timestamp_ms, codec_name=codec
    )


def sequenced(producer_id: int, epoch: int, sequence: int, count: int = 3) -> bytes:
    return encode_batch(
        records(count), base_timestamp_ms=NOW_MS, producer_id=producer_id, epoch=epoch,
        base_sequence=sequence,
    )  # fmt: skip


def changed(at: int, format_: str, value: int, data: bytes | None = None) -> bytes:
    """A sound batch with another value in its header, and the CRC that goes with it."""
    new = bytearray(sound() if data is None else data)
    struct.pack_into(format_, new, at, value)
    new[CRC_AT:ATTRIBUTES_AT] = struct.pack(">I", crc32c.crc32c(bytes(new[ATTRIBUTES_AT:])))
    return bytes(new)


def damaged() -> bytes:
    """A changed byte under the old CRC."""
    data = bytearray(sound())
    data[70] ^= 0x55
    return bytes(data)


def around(body: bytes, count: int, codec: str = "none", *, pack: bool = True) -> bytes:
    """A batch around any records."""
    if codec != "none" and pack:
        body = compress(codec, None, [body])
    header = batch_header(len(body), CODECS.index(codec), count, NOW_MS, NOW_MS, -1, -1, -1, [body])
    return header + body


def encoded(count: int = 3) -> bytes:
    return b"".join(map(encode_record, records(count)))


def with_hole(codec: str) -> bytes:
    """Two records at offset deltas 0 and 2, in a batch that counts two."""
    return around(
        encode_record(Record(0, 0, None, b"a")) + encode_record(Record(2, 0, None, b"b")), 2, codec
    )


def raw_record(body: bytes) -> bytes:
    return varint(len(body)) + body


def of_size(size: int) -> bytes:
    """One batch of exactly `size` bytes, header included."""
    data = sound([Record(0, 0, None, bytes(size - 61 - 12))])
    data = sound([Record(0, 0, None, bytes(size - 61 - 12 + size - len(data)))])
    assert len(data) == size
    return data
