"""The regression gate: it fails for what is worse, and today's figures pass it."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from bench import gate

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def verdicts(now: dict[str, float], was: dict[str, float], python: str = "3.0") -> list[bool]:
    baseline: dict[str, Any] = {"python": "3.0", "figures": was}
    return [passed for _line, passed in gate.compare(now, baseline, python)]


def test_worse_than_the_slack_fails_and_better_passes() -> None:
    figure = next(f for f in gate.FIGURES if f.name == "wire_bytes")
    was = {"wire_bytes": 100.0}
    limit = 100 * (1 + figure.slack)
    assert verdicts({"wire_bytes": limit - 0.01}, was) == [True]
    assert verdicts({"wire_bytes": limit + 0.01}, was) == [False]
    assert verdicts({"wire_bytes": 10.0}, was) == [True]


def test_a_figure_without_baseline_fails() -> None:
    assert verdicts({"wire_bytes": 1.0}, {}) == [False]


def test_instructions_of_another_python_are_not_compared() -> None:
    now, was = {"send_instructions": 1e9}, {"send_instructions": 1.0}
    assert verdicts(now, was, "3.0") == [False]
    assert verdicts(now, was, "3.1") == [True]


def test_every_figure_has_a_committed_baseline() -> None:
    baseline = json.loads(gate.BASELINE.read_text())
    assert {figure.name for figure in gate.FIGURES} == set(baseline["figures"])
    assert all(value > 0 for value in baseline["figures"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", list(gate.MEASURES))
def test_todays_figures_pass_the_gate(name: str) -> None:
    found, skipped = gate.measure([name])
    if name in skipped:
        pytest.skip(skipped[name])
    baseline = json.loads(gate.BASELINE.read_text())
    lines = list(gate.compare(found, baseline, PYTHON))
    assert lines
    assert all(passed for _line, passed in lines), "\n".join(line for line, _passed in lines)
