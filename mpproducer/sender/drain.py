"""Which batches go to which node, and when (RecordAccumulator.ready and drain in Java).

Cost follows what is due. A partition stands in the `ready` queue of its leader from the moment
its next batch may be sent until it is drained; a partition that waits for linger or backoff costs
one timer entry, a blocked one costs nothing until the event that unblocks it calls `refresh`.

The queue of a node is its rotation: a drained partition that has more goes to the end, one that
did not fit stays in front and goes first next time. A blocked partition never stops its node.

Open batches are sealed only when their node takes a request, so that they go on filling while it
is busy. With compression they are sealed as soon as they are due, up to PREPARED per partition,
so that the compressors work while requests are in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Final

from mpproducer.sender.actions import Action, Seal, SendProduce
from mpproducer.sender.batch import (
    HEADER_BYTES,
    HELD,
    IN_FLIGHT,
    LENT,
    NEVER_NS,
    NO_SEQUENCE,
    OPEN,
    QUEUED,
    RETRY_WAIT,
    SEALED,
    ProducerBatch,
)
from mpproducer.sender.idempotence import Idempotence
from mpproducer.sender.inflight import API_PRODUCE
from mpproducer.sender.load import Load
from mpproducer.sender.nodes import READY, Node, Nodes
from mpproducer.sender.partition import Partition
from mpproducer.sender.retry import MS

if TYPE_CHECKING:
    from mpproducer.config import Config
    from mpproducer.sender.counters import Counters
    from mpproducer.sender.metrics import Recorder
    from mpproducer.sender.timers import Timers

PREPARED: Final = 2  # sealed batches per partition that compression may run ahead
SEALED_AT_ONCE: Final = 512  # a bound on what is looked at again after each answer
_EMPTY_RETRY_NS: Final = MS  # an empty batch is asked again after this


class Drain:
    """Readiness of every partition and the picking of batches for requests."""

    def __init__(
        self,
        config: Config,
        nodes: Nodes,
        load: Load,
        idempotence: Idempotence,
        timers: Timers,
        emit: Callable[[Action], None],
        counters: Counters,
        measure: Recorder,
        leader_unknown: Callable[[Partition], None],
        cannot_produce: Callable[[Node, int], None],
    ) -> None:
        self._nodes = nodes
        self._load = load
        self._idempotence = idempotence
        self._timers = timers
        self._emit = emit
        self._counters = counters
        self._measure = measure
        self._leader_unknown = leader_unknown
        self._cannot_produce = cannot_produce
        self._linger_ns = config.linger_ms * MS
        self._max_request_size = config.max_request_size
        self._mute = config.max_in_flight_requests_per_connection == 1
        self._acks = config.acks
        self._timeout_ms = config.request_timeout_ms
        self._compress = config.compression_type != "none"
        self._lingering: deque[tuple[int, ProducerBatch]] = deque()
        self.hurry = False  # nothing may linger: closing, or nobody is left to add records
        self.poked: dict[Node, None] = {}
        self.parked: dict[Partition, None] = {}
        self.seals = 0

    # --- becoming due

    def opened(self, batch: ProducerBatch, now_ns: int, *, full: bool = False) -> None:
        """A batch got its first record."""
        partition = batch.partition
        partition.queue.append(batch)
        if len(partition.queue) > 1:
            self._load.changed(partition)
        due_ns = batch.created_ns + self._linger_ns
        if full or self.hurry or due_ns <= now_ns:
            batch.due = True
        else:
            self._lingering.append((due_ns, batch))
        if batch.due or len(partition.queue) > 1:
            self.refresh(partition, now_ns)

    def make_due(self, batch: ProducerBatch, now_ns: int) -> None:
        """The batch is full: it does not wait for linger."""
        if not batch.due:
            batch.due = True
            self.refresh(batch.partition, now_ns)

    def all_due(self, now_ns: int) -> None:
        """Flush, memory pressure, close: no batch that is here lingers any longer."""
        lingering = self._lingering
        while lingering:
            self.make_due(lingering.popleft()[1], now_ns)

    def linger_over(self, now_ns: int) -> None:
        """Make due what has lingered long enough, and what has lingered a quarter as long with
        it: a request costs the same whatever it carries. (Java's drain takes every batch of the
        node, which costs batches that have just been opened their records.) What is left behind
        needs a request of its own within a linger: at half as long, many processes that send
        evenly made half as many requests again as one that sends in bursts."""
        lingering = self._lingering
        until_ns = now_ns
        while lingering and lingering[0][0] <= until_ns:
            due_ns, batch = lingering.popleft()
            if batch.state is OPEN and not batch.due:
                if due_ns <= now_ns:
                    until_ns = now_ns + self._linger_ns * 3 // 4
                self.make_due(batch, now_ns)

    def next_ns(self) -> int:
        """When the next batch has lingered long enough, or NEVER_NS."""
        lingering = self._lingering
        while lingering:
            due_ns, batch = lingering[0]
            if batch.state is OPEN and not batch.due:
                return due_ns
            lingering.popleft()
        return NEVER_NS

    # --- readiness

    def refresh(self, partition: Partition, now_ns: int) -> None:
        """Put the partition where it belongs now: in the ready queue of its leader, or nowhere.

        Called after every change of its queue, its wire, its leader, its sequences, or time.
        """
        if not partition.queue and partition.ready_at is None:
            return
        batch = self._idempotence.candidate(partition)
        node = None
        if self._compress and partition.queue:
            self._prepare(partition, now_ns)
        if batch is not None and self._due(partition, batch, now_ns):
            node = self._leader_node(partition, batch)
        before = partition.ready_at
        if node is not before:
            if before is not None:
                before.ready.pop(partition, None)
            partition.ready_at = node
            if node is not None:
                node.ready[partition] = None
        if node is not None:
            self.poked[node] = None

    def _due(self, partition: Partition, batch: ProducerBatch, now_ns: int) -> bool:
        state = batch.state
        if state is OPEN:
            if batch.seal_asked or batch.backoff_until_ns > now_ns:
                return False
            if not batch.due:
                if len(partition.queue) < 2:
                    return False
                batch.due = True
            return not self._compress and batch.doom is None
        if state is QUEUED:
            return True
        return state is RETRY_WAIT and batch.backoff_until_ns <= now_ns

    def _leader_node(self, partition: Partition, batch: ProducerBatch) -> Node | None:
        """The node that may get the partition's next batch now."""
        node = self._nodes.brokers.get(partition.leader)
        if node is None:
            if not partition.parked:
                partition.parked = True
                self.parked[partition] = None
            self._leader_unknown(partition)
            return None
        if partition.split_pending:
            return None
        if partition.on_wire and (self._mute or partition.wire_node is not node):
            # Muted, or the old leader still has batches of it: order needs their answer first.
            return None
        return node if self._idempotence.may_drain(partition, batch) else None

    def _prepare(self, partition: Partition, now_ns: int) -> None:
        """With compression: seal due batches ahead of the node."""
        queue = partition.queue
        ahead = 0
        for place, batch in enumerate(islice(queue, PREPARED + 8)):
            if batch.state is OPEN:
                due = batch.due or place + 1 < len(queue)
                waits = batch.seal_asked or batch.backoff_until_ns > now_ns
                if not due or waits or ahead >= PREPARED:
                    return
                batch.due = True
                self.ask_seal([batch])
            if batch.base_sequence == NO_SEQUENCE:
                ahead += 1

    def ask_seal(
        self, batches: list[ProducerBatch], room_bytes: int = 0, node: Node | None = None
    ) -> None:
        """Have batches frozen; the answer comes in this turn."""
        for batch in batches:
            batch.seal_asked = True
        self.seals += 1
        if node is None:
            self._emit(Seal(batches))
        else:
            node.sealing = True
            self._emit(Seal(batches, room_bytes, node.node_id))

    def seal_answered(self, asked: Seal) -> None:
        """The loop answered `Seal`: the node it was for goes on."""
        self.seals -= 1
        for batch in asked.batches:
            batch.seal_asked = False
        node = None if asked.node_id is None else self._nodes.get(asked.node_id)
        if node is not None:
            node.sealing = False
            self.poked[node] = None

    def _look_again(self, batch: ProducerBatch, now_ns: int) -> None:
        if batch.state is OPEN:
            batch.due = True
            self.refresh(batch.partition, now_ns)

    def still_empty(self, batch: ProducerBatch, now_ns: int) -> None:
        """The batch has no record yet: leave it open and look again shortly, not at once, even
        if newer ones stand behind it (its writer may be stopped for long)."""
        batch.due = False
        batch.backoff_until_ns = now_ns + _EMPTY_RETRY_NS
        self._timers.at(batch.backoff_until_ns, self._look_again, batch)
        self.refresh(batch.partition, now_ns)

    def look_for_leaders(self, now_ns: int) -> None:
        """The cluster's brokers may have changed: partitions whose leader was none of them."""
        for partition in list(self.parked):
            self.unpark(partition)
            self.refresh(partition, now_ns)

    def unpark(self, partition: Partition) -> None:
        """The partition's leader changed, or may be known now."""
        if partition.parked:
            partition.parked = False
            self.parked.pop(partition, None)

    # --- draining

    def run(self, now_ns: int) -> None:
        """Fill requests for every node something happened to."""
        poked = self.poked
        while poked:
            for node in poked:
                del poked[node]
                self._fill(node, now_ns)
                break  # by now it may hold others

    def _fill(self, node: Node, now_ns: int) -> None:
        """Send due batches, one per partition, as one request.

        Open ones are sealed first, as many as may fit: only then is their size known, and what
        stands behind them waits its turn. A batch larger than max.request.size goes alone.
        """
        if node.sealing or not node.ready:
            return
        if not node.can_send(now_ns):
            self._load.blocked(node, now_ns)
            if node.state is not READY:
                self._nodes.connect(node, now_ns)
            return
        if node.produce_version < 0:
            self._cannot_produce(node, now_ns)
            return
        going: list[ProducerBatch] = []
        still_open: list[ProducerBatch] = []
        moved: list[Partition] = []
        size = 0
        for partition in node.ready:
            batch = self._idempotence.candidate(partition)
            if batch is None or not self._still_may(partition, batch, node):
                moved.append(partition)
            elif batch.state is OPEN:
                still_open.append(batch)
                if len(still_open) == SEALED_AT_ONCE:
                    break
            elif not still_open:
                if going and size + batch.wire_bytes > self._max_request_size:
                    break
                going.append(batch)
                size += batch.wire_bytes
        for partition in moved:
            self.refresh(partition, now_ns)
        if still_open and size < self._max_request_size:
            self.ask_seal(still_open, self._max_request_size - size, node)
        elif going:
            self._send(node, tuple(going), now_ns)

    def _still_may(self, partition: Partition, batch: ProducerBatch, node: Node) -> bool:
        """Whether the batch may go to this node now. Since its partition became ready, another one
        may have moved the producer to a new epoch, or an answer may have named another leader."""
        return self._leader_node(partition, batch) is node

    def _send(self, node: Node, batches: tuple[ProducerBatch, ...], now_ns: int) -> None:
        for batch in batches:
            partition = batch.partition
            queue = partition.queue
            if queue[0] is batch:
                queue.popleft()
            else:
                queue.remove(batch)
            if partition.available > 1:
                self._load.changed(partition)
            self._idempotence.assign(batch)
            if batch.state is RETRY_WAIT:
                batch.to(QUEUED)
            batch.to(IN_FLIGHT)
            batch.memory_to(LENT)
            batch.attempts += 1
            batch.leader_epoch = partition.leader_epoch
            del node.ready[partition]
            partition.ready_at = None
            partition.on_wire += 1
            partition.wire_node = node
            fresh = batch.attempts == 1 and batch.parts is None
            self._measure.drained(
                partition.topic_index,
                batch.records,
                batch.wire_bytes,
                HEADER_BYTES + batch.size_bytes,
                now_ns - batch.created_ns if fresh else -1,
            )
        if node.blocked_ns is not None:
            self._load.drained(node)
        self._counters.produce_request_total += 1
        version = node.produce_version
        request = self._nodes.register(node, API_PRODUCE, version, None, batches, now_ns)
        request.expects_response = self._acks != 0
        self._emit(
            SendProduce(
                node.conn,
                request.correlation_id,
                version,
                self._acks,
                self._timeout_ms,
                batches,
            )
        )
        for batch in batches:
            if batch.partition.queue:
                self.refresh(batch.partition, now_ns)

    def removed(self, batch: ProducerBatch, now_ns: int) -> None:
        """A queued batch got its outcome without being sent: take it out of its queue."""
        partition = batch.partition
        partition.queue.remove(batch)
        self._load.changed(partition)
        self.refresh(partition, now_ns)

    def requeue(self, batch: ProducerBatch) -> None:
        """Put a retry, or a part of a split batch, into its place in the queue."""
        batch.partition.requeue(batch)
        self._load.changed(batch.partition)

    def back(self, batch: ProducerBatch, wait_ns: int, now_ns: int) -> None:
        """A batch returns for another attempt after `wait_ns`."""
        batch.to(RETRY_WAIT)
        batch.memory_to(HELD)
        batch.backoff_until_ns = now_ns + wait_ns
        self.requeue(batch)
        if wait_ns:
            self._timers.at(batch.backoff_until_ns, self._backoff_over, batch)

    def _backoff_over(self, batch: ProducerBatch, now_ns: int) -> None:
        if batch.state is RETRY_WAIT:
            self.refresh(batch.partition, now_ns)

    def leader_changed(self, partition: Partition, epoch: int, now_ns: int) -> None:
        """A newer leader epoch cancels the backoff of the current attempt, once (KIP-951)."""
        self.unpark(partition)
        for batch in partition.queue:
            if batch.state is OPEN:
                break
            waits = batch.state is RETRY_WAIT
            if waits and epoch > batch.leader_epoch:
                batch.backoff_until_ns = now_ns
        self.refresh(partition, now_ns)

    def refresh_all(self, partitions: list[Partition], now_ns: int) -> None:
        """Something global changed (producer id): look at every partition with batches."""
        for partition in partitions:
            if partition.queue:
                self.refresh(partition, now_ns)

    def sealed(self, batch: ProducerBatch) -> bool:
        """The batch was frozen; returns whether it must be compressed before it can go."""
        batch.to(SEALED)
        return self._compress
