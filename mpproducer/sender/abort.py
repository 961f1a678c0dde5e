"""The last words of a sender that ends: every batch gets the most that is certain about it.

After a crash that is all there is. After an end in order it is what a worker appended between the
last look at shared memory and the closing of the region.

Never sent, or refused each time: NOT_WRITTEN, the application may send it again. Anything else:
UNKNOWN. Batches the crash took out of the tables meanwhile are covered by the closed pipes, which
workers read as UNKNOWN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mpproducer.reason import Reason
from mpproducer.sender import actions
from mpproducer.sender.actions import Complete, Kind, Outcome
from mpproducer.sender.batch import IN_FLIGHT, OPEN, ProducerBatch
from mpproducer.sender.partition import Partition

if TYPE_CHECKING:
    from mpproducer.sender.machine import Machine
    from mpproducer.sender.store import Store
    from mpproducer.sender.workers import Workers

CRASHED: Final = "the host's sender process crashed"
ENDED: Final = "the host's sender process has ended"


def tell_everybody(
    machine: Machine, store: Store, workers: Workers, pool: Any, message: str
) -> int:
    """Complete every batch that is not told; returns how many. The region is closed first, so
    that no record can be added to a batch that is told NOT_WRITTEN."""
    pool.close_region()
    told = 0
    try:
        for batch in list(machine.delivery.aging):
            told += _tell(batch, store, workers, message)
        for event in store.collect_all():
            if isinstance(event, actions.BatchOpened):
                partition = Partition("", -1, -1, event.partition_index)
                batch = ProducerBatch(partition, event.batch_seq, event.slot, 0, 0)
                told += _tell(batch, store, workers, message)
    finally:
        # What ended the sender may be what cannot be read here either: that is for the caller. The
        # others are told.
        workers.flush()
    return told


def _tell(batch: ProducerBatch, store: Store, workers: Workers, message: str) -> int:
    if batch.state is OPEN:
        (sealed,) = store.seal(actions.Seal([batch])).results
        if not isinstance(sealed, actions.BatchSealed) or not sealed.records:
            return 0
        batch.records = sealed.records
        batch.participants = sealed.participants
    kind = Kind.UNKNOWN if batch.unsure or batch.state is IN_FLIGHT else Kind.NOT_WRITTEN
    outcome = Outcome(kind, 0, Reason.SENDER_DIED, message, batch.first, batch.records)
    more = batch.parts is not None and batch.parts.untold > 1
    if batch.parts is not None:
        batch.parts.untold -= 1
    workers.complete(Complete(batch, (outcome,), more))
    return 1
