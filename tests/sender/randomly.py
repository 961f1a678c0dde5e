"""One partition against a small strict broker that appends, refuses and loses at random."""

from __future__ import annotations

import random
from typing import Any

from mpproducer.sender import actions as a
from mpproducer.sender.idempotence import next_sequence
from tests.sender.harness import Harness


class Log:
    """A leader's log with producer state, as strict as Kafka's (reference 7.2)."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int]] = []  # (seq, first) of what was appended, in order
        self.offset = 0
        self._known: dict[int, tuple[int, list[tuple[int, int, int]]]] = {}

    def append(self, batch: Any) -> tuple[int, int]:
        """(error code, base offset)."""
        epoch, kept = self._known.get(batch.producer_id, (-1, []))
        if batch.producer_epoch < epoch:
            return 47, -1
        if batch.producer_epoch > epoch:
            if epoch >= 0 and batch.base_sequence:
                return 45, -1
            kept = []
        last = next_sequence(batch.base_sequence, batch.records - 1)
        for first, end, offset in kept:
            if (first, end) == (batch.base_sequence, last):
                return 0, offset
        if kept and batch.base_sequence != next_sequence(kept[-1][1], 1):
            return 45, -1
        offset = self.offset
        self.offset += batch.records
        kept = [*kept, (batch.base_sequence, last, offset)][-5:]
        self._known[batch.producer_id] = (batch.producer_epoch, kept)
        self.batches.append((batch.seq, batch.first))
        return 0, offset


class Run:
    """One random life of a partition."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        timeout_ms = self.random.choice((2_500, 8_000))
        self.h = Harness(
            seed=seed, delivery_timeout_ms=timeout_ms, request_timeout_ms=2_000
        ).ready()
        self.log = Log()
        self.handled: dict[int, tuple[int, int]] = {}  # correlation id -> (code, offset)

    def check(self) -> None:
        """Faults first, then health; then everything must have ended as the log says."""
        h = self.h
        for _ in range(60):
            if self.random.random() < 0.5:
                h.open("t", 0, records=self.random.choice((1, 2, 10)))
            self._step(faulty=True)
            h.run_ms(self.random.choice((0, 0, 50, 400)))
        rounds = 0
        while (h.machine.delivery.aging or h.produce_requests()) and rounds < 300:
            self._step(faulty=False)
            h.run_ms(150)
            rounds += 1
        assert not h.machine.delivery.aging, self.seed
        assert h.machine.delivery.unreleased == 0, self.seed
        self._compare()

    def _step(self, *, faulty: bool) -> None:
        """The broker handles the oldest request, or the connection breaks."""
        waiting = self.h.produce_requests()
        if not waiting:
            return
        send = waiting[0]
        roll = self.random.random() if faulty else 1.0
        if roll < 0.08:
            for lost in waiting[: self.random.randrange(len(waiting) + 1)]:
                self._handle(lost)
            self.h.close(send.conn)
        elif roll < 0.16:
            # Silence; requests may be carried out all the same, and expire, and time out.
            for lost in waiting[: self.random.randrange(len(waiting) + 1)]:
                self._handle(lost)
            self.h.run_ms(self.random.choice((0, 300, 1_000, 3_000)))
        elif roll < 0.3 and send.correlation_id not in self.handled:
            self.h.answer(send, self.random.choice((3, 6, 19, 87, 10)))
        elif roll < 0.4 and self._handle(send)[0] == 0:
            self.h.answer(send, self.random.choice((7, 20)))
        else:
            code, offset = self._handle(send)
            self.h.answer(send, code, offset=offset)

    def _handle(self, send: a.SendProduce) -> tuple[int, int]:
        """Carry a request out, once."""
        if send.correlation_id not in self.handled:
            self.handled[send.correlation_id] = self.log.append(send.batches[0])
        return self.handled[send.correlation_id]

    def _compare(self) -> None:
        log = self.log.batches
        assert log == sorted(set(log)), f"seed {self.seed}: doubled or reordered: {log}"
        for batch, outcome in self.h.completed:
            there = (batch.seq, batch.first) in log
            if outcome.kind is a.Kind.ACKED:
                assert there, (self.seed, batch)
            elif outcome.kind is a.Kind.NOT_WRITTEN:
                assert not there, (self.seed, batch, outcome)
