"""Runs of records that are a value and nothing else, byte for byte: send_many against the twin of
test_append.py, which knows nothing of runs, slots or loops."""

from __future__ import annotations

import itertools
import random
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mpproducer._core import native
from tests.core.test_append import Host, Record, encode

Values = list[bytes | None]


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host(batch_size=8 << 20, slots=160)
    yield made
    made.take()
    assert made.pool.free_slots() == made.slots
    made.close()


def as_list(values: Values) -> Any:
    return values


def as_tuple(values: Values) -> Any:
    return tuple(values)


def as_offsets(code: str) -> Callable[[Values], Any]:
    """Offsets and data, which are contiguous and hold no nulls: those become empty values."""

    def make(values: Values) -> Any:
        data = b"".join(value or b"" for value in values)
        ends = itertools.accumulate((len(value or b"") for value in values), initial=0)
        return (array(code, ends), data)

    return make


FORMS = {"list": as_list, "tuple": as_tuple, "int32": as_offsets("i"), "int64": as_offsets("q")}


def check(host: Host, sent: Values) -> list[int]:
    """The batches hold exactly these values of one call; returns how many records each has."""
    place, counts = 0, []
    for records, base_ms, max_ms, data in host.take():
        assert base_ms == max_ms
        mine = enumerate(sent[place : place + records])
        assert data == b"".join(
            encode(Record(v, timestamp_ms=base_ms), i, base_ms) for i, v in mine
        )
        place += records
        counts.append(records)
    assert place == len(sent)
    return counts


def send(host: Host, column: Any, partition: int | None = None) -> Any:
    return host.producer.send_many("t", column, partition=partition)


def edges() -> list[int]:
    """Lengths around each that changes how a record is written or copied."""
    around = (0, 4, 8, 16, 32, 64, 128, 192, 256, 320, 1024, 8192, 16384, 32768)
    return sorted({max(0, at + by) for at in around for by in range(-14, 4)})


@pytest.mark.parametrize("form", FORMS)
def test_lengths_around_every_change_of_form(host: Host, rng: random.Random, form: str) -> None:
    sent: Values = [rng.randbytes(size) for size in edges()]
    send(host, FORMS[form](sent))
    check(host, sent)


@pytest.mark.parametrize("form", FORMS)
def test_offset_deltas_grow_by_a_byte_at_64_and_at_8192_within_a_call(
    host: Host, form: str
) -> None:
    sent: Values = [b"%07d" % i for i in range(native.MAX_BATCH_RECORDS + 100)]
    send(host, FORMS[form](sent))
    assert check(host, sent) == [native.MAX_BATCH_RECORDS, 100]


@pytest.mark.parametrize("before", (1, 62, 63, 64, 65))
def test_a_call_goes_on_where_the_batch_stands(host: Host, before: int) -> None:
    first: Values = [b"a%d" % i for i in range(before)]
    second: Values = [b"b" * (i % 90) for i in range(300)]
    send(host, first)
    send(host, second)
    # A tick of the clock between the two calls would show in the deltas.
    place = 0
    for records, base_ms, max_ms, data in host.take():
        mine = (first + second)[place : place + records]
        times = [base_ms] * before + [max_ms] * len(second)
        pairs = enumerate(zip(mine, times[place:], strict=False))
        assert data == b"".join(
            encode(Record(v, timestamp_ms=t), i, base_ms) for i, (v, t) in pairs
        )
        place += records
    assert place == before + len(second)


def test_nulls_and_empty_values_amid_others(host: Host, rng: random.Random) -> None:
    sent: Values = [rng.choice([None, b"", b"x", rng.randbytes(100)]) for _ in range(3000)]
    send(host, sent)
    check(host, sent)


def test_nothing_but_nulls(host: Host) -> None:
    send(host, [None] * 1500)
    check(host, [None] * 1500)


@pytest.mark.parametrize("delta", (63, 64, 8191, 8192, 1 << 27, 1 << 41, (1 << 48) - 1, 1 << 61))
@pytest.mark.parametrize("sign", (-1, 1))
def test_the_timestamp_delta_of_a_batch_that_others_began(
    host: Host, delta: int, sign: int
) -> None:
    """One delta for the whole call, of every length up to the longest."""
    began = min(max(0, time.time_ns() // 1_000_000 - sign * delta), 2**63 - 1)
    base = Record(b"first", timestamp_ms=began)
    host.send(base)
    sent: Values = [b"v" * (i % 150) for i in range(200)]
    send(host, sent)
    [(records, base_ms, max_ms, data)] = host.take()
    assert (records, base_ms) == (201, began)
    prefix = encode(base, 0, began)
    assert data.startswith(prefix)
    # The clock is the core's own: where it is not the newest, the records themselves tell it.
    at_ms = max_ms if max_ms != began else began + read_delta(data[len(prefix) :])
    mine = (Record(value, timestamp_ms=at_ms) for value in sent)
    assert data == prefix + b"".join(encode(r, i, began) for i, r in enumerate(mine, 1))


def read_delta(record: bytes) -> int:
    """The timestamp delta of a record at the beginning of these bytes."""
    at = next(i for i, byte in enumerate(record) if byte < 0x80) + 2  # behind length, attributes
    zigzag = shift = 0
    for byte in record[at:]:
        zigzag |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return zigzag >> 1 ^ -(zigzag & 1)


@pytest.mark.parametrize("size", (0, 1, 50, 100, 1023, 1024, 1025))
def test_slots_that_end_at_every_byte_of_a_record(host: Host, size: int) -> None:
    """The first value moves the others on, a byte at a time over more than a record's framing."""
    for lead in range(native.SLOT_SIZE - 40, native.SLOT_SIZE + 4):
        sent: Values = [b"l" * lead, *[b"s" * size] * 40]
        send(host, sent)
        check(host, sent)


@pytest.mark.parametrize("size", (7, 100, 700))
def test_batches_are_filled_as_by_the_loop_for_all_records(size: int) -> None:
    """A column of headers, all null, makes whole records of the same values."""
    counts = []
    for headers in ([None], None):
        host = Host(batch_size=20_000)
        values: Values = [bytes([i % 251]) * (size + i % 5) for i in range(40_000 // size)]
        column = headers * len(values) if headers else None
        host.producer.send_many("t", values, headers=column, partition=0)
        counts.append(check(host, values))
        host.close()
    assert len(counts[0]) > 2
    assert counts[0] == counts[1]


def test_memory_that_runs_out_in_mid_call_keeps_whole_records() -> None:
    host = Host(batch_size=60_000, slots=6)
    values: Values = [b"%04d" % i * 25 for i in range(2000)]
    result = send(host, values, 0)
    batches = host.take()
    kept = sum(batch[0] for batch in batches)
    assert 0 < kept < len(values)
    place = 0
    for records, base_ms, _, data in batches:
        mine = [Record(value, timestamp_ms=base_ms) for value in values[place : place + records]]
        assert data == b"".join(encode(r, i, base_ms) for i, r in enumerate(mine))
        place += records
    assert len(result) == len(values)
    assert host.pool.free_slots() == host.slots
    host.close()


def test_runs_of_random_lengths(host: Host, rng: random.Random) -> None:
    for _ in range(30):
        most = rng.choice([3, 70, 300, 2000, 20_000])
        count = rng.randrange(1, max(2, min(3000, 1_000_000 // most)))
        sent: Values = [rng.randbytes(rng.randrange(most)) for _ in range(count)]
        send(host, FORMS[rng.choice(list(FORMS))](sent))
        check(host, sent)
