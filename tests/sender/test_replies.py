"""What a broker says about single records."""

from __future__ import annotations

from mpproducer.reason import Reason
from mpproducer.sender.actions import Kind, Outcome
from mpproducer.sender.replies import record_outcomes
from mpproducer.shm import frames

WHOLE = Outcome(Kind.NOT_WRITTEN, 87, Reason.INVALID_RECORD, "partition says", 0, 5)


def _shape(outcomes: tuple[Outcome, ...]) -> list[tuple[int, int]]:
    return [(outcome.first, outcome.count) for outcome in outcomes]


def test_S30_one_listed_record_has_the_error_of_the_batch_the_rest_went_down_with_it() -> None:
    whole = Outcome(Kind.NOT_WRITTEN, 32, Reason.REJECTED, "bad time", 0, 5)
    outcomes = record_outcomes(whole, [(2, "record says")])
    assert _shape(outcomes) == [(0, 2), (2, 1), (3, 2)]
    assert outcomes[1].reason is Reason.REJECTED
    assert outcomes[1].message == "record says"
    assert {outcomes[0].message, outcomes[2].message} != {"record says"}
    assert all(outcome.code == 32 for outcome in outcomes)


def test_S30_several_listed_records_are_each_an_invalid_record() -> None:
    outcomes = record_outcomes(WHOLE, [(4, None), (0, "first")])
    assert _shape(outcomes) == [(0, 1), (1, 3), (4, 1)]
    assert [o.reason for o in outcomes] == [
        Reason.INVALID_RECORD,
        Reason.REJECTED,
        Reason.INVALID_RECORD,
    ]
    assert outcomes[2].message == "partition says"


def test_K6_no_usable_record_errors_means_the_error_of_the_batch_for_all() -> None:
    assert record_outcomes(WHOLE, []) == (WHOLE,)
    assert record_outcomes(WHOLE, [(-1, "x"), (5, "y")]) == (WHOLE,)


def test_outcomes_cover_every_record_once_also_for_a_part_of_a_split_batch() -> None:
    part = Outcome(Kind.UNKNOWN, 87, Reason.INVALID_RECORD, "m", 100, 4)
    outcomes = record_outcomes(part, [(0, None), (3, None), (3, "again")])
    assert _shape(outcomes) == [(100, 1), (101, 2), (103, 1)]
    assert all(outcome.kind is Kind.UNKNOWN for outcome in outcomes)


def test_kinds_are_those_of_the_frames() -> None:
    assert {kind.name: int(kind) for kind in Kind} == {kind.name: int(kind) for kind in frames.Kind}
