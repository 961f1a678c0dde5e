"""What a broker says to a batch: error code, log start, indexes of the records it refuses.

Messages are not compared: the in-memory broker says why where Kafka says nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import lz4.frame
import pytest

from mpproducer.wire import error_codes as codes
from mpproducer.wire.record_batch import CODECS, Record, encode_record, parse_batches
from tests.probes import batches as b
from tests.probes.client import Raw, Topic

PACKED = CODECS[1:]
MAX_MESSAGE_BYTES = 1_048_588


class Refusal(NamedTuple):
    """`log_start` is 0 where Kafka found out while appending, -1 where it never came so far."""

    code: int
    log_start: int
    data: bytes


EARLY = {
    "nothing": Refusal(codes.INVALID_RECORD, -1, b""),
    "a few bytes": Refusal(codes.INVALID_RECORD, -1, b"0123456789"),
    "cut short": Refusal(codes.INVALID_RECORD, -1, b.sound()[:-1]),
    "two batches": Refusal(codes.INVALID_RECORD, -1, b.sound() + b.sound()),
    "magic 1": Refusal(codes.INVALID_RECORD, -1, b.changed(b.MAGIC_AT, ">b", 1)),
    "magic 3": Refusal(codes.CORRUPT_MESSAGE, -1, b.changed(b.MAGIC_AT, ">b", 3)),
    "garbage": Refusal(codes.CORRUPT_MESSAGE, -1, b"\xff" * 100),
    "length below a header": Refusal(codes.CORRUPT_MESSAGE, -1, b.changed(b.LENGTH_AT, ">i", 48)),
    "length below zero": Refusal(codes.CORRUPT_MESSAGE, -1, b.changed(b.LENGTH_AT, ">i", -1)),
    "wrong CRC": Refusal(codes.CORRUPT_MESSAGE, -1, b.damaged()),
    "too large": Refusal(codes.MESSAGE_TOO_LARGE, -1, b.of_size(MAX_MESSAGE_BYTES + 1)),
    "transactional without an id": Refusal(
        codes.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, -1, b.changed(b.ATTRIBUTES_AT, ">h", 0x10)
    ),
}
LATE = {
    "base offset 5": Refusal(codes.INVALID_RECORD, 0, b.changed(0, ">q", 5)),
    "no records": Refusal(codes.INVALID_RECORD, 0, b.around(b"", 0)),
    "count of zero": Refusal(codes.INVALID_RECORD, 0, b.changed(b.COUNT_AT, ">i", 0)),
    "count below zero": Refusal(codes.INVALID_RECORD, 0, b.changed(b.COUNT_AT, ">i", -1)),
    "count too high": Refusal(codes.INVALID_RECORD, 0, b.around(b.encoded(3), 4)),
    "count too low": Refusal(codes.INVALID_RECORD, 0, b.around(b.encoded(3), 2)),
    "last delta too high": Refusal(
        codes.INVALID_RECORD, 0, b.changed(b.LAST_DELTA_AT, ">i", 7)
    ),
    "last delta too low": Refusal(codes.INVALID_RECORD, 0, b.changed(b.LAST_DELTA_AT, ">i", 1)),
    "control": Refusal(codes.INVALID_RECORD, 0, b.changed(b.ATTRIBUTES_AT, ">h", 0x20)),
    "codec 5": Refusal(codes.UNKNOWN_SERVER_ERROR, 0, b.changed(b.ATTRIBUTES_AT, ">h", 5)),
    "dependent lz4 blocks": Refusal(
        codes.UNKNOWN_SERVER_ERROR,
        0,
        b.around(
            lz4.frame.compress(
                b"".join(encode_record(Record(i, 0, None, bytes(1000))) for i in range(300)),
                block_linked=True,
            ),
            300, "lz4", pack=False,
        ),
    ),
}  # fmt: skip
REFUSED = EARLY | LATE


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_batch_is_refused_and_not_stored(raw: Raw, topic: Topic, name: str) -> None:
    refusal = REFUSED[name]
    result = raw.produce(topic, refusal.data)
    assert (result.error_code, result.base_offset) == (refusal.code, -1)
    assert result.log_start_offset == refusal.log_start
    assert result.record_errors == ()
    assert raw.end_offset(topic) == 0
    assert raw.produce(topic, b.sound()).error_code == 0  # and the connection goes on


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("body", "count"),
    [
        (b.encoded(3) + b"zzz", 3),
        (b.encoded(1) + b.raw_record(b"\0\0\2\1\1\2\1\1"), 2),
        (b.raw_record(b"\0\0\0\1\1\0\0\0"), 1),
    ],
    ids=["bytes behind the last record", "header without a name", "record longer than its fields"],
)
def test_records_that_lie_are_refused_in_every_codec(
    raw: Raw, topic: Topic, codec: str, body: bytes, count: int
) -> None:
    result = raw.produce(topic, b.around(body, count, codec))
    assert (result.error_code, result.log_start_offset) == (codes.INVALID_RECORD, 0)
    assert raw.end_offset(topic) == 0


@pytest.mark.parametrize("codec", PACKED)
def test_a_compressed_stream_that_ends_early_is_refused(raw: Raw, topic: Topic, codec: str) -> None:
    whole = b.around(b.encoded(200), 200, codec)[61:]
    cut = b.around(whole[: len(whole) // 2], 200, codec, pack=False)
    result = raw.produce(topic, cut)
    assert (result.error_code, result.log_start_offset) == (codes.UNKNOWN_SERVER_ERROR, 0)
    assert raw.end_offset(topic) == 0


@pytest.mark.parametrize("codec", CODECS)
def test_offset_deltas_with_a_hole_are_refused_when_compressed(
    raw: Raw, topic: Topic, codec: str
) -> None:
    result = raw.produce(topic, b.with_hole(codec))
    expected = (0, 0) if codec == "none" else (codes.UNKNOWN_SERVER_ERROR, -1)
    assert (result.error_code, result.base_offset) == expected
    counted = b.changed(b.LAST_DELTA_AT, ">i", 2, b.with_hole(codec))
    assert raw.produce(topic, counted).error_code == codes.INVALID_RECORD


@pytest.mark.parametrize("codec", CODECS)
def test_records_too_far_in_the_future_are_named_one_by_one(
    raw: Raw, topic: Topic, codec: str
) -> None:
    far = 2 * b.HOUR_MS
    deltas = [0, far, 0, far, far, far]
    mixed = [Record(i, delta, None, b"v") for i, delta in enumerate(deltas)]
    result = raw.produce(topic, b.sound(mixed, codec=codec))
    assert (result.error_code, result.log_start_offset) == (codes.INVALID_TIMESTAMP, 0)
    assert [index for index, _message in result.record_errors] == [1, 3, 4, 5]
    assert raw.end_offset(topic) == 0


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_is_stored_as_it_came_and_in_order(raw: Raw, topic: Topic, codec: str) -> None:
    for number, count in enumerate((1, 200, 3)):
        result = raw.produce(topic, b.sound(b.records(count), codec=codec))
        assert (result.error_code, result.log_start_offset) == (0, 0)
        assert result.base_offset == (0, 1, 201)[number]
    assert raw.end_offset(topic) == 204
    found = list(parse_batches(raw.stored(topic)))
    assert [(f.base_offset, f.count, f.codec) for f in found] == [
        (0, 1, codec), (1, 200, codec), (201, 3, codec),
    ]  # fmt: skip
    assert all(f.crc_valid() and f.leader_epoch == 0 for f in found)
    assert bytes(found[0].records) == b.sound(b.records(1), codec=codec)[61:]


@pytest.mark.parametrize(
    "data",
    [
        b.sound(timestamp_ms=0),
        b.sound(timestamp_ms=-1),
        b.sound(timestamp_ms=-5),
        b.sound(timestamp_ms=b.NOW_MS + b.HOUR_MS - 600_000),
        b.changed(b.MAX_TIMESTAMP_AT, ">q", b.NOW_MS + 2 * b.HOUR_MS),
        b.changed(b.MAX_TIMESTAMP_AT, ">q", 5),
        b.changed(b.ATTRIBUTES_AT, ">h", 0x100),
        b.around(b.raw_record(b"\7\0\0\1\1\0"), 1),
        b.sound() + b"xyz",
        b.of_size(MAX_MESSAGE_BYTES),
        b.sound([Record(0, 0, None, bytes(3_000_000))], codec="gzip"),
    ],
    ids=[
        "timestamp 0", "no timestamp", "timestamp -5", "50 minutes ahead", "max timestamp lies up",
        "max timestamp lies down", "unused attribute", "unused record attribute",
        "bytes behind the batch", "largest batch", "small when compressed",
    ],
)  # fmt: skip
def test_a_batch_that_is_odd_but_legal_is_stored(raw: Raw, topic: Topic, data: bytes) -> None:
    result = raw.produce(topic, data)
    assert (result.error_code, result.base_offset, result.log_start_offset) == (0, 0, 0)
    assert raw.end_offset(topic) > 0


@pytest.mark.parametrize("version", [3, 6, 7, 13])
def test_zstd_needs_produce_v7(raw: Raw, topic: Topic, version: int) -> None:
    result = raw.produce(topic, b.sound(codec="zstd"), version=version)
    assert result.error_code == (codes.UNSUPPORTED_COMPRESSION_TYPE if version < 7 else 0)


def test_the_topic_s_max_message_bytes_counts(raw: Raw, topic: Topic) -> None:
    small = raw.create(f"{topic.name}-small", max_message_bytes="500")
    assert raw.produce(small, b.of_size(501)).error_code == codes.MESSAGE_TOO_LARGE
    assert raw.produce(small, b.of_size(500)).error_code == 0
    raw.delete(small.name)
