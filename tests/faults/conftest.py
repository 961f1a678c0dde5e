"""The run of a fault test: scenario, fault, heal, check."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from mpproducer.testing import Broker
from tests.checker.scenario import Scenario


@pytest.fixture
def scenario(broker: Broker, tmp_path: Path, seed: int) -> Callable[..., Scenario]:
    """`Scenario` for the broker of the test: `with scenario(linger_ms=5) as run: ...`."""
    numbers = itertools.count()
    return lambda **options: Scenario(broker, tmp_path, seed + next(numbers), **options)
