"""The rules of the checker, each a function named by its id.

K1, K2, K7 and K8 look at the log page by page, K3 to K6, K9 and K10 at the streams when all has
been read, K11 and K12 at the processes. Each yields what breaks it, with witnesses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tests.checker.footprint import Footprint
from tests.checker.journal import Kind
from tests.checker.ledger import NOWHERE, Ledger, Page, Stream, Tape
from tests.checker.records import ANY, NO_KEY, key_bytes, topic_hash

Mask = npt.NDArray[np.bool_]
SHOWN: Final = 5
MARGIN_MS: Final = 1000


class Breach(NamedTuple):
    """A rule that was broken: how often, and the stories of the first few."""

    rule: str
    times: int
    stories: tuple[str, ...]


class Stall(NamedTuple):
    """A time in which a process did not run, or (pid 0) in which no broker could answer."""

    begin_ns: int
    end_ns: int
    pid: int = 0


@dataclass(frozen=True)
class Terms:
    """What was promised in a run; the defaults are those of the defaults of a producer."""

    idempotent: bool = True
    """A record at most once, in the order of its stream (K4, K7, K8)."""
    acks: int = -1
    """With 0 nobody knows what was written: what counts as acknowledged may be missing (K3)."""
    orphans_delivered: bool = True
    """Records of dead workers are in the log (K9): no sender died, nothing expired."""
    max_unknown: int = 0
    """The bar of K6."""
    delivery_timeout_ms: int = 120_000
    silence_s: float | None = None
    """The longest time without any acknowledgement while records wait, stalls apart (K10)."""
    stalls: Sequence[Stall] = ()
    lost_topics: frozenset[str] = frozenset()
    """Topics that were deleted: what was acknowledged may be gone (K3, K9), and one that was made
    anew knows no sequences (K7, K8). What they hold must be right all the same."""
    faults: Mapping[str, int] = field(default_factory=dict)
    """How often each fault happened that the run is about: with a 0 it shows nothing."""


# --- the log, page by page


def k1(page: Page, run: int) -> Iterator[Breach]:
    """A record of the log parses, its filler matches, and it is where it was sent to."""
    chunk, heads = page.chunk, page.heads
    found = [f"{page.where(place)}: {why}" for place, why in page.wrong.items()]
    good = _believed(page)
    for what, broken in (
        ("of another run", heads["run"] != run),
        ("sent to another topic", heads["topic"] != topic_hash(chunk.topic)),
        (
            "sent to another partition",
            (heads["partition"] != chunk.partition) & (heads["partition"] != ANY),
        ),
        (
            "sent with another timestamp",
            (heads["timestamp_ms"] != chunk.timestamps_ms) & (heads["timestamp_ms"] != ANY),
        ),
        ("sent with another key", _wrong_keys(page)),
    ):
        for place in np.flatnonzero(good & broken):
            found.append(f"{page.where(int(place))}: {what}: {_sender(heads[place])}")
    if found:
        yield Breach("K1", len(found), tuple(found[:SHOWN]))


def _wrong_keys(page: Page) -> Mask:
    if (page.heads["key"] == NO_KEY).all():
        return np.array([key is not None for key in page.chunk.keys], bool)
    numbers = page.heads["key"].tolist()
    pairs = zip(numbers, page.chunk.keys, strict=True)
    return np.array([key_bytes(number) != key for number, key in pairs], bool)


def _sender(head: Any) -> str:
    return f"stream {head['stream']} record {head['seq']} of run {head['run']:x}"


def k2(page: Page, ledger: Ledger) -> Iterator[Breach]:
    """A record of the log is one that its stream was about to send."""
    found: list[str] = []
    ours = _believed(page) & (page.heads["run"] == ledger.run)
    for place in np.flatnonzero(ours & (page.stream == NOWHERE)):
        head: Any = page.heads[place]
        stream = ledger.streams.get(int(head["stream"]))
        why = "there is no such stream" if stream is None else stream.story(int(head["seq"]))
        found.append(f"{page.where(int(place))}: {_sender(head)}: {why}")
    if found:
        yield Breach("K2", len(found), tuple(found[:SHOWN]))


def _believed(page: Page) -> Mask:
    good = np.ones(len(page.heads), bool)
    good[list(page.wrong)] = False
    return good


def k7(page: Page, tape: Tape, ledger: Ledger) -> Iterator[Breach]:
    """The numbers of a stream increase along the offsets of a partition."""
    found = 0
    stories: list[str] = []
    for number in np.unique(page.stream[page.stream != NOWHERE]).tolist():
        places = np.flatnonzero(page.stream == number)
        seqs = page.heads["seq"][places].astype(np.int64)
        before = np.concatenate(([tape.last_seq.get(number, -1)], seqs[:-1]))
        highest = np.maximum.accumulate(before)
        stream = ledger.streams[number]
        # A second copy of a record is K4's.
        broken = np.flatnonzero((seqs <= highest) & (stream.times[seqs] == 1))
        for at in broken[: max(0, SHOWN - len(stories))].tolist():
            story = f"{stream.story(int(seqs[at]))}: behind record {highest[at]}"
            stories.append(f"{page.where(int(places[at]))}: {story}")
        found += len(broken)
        tape.last_seq[number] = int(max(highest[-1], seqs[-1]))
    if found:
        yield Breach("K7", found, tuple(stories))


def k8(page: Page, tape: Tape, ledger: Ledger) -> Iterator[Breach]:
    """A record told acknowledged before another one's send began is in front of it."""
    begin = np.zeros(len(page.heads), np.int64)
    told = np.full(len(page.heads), np.iinfo(np.int64).max)
    for number in np.unique(page.stream[page.stream != NOWHERE]).tolist():
        places = np.flatnonzero(page.stream == number)
        entries = ledger.streams[number].entries[page.heads["seq"][places].astype(np.int64)]
        begin[places] = entries["begin_ns"]
        # Of several copies the one that was told.
        acked = (
            (entries["kind"] == Kind.ACKED)
            & (entries["partition"] == page.chunk.partition)
            & (entries["offset"] == page.chunk.offsets[places])
        )
        told[places[acked]] = entries["told_ns"][acked]
    latest = np.maximum.accumulate(np.concatenate(([tape.latest_begin_ns], begin)))
    tape.latest_begin_ns = int(latest[-1])
    broken = np.flatnonzero(told < latest[:-1])
    if len(broken):
        stories = tuple(
            f"{page.where(place)}: {_sender(page.heads[place])} was told at "
            f"{told[place] / 1e6:.1f} ms, one in front of it was sent at {latest[place] / 1e6:.1f}"
            for place in broken[:SHOWN].tolist()
        )
        yield Breach("K8", len(broken), stories)


# --- the streams, when the log has been read


def _broken(rule: str, stream: Stream, records: Mask, why: str) -> Iterator[Breach]:
    places = np.flatnonzero(records)
    if len(places):
        stories = tuple(f"{why}: {stream.story(seq)}" for seq in places[:SHOWN].tolist())
        yield Breach(rule, len(places), stories)


def k3(stream: Stream, terms: Terms) -> Iterator[Breach]:
    """What was acknowledged is in the log, at the offset that was told."""
    if terms.acks == 0 or stream.topic in terms.lost_topics:
        return
    acked = stream.of(Kind.ACKED)
    known = stream.entries["offset"] >= 0
    yield from _broken("K3", stream, acked & ~stream.in_log, "acknowledged, and lost")
    elsewhere = acked & stream.in_log & known & ~stream.at_told
    yield from _broken("K3", stream, elsewhere, "acknowledged at another place")
    # -1 means that the broker knows the record and not where: then its partition must be right.
    place = stream.entries["partition"] != stream.found_partition
    moved = acked & stream.in_log & ~known & place & (stream.times == 1)
    yield from _broken("K3", stream, moved, "acknowledged in another partition")


def k4(stream: Stream, terms: Terms) -> Iterator[Breach]:
    """Each record is in the log once at most."""
    if terms.idempotent:
        yield from _broken("K4", stream, stream.times > 1, "doubled")


def k5(stream: Stream) -> Iterator[Breach]:
    """What was told not written, or was refused, is not in the log, and never will be."""
    failed = stream.of(Kind.NOT_WRITTEN) | stream.of(Kind.REFUSED)
    yield from _broken("K5", stream, failed & stream.in_log, "told not written, and written")


def k6(ledger: Ledger, terms: Terms) -> Iterator[Breach]:
    """Not more records than the scenario allows have an unknown fate; K4 counts their copies."""
    masks = [(stream, stream.of(Kind.UNKNOWN)) for stream in ledger.streams.values()]
    count = sum(int(mask.sum()) for _, mask in masks)
    if count > terms.max_unknown:
        stories = [
            story
            for stream, mask in masks
            for breach in _broken("K6", stream, mask, "unknown")
            for story in breach.stories
        ]
        yield Breach("K6", count, tuple(stories[:SHOWN]))


def k9(stream: Stream, terms: Terms) -> Iterator[Breach]:
    """Every record has one outcome; a dead worker's are in the log, told or not."""
    if stream.told_again:
        story = stream.story(stream.told_again_seq)
        yield Breach("K9", stream.told_again, (f"told more than once: {story}",))
    yield from _broken("K9", stream, stream.of(Kind.OTHER), "an outcome that tells no fate")
    open_ = stream.of(Kind.PENDING)
    if stream.finished:
        yield from _broken("K9", stream, open_, "without an outcome")
    elif terms.orphans_delivered and stream.topic not in terms.lost_topics:
        lost = stream.orphans & ~stream.in_log
        yield from _broken("K9", stream, lost, "of a dead worker, and lost")


def k10(stream: Stream, terms: Terms) -> Iterator[Breach]:
    """Every outcome came within the delivery timeout; time that was stalled does not count."""
    entries = stream.entries
    took_ns = entries["told_ns"].astype(np.int64) - entries["begin_ns"].astype(np.int64)
    bound_ns = (terms.delivery_timeout_ms + MARGIN_MS) * 1_000_000
    late = ~stream.of(Kind.PENDING) & (took_ns > bound_ns)
    for seq in np.flatnonzero(late).tolist():
        entry: Any = entries[seq]
        begin, told = int(entry["begin_ns"]), int(entry["told_ns"])
        late[seq] = told - begin - stalled_ns(terms.stalls, begin, told, stream.pid) > bound_ns
    yield from _broken("K10", stream, late, f"later than {bound_ns / 1e9:.1f} s")


def stalled_ns(stalls: Sequence[Stall], begin_ns: int, end_ns: int, pid: int = 0) -> int:
    """How much of a time was stalled for a process; overlapping stalls count once."""
    total, reached = 0, begin_ns
    for stall in sorted(s for s in stalls if s.pid in (0, pid)):
        first, last = max(stall.begin_ns, reached), min(stall.end_ns, end_ns)
        if last > first:
            total += last - first
            reached = last
    return total


def silence(ledger: Ledger, stalls: Sequence[Stall] = ()) -> tuple[float, str]:
    """The longest time without an acknowledgement while a record waited for one: (s, where)."""
    acked = [stream.entries[stream.of(Kind.ACKED)] for stream in ledger.streams.values()]
    told = np.concatenate([e["told_ns"] for e in acked]) if acked else np.zeros(0, np.uint64)
    if not len(told):
        return 0.0, "nothing was acknowledged"
    begin = np.concatenate([entries["begin_ns"] for entries in acked])
    order = np.argsort(told, kind="stable")
    told, begin = told[order].astype(np.int64), begin[order].astype(np.int64)
    # The first record to wait for the ack that ends a gap, or for a later one.
    waiting = np.minimum.accumulate(begin[::-1])[::-1]
    since = np.maximum(np.concatenate(([0], told[:-1])), waiting)
    gaps = told - since
    worst, where = 0, 0
    # Stalls only make a gap shorter: the longest ones decide.
    for place in np.argsort(gaps)[::-1].tolist():
        if gaps[place] <= worst:
            break
        first, last = int(since[place]), int(told[place])
        left = last - first - stalled_ns(stalls, first, last)
        if left > worst:
            worst, where = left, first
    return worst / 1e9, f"from {where / 1e6:.1f} ms on"


def k10_silence(ledger: Ledger, terms: Terms) -> Iterator[Breach]:
    """While a leader could answer, acknowledgements came."""
    seconds, where = silence(ledger, terms.stalls)
    if terms.silence_s is not None and seconds > terms.silence_s:
        yield Breach("K10", 1, (f"no acknowledgement for {seconds:.1f} s {where}",))


# --- the processes


def k11(ledger: Ledger, counters: Mapping[str, int]) -> Iterator[Breach]:
    """The sender counted what was told, and everything came back. For runs with one sender."""
    found: list[str] = []
    streams = ledger.streams.values()
    untold = sum(int(stream.of(Kind.PENDING).sum()) for stream in streams)
    refused = sum(int(stream.of(Kind.REFUSED).sum()) for stream in streams)
    least, most = 0, untold + refused
    for kind in (Kind.ACKED, Kind.NOT_WRITTEN, Kind.UNKNOWN):
        told = sum(int(stream.of(kind).sum()) for stream in streams)
        name = f"record-{kind.name.lower().replace('_', '-')}-total"
        # Nearly all that was refused had never been appended; a future that had failed by the time
        # its send returned does not say.
        perhaps = untold + (refused if kind is Kind.NOT_WRITTEN else 0)
        if not told <= counters[name] <= told + perhaps:
            found.append(f"{name}={counters[name]}, {told} were told and {untold} not")
        least, most = least + told, most + told
    least += sum(int(stream.orphans.sum()) for stream in streams)
    ended = sum(counters[f"record-{name}-total"] for name in ("acked", "not-written", "unknown"))
    if not least <= ended <= most:
        found.append(f"{ended} records ended, {least} to {most} were appended")
    for name in ("batches-incomplete", "batches-unreleased", "batches-quarantined"):
        if counters[name]:
            found.append(f"{name}={counters[name]} at rest")
    total, free = counters["buffer-total-bytes"], counters["buffer-available-bytes"]
    if total != free:
        found.append(f"{free} of {total} bytes of memory are free at rest")
    if found:
        yield Breach("K11", len(found), tuple(found))


def k12(before: Footprint, after: Sequence[Footprint]) -> Iterator[Breach]:
    """Nothing is left over: in one of the samples each figure is back where it was."""
    found = []
    for name, was in before._asdict().items():
        now = min(getattr(sample, name) for sample in after)
        if now > was:
            found.append(f"{name}: {now}, {was} before")
    if found:
        yield Breach("K12", len(found), tuple(found))
