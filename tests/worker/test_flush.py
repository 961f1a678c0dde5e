"""What flush and close of one process wait for, and what they leave alone."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import mpproducer
from mpproducer.testing import Broker
from tests.conftest import metric, senders, wait_until

FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def make(broker: Broker, **config: Any) -> mpproducer.Producer:
    return mpproducer.Producer(
        bootstrap_servers=broker.bootstrap_servers, **({"sender_idle_ms": 0} | config)
    )


def timed(call: Any) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def test_C11_flush_sends_what_lingers_and_waits_for_what_is_in_flight(broker: Broker) -> None:
    with make(broker, linger_ms=60_000) as producer:
        producer.partitions_for("events")
        held = broker.on("Produce", times=1).delay(0.3)
        future = producer.send("events", b"1")
        time.sleep(0.05)
        assert not future.done()
        assert timed(producer.flush) >= 0.29
        assert held.hits == 1
        assert future.done()
        # No mode is left behind: the next record lingers again.
        later = producer.send("events", b"2")
        time.sleep(0.2)
        assert not later.done()
        with pytest.raises(TimeoutError, match="1 batches are not acknowledged yet"):
            broker.on("Produce", times=1).delay(0.5)
            producer.flush(timeout=0.1)
        assert not later.done()
        producer.flush()
        assert later.result(0).offset == 1


def test_C11_flush_is_over_when_records_have_failed_and_tells_it_by_the_futures(
    broker: Broker,
) -> None:
    with make(broker, linger_ms=60_000) as producer:
        producer.partitions_for("events")
        refused = broker.on("Produce", times=1).error(87)
        future = producer.send("events", b"1")
        producer.flush()
        assert refused.hits == 1
        assert isinstance(future.exception(0), mpproducer.NotWritten)


def test_X9_flush_waits_for_this_process_s_records_alone_and_is_not_starved(
    runtime_dir: Path,
) -> None:
    """Another process has a record that nobody acknowledges, and sends on without a pause."""
    with Broker(brokers=2) as broker:
        for topic, node in (("ours", 1), ("theirs", 2)):
            broker.create_topic(topic)
            broker.set_leader(topic, 0, node)
        held = broker.on("Produce", topic="theirs", times=10**6).delay(3.0)
        stop = FORK.Event()
        stuck = FORK.Event()

        def other() -> None:
            producer.send("theirs", b"v")
            stuck.set()
            while not stop.is_set():
                for _ in range(100):
                    producer.send("ours", b"other")
                time.sleep(0.001)

        with make(broker, linger_ms=20) as producer:
            producer.send("ours", b"first").result(20)
            process = FORK.Process(target=other)
            process.start()
            assert stuck.wait(20)
            assert wait_until(lambda: held.hits > 0)
            for number in range(20):
                future = producer.send("ours", b"%d" % number)
                assert timed(producer.flush) < 2.5
                assert future.done()
            stop.set()
            process.join(30)
            assert process.exitcode == 0
            held.remove()
        assert wait_until(lambda: not senders(runtime_dir))  # it delivers theirs as well
        assert [record.value for record in broker.records("theirs")] == [b"v"]


def test_X10_a_process_that_closes_leaves_the_others_their_sender(
    broker: Broker, status_of: Any
) -> None:
    """Its own records are delivered by then; the last one to close drains what is left."""
    values: list[bytes] = [b"first", b"child", b"second", b"last"]

    def child() -> None:
        future = producer.send("events", b"child")
        producer.close()
        assert future.result(0).offset == 1

    producer = make(broker, linger_ms=60_000)
    producer.send("events", b"first")
    producer.flush()
    pid = status_of(producer)["pid"]
    process = FORK.Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert wait_until(lambda: status_of(producer)["workers"] == [os.getpid()])
    producer.send("events", b"second")
    producer.flush()
    assert status_of(producer)["pid"] == pid
    last = producer.send("events", b"last")
    producer.close()
    assert last.result(0).offset == 3
    assert [record.value for record in broker.records("events")] == values


def test_B12_close_wakes_a_send_that_waits_for_memory_although_others_use_the_attachment(
    broker: Broker,
) -> None:
    """The other producer of the process goes on waiting, and gets its memory."""
    config: dict[str, Any] = {
        "buffer_memory": 64 * 16_384, "max_request_size": 500_000, "batch_size": 100_000,
        "max_block_ms": 20_000, "linger_ms": 0,
    }  # fmt: skip
    value = bytes(60_000)
    with make(broker, **config) as other:
        other.send("events", b"0").result(20)
        producer = make(broker, **config)
        producer.attach(10)
        held = broker.on("Produce", times=10**6).delay(5.0)
        told: dict[str, Any] = {}

        def fill(name: str, through: mpproducer.Producer) -> None:
            try:
                while len(told) < 2:
                    through.send("events", value)
            except mpproducer.KafkaError as error:
                told[name] = error

        def wait() -> None:
            told["other"] = other.send("events", value)

        filler = threading.Thread(target=fill, args=("closed", producer))
        filler.start()
        assert wait_until(lambda: metric(other, "waiting-threads") == 1)
        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.1)
        producer._closed = 1  # the first thing close() does; it then waits for what is in flight
        assert wait_until(lambda: "closed" in told, 4.0)
        assert isinstance(told["closed"], mpproducer.ClosedError)
        assert "other" not in told
        assert held.hits > 0
        held.remove()
        waiter.join(20)
        filler.join(20)
        assert told["other"].result(20).offset > 0
        producer._closed = 0
        producer.close()
