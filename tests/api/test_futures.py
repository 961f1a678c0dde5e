"""Futures: results, errors, callbacks, threads, event loops, forks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import copy
import gc
import os
import pickle
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import mpproducer
from mpproducer import errors
from mpproducer.future import BatchFuture, as_concurrent
from mpproducer.testing import Broker
from tests.conftest import metric, run_child, wait_until

TOPIC = "events"
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def make(broker: Broker, **config: Any) -> mpproducer.Producer:
    defaults: dict[str, Any] = {"linger_ms": 0, "sender_idle_ms": 0, "retry_backoff_ms": 10}
    return mpproducer.Producer(bootstrap_servers=broker.bootstrap_servers, **(defaults | config))


@pytest.fixture
def producer(broker: Broker) -> Iterator[mpproducer.Producer]:
    broker.create_topic(TOPIC)
    with make(broker) as producer:
        yield producer


@contextlib.contextmanager
def held(broker: Broker, seconds: float) -> Iterator[Any]:
    """Produce requests are answered this much later."""
    fault = broker.on("Produce", times=1000).delay(seconds)
    yield fault
    assert fault.hits > 0
    fault.remove()


def thread_names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


# --- one record


def test_a_result_tells_where_the_record_is(producer: mpproducer.Producer) -> None:
    future = producer.send(TOPIC, b"v", timestamp_ms=77)
    metadata = future.result(20)
    assert metadata == (TOPIC, 0, 0, 77)
    assert future.get(timeout=0) == future.result() == metadata
    assert future.exception(0) is None
    assert future.done()
    assert (future.cancel(), future.cancelled(), future.running()) == (False, False, False)
    assert (future.topic, future.partition, future.index) == (TOPIC, 0, 0)
    assert "acknowledged" in repr(future)
    assert pickle.loads(pickle.dumps(metadata)) == metadata


def test_a_timeout_leaves_the_record_in_delivery(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    producer.send(TOPIC, b"0").result(20)
    with held(broker, 0.5):
        future = producer.send(TOPIC, b"1")
        many = producer.send_many(TOPIC, [b"2", b"3"])
        assert wait_until(lambda: broker.requests["Produce"] >= 2)
        assert not future.done()
        assert "pending" in repr(future)
        assert "pending" in repr(many)
        for wait in (future.result, future.exception, many.result, many.exception, producer.flush):
            with pytest.raises(TimeoutError, match=r"stays? in delivery"):
                wait(0)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            future.result(timeout=0.05)
        assert time.monotonic() - start >= 0.05
        for senseless in ("1", object()):
            with pytest.raises(TypeError):
                future.result(senseless)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="nan"):
            future.result(float("nan"))
        with pytest.raises(TypeError, match="takes one argument, timeout"):
            future.result(within=1)  # type: ignore[call-arg]
        assert future.result(20).offset == 1
        assert many.offsets == [2, 3]


def test_an_error_is_the_same_each_time_and_keeps_no_frames(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    refused = broker.on("Produce").error(87)  # INVALID_RECORD
    future = producer.send(TOPIC, b"v")
    for _ in range(3):
        with pytest.raises(errors.NotWritten) as found:
            future.result(20)
    assert refused.hits == 1
    assert found.value.code == 87
    assert str(future.exception()) == str(found.value)
    assert "failed" in repr(future)
    assert pickle.loads(pickle.dumps(found.value)).code == 87

    early = producer.send("no/topic", b"v")
    for _ in range(5):
        with pytest.raises(mpproducer.InvalidTopic) as invalid:
            early.result(0)
    trace, frames = invalid.value.__traceback__, 0
    while trace is not None:
        trace, frames = trace.tb_next, frames + 1
    assert frames == 1


def test_X5_outcomes_of_many_threads_are_each_threads_own_and_in_order(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    def job(number: int) -> list[int]:
        futures = [producer.send(TOPIC, b"%d %d" % (number, n)) for n in range(500)]
        return [future.result(30).offset for future in futures]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        offsets = list(pool.map(job, range(8)))
    stored = [record.value for record in broker.records(TOPIC)]
    assert len(stored) == 4000
    for number, mine in enumerate(offsets):
        assert mine == sorted(mine)
        assert [stored[offset] for offset in mine] == [b"%d %d" % (number, n) for n in range(500)]


def test_many_threads_wait_for_one_future_and_for_others(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    producer.send(TOPIC, b"0").result(20)
    with held(broker, 0.2):
        futures = [producer.send(TOPIC, b"v") for _ in range(20)]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            waits = [pool.submit(futures[n % 5].result, 20) for n in range(40)]
            assert {w.result(30).offset for w in waits} == {1, 2, 3, 4, 5}


def test_waiting_can_be_interrupted_by_a_signal(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    class Alarm(Exception):
        pass

    def ring(_number: int, _frame: object) -> None:
        raise Alarm

    producer.send(TOPIC, b"0").result(20)
    before = signal.signal(signal.SIGALRM, ring)
    try:
        with held(broker, 0.6):
            future = producer.send(TOPIC, b"1")
            for wait in (future.result, producer.flush):
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                with pytest.raises(Alarm):
                    wait(20)
            assert not future.done()
            assert future.result(20).offset == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_L9_signals_at_1_kHz_disturb_nothing(producer: mpproducer.Producer, broker: Broker) -> None:
    rings = []
    before = signal.signal(signal.SIGALRM, lambda *_: rings.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for round_ in range(20):
            futures = [producer.send(TOPIC, b"v") for _ in range(50)]
            producer.flush(20)
            assert futures[-1].result(20).offset == round_ * 50 + 49
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rings
    assert len(broker.records(TOPIC)) == 1000


# --- callbacks


def test_callbacks_run_once_each_before_or_after_the_outcome(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    calls: list[tuple[str, Any, str]] = []

    def note(name: str) -> Any:
        return lambda future: calls.append((name, future, threading.current_thread().name))

    producer.send(TOPIC, b"0").result(20)
    with held(broker, 0.2):
        future = producer.send(TOPIC, b"1")
        future.add_done_callback(note("first"))
        future.add_done_callback(note("second"))
        assert "mpproducer-callbacks" in thread_names()
        assert wait_until(lambda: len(calls) == 2)  # nobody asked the future
    assert [(name, who) for name, who, _thread in calls] == [("first", future), ("second", future)]
    assert {thread for _name, _who, thread in calls} == {"mpproducer-callbacks"}
    future.add_done_callback(note("late"))
    assert calls[2] == ("late", future, threading.current_thread().name)
    failed = producer.send("", b"v")
    failed.add_done_callback(note("failed"))
    assert calls[3][:2] == ("failed", failed)
    assert wait_until(lambda: "mpproducer-callbacks" not in thread_names())
    with pytest.raises(TypeError, match="callable"):
        future.add_done_callback(5)  # type: ignore[arg-type]


def test_W16_a_callback_that_raises_is_reported_and_disturbs_nobody(
    producer: mpproducer.Producer, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: reported.append(args.exc_value))
    done: list[int] = []

    def bad(_future: object) -> None:
        raise ZeroDivisionError

    producer.send(TOPIC, b"0").result(20)
    with held(broker, 0.2):
        futures = [producer.send(TOPIC, b"v") for _ in range(3)]
        for future in futures:
            future.add_done_callback(bad)
            future.add_done_callback(lambda f: done.append(f.result(0).offset))
        many = producer.send_many(TOPIC, [b"v", b"v"])
        many.add_done_callback(bad)
        many.add_done_callback(lambda f: done.extend(f.offsets))
        assert wait_until(lambda: len(done) == 5)
    assert sorted(done) == [1, 2, 3, 4, 5]
    futures[0].add_done_callback(bad)
    producer.send_many(TOPIC, []).add_done_callback(bad)
    assert [type(error) for error in reported] == [ZeroDivisionError] * 6


def test_W16_a_callback_that_blocks_delays_no_waiter(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    release, entered = threading.Event(), threading.Event()

    def block(_future: object) -> None:
        entered.set()
        release.wait(20)

    try:
        first = producer.send(TOPIC, b"0")
        first.add_done_callback(block)
        if not first.done():
            assert entered.wait(20)
        for n in range(1, 20):
            assert producer.send(TOPIC, b"v").result(20).offset == n
        producer.flush(20)
    finally:
        release.set()
    assert wait_until(lambda: "mpproducer-callbacks" not in thread_names())


def test_C10_a_callback_may_send_wait_flush_and_close(broker: Broker) -> None:
    broker.create_topic(TOPIC)
    producer = make(broker)
    offsets: list[int] = []
    closed = threading.Event()

    def again(future: Any) -> None:
        offsets.append(future.result(0).offset)
        if len(offsets) < 5:
            inner = producer.send(TOPIC, b"v")
            inner.result(20)
            producer.flush(20)
            inner.add_done_callback(again)
        else:
            producer.close(20)  # C10: no deadlock
            closed.set()

    producer.send(TOPIC, b"v").add_done_callback(again)
    assert closed.wait(30)
    assert offsets == [0, 1, 2, 3, 4]


def test_futures_and_callbacks_are_freed(producer: mpproducer.Producer) -> None:
    class Big:
        alive = 0

        def __init__(self) -> None:
            Big.alive += 1

        def __del__(self) -> None:
            Big.alive -= 1

        def __call__(self, _future: object) -> None:
            pass

    for _ in range(100):
        producer.send(TOPIC, b"v").add_done_callback(Big())
    producer.flush(20)
    assert wait_until(lambda: gc.collect() >= 0 and Big.alive == 0)
    assert metric(producer, "callbacks-pending") == 0


# --- many records


def test_a_batch_future_counts_orders_and_names_what_failed(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    many = producer.send_many(TOPIC, [b"%d" % n for n in range(2500)])
    assert len(many) == many.count == 2500
    assert [m.offset for m in many.result(20)] == list(range(2500))
    assert many.get() == many.result(0)
    assert many.failed == []
    assert many.done()
    assert not many.cancel()
    empty = producer.send_many(TOPIC, [])
    assert (empty.result(0), empty.offsets, empty.failed, len(empty)) == ([], [], [], 0)
    broker.on("Produce").error(87)
    refused = producer.send_many(TOPIC, [b"a", b"b", b"c"])
    assert isinstance(refused.exception(20), errors.NotWritten)
    assert [at for at, _error in refused.failed] == [0, 1, 2]
    with pytest.raises(errors.NotWritten):
        refused.result(0)


def test_S26_a_batch_future_waits_for_all_parts_of_a_split_batch() -> None:
    """The first part is acknowledged long before the second: nothing is told too early."""
    with Broker(max_message_bytes=6000) as broker:
        broker.create_topic(TOPIC)
        with make(broker, linger_ms=50) as producer:
            producer.send(TOPIC, b"0").result(20)
            slow = broker.on("Produce", times=100).delay(0.15)
            many = producer.send_many(TOPIC, [b"%04d" % n + bytes(1000) for n in range(20)])
            done: list[BatchFuture] = []
            many.add_done_callback(done.append)
            assert many.offsets == list(range(1, 21))
            assert slow.hits >= 4
            assert metric(producer, "batch-split-total") > 0
            assert wait_until(lambda: done == [many])
            slow.remove()
        assert [r.value[:4] for r in broker.records(TOPIC)[1:] if r.value] == [
            b"%04d" % n for n in range(20)
        ]


def test_a_batch_future_is_one_callback_and_one_await_however_many_batches(
    broker: Broker,
) -> None:
    broker.create_topic(TOPIC, partitions=4)
    with make(broker, batch_size=2000) as producer:
        many = producer.send_many(
            TOPIC, [bytes(100)] * 400, keys=[b"%d" % (n % 16) for n in range(400)]
        )
        calls: list[object] = []
        many.add_done_callback(calls.append)
        metadata = asyncio.run(asyncio.wait_for(_await(many), 20))
        assert len(metadata) == 400
        assert wait_until(lambda: calls == [many])


async def _await(future: Any) -> Any:
    return await future


# --- conversions, forks


def test_a_signal_handler_that_adds_a_callback_while_one_is_added_waits_for_nobody(
    producer: mpproducer.Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler runs where the watcher's thread is being started, under its lock."""
    told: list[str] = []
    threads: list[str] = []

    def on_signal(_number: int, _frame: object) -> None:
        producer.send(TOPIC, b"v").add_done_callback(lambda _f: told.append("handler"))

    class Interrupted(threading.Thread):
        def start(self) -> None:
            threads.append(self.name)
            os.kill(os.getpid(), signal.SIGUSR1)
            super().start()

    producer.send(TOPIC, b"v").result(20)
    before = signal.signal(signal.SIGUSR1, on_signal)
    try:
        monkeypatch.setattr(threading, "Thread", Interrupted)
        producer.send(TOPIC, b"v").add_done_callback(lambda _f: told.append("program"))
        assert wait_until(lambda: len(told) == 2)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sorted(told) == ["handler", "program"]
    assert threads == ["mpproducer-callbacks"]


def test_metadata_is_a_named_tuple_in_all_it_does(producer: mpproducer.Producer) -> None:
    found = producer.send(TOPIC, b"v", timestamp_ms=7).result(20)
    assert isinstance(found, mpproducer.RecordMetadata)
    topic, partition, offset, timestamp_ms = found
    assert found == (TOPIC, partition, offset, 7) == (topic, 0, found.offset, timestamp_ms)
    named = {"topic": TOPIC, "partition": 0, "offset": offset, "timestamp_ms": 7}
    assert found._asdict() == named
    assert mpproducer.RecordMetadata(**named) == found  # type: ignore[arg-type]
    assert found._fields == tuple(named)
    changed = found._replace(offset=9)
    assert (changed.offset, type(changed)) == (9, mpproducer.RecordMetadata)
    assert type(changed)._make(found) == found
    assert (
        repr(changed) == f"RecordMetadata(topic={TOPIC!r}, partition=0, offset=9, timestamp_ms=7)"
    )
    for again in (pickle.loads(pickle.dumps(found)), copy.copy(found), copy.deepcopy(found)):
        assert (again, type(again)) == (found, mpproducer.RecordMetadata)
    match found:
        case mpproducer.RecordMetadata(_, _, place, _):
            assert place == offset
    with pytest.raises(AttributeError):
        found.offset = 1  # type: ignore[misc]


def test_as_concurrent_gives_a_real_future(producer: mpproducer.Producer) -> None:
    futures = [as_concurrent(producer.send(TOPIC, b"v")) for _ in range(10)]
    many = as_concurrent(producer.send_many(TOPIC, [b"v"] * 2))
    failed = as_concurrent(producer.send("", b"v"))
    done, pending = concurrent.futures.wait([*futures, many, failed], timeout=20)
    assert len(done) == 12
    assert not pending
    assert [future.result().offset for future in futures] == list(range(10))
    assert [m.offset for m in many.result()] == [10, 11]
    assert isinstance(failed.exception(), mpproducer.InvalidTopic)
    assert not futures[0].cancel()


def test_L1_futures_of_the_parent_are_not_the_childs(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    done = producer.send(TOPIC, b"0")
    done.result(20)
    called: list[int] = []
    with held(broker, 0.6):
        future = producer.send(TOPIC, b"1")
        many = producer.send_many(TOPIC, [b"2", b"3"])
        future.add_done_callback(lambda f: called.append(os.getpid()))

        def child() -> None:
            assert done.result(0).offset == 0
            for pending in (future, many):
                assert isinstance(pending.exception(5), mpproducer.WrongProcess)
            assert asyncio.run(_awaited_error(future)) is mpproducer.WrongProcess
            assert called == []
            mine = producer.send(TOPIC, b"4")
            assert mine.result(20).offset == 4
            producer.close()

        run_child(child)
        assert future.result(20).offset == 1
        assert many.offsets == [2, 3]
        assert wait_until(lambda: called == [os.getpid()])


async def _awaited_error(future: Any) -> type:
    try:
        await future
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return type(error)
    return object


def test_W8_a_worker_that_never_looks_holds_up_nobody_and_loses_nothing(
    producer: mpproducer.Producer, broker: Broker, rng: random.Random
) -> None:
    """One process only sends; the completions of its batches must not pile up anywhere."""
    broker.create_topic("other")
    ready, go = os.pipe()

    def child() -> None:
        futures = []
        for n in range(30_000):
            futures.append(producer.send(TOPIC, b"%d" % n))
        os.write(go, b".")
        deadline = time.monotonic() + 30
        while metric(producer, "record-acked-total") < 30_000:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for n in sorted(rng.sample(range(30_000), 500)):
            assert futures[n].result(20).offset == n
        producer.close()

    try:
        in_child_started = threading.Thread(target=lambda: os.read(ready, 1))
        in_child_started.start()
        run_child(child)
        in_child_started.join(20)
        assert [producer.send("other", b"v").result(20).offset for _ in range(20)] == list(
            range(20)
        )
        assert len(broker.records(TOPIC)) == 30_000
    finally:
        os.close(ready)
        os.close(go)
