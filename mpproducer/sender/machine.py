"""The sender as a pure state machine: events in, actions out, time as an argument.

The way of a batch: `BatchOpened` -> due by linger, size or pressure (drain.py) -> `Seal` when its
leader's connection takes a request -> `BatchSealed` -> sequence given (idempotence.py) ->
`SendProduce` -> `Response` -> `Complete` and `Release` (delivery.py).

Nothing here or below reads a clock, a socket or a random source of its own, and nothing iterates
over a set, so a run is a function of its events: the same seed gives the same actions.

The caller carries actions out in order and answers `Seal`, `Split`, `Verify` and `PublishTopic`
in the same turn, before any other event; `Compress` then or later. Timeouts fire in `Tick` only.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mpproducer.reason import Reason
from mpproducer.sender import actions, error_table, requests
from mpproducer.sender.actions import Action, Event, Exit, Release
from mpproducer.sender.batch import (
    EMPTY,
    HEADER_BYTES,
    IN_FLIGHT,
    LENT,
    NEVER_NS,
    OPEN,
    QUEUED,
    ProducerBatch,
)
from mpproducer.sender.counters import Counters
from mpproducer.sender.delivery import Delivery
from mpproducer.sender.discovery import Discovery
from mpproducer.sender.drain import Drain
from mpproducer.sender.idempotence import Idempotence
from mpproducer.sender.inflight import (
    API_INIT_PRODUCER_ID,
    API_METADATA,
    API_PRODUCE,
    API_VERSIONS,
    InFlight,
)
from mpproducer.sender.load import Load
from mpproducer.sender.metadata import Metadata
from mpproducer.sender.metrics import Recorder, Unmeasured
from mpproducer.sender.nodes import Node, Nodes
from mpproducer.sender.partition import Partition
from mpproducer.sender.retry import MS, Randomness, deadline_ns
from mpproducer.sender.timers import Timers

if TYPE_CHECKING:
    from mpproducer.config import Config


class Phase(enum.IntEnum):
    """Where the sender is in its life."""

    SERVING = 0
    CLOSING = 1  # delivers what is here, until a deadline
    EXITED = 2


class Machine:
    """One sender. Not thread-safe; owned by the loop (or by a test, or by a simulation)."""

    def __init__(
        self, config: Config, random: Randomness, now_ns: int, measure: Recorder | None = None
    ) -> None:
        self._actions: list[Action] = []
        emit = self._actions.append
        self._timeout_ms = config.delivery_timeout_ms
        self._idle_ns = config.sender_idle_ms * MS
        self.counters = Counters()
        self._measure = measure = measure or Unmeasured()
        self.timers = Timers()
        self.idempotence = Idempotence(config.enable_idempotence)
        self.nodes = Nodes(config, random, self.timers, emit, self.counters, measure, self)
        self.metadata = Metadata(config, random, emit, self.counters, self._leader_changed, now_ns)
        self.load = Load(config, self.nodes, self.metadata.partitions, self.timers, emit)
        self.drain = Drain(
            config, self.nodes, self.load, self.idempotence, self.timers, emit, self.counters,
            measure, self._leader_unknown, self._cannot_produce,
        )  # fmt: skip
        self.delivery = Delivery(
            config,
            self.drain,
            self.idempotence,
            self.metadata,
            self.timers,
            random,
            emit,
            self.counters,
            measure,
            self._fatal_error,
        )
        self.discovery = Discovery(
            config,
            self.nodes,
            self.metadata,
            self.idempotence,
            random,
            self.counters,
            self._id_received,
            self._id_refused,
        )
        self.phase = Phase.SERVING
        self.owners: dict[int, None] = {}
        self.fatal: tuple[int, Reason, str] | None = None
        self._fatal_told = False
        self._deserted_ns: int | None = None
        self._close_deadline_ns: int | None = None
        self._now_ns, self._opened_ns = now_ns, 0  # now, and when the latest batch was opened
        self._open: dict[int, ProducerBatch] = {}  # head slot -> batch not sealed yet
        self._handlers = self._by_event()
        self._sealers: dict[type[Any], Callable[[Any, int], None]] = {
            actions.BatchSealed: self._on_sealed,
            actions.BatchEmpty: self._on_empty,
            actions.BatchCorrupt: self._on_corrupt,
        }

    def _by_event(self) -> dict[type[Any], Callable[[Any, int], None]]:
        return {
            actions.BatchOpened: self._on_opened,
            actions.BatchFull: self._on_full,
            actions.Sealed: self._on_seal_answered,
            actions.BatchCorrupt: self._on_corrupt,
            actions.Compressed: self._on_compressed,
            actions.SplitDone: self._on_split_done,
            actions.TopicWanted: self._on_topic_wanted,
            actions.TopicPublished: self._on_topic_published,
            actions.FlushAsked: self._on_flush,
            actions.MemoryShort: self._on_flush,
            actions.WorkerJoined: self._on_joined,
            actions.WorkerGone: self._on_gone,
            actions.CloseAsked: self._on_close,
            actions.Tick: self._on_tick,
            actions.Resolved: self._on_resolved,
            actions.ResolveFailed: self._on_resolve_failed,
            actions.Connected: self._on_connected,
            actions.ConnectFailed: self._on_connect_failed,
            actions.Closed: self._on_closed,
            actions.Wrote: self._on_wrote,
            actions.Response: self._on_response,
        }

    def on_event(self, event: Event, now_ns: int, more: bool = False) -> list[Action]:
        """Handle one event at `now_ns` (CLOCK_MONOTONIC, never going back); returns the actions
        to carry out, in order. Raises only for bugs: the caller must then abort everything.

        `more` says that further events are at hand: requests are made up after the last of them,
        so that batches that became due together travel together."""
        self._now_ns = now_ns
        self._handlers[type(event)](event, now_ns)
        if not more:
            self._pump(now_ns)
        taken = self._actions[:]
        self._actions.clear()
        return taken

    def next_deadline_ns(self) -> int | None:
        """When `Tick` must come even if nothing happens; None: never."""
        if self.phase is Phase.EXITED:
            return None
        next_ns = min(self.discovery.next_ns(), self.timers.next_ns())
        next_ns = min(next_ns, self.drain.next_ns())
        next_ns = min(next_ns, self.delivery.next_ns())
        return min(next_ns, self._exit_ns())

    def _pump(self, now_ns: int) -> None:
        """Do what the event made possible."""
        drain = self.drain
        self._tell_fatal(now_ns)
        if self._close_deadline_ns is not None and self._close_deadline_ns <= now_ns:
            self._maybe_exit(now_ns)  # nothing more is sent that would end as unknown
        if self.phase is Phase.EXITED:
            return
        self.discovery.run(now_ns)
        if drain.poked:
            drain.run(now_ns)
            self._tell_fatal(now_ns)
        if self._deserted_ns is not None or self.phase is not Phase.SERVING:
            self._maybe_exit(now_ns)

    # --- batches

    def _on_opened(self, event: actions.BatchOpened, now_ns: int) -> None:
        partition = self.metadata.partitions[event.partition_index]
        # Not before one that came earlier: lingers and timeouts end in the order of events.
        opened_ns = self._opened_ns = max(self._opened_ns, min(event.opened_ns, now_ns))
        batch = ProducerBatch(
            partition,
            event.batch_seq,
            event.slot,
            opened_ns,
            deadline_ns(opened_ns, self._timeout_ms),
        )
        self._open[event.slot] = batch
        self.delivery.adopt(batch)
        self.metadata.used(partition.topic, now_ns)
        if self.discovery.id_blocked:
            self.discovery.unblock()
        self.drain.opened(batch, now_ns, full=event.full)
        if self.fatal is not None:
            self.delivery.fail(batch, *self.fatal, now_ns)

    def _on_full(self, event: actions.BatchFull, now_ns: int) -> None:
        batch = self._open.get(event.slot)
        if batch is not None:
            self.drain.make_due(batch, now_ns)

    def _on_seal_answered(self, event: actions.Sealed, now_ns: int) -> None:
        self.drain.seal_answered(event.asked)
        for result in event.results:
            self._sealers[type(result)](result, now_ns)

    def _on_sealed(self, event: actions.BatchSealed, now_ns: int) -> None:
        batch = event.batch
        batch.records = event.records
        batch.size_bytes = event.size_bytes
        batch.wire_bytes = HEADER_BYTES + event.size_bytes
        batch.base_timestamp_ms = event.base_timestamp_ms
        batch.max_timestamp_ms = event.max_timestamp_ms
        batch.participants = event.participants
        self._open.pop(batch.slot, None)
        must_compress = self.drain.sealed(batch)
        if not batch.records:
            batch.doom = None
            batch.to(EMPTY)
            self.delivery.drop_empty(batch)
            self.drain.removed(batch, now_ns)
            return
        if batch.doom is not None:
            self.delivery.doomed(batch, now_ns)
        elif must_compress:
            self.delivery.compress(batch)
        else:
            batch.to(QUEUED)
            self.drain.refresh(batch.partition, now_ns)

    def _on_empty(self, event: actions.BatchEmpty, now_ns: int) -> None:
        batch = event.batch
        if batch.doom is not None and self._close_overdue(now_ns):
            # Nobody to tell, and nobody to wait for: the end closes its writer's pipe.
            batch.doom = None
        elif batch.doom is not None:
            # Its age did not count: it has no record that could be late.
            batch.doom = None
            batch.created_ns = now_ns
            batch.deadline_ns = deadline_ns(now_ns, self._timeout_ms)
            self.delivery.aging[batch] = None
        self.drain.still_empty(batch, now_ns)

    def _on_corrupt(self, event: actions.BatchCorrupt, now_ns: int) -> None:
        """A worker scribbled: everybody who might have a record in there is told."""
        batch = event.batch
        self.counters.batch_corrupt_total += 1
        if batch.state is OPEN:
            self._open.pop(batch.slot, None)
            self.drain.sealed(batch)
            batch.doom = None
            batch.records = event.records
            batch.participants = tuple(self.owners)
        elif batch.state is IN_FLIGHT:
            self.delivery.split_failed(batch, event.why, now_ns)
            return
        self.delivery.fail(batch, error_table.CORRUPT_MESSAGE, Reason.CORRUPT, event.why, now_ns)

    def _on_compressed(self, event: actions.Compressed, now_ns: int) -> None:
        self.delivery.compressed(event.batch, event.size_bytes, now_ns)

    def _on_split_done(self, event: actions.SplitDone, now_ns: int) -> None:
        self.delivery.split_done(event.batch, event.parts, now_ns)

    def _on_flush(self, _event: actions.FlushAsked | actions.MemoryShort, now_ns: int) -> None:
        self.drain.all_due(now_ns)

    # --- topics

    def _on_topic_wanted(self, event: actions.TopicWanted, now_ns: int) -> None:
        self.metadata.want(event.name, event.topic_index, now_ns)

    def _on_topic_published(self, event: actions.TopicPublished, _now_ns: int) -> None:
        self.metadata.published(event.name, event.partition_indices)
        for index in event.partition_indices:
            self.load.changed(self.metadata.partitions[index])

    def _leader_changed(self, partition: Partition, epoch: int) -> None:
        self.load.changed(partition)
        self.drain.leader_changed(partition, epoch, self._now_ns)

    def _leader_unknown(self, partition: Partition) -> None:
        self.metadata.used(partition.topic, self._now_ns)
        self.metadata.request_update()

    # --- workers and the end

    def _on_joined(self, event: actions.WorkerJoined, _now_ns: int) -> None:
        self.owners[event.owner] = None
        self._deserted_ns = None
        self.drain.hurry = self.phase is not Phase.SERVING

    def _on_gone(self, event: actions.WorkerGone, now_ns: int) -> None:
        self.owners.pop(event.owner, None)
        if not self.owners:
            # Nobody can add a record: lingering would only delay the end.
            self._deserted_ns = now_ns
            self.drain.hurry = True
            self.drain.all_due(now_ns)

    def _on_close(self, event: actions.CloseAsked, now_ns: int) -> None:
        self.phase = max(self.phase, Phase.CLOSING)
        earlier = self._close_deadline_ns
        wanted = event.deadline_ns
        self._close_deadline_ns = wanted if earlier is None else min(earlier, wanted)
        self.drain.hurry = True
        if self._close_deadline_ns > now_ns:
            self.drain.all_due(now_ns)

    def _on_tick(self, _event: actions.Tick, now_ns: int) -> None:
        """Time passed. Only here do timeouts fire, so that the caller can hand over what has
        arrived before it declares anything late (a stopped process wakes with a stale clock)."""
        if self._answer_owed():
            raise AssertionError("a Seal or Split was not answered before the next Tick")
        self.timers.run(now_ns)
        self.drain.linger_over(now_ns)
        self.delivery.expire(now_ns)

    def _exit_ns(self) -> int:
        if self._close_deadline_ns is not None:
            return self._close_deadline_ns
        if self._deserted_ns is not None and not self.delivery.aging:
            return self._deserted_ns + self._idle_ns
        return NEVER_NS

    def _close_overdue(self, now_ns: int) -> bool:
        return self._close_deadline_ns is not None and self._close_deadline_ns <= now_ns

    def _maybe_exit(self, now_ns: int) -> None:
        if self.phase is Phase.EXITED or self._answer_owed():
            return
        if self.phase is Phase.CLOSING:
            if self.delivery.aging and self._close_overdue(now_ns):
                self.delivery.abort_all(
                    0, Reason.CLOSED, "the sender was closed before delivery", now_ns
                )
            if not self.delivery.aging:
                self._exit("closed", now_ns)
        elif self._deserted_ns is not None and not self.delivery.aging:
            if self._deserted_ns + self._idle_ns <= now_ns:
                self._exit("the last worker is gone and everything is told", now_ns)

    def _exit(self, why: str, now_ns: int) -> None:
        """Closing the connections ends every request, which gives the last memory back."""
        self.phase = Phase.EXITED
        self.nodes.close_all(why, now_ns)
        self._actions.append(Exit(why))

    # --- producer id and fatal errors

    def _id_received(self, now_ns: int) -> None:
        self.drain.refresh_all(list(self.metadata.partitions.values()), now_ns)

    def _id_refused(self, code: int, reason: Reason, message: str, fatal: bool) -> None:
        if fatal:
            self._fatal_error(code, reason, message)
        else:
            self.delivery.abort_undrained(code, reason, message, self._now_ns)

    def _fatal_error(self, code: int, reason: Reason, message: str) -> None:
        """No batch of this producer can succeed any more. Told at the end of the event, when the
        answers that came with it have been handed out."""
        if self.fatal is None:
            self.fatal = (code, reason, message)

    def _tell_fatal(self, now_ns: int) -> None:
        if self.fatal is not None and not self._fatal_told and not self._answer_owed():
            self._fatal_told = True
            self.delivery.abort_all(*self.fatal, now_ns)

    def _answer_owed(self) -> bool:
        """The caller still has to answer `Seal` or `Split` in this turn."""
        return bool(self.drain.seals or self.delivery.splits)

    def _cannot_produce(self, node: Node, now_ns: int) -> None:
        """Drain: the node is up and has no Produce version in common with us."""
        message = (
            f"broker {node.node_id} at {node.host}:{node.port} speaks no version of Produce that "
            "this producer does"
        )
        if self.idempotence.enabled:
            self._fatal_error(error_table.UNSUPPORTED_VERSION, Reason.FATAL, message)
            return
        for partition in list(node.ready):
            for batch in list(partition.queue):
                self.delivery.fail(
                    batch, error_table.UNSUPPORTED_VERSION, Reason.FATAL, message, now_ns
                )

    # --- network

    def _on_resolved(self, event: actions.Resolved, now_ns: int) -> None:
        self.nodes.resolved(event.node_id, event.host, event.addresses, now_ns)

    def _on_resolve_failed(self, event: actions.ResolveFailed, now_ns: int) -> None:
        self.nodes.resolve_failed(event.node_id, event.host, event.why, now_ns)

    def _on_connected(self, event: actions.Connected, now_ns: int) -> None:
        self.nodes.connected(event.conn, now_ns)

    def _on_connect_failed(self, event: actions.ConnectFailed, now_ns: int) -> None:
        self.nodes.connect_failed(event.conn, event.why, now_ns)

    def _on_closed(self, event: actions.Closed, now_ns: int) -> None:
        self.nodes.closed(event.conn, event.why, now_ns)

    def _on_wrote(self, event: actions.Wrote, now_ns: int) -> None:
        node = self.nodes.of_conn(event.conn)
        if node is None:
            return
        request = node.in_flight.wrote(event.correlation_id)
        if request is not None and not request.expects_response:
            node.in_flight.complete_last_sent()
            self.delivery.unanswered(request, now_ns)
        self._freed(node)

    def _freed(self, node: Node) -> None:
        """The in-flight queue of the node may take one more."""
        self.nodes.retire(node, self._now_ns)
        self.discovery.poke()
        if node.ready:
            self.drain.poked[node] = None
        elif node.behind:
            self.load.probe(node, self._now_ns)

    def _on_response(self, event: actions.Response, now_ns: int) -> None:
        node = self.nodes.of_conn(event.conn)
        if node is None:
            return
        request = node.in_flight.complete_next(event.correlation_id)
        if request is None:
            self.nodes.close_failed(
                node, f"response {event.correlation_id} does not match the oldest request", now_ns
            )
            return
        node.used_ns = now_ns
        counters = self.counters
        counters.response_total += 1
        message = event.message
        api_key = request.api_key
        throttle_ms = requests.throttle_ms(message)
        if throttle_ms:
            self._measure.throttled(throttle_ms)
            counters.produce_throttle_time_ms_total += throttle_ms
            if requests.client_throttles(api_key, request.api_version):
                self.nodes.throttle(node, throttle_ms, now_ns)
        if api_key == API_PRODUCE:
            self._measure.responded(node.row, now_ns - request.sent_ns)
            for node_id, host, port in message.node_endpoints:
                self.nodes.learn(node_id, host, port, now_ns)
            self.delivery.answered(request, message, now_ns)
        elif api_key == API_METADATA:
            self.discovery.metadata_answered(message, request.api_version, now_ns)
            self.drain.look_for_leaders(now_ns)
        elif api_key == API_VERSIONS:
            self.nodes.on_api_versions(node, message, request.api_version, now_ns)
        elif api_key == API_INIT_PRODUCER_ID:
            self.discovery.id_answered(message, now_ns)
        self._freed(node)

    def node_ready(self, node: Node, now_ns: int) -> None:
        """Nodes: this node may be able to take requests, or to be connected again."""
        self.discovery.wake = True
        if node.ready:
            self.drain.poked[node] = None
        elif node.behind:
            self.load.probe(node, now_ns)

    def node_lost(self, node: Node, lost: list[InFlight], code: int, now_ns: int) -> None:
        """Nodes: the connection is gone; its requests come back in send order."""
        for request in lost:
            if request.batches:
                self.delivery.lost(request, code, node.why, now_ns)
            else:
                self.discovery.lost(request, now_ns)
        if node.behind and node.retry_at_ns <= now_ns:
            self.load.drained(node)  # nothing will bring it back by itself: to be found out anew
        if lost or node.ready:
            self.metadata.request_update()
        self.discovery.wake = True
        if node.ready:
            self.drain.poked[node] = None

    def node_removed(self, node: Node, now_ns: int) -> None:
        """Nodes: the cluster has it no more; its partitions look for their leader again."""
        for partition in list(node.ready):
            self.drain.refresh(partition, now_ns)
        self.load.drained(node)

    # --- invariants

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself. Costs O(everything): for tests
        and simulation, after every event."""
        lent: dict[ProducerBatch, int] = {}
        on_wire: dict[Partition, int] = {}
        for node in self.nodes.all():
            for request in node.in_flight:
                for batch in request.batches:
                    lent[batch] = lent.get(batch, 0) + 1
                    on_wire[batch.partition] = on_wire.get(batch.partition, 0) + 1
                    assert batch.memory is LENT, batch
                    assert batch.partition.wire_node is node, batch
            for partition in node.ready:
                assert partition.ready_at is node, partition
        assert all(count == 1 for count in lent.values()), lent
        for partition in self.metadata.partitions.values():
            assert partition.on_wire == on_wire.get(partition, 0), partition
            self._check_queue(partition)
            assert partition.available == self.load.room(partition), partition
            self.idempotence.check(partition)
        self.delivery.check()
        if not self.drain.seals:
            assert self.delivery.unreleased >= len(self.delivery.aging)

    def _check_queue(self, partition: Partition) -> None:
        order = [(batch.seq, batch.first) for batch in partition.queue]
        assert order == sorted(order), order
        for batch in partition.queue:
            assert not batch.done, batch
            assert batch.state is not IN_FLIGHT, batch


__all__ = ["Machine", "Phase", "Release"]
