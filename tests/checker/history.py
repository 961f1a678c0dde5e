"""Histories made up for the checker's own tests: right ones, to be spoilt in one place."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.checker.check import Report, check
from tests.checker.journal import Journal, Kind
from tests.checker.log import Chunk, Extent, chunk
from tests.checker.records import ANY, NO_KEY, Identity, encode, key_bytes
from tests.checker.rules import Terms

TOPICS = ("left", "right")
PARTITIONS = 2
TERMS = Terms(max_unknown=1 << 20)
_PAGE = 7  # small, so that what the checker carries from page to page is used

Place = tuple[str, int]


class Row(NamedTuple):
    """One record as the log has it; its offset is its place in the list."""

    value: bytes | None
    key: bytes | None
    timestamp_ms: int


class Sent(NamedTuple):
    """One record on its way."""

    stream: int
    seq: int
    place: Place
    row: Row


@dataclass
class ListedLog:
    """A log in lists; `ends` where it claims to end elsewhere."""

    rows: dict[Place, list[Row]]
    ends: dict[Place, int] = field(default_factory=dict)
    skipped: set[tuple[str, int, int]] = field(default_factory=set)

    def extents(self) -> list[Extent]:
        return [Extent(*place, 0, self.ends.get(place, len(r))) for place, r in self.rows.items()]

    def chunks(self, extent: Extent) -> Iterator[Chunk]:
        rows = [
            (offset, row.value, row.key, row.timestamp_ms)
            for offset, row in enumerate(self.rows[extent.topic, extent.partition])
            if (extent.topic, extent.partition, offset) not in self.skipped
        ]
        for start in range(0, len(rows), _PAGE):
            yield chunk(extent, rows[start:][:_PAGE])


class History:
    """A right history: some streams, one of them of a worker that was killed."""

    def __init__(self, folder: Path, seed: int, streams: int = 4, records: int = 80) -> None:
        self.rng = random.Random(seed)
        self.run = self.rng.getrandbits(64)
        self.journals = [
            Journal.create(folder / f"{seed}-{n}", self.run, n, TOPICS[n % len(TOPICS)], records)
            for n in range(streams)
        ]
        self.rows: dict[Place, list[Row]] = {
            (topic, number): [] for topic in TOPICS for number in range(PARTITIONS)
        }
        self.dead = streams - 1
        self.sent: list[Sent] = []
        self._queued: dict[Place, deque[Sent]] = {place: deque() for place in self.rows}
        self._written: list[tuple[Sent, int]] = []
        left = records
        while left or any(self._queued.values()) or self._written:
            match self.rng.randrange(3):
                case 0 if left:
                    self._send()
                    left -= 1
                case 1:
                    self._append()
                case _:
                    self._tell()
        for number in range(streams - 1):
            self.journals[number].finish()

    def _send(self) -> None:
        rng = self.rng
        number = rng.randrange(len(self.journals))
        journal = self.journals[number]
        partition = rng.randrange(PARTITIONS)
        key = rng.choice((NO_KEY, rng.randrange(9)))
        timestamp = rng.choice((ANY, rng.randrange(10**12)))
        seq = journal.begin()
        who = Identity(
            self.run, number, seq, journal.topic, rng.choice((ANY, partition)), key, timestamp
        )
        row = Row(encode(who, rng.randrange(48, 200)), key_bytes(key), max(timestamp, 0))
        sent = Sent(number, seq, (journal.topic, partition), row)
        journal.returned()
        self.sent.append(sent)
        fate = rng.choices((Kind.ACKED, Kind.NOT_WRITTEN, Kind.REFUSED, Kind.UNKNOWN), (8, 1, 1, 1))
        if fate[0] is Kind.ACKED:
            self._queued[sent.place].append(sent)
        elif number != self.dead:
            journal.tell(seq, fate[0])
        else:  # what it knew of, it had been told before it died
            journal.tell(seq, Kind.NOT_WRITTEN)

    def _append(self) -> None:
        place = self.rng.choice(list(self._queued))
        if self._queued[place]:
            sent = self._queued[place].popleft()
            self.rows[place].append(sent.row)
            self._written.append((sent, len(self.rows[place]) - 1))

    def _tell(self) -> None:
        if self._written:
            sent, offset = self._written.pop(self.rng.randrange(len(self._written)))
            told = self.rng.random() < 0.9
            if sent.stream == self.dead and self.rng.random() < 0.3:
                return
            journal = self.journals[sent.stream]
            if told:
                journal.tell(sent.seq, Kind.ACKED, sent.place[1], offset)
            else:
                journal.tell(sent.seq, Kind.UNKNOWN)

    # --- to be spoilt

    def entries(self, number: int) -> Any:
        """The entries of a stream, to write into."""
        return self.journals[number].entries()

    def of(self, kind: Kind, stream: int | None = None) -> list[Sent]:
        """Records with an outcome."""
        return [
            sent
            for sent in self.sent
            if self.entries(sent.stream)["kind"][sent.seq] == kind
            and (stream is None or stream == sent.stream)
        ]

    def offset(self, sent: Sent) -> int:
        """Where the log has a record, -1 for nowhere."""
        rows = self.rows[sent.place]
        return next((at for at, row in enumerate(rows) if row.value == sent.row.value), -1)

    def drop(self, sent: Sent) -> None:
        """Take a record out of the log; what is behind it moves up, and what was told as well."""
        gone = self.offset(sent)
        del self.rows[sent.place][gone]
        for other in self.sent:
            entry = self.entries(other.stream)[other.seq : other.seq + 1]
            if other.place == sent.place and entry["offset"][0] > gone and other != sent:
                entry["offset"] -= 1

    def swap(self, one: Sent, other: Sent) -> None:
        """Two records of a partition change places, and what was told with them."""
        rows = self.rows[one.place]
        first, second = self.offset(one), self.offset(other)
        rows[first], rows[second] = rows[second], rows[first]
        for sent, offset in ((one, second), (other, first)):
            entry = self.entries(sent.stream)[sent.seq : sent.seq + 1]
            if entry["kind"][0] == Kind.ACKED:
                entry["offset"] = offset

    def judge(self, terms: Terms = TERMS, log: ListedLog | None = None, **more: Any) -> Report:
        """What the checker says."""
        journals: Sequence[Journal] = [Journal(journal.path) for journal in self.journals]
        return check(self.run, journals, log or ListedLog(self.rows), terms, **more)
