"""No path through the C binding keeps an object: blocks in use before and after many calls."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mpproducer
from mpproducer._core import native
from mpproducer.testing import Broker, BrokerProcess

TOPIC = "events"
ROUNDS = int(os.environ.get("MPPRODUCER_LEAK_ROUNDS", "1000"))
BIG = bytes(20_000)
STRIDED = memoryview(bytes(8))[::2]


class Bad:
    """No buffer, and an index that raises."""

    def __index__(self) -> int:
        raise ZeroDivisionError


@pytest.fixture(autouse=True)
def steady() -> Iterator[None]:
    """What is there already is not looked at again, and the binding's free list is full."""
    kept = [native.failed_future("t", KeyError()) for _ in range(1000)]
    kept.clear()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def producer(broker: Broker) -> Iterator[mpproducer.Producer]:
    broker.create_topic(TOPIC)
    with mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers,
        linger_ms=0,
        sender_idle_ms=0,
        max_request_size=10_000,
        max_block_ms=2000,
    ) as producer:
        producer.send(TOPIC, b"v").result(20)
        yield producer


def growth(job: Callable[[], object], rounds: int) -> int:
    def run(times: int) -> int:
        for _ in range(times):
            with contextlib.suppress(Exception):
                job()
        gc.collect()
        return sys.getallocatedblocks()

    run(60)
    before = run(20)
    return run(rounds) - before


def refused(producer: Any) -> dict[str, Callable[[], object]]:
    """Calls that append nothing."""
    send, many = producer.send, producer.send_many
    pair = [("a", b"1"), ("b", bytes(600))]

    def held_by_frame() -> None:
        future = send("", b"v")
        future.result(0)

    def reraise(future: Any) -> None:
        raise future.exception(0)

    return {
        "value": lambda: send(TOPIC, "text"),
        "value object": lambda: send(TOPIC, object()),
        "value strided": lambda: send(TOPIC, STRIDED),
        "key after value": lambda: send(TOPIC, bytearray(b"v"), "k"),
        "headers kind": lambda: send(TOPIC, bytearray(b"v"), bytearray(b"k"), {}),
        "headers pair": lambda: send(TOPIC, bytearray(b"v"), None, [*pair, ("c",)]),
        "headers name": lambda: send(TOPIC, b"v", None, [*pair, (b"c", b"")]),
        "headers surrogate": lambda: send(TOPIC, b"v", None, [*pair, ("\udcff", b"")]),
        "headers value": lambda: send(TOPIC, b"v", None, [*pair, ("c", 5)]),
        "headers strided": lambda: send(TOPIC, b"v", None, [*pair, ("c", STRIDED)]),
        "partition": lambda: send(TOPIC, b"v", partition="1"),
        "partition range": lambda: send(TOPIC, b"v", partition=-5000),
        "partition raises": lambda: send(TOPIC, b"v", partition=Bad()),
        "timestamp": lambda: send(TOPIC, bytearray(b"v"), headers=pair, timestamp_ms=-70_000),
        "timestamp huge": lambda: send(TOPIC, bytearray(b"v"), headers=pair, timestamp_ms=2**80),
        "keyword": lambda: send(TOPIC, values=b"v"),
        "twice": lambda: send(TOPIC, topic=TOPIC),
        "topic": lambda: send(b"events", b"v"),
        "too many": lambda: send(1, 2, 3, 4, 5, 6, 7),
        "illegal topic": lambda: send("no/topic" + str(id(object())), b"v").result(0),
        "surrogate topic": lambda: send("\udcff", b"v").exception(0),
        "too large": lambda: send(TOPIC, BIG, headers=pair).result(0),
        "raised in a frame that holds the future": held_by_frame,
        "raised by hand": lambda: reraise(send("", b"v")),
        "many values": lambda: many(TOPIC, [b"1", bytearray(b"2"), "3"]),
        "many kind": lambda: many(TOPIC, {b"1"}),
        "many iterator": lambda: many(TOPIC, iter([b"1", 2])),
        "many raises": lambda: many(TOPIC, (1 // 0 for _ in range(3))),
        "many keys": lambda: many(TOPIC, [b"1"] * 3, [b"k"]),
        "many headers": lambda: many(TOPIC, [b"1"] * 2, None, [pair, [1]]),
        "many timestamps": lambda: many(TOPIC, [b"1"] * 2, timestamps_ms=[1, -1]),
        "many too large": lambda: many(TOPIC, [BIG] * 5).result(0),
        "many illegal topic": lambda: many("", [b"1"] * 5).failed,
        "many nothing": lambda: many(TOPIC, []).result(0),
        "partitions_for": lambda: producer.partitions_for("no/topic"),
        "metrics": producer.metrics,
        "pickle": lambda: pickle.loads(pickle.dumps(producer)),
        "failed_future": lambda: native.failed_future("t", KeyError("x")).result(),
        "attachment": lambda: native.Attachment(-1, -1, -1, -1, 1, 64, 1, 1),
        "attachment owner": lambda: native.Attachment(0, 0, 0, 0, 0, 64, 1, 1),
        "attachment segments": lambda: native.Attachment(0, 0, 0, 0, 1, 64, 1, 1),
        "timeout": lambda: producer.flush("1"),
    }


def test_a_refused_call_keeps_nothing(producer: mpproducer.Producer) -> None:
    rounds = ROUNDS  # one block each would be as many; caches take a few hundred
    grown = {name: growth(job, rounds) for name, job in refused(producer).items()}
    assert {name: blocks for name, blocks in grown.items() if blocks > rounds // 2} == {}


async def _await(future: Any) -> Any:
    return await future


async def _late(future: Any) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(future, 0)


def delivered(producer: Any) -> dict[str, Callable[[], object]]:
    """Calls that append, wait, and look in every way."""
    send, many = producer.send, producer.send_many
    headers = [("a", b"1"), ["b", None], ("c", bytearray(600))]

    def callbacks() -> None:
        future = send(TOPIC, b"v")
        future.add_done_callback(lambda _f: None)
        future.add_done_callback(lambda _f: future.result(0))
        future.result(20)
        future.add_done_callback(lambda _f: None)

    def timeouts() -> None:
        future = send(TOPIC, b"v")
        for wait in (future.result, future.exception):
            with contextlib.suppress(TimeoutError):
                wait(0)
        future.result(20)

    def batch() -> None:
        future = many(TOPIC, [b"v"] * 20, [b"k"] * 20, [headers] * 20, 0, np.arange(20))
        future.add_done_callback(lambda _f: None)
        assert len(future.result(20)) == len(future.offsets) == 20
        assert future.failed == []

    loop = asyncio.new_event_loop()
    return {
        "send": lambda: send(TOPIC, b"v", b"k", headers, 0, 5).result(20),
        "send buffers": lambda: send(TOPIC, bytearray(b"v"), memoryview(b"k"), headers).get(20),
        "dropped": lambda: (send(TOPIC, b"v"), producer.flush(20)),
        "callbacks": callbacks,
        "timeouts": timeouts,
        "batch": batch,
        "await": lambda: loop.run_until_complete(_await(send(TOPIC, b"v"))),
        "await batch": lambda: loop.run_until_complete(_await(many(TOPIC, [b"v"] * 3))),
        "await late": lambda: (loop.run_until_complete(_late(send(TOPIC, b"v"))), producer.flush()),
        "close loop": loop.close,
    }


def test_a_delivered_record_keeps_nothing() -> None:
    """Against a broker in a process of its own: what that one stores is no leak."""
    rounds = ROUNDS // 4
    with (
        BrokerProcess() as broker,
        mpproducer.Producer(
            bootstrap_servers=broker.bootstrap_servers, linger_ms=0, sender_idle_ms=0
        ) as producer,
    ):
        jobs = delivered(producer)
        grown = {name: growth(job, rounds) for name, job in jobs.items()}
        assert {name: blocks for name, blocks in grown.items() if blocks > rounds // 2} == {}
