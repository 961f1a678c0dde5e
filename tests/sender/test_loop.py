"""The loop over a real pool: order of events, stale clocks, full pipes, published topics."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mpproducer._core import native
from mpproducer.config import Config
from mpproducer.errors import ClosedError
from mpproducer.reason import Reason
from mpproducer.sender import actions as a
from mpproducer.sender.batch import NEVER_NS, ProducerBatch
from mpproducer.sender.loop import SAMPLE_NS, Loop, dispatch
from mpproducer.sender.partition import Partition
from mpproducer.sender.workers import Worker
from mpproducer.shm import frames, segment
from mpproducer.shm.counters import INDEX


class Spy:
    """Stands in for the machine: keeps what it is told and answers what the test says."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine  # whose state is looked at
        self.events: list[Any] = []
        self.mores: list[bool] = []
        self.answers: dict[type, list[Any]] = {}
        self.due_ns: int | None = None

    def on_event(self, event: Any, _now_ns: int, more: bool = False) -> list[Any]:
        self.events.append(event)
        self.mores.append(more)
        return self.answers.pop(type(event), [])

    def next_deadline_ns(self) -> int | None:
        return self.due_ns

    def __getattr__(self, name: str) -> Any:
        return getattr(self.machine, name)


@pytest.fixture
def config() -> Config:
    return Config.from_user(
        None,
        {"bootstrap_servers": "x:1", "buffer_memory": 2 << 20, "batch_size": 16384}
        | {"max_partitions": 4, "max_topics": 2},
    )


@pytest.fixture
def fds(config: Config) -> Iterator[list[int]]:
    """Of the two segments, and the eventfd that wakes."""
    sizes = native.segment_sizes(config.slots, config.max_partitions, config.max_topics)
    made = [segment.create_memfd("test", size) for size in sizes]
    made.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    yield made
    for fd in made:
        os.close(fd)


@pytest.fixture
def loop(config: Config, fds: list[int]) -> Iterator[Loop]:
    pool = native.Pool(
        fds[0],
        fds[1],
        config.slots,
        config.max_partitions,
        config.max_topics,
        batch_size=config.batch_size,
        max_request_size=config.max_request_size,
        linger_us=5_000,
        generation=7,
    )
    epoll = select.epoll()
    handlers: dict[int, Callable[[int], None]] = {}
    made = Loop(
        config,
        pool,
        native.CorruptBatch,
        fds[2],
        epoll,
        handlers,
        random=random.Random(1),
        max_owners=5,
    )
    yield made
    made.close()
    epoll.close()
    pool.close()


@pytest.fixture
def spy(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> Spy:
    made = Spy(loop.machine)
    monkeypatch.setattr(loop, "machine", made)
    return made


def _worker(loop: Loop, owner: int = 1) -> tuple[Worker, int]:
    ours, theirs = socket.socketpair()
    theirs.close()
    worker = Worker(owner, os.getpid(), os.pidfd_open(os.getpid()), ours)
    reader = worker.open_pipe()
    loop.pool.owner_alive(owner, True)
    loop.worker_joined(worker)
    return worker, reader


def _complete(loop: Loop, owner: int, count: int) -> None:
    batch = ProducerBatch(Partition("t", 0, 0, 0), 1, 1, 0, 10)
    batch.records, batch.participants = 1, (owner,)
    outcome = a.Outcome(a.Kind.ACKED, 0, Reason.NONE, "", 0, 1)
    for _ in range(count):
        loop.workers.complete(a.Complete(batch, (outcome,)))


def test_an_answer_of_the_same_turn_goes_before_events_reported_meanwhile(
    loop: Loop, spy: Spy
) -> None:
    loop.pool.topic_add("t")
    spy.answers[a.TopicWanted] = [a.PublishTopic("t", 0, 2)]
    loop.feed_all([a.TopicWanted("t", 0), a.FlushAsked()])
    assert [type(event) for event in spy.events] == [
        a.TopicWanted,
        a.TopicPublished,
        a.FlushAsked,
    ]
    assert spy.mores == [True, True, False], "the last one knows that it is"


def test_published_partitions_have_host_wide_indices(loop: Loop, spy: Spy) -> None:
    for name, count in (("t", 2), ("u", 1)):
        spy.answers[a.FlushAsked] = [a.PublishTopic(name, loop.pool.topic_add(name), count)]
        loop.report(a.FlushAsked())
    published = [e for e in spy.events if isinstance(e, a.TopicPublished)]
    assert [event.partition_indices for event in published] == [(0, 1), (2,)]


def test_a_topic_with_more_partitions_than_there_is_room_says_which_key_to_raise(
    loop: Loop, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.pool.topic_add("big")
    spy.answers[a.FlushAsked] = [a.PublishTopic("big", 0, 5)]
    told: list[Any] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            if name == "topic_error":
                return lambda *what: told.append(what)
            return getattr(pool, name)

    pool = loop.pool
    monkeypatch.setattr(loop, "pool", Watched())
    loop.report(a.FlushAsked())
    ((index, code, message),) = told
    assert (index, code) == (0, 0)
    assert "max_partitions=4" in message
    assert not [e for e in spy.events if isinstance(e, a.TopicPublished)]


def test_X11_after_a_stop_what_has_arrived_comes_before_anything_is_late(
    loop: Loop, spy: Spy
) -> None:
    spy.due_ns = 1
    loop.now_ns = time.monotonic_ns() - 5_000_000_000
    loop.wake()
    loop.turn()
    assert not spy.events, "stopped for seconds, and something arrived: no Tick in this turn"
    loop.turn()
    assert spy.events == [a.Tick()]


def test_a_deadline_is_a_tick_in_its_turn(loop: Loop, spy: Spy) -> None:
    spy.due_ns = time.monotonic_ns() + 20_000_000
    loop.turn()
    loop.turn()
    assert a.Tick() in spy.events
    assert time.monotonic_ns() >= spy.due_ns


def test_X4_a_full_pipe_is_watched_until_it_is_written(loop: Loop, spy: Spy) -> None:
    worker, reader = _worker(loop)
    _complete(loop, 1, 20_000)
    loop._flush_completions()
    assert worker.backlog
    assert worker.pipe in loop.handlers
    total = 0
    while worker.backlog:
        total += len(os.read(reader, 1 << 20))
        spy.due_ns = time.monotonic_ns()
        loop.turn()
    total += len(os.read(reader, 1 << 20))
    assert total == 20_000 * 48
    assert worker.pipe not in loop.handlers
    os.close(reader)
    loop.worker_gone(worker, died=False)
    worker.close()


def test_X4_a_pipe_that_overflowed_does_not_keep_its_number(loop: Loop, spy: Spy) -> None:
    worker, reader = _worker(loop)
    _complete(loop, 1, 20_000)
    loop._flush_completions()
    number = worker.pipe
    assert number in loop.handlers
    worker.backlog_most_bytes = 1_000
    _complete(loop, 1, 1)
    loop._flush_completions()
    assert worker.pipe == -1
    assert number not in loop.handlers
    assert loop.counters.completion_overflow_total == 1
    # The next descriptor gets the number; its backlog must be watched like any other's.
    other = os.dup2(reader, number)
    assert loop._backlogged == {}
    os.close(other)
    os.close(reader)
    loop.worker_gone(worker, died=True)
    worker.close()


def test_X1_a_dead_workers_batches_are_found_before_its_memory_is_given_back(
    loop: Loop, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, reader = _worker(loop)
    order: list[str] = []
    pool = loop.pool

    class Watched:
        def __getattr__(self, name: str) -> Any:
            if name in ("owner_alive", "reap", "collect"):
                order.append(name)
            return getattr(pool, name)

    monkeypatch.setattr(loop, "pool", Watched())
    monkeypatch.setattr(loop.store, "_pool", loop.pool)
    loop.worker_gone(worker, died=True)
    assert order == ["owner_alive", "collect", "reap"]
    assert spy.events[-1] == a.WorkerGone(1)
    assert loop.counters.worker_died_total == 1
    os.close(reader)
    worker.close()


def test_a_wake_ends_the_sleep(loop: Loop, spy: Spy) -> None:
    loop.turn()
    loop.wake()
    before = loop.counters.loop_turn_total
    loop.turn()
    assert loop.counters.loop_turn_total == before + 1
    loop.wake()
    loop.turn()
    assert loop.counters.loop_turn_total == before + 2, "the first did not hide the second"


def test_a_wake_is_told_once_although_nobody_reads_it(loop: Loop, spy: Spy) -> None:
    loop.turn()
    loop.wake()
    loop.wake()
    soon = time.monotonic_ns() + 5_000_000
    assert [fd for fd, _ in loop.pool.sleep(loop.epoll.fileno(), soon)] == [loop._wake_fd]
    assert loop.pool.sleep(loop.epoll.fileno(), soon) == []
    assert time.monotonic_ns() >= soon


def test_the_sleep_does_not_begin_when_its_time_has_come(loop: Loop) -> None:
    before = loop.pool.sleeps
    loop.wake()
    assert len(loop.pool.sleep(loop.epoll.fileno(), time.monotonic_ns() - 1)) == 1
    assert loop.pool.sleeps == before
    with pytest.raises(ValueError, match="finite"):
        loop.pool.sleep(loop.epoll.fileno(), 1 << 62)
    with pytest.raises(OSError, match="descriptor"):
        loop.pool.sleep(-1, 0)


def test_a_signal_ends_the_sleep_and_its_handler_may_raise(loop: Loop) -> None:
    class Rung(Exception):
        pass

    def ring(_number: int, _frame: object) -> None:
        raise Rung

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        with pytest.raises(Rung):
            loop.pool.sleep(loop.epoll.fileno(), time.monotonic_ns() + 10_000_000_000)
        signal.signal(signal.SIGALRM, lambda _number, _frame: None)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert loop.pool.sleep(loop.epoll.fileno(), time.monotonic_ns() + 10_000_000_000) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_completions_are_written_before_the_turn_looks_at_memory(
    loop: Loop, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, reader = _worker(loop)
    os.set_blocking(reader, False)
    seen = []

    class Looking:
        """The pool, which first reads what a worker finds in its pipe."""

        def __getattr__(self, name: str) -> Any:
            if name == "collect":
                seen.append(os.read(reader, 4096))
            return getattr(pool, name)

    pool = loop.pool
    monkeypatch.setattr(loop.store, "_pool", Looking())
    loop.handlers[loop._wake_fd] = lambda _mask: _complete(loop, 1, 2)
    loop.wake()
    loop.turn()
    assert [len(data) for data in seen] == [2 * frames.HEADER.size]
    os.close(reader)
    worker.close()


def test_S37_an_exception_in_the_machine_leaves_the_loop_and_is_not_swallowed(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Spy):
        def on_event(self, event: Any, _now_ns: int, more: bool = False) -> list[Any]:
            raise AssertionError("a bug")

    monkeypatch.setattr(loop, "machine", Broken(loop.machine))
    with pytest.raises(AssertionError, match="a bug"):
        loop.report(a.FlushAsked())


def test_a_writer_that_begins_to_wait_behind_the_look_at_memory_is_not_slept_over(
    loop: Loop, spy: Spy, config: Config, fds: list[int]
) -> None:
    """Publishing the counters comes between that look and the sleep, and is none itself."""
    worker, reader = _worker(loop)
    ctl, memory, wake = map(os.dup, fds)
    attachment = native.Attachment(
        ctl, memory, wake, reader, 1, config.slots, config.max_partitions, config.max_topics
    )
    producer = native.ProducerBase()
    producer._attachment = attachment
    loop.pool.topic_ready(loop.pool.topic_add("t"), 1)
    while loop.pool.free_slots():
        producer.send("t", bytes(10_000), partition=0)
    loop.turn()
    assert a.MemoryShort not in map(type, spy.events)

    def wait() -> None:
        with pytest.raises(ClosedError):
            producer.send("t", bytes(10_000), partition=0)

    waiter = threading.Thread(target=wait)

    def on_turn(_now_ns: int) -> int:
        if not waiter.ident:
            waiter.start()
            while not attachment.stats()["memory_waits"]:
                time.sleep(0.001)
            loop._publish_ns = 0
        return NEVER_NS

    loop.on_turn = on_turn
    loop.turn()
    slept = loop.pool.sleeps
    loop.turn()
    assert a.MemoryShort in map(type, spy.events)
    producer._closed = 1
    waiter.join(20)
    assert not waiter.is_alive()
    attachment.close()
    worker.close()
    assert loop.pool.sleeps == slept, "it looked again at once"


def test_counters_are_published_by_name(loop: Loop) -> None:
    loop.counters.record_acked_total = 123
    loop.publish_counters()
    assert loop.counter_values()["record-acked-total"] == 123
    assert loop.counter_values()["buffer-total-bytes"] == 2 << 20
    assert 123 in loop.pool.metrics.read()[0][1]


def test_samples_are_taken_in_time_and_before_the_turns_events(loop: Loop) -> None:
    began_ns = loop.now_ns

    def older() -> native.Sample:
        sample = loop.metrics.read()[1]
        assert sample is not None
        return sample

    loop.wake()
    loop.turn()
    assert older()[0] == began_ns, "the one of the start"
    loop.metrics.drained(0, 5, 1, 1, -1)
    loop._sample_due_ns = loop.now_ns
    loop.counters.record_acked_total = 5
    loop.wake()
    loop.turn()
    assert older()[0] == began_ns, "30 to 60 s go back to it"
    taken_ns = loop.now_ns
    loop._sample_due_ns = loop.now_ns
    loop.handlers[loop._wake_fd] = lambda _mask: loop.metrics.drained(0, 7, 1, 1, -1)
    loop.wake()
    loop.turn()
    assert older()[0] == taken_ns
    assert older()[1][INDEX["record-send-total"]] == 5
    assert older()[1][INDEX["record-acked-total"]] == 5, "copied, too"
    loop._sample_due_ns = loop.now_ns
    loop.turn()
    assert older()[1][INDEX["record-send-total"]] == 5, "not what that turn brought"


def test_after_a_long_sleep_the_window_is_not_longer_than_promised(loop: Loop) -> None:
    loop.metrics.drained(0, 5, 1, 1, -1)
    loop._sample_due_ns = time.monotonic_ns() - 3 * SAMPLE_NS
    loop.wake()
    loop.turn()
    older = loop.metrics.read()[1]
    assert older is not None
    assert older[0] == loop.now_ns - SAMPLE_NS
    assert older[1][INDEX["record-send-total"]] == 5
    assert loop._sample_due_ns == loop.now_ns + SAMPLE_NS


def test_a_number_that_was_given_up_in_a_turn_brings_its_old_event_to_nobody(
    loop: Loop, spy: Spy
) -> None:
    """A bye and the death behind it are ready together; a newcomer gets the number of the pidfd."""
    died: list[str] = []
    old, bye, other = os.eventfd(0), os.eventfd(1), os.eventfd(0)

    def on_bye(_mask: int) -> None:
        os.eventfd_read(bye)
        loop.epoll.unregister(old)
        assert os.dup2(other, old) == old
        loop.handlers[old] = lambda _mask: died.append("newcomer")
        loop.epoll.register(old, select.EPOLLIN)

    loop.handlers[bye] = on_bye
    loop.handlers[old] = lambda _mask: died.append("who said bye")
    loop.epoll.register(bye, select.EPOLLIN)
    loop.epoll.register(old, select.EPOLLIN)
    dispatch(loop.handlers, [(bye, select.EPOLLIN), (old, select.EPOLLIN)])
    assert died == []
    os.eventfd_write(other, 1)
    loop.turn()
    assert died == ["newcomer"]  # its own event reaches it
    for fd in (old, bye, other):
        loop.handlers.pop(fd, None)
        os.close(fd)


def test_a_pipe_whose_number_is_a_threads_by_now_does_not_end_the_loop(
    loop: Loop, spy: Spy
) -> None:
    worker, reader = _worker(loop)
    _complete(loop, 1, 20_000)
    loop._flush_completions()
    number = worker.pipe
    assert number in loop._backlogged
    worker.close_pipe()
    other = os.dup2(reader, number)  # as a resolver thread's socket would
    loop.forget_pipe(number)
    assert number not in loop.handlers
    os.close(other)
    os.close(reader)
    loop.worker_gone(worker, died=True)
    worker.close()


def test_an_address_that_needs_no_lookup_is_reported_in_the_next_turn(loop: Loop, spy: Spy) -> None:
    loop.resolver.submit(7, "127.0.0.1", 9)
    loop.turn()
    (found,) = (event for event in spy.events if isinstance(event, a.Resolved))
    assert (found.node_id, found.host) == (7, "127.0.0.1")


def test_a_name_that_a_thread_looked_up_ends_the_sleep_and_is_reported(
    loop: Loop, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = threading.Event()

    def look_up(_host: str, _port: int) -> list[Any]:
        assert slept.wait(20)
        return []

    monkeypatch.setattr(loop.resolver, "_lookup", look_up)
    loop.resolver.submit(7, "a.name", 9)
    before_ns = time.monotonic_ns()
    spy.due_ns = before_ns + 5_000_000
    loop.turn()
    loop.turn()
    assert not [event for event in spy.events if isinstance(event, a.ResolveFailed)]
    spy.due_ns = before_ns + 20_000_000_000
    threading.Timer(0.01, slept.set).start()
    while not [event for event in spy.events if isinstance(event, a.ResolveFailed)]:
        assert time.monotonic_ns() < before_ns + 10_000_000_000, "the thread woke nobody"
        loop.turn()
