"""What append writes, byte for byte, against an independent encoder; and what the walk refuses."""

from __future__ import annotations

import mmap
import os
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import crc32c
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2 as kafka_murmur2

from mpproducer._core import native
from tests.core.words import SEAL, find_word

SLOTS = 24
Headers = list[tuple[str, bytes | None]]


class Record(NamedTuple):
    value: bytes | None
    key: bytes | None = None
    headers: Headers | None = None
    timestamp_ms: int = 1000


# --- the twin: written from the protocol's description, not from the core


def varint(number: int) -> bytes:
    zigzag = (number << 1) ^ (number >> 63)
    out = bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)


def field(data: bytes | None) -> bytes:
    return varint(-1) if data is None else varint(len(data)) + data


def encode(record: Record, index: int, base_ms: int) -> bytes:
    body = b"\0" + varint(record.timestamp_ms - base_ms) + varint(index)
    body += field(record.key) + field(record.value)
    headers = record.headers or []
    body += varint(len(headers))
    for name, value in headers:
        body += field(name.encode()) + field(value)
    return varint(len(body)) + body


# --- one process that is both sides


def frozen(pool: native.Pool, slot: int) -> Any:
    """A batch that is sealed now, and good."""
    [found] = pool.freeze([slot], 0)
    assert found is not None and len(found) == 6, found
    return found


def opened(pool: native.Pool) -> list[tuple[int, int, int]]:
    """(partition index, head slot, when in ns) of the batches opened since the last call."""
    found, _, _ = pool.collect(True)
    return [(partition, slot, when) for partition, seq, slot, _, when in found if seq]


class Host:
    """A pool, a topic of one partition, and a producer attached to it."""

    MAX_PARTITIONS = 4

    def __init__(
        self, batch_size: int = 1 << 20, slots: int = SLOTS, *, compress: bool = False
    ) -> None:
        ctl_size, pool_size = native.segment_sizes(slots, self.MAX_PARTITIONS, 1)
        ctl, memory = os.memfd_create("ctl"), os.memfd_create("pool")
        os.ftruncate(ctl, ctl_size)
        os.ftruncate(memory, pool_size)
        self.pool = native.Pool(
            ctl, memory, slots, self.MAX_PARTITIONS, 1, batch_size=batch_size,
            max_request_size=1 << 22, linger_us=1000, generation=1, compress=compress,
        )  # fmt: skip
        self.pool.topic_ready(self.pool.topic_add("t"), 1)
        self.ctl, self.memory = ctl, memory
        self.slots = slots
        self.writers: list[int] = []
        self.producers: list[native.ProducerBase] = []
        self.producer = self.join(1)
        self.attachment = self.producer._attachment
        self.writer = self.writers[0]

    def join(self, owner: int) -> Any:
        """A producer of one more worker."""

        class Producer(native.ProducerBase):
            pass

        self.pool.owner_alive(owner, True)
        reader, writer = os.pipe()
        self.writers.append(writer)
        wake = os.eventfd(0, os.EFD_NONBLOCK)
        producer = Producer()
        # The attachment takes its descriptors over.
        producer._attachment = native.Attachment(
            os.dup(self.ctl), os.dup(self.memory), wake, reader, owner, self.slots,
            self.MAX_PARTITIONS, 1,
        )  # fmt: skip
        producer._max_block_ns = 0
        self.producers.append(producer)
        return producer

    def send(self, record: Record) -> native.DeliveryFuture:
        future: native.DeliveryFuture = self.producer.send(
            "t", record.value, record.key, record.headers, None, record.timestamp_ms
        )
        return future

    def payload_at(self) -> int:
        """Where the slots' bytes begin in the pool's memory."""
        return os.fstat(self.memory).st_size - self.slots * native.SLOT_SIZE

    def payload(self) -> memoryview:
        pool: Any = self.pool  # the buffer protocol has no type before Python 3.12
        return memoryview(pool)

    def take(self) -> list[tuple[int, int, int, bytes]]:
        """(records, base, max timestamp, bytes) of every batch so far; their memory goes back."""
        found = []
        for _, slot, _ in opened(self.pool):
            records, size, base_ms, max_ms, owners, body = frozen(self.pool, slot)
            assert records == body.records == 0 or owners == (1,)
            data = b"".join(body.pieces)
            assert len(data) == size == body.size_bytes
            assert body.crc == crc32c.crc32c(data)
            found.append((records, base_ms, max_ms, data))
            assert self.pool.release(slot)
        return found

    def close(self) -> None:
        for producer in self.producers:
            if producer._attachment is not None:
                producer._attachment.close()
            producer._attachment = None
        self.attachment.close()
        for fd in (*self.writers, self.ctl, self.memory):
            os.close(fd)
        self.pool.close()


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.take()
    assert made.pool.free_slots() == made.slots
    made.close()


def check_same(host: Host, sent: list[Record]) -> None:
    """The batches hold exactly the records that were sent, as the twin encodes them."""
    place = 0
    for records, base_ms, max_ms, data in host.take():
        mine = sent[place : place + records]
        assert data == b"".join(encode(r, i, mine[0].timestamp_ms) for i, r in enumerate(mine))
        assert base_ms == mine[0].timestamp_ms
        assert max_ms == max(r.timestamp_ms for r in mine)
        place += records
    assert place == len(sent)


some_bytes = st.none() | st.binary(max_size=40) | st.integers(0, 40000).map(lambda n: b"x" * n)
some_headers = st.none() | st.lists(
    st.tuples(st.text(max_size=8), st.none() | st.binary(max_size=20)), max_size=4
)
some_times = st.integers(0, 2**63 - 1) | st.integers(1000, 1200)
some_records = st.lists(
    st.builds(Record, some_bytes, some_bytes, some_headers, some_times), max_size=5
)


@settings(
    max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(some_records)
def test_records_are_encoded_as_by_the_twin(host: Host, records: list[Record]) -> None:
    futures = [host.send(record) for record in records]
    assert not any(future.done() for future in futures), "a record was not appended"
    check_same(host, records)


def test_a_record_of_nothing_but_nulls_is_a_record(host: Host) -> None:
    host.send(Record(None))
    check_same(host, [Record(None)])


def test_offset_deltas_grow_by_a_byte_at_64_and_at_8192(host: Host) -> None:
    sent = [Record(b"v", timestamp_ms=1000 + i % 3) for i in range(8200)]
    futures = [host.send(record) for record in sent]
    assert [futures[i].index for i in (0, 63, 64, 8191, 8192)] == [0, 63, 64, 8191, 8192]
    check_same(host, sent)


def test_a_batch_takes_its_maximum_of_records_and_no_more(host: Host) -> None:
    sent = [Record(None) for _ in range(native.MAX_BATCH_RECORDS + 1)]
    futures = [host.send(record) for record in sent]
    assert futures[-2].index == native.MAX_BATCH_RECORDS - 1
    assert futures[-1].index == 0
    check_same(host, sent)


@pytest.mark.parametrize("around", range(-3, 4))
def test_chains_over_the_ends_of_slots(host: Host, around: int) -> None:
    """Records that end just before, at and behind a slot's end, and span several."""
    head = len(encode(Record(b""), 0, 1000))
    first = native.SLOT_SIZE - head - 2 + around
    sent = [Record(b"a" * first), Record(b"b" * 5), Record(b"c" * 3 * native.SLOT_SIZE)]
    sent += [Record(b"d", key=b"k" * 20000, headers=[("h", b"x" * 17000)]), Record(b"end")]
    for record in sent:
        host.send(record)
    check_same(host, sent)


def mapped_pages(host: Host) -> int:
    """How many pages of the host's records this process has mapped, the sender's view included."""
    inode, payload = str(os.fstat(host.memory).st_ino), host.payload_at()
    pages = (os.fstat(host.memory).st_size - payload) // mmap.PAGESIZE
    found = views = 0
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        for line in Path("/proc/self/maps").read_text(encoding="ascii").splitlines():
            span, _, _, _, its_inode, *_ = line.split()
            if its_inode == inode:
                start = int(span.partition("-")[0], 16) + payload
                pagemap.seek(start // mmap.PAGESIZE * 8)
                entries = struct.unpack(f"<{pages}Q", pagemap.read(pages * 8))
                found += sum(entry >> 63 for entry in entries)
                views += 1
    assert views == 2
    return found


def test_a_batch_that_grows_has_its_pages_mapped_at_once(host: Host) -> None:
    """One by one each would cost a fault; one of a single slot takes no more than it needs."""
    with mmap.mmap(-1, mmap.PAGESIZE) as probe:
        try:
            probe.madvise(23)  # MADV_POPULATE_WRITE
        except OSError:
            pytest.skip("before Linux 5.14")
    slot_pages = native.SLOT_SIZE // mmap.PAGESIZE
    assert mapped_pages(host) == 0
    host.send(Record(b"x"))
    assert 0 < mapped_pages(host) <= slot_pages
    host.send(Record(b"y" * native.SLOT_SIZE))
    assert mapped_pages(host) == 16 * slot_pages
    host.send(Record(b"z" * 12 * native.SLOT_SIZE))
    assert mapped_pages(host) == 16 * slot_pages
    host.send(Record(b"z" * 3 * native.SLOT_SIZE))
    assert mapped_pages(host) == SLOTS * slot_pages, "the last run is half as long"
    assert sum(records for records, *_ in host.take()) == 4


def test_K5_a_batch_that_is_full_is_sealed_and_the_next_one_takes_over() -> None:
    host = Host(batch_size=20000)
    rng = random.Random(5)
    sent = [Record(rng.randbytes(rng.randrange(9000))) for _ in range(40)]
    batches = list(dict.fromkeys(host.send(record).batch_id for record in sent))
    slots = [slot for _, slot, _ in opened(host.pool)]
    assert len(slots) == len(batches) > 5
    with mmap.mmap(host.memory, 0) as memory:
        words = [struct.unpack_from("<Q", memory, find_word(memory, one))[0] for one in batches]
    assert all(word & SEAL for word in words[:-1]), "only the last one is open"
    assert not words[-1] & SEAL
    records = 0
    for slot in slots:
        found = frozen(host.pool, slot)
        records += found[0]
        assert found[1] <= 20000
        host.pool.release(slot)
    del found  # it is in the pool's memory
    assert records == len(sent)
    assert host.pool.free_slots() == SLOTS
    host.close()


def test_murmur2_is_javas(rng: random.Random) -> None:
    java = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        b"abc": 479470107,
    }
    for data, expected in java.items():
        assert native.murmur2(data) == expected & 0xFFFFFFFF
    for size in [*range(40), 1000, 4097]:
        data = rng.randbytes(size)
        assert native.murmur2(data) == kafka_murmur2(data) & 0xFFFFFFFF


# --- the walk against damaged memory


def parse(data: bytes, records: int) -> bool:
    """Whether these bytes are `records` records, by the protocol's description."""
    at = 0

    def number(limit: int) -> int:
        nonlocal at
        zigzag = 0
        for i in range(limit):
            byte = data[at]
            at += 1
            zigzag |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                zigzag &= 2**64 - 1
                return zigzag >> 1 ^ -(zigzag & 1)
        raise ValueError("a varint is too long")

    def skip(end: int, *, nullable: bool) -> None:
        nonlocal at
        length = number(5)
        if length < (-1 if nullable else 0) or at + max(length, 0) > end:
            raise ValueError("a field leaves its record")
        at += max(length, 0)

    try:
        for index in range(records):
            length = number(5)
            end = at + length
            if length < 0 or end > len(data) or data[at] != 0:
                return False
            at += 1
            number(10)
            if number(5) != index:
                return False
            skip(end, nullable=True)
            skip(end, nullable=True)
            headers = number(5)
            if headers < 0:
                return False
            for _ in range(headers):
                skip(end, nullable=False)
                skip(end, nullable=True)
            if at != end:
                return False
    except (ValueError, IndexError):
        return False
    return at == len(data)


def test_the_walk_refuses_what_is_no_batch(host: Host, rng: random.Random) -> None:
    """Every byte of a batch, damaged in several ways: the walk and the parser agree each time."""
    for record in (
        Record(None),
        Record(b"value" * 30, b"key", [("a", b"b"), ("n", None)], 1001),
        Record(b"", b"", None, 99000),
        Record(b"z" * 3, None, None, 5),
    ):
        host.send(record)
    [(_, slot, _)] = opened(host.pool)
    records, size, *_, body = frozen(host.pool, slot)
    [piece] = body.pieces
    whole = bytes(piece)
    assert len(whole) == size
    with host.payload() as payload:
        at = payload.tobytes().index(whole)
    start = host.payload_at() + at
    refused = accepted = 0
    for place, byte in enumerate(whole):
        for value in {0, 1, 0x7F, 0x80, 0xFF, byte ^ 1, byte ^ 0x80, rng.randrange(256)} - {byte}:
            os.pwrite(host.memory, bytes([value]), start + place)
            damaged = whole[:place] + bytes([value]) + whole[place + 1 :]
            [found] = host.pool.freeze([slot], 0)
            assert found is not None
            if len(found) == 2:
                assert not parse(damaged, records), (place, value)
                refused += 1
            else:
                assert parse(damaged, records), (place, value)
                accepted += 1
        os.pwrite(host.memory, bytes([byte]), start + place)
    assert refused > 100, "structure was never damaged"
    assert accepted > 100, "content was never damaged"
    assert frozen(host.pool, slot)[0] == records
    assert host.pool.release(slot)


MIB = 1 << 20


@pytest.fixture
def large_host() -> Iterator[Host]:
    made = Host(batch_size=8 * MIB, slots=400)
    yield made
    made.close()


def test_lengths_grow_by_a_byte_at_64_at_8192_and_at_1_MiB(large_host: Host) -> None:
    sizes = [end + by for end in (64, 8192, MIB) for by in (-9, -8, -1, 0)]
    sent = [*(Record(b"v" * size) for size in sizes), Record(b"", b"k" * MIB)]
    for record in sent:
        large_host.send(record)
    check_same(large_host, sent)


def test_a_length_of_four_bytes_is_not_taken_for_one_of_three(large_host: Host) -> None:
    """With the bit that says that more follow they would be 1 MiB, and fit. It is the second
    record: what is first in its span the general reader takes."""
    for size in (1, MIB - 10, 12):
        large_host.send(Record(b"v" * size))
    [(_, slot, _)] = opened(large_host.pool)
    *_, body = frozen(large_host.pool, slot)
    bad = encode(Record(b"v"), 0, 1000)
    bad += b"\x80\x80\x80" + b"\0\0" + varint(1) + b"\1" + field(b"v" * (MIB - 8)) + b"\0"
    bad += encode(Record(b"v" * 10), 2, 1000)
    assert len(bad) == body.size_bytes
    os.pwrite(large_host.memory, bad, large_host.payload_at())
    assert b"".join(body.pieces) == bad
    assert not parse(bad, 3)
    assert large_host.pool.freeze([slot], 0) == [("a record's length does not fit its batch", 3)]
    del body
    assert large_host.pool.release(slot)


def test_the_sender_learns_when_a_batch_was_opened(host: Host) -> None:
    before = time.monotonic_ns()
    host.send(Record(b"first"))
    after = time.monotonic_ns()
    time.sleep(0.01)
    host.send(Record(b"second, of the same batch"))
    [(_, slot, opened_ns)] = opened(host.pool)
    assert before - 1000 <= opened_ns <= after + 1000
    assert frozen(host.pool, slot)[0] == 2
    assert host.pool.release(slot)
