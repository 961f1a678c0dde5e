"""Columns of `send_many`: numpy, Arrow, offsets and data; read back byte for byte."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import tracemalloc
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mpproducer
from mpproducer._core.native import murmur2
from mpproducer.testing import Broker

PARTITIONS = 5
VALUES = [b"", b"a", b"\x00binary\xff", b"x" * 300, "wörter".encode(), b"longer than twelve"] * 4
TEXTS = [b"", b"a", b"x" * 300, "wörter".encode(), b"longer than twelve bytes"] * 4


@pytest.fixture
def producer(broker: Broker) -> Iterator[mpproducer.Producer]:
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, linger_ms=0, max_block_ms=8000, sender_idle_ms=0
    ) as made:
        yield made


class Sent:
    """Sends into a fresh topic and reads back, in the order given to send_many."""

    def __init__(self, broker: Broker, producer: mpproducer.Producer) -> None:
        self.broker, self.producer, self.number = broker, producer, 0

    def __call__(self, values: Any, partitions: int = PARTITIONS, **given: Any) -> list[Any]:
        self.number += 1
        topic = f"t{self.number}"
        self.broker.create_topic(topic, partitions)
        future = self.producer.send_many(topic, values, **given)
        found = future.result(20)
        assert future.offsets == future.offsets_array().tolist() == [m.offset for m in found]
        assert future.partitions == [m.partition for m in found]
        assert len(future) == len(found)
        stored = [self.broker.records(topic, number) for number in range(partitions)]
        assert sum(map(len, stored)) == len(found)
        records = [stored[m.partition][m.offset] for m in found]
        assert [m.timestamp_ms for m in found] == [record.timestamp_ms for record in records]
        self.partitions = future.partitions
        return records


@pytest.fixture
def sent(broker: Broker, producer: mpproducer.Producer) -> Sent:
    return Sent(broker, producer)


def pair(values: list[bytes], code: str, data: Any = bytes) -> tuple[Any, Any]:
    """(offsets, data)."""
    ends = np.cumsum([0] + [len(value) for value in values])
    return array(code, ends.tolist()), data(b"".join(values))


ARROW = [pa.binary(), pa.large_binary(), pa.binary_view()]
ARROW_TEXT = [pa.string(), pa.large_string(), pa.string_view()]


def test_each_form_of_bytes_arrives_as_it_is(sent: Sent) -> None:
    def stored(column: Any, **given: Any) -> list[Any]:
        return [record.value for record in sent(column, partition=0, **given)]

    assert stored(VALUES) == VALUES
    assert stored(pair(VALUES, "i")) == VALUES
    assert stored(pair(VALUES, "q", bytearray)) == VALUES
    offsets, data = pair(VALUES, "q")
    view = np.frombuffer(data, np.uint8)
    assert stored((np.array(offsets, np.int32)[2:], view)) == VALUES[2:]
    for kind in ARROW:
        assert stored(pa.array(VALUES, kind)) == VALUES
    for kind in ARROW_TEXT:
        texts = [text.decode() for text in TEXTS]
        assert stored(pa.array(texts, kind)) == TEXTS
    fixed = [b"ab\x00", b"\x00\x00\x00", b"xyz"]
    assert stored(pa.array(fixed, pa.binary(3))) == fixed
    assert stored(np.array(fixed, "V3")) == fixed
    assert stored(np.frombuffer(b"".join(fixed), np.uint8).reshape(3, 3)) == fixed
    assert stored(np.zeros((2, 0), np.uint8)) == [b"", b""]
    assert stored(np.array(fixed, object)) == fixed


def test_numpy_S_strips_NULs_at_the_end_as_numpy_does(sent: Sent) -> None:
    column = np.array([b"ab\x00", b"\x00\x00\x00", b"\x00b", b"xyz"])
    assert [record.value for record in sent(column, partition=0)] == column.tolist()
    assert column.tolist() == [b"ab", b"", b"\x00b", b"xyz"]


def test_slices_and_strides_begin_where_they_begin(sent: Sent) -> None:
    def stored(column: Any) -> list[Any]:
        return [record.value for record in sent(column, partition=0)]

    strings = np.array([b"%02d" % n for n in range(20)])
    assert stored(strings[3:17:4]) == strings[3:17:4].tolist()
    assert stored(strings[::-1]) == strings[::-1].tolist()
    rows = np.arange(60, dtype=np.uint8).reshape(20, 3)
    assert stored(rows[::2]) == [row.tobytes() for row in rows[::2]]
    given = [None if n % 3 == 0 else b"value number %d" % n for n in range(40)]
    for kind in [*ARROW, pa.binary(16)]:
        data = [v if v is None or kind != pa.binary(16) else v[:16].ljust(16) for v in given]
        whole = pa.array(data, kind)
        assert stored(whole.slice(9, 23)) == data[9:32]
        chunks = [whole.slice(0, 5), whole.slice(5, 0), whole.slice(5, 28), whole.slice(33)]
        assert stored(pa.chunked_array(chunks)) == data
    assert stored(pa.chunked_array([], pa.binary())) == []
    assert stored(pa.array([], pa.string())) == []


def test_nulls_are_tombstones_and_records_without_a_key(sent: Sent) -> None:
    values = [b"v", None, b"", None] * 5
    keys = [b"k", b"k2", None, b""] * 5
    for kind in ARROW:
        records = sent(pa.array(values, kind), keys=pa.array(keys, kind))
        assert [(record.key, record.value) for record in records] == list(
            zip(keys, values, strict=True)
        )
    records = sent(pa.nulls(3), keys=pa.array([b"a", b"b", b"c"]))
    assert [(record.key, record.value) for record in records] == [
        (b"a", None), (b"b", None), (b"c", None),
    ]  # fmt: skip


def test_keyed_columns_go_where_single_sends_go_in_their_order(sent: Sent) -> None:
    keys = [b"user-%d" % (n % 37) for n in range(5000)]
    values = [b"%d" % n for n in range(5000)]
    for column in (keys, np.array(keys), pa.array(keys)):
        records = sent(np.array(values), keys=column)
        assert [record.value for record in records] == values
        wanted = [(murmur2(key) & 0x7FFFFFFF) % PARTITIONS for key in keys]
        assert sent.partitions == wanted
        for partition in range(PARTITIONS):
            there = [r.offset for r, p in zip(records, wanted, strict=True) if p == partition]
            assert there == list(range(len(there)))


def test_records_without_a_key_amid_keyed_ones_keep_the_order_of_their_partition(
    sent: Sent,
) -> None:
    keys = [None if n % 2 else b"%d" % n for n in range(3000)]
    records = sent([b"%d" % n for n in range(3000)], keys=pa.array(keys, pa.binary()))
    for partition in range(PARTITIONS):
        offsets = [
            record.offset
            for record, there in zip(records, sent.partitions, strict=True)
            if there == partition
        ]
        assert offsets == sorted(offsets)


def test_unkeyed_columns_move_to_another_partition_when_a_batch_is_full(broker: Broker) -> None:
    broker.create_topic("many", PARTITIONS)
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, batch_size=4000, sender_idle_ms=0
    ) as producer:
        future = producer.send_many("many", np.zeros((2000, 100), np.uint8))
        assert future.exception(20) is None
    facts = [broker.batch_facts("many", number)[0] for number in range(PARTITIONS)]
    assert all(facts)
    assert 2000 * 107 / 4000 < sum(facts) < 80  # batches are full


def test_timestamps_in_each_unit(sent: Sent) -> None:
    times = [0, 1, 1_700_000_000_123, 1_600_000_000_000]

    def stored(column: Any) -> list[int]:
        records = sent([b"v"] * len(column), partition=0, timestamps_ms=column)
        return [record.timestamp_ms for record in records]

    assert stored(times) == times
    assert stored(np.array(times)) == times
    assert stored(array("q", times)) == times
    assert stored(np.array(times)[::-1]) == times[::-1]
    assert stored(pa.array(times, pa.int64())) == times
    for unit, per_ms in (("ms", 1), ("us", 1000)):
        scaled = [time_ms * per_ms for time_ms in times]
        assert stored(np.array(scaled, f"M8[{unit}]")) == times
        assert stored(pa.array(scaled, pa.timestamp(unit, tz="UTC"))) == times
    whole = [time_ms // 1000 for time_ms in times]
    assert stored(pa.array(whole, pa.timestamp("s"))) == [second * 1000 for second in whole]
    assert stored(np.array(whole, "M8[s]")) == [second * 1000 for second in whole]
    assert (
        stored(pa.array([t * 1_000_000 + 999_999 for t in times[:3]], pa.timestamp("ns")))
        == (times[:3])
    )


def test_a_null_timestamp_is_now(sent: Sent) -> None:
    before = int(time.time() * 1000) - 100
    for column in (
        pa.array([None, 5], pa.int64()),
        np.array(["NaT", 5], "M8[ms]"),
        [None, 5],
        pa.array([None, 5], pa.timestamp("ms")),
    ):
        first, second = sent([b"a", b"b"], partition=0, timestamps_ms=column)
        assert before < first.timestamp_ms < time.time() * 1000 + 100
        assert second.timestamp_ms == 5


def test_a_column_of_partitions_decides_and_null_leaves_it_to_the_key(sent: Sent) -> None:
    wanted = [(n * 7) % PARTITIONS for n in range(2500)]
    values = [b"%d" % n for n in range(2500)]
    for kind in (np.int32, np.int64):
        records = sent(values, partition=np.array(wanted, kind), keys=[b"k"] * 2500)
        assert sent.partitions == wanted
        assert [record.value for record in records] == values
    keyed = (murmur2(b"k") & 0x7FFFFFFF) % PARTITIONS
    nulls = [None if n % 3 else p for n, p in enumerate(wanted)]
    for column in (pa.array(nulls, pa.int32()), pa.chunked_array([pa.array(nulls, pa.int64())])):
        sent(values, partition=column, keys=[b"k"] * 2500)
        assert sent.partitions == [keyed if p is None else p for p in nulls]
    sent(values, partition=np.int64(3))
    assert set(sent.partitions) == {3}
    sent(values, partition=2, keys=np.array([b"k"] * 2500))
    assert set(sent.partitions) == {2}


def test_headers_go_with_columns(sent: Sent) -> None:
    headers = [[("n", b"%d" % n), ("none", None)] if n % 2 else None for n in range(2000)]
    records = sent(pa.array([b"v"] * 2000), keys=[b"%d" % n for n in range(2000)], headers=headers)
    assert [list(record.headers) for record in records] == [given or [] for given in headers]


def test_a_partition_that_does_not_exist_fails_its_records_and_no_others(broker: Broker) -> None:
    broker.create_topic("few", 2)
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, max_block_ms=700, sender_idle_ms=0
    ) as producer:
        producer.send("few", b"first", partition=0).result(20)
        started = time.monotonic()
        wanted = array("i", [0, 9, 1, 9])
        future = producer.send_many("few", [b"a", b"b", b"c", b"d"], partition=wanted)
        assert time.monotonic() - started < 10
        assert [(at, type(error)) for at, error in future.failed] == [
            (1, mpproducer.MetadataTimeout), (3, mpproducer.MetadataTimeout),
        ]  # fmt: skip
        assert future.offsets == [1, -1, 0, -1]
        assert future.partitions == [0, -1, 1, -1]
        with pytest.raises(mpproducer.MetadataTimeout):
            future.result(0)


def swapped(column: Any) -> Any:
    return column.astype(column.dtype.newbyteorder(">"))


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"values": np.array([1, 2])}, TypeError, "values: an array must hold fixed-width bytes .*'l'"),
    ({"values": np.array(["a"])}, TypeError, "values: .*encode it first"),
    ({"values": np.zeros(3, np.uint8)}, TypeError, "values: .*in 1 dimensions"),
    ({"values": np.zeros((2, 6), np.uint8)[:, ::2]}, TypeError, "values: the bytes of a row"),
    ({"values": np.ma.array([b"a"], mask=[True])}, TypeError, "values: masked arrays"),
    ({"values": bytearray(b"ab")}, TypeError, "values must be a sequence .* got bytearray"),
    ({"values": pa.array([1])}, TypeError, "values: an Arrow column must hold binary .* 'l'"),
    ({"values": pa.array(["a"]).dictionary_encode()}, TypeError, "dictionary-encoded"),
    ({"values": pa.table({"a": [b"x"]})}, TypeError, "give one column of it"),
    ({"values": pa.record_batch({"a": [b"x"]})}, TypeError, "give one column of it"),
    ({"values": (array("i"), b"")}, ValueError, "one more offset than records"),
    ({"values": (array("i", [0, 3]), b"ab")}, ValueError, "values: record 0: .*end of the data"),
    (
        {"values": (array("q", [0, 2, 1]), b"ab")},
        ValueError,
        "values: record 1: an offset is .*less",
    ),
    (
        {"values": (array("i", [-1, 2]), b"ab")},
        ValueError,
        "values: record 0: an offset is negative",
    ),
    (
        {"values": (array("i", [0, 2]), "ab")},
        TypeError,
        "data must be a contiguous buffer, got str",
    ),
    ({"values": (np.arange(6)[::2], bytes(9))}, ValueError, "offsets must be contiguous"),
    *(
        ({"values": (np.array([0, 1, 2], kind), b"ab")}, TypeError, "must be int32 or int64")
        for kind in ("u4", "u8", "i2", ">i4", ">i8")
    ),
    (
        {"values": [b"a"], "keys": pa.array([b"a", b"b"])},
        ValueError,
        "keys has 2 items, values has 1",
    ),
    ({"values": pa.array([b"a"]), "keys": []}, ValueError, "keys has 0 items, values has 1"),
    (
        {"values": np.array([b"a"]), "keys": ["k"]},
        TypeError,
        "record 0: key must be .*; nothing was",
    ),
    ({"values": np.array([b"a"]), "headers": [[("h", 1)]]}, TypeError, "record 0: .*header 'h'"),
    ({"values": [b"a"], "timestamps_ms": np.array([1.5])}, TypeError, "timestamps_ms: .*'d'"),
    ({"values": [b"a"], "timestamps_ms": np.array([1], "i4")}, TypeError, "timestamps_ms: .*int64"),
    (
        {"values": [b"a"], "timestamps_ms": np.array([-5])},
        ValueError,
        "timestamps_ms: record 0: .*-5",
    ),
    (
        {"values": [b"a"], "timestamps_ms": np.array([1], "M8[D]")},
        TypeError,
        "datetime64 must count",
    ),
    ({"values": [b"a"], "timestamps_ms": pa.array([1.5])}, TypeError, "timestamps_ms: .*timestamp"),
    (
        {"values": [b"a"], "timestamps_ms": np.array([1, 2])},
        ValueError,
        "timestamps_ms has 2 items",
    ),
    (
        {"values": [b"a"], "timestamps_ms": pa.array([2**61], pa.timestamp("s"))},
        ValueError,
        "timestamps_ms: record 0: must be between",
    ),
    (
        {"values": [b"a"] * 2, "partition": np.array([1, -1])},
        ValueError,
        "partition: record 1: .*-1",
    ),
    ({"values": [b"a"], "partition": np.array([2**31])}, ValueError, "partition: record 0"),
    ({"values": [b"a"], "partition": np.array([1.0])}, TypeError, "partition: .*int32 or int64"),
    ({"values": [b"a"], "partition": pa.array(["0"])}, TypeError, "partition: .*int32 or int64"),
    ({"values": [b"a"], "partition": [0]}, TypeError, "partition must be an int"),
    ({"values": [b"a"], "partition": np.array([0, 0])}, ValueError, "partition has 2 items"),
    ({"values": [b"a"], "partition": swapped(np.array([1]))}, TypeError, "partition: "),
    ({"values": [b"a"], "timestamps_ms": swapped(np.array([1]))}, TypeError, "timestamps_ms: "),
]  # fmt: skip


def test_bad_columns_are_named_and_nothing_is_sent(
    broker: Broker, producer: mpproducer.Producer
) -> None:
    broker.create_topic("bad", 1)
    for arguments, kind, text in BAD:
        with pytest.raises(kind, match=text):
            producer.send_many("bad", **arguments)
    producer.send("bad", b"after").result(20)
    assert [record.value for record in broker.records("bad")] == [b"after"]


def test_full_memory_fails_the_rest_after_max_block_ms_and_keeps_what_was_appended(
    broker: Broker,
) -> None:
    broker.create_topic("slow", 3)
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers,
        max_block_ms=900,
        buffer_memory=1 << 20,
        sender_idle_ms=0,
    ) as producer:
        producer.send("slow", b"first").result(20)
        held = broker.on("Produce", times=1000).delay(4.0)
        rows = np.zeros((4000, 1000), np.uint8)
        keys = np.array([b"%d" % n for n in range(4000)])
        started = time.monotonic()
        future = producer.send_many("slow", rows, keys=keys)
        took_s = time.monotonic() - started
        assert took_s >= 0.85
        held.remove()
        failed = future.failed
        assert 2000 < len(failed) < 4000
        assert {type(error) for _at, error in failed} == {mpproducer.BufferFull}
        bad = {at for at, _error in failed}
        offsets = future.offsets
        assert all((offsets[n] == -1) == (n in bad) for n in range(4000))
        assert [p == -1 for p in future.partitions] == [n in bad for n in range(4000)]
        producer.send_many("slow", rows[:10]).result(20)
    stored = {record.key for record in broker.records("slow")} - {None}
    assert stored == {b"%d" % n for n in range(4000) if n not in bad}


def test_the_future_costs_a_fraction_of_a_reference_per_record(
    broker: Broker, producer: mpproducer.Producer
) -> None:
    broker.create_topic("cheap", 12)
    plain = producer.send_many("cheap", np.zeros((20_000, 20), np.uint8))
    keyed = producer.send_many(
        "cheap", np.zeros((20_000, 20), np.uint8), keys=np.array([b"%d" % n for n in range(20_000)])
    )
    assert sys.getsizeof(plain._runs) < 2_000
    assert sys.getsizeof(keyed._runs) < 20_000 * 6
    assert len(plain.offsets_array(20)) == len(keyed.offsets_array(20)) == 20_000
    assert np.frombuffer(keyed.offsets_array(), np.int64).min() >= 0


def test_nothing_is_kept_after_calls_that_succeed_and_calls_that_fail(
    broker: Broker, producer: mpproducer.Producer
) -> None:
    broker.create_topic("leak", 3)
    values = [b"value %d" % n for n in range(1100)]
    column, keys = pa.array(values), np.array(values)
    mixed: list[Any] = [bytearray(b"x"), b"y", memoryview(b"z"), None]
    times = np.arange(1100)

    def calls() -> None:
        producer.send_many("leak", values, keys=values)
        producer.send_many("leak", column, keys=keys, timestamps_ms=times)
        producer.send_many("leak", pa.chunked_array([column, column]))
        producer.send_many("leak", pair(values, "q"), keys=column)
        producer.send_many("leak", mixed, headers=[[("h", b"v" * 600)], None, None, []])
        for arguments, kind, _text in BAD:
            with pytest.raises(kind):
                producer.send_many("leak", **arguments)
        with pytest.raises(ValueError, match="has 1"):
            producer.send_many("leak", values, keys=pa.array([b"k"]))
        producer.flush(20)

    for _ in range(3):
        calls()
    gc.collect()
    counts = [sys.getrefcount(item) for item in (values[7], values, column, keys, mixed[0], times)]
    arrow_bytes = pa.total_allocated_bytes()

    def held() -> int:
        """What was allocated by lines of this file, which call the core; not by the broker."""
        gc.collect()
        mine = tracemalloc.Filter(True, __file__)
        traces = tracemalloc.take_snapshot().filter_traces([mine])
        return sum(trace.size for trace in traces.traces)

    tracemalloc.start()
    try:
        calls()
        before = held()
        for _ in range(10):
            calls()
        after = held()
    finally:
        tracemalloc.stop()
    now = [sys.getrefcount(item) for item in (values[7], values, column, keys, mixed[0], times)]
    assert now == counts
    assert pa.total_allocated_bytes() <= arrow_bytes
    assert after - before < 5_000  # ten leaked chunks, or ten futures, are more
    mixed[0].append(1)  # not exported any more


def test_numpy_and_pyarrow_are_not_imported_for_lists(broker: Broker) -> None:
    broker.create_topic("plain", 2)
    code = (
        "import sys, mpproducer\n"
        f"with mpproducer.Producer(bootstrap_servers={broker.bootstrap_servers!r}) as producer:\n"
        "    producer.send_many('plain', [b'v'] * 10, keys=[b'k'] * 10,\n"
        "                       timestamps_ms=[1] * 10).result(20)\n"
        "print(sorted({'numpy', 'pyarrow'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n"


records_of = st.lists(
    st.tuples(
        st.one_of(st.none(), st.binary(max_size=40)),
        st.one_of(st.none(), st.binary(max_size=9)),
        st.one_of(st.none(), st.integers(0, 2)),
        st.integers(0, 2**40),
    ),
    max_size=60,
)


def test_columns_do_what_lists_do(sent: Sent) -> None:
    @settings(
        max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(records_of, st.sampled_from(ARROW), st.integers(0, 60))
    def same(records: list[Any], kind: Any, cut: int) -> None:
        values, keys, partitions, times = (
            (list(part) for part in zip(*records, strict=True)) if (records) else ([], [], [], [])
        )
        whole = pa.array([b"ahead", *values], kind)
        column = pa.chunked_array([whole.slice(1, cut), whole.slice(1 + min(cut, len(values)))])
        given: dict[str, Any] = {
            "keys": pa.array(keys, kind),
            "timestamps_ms": np.array(times, np.int64),
            "partition": pa.array(partitions, pa.int32()),
        }
        by_column = sent(column, partitions=3, **given)
        columns_went = sent.partitions
        by_list = sent(
            values, partitions=3, keys=keys, timestamps_ms=times, partition=given["partition"]
        )

        def facts(found: list[Any]) -> list[Any]:
            return [(record.key, record.value, record.timestamp_ms) for record in found]

        assert facts(by_column) == facts(by_list)
        assert facts(by_column) == list(zip(keys, values, times, strict=True))
        for n, (key, partition) in enumerate(zip(keys, partitions, strict=True)):
            if partition is not None or key is not None:
                assert columns_went[n] == sent.partitions[n]

    same()
