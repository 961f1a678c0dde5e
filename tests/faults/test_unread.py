"""Workers that do not read their completions, and some that die before they did (X4).

The sender never waits for them: what their pipes do not take is kept, the others are served, and
whoever comes later, under whatever number, gets what is its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpproducer.testing import Broker
from tests.checker.journal import Kind
from tests.checker.scenario import Scenario, Worker
from tests.conftest import metric, wait_until

Scenarios = Callable[..., Scenario]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

RECORDS = 300
"""Each in a batch of its own: frames of more bytes than the pipes below take."""
ALONE = {"batch_size": 1, "linger_ms": 0}
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
READ, LEAVE = 2, 3  # what a worker is asked for


def _pipes() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("pipe:"):
                found.add(int(name))
    return found


def unread(worker: Worker) -> None:
    """Send, and look at no outcome until it is asked to; with the smallest pipe there is."""
    before = _pipes()
    worker.run.producer.attach(20)
    (completions,) = _pipes() - before
    fcntl.fcntl(completions, fcntl.F_SETPIPE_SZ, 4096)
    for number in range(RECORDS):
        worker.writer.send(number % 3)
    worker.journal.note = 1
    while worker.journal.note != READ:
        time.sleep(0.001)


def sent_unread(broker: Broker, run: Scenario, count: int) -> list[Worker]:
    """Such workers, all of whose records are acknowledged by now."""
    acked = metric(run.producer, "record-acked-total")
    # No outcome comes while they send: `send` would read it.
    held = run.fault(broker.on("Produce", times=10**6).delay(0.2))
    workers = run.workers(count, unread)
    assert wait_until(lambda: all(worker.journal.note == 1 for worker in workers), 30)
    assert wait_until(lambda: held.hits > 0)
    held.remove()
    acked += count * RECORDS
    assert wait_until(lambda: metric(run.producer, "record-acked-total") >= acked, 30)
    return workers


def backlog(run: Scenario) -> float:
    return run.counters()["completion-backlog-bytes"]


def own_outcomes(worker: Worker) -> None:
    """A process that comes later: 50 records, all its own outcomes."""
    futures = [worker.writer.send(number % 3) for number in range(50)]
    for future in futures:
        future.result(20)


def test_X4_a_worker_that_does_not_read_and_one_that_dies_unread_hold_up_nobody(
    broker: Broker, scenario: Scenarios
) -> None:
    with scenario(**ALONE) as run:
        run.writer.send(0).result(20)
        sleeper, victim = sent_unread(broker, run, 2)
        both = backlog(run)
        assert both > 0
        reader = run.worker()
        assert reader.moves(100)
        for number in range(20):
            assert run.writer.send(number % 3).exception(10) is None
        assert backlog(run) == both, "kept, while everything else goes on"

        victim.kill()
        assert wait_until(lambda: run.counters()["worker-died-total"] == 1)
        left = backlog(run)
        assert 0 < left < both, "what waited for the dead is gone, the other's is not"
        later = run.workers(5, own_outcomes)
        assert [worker.join() for worker in later] == [0] * 5
        assert reader.moves(100)
        assert backlog(run) == left

        sleeper.journal.note = READ
        assert sleeper.join() == 0
        assert backlog(run) == 0
        report = run.check()
        assert run.counters()["completion-overflow-total"] == 0
        assert report.counts["orphaned"] == report.counts["orphaned_in_log"] == RECORDS
        assert (sleeper.journal.entries()["kind"] == Kind.ACKED).sum() == RECORDS


@contextlib.contextmanager
def sender_stopped(run: Scenario) -> Iterator[None]:
    """It notices nothing meanwhile."""
    pid, began = run.status()["pid"], time.monotonic_ns()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
        run.stalled(began)
        run.hit("SIGSTOP sender")


def _worker_with(run: Scenario, pid: int) -> Worker:
    """A process of this number that sends; others that get another one end at once."""

    def job(worker: Worker) -> None:
        if os.getpid() == pid:
            own_outcomes(worker)
            worker.journal.note = 1
            while worker.journal.note != LEAVE:
                time.sleep(0.001)

    for _ in range(200):
        try:
            LAST_PID.write_text(str(pid - 1))
        except PermissionError:
            pytest.skip(f"{LAST_PID} cannot be written here")
        worker = run.worker(job)
        if worker.pid == pid:
            return worker
    raise AssertionError("no process got the number")


def test_X4_a_later_process_of_the_same_number_is_not_taken_for_the_dead_one(
    broker: Broker, scenario: Scenarios
) -> None:
    """The sender learns of the death when another process with that number is there already."""
    with scenario(**ALONE) as run:
        run.writer.send(0).result(20)
        (victim,) = sent_unread(broker, run, 1)
        assert backlog(run) > 0
        with sender_stopped(run):
            victim.kill()
            later = _worker_with(run, victim.pid)
        assert wait_until(lambda: later.journal.note == 1, 20), "it has all its outcomes"
        found = run.counters()
        assert found["worker-died-total"] == 1
        assert found["completion-backlog-bytes"] == 0
        assert run.status()["workers"].count(later.pid) == 1
        later.journal.note = LEAVE
        assert later.join() == 0
        report = run.check()
        assert report.counts["orphaned"] == report.counts["orphaned_in_log"] == RECORDS
