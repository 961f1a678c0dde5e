"""The run of a fault test: scenario, fault, heal, check."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpproducer.testing import Broker, BrokerProcess
from tests.checker.scenario import Scenario


@pytest.fixture
def three() -> Iterator[Broker]:
    """An in-memory cluster of three nodes."""
    with Broker(brokers=3) as running:
        yield running
        assert not running.malformed, running.malformed


@pytest.fixture
def scenario(broker: Broker, tmp_path: Path, seed: int) -> Callable[..., Scenario]:
    """`Scenario` for the broker of the test, or another: `with scenario(linger_ms=5) as run`."""
    numbers = itertools.count()

    def make(on: Broker | BrokerProcess | None = None, **options: object) -> Scenario:
        place = tmp_path, seed + next(numbers)
        return Scenario(broker if on is None else on, *place, **options)  # type: ignore[arg-type]

    return make
