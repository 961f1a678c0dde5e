"""One batch of one partition, from its first record to the end of its memory.

Two state machines per batch, never one. *Outcome* is what the workers are told, once. *Memory* is
who may still read the bytes. A batch that expires while a request holds it is told at once and
its memory stays LENT until the response arrives or the connection is closed; giving it back
earlier would send another topic's bytes under this request's header (KAFKA-19012).

The tables below are the whole truth about both: a transition that is not listed is a bug in the
sender and raises.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mpproducer.reason import Reason
from mpproducer.sender.bugs import IllegalTransition

if TYPE_CHECKING:
    from mpproducer.sender.partition import Partition

NO_SEQUENCE: Final = -1
SEQ_BITS: Final = 44
HEADER_BYTES: Final = 61  # record batch v2 header, before the first record
# Later than any deadline, safe to add durations to, and still an integer of one machine word where
# this is compiled.
NEVER_NS: Final = 1 << 61


class State(enum.IntEnum):
    """What is known, or was told, about a batch (ProducerBatch and its FinalState in Java)."""

    OPEN = 0
    SEALED = 1
    QUEUED = 2
    IN_FLIGHT = 3
    RETRY_WAIT = 4
    ACKED = 5
    FAILED_NOT_WRITTEN = 6
    FAILED_UNKNOWN = 7
    SPLIT = 8
    EMPTY = 9


class Memory(enum.IntEnum):
    """Who may still read the bytes of a batch."""

    HELD = 0
    LENT = 1
    RETURNABLE = 2
    FREE = 3


OPEN: Final[State] = State.OPEN
SEALED: Final[State] = State.SEALED
QUEUED: Final[State] = State.QUEUED
IN_FLIGHT: Final[State] = State.IN_FLIGHT
RETRY_WAIT: Final[State] = State.RETRY_WAIT
ACKED: Final[State] = State.ACKED
FAILED_NOT_WRITTEN: Final[State] = State.FAILED_NOT_WRITTEN
FAILED_UNKNOWN: Final[State] = State.FAILED_UNKNOWN
SPLIT: Final[State] = State.SPLIT
EMPTY: Final[State] = State.EMPTY

HELD: Final[Memory] = Memory.HELD
LENT: Final[Memory] = Memory.LENT
RETURNABLE: Final[Memory] = Memory.RETURNABLE
FREE: Final[Memory] = Memory.FREE

STATE_NEXT: Final[dict[State, tuple[State, ...]]] = {
    OPEN: (SEALED,),
    SEALED: (QUEUED, FAILED_NOT_WRITTEN, EMPTY),
    QUEUED: (IN_FLIGHT, FAILED_NOT_WRITTEN, FAILED_UNKNOWN),
    IN_FLIGHT: (ACKED, RETRY_WAIT, FAILED_NOT_WRITTEN, FAILED_UNKNOWN, SPLIT),
    RETRY_WAIT: (QUEUED, FAILED_NOT_WRITTEN, FAILED_UNKNOWN),
    ACKED: (),
    FAILED_NOT_WRITTEN: (),
    FAILED_UNKNOWN: (),
    SPLIT: (),
    EMPTY: (),
}
MEMORY_NEXT: Final[dict[Memory, tuple[Memory, ...]]] = {
    HELD: (LENT, RETURNABLE),
    LENT: (HELD, RETURNABLE),
    RETURNABLE: (FREE,),
    FREE: (),
}


def _masks(table: dict[Any, tuple[Any, ...]]) -> tuple[int, ...]:
    """The table as one bit mask per state: a check costs an index and a shift."""
    return tuple(sum(1 << int(to) for to in table[state]) for state in sorted(table))


_STATE_MASK: Final = _masks(STATE_NEXT)
_MEMORY_MASK: Final = _masks(MEMORY_NEXT)


class Doom(NamedTuple):
    """Why a batch that is still open must fail as soon as it is sealed: only then is it known
    how many records it has and whom to tell."""

    code: int
    reason: Reason
    message: str


class Parts:
    """Shared by the parts of a split batch: how many of them are not told yet."""

    __slots__ = ("untold",)

    def __init__(self, untold: int) -> None:
        self.untold = untold


class ProducerBatch:
    """A batch as the sender knows it. Owned by the machine; `body` belongs to the loop.

    `seq` counts the batches of the partition from 1; `first` is 0 for a batch as the workers
    filled it, and for a part of a split one the index its first record has in the original.
    (seq, first) orders the batches of a partition for ever, whatever their Kafka sequence
    numbers do: those wrap and are rewritten by an epoch bump.

    `unsure` is True while an attempt exists that may have been appended: it was fully handed to
    the socket and its answer is missing or does not exclude the append. It decides the fate.
    `gapped`: the last answer said that its sequence does not follow what the log has.
    """

    __slots__ = (
        "attempts",
        "backoff_until_ns",
        "base_sequence",
        "base_timestamp_ms",
        "body",
        "created_ns",
        "deadline_ns",
        "doom",
        "due",
        "first",
        "gapped",
        "leader_epoch",
        "max_timestamp_ms",
        "memory",
        "participants",
        "partition",
        "parts",
        "producer_epoch",
        "producer_id",
        "records",
        "seal_asked",
        "seq",
        "size_bytes",
        "slot",
        "state",
        "unsure",
        "wire_bytes",
    )

    def __init__(
        self,
        partition: Partition,
        seq: int,
        slot: int,
        created_ns: int,
        deadline_ns: int,
        first: int = 0,
    ) -> None:
        self.partition = partition
        self.seq = seq
        self.first = first
        self.slot = slot
        self.created_ns = created_ns
        self.deadline_ns = deadline_ns
        self.state = OPEN
        self.memory = HELD
        self.due = False
        self.seal_asked = False
        self.doom: Doom | None = None
        self.records = 0
        self.size_bytes = 0
        self.wire_bytes = 0
        self.base_timestamp_ms = 0
        self.max_timestamp_ms = 0
        self.participants: tuple[int, ...] = ()
        self.producer_id = -1
        self.producer_epoch = -1
        self.base_sequence = NO_SEQUENCE
        self.attempts = 0
        self.backoff_until_ns = 0
        self.leader_epoch = -1
        self.unsure = False
        self.gapped = False
        self.parts: Parts | None = None
        self.body: Any = None

    @property
    def batch_id(self) -> int:
        """The id workers know: partition index and batch number in one u64."""
        return self.partition.index << SEQ_BITS | self.seq

    @property
    def done(self) -> bool:
        """The outcome was told (or there is nobody to tell)."""
        return self.state >= ACKED

    def to(self, state: State) -> None:
        """Make one listed step of the outcome table; raises IllegalTransition otherwise."""
        if not _STATE_MASK[self.state] >> state & 1:
            raise IllegalTransition(f"{self!r}: {self.state.name} -> {state.name}")
        self.state = state

    def memory_to(self, memory: Memory) -> None:
        """Make one listed step of the memory table; raises IllegalTransition otherwise."""
        if not _MEMORY_MASK[self.memory] >> memory & 1:
            raise IllegalTransition(f"{self!r}: memory {self.memory.name} -> {memory.name}")
        self.memory = memory

    def __repr__(self) -> str:
        where = f"{self.partition.topic}-{self.partition.number}"
        return (
            f"<batch {where} #{self.seq}.{self.first} {self.state.name} {self.memory.name} "
            f"records={self.records} sequence={self.base_sequence} attempts={self.attempts}>"
        )
