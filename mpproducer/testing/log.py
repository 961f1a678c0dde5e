"""One partition's log with the producer rules of a Kafka leader: pure, no sockets, no clock.

What `ProduceRequest`, `UnifiedLog`, `LogValidator` and `ProducerStateManager` check of a produced
batch, in their order. Stricter than Kafka in one point: offset deltas of uncompressed batches must
be dense, too (Kafka stores such holes silently).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mpproducer.wire import error_codes as codes
from mpproducer.wire.codec import Buffer, ProtocolError
from mpproducer.wire.compression import decompress
from mpproducer.wire.record_batch import (
    CODEC_MASK,
    CODECS,
    CONTROL,
    Headers,
    RecordBatch,
    batch_records,
    parse_batches,
    read_records,
)

REMEMBERED_BATCHES: Final = 5
MAX_AHEAD_MS: Final = 3_600_000  # message.timestamp.after.max.ms
MAX_RECORDS_BYTES: Final = 1 << 28
MAGIC_AT: Final = 16
MAGIC: Final = 2
LEAST_LENGTH: Final = 14  # of the oldest format
ZSTD: Final = CODECS.index("zstd")
ZSTD_SINCE: Final = 7
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
    log_start_offset: int = -1
    log_append_time_ms: int = -1


def received(data: bytes | memoryview, version: int) -> RecordBatch | Appended:
    """The one batch of a partition in a Produce request of a version, or why there is none.

    As `ProduceRequest.validateRecords`: what comes after the batch and is no batch is not seen.
    """
    try:
        raw = _first_batch(memoryview(data))
        if raw is None:
            return Appended(codes.INVALID_RECORD, message="no record batch")
        if raw[MAGIC_AT] != MAGIC:
            return Appended(codes.INVALID_RECORD, message=f"record batch of magic {raw[MAGIC_AT]}")
        (batch,) = parse_batches(raw)
        if batch.attributes & CODEC_MASK == ZSTD and version < ZSTD_SINCE:
            return Appended(codes.UNSUPPORTED_COMPRESSION_TYPE, message="zstd needs Produce v7")
        if _first_batch(memoryview(data)[len(raw) :]) is not None:
            return Appended(codes.INVALID_RECORD, message="more than one record batch")
    except ProtocolError as error:
        return Appended(codes.CORRUPT_MESSAGE, message=str(error))
    return batch


def _first_batch(data: memoryview) -> memoryview | None:
    """Bytes of the batch that starts here, None when they are fewer. Raises ProtocolError."""
    if len(data) <= MAGIC_AT:
        return None
    length = int.from_bytes(data[8:12], "big", signed=True)
    if length < LEAST_LENGTH:
        raise ProtocolError(f"record batch claims {length} bytes")
    if data[MAGIC_AT] > MAGIC:
        raise ProtocolError(f"record batch of magic {data[MAGIC_AT]}")
    return data[: 12 + length] if length <= len(data) - 12 else None


class _Written(NamedTuple):
    first_sequence: int
    last_sequence: int
    base_offset: int
    max_timestamp_ms: int


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

    def append(self, batch: RecordBatch, now_ms: int) -> Appended:
        """Validate a batch from `received` and append it."""
        return self._check(batch, now_ms) or self._check_producer(batch) or self._store(batch)

    def _check(self, batch: RecordBatch, now_ms: int) -> Appended | None:
        if batch.base_offset != 0:
            return self._refused(codes.INVALID_RECORD, "the base offset is not 0")
        if len(batch.raw) > self.max_message_bytes:
            return Appended(
                codes.MESSAGE_TOO_LARGE,
                message=f"{len(batch.raw)} bytes exceed max.message.bytes",
            )
        if not batch.crc_valid():
            return Appended(codes.CORRUPT_MESSAGE, message="CRC mismatch")
        if batch.attributes & CONTROL or batch.count <= 0:
            return self._refused(codes.INVALID_RECORD, "no records, or a control batch")
        if batch.last_offset_delta + 1 != batch.count:
            return self._refused(codes.INVALID_RECORD, "count and last offset delta disagree")
        if batch.producer_id >= 0 and batch.base_sequence < 0:
            return self._refused(codes.INVALID_RECORD, "a producer id without a sequence")
        return self._check_records(batch, now_ms)

    def _check_records(self, batch: RecordBatch, now_ms: int) -> Appended | None:
        data: Buffer = batch.records
        try:
            if batch.codec != "none":
                data = decompress(batch.codec, data, MAX_RECORDS_BYTES)
        except ProtocolError as error:  # to Kafka this is an accident, not an error of the client
            return self._refused(codes.UNKNOWN_SERVER_ERROR, str(error))
        try:
            records = read_records(data, batch.count, dense=False)
        except ProtocolError as error:
            return self._refused(codes.INVALID_RECORD, str(error))
        if any(record.offset_delta != index for index, record in enumerate(records)):
            if batch.codec != "none":
                return self._refused(codes.UNKNOWN_SERVER_ERROR, "offset deltas are not dense")
            if self.strict_offsets:
                return self._refused(codes.INVALID_RECORD, "offset deltas are not dense")
        latest = now_ms + MAX_AHEAD_MS - batch.base_timestamp_ms
        late = [i for i, record in enumerate(records) if record.timestamp_delta > latest]
        if late:
            return self._refused(
                codes.INVALID_TIMESTAMP,
                "One or more records have been rejected due to invalid timestamp",
                tuple((index, f"more than {MAX_AHEAD_MS} ms from now") for index in late),
            )
        return None

    def _refused(
        self, code: int, message: str, record_errors: tuple[tuple[int, str | None], ...] = ()
    ) -> Appended:
        """What Kafka refuses while it appends comes with the log's start; the rest does not."""
        return Appended(code, -1, message, record_errors, self.start_offset)

    def _check_producer(self, batch: RecordBatch) -> Appended | None:
        """Duplicate, gap and epoch rules (ProducerAppendInfo.checkSequence, checkProducerEpoch)."""
        state = self._producers.get(batch.producer_id)
        if batch.producer_id == NO_PRODUCER or state is None:
            return None
        if batch.epoch < state.epoch:
            return self._refused(codes.INVALID_PRODUCER_EPOCH, "the epoch is over")
        if batch.epoch > state.epoch:
            if batch.base_sequence != 0:
                return self._refused(
                    codes.OUT_OF_ORDER_SEQUENCE_NUMBER, "a new epoch starts at sequence 0"
                )
            return None
        last = (batch.base_sequence + batch.count - 1) % _SEQUENCES
        for written in state.batches:
            if written.first_sequence == batch.base_sequence and written.last_sequence == last:
                # Kafka tells a duplicate's timestamp as if the log had set it.
                return Appended(
                    codes.NONE,
                    written.base_offset,
                    log_start_offset=self.start_offset,
                    log_append_time_ms=written.max_timestamp_ms,
                )
        expected = (state.batches[-1].last_sequence + 1) % _SEQUENCES
        if batch.base_sequence != expected:
            return self._refused(
                codes.OUT_OF_ORDER_SEQUENCE_NUMBER,
                f"sequence {batch.base_sequence} where {expected} was expected",
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
        self._remember(batch, base_offset)
        return Appended(codes.NONE, base_offset, log_start_offset=self.start_offset)

    def _remember(self, batch: RecordBatch, base_offset: int) -> None:
        if batch.producer_id == NO_PRODUCER:
            return
        state = self._producers.get(batch.producer_id)
        if state is None or state.epoch != batch.epoch:
            state = self._producers[batch.producer_id] = _ProducerState(batch.epoch)
        last = (batch.base_sequence + batch.count - 1) % _SEQUENCES
        state.batches.append(
            _Written(batch.base_sequence, last, base_offset, batch.max_timestamp_ms)
        )

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
