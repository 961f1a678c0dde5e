"""Shared memory as the loop uses it: finding new batches, freezing, compressing, giving back.

The machine knows batches; `Pool` knows slots. This is the only place where the two meet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from mpproducer._core import native
from mpproducer.sender import actions, codec
from mpproducer.sender.actions import Event
from mpproducer.sender.batch import ProducerBatch
from mpproducer.sender.compressor import Compressor
from mpproducer.wire import compression, record_batch

if TYPE_CHECKING:
    from mpproducer.config import Config
    from mpproducer.sender.counters import Counters

# A worker that compresses its own batch is left alone this long; then the sender does it.
_WORKER_COMPRESSES_NS: Final = 20_000_000
# Smaller batches are compressed on the loop: handing them to a thread costs more than the work.
_COMPRESS_HERE_BYTES: Final = compression.SMALL_BYTES
# A batch without a record is looked at again this soon, then after twice as long, and so on: its
# writer is about to commit, and may only wait for the processor that this process runs on.
_FIRST_LOOK_NS: Final = 20_000
_SOON_NS: Final = 1_000_000
_UNBORN_LOOKS: Final = 50  # then only the loop's regular look at everything finds the record


class PoolLike(Protocol):
    """The part of `_core.native.Pool` this module uses."""

    def collect(
        self, everything: bool, /
    ) -> tuple[list[tuple[int, int, int, bool, int]], int, int]: ...
    def freeze(self, slots: list[int], room: int, /) -> list[Any]: ...
    def release(self, slot: int, /) -> bool: ...
    def compressed(self, slot: int, /) -> tuple[str, int, list[tuple[int, int]]]: ...
    def take_compression(self, slot: int, /) -> bool: ...


class Store:
    """The batches of one pool, partition by partition."""

    def __init__(
        self,
        config: Config,
        pool: PoolLike,
        payload: memoryview,
        corrupt_error: type[Exception],
        counters: Counters,
        wake: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._payload = payload
        self._corrupt_error = corrupt_error
        self._counters = counters
        self._codec = config.compression_type
        self._level = config.compression_level
        self._attributes: int = record_batch.CODECS.index(self._codec)
        self._small: Callable[[Any], bytes] | None = None  # on the loop; made with its first batch
        self._batch_size = config.batch_size
        self._unborn = 0  # batches that are linked, but have no record yet
        self._busy: dict[ProducerBatch, int] = {}  # compressed by a worker -> since when
        self._looks = 0  # since the last of them was first seen
        self.quarantined = False
        self.compressor: Compressor | None = None
        if self._codec != "none":
            self.compressor = Compressor(self._compress_pieces, wake)

    # --- finding

    def collect(self) -> list[Event]:
        """What workers announced since the last call."""
        return self._collect(False)

    def collect_all(self) -> list[Event]:
        """Look at every partition ever used: a worker may have died, or stopped, between its
        commit and its announcement."""
        return self._collect(True)

    def _collect(self, everything: bool) -> list[Event]:
        found, self._unborn, self._looks = self._pool.collect(everything)
        events: list[Event] = []
        for index, seq, slot, full, opened_ns in found:
            if seq:
                events.append(actions.BatchOpened(index, seq, slot, full, opened_ns))
            else:
                events.append(actions.BatchFull(slot))
        return events

    # --- freezing

    def seal(self, action: actions.Seal) -> actions.Sealed:
        """Freeze batches and check every record in them."""
        batches = action.batches
        slots = [batch.slot for batch in batches]
        # Shorter than what was asked for when the room was filled before.
        found = self._pool.freeze(slots, action.room_bytes)
        results = [self._sealed(batches[place], found[place]) for place in range(len(found))]
        return actions.Sealed(action, results)

    def _sealed(
        self, batch: ProducerBatch, found: Any
    ) -> actions.BatchSealed | actions.BatchEmpty | actions.BatchCorrupt:
        if found is None:
            return actions.BatchEmpty(batch)
        if len(found) == 2:
            return actions.BatchCorrupt(batch, *found)
        records, size, base_ms, max_ms, participants, batch.body = found
        return actions.BatchSealed(batch, records, size, base_ms, max_ms, participants)

    def verify(self, batch: ProducerBatch) -> Event | None:
        """After a CRC error: did the bytes change since they were first sent?"""
        if batch.body is None or codec.unchanged(batch):
            return None
        return actions.BatchCorrupt(batch, "the batch changed in memory after it was sent")

    def split(self, action: actions.Split) -> Event:
        """Re-encode the records privately, in pieces; the shared memory can go afterwards."""
        batch = action.batch
        try:
            parts = codec.split(batch, action.limit_bytes, self._codec, self._level)
        except codec.DecodeError as error:
            return actions.BatchCorrupt(batch, f"the batch changed in memory: {error}")
        return actions.SplitDone(batch, parts)

    # --- compression

    def compress(self, batch: ProducerBatch, now_ns: int) -> Event | None:
        """Take the stream a worker made, or have one made."""
        state, spans = self._stream(batch)
        if state == "done":
            return self._compressed(batch, self._payload[:], spans)
        if state == "busy":
            self._busy[batch] = now_ns
            return None
        if batch.size_bytes <= _COMPRESS_HERE_BYTES:
            return self._compressed(batch, self._compress_small(batch.body.pieces))
        self._submit(batch)
        return None

    def _stream(self, batch: ProducerBatch) -> tuple[str, list[tuple[int, int]]]:
        """What a worker made of the batch. A stream that is broken is none: the records are not."""
        try:
            state, _size, spans = self._pool.compressed(batch.slot)
        except self._corrupt_error:
            return "taken", []
        return state, spans

    def _submit(self, batch: ProducerBatch) -> None:
        if self.compressor is not None:
            self.compressor.submit(batch, batch.body.pieces)

    def _compress_small(self, pieces: Any) -> bytes:
        small = self._small
        if small is None:
            small = self._small = compression.for_small(self._codec, self._level)
        return small(pieces)

    def _compress_pieces(self, pieces: Any) -> bytes:
        return compression.compress(self._codec, self._level, pieces)

    def _compressed(
        self,
        batch: ProducerBatch,
        memory: bytes | memoryview,
        spans: list[tuple[int, int]] | None = None,
    ) -> Event:
        body = native.Body(
            memory,
            batch.records,
            batch.base_timestamp_ms,
            batch.max_timestamp_ms,
            self._attributes,
            [(0, len(memory))] if spans is None else spans,
        )
        batch.body = body
        return actions.Compressed(batch, body.size_bytes)

    def compression_done(self, now_ns: int) -> list[Event]:
        """Streams finished by our threads or by workers since the last call."""
        events: list[Event] = []
        if self.compressor is not None and self.compressor.pending:
            for done in self.compressor.take():
                if done.error is not None:
                    raise done.error
                events.append(self._compressed(done.subject, done.data))
        for batch, since_ns in list(self._busy.items()):
            state, spans = self._stream(batch)
            if state == "done":
                del self._busy[batch]
                events.append(self._compressed(batch, self._payload[:], spans))
            elif state != "busy" or now_ns - since_ns > _WORKER_COMPRESSES_NS:
                # False: it finished just now, and the next call finds its output.
                if state != "busy" or self._pool.take_compression(batch.slot):
                    del self._busy[batch]
                    self._submit(batch)
        return events

    def look_again_ns(self) -> int:
        """How soon to look again: a worker compresses a batch we want, or has marked a batch
        whose first record it is about to commit. 0: there is none; one that does not commit for
        long is stopped."""
        looks = self._looks
        if self._unborn and looks < _UNBORN_LOOKS:
            return min(_SOON_NS, _FIRST_LOOK_NS << looks)
        return _SOON_NS if self._busy else 0

    def watches_worker(self) -> bool:
        """Something of a worker that stands still is watched: it gives no sign when it goes on."""
        return self._unborn > 0 or self.quarantined

    # --- giving back

    def release(self, batch: ProducerBatch) -> None:
        """Give the batch's slots back; parts of a split batch have none."""
        batch.body = None
        if batch.slot >= 0 and not self._pool.release(batch.slot):
            self.quarantined = True
