"""confluent-kafka: with a callback per record, without, in batches, and behind a queue.

Its pitfalls avoided: a queue large enough not to refuse; callbacks served by the loop itself every
thousand records, not by a thread that fights for the GIL; Java's partitioner.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from multiprocessing.context import SpawnContext
from typing import Any

from bench.clients.base import TIMEOUT_S, Client
from bench.config import Setup
from bench.payload import Event

_BLOCK = 1000
_STATISTICS_MS = 1000
_END_S = 5.0


def configuration(setup: Setup) -> dict[str, Any]:
    """The configuration, in librdkafka's names; the C peer gets the same."""
    chosen: dict[str, Any] = {
        "bootstrap.servers": setup.bootstrap,
        "acks": "all",
        "enable.idempotence": True,
        "linger.ms": setup.linger_ms,
        "compression.type": setup.codec,
        "partitioner": "murmur2_random",
        "queue.buffering.max.messages": 1_000_000,
        "queue.buffering.max.kbytes": 256 * 1024,
        "log_level": 0,
    }
    if setup.batch_bytes:
        chosen["batch.size"] = setup.batch_bytes
    return chosen


class Confluent(Client):
    """`produce` with on_delivery."""

    name = "confluent"
    note = "produce(), on_delivery per record"
    speed = 0.5

    def __init__(self, setup: Setup, index: int, shared: Any) -> None:
        super().__init__(setup, index, shared)
        from confluent_kafka import Producer

        self.acked = 0
        self._stats = ""
        self.producer = Producer(
            configuration(setup)
            | {"statistics.interval.ms": _STATISTICS_MS, "stats_cb": self._note_stats}
        )

    @classmethod
    def missing(cls) -> str | None:
        found = importlib.util.find_spec("confluent_kafka")
        return None if found else "confluent-kafka is not installed"

    def _note_stats(self, text: str) -> None:
        self._stats = text

    def _told(self, error: Any, _message: Any) -> None:
        if error is None:
            self.acked += 1

    def calls(self, values: list[bytes]) -> None:
        topic, produce, told = self.setup.topic, self.producer.produce, self._told
        for value in values:
            produce(topic, value, on_delivery=told)

    def calls_keyed(self, events: list[Event]) -> None:
        topic, produce, told = self.setup.topic, self.producer.produce, self._told
        for value, key in events:
            produce(topic, value, key, on_delivery=told)

    def burst(self, values: list[bytes]) -> None:
        topic, told = self.setup.topic, self._told
        produce, poll = self.producer.produce, self.producer.poll
        for at in range(0, len(values), _BLOCK):
            for value in values[at : at + _BLOCK]:
                while True:
                    try:
                        produce(topic, value, on_delivery=told)
                        break
                    except BufferError:
                        poll(0.01)
            poll(0)

    def burst_keyed(self, events: list[Event]) -> None:
        topic, told = self.setup.topic, self._told
        produce, poll = self.producer.produce, self.producer.poll
        for at in range(0, len(events), _BLOCK):
            for value, key in events[at : at + _BLOCK]:
                while True:
                    try:
                        produce(topic, value, key, on_delivery=told)
                        break
                    except BufferError:
                        poll(0.01)
            poll(0)

    def burst_timed(self, events: list[Event], intended_ns: int, taken_ns: list[int]) -> None:
        topic, produce = self.setup.topic, self.producer.produce
        now = time.monotonic_ns

        def told(error: Any, _message: Any) -> None:
            if error is None:
                self.acked += 1
                taken_ns.append(now() - intended_ns)

        for value, key in events:
            produce(topic, value, key, on_delivery=told)
        self.producer.poll(0)

    def wait_timed(self, deadline_ns: int) -> None:
        while (left_ns := deadline_ns - time.monotonic_ns()) > 0:
            self.producer.poll(left_ns / 1e9)

    def one(self, value: bytes) -> None:
        wanted = self.acked + 1
        self.producer.produce(self.setup.topic, value, on_delivery=self._told)
        until = time.monotonic() + TIMEOUT_S
        while self.acked < wanted:
            if time.monotonic() > until:
                raise TimeoutError("no acknowledgement")
            self.producer.poll(1.0)

    def drain(self) -> int:
        self.producer.flush(TIMEOUT_S)
        return self.acked

    def traffic(self) -> tuple[int, int] | None:
        self._stats = ""
        until = time.monotonic() + 3 * _STATISTICS_MS / 1000
        while not self._stats and time.monotonic() < until:
            self.producer.poll(0.1)
        if not self._stats:
            return None
        brokers = json.loads(self._stats)["brokers"].values()
        return (
            sum(broker.get("req", {}).get("Produce", 0) for broker in brokers),
            sum(broker["txbytes"] for broker in brokers),
        )

    def close(self) -> None:
        self.producer.flush(TIMEOUT_S)


class ConfluentSilent(Confluent):
    """`produce` without a callback: nobody learns what became of a record."""

    name = "confluent-nocb"
    note = "produce() without callback: outcomes are not known"

    def calls(self, values: list[bytes]) -> None:
        topic, produce = self.setup.topic, self.producer.produce
        for value in values:
            produce(topic, value)

    def burst(self, values: list[bytes]) -> None:
        topic, produce, poll = self.setup.topic, self.producer.produce, self.producer.poll
        for value in values:
            while True:
                try:
                    produce(topic, value)
                    break
                except BufferError:
                    poll(0.01)
        self.sent += len(values)

    def drain(self) -> int:
        left = self.producer.flush(TIMEOUT_S)
        return self.acked + self.sent - int(left)


class ConfluentBatch(Confluent):
    """`produce_batch` of 1,000 dicts with a callback each."""

    name = "confluent-batch"
    note = "produce_batch() of 1,000 dicts, on_delivery per record"
    call_per_record = False

    @classmethod
    def missing(cls) -> str | None:
        if reason := super().missing():
            return reason
        from confluent_kafka import Producer

        return None if hasattr(Producer, "produce_batch") else "this version has no produce_batch"

    def _send(self, batch: list[dict[str, Any]]) -> None:
        topic, poll = self.setup.topic, self.producer.poll
        while batch:
            taken = self.producer.produce_batch(topic, batch, on_delivery=self._told)
            if taken < len(batch):
                # What did not fit the queue is marked, and is tried again.
                batch = [entry for entry in batch if entry.pop("_error", None) is not None]
                poll(0.01)
            else:
                batch = []
        poll(0)

    def burst(self, values: list[bytes]) -> None:
        for at in range(0, len(values), _BLOCK):
            self._send([{"value": value} for value in values[at : at + _BLOCK]])

    calls = burst

    def burst_keyed(self, events: list[Event]) -> None:
        for at in range(0, len(events), _BLOCK):
            self._send([{"value": value, "key": key} for value, key in events[at : at + _BLOCK]])


class Queue(Client):
    """What is built by hand: workers, one multiprocessing.Queue, one confluent-kafka process."""

    name = "queue"
    note = "multiprocessing.Queue to one confluent-kafka process"
    speed = 0.1

    def __init__(self, setup: Setup, index: int, shared: Any) -> None:
        super().__init__(setup, index, shared)
        self._queue, self._acked, self._process_id = shared[:3]

    @classmethod
    def missing(cls) -> str | None:
        return Confluent.missing()

    @classmethod
    def share(cls, setup: Setup, workers: int, context: SpawnContext) -> Any:
        queue: Any = context.Queue()
        acked: Any = context.Array("q", workers, lock=False)
        process = context.Process(target=_consume, args=(setup, queue, acked), daemon=True)
        process.start()
        _SHARED[process.pid or 0] = process
        return queue, acked, process.pid

    @classmethod
    def unshare(cls, shared: Any) -> None:
        queue, _acked, pid = shared
        queue.put(None)
        process = _SHARED.pop(pid)
        # At the end of a run the queue is empty; after a failure nobody waits for what is in it.
        process.join(_END_S)
        if process.is_alive():
            process.kill()
            process.join()
        queue.cancel_join_thread()
        queue.close()

    def burst(self, values: list[bytes]) -> None:
        put, index = self._queue.put, self.index
        for value in values:
            put((index, value, None))
        self.sent += len(values)

    def burst_keyed(self, events: list[Event]) -> None:
        put, index = self._queue.put, self.index
        for value, key in events:
            put((index, value, key))
        self.sent += len(events)

    def drain(self) -> int:
        until = time.monotonic() + TIMEOUT_S
        while self._acked[self.index] < self.sent and time.monotonic() < until:
            time.sleep(0.002)
        return int(self._acked[self.index])

    def helpers(self) -> list[int]:
        return [self._process_id]

    def close(self) -> None:
        self._queue.close()
        self._queue.join_thread()


_SHARED: dict[int, Any] = {}


def _consume(setup: Setup, queue: Any, acked: Any) -> None:
    from confluent_kafka import Producer

    producer = Producer(configuration(setup))
    parent = os.getppid()
    told: dict[int, Any] = {}

    def counter(index: int) -> Any:
        def count(error: Any, _message: Any) -> None:
            if error is None:
                acked[index] += 1

        return count

    from queue import Empty

    while os.getppid() == parent:
        try:
            item = queue.get(timeout=0.05)
        except Empty:
            producer.poll(0)
            continue
        if item is None:
            break
        index, value, key = item
        if index not in told:
            told[index] = counter(index)
        while True:
            try:
                producer.produce(setup.topic, value, key, on_delivery=told[index])
                break
            except BufferError:
                producer.poll(0.01)
        producer.poll(0)
    producer.flush(TIMEOUT_S)
