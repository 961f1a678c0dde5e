"""Whole runs through the helper: what is right passes, and what is not is noticed."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from mpproducer.testing import Broker
from mpproducer.testing.log import PartitionLog
from tests.checker.log import ConfluentLog, KafkaPythonLog
from tests.checker.scenario import Scenario, Worker
from tests.conftest import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def partition_log(broker: Broker, run: Scenario, partition: int) -> PartitionLog:
    return broker._log(run.topic, partition)


def test_a_run_with_every_way_to_send_is_read_back_alike_by_all_clients(
    broker: Broker, tmp_path: Path, seed: int
) -> None:
    with Scenario(broker, tmp_path, seed, compression_type="lz4") as run:
        loud = run.stream(callbacks=True)
        for number in range(200):
            run.writer.send(number % 3, size=60 + number)
            run.writer.send(key=number, timestamp_ms=number)
            loud.send()
        run.writer.send_many(500, 1)
        run.writer.send_many(300, keys=list(range(300)), size=77)
        assert loud.finish(30) == 0
        worker = run.worker(callbacks=True)
        assert worker.moves(100)
        reports = [
            run.check(),
            run.check(ConfluentLog(broker.bootstrap_servers, run.topics)),
            run.check(KafkaPythonLog(broker.bootstrap_servers, run.topics)),
        ]
        counts = reports[0].counts
        assert counts["read"] == counts["acked"] == counts["attempted"] >= 1500
        assert all(report.counts == counts for report in reports)


def test_a_worker_killed_and_one_stopped_are_judged_by_what_they_noted(
    broker: Broker, tmp_path: Path, seed: int
) -> None:
    with Scenario(broker, tmp_path, seed) as run:
        killed, stopped = run.workers(2)
        run.fault(broker.on("Produce", times=3).close_after())
        assert killed.moves(100)
        killed.kill()
        with stopped.stopped():
            time.sleep(0.1)
        report = run.check()
        assert report.counts["faults"]["SIGKILL worker"] == 1
        assert report.counts["faults"]["SIGSTOP worker"] == 1
        assert report.counts["orphaned_in_log"] == report.counts["orphaned"] > 0
        assert run.stalls[0].pid == stopped.pid


def spoil_lost(broker: Broker, run: Scenario) -> str:
    log = partition_log(broker, run, 0)
    log.end_offset = log.batches.pop().base_offset
    return "K3"


def spoil_doubled(broker: Broker, run: Scenario) -> str:
    log = partition_log(broker, run, 0)
    last = log.batches[-1]
    moved = last._replace(
        base_offset=log.end_offset,
        last_offset=log.end_offset + last.last_offset - last.base_offset,
        raw=log.end_offset.to_bytes(8, "big") + last.raw[8:],
    )
    log.batches.append(moved)
    log.end_offset = moved.last_offset + 1
    return "K4"


def spoil_misplaced(broker: Broker, run: Scenario) -> str:
    """As if memory had been used again while a request still read it."""
    log, other = partition_log(broker, run, 0), partition_log(broker, run, 1)
    log.batches, other.batches = other.batches, log.batches
    log.end_offset, other.end_offset = other.end_offset, log.end_offset
    return "K1"


@pytest.mark.parametrize("spoil", [spoil_lost, spoil_doubled, spoil_misplaced])
def test_a_broker_that_loses_doubles_or_misplaces_is_noticed(
    broker: Broker, tmp_path: Path, seed: int, spoil: Any
) -> None:
    with Scenario(broker, tmp_path, seed, linger_ms=0) as run:
        for number in range(30):
            run.writer.send(number % 3).result(20)
        rule = spoil(broker, run)
        assert run.judge().broken[rule] > 0


def test_a_fault_that_did_not_happen_makes_a_run_invalid(
    broker: Broker, tmp_path: Path, seed: int
) -> None:
    with Scenario(broker, tmp_path, seed) as run:
        run.fault(broker.on("Produce", topic="another").error(6))
        run.writer.send()
        report = run.judge()
        assert not report.broken
        assert "never happened" in report.invalid[0]
        with pytest.raises(AssertionError, match="never happened"):
            run.check()


def test_a_worker_that_fails_or_hangs_fails_the_run_and_is_ended(
    broker: Broker, tmp_path: Path, seed: int
) -> None:
    def fails(_worker: Worker) -> None:
        raise SystemExit(3)

    def hangs(worker: Worker) -> None:
        worker.writer.send()
        time.sleep(60)

    with Scenario(broker, tmp_path, seed) as run:
        failed, hanging = run.worker(fails), run.worker(hangs)
        assert failed.join() == 1
        assert wait_until(lambda: hanging.journal.returns == 1, 20)
        with pytest.raises(AssertionError, match=f"worker {hanging.pid} does not end"):
            run.finish(0.2)
    assert hanging.status == -signal.SIGKILL


def test_an_outcome_that_does_not_come_in_time_is_a_broken_promise(
    broker: Broker, tmp_path: Path, seed: int
) -> None:
    with Scenario(broker, tmp_path, seed) as run:
        held = broker.on("Produce", times=100).drop_reply()
        run.writer.send()
        late = run.stream()
        late.send()
        assert late.finish(0.3) == 1
        held.remove()
        broker.stop_node(1)
        broker.start_node(1)
        report = run.judge()
        assert report.broken["K9"] == 1
        assert "without an outcome" in report.witnesses[0]
