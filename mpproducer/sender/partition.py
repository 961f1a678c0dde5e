"""What the sender knows about one partition: its batches, its leader, its sequences."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from mpproducer.sender.batch import NO_SEQUENCE, ProducerBatch

if TYPE_CHECKING:
    from mpproducer.sender.nodes import Node

NO_LEADER = -1


class Partition:
    """One partition of one topic; `index` is its host-wide index in shared memory.

    Invariants:
    - `queue` holds the batches no request carries, in the order (seq, first): retries first,
      because they are older than everything that was never sent.
    - `sequenced` holds the batches that have a sequence and no outcome, in sequence order, on the
      wire or waiting for a retry. They are appended when drained, so the list order *is* the
      sequence order and nothing ever compares wrapping numbers.
    - `on_wire` counts the batches, told or not, that an open request of `wire_node` can still
      read. A partition is on the wire to one node at a time.
    """

    __slots__ = (
        "available",
        "bump_wanted",
        "hinted",
        "index",
        "last_acked_offset",
        "last_acked_sequence",
        "leader",
        "leader_epoch",
        "next_sequence",
        "number",
        "on_wire",
        "parked",
        "producer_epoch",
        "producer_id",
        "queue",
        "ready_at",
        "sequenced",
        "split_pending",
        "topic",
        "topic_index",
        "unresolved",
        "wire_node",
    )

    def __init__(self, topic: str, topic_index: int, number: int, index: int) -> None:
        self.topic = topic
        self.topic_index = topic_index
        self.number = number
        self.index = index
        self.leader = NO_LEADER
        self.leader_epoch = -1
        self.hinted = False  # a Produce response named this leader, no metadata yet
        self.available = 1  # as published: 0, or 1 + batches that wait (load.py)
        self.queue: deque[ProducerBatch] = deque()
        self.sequenced: list[ProducerBatch] = []
        self.on_wire = 0
        self.wire_node: Node | None = None
        self.ready_at: Node | None = None
        self.parked = False
        self.split_pending = 0
        self.producer_id = -1
        self.producer_epoch = -1
        self.next_sequence = 0
        self.last_acked_sequence = NO_SEQUENCE
        self.last_acked_offset = -1
        self.bump_wanted = False
        self.unresolved = False

    def requeue(self, batch: ProducerBatch) -> None:
        """Put a batch back, keeping the queue ordered by (seq, first)."""
        queue = self.queue
        place = 0
        key = (batch.seq, batch.first)
        for other in queue:
            if (other.seq, other.first) > key:
                break
            place += 1
        queue.insert(place, batch)

    def __repr__(self) -> str:
        return f"<partition {self.topic}-{self.number} leader={self.leader}>"
