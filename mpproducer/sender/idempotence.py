"""Producer id, epoch and sequences: what makes a resend harmless (TransactionManager in Java,
its idempotent half).

The broker keeps the last five batches per producer id and partition. An exact repeat of one of
them is answered with the original offset; any other batch must continue the sequence, else it is
refused with OUT_OF_ORDER_SEQUENCE_NUMBER (45). From that follow the rules here:

1. A batch gets its sequence when it is drained, once, and keeps it over retries.
2. Retries of a partition go one at a time, lowest sequence first, and before anything new.
3. A gap that can never be filled (a sequenced batch failed for good) makes every follower fail
   with 45. The way out is a new epoch, in which sequences start at 0 again. An epoch bump is
   local: epoch + 1, no request, until 32767 is used up.
4. Under a new epoch the broker no longer recognises a repeat. So before a partition moves to it,
   every batch of unsure fate is sent once more under its *old* sequence: the answer is either
   success (it was in the log) or 45 (it was not). Only batches known not to be in the log are
   given new sequences, and only while nothing of the partition is on the wire. (Java rewrites at
   once, and can duplicate a batch whose response was lost.)
5. A batch that was told "unknown" leaves its sequence unresolved. Nothing new is drained there
   until the batches behind it are settled: one of them acknowledged proves that it was in the
   log; otherwise the epoch is bumped.
6. Other partitions keep the old epoch until nothing of theirs is pending, then start at 0.
7. A broker that knows nothing of a producer id takes *any* first sequence of it. So the first
   batch of a partition under an id and epoch goes alone until it is acknowledged: were two on the
   wire and the first refused (a new topic's leader answers 3 or 6 for a moment), the second would
   be taken, and the first would come after it under a new epoch. (Java has this hole.)

All order is taken from list positions; the two places that do arithmetic on sequences wrap.
"""

from __future__ import annotations

import enum
from typing import Final

from mpproducer.sender.batch import IN_FLIGHT, NO_SEQUENCE, QUEUED, RETRY_WAIT, ProducerBatch
from mpproducer.sender.error_table import ErrorRow, Step
from mpproducer.sender.partition import Partition

MAX_EPOCH: Final = 32767
MAX_PENDING: Final = 5  # batches per partition a broker remembers
_WRAP: Final = 0x7FFFFFFF
NO_PRODUCER_ID: Final = -1


class IdState(enum.IntEnum):
    """Where the producer id of this sender is."""

    OFF = 0  # enable.idempotence=false
    WANTED = 1
    ASKED = 2
    READY = 3


def next_sequence(sequence: int, records: int) -> int:
    """The sequence after `records` records that start at `sequence`; 0 follows 2147483647."""
    return (sequence + records) & _WRAP


def last_sequence(batch: ProducerBatch) -> int:
    """The sequence of the last record of a batch."""
    return (batch.base_sequence + batch.records - 1) & _WRAP


def is_after(sequence: int, other: int) -> bool:
    """Whether `sequence` comes after `other` in a window of half the number space (RFC 1982)."""
    return 0 < (sequence - other) & _WRAP < 1 << 30


class Idempotence:
    """The producer id of the sender and the sequence rules of every partition."""

    __slots__ = ("bumps", "epoch", "producer_id", "state")

    def __init__(self, enabled: bool) -> None:
        self.state = IdState.WANTED if enabled else IdState.OFF
        self.producer_id = NO_PRODUCER_ID
        self.epoch = -1
        self.bumps = 0

    @property
    def enabled(self) -> bool:
        """enable.idempotence."""
        return self.state is not IdState.OFF

    def received(self, producer_id: int, epoch: int) -> None:
        """InitProducerId succeeded."""
        self.producer_id = producer_id
        self.epoch = epoch
        self.state = IdState.READY

    def reset(self) -> None:
        """Ask for a new producer id; sequenced batches keep the old one until settled."""
        self.producer_id = NO_PRODUCER_ID
        self.epoch = -1
        self.state = IdState.WANTED

    # --- the drain gate

    def candidate(self, partition: Partition) -> ProducerBatch | None:
        """The batch of this partition that goes next, whether or not it may go now."""
        queue = partition.queue
        if not queue:
            return None
        if partition.bump_wanted:
            return self._to_settle(partition)
        return queue[0]

    def _to_settle(self, partition: Partition) -> ProducerBatch | None:
        """Rule 4: the next batch to send under its old sequence, lowest first.

        Sure batches before an unsure one are sent too unless the broker just refused them for
        the gap: a broker without state would take the later one first and break the order.
        """
        sequenced = partition.sequenced
        unsure = [place for place, batch in enumerate(sequenced) if batch.unsure]
        if not unsure:
            return None
        for batch in sequenced[: unsure[-1] + 1]:
            if batch.state is IN_FLIGHT:
                return None
            if batch.unsure or not batch.gapped:
                return batch
        return None

    def may_drain(self, partition: Partition, batch: ProducerBatch) -> bool:
        """Whether `candidate` may be put on the wire now."""
        if self.state is IdState.OFF:
            return True
        sequenced = partition.sequenced
        if batch.base_sequence != NO_SEQUENCE:
            if partition.bump_wanted:
                return partition.on_wire == 0
            return sequenced[0] is batch
        if self.state is not IdState.READY or partition.bump_wanted or partition.unresolved:
            return False
        if not sequenced:
            return True
        if partition.last_acked_sequence == NO_SEQUENCE:  # rule 7
            return False
        return len(sequenced) < MAX_PENDING and not self._stale(partition)

    def _stale(self, partition: Partition) -> bool:
        return partition.producer_id != self.producer_id or partition.producer_epoch != self.epoch

    def assign(self, batch: ProducerBatch) -> None:
        """Give a drained batch its sequence, once; the gate said yes."""
        if self.state is IdState.OFF or batch.base_sequence != NO_SEQUENCE:
            return
        partition = batch.partition
        if self._stale(partition):
            self._adopt(partition)
        self._number(partition, batch)
        partition.sequenced.append(batch)

    def _adopt(self, partition: Partition) -> None:
        """Start at sequence 0 under the current id and epoch."""
        partition.producer_id = self.producer_id
        partition.producer_epoch = self.epoch
        partition.next_sequence = 0
        partition.last_acked_sequence = NO_SEQUENCE
        partition.bump_wanted = False
        partition.unresolved = False

    def _number(self, partition: Partition, batch: ProducerBatch) -> None:
        batch.producer_id = partition.producer_id
        batch.producer_epoch = partition.producer_epoch
        batch.base_sequence = partition.next_sequence
        batch.gapped = False
        partition.next_sequence = next_sequence(partition.next_sequence, batch.records)

    def replace(self, batch: ProducerBatch, parts: list[ProducerBatch]) -> None:
        """A batch was split: its parts take its place and its numbers, in order."""
        if batch.base_sequence == NO_SEQUENCE:
            return
        sequenced = batch.partition.sequenced
        place = sequenced.index(batch)
        sequenced[place : place + 1] = parts
        sequence = batch.base_sequence
        for part in parts:
            part.producer_id = batch.producer_id
            part.producer_epoch = batch.producer_epoch
            part.base_sequence = sequence
            sequence = next_sequence(sequence, part.records)

    # --- answers

    def acked(self, batch: ProducerBatch, base_offset: int) -> None:
        """The batch is in the log, whether its outcome was told before or not."""
        partition = batch.partition
        self.forget(batch)
        if batch.base_sequence == NO_SEQUENCE or not self._current(batch):
            return
        last = last_sequence(batch)
        acked = partition.last_acked_sequence
        if acked == NO_SEQUENCE or is_after(last, acked):
            partition.last_acked_sequence = last
        if base_offset >= 0:
            end = base_offset + batch.records - 1
            partition.last_acked_offset = max(partition.last_acked_offset, end)

    def _current(self, batch: ProducerBatch) -> bool:
        partition = batch.partition
        return (
            batch.producer_id == partition.producer_id
            and batch.producer_epoch == partition.producer_epoch
        )

    def forget(self, batch: ProducerBatch) -> None:
        """The batch is settled: it no longer stands in the order of its partition."""
        sequenced = batch.partition.sequenced
        if batch in sequenced:
            sequenced.remove(batch)

    def refused(self, batch: ProducerBatch, row: ErrorRow, log_start_offset: int) -> None:
        """A retriable sequence error (45, 59) on a live batch: it is not in the log.

        Nothing before this batch in the sequence order may be unsettled when the epoch is
        bumped for its sake; otherwise it waits for its predecessor and is sent again.
        """
        partition = batch.partition
        batch.unsure = False
        batch.gapped = True
        first = bool(partition.sequenced) and partition.sequenced[0] is batch
        if not first or not self._current(batch):
            return
        if row.step is Step.SEQUENCE or log_start_offset != -1:
            partition.bump_wanted = True

    def failed(self, batch: ProducerBatch, unknown: bool) -> None:
        """A sequenced batch ended without an acknowledgement: its numbers are a gap, or, when
        its fate is unknown, perhaps a gap."""
        if batch.base_sequence == NO_SEQUENCE:
            return
        partition = batch.partition
        self.forget(batch)
        if not self._current(batch):
            return
        if unknown:
            partition.unresolved = True
        else:
            partition.bump_wanted = True

    # --- settling

    def settle(self, partition: Partition) -> bool:
        """Resolve what can be resolved now; returns whether the partition's gate may have
        changed. Called when a batch of the partition has left the wire or failed."""
        if partition.on_wire:
            return False
        if partition.bump_wanted:
            if any(batch.unsure for batch in partition.sequenced):
                return True
            self._bump(partition)
            return True
        if partition.unresolved and not partition.sequenced:
            self._resolve(partition)
            return True
        return False

    def _resolve(self, partition: Partition) -> None:
        acked = partition.last_acked_sequence
        if acked != NO_SEQUENCE and partition.next_sequence == (acked + 1) & _WRAP:
            partition.unresolved = False
            return
        self._bump(partition)

    def _bump(self, partition: Partition) -> None:
        """Move the partition to a newer epoch and number its pending batches from 0."""
        if self.state is IdState.READY and not self._stale(partition):
            self.bumps += 1
            if self.epoch >= MAX_EPOCH:
                self.reset()
            else:
                self.epoch += 1
        if self.state is not IdState.READY:
            # Rule 4 holds for the pending ones: none is in the log, so they may wait for the
            # new id like batches that were never sent.
            self._unnumber(partition)
            return
        self._adopt(partition)
        for batch in partition.sequenced:
            self._number(partition, batch)

    def _unnumber(self, partition: Partition) -> None:
        for batch in partition.sequenced:
            batch.base_sequence = NO_SEQUENCE
            batch.producer_id = batch.producer_epoch = -1
            batch.gapped = False
        partition.sequenced.clear()
        partition.bump_wanted = False
        partition.unresolved = False

    def check(self, partition: Partition) -> None:
        """Raise AssertionError unless the partition's sequences are what the rules say."""
        # Not always without gaps: one in the middle may have been acknowledged, or have failed.
        last: int | None = None
        for batch in partition.sequenced:
            assert batch.state in (IN_FLIGHT, RETRY_WAIT, QUEUED), batch
            assert batch.base_sequence != NO_SEQUENCE, batch
            assert last is None or is_after(batch.base_sequence, last), (last, batch)
            last = last_sequence(batch)
        order = [(batch.seq, batch.first) for batch in partition.sequenced]
        assert order == sorted(order), order
