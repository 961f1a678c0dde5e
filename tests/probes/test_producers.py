"""Producer ids: duplicates, gaps, epochs, and the wrap of the sequence."""

from __future__ import annotations

import pytest

from mpproducer.wire import error_codes as codes
from tests.probes import batches as b
from tests.probes.client import Raw, Topic

GAP, FENCED = codes.OUT_OF_ORDER_SEQUENCE_NUMBER, codes.INVALID_PRODUCER_EPOCH
LAST = (1 << 31) - 1

# (epoch, first sequence, records) -> base offset, or the error code as a negative number
PLANS = {
    "a duplicate is answered with its offset": [
        (0, 0, 3, 0), (0, 3, 3, 3), (0, 0, 3, 0), (0, 3, 3, 3), (0, 6, 1, 6),
    ],
    "the last five batches are remembered, not the sixth": [
        *((0, n, 1, n) for n in range(7)),
        (0, 0, 1, -GAP), (0, 1, 1, -GAP), (0, 2, 1, 2), (0, 6, 1, 6), (0, 7, 1, 7),
    ],
    "a gap is refused and what was missing goes on": [(0, 0, 3, 0), (0, 5, 3, -GAP), (0, 3, 1, 3)],
    "part of a batch is no duplicate": [
        (0, 0, 3, 0), (0, 1, 3, -GAP), (0, 0, 2, -GAP), (0, 0, 4, -GAP), (0, 2, 1, -GAP),
    ],
    "a new epoch starts at 0 and ends the old one": [
        (0, 0, 3, 0), (1, 0, 3, 3), (1, 3, 1, 6), (0, 3, 1, -FENCED), (0, 0, 3, -FENCED),
        (1, 4, 1, 7),
    ],
    "a new epoch at another sequence is refused and changes nothing": [
        (0, 0, 3, 0), (1, 3, 3, -GAP), (2, 1, 1, -GAP), (0, 3, 1, 3), (1, 0, 1, 4),
    ],
    "epochs may leave numbers out": [(0, 0, 1, 0), (7, 0, 1, 1), (3, 0, 1, -FENCED)],
    "the same sequence under a new epoch is no duplicate": [
        (0, 0, 3, 0), (1, 0, 3, 3), (1, 0, 3, 3),
    ],
    "a partition that does not know the producer takes any sequence": [
        (0, 5, 3, 0), (0, 8, 1, 3), (0, 5, 3, 0), (0, 0, 1, -GAP),
    ],
    "and any epoch": [(5, 0, 1, 0), (5, 1, 1, 1), (4, 0, 1, -FENCED)],
    "sequences wrap between batches": [
        (0, LAST - 1, 1, 0), (0, LAST, 1, 1), (0, 0, 1, 2), (0, 1, 1, 3), (0, LAST, 1, 1),
    ],
    "sequences wrap inside a batch": [(0, LAST - 1, 4, 0), (0, 2, 1, 4), (0, LAST - 1, 4, 0)],
    "an epoch of -1 is an epoch": [(-1, 0, 1, 0)],
    "a sequence of -1 is none": [(0, -1, 1, -codes.INVALID_RECORD)],
}  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
def test_sequences(raw: Raw, topic: Topic, plan: str) -> None:
    producer_id, epoch = raw.producer_id()
    assert epoch == 0
    stored: set[int] = set()
    for epoch, sequence, count, expected in PLANS[plan]:
        result = raw.produce(topic, b.sequenced(producer_id, epoch, sequence, count))
        told = result.base_offset if not result.error_code else -result.error_code
        assert told == expected, (epoch, sequence, count)
        assert result.log_start_offset == 0
        # A duplicate comes back with its newest timestamp, as if the log had set it.
        again = result.base_offset in stored
        assert result.log_append_time_ms == (b.NOW_MS if again else -1)
        stored |= {result.base_offset} - {-1}


def test_partitions_know_a_producer_each_for_itself(raw: Raw, topic: Topic) -> None:
    producer_id, _epoch = raw.producer_id()
    for partition in (0, 1):
        for sequence in (0, 3):
            data = b.sequenced(producer_id, 0, sequence)
            assert raw.produce(topic, data, partition=partition).base_offset == sequence


def test_producers_do_not_disturb_each_other(raw: Raw, topic: Topic) -> None:
    first, second = raw.producer_id()[0], raw.producer_id()[0]
    assert first != second
    offsets = [
        raw.produce(topic, b.sequenced(producer_id, 0, sequence)).base_offset
        for sequence in (0, 3)
        for producer_id in (first, second)
    ]
    assert offsets == [0, 3, 6, 9]
    assert raw.produce(topic, b.sequenced(first, 0, 0)).base_offset == 0


def test_a_producer_id_nobody_gave_out_is_taken(raw: Raw, topic: Topic) -> None:
    # UNKNOWN_PRODUCER_ID (59) is an answer of brokers before KIP-360 only.
    for producer_id in (987_654_321, -2):
        result = raw.produce(topic, b.sequenced(producer_id, 0, 0))
        assert result.error_code == 0


def test_a_sequence_without_a_producer_id_means_nothing(raw: Raw, topic: Topic) -> None:
    for _ in range(2):
        assert raw.produce(topic, b.sequenced(-1, -1, 3)).error_code == 0
    assert raw.end_offset(topic) == 6


def test_a_refused_batch_leaves_the_producer_where_it_was(raw: Raw, topic: Topic) -> None:
    producer_id, _epoch = raw.producer_id()
    assert raw.produce(topic, b.sequenced(producer_id, 0, 0)).base_offset == 0
    far = b.NOW_MS + 2 * b.HOUR_MS
    late = b.changed(27, ">q", far, b.sequenced(producer_id, 0, 3))
    assert raw.produce(topic, late).error_code == codes.INVALID_TIMESTAMP
    assert raw.produce(topic, b.sequenced(producer_id, 0, 3)).base_offset == 3
