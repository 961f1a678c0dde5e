"""The FIFO of a connection."""

from __future__ import annotations

import pytest

from mpproducer.sender.bugs import NotReady
from mpproducer.sender.inflight import (
    MAX_CORRELATION_ID,
    MIN_RESERVED_CORRELATION_ID,
    Correlation,
    InFlight,
    InFlightRequests,
)


def _request(correlation_id: int) -> InFlight:
    return InFlight(correlation_id, 0, 9, 0, 100)


def test_N6_a_half_written_request_blocks_the_connection_even_with_free_slots() -> None:
    queue = InFlightRequests(5)
    assert queue.can_send_more()
    queue.add(_request(1))
    assert not queue.can_send_more()
    with pytest.raises(NotReady, match="not fully written"):
        queue.add(_request(2))
    queue.wrote(1)
    assert queue.can_send_more()


def test_a_send_past_the_limit_is_refused_with_an_error() -> None:
    queue = InFlightRequests(2)
    for correlation_id in (1, 2):
        queue.add(_request(correlation_id))
        queue.wrote(correlation_id)
    with pytest.raises(NotReady, match=r"2 requests in flight \(limit 2\)"):
        queue.add(_request(3))


def test_N7_responses_complete_oldest_first_and_acks_0_the_newest() -> None:
    queue = InFlightRequests(5)
    for correlation_id in (1, 2, 3):
        queue.add(_request(correlation_id))
        queue.wrote(correlation_id)
    assert queue.complete_next(2) is None
    first = queue.complete_next(1)
    assert first is not None
    assert first.correlation_id == 1
    assert queue.complete_last_sent().correlation_id == 3
    assert [request.correlation_id for request in queue.clear()] == [2]
    with pytest.raises(NotReady):
        queue.complete_last_sent()


def test_only_the_newest_request_can_be_the_one_being_written() -> None:
    queue = InFlightRequests(5)
    queue.add(_request(1))
    assert queue.wrote(7) is None
    assert not queue.can_send_more()


def test_N16_correlation_ids_stay_out_of_the_range_kept_for_sasl() -> None:
    ids = Correlation(MIN_RESERVED_CORRELATION_ID - 2)
    taken = [ids.take() for _ in range(4)]
    assert taken == [MIN_RESERVED_CORRELATION_ID - 2, MIN_RESERVED_CORRELATION_ID - 1, 0, 1]
    assert MAX_CORRELATION_ID == 2**31 - 1


def test_N8_throttle_time_is_not_the_requests_time() -> None:
    queue = InFlightRequests(5)
    queue.add(_request(1))
    queue.extend_deadlines(50)
    oldest = queue.oldest()
    assert oldest is not None
    assert oldest.deadline_ns == 150
