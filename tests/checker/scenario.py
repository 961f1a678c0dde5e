"""A run for a test, as short to write as: scenario, fault, heal, check.

    with Scenario(broker, tmp_path, seed, linger_ms=2) as run:
        workers = run.workers(3)
        run.fault(broker.on("Produce", times=5).error(6))
        assert workers[0].moves(100)
        workers[0].kill()
        run.check()

`check` lets everybody finish, requires that everything comes to rest, and judges journals and log;
a fault that never happened makes the run invalid.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

import mpproducer
from mpproducer import visitor
from mpproducer.testing import Broker, BrokerProcess
from tests.checker import footprint
from tests.checker.check import Report, check
from tests.checker.footprint import Footprint
from tests.checker.journal import Journal
from tests.checker.log import BrokerLog, ConfluentLog, Extent, Log
from tests.checker.rules import Stall, Terms
from tests.checker.writer import Writer
from tests.conftest import wait_until

CAPACITY: Final = 1 << 20
MOVES_S: Final = 20.0
FINISH_S: Final = 60.0
REST: Final = ("batches-incomplete", "batches-unreleased", "batches-quarantined")
Job = Callable[["Worker"], None]


class Hits(Protocol):
    """A scripted fault that counts how often it happened."""

    @property
    def hits(self) -> int: ...


class Worker:
    """A forked process that does a job with a stream of its own, until it is killed or done.

    The job gets this object; `writer` is there in the new process only.
    """

    writer: Writer

    def __init__(self, run: Scenario, job: Job, topic: str, callbacks: bool, capacity: int) -> None:
        self.run = run
        self.journal = run.journal(topic, capacity)
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._live(job, callbacks)
        self.journal.pid = self.pid

    def _live(self, job: Job, callbacks: bool) -> None:
        code = 1
        try:
            self.journal.pid = os.getpid()
            count = self.run.partitions if self.journal.topic == self.run.topic else 0
            self.writer = Writer(
                self.run.producer, self.journal, partitions=count, callbacks=callbacks
            )
            job(self)
            code = 1 if self.writer.finish(self.run.finish_s) else 0
        except BaseException:  # noqa: BLE001 - told by the exit status
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def moves(self, records: int, seconds: float = MOVES_S) -> bool:
        """Whether `send` returns for so many further records in time."""
        aim = self.journal.returns + records
        return wait_until(lambda: self.journal.returns >= aim, seconds)

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self, number: int = signal.SIGKILL, *, perhaps: bool = False) -> None:
        """Kill it, and wait until it is dead. `perhaps`: it may have ended before."""
        self.send_signal(number)
        killed = self.join() == -number
        assert killed or perhaps, f"worker {self.pid} had ended with {self.status}"
        self.run.hit(f"{signal.Signals(number).name} worker", killed)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It does not run meanwhile."""
        self.send_signal(signal.SIGSTOP)
        began = time.monotonic_ns()
        try:
            yield
        finally:
            if self.status is None:
                self.send_signal(signal.SIGCONT)
            self.run.stalled(began, self.pid)
            self.run.hit("SIGSTOP worker")

    def join(self, seconds: float = FINISH_S) -> int:
        """Its exit code, or minus the signal that ended it. Raises AssertionError if it is late."""

        def ended() -> bool:
            if self.status is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.status = os.waitstatus_to_exitcode(status)
            return self.status is not None

        assert wait_until(ended, seconds), f"worker {self.pid} does not end"
        assert self.status is not None
        return self.status


class Scenario:
    """One run against a broker in memory, or against a cluster by its bootstrap servers.

    `producer` is this process's: it stays attached, and so keeps the sender and its counters.
    `writer` is a stream of this process. With `attach=False` only the workers attach, and the
    sender ends after them. Further keywords are configuration of the producer.
    """

    producer: mpproducer.Producer
    writer: Writer

    def __init__(
        self,
        broker: Broker | BrokerProcess | str,
        folder: Path,
        seed: int,
        *,
        topic: str = "",
        partitions: int = 3,
        replication: int = 1,
        attach: bool = True,
        **config: Any,
    ) -> None:
        self.broker = broker
        self.folder = folder
        self.rng = random.Random(seed)
        self.id = self.rng.getrandbits(64)
        self.topic = topic or f"events-{self.id:x}"
        self.partitions = partitions
        self.finish_s = FINISH_S
        self.attach = attach
        self.topics: list[str] = []
        self.journals: list[Journal] = []
        self.all: list[Worker] = []
        self.hits: Counter[str] = Counter()
        self.stalls: list[Stall] = []
        self._scripted: list[Hits] = []
        self.sender_died = False
        """Whether counters of a dead sender are lost (K11)."""
        self._before: Footprint | None = None
        self._counters: dict[str, int] | None = None
        self._prints: dict[str, tuple[Footprint, Sequence[Footprint]]] = {}
        self._replication = replication
        defaults = {"linger_ms": 2, "sender_idle_ms": 0, "max_block_ms": 20_000}
        self._config = defaults | config

    def __enter__(self) -> Scenario:
        servers = self.broker if isinstance(self.broker, str) else self.broker.bootstrap_servers
        self.create_topic(self.topic, self.partitions)
        # What stands between, such as a proxy, is given as bootstrap_servers.
        self.producer = mpproducer.Producer({"bootstrap_servers": servers} | self._config)
        if self.attach:
            self.producer.attach(20)
            self.writer = self.stream(callbacks=True)  # its outcomes are noted when they come
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self.all:
            if worker.status is None:
                for number in (signal.SIGKILL, signal.SIGCONT):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker.pid, number)
                worker.join()
        self.producer.__exit__(kind, error, trace)

    # --- who takes part

    def create_topic(self, name: str, partitions: int) -> None:
        """A topic whose records are checked."""
        self.topics.append(name)
        if isinstance(self.broker, str):
            from confluent_kafka.admin import AdminClient
            from confluent_kafka.cimpl import NewTopic

            admin = AdminClient({"bootstrap.servers": self.broker})
            topic = NewTopic(name, partitions, self._replication)
            admin.create_topics([topic], operation_timeout=30)[name].result(60)
        else:
            self.broker.create_topic(name, partitions, self._replication)

    def journal(self, topic: str = "", capacity: int = CAPACITY) -> Journal:
        """The journal of a new stream."""
        number = len(self.journals)
        path = self.folder / f"{self.id:x}-{number}.journal"
        journal = Journal.create(path, self.id, number, topic or self.topic, capacity)
        self.journals.append(journal)
        return journal

    def stream(self, topic: str = "", callbacks: bool = False) -> Writer:
        """A stream of this process, for one thread."""
        journal = self.journal(topic)
        journal.pid = os.getpid()
        count = self.partitions if journal.topic == self.topic else 0
        return Writer(self.producer, journal, partitions=count, callbacks=callbacks)

    def worker(
        self,
        job: Job | None = None,
        topic: str = "",
        callbacks: bool = False,
        capacity: int = CAPACITY,
    ) -> Worker:
        """A worker process; by default it sends until it is asked to end."""
        worker = Worker(self, job or steady(), topic, callbacks, capacity)
        self.all.append(worker)
        return worker

    def workers(self, count: int, job: Job | None = None) -> list[Worker]:
        """Several of them."""
        return [self.worker(job) for _ in range(count)]

    # --- what happens to it

    def fault(self, scripted: Any) -> Any:
        """Require that a scripted fault of the broker happens; returns it."""
        self._scripted.append(scripted)
        return scripted

    def hit(self, kind: str, times: int = 1) -> None:
        """A fault happened."""
        self.hits[kind] += times

    def stalled(self, since_ns: int, pid: int = 0) -> None:
        """From then until now a process did not run; 0: no broker could answer (K10)."""
        self.stalls.append(Stall(since_ns, time.monotonic_ns(), pid))

    # --- the sender

    def status(self) -> dict[str, Any]:
        """What the sender says of itself."""
        answer = visitor.ask(self.producer._place, "status")
        assert answer is not None, "no sender answers"
        return dict(answer)

    def counters(self) -> dict[str, int]:
        """Its counters of this moment; those in shared memory are a moment old."""
        found: dict[str, int] = self.status()["counters"]
        return found

    def baseline(self) -> None:
        """Require that the sender holds no more at the end than it does now (K12)."""
        self.settled()
        self._before = footprint.take(self.status()["pid"])

    # --- the end

    def finish(self, seconds: float = 0.0) -> None:
        """Ask every worker to end, and wait until its outcomes are known."""
        seconds = seconds or self.finish_s
        alive = [worker for worker in self.all if worker.status is None]
        for worker in alive:
            worker.journal.stop = True
        for worker in alive:
            assert worker.join(seconds) == 0, f"worker {worker.pid} ended with {worker.status}"
        if self.attach:
            assert self.writer.finish(seconds) == 0

    def settled(self, seconds: float = MOVES_S) -> dict[str, int]:
        """Wait until only this process is left, all is delivered, and all memory is back."""
        found: dict[str, int] = {}

        def quiet() -> bool:
            found.update(self.counters())
            return (
                found["workers"] == 1
                and not any(found[name] for name in REST)
                and found["buffer-available-bytes"] == found["buffer-total-bytes"]
            )

        interesting = ("workers", "batch", "buffer", "record", "waiting", "slots")
        at_rest = wait_until(quiet, seconds)
        assert at_rest, {n: v for n, v in found.items() if n.startswith(interesting)}
        return found

    def log(self) -> Log:
        """What the brokers have, read by somebody else."""
        if isinstance(self.broker, str):
            return ConfluentLog(self.broker, self.topics)
        return BrokerLog(self.broker, self.topics)

    def rest(self) -> None:
        """Let everybody finish, and wait until all has come to rest."""
        self.finish()
        if self.attach:
            self.producer.attach(MOVES_S)  # its sender may have died
            self._counters = self.settled()
            if self._before is not None:
                after = footprint.samples(self.status()["pid"])
                self._prints["sender"] = (self._before, after)
        else:
            folder = self.producer._place.folder
            assert wait_until(lambda: not os.path.exists(folder), MOVES_S), (
                "the sender does not end"
            )

    def verdict(
        self, log: Log | None = None, earlier: Sequence[Extent] = (), **terms: Any
    ) -> Report:
        """Judge a run that is at rest; terms as `Terms` has them."""
        config = self.producer.config
        known: dict[str, Any] = {
            "idempotent": config.enable_idempotence,
            "acks": config.acks,
            "delivery_timeout_ms": config.delivery_timeout_ms,
            "stalls": self.stalls,
            "faults": self._happened(),
        }
        return check(
            self.id, self.journals, log or self.log(), Terms(**(known | terms)),
            counters=None if self.sender_died else self._counters, footprints=self._prints,
            earlier=earlier,
        )  # fmt: skip

    def judge(self, log: Log | None = None, **terms: Any) -> Report:
        """`rest` and `verdict`."""
        self.rest()
        return self.verdict(log, **terms)

    def check(self, log: Log | None = None, *, delivered: bool = True, **terms: Any) -> Report:
        """`judge`, and require that all is right; `delivered`: and that nothing had failed."""
        report = self.judge(log, **terms).require()
        failed = report.counts["not_written"] + report.counts["refused"]
        assert not (delivered and failed), f"{failed} records were not written: {report.line()}"
        return report

    def _happened(self) -> dict[str, int]:
        found = dict(self.hits)
        for place, scripted in enumerate(self._scripted):
            found[f"scripted {place}: {scripted!r:.80}"] = scripted.hits
        return found


def steady(size: int = 100, pause_s: float = 0.005, look: int = 3) -> Job:
    """One record after the other to every partition in turn until asked to end; a look at the
    futures with every `look`-th record, a pause after every 20: by default less than 4,000 a
    second, so that a journal has room for what the longest test (240 s) sends."""

    def job(worker: Worker) -> None:
        number, partitions = 0, worker.run.partitions
        while not worker.journal.stop:
            worker.writer.send(number % partitions, size=size)
            number += 1
            if number % look == 0:
                worker.writer.poll()
            if number % 20 == 0:
                time.sleep(pause_s)

    return job
