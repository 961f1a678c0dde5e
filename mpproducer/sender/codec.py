"""Actions to bytes and bytes to events: the loop's side of `wire`.

A batch is encoded from views of shared memory; only its 61-byte header is ours. The checksum of its
records comes from the walk that checked them, and the header's is joined to it: no byte is touched
again, whatever sequence a batch gets, and what was checked is known when a broker reports a wrong
CRC.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from mpproducer._core import native
from mpproducer.sender import actions
from mpproducer.wire import compression, framing, produce, record_batch
from mpproducer.wire.codec import Buffer, ProtocolError
from mpproducer.wire.crc import crc32c

if TYPE_CHECKING:
    from mpproducer.sender.batch import ProducerBatch

PRODUCE: Final = 0
DecodeError = ProtocolError
MAX_BATCH_BYTES: Final = 1 << 24  # a batch word holds no more; a bound for decompression


class Body:
    """The bytes of a sealed batch and, once made, its header."""

    __slots__ = ("attributes", "crc", "header", "pieces", "size_bytes", "stamp")

    def __init__(
        self,
        pieces: Sequence[Buffer],
        size_bytes: int,
        codec: str = "none",
        crc: int | None = None,
    ) -> None:
        self.crc = record_batch.checksum(pieces) if crc is None else crc
        self.pieces = pieces
        self.size_bytes = size_bytes
        self.attributes = record_batch.CODECS.index(codec)
        self.header = b""
        self.stamp: tuple[int, int, int] = (-2, -2, -2)


def header_of(batch: ProducerBatch) -> bytes:
    """The batch's header under its present producer id, epoch and sequence."""
    body: Body = batch.body
    stamp = (batch.producer_id, batch.producer_epoch, batch.base_sequence)
    if body.stamp != stamp:
        suffix = record_batch.header_suffix(
            body.attributes,
            batch.records,
            batch.base_timestamp_ms,
            batch.max_timestamp_ms,
            *stamp,
        )
        crc = native.crc32c_join(crc32c(suffix), body.crc, body.size_bytes)
        body.header = record_batch.header_prefix(body.size_bytes, crc) + suffix
        body.stamp = stamp
    return body.header


def unchanged(batch: ProducerBatch) -> bool:
    """Whether the bytes are still those whose checksum was sent."""
    body: Body = batch.body
    return record_batch.checksum(body.pieces) == body.crc


class ProduceEncoder:
    """Encodes Produce requests of one client."""

    def __init__(self, client_id: str) -> None:
        self._client_id = client_id

    def encode(self, action: actions.SendProduce) -> tuple[list[Buffer], int]:
        """The request as buffers for sendmsg, and its size in bytes."""
        topics: dict[str, list[produce.Batch]] = {}
        for batch in action.batches:
            body: Body = batch.body
            partition = batch.partition
            entry = (
                partition.number,
                [header_of(batch), *body.pieces],
                record_batch.HEADER_BYTES + body.size_bytes,
            )
            rows = topics.get(partition.topic)
            if rows is None:
                topics[partition.topic] = [entry]
            else:
                rows.append(entry)
        buffers = produce.encode_produce_request(
            action.api_version,
            action.correlation_id,
            self._client_id,
            action.acks,
            action.timeout_ms,
            None,
            [(name, b"", rows) for name, rows in topics.items()],
        )
        return buffers, 4 + int.from_bytes(buffers[0][:4], "big")


def encode_request(action: actions.Request, client_id: str) -> tuple[list[Buffer], int]:
    """Any other request, and its size in bytes."""
    api = framing.api_of(action.api_key)
    frame = framing.encode_request(
        api, action.api_version, action.correlation_id, client_id, action.message
    )
    return [frame], len(frame)


def decode_produce_response(
    frame: Buffer, version: int, correlation_id: int
) -> produce.ProduceResponse:
    """The content of a Produce response frame. Raises DecodeError, as decode_response does."""
    message: produce.ProduceResponse = native.produce_decode(
        frame,
        version,
        correlation_id,
        produce.ProduceResponse,
        produce.PartitionResult,
        DecodeError,
    )
    return message


def decode_response(frame: Buffer, correlation_id: int, api_key: int, version: int) -> Any:
    """The message of a response frame. Raises DecodeError when it is malformed or answers another
    request."""
    if api_key == PRODUCE:
        return decode_produce_response(frame, version, correlation_id)
    return framing.decode_response(frame, framing.api_of(api_key), version, correlation_id)


def compress(codec: str, level: int | None, pieces: Sequence[Buffer]) -> bytes:
    """One compressed stream of all records of a batch."""
    return compression.compress(codec, level, pieces)


def split(
    batch: ProducerBatch, limit_bytes: int, codec: str, level: int | None
) -> tuple[actions.Part, ...]:
    """Re-encode the records of a batch as batches of at most `limit_bytes` of records each; a
    single larger record stands alone. Keys, values, headers and timestamps are kept."""
    body: Body = batch.body
    data: Buffer = b"".join(body.pieces)
    packed = body.attributes & record_batch.CODEC_MASK
    if packed:
        data = compression.decompress(record_batch.CODECS[packed], data, MAX_BATCH_BYTES)
    records = record_batch.read_records(data, batch.records)
    parts: list[actions.Part] = []
    start = 0
    while start < len(records):
        encoded, deltas = _take(records, start, limit_bytes)
        parts.append(_part(batch, start, encoded, deltas, codec, level))
        start += len(encoded)
    return tuple(parts)


def _take(
    records: Sequence[record_batch.Record], start: int, limit_bytes: int
) -> tuple[list[bytes], list[int]]:
    """The next records that fit, encoded anew; their timestamps relative to the batch's."""
    base = records[start].timestamp_delta
    encoded: list[bytes] = []
    deltas: list[int] = []
    size = 0
    for record in records[start:]:
        data = record_batch.encode_record(
            record_batch.Record(
                len(encoded),
                record.timestamp_delta - base,
                record.key,
                record.value,
                record.headers,
            )
        )
        if encoded and size + len(data) > limit_bytes:
            break
        size += len(data)
        encoded.append(data)
        deltas.append(record.timestamp_delta)
    return encoded, deltas


def _part(
    batch: ProducerBatch,
    start: int,
    encoded: list[bytes],
    deltas: list[int],
    codec: str,
    level: int | None,
) -> actions.Part:
    plain = b"".join(encoded)
    data = plain if codec == "none" else compression.compress(codec, level, [plain])
    return actions.Part(
        first=start,
        records=len(encoded),
        size_bytes=len(plain),
        wire_bytes=record_batch.HEADER_BYTES + len(data),
        base_timestamp_ms=batch.base_timestamp_ms + deltas[0],
        max_timestamp_ms=batch.base_timestamp_ms + max(deltas),
        body=Body([data], len(data), codec),
    )
