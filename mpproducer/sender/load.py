"""Where records without a key should not go: what workers know of the load of each partition.

KIP-794, the adaptive half. One byte per partition in shared memory, read by a worker when it moves
on to another partition: 0, no record without a key goes there, or 1 + the batches that wait. A
single batch, which is filling or about to go, is no load. A partition takes none while it has no
leader, and with `partitioner_availability_timeout_ms` while its leader is *behind*: for so long it
has had batches to take and took no request. It is again in use as soon as its leader takes one.
Java leaves a broker whose batches have all expired out for ever; here it is connected to again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mpproducer.sender.actions import Action, PartitionAvailable
from mpproducer.sender.nodes import DISCONNECTED, Node, Nodes
from mpproducer.sender.partition import NO_LEADER, Partition
from mpproducer.sender.retry import MS

if TYPE_CHECKING:
    from mpproducer.config import Config
    from mpproducer.sender.timers import Timers

MOST_ROOM: Final = 255  # what a byte holds


class Load:
    """Publishes what changes; costs nothing while no partition has two batches waiting."""

    def __init__(
        self,
        config: Config,
        nodes: Nodes,
        partitions: dict[int, Partition],
        timers: Timers,
        emit: Callable[[Action], None],
    ) -> None:
        self._adaptive = config.partitioner_adaptive_partitioning_enable
        self._timeout_ns = config.partitioner_availability_timeout_ms * MS * self._adaptive
        self._nodes = nodes
        self._partitions = partitions
        self._timers = timers
        self._emit = emit

    def room(self, partition: Partition) -> int:
        """What is to be published of the partition."""
        if partition.leader == NO_LEADER:
            return 0
        node = self._nodes.brokers.get(partition.leader)
        if node is not None and node.behind:
            return 0
        waiting = len(partition.queue)
        return min(1 + waiting, MOST_ROOM) if self._adaptive and waiting > 1 else 1

    def changed(self, partition: Partition) -> None:
        """The queue or the leader of the partition changed."""
        room = self.room(partition)
        if room != partition.available:
            partition.available = room
            self._emit(PartitionAvailable(partition.index, room))

    def blocked(self, node: Node, now_ns: int) -> None:
        """Batches are ready for the node, and it takes no request."""
        if self._timeout_ns and node.blocked_ns is None:
            node.blocked_ns = now_ns
            if not node.blocked_armed:
                self._arm(node, now_ns + self._timeout_ns)

    def _arm(self, node: Node, when_ns: int) -> None:
        node.blocked_armed = True
        self._timers.at(when_ns, self._due, node)

    def _due(self, node: Node, now_ns: int) -> None:
        node.blocked_armed = False
        if node.blocked_ns is None or node.behind:
            return
        if node.blocked_ns + self._timeout_ns > now_ns:
            self._arm(node, node.blocked_ns + self._timeout_ns)
        elif node.ready:
            node.behind = True
            self._publish(node)
        else:
            node.blocked_ns = None  # what waited has expired, or moved to another leader

    def drained(self, node: Node) -> None:
        """The node took a request, or would have."""
        node.blocked_ns = None
        if node.behind:
            node.behind = False
            self._publish(node)

    def probe(self, node: Node, now_ns: int) -> None:
        """Something happened to a node that is behind and has no batches: does it work again?"""
        if node.can_send(now_ns):
            self.drained(node)
        elif node.state is DISCONNECTED:
            self._nodes.connect(node, now_ns)

    def _publish(self, node: Node) -> None:
        for partition in self._partitions.values():
            if partition.leader == node.node_id:
                self.changed(partition)
