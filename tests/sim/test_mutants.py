"""The simulation is tested by bugs put into the machine: it must find every one of them."""

from __future__ import annotations

import pytest

from tests import interpreted
from tests.sim import mutants


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_simulation_finds(mutant: mutants.Mutant) -> None:
    status, output = interpreted.run("tests.sim.mutants", mutant.__name__)
    assert status == 0, output
    assert "found by seed" in output


def test_without_a_bug_it_finds_none() -> None:
    status, output = interpreted.run("tests.sim.mutants", "none", "--seeds", "60")
    assert status == 1, output
    assert "lived through 60 seeds" in output
