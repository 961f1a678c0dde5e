"""Both sides of a run: per stream what its journal says, beside what the log has of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tests.checker.journal import Entries, Journal, Kind
from tests.checker.log import Chunk
from tests.checker.records import Heads

NOWHERE: Final = -1
_MS: Final = 1e6


class Stream:
    """One stream's journal, and for each record where and how often the log has it."""

    def __init__(self, journal: Journal) -> None:
        self.number = journal.stream
        self.run = journal.run
        self.topic = journal.topic
        self.pid = journal.pid
        self.finished = journal.finished
        self.returned = journal.returns
        self.told_again, self.told_again_seq = journal.told_again
        self.entries: Entries = journal.entries()
        self.attempted = len(self.entries)
        self.times = np.zeros(self.attempted, np.uint16)
        self.found_partition = np.full(self.attempted, NOWHERE, np.int32)
        self.found_offset = np.full(self.attempted, NOWHERE, np.int64)
        self.at_told = np.zeros(self.attempted, bool)

    def of(self, kind: Kind) -> npt.NDArray[np.bool_]:
        """Which records had this outcome."""
        return np.asarray(self.entries["kind"] == kind)

    @property
    def in_log(self) -> npt.NDArray[np.bool_]:
        """Which records the log has at least once."""
        return self.times > 0

    @property
    def orphans(self) -> npt.NDArray[np.bool_]:
        """Records whose send had returned, whose writer died before it heard of them."""
        if self.finished:
            return np.zeros(self.attempted, bool)
        return self.of(Kind.PENDING) & (np.arange(self.attempted) < self.returned)

    def story(self, seq: int) -> str:
        """What is known of one record."""
        name = f"stream {self.number} record {seq}"
        if not 0 <= seq < self.attempted:
            return f"{name}: never attempted, {self.attempted} were (pid {self.pid})"
        entry: Any = self.entries[seq]
        kind = Kind(int(entry["kind"]))
        begun = int(entry["begin_ns"])
        said = "nobody was told" if kind is Kind.PENDING else f"told {kind.name}"
        if kind is Kind.ACKED:
            said += f" at {self.topic}-{entry['partition']} offset {entry['offset']}"
        if kind is not Kind.PENDING:
            said += f" after {(int(entry['told_ns']) - begun) / _MS:.1f} ms"
        there = "not in the log"
        if self.times[seq]:
            place = f"{self.topic}-{self.found_partition[seq]} offset {self.found_offset[seq]}"
            there = f"in the log {self.times[seq]} times, last at {place}"
        over = "" if seq < self.returned else ", its send never returned"
        return f"{name} (pid {self.pid}): begun at {begun / _MS:.1f} ms, {said}, {there}{over}"


@dataclass
class Tape:
    """One partition while it is read."""

    topic: str
    partition: int
    next_offset: int
    last_seq: dict[int, int] = field(default_factory=dict)
    latest_begin_ns: int = 0


@dataclass(frozen=True)
class Page:
    """One chunk of a partition, decoded."""

    chunk: Chunk
    heads: Heads
    wrong: dict[int, str]
    """What is wrong with the bytes of a record: its head is not to be believed."""
    stream: npt.NDArray[np.int64]
    """Whose each record is, NOWHERE where no stream has attempted it."""

    def where(self, place: int) -> str:
        """Where it is, for a witness."""
        chunk = self.chunk
        return f"{chunk.topic}-{chunk.partition} offset {chunk.offsets[place]}"


class Ledger:
    """All streams of a run."""

    def __init__(self, run: int, journals: Iterable[Journal]) -> None:
        self.run = run
        self.streams: dict[int, Stream] = {}
        for journal in journals:
            if journal.run != run:
                raise ValueError(f"{journal.path} is of run {journal.run}, this is {run}")
            self.streams[journal.stream] = Stream(journal)

    def counts(self) -> dict[str, int]:
        """Totals over all streams."""
        streams = self.streams.values()
        found = {
            "streams": len(self.streams),
            "attempted": sum(stream.attempted for stream in streams),
            "returned": sum(stream.returned for stream in streams),
            "in_log": sum(int(stream.in_log.sum()) for stream in streams),
            "orphaned": sum(int(stream.orphans.sum()) for stream in streams),
        }
        for kind in Kind:
            if kind is not Kind.PENDING:
                found[kind.name.lower()] = sum(int(stream.of(kind).sum()) for stream in streams)
        found["unknown_in_log"] = sum(
            int((stream.of(Kind.UNKNOWN) & stream.in_log).sum()) for stream in streams
        )
        found["orphaned_in_log"] = sum(
            int((stream.orphans & stream.in_log).sum()) for stream in streams
        )
        return found
