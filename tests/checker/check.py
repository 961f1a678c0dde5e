"""Judges a run: journals and log against the rules, in one pass over the log.

A run that shows nothing is not green but invalid: its log cannot be read to the end, a journal is
torn or empty, or a fault it is about never happened.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.checker import rules
from tests.checker.footprint import Footprint
from tests.checker.journal import Journal, Torn
from tests.checker.ledger import NOWHERE, Ledger, Page, Tape
from tests.checker.log import Chunk, Extent, Incomplete, Log
from tests.checker.records import decode
from tests.checker.rules import SHOWN, Breach, Terms


@dataclass
class Report:
    """What came of a run."""

    counts: dict[str, Any] = field(default_factory=dict)
    broken: Counter[str] = field(default_factory=Counter)
    """How often each rule was broken."""
    witnesses: list[str] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)
    """Why nothing can be concluded."""

    @property
    def ok(self) -> bool:
        """Whether the run shows something, and what it shows is right."""
        return not self.broken and not self.invalid

    def add(self, breaches: Iterable[Breach]) -> None:
        """Count what was broken, and keep the first stories of each rule."""
        for breach in breaches:
            room = max(0, SHOWN - self.broken[breach.rule])
            self.witnesses += [f"{breach.rule}: {story}" for story in breach.stories[:room]]
            self.broken[breach.rule] += breach.times

    def line(self) -> str:
        """The report as one line of JSON."""
        return json.dumps(
            {
                "ok": self.ok,
                "invalid": self.invalid,
                "broken": dict(sorted(self.broken.items())),
                **self.counts,
                "witnesses": self.witnesses,
            }
        )

    def require(self) -> Report:
        """Raise AssertionError, with witnesses, unless it is ok."""
        if not self.ok:
            raise AssertionError("\n".join(["", *self.invalid, *self.witnesses, self.line()]))
        return self


def check(
    run: int,
    journals: Sequence[Journal],
    log: Log,
    terms: Terms = Terms(),  # noqa: B008 - frozen
    *,
    counters: Mapping[str, int] | None = None,
    footprints: Mapping[str, tuple[Footprint, Sequence[Footprint]]] | None = None,
    earlier: Sequence[Extent] = (),
) -> Report:
    """Judge a run. Its writers must have ended.

    `counters` are the sender's at rest (K11), `footprints` those of processes before the run and
    after it (K12). `earlier`: the extents some time before; what came since is counted, and judged
    as the rest: a late arrival must not be a record that was told not written (K5).
    """
    report = Report({"read": 0})
    try:
        ledger = Ledger(run, journals)
        if not any(stream.attempted for stream in ledger.streams.values()):
            report.invalid.append("nothing was attempted")
        extents = read(ledger, log, terms, report)
        grown = {e[:2]: e.end for e in extents}
        report.counts["came_later"] = sum(grown.get(e[:2], e.end) - e.end for e in earlier)
    except (Incomplete, Torn) as error:
        report.invalid.append(f"{type(error).__name__}: {error}")
        return report
    for stream in ledger.streams.values():
        report.add(rules.k3(stream, terms))
        report.add(rules.k4(stream, terms))
        report.add(rules.k5(stream))
        report.add(rules.k9(stream, terms))
        report.add(rules.k10(stream, terms))
    report.add(rules.k6(ledger, terms))
    report.add(rules.k10_silence(ledger, terms))
    if counters is not None:
        report.add(rules.k11(ledger, counters))
    for name, (before, after) in (footprints or {}).items():
        report.add(
            Breach(b.rule, b.times, tuple(f"{name}: {s}" for s in b.stories))
            for b in rules.k12(before, after)
        )
    report.invalid += [f"{kind} never happened" for kind, hits in terms.faults.items() if not hits]
    report.counts |= ledger.counts()
    report.counts["longest_silence_s"] = round(rules.silence(ledger, terms.stalls)[0], 3)
    report.counts["slowest_s"] = round(_slowest_s(ledger), 3)
    report.counts["faults"] = dict(terms.faults)
    return report


def _slowest_s(ledger: Ledger) -> float:
    slowest = 0
    for stream in ledger.streams.values():
        told = stream.entries[stream.entries["kind"] != 0]
        if len(told):
            slowest = max(slowest, int((told["told_ns"] - told["begin_ns"]).max()))
    return slowest / 1e9


def read(ledger: Ledger, log: Log, terms: Terms, report: Report) -> list[Extent]:
    """Read the whole log, judge it page by page, and note in the ledger what it has."""
    extents = log.extents()
    for extent in extents:
        tape = Tape(extent.topic, extent.partition, extent.start)
        for chunk in log.chunks(extent):
            _contiguous(chunk, tape)
            page = _page(chunk, ledger)
            report.add(rules.k1(page, ledger.run))
            report.add(rules.k2(page, ledger))
            _note(page, ledger)
            if terms.idempotent and extent.topic not in terms.lost_topics:
                report.add(rules.k7(page, tape, ledger))
                report.add(rules.k8(page, tape, ledger))
            report.counts["read"] += len(chunk.offsets)
        if tape.next_offset != extent.end:
            raise Incomplete(f"{extent} was read up to {tape.next_offset}")
    return extents


def _contiguous(chunk: Chunk, tape: Tape) -> None:
    expected = np.arange(tape.next_offset, tape.next_offset + len(chunk.offsets))
    wrong = np.flatnonzero(chunk.offsets != expected)
    if len(wrong):
        at = int(wrong[0])
        place = f"{chunk.topic}-{chunk.partition}"
        raise Incomplete(f"{place}: offset {chunk.offsets[at]} where {expected[at]} was to be")
    tape.next_offset += len(chunk.offsets)


def _page(chunk: Chunk, ledger: Ledger) -> Page:
    heads, wrong = decode(chunk.values)
    stream = np.where(heads["run"] == ledger.run, heads["stream"].astype(np.int64), NOWHERE)
    stream[list(wrong)] = NOWHERE
    for number in np.unique(stream).tolist():
        places = stream == number
        known = ledger.streams.get(number)
        if known is None:
            stream[places] = NOWHERE
        else:
            stream[places & (heads["seq"] >= known.attempted)] = NOWHERE
    return Page(chunk, heads, wrong, stream)


def _note(page: Page, ledger: Ledger) -> None:
    for number in np.unique(page.stream[page.stream != NOWHERE]).tolist():
        stream = ledger.streams[number]
        if stream.topic != page.chunk.topic:
            continue  # K1 has told; it is not where its stream sends
        places = np.flatnonzero(page.stream == number)
        seqs = page.heads["seq"][places].astype(np.int64)
        offsets = page.chunk.offsets[places]
        np.add.at(stream.times, seqs, 1)
        stream.found_partition[seqs] = page.chunk.partition
        stream.found_offset[seqs] = offsets
        entries = stream.entries[seqs]
        same = (entries["partition"] == page.chunk.partition) & (entries["offset"] == offsets)
        stream.at_told[seqs[same]] = True
