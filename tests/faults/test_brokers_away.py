"""Brokers that stop, move, throttle, or are slow (rows B19 to B28), on the strict broker."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mpproducer
from mpproducer import errors
from mpproducer.testing import Broker, BrokerProcess
from tests.checker.scenario import Scenario, steady
from tests.conftest import wait_until

Scenarios = Callable[..., Scenario]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
ALWAYS = 10**6
NODES = (1, 2, 3)


@contextlib.contextmanager
def all_down(run: Scenario, broker: Broker) -> Iterator[None]:
    """No broker listens meanwhile."""
    began = time.monotonic_ns()
    for node in NODES:
        broker.stop_node(node)
    try:
        yield
    finally:
        for node in NODES:
            broker.start_node(node)
        run.stalled(began)
        run.hit("all brokers down")


def test_B19_all_brokers_down_2_s(three: Broker, scenario: Scenarios) -> None:
    with scenario(three, replication=3) as run:
        workers = run.workers(2)
        assert all(worker.moves(30) for worker in workers)
        with all_down(run, three):
            time.sleep(2)
        assert all(worker.moves(30) for worker in workers)
        run.check()


def test_B20_all_down_longer_than_the_delivery_timeout(three: Broker, scenario: Scenarios) -> None:
    with scenario(three, replication=3, delivery_timeout_ms=2000, request_timeout_ms=1500) as run:
        for number in range(3):
            run.writer.send(number).result(20)
        lost = run.fault(three.on("Produce").drop_reply())
        sent = run.writer.send(0)
        assert wait_until(lambda: lost.hits == 1)
        with all_down(run, three):
            never_sent = [run.writer.send(1 + number % 2) for number in range(20)]
            assert isinstance(sent.exception(10), errors.ExpiredInFlight), sent.exception(0)
            for future in never_sent:
                error = future.exception(10)
                assert isinstance(error, errors.ExpiredUnsent), error
        for number in range(3):
            assert run.writer.send(number).exception(20) is None
        counts = run.check(delivered=False, max_unknown=1).counts
        assert (counts["unknown_in_log"], counts["not_written"]) == (1, 20)


@pytest.mark.parametrize("seconds", [1.0, 3.5])
def test_B21_broker_SIGSTOP_shorter_and_longer_than_the_delivery_timeout(
    scenario: Scenarios, seconds: float
) -> None:
    with (
        BrokerProcess(1) as broker,
        scenario(broker, delivery_timeout_ms=2000, request_timeout_ms=700) as run,
    ):
        workers = run.workers(2, steady(pause_s=0.01))
        assert all(worker.moves(30) for worker in workers)
        began = time.monotonic_ns()
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        run.stalled(began)
        run.hit("broker stopped")
        assert all(worker.moves(30) for worker in workers)
        # The late answers are those of connections that are closed: they resolve nothing.
        counts = run.check(delivered=False, max_unknown=ALWAYS).counts
        assert run.counters()["request-timeout-total"] > 0
        if seconds > 2:
            assert counts["unknown"] > 0
            assert counts["not_written"] > 0


def test_B22_rolling_restart_of_3_under_load(three: Broker, scenario: Scenarios) -> None:
    with scenario(three, replication=3, partitions=6) as run:
        workers = run.workers(3)
        for node in NODES:
            assert all(worker.moves(30) for worker in workers)
            three.stop_node(node)
            run.hit("broker restarted")
            # The partitions of the others, and those it led, go on without it.
            before = [len(three.batches(run.topic, number)) for number in range(6)]
            assert wait_until(
                lambda: all(
                    len(three.batches(run.topic, number)) > was
                    for number, was in enumerate(before)  # noqa: B023
                )
            )
            three.start_node(node)
        assert all(worker.moves(30) for worker in workers)
        assert run.check().counts["faults"]["broker restarted"] == 3


def test_B23_same_id_new_port_and_a_broker_removed(three: Broker, scenario: Scenarios) -> None:
    with scenario(three, replication=3) as run:
        workers = run.workers(2)
        for node in NODES[:2]:
            assert all(worker.moves(20) for worker in workers)
            before = three.requests_by_node[node]
            three.stop_node(node)
            three.start_node(node, port=0)
            for number in range(run.partitions):
                three.set_leader(run.topic, number, node)
            assert wait_until(lambda: three.requests_by_node[node] > before + 5)  # noqa: B023
            run.hit("broker moved")
        three.stop_node(2)  # it leads everything
        run.hit("broker removed")
        assert all(worker.moves(20) for worker in workers)
        run.check()


def test_B23_all_bootstrap_servers_gone_then_replaced(scenario: Scenarios) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Broker() as broker:
        servers = f"{broker.bootstrap_servers},127.0.0.1:{port}"
        with scenario(broker, bootstrap_servers=servers) as run:
            assert run.writer.send(0).exception(20) is None
            broker.stop_node(1)
            futures = [run.writer.send(number % 3) for number in range(20)]
            broker.start_node(1, port=port)  # what metadata and the first server said is wrong now
            run.hit("bootstrap servers replaced")
            for future in futures:
                assert future.exception(30) is None
            run.check()


def test_B24_throttle_time_ms_2000(broker: Broker, scenario: Scenarios) -> None:
    with scenario() as run:
        workers = run.workers(2)
        assert all(worker.moves(20) for worker in workers)
        for _ in range(3):
            throttled = run.fault(broker.on("Produce").throttle(2000))
            assert wait_until(lambda: throttled.hits == 1)  # noqa: B023
            began = time.monotonic()
            time.sleep(0.3)  # what was in flight has arrived
            before = broker.requests["Produce"]
            time.sleep(1)
            sent = broker.requests["Produce"] - before
            if time.monotonic() - began < 1.9:  # else this test was too late to look
                break
        else:
            pytest.fail("three times too late")
        assert sent == 0
        assert wait_until(lambda: broker.requests["Produce"] > before, 10)
        run.check()
        assert run.counters()["produce-throttle-time-ms-total"] >= 2000


def test_B25_api_versions_of_v0_is_understood(scenario: Scenarios) -> None:
    """The first question is refused with error 35, in the oldest form of an answer."""
    with (
        Broker(versions={"ApiVersions": (0, 0), "Produce": (3, 7)}) as broker,
        scenario(broker) as run,
    ):
        run.writer.send_many(100).result(20)
        run.hit("ApiVersions refused", broker.requests["ApiVersions"] - broker.connections)
        assert 0 in broker.versions_seen["ApiVersions"]
        assert max(broker.versions_seen["ApiVersions"]) > 0
        assert broker.versions_seen["Produce"] == {7}
        run.check()


@pytest.mark.parametrize("code", [14, 15, 16])
def test_B26_init_producer_id_not_available_for_a_while(
    broker: Broker, scenario: Scenarios, code: int
) -> None:
    refused = broker.on("InitProducerId", times=ALWAYS).error(code)
    with scenario() as run:
        run.fault(refused)
        future = run.writer.send(0)
        assert wait_until(lambda: refused.hits >= 3)
        assert not future.done()
        refused.remove()
        assert future.exception(20) is None
        run.check()


def test_B26_init_producer_id_refused_with_the_reason(broker: Broker, scenario: Scenarios) -> None:
    refused = broker.on("InitProducerId", times=ALWAYS).error(31)
    with scenario() as run:
        run.fault(refused)
        error = run.writer.send(0).exception(20)
        assert isinstance(error, errors.AuthorizationFailed)
        assert error.code == 31
        refused.remove()
        assert run.writer.send(0).exception(20) is None
        assert run.check(delivered=False).counts["not_written"] == 1


def test_B26_init_producer_id_unanswered_is_asked_again(
    broker: Broker, scenario: Scenarios
) -> None:
    unanswered = broker.on("InitProducerId", times=2).drop_reply()
    with scenario(request_timeout_ms=400) as run:
        run.fault(unanswered)
        assert run.writer.send(0).exception(20) is None
        run.check()
        assert unanswered.hits == 2
        assert run.counters()["request-timeout-total"] >= 2


@pytest.mark.parametrize("acks", [0, 1])
def test_B27_acks_1_and_acks_0(broker: Broker, scenario: Scenarios, acks: int) -> None:
    with scenario(acks=acks, enable_idempotence=False) as run:
        offset = run.writer.send(0).result(20).offset
        assert offset == (-1 if acks == 0 else 0)
        workers = run.workers(2)
        assert all(worker.moves(50) for worker in workers)
        lost = run.fault(broker.on("Produce").close_after())
        assert wait_until(lambda: lost.hits == 1)
        assert all(worker.moves(50) for worker in workers)
        # Without idempotence a lost answer doubles records, with acks=0 nobody knows of a loss.
        report = run.check()
        assert report.counts["acked"] == report.counts["attempted"]
        assert all(batch.producer_id == -1 for batch in broker.batches(run.topic, 0))


@pytest.mark.parametrize("acks", [0, 1])
def test_B27_idempotence_is_refused_at_config(acks: int) -> None:
    config: dict[str, Any] = {"bootstrap_servers": "localhost:1", "acks": acks}
    with pytest.raises(mpproducer.ConfigError, match="enable_idempotence"):
        mpproducer.Producer(config, enable_idempotence=True)


def test_B28_one_of_three_brokers_slow_keeps_the_other_two_busy(
    three: Broker, scenario: Scenarios
) -> None:
    """The first answer of the slow one comes after thousands of records to the others."""
    with scenario(three, linger_ms=0) as run:
        for number in range(3):
            run.writer.send(number).result(20)
        slow = next(n for n in range(3) if three.leader(run.topic, n) == 1)
        held = run.fault(three.on("Produce", node=1, times=ALWAYS).delay(2.0))
        late = run.writer.send(slow)
        assert wait_until(lambda: held.hits == 1)
        batches = [
            run.writer.send_many(200, partition=number)
            for _ in range(10)
            for number in range(3)
            if number != slow
        ]
        for batch in batches:
            batch.result(10)
        assert not late.done()
        held.remove()
        assert run.check().counts["acked"] == 4 + 4000
