"""Worker processes that are killed or stopped in the middle of sending (rows W).

Whatever happens to a worker, what it had sent is in the log, once and in order; the others go on,
and all memory comes back. Journals and log are judged by `tests/checker`.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

import mpproducer
from mpproducer.testing import Broker
from tests.checker.scenario import Scenario, Worker, steady
from tests.conftest import metric, wait_until

Scenarios = Callable[..., Scenario]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

KINDS: dict[str, dict[str, Any]] = {
    "small": {},
    "one record per batch": {"batch_size": 1, "linger_ms": 0},
    "chains": {"size": 40_000, "batch_size": 200_000, "buffer_memory": 128 * 16_384},
    "short of memory": {"size": 5_000, "buffer_memory": 64 * 16_384, "batch_size": 50_000},
    "compressed": {"size": 500, "compression_type": "zstd", "batch_size": 20_000},
}


@pytest.mark.parametrize("kind", KINDS)
def test_W2_W3_W4_X1_kill_9_in_the_middle_of_sending(
    scenario: Scenarios, rng: random.Random, kind: str
) -> None:
    config = dict(KINDS[kind])
    job = steady(config.pop("size", 60))
    if "buffer_memory" in config:
        config["max_request_size"] = 500_000
    with scenario(**config) as run:
        survivor, victim = run.workers(2, job)
        assert survivor.moves(1)
        for _round in range(8):
            assert victim.moves(rng.randrange(1, 30))
            time.sleep(rng.random() * 0.02)
            victim.kill()
            assert survivor.moves(20)
            victim = run.worker(job)
        report = run.check()
        assert report.counts["faults"]["SIGKILL worker"] == 8
        found = run.counters()
        attached = len([worker for worker in run.all if worker.journal.returns])
        assert attached <= found["worker-died-total"] <= len(run.all)
        assert found["batch-corrupt-total"] == 0


def test_W2_kill_9_of_all_workers_at_once_delivers_what_had_returned(
    scenario: Scenarios, rng: random.Random
) -> None:
    """Nobody is left to look: the sender delivers for the dead, then it ends."""
    for number in range(3):
        with scenario(attach=False, topic=f"round-{number}", linger_ms=60_000) as run:
            workers = run.workers(3)
            for worker in workers:
                assert worker.moves(rng.randrange(50, 200))
            for worker in workers:
                worker.send_signal(signal.SIGKILL)
            for worker in workers:
                worker.kill()
            report = run.check()
            assert report.counts["orphaned"] == report.counts["returned"] > 150


def test_W5_W6_X6_a_stopped_worker_holds_up_nobody_and_loses_nothing(
    scenario: Scenarios, rng: random.Random
) -> None:
    # The workers pause: what is late is late because of a stop.
    with scenario(delivery_timeout_ms=3000, request_timeout_ms=1000) as run:
        workers = run.workers(3)
        for _round in range(15):
            stopped = rng.choice(workers)
            assert stopped.moves(1)
            time.sleep(rng.random() * 0.01)
            with stopped.stopped():
                for other in workers:
                    assert other is stopped or other.moves(50)
                assert run.writer.send(0).exception(5) is None
            assert stopped.moves(1)
        # One is stopped for longer than delivery.timeout.ms, and one is killed while stopped.
        with workers[0].stopped(), workers[1].stopped():
            time.sleep(3.2)
            assert workers[2].moves(50)
            workers[1].kill()
        assert workers[0].moves(50)
        assert run.check().counts["faults"]["SIGSTOP worker"] == 17


def test_W7_completions_of_a_stopped_worker_wait_and_all_arrive(
    broker: Broker, scenario: Scenarios
) -> None:
    """Its pipe fills; the sender goes on, and nothing of it is lost."""
    records = 6000  # frames of 48 bytes: more than the pipe's 256 KiB

    def job(worker: Worker) -> None:
        for _ in range(records):
            worker.writer.send(0)
        while not worker.journal.note:  # in Python, so that it can be stopped anywhere
            time.sleep(0.001)

    with scenario(
        batch_size=1, linger_ms=0, buffer_memory=6600 * 16_384, max_request_size=100_000
    ) as run:
        run.writer.send(0).result(20)
        held = run.fault(broker.on("Produce", times=10**6).delay(0.4))
        worker = run.worker(job)
        assert worker.moves(records)
        producer = run.producer
        with worker.stopped():
            held.remove()
            assert wait_until(lambda: metric(producer, "record-acked-total") == records + 1, 40)
            assert wait_until(lambda: metric(producer, "completion-backlog-bytes") > 0)
            for _ in range(20):
                assert run.writer.send(1).exception(10) is None
            assert metric(producer, "completion-overflow-total") == 0
            worker.journal.note = 1
        assert worker.join() == 0
        assert wait_until(lambda: metric(producer, "completion-backlog-bytes") == 0)
        assert run.check().counts["acked"] == records + 21


@pytest.mark.parametrize("how", ["_exit", "segfault", "abort", "exception"])
def test_W9_W10_a_worker_that_ends_in_any_other_way_loses_nothing(
    scenario: Scenarios, how: str
) -> None:
    def job(worker: Worker) -> None:
        for number in range(500):
            worker.writer.send(number % 3)
        if how == "_exit":
            os._exit(7)
        if how == "segfault":
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGSEGV)
        if how == "abort":
            signal.signal(signal.SIGABRT, signal.SIG_DFL)
            os.abort()
        raise ZeroDivisionError

    with scenario(linger_ms=300) as run:
        worker = run.worker(job)
        expected = {"_exit": 7, "segfault": -11, "abort": -6, "exception": 1}[how]
        assert worker.join() == expected
        assert run.check().counts["orphaned"] == 500


def test_W1_an_idle_worker_that_is_killed_is_noticed_at_once(scenario: Scenarios) -> None:
    def job(worker: Worker) -> None:
        worker.writer.send().result(20)
        time.sleep(60)

    with scenario() as run:
        worker = run.worker(job)
        assert worker.moves(1)
        assert wait_until(lambda: metric(run.producer, "workers") == 2)
        worker.kill()
        # Sooner than a sleeping sender wakes by itself, which is after 5 s.
        assert wait_until(lambda: metric(run.producer, "workers") == 1, 4.5)
        assert run.check().counts["read"] == 1


def test_W11_workers_that_come_and_go_leave_no_trace(scenario: Scenarios) -> None:
    def job(worker: Worker) -> None:
        for number in range(5):
            worker.writer.send(number % 3)
        if worker.journal.stream % 2:
            worker.run.producer.close()
        else:
            os._exit(0)

    with scenario() as run:
        run.writer.send(0).result(20)
        run.baseline()
        for _batch in range(10):
            some = run.workers(16, job)
            assert [worker.join() for worker in some] == [0] * 16
        assert run.check().counts["read"] == 1 + 5 * len(run.all)
        found = run.counters()
        assert found["worker-died-total"] + found["worker-left-total"] == len(run.all)


def test_X2_B7_a_worker_killed_while_it_waits_for_memory_blocks_nobody(
    broker: Broker, scenario: Scenarios
) -> None:
    with scenario(
        buffer_memory=64 * 16_384,
        batch_size=100_000,
        max_request_size=500_000,
        max_block_ms=60_000,
    ) as run:
        run.writer.send(0).result(20)
        held = run.fault(broker.on("Produce", times=10**6).delay(1.0))
        workers = run.workers(4, steady(50_000, pause_s=0))
        assert wait_until(lambda: metric(run.producer, "waiting-threads") == 4)
        for victim in workers[:2]:
            victim.kill()
        assert wait_until(lambda: metric(run.producer, "waiting-threads") == 2, 4.5)
        held.remove()
        for other in workers[2:]:
            assert other.moves(30)
        run.check()


def test_X7_a_broker_that_takes_nothing_gets_no_more_records_without_a_key() -> None:
    """What it has holds a part of the memory; the others go on without ever filling it."""
    with Broker(brokers=2) as broker:
        broker.create_topic("events", partitions=4)  # two at each node
        with mpproducer.Producer(
            bootstrap_servers=broker.bootstrap_servers,
            partitioner_availability_timeout_ms=50,
            buffer_memory=128 * 16_384,
            batch_size=20_000,
            max_request_size=200_000,
            max_block_ms=3_000,
            linger_ms=0,
            sender_idle_ms=0,
        ) as producer:
            slow = [number for number in range(4) if broker.leader("events", number) == 1]
            for number in range(4):
                producer.send("events", b"v", partition=number).result(20)
            held = broker.on("Produce", node=1, times=10**6).delay(4.0)
            futures: list[mpproducer.DeliveryFuture] = []
            while len(futures) < 8_000:  # 8 MB through 2 MiB of memory
                futures += [producer.send("events", bytes(1_000)) for _ in range(20)]
                time.sleep(0.002)
            assert held.hits > 0
            late = [future for future in futures if future.partition in slow]
            assert 0 < len(late) < 1_500
            quick = [future for future in futures if future.partition not in slow]
            for future in quick:
                future.result(20)
            held.remove()
            for future in late:
                future.result(20)


def test_W18_a_worker_killed_at_any_moment_of_its_attachment_leaves_nothing(
    scenario: Scenarios, rng: random.Random
) -> None:
    def job(worker: Worker) -> None:
        worker.journal.note = 1
        worker.run.producer.attach(10)
        # Half of them live long enough to be killed also where this test is late to do it.
        time.sleep(0.001 if worker.journal.stream % 2 else 0.1)

    with scenario() as run:
        run.writer.send(0).result(20)
        run.baseline()
        for _ in range(60):
            worker = run.worker(job)
            assert wait_until(lambda w=worker: w.journal.note == 1)  # type: ignore[misc]
            time.sleep(rng.random() * 0.003)
            worker.kill(perhaps=True)
        assert metric(run.producer, "worker-joined-total") > 1
        assert run.writer.send().exception(20) is None
        assert run.check().counts["faults"]["SIGKILL worker"] > 10
