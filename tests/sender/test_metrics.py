"""What the machine measures, under a simulated clock: exact times, rows, reasons."""

from __future__ import annotations

import pytest

from mpproducer.reason import Reason
from mpproducer.sender import actions as a
from mpproducer.sender.metrics import Recorder, Unmeasured
from mpproducer.sender.retry import MS
from mpproducer.shm import metrics
from mpproducer.shm.counters import COPIED_FIRST, COPIED_NAMES
from tests.sender.harness import Harness


def read(h: Harness) -> metrics.Metrics:
    """As the loop publishes and anybody reads it."""
    values = [getattr(h.machine.counters, name.replace("-", "_")) for name in COPIED_NAMES]
    h.metrics.publish(COPIED_FIRST, values)
    return metrics.build(h.metrics.read(), h.now_ns)


def topic(h: Harness, place: int = 0) -> dict[str, float]:
    return read(h)[f"{metrics.TOPIC}.{place}"]


def node(h: Harness, number: int) -> dict[str, float]:
    return read(h)[f"{metrics.NODE}.node-{number}"]


def times(h: Harness, stem: str) -> tuple[int, int, int]:
    """How many, their sum and their maximum in us."""
    found = h.distributions()[stem]
    return sum(found.window), found.window_sum, found.largest


def test_queue_time_request_latency_and_send_to_ack_are_exact() -> None:
    h = Harness(linger_ms=20).ready({0: 0})
    h.warm("t", 0)
    count, total, _ = times(h, "record-queue-time")
    assert (count, total) == (1, 20_000)
    h.open("t", 0, records=10, size_bytes=1_000)
    h.run_ms(20)
    (send,) = h.produce_requests()
    assert times(h, "record-queue-time") == (2, 40_000, 20_000)
    h.run_ms(7.5)
    assert times(h, "send-to-ack") == (1, 20_000, 20_000), "only when it is acknowledged"
    h.answer(send)
    assert times(h, "request-latency") == (2, 7_500, 7_500)
    assert times(h, "send-to-ack") == (2, 47_500, 27_500)
    found = read(h)[metrics.PRODUCER]
    assert found["record-queue-time-avg"] == 20
    assert found["record-queue-time-max"] == 20
    assert found["send-to-ack-max"] == 27.5
    assert found["request-latency-p99"] == 7.5, "never above the maximum"


def test_latency_is_recorded_for_every_produce_response_and_for_nothing_else() -> None:
    h = Harness().ready({0: 0, 1: 1})
    assert times(h, "request-latency") == (0, 0, 0), "metadata, versions, ids"
    for wait_ms, code, partition in ((3, 0, 0), (4, 0, 1), (5, 7, 0), (6, 0, 1)):
        h.open("t", partition)
        (send,) = h.produce_requests()
        h.run_ms(wait_ms)
        h.answer(send, code)
    assert times(h, "request-latency") == (4, 18_000, 6_000), "an error is a response"
    assert node(h, 0)["request-latency-avg"] == 4
    assert node(h, 1)["request-latency-avg"] == 5
    assert node(h, 1)["request-latency-max"] == 6


def test_a_lost_response_has_no_latency() -> None:
    h = Harness().ready({0: 0})
    h.open("t", 0)
    (send,) = h.produce_requests()
    h.run_ms(50)
    h.close(send.conn)
    assert times(h, "request-latency") == (0, 0, 0)
    assert times(h, "send-to-ack") == (0, 0, 0)


def test_a_retry_is_sent_again_and_queued_once() -> None:
    h = Harness(retry_backoff_ms=100).ready({0: 0})
    h.open("t", 0, records=10, size_bytes=1_000)
    h.run_ms(5)
    h.answer(h.produce_requests()[0], 7)
    h.run_ms(200)
    (send,) = h.produce_requests()
    h.run_ms(5)
    h.answer(send)
    assert times(h, "record-queue-time") == (1, 0, 0)
    count, total, _ = times(h, "send-to-ack")
    assert (count, total) == (1, 210_000), "from the opening, retries included"
    row = topic(h)
    assert row["record-send-total"] == 20
    assert row["record-retry-total"] == 10
    assert row["batch-send-total"] == 2
    assert row["byte-total"] == 2 * 1_061
    found = read(h)[metrics.PRODUCER]
    assert found["record-send-total"] == 20
    assert found["records-per-request-avg"] == 10


def test_topics_are_counted_apart() -> None:
    h = Harness().ready({0: 0})
    h.want("u", {0: 1})
    h.open("t", 0, records=3, size_bytes=300)
    h.open("u", 0, records=5, size_bytes=500)
    for send in h.produce_requests():
        h.answer(send)
    assert topic(h, 0)["record-send-total"] == 3
    assert topic(h, 1)["record-send-total"] == 5
    assert topic(h, 1)["byte-total"] == 561
    assert read(h)[metrics.PRODUCER]["record-send-total"] == 8


def test_compression_rate_is_what_was_sent_by_what_was_there() -> None:
    h = Harness(compression_type="zstd").ready({0: 0})
    h.open("t", 0, records=10, size_bytes=1_000)
    (send,) = h.produce_requests()
    h.answer(send)
    assert topic(h)["compression-rate"] == 161 / 1_061, "the harness compresses to 100 bytes"
    found = read(h)[metrics.PRODUCER]
    assert found["compression-rate-avg"] == 161 / 1_061
    assert found["batch-size-max"] == 161
    assert found["record-size-avg"] == 106.1


@pytest.mark.parametrize(
    ("code", "reason"),
    [(29, Reason.AUTHORIZATION), (87, Reason.INVALID_RECORD), (10, Reason.TOO_LARGE)],
)
def test_a_refused_batch_is_counted_by_topic_and_reason(code: int, reason: Reason) -> None:
    h = Harness().ready({0: 0})
    h.open("t", 0, records=1)
    h.answer(h.produce_requests()[0], code)
    assert topic(h)["record-error-total"] == 1
    found = read(h)
    name = reason.name.lower().replace("_", "-")
    assert found[metrics.SENDER][f"record-error-{name}-total"] == 1
    assert found[metrics.PRODUCER]["record-error-total"] == 1
    assert times(h, "send-to-ack") == (0, 0, 0)


def test_an_expired_batch_of_a_topic_never_drained_shows_in_its_row() -> None:
    h = Harness(delivery_timeout_ms=1_000, request_timeout_ms=500).ready({0: -1})
    h.open("t", 0, records=4)
    h.run_ms(1_001)
    assert h.outcomes() == [(a.Kind.NOT_WRITTEN, 0)]
    assert topic(h)["record-error-total"] == 4
    assert read(h)[metrics.SENDER]["record-error-expired-total"] == 4
    assert topic(h)["record-send-total"] == 0


def test_parts_of_a_split_batch_are_acknowledged_from_its_opening() -> None:
    h = Harness().ready({0: 0})
    h.open("t", 0, records=10, size_bytes=1_000)
    h.run_ms(30)
    h.answer(h.produce_requests()[0], 10)
    while h.produce_requests():
        h.run_ms(10)
        h.answer(h.produce_requests()[0])
    assert {kind for kind, _code in h.outcomes()} == {a.Kind.ACKED}
    assert times(h, "record-queue-time") == (1, 0, 0), "the parts never queued as a batch"
    count, total, largest = times(h, "send-to-ack")
    assert (count, largest) == (2, 50_000)
    assert total in (90_000, 100_000), "one after the other, or together"
    assert read(h)[metrics.PRODUCER]["batch-split-total"] == 1


def test_S2_throttle_time_is_averaged_over_every_response() -> None:
    h = Harness().ready({0: 0})
    before = h.machine.counters.response_total
    for throttle_ms in (0, 30, 10):
        h.open("t", 0)
        h.answer(h.produce_requests()[0], throttle_ms=throttle_ms)
        h.run_ms(100)
    responses = before + 3
    found = read(h)[metrics.PRODUCER]
    assert h.machine.counters.response_total == responses
    assert found["produce-throttle-time-avg"] == 40 / responses
    assert found["produce-throttle-time-max"] == 30


def test_metadata_age_goes_on_while_nobody_answers() -> None:
    h = Harness().ready({0: 0})
    h.auto = False
    before = read(h)[metrics.PRODUCER]["metadata-age"]
    h.now_ns += 1_500 * MS
    assert read(h)[metrics.PRODUCER]["metadata-age"] == before + 1.5


def test_more_brokers_than_rows_are_counted_as_dropped_and_work() -> None:
    h = Harness()
    h.brokers = {number: (f"b{number}", 9092) for number in range(70)}
    h.ready({0: 69})
    h.open("t", 0)
    h.answer(h.produce_requests()[0])
    assert h.outcomes() == [(a.Kind.ACKED, 0)]
    dropped = 70 + 1 - 64  # a bootstrap server has a row, too
    assert read(h)[metrics.SENDER]["node-metrics-dropped-total"] == dropped
    assert f"{metrics.NODE}.node-69" not in read(h)
    assert times(h, "request-latency")[0] == 1


def test_a_machine_without_memory_for_metrics_works_as_well() -> None:
    nothing: Recorder = Unmeasured()
    assert nothing.node(5) == -1
    for call, values in (
        (nothing.drained, (0, 1, 2, 3, 4)), (nothing.acked, (1,)), (nothing.retried, (0, 1)),
        (nothing.failed, (0, 1)), (nothing.responded, (0, 1)), (nothing.sent, (0, 1)),
        (nothing.received, (0, 1, 1)), (nothing.throttled, (1,)),
    ):  # fmt: skip
        assert call(*values) is None
