"""Actions to bytes and bytes to events: the loop's side of `wire`.

A batch goes to the broker from shared memory; only its 61-byte header is ours. The checksum of its
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

if TYPE_CHECKING:
    from mpproducer.sender.batch import ProducerBatch

PRODUCE: Final = 0
DecodeError = ProtocolError
MAX_BATCH_BYTES: Final = 1 << 24  # a batch word holds no more; a bound for decompression


def unchanged(batch: ProducerBatch) -> bool:
    """Whether the bytes are still those whose checksum was sent."""
    body: native.Body = batch.body
    return body.unchanged()


class ProduceEncoder:
    """Encodes Produce requests of one client."""

    def __init__(self, client_id: str) -> None:
        self._client_id = client_id

    def encode(self, action: actions.SendProduce) -> native.Send:
        """The request, whose batches stay where they are."""
        batches: list[tuple[str | bytes, int, native.Body, int, int, int]] = []
        for batch in action.batches:
            partition = batch.partition
            batches.append(
                (
                    partition.topic,
                    partition.number,
                    batch.body,
                    batch.producer_id,
                    batch.producer_epoch,
                    batch.base_sequence,
                )
            )
        return native.produce_request(
            action.api_version,
            action.correlation_id,
            self._client_id,
            action.acks,
            action.timeout_ms,
            None,
            batches,
        )


def encode_request(action: actions.Request, client_id: str) -> native.Send:
    """Any other request."""
    api = framing.api_of(action.api_key)
    frame = framing.encode_request(
        api, action.api_version, action.correlation_id, client_id, action.message
    )
    return native.Send([frame])


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


def split(
    batch: ProducerBatch, limit_bytes: int, codec: str, level: int | None
) -> tuple[actions.Part, ...]:
    """Re-encode the records of a batch as batches of at most `limit_bytes` of records each; a
    single larger record stands alone. Keys, values, headers and timestamps are kept."""
    body: native.Body = batch.body
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
    base_ms = batch.base_timestamp_ms + deltas[0]
    max_ms = batch.base_timestamp_ms + max(deltas)
    attributes = record_batch.CODECS.index(codec)
    return actions.Part(
        first=start,
        records=len(encoded),
        size_bytes=len(plain),
        wire_bytes=record_batch.HEADER_BYTES + len(data),
        base_timestamp_ms=base_ms,
        max_timestamp_ms=max_ms,
        body=native.Body(data, len(encoded), base_ms, max_ms, attributes),
    )
