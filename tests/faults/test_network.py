"""What networks do to connections (rows N): resets, ends, silence, delays, damage.

A proxy stands between the sender and one broker, the strict one or a real Kafka. Whatever it does,
every record is in the log once, in order, and told so; what may not be known is asked for.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import mpproducer
from mpproducer.future import BatchFuture
from mpproducer.testing import Broker
from tests.checker.scenario import Scenario, Worker, steady
from tests.conftest import wait_until
from tests.faults.proxy import Proxy

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

FAST = {"request_timeout_ms": 1_000, "reconnect_backoff_ms": 10, "retry_backoff_ms": 10}


def _kafka(*more: Any) -> Any:
    """The parameters of a test that goes through a real Kafka."""
    return pytest.param(
        "Kafka", *more, marks=[pytest.mark.kafka_real, pytest.mark.xdist_group("kafka")]
    )


class Net:
    """A broker, the proxy in front of it, and scenarios that go through the proxy."""

    def __init__(self, broker: Broker | str, proxy: Proxy, folder: Path, seed: int) -> None:
        self.broker = broker
        self.proxy = proxy
        self._folder = folder
        self._seed = seed

    def __call__(self, **config: Any) -> Scenario:
        """A run; the sender knows the proxy only."""
        servers = {"bootstrap_servers": self.proxy.bootstrap_servers}
        return Scenario(self.broker, self._folder, self._seed, **servers | FAST | config)


@contextlib.contextmanager
def _net(broker: Broker | str, folder: Path, seed: int, **options: Any) -> Iterator[Net]:
    server = broker if isinstance(broker, str) else broker.bootstrap_servers
    with Proxy(server, **options) as proxy:
        yield Net(broker, proxy, folder, seed)
        assert not proxy.wrong, proxy.wrong


@pytest.fixture(params=["strict broker"])
def net(request: pytest.FixtureRequest, tmp_path: Path, seed: int) -> Iterator[Net]:
    """`with net(linger_ms=5) as run: ...`."""
    name = "kafka" if request.param == "Kafka" else "broker"
    with _net(request.getfixturevalue(name), tmp_path, seed) as made:
        yield made


both = pytest.mark.parametrize("net", ["strict broker", _kafka()], indirect=True)


def _outcome(batch: BatchFuture) -> list[BaseException]:
    """The errors of its records, when all have an outcome."""
    assert wait_until(batch.done, 20)
    return [error for _, error in batch.failed]


def _one_by_one(run: Scenario, records: int = 20) -> None:
    """Requests of one record each."""
    for number in range(records):
        assert run.writer.send(number % run.partitions).exception(20) is None


def _running(run: Scenario) -> Worker:
    """A worker that sends, when its broker is connected."""
    worker = run.worker()
    assert worker.moves(20)
    assert run.writer.send(0).exception(20) is None
    return worker


@both
@pytest.mark.parametrize("way", ["request", "response"])
def test_fault_N01_a_reset_in_the_middle_is_retried_to_one_copy(net: Net, way: Any) -> None:
    with net() as run:
        workers = run.workers(2)
        for _ in range(4):
            assert all(worker.moves(20) for worker in workers)
            fault = run.fault(net.proxy.on("Produce", way).reset(0.5))
            assert wait_until(lambda f=fault: f.hits == 1)  # type: ignore[misc]
        assert all(worker.moves(20) for worker in workers)
        run.check()
        assert net.proxy.resets == 4


@both
def test_fault_N01_a_reset_of_an_idle_connection_is_not_noticed(net: Net) -> None:
    with net() as run:
        _one_by_one(run)
        for _ in range(3):
            run.hit("reset while idle", net.proxy.reset_all())
            _one_by_one(run, 5)
        run.check()
        assert net.proxy.resets >= 3


@both
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("way", ["request", "response"])
def test_fault_N02_the_end_of_a_stream_anywhere_is_retried_to_one_copy(
    net: Net, way: Any, at: float
) -> None:
    with net() as run:
        worker = _running(run)
        for _ in range(2):
            before = net.proxy.connections
            run.fault(net.proxy.on("Produce", way).fin(at))
            assert wait_until(lambda b=before: net.proxy.connections > b)  # type: ignore[misc]
            assert worker.moves(50)
        run.check()


def test_fault_N03_a_broker_that_refuses_is_asked_again_after_a_backoff(net: Net) -> None:
    with net(reconnect_backoff_ms=20, reconnect_backoff_max_ms=200) as run:
        worker = _running(run)
        made = run.counters()["connection-creation-total"]
        run.hit("refused", net.proxy.refuse())

        def attempts() -> int:
            return run.counters()["connection-creation-total"] - made

        began = time.monotonic()
        assert wait_until(lambda: attempts() >= 6)
        # Two nodes, the broker and its bootstrap server: 16 ms at least, then 32, ... up to 160.
        assert attempts() < 2 * (6 + (time.monotonic() - began) / 0.16)
        net.proxy.listen()
        assert worker.moves(50)
        run.check()


def test_fault_N03_a_broker_that_does_not_hear_is_given_up_after_the_setup_timeout(
    net: Net,
) -> None:
    with net(socket_connection_setup_timeout_ms=200) as run:
        worker = _running(run)
        sender = psutil.Process(run.status()["pid"])
        run.hit("deaf", net.proxy.deaf())
        tries: set[int] = set()

        def knocks() -> int:
            port = net.proxy.port
            found = sender.net_connections("tcp")
            tries.update(c.fd for c in found if c.status == "SYN_SENT" and c.raddr.port == port)
            return len(tries)

        before = run.counters()["connection-creation-total"]
        assert wait_until(lambda: knocks() > 0)
        assert wait_until(lambda: run.counters()["connection-creation-total"] >= before + 2)
        net.proxy.listen()
        assert worker.moves(50)
        run.check()


@both
def test_fault_N04_a_peer_that_vanishes_is_found_by_the_request_timeout(net: Net) -> None:
    with net() as run:
        worker = _running(run)
        before = run.counters()["request-timeout-total"]
        run.hit("vanished", net.proxy.vanish())
        assert wait_until(lambda: run.counters()["request-timeout-total"] > before)
        assert worker.moves(50)
        run.check()


@pytest.mark.parametrize(
    ("net", "seconds"),
    [("strict broker", (0.15, 0.25)), ("strict broker", (2.0, 2.0)), _kafka((0.15, 0.25))],
    indirect=["net"],
)
def test_fault_N05_latency_is_filled_with_requests(
    net: Net, rng: random.Random, seconds: tuple[float, float]
) -> None:
    with net(request_timeout_ms=10_000, linger_ms=0) as run:
        _one_by_one(run)
        net.proxy.most_outstanding = 0
        # Half of it each way.
        net.proxy.latency = lambda: rng.uniform(*seconds) / 2
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            run.writer.send(0)
            time.sleep(0.005)
        assert run.writer.send(0).exception(20) is None
        run.hit("requests on the way together", net.proxy.most_outstanding)
        assert net.proxy.most_outstanding == 5
        net.proxy.latency = lambda: 0.0
        report = run.check()
        assert report.counts["slowest_s"] >= seconds[0]
        assert run.counters()["request-timeout-total"] == 0


LARGE: dict[str, Any] = {
    "partitions": 1, "send_buffer_bytes": 8_192, "linger_ms": 0, "batch_size": 900_000,
    "buffer_memory": 4_000_000, "max_request_size": 1_000_000,
}  # fmt: skip
"""Batches of seconds on a path as slow as those below."""


@pytest.fixture
def narrow(broker: Broker, tmp_path: Path, seed: int) -> Iterator[Net]:
    """Buffers of the path are small: a request is on its way for as long as its bytes are."""
    with _net(broker, tmp_path, seed, receive_buffer=4_096) as made:
        yield made


def test_fault_N06_a_request_that_expires_half_written_ends_its_connection(narrow: Net) -> None:
    """Nothing ever follows half a request, and its memory is not used again before the end."""
    proxy = narrow.proxy
    with narrow(**LARGE, delivery_timeout_ms=1_500, request_timeout_ms=1_000) as run:
        _one_by_one(run, 3)
        proxy.rate = 6_400  # not even a request of one record is through within its timeout
        sent = run.writer.send_many(60, 0, 10_000)
        errors = _outcome(sent)
        assert len(errors) == 60
        assert isinstance(errors[0], mpproducer.Unknown)
        assert wait_until(lambda: proxy.cut_short > 0)
        run.hit("requests cut short", proxy.cut_short)
        # Their slots are free: others use them.
        assert wait_until(lambda: run.counters()["batches-unreleased"] == 0)
        proxy.rate = 0
        assert wait_until(lambda: run.writer.send(0).exception(20) is None)
        for _ in range(5):
            assert not _outcome(run.writer.send_many(60, 0, 10_000))
        report = run.check(delivered=False, max_unknown=60)
        assert report.counts["unknown"] > 0


def test_fault_N06_a_batch_that_expired_half_written_is_written_as_it_was(narrow: Net) -> None:
    """Told unknown, its memory is still read by the connection; meanwhile all the rest is used."""
    proxy = narrow.proxy
    with narrow(**LARGE, delivery_timeout_ms=2_500, request_timeout_ms=2_000) as run:
        _one_by_one(run, 3)
        proxy.rate = 64_000
        first = run.writer.send(0, size=600_000)
        # The first connection ends with its request timeout; on the second the batch expires.
        assert isinstance(first.exception(20), mpproducer.Unknown)
        run.hit("expired half written", run.counters()["batches-unreleased"])
        later = run.writer.send_many(250, 0, 10_000)
        run.hit("timed out", run.counters()["request-timeout-total"])
        proxy.rate = 0
        assert not _outcome(later)
        report = run.check(delivered=False, max_unknown=1)
        # The second connection was not cut: what it had begun went on, whole and right.
        assert run.counters()["request-timeout-total"] == proxy.cut_short == 1
        assert report.counts["read"] == 254 == report.counts["acked"] + report.counts["unknown"]


@both
def test_fault_N07_single_bytes_are_what_whole_messages_are(net: Net) -> None:
    net.proxy.slice_bytes = 1
    with net() as run:
        worker = run.worker(steady(100, pause_s=0.05))
        assert worker.moves(60)
        worker.journal.stop = True
        assert worker.join() == 0
        run.hit("single bytes", net.proxy.slices)
        net.proxy.slice_bytes = 0
        assert run.check().counts["faults"]["single bytes"] > 6_000


@both
def test_fault_N09_responses_that_never_come_are_asked_for_again(net: Net) -> None:
    with net() as run:
        worker = _running(run)
        fault = run.fault(net.proxy.on("Produce", "response", times=6).drop())
        assert wait_until(lambda: fault.hits == 6, 30)
        assert worker.moves(50)
        run.check()
        # One timeout gives up all requests of a connection.
        assert run.counters()["request-timeout-total"] >= 1


@both
@pytest.mark.parametrize("byte", [-20, 0, 3, 6], ids=["record", "length", "length+32", "id"])
def test_fault_N10_B12_B16_a_byte_that_changed_on_the_way_harms_nothing(
    net: Net, byte: int
) -> None:
    """In a record the CRC tells it to the broker; in a response the sender sees it."""
    way: Any = "request" if byte < 0 else "response"
    with net(partitions=1) as run:
        _one_by_one(run)
        for _ in range(2):
            fault = run.fault(net.proxy.on("Produce", way).flip(byte))
            assert run.writer.send(0).exception(20) is None
            assert fault.hits == 1
        report = run.check()
        assert report.counts["read"] == report.counts["acked"] == 22
        assert run.counters()["record-retry-total"] >= 2


@both
def test_B18_half_a_response_and_then_silence_ends_with_the_request_timeout(net: Net) -> None:
    with net() as run:
        run.writer.send(0).result(20)
        before = run.counters()["request-timeout-total"]
        for number in range(1, 3):
            half = run.fault(net.proxy.on("Produce", "response").stall(0.5))
            assert run.writer.send(0).exception(20) is None
            assert half.hits == 1
            assert run.counters()["request-timeout-total"] == before + number
        run.check()


@both
def test_fault_N14_a_connection_that_ends_as_it_is_used_again_is_opened_anew(net: Net) -> None:
    with net() as run:
        for _ in range(5):
            _one_by_one(run, 3)
            time.sleep(0.1)
            before = net.proxy.connections
            fault = run.fault(net.proxy.on("Produce").fin(0.0))
            assert run.writer.send(0).exception(20) is None
            assert fault.hits == 1
            assert net.proxy.connections > before
        run.check()
        assert net.proxy.requests["Produce"] == 5 * (3 + 2)


@both
def test_fault_N16_connections_that_all_die_young_deliver_everything(
    net: Net, rng: random.Random
) -> None:
    net.proxy.lifetime = lambda: rng.uniform(0.05, 0.2)
    with net() as run:
        workers = run.workers(3)
        assert wait_until(lambda: net.proxy.resets >= 12, 30)
        assert all(worker.moves(100) for worker in workers)
        run.hit("connections reset", net.proxy.resets)
        run.check()
