"""Batches to bytes: headers follow the sequence, splits keep every record (K3, A21, A22)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mpproducer._core import native
from mpproducer.sender import actions as a
from mpproducer.sender import codec
from mpproducer.sender.batch import ProducerBatch
from mpproducer.sender.partition import Partition
from mpproducer.wire import compression, framing, record_batch
from mpproducer.wire.codec import ProtocolError
from mpproducer.wire.record_batch import Record

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


def _records(rng: random.Random, count: int) -> list[Record]:
    return [
        Record(
            index,
            rng.randrange(-50, 1_000) if index else 0,
            rng.choice((None, b"", rng.randbytes(rng.randrange(20)))),
            rng.choice((None, b"", rng.randbytes(rng.randrange(300)))),
            (("h" * rng.randrange(1, 5), rng.choice((None, b"", b"v"))),) * rng.randrange(3),
        )
        for index in range(count)
    ]


def _batch(records: list[Record], codec_name: str = "none", pieces: int = 3) -> ProducerBatch:
    batch = ProducerBatch(Partition("topic", 0, 4, 9), 1, 1, 0, 10)
    plain = b"".join(record_batch.encode_record(record) for record in records)
    data = plain if codec_name == "none" else compression.compress(codec_name, None, [plain])
    cuts = sorted(random.Random(1).randrange(len(data) + 1) for _ in range(pieces - 1))
    spans = [(i, j - i) for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    batch.records = len(records)
    batch.size_bytes = len(plain)
    batch.base_timestamp_ms = 1_000_000
    batch.max_timestamp_ms = 1_000_000 + max(record.timestamp_delta for record in records)
    batch.body = _body(batch, data, codec_name, spans)
    return batch


def _body(
    batch: ProducerBatch,
    data: bytes | bytearray,
    codec_name: str,
    spans: list[tuple[int, int]] | None = None,
) -> native.Body:
    return native.Body(
        data,
        batch.records,
        batch.base_timestamp_ms,
        batch.max_timestamp_ms,
        CODECS.index(codec_name),
        [(0, len(data))] if spans is None else spans,
    )


def _header(batch: ProducerBatch) -> bytes:
    body: native.Body = batch.body
    return body.header(batch.producer_id, batch.producer_epoch, batch.base_sequence)


def _wire(batch: ProducerBatch) -> bytes:
    return _header(batch) + b"".join(batch.body.pieces)


def _stamp(batch: ProducerBatch, producer_id: int, epoch: int, sequence: int) -> None:
    batch.producer_id, batch.producer_epoch, batch.base_sequence = producer_id, epoch, sequence


def test_the_header_carries_id_epoch_and_sequence_and_a_right_crc(rng: random.Random) -> None:
    batch = _batch(_records(rng, 20))
    _stamp(batch, 77, 3, 2**31 - 5)
    (parsed,) = record_batch.parse_batches(_wire(batch))
    assert (parsed.producer_id, parsed.epoch, parsed.base_sequence) == (77, 3, 2**31 - 5)
    assert parsed.crc_valid()
    assert len(record_batch.batch_records(parsed)) == 20


def test_the_crc_follows_when_the_sequence_changes(rng: random.Random) -> None:
    batch = _batch(_records(rng, 5))
    _stamp(batch, 1, 0, 10)
    first = _header(batch)
    assert _header(batch) == first
    _stamp(batch, 1, 1, 0)
    second = _header(batch)
    assert first[17:21] != second[17:21]
    (parsed,) = record_batch.parse_batches(_wire(batch))
    assert parsed.crc_valid()
    assert parsed.epoch == 1


def test_a_change_in_memory_is_seen(rng: random.Random) -> None:
    batch = _batch(_records(rng, 5), pieces=1)
    memory = bytearray(batch.body.pieces[0])
    batch.body = _body(batch, memory, "none")
    assert codec.unchanged(batch)
    memory[len(memory) // 2] ^= 1
    assert not codec.unchanged(batch)


@pytest.mark.parametrize("name", CODECS)
def test_K3_a_split_keeps_every_record_and_the_codec(name: str, rng: random.Random) -> None:
    records = _records(rng, 60)
    batch = _batch(records, name)
    parts = codec.split(batch, 700, name, None)
    assert len(parts) > 2
    seen: list[tuple[Any, ...]] = []
    for part in parts:
        assert part.first == len(seen)
        made = ProducerBatch(batch.partition, 1, -1, 0, 10, first=part.first)
        made.records, made.body = part.records, part.body
        made.base_timestamp_ms, made.max_timestamp_ms = (
            part.base_timestamp_ms,
            part.max_timestamp_ms,
        )
        (parsed,) = record_batch.parse_batches(_wire(made))
        assert parsed.crc_valid()
        assert parsed.codec == name
        assert part.wire_bytes == len(_wire(made))
        inside = record_batch.batch_records(parsed)
        assert [record.offset_delta for record in inside] == list(range(part.records))
        times = [part.base_timestamp_ms + record.timestamp_delta for record in inside]
        assert max(times) == part.max_timestamp_ms
        seen += [
            (time, record.key, record.value, list(record.headers))
            for time, record in zip(times, inside, strict=True)
        ]
    assert seen == [
        (1_000_000 + record.timestamp_delta, record.key, record.value, list(record.headers))
        for record in records
    ]


def test_A22_every_part_fits_the_limit_unless_it_is_one_record(rng: random.Random) -> None:
    records = _records(rng, 100)
    records[50] = Record(50, 0, None, b"x" * 5_000, ())
    for limit in (0, 1, 700, 3_000, 10**6):
        parts = codec.split(_batch(records), limit, "none", None)
        assert sum(part.records for part in parts) == 100
        for part in parts:
            assert part.records == 1 or part.size_bytes <= limit


@pytest.mark.parametrize("name", CODECS)
def test_a_split_of_damaged_memory_is_one_kind_of_error(name: str, rng: random.Random) -> None:
    plain = _batch(_records(rng, 30), name, pieces=1)
    good = bytes(plain.body.pieces[0])
    damaged = 0
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        bad = bad[: rng.choice((len(bad), rng.randrange(len(bad))))]
        plain.body = _body(plain, bytes(bad), name)
        try:
            codec.split(plain, 1_000, name, None)
        except codec.DecodeError:
            damaged += 1
    assert damaged > 50


def test_a_produce_request_groups_partitions_by_topic(rng: random.Random) -> None:
    batches = []
    for topic, number in (("a", 0), ("b", 0), ("a", 7)):
        batch = _batch(_records(rng, 3))
        batch.partition = Partition(topic, 0, number, 1)
        batches.append(batch)
    encoder = codec.ProduceEncoder("me")
    request = encoder.encode(a.SendProduce(1, 42, 9, -1, 30_000, tuple(batches)))
    data = request.peek(request.size_bytes)
    assert request.size_bytes == len(data) == 4 + int.from_bytes(data[:4], "big")
    assert data.count(b"\x02a\x03") == 1, "the topic, and that it has two partitions"
    assert data.index(_wire(batches[0])) < data.index(_wire(batches[2]))
    assert data.index(_wire(batches[2])) < data.index(_wire(batches[1]))


def test_answers_of_the_wrong_request_or_shape_are_one_kind_of_error(rng: random.Random) -> None:
    body = framing.encode_response(
        framing.api_of(22),
        4,
        9,
        {"throttle_time_ms": 0, "error_code": 0, "producer_id": 5, "producer_epoch": 0},
    )[4:]
    assert codec.decode_response(body, 9, 22, 4)["producer_id"] == 5
    with pytest.raises(codec.DecodeError):
        codec.decode_response(body, 10, 22, 4)
    for _ in range(300):
        length = rng.randrange(60)
        for api_key, version in ((0, 9), (0, 3), (3, 12), (18, 4), (22, 4)):
            try:
                codec.decode_response(rng.randbytes(length), 0, api_key, version)
            except ProtocolError:
                continue
