"""One partition's log: what it remembers, finds and hands out."""

from __future__ import annotations

import pytest

from mpproducer.testing.log import Appended, PartitionLog, received
from mpproducer.wire import error_codes as codes
from mpproducer.wire.record_batch import Record, RecordBatch, encode_batch, parse_batches

NOW_MS = 1_700_000_000_000


def _append(log: PartitionLog, data: bytes, version: int = 9) -> Appended:
    batch = received(data, version)
    assert isinstance(batch, RecordBatch)
    return log.append(batch, NOW_MS)


def _batch(count: int = 1, *, at_ms: int = NOW_MS, **producer: int) -> bytes:
    records = [Record(n, n, None, b"%d" % n) for n in range(count)]
    return encode_batch(records, base_timestamp_ms=at_ms, **producer)  # type: ignore[arg-type]


def _hole() -> bytes:
    return encode_batch(
        [Record(0, 0, None, b"a"), Record(2, 0, None, b"b")], base_timestamp_ms=NOW_MS
    )


def test_holes_are_refused_unless_it_is_told_to_be_as_lax_as_kafka() -> None:
    assert _append(PartitionLog(), _hole()).error_code == codes.INVALID_RECORD
    assert _append(PartitionLog(strict_offsets=False), _hole()).error_code == 0


def test_a_log_that_forgot_its_producers_takes_any_sequence() -> None:
    log = PartitionLog()
    producer = {"producer_id": 7, "epoch": 3}
    assert _append(log, _batch(base_sequence=0, **producer)).base_offset == 0
    gap = _append(log, _batch(base_sequence=5, **producer))
    assert gap.error_code == codes.OUT_OF_ORDER_SEQUENCE_NUMBER
    log.forget_producers()
    assert _append(log, _batch(base_sequence=5, **producer)).base_offset == 1
    assert _append(log, _batch(base_sequence=0, **producer)).error_code != 0


def test_records_come_with_their_place_time_and_producer() -> None:
    log = PartitionLog()
    _append(log, _batch(2, producer_id=7, epoch=1, base_sequence=(1 << 31) - 1))
    _append(log, _batch(1))
    found = log.records()
    assert [(r.offset, r.timestamp_ms, r.value) for r in found] == [
        (0, NOW_MS, b"0"), (1, NOW_MS + 1, b"1"), (2, NOW_MS, b"0"),
    ]  # fmt: skip
    assert [(r.producer_id, r.epoch, r.sequence) for r in found] == [
        (7, 1, (1 << 31) - 1), (7, 1, 0), (-1, -1, -1),
    ]  # fmt: skip


def test_reading_starts_at_the_batch_that_holds_the_offset_and_gives_one_at_least() -> None:
    log = PartitionLog()
    for count in (3, 1, 4):
        _append(log, _batch(count))

    def offsets(offset: int, max_bytes: int) -> list[int]:
        return [batch.base_offset for batch in parse_batches(log.read(offset, max_bytes))]

    assert offsets(0, 1 << 20) == [0, 3, 4]
    assert offsets(2, 1 << 20) == [0, 3, 4]
    assert offsets(3, 1) == [3]
    assert offsets(7, 1 << 20) == [4]
    assert offsets(8, 1 << 20) == []
    both = len(log.batches[0].raw) + len(log.batches[1].raw)
    assert offsets(0, both) == [0, 3]
    assert offsets(0, both - 1) == [0]


def test_the_first_record_since_a_time() -> None:
    log = PartitionLog()
    _append(log, _batch(3, at_ms=NOW_MS))
    _append(log, _batch(1, at_ms=NOW_MS - 500))
    _append(log, _batch(2, at_ms=NOW_MS + 100))
    assert log.offset_for_time(0) == (0, NOW_MS)
    assert log.offset_for_time(NOW_MS + 2) == (2, NOW_MS + 2)
    assert log.offset_for_time(NOW_MS + 3) == (4, NOW_MS + 100)
    assert log.offset_for_time(NOW_MS + 102) == (-1, -1)


@pytest.mark.parametrize("limit", [200, 100])
def test_a_batch_over_the_limit_is_refused_with_its_size(limit: int) -> None:
    log = PartitionLog(max_message_bytes=limit)
    data = encode_batch([Record(0, 0, None, bytes(limit))], base_timestamp_ms=NOW_MS)
    refused = _append(log, data)
    assert refused.error_code == codes.MESSAGE_TOO_LARGE
    assert str(len(data)) in (refused.message or "")
    assert log.records() == []
