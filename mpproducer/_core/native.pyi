"""The C core as Python sees it. `layout.h` holds the protocol of the shared words."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, final

LAYOUT_VERSION: int
LAYOUT_HASH: (
    int  # hash over version and every struct's size and offsets; differs => refuse to attach
)
SLOT_SIZE: int  # bytes of payload per slot (16384)
MAX_OWNERS: int  # 1023; owner ids are 1..MAX_OWNERS
MAX_BATCH_BYTES: int  # largest byte count a batch word can hold
MAX_BATCH_RECORDS: int
COUNTERS: int  # number of counters in CTL
TALLY_FIRST: int  # of them, the first one that workers count
TALLIES: int
NODES: int  # rows for brokers
BUCKETS: int  # of a histogram

TOPIC_WANTED: int
TOPIC_READY: int
TOPIC_ERROR: int

class CorruptBatch(Exception): ...

def segment_sizes(slots: int, max_partitions: int, max_topics: int) -> tuple[int, int]:
    """(ctl bytes, pool bytes) of the two segments for this geometry."""

def murmur2(data: bytes) -> int:
    """Java's murmur2 (seed 0x9747b28c) as an unsigned 32-bit int; mask with 0x7fffffff, then
    modulo."""

def produce_decode(
    frame: bytes | bytearray | memoryview,
    version: int,
    correlation_id: int,
    response: type[Any],
    partition: type[Any],
    error: type[Exception],
    /,
) -> Any:
    """A Produce response (v3 to v13, without its length) as `response`, a named tuple of topics,
    each (name or id, list of `partition`), throttle_time_ms and node_endpoints. Raises `error` when
    it is malformed or answers another request."""

def produce_request(
    version: int,
    correlation_id: int,
    client_id: str | None,
    acks: int,
    timeout_ms: int,
    transactional_id: str | None,
    batches: list[tuple[str | bytes, int, Body, int, int, int]],
    /,
) -> Send:
    """A Produce request (v3 to v13) of batches, each (topic, partition, body, producer id, epoch,
    base sequence); `topic` is a name, from v13 an id of 16 bytes (KIP-516). Topics go in the order
    in which they come first. `transactional_id` is None without transactions. Raises OverflowError
    for what a field of the protocol does not hold."""

_Buffer: TypeAlias = bytes | bytearray | memoryview

@final
class Body:
    """The records of a sealed batch where they are in memory, which cannot go while this is there,
    and what its header says of them."""

    size_bytes: int  # of the records, or of their compressed stream
    records: int
    crc: int  # of these bytes, CRC-32C
    attributes: int

    def __init__(
        self,
        memory: _Buffer | Pool,
        records: int,
        base_timestamp_ms: int,
        max_timestamp_ms: int,
        attributes: int = 0,
        spans: list[tuple[int, int]] = ...,
        crc: int | None = None,
    ) -> None:
        """`spans` are [(offset, length)] in `memory`; without them it is all of it. `crc` is
        computed if it is not known."""
    @property
    def pieces(self) -> list[memoryview]:
        """Views of the bytes, in order."""
    def header(self, producer_id: int, epoch: int, base_sequence: int, /) -> bytes:
        """The 61 bytes before them. No byte of the records is read."""
    def unchanged(self) -> bool:
        """Whether the bytes are still those of `crc`."""

@final
class Send:
    """Bytes on their way to one connection, from where they are: that memory cannot go until the
    last one is handed over, or this is dropped. For one thread at a time."""

    size_bytes: int
    left_bytes: int  # not handed over yet

    def __init__(self, buffers: Sequence[_Buffer]) -> None: ...
    def write_to(self, fd: int, /) -> bool:
        """Give a socket what it takes of what is left, without waiting; True when nothing is left.
        Raises OSError."""
    def peek(self, most: int, /) -> bytes:
        """A copy of the next bytes, for a connection that is no plain socket."""
    def advance(self, count: int, /) -> None:
        """So many bytes were handed over. Raises ValueError for more than are left."""

@final
class FrameReader:
    """Collects Kafka frames (i32 length, then that many bytes) from one connection. A length that
    is negative or above `max_frame_bytes` is refused before any memory is taken for it: a call
    raises `too_large`, or leaves that to the next one when whole frames came before; those count.
    """

    buffer_bytes: int
    refused: Exception | None  # behind the last frames: nothing can follow

    def __init__(self, max_frame_bytes: int, too_large: type[Exception]) -> None: ...
    def receive(self, fd: int, /) -> tuple[int, list[bytes]]:
        """Receive once from a socket, without waiting: (bytes, whole frames without their length).
        0: nothing is there; -1: the peer closed. Raises OSError."""
    def read(self, read_into: Callable[[memoryview], int], /) -> tuple[int, list[bytes]]:
        """The same of a connection that is no plain socket. Raises what `read_into` raises."""

_Frozen: TypeAlias = tuple[int, int, int, int, tuple[int, ...], Body]
"""(records, size_bytes, base_timestamp_ms, max_timestamp_ms, participants (owner ids), the bytes)
of a sealed batch."""

Histogram: TypeAlias = tuple[int, int, list[int]]
"""Sum, largest of the last 30 to 60 s (both in us), and the count of each bucket."""
NodeRow: TypeAlias = tuple[int, int, int, int, int, int, int, Histogram]
"""Id, requests, responses, bytes out, bytes in, in flight, largest request, request latency."""
Sample: TypeAlias = tuple[int, list[int], list[Histogram], list[NodeRow], list[list[int]]]
"""Taken at (CLOCK_MONOTONIC ns), counters, distributions, nodes; and per topic: records, bytes,
uncompressed bytes, batches, records retried, records failed."""
Reading: TypeAlias = tuple[Sample, Sample | None, list[str], list[int]]
"""Now, 30 to 60 s ago (None: no sample yet), topic names, peaks (batch bytes, record bytes,
throttle ms)."""

def read_metrics(ctl_fd: int, max_partitions: int, max_topics: int) -> Reading:
    """Read a control segment without attaching. Raises OSError, ValueError."""

@final
class Metrics:
    """What the sender measures: in the memory of a pool, or in its own (for tests). One thread
    writes. No call fails for a topic or node without a row: `row` -1 counts nowhere."""

    def __init__(self, max_topics: int) -> None: ...
    def drained(
        self, topic: int, records: int, wire_bytes: int, uncompressed: int, queue_ns: int, /
    ) -> None:
        """A batch went into a request; queue_ns < 0: not for the first time."""
    def acked(self, ns: int, /) -> None: ...
    def retried(self, topic: int, records: int, /) -> None: ...
    def failed(self, topic: int, records: int, /) -> None: ...
    def node(self, node_id: int, /) -> int:
        """The row of a node, its own for ever; -1 when all are taken."""
    def responded(self, row: int, ns: int, /) -> None:
        """The answer to a Produce request came."""
    def sent(self, row: int, size_bytes: int, /) -> None: ...
    def received(self, row: int, size_bytes: int, responses: int, /) -> None: ...
    def in_flight(self, row: int, requests: int, /) -> None: ...
    def throttled(self, ms: int, /) -> None: ...
    def publish(self, first: int, values: list[int], /) -> None:
        """Set the counters from place `first` on, and those that workers count."""
    def sample(self, now_ns: int, /) -> None:
        """Keep what is there now: rates and averages are counted from it later."""
    def read(self) -> Reading: ...

@final
class Pool:
    """The sender's side of the shared segments. One thread only. Supports the buffer protocol: a
    read-only view of the payload area; the offsets of spans index into it. It cannot be closed
    while there is a view of it, or a Body in it."""

    def __init__(
        self,
        ctl_fd: int,
        pool_fd: int,
        slots: int,
        max_partitions: int,
        max_topics: int,
        *,
        batch_size: int,
        max_request_size: int,
        linger_us: int,
        generation: int,
        ignore_keys: bool = False,
        compress: bool = False,
    ) -> None:
        """Formats fresh segments (of the sizes segment_sizes gave) and maps them. `compress`:
        workers compress the batches they fill."""
    def close(self) -> None: ...
    # --- batches
    def collect(
        self, everything: bool, /
    ) -> tuple[list[tuple[int, int, int, bool, int]], int, int]:
        """What workers announced since the last call, or with `everything` what there is, in the
        order of opening; how many batches have no record yet; and how often they were looked at
        since the last one came. A batch is told twice: opened, with its first record, (partition
        index, batch_seq, head slot, full, CLOCK_MONOTONIC ns of its opening), and, unless it was
        then, full (partition index, 0, head slot, True, ns). Raises CorruptBatch."""
    def freeze(self, slots: list[int], room: int) -> list[_Frozen | tuple[str, int] | None]:
        """Seal the batches in these head slots and check every record, in order, until they hold
        `room` bytes together; the first one whatever it holds. One entry for each that was tried:
        None, it has no record and its owner is alive (never seal those: they would livelock);
        (why, records), its bytes are not what an append leaves; or _Frozen, with 0 records when its
        owner died before the first. Sealed are all but those of None."""
    def release(self, slot: int) -> bool:
        """Give the batch's memory back: True if freed now, False if a stopped writer may still
        touch it (quarantined inside; freed by retry_quarantine)."""
    def retry_quarantine(self) -> int:
        """Free what can be freed by now; returns the number of batches still quarantined."""
    # --- compressed output made by the worker that filled the batch (D8); see layout.h `compress`
    # word
    def compressed(self, slot: int) -> tuple[str, int, list[tuple[int, int]]]:
        """('none', 0, []) nobody has: taken by this call, the sender compresses; ('busy', owner,
        []) a worker is at it; ('done', size_bytes, spans) its output, codec of the config;
        ('taken', 0, []) the sender has it already."""
    def take_compression(self, slot: int) -> bool:
        """Take it away from a worker that is busy (too long, or dead). True: the sender compresses;
        False: it finished meanwhile, call compressed() again."""
    # --- workers
    def owner_alive(self, owner: int, alive: bool) -> None:
        """Tell the pool that an owner id is in use (before the worker may append) or is dead/gone
        (after its pidfd fired, or its bye)."""
    def reap(self, owner: int) -> int:
        """After owner_alive(owner, False): free what the dead worker had claimed but not linked or
        committed; remove its waiter entries. Returns slots freed. Call collect(True) first."""
    def owner_reusable(self, owner: int) -> bool:
        """True when no slot carries this owner id any more."""
    # --- memory waiters and sleep
    def waiters(self) -> int: ...
    def grant(self) -> int:
        """Serve blocked writers in ticket order as far as free slots go; returns the number
        served."""
    def free_slots(self) -> int: ...
    def sleep(self, epoll_fd: int, until_ns: int) -> list[tuple[int, int]]:
        """Wait for events of an epoll until CLOCK_MONOTONIC until_ns (always finite), as workers
        see it; not at all when something is dirty or waits, or the time has come. Returns
        [(fd, mask)], empty also when a signal came."""
    @property
    def sleeps(self) -> int:
        """How often sleep() did wait."""
    # --- topic directory
    def topic_add(self, name: str) -> int:
        """Index of the topic, added in state WANTED if new. Raises OverflowError when the directory
        is full."""
    def topic_ready(self, topic: int, partition_count: int) -> list[int]:
        """Publish READY with (at least) this partition count; returns the partition indices of
        partitions 0..count-1. Raises OverflowError when max_partitions is exceeded."""
    def topic_error(self, topic: int, code: int, message: str) -> None:
        """Publish an error for a topic that is not READY (a READY topic stays so)."""
    def partition_available(self, partition_index: int, available: int) -> None:
        """Where records without a key may go: 0, not there; else 1 + batches that wait (255: or
        more)."""
    def wake_topic_waiters(self) -> None: ...
    @property
    def metrics(self) -> Metrics:
        """What this pool's CTL holds of them; usable until the pool is closed."""
    def close_region(self) -> None:
        """From now on every append and every waiter fails: the sender is shutting down."""

@final
class Attachment:
    """A worker's side of the shared segments: one per process and rendezvous. Thread-safe under the
    GIL."""

    def __init__(
        self,
        ctl_fd: int,
        pool_fd: int,
        wake_fd: int,
        completion_fd: int,
        owner: int,
        slots: int,
        max_partitions: int,
        max_topics: int,
    ) -> None:
        """Maps the segments (ctl read-only) and takes over the four fds."""
    def topic(self, name: str) -> tuple[int, int, int, str]:
        """(state or -1 when not in the directory, partition_count, error_code, message)."""
    def topic_version(self) -> int: ...
    def wait_topics(self, version: int, timeout_ns: int) -> bool:
        """Wait (GIL released, <= timeout) until the directory's version differs from `version`;
        returns whether it does. Signals are checked."""
    def drain(self) -> int:
        """Read the completion pipe without blocking, resolve batches, run callbacks; returns frames
        read. Raises nothing."""
    def wait(self, timeout_ns: int) -> bool:
        """Block (GIL released) until a completion frame was read by anybody, the sender died, or
        the timeout passed. True if anything arrived."""
    def pending(self) -> int:
        """Batches with records of this process whose outcome is not known yet."""
    def pending_ids(self) -> list[int]: ...
    def wait_for(self, batch_ids: Sequence[int], deadline_ns: int) -> int:
        """Wait until none of these batches is pending; returns how many still are at the deadline
        (CLOCK_MONOTONIC ns)."""
    def fileno(self) -> int:
        """The completion pipe, for asyncio's add_reader."""
    def set_compressor(self, compress: Callable[[list[memoryview], int], bytes] | None) -> None:
        """Called with the pieces of a batch this process has filled; returns the compressed
        stream."""
    def metrics(self) -> Reading: ...
    def waited(self, flush: bool, ns: int) -> None:
        """Count the time of a flush, or of a wait for metadata."""
    def stats(self) -> dict[str, int]:
        """This process: records appended, bytes, batches opened, races for a batch that it lost,
        how often it spread to a partition of its own and returned, lost commits, steals, waits for
        memory, and so on: the `worker-metrics` of docs/METRICS.md."""
    def forget(self) -> None:
        """After fork, in the child: unmap, close fds, fail inherited futures with WRONG_PROCESS;
        touches nothing shared."""
    def close(self) -> None:
        """Clean end: unmap and close; pending futures fail as Unknown, this process having left."""
    @property
    def owner(self) -> int: ...
    @property
    def sender_dead(self) -> bool:
        """EOF was read from the completion pipe."""
    @property
    def closed(self) -> bool: ...
    @property
    def busy(self) -> bool:
        """A thread acts under the owner id: it compresses a batch, or waits for memory. A closed
        attachment becomes idle, and stays so."""
    @property
    def callbacks(self) -> int:
        """Done-callbacks that wait for their record."""

class DeliveryFuture:
    """The outcome of one record: a reference to its batch and an index (40 bytes)."""

    def result(self, timeout: float | None = None) -> Any: ...
    def get(self, timeout: float | None = None) -> Any: ...
    def exception(self, timeout: float | None = None) -> BaseException | None: ...
    def done(self) -> bool: ...
    def cancel(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def running(self) -> bool: ...
    def add_done_callback(self, fn: Callable[[DeliveryFuture], object], /) -> None: ...
    def __await__(self) -> Any: ...
    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def batch_id(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def _attachment(self) -> Attachment | None:
        """While pending: the attachment whose pipe will bring the outcome."""

@final
class Runs:
    """Where the records of one send_many went: batch, index and count per run, and nothing per
    record but its place where records of several partitions were mixed."""

    def __len__(self) -> int: ...
    def done(self) -> bool: ...
    def wait(self, timeout: float | None, /) -> bool:
        """Whether all outcomes are known within the timeout."""
    def batches(self) -> list[DeliveryFuture]:
        """A future, without a result, of each batch that is not told yet."""
    # The rest wants all outcomes to be known.
    def failed(self) -> list[tuple[int, BaseException]]: ...
    def first_error(self) -> BaseException | None: ...
    def metadata(self) -> list[Any]:
        """RecordMetadata of each record; all were acknowledged."""
    def offsets(self) -> bytes:
        """int64 per record, -1 where it is not known."""
    def partitions(self) -> bytes:
        """int32 per record, -1 where it was not appended; known at once."""

class ProducerBase:
    """C base of mpproducer.Producer: send() and send_many() reach shared memory without a Python
    frame.  Python hooks it calls: self._attach(deadline_ns) -> Attachment (no attachment, or it is
    dead), self._want_topic(attachment, topic, partition, deadline_ns) -> None: the topic is not
    READY, or has no such partition (-1 = any); waits or raises. NotWritten errors become failed
    futures, others are raised by send()."""

    def send(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        headers: Any = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> DeliveryFuture: ...
    def send_many(
        self,
        topic: str,
        values: Any,
        keys: Any = None,
        headers: Any = None,
        partition: Any = None,
        timestamps_ms: Any = None,
    ) -> Any: ...
    _attachment: Attachment | None
    _partitioner: Callable[..., Any] | None
    _max_block_ns: int
    _closed: int  # non-zero: send() raises ClosedError
    def _attach(self, deadline_ns: int) -> Attachment: ...
    def _want_topic(
        self, attachment: Attachment, topic: str, partition: int, deadline_ns: int
    ) -> None: ...

def failed_future(topic: str, error: BaseException) -> DeliveryFuture: ...
def configure(
    *,
    metadata: Callable[[str, int, int, int], Any],
    error: Callable[[bool, int, int, str], BaseException],
    await_: Callable[[DeliveryFuture], Any],
    watch: Callable[[Attachment], None],
    batch_future: Callable[..., Any],
) -> None:
    """Python classes the core builds results with. `watch(attachment)`: first callback is pending,
    somebody must drain."""
