"""mpproducer: futures dropped, futures kept, and in lists."""

from __future__ import annotations

import array
import itertools
import time
from typing import Any

from bench.clients.base import TIMEOUT_S, Client
from bench.config import Setup
from bench.payload import Event

_LIST = 1000
SENDER_IDLE_MS = 100
"""How long a sender waits for the next worker; short, so that a run ends soon."""


class MpProducer(Client):
    """`send`, the future dropped: a failure is seen in the counters."""

    name = "mpproducer"
    note = "send(), future dropped"

    def __init__(self, setup: Setup, index: int, shared: Any) -> None:
        super().__init__(setup, index, shared)
        from mpproducer import Producer

        more: dict[str, Any] = {"batch_size": setup.batch_bytes} if setup.batch_bytes else {}
        self.producer = Producer(
            bootstrap_servers=setup.bootstrap,
            linger_ms=setup.linger_ms,
            compression_type=setup.codec,
            acks="all",
            enable_idempotence=True,
            runtime_dir=setup.runtime_dir,
            sender_idle_ms=SENDER_IDLE_MS,
            **more,
        )

    def burst(self, values: list[bytes]) -> None:
        topic, send = self.setup.topic, self.producer.send
        for value in values:
            send(topic, value)
        self.sent += len(values)

    def burst_keyed(self, events: list[Event]) -> None:
        topic, send = self.setup.topic, self.producer.send
        for value, key in events:
            send(topic, value, key)
        self.sent += len(events)

    def burst_timed(self, events: list[Event], intended_ns: int, taken_ns: list[int]) -> None:
        topic, send = self.setup.topic, self.producer.send
        now, note = time.monotonic_ns, taken_ns.append

        def told(future: Any) -> None:
            note(now() - intended_ns)

        for value, key in events:
            send(topic, value, key).add_done_callback(told)
        self.sent += len(events)

    def one(self, value: bytes) -> None:
        self.producer.send(self.setup.topic, value).result(TIMEOUT_S)
        self.sent += 1

    def _counters(self) -> dict[str, int]:
        """The sender's counters as they are now; those in shared memory are some ms old."""
        from mpproducer import visitor

        answer = visitor.ask(self.producer._place, "status")
        if answer is None or "counters" not in answer:
            raise RuntimeError("the sender does not tell its counters")
        return dict(answer["counters"])

    def settle(self) -> None:
        self.producer.flush(TIMEOUT_S)

    def drain(self) -> int:
        self.producer.flush(TIMEOUT_S)
        counted = self._counters()
        lost = counted["record-not-written-total"] + counted["record-unknown-total"]
        # The counters are the host's: with a failure anywhere the run is void.
        return self.sent - lost

    def traffic(self) -> tuple[int, int] | None:
        counted = self._counters()
        return counted["produce-request-total"], counted["outgoing-byte-total"]

    def helpers(self) -> list[int]:
        from mpproducer.worker import attach

        link = attach.find(self.producer._place)
        return [link.sender_pid] if link is not None else []

    def close(self) -> None:
        self.producer.close(TIMEOUT_S)


class MpProducerKept(MpProducer):
    """`send`, every future kept and looked at in the end."""

    name = "mpproducer-kept"
    note = "send(), futures kept and checked"

    def __init__(self, setup: Setup, index: int, shared: Any) -> None:
        super().__init__(setup, index, shared)
        self._kept: list[Any] = []
        self._acked = 0

    def burst(self, values: list[bytes]) -> None:
        topic, send = self.setup.topic, self.producer.send
        self._kept += [send(topic, value) for value in values]

    def burst_keyed(self, events: list[Event]) -> None:
        topic, send = self.setup.topic, self.producer.send
        self._kept += [send(topic, value, key) for value, key in events]

    def drain(self) -> int:
        self.producer.flush(TIMEOUT_S)
        self._acked += sum(future.exception(0) is None for future in self._kept)
        self._kept.clear()
        return self._acked + self.sent


class MpProducerMany(MpProducer):
    """`send_many` in lists of 1,000."""

    name = "mpproducer-many"
    note = f"send_many() of {_LIST:,} records"
    call_per_record = False

    def burst(self, values: list[bytes]) -> None:
        topic, send_many = self.setup.topic, self.producer.send_many
        for at in range(0, len(values), _LIST):
            send_many(topic, values[at : at + _LIST])
        self.sent += len(values)

    def burst_keyed(self, events: list[Event]) -> None:
        topic, send_many = self.setup.topic, self.producer.send_many
        for at in range(0, len(events), _LIST):
            some = events[at : at + _LIST]
            send_many(topic, [value for value, _key in some], [key for _value, key in some])
        self.sent += len(events)


class MpProducerColumns(MpProducer):
    """`send_many` in columns of 1,000: offsets and data, as Arrow has them."""

    name = "mpproducer-columns"
    note = f"send_many() of (offsets, data), {_LIST:,} records"
    call_per_record = False

    def shaped(self, values: list[bytes]) -> list[Any]:
        columns = []
        for at in range(0, len(values), _LIST):
            some = values[at : at + _LIST]
            ends = itertools.accumulate(map(len, some), initial=0)
            columns.append((array.array("i", ends), b"".join(some)))
        return columns

    def burst(self, values: list[Any]) -> None:
        topic, send_many = self.setup.topic, self.producer.send_many
        for column in values:
            send_many(topic, column)
        self.sent += sum(len(offsets) - 1 for offsets, _data in values)
