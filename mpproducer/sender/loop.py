"""The loop of the sender process: what the system says becomes events, actions become calls.

One thread. Per turn: what arrived from the network, what workers announced in shared memory, then
time; actions are carried out as they come, completions are written once per worker behind what
arrived, and it sleeps until something happens. While a batch is marked but has no record, or
memory waits for a writer that stands still, it sleeps MAX_SLEEP_NS at most: no wake-up comes from a
worker that was stopped and goes on. Otherwise no `send` that has returned depends on the wake-up of
another worker, every death wakes by its pidfd, and an idle sender sleeps.

An exception in a handler is a bug: it leaves `run`, and the process tells every worker what can be
told and ends (process.py). Nothing is logged and carried on with.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mpproducer.net.resolve import Resolver
from mpproducer.sender import actions, codec
from mpproducer.sender.abort import tell_everybody
from mpproducer.sender.actions import Action, Event
from mpproducer.sender.batch import NEVER_NS
from mpproducer.sender.connections import Connections
from mpproducer.sender.machine import Machine
from mpproducer.sender.retry import Randomness
from mpproducer.sender.store import Store
from mpproducer.sender.workers import Worker, Workers
from mpproducer.shm import counters as counter_names

if TYPE_CHECKING:
    from mpproducer._core.native import Metrics
    from mpproducer.config import Config

_LOG = logging.getLogger("mpproducer.sender")
_now_ns: Final = time.monotonic_ns  # compiled code looks up what is not Final each time

MAX_SLEEP_NS: Final = 100_000_000
IDLE_SLEEP_NS: Final = 5_000_000_000  # a last resort, should the argument above have a hole
_PUBLISH_NS: Final = 50_000_000
_STALE_NS: Final = 1_000_000_000
SAMPLE_NS: Final = 30_000_000_000  # rates and averages cover one to two of these, as Java's


def dispatch(handlers: dict[int, Callable[[int], None]], events: list[tuple[int, int]]) -> None:
    """Call the handler of each event, unless its descriptor was given up by an earlier one.

    1. A worker says bye and ends: its socket and its pidfd are ready in the same turn.
    2. The bye closes both; a worker that comes in behind it gets the number for its own pidfd.
    3. The old event of that number would say of the newcomer that it died.
    """
    ready = [(fd, mask, handlers.get(fd)) for fd, mask in events]
    for fd, mask, handler in ready:
        if handler is not None and handlers.get(fd) is handler:
            handler(mask)


class Loop:
    """The sender's event loop over one pool, one epoll and one machine."""

    def __init__(
        self,
        config: Config,
        pool: Any,
        corrupt_error: type[Exception],
        wake_fd: int,
        epoll: select.epoll,
        handlers: dict[int, Callable[[int], None]],
        workers: Workers | None = None,
        *,
        random: Randomness,
        max_owners: int,
    ) -> None:
        self.config = config
        self.pool = pool
        self.epoll = epoll
        self._epoll_fd = epoll.fileno()
        self.handlers = handlers
        self.now_ns = _now_ns()
        self.metrics: Metrics = pool.metrics
        machine = Machine(config, random, self.now_ns, self.metrics)
        self.counters = machine.counters
        # Any, here and below: tests and measurements put stand-ins there, which compiled code would
        # refuse under the type.
        self.machine: Any = machine
        self.workers: Any = workers or Workers(self.counters, max_owners)
        self._touched: dict[int, Worker] = self.workers.touched
        self._wake_fd = wake_fd
        self._payload = memoryview(pool)
        self.store: Any = Store(
            config, pool, self._payload, corrupt_error, self.counters, self.wake
        )
        self._compresses: bool = self.store.compressor is not None
        self.connections = Connections(
            config, epoll, handlers, self.report, self.counters, self.metrics
        )
        self.resolver = Resolver(self.wake)
        self.produce: Any = codec.ProduceEncoder(config.client_id)
        self.exit_why = ""
        self.on_turn: Callable[[int], int] | None = None  # returns when it wants the next call
        self._turn_due_ns = NEVER_NS
        self._events: deque[Event] = deque()
        self._answers: deque[Event] = deque()
        self._feeding = False
        self._directory_changed = False
        self._woken = False  # by a thread with an answer, or by a worker
        self._publish_ns = self.now_ns  # NEVER_NS: nothing happened since the last time
        self._sample_due_ns = self.now_ns + SAMPLE_NS
        self.counters.started_ns = self.now_ns
        self.metrics.sample(self.now_ns)
        self._backlogged: dict[int, Worker] = {}
        self._quarantine_ns = 0
        self._until_ns = self.now_ns  # when the sleep was to end
        self._due_ns = NEVER_NS  # when the machine wanted a Tick, before that sleep
        self._waiting = 0  # writers that wait for memory
        # Edge-triggered: every write is one event, and nobody has to read the counter.
        epoll.register(wake_fd, select.EPOLLIN | select.EPOLLET)
        handlers[wake_fd] = self._on_wake
        self._apply: dict[type[Any], Callable[[Any], None]] = {
            actions.Seal: self._seal,
            actions.Compress: self._compress,
            actions.Verify: self._verify,
            actions.Split: self._split,
            actions.Complete: self.workers.complete,
            actions.Release: self._release,
            actions.PublishTopic: self._publish_topic,
            actions.PublishTopicError: self._publish_topic_error,
            actions.PartitionAvailable: self._partition_available,
            actions.Resolve: self._resolve,
            actions.Connect: self._connect,
            actions.Close: self._close,
            actions.Request: self._request,
            actions.SendProduce: self._send_produce,
            actions.Exit: self._exit,
        }

    # --- the turn

    def run(self) -> str:
        """Turn until the machine says Exit; returns why."""
        while not self.exit_why:
            self.turn()
        self.workers.flush()
        self.publish_counters()
        return self.exit_why

    def turn(self) -> None:
        """One round: act on what is there, then sleep until more comes."""
        before_ns = self.now_ns
        events = self._sleep()
        self.now_ns = _now_ns()
        slept_ns = self.now_ns - before_ns
        if self.now_ns >= self._sample_due_ns:
            self._sample()
        dispatch(self.handlers, events)
        self._flush_completions()  # somebody may wait for them: before anything else
        if events and self._publish_ns == NEVER_NS:
            self._publish_ns = self.now_ns + _PUBLISH_NS
        if events or slept_ns < MAX_SLEEP_NS:
            self.collect()
        else:
            self.feed_all(self.store.collect_all())
        self._background()
        # A process that was stopped wakes with everything overdue: what has arrived meanwhile is
        # handed over first, in full, before anything is declared late.
        stale = self.now_ns - self._until_ns > _STALE_NS and bool(events)
        if self._due_ns <= self.now_ns and not stale:
            self.report(actions.Tick())
        self._memory()
        if self.on_turn is not None:
            self._turn_due_ns = self.on_turn(self.now_ns)
        self._flush_completions()
        self.counters.loop_turn_total += 1

    def _sleep(self) -> list[tuple[int, int]]:
        counters = self.counters
        now_ns = _now_ns()
        busy_us = (now_ns - self.now_ns) // 1000
        counters.loop_time_us_total += busy_us
        if busy_us > counters.loop_gap_us_max:
            counters.loop_gap_us_max = busy_us
        if now_ns >= self._publish_ns:
            self.publish_counters()
        self._until_ns = until_ns = self._wake_up_ns(now_ns)
        events: list[tuple[int, int]] = self.pool.sleep(self._epoll_fd, until_ns)
        return events

    def _wake_up_ns(self, now_ns: int) -> int:
        """Until when the loop may sleep if nothing happens."""
        due_ns: int | None = self.machine.next_deadline_ns()
        self._due_ns = NEVER_NS if due_ns is None else due_ns
        if self._events or self._answers or self.exit_why:
            return now_ns
        store = self.store
        soon_ns: int = store.look_again_ns()
        if soon_ns:
            most_ns = soon_ns
        elif store.watches_worker() or self._waiting:
            most_ns = MAX_SLEEP_NS
        else:
            most_ns = IDLE_SLEEP_NS
        # Not one `min` of all: only that of two is compiled to a comparison.
        until_ns = min(now_ns + most_ns, self._due_ns)
        return min(until_ns, min(self._turn_due_ns, self._publish_ns))

    def wake(self) -> None:
        """Make the sleeping loop turn; callable from every thread."""
        os.eventfd_write(self._wake_fd, 1)

    def _on_wake(self, _mask: int) -> None:
        """A worker wants no more than the turn that follows; a thread has left its answer."""
        self._woken = True

    # --- events and actions

    def report(self, event: Event) -> None:
        """Hand an event to the machine, and carry out what follows until all is quiet.

        Answers of the same turn go before events that were reported meanwhile.
        """
        self._events.append(event)
        self._feed()

    def _feed(self) -> None:
        if self._feeding:
            return
        self._feeding = True
        machine = self.machine
        apply = self._apply
        answers = self._answers
        events = self._events
        try:
            while answers or events:
                next_event = answers.popleft() if answers else events.popleft()
                more = bool(answers or events)
                wanted: list[Action] = machine.on_event(next_event, self.now_ns, more)
                for action in wanted:
                    apply[type(action)](action)
        finally:
            self._feeding = False
        if self._directory_changed:
            # Not before: who waits is to find a new topic with what is known of its partitions.
            self._directory_changed = False
            self.pool.wake_topic_waiters()

    def feed_all(self, found: list[Event]) -> None:
        """Report several events in order."""
        self._events.extend(found)
        self._feed()

    def collect(self) -> None:
        """Report what workers announced in shared memory."""
        found = self.store.collect()
        if found:
            self.feed_all(found)

    def _background(self) -> None:
        if self._woken:
            self._woken = False
            for answer in self.resolver.take():
                if answer.addresses:
                    self.report(actions.Resolved(answer.token, answer.host, answer.addresses))
                else:
                    self.report(actions.ResolveFailed(answer.token, answer.host, answer.why))
        if self._compresses:
            self.feed_all(self.store.compression_done(self.now_ns))

    def _memory(self) -> None:
        """Blocked writers: nothing lingers while they wait; serve them when memory came back."""
        pool = self.pool
        self._waiting = waiting = pool.waiters()
        if waiting:
            self.report(actions.MemoryShort())
            self.counters.memory_granted_total += pool.grant()
        if self.store.quarantined and self.now_ns >= self._quarantine_ns:
            self._quarantine_ns = self.now_ns + MAX_SLEEP_NS
            left = pool.retry_quarantine()
            self.counters.batches_quarantined = left
            self.store.quarantined = left > 0
            if waiting:
                self.counters.memory_granted_total += pool.grant()

    def _flush_completions(self) -> None:
        if not self._touched:
            return
        backlogged = self.workers.flush()
        if not backlogged and not self._backlogged:
            return
        # A pipe that overflowed or broke was closed: forget it before its number is used again.
        for pipe, worker in list(self._backlogged.items()):
            if worker.pipe != pipe:
                self.forget_pipe(pipe)
        for worker in backlogged:
            if worker.pipe not in self._backlogged:
                self._backlogged[worker.pipe] = worker
                self.handlers[worker.pipe] = self._pipe_writable(worker)
                self.epoll.register(worker.pipe, select.EPOLLOUT)

    def _pipe_writable(self, worker: Worker) -> Callable[[int], None]:
        pipe = worker.pipe

        def on_io(_mask: int) -> None:
            if worker.pipe != pipe or worker.flush(self.counters):
                self.forget_pipe(pipe)

        return on_io

    def forget_pipe(self, pipe: int) -> None:
        """The backlog of this pipe is written, or its worker is gone."""
        if self._backlogged.pop(pipe, None) is not None:
            del self.handlers[pipe]
            # A closed descriptor has left epoll by itself; a thread may have its number by now.
            with contextlib.suppress(OSError):
                self.epoll.unregister(pipe)

    # --- actions

    def _seal(self, action: actions.Seal) -> None:
        self._answers.append(self.store.seal(action))

    def _compress(self, action: actions.Compress) -> None:
        event = self.store.compress(action.batch, self.now_ns)
        if event is not None:
            self._answers.append(event)

    def _verify(self, action: actions.Verify) -> None:
        event = self.store.verify(action.batch)
        if event is not None:
            self._answers.append(event)

    def _split(self, action: actions.Split) -> None:
        self._answers.append(self.store.split(action))

    def _release(self, action: actions.Release) -> None:
        self.store.release(action.batch)

    def _publish_topic(self, action: actions.PublishTopic) -> None:
        try:
            indices = self.pool.topic_ready(action.topic_index, action.partition_count)
        except OverflowError:
            message = (
                f"{action.name} has {action.partition_count} partitions and the host's directory "
                f"is full; raise max_partitions={self.config.max_partitions}"
            )
            self.pool.topic_error(action.topic_index, 0, message)
        else:
            self._answers.append(actions.TopicPublished(action.name, tuple(indices)))
        self._directory_changed = True

    def _publish_topic_error(self, action: actions.PublishTopicError) -> None:
        self.pool.topic_error(action.topic_index, action.code, action.message)
        self._directory_changed = True

    def _partition_available(self, action: actions.PartitionAvailable) -> None:
        self.pool.partition_available(action.partition_index, action.available)

    def _resolve(self, action: actions.Resolve) -> None:
        self.resolver.submit(action.node_id, action.host, action.port)

    def _connect(self, action: actions.Connect) -> None:
        self.connections.connect(action)

    def _close(self, action: actions.Close) -> None:
        self.connections.close(action.conn)

    def _request(self, action: actions.Request) -> None:
        self.connections.send(
            action.conn,
            action.correlation_id,
            action.api_key,
            action.api_version,
            codec.encode_request(action, self.config.client_id),
        )

    def _send_produce(self, action: actions.SendProduce) -> None:
        self.connections.send(
            action.conn,
            action.correlation_id,
            codec.PRODUCE,
            action.api_version,
            self.produce.encode(action),
            answered=action.acks != 0,
        )

    def _exit(self, action: actions.Exit) -> None:
        self.exit_why = action.why

    # --- workers

    def worker_joined(self, worker: Worker) -> None:
        """A worker was welcomed."""
        self.workers.add(worker)
        self.counters.worker_joined_total += 1
        self.report(actions.WorkerJoined(worker.owner))

    def worker_gone(self, worker: Worker, *, died: bool) -> None:
        """A worker left or died. The order matters:

        1. The pool learns that the owner id will append nothing more, so that from here on an
           empty batch of it may be sealed.
        2. Every batch it linked is found and reported, so that what it committed is sent.
        3. Only then is what it had claimed but not linked given back.
        """
        self.workers.remove(worker)
        self.forget_pipe(worker.pipe)
        if died:
            self.counters.worker_died_total += 1
        else:
            self.counters.worker_left_total += 1
        self.pool.owner_alive(worker.owner, False)
        self.feed_all(self.store.collect_all())
        self.counters.slots_reaped_total += self.pool.reap(worker.owner)
        self.counters.batches_quarantined = left = self.pool.retry_quarantine()
        self.store.quarantined = left > 0
        self.report(actions.WorkerGone(worker.owner))

    def free_owner(self) -> int:
        """An owner id for a new worker, or 0."""
        for owner in list(self.workers.retired):
            if self.pool.owner_reusable(owner):
                del self.workers.retired[owner]
        free: int = self.workers.free_owner()
        return free

    # --- counters and the end

    def publish_counters(self) -> None:
        """Copy the counters to shared memory, where anybody attached can read them."""
        self._publish_ns = NEVER_NS
        counters = self.counters
        counters.loop_sleep_total = self.pool.sleeps
        counters.buffer_total_bytes = self.config.slots * 16384
        counters.buffer_available_bytes = self.pool.free_slots() * 16384
        # Not asked of the pool: it would count as the look at them, and the sleep follows.
        counters.waiting_threads = self._waiting
        counters.batches_incomplete = len(self.machine.delivery.aging)
        counters.batches_unreleased = self.machine.delivery.unreleased
        counters.completion_backlog_bytes = self.workers.backlog_bytes()
        counters.metadata_updated_ns = max(0, self.machine.metadata.succeeded_ns)
        counters.requests_in_flight = 0
        for node in self.machine.nodes.all():
            in_flight = len(node.in_flight)
            counters.requests_in_flight += in_flight
            self.metrics.in_flight(node.row, in_flight)
        values = [getattr(counters, attribute) for attribute in _ATTRIBUTES]
        self.metrics.publish(counter_names.COPIED_FIRST, values)

    def _sample(self) -> None:
        """Keep what was counted up to now, before anything of this turn is. Overdue by a whole
        period, the sender has slept that long and the older sample would be the same as well."""
        self.publish_counters()
        if self.now_ns >= self._sample_due_ns + SAMPLE_NS:
            self.metrics.sample(self.now_ns - SAMPLE_NS)
        self.metrics.sample(self.now_ns)
        self._sample_due_ns = self.now_ns + SAMPLE_NS

    def counter_values(self) -> dict[str, int]:
        """The counters by their published names."""
        _now, counters, *_rest = self.metrics.read()[0]
        return {name: counters[place] for place, name in enumerate(counter_names.NAMES)}

    def tell_the_rest(self, message: str) -> None:
        """At the end: tell every worker what is certain about its records."""
        told = tell_everybody(self.machine, self.store, self.workers, self.pool, message)
        if told:
            _LOG.warning("%d batches were failed: %s", told, message)

    def close(self) -> None:
        """Close sockets and threads; the pool's views are let go of."""
        self.connections.close_all()
        self.resolver.close()
        if self.store.compressor is not None:
            self.store.compressor.close()
        for batch in list(self.machine.delivery.aging):
            batch.body = None
        self.machine.delivery.aging.clear()
        self._payload.release()


_ATTRIBUTES: Final = tuple(name.replace("-", "_") for name in counter_names.COPIED_NAMES)
