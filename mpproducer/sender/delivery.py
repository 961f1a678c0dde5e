"""From an answer, or its absence, to what the workers are told and what happens to the memory.

The order of decisions is Sender.completeBatch's in Java: split, retry, duplicate, fail. A batch
whose outcome was told before its request ended ("late") only gives its memory back and updates
the sequences; nothing is told twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mpproducer.reason import Reason
from mpproducer.sender import error_table, requests, retry
from mpproducer.sender.actions import (
    Action,
    Complete,
    Compress,
    Kind,
    Outcome,
    Part,
    Release,
    Split,
    Verify,
)
from mpproducer.sender.batch import (
    ACKED,
    FAILED_NOT_WRITTEN,
    FAILED_UNKNOWN,
    FREE,
    HEADER_BYTES,
    HELD,
    IN_FLIGHT,
    LENT,
    NEVER_NS,
    NO_SEQUENCE,
    OPEN,
    QUEUED,
    RETURNABLE,
    SEALED,
    SPLIT,
    Doom,
    Parts,
    ProducerBatch,
)
from mpproducer.sender.error_table import ErrorRow, Step
from mpproducer.sender.replies import record_outcomes
from mpproducer.sender.retry import Backoff, Randomness
from mpproducer.wire.produce import PartitionResult, ProduceResponse

if TYPE_CHECKING:
    from mpproducer.config import Config
    from mpproducer.sender.counters import Counters
    from mpproducer.sender.drain import Drain
    from mpproducer.sender.idempotence import Idempotence
    from mpproducer.sender.inflight import InFlight
    from mpproducer.sender.metadata import Metadata
    from mpproducer.sender.metrics import Recorder
    from mpproducer.sender.partition import Partition
    from mpproducer.sender.timers import Timers

MISSING: Final = requests.lost(13, "the response has no entry for this partition")
_ACKED: Final = Kind.ACKED  # compiled code looks names of an enumeration up each time
_NO_REASON: Final = Reason.NONE
_NO_ANSWER: Final = PartitionResult(-1, 0, -1, -1, -1, (), None, None)


class Delivery:
    """Completes, retries, fails, expires and releases batches.

    `aging` holds every batch whose outcome is not told, oldest first: all share one delivery
    timeout, so its head is the next to expire. Parts of a split batch are older than their place
    and have timers of their own.
    """

    def __init__(
        self,
        config: Config,
        drain: Drain,
        idempotence: Idempotence,
        metadata: Metadata,
        timers: Timers,
        random: Randomness,
        emit: Callable[[Action], None],
        counters: Counters,
        measure: Recorder,
        fatal: Callable[[int, Reason, str], None],
    ) -> None:
        self._drain = drain
        self._idempotence = idempotence
        self._metadata = metadata
        self._timers = timers
        self._emit = emit
        self._counters = counters
        self._measure = measure
        self._fatal = fatal
        self._retries = config.retries
        self._batch_size = config.batch_size
        self._timeout_ms = config.delivery_timeout_ms
        self._backoff = Backoff(config.retry_backoff_ms, config.retry_backoff_max_ms, random)
        self.aging: OrderedDict[ProducerBatch, None] = OrderedDict()
        self.unreleased = 0
        self.splits = 0  # `Split` actions not answered yet

    def adopt(self, batch: ProducerBatch) -> None:
        """A batch exists from now on: it will be told one outcome and released once."""
        self.aging[batch] = None
        self.unreleased += 1
        self._counters.batch_opened_total += 1

    # --- answers

    def answered(self, request: InFlight, response: ProduceResponse, now_ns: int) -> None:
        """A Produce response: every batch of the request gets its part of it, once.

        A batch the response does not mention may be in the log: it is retried. Entries for
        partitions the request did not carry, or a second time, are ignored.
        """
        batches = request.batches
        topics = response.topics
        if len(batches) == 1 and len(topics) == 1 and len(topics[0][1]) == 1:
            result = topics[0][1][0]
            partition = batches[0].partition
            if result.partition == partition.number and topics[0][0] == partition.topic:
                self._one(batches[0], result, now_ns)
                return
        counters = self._counters
        waiting: dict[tuple[str | bytes, int], ProducerBatch] = {
            (batch.partition.topic, batch.partition.number): batch for batch in batches
        }
        for topic, results in topics:
            for result in results:
                found = waiting.pop((topic, result.partition), None)
                if found is None:
                    counters.response_entry_ignored_total += 1
                else:
                    self._one(found, result, now_ns)
        for batch in waiting.values():
            counters.response_entry_missing_total += 1
            self._one(batch, MISSING, now_ns)

    def unanswered(self, request: InFlight, now_ns: int) -> None:
        """acks=0: the request is over once it is written; nothing is known about offsets."""
        for batch in request.batches:
            self._one(batch, _NO_ANSWER, now_ns)

    def lost(self, request: InFlight, code: int, why: str, now_ns: int) -> None:
        """The connection ended before the response. A request that was not fully written
        cannot have been carried out, so it leaves no doubt behind."""
        result = requests.lost(code, why)
        for batch in request.batches:
            self._one(batch, result, now_ns, arrived=request.written)

    def _one(
        self,
        batch: ProducerBatch,
        result: PartitionResult,
        now_ns: int,
        *,
        arrived: bool = True,
    ) -> None:
        """One batch has left the wire with this result."""
        partition = batch.partition
        partition.on_wire -= 1
        if not partition.on_wire:
            partition.wire_node = None
        code = result.error_code
        if not code and not batch.done:
            self._acked(batch, result, now_ns)
        elif batch.done:
            self._late(batch, code, result)
        else:
            row = error_table.row(code)
            if arrived and not row.refused:
                batch.unsure = True
            self._refused(batch, row, result, now_ns)
        self._settle(partition, now_ns)

    def _settle(self, partition: Partition, now_ns: int) -> None:
        idempotence = self._idempotence
        if (partition.bump_wanted or partition.unresolved) and not partition.on_wire:
            idempotence.settle(partition)
            self._counters.epoch_bump_total = idempotence.bumps
        self._drain.refresh(partition, now_ns)

    def _acked(self, batch: ProducerBatch, result: PartitionResult, now_ns: int) -> None:
        if batch.base_sequence >= 0:
            self._idempotence.acked(batch, result.base_offset)
        batch.to(ACKED)
        self._counters.record_acked_total += batch.records
        self._measure.acked(now_ns - batch.created_ns)
        outcome = Outcome(
            _ACKED,
            0,
            _NO_REASON,
            "",
            batch.first,
            batch.records,
            result.base_offset,
            result.log_append_time_ms,
        )
        del self.aging[batch]
        self._tell(batch, (outcome,))
        self._free(batch)

    def _late(self, batch: ProducerBatch, code: int, result: PartitionResult) -> None:
        """The workers were told already; learn what the log has, give the memory back."""
        self._counters.late_response_total += 1
        if error_table.row(code).refresh:
            self._metadata.request_update()
        if code in (error_table.NONE, error_table.DUPLICATE_SEQUENCE_NUMBER):
            self._idempotence.acked(batch, result.base_offset)
        self._free(batch)

    def _refused(
        self, batch: ProducerBatch, row: ErrorRow, result: PartitionResult, now_ns: int
    ) -> None:
        """A live batch came back with an error."""
        if row.refresh:
            self._metadata.request_update()
            if row.code in (
                error_table.UNKNOWN_TOPIC_OR_PARTITION,
                error_table.NOT_LEADER_OR_FOLLOWER,
            ):
                self._metadata.disowned(batch.partition, batch.leader_epoch)
        leader = result.leader
        if leader is not None:
            self._metadata.hint(batch.partition, *leader)
        if row.step is Step.DUPLICATE:
            self._acked(batch, result, now_ns)
            return
        # Its parts could be there twice; without idempotence so could a retry.
        sure = not batch.unsure or not self._idempotence.enabled
        if row.step is Step.SPLIT and batch.records > 1 and sure:
            self._split(batch)
            return
        if row.step in (Step.SEQUENCE, Step.UNKNOWN_PRODUCER) and batch.base_sequence >= 0:
            self._idempotence.refused(batch, row, result.log_start_offset)
        expired = batch.deadline_ns <= now_ns
        if row.retriable and not expired and batch.attempts <= self._retries:
            self._retry(batch, row, now_ns)
            return
        message = error_table.describe(result.error_code, result.error_message)
        reason = row.reason
        if row.retriable and expired:
            reason = Reason.EXPIRED
            self._counters.batch_expired_total += 1
            message = f"{retry.expiry_message(batch, self._timeout_ms)}; last answer: {message}"
        self._end(
            batch,
            result.error_code,
            reason,
            message,
            on_wire=False,
            record_errors=result.record_errors,
        )
        self._free(batch)
        if row.step is Step.FATAL and self._idempotence.enabled:
            self._fatal(result.error_code, reason, message)

    def _retry(self, batch: ProducerBatch, row: ErrorRow, now_ns: int) -> None:
        self._counters.record_retry_total += batch.records
        self._measure.retried(batch.partition.topic_index, batch.records)
        wait_ns = self._backoff.draw_ns(batch.attempts)
        if batch.partition.leader_epoch > batch.leader_epoch >= 0:
            # A newer leader is known already: waiting for the old one's backoff is pointless.
            wait_ns = 0
        if row.code == error_table.CORRUPT_MESSAGE:
            # It stays here until the answer, which comes at this time: bytes that have changed
            # must not be on the wire when their memory is given back.
            wait_ns = max(wait_ns, 1)
            self._emit(Verify(batch))
        self._drain.back(batch, wait_ns, now_ns)

    # --- split

    def _split(self, batch: ProducerBatch) -> None:
        """Too large for the broker: halves may pass. Attempts and deadline are not touched."""
        self._counters.batch_split_total += 1
        batch.partition.split_pending += 1
        self.splits += 1
        limit = min(self._batch_size, max(1, batch.size_bytes // 2))
        self._emit(Split(batch, limit))

    def split_done(self, batch: ProducerBatch, parts: tuple[Part, ...], now_ns: int) -> None:
        """The parts stand where the original stood, with its creation time and numbers."""
        partition = batch.partition
        partition.split_pending -= 1
        self.splits -= 1
        batch.to(SPLIT)
        del self.aging[batch]
        shared = batch.parts or Parts(1)
        shared.untold += len(parts) - 1
        made = [self._part(batch, part) for part in parts]
        self._idempotence.replace(batch, made)
        for new in made:
            new.parts = shared
            self.unreleased += 1
            self.aging[new] = None
            self._timers.at(new.deadline_ns, self._part_due, new)
            self._drain.requeue(new)
        self._free(batch)
        self._drain.refresh(partition, now_ns)

    def split_failed(self, batch: ProducerBatch, why: str, now_ns: int) -> None:
        """The records cannot be read back: somebody wrote over them."""
        batch.partition.split_pending -= 1
        self.splits -= 1
        code = error_table.MESSAGE_TOO_LARGE
        self._end(batch, code, Reason.CORRUPT, why, on_wire=False)
        self._free(batch)
        self._settle(batch.partition, now_ns)

    def _part_due(self, batch: ProducerBatch, now_ns: int) -> None:
        if not batch.done:
            self._expire_one(batch, now_ns)

    def _part(self, batch: ProducerBatch, part: Part) -> ProducerBatch:
        new = ProducerBatch(
            batch.partition,
            batch.seq,
            -1,
            batch.created_ns,
            batch.deadline_ns,
            first=batch.first + part.first,
        )
        new.records = part.records
        new.size_bytes = part.size_bytes
        new.wire_bytes = part.wire_bytes
        new.base_timestamp_ms = part.base_timestamp_ms
        new.max_timestamp_ms = part.max_timestamp_ms
        new.participants = batch.participants
        new.unsure = batch.unsure
        new.body = part.body
        new.due = True
        new.to(SEALED)
        new.to(QUEUED)
        return new

    # --- ends

    def fail(
        self, batch: ProducerBatch, code: int, reason: Reason, message: str, now_ns: int
    ) -> None:
        """End a batch wherever it is: open, queued, or on the wire.

        An open batch is sealed first. A batch on the wire is told UNKNOWN now and keeps its
        memory, and its partition its place, until the request ends.
        """
        if batch.done or batch.doom is not None:
            return
        if batch.state is OPEN:
            batch.doom = Doom(code, reason, message)
            self.aging.pop(batch, None)
            if not batch.seal_asked:
                self._drain.ask_seal([batch])
            self._drain.refresh(batch.partition, now_ns)
            return
        if batch.state is IN_FLIGHT:
            self._end(batch, code, reason, message, on_wire=True)
            # Its sequence is unresolved now: nothing new may go.
            self._drain.refresh(batch.partition, now_ns)
            return
        self._end(batch, code, reason, message, on_wire=False)
        if batch.memory is HELD:
            self._free(batch)
        self._drain.removed(batch, now_ns)
        self._settle(batch.partition, now_ns)

    def doomed(self, batch: ProducerBatch, now_ns: int) -> None:
        """A batch that had to fail while open is sealed now."""
        doom, batch.doom = batch.doom, None
        if doom is not None:
            message = doom.message or retry.expiry_message(batch, self._timeout_ms)
            self.fail(batch, doom.code, doom.reason, message, now_ns)

    def _end(
        self,
        batch: ProducerBatch,
        code: int,
        reason: Reason,
        message: str,
        *,
        on_wire: bool,
        record_errors: Any = (),
    ) -> None:
        """Tell the workers that the batch failed, and what its numbers leave behind."""
        outcome = retry.failure(batch, code, reason, message, on_wire=on_wire)
        unknown = outcome.kind is Kind.UNKNOWN
        batch.to(FAILED_UNKNOWN if unknown else FAILED_NOT_WRITTEN)
        counters = self._counters
        counters.failed(reason, batch.records)
        self._measure.failed(batch.partition.topic_index, batch.records)
        if unknown:
            counters.record_unknown_total += batch.records
        else:
            counters.record_not_written_total += batch.records
        self._idempotence.failed(batch, unknown)
        self.aging.pop(batch, None)
        outcomes = record_outcomes(outcome, record_errors) if record_errors else (outcome,)
        self._tell(batch, outcomes)

    def _tell(self, batch: ProducerBatch, outcomes: tuple[Outcome, ...]) -> None:
        parts = batch.parts
        if parts is None:
            self._emit(Complete(batch, outcomes))
            return
        parts.untold -= 1
        self._emit(Complete(batch, outcomes, more=parts.untold > 0))

    def _free(self, batch: ProducerBatch) -> None:
        """The one place that gives memory back: nothing reads the batch any more."""
        batch.memory_to(RETURNABLE)
        batch.memory_to(FREE)
        self.unreleased -= 1
        self._emit(Release(batch))

    # --- compression

    def compress(self, batch: ProducerBatch) -> None:
        """Lend the batch to a compressor."""
        batch.memory_to(LENT)
        self._emit(Compress(batch))

    def compressed(self, batch: ProducerBatch, size_bytes: int, now_ns: int) -> None:
        """The compressor has finished; the batch may have expired meanwhile."""
        if batch.done:
            self._free(batch)
            return
        batch.memory_to(HELD)
        batch.to(QUEUED)
        batch.wire_bytes = HEADER_BYTES + size_bytes
        self._counters.compression_bytes_in_total += batch.size_bytes
        self._counters.compression_bytes_out_total += size_bytes
        self._drain.refresh(batch.partition, now_ns)

    def drop_empty(self, batch: ProducerBatch) -> None:
        """A batch without records (its writer died before the first): nobody to tell."""
        self._counters.batch_empty_total += 1
        self.aging.pop(batch, None)
        self._free(batch)

    # --- time

    def expire(self, now_ns: int) -> None:
        """End every batch whose delivery timeout has passed, whatever it waits for."""
        while self.next_ns() <= now_ns:
            self._expire_one(next(iter(self.aging)), now_ns)

    def _expire_one(self, batch: ProducerBatch, now_ns: int) -> None:
        self._counters.batch_expired_total += 1
        message = ""
        if batch.state is not OPEN:
            message = retry.expiry_message(batch, self._timeout_ms)
        self.fail(batch, 0, Reason.EXPIRED, message, now_ns)

    def next_ns(self) -> int:
        """When the oldest batch expires, or NEVER_NS."""
        for batch in self.aging:  # not `next`, which compiled code looks up by its name
            return batch.deadline_ns
        return NEVER_NS

    def abort_all(self, code: int, reason: Reason, message: str, now_ns: int) -> None:
        """End every batch now (fatal error, forced close)."""
        for batch in list(self.aging):
            self.fail(batch, code, reason, message, now_ns)

    def abort_undrained(self, code: int, reason: Reason, message: str, now_ns: int) -> None:
        """End what was never sent. Batches that have a sequence may still succeed."""
        for batch in list(self.aging):
            if batch.state is not IN_FLIGHT and batch.base_sequence == NO_SEQUENCE:
                self.fail(batch, code, reason, message, now_ns)

    def check(self) -> None:
        """Raise AssertionError unless every untold batch is somewhere it can still move from."""
        for batch in self.aging:
            queued = batch in batch.partition.queue
            on_wire = batch.state is IN_FLIGHT
            assert queued != on_wire, batch
            lent = on_wire or batch.state is SEALED
            assert (batch.memory is LENT) == lent, batch
