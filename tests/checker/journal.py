"""What one stream was about to send, has sent, and was told: a file that survives kill -9.

A stream is one thread of one process that sends to one topic; its records are numbered from 0. The
file is mapped shared, so what was stored is there however its writer ends (a crash of the host
would need fsync, and is not asked for). One writer per word:

- before `send`: the entry's `begin_ns`, then ATTEMPTED;
- when `send` has returned or raised: RETURNED;
- when the outcome is known: offset, partition and `told_ns`, and the entry's `kind` last.

All times are of the monotonic clock, the same for every process of the host.
"""

from __future__ import annotations

import enum
import mmap
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

MAGIC: Final = int.from_bytes(b"mppjrnl1", "little")
HEADER_BYTES: Final = 4096
_TOPIC_AT: Final = 1024
_MAX_TOPIC: Final = 249

# Words of the header.
_MAGIC, _RUN, _STREAM, _PID, _CAPACITY, _ATTEMPTED, _RETURNED = range(7)
_FINISHED, _AGAIN, _AGAIN_SEQ, _STOP, _NOTE, _TOPIC_BYTES = range(7, 13)

ENTRY: Final = np.dtype(
    [
        ("begin_ns", "<u8"),
        ("told_ns", "<u8"),
        ("offset", "<i8"),
        ("partition", "<i4"),
        ("kind", "<u4"),
    ]
)
_ENTRY_BYTES: Final = ENTRY.itemsize
_BEGIN: Final = struct.Struct("<Q")
_TOLD: Final = struct.Struct("<Qqi")
_KIND: Final = struct.Struct("<I")
_TOLD_AT: Final = 8
_KIND_AT: Final = 28

Entries = npt.NDArray[np.void]


class Kind(enum.IntEnum):
    """How the future of a record ended."""

    PENDING = 0
    ACKED = 1
    NOT_WRITTEN = 2
    UNKNOWN = 3
    REFUSED = 4  # never appended: `send` raised, or its future had failed when it returned
    OTHER = 5  # an error that tells no fate


class Torn(Exception):
    """The file is not a whole journal: nothing can be concluded from it."""


class Journal:
    """One stream's file, as its writer has it; others may look at any time."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if size < HEADER_BYTES:
                raise Torn(f"{path}: {size} bytes are no header")
            self._map = mmap.mmap(file.fileno(), size)
        self.path = path
        self._words = memoryview(self._map)[:_TOPIC_AT].cast("Q")
        if self._words[_MAGIC] != MAGIC:
            raise Torn(f"{path}: not a journal")
        self.capacity = self._words[_CAPACITY]
        if size != HEADER_BYTES + self.capacity * _ENTRY_BYTES:
            raise Torn(f"{path}: {size} bytes for {self.capacity} entries")
        self.run = self._words[_RUN]
        self.stream = self._words[_STREAM]
        length = self._words[_TOPIC_BYTES]
        self.topic = self._map[_TOPIC_AT : _TOPIC_AT + length].decode()
        self._entries = np.frombuffer(self._map, ENTRY, offset=HEADER_BYTES)

    @staticmethod
    def create(path: Path, run: int, stream: int, topic: str, capacity: int) -> Journal:
        """Make the file of a new stream; sparse, so capacity costs nothing. Raises OSError."""
        name = topic.encode()
        if len(name) > _MAX_TOPIC:
            raise ValueError(f"{topic!r} is too long for a topic")
        header = memoryview(bytearray(HEADER_BYTES))
        words = header.cast("Q")
        words[_MAGIC], words[_RUN], words[_STREAM], words[_CAPACITY] = MAGIC, run, stream, capacity
        words[_TOPIC_BYTES] = len(name)
        header[_TOPIC_AT : _TOPIC_AT + len(name)] = name
        with path.open("xb") as file:
            file.truncate(HEADER_BYTES + capacity * _ENTRY_BYTES)
            file.write(header)
        return Journal(path)

    # --- the writer

    def begin(self, count: int = 1) -> int:
        """Before a send of `count` records; the number of the first one. Raises OverflowError."""
        first = self._words[_ATTEMPTED]
        if first + count > self.capacity:
            raise OverflowError(f"{self.path} has room for {self.capacity} records")
        if count == 1:
            _BEGIN.pack_into(self._map, self._at(first), time.monotonic_ns())
        else:
            self._entries["begin_ns"][first : first + count] = time.monotonic_ns()
        self._words[_ATTEMPTED] = first + count
        return first

    def returned(self) -> None:
        """The call for everything begun so far is over."""
        self._words[_RETURNED] = self._words[_ATTEMPTED]

    def tell(self, seq: int, kind: Kind, partition: int = -1, offset: int = -1) -> None:
        """The outcome of one record. A second one for the same record is kept as such."""
        place = self._at(seq)
        if _KIND.unpack_from(self._map, place + _KIND_AT)[0]:
            self._words[_AGAIN_SEQ] = seq
            self._words[_AGAIN] += 1
            return
        _TOLD.pack_into(self._map, place + _TOLD_AT, time.monotonic_ns(), offset, partition)
        _KIND.pack_into(self._map, place + _KIND_AT, kind)

    def tell_many(
        self, first: int, kinds: Any, partitions: Sequence[int], offsets: Sequence[int]
    ) -> None:
        """Outcomes of records that follow each other; `kinds` for all or for each."""
        part = self._entries[first : first + len(offsets)]
        if part["kind"].any():
            self._words[_AGAIN_SEQ] = first + int(part["kind"].argmax())
            self._words[_AGAIN] += int(np.count_nonzero(part["kind"]))
        part["offset"] = offsets
        part["partition"] = partitions
        part["told_ns"] = time.monotonic_ns()
        part["kind"] = kinds

    def finish(self) -> None:
        """The writer ends by itself, and everything it sent has an outcome it will ever get."""
        self._words[_FINISHED] = 1

    def _at(self, seq: int) -> int:
        return HEADER_BYTES + seq * _ENTRY_BYTES

    # --- words for who runs it

    @property
    def pid(self) -> int:
        """The process that writes, 0 before it runs."""
        return self._words[_PID]

    @pid.setter
    def pid(self, number: int) -> None:
        self._words[_PID] = number

    @property
    def stop(self) -> bool:
        """Whether the writer was asked to end."""
        return bool(self._words[_STOP])

    @stop.setter
    def stop(self, asked: bool) -> None:
        self._words[_STOP] = asked

    @property
    def note(self) -> int:
        """A number for whatever a scenario needs to pass on."""
        return self._words[_NOTE]

    @note.setter
    def note(self, what: int) -> None:
        self._words[_NOTE] = what

    # --- the reader

    @property
    def attempted(self) -> int:
        """Records a send was about to be called for."""
        return self._words[_ATTEMPTED]

    @property
    def returns(self) -> int:
        """Records whose send is over."""
        return self._words[_RETURNED]

    @property
    def finished(self) -> bool:
        """Whether the writer ended by itself."""
        return bool(self._words[_FINISHED])

    @property
    def told_again(self) -> tuple[int, int]:
        """(how many outcomes came for records that had one, the last such record)."""
        return self._words[_AGAIN], self._words[_AGAIN_SEQ]

    def entries(self) -> Entries:
        """One entry per attempted record, in place. Raises Torn."""
        attempted, returned = self.attempted, self.returns
        if not returned <= attempted <= self.capacity:
            raise Torn(f"{self.path}: {returned} returned, {attempted} attempted")
        found = self._entries[:attempted]
        told = found["kind"] != Kind.PENDING
        wrong = (
            (found["begin_ns"] == 0)
            | (found["kind"] > max(Kind))
            | (told & (found["told_ns"] < found["begin_ns"]))
        )
        if wrong.any():
            raise Torn(f"{self.path}: entry {int(wrong.argmax())} makes no sense")
        if self._entries["kind"][attempted : attempted + 1].any():
            raise Torn(f"{self.path}: an outcome of record {attempted}, which was not attempted")
        return found
