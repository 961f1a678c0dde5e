"""The body of a sealed batch: where its bytes are, its header, and the memory that it holds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import crc32c
import pytest

from mpproducer._core import native
from mpproducer.wire import record_batch
from tests.conftest import grown_bytes
from tests.core.test_append import Host, Record, frozen, opened


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


def _sealed(host: Host, records: int = 3) -> tuple[int, Any]:
    """(head slot, what the pool says) of a sealed batch that takes several slots."""
    for number in range(records):
        host.send(Record(bytes([number]) * 20_000, None, None, 1_000 + number))
    ((_, slot, _),) = opened(host.pool)
    return slot, frozen(host.pool, slot)


def test_a_sealed_batch_is_views_of_the_pool_and_its_checksum(host: Host) -> None:
    slot, (records, size, base_ms, max_ms, owners, body) = _sealed(host)
    assert (records, base_ms, max_ms, owners) == (3, 1_000, 1_002, (1,))
    assert (body.records, body.size_bytes, body.attributes) == (3, size, 0)
    data = b"".join(body.pieces)
    assert len(data) == size
    assert body.crc == crc32c.crc32c(data)
    assert body.unchanged()
    assert all(piece.readonly and piece.obj is host.pool for piece in body.pieces)
    assert len(record_batch.read_records(data, 3)) == 3
    del body
    assert host.pool.release(slot)


def test_the_pool_stays_mapped_while_a_body_or_a_view_or_a_request_is_in_it(host: Host) -> None:
    slot, (*_, body) = _sealed(host)
    assert host.pool.release(slot), "that the memory is free is another matter"
    piece = body.pieces[0]
    request = native.produce_request(9, 1, "c", -1, 1, None, [("t", 0, body, 1, 0, 0)])
    for last in ("body", "piece", "request"):
        with pytest.raises(BufferError, match="views of the pool are still in use"):
            host.pool.close()
        if last == "body":
            del body
        elif last == "piece":
            piece.release()
        else:
            request.advance(request.left_bytes)
    host.pool.close()


def test_a_body_of_a_closed_pool_is_an_error(host: Host) -> None:
    host.pool.close()
    with pytest.raises(ValueError, match="the pool is closed"):
        native.Body(host.pool, 1, 0, 0)


def test_a_change_is_seen_wherever_it_is(rng: random.Random) -> None:
    memory = bytearray(rng.randbytes(3_000))
    body = native.Body(memory, 1, 0, 0, spans=[(100, 50), (2_000, 1_000), (0, 10)])
    told = [*range(100, 150), *range(2_000, 3_000), *range(10)]
    for place in range(len(memory)):
        memory[place] ^= 1
        assert body.unchanged() == (place not in told)
        memory[place] ^= 1
    assert body.unchanged()


def test_a_header_is_that_of_the_record_batch_format(rng: random.Random) -> None:
    for _ in range(200):
        memory = rng.randbytes(rng.randrange(5_000))
        attributes, records = rng.randrange(1 << 15), rng.randrange(1, 1 << 31)
        base_ms, max_ms = (rng.randrange(-(1 << 63), 1 << 63) for _ in range(2))
        body = native.Body(memory, records, base_ms, max_ms, attributes)
        for _ in range(2):
            identity = (
                rng.randrange(-1, 1 << 63), rng.randrange(-1, 1 << 15), rng.randrange(-1, 1 << 31),
            )  # fmt: skip
            expected = record_batch.batch_header(
                len(memory), attributes, records, base_ms, max_ms, *identity, [memory]
            )
            assert body.header(*identity) == expected
            assert body.header(*identity) == expected


def test_a_header_has_the_checksum_of_the_bytes_as_they_were_checked() -> None:
    memory = bytearray(b"records")
    body = native.Body(memory, 1, 0, 0)
    header = body.header(1, 0, 0)
    memory[0] ^= 1
    assert body.header(1, 0, 0) == header
    assert body.header(1, 0, 1) != header
    assert not body.unchanged()
    assert native.Body(memory, 1, 0, 0, crc=body.crc).header(1, 0, 0) == header


def test_a_known_checksum_is_taken_and_bytes_are_not_read() -> None:
    assert native.Body(b"records", 1, 0, 0, crc=7).crc == 7
    assert native.Body(b"", 0, 0, 0, spans=[]).crc == 0


@pytest.mark.parametrize(
    ("spans", "error"),
    [
        ([(0, 11)], ValueError),
        ([(11, 0)], ValueError),
        ([(-1, 2)], ValueError),
        ([(1, -1)], ValueError),
        ([(5, 1 << 62)], ValueError),
        ([(0, 1 << 70)], OverflowError),
        ([(0, 1), (0,)], TypeError),
        ([7], TypeError),
        (((0, 1),), TypeError),
    ],
)
def test_spans_that_are_not_in_the_memory_are_refused(spans: Any, error: type[Exception]) -> None:
    memory = bytearray(10)
    with pytest.raises(error):
        native.Body(memory, 1, 0, 0, spans=spans)
    memory.append(1)  # raises BufferError while it is held


def test_no_code_of_others_runs_while_spans_are_read() -> None:
    spans: list[Any] = []

    class Index:
        def __index__(self) -> int:
            spans.clear()
            return 0

    spans += [(Index(), 1)] + [(0, 1)] * 1_000
    with pytest.raises(TypeError, match="offset is a number"):
        native.Body(bytes(10), 1, 0, 0, spans=spans)
    assert len(spans) == 1_001


def test_what_is_no_memory_and_no_checksum_is_refused() -> None:
    with pytest.raises(TypeError):
        native.Body("text", 1, 0, 0)  # type: ignore[arg-type]
    with pytest.raises(OverflowError, match="CRC"):
        native.Body(b"", 1, 0, 0, crc=1 << 32)
    with pytest.raises(BufferError):
        native.Body(memoryview(bytes(10))[::2], 1, 0, 0)


def test_nothing_leaks_from_bodies(rng: random.Random) -> None:
    memory = bytearray(1_000)

    def some() -> None:
        for _ in range(200):
            body = native.Body(memory, 1, 0, 0, spans=[(0, 10), (20, rng.randrange(900))])
            body.header(1, 0, 0)
            assert len(body.pieces) == 2
            with pytest.raises(ValueError, match="are not in a memory"):
                native.Body(memory, 1, 0, 0, spans=[(0, 10), (20, 5_000)])

    assert grown_bytes(some, 20) < 30_000
    memory.append(1)
