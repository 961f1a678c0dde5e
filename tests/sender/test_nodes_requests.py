"""Connections in use: timeouts, throttling, the least loaded node, idle ones (N4-N9, S2)."""

from __future__ import annotations

from typing import Any

from mpproducer.sender import actions as a
from mpproducer.sender.actions import Close
from mpproducer.sender.nodes import DISCONNECTED, READY, Node
from tests.sender.harness import Harness

# --- requests


def test_N4_one_timed_out_request_closes_the_connection_and_all_come_back_in_order() -> None:
    h = Harness(request_timeout_ms=2_000).ready()
    h.warm("t", 0)
    for _ in range(3):
        h.open("t", 0)
        h.run_ms(100)
    sends = h.produce_requests()
    assert len(sends) == 3
    before = len(h.metadata_requests)
    h.run_ms(1_699)
    assert h.produce_requests() == sends
    h.run_ms(1)
    assert h.of(Close)[-1].conn == sends[0].conn
    queue = list(h.partition("t", 0).queue)
    assert queue == [send.batches[0] for send in sends]
    assert all(batch.unsure for batch in queue), "any of them may be in the log"
    assert h.machine.counters.request_timeout_total == 1
    h.run_ms(300)
    assert len(h.metadata_requests) > before


def test_N5_every_kind_of_request_has_the_timeout() -> None:
    h = Harness(request_timeout_ms=2_000).ready({0: 0})
    h.run_ms(200)
    h.auto = False
    h.machine.metadata.request_update()
    h.tick()
    closes = len(h.of(Close))
    h.run_ms(1_999)
    assert len(h.of(Close)) == closes
    h.run_ms(2)
    assert len(h.of(Close)) == closes + 1
    assert h.machine.counters.metadata_error_total == 1


def test_B16_a_response_out_of_order_closes_the_connection() -> None:
    h = Harness().ready({0: 0})
    h.warm("t", 0)
    h.open("t", 0)
    (send,) = h.produce_requests()
    h.feed(a.Response(send.conn, send.correlation_id + 1, None))
    assert h.of(Close)[-1].conn == send.conn
    assert not h.completed
    h.run_ms(500)
    h.answer(h.produce_requests()[0])
    assert h.outcomes() == [(a.Kind.ACKED, 0)]


def test_events_of_a_closed_connection_are_ignored() -> None:
    h = Harness().ready({0: 0})
    h.warm("t", 0)
    h.open("t", 0)
    (send,) = h.produce_requests()
    h.machine.nodes.close_failed(h.machine.nodes.brokers[0], "test", h.now_ns)
    h.tick()
    late: tuple[Any, ...] = (
        a.Response(send.conn, send.correlation_id, None),
        a.Wrote(send.conn, send.correlation_id),
        a.Closed(send.conn, "late"),
        a.ConnectFailed(send.conn, "late"),
        a.Connected(send.conn),
    )
    failures = h.machine.nodes.brokers[0].failures
    h.feed(*late)
    assert not h.completed
    assert h.machine.nodes.brokers[0].failures == failures


# --- throttling


def test_N8_a_throttled_node_gets_nothing_others_do_and_timeouts_wait() -> None:
    h = Harness(request_timeout_ms=2_000).ready({0: 0, 1: 1})
    for number in (0, 1):
        h.warm("t", number)
    h.open("t", 0)
    h.open("t", 0)
    first, second = h.produce_requests()
    h.answer(first, throttle_ms=5_000)
    h.open("t", 0)
    h.open("t", 1)
    assert [h.node_of(send) for send in h.produce_requests()] == [0, 1]
    h.answer(h.produce_requests()[1])
    h.run_ms(4_999)
    assert h.produce_requests() == [second], "its time stands still"
    h.run_ms(1)
    assert [h.node_of(send) for send in h.produce_requests()] == [0, 0]
    assert h.machine.counters.request_timeout_total == 0
    assert h.machine.counters.produce_throttle_time_ms_total == 5_000


def test_S2_throttle_time_and_latency_of_every_response_are_counted() -> None:
    h = Harness().ready({0: 0})
    counters = h.machine.counters
    for wait_ms, throttle_ms in ((40, 0), (250, 30), (10, 20)):
        h.open("t", 0)
        h.run_ms(wait_ms)
        h.answer(h.produce_requests()[0], throttle_ms=throttle_ms)
        h.run_ms(100)
    assert counters.produce_throttle_time_ms_total == 50
    latency = h.distributions()["request-latency"]
    assert (latency.window_sum, latency.largest) == (300_000, 250_000)


def test_N8_a_throttle_never_ends_earlier_than_an_older_one_said() -> None:
    h = Harness().ready({0: 0})
    h.warm("t", 0)
    h.open("t", 0)
    h.open("t", 0)
    first, second = h.produce_requests()
    h.answer(first, throttle_ms=5_000)
    h.answer(second, throttle_ms=100)
    h.open("t", 0)
    h.run_ms(4_999)
    assert not h.produce_requests()
    h.run_ms(1)
    assert len(h.produce_requests()) == 1


def test_N8_B24_throttling_does_not_stop_the_delivery_timeout() -> None:
    """Neither for what is ready when the throttle comes nor for what is sent during it."""
    h = Harness(
        delivery_timeout_ms=3_000, request_timeout_ms=2_000,
        max_in_flight_requests_per_connection=1,
    ).ready({0: 0, 1: 0})  # fmt: skip
    h.warm("t", 0)
    h.warm("t", 1)
    h.open("t", 0)
    h.open("t", 1)
    h.answer(h.produce_requests()[0], throttle_ms=60_000)
    h.completed.clear()
    h.open("t", 0)
    h.run_ms(3_000)
    assert [o.kind for _, o in h.completed] == [a.Kind.NOT_WRITTEN] * 2


def test_N8_a_broker_that_throttles_by_itself_is_not_held_back_by_the_client() -> None:
    h = Harness()
    h.ranges[0] = (3, 5)
    h.ready({0: 0})
    h.open("t", 0)
    h.answer(h.produce_requests()[0], throttle_ms=60_000)
    h.open("t", 0)
    assert len(h.produce_requests()) == 1


# --- choosing


def _ready_node(h: Harness, node_id: int) -> Node:
    return h.machine.nodes.brokers[node_id]


def test_N9_the_least_loaded_node_is_idle_and_ready_before_anything_else() -> None:
    h = Harness().ready({0: 0, 1: 1})
    for number in (0, 1):
        h.warm("t", number)
    nodes = h.machine.nodes
    h.open("t", 0)
    for _ in range(20):
        assert nodes.least_loaded(h.now_ns) is _ready_node(h, 1)
    nodes.throttle(_ready_node(h, 1), 1_000, h.now_ns)
    for _ in range(20):
        assert nodes.least_loaded(h.now_ns) is _ready_node(h, 0), "a throttled node is skipped"


def test_N9_without_a_ready_node_the_one_tried_longest_ago_is_taken_and_backoff_is_kept() -> None:
    h = Harness().ready({0: 0, 1: 1})
    nodes = h.machine.nodes
    nodes.close_all("test", h.now_ns)
    zero, one = _ready_node(h, 0), _ready_node(h, 1)
    zero.attempted_ns, one.attempted_ns = h.now_ns - 5, h.now_ns - 9
    for _ in range(20):
        assert nodes.least_loaded(h.now_ns) is one
    one.retry_at_ns = h.now_ns + 1
    assert nodes.least_loaded(h.now_ns) is zero
    zero.retry_at_ns = h.now_ns + 1
    assert nodes.least_loaded(h.now_ns) is None


# --- end of connections


def test_an_idle_connection_is_closed_and_opened_again_for_the_next_batch() -> None:
    h = Harness(connections_max_idle_ms=10_000, metadata_max_age_ms=3_600_000).ready({0: 0})
    h.warm("t", 0)
    h.run_ms(9_000)
    h.open("t", 0)
    h.answer(h.produce_requests()[0])
    h.run_ms(9_999)
    assert h.machine.nodes.brokers[0].state is READY
    h.run_ms(10)
    assert h.machine.nodes.brokers[0].state is DISCONNECTED
    assert h.of(Close)[-1].why == "idle"
    h.open("t", 0)
    h.answer(h.produce_requests()[0])
    assert len(h.completed) == 2


def test_minus_one_never_closes_an_idle_connection() -> None:
    h = Harness(connections_max_idle_ms=-1).ready({0: 0})
    h.warm("t", 0)
    h.run_ms(4_000_000)
    assert h.machine.nodes.brokers[0].state is READY


def test_a_broker_that_left_is_closed_once_nothing_is_in_flight_there() -> None:
    h = Harness().ready({0: 0, 1: 1})
    h.warm("t", 1)
    h.open("t", 1)
    (send,) = h.produce_requests()
    del h.brokers[1]
    h.leaders["t"][1] = (0, 9)
    h.machine.metadata.request_update()
    h.run_ms(300)
    assert h.produce_requests() == [send]
    h.answer(send)
    h.machine.metadata.request_update()
    h.run_ms(1_000)
    assert 1 not in h.machine.nodes.brokers
    h.open("t", 1)
    assert [h.node_of(s) for s in h.produce_requests()] == [0]
