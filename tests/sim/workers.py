"""The workers' side: shared batches in a bounded memory, and processes that fill them and die.

The rules are those of the real accumulator as the sender sees it (`mpproducer.sender.store`): a
batch is announced with its first record, a newer batch seals the older one, an empty batch is
sealed only when its owner is dead, a commit into a sealed batch goes to the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mpproducer.sender import actions as a
from mpproducer.sender.batch import HEADER_BYTES, ProducerBatch
from mpproducer.sender.retry import MS
from tests.sim.plan import Fault
from tests.sim.world import Violation, World


@dataclass
class Record:
    """One record and what became of it."""

    number: int
    worker: int
    index: int
    size_bytes: int
    appended_ns: int = -1
    committed_ns: int = -1
    batch: Fill | None = None
    outcome: a.Outcome | None = None
    offset: int = -1
    told_ns: int = -1
    told_attempts: int = 0


@dataclass
class Fill:
    """A batch in shared memory."""

    slot: int
    index: int
    seq: int
    records: list[int] = field(default_factory=list)
    size_bytes: int = 0
    owners: dict[int, None] = field(default_factory=dict)
    sealed: bool = False
    announced: bool = False
    unborn: int | None = None  # the worker that will commit the first record, if it lives
    sent: bool = False
    scribbled: bool = False
    freed: bool = False
    told: int = 0


class Accumulator:
    """Shared memory: open batches per partition, a budget, waiters in order."""

    def __init__(self, world: World, inbox: Callable[[Any], None]) -> None:
        self.world = world
        self.inbox = inbox
        self.records: list[Record] = []
        self.fills: dict[tuple[int, int], Fill] = {}
        self.slots: dict[int, Fill] = {}
        self.tails: dict[int, Fill] = {}
        self.waiters: deque[tuple[Worker, Record]] = deque()
        self.used_bytes = 0
        self.limit_bytes = world.plan.memory_bytes
        self._free_slots: list[int] = []
        self._seqs: dict[int, int] = {}
        self._announce_ns: dict[int, int] = {}

    # --- appending

    def send(self, worker: Worker, index: int, size_bytes: int) -> Record:
        """A worker's send(): the record is placed, or its worker waits for memory."""
        record = Record(len(self.records), worker.owner, index, size_bytes)
        self.records.append(record)
        record.appended_ns = self.world.now_ns
        if self.waiters or not self._fits(record):
            self.world.hit(Fault.MEMORY_FULL)
            worker.blocked = True
            self.waiters.append((worker, record))
            self.inbox(a.MemoryShort())
            return record
        self._place(worker, record)
        return record

    def _fits(self, record: Record) -> bool:
        return self.used_bytes + record.size_bytes <= self.limit_bytes

    def grant(self) -> None:
        """Memory came back: the waiters that stand first get it."""
        while self.waiters:
            worker, record = self.waiters[0]
            if worker.alive and not self._fits(record):
                return
            self.waiters.popleft()
            if worker.alive:
                worker.blocked = False
                self._place(worker, record)

    def _place(self, worker: Worker, record: Record) -> None:
        """Commit a record to the newest batch of its partition, or to a new one."""
        fill = self.tails.get(record.index)
        room = self.world.plan.config.batch_size
        if (
            fill is None
            or fill.sealed
            or fill.unborn is not None
            or fill.size_bytes + record.size_bytes > room
        ):
            fill = self._open(record.index)
            if self.world.strikes(Fault.UNBORN_BATCH):
                fill.unborn = worker.owner
                worker.blocked = True
                wait_ns = self.world.between(0.1, 30)
                self.world.after(wait_ns, self._commit_late, worker, record, fill)
                return
        self._commit(worker, record, fill)

    def _commit_late(self, worker: Worker, record: Record, fill: Fill) -> None:
        if not worker.alive:
            return
        worker.blocked = False
        fill.unborn = None
        if fill.sealed:
            self._place(worker, record)
            return
        self._commit(worker, record, fill)

    def _commit(self, worker: Worker, record: Record, fill: Fill) -> None:
        fill.records.append(record.number)
        fill.size_bytes += record.size_bytes
        fill.owners[worker.owner] = None
        record.batch = fill
        record.committed_ns = self.world.now_ns
        self.used_bytes += record.size_bytes
        self.world.say("RECORD", record.number, "worker", worker.owner, "in", fill.index, fill.seq)
        if not fill.announced:
            self._announce(fill)
        if self.world.strikes(Fault.SCRIBBLED):
            fill.scribbled = True

    def _open(self, index: int) -> Fill:
        """Link a new batch; the one before gets no more records."""
        before = self.tails.get(index)
        seq = self._seqs[index] = self._seqs.get(index, 0) + 1
        slot = self._free_slots.pop() if self._free_slots else len(self.slots) + 1
        fill = Fill(slot, index, seq)
        self.fills[index, seq] = self.slots[slot] = self.tails[index] = fill
        if before is not None:
            if not before.announced:
                self._announce(before)
            if before.unborn is None:
                before.sealed = True
            self._tell(index, a.BatchFull(before.slot))
        return fill

    def _announce(self, fill: Fill) -> None:
        fill.announced = True
        self._tell(fill.index, a.BatchOpened(fill.index, fill.seq, fill.slot))

    def _tell(self, index: int, event: Any) -> None:
        """Announcements of a partition come in order, some late."""
        when_ns = max(self._announce_ns.get(index, 0), self.world.now_ns)
        if self.world.strikes(Fault.ANNOUNCED_LATE):
            when_ns += self.world.between(1, 100)
        self._announce_ns[index] = when_ns
        if when_ns <= self.world.now_ns:
            self.inbox(event)
        else:
            # Same time, same order: the agenda breaks ties by chance.
            self._announce_ns[index] = when_ns + 1
            self.world.at(when_ns, self.inbox, event)

    def announced(self) -> int:
        """When everything that was announced so far is known to the sender."""
        return max(self._announce_ns.values(), default=self.world.now_ns)

    # --- the sender's calls

    def seal(self, action: a.Seal, alive: dict[int, None]) -> a.Sealed:
        """Freeze batches; what `Store.seal` answers."""
        results: list[a.BatchSealed | a.BatchEmpty | a.BatchCorrupt] = []
        left = action.room_bytes
        for batch in action.batches:
            if results and left <= 0:
                break
            results.append(self._seal(batch, alive))
            if isinstance(results[-1], a.BatchSealed):
                left -= results[-1].size_bytes
        return a.Sealed(action, results)

    def _seal(self, batch: ProducerBatch, alive: dict[int, None]) -> Any:
        fill = self.fill_of(batch)
        if fill.freed or (batch.slot >= 0 and self.slots[batch.slot] is not fill):
            raise Violation(f"sealing memory that was given back: {batch}")
        if not fill.records and fill.unborn in alive:
            return a.BatchEmpty(batch)
        fill.sealed = True
        if fill.scribbled:
            self.world.say("CORRUPT", fill.index, fill.seq)
            return a.BatchCorrupt(batch, "scribbled", len(fill.records))
        batch.body = tuple(fill.records)
        return a.BatchSealed(batch, len(fill.records), fill.size_bytes, 1, 1, tuple(fill.owners))

    def fill_of(self, batch: ProducerBatch) -> Fill:
        """The memory of a batch, or of the batch that it is a part of."""
        return self.fills[batch.partition.index, batch.seq]

    def content(self, batch: ProducerBatch) -> tuple[int, ...]:
        """The records a request reads for a batch right now."""
        if batch.slot < 0:
            return tuple(batch.body)
        fill = self.slots[batch.slot]
        if fill.freed or fill is not self.fill_of(batch):
            raise Violation(f"a request reads memory that was given back: {batch}")
        return tuple(fill.records)

    def split(self, action: a.Split) -> a.SplitDone:
        """Pack the records into parts of at most the limit."""
        batch = action.batch
        parts: list[a.Part] = []
        chunk: list[int] = []
        size = first = 0
        numbers = self.content(batch)
        for number in numbers:
            record_bytes = self.records[number].size_bytes
            if chunk and size + record_bytes > action.limit_bytes:
                parts.append(self._part(first, chunk, size))
                first += len(chunk)
                chunk, size = [], 0
            chunk.append(number)
            size += record_bytes
        parts.append(self._part(first, chunk, size))
        return a.SplitDone(batch, tuple(parts))

    def _part(self, first: int, chunk: list[int], size: int) -> a.Part:
        return a.Part(first, len(chunk), size, HEADER_BYTES + size, 1, 1, tuple(chunk))

    def release(self, batch: ProducerBatch) -> None:
        """The sender gives the memory of a batch back; the slot is used again at once."""
        batch.body = None
        if batch.slot < 0:
            return
        fill = self.fill_of(batch)
        if fill.freed:
            raise Violation(f"memory given back twice: {batch}")
        if not fill.sealed:
            raise Violation(f"memory of an open batch given back: {batch}")
        fill.freed = True
        self._free_slots.append(fill.slot)
        self.used_bytes -= fill.size_bytes
        if self.tails.get(fill.index) is fill:
            del self.tails[fill.index]
        self.grant()

    # --- what workers may do wrong

    def scribble(self) -> bool:
        """A worker writes into a batch that was sent already; returns whether there is one."""
        sent = [fill for fill in self.slots.values() if fill.sent and not fill.freed]
        if sent:
            self.world.pick(sent).scribbled = True
        return bool(sent)


class Worker:
    """A process that sends records now and then, until its share is done or it dies."""

    def __init__(
        self, world: World, memory: Accumulator, owner: int, count: int, choose: Callable[[], int]
    ) -> None:
        self.world = world
        self.memory = memory
        self.owner = owner
        self.left = count
        self.choose = choose
        self.alive = True
        self.welcome = False  # sends nothing before the sender has it in its table
        self.blocked = False
        self.sent: list[Record] = []

    def start(self) -> None:
        """The process begins."""
        self.world.after(self.world.between(0, 20), self._turn)

    def _turn(self) -> None:
        """Send a few records, then rest."""
        if not self.alive or not self.left:
            return
        if self.welcome and not self.blocked:
            index = self.choose()
            for _ in range(min(self.left, 1 + self.world.rng.randrange(6))):
                if self.blocked:
                    break
                if self.world.rng.random() < 0.3:
                    index = self.choose()
                if index < 0:
                    break
                self.left -= 1
                self.send(index)
        wait_ns = self.world.rng.uniform(0.1, 2) * self.world.plan.gap_ns
        self.world.after(wait_ns + 0.1 * MS, self._turn)

    def send(self, index: int) -> Record:
        """One send()."""
        most = self.world.plan.config.batch_size
        size_bytes = self.world.rng.randrange(20, max(21, most // 2))
        record = self.memory.send(self, index, size_bytes)
        self.sent.append(record)
        return record
