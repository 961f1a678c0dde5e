"""The checker checked: a right history passes, one spoilt in one place is found by its rule."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checker import rules
from tests.checker.footprint import Footprint
from tests.checker.history import TERMS, TOPICS, History, ListedLog
from tests.checker.journal import HEADER_BYTES, Journal, Kind, Torn
from tests.checker.ledger import Ledger
from tests.checker.mutations import MUTATIONS
from tests.checker.rules import Stall, Terms

STRICT = dataclasses.replace(TERMS, silence_s=30.0)
HISTORIES = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SEEDS = st.integers(0, 2**32)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """A fresh folder per example."""
    numbers = itertools.count()

    def make() -> Path:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return folder

    yield make


def terms_of(history: History) -> Terms:
    """As many unknown records as it has, and no more."""
    return dataclasses.replace(STRICT, max_unknown=len(history.of(Kind.UNKNOWN)))


@HISTORIES
@given(seed=SEEDS, streams=st.integers(2, 7), records=st.integers(1, 150))
def test_a_right_history_passes(
    folders: Callable[[], Path], seed: int, streams: int, records: int
) -> None:
    history = History(folders(), seed, streams, records)
    report = history.judge(terms_of(history)).require()
    assert report.counts["attempted"] == report.counts["returned"] == records
    assert report.counts["read"] == report.counts["in_log"]
    assert report.counts["in_log"] == sum(len(rows) for rows in history.rows.values())


# What breaks a second promise as well: a record that is altered or gone is lost where it should be,
# a copy or a late one is out of order.
LOUD = {
    "a_byte_is_altered": {"K1", "K3", "K9"},
    "the_end_is_torn_off": {"K1", "K3", "K9"},
    "two_records_are_mixed": {"K1", "K3", "K9"},
    "a_value_is_gone": {"K1", "K3", "K9"},
    "a_record_is_in_another_partition": {"K1", "K4", "K7"},
    "a_record_is_doubled_beside_itself": {"K3", "K4"},
    "a_record_is_doubled_in_another_partition": {"K4", "K7"},
    "a_record_told_not_written_is_there": {"K5", "K7"},
    "a_refused_record_is_there": {"K5", "K7"},
    "two_records_of_a_stream_change_places": {"K7", "K8"},
    "a_record_passes_one_that_had_been_acknowledged": {"K7", "K8"},
}


@pytest.mark.parametrize("rule", sorted({rule for rule, _ in MUTATIONS.values()}))
def test_a_history_spoilt_in_one_place_is_found_by_its_rule_and_by_no_other_one(
    folders: Callable[[], Path], seed: int, rule: str
) -> None:
    for name, (found_by, mutate) in MUTATIONS.items():
        if found_by != rule:
            continue
        applied = 0
        for number in range(8):
            history = History(folders(), seed + number)
            terms = terms_of(history)
            assert history.judge(terms).ok
            if mutate(history):
                applied += 1
                report = history.judge(terms)
                assert report.broken[rule] > 0, f"{name}: {report.line()}"
                assert any(story.startswith(f"{rule}: ") for story in report.witnesses)
                assert set(report.broken) <= LOUD.get(name, {rule}), f"{name}: {report.line()}"
        assert applied > 2, f"{name} applied to {applied} of 8 histories"


@HISTORIES
@given(seed=SEEDS, name=st.sampled_from(sorted(MUTATIONS)), records=st.integers(5, 120))
def test_any_history_spoilt_in_one_place_is_found_by_its_rule(
    folders: Callable[[], Path], seed: int, name: str, records: int
) -> None:
    history = History(folders(), seed, records=records)
    terms = terms_of(history)
    rule, mutate = MUTATIONS[name]
    if mutate(history):
        assert history.judge(terms).broken[rule] > 0


def test_the_story_of_a_record_tells_what_is_known(tmp_path: Path) -> None:
    history = History(tmp_path, 3)
    sent = history.of(Kind.ACKED)[0]
    offset = history.offset(sent)
    history.drop(sent)
    (story,) = history.judge().witnesses
    topic, partition = sent.place
    assert f"stream {sent.stream} record {sent.seq} " in story
    assert f"told ACKED at {topic}-{partition} offset {offset} after" in story
    assert story.endswith("not in the log")


def test_the_report_is_one_line_of_json_and_shows_five_of_many(tmp_path: Path) -> None:
    history = History(tmp_path, 4, records=200)
    for rows in history.rows.values():
        rows.clear()
    report = history.judge()
    found = json.loads(report.line())
    assert "\n" not in report.line()
    assert not found["ok"]
    assert found["broken"]["K3"] == len(history.of(Kind.ACKED)) > 5
    assert len([story for story in found["witnesses"] if story.startswith("K3")]) == 5
    with pytest.raises(AssertionError, match="acknowledged, and lost"):
        report.require()


# --- terms


def test_without_idempotence_copies_and_their_order_are_allowed(tmp_path: Path) -> None:
    history = History(tmp_path, 5)
    terms = dataclasses.replace(TERMS, idempotent=False)
    assert MUTATIONS["a_record_is_doubled_at_the_end"][1](history)
    assert set(history.judge().broken) == {"K4"}
    assert history.judge(terms).ok


def test_with_acks_0_what_counts_as_acknowledged_may_be_missing(tmp_path: Path) -> None:
    history = History(tmp_path, 6)
    assert MUTATIONS["an_acknowledged_record_is_lost"][1](history)
    assert history.judge(dataclasses.replace(TERMS, acks=0)).ok


def test_a_topic_that_was_deleted_may_have_lost_everything_but_holds_nothing_wrong(
    tmp_path: Path,
) -> None:
    history = History(tmp_path, 7)
    terms = dataclasses.replace(TERMS, lost_topics=frozenset(TOPICS))
    for rows in history.rows.values():
        del rows[: len(rows) // 2]
    assert history.judge(terms).ok
    assert MUTATIONS["a_record_was_never_attempted"][1](history)
    assert set(history.judge(terms).broken) == {"K2"}


def test_orphans_may_be_missing_only_where_the_terms_say_so(tmp_path: Path) -> None:
    history = next(h for n in range(99) if (h := History(tmp_path, n)).of(Kind.PENDING, h.dead))
    history.drop(history.of(Kind.PENDING, history.dead)[0])
    assert set(history.judge().broken) == {"K9"}
    report = history.judge(dataclasses.replace(TERMS, orphans_delivered=False))
    assert report.ok
    assert report.counts["orphaned_in_log"] == report.counts["orphaned"] - 1


def test_time_in_which_a_process_was_stopped_makes_no_outcome_late(tmp_path: Path) -> None:
    history = History(tmp_path, 8)
    sent = history.of(Kind.NOT_WRITTEN)[0]
    history.entries(sent.stream)["told_ns"][sent.seq] += 130 * 10**9
    begin = int(history.entries(sent.stream)["begin_ns"][sent.seq])
    history.journals[sent.stream].pid = 77

    def late(*stalls: Stall) -> bool:
        return bool(history.judge(dataclasses.replace(TERMS, stalls=stalls)).broken["K10"])

    second = 10**9
    assert late()
    assert late(Stall(begin, begin + 20 * second, pid=78))
    assert not late(Stall(begin, begin + 20 * second, pid=77))
    assert not late(Stall(begin, begin + 20 * second))
    assert late(Stall(begin, begin + 6 * second), Stall(begin + second, begin + 7 * second, 77))
    assert not late(
        Stall(begin, begin + 6 * second), Stall(begin + 6 * second, begin + 12 * second)
    )


def test_silence_counts_only_while_a_record_waits(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "j", 1, 0, "t", 9)
    for _ in range(3):
        journal.tell(journal.begin(), Kind.ACKED, 0, 0)
    second = 10**9
    entries: Any = journal.entries()
    entries["begin_ns"] = [100 * second, 200 * second, 203 * second]
    entries["told_ns"] = [101 * second, 205 * second, 206 * second]
    seconds, where = rules.silence(Ledger(1, [journal]))
    assert seconds == 5
    assert "200000.0 ms" in where
    stall = Stall(201 * second, 204 * second)
    assert rules.silence(Ledger(1, [journal]), [stall])[0] == 2


# --- K11, K12


def counters_of(history: History, **other: int) -> dict[str, int]:
    found = {
        "record-acked-total": len(history.of(Kind.ACKED)) + len(history.of(Kind.PENDING)),
        "record-not-written-total": len(history.of(Kind.NOT_WRITTEN)),
        "record-unknown-total": len(history.of(Kind.UNKNOWN)),
        "batches-incomplete": 0,
        "batches-unreleased": 0,
        "batches-quarantined": 0,
        "buffer-total-bytes": 1 << 25,
        "buffer-available-bytes": 1 << 25,
    }
    return found | {name.replace("_", "-"): value for name, value in other.items()}


WRONG: tuple[dict[str, int], ...] = (
    {"record_acked_total": 3}, {"record_acked_total": 10**6}, {"record_not_written_total": 0},
    {"record_not_written_total": 10**6}, {"record_unknown_total": 0},
    {"record_unknown_total": 10**6}, {"batches_incomplete": 1}, {"batches_unreleased": 1},
    {"batches_quarantined": 1}, {"buffer_available_bytes": (1 << 25) - 16384},
)  # fmt: skip


def test_K11_counters_that_do_not_balance_are_found(folders: Callable[[], Path]) -> None:
    history = next(
        h
        for n in range(99)
        if (h := History(folders(), n)).of(Kind.UNKNOWN) and h.of(Kind.NOT_WRITTEN)
    )
    assert history.judge(counters=counters_of(history)).ok
    for change in WRONG:
        report = history.judge(counters=counters_of(history, **change))
        assert set(report.broken) == {"K11"}, change


def test_K12_what_stays_higher_in_every_sample_is_found(tmp_path: Path) -> None:
    history = History(tmp_path, 9)
    before = Footprint(10, 2, 0, 2, 1)

    def broken(*after: Footprint) -> set[str]:
        return set(history.judge(footprints={"sender": (before, after)}).broken)

    for name in Footprint._fields:
        more = before._replace(**{name: getattr(before, name) + 1})
        fewer = before._replace(**{name: getattr(before, name) - 1})
        assert broken(before, before, before) == broken(more, fewer, more) == set()
        assert broken(more, more, more) == {"K12"}, name


# --- runs that show nothing


def invalid(history: History, log: ListedLog | None = None, **terms: Any) -> str:
    report = history.judge(dataclasses.replace(TERMS, **terms), log)
    assert not report.ok
    assert not report.broken
    return "; ".join(report.invalid)


def test_a_log_that_ends_early_or_lacks_an_offset_shows_nothing(tmp_path: Path) -> None:
    history = History(tmp_path, 10)
    place = max(history.rows, key=lambda p: len(history.rows[p]))
    count = len(history.rows[place])
    for ends in (count - 1, count + 1):
        assert "was read up to" in invalid(history, ListedLog(history.rows, {place: ends}))
    for offset in range(count - 1):
        log = ListedLog(history.rows, skipped={(*place, offset)})
        assert f"offset {offset + 1} where {offset} was to be" in invalid(history, log)


def test_a_fault_that_never_happened_and_an_empty_journal_show_nothing(tmp_path: Path) -> None:
    history = History(tmp_path, 11)
    assert "broker down never happened" in invalid(history, faults={"broker down": 0})
    assert history.judge(dataclasses.replace(TERMS, faults={"broker down": 1})).ok
    nothing = History(tmp_path, 12, records=0)
    assert "nothing was attempted" in invalid(nothing)


def test_what_arrives_late_is_counted_and_judged(tmp_path: Path) -> None:
    history = next(h for n in range(99) if (h := History(tmp_path, n)).of(Kind.NOT_WRITTEN))
    earlier = ListedLog(history.rows).extents()
    assert history.judge(earlier=earlier).counts["came_later"] == 0
    sent = history.of(Kind.NOT_WRITTEN)[0]
    history.rows[sent.place].append(sent.row)
    report = history.judge(earlier=earlier)
    assert report.counts["came_later"] == 1
    assert report.broken["K5"] == 1


# --- torn journals


def test_a_journal_that_is_cut_at_any_byte_is_torn(tmp_path: Path) -> None:
    history = History(tmp_path, 13, records=6)
    path = history.journals[0].path
    whole = path.read_bytes()
    for length in [*range(0, HEADER_BYTES, 61), *range(HEADER_BYTES, len(whole))]:
        path.write_bytes(whole[:length])
        with pytest.raises(Torn):
            Journal(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(Torn):
        Journal(path)


def test_an_entry_that_makes_no_sense_shows_nothing(tmp_path: Path) -> None:
    history = History(tmp_path, 14)
    sent = history.of(Kind.ACKED)[0]
    entries = history.entries(sent.stream)
    for name, value in (("begin_ns", 0), ("begin_ns", 1 << 63), ("kind", 6), ("told_ns", 1)):
        right = entries[name][sent.seq]
        entries[name][sent.seq] = value
        assert "makes no sense" in invalid(history)
        entries[name][sent.seq] = right
    assert history.judge().ok


def test_outcomes_beyond_what_was_attempted_show_nothing(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "j", 1, 0, "t", 9)
    journal.tell(journal.begin(), Kind.ACKED, 0, 0)
    journal.tell(1, Kind.ACKED, 0, 1)
    with pytest.raises(Torn, match="record 1, which was not attempted"):
        journal.entries()
