"""The simulation is tested by bugs put into the machine: it must find every one of them."""

from __future__ import annotations

import pytest

from mpproducer.sender.machine import Machine
from tests.sim import mutants, runner
from tests.sim.runner import Case

WITHIN_SEEDS = 1_000  # nearly all are found within 200; the rarest needs a bump in a narrow window


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_simulation_finds(mutant: mutants.Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "check_invariants", lambda self: None)
    mutant(monkeypatch)
    for seed in range(WITHIN_SEEDS):
        if runner.run(Case(seed)).failures:
            return
    pytest.fail(f"{mutant.__name__} lived through {WITHIN_SEEDS} seeds")
