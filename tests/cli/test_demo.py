"""`mpproducer demo`: what it shows is what happened, and it fails when something is wrong."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import threading
import time

import pytest

from mpproducer.cli import main
from mpproducer.cli.demo_job import Job, have_confluent, read_back, records_of, verify
from tests.cli.support import COMMAND, TIMEOUT_S, mpproducer

SMALL = ("-n", "3000", "-w", "3", "-r", "0", "-s", "60")


def rows_of(text: str) -> dict[str, list[str]]:
    """Label -> cells of the table."""
    lines = [re.split(r"\s*[│┃]\s*", line.strip())[1:-1] for line in text.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if len(cells) > 1}


def test_the_job_is_verified_and_shown_beside_separate_producers() -> None:
    assert have_confluent()
    done = mpproducer("demo", *SMALL)
    assert done.returncode == 0, done.stderr
    rows = rows_of(done.stdout)
    assert rows["records acknowledged"] == ["3,000", "3,000"]
    assert rows["read back once, in order"] == ["yes", "yes"]
    assert rows["producer ids"] == ["1", "3"]
    ours, theirs = (int(cell) for cell in rows["connections made"])
    assert ours < theirs
    assert "\x1b" not in done.stdout + done.stderr


def test_alone_shows_one_column() -> None:
    done = mpproducer("demo", *SMALL, "--alone", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert rows_of(done.stdout)["records acknowledged"] == ["3,000"]


def test_on_a_terminal_there_is_a_bar_with_counts() -> None:
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                shown.extend(os.read(ours, 65536))
            except OSError:  # the other side is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    done = subprocess.run(
        [*COMMAND, "demo", *SMALL, "--alone"], stdin=theirs, stdout=subprocess.DEVNULL,
        stderr=theirs, timeout=TIMEOUT_S, check=False, env=os.environ | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    assert done.returncode == 0
    assert "3,000 of 3,000 records" in shown.decode()


def test_a_rate_is_kept() -> None:
    started_s = time.monotonic()
    done = mpproducer("demo", "-n", "2000", "-r", "1000", "-w", "2", "--alone", "-q")
    assert time.monotonic() - started_s > 2.0
    assert float(rows_of(done.stdout)["records/s"][0].replace(",", "")) <= 1010


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["-n", "0"], "--records 0: must be at least 1"), (["-w", "0"], "--workers 0: must be"),
     (["-r", "-1"], "must not be negative"), (["-s", "-1"], "must not be negative")],
)  # fmt: skip
def test_options_that_cannot_be_are_named(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_verification_finds_every_kind_of_damage() -> None:
    job = Job("", records=40, workers=2, rate=0, value_bytes=50)
    good: list[tuple[int, bytes | None, bytes | None]] = [
        (hash(key) % 4, key, value) for worker in range(2) for key, value in records_of(job, worker)
    ]
    assert verify(job, list(good)) == []
    assert "is missing" in verify(job, good[:5] + good[6:])[0]
    assert "there twice" in verify(job, [*good, good[3]])[0]
    changed = (good[0][0], good[0][1], (good[0][2] or b"").replace(b" ", b"x"))
    assert "changed" in verify(job, [changed, *good[1:]])[0]
    same = [at for at, row in enumerate(good[:20]) if row[0] == good[0][0]]
    swapped = list(good)
    swapped[same[0]], swapped[same[1]] = swapped[same[1]], swapped[same[0]]
    assert "out of order" in verify(job, swapped)[0]
    assert "is in two partitions" in " ".join(verify(job, [(5, *good[0][1:]), good[0]]))


def test_a_wrong_log_fails_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mpproducer.cli import demo

    monkeypatch.setattr(demo, "read_back", lambda broker, job: read_back(broker, job)[1:])
    assert main(["demo", *SMALL, "--alone", "-q"]) == 1
    said = capsys.readouterr()
    assert "is missing" in said.err
    assert rows_of(said.out)["read back once, in order"] == ["NO"]
