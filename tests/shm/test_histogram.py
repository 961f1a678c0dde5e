"""Log-linear buckets: their bounds, and quantiles against those of the sorted values."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpproducer._core import native
from mpproducer.shm.histogram import (
    BUCKETS,
    MAX_RELATIVE_ERROR,
    bounds,
    cumulative,
    quantile,
    since,
)

SHARES = (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)
QUEUE_TIME, REQUEST_LATENCY, SEND_TO_ACK = range(3)


def counted(values_us: list[int]) -> tuple[int, int, list[int]]:
    """Sum, largest and buckets as the core counts them."""
    metrics = native.Metrics(1)
    for value in values_us:
        metrics.acked(value * 1000 + 999)  # what is below a microsecond does not count
    return metrics.read()[0][2][SEND_TO_ACK]


def nearest_rank(values: list[int], q: float) -> int:
    """The definition, on the values themselves."""
    return sorted(values)[max(1, math.ceil(q * len(values))) - 1]


def test_buckets_cover_every_value_once_and_are_narrow() -> None:
    assert BUCKETS == native.BUCKETS
    edge = 0
    for bucket in range(BUCKETS):
        first, last = bounds(bucket)
        assert first == edge
        assert last >= first
        if first >= 16:
            assert (last - first + 1) / first <= 1 / 16
        else:
            assert first == last
        edge = last + 1
    assert edge == 1 << 32


def test_the_core_counts_where_the_bounds_say() -> None:
    edges = [value for bucket in range(BUCKETS) for value in bounds(bucket)]
    _, _, counts = counted(edges)
    assert counts == [2] * BUCKETS


def test_what_is_longer_than_the_last_bucket_is_in_it_and_its_maximum_is_exact() -> None:
    total, largest, counts = counted([1 << 33, (1 << 40) + 7])
    assert counts[-1] == 2 == sum(counts)
    assert (total, largest) == ((1 << 33) + (1 << 40) + 7, (1 << 40) + 7)


def test_a_negative_duration_counts_as_none() -> None:
    metrics = native.Metrics(1)
    metrics.acked(-5)
    total, largest, counts = metrics.read()[0][2][SEND_TO_ACK]
    assert (total, largest, counts[0]) == (0, 0, 1)


def test_nothing_has_no_quantile() -> None:
    assert math.isnan(quantile([0] * BUCKETS, 0.5))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1 << 32) | st.integers(0, 300), min_size=1, max_size=200))
def test_quantiles_differ_from_the_sorted_values_by_less_than_promised(values: list[int]) -> None:
    total, largest, counts = counted(values)
    capped = [min(value, (1 << 32) - 1) for value in values]
    assert sum(counts) == len(values)
    assert total == sum(values)
    assert largest == max(values)
    for q in SHARES:
        exact = nearest_rank(capped, q)
        assert abs(quantile(counts, q) - exact) <= exact * MAX_RELATIVE_ERROR, q
        assert quantile(counts, q, largest) <= largest


@pytest.mark.parametrize("shape", ["lognormal", "exponential", "two humps"])
def test_quantiles_of_latencies_agree_with_numpy(shape: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    if shape == "lognormal":
        values = draw.lognormal(7, 1.5, 20_000)
    elif shape == "exponential":
        values = draw.exponential(3_000, 20_000)
    else:
        values = np.concatenate([draw.normal(900, 50, 19_000), draw.normal(80_000, 9_000, 1_000)])
    whole = np.maximum(values, 0).astype(int)
    _, _, counts = counted([int(value) for value in whole])
    for q in SHARES[1:]:
        exact = float(np.quantile(whole, q, method="inverted_cdf"))
        assert quantile(counts, q) == pytest.approx(exact, rel=MAX_RELATIVE_ERROR)


def test_a_window_holds_what_was_counted_in_it(rng: random.Random) -> None:
    before = [rng.randrange(1 << 20) for _ in range(500)]
    after = [rng.randrange(1 << 20) for _ in range(700)]
    _, _, then = counted(before)
    _, _, now = counted(before + after)
    assert since(now, then) == counted(after)[2]


def test_octaves_are_exact(rng: random.Random) -> None:
    values = [rng.randrange(1 << rng.randrange(1, 32)) for _ in range(2_000)]
    _, _, counts = counted(values)
    for us, below in cumulative(counts, range(4, 32)):
        assert below == sum(value < us for value in values), us
