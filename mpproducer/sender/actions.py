"""The vocabulary between the pure machine and the loop: events in, actions out.

Each class is a value that nobody changes (`frozen` would make them three times as dear to make, and
several are made per batch; slots they have where they are compiled). Those that are made per batch
or per request say their `__init__`: compiled code calls it as a function of C, where the one that
`dataclass` writes is interpreted even then. The loop turns what the operating system and shared
memory tell it into events, and carries actions out in the order given: that order is part of the
meaning (a `Close` stands before the `Release` of the memory its requests could still read).

Times are CLOCK_MONOTONIC nanoseconds and come in as the `now_ns` of `Machine.on_event`. A `conn`
is the number of one connection attempt and is never used again. Nodes with negative numbers are
bootstrap servers.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, TypeAlias

from mpproducer.reason import Reason
from mpproducer.sender.batch import NEVER_NS, ProducerBatch


class Kind(enum.IntEnum):
    """Fate in a completion frame (`kind` on the pipe)."""

    ACKED = 1
    NOT_WRITTEN = 2
    UNKNOWN = 3


@dataclass(init=False)
class Outcome:
    """What is told about the records [first, first + count) of a batch; becomes one frame."""

    kind: Kind
    code: int
    reason: Reason
    message: str
    first: int
    count: int
    base_offset: int
    log_append_time_ms: int

    def __init__(
        self, kind: Kind, code: int, reason: Reason, message: str, first: int = 0,
        count: int = 0, base_offset: int = -1, log_append_time_ms: int = -1,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.code = code
        self.reason = reason
        self.message = message
        self.first = first
        self.count = count
        self.base_offset = base_offset
        self.log_append_time_ms = log_append_time_ms


# --- events: batches


@dataclass(init=False)
class BatchOpened:
    """A batch with at least one record was linked to a partition; `full`: and is sealed, or has a
    newer one behind it."""

    partition_index: int
    batch_seq: int
    slot: int
    full: bool
    opened_ns: int
    """When a worker opened it: linger and delivery timeout count from then. What is later than now
    is now."""

    def __init__(
        self, partition_index: int, batch_seq: int, slot: int, full: bool = False,
        opened_ns: int = NEVER_NS,
    ) -> None:  # fmt: skip
        self.partition_index = partition_index
        self.batch_seq = batch_seq
        self.slot = slot
        self.full = full
        self.opened_ns = opened_ns


@dataclass(init=False)
class BatchFull:
    """A worker sealed the batch in this head slot."""

    slot: int

    def __init__(self, slot: int) -> None:
        self.slot = slot


@dataclass(init=False)
class BatchSealed:
    """A result of `Seal`: the batch is frozen and every record in it was validated."""

    batch: ProducerBatch
    records: int
    size_bytes: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    participants: tuple[int, ...]

    def __init__(
        self, batch: ProducerBatch, records: int, size_bytes: int, base_timestamp_ms: int,
        max_timestamp_ms: int, participants: tuple[int, ...],
    ) -> None:  # fmt: skip
        self.batch = batch
        self.records = records
        self.size_bytes = size_bytes
        self.base_timestamp_ms = base_timestamp_ms
        self.max_timestamp_ms = max_timestamp_ms
        self.participants = participants


@dataclass
class BatchEmpty:
    """A result of `Seal`: no record yet and its owner is alive; ask again later."""

    batch: ProducerBatch


@dataclass
class BatchCorrupt:
    """The bytes are not what a worker's append leaves (a result of `Seal`), or changed after the
    batch was sealed (an event)."""

    batch: ProducerBatch
    why: str
    records: int = 0


@dataclass(init=False)
class Sealed:
    """Answer to `Seal`: what became of its batches, in order. The last ones have no result, and are
    open, when those before them filled the room."""

    asked: Seal
    results: list[BatchSealed | BatchEmpty | BatchCorrupt]

    def __init__(self, asked: Seal, results: list[BatchSealed | BatchEmpty | BatchCorrupt]) -> None:
        self.asked = asked
        self.results = results


@dataclass(init=False)
class Compressed:
    """Answer to `Compress`; `size_bytes` is the size of the compressed stream."""

    batch: ProducerBatch
    size_bytes: int

    def __init__(self, batch: ProducerBatch, size_bytes: int) -> None:
        self.batch = batch
        self.size_bytes = size_bytes


@dataclass
class Part:
    """One part of a split batch, re-encoded privately by the loop."""

    first: int
    records: int
    size_bytes: int
    wire_bytes: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    body: Any


@dataclass
class SplitDone:
    """Answer to `Split`: the parts in order; the shared memory is not needed any more."""

    batch: ProducerBatch
    parts: tuple[Part, ...]


# --- events: workers and topics


@dataclass
class TopicWanted:
    """A worker needs the partitions of a topic; `topic_index` is its place in the directory."""

    name: str
    topic_index: int


@dataclass
class TopicPublished:
    """Answer to `PublishTopic`: the host-wide indices of partitions 0, 1, 2, ..."""

    name: str
    partition_indices: tuple[int, ...]


@dataclass
class FlushAsked:
    """Send everything that is here now without waiting for linger."""


@dataclass
class MemoryShort:
    """A worker is blocked for memory: nothing may linger."""


@dataclass
class WorkerJoined:
    """A worker process attached."""

    owner: int


@dataclass
class WorkerGone:
    """A worker process said goodbye or died; its batches have been reported before."""

    owner: int


@dataclass
class CloseAsked:
    """Deliver what is here until `deadline_ns`, fail the rest, then exit."""

    deadline_ns: int


@dataclass
class Tick:
    """Time passed."""


# --- events: network


@dataclass
class Resolved:
    """Answer to `Resolve`: socket addresses as opaque values, at least one."""

    node_id: int
    host: str
    addresses: tuple[Any, ...]


@dataclass
class ResolveFailed:
    """Answer to `Resolve`: the name has no address."""

    node_id: int
    host: str
    why: str


@dataclass
class Connected:
    """The stream is up (TCP, and TLS where used)."""

    conn: int


@dataclass
class ConnectFailed:
    """The connection never came up."""

    conn: int
    why: str


@dataclass
class Closed:
    """An established connection ended, or the peer broke the protocol."""

    conn: int
    why: str


@dataclass(init=False)
class Wrote:
    """The last byte of this request was handed to the socket."""

    conn: int
    correlation_id: int

    def __init__(self, conn: int, correlation_id: int) -> None:
        self.conn = conn
        self.correlation_id = correlation_id


@dataclass(init=False)
class Response:
    """A decoded response; `message` is the wire class of the request's API and version."""

    conn: int
    correlation_id: int
    message: Any

    def __init__(self, conn: int, correlation_id: int, message: Any) -> None:
        self.conn = conn
        self.correlation_id = correlation_id
        self.message = message


# --- actions: batches


@dataclass(init=False)
class Seal:
    """Freeze and validate these batches, in order, until they fill `room_bytes`, the first in any
    case; answered in the same turn. `node_id` is whose request they are for, if any."""

    batches: list[ProducerBatch]
    room_bytes: int
    node_id: int | None

    def __init__(
        self, batches: list[ProducerBatch], room_bytes: int = 0, node_id: int | None = None
    ) -> None:
        self.batches = batches
        self.room_bytes = room_bytes
        self.node_id = node_id


@dataclass(init=False)
class Compress:
    """Compress a sealed batch; answered by `Compressed` later."""

    batch: ProducerBatch

    def __init__(self, batch: ProducerBatch) -> None:
        self.batch = batch


@dataclass
class Verify:
    """The broker found a wrong CRC: compare the bytes with the CRC first sent. Answered by
    `BatchCorrupt` in the same turn when they differ, by nothing when they are unchanged."""

    batch: ProducerBatch


@dataclass
class Split:
    """Re-encode the records as batches of at most `limit_bytes` each (single records excepted)
    in private memory; answered by `SplitDone`, or `BatchCorrupt`, in the same turn."""

    batch: ProducerBatch
    limit_bytes: int


@dataclass(init=False)
class Complete:
    """Tell the participants. The outcomes cover every record of the batch, in order.

    `more`: other parts of the batch as the workers know it (it was split) are told later.
    """

    batch: ProducerBatch
    outcomes: tuple[Outcome, ...]
    more: bool

    def __init__(
        self, batch: ProducerBatch, outcomes: tuple[Outcome, ...], more: bool = False
    ) -> None:
        self.batch = batch
        self.outcomes = outcomes
        self.more = more


@dataclass(init=False)
class Release:
    """No request can read the batch any more: give its memory back."""

    batch: ProducerBatch

    def __init__(self, batch: ProducerBatch) -> None:
        self.batch = batch


# --- actions: topics


@dataclass
class PublishTopic:
    """Make the topic READY with this partition count; answered by `TopicPublished`."""

    name: str
    topic_index: int
    partition_count: int


@dataclass
class PublishTopicError:
    """Tell waiting workers why the topic has no partitions (ignored for a READY topic)."""

    topic_index: int
    code: int
    message: str


@dataclass
class PartitionAvailable:
    """The load that workers know: 0 takes no record without a key, else 1 + batches that wait."""

    partition_index: int
    available: int


# --- actions: network


@dataclass
class Resolve:
    """Look a host up off the loop."""

    node_id: int
    host: str
    port: int


@dataclass
class Connect:
    """Open connection `conn` to one address that `Resolved` gave."""

    conn: int
    node_id: int
    host: str
    address: Any


@dataclass
class Close:
    """Close the connection at once; nothing more is read from or reported for it."""

    conn: int
    why: str


@dataclass
class Request:
    """Send a request other than Produce; `message` is its wire class."""

    conn: int
    correlation_id: int
    api_key: int
    api_version: int
    message: Any


@dataclass(init=False)
class SendProduce:
    """Send one Produce request: at most one batch per partition, each with its sequence set."""

    conn: int
    correlation_id: int
    api_version: int
    acks: int
    timeout_ms: int
    batches: tuple[ProducerBatch, ...]

    def __init__(
        self, conn: int, correlation_id: int, api_version: int, acks: int, timeout_ms: int,
        batches: tuple[ProducerBatch, ...] = (),
    ) -> None:  # fmt: skip
        self.conn = conn
        self.correlation_id = correlation_id
        self.api_version = api_version
        self.acks = acks
        self.timeout_ms = timeout_ms
        self.batches = batches


@dataclass
class Exit:
    """Everything is delivered or told, and nobody is left."""

    why: str


Event: TypeAlias = (
    BatchOpened
    | BatchFull
    | Sealed
    | BatchCorrupt
    | Compressed
    | SplitDone
    | TopicWanted
    | TopicPublished
    | FlushAsked
    | MemoryShort
    | WorkerJoined
    | WorkerGone
    | CloseAsked
    | Tick
    | Resolved
    | ResolveFailed
    | Connected
    | ConnectFailed
    | Closed
    | Wrote
    | Response
)
Action: TypeAlias = (
    Seal
    | Compress
    | Verify
    | Split
    | Complete
    | Release
    | PublishTopic
    | PublishTopicError
    | PartitionAvailable
    | Resolve
    | Connect
    | Close
    | Request
    | SendProduce
    | Exit
)
