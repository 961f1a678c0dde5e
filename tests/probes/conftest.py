"""The two clusters every probe runs on: the package's broker and real Kafka."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import pytest

from mpproducer.testing import Broker
from tests.probes.client import Raw, Topic

KAFKA = pytest.param("kafka", marks=[pytest.mark.kafka_real, pytest.mark.xdist_group("kafka")])


@pytest.fixture(autouse=True)
def runtime_dir() -> None:
    """No sender is started here."""


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Probes open sockets only, each in a `with`; many short tests do without the search."""


@pytest.fixture(scope="module")
def embedded() -> Iterator[str]:
    # Refusing uncompressed holes is the one point where the broker is stricter on purpose.
    with Broker(strict_offsets=False) as broker:
        yield broker.bootstrap_servers


@pytest.fixture(params=["embedded", KAFKA])
def servers(request: pytest.FixtureRequest) -> str:
    """Bootstrap servers of each of the two."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def raw(servers: str) -> Iterator[Raw]:
    """A connection."""
    with Raw(servers) as connection:
        yield connection


@pytest.fixture
def topic(raw: Raw, servers: str) -> Iterator[Topic]:
    """A new topic of two partitions."""
    made = raw.create(f"probe-{uuid.uuid4().hex}", partitions=2)
    yield made
    with contextlib.suppress(OSError), Raw(servers) as other:
        other.delete(made.name)
