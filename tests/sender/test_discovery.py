"""Metadata and InitProducerId: to whom, when again, and bootstrap (S8-S10, N15, KIP-899/1102)."""

from __future__ import annotations

from typing import Any

from mpproducer.reason import Reason
from mpproducer.sender import actions as a
from mpproducer.sender import error_table
from mpproducer.sender.actions import Resolve
from mpproducer.sender.error_table import Step
from mpproducer.sender.idempotence import IdState
from tests.sender.harness import Harness


def _waiting(h: Harness, api_key: int) -> list[a.Request]:
    return [
        action
        for queue in h.requests.values()
        for action in queue
        if isinstance(action, a.Request) and action.api_key == api_key
    ]


def test_S9_a_lost_init_producer_id_is_asked_again_after_the_backoff() -> None:
    h = Harness().ready()
    h.machine.idempotence.reset()
    h.auto = False
    h.tick()
    (first,) = _waiting(h, 22)
    h.close(first.conn)
    h.auto = True
    states: list[IdState] = []
    for wait_ms in (0, 50, 200):
        h.run_ms(wait_ms)
        states.append(h.machine.idempotence.state)
    assert states == [IdState.WANTED, IdState.WANTED, IdState.READY]


def test_S9_a_retriable_answer_is_asked_again_with_growing_waits() -> None:
    h = Harness().ready()
    h.id_error = 14
    h.machine.idempotence.reset()
    h.open("t", 0)
    h.run_ms(2_000)
    assert not h.completed
    h.id_error = 0
    h.run_ms(1_100)
    assert len(h.produce_requests()) == 1


def test_S10_a_refused_producer_id_fails_what_waits_and_a_later_send_recovers() -> None:
    h = Harness()
    h.id_error = 31
    h.ready()
    h.open("t", 0)
    h.run_ms(300)
    ((_, outcome),) = h.completed
    assert (outcome.kind, outcome.code) == (a.Kind.NOT_WRITTEN, 31)
    assert outcome.reason is Reason.AUTHORIZATION
    assert "InitProducerId" in outcome.message
    asked = len([x for x in h.of(a.Request) if x.api_key == 22])
    h.run_ms(5_000)
    assert len([x for x in h.of(a.Request) if x.api_key == 22]) == asked, "nobody asks for nothing"
    h.id_error = 0
    h.open("t", 0)
    h.run_ms(1_500)
    h.answer(h.produce_requests()[0])
    assert h.outcomes()[-1] == (a.Kind.ACKED, 0)


def test_every_error_code_of_init_producer_id_is_retried_fatal_or_fails_what_waits() -> None:
    for code in range(-1, 140):
        if not code:
            continue
        h = Harness()
        h.id_error = code
        h.ready()
        h.open("t", 0)
        h.run_ms(300)
        row = error_table.row(code)
        fatal = row.step is Step.FATAL and code != error_table.CLUSTER_AUTHORIZATION_FAILED
        assert (h.machine.fatal is not None) == fatal, code
        assert bool(h.completed) != row.retriable, code
        h.id_error = 0
        h.open("t", 0)
        h.run_ms(1_500)
        assert bool(h.produce_requests()) != fatal, code
        assert h.machine.delivery.unreleased == (0 if fatal else len(h.machine.delivery.aging))


def test_B25_a_broker_without_init_producer_id_is_fatal_and_says_what_to_do() -> None:
    h = Harness()
    del h.ranges[22]
    h.ready()
    h.open("t", 0)
    h.run_ms(100)
    ((_, outcome),) = h.completed
    assert outcome.code == 35
    assert "enable.idempotence=false" in outcome.message


def test_B25_a_broker_without_a_common_produce_version_fails_batches_not_the_sender() -> None:
    for idempotent in (True, False):
        h = Harness(enable_idempotence=idempotent)
        h.ranges[0] = (90, 95)
        h.ready()
        h.open("t", 0)
        h.run_ms(500)
        ((_, outcome),) = h.completed
        assert (outcome.kind, outcome.code) == (a.Kind.NOT_WRITTEN, 35)
        assert "broker 0" in outcome.message
        assert len(h.released) == 1
        assert (h.machine.fatal is not None) == idempotent


def test_a_node_without_a_common_metadata_version_is_left_and_another_is_asked() -> None:
    h = Harness(bootstrap_servers="old:1,boot:9092")
    h.auto = False
    h.join()
    h.want("t", {0: 0})
    old, common = {18: (0, 4)}, dict(h.ranges)
    for _ in range(200):
        h.run_ms(20)
        for resolve in [r for r in h.of(Resolve) if h.machine.nodes.get(r.node_id)]:
            h.feed(a.Resolved(resolve.node_id, resolve.host, ((resolve.host, resolve.port),)))
        for conn, action in list(h.conns.items()):
            h.feed(a.Connected(conn))
            h.ranges = old if action.host == "old" else common
            for request in list(h.requests.get(conn, ())):
                h.feed(h.answer_internal(request))
        if h.topic("t"):
            break
    assert h.topic("t"), "metadata came from the server that speaks it"


def test_N15_a_lost_metadata_request_is_tried_elsewhere_after_the_backoff() -> None:
    h = Harness().ready({0: 0, 1: 1})
    for number in (0, 1):
        h.warm("t", number)
    h.run_ms(300)
    h.auto = False
    h.machine.metadata.request_update()
    h.tick()
    (request,) = _waiting(h, 3)
    lost_node = h.conns[request.conn].node_id
    h.close(request.conn)
    assert not _waiting(h, 3)
    h.run_ms(300)
    (again,) = _waiting(h, 3)
    assert h.conns[again.conn].node_id != lost_node


def test_metadata_goes_first_when_every_connection_was_full() -> None:
    h = Harness(max_in_flight_requests_per_connection=1).ready({0: 0})
    h.brokers = {0: ("b0", 9092)}
    h.run_ms(300)
    h.machine.metadata.request_update()
    h.run_ms(1_500)
    h.open("t", 0)
    h.open("t", 0)
    h.auto = False
    h.machine.metadata.request_update()
    h.run_ms(300)
    (send,) = h.produce_requests()
    h.answer(send)
    assert len(_waiting(h, 3)) == 1
    assert not h.produce_requests()


def test_bootstrap_servers_are_left_once_brokers_are_known_and_used_again_when_none_is() -> None:
    h = Harness().ready({0: 0})
    h.warm("t", 0)
    assert all(action.node_id >= 0 for action in h.conns.values())
    h.log.clear()
    h.connects_fail = True
    h.machine.nodes.close_all("test", h.now_ns)
    h.machine.metadata.request_update()
    h.run_ms(5_000)
    assert {action.node_id for action in h.of(a.Connect)} >= {-1, 0, 1}
    h.connects_fail = False
    h.run_ms(3_000)
    h.open("t", 0)
    h.run_ms(3_000)
    h.answer(h.produce_requests()[0])
    assert h.outcomes() == [(a.Kind.ACKED, 0)]


def test_without_a_recovery_strategy_bootstrap_servers_are_not_asked_again() -> None:
    h = Harness(metadata_recovery_strategy="none").ready({0: 0})
    h.warm("t", 0)
    h.log.clear()
    h.connects_fail = True
    h.machine.nodes.close_all("test", h.now_ns)
    h.machine.metadata.request_update()
    h.run_ms(5_000)
    assert {action.node_id for action in h.of(a.Connect)} <= {0, 1}


def _metadata_fails(h: Harness, **over: Any) -> None:
    h.metadata_error = over.get("code", -1)
    h.machine.metadata.request_update()


def test_metadata_that_fails_for_too_long_starts_over_from_the_bootstrap_servers() -> None:
    h = Harness(metadata_recovery_rebootstrap_trigger_ms=5_000).ready({0: 0})
    h.warm("t", 0)
    _metadata_fails(h)
    h.log.clear()
    h.run_ms(4_500)
    assert not h.of(a.Close)
    h.run_ms(3_000)
    assert any("rebootstrap" in action.why for action in h.of(a.Close))
    assert -1 in {action.node_id for action in h.of(a.Connect)}
    h.metadata_error = 0
    h.open("t", 0)
    h.run_ms(3_000)
    h.answer(h.produce_requests()[0])
    assert h.outcomes() == [(a.Kind.ACKED, 0)]


def test_a_healthy_sender_never_starts_over_however_old_its_metadata_may_get() -> None:
    h = Harness(metadata_max_age_ms=20_000, metadata_recovery_rebootstrap_trigger_ms=5_000)
    h.ready({0: 0})
    h.warm("t", 0)
    h.log.clear()
    h.run_ms(100_000)
    assert not h.of(a.Close)
    assert h.machine.counters.metadata_update_total >= 5
    h.run_ms(15_000)
    _metadata_fails(h)
    h.run_ms(2_000)
    assert h.machine.counters.metadata_error_total >= 2
    assert not h.of(a.Close), "the clock starts with the first failure, not with the last success"


def test_a_broker_that_asks_for_it_makes_the_sender_start_over() -> None:
    h = Harness().ready({0: 0})
    h.warm("t", 0)
    h.log.clear()
    _metadata_fails(h, code=error_table.REBOOTSTRAP_REQUIRED)
    h.run_ms(300)
    assert any("asked for it" in action.why for action in h.of(a.Close))
    h.metadata_error = 0
    h.run_ms(3_000)
    h.open("t", 0)
    h.run_ms(1_000)
    assert len(h.produce_requests()) == 1
