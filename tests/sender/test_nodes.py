"""Connections: states, backoff, timeouts, throttling, API versions (N1-N15)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from mpproducer.sender import actions as a
from mpproducer.sender.actions import Close, Connect, Resolve
from mpproducer.sender.bugs import NotReady
from mpproducer.sender.inflight import API_METADATA
from mpproducer.sender.nodes import (
    CHECKING_API_VERSIONS,
    CONNECTING,
    DISCONNECTED,
    READY,
    RESOLVING,
    Node,
)
from mpproducer.sender.retry import MS
from tests.sender.harness import Harness

PLAIN: dict[str, Any] = {"reconnect_backoff_ms": 100, "reconnect_backoff_max_ms": 100}


def _boot(h: Harness) -> Node:
    return h.machine.nodes.bootstrap[-1]


def _manual(**config: Any) -> Harness:
    """A worker wants a topic; nothing is answered by itself."""
    h = Harness(auto=False, **config)
    h.join()
    h.want("t", {0: 0})
    return h


def _resolved(h: Harness, *hosts: str) -> list[Any]:
    resolve = h.of(Resolve)[-1]
    addresses = tuple((host, 9092) for host in hosts)
    return h.feed(a.Resolved(resolve.node_id, resolve.host, addresses))


def _last_conn(h: Harness) -> Connect:
    return h.of(Connect)[-1]


def _api_versions(h: Harness, conn: int, error: int = 0, **over: Any) -> list[Any]:
    """Answer the ApiVersions request that waits on a connection."""
    request = h.requests[conn].popleft()
    assert request.api_key == 18
    rows = [
        {"api_key": key, "min_version": low, "max_version": high}
        for key, (low, high) in over.get("ranges", h.ranges).items()
    ]
    message = {"error_code": error, "api_keys": rows, "throttle_time_ms": 0}
    return h.feed(a.Response(conn, request.correlation_id, message))


# --- connecting


def test_N1_a_send_to_a_node_that_is_not_ready_is_refused_with_an_error() -> None:
    h = _manual()
    with pytest.raises(NotReady, match="cannot take a request"):
        h.machine.nodes.send(_boot(h), API_METADATA, 9, {}, h.now_ns)


def test_N1_the_states_of_a_connection_in_order() -> None:
    h = _manual()
    seen = [_boot(h).state]
    _resolved(h, "boot")
    seen.append(_boot(h).state)
    h.feed(a.Connected(_last_conn(h).conn))
    seen.append(_boot(h).state)
    _api_versions(h, _last_conn(h).conn)
    seen.append(_boot(h).state)
    assert seen == [RESOLVING, CONNECTING, CHECKING_API_VERSIONS, READY]


def test_N2_api_versions_is_the_first_request_and_nothing_else_goes_before_its_answer() -> None:
    h = _manual()
    _resolved(h, "boot")
    conn = _last_conn(h).conn
    h.feed(a.Connected(conn))
    h.run_ms(500)
    assert [request.api_key for request in h.requests[conn]] == [18]
    _api_versions(h, conn)
    assert 3 in [request.api_key for request in h.requests[conn]]


def test_N3_an_unsupported_version_is_asked_again_at_the_highest_the_broker_has() -> None:
    h = _manual()
    _resolved(h, "boot")
    conn = _last_conn(h).conn
    h.feed(a.Connected(conn))
    (first,) = h.requests[conn]
    _api_versions(h, conn, 35, ranges={18: (0, 2)})
    (second,) = h.requests[conn]
    assert (first.api_version, second.api_version) == (4, 2)
    _api_versions(h, conn)
    assert _boot(h).state is READY


def test_N3_without_a_range_version_0_is_asked_and_then_the_connection_is_given_up() -> None:
    h = _manual()
    _resolved(h, "boot")
    conn = _last_conn(h).conn
    h.feed(a.Connected(conn))
    _api_versions(h, conn, 35, ranges={})
    (second,) = h.requests[conn]
    assert second.api_version == 0
    _api_versions(h, conn, 35, ranges={})
    assert _boot(h).state is DISCONNECTED
    assert h.of(Close)[-1].conn == conn


def test_N3_any_other_error_closes_the_connection() -> None:
    h = _manual()
    _resolved(h, "boot")
    conn = _last_conn(h).conn
    h.feed(a.Connected(conn))
    _api_versions(h, conn, 42)
    assert _boot(h).state is DISCONNECTED
    assert "42" in _boot(h).why


def test_the_version_of_a_request_is_the_highest_both_sides_have() -> None:
    h = Harness()
    h.ranges = {0: (0, 9), 3: (0, 99), 18: (0, 4), 22: (0, 1)}
    h.ready()
    h.open("t", 0)
    (send,) = h.produce_requests()
    assert send.api_version == 9
    by_key = {x.api_key: x.api_version for x in h.of(a.Request)}
    assert by_key[3] == 12
    assert by_key[22] == 1


def test_versions_are_forgotten_with_the_connection() -> None:
    h = Harness().ready()
    h.warm("t", 0)
    node = h.machine.nodes.brokers[0]
    h.ranges = {**h.ranges, 0: (3, 7)}
    h.open("t", 0)
    (send,) = h.produce_requests()
    h.close(send.conn)
    assert node.versions == {} or node.produce_version == 7
    h.run_ms(1_000)
    assert h.produce_requests()[0].api_version == 7


# --- backoff


def test_N10_reconnect_backoff_grows_to_its_maximum() -> None:
    h = Harness(bootstrap_servers="boot:9092")
    h.connects_fail = True
    h.join()
    h.want("t", {0: 0})
    h.run_ms(30_000)
    times = []
    node = _boot(h)
    assert node.failures > 5
    seen = node.attempted_ns
    for _ in range(20_000):
        h.run_ms(1)
        if node.attempted_ns != seen:
            seen = node.attempted_ns
            times.append(seen)
        if len(times) == 6:
            break
    gaps = [(later - earlier) / MS for earlier, later in pairwise(times)]
    assert all(800 <= gap <= 1_100 for gap in gaps), gaps


def test_N10_the_backoff_starts_over_with_api_versions_and_not_with_tcp() -> None:
    h = _manual()
    node = _boot(h)
    for round_ in range(4):
        _resolved(h, "boot")
        conn = _last_conn(h).conn
        h.feed(a.Connected(conn))
        assert node.failures == round_
        h.close(conn)
        assert node.failures == round_ + 1
        h.run_ms(2_000)
    _resolved(h, "boot")
    h.feed(a.Connected(_last_conn(h).conn))
    _api_versions(h, _last_conn(h).conn)
    assert node.failures == 0


def test_N11_equal_base_and_maximum_make_the_backoff_constant() -> None:
    h = _manual(**PLAIN)
    node = _boot(h)
    for _ in range(4):
        _resolved(h, "boot")
        h.feed(a.ConnectFailed(_last_conn(h).conn, "refused"))
        assert node.retry_at_ns == h.now_ns + 100 * MS
        h.run_ms(99)
        assert node.state is DISCONNECTED
        h.run_ms(1)
        assert node.state is RESOLVING


def test_a_connection_closed_on_our_own_wish_is_no_failure() -> None:
    h = Harness().ready()
    h.warm("t", 0)
    node = h.machine.nodes.brokers[0]
    h.machine.nodes.close(node, "test", h.now_ns)
    assert (node.failures, node.retry_at_ns <= h.now_ns) == (0, True)
    h.open("t", 0)
    assert len(h.produce_requests()) == 1


# --- setup timeout


def test_N12_a_connect_that_hangs_is_closed_after_the_setup_timeout_which_grows() -> None:
    h = _manual(
        socket_connection_setup_timeout_ms=1_000, socket_connection_setup_timeout_max_ms=3_000
    )
    spans = []
    for _ in range(4):
        _resolved(h, "boot")
        conn, start_ns = _last_conn(h).conn, h.now_ns
        while not any(action.conn == conn for action in h.of(Close)):
            h.run_ms(20)
        spans.append((h.now_ns - start_ns) / MS)
        while _boot(h).state is not RESOLVING:
            h.run_ms(5)
    for span, plain in zip(spans, (1_000, 2_000, 3_000, 3_000), strict=True):
        assert 0.8 * plain <= span <= min(1.2 * plain, 3_000) + 20, spans


def test_N12_a_lookup_that_hangs_is_given_up_too() -> None:
    h = _manual(
        socket_connection_setup_timeout_ms=1_000, socket_connection_setup_timeout_max_ms=1_000
    )
    h.run_ms(999)
    assert _boot(h).state is RESOLVING
    h.run_ms(1)
    assert _boot(h).state is DISCONNECTED
    assert "RESOLVING" in _boot(h).why


def test_N12_the_timeout_of_a_failed_lookup_does_not_end_a_later_one() -> None:
    h = _manual(
        socket_connection_setup_timeout_ms=1_000,
        socket_connection_setup_timeout_max_ms=1_000,
        **PLAIN,
    )
    h.run_ms(850)
    h.feed(a.ResolveFailed(-1, "boot", "no such host"))
    h.run_ms(100)
    assert _boot(h).state is RESOLVING
    h.run_ms(500)
    assert _boot(h).state is RESOLVING, "this one has a second of its own"
    h.run_ms(500)
    assert _boot(h).state is DISCONNECTED


def test_N12_a_connection_whose_api_versions_never_comes_times_out() -> None:
    h = _manual(request_timeout_ms=2_000)
    _resolved(h, "boot")
    h.feed(a.Connected(_last_conn(h).conn))
    h.run_ms(1_999)
    assert _boot(h).state is CHECKING_API_VERSIONS
    h.run_ms(1)
    assert _boot(h).state is DISCONNECTED
    assert h.machine.counters.request_timeout_total == 1


# --- addresses


def test_N13_every_address_is_tried_before_the_backoff() -> None:
    h = _manual()
    _resolved(h, "a1", "a2", "a3")
    for host in ("a1", "a2", "a3"):
        assert _last_conn(h).address[0] == host
        assert _boot(h).failures == 0
        h.feed(a.ConnectFailed(_last_conn(h).conn, "refused"))
    assert (_boot(h).state, _boot(h).failures) == (DISCONNECTED, 1)


def test_N13_the_name_is_looked_up_again_and_the_address_that_failed_comes_last() -> None:
    h = _manual(**PLAIN)
    _resolved(h, "a1")
    h.feed(a.ConnectFailed(_last_conn(h).conn, "refused"))
    h.run_ms(100)
    assert len(h.of(Resolve)) == 2
    _resolved(h, "a1", "a2")
    assert _last_conn(h).address[0] == "a2"


def test_N13_a_dropped_connection_looks_the_name_up_again() -> None:
    h = Harness().ready()
    h.warm("t", 0)
    before = len([x for x in h.of(Resolve) if x.node_id == 0])
    h.open("t", 0)
    h.close(h.produce_requests()[0].conn)
    h.run_ms(500)
    assert len([x for x in h.of(Resolve) if x.node_id == 0]) == before + 1


@pytest.mark.parametrize("state", [CONNECTING, DISCONNECTED, READY])
def test_N13_a_node_that_moved_is_connected_at_its_new_address_at_once(state: int) -> None:
    h = Harness().ready({0: 0})
    h.warm("t", 0)
    nodes = h.machine.nodes
    node = nodes.brokers[0]
    if state is not READY:
        h.auto = False
        nodes.close(node, "test", h.now_ns)
        h.open("t", 0)
        _resolved(h, "b0", "b0-second")
        assert node.state is CONNECTING
        if state is DISCONNECTED:
            h.feed(a.Connected(_last_conn(h).conn))
            h.close(_last_conn(h).conn)
            assert node.addresses, "an address was left to try"
        h.auto = True
    h.brokers[0] = ("new", 1)
    nodes.learn(0, "new", 1, h.now_ns)
    h.run_ms(1_000)
    if state is READY:
        h.open("t", 0)
    (send,) = h.produce_requests()
    assert h.conns[send.conn].address == ("new", 1)
    assert node.failures == 0


def test_N14_a_connecting_node_that_is_closed_cancels_its_attempt() -> None:
    h = _manual()
    _resolved(h, "boot")
    conn = _last_conn(h).conn
    h.machine.nodes.close(_boot(h), "test", h.now_ns)
    assert h.feed(a.Tick())[0] == Close(conn, "test")
    assert not [x for x in h.feed(a.Connected(conn)) if isinstance(x, a.Request)]


def test_N14_a_disconnect_during_api_versions_empties_the_queue_and_backs_off() -> None:
    h = _manual()
    _resolved(h, "boot")
    conn = _last_conn(h).conn
    h.feed(a.Connected(conn))
    assert len(_boot(h).in_flight) == 1
    h.close(conn)
    assert len(_boot(h).in_flight) == 0
    assert _boot(h).retry_at_ns > h.now_ns


def test_a_busy_connection_past_its_idle_time_is_not_looked_at_all_the_time() -> None:
    """Once more after another idle time; it is closed when it has been idle for one."""
    h = Harness(connections_max_idle_ms=1_000, max_in_flight_requests_per_connection=1)
    h.ready({0: 0})
    h.warm("t", 0)
    h.open("t", 0)
    h.open("t", 0)
    ticks = 0
    end_ns = h.now_ns + 5_000 * MS
    while (due_ns := h.machine.next_deadline_ns()) is not None and due_ns <= end_ns:
        h.now_ns = due_ns
        h.feed(a.Tick())
        ticks += 1
    assert 0 < ticks < 20
    for _ in range(2):
        h.answer(h.produce_requests()[0])
    node = h.machine.nodes.brokers[0]
    assert node.state is READY
    h.run_ms(2_000)
    assert node.state is DISCONNECTED
    assert node.why == "idle"
