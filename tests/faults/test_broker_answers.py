"""Brokers that answer wrongly, too late, or not at all (rows B1 to B18), on the strict broker.

Whatever they answer, what was acknowledged is in the log once, in order and where it was told, and
what was told not written never is: the checker judges that in every test.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

import mpproducer
from mpproducer import errors
from mpproducer.testing import Broker, Fault
from tests.checker.journal import Kind
from tests.checker.scenario import Scenario, Worker
from tests.conftest import wait_until

Scenarios = Callable[..., Scenario]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
ALWAYS = 10**6


def under_load(run: Scenario, script: Callable[[], Fault]) -> Fault:
    """Two workers send; then the fault, until it has happened as often as it shall; then on."""
    workers = run.workers(2)
    assert all(worker.moves(20) for worker in workers)
    fault: Fault = run.fault(script())
    assert wait_until(lambda: fault.hits == fault.times, 30)
    assert all(worker.moves(20) for worker in workers)
    return fault


def told_without_offset(run: Scenario) -> int:
    """How many records were acknowledged with the offset unknown."""
    found = 0
    for journal in run.journals:
        entries = journal.entries()
        found += int(((entries["kind"] == Kind.ACKED) & (entries["offset"] < 0)).sum())
    return found


def test_B01_append_done_connection_closed_before_the_reply(
    broker: Broker, scenario: Scenarios
) -> None:
    with scenario() as run:
        under_load(run, lambda: broker.on("Produce", times=5).close_after())
        run.check()
        assert run.counters()["record-retry-total"] > 0
        assert told_without_offset(run) == 0


def test_B02_closed_before_the_append(broker: Broker, scenario: Scenarios) -> None:
    with scenario() as run:
        under_load(run, lambda: broker.on("Produce", times=5).close_before())
        run.check()
        assert run.counters()["record-retry-total"] > 0


@pytest.mark.parametrize("code", [6, 74])
def test_B03_not_leader_and_fenced_leader_epoch_ask_for_metadata(
    broker: Broker, scenario: Scenarios, code: int
) -> None:
    with scenario() as run:
        run.writer.send(0).result(20)
        asked = broker.requests["Metadata"]
        under_load(run, lambda: broker.on("Produce", times=3).error(code))
        run.check()
        assert broker.requests["Metadata"] > asked


def test_B03_a_leader_that_moves_is_followed(three: Broker, scenario: Scenarios) -> None:
    with scenario(three, replication=3) as run:
        workers = run.workers(2)
        for turn in range(1, 5):
            assert all(worker.moves(30) for worker in workers)
            for number in range(run.partitions):
                three.set_leader(run.topic, number, 1 + (number + turn) % 3)
            before = {n: len(three.batches(run.topic, n)) for n in range(run.partitions)}
            assert wait_until(
                lambda: all(len(three.batches(run.topic, n)) > b for n, b in before.items())  # noqa: B023
            )
            run.hit("leaders moved")
        run.check()
        assert run.counters()["record-retry-total"] > 0


def test_B04_a_leader_that_flips_every_50_ms(three: Broker, scenario: Scenarios) -> None:
    with scenario(three, replication=3) as run:
        workers = run.workers(2)
        assert all(worker.moves(20) for worker in workers)
        asked, began = three.requests["Metadata"], time.monotonic()
        for flip in range(40):
            for number in range(run.partitions):
                three.set_leader(run.topic, number, 1 + (number + flip) % 3)
            run.hit("leaders flipped")
            time.sleep(0.05)
        took_s = time.monotonic() - began
        assert three.requests["Metadata"] - asked <= took_s / 0.08 + 5  # retry_backoff_ms - a fifth
        assert all(worker.moves(50) for worker in workers)
        run.check()


@pytest.mark.parametrize("code", [7, 20])
def test_B05_request_timed_out_and_not_enough_replicas_after_append_are_never_not_written(
    broker: Broker, scenario: Scenarios, code: int
) -> None:
    with scenario(retries=2) as run:
        under_load(run, lambda: broker.on("Produce", times=1).error_after(code))
        # In the log, and refused until the retries are used up.
        always = run.fault(broker.on("Produce", times=ALWAYS).error_after(code))
        for number in range(3):
            error = run.writer.send(number).exception(30)
            assert isinstance(error, errors.Unconfirmed), error
            assert error.code == code
        assert always.hits >= 9
        always.remove()
        report = run.check(max_unknown=ALWAYS)
        assert report.counts["unknown"] == report.counts["unknown_in_log"] >= 3
        assert report.counts["acked"] > 40


@pytest.mark.parametrize("code", [19, 56, 5])
def test_B06_not_enough_replicas_storage_error_leader_not_available_for_2_s(
    broker: Broker, scenario: Scenarios, code: int
) -> None:
    with scenario() as run:
        run.writer.send(0).result(20)
        outage = run.fault(broker.on("Produce", times=ALWAYS).error(code))
        began = time.monotonic()
        run.writer.send(0)
        assert wait_until(lambda: outage.hits == 1)
        while time.monotonic() - began < 2:
            run.writer.send(0)
            time.sleep(0.02)
        hits, took_s = outage.hits, time.monotonic() - began
        assert 3 <= hits <= 5 + took_s / 0.8  # 80, 160, 320, 640 ms at least, then 800
        outage.remove()
        assert run.check().counts["acked"] > 20


def test_B07_out_of_order_for_later_batches_resends_them_in_order(
    broker: Broker, scenario: Scenarios
) -> None:
    with scenario(batch_size=1, linger_ms=0) as run:
        run.writer.send(0).result(20)
        # The first of five is not taken, while the others are on their way already.
        run.fault(broker.on("Produce").error(19).delay(0.5))
        for _ in range(5):
            run.writer.send(0)
        run.check()
        found = run.counters()
        assert found["record-retry-total"] >= 5  # 19 for one, 45 for four
        assert found["epoch-bump-total"] == 0


def test_B07_out_of_order_for_the_head_starts_a_new_epoch(
    broker: Broker, scenario: Scenarios
) -> None:
    with scenario() as run:
        run.writer.send(0).result(20)
        run.fault(broker.on("Produce").error(45))
        assert run.writer.send(0).exception(20) is None
        under_load(run, lambda: broker.on("Produce", times=3).error(45))
        run.check()
        assert run.counters()["epoch-bump-total"] >= 2
        assert {batch.epoch for batch in broker.batches(run.topic, 0)} > {0, 1}


def test_B08_duplicate_sequence_with_offset_minus_1_is_acked_without_an_offset(
    broker: Broker, scenario: Scenarios
) -> None:
    with scenario() as run:
        run.writer.send(0).result(20)
        run.fault(broker.on("Produce").close_after())
        run.fault(broker.on("Produce").error(46))
        assert run.writer.send(0).result(20).offset == -1
        assert run.writer.send(0).result(20).offset == 2
        run.check()
        assert told_without_offset(run) == 1


def test_B09_unknown_producer_id_idle(broker: Broker, scenario: Scenarios) -> None:
    with scenario() as run:
        for number in range(30):
            run.writer.send(number % 3).result(20)
        broker.forget_producers()
        run.hit("producers forgotten")
        run.fault(broker.on("Produce").error(59))
        for number in range(30):
            run.writer.send(number % 3).result(20)
        run.check()
        assert run.counters()["epoch-bump-total"] == 1


def test_B09_unknown_producer_id_under_load(broker: Broker, scenario: Scenarios) -> None:
    with scenario() as run:
        under_load(run, lambda: broker.on("Produce", times=3).error(59))
        run.check()
        assert run.counters()["epoch-bump-total"] >= 1


def test_B10_invalid_producer_epoch_fails_the_batch_and_goes_on_in_a_new_epoch(
    broker: Broker, scenario: Scenarios
) -> None:
    with scenario() as run:
        run.writer.send(0).result(20)
        run.fault(broker.on("Produce").error(47))
        error = run.writer.send(0).exception(20)
        assert isinstance(error, errors.Rejected)
        assert error.code == 47
        assert run.writer.send(0).result(20).offset == 1
        assert run.check(delivered=False).counts["not_written"] == 1
        assert {batch.epoch for batch in broker.batches(run.topic, 0)} == {0, 1}


def test_B10_fenced_ends_the_producer_and_the_next_one_has_a_new_id(
    broker: Broker, scenario: Scenarios
) -> None:
    with scenario() as run:
        run.writer.send(0).result(20)
        run.fault(broker.on("Produce").error(90))
        for _ in range(2):  # the second one is not even sent
            error = run.writer.send(0).exception(20)
            assert isinstance(error, mpproducer.NotWritten), error
            assert error.code == 90
        run.finish()
        run.producer.close()
        with scenario(topic=run.topic + "-2") as later:
            later.writer.send(0).result(20)
            assert broker.batch_facts(later.topic, 0)[1] != broker.batch_facts(run.topic, 0)[1]
            later.check()


def test_B11_message_too_large_for_a_batch_and_for_a_record(scenario: Scenarios) -> None:
    with Broker(max_message_bytes=20_000) as broker, scenario(broker) as run:
        assert run.writer.send_many(1000, partition=0).result(30)
        workers = run.workers(2)
        for _ in range(3):
            error = run.writer.send(0, size=30_000).exception(30)
            assert isinstance(error, errors.RecordTooLarge)
            assert error.code == 10
            assert all(worker.moves(20) for worker in workers)
        run.hit("records too large", 3)
        run.hit("batches split", run.counters()["batch-split-total"])
        report = run.check(delivered=False)
        assert report.counts["not_written"] == 3
        assert len(broker.batches(run.topic, 0)) > 5


def test_B12_corrupt_message_once(broker: Broker, scenario: Scenarios) -> None:
    with scenario() as run:
        under_load(run, lambda: broker.on("Produce", times=3).error(2))
        run.check()


def test_B12_corrupt_message_always_ends_after_the_retries(
    broker: Broker, scenario: Scenarios
) -> None:
    with scenario(retries=3) as run:
        run.writer.send(0).result(20)
        always = run.fault(broker.on("Produce", times=ALWAYS).error(2))
        assert isinstance(run.writer.send(0).exception(20), mpproducer.NotWritten)
        assert always.hits == 4
        always.remove()
        assert run.writer.send(0).result(20).offset == 1
        assert run.check(delivered=False).counts["not_written"] == 1


@pytest.mark.parametrize("code", [29, 17, 87])
def test_B13_topic_authorization_invalid_topic_invalid_record_while_other_topics_go_on(
    broker: Broker, scenario: Scenarios, code: int
) -> None:
    with scenario() as run:
        run.create_topic("refused", 1)
        other = run.stream("refused")
        workers = run.workers(2)
        assert other.send(0).exception(20) is None
        refused = run.fault(broker.on("Produce", topic="refused", times=ALWAYS).error(code))
        for number in range(3):
            error = other.send(0).exception(20)
            assert isinstance(error, mpproducer.NotWritten)
            assert error.code == code
            assert refused.hits == number + 1  # one request each: no retry
            assert all(worker.moves(20) for worker in workers)
        refused.remove()
        # The same refusal after an attempt that nobody answered leaves its fate open.
        run.fault(broker.on("Produce", topic="refused").close_after())
        run.fault(broker.on("Produce", topic="refused").error(code))
        assert isinstance(other.send(0).exception(20), errors.Unconfirmed)
        assert other.send(0).exception(20) is None
        assert other.finish(20) == 0
        counts = run.check(delivered=False, max_unknown=1).counts
        assert (counts["not_written"], counts["unknown_in_log"]) == (3, 1)


def test_B13_cluster_authorization_ends_everything_at_once(
    broker: Broker, scenario: Scenarios
) -> None:
    with scenario() as run:
        run.writer.send(0).result(20)
        run.fault(broker.on("Produce").error(31))
        for _ in range(2):
            error = run.writer.send(0).exception(20)
            assert isinstance(error, errors.AuthorizationFailed), error
            assert error.code == 31
        run.check(delivered=False)


def test_B14_topic_unknown_created_later(scenario: Scenarios) -> None:
    with Broker(auto_create_topics=False) as broker, scenario(broker) as run:
        late = run.stream("late")
        asked = broker.requests["Metadata"]

        def create() -> None:
            run.hit("asked in vain", broker.requests["Metadata"] - asked)
            run.create_topic("late", 2)

        timer = threading.Timer(1.0, create)
        timer.start()
        try:
            assert late.send(1).result(20).offset == 0
        finally:
            timer.join(10)
        assert late.finish(20) == 0
        run.check()


def test_B14_topic_deleted_while_buffered_fails_in_time(scenario: Scenarios) -> None:
    """Kafka's answer, 3, may also come after an append: so their fate is open."""
    with (
        Broker(auto_create_topics=False) as broker,
        scenario(broker, linger_ms=500, request_timeout_ms=1000, delivery_timeout_ms=3000) as run,
    ):
        run.create_topic("gone", 1)
        other = run.stream("gone")
        assert other.send(0).exception(20) is None
        futures = [other.send(0) for _ in range(20)]
        broker.delete_topic("gone")
        run.hit("topic deleted")
        workers = run.workers(2)
        for future in futures:
            assert isinstance(future.exception(20), errors.ExpiredInFlight), future.exception(0)
        assert all(worker.moves(20) for worker in workers)
        assert other.finish(20) == 0
        broker.create_topic("gone", 1)
        counts = run.check(lost_topics=frozenset({"gone"}), max_unknown=20).counts
        assert (counts["unknown"], counts["unknown_in_log"]) == (20, 0)


def test_B14_topic_recreated_takes_what_was_buffered_and_nothing_of_others(
    scenario: Scenarios,
) -> None:
    with Broker(auto_create_topics=False) as broker, scenario(broker, linger_ms=200) as run:
        run.create_topic("anew", 3)
        workers = run.workers(2)
        sender = run.worker(topic="anew")
        for _ in range(3):
            assert sender.moves(50)
            broker.delete_topic("anew")
            time.sleep(0.1)
            broker.create_topic("anew", 3)
            run.hit("topic recreated")
        assert sender.moves(50)
        assert all(worker.moves(20) for worker in workers)
        report = run.check(delivered=False, lost_topics=frozenset({"anew"}), max_unknown=ALWAYS)
        assert broker.records("anew")
        assert report.counts["not_written"] == report.counts["unknown"] == 0


def test_B15_partitions_4_to_8_lose_nothing(broker: Broker, scenario: Scenarios) -> None:
    def job(worker: Worker) -> None:
        number = 0
        while not worker.journal.stop:
            worker.writer.send(key=number % 50)
            number += 1
            time.sleep(0.001)

    with scenario(metadata_max_age_ms=200) as run:
        run.create_topic("grows", 4)
        workers = [run.worker(job, topic="grows") for _ in range(2)]
        assert all(worker.moves(100) for worker in workers)
        broker.add_partitions("grows", 8)
        run.hit("partitions added")
        assert wait_until(lambda: all(broker.records("grows", n) for n in range(4, 8)))
        assert all(worker.moves(100) for worker in workers)
        run.check()


@pytest.mark.parametrize("kind", ["wrong_correlation", "garbage", "reply_twice"])
def test_B16_wrong_correlation_id_and_reply_without_request(
    broker: Broker, scenario: Scenarios, kind: str
) -> None:
    with scenario() as run:
        run.writer.send(0).result(20)
        closed = run.counters()["connection-close-total"]
        under_load(run, lambda: getattr(broker.on("Produce", times=3), kind)())
        run.check()
        # Several of them may have come on one connection, before it was closed for the first.
        assert run.counters()["connection-close-total"] > closed


def test_B17_reply_lacks_a_partition(broker: Broker, scenario: Scenarios) -> None:
    with scenario() as run:
        under_load(run, lambda: broker.on("Produce", times=5).omit_partition())
        run.check()
        assert run.counters()["response-entry-missing-total"] >= 5


def test_B17_reply_has_a_partition_twice(broker: Broker, scenario: Scenarios) -> None:
    with scenario() as run:
        under_load(run, lambda: broker.on("Produce", times=5).duplicate_partition())
        run.check()
        assert run.counters()["response-entry-ignored-total"] >= 5


def test_B18_half_a_reply_then_silence(broker: Broker, scenario: Scenarios) -> None:
    with scenario(request_timeout_ms=500) as run:
        under_load(run, lambda: broker.on("Produce", times=2).half_reply())
        run.check()
        assert run.counters()["request-timeout-total"] >= 2
