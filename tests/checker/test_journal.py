"""A journal tells the truth however and whenever its writer ends."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.checker import journal as module
from tests.checker.check import check
from tests.checker.history import ListedLog, Row
from tests.checker.journal import Journal, Kind
from tests.checker.records import Identity, encode
from tests.checker.rules import Terms

RUN = 77
TOPIC = "events"
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def row(seq: int) -> Row:
    return Row(encode(Identity(RUN, 0, seq, TOPIC, 0), 100), None, 0)


class Sending:
    """A writer that sends to a log of its own; `appended` is what the log has at any moment."""

    def __init__(self, journal: Journal, rng: random.Random) -> None:
        self.journal = journal
        self.rng = rng
        self.appended = 0
        self.told = 0

    def step(self) -> None:
        journal = self.journal
        if self.rng.random() < 0.6:
            count = self.rng.choice((1, 1, 1, 5))
            journal.begin(count)
            self.appended += count
            journal.returned()
        elif self.told < self.appended:
            count = min(self.rng.choice((1, 3)), self.appended - self.told)
            offsets = range(self.told, self.told + count)
            if count == 1:
                journal.tell(self.told, Kind.ACKED, 0, self.told)
            else:
                journal.tell_many(self.told, Kind.ACKED, [0] * count, list(offsets))
            self.told += count


def test_killed_between_any_two_lines_it_accuses_nobody(tmp_path: Path, rng: random.Random) -> None:
    """What the file held at every line of the writer's code, each time as if it had died there."""
    journal = Journal.create(tmp_path / "live", RUN, 0, TOPIC, 64)
    sending = Sending(journal, rng)
    moments: list[tuple[bytes, int]] = []

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if frame.f_code.co_filename != module.__file__:
            return None
        if event == "line":
            moments.append((journal._map[:], sending.appended))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for _ in range(30):
            sending.step()
    finally:
        sys.settrace(before)
    assert sending.told > 3
    assert len(moments) > 150
    states = set()
    for whole, appended in moments:
        path = tmp_path / "dead"
        path.write_bytes(whole)
        dead = Journal(path)
        states.add((dead.attempted, dead.returns, int((dead.entries()["kind"] > 0).sum())))
        log = ListedLog({(TOPIC, 0): [row(seq) for seq in range(appended)]})
        report = check(RUN, [dead], log)
        assert not report.broken, report.line()
        if appended and dead.returns == appended:  # one record less, and it is found
            log = ListedLog({(TOPIC, 0): [row(seq) for seq in range(appended - 1)]})
            assert check(RUN, [dead], log).broken
    assert len(states) > 20


def test_what_was_stored_is_there_after_kill_9(tmp_path: Path, rng: random.Random) -> None:
    for number in range(10):
        journal = Journal.create(tmp_path / str(number), RUN, 0, TOPIC, 1 << 20)
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    seq = journal.begin()
                    journal.returned()
                    journal.tell(seq, Kind.ACKED, 0, seq)
            finally:
                os._exit(1)
        while journal.returns < 50:
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.003)
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        left = Journal(journal.path)
        assert not left.finished
        assert left.attempted - 1 <= left.returns <= left.attempted
        told = int((left.entries()["kind"] == Kind.ACKED).sum())
        assert left.returns - 1 <= told <= left.returns
        log = ListedLog({(TOPIC, 0): [row(seq) for seq in range(left.attempted)]})
        check(RUN, [left], log).require()


def test_what_a_stream_is_and_was_told_is_read_back(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "j", RUN, 9, "topic-ü", 5)
    journal.pid = 4711
    journal.note = 3
    assert journal.begin() == 0
    assert journal.begin(3) == 1
    journal.returned()
    journal.tell(2, Kind.UNKNOWN)
    journal.tell_many(0, Kind.ACKED, [4, 5], [44, 55])
    other = Journal(journal.path)
    assert (other.run, other.stream, other.topic, other.pid) == (RUN, 9, "topic-ü", 4711)
    assert (other.attempted, other.returns, other.note) == (4, 4, 3)
    assert (other.finished, other.stop) == (False, False)
    other.stop = True
    assert journal.stop
    journal.finish()
    assert other.finished
    entries = other.entries()
    assert entries["kind"].tolist() == [Kind.ACKED, Kind.ACKED, Kind.UNKNOWN, Kind.PENDING]
    assert entries["offset"].tolist()[:2] == [44, 55]
    assert entries["partition"].tolist()[:2] == [4, 5]
    assert (entries["told_ns"][:3] >= entries["begin_ns"][:3]).all()


def test_a_second_outcome_is_kept_as_such_and_changes_nothing(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "j", RUN, 0, TOPIC, 5)
    journal.begin(3)
    journal.tell(1, Kind.ACKED, 0, 8)
    journal.tell(1, Kind.UNKNOWN)
    assert journal.told_again == (1, 1)
    assert journal.entries()["kind"].tolist() == [0, Kind.ACKED, 0]
    journal.tell_many(0, Kind.ACKED, [0, 0], [7, 8])
    assert journal.told_again == (2, 1)


def test_a_full_journal_and_one_of_another_run_are_named(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "j", RUN, 0, TOPIC, 2)
    journal.begin()
    with pytest.raises(OverflowError, match="room for 2"):
        journal.begin(2)
    assert journal.attempted == 1
    with pytest.raises(FileExistsError):
        Journal.create(tmp_path / "j", RUN, 0, TOPIC, 2)
    with pytest.raises(ValueError, match="is of run 77"):
        check(RUN + 1, [journal], ListedLog({}), Terms())
