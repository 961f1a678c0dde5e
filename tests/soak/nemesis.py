"""Faults in turn, until the time is over: each kind once, then all again in another order.

One fault of the brokers, the network or the sender lasts while workers are killed, stopped and
replaced. The sender is not killed while brokers stand still: what it had handed to the kernel would
reach them after what its successor sends, and nobody could keep the order.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import Final

import psutil

from tests.checker.scenario import Scenario, Worker
from tests.conftest import wait_until
from tests.soak.draw import life
from tests.soak.targets import Fault, Target

SENDER_KILLED: Final = "sender killed"
SENDER_STOPPED: Final = "sender stopped"
TOPIC_RECREATED: Final = "topic deleted and made anew"
WORKER_ENDED: Final = "worker ended"
_ENDS_S: Final = 20.0


class Fleet:
    """The workers of a round: who dies or ends is replaced."""

    def __init__(self, run: Scenario, rng: random.Random, workers: int, brief: str) -> None:
        self.run = run
        self.rng = rng
        self.alive = [self._start() for _ in range(workers)]
        # One sends to a topic that comes and goes.
        self.brief = run.worker(life(rng.getrandbits(32), claims=False), topic=brief)

    def _start(self) -> Worker:
        job = life(self.rng.getrandbits(32), claims=True)
        return self.run.worker(job, callbacks=self.rng.random() < 0.3)

    def kill_one(self) -> None:
        """kill -9, wherever it is."""
        place = self.rng.randrange(len(self.alive))
        self.alive[place].kill()
        self.alive[place] = self._start()

    def stop_one(self) -> None:
        """SIGSTOP for a moment."""
        with self.rng.choice(self.alive).stopped():
            time.sleep(self.rng.uniform(0.05, 1.0))

    def replace_one(self) -> None:
        """One leaves, another one comes."""
        place = self.rng.randrange(len(self.alive))
        self.alive[place].journal.stop = True
        self.alive[place] = self._start()
        self.run.hit(WORKER_ENDED)


class Nemesis:
    """What happens to a round."""

    def __init__(self, target: Target, brief: str, partitions: int) -> None:
        self._target = target
        self._brief = brief
        self._partitions = partitions
        self.faults: dict[str, Fault] = {
            **target.faults,
            SENDER_KILLED: self._sender_killed,
            SENDER_STOPPED: self._sender_stopped,
            TOPIC_RECREATED: self._recreated,
        }

    def kinds(self) -> list[str]:
        """Every kind of fault there is."""
        return [*self.faults, "SIGKILL worker", "SIGSTOP worker", WORKER_ENDED]

    def haunt(
        self, run: Scenario, fleet: Fleet, rng: random.Random, until: float, turn: list[str]
    ) -> None:
        """Faults until then; `turn` is what is left of the turn, over all rounds."""
        small: list[Callable[[], None]] = [fleet.kill_one, fleet.stop_one, fleet.replace_one]
        while time.monotonic() < until:
            if not turn:
                turn += rng.sample(sorted(self.faults), len(self.faults))
            with self.faults[turn.pop()](run, rng):
                for _ in range(rng.randrange(3)):
                    rng.choice(small)()
                time.sleep(rng.uniform(0.1, 1.5))
            time.sleep(rng.uniform(0.1, 1.0))

    @contextlib.contextmanager
    def _sender_killed(self, run: Scenario, _rng: random.Random) -> Iterator[None]:
        """What was under way becomes unknown; the next send starts a sender."""
        sender = psutil.Process(run.status()["pid"])
        run.sender_died = True
        sender.kill()
        assert wait_until(lambda: not sender.is_running(), _ENDS_S)
        run.hit(SENDER_KILLED)
        run.producer.attach(_ENDS_S)
        yield

    @contextlib.contextmanager
    def _sender_stopped(self, run: Scenario, rng: random.Random) -> Iterator[None]:
        pid, began = run.status()["pid"], time.monotonic_ns()
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(rng.uniform(0.1, 2.0))
            run.hit(SENDER_STOPPED)
        finally:
            os.kill(pid, signal.SIGCONT)
            run.stalled(began)
        yield

    @contextlib.contextmanager
    def _recreated(self, run: Scenario, _rng: random.Random) -> Iterator[None]:
        yield
        self._target.recreate(self._brief, self._partitions)
        run.hit(TOPIC_RECREATED)
