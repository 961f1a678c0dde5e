"""Decoders under hostile bytes: the one documented error or a value, never anything else."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpproducer._core.native import FrameReader
from mpproducer.net.errors import FrameTooLarge
from mpproducer.sender.codec import decode_produce_response
from mpproducer.wire import framing
from mpproducer.wire.codec import ProtocolError
from mpproducer.wire.messages import APIS, PRODUCE, Api
from mpproducer.wire.record_batch import (
    Record,
    batch_records,
    encode_batch,
    parse_batches,
    read_records,
)
from tests.wire import peers

FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MAX_RECORDS_BYTES = 1 << 20
# Lengths that a peer may claim: the ends of every width, and varints of five bytes.
LIES = (
    b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\x7f\xff", b"\xff\xff", b"\x80\0",
    b"\xff\xff\xff\xff\x0f", b"\xff\xff\xff\xff\x07", b"\xff" * 10, b"\x80" * 10,
)  # fmt: skip


def _tolerates(decode: Callable[[bytes], Any], data: bytes) -> bool:
    """Whether there was a value; anything but a value or ProtocolError fails the test."""
    try:
        decode(data)
    except ProtocolError:
        return False
    return True


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The same bytes, cut or changed in a few places, with lengths that lie."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + rng.choice(LIES) + data[at:]
        elif kind == 2:
            lie = rng.choice(LIES)
            data = data[:at] + lie + data[at + len(lie) :]
        elif kind == 3 and at < len(data):
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        else:
            data = data[:at] + data[at + rng.randrange(9) :]
    return data


def _decoders(case: peers.Case) -> list[Callable[[bytes], Any]]:
    schema, version = case.schema, case.version
    found: list[Callable[[bytes], Any]] = [lambda data: schema.decode(version, data)]
    if schema is PRODUCE.response:
        found.append(lambda data: decode_produce_response(b"\0\0\0\1\0" + data, version, 1))
    return found


def test_changed_messages_of_every_table_and_version(rng: random.Random) -> None:
    values = errors = 0
    for case in peers.cases(rng, 8):
        sound = case.schema.encode(case.version, case.message)
        for decode in _decoders(case):
            for _ in range(8):
                if _tolerates(decode, mutated(rng, sound)):
                    values += 1
                else:
                    errors += 1
    assert values > 100
    assert errors > 1000


def test_every_prefix_of_a_message_is_refused(rng: random.Random) -> None:
    for case in peers.cases(rng, 1):
        sound = case.schema.encode(case.version, case.message)
        for end in {*range(min(64, len(sound))), *(rng.randrange(len(sound) or 1),)}:
            assert not _tolerates(_decoders(case)[0], sound[:end]) or not sound, case.name


@FUZZ
@given(st.binary(max_size=300), st.sampled_from(list(APIS.values())), st.integers(0, 16))
def test_any_bytes_as_an_answer(data: bytes, api: Api, version: int) -> None:
    _tolerates(lambda d: framing.decode_response(d, api, version, 0), data)
    _tolerates(lambda d: framing.decode_response(b"\0\0\0\0" + d, api, version, 0), data)


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes_as_a_request(data: bytes) -> None:
    def decode(frame: bytes) -> None:
        header, reader = framing.read_request_header(frame)
        framing.api_of(header.api_key).request.read(header.version, reader)

    _tolerates(decode, data)
    for api in APIS.values():
        head = framing.request_header(api, api.versions[1], 1, "c")
        _tolerates(decode, head + data)


@FUZZ
@given(st.binary(max_size=200), st.integers(-2, 1 << 31))
def test_any_bytes_as_records(data: bytes, count: int) -> None:
    _tolerates(lambda d: read_records(d, count), data)
    _tolerates(lambda d: list(parse_batches(d)), data)


def _read_all(data: bytes) -> list[list[Record]]:
    return [batch_records(batch, MAX_RECORDS_BYTES) for batch in parse_batches(data)]


def test_changed_batches_of_every_codec(rng: random.Random) -> None:
    errors = 0
    for codec in ("none", "gzip", "snappy", "lz4", "zstd"):
        records = [
            Record(n, n, rng.randbytes(5), rng.randbytes(50), (("h", None),)) for n in range(20)
        ]
        sound = encode_batch(records, base_timestamp_ms=1, codec_name=codec)
        assert _read_all(sound) == [records]
        for _ in range(200):
            errors += not _tolerates(_read_all, mutated(rng, sound))
    assert errors > 500


# --- frames out of a stream


def _fed(data: bytes, sizes: Callable[[], int], max_frame_bytes: int) -> tuple[list[bytes], bool]:
    """(frames, whether the stream was refused) of bytes that come in pieces."""
    reader = FrameReader(max_frame_bytes, FrameTooLarge)
    frames: list[bytes] = []
    at = 0
    while at < len(data):
        rest = memoryview(data)[at:]

        def read_into(view: memoryview, left: memoryview = rest) -> int:
            count = min(sizes(), len(view), len(left))
            view[:count] = left[:count]
            return count

        try:
            count, complete = reader.read(read_into)
        except FrameTooLarge:
            return frames, True
        assert count > 0
        frames += complete
        at += count
        if reader.refused is not None:
            return frames, True
    return frames, False


@FUZZ
@given(
    st.lists(st.binary(max_size=40), max_size=12),
    st.binary(max_size=12),
    st.randoms(use_true_random=False),
)
def test_a_stream_gives_the_same_frames_whole_or_byte_by_byte(
    frames: list[bytes], tail: bytes, order: random.Random
) -> None:
    data = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames) + tail
    whole = _fed(data, lambda: 1 << 20, 1000)
    single = _fed(data, lambda: 1, 1000)
    pieces = _fed(data, lambda: order.randrange(1, 9), 1000)
    assert single[0][: len(frames)] == frames
    assert whole[1] == pieces[1] == single[1]
    # A refused stream ends the connection; the frames before it count.
    assert whole[0] == pieces[0] == single[0]


def test_large_frames_over_the_reader_s_first_buffer_come_whole(rng: random.Random) -> None:
    frames = [rng.randbytes(size) for size in (0, 16380, 16384, 100_000, 3 << 20, 5, 70_000)]
    data = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
    assert _fed(data, lambda: rng.choice((1, 1000, 1 << 18)), 4 << 20) == (frames, False)
