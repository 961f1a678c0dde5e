"""Backoff and deadlines."""

from __future__ import annotations

import random

import pytest

from mpproducer.sender.batch import NEVER_NS
from mpproducer.sender.retry import MS, Backoff, deadline_ns


@pytest.mark.parametrize("attempt", range(1, 12))
def test_A10_the_nth_wait_is_base_times_2_to_the_n_minus_1_within_a_fifth(attempt: int) -> None:
    backoff = Backoff(100, 1_000, random.Random(attempt))
    plain = min(100 * 2 ** (attempt - 1), 1_000) * MS
    waits = [backoff.draw_ns(attempt) for _ in range(500)]
    assert all(0.8 * plain <= wait <= min(1.2 * plain, 1_000 * MS) for wait in waits)
    assert len(set(waits)) > 100


def test_N11_base_at_or_above_the_cap_is_constant_without_jitter() -> None:
    for base in (1_000, 5_000):
        backoff = Backoff(base, 1_000, random.Random(1))
        assert {backoff.draw_ns(n) for n in range(1, 50)} == {1_000 * MS}


def test_the_same_seed_gives_the_same_waits() -> None:
    one, two = (Backoff(100, 1_000, random.Random(9)) for _ in range(2))
    assert [one.draw_ns(n) for n in range(1, 20)] == [two.draw_ns(n) for n in range(1, 20)]


def test_a_million_failures_do_not_overflow() -> None:
    assert Backoff(1, 1_000, random.Random(1)).draw_ns(10**6) <= 1_000 * MS


def test_A17_the_largest_timeout_never_expires() -> None:
    assert deadline_ns(2**60, 2**31 - 1) <= NEVER_NS
    assert deadline_ns(5, 2**62) == NEVER_NS
