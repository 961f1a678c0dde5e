"""Record batch v2: the header around encoded records, and a strict reader of both.

The CRC-32C covers everything from the attributes on, and so the producer id, epoch and sequence
that are known last: it is computed here, over header and pieces in order, without joining them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from mpproducer.wire import codec
from mpproducer.wire.codec import Buffer, ProtocolError, Reader
from mpproducer.wire.crc import crc32c

HEADER_BYTES: Final = 61
CRC_FROM: Final = 21
CODECS: Final = ("none", "gzip", "snappy", "lz4", "zstd")
CODEC_MASK: Final = 0x07
LOG_APPEND_TIME: Final = 0x08
TRANSACTIONAL: Final = 0x10
CONTROL: Final = 0x20

_PREFIX: Final = struct.Struct(">qiibI")
_SUFFIX: Final = struct.Struct(">hiqqqhii")

Headers = tuple[tuple[str, bytes | None], ...]


def batch_header(
    records_bytes: int,
    attributes: int,
    count: int,
    base_timestamp_ms: int,
    max_timestamp_ms: int,
    producer_id: int,
    epoch: int,
    base_sequence: int,
    pieces: Iterable[Buffer],
) -> bytes:
    """Return the 61 bytes before `pieces`, which hold `records_bytes` bytes of records."""
    suffix = _SUFFIX.pack(
        attributes, count - 1, base_timestamp_ms, max_timestamp_ms, producer_id, epoch,
        base_sequence, count,
    )  # fmt: skip
    crc = checksum(pieces, crc32c(suffix))
    return _PREFIX.pack(0, HEADER_BYTES - 12 + records_bytes, -1, 2, crc) + suffix


def checksum(pieces: Iterable[Buffer], crc: int = 0) -> int:
    """Return the CRC-32C of pieces in a row, going on from `crc`."""
    for piece in pieces:
        crc = crc32c(piece, crc)
    return crc


class Record(NamedTuple):
    """One record as read back; offset and timestamp are relative to its batch."""

    offset_delta: int
    timestamp_delta: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


@dataclass(frozen=True)
class RecordBatch:
    """One batch as read back. `records` holds its encoded records, compressed or not."""

    base_offset: int
    leader_epoch: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    epoch: int
    base_sequence: int
    count: int
    records: memoryview
    raw: memoryview

    @property
    def codec(self) -> str:
        """Name of the codec."""
        number = self.attributes & CODEC_MASK
        if number >= len(CODECS):
            raise ProtocolError(f"codec {number} is not known")
        return CODECS[number]

    def crc_valid(self) -> bool:
        """Whether the bytes are what the producer's CRC says."""
        return bool(crc32c(self.raw[CRC_FROM:]) == self.crc)


def _field(value: bytes | None) -> bytes:
    return b"\x01" if value is None else codec.varint(len(value)) + value


def encode_record(record: Record) -> bytes:
    """Return one encoded record, its length included."""
    body = b"".join(
        (
            b"\0",
            codec.varint(record.timestamp_delta),
            codec.varint(record.offset_delta),
            _field(record.key),
            _field(record.value),
            codec.varint(len(record.headers)),
            *(_field(name.encode()) + _field(value) for name, value in record.headers),
        )
    )
    return codec.varint(len(body)) + body


def encode_batch(
    records: Sequence[Record],
    *,
    base_timestamp_ms: int,
    codec_name: str = "none",
    level: int | None = None,
    producer_id: int = -1,
    epoch: int = -1,
    base_sequence: int = -1,
) -> bytes:
    """Return a whole batch; for tests, tools and the in-memory broker."""
    body = b"".join(map(encode_record, records))
    if codec_name != "none":
        from mpproducer.wire.compression import compress

        body = compress(codec_name, level, [memoryview(body)])
    newest = max((record.timestamp_delta for record in records), default=0)
    header = batch_header(
        len(body), CODECS.index(codec_name), len(records), base_timestamp_ms,
        base_timestamp_ms + newest, producer_id, epoch, base_sequence, [body],
    )  # fmt: skip
    return header + body


def parse_batches(data: Buffer) -> Iterator[RecordBatch]:
    """Yield the batches of a record set. Raises ProtocolError for anything that is none.

    The CRC is not checked here (`RecordBatch.crc_valid`), nor are the records read.
    """
    view = memoryview(data)
    at = 0
    while at < len(view):
        if len(view) - at < HEADER_BYTES:
            raise ProtocolError(f"{len(view) - at} bytes are no record batch")
        base_offset, length, leader_epoch, magic, crc = _PREFIX.unpack_from(view, at)
        if magic != 2:
            raise ProtocolError(f"record batch with magic {magic}")
        if length < HEADER_BYTES - 12 or length > len(view) - at - 12:
            raise ProtocolError(f"record batch claims {length} of {len(view) - at - 12} bytes")
        raw = view[at : at + 12 + length]
        values = (
            *(base_offset, leader_epoch, crc),
            *_SUFFIX.unpack_from(raw, CRC_FROM),
            *(raw[HEADER_BYTES:], raw),
        )
        yield RecordBatch(*values)
        at += 12 + length


def read_records(data: Buffer, count: int, *, dense: bool = True) -> list[Record]:
    """Return the `count` records of uncompressed bytes, checking every bound.

    Raises ProtocolError, also for offset deltas that are not 0, 1, 2... where they must be `dense`.
    """
    raw = bytes(data)
    if count < 0 or count > len(raw):
        raise ProtocolError(f"{count} records do not fit {len(raw)} bytes")
    records = []
    at = 0
    try:
        for index in range(count):
            record, at = _read_record(raw, at, index)
            if dense and record.offset_delta != index:
                raise ProtocolError(f"record {index} has offset delta {record.offset_delta}")
            records.append(record)
    except IndexError as error:
        raise ProtocolError(f"record {index} ends behind its {len(raw)} bytes") from error
    if at != len(raw):
        raise ProtocolError(f"{len(raw) - at} bytes behind the last record")
    return records


def _read_record(raw: bytes, at: int, index: int) -> tuple[Record, int]:
    """The record at `at`, and where it ends. Raises ProtocolError, or IndexError at the end.

    The records of a batch are many: hence bytes and indexes here instead of a `Reader`.
    """
    length, start = _varint(raw, at)
    end = start + length
    if length < 0 or end > len(raw):
        raise ProtocolError(f"record {index} claims {length} of {len(raw) - start} bytes")
    # One byte of attributes comes first, of which none has a meaning yet.
    timestamp_delta, at = _varint(raw, start + 1, wide=True)
    offset_delta, at = _varint(raw, at)
    key, at = _read_field(raw, at, end)
    value, at = _read_field(raw, at, end)
    count, at = _varint(raw, at)
    if count < 0 or count > end - at:
        raise ProtocolError(f"record {index} claims {count} headers")
    headers = []
    for _ in range(count):
        name, at = _read_field(raw, at, end)
        if name is None:
            raise ProtocolError(f"record {index} has a header without a name")
        content, at = _read_field(raw, at, end)
        try:
            headers.append((name.decode(), content))
        except UnicodeDecodeError as error:
            raise ProtocolError(f"a header name of record {index} is not UTF-8") from error
    if at != end:
        raise ProtocolError(f"record {index} is longer than its fields, or shorter")
    return Record(offset_delta, timestamp_delta, key, value, tuple(headers)), at


def _read_field(raw: bytes, at: int, end: int) -> tuple[bytes | None, int]:
    length, at = _varint(raw, at)
    if length < 0:
        if length == -1:
            return None, at
        raise ProtocolError(f"a field of {length} bytes")
    stop = at + length
    if stop > end:
        raise ProtocolError(f"a field of {length} bytes leaves its record")
    return raw[at:stop], stop


def _varint(raw: bytes, at: int, *, wide: bool = False) -> tuple[int, int]:
    """A zigzag varint of 32 bits, or 64 where `wide`, and where it ends."""
    value = raw[at]
    at += 1
    if value > 0x7F:
        second = raw[at]
        if second > 0x7F:
            reader = Reader(raw, at - 1)
            return (reader.varlong() if wide else reader.varint()), reader.at
        value = value & 0x7F | second << 7
        at += 1
    return value >> 1 ^ -(value & 1), at


def batch_records(batch: RecordBatch, max_bytes: int = 1 << 28) -> list[Record]:
    """Return a batch's records, decompressed within a bound. Raises ProtocolError."""
    data: Buffer = batch.records
    if batch.codec != "none":
        from mpproducer.wire.compression import decompress

        data = decompress(batch.codec, data, max_bytes)
    return read_records(data, batch.count)
