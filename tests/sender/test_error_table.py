"""The table of produce errors against the reference, row by row."""

from __future__ import annotations

import pytest

from mpproducer.reason import Reason
from mpproducer.sender import error_table
from mpproducer.sender.error_table import Step

RETRIABLE = {
    2, 3, 5, 6, 7, 9, 13, 14, 15, 16, 19, 20, 45, 51, 56, 59, 72, 74, 75, 78, 80, 83, 89, 100, 103,
}  # fmt: skip
REFRESH = {3, 5, 6, 9, 13, 56, 72, 74, 80, 83, 100, 103}
FAILS = {
    -1, 8, 10, 17, 18, 21, 29, 31, 32, 35, 42, 43, 44, 46, 47, 48, 49, 53, 76, 87, 90, 120,
}  # fmt: skip


def test_every_code_of_the_reference_is_listed_with_its_retry_and_refresh_columns() -> None:
    assert set(error_table.TABLE) == RETRIABLE | FAILS | {0}
    assert {code for code, row in error_table.TABLE.items() if row.retriable} == RETRIABLE
    assert {code for code, row in error_table.TABLE.items() if row.refresh} == REFRESH


def test_codes_a_leader_gives_after_its_own_append_prove_nothing() -> None:
    open_codes = {code for code, row in error_table.TABLE.items() if not row.refused}
    assert open_codes == {-1, 0, 3, 6, 7, 13, 20, 46, 56}


def test_fatal_codes() -> None:
    fatal = {code for code, row in error_table.TABLE.items() if row.step is Step.FATAL}
    assert fatal == {31, 35, 53, 90}


def test_a_terminal_refusal_leaves_a_gap_in_the_sequences() -> None:
    for row in error_table.TABLE.values():
        special = row.step in (Step.DUPLICATE, Step.SPLIT, Step.FATAL)
        if not row.retriable and row.code and not special:
            assert row.step is Step.BUMP, row


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (29, Reason.AUTHORIZATION),
        (31, Reason.AUTHORIZATION),
        (17, Reason.TOPIC),
        (10, Reason.TOO_LARGE),
        (87, Reason.INVALID_RECORD),
        (44, Reason.REJECTED),
        (19, Reason.RETRIES_EXHAUSTED),
        (2, Reason.CORRUPT),
    ],
)
def test_reasons_told_to_the_user(code: int, reason: Reason) -> None:
    assert error_table.row(code).reason is reason


def test_an_unlisted_code_counts_as_unknown_server_error() -> None:
    row = error_table.row(9999)
    assert (row.retriable, row.refused) == (False, False)


def test_S36_the_brokers_message_is_preferred() -> None:
    assert "too few" in error_table.describe(19, "too few")
    assert error_table.describe(19, None) == "NOT_ENOUGH_REPLICAS (19)"
    assert error_table.describe(9999, None) == "error (9999)"
