"""Worker processes that are killed or stopped in the middle of sending (rows W).

Each worker keeps a journal in memory that outlives it: what it was about to send, and what `send`
had returned for. Whatever happens to it, the log must hold exactly its first records, in order,
at least as many as had returned; the others go on, and all memory comes back.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import mpproducer
from mpproducer.cli import sender as sender_cli
from mpproducer.testing import Broker
from tests.conftest import wait_until

TOPIC = "events"
PARTITIONS = 3
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


class Journal:
    """Two counters in memory shared with forks: records attempted, and records returned for."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, 4096)
        self._counters = memoryview(self._map).cast("Q")

    def attempt(self) -> int:
        """The number of the next record."""
        number = self._counters[0]
        self._counters[0] = number + 1
        return number

    def returned(self) -> None:
        self._counters[1] = self._counters[0]

    def note(self, what: int) -> None:
        self._counters[2] = what

    @property
    def attempts(self) -> int:
        return self._counters[0]

    @property
    def returns(self) -> int:
        return self._counters[1]

    @property
    def noted(self) -> int:
        return self._counters[2]


class Worker:
    """A forked process that does `job(worker)` until it is killed or the job is over."""

    numbers = 0

    def __init__(self, job: Callable[[Worker], None]) -> None:
        Worker.numbers += 1
        self.number = Worker.numbers
        self.journal = Journal()
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                job(self)
                code = 0
            except BaseException:  # noqa: BLE001 - told by the exit status
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)

    def value(self, number: int, size: int = 0) -> bytes:
        return b"%d %d " % (self.number, number) + bytes(size)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def join(self) -> int:
        """Its exit code, or minus the signal that killed it."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def moves(self, records: int, seconds: float = 10) -> bool:
        """Whether `send` returns for so many further records in time."""
        aim = self.journal.returns + records
        return wait_until(lambda: self.journal.returns >= aim, seconds)


@contextlib.contextmanager
def sending(broker: Broker, **config: Any) -> Iterator[mpproducer.Producer]:
    """A producer of this process that stays attached, and so keeps the sender's counters."""
    broker.create_topic(TOPIC, partitions=PARTITIONS)
    defaults: dict[str, Any] = {"linger_ms": 2, "sender_idle_ms": 0, "max_block_ms": 20_000}
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, **(defaults | config)
    ) as producer:
        producer.attach(10)
        yield producer


def forever(
    producer: mpproducer.Producer, size: int = 20, pause_s: float = 0.0
) -> Callable[[Worker], None]:
    """One record after the other, a third of them looked at; every 20 records a pause."""

    def job(worker: Worker) -> None:
        while True:
            number = worker.journal.attempt()
            future = producer.send(TOPIC, worker.value(number, size), partition=number % PARTITIONS)
            worker.journal.returned()
            if number % 3 == 0:
                future.done()
            if pause_s and number % 20 == 0:
                time.sleep(pause_s)

    return job


def check(broker: Broker, workers: list[Worker], ours: int = 0) -> None:
    """Each worker's first records, at least those that returned, once and in order; and as many
    of this process (worker 0)."""
    stored: dict[int, dict[int, list[int]]] = {}
    for partition in range(PARTITIONS):
        for record in broker.records(TOPIC, partition):
            assert record.value is not None
            who, number = record.value.split(b" ")[:2]
            stored.setdefault(int(who), {}).setdefault(partition, []).append(int(number))
    for worker in workers:
        mine = stored.pop(worker.number, {})
        for partition, numbers in mine.items():
            assert numbers == sorted(numbers), f"worker {worker.number}: order in {partition}"
        flat = sorted(number for numbers in mine.values() for number in numbers)
        assert flat == list(range(len(flat))), f"worker {worker.number}: gap or double"
        assert worker.journal.returns <= len(flat) <= worker.journal.attempts
    assert sum(len(numbers) for numbers in stored.pop(0, {}).values()) == ours
    assert stored == {}


def counters(producer: mpproducer.Producer) -> dict[str, int]:
    """The sender's counters of this moment; those in shared memory are a moment old."""
    answer = sender_cli.ask(producer._place, "status")
    assert answer is not None
    found: dict[str, int] = answer["counters"]
    return found


def settled(producer: mpproducer.Producer) -> dict[str, int]:
    """Wait until only we are left, all is delivered, and all memory is back."""
    found: dict[str, int] = {}

    def quiet() -> bool:
        found.update(counters(producer))
        return (
            found["workers"] == 1
            and found["batches-incomplete"] == 0
            and found["batches-unreleased"] == 0
            and found["batches-quarantined"] == 0
            and found["buffer-available-bytes"] == found["buffer-total-bytes"]
        )

    interesting = ("workers", "batch", "buffer", "record", "waiting", "slots")
    assert wait_until(quiet), {n: v for n, v in found.items() if n.startswith(interesting)}
    return found


KINDS: dict[str, dict[str, Any]] = {
    "small": {},
    "one record per batch": {"batch_size": 1, "linger_ms": 0},
    "chains": {"size": 40_000, "batch_size": 200_000, "buffer_memory": 128 * 16_384},
    "short of memory": {"size": 5_000, "buffer_memory": 64 * 16_384, "batch_size": 50_000},
    "compressed": {"size": 500, "compression_type": "zstd", "batch_size": 20_000},
}


@pytest.mark.parametrize("kind", KINDS)
def test_W2_W3_W4_kill_9_in_the_middle_of_sending(
    broker: Broker, rng: random.Random, kind: str
) -> None:
    config = dict(KINDS[kind])
    size = config.pop("size", 20)
    if "buffer_memory" in config:
        config["max_request_size"] = 500_000
    with sending(broker, **config) as producer:
        workers = [Worker(forever(producer, size, 0.001)) for _ in range(2)]
        survivor = workers[0]
        assert survivor.moves(1)
        for _round in range(8):
            victim = workers[-1]
            assert victim.moves(rng.randrange(1, 30))
            time.sleep(rng.random() * 0.02)
            victim.signal(signal.SIGKILL)
            assert victim.join() == -signal.SIGKILL
            assert survivor.moves(20)
            workers.append(Worker(forever(producer, size, 0.001)))
        for worker in workers:
            if worker.status is None:
                worker.signal(signal.SIGKILL)
                worker.join()
        found = settled(producer)
        attached = len([worker for worker in workers if worker.journal.returns])
        assert attached <= found["worker-died-total"] <= len(workers)
        assert found["record-unknown-total"] == found["record-not-written-total"] == 0
        assert found["batch-corrupt-total"] == 0
        check(broker, workers)
        assert producer.send(TOPIC, b"0 0", partition=0).exception(20) is None


def test_W2_kill_9_of_all_workers_at_once_delivers_what_had_returned(
    broker: Broker, rng: random.Random
) -> None:
    """Nobody is left to look: the sender delivers for the dead, then it ends."""
    broker.create_topic(TOPIC, partitions=PARTITIONS)
    for _round in range(3):
        producer = mpproducer.Producer(
            bootstrap_servers=broker.bootstrap_servers, linger_ms=60_000, sender_idle_ms=0
        )
        before = sum(len(broker.records(TOPIC, p)) for p in range(PARTITIONS))
        workers = [Worker(forever(producer)) for _ in range(3)]
        for worker in workers:
            assert worker.moves(rng.randrange(50, 200))
        for worker in workers:
            worker.signal(signal.SIGKILL)
        for worker in workers:
            worker.join()
        folder = producer._place.folder
        assert wait_until(lambda folder=folder: not os.path.exists(folder))  # type: ignore[misc]
        returned = sum(worker.journal.returns for worker in workers)
        stored = sum(len(broker.records(TOPIC, p)) for p in range(PARTITIONS)) - before
        assert returned <= stored <= returned + len(workers)


def test_W5_W6_a_stopped_worker_holds_up_nobody_and_loses_nothing(
    broker: Broker, rng: random.Random
) -> None:
    with sending(broker, delivery_timeout_ms=3000, request_timeout_ms=1000) as producer:
        # Slow enough for the broker of this process: what is late is late because of a stop.
        workers = [Worker(forever(producer, pause_s=0.001)) for _ in range(3)]
        for _round in range(15):
            stopped = rng.choice(workers)
            assert stopped.moves(1)
            time.sleep(rng.random() * 0.01)
            stopped.signal(signal.SIGSTOP)
            try:
                for other in workers:
                    assert other is stopped or other.moves(50)
                assert producer.send(TOPIC, b"0 0", partition=0).exception(5) is None
            finally:
                stopped.signal(signal.SIGCONT)
            assert stopped.moves(1)
        # One is stopped for longer than delivery.timeout.ms, and one is killed while stopped.
        workers[0].signal(signal.SIGSTOP)
        workers[1].signal(signal.SIGSTOP)
        time.sleep(3.2)
        assert workers[2].moves(50)
        workers[0].signal(signal.SIGCONT)
        assert workers[0].moves(50)
        for worker in workers:
            worker.signal(signal.SIGKILL)
            worker.join()
        settled(producer)
        check(broker, workers, ours=15)


def test_W7_completions_of_a_stopped_worker_wait_and_all_arrive(broker: Broker) -> None:
    """Its pipe fills; the sender goes on, and nothing of it is lost."""
    records = 6000  # frames of 48 bytes: more than the pipe's 256 KiB
    hold = Journal()

    def job(worker: Worker) -> None:
        futures = []
        for _ in range(records):
            number = worker.journal.attempt()
            futures.append(producer.send(TOPIC, worker.value(number), partition=0))
            worker.journal.returned()
        while hold.noted == 0:  # in Python, so that it can be stopped anywhere
            time.sleep(0.001)
        offsets = [future.result(20).offset for future in futures]
        assert offsets == sorted(offsets)
        worker.journal.note(len(offsets))

    with sending(
        broker, batch_size=1, linger_ms=0, buffer_memory=6600 * 16_384, max_request_size=100_000
    ) as producer:
        producer.send(TOPIC, b"0 0", partition=0).result(20)
        held = broker.on("Produce", times=10**6).delay(0.4)
        worker = Worker(job)
        assert wait_until(lambda: worker.journal.returns == records)
        worker.signal(signal.SIGSTOP)
        assert held.hits > 0
        held.remove()
        try:
            assert wait_until(lambda: producer.metrics()["record-acked-total"] == records + 1, 40)
            assert wait_until(lambda: producer.metrics()["completion-backlog-bytes"] > 0)
            for _ in range(20):
                assert producer.send(TOPIC, b"0 0", partition=1).exception(10) is None
            assert producer.metrics()["completion-overflow-total"] == 0
        finally:
            hold.note(1)
            worker.signal(signal.SIGCONT)
        assert worker.join() == 0
        assert worker.journal.noted == records
        assert wait_until(lambda: producer.metrics()["completion-backlog-bytes"] == 0)
        settled(producer)


@pytest.mark.parametrize("how", ["_exit", "segfault", "abort", "exception"])
def test_W9_W10_a_worker_that_ends_in_any_other_way_loses_nothing(broker: Broker, how: str) -> None:
    def job(worker: Worker) -> None:
        for _ in range(500):
            number = worker.journal.attempt()
            producer.send(TOPIC, worker.value(number), partition=number % PARTITIONS)
            worker.journal.returned()
        if how == "_exit":
            os._exit(7)
        if how == "segfault":
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGSEGV)
        if how == "abort":
            signal.signal(signal.SIGABRT, signal.SIG_DFL)
            os.abort()
        with contextlib.suppress(ZeroDivisionError):
            raise ZeroDivisionError

    with sending(broker, linger_ms=300) as producer:
        worker = Worker(job)
        expected = {"_exit": 7, "segfault": -11, "abort": -6, "exception": 0}[how]
        assert worker.join() == expected
        settled(producer)
        assert worker.journal.returns == 500
        check(broker, [worker])


def test_W1_an_idle_worker_that_is_killed_is_noticed_at_once(broker: Broker) -> None:
    def job(worker: Worker) -> None:
        producer.send(TOPIC, worker.value(worker.journal.attempt())).result(20)
        worker.journal.returned()
        time.sleep(60)

    with sending(broker) as producer:
        worker = Worker(job)
        assert worker.moves(1)
        assert wait_until(lambda: producer.metrics()["workers"] == 2)
        worker.signal(signal.SIGKILL)
        worker.join()
        assert wait_until(lambda: producer.metrics()["workers"] == 1, 2)
        settled(producer)


def test_W11_workers_that_come_and_go_leave_no_trace(
    broker: Broker, rng: random.Random, status_of: Any
) -> None:
    def job(worker: Worker) -> None:
        for _ in range(5):
            number = worker.journal.attempt()
            producer.send(TOPIC, worker.value(number), partition=number % PARTITIONS)
            worker.journal.returned()
        if worker.number % 2:
            producer.close()

    with sending(broker) as producer:
        producer.send(TOPIC, b"0 0", partition=0).result(20)
        settled(producer)
        pid = status_of(producer)["pid"]
        before = len(os.listdir(f"/proc/{pid}/fd"))
        workers: list[Worker] = []
        for _batch in range(10):
            some = [Worker(job) for _ in range(16)]
            assert [worker.join() for worker in some] == [0] * 16
            workers += some
        # A worker is gone before the sender has heard of it.
        assert wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before)
        found = settled(producer)
        assert found["worker-died-total"] + found["worker-left-total"] == len(workers)
        stored = sum(len(broker.records(TOPIC, p)) for p in range(PARTITIONS))
        assert stored == 1 + 5 * len(workers)


def test_X2_B7_a_worker_killed_while_it_waits_for_memory_blocks_nobody(broker: Broker) -> None:
    def job(worker: Worker) -> None:
        while True:
            number = worker.journal.attempt()
            producer.send(TOPIC, worker.value(number, 50_000), partition=number % PARTITIONS)
            worker.journal.returned()

    with sending(
        broker,
        buffer_memory=64 * 16_384,
        batch_size=100_000,
        max_request_size=500_000,
        max_block_ms=60_000,
    ) as producer:
        producer.send(TOPIC, b"0 0", partition=0).result(20)
        held = broker.on("Produce", times=10**6).delay(1.0)
        workers = [Worker(job) for _ in range(4)]
        assert wait_until(lambda: producer.metrics()["waiting-threads"] == 4)
        for victim in workers[:2]:
            victim.signal(signal.SIGKILL)
            victim.join()
        assert wait_until(lambda: producer.metrics()["waiting-threads"] == 2, 2)
        assert held.hits > 0
        held.remove()
        for other in workers[2:]:
            assert other.moves(30)
            other.signal(signal.SIGKILL)
            other.join()
        settled(producer)


def test_W18_a_worker_killed_at_any_moment_of_its_attachment_leaves_nothing(
    broker: Broker, rng: random.Random, status_of: Any
) -> None:
    def job(worker: Worker) -> None:
        worker.journal.note(1)
        producer.attach(10)
        time.sleep(0.001)

    with sending(broker) as producer:
        settled(producer)
        pid = status_of(producer)["pid"]
        before = len(os.listdir(f"/proc/{pid}/fd"))
        for _ in range(60):
            worker = Worker(job)
            assert wait_until(lambda w=worker: w.journal.noted == 1)  # type: ignore[misc]
            time.sleep(rng.random() * 0.003)
            worker.signal(signal.SIGKILL)
            worker.join()
        settled(producer)
        assert wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before)
        assert producer.metrics()["worker-joined-total"] > 1
        assert producer.send(TOPIC, b"0 0").exception(20) is None
