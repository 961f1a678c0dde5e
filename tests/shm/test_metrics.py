"""Named metrics of words in memory: windows, rows, names, and readers beside a writer."""

from __future__ import annotations

import math
import os
import subprocess
import time
import traceback
from pathlib import Path

import kafka_jars
import pytest

from mpproducer._core import native
from mpproducer.reason import Reason
from mpproducer.sender.counters import Counters
from mpproducer.shm import metrics, segment
from mpproducer.shm.counters import (
    COPIED_FIRST,
    COPIED_NAMES,
    EVENT_NAMES,
    INDEX,
    NAMES,
    TALLY_NAMES,
)
from mpproducer.testing import Broker

S = 1_000_000_000
MS = 1_000_000
JAVA = Path(__file__).with_name("java-producer-metrics.txt")
PROGRAM = Path(__file__).with_name("ProducerMetrics.java")
TABLES = {
    metrics.PRODUCER: metrics.PRODUCER_METRICS,
    metrics.NODE: metrics.NODE_METRICS,
    metrics.TOPIC: metrics.TOPIC_METRICS,
}


class Recorded:
    """Metrics in memory of their own, and the sender's counters beside them."""

    def __init__(self, topics: int = 2) -> None:
        self.native = native.Metrics(topics)
        self.counters = Counters()
        self.sample(0)

    def publish(self) -> None:
        values = [getattr(self.counters, name.replace("-", "_")) for name in COPIED_NAMES]
        self.native.publish(COPIED_FIRST, values)

    def sample(self, now_ns: int) -> None:
        self.publish()
        self.native.sample(now_ns)

    def at(self, now_ns: int) -> metrics.Metrics:
        self.publish()
        return metrics.build(self.native.read(), now_ns)


# --- names


def java_names(text: str) -> set[tuple[str, str]]:
    return {(group, name) for group, name in (line.split() for line in text.splitlines())}


def test_every_metric_of_java_is_here_or_said_not_to_apply() -> None:
    absent = tuple(metrics.NOT_APPLICABLE)
    for group, name in sorted(java_names(JAVA.read_text())):
        ours = {metric.name for metric in TABLES.get(group, ())}
        excused = group in absent or name.startswith(absent)
        assert (name in ours) != excused, (group, name)


def test_what_is_not_javas_is_marked_as_ours() -> None:
    java = java_names(JAVA.read_text())
    for group, table in TABLES.items():
        for metric in table:
            assert metric.ours == ((group, metric.name) not in java), (group, metric.name)
        assert len({metric.name for metric in table}) == len(table)


def test_every_excuse_is_for_something_java_has() -> None:
    java = java_names(JAVA.read_text())
    for start in metrics.NOT_APPLICABLE:
        assert any(start == group or name.startswith(start) for group, name in java), start


@pytest.mark.slow
def test_the_list_of_javas_metrics_is_what_its_client_has() -> None:
    jars = kafka_jars.cache_folder() / "lib"
    try:
        command = [kafka_jars.java(), "-XX:TieredStopAtLevel=1", "-cp", f"{jars}/*", str(PROGRAM)]
        if not jars.is_dir():
            raise kafka_jars.ClusterError(f"no Kafka in {jars}; scripts/kafka prepare")
    except kafka_jars.ClusterError as error:
        if os.environ.get("MPPRODUCER_REQUIRE_KAFKA") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))
    with Broker() as broker:
        done = subprocess.run(
            [*command, broker.bootstrap_servers, "t"],
            check=False, capture_output=True, text=True, timeout=90,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert java_names(done.stdout) == java_names(JAVA.read_text())


def test_counters_stand_where_the_core_writes_them() -> None:
    assert len(EVENT_NAMES) == native.TALLY_FIRST
    assert len(TALLY_NAMES) == native.TALLIES
    assert len(NAMES) == len(set(NAMES)) <= native.COUNTERS
    recorded = Recorded()
    recorded.native.drained(0, 7, 100, 200, -1)
    counters = recorded.native.read()[0][1]
    assert {name: counters[INDEX[name]] for name in EVENT_NAMES} == {
        "record-send-total": 7, "byte-total": 100, "batch-send-total": 1,
        "uncompressed-byte-total": 200,
    }  # fmt: skip


def test_every_counter_has_an_attribute_and_every_attribute_a_counter() -> None:
    made = Counters()
    attributes = {name for name in dir(made) if isinstance(getattr(made, name), int)}
    assert attributes == {name.replace("-", "_") for name in COPIED_NAMES}


def test_every_counter_can_be_read_by_a_name() -> None:
    recorded = Recorded()
    found = recorded.at(S)
    shown = found[metrics.PRODUCER].keys() | found[metrics.SENDER].keys()
    renamed = {"send-error-buffer-full-total", "metadata-updated-ns", "started-ns"}
    assert set(NAMES) - shown == renamed


@pytest.mark.parametrize("reason", list(Reason))
def test_a_failed_record_is_counted_with_its_reason(reason: Reason) -> None:
    recorded = Recorded()
    recorded.counters.failed(reason, 3)
    found = recorded.at(S)
    assert found[metrics.PRODUCER]["record-error-total"] == 3
    by_reason = {
        name: value for name, value in found[metrics.SENDER].items()
        if name.startswith("record-error-") and value
    }  # fmt: skip
    assert by_reason == {f"record-error-{reason.name.lower().replace('_', '-')}-total": 3}


def test_a_name_without_its_group_is_told_where_it_is() -> None:
    found = Recorded().at(S)
    with pytest.raises(KeyError, match=r"metrics\(\)\['producer-metrics'\]"):
        found["record-send-total"]
    with pytest.raises(KeyError, match="nonsense"):
        found["nonsense"]
    assert found.get("record-send-total") is None


# --- windows


def test_rates_are_of_the_window_and_totals_since_the_start() -> None:
    recorded = Recorded()
    recorded.native.drained(0, 100, 1_000, 2_000, 5 * MS)
    found = recorded.at(10 * S)[metrics.PRODUCER]
    assert found["record-send-rate"] == 10.0
    assert found["record-send-total"] == 100
    assert found["compression-rate-avg"] == 0.5
    recorded.sample(30 * S)
    recorded.native.drained(0, 50, 1_000, 1_000, 5 * MS)
    assert recorded.at(50 * S)[metrics.PRODUCER]["record-send-rate"] == 150 / 50
    recorded.sample(60 * S)
    recorded.native.drained(1, 10, 1_000, 1_000, 5 * MS)
    found = recorded.at(70 * S)[metrics.PRODUCER]
    assert found["record-send-rate"] == 60 / 40, "counted from 30 s on"
    assert found["record-send-total"] == 160
    recorded.sample(90 * S)
    recorded.sample(120 * S)
    found = recorded.at(121 * S)[metrics.PRODUCER]
    assert found["record-send-rate"] == 0
    assert math.isnan(found["batch-size-avg"])


def test_maxima_are_exact_and_forgotten_with_their_window() -> None:
    recorded = Recorded()
    recorded.native.acked(777_777_000)
    recorded.native.drained(0, 1, 9_000, 9_000, 3 * MS)
    for now_s in (30, 60):
        found = recorded.at(now_s * S)[metrics.PRODUCER]
        assert found["send-to-ack-max"] == 777.777, now_s
        assert found["batch-size-max"] == 9_000
        recorded.native.acked(5_000)
        recorded.native.drained(0, 1, 70, 70, -1)
        recorded.sample(now_s * S)
    found = recorded.at(61 * S)[metrics.PRODUCER]
    assert found["send-to-ack-max"] == 0.005
    assert found["batch-size-max"] == 70
    assert found["send-to-ack-avg"] == 0.005


def test_percentiles_are_of_the_window() -> None:
    recorded = Recorded()
    for _ in range(1_000):
        recorded.native.acked(50 * MS)
    recorded.sample(30 * S)
    recorded.sample(60 * S)
    for _ in range(98):
        recorded.native.acked(2 * MS)
    recorded.native.acked(10 * MS)
    recorded.native.acked(20 * MS)
    found = recorded.at(61 * S)[metrics.PRODUCER]
    assert found["send-to-ack-p50"] == pytest.approx(2, rel=1 / 33)
    assert found["send-to-ack-p99"] == pytest.approx(10, rel=1 / 33)
    assert found["send-to-ack-p999"] == pytest.approx(20, rel=1 / 33)
    assert found["send-to-ack-avg"] == (98 * 2 + 10 + 20) / 100


def test_before_the_first_sample_a_window_goes_back_to_the_start() -> None:
    bare = native.Metrics(1)
    bare.drained(0, 40, 1, 1, -1)
    values = [0] * len(COPIED_NAMES)
    values[COPIED_NAMES.index("started-ns")] = 100 * S
    bare.publish(COPIED_FIRST, values)
    reading = bare.read()
    assert reading[1] is None
    assert metrics.build(reading, 104 * S)[metrics.PRODUCER]["record-send-rate"] == 10


def test_a_window_of_less_than_a_second_counts_as_one() -> None:
    recorded = Recorded()
    recorded.native.drained(0, 100, 1, 1, -1)
    assert recorded.at(1)[metrics.PRODUCER]["record-send-rate"] == 100


# --- rows


def test_topics_have_rows_and_their_sum_is_the_hosts() -> None:
    recorded = Recorded(topics=3)
    for topic, records in ((0, 5), (1, 7), (1, 1)):
        recorded.native.drained(topic, records, 100, 400, 0)
    recorded.native.retried(1, 7)
    recorded.native.failed(2, 9)
    found = recorded.at(10 * S)
    rows = [found[f"{metrics.TOPIC}.{number}"] for number in range(3)]
    assert [row["record-send-total"] for row in rows] == [5, 8, 0]
    assert [row["record-send-rate"] for row in rows] == [0.5, 0.8, 0]
    assert [row["byte-total"] for row in rows] == [100, 200, 0]
    assert [row["record-retry-total"] for row in rows] == [0, 7, 0]
    assert [row["record-error-total"] for row in rows] == [0, 0, 9], "also if never drained"
    assert rows[1]["compression-rate"] == 0.25
    assert math.isnan(rows[2]["compression-rate"])


def test_a_broker_keeps_its_row_and_the_65th_has_none() -> None:
    recorded = Recorded()
    rows = [recorded.native.node(number - 1) for number in range(native.NODES)]
    assert rows == list(range(native.NODES))
    assert recorded.native.node(1_000) == -1
    assert [recorded.native.node(number - 1) for number in range(native.NODES)] == rows
    recorded.native.sent(-1, 100)
    recorded.native.responded(-1, 5 * MS)
    recorded.native.sent(rows[1], 30)
    recorded.native.sent(rows[1], 50)
    recorded.native.received(rows[1], 44, 2)
    recorded.native.responded(rows[1], 8 * MS)
    recorded.native.in_flight(rows[1], 3)
    found = recorded.at(10 * S)
    node = found[f"{metrics.NODE}.node-0"]
    assert (node["request-total"], node["response-total"]) == (2, 2)
    assert (node["outgoing-byte-total"], node["incoming-byte-rate"]) == (80, 4.4)
    assert (node["request-size-avg"], node["request-size-max"]) == (40, 50)
    assert (node["request-latency-max"], node["requests-in-flight"]) == (8, 3)
    assert found[f"{metrics.NODE}.node--1"]["request-total"] == 0
    assert found[metrics.PRODUCER]["request-latency-max"] == 8
    assert found[metrics.PRODUCER]["request-latency-avg"] == 6.5, "that of all brokers"


def test_a_broker_that_came_after_the_sample_counts_from_zero() -> None:
    recorded = Recorded()
    recorded.native.node(1)
    recorded.sample(30 * S)
    recorded.sample(60 * S)
    recorded.native.sent(recorded.native.node(2), 10)
    found = recorded.at(70 * S)
    assert found[f"{metrics.NODE}.node-2"]["request-rate"] == 1 / 40


# --- in shared memory


class Shared:
    """A pool's segments, and its metrics."""

    def __init__(self) -> None:
        self.geometry = (64, 16, 4)
        ctl_bytes, pool_bytes = native.segment_sizes(*self.geometry)
        self.ctl_fd = segment.create_memfd("test-ctl", ctl_bytes)
        self.pool_fd = segment.create_memfd("test-pool", pool_bytes)
        self.pool = native.Pool(
            self.ctl_fd, self.pool_fd, *self.geometry,
            batch_size=16384, max_request_size=1 << 20, linger_us=0, generation=1,
        )  # fmt: skip
        segment.seal_future_writes(self.ctl_fd)
        self.pool.topic_add("t")

    def read(self) -> native.Reading:
        return native.read_metrics(self.ctl_fd, *self.geometry[1:])

    def close(self) -> None:
        self.pool.close()
        os.close(self.ctl_fd)
        os.close(self.pool_fd)


@pytest.fixture
def shared() -> Shared:
    return Shared()


def test_another_process_reads_what_the_sender_counts(shared: Shared) -> None:
    try:
        measure = shared.pool.metrics
        measure.drained(0, 3, 10, 20, 0)
        found = metrics.build(shared.read(), S)
        assert found[f"{metrics.TOPIC}.t"]["record-send-total"] == 3
        assert shared.pool.metrics.node(7) == measure.node(7)
    finally:
        shared.close()
    with pytest.raises(ValueError, match="closed"):
        measure.drained(0, 3, 10, 20, 0)
    with pytest.raises(ValueError, match="closed"):
        measure.read()


def test_a_segment_that_is_none_is_refused(shared: Shared) -> None:
    try:
        with pytest.raises(OSError, match="smaller"):
            native.read_metrics(shared.ctl_fd, 16, 100_000)
        with pytest.raises(ValueError, match="layout"):
            native.read_metrics(shared.pool_fd, 16, 4)
    finally:
        shared.close()


def read_whole_samples(shared: Shared, wanted: int) -> None:
    """Between two samples everything grows in step, so that a torn one shows."""
    seen: set[int] = set()
    until = time.monotonic() + 30
    while len(seen) < wanted:
        assert time.monotonic() < until, f"{len(seen)} samples"
        _now, then, _names, _peaks = shared.read()
        if then is None:
            continue
        _taken, counters, distributions, nodes, topics = then
        count = counters[INDEX["record-send-total"]]
        assert topics[0][:2] == [count, 3 * count]
        assert distributions[0][2][7] == count
        assert sum(distributions[2][2]) == count
        assert [row[1] for row in nodes] == [count] * len(nodes)
        seen.add(count)


def test_a_reader_beside_the_writer_sees_only_whole_samples(shared: Shared) -> None:
    measure = shared.pool.metrics
    rows = [measure.node(number) for number in range(8)]
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            read_whole_samples(shared, 200)
            code = 0
        except BaseException:  # noqa: BLE001 - told by the exit status
            traceback.print_exc()
        finally:
            os._exit(code)
    now = 0
    ended, status = 0, 1
    try:
        while not ended:
            now += 1
            measure.drained(0, 1, 3, 3, 7_000)
            measure.acked(1_000 * now)
            for row in rows:
                measure.sent(row, 1)
            measure.sample(now)
            ended, status = os.waitpid(pid, os.WNOHANG)
    finally:
        shared.close()
    assert status == 0
    assert now >= 200


def test_the_seal_keeps_a_reader_from_writing(shared: Shared) -> None:
    import mmap

    try:
        with pytest.raises(PermissionError):
            mmap.mmap(shared.ctl_fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        shared.close()
