"""Record batches: byte for byte those of two clients' builders, read back by their readers."""

from __future__ import annotations

import random
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatch as AiokafkaBatch
from aiokafka.record.default_records import DefaultRecordBatchBuilder as AiokafkaBuilder
from kafka.record.default_records import DefaultRecordBatch as KafkaPythonBatch
from kafka.record.default_records import DefaultRecordBatchBuilder as KafkaPythonBuilder

from mpproducer.wire.codec import ProtocolError
from mpproducer.wire.record_batch import (
    CODECS,
    Record,
    batch_records,
    encode_batch,
    encode_record,
    parse_batches,
    read_records,
)

NOW_MS = 1_700_000_000_000
PRODUCER = {"producer_id": 4242, "producer_epoch": 3, "base_sequence": 2_147_483_646}


def _records(rng: random.Random, count: int) -> list[Record]:
    def some(sizes: tuple[int, ...]) -> bytes | None:
        size = rng.choice(sizes)
        return None if size < 0 else rng.randbytes(size // 2) + bytes(size - size // 2)

    return [
        Record(
            number,
            0 if number == 0 else rng.choice((0, 1, -1, 63, 64, 100_000, -100_000)),
            some((-1, 0, 1, 10, 70)),
            some((-1, 0, 1, 63, 64, 1000, 9000)),
            tuple(
                (rng.choice(("", "trace", "é日")), some((-1, 0, 3)))
                for _ in range(rng.choice((0, 0, 1, 3)))
            ),
        )
        for number in range(count)
    ]


def _by_kafka_python(records: list[Record], codec: str, *, idempotent: bool) -> bytes:
    return _built(KafkaPythonBuilder, records, codec, idempotent=idempotent)


def _by_aiokafka(records: list[Record], codec: str, *, idempotent: bool) -> bytes:
    return _built(AiokafkaBuilder, records, codec, idempotent=idempotent)


def _built(kind: Any, records: list[Record], codec: str, *, idempotent: bool) -> bytes:
    extra = PRODUCER if idempotent else dict.fromkeys(PRODUCER, -1)
    builder = kind(
        magic=2, compression_type=CODECS.index(codec), is_transactional=0, batch_size=1 << 24,
        **extra,
    )  # fmt: skip
    for record in records:
        builder.append(
            record.offset_delta, NOW_MS + record.timestamp_delta, record.key, record.value,
            list(record.headers),
        )  # fmt: skip
    return bytes(builder.build())


BUILDERS = [_by_kafka_python, _by_aiokafka]


def _ours(records: list[Record], codec: str, *, idempotent: bool) -> bytes:
    given = {"producer_id": 4242, "epoch": 3, "base_sequence": 2_147_483_646} if idempotent else {}
    return encode_batch(records, base_timestamp_ms=NOW_MS, codec_name=codec, **given)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("idempotent", [False, True])
def test_an_uncompressed_batch_is_byte_for_byte_theirs(
    build: Any, idempotent: bool, rng: random.Random
) -> None:
    for count in (1, 2, 63, 64, 65, 200):
        records = _records(rng, count)
        theirs = bytearray(build(records, "none", idempotent=idempotent))
        # Kafka's producer sends leader epoch -1; these builders send 0, outside the CRC.
        theirs[12:16] = b"\xff\xff\xff\xff"
        assert _ours(records, "none", idempotent=idempotent) == theirs


@pytest.mark.parametrize(
    ("build", "codec"),
    [(b, c) for b in BUILDERS for c in CODECS if (b, c) != (_by_kafka_python, "snappy")],
)
def test_their_batches_are_read_in_every_codec(build: Any, codec: str, rng: random.Random) -> None:
    records = _records(rng, 150)
    (batch,) = parse_batches(build(records, codec, idempotent=True))
    assert batch.crc_valid()
    assert (batch.codec, batch.count, batch.last_offset_delta) == (codec, 150, 149)
    assert (batch.producer_id, batch.epoch, batch.base_sequence) == (4242, 3, 2_147_483_646)
    assert batch.base_timestamp_ms == NOW_MS
    assert batch.max_timestamp_ms == NOW_MS + max(r.timestamp_delta for r in records)
    assert batch_records(batch) == records


@pytest.mark.parametrize(
    ("reader", "codec"),
    [
        (r, c)
        for r in (KafkaPythonBatch, AiokafkaBatch)
        for c in CODECS
        if (r, c) != (KafkaPythonBatch, "snappy")  # it wants one more library for that
    ],
)
def test_ours_are_read_by_their_readers_in_every_codec(
    reader: Any, codec: str, rng: random.Random
) -> None:
    records = _records(rng, 150)
    batch = reader(bytearray(_ours(records, codec, idempotent=True)))
    assert batch.validate_crc()
    found = [
        Record(r.offset, r.timestamp - NOW_MS, r.key, r.value, tuple(r.headers)) for r in batch
    ]
    assert found == records


def test_a_changed_bit_is_seen_by_the_crc_wherever_it_covers(rng: random.Random) -> None:
    sound = _ours(_records(rng, 5), "none", idempotent=True)
    for at in [*range(21, 61), len(sound) - 1, rng.randrange(61, len(sound))]:
        data = bytearray(sound)
        data[at] ^= 1 << rng.randrange(8)
        (batch,) = parse_batches(bytes(data))
        assert not batch.crc_valid(), at


def test_several_batches_come_one_after_another(rng: random.Random) -> None:
    data = b"".join(_ours(_records(rng, n), "none", idempotent=False) for n in (1, 2, 3))
    assert [batch.count for batch in parse_batches(data)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[:60], "60 bytes are no record batch"),
        (lambda d: d[:-1], "record batch claims"),
        (lambda d: d + b"x", "1 bytes are no record batch"),
        (lambda d: d[:16] + b"\1" + d[17:], "magic 1"),
        (lambda d: d[:8] + b"\0\0\0\x30" + d[12:], "record batch claims 48"),
        (lambda d: d[:8] + b"\x7f\xff\xff\xff" + d[12:], "record batch claims 2147483647"),
        (lambda d: d[:8] + b"\xff\xff\xff\xff" + d[12:], "record batch claims -1"),
    ],
)
def test_what_is_no_batch_is_refused(change: Any, message: str, rng: random.Random) -> None:
    data = _ours(_records(rng, 3), "none", idempotent=False)
    with pytest.raises(ProtocolError, match=message):
        list(parse_batches(change(data)))


def test_an_unknown_codec_is_refused(rng: random.Random) -> None:
    data = bytearray(_ours(_records(rng, 3), "none", idempotent=False))
    data[22] |= 6
    (batch,) = parse_batches(bytes(data))
    with pytest.raises(ProtocolError, match="codec 6 is not known"):
        batch_records(batch)


@pytest.mark.parametrize(
    ("data", "count", "message"),
    [
        (encode_record(Record(0, 0, b"k", b"v")), 2, "record 1 ends behind its"),
        (encode_record(Record(1, 0, b"k", b"v")), 1, "offset delta 1"),
        (encode_record(Record(0, 0, b"k", b"v")) + b"x", 1, "1 bytes behind"),
        (b"\x10\0\0\0\1\1\0\0\0", 1, "longer than its fields"),
        (b"\x0c\0\0\0\1\1\x01", 1, "claims -1 headers"),
        (b"\x0c\0\0\0\1\1\x7e", 1, "claims 63 headers"),
        (b"\x10\0\0\0\1\1\2\1\1", 1, "header without a name"),
        (b"\x12\0\0\0\1\1\2\2\xff\1", 1, "not UTF-8"),
        (b"\x0c\0\0\0\7\1\0", 1, "a field of -4 bytes"),
        (b"", 1, "1 records do not fit 0 bytes"),
        (b"", -1, "-1 records do not fit"),
    ],
)
def test_a_record_that_lies_is_refused(data: bytes, count: int, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        read_records(data, count)
