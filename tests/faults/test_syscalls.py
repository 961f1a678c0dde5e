"""Calls of the sender that fail (rows N): no route, no port, no buffers, interrupts, names.

A preloaded library does it (`syscalls.c`): the system's own answers, at the moment a test says.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from mpproducer.testing import Broker
from tests.checker.scenario import Scenario, Worker
from tests.conftest import metric, wait_until
from tests.faults.proxy import Proxy
from tests.faults.syscalls import Syscalls

Scenarios = Callable[..., Scenario]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
FAST = {"reconnect_backoff_ms": 20, "reconnect_backoff_max_ms": 200, "retry_backoff_ms": 10}
NAME = "kafka.lan"


def _running(run: Scenario) -> Worker:
    """A worker that sends, when its broker is connected."""
    worker = run.worker()
    assert worker.moves(20)
    assert run.writer.send(0).exception(20) is None
    return worker


@pytest.fixture
def calls(tmp_path: Path) -> Syscalls:
    return Syscalls(tmp_path)


@pytest.mark.parametrize("code", [errno.EHOSTUNREACH, errno.EADDRNOTAVAIL])
def test_fault_N03_N15_a_connect_that_fails_at_once_is_repeated_after_a_backoff(
    broker: Broker, scenario: Scenarios, calls: Syscalls, code: int
) -> None:
    with (
        Proxy(broker.bootstrap_servers) as proxy,
        scenario(
            sender_python=calls.python, bootstrap_servers=proxy.bootstrap_servers, **FAST
        ) as run,
    ):
        worker = _running(run)
        connect = calls.control.connect.fail(code)
        before, began = connect.calls, time.monotonic()
        assert proxy.reset_all() > 0
        assert wait_until(lambda: connect.hits >= 6)
        # Two nodes, the broker and its bootstrap server: 16 ms at least, then 32, ... up to 160.
        assert connect.calls - before < 2 * (6 + (time.monotonic() - began) / 0.16)
        run.hit(errno.errorcode[code], connect.heal())
        assert worker.moves(50)
        run.check()


@pytest.mark.parametrize(
    ("call", "code", "every"),
    [
        ("send", errno.EAGAIN, 2),
        ("send", errno.EINTR, 2),
        ("send", errno.ENOBUFS, 23),
        ("send", 0, 2),
        ("receive", errno.EAGAIN, 2),
        ("receive", errno.EINTR, 2),
        ("receive", 0, 2),
        ("wait", errno.EINTR, 2),
    ],
)
def test_fault_N08_a_call_that_fails_or_does_a_part_loses_nothing(
    scenario: Scenarios, calls: Syscalls, call: str, code: int, every: int
) -> None:
    with scenario(sender_python=calls.python, **FAST) as run:
        workers = run.workers(2)
        assert workers[0].moves(20)
        failing = getattr(calls.control, call).fail(code, every)
        assert wait_until(lambda: failing.hits >= 20, 30)
        assert all(worker.moves(50) for worker in workers)
        run.hit(f"{call}: {errno.errorcode.get(code, 'a part')}", failing.heal())
        run.check()


def test_fault_N08_a_sender_that_may_not_write_sleeps(broker: Broker, scenario: Scenarios) -> None:
    with (
        Proxy(broker.bootstrap_servers, receive_buffer=4_096) as proxy,
        scenario(
            bootstrap_servers=proxy.bootstrap_servers, send_buffer_bytes=8_192, linger_ms=0
        ) as run,
    ):
        assert run.writer.send(0).exception(20) is None
        sender = psutil.Process(run.status()["pid"])
        proxy.rate = 50
        for _ in range(10):
            run.writer.send_many(10, 0, 10_000)
        assert wait_until(lambda: metric(run.producer, "requests-in-flight") > 0)
        time.sleep(0.3)
        before = sum(sender.cpu_times()[:2])
        time.sleep(1.0)
        spent = sum(sender.cpu_times()[:2]) - before
        run.hit("requests held up", run.counters()["batches-incomplete"])
        assert spent < 0.25, f"{spent} s of CPU in one second"
        proxy.rate = 0
        run.check()


class Named:
    """A run whose broker, and its bootstrap server, is a name with addresses of the test's."""

    def __init__(self, broker: Broker, scenario: Scenarios, calls: Syscalls) -> None:
        self.calls = calls
        self.proxy = Proxy(broker.bootstrap_servers, name=NAME)
        self._scenario = scenario

    def scenario(self, **config: Any) -> Scenario:
        """To be entered when the proxy listens."""
        servers = {"bootstrap_servers": self.proxy.bootstrap_servers}
        return self._scenario(sender_python=self.calls.python, **servers | FAST | config)


@pytest.fixture
def named(broker: Broker, scenario: Scenarios, calls: Syscalls) -> Named:
    return Named(broker, scenario, calls)


def test_fault_N11_a_name_that_is_not_found_for_a_while(named: Named) -> None:
    control = named.calls.control
    named.calls.names("127.0.0.1")
    with named.proxy as proxy, named.scenario() as run:
        worker = _running(run)
        control.resolve_error = socket.EAI_AGAIN
        before = control.resolved
        assert proxy.reset_all() > 0
        assert wait_until(lambda: control.resolved >= before + 4)
        control.resolve_error = 0
        assert worker.moves(50)
        run.hit("not found", control.resolved - before)
        run.check()


def test_fault_N11_a_lookup_that_hangs_does_not_hold_up_the_loop(named: Named) -> None:
    control = named.calls.control
    named.calls.names("127.0.0.1")
    with named.proxy as proxy, named.scenario() as run:
        worker = _running(run)
        control.resolve_ms = 2_000
        assert proxy.reset_all() > 0
        assert wait_until(lambda: control.resolving == 1)
        control.resolve_ms = 0
        begun, answers = control.resolved, 0
        while control.resolved == begun and answers < 20:
            assert run.status()["pid"] > 0
            answers += control.resolved == begun
        assert answers == 20, "the loop slept while a name was looked up"
        assert worker.moves(50)
        run.hit("lookup that hangs")
        run.check()


def test_fault_N11_a_name_with_a_new_address(named: Named) -> None:
    named.calls.names("127.0.0.1")
    with named.proxy as proxy, named.scenario() as run:
        worker = _running(run)
        run.hit("moved", proxy.refuse())
        named.calls.names("127.0.0.9")
        before = proxy.connections
        proxy.listen("127.0.0.9")
        assert worker.moves(50)
        assert wait_until(lambda: proxy.connections > before)
        run.check()


def test_fault_N11_four_dead_addresses_of_five_are_passed_over(named: Named) -> None:
    named.calls.names("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5", "127.0.0.1")
    # A backoff would last longer than anybody waits here.
    with (
        named.proxy as proxy,
        named.scenario(reconnect_backoff_ms=60_000, reconnect_backoff_max_ms=60_000) as run,
    ):
        assert _running(run).moves(30)
        run.hit("refused", named.calls.control.connect.calls - proxy.connections)
        assert named.calls.control.connect.calls == 5 * proxy.connections
        run.check()
