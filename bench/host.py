"""A sender's loop and a worker in one process, over real segments: what the stations need.

Nothing stands in for anything: the memory, the core, the machine and the sockets are those of the
product. Only the second process is missing, so every step can be timed by one clock.
"""

from __future__ import annotations

import os
import random
import select
import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import mpproducer.producer  # noqa: F401 - it tells the core its result classes
from mpproducer._core import native
from mpproducer.config import Config
from mpproducer.sender import actions
from mpproducer.sender.loop import Loop
from mpproducer.sender.workers import Worker
from mpproducer.shm import segment

TOPIC: Final = "stations"
OWNER: Final = 1
_START_S: Final = 20.0
_GENERATION: Final = 1
_CALIBRATIONS: Final = 1_000


class _Producer(native.ProducerBase):
    """The C half of a producer, with an attachment that was given to it."""


class Memory:
    """A pool, and a worker of this process attached to it; there is no sender."""

    def __init__(self, config: Config, partitions: int) -> None:
        self.config = config
        self.partitions = partitions
        sizes = native.segment_sizes(config.slots, config.max_partitions, config.max_topics)
        ctl, pool = (segment.create_memfd("mpproducer-bench", size) for size in sizes)
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        shape = (config.slots, config.max_partitions, config.max_topics)
        self.pool = native.Pool(
            ctl, pool, *shape, batch_size=config.batch_size,
            max_request_size=config.max_request_size, linger_us=config.linger_ms * 1000,
            generation=_GENERATION,
        )  # fmt: skip
        # No process: its pidfd is never watched, and its socket is never read.
        self.worker = Worker(OWNER, os.getpid(), -1, None)
        reader = self.worker.open_pipe()
        self.pool.owner_alive(OWNER, True)
        self.topic_index = self.pool.topic_add(TOPIC)
        self.attachment = native.Attachment(
            ctl, pool, os.dup(self.wake_fd), reader, OWNER, *shape
        )  # takes over the descriptors
        self.producer = _Producer()
        self.producer._attachment = self.attachment
        self.producer._max_block_ns = 0

    def publish(self) -> None:
        """Say that the topic is there, as a sender does that has its metadata."""
        self.pool.topic_ready(self.topic_index, self.partitions)

    def take(self) -> None:
        """Freeze and give back every batch; what is to be told is the caller's."""
        for _index, seq, slot, _full, _opened_ns in self.pool.collect(False)[0]:
            if seq:
                self.pool.freeze([slot], 0)
                self.pool.release(slot)

    def close(self) -> None:
        """Unmap and close."""
        self.attachment.close()
        self.worker.close()
        self.pool.close()
        os.close(self.wake_fd)


class Stopwatch:
    """CPU time of this thread by station: a station inside another one is not counted twice.

    The clock is a system call of about half a microsecond, so what a reading costs is taken off:
    from the station what falls between its two readings, from the one around it all of it.
    """

    def __init__(self) -> None:
        self.spent_ns: dict[str, int] = {}
        self._inner: list[int] = []
        self._inside_ns = self._whole_ns = 0
        self._calibrate()

    def _calibrate(self) -> None:
        """What a station that does nothing costs: inside of its readings, and to its caller."""
        empty, now = self.timed("", lambda: None), time.thread_time_ns
        inside, whole, bare = [], [], []
        for _ in range(_CALIBRATIONS):
            self.spent_ns.clear()
            started = now()
            between = now()
            empty()
            ended = now()
            bare.append(between - started)
            inside.append(self.spent_ns[""])
            whole.append(ended - between)
        self.spent_ns.clear()
        self._inside_ns = int(statistics.median(inside))
        self._whole_ns = int(statistics.median(whole) - statistics.median(bare))

    def timed(self, station: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, its time counted to the station."""
        now, inner = time.thread_time_ns, self._inner

        def call(*args: Any, **more: Any) -> Any:
            inner.append(0)
            started = now()
            try:
                return work(*args, **more)
            finally:
                taken = now() - started - self._inside_ns
                own = taken - inner.pop()
                self.spent_ns[station] = self.spent_ns.get(station, 0) + own
                if inner:
                    inner[-1] += taken + self._whole_ns

        return call

    def standin(self, owner: Any, **stations: str) -> Any:
        """What takes the place of an object that does not let its methods be replaced; method =
        station."""
        # All methods, so that those which are not timed are found as fast as without a stand-in.
        methods = {
            name: getattr(owner, name)
            for name, what in vars(type(owner)).items()
            if callable(what) and not name.startswith("__")
        }
        timed = {name: self.timed(where, getattr(owner, name)) for name, where in stations.items()}
        return _Standin(owner, **methods | timed)


class _Standin:
    """An object with some attributes replaced, where it does not let its own be: compiled."""

    def __init__(self, whom: Any, **replaced: Any) -> None:
        vars(self).update(replaced, _whom=whom)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whom, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._whom, name, value)


class Host(Memory):
    """The same with the loop of a sender, connected to a broker or a sink."""

    def __init__(self, bootstrap: str, partitions: int, **config: Any) -> None:
        super().__init__(
            Config.from_user(None, {"bootstrap_servers": bootstrap, **config}), partitions
        )
        self._epoll = select.epoll()
        self.loop = Loop(
            self.config, self.pool, native.CorruptBatch, self.wake_fd, self._epoll, {},
            random=random.Random(1), max_owners=native.MAX_OWNERS,
        )  # fmt: skip
        self.watch = Stopwatch()
        self.drain: Callable[[], int] = self.attachment.drain
        self.turn: Callable[[], None] = self.loop.turn
        try:
            self.loop.worker_joined(self.worker)
            self.loop.report(actions.TopicWanted(TOPIC, self.topic_index))
            self._turn_until(lambda: self.attachment.topic(TOPIC)[0] == native.TOPIC_READY)
            self.producer.send(TOPIC, b"first")  # the producer id
            self.finish()
        except BaseException:
            self.close()
            raise
        self._watch()

    def _watch(self) -> None:
        loop: Any = self.loop
        watch, apply, handlers = self.watch, loop._apply, loop.handlers
        self.turn = watch.timed("turn", loop.turn)
        loop.pool = watch.standin(loop.pool, sleep="sleep")
        loop.store = watch.standin(loop.store, collect="collect", seal="freeze", release="release")
        loop.machine = watch.standin(loop.machine, on_event="machine")
        loop.produce = watch.standin(loop.produce, encode="encode")
        loop.workers = watch.standin(loop.workers, flush="pipe")
        for connection in loop.connections._by_conn.values():
            fd = connection.stream.fileno()
            handlers[fd] = watch.timed("answer", handlers[fd])
            connection.stream = watch.standin(connection.stream, write="sendmsg", flush="sendmsg")
        apply[actions.Complete] = watch.timed("frame", apply[actions.Complete])
        self.drain = watch.timed("drain", self.attachment.drain)

    def _turn_until(self, reached: Callable[[], bool]) -> None:
        until = time.monotonic() + _START_S
        while not reached():
            if time.monotonic() > until:
                raise TimeoutError(f"no answer from {self.config.servers} within {_START_S:.0f} s")
            self.turn()

    def finish(self) -> None:
        """Turn until every batch is answered, reading what is told."""
        counters = self.loop.counters
        read = 0

        def told() -> bool:
            nonlocal read
            if counters.completion_frame_total != read:
                read = counters.completion_frame_total
                self.drain()
            return not self.attachment.pending()

        self._turn_until(told)

    def counts(self) -> dict[str, int]:
        """The sender's counters by their published names."""
        self.loop.publish_counters()
        return self.loop.counter_values()

    def close(self) -> None:
        """Close the connections, unmap and close."""
        self.loop.close()
        self._epoll.close()
        super().close()
