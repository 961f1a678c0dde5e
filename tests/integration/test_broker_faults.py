"""Faults of brokers on real Kafka, three of them (rows B1 to B24 where Kafka can show them)."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kafka_cluster
import pytest
from confluent_kafka.cimpl import NewPartitions, NewTopic

import mpproducer
from mpproducer import errors
from tests.checker.scenario import Scenario, Worker, steady
from tests.conftest import cluster_name, metric, start_cluster, wait_until
from tests.integration import support
from tests.soak.targets import KafkaTarget

pytestmark = [
    pytest.mark.kafka_real,
    pytest.mark.xdist_group("kafka"),
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.skipif(
        bool(os.environ.get("MPPRODUCER_BOOTSTRAP")), reason="its brokers are not ours to kill"
    ),
]
ALWAYS = 10**6
FEW_S = 60.0


@pytest.fixture(scope="module")
def target() -> Iterator[KafkaTarget]:
    """Three brokers for this module, which does to them what it likes."""
    # A killed broker is missed sooner than by default, so that its leaders move in time.
    start_cluster(
        "faults3", 3, "auto.create.topics.enable=false", "broker.session.timeout.ms=3000",
        "broker.heartbeat.interval.ms=500",
    )  # fmt: skip
    name = cluster_name("faults3")
    try:
        with KafkaTarget(3, running=name) as found:
            yield found
    finally:
        kafka_cluster.stop(name)


@pytest.fixture
def scenario(target: KafkaTarget, tmp_path: Path, seed: int) -> Callable[..., Scenario]:
    return lambda **options: Scenario(target.broker, tmp_path, seed, replication=3, **options)


Scenarios = Callable[..., Scenario]


def all_move(workers: list[Worker], records: int = 30) -> bool:
    return all(worker.moves(records, FEW_S) for worker in workers)


def other_topic(run: Scenario, config: dict[str, str], partitions: int = 1) -> str:
    """A topic of its own configuration that is checked, too."""
    assert isinstance(run.broker, str)
    name = support.new_topic(run.broker, partitions, 3, **config)
    run.topics.append(name)
    return name


def retries(run: Scenario, topic: str) -> float:
    """How often records of a topic were sent again; a moment old."""
    return run.producer.metrics()[f"producer-topic-metrics.{topic}"]["record-retry-total"]


def stored_bytes(target: KafkaTarget, node: int, topic: str, partition: int) -> int:
    """What a broker has written to the log of a partition, replicated or not."""
    (folder,) = (Path(one["folder"]) for one in target.nodes if one["id"] == node)
    files = (folder / "data" / f"{topic}-{partition}").glob("*.log")
    return sum(file.stat().st_size for file in files)


def test_B01_append_done_connection_closed_before_the_reply(
    target: KafkaTarget, scenario: Scenarios
) -> None:
    """The leader has it and waits for a replica that stands still, when the connection ends."""
    with scenario() as run:
        offset = run.writer.send(0).result(FEW_S).offset
        leader = target.leaders(run.topic)[0]
        before = stored_bytes(target, leader, run.topic, 0)
        with target.stopped(run, leader % 3 + 1):
            future = run.writer.send(0)
            assert wait_until(lambda: stored_bytes(target, leader, run.topic, 0) > before)
            assert not future.done()
            target.reset(run, leader)
            assert wait_until(lambda: metric(run.producer, "record-retry-total") > 0)
            time.sleep(0.3)
        assert future.result(FEW_S).offset == offset + 1
        assert run.writer.send(0).result(FEW_S).offset == offset + 2
        run.check()


def test_B02_B03_B21_closed_before_the_append_by_a_leader_that_stands_still_and_is_killed(
    target: KafkaTarget, scenario: Scenarios
) -> None:
    with scenario() as run:
        workers = run.workers(2)
        run.writer.send(0).result(FEW_S)
        assert all_move(workers)
        leader = target.leaders(run.topic)[0]
        with target.stopped(run, leader):
            # All partitions without an answer: the workers' records wait, too.
            asked = metric(run.producer, "produce-request-total")
            future = run.writer.send(0)
            assert wait_until(lambda: metric(run.producer, "produce-request-total") > asked)
            with target.down(signal.SIGKILL, leader):
                run.hit("broker killed")
                assert future.exception(FEW_S) is None
                assert all_move(workers)
                assert target.leaders(run.topic)[0] not in (leader, -1)
        assert all_move(workers)
        assert run.check().counts["acked"] > 100
        assert run.counters()["record-retry-total"] > 0


def test_B03_B04_not_leader_when_leaders_move_again_and_again(
    target: KafkaTarget, scenario: Scenarios, rng: random.Random
) -> None:
    with scenario(partitions=6) as run:
        workers = run.workers(2)
        for _ in range(4):
            assert all_move(workers, 20)
            before = target.leaders(run.topic)
            with target.faults["leaders moved"](run, rng):
                run.hit("another leader", int(target.leaders(run.topic) != before))
        assert all_move(workers)
        run.check()
        assert run.counters()["record-retry-total"] > 0


def test_B05_B21_request_timed_out_by_a_replica_that_stands_still_is_never_not_written(
    target: KafkaTarget, scenario: Scenarios
) -> None:
    with scenario(delivery_timeout_ms=2000, request_timeout_ms=800) as run:
        run.writer.send(0).result(FEW_S)
        leader = target.leaders(run.topic)[0]
        with target.stopped(run, leader % 3 + 1):
            futures = [run.writer.send(0) for _ in range(5)]
            for future in futures:
                assert isinstance(future.exception(10), mpproducer.Unknown), future.exception(0)
        assert wait_until(lambda: run.writer.send(0).exception(FEW_S) is None, FEW_S)
        counts = run.check(delivered=False, max_unknown=ALWAYS).counts
        assert counts["unknown_in_log"] == counts["unknown"] >= 5


def test_B06_B22_rolling_restart_of_3_with_not_enough_replicas_for_a_topic(
    target: KafkaTarget, scenario: Scenarios
) -> None:
    with scenario(partitions=6) as run:
        name = other_topic(run, {"min.insync.replicas": "3"}, 3)
        strict = run.stream(name, callbacks=True)  # noted when told: this may take minutes
        workers = run.workers(2)
        for partition in range(3):
            assert strict.send(partition).exception(FEW_S) is None
        for node in (1, 2, 3):
            assert all_move(workers)
            with target.down(signal.SIGTERM, node):
                run.hit("broker restarted")
                assert all_move(workers)  # nobody waits for what restarts
                assert wait_until(lambda: target.in_sync(name) == 2, FEW_S)
                before = retries(run, name)
                waiting = [strict.send(partition) for partition in range(3)]
                assert wait_until(lambda: retries(run, name) >= before + 6, FEW_S)  # noqa: B023
                assert not any(future.done() for future in waiting)
            for future in waiting:
                assert future.exception(FEW_S) is None
        assert strict.finish(FEW_S) == 0
        assert run.check().counts["faults"]["broker restarted"] == 3


def test_B07_B11_message_too_large_for_a_record_makes_those_behind_it_out_of_order(
    target: KafkaTarget, scenario: Scenarios
) -> None:
    with scenario(batch_size=1, linger_ms=0) as run:
        narrow = run.stream(other_topic(run, {"max.message.bytes": "20000"}))
        narrow.send(0).result(FEW_S)
        with target.stopped(run, target.leaders(narrow.journal.topic)[0]):
            # All of them in its socket before it looks at the first.
            asked = metric(run.producer, "produce-request-total")
            futures = [narrow.send(0, size=size) for size in (100, 30_000, 100, 100)]
            assert wait_until(
                lambda: metric(run.producer, "produce-request-total") >= asked + len(futures)
            )
            time.sleep(0.3)
        told = [future.exception(FEW_S) for future in futures]
        assert [error is None for error in told] == [True, False, True, True]
        assert isinstance(told[1], errors.RecordTooLarge), told[1]
        assert told[1].code == 10
        assert [futures[place].result(0).offset for place in (0, 2, 3)] == [1, 2, 3]
        assert narrow.finish(FEW_S) == 0
        run.hit("out of order", run.counters()["epoch-bump-total"])
        assert run.counters()["record-retry-total"] >= 2
        assert run.check(delivered=False).counts["not_written"] == 1


def test_B11_message_too_large_for_a_batch_splits_it(scenario: Scenarios) -> None:
    with scenario() as run:
        narrow = run.stream(other_topic(run, {"max.message.bytes": "20000"}))
        narrow.send_many(1000, partition=0).result(FEW_S)
        narrow.send(0).result(FEW_S)
        assert narrow.finish(FEW_S) == 0
        run.hit("batches split", run.counters()["batch-split-total"])
        assert run.check().counts["acked"] == 1001


def test_B13_invalid_record_while_other_topics_go_on(scenario: Scenarios) -> None:
    """A compacted topic takes no record without a key."""
    with scenario() as run:
        workers = run.workers(2)
        keyed = run.stream(other_topic(run, {"cleanup.policy": "compact"}))
        assert keyed.send(key=1).exception(FEW_S) is None
        for _ in range(3):
            error = keyed.send(0).exception(FEW_S)
            assert isinstance(error, mpproducer.NotWritten), error
            assert error.code == 87
            run.hit("record refused")
            assert all_move(workers, 10)
        assert keyed.send(key=2).exception(FEW_S) is None
        assert keyed.finish(FEW_S) == 0
        assert run.check(delivered=False).counts["not_written"] == 3


def test_B14_topic_unknown_created_later_deleted_and_recreated(
    target: KafkaTarget, scenario: Scenarios
) -> None:
    with scenario() as run:
        name = f"late-{run.id:x}"
        workers = run.workers(2)

        def create() -> None:
            run.hit("topic created later")
            admin = target.admin()  # ends with its last reference, and so would the call
            admin.create_topics([NewTopic(name, run.partitions, 3)], operation_timeout=30)[
                name
            ].result(60)

        timer = threading.Timer(1.0, create)
        timer.start()
        late = run.worker(topic=name, job=steady(pause_s=0.01))
        try:
            assert late.moves(50, FEW_S)
        finally:
            timer.join(30)
        run.topics.append(name)
        target.recreate(name, run.partitions)
        run.hit("topic recreated")
        assert late.moves(50, FEW_S)
        assert all_move(workers, 20)
        report = run.check(delivered=False, lost_topics=frozenset({name}), max_unknown=ALWAYS)
        assert report.counts["read"] > 100


def test_B15_partitions_2_to_4_lose_nothing(target: KafkaTarget, scenario: Scenarios) -> None:
    def job(worker: Worker) -> None:
        number = 0
        while not worker.journal.stop:
            worker.writer.send(key=number % 50)
            number += 1
            time.sleep(0.002)

    with scenario(metadata_max_age_ms=300) as run:
        name = other_topic(run, {}, 2)
        workers = [run.worker(job, topic=name) for _ in range(2)]
        assert all_move(workers)
        admin = target.admin()
        grown: Any = admin.create_partitions([NewPartitions(name, 4)])
        grown[name].result(30)
        run.hit("partitions added")

        def new_ones_filled() -> bool:
            return sum(extent.end > 0 for extent in run.log().extents()) == 4

        assert wait_until(new_ones_filled, FEW_S)
        assert all_move(workers)
        run.check()


def test_B19_B20_all_brokers_down_shorter_and_longer_than_the_delivery_timeout(
    target: KafkaTarget, scenario: Scenarios, tmp_path: Path
) -> None:
    with (
        scenario() as patient,
        Scenario(
            target.broker, tmp_path, patient.id & 0xFFFF, replication=3, delivery_timeout_ms=4000,
            request_timeout_ms=3000,
        ) as hasty,
    ):  # fmt: skip
        workers = patient.workers(2)
        for partition in range(3):
            hasty.writer.send(partition).result(FEW_S)
        assert all_move(workers)
        with target.stopped(hasty, target.leaders(hasty.topic)[0]):
            asked = metric(hasty.producer, "produce-request-total")
            sent = hasty.writer.send(0)
            assert wait_until(lambda: metric(hasty.producer, "produce-request-total") > asked)
            began = time.monotonic_ns()
            with target.down(signal.SIGKILL, 1, 2, 3):
                hasty.hit("all brokers killed")
                patient.hit("all brokers killed")
                assert wait_until(lambda: metric(hasty.producer, "connection-count") == 0)
                never_sent = [hasty.writer.send(1 + number % 2) for number in range(20)]
                assert isinstance(sent.exception(20), mpproducer.Unknown), sent.exception(0)
                for future in never_sent:
                    assert isinstance(future.exception(20), errors.ExpiredUnsent)
        patient.stalled(began)
        hasty.stalled(began)
        assert all_move(workers)
        for partition in range(3):
            assert wait_until(
                lambda: hasty.writer.send(partition).exception(FEW_S) is None,  # noqa: B023
                FEW_S,
            )
        counts = hasty.check(delivered=False, max_unknown=ALWAYS).counts
        assert counts["not_written"] >= 20
        assert counts["unknown"] >= 1
        assert patient.check().counts["acked"] > 100


def test_B24_throttled_by_a_quota(
    target: KafkaTarget, scenario: Scenarios, rng: random.Random
) -> None:
    with scenario() as run:
        workers = run.workers(2, steady(size=1000, pause_s=0.01))
        with target.faults["throttled"](run, rng):
            assert wait_until(lambda: metric(run.producer, "produce-throttle-time-ms-total") > 0)
        assert all_move(workers)
        run.check()
