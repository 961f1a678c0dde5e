"""kafka-python and aiokafka, and the client that does nothing.

Neither counts what it writes, so it is counted here: bytes by the kernel (TCP_INFO), requests where
they are made, which happens once per request. Their pitfall avoided: the default partitioners
spread unkeyed records one by one, which makes tiny batches; here they stick to a partition for a
while, as Java's and librdkafka's do.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import time
from typing import Any

from bench import facts
from bench.clients.base import TIMEOUT_S, Client
from bench.config import Setup
from bench.payload import Event

_STICK = 1000
_KEPT = 50_000
_BYTES_ACKED = 120  # offset of tcpi_bytes_acked in struct tcp_info
_TCP_INFO_BYTES = 192


class Nothing(Client):
    """What the load generator costs by itself: the same processes, loops and pauses."""

    name = "nothing"
    note = "no client: what the load generator costs"

    def burst(self, values: list[bytes]) -> None:
        for _value in values:
            pass
        self.sent += len(values)

    def burst_keyed(self, events: list[Event]) -> None:
        for _value, _key in events:
            pass
        self.sent += len(events)

    def drain(self) -> int:
        return self.sent


class RequestCounter:
    """Counts the objects a class makes."""

    def __init__(self, made: Any) -> None:
        self.count = 0
        original = made.__init__

        def counting(this: Any, *args: Any, **kwargs: Any) -> None:
            self.count += 1
            original(this, *args, **kwargs)

        made.__init__ = counting


def written_bytes(ports: set[int]) -> int:
    """What this process's sockets have written to peers at these ports, and the peers have got."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.family in (socket.AF_INET, socket.AF_INET6):
                    if sock.getpeername()[1] in ports:
                        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
                        total += int.from_bytes(info[_BYTES_ACKED : _BYTES_ACKED + 8], "little")
        except OSError:
            continue
    return total


class KafkaPython(Client):
    """`send`, futures kept until the end."""

    name = "kafka-python"
    note = "send(), futures kept and checked"
    speed = 0.05

    def __init__(self, setup: Setup, index: int, shared: Any) -> None:
        super().__init__(setup, index, shared)
        from kafka import KafkaProducer
        from kafka.partitioner import StickyPartitioner
        from kafka.protocol.producer import ProduceRequest

        more: dict[str, Any] = {"batch_size": setup.batch_bytes} if setup.batch_bytes else {}
        self._requests = RequestCounter(ProduceRequest)
        self.producer = KafkaProducer(
            bootstrap_servers=setup.bootstrap,
            acks="all",
            enable_idempotence=True,
            linger_ms=setup.linger_ms,
            compression_type=None if setup.codec == "none" else setup.codec,
            partitioner=StickyPartitioner(),
            metrics_enabled=False,
            **more,
        )
        self._kept: list[Any] = []
        self._acked = 0

    @classmethod
    def missing(cls) -> str | None:
        return None if importlib.util.find_spec("kafka") else "kafka-python is not installed"

    def burst(self, values: list[bytes]) -> None:
        topic, send = self.setup.topic, self.producer.send
        self._kept += [send(topic, value) for value in values]

    def burst_keyed(self, events: list[Event]) -> None:
        topic, send = self.setup.topic, self.producer.send
        self._kept += [send(topic, value, key) for value, key in events]
        if len(self._kept) > _KEPT:
            self._look()

    def burst_timed(self, events: list[Event], intended_ns: int, taken_ns: list[int]) -> None:
        topic, send = self.setup.topic, self.producer.send
        now, note = time.monotonic_ns, taken_ns.append

        def told(_metadata: Any) -> None:
            note(now() - intended_ns)

        for value, key in events:
            future = send(topic, value, key)
            future.add_callback(told)
            self._kept.append(future)

    def _look(self) -> None:
        """Count the oldest futures that are done; what is left is counted later."""
        done = 0
        for future in self._kept:
            if not future.is_done:
                break
            self._acked += future.succeeded()
            done += 1
        del self._kept[:done]

    def one(self, value: bytes) -> None:
        self.producer.send(self.setup.topic, value).get(TIMEOUT_S)
        self.sent += 1

    def drain(self) -> int:
        self.producer.flush(TIMEOUT_S)
        self._acked += sum(future.succeeded() for future in self._kept)
        self._kept.clear()
        return self._acked + self.sent

    def traffic(self) -> tuple[int, int] | None:
        return self._requests.count, written_bytes(facts.ports_of(self.setup.bootstrap))

    def close(self) -> None:
        self.producer.close(TIMEOUT_S)


class _Sticky:
    """aiokafka's own partitioner for keys; without a key, one partition for a while."""

    def __init__(self) -> None:
        from aiokafka.partitioner import DefaultPartitioner

        self._keyed = DefaultPartitioner()
        self._left = 0
        self._at = 0

    def __call__(self, key: bytes | None, everyone: list[int], available: list[int]) -> int:
        if key is not None:
            return int(self._keyed(key, everyone, available))
        if self._left <= 0:
            self._left, self._at = _STICK, self._at + 1
        self._left -= 1
        return everyone[self._at % len(everyone)]


class AioKafka(Client):
    """`await send`, futures kept until the end."""

    name = "aiokafka"
    note = "await send(), futures kept and checked"
    speed = 0.1

    def __init__(self, setup: Setup, index: int, shared: Any) -> None:
        super().__init__(setup, index, shared)
        from aiokafka import AIOKafkaProducer
        from aiokafka.protocol.produce import ProduceRequest

        more: dict[str, Any] = {"max_batch_size": setup.batch_bytes} if setup.batch_bytes else {}
        self._requests = RequestCounter(ProduceRequest)
        self._loop = asyncio.new_event_loop()
        self._kept: list[Any] = []
        self._acked = 0

        async def start() -> Any:
            producer = AIOKafkaProducer(
                bootstrap_servers=setup.bootstrap,
                acks="all",
                enable_idempotence=True,
                linger_ms=setup.linger_ms,
                compression_type=None if setup.codec == "none" else setup.codec,
                partitioner=_Sticky(),
                **more,
            )
            await producer.start()
            return producer

        self.producer = self._loop.run_until_complete(start())

    @classmethod
    def missing(cls) -> str | None:
        return None if importlib.util.find_spec("aiokafka") else "aiokafka is not installed"

    def burst(self, values: list[bytes]) -> None:
        async def loop() -> None:
            topic, send = self.setup.topic, self.producer.send
            for value in values:
                self._kept.append(await send(topic, value))

        self._loop.run_until_complete(loop())

    def burst_keyed(self, events: list[Event]) -> None:
        async def loop() -> None:
            topic, send = self.setup.topic, self.producer.send
            for value, key in events:
                self._kept.append(await send(topic, value, key))

        self._loop.run_until_complete(loop())
        if len(self._kept) > _KEPT:
            self._look()

    def _look(self) -> None:
        done = 0
        for future in self._kept:
            if not future.done():
                break
            self._acked += future.exception() is None
            done += 1
        del self._kept[:done]

    def burst_timed(self, events: list[Event], intended_ns: int, taken_ns: list[int]) -> None:
        now, note = time.monotonic_ns, taken_ns.append

        def told(_future: Any) -> None:
            note(now() - intended_ns)

        async def loop() -> None:
            topic, send = self.setup.topic, self.producer.send
            for value, key in events:
                future = await send(topic, value, key)
                future.add_done_callback(told)
                self._kept.append(future)

        self._loop.run_until_complete(loop())

    def wait_until(self, deadline_ns: int) -> None:
        # Its sender is a task of this loop: it sends only while the loop runs.
        left_s = (deadline_ns - time.monotonic_ns()) / 1e9
        if left_s > 0:
            self._loop.run_until_complete(asyncio.sleep(left_s))

    wait_timed = wait_until

    def one(self, value: bytes) -> None:
        self._loop.run_until_complete(self.producer.send_and_wait(self.setup.topic, value))
        self.sent += 1

    def drain(self) -> int:
        async def finish() -> int:
            await asyncio.wait_for(self.producer.flush(), TIMEOUT_S)
            outcomes = await asyncio.gather(*self._kept, return_exceptions=True)
            return sum(not isinstance(outcome, BaseException) for outcome in outcomes)

        self._acked += self._loop.run_until_complete(finish())
        self._kept.clear()
        return self._acked + self.sent

    def traffic(self) -> tuple[int, int] | None:
        return self._requests.count, written_bytes(facts.ports_of(self.setup.bootstrap))

    def close(self) -> None:
        self._loop.run_until_complete(self.producer.stop())
        self._loop.close()


class AioKafkaBatch(AioKafka):
    """`create_batch` and `send_batch`: batches filled by hand, one future each."""

    name = "aiokafka-batch"
    note = "create_batch() and send_batch(), partitions in turn"
    speed = 0.5

    def burst(self, values: list[bytes]) -> None:
        async def loop() -> None:
            topic, number = self.setup.topic, 0
            batch = self.producer.create_batch()
            for value in values:
                if batch.append(key=None, value=value, timestamp=None) is None:
                    await self._hand_over(batch, topic, number)
                    number += 1
                    batch = self.producer.create_batch()
                    batch.append(key=None, value=value, timestamp=None)
            await self._hand_over(batch, topic, number)

        self._loop.run_until_complete(loop())

    async def _hand_over(self, batch: Any, topic: str, number: int) -> None:
        records = batch.record_count()
        batch.close()
        future = await self.producer.send_batch(
            batch, topic, partition=number % self.setup.partitions
        )
        self._kept += [future] * records
