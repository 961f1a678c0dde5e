"""The soak in short: everything it does, against the strict broker, and that it notices."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.checker.check import Report
from tests.soak.draw import Round
from tests.soak.runner import TOLD_BY, Total

ROOT = Path(__file__).resolve().parents[2]


def soak(*words: str, status: int = 0) -> dict[str, Any]:
    """The summary of a run of the command."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak.runner", *words], cwd=ROOT, capture_output=True,
        text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return dict(found[-1])


@pytest.mark.slow
def test_workers_sender_and_brokers_are_killed_and_stopped_and_nothing_is_lost(seed: int) -> None:
    found = soak("--broker", "--minutes", "0.1", "--seed", str(seed))
    assert found["ok"]
    assert found["seed"] == seed
    assert [found[name] for name in TOLD_BY] == [0] * len(TOLD_BY)
    assert found["records"]["read"] > 100
    assert found["records"]["acked"] > 100
    assert len(found["faults"]) > 2


def test_B30_without_faults_everything_is_acknowledged() -> None:
    found = soak("--broker", "--no-faults", "--records", "20001", "--workers", "3")
    records = found["records"]
    assert records["acked"] == records["read"] == records["attempted"] == 20_001
    assert records["unknown"] == records["orphaned"] == 0
    assert found["rounds"] == 1


def test_a_round_is_its_seed() -> None:
    draws = [Round.of(random.Random(f"7/{number}")) for number in range(40)]
    assert draws == [Round.of(random.Random(f"7/{number}")) for number in range(40)]
    assert len({str(draw) for draw in draws}) == 40
    assert {draw.expires for draw in draws} == {True, False}
    for draw in draws:
        assert 2 <= draw.workers <= 5


def test_every_rule_is_told_in_the_summary_and_fails_the_run() -> None:
    told = [rule for rules in TOLD_BY.values() for rule in rules]
    assert sorted(told, key=lambda rule: int(rule[1:])) == [f"K{n}" for n in range(1, 13)]
    for name, rules in TOLD_BY.items():
        for rule in rules:
            total = Total()
            report = Report({"read": 3, "longest_silence_s": 1.5, "faults": {"broker killed": 2}})
            report.broken[rule] = 4
            total.add("a round", report)
            assert total.summary()[name] == 4
            assert total.summary()["records"]["read"] == 3
            assert total.summary()["faults"] == {"broker killed": 2}
            assert total.failures[0].startswith("a round: ")
    total = Total()
    total.add("a round", Report(invalid=["nothing was attempted"]))
    assert total.failures


def test_wrong_words_are_named() -> None:
    done = subprocess.run(
        [str(ROOT / "scripts" / "soak"), "--workers", "0"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--workers" in done.stderr
