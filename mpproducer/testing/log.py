"""One partition's log with the producer rules of a Kafka leader: pure, no sockets, no clock.

What `kafka.log.UnifiedLog`, `LogValidator` and `ProducerStateManager` check of a produced batch,
in their order. Stricter than Kafka in one point: offset deltas of uncompressed batches must be
dense, too (Kafka stores such holes silently).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mpproducer.wire import error_codes as codes
from mpproducer.wire.codec import ProtocolError
from mpproducer.wire.record_batch import CONTROL, Headers, RecordBatch, batch_records, parse_batches

REMEMBERED_BATCHES: Final = 5
NO_PRODUCER: Final = -1
_SEQUENCES: Final = 1 << 31


class StoredRecord(NamedTuple):
    """One record as a consumer would get it."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    producer_id: int
    epoch: int
    sequence: int


class StoredBatch(NamedTuple):
    """One batch as the log holds it: `raw` with its base offset filled in."""

    base_offset: int
    last_offset: int
    max_timestamp_ms: int
    raw: bytes


class Appended(NamedTuple):
    """Outcome of an append: an error code and message, or the base offset."""

    error_code: int
    base_offset: int = -1
    message: str | None = None
    record_errors: tuple[tuple[int, str | None], ...] = ()


class _Written(NamedTuple):
    first_sequence: int
    last_sequence: int
    base_offset: int


@dataclass
class _ProducerState:
    epoch: int
    batches: deque[_Written] = field(default_factory=lambda: deque(maxlen=REMEMBERED_BATCHES))


class PartitionLog:
    """The batches of one partition and what is known about their producers."""

    def __init__(self, *, max_message_bytes: int = 1_048_588, strict_offsets: bool = True) -> None:
        self.batches: list[StoredBatch] = []
        self.end_offset = 0
        self.start_offset = 0
        self.max_message_bytes = max_message_bytes
        self.strict_offsets = strict_offsets
        self._producers: OrderedDict[int, _ProducerState] = OrderedDict()

    def append(self, data: bytes | memoryview, version: int) -> Appended:
        """Validate one produced record set and append it. `version` is that of the request."""
        try:
            batches = list(parse_batches(data))
        except ProtocolError as error:
            return Appended(codes.CORRUPT_MESSAGE, message=str(error))
        if len(batches) != 1:
            return Appended(
                codes.INVALID_RECORD,
                message=f"a produce request has one batch per partition, not {len(batches)}",
            )
        batch = batches[0]
        refused = self._check(batch, version)
        if refused is not None:
            return refused
        return self._check_producer(batch) or self._store(batch)

    def _check(self, batch: RecordBatch, version: int) -> Appended | None:
        if len(batch.raw) > self.max_message_bytes:
            return Appended(
                codes.MESSAGE_TOO_LARGE,
                message=f"{len(batch.raw)} bytes exceed max.message.bytes",
            )
        if not batch.crc_valid():
            return Appended(codes.CORRUPT_MESSAGE, message="CRC mismatch")
        if batch.attributes & CONTROL or batch.count <= 0:
            return Appended(codes.INVALID_RECORD, message="no records, or a control batch")
        if batch.last_offset_delta + 1 != batch.count:
            return Appended(codes.INVALID_RECORD, message="count and last offset delta disagree")
        if batch.producer_id >= 0 and (batch.base_sequence < 0 or batch.epoch < 0):
            return Appended(codes.INVALID_RECORD, message="producer id without epoch or sequence")
        return self._check_records(batch, version)

    def _check_records(self, batch: RecordBatch, version: int) -> Appended | None:
        try:
            codec = batch.codec
            if codec == "zstd" and version < 7:
                return Appended(codes.UNSUPPORTED_COMPRESSION_TYPE, message="zstd needs v7")
            if codec != "none" or self.strict_offsets:
                batch_records(batch)
        except ProtocolError as error:
            return Appended(codes.INVALID_RECORD, message=str(error))
        return None

    def _check_producer(self, batch: RecordBatch) -> Appended | None:
        """Duplicate, gap and epoch rules (ProducerAppendInfo.checkSequence, checkProducerEpoch)."""
        state = self._producers.get(batch.producer_id)
        if batch.producer_id == NO_PRODUCER or state is None:
            return None
        if batch.epoch < state.epoch:
            return Appended(codes.INVALID_PRODUCER_EPOCH, message="the epoch is over")
        if batch.epoch > state.epoch:
            if batch.base_sequence != 0:
                return Appended(
                    codes.OUT_OF_ORDER_SEQUENCE_NUMBER, message="a new epoch starts at sequence 0"
                )
            return None
        last = (batch.base_sequence + batch.count - 1) % _SEQUENCES
        for written in state.batches:
            if written.first_sequence == batch.base_sequence and written.last_sequence == last:
                return Appended(codes.NONE, written.base_offset)
        expected = (state.batches[-1].last_sequence + 1) % _SEQUENCES
        if batch.base_sequence != expected:
            return Appended(
                codes.OUT_OF_ORDER_SEQUENCE_NUMBER,
                message=f"sequence {batch.base_sequence} where {expected} was expected",
            )
        return None

    def _store(self, batch: RecordBatch) -> Appended:
        base_offset = self.end_offset
        raw = base_offset.to_bytes(8, "big") + bytes(batch.raw[8:12]) + bytes(4)
        raw += bytes(batch.raw[16:])
        self.end_offset += batch.count
        self.batches.append(
            StoredBatch(base_offset, self.end_offset - 1, batch.max_timestamp_ms, raw)
        )
        if batch.producer_id != NO_PRODUCER:
            state = self._producers.get(batch.producer_id)
            if state is None or state.epoch != batch.epoch:
                state = self._producers[batch.producer_id] = _ProducerState(batch.epoch)
            last = (batch.base_sequence + batch.count - 1) % _SEQUENCES
            state.batches.append(_Written(batch.base_sequence, last, base_offset))
        return Appended(codes.NONE, base_offset)

    def forget_producers(self) -> None:
        """As after producer.id.expiration.ms: nothing is known about any producer id."""
        self._producers.clear()

    def read(self, offset: int, max_bytes: int) -> bytes:
        """Return whole batches from the one that holds `offset` on, at least one if there is."""
        first = self._find(offset)
        found: list[bytes] = []
        size = 0
        for batch in self.batches[first:]:
            if found and size + len(batch.raw) > max_bytes:
                break
            found.append(batch.raw)
            size += len(batch.raw)
        return b"".join(found)

    def _find(self, offset: int) -> int:
        low, high = 0, len(self.batches)
        while low < high:
            middle = (low + high) // 2
            if self.batches[middle].last_offset < offset:
                low = middle + 1
            else:
                high = middle
        return low

    def offset_for_time(self, timestamp_ms: int) -> tuple[int, int]:
        """Return (offset, timestamp) of the first record at or after a time, or (-1, -1)."""
        for batch in self.batches:
            if batch.max_timestamp_ms >= timestamp_ms:
                for record in self._records(batch):
                    if record.timestamp_ms >= timestamp_ms:
                        return record.offset, record.timestamp_ms
        return -1, -1

    def records(self) -> list[StoredRecord]:
        """Return every record, in offset order."""
        return [record for batch in self.batches for record in self._records(batch)]

    @staticmethod
    def _records(stored: StoredBatch) -> list[StoredRecord]:
        (batch,) = parse_batches(stored.raw)
        return [
            StoredRecord(
                stored.base_offset + record.offset_delta,
                batch.base_timestamp_ms + record.timestamp_delta,
                record.key,
                record.value,
                record.headers,
                batch.producer_id,
                batch.epoch,
                -1
                if batch.base_sequence < 0
                else (batch.base_sequence + record.offset_delta) % _SEQUENCES,
            )
            for record in batch_records(batch)
        ]
