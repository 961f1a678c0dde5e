"""What the broker said about single records, as outcomes (KIP-467).

Completion frames carry one outcome for a range of records; a refused batch normally needs one. The
bytes of a frame are `mpproducer.shm.frames`; the pipes are `mpproducer.sender.workers`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mpproducer.reason import Reason
from mpproducer.sender.actions import Outcome

_UNLISTED: Final = (
    "the broker refused the batch because of other records in it; this record was not the cause"
)


def record_outcomes(
    whole: Outcome, record_errors: Iterable[tuple[int, str | None]]
) -> tuple[Outcome, ...]:
    """Divide a refused batch by what the broker said about single records (KIP-467).

    One listed record: it has the error of the batch. Several: each is an invalid record. The
    rest went down with them and is told so. Indices count from the batch's own first record;
    impossible ones are ignored.
    """
    listed = {index: message for index, message in record_errors if 0 <= index < whole.count}
    if not listed:
        return (whole,)
    reason = whole.reason if len(listed) == 1 else Reason.INVALID_RECORD
    outcomes: list[Outcome] = []
    start = 0
    for index in sorted(listed):
        if index > start:
            outcomes.append(_part(whole, start, index - start, Reason.REJECTED, _UNLISTED))
        message = listed[index] or whole.message
        outcomes.append(_part(whole, index, 1, reason, message))
        start = index + 1
    if start < whole.count:
        outcomes.append(_part(whole, start, whole.count - start, Reason.REJECTED, _UNLISTED))
    return tuple(outcomes)


def _part(whole: Outcome, start: int, count: int, reason: Reason, message: str) -> Outcome:
    return Outcome(whole.kind, whole.code, reason, message, whole.first + start, count)
