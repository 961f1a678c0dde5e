"""Futures in event loops: awaiting without a thread, cancelling, closing, deaths."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import mpproducer
from mpproducer.future import as_concurrent
from mpproducer.testing import Broker
from mpproducer.worker import attach
from tests.conftest import wait_until

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


async def _await(future: Any) -> Any:
    return await future


def test_await_gather_wait_for_shield_and_tasks_work_without_a_thread(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    async def main() -> None:
        before = thread_names()
        assert (await producer.send(TOPIC, b"v")).offset == 0
        with held(broker, 0.15):
            many = await asyncio.gather(*[producer.send(TOPIC, b"v") for _ in range(50)])
            assert [m.offset for m in many] == list(range(1, 51))
            future = producer.send(TOPIC, b"v")
            assert (await asyncio.wait_for(future, 20)).offset == 51
            assert (await asyncio.shield(producer.send(TOPIC, b"v"))).offset == 52
            task = asyncio.ensure_future(producer.send(TOPIC, b"v"))
            finished, _ = await asyncio.wait([task], timeout=20)
            assert finished == {task}
            assert task.result().offset == 53
            found = [
                (await f).offset
                for f in asyncio.as_completed([producer.send(TOPIC, b"v") for _ in range(3)])
            ]
            assert sorted(found) == [54, 55, 56]
            assert (await producer.send_many(TOPIC, [b"v"] * 3))[2].offset == 59
            wrapped = asyncio.wrap_future(as_concurrent(producer.send(TOPIC, b"v")))
            assert (await wrapped).offset == 60
        assert (await future).offset == 51  # a done one
        with pytest.raises(mpproducer.InvalidTopic):
            await producer.send("", b"v")
        with pytest.raises(mpproducer.InvalidTopic):
            await producer.send_many("", [b"v"])
        new = [name for name in thread_names() if name not in before]
        assert [name for name in new if name != "mpproducer-callbacks"] == []

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_detach_in_the_middle_of_an_await_is_no_error_of_descriptors(
    producer: mpproducer.Producer, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread detaches after `await` has looked, and before it watches the pipe."""
    real = os.dup
    dups: list[int] = []

    def racing(fd: int) -> int:
        dups.append(fd)
        link = attach.find(producer._place)
        if link is not None:
            attach.detach(link)
        return real(-1)

    async def main() -> None:
        await producer.send(TOPIC, b"v")
        with held(broker, 0.2) as fault:
            future = producer.send(TOPIC, b"v")
            assert not future.done()
            monkeypatch.setattr(os, "dup", racing)
            with contextlib.suppress(mpproducer.KafkaError, TimeoutError):
                await future
            assert future.done()
            assert wait_until(lambda: fault.hits > 0)  # the record stays in delivery
        folder = producer._place.folder
        assert wait_until(lambda: not os.path.exists(folder))  # delivered, and nobody is left

    asyncio.run(asyncio.wait_for(main(), 30))
    assert dups != []
    assert dups[0] >= 0


def test_an_await_without_a_free_descriptor_says_so(
    producer: mpproducer.Producer, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async def main() -> None:
        await producer.send(TOPIC, b"v")
        with held(broker, 0.2):
            future = producer.send(TOPIC, b"v")
            with monkeypatch.context() as patch:
                patch.setattr(os, "dup", full)
                with pytest.raises(OSError, match="Too many"):
                    await future
            assert (await future).offset == 1

    asyncio.run(asyncio.wait_for(main(), 30))


def test_L12_a_cancelled_or_late_waiter_leaves_the_record_in_delivery(
    producer: mpproducer.Producer, broker: Broker
) -> None:
    async def main() -> None:
        await producer.send(TOPIC, b"v")
        with held(broker, 0.4):
            first, second = producer.send(TOPIC, b"v"), producer.send(TOPIC, b"v")
            task = asyncio.ensure_future(first)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(second, 0.05)
            assert not first.done()
            assert [(await f).offset for f in (first, second)] == [1, 2]

    asyncio.run(asyncio.wait_for(main(), 30))


def test_L12_a_loop_that_closes_with_futures_pending_disturbs_nobody(
    producer: mpproducer.Producer, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: reported.append(args.exc_value))
    producer.send(TOPIC, b"v").result(20)
    descriptors = len(os.listdir("/proc/self/fd"))
    with held(broker, 0.4):
        future = producer.send(TOPIC, b"v")
        loop = asyncio.new_event_loop()
        task = loop.create_task(_await(future))
        loop.run_until_complete(asyncio.sleep(0.05))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            loop.run_until_complete(task)
        abandoned = asyncio.new_event_loop()
        waiter = abandoned.create_task(_await(future))
        abandoned.run_until_complete(asyncio.sleep(0.05))
        waiter._log_destroy_pending = False  # type: ignore[attr-defined]  # on purpose
        loop.close()
        abandoned.close()
        assert asyncio.run(_await(future)).offset == 1  # in a third loop
    assert future.result(0).offset == 1
    del loop, abandoned, task, waiter
    gc.collect()
    assert wait_until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)
    assert reported == []


def test_two_loops_in_two_threads_and_a_waiting_thread_share_one_pipe(
    producer: mpproducer.Producer,
) -> None:
    def in_loop(_number: int) -> list[int]:
        async def main() -> list[int]:
            offsets = []
            for _ in range(30):
                many = await asyncio.gather(*[producer.send(TOPIC, b"v") for _ in range(5)])
                offsets += [m.offset for m in many]
            return offsets

        return asyncio.run(asyncio.wait_for(main(), 30))

    def waiting(_number: int) -> list[int]:
        return [producer.send(TOPIC, b"v").result(20).offset for _ in range(150)]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(job, n) for n, job in enumerate((in_loop, in_loop, waiting, waiting))]
        found = [offset for job in jobs for offset in job.result(60)]
    assert sorted(found) == list(range(600))


def test_S1_awaiting_goes_on_over_the_death_of_the_sender(
    producer: mpproducer.Producer, broker: Broker, status_of: Any
) -> None:
    """The new attachment's pipe gets the old one's number: each task still is woken."""

    async def main() -> None:
        await producer.send(TOPIC, b"v")
        for _ in range(3):
            with held(broker, 0.5):
                tasks = [asyncio.ensure_future(producer.send(TOPIC, b"v")) for _ in range(3)]
                await asyncio.sleep(0.05)
                os.kill(status_of(producer)["pid"], signal.SIGKILL)
                got = await asyncio.gather(*tasks, return_exceptions=True)
                assert [type(error) for error in got] == [mpproducer.SenderDied] * 3
            await producer.send(TOPIC, b"v")

    asyncio.run(asyncio.wait_for(main(), 60))
