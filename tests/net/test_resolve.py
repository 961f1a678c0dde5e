"""Names to addresses off the loop's thread."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mpproducer.net.resolve import Answer, Resolver, lookup
from mpproducer.net.stream import Address


class Bench:
    """A resolver over a scripted lookup."""

    def __init__(self) -> None:
        self.woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.go = threading.Event()
        self.go.set()
        self.result: list[Address] | Exception = []
        self.resolver = Resolver(lambda: self.woken.put(None), self._look_up)

    def _look_up(self, host: str, port: int) -> list[Address]:
        assert self.go.wait(10)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result or [Address(socket.AF_INET, (host, port))]

    def one(self, token: Any, host: str, port: int = 9092) -> Answer:
        """Submit, wait until woken, take the only answer."""
        self.resolver.submit(token, host, port)
        self.woken.get(timeout=10)
        (answer,) = self.resolver.take()
        return answer


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.go.set()
    made.resolver.close()
    if made.resolver._thread is not None:
        made.resolver._thread.join(10)
        assert not made.resolver._thread.is_alive()


def test_a_name_is_answered_with_its_token_and_addresses(bench: Bench) -> None:
    answer = bench.one(7, "kafka")
    assert answer == Answer(7, "kafka", (Address(socket.AF_INET, ("kafka", 9092)),), "")
    assert bench.resolver.take() == []


@pytest.mark.parametrize(
    ("host", "family"), [("10.1.2.3", socket.AF_INET), ("::1", socket.AF_INET6)]
)
def test_a_literal_address_needs_no_lookup_and_no_thread(
    bench: Bench, host: str, family: int
) -> None:
    answer = bench.one("x", host, 5)
    assert answer.addresses[0].family == family
    assert answer.addresses[0].sockaddr[:2] == (host, 5)
    assert bench.resolver._thread is None


def test_fault_N11_a_failed_lookup_says_which_name_and_why(bench: Bench) -> None:
    bench.result = OSError("no such host")
    answer = bench.one(1, "nowhere")
    assert answer.addresses == ()
    assert "cannot resolve nowhere" in answer.why
    assert "no such host" in answer.why


def test_a_name_the_encoding_refuses_is_an_answer_and_not_the_end_of_the_thread(
    bench: Bench,
) -> None:
    bench.result = UnicodeError("label too long")
    assert "label too long" in bench.one(1, "x" * 300).why
    bench.result = []
    assert bench.one(2, "fine").addresses


def test_fault_N11_a_lookup_that_hangs_holds_up_neither_the_caller_nor_literal_addresses(
    bench: Bench,
) -> None:
    bench.go.clear()
    bench.resolver.submit(1, "slow", 1)
    assert bench.one(2, "127.0.0.1").token == 2
    bench.go.set()
    bench.woken.get(timeout=10)
    assert [answer.token for answer in bench.resolver.take()] == [1]


def test_answers_come_in_the_order_asked(bench: Bench) -> None:
    for token in range(20):
        bench.resolver.submit(token, f"host{token}", 1)
    for _ in range(20):
        bench.woken.get(timeout=10)
    assert [answer.token for answer in bench.resolver.take()] == list(range(20))


def test_the_systems_lookup_gives_every_address_once() -> None:
    found = lookup("localhost", 80)
    assert len(found) == len(set(found)) >= 1
    assert {address.sockaddr[1] for address in found} == {80}
    with pytest.raises(UnicodeError):
        lookup("x" * 300, 80)
